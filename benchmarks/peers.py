"""Measure beside PyTorch, diffusers and transformers: `python -m benchmarks.peers [CASE ...]`.

Each case does the same work on both sides, from the same weights where there is a converter: first
the difference of what they compute, then the ratio of speeds, over rounds in which the two
alternate, so that a machine which slows down for a while slows both. The peer is the best of its
variants (eager, `torch.compile`, channels last, CUDA's graphs), found in a first round. A ratio
over 1 says that we are faster. On a GPU, `--device cuda --dtype bfloat16 --batch 256 --size ddpm`:
PyTorch then trains by its autocast, and samples and writes with weights of that type.

Needs the `parity` extra, and PyTorch before it: `pip install torch==2.13.0`.
"""

import argparse
import contextlib
import copy
import functools
import importlib.metadata
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.parallel import make_mesh, put_batch
from aigc_jax.core.types import Task
from aigc_jax.data import batches, sources, transforms
from aigc_jax.functional.adversarial import NON_SATURATING
from aigc_jax.functional.schedules import linear, uniform_times
from aigc_jax.models import dcgan
from aigc_jax.models.gpt import GPT
from aigc_jax.models.vae import MLPDecoder, MLPEncoder
from aigc_jax.pretrained.gpt2 import read_gpt2
from aigc_jax.pretrained.unet2d import read_unet2d
from aigc_jax.samplers.autoregressive import generate
from aigc_jax.samplers.diffusion import sample_ddim
from aigc_jax.tasks.diffusion import diffusion, predictor
from aigc_jax.tasks.gan import gan
from aigc_jax.tasks.lm import adamw, decoder, lm
from aigc_jax.tasks.vae import vae
from aigc_jax.train.compile import jit_init, jit_step
from benchmarks import record


class Setting(NamedTuple):
    """What both sides compute with.

    Attributes:
        device: PyTorch's name of it; JAX takes its default.
        dtype: of the computation; where a network trains, weights stay float32.
        size: of the U-Nets.
        batch: in place of a case's own, where it says so.
    """

    device: str = "cpu"
    dtype: str = "float32"
    size: str = "small"
    batch: int | None = None

    def tensor(self, x: np.ndarray, **kwargs: Any) -> Any:
        import torch

        return torch.tensor(x, device=self.device, **kwargs)

    def images(self, x: np.ndarray, layout: Any) -> Any:  # (b, h, w, c) -> (b, c, h, w)
        return self.tensor(x.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)

    def autocast(self) -> Any:
        import torch

        dtype = getattr(torch, self.dtype)
        return torch.autocast(self.device, dtype, enabled=self.dtype != "float32")

    def wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def compiled(self, net: Any) -> dict[str, Any]:
        """Return the network's variants: as it is, and compiled."""
        import torch

        variants = {"eager": net, "compile": torch.compile(copy.deepcopy(net))}
        if self.device == "cuda":
            graphs = torch.compile(copy.deepcopy(net), mode="reduce-overhead")
            variants["compile, graphs"] = graphs
        return variants


class Case(NamedTuple):
    """One piece of work on both sides.

    Attributes:
        ours: does `ours_units` of it, and waits for the result.
        peers: variant -> what does `peer_units` of it.
        ours_units: examples a call.
        peer_units: likewise.
        difference: the largest absolute difference of what the two compute, from the same weights.
    """

    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    ours_units: int
    peer_units: int
    difference: float | None = None


# Cases


def ddpm_step(on: Setting) -> Case:
    """A DDPM training step, of 16 images: noise, forward, backward, clipping, Adam."""
    import torch
    from torch import nn

    batch = on.batch or 16
    net, unet, params = unets(on.size)
    schedule = linear()
    alpha_bar = on.tensor(np.asarray(schedule.alpha(np.arange(1000.0))) ** 2)
    image = np.random.default_rng(0).uniform(-1, 1, (batch, 32, 32, 3)).astype(np.float32)

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-4))
    network = unet.clone(dtype=jnp.dtype(on.dtype))
    task = diffusion(network, schedule, tx, shape=(32, 32, 3))._replace(average={})
    advance = stepper(task, {"image": image}, {"denoiser": params})

    def step(layout: Any, net: Any) -> Callable[[], Any]:
        optimiser = torch.optim.Adam(net.parameters(), 2e-4, fused=True)
        x0 = on.images(image, layout)

        def run() -> None:
            t = torch.randint(0, 1000, (batch,), device=on.device)
            eps = torch.randn_like(x0)
            share = alpha_bar[t][:, None, None, None]
            with on.autocast():
                output = net(share.sqrt() * x0 + (1 - share).sqrt() * eps, t).sample
            optimiser.zero_grad(set_to_none=True)
            nn.functional.mse_loss(output.float(), eps).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            on.wait()

        return run

    difference = output_difference(net, unet, params, image[:2])
    return Case(advance, torch_variants(on, step, net.train()), batch, batch, difference)


def ddim(on: Setting, batch: int) -> Case:
    """50 steps of DDIM from the same noise."""
    import torch
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    net, unet, params = unets(on.size)
    schedule = linear()
    times = uniform_times(schedule, 50)
    noise = np.random.default_rng(0).normal(size=(batch, 32, 32, 3)).astype(np.float32)
    keys = example_keys(stream(0, "sample"), jnp.arange(batch))
    x = jnp.asarray(noise)
    network = unet.clone(dtype=jnp.dtype(on.dtype))

    @jax.jit
    def draw(params: Any, x: Any) -> Any:
        predict = predictor(network, schedule, {"denoiser": params}, {})
        return sample_ddim(predict, schedule, times, x, keys, clip=1.0)

    scheduler = DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=True)
    scheduler.set_timesteps(50)
    times_on_device = scheduler.timesteps.to(on.device)  # of which a loop would copy one a step

    def sampler(layout: Any, net: Any) -> Callable[[], Any]:
        start = on.images(noise, layout).to(dtype)

        @torch.inference_mode()
        def run() -> Any:
            x: Any = start
            for there, t in zip(times_on_device, scheduler.timesteps.tolist(), strict=True):
                x = scheduler.step(net(x, there).sample, t, x).prev_sample  # pyright: ignore
            on.wait()
            return x

        return run

    net, dtype = net.eval(), getattr(torch, on.dtype)
    # Of the networks: 50 steps of one with random weights amplify rounding tenfold a step, until
    # nothing agrees. `tests/parity` holds the samplers themselves together.
    difference = output_difference(net, unet, params, np.repeat(noise[:1], 4, 0))
    ours = lambda: draw(params, x).block_until_ready()
    peers = torch_variants(on, sampler, net.to(dtype))
    return Case(ours, peers, batch, batch, difference)


def vae_step(on: Setting, batch: int, inner_steps: int = 20) -> Case:
    """A step of the 784-400-20 VAE in float32, where dispatch weighs."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    shape = (inner_steps, batch, 28, 28, 1)
    image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    task = vae(MLPEncoder(20, 400), MLPDecoder((28, 28, 1), 400), optax.adam(1e-3), latent=20)
    advance = stepper(task, {"image": image}, inner_steps=inner_steps)

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(784, 400), nn.Linear(400, 40)
            self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

        def forward(self, x: Any) -> Any:
            mu, logvar = self.fc2(f.relu(self.fc1(x))).chunk(2, -1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            logits = self.fc4(f.relu(self.fc3(z)))
            nll = f.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            return nll + 0.5 * torch.sum(mu**2 + logvar.exp() - 1 - logvar)

    data = on.tensor((image.reshape(inner_steps, batch, 784) + 1) / 2)

    def step(net: Any) -> Callable[[], Any]:
        optimiser = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

        def run() -> None:
            for x in data:
                optimiser.zero_grad(set_to_none=True)
                (net(x) / batch).backward()
                optimiser.step()
            on.wait()

        return run

    nets = on.compiled(VAE().to(on.device))
    peers = {name: step(net) for name, net in nets.items()}
    return Case(advance, peers, batch * inner_steps, batch * inner_steps)


def dcgan_step(on: Setting) -> Case:
    """A step of DCGAN at 64×64, of 64 images: the discriminator's Adam, then the generator's."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    def block(convolution: Any, width: int, activation: Any, norm: bool = True) -> list[Any]:
        return [convolution, *([nn.BatchNorm2d(width)] if norm else []), activation]

    torch.manual_seed(0)
    batch = on.batch or 64
    widths, up, down = (100, 512, 256, 128, 64), [], []
    for i, (c, d) in enumerate(itertools.pairwise(widths)):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        paint = nn.ConvTranspose2d(c, d, 4, stride, padding, bias=False)
        up += block(paint, d, nn.ReLU(inplace=True))
    for i, (c, d) in enumerate(itertools.pairwise((3, *widths[:0:-1]))):
        conv = nn.Conv2d(c, d, 4, 2, 1, bias=False)
        down += block(conv, d, nn.LeakyReLU(0.2, inplace=True), norm=i > 0)
    nets = (
        nn.Sequential(*up, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh()),
        nn.Sequential(*down, nn.Conv2d(512, 1, 4, 1, 0, bias=False), nn.Flatten(0)),
    )
    for parameter in itertools.chain(*(net.parameters() for net in nets)):
        if parameter.ndim == 4:
            nn.init.normal_(parameter, 0.0, 0.02)

    def step(layout: Any, generator: Any, discriminator: Any) -> Callable[[], Any]:
        tune = functools.partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)
        ours, theirs = tune(generator.parameters()), tune(discriminator.parameters())
        real = on.images(image, layout)

        def run() -> None:
            with on.autocast():
                fake = generator(torch.randn(batch, 100, 1, 1, device=on.device))
                on_real, on_fake = discriminator(real), discriminator(fake.detach())
            theirs.zero_grad(set_to_none=True)
            (f.softplus(-on_real.float()).mean() + f.softplus(on_fake.float()).mean()).backward()
            theirs.step()
            with on.autocast():
                judged = discriminator(fake)
            ours.zero_grad(set_to_none=True)
            f.softplus(-judged.float()).mean().backward()
            ours.step()
            on.wait()

        return run

    image = np.random.default_rng(0).uniform(-1, 1, (batch, 64, 64, 3)).astype(np.float32)
    adam = optax.adam(2e-4, b1=0.5)
    dtype = jnp.dtype(on.dtype)
    pair = dcgan.Generator(dtype=dtype), dcgan.Discriminator(dtype=dtype)
    task = gan(*pair, NON_SATURATING, adam, adam, latent=100)
    return Case(stepper(task, {"image": image}), torch_variants(on, step, *nets), batch, batch)


def input_pipeline(batch: int = 128, steps: int = 100) -> Case:
    """Shuffled batches of 28×28 images held in memory, as float32 in [−1, 1]."""
    import torch
    from torch.utils.data import DataLoader, Dataset, TensorDataset

    image = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    label = np.arange(60_000) % 10
    columns = {"image": image, "label": label}
    source = sources.arrays(columns, columns).train
    ready = batches.prefetch(batches.batches(source, batch, 0, transform=transforms.normalise))

    class Items(Dataset):
        """What a user writes first: an item at a time."""

        def __len__(self) -> int:
            return len(image)

        def __getitem__(self, i: int) -> Any:
            return torch.from_numpy(image[i]).float() / 127.5 - 1, label[i]

    class Gathered(TensorDataset):
        """What a careful user writes: a batch at a time."""

        def __getitems__(self, index: list[int]) -> Any:
            places = torch.tensor(index)
            x, y = (tensor.index_select(0, places) for tensor in self.tensors)
            return x.float() / 127.5 - 1, y

    tensors = Gathered(torch.from_numpy(image), torch.from_numpy(label))

    def loader(dataset: Any, **options: Any) -> Callable[[], Any]:
        forever = itertools.chain.from_iterable(
            DataLoader(dataset, batch, shuffle=True, drop_last=True, **options)
            for _ in itertools.count()
        )

        def run() -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in its workers; more wait for each other, and are slower
            for _ in range(steps):
                next(forever)
            torch.set_num_threads(threads)

        return run

    whole = {"collate_fn": lambda x: x}
    peers = {
        "items": loader(Items()),
        "batches": loader(tensors, **whole),
        "items, 2 workers": loader(Items(), num_workers=2, persistent_workers=True),
    }
    return Case(lambda: [next(ready) for _ in range(steps)], peers, batch * steps, batch * steps)


def torch_gpt(network: GPT, params: Any) -> Any:
    """Build PyTorch's form of a GPT-2 without biases, of our weights by the networks' names."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    heads, width = network.heads, network.width

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
            self.qkv, self.out = (nn.Linear(width, n, bias=False) for n in (3 * width, width))
            self.wide = nn.Linear(width, 4 * width, bias=False)
            self.narrow = nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Any) -> Any:
            q, k, v = (
                y.view(*y.shape[:2], heads, -1).transpose(1, 2)
                for y in self.qkv(self.norm1(x)).split(width, 2)
            )
            y = f.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(x.shape))
            return x + self.narrow(f.gelu(self.wide(self.norm2(x)), approximate="tanh"))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(network.vocabulary, width)
            self.places = nn.Embedding(network.context, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(network.layers)))
            self.norm = nn.LayerNorm(width, bias=False)

        def forward(self, tokens: Any, next_tokens: Any = None) -> Any:
            """Return the logits; or the loss, so that it is compiled with them."""
            x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
            logits = self.norm(self.blocks(x)) @ self.tokens.weight.T
            if next_tokens is None:
                return logits
            return f.cross_entropy(logits.flatten(0, 1).float(), next_tokens.flatten())

    net: Any = Net()
    # Linear layers are (out, in), and queries stand before all keys.
    ours = jax.tree.map(np.asarray, params)
    put = lambda parameter, x: parameter.data.copy_(torch.tensor(np.ascontiguousarray(x)))
    put(net.tokens.weight, ours["tokens"]["embedding"])
    put(net.places.weight, ours["positions"]["embedding"])
    put(net.norm.weight, ours["norm"]["scale"])
    for i, block in enumerate(net.blocks):
        of = jax.tree.map(lambda x, i=i: x[i], ours["blocks"])
        qkv = of["attention"]["qkv"]["kernel"].swapaxes(1, 2)  # (in, heads, 3, d)
        put(block.qkv.weight, qkv.reshape(width, -1).T)
        put(block.out.weight, of["attention"]["out"]["kernel"].reshape(width, width).T)
        put(block.wide.weight, of["mlp"]["in"]["kernel"].T)
        put(block.narrow.weight, of["mlp"]["out"]["kernel"].T)
        put(block.norm1.weight, of["attention_norm"]["scale"])
        put(block.norm2.weight, of["mlp_norm"]["scale"])
    return net


def torch_adamw(net: Any, learning_rate: float) -> Any:
    """Build PyTorch's form of `tasks.lm.adamw`, but for the clipping."""
    import torch

    matrices = [p for p in net.parameters() if p.ndim > 1]
    scales = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0}]
    return torch.optim.AdamW(groups, learning_rate, (0.9, 0.99), fused=True)


def gpt_step(on: Setting, size: str, batch: int, context: int, inner_steps: int = 10) -> Case:
    """A step of nanoGPT's recipe for a CPU or for a GPU, without dropout: AdamW, clipped."""
    import torch
    from torch import nn

    layers, heads, width, vocabulary = SIZES[size]
    if vocabulary > 1000:
        vocabulary = -(-vocabulary // 64) * 64  # as nanoGPT pads it, for matrix units
    network = GPT(vocabulary, context, layers, heads, width, bias=False, scan=False)
    shape = (inner_steps, on.batch or batch, context + 1)
    tokens = np.random.default_rng(0).integers(0, network.vocabulary, shape).astype(np.int32)
    task = lm(network.clone(dtype=jnp.dtype(on.dtype)), adamw(1e-3, b2=0.99))
    params = jit_init(task, make_mesh())(stream(0, "init"), {"tokens": tokens[0]}).params
    advance = stepper(task, {"tokens": tokens}, params, inner_steps)
    data = on.tensor(tokens, dtype=torch.long)

    def step(net: Any) -> Callable[[], Any]:
        optimiser = torch_adamw(net, 1e-3)

        def run() -> None:
            for x in data:
                optimiser.zero_grad(set_to_none=True)
                with on.autocast():
                    loss = net(x[:, :-1], x[:, 1:])
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
            on.wait()

        return run

    net = torch_gpt(network, params["gpt"]).to(on.device)
    ours = exact(network)(params["gpt"], tokens[0, :1, :-1])
    with torch.inference_mode():
        theirs = net(data[0, :1, :-1]).cpu().numpy()
    difference = float(np.abs(np.asarray(ours) - theirs).max())
    peers = {name: step(each) for name, each in on.compiled(net).items()}
    each = tokens[:, :, 1:].size
    return Case(advance, peers, each, each, difference)


def gpt_generate(on: Setting, batch: int, size: str, length: int = 128) -> Case:
    """Greedy decoding on a cache, against transformers' `generate` of the same weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads, width, vocabulary = SIZES[size]
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=256,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    net: Any = GPT2LMHeadModel(config).eval()
    with tempfile.TemporaryDirectory() as directory:
        net.save_pretrained(directory)
        network, params = read_gpt2(directory)
    prompt = np.random.default_rng(0).integers(0, vocabulary, (batch, 32)).astype(np.int32)
    keys = example_keys(stream(0, "sample"), jnp.arange(batch))
    logits = exact(network)(params, prompt)
    with torch.inference_mode():
        theirs = net(torch.tensor(prompt, dtype=torch.long)).logits.numpy()
    difference = float(np.abs(np.asarray(logits) - theirs).max())
    net = net.to(on.device, getattr(torch, on.dtype))
    network = network.clone(dtype=jnp.dtype(on.dtype))
    params = jax.tree.map(lambda x: jnp.asarray(x, on.dtype), params)

    @jax.jit
    def write(params: Any, tokens: Any) -> Any:
        options = {"length": length, "temperature": 0.0}
        return generate(decoder(network, {"gpt": params}), tokens, None, keys, **options)

    tokens = on.tensor(prompt, dtype=torch.long)
    options = {"do_sample": False, "max_new_tokens": length, "pad_token_id": 0}

    def peer(**more: Any) -> Callable[[], Any]:
        mask = torch.ones_like(tokens)

        def run() -> Any:
            with torch.inference_mode():
                texts = net.generate(tokens, attention_mask=mask, **options, **more)
            on.wait()
            return texts

        return run

    peers = {"dynamic cache": peer(), "static cache": peer(cache_implementation="static")}
    ours = lambda: jax.block_until_ready(write(params, prompt))
    return Case(ours, peers, batch * length, batch * length, difference)


# layers, heads, width, vocabulary: nanoGPT's for a CPU, and for a GPU, and the smallest GPT-2
SIZES = {"cpu": (4, 4, 128, 65), "gpu": (6, 6, 384, 65), "gpt2": (12, 12, 768, 50257)}

CASES: dict[str, Callable[[Setting], Case]] = {
    "ddpm_step": ddpm_step,
    "ddim_1": lambda on: ddim(on, 1),
    "ddim_16": lambda on: ddim(on, 16),
    "ddim_batch": lambda on: ddim(on, on.batch or 64),
    "dcgan_step": dcgan_step,
    "vae_step_128": lambda on: vae_step(on, 128),
    "vae_step_8": lambda on: vae_step(on, 8),
    "gpt_step": lambda on: gpt_step(on, "cpu", 12, 64),
    "gpt_gpu_step": lambda on: gpt_step(on, "gpu", 64, 256),
    "gpt2_step": lambda on: gpt_step(on, "gpt2", 8, 1024),
    "gpt_cpu_generate_1": lambda on: gpt_generate(on, 1, "cpu"),
    "gpt_cpu_generate_8": lambda on: gpt_generate(on, 8, "cpu"),
    "gpt_gpu_generate_1": lambda on: gpt_generate(on, 1, "gpu"),
    "gpt_gpu_generate_8": lambda on: gpt_generate(on, 8, "gpu"),
    "gpt2_generate_1": lambda on: gpt_generate(on, 1, "gpt2"),
    "gpt2_generate_8": lambda on: gpt_generate(on, 8, "gpt2"),
    "input": lambda on: input_pipeline(),
}


# Both sides


def unets(size: str) -> tuple[Any, Any, Any]:
    """Make diffusers' U-Net with random weights, and ours with the same."""
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel

    torch.manual_seed(0)
    channels = {"small": (32, 64), "medium": (64, 128, 128), "ddpm": (128, 256, 256, 256)}[size]
    levels = len(channels)
    down = ["DownBlock2D"] * levels
    up = ["UpBlock2D"] * levels
    down[1], up[-2] = "AttnDownBlock2D", "AttnUpBlock2D"
    net = UNet2DModel(
        sample_size=32,
        block_out_channels=channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=2,
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        unet, params = read_unet2d(Path(folder))
    return net, unet, params


def output_difference(net: Any, unet: Any, params: Any, image: np.ndarray) -> float:
    """Return the largest difference of the two U-Nets' outputs, one time an image."""
    import torch

    t = np.linspace(10, 990, len(image)).round()
    ours = exact(unet)(params, image, jnp.asarray(t))
    with torch.inference_mode():
        theirs = net(torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(t)).sample
    return float(np.abs(np.asarray(ours) - theirs.numpy().transpose(0, 2, 3, 1)).max())


def exact(network: Any) -> Callable[..., Any]:
    """Compile a network in the precision of its types, for differences."""
    with_params = lambda params, *args: network.apply({"params": params}, *args)

    def apply(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return jax.jit(with_params)(*args)

    return apply


def stepper(
    task: Task, batch: dict[str, np.ndarray], params: Any = None, inner_steps: int = 1
) -> Callable[[], Any]:
    """Make our side of a training case: a call is a step on a batch that is on the device."""
    mesh, axis = make_mesh(), int(inner_steps > 1)
    first = {key: x[0] if axis else x for key, x in batch.items()}
    state = jit_init(task, mesh)(stream(0, "init"), first)
    if params is not None:
        state = state._replace(params=jax.tree.map(jnp.asarray, params))
    step = jit_step(task, mesh, seed=0, inner_steps=inner_steps)
    on_device = put_batch(batch, mesh, axis)

    def advance() -> None:
        nonlocal state
        state, metrics = step(state, on_device)
        jax.block_until_ready(metrics)

    return advance


def torch_variants(
    on: Setting, make: Callable[..., Callable[[], Any]], *nets: Any
) -> dict[str, Any]:
    """Make the variants of a peer, `make(layout, *nets)`: each layout, eager and compiled."""
    import torch

    modes: dict[str, Any] = {"eager": None, "compile": "default"}
    if on.device == "cuda":
        modes["compile, graphs"] = "reduce-overhead"
    variants = {}
    for name, layout in (
        ("contiguous", torch.contiguous_format),
        ("channels last", torch.channels_last),
    ):
        for how, mode in modes.items():
            own = copy.deepcopy(nets)
            for net in own:
                net.to(on.device, memory_format=layout)
                if mode:
                    net.compile(mode=mode)
            variants[f"{how}, {name}"] = make(layout, *own)
    return variants


# Timing


def timed(call: Callable[[], Any], times: int) -> float:
    """Return seconds a call."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def measure(
    name: str, case: Case, rounds: int, slot: float, variants: list[str] | None = None
) -> dict[str, Any]:
    """Find the best variant of the peer, then alternate with it."""
    seconds = {}
    for variant, call in case.peers.items():
        if variants and variant not in variants:
            continue
        try:
            call()  # compiles
            call()
        except Exception as error:  # a variant that does not run here is not the best
            print(f"{name}: {variant} does not run: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        seconds[variant] = min(timed(call, 1) for _ in range(3))
    if not seconds:
        raise ValueError(f"no variant of the peer ran; there are {', '.join(case.peers)}")
    best = min(seconds, key=seconds.__getitem__)
    case.ours()
    ours_seconds = min(timed(case.ours, 1) for _ in range(3))
    times = [max(1, round(slot / s)) for s in (ours_seconds, seconds[best])]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(timed(case.ours, times[0]) / case.ours_units)
        time.sleep(0.3)  # until the threads of the one no longer spin beside the other
        theirs.append(timed(case.peers[best], times[1]) / case.peer_units)
        time.sleep(0.3)
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "case": name,
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(ratios[len(ratios) // 4], 3),  # the quartiles
        "highest": round(ratios[-1 - len(ratios) // 4], 3),
        "rounds": rounds,
        "difference": case.difference,
        "examples_per_second": round(1 / statistics.median(ours), 2),
        "peer": best,
        "peer_examples_per_second": round(1 / statistics.median(theirs), 2),
        "peer_variants": {v: round(case.peer_units / s, 2) for v, s in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure beside PyTorch and diffusers.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--size", default="small", choices=["small", "medium", "ddpm"])
    parser.add_argument("--batch", type=int, help="of ddpm_step, ddim_batch, dcgan_step, gpt steps")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--variants", nargs="+", help="of the peer, such as compile; all, and the best counts"
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="of each side, in each round")
    parser.add_argument("--name", default="peers", help="of the file in benchmarks/results")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {min(unknown)!r}; the cases are {', '.join(CASES)}")
    on, rows = Setting(options.device, options.dtype, options.size, options.batch), []
    if on.device != {"gpu": "cuda"}.get(jax.default_backend(), "cpu"):
        parser.error(f"--device {on.device}, but JAX runs on {jax.default_backend()}")
    versions, failed, before = {}, [], record.read(options.name)
    for module in ("torch", "diffusers", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[module] = importlib.metadata.version(module)
    for name in options.cases or CASES:
        try:
            case = CASES[name](on)
            allow_tensor_float(on)  # once the difference is known: by default XLA does
            row = measure(name, case, options.rounds, options.seconds, options.variants)
        except Exception as error:  # the others are still worth measuring
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {str(error)[:500]}", flush=True)
            continue
        row |= {"dtype": on.dtype, "batch": on.batch}
        row["size"] = options.size if name.startswith("dd") else None
        rows.append(row)
        gap = "" if row["difference"] is None else f"  difference {row['difference']:.1e}"
        print(
            f"{name:14} {row['ratio']:5.2f} × ({row['lowest']:.2f} to {row['highest']:.2f})  "
            f"{row['examples_per_second']:,.1f} against {row['peer_examples_per_second']:,.1f} "
            f"examples/s ({row['peer']}){gap}",
            flush=True,
        )
        path = record.write(options.name, rows, **versions)  # a later case may run out of time
    for line in record.regressions(before, rows, ("case", "size"), "ratio"):
        print(f"slower than before: {line}")
    if rows:
        print(f"written to {path}")
    if failed:
        raise SystemExit(f"these did not run: {', '.join(failed)}")


def allow_tensor_float(on: Setting) -> None:
    """Let PyTorch multiply float32 matrices on a GPU as XLA does unasked, and tune convolutions."""
    import torch

    if on.device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True


if __name__ == "__main__":
    main()
