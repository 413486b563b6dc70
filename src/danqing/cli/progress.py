"""The progress bar of `danqing draw`, on stderr. Knows events and a terminal, nothing else."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from danqing.domain.task import Drawn, Event, Failed, Started, Stepped


class StepBar:
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

    def __enter__(self) -> StepBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

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
