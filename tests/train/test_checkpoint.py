import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.parallel import make_mesh, put_state, shardings
from aigc_jax.core.types import State
from aigc_jax.train.checkpoint import Checkpoints


def make_state(step: int, n: int = 8) -> State:
    rng = np.random.default_rng(step)
    params = {"net": {"w": jnp.asarray(rng.normal(size=(n, 12)), jnp.float32), "b": jnp.ones(())}}
    state = State(
        step=jnp.int32(step),
        params=params,
        stats={"net": {}, "other": {"seen": jnp.arange(5) > 2, "half": jnp.ones(3, jnp.bfloat16)}},
        opt={"phase": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)},
        ema={"net": {"params": params["net"], "stats": {}}},
    )
    return jax.tree.map(jnp.copy, state)  # leaves that share a buffer cannot be donated


def wanted(state: State, mesh: jax.sharding.Mesh) -> State:
    """Return the shapes of a state and where they belong."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        shardings(state, mesh),
    )


LIKE = jax.eval_shape(lambda: make_state(0))


def equal(a: Any, b: Any) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("three")
    with Checkpoints(directory, best=("score", "max")) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), {"lr": 0.1}, {"score": -step})
    return directory


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "checkpoints"))


def payload(directory: Path) -> Path:
    """Return the file that holds the weights."""
    return max(directory.glob("state/ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def test_a_state_comes_back_as_it_was_with_its_identity(three: Path) -> None:
    with Checkpoints(three, writable=False) as checkpoints:
        state, step = checkpoints.restore(LIKE)
        assert step == 3 and equal(state, make_state(3))
        assert checkpoints.identity(3) == {"lr": 0.1}
        # Types of the optimiser's own states, not dicts of their fields.
        assert isinstance(state.opt["phase"][1][0], optax.ScaleByAdamState)


def test_the_best_can_be_asked_for(three: Path) -> None:
    with Checkpoints(three, best=("score", "max"), writable=False) as checkpoints:
        assert checkpoints.restore(LIKE, "best")[1] == 1


@pytest.mark.parametrize("before, after", [((1, 1), (4, 1)), ((4, 4), (4, 1)), ((4, 1), (4, 2))])
def test_any_layout_reads_what_any_layout_wrote(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    here, there = (make_mesh(jax.devices()[:n], fsdp) for n, fsdp in (before, after))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(put_state(make_state(5), here), {})
        state, _ = checkpoints.restore(wanted(LIKE, there))
    assert equal(state, make_state(5))
    assert state.params["net"]["w"].sharding == wanted(LIKE, there).params["net"]["w"].sharding


@pytest.mark.parametrize("fsdp", [1, 4])
def test_what_is_saved_is_the_state_as_it_was_though_training_goes_on(
    tmp_path: Path, fsdp: int
) -> None:
    state = put_state(make_state(0, n=30_000), make_mesh(fsdp=fsdp))
    like = wanted(state, make_mesh(fsdp=fsdp))
    step = jax.jit(lambda s: jax.tree.map(lambda x: (x + 1).astype(x.dtype), s), donate_argnums=0)
    state = step(state)
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(3):
            now = jax.tree.map(lambda x: np.array(x), state)
            checkpoints.save(state, {})
            for _ in range(3):
                state = step(state)
            assert equal(checkpoints.restore(like)[0], now)


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2, best=("score", "min")) as checkpoints:
        for step, metrics in enumerate(
            [{"score": 3.0}, {"score": 1.0}, None, {"score": float("nan")}, {"other": 0.0}, None]
        ):
            checkpoints.save(make_state(step), {}, metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4, 5]
    # What is best is known to who opens it again.
    with Checkpoints(tmp_path, keep=1, best=("score", "min")) as checkpoints:
        checkpoints.save(make_state(6), {}, {"score": 2.0})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 6]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), {"first": True})
        checkpoints.save(make_state(1), {"first": False})
        assert checkpoints.identity(1) == {"first": True}


def truncate(directory: Path) -> None:
    os.truncate(payload(directory), payload(directory).stat().st_size // 2)


def flip(directory: Path) -> None:
    data = bytearray(payload(directory).read_bytes())
    data[len(data) // 2] ^= 4
    payload(directory).write_bytes(data)


def remove(directory: Path) -> None:
    payload(directory).unlink()


def empty_metrics(directory: Path) -> None:
    (directory / "metrics" / "metrics").write_text("")


def unseal(directory: Path) -> None:
    (directory / "digests.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, remove, empty_metrics, unseal])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    copy: Path, damage: Any
) -> None:
    damage(copy / "3")
    said: list[str] = []
    # A reader leaves it where it is.
    with Checkpoints(copy, report=said.append, writable=False) as checkpoints:
        state, step = checkpoints.restore(LIKE)
        assert step == 2 and equal(state, make_state(2))
    assert (copy / "3").exists()
    assert any("checkpoint 3" in line and "damaged" in line for line in said)
    assert all("\n" not in line for line in said)

    # Training sets it aside, and can write that step again.
    with Checkpoints(copy, best=("score", "max"), report=said.append) as checkpoints:
        assert checkpoints.restore(LIKE)[1] == 2
        assert (copy / "3.damaged").exists()
        checkpoints.save(make_state(3), {})
    del said[:]
    with Checkpoints(copy, report=said.append) as checkpoints:
        assert checkpoints.restore(LIKE)[1] == 3
    assert not said


def test_every_bit_counts(copy: Path) -> None:
    path = payload(copy / "3")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    with Checkpoints(copy, report=lambda _: None, writable=False) as checkpoints:
        for bit in rng.integers(0, 8 * len(data), 20):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(changed)
            assert checkpoints._damage(3)
        path.write_bytes(data)
        assert not checkpoints._damage(3)


def test_nothing_whole_is_an_error_that_names_the_directory(copy: Path) -> None:
    for step in "123":
        truncate(copy / step)
    with Checkpoints(copy, report=lambda _: None) as checkpoints:
        with pytest.raises(OSError, match=f"every checkpoint in {copy} is damaged; the latest, 3"):
            checkpoints.restore(LIKE)
        assert checkpoints.steps() == [1, 2, 3]


def test_nothing_at_all_is_another(tmp_path: Path) -> None:
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}"),
    ):
        checkpoints.restore(LIKE)


def test_another_model_is_not_damage(copy: Path) -> None:
    said: list[str] = []
    other = jax.eval_shape(lambda: make_state(0, n=9))
    with Checkpoints(copy, report=said.append) as checkpoints:
        with pytest.raises(ValueError, match=r"checkpoint 3 .* is of another model") as error:
            checkpoints.restore(other)
        assert "ema.net.params.w is float32[8, 12], not float32[9, 12]" in str(error.value)
        with pytest.raises(ValueError, match=r"its opt.phase.1.0.count is int32\[\], not nothing"):
            checkpoints.restore(LIKE._replace(opt={}))
        half = LIKE._replace(step=jax.ShapeDtypeStruct((), jnp.int16))
        with pytest.raises(ValueError, match=r"its step is int32\[\], not int16"):
            checkpoints.restore(half)
    assert not said


# Orbax closes the loop of a failed save with TensorStore's other writes still in flight.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_write_is_one_clear_error_and_costs_nothing_older(copy: Path) -> None:
    rng = np.random.default_rng(0)
    net = {"w": jnp.asarray(rng.normal(size=200_000), jnp.float32)}
    big = State(jnp.int32(9), {"net": net}, {}, {}, {})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(copy) as checkpoints:
        # Python ignores the signal that comes with it, so that a write fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        try:
            with pytest.raises(OSError) as error:
                checkpoints.save(big, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert str(error.value) == (
            f"a checkpoint could not be written to {copy}: File too large; earlier ones are intact"
        )
        assert checkpoints.steps() == [1, 2, 3]
    with Checkpoints(copy, report=pytest.fail) as checkpoints:
        assert checkpoints.restore(LIKE)[1] == 3
        checkpoints.save(big, {})  # clears away what the failure left
        checkpoints.wait()
    assert not [path.name for path in copy.iterdir() if "tmp" in path.name]


def test_a_full_disk_is_one_clear_error_before_anything_is_written(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1000))
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(OSError, match=f"{copy}: it takes 0.2 MB, and 0.0 MB are free; earlier"):
            checkpoints.save(make_state(9, n=1000), {})
        assert checkpoints.steps() == [1, 2, 3]
    assert {path.name for path in copy.iterdir()} == {"1", "2", "3"}


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep=0 must be at least 1"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match=r"best=.*largest.* must end with"):
        Checkpoints(tmp_path, best=("score", "largest"))


def test_digests_are_those_of_the_files(three: Path) -> None:
    import hashlib

    digests = json.loads((three / "3" / "digests.json").read_text())
    path = payload(three / "3")
    name = path.relative_to(three / "3").as_posix()
    assert digests[name] == hashlib.sha256(path.read_bytes()).hexdigest()
