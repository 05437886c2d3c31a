"""nanoGPT's CPU recipe ends where PyTorch's form of the same network does, on the same batches.

Needs tiny Shakespeare, and PyTorch: it runs in an environment that has the `parity` extra.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = [pytest.mark.quality, pytest.mark.real_data]


def test_the_loss_is_pytorchs(capsys):
    torch = pytest.importorskip("torch")
    from torch.nn import functional as f

    from aigc_jax.core.keys import stream
    from aigc_jax.core.parallel import make_mesh
    from aigc_jax.data.tokens import Windows, text_stream
    from aigc_jax.models.gpt import GPT
    from aigc_jax.train.compile import jit_init, jit_step
    from aigc_jax.train.model import make_model, make_sampler
    from benchmarks.peers import torch_adamw, torch_gpt
    from experiments.gpt_shakespeare_char import gpt_shakespeare_char

    experiment, mesh = gpt_shakespeare_char(), make_mesh(jax.devices()[:1])
    data, text = experiment.data(0), text_stream("tiny_shakespeare", kind="char")
    state = jit_init(experiment.task, mesh)(stream(0, "init"), data[0])
    step = jit_step(experiment.task, mesh, seed=0)
    network = GPT(text.tokenizer.size, 64, 4, 4, 128, bias=False, scan=False)
    net = torch_gpt(network, state.params["gpt"])
    optimiser = torch_adamw(net, 1e-3)

    def nats(windows, reduction="mean"):
        x = torch.tensor(np.asarray(windows), dtype=torch.long)
        return f.cross_entropy(
            net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten(), reduction=reduction
        )

    for i in range(experiment.steps):
        batch = data[i]
        state, _ = step(state, jax.tree.map(jnp.asarray, batch))
        # nanoGPT's schedule: up over 100 steps, then down a cosine to a tenth.
        down = 0.5 * (1 + np.cos(np.pi * (i - 100) / (experiment.steps - 100)))
        optimiser.param_groups[0]["lr"] = optimiser.param_groups[1]["lr"] = (
            1e-3 * i / 100 if i < 100 else 1e-4 + 9e-4 * down
        )
        optimiser.zero_grad(set_to_none=True)
        nats(batch["tokens"]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()

    sampler = make_sampler(experiment.task, mesh)
    scores = experiment.evaluate(make_model(state.params, state.stats, sampler))
    test = Windows(text.test, 65, 64)
    rows = test.read(np.arange(len(test)))["tokens"]
    with torch.inference_mode():
        theirs = float(nats(rows))
        # What nanoGPT prints: the mean of 20 batches of 12 windows, drawn at random.
        anywhere, rng = Windows(text.test, 65, 1), np.random.default_rng(0)
        drawn = [
            float(nats(anywhere.read(rng.integers(0, len(anywhere), 240))["tokens"]))
            for _ in range(100)
        ]
    ours = scores[f"nats_per_token/test-{len(test) * 64}"]
    with capsys.disabled():
        print(
            f"\nnats a character of the held-out tenth: ours {ours:.4f}, PyTorch's {theirs:.4f}; "
            f"of 240 windows {np.mean(drawn):.4f} ± {np.std(drawn):.4f}, "
            f"the least of 9 such {np.mean(np.min(np.reshape(drawn[:99], (11, 9)), 1)):.4f}"
        )
    assert abs(ours - theirs) <= 0.02
