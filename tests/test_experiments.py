"""Every experiment is as CONTRIBUTING says, and the embedded ones train."""

import ast
import functools
import importlib
import inspect
import json
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.core.types import Experiment, Task
from aigc_jax.data.edges import edges
from aigc_jax.metrics.pictures import to_uint8
from aigc_jax.train.identity import digest, identify
from aigc_jax.train.loop import fit
from aigc_jax.train.step import init, make_step

FOLDER = Path(__file__).parent.parent / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
EMBEDDED = ["classifier_digits", "ddpm_digits"]


def load(name):
    package = sys.modules.setdefault("experiments", types.ModuleType("experiments"))
    package.__path__ = [str(FOLDER)]
    return getattr(importlib.import_module(f"experiments.{name}"), name)


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_its_command_and_takes_documented_keywords(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    assert f"aigc train {name}" in ast.get_docstring(tree)
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    assert not function.args.args and not function.args.posonlyargs
    documented = ast.get_docstring(function)
    for argument in function.args.kwonlyargs:
        assert f"{argument.arg}:" in documented, f"{argument.arg} is not documented"


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_experiments_build_addressed_batches(name):
    experiment = load(name)()
    assert isinstance(experiment, Experiment)
    batch = experiment.data(0)[3]
    assert batch["image"].shape == (experiment.batch, 8, 8, 1)
    assert batch["image"].dtype == np.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    np.testing.assert_array_equal(batch["label"], experiment.data(0)[3]["label"])


def test_digits_are_reversed_and_none_held_out_is_trained_on():
    made = sys.modules[load("seq2seq_reverse").__module__]
    data = made.reversals(5, n=2000, test=100)
    whole = [split.read(np.arange(len(split))) for split in (data.train, data.test)]
    (train, back), (test, _) = ((made.spell(x["source"]), made.spell(x["tokens"])) for x in whole)
    assert back == [text[::-1] for text in train]
    assert len({*train, *test}) == len(train) + len(test)
    assert {len(text) for text in train} == {1, 2, 3, 4, 5}
    for name, more in (("source_mask", 0), ("mask", 1)):  # the end is a target
        np.testing.assert_array_equal(whole[0][name].sum(1), [len(x) + more for x in train])


def test_stacked_mnist_goes_to_the_unit_interval_and_back():
    made = sys.modules[load("stacked_mnist").__module__]
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    image = made.unit({"image": levels})["image"]
    assert (image.min(), image.max(), image.dtype) == (0, 1, np.float32)
    drawing = lambda images: Task(lambda *_: ({}, {}), (), lambda *_: images)
    drawn = lambda images: np.asarray(made.from_unit(drawing(images)).sample({}, {}, None, {}))
    np.testing.assert_array_equal(to_uint8(drawn(image)), levels)
    assert drawn(np.array([-0.9, 0.0, 0.5])).tolist() == [-1, -1, 0]
    z = np.asarray(made.cube(jax.random.split(stream(0, "latent"), 1000), (10,)))
    assert z.shape == (1000, 10) and -1 <= z.min() < -0.99 and 0.99 < z.max() < 1
    # Five standard errors of the mean and of the mean square, 1/3.
    assert abs(z.mean()) < 5 / np.sqrt(3 * z.size)
    assert abs(np.square(z).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / z.size)


def test_the_demo_learns(tmp_path):
    make = load("ddpm_digits")
    small = {"channels": 8, "batch": 16}
    experiment = make(**small)._replace(evaluate=None, picture=None)
    identity = identify(make, **small)
    fit(experiment, tmp_path, identity=identity, steps=90, log_every=30)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["denoiser/loss"] for line in lines if "denoiser/loss" in line]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["classifier_mnist", "ddpm_mnist", "adversarial_diffusion_mnist"])
def test_mnist_experiments_read_mnist(name):
    experiment = load(name)()
    batch = experiment.data(0)[0]
    assert batch["image"].shape == (experiment.batch, 28, 28, 1)
    assert experiment.classes[0].startswith("0")


@pytest.mark.real_data
def test_adversarial_diffusion_without_weights_is_the_plain_experiment():
    """To the last operation: its initialiser, its training step and its sampler."""

    def programs(experiment):
        task, batch, key = experiment.task, experiment.data(0)[0], stream(0, "init")
        start = lambda key, batch: init(task, key, batch)
        state = jax.eval_shape(start, key, batch)
        keys = jax.random.split(key, 2)
        cond = {"label": batch["label"][:2]}
        yield jax.make_jaxpr(start)(key, batch)
        yield jax.make_jaxpr(make_step(task, seed=0))(state, batch)
        sample = functools.partial(task.sample, steps=2)
        yield jax.make_jaxpr(sample)(state.params, state.stats, keys, cond)

    plain = [str(program) for program in programs(load("ddpm_mnist")(channels=8))]
    make = load("adversarial_diffusion_mnist")
    assert [str(program) for program in programs(make(channels=8, alpha=0.0))] == plain
    assert [str(program) for program in programs(make(channels=8))] != plain


@pytest.mark.real_data
def test_the_edges_of_emoji_go_with_them_in_training_and_in_sampling():
    experiment = load("pix2pix_emoji")()
    batch = experiment.data(0)[0]
    assert batch["image"].shape == (experiment.batch, 64, 64, 3)
    assert batch["source"].shape == (experiment.batch, 64, 64, 1)
    drawn = edges({"image": to_uint8(batch["image"])})["source"]
    np.testing.assert_allclose(batch["source"], drawn, atol=1e-6)
    held_out = experiment.cond(170)["source"]
    assert held_out.shape == (170, 64, 64, 1)
    np.testing.assert_array_equal(held_out[165:], held_out[:5])  # there are 165


@pytest.mark.real_data
def test_cifar_experiment_reads_colour_images():
    experiment = load("ddpm_cifar10")(data="cifar10_jpeg", classes=10)
    batch = experiment.data(0)[0]
    assert batch["image"].shape == (128, 32, 32, 3)
    assert experiment.classes[0] == "airplane"


def test_an_identity_holds_defaults_and_changes_with_them():
    make = load("ddpm_digits")
    identity = identify(make, guidance=3.0)
    defaults = {n: p.default for n, p in inspect.signature(make).parameters.items()}
    assert identity == {"experiment": "ddpm_digits", "arguments": defaults | {"guidance": 3.0}}
    assert digest(identity) != digest(identify(make))
    assert digest(identity) == digest(identify(make, guidance=3.0))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("mlp_gan_mnist", {}, (64, 28, 28, 1)),
        ("dcgan_mnist", {}, (64, 32, 32, 1)),
        ("lsgan_mnist", {}, (64, 32, 32, 1)),
        ("wgan_mnist", {}, (64, 32, 32, 1)),
        ("wgan_gp_mnist", {}, (64, 32, 32, 1)),
        ("cgan_mnist", {}, (64, 32, 32, 1)),
        ("stacked_mnist", {"recipe": "dcgan"}, (64, 28, 28, 3)),
        ("stacked_mnist", {"recipe": "r3gan"}, (64, 32, 32, 3)),
        ("dcgan_cifar10", {"data": "cifar10_jpeg"}, (64, 32, 32, 3)),
        ("r3gan_cifar10", {"data": "cifar10_jpeg"}, (256, 32, 32, 3)),
        ("stylegan2_cifar10", {"data": "cifar10_jpeg"}, (64, 32, 32, 3)),
        ("dcgan_emoji", {}, (64, 64, 64, 3)),
        ("vae_mnist", {"binarised": True}, (128, 28, 28, 1)),
        ("beta_vae_mnist", {}, (128, 28, 28, 1)),
        ("conv_vae_mnist", {}, (128, 28, 28, 1)),
        ("cvae_mnist", {}, (128, 28, 28, 1)),
        ("vqvae_mnist", {}, (64, 28, 28, 1)),
        ("autoencoder_kl_cifar10", {}, (32, 32, 32, 3)),
    ],
)
def test_the_networks_of_experiments_fit_their_data(name, arguments, shape):
    experiment = load(name)(**arguments)
    task, batch = experiment.task, experiment.data(0)[0]
    assert batch["image"].shape == shape
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    start = lambda key, batch: init(task, key, batch)
    state = jax.eval_shape(start, stream(0, "init"), batch)
    assert jax.eval_shape(make_step(task, seed=0), state, batch)[0] == state
    keys = jax.random.split(stream(0, "sample"), 2)
    assert jax.eval_shape(task.sample, state.params, state.stats, keys, {}).shape == (2, *shape[1:])
