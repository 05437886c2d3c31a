"""BERT as Hugging Face's transformers has it, in and out.

A directory holds a `config.json` and a `model.safetensors`, whole or in parts, as
`save_pretrained` writes them; `data.tokenizer.load_tokenizer` reads the tokenizer beside them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array

from aigc_jax.models.bert import BERT, EPSILON
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

# The options of `BertConfig` that a network is made of, and what stands for one left out.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": EPSILON,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# What there is of some of them here.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python"),
    "layer_norm_eps": (EPSILON,),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
HEADS = {"head": "cls.predictions.", "pooler": "bert.pooler."}


def read_bert(directory: str | Path, *, dtype: Any = jnp.float32) -> tuple[BERT, dict[str, Any]]:
    """Read a BERT that transformers saved, or `write_bert`.

    Of its heads those are read that are there and that `models.bert.BERT` has: `head`, of masked
    tokens, and `pooler`; what tells whether two sentences follow one another is left out. In
    float32 features and logits are transformers' to 1e-4; on a GPU or TPU, with
    `jax_default_matmul_precision="highest"`. Its dropout is `hidden_dropout_prob`, which is theirs
    but for the attention's weights, where there is none here.

    Args:
        directory: with `config.json` and `model.safetensors`, or `model.safetensors.index.json`
            and the files it names.
        dtype: of the parameters.

    Returns:
        The network, and its parameters: `bert.apply({"params": params}, tokens)`.

    Raises:
        FileNotFoundError: the directory or one of its files is not there.
        ValueError: the weights are there as a pickle only, or not whole; the model is another, or
            an option of it is not supported; or the weights do not fit the configuration.
    """
    path = Path(directory) / CONFIG
    config = read_config(path)
    if config.get("model_type") != "bert":
        raise ValueError(f"{path} is of model_type={config.get('model_type')!r}; it must be 'bert'")
    options = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
    try:
        check_options(options, SUPPORTED, COUNTS)
        dropout = options["hidden_dropout_prob"]
        right = type(dropout) in (int, float) and 0 <= dropout < 1
        refuse_unless(options, "hidden_dropout_prob", right, "a number in [0, 1)")
        hidden = options["intermediate_size"]
        network = BERT(
            options["vocab_size"],
            options["max_position_embeddings"],
            options["num_hidden_layers"],
            options["num_attention_heads"],
            options["hidden_size"],
            None if hidden == 4 * options["hidden_size"] else hidden,
            options["type_vocab_size"],
            dropout,
        )
        shapes = _shapes(network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    with open_weights(directory) as weights:
        names = [_rename(name) or "" for name in weights.files]
        heads = [head for head, prefix in HEADS.items() if any(n.startswith(prefix) for n in names)]
        tensors, shapes = _tensors(network, heads), _only(heads, shapes)
        return network, read_params(weights, tensors, shapes, rename=_rename, dtype=dtype)


def write_bert(
    directory: str | Path,
    network: BERT,
    params: Mapping[str, Any],
    *,
    dtype: Any = None,
    shard: int = SHARD,
) -> None:
    """Write a network for transformers to load, and `read_bert` to read back.

    With a `head` among its parameters it is a `BertForMaskedLM`, else a `BertModel`, which without
    a `pooler` wants `add_pooling_layer=False`.

    Args:
        directory: made if need be; its configuration and weights are replaced, all or none.
        network: the network.
        params: its parameters.
        dtype: to write the weights in; None is that of each parameter.
        shard: the most bytes of a file; beyond it, weights are in several.

    Raises:
        ValueError: the parameters are not the network's.
        OSError: a file cannot be written; those already there stay.
    """
    heads = [head for head in HEADS if head in params]
    tensors = _tensors(network, heads)
    if "head" not in heads:
        tensors = [tensor._replace(name=tensor.name.removeprefix("bert.")) for tensor in tensors]
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM" if "head" in heads else "BertModel"],
        **DEFAULTS,
        "vocab_size": network.vocabulary,
        "hidden_size": network.width,
        "num_hidden_layers": network.layers,
        "num_attention_heads": network.heads,
        "intermediate_size": network.hidden or 4 * network.width,
        "hidden_dropout_prob": network.dropout,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": network.context,
        "type_vocab_size": network.segments,
    }
    write_params(
        directory,
        params,
        tensors,
        _only(heads, _shapes(network)),
        config,
        network="BERT",
        dtype=dtype,
        shard=shard,
    )


def _rename(name: str) -> str | None:
    """Return the one name of what transformers has called in several ways."""
    if re.fullmatch(r"(bert\.)?embeddings\.position_ids", name):
        return None  # 0, 1, 2, …, which old files keep
    if name.startswith("cls.seq_relationship."):
        return None
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    if name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    tied = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    return tied.get(name, name)


def _shapes(network: BERT) -> Shapes:
    """Return the shapes of a network's parameters, both heads' among them."""

    def everything(bert: BERT, tokens: Array) -> tuple[Array, Array]:
        x = bert(tokens)
        return bert.logits(x), bert.pool(x)

    return shapes_of(network.init, jnp.zeros((1, 1), jnp.int32), method=everything)


def _only(heads: list[str], shapes: Shapes) -> Shapes:
    return {path: leaf for path, leaf in shapes.items() if path[0] not in HEADS.keys() - heads}


def _tensors(network: BERT, heads: list[str]) -> list[Tensor]:
    width, n = network.width, network.heads
    hidden, d = network.hidden or 4 * width, width // n

    def norm(name: str, path: tuple[str, ...], at: tuple[int, ...] = ()) -> list[Tensor]:
        leaves = {"weight": "scale", "bias": "bias"}
        return [
            same(f"{name}.{theirs}", (*path, ours), (width,), at) for theirs, ours in leaves.items()
        ]

    embeddings = {
        "word": ("tokens", network.vocabulary),
        "position": ("positions", network.context),
        "token_type": ("segments", network.segments),
    }
    tensors = [
        same(f"bert.embeddings.{theirs}_embeddings.weight", (ours, "embedding"), (size, width))
        for theirs, (ours, size) in embeddings.items()
    ]
    tensors += norm("bert.embeddings.LayerNorm", ("embedding_norm",))
    for i in range(network.layers):
        layer, attention = f"bert.encoder.layer.{i}", ("blocks", "attention")
        for j, part in enumerate(("query", "key", "value")):
            tensors += linear(
                f"{layer}.attention.self.{part}",
                (*attention, "qkv"),
                (width,),
                (n, d),
                at=(i,),
                slot=(slice(None), j),
            )
        for name, path, inputs, outputs in (
            ("attention.output", (*attention, "out"), (n, d), (width,)),
            ("intermediate", ("blocks", "mlp", "in"), (width,), (hidden,)),
            ("output", ("blocks", "mlp", "out"), (hidden,), (width,)),
        ):
            tensors += linear(f"{layer}.{name}.dense", path, inputs, outputs, at=(i,))
        for name, ours in (("attention.output", "attention"), ("output", "mlp")):
            tensors += norm(f"{layer}.{name}.LayerNorm", ("blocks", f"{ours}_norm"), (i,))
    if "pooler" in heads:
        tensors += linear("bert.pooler.dense", ("pooler",), (width,), (width,))
    if "head" in heads:
        transform = "cls.predictions.transform"
        tensors += linear(f"{transform}.dense", ("head", "dense"), (width,), (width,))
        tensors += norm(f"{transform}.LayerNorm", ("head", "norm"))
        tensors.append(same("cls.predictions.bias", ("head", "bias"), (network.vocabulary,)))
    return tensors
