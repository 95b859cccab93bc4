"""Reads the loggers of the stores and lists those that are out of range.

The ranges are those of the collection care manual, chapter 2.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Permitted relative humidity of a store, in per cent."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


RANGES = {
    "paper store": Range(45, 50),
    "metal store": Range(0, 35),
    "boat hall": Range(55, 60),
}


def out_of_range(readings: dict[str, float]) -> list[str]:
    """Names of the stores whose last reading is outside their range, the worst first."""
    return sorted(
        (store for store, value in readings.items() if not RANGES[store].holds(value)),
        key=lambda store: -distance(store, readings[store]),
    )


def distance(store: str, value: float) -> float:
    """How far a reading lies outside the range of its store; 0 inside."""
    permitted = RANGES[store]
    return max(permitted.low - value, value - permitted.high, 0)
