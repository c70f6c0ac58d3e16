"""What actions do, and what the reward counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feeders_for_tests import MIDDLE, two_bus_feeder

import gridjax
from gridjax.env.tasks import make, multipliers, names
from gridjax.env.volt_var import FEATURES
from gridjax.env.volt_var_tasks import powergym, volt_var
from gridjax.feeder import Capacitor, Load

DAYS = np.full((1, 4, 15), 0.8)


@pytest.fixture(scope="module")
def clean():
    return volt_var(gridjax.feeders.ieee13(), DAYS)


@pytest.fixture(scope="module")
def first(clean):
    env, params = clean
    return env.reset(jax.random.key(0), params)


def test_the_day_starts_with_taps_at_neutral(clean, first):
    env, params = clean
    obs, _ = first
    seen = dict(zip(env.observation_names, np.asarray(obs), strict=True))
    assert [seen[f"tap {name}"] for name in env.regulators] == [1.0, 1.0, 1.0]
    assert [seen[f"capacitor {name}"] for name in env.capacitors] == [1.0, 1.0]
    assert seen["state of charge battery1"] == 1.0 and seen["load level"] == pytest.approx(0.8)
    point = dataclasses.replace(
        params.grid.nominal,
        load_kw=0.8 * params.grid.nominal.load_kw,
        load_kvar=0.8 * params.grid.nominal.load_kvar,
        tap=jnp.ones(3),
        generation_kw=jnp.zeros(1),
    )
    flow = gridjax.solve(params.grid, point)
    np.testing.assert_allclose(obs[: len(env.nodes)], jnp.abs(flow.v), atol=1e-9)


def test_an_action_is_done_and_paid_for(clean, first):
    env, params = clean
    _, state = first
    action = jnp.array([1, 0, 20, 16, 8, 24])  # one capacitor off, taps +4, 0, -8, half the battery's power out
    _, after, reward, cost, _, _, info = jax.jit(env.step)(jax.random.key(1), state, action, params)
    battery, w = params.batteries, params.weights
    kw = 0.5 * 200.0
    point = dataclasses.replace(
        params.grid.nominal,
        load_kw=0.8 * params.grid.nominal.load_kw,
        load_kvar=0.8 * params.grid.nominal.load_kvar,
        tap=1 + jnp.array([4, 0, -8]) * 0.00625,
        capacitor=jnp.array([1.0, 0.0]),
        generation_kw=jnp.array([kw]),
    )
    flow = gridjax.solve(params.grid, point)
    v = np.abs(flow.v)
    violation = np.maximum(v - 1.05, 0).sum() + np.maximum(0.95 - v, 0).sum()
    assert violation > 0.01
    loss = float(gridjax.losses(params.grid, point, flow).real)
    source = float(gridjax.source_power(params.grid, point, flow).real.sum())
    expected = -10 * loss / source - violation - 1 / 33 - 12 / 33 - float(w.discharge) * 0.5
    assert float(reward) == pytest.approx(expected, rel=1e-7)
    assert float(cost[0]) == pytest.approx(violation, rel=1e-6)
    assert float(after.storage.kwh[0]) == pytest.approx(1000 - kw / float(battery.discharge_efficiency[0]))
    assert int(info["tap_moves"]) == 12 and int(info["capacitor_moves"]) == 1
    np.testing.assert_array_equal(after.position, [20, 16, 8])


@pytest.mark.parametrize("actions", ["mixed", "continuous"])
def test_numbers_mean_the_same_as_positions(clean, actions):
    env, params = clean
    other = dataclasses.replace(env, actions=actions)
    if actions == "mixed":
        numbers = jnp.array([1.0, 0.0, 20.0, 16.0, 8.0, 0.5])
    else:
        numbers = jnp.array([0.9, -0.2, 20 / 16 - 1.01, 0.01, -0.5, 0.5])
    got = other._targets(numbers, params)
    want = env._targets(jnp.array([1, 0, 20, 16, 8, 24]), params)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert other.action_counts == ((2, 2, 33, 33, 33, 0) if actions == "mixed" else (0,) * 6)


def test_derivatives_pass_rounding():
    env, params = volt_var(gridjax.feeders.ieee13(), DAYS, actions="continuous")
    _, state = env.reset(jax.random.key(0), params)

    def violation(action):
        return env.step(jax.random.key(1), state, action, params)[3][0]

    action = jnp.array([1.0, 1.0, 0.9, 0.9, 0.9, 0.0])
    slope = jax.jit(jax.grad(violation))(action)
    assert bool(jnp.all(slope[2:5] > 0))  # higher taps, higher violations above the limit
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_bad_tasks_are_refused():
    with pytest.raises(ValueError, match="tolerance must be positive, not 0"):
        volt_var(gridjax.feeders.ieee13(), DAYS, tolerance=0.0)
    feeder = gridjax.feeders.ieee13()
    with pytest.raises(ValueError, match=r"multiplier must be \(episodes, steps, 15 loads\)"):
        volt_var(feeder, np.ones((2, 24, 3)))
    with pytest.raises(ValueError, match="actions 'many' are unknown"):
        volt_var(feeder, DAYS, actions="many")
    bare = gridjax.feeders.load("ieee4_yy")
    with pytest.raises(ValueError, match="nothing to control"):
        volt_var(bare, np.ones((1, 1, len(bare.loads))))
    with pytest.raises(ValueError, match="no environment 'VoltVar-ieee13'"):
        make("VoltVar-ieee13")
    with pytest.raises(ValueError, match="steps that divide 24 h"):
        make("VoltVar-ieee13-v0", hours=0.7)
    assert "VoltVar-ieee123-v0" in names()


def test_days_follow_from_the_seed_and_stay_near_the_rated_load():
    feeder = gridjax.feeders.ieee13()
    a, b, c = (np.asarray(multipliers(feeder, jax.random.key(k), 4, 24)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (4, 24, 15) and not np.array_equal(a, c)
    assert 0.2 < a.mean() < 0.8 and a.min() > 0


def test_doing_nothing_lives_through_every_day():
    env, params = powergym("ieee123", np.random.default_rng(0).uniform(0.2, 1.2, (16, 24, 91)))
    hold = jnp.array([1] * 4 + [16] * 7 + [16] * 4)

    @jax.jit
    def live(key):
        _, state = env.reset(key, params)

        def one(state, key):
            _, state, _, _, terminated, _, info = env.step(key, state, hold, params)
            return state, (terminated, info["solved"])

        return jax.lax.scan(one, state, jax.random.split(key, 24))[1]

    terminated, solved = jax.vmap(live)(jax.random.split(jax.random.key(0), 16))
    assert bool(solved.all()) and not bool(terminated.any())


def test_devices_see_themselves_and_their_neighbours(clean, first):
    env, params = clean
    _, state = first
    state = dataclasses.replace(
        state,
        t=state.t + 1,
        capacitor=jnp.array([1.0, 0.0]),
        position=jnp.array([20.0, 16.0, 8.0]),
        power=jnp.array([0.5]),
    )
    seen = np.asarray(jax.jit(env.observe_devices)(state, params))
    assert seen.shape == (len(env.devices), len(FEATURES)) == (6, 13)
    np.testing.assert_array_equal(seen[:, :3], np.repeat(np.eye(3), [2, 3, 1], axis=0))
    volts = dict(zip(env.nodes, np.asarray(state.v), strict=True))
    cap1, cap2 = (np.mean([volts[n] for n in nodes]) for nodes in (("675.1", "675.2", "675.3"), ("611.3",)))
    np.testing.assert_allclose(seen[[0, 1], 3], [cap1, cap2])
    near = seen[:, 3][np.asarray(params.neighbour)]
    np.testing.assert_allclose(seen[:, 4:7], np.stack([near.mean(1), near.min(1), near.max(1)], axis=1))
    np.testing.assert_allclose(seen[:, 7], [1, 0, 20 / 32, 16 / 32, 8 / 32, 0])
    np.testing.assert_allclose(seen[5, 8:10], [1.0, 0.5])
    assert not seen[:5, 8:10].any()
    np.testing.assert_allclose(seen[:, 10:], [[0.8, 1.0 * np.sin(np.pi / 12), np.cos(np.pi / 12)]] * 6)


@pytest.mark.parametrize("actions", ["discrete", "mixed", "continuous"])
def test_devices_actions_are_the_whole_s(clean, actions):
    env = dataclasses.replace(clean[0], actions=actions)
    asked = jnp.array([[-1.0], [0.3], [0.0], [1.0], [-0.49], [0.5]])
    wanted = {
        "discrete": [0, 1, 16, 32, 8, 24],
        "mixed": [0, 1, 16, 32, 8, 0.5],
        "continuous": [-1.0, 0.3, 0.0, 1.0, -0.49, 0.5],
    }[actions]
    np.testing.assert_allclose(env.from_devices(asked), wanted)
    assert jnp.issubdtype(env.from_devices(asked).dtype, jnp.integer) == (actions == "discrete")


def test_a_load_near_the_nose_takes_many_sweeps_and_does_not_end_the_day():
    heavy = two_bus_feeder().replace(
        loads=(Load("s1", "b.1.0", 1, "wye", 1, MIDDLE, 100.0, 33.0, vmin_pu=0.3, vmax_pu=2.0, vlow_pu=0.2),),
        capacitors=(Capacitor("c1", "b.1.2.3", 3, "wye", 4.16, (1.0,), (True,), "b.0.0.0"),),
    )
    factor = 22.25
    env, params = volt_var(heavy, np.array([[[0.1], [0.1], [factor], [0.1]]]))
    _, state = env.reset(jax.random.key(0), params)
    step = jax.jit(env.step)
    for t in range(3):
        _, state, _, _, terminated, _, info = step(jax.random.key(t), state, jnp.ones(1, int), params)
        assert info["solved"] and not terminated
    nominal = params.grid.nominal
    point = dataclasses.replace(nominal, load_kw=factor * nominal.load_kw, load_kvar=factor * nominal.load_kvar)
    exact = gridjax.solve(params.grid, point, method="newton")
    assert not gridjax.solve(params.grid, point).converged and exact.converged
    # So near the nose sweeps shrink slowly: what is left is many times the last change, which is within 1e-8.
    np.testing.assert_allclose(state.v, jnp.abs(exact.v), atol=1e-6)
