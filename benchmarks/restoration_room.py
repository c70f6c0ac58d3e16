"""How much better than the operator's rule restoration can be at all: `python -m benchmarks.restoration_room`.

On held-out days of the IEEE 123 feeder without further faults, which such a day hardly ever has, the rule
(`gridjax.env.restoration_policies.greedy`) is played beside no control, and beside the proven bound of each day: the
best of all sequences of moves with full knowledge, limits of voltage and current left out (`upper_bound`). Whatever
learns cannot leave the rule behind by more. Intervals are Student's over days. Writes docs/restoration_room.md, .json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from algorithms.evaluation import evaluate_policy, held_out
from algorithms.statistics import student
from benchmarks.offline_results import made_on
from gridjax.env.policies import nothing
from gridjax.env.restoration import Restoration
from gridjax.env.restoration_policies import greedy, upper_bound

NAME, SEED, DAYS = "Restoration-ieee123-v0", 1, 40


def measure(name: str, days: int) -> dict[str, Any]:
    """Returns and energy not served (kWh) of each day, and the bounds."""
    started = time.time()
    env, params, keys = held_out(name, [SEED], days, severity=0.0)
    assert isinstance(env, Restoration)
    out: dict[str, Any] = {"name": name, "days": days, "seed": SEED}
    for who, policy in (("no control", nothing(env, params)), ("operator's rule", greedy(env, params))):
        played = evaluate_policy(env, params, policy, keys)
        out[who] = {"return": played["return"][0].tolist(), "not served": played["energy_not_served_kwh"][0].tolist()}
        print(f"{who}: {np.mean(out[who]['return']):,.0f}", flush=True)
    bound, first = upper_bound(env, params), jax.jit(jax.vmap(lambda key: env.reset(key, params)[1]))(keys)
    out["bound"] = []
    for day in range(days):
        out["bound"].append(float(bound(jax.tree.map(lambda a, d=day: a[d], first))))
        print(f"bound of day {day + 1} of {days}: {out['bound'][-1]:,.0f}", flush=True)
    return {**out, "seconds": time.time() - started, "made_on": made_on()}


def room(record: dict[str, Any]) -> float:
    """The share of what the rule loses that the bound does not lose."""
    return 1 - float(np.mean(record["bound"]) / np.mean(record["operator's rule"]["return"]))


def page(record: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for who in ("no control", "operator's rule"):
        got = [student(np.array(record[who][what])) for what in ("return", "not served")]
        rows.append(f"| {who} | " + " | ".join(f"{i.value:,.0f} ({i.low:,.0f} to {i.high:,.0f})" for i in got) + " |")
    i = student(np.array(record["bound"]))
    rows.append(f"| proven bound | {i.value:,.0f} ({i.low:,.0f} to {i.high:,.0f}) | |")
    lines = [
        "# Room above the operator's rule", "", " ".join((__doc__ or "").split()), "",
        f"{record['name']}, {record['days']} days of seed {record['seed']}; {record['seconds']:.0f} s on "
        f"{record['made_on']}.", "", "| policy | return | energy not served, kWh |", "|---|---|---|", *rows, "",
        f"**The bound is {100 * room(record):.1f} % better than the rule**: in the mean of these days no policy "
        "can gain more, learned or not.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measures and writes."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    asked = parser.parse_args()
    record = measure(NAME, asked.days)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "restoration_room.json").write_text(json.dumps(record, indent=1) + "\n")
    (asked.out / "restoration_room.md").write_text(page(record))
    print(page(record))


if __name__ == "__main__":
    main()
