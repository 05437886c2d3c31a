"""What is done to logits before a token is drawn: which tokens may follow, and how likely each is.

Every function here gives float32 logits of the shape it was given, in which −∞ rules a token out,
and gives them back unchanged at the value of its option that stands for off. At least the likeliest
token is always left; tokens equally likely are kept or ruled out together.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax


def penalise_repetition(
    logits: Array, tokens: Array, counts: Array | None, penalty: float
) -> Array:
    """Make the tokens that have occurred less likely: l/θ where l > 0, l·θ elsewhere.

    Args:
        logits: (b, v).
        tokens: (b, t) integers in [0, v), what has been read and written so far.
        counts: (b, t) bool, which of these are text; all by default.
        penalty: θ > 0; 1 is off, the paper's 1.2 on, less than 1 makes for repetition.

    Returns:
        (b, v).

    Raises:
        ValueError: `penalty` is not positive.

    Example:
        >>> logits, tokens = jnp.array([[2.0, -2.0, 2.0]]), jnp.array([[0, 1]])
        >>> penalise_repetition(logits, tokens, None, 2.0).tolist()
        [[1.0, -4.0, 2.0]]

    Keskar et al. 2019, *CTRL: A Conditional Transformer Language Model for Controllable
    Generation*, §4.1; that negative logits are multiplied is later custom, for dividing them would
    reward.
    """
    chex.assert_rank([logits, tokens], 2)
    chex.assert_equal_shape_prefix([logits, tokens], 1)
    if not penalty > 0:
        raise ValueError(f"repetition_penalty={penalty} must be more than 0")
    logits = logits.astype(jnp.float32)
    if penalty == 1:
        return logits
    b, v = logits.shape
    if counts is not None:
        chex.assert_equal_shape([tokens, counts])
        tokens = jnp.where(counts, tokens, v)  # beyond the last, where nothing is marked
    rows = jnp.arange(b)[:, None]
    occurred = jnp.zeros((b, v), bool).at[rows, tokens].set(True, mode="drop")
    return jnp.where(occurred, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def divide_by_temperature(logits: Array, temperature: float) -> Array:
    """Return l/τ, whose probabilities are the original ones to the power 1/τ.

    Args:
        logits: (..., v).
        temperature: τ at least 0; 1 is off, and 0 leaves the likeliest token alone, the first of
            several.

    Returns:
        (..., v).

    Raises:
        ValueError: `temperature` is negative.

    Example:
        >>> divide_by_temperature(jnp.array([1.0, 3.0, 3.0]), 0.0).tolist()
        [-inf, 0.0, -inf]
    """
    chex.assert_axis_dimension_gteq(logits, -1, 1)
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature} must be at least 0")
    logits = logits.astype(jnp.float32)
    if temperature:
        return logits / temperature
    likeliest = logits.argmax(-1, keepdims=True)
    return jnp.where(jnp.arange(logits.shape[-1]) == likeliest, 0.0, -jnp.inf)


def keep_top_k(logits: Array, k: int) -> Array:
    """Rule out all tokens but the k likeliest, and those as likely as the k-th.

    Args:
        logits: (..., v).
        k: at least 0, which is off, as are v and more.

    Returns:
        (..., v).

    Raises:
        ValueError: `k` is negative.

    Example:
        >>> keep_top_k(jnp.array([1.0, 3.0, 2.0]), 2).tolist()
        [-inf, 3.0, 2.0]

    Fan et al. 2018, *Hierarchical Neural Story Generation*, §5.4.
    """
    chex.assert_axis_dimension_gteq(logits, -1, 1)
    if k < 0:
        raise ValueError(f"top_k={k} must be at least 0")
    logits = logits.astype(jnp.float32)
    if not 0 < k < logits.shape[-1]:
        return logits
    return _keep_likeliest(logits, jnp.ones_like(logits, jnp.int32), k)


def keep_top_p(logits: Array, p: float) -> Array:
    """Keep the nucleus: the fewest of the likeliest tokens whose probabilities sum to p or more.

    Args:
        logits: (..., v).
        p: in (0, 1]; 1 is off.

    Returns:
        (..., v).

    Raises:
        ValueError: `p` lies outside (0, 1].

    Example:
        >>> logits = jnp.log(jnp.array([0.5, 0.125, 0.25, 0.125]))
        >>> (keep_top_p(logits, 0.7) > -jnp.inf).tolist()
        [True, False, True, False]

    Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*, eq. 2.
    """
    chex.assert_axis_dimension_gteq(logits, -1, 1)
    if not 0 < p <= 1:
        raise ValueError(f"top_p={p} must lie in (0, 1]")
    logits = logits.astype(jnp.float32)
    if p == 1:
        return logits
    return _keep_likeliest(logits, jax.nn.softmax(logits), p)


def keep_min_p(logits: Array, p: float) -> Array:
    """Rule out tokens less than p times as likely as the likeliest.

    Args:
        logits: (..., v).
        p: in [0, 1]; 0 is off.

    Returns:
        (..., v).

    Raises:
        ValueError: `p` lies outside [0, 1].

    Example:
        >>> keep_min_p(jnp.log(jnp.array([0.5, 0.1, 0.4])), 0.5) > -jnp.inf
        Array([ True, False,  True], dtype=bool)

    Nguyen et al. 2024, *Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs*.
    """
    chex.assert_axis_dimension_gteq(logits, -1, 1)
    if not 0 <= p <= 1:
        raise ValueError(f"min_p={p} must lie in [0, 1]")
    logits = logits.astype(jnp.float32)
    if not p:
        return logits
    least = logits.max(-1, keepdims=True) + jnp.log(jnp.float32(p))
    return jnp.where(logits < least, -jnp.inf, logits)


def adjust_logits(
    logits: Array,
    tokens: Array | None = None,
    counts: Array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Array:
    """Apply repetition penalty, temperature, top-k, top-p and min-p, in this order.

    It is transformers' order. So the nucleus is one of the k likeliest tokens alone, their
    probabilities made to sum to 1, as the temperature has left them.

    Args:
        logits: (..., v); (b, v) where repetition is penalised.
        tokens: (b, t), what has been read and written; needed where repetition is penalised.
        counts: (b, t) bool, which of these are text; all by default.
        temperature: at least 0, which leaves the likeliest token alone; 1 is off.
        top_k: at least 0, which is off.
        top_p: in (0, 1]; 1 is off.
        min_p: in [0, 1]; 0 is off.
        repetition_penalty: more than 0; 1 is off.

    Returns:
        (..., v), of which `softmax` makes the probabilities to draw by.

    Raises:
        ValueError: an option is out of its range, or repetition is to be penalised without tokens.
    """
    if repetition_penalty != 1:
        if tokens is None:
            raise ValueError(f"repetition_penalty={repetition_penalty} needs the tokens so far")
        logits = penalise_repetition(logits, tokens, counts, repetition_penalty)
    logits = divide_by_temperature(logits, temperature)
    return keep_min_p(keep_top_p(keep_top_k(logits, top_k), top_p), min_p)


def _keep_likeliest(logits: Array, weights: Array, enough: float) -> Array:
    """Keep the fewest of the likeliest tokens that together weigh enough, or all of them.

    The least logit c to keep is the greatest with Σ weights[l ≥ c] ≥ enough. It is found bit by
    bit, for floats are ordered as their bits are, read as an integer, with the sign flipped, or all
    of them if it was set: 32 sums, where to sort a vocabulary takes a CPU twenty times as long.
    """
    bits = lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.uint32)  # −0 is 0
    sign = jnp.uint32(1 << 31)
    order = jnp.where(bits < sign, bits ^ sign, ~bits)

    def next_bit(i: Array, least: Array) -> Array:
        raised = least | (sign >> i.astype(jnp.uint32))
        weight = jnp.where(order >= raised, weights, 0).sum(-1, keepdims=True)
        return jnp.where(weight >= enough, raised, least)

    least = lax.fori_loop(0, 32, next_bit, jnp.zeros_like(order[..., :1]))
    return jnp.where(order < least, -jnp.inf, logits)
