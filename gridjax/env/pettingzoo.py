"""PettingZoo's parallel interface (J. K. Terry et al., 2021): every device is an agent.

    env = GridParallelEnv("DerControl-ieee123-v0", days=10)
    observations, infos = env.reset(seed=0)
    observations, rewards, terminations, truncations, infos = env.step(actions)

For environments with `devices`, `observe_devices` and `from_devices`: an agent sees what its device measures and hears
from its neighbours, all agents act with two numbers from -1 to 1 (batteries and cars use the first; with one where
`device_numbers` is 1), and all get the whole feeder's reward. `infos[agent]["cost"]` is the constraint vector. All
agents' episodes end together. Needs the extra `pettingzoo`.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import numpy as np

from gridjax.env.environment import Environment
from gridjax.env.tasks import make

try:
    import gymnasium
    from pettingzoo import ParallelEnv
except ImportError as error:  # which names the package that is missing
    raise ImportError(f"{error}; install the extra: pip install 'gridjax[pettingzoo]'") from error

LIMIT = float(np.finfo(np.float32).max)
NUMBERS = 2  # of each agent's action, where the environment has no `device_numbers`


class GridParallelEnv(ParallelEnv):
    """An environment whose agents are devices.

    Args:
      task: a name of `gridjax.env.tasks.make`, such as "DerControl-ieee123-v0".
      made: an environment and its parameters, instead of the name's.
      options: further arguments of `make`.

    Raises:
      ValueError: an environment whose devices cannot be told apart.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "gridjax", "render_modes": [], "is_parallelizable": True}

    def __init__(
        self,
        task: str = "",
        *,
        made: tuple[Environment, Any] | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if render_mode is not None:
            raise ValueError("these environments are not rendered: leave render_mode at None")
        self.render_mode = None
        functional, self.params = make(task, **options) if made is None else made
        told: Any = functional.base  # devices see its states and act in it, also under a shield
        missing = [name for name in ("observe_devices", "from_devices", "devices") if not hasattr(told, name)]
        if missing:
            raise ValueError(
                f"{task or type(functional).__name__} has no {missing[0]}: take an environment whose devices see for "
                "themselves, such as DerControl"
            )
        self.functional: Any = functional
        self.possible_agents: list[str] = list(told.devices)
        self.agents: list[str] = []
        shape = jax.eval_shape(functools.partial(_first, functional), jax.random.key(0), self.params)[0].shape
        seen = [gymnasium.spaces.Box(-LIMIT, LIMIT, shape[1:], np.float32) for _ in self.possible_agents]
        self._numbers = int(getattr(told, "device_numbers", NUMBERS))
        acts = [gymnasium.spaces.Box(-1.0, 1.0, (self._numbers,), np.float32) for _ in self.possible_agents]
        self.observation_spaces = dict(zip(self.possible_agents, seen, strict=True))
        self.action_spaces = dict(zip(self.possible_agents, acts, strict=True))
        self._key: Any = None
        self._state = self._whole = None

    def observation_space(self, agent: str) -> gymnasium.spaces.Space:
        """What an agent sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.spaces.Space:
        """What an agent does."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None):
        """A fresh episode; the same seed gives the same one."""
        if seed is not None or self._key is None:
            self._key = jax.random.key(np.random.SeedSequence(seed).generate_state(1)[0])
        seen, self._state, self._whole = _reset(self.functional, self._next(), self.params)
        self.agents = list(self.possible_agents)
        return self._spread(np.asarray(seen, np.float32)), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]):
        """One step of the feeder, with an action of every agent; after the end of an episode, `reset` comes next.

        Raises:
          ValueError: an agent without an action.
        """
        if not self.agents:
            raise gymnasium.error.ResetNeeded("call reset before the first step, and after the end of an episode")
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"no action of {missing[0]!r}: every agent acts in every step")
        each = np.stack([np.asarray(actions[agent]) for agent in self.possible_agents])
        each = each[:, 0] if self._numbers == 1 else each
        out = _step(self.functional, self._next(), self._state, each, self.params)
        seen, self._state, self._whole, reward, cost, terminated, truncated, info = out
        figures = {name: np.asarray(value) for name, value in info.items()} | {"cost": np.asarray(cost)}
        now = self.agents
        if bool(terminated) or bool(truncated):
            self.agents = []
        observations = self._spread(np.asarray(seen, np.float32))
        same = (float(reward), bool(terminated), bool(truncated))
        rewards, terminations, truncations = (dict.fromkeys(now, value) for value in same)
        return observations, rewards, terminations, truncations, {agent: dict(figures) for agent in now}

    def state(self) -> np.ndarray:
        """The observation of the whole feeder, for training with a central critic."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset first")
        return np.asarray(self._whole, np.float32)

    def _next(self) -> jax.Array:
        self._key, own = jax.random.split(self._key)
        return own

    def _spread(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.possible_agents, rows, strict=True))


def _first(env: Any, key: jax.Array, params: Any):
    state = env.begin(key, params)
    return env.base.observe_devices(state, params), state, env.observe(state, params)


@functools.partial(jax.jit, static_argnames="env")
def _reset(env: Any, key: jax.Array, params: Any):
    return _first(env, key, params)


@functools.partial(jax.jit, static_argnames="env")
def _step(env: Any, key: jax.Array, state: Any, each: jax.Array, params: Any):
    """A step, of an episode's last one too without a fresh episode's first."""
    state, reward, cost, terminated, truncated, info = env.move(key, state, env.base.from_devices(each), params)
    whole = info.pop("final_observation")
    return env.base.observe_devices(state, params), state, whole, reward, cost, terminated, truncated, info
