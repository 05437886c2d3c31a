import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from aigc_jax.core.parallel import (
    batch_sharding,
    batch_shards,
    lay_out,
    make_mesh,
    put_batch,
    put_state,
    shardings,
)


@pytest.mark.parametrize(
    ("count", "fsdp", "shape"),
    [(4, 1, (4, 1)), (4, 2, (2, 2)), (4, 4, (1, 4)), (4, -1, (1, 4)), (1, 1, (1, 1))],
)
def test_mesh_divides_the_devices(count, fsdp, shape):
    mesh = make_mesh(jax.devices()[:count], fsdp)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == (*shape, 1)
    assert list(mesh.devices.flat) == jax.devices()[:count]


def test_mesh_takes_all_devices_by_default():
    assert make_mesh().size == jax.device_count() == 4


@pytest.mark.parametrize("fsdp", [0, 3, 8, -2])
def test_fsdp_must_divide_the_devices(fsdp):
    with pytest.raises(ValueError, match=rf"fsdp={fsdp} must divide the number of devices, 4"):
        make_mesh(fsdp=fsdp)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), P()),
        ((3,), P()),
        ((2, 2), P()),  # both shorter than the devices are many
        ((6, 10), P()),
        ((8,), P("fsdp")),
        ((3, 3, 16, 32), P(None, None, None, "fsdp")),
        ((3, 3, 32, 16), P(None, None, "fsdp")),
        ((30, 8), P(None, "fsdp")),  # 30 is the largest, but does not divide by 4
        ((8, 8), P("fsdp")),
        ((0, 4), P(None, "fsdp")),
    ],
)
def test_rule_takes_the_largest_axis_that_divides(shape, spec):
    assert lay_out()("w", shape, make_mesh(fsdp=4)) == spec


def test_rule_replicates_without_fsdp():
    assert lay_out()("w", (8, 8), make_mesh(fsdp=1)) == P()


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/gpt/in/kernel", (3, 8, 16), P(None, "fsdp", "tensor")),
        ("opt/lm/1/mu/gpt/in/kernel", (8, 16), P("fsdp", "tensor")),
        ("params/gpt/in/kernel", (3, 8, 15), P(None, "fsdp")),  # 15 does not divide
        ("params/gpt/in/kernel", (16,), P("tensor")),
        ("in/kernel", (5, 2), P(None, "tensor")),
        ("params/gpt/main/kernel", (8, 16), P(None, "fsdp")),  # another's end
        ("params/out/kernel", (3, 16, 8), P(None, "tensor", "fsdp")),
        ("params/out/kernel", (8,), P("fsdp")),  # has no such axis
    ],
)
def test_a_named_axis_is_divided_over_tensor_and_another_over_fsdp(path, shape, spec):
    rule = lay_out({"in/kernel": -1, "out/kernel": -2})
    assert rule(path, shape, make_mesh(fsdp=2, tensor=2)) == spec


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 3}, "tensor=3 must divide the number of devices, 4"),
        ({"tensor": 0}, "tensor=0 must divide"),
        ({"tensor": 2, "fsdp": 4}, "fsdp=4 must divide the number of devices, 4 / tensor=2"),
    ],
)
def test_tensor_must_divide_the_devices(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_a_batch_lies_whole_on_each_device_of_tensor():
    mesh = make_mesh(tensor=2)
    assert batch_shards(mesh) == 2
    put = put_batch({"y": np.arange(8)}, mesh)
    rows = {shard.device: shard.data.tolist() for shard in put["y"].addressable_shards}
    half = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [rows[device] for device in jax.devices()] == [half[0], half[0], half[1], half[1]]


def test_state_is_laid_out_by_the_rule():
    state = {"w": np.arange(32.0).reshape(2, 16), "b": np.arange(3.0), "step": np.int32(7)}
    mesh = make_mesh(fsdp=2)
    put = put_state(state, mesh)
    assert put["w"].sharding.shard_shape((2, 16)) == (2, 8)
    assert put["b"].sharding.is_fully_replicated and put["step"].sharding.is_fully_replicated
    assert all((np.asarray(put[name]) == state[name]).all() for name in state)
    assert put["w"].sharding == shardings(state, mesh)["w"]


def test_any_rule_will_do():
    first_axis = lambda path, shape, mesh: P("data") if shape else P()
    state = {"w": np.zeros((4, 16)), "step": np.int32(0)}
    put = put_state(state, make_mesh(), first_axis)
    assert put["w"].sharding.shard_shape((4, 16)) == (1, 16)


def test_shardings_need_only_shapes():
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros((2, 16))})
    assert shardings(shapes, make_mesh(fsdp=4))["w"].spec == P(None, "fsdp")


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_batch_is_laid_over_all_devices_in_order(fsdp):
    mesh = make_mesh(fsdp=fsdp)
    put = put_batch({"x": np.arange(16).reshape(8, 2), "y": np.arange(8)}, mesh)
    assert put["x"].sharding == batch_sharding(mesh)
    assert (np.asarray(put["x"]) == np.arange(16).reshape(8, 2)).all()
    rows = {shard.device: shard.data.tolist() for shard in put["y"].addressable_shards}
    assert [rows[device] for device in jax.devices()] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_batch_must_divide_over_the_devices():
    with pytest.raises(ValueError, match="batch of 6 does not divide over 4 devices") as error:
        put_batch({"x": np.zeros((6, 2))}, make_mesh())
    assert "\n" not in str(error.value)
