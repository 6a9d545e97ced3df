"""Tests of lib/@MODULE@.py."""

import numpy as np
import pytest

from lib import @MODULE@


def test_leaky_equals_convolution():
    u = np.random.default_rng(0).standard_normal(50)
    expected = np.convolve(u, 0.8 ** np.arange(50))[:50]
    np.testing.assert_allclose(@MODULE@.leaky(u, 0.8), expected, atol=1e-12)


def test_leaky_refuses_an_unstable_decay():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        @MODULE@.leaky(np.ones(3), 1.5)
