"""The policies that are compared in every environment, and what they did on its held-out days.

An environment with another kind of actions or a rule of its own gets a line here: its own controls in `classical`, its
search in `searched`, a bound in `proven`. What has no meaning in an environment is refused with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from algorithms.evaluation import prices
from benchmarks import ascent, searches
from benchmarks.baselines import SAME
from benchmarks.days import day_keys, replay, walk
from gridjax.env import policies
from gridjax.env.environment import Environment, Policy
from gridjax.env.tasks import feeder_of, make
from gridjax.env.volt_var import VoltVar

TRAINING, HELD_OUT = 0, 1  # seeds of days
COMBINED = 4  # capacitors that the search for the best constant action tries in all combinations
NOTHING, CLASSICAL, DROOP = "no control", "OpenDSS-like controls", "IEEE 1547 droop"
CONSTANT, RANDOM, SEARCH = "best constant action", "random", "search, full knowledge"
FREE_CONSTANT, FREE_SEARCH = "best constant for the return alone", "search for the return alone"
NO_CLASSICAL = {
    "DerControl": "the regulators rest; an inverter's own control is the droop",
    "Microgrid": "no control is what the plant's own droops and forecast do",
}
NO_DROOP = {
    "VoltVar": "there are no inverters with reactive power",
    "Microgrid": "the sources share by their droops; no voltage is the grid's",
    "Restoration": "there are no inverters",
}


class NotMeantError(Exception):
    """A policy that has no meaning in an environment, and why."""


@dataclass(frozen=True)
class Effort:
    """How much is done: days held out, days for the constant action, days searched, and the searches' own numbers."""

    held_out: int = 100
    training: int = 25
    searched: int = 100
    near: bool = False
    rounds: int = 4
    sweeps: int = 3
    iterations: int = 150


SLOPES = 60  # steps of the gradient where a day takes long: 8,531 nodes, or an island (22 power flows a step)
MANY = 5000  # nodes: only positions near the present ones are tried
QUICK = Effort(held_out=3, training=2, searched=2, near=True, rounds=1, sweeps=1, iterations=2)


@dataclass(frozen=True)
class Case:
    """An environment with its held-out and training days, and what is done with it."""

    name: str
    env: Environment
    params: Any
    keys: jax.Array
    training: Any
    training_keys: jax.Array
    price: np.ndarray
    effort: Effort


def effort_for(name: str) -> Effort:
    """Fewer steps of the gradient, and fewer positions, where a day takes long."""
    many = len(feeder_of(name).node_names) > MANY
    return Effort(near=many, iterations=SLOPES if many or name.startswith("Microgrid") else Effort.iterations)


def prepare(name: str, effort: Effort | None, days: int | None) -> Case:
    """The environment with both kinds of days."""
    effort = effort or effort_for(name)
    if days:
        effort = dataclasses.replace(effort, held_out=days, searched=min(effort.searched, days))
    env, params = make(name, seed=HELD_OUT, days=effort.held_out)
    _, training = make(name, seed=TRAINING, days=effort.training)
    keys = day_keys(env, params, effort.held_out, HELD_OUT)
    chosen = day_keys(env, training, effort.training, TRAINING)
    return Case(name, env, params, keys, training, chosen, prices(env), effort)


def spread(total: int, count: int) -> np.ndarray:
    """So many of the numbers below the total, evenly."""
    return np.linspace(0, total, min(count, total), endpoint=False).astype(int)


def held(case: Case, action: np.ndarray) -> np.ndarray:
    """An action for all held-out days and steps."""
    return np.broadcast_to(action, (case.keys.shape[0], case.env.horizon, len(action)))


def constant_action(case: Case, start: np.ndarray, price: np.ndarray) -> np.ndarray:
    """The best constant action of the training days at a price (costs,) of violations."""
    env, effort = case.env, case.effort
    if any(env.action_counts):
        found = [
            searches.best_constant(
                env, case.training, case.training_keys, begin, price=price, groups=moved_in_turn(env),
                near=effort.near, rounds=effort.rounds,
            )
            for begin in constant_starts(env, start)
        ]  # fmt: skip
        return max(found, key=lambda one: one[1])[0]
    given = price[: len(env.constraints)]
    return ascent.best_constant(env, case.training, case.training_keys, start, given, effort.iterations)[0]


def moved_in_turn(env: Environment) -> tuple[tuple[int, ...], ...]:
    """Entries that the search for the best constant action moves together: all regulators, each, capacitors."""
    if not isinstance(env, VoltVar):
        return ()
    caps, taps = len(env.capacitors), len(env.regulators)
    regulators = tuple(range(caps, caps + taps))
    alone = [(k,) for k in range(caps, env.action_size)]
    combined = [tuple(range(k, min(k + COMBINED, caps))) for k in range(0, caps, COMBINED)]
    return (*([regulators] if taps > 1 else []), *alone, *combined)


def constant_starts(env: Environment, start: np.ndarray) -> list[np.ndarray]:
    """Where the search for the best constant action begins: with every combination of a few capacitors."""
    caps = len(env.capacitors) if isinstance(env, VoltVar) else 0
    if not 1 < caps <= COMBINED:
        return [start]
    switched = np.repeat(start[None], 2**caps, axis=0)
    switched[:, :caps] = list(itertools.product((0, 1), repeat=caps))
    return list(switched)


@dataclass(frozen=True)
class Played:
    """What came of a policy: which held-out days, their sums (`benchmarks.days.walk`), and its actions."""

    rows: np.ndarray
    sums: dict[str, np.ndarray]
    actions: np.ndarray


def play(case: Case, actions: np.ndarray, rows: np.ndarray | None = None) -> Played:
    """Plays actions (days, steps, action_size) on these held-out days, or on all."""
    rows = np.arange(case.keys.shape[0]) if rows is None else rows
    return Played(rows, replay(case.env, case.keys[rows], case.params, actions), actions)


def follow(case: Case, policy: Policy) -> Played:
    """Lets a policy act on all held-out days."""
    sums, actions = walk(case.env, policy, case.keys, case.params, keep_actions=True)
    return Played(np.arange(case.keys.shape[0]), sums, np.asarray(actions))


def idle(case: Case) -> np.ndarray:
    """The action that controls nothing."""
    action = np.asarray(policies.nothing(case.env, case.params).action)
    return action.astype(np.int32) if all(case.env.action_counts) else action.astype(float)


def no_control(case: Case, before: dict[str, Played]) -> Played:
    """Nothing is moved."""
    del before
    return play(case, held(case, idle(case)))


def classical(case: Case, before: dict[str, Played]) -> Played:
    """The feeder's regulator and capacitor controls."""
    del before
    kind = type(case.env).__name__
    if kind in NO_CLASSICAL:
        raise NotMeantError(NO_CLASSICAL[kind])
    if kind == "Restoration":  # the operator's rule: isolate what is faulted, then close what restores most
        from gridjax.env.restoration_policies import greedy

        env: Any = case.env
        return follow(case, greedy(env, case.params))
    return follow(case, policies.classical(case.env, case.params, feeder_of(case.name)))


def droop(case: Case, before: dict[str, Played]) -> Played:
    """Volt-var and volt-watt of every inverter."""
    del before
    kind = type(case.env).__name__
    if kind in NO_DROOP:
        raise NotMeantError(NO_DROOP[kind])
    return follow(case, policies.droop(case.env, case.params, feeder_of(case.name)))


def best_constant(case: Case, before: dict[str, Played]) -> Played:
    """The best constant action of the training days."""
    del before
    return play(case, held(case, constant_action(case, idle(case), case.price)))


def free_constant(case: Case, before: dict[str, Played]) -> Played:
    """The same for the return alone."""
    del before
    if not np.any(case.price):
        raise NotMeantError(SAME)
    return play(case, held(case, constant_action(case, idle(case), 0 * case.price)))


def random_moves(case: Case, before: dict[str, Played]) -> Played:
    """Every action with the same chance."""
    del before
    policy = policies.random(case.env)
    keys = jax.random.split(jax.random.key(HELD_OUT), (case.keys.shape[0], case.env.horizon))
    draw = jax.vmap(jax.vmap(lambda key: policy(key, None, None, None)[0]))
    return play(case, np.asarray(draw(keys)))


def search(case: Case, before: dict[str, Played]) -> Played:
    """What search for the best score attains with full knowledge of each day, starting from what the policies did."""
    rows = spread(case.keys.shape[0], case.effort.searched)
    return play(case, searched(case, rows, _starts(before, rows), case.price), rows)


def free_search(case: Case, before: dict[str, Played]) -> Played:
    """The same for the return alone, where the score is another."""
    if not np.any(case.price):
        raise NotMeantError(SAME)
    rows = spread(case.keys.shape[0], case.effort.searched)
    return play(case, searched(case, rows, _starts(before, rows), 0 * case.price), rows)


def searched(case: Case, rows: np.ndarray, starts: list[np.ndarray], price: np.ndarray) -> np.ndarray:
    """The best actions found for these held-out days, (days, steps, action_size)."""
    env, effort, keys = case.env, case.effort, case.keys[rows]
    if isinstance(env, VoltVar):
        return searches.volt_var_days(env, case.params, keys, starts, near=effort.near, sweeps=effort.sweeps)
    if any(env.action_counts):
        return searches.step_by_step(env, case.params, keys, starts, price=price, sweeps=1)
    return ascent.ascend(env, case.params, keys, starts, price[: len(env.constraints)], effort.iterations)


def _starts(before: dict[str, Played], rows: np.ndarray) -> list[np.ndarray]:
    """What no control, the feeder's controls and the best constant action did on these days."""
    return [before[policy].actions[rows] for policy in STARTS if policy in before]


def proven(case: Case) -> tuple[str, np.ndarray, np.ndarray]:
    """A proven bound: what it leaves out, the held-out days that are searched, and the bound of each, (days,)."""
    if type(case.env).__name__ != "Restoration":
        raise NotMeantError("none is known")
    from gridjax.env.restoration_policies import upper_bound

    env: Any = case.env
    try:
        bound = upper_bound(env, case.params)
    except ValueError as many:
        raise NotMeantError(str(many)) from many
    begin, rows = jax.jit(env.begin), spread(case.keys.shape[0], case.effort.searched)
    what = "if nothing else fails, limits of voltage and current left out"
    return what, rows, np.array([bound(begin(key, case.params)) for key in case.keys[rows]])


STARTS = (NOTHING, CLASSICAL, DROOP, CONSTANT, FREE_CONSTANT)
POLICIES: dict[str, Callable[[Case, dict[str, Played]], Played]] = {
    NOTHING: no_control, CLASSICAL: classical, DROOP: droop, RANDOM: random_moves, CONSTANT: best_constant,
    FREE_CONSTANT: free_constant, SEARCH: search, FREE_SEARCH: free_search,
}  # fmt: skip
