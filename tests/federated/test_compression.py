"""Compressed updates: unbiased, as large as said, nothing lost in the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from federated.compression import Quantised, TopK, Whole, compressed, kept

UPDATE = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4))), "b": jnp.asarray([0.0, 1e-3, -2e-3])}


def test_quantised_entries_lie_on_the_grid_and_are_right_on_average():
    keys = jax.random.split(jax.random.key(0), 4000)
    sent = jax.vmap(lambda key: compressed(Quantised(4), key, UPDATE, ())[0])(keys)
    for name, x in UPDATE.items():
        step = np.abs(x).max() / 7
        ticks = np.asarray(sent[name]) / step
        np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-9)
        assert np.abs(ticks).max() <= 7 + 1e-9
        assert np.abs(np.asarray(sent[name]) - np.asarray(x)).max() < step
        # A grid's rounding by chance has a variance of at most a quarter of its step's square.
        np.testing.assert_allclose(sent[name].mean(axis=0), x, atol=4.5 * step / 2 / np.sqrt(4000))


def test_zeros_stay_zeros():
    nothing = jax.tree.map(jnp.zeros_like, UPDATE)
    jax.tree.map(np.testing.assert_array_equal, compressed(Quantised(8), jax.random.key(0), nothing, ())[0], nothing)


def test_what_is_left_out_comes_later():
    residual, total = jax.tree.map(jnp.zeros_like, UPDATE), jax.tree.map(jnp.zeros_like, UPDATE)
    for _ in range(30):
        sent, residual = compressed(TopK(0.1), jax.random.key(0), UPDATE, residual)
        assert sum(int((np.asarray(a) != 0).sum()) for a in jax.tree.leaves(sent)) == kept(TopK(0.1), 27) == 3
        total = jax.tree.map(jnp.add, total, sent)
    jax.tree.map(lambda t, u, r: np.testing.assert_allclose(t + r, 30 * u, atol=1e-12), total, UPDATE, residual)
    first, rest = compressed(TopK(0.1), jax.random.key(0), UPDATE, jax.tree.map(jnp.zeros_like, UPDATE))
    flat = np.abs(np.asarray(UPDATE["a"]).ravel())
    assert set(np.flatnonzero(np.asarray(first["a"]).ravel())) == set(np.argsort(flat)[-3:])
    assert float(rest["a"].ravel()[np.argmax(flat)]) == 0.0


def test_whole_is_whole_and_nonsense_is_refused():
    assert compressed(Whole(), jax.random.key(0), UPDATE, ())[0] is UPDATE
    with pytest.raises(ValueError, match="1 bits"):
        Quantised(1)
    with pytest.raises(ValueError, match="share of 0"):
        TopK(0.0)
