"""Logged transitions on the device, as the agents' losses take them.

    mask = 1 - terminated,    target = r + discount * mask * V(next observation)

A step that the time limit ended is not masked: its next observation is the episode's own last one, from which the
return would have gone on. All floating numbers are single precision.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from algorithms.spaces import LIMIT, Space
from gridjax.env.datasets import Dataset, returns, take


@flax.struct.dataclass
class Batch:
    """Transitions with a leading axis (rows,); of a whole data set, episode after episode.

    Attributes:
      observation: (rows, observation_size).
      action: (rows, action_size) positions, or numbers from -1 to 1.
      reward: (rows,) scaled, less priced costs where such were asked for.
      cost: (rows, constraints) as logged.
      next_observation: (rows, observation_size).
      next_action: (rows, action_size) of the same episode; a last row has its own.
      mask: (rows,) 0 where the episode terminated, else 1; the time limit does not count.
      follows: (rows,) 0 in an episode's last row, 1 where the next row goes on.
      value: (rows,) what an agent keeps for each row (lambda returns of AWR); zeros elsewhere.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    cost: jax.Array
    next_observation: jax.Array
    next_action: jax.Array
    mask: jax.Array
    follows: jax.Array
    value: jax.Array


def from_dataset(
    data: Dataset,
    space: Space,
    *,
    reward_scale: float = 1.0,
    prices: np.ndarray | None = None,
    best: float | None = None,
) -> Batch:
    """A data set as the agents take it.

    Args:
      data: logged transitions.
      space: of the environment.
      reward_scale: the rewards' factor.
      prices: (constraints,) taken off the reward for each unit of cost, before it is scaled.
      best: keep only this share of the episodes, those with the highest returns (of the scaled, priced reward), as %BC
        does (L. Chen et al., "Decision Transformer", 2021); None keeps all.

    Raises:
      ValueError: sizes that are not the space's, numbers that are not finite, or a share or a position that is none.
    """
    seen = data.transitions
    _check(data, space)
    prices = np.zeros(space.constraints) if prices is None else np.asarray(prices, float)
    if prices.shape != (space.constraints,):
        raise ValueError(f"{prices.shape} prices for {space.constraints} costs: give one for each")
    reward = (np.asarray(seen.reward, float) - np.asarray(seen.cost, float) @ prices) * reward_scale
    data = dataclasses.replace(data, transitions=seen.replace(reward=reward.astype(np.float32)))  # type: ignore[attr-defined]
    if best is not None:
        if not 0 < best <= 1:
            raise ValueError(f"best {best}: take a share above 0, at most 1")
        order = np.argsort(-returns(data), kind="stable")
        data = take(data, np.sort(order[: max(1, round(best * data.episodes))]))
    seen = data.transitions
    ends = np.append(np.diff(data.episode) != 0, True)
    action = np.asarray(seen.action, np.float32)
    action = np.where(space.discrete[None], action, np.clip(action, -LIMIT, LIMIT)).astype(np.float32)
    following = np.where(ends[:, None], action, np.roll(action, -1, axis=0))
    columns: Any = {
        "observation": seen.observation, "action": action, "reward": seen.reward, "cost": seen.cost,
        "next_observation": seen.next_observation, "next_action": following,
        "mask": 1.0 - np.asarray(seen.terminated, np.float32), "follows": 1.0 - ends, "value": np.zeros(len(ends)),
    }  # fmt: skip
    return Batch(**{name: jnp.asarray(np.asarray(a, np.float32)) for name, a in columns.items()})


def rows(batch: Batch, index: jax.Array) -> Batch:
    """Some rows, by their numbers."""
    return jax.tree.map(lambda a: a[index], batch)


def sample(key: jax.Array, batch: Batch, size: int) -> Batch:
    """Rows drawn with equal chance, with replacement."""
    return rows(batch, jax.random.randint(key, (size,), 0, batch.reward.shape[0]))


def _check(data: Dataset, space: Space) -> None:
    seen = data.transitions
    sizes = (seen.observation.shape[1], seen.action.shape[1], seen.cost.shape[1])
    wanted = (space.observation_size, space.action_size, space.constraints)
    if sizes != wanted:
        raise ValueError(f"the data have {sizes} entries of observation, action and cost, not {wanted}")
    for name in ("observation", "action", "reward", "cost", "next_observation"):
        bad = ~np.isfinite(np.asarray(getattr(seen, name)).reshape(len(data.episode), -1)).all(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{name} is not finite in episode {data.episode[row]}, step {data.step[row]}: leave that episode out "
                "with gridjax.env.datasets.take"
            )
    for entry in np.flatnonzero(space.discrete):
        place = np.asarray(seen.action)[:, entry]
        bad = (place != np.round(place)) | (place < 0) | (place >= space.counts[entry])
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"entry {entry} of an action has position {place[row]:g} in episode {data.episode[row]}, step "
                f"{data.step[row]}, and there are {space.counts[entry]}: take the data of this environment"
            )
