"""Several steps in one dispatch end bit for bit where single ones do, under ordinary flags."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quality

TESTS = Path(__file__).parents[1]
SCRIPT = """
import sys
import jax, numpy as np
sys.path.insert(0, {tests!r})
import test_invariance as t

mesh, task = t.make_mesh(), t.TASKS[{name!r}]()
expected, _ = t.train(task, t.start({name!r}), "jit1")
state = t.put_state(t.start({name!r}), mesh)
step = t.jit_step(task, mesh, seed=t.SEED, inner_steps=3)
for i in (0, 3):
    batches = [t.batch(i + j) for j in range(3)]
    state, _ = step(state, t.put_batch(jax.tree.map(lambda *x: np.stack(x), *batches), mesh, 1))
jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
print("equal", len(jax.tree.leaves(state)))
"""


@pytest.mark.parametrize("name", ["diffusion", "classifier", "vae"])
def test_several_steps_a_dispatch_are_bit_for_bit_single_ones(name: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    script = SCRIPT.format(tests=str(TESTS), name=name)
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.startswith("equal "), run.stderr[-2000:]
