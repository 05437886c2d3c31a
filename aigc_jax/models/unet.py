"""The U-Net of DDPM (Ho et al. 2020, appendix B) and ADM (Dhariwal & Nichol 2021)."""

import functools
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from aigc_jax.nn.attention import ImageAttention
from aigc_jax.nn.conv import Conv
from aigc_jax.nn.embed import Embed, sinusoidal
from aigc_jax.nn.norm import group_norm
from aigc_jax.nn.resample import depth_to_space, downsample, space_to_depth, upsample

ddpm_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros

Remat = Literal["nothing", "activations", "blocks"]


class Levels(NamedTuple):
    """Some levels of a U-Net, counted from 0 at the full resolution, on its two sides."""

    down: Collection[int]
    up: Collection[int]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around an embedding, if there is one, with a skip.

    Attributes:
        channels: of the output.
        dropout: probability, before the second convolution.
        scale_shift: the embedding scales and shifts the second normalisation (ADM), not only adds
            (DDPM).
        resample: `upsample` or `downsample`, applied to both branches (ADM's up and down blocks).
        norm: the normalisations, of (channels, dtype).
        dtype: of the computation.
    """

    channels: int
    dropout: float = 0.0
    scale_shift: bool = False
    resample: Any = None
    norm: Any = group_norm
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, emb: Array | None, train: bool) -> Array:
        """Map (b, h, w, c) and an embedding (b, e), or None, to (b, h', w', channels)."""
        conv = lambda name, init: Conv(
            self.channels, (3, 3), dtype=self.dtype, kernel_init=init, name=name
        )
        dense = lambda name, d: nn.Dense(d, dtype=self.dtype, kernel_init=ddpm_init, name=name)
        change = self.resample or (lambda x: x)

        y = nn.silu(self.norm(x.shape[-1], self.dtype, name="norm1")(x))
        y = checkpoint_name(conv("conv1", ddpm_init)(change(y)), "convolution")
        norm2 = self.norm(self.channels, self.dtype, name="norm2")
        if emb is None:
            y = norm2(y)
        else:
            of_emb = dense("embed", self.channels * (1 + self.scale_shift))(nn.silu(emb))
            of_emb = of_emb[:, None, None, :]  # (b, e) -> (b, 1, 1, e)
            if self.scale_shift:
                scale, shift = jnp.split(of_emb, 2, -1)
                y = norm2(y) * (1 + scale) + shift
            else:
                y = norm2(y + of_emb)
        y = nn.Dropout(self.dropout)(nn.silu(y), deterministic=not train)
        y = conv("conv2", zeros)(y)  # the block starts as its skip

        x = change(x)
        if x.shape[-1] != self.channels:
            x = dense("skip", self.channels)(x)  # a 1×1 convolution
        return x + y


class UNet(nn.Module):
    """A denoiser of images, conditioned on time and, if `classes`, on a label.

    The defaults are DDPM's for 32×32 images: 35.7 M parameters. `scale_shift`, `resample_blocks`
    and `head_channels=64` make it ADM's; weights trained with ADM's code also need
    `flip_sin_to_cos`, `freq_shift=0`, `downsample_padding=(1, 1)` and `epsilon=1e-5`.

    Attributes:
        channels: at the first level.
        multipliers: of the channels, by level; each further level halves the resolution.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: image heights (after patching) or `Levels` at which blocks attend.
        head_channels: channels of an attention head; None is one head.
        dropout: probability.
        classes: number of labels; 0 is unconditional. Label `classes` means none.
        out_channels: of the output, by default the input's; twice that where a variance is learned.
        patch: fold p×p pixels into channels at the entrance and back at the exit, which makes the
            network p² times cheaper (Hoogeboom et al. 2023, §3.3).
        scale_shift: see `ResidualBlock`.
        resample_blocks: change the resolution in residual blocks (ADM), not by convolutions (DDPM),
            everywhere or at the end of the `Levels` named.
        downsample_padding: zeros before and after the rows and columns that a convolution halves.
        middle_attention: whether the middle attends.
        groups: of every normalisation; None is `group_norm`'s own choice.
        middle_groups: of the one before the middle's attention, where it differs; 0 leaves it out.
        epsilon: added to the variances of the normalisations.
        freq_shift: of the times' embedding, see `sinusoidal`.
        flip_sin_to_cos: of the times' embedding, see `sinusoidal`.
        embedding_channels: of the embedding that conditions the blocks; None is 4 · channels.
        remat: what to recompute on the way back instead of storing it: "activations" are what lies
            between the convolutions of a block, which takes little time; "blocks" are all of it.
            XLA's compiler for CPUs undoes it: memory falls on accelerators only.
        dtype: of the computation; parameters stay float32.
    """

    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] | Levels = (16,)
    head_channels: int | None = None
    dropout: float = 0.1
    classes: int = 0
    out_channels: int | None = None
    patch: int = 1
    scale_shift: bool = False
    resample_blocks: bool | Levels = False
    downsample_padding: tuple[int, int] = (0, 1)
    middle_attention: bool = True
    groups: int | None = None
    middle_groups: int | None = None
    epsilon: float = 1e-6
    freq_shift: float = 1
    flip_sin_to_cos: bool = False
    embedding_channels: int | None = None
    remat: Remat = "nothing"
    dtype: Any = None

    @nn.compact
    def __call__(
        self, xt: Array, t: Array, label: Array | None = None, *, train: bool = False
    ) -> Array:
        """Denoise a batch of images.

        Args:
            xt: (b, h, w, c) noisy images.
            t: (b,) times, in steps.
            label: (b,) integers in [0, classes]; `classes` means none, as does None.
            train: whether dropout is live; it then needs the `dropout` key.

        Returns:
            (b, h, w, out_channels) float32: what the task's parametrization says it is.

        Raises:
            ValueError: h or w is not a multiple of patch · 2^(levels − 1), a label is given to an
                unconditional network, or `remat` is not one of its values.
        """
        b, h, w, c = xt.shape
        factor = self.patch * 2 ** (len(self.multipliers) - 1)
        if h % factor or w % factor:
            raise ValueError(f"images of {h}×{w} do not divide by {factor}, as this U-Net needs")
        if label is not None and not self.classes:
            raise ValueError("a label was given to a U-Net with classes=0")

        if self.remat not in (choices := get_args(Remat)):
            raise ValueError(f"remat={self.remat!r} must be one of {', '.join(choices)}")

        widths = [round(m * self.channels) for m in self.multipliers]
        levels, last = range(len(widths)), len(widths) - 1
        attention, resample_blocks = self.attention, self.resample_blocks
        if not isinstance(attention, Levels):
            there = [level for level in levels if h // (self.patch * 2**level) in attention]
            attention = Levels(there, there)
        if not isinstance(resample_blocks, Levels):
            there = levels if resample_blocks else ()
            resample_blocks = Levels(there, there)

        norm = functools.partial(group_norm, groups=self.groups, epsilon=self.epsilon)
        block: Any = ResidualBlock
        if self.remat != "nothing":
            policies = jax.checkpoint_policies
            keep = {
                "activations": policies.save_only_these_names("convolution"),
                "blocks": policies.nothing_saveable,
            }
            block = nn.remat(ResidualBlock, static_argnums=(3,), policy=keep[self.remat])
        options = {
            "dropout": self.dropout,
            "scale_shift": self.scale_shift,
            "norm": norm,
            "dtype": self.dtype,
        }
        attend = functools.partial(ImageAttention, self.head_channels, self.dtype)
        conv = lambda d, name, **kw: Conv(d, (3, 3), dtype=self.dtype, name=name, **kw)
        dense = lambda name: nn.Dense(
            self.embedding_channels or 4 * self.channels,
            dtype=self.dtype,
            kernel_init=ddpm_init,
            name=name,
        )

        emb = sinusoidal(
            t, self.channels, freq_shift=self.freq_shift, flip_sin_to_cos=self.flip_sin_to_cos
        )
        emb = dense("time2")(nn.silu(dense("time1")(emb)))  # (b, channels) -> (b, e)
        if self.classes:
            label = jnp.full((b,), self.classes) if label is None else label
            emb += Embed(self.classes + 1, emb.shape[-1], dtype=self.dtype, name="label")(label)

        def stage(x: Array, d: int, name: str, attends: bool) -> Array:
            x = block(d, name=name, **options)(x, emb, train)
            return attend(norm, name=f"{name}_attention")(x) if attends else x

        def change(x: Array, how: Any, name: str, in_a_block: bool) -> Array:
            d = x.shape[-1]
            if in_a_block:
                return block(d, resample=how, name=name, **options)(x, emb, train)
            if how is downsample:
                pads = (self.downsample_padding, self.downsample_padding)
                return conv(d, name, strides=(2, 2), padding=pads, kernel_init=ddpm_init)(x)
            return conv(d, name, kernel_init=ddpm_init)(how(x))

        x = space_to_depth(xt, self.patch)
        x = conv(self.channels, "conv_in", kernel_init=ddpm_init)(x)
        skips = [x]
        for level in levels:
            for i in range(self.blocks):
                x = stage(x, widths[level], f"down{level}_{i}", level in attention.down)
                skips.append(x)
            if level < last:
                in_a_block = level in resample_blocks.down
                x = change(x, downsample, f"down{level}_resample", in_a_block)
                skips.append(x)

        x = block(x.shape[-1], name="middle1", **options)(x, emb, train)
        if self.middle_attention:
            middle = functools.partial(norm, groups=self.middle_groups or self.groups)
            x = attend(None if self.middle_groups == 0 else middle, name="middle_attention")(x)
        x = block(x.shape[-1], name="middle2", **options)(x, emb, train)

        for level in reversed(levels):
            for i in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = stage(x, widths[level], f"up{level}_{i}", level in attention.up)
            if level > 0:
                x = change(x, upsample, f"up{level}_resample", level in resample_blocks.up)

        x = nn.silu(norm(x.shape[-1], self.dtype, name="norm_out")(x))
        out = (self.out_channels or c) * self.patch**2
        x = Conv(out, (3, 3), dtype=jnp.float32, kernel_init=zeros, name="conv_out")(x)
        return depth_to_space(x, self.patch)
