"""What strikes an island in a step, drawn by key: a load step, the loss of a source, a cloud; one of them at most.

A source is lost with a probability in proportion to its rating, the more of it the more there is to fail, and only
while all others are in service (a single contingency).
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.env.island import Island, Request

KINDS = ("none", "load step", "loss of a source", "cloud")


@flax.struct.dataclass
class Disturbances:
    """What may strike in a step.

    Attributes:
      chances: (3,) of a load step, the loss of a source, a cloud.
      load_step: a block's loads change by up to this share, up or down, until the end of the step.
      cloud_least, cloud_most: share of the sun that a cloud takes until the end of the step.
      repair_h: for how long a lost source is out, the step in which it is lost counted.
    """

    chances: jax.Array
    load_step: jax.Array
    cloud_least: jax.Array
    cloud_most: jax.Array
    repair_h: jax.Array


def strike(
    key: jax.Array, disturbances: Disturbances, island: Island, request: Request
) -> tuple[Request, jax.Array, jax.Array]:
    """A disturbance of a request.

    Args:
      key: to draw it from.
      disturbances: how likely and how large.
      island: the plant.
      request: what is asked of it undisturbed.

    Returns:
      The request from then on, which sources are lost, (n,) booleans, and the number in `KINDS` of what struck.
    """
    kind_key, block_key, size_key, lost_key, cloud_key = jax.random.split(key, 5)
    dtype, n, p = request.kw.dtype, request.kw.shape[0], request.available_kw.shape[0]
    d = island.machines.kva.shape[0] - 1
    chances = disturbances.chances
    up_to = jnp.cumsum(jnp.concatenate([1 - jnp.sum(chances, keepdims=True), chances]))
    kind = jnp.sum(jax.random.uniform(kind_key, (), dtype) >= up_to[:-1])
    block = jax.random.randint(block_key, (), 0, request.served.shape[0])
    size = disturbances.load_step * jax.random.uniform(size_key, (), dtype, -1.0, 1.0)
    load = 1 + jnp.where((kind == 1) & (island.block == block), size, 0.0)
    which = jax.random.categorical(lost_key, jnp.log(island.kva))
    lost = (kind == 2) & (jnp.arange(n) == which) & jnp.all(request.on > 0)
    kind = jnp.where((kind == 2) & ~jnp.any(lost), 0, kind)
    deep = jax.random.uniform(cloud_key, (), dtype, disturbances.cloud_least, disturbances.cloud_most)
    left = 1 - jnp.where(kind == 3, deep, 0.0)
    on = request.on * ~lost
    sun = jnp.where((jnp.arange(n) >= d) & (jnp.arange(n) < d + p), left, 1.0)
    point = dataclasses.replace(
        request.point, load_kw=request.point.load_kw * load, load_kvar=request.point.load_kvar * load
    )
    struck = dataclasses.replace(
        request, point=point, kw=request.kw * on * sun, on=on, available_kw=request.available_kw * left
    )
    return struck, lost, kind
