"""The textbook's VAE of MNIST ends where PyTorch's does: ten epochs of the same batches.

Needs MNIST, and PyTorch: it runs in an environment that has the `parity` extra.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = [pytest.mark.quality, pytest.mark.real_data]


def test_the_bound_is_pytorchs(capsys):
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn import functional as f

    from aigc_jax.core.keys import stream
    from aigc_jax.core.parallel import make_mesh
    from aigc_jax.data.batches import whole
    from aigc_jax.data.sources import tfds
    from aigc_jax.data.transforms import normalise
    from aigc_jax.models.vae import MLPDecoder, MLPEncoder
    from aigc_jax.train.compile import jit_step
    from aigc_jax.train.model import make_model, make_sampler
    from aigc_jax.train.step import init
    from experiments.vae_mnist import evaluate_bounds, vae_mnist

    experiment, mesh = vae_mnist(), make_mesh(jax.devices()[:1])
    data = experiment.data(0)
    state = init(experiment.task, stream(0, "init"), data[0])
    step = jit_step(experiment.task, mesh, seed=0)

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(784, 400), nn.Linear(400, 40)
            self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

        def forward(self, x):
            mu, logvar = self.fc2(f.relu(self.fc1(x))).chunk(2, -1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            logits = self.fc4(f.relu(self.fc3(z)))
            nll = f.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            return nll + 0.5 * torch.sum(mu**2 + logvar.exp() - 1 - logvar)

    torch.manual_seed(0)
    net = VAE()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    levels = lambda image: torch.tensor((np.asarray(image).reshape(-1, 784) + 1) / 2)
    for i in range(experiment.steps):
        batch = data[i]
        state, _ = step(state, jax.tree.map(jnp.asarray, batch))
        x = levels(batch["image"])
        optimiser.zero_grad(set_to_none=True)
        (net(x) / len(x)).backward()
        optimiser.step()

    set_ = tfds("mnist")
    sampler = make_sampler(experiment.task, mesh)
    bounds = evaluate_bounds(MLPEncoder(20, 400), MLPDecoder((28, 28, 1), 400), set_)
    ours = bounds(make_model(state.params, state.stats, sampler))["negative_elbo/test-10000"]
    with torch.no_grad():
        test = whole(set_.test, normalise)["image"]
        theirs = sum(float(net(levels(part))) for part in np.split(test, 10)) / len(test)
    with capsys.disabled():
        print(f"\n-ELBO of 10,000 test images: ours {ours:.2f}, PyTorch's {theirs:.2f} nats")
    assert abs(ours - theirs) <= 0.5
