"""Layers that all networks are made of."""

from __future__ import annotations

import jax
from flax import linen as nn


def dense(width: int, scale: float = 1.0, bias: bool = True) -> nn.Dense:
    """A layer whose weights begin uniform within scale / sqrt(inputs) (Y. LeCun et al., 1998).

    Orthogonal weights need a decomposition of each matrix, which takes minutes for several seeds at once.
    """
    uniform = nn.initializers.variance_scaling(scale**2 / 3, "fan_in", "uniform")
    return nn.Dense(width, use_bias=bias, kernel_init=uniform)


class Mlp(nn.Module):
    """Hidden layers with rectifiers."""

    hidden: tuple[int, ...]
    norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., last width) of (..., anything)."""
        for width in self.hidden:
            x = dense(width)(x)
            if self.norm:
                x = nn.LayerNorm()(x)
            x = nn.relu(x)
        return x


class Head(nn.Module):
    """A number (...) of vectors (..., anything)."""

    hidden: tuple[int, ...]
    norm: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Without a last axis, so that no (n,) meets an (n, 1)."""
        return dense(1)(Mlp(self.hidden, self.norm)(x))[..., 0]
