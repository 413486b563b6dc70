"""The process of an engine: `python -m danqing.engine.worker DESCRIPTOR`. Knows the core and a channel, no service.

It does what it is told over the socket whose descriptor it was given, and ends when that closes: with its
parent, or by its parent's will. When its engine dies it ends too, so that whoever started it starts another:
a graphics device in a bad state, or memory that nobody frees, ends with the process that has it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from importlib import import_module
from typing import Any

from danqing.domain.errors import EngineFailed
from danqing.domain.task import Pixels
from danqing.engine.channel import Channel, ChannelClosed
from danqing.engine.core import LOST, EngineCore
from danqing.engine.families.base import Family
from danqing.engine.messages import (
    Begin,
    Cancel,
    Fault,
    JobDrawn,
    JobEvent,
    JobFailed,
    JobStarted,
    Loaded,
    Measure,
    Measured,
    Returned,
    StepDone,
    Stop,
    Submit,
)

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
"""How long the service may take to read on in the middle of a message."""
FAULT_EXIT = 70  # EX_SOFTWARE


class _Core(EngineCore):
    """An engine whose death is the process's."""

    channel: Channel

    def _end(self, fault: str) -> None:
        if fault != "stopped":
            self.channel.send(Fault(fault))
            self.channel.finish()
            _exit(FAULT_EXIT)
        super()._end(fault)


class Worker:
    """One engine, told by one channel."""

    def __init__(self, channel: Channel, begin: Begin) -> None:
        self._channel = channel
        self._lent: dict[str, Pixels] = {}
        """Drawn images that the service still holds: as long as they are here the core counts their bytes."""
        module, _, function = begin.factory.partition(":")

        def load() -> Family:
            factory: Any = getattr(import_module(module), function)
            return factory(**begin.options)

        self._core = _Core(
            load,
            queue_max=begin.queue_max,
            live_max=begin.live_max,
            batch_max=begin.batch_max,
            on_step=lambda seconds, size: channel.send(StepDone(seconds, size)),
            warm_up=begin.warm_up,
            hang_s=begin.hang_s,
            pace=begin.pace,
        )
        self._core.channel = channel
        self._core.listen(self._tell)

    def run(self) -> None:
        """Until the service says stop, or is gone."""
        self._core.start()
        self._core.loaded.result()  # its failure ends the process from the engine's thread
        self._channel.send(Loaded(self._core.pixels_max))
        while True:
            match self._channel.receive():
                case Submit() as message:
                    self._submit(message)
                case Cancel() as message:
                    self._core.cancel(message)
                case Measure(number, text):
                    length = self._core.measure(text).result()
                    self._channel.send(Measured(number, length))
                case Returned(job_id):
                    self._lent.pop(job_id, None)
                case Stop():
                    return
                case other:
                    raise ChannelClosed(f"not for an engine: {other}")

    def stop(self) -> None:
        self._core.stop()
        self._channel.finish()

    def _tell(self, event: JobEvent) -> None:
        if isinstance(event, JobDrawn):
            self._lent[event.job_id] = event.pixels
        if isinstance(
            event, JobStarted
        ):  # should it kill this process, the service must know which it was
            self._channel.send_surely(event)
        else:
            self._channel.send(event)

    def _submit(self, message: Submit) -> None:
        try:
            self._core.submit(message)
        except EngineFailed:
            for job in message.jobs:
                self._channel.send(JobFailed(job.id, LOST))


def _exit(code: int) -> None:
    """At once: what hangs in another thread must not keep the process."""
    logging.shutdown()
    os._exit(code)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all: the service's to hear
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="engine process: %(message)s")
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), timeout_s=TIMEOUT_S)
    try:
        begin = channel.receive()
        if not isinstance(begin, Begin):
            raise ChannelClosed(f"not a beginning: {begin}")
        worker = Worker(channel, begin)
        worker.run()
        worker.stop()
    except ChannelClosed as error:
        log.warning("the service is gone: %s", error)
        _exit(0)
    except Exception:
        log.exception("the engine process failed")
        _exit(FAULT_EXIT)
    _exit(0)


if __name__ == "__main__":
    main()
