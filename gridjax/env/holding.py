"""Behaviours that move seldom: logged operation that tells what comes of a setting that is held.

With x in [-1, 1] for an action's entry (positions spread evenly over the range), b what the operator would set by
default, and c what the entry is at:

    a_0 ~ clip(N(b, width^2), -1, 1),      a_t = a fresh one with probability `share`, else c

Entries that are tied move together, by the same amount from their own b. Exploration that returns in the next step, as
`gridjax.env.policies.noisy` has it, says little about settings that pay off over hours and cost a move each way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.environment import Environment


@dataclass(frozen=True)
class Holding:
    """Holds an action and seldom draws parts of it anew; made by `holding`."""

    action: tuple[float, ...]
    counts: tuple[int, ...]
    tie: tuple[int, ...]
    share: float
    width: tuple[float, ...]

    def __call__(self, key, observation, state, memory):
        """What is held, or a fresh value; the memory is the action and whether there was one."""
        del observation, state
        held, known = memory
        groups, tie, counts = max(self.tie) + 1, np.array(self.tie), np.array(self.counts)
        anew, how = jax.random.split(key)
        change = jax.random.uniform(anew, (groups,)) < self.share
        base = jnp.asarray(self.action, float)
        top = np.maximum(counts - 1, 1)
        middle = jnp.where(counts > 0, 2 * base / top - 1, base)
        x = jnp.clip(middle + jnp.asarray(self.width) * jax.random.normal(how, (groups,), base.dtype)[tie], -1.0, 1.0)
        fresh = jnp.where(counts > 0, jnp.round((x + 1) / 2 * top), x)
        action = jnp.where(change[tie] | ~known, fresh, held)
        out = action.astype(jnp.int32) if all(self.counts) else action
        return out, (action, jnp.ones((), bool))


def holding(
    env: Environment, action: Any, *, share: float = 0.05, width: Any = 0.1, tie: tuple[int, ...] | None = None
) -> tuple[Holding, Any]:
    """A policy that holds settings, and its memory at the start of an episode.

    Args:
      env: the environment.
      action: (action_size,) the default.
      share: probability that a group of entries is drawn anew in a step, 0 (only once an episode) to 1.
      width: of the distribution around the default, as a share of half the range, one or (action_size,); above 0.
      tie: (action_size,) numbers from 0 on of the groups; None ties nothing, `gridjax.env.behaviours.kinds` ties
        devices of one kind.

    Returns:
      The policy, and the memory that `rollout`, `collect` (as `Behaviour.memory`) and `play` take.

    Raises:
      ValueError: numbers that make no sense.
    """
    widths = np.broadcast_to(np.asarray(width, float), (env.action_size,))
    if not 0 <= share <= 1 or not np.all(widths > 0):
        raise ValueError(f"share {share} and width {width}: take a share from 0 to 1, and a positive width")
    tie = tuple(range(env.action_size)) if tie is None else tuple(tie)
    base = tuple(np.asarray(action, float).tolist())
    if len(base) != env.action_size or len(tie) != env.action_size or set(tie) != set(range(max(tie) + 1)):
        raise ValueError(f"an action and a tie must have {env.action_size} entries, the tie's numbered from 0 on")
    memory = (jnp.zeros(env.action_size, float), jnp.zeros((), bool))
    return Holding(base, env.action_counts, tie, float(share), tuple(widths.tolist())), memory
