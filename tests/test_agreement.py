"""Every shipped feeder against OpenDSS's engine, both methods, nominal and random scenarios; float32; overload."""

import dataclasses
import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from benchmarks.oracle import Oracle, floating_buses, without_zero_sequence
from benchmarks.validation import METHODS, balance, draw, one, other_solutions

LARGE = ("ieee8500", "ieee8500_unbal")
SCENARIOS = {name: 4 if name in LARGE else 40 if name == "european_lv" else 200 for name in gridjax.feeders.NAMES}


@cache
def compiled(name, dtype):
    feeder = gridjax.feeders.load(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # doubts about rated voltages in the published data
        return feeder, gridjax.compile(feeder, dtype=dtype)


@cache
def judged(name):
    """Points (the nominal one first), and the engine's answers to them."""
    feeder, grid = compiled(name, np.float64)
    points = jax.tree.map(
        lambda a, b: jnp.concatenate([a[None], b]),
        grid.nominal,
        draw(feeder, grid, jax.random.key(1), SCENARIOS[name]),
    )
    oracle = Oracle(feeder, tolerance=1e-11)
    solved = [oracle.solve(one(points, i)) for i in range(SCENARIOS[name] + 1)]
    return oracle, points, np.array([v for v, _ in solved]), np.array([c for _, c in solved])


@cache
def flows(name, method):
    _, grid = compiled(name, np.float64)
    batched = jax.jit(jax.vmap(lambda p: gridjax.solve(grid, p, method=method, tol=1e-11, max_iterations=400)))
    return batched(judged(name)[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", gridjax.feeders.NAMES)
def test_voltages_are_opendss_s(name, method):
    feeder, _ = compiled(name, np.float64)
    oracle, points, engine, engine_converged = judged(name)
    flow = flows(name, method)
    assert engine_converged.mean() > 0.8  # its own iteration gives up on some of the 4-bus cases
    assert np.asarray(flow.converged)[engine_converged].all()
    floating, ours, engine = floating_buses(feeder), np.asarray(flow.v), engine.copy()
    twins = other_solutions(oracle, points, ours, engine, np.nonzero(engine_converged)[0], floating)
    assert len(twins) <= 0.1 * len(ours)  # circuits with load models that jump have several solutions
    # Line-to-ground voltages at floating buses are rounding in both programs (docs/validation.md).
    raw = np.abs(ours - engine)[engine_converged]
    assert raw.max() < (3e-8 if floating else 1e-8)
    gap = without_zero_sequence(feeder, ours, floating) - without_zero_sequence(feeder, engine, floating)
    assert np.abs(gap)[engine_converged].max() < 1e-8


@pytest.mark.parametrize("name", gridjax.feeders.NAMES)
def test_power_balances(name):
    _, grid = compiled(name, np.float64)
    flow = flows(name, "sweep")
    rest = jax.vmap(lambda p, f: balance(grid, p, f))(judged(name)[1], flow)
    assert np.max(rest[flow.converged]) < 1e-9


@pytest.mark.parametrize("name", gridjax.feeders.NAMES)
def test_float32_is_within_1e_5(name):
    _, single = compiled(name, np.float32)
    points = jax.tree.map(lambda a: a[:11], judged(name)[1])
    low = jax.jit(jax.vmap(lambda p: gridjax.solve(single, p, max_iterations=400)))(
        jax.tree.map(lambda a: a.astype(np.float32), points)
    )
    assert low.v.dtype == np.complex64
    ok = np.asarray(low.converged)
    assert ok[0] and ok.mean() > 0.9
    assert np.abs(np.asarray(low.v) - np.asarray(flows(name, "sweep").v)[:11])[ok].max() < 1e-5


@cache
def unlimited_123():
    """IEEE 123 whose loads keep their power down to 0.1 pu: with its own limits it never collapses."""
    feeder = gridjax.feeders.ieee123()
    loads = tuple(dataclasses.replace(x, vmin_pu=0.1, vlow_pu=0.05) for x in feeder.loads)
    feeder = feeder.replace(loads=loads)
    return feeder, gridjax.compile(feeder, dtype=np.float64)


def scaled(grid, scale):
    return jax.vmap(
        lambda s: grid.nominal.replace(load_kw=grid.nominal.load_kw * s, load_kvar=grid.nominal.load_kvar * s)
    )(jnp.asarray(scale))


def test_newton_reaches_the_nose_that_opendss_reaches():
    feeder, grid = unlimited_123()
    oracle = Oracle(feeder, tolerance=1e-9)
    scale = np.arange(3.9, 4.12, 0.005)
    points = scaled(grid, scale)
    flow = jax.jit(jax.vmap(lambda p: gridjax.solve(grid, p, method="newton")))(points)
    ok = np.asarray(flow.converged)
    last = scale[ok].max()
    assert ok[: ok.sum()].all(), "one nose, and nothing solvable beyond it"
    assert not ok.all()
    engine = [oracle.solve(one(points, i)) for i in range(len(scale))]
    reached = np.array([c for _, c in engine])
    assert last >= scale[reached].max()
    assert last <= scale[reached].max() + 0.02
    for i in np.nonzero(ok & reached)[0]:
        assert np.abs(np.asarray(flow.v[i]) - engine[i][0]).max() < 1e-5  # the engine creeps towards the nose
    # A refined last point still is a solution, and close to where the Jacobian is singular.
    assert np.isfinite(np.asarray(flow.v)[ok]).all()
    assert np.abs(np.asarray(flow.v)[ok][-1]).min() < 0.56


@pytest.mark.parametrize("method", METHODS)
def test_collapse_is_said_and_leaves_the_neighbours_alone(method):
    _, grid = unlimited_123()
    run = jax.jit(jax.vmap(lambda p: gridjax.solve(grid, p, method=method)))
    mixed = run(scaled(grid, [1.0, 5.0, 0.5, 12.0, 3.0, 8.0]))
    calm = run(scaled(grid, [1.0, 1.0, 0.5, 0.5, 3.0, 3.0]))
    assert mixed.converged.tolist() == [True, False, True, False, True, False]
    for i in (0, 2, 4):
        assert bool(calm.converged[i])
        assert int(mixed.iterations[i]) == int(calm.iterations[i])
        assert np.abs(np.asarray(mixed.v[i] - calm.v[i])).max() < 1e-10
        assert np.isfinite(np.asarray(mixed.v[i])).all()


@pytest.mark.parametrize("method", METHODS)
def test_converged_always_means_a_solution(method):
    """Over loads far beyond the nose: a converged point satisfies the equations at every node, an operable one."""
    _, grid = unlimited_123()
    points = scaled(grid, np.linspace(0.0, 12.0, 121))
    flow = jax.jit(jax.vmap(lambda p: gridjax.solve(grid, p, method=method)))(points)
    ok = np.asarray(flow.converged)
    residual = jax.vmap(lambda p, f: jnp.max(jnp.abs(gridjax.current_residual(grid, p, f))))(points, flow)
    assert np.isfinite(np.asarray(flow.v)[ok]).all()
    assert np.asarray(residual)[ok].max() < 1e-5
    lowest = np.abs(np.asarray(flow.v)).min(axis=1)
    assert (np.diff(lowest[ok]) < 0).all(), "the voltage falls along the one branch from no load to the nose"
    assert not ok[np.linspace(0.0, 12.0, 121) > 4.2].any()
