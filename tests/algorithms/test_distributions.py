"""Densities that integrate to one, probabilities that are counted, and derivatives of what has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms.distributions import Distribution
from algorithms.spaces import Space, plain_space

MIXED = plain_space(1, (3, 0, 2))
NEVER = -1e9
MEAN, LOG_STD = np.array([9.0, 0.4, 9.0]), np.array([9.0, -0.7, 9.0])  # the nines are of positions, and unused
LOGITS = np.array([[0.3, -1.0, 0.8], [0.0, 0.0, 0.0], [0.5, -0.5, NEVER]])


def numbers(mean, log_std, squashed):
    """Over one number."""
    shape = (*np.shape(mean), 0)
    mean, log_std = (jnp.asarray(a, jnp.float32) for a in (mean, log_std))
    return Distribution(mean, log_std, jnp.zeros(shape, jnp.float32), plain_space(1, (0,)), squashed)


def mixed(squashed=False, rows=1, logits=LOGITS, space=MIXED):
    of = (jnp.broadcast_to(jnp.asarray(a, jnp.float32), (rows, *a.shape)) for a in (MEAN, LOG_STD, logits))
    return Distribution(*of, space, squashed)


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


@pytest.mark.parametrize("mean, log_std", [(0.0, -1.0), (1.2, 0.5), (-2.0, -0.3)])
def test_a_squashed_density_integrates_to_one_and_has_its_quantiles(mean, log_std):
    u = np.linspace(-6, 6, 20_001)  # finer towards the ends, where the density may be steep
    a = np.tanh(u)[:, None]
    row = np.full((len(a), 1), 1.0)
    log_prob = numbers(mean * row, log_std * row, True).log_prob(jnp.asarray(a, jnp.float32))
    assert log_prob.dtype == jnp.float32
    inside = np.abs(a[:, 0]) < 1 - 1e-5
    density = np.where(inside, np.exp(np.asarray(log_prob, float)), 0)
    mass = np.sum((density[1:] + density[:-1]) / 2 * np.diff(a[:, 0]))
    np.testing.assert_allclose(mass, 1, atol=3e-3)
    below = a[:-1, 0] < np.tanh(mean)  # the median is the squashed mean
    half = np.sum(((density[1:] + density[:-1]) / 2 * np.diff(a[:, 0]))[below])
    np.testing.assert_allclose(half, 0.5, atol=3e-3)


@pytest.mark.parametrize("squashed", [False, True])
def test_a_sample_and_the_logarithm_of_its_own_probability(squashed):
    of = mixed(squashed, rows=4000)
    action, log_prob = of.sample(jax.random.key(0))
    assert action.dtype == log_prob.dtype == jnp.float32 and log_prob.shape == (4000,)
    np.testing.assert_allclose(log_prob, of.log_prob(action), atol=5e-3)
    assert np.abs(np.asarray(action[:, 1])).max() <= 1
    np.testing.assert_allclose(np.bincount(np.asarray(action[:, 0], int)) / 4000, softmax(LOGITS[0]), atol=0.03)
    np.testing.assert_allclose(np.bincount(np.asarray(action[:, 2], int)) / 4000, softmax(LOGITS[2, :2]), atol=0.03)
    middle = np.tanh(MEAN[1]) if squashed else MEAN[1]
    np.testing.assert_allclose(np.median(np.asarray(action[:, 1])), middle, atol=0.03)


@pytest.mark.parametrize("squashed", [False, True])
def test_the_logarithm_of_an_action_is_the_sum_over_its_entries(squashed):
    action = np.array([[2.0, 0.35, 1.0]])
    u = np.arctanh(0.35) if squashed else 0.35
    number = -0.5 * ((u - MEAN[1]) / np.exp(LOG_STD[1])) ** 2 - LOG_STD[1] - 0.5 * np.log(2 * np.pi)
    number -= np.log(1 - 0.35**2) if squashed else 0.0
    wanted = np.log(softmax(LOGITS[0])[2]) + number + np.log(softmax(LOGITS[2, :2])[1])
    np.testing.assert_allclose(mixed(squashed).log_prob(jnp.asarray(action, jnp.float32)), [wanted], rtol=1e-5)


def test_the_mode():
    np.testing.assert_allclose(mixed().mode(), [[2, MEAN[1], 0]], rtol=1e-6)
    np.testing.assert_allclose(mixed(True).mode(), [[2, np.tanh(MEAN[1]), 0]], rtol=1e-6)
    np.testing.assert_array_equal(numbers([[3.0]], [[0.0]], False).mode(), [[1.0]])  # no logits at all


@pytest.mark.parametrize("one_hot", [False, True])
def test_positions_have_derivatives_straight_through(one_hot):
    """Features with that of the mean features, and the mean log probability with that of the negative entropy."""
    space = Space(MIXED.counts, (0.0,), (1.0,), one_hot=one_hot)
    key, rows = jax.random.key(1), 2
    ladder = np.eye(3) if one_hot else np.array([[-1.0], [0.0], [1.0]])

    def feature(logits):
        features, _ = mixed(True, rows, logits, space).soft(key)
        return features[0, : ladder.shape[1]].sum() if one_hot else features[0, 0]

    drawn = jax.jit(lambda of: (*of.sample(key), *of.soft(key)))
    action, log_prob, features, same = drawn(mixed(True, rows, space=space))
    np.testing.assert_allclose(features, space.features(action), atol=1e-6)
    np.testing.assert_allclose(same, log_prob, rtol=1e-6)
    p = softmax(LOGITS[0])
    if not one_hot:
        slope = jax.jit(jax.grad(feature))(jnp.asarray(LOGITS, jnp.float32))[0]
        np.testing.assert_allclose(slope, p * (ladder[:, 0] - p @ ladder[:, 0]), atol=1e-6)
    entropy = jax.jit(jax.grad(lambda logits: mixed(True, 1, logits, space).soft(key)[1].sum()))
    slope = entropy(jnp.asarray(LOGITS, jnp.float32))
    for k, n in ((0, 3), (2, 2)):
        p = softmax(LOGITS[k, :n])
        wanted = p * (np.log(p) - p @ np.log(p))  # of sum p log p
        np.testing.assert_allclose(slope[k, :n], wanted, atol=1e-6)
    assert np.isfinite(slope).all()


def test_numbers_have_derivatives_by_their_sample():
    """d log p(tanh(m + s e)) / dm with e fixed, by finite differences."""
    key = jax.random.key(2)

    @jax.jit
    @jax.value_and_grad
    def mean_log(m):
        return numbers(m * jnp.ones((5, 1)), jnp.zeros((5, 1)), True).soft(key)[1].mean()

    np.testing.assert_allclose(mean_log(0.3)[1], (mean_log(0.31)[0] - mean_log(0.29)[0]) / 0.02, rtol=5e-3)
