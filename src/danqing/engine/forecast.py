"""When each queued image will be there, from measured step times. Pure: no clock, no rule of whose turn it is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from danqing.engine.lanes import Entry
from danqing.engine.pace import Pace


def forecast(lanes: Sequence[Sequence[Entry]], pace: Pace) -> dict[str, tuple[int, float]]:
    """Job id -> (position, eta_s). A lane comes after those before it; its entries are in order of admission.

    A fair share as a fluid: a job ends when its account has had w seconds, the work of its jobs up to
    this one, and by then each other account has had min(w, all its work).
    """
    keys = {entry.key for lane in lanes for entry in lane}
    image_step_s = {key: pace.image_step_s(key) for key in keys}
    step_s = {key: pace.step_s(key) for key in keys}
    ending_s = {key: pace.ending_s(key) for key in keys}
    found: list[tuple[float, int, str]] = []
    before_s = 0.0
    for lane in lanes:
        done_s: dict[str, float] = {}
        mine: list[tuple[Entry, float]] = []
        for entry in lane:
            name = entry.job.account_id
            work_s = entry.left * image_step_s[entry.key] + ending_s[entry.key]
            done_s[name] = done_s.get(name, 0.0) + work_s
            mine.append((entry, done_s[name]))
        totals = sorted(done_s.values())
        sums = [0.0, *accumulate(totals)]
        for entry, work_s in mine:
            less = bisect_right(totals, work_s)
            fluid_s = before_s + sums[less] + work_s * (len(totals) - less)
            alone_s = entry.left * step_s[entry.key] + ending_s[entry.key]
            found.append((max(fluid_s, alone_s), entry.number, entry.job.id))
        before_s += sums[-1]
    return {job_id: (place, eta_s) for place, (eta_s, _, job_id) in enumerate(sorted(found))}
