"""Where calls beside the steps are made: on a graphics device, in a stream of the calling thread's own. Knows torch, no family."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Streams:
    """One stream for each thread that reads or decodes; steps stay in the device's default stream.

    A call beside the steps begins, on the device, after the last step that has ended, and has ended there when it
    returns: so whatever it gives is whole, and memory that it lets go of is in use by nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._own = threading.local()
        self._stepped: torch.cuda.Event | None = None

    def stepped(self) -> None:
        """A step has ended, in the current stream."""
        if self._is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._stepped = event

    @contextmanager
    def beside(self) -> Iterator[None]:
        if not self._is_cuda:
            yield
            return
        stream: torch.cuda.Stream | None = getattr(self._own, "stream", None)
        if stream is None:
            stream = self._own.stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):
            if self._stepped is not None:
                stream.wait_event(self._stepped)
            try:
                yield
            finally:
                stream.synchronize()
