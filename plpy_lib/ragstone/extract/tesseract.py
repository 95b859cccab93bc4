"""Find Tesseract's language data. It loads nothing, because backends call it too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .options import Ocr

# Debian and Ubuntu, Fedora, Arch, built by hand.
_FOLDERS = (
    "usr/share/tesseract-ocr/*/tessdata",
    "usr/share/tesseract/tessdata",
    "usr/share/tessdata",
    "usr/local/share/tessdata",
)
# Data of these names are not languages but the orientation of a page, and formulas.
_NO_LANGUAGE = frozenset(("osd", "equ"))
LANGUAGES = re.compile(r"[A-Za-z]\w{2,30}(\+[A-Za-z]\w{2,30}){0,9}", re.ASCII)


def data_folder(root: Path = Path("/")) -> Path | None:
    """The folder of the newest language data; None if Tesseract is not installed."""
    found = (path for pattern in _FOLDERS for path in sorted(root.glob(pattern), reverse=True))
    return next((path for path in found if any(path.glob("*.traineddata"))), None)


def installed(folder: Path | None) -> list[str]:
    """The languages of a folder."""
    names = (path.stem for path in folder.glob("*.traineddata")) if folder else ()
    return sorted(set(names) - _NO_LANGUAGE)


def ocr(languages: str) -> Ocr | None:
    """The options with which the child recognises these languages (`eng+deu`); None for `off`."""
    if languages == "off":
        return None
    folder = data_folder()
    return Ocr(languages, str(folder) if folder else None)


def problem(languages: str, folder: Path | None) -> tuple[str, str] | None:
    """Why these languages cannot be recognised, and what to do; None if they can."""
    if folder is None:
        return (
            "Tesseract is not installed on the server.",
            f"On Debian and Ubuntu: apt-get install {packages(['eng', *languages.split('+')])}",
        )
    there = installed(folder)
    missing = [name for name in languages.split("+") if name not in there]
    if missing:
        return (
            f"Tesseract has no data for {', '.join(missing)}; it has {', '.join(there)}.",
            f"On Debian and Ubuntu: apt-get install {packages(missing)}",
        )
    return None


def packages(languages: Sequence[str]) -> str:
    """Debian's packages of languages; English comes with the program."""
    names = [f"tesseract-ocr-{name.lower().replace('_', '-')}" for name in dict.fromkeys(languages)]
    return " ".join("tesseract-ocr" if name == "tesseract-ocr-eng" else name for name in names)
