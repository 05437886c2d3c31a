"""GPT-2 as Hugging Face's transformers has it, in and out.

A directory holds a `config.json` and a `model.safetensors`, whole or in parts, as
`save_pretrained` writes them; `data.tokenizer.load_tokenizer` reads the tokenizer beside them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.models.gpt import GPT
from aigc_jax.pretrained.huggingface import (
    CONFIG,
    SHARD,
    Shapes,
    Tensor,
    check_options,
    linear,
    open_weights,
    read_config,
    read_params,
    refuse_unless,
    same,
    shapes_of,
    write_params,
)

# The options of `GPT2Config` that a network is made of, and what stands for one left out.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# What there is of some of them here; all three names are of GELU's tanh form.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True, False),
}
COUNTS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")


def read_gpt2_network(directory: str | Path) -> GPT:
    """Read what a GPT-2 in a directory is, by its `config.json` alone.

    Its dropout is `resid_pdrop`, which is transformers' but for the attention's weights, where
    there is none here.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is another, or an option of it is not supported.
    """
    path = Path(directory) / CONFIG
    config = read_config(path)
    if config.get("model_type") != "gpt2":
        raise ValueError(f"{path} is of model_type={config.get('model_type')!r}; it must be 'gpt2'")
    options = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
    try:
        check_options(options, SUPPORTED, COUNTS)
        hidden, dropout = options["n_inner"], options["resid_pdrop"]
        right = hidden is None or (type(hidden) is int and hidden > 0)
        refuse_unless(options, "n_inner", right, "null or an integer of at least 1")
        right = type(dropout) in (int, float) and 0 <= dropout < 1
        refuse_unless(options, "resid_pdrop", right, "a number in [0, 1)")
        network = GPT(
            options["vocab_size"],
            options["n_positions"],
            options["n_layer"],
            options["n_head"],
            options["n_embd"],
            hidden=hidden,
            tied=options["tie_word_embeddings"],
            dropout=dropout,
        )
        gpt_shapes(network)  # which refuses sizes that do not go together
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return network


def read_gpt2(directory: str | Path, *, dtype: Any = jnp.float32) -> tuple[GPT, dict[str, Any]]:
    """Read a GPT-2 that transformers wrote, or `write_gpt2`.

    In float32 the network's logits are transformers' to 1e-4; on a GPU or TPU, with
    `jax_default_matmul_precision="highest"`.

    Args:
        directory: with `config.json` and `model.safetensors`, or `model.safetensors.index.json`
            and the files it names.
        dtype: of the parameters.

    Returns:
        The network, as of `read_gpt2_network`, and its parameters:
        `gpt.apply({"params": params}, tokens)`.

    Raises:
        FileNotFoundError: the directory or one of its files is not there.
        ValueError: the weights are there as a pickle only, or not whole; the model is another, or
            an option of it is not supported; or the weights do not fit the configuration.
    """
    network = read_gpt2_network(directory)

    def rename(name: str) -> str | None:
        if re.fullmatch(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", name):
            return None  # what is masked, which old files keep
        if name == "lm_head.weight":
            return "transformer.wte.weight" if network.tied else name
        return name if name.startswith("transformer.") else f"transformer.{name}"

    with open_weights(directory) as weights:
        tensors, shapes = _tensors(network), gpt_shapes(network)
        return network, read_params(weights, tensors, shapes, rename=rename, dtype=dtype)


def write_gpt2(
    directory: str | Path,
    network: GPT,
    params: Mapping[str, Any],
    *,
    end: int | None = None,
    dtype: Any = None,
    shard: int = SHARD,
) -> None:
    """Write a network for `GPT2LMHeadModel.from_pretrained` to load, and `read_gpt2` to read back.

    GPT-2 has biases: of a network without, they are zeros.

    Args:
        directory: made if need be; its configuration and weights are replaced, all or none.
        network: the network.
        params: its parameters.
        end: the token that begins and ends a text, of which transformers' `generate` makes use.
        dtype: to write the weights in; None is that of each parameter.
        shard: the most bytes of a file; beyond it, weights are in several.

    Raises:
        ValueError: an attribute of the network has no counterpart, or the parameters are not its.
        OSError: a file cannot be written; those already there stay.
    """
    refuse_without_counterpart(network)
    if not network.bias:
        network = network.clone(bias=True)
        params = _with_biases(params, network)
    if end is not None and not 0 <= end < network.vocabulary:
        raise ValueError(f"end={end} must lie in [0, {network.vocabulary}), the vocabulary")
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **DEFAULTS,
        "vocab_size": network.vocabulary,
        "n_positions": network.context,
        "n_embd": network.width,
        "n_layer": network.layers,
        "n_head": network.heads,
        "n_inner": network.hidden,
        "resid_pdrop": network.dropout,
        "embd_pdrop": network.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": network.tied,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    write_params(
        directory,
        params,
        _tensors(network),
        gpt_shapes(network),
        config,
        network="GPT",
        dtype=dtype,
        shard=shard,
    )


def refuse_without_counterpart(network: GPT) -> None:
    """Refuse networks that GPT-2 cannot be.

    Raises:
        ValueError: naming the attribute, its value and what is allowed.
    """
    heads = network.kv_heads in (None, network.heads)
    for name, holds, allowed in (
        ("positions", network.positions == "learned", "'learned'"),
        ("norm", network.norm == "layer", "'layer'"),
        ("mlp", network.mlp == "gelu", "'gelu'"),
        ("kv_heads", heads, f"None or heads={network.heads}"),
        ("classes", network.classes == 0, "0"),
    ):
        if not holds:
            value = getattr(network, name)
            raise ValueError(f"{name}={value!r} has no counterpart in GPT-2: it must be {allowed}")


def _with_biases(params: Mapping[str, Any], network: GPT) -> dict[str, Any]:
    """Add the biases of a network, zeros, to parameters that have none."""
    flat: dict[Any, Any] = flatten_dict(params)
    for path, shape in gpt_shapes(network).items():
        if path[-1] == "bias":
            flat.setdefault(path, jnp.zeros(shape.shape, shape.dtype))
    return unflatten_dict(flat)


def gpt_shapes(network: GPT) -> Shapes:
    """Return the shapes of a network's parameters, by path."""
    return shapes_of(network.init, jnp.zeros((1, 1), jnp.int32))


def gpt2_linears(network: GPT) -> dict[str, dict[str, Any]]:
    """Return the linear layers of a block, by GPT-2's names: the options of `huggingface.linear`.

    GPT-2's features of c_attn are (3, heads, d), and ours (heads, 3, d).
    """
    width, heads = network.width, network.heads
    hidden, d = network.hidden or 4 * width, width // heads
    of = lambda path, inputs, outputs, order=None: {
        "path": ("blocks", *path),
        "inputs": inputs,
        "outputs": outputs,
        "order": order,
    }
    return {
        "attn.c_attn": of(("attention", "qkv"), (width,), (3, heads, d), (1, 0, 2)),
        "attn.c_proj": of(("attention", "out"), (heads, d), (width,)),
        "mlp.c_fc": of(("mlp", "in"), (width,), (hidden,)),
        "mlp.c_proj": of(("mlp", "out"), (hidden,), (width,)),
    }


def _tensors(network: GPT) -> list[Tensor]:
    width = network.width

    def norm(name: str, path: tuple[str, ...], at: tuple[int, ...] = ()) -> list[Tensor]:
        leaves = {"weight": "scale", "bias": "bias"}
        return [
            same(f"transformer.{name}.{theirs}", (*path, ours), (width,), at)
            for theirs, ours in leaves.items()
        ]

    tensors = [
        same("transformer.wte.weight", ("tokens", "embedding"), (network.vocabulary, width)),
        same("transformer.wpe.weight", ("positions", "embedding"), (network.context, width)),
        *norm("ln_f", ("norm",)),
    ]
    for i in range(network.layers):
        tensors += norm(f"h.{i}.ln_1", ("blocks", "attention_norm"), (i,))
        tensors += norm(f"h.{i}.ln_2", ("blocks", "mlp_norm"), (i,))
        for name, options in gpt2_linears(network).items():
            # Their Conv1D has its inputs first.
            name = f"transformer.h.{i}.{name}"
            tensors += linear(name, **options, inputs_first=True, at=(i,))
    if not network.tied:
        tensors += linear("lm_head", ("head",), (width,), (network.vocabulary,), bias=False)
    return tensors
