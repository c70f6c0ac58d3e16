"""The largest and the smallest: values of NumPy, and one slope."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from gridjax import feeders
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


@pytest.mark.parametrize("name", ["ieee13", "ieee123"])
def test_loadings_have_a_slope(name):
    """Currents grow with all voltages by one factor t, so d(sum of loadings)/dt at 1 is the sum itself.

    By `jnp.max` the slope is not a number at the level of optimisation that these tests are compiled with.
    """
    grid = gridjax.compile(feeders.load(name))
    flow = gridjax.solve(grid, grid.nominal)

    def total(t):
        scaled = dataclasses.replace(flow, v=t * flow.v)
        return sum(jnp.sum(a) for a in gridjax.loading(grid, grid.nominal, scaled).values())

    value, slope = jax.jit(jax.value_and_grad(total))(1.0)
    np.testing.assert_allclose(slope, value, rtol=1e-8)
    np.testing.assert_allclose(jax.jvp(total, (1.0,), (1.0,))[1], value, rtol=1e-8)
