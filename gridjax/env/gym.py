"""Environments for Gymnasium (M. Towers et al., 2024): one at a time, or natively batched.

    import gridjax.env.gym  # registers the names

    gymnasium.make("gridjax/VoltVar-ieee123-v0")
    gymnasium.make_vec("gridjax/VoltVar-ieee123-v0", num_envs=1024)

Gymnasium has no plug-ins that it finds by itself any more; `gymnasium.make("gridjax.env.gym:gridjax/...")` imports this
module too. Rewards and observations are the functional environment's in float32; the
constraint vector is `info["cost"]`. The vector environment steps all its environments in one compiled call and resets
finished ones in the same step (`AutoresetMode.SAME_STEP`), their last observation being `info["final_obs"]`. Needs the
extra `gymnasium`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from gridjax.env.environment import Environment
from gridjax.env.tasks import make, names

LIMIT = float(np.finfo(np.float32).max)


def observation_space(size: int) -> gymnasium.spaces.Box:
    """Any numbers."""
    return gymnasium.spaces.Box(-LIMIT, LIMIT, (size,), np.float32)


def action_space(counts: Sequence[int]) -> gymnasium.spaces.Space:
    """Of actions with so many positions in each entry, or with a number from -1 to 1 where that is 0."""
    if all(counts):
        return gymnasium.spaces.MultiDiscrete(np.array(counts))
    if not any(counts):
        return gymnasium.spaces.Box(-1.0, 1.0, (len(counts),), np.float32)
    whole = gymnasium.spaces.MultiDiscrete(np.array([c for c in counts if c]))
    numbers = gymnasium.spaces.Box(-1.0, 1.0, (list(counts).count(0),), np.float32)
    return gymnasium.spaces.Tuple((whole, numbers))


def spaces(env: Environment) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Space]:
    """Observation and action space."""
    return observation_space(env.observation_size), action_space(env.action_counts)


def join(counts: Sequence[int], action: Any) -> np.ndarray:
    """The functional environment's vector from an element of the action space, or of its batched space."""
    if not isinstance(action, tuple):
        return np.asarray(action)
    whole, numbers = (np.asarray(a) for a in action)
    out = np.empty((*whole.shape[:-1], len(counts)))
    is_place = np.array(counts) > 0
    out[..., is_place], out[..., ~is_place] = whole, numbers
    return out


def split(counts: Sequence[int], action: np.ndarray) -> Any:
    """The inverse of `join`."""
    is_place = np.array(counts) > 0
    if is_place.all():
        return action.astype(np.int64)
    if not is_place.any():
        return action.astype(np.float32)
    return action[..., is_place].astype(np.int64), action[..., ~is_place].astype(np.float32)


def _seen(obs: jax.Array) -> np.ndarray:
    return np.array(obs, np.float32)  # a copy, which may be written to


@functools.partial(jax.jit, static_argnames="env")
def _reset(env: Environment, keys: jax.Array, params: Any):
    return jax.vmap(env.reset, in_axes=(0, None))(keys, params)


@functools.partial(jax.jit, static_argnames="env")
def _step(env: Environment, keys: jax.Array, state: Any, action: jax.Array, params: Any):
    return jax.vmap(env.step, in_axes=(0, 0, 0, None))(keys, state, action, params)


class _Keys:
    """Keys of a sequence of calls, from a seed."""

    def __init__(self) -> None:
        self._key, self._seeded = jax.random.key(0), False

    def seed(self, seed: int | None) -> None:
        if seed is not None or not self._seeded:
            self._key = jax.random.key(np.random.SeedSequence(seed).generate_state(1)[0])
            self._seeded = True

    def next(self, count: int) -> jax.Array:
        self._key, own = jax.random.split(self._key)
        return jax.random.split(own, count)


class GridEnv(gymnasium.Env):
    """A single environment.

    Args:
      task: a name of `gridjax.env.make`, such as "VoltVar-ieee123-v0".
      options: further arguments of `gridjax.env.make`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, task: str, render_mode: str | None = None, **options: Any) -> None:
        if render_mode is not None:
            raise ValueError("these environments are not rendered: leave render_mode at None")
        self.render_mode = None
        self.functional, self.params = make(task, **options)
        self.observation_space, self.action_space = spaces(self.functional)
        self._keys, self._state = _Keys(), None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """A fresh episode; the same seed gives the same episode."""
        super().reset(seed=seed)
        self._keys.seed(seed)
        obs, self._state = _reset(self.functional, self._keys.next(1), self.params)
        return _seen(obs[0]), {}

    def step(self, action):
        """One step; after the end of an episode, `reset` comes next."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        action = join(self.functional.action_counts, action)[None]
        out = _step(self.functional, self._keys.next(1), self._state, action, self.params)
        _, self._state, reward, cost, terminated, truncated, info = out
        own = {k: np.asarray(v[0]) for k, v in info.items() if k != "final_observation"}
        own["cost"] = np.asarray(cost[0])
        last = _seen(info["final_observation"][0])
        return last, float(reward[0]), bool(terminated[0]), bool(truncated[0]), own


class GridVectorEnv(VectorEnv):
    """Many environments of a task in one compiled call.

    Args:
      task: as of `GridEnv`.
      num_envs: how many.
      options: further arguments of `gridjax.env.make`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, task: str, num_envs: int = 1, render_mode: str | None = None, **options: Any) -> None:
        self.num_envs, self.render_mode = num_envs, None
        self.functional, self.params = make(task, **options)
        self.single_observation_space, self.single_action_space = spaces(self.functional)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._keys, self._state = _Keys(), None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Fresh episodes in all environments."""
        super().reset(seed=seed)
        self._keys.seed(seed)
        obs, self._state = _reset(self.functional, self._keys.next(self.num_envs), self.params)
        return _seen(obs), {}

    def step(self, actions):
        """One step in every environment; finished ones start afresh."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before the first step")
        out = _step(
            self.functional,
            self._keys.next(self.num_envs),
            self._state,
            join(self.functional.action_counts, actions),
            self.params,
        )
        obs, self._state, reward, cost, terminated, truncated, info = out
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        own = {k: np.asarray(v) for k, v in info.items() if k != "final_observation"}
        own["cost"] = np.asarray(cost)
        done = terminated | truncated
        if done.any():
            own["final_obs"], own["_final_obs"] = _seen(info["final_observation"]), done
        return _seen(obs), np.asarray(reward, np.float64), terminated, truncated, own


for _name in names():
    gymnasium.register(
        id=f"gridjax/{_name}",
        entry_point="gridjax.env.gym:GridEnv",
        vector_entry_point="gridjax.env.gym:GridVectorEnv",
        kwargs={"task": _name},
        disable_env_checker=True,
    )
