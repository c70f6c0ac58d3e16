"""`gridjax.stack`: different feeders in one vmapped call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from gridjax.feeder import Bus, Capacitor, Feeder, Load, Source
from gridjax.feeders import synthetic

pytestmark = pytest.mark.filterwarnings("ignore:feeder 'ieee34'")
NAMES = ("ieee13", "ieee34", "ieee37", "ieee123")


@pytest.fixture(scope="module")
def feeders():
    return [getattr(gridjax.feeders, name)() for name in NAMES]


@pytest.fixture(scope="module")
def grids(feeders):
    return [gridjax.compile(feeder) for feeder in feeders]


def flow_and_results(grid, point):
    flow = gridjax.solve(grid, point, tol=1e-12)
    amps = gridjax.currents(grid, point, flow)
    return flow, gridjax.losses(grid, point, flow), amps, gridjax.loading(grid, point, flow)


def test_solutions_and_results_are_those_of_the_single_grids(feeders, grids):
    stacked = gridjax.stack(grids)
    nominal = stacked.nominal
    points = nominal.replace(load_kw=0.9 * nominal.load_kw, tap=nominal.tap * 1.01)
    flow, losses, amps, loading = jax.jit(jax.vmap(flow_and_results))(stacked, points)
    single = jax.jit(flow_and_results)
    for i, (feeder, grid) in enumerate(zip(feeders, grids, strict=True)):
        point = grid.nominal.replace(load_kw=0.9 * grid.nominal.load_kw, tap=grid.nominal.tap * 1.01)
        one, lost, currents, loads = single(grid, point)
        nodes = len(feeder.node_names)
        assert one.converged and flow.converged[i]
        np.testing.assert_allclose(flow.v[i, :nodes], one.v, rtol=0, atol=1e-10)
        assert not flow.v[i, nodes:].any()
        np.testing.assert_allclose(losses[i], lost, rtol=1e-9)
        for kind, expected in currents.items():
            box = tuple(slice(n) for n in expected.shape)
            scale = np.abs(expected).max(initial=1.0)
            np.testing.assert_allclose(amps[kind][i][box], expected, rtol=0, atol=1e-6 * scale, err_msg=kind)
            assert not np.delete(np.asarray(amps[kind][i]), np.arange(len(expected)), axis=0).any()
        for kind, expected in loads.items():
            box = tuple(slice(n) for n in expected.shape)
            np.testing.assert_allclose(loading[kind][i][box], expected, rtol=1e-6, atol=1e-9, err_msg=kind)


def test_gradients_are_those_of_the_single_grids(grids):
    chosen = grids[:2]
    stacked = gridjax.stack(chosen)

    def losses(grid, point):
        return gridjax.losses(grid, point, gridjax.solve(grid, point, tol=1e-12)).real

    together = jax.jit(jax.vmap(jax.grad(losses, argnums=1)))(stacked, stacked.nominal)
    for i, grid in enumerate(chosen):
        alone = jax.jit(jax.grad(losses, argnums=1))(grid, grid.nominal)
        for name in alone.__dataclass_fields__:
            expected, found = getattr(alone, name), np.asarray(getattr(together, name)[i])
            np.testing.assert_allclose(found[: expected.shape[0]], expected, rtol=1e-7, atol=1e-9, err_msg=name)
            assert not found[expected.shape[0] :].any() or name in ("source_pu", "tap")


def test_each_grid_with_scenarios_of_its_own():
    """Random feeders of different sizes, several scenarios each, in chunks of grids."""
    feeders = [synthetic(nodes, seed=seed) for seed, nodes in enumerate((40, 55, 47))]
    grids = [gridjax.compile(feeder) for feeder in feeders]
    scale = np.random.default_rng(0).uniform(0.5, 1.5, (3, 50))
    points = []
    for grid, s in zip(grids, scale, strict=True):
        many = jax.tree.map(lambda a: jnp.broadcast_to(a, (50, *a.shape)), grid.nominal)
        points.append(many.replace(load_kw=many.load_kw * s[:, None]))
    solve = jax.vmap(lambda g, p: gridjax.solve(g, p, tol=1e-12), in_axes=(None, 0))
    together = jax.jit(jax.vmap(solve))(gridjax.stack(grids), gridjax.stack(points))
    assert together.converged.all()
    for i, (grid, point) in enumerate(zip(grids, points, strict=True)):
        alone = jax.jit(solve)(grid, point)
        nodes = alone.v.shape[1]
        np.testing.assert_allclose(together.v[i, :, :nodes], alone.v, rtol=0, atol=1e-10)


def test_padding_never_hides_an_open_series_bank(grids):
    """The steps that a feeder lacks belong to no bank, whatever the point says of them."""
    bank = Capacitor("series", "b.1.2.3", 3, "wye", 4.16, (3000.0,), (True,), bus2="a.1.2.3")
    behind = Load("behind", "b.1.2.3.0", 3, "wye", 1, 4.16, 100.0, 30.0)
    feeder = Feeder(
        "behind a bank",
        60.0,
        buses=tuple(Bus(name, 4.16 / 3**0.5, (1, 2, 3)) for name in ("a", "b")),
        sources=(Source("s", "a.1.2.3", 4.16, r1_ohm=0.01, x1_ohm=0.1, r0_ohm=0.01, x0_ohm=0.1),),
        capacitors=(bank,),
        loads=(behind,),
    )
    stacked = gridjax.stack([gridjax.compile(feeder), grids[0]])
    every = stacked.nominal.replace(capacitor=jnp.ones_like(stacked.nominal.capacitor))
    # Without a load behind it, nothing else gives the open bank away.
    lost = every.replace(
        capacitor=every.capacitor.at[0, 0].set(0.0), load_kw=0.0 * every.load_kw, load_kvar=0.0 * every.load_kvar
    )
    solve = jax.jit(jax.vmap(gridjax.solve))
    assert solve(stacked, every).converged.tolist() == [True, True]
    assert solve(stacked, lost).converged.tolist() == [False, True]
    single = jax.jit(jax.grad(lambda p: jnp.sum(jnp.abs(gridjax.solve(stacked_first, p).v))))
    stacked_first = jax.tree.map(lambda a: a[0], stacked)
    gradient = single(jax.tree.map(lambda a: a[0], lost))
    assert not any(np.asarray(a).any() for a in jax.tree.leaves(gradient))  # of what has not converged


def test_refusals(feeders, grids):
    with pytest.raises(ValueError, match="nothing to stack"):
        gridjax.stack([])
    with pytest.raises(ValueError, match="different precision"):
        gridjax.stack([grids[0], gridjax.compile(feeders[0], dtype=np.float32)])
    with pytest.raises(TypeError, match="not Grid and OperatingPoint"):
        gridjax.stack([grids[0], grids[1].nominal])
    with pytest.raises(ValueError, match="a stack already"):
        gridjax.stack([gridjax.stack(grids[:2]), grids[2]])
