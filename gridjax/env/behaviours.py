"""Behaviours that data sets are logged from: a policy with a name, and the share of the episodes that it acts in.

By name: those of `gridjax.env.policies`, and around the best constant action. That is sought by the cross-entropy
method (R. Y. Rubinstein, 1999): with x in [-1, 1]^n for an action (positions spread evenly over the range),

    x_i ~ N(mu, sigma^2),   elite E: the best eighth by the mean return over the same drawn days,
    mu <- mean of E,   sigma <- standard deviation of E + floor,

the best x ever seen being kept. Entries of one kind may share a value: one number for all inverters, say.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.env.der_control import DerControl
from gridjax.env.environment import Environment, Policy, rollout
from gridjax.env.holding import holding
from gridjax.env.policies import Constant, classical, constant, noisy, nothing, random
from gridjax.feeder import Feeder

NAMES = (
    "nothing", "random", "classical", "constant", "noisy-classical", "noisy-constant", "holding-nothing",
    "holding-constant", "holding-middle", "holding-each",
)  # fmt: skip
TRIAL_SHARE, TRIAL_WIDTH = 0.3, 0.6  # of "holding-middle" and "holding-each"
ELITE = 8  # one of so many
FLOOR = 0.02  # of sigma
START = 0.5  # sigma at first


@dataclass(frozen=True)
class Behaviour:
    """A policy that data are logged from.

    Attributes:
      name: of the behaviour, as the data set has it.
      policy: what acts.
      share: of the episodes, over the shares' sum.
      memory: the policy's at the start of every episode.
    """

    name: str
    policy: Policy
    share: float = 1.0
    memory: Any = None


def named(
    shares: Mapping[str, float],
    env: Environment,
    params: Any,
    feeder: Feeder,
    key: jax.Array,
    *,
    share: float = 0.1,
    width: float = 0.2,
) -> tuple[Behaviour, ...]:
    """Behaviours by name.

    Args:
      shares: of `NAMES`. "constant" is the best constant action that the search finds; "noisy-": with exploration;
        "holding-": settings around it that are held for hours (`gridjax.env.holding`), devices of a kind tied.
        "holding-middle" tries settings over the whole range, around its middle, with a share of 0.3 and a width of
        0.6; "holding-each" does so with nothing tied.
      env: the environment.
      params: its parameters.
      feeder: the environment's, see `gridjax.env.tasks.feeder_of`.
      key: of the search.
      share: of positions drawn anew by the noisy ones, see `gridjax.env.policies.noisy`; for the holding ones the
        probability that a setting changes in a step.
      width: of their numbers' distribution; half of it for the holding ones, whose capacitors have 1.

    Raises:
      ValueError: an unknown name, or an environment without classical controls.
    """
    unknown = [name for name in shares if name not in NAMES]
    if unknown:
        raise ValueError(f"no behaviour {unknown[0]!r}: choose from {', '.join(NAMES)}")
    bases: dict[str, Policy] = {}
    wanted = {name.split("-")[-1] for name in shares}
    if "nothing" in wanted:
        bases["nothing"] = nothing(env, params)
    if "random" in wanted:
        bases["random"] = random(env)
    if "classical" in wanted:
        bases["classical"] = classical(env, params, feeder)
    if wanted & {"middle", "each"}:
        bases["middle"] = bases["each"] = constant(np.asarray(_from_unit(env, jnp.zeros(env.action_size))))
    if "constant" in wanted:
        bases["constant"] = best_constant(env, params, key, tie=kinds(env))[0]
    out = []
    for name, part in shares.items():
        policy, memory = bases[name.split("-")[-1]], None
        if name.startswith("noisy-"):
            policy = noisy(env, policy, share=share, width=width)
        elif isinstance(policy, Constant) and name in ("holding-middle", "holding-each"):
            tie = kinds(env) if name == "holding-middle" else None
            policy, memory = holding(env, policy.action, share=TRIAL_SHARE, width=TRIAL_WIDTH, tie=tie)
        elif isinstance(policy, Constant) and name.startswith("holding-"):
            policy, memory = holding(env, policy.action, share=share, width=widths(env, width / 2), tie=kinds(env))
        out.append(Behaviour(name, policy, part, memory))
    return tuple(out)


def widths(env: Environment, width: float) -> np.ndarray:
    """(action_size,) the width, but 1 for capacitors, which a narrow one would never switch."""
    return np.array([1.0 if name.startswith("capacitor ") else width for name in env.action_names])


def kinds(env: Environment) -> tuple[int, ...]:
    """Which entries of an action may share a value: in DER control those of one kind, elsewhere none."""
    env = env.base
    if not isinstance(env, DerControl):
        return tuple(range(env.action_size))
    sizes = [n for n in (len(env.inverters), len(env.inverters), len(env.batteries), len(env.cars)) if n]
    return tuple(np.repeat(np.arange(len(sizes)), sizes).tolist())


def best_constant(
    env: Environment,
    params: Any,
    key: jax.Array,
    *,
    tie: Sequence[int] | None = None,
    days: int = 16,
    candidates: int = 64,
    rounds: int = 10,
) -> tuple[Constant, float]:
    """The constant action with the highest mean return, as far as the search finds it.

    Args:
      env: the environment.
      params: its parameters; give those of the days to optimise for.
      key: of the search and of the days, which are the same for all candidates.
      tie: (action_size,) numbers from 0 on of the groups whose entries share a value; None ties nothing.
      days: episodes that each candidate is judged by.
      candidates: in each round, at least 8.
      rounds: of the search.

    Returns:
      The action as a policy, and its mean return over those days.

    Raises:
      ValueError: numbers that make no sense.

    Guarantees:
      The same key gives the same action. It is never worse on those days than controlling nothing, where the
      environment says what that is.
    """
    if candidates < ELITE or days < 1 or rounds < 1:
        raise ValueError(f"takes at least {ELITE} candidates, one day and one round")
    tie = tuple(range(env.action_size)) if tie is None else tuple(tie)
    start = _start(env, params)
    search = (start, jax.random.split(key, rounds + 1))
    action, most = _search(env, params, *search, tie=tie, days=days, candidates=candidates)
    if not np.isfinite(most):
        raise ValueError("no candidate has a return that is a number: check the environment's parameters")
    return constant(np.asarray(action)), float(most)


def _start(env: Environment, params: Any) -> jax.Array:
    """The action that the search begins at: nothing, or the middle where the environment does not say what that is."""
    try:
        action = jnp.asarray(nothing(env, params).action)
        return action.astype(jnp.int32 if all(env.action_counts) else float)
    except ValueError:
        return _from_unit(env, jnp.zeros(env.action_size))


@functools.partial(jax.jit, static_argnames=("env", "tie", "days", "candidates"))
def _search(
    env: Environment, params: Any, start: jax.Array, keys: jax.Array, *, tie: tuple[int, ...], days: int,
    candidates: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The best action seen and its mean return; the first key is that of the days, each other that of a round."""
    groups = max(tie) + 1

    def body(carry, key):
        mean, deviation, best, most = carry
        noise = jax.random.normal(key, (candidates, groups))
        x = jnp.clip(mean[None] + deviation[None] * noise, -1.0, 1.0)
        actions = jax.vmap(functools.partial(_from_unit, env))(x[:, np.array(tie)])
        scores = _scores(env, actions, keys[0], params, days)
        scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
        order = jnp.argsort(-scores)
        elite, first = x[order[: candidates // ELITE]], order[0]
        better = scores[first] > most
        best, most = jnp.where(better, actions[first], best), jnp.where(better, scores[first], most)
        return (elite.mean(axis=0), elite.std(axis=0) + FLOOR, best, most), None

    most = _scores(env, start[None], keys[0], params, days)[0]
    most = jnp.where(jnp.isnan(most), -jnp.inf, most)
    mean = _unit(env, start)[np.array([tie.index(g) for g in range(groups)])]
    begin = (mean, jnp.full(groups, START), start, most)
    (_, _, best, most), _ = jax.lax.scan(body, begin, keys[1:])
    return best, most


def _remembered(key, observation, state, memory):
    """The policy whose constant action is its memory, so that one compilation serves all candidates."""
    del key, observation, state
    return memory, memory


def _kept(seen):
    return seen.reward, seen.terminated | seen.truncated


def _scores(env: Environment, actions: jax.Array, key: jax.Array, params: Any, days: int) -> jax.Array:
    """Mean return of each constant action, (candidates,); an episode counts to its end only."""

    def one(action):
        kept, _ = rollout(env, _remembered, key, params, steps=env.horizon, batch=days, memory=action, keep=_kept)
        rewards, ended = kept
        first = jnp.cumsum(ended, axis=0) - ended == 0
        return jnp.where(first, rewards, 0.0).sum(axis=0).mean()

    return jax.vmap(one)(actions)


def _from_unit(env: Environment, x: jax.Array) -> jax.Array:
    """The action at x in [-1, 1]^n."""
    counts = np.array(env.action_counts)
    place = jnp.round((x + 1) / 2 * (np.maximum(counts, 1) - 1))
    if all(env.action_counts):
        return place.astype(jnp.int32)
    return jnp.where(counts > 0, place, x)


def _unit(env: Environment, action: jax.Array) -> jax.Array:
    """Where in [-1, 1]^n an action is."""
    counts = np.array(env.action_counts)
    return jnp.where(counts > 0, 2 * action / np.maximum(counts - 1, 1) - 1, action)
