"""The noise's variance, its independence, and that it comes once, whatever the shards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from federated.noise import fresh_key, gaussian, noise_to_clip

SIZE = 20_000


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_variance_and_types(dtype):
    tree = {"a": jnp.full(SIZE, 5.0, dtype), "b": jnp.zeros((100, SIZE // 100), dtype)}
    noisy = jax.jit(gaussian)(jax.random.key(0), tree, 3.0)
    for name, leaf in noisy.items():
        assert leaf.dtype == dtype and leaf.shape == tree[name].shape
        draw = np.asarray(leaf, float) - np.asarray(tree[name], float)
        # Four standard errors of a mean and of a variance of normal draws.
        np.testing.assert_allclose(draw.mean(), 0.0, atol=4 * 3 / np.sqrt(SIZE) + 0.01)
        np.testing.assert_allclose(draw.var(), 9.0, rtol=4 * np.sqrt(2 / SIZE))


def test_leaves_are_independent_and_keys_repeat():
    tree = {"a": jnp.zeros(SIZE), "b": jnp.zeros(SIZE), "c": jnp.zeros(SIZE)}
    one, same, other = (gaussian(jax.random.key(k), tree, 1.0) for k in (3, 3, 4))
    rows = np.stack([*one.values(), *other.values()])
    apart = np.corrcoef(rows) - np.eye(6)
    assert np.abs(apart).max() < 5 / np.sqrt(SIZE)
    for name in tree:
        np.testing.assert_array_equal(one[name], same[name])
    np.testing.assert_array_equal(gaussian(jax.random.key(0), tree, 0.0)["a"], 0.0)


def summed(shards, how):
    """The noisy sum over eight clients' zeros, once as it ought to be and in two wrong ways."""
    mesh = jax.make_mesh((shards,), ("clients",), axis_types=(AxisType.Auto,), devices=jax.devices()[:shards])
    parts = PartitionSpec("clients")

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), parts), out_specs=parts)
    def run(data, updates):
        key = jax.random.wrap_key_data(data)
        total = jnp.sum(updates, axis=0)
        if how == "once":
            total = gaussian(key, jax.lax.psum(total, "clients"), 2.0)
        elif how == "same key on each shard":
            total = jax.lax.psum(gaussian(key, total, 2.0), "clients")
        else:
            own = jax.random.fold_in(key, jax.lax.axis_index("clients"))
            total = jax.lax.psum(gaussian(own, total, 2.0), "clients")
        return total[None]

    return np.asarray(run(jax.random.key_data(jax.random.key(5)), jnp.zeros((8, SIZE))))


def comes_once(copies):
    return np.isclose(copies[0].var(), 4.0, rtol=4 * np.sqrt(2 / SIZE))


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_noise_comes_once_whatever_the_shards(shards):
    copies = summed(shards, "once")
    assert comes_once(copies)
    for copy in copies:  # every shard goes on with the same sum
        np.testing.assert_array_equal(copy, copies[0])
    np.testing.assert_array_equal(copies[0], summed(1, "once")[0])


@pytest.mark.parametrize("how", ["same key on each shard", "own key on each shard"])
def test_noise_on_every_shard_is_caught(how):
    assert comes_once(summed(1, how)) and not comes_once(summed(4, how))


def test_noise_beside_the_largest_update():
    """Measured: the mean of 50 clients with noise of 1.5 C, beside C, over 400 draws of 900 entries."""
    draws = jax.vmap(lambda key: gaussian(key, jnp.zeros(900), 1.5 * 0.3) / 50)(
        jax.random.split(jax.random.key(0), 400)
    )
    measured = np.sqrt(np.mean(np.sum(np.square(draws), axis=1))) / 0.3
    np.testing.assert_allclose(noise_to_clip(1.5, 900, 50), measured, rtol=0.01)


def test_keys_of_the_system():
    keys = [fresh_key() for _ in range(3)]
    assert len({tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}) == 3
    assert gaussian(keys[0], jnp.zeros(4), 1.0).shape == (4,)


def test_refusals():
    with pytest.raises(ValueError, match="needs a key"):
        gaussian(None, jnp.zeros(3), 1.0)
    with pytest.raises(ValueError, match="take 0 or more"):
        gaussian(jax.random.key(0), jnp.zeros(3), -1.0)
    with pytest.raises(ValueError, match="int64"):
        gaussian(jax.random.key(0), jnp.arange(3), 1.0)
