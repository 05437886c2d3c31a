"""Directories of weights, whatever network they are of."""

import json
import pickle
import weakref

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aigc_jax.pretrained import huggingface
from aigc_jax.pretrained.huggingface import (
    Tensor,
    linear,
    open_weights,
    read_config,
    read_params,
    same,
    write_params,
)

# Two layers of a projection to 2 heads of 3 queries, keys and values, and a table.
TENSORS = [
    same("table", ("table",), (7, 4)),
    *(
        tensor
        for layer in range(2)
        for tensor in linear(
            f"{layer}.qkv",
            ("blocks", "qkv"),
            (4,),
            (3, 2, 5),
            order=(1, 0, 2),
            inputs_first=True,
            at=(layer,),
        )
    ),
]
SHAPES = {
    ("table",): (7, 4),
    ("blocks", "qkv", "kernel"): (2, 4, 2, 3, 5),
    ("blocks", "qkv", "bias"): (2, 2, 3, 5),
}
SHAPES = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def noise(dtype=np.float32):
    rng = np.random.default_rng(0)
    draw = lambda *path: rng.normal(size=SHAPES[path].shape).astype(dtype)
    qkv = {"kernel": draw("blocks", "qkv", "kernel"), "bias": draw("blocks", "qkv", "bias")}
    return {"table": draw("table"), "blocks": {"qkv": qkv}}


def write(directory, params=None, **options):
    params = noise() if params is None else params
    write_params(directory, params, TENSORS, SHAPES, {"size": 4}, network="test", **options)


def read(directory, **options):
    with open_weights(directory) as weights:
        return read_params(weights, TENSORS, SHAPES, **options)


@pytest.fixture
def directory(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("shard", [10**9, 300, 1])
def test_what_is_written_is_read_back(dtype, shard, tmp_path):
    params = noise(dtype)
    write(tmp_path, params, shard=shard)
    chex.assert_trees_all_equal(read(tmp_path, dtype=dtype), params)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if shard == 10**9:
        assert files == [WHOLE] and not (tmp_path / INDEX).exists()
        found = load_file(tmp_path / WHOLE)
    else:
        n = len(files)
        assert files == [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
        assert (n == 5) if shard == 1 else (1 < n < 5)
        index = json.loads((tmp_path / INDEX).read_text())
        parts = {name: load_file(tmp_path / name) for name in files}
        assert index["weight_map"] == {key: name for name in files for key in parts[name]}
        found = {key: array for part in parts.values() for key, array in part.items()}
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())
        alone = [sum(array.nbytes for array in part.values()) for part in parts.values()]
        assert all(size <= shard or len(p) == 1 for size, p in zip(alone, parts.values()))
    assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
    # Heads lie within queries, keys and values there.
    expected = np.moveaxis(params["blocks"]["qkv"]["kernel"][1], 1, 2).reshape(4, 30)
    np.testing.assert_array_equal(found["1.qkv.weight"], expected)


def test_what_it_writes_any_reader_reads(directory):
    from safetensors import safe_open

    with safe_open(directory / WHOLE, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert (directory / WHOLE).stat().st_mode & 0o777 == (
        directory / "config.json"
    ).stat().st_mode & 0o777


def test_types_are_chosen_on_either_side(directory, tmp_path):
    write(tmp_path, dtype=jnp.bfloat16)
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), noise())
    chex.assert_trees_all_equal(read(tmp_path, dtype=jnp.bfloat16), halved)
    wide = read(tmp_path)
    chex.assert_trees_all_equal(wide, jax.tree.map(lambda x: x.astype(np.float32), halved))


def test_every_axis_finds_its_place():
    """Theirs is (out, in); two of ours share a kernel, side by side."""
    tensors = [
        tensor
        for j, name in enumerate(("query", "key"))
        for tensor in linear(name, ("qk",), (3,), (2, 5), at=(1,), slot=(slice(None), j))
    ]
    kernel, bias = tensors[0], tensors[1]
    assert kernel.shape == (10, 3) and bias.shape == (10,)
    assert kernel == Tensor(
        "query.weight", (10, 3), ("qk", "kernel"), (2, 5, 3), (2, 0, 1), (1, *[slice(None)] * 2, 0)
    )
    assert bias.at == (1, slice(None), 0)


def test_several_become_one_and_one_several(tmp_path):
    write(tmp_path, shard=1)
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", WHOLE}
    write(tmp_path, shard=1)
    assert not (tmp_path / WHOLE).exists() and (tmp_path / INDEX).exists()
    write(tmp_path, shard=400)
    chex.assert_trees_all_equal(read(tmp_path), noise())
    assert not any("of-00005" in path.name for path in tmp_path.iterdir())


def test_one_tensor_at_a_time_is_in_memory(directory):
    alive, most = weakref.WeakSet(), []

    class Watched(np.ndarray):
        pass

    class Life:
        pass

    class File:
        def __init__(self, inner):
            self.get_slice, self.read = inner.get_slice, inner.get_tensor

        def get_tensor(self, name):
            array = self.read(name).view(Watched)
            array.life = Life()
            alive.add(array.life)
            most.append(len(alive))
            return array

    with open_weights(directory) as weights:
        files = {name: File(file) for name, file in weights.files.items()}
        read_params(weights._replace(files=files), TENSORS, SHAPES)
    assert len(most) == len(TENSORS)
    assert max(most) <= 2  # the one before goes when the next has come


# What is not there, or wrong


@pytest.mark.parametrize("name", ["", "config.json"])
def test_what_does_not_exist_is_named(name, directory, tmp_path):
    missing = tmp_path / "elsewhere" if not name else directory / name
    missing.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=f"{missing} does not exist$"):
        read_config((directory if name else missing) / "config.json")


def test_weights_that_do_not_exist_are_named(directory):
    (directory / WHOLE).unlink()
    with pytest.raises(FileNotFoundError, match=f"{directory / WHOLE} does not exist$"):
        read(directory)
    write(directory, shard=1)
    part = directory / "model-00003-of-00005.safetensors"
    part.unlink()
    with pytest.raises(FileNotFoundError, match=f"{part} does not exist, which {INDEX} names$"):
        read(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_refused_unopened(name, directory):
    (directory / WHOLE).unlink()
    (directory / name).write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=f"only as a pickle, {name}, which may run any code"):
        read(directory)


@pytest.mark.parametrize(
    "change",
    [lambda b: b[:-8], lambda b: b[:100], lambda b: b"", lambda b: b"\xff" * 8 + b[8:]],
    ids=["short", "within its header", "empty", "wrong header"],
)
def test_a_file_that_is_not_whole_is_named(change, directory):
    file = directory / WHOLE
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{file} is not whole: ") as error:
        read(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[1]", "holds a list, not names and values")]
)
def test_a_configuration_that_is_none_is_named(text, message, directory):
    (directory / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"{directory / 'config.json'} {message}"):
        read_config(directory / "config.json")


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": {"table": "../x.safetensors"}},
        {"weight_map": {"a": 1}},
    ],
)
def test_an_index_that_is_none_is_named(index, directory):
    (directory / WHOLE).unlink()
    (directory / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{INDEX} has no weight_map of names and files beside it"):
        read(directory)


def test_an_index_that_does_not_fit_its_files_is_named(tmp_path):
    write(tmp_path, shard=1)
    index = json.loads((tmp_path / INDEX).read_text())
    places = index["weight_map"]
    places["0.qkv.bias"], places["table"] = places["table"], places["0.qkv.bias"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    message = f"does not hold what {INDEX} says: table is missing, 0.qkv.bias is unexpected$"
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_weights_that_do_not_fit_are_listed(directory):
    weights = load_file(directory / WHOLE)
    del weights["0.qkv.bias"]
    weights |= {"more": np.zeros(1, np.float32), "table": np.zeros((7, 5), np.float32)}
    save_file(weights, directory / WHOLE)
    with pytest.raises(ValueError) as error:
        read(directory)
    assert str(error.value) == (
        f"{directory / WHOLE} does not fit its config.json: 0.qkv.bias is missing, more is"
        " unexpected, table is (7, 5), not (7, 4)"
    )


def test_names_that_mean_the_same_hold_the_same(directory):
    weights = load_file(directory / WHOLE)
    rename = lambda name: {"tied": "table", "mask": None}.get(name, name)
    more = weights | {"tied": weights["table"], "mask": np.zeros(3)}
    save_file(more, directory / WHOLE)
    chex.assert_trees_all_equal(read(directory, rename=rename), noise())
    for tied, message in (
        (weights["table"] + 1, "tied differs from table, which it has to be"),
        (weights["table"][:6], r"tied is \(6, 4\), not \(7, 4\)"),
    ):
        save_file(weights | {"tied": np.ascontiguousarray(tied)}, directory / WHOLE)
        with pytest.raises(ValueError, match=message):
            read(directory, rename=rename)
    # One of the names is enough.
    weights["tied"] = weights.pop("table")
    save_file(weights, directory / WHOLE)
    chex.assert_trees_all_equal(read(directory, rename=rename), noise())


def test_weights_that_are_not_floating_are_refused(directory):
    weights = load_file(directory / WHOLE)
    save_file(weights | {"table": np.zeros((7, 4), np.int8)}, directory / WHOLE)
    with pytest.raises(ValueError, match=r"table is I8; weights are F16, BF16, F32, F64$"):
        read(directory)
    with pytest.raises(ValueError, match="dtype=int8 must be one of float16, bfloat16, "):
        write(directory, dtype=np.int8)


def test_parameters_of_another_network_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="params are not this test's: blocks/qkv/bias is missing"):
        write(tmp_path, {"table": noise()["table"]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "call", "shard"),
    [
        ("write_json", 1, 10**9),
        ("write_json", 1, 1),
        ("_write_tensors", 1, 10**9),
        ("_write_tensors", 3, 1),
    ],
)
def test_a_write_that_fails_changes_nothing(name, call, shard, directory, monkeypatch):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    original, calls = getattr(huggingface, name), []

    def no_room(*args):
        calls.append(args)
        if len(calls) == call:
            raise OSError("no space left on device")
        original(*args)

    monkeypatch.setattr(huggingface, name, no_room)
    with pytest.raises(OSError, match="no space"):
        write(directory, jax.tree.map(lambda x: x + 1, noise()), shard=shard)
    assert len(calls) == call
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
