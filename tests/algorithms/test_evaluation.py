"""Evaluation: the figures are those of the steps played by hand, each held-out day once, seeds as if alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms.evaluation import VIOLATED, evaluate, evaluate_policy, held_out
from algorithms.iql import IQL
from algorithms.spaces import space_of
from algorithms.training import begin, seed_keys
from gridjax.env.policies import random

NAME = "VoltVar-ieee13-v0"


@pytest.fixture(scope="module")
def task():
    return held_out(NAME, (1, 2), 3)


@pytest.fixture(scope="module")
def agents(task):
    space, config = space_of(task[0]), IQL.config(hidden=(8,))
    config = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    return space, config, begin(IQL, space, seed_keys(jax.random.key(0), 2), config)


def by_hand(env, params, act, key):
    """Episode by `reset` and `step`, one step after another, in NumPy."""
    step = jax.jit(env.step)
    obs, state = jax.jit(env.reset)(key, params)
    out = {"return": 0.0, "cost": 0.0, "violated": 0.0, "steps": 0.0}
    infos = {}
    for t in range(env.horizon):
        choose, move = jax.random.split(jax.random.fold_in(key, t))
        obs, state, reward, cost, terminated, truncated, info = step(move, state, act(choose, obs, state), params)
        out["return"] += float(reward)
        out["cost"] = out["cost"] + np.asarray(cost)
        out["violated"] = out["violated"] + (np.asarray(cost) > VIOLATED)
        out["steps"] += 1
        for name in info.keys() - {"solved", "final_observation"}:
            infos[name] = infos.get(name, 0.0) + float(info[name])
        if terminated or truncated:
            break
    return out | infos


def test_each_held_out_day_is_played_once(task):
    env, params, keys = task
    begun = [int(env.begin(key, params).episode) for key in keys]
    assert begun == list(range(6)) and params.multiplier.shape[0] == 6
    apart = np.asarray(params.multiplier).reshape(6, -1)
    assert len(np.unique(apart, axis=0)) == 6


def test_agents_figures_are_those_of_steps_by_hand(task, agents):
    env, params, keys = task
    space, config, states = agents
    got = evaluate(env, params, IQL, config, space, states, keys, at_once=4)
    assert got["return"].shape == (2, 6) and got["cost"].shape == (2, 6, len(env.cost_names))
    actor = jax.jit(lambda p, o: config.design(space).act(p, o.astype(jnp.float32)).mode())
    for seed, episode in ((0, 0), (1, 5)):
        own = jax.tree.map(lambda a, s=seed: a[s], states.actor.params)

        def act(choose, obs, state, own=own):
            return jnp.round(actor(own, obs)).astype(jnp.int32)

        for name, value in by_hand(env, params, act, keys[episode]).items():
            np.testing.assert_allclose(got[name][seed, episode], value, rtol=1e-7, atol=1e-9, err_msg=name)


def test_a_plain_policys_figures_are_those_of_steps_by_hand(task):
    env, params, keys = task
    policy = random(env)
    got = evaluate_policy(env, params, policy, keys)

    def act(choose, obs, state):
        return policy(choose, obs, state, None)[0]

    for name, value in by_hand(env, params, act, keys[2]).items():
        np.testing.assert_allclose(got[name][0, 2], value, rtol=1e-7, atol=1e-9, err_msg=name)
