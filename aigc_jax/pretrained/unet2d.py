"""The U-Nets of diffusers' `UNet2DModel`, in and out.

A directory holds a `config.json` and a `diffusion_pytorch_model.safetensors`, as `save_pretrained`
writes them. Images are NHWC here and NCHW there; times are the same.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from aigc_jax.models.unet import Levels, UNet
from aigc_jax.nn.norm import group_norm
from aigc_jax.pretrained.huggingface import (
    CONFIG,
    Shapes,
    Tensor,
    check_options,
    is_count,
    linear,
    open_weights,
    read_config,
    read_params,
    refuse_unless,
    same,
    shapes_of,
    write_params,
)

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"

# The options of `UNet2DModel`, and what stands for one that a configuration leaves out.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}

# What there is of some of them here.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}
# By side: plain, attending, and changing the resolution in a residual block.
BLOCKS = {
    "down": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}

# Names of modules, ours and theirs; of layers within a block; and what files of 2022 call those.
MODULES = {
    "conv_in": "conv_in",
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "label": "class_embedding",
    "middle1": "mid_block.resnets.0",
    "middle_attention": "mid_block.attentions.0",
    "middle2": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
LAYERS = {
    "embed": "time_emb_proj",
    "skip": "conv_shortcut",
    "GroupNorm_0": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
}
FORMERLY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_unet2d(directory: str | Path) -> tuple[UNet, dict[str, Any]]:
    """Read a `UNet2DModel` that diffusers saved.

    In float32 the network's outputs are diffusers' to 1e-4; on a GPU or TPU, with
    `jax_default_matmul_precision="highest"`. Where `num_class_embeds` is n, labels are 0 to n − 1
    as there, and `classes` is n − 1: given no label, the U-Net takes the last to mean none.

    Args:
        directory: with `config.json` and `diffusion_pytorch_model.safetensors`.

    Returns:
        The network, and its parameters in float32: `unet.apply({"params": params}, xt, t)`.

    Raises:
        FileNotFoundError: the directory or one of its two files is not there.
        ValueError: the weights are there as a pickle only, an option is not supported, or the
            weights do not fit the configuration.
    """
    config = Path(directory) / CONFIG
    options = _read_options(config)
    try:
        unet = _network(options)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from None
    shapes = _shapes(unet, options["in_channels"])
    tensors = _tensors(unet, shapes)
    layer = re.compile(rf"(?<=\.)({'|'.join(FORMERLY)})(?=\.(weight|bias)$)")
    rename = lambda name: layer.sub(lambda m: FORMERLY[m[0]], name)
    with open_weights(directory, STEM) as weights:
        return unet, read_params(weights, tensors, shapes, rename=rename)


def write_unet2d(
    directory: str | Path,
    unet: UNet,
    params: Mapping[str, Any],
    *,
    sample_size: int | tuple[int, int] | None = None,
) -> None:
    """Write a U-Net for `UNet2DModel.from_pretrained` to load, and `read_unet2d` to read back.

    Args:
        directory: made if need be; the two files already there are replaced, both or neither.
        unet: the network.
        params: its parameters.
        sample_size: of images, in pixels or (height, width): what diffusers' pipelines draw.

    Raises:
        ValueError: an attribute of the network has no counterpart, or the parameters are not its.
        OSError: a file cannot be written; those already there stay.
    """
    arrays: Any = flatten_dict(params)
    unet = unet.clone(attention=_attending(unet, arrays))
    kernel = arrays.get(("conv_in", "kernel"))
    in_channels = 1 if kernel is None else kernel.shape[2] // unet.patch**2
    shapes = _shapes(unet, in_channels)
    options = _options(unet, shapes, in_channels)
    options |= {"_class_name": "UNet2DModel", "sample_size": sample_size}
    write_params(
        directory,
        params,
        _tensors(unet, shapes),
        shapes,
        options,
        network="U-Net",
        dtype=jnp.float32,
        stem=STEM,
    )


def _read_options(path: Path) -> dict[str, Any]:
    config = read_config(path)
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{path} is of a {config['_class_name']}; it must be a UNet2DModel")
    unknown = sorted(options.keys() - DEFAULTS.keys())
    if unknown:
        raise ValueError(f"{path}: UNet2DModel has no option {', '.join(unknown)}")
    return DEFAULTS | options


def _network(options: Mapping[str, Any]) -> UNet:
    """Build the network of a configuration, or say what of it is not supported."""

    need = functools.partial(refuse_unless, options)
    check_options(options, SUPPORTED)
    widths, shift = options["block_out_channels"], options["freq_shift"]
    right = bool(widths) and all(map(is_count, widths))
    right = right and widths[0] % 2 == 0 and widths[0] > 2 * max(shift, 0)
    need("block_out_channels", right, "integers, the first even and more than 2 · freq_shift")
    depth, kinds = len(widths), {}
    for side, known in BLOCKS.items():
        name = f"{side}_block_types"
        kinds[side] = [str(kind).removeprefix("UNetRes") for kind in options[name]]
        right = len(kinds[side]) == depth and all(kind in known for kind in kinds[side])
        need(name, right, f"{depth} of {', '.join(known)}")
    kinds["up"].reverse()  # theirs begins at the last level

    def where(holds: Callable[[str, str], bool]) -> Levels:
        down, up = (
            tuple(level for level in range(depth) if holds(side, kinds[side][level]))
            for side in BLOCKS
        )
        return Levels(down, up)

    def in_a_block(side: str, kind: str) -> bool:
        attends = kind.startswith("Attn")
        return options[f"{side}sample_type"] == "resnet" if attends else kind.startswith("Resnet")

    attention, resample_blocks = where(lambda _, kind: kind.startswith("Attn")), where(in_a_block)
    everywhere = where(lambda *_: True)

    need("layers_per_block", is_count(options["layers_per_block"]), "an integer of at least 1")
    groups, middle = options["norm_num_groups"], options["attn_norm_num_groups"]
    right = is_count(groups) and not any(width % groups for width in widths)
    need("norm_num_groups", right, "an integer that divides all of block_out_channels")
    if options["add_attention"]:
        right = middle is None or (is_count(middle) and widths[-1] % middle == 0)
        need("attn_norm_num_groups", right, "None or an integer that divides the last channels")
    attending = [widths[level] for level in (*attention.down, *attention.up)]
    attending += [widths[-1]] if options["add_attention"] else []
    size, most = options["attention_head_dim"], min(attending, default=math.inf)
    right = size is None or (is_count(size) and size <= most)
    need("attention_head_dim", right, f"None or an integer from 1 to {most}, channels that attend")
    labels = options["num_class_embeds"]
    right = labels is None or (is_count(labels) and labels > 1)
    need("num_class_embeds", right, "None or at least 2")

    scale_shift = options["resnet_time_scale_shift"] == "scale_shift"
    if middle is None and scale_shift:
        middle = 0
    in_, out = options["in_channels"], options["out_channels"]
    return UNet(
        channels=widths[0],
        multipliers=tuple(w / widths[0] if w % widths[0] else w // widths[0] for w in widths),
        blocks=options["layers_per_block"],
        attention=attention,
        head_channels=size,
        dropout=options["dropout"],
        classes=labels - 1 if labels else 0,
        out_channels=None if out == in_ else out,
        scale_shift=scale_shift,
        resample_blocks={everywhere: True, Levels((), ()): False}.get(
            resample_blocks, resample_blocks
        ),
        downsample_padding=(options["downsample_padding"], 1),
        middle_attention=options["add_attention"],
        groups=groups,
        middle_groups=None if middle == groups else middle,
        epsilon=options["norm_eps"],
        freq_shift=shift,
        flip_sin_to_cos=options["flip_sin_to_cos"],
        embedding_channels=options["time_embedding_dim"],
    )


def _attending(unet: UNet, arrays: Mapping[tuple[str, ...], Any]) -> Levels:
    """Tell at which levels a network attends; by image heights, only its parameters know."""
    if isinstance(unet.attention, Levels):
        return unet.attention
    modules = {path[0] for path in arrays}
    levels = range(len(unet.multipliers))
    down, up = (
        tuple(level for level in levels if f"{side}{level}_0_attention" in modules)
        for side in BLOCKS
    )
    return Levels(down, up)


def _shapes(unet: UNet, in_channels: int) -> Shapes:
    """Return the shapes of the parameters of a network whose attention is by level."""
    side = unet.patch * 2 ** (len(unet.multipliers) - 1)
    x = jnp.zeros((1, side, side, in_channels))
    return shapes_of(unet.init, x, jnp.zeros(1))


def _tensors(unet: UNet, shapes: Shapes) -> list[Tensor]:
    depth = len(unet.multipliers)
    tensors = []
    for path, leaf in shapes.items():
        name, layer, shape = _name(path, depth), path[-2], leaf.shape
        if path[-1] != "kernel":  # a bias is (heads, d) here, and (heads*d,) there
            flat = shape if path[-1] == "embedding" else (math.prod(shape),)
            tensors.append(same(name, path, flat))
        elif len(shape) == 4:
            # (d, c, h, w) -> (h, w, c, d)
            split = (shape[3], shape[2], *shape[:2])
            tensors.append(Tensor(name, split, path, split, (2, 3, 1, 0)))
        else:
            n = len(shape) - 1 if layer == "out" else 1
            (tensor,) = linear("", path[:-1], shape[:n], shape[n:], bias=False)
            window = (1, 1) if layer == "skip" else ()
            tensors.append(tensor._replace(name=name, shape=(*tensor.shape, *window)))
    return tensors


def _name(path: tuple[str, ...], depth: int) -> str:
    module, *layers, leaf = path
    if module in MODULES:
        name = MODULES[module]
    else:
        match = re.fullmatch(r"(down|up)(\d+)_(\d+|resample)(_attention)?", module)
        assert match is not None, module
        side, level, place, attention = match.groups()
        block = int(level) if side == "down" else depth - 1 - int(level)
        name = f"{side}_blocks.{block}."
        if place == "resample":
            name += f"{side}samplers.0" + ("" if layers else ".conv")
        else:
            name += f"{'attentions' if attention else 'resnets'}.{place}"
    layers = [LAYERS.get(layer, layer) for layer in layers]
    return ".".join([name, *layers, "bias" if leaf == "bias" else "weight"])


def _options(unet: UNet, shapes: Shapes, in_channels: int) -> dict[str, Any]:
    """Write the configuration of a network, or say what of it has no counterpart."""

    def need(name: str, holds: bool, allowed: str) -> None:
        if not holds:
            value = getattr(unet, name)
            raise ValueError(f"{name}={value!r} has no counterpart in UNet2DModel: {allowed}")

    widths = [round(m * unet.channels) for m in unet.multipliers]
    need("patch", unet.patch == 1, "it must be 1")
    need("multipliers", widths[0] == unet.channels, "the first must be 1")
    need("blocks", unet.blocks > 0, "it must be at least 1")
    paddings = {(0, 1): 0, (1, 1): 1}
    right = unet.downsample_padding in paddings
    need("downsample_padding", right, "it must be (0, 1) or (1, 1)")
    right = unet.middle_groups != 0 or unet.scale_shift
    need("middle_groups", right, "0 goes with scale_shift alone")
    middle = unet.middle_groups
    numbers = {
        group_norm(leaf.shape[0], groups=unet.groups).num_groups
        for path, leaf in shapes.items()
        if path[-1] == "scale" and (middle is None or path[0] != "middle_attention")
    }
    right = len(numbers) == 1
    need(
        "groups",
        right,
        f"all normalisations must have as many, not {sorted(filter(None, numbers))}",
    )
    (groups,) = numbers
    if middle is None and unet.scale_shift:
        middle = groups

    attention, resample_blocks = unet.attention, unet.resample_blocks
    assert isinstance(attention, Levels)
    levels = range(len(widths))
    if not isinstance(resample_blocks, Levels):
        everywhere = levels if resample_blocks else ()
        resample_blocks = Levels(everywhere, everywhere)
    kinds, ways = {}, {}
    for side, (plain, attending, resnet) in BLOCKS.items():
        attend, in_a_block = getattr(attention, side), getattr(resample_blocks, side)
        kinds[side] = [
            attending if level in attend else resnet if level in in_a_block else plain
            for level in levels
        ]
        end = levels[-1] if side == "down" else 0  # where the resolution changes no more
        way = {level in in_a_block for level in attend if level != end}
        need("resample_blocks", len(way) < 2, f"levels that attend must go {side} in one way")
        way = way or {level in in_a_block for level in attend}
        ways[side] = "resnet" if True in way else "conv"

    return {
        **DEFAULTS,
        "in_channels": in_channels,
        "out_channels": unet.out_channels or in_channels,
        "time_embedding_dim": unet.embedding_channels,
        "freq_shift": unet.freq_shift,
        "flip_sin_to_cos": unet.flip_sin_to_cos,
        "down_block_types": kinds["down"],
        "up_block_types": kinds["up"][::-1],
        "block_out_channels": widths,
        "layers_per_block": unet.blocks,
        "downsample_padding": paddings[unet.downsample_padding],
        "downsample_type": ways["down"],
        "upsample_type": ways["up"],
        "dropout": unet.dropout,
        "attention_head_dim": unet.head_channels,
        "norm_num_groups": groups,
        "attn_norm_num_groups": middle or None,
        "norm_eps": unet.epsilon,
        "resnet_time_scale_shift": "scale_shift" if unet.scale_shift else "default",
        "add_attention": unet.middle_attention,
        "num_class_embeds": unet.classes + 1 if unet.classes else None,
    }
