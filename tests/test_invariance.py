"""The same seed trains the same model, however a batch is split: one row a family."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.keys import stream
from aigc_jax.core.parallel import lay_out, make_mesh, put_batch, put_state
from aigc_jax.core.types import State, Task
from aigc_jax.functional import schedules
from aigc_jax.functional.adversarial import (
    NON_SATURATING,
    RELATIVISTIC,
    WASSERSTEIN,
    gradient_penalty,
    r1,
)
from aigc_jax.functional.likelihood import DISCRETISED_LOGISTIC
from aigc_jax.models import dcgan, mlp_gan
from aigc_jax.models import stylegan2 as stylegan2_networks
from aigc_jax.models import vqvae as vqvae_networks
from aigc_jax.models.bert import BERT, TextClassifier
from aigc_jax.models.conv_vae import ConvDecoder, ConvEncoder
from aigc_jax.models.convnet import ConvNet
from aigc_jax.models.gpt import GPT
from aigc_jax.models.music_vae import MusicDecoder, MusicEncoder
from aigc_jax.models.patchgan import PatchGAN
from aigc_jax.models.pix2pix import UNetGenerator
from aigc_jax.models.seq2seq import Seq2Seq
from aigc_jax.models.text_vae import TextDecoder, TextEncoder
from aigc_jax.models.unet import UNet
from aigc_jax.models.vae import MLPDecoder, MLPEncoder
from aigc_jax.nn.quantizer import VectorQuantizer
from aigc_jax.tasks.adversarial_diffusion import adversarial_diffusion
from aigc_jax.tasks.autoencoder_kl import autoencoder_kl
from aigc_jax.tasks.classifier import classifier, text_classifier
from aigc_jax.tasks.diffusion import diffusion
from aigc_jax.tasks.gan import Penalty, gan
from aigc_jax.tasks.lm import lm
from aigc_jax.tasks.masked_lm import masked_lm
from aigc_jax.tasks.music_vae import music_vae
from aigc_jax.tasks.pix2pix import pix2pix
from aigc_jax.tasks.seq2seq import seq2seq
from aigc_jax.tasks.stylegan2 import stylegan2
from aigc_jax.tasks.text_vae import text_vae
from aigc_jax.tasks.vae import vae
from aigc_jax.tasks.vqvae import vqvae
from aigc_jax.train.compile import jit_step, pmap_step
from aigc_jax.train.step import init

SEED, STEPS, BATCH = 3, 6, 8


def diffusion_task() -> Task:
    network = UNet(8, (1,), 1, attention=(4,), classes=3, dropout=0.0, patch=2)
    return diffusion(network, schedules.linear(), optax.sgd(0.1), shape=(8, 8, 1), classes=3)


def classifier_task() -> Task:
    return classifier(ConvNet(3, channels=(8,), features=8, dropout=0.0), optax.sgd(0.1))


def vae_task() -> Task:
    return vae(MLPEncoder(4, 16), MLPDecoder((8, 8, 1), 16), optax.sgd(0.01), latent=4)


def conv_vae_task() -> Task:
    networks = (
        ConvEncoder(4, (4, 8), 8, classes=3),
        ConvDecoder((8, 8, 1), (8, 4), 8, DISCRETISED_LOGISTIC.outputs, classes=3),
    )
    return vae(
        *networks,
        optax.sgd(1e-3),
        latent=4,
        likelihood=DISCRETISED_LOGISTIC,
        beta=optax.linear_schedule(0.0, 1.0, 4),
        free_bits=0.1,
        classes=3,
    )


def vqvae_task() -> Task:
    networks = (
        vqvae_networks.Encoder(4, 8, 4, 1),
        VectorQuantizer(8, 4, restart=1 / 4),
        vqvae_networks.Decoder(1, 8, 4, 1),
    )
    prior = GPT(8, 4, 1, 2, 8, classes=3)
    return vqvae(
        *networks,
        optax.sgd(0.05),
        data_variance=0.3,
        prior=prior,
        prior_tx=optax.sgd(0.05),
        prior_start=2,
        grid=(2, 2),
        classes=3,
    )


def autoencoder_kl_task() -> Task:
    networks, tx = (MLPEncoder(4, 16), MLPDecoder((8, 8, 1), 16)), optax.sgd(0.1)
    options: dict[str, Any] = {"beta": 0.01, "weight": 0.1, "start": 2, "decay": 0.9}
    return autoencoder_kl(*networks, PatchGAN((8,), norm="none"), tx, tx, shape=(4,), **options)


def text_vae_task() -> Task:
    # Dropout draws by each example's own key, so it may be live.
    networks = TextEncoder(8, 4, 8, 4, dropout=0.3), TextDecoder(8, 8, 4, dropout=0.3)
    return text_vae(
        *networks,
        optax.sgd(0.1),
        latent=4,
        length=6,
        start=1,
        end=2,
        unk=3,
        beta=optax.linear_schedule(0.0, 1.0, STEPS),
        free_bits=0.5,
        word_dropout=0.3,
    )


def music_vae_task() -> Task:
    encoder = MusicEncoder(4, 12, embedding=4, hidden=8, part=2)
    decoder = MusicDecoder(2, 2, 4, 12, embedding=4, hidden=8)
    beta, tx = optax.linear_schedule(0.0, 0.2, 4), optax.sgd(0.02)
    return music_vae(encoder, decoder, tx, latent=4, beta=beta, free_bits=0.1, dropout=0.25)


def lm_task() -> Task:
    network = GPT(8, 5, 2, 4, 16, dropout=0.2, scan=True, remat=True)
    return lm(network, optax.sgd(0.1))


def seq2seq_task() -> Task:
    network = Seq2Seq(8, 2, 4, 16, dropout=0.2, remat=True)
    task = seq2seq(network, optax.sgd(0.1), begin=1, smoothing=0.1)
    [phase] = task.phases

    def read(batch: dict[str, Any]) -> dict[str, Any]:  # the `source` of these batches is an image
        return batch | {"source": batch["tokens"][:, ::-1], "source_mask": batch["mask"][:, ::-1]}

    loss = lambda params, stats, batch, *rest: phase.loss(params, stats, read(batch), *rest)
    start = lambda key, batch: task.init(key, read(batch))
    return task._replace(init=start, phases=(phase._replace(loss=loss),))


def masked_lm_task() -> Task:
    network = BERT(8, 8, 2, 4, 16, dropout=0.2)
    return masked_lm(network, optax.sgd(0.1), hidden=0, ordinary=(4, 8), share=0.5)


def text_classifier_task() -> Task:
    network = TextClassifier(BERT(8, 8, 2, 4, 16, dropout=0.2), 3)
    return text_classifier(network, optax.sgd(0.1))


def gan_task(simultaneous: bool = False) -> Task:
    networks, tx = (dcgan.Generator((8,), 1), PatchGAN((8, 8))), optax.sgd(0.05)
    return gan(*networks, NON_SATURATING, tx, tx, latent=4, simultaneous=simultaneous)


def wgan_gp_task() -> Task:
    options = {"classes": 3, "norm": "none"}
    networks = dcgan.Generator((8,), 1, **options), dcgan.Discriminator((8,), **options)
    penalties, tx = (Penalty(gradient_penalty, 10.0),), optax.sgd(0.02)
    return gan(*networks, WASSERSTEIN, tx, tx, latent=4, classes=3, penalties=penalties, n_critic=2)


def gan_lazy_task() -> Task:
    networks = mlp_gan.Generator((8, 8, 1), (16,)), mlp_gan.Discriminator((16,))
    penalties, tx = (Penalty(r1, 1.0, every=2),), optax.sgd(0.02, momentum=0.9)
    return gan(*networks, RELATIVISTIC, tx, tx, latent=4, penalties=penalties, decay=0.9)


def pix2pix_task() -> Task:
    networks, tx = (UNetGenerator((4, 8, 8), 1), PatchGAN((4, 8))), optax.sgd(0.01)
    return pix2pix(*networks, tx, tx, l1=10.0)


def adversarial_diffusion_task() -> Task:
    denoiser = UNet(8, (1,), 1, attention=(4,), classes=3, dropout=0.0, patch=2)
    judge, tx = PatchGAN((8,), classes=3, norm="none"), optax.sgd(0.1)
    return adversarial_diffusion(
        denoiser,
        judge,
        schedules.cosine(),
        tx,
        tx,
        alpha=0.5,
        beta=0.5,
        start=2,
        shape=(8, 8, 1),
        classes=3,
        kind="v",
    )


def stylegan2_task() -> Task:
    # The widths, 8 and 4, and all that is made of them, divide over 4 devices.
    small: dict[str, Any] = {"width": 32, "max_width": 8, "mapping_layers": 1, "classes": 3}
    networks = (
        stylegan2_networks.Generator(8, 1, latent=4, **small),
        stylegan2_networks.Discriminator(group=2, **small),
    )
    tx = optax.sgd(0.02)
    return stylegan2(
        *networks, tx, tx, latent=4, classes=3, r1=1.0, r1_every=2, path_every=3, decay=0.9
    )


TASKS = {
    "diffusion": diffusion_task,
    "classifier": classifier_task,
    "vae": vae_task,
    "conv_vae": conv_vae_task,
    "vqvae": vqvae_task,
    "autoencoder_kl": autoencoder_kl_task,
    "text_vae": text_vae_task,
    "music_vae": music_vae_task,
    "lm": lm_task,
    "masked_lm": masked_lm_task,
    "seq2seq": seq2seq_task,
    "text_classifier": text_classifier_task,
    "gan": gan_task,
    "gan_simultaneous": functools.partial(gan_task, simultaneous=True),
    "wgan_gp": wgan_gp_task,
    "gan_lazy": gan_lazy_task,
    "pix2pix": pix2pix_task,
    "adversarial_diffusion": adversarial_diffusion_task,
    "stylegan2": stylegan2_task,
}
LAYOUTS = ("jit4", "pmap4", "fsdp4", "tensor2x2", "accumulate2", "accumulate2x4")
# BatchNorm sees microbatches one by one, as StyleGAN2's deviation does: accumulation inherently
# changes them.
BATCH_NORM = ("classifier", "gan", "gan_simultaneous", "pix2pix", "stylegan2")
# What other cases hold as well.
SPARED = {
    "diffusion": ("jit4", "accumulate2"),
    "conv_vae": ("jit4", "fsdp4", "accumulate2"),
    "vqvae": ("jit4", "accumulate2"),
    "autoencoder_kl": ("jit4", "fsdp4", "accumulate2"),
    "text_vae": ("jit4", "fsdp4", "accumulate2"),
    "music_vae": ("jit4", "accumulate2"),
    "masked_lm": ("jit4", "fsdp4", "accumulate2"),
    "seq2seq": ("jit4", "fsdp4", "accumulate2"),
    "text_classifier": ("jit4", "fsdp4", "accumulate2"),
    "gan_simultaneous": ("fsdp4",),
    "wgan_gp": ("accumulate2",),
    "gan_lazy": ("accumulate2",),
    "pix2pix": ("jit4", "fsdp4"),
    "adversarial_diffusion": ("jit4", "fsdp4", "accumulate2", "pmap4"),
    "stylegan2": ("jit4", "fsdp4"),
}
CASES = [
    (name, layout)
    for name in TASKS
    for layout in LAYOUTS
    if not (name in BATCH_NORM and layout.startswith("accumulate"))
    and (TASKS[name]().tensor or not layout.startswith("tensor"))
    and layout not in SPARED.get(name, ())
]


def batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    image = rng.uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32)
    label = rng.integers(0, 3, BATCH, np.int32)
    pitches = rng.integers(0, 12, (BATCH, 4, 4), np.int32)
    tokens = rng.integers(4, 8, (BATCH, 6), np.int32)
    mask = (np.arange(6) < rng.integers(1, 7, (BATCH, 1))).astype(np.float32)
    columns = {"pitches": pitches, "tokens": tokens, "mask": mask}
    return {"image": image, "label": label, "source": image[:, ::-1], **columns}


def train(task: Task, start: State, layout: str) -> tuple[State, list]:
    state = jax.tree.map(jnp.asarray, start)
    over = {"fsdp4": {"fsdp": 4}, "tensor2x2": {"fsdp": 2, "tensor": 2}}
    if layout == "pmap4":
        step, put = pmap_step(task, seed=SEED), lambda x: x
    else:
        devices = jax.devices()[: 1 if layout == "accumulate2" else 4]
        mesh = make_mesh(devices, **over.get(layout, {}))
        step = jit_step(
            task, mesh, seed=SEED, accumulate=2 if layout.startswith("accumulate2") else 1
        )
        put = lambda x: put_batch(x, mesh)
        state = put_state(state, mesh, lay_out(task.tensor))
    state, history = run(step, state, [put(batch(i)) for i in range(STEPS)])
    if layout in over:
        sharded = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
        assert len(sharded) > len(jax.tree.leaves(state.params)) / 2
    return jax.device_get(state), jax.device_get(history)


def run(step: Any, state: State, batches: list) -> tuple[State, list]:
    history = []
    for one in batches:
        state, metrics = step(state, one)
        history.append(metrics)
    return state, history


@functools.cache
def start(name: str) -> State:
    task = TASKS[name]()
    state = jax.jit(lambda key, batch: init(task, key, batch))(stream(SEED, "init"), batch(0))
    return jax.device_get(state)


@functools.cache
def reference(name: str) -> tuple[State, list]:
    """Train on one device, where the step also compiles once, donates, and never calls the host."""
    mesh = make_mesh(jax.devices()[:1])
    step = jit_step(TASKS[name](), mesh, seed=SEED)
    state = put_state(jax.tree.map(jnp.asarray, start(name)), mesh)
    first = jax.tree.leaves(state.params)[0]
    batches = [put_batch(batch(i), mesh) for i in range(STEPS)]
    # A CPU may not enforce the guard on what leaves the device, as a callback would.
    assert "callback" not in str(step.trace(state, batches[0]).jaxpr)
    with jax.transfer_guard("disallow"):
        state, history = run(step, state, batches)
    assert step._cache_size() == 1
    assert first.is_deleted()
    return jax.device_get(state), jax.device_get(history)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_layout_does_not_matter(name, layout):
    state, metrics = train(TASKS[name](), start(name), layout)
    expected, expected_metrics = reference(name)
    chex.assert_trees_all_close(state, expected, atol=1e-4, rtol=0)
    chex.assert_trees_all_close(metrics, expected_metrics, atol=1e-4, rtol=1e-4)
    assert state.step == STEPS
    assert all(np.isfinite(m).all() for m in jax.tree.leaves(metrics))


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        ("diffusion", "jit"),
        ("classifier", "jit"),
        ("vae", "jit"),
        ("vae", "pmap"),
        ("gan_lazy", "jit"),
    ],
)
def test_several_steps_a_call_are_those_steps(name, compiler):
    """To rounding: these tests' flags let the compiler arrange the two programs differently.

    `tests/quality` holds that they agree bit for bit under its ordinary ones.
    """
    mesh, task = make_mesh(jax.devices()[:1]), TASKS[name]()
    state = put_state(start(name), mesh)
    if compiler == "jit":
        step, put = jit_step(task, mesh, seed=SEED, inner_steps=3), lambda x: put_batch(x, mesh, 1)
    else:
        step, put = pmap_step(task, jax.devices()[:1], seed=SEED, inner_steps=3), lambda x: x
    history = []
    for i in (0, 3):
        batches = [batch(i + j) for j in range(3)]
        state, metrics = step(state, put(jax.tree.map(lambda *x: np.stack(x), *batches)))
        history += [jax.tree.map(lambda m, j=j: m[j], metrics) for j in range(3)]
    expected, expected_metrics = reference(name)
    chex.assert_trees_all_close(jax.device_get(state), expected, atol=1e-6, rtol=1e-6)
    chex.assert_trees_all_close(jax.device_get(history), expected_metrics, rtol=1e-5)
