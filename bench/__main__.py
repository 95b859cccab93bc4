"""python -m bench [--template DATABASE] [QUESTION [options]]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import (
    attach,
    bloat,
    chunking,
    formats,
    ingest,
    overhead,
    quality,
    scale,
    search,
    stops,
    triggers,
)
from bench.harness import BenchError, Server

QUESTIONS = {
    "ingest": ingest,
    "search": search,
    "quality": quality,
    "scale": scale,
    "triggers": triggers,
    "attach": attach,
    "chunking": chunking,
    "stops": stops,
    "bloat": bloat,
    "formats": formats,
    "overhead": overhead,
}
# What needs nothing but a server.
BY_DEFAULT = ["ingest", "search", "triggers"]


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
    questions = parser.add_subparsers(dest="question", metavar="QUESTION")
    for name, module in QUESTIONS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_options(questions.add_parser(name, help=summary, description=module.__doc__))
    options = parser.parse_args(arguments)
    asked = [options] if options.question else [parser.parse_args([q]) for q in BY_DEFAULT]
    server = Server(options.template)
    try:
        for question in asked:
            report = QUESTIONS[question.question].run(server, question)
            print(f"\nwritten to {report.write()}")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if not options.question:
        print("\nretrieval quality needs a collection: python -m bench quality --collection DIR")
    return 0


if __name__ == "__main__":
    sys.exit(main())
