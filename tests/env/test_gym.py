"""Gymnasium's view: registered names, its own checker, natively batched environments."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from gridjax.env.environment import rollout

NAME = "gridjax.env.gym:gridjax/VoltVar-ieee13-v0"
OPTIONS = dict(days=2, hours=8.0)  # three steps a day


def test_gymnasium_s_checker_passes():
    env = gymnasium.make(NAME, actions="mixed", **OPTIONS)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.fixture(scope="module")
def many():
    return gymnasium.make_vec(NAME, num_envs=5, **OPTIONS)


def test_a_vector_environment_is_natively_batched(many):
    assert many.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    many.action_space.seed(0)
    obs, _ = many.reset(seed=1)
    again, _ = many.reset(seed=1)
    np.testing.assert_array_equal(obs, again)
    assert obs.shape == (5, many.single_observation_space.shape[0]) and obs.dtype == np.float32
    for k in range(3):
        obs, reward, terminated, truncated, info = many.step(many.action_space.sample())
        assert reward.shape == terminated.shape == truncated.shape == (5,) and info["cost"].shape == (5, 2)
        assert many.observation_space.contains(obs)
        assert truncated.all() == (k == 2) and not terminated.any()
    assert info["_final_obs"].all() and not np.array_equal(info["final_obs"], obs)


def test_it_steps_as_the_functional_environment_does(many):
    inner = many.unwrapped
    many.reset(seed=3)
    hold = np.tile([1, 1, 16, 16, 16, 16], (5, 1))
    rewards = np.array([many.step(hold)[1] for _ in range(3)])
    again = np.array([many.step(hold)[1] for _ in range(3)])  # of fresh days

    def policy(key, obs, state, memory):
        return jax.numpy.asarray(hold[0]), memory

    seen, _ = rollout(inner.functional, policy, jax.random.key(0), inner.params, steps=30, batch=2)
    possible = np.round(np.asarray(seen.reward), 9).ravel()
    assert np.isin(np.round(rewards, 9).ravel(), possible).all()
    assert np.isin(np.round(again, 9).ravel(), possible).all()


def test_steps_come_after_a_reset(many):
    fresh = gymnasium.make_vec(NAME, num_envs=2, **OPTIONS)
    with pytest.raises(gymnasium.error.ResetNeeded):
        fresh.step(fresh.action_space.sample())
