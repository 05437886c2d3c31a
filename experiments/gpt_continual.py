"""Teach a GPT-2 a second text, and measure what it forgets of the first.

    aigc train gpt_continual --checkpoint GPT2 --data TEXT
    aigc train gpt_continual --checkpoint GPT2 --data TEXT --remedy replay
    aigc train gpt_continual --checkpoint GPT2 --data TEXT --remedy elastic

The remedies are windows of the first text among those of the second, and elastic weight
consolidation (Kirkpatrick et al. 2017). GPT2 is a folder with config.json, model.safetensors and
the tokenizer's files, such as `aigc export` makes of a run that learned the first text.
Hardware: 1 CPU core, shared. Time: 2 minutes each.

Nats a token of held-out text, of a model that learned Shakespeare (`gpt_shakespeare_bpe --form
gpt2`), and then 1,000 steps of Python's documentation (--learning-rate 1e-3):

    remedy                        Shakespeare    documentation
    before                               3.79             7.98
    none                                 6.75             2.45
    replay, of a tenth                   4.44             2.45
    elastic, --strength 100              4.68             3.07
    elastic, --strength 1000             4.31             3.51
"""

from typing import Any, Literal

from aigc_jax.core.types import Experiment, Model
from aigc_jax.data.batches import batches
from aigc_jax.data.sources import Replayed
from aigc_jax.data.tokens import Windows
from aigc_jax.metrics.text import evaluate_lm
from aigc_jax.pretrained.gpt2 import read_gpt2, read_gpt2_network
from aigc_jax.tasks.continual import consolidate, diagonal_fisher
from aigc_jax.tasks.lm import adamw, lm_terms
from experiments.gpt2_finetune import tuning_text
from experiments.gpt_shakespeare_char import language_model


def gpt_continual(
    *,
    checkpoint: str,
    data: str,
    first: str = "tiny_shakespeare",
    remedy: Literal["none", "replay", "elastic"] = "none",
    share: float = 0.1,
    strength: float = 1000.0,
    measured: int = 256,
    context: int = 64,
    batch: int = 12,
    learning_rate: float = 3e-4,
    n: int = 200,
) -> Experiment:
    """Go on training a GPT-2 on a second text, with or without a remedy for forgetting the first.

    Args:
        checkpoint: the folder of the model that learned the first text, and of its tokenizer.
        data: the second text: a TFDS name, or a file of UTF-8 text.
        first: the first text.
        remedy: none; replay, which mixes windows of the first text in; or elastic, which holds
            weights that mattered to it.
        share: of the windows that are replayed.
        strength: of the elastic remedy, lambda.
        measured: windows of the first text by which it tells what mattered.
        context: tokens of a window.
        batch: windows a step.
        learning_rate: of AdamW, constant.
        n: held-out windows of each text to evaluate.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} must lie in (0, 1)")
    (second, begin), (before, _) = tuning_text(data, checkpoint), tuning_text(first, checkpoint)
    network = read_gpt2_network(checkpoint).clone(dropout=0.0, scan=False)
    tx = adamw(learning_rate, weight_decay=0.0)
    experiment = language_model(
        second, network, tx, window=context, batch=batch, steps=1000, begin=begin, n=n
    )
    new, old = (Windows(text.train, context + 1) for text in (second, before))
    tests = {
        name: Windows(text.test, context + 1, context)
        for name, text in (("first", before), ("second", second))
    }

    def evaluate(model: Model) -> dict[str, float]:
        terms, scores = lm_terms(network), {}
        for name, test in tests.items():
            of = evaluate_lm(model, terms, test, second.tokenizer, n=n)
            scores |= {f"{name}_{key}": value for key, value in of.items()}
        return scores

    def weights() -> dict[str, Any]:
        params = {"gpt": read_gpt2(checkpoint)[1]}
        if remedy != "elastic":
            return params
        stream = batches(old, 32, seed=0)
        some: Any = map(stream.__getitem__, range(-(-measured // 32)))
        fisher = diagonal_fisher(experiment.task, "gpt", params, {}, some)
        return params | {"anchor": params["gpt"], "fisher": fisher}

    task = experiment.task
    source = Replayed(new, old, share) if remedy == "replay" else new
    return experiment._replace(
        task=consolidate(task, "gpt", strength) if remedy == "elastic" else task,
        data=lambda seed: batches(source, batch, seed),
        evaluate=evaluate,
        weights=weights,
        best=None,
    )
