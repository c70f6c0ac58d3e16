"""Currents into elements: the processor's own kernel, the formula for accelerators, and matrices made at other taps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feeders_for_tests import every_element_feeder

import gridjax
from gridjax import feeders
from gridjax.native import calls

CASES = [("ieee34", np.float64), ("every element", np.float64), ("ieee123", np.float32), ("every element", np.float32)]


@functools.cache
def case(name, dtype=np.float64):
    """A grid, 19 operating points with taps, steps and loads of their own, and voltages that solve none of them."""
    feeder = every_element_feeder() if name == "every element" else feeders.load(name)
    grid = gridjax.compile(feeder, dtype=dtype)
    random, nominal = np.random.default_rng(1), grid.nominal

    def about(a, low, high):
        return jnp.asarray(np.asarray(a) * random.uniform(low, high, (19, *a.shape)), dtype)

    points = jax.tree.map(lambda a: jnp.broadcast_to(a, (19, *a.shape)), nominal)
    points = points.replace(tap=about(nominal.tap, 0.98, 1.02), capacitor=about(nominal.capacitor, 0.0, 1.0))
    flows = jax.vmap(gridjax.solve, in_axes=(None, 0))(grid, points)
    noise = jnp.asarray(random.uniform(0.9, 1.1, flows.v.shape), dtype)
    return grid, points, dataclasses.replace(flows, v=flows.v * noise)


def results(grid, points, flows):
    def one(point, flow):
        return gridjax.currents(grid, point, flow), gridjax.loading(grid, point, flow)

    return jax.vmap(one)(points, flows)


@pytest.mark.filterwarnings("ignore:feeder")
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_kernel_gives_what_the_formula_gives(name, dtype, monkeypatch):
    grid, points, flows = case(name, dtype)
    assert name != "every element" or grid.branches["transformers"].nodes.shape[1] == 3
    have = results(grid, points, flows)
    monkeypatch.setattr(calls, "ffi", None)
    want = results(grid, points, flows)
    assert all(np.abs(a).max() > 0 for a in want[0].values())
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(dtype).eps * np.abs(b).max())


@pytest.mark.filterwarnings("ignore:feeder")
@pytest.mark.parametrize("name", ["ieee34", "ieee123", "every element"])
def test_taps_of_the_point_act_as_those_of_the_tables(name):
    """The currents at given voltages of a feeder whose tables have the taps that the point asks for here."""
    feeder = every_element_feeder() if name == "every element" else feeders.load(name)
    tap = np.random.default_rng(2).uniform(0.9, 1.1, len(feeder.regulators))
    windings = {t.name: list(t.windings) for t in feeder.transformers}
    for regulator, a in zip(feeder.regulators, tap, strict=True):
        own = windings[regulator.transformer]
        own[regulator.winding - 1] = dataclasses.replace(own[regulator.winding - 1], tap=float(a))
    moved = tuple(dataclasses.replace(t, windings=tuple(windings[t.name])) for t in feeder.transformers)
    grid, other = gridjax.compile(feeder), gridjax.compile(dataclasses.replace(feeder, transformers=moved))
    assert len(tap) and not np.allclose(grid.branches["transformers"].y_im, other.branches["transformers"].y_im)
    flow = gridjax.solve(grid, grid.nominal)
    have = gridjax.currents(grid, grid.nominal.replace(tap=jnp.asarray(tap)), flow)["transformers"]
    want = gridjax.currents(other, other.nominal, flow)["transformers"]
    # A regulator's low impedance makes millions of amperes of voltages that do not fit its taps.
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-13 * np.abs(want).max())


def test_derivatives_by_load_and_tap():
    grid, points, flows = case("every element")
    points = jax.tree.map(lambda a: a[flows.converged], points)
    assert len(points.tap) > 15

    def peak(change, point):
        tap, load = jnp.split(change, [point.tap.shape[0]])
        point = point.replace(tap=point.tap + tap, load_kw=point.load_kw * (1 + load))
        loads = gridjax.loading(grid, point, gridjax.solve(grid, point, tol=1e-12))
        return sum(jnp.sum(a**2) for a in loads.values())

    size = grid.nominal.tap.size + grid.nominal.load_kw.size
    toward = np.random.default_rng(3).normal(size=size)
    at = jnp.zeros(size)
    gradient = jax.vmap(jax.grad(peak), in_axes=(None, 0))(at, points)
    h = 1e-6
    after, before = (jax.vmap(peak, in_axes=(None, 0))(at + step * h * toward, points) for step in (1, -1))
    np.testing.assert_allclose(gradient @ toward, (after - before) / (2 * h), rtol=1e-6)
    ahead = jax.vmap(lambda point: jax.jvp(lambda x: peak(x, point), (at,), (jnp.asarray(toward),))[1])(points)
    np.testing.assert_allclose(gradient @ toward, ahead, rtol=1e-7)  # both solved to 1e-9, beside stiff switches


def test_a_grid_cast_to_float32_is_told_how_to_be_made():
    grid = gridjax.compile(feeders.ieee13(), dtype=np.float64)
    cast = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, grid)
    flow = gridjax.solve(cast, cast.nominal)
    with pytest.raises(ValueError, match="was made in float64 and cast"):
        gridjax.currents(cast, cast.nominal, flow)


def test_an_open_tie_makes_no_zone_larger():
    """Of the 33 buses with five ties: with the ties open every bus has a zone of its own, with one closed not."""
    feeder = feeders.baran_wu33()
    assert not any(s.closed for s in feeder.switches)
    grid = gridjax.compile(feeder)
    assert np.asarray(grid.tree.zones)[:, 1].max() == 3
    closed = (dataclasses.replace(feeder.switches[0], closed=True), *feeder.switches[1:])
    assert np.asarray(gridjax.compile(dataclasses.replace(feeder, switches=closed)).tree.zones)[:, 1].max() > 3
    flow = gridjax.solve(grid, grid.nominal, tol=1e-11)
    tiers = dataclasses.replace(grid, tree=None)
    np.testing.assert_allclose(flow.v, gridjax.solve(tiers, grid.nominal, tol=1e-11).v, atol=1e-10)


@pytest.mark.filterwarnings("ignore:feeder")
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_kernel_backwards_gives_what_the_formula_gives(name, dtype, monkeypatch):
    """By voltages and taps, of all elements' largest currents and of the overloaded ones' only."""
    grid, points, flows = case(name, dtype)
    whole = ("lines", "switches", "transformers") if dtype == np.float64 else ("lines", "transformers")
    kinds = [k for k in whole if k in grid.branches and np.isfinite(grid.rating_a[k]).any()]
    weights = {k: np.random.default_rng(4).uniform(0.5, 1.5, grid.branches[k].nodes.shape[0]) for k in kinds}

    def over(re, im, tap, limit, point, flow):
        amps = gridjax.loading(grid, point.replace(tap=tap), dataclasses.replace(flow, v=jax.lax.complex(re, im)))
        return sum(jnp.sum(jnp.maximum(amps[k].T - limit, 0.0) @ weights[k].astype(dtype)) for k in kinds)

    def slopes():
        gradient = jax.jit(jax.vmap(jax.grad(over, argnums=(0, 1, 2)), in_axes=(0, 0, 0, None, 0, 0)))
        of = flows.v.real, flows.v.imag, points.tap
        return [gradient(*of, limit, points, flows) for limit in (0.0, 1.0)]

    have = slopes()
    monkeypatch.setattr(calls, "ffi", None)
    want = slopes()
    assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(have))
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=256 * np.finfo(dtype).eps * np.abs(b).max())


def test_a_current_has_derivatives_of_second_order():
    """By taps, backwards and forwards again, as the formula's."""
    grid, points, flows = case("every element")
    point, flow = (jax.tree.map(lambda a: a[0], tree) for tree in (points, flows))

    def over(tap):
        return sum(jnp.sum(a**2) for a in gridjax.loading(grid, point.replace(tap=tap), flow).values())

    slope = jax.jit(jax.grad(over))
    toward = np.random.default_rng(5).normal(size=point.tap.shape)
    have = jax.jvp(slope, (point.tap,), (jnp.asarray(toward),))[1]
    np.testing.assert_allclose(have, jax.jacrev(slope)(point.tap) @ toward, rtol=1e-9)
    h = 1e-6
    want = (slope(point.tap + h * toward) - slope(point.tap - h * toward)) / (2 * h)
    np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
