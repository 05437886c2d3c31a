"""What language models write, and how well they predict what others wrote."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.data.sources import Dataset
from aigc_jax.data.tokenizer import Tokenizer
from aigc_jax.data.tokens import Windows, bucket
from aigc_jax.metrics.likelihood import evaluate_terms


def evaluate_lm(
    model: Model,
    terms: Callable[..., Any],
    windows: Windows,
    tokenizer: Tokenizer,
    *,
    n: int | None = None,
    batch: int = 64,
) -> dict[str, float]:
    """Measure how well a language model predicts held-out text.

    A token of a window is predicted from those before it in the window alone: the first of them
    have little to go by, whatever stands before in the text.

    Args:
        model: what is measured.
        terms: those of `tasks.lm.lm_terms`.
        windows: held out; each but its first token is predicted, so that a stride of one less than
            their length predicts each token once.
        tokenizer: whose tokens these are.
        n: windows to average over; all by default.
        batch: windows at a time.

    Returns:
        `nats_per_token/test-<t>`, `perplexity/test-<t>`, which is e to that, and
        `nats_per_character/test-<t>`, of t tokens in all.
    """
    held_out = Dataset(windows, windows, (), "text")
    scores = evaluate_terms(model, terms, held_out, transform=None, n=n, batch=batch)
    windows_read = min(n or len(windows), len(windows))
    nll, count = (scores[f"{name}/test-{windows_read}"] for name in ("nll", "tokens"))
    tokens = windows.read(np.arange(windows_read))["tokens"][:, 1:]
    characters = len(tokenizer.inner.decode(tokens.reshape(-1).tolist(), skip_special_tokens=True))
    nats, total = nll / count, round(count * windows_read)
    return {
        f"nats_per_token/test-{total}": nats,
        f"perplexity/test-{total}": math.exp(nats),
        f"nats_per_character/test-{total}": nats * total / characters,
    }


def read_prompts(tokenizer: Tokenizer, context: int) -> Callable[[Sequence[str]], dict[str, Any]]:
    """Make the `Experiment.prompt` of a language model: texts to tokens, padded on the left.

    Args:
        tokenizer: of the model.
        context: tokens that it sees.

    Returns:
        `(texts) -> {"tokens": (b, t) int32, "start": (b,) int32}`, which raises a ValueError if a
        text is empty or has more tokens than `context`.
    """

    def prompt(texts: Sequence[str]) -> dict[str, Any]:
        encoded = tokenizer.encode_batch(list(texts))
        for text, tokens in zip(texts, encoded, strict=True):
            if not tokens:
                raise ValueError("a prompt is empty; leave it out to begin from nothing")
            if len(tokens) > context:
                shown = text if len(text) <= 40 else f"{text[:37]}..."
                raise ValueError(
                    f"prompt {shown!r} has {len(tokens)} tokens; the model's context is {context}"
                )
        pad = tokenizer.pad if tokenizer.pad is not None else 0
        tokens, start = bucket(encoded, pad)
        # A bucket may be larger than the context that all prompts fit.
        more = max(0, tokens.shape[1] - context)
        return {"tokens": tokens[:, more:], "start": start - more}

    return prompt


def show_texts(tokenizer: Tokenizer) -> Callable[[Any], dict[str, str]]:
    """Make the `Experiment.show` of a language model: what it wrote, prompts included."""

    def show(drawn: Any) -> dict[str, str]:
        rows = zip(np.asarray(drawn["tokens"]), np.asarray(drawn["start"]), strict=True)
        texts = [tokenizer.decode(tokens[start:]) for tokens, start in rows]
        rule = f"\n{'-' * 40}\n"
        return {"samples": rule.join(texts)}

    return show
