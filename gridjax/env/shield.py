"""A safety shield: actions that would violate a constraint are corrected before they reach the devices.

With the violation f(a) >= 0 of an action a, the weighted sum of the costs that the model foresees for the step,

    a  <-  clip(a - step),   step = (f(a) + m) W g / (g^T W g),   g = df/da,   until f(a) = 0,

the projection onto where f, linearised, is -m (B. T. Polyak, "Minimization of unsmooth functionals", 1969, with the
known minimum 0 and an overshoot m, by which it ends after finitely many steps), no entry moved by more than a quarter
at once, as f is no straight line that far. An action that violates nothing is left
as it is, so that what a learned policy does within the limits is its own (G. Dalal et al., "Safe exploration in
continuous action spaces", 2018, project so onto one linearised constraint). Entries at an end of their range that the
step would push further do not count in it. W says which entries are moved before others.

Where nothing is found that violates no constraint, the backup action is corrected likewise, and the action that
violates least on either way is taken.

The shield sees loads and sun of the step that the action is for, as devices that act within seconds do in a step of an
hour (so do `gridjax.env.policies.classical` and `droop`). It does not see what chance will bring in that step, nor
anything after it: it saves no energy for the evening.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.environment import Environment, Outcome, Wrapped
from gridjax.env.lanes import where_some

ENOUGH = 1e-9  # a violation below it is none
REACH = 0.25  # of an entry in one step of a correction


@dataclass(frozen=True)
class Shield(Wrapped):
    """An environment whose actions are corrected; made by `shield`.

    Attributes:
      env: the environment; states, parameters and observations are its own.
      weights: (constraints,) of f.
      willing: (action_size,) the diagonal of W.
      backup: (action_size,) the action that is tried where a correction fails.
      margin: m.
      steps: of a correction, at most, and as many of the backup's.
      model: what it takes the parameters for, given the true ones; None knows them.
    """

    weights: tuple[float, ...]
    willing: tuple[float, ...]
    backup: tuple[float, ...]
    margin: float
    steps: int
    model: Callable[[Any], Any] | None = None

    @property
    def base(self) -> Environment:
        """That of the environment."""
        return self.env.base

    def violation(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> jax.Array:
        """f, (); infinite where the power flow is not solved."""
        _, outcome = self.env.advance(key, state, action, params)
        f = jnp.dot(outcome.cost, jnp.asarray(self.weights, outcome.cost.dtype))
        return jnp.where(outcome.solved, f, jnp.inf).astype(action.dtype)

    def corrected(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> jax.Array:
        """What is taken instead of an action that violates a constraint, (action_size,)."""
        willing, backup = jnp.asarray(self.willing, action.dtype), jnp.asarray(self.backup, action.dtype)
        slope = jax.value_and_grad(lambda a: self.violation(key, state, a, params))

        def step(carry):
            action, best, least, k = carry
            action = jnp.where(k == self.steps, backup, action)
            f, g = slope(action)
            best, least = jnp.where(f < least, action, best), jnp.minimum(f, least)
            free = jnp.isfinite(g) & ~((action <= -1) & (g > 0)) & ~((action >= 1) & (g < 0))
            g = jnp.where(free, g, 0.0)
            size = jnp.sum(willing * g**2)
            moves = (size > 0) & jnp.isfinite(f)
            ratio = jnp.where(moves, (f + self.margin) / jnp.where(moves, size, 1.0), 0.0)
            move = jnp.clip(ratio * willing * g, -REACH, REACH)
            end = jnp.where(k < self.steps, self.steps, 2 * self.steps)  # of a way on which nothing moves any more
            return jnp.clip(action - move, -1.0, 1.0), best, least, jnp.where(moves, k + 1, end)

        def goes_on(carry):
            *_, least, k = carry
            return (least > ENOUGH) & (k < 2 * self.steps)

        begin = (action, action, jnp.asarray(jnp.inf, action.dtype), jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(goes_on, step, begin)[1]

    def advance(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, Outcome]:
        """As the environment, with the corrected action; its slope by the action is that without a correction.

        `info` has further "corrected" (1 where the action was changed) and "correction" (the root of the mean square of
        the changes).
        """
        own, other = jax.random.split(key)
        action = jnp.clip(jnp.asarray(action, float), -1.0, 1.0)
        believed = params if self.model is None else self.model(params)
        other, now, wanted, known = jax.lax.stop_gradient((other, state, action, believed))
        correct = where_some(lambda shared, k, s, a: self.corrected(k, s, a, shared))
        safe = correct(self.violation(other, now, wanted, known) > ENOUGH, wanted, known, other, now, wanted)
        size = jnp.sqrt(jnp.mean((safe - wanted) ** 2))
        state, outcome = self.env.advance(own, state, action + (safe - wanted), params)
        more = {"corrected": (size > 0).astype(size.dtype), "correction": size}
        return state, dataclasses.replace(outcome, info={**outcome.info, **more})


def shield(
    env: Environment,
    *,
    weights: Sequence[float] | None = None,
    willing: Sequence[float] | None = None,
    backup: Sequence[float] | None = None,
    margin: float = 1e-3,
    steps: int = 40,
    model: Callable[[Any], Any] | None = None,
) -> Shield:
    """The environment, with actions corrected where they would violate a constraint.

    Args:
      env: whose actions are numbers and whose costs have derivatives by them, as DER control. It goes inside of
        `gridjax.env.broadcast.broadcast` and `gridjax.env.summary.summary`, so that each device is moved by itself. By
        name: `gridjax.env.tasks.make(..., shield=True)`.
      weights: (constraints,) not below 0, by which violations are summed; None is 1 for each.
      willing: (action_size,) not below 0, by how much entries are moved before others; None is 1 for each.
      backup: (action_size,) what is tried where the action cannot be corrected; None is `env.nothing()`.
      margin: how far a correction aims within the limits, in the unit of the weighted violation, above 0.
      steps: of a correction, at most.
      model: what the shield takes the parameters for, given the true ones: loads as they are estimated, limits that
        leave room for errors. None knows the truth. Static: two functions are two environments.

    Raises:
      ValueError: actions that are positions, no backup action, or numbers that make no sense.
    """
    if any(env.action_counts):
        raise ValueError(
            f"{type(env.inner).__name__} has actions that are positions, which cannot be moved by a little: take an "
            "environment of numbers, as DerControl"
        )
    size, kinds = env.action_size, len(env.constraints)
    if backup is None:
        nothing = getattr(env, "nothing", None)
        if nothing is None:
            raise ValueError(f"{type(env.inner).__name__} does not say what controls nothing: give a backup action")
        backup = np.asarray(nothing()).tolist()
    given = (np.ones(kinds) if weights is None else weights, np.ones(size) if willing is None else willing, backup)
    along, first, last = (tuple(np.asarray(a, float).tolist()) for a in given)
    sizes, wanted = [len(along), len(first), len(last)], [kinds, size, size]
    if sizes != wanted or min(*along, *first) < 0 or not margin > 0 or steps < 1:
        raise ValueError(
            f"{sizes} weights, willing and backup, margin {margin}, {steps} steps: give {wanted} numbers, weights and "
            "willing not below 0, a margin above 0 and at least one step"
        )
    return Shield(env.horizon, env.failure_penalty, env, along, first, last, float(margin), int(steps), model)
