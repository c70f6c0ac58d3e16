"""Batches: over devices, in chunks, gradients of many scenarios, and falling back from sweeps to Newton."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gridjax

COUNT = 264  # three chunks of 88


@pytest.fixture(scope="module")
def grid():
    return gridjax.compile(gridjax.feeders.ieee13())


def points(grid, count, low=0.5, high=1.5):
    scale = jax.random.uniform(jax.random.key(0), (count, grid.nominal.load_kw.shape[0]), minval=low, maxval=high)
    many = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), grid.nominal)
    return many.replace(load_kw=many.load_kw * scale, load_kvar=many.load_kvar * scale)


def many(solve=gridjax.solve):
    return jax.jit(jax.vmap(solve, in_axes=(None, 0)))


def test_chunks_make_no_difference(grid):
    batch = points(grid, COUNT)
    whole = many()(grid, batch)
    assert whole.converged.all()
    part = many()(grid, jax.tree.map(lambda a: a[100:130], batch))
    np.testing.assert_allclose(whole.v[100:130], part.v, atol=1e-10, rtol=0)


def test_devices_make_no_difference(grid):
    batch = points(grid, COUNT)
    one = many()(grid, batch)
    mesh = jax.make_mesh((8,), ("scenarios",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        spread = many()(
            jax.device_put(grid, NamedSharding(mesh, PartitionSpec())),
            jax.device_put(batch, NamedSharding(mesh, PartitionSpec("scenarios"))),
        )
    assert len(spread.v.sharding.device_set) == 8
    np.testing.assert_allclose(spread.v, one.v, atol=1e-10, rtol=0)
    assert spread.converged.all()


def loss(grid, point):
    return gridjax.losses(grid, point, gridjax.solve(grid, point, tol=1e-12)).real


def test_gradients_of_many_scenarios_are_those_of_each(grid):
    batch = points(grid, 3)
    slopes = many(jax.grad(loss, argnums=1))(grid, batch)
    single = jax.jit(jax.grad(loss, argnums=1))
    for i in range(3):
        one = single(grid, jax.tree.map(lambda a, i=i: a[i], batch))
        for ours, theirs in zip(jax.tree.leaves(slopes), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-8, atol=1e-10)


def test_auto_takes_newton_only_where_sweeps_fail(grid):
    batch = points(grid, 4)
    sweeps = many(functools.partial(gridjax.solve, max_iterations=5))(grid, batch)
    auto = many(functools.partial(gridjax.solve, method="auto", max_iterations=5))(grid, batch)
    newton = many(functools.partial(gridjax.solve, method="newton"))(grid, batch)
    assert 0 < sweeps.converged.sum() < 4  # else nothing is tested
    assert auto.converged.all()
    np.testing.assert_array_equal(auto.v[sweeps.converged], sweeps.v[sweeps.converged])
    np.testing.assert_array_equal(auto.iterations[sweeps.converged], sweeps.iterations[sweeps.converged])
    np.testing.assert_allclose(auto.v, newton.v, atol=1e-7, rtol=0)
