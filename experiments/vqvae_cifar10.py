"""VQ-VAE on CIFAR-10 by DeepMind's published recipe (van den Oord et al. 2017).

    aigc train vqvae_cifar10 --data cifar10_jpeg     # CIFAR-10 after JPEG: not comparable
    aigc train vqvae_cifar10 --data cifar10_jpeg --quantizer fsq

Hardware: 1 CPU core, shared. Time: 42 minutes, of the first command.
Score: of 10,000 test images, error over variance 0.052; 25.4 dB; codes' perplexity 417 of 512

Of 32 images' codes the perplexity is 337. Published, after as many steps, of training batches of
the original images: 0.056, and 326.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import optax

from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import batches, held_out
from aigc_jax.data.sources import dataset
from aigc_jax.data.transforms import normalise
from aigc_jax.metrics.codebook import evaluate_codebook
from aigc_jax.metrics.likelihood import evaluate_terms
from aigc_jax.metrics.reconstruction import evaluate_reconstructions, picture_reconstructions
from aigc_jax.models.vqvae import Decoder, Encoder
from aigc_jax.nn.quantizer import FiniteScalarQuantizer, VectorQuantizer
from aigc_jax.tasks.vqvae import encode_batch, vqvae, vqvae_terms


def vqvae_cifar10(
    *,
    data: str = "cifar10",
    batch: int = 32,
    quantizer: Literal["ema", "gradient", "fsq"] = "ema",
    codes: int = 512,
    width: int = 64,
    commitment: float = 0.25,
    restart: float = 1 / 32,
    hidden: int = 128,
    learning_rate: float = 3e-4,
    data_variance: float = 0.25,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Experiment:
    """Compress 32×32 colour images to 8×8 codes, and back.

    Args:
        data: a TFDS name, `cifar10` or `cifar10_jpeg`; or an .npz file or a folder of images in
            subfolders by class.
        batch: examples a step.
        quantizer: "ema", a codebook of running averages of decay 0.99; "gradient", one that
            descends; or "fsq", finite scalars of 8·8·8 levels, whatever `codes` and `width` are.
        codes: of the codebook.
        width: channels of a code.
        commitment: weight of the commitment loss.
        restart: chance of an image to adopt a code that is hardly used, best about one over the
            batch; 0 restarts none, as published.
        hidden: channels of the layers.
        learning_rate: of Adam.
        data_variance: of all values of all images in [−1, 1], by which the error is divided.
        dtype: of the computation; weights stay float32.
    """
    images, kind = dataset(data, size=32, channels=3), jnp.dtype(dtype)
    bottleneck = (
        FiniteScalarQuantizer((8, 8, 8))
        if quantizer == "fsq"
        else VectorQuantizer(codes, width, quantizer, commitment, restart=restart)
    )
    networks = (
        Encoder(bottleneck.width, hidden, dtype=kind),
        bottleneck,
        Decoder(3, hidden, dtype=kind),
    )
    terms = vqvae_terms(*networks, data_variance=data_variance)
    count = functools.partial(evaluate_codebook, encode=encode_batch(*networks[:2]))

    def evaluate(model: Model) -> dict[str, float]:
        return (
            evaluate_terms(model, terms, images)
            | count(model, codes=bottleneck.codes, data=images)
            | evaluate_reconstructions(model, images, n=1000)
        )

    return Experiment(
        task=vqvae(*networks, optax.adam(learning_rate), data_variance=data_variance),
        data=lambda seed: batches(images.train, batch, seed, transform=normalise),
        steps=10_000,
        batch=batch,
        evaluate=evaluate,
        picture=lambda model: picture_reconstructions(model, images, scale=2),
        originals=held_out(images, normalise),
    )
