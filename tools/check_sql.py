"""Run pgspot over migrations/ and sql/.

PS002 and PS015 are about `create or replace` in a schema that others can write to. In the script of
an extension PostgreSQL 15 and later refuse to replace what is not the extension's. The script's own
search_path is pinned by create extension, which pgspot cannot see: it is told so.

pgspot's parser does not know all that a function can hold. A file that it gives up on is looked at
without the bodies: search paths, owners' rights and what is outside of functions.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = re.compile(r"@[a-z_0-9]+@")
PINNED = "set search_path = pg_catalog, pg_temp;\n"
BODY = re.compile(r"\bas \$(sql|plpgsql)\$.*?\$\1\$", re.DOTALL)
# A body that is bound to its functions when it is made needs no search path, and is not understood.
BOUND = re.compile(r"^create or replace function (?:(?!^c|\bas \$)[\s\S])*?^  return [^;]*;$", re.M)
OPTIONS = [
    *("--ignore", "PS002", "--ignore", "PS015", "--ignore-lang", "plpython3u"),
    # With a search path of its own it could not commit.
    "--proc-without-search-path",
    "rag.rebuild_index(pipeline text,index_method text,index_options jsonb,quantization text)",
]


def pgspot(file: Path, *options: str) -> tuple[bool, str]:
    """Whether it has nothing to say, and what it says."""
    program = Path(sys.executable).with_name("pgspot")
    done = subprocess.run(
        [program, *OPTIONS, *options, file], capture_output=True, text=True, check=False
    )
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def check(source: Path, work: Path) -> str | None:
    """What is wrong with a file, None where nothing is."""
    file = work / source.name
    file.write_text(PINNED + PLACEHOLDER.sub("1", source.read_text().replace("@extschema@", "rag")))
    clean, said = pgspot(file)
    if not clean and "PS0" not in said:
        file.write_text(BOUND.sub("", BODY.sub("as $$ select 1 $$", file.read_text())))
        clean, said = pgspot(file, "--no-plpgsql")
    return None if clean else said


def main() -> int:
    """Check all; 1 with what was found."""
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        for source in (*ROOT.glob("migrations/*.sql"), *sorted(ROOT.glob("sql/*.sql"))):
            if said := check(source, Path(work)):
                failed += 1
                print(f"{source.relative_to(ROOT)}: {said}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
