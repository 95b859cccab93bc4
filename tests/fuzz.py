"""Mutates valid documents for a bounded time and reads them in the confined child.

    python tests/fuzz.py [--seconds 60] [--seed N] [--format a.pdf]

Ends with status 1 and the seed where the child answered nonsense, left itself behind, or crashed in
a way that is not one of its limits. A crash of a parser is contained and counted, not a failure.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plpy_lib"), str(ROOT / "tests")]

from documents import VALID, zipped  # noqa: E402
from fake_models import word_model  # noqa: E402

from ragstone.errors import DocumentError  # noqa: E402
from ragstone.extract.model import Limits  # noqa: E402
from ragstone.models.port import ModelSpec  # noqa: E402
from ragstone.sandbox.parent import Sandbox  # noqa: E402
from ragstone.sandbox.protocol import ExtractRequest  # noqa: E402
from ragstone.stores.column import OpenContent  # noqa: E402

LIMITS = Limits(cpu_seconds=5, wall_seconds=15, max_text_characters=1_000_000)


def main() -> int:
    """Run and report; 1 where a fault was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--format", choices=VALID, action="append")
    options = parser.parse_args()
    print(f"seed {options.seed}: python tests/fuzz.py --seed {options.seed}", flush=True)
    valid = {name: VALID[name]() for name in options.format or VALID}
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        model = word_model(Path(folder))
        number = 0
        while time.monotonic() < deadline:
            chance = random.Random(f"{options.seed} {number}")
            name = chance.choice(list(valid))
            data = mutated(valid[name], chance)
            outcome = read(sandbox, model, data, name)
            outcomes[outcome] += 1
            if outcome.startswith("FAULT"):
                faults.append(f"document {number} ({name}): {outcome}")
                (ROOT / "build").mkdir(exist_ok=True)
                (ROOT / "build" / f"fuzz-{options.seed}-{number}-{name}").write_bytes(data)
            number += 1
    print(f"{number} documents: " + ", ".join(f"{k} {n}" for k, n in outcomes.most_common()))
    print("\n".join(faults[:50]))
    return 1 if faults else 0


def read(sandbox: Sandbox, model: ModelSpec, data: bytes, name: str) -> str:
    """How it ended, in a word."""
    if not data:
        return "empty"
    started = time.monotonic()
    try:
        with OpenContent(data).snapshot(10**9, lambda: None) as copy:
            sandbox.submit(ExtractRequest(name, model, LIMITS), copy.fd, lambda: None)
        found = sandbox.result(lambda: None)
    except DocumentError as error:
        if error.code in ("internal", "internal_error", "sandbox_failed"):
            return f"FAULT {error.code}: {error.detail}"
        if error.code == "crashed" and "SIG" not in error.detail:
            return f"FAULT crashed: {error.detail}"
        return error.code
    if time.monotonic() - started > LIMITS.wall_seconds + 5:
        return "FAULT took too long"
    if any("\x00" in chunk.content for chunk in found.chunks):
        return "FAULT a NUL in a text"
    return "read in part" if found.partial else "read"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A document with some of it changed; of an archive, a member, packed anew."""
    if data.startswith(b"PK") and chance.random() < 0.7:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        for _ in range(chance.randint(1, 3)):
            name = chance.choice(list(members))
            members[name] = scrambled(members[name], chance)
        return zipped(members)
    return scrambled(data, chance)


def scrambled(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, moved, or replaced by what parsers stumble over."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        if not out:
            break
        place = chance.randrange(len(out))
        length = min(chance.choice((1, 2, 4, 16, 256, 4_096)), len(out) - place)
        match chance.randrange(6):
            case 0:
                out[place] = chance.randrange(256)
            case 1:
                del out[place : place + length]
            case 2:
                out[place:place] = out[place : place + length] * chance.choice((1, 2, 50))
            case 3:
                other = chance.randrange(len(out))
                out[place : place + length] = out[other : other + length]
            case 4:
                out[place : place + length] = chance.choice(_AWKWARD)
            case _:
                digits = [i for i in range(place, len(out)) if 48 <= out[i] <= 57][:1]
                for digit in digits:
                    out[digit : digit + 1] = chance.choice((b"-1", b"0", b"99999999999", b"1e9"))
    return bytes(out[:2_000_000])


_AWKWARD = (
    b"\x00", b"\xff" * 8, b"\xed\xa0\x80", b"\xef\xbf\xbe", b"<", b">", b"&", b"]]>", b"<![CDATA[",
    b"(((", b")))", b"{", b"}", b"\\", b"\\u-1", b"/Length 99999999", b" 0 R", b"endobj", b"%s%n",
    b'"', b"'", b"\r", b"\n\n", b"\x1b$B", b"&#xD800;", b"\\ud800", b"=?utf-8?B?",
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
