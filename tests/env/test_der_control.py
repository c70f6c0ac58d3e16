"""What DER control counts, and what devices see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from gridjax.days import AVERAGE_LOAD, AVERAGE_SUN
from gridjax.env.der_control import FEATURES
from gridjax.env.der_tasks import der_control


@pytest.fixture(scope="module")
def made():
    return der_control(gridjax.feeders.ieee13(), jax.random.key(0), days=3, hours=2.0, fleet=5, batteries=2, cars=4)


@pytest.fixture(scope="module")
def day(made):
    """A day under one constant action: each step's state before it, and its result."""
    env, params = made
    action = jnp.concatenate([jnp.full(5, -0.3), jnp.full(5, 0.6), jnp.array([0.5, -0.5]), jnp.ones(4)])
    _, state = jax.jit(env.reset)(jax.random.key(3), params)
    advance, out = jax.jit(env.advance), []
    for _ in range(env.horizon):
        new, outcome = advance(jax.random.key(0), state, action, params)
        out.append((state, new, outcome))
        state = new
    return out


def test_the_average_load_and_sun_are_those_of_the_days():
    """What iterations are linearised about. Numbers of their own for each key would make grids that differ."""
    feeder = gridjax.feeders.ieee13()
    _, params = der_control(feeder, jax.random.key(0), days=50, hours=2.0, fleet=5, batteries=2, cars=4)
    asked, nominal = params.days, params.grid.nominal
    for name, share in (("load_kw", AVERAGE_LOAD), ("load_kvar", AVERAGE_LOAD), ("generation_kw", AVERAGE_SUN)):
        mean = np.asarray(getattr(asked, name)).mean(axis=(0, 1)).sum()
        assert mean / np.asarray(getattr(nominal, name)).sum() == pytest.approx(share, rel=0.1), name
    other = der_control(feeder, jax.random.key(1), days=50, hours=2.0, fleet=5, batteries=2, cars=4)[1]
    jax.tree.map(np.testing.assert_array_equal, params.grid, other.grid)


def test_money_is_counted_by_hand(made, day):
    env, params = made
    tariff = params.tariff
    for k, (state, new, outcome) in enumerate(day):
        e = int(state.episode)
        price = float(tariff.price[e, k])
        source = float(new.source_kw)
        energy = 2.0 * price * (source if source > 0 else source / 3)
        available = np.asarray(params.days.generation_kw[e, k])[np.asarray(params.pv_row)]
        curtailed = 2.0 * 0.2 * available.sum()
        cars = jax.tree.map(lambda a, e=e: np.asarray(a[e]), params.cars)
        now = 12.0 + 2.0 * k
        leaves = (cars.departure_hour > now) & (cars.departure_hour <= now + 2)
        lacking = np.maximum(cars.wanted_kwh - np.asarray(new.charging.kwh), 0)[leaves].sum()
        rest = 0.0
        if k == env.horizon - 1:
            taken = float(jnp.sum(params.batteries.kwh_initial - new.storage.kwh))
            rest = float(tariff.price[e].mean()) * taken
        expected = -energy - 0.05 * curtailed - 0.5 * lacking - rest
        assert float(outcome.reward) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert sum(float(o.info["curtailed_kwh"]) for *_, o in day) > 1
    assert np.std(np.asarray(tariff.price[0])) > 0.01


def test_the_power_balances(made, day):
    env, params = made
    action = jnp.concatenate([jnp.full(5, -0.3), jnp.full(5, 0.6), jnp.array([0.5, -0.5]), jnp.ones(4)])

    @jax.jit
    @jax.vmap
    def again(state):
        point, *_ = env.act(state, action, params)
        flow = gridjax.solve(params.grid, point)
        taken, given = gridjax.device_powers(params.grid, point, flow)
        overload = sum(jnp.sum(jnp.maximum(a - 1, 0)) for a in gridjax.loading(params.grid, point, flow).values())
        return point, (jnp.sum(taken) - jnp.sum(given)).real, overload

    states, new, outcome = (jax.tree.map(lambda *a: jnp.stack(a), *part) for part in zip(*day, strict=True))
    point, used, overload = again(states)
    np.testing.assert_allclose(new.source_kw, used + outcome.info["loss_kw"], rtol=1e-7)
    s = np.hypot(point.generation_kw, point.generation_kvar)[:, np.asarray(params.pv_row)]
    assert (s <= np.asarray(params.pv_kva) * (1 + 1e-9)).all()
    np.testing.assert_allclose(outcome.cost[:, 1], overload, atol=1e-9)


def test_devices_see_themselves_and_their_neighbours(made, day):
    env, params = made
    _, state, _ = day[3]
    seen = np.asarray(env.observe_devices(state, params))
    assert seen.shape == (11, len(FEATURES))
    np.testing.assert_array_equal(seen[:, :3], np.repeat(np.eye(3), [5, 2, 4], axis=0))
    own = np.asarray(state.v)[np.asarray(params.place)].mean(axis=1)
    np.testing.assert_allclose(seen[:, 3], own)
    near = own[np.asarray(params.neighbour)]
    np.testing.assert_allclose(seen[:, 4:7], np.stack([near.mean(1), near.min(1), near.max(1)], axis=1))
    assert not np.any(np.asarray(params.neighbour) == np.arange(11)[:, None])
    np.testing.assert_allclose(seen[5:7, 8], state.storage.kwh / params.batteries.kwh_rated)


def test_devices_actions_are_the_whole_s(made):
    env, _ = made
    actions = jnp.arange(22.0).reshape(11, 2)
    np.testing.assert_array_equal(env.from_devices(actions), [0, 2, 4, 6, 8, 1, 3, 5, 7, 9, 10, 12, 14, 16, 18, 20])


def test_curtailing_everything_is_not_the_best_constant_action(made):
    env, params = made

    def total(fed):
        action = jnp.concatenate([jnp.zeros(5), jnp.full(5, fed), jnp.zeros(2), jnp.ones(4)])

        def one(state, _):
            state, outcome = env.advance(jax.random.key(0), state, action, params)
            return state, outcome.reward

        return jax.lax.scan(one, env.begin(jax.random.key(1), params), None, env.horizon)[1].sum()

    nothing, everything = jax.jit(jax.vmap(total))(jnp.array([-1.0, 1.0]))
    assert float(everything) > float(nothing) + 1


def test_bad_days_are_refused():
    with pytest.raises(ValueError, match="an even number of steps"):
        der_control(gridjax.feeders.ieee13(), jax.random.key(0), hours=8.0)
