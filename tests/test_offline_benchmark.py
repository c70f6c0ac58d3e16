"""The benchmark beside d3rlpy, as far as it goes without torch: settings, data, products counted, tables."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import d3rlpy_peer
from benchmarks.offline_page import best_way, interval, page, plot, verdict
from benchmarks.offline_rl import OURS, SETTINGS, agent_of, part
from benchmarks.offline_speed import Product, operations, passes, update_products
from benchmarks.offline_tasks import (
    CLASSIC,
    SWING,
    TORQUE,
    peer_arrays,
    pendulum,
    perceptron,
    played,
    swing_up,
    task_of,
)

# Arguments of d3rlpy 2.8.1's configs, from its documentation.
PEERS = {
    "iql": {
        "actor_learning_rate", "critic_learning_rate", "gamma", "tau", "n_critics", "expectile", "weight_temp",
        "max_weight",
    },
    "cql": {
        "actor_learning_rate", "critic_learning_rate", "temp_learning_rate", "alpha_learning_rate", "gamma", "tau",
        "n_critics", "initial_temperature", "initial_alpha", "alpha_threshold", "conservative_weight",
        "n_action_samples", "soft_q_backup", "max_q_backup",
    },
    "td3_bc": {
        "actor_learning_rate", "critic_learning_rate", "gamma", "tau", "n_critics", "target_smoothing_sigma",
        "target_smoothing_clip", "alpha", "update_actor_interval",
    },
    "bc": {"learning_rate", "policy_type"},
}  # fmt: skip


@pytest.fixture(scope="module")
def classic(tmp_path_factory):
    return task_of(CLASSIC, 800, 2, tmp_path_factory.mktemp("classic"))


@pytest.mark.parametrize("algorithm", list(SETTINGS))
def test_both_sides_have_the_same_settings(algorithm):
    theirs = d3rlpy_peer.keywords(algorithm, SETTINGS[algorithm])
    assert set(theirs) <= PEERS[algorithm]
    _, config = agent_of(algorithm)
    for name, value in SETTINGS[algorithm].items():
        assert getattr(config, name) == value
        assert [theirs[n] for n in d3rlpy_peer.NAMES[algorithm][name].split()].count(value) > 0
    assert not set(OURS[algorithm]) & set(SETTINGS[algorithm])


def test_a_setting_without_a_name_there_is_refused():
    with pytest.raises(KeyError, match="hidden"):
        d3rlpy_peer.keywords("bc", {"hidden": 3})


def test_the_penalty_of_cql_is_fixed_on_both_sides():
    assert d3rlpy_peer.keywords("cql", SETTINGS["cql"])["alpha_learning_rate"] == 0
    assert not agent_of("cql")[1].lagrange


def test_products_of_one_network_by_hand():
    # 3 inputs, 4 hidden, 2 outputs, 5 rows. Forward: 2*5*3*4 + 2*5*4*2; weights' derivatives the same; the derivative
    # of the hidden layer only: 2*5*2*4.
    forward, hidden = 2 * 5 * 3 * 4 + 2 * 5 * 4 * 2, 2 * 5 * 2 * 4
    assert operations(passes((3, 4, 2), 5, "f")) == forward
    assert operations(passes((3, 4, 2), 5, "fw")) == 2 * forward + hidden
    # Through a critic to one of its inputs: forward, hidden, and (5, 4) x (4, 1).
    assert operations(passes((3, 4, 2), 5, "fx", 1)) == forward + hidden + 2 * 5 * 4 * 1
    assert passes((3, 4, 2), 5, "w")[Product("weights", 3, 5, 4)] == 1


def test_products_of_an_update_of_iql_by_hand(classic):
    # Observations of 3, actions of 1, one hidden layer of 8, 16 rows.
    q, v, pi = (2 * 16 * (a * 8 + 8) for a in (4, 3, 3))
    back = 2 * 16 * 8  # of a hidden layer of 8 from one output
    expected = 2 * q + (2 * v + back) + 2 * v + 2 * (2 * q + back) + (2 * pi + back)
    assert operations(update_products("iql", classic.space, (8,), 16, SETTINGS["iql"])) == expected


def test_taking_turns_counts_in_part(classic):
    each, other = (
        operations(update_products("td3_bc", classic.space, (8,), 16, SETTINGS["td3_bc"] | {"delay": d}))
        for d in (1, 2)
    )
    actor = 2 * 2 * 16 * (3 * 8 + 8) + 2 * 16 * 8
    through = 2 * 16 * (4 * 8 + 8) + 2 * 16 * 8 + 2 * 16 * 8
    assert each - other == (actor + through) / 2


def test_an_algorithm_without_products_is_refused(classic):
    with pytest.raises(ValueError, match="awr"):
        update_products("awr", classic.space, (8,), 16, {})


def test_the_pendulum_is_gymnasiums_and_its_data_hold_together(classic):
    batch, late, facts = pendulum(800)
    assert facts["episodes"] == 4 and batch.reward.shape == (800,)
    np.testing.assert_array_equal(np.flatnonzero(late), np.arange(1, 5) * SWING - 1)
    np.testing.assert_array_equal(np.flatnonzero(batch.follows == 0), np.flatnonzero(late))
    assert batch.mask.all(), "a time limit is no end"
    go = batch.follows[:-1] > 0
    np.testing.assert_array_equal(batch.next_observation[:-1][go], batch.observation[1:][go])
    np.testing.assert_array_equal(batch.next_action[:-1][go], batch.action[1:][go])
    # The reward from the state and the torque, by Gymnasium's own formula.
    angle = np.arctan2(batch.observation[:, 1], batch.observation[:, 0])
    speed, torque = batch.observation[:, 2], TORQUE * batch.action[:, 0]
    reward = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)
    np.testing.assert_allclose(batch.reward / facts["reward_scale"], reward, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(facts["reward_scale"] * np.ptp(reward.reshape(4, SWING).sum(1)), SWING, rtol=1e-4)
    np.testing.assert_array_equal(classic.batch.reward, batch.reward)


def test_the_swing_up_swings_up():
    seen, _, reward, _ = played(lambda seen: swing_up(seen)[:, None], 4, seed=3)
    assert (seen[-1, :, 0] > 0.99).all(), "upright at the end"
    assert reward.sum(axis=0).min() > -450


def test_the_peer_gets_every_transition(classic):
    arrays = peer_arrays(classic)
    late, end = np.flatnonzero(arrays["timeout"]), np.flatnonzero(classic.timeout)
    assert len(arrays["reward"]) == len(classic.batch.reward) + len(end) and not arrays["terminal"].any()
    np.testing.assert_array_equal(arrays["observation"][late], np.asarray(classic.batch.next_observation)[end])
    keep = arrays["timeout"] == 0
    for name in ("observation", "action", "reward"):
        np.testing.assert_array_equal(arrays[name][keep], np.asarray(getattr(classic.batch, name)))


def test_an_end_is_no_time_limit_for_the_peer(classic):
    mask, timeout = np.ones(800, np.float32), classic.timeout.copy()
    mask[199], timeout[199] = 0, False
    arrays = peer_arrays(dataclasses.replace(classic, batch=classic.batch.replace(mask=mask), timeout=timeout))
    assert arrays["terminal"].sum() == 1 and arrays["terminal"][199] == 1 and len(arrays["reward"]) == 803
    assert not (arrays["terminal"] * arrays["timeout"]).any()


def test_weights_act_here_as_there():
    rng = np.random.default_rng(0)
    sizes = (3, 8, 8, 2)
    parts = [a for i, o in pairwise(sizes) for a in (rng.normal(size=(o, i)), rng.normal(size=o))]
    parts = [a.astype(np.float32) for a in parts]
    x = rng.normal(size=(5, 3)).astype(np.float32)
    h = np.maximum(x @ parts[0].T + parts[1], 0)
    h = np.maximum(h @ parts[2].T + parts[3], 0)
    expected = np.tanh(h @ parts[4].T + parts[5])
    np.testing.assert_allclose(d3rlpy_peer.acted(parts, x), expected, atol=1e-6)
    np.testing.assert_allclose(perceptron(parts, x), expected, atol=1e-5)
    np.testing.assert_allclose(perceptron(parts, x[0]), expected[0], atol=1e-5)


def test_intervals_decide():
    low, high = {"returns": [[1.0, 2.0], [1.2, 2.2]]}, {"returns": [[5.0, 6.0], [5.2, 6.2]]}
    found = interval(low)
    # Means 1.5 and 1.7: 1.6 +- 12.706 * 0.1.
    np.testing.assert_allclose(found, (1.6, 1.6 - 1.2706, 1.6 + 1.2706), atol=1e-3)
    assert verdict(interval(high), found) == "gridjax better"
    assert verdict(found, interval(high)) == "d3rlpy better"
    assert verdict(found, found) == "agree"


def test_a_part_is_kept_until_something_else_is_asked(tmp_path):
    made = iter([{"x": 1}, {"x": 2}])
    path = tmp_path / "a.json"
    for asked, x in (({"rows": 1}, 1), ({"rows": 1}, 1), ({"rows": 2}, 2)):
        assert part(path, asked, lambda: next(made))["x"] == x


def test_the_page_does_its_sums(tmp_path):
    def side(speed, shift):
        returns = [[shift + s * 0.1, shift + 1] for s in range(5)]
        return {
            "asked": {"updates": 100}, "updates_per_s": speed, "returns": returns, "largest_gap_of_actions": 2e-7,
            "threads": 2,
        }  # fmt: skip

    speed = {
        "one_seed": 100.0, "ten_seeds": 80.0, "ten_over_ten_single": 1.25, "operations_per_update": 5e8,
        "gflop_per_s": 60.0, "most_updates_per_s": 125.0, "peer_1_thread": 10.0, "peer_2_threads": 12.5,
        "peer_2_processes": 20.0,
    }  # fmt: skip
    facts = {"rows": 10, "episodes": 2, "behaviour_return": -3.0, "best_logged_return": -1.0, "reward_scale": 0.5}
    record = {
        "command": "c", "machine": "m", "versions": {}, "note": "", "seeds": 5, "hidden": [8], "batch_size": 4,
        "settings": {"iql": {"rate": 3e-4}}, "algorithms": ["iql"], "tasks": {"T": facts},
        "ours-T-iql": side(90.0, 3.0), "theirs-T-iql": side(30.0, 1.0), "speed-T-iql": speed,
    }  # fmt: skip
    assert best_way(speed) == 20.0
    text = page(record)
    assert "| gridjax better | 90.0 | 30.0 | 3.0 |" in text
    assert "| 5.0 | 500 | 60 | 125 | 6.2 | 0.80 | 0.64 | 1.25 |" in text
    plot(record, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text().count("T") and "gridjax" in text
