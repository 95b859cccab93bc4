"""Check the SQL in migrations/ and sql/: its form, and its safety by pgspot.

The form: lines of at most 140 characters, functions of at most 120 lines, and a number of its own
for each file of sql/. Released migrations never change, so their form is not checked.

PS002 and PS015 of pgspot are about `create or replace` in a schema that others can write to. In
the script of an extension, PostgreSQL 15 and later refuse to replace what does not belong to the
extension. `create extension` pins the search_path of the script. pgspot cannot see that, so the
same statement is put before each file.

pgspot's parser does not understand all functions. A file that it cannot parse is checked again
without the bodies of functions: search paths, owners' rights, and what stands outside of functions.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST_LINE = 140
LONGEST_FUNCTION = 120
FUNCTION = re.compile(r"create or replace (?:function|procedure) (rag\.\w+)")
OPENING = re.compile(r"(?:^|\s)as (\$\w*\$)")
PLACEHOLDER = re.compile(r"@[a-z_0-9]+@")
PINNED = "set search_path = pg_catalog, pg_temp;\n"
BODY = re.compile(r"\bas \$(sql|plpgsql)\$.*?\$\1\$", re.DOTALL)
# A body that is bound to its functions when it is created needs no search path. pgspot does not
# know such bodies.
BOUND = re.compile(r"^create or replace function (?:(?!^c|\bas \$)[\s\S])*?^  return [^;]*;$", re.M)
OPTIONS = [
    *("--ignore", "PS002", "--ignore", "PS015", "--ignore-lang", "plpython3u"),
    # A procedure that sets a search path cannot commit.
    "--proc-without-search-path",
    "rag.rebuild_index(pipeline text,index_method text,index_options jsonb,quantization text)",
]


def pgspot(file: Path, *options: str) -> tuple[bool, str]:
    """Return whether pgspot finds nothing, and its output."""
    program = Path(sys.executable).with_name("pgspot")
    done = subprocess.run(
        [program, *OPTIONS, *options, file], capture_output=True, text=True, check=False
    )
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def check(source: Path, work: Path) -> str | None:
    """Return what pgspot finds in a file, None if nothing."""
    file = work / source.name
    file.write_text(PINNED + PLACEHOLDER.sub("1", source.read_text().replace("@extschema@", "rag")))
    clean, said = pgspot(file)
    if not clean and "PS0" not in said:
        file.write_text(BOUND.sub("", BODY.sub("as $$ select 1 $$", file.read_text())))
        clean, said = pgspot(file, "--no-plpgsql")
    return None if clean else said


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of lines of each function that a file defines."""
    name, first, closing = "", 0, ""
    for number, line in enumerate(text.splitlines()):
        if started := FUNCTION.match(line):
            name, first, closing = started[1], number, ""
        if not closing and (opened := OPENING.search(line)):
            closing = f"{opened[1]};"
        # A function without a quoted body ends with its only statement.
        ended = closing in line if closing else line.startswith("  return ")
        if name and ended:
            yield name, number - first + 1
            name = ""


def form(source: Path) -> Iterator[str]:
    """Yield what is wrong with the form of a file."""
    text = source.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LONGEST_LINE:
            yield f"line {number} has {len(line)} characters, at most {LONGEST_LINE} are allowed"
    for name, lines in functions(text):
        if lines > LONGEST_FUNCTION:
            yield f"{name} has {lines} lines, at most {LONGEST_FUNCTION} are allowed"


def shared_numbers(sources: Sequence[Path]) -> Iterator[str]:
    """Yield each number that more than one file begins with."""
    numbers: dict[str, list[str]] = {}
    for source in sources:
        numbers.setdefault(source.name.partition("_")[0], []).append(source.name)
    for number, names in numbers.items():
        if len(names) > 1:
            yield f"number {number} is shared by {', '.join(names)}"


def frozen_names() -> set[str]:
    """Return the names of the migrations that are released."""
    released = (ROOT / "extension" / "released.sha256").read_text()
    return {Path(line.split()[-1]).name for line in released.splitlines() if line.strip()}


def main() -> int:
    """Check all files. Return 1 and print what was found if anything is wrong."""
    topics = sorted(ROOT.glob("sql/*.sql"))
    migrations = sorted(ROOT.glob("migrations/*.sql"))
    frozen = frozen_names()
    failed = 0
    for said in shared_numbers(topics):
        failed += 1
        print(f"sql: {said}", file=sys.stderr)
    for source in (*migrations, *topics):
        for said in form(source) if source.name not in frozen else ():
            failed += 1
            print(f"{source.relative_to(ROOT)}: {said}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as work:
        for source in (*migrations, *topics):
            if said := check(source, Path(work)):
                failed += 1
                print(f"{source.relative_to(ROOT)}: {said}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
