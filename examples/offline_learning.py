# %% [markdown]
# # Learning to control voltages from a log
#
# A Volt-VAR controller of the IEEE 13-node feeder is learned from logged days alone, without touching the feeder:
#
# 1. an operator who holds settings around a good constant one for hours controls 400 days, which are logged;
# 2. implicit Q-learning (I. Kostrikov et al., 2022) learns from the log, three seeds side by side;
# 3. the agents play days that nobody has seen, beside no control and beside the best constant action of the training
#    days, which is the hard one to beat on this feeder.
#
# The curve shows the held-out days during training only to be looked at: what counts is the last agent.
#
#     python examples/offline_learning.py --out demo_out

# %%
"""Offline reinforcement learning on IEEE 13: collect, train three seeds, play held-out days beside baselines.

    python examples/offline_learning.py --out demo_out
    python examples/offline_learning.py --out demo_out --quick

Prints a table and writes offline_learning.json and offline_learning.png. Exits with 1 if a held-out day ends early, as
after a failed power flow.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import matplotlib

matplotlib.use("Agg")
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from algorithms.batches import from_dataset
from algorithms.comparison import row, shown
from algorithms.evaluation import Figures, evaluate, evaluate_policy, held_out
from algorithms.iql import IQL, Config
from algorithms.spaces import space_of
from algorithms.training import train
from gridjax.env.behaviours import Behaviour, best_constant
from gridjax.env.collection import collect
from gridjax.env.datasets import Dataset, returns
from gridjax.env.environment import Environment
from gridjax.env.holding import holding
from gridjax.env.policies import Constant, nothing
from gridjax.env.tasks import make

NAME = "VoltVar-ieee13-v0"
TRAINING, HELD_OUT = 0, 1  # seeds of the days


class Size(NamedTuple):
    """How much is done: days of a year, hours of a step, logged episodes, numbers of the search and of the training."""

    days: int = 100
    hours: float = 1.0
    episodes: int = 400
    search: tuple[int, int, int] | None = (8, 32, 6)  # days, candidates, rounds; None takes no control for the best
    updates: int = 2000
    every: int = 500
    hidden: tuple[int, int] = (64, 64)
    seeds: int = 3


QUICK = Size(days=6, hours=4.0, episodes=24, search=None, updates=60, every=30, hidden=(8, 8))


# %% [markdown]
# ## The log
#
# The operator's default is the best constant action of the training days, found by a search in the simulator. A day
# begins with settings drawn around it, and each is drawn anew now and then. Exploration that returns in the next step
# would say little about settings that pay off over hours, as every move of a tap costs.


# %%
def log(env: Environment, params: Any, size: Size) -> tuple[Dataset, Constant]:
    """The logged days, and the best constant action, around which they are."""
    search, key = jax.random.split(jax.random.key(TRAINING))
    constant = nothing(env, params)
    if size.search:
        days, candidates, rounds = size.search
        constant, _ = best_constant(env, params, search, days=days, candidates=candidates, rounds=rounds)
    held, memory = holding(env, constant.action, width=0.2)
    return collect(env, params, [Behaviour("holding", held, memory=memory)], key, size.episodes), constant


def constantly(key, observation, state, memory):
    """The policy whose action is its memory, so that one compiled program plays all of them."""
    del key, observation, state
    return memory, memory


# %% [markdown]
# ## Learning
#
# Rewards are scaled by the spread of the logged returns, so that IQL's temperature means the same on every feeder. All
# updates between two points of the curve are one call of a compiled program, for all seeds at once.


# %%
def learn(data: Dataset, env: Environment, played: tuple[Any, Any, jax.Array], size: Size) -> tuple[Figures, list[Any]]:
    """The agents' figures on the held-out days after training, and the curve: updates and (seeds,) mean returns."""
    space = space_of(env)
    config = Config(hidden=size.hidden, steps=float(size.updates))
    batch = from_dataset(data, space, reward_scale=env.horizon / float(np.ptp(returns(data))))
    world, params, keys = played
    curve: list[Any] = []
    figures: Figures = {}

    def seen(done, states, metrics):
        del metrics
        figures.update(evaluate(world, params, IQL, config, space, states, keys))
        curve.append((done, figures["return"].mean(axis=1)))

    train(
        IQL, config, space, batch, jax.random.key(TRAINING), updates=size.updates, seeds=size.seeds, every=size.every,
        seen=seen,
    )  # fmt: skip
    return figures, curve


# %% [markdown]
# ## Held-out days
#
# Seeds are resampled as whole rows and days as whole columns, as a lucky seed is so on every day.


# %%
def draw(curve: list[Any], rows: list[dict[str, Any]], path: Path) -> None:
    """The seeds' mean returns over updates, and everyone's returns with their intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    updates = [done for done, _ in curve]
    left.plot(updates, [found for _, found in curve], color="C0", linewidth=1)
    for k, one in enumerate(rows[1:], start=1):
        left.axhline(one["mean return"][0], color=f"C{k}", linestyle="--", label=one["policy"])
    left.set(xlabel="updates", ylabel="mean return of a held-out day", title=f"iql, {rows[0]['seeds']} seeds")
    left.legend()
    for k, one in enumerate(rows):
        value, low, high = one["mean return"]
        right.errorbar([value], [k], xerr=[[max(value - low, 0.0)], [max(high - value, 0.0)]], fmt="o", capsize=3)
    right.set_yticks(range(len(rows)), [one["policy"] for one in rows])
    right.invert_yaxis()
    right.set(xlabel="mean return of a held-out day, 95 % interval")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(words: list[str] | None = None) -> int:
    """Collects, learns, plays; returns the exit code."""
    parser = argparse.ArgumentParser(description="offline learning on IEEE 13")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    args = parser.parse_args(words)
    size, began = QUICK if args.quick else Size(), time.perf_counter()
    env, params = make(NAME, seed=TRAINING, days=size.days, hours=size.hours)
    data, constant = log(env, params, size)
    collected = time.perf_counter()
    print(f"logged {data.episodes} days, {len(data.episode)} steps, mean return {returns(data).mean():.2f}", flush=True)
    played = held_out(NAME, [HELD_OUT], size.days, hours=size.hours)
    found, curve = learn(data, env, played, size)
    world, params, keys = played
    figures = {"iql": found}
    for name, policy in {"no control": nothing(world, params), "best constant": constant}.items():
        figures[name] = evaluate_policy(world, params, constantly, keys, memory=jnp.asarray(policy.action, jnp.int32))
    rows = [row(name, one, world.cost_names, hours=size.hours) for name, one in figures.items()]
    for one in rows:
        cost = one["costs"][0]
        print(
            f"{one['policy']}: return of a held-out day {shown(one['mean return'])}, {cost['constraint']} "
            f"{shown(cost['cost'])}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    draw(curve, rows, args.out / "offline_learning.png")
    now = time.perf_counter()
    record = {
        "env": NAME, "size": size._asdict(), "jax": jax.__version__, "device": str(jax.devices()[0]),
        "fingerprint": data.fingerprint, "seconds": {"collect": collected - began, "all": now - began},
        "curve": [[done, found.tolist()] for done, found in curve], "rows": rows,
    }  # fmt: skip
    (args.out / "offline_learning.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{now - began:.0f} s, of which {collected - began:.0f} for the log")
    return 1 if any(one["days ended early"] for one in rows) else 0


# %%
if __name__ == "__main__":
    sys.exit(main())
