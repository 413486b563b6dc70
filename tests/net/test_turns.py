"""Turns: bounded, work-conserving and fair between accounts, whatever comes in whatever order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danqing.domain.errors import Busy
from danqing.net.turns import BACKGROUND_EVERY, Turns


class Crowd:
    """Holders of places who stay until they are told to go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.began: list[str] = []
        self.inside: dict[str, tuple[str, int, asyncio.Event]] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.refused: dict[str, Busy] = {}
        self.waited: list[tuple[int, float]] = []

    async def come(self, account: str, cost: int = 1, **how: bool | float) -> str:
        name = f"{account}-{len(self.tasks)}"
        self.tasks[name] = asyncio.create_task(self._hold(name, account, cost, **how))
        await settle()
        return name

    async def _hold(self, name: str, account: str, cost: int, **how: bool | float) -> None:
        go = asyncio.Event()
        waited = lambda position, eta_s: self.waited.append((position, eta_s))  # noqa: E731
        try:
            async with self.turns.take(account, cost=cost, on_wait=waited, **how):
                self.began.append(name)
                self.inside[name] = (account, cost, go)
                await go.wait()
        except Busy as busy:
            self.refused[name] = busy
        finally:
            self.inside.pop(name, None)

    async def go(self, name: str) -> None:
        self.inside[name][2].set()
        await settle()

    async def leave(self, name: str) -> None:
        self.tasks[name].cancel()
        await settle()

    def held(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for account, cost, _ in self.inside.values():
            held[account] += cost
        return held

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert (self.turns.running, self.turns.waiting) == (0, 0)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[], object]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_who_has_nothing_goes_before_who_fills_all_places() -> None:
    async def test() -> None:
        crowd = Crowd(Turns(2, 10))
        first = [await crowd.come("greedy") for _ in range(6)]
        late = await crowd.come("late")
        await crowd.go(first[0])
        assert crowd.began == [*first[:2], late]
        await crowd.go(first[1])
        assert crowd.began[-1] == first[2], "one each"
        assert crowd.waited[-1][0] == 2, "the latecomer is told so"
        await crowd.end()

    run(test)


def test_accounts_take_turns_in_one_place() -> None:
    async def test() -> None:
        crowd = Crowd(Turns(1, 100))
        for account in ("a", "a", "a", "a", "b", "b", "c"):
            await crowd.come(account)
        order = []
        while crowd.inside:
            (name,) = crowd.inside
            order.append(name[0])
            await crowd.go(name)
        assert order == ["a", "b", "c", "a", "b", "a", "a"]

    run(test)


def test_what_takes_long_is_no_way_to_more_places() -> None:
    async def test() -> None:
        crowd = Crowd(Turns(2, 100))
        await crowd.come("slow")
        name = await crowd.come("quick")
        for _ in range(5):
            await crowd.come("slow")
            await crowd.come("quick")
        for _ in range(5):
            await crowd.go(name)
            name = crowd.began[-1]
            assert name.startswith("quick"), "the slow one holds a place already"
        await crowd.go(name)
        assert crowd.began[-1].startswith("slow"), "nobody else wants it"
        await crowd.end()

    run(test)


def test_a_large_request_counts_as_many() -> None:
    async def test() -> None:
        crowd = Crowd(Turns(1, 100))
        for _ in range(3):
            await crowd.come("large", cost=4)
        for _ in range(9):
            await crowd.come("small")
        order = []
        while crowd.inside:
            (name,) = crowd.inside
            order.append(name[0])
            await crowd.go(name)
        assert "".join(order) == "lsssslssssls"

    run(test)


def test_a_full_line_is_shared() -> None:
    """Who has the most waiting gives way to who has none; nobody gives way to the like of himself."""

    async def test() -> None:
        crowd = Crowd(Turns(1, 3))
        mine = [await crowd.come("greedy") for _ in range(4)]
        assert len(crowd.refused) == 0
        refused = await crowd.come("greedy")
        assert crowd.refused[refused].retry_after_s >= 1
        late = await crowd.come("late")
        assert set(crowd.refused) == {refused, mine[3]}
        other = await crowd.come("other")
        assert set(crowd.refused) == {refused, mine[3], mine[2]}
        one_more = await crowd.come("late")
        assert one_more in crowd.refused
        await crowd.go(mine[0])
        assert crowd.began == [mine[0], late]
        await crowd.go(late)
        assert crowd.began[-1] == other
        await crowd.end()

    run(test)


def test_interactive_before_background_and_not_for_ever() -> None:
    async def test() -> None:
        crowd = Crowd(Turns(1, 3))
        holder = await crowd.come("x")
        background = [await crowd.come("x", background=True) for _ in range(3)]
        await crowd.come("x")  # even its own: background gives way
        assert set(crowd.refused) == {background[2]}
        await crowd.end()
        crowd = Crowd(Turns(1, 30))
        holder = await crowd.come("x")
        waiting = await crowd.come("b", background=True)
        for _ in range(20):
            await crowd.come("y")
        starts = 0
        while waiting not in crowd.began:
            (holder,) = crowd.inside
            await crowd.go(holder)
            starts += 1
        assert starts == BACKGROUND_EVERY - 1, "the first was one of them"
        await crowd.end()

    run(test)


def test_an_account_has_its_share_and_no_more() -> None:
    async def test() -> None:
        crowd = Crowd(Turns(4, 10, account_max=2))
        mine = [await crowd.come("greedy") for _ in range(4)]
        assert len(crowd.inside) == 2
        await crowd.come("other")
        assert len(crowd.inside) == 3, "who waits for his own share holds up nobody"
        await crowd.go(mine[0])
        assert crowd.began[-1] == mine[2]
        await crowd.end()

    run(test)


def test_who_waits_too_long_is_told_to_come_back() -> None:
    async def test() -> None:
        turns = Turns(1, 10)
        async with turns.take("a"):
            with pytest.raises(Busy):
                async with turns.take("b", wait_s_max=0.01):
                    pass
        assert (turns.running, turns.waiting) == (0, 0)

    run(test)


def test_who_leaves_as_the_place_comes_leaves_it() -> None:
    async def test() -> None:
        crowd = Crowd(Turns(1, 10))
        first = await crowd.come("a")
        second, third = await crowd.come("b"), await crowd.come("c")
        crowd.inside[first][2].set()
        crowd.tasks[second].cancel()
        await settle()
        assert list(crowd.inside) == [third]
        crowd.inside[third][2].set()
        with suppress(asyncio.CancelledError):
            await crowd.tasks[third]
        assert (crowd.turns.running, crowd.turns.waiting) == (0, 0)

    run(test)


deeds = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "go", "leave"]),
        st.sampled_from("abc"),
        st.integers(1, 3),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=120, deadline=None)
@given(deeds, st.integers(1, 4), st.integers(0, 5), st.integers(1, 4))
def test_laws(todo: list[tuple[str, str, int, bool]], running: int, line: int, each: int) -> None:
    async def test() -> None:
        crowd = Crowd(Turns(running, line, account_max=each))
        lines = crowd.turns._lanes
        for deed, account, number, background in todo:
            before, began = crowd.held(), len(crowd.began)
            eligible = {
                name
                for lane in lines
                for name in lane.waiting
                if sum(one[0] == name for one in crowd.inside.values()) < each
            }
            if deed == "come":
                await crowd.come(account, cost=number, background=background)
            elif deed == "go" and crowd.inside:
                name = sorted(crowd.inside)[number % len(crowd.inside)]
                before[crowd.inside[name][0]] -= crowd.inside[name][1]
                eligible.add(crowd.inside[name][0])
                await crowd.go(name)
            elif deed == "leave" and crowd.tasks:
                await crowd.leave(list(crowd.tasks)[number % len(crowd.tasks)])
            held = Counter(one[0] for one in crowd.inside.values())
            assert len(crowd.inside) == crowd.turns.running <= running
            assert crowd.turns.waiting <= line
            assert max(held.values(), default=0) <= each
            free = crowd.turns.running < running
            waiting = {name for lane in lines for name in lane.waiting}
            assert not (free and any(held[name] < each for name in waiting)), "a place is free"
            if deed == "go" and len(crowd.began) == began + 1 and not lines[1].count:
                winner = crowd.inside[crowd.began[-1]][0]
                others = [name for name in waiting & eligible if held[name] < each]
                assert all(before[winner] <= before[name] for name in others if name != winner)
        await crowd.end()

    asyncio.run(test())
