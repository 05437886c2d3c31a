"""What a compiled program communicates is read from its text, and costs what rings cost."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import make_mesh
from aigc_jax.core.types import Out, Phase, Task
from aigc_jax.train.step import init
from benchmarks.scaling import (
    CHIPS,
    Collective,
    collectives,
    communication_seconds,
    compile_step,
    findings,
    layouts,
    predict,
    ring_seconds,
)

HEADER = "HloModule jit_f, is_scheduled=true, num_partitions=8\n\n"


def entry(*lines: str) -> str:
    return HEADER + "\n  ".join(("ENTRY %main (p: f32[8]) -> f32[8] {", *lines)) + "\n}\n"


def test_bytes_are_those_of_every_array_of_a_tuple():
    found = collectives(
        entry(
            "%ar = (f32[8,4]{1,0:T(8,128)}, bf16[3]{0}, /*index=2*/pred[], s4[5]{0}) "
            "all-reduce(%a, %b, %c, %d), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, "
            'to_apply=%add, metadata={op_name="jit(f)/psum"}'
        )
        + "\n%add (x: f32[], y: f32[]) -> f32[] {\n  ROOT %s = f32[] add(%x, %y)\n}\n"
    )
    assert found == [Collective("all-reduce", 4, 128 + 6 + 1 + 3, 0, (0, 1), 1)]


def test_groups_are_read_in_every_notation():
    found = collectives(
        entry(
            "%ag = f32[8]{0} all-gather(%a), replica_groups=[2,4]<=[8], dimensions={0}",
            "%at = f32[8]{0} all-gather(%a), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}",
            "%rs = f32[2]{0} reduce-scatter(f32[8]{0} %ag), replica_groups={{0,2,4,6},{1,3,5,7}}",
            "%am = f32[8]{0} all-reduce(%a), replica_groups=mesh['x'=2,'y'=2,'z'=2] {'x','z'}",
            "%ad = f32[8]{0} all-reduce(%a), replica_groups=mesh['x'=2,'y'=4], "
            "device_ids=([4,2]T(1,0)) {'y'}",
            "%aa = f32[8]{0} all-to-all(%ag), replica_groups={}",
            "ROOT %cp = f32[8]{0} collective-permute(%aa), source_target_pairs={{0,1},{1,0}}",
        )
    )
    assert [(c.kind, c.bytes, c.group) for c in found] == [
        ("all-gather", 32, (0, 1, 2, 3)),
        ("all-gather", 32, (0, 4)),
        ("reduce-scatter", 32, (0, 2, 4, 6)),  # as much as was there before it was scattered
        ("all-reduce", 32, (0, 1, 4, 5)),
        ("all-reduce", 32, (0, 2, 4, 6)),
        ("all-to-all", 32, tuple(range(8))),
        ("collective-permute", 32, tuple(range(8))),
    ]
    with pytest.raises(ValueError, match="cannot read the replica_groups"):
        collectives(entry("%ar = f32[8]{0} all-reduce(%a), replica_groups=somehow"))


def test_a_start_and_its_done_are_one():
    found = collectives(
        entry(
            "%ag = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8]",
            "%cp = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%a)",
            "%as = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%b), calls=%wrapped",
            "%gathered = f32[8]{0} all-gather-done(%ag)",
            "%permuted = f32[2]{0} collective-permute-done((f32[2]{0}, f32[2]{0}) %cp)",
            "ROOT %scattered = f32[2]{0} async-done(%as), calls=%wrapped",
        )
        + "\n%wrapped (x: f32[8]) -> f32[2] {\n"
        + "  ROOT %rs = f32[2]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8]\n}\n"
    )
    assert [(c.kind, c.bytes) for c in found] == [
        ("all-gather", 32),
        ("collective-permute", 8),
        ("reduce-scatter", 32),
    ]


LOOPS = """
%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ar = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]{0}) while(%p), condition=%less, body=%inner, \
backend_config={"known_trip_count":{"n":"3"}}
  %ag = f32[8]{0} all-gather(%y), replica_groups={}
}

%less (p: s32[]) -> pred[] {
  ROOT %c = pred[] compare(%a, %b), direction=LT
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}
"""


def test_loops_repeat_what_they_hold():
    loop = "ROOT %w = (s32[], f32[8]{0}) while(%t), condition=%less, body=%outer"
    known = loop + ', backend_config={"known_trip_count":{"n":"5"},"other":{}}'
    for text, times in [(known, (15, 5)), (loop, (None, None))]:
        found = collectives(entry(text) + LOOPS)
        assert [(c.kind, c.times) for c in found] == [
            ("all-reduce", times[0]),
            ("all-gather", times[1]),
        ]


def test_arrays_that_are_only_sliced_are_told_apart():
    fused = """
%fused (q: f32[8], r: s32[]) -> f32[2] {
  %q = f32[8]{0} parameter(0)
  %r = s32[] parameter(1)
  %d = f32[2]{0} dynamic-slice(%q, %r), dynamic_slice_sizes={2}
  ROOT %n = f32[2]{0} negate(%d)
}
"""
    found = collectives(
        entry(
            "%ar = (f32[8]{0}, f32[16]{0}, f32[32]{0}) all-reduce(%a, %b, %c), replica_groups={}",
            "%g0 = f32[8]{0} get-tuple-element(%ar), index=0",
            "%g1 = f32[16]{0} get-tuple-element(%ar), index=1",
            "%g2 = f32[32]{0} get-tuple-element(%ar), index=2",
            "%f = f32[2]{0} fusion(%g0, %offset), kind=kLoop, calls=%fused",
            "%s1 = f32[4]{0} dynamic-slice(%g1, %offset), dynamic_slice_sizes={4}",
            "%s2 = f32[8]{0} dynamic-slice(%g2, %offset), dynamic_slice_sizes={8}",
            "%read = f32[32]{0} negate(%g2)",  # which needs all of it
            "%one = f32[2]{0} all-reduce(%a), replica_groups={}",
            "ROOT %s3 = f32[1]{0} dynamic-slice(%one, %offset), dynamic_slice_sizes={1}",
        )
        + fused
    )
    assert [(c.bytes, c.sliced) for c in found] == [(32 + 64 + 128, 32 + 64), (8, 8)]


def test_text_must_be_a_programs():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        collectives("module @jit_f attributes {}")


def test_reads_a_program_of_known_collectives():
    mesh = make_mesh(fsdp=4)

    def local(x):  # (2, 8) of (8, 8)
        gathered = lax.all_gather(x, "fsdp", tiled=True)
        scattered = lax.psum_scatter(gathered, "fsdp", tiled=True)
        ring = [(i, (i + 1) % 4) for i in range(4)]
        moved, _ = lax.scan(
            lambda a, _: (lax.ppermute(jnp.sin(a), "fsdp", ring), None), scattered, length=3
        )
        return lax.psum(moved.sum(0), "fsdp")

    f = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("fsdp"), out_specs=P()))
    x = jax.ShapeDtypeStruct((8, 8), np.float32, sharding=NamedSharding(mesh, P("fsdp")))
    found = collectives(f.lower(x).compile().as_text())
    assert sorted(c._replace(sliced=0) for c in found) == [
        Collective("all-gather", 1, 256, 0, (0, 1, 2, 3), 1),
        Collective("all-reduce", 1, 32, 0, (0, 1, 2, 3), 1),
        Collective("collective-permute", 1, 64, 0, (0, 1, 2, 3), 3),
        Collective("reduce-scatter", 1, 256, 0, (0, 1, 2, 3), 1),
    ]


def small_task() -> Task:
    def start(key, batch):
        w = jax.random.normal(key, (3072, 8))
        return {"a": {"w": w, "v": jnp.ones((8, 8)), "b": jnp.zeros(3)}}, {}

    def loss(params, stats, batch, keys, mode):
        p = params["a"]
        y = jnp.tanh(batch["image"].reshape(-1, 3072) @ p["w"]) @ p["v"]
        error = jnp.square(y).mean(-1)
        error += jnp.square(batch["image"].mean((1, 2)) - p["b"]).sum(-1)
        return Out(error, jnp.ones_like(error))

    return Task(start, (Phase("fit", ("a",), loss, optax.adam(0.1)),), lambda *args: None)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("layout", ["data", "fsdp", "both"])
def test_a_step_shows_what_its_layout_must(layout, accumulate):
    task = small_task()
    example = {"image": jnp.zeros((1, 32, 32, 3))}
    shapes = jax.eval_shape(lambda: init(task, stream(0, "init"), example))
    options = argparse.Namespace(batch=2, accumulate=accumulate, size="tiny", dtype="float32")
    program = compile_step(task, shapes, layout, 4, layouts(4)[layout], options)
    parameters = 4 * (3072 * 8 + 8 * 8 + 3)
    assert program["gradient_bytes"] == parameters
    divided = 4 * (3072 * 8 + 8 * 8) / layouts(4)[layout] + 4 * 3
    assert program["state_bytes_per_device"] == 3 * divided + 4 + 4  # and two counters
    found = dict(findings(program))
    assert len(found) >= 3 and all(found.values()), found


def test_model_of_a_ring():
    # Nested groups with the same links are as good as one ring over all of them.
    assert ring_seconds(1e9, [(8, 1e9), (4, 1e9)]) == pytest.approx(31 / 32)
    assert ring_seconds(1e9, [(8, 1e9), (4, 5e8)]) == pytest.approx(7 / 8 + 2 * (3 / 4) / 8)


def program(layout, *collectives):
    names = ("kind", "over", "bytes", "sliced_bytes")
    rows = [dict(zip(names, each, strict=True)) for each in collectives]
    return {"layout": layout, "fsdp": 2, "collectives": rows}


def test_model_of_a_step():
    gpu = CHIPS[0]
    size, node, nodes = 1e9, 7 / 8 / 450e9, 7 / 8 / 8 / 50e9
    data = program("data", ("all-reduce", "all", size, 0))
    assert communication_seconds(data, gpu, 8) == pytest.approx(2 * size * node)
    assert communication_seconds(data, gpu, 64) == pytest.approx(2 * size * (node + nodes))
    # Gathering parameters and scattering gradients is what an all-reduce does, as is scattering
    # them to neighbours, reducing the eighth of each with other nodes', and gathering.
    fsdp = program("fsdp", ("all-gather", "all", size, 0), ("all-reduce", "all", size, size))
    both = program(
        "both",
        ("all-gather", "fsdp", size, 0),
        ("all-reduce", "fsdp", size, size),
        ("all-reduce", "data", size / 2, 0),
    )
    assert communication_seconds(fsdp, gpu, 64) == pytest.approx(2 * size * (node + nodes))
    assert communication_seconds(both, gpu, 64) == pytest.approx(2 * size * (node + nodes))
    assert communication_seconds(both, gpu, 8) == pytest.approx(2 * size * node)
    moved = program("data", ("collective-permute", "all", size, 0))
    assert communication_seconds(moved, gpu, 64) == pytest.approx(size / 50e9)
    # A torus too small to close has lines for rings.
    v5e = CHIPS[2]
    assert communication_seconds(data, v5e, 64) == pytest.approx(2 * size * 63 / 64 / 100e9)
    assert communication_seconds(data, v5e, 256) == pytest.approx(2 * size * 255 / 256 / 200e9)

    seconds = communication_seconds(data, gpu, 64)
    flops = seconds * gpu.flops * 0.5 / 16  # as long to compute as to communicate
    predicted = predict(data, gpu, 64, 16, flops, 0.5)
    assert predicted["efficiency_without_overlap"] == pytest.approx(1 / 2)
    assert predicted["efficiency_with_overlap"] == pytest.approx(1)
