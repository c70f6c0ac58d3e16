"""The contract of all environments: pure functions of a key, a state, an action and parameters.

    obs, state = env.reset(key, params)
    obs, state, reward, cost, terminated, truncated, info = env.step(key, state, action, params)

An environment is a frozen value of what is static (names, sizes, choices); `params` is a pytree of everything that may
vary by scenario or be differentiated (the grid, profiles, weights, ratings). The problem is a constrained Markov
decision process (E. Altman, 1999): `cost` is the vector of constraint violations, apart from the reward.

*Auto-reset.* A step that ends an episode returns the first observation and state of a fresh one, drawn with the step's
key; the last observation of the old one is `info["final_observation"]` (as in gymnax, R. T. Lange, 2022). A batch
computes fresh episodes only in steps in which one of its episodes ends.

*Failure.* Where a power flow does not converge, the episode terminates with the environment's stated penalty as its
reward; of the costs only the last is not zero, which counts just that; `info["solved"]` is False and the step's other
figures are not numbers; and the observation is the one before it. What a first power flow of an episode leaves unknown
is not a number either. No state is invented.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.env.lanes import pick, where_any

UNSOLVED = "power flow not solved"
SWEEPS = 1000  # at most: a long feeder at 0.8 pu and below takes hundreds, and to stop there would end the episode
Move = tuple[Any, jax.Array, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]
Step = tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]


@flax.struct.dataclass
class Outcome:
    """What a step makes of a state: reward (), cost (constraints,), whether the episode ends, and why.

    Attributes:
      reward: ().
      cost: (constraints,) without that of failed power flows, zero where a constraint holds.
      solved: whether the power flow converged.
      over: whether the task itself is over (a blackout, say), which is not a time limit.
      late: whether the time limit is reached.
      info: further figures of the step.
    """

    reward: jax.Array
    cost: jax.Array
    solved: jax.Array
    over: jax.Array
    late: jax.Array
    info: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Environment(abc.ABC):
    """What `reset` and `step` are made of; subclasses say what a state is.

    Attributes:
      horizon: steps of an episode.
      failure_penalty: the reward of a step whose power flow does not converge.
    """

    horizon: int
    failure_penalty: float

    @property
    @abc.abstractmethod
    def constraints(self) -> tuple[str, ...]:
        """The constraints, with the units of their violations."""

    @property
    def cost_names(self) -> tuple[str, ...]:
        """What the entries of `cost` are: the constraints, and 1 where the power flow was not solved."""
        return (*self.constraints, UNSOLVED)

    @property
    @abc.abstractmethod
    def observation_names(self) -> tuple[str, ...]:
        """What the entries of an observation are."""

    @property
    @abc.abstractmethod
    def action_size(self) -> int:
        """Entries of an action."""

    @property
    @abc.abstractmethod
    def action_counts(self) -> tuple[int, ...]:
        """Choices of each entry of an action; 0 for one of the numbers -1 to 1."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """What the entries of an action are."""
        return tuple(f"action {k}" for k in range(self.action_size))

    @abc.abstractmethod
    def begin(self, key: jax.Array, params: Any) -> Any:
        """The first state of a fresh episode."""

    @abc.abstractmethod
    def advance(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, Outcome]:
        """The next state of the same episode, and what came of it; after a failed power flow it is not used."""

    @abc.abstractmethod
    def observe(self, state: Any, params: Any) -> jax.Array:
        """The observation of the whole feeder, (observation_size,)."""

    @property
    def base(self) -> Environment:
        """The environment that states, actions and parameters are of, where this one only observes it otherwise."""
        return self

    @property
    def inner(self) -> Environment:
        """The environment under all that is wrapped around it."""
        return self

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""
        return len(self.observation_names)

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        """A fresh episode: its first observation and state."""
        state = self.begin(key, params)
        return self.observe(state, params), state

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Step:
        """One step, and the first of a fresh episode where this one ended.

        Args:
          key: for disturbances, and for the fresh episode.
          state: from `reset` or `step`.
          action: (action_size,); integers where `action_counts` are, else numbers from -1 to 1.
          params: of the environment.

        Returns:
          Observation, state, reward, cost (constraints,), terminated, truncated, and info: the environment's figures,
          `solved` and `final_observation`.

        Guarantees:
          The same key, state, action and parameters give the same result. Derivatives by action and parameters are
          those of the step within the episode; a fresh episode counts as a constant.
        """
        own, fresh_key = jax.random.split(key)
        new, reward, cost, terminated, truncated, info = self.move(own, state, action, params)
        done = terminated | truncated
        frozen = jax.lax.stop_gradient((new, params))
        fresh = where_any(self.begin)(done, frozen[0], fresh_key, frozen[1])
        state = pick(done, fresh, new)
        obs = jnp.where(done, self.observe(fresh, params), info["final_observation"])
        return obs, state, reward, cost, terminated, truncated, info

    def move(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Move:
        """One step of an episode, at whose end no fresh one begins; arguments as of `step`.

        Returns:
          The episode's next state, which after a failed power flow is the one before, and the rest as of `step`.
        """
        new, outcome = self.advance(key, state, action, params)
        new = pick(outcome.solved, new, state)
        reward = jnp.where(outcome.solved, outcome.reward, self.failure_penalty)
        cost = jnp.append(jnp.where(outcome.solved, outcome.cost, 0.0), ~outcome.solved)
        terminated = ~outcome.solved | outcome.over
        truncated = outcome.late & ~terminated
        figures = {name: jnp.where(outcome.solved, value, jnp.nan) for name, value in outcome.info.items()}
        info = {**figures, "solved": outcome.solved, "final_observation": self.observe(new, params)}
        return new, reward, cost, terminated, truncated, info


@flax.struct.dataclass
class Transitions:
    """Steps of a rollout; leading axes (steps,) or, of a batch, (steps, batch).

    `observation` is what the action was taken on, `next_observation` what came of it (of an episode's last step its
    own last one, not the fresh episode's first).
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    cost: jax.Array
    next_observation: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: dict[str, jax.Array]


Policy = Callable[[jax.Array, jax.Array, Any, Any], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Wrapped(Environment):
    """An environment that is another one but for what a subclass says.

    Attributes:
      env: the other one.
    """

    env: Environment

    @property
    def inner(self) -> Environment:
        """That of the environment."""
        return self.env.inner

    @property
    def constraints(self) -> tuple[str, ...]:
        """Those of the environment."""
        return self.env.constraints

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Those of the environment."""
        return self.env.observation_names

    @property
    def action_size(self) -> int:
        """That of the environment."""
        return self.env.action_size

    @property
    def action_counts(self) -> tuple[int, ...]:
        """Those of the environment."""
        return self.env.action_counts

    @property
    def action_names(self) -> tuple[str, ...]:
        """Those of the environment."""
        return self.env.action_names

    def begin(self, key: jax.Array, params: Any) -> Any:
        """As the environment."""
        return self.env.begin(key, params)

    def advance(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, Outcome]:
        """As the environment."""
        return self.env.advance(key, state, action, params)

    def observe(self, state: Any, params: Any) -> jax.Array:
        """As the environment."""
        return self.env.observe(state, params)


@functools.partial(jax.jit, static_argnames=("env", "policy", "steps", "batch", "keep"))
def rollout(
    env: Environment,
    policy: Policy,
    key: jax.Array,
    params: Any,
    *,
    steps: int,
    batch: int = 1,
    memory: Any = None,
    keep: Callable[[Transitions], Any] | None = None,
) -> tuple[Any, tuple[Any, Any]]:
    """Rolls a policy out in a batch of environments: one scan over a `vmap`.

    Args:
      env: the environment. Static.
      policy: `(key, observation, state, memory) -> (action, memory)`, for one environment. A learned policy reads the
        observation alone; the environment's state is there for classical controls and for upper bounds. Static: a
        function that is defined anew is compiled anew.
      key: of everything random.
      params: of the environment, the same for all.
      steps: of each environment; episodes start afresh as they end. Static.
      batch: environments. Static.
      memory: the policy's at the start, the same for all.
      keep: what to keep of a step's transitions (batch, ...); None keeps them whole. Static.

    Returns:
      What was kept, with leading axes (steps, batch), and the environments' states and the policy's memories at the
      end.
    """
    start, walk = jax.random.split(key)
    obs, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(start, batch), params)
    memories = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a)[None], (batch, *jnp.shape(a))), memory)

    def one(key, obs, state, memory):
        choose, move = jax.random.split(key)
        action, memory = policy(choose, obs, state, memory)
        new, state, reward, cost, terminated, truncated, info = env.step(move, state, action, params)
        after = info.pop("final_observation")
        seen = Transitions(obs, action, reward, cost, after, terminated, truncated, info)
        return new, state, memory, seen

    def body(carry, key):
        obs, state, memory = carry
        obs, state, memory, seen = jax.vmap(one)(jax.random.split(key, batch), obs, state, memory)
        return (obs, state, memory), (seen if keep is None else keep(seen))

    (_, state, memories), kept = jax.lax.scan(body, (obs, state, memories), jax.random.split(walk, steps))
    return kept, (state, memories)
