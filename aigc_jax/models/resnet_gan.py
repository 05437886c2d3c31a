"""The residual pair of SNGAN (Miyato et al. 2018, appendix B.4), and what R3GAN needs of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.conv import Conv
from aigc_jax.nn.embed import Embed, check_label
from aigc_jax.nn.norm import Norm, check_norm
from aigc_jax.nn.resample import downsample, upsample

glorot = nn.initializers.glorot_uniform()
zeros = nn.initializers.zeros


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation, scaled and shifted as a label says (Dumoulin et al. 2017, eq. 5).

    Attributes:
        classes: number of labels.
        dtype: of the computation; parameters and statistics stay float32.
    """

    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array, *, train: bool = False, axis: str | None = None
    ) -> Array:
        """Map (b, h, w, c) and labels (b,) to (b, h, w, c)."""

        def of_label(name: str, init: Any) -> Array:
            c = x.shape[-1]
            embed = Embed(self.classes, c, embedding_init=init, dtype=self.dtype, name=name)
            return embed(label)[:, None, None, :]  # (b, c) -> (b, 1, 1, c)

        norm = _batch_norm(train, axis, self.dtype, use_scale=False, use_bias=False, name="norm")
        return norm(x) * of_label("scale", nn.initializers.ones) + of_label("bias", zeros)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, each after an activation, beside a skip.

    Attributes:
        channels: of the output.
        resample: `upsample`, before the first convolution, or `downsample`, after the second.
        image: whether the input is an image, which the block does not begin by activating.
        act: the activation.
        inits: of the kernels of the two convolutions.
        dtype: of the computation.
    """

    channels: int
    resample: Any = None
    image: bool = False
    act: Any = nn.relu
    inits: tuple[Any, Any] = (glorot, glorot)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, norm: Any = None, wrap: Any = None) -> Array:
        """Map (b, h, w, c) to (b, h', w', channels).

        Args:
            x: (b, h, w, c).
            norm: `(x, name) -> x`, applied before each activation.
            wrap: `layer -> layer`, applied to each convolution.
        """
        norm = norm or (lambda x, name: x)
        wrap = wrap or (lambda layer: layer)
        up = upsample if self.resample is upsample else lambda x: x
        down = downsample if self.resample is downsample else lambda x: x

        def conv(size: int, init: Any, name: str) -> Callable[[Array], Array]:
            kernel = (size, size)
            return wrap(Conv(self.channels, kernel, kernel_init=init, dtype=self.dtype, name=name))

        y = x if self.image else self.act(norm(x, "norm1"))
        y = conv(3, self.inits[0], "conv1")(up(y))
        y = down(conv(3, self.inits[1], "conv2")(self.act(norm(y, "norm2"))))

        x = down(x)
        if self.resample or x.shape[-1] != self.channels:
            # A 1×1 convolution commutes with resampling: it runs where there are fewer pixels.
            x = conv(1, glorot, "skip")(x)
        return up(x) + y


class Generator(nn.Module):
    """Map a latent, and a label if `classes`, to an image, by residual blocks that double the side.

    The defaults are SNGAN's for 32×32 images: 4.28 M parameters with a latent of 128. A label
    scales and shifts the blocks' normalisations (Miyato & Koyama 2018); without any, it is embedded
    beside the latent. R3GAN's recipe (Huang et al. 2024, §3) is `norm="none"` here and
    `spectral=False` in the discriminator, `fixup=True` and `slope=0.2` in both.

    Attributes:
        size: side of the image, a power of two, at least 16.
        channels: of the image.
        width: channels of every block.
        classes: number of labels; 0 is unconditional.
        norm: "batch", or "none".
        fixup: start each block as its skip (Zhang et al. 2019): the last convolution of its branch
            is 0, and the first is He's by blocks^(−1/2), instead of Glorot's by √2.
        slope: of the activations below 0; 0 is ReLU.
        dtype: of the computation; parameters and statistics stay float32.
    """

    size: int = 32
    channels: int = 3
    width: int = 256
    classes: int = 0
    norm: Norm = "batch"
    fixup: bool = False
    slope: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        z: Array,
        label: Array | None = None,
        *,
        train: bool = False,
        axis: str | None = None,
    ) -> Array:
        """Generate a batch of images.

        Args:
            z: (b, latent).
            label: (b,) integers in [0, classes), or None.
            train: whether batch statistics are live.
            axis: the mapped axis' name under `pmap`, so that batch statistics are the whole
                batch's.

        Returns:
            (b, size, size, channels) float32 in [−1, 1].

        Raises:
            ValueError: `size` or `norm` is not one of its values, or a label is given where
                `classes` is 0, or not given where it is not.
        """
        check_label(label, self.classes)
        _check_size(self.size)
        check_norm(self.norm)
        blocks = self.size.bit_length() - 3  # from 4×4 to size×size

        def plain(x: Array, name: str) -> Array:
            if self.norm == "none":
                return x
            return _batch_norm(train, axis, self.dtype, name=name)(x)

        def norm(x: Array, name: str) -> Array:
            if self.norm == "none" or label is None:
                return plain(x, name)
            conditional = ConditionalBatchNorm(self.classes, self.dtype, name=name)
            return conditional(x, label, train=train, axis=axis)

        if self.norm == "none" and label is not None:
            # (b, latent) -> (b, 2*latent)
            z = jnp.concatenate([z, nn.Embed(self.classes, z.shape[-1], name="label")(label)], -1)
        dense = nn.Dense(16 * self.width, kernel_init=glorot, dtype=self.dtype, name="dense")
        x = dense(z).reshape(-1, 4, 4, self.width)  # (b, 16*width) -> (b, 4, 4, width)

        options = _branch(blocks, self.fixup, self.slope) | {"dtype": self.dtype}
        for i in range(blocks):
            x = ResidualBlock(self.width, upsample, name=f"block{i}", **options)(x, norm)
        x = options["act"](plain(x, "norm"))
        image = Conv(self.channels, (3, 3), kernel_init=glorot, dtype=jnp.float32, name="image")
        return jnp.tanh(image(x))


class Discriminator(nn.Module):
    """Map an image, and a label if `classes`, to a logit, by residual blocks and a sum over pixels.

    The defaults are SNGAN's for 32×32 images: 1.05 M parameters. A label's embedding is
    projected on: ψ(h) + h·e(y) (Miyato & Koyama 2018, §3).

    Attributes:
        size: side of the image, a power of two, at least 16.
        width: channels of every block.
        classes: number of labels; 0 is unconditional.
        spectral: divide each layer's weight by its largest singular value, see `spectral_norm`.
        fixup: start each block as its skip, see `Generator`; not together with `spectral`.
        slope: of the activations below 0; 0 is ReLU.
        dtype: of the computation; parameters and statistics stay float32.
    """

    size: int = 32
    width: int = 128
    classes: int = 0
    spectral: bool = True
    fixup: bool = False
    slope: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        label: Array | None = None,
        *,
        train: bool = False,
        axis: str | None = None,
    ) -> Array:
        """Judge a batch of images.

        Args:
            x: (b, size, size, c) in [−1, 1].
            label: (b,) integers in [0, classes), or None.
            train: whether the estimates of singular values are improved, in "spectral".
            axis: not read: nothing depends on the rest of the batch.

        Returns:
            (b,) float32 logits.

        Raises:
            ValueError: `size` is not a power of two, or not the images'; `fixup` and `spectral`
                are both asked for; or a label is given where `classes` is 0, or not given where it
                is not.
        """
        check_label(label, self.classes)
        _check_size(self.size)
        if x.shape[1:3] != (self.size, self.size):
            raise ValueError(f"images of {x.shape[1]}×{x.shape[2]} are not of size={self.size}")
        if self.fixup and self.spectral:
            raise ValueError("fixup=True needs spectral=False: a kernel of 0 cannot be normalised")
        halvings = self.size.bit_length() - 4  # from size×size to 8×8
        blocks = halvings + 2

        def wrap(layer: nn.Module) -> Any:
            return spectral_norm(layer, train) if self.spectral else layer

        options = _branch(blocks, self.fixup, self.slope) | {"dtype": self.dtype}
        for i in range(blocks):
            resample = downsample if i < halvings else None
            block = ResidualBlock(self.width, resample, i == 0, name=f"block{i}", **options)
            x = block(x, wrap=wrap)
        h = options["act"](x).astype(jnp.float32).sum((1, 2))  # (b, 8, 8, width) -> (b, width)
        logit = wrap(nn.Dense(1, kernel_init=glorot, name="dense"))(h)[:, 0]  # -> (b,)
        if label is not None:
            embedding = wrap(nn.Embed(self.classes, self.width, name="label"))(label)
            logit += jnp.sum(h * embedding, -1)
        return logit


def spectral_norm(layer: nn.Module, train: bool) -> Callable[[Array], Array]:
    """Divide a layer's weight W, a matrix to the output's channels, by its largest singular value.

    W / σ(W), σ(W) = uᵀWv (Miyato et al. 2018, eq. 8), where u and v come from a step of the power
    method (appendix A) from the u of the last call in training, kept in the collection "spectral".

    Args:
        layer: such as `nn.Dense`; its bias is left as it is.
        train: whether to keep the new u.

    Returns:
        The layer as a function of its input.
    """
    norm = nn.SpectralNorm(layer, collection_name="spectral")
    return functools.partial(norm, update_stats=train)


def _batch_norm(train: bool, axis: str | None, dtype: Any, **options: Any) -> nn.BatchNorm:
    """Return a BatchNorm whose average remembers the last ten batches or so."""
    return nn.BatchNorm(not train, momentum=0.9, axis_name=axis, dtype=dtype, **options)


def _branch(blocks: int, fixup: bool, slope: float) -> dict[str, Any]:
    """Return the activation and the kernels' initialisers of a network's residual branches."""
    if not fixup:
        init = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        inits = (init, init)
    else:
        # L^(−1/(2m − 2)) of He's standard deviation, with m = 2 convolutions a branch.
        variance = 2 / (1 + slope**2) / blocks
        inits = (nn.initializers.variance_scaling(variance, "fan_in", "normal"), zeros)
    act = functools.partial(nn.leaky_relu, negative_slope=slope) if slope else nn.relu
    return {"act": act, "inits": inits}


def _check_size(size: int) -> None:
    if size < 16 or size & (size - 1):
        raise ValueError(f"size={size} must be a power of two, at least 16")
