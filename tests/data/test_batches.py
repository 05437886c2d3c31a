import multiprocessing
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from aigc_jax.data import sources, transforms
from aigc_jax.data.batches import batched, batches, prefetch


def numbered(n):
    """A source whose example i has the label i and an image of its low byte."""
    label = np.arange(n)
    image = np.broadcast_to((label % 256).astype(np.uint8)[:, None, None, None], (n, 2, 2, 1))
    return sources.arrays({"image": image, "label": label}, {"image": image}).train


def labels(stream, steps):
    return np.concatenate([stream[step]["label"] for step in steps])


def equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(("n", "batch"), [(20, 5), (10, 4), (7, 16), (3, 3), (1, 2)])
def test_every_example_is_seen_once_an_epoch_also_where_batches_straddle(n, batch):
    epochs = 6
    steps = -(-n * epochs // batch)
    seen = labels(batches(numbered(n), batch, seed=0), range(steps))[: n * epochs].reshape(-1, n)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(n), (epochs, 1)))


def test_epochs_and_seeds_are_shuffled_differently():
    source = numbered(100)
    first, second = np.split(labels(batches(source, 50, seed=0), range(4)), 2)
    other = labels(batches(source, 50, seed=1), range(2))
    for one, two in ((first, second), (first, other), (first, np.arange(100))):
        assert np.sum(one == two) < 10  # a random permutation keeps one place on average


def test_shuffling_is_uniform():
    # Where example 0 of 4 lands, over 2,000 seeds: each place with probability 1/4.
    source = numbered(4)
    places = [
        int(np.flatnonzero(batches(source, 4, seed)[0]["label"] == 0)[0]) for seed in range(2000)
    ]
    assert np.abs(np.bincount(places, minlength=4) - 500).max() < 5 * np.sqrt(2000 * 3 / 16)


def test_a_step_is_the_same_in_any_order_and_from_any_object():
    transform = transforms.chain(transforms.flip, transforms.normalise)
    forward = batches(numbered(10), 4, seed=3, transform=transform)
    steps = {step: forward[step] for step in range(12)}
    backward = batches(numbered(10), 4, seed=3, transform=transform)
    for step in reversed(range(12)):
        equal(backward[step], steps[step])
    assert steps[0]["image"].dtype == np.float32


@pytest.mark.parametrize("count", [2, 4])
def test_shares_of_processes_concatenate_to_the_whole_batch(count):
    source = sources.digits().train
    transform = transforms.chain(transforms.flip, transforms.normalise)
    whole = batches(source, 64, seed=1, transform=transform, process=(0, 1))
    shares = [
        batches(source, 64, seed=1, transform=transform, process=(rank, count))
        for rank in range(count)
    ]
    for step in (0, 22, 1000):  # 22 straddles two epochs of 1,437
        parts = [share[step] for share in shares]
        assert all(len(part["label"]) == 64 // count for part in parts)
        equal(whole[step], {k: np.concatenate([part[k] for part in parts]) for k in whole[step]})


def test_the_process_is_that_of_jax_unless_told():
    stream = batches(numbered(4), 2, seed=0)
    assert stream.process == (jax.process_index(), jax.process_count())


def test_steps_far_along_are_reached_at_once():
    stream = batches(numbered(7), 4, seed=0)
    assert stream[10**15]["label"].shape == (4,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 5, "process": (0, 2)}, "batch=5 must be a positive multiple of the 2 processes"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"process": (2, 2)}, r"process=\(2, 2\)"),
    ],
)
def test_batches_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(10), **({"batch": 4, "seed": 0} | arguments))


def test_an_empty_source_and_a_negative_step_are_refused():
    with pytest.raises(ValueError, match="source is empty"):
        batches(sources.Memory({"image": np.zeros((0, 2, 2, 1), np.uint8)}), 4, seed=0)
    with pytest.raises(IndexError, match="step=-1"):
        batches(numbered(4), 2, seed=0)[-1]


def noisy(examples, address):
    """A transform that draws under two names, of numbers besides pixels."""
    level = address.bits("level") >> np.uint32(24)
    sign = (address.bits("sign") >> np.uint32(31)).astype(np.int32)
    return examples | {"level": level, "label": examples["label"] * (1 - 2 * sign)}


def test_batches_gathered_on_a_device_are_those_of_indexing():
    rng = np.random.default_rng(0)
    image = {"image": rng.integers(0, 256, (10, 3, 4, 4), np.uint8), "label": np.arange(10)}
    transform = transforms.chain(
        transforms.over_white, transforms.flip, noisy, transforms.pad(6), transforms.normalise
    )
    stream = batches(sources.arrays(image, image).train, 8, seed=3, transform=transform)
    columns, sent, gather = stream.resident()
    assert columns["image"].dtype == np.uint8 and len(columns["label"]) == 10
    gather = jax.jit(gather)
    for step in (0, 1, 2, 1000):  # 1 and 2 straddle epochs
        addressed = next(sent(step, step + 1))
        assert {leaf.shape for leaf in jax.tree.leaves(addressed)} == {(8,)}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(addressed)} == {"int32", "uint32"}
        batch, expected = gather(columns, addressed), stream[step]
        np.testing.assert_allclose(batch["image"], expected["image"], rtol=0, atol=1e-6)
        for name in ("label", "level"):
            np.testing.assert_array_equal(batch[name], expected[name])
    assert gather._cache_size() == 1


def test_a_source_decoded_once_is_resident_too():
    asked = []

    def load(index):
        asked.extend(index.tolist())
        return {"label": index.astype(np.int32)}

    stream = batches(sources.Kept(9, load), 4, seed=0)
    columns, sent, gather = stream.resident(limit=9 * 4)
    assert sorted(asked) == list(range(9))
    equal(jax.jit(gather)(columns, next(sent(5, 6))), stream[5])


def by_seed(examples, address):
    return examples | {"noise": np.random.default_rng(address.seed).normal(size=len(examples))}


@pytest.mark.parametrize(
    ("arguments", "limit", "message"),
    [
        ({"transform": transforms.resize(4)}, None, "JAX cannot trace the transform: "),
        ({"transform": by_seed}, None, "JAX cannot trace the transform: AttributeError: .*seed"),
        ({"source": sources.Stream(5, lambda index: {"label": index})}, None, "a Stream is not"),
        ({"process": (0, 2)}, None, "the data is divided over 2 processes"),
        ({}, 79, "the data takes 80 bytes, and the limit is 79"),
    ],
)
def test_what_devices_cannot_hold_or_do_is_refused(arguments, limit, message):
    given = {"source": numbered(10), "batch": 4, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message) as error:
        batches(**given).resident(limit)
    assert "\n" not in str(error.value)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetching_is_indexing_and_leaves_no_thread():
    stream = batches(numbered(50), 8, seed=0, transform=transforms.normalise)
    ready = prefetch(stream, start=5, depth=3)
    for expected in range(5, 25):
        step, batch = next(ready)
        assert step == expected
        equal(batch, stream[step])
    assert threads()
    ready.close()
    assert not threads()


def test_prefetching_raises_where_the_batch_is_awaited():
    def load(index):
        if 7 in index:
            raise ValueError("7.png is not a readable image")
        return {"label": index}

    stream = batches(sources.Stream(20, load), 2, seed=0)
    bad = next(step for step in range(10) if 7 in stream.index(step))
    ready = prefetch(stream)
    for _ in range(bad):
        next(ready)
    with pytest.raises(ValueError, match=r"7\.png is not a readable image"):
        next(ready)
    assert not threads()


@pytest.mark.parametrize("wrong", [{"start": -1}, {"workers": -1}, {"depth": 0}])
def test_prefetching_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        prefetch(batches(numbered(4), 2, seed=0), **wrong)


def test_workers_give_the_same_batches_and_their_error_and_leave_no_process(tmp_path):
    for i in range(12):
        Image.new("RGB", (20, 16), (20 * i, 0, 255)).save(tmp_path / f"{i:02}.png")
    data = sources.folder(tmp_path, size=8, test_fraction=0, memory_limit=0)
    (tmp_path / "07.png").write_text("damaged after the folder was opened")
    transform = transforms.chain(transforms.flip, transforms.normalise)
    stream = batches(data.train, 1, seed=0, transform=transform)
    bad = next(step for step in range(12, 24) if stream.index(step)[0] == 7)
    ready = prefetch(stream, start=bad - 3, workers=1, depth=1)
    for expected in range(bad - 3, bad):
        step, batch = next(ready)
        assert step == expected
        equal(batch, stream[step])
    with pytest.raises(ValueError, match=r"07\.png is not a readable image"):
        next(ready)
    assert not multiprocessing.active_children()


def test_closing_ends_the_workers():
    ready = prefetch(batches(numbered(50), 8, seed=0), workers=2, depth=1)
    assert next(ready)[0] == 0
    assert len(multiprocessing.active_children()) == 2
    ready.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9])
def test_a_function_of_examples_gives_what_one_call_gives(n):
    images = np.random.default_rng(n).normal(size=(n, 2, 2, 1)).astype(np.float32)
    got = batched(lambda x: x.reshape(len(x), 4) * 2, images, size=4)
    np.testing.assert_array_equal(got, images.reshape(n, 4) * 2)
    both = batched(lambda x: (x["a"], {"b": x["i"] + 1}), {"a": images, "i": np.arange(n)}, size=4)
    np.testing.assert_array_equal(both[0], images)
    np.testing.assert_array_equal(both[1]["b"], np.arange(n) + 1)


def test_a_function_of_no_examples_is_refused():
    x = np.zeros((3, 2))
    with pytest.raises(
        ValueError, match=r"^examples have shapes \[\(0, 2\)\]; there must be at least one$"
    ):
        batched(lambda x: x, x[:0])
    with pytest.raises(ValueError, match=r"^size=0 must be at least 1$"):
        batched(lambda x: x, x, size=0)
    with pytest.raises(ValueError, match=r"^fn returned shape \(\) for 2 examples$"):
        batched(np.sum, x, size=2)
