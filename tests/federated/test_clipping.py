"""Bounds on what a client can change: by hand, for awkward numbers, and followed to a quantile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from federated import clipping
from federated.clipping import Adaptive, adapted, clipped, clipped_by_layer, layer_bounds, norm, update_noise

UPDATE = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.array([12.0])}  # of norm 13


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def test_the_whole_tree_has_one_norm():
    assert norm(UPDATE) == 13.0
    cut, size, inside = clipped(UPDATE, 6.5)
    assert (size, inside) == (13.0, 0.0)
    np.testing.assert_allclose(flat(cut), flat(UPDATE) / 2, rtol=1e-15)
    for bound in (13.0, 100.0):
        kept, size, inside = clipped(UPDATE, bound)
        assert inside == 1.0
        np.testing.assert_array_equal(flat(kept), flat(UPDATE))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_no_update_exceeds_the_bound(dtype, size):
    """Also where squares overflow or vanish; 100,000 entries show a sum that loses digits."""
    draw = np.random.default_rng(0).normal(size=100_000) * size
    tree = {"a": jnp.asarray(draw[:50], dtype), "b": jnp.asarray(draw[50:], dtype)}
    true = np.linalg.norm(flat(tree))
    for bound in (0.5 * true, 1e-12 * true, 2 * true):
        cut, found, inside = jax.jit(clipped)(tree, jnp.asarray(bound))
        assert cut["a"].dtype == dtype
        assert np.linalg.norm(flat(cut)) <= bound * (1 + 8 * float(jnp.finfo(dtype).eps))
        np.testing.assert_allclose(float(found), true, rtol=1e-5)
        assert inside == (bound > true)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_nothing(bad):
    updates = {"w": jnp.ones((3, 2)).at[1, 0].set(bad), "b": jnp.full((3, 1), 2.0)}
    cut, size, inside = jax.vmap(clipped, in_axes=(0, None))(updates, 1.0)
    np.testing.assert_array_equal(size, [np.sqrt(6.0), 0.0, np.sqrt(6.0)])
    np.testing.assert_array_equal(inside, [0.0, 1.0, 0.0])
    for leaf in jax.tree.leaves(cut):
        assert np.all(np.asarray(leaf[1]) == 0) and np.all(np.isfinite(leaf))
        assert np.all(np.asarray(leaf[0]) > 0)
    by_layer, size, inside = clipped_by_layer({"w": jnp.array([bad]), "b": jnp.ones(2)}, {"w": 1.0, "b": 1.0})
    assert (size, inside) == (0.0, 1.0) and not flat(by_layer).any()


def test_the_sensitivity_of_the_sum_is_the_bound():
    """Zeroing out any client, of any values, moves the sum by at most C; without the clip it moves further."""
    draw = np.random.default_rng(1)
    updates = {"a": jnp.asarray(draw.standard_cauchy((20, 7))), "b": jnp.asarray(draw.standard_cauchy((20, 3, 2)))}
    cut, _, _ = jax.vmap(clipped, in_axes=(0, None))(updates, 0.7)

    def moves(tree):
        rows = np.concatenate([np.asarray(leaf).reshape(20, -1) for leaf in jax.tree.leaves(tree)], axis=1)
        return [np.linalg.norm(rows.sum(axis=0) - np.delete(rows, i, axis=0).sum(axis=0)) for i in range(20)]

    assert max(moves(cut)) <= 0.7 * (1 + 1e-12) and np.isclose(max(moves(cut)), 0.7)
    assert max(moves(updates)) > 7


def test_layers_by_hand():
    assert layer_bounds(UPDATE, 5.0) == {"w": 5 / np.sqrt(2), "b": 5 / np.sqrt(2)}
    cut, size, inside = clipped_by_layer(UPDATE, {"w": 10.0, "b": 3.0})
    assert (size, inside) == (13.0, 0.0)
    np.testing.assert_allclose(cut["w"], UPDATE["w"])
    np.testing.assert_allclose(cut["b"], [3.0])
    cut, _, inside = clipped_by_layer(UPDATE, layer_bounds(UPDATE, 5.0))
    np.testing.assert_allclose(np.linalg.norm(flat(cut)), 5.0)
    assert clipped_by_layer(UPDATE, {"w": 5.0, "b": 12.0})[2] == 1.0


@pytest.mark.parametrize("start", [0.02, 50.0])
def test_the_bound_comes_to_the_median_norm(start):
    """From far below and far above. Bits that counted the clipped updates would run away from it."""
    norms = np.random.default_rng(2).lognormal(sigma=0.5, size=200) * 3.0
    config, bound = Adaptive(start=start * np.median(norms)), start * np.median(norms)
    step = jax.jit(lambda bound, bits, key: adapted(bound, bits, key, 200, config))
    last = []
    for t, key in enumerate(jax.random.split(jax.random.key(0), 120)):
        inside = np.asarray(jax.vmap(clipped, in_axes=(0, None))(jnp.asarray(norms)[:, None], bound)[2])
        bound = float(step(bound, np.sum(inside - 0.5), key))
        last += [bound] if t >= 80 else []
    np.testing.assert_allclose(np.median(last), np.median(norms), rtol=0.1)


def test_equal_norms_above_the_bound_let_it_grow_as_the_paper_says():
    """All norms 5 and C = 0.1: no update is inside, so that C grows by e^(rate quantile) a round."""
    config = Adaptive(count_noise=0.0)
    bound = jnp.asarray(config.start)
    for _ in range(20):
        bound = adapted(bound, jnp.asarray(-5.0), jax.random.key(0), 10, config)
    np.testing.assert_allclose(bound, 0.1 * np.exp(20 * 0.2 * 0.5))


def test_the_noise_on_the_bits():
    """The share's deviation is sigma_b / m, by the logarithm of the step."""
    config, keys = Adaptive(rate=1.0), jax.random.split(jax.random.key(1), 4000)
    steps = jax.vmap(lambda key: adapted(1.0, jnp.asarray(0.0), key, 40, config))(keys)
    assert clipping.count_noise(40) == 2.0
    np.testing.assert_allclose(np.std(np.log(steps)), 2.0 / 40, rtol=0.05)
    np.testing.assert_allclose(np.mean(np.log(steps)), 0.0, atol=4 * 0.05 / np.sqrt(4000))


def test_updates_and_bits_together_are_the_round():
    """(1 / z)^2 is the sum of the squared sensitivities over deviations: 1 / z_Delta and (1/2) / sigma_b."""
    for z, sigma in ((1.0, 5.0), (0.3, 0.2), (2.0, 1.01)):
        own = update_noise(z, sigma)
        assert own > z
        np.testing.assert_allclose(own**-2 + (0.5 / sigma) ** 2, z**-2)
    assert update_noise(0.0, 5.0) == 0.0
    for z in (2.0, 3.0):
        with pytest.raises(ValueError, match="not below twice the count noise"):
            update_noise(z, 1.0)


def test_refusals():
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="take a positive"):
            clipped(UPDATE, bad)
    with pytest.raises(ValueError, match="int64"):
        norm({"n": jnp.arange(3)})
    with pytest.raises(ValueError, match="none"):
        norm({})
    for wrong in ({"quantile": 1.0}, {"rate": 0.0}, {"start": 0.0}, {"count_noise": -1.0}):
        with pytest.raises(ValueError, match="Adaptive"):
            Adaptive(**wrong)
    with pytest.raises(ValueError, match="key"):
        adapted(1.0, jnp.asarray(0.0), None, 10, Adaptive())
