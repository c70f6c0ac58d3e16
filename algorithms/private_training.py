"""Training that keeps each trajectory private, for every agent: DP-SGD over trajectories drawn by Poisson sampling.

An update is the agent's own, run for each drawn trajectory apart under a vmap with a named axis. Wherever it takes a
gradient (`algorithms.learning.minimise`), what goes on is the clipped and noisy sum over the axis
(`algorithms.private.noisy_mean`), the same in all places. The new state must be the same in all places too, which the
vmap is told (out_axes=None): an update that lets anything else of the data into its state does not trace, and is
refused. So what an agent keeps is a function of its noisy sums alone, by construction.

Every trajectory counts as one, whatever its length: the loss is the mean over trajectories of the mean over each one's
rows. What a loss divides by in the mean (|Q| of TD3+BC, ReBRAC and IQL's slope) is each trajectory's own. AWR's lambda
returns are computed anew in each update, of the drawn trajectories alone: each depends on its own rows and on released
networks. The constrained agent also releases the batch's mean cost per step, clipped to C like a gradient: a limit
must be below C, and the multiplier sees the noise. Metrics would tell of the data and are left out.

Sampling (truncated Poisson): each trajectory is drawn with probability q; where more than a static number were drawn,
a uniformly random subset of that many stays. All k releases of one update (`releases`) see the same trajectories, so
they count as one subsampled Gaussian mechanism of multiplier z / sqrt(k), not as k that draw anew, which would claim
too small an epsilon (`joint_multiplier`).

Not private by this: the choice of trajectories by their returns (`best` of `algorithms.batches.from_dataset`), reward
scales and prices taken from the data, and the number of trajectories, where it is not public.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from algorithms.batches import Batch, rows
from algorithms.learning import Agent, Learner, Metrics
from algorithms.private import AXIS, Private, Release
from algorithms.spaces import Space

COUNTED = "gaussian_release"  # of algorithms.private


@flax.struct.dataclass
class Trajectories:
    """Whole trajectories, padded to one length by their last rows.

    Attributes:
      batch: leaves (trajectories, steps, ...).
      length: (trajectories,) rows that are not padding.
      present: (trajectories,) 1 where there is one, else 0.
      equal: whether all are equally long; static.
    """

    batch: Batch
    length: jax.Array
    present: jax.Array
    equal: bool = flax.struct.field(pytree_node=False)


def trajectories(data: Batch) -> Trajectories:
    """A data set's episodes, on the host.

    Args:
      data: a whole data set, leaves (rows, ...), episode after episode.

    Raises:
      ValueError: the last row is not the end of an episode.
    """
    follows = np.asarray(data.follows)
    if follows[-1] != 0:
        raise ValueError("the last row is not an episode's last (follows is 1): give whole episodes, not sampled rows")
    ends = np.flatnonzero(follows == 0)
    start = np.concatenate([[0], ends[:-1] + 1])
    length = ends - start + 1
    index = start[:, None] + np.minimum(np.arange(length.max()), length[:, None] - 1)
    present = jnp.ones(len(length), jnp.float32)
    return Trajectories(rows(data, jnp.asarray(index)), jnp.asarray(length), present, bool((length == length[0]).all()))


def draw(key: jax.Array, data: Trajectories, rate: jax.Array | float, most: int) -> Trajectories:
    """Trajectories drawn by truncated Poisson sampling.

    Args:
      key: of the draw.
      data: all trajectories; those with `present` 0 are padding and are never drawn.
      rate: q, the probability of each, above 0 and at most 1.
      most: places, static; where more were drawn, a uniformly random subset of so many stays.

    Returns:
      As many trajectories as `most`; the places of those that were not drawn have `present` 0.

    Raises:
      ValueError: more places than trajectories, or none; a rate that is no probability.
    """
    count = data.length.shape[0]
    if isinstance(rate, int | float) and not 0 < rate <= 1:
        raise ValueError(f"rate {rate}: take a probability above 0, at most 1")
    if not 1 <= most <= count:
        raise ValueError(f"{most} places for {count} trajectories: take at least 1 and at most {count}")
    # Of independent uniform numbers, those below q are the drawn ones, and the smallest of them a uniform subset.
    # Padding (present 0) must come last, or it would take places away.
    chance = jnp.where(data.present > 0, jax.random.uniform(key, (count,)), 2.0)
    smallest, index = jax.lax.top_k(-chance, most)
    drawn = jax.tree.map(lambda leaf: leaf[index], data)
    return drawn.replace(present=jnp.where(-smallest < rate, drawn.present, 0.0))  # type: ignore[attr-defined]


def update(
    key: jax.Array, state: Any, drawn: Trajectories, *, agent: Agent, config: Any, space: Space, private: Private
) -> tuple[Any, Metrics]:
    """One private update of an agent.

    Args:
      key: of the noise, and of whatever else is random.
      state: of the agent.
      drawn: trajectories, as `draw` gives them.
      agent: the algorithm.
      config: its numbers.
      space: of the environment.
      private: how trajectories are protected.

    Returns:
      The state, and as only metric `actor_norm`, the norm of the released actor's parameters.

    Raises:
      ValueError: trajectories of several lengths without `Private.rows`, or an agent whose state takes of the data
        anything but released sums.

    Guarantees:
      The new state depends on the trajectories through `releases` sums only, each z-Gaussian in C for adding or
      removing one trajectory, for ideal arithmetic and randomness.
    """
    if private.rows is None and not drawn.equal:
        raise ValueError("the trajectories are not equally long: give Private.rows, so many rows of each")
    noise, own = jax.random.split(key)

    def one(own, batch, length, present):
        if agent.refresh is not None:
            batch = agent.refresh(state, batch, config, space)
        pick, own = jax.random.split(own)
        if private.rows is not None:
            chance = jax.random.uniform(pick, (private.rows,))
            batch = rows(batch, jnp.minimum((chance * length).astype(jnp.int32), length - 1))
        ready = _with_releases(state, noise, present, private)
        return _without_releases(agent.update(own, ready, batch, config, space)[0])

    places = drawn.present.shape[0]
    each = jax.vmap(one, out_axes=None, axis_name=AXIS)  # type: ignore[arg-type]
    try:
        state = each(jax.random.split(own, places), drawn.batch, drawn.length, drawn.present)
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        raise ValueError(
            f"{agent.name} keeps something of the trajectories that was not released ({error}): let it go through "
            "algorithms.learning.released, or leave it out of the state"
        ) from None
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(state.actor.params)]
    return state, {"actor_norm": jnp.sqrt(sum(squares))}


def train(
    key: jax.Array,
    state: Any,
    data: Trajectories,
    step: Callable[[jax.Array, Any, Trajectories], tuple[Any, Metrics]],
    *,
    rate: jax.Array | float,
    most: int,
    updates: int,
) -> tuple[Any, Metrics]:
    """So many private updates in one scan, each with trajectories of its own draw.

    Args:
      key: update k, counted from a new agent, draws from `fold_in(key, k)`.
      state: of the agent.
      data: all trajectories.
      step: `(key, state, drawn) -> (state, metrics)`: `update` with its other arguments bound.
      rate: q, see `draw`.
      most: places, see there.
      updates: how many. Static.

    Returns:
      The state, and the metrics' means.
    """

    def body(state, _):
        pick, own = jax.random.split(jax.random.fold_in(key, state.step))
        return step(own, state, draw(pick, data, rate, most))

    state, metrics = jax.lax.scan(body, state, None, length=updates)
    return state, jax.tree.map(jnp.mean, metrics)


def releases(agent: Agent, config: Any, space: Space) -> int:
    """How many noisy sums one update of an agent releases, counted in its program.

    An actor that moves in every second update only is counted in each, which claims too much and never too little.

    Raises:
      ValueError: a release in a loop or a branch, where it cannot be counted.
    """
    shapes = {
        "observation": (space.observation_size,), "action": (space.action_size,), "reward": (),
        "cost": (space.constraints,), "next_observation": (space.observation_size,),
        "next_action": (space.action_size,), "mask": (), "follows": (), "value": (),
    }  # fmt: skip
    batch = Batch(**{name: jnp.zeros((1, 1, *shape), jnp.float32) for name, shape in shapes.items()})
    drawn = Trajectories(batch, jnp.ones(1, jnp.int32), jnp.ones(1, jnp.float32), True)
    private = Private(1.0, 1.0, 1.0, rows=1)

    def program(key, drawn):
        state = agent.init(key, config, space)
        return update(key, state, drawn, agent=agent, config=config, space=space, private=private)

    return _count(jax.make_jaxpr(program)(jax.random.key(0), drawn).jaxpr, agent.name, False)


def joint_multiplier(noise_multiplier: float, releases: int) -> float:
    """The z / sqrt(k) of the one Gaussian mechanism that k releases of the same trajectories are together.

    k sums of sensitivity C with noise z C are one of sensitivity C sqrt(k), for the chain of them too, as each may
    depend on those before. Account one round with this multiplier for each update.
    """
    return noise_multiplier / math.sqrt(releases)


def _is_learner(x: Any) -> bool:
    return isinstance(x, Learner)


def _with_releases(state: Any, key: jax.Array, present: jax.Array, private: Private) -> Any:
    """The state with a release, of a key of its own, in each learner."""
    leaves, form = jax.tree.flatten(state, is_leaf=_is_learner)
    keys = jax.random.split(key, len(leaves))
    ready = [
        leaf.replace(release=Release(k, present, private)) if _is_learner(leaf) else leaf
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(form, ready)


def _without_releases(state: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.replace(release=None) if _is_learner(leaf) else leaf, state, is_leaf=_is_learner
    )


def _count(jaxpr: core.Jaxpr, name: str, within: bool) -> int:
    """Calls of `gaussian_release` in a program."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.params.get("name") == COUNTED:
            if within:
                raise ValueError(f"{name} releases in a loop or a branch: unroll it, so that releases can be counted")
            found += 1
            continue
        nested = within or equation.primitive.name in ("scan", "while", "cond")
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                found += _count(getattr(inner, "jaxpr", inner), name, nested)
    return found


def _is_program(x: Any) -> bool:
    return isinstance(x, (core.Jaxpr, core.ClosedJaxpr))
