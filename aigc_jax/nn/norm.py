"""Normalisation. Statistics are taken in float32 whatever the compute type."""

import math
from typing import Any

from flax import linen as nn


def group_norm(
    channels: int,
    dtype: Any = None,
    *,
    groups: int | None = None,
    epsilon: float = 1e-6,
    **kwargs: Any,
) -> nn.GroupNorm:
    """Return a GroupNorm, by default of at most 32 groups of at least 4 channels (Wu & He 2018).

    With 128 channels or more these are the 32 groups of the diffusion papers; narrower networks
    keep several channels a group, where 32 groups would be instance normalisation.

    >>> group_norm(128).num_groups, group_norm(32).num_groups
    (32, 8)
    """
    if groups is None:
        groups = math.gcd(channels, max(1, min(32, channels // 4)))
    return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, **kwargs)
