"""A feeder's observation by quantiles and means, against NumPy."""

import jax
import numpy as np
import pytest
from environments_for_tests import walk

from algorithms.spaces import space_of
from gridjax.env.behaviours import Behaviour, kinds
from gridjax.env.broadcast import broadcast
from gridjax.env.collection import collect
from gridjax.env.der_control import DerControl
from gridjax.env.policies import classical, nothing
from gridjax.env.summary import QUANTILES, summary
from gridjax.env.tasks import feeder_of, make


def named(names, values):
    """Values by name."""
    return dict(zip(names, np.asarray(values).tolist(), strict=True))


def whole_and_short(env, params, short, action, steps=8):
    """The observations of both by name, some steps later, to the evening of a DER day; and both last moves."""
    key = jax.random.key(3)
    _, state = env.reset(key, params)
    action, move, short_move = np.asarray(action), jax.jit(env.move), jax.jit(short.move)
    for _ in range(steps):
        ours, theirs = move(key, state, action, params), short_move(key, state, action, params)
        state = ours[0]
    whole, seen = env.observe(state, params), short.observe(state, params)
    return named(env.observation_names, whole), named(short.observation_names, seen), ours, theirs


def quantiles_are_right(whole, got):
    """Those of each phase by NumPy, which takes the nearest too."""
    for phase in "123":
        v = [x for name, x in whole.items() if name.startswith("voltage ") and name.endswith(f".{phase}")]
        assert len(v) > 3
        for q in QUANTILES:
            assert got[f"voltage of phase {phase}, quantile {q:g}"] == np.quantile(v, q, method="nearest")


def test_voltages_of_a_phase_and_devices_of_a_kind_are_summed_up():
    env, params = make("DerControl-ieee13-v0", days=2, fleet=6, batteries=3, cars=3)
    assert isinstance(env, DerControl)
    tied = broadcast(env)
    whole, got, ours, theirs = whole_and_short(tied, params, summary(tied), tied.nothing())
    jax.tree.map(np.testing.assert_array_equal, ours[:5], theirs[:5])  # all but the info, which has an observation
    quantiles_are_right(whole, got)
    for what, kind, devices in (
        ("power", "inverters", env.inverters), ("power", "cars", env.cars), ("available", "inverters", env.inverters),
        ("state of charge", "batteries", env.batteries), ("share delivered", "cars", env.cars),
    ):  # fmt: skip
        x = np.array([whole[f"{what} {device}"] for device in devices])
        np.testing.assert_allclose(got[f"{what} of {kind}, mean"], x.mean(), atol=1e-12)
        np.testing.assert_allclose(got[f"{what} of {kind}, deviation"], x.std(), atol=1e-12)
    for name in ("load level", "price", "time sine", "time cosine"):
        assert got[name] == whole[name]
    assert len(got) == 3 * len(QUANTILES) + 2 * 7 + 4
    assert not any(name.startswith("voltage ") and name in whole for name in got)


def test_devices_that_are_set_one_by_one_stay_as_they_are():
    env, params = make("VoltVar-ieee13-v0", days=2)
    short = summary(env)
    whole, got, *_ = whole_and_short(env, params, short, nothing(env, params).action, steps=2)
    quantiles_are_right(whole, got)
    kept = [name for name in whole if not name.startswith("voltage ")]
    assert {name: got[name] for name in kept} == {name: whole[name] for name in kept}
    assert len(got) == 3 * len(QUANTILES) + len(kept)
    anchors = [a[0] for a in space_of(short).anchor]  # policies still know where taps and capacitors stand
    names = [n for n in env.action_names if n.startswith(("tap ", "capacitor "))]
    assert [short.observation_names[k] for k in anchors if k >= 0] == names


def test_policies_and_behaviours_are_those_of_the_environment():
    name = "VoltVar-ieee13-v0"
    env, params = make(name, days=2)
    short, _ = make(name, days=2, summary=True)
    assert short.base == env and len(short.observation_names) < len(env.observation_names)
    assert nothing(short, params) == nothing(env, params) and kinds(short) == kinds(env)
    feeder = feeder_of(name, summary=True)
    logs = [
        collect(one, params, [Behaviour("own", classical(one, params, feeder))], jax.random.key(0), 2)
        for one in (env, short)
    ]
    np.testing.assert_array_equal(logs[0].transitions.reward, logs[1].transitions.reward)
    assert logs[1].transitions.observation.shape[1] == short.observation_size
    assert logs[0].header["environment"] == logs[1].header["environment"] == "VoltVar"


def test_what_cannot_be_summed_up_is_refused():
    with pytest.raises(ValueError, match="no voltages"):
        summary(walk()[0])
