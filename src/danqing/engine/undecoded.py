"""Finished images in line to be decoded, and who goes first. Pure: knows no queue, no clock, no tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from danqing.engine.lanes import Entry


@dataclass(frozen=True, slots=True)
class _Place:
    entry: Entry
    since_s: float
    is_hurried: bool


class Undecoded:
    """A line by the time of finishing, in which hurried ones go first, and whoever has waited long before those."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, entry: Entry, now_s: float, *, is_hurried: bool) -> None:
        """It did its last step at `now_s`, by the device's time; `is_hurried`: in a burst of its account."""
        self._places[entry.job.id] = _Place(entry, now_s, is_hurried)

    def drop(self, job_id: str) -> None:
        """Unknown ids are fine."""
        self._places.pop(job_id, None)

    def take(self, before_s: float, waits: Callable[[Entry], bool]) -> str | None:
        """Whose turn it is, out of the line; None where nobody's is.

        Who finished `before_s` or then goes before all others. `waits` tells who lets others' steps go before,
        and is not asked of those who finished in a hurry.
        """

        def rank(job_id: str) -> int:
            place = self._places[job_id]
            return 0 if place.since_s <= before_s else 1 if place.is_hurried else 2

        for job_id in sorted(self._places, key=rank):
            if rank(job_id) < 2 or not waits(self._places[job_id].entry):
                del self._places[job_id]
                return job_id
        return None
