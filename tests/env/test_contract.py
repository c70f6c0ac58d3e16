"""What every environment promises (see `gridjax.env.environment`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs_for_tests import exact, products

import gridjax
from gridjax.env.der_tasks import der_control
from gridjax.env.environment import rollout, where_any
from gridjax.env.microgrid_tasks import microgrid
from gridjax.env.restoration_tasks import restoration
from gridjax.env.volt_var_tasks import powergym, volt_var

STEPS = 4


def days(loads, seed=0):
    return np.random.default_rng(seed).uniform(0.3, 1.0, (4, STEPS, loads))


MAKERS = {
    "volt_var": lambda: volt_var(gridjax.feeders.ieee13(), days(15), actions="continuous"),
    "powergym": lambda: powergym("ieee13", days(15)),
    "der_control": lambda: der_control(gridjax.feeders.ieee13(), jax.random.key(0), days=4, hours=24 / STEPS),
    "microgrid": lambda: microgrid(gridjax.feeders.ieee13(), jax.random.key(0), days=4, hours=24 / STEPS),
    "restoration": lambda: restoration(gridjax.feeders.baran_wu33(), days(32), hours=24 / STEPS),
}


def with_loads(params, factor):
    """The parameters with all loads times a factor."""
    if hasattr(params, "multiplier"):
        return dataclasses.replace(params, multiplier=params.multiplier * factor)
    return dataclasses.replace(params, days=dataclasses.replace(params.days, load_kw=params.days.load_kw * factor))


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request):
    """An environment, its parameters, and its compiled step."""
    env, params = MAKERS[request.param]()
    return env, params, jax.jit(env.step)


def draw(env, key):
    """A random action."""
    counts = jnp.array(env.action_counts)
    whole = jax.random.randint(key, counts.shape, 0, jnp.maximum(counts, 1))
    return jnp.where(counts > 0, whole, jax.random.uniform(key, counts.shape, minval=-1.0))


@pytest.fixture(scope="module")
def walked(made):
    """Two episodes of one environment, step by step."""
    env, params, step = made
    reset = jax.jit(env.reset)
    obs, state = reset(jax.random.key(0), params)
    out = []
    for k in range(2 * STEPS):
        action = draw(env, jax.random.key(100 + k))
        result = step(jax.random.key(k), state, action, params)
        out.append((obs, state, action, result))
        obs, state = result[:2]
    assert step._cache_size() == 1  # nothing is compiled again
    return out


def test_shapes_and_names(made, walked):
    env, *_ = made
    assert len(env.action_counts) == env.action_size
    assert len(set(env.observation_names)) == env.observation_size
    for obs, _, _, (after, _, reward, cost, terminated, truncated, info) in walked:
        assert obs.shape == after.shape == info["final_observation"].shape == (env.observation_size,)
        assert reward.shape == terminated.shape == truncated.shape == info["solved"].shape == ()
        assert cost.shape == (len(env.cost_names),)
        assert env.cost_names[-1] == "power flow not solved" and float(cost[-1]) == 0
        assert bool(jnp.all(cost >= 0)) and bool(jnp.all(jnp.isfinite(after))) and bool(jnp.isfinite(reward))


def test_episodes_end_in_time_and_start_afresh(made, walked):
    env, params, _ = made
    ends = [bool(result[5]) for *_, result in walked]
    assert ends == [False] * (STEPS - 1) + [True] + [False] * (STEPS - 1) + [True]
    assert not any(bool(result[4]) for *_, result in walked)
    _, _, _, (obs, state, *_, info) = walked[STEPS - 1]
    np.testing.assert_array_equal(obs, env.observe(state, params))
    assert not np.array_equal(obs, info["final_observation"])
    _, _, _, (obs, state, *_, info) = walked[0]
    np.testing.assert_array_equal(obs, info["final_observation"])


def test_same_key_same_bits_and_vmap_is_a_loop(made, walked):
    env, params, _ = made
    keys = jnp.stack([jax.random.key(k) for k in range(2 * STEPS)])
    states = jax.tree.map(lambda *a: jnp.stack(a), *(w[1] for w in walked))
    actions = jnp.stack([w[2] for w in walked])
    many = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    first, second = many(keys, states, actions, params), many(keys, states, actions, params)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    for k, (*_, result) in enumerate(walked):
        one = jax.tree.map(lambda a, k=k: a[k], first)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), one, result)


def test_a_failed_power_flow_ends_the_episode_and_invents_nothing(made, walked):
    env, params, step = made
    obs, state, action, _ = walked[0]
    nominal = dataclasses.replace(params.grid.nominal, source_pu=params.grid.nominal.source_pu * jnp.nan)
    hopeless = dataclasses.replace(params, grid=dataclasses.replace(params.grid, nominal=nominal))
    _, _, reward, cost, terminated, truncated, info = step(jax.random.key(3), state, action, hopeless)
    assert bool(terminated) and not bool(truncated) and not bool(info["solved"])
    assert float(reward) == env.failure_penalty
    assert float(reward) < float(walked[0][3][2])  # worse than a step that is solved
    np.testing.assert_array_equal(cost, np.eye(len(env.cost_names))[-1])
    np.testing.assert_array_equal(info["final_observation"], obs)
    figures = [v for k, v in info.items() if k not in ("solved", "final_observation")]
    assert figures and all(bool(jnp.isnan(v)) for v in figures)
    first, _ = jax.jit(env.reset)(jax.random.key(0), hopeless)
    voltages = np.array([name.startswith("voltage ") for name in env.observation_names])
    known = np.array([not name.startswith(("voltage ", "power ", "grid-forming ")) for name in env.observation_names])
    assert np.isnan(np.asarray(first)[voltages]).all() and np.isfinite(np.asarray(first)[known]).all()


def test_products_are_exact(made, walked):
    """As accelerators make them of float32 only where they are told to."""
    env, params, _ = made
    params = dataclasses.replace(params, grid=dataclasses.replace(params.grid, tree=None))
    _, state, action, _ = walked[0]
    found = list(products(jax.make_jaxpr(env.step)(jax.random.key(0), state, action, params).jaxpr))
    assert found and exact(found)


def test_rewards_have_derivatives(made, walked):
    env, params, step = made
    _, state, action, _ = walked[0]

    def reward(scale):
        return env.step(jax.random.key(0), state, action, with_loads(params, scale))[2]

    slope, by = float(jax.jit(jax.grad(reward))(1.0)), 1e-5
    up, down = (step(jax.random.key(0), state, action, with_loads(params, 1 + b))[2] for b in (by, -by))
    assert slope == pytest.approx(float(up - down) / (2 * by), rel=1e-3, abs=1e-6)
    assert slope != 0


def test_rollouts_are_walks():
    env, params = MAKERS["volt_var"]()

    def policy(key, obs, state, memory):
        return draw(env, key), memory + 1

    args = (env, policy, jax.random.key(0), params)
    seen, (_, memory) = rollout(*args, steps=2 * STEPS, batch=5, memory=jnp.zeros((), int))
    assert seen.reward.shape == (2 * STEPS, 5) and seen.cost.shape == (2 * STEPS, 5, len(env.cost_names))
    np.testing.assert_array_equal(memory, 2 * STEPS)
    going = ~np.asarray(seen.truncated[:-1])
    np.testing.assert_array_equal(
        np.asarray(seen.next_observation[:-1])[going], np.asarray(seen.observation[1:])[going]
    )
    assert np.asarray(seen.truncated).sum() == 10 and bool(seen.info["solved"].all())
    total, _ = rollout(*args, steps=2 * STEPS, batch=5, memory=jnp.zeros((), int), keep=lambda t: t.reward.sum())
    np.testing.assert_allclose(total, seen.reward.sum(axis=1), rtol=1e-9)
    assert not np.array_equal(seen.reward[:, 0], seen.reward[:, 1])


def test_fresh_episodes_are_computed_only_where_one_ends():
    calls = []

    def costly(x):
        jax.debug.callback(lambda: calls.append(1))
        return 10 * x

    some = jax.jit(jax.vmap(jax.vmap(where_any(costly), in_axes=(0, 0, None)), in_axes=(0, 0, 0)))
    other, x = jnp.ones((2, 3)), jnp.array([1.0, 2.0])
    none = jnp.zeros((2, 3), bool)
    np.testing.assert_array_equal(some(none, other, x), other)
    jax.effects_barrier()
    assert not calls
    np.testing.assert_array_equal(some(none.at[1, 2].set(True), other, x), [[1, 1, 1], [1, 1, 20]])
    jax.effects_barrier()
    assert calls
