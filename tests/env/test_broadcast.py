"""One signal for all devices of a kind is the environment with equal actions."""

import jax
import numpy as np
import pytest

from gridjax.env.broadcast import broadcast
from gridjax.env.tasks import make


def test_a_signal_reaches_every_device_of_its_kind():
    env, params = make("DerControl-ieee13-v0", days=1)
    tied = broadcast(env)
    assert tied.action_size == 4 and tied.action_counts == (0, 0, 0, 0)
    pv, batteries, cars = len(env.inverters), len(env.batteries), len(env.cars)
    key = jax.random.key(0)
    obs, state = tied.reset(key, params)
    signals = np.array([0.3, 0.5, -0.4, 0.2])
    each = np.repeat(signals, [pv, pv, batteries, cars])
    ours = jax.jit(tied.move)(key, state, signals, params)
    theirs = jax.jit(env.move)(key, state, each, params)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert obs.shape == (tied.observation_size,) and bool(ours[-1]["solved"])
    np.testing.assert_array_equal(np.asarray(tied.nothing())[list(tied.tie)], env.nothing())


def test_other_environments_are_refused():
    env, _ = make("VoltVar-ieee13-v0", days=1)
    with pytest.raises(ValueError, match="DerControl"):
        broadcast(env)
