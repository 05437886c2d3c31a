"""What commands say: lines, tables and durations; and which errors are to be read by a user."""

import json
import linecache
import math
import sys
import traceback
from collections.abc import Sequence
from typing import Any


def explain(error: Exception, words: list[str]) -> tuple[str, int] | None:
    """Return a message and an exit code, if an error is the user's and not a bug.

    Args:
        error: what a command raised.
        words: the command line.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        less = "; take a smaller batch, or --accumulate 2" if words[:1] == ["train"] else ""
        return f"out of memory{less}: {text.partition('RESOURCE_EXHAUSTED: ')[2] or text}", 1
    if isinstance(error, OSError):
        if error.strerror and error.filename:
            text = f"{error.filename}: {error.strerror}"
        return text or type(error).__name__, 1
    if isinstance(error, ValueError | RuntimeError) and _is_deliberate(error):
        return text, 2 if isinstance(error, ValueError) else 1
    return None


def _is_deliberate(error: Exception) -> bool:
    """Return whether a `raise` of this package or of an experiment made an error, to be read."""
    if error.__traceback__ is None:
        return False
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    module = frame.f_globals.get("__name__", "").partition(".")[0]
    source = linecache.getline(frame.f_code.co_filename, line).lstrip()
    return module in ("aigc_jax", "experiments") and source.startswith("raise")


def say(text: str) -> None:
    """Print a line beside the results, to standard error."""
    print(text, file=sys.stderr, flush=True)


def warn(message: object) -> None:
    """Print a warning."""
    say(f"aigc: warning: {one_line(message)}")


def one_line(text: object) -> str:
    """Join the lines of a text."""
    return " ".join(str(text).split())


def duration(seconds: float) -> str:
    """Write a duration in the unit that fits it.

    >>> duration(4.25), duration(90), duration(7500)
    ('4.2 s', '1.5 min', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def print_scores(scores: dict[str, float]) -> None:
    """Print scores in a table, each beside its floor if it has one."""
    floors = {
        name.replace("_floor/", "/").partition("/")[0]: value
        for name, value in scores.items()
        if "_floor/" in name
    }
    shown = lambda value: "nan" if value is None else f"{value:.4g}"
    rows = [("metric", "value", "floor" if floors else "")]
    for name, value in scores.items():
        if "_floor/" not in name:
            stem = name.partition("/")[0]
            rows.append((name, shown(value), shown(floors[stem]) if stem in floors else ""))
    print_rows(rows)


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print a table, a row a line wherever it goes."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2), pad_edge=True)
    for i in range(max(map(len, rows))):
        table.add_column(overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000  # a line is one line to what reads it
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def to_json(values: dict[str, Any]) -> str:
    """Write a JSON document; what is not finite becomes null."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    return json.dumps(finite, indent=2)
