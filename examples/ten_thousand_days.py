"""Ten thousand days of a feeder under one controller after another, each a single call.

    python examples/ten_thousand_days.py                          # IEEE 123, Volt-VAR control
    python examples/ten_thousand_days.py --env DerControl-ieee13-v0 --days 1000

Every controller gets the same days, drawn evenly from those of the environment. Prints each one's return, violations,
seconds and solved steps, and writes ten_thousand_days.json and .png. Exits with 1 if a power flow does not converge.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib

matplotlib.use("Agg")
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from gridjax.env.environment import Environment, Policy, Transitions, rollout
from gridjax.env.policies import classical, nothing, random
from gridjax.env.tasks import feeder_of, make, names


def sums(seen: Transitions) -> tuple[jax.Array, ...]:
    """What is kept of a step: reward, first constraint's violation, whether it was solved, and whether the day ends."""
    return seen.reward, seen.cost[:, 0], seen.info["solved"], seen.terminated | seen.truncated


def walk(env: Environment, params: Any, policy: Policy, days: int, seed: int) -> dict[str, Any]:
    """Rolls the policy out in so many days side by side; a day that ends early counts to its end."""
    args = (env, policy, jax.random.key(seed), params)
    start = time.perf_counter()
    rollout.lower(*args, steps=env.horizon, batch=days, keep=sums).compile()
    compiled = time.perf_counter()
    (reward, violation, solved, ended), _ = jax.block_until_ready(
        rollout(*args, steps=env.horizon, batch=days, keep=sums),
    )
    seconds = time.perf_counter() - compiled
    own = jnp.cumsum(ended, axis=0) - ended == 0  # not those of the fresh day after an early end
    return {
        "returns": np.asarray(jnp.sum(jnp.where(own, reward, 0.0), axis=0)),
        "violation": float(jnp.mean(jnp.sum(jnp.where(own, violation, 0.0), axis=0))),
        "steps": int(jnp.sum(own)),
        "unsolved": int(jnp.sum(own & ~solved)),
        "seconds": seconds,
        "compile_seconds": compiled - start,
    }


def draw(found: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """The distributions of returns."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    shown = {name: row["returns"] for name, row in found.items() if name != "random"}
    together = np.concatenate(list(shown.values()))
    for name, returns in shown.items():
        axes.hist(
            returns,
            bins=np.linspace(together.min(), together.max(), 80).tolist(),
            histtype="step",
            linewidth=1.5,
            label=name,
        )
    axes.set(xlabel="return of a day", ylabel="days", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="many days under several controllers")
    parser.add_argument("--env", default="VoltVar-ieee123-v0", choices=names(), metavar="NAME")
    parser.add_argument("--days", type=int, default=10_000, help="side by side")
    parser.add_argument("--drawn", type=int, default=365, help="different days they are drawn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    args = parser.parse_args(words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # doubts about rated voltages in the published data
        env, params = make(args.env, seed=args.seed, days=args.drawn)
        feeder = feeder_of(args.env)
    policies: dict[str, Policy] = {"no control": nothing(env, params), "random": random(env)}
    try:
        policies["the feeder's own controls"] = classical(env, params, feeder)
    except ValueError as refused:
        print(f"the feeder's own controls: {refused}", file=sys.stderr)
    found = {}
    for name, policy in policies.items():
        found[name] = walk(env, params, policy, args.days, args.seed)
        row = found[name]
        print(
            f"{name}: {args.days:,} days in {row['seconds']:.1f} s (compiling {row['compile_seconds']:.1f} s), return "
            f"{row['returns'].mean():.2f}, {env.cost_names[0]} {row['violation']:.3f} a day, "
            f"{row['steps'] - row['unsolved']:,} of {row['steps']:,} steps solved",
            flush=True,
        )
    args.out.mkdir(parents=True, exist_ok=True)
    draw(found, f"{args.env}: {args.days:,} days", args.out / "ten_thousand_days.png")
    record = {
        "env": args.env, "days": args.days, "drawn": args.drawn, "seed": args.seed, "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "policies": {
            name: {
                **{k: v for k, v in row.items() if k != "returns"},
                "mean_return": float(row["returns"].mean()), "sd_return": float(row["returns"].std()),
            }
            for name, row in found.items()
        },
    }  # fmt: skip
    (args.out / "ten_thousand_days.json").write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(row["unsolved"] for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
