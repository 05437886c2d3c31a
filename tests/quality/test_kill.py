"""A run killed twenty times, at any moment and in the middle of saving, loses nothing but time."""

import random
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from aigc_jax.train.checkpoint import Checkpoints

sys.path.append(str(Path(__file__).parents[1] / "train"))
from regression import IDENTITY, make_experiment, saved, spawn

from aigc_jax.train.loop import fit

pytestmark = pytest.mark.quality

KILLS = 20
# Enough weights that a save takes a while, and enough steps that no run ends before its last kill.
RUN = {"steps": 400, "width": 50_000}


def partial(out: Path) -> bool:
    return any(out.glob("checkpoints/*.orbax-checkpoint-tmp"))


def test_a_run_killed_at_random_moments_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    moments = random.Random(0)
    held = during_a_save = 0
    for kill in range(KILLS):
        process = spawn(killed, **RUN, save_every=3, delay=0.05)
        # Every other one as soon as it saves, or soon after.
        while max(saved(killed), default=0) <= held or (kill % 2 and not partial(killed)):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05 if kill % 2 else 0.5))
        process.kill()
        process.communicate()

        during_a_save += partial(killed)
        assert max(saved(killed)) > held
        held = max(saved(killed))
        with Checkpoints(killed / "checkpoints", writable=False) as checkpoints:
            assert not checkpoints._damage(held)
    assert during_a_save >= KILLS // 4, "too few of the kills met a save"
    print(f"{KILLS} kills until step {held}, {during_a_save} of them during a save")

    experiment = make_experiment(**RUN)
    states = [fit(experiment, out, identity=IDENTITY).state for out in (whole, killed)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)
