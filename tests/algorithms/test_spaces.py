"""Scales, features and anchors."""

import jax.numpy as jnp
import numpy as np

from algorithms.spaces import Space, plain_space

COUNTS = (3, 0, 1)


def test_observations_are_scaled_by_fixed_numbers():
    space = Space((0,), (1.0, 0.0), (0.05, 2.0))
    x = jnp.asarray([[0.95, 4.0], [1.05, -2.0]], jnp.float32)
    np.testing.assert_allclose(space.scaled(x), [[-1, 2], [1, -1]], atol=1e-5)
    assert space.scaled(x).dtype == jnp.float32


def test_actions_as_numbers_and_as_one_hot_vectors():
    action = jnp.asarray([[0, 0.5, 0], [2, -0.25, 0]], jnp.float32)
    space = plain_space(1, COUNTS)
    np.testing.assert_allclose(space.unit(action), [[-1, 0.5, -1], [1, -0.25, -1]])
    np.testing.assert_array_equal(space.features(action), space.unit(action))
    one_hot = Space(COUNTS, (0.0,), (1.0,), one_hot=True)
    np.testing.assert_array_equal(one_hot.features(action), [[1, 0, 0, 0.5, 1], [0, 0, 1, -0.25, 1]])
    assert (space.feature_size, one_hot.feature_size) == (3, 5)


def test_anchors_say_where_devices_stand():
    space = Space((3, 0), (0.0,) * 2, (1.0,) * 2, anchor=((1, 10.0, -10.0), (-1, 0.0, 0.0)))
    observation = jnp.asarray([[7.0, 1.05], [7.0, 0.8]], jnp.float32)
    np.testing.assert_allclose(space.standing(observation), [[0.5, 0], [-1, 0]], atol=1e-5)
    np.testing.assert_array_equal(plain_space(2, (3, 0)).standing(observation), np.zeros((2, 2)))


def test_equal_spaces_are_one_for_the_compiler():
    assert hash(plain_space(2, (3, 0))) == hash(plain_space(2, (3, 0)))
    assert plain_space(2, (3, 0)) == plain_space(2, (3, 0)) != plain_space(2, (3, 2))
