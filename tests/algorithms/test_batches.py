"""Logged transitions as the losses take them: masks, next actions, prices, the best episodes."""

import dataclasses

import jax
import numpy as np
import pytest

from algorithms.batches import from_dataset, rows, sample
from algorithms.spaces import LIMIT, plain_space
from gridjax.env.datasets import assemble
from gridjax.env.environment import Transitions

SPACE = plain_space(1, (3, 0), constraints=2)


def data(positions=(0, 1, 2, 0, 1, 2)):
    """Three episodes of 2, 1 and 3 rows: terminated, terminated and truncated at once, and truncated."""
    lengths, parts, row = (2, 1, 3), [], 0
    for e, n in enumerate(lengths):
        at = np.arange(row, row + n)
        last = np.arange(n) == n - 1
        seen = Transitions(
            observation=(10.0 * e + np.arange(n, dtype=np.float32))[:, None],
            action=np.stack([np.array(positions, np.float32)[at], np.linspace(-1, 1, 6, dtype=np.float32)[at]], -1),
            reward=at.astype(np.float32), cost=np.stack([at, np.ones(n)], -1).astype(np.float32),
            next_observation=(10.0 * e + 1 + np.arange(n, dtype=np.float32))[:, None],
            terminated=last & (e < 2), truncated=last & (e > 0), info={},
        )  # fmt: skip
        parts.append((seen, np.zeros(n)))
        row += n
    return assemble(parts, np.zeros(3), np.arange(3), {"behaviours": ["any"]})


def test_only_a_terminal_state_masks_and_each_episode_ends():
    batch = from_dataset(data(), SPACE)
    np.testing.assert_array_equal(batch.mask, [1, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(batch.follows, [1, 0, 0, 1, 1, 0])
    number = np.clip(np.linspace(-1, 1, 6), -LIMIT, LIMIT)
    np.testing.assert_allclose(batch.action[:, 1], number, rtol=1e-6)
    np.testing.assert_array_equal(batch.action[:, 0], [0, 1, 2, 0, 1, 2])
    np.testing.assert_allclose(batch.next_action, np.asarray(batch.action)[[1, 1, 2, 4, 5, 5]])
    np.testing.assert_array_equal(batch.next_observation[:, 0], [1, 2, 11, 21, 22, 23])
    assert {a.dtype for a in jax.tree.leaves(batch)} == {np.dtype(np.float32)}


def test_prices_come_off_before_the_scale():
    batch = from_dataset(data(), SPACE, reward_scale=10.0, prices=np.array([0.5, 2.0]))
    np.testing.assert_allclose(batch.reward, 10 * (0.5 * np.arange(6) - 2), rtol=1e-6)
    np.testing.assert_array_equal(batch.cost[:, 0], np.arange(6))


def test_the_best_episodes_by_their_priced_returns():
    """Returns are 1, 2 and 12; with 3 off each row of it -5, -1 and 3."""
    np.testing.assert_array_equal(from_dataset(data(), SPACE, best=0.34).observation[:, 0], [20, 21, 22])
    two = from_dataset(data(), SPACE, best=0.67, prices=np.array([0.0, 3.0]))
    np.testing.assert_array_equal(two.observation[:, 0], [10, 20, 21, 22])
    np.testing.assert_array_equal(two.follows, [0, 1, 1, 0])
    dear = from_dataset(data(), SPACE, best=0.1, prices=np.array([3.0, 0.0]))
    np.testing.assert_array_equal(dear.observation[:, 0], [0, 1])  # -2, -4 and -24


def test_rows_stay_together():
    batch = from_dataset(data(), SPACE)
    some = sample(jax.random.key(0), batch, 600)
    assert set(np.asarray(some.reward, int)) == set(range(6))
    again = rows(batch, np.asarray(some.reward, int))
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_learned_from_is_refused():
    good = data()
    with pytest.raises(ValueError, match=r"\(1, 2, 2\) entries .* not \(1, 2, 1\)"):
        from_dataset(good, plain_space(1, (3, 0)))
    with pytest.raises(ValueError, match="prices for 2 costs"):
        from_dataset(good, SPACE, prices=np.ones(3))
    with pytest.raises(ValueError, match="best 0"):
        from_dataset(good, SPACE, best=0.0)
    with pytest.raises(ValueError, match=r"position 3 in episode 2, step 2"):
        from_dataset(data((0, 1, 2, 0, 1, 3)), SPACE)
    reward = np.asarray(good.transitions.reward).copy()
    reward[4] = np.nan
    bad = dataclasses.replace(good, transitions=good.transitions.replace(reward=reward))
    with pytest.raises(ValueError, match="reward is not finite in episode 2, step 1"):
        from_dataset(bad, SPACE)
