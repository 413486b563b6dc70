"""The progress bars of `danqing draw` and `danqing models pull`, on stderr. Knows events and a terminal, nothing else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from danqing.domain.task import Drawn, Event, Failed, Started, Stepped


class _Shown:
    """A display that is there within a `with`."""

    _progress: Progress

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class FileBars(_Shown):
    """A bar for each file that comes."""

    def __init__(self) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
        console = Console(stderr=True)
        self._progress = Progress(TextColumn("{task.description}"), *columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def on_bytes(self, file: str, done: int, total: int) -> None:
        """So much of a file is there."""
        if file not in self._tasks:
            self._tasks[file] = self._progress.add_task(file)
        self._progress.update(self._tasks[file], completed=done, total=total)


class StepBar(_Shown):
    """Counts denoising steps over all images of one drawing."""

    def __init__(self, n: int, steps: int) -> None:
        self._done = dict.fromkeys(range(n), 0)
        self._steps = dict.fromkeys(range(n), steps)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("waiting", total=n * steps)

    def on_event(self, event: Event) -> None:
        """Move the bar."""
        match event:
            case Started():
                self._progress.update(self._task, description="drawing")
            case Stepped():
                self._done[event.index] = event.step
                self._steps[event.index] = event.steps  # an edit may take fewer
            case Drawn() | Failed():
                self._done[event.index] = self._steps[event.index]
            case _:
                pass
        done, steps = sum(self._done.values()), sum(self._steps.values())
        self._progress.update(self._task, completed=done, total=steps)
