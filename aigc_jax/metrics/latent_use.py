"""How much of its data a variational autoencoder tells by its latent."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aigc_jax.core.types import Model
from aigc_jax.data.batches import batched, whole
from aigc_jax.data.sources import Dataset
from aigc_jax.data.transforms import Transform, normalise
from aigc_jax.metrics.features import as_features


def active_units(mu: Any, *, threshold: float = 0.01) -> int:
    """Count the dimensions of a latent whose posterior mean varies from example to example.

    A_u = Var_x(E_{q(z|x)}[z_u]) > threshold

    Args:
        mu: (n, d) posterior means.
        threshold: 0.01 in the paper, which found that the variances divide clearly about it.

    Returns:
        From 0 to d.

    Raises:
        ValueError: `mu` is not (n, d), or not finite.

    >>> active_units([[-1.0, 0.01], [1.0, -0.01]])
    1

    Reference: Burda et al. 2016, "Importance weighted autoencoders", section 5.2.
    """
    mu = as_features(mu, "mu").astype(np.float64)
    return int((mu.var(axis=0) > threshold).sum())


def mutual_information(
    mu: Any, logvar: Any, *, draws: int = 1, seed: int = 0, chunk: int = 1024
) -> float:
    """Estimate the mutual information of examples and their latents, in nats.

    I(x; z) = E_x KL(q(z|x) ‖ p(z)) − KL(q(z) ‖ p(z)) = E_x E_{q(z|x)} [log q(z|x) − log q(z)],
    where q(z) = 1/n Σ_j q(z|x_j) is the mixture of the n posteriors given: the prior cancels. The
    expectation over z is of draws, so the estimate is unbiased for that mixture; it can tell no
    more than which of the n examples a latent is of: each draw gives at most log n. Of a larger
    population it is thus an underestimate, unless far below log n: state n beside it.

    Args:
        mu: (n, d) means of Gaussian posteriors.
        logvar: (n, d) their log variances.
        draws: from each posterior.
        seed: of the draws.
        chunk: posteriors whose draws are held against all others at a time.

    Returns:
        About 0, latents that say nothing, to log n, latents that say all. In float64.

    Raises:
        ValueError: the two are not (n, d) of one shape and finite, or `draws` or `chunk` is less
            than 1.

    >>> round(mutual_information([[0.0], [100.0]], [[0.0], [0.0]]), 4)  # log 2
    0.6931

    Reference: Hoffman & Johnson 2016, "ELBO surgery: yet another way to carve up the variational
    evidence lower bound"; Dieng et al. 2019, "Avoiding latent variable collapse with generative
    skip models".
    """
    mu = as_features(mu, "mu").astype(np.float64)
    logvar = as_features(logvar, "logvar", mu.shape[1]).astype(np.float64)
    if len(logvar) != len(mu):
        raise ValueError(f"logvar has {len(logvar)} rows; mu has {len(mu)}")
    for name, value in (("draws", draws), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    n, rng, total = len(mu), np.random.default_rng(seed), 0.0
    mu = mu - mu.mean(axis=0)  # what all have in common would only cost digits
    precision, own = np.exp(-logvar), np.arange(n)
    shift = mu * precision
    constant = (mu * shift + logvar).sum(axis=1)
    for _ in range(draws):
        z = mu + np.exp(logvar / 2) * rng.standard_normal(mu.shape)
        for rows in np.split(own, range(chunk, n, chunk)):
            # log q(z_i|x_j) less what all have in common, as matrix products: (rows, n)
            log_q = z[rows] @ shift.T - 0.5 * (z[rows] ** 2 @ precision.T + constant)
            # Relative to its own: example i's log density of its own draw is 0.
            log_q -= log_q[np.arange(len(rows)), rows][:, None]
            top = log_q.max(axis=1)
            mixture = top + np.log(np.exp(log_q - top[:, None]).sum(axis=1))
            total += (np.log(n) - mixture).sum()
    return float(total / (n * draws))


def evaluate_latent_use(
    model: Model,
    posterior: Callable[..., tuple[Any, Any]],
    data: Dataset,
    *,
    transform: Transform | None = normalise,
    n: int | None = None,
    batch: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    """Measure how much a model's latent tells of the first examples of the test split.

    Args:
        model: what is measured.
        posterior: `(params, batch) -> (mu, logvar)`, each (b, ...) of a Gaussian, such as
            `tasks.text_vae.posterior` makes.
        data: the real examples.
        transform: of them.
        n: how many; all by default.
        batch: examples at a time.
        seed: of the draws of z.

    Returns:
        `active_units/test-<n>`; `mutual_information/test-<n>`, and `marginal_kl/test-<n>`, which is
        KL(q(z) ‖ p(z)), the rest of the divergence; nats.
    """
    n = min(n or len(data.test), len(data.test))
    examples = whole(data.test, transform, n)
    run = jax.jit(posterior)
    gaussian = batched(lambda some: run(model.params, some), examples, batch)
    mu, logvar = (x.reshape(n, -1) for x in gaussian)  # (n, ...) -> (n, d)
    information = mutual_information(mu, logvar, seed=seed)
    mean, log = mu.astype(np.float64), logvar.astype(np.float64)
    kl = 0.5 * float((mean**2 + np.expm1(log) - log).sum(axis=1).mean())
    return {
        f"active_units/test-{n}": float(active_units(mu)),
        f"mutual_information/test-{n}": information,
        f"marginal_kl/test-{n}": kl - information,
    }
