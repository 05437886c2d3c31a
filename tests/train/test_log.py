import io
import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from aigc_jax.train.log import Log


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def events(out: Path) -> list[Event]:
    """Read TensorBoard's files: each event preceded by its length and a checksum, and one after."""
    found = []
    for path in sorted(out.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(out: Path) -> list[tuple[str, int, float]]:
    return [(v.tag, e.step, v.simple_value) for e in events(out) for v in e.summary.value]


def open_log(out: Path, text: io.StringIO | None = None, start: int = 0, **console: Any) -> Log:
    screen = Console(file=text or io.StringIO(), width=200, **console)
    return Log(out, start=start, total=100, batch=4, console=screen)


def test_a_window_is_one_line_with_its_means_and_rates(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_log(tmp_path, text) as log:
        log.window(20, {"gan/loss": 0.5, "gan/skipped": 2}, seconds=4.0, steps=10)
    (line,) = lines(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {
        "step": 20,
        "gan/loss": 0.5,
        "gan/skipped": 2.0,
        "steps/s": 2.5,
        "examples/s": 10.0,
    }
    assert ("gan/loss", 20, 0.5) in scalars(tmp_path)
    # 80 steps remain at 2.5 a second.
    assert text.getvalue() == (
        "step 20/100  gan/loss 0.5  gan/skipped 2  2.5 steps/s  10 examples/s  0:32 left\n"
    )


def test_lines_after_the_step_resumed_from_are_dropped(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, {"x": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "x"')  # the killed run was writing this
    with open_log(tmp_path, start=20) as log:
        log.write(30, {"x": -30})
    assert [(line["step"], line["x"]) for line in lines(tmp_path)] == [
        (10, 10),
        (20, 20),
        (30, -30),
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_tensorboard_is_told_which_steps_are_void(tmp_path: Path) -> None:
    with open_log(tmp_path, start=20) as log:
        log.write(30, {"x": 1})
    (start,) = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert start.step == 21 and start.session_log.status == start.session_log.START


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.write(1, {"a": math.nan, "b": math.inf, "c": np.float32(1)})
    (line,) = lines(tmp_path)
    assert (line["a"], line["b"], line["c"]) == (None, None, 1.0)


def test_a_picture_reaches_tensorboard(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.picture(3, "grid", np.zeros((4, 6, 3), np.uint8))
    ((event, value),) = [(e, v) for e in events(tmp_path) for v in e.summary.value]
    assert (event.step, value.tag) == (3, "grid")
    assert (value.image.height, value.image.width) == (4, 6)


def test_it_does_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.delitem(sys.modules, "aigc_jax.train.events", raising=False)
    text = io.StringIO()
    with open_log(tmp_path, text) as log:
        log.write(1, {"x": 1})
        log.picture(1, "grid", np.zeros((4, 6, 3), np.uint8))
        log.write(2, {"x": 2})
    assert [line["x"] for line in lines(tmp_path)] == [1, 2]
    assert not list(tmp_path.glob("events.*"))
    assert text.getvalue().count("tensorboardX is not installed") == 1


def test_a_terminal_gets_a_bar_and_lines_above_it(tmp_path: Path) -> None:
    text = io.StringIO()
    with open_log(tmp_path, text, force_terminal=True) as log:
        log.window(50, {"gan/loss": 0.5}, seconds=1.0, steps=10)
        log.say("[saved] it")
    shown = text.getvalue()
    assert "50/100" in shown and "40 examples/s" in shown and "gan/loss 0.5" in shown
    assert "[saved] it\n" in shown


def test_other_processes_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)
    text = io.StringIO()
    with open_log(tmp_path, text) as log:
        log.window(10, {"x/loss": 1.0}, seconds=1.0, steps=10)
        log.picture(10, "grid", np.zeros((4, 6, 3), np.uint8))
        log.say("hello")
    assert not text.getvalue() and not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
            log.write(1, {"x": 1})


def test_a_full_disk_does_not_hang_on_tensorboard(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = open_log(tmp_path)
    log.write(1, {"x": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}'"):
            for step in range(100):
                log.picture(step, "grid", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    log.close()
