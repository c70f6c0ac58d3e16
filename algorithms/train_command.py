"""`gridjax train`: an agent from logged data, with checkpoints and metrics, shown beside the baselines at its end.

As the commands of `gridjax.commands`: takes the parsed options and two consoles (results, messages), returns the exit
code. A run that is stopped by SIGINT or SIGTERM ends its chunk of updates, keeps its checkpoint and returns 130 or 143.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from algorithms import checkpoints, evaluate_command, metrics, mixtures, training
from algorithms.agents import AGENTS
from algorithms.batches import Batch, from_dataset
from algorithms.learning import Agent
from algorithms.spaces import Space, space_of
from algorithms.stopping import signals, to_go_on
from gridjax.commands import Refused, check_folder
from gridjax.drawing import printable
from gridjax.env.device_view import device_view
from gridjax.env.environment import Environment
from gridjax.env.tasks import feeder_of


class _Stopped(Exception):
    """By a signal, after a checkpoint."""

    def __init__(self, number: int, done: int) -> None:
        super().__init__(number, done)
        self.number, self.done = number, done


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is trained, on what, and where it is kept."""

    agent: Agent
    config: Any
    space: Space
    batch: Batch
    key: jax.Array
    head: dict[str, Any]
    out: Path
    options: argparse.Namespace


def train(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Trains an agent and evaluates it; 1 where a loss is not finite, 130 and 143 where it was stopped."""
    if options.algorithm == "list":
        console.print(Text("\n".join(f"{name}  {agent.source}" for name, agent in AGENTS.items())))
        return 0
    if options.algorithm not in AGENTS:
        raise Refused(f"no algorithm {options.algorithm!r}: choose one of {', '.join(AGENTS)}")
    agent, name = AGENTS[options.algorithm], mixtures.full_name(options.env)
    config = configured(agent, options)
    if options.tensorboard:
        metrics.needs_tensorboard()
    out = Path(options.out or Path("runs") / f"{name}-{agent.name}")
    if options.out:
        check_folder(out)
    found = to_go_on(out, options.resume, errors)
    made_by, data = mixtures.source(name, options.dataset, _env_options(options), options.episodes)
    env, params = mixtures.environment(made_by, errors)
    space, key, cost = _space(config, env, params, made_by), jax.random.key(options.seed), _prices(options, env)
    checkpoints.shapes(agent, config, space, options.seeds)  # refuses what cannot be before data are collected
    out.mkdir(parents=True, exist_ok=True)
    if data is None:
        episodes, place = options.episodes or mixtures.EPISODES, out / "data.npz"
        data = mixtures.collected(env, params, made_by, options.dataset, episodes, place, errors)
    mixtures.check_names(data, env)
    batch = from_dataset(data, space, reward_scale=options.reward_scale, prices=cost, best=options.best)
    of_run = {
        "seeds": options.seeds, "batch_size": options.batch_size, "every": options.every, "best": options.best,
        "reward_scale": options.reward_scale, "prices": None if cost is None else cost.tolist(),
    }  # fmt: skip
    head = checkpoints.header(agent, config, space, key, data, environment=made_by, run=of_run)
    run = _Run(agent, config, space, batch, key, head, out, options)
    started = time.perf_counter()
    try:
        rate = _go(run, found, errors)
    except _Stopped as stop:
        which = signal.Signals(stop.number).name
        errors.print(Text(f"gridjax: {which} after {stop.done} updates; --resume goes on from there"), soft_wrap=True)
        return 128 + stop.number
    except training.Diverged as error:
        raise Refused(str(error), 1) from error
    console.print(_summary(run, rate, time.perf_counter() - started))
    if not options.no_evaluation:
        return evaluate_command.after_training(out, int(made_by["seed"]), console, errors)
    command = f"gridjax evaluate {shlex.quote(printable(str(out)))}"
    console.print(Text(f"{command}  shows it on days that it has not seen, beside the baselines"), soft_wrap=True)
    return 0


def configured(agent: Agent, options: argparse.Namespace) -> Any:
    """The algorithm's config with the fields that were asked for.

    Where it has `steps`, along which rates fall, they are the updates, unless --set says otherwise.
    """
    default = agent.config()
    fields = {field.name: field for field in dataclasses.fields(default)}
    given = dict(options.set)
    if len(given) < len(options.set):
        raise Refused("--set names a field twice")
    if options.hidden is not None:
        given = {"hidden": list(options.hidden), **given}
    unknown = [name for name in given if name not in fields]
    if unknown:
        raise Refused(f"{agent.name} has no {unknown[0]!r}: set {', '.join(fields)}")
    values = {
        name: (_number if fields[name].metadata.get("pytree_node", True) else _choice)(
            name, value, getattr(default, name), options.seeds
        )
        for name, value in given.items()
    }
    if "steps" in fields and "steps" not in values:
        values["steps"] = float(options.updates)
    return dataclasses.replace(default, **values)


def _number(name: str, value: Any, default: Any, seeds: int) -> Any:
    """A floating field, or one for each seed."""
    each = value if isinstance(value, list) else [value]
    good = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in each)
    if not good or not isinstance(default, int | float):
        raise Refused(f"--set {name}: {value!r} is not a number")
    if not isinstance(value, list):
        return float(value)
    if len(each) != seeds:
        raise Refused(f"--set {name}: {len(each)} numbers for {seeds} seeds; give each one")
    return np.asarray(each, np.float32)


def _choice(name: str, value: Any, default: Any, seeds: int) -> Any:
    """A static field, of the default's type; of an empty default, whose entries are weights, numbers."""
    del seeds
    value = tuple(value) if isinstance(value, list) else value
    like = (default or (0.0,))[0] if isinstance(default, tuple) else default
    each = value if isinstance(value, tuple) else (value,)
    if type(like) is float:
        each = tuple(float(x) if type(x) is int else x for x in each)
    same = default is None or (isinstance(value, tuple) == isinstance(default, tuple))
    if not same or (like is not None and not all(type(x) is type(like) for x in each)):
        raise Refused(f"--set {name}: {value!r} is not such as {default!r}")
    return each if isinstance(value, tuple) else each[0]


def _env_options(options: argparse.Namespace) -> dict[str, Any]:
    given = dict(options.env_set)
    if options.actions is not None:
        given["actions"] = options.actions
    if "name" in given:
        raise Refused("--env-set name: take --env for that")
    return given


def _space(config: Any, env: Environment, params: Any, made_by: Mapping[str, Any]) -> Space:
    """The environment's, with a view of its devices for networks that need one."""
    if getattr(config, "body", "mlp") == "mlp":
        return space_of(env)
    return space_of(env, view=device_view(env, params, feeder_of(**made_by)))


def _prices(options: argparse.Namespace, env: Environment) -> np.ndarray | None:
    if options.price is None:
        return None
    if len(options.price) != len(env.cost_names):
        raise Refused(f"--price has {len(options.price)} numbers; give one for each of: {', '.join(env.cost_names)}")
    return np.array(options.price)


def _go(run: _Run, found: tuple[Path, dict[str, Any]] | None, errors: Console) -> float:
    """Trains to the end; returns the updates per second after the first chunk, 0 where there was no other."""
    done, states, options = 0, None, run.options
    if found is not None:
        path, old = found
        other = checkpoints.differences(old, run.head)
        if other:
            raise Refused(f"{path} cannot be taken up, it is of another run: {'; '.join(other)}")
        for text in checkpoints.other_versions(old, run.head):
            errors.print(Text(f"gridjax: {text}: numbers may differ in their last digits"), soft_wrap=True)
        done = old["updates"]
        states = checkpoints.restore(path, run.agent, run.config, run.space, options.seeds)
        checkpoints.set_aside(run.out, done)
    metrics.trim(run.out / "metrics.csv", done)
    board = metrics.tensorboard(run.out / "tensorboard", options.seeds, done) if options.tensorboard else nullcontext()
    with board as scalars, _bar(run, done, errors) as advance, signals() as caught:
        times: list[tuple[int, float]] = []

        def seen(done: int, states: Any, values: Mapping[str, Any]) -> None:
            values = jax.tree.map(np.asarray, dict(values))
            times.append((done, time.perf_counter()))
            metrics.append(run.out / "metrics.csv", done, values)
            if scalars is not None:
                scalars(done, values)
            checkpoints.save(run.out, run.head, states, keep=options.keep)
            advance(done, _rate(times), values)
            if caught:
                raise _Stopped(caught[0], done)

        training.train(
            run.agent, run.config, run.space, run.batch, run.key, updates=options.updates, seeds=options.seeds,
            batch_size=options.batch_size, every=options.every, states=states, seen=seen,
        )  # fmt: skip
    return _rate(times)


def _rate(times: list[tuple[int, float]]) -> float:
    """Updates per second, without the first chunk, which compiles."""
    (first, start), (last, end) = times[0] if times else (0, 0.0), times[-1] if times else (0, 0.0)
    return (last - first) / (end - start) if last > first else 0.0


@contextmanager
def _bar(run: _Run, done: int, errors: Console) -> Iterator[Callable[[int, float, Mapping[str, Any]], None]]:
    """A progress bar on a terminal: updates, updates per second, losses."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[says]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(run.agent.name, total=run.options.updates, completed=done, says="compiling")

        def advance(done: int, rate: float, values: Mapping[str, Any]) -> None:
            losses = [f"{name} {np.mean(value):.3g}" for name, value in values.items() if name.endswith("loss")]
            speed = [f"{rate:.0f} updates/s"] if rate else []
            progress.update(task, completed=done, says="  ".join(speed + losses[:3]))

        yield advance


def _summary(run: _Run, rate: float, seconds: float) -> Table:
    """What was trained: settings, then the last chunk's metrics over the seeds."""
    table = metrics.read(run.out / "metrics.csv")
    last = table["updates"] == table["updates"][-1]
    about = run.head["dataset"]
    title = f"{run.agent.name} on {run.head['environment']['name']}: {printable(str(run.out))}"
    out = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "mean of the seeds", "lowest", "highest"):
        out.add_column(Text(column), justify="right" if column else "left", overflow="fold")
    out.add_row("data set", f"{about['rows']} steps, {about['fingerprint'][:12]}")
    out.add_row("updates", f"{int(table['updates'][-1])} of {run.options.seeds} seed(s)")
    out.add_row("time", f"{seconds:.1f} s" + (f", {rate:.0f} updates/s" if rate else ""))
    for name, values in table.items():
        if name not in metrics.FIRST:
            mine = values[last]
            out.add_row(Text(name), *(f"{x:.5g}" for x in (mine.mean(), mine.min(), mine.max())))
    return out
