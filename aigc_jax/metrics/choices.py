"""Multiple choice by the likelihood of each answer: zero-shot, or after some that are solved."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.core.types import Model
from aigc_jax.data.batches import batched
from aigc_jax.data.tokenizer import Tokenizer


class Question(NamedTuple):
    """A question with one right answer.

    Attributes:
        prompt: what stands before the answer.
        choices: the answers, each as it goes on from the prompt, the space between included.
        right: which is right.
    """

    prompt: str
    choices: Sequence[str]
    right: int


def evaluate_choices(
    model: Model,
    terms: Callable[..., dict[str, Array]],
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    context: int,
    solved: Sequence[Question] = (),
    separator: str = "\n\n",
    batch: int = 32,
) -> dict[str, float]:
    """Measure how often a language model holds the right answer for the likeliest.

    Brown et al. 2020, *Language Models are Few-Shot Learners*, §2.4.

    Args:
        model: what is measured.
        terms: those of `tasks.lm.lm_terms`.
        questions: what is asked.
        tokenizer: of the model.
        context: tokens that it sees.
        solved: questions that stand before each, with their right answers: few-shot.
        separator: what stands between them.
        batch: answers at a time.

    Returns:
        `accuracy/<k>-shot-<n>`, by the log-likelihood of an answer given its prompt, and
        `accuracy_per_token/<k>-shot-<n>`, by that over its tokens, which does not favour short
        answers; of k solved before and n questions.

    Raises:
        ValueError: there is no question, one has no right answer, or one does not fit the context.
    """
    if not questions:
        raise ValueError("questions is empty; there must be at least one")
    before = "".join(q.prompt + q.choices[q.right] + separator for q in solved)
    rows, whose = [], []
    for i, question in enumerate(questions):
        if not 0 <= question.right < len(question.choices):
            raise ValueError(
                f"question {i}: right={question.right} is none of {len(question.choices)} choices"
            )
        prompt = tokenizer.encode(before + question.prompt)
        for choice in question.choices:
            if not choice:
                raise ValueError(f"question {i}: an answer is empty")
            # Together, so that an answer's first token is what it is after the prompt.
            both = tokenizer.encode(before + question.prompt + choice)
            same = next(
                (j for j, (a, b) in enumerate(zip(prompt, both, strict=False)) if a != b),
                min(len(prompt), len(both) - 1),
            )
            if not 1 <= same < len(both) <= context + 1:
                raise ValueError(
                    f"question {i}: {choice!r} and what stands before it are {len(both)} tokens, "
                    f"{len(both) - same} of its own; context={context}"
                )
            rows.append((both, same))
            whose.append(i)
    t = max(len(tokens) for tokens, _ in rows)
    tokens, mask = np.zeros((len(rows), t), np.int32), np.zeros((len(rows), t), np.float32)
    for i, (row, same) in enumerate(rows):
        tokens[i, : len(row)] = row  # what follows changes nothing that stands before
        mask[i, same : len(row)] = 1

    @jax.jit
    def run(params: Any, stats: Any, examples: Any, index: Array) -> dict[str, Array]:
        return terms(params, stats, examples, example_keys(stream(0, "choices"), index))

    each = batched(
        lambda part: run(model.params, model.stats, *part),
        ({"tokens": tokens, "mask": mask}, np.arange(len(rows))),
        batch,
    )
    scores = {"accuracy": -each["nll"], "accuracy_per_token": -each["nll"] / each["tokens"]}
    whose, tag = np.array(whose), f"{len(solved)}-shot-{len(questions)}"
    return {
        f"{name}/{tag}": float(
            np.mean([score[whose == i].argmax() == q.right for i, q in enumerate(questions)])
        )
        for name, score in scores.items()
    }
