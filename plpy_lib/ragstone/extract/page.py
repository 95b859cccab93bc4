"""A page as lines with their boxes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Line:
    """A line of text with its box, in points from the page's lower left corner."""

    text: str
    size: float
    left: float
    right: float
    bottom: float
    top: float


@dataclass(frozen=True)
class Page:
    number: int
    height: float
    lines: list[Line]
