import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.keys import example_keys, fold, normal, randint, stream, uniform

N = 20_000


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


@pytest.fixture(scope="module")
def keys():
    return example_keys(stream(0, "test"), jnp.arange(N))


def test_stream_is_the_seeds_key_folded_with_the_checksum_of_the_name():
    expected = jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), zlib.crc32(b"init"))
    assert (bits(stream(7, "init")) == bits(expected)).all()


def test_streams_stay_what_they_were():
    # A resumed run draws what it would have drawn: these bits are part of the checkpoint format.
    assert bits(stream(0, "init")).tolist() == [3020537540, 2946840664]
    assert bits(stream(1, "denoiser")).tolist() == [196562131, 3045465057]


def test_streams_differ_by_seed_and_by_name():
    streams = [stream(seed, name) for seed in (0, 1, 2) for name in ("init", "sample", "a", "b")]
    assert len({tuple(bits(key)) for key in streams}) == len(streams)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_two_seeds_share_no_key(seed):
    with pytest.raises(ValueError, match=rf"^seed={seed} must lie in \[0, 2\*\*32\)$"):
        stream(seed, "init")


def test_generator_is_threefry_whatever_the_default():
    with jax.default_prng_impl("rbg"):
        key = stream(3, "init")
    assert jax.random.key_impl(key) == "threefry2x32"
    assert (bits(key) == bits(stream(3, "init"))).all()


def test_key_of_an_example_depends_on_its_index_alone(keys):
    some = jnp.array([5, 0, 19_999, 5])
    assert (bits(example_keys(stream(0, "test"), some)) == bits(keys)[some]).all()
    assert (bits(keys[3]) == bits(jax.random.fold_in(stream(0, "test"), 3))).all()


def test_fold_gives_fresh_keys(keys):
    few = keys[:100]
    everything = np.concatenate([bits(few), bits(fold(few, 0)), bits(fold(few, 1))])
    assert len(np.unique(everything, axis=0)) == 300
    assert (bits(fold(few, 1)[7]) == bits(jax.random.fold_in(few[7], 1))).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda keys: normal(keys, (2, 3)),
        lambda keys: uniform(keys, (2, 3)),
        lambda keys: uniform(keys),
        lambda keys: randint(keys, 0, 1_000_000),
    ],
    ids=["normal", "uniform", "uniform scalar", "randint"],
)
def test_what_is_drawn_for_an_example_depends_on_its_key_alone(draw, keys):
    order = np.array([3, 1, 4, 0, 3])
    whole = np.asarray(draw(keys[:5]))
    assert (np.asarray(draw(keys[order])) == whole[order]).all()
    assert len(np.unique(whole, axis=0)) == 5


def test_normal_is_standard(keys):
    x = np.asarray(normal(keys, (3,)), np.float64)
    assert x.shape == (N, 3)
    # Four standard errors of each statistic.
    assert abs(x.mean()) < 4 / (3 * N) ** 0.5
    assert abs(x.var() - 1) < 4 * (2 / (3 * N)) ** 0.5
    assert np.abs(np.corrcoef(x.T) - np.eye(3)).max() < 4 / N**0.5
    assert abs((np.abs(x) < 1.959964).mean() - 0.95) < 4 * (0.95 * 0.05 / (3 * N)) ** 0.5


def test_uniform_fills_the_unit_interval(keys):
    x = np.sort(np.asarray(uniform(keys)))
    assert x.shape == (N,)
    assert x[0] >= 0 and x[-1] < 1
    # Kolmogorov-Smirnov: passed by a uniform sample 999 times in 1000.
    assert np.abs(x - (np.arange(N) + 0.5) / N).max() < 1.95 / N**0.5


def test_randint_takes_each_value_as_often(keys):
    counts = np.bincount(np.asarray(randint(keys, 2, 6)), minlength=6)
    assert counts[:2].sum() == 0 and len(counts) == 6
    assert np.abs(counts[2:] / N - 1 / 4).max() < 4 * (3 / 16 / N) ** 0.5


def test_draws_do_not_depend_on_how_keys_are_sharded(keys):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(
        keys[:8], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    draw = jax.jit(lambda keys: normal(keys, (5,)))
    result = draw(sharded)
    assert len(result.sharding.device_set) == 4
    assert (np.asarray(result) == np.asarray(draw(keys[:8]))).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda keys: fold(keys[0], 1),
        lambda keys: normal(keys[0], (2,)),
        lambda keys: uniform(keys[0]),
        lambda keys: randint(keys[0], 0, 2),
        lambda keys: example_keys(keys[0], jnp.array(3)),
    ],
)
def test_one_key_is_not_keys(call, keys):
    with pytest.raises(AssertionError, match="rank"):
        call(keys)
