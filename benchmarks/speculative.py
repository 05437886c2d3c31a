"""Measure speculative sampling: `python -m benchmarks.speculative TARGET DRAFT`.

TARGET and DRAFT are folders of GPT-2s of one tokenizer, such as `aigc export` makes of runs. Each
row is a number of drafted tokens: how many of them were taken, and how many times as fast as
`generate` with the target alone the texts come, by rounds in which the two alternate. Prompts are
of a held-out text; the weights must be trained ones, of which the ratio is a property.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.keys import example_keys, stream
from aigc_jax.data.tokenizer import load_tokenizer
from aigc_jax.data.tokens import Windows, text_stream
from aigc_jax.pretrained.gpt2 import read_gpt2
from aigc_jax.samplers.autoregressive import generate
from aigc_jax.samplers.speculative import speculate
from aigc_jax.tasks.lm import decoder
from benchmarks import record


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure speculative sampling.")
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("--data", default="tiny_shakespeare")
    parser.add_argument("--ahead", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--name", default="speculative", help="of the file in benchmarks/results")
    options = parser.parse_args()

    networks = [read_gpt2(folder) for folder in (options.target, options.draft)]
    sizes = [sum(x.size for x in jax.tree.leaves(params)) for _, params in networks]
    target, draft = (decoder(network, {"gpt": params}) for network, params in networks)
    text = text_stream(options.data, tokenizer=load_tokenizer(options.target))
    prompts = Windows(text.test, 32, 997)
    shared: dict[str, Any] = {"length": options.length, "temperature": options.temperature}
    plainly = jax.jit(lambda tokens, keys: generate(target, tokens, None, keys, **shared))
    rows = []
    for ahead in options.ahead:
        quickly = jax.jit(
            lambda tokens, keys, ahead=ahead: speculate(
                target, draft, tokens, None, keys, ahead=ahead, **shared
            )
        )
        ratios, rates, accepted = [], [], []
        for i in range(options.rounds + 1):
            tokens = prompts.read(np.arange(options.batch) + i * options.batch)["tokens"]
            keys = example_keys(stream(i, "sample"), jnp.arange(options.batch))
            slow, _ = timed(lambda: plainly(tokens, keys))  # noqa: B023
            quick, drawn = timed(lambda: quickly(tokens, keys))  # noqa: B023
            if i == 0:  # compiled
                continue
            ratios.append(slow / quick)
            rates.append(options.batch * options.length / quick)
            accepted.append(np.asarray(drawn.accepted))
        taken = np.concatenate([x[x >= 0] for x in accepted])
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "target_parameters": sizes[0],
                "draft_parameters": sizes[1],
                "batch": options.batch,
                "ahead": ahead,
                "accepted": round(float(taken.mean()), 2),
                "tokens_per_second": round(statistics.median(rates), 1),
                "ratio": round(statistics.median(ratios), 3),
                "lowest": round(low, 3),
                "highest": round(high, 3),
            }
        )
        print(
            f"{ahead} ahead: {taken.mean():.2f} taken a round, {statistics.median(rates):,.0f} "
            f"tokens/s, {rows[-1]['ratio']:.2f} ({low:.2f} to {high:.2f}) times the target alone",
            flush=True,
        )
    print(f"written to {record.write(options.name, rows)}")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    main()
