"""`gridjax evaluate`: an agent on held-out days beside the baselines, or from logs beside the simulator's truth.

As the commands of `gridjax.commands`: takes the parsed options and two consoles (results, messages), returns the exit
code. Held-out days are those of the seeds from --days-seed on, each spread over its year, without the training days'.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from algorithms import charts, comparison
from algorithms.baselines import USUAL, policies
from algorithms.checkpoints import load_agent, source_version
from algorithms.evaluation import YEAR, Figures, evaluate_policy, held_out
from algorithms.evaluation import evaluate as play
from algorithms.evaluation_commands import EPISODES
from algorithms.from_logs import estimates, estimates_table
from algorithms.learning import Agent
from algorithms.spaces import Space, space_of
from gridjax.commands import Refused, check_folder
from gridjax.env.behaviours import NAMES
from gridjax.env.datasets import load
from gridjax.env.device_view import device_view
from gridjax.env.environment import Environment
from gridjax.env.tasks import feeder_of, make

FILE = "evaluation.json"
LOGS = "from_logs.json"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An agent as it was trained, and the arguments of `make` for the environment that it is to play in."""

    agent: Agent
    config: Any
    space: Space
    states: Any
    head: dict[str, Any]
    made_by: dict[str, Any]


def evaluate(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Evaluates an agent."""
    folder = options.checkpoint or options.run_folder
    if folder is None or (options.checkpoint and options.run_folder):
        raise Refused("name one run: gridjax evaluate RUN")
    out = options.out or _run_of(folder) / "evaluation"
    if options.out:
        check_folder(out)
    loaded = _loaded(folder, options)
    names = _baselines(options, loaded.head)
    if options.from_logs:
        return _from_logs(loaded, options, out, console, errors)
    began = time.perf_counter()
    with errors.status("making the environment"):
        seeds, days = held_out_seeds(options.days_seed, options.episodes, int(loaded.made_by["seed"]))
        given = {k: v for k, v in loaded.made_by.items() if k not in ("name", "seed", "days")}
        env, params, keys = held_out(loaded.made_by["name"], seeds, days, **given)
        loaded = _seen(loaded, env, params) if options.env else loaded
    keys = keys[: options.episodes]
    rows, missing = _play_all(loaded, env, params, keys, names, errors)
    gained = comparison.gains(rows)
    record = {
        "kind": "gridjax evaluation", "version": 1, "seconds": round(time.perf_counter() - began, 1),
        **machine_and_versions(),
        "run": os.fspath(folder), "agent": loaded.agent.name, "header": loaded.head,
        "environment": {**loaded.made_by, "seed": seeds, "days": days}, "episodes": len(keys), "rows": rows,
        "gains": gained, "not played": missing,
    }  # fmt: skip
    write(out, FILE, record)
    charts.returns(rows, out / "returns.svg")
    charts.costs(rows, out / "costs.svg")
    title = f"{loaded.agent.name} on {len(keys)} held-out days of {loaded.made_by['name']}, 95 % intervals"
    console.print(comparison.returns_table(title, rows, gained))
    console.print(comparison.costs_table(rows))
    for name, reason in missing.items():
        errors.print(Text(f"gridjax: {name} is not played: {reason}"), soft_wrap=True)
    console.print(Text(f"{out / FILE}, returns.svg, costs.svg"), soft_wrap=True)
    return 0


def after_training(run: Path, training: int, console: Console, errors: Console) -> int:
    """`gridjax evaluate RUN` with nothing else asked for, on other days than those of the seed `training`."""
    asked = argparse.Namespace(
        run_folder=run, checkpoint=None, env=None, env_set=[], episodes=EPISODES, days_seed=2 if training == 1 else 1,
        seeds=None, baselines=None, out=None, from_logs=None,
    )  # fmt: skip
    return evaluate(asked, console, errors)


def held_out_seeds(first: int, episodes: int, training: int) -> tuple[list[int], int]:
    """Seeds of years, and days of each, that together are at least so many episodes without the training days'."""
    if first == training:
        raise Refused(f"--days-seed {first} is that of the training days: take another")
    years = math.ceil(episodes / YEAR)
    seeds = [seed for seed in range(first, first + years + 1) if seed != training][:years]
    return seeds, math.ceil(episodes / years)


def _play_all(
    loaded: Loaded, env: Environment, params: Any, keys: jax.Array, names: list[str], errors: Console
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The agent's row, then the baselines', and which are missing with the reason."""
    prices = loaded.head["run"].get("prices")
    hours = float(getattr(params, "hours", 1.0))

    def row(name: str, figures: Figures) -> dict[str, Any]:
        return comparison.row(name, figures, env.cost_names, hours=hours, prices=prices)

    with errors.status(loaded.agent.name):
        played = play(env, params, loaded.agent, loaded.config, loaded.space, loaded.states, keys)
        rows = [row(loaded.agent.name, played)]
    with errors.status("making the baselines"):
        search = jax.random.split(jax.random.key(0))[0]
        training = make(**loaded.made_by)[1] if any(name.endswith("constant") for name in names) else None
        chosen, missing = policies(names, env, params, training, feeder_of(**loaded.made_by), search)
    for name, policy in chosen.items():
        with errors.status(name):
            rows.append(row(name, evaluate_policy(env, params, policy, keys)))
    return rows, missing


def _from_logs(loaded: Loaded, options: argparse.Namespace, out: Path, console: Console, errors: Console) -> int:
    data = load(options.from_logs)
    began = time.perf_counter()
    made_by = data.header.get("made_by")
    if not made_by:
        raise Refused(f"{options.from_logs} does not say which environment it is of: collect it with `gridjax collect`")
    if made_by["name"] != loaded.made_by["name"]:
        raise Refused(f"{options.from_logs} is of {made_by['name']}, the agent of {loaded.made_by['name']}")
    with errors.status("making the environment"):
        env, params = make(**made_by)
    with errors.status("estimating"):
        found = estimates(
            env, params, loaded.agent, loaded.config, loaded.space, loaded.states, data, updates=options.updates
        )
    record = {
        "kind": "gridjax estimates from logs", "version": 1, "seconds": round(time.perf_counter() - began, 1),
        **machine_and_versions(),
        "run": os.fspath(options.checkpoint or options.run_folder), "agent": loaded.agent.name,
        "header": loaded.head, "logs": os.fspath(options.from_logs), "fingerprint": data.fingerprint,
        "environment": made_by, **found,
    }  # fmt: skip
    write(out, LOGS, record)
    console.print(estimates_table(f"{loaded.agent.name} from {data.episodes} logged episodes", found))
    for text in found["notes"]:
        errors.print(Text(f"gridjax: {text}"), soft_wrap=True)
    console.print(Text(f"{out / LOGS}"), soft_wrap=True)
    return 0


def _loaded(folder: Path, options: argparse.Namespace) -> Loaded:
    agent, config, space, states, head = load_agent(folder)
    made_by = {**head["environment"], **dict(options.env_set)}
    if options.env:
        made_by["name"] = options.env if options.env.endswith("-v0") else f"{options.env}-v0"
    if options.seeds:
        if options.seeds > head["run"]["seeds"]:
            raise Refused(f"--seeds {options.seeds}: the run has {head['run']['seeds']}")
        states = jax.tree.map(lambda a: a[: options.seeds], states)
    return Loaded(agent, config, space, states, head, made_by)


def _seen(loaded: Loaded, env: Environment, params: Any) -> Loaded:
    """With the space of this environment, where the networks fit any."""
    if getattr(loaded.config, "body", "mlp") == "mlp":
        return loaded
    space = space_of(env, view=device_view(env, params, feeder_of(**loaded.made_by)))
    return dataclasses.replace(loaded, space=space)


def _baselines(options: argparse.Namespace, head: dict[str, Any]) -> list[str]:
    if options.baselines is not None:
        names = [] if options.baselines == "none" else options.baselines.split(",")
        unknown = [name for name in names if name not in NAMES]
        if unknown:
            raise Refused(f"--baselines {unknown[0]}: choose from {', '.join(NAMES)}, or none")
        return names
    return list(dict.fromkeys([*USUAL, *head["dataset"].get("behaviours", [])]))


def _run_of(folder: Path) -> Path:
    """The run that a checkpoint's folder is in, or the run itself."""
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def machine_and_versions() -> dict[str, Any]:
    """What figures depend on beside their arguments, for the records."""
    names = ("gridjax", "jax", "jaxlib", "flax", "numpy", "scipy")
    return {
        "date": datetime.date.today().isoformat(), "source": source_version(),
        "command": shlex.join(["gridjax", *sys.argv[1:]]), "device": str(jax.devices()[0]), "cores": os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}", "x64": bool(jax.numpy.zeros(()).dtype == np.float64),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }  # fmt: skip


def write(out: Path, name: str, record: dict[str, Any]) -> None:
    """Writes a record to a folder, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / f".{name}.part"
    part.write_text(json.dumps(comparison.plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, out / name)
