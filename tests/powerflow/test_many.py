"""Batches: over devices, in chunks, gradients of many scenarios, and falling back from sweeps to Newton."""

import dataclasses
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


def test_forward_and_reverse_derivatives_agree_near_the_nose():
    """There the refinement does not converge, and elimination answers."""
    feeder = gridjax.feeders.ieee13()
    loads = tuple(dataclasses.replace(x, vmin_pu=0.1, vlow_pu=0.05, vmax_pu=2.0) for x in feeder.loads)
    grid = gridjax.compile(feeder.replace(loads=loads))

    def total(scale):
        nominal = grid.nominal
        point = nominal.replace(load_kw=nominal.load_kw * scale, load_kvar=nominal.load_kvar * scale)
        flow = gridjax.solve(grid, point, method="newton", tol=1e-12)
        return jnp.sum(jnp.abs(flow.v)), flow.converged

    scales = jnp.linspace(1.0, 8.0, 351)
    solved = jax.jit(jax.vmap(lambda s: total(s)[1]))(scales)
    assert solved[0] and not solved[-1]
    at = 0.999 * float(scales[jnp.argmin(solved) - 1])
    value = jax.jit(lambda s: total(s)[0])
    reverse = float(jax.jit(jax.grad(lambda s: total(s)[0]))(at))
    forward = float(jax.jit(lambda s: jax.jvp(lambda t: total(t)[0], (s,), (1.0,))[1])(at))
    h = 1e-5
    difference = float(value(at + h) - value(at - h)) / (2 * h)
    assert reverse == pytest.approx(forward, rel=1e-7)
    assert reverse == pytest.approx(difference, rel=1e-3)


def test_auto_takes_newton_only_where_sweeps_fail(grid):
    batch = points(grid, 4)
    sweeps = many(functools.partial(gridjax.solve, max_iterations=6))(grid, batch)
    auto = many(functools.partial(gridjax.solve, method="auto", max_iterations=6))(grid, batch)
    newton = many(functools.partial(gridjax.solve, method="newton"))(grid, batch)
    assert 0 < sweeps.converged.sum() < 4  # else nothing is tested
    assert auto.converged.all()
    np.testing.assert_array_equal(auto.v[sweeps.converged], sweeps.v[sweeps.converged])
    np.testing.assert_array_equal(auto.iterations[sweeps.converged], sweeps.iterations[sweeps.converged])
    np.testing.assert_allclose(auto.v, newton.v, atol=1e-7, rtol=0)
