"""The networks of PyTorch's DCGAN tutorial, with its weights, compute the same here."""

from collections import OrderedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.dcgan import Discriminator, Generator
from aigc_jax.pretrained.dcgan import read_dcgan

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # PyTorch's own warnings

LATENT = 100
# Widths of the generator, and of the discriminator the other way round; colours.
SIZES = {64: ((512, 256, 128, 64), 3), 32: ((256, 128, 64), 1), 16: ((16, 8), 3)}


def theirs(kind, size):
    """Build one of the two as the tutorial does, with weights and statistics that matter."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    widths, colours = SIZES[size]
    layers = []
    if kind == "generator":
        for i, (c, d) in enumerate(zip((LATENT, *widths), (*widths, colours), strict=True)):
            layers.append(nn.ConvTranspose2d(c, d, 4, 2 if i else 1, 1 if i else 0, bias=False))
            last = i == len(widths)
            layers += [nn.Tanh()] if last else [nn.BatchNorm2d(d), nn.ReLU(True)]
    else:
        widths = widths[::-1]
        for i, (c, d) in enumerate(zip((colours, *widths), (*widths, 1), strict=True)):
            last = i == len(widths)
            layers.append(nn.Conv2d(c, d, 4, 1 if last else 2, 0 if last else 1, bias=False))
            layers += [nn.BatchNorm2d(d)] * (0 < i < len(widths))
            layers += [] if last else [nn.LeakyReLU(0.2, inplace=True)]
    model = nn.Sequential(OrderedDict(main=nn.Sequential(*layers)))
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.normal_(1, 0.3)
                layer.bias.normal_(0, 0.3)
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
            elif hasattr(layer, "weight"):
                # Strides spread a pixel's sight, of 4 places of a kernel's 16, in a generator; a
                # variance of 2 for each makes up for what the nonlinearities take.
                c = layer.weight.shape[0 if kind == "generator" else 1]
                seen = (4 if kind == "generator" else 16) * c
                layer.weight.normal_(0, (2 / seen) ** 0.5)
    return model


def ours(kind, size):
    widths, colours = SIZES[size]
    return Generator(widths, colours) if kind == "generator" else Discriminator(widths[::-1])


def inputs(kind, size, b=4):
    rng = np.random.default_rng(0)
    if kind == "generator":
        z = rng.normal(size=(b, LATENT)).astype(np.float32)
        return z, z[:, :, None, None]
    x = rng.uniform(-1, 1, (b, size, size, SIZES[size][1])).astype(np.float32)
    return x, x.transpose(0, 3, 1, 2).copy()


def read(model):
    params, stats = read_dcgan({name: a.numpy() for name, a in model.state_dict().items()})
    return {"params": params, **stats}


def as_ours(y):
    """Bring a network's output to our axes: (b, c, h, w) -> (b, h, w, c), or (b,) logits."""
    y = y.detach().numpy()
    return y.reshape(-1) if y.shape[1:] == (1, 1, 1) else y.transpose(0, 2, 3, 1)


@pytest.fixture(params=[1, 4], ids=["cpu", "accelerator"])
def form(request, monkeypatch):
    """Run the convolutions written for a CPU, and those of accelerators."""
    monkeypatch.setattr(jax, "device_count", lambda: request.param)


CASES = [(kind, size) for kind in ("generator", "discriminator") for size in (64, 32)]


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_outputs_in_use_and_in_training(kind, size, form):
    import torch

    model, network = theirs(kind, size), ours(kind, size)
    variables = read(model)
    x, theirs_x = inputs(kind, size)
    for train in (False, True):
        with torch.no_grad():
            expected = as_ours(model.train(train)(torch.from_numpy(theirs_x)))
        run = jax.jit(
            lambda v, x, train=train: network.apply(v, x, train=train, mutable=["batch_stats"])
        )
        actual, updated = run(variables, x)
        assert actual.shape == expected.shape and expected.std() > 0.1
        np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)
    # Their running variances are of unbiased estimates; means are means.
    after = read(model)["batch_stats"]
    for name, norm in updated["batch_stats"].items():
        np.testing.assert_allclose(norm["mean"], after[name]["mean"], atol=1e-4)
        np.testing.assert_allclose(norm["var"], after[name]["var"], rtol=0.03)


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_gradients_in_training(kind, form):
    import torch

    model, network = theirs(kind, 16).train(), ours(kind, 16)
    variables = read(model)
    x, theirs_x = inputs(kind, 16)
    output = model(torch.from_numpy(theirs_x))
    output.square().mean().backward()
    # Gradients are laid out as what they are of.
    state = model.state_dict() | {n: p.grad for n, p in model.named_parameters()}
    expected, _ = read_dcgan({name: a.numpy() for name, a in state.items()})

    def loss(params):
        y, _ = network.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(y**2)

    actual = jax.jit(jax.grad(loss))(variables["params"])
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_they_are_as_large(kind, size):
    count = sum(p.numel() for p in theirs(kind, size).parameters())
    x = jnp.zeros(inputs(kind, size)[0].shape)
    shapes = jax.eval_shape(ours(kind, size).init, jax.random.key(0), x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
