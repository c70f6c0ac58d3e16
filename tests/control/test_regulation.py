"""Inverters at rest in the power flow: against OpenDSS's InvControl, differences, and themselves."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from gridjax.control.fixed_point import residuals
from gridjax.control.fleet import add_fleet
from gridjax.control.inverters import respond, terminal_voltages
from gridjax.control.regulation import GAP, inverters, regulate, settle
from gridjax.control.settings import Rule

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
from inverters import CATEGORY_B, InvControl, lower_taps

VOLT_WATT = (1.03, 1.07, 1.0, 0.2)  # lower than the standard's, so that it works at usual voltages
WATTS = ((1.03, 1.07), (1.0, 0.2))
# A flat curve stands for a function that is off, so that all three are one program.
RULES = {
    "volt-var": Rule(volt_watt=True, volt_watt_curve=((1.4, 1.5), (1.0, 1.0)), priority="active"),
    "volt-watt": Rule(volt_var=((0.9, 1.0, 1.0, 1.1), (0.0,) * 4), volt_watt=True, volt_watt_curve=WATTS),
    "both": Rule(volt_watt=True, volt_watt_curve=WATTS, priority="active"),
}
PENETRATION = {"ieee13": 0.9, "ieee123": 1.2, "european_lv": 2.2}


@functools.cache
def case(name, kind="both", smooth=0.0):
    base = gridjax.feeders.load(name)
    at = [load.name for load in base.loads if load.connection == "wye" and load.bus.endswith(".0")]
    feeder = add_fleet(lower_taps(base), 1, count=max(6, len(at) // 2), penetration=PENETRATION[name], at=at)
    grid = gridjax.compile(feeder)
    return feeder, grid, inverters(feeder, grid, RULES[kind], smooth=smooth)


def draw(grid, s, key):
    level_key, load_key, sun_key, own_key = jax.random.split(key, 4)
    point = grid.nominal
    factor = jax.random.uniform(level_key, (), minval=0.2, maxval=0.9)
    factor = factor * jax.random.uniform(load_key, point.load_kw.shape, minval=0.7, maxval=1.3)
    sun = jax.random.uniform(sun_key, (), minval=0.5) * jax.random.uniform(own_key, s.kva.shape, minval=0.8)
    return dataclasses.replace(
        point,
        load_kw=point.load_kw * factor,
        load_kvar=point.load_kvar * factor,
        generation_kw=s.rated_kw * sun,
        generation_kvar=jnp.zeros_like(sun),
    )


def scenarios(grid, s, count, seed=0):
    return jax.vmap(draw, in_axes=(None, None, 0))(grid, s, jax.random.split(jax.random.key(seed), count))


BATCH = jax.jit(jax.vmap(regulate, in_axes=(None, 0, None)))


@pytest.mark.parametrize("name", list(PENETRATION))
@pytest.mark.parametrize("kind", list(RULES))
def test_the_fixed_point_is_that_of_invcontrol(name, kind):
    feeder, grid, s = case(name, kind)
    points = scenarios(grid, s, 2)
    out, flow = BATCH(grid, points, s)
    assert flow.converged.all()
    engine = InvControl(feeder, None if kind == "volt-watt" else CATEGORY_B, None if kind == "volt-var" else VOLT_WATT)
    for k in range(2):
        x, v, _ = engine.solve(jax.tree.map(lambda a, k=k: a[k], points))
        np.testing.assert_allclose(np.abs(flow.v[k]), np.abs(v), atol=1e-6)
        np.testing.assert_allclose(out.generation_kvar[k] / s.kva, x, atol=1e-5)
    moved = (
        jnp.abs(out.generation_kvar).max() if kind != "volt-watt" else (points.generation_kw - out.generation_kw).max()
    )
    assert float(moved) > 0.02 * float(s.kva.min()), "the inverters did nothing to compare"


def test_a_scenario_that_finds_no_rest_says_so_and_its_neighbours_do_not_notice():
    _, grid, s = case("ieee13")
    points = scenarios(grid, s, 3)
    heavy = dataclasses.replace(points, load_kw=points.load_kw.at[1].multiply(30.0))
    usual, flows = BATCH(grid, points, s), BATCH(grid, heavy, s)
    np.testing.assert_array_equal(flows[1].converged, [True, False, True])
    for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(flows), strict=True):
        np.testing.assert_allclose(a[::2], b[::2], rtol=1e-9, atol=1e-9)


@functools.partial(jax.jit, static_argnames=("tol",))
def weighted(point, grid, s, tol=GAP):
    """A number that hangs on all voltages and powers of a scenario."""
    out, flow = regulate(grid, point, s, 60.3, tol=tol)
    weights = jnp.cos(jnp.arange(flow.v.shape[0]))
    return jnp.sum(weights * jnp.abs(flow.v)) + jnp.sum(out.generation_kw + 2 * out.generation_kvar) / 1e3


def test_derivatives_are_those_of_differences_forward_and_reverse():
    """By loads, available power, set-points and curves, with volt-var, volt-watt and frequency droop at work."""
    feeder, grid, _ = case("ieee13")
    rule = dataclasses.replace(RULES["both"], frequency_watt=True)
    s = inverters(feeder, grid, rule, smooth=0.002)
    point = draw(grid, s, jax.random.key(3))
    point = point.replace(load_kw=0.3 * point.load_kw, generation_kw=0.9 * s.rated_kw)

    def value(load_kw, generation_kw, volt_var_v, volt_watt_p):
        at = dataclasses.replace(point, load_kw=load_kw, generation_kw=generation_kw)
        return weighted(at, grid, dataclasses.replace(s, volt_var_v=volt_var_v, volt_watt_p=volt_watt_p))

    at = point.load_kw, point.generation_kw, s.volt_var_v, s.volt_watt_p
    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*at)
    forward = jax.jit(lambda d: jax.jvp(value, at, d)[1])
    for k, size in enumerate((50.0, 50.0, 0.01, 0.1)):
        d = [jnp.zeros_like(a) for a in at]
        d[k] = size * jax.random.normal(jax.random.key(k), at[k].shape)
        h = 1e-3
        ahead, behind = (value(*(a + sign * h * b for a, b in zip(at, d, strict=True))) for sign in (1, -1))
        difference = float(ahead - behind) / (2 * h)
        reverse = float(jnp.sum(gradient[k] * d[k]))
        assert abs(difference) > 1e-4, k
        np.testing.assert_allclose(reverse, difference, rtol=1e-4)
        np.testing.assert_allclose(float(forward(tuple(d))), reverse, rtol=1e-6)


def test_one_scenario_is_that_of_a_batch_and_rests_on_its_curves():
    _, grid, s = case("ieee13")
    points = scenarios(grid, s, 3)
    out, flow = BATCH(grid, points, s)
    alone = regulate(grid, jax.tree.map(lambda a: a[2], points), s)
    for a, b in zip(jax.tree.leaves((out, flow.v)), jax.tree.leaves((alone[0], alone[1].v)), strict=True):
        np.testing.assert_allclose(a[2], b, rtol=1e-7, atol=1e-8)
    u = jax.vmap(terminal_voltages, in_axes=(None, 0))(s, flow.v)
    kw, kvar = jax.vmap(respond, in_axes=(None, 0, 0, 0))(s, u, points.generation_kw, points.generation_kvar)
    np.testing.assert_allclose(kw / s.kva[None], out.generation_kw / s.kva[None], atol=GAP)
    np.testing.assert_allclose(kvar / s.kva[None], out.generation_kvar / s.kva[None], atol=GAP)


def test_few_power_flows_are_needed():
    _, grid, s = case("ieee123")
    at = jax.jit(jax.vmap(settle, in_axes=(None, 0, None)))(grid, scenarios(grid, s, 32), s)
    assert float(at.flows.mean()) <= 6 and int(at.flows.max()) <= 9


def test_conjugate_residuals_solve_a_system():
    rng = np.random.default_rng(0)
    matrix = np.eye(12) + 0.4 * rng.normal(size=(3, 12, 12))
    right = rng.normal(size=(3, 12))
    x = residuals(lambda z: jnp.einsum("bij,bj->bi", matrix, z), jnp.asarray(right), lambda z: z, 12, 1e-12)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, right[..., None])[..., 0], rtol=1e-8)


def test_fleets_of_any_feeder():
    for name, count, batteries in (("ieee123", 120, 10), ("ieee37", None, 5), ("ieee34", 10, 0)):
        base = gridjax.feeders.load(name)
        feeder = add_fleet(base, 3, count=count, batteries=batteries, penetration=0.4)
        assert feeder == add_fleet(base, 3, count=count, batteries=batteries, penetration=0.4)
        assert feeder != add_fleet(base, 4, count=count, batteries=batteries, penetration=0.4)
        assert not any(problem.fatal for problem in gridjax.validate(feeder)) and len(feeder.storages) == batteries
        assert count is None or len(feeder.pv_systems) == count
        total = sum(pv.pmpp_kw for pv in feeder.pv_systems)
        np.testing.assert_allclose(total, 0.4 * sum(load.kw for load in base.loads))
        terminals = {load.bus for load in base.loads}
        assert {x.bus for x in (*feeder.pv_systems, *feeder.storages)} <= terminals
    with pytest.raises(ValueError, match="already"):
        add_fleet(feeder, 3)
    with pytest.raises(ValueError, match="no loads named"):
        add_fleet(base, 3, at=["nowhere"])
    with pytest.raises(ValueError, match="rating of at least 1"):
        add_fleet(base, 3, rating=0.5)
