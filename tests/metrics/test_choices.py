import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.types import Model
from aigc_jax.data.tokenizer import train_tokenizer
from aigc_jax.metrics.choices import Question, evaluate_choices

TOKENIZER = train_tokenizer(["abcdefgh?"], kind="char")
MODEL = Model({}, {}, lambda *args, **kwargs: None)
QUESTIONS = [Question("ab?", ["c", "dd"], 0), Question("abc?", ["ee", "h"], 1)]


def terms(params, stats, batch, keys):
    """A token costs 1 nat for each letter from a on; but an h is dear the first time it is seen."""
    tokens, mask = batch["tokens"][:, 1:], batch["mask"][:, 1:]
    h = TOKENIZER.encode("h")[0]
    seen = (jnp.cumsum(batch["tokens"] == h, 1)[:, :-1] > 0) & (tokens == h)
    cost = jnp.where(seen, 0.5, tokens.astype(jnp.float32))
    return {"nll": (cost * mask).sum(1), "tokens": mask.sum(1)}


def evaluate(questions=QUESTIONS, **options):
    options = {"context": 12, "batch": 3, "separator": "?"} | options
    return evaluate_choices(MODEL, terms, questions, TOKENIZER, **options)


def test_the_likeliest_answer_is_taken_as_a_whole_or_per_token():
    # c costs 3 and dd 8; ee costs 10, or 5 a token, and h costs 8.
    assert evaluate() == {"accuracy/0-shot-2": 1.0, "accuracy_per_token/0-shot-2": 0.5}


def test_what_is_solved_before_helps():
    solved = [Question("a?", ["h", "b"], 0)]
    scores = evaluate(solved=solved)
    assert scores == {"accuracy/1-shot-2": 1.0, "accuracy_per_token/1-shot-2": 1.0}


def test_an_answer_that_shares_its_tokens_with_the_prompt_counts_from_where_they_part():
    tokenizer = train_tokenizer(["ab ab ab abc abc"] * 9, kind="bpe", vocabulary=265, prefix=False)
    joined = len(tokenizer.encode("x ab")), len(tokenizer.encode("x abc"))
    assert joined[0] == joined[1]  # abc is one token: the prompt's last is another one
    counted = []

    def count(params, stats, batch, keys):
        counted.append(np.asarray(batch["mask"].sum(1)))
        return {"nll": batch["mask"].sum(1), "tokens": batch["mask"].sum(1)}

    import jax

    with jax.disable_jit():
        evaluate_choices(MODEL, count, [Question("x ab", ["c"], 0)], tokenizer, context=12, batch=1)
    assert counted[0].tolist() == [1.0]


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        ([], {}, "questions is empty"),
        ([Question("a?", ["b"], 1)], {}, "question 0: right=1 is none of 1 choices"),
        (QUESTIONS, {"context": 4}, "question 1: 'ee' and what stands before it are 6 tokens"),
        ([Question("a?", [""], 0)], {}, "question 0: an answer is empty"),
        ([Question("", ["b"], 0)], {}, "question 0: 'b' and what stands before"),
    ],
)
def test_what_cannot_be_asked_is_refused(questions, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(questions, **options)
