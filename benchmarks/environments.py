"""Baselines of every environment on days that nothing was fitted to, and what search with full knowledge attains.

    python -m benchmarks.environments                          # all; writes docs/baselines.md, .json and plots
    python -m benchmarks.environments --env VoltVar-ieee13-v0  # one; writes to demo_out/bench/, as does --quick

Policies: no control, the feeder's own regulator and capacitor controls (OpenDSS's rules), IEEE 1547-2018 droop, the
best constant action, random moves, and search with full knowledge of each day. All walk the same held-out days
with the same keys; the best constant action is searched on other days. The policies are in `benchmarks.contenders`; how
days are walked is in `benchmarks.days`, how actions are searched in `benchmarks.searches` and `benchmarks.ascent`, the
page in `benchmarks.baselines`.

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
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import contenders, searches
from benchmarks.baselines import page, plots
from benchmarks.contenders import (
    CONSTANT,
    HELD_OUT,
    NOTHING,
    POLICIES,
    QUICK,
    TRAINING,
    Case,
    Effort,
    NotMeantError,
    Played,
)  # fmt: skip
from benchmarks.days import interval
from benchmarks.powerflow import cores, machine, say, versions
from gridjax.env.tasks import names
from gridjax.env.volt_var import VoltVar

ROOT = Path(__file__).parent.parent
KINDS = (
    "capacitors", "regulators", "diesels", "inverters", "batteries", "cars", "blocks", "switches", "nodes",
)  # fmt: skip
HIDDEN = ("return", "steps", "violated", "violation", "violation_pu", "solved", "disturbance")  # not as they are


def measure(name: str, effort: Effort | None = None, days: int | None = None) -> dict[str, Any]:
    """All policies of one environment, as it goes into the record."""
    start = time.perf_counter()
    case = contenders.prepare(name, effort, days)
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
    rows += bound_row(case, played[NOTHING])
    return {
        "name": name, "constraints": env.constraints, "action_size": env.action_size, "horizon": env.horizon,
        "devices": {kind: len(getattr(env, kind)) for kind in KINDS if getattr(env, kind, ())},
        "search": "paths" if isinstance(env, VoltVar) else "steps" if any(env.action_counts) else "gradient",
        "price": case.price[: len(env.constraints)].tolist(), "effort": dataclasses.asdict(case.effort),
        "constant_action": played[CONSTANT].actions[0, 0].tolist(), "rows": rows,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def bound_row(case: Case, nothing: Played) -> list[dict[str, Any]]:
    """The proven bound as a row, if there is one."""
    try:
        what, rows, bound = contenders.proven(case)
    except NotMeantError as refused:
        say(f"{case.name}: proven bound: -, {refused}")
        return []
    gain = bound - nothing.sums["return"][rows]
    pairs = {"return": bound, "beyond no control": gain}
    means = {name: dict(zip(("mean", "half"), interval(v), strict=True)) for name, v in pairs.items()}
    returns = [float(f"{x:.6g}") for x in bound]
    return [{"policy": f"proven bound, {what}", "days": len(bound), "means": means, "returns": returns}]


def figures(case: Case, played: Played, nothing: Played) -> dict[str, Any]:
    """A policy's figures: means over days with half of their 95 % intervals, and each day's return."""
    sums, constraints = played.sums, len(case.env.constraints)
    hours, steps = float(case.params.hours), sums["steps"].sum()
    per_day = {"return": sums["return"], "beyond no control": sums["return"] - nothing.sums["return"][played.rows]}
    if np.any(case.price):
        per_day["score"] = searches.score(sums, case.price)
    for name, value in sums.items():
        if name in HIDDEN:
            continue
        if name.endswith("_hz"):
            per_day[name] = value / sums["steps"]
        else:
            per_day[f"{name}h" if name.endswith("_kw") else name] = value * (hours if name.endswith("_kw") else 1.0)
    violated = sums["violated"].sum(axis=0)
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
    parser.add_argument("--add", action="store_true", help="to the record that is there, in place of the same names")
    args = parser.parse_args(words)
    jax.config.update("jax_enable_x64", True)
    whole = not args.quick and set(args.env) == set(names())
    out = (args.out or ROOT / ("docs" if whole else "demo_out/bench")).resolve()
    given = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "-m", "benchmarks.environments", *given])
    installed = {name: version for name, version in versions().items() if version != "not installed"}
    meta = {
        "date": datetime.date.today().isoformat(), "processor": machine(), "cores": cores(), "versions": installed,
        "device": str(jax.devices()[0]), "seeds": {"training": TRAINING, "held out": HELD_OUT},
    }  # fmt: skip
    found: dict[str, Any] = {}
    if args.add:
        found = {row["name"]: row for row in json.loads((out / "baselines.json").read_text())["environments"]}
    out.mkdir(parents=True, exist_ok=True)
    text = ""
    for name in args.env:
        found[name] = {**measure(name, QUICK if args.quick else None, args.days), "command": command}
        jax.clear_caches()  # of the next one nothing is used again
        text = write({"meta": meta, "environments": [found[n] for n in names() if n in found]}, out)
    print(text)
    return 0


def write(record: dict[str, Any], out: Path) -> str:
    """Writes the record, its page and its plots after every environment, so that nothing is lost; returns the page."""
    text = page(record)
    (out / "baselines.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "baselines.md").write_text(text)
    plots(record, out)
    return text


if __name__ == "__main__":
    raise SystemExit(main())
