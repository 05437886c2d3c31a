import numpy as np
import pytest

from aigc_jax.metrics.rate_distortion import rate_distortion_plot


def test_the_curve_is_drawn_whatever_the_order_of_its_points():
    one = rate_distortion_plot([5.0, 20.0, 30.0], [150.0, 90.0, 75.0], ["8", "1", "0.5"], dpi=40)
    assert one.shape == (180, 240, 3) and one.dtype == np.uint8
    assert len(np.unique(one)) > 10
    two = rate_distortion_plot([20.0, 30.0, 5.0], [90.0, 75.0, 150.0], ["1", "0.5", "8"], dpi=40)
    blue = lambda image: (image[..., 2].astype(int) - image[..., 0] > 100).sum()
    assert blue(one) == blue(two) > 50
    with pytest.raises(ValueError, match=r"must be as many, and at least one$"):
        rate_distortion_plot([1.0, 2.0], [1.0], ["a"])
