"""The autoencoder of latent diffusion: L1, a slight divergence, and a judge of patches."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.core import pop
from jax import Array

from aigc_jax.core.keys import fold
from aigc_jax.core.shapes import mean_flat
from aigc_jax.core.types import Batch, Mode, Out, Phase, Task
from aigc_jax.functional.adversarial import HINGE, Losses
from aigc_jax.functional.annealing import Weight, at_step, check_weights
from aigc_jax.functional.divergence import gaussian_kl, reparameterise
from aigc_jax.tasks.gan import Fake, adversarial_phases, judge_images
from aigc_jax.tasks.vae import choose_latent


def autoencoder_kl(
    encoder: nn.Module,
    decoder: nn.Module,
    discriminator: nn.Module,
    tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    *,
    shape: tuple[int, ...],
    beta: Weight = 1e-6,
    weight: float = 0.01,
    losses: Losses = HINGE,
    start: int = 0,
    decay: float | None = None,
) -> Task:
    """Make the task of the autoencoder of latent diffusion (Rombach et al. 2022, eq. 25).

    The autoencoder descends (Σ|x − x̂| + β·KL(q(z|x) ‖ N(0, 1))) / (h·w·c) + w·adversarial(D(x̂)),
    where x̂ is decoded from one draw of z: the published objective a pixel, so that β is the
    published one whatever the size of the images. The discriminator learns to tell x̂ from the data.
    Batches hold `image` (b, h, w, c) in [−1, 1].

    Three things of the published training are left out: the perceptual loss, which needs a network
    trained elsewhere; the learned scale of the likelihood, here 1; and the adaptive weight, which
    makes the two gradients in the last layer alike. In its place `weight` is constant: a judge's
    gradient is tens of times that of the mean absolute error, so keep it small, as pix2pix's 1/100.

    Args:
        encoder: `x -> (mu, logvar)`, each (b, *shape), such as `models.autoencoder_kl.Encoder`.
        decoder: `z -> image`, such as `models.autoencoder_kl.Decoder`.
        discriminator: `(image, label, *, train, axis) -> logits`, such as
            `models.patchgan.PatchGAN`; it is given the labels if its `classes` is above 0.
        tx: the autoencoder's optimiser.
        discriminator_tx: the discriminator's.
        shape: of the latent, such as (h', w', c').
        beta: weight of the divergence, or a schedule `step -> weight`.
        weight: w, of the adversarial loss; with 0 there is no discriminator, and one phase.
        losses: of both sides.
        start: the first step on which the discriminator trains. Before, its verdict moves nothing.
        decay: of the exponential moving average of the autoencoder's weights; None keeps none.

    Returns:
        The task, of the networks `autoencoder`, which holds `encoder` and `decoder`, and
        `discriminator`.

    Raises:
        ValueError: `beta` or `weight` is negative; when the task is initialised: the latent is not
            of `shape`, or the decoder's images are not of the data's.
    """
    check_weights(beta=beta, weight=weight)
    reconstruct = _reconstruct(encoder, decoder)
    classes = getattr(discriminator, "classes", 0)

    def init(key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        image, keys = batch["image"], jax.random.split(key, 3)
        (mu, _), of_encoder = encoder.init_with_output(keys[0], image)
        if mu.shape[1:] != shape:
            raise ValueError(f"shape={shape} must be that of the latent, {mu.shape[1:]}")
        made, of_decoder = decoder.init_with_output(keys[1], mu)
        if made.shape != image.shape:
            raise ValueError(
                f"the decoder makes images of {made.shape[1:]}; the data's are {image.shape[1:]}"
            )
        both = {"encoder": of_encoder["params"], "decoder": of_decoder["params"]}
        if not weight:
            return {"autoencoder": both}, {}
        label = batch["label"] if classes else None
        network, judge = pop(discriminator.init(keys[2], image, label), "params")
        stats = {"autoencoder": {}, "discriminator": network}
        return {"autoencoder": both, "discriminator": judge}, stats

    def generate(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Fake:
        image, terms = reconstruct(params, batch, keys)
        pixels = math.prod(image.shape[1:])
        value = terms["l1"] + at_step(beta, mode.step) * terms["kl"] / pixels
        return Fake(image, {}, value, terms)

    def loss(params: Any, stats: Any, batch: Batch, keys: Array, mode: Mode) -> Out:
        # The keys of a game's generator: with and without a judge, the noise is the same.
        fake = generate(params, stats, batch, fold(keys, 0), mode)
        value = jnp.asarray(fake.loss)
        return Out(value, jnp.ones_like(value), metrics=fake.metrics)

    def sample(
        params: Any, stats: Any, keys: Array, cond: Batch, *, temperature: float = 1.0
    ) -> Array:
        """Decode latents, reconstruct images, or draw latents from N(0, 1).

        The divergence weighs too little to make the latents of images N(0, 1): drawn from there,
        they decode to no image. That waits for a prior on top, such as a diffusion of latents.

        Args:
            params: weights by network.
            stats: not read.
            keys: (b,).
            cond: {"z": (b, *shape)}, {"image": (b, h, w, c)} to reconstruct; or empty.
            temperature: of the standard deviation of z; 0 reconstructs from the posterior's mean.

        Returns:
            (b, h, w, c) in [−1, 1].

        Raises:
            ValueError: a latent is not of `shape`.
        """
        read = lambda: _encode(encoder, params, cond["image"])
        z = choose_latent(cond, keys, shape, "image", read, temperature)
        return jnp.clip(_decode(decoder, params, z), -1, 1)

    name, average = "autoencoder", {} if decay is None else {"autoencoder": decay}
    if not weight:
        return Task(init, (Phase(name, (name,), loss, tx),), sample, average)
    phases = adversarial_phases(
        generate,
        judge_images(discriminator, classes),
        losses,
        tx,
        discriminator_tx,
        generator=name,
        weight=weight,
        start=start,
    )
    return Task(init, phases, sample, average)


def reconstruction_terms(
    encoder: nn.Module, decoder: nn.Module
) -> Callable[[Any, Any, Batch, Array], dict[str, Array]]:
    """Make `(params, stats, batch, keys) -> {"l1": (b,), "kl": (b,)}` of one draw of z.

    `l1` is the mean absolute error of a pixel, of [−1, 1]; `kl` is KL(q(z|x) ‖ N(0, 1)) in nats.
    The encoder and the decoder are those of `autoencoder_kl`.
    """
    reconstruct = _reconstruct(encoder, decoder)
    return lambda params, stats, batch, keys: reconstruct(params, batch, keys)[1]


def latent_scale(encoder: nn.Module, params: Any, image: Array, keys: Array) -> Array:
    """Measure the standard deviation σ̂ of latents, over images, pixels and channels alike.

    Latent diffusion divides z by it, so that its schedules of noise meet data of variance 1.

    Args:
        encoder: that of `autoencoder_kl`.
        params: weights by network.
        image: (b, h, w, c) in [−1, 1], of the data.
        keys: (b,).

    Returns:
        () float32.

    Rombach et al. 2022, appendix G.
    """
    return jnp.std(reparameterise(*_encode(encoder, params, image), keys))


def _reconstruct(
    encoder: nn.Module, decoder: nn.Module
) -> Callable[[Any, Batch, Array], tuple[Array, dict[str, Array]]]:
    """Make `(params, batch, keys) -> (image, terms)`, the terms of `reconstruction_terms`."""

    def reconstruct(params: Any, batch: Batch, keys: Array) -> tuple[Array, dict[str, Array]]:
        x = batch["image"]
        mu, logvar = _encode(encoder, params, x)
        image = _decode(decoder, params, reparameterise(mu, logvar, fold(keys, 0)))
        return image, {"l1": mean_flat(jnp.abs(x - image)), "kl": gaussian_kl(mu, logvar)}

    return reconstruct


def _encode(encoder: nn.Module, params: Any, x: Array) -> tuple[Array, Array]:
    posterior: Any = encoder.apply({"params": params["autoencoder"]["encoder"]}, x)
    return posterior


def _decode(decoder: nn.Module, params: Any, z: Array) -> Array:
    image: Any = decoder.apply({"params": params["autoencoder"]["decoder"]}, z)
    return image
