"""Policies that learn nothing: what controllers are compared with, and what logged data come from.

Each has the signature of `gridjax.env.environment.Policy` and can be the static `policy` of `rollout`. Two that are
equal compile once: those of plain numbers are compared by value; `classical` and `droop`, which hold a compiled feeder,
by identity, so make one and keep it.

- `nothing`: what happens without a controller.
- `constant`, `random`: as named.
- `classical`: the regulators' and capacitors' own controls (`gridjax.control.switching`, static mode). They see the
  step that the action is for, as devices that act within seconds do in a step of an hour. Batteries idle: no feeder has
  a controller for them.
- `droop`: volt-var of category B and volt-watt with the defaults of IEEE 1547-2018 (clauses 5.3.3 and 5.4.2), at rest
  in the step that the action is for (`gridjax.control.regulation`). Batteries idle, cars charge at full power.
- `noisy`: another policy with exploration. With probability e an entry that is a position takes any of its n positions
  with equal chance; a number takes the normal distribution of width s around b, what the policy wants, truncated to -1
  to 1:

      log p(a) = sum log((1 - e) [a = b] + e / n) + sum log(phi((a - b)/s) / (s (Phi((1 - b)/s) - Phi((-1 - b)/s))))

A policy that knows the probability of what it does has `draw`, which says that too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm

from gridjax.control.regulation import inverters, regulate
from gridjax.control.settings import Inverters, Rule
from gridjax.control.switching import Switching, at_rest, settle, switching
from gridjax.env.der_control import DerControl, DerParams
from gridjax.env.environment import Environment, Policy
from gridjax.env.volt_var import VoltVar, VoltVarParams
from gridjax.feeder import Feeder
from gridjax.grid import OperatingPoint

_TINY = 1e-6  # no number of an action is closer to the ends of its range where a density is asked for


@runtime_checkable
class Stochastic(Protocol):
    """A policy that knows what it does: `draw` also returns the logarithm of the action's probability (density)."""

    def draw(self, key: jax.Array, observation: jax.Array, state: Any, memory: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Action (action_size,), log probability (), memory."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same action at all times; made by `constant`."""

    action: tuple[float, ...]

    def __call__(self, key, observation, state, memory):
        """The action, whatever is seen."""
        del key, observation, state
        return jnp.asarray(self.action), memory


@dataclass(frozen=True)
class Random:
    """Positions with equal chance, numbers uniform from -1 to 1; made by `random`."""

    counts: tuple[int, ...]

    def __call__(self, key, observation, state, memory):
        """A fresh action."""
        action, _, memory = self.draw(key, observation, state, memory)
        return action, memory

    def draw(self, key, observation, state, memory):
        """A fresh action, and the logarithm of its probability, which is always the same."""
        del observation, state
        counts = np.array(self.counts)
        log_probability = -np.sum(np.log(np.where(counts > 0, counts, 2)))
        return _uniform(key, counts), jnp.asarray(log_probability, float), memory


@dataclass(frozen=True)
class Noisy:
    """Another policy with exploration; made by `noisy`."""

    policy: Policy
    counts: tuple[int, ...]
    share: float
    width: float

    def __call__(self, key, observation, state, memory):
        """What the other policy wants, explored around."""
        action, _, memory = self.draw(key, observation, state, memory)
        return action, memory

    def draw(self, key, observation, state, memory):
        """That, and the logarithm of its probability."""
        own, other = jax.random.split(key)
        wanted, memory = self.policy(other, observation, state, memory)
        return *self.explore(own, wanted), memory

    def explore(self, key: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
        """An action around the wanted one, (action_size,), and the logarithm of its probability, ()."""
        counts = np.array(self.counts)
        whole, number, anything = jax.random.split(key, 3)
        b = jnp.asarray(wanted, float)
        middle = jnp.clip(b, -1 + _TINY, 1 - _TINY)
        low, high = (-1 - middle) / self.width, (1 - middle) / self.width
        near = middle + self.width * jax.random.truncated_normal(number, low, high, dtype=b.dtype)
        near = jnp.clip(near, -1.0, 1.0)
        leave = jax.random.uniform(whole, counts.shape) < self.share
        place = jnp.where(leave, _uniform(anything, np.maximum(counts, 1)), jnp.round(b))
        action = jnp.where(counts > 0, place, near)
        chance = self.share / np.maximum(counts, 1)
        of_place = jnp.log(jnp.where(place == jnp.round(b), 1 - self.share + chance, chance))
        of_number = norm.logpdf(near, middle, self.width) - _log_between(low, high)
        if all(self.counts):
            action = action.astype(jnp.int32)
        return action, jnp.sum(jnp.where(counts > 0, of_place, of_number))


@dataclass(frozen=True, eq=False)
class Classical:
    """Regulator and capacitor controls in a Volt-VAR environment; made by `classical`."""

    env: VoltVar
    params: VoltVarParams
    controls: Switching

    def __call__(self, key, observation, state, memory):
        """Where the controls come to rest from where the devices are."""
        del key, observation
        env, params = self.env, self.params
        point = env.point(state, params, jnp.zeros(len(env.batteries), params.grid.base_va.dtype))
        hour = (state.t + 1) * params.hours
        start = at_rest(self.controls, point)
        point, _, _ = settle(params.grid, point, self.controls, start, hour=hour, differentiable=False)
        return self.asking_for(point), memory

    def asking_for(self, point: OperatingPoint) -> jax.Array:
        """The action that asks for a point's taps and capacitors; a bank is in service where any of its steps is."""
        env, params = self.env, self.params
        place = params.regulator_place
        position = (point.tap - params.tap_low[place]) / params.tap_step[place]
        banks = jnp.zeros(len(env.capacitors), point.capacitor.dtype).at[params.grid.step_bank].max(point.capacitor)
        return volt_var_action(env, banks, jnp.zeros_like(position).at[place].set(position))


@dataclass(frozen=True, eq=False)
class Droop:
    """Volt-var and volt-watt in a DER environment; made by `droop`."""

    env: DerControl
    params: DerParams
    curves: Inverters

    def __call__(self, key, observation, state, memory):
        """Where the inverters come to rest."""
        del key, observation
        env, params = self.env, self.params
        action = env.nothing()
        point, *_ = env.act(state, action, params)
        rest, flow = regulate(params.grid, point, self.curves)
        rows, available = params.pv_row, point.generation_kw[params.pv_row]
        kw, kvar = rest.generation_kw[rows], rest.generation_kvar[rows]
        share = jnp.where(available > 0, kw / jnp.where(available > 0, available, 1.0), 1.0)
        room = jnp.sqrt(jnp.maximum(params.pv_kva**2 - kw**2, 1e-12))
        pv = jnp.concatenate([jnp.clip(kvar / room, -1.0, 1.0), 2 * jnp.clip(share, 0.0, 1.0) - 1])
        wanted = jnp.concatenate([pv, action[2 * len(env.inverters) :]])
        return jnp.where(flow.converged, wanted, action), memory


def constant(action: Any) -> Constant:
    """The policy that always takes an action, given as any sequence of numbers (action_size,)."""
    return Constant(tuple(np.asarray(action).tolist()))


def random(env: Environment) -> Random:
    """The policy that takes every action with the same probability (density)."""
    return Random(env.action_counts)


def nothing(env: Environment, params: Any) -> Constant:
    """The policy that controls nothing.

    In Volt-VAR control taps stay at neutral, capacitors in service and batteries idle; other environments say what it
    is themselves, by `env.nothing()`.

    Raises:
      ValueError: the environment does not say.
    """
    env = env.base
    if isinstance(env, VoltVar):
        neutral = jnp.round((1 - params.tap_low) / params.tap_step)
        return constant(volt_var_action(env, jnp.ones(len(env.capacitors)), neutral))
    action = getattr(env, "nothing", None)
    if action is None:
        raise ValueError(f"{type(env).__name__} has no `nothing()`: give a constant action instead")
    return constant(action())


def classical(env: Environment, params: Any, feeder: Feeder) -> Policy:
    """The feeder's own controls: `Classical` for Volt-VAR control, `droop` for DER control.

    Args:
      env: the environment.
      params: its parameters; those of the rollout, as the policy reads the grid and the loads from here.
      feeder: the environment's, see `gridjax.env.tasks.feeder_of`.

    Raises:
      ValueError: an environment without such controls, or of another feeder.
    """
    env = env.base
    if isinstance(env, DerControl):
        return droop(env, params, feeder)
    if not isinstance(env, VoltVar):
        raise ValueError(f"{type(env).__name__} has no classical controls here: take `nothing`, or write a policy")
    return Classical(env, params, switching(feeder, params.grid))


def droop(env: Environment, params: Any, feeder: Feeder, rule: Rule | None = None) -> Droop:
    """Volt-var and volt-watt of IEEE 1547-2018 for the inverters of DER control.

    Args:
      env: the environment.
      params: its parameters; those of the rollout.
      feeder: the environment's with its devices, see `gridjax.env.tasks.feeder_of` and `gridjax.env.der_tasks.equip`.
      rule: of every inverter; None is the standard's default volt-var of category B with volt-watt.

    Raises:
      ValueError: no DER control, or another feeder's.
    """
    env = env.base
    if not isinstance(env, DerControl):
        raise ValueError(f"droop is for DER control, not for {type(env).__name__}")
    names = tuple(pv.name for pv in feeder.pv_systems)
    if names != env.inverters or feeder.node_names != env.nodes:
        raise ValueError(
            f"the environment's devices are not those of {feeder.name!r}: take the feeder of "
            "gridjax.env.der_tasks.equip, or of gridjax.env.tasks.feeder_of"
        )
    rule = Rule(mode="volt-var", category="B", volt_watt=True) if rule is None else rule
    return Droop(env, params, inverters(feeder, params.grid, {name: rule for name in names}))


def noisy(env: Environment, policy: Policy, *, share: float = 0.1, width: float = 0.2) -> Noisy:
    """A policy with exploration.

    Args:
      env: the environment.
      policy: what is explored around; take one whose action is certain, as the probabilities are those around it.
      share: probability that a position is drawn anew, above 0 and at most 1.
      width: of the numbers' distribution before it is truncated, above 0.

    Raises:
      ValueError: numbers that make no sense.
    """
    if not 0 < share <= 1 or not width > 0:
        raise ValueError(f"share {share} and width {width}: take a share above 0, at most 1, and a positive width")
    return Noisy(policy, env.action_counts, float(share), float(width))


def volt_var_action(env: VoltVar, banks: jax.Array, position: jax.Array) -> jax.Array:
    """The action that asks for capacitor banks (0 or 1) and tap positions from the lowest, with batteries idle."""
    batteries = jnp.zeros(len(env.batteries))
    if env.actions == "continuous":
        top = jnp.asarray(env.tap_counts, position.dtype) - 1
        return jnp.concatenate([2 * banks - 1, 2 * position / top - 1, batteries])
    if env.actions == "mixed":
        return jnp.concatenate([banks, jnp.round(position), batteries])
    action = jnp.concatenate([banks, jnp.round(position), batteries + env.battery_count // 2])
    return action.astype(jnp.int32)


def _uniform(key: jax.Array, counts: np.ndarray) -> jax.Array:
    """Positions below each count, or numbers from -1 to 1 where it is 0."""
    whole, number = jax.random.split(key)
    place = jax.random.randint(whole, counts.shape, 0, np.maximum(counts, 1))
    if np.all(counts > 0):
        return place
    return jnp.where(counts > 0, place, jax.random.uniform(number, counts.shape, minval=-1.0))


def _log_between(low: jax.Array, high: jax.Array) -> jax.Array:
    """log(Phi(high) - Phi(low)) for low < 0 < high."""
    return jnp.log1p(-jnp.exp(log_ndtr(low)) - jnp.exp(log_ndtr(-high)))
