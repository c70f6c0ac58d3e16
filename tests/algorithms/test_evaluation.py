"""Evaluation: the figures are those of the steps played by hand, each held-out day once, seeds as if alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "env"))

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments_for_tests import walk

from algorithms.evaluation import VIOLATED, day_keys, evaluate, evaluate_policy, held_out, join
from algorithms.iql import IQL
from algorithms.spaces import space_of
from algorithms.training import begin, seed_keys
from gridjax.env.environment import Environment, Outcome
from gridjax.env.policies import constant, random

NAME = "VoltVar-ieee13-v0"


@pytest.fixture(scope="module")
def task():
    return held_out(NAME, (1, 2), 3)


@pytest.fixture(scope="module")
def small():
    """A walk by three positions, of which the second entry is of no account, and as many keys as wanted."""
    return *walk(counts=(3, 2)), jax.random.split(jax.random.key(4), 200)


@pytest.fixture(scope="module")
def agents(small):
    space, config = space_of(small[0]), IQL.config(hidden=(8,))
    config = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    return space, config, begin(IQL, space, seed_keys(jax.random.key(0), 2), config)


def by_hand(env, params, act, key):
    """Episode by `reset` and `step`, one step after another."""
    step = jax.jit(env.step)
    obs, state = jax.jit(env.reset)(key, params)
    out: dict[str, Any] = {"return": 0.0, "cost": 0.0, "violated": 0.0, "steps": 0.0}
    infos: dict[str, float] = {}
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
    begun = jax.jit(jax.vmap(lambda key: env.begin(key, params).episode))(keys)
    assert begun.tolist() == list(range(6)) and params.multiplier.shape[0] == 6
    apart = np.asarray(params.multiplier).reshape(6, -1)
    assert len(np.unique(apart, axis=0)) == 6


def test_agents_figures_are_those_of_steps_by_hand(small, agents):
    env, params, keys = *small[:2], small[2][:6]
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


@flax.struct.dataclass
class Clock:
    """A state that is the number of steps made."""

    t: jax.Array


@dataclass(frozen=True)
class Bomb(Environment):
    """Every step earns 1 and costs the step's number; day k fails in step k, or its task is over then."""

    fails: bool = True

    @property
    def constraints(self):
        return ("what it costs, money",)

    @property
    def observation_names(self):
        return ("t",)

    @property
    def action_size(self):
        return 1

    @property
    def action_counts(self):
        return (0,)

    def begin(self, key, params):
        return Clock(jnp.zeros((), jnp.int32))

    def advance(self, key, state, action, params):
        t = state.t + 1
        end = t == params
        # After the end nothing is a number, as of a power flow that does not converge.
        bad = jnp.where(t > params, jnp.nan, 1.0)
        return Clock(t), Outcome(
            bad * action[0], jnp.asarray(t * 1.0)[None], ~(end & self.fails), end & (not self.fails),
            t >= self.horizon, {"figure": bad * 2.0},
        )  # fmt: skip

    def observe(self, state, params):
        return jnp.where(state.t < params, 1.0, jnp.nan) * state.t[None]


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_counts_after_an_episodes_end(fails):
    env = Bomb(horizon=5, failure_penalty=-50.0, fails=fails)
    keys = jax.random.split(jax.random.key(0), 3)
    got = evaluate_policy(env, jnp.asarray(3), constant(np.ones(1)), keys, at_once=2)
    full = 2 if fails else 3
    np.testing.assert_array_equal(got["return"], np.full((1, 3), full + (-50.0 if fails else 0.0)))
    np.testing.assert_array_equal(got["cost"][0, 0], [sum(range(1, full + 1)), 1.0 * fails])
    np.testing.assert_array_equal(got["violated"][0, 0], [full, 1.0 * fails])
    np.testing.assert_array_equal(got["steps"], np.full((1, 3), 3))
    np.testing.assert_array_equal(got["terminated"], np.ones((1, 3)))
    np.testing.assert_array_equal(got["figure"], np.full((1, 3), 2.0 * full))


def test_drawn_actions_come_from_the_distribution_and_each_episode_has_its_own(small, agents):
    env, params, keys = small
    space, config, states = agents
    drawn = evaluate(env, params, IQL, config, space, states, keys, at_once=80, drawn=True)
    alone = evaluate(env, params, IQL, config, space, states, keys[60:], at_once=80, drawn=True)
    np.testing.assert_allclose(drawn["return"][:, 60:], alone["return"], rtol=1e-7)
    # New actors begin near equal chances of all positions: they go about as far as by chance, unlike by modes.
    far = evaluate_policy(env, params, random(env), keys)["distance"].mean()
    modes = evaluate(env, params, IQL, config, space, states, keys, at_once=80)["distance"].mean()
    assert drawn["distance"].mean() == pytest.approx(far, rel=0.1) and modes != pytest.approx(far, rel=0.2)


def test_what_does_not_go_together_is_refused(task, small, agents):
    env, params, keys = small
    space, config, states = agents
    with pytest.raises(ValueError, match="axis of seeds"):
        evaluate(env, params, IQL, config, space, jax.tree.map(lambda a: a[0], states), keys)
    with pytest.raises(ValueError, match="not that of this environment"):
        evaluate(Bomb(5, 0.0), params, IQL, config, space, states, keys)
    env, params, _ = task
    with pytest.raises(ValueError, match="differ in more than their days"):
        join([params, params.replace(low=params.low - 0.1)])
    with pytest.raises(ValueError, match="different seeds"):
        held_out(NAME, (1, 1), 3)
    with pytest.raises(ValueError, match="only 6 of 7 days"):
        day_keys(env, params, 7, 0)
