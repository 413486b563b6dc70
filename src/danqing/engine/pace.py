"""What a step costs, learned by measurement, and the batch size that follows. Knows no job, no tensor, no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

STEP_S_DEFAULT = 0.1
"""What a step is taken to last before anything was measured."""
TRIALS = 3
"""Measurements of a batch size before it is judged; the first is a warm-up and is thrown away."""
WEIGHT_NEW = 0.2
"""Weight of the newest measurement in the running mean."""
GAIN_MIN = 0.05
"""A larger batch must cost this much less per image to be worth its longer step."""
GAIN_MIN_DEEP = 0.02
"""Likewise while the queue is long, when everyone waits for what others cost."""
GROWTH_MAX = 4.0
"""A batch's step may last at most this many times the step of one image."""
RETRY_EVERY = 64
"""Every so many batches of a key the next larger size is tried again: machines change. One that did not fit into memory waits twice as long each time."""
REFUSALS_MAX = 8
"""Doublings of that."""
TICK_S = 1e-6
"""The least a step is taken to last."""
KEYS_MAX = 512
"""Batch keys remembered; the one unused for longest is forgotten."""


@dataclass(slots=True)
class _Mean:
    """Running mean of the seconds a step of one batch size took."""

    seconds: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        weight = 1.0 if self.count < 2 else WEIGHT_NEW
        self.seconds += weight * (seconds - self.seconds)
        self.count += 1


@dataclass(frozen=True, slots=True)
class Known:
    """What was measured of a batch key."""

    step_s: dict[int, float]
    """By batch size."""
    ending_s: float | None
    """Of decoding one image; None = not measured."""


@dataclass(slots=True)
class _Key:
    sizes: dict[int, _Mean] = field(default_factory=dict[int, _Mean])
    ending: _Mean = field(default_factory=_Mean)
    batches: int = 0
    size_max: int | None = None
    refused: int = 0
    """The smallest size that did not fit the last time, how often in a row, and at which batch a larger one than `size_max` may be tried."""
    refusals: int = 0
    lift_at: int = 0


class Pace:
    """Step times by (batch key, batch size), and the size that makes an image cheapest.

    Sizes are tried at 1, 2, 4, ... `batch_max`, each only once the one before has paid off, so a
    machine on which batching buys nothing stays at 1.
    """

    def __init__(self, batch_max: int) -> None:
        self.batch_max = batch_max
        self.gain_min = GAIN_MIN
        self._sizes = [2**power for power in range(batch_max.bit_length()) if 2**power < batch_max]
        self._sizes.append(batch_max)
        self._keys: OrderedDict[Hashable, _Key] = OrderedDict()
        self._image_step = _Mean()

    def learn(self, key: Hashable, size: int, seconds: float) -> None:
        """A step of `size` images of `key` took `seconds`."""
        entry = self._at(key)
        entry.sizes.setdefault(size, _Mean()).add(seconds)
        if entry.refusals and size >= entry.refused:
            entry.refusals = 0
        self._image_step.add(seconds / size)

    def learn_ending(self, key: Hashable, seconds: float) -> None:
        """Decoding one image of `key` took `seconds`."""
        self._at(key).ending.add(seconds)

    def limit(self, key: Hashable, size: int) -> None:
        """A batch of `size` did not fit into memory: stay below it for a while. What was a moment's shortage is forgotten, size by size."""
        entry = self._at(key)
        entry.size_max = max(1, min(size - 1, entry.size_max or size))
        entry.refused, entry.refusals = size, min(entry.refusals + 1, REFUSALS_MAX)
        entry.lift_at = entry.batches + RETRY_EVERY * 2 ** (entry.refusals - 1)

    def known(self) -> dict[Hashable, Known]:
        """What was measured more than once, so that it is no first slow call; the key used last comes last."""
        found: dict[Hashable, Known] = {}
        for key, entry in self._keys.items():
            steps = {size: mean.seconds for size, mean in entry.sizes.items() if mean.count > 1}
            if steps:
                found[key] = Known(steps, entry.ending.seconds if entry.ending.count else None)
        return found

    def restore(self, known: Mapping[Hashable, Known]) -> None:
        """Take what was known before a restart for what is not measured yet: to be trusted, and corrected by what comes."""
        measured = list(self._keys)
        for key in list(known)[-(KEYS_MAX - len(measured)) :]:
            entry = self._at(key)
            for size, seconds in known[key].step_s.items():
                if size <= self.batch_max:
                    entry.sizes.setdefault(size, _Mean(seconds, TRIALS))
            ending_s = known[key].ending_s
            if ending_s is not None and entry.ending.count == 0:
                entry.ending = _Mean(ending_s, TRIALS)
        for key in measured:
            self._keys.move_to_end(key)

    def batch_size(self, key: Hashable) -> int:
        """How many images the next batch may have: the best size known, or one worth trying."""
        entry = self._at(key)
        entry.batches += 1
        if entry.size_max is not None and entry.batches >= entry.lift_at:
            larger = [size for size in self._sizes if size > (entry.size_max or 0)]
            entry.size_max = larger[0] if len(larger) > 1 else None
            entry.lift_at = entry.batches + RETRY_EVERY
        best, trial = self._best(entry)
        if trial is not None:
            return trial
        if entry.batches % RETRY_EVERY == 0:
            return next((size for size in self._allowed(entry) if size > best), best)
        return best

    def size_within(self, key: Hashable, growth: float) -> int:
        """The largest batch that was seen to last at most `growth` times the step of one image; 1 where that is not known."""
        entry = self._keys.get(key)
        one = entry.sizes.get(1) if entry else None
        if entry is None or one is None:
            return 1
        return max(
            size for size, mean in entry.sizes.items() if mean.seconds <= growth * one.seconds
        )

    def single_step_s(self, key: Hashable) -> float:
        """Seconds of a step of one image alone; what is expected of a step where that was not seen."""
        entry = self._keys.get(key)
        one = entry.sizes.get(1) if entry else None
        return one.seconds if one else self.step_s(key)

    def saved(self, key: Hashable) -> float:
        """The share of a step's time that the best batch saves each image; 0 where that is not known."""
        return max(0.0, 1 - self.image_step_s(key) / max(TICK_S, self.single_step_s(key)))

    def aim(self, key: Hashable) -> int:
        """The best size known, or the one to be tried next."""
        entry = self._keys.get(key)
        if entry is None:
            return 1
        best, trial = self._best(entry)
        return trial or best

    def step_s(self, key: Hashable) -> float:
        """Expected seconds of a step of a batch of the best size."""
        return self._expect(self._keys.get(key))[1]

    def image_step_s(self, key: Hashable) -> float:
        """Expected seconds of device time that one step of one image costs."""
        size, seconds = self._expect(self._keys.get(key))
        return seconds / size

    def ending_s(self, key: Hashable) -> float:
        """Expected seconds of decoding one image; 0 before one was measured."""
        entry = self._keys.get(key)
        return entry.ending.seconds if entry else 0.0

    def _expect(self, entry: _Key | None) -> tuple[int, float]:
        if entry is None or not entry.sizes:
            return 1, self._image_step.seconds if self._image_step.count else STEP_S_DEFAULT
        size = self._best(entry)[0]
        if size not in entry.sizes:  # nothing but other sizes was seen so far: the nearest tells
            size = min(entry.sizes, key=lambda seen: abs(seen - size))
        return size, entry.sizes[size].seconds

    def _best(self, entry: _Key) -> tuple[int, int | None]:
        """The cheapest size measured well enough, and the size to try next, if any."""
        best = 1
        for size in self._allowed(entry):
            mean = entry.sizes.get(size)
            if mean is None or mean.count < TRIALS:
                return best, size
            if size == 1:
                continue
            one, now = entry.sizes[1].seconds, entry.sizes[best].seconds / best
            if mean.seconds > GROWTH_MAX * one or mean.seconds / size > (1 - self.gain_min) * now:
                break
            best = size
        return best, None

    def _allowed(self, entry: _Key) -> list[int]:
        ceiling = entry.size_max
        return [size for size in self._sizes if ceiling is None or size <= ceiling]

    def _at(self, key: Hashable) -> _Key:
        entry = self._keys.setdefault(key, _Key())
        self._keys.move_to_end(key)
        if len(self._keys) > KEYS_MAX:
            self._keys.popitem(last=False)
        return entry
