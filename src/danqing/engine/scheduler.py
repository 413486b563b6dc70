"""Which jobs take the next step together. Pure: touches no tensor, no clock and no thread.

Deficit round-robin (Shreedhar & Varghese 1995, in its surplus form: charged after the fact, because a step's
cost is known only once it was measured) over accounts, and within an account over its batch keys, in seconds
of device time. A turn is worth the longest step at hand, C seconds; a batch's seconds are shared out to its
members' accounts. Seats left in a batch go to other accounts' jobs of the same key, and cost them their share.
An account a whole turn overdrawn does not ride while jobs of other keys wait, nor ever who owes more than steps lead to.

An account that comes with work shorter than what its share would have been while it was away (BURST_STEPS turns at most, and
what decoding takes) goes before the others until that is done, the shortest first, while such bursts have a third of the time
at most, and takes along only whom it hardly waits for, while the queue is short. Where images are decoded by turns with the steps, one after a step, those of
others wait until such an account has its own (`pick_decoding`).

Half of an account's time goes to its shortest jobs, half to its oldest. In a long queue (DEEP_STEPS of the longest kind) batches
are as large as is cheapest, and a job that a full batch would save much waits for company: riding along whenever its key is
stepped, alone only after COMPANY_SHARE of the time by which the queue was longer than that when the job came. Short ones never wait so.

Laws, tested as properties; C counts the longest step seen or expected:
- the queue never holds more than `queue_max` jobs, nor more than `live_max` started ones;
- over any stretch in which two accounts of a lane both have work, neither gets more than 5·C seconds more than the
  other (4·C where they share no batches), but for a burst that it comes with; for what the other waits for company, which also
  costs it the turn at hand; and for batches that have all of the other's jobs: with fewer jobs than seats it can take no more of them;
- bursts are no way to more than one's share: an account that comes and goes beside a busy one gets at most half of
  the time, and BURST_STEPS·C and one decoding; nor is cancelling: a job that is gone by then pays for what was done for it;
- no starvation, whatever else keeps coming: with N accounts in the lane, K keys in the account, and R steps to do in
  the job and those before it in its account and key, a started job ends within 6·N·K·R·C seconds of its lane's
  time, N bursts more, and its wait for company; counted from admission the same holds with R the steps of the whole queue at that moment;
- a finished image is decoded within BURST_STEPS·C seconds of the device's time, and a step and a decoding more for itself and
  for each that was in line before it; decoding is charged in full: among accounts that share no batches it puts one ahead
  of another by no more than the images that both have in line;
- of every BACKGROUND_EVERY batches at least one is background's, if it has a job that can run;
- slots, once scarce, go to the accounts that hold none, in the order in which they came to hold none.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count

from danqing.domain.errors import Busy
from danqing.engine.forecast import forecast
from danqing.engine.lanes import Account, Entry, Lane, due, line
from danqing.engine.messages import Job
from danqing.engine.pace import GAIN_MIN, GAIN_MIN_DEEP, Pace
from danqing.engine.ring import BURST_STEPS, Ring
from danqing.engine.undecoded import Undecoded

BACKGROUND_EVERY = 8
RETRY_AFTER_S_MIN = 1.0
DEEP_STEPS = 256
"""Of the longest kind: a queue of more is long."""
COMPANY_SHARE = 0.5
"""Of the time by which the queue is longer than that when a job comes: so long it may be kept waiting for others of its key."""
COMPANY_S = 60.0
"""And that long, at most, for each second of device time which that saves it."""
COMPANY_GAIN_MIN = 0.25
"""Of its steps' time: what saves less is not waited for."""
BURST_GROWTH_MAX = 1.15
"""A step of a burst may last so many times the step of one image, for those who ride along; in a long queue, any time."""
RIDER_DEBT_MAX = 2.001
"""Turns: steps lead to a debt of two. Who owes more, of decoding, does not ride along: drawn sooner, it would have more decoded."""
TICK_S = 1e-6
"""The least a step costs, so that a turn always ends."""


class Scheduler:
    """The queue. Not thread-safe: its owner holds a lock. `pick` and `update` alternate."""

    def __init__(self, *, queue_max: int, live_max: int, batch_max: int) -> None:
        if min(queue_max, live_max, batch_max) < 1:
            raise ValueError("queue_max, live_max and batch_max must be at least 1")
        self.queue_max = queue_max
        self.live_max = live_max
        self.pace = Pace(batch_max)
        self._entries: dict[str, Entry] = {}
        self._interactive = Lane()
        self._background = Lane()
        self._numbers = count()
        self._since_background = 0
        self._live = 0
        self._held = 0
        self._batch: list[Entry] = []
        self._quantum_s = TICK_S
        self._is_deep = False
        """The queue is long."""
        self._undecoded = Undecoded()
        self._device_s = 0.0
        """What all steps took, and decodings and the like: the only clock here."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def live(self) -> int:
        """Jobs that hold state in memory, finished ones not yet removed included."""
        return self._live

    @property
    def undecoded(self) -> int:
        """Jobs that need no more steps and whose image is still to be decoded."""
        return len(self._undecoded)

    def admit(self, jobs: Sequence[Job], keys: Sequence[Hashable]) -> None:
        """Queue all the jobs or none. Raises Busy with the predicted time until there is room.

        Raises ValueError when an id is queued already.
        """
        excess = len(self._entries) + len(jobs) - self.queue_max
        if excess > 0:
            ends = sorted(eta_s for _, eta_s in self.forecast().values())
            wait_s = ends[min(excess, len(ends)) - 1] if ends else 0.0
            raise Busy(max(RETRY_AFTER_S_MIN, wait_s))
        ids = {job.id for job in jobs}
        if len(ids) < len(jobs) or any(job_id in self._entries for job_id in ids):
            raise ValueError("a job id is queued twice")
        deep_s = max(0.0, self._backlog_s() - self._deep_s())
        for job, key in zip(jobs, keys, strict=True):
            entry = Entry(job, key, next(self._numbers), came_s=self._device_s)
            entry.patience_s = min(self._patience_s(entry), COMPANY_SHARE * deep_s)
            self._entries[job.id] = entry
            accounts = self._lane(job).accounts
            account = accounts.setdefault(job.account_id, Account(in_line=entry.number))
            account.flows.setdefault(key, {})[job.id] = entry

    def remove(self, job_id: str) -> None:
        """Forget a job: drawn, failed or cancelled. Its slot is free at once; unknown ids are fine."""
        self.go_on(job_id)
        entry = self._entries.pop(job_id, None)
        self._undecoded.drop(job_id)
        if entry is not None:
            if job_id in self._flow(entry):
                self._leave_flow(entry)
            self._release(entry)

    def pick(self) -> list[str]:
        """Ids of the jobs that take the next step together, equal in batch key; empty when idle."""
        for lane in (self._interactive, self._background):
            self._look(lane)
        lane = self._next_lane()
        if lane is None:
            self._batch = []
            return []
        self._is_deep = self._backlog_s() > self._deep_s()
        self.pace.gain_min = GAIN_MIN_DEEP if self._is_deep else GAIN_MIN
        self._settle(lane)
        held = {name for name, account in lane.accounts.items() if account.held}
        work_s = partial(self._work_s, lane)
        name = str(lane.ring.turn(lane.ready, self._quantum_s, work_s, held))
        key = self._key(lane, name)
        self._batch = self._seats(lane, name, key)
        return [entry.job.id for entry in self._batch]

    def pick_decoding(self, *, beside: bool = False) -> str | None:
        """Id of the job whose image is decoded next, told once; None where there is none, or where it is to wait.

        Nothing waits that is decoded `beside` the steps. Else this call comes between `update` and `pick`.
        """
        if not self._undecoded:
            return None
        hurried, is_day = ([], True) if beside else self._hurried()

        def waits(entry: Entry) -> bool:
            if is_day or self._lane(entry.job) is self._background:
                return any(name != entry.job.account_id for name in hurried)
            return False

        return self._undecoded.take(self._device_s - BURST_STEPS * self._quantum_s, waits)

    def _hurried(self) -> tuple[list[Hashable], bool]:
        """The accounts whose bursts take the next steps, and whether they are interactive ones."""
        for lane in (self._interactive, self._background):
            self._look(lane)
            if lane.ready:
                self._settle(lane)
                work_s = partial(self._work_s, lane)
                hurried = lane.ring.hurried(lane.ready, self._quantum_s, work_s)
                return hurried, lane is self._interactive
        return [], True

    def ahead(self) -> str | None:
        """A job to make ready while others step, started by this call; None where one is ready for its first step already.

        It is of the account with the fewest started ones, and takes a slot by the rules for slots.
        """
        for entry in self._entries.values():
            if entry.live and entry.step == 0 and entry.left and entry not in self._batch:
                return None
        for lane in (self._interactive, self._background):
            self._look(lane)
            found: list[tuple[int, int, Entry]] = []
            for account in lane.accounts.values():
                new = [e for flow in account.flows.values() for e in flow.values() if not e.live]
                first = min(new, key=lambda entry: entry.number, default=None)
                if first is not None and self._can_run(lane, first):
                    found.append((account.live, account.in_line, first))
            if found:
                entry = min(found, key=lambda each: each[:2])[2]
                self._start(entry)
                return entry.job.id
        return None

    def hold(self, job_id: str) -> None:
        """Leave a started job out of the batch just picked and of those to come, until `go_on`: it is not ready for a step."""
        entry = self._entries[job_id]
        if entry in self._batch:
            self._batch.remove(entry)
        if not entry.held:
            entry.held = True
            self._held += 1
            self._lane(entry.job).accounts[entry.job.account_id].held += 1

    def go_on(self, job_id: str) -> None:
        """A job that was held is ready. Unknown ids are fine."""
        entry = self._entries.get(job_id)
        if entry is not None and entry.held:
            entry.held = False
            self._held -= 1
            self._lane(entry.job).accounts[entry.job.account_id].held -= 1

    def update(
        self,
        steps: Mapping[str, int],
        seconds: float,
        calls: Sequence[tuple[int, float]] | None = None,
        overflow: int | None = None,
    ) -> list[str]:
        """Tell how the picked batch went; returns the ids of the jobs that need no more steps.

        Who was removed meanwhile is charged all the same: leaving during a step pays nothing.
        `steps`: steps done by each job that advanced. `seconds`: what the whole batch took.
        `calls`: (batch size, seconds) of each forward, when a batch was split. `overflow`: the smallest size that did not fit into memory.
        """
        if not self._batch:
            return []
        key = self._batch[0].key
        for size, call_s in [(len(self._batch), seconds)] if calls is None else calls:
            self.pace.learn(key, size, call_s)
        if overflow is not None:
            self.pace.limit(key, overflow)
        self._device_s += seconds
        share_s = max(TICK_S, seconds / len(self._batch))
        finished: list[str] = []
        was_ahead: dict[int, bool] = {}
        for entry in self._batch:
            lane, name = self._lane(entry.job), entry.job.account_id
            is_hurried = lane.ring.is_bursting(name)
            lane.ring.charge(name, share_s, -2 * self._quantum_s)
            account = lane.accounts.get(name)
            if account is not None:
                account.ring.charge(key, share_s, -2 * self._quantum_s)
                ahead = was_ahead.setdefault(id(account), account.ahead_s > 0)
                account.ahead_s += -share_s if ahead else share_s
                account.ahead_s = min(account.ahead_s, self._quantum_s)
            if self._entries.get(entry.job.id) is not entry:  # cancelled during the step
                continue
            entry.step = steps.get(entry.job.id, entry.step)
            if entry.left == 0:
                self._leave_flow(entry)
                self._undecoded.add(entry, self._device_s, is_hurried=is_hurried)
                finished.append(entry.job.id)
        self._batch = []
        return finished

    def decoded(self, job: Job, seconds: float) -> None:
        """Tell what decoding a job's image took: it is learned, and charged like a step."""
        entry = self._entries.get(job.id)
        if entry is not None:
            self.pace.learn_ending(entry.key, seconds)
        self.charge(job, seconds)

    def charge(self, job: Job, seconds: float) -> None:
        """Engine time that went into one job outside its steps: its account pays, though the job be gone by now."""
        self._device_s += seconds
        self._lane(job).ring.charge(job.account_id, seconds)

    def position(self, job_id: str) -> int:
        """How many jobs are expected to end before this one."""
        return self.forecast()[job_id][0]

    def eta_s(self, job_id: str) -> float:
        """Expected seconds until the job's image is there."""
        return self.forecast()[job_id][1]

    def forecast(self) -> dict[str, tuple[int, float]]:
        """(position, eta_s) of every queued job, from measured step times; see forecast.py."""
        lanes: list[list[Entry]] = [[], []]
        for entry in self._entries.values():
            lanes[self._lane(entry.job) is self._background].append(entry)
        return forecast(lanes, self.pace)

    def _work_s(self, lane: Lane, name: Hashable) -> tuple[float, float]:
        """Expected device time of all that an account has in a lane: of its steps, and of its decodings."""
        flows = lane.accounts[str(name)].flows
        steps_s = sum(
            entry.left * self.pace.single_step_s(key)
            for key, flow in flows.items()
            for entry in flow.values()
        )
        return steps_s, sum(len(flow) * self.pace.ending_s(key) for key, flow in flows.items())

    def _lane(self, job: Job) -> Lane:
        return self._background if job.priority == "background" else self._interactive

    def _look(self, lane: Lane) -> None:
        """See which accounts of the lane can run, and who may take a slot."""
        line = [name for name, account in lane.accounts.items() if not account.live]
        line.sort(key=lambda name: lane.accounts[name].in_line)
        lane.starters = set(line[: max(0, self._free(lane))])
        lane.ready = {}
        if not (lane.waiting or self._undecoded):
            lane.ring = Ring(BURST_STEPS)  # debts were towards those who waited
        for name, account in lane.accounts.items():
            keys = [
                key
                for key, flow in account.flows.items()
                if any(self._can_run(lane, entry) for entry in due(flow))
            ]
            if keys:
                lane.ready[name] = keys

    def _settle(self, lane: Lane) -> None:
        """See who of those that can run waits for company, and what a turn is worth to the others."""
        self._wait_for_company(lane)
        self._quantum_s = max(
            TICK_S, *(self.pace.step_s(key) for keys in lane.ready.values() for key in keys)
        )

    def _free(self, lane: Lane) -> int:
        """Slots the lane may take: background half of them at most."""
        free = self.live_max - self._live
        if lane is self._background:
            return min(free, max(1, self.live_max // 2) - lane.live)
        return free

    def _can_run(self, lane: Lane, entry: Entry) -> bool:
        """Started, or free to start. An account's second job leaves a quarter of the slots alone.

        While some are being made ready no other begins: who is next is not decided before it must be.
        """
        if entry.live or self._held:
            return entry.live
        name = entry.job.account_id
        kept = max(1, self.live_max // 4) if lane.accounts[name].live else 0
        return self._free(lane) > kept and (kept > 0 or name in lane.starters)

    def _next_lane(self) -> Lane | None:
        interactive, background = self._interactive, self._background
        turn = self._since_background + 1 >= BACKGROUND_EVERY or not interactive.ready
        if background.ready and turn:
            self._since_background = 0
            return background
        if not interactive.ready:
            return None
        self._since_background = self._since_background + 1 if background.waiting else 0
        return interactive

    def _key(self, lane: Lane, name: str) -> Hashable:
        """Which of its keys an account goes on with: its shortest job's or, every other time, that whose turn it is."""
        account, keys = lane.accounts[name], lane.ready[name]
        if account.ahead_s <= 0:
            return account.ring.turn(keys, self._quantum_s)
        return min(
            keys,
            key=lambda key: min(
                entry.left * self.pace.image_step_s(key)
                for entry in due(account.flows[key])
                if self._can_run(lane, entry)
            ),
        )

    def _backlog_s(self) -> float:
        """Expected device time of the steps that are left to do."""
        left: dict[Hashable, int] = {}
        for entry in self._entries.values():
            left[entry.key] = left.get(entry.key, 0) + entry.left
        return sum(steps * self.pace.image_step_s(key) for key, steps in left.items())

    def _deep_s(self) -> float:
        """From how much work on the queue is long."""
        keys = {entry.key for entry in self._entries.values()}
        return DEEP_STEPS * max(map(self.pace.single_step_s, keys), default=0.0)

    def _patience_s(self, entry: Entry) -> float:
        """How long company is worth waiting for, to a job."""
        saved = self.pace.saved(entry.key)
        if entry.left <= BURST_STEPS or saved < COMPANY_GAIN_MIN:
            return 0.0
        return COMPANY_S * saved * entry.left * self.pace.single_step_s(entry.key)

    def _wait_for_company(self, lane: Lane) -> None:
        """Leave out the keys whose batches would be small and whose jobs can all wait, while there are others."""
        size: dict[Hashable, int] = {}
        waiting: set[Hashable] = set()
        keys_ready = {key for keys in lane.ready.values() for key in keys}
        if len(keys_ready) < 2:
            return
        step_s = {key: self.pace.single_step_s(key) for key in keys_ready}
        for name, keys in lane.ready.items():
            for key in keys:
                for entry in lane.accounts[name].flows[key].values():
                    size[key] = size.get(key, 0) + 1
                    waited_s = self._device_s - entry.came_s - entry.step * step_s[key]
                    if waited_s < entry.patience_s:
                        waiting.add(key)
                    else:
                        size[key] = self.pace.batch_max
        waiting = {key for key in waiting if size[key] < self.pace.aim(key)}
        if waiting and waiting < size.keys():
            ready = {
                name: [k for k in keys if k not in waiting] for name, keys in lane.ready.items()
            }
            lane.ready = {name: keys for name, keys in ready.items() if keys}

    def _seats(self, lane: Lane, name: str, key: Hashable) -> list[Entry]:
        """The batch led by an account: its oldest job, then seat by seat from everyone with the key."""
        size = self.pace.batch_size(key)
        if lane.ring.is_bursting(name) and not self._is_deep:
            # who is in a hurry is not to wait for whom it takes along
            size = min(size, self.pace.size_within(key, BURST_GROWTH_MAX))
        queues = [line(lane.accounts[name], key)]
        if size > 1:
            queues += self._riders(lane, name, key)
        seats: list[Entry] = []
        while queues and len(seats) < size:
            for queue in list(queues):
                entry = next((entry for entry in queue if self._start(entry)), None)
                if entry is None:
                    queues.remove(queue)
                else:
                    seats.append(entry)
                if len(seats) == size:
                    break
        return seats

    def _riders(self, lane: Lane, leader: str, key: Hashable) -> list[Iterator[Entry]]:
        """The other accounts' jobs of this key, those owed the most first, interactive first."""
        lanes = [lane] if lane is self._background else [lane, self._background]
        crowded = any(set(keys) != {key} for each in lanes for keys in each.ready.values())
        queues: list[Iterator[Entry]] = []
        for each in lanes:
            deficit_s = each.ring.deficit_s
            names = [
                name
                for name, keys in each.ready.items()
                if key in keys
                and not (each is lane and name == leader)
                and deficit_s.get(name, 0.0) > -self._quantum_s * (1 if crowded else RIDER_DEBT_MAX)
            ]
            names.sort(key=lambda name: -deficit_s.get(name, 0.0))
            queues += [line(each.accounts[name], key) for name in names]
        return queues

    def _start(self, entry: Entry) -> bool:
        """Give the job a slot, if it has none; False when there is none for it."""
        lane = self._lane(entry.job)
        if not self._can_run(lane, entry):
            return False
        if not entry.live:
            entry.live = True
            lane.accounts[entry.job.account_id].live += 1
            lane.live += 1
            self._live += 1
        return True

    def _release(self, entry: Entry) -> None:
        lane = self._lane(entry.job)
        account = lane.accounts[entry.job.account_id]
        if entry.live:
            entry.live = False
            account.live -= 1
            lane.live -= 1
            self._live -= 1
            if account.live == 0:
                account.in_line = next(self._numbers)
        if not account.flows and account.live == 0:
            del lane.accounts[entry.job.account_id]

    def _flow(self, entry: Entry) -> dict[str, Entry]:
        account = self._lane(entry.job).accounts[entry.job.account_id]
        return account.flows.get(entry.key, {})

    def _leave_flow(self, entry: Entry) -> None:
        account = self._lane(entry.job).accounts[entry.job.account_id]
        flow = account.flows[entry.key]
        del flow[entry.job.id]
        if not flow:
            del account.flows[entry.key]
