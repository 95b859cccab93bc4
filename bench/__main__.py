"""python -m bench [--template DATABASE] QUESTION [options]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import ingest, quality, search
from bench.harness import BenchError, Server

QUESTIONS = {"ingest": ingest, "search": search, "quality": quality}


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one question; 1 with a message on standard error where that is not possible."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure ragstone on the server that the PG* environment variables name.",
    )
    parser.add_argument(
        "--template",
        metavar="DATABASE",
        help="copy this database, which has ragstone, instead of typing create extension",
    )
    questions = parser.add_subparsers(dest="question", required=True)
    for name, module in QUESTIONS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_options(questions.add_parser(name, help=summary, description=module.__doc__))
    options = parser.parse_args(arguments)
    try:
        report = QUESTIONS[options.question].run(Server(options.template), options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"\nwritten to {report.write()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
