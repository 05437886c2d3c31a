"""The command line as its user meets it: what it prints, what it leaves on disk, how it fails."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aigc_jax import __version__, cli, runs
from aigc_jax.cli import main

# Levels of grey, one for each class: a model of four numbers, that has every kind of argument.
BLOTS = '''\
"""Levels of grey.

    aigc train blots

Score: 0.8 of the spread, on a tea break.
"""
from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core.keys import normal
from aigc_jax.core.types import Experiment, Out, Phase, Task
from experiments.shades import Shades

if TYPE_CHECKING:
    from nowhere import Nothing


def blots(
    *,
    batch: int = 8,
    learning_rate: float = 0.05,
    sizes: tuple[int, ...] = (1, 2),
    where: Path = Path("here"),
    tone: Literal["warm", "cold"] = "warm",
    deep: bool = False,
    shallow: bool = True,
    tint: float | None = None,
) -> Experiment:
    """Draw blots of three levels of grey.

    Args:
        batch: examples a step.
        learning_rate: of Adam,
            constant throughout.
        sizes: of nothing.
    """
    if learning_rate <= 0:
        raise ValueError(f"learning_rate={learning_rate} must be positive")

    def init(key, batch):
        return {"net": {"level": jnp.zeros(4)}}, {}

    def loss(params, stats, batch, keys, mode):
        error = params["net"]["level"][batch["label"], None, None, None] - batch["image"]
        return Out(jnp.square(error).mean((1, 2, 3)), jnp.ones(len(keys)))

    def sample(
        params,
        stats,
        keys,
        cond,
        *,
        contrast: float = 1.0,
        solver: Literal["euler", "heun"] = "euler",
    ) -> Nothing:
        """Draw blots.

        Args:
            contrast: scale of the level.
            solver: of nothing.
        """
        if solver == "heun":
            raise ValueError(f"solver={solver!r} is for others")
        level = params["net"]["level"][cond["label"]] * contrast
        return level[:, None, None, None] + 0.01 * normal(keys, (4, 4, 1))

    def evaluate(model):
        drawn = model.draw(24, {"label": np.resize(np.arange(3, dtype=np.int32), 24)})
        made_with = (sizes, where, tone, deep, shallow, tint)
        given = ((3, -4, 5), Path("/there"), "cold", True, False, 0.5)
        return {
            "spread_net/24": float(drawn.std()),
            "spread_net_floor/24": 0.8165,
            "as_given": float(made_with == given),
            "unknown": float("nan"),
        }

    task = Task(
        init, (Phase("net", ("net",), loss, optax.adam(learning_rate)),), sample, {"net": 0.9}
    )
    return Experiment(
        task._replace(sample=functools.partial(task.sample, contrast=0.5)),
        data=lambda seed: Shades(seed, batch),
        steps=6,
        batch=batch,
        evaluate=evaluate,
        picture=lambda model: {"samples": np.zeros((4, 4, 1), np.uint8)},
        best=("spread_net/24", "max"),
        classes=("dark", "middle", "light"),
    )
'''
SHADES = """\
import numpy as np


class Shades:
    def __init__(self, seed, batch):
        self.seed, self.batch = seed, batch

    def __getitem__(self, step):
        label = np.random.default_rng([self.seed, step]).integers(0, 3, self.batch)
        image = np.ones((self.batch, 4, 4, 1), np.float32) * (label[:, None, None, None] - 1)
        return {"image": image.astype(np.float32), "label": label.astype(np.int32)}
"""
GIVEN = ["--sizes", "3", "-4", "5", "--where", "/there", "--tone", "cold", "--deep"]
GIVEN += ["--no-shallow", "--tint", "0.5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with two experiments and a run of one of them."""
    project = tmp_path_factory.mktemp("trained")
    (project / "experiments").mkdir()
    (project / "experiments" / "blots.py").write_text(BLOTS)
    (project / "experiments" / "shades.py").write_text(SHADES)
    before = Path.cwd()
    os.chdir(project)
    try:
        assert main(["train", "blots", *GIVEN]) == 0
    finally:
        os.chdir(before)
    return project


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def fails(capsys):
    """Run a command that must fail in one line; give what that line says."""

    def run(*words, code=2):
        assert main(words) == code
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert lines[-1].startswith("aigc: error: ")
        assert [line for line in lines if "error" in line.lower()] == lines[-1:]
        assert "Traceback" not in said.err
        return lines[-1].removeprefix("aigc: error: ")

    return run


def write(path, source):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(textwrap.dedent(source))
    return str(path)


# That experiment again, but for something that happens to a batch.
DIFFERENT = """\
import os
import signal
import warnings

import numpy as np

from experiments.blots import blots


def NAME(*, at: int = 3):
    "Train with a difference."
    shades = blots().data(0)

    class Different:
        def __getitem__(self, step):
            batch = shades[step]
            if step >= at:
                BODY
            return batch

    return blots()._replace(data=lambda seed: Different())
"""


def variant(folder, name, body):
    return write(folder / f"{name}.py", DIFFERENT.replace("NAME", name).replace("BODY", body))


def shown(capsys):
    return re.sub(r"\s+", " ", re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out))


# Training


def test_training_says_what_it_made_and_what_to_try_next(project, capsys):
    shutil.rmtree("runs")
    assert main(["train", "blots"]) == 0
    said = capsys.readouterr().out
    assert "blots: 4 parameters, step 6, in " in said
    assert re.search(r"spread_net/24 +0\.\d+ +0\.8165\n", said)
    for line in said.splitlines():
        if found := re.search(r"runs/blots/\S+", line):
            assert Path(found[0]).exists()
    for made in ("checkpoints/6", "metrics.jsonl", "evaluation.json", "samples/samples-000006.png"):
        assert f"runs/blots/{made}" in said
    [suggested] = re.findall("aigc (sample .*)", said)
    assert suggested == "sample runs/blots --label dark --contrast 1"
    assert main(suggested.split()) == 0


def test_films_are_among_the_files_made(project, capsys):
    assert main(["train", "blots", *GIVEN, "--picture-every", "1", "--steps", "8"]) == 0
    assert "films       runs/blots/samples/samples.gif\n" in capsys.readouterr().out
    samples = project / "runs" / "blots" / "samples"
    for name in ("turn-000008.gif", "turn-000006.gif", "other.gif", ".turn-000008.gif.7.partial"):
        (samples / name).touch()
    listed = runs.list_files(samples.parent, 8)
    assert [path for _, path in listed if "/samples/" in path] == [
        f"runs/blots/samples/{name}"
        for name in ("samples-000008.png", "samples.gif", "turn-000008.gif")
    ]
    assert [what for what, _ in listed][-3:] == ["pictures", "films", ""]


def test_the_same_command_goes_on(project, capsys):
    assert main(["train", "experiments/blots.py", *GIVEN, "--steps", "8"]) == 0
    said = capsys.readouterr()
    assert "runs/blots holds step 6 of 8" in said.err
    assert "step 8" in said.out


def test_resuming_under_other_arguments_is_refused_naming_them(project, fails):
    said = fails("train", "blots", *GIVEN, "--learning-rate", "0.1", "--seed", "1")
    assert "learning_rate: run has 0.05, asked 0.1; seed: run has 0, asked 1" in said


def test_arguments_come_back_from_the_record_with_their_types(project):
    record = json.loads(Path("runs/blots/experiment.json").read_text())
    assert record["arguments"]["sizes"] == [3, -4, 5]
    assert main(["evaluate", "blots"]) == 0
    assert json.loads(Path("runs/blots/evaluation.json").read_text())["as_given"] == 1


def test_a_run_finds_an_experiment_outside_the_known_folders(project, monkeypatch, tmp_path):
    mine = project / "mine"
    mine.mkdir()
    for name in ("blots", "shades"):
        shutil.move(f"experiments/{name}.py", mine)
    assert main(["train", "mine/blots.py", "--out", "out/first"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "project/out/first", "--n", "3"]) == 0
    # Both may be moved, together.
    shutil.move("project", "elsewhere")
    assert main(["sample", "elsewhere/out/first", "--n", "3"]) == 0


def test_an_experiment_finds_others_beside_it_first_and_then_the_known_ones(project, capsys):
    write(project / "mine" / "shades.py", SHADES + "\nraise ValueError('mine, not theirs')\n")
    variant(project / "mine", "other", "pass")
    path = list(sys.path)
    assert main(["train", "mine/other.py"]) == 2
    assert "mine, not theirs" in capsys.readouterr().err
    Path("mine/shades.py").unlink()
    assert main(["train", "mine/other.py", "--steps", "1"]) == 0
    assert sys.path == path


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_is_the_exit_code(project, capsys, number, code):
    body = f"if step == at: os.kill(os.getpid(), signal.{number})"
    assert main(["train", variant(project, "stopped", body)]) == code
    said = capsys.readouterr()
    assert f"{number}: saved step" in said.err
    assert said.out == ""


def test_an_interruption_before_training_is_quiet(project, capsys):
    name = write(project / "slow.py", "def slow():\n    raise KeyboardInterrupt\n")
    assert main(["train", name]) == 130
    assert capsys.readouterr().err == ""


def test_training_that_diverges_fails_saying_what_to_try(project, fails):
    body = "batch['image'] = batch['image'] * np.float32('nan')"
    said = fails("train", variant(project, "nan", body), "--patience", "2", code=1)
    assert "were not finite; lower the learning rate" in said


def test_running_out_of_memory_says_what_needs_less(project, fails):
    body = "raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory\\nallocating')"
    said = fails("train", variant(project, "big", body), code=1)
    assert said.startswith("out of memory; take a smaller batch, or --accumulate 2: Out of memory")


def test_a_warning_is_one_line(project, capsys):
    name = variant(project, "warns", "warnings.warn('skipped\\n3 files')")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["train", name]) == 0
    assert "\naigc: warning: skipped 3 files\n" in capsys.readouterr().err


def test_processes_that_cannot_be_joined_are_one_line(project, fails):
    said = fails("train", "blots", "--distributed", code=1)
    assert said.startswith("JAX cannot join the other processes: ")


# What is asked wrongly


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["trian"], "no command 'trian'; did you mean train?"),
        (["train"], "name an experiment first"),
        (["train", "--steps", "3", "blots"], "name an experiment first"),
        (["train", "blotz"], "no experiment 'blotz'; did you mean blots?"),
        (["train", "qwxyz"], "no experiment 'qwxyz'; there are "),
        (["train", "experiments/blot.py"], "did you mean experiments/blots.py?"),
        (["train", "experiments/"], "an experiment is a .py file"),
        (["train", "shades"], "experiments/shades.py defines no function shades"),
        (["train", "blots", "--batchh", "3"], "unknown flag --batchh; did you mean --batch?"),
        (["train", "blots", "--step=3"], "unknown flag --step; did you mean --steps?"),
        (["train", "blots", "--qwxyz"], "--qwxyz; aigc train blots --help shows all flags"),
        (["train", "blots", "extra"], "unexpected argument 'extra'"),
        (["train", "blots", "--batch", "x"], "--batch must be int, got 'x'"),
        (["train", "blots", "--steps=1.5"], "--steps must be int | None, got '1.5'"),
        (["train", "blots", "--sizes", "1", "b"], "--sizes must be tuple[int, ...], got '1 b'"),
        (["train", "blots", "--tone", "wram"], "one of warm, cold, got 'wram'; did you mean warm?"),
        (["train", "blots", "--compiler", "gcc"], "--compiler must be one of jit, pmap, got 'gcc'"),
        (["train", "blots", "--batch"], "--batch needs a value, int"),
        (["train", "blots", "--learning-rate", "-1"], "learning_rate=-1.0 must be positive"),
        (
            ["train", "blots", "--resident", "a"],
            "--resident must be one of True, False, None, got 'a'",
        ),
        (["train", "blots", "--out", "new", "--resident", "True"], "a Shades has no method `resi"),
        (["train", "blots", "--out", "new", "--steps", "0"], "steps=0 must be at least 1"),
        (["train", "blots", "--out", "new", "--batch", "7"], "use a multiple of 4"),
        (["sample"], "name a run first"),
        (["sample", "blot"], "there is no run 'blot'; did you mean blots?"),
        (["sample", "experiments"], "'experiments' holds no run"),
        (["sample", "blots", "--label", "drak"], "no label 'drak'; did you mean dark?"),
        (["sample", "blots", "--label", "3"], "'3'; labels are 0 to 2 or one of dark, middle, li"),
        (["sample", "blots", "--n", "0"], "--n must be at least 1, got 0"),
        (["sample", "blots", "--columns", "0"], "--columns must be at least 1, got 0"),
        (["sample", "blots", "--out", "a.jpg"], "--out must end in .png or .npz, got 'a.jpg'"),
        (["sample", "blots", "--solver", "heum"], "of euler, heun, got 'heum'; did you mean heun?"),
        (["sample", "blots", "--solver", "heun"], "solver='heun' is for others"),
        (["sample", "blots", "--contrst", "1"], "unknown flag --contrst; did you mean --contrast?"),
        (["reconstruct"], "name a run first"),
        (["reconstruct", "blots"], "blots is no autoencoder: it reconstructs nothing"),
        (["evaluate", "nothing"], "there is no run 'nothing'; aigc list shows the runs"),
        (["list", "all"], "aigc list takes no arguments, got 'all'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_asked_wrongly_is_told_in_one_line(project, fails, words, complaint):
    assert complaint in fails(*words)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1", "own.py defines no function own; an experiment is a function named as its file"),
        ("def own(", "own.py:1: '(' was never closed"),
        ("import nothing_here", "own.py cannot be imported: No module named 'nothing_here'"),
        ("from experiments.lost import x", "No module named 'experiments.lost'"),
        ("def own(a=1): ...", "parameter 'a' of own must be keyword-only: def own(*, a, ...)"),
        ("def own(*, a: int = 1): return a", "own returned int; it must return an Experiment"),
        ("def own(*, a: int): ...", "--a needs a value, int"),
        ("def own(*, steps: int = 1): ...", "'steps' is an argument of the experiment and of the"),
        ("def own(*, out: int = 1): ...", "'out' is an argument of the command and of the exper"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_told_in_one_line(project, fails, source, complaint):
    assert complaint in fails("train", write(project / "own.py", source + "\n"))


def test_a_bug_shows_where_it_is(project, monkeypatch):
    name = write(project / "own.py", "def own():\n    return int('x')\n")
    with pytest.raises(ValueError, match="invalid literal"):
        main(["train", name])


def test_a_traceback_can_be_asked_for(project, monkeypatch):
    with pytest.raises(ValueError, match="no experiment 'blotz'"):
        main(["train", "blotz", "--traceback"])
    monkeypatch.setenv("AIGC_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no experiment 'blotz'"):
        main(["train", "blotz"])


@pytest.mark.parametrize("folder", ["lost", "found"])
def test_a_missing_data_set_is_told_in_one_line(project, fails, monkeypatch, folder):
    Path("found/other").mkdir(parents=True)
    monkeypatch.setenv("TFDS_DATA_DIR", folder)
    source = """\
        from aigc_jax.data.sources import tfds

        def own(*, name: str = "mnist"):
            return tfds(name)
        """
    said = fails("train", write(project / "own.py", source), code=1)
    assert {"lost": "no folder lost", "found": "found holds ['other']"}[folder] in said


# Runs that were damaged


def test_a_damaged_checkpoint_is_told_in_one_line(project, fails):
    for file in Path("runs/blots/checkpoints/6/state").rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(b"\0" * (file.stat().st_size - 1))
    for words in (["sample", "blots"], ["evaluate", "blots"], ["train", "blots", *GIVEN]):
        assert "damaged" in fails(*words, code=1)


def test_a_damaged_record_is_told_in_one_line(project, fails):
    for text in ('{"experiment": ', "[]", '{"experiment": "blots"}'):
        Path("runs/blots/experiment.json").write_text(text)
        for words in (["sample", "blots"], ["train", "blots", *GIVEN]):
            assert "runs/blots/experiment.json is damaged: " in fails(*words, code=1)
    assert main(["list"]) == 0


def test_a_run_without_a_checkpoint_is_told_in_one_line(project, fails):
    shutil.rmtree("runs/blots/checkpoints")
    assert fails("sample", "blots", code=1) == "there is no checkpoint in runs/blots yet"
    Path("runs/blots/checkpoints").mkdir()
    assert "there is no checkpoint in" in fails("sample", "blots", code=1)


def test_a_run_of_an_experiment_that_has_changed_is_told_in_one_line(project, fails):
    record = json.loads(Path("runs/blots/experiment.json").read_text())
    for arguments, complaint in (
        ({"gone": 1}, "made with 'gone', which is no longer an argument of blots"),
        ({"tone": "hot"}, "other arguments: --tone must be one of warm, cold, got 'hot'"),
    ):
        changed = record | {"arguments": record["arguments"] | arguments}
        Path("runs/blots/experiment.json").write_text(json.dumps(changed))
        assert complaint in fails("sample", "blots")
    Path("experiments/blots.py").rename("experiments/blobs.py")
    assert "no experiment 'blots'; did you mean blobs?" in fails("sample", "blots")


# Sampling


def test_samples_are_a_grid_of_all_classes_in_turn(project, capsys):
    assert main(["sample", "blots"]) == 0
    said = capsys.readouterr()
    path = said.out.strip()
    assert path.startswith("runs/blots/samples/")
    assert "drawing 30 samples of runs/blots at step 6" in said.err
    # Three columns, ten rows, 4×4 pixels at a scale of 16.
    with Image.open(path) as image:
        assert image.size == (3 * 66 + 2, 10 * 66 + 2)


def test_other_options_make_another_file_and_the_same_make_the_same(project, capsys):
    assert main(["sample", "blots", "--n", "2"]) == 0
    first = capsys.readouterr().out.strip()
    before = Path(first).read_bytes()
    for options in (["--seed", "1"], ["--contrast", "2"], ["--label", "light"]):
        assert main(["sample", "blots", "--n", "2", *options]) == 0
        path = capsys.readouterr().out.strip()
        assert path != first
        assert Path(path).read_bytes() != before
    assert main(["sample", "blots", "--n", "2"]) == 0
    assert capsys.readouterr().out.strip() == first
    assert Path(first).read_bytes() == before


def test_arrays_hold_the_samples_and_the_labels_asked_for(project, capsys):
    words = ["--label", "light", "0", "--n", "5", "--contrast", "1"]
    assert main(["sample", "runs/blots", *words, "--out", "deep/down/a.npz"]) == 0
    assert capsys.readouterr().out == "deep/down/a.npz\n"
    held = np.load("deep/down/a.npz")
    assert held["samples"].shape == (5, 4, 4, 1)
    assert held["label"].tolist() == [2, 0, 2, 0, 2]
    level = held["samples"].mean((1, 2, 3))
    assert (np.sign(level) == [1, -1, 1, -1, 1]).all()
    # Without the option, the experiment's own default holds.
    assert main(["sample", "blots", *words[:-2], "--out", "half.npz"]) == 0
    halved = np.load("half.npz")["samples"]
    assert np.abs(halved).mean() / np.abs(held["samples"]).mean() == pytest.approx(0.5, abs=0.1)
    assert {path.name for path in Path("deep/down").iterdir()} == {"a.npz"}


def test_what_is_no_picture_is_kept_as_arrays(project, fails):
    body = """\
        from experiments.blots import blots

        def flat():
            experiment = blots()
            task = experiment.task
            sample = lambda params, stats, keys, cond: {"x": keys_of(keys)}
            return experiment._replace(task=task._replace(sample=sample), classes=(), picture=None,
                                       evaluate=None, best=None)

        def keys_of(keys):
            import jax
            return jax.vmap(jax.random.uniform)(keys)
        """
    assert main(["train", write(project / "flat.py", body)]) == 0
    assert "--out FILE.npz keeps them" in fails("sample", "flat")
    assert main(["sample", "flat", "--out", "a.npz"]) == 0
    assert np.load("a.npz")["x"].shape == (64,)
    assert "runs/flat has no classes; it takes no --label" in fails(
        "sample", "flat", "--label", "0"
    )
    assert "flat has no evaluation" in fails("evaluate", "flat")
    assert "keeps no best checkpoint" in fails("sample", "flat", "--which", "best")


@pytest.mark.parametrize("classes", [(), ("dark", "middle", "light")])
def test_what_a_sampler_needs_besides_labels_comes_from_the_experiment(project, classes):
    body = f"""\
        import numpy as np
        from experiments.blots import blots

        def negative():
            experiment = blots()
            sample = lambda params, stats, keys, cond: -cond["source"]
            return experiment._replace(task=experiment.task._replace(sample=sample), evaluate=None,
                                       best=None, picture=None, classes={classes}, cond=held_out)

        def held_out(n):
            return {{"source": np.linspace(-1, 1, 4)[np.arange(n) % 4].reshape(n, 1, 1, 1)}}
        """
    assert main(["train", write(project / "negative.py", body)]) == 0
    assert main(["sample", "negative", "--n", "6", "--out", "a.npz"]) == 0
    held = dict(np.load("a.npz"))
    assert set(held) == {"source", "samples"} | ({"label"} if classes else set())
    np.testing.assert_allclose(held["source"].ravel() * 3, [-3, -1, 1, 3, -3, -1])
    np.testing.assert_allclose(held["samples"], -held["source"], atol=1e-6)
    assert main(["sample", "negative"]) == 0
    assert len(list(Path("runs/negative/samples").glob("drawn-*.png"))) == 1


ECHO = """\
    import jax.numpy as jnp
    import numpy as np
    from experiments.blots import blots

    def echo(*, spoken: bool = False):
        experiment = blots()
        return experiment._replace(
            task=experiment.task._replace(sample=sample), evaluate=None, best=None, classes=(),
            originals=originals, show=show if spoken else None,
            picture=(lambda model: show(model.draw(2))) if spoken else None,
        )

    def sample(params, stats, keys, cond, *, volume: float = 0.5):
        heard = cond.get("image", jnp.ones((len(keys), 1, 1, 1)))
        return volume * heard

    def originals(n):
        return {"image": np.linspace(-1, 1, 4)[np.arange(n) % 4].reshape(n, 1, 1, 1)}

    def show(samples):
        said = [f"{value:.1f}" for value in np.ravel(samples)]
        return {"lines": "\\n".join(said), "song.mid": " ".join(said).encode()}
    """


def test_a_reconstruction_stands_beside_its_original(project, fails, capsys):
    assert main(["train", write(project / "echo.py", ECHO)]) == 0
    capsys.readouterr()
    assert main(["reconstruct", "echo", "--n", "3", "--columns", "2", "--volume", "0"]) == 0
    path = capsys.readouterr().out.strip()
    assert path.startswith("runs/echo/samples/reconstructed-000006-") and "volume=0.0" in path
    grid = np.asarray(Image.open(path).convert("L"))
    # Two pairs a row, each image 64 pixels wide and 2 apart: originals −1, −⅓ and ⅓, zeros beside.
    centres = grid[34::66, 34::66]
    np.testing.assert_array_equal(centres, [[0, 128, 85, 128], [170, 128, 255, 255]])
    assert main(["reconstruct", "echo", "--n", "6", "--out", "a.npz"]) == 0
    held = dict(np.load("a.npz"))
    np.testing.assert_allclose(held["samples"], held["image"] / 2, rtol=1e-6)
    assert "--n must be at least 1, got 0" in fails("reconstruct", "echo", "--n", "0")


def test_text_is_printed_and_sounds_are_files(project, fails, capsys):
    assert main(["train", write(project / "echo.py", ECHO), "--spoken"]) == 0
    out = capsys.readouterr().out
    assert "texts, sounds  runs/echo/samples/lines-000006.txt" in out
    assert Path("runs/echo/samples/song-000006.mid").read_bytes() == b"0.5 0.5"
    assert main(["sample", "echo", "--n", "2", "--volume", "2"]) == 0
    first, second, *paths = capsys.readouterr().out.splitlines()
    assert [first, second] == ["2.0", "2.0"]
    assert Path(paths[0]).read_text() == "2.0\n2.0\n"
    assert Path(paths[1]).suffix == ".mid" and Path(paths[1]).read_bytes() == b"2.0 2.0"
    assert main(["reconstruct", "echo", "--n", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("-1.0\n-0.5\n\n-0.3\n-0.2\n")
    original, copy = (Path(path) for path in out.splitlines() if path.endswith(".mid"))
    assert original.name.endswith("original-song.mid") and original.read_bytes() == b"-1.0 -0.3"
    assert copy.read_bytes() == b"-0.5 -0.2"
    assert "--out FILE.npz keeps them" in fails("sample", "echo", "--out", "a.png")


# Evaluation


def test_an_evaluation_is_a_table_and_a_file(project, capsys):
    Path("runs/blots/evaluation.json").unlink()
    assert main(["evaluate", "blots"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"metric +value +floor\n", said)
    assert re.search(r"spread_net/24 +0\.\d+ +0\.8165\n", said)
    assert "_floor" not in said
    held = json.loads(Path("runs/blots/evaluation.json").read_text())
    assert held["step"] == 6
    assert held["unknown"] is None


def test_an_evaluation_as_json_is_all_there_is_on_standard_output(project, capsys):
    assert main(["evaluate", "blots", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(Path("runs/blots/evaluation.json").read_text())
    assert said["spread_net_floor/24"] == 0.8165


def test_the_best_checkpoint_has_an_evaluation_of_its_own(project, capsys):
    before = Path("runs/blots/evaluation.json").read_text()
    assert main(["train", "blots", *GIVEN, "--steps", "8", "--evaluate-every", "1"]) == 0
    after = Path("runs/blots/evaluation.json").read_text()
    capsys.readouterr()
    assert main(["evaluate", "blots", "--which", "best", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert best == json.loads(Path("runs/blots/evaluation-best.json").read_text())
    assert best["spread_net/24"] >= json.loads(after)["spread_net/24"]
    assert Path("runs/blots/evaluation.json").read_text() == after != before


# Help and lists


def test_help_shows_every_flag_with_its_default_and_its_doc(project, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "blots", "--help"])
    said = shown(capsys)
    assert "Draw blots of three levels of grey." in said
    assert "--learning-rate FLOAT of Adam, constant throughout. (default: 0.05)" in said
    assert "--sizes [INT [INT ...]] of nothing. (default: 1 2)" in said
    assert "--seed INT addresses all randomness of the training" in said
    assert "--steps INT train to this many steps in all" in said
    assert "--compiler {jit,pmap} what compiles the step. (default: jit)" in said
    assert "--out PATH the run's directory" in said
    assert "--identity" not in said

    with pytest.raises(SystemExit, match="0"):
        main(["sample", "blots", "--help"])
    said = shown(capsys)
    assert "--contrast FLOAT scale of the level. (default: 0.5)" in said
    assert "--label" in said

    for command in ("train", "sample", "evaluate"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"usage: aigc {command} " in shown(capsys)


def test_the_version_and_the_usage(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"aigc_jax {__version__}\n"
    assert main([]) == 0
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == 2 * cli.HELP


def test_a_list_shows_experiments_with_their_scores_and_runs_with_their_metrics(project, capsys):
    write(project / "experiments" / "torn.py", "def torn(")
    Path("runs/judges").mkdir()
    shutil.copytree("runs/blots", "runs/judges/one")
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    about = r"blots +Draw blots of three levels of grey\. +0\.8 of the spread, on a tea break\.\n"
    assert re.search(about, said)
    assert re.search(r"torn +cannot be read: experiments/torn.py", said)
    assert "shades" not in said
    assert re.search(r"ddpm_digits +Draw 8×8 digits", said)
    assert re.search(r"runs/blots +step 6 +spread_net/24 0\.\d+  as_given 1  unknown nan\n", said)
    assert re.search(r"runs/judges/one +step 6", said)


def test_a_list_of_nothing_says_what_makes_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    assert "none in ./runs; aigc train EXPERIMENT makes one" in capsys.readouterr().out


def test_an_installed_package_has_its_experiments_within(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site-packages"
    write(site / "aigc_jax" / "experiments" / "ours.py", "def ours(): ...\n")
    write(site / "experiments" / "strange.py", "def strange(): ...\n")
    monkeypatch.setattr(runs, "__file__", str(site / "aigc_jax" / "runs.py"))
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "ours" in said
    assert "strange" not in said


def test_help_and_lists_do_not_wait_for_jax(project):
    script = """
        import sys
        from aigc_jax.cli import main
        assert main(["--help"]) == main(["list"]) == 0
        assert main(["train", "blotz"]) == main(["sample", "blotz"]) == 2
        assert not {"jax", "tyro"} & sys.modules.keys()
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_a_reader_that_leaves_early_is_no_error(project):
    script = "import sys; from aigc_jax.cli import main; sys.exit(main(['list']))"
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")
