"""GPT-2 124M from scratch, on any text: nanoGPT's recipe for OpenWebText (Karpathy 2022).

    aigc tokenize TEXT --tokenizer GPT2 --out tokens      # once; GPT2 is a folder of its tokenizer
    aigc train gpt_124m --data tokens --fsdp -1
    aigc train gpt_124m --data tokens --batch 32 --accumulate 8      # fewer devices

Hardware: a pod of GPUs or TPUs. nanoGPT reports 2.85 nats a token of OpenWebText.
"""

from typing import Literal

import jax.numpy as jnp
import optax

from aigc_jax.core.types import Experiment
from aigc_jax.data.tokens import text_stream
from aigc_jax.models.gpt import GPT
from aigc_jax.tasks.lm import adamw
from experiments.gpt_shakespeare_char import language_model


def gpt_124m(
    *,
    data: str = "tiny_shakespeare",
    vocabulary: int = 50257,
    context: int = 1024,
    batch: int = 480,
    decay_steps: int = 600_000,
    learning_rate: float = 6e-4,
    warmup: int = 2000,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    scan: bool = True,
    remat: bool = False,
    n: int = 1000,
) -> Experiment:
    """Train the smallest GPT-2 from scratch (12 layers, 12 heads, width 768).

    Args:
        data: a TFDS name, a file of UTF-8 text, or a folder that `aigc tokenize` made, which is
            mapped into memory and may be larger.
        vocabulary: of the tokenizer that is trained on the text, if it has none.
        context: tokens that it sees.
        batch: windows a step, over all devices.
        decay_steps: steps over which the learning rate falls, and how long to train by default.
        learning_rate: of AdamW, at its highest; it falls to a tenth along a cosine.
        warmup: steps over which it rises.
        dtype: of the computation.
        scan: compile one block for all layers.
        remat: compute blocks again on the way back, which takes less memory.
        n: held-out windows to evaluate.
    """
    text = text_stream(data, kind="bpe", vocabulary=vocabulary)
    # A multiple of 128 divides over devices, and fills their matrix units; the rest is not written.
    network = GPT(
        -(-text.tokenizer.size // 128) * 128,
        context,
        bias=False,
        scan=scan,
        remat=remat,
        dtype=jnp.dtype(dtype),
    )
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, decay_steps, learning_rate / 10
    )
    begin = text.tokenizer.end
    begin = text.tokenizer.encode("\n")[-1] if begin is None else begin
    return language_model(
        text, network, adamw(rate), batch=batch, steps=decay_steps, begin=begin, stride=context, n=n
    )
