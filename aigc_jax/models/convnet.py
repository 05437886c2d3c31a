"""A small convolutional classifier, whose last hidden layer serves as a feature space."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from aigc_jax.nn.conv import Conv


class ConvNet(nn.Module):
    """Stages of two 3×3 convolutions with BatchNorm and ReLU, each halving the resolution.

    Attributes:
        classes: number of logits.
        channels: by stage.
        features: width of the last hidden layer.
        dropout: probability, before the last hidden layer and before the logits.
        dtype: of the computation; parameters and statistics stay float32.
    """

    classes: int
    channels: tuple[int, ...] = (32, 64)
    features: int = 64
    dropout: float = 0.3
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, axis: str | None = None
    ) -> tuple[Array, Array]:
        """Classify a batch of images.

        Args:
            x: (b, h, w, c) in [−1, 1].
            train: whether dropout (needing the `dropout` key) and batch statistics are live.
            axis: the mapped axis' name under `pmap`, so that batch statistics are the whole
                batch's.

        Returns:
            logits (b, classes) and features (b, features), both float32.
        """
        for channels in self.channels:
            for stride in (1, 2):
                x = Conv(
                    channels, (3, 3), strides=(stride, stride), use_bias=False, dtype=self.dtype
                )(x)
                norm = nn.BatchNorm(not train, momentum=0.9, axis_name=axis, dtype=self.dtype)
                x = nn.relu(norm(x))
        x = x.reshape(x.shape[0], -1)  # (b, h, w, c) -> (b, h*w*c)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        features = nn.relu(nn.Dense(self.features, dtype=self.dtype)(x)).astype(jnp.float32)
        x = nn.Dropout(self.dropout)(features, deterministic=not train)
        return nn.Dense(self.classes)(x), features
