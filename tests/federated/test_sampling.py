"""Who takes part: against the binomial and uniform distributions that the accounting assumes."""

import jax
import numpy as np
import pytest
from scipy import stats

from federated import sampling
from federated.sampling import Everyone, FixedSize, Poisson

DRAWS, CLIENTS = 4000, 12


def draws(sampler, clients=CLIENTS):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    ids, present = jax.jit(jax.vmap(lambda key: sampler.draw(key, clients)))(keys)
    assert ids.dtype == np.int32 and present.dtype == np.float32
    assert ids.shape == present.shape == (DRAWS, sampler.places(clients))
    ids, present = np.asarray(ids), np.asarray(present)
    assert set(np.unique(present)) <= {0.0, 1.0} and ids.min() >= 0 and ids.max() < clients
    assert all(len(set(row)) == len(row) for row in ids)  # also those of empty places
    taken = np.zeros((DRAWS, clients))
    np.put_along_axis(taken, ids, present, axis=1)
    return taken, present


def test_everyone():
    taken, _ = draws(Everyone())
    assert taken.all() and Everyone().expected(CLIENTS) == 12.0


def test_poisson_without_truncation_is_independent_coins():
    sampler = Poisson(0.3, 50)
    assert sampler.places(CLIENTS) == CLIENTS and np.isclose(sampler.expected(CLIENTS), 3.6)
    taken, _ = draws(sampler)
    error = np.sqrt(0.3 * 0.7 / DRAWS)
    np.testing.assert_allclose(taken.mean(axis=0), 0.3, atol=4 * error)
    np.testing.assert_allclose(np.corrcoef(taken.T) - np.eye(CLIENTS), 0.0, atol=5 / np.sqrt(DRAWS))
    counts = np.bincount(taken.sum(axis=1).astype(int), minlength=CLIENTS + 1)
    wanted = DRAWS * stats.binom.pmf(np.arange(CLIENTS + 1), CLIENTS, 0.3)
    assert stats.chisquare([*counts[:8], counts[8:].sum()], [*wanted[:8], wanted[8:].sum()]).pvalue > 1e-3


def test_poisson_with_truncation_keeps_a_uniform_subset():
    taken, present = draws(Poisson(0.5, 4))
    counts = present.sum(axis=1)
    pmf = stats.binom.pmf(np.arange(4), CLIENTS, 0.5)
    np.testing.assert_allclose(np.mean(counts == 4), 1 - pmf.sum(), atol=4 * np.sqrt(0.07 / DRAWS))
    full = taken[counts == 4]  # a third of the clients each, and no one is favoured by its number
    np.testing.assert_allclose(full.mean(axis=0), 1 / 3, atol=4 * np.sqrt(2 / 9 / len(full)))
    together = full.T @ full / len(full)
    pairs = together[~np.eye(CLIENTS, dtype=bool)]
    np.testing.assert_allclose(pairs, 4 * 3 / (12 * 11), atol=5 * np.sqrt(0.09 * 0.91 / len(full)))


def test_absent_places_hold_clients_that_were_not_drawn():
    ids, present = Poisson(0.2, 8).draw(jax.random.key(1), 20)
    ids, present = np.asarray(ids), np.asarray(present) > 0
    assert 0 < present.sum() < 8 and np.all(np.diff(present.astype(int)) <= 0)
    assert not set(ids[present]) & set(ids[~present])


def test_fixed_size_is_uniform_without_replacement():
    taken, _ = draws(FixedSize(5))
    assert np.all(taken.sum(axis=1) == 5) and FixedSize(5).expected(CLIENTS) == 5.0
    np.testing.assert_allclose(taken.mean(axis=0), 5 / 12, atol=4 * np.sqrt(5 / 12 * 7 / 12 / DRAWS))
    pairs = (taken.T @ taken / DRAWS)[~np.eye(CLIENTS, dtype=bool)]
    np.testing.assert_allclose(pairs, 5 * 4 / (12 * 11), atol=5 * np.sqrt(0.15 * 0.85 / DRAWS))


@pytest.mark.parametrize("sampler", [Everyone(), Poisson(0.1, 7), FixedSize(3)])
def test_a_key_is_needed_and_repeats(sampler):
    one, same = (sampler.draw(jax.random.key(2), 30) for _ in range(2))
    np.testing.assert_array_equal(one[0], same[0])
    with pytest.raises(ValueError, match="needs a key"):
        sampler.draw(None, 30)


@pytest.mark.parametrize("sampler", [Everyone(), Poisson(0.1, 7), FixedSize(3)])
def test_there_and_back(sampler):
    assert sampling.from_dict(sampling.to_dict(sampler)) == sampler


def test_refusals():
    for wrong in (lambda: Poisson(0.0, 3), lambda: Poisson(1.1, 3), lambda: Poisson(0.5, 0), lambda: FixedSize(0)):
        with pytest.raises(ValueError, match="take"):
            wrong()
    with pytest.raises(ValueError, match="take at most 3"):
        FixedSize(4).draw(jax.random.key(0), 3)
    for data in ({"kind": "shuffled"}, {"kind": "poisson", "rate": 0.1}, [], {"kind": "everyone", "size": 3}):
        with pytest.raises(ValueError, match="no sampler"):
            sampling.from_dict(data)
    with pytest.raises(ValueError, match="a number is wanted"):
        sampling.from_dict({"kind": "fixed-size", "size": True})
