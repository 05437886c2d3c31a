"""Low-rank adapters as Hugging Face's PEFT has them, in and out.

A directory holds an `adapter_config.json` and an `adapter_model.safetensors`, as
`PeftModel.save_pretrained` writes them; the model they are for lies elsewhere.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from aigc_jax.models.gpt import GPT
from aigc_jax.pretrained.gpt2 import gpt2_linears, refuse_without_counterpart
from aigc_jax.pretrained.huggingface import (
    Tensor,
    check_options,
    open_weights,
    read_config,
    read_params,
    refuse_unless,
    write_params,
)

CONFIG, STEM = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model.transformer."

# The options of `LoraConfig` that are read here, and what stands for one left out.
DEFAULTS: dict[str, Any] = {
    "peft_type": None,
    "r": 8,
    "lora_alpha": 8,
    "target_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "use_rslora": False,
    "bias": "none",
    "init_lora_weights": True,
}
# What there is of some of them here. Some ways to begin change the model's own weights as well.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "layers_pattern": (None, [], "h", ["h"]),
    "use_rslora": (False, True),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
# What says nothing about what is computed; all else, in this or any later PEFT, must be off.
INDIFFERENT = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "parent_library",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
OFF = (None, False, [], {})


def read_peft(
    directory: str | Path, network: GPT, *, dtype: Any = jnp.float32
) -> tuple[dict[str, Any], float]:
    """Read an adapter that PEFT saved for a GPT-2, or `write_peft`.

    Args:
        directory: with `adapter_config.json` and `adapter_model.safetensors`.
        network: that it is for, as `pretrained.gpt2.read_gpt2` gives it.
        dtype: of the factors.

    Returns:
        The factors and their scale, of `nn.lora`: `with lora(scale): network.apply({"params":
        params, "lora": factors}, tokens)`. Layers of a stack that have none get zeros.

    Raises:
        FileNotFoundError: the directory or one of its files is not there.
        ValueError: the weights are there as a pickle only, or not whole; an option is not
            supported; or the weights fit neither the configuration nor the network.
    """
    refuse_without_counterpart(network)
    path = Path(directory) / CONFIG
    config = read_config(path)
    options = DEFAULTS | config
    try:
        check_options(options, SUPPORTED, ["r"])
        for name in sorted(config.keys() - DEFAULTS.keys() - INDIFFERENT):
            refuse_unless(config, name, config[name] in OFF, "left out")
        alpha, layers = options["lora_alpha"], options["layers_to_transform"]
        refuse_unless(options, "lora_alpha", type(alpha) in (int, float), "a number")
        layers = [layers] if isinstance(layers, int) else layers
        right = layers is None or (
            isinstance(layers, list) and all(i in range(network.layers) for i in layers)
        )
        refuse_unless(options, "layers_to_transform", right, f"within {network.layers} layers")
        chosen = {
            (i, name)
            for i in range(network.layers)
            for name in gpt2_linears(network)
            if (layers is None or i in layers) and _is_target(options, f"h.{i}.{name}")
        }
        names = ", ".join(gpt2_linears(network))
        refuse_unless(options, "target_modules", bool(chosen), f"some of {names}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tensors, shapes = _tensors(network, options["r"], chosen)

    def rename(name: str) -> str:
        tail = name.removeprefix("base_model.model.").removeprefix("transformer.")
        return PREFIX + tail

    with open_weights(directory, STEM) as weights:
        factors = read_params(weights, tensors, shapes, rename=rename, dtype=dtype, of=CONFIG)
    return factors, alpha / options["r"] ** (0.5 if options["use_rslora"] else 1)


def write_peft(
    directory: str | Path,
    network: GPT,
    factors: Mapping[str, Any],
    scale: float,
    *,
    base: str | None = None,
    dtype: Any = None,
) -> None:
    """Write an adapter for `PeftModel.from_pretrained` to load, and `read_peft` to read back.

    Args:
        directory: made if need be; its configuration and weights are replaced, both or neither.
        network: that it is for.
        factors: of `nn.lora`.
        scale: ditto.
        base: the name or directory of the model that it is for, as transformers finds it.
        dtype: to write the weights in; None is that of each factor.

    Raises:
        ValueError: the network is no GPT-2, or the factors are not for layers of its blocks, or of
            several ranks.
        OSError: a file cannot be written; those already there stay.
    """
    refuse_without_counterpart(network)
    flat: Any = flatten_dict(factors)
    linears = {options["path"]: name for name, options in gpt2_linears(network).items()}
    ranks = {leaf.shape[-1] for path, leaf in flat.items() if path[-1] == "a"}
    for path in flat:
        if path[:-1] not in linears:
            known = ", ".join(map("/".join, linears))
            raise ValueError(f"GPT-2 has no layer {'/'.join(path[:-1])}: it has {known}")
    if len(ranks) != 1:
        raise ValueError(f"factors have ranks {sorted(ranks)}: there must be one")
    (rank,) = ranks
    names = [linears[path] for path in linears if (*path, "a") in flat]
    chosen = {(i, name) for i in range(network.layers) for name in names}
    tensors, shapes = _tensors(network, rank, chosen)
    alpha = scale * rank
    config = {
        **DEFAULTS,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": names,
        "fan_in_fan_out": True,
        "inference_mode": True,
    }
    write_params(
        directory,
        factors,
        tensors,
        shapes,
        config,
        network="adapter",
        dtype=dtype,
        stem=STEM,
        config_name=CONFIG,
    )


def _is_target(options: Mapping[str, Any], name: str) -> bool:
    """Tell whether a layer of GPT-2 is adapted, by PEFT's rules."""
    targets = options["target_modules"]
    full = f"transformer.{name}"
    if isinstance(targets, str):
        if targets == "all-linear":
            return True
        try:
            return any(re.fullmatch(targets, said) for said in (full, name))
        except re.error:
            return False
    said = targets if isinstance(targets, list) else []
    return any(f".{full}".endswith(f".{target}") for target in said)


def _tensors(
    network: GPT, rank: int, chosen: set[tuple[int, str]]
) -> tuple[list[Tensor], dict[tuple[str, ...], jax.ShapeDtypeStruct]]:
    """List the factors of layers, (index, name), and the shapes that they make."""
    tensors, shapes = [], {}
    for i, name in sorted(chosen):
        path, inputs, outputs, order = gpt2_linears(network)[name].values()
        n, m = len(inputs), len(outputs)
        order = order or tuple(range(m))
        a, b = (rank, *inputs), (*outputs, rank)
        # (rank, *inputs) -> (*inputs, rank), and (*outputs, rank) -> (rank, *outputs)
        for which, leaf, split, axes in (
            ("A", "a", a, (*range(1, n + 1), 0)),
            ("B", "b", b, (m, *order)),
        ):
            theirs = f"{PREFIX}h.{i}.{name}.lora_{which}.weight"
            flat = (rank, int(np.prod(inputs))) if which == "A" else (int(np.prod(outputs)), rank)
            tensors.append(Tensor(theirs, flat, (*path, leaf), split, axes, (i,)))
            shape = (network.layers, *(split[axis] for axis in axes))
            shapes[*path, leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tensors, shapes
