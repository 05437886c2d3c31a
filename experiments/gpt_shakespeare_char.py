"""A small GPT of tiny Shakespeare, character by character: nanoGPT's recipes (Karpathy 2022).

    aigc train gpt_shakespeare_char
    aigc train gpt_shakespeare_char --preset gpu
    aigc sample runs/gpt_shakespeare_char --prompt "ROMEO:" --n 1

Hardware: 1 CPU core. Time: 2.5 minutes, with --inner-steps 10.
Score: 1.904 nats a character of the held-out tenth (seeds 0, 1, 2: 1.896, 1.903, 1.913)

PyTorch's form of it, from the same weights and on the same batches, ends at the same 1.8956 as seed
0 (`tests/quality/test_gpt_torch.py`). nanoGPT says 1.88, by 240 windows drawn at random: of such
estimates the standard deviation is 0.014. --preset gpu is for one GPU; its score will follow.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import batches
from aigc_jax.data.tokens import TextStream, Windows, text_stream
from aigc_jax.metrics.text import evaluate_lm, read_prompts, show_texts
from aigc_jax.models.gpt import GPT
from aigc_jax.pretrained.gpt2 import write_gpt2
from aigc_jax.tasks.adapters import Adapter
from aigc_jax.tasks.lm import adamw, lm, lm_terms


class Recipe(NamedTuple):
    """What a preset sets, unless the command line does."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    dropout: float
    steps: int
    dtype: Literal["float32", "bfloat16"]


PRESETS = {
    "cpu": Recipe(4, 4, 128, 64, 12, 0.0, 2000, "float32"),
    "gpu": Recipe(6, 6, 384, 256, 64, 0.2, 5000, "bfloat16"),
}


def gpt_shakespeare_char(
    *,
    data: str = "tiny_shakespeare",
    preset: Literal["cpu", "gpu"] = "cpu",
    layers: int | None = None,
    heads: int | None = None,
    width: int | None = None,
    context: int | None = None,
    batch: int | None = None,
    dropout: float | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    learning_rate: float = 1e-3,
    warmup: int = 100,
    scan: bool = False,
) -> Experiment:
    """Write Shakespeare, character by character (GPT-2's architecture, without biases).

    Args:
        data: a TFDS name, a file of UTF-8 text, or a folder that `aigc tokenize` made.
        preset: nanoGPT's recipe for a CPU, or for one GPU; what follows is of it unless given.
        layers: of the network.
        heads: of its attention.
        width: of its embeddings.
        context: characters that it sees.
        batch: windows a step.
        dropout: of embeddings and of what each part adds.
        dtype: of the computation.
        learning_rate: of AdamW, at its highest; it falls to a tenth along a cosine.
        warmup: steps over which it rises.
        scan: compile one block for all layers.
    """
    given = {"layers": layers, "heads": heads, "width": width, "context": context}
    given |= {"batch": batch, "dropout": dropout, "dtype": dtype}
    of = PRESETS[preset]._replace(**{k: v for k, v in given.items() if v is not None})
    text = text_stream(data, kind="char")
    network = GPT(
        text.tokenizer.size,
        of.context,
        of.layers,
        of.heads,
        of.width,
        bias=False,
        dropout=of.dropout,
        scan=scan,
        dtype=jnp.dtype(of.dtype),
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, of.steps, learning_rate / 10
    )
    [newline] = text.tokenizer.encode("\n")
    return language_model(
        text, network, adamw(rate, b2=0.99), batch=of.batch, steps=of.steps, begin=newline
    )


def language_model(
    text: TextStream,
    network: GPT,
    tx: optax.GradientTransformation,
    *,
    batch: int,
    steps: int,
    begin: int,
    adapter: Adapter | None = None,
    window: int | None = None,
    stride: int = 1,
    n: int | None = None,
) -> Experiment:
    """Surround a language model with its data, evaluation and pictures.

    Args:
        text: to learn from.
        network: the model.
        tx: its optimiser.
        batch: windows a step.
        steps: how long to train.
        begin: the token that an empty prompt stands for.
        adapter: what trains in the network's stead.
        window: tokens of a window; the network's context by default.
        stride: tokens from the start of one window to that of the next.
        n: windows to evaluate; all by default.

    Raises:
        ValueError: the text has tokens that the network does not know, or a window is longer than
            its context.
    """
    tokenizer, context = text.tokenizer, window or network.context
    if tokenizer.size > network.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens, and the model knows {network.vocabulary}"
        )
    if not 1 <= context <= network.context:
        raise ValueError(f"context={context} must lie in [1, {network.context}], the model's own")
    train = Windows(text.train, context + 1, stride)
    test = Windows(text.test, context + 1, context)
    end, pad, show = tokenizer.end, tokenizer.pad, show_texts(tokenizer)
    ends: dict[str, Any] = {"stop": () if end is None else (end,), "pad": pad or end or 0}
    measured = min(n or len(test), len(test)) * context
    terms = lm_terms(network, adapter)

    def export(model: Model, directory: Path) -> str:
        write_gpt2(directory, network, model.params["gpt"], end=end)
        tokenizer.save(directory)
        return "a GPT-2 and its tokenizer, for transformers"

    return Experiment(
        task=lm(network, tx, adapter=adapter, begin=begin, vocabulary=tokenizer.size, **ends),
        data=lambda seed: batches(train, batch, seed),
        steps=steps,
        batch=batch,
        evaluate=lambda model: evaluate_lm(model, terms, test, tokenizer, n=n),
        picture=lambda model: show(model.draw(4, length=min(512, 2 * context))),
        best=(f"nats_per_token/test-{measured}", "min"),
        show=show,
        prompt=read_prompts(tokenizer, network.context),
        export=export,
    )
