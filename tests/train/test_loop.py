import json
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from regression import IDENTITY, make_experiment, saved, spawn

from aigc_jax.core.parallel import make_mesh
from aigc_jax.core.types import Experiment, Feed, Mean, Model
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import Stream, arrays
from aigc_jax.functional.adversarial import NON_SATURATING, r1
from aigc_jax.models import mlp_gan
from aigc_jax.tasks.gan import Penalty, gan
from aigc_jax.train import loop
from aigc_jax.train.loop import Result, fit, load
from aigc_jax.train.meter import Diverged, means
from aigc_jax.train.signals import Signals

EVERY = {"log_every": 5, "save_every": 6}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Compile each program once, for this process and those it starts."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    compilation_cache.reset_cache()
    for name, value in options.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in options.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def train(out: Path, experiment: Experiment | None = None, **options: Any) -> Result:
    options = {**EVERY, "identity": IDENTITY, **options}
    return fit(experiment or make_experiment(), out, **options)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def distance(a: Any, b: Any) -> float:
    chex.assert_trees_all_equal_structs(a, b)
    gaps = jax.tree.map(lambda x, y: np.abs(np.asarray(x, float) - np.asarray(y)).max(), a, b)
    return max(jax.tree.leaves(gaps))


def score(model: Model) -> dict[str, float]:
    return {"spread": np.std(model.draw(64))}


def grid(model: Model) -> dict[str, Any]:
    tile = model.draw(12, scale=30.0)[:, :4].reshape(6, 8, 1)
    return {
        "grid": np.clip(tile + 128, 0, 255).astype(np.uint8),
        "colour": np.zeros((2, 3, 3), "u1"),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run of 20 steps that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    return out, train(out)


def test_it_learns_and_leaves_what_it_says(whole: tuple[Path, Result]) -> None:
    out, result = whole
    assert result.step == 20 and int(result.state.step) == 20 and not result.interrupted
    windows = lines(out)
    assert [line["step"] for line in windows] == [5, 10, 15, 20]
    assert windows[-1]["fit/loss"] < windows[0]["fit/loss"] / 2
    assert all(line["examples/s"] == pytest.approx(8 * line["steps/s"]) for line in windows)
    assert saved(out) == [12, 18, 20]
    identity = json.loads((out / "experiment.json").read_text())
    assert identity.items() >= {**IDENTITY, "seed": 0}.items() and "version" in identity
    assert list(out.glob("events.*"))


def test_a_window_is_divided_once(whole: tuple[Path, Result], tmp_path: Path) -> None:
    train(tmp_path, log_every=1, steps=5)
    each = [line["fit/loss"] for line in lines(tmp_path)]
    assert lines(whole[0])[0]["fit/loss"] == pytest.approx(np.mean(each), rel=1e-6)


def test_means_are_weighted_and_absent_when_nothing_was_seen() -> None:
    totals = {
        "a/loss": Mean(jnp.float32(6), jnp.float32(4)),
        "b/loss": Mean(jnp.float32(0), jnp.float32(0)),
        "b/skipped": Mean(jnp.float32(3), jnp.float32(3)),
    }
    assert means(jax.device_get(totals)) == {"a/loss": 1.5, "b/skipped": 3.0}


def test_a_resumed_run_ends_as_one_that_never_stopped(
    whole: tuple[Path, Result], tmp_path: Path
) -> None:
    train(tmp_path, steps=10)
    result = train(tmp_path)
    assert distance(result.state, whole[1].state) == 0
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 15, 20]
    both = zip(lines(tmp_path), lines(whole[0]), strict=True)
    assert all(a["fit/loss"] == b["fit/loss"] for a, b in both)


class Pictures(NamedTuple):
    seed: int

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, step])
        return {"image": rng.uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32)}


def test_a_resumed_game_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    """It stops between two lazy penalties and two steps of the generator, of shared moments."""
    networks = mlp_gan.Generator((4, 4, 1), (8,)), mlp_gan.Discriminator((8,))
    penalties, adam = (Penalty(r1, 1.0, every=4),), optax.adam(0.01, 0.5)
    options = {"latent": 3, "penalties": penalties, "n_critic": 3, "decay": 0.9}
    task = gan(*networks, NON_SATURATING, adam, adam, **options)
    experiment = Experiment(task, Pictures, 14, 8)
    never = train(tmp_path / "never", experiment)
    train(tmp_path / "once", experiment, steps=7)
    once = train(tmp_path / "once", experiment)
    assert distance(once.state, never.state) == 0
    assert lines(tmp_path / "never")[-1]["r1/r1"] > 0
    counts = {name: int(opt[0].count) for name, opt in once.state.opt.items()}
    assert counts == {"discriminator": 14 + 3, "generator": 4}


@pytest.mark.parametrize(
    "options", [{"fsdp": 2}, {"compiler": "pmap"}, {"accumulate": 2}], ids=lambda o: next(iter(o))
)
def test_every_layout_resumes_every_other(
    whole: tuple[Path, Result], tmp_path: Path, options: dict[str, Any]
) -> None:
    train(tmp_path, steps=10, **options)
    result = train(tmp_path, steps=15)
    result = train(tmp_path, **options)
    assert distance(result.state, whole[1].state) < 1e-5


def mirrored(examples: Any, address: Any) -> Any:
    sign = 1.0 - 2.0 * (address.bits("sign") >> np.uint32(31)).astype(np.float32)
    return {"x": examples["x"] * sign[:, None]}


def held_experiment() -> Experiment:
    """An experiment whose data set can be resident: 48 points, of which a step takes 8."""
    x = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
    source = arrays({"x": x}, {"x": x}).train
    data = lambda seed: batches(source, 8, seed, transform=mirrored)
    return make_experiment()._replace(data=data)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(tmp_path_factory.mktemp("held"), held_experiment(), resident=True)


def test_resident_data_trains_as_streamed_and_only_addresses_travel(
    held: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert distance(train(tmp_path / "a", held_experiment()).state, held.state) < 1e-5
    assert "held on each device" not in capsys.readouterr().err
    put, seen = loop.put_batch, []
    monkeypatch.setattr(loop, "put_batch", lambda *args: put(*seen.append(args) or args))
    result = train(tmp_path / "b", held_experiment(), resident=True)
    assert distance(result.state, held.state) == 0
    assert "the data, 0.0 MB, is held on each device" in capsys.readouterr().err
    sizes = {x.nbytes for batch, *_ in seen for x in jax.tree.leaves(batch)}
    assert len(seen) == 20 and sizes == {8 * 4}  # an index and a sign for each of 8 examples


def test_resident_data_resumes_exactly(held: Result, tmp_path: Path) -> None:
    number = signal.SIGINT
    experiment = held_experiment()

    class Interrupted:
        def __init__(self, seed: int):
            self.batches = experiment.data(seed)

        def __getitem__(self, step: int) -> Any:
            return self.batches[step]

        def resident(self, limit: int | None) -> Any:
            feed = self.batches.resident(limit)

            def stream(start: int, stop: int) -> Any:
                for step, sent in enumerate(feed.stream(start, stop), start):
                    if step == 9:
                        os.kill(os.getpid(), number)
                    yield sent

            return feed._replace(stream=stream)

    result = train(tmp_path, experiment._replace(data=Interrupted), resident=True)
    assert result.signal == number and 0 < result.step < 20
    result = train(tmp_path, experiment, resident=True)
    assert result.step == 20 and distance(result.state, held.state) == 0


@pytest.mark.parametrize(
    "options",
    [{"fsdp": 2, "accumulate": 2}, {"compiler": "pmap"}, {"inner_steps": 5, "save_every": 10}],
    ids=lambda o: next(iter(o)),
)
def test_every_layout_takes_resident_data(
    held: Result, tmp_path: Path, options: dict[str, Any]
) -> None:
    result = train(tmp_path, held_experiment(), resident=True, **options)
    assert distance(result.state, held.state) < 1e-5


def test_what_cannot_be_resident_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resident=True: a Points has no method `resident`"):
        train(tmp_path, resident=True)
    read = Stream(48, lambda index: {"x": np.zeros((len(index), 4), np.float32)})
    experiment = make_experiment()._replace(data=lambda seed: batches(read, 8, seed))
    with pytest.raises(ValueError, match="resident=True: a Stream is not held in memory"):
        train(tmp_path, experiment, resident=True)
    assert not (tmp_path / "experiment.json").exists()


def test_small_data_is_resident_by_itself_on_an_accelerator(
    held: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options: list[dict[str, Any]] = [{}, {"resident": False}, {}]
    for i, limit in enumerate([48 * 16, 48 * 16, 48 * 16 - 1]):
        monkeypatch.setattr(loop, "RESIDENT_BYTES", limit)
        train(tmp_path / str(i), held_experiment(), steps=1, **options[i])
        assert ("held on each device" in capsys.readouterr().err) == (i == 0)


def test_a_finished_run_is_returned_as_it_is(
    whole: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(*_: Any) -> None:
        raise AssertionError("nothing is left to compile")

    monkeypatch.setattr(loop, "_ahead", compiled)
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    result = train(whole[0])
    assert result.step == 20 and distance(result.state, whole[1].state) == 0
    assert {p: p.read_bytes() for p in whole[0].rglob("*") if p.is_file()} == before


def test_other_arguments_are_refused_by_name(whole: tuple[Path, Result]) -> None:
    other = {"experiment": "regression", "arguments": {"lr": 0.1, "depth": 2}}
    with pytest.raises(ValueError) as error:
        train(whole[0], identity=other, seed=1)
    assert str(error.value) == (
        f"{whole[0]} holds a run with other arguments: lr: run has 0.05, asked 0.1; "
        "width: run has 8, asked nothing; seed: run has 0, asked 1; "
        "depth: run has nothing, asked 2; "
        "give the run's own, or another directory"
    )
    # The checkpoints know as well, should the file be lost.
    (whole[0] / "experiment.json").rename(whole[0] / "aside")
    try:
        with pytest.raises(ValueError, match=r"lr: run has 0\.05, asked 0\.1"):
            train(whole[0], identity=other)
    finally:
        (whole[0] / "aside").rename(whole[0] / "experiment.json")


def test_the_same_arguments_are_not(tmp_path: Path) -> None:
    nested = {"experiment": "x", "arguments": {"sizes": (1, 2), "where": Path("a"), "nan": np.nan}}
    train(tmp_path, identity=nested, steps=1)
    train(tmp_path, identity=json.loads(json.dumps(nested, default=str)), steps=1)
    record = json.loads((tmp_path / "experiment.json").read_text())
    (tmp_path / "experiment.json").write_text(json.dumps({**record, "version": "0.0.1"}))
    train(tmp_path, identity=nested, steps=1)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    whole: tuple[Path, Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, steps=10)
    (tmp_path / "checkpoints" / "10" / "state" / "manifest.ocdbt").write_bytes(b"")
    result = train(tmp_path)
    assert "checkpoint 10 in" in (said := capsys.readouterr().err) and "is damaged" in said
    assert "holds step 6 of 20" in said
    assert distance(result.state, whole[1].state) == 0
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 15, 20]


def test_nothing_whole_does_not_start_again(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    (tmp_path / "checkpoints" / "1" / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(OSError, match=r"every checkpoint in .* is damaged"):
        train(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_from_there(
    whole: tuple[Path, Result],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    result = train(tmp_path, make_experiment(signals={9: number}), save_every=100)
    assert signal.getsignal(number) is before
    assert result.interrupted and result.signal == number and result.metrics == {}
    assert 0 < result.step < 20 and saved(tmp_path) == [result.step]
    said = f"{number.name}: saved step {result.step} of 20 in {tmp_path}; run it again to go on"
    assert said in capsys.readouterr().err
    result = train(tmp_path)
    assert not result.interrupted and distance(result.state, whole[1].state) == 0


def test_a_signal_during_an_evaluation_does_not_wait_for_it(tmp_path: Path) -> None:
    def evaluate(model: Model) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return {}

    began = time.monotonic()
    result = train(tmp_path, make_experiment(evaluate=evaluate, best=("x", "max")), steps=3)
    assert time.monotonic() - began < 30
    assert result.signal == signal.SIGTERM and saved(tmp_path) == [3]
    assert not (tmp_path / "evaluation.json").exists()


def test_a_second_interrupt_is_not_caught(tmp_path: Path) -> None:
    def evaluate(model: Model) -> dict[str, float]:
        signals = Signals()
        with signals:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert signals.number == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        return {}

    train(tmp_path, make_experiment(evaluate=evaluate), steps=1)


def test_nan_in_the_data_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, make_experiment(poison=range(7, 9)))
    assert [line["fit/skipped"] for line in lines(tmp_path)] == [0, 2, 0, 0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state))
    assert "2 updates were not finite and were dropped" in capsys.readouterr().err


def test_nan_that_persists_stops_the_run_with_advice(tmp_path: Path) -> None:
    poisoned = make_experiment(steps=100, poison=range(8, 100))
    with pytest.raises(Diverged) as error:
        train(tmp_path, poisoned, patience=7, log_every=50)
    said = str(error.value)
    assert re.match(r"fit: \d+ updates in a row, until step \d+, were not finite; ", said)
    assert "learning rate" in said and "clip" in said and "NaN" in said and "\n" not in said
    model, step = load(poisoned, tmp_path)
    assert step >= 6 and np.isfinite(model.draw(3)).all()


def test_evaluation_and_pictures_and_the_best(tmp_path: Path) -> None:
    scores = iter([1.0, 3.0, 2.0, 0.5])
    experiment = make_experiment(
        evaluate=lambda model: {**score(model), "x": next(scores)}, picture=grid, best=("x", "max")
    )
    result = train(tmp_path, experiment, evaluate_every=5, picture_every=10, keep=1)
    assert result.metrics["x"] == 0.5 and result.metrics["spread"] > 0
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"step": 20, **result.metrics}
    assert saved(tmp_path) == [10, 20]
    assert load(experiment, tmp_path, which="best")[1] == 10
    evaluated = [(line["step"], line["eval/x"]) for line in lines(tmp_path) if "eval/x" in line]
    assert evaluated == [(5, 1.0), (10, 3.0), (15, 2.0), (20, 0.5)]
    pictures = sorted(path.name for path in (tmp_path / "samples").iterdir())
    kinds = ("-000010.png", "-000020.png", ".gif")
    assert pictures == [f"{stem}{kind}" for stem in ("colour", "grid") for kind in kinds]
    picture = np.asarray(Image.open(tmp_path / "samples" / "grid-000020.png"))
    np.testing.assert_array_equal(picture, grid(result.model)["grid"][..., 0])


def played(path: Path) -> tuple[np.ndarray, list[int]]:
    """The frames of a film, (t, h, w, 3), and for how many milliseconds each is shown."""
    frames, durations = [], []
    with Image.open(path) as film:
        for i in range(getattr(film, "n_frames", 1)):
            film.seek(i)
            durations.append(film.info["duration"])
            frames.append(np.asarray(film.convert("RGB")))
    return np.stack(frames), durations


def test_a_film_is_written_as_one(tmp_path: Path) -> None:
    film = (np.arange(3, dtype=np.uint8) * 60)[:, None, None, None] * np.ones((2, 4, 1), np.uint8)
    experiment = make_experiment(picture=lambda model: {"turn": film})
    train(tmp_path, experiment, picture_every=10)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["turn-000010.gif", "turn-000020.gif"]
    frames, durations = played(tmp_path / "samples" / names[1])
    np.testing.assert_array_equal(frames, np.broadcast_to(film, (3, 2, 4, 3)))
    assert len(set(durations)) == 1


def test_a_picture_throughout_the_training_is_a_film_of_whatever_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(picture=grid)
    samples = tmp_path / "samples"
    train(tmp_path, experiment, picture_every=2, steps=2)
    assert sorted(path.name for path in samples.iterdir()) == [
        "colour-000002.png",
        "grid-000002.png",
    ]  # one frame is no film
    train(tmp_path, experiment, picture_every=4, steps=12)
    step = lambda k: samples / f"grid-{k:06}.png"
    held = [np.asarray(Image.open(step(k)).convert("RGB")) for k in (2, 4, 8, 12)]
    frames, durations = played(samples / "grid.gif")
    np.testing.assert_array_equal(frames, held)
    assert durations[-1] > 5 * durations[0] and len(set(durations[:-1])) == 1

    # Damaged, of another size, and none of this training's.
    step(4).write_bytes(step(4).read_bytes()[:50])
    Image.new("RGB", (5, 5)).save(step(8))
    for name in ("drawn-000003", "drawn-000003-seed-100000", "grid-large-000005", "my-grid-000005"):
        shutil.copy(step(2), samples / f"{name}.png")
    shutil.copy(step(2), step(1_000_000))  # seven digits come after six
    before = sorted(path.name for path in samples.glob("*.gif"))
    train(tmp_path, experiment, steps=14)
    held = [np.asarray(Image.open(step(k)).convert("RGB")) for k in (2, 12, 14, 1_000_000)]
    np.testing.assert_array_equal(played(samples / "grid.gif")[0], held)
    assert sorted(path.name for path in samples.glob("*.gif")) == before

    step(1_000_000).unlink()
    monkeypatch.setattr(loop, "FILM_FRAMES", 3)
    train(tmp_path, experiment, picture_every=1, steps=18)
    held = [np.asarray(Image.open(step(k)).convert("RGB")) for k in (2, 14, 18)]
    np.testing.assert_array_equal(played(samples / "grid.gif")[0], held)


def test_the_best_must_be_measured(tmp_path: Path) -> None:
    experiment = make_experiment(evaluate=score, best=("fid", "min"))
    with pytest.raises(
        ValueError, match=r"best=\('fid', 'min'\), but the evaluation measures spread"
    ):
        train(tmp_path, experiment, steps=5)
    assert saved(tmp_path) == [5]


def test_an_evaluation_that_fails_costs_no_training(tmp_path: Path) -> None:
    def evaluate(model: Model) -> dict[str, float]:
        raise ZeroDivisionError

    experiment = make_experiment(evaluate=evaluate, best=("x", "max"))
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, experiment, steps=5)
    assert saved(tmp_path) == [5]


def test_a_full_disk_stops_the_run_with_its_earlier_checkpoints_intact(
    whole: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, calls = shutil.disk_usage, []

    def filling_up(path: Any) -> Any:
        calls.append(path)
        return usage(path) if len(calls) == 1 else usage(path)._replace(free=0)

    monkeypatch.setattr(shutil, "disk_usage", filling_up)
    with pytest.raises(
        OSError, match=r"could not be written to .*checkpoints: it takes 0\.0 MB, and"
    ):
        train(tmp_path)
    assert len(calls) == 2 and saved(tmp_path) == [6]
    monkeypatch.undo()
    assert distance(train(tmp_path).state, whole[1].state) == 0


def test_the_model_is_the_average(whole: tuple[Path, Result]) -> None:
    _, result = whole
    w = np.asarray(result.state.ema["line"]["params"]["w"])
    b = np.asarray(result.state.ema["line"]["params"]["b"])
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(result.model.draw(4, {"x": x}), w + b, rtol=1e-5)
    np.testing.assert_allclose(result.model.draw(4, {"x": x}, scale=2.0), 2 * (w + b), rtol=1e-5)


def test_a_sample_depends_on_the_seed_and_its_position_alone(whole: tuple[Path, Result]) -> None:
    _, result = whole
    sampler = loop.make_sampler(make_experiment().task, make_mesh(), batch=8)
    model = loop.make_model(result.model.params, result.model.stats, sampler)
    many = model.draw(21, seed=3)
    assert many.shape == (21, 8)
    np.testing.assert_array_equal(model.draw(13, seed=3), many[:13])
    np.testing.assert_allclose(model.draw(2, seed=3), many[:2], rtol=1e-5)
    assert np.abs(model.draw(21, seed=4) - many).max() > 0.1
    assert np.abs(many[:8] - many[8:16]).max() > 0.1
    with pytest.raises(ValueError, match="cond holds 3 examples; n=4 samples need as many"):
        model.draw(4, {"x": np.zeros((3, 4), "f4")})


def test_a_loaded_model_is_the_trained_one(whole: tuple[Path, Result]) -> None:
    model, step = load(make_experiment(), whole[0])
    assert step == 20
    np.testing.assert_array_equal(model.draw(9, seed=1), whole[1].model.draw(9, seed=1))


def test_the_step_is_traced_once_and_nothing_leaves_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces, real = [], loop._ahead

    def guarded(step: Any, *args: Any) -> Any:
        compiled = real(step, *args)

        def call(state: Any, *sent: Any) -> Any:
            old = jax.tree.leaves(state)
            with jax.transfer_guard_device_to_host("disallow"):
                result = compiled(state, *sent)
            assert all(leaf.is_deleted() for leaf in old)  # donated
            return result

        return call

    experiment = make_experiment()
    (phase,) = experiment.task.phases

    def loss(*args: Any) -> Any:
        traces.append(1)
        return phase.loss(*args)

    task = experiment.task._replace(phases=(phase._replace(loss=loss),))
    monkeypatch.setattr(loop, "_ahead", guarded)
    # While the host still reads what is being saved, a CPU's buffers cannot be donated.
    train(tmp_path, experiment._replace(task=task), save_every=100)
    assert len(traces) == 1


def test_no_more_than_a_few_steps_are_in_flight(tmp_path: Path) -> None:
    served: list[int] = []

    class Batches(regression.Points):
        def __getitem__(self, step: int) -> Any:
            served.append(step)
            return super().__getitem__(step)

    experiment = make_experiment()._replace(data=lambda seed: Batches(seed, 8))
    train(tmp_path, experiment, steps=5)
    # Read in order, each once (the first also gives the shapes), and none beyond the end.
    assert served == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("compiler", ["jit", "pmap"])
def test_several_steps_a_dispatch_train_the_same(
    whole: tuple[Path, Result], tmp_path: Path, compiler: Any
) -> None:
    # It stops and goes on inside a block, whose steps are then taken one by one.
    options = {"inner_steps": 5, "save_every": 10, "compiler": compiler}
    train(tmp_path, steps=12, **options)
    result = train(tmp_path, **options)
    assert distance(result.state, whole[1].state) == 0
    held, expected = lines(tmp_path), lines(whole[0])
    assert [line["step"] for line in held] == [5, 10, 12, 15, 20]
    assert held[1]["fit/loss"] == pytest.approx(expected[1]["fit/loss"], rel=1e-6)


def test_dropped_updates_in_a_block_are_each_counted(tmp_path: Path) -> None:
    options: Any = {"log_every": 4, "save_every": 8, "inner_steps": 4, "steps": 8}
    train(tmp_path / "some", make_experiment(poison=range(2, 5)), **options)
    assert [line["fit/skipped"] for line in lines(tmp_path / "some")] == [2, 1]
    with pytest.raises(Diverged, match="3 updates in a row, until step 8"):
        train(tmp_path / "many", make_experiment(poison=range(3, 6)), patience=3, **options)


def test_batches_that_feed_are_fed(whole: tuple[Path, Result], tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    class Batches(regression.Points):
        def feed(self) -> Feed:
            def stream(start: int, stop: int) -> Any:
                asked.append((start, stop))
                for step in range(start, stop):
                    yield self[step]

            return Feed({}, stream, lambda columns, sent: sent)

    experiment = make_experiment()._replace(data=lambda seed: Batches(seed, 8))
    train(tmp_path, experiment, steps=10)
    result = train(tmp_path, experiment)
    assert asked == [(0, 10), (10, 20)] and distance(result.state, whole[1].state) == 0


def test_raw_examples_travel_and_the_step_transforms_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (48, 4), np.uint8)
    source = arrays({"x": levels}, {"x": levels}).train
    halved = lambda examples, address: {"x": examples["x"].astype(np.float32) / 255}
    put, seen = loop.put_batch, []
    monkeypatch.setattr(loop, "put_batch", lambda *args: put(*seen.append(args) or args))
    raw = make_experiment()._replace(data=lambda seed: batches(source, 8, seed, transform=halved))
    result = train(tmp_path / "raw", raw)
    assert {x.dtype for batch, *_ in seen for x in jax.tree.leaves(batch)} == {np.dtype("uint8")}

    def on_the_host(examples: Any, address: Any) -> Any:
        return halved({"x": np.array(examples["x"])}, address)

    host = make_experiment()._replace(
        data=lambda seed: batches(source, 8, seed, transform=on_the_host)
    )
    seen.clear()
    expected = train(tmp_path / "host", host)
    assert {x.dtype for batch, *_ in seen for x in jax.tree.leaves(batch)} == {np.dtype("float32")}
    assert distance(result.state, expected.state) < 1e-5


def test_a_reader_that_fails_stops_the_run(tmp_path: Path) -> None:
    class Batches(regression.Points):
        def __getitem__(self, step: int) -> Any:
            if step == 3:
                raise OSError("shard 7 is unreadable")
            return super().__getitem__(step)

    experiment = make_experiment()._replace(data=lambda seed: Batches(seed, 8))
    with pytest.raises(OSError, match="shard 7"):
        train(tmp_path, experiment)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"log_every": 0}, "log_every=0 must be at least 1"),
        ({"evaluate_every": -1}, "evaluate_every=-1 must be at least 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"fsdp": 3}, "fsdp=3 must divide the number of devices, 4"),
        ({"fsdp": 2, "compiler": "pmap"}, "fsdp=2 .* needs compiler='jit'"),
        ({"compiler": "xla"}, "compiler='xla' must be 'jit' or 'pmap'"),
        ({"inner_steps": 0}, "inner_steps=0 must be at least 1"),
        ({"inner_steps": 4}, "inner_steps=4 must divide log_every=5"),
        ({"accumulate": 4}, "batch=8 .* over 4 devices × accumulate=4; use a multiple of 16"),
    ],
)
def test_arguments_are_checked_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        train(tmp_path / "run", make_experiment(batch=6))
    assert str(error.value) == "batch=6 does not divide over 4 devices; use a multiple of 4"
    assert not (tmp_path / "run").exists()


def test_data_of_another_batch_size_is_refused(tmp_path: Path) -> None:
    experiment = make_experiment(batch=8)._replace(batch=16)
    with pytest.raises(ValueError, match="batch=16, but the data gives 8 examples a step"):
        train(tmp_path, experiment)


# What follows starts other processes, which takes seconds each.


def test_killed_three_times_it_ends_as_one_that_never_stopped(
    whole: tuple[Path, Result], tmp_path: Path, cache: dict[str, str]
) -> None:
    moments = random.Random(0)
    held = 0
    for _ in range(3):
        process = spawn(tmp_path, cache, **EVERY | {"save_every": 2}, delay=0.3)
        while not saved(tmp_path) or max(saved(tmp_path)) <= held:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        process.communicate()
        assert max(saved(tmp_path)) > held
        held = max(saved(tmp_path))
    assert held < 20
    result = train(tmp_path)
    assert distance(result.state, whole[1].state) == 0
    steps = [line["step"] for line in lines(tmp_path)]
    assert sorted(set(steps)) == steps and steps[-1] == 20


def test_two_processes_train_as_one_and_one_goes_on_from_there(
    whole: tuple[Path, Result], tmp_path: Path, cache: dict[str, str]
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Only the second is told to stop.
    first, second = (
        spawn(tmp_path, cache, **EVERY, devices=2, process=[i, 2, port], signals=signals)
        for i, signals in enumerate([{}, {13: signal.SIGTERM}])
    )
    said = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [143, 143], said
    (stopped,) = {step for step in saved(tmp_path) if step % 6}
    assert f"SIGTERM: saved step {stopped} of 20" in said[0] and "step" not in said[1]

    result = train(tmp_path)
    assert distance(result.state, whole[1].state) < 1e-5
    both = list(zip(lines(tmp_path), lines(whole[0]), strict=True))
    assert len(both) == 4
    for one, other in both:
        # A window that was interrupted is divided by the steps after it only.
        if one["step"] != -(-stopped // 5) * 5 or stopped % 5 == 0:
            assert one["fit/loss"] == pytest.approx(other["fit/loss"], abs=1e-5)
