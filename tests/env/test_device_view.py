"""Views of devices: the features that the environment itself gives, from the whole observation, and the same action."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gridjax import feeders
from gridjax.env.der_tasks import der_control
from gridjax.env.device_view import device_view
from gridjax.env.environment import rollout
from gridjax.env.microgrid_tasks import microgrid
from gridjax.env.policies import random
from gridjax.env.restoration_tasks import restoration, switched
from gridjax.env.volt_var_tasks import powergym, volt_var


def days(feeder, steps=4):
    factors = np.random.default_rng(0).uniform(0.3, 1.2, (2, steps, 1))
    return np.broadcast_to(factors, (2, steps, len(feeder.loads)))


def clean(name):
    feeder = feeders.load(name)
    return volt_var(feeder, days(feeder), hours=3.0)


def der(name):
    return der_control(feeders.load(name), jax.random.key(0), days=1, hours=6.0, fleet=4, batteries=2, cars=3)


MAKERS = {
    **{f"VoltVar {name}": (clean, name) for name in ("ieee13", "ieee34")},
    "DerControl ieee13": (der, "ieee13"),
    "Microgrid ieee13": (lambda n: microgrid(feeders.load(n), jax.random.key(0), days=1, hours=6.0), "ieee13"),
}
pytestmark = pytest.mark.filterwarnings("ignore:feeder 'ieee34' has doubtful data")


@pytest.fixture(scope="module")
def made():
    kept = {}

    def get(name):
        if name not in kept:
            maker, *arguments = MAKERS[name]
            kept[name] = maker(*arguments)
        return kept[name]

    return get


def any_state(env, params, key):
    """A state whose every number is drawn, so that no two entries of an observation are equal by chance."""
    shapes = jax.eval_shape(env.begin, key, params)
    leaves, tree = jax.tree.flatten(shapes)
    out = []
    for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        new = jnp.ones(leaf.shape, leaf.dtype) if whole else jax.random.uniform(k, leaf.shape, leaf.dtype)
        out.append(new)
    state = jax.tree.unflatten(tree, out)
    changes = {"episode": jnp.zeros((), jnp.int32), "t": jax.random.randint(key, (), 0, env.horizon + 1)}
    if hasattr(state, "out_h"):  # some sources are there
        changes["out_h"] = state.out_h * (jnp.arange(state.out_h.size) % 2)
    return state.replace(**changes)


@pytest.mark.parametrize("name", MAKERS)
def test_features_are_those_of_the_environment(made, name):
    env, params = made(name)
    view = device_view(env, params)
    kinds = ("discrete", "mixed", "continuous") if name.startswith("VoltVar") else ()
    assert all(device_view(dataclasses.replace(env, actions=kind), params) == view for kind in kinds)

    def both(key):
        state = any_state(env, params, key)
        return env.observe_devices(state, params), env.observe(state, params)

    wanted, observation = jax.jit(jax.vmap(both))(jax.random.split(jax.random.key(0), 3))
    seen = view.features(observation)
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=1e-9)
    assert seen.shape[1:] == (len(env.devices), view.feature_size) and hash(view) == hash(device_view(env, params))


def test_features_of_visited_states(made):
    env, params = made("VoltVar ieee13")
    view = device_view(env, params)
    drawn = random(env)

    def policy(key, observation, state, memory):
        return drawn(key, observation, state, None)[0], env.observe_devices(state, params)

    memory = jnp.zeros((view.devices, view.feature_size))
    seen, last = rollout(env, policy, jax.random.key(0), params, steps=6, batch=3, memory=memory)
    np.testing.assert_allclose(view.features(seen.observation[-1]), last[1], rtol=0, atol=1e-9)
    single = view.features(seen.observation[-1].astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, last[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["VoltVar ieee13", "DerControl ieee13", "Microgrid ieee13"])
def test_actions_are_those_of_the_environment(made, name):
    env, params = made(name)
    view = device_view(env, params)
    env = dataclasses.replace(env, actions="continuous") if name.startswith("VoltVar") else env
    numbers = jax.random.uniform(jax.random.key(1), (2, view.devices, view.numbers), minval=-1.0)
    action = view.to_action(numbers.reshape(2, -1, 1))[..., 0]
    np.testing.assert_array_equal(action, jax.jit(jax.vmap(env.from_devices))(numbers))
    back = view.of_action(action[..., None]).reshape(numbers.shape)
    used = np.asarray(view.of_action(jnp.ones((env.action_size, 1)))).reshape(view.devices, view.numbers)
    np.testing.assert_array_equal(back, np.where(used[None], numbers, 0.0))
    assert used.sum() == sum(place >= 0 for place in view.action)


def test_the_graph_is_the_feeders(made):
    env, params = made("VoltVar ieee13")
    feeder = feeders.load("ieee13")
    buses = device_view(env, params, feeder).buses
    names = [bus.name for bus in feeder.buses]
    at = {name: k for k, name in enumerate(env.observation_names)}
    assert buses.voltage[names.index("684")] == (at["voltage 684.1"], -1, at["voltage 684.3"])
    edges = {(names[a], names[b]) for a, b in buses.edges}
    assert {("632", "670"), ("670", "671"), ("671", "684"), ("684", "611"), ("684", "652"), ("632", "633")} <= edges
    assert ("671", "670") not in edges and len(edges) == len(names) - 1
    where = dict(zip(env.devices, (names[k] for k in buses.device), strict=True))
    assert where["battery battery1"] == "680" and {where[f"capacitor {c.name}"] for c in feeder.capacitors} == {
        c.bus1.partition(".")[0] for c in feeder.capacitors
    }


def test_what_does_not_suffice_is_refused(made):
    feeder = feeders.load("ieee13")
    env, params = powergym("ieee13", days(feeder, 24))
    with pytest.raises(ValueError, match="neither time nor load level"):
        device_view(env, params)
    with pytest.raises(ValueError, match="follows from the topology"):
        device_view(*restoration(switched(feeders.load("baran_wu33")), np.ones((1, 48, 32))))
    env, params = made("VoltVar ieee13")
    with pytest.raises(ValueError, match="nodes are not those of the environment"):
        device_view(env, params, feeders.load("ieee34"))
