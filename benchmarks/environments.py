"""Baselines of every environment on days that nothing was fitted to, and what search with full knowledge attains.

    python -m benchmarks.environments                          # all; writes docs/baselines.md, .json and plots
    python -m benchmarks.environments --env VoltVar-ieee13-v0  # one; writes to demo_out/bench/, as does --quick

Policies: no control, the feeder's own regulator and capacitor controls (OpenDSS's rules), IEEE 1547-2018 droop, the
best constant action, random moves, and search with full knowledge of each day. All walk the same held-out days
(`HELD_OUT`) with the same keys; the best constant action is searched on other days (`TRAINING`). How days are walked
and averaged: `benchmarks.days`; how actions are searched: `benchmarks.searches`, `benchmarks.ascent`; the page:
`benchmarks.baselines`.

*Price of violations.* Volt-VAR control has violations in its reward. Where the reward has none, searches maximise the
score J = return - price . sum of costs, in which a violation of 1 pu for a step counts as much as a failed power flow;
and one search looks at the return alone, limits or not.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import ascent, searches
from benchmarks.baselines import SAME, page, plots
from benchmarks.days import day_keys, interval, replay, walk
from benchmarks.powerflow import cores, machine, say, versions
from gridjax.env import policies
from gridjax.env.environment import Environment, Policy
from gridjax.env.tasks import feeder_of, make, names
from gridjax.env.volt_var import VoltVar

TRAINING, HELD_OUT = 0, 1  # seeds of days
ROOT = Path(__file__).parent.parent
NOTHING, CLASSICAL, DROOP = "no control", "OpenDSS-like controls", "IEEE 1547 droop"
CONSTANT, RANDOM, SEARCH = "best constant action", "random", "search, full knowledge"
FREE_CONSTANT, FREE_SEARCH = "best constant for the return alone", "search for the return alone"
NO_CLASSICAL = {"DerControl": "the regulators rest; an inverter's own control is the droop"}
KINDS = ("capacitors", "regulators", "inverters", "batteries", "cars", "nodes")
HIDDEN = ("return", "steps", "violated", "violation", "violation_pu", "solved")  # not shown as they are


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


MIDDLE = Effort(training=20, searched=20, iterations=100)
LARGE = Effort(training=4, searched=4, near=True, rounds=1, sweeps=1, iterations=50)
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
    """Less for larger feeders."""
    nodes = len(feeder_of(name).node_names)
    return Effort() if nodes < 1000 else MIDDLE if nodes < 5000 else LARGE


def price_of(env: Environment) -> np.ndarray:
    """Of the costs in the score, (costs,): see the module's text."""
    inside = isinstance(env, VoltVar)
    return np.r_[np.full(len(env.constraints), 0.0 if inside else -env.failure_penalty), 0.0]


def prepare(name: str, effort: Effort | None, days: int | None) -> Case:
    """The environment with both kinds of days."""
    effort = effort or effort_for(name)
    if days:
        effort = dataclasses.replace(effort, held_out=days, searched=min(effort.searched, days))
    count = max(effort.held_out, effort.training)  # as many of both, so that what is compiled serves both
    env, params = make(name, seed=HELD_OUT, days=count)
    _, training = make(name, seed=TRAINING, days=count)
    chosen = day_keys(env, training, count, TRAINING)[spread(count, effort.training)]
    keys = day_keys(env, params, count, HELD_OUT)[: effort.held_out]
    return Case(name, env, params, keys, training, chosen, price_of(env), effort)


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
        groups = env_groups(env)
        return searches.best_constant(
            env, case.training, case.training_keys, start, price=price, groups=groups, near=effort.near,
            rounds=effort.rounds,
        )[0]  # fmt: skip
    given = price[: len(env.constraints)]
    return ascent.best_constant(env, case.training, case.training_keys, start, given, effort.iterations)[0]


def env_groups(env: Environment) -> tuple[tuple[int, ...], ...]:
    """Entries of one kind, tried together first: all regulators."""
    if not isinstance(env, VoltVar):
        return ()
    first = len(env.capacitors)
    return (tuple(range(first, first + len(env.regulators))),) if len(env.regulators) > 1 else ()


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
    if not isinstance(case.env, VoltVar):
        raise NotMeantError(NO_CLASSICAL.get(type(case.env).__name__, "has no controls in OpenDSS"))
    return follow(case, policies.classical(case.env, case.params, feeder_of(case.name)))


def droop(case: Case, before: dict[str, Played]) -> Played:
    """Volt-var and volt-watt of every inverter."""
    del before
    if isinstance(case.env, VoltVar):
        raise NotMeantError("there are no inverters with reactive power")
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
        raise NotMeantError("no search is written for its actions")
    return ascent.ascend(env, case.params, keys, starts, price[: len(env.constraints)], effort.iterations)


def _starts(before: dict[str, Played], rows: np.ndarray) -> list[np.ndarray]:
    """What no control, the feeder's controls and the best constant action did on these days."""
    return [before[policy].actions[rows] for policy in STARTS if policy in before]


STARTS = (NOTHING, CLASSICAL, DROOP, CONSTANT, FREE_CONSTANT)
POLICIES: dict[str, Callable[[Case, dict[str, Played]], Played]] = {
    NOTHING: no_control, CLASSICAL: classical, DROOP: droop, RANDOM: random_moves, CONSTANT: best_constant,
    FREE_CONSTANT: free_constant, SEARCH: search, FREE_SEARCH: free_search,
}  # fmt: skip


def measure(name: str, effort: Effort | None = None, days: int | None = None) -> dict[str, Any]:
    """All policies of one environment, as it goes into the record."""
    start = time.perf_counter()
    case = prepare(name, effort, days)
    env = case.env
    say(f"{name}: {env.action_size} numbers to set, {case.keys.shape[0]} days, {time.perf_counter() - start:.0f} s")
    rows: list[dict[str, Any]] = []
    played: dict[str, Played] = {}
    for policy, run in POLICIES.items():
        begun = time.perf_counter()
        try:
            played[policy] = run(case, played)
        except NotMeantError as refused:
            rows.append({"policy": policy, "not_run": str(refused)})
            say(f"{name}: {policy}: -, {refused}")
            continue
        seconds = time.perf_counter() - begun
        rows.append({"policy": policy, "seconds": seconds, **figures(case, played[policy], played[NOTHING])})
        say(f"{name}: {policy}: return {np.mean(played[policy].sums['return']):.4g}, {seconds:.0f} s")
    return {
        "name": name, "constraints": env.constraints, "action_size": env.action_size, "horizon": env.horizon,
        "devices": {kind: len(getattr(env, kind)) for kind in KINDS if getattr(env, kind, ())},
        "price": case.price[: len(env.constraints)].tolist(), "effort": dataclasses.asdict(case.effort),
        "constant_action": played[CONSTANT].actions[0, 0].tolist(), "rows": rows,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def figures(case: Case, played: Played, nothing: Played) -> dict[str, Any]:
    """A policy's figures: means over days with half of their 95 % intervals, and each day's return."""
    sums, constraints = played.sums, len(case.env.constraints)
    hours = 24 / case.env.horizon
    per_day = {"return": sums["return"], "beyond no control": sums["return"] - nothing.sums["return"][played.rows]}
    if np.any(case.price):
        per_day["score"] = searches.score(sums, case.price)
    for name, value in sums.items():
        if name in HIDDEN:
            continue
        per_day[f"{name}h" if name.endswith("_kw") else name] = value * (hours if name.endswith("_kw") else 1.0)
    steps, violated = sums["steps"].sum(), sums["violated"].sum(axis=0)
    size = sums["violation"].sum(axis=0) / np.where(violated > 0, violated, 1.0)
    return {
        "days": len(played.rows),
        "means": {name: dict(zip(("mean", "half"), interval(v), strict=True)) for name, v in per_day.items()},
        "violations": [
            {"share": float(violated[k] / steps), "mean_size": float(size[k])} for k in range(constraints)
        ],
        "unsolved": int(violated[constraints]), "steps": int(steps), "whole": case.env.horizon * len(played.rows),
        "returns": [float(f"{x:.6g}") for x in sums["return"]],
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Runs the environments asked for and writes the page, the record and the plots."""
    parser = argparse.ArgumentParser(description="baselines of the environments")
    parser.add_argument("--env", nargs="+", default=list(names()), choices=names(), metavar="NAME")
    parser.add_argument("--days", type=int, help="held-out days; 100 without it")
    parser.add_argument("--quick", action="store_true", help="a few days and moves, to see that it runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    jax.config.update("jax_enable_x64", True)
    whole = not args.quick and set(args.env) == set(names())
    out = (args.out or ROOT / ("docs" if whole else "demo_out/bench")).resolve()
    given = sys.argv[1:] if words is None else words
    meta = {
        "command": shlex.join(["python", "-m", "benchmarks.environments", *given]),
        "date": datetime.date.today().isoformat(), "processor": machine(), "cores": cores(), "versions": versions(),
        "device": str(jax.devices()[0]), "seeds": {"training": TRAINING, "held out": HELD_OUT},
    }  # fmt: skip
    record: dict[str, Any] = {"meta": meta, "environments": []}
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for name in args.env:
        record["environments"].append(measure(name, QUICK if args.quick else None, args.days))
        jax.clear_caches()  # of the next one nothing is used again
    meta["seconds"] = time.perf_counter() - start
    (out / "baselines.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "baselines.md").write_text(page(record))
    plots(record, out)
    print(page(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
