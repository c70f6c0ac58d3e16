"""The same formulas in NumPy, where numbers are known, and in jax.numpy, where they are traced.

Compiling a feeder is a thousand small operations that run once: as a JAX program, building it takes a hundred times
as long as running it. So whatever stands here between is written for both, and NumPy arrays in give NumPy arrays out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray or jax.Array
EXACT = jax.lax.Precision.HIGHEST


def namespace(*trees: Any) -> Any:
    """NumPy if all leaves are NumPy's (or plain numbers), else jax.numpy."""
    return jnp if any(isinstance(a, jax.Array) for a in jax.tree.leaves(trees)) else np


def matmul(a: Array, b: Array) -> Array:
    """`a @ b`, exact.

    An accelerator's matrix units take float32 for TF32 or bfloat16 unless they are told not to: voltages would be
    wrong by 1e-3, and no sweep would converge.
    """
    xp = namespace(a, b)
    return a @ b if xp is np else jnp.matmul(a, b, precision=EXACT)


def einsum(form: str, *arrays: Array) -> Array:
    """`einsum`, exact as `matmul` is."""
    xp = namespace(*arrays)
    return np.einsum(form, *arrays) if xp is np else jnp.einsum(form, *arrays, precision=EXACT)


def add_at(a: Array, index: Any, values: Any) -> Array:
    """A copy of `a` with `values` added at `index`, repeated indices adding up."""
    if namespace(a, values) is jnp:
        return jnp.asarray(a).at[index].add(values)
    out = np.array(a)
    np.add.at(out, index, values)
    return out


def set_at(a: Array, index: Any, values: Any) -> Array:
    """A copy of `a` with `values` at `index`."""
    if namespace(a, values) is jnp:
        return jnp.asarray(a).at[index].set(values)
    out = np.array(a)
    out[index] = values
    return out


def beside(constant: np.ndarray, a: Array) -> np.ndarray:
    """A constant with leading axes of one, as many as `a` has axes: JAX can be told to refuse to add them itself."""
    return constant.reshape((1,) * (a.ndim - constant.ndim) + constant.shape)
