"""A small GPT of tiny Shakespeare by pieces of words, in the modern form of the network.

    aigc train gpt_shakespeare_bpe
    aigc sample runs/gpt_shakespeare_bpe --prompt "ROMEO:" --top-p 0.9
    aigc train gpt_shakespeare_bpe --form gpt2    # to export, and to go on from

Hardware: 1 CPU core, shared. Time: 4 minutes, of --form gpt2 --inner-steps 10.
Score: 1.704 nats a character of the held-out tenth; 3.844 a token
"""

from typing import Literal

import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.tokens import text_stream
from aigc_jax.models.gpt import GPT
from aigc_jax.tasks.lm import adamw
from experiments.gpt_shakespeare_char import language_model


def gpt_shakespeare_bpe(
    *,
    data: str = "tiny_shakespeare",
    vocabulary: int = 1024,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    context: int = 64,
    batch: int = 12,
    dropout: float = 0.1,
    decay_steps: int = 2000,
    learning_rate: float = 1e-3,
    warmup: int = 100,
    scan: bool = False,
    form: Literal["modern", "gpt2"] = "modern",
) -> Experiment:
    """Write Shakespeare by pieces of words.

    Args:
        data: a TFDS name, a file of UTF-8 text, or a folder that `aigc tokenize` made.
        vocabulary: of the tokenizer that is trained on the text, if it has none.
        layers: of the network.
        heads: of its attention.
        width: of its embeddings.
        context: tokens that it sees.
        batch: windows a step.
        dropout: of embeddings and of what each part adds.
        decay_steps: steps over which the learning rate falls, and how long to train by default.
        learning_rate: of AdamW, at its highest; it falls to a tenth along a cosine.
        warmup: steps over which it rises.
        scan: compile one block for all layers.
        form: modern, with rotary positions, RMSNorm and SwiGLU; or GPT-2's, which can be exported.
    """
    text = text_stream(data, kind="bpe", vocabulary=vocabulary)
    network = GPT(
        text.tokenizer.size,
        context,
        layers,
        heads,
        width,
        bias=False,
        dropout=dropout,
        scan=scan,
    )
    if form == "modern":
        network = network.clone(positions="rotary", norm="rms", mlp="swiglu")
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, decay_steps, learning_rate / 10
    )
    begin = text.tokenizer.encode("\n")[-1]
    return language_model(text, network, adamw(rate), batch=batch, steps=decay_steps, begin=begin)
