# %% [markdown]
# # How much photovoltaic power can a feeder host?
#
# Nobody knows which customers will buy solar panels. *Stochastic hosting capacity* (M. Rylander and J. Smith, EPRI
# 1026640, 2012; A. Dubey and S. Santoso, 2017) therefore draws many *placements*, and raises the PV power of each until
# the first limit is violated. What comes out is a distribution and, for each placement, the limit that ended it.
#
# A placement is a weight $w_l \ge 0$ for each load, $\sum_l w_l = 1$: a random order of the customers, the first $n$ of
# which get PV ($n$ uniform between 1 and all of them), each of a size in proportion to its nominal load times a
# log-normal factor. At the total PV power $x$ the system at load $l$ delivers $x\,w_l$ kW at unity power factor. With
# the ratios $r_k(x)$ of the worst value of kind $k$ to its limit, the hosting capacity is
#
# $$ x^\star = \max\{x : r_k(y) \le 1 \text{ for all } k \text{ and all } y \le x\}. $$
#
# Here it is found by bisection, all placements in one vmapped power flow a step, and repeated for some placements by
# the same bisection in OpenDSS, with the engine's own voltages and currents.
#
#     python examples/hosting_capacity.py --placements 10000 --out hosting_capacity_out

# %%
from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from hosting.feeders import KINDS, STUDIES, TIE, Capacity, Case, equipped, judged_nodes, minimum_load
from hosting.opendss import Engine, as_operated
from hosting.report import draw, show, summarize
from rich.console import Console
from rich.progress import Progress

import gridjax

# %% [markdown]
# ## Limits and ratings
#
# | kind | ieee123 | european_lv |
# |---|---|---|
# | over-voltage, any phase of any bus | 1.05 pu (ANSI C84.1, range A) | 1.10 pu of 416 V (the 10 % of EN 50160) |
# | line and transformer current over rating | 1 | 1 |
# | negative- over positive-sequence voltage | 3 % (the figure of ANSI C84.1) | 2 % (EN 50160) |
#
# The European feeder's source stands at 1.05 pu of 416 V, or 252 V to ground: measured from 230 V, EN 50160's 253 V
# would be used up without any PV, so the 10 % count from the feeder's own 416 V. Both shipped feeders carry 400 A on
# every line, OpenDSS's default and no property of the conductors. Instead we take, by line code
# (`hosting/feeders.py`):
#
# - ieee123: 530 A (ACSR 336,400 26/7), 230 A (ACSR 1/0), 175 A (cable 1/0), ampacities of the test feeders' conductors
#   (W. H. Kersting, "Radial distribution test feeders", 2001); switches without a limit;
# - european_lv: *assumed* ratings, of the size of DIN VDE 0276-603 for cables in ground, for the standard section of
#   copper or aluminium that the code's resistance gives. The published feeder has no ratings.
#
# ## Minimum load, and where the regulators stand
#
# The sun may shine while little is consumed: all loads are at 30 % of their nominal kW and kvar, and all capacitors in
# service. Regulators step one tap at a time until the voltage that OpenDSS's RegControl sees,
#
# $$ V_c = \left| \frac{V}{n_{PT}} + (R + jX) \frac{I}{I_{CT}} \right| $$
#
# ($I$ into the terminal) is within the band around $V_{reg}$. Then they stay: clouds are faster than tap changers.
#
# ## Placements


# %%
def draw_weights(key: jax.Array, number: jax.Array, nominal_kw: jax.Array, spread: float = 0.5) -> jax.Array:
    """Placement `number` of the draw `key`: each load's share of the PV power, (loads,), their sum 1."""
    order_key, count_key, size_key = jax.random.split(jax.random.fold_in(key, number), 3)
    loads = nominal_kw.shape[0]
    rank = jax.random.permutation(order_key, loads)
    count = jax.random.randint(count_key, (), 1, loads + 1)
    size = nominal_kw * jnp.exp(spread * jax.random.normal(size_key, (loads,)))
    size = jnp.where(rank < count, size, 0.0)
    return size / jnp.sum(size)


def draw_placements(seed: int, count: int, nominal_kw: np.ndarray) -> np.ndarray:
    """Placements 0 to `count - 1`, (count, loads)."""
    many = jax.jit(jax.vmap(draw_weights, in_axes=(None, 0, None)))
    return np.asarray(many(jax.random.key(seed), jnp.arange(count), jnp.asarray(nominal_kw)))


# %% [markdown]
# ## One verdict, and the bisection over all placements
#
# A verdict holds the worst ratio of each kind and the element that has it. All PV systems of a placement grow together,
# so that currents and sequence voltages move nearly along straight lines in the complex plane, and their magnitudes
# are nearly convex in $x$: what is within limits at 0 leaves them once. A scan below $x^\star$ checks this at the end.
#
# A power flow that does not converge proves nothing. It moves the upper end down, but a placement whose last upper end
# is not a *converged, violated* point counts as **undetermined**, and one within all limits at the top as **beyond the
# range**; both are reported and kept out of the percentiles.


# %%
class Verdict(NamedTuple):
    """Worst value over limit and the element that has it, (..., kinds); unconverged verdicts mean nothing."""

    ratio: Any
    element: Any
    converged: Any
    source_kw: Any


def judge_one(grid, point, nodes, study_limits, pv_kw) -> Verdict:
    """The verdict on one scenario; vmapped over `pv_kw`, (loads,)."""
    limit_pu, unbalance_limit = study_limits
    others = point.generation_kw.shape[0] - pv_kw.shape[0]
    point = point.replace(generation_kw=jnp.concatenate([point.generation_kw[:others], pv_kw]))
    flow = gridjax.solve(grid, point)
    loading = gridjax.loading(grid, point, flow)
    values = (
        jnp.where(nodes, jnp.abs(flow.v), 0.0) / limit_pu,
        loading["lines"],
        jnp.max(loading["transformers"], axis=1),
        gridjax.unbalance(grid, flow) / unbalance_limit,
    )
    return Verdict(
        ratio=jnp.stack([jnp.max(v) for v in values]),
        element=jnp.stack([jnp.argmax(v >= (1 - TIE) * jnp.max(v)) for v in values]),
        converged=flow.converged,
        source_kw=jnp.sum(gridjax.source_power(grid, point, flow).real),
    )


def bisect(judge: Callable[[np.ndarray], Verdict], count: int, most_kw: float, steps: int, tick=lambda: None):
    """The hosting capacity of `count` placements, to `most_kw / 2^steps`.

    Args:
      judge: the verdicts at the PV power (kW) given for each placement, (placements,).
      count: placements.
      most_kw: the top of the range.
      steps: bisection steps.
      tick: called after each step.

    Raises:
      ValueError: without any PV a limit is violated already.
    """
    at_low, at_high = judge(np.zeros(count)), judge(np.full(count, most_kw))
    if not np.all(at_low.converged):
        raise ValueError("the power flow without PV does not converge: change the load level")
    if np.any(at_low.ratio > 1):
        kinds = [f"{k} {r:.3f} of its limit" for k, r in zip(KINDS, np.max(at_low.ratio, axis=0), strict=True) if r > 1]
        raise ValueError(f"limits do not hold without PV ({', '.join(kinds)}): change the load level or the limits")
    low, high = np.zeros(count), np.full(count, most_kw)
    unsolved = (~at_high.converged).astype(int)
    beyond = at_high.converged & np.all(at_high.ratio <= 1, axis=1)
    for _ in range(steps):
        middle = (low + high) / 2
        now = judge(middle)
        unsolved += ~now.converged
        good = now.converged & np.all(now.ratio <= 1, axis=1)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
        at_low = _choose(good, now, at_low)
        at_high = _choose(good, at_high, now)
        tick()
    # The kind that reaches its limit first on the straight line between the last bracket's ends.
    violated = at_high.ratio > 1
    rise = np.where(violated, at_high.ratio - at_low.ratio, 1.0)
    kind = np.argmin(np.where(violated, (1 - at_low.ratio) / rise, np.inf), axis=1)
    limited = ~beyond & at_high.converged
    element = np.take_along_axis(at_high.element, kind[:, None], axis=1)[:, 0]
    return Capacity(
        hosted_kw=np.where(beyond, most_kw, low),
        violated_kw=np.where(limited, high, np.inf),
        kind=np.where(limited, kind, -1),
        element=np.where(limited, element, -1),
        limited=limited,
        beyond=beyond,
        undetermined=~limited & ~beyond,
        unsolved=unsolved,
        source_kw=at_low.source_kw,
    )


def _choose(condition: np.ndarray, yes: Verdict, no: Verdict) -> Verdict:
    """Placement by placement, (placements,)."""
    return Verdict(
        *(np.where(condition if a.ndim == 1 else condition[:, None], a, b) for a, b in zip(yes, no, strict=True))
    )


# %%
@functools.cache
def prepare(name: str) -> Case:
    """Compiles a feeder of `STUDIES` and brings it to minimum load."""
    study = STUDIES[name]
    feeder = equipped(getattr(gridjax.feeders, name)(), study)
    grid = gridjax.compile(feeder)
    limits = (study.limit_pu, study.unbalance_limit)
    many = jax.jit(jax.vmap(judge_one, in_axes=(None, None, None, None, 0)))
    nodes = jnp.asarray(judged_nodes(feeder))

    def judge(point, pv_kw):
        return jax.tree.map(np.asarray, many(grid, point, nodes, limits, pv_kw))

    nominal_kw = np.array([x.kw for x in feeder.loads])
    return Case(study, feeder, grid, minimum_load(feeder, grid, study), nominal_kw, judge)


def host(case: Case, weights: np.ndarray, chunk: int, console: Console) -> tuple[Capacity, dict[str, float]]:
    """The capacities of all placements, chunk by chunk (all of one size, so that there is one compilation)."""
    most_kw = case.study.most_percent / 100 * case.nominal_kw.sum()
    chunk = min(chunk, len(weights))
    started = time.perf_counter()
    case.judge(case.point, np.zeros((chunk, weights.shape[1])))
    compiled = time.perf_counter()
    parts = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("bisecting", total=-(-len(weights) // chunk) * case.study.steps)
        for start in range(0, len(weights), chunk):
            w = weights[np.minimum(np.arange(start, start + chunk), len(weights) - 1)]

            def judge(kw, w=w):
                return case.judge(case.point, kw[:, None] * w)

            part = bisect(judge, chunk, most_kw, case.study.steps, lambda: progress.advance(task))
            parts.append(Capacity(*(a[: len(weights) - start] for a in part)))
    capacity = Capacity(*map(np.concatenate, zip(*parts, strict=True)))
    return capacity, {"compile": compiled - started, "run": time.perf_counter() - compiled}


# %% [markdown]
# ## Is it right?
#
# Two checks. Below the capacity no limit may be violated: a scan of 20 levels for the first placements. And OpenDSS
# repeats the bisection: the engine solves, its own voltages and currents are judged, and capacities as well as limiting
# elements must agree.


# %%
def scan(case: Case, weights: np.ndarray, hosted_kw: np.ndarray, levels: int = 20) -> int:
    """How many placements violate a limit, or do not converge, somewhere below the capacity found."""
    early = np.zeros(len(weights), bool)
    for share in np.linspace(0.0, 1.0, levels + 1)[1:]:
        now = case.judge(case.point, share * hosted_kw[:, None] * weights)
        early |= ~now.converged | np.any(now.ratio > 1, axis=1)
    return int(early.sum())


def check_opendss(case: Case, weights: np.ndarray, found: Capacity, console: Console) -> dict[str, Any]:
    """The same bisection in OpenDSS over the placements given, compared with what was `found`."""
    study, nominal_kw = case.study, case.nominal_kw
    feeder = as_operated(case.feeder, case.point)
    engine = Engine(feeder, len(nominal_kw), judged_nodes(feeder), study.limit_pu, study.unbalance_limit)

    def judge(kw):
        return Verdict(*map(np.array, zip(*map(engine.judge, kw[:, None] * weights), strict=True)))

    started, most_kw = time.perf_counter(), study.most_percent / 100 * nominal_kw.sum()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("OpenDSS", total=study.steps)
        theirs = bisect(judge, len(weights), most_kw, study.steps, lambda: progress.advance(task))
    ours = Capacity(*(a[: len(weights)] for a in found))
    same = (ours.kind == theirs.kind) & (ours.element == theirs.element) & (ours.limited == theirs.limited)
    return {
        "placements": len(weights),
        "tolerance_kw": most_kw / 2**study.steps,
        "largest_difference_kw": float(np.max(abs(ours.hosted_kw - theirs.hosted_kw))),
        "same_limit": int(same.sum()),
        "seconds": time.perf_counter() - started,
    }


# %% [markdown]
# ## The study


# %%
def study_feeder(name: str, options: argparse.Namespace, errors: Console) -> dict[str, Any]:
    """The whole study of one feeder; writes its picture."""
    with errors.status(f"{name}: compiling, minimum load"):
        case = prepare(name)
        weights = draw_placements(options.seed, options.placements, case.nominal_kw)
    found, seconds = host(case, weights, options.chunk, errors)
    first = min(200, options.chunk, options.placements)
    with errors.status(f"{name}: scanning below the capacities"):
        early = scan(case, weights[:first], found.hosted_kw[:first])
    out = summarize(case, weights, found) | {"seconds": seconds, "scanned": first, "violated_below": early}
    out["opendss"] = None
    if options.check and importlib.util.find_spec("dss") is not None:
        count = min(options.check, options.placements)
        out["opendss"] = check_opendss(case, weights[:count], found, errors)
    draw(case, weights, found, options.out / f"hosting_capacity_{name}.png")
    return out


def sound(row: dict[str, Any]) -> bool:
    """Whether the checks of a feeder hold: no earlier violation, and OpenDSS, if asked, agrees."""
    check = row["opendss"]
    agrees = check is None or (
        check["same_limit"] == check["placements"] and check["largest_difference_kw"] <= check["tolerance_kw"]
    )
    return agrees and row["violated_below"] == 0


def main(argv: list[str] | None = None) -> int:
    """Runs the study; 1 if a check fails, 2 if a feeder cannot be studied."""
    parser = argparse.ArgumentParser(description="Stochastic PV hosting capacity of a feeder.")
    parser.add_argument("--feeder", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--placements", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=500, help="placements in one vmapped power flow")
    parser.add_argument("--check", type=int, default=20, help="placements that OpenDSS bisects as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hosting_capacity_out"))
    options = parser.parse_args(argv)
    if min(options.placements, options.chunk) < 1 or options.check < 0:
        parser.error("--placements and --chunk must be at least 1, --check at least 0")
    options.out.mkdir(parents=True, exist_ok=True)
    console, errors = (Console(stderr=e, highlight=False, force_jupyter=False) for e in (False, True))
    rows = []
    for name in options.feeder:
        try:
            rows.append(study_feeder(name, options, errors))
        except ValueError as problem:
            errors.print(f"{name}: {problem}")
            return 2
        show(console, rows[-1])
    meta = {
        "command": f"python examples/hosting_capacity.py --feeder {' '.join(options.feeder)} --placements "
        f"{options.placements} --chunk {options.chunk} --check {options.check} --seed {options.seed}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "gridjax": gridjax.__version__,
        "dss": importlib.metadata.version("dss-python") if importlib.util.find_spec("dss") else None,
        "seed": options.seed,
    }
    text = json.dumps({"meta": meta, "rows": rows}, indent=1, allow_nan=False)
    (options.out / "hosting_capacity.json").write_text(text + "\n")
    return 0 if all(map(sound, rows)) else 1


# %%
if __name__ == "__main__":
    sys.exit(main())
