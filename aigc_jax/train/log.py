"""What a run says: `metrics.jsonl`, TensorBoard events, and progress on the terminal."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aigc_jax.files import write_text


class Log:
    """The log of one run. On processes other than 0 it is silent and writes nothing.

    Args:
        out: the run's directory; gets `metrics.jsonl` and TensorBoard's events.
        start: the step resumed from. Lines of later steps, left by a killed run, are dropped.
        total: the step at which training ends.
        batch: examples a step.
        console: where progress is shown; standard error by default.

    Example:
        >>> import io, tempfile
        >>> out = Path(tempfile.mkdtemp())
        >>> with Log(out, start=0, total=100, batch=32, console=Console(file=io.StringIO())) as log:
        ...     log.window(50, {"vae/loss": 0.25}, seconds=2.0, steps=50)
        >>> line = json.loads((out / "metrics.jsonl").read_text())
        >>> line["step"], line["vae/loss"], line["steps/s"], line["examples/s"]
        (50, 0.25, 25.0, 800.0)
    """

    def __init__(
        self, out: Path, *, start: int, total: int, batch: int, console: Console | None = None
    ):
        self._total, self._batch = total, batch
        self._console = Console(stderr=True) if console is None else console
        self._active = jax.process_index() == 0
        self._out, self._start = out, start
        self._events: Any = None  # until there is one to write
        self._progress: Progress | None = None
        if not self._active:
            return
        self._path = out / "metrics.jsonl"
        if self._path.exists():
            _truncate(self._path, start)
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[rates]}"),
                console=self._console,
                # The display must not take the interpreter from the loop.
                refresh_per_second=2,
            )
            self._bar = self._progress.add_task("train", total=total, completed=start, rates="")
            self._progress.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def window(self, step: int, means: dict[str, float], *, seconds: float, steps: int) -> None:
        """Record what the last few steps averaged to, and how fast they were.

        Args:
            step: the number of steps taken so far.
            means: value by name.
            seconds: how long those steps took.
            steps: how many they were; `step` was the last.
        """
        rate = steps / max(seconds, 1e-9)
        rates = {"steps/s": rate, "examples/s": rate * self._batch}
        self.write(step, {**means, **rates})
        if not self._active:
            return
        shown = [f"{n} {v:.4g}" for n, v in means.items() if n.endswith("/loss")]
        shown += [f"{n} {v:.0f}" for n, v in means.items() if n.endswith("/skipped") and v]
        losses = "  ".join(shown)
        rates_text = f"{rate:.3g} steps/s  {rate * self._batch:,.0f} examples/s"
        if self._progress is not None:
            self._progress.update(self._bar, completed=step, rates=f"{rates_text}  {losses}")
        else:
            left = _clock((self._total - step) / rate)
            self.say(f"step {step}/{self._total}  {losses}  {rates_text}  {left} left")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one line to `metrics.jsonl`, and each value to TensorBoard."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **values}
        # JSON has no NaN; null is what its readers take for one.
        line = {k: v if np.isfinite(v) else None for k, v in line.items()}
        with _naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._record(lambda events: events.scalars(step, values))

    def picture(self, step: int, name: str, image: Any) -> None:
        """Add an (h, w, c) uint8 picture to TensorBoard."""
        if self._active:
            self._record(lambda events: events.picture(step, name, image))

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._active:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the display and write out what is buffered."""
        if not self._active:
            return
        if self._progress is not None:
            self._progress.stop()
        if self._events:
            with _naming(self._out):
                self._events.close()

    def _record(self, write: Callable[[Any], None]) -> None:
        """Write to TensorBoard's file, made when first needed, where tensorboardX is installed."""
        with _naming(self._out):
            if self._events is None:
                try:
                    from aigc_jax.train.events import Events
                except ModuleNotFoundError as error:
                    if error.name != "tensorboardX":
                        raise
                    self._events = False
                    self.say("tensorboardX is not installed: no events for TensorBoard are written")
                else:
                    self._events = Events(self._out, self._start)
            if self._events:
                write(self._events)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error that does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _truncate(path: Path, start: int) -> None:
    """Drop the lines of steps after `start`, and a last one cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue
        if step <= start:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
