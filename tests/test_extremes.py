"""The largest and the smallest: values of NumPy, and one slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gridjax.extremes import largest, smallest

A = jnp.array([[1.0, 5.0, 5.0], [-2.0, -7.0, 0.5]])


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_values_are_numpy_s(axis):
    np.testing.assert_array_equal(largest(A, axis), np.max(A, axis))
    np.testing.assert_array_equal(smallest(A, axis), np.min(A, axis))
    assert np.isnan(largest(A.at[1, 1].set(jnp.nan), axis)).sum() == 1


def test_the_slope_is_that_of_one_entry():
    np.testing.assert_array_equal(jax.grad(largest)(A), [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(jax.grad(smallest)(A), [[0, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(jax.grad(lambda a: largest(a, 1).sum())(A), [[0, 1, 0], [0, 0, 1]])


def test_entries_that_are_computed_twice_have_a_slope():
    """At this suite's level of optimisation `jnp.max` of such sizes had none where they were rounded in two ways."""
    x = jax.random.normal(jax.random.key(0), (50, 3)) + 1j * jax.random.normal(jax.random.key(1), (50, 3))
    slope = jax.jit(jax.vmap(jax.grad(lambda t, row: largest(jnp.abs(jnp.exp(t) * row / 3.7))), (None, 0)))(0.3, x)
    np.testing.assert_allclose(slope, np.abs(np.exp(0.3) * x / 3.7).max(axis=1), rtol=1e-12)
