"""Which hours and weathers lie over which of pocket's scenes. Knows scenes by name and number; no words, no pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from danqing.engine.families import pocket_layout as layout

# Scenes that are nothing but an hour or a weather.
_ALONE: dict[str, tuple[str, str]] = {
    "night": ("night", "fair"), "sunset": ("sunset", "fair"),
    "rain": ("day", "rain"), "snow": ("day", "snow"),
}  # fmt: skip
_ANYWHERE = "meadow"


class Sky:
    """`open_air`: the numbers of the scenes that hours and weathers lie over."""

    def __init__(self, scenes: Sequence[str], open_air: Sequence[int]) -> None:
        self.scenes = len(scenes)
        self._open = frozenset(open_air)
        self._anywhere = scenes.index(_ANYWHERE)
        self._alone = {
            scenes.index(key): (layout.HOURS.index(hour), layout.WEATHERS.index(weather))
            for key, (hour, weather) in _ALONE.items()
        }

    def settled(self, wish: layout.Wish) -> layout.Wish:
        """The wish with a place, an hour and a weather that go together and were drawn in training."""
        scene, hour, weather = wish.scene, wish.hour, wish.weather
        if scene in self._alone and (hour or weather):
            hour, weather = (
                own or said for own, said in zip(self._alone[scene], (hour, weather), strict=True)
            )
            scene = 0
        if weather and (hour == 1 or layout.WEATHERS[weather] == "rainbow"):
            hour = 0
        if scene == 0 and (hour or weather):
            alone = [k for k, air in self._alone.items() if air == (hour, weather)]
            scene = alone[0] if alone else self._anywhere
        if scene not in self._open:
            hour = weather = 0
        return replace(wish, scene=scene, hour=hour, weather=weather)

    def airs_of(self, scene: int) -> tuple[int, int]:
        """The hour and the weather that a scene is, where it is nothing else."""
        return self._alone.get(scene, (0, 0))

    def said(self, wish: layout.Wish) -> layout.Wish:
        """The wish with the hour and the weather that its scene is: "night" is a scene and an hour."""
        hour, weather = self._alone.get(wish.scene, (wish.hour, wish.weather))
        return replace(wish, hour=hour, weather=weather)

    def over(self, wish: layout.Wish, scene: int) -> layout.Wish:
        """The wish over a place known otherwise: "at night" is that place at night, no other one."""
        if not wish.scene or (wish.scene in self._alone and scene in self._open):
            hour, weather = self._alone.get(wish.scene, (wish.hour, wish.weather))
            return replace(wish, scene=scene, hour=hour, weather=weather)
        return wish

    def fair(self) -> Iterator[tuple[int, int, int, int]]:
        """(scene, variant, hour, weather) of every ground by day and in fair weather."""
        for scene in range(self.scenes):
            for variant in range(layout.COMPOSITIONS if scene else layout.VARIANTS):
                yield scene, variant, 0, 0

    def unfair(self) -> Iterator[tuple[int, int, int, int]]:
        """And of every other one."""
        airs = [(1, 0), (2, 0), (0, 1), (0, 2), (0, 3), (2, 1), (2, 2)]
        for scene in sorted(self._open):
            for variant in range(layout.COMPOSITIONS):
                yield from ((scene, variant, hour, weather) for hour, weather in airs)
