"""PettingZoo's view of DER control: its own test, and the same steps as the functional environment's."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments_for_tests import Walk, walk
from pettingzoo.test import parallel_api_test

import gridjax
from gridjax.env.der_control import FEATURES
from gridjax.env.der_tasks import der_control
from gridjax.env.pettingzoo import GridParallelEnv


@pytest.fixture(scope="module")
def env():
    made = der_control(gridjax.feeders.ieee13(), jax.random.key(0), days=2, hours=6.0, fleet=2, batteries=1, cars=1)
    return GridParallelEnv(made=made)


def test_pettingzoo_s_own_test_passes(env, capsys):
    parallel_api_test(env, num_cycles=20)
    assert "Passed" in capsys.readouterr().out


def test_agents_are_devices_and_share_the_reward(env):
    inner, params = env.functional, env.params
    seen, infos = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    jax.tree.map(np.testing.assert_array_equal, seen, again)
    assert env.agents == list(inner.devices) and set(infos) == set(env.agents)
    state = env._state
    np.testing.assert_allclose(np.stack(list(seen.values())), inner.observe_devices(state, params), rtol=1e-6)
    assert seen[env.agents[0]].shape == (len(FEATURES),) and env.state().shape == (inner.observation_size,)
    rng = np.random.default_rng(0)
    move = jax.jit(inner.move)
    for k in range(inner.horizon):
        actions = {agent: rng.uniform(-1, 1, 2).astype(np.float32) for agent in env.agents}
        action = inner.from_devices(np.stack(list(actions.values())))
        state, reward, cost, *_ = move(jax.random.key(0), state, action, params)
        seen, rewards, terminations, truncations, infos = env.step(actions)
        np.testing.assert_allclose([rewards[agent] for agent in inner.devices], float(reward))
        np.testing.assert_allclose(infos["pv0"]["cost"], cost, rtol=1e-6, atol=1e-9)
        assert set(truncations.values()) == {k == inner.horizon - 1} and set(terminations.values()) == {False}
        # Of the last step too: what the devices see at its end, not at the beginning of another episode.
        np.testing.assert_allclose(np.stack(list(seen.values())), inner.observe_devices(state, params), rtol=1e-5)
    assert env.agents == []
    import gymnasium

    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step({})


def test_every_agent_acts(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no action of 'pv1'"):
        env.step({agent: np.zeros(2) for agent in env.agents if agent != "pv1"})


class Team(Walk):
    """A walk whose steps are the sum of what two devices want, one number each."""

    devices, device_numbers = ("left", "right"), 1

    def observe_devices(self, state, params):
        return jnp.stack([state[0], -state[0]])[:, None]

    def from_devices(self, numbers):
        return jnp.stack([jnp.sum(numbers), 0.0])


def test_devices_may_have_a_number_each():
    env = GridParallelEnv(made=(Team(horizon=3, failure_penalty=-1.0), jnp.asarray(jnp.inf)))
    seen, _ = env.reset(seed=0)
    assert env.action_space("left").shape == (1,)
    after, *_ = env.step({"left": np.array([0.5]), "right": np.array([-0.2])})
    assert after["left"][0] - seen["left"][0] == pytest.approx(0.3, abs=1e-6) == seen["right"][0] - after["right"][0]


def test_environments_without_devices_are_refused():
    with pytest.raises(ValueError, match="observe_devices"):
        GridParallelEnv(made=walk())


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    monkeypatch.delitem(sys.modules, "gridjax.env.pettingzoo")
    with pytest.raises(ImportError, match=r"pip install 'gridjax\[pettingzoo\]'"):
        importlib.import_module("gridjax.env.pettingzoo")
