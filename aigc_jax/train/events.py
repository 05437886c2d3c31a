"""TensorBoard's events, by tensorboardX. Where that is not installed the log does without."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

FLUSH_SECONDS = 10.0


class Events:
    """An events file of a run, by the writer beneath tensorboardX's own.

    Its own writer's thread dies of a full disk, in silence, and leaves the loop to wait for it
    forever.

    Args:
        out: the run's directory.
        start: the step resumed from; what earlier files hold of later ones is void.
    """

    def __init__(self, out: Path, start: int):
        self._flushed = time.monotonic()
        self._writer = EventsWriter(str(out / "events"), f".{os.getpid()}")
        if start:
            session = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=start + 1, session_log=session))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add a value to the curve of each name."""
        each = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._record(step, Summary(value=each))

    def picture(self, step: int, name: str, image: Any) -> None:
        """Add an (h, w, c) uint8 picture."""
        self._record(step, summary.image(name, np.asarray(image), dataformats="HWC"))

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()

    def _record(self, step: int, values: Summary) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=values))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()
