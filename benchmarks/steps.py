"""Whole steps of the environments a second, beside powergym's own code in the same run.

    python -m benchmarks.steps --powergym CHECKOUT     # writes docs/steps.md and docs/steps.json
    python -m benchmarks.steps                         # gridjax alone; writes to demo_out/bench/

CHECKOUT is a folder with github.com/siemens/powergym. Both make random moves of every capacitor, tap and battery in the
same task (`gridjax.env.powergym`; the clean task beside it). A step is everything: the devices, the power flow, reward,
costs and observation, and a fresh episode after each day. powergym leaves OpenDSS's tolerance as it is, 1e-4; with ours
at 1e-5 rewards are as near to those of the engine at 1e-9 (tests/env/test_powergym.py). Moves are drawn before.
gridjax: one `rollout` of a batch of environments, the best of several runs, compiling apart; powergym: one environment,
as it is made, the best of several days.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.powerflow import machine, say, versions
from benchmarks.powergym_peer import Powergym
from gridjax.env.environment import rollout
from gridjax.env.tasks import make

FEEDERS = ("ieee13", "ieee34", "ieee123")
DRAWN = 4096  # random moves to take from


def kept(seen):
    """What a run keeps: sums, so that nothing need be stored."""
    return {
        "reward": seen.reward.sum(),
        "observed": seen.next_observation.sum(),
        "solved": seen.info["solved"].sum(),
        "ended": seen.truncated.sum(),
    }


def ours(name: str, dtype: str, tolerance: float, batch: int, repeats: int, days: int) -> dict[str, Any]:
    """Whole steps a second, of random moves and of doing nothing, and what a reset costs."""
    jax.clear_caches()
    jax.config.update("jax_enable_x64", dtype == "float64")
    env, params = make(name, tolerance=tolerance)
    counts = jnp.asarray(env.action_counts)
    middle = counts // 2

    drawn = jax.random.randint(jax.random.key(0), (DRAWN, len(counts)), 0, counts[None])

    def random(key, obs, state, memory):
        return drawn[jax.random.key_data(key)[-1] % DRAWN], memory

    def nothing(key, obs, state, memory):
        return jnp.where(counts == 2, 1, middle), memory

    out: dict[str, Any] = {"name": name, "dtype": dtype, "tolerance": tolerance, "batch": batch}
    steps = days * env.horizon
    for what, policy in (("random", random), ("nothing", nothing)):
        runs = []
        for k in range(repeats + 1):
            start = time.perf_counter()
            seen, _ = jax.block_until_ready(
                rollout(env, policy, jax.random.key(k), params, steps=steps, batch=batch, keep=kept)
            )
            runs.append(time.perf_counter() - start)
        out[f"{what}_steps_per_s"] = batch * steps / min(runs[1:])
        out[f"{what}_solved"] = int(np.sum(seen["solved"]))
        out[f"{what}_of"] = batch * steps
        out[f"{what}_compile_s"] = runs[0] - min(runs[1:])
    reset = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))
    runs = []
    for k in range(repeats + 1):
        keys = jax.random.split(jax.random.key(k), batch)
        start = time.perf_counter()
        jax.block_until_ready(reset(keys, params))
        runs.append(time.perf_counter() - start)
    out["reset_us"] = 1e6 * min(runs[1:]) / batch
    return out


def theirs(folder: Path, name: str, days: int) -> float:
    """powergym's steps a second with random moves: the best day."""
    peer = Powergym(folder, name)
    rng, best = np.random.default_rng(0), 0.0
    counts = peer.env.action_space.nvec
    for day in range(days):
        peer.reset(day)
        actions = [np.array([rng.integers(0, n) for n in counts]) for _ in range(peer.env.horizon)]
        start = time.perf_counter()
        for action in actions:
            peer.step(action)
        best = max(best, len(actions) / (time.perf_counter() - start))
    peer.close()
    return best


def table(record: dict[str, Any]) -> str:
    """The page."""
    meta = record["meta"]
    lines = [
        "# Steps of the environments\n",
        f"Written by `{meta['command']}` on {meta['processor']}, gridjax on {meta['device']}, "
        f"{', '.join(f'{k} {v}' for k, v in meta['versions'].items())}; batch {meta['batch']}; raw figures: "
        "[steps.json](steps.json). Whole steps a second (devices, power flow, reward, costs, observation, fresh "
        "episodes included) with random moves of every device; `times` is against powergym's own code in the "
        "same run, one environment in one process. powergym leaves OpenDSS's tolerance as it is, 1e-4. Ours is the "
        "largest change of a voltage in the last step, pu; the environments' own is 1e-8 (in float32 no less than "
        "4.8e-7), and with 1e-5 rewards are as near to those of the engine at 1e-9 as powergym's are "
        "(tests/env/test_powergym.py).\n",
        "| environment | precision | tolerance | steps/s | doing nothing | powergym, steps/s | times | a step, us | "
        "a reset, us | solved | compile, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        peer = row.get("powergym_steps_per_s")
        lines.append(
            f"| {row['name']} | {row['dtype']} | {row['tolerance']:.0e} | {row['random_steps_per_s']:,.0f} | "
            f"{row['nothing_steps_per_s']:,.0f} | "
            + (f"{peer:,.0f} | {row['random_steps_per_s'] / peer:,.0f} | " if peer else "| | ")
            + f"{1e6 / row['random_steps_per_s']:.1f} | {row['reset_us']:.1f} | "
            f"{row['random_solved'] + row['nothing_solved']:,} of {row['random_of'] + row['nothing_of']:,} | "
            f"{row['random_compile_s']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="steps of the environments")
    parser.add_argument("--powergym", type=Path, help="a checkout of github.com/siemens/powergym")
    parser.add_argument("--feeders", nargs="+", default=list(FEEDERS), choices=FEEDERS)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--days", type=int, default=2, help="of every environment in a run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"], choices=("float64", "float32"))
    args = parser.parse_args()
    root = Path(__file__).parent.parent  # the engine may change the working folder
    out = (args.out or root / ("docs" if args.powergym else "demo_out/bench")).resolve()
    words = ["CHECKOUT" if word == str(args.powergym) else word for word in sys.argv[1:]]
    device = jax.devices()[0]
    meta = {
        "command": " ".join(["python -m benchmarks.steps", *words]), "processor": machine(),
        "device": f"{device.platform}: {device.device_kind}",
        "versions": versions(), "batch": args.batch,
    }  # fmt: skip
    record: dict[str, Any] = {"meta": meta, "rows": []}
    for name in args.feeders:
        peer = None
        if args.powergym:
            say(f"{name}: powergym")
            peer = theirs(args.powergym.resolve(), name, 5)
        for task in ("Powergym", "VoltVar"):
            for dtype, tolerance in itertools.product(args.dtypes, (1e-8, 1e-5)):
                say(f"{name}: {task}, {dtype}, {tolerance:.0e}")
                row = ours(f"{task}-{name}-v0", dtype, tolerance, args.batch, args.repeats, args.days)
                record["rows"].append({**row, "powergym_steps_per_s": peer} if peer else row)
    out.mkdir(parents=True, exist_ok=True)
    (out / "steps.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "steps.md").write_text(table(record))
    print(table(record))
    return 0 if all(r[f"{k}_solved"] == r[f"{k}_of"] for r in record["rows"] for k in ("random", "nothing")) else 1


if __name__ == "__main__":
    raise SystemExit(main())
