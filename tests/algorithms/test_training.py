"""Training: seeds and numbers side by side, chunks, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import CHAIN, chain_data

from algorithms.awr import AWR
from algorithms.batches import from_dataset
from algorithms.training import train

KEY = jax.random.key(3)
RUN = {"updates": 30, "every": 10, "batch_size": 16}


@pytest.fixture(scope="module")
def data():
    return from_dataset(chain_data(episodes=5), CHAIN)


def run(data, seeds=2, **numbers):
    """All states after each chunk, on the host; AWR, whose returns are computed anew for each."""
    kept, known = [], ("updates", "every", "states")
    arguments = {**RUN, **{k: numbers.pop(k) for k in known if k in numbers}}
    config = AWR.config(hidden=(8,), **numbers)
    train(
        AWR, config, CHAIN, data, KEY, seeds=seeds,
        seen=lambda _, states, __: kept.append(jax.tree.map(np.array, states)), **arguments,
    )  # fmt: skip
    return kept


@pytest.fixture(scope="module")
def two(data):
    return run(data)


def leaves(states, seed):
    return [a[seed] for a in jax.tree.leaves(states)]


def test_seeds_side_by_side_are_those_alone(data, two):
    (alone,) = run(data, seeds=1)[-1:]
    for a, b in zip(leaves(two[-1], 0), leaves(alone, 0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(leaves(two[-1], 0), leaves(two[-1], 1), strict=True))


def test_a_run_taken_up_again_has_the_same_bits(data, two):
    again = run(data, states=jax.tree.map(jnp.asarray, two[0]))
    assert len(two) == 3 and len(again) == 2
    for a, b in zip(jax.tree.leaves(two[-1]), jax.tree.leaves(again[-1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(again[-1].step[0]) == 30


def test_numbers_side_by_side_are_those_alone(data, two):
    """Two temperatures and two traces for two seeds, against a run of both seeds with each of them."""
    both = run(data, temperature=jnp.array([1.0, 0.2]), trace=jnp.array([0.95, 0.0]))[-1]
    greedy = run(data, temperature=0.2, trace=0.0)[-1]
    for seed, alone in ((0, two[-1]), (1, greedy)):
        for a, b in zip(leaves(both, seed), leaves(alone, seed), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    changed = zip(leaves(greedy, 1), leaves(two[-1], 1), strict=True)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in changed)


def test_what_makes_no_sense_is_refused(data):
    with pytest.raises(ValueError, match="take at least one of each"):
        run(data, updates=0)
    with pytest.raises(ValueError, match=r"awr: .*value_loss.* not finite after 10 updates: lower the rates"):
        run(data.replace(reward=data.reward * 1e30))
