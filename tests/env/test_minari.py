"""Minari's data sets, written and read through its own interface, without a network."""

import dataclasses
import importlib
import socket
import sys

import jax
import minari
import numpy as np
import pytest
from environments_for_tests import walk

from gridjax.env.behaviours import Behaviour
from gridjax.env.collection import collect
from gridjax.env.datasets import returns
from gridjax.env.minari import read_minari, write_minari
from gridjax.env.policies import constant, noisy, random

NAME = "gridjax/walk/mixed-v0"


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


@pytest.fixture(scope="module")
def data():
    env, _ = walk(counts=(3, 0))
    behaviours = (Behaviour("random", random(env)), Behaviour("noisy", noisy(env, constant([2.0, 0.0])), 2.0))
    return collect(env, jax.numpy.asarray(2.5), behaviours, jax.random.key(0), 9)


def test_a_data_set_comes_back(data):
    made = write_minari(data, NAME, author="someone")
    assert (made.total_episodes, made.total_steps) == (9, len(data.episode)) and NAME in minari.list_local_datasets()
    lengths = [len(episode) for episode in minari.load_dataset(NAME).iterate_episodes()]
    np.testing.assert_array_equal(lengths, np.bincount(data.episode))
    assert min(lengths) < 5  # one fails early
    episode = made[3]
    mine = data.episode == 3
    np.testing.assert_array_equal(episode.observations[:-1], data.transitions.observation[mine])
    np.testing.assert_array_equal(episode.observations[-1], data.transitions.next_observation[mine][-1])
    np.testing.assert_array_equal(episode.actions[0][:, 0], data.transitions.action[mine, 0])
    np.testing.assert_array_equal(episode.infos["cost"], data.transitions.cost[mine])
    note = next(iter(made.storage.get_episode_metadata([3])))
    assert note["behaviour"] == data.header["behaviours"][data.behaviour[3]]
    back = read_minari(NAME)
    assert back.fingerprint == data.fingerprint and back.header == data.header
    with pytest.raises(ValueError, match="already"):
        write_minari(data, NAME)


def test_part_of_a_data_set_is_read(data):
    few = write_minari(data, NAME).filter_episodes(lambda episode: len(episode) == 5)
    np.testing.assert_allclose(returns(read_minari(few)), returns(data)[np.bincount(data.episode) == 5])


def test_the_environment_is_made_anew(data):
    data.header["made_by"] = {"name": "VoltVar-ieee13-v0", "days": 1, "hours": 12.0}
    made = write_minari(data, "gridjax/volt-var/some-v0")
    data.header["made_by"] = {}
    env = made.recover_environment()
    assert env.unwrapped.functional.horizon == 2
    env.close()


def test_others_data_sets_are_read():
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    episode = EpisodeBuffer(
        observations=np.arange(8.0).reshape(4, 2),
        actions=np.array([0, 2, 1]),
        rewards=[1.0, 2.0, 4.0],
        terminations=[False, False, True],
        truncations=[False, False, False],
        infos={"cost": np.ones(3)},  # called as ours
    )
    space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    with pytest.warns(UserWarning):
        made = minari.create_dataset_from_buffers(
            "cart-v0", [episode, episode], action_space=gymnasium.spaces.Discrete(3), observation_space=space
        )
    data = read_minari(made)
    assert data.header["action_counts"] == [3] and data.header["cost_names"] == []
    np.testing.assert_array_equal(data.transitions.action[:, 0], [0, 2, 1] * 2)
    np.testing.assert_array_equal(data.transitions.next_observation[2], [6, 7])
    assert data.transitions.cost.shape == (6, 0) and np.isnan(data.log_probability).all()
    np.testing.assert_array_equal(returns(data), [7, 7])
    pairs = np.array([[0, 1], [2, 0], [1, 1]])
    episode = dataclasses.replace(episode, actions=pairs)
    with pytest.warns(UserWarning):
        made = minari.create_dataset_from_buffers(
            "pairs-v0", [episode], action_space=gymnasium.spaces.MultiDiscrete([3, 2]), observation_space=space
        )
    np.testing.assert_array_equal(read_minari(made).transitions.action, pairs)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.delitem(sys.modules, "gridjax.env.minari")
    with pytest.raises(ImportError, match=r"pip install 'gridjax\[minari\]'"):
        importlib.import_module("gridjax.env.minari")
