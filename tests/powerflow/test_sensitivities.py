"""`dv_dp` and its kin against differences of solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from gridjax.feeder import Generator
from gridjax.powerflow import sensitivities


@pytest.fixture(scope="module")
def grid():
    feeder = gridjax.feeders.ieee13()
    generators = (
        Generator("g1", "675.1.2.3.0", 3, "wye", 4.16, 300.0, 50.0),
        Generator("g2", "611.3.0", 1, "wye", 2.4, 90.0, 0.0),
    )
    return gridjax.compile(feeder.replace(generators=generators))


@pytest.fixture(scope="module")
def differences(grid):
    """Central differences of |v| and of the active losses for each field of powers, (devices, ...)."""

    def outcomes(point):
        flow = gridjax.solve(grid, point, tol=1e-13)
        return jnp.abs(flow.v), gridjax.losses(grid, point, flow).real

    batched, step = jax.jit(jax.vmap(outcomes)), 0.5

    def slopes(field):
        value = getattr(grid.nominal, field)
        moved = jax.vmap(lambda power: grid.nominal.replace(**{field: power}))
        ends = (batched(moved(value[None] + sign * step * np.eye(value.shape[0]))) for sign in (1, -1))
        return [(np.asarray(up) - np.asarray(down)) / (2 * step) for up, down in zip(*ends, strict=True)]

    return {field: slopes(field) for field in ("load_kw", "load_kvar", "generation_kw", "generation_kvar")}


@pytest.mark.parametrize(("function", "unit"), [(gridjax.dv_dp, "kw"), (gridjax.dv_dq, "kvar")])
@pytest.mark.parametrize(("of", "table"), [("loads", "load"), ("generators", "generation")])
def test_voltages(grid, differences, function, unit, of, table):
    expected = differences[f"{table}_{unit}"][0].T
    whole = np.asarray(jax.jit(lambda g, p: function(g, p, of=of, tol=1e-13))(grid, grid.nominal))
    assert whole.shape == (41, 15 if of == "loads" else 2)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("of", ["loads", "generators"])
@pytest.mark.parametrize(("function", "unit"), [(gridjax.dloss_dp, "kw"), (gridjax.dloss_dq, "kvar")])
def test_losses(grid, differences, function, unit, of):
    expected = differences[f"{'load' if of == 'loads' else 'generation'}_{unit}"][1]
    found = jax.jit(lambda g, p: function(g, p, of=of, tol=1e-13))(grid, grid.nominal)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_products(grid):
    rng = np.random.default_rng(0)
    along, weights = rng.normal(size=15), rng.normal(size=41)
    whole = np.asarray(jax.jit(gridjax.dv_dq)(grid, grid.nominal))
    right = jax.jit(lambda g, p: gridjax.dv_dq(g, p, along=along))(grid, grid.nominal)
    left = jax.jit(lambda g, p: gridjax.dv_dq(g, p, weights=weights))(grid, grid.nominal)
    np.testing.assert_allclose(right, whole @ along, rtol=0, atol=1e-12)
    np.testing.assert_allclose(left, weights @ whole, rtol=0, atol=1e-12)


def test_refusals(grid):
    with pytest.raises(ValueError, match="choose 'loads' or 'generators'"):
        gridjax.dv_dp(grid, grid.nominal, of="batteries")
    with pytest.raises(ValueError, match="along or weights"):
        gridjax.dv_dp(grid, grid.nominal, along=np.zeros(15), weights=np.zeros(41))


def test_no_sensitivity_is_invented_where_there_is_no_solution(grid):
    over = grid.nominal.replace(load_kw=100 * grid.nominal.load_kw, load_kvar=100 * grid.nominal.load_kvar)
    assert not gridjax.solve(grid, over, max_iterations=3).converged
    for function in (gridjax.dv_dp, gridjax.dv_dq, gridjax.dloss_dp, gridjax.dloss_dq):
        assert np.isnan(function(grid, over, max_iterations=3)).all()


def test_a_second_call_traces_nothing(grid):
    gridjax.dv_dp(grid, grid.nominal)
    before = sensitivities._slopes._cache_size()
    gridjax.dv_dp(grid, grid.nominal.replace(load_kw=1.1 * grid.nominal.load_kw))
    assert sensitivities._slopes._cache_size() == before > 0
