"""`gridjax federate`: utilities learn one policy together, and what it cost of their privacy is stated.

As the commands of `gridjax.commands`: takes the parsed options and two consoles (results, messages), returns the exit
code. The run's folder gets checkpoints, `rounds.csv`, `statement.json` and `.txt`, `results.json`, pictures, and for
each utility a folder that `gridjax evaluate` takes. A run that is stopped by SIGINT or SIGTERM ends its round, keeps a
checkpoint and returns 130 or 143.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flax.struct
import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from algorithms import checkpoints
from algorithms.evaluation import evaluate_policy
from algorithms.learning import Agent
from algorithms.private import Private
from algorithms.private_training import joint_multiplier, releases, trajectories
from algorithms.statistics import student
from algorithms.stopping import signals, to_go_on
from federated import charts
from federated import federation as rounds_of
from federated.accounting import Budget, Ledger, noise_multiplier_for
from federated.clipping import Adaptive
from federated.display import Bar, Rows
from federated.federation import Plan
from federated.learning import agent_work, private_work
from federated.mechanism import Mechanism
from federated.noise import fresh_key
from federated.round import Federation, round_bytes
from federated.sampling import Everyone, Poisson, Sampler
from federated.settings import OPTIMISERS, RULES, Privacy, Settings, read
from federated.statement import PrivacyStatement, stated
from federated.utilities import Utility, clients_of, configured, days_of, played, score, utility
from federated.work import Work
from gridjax.commands import Refused, check_folder
from gridjax.drawing import printable
from gridjax.env import policies

FORMAT = "gridjax federation"
UNACCOUNTED = (
    "Each round's mean losses and norms, which rounds.csv holds: to whoever runs this simulation. A deployment keeps "
    "them at the clients.",
    "The settings of the run, chosen by people who may have seen results on the same data.",
    "The fingerprints and rows of the logs, which results.json holds: to whoever runs this simulation.",
)
OF_TRAJECTORIES = (
    "The number of each utility's trajectories, and whether they are equally long: by the sizes of noise and draws.",
)
INSIDE = (
    "Each utility's shared parameters after each round, which follow from its noisy sums alone: to the server and to "
    "all clients. The sums of one update's losses are counted as one sum of the noise multiplier above.",
)


@flax.struct.dataclass
class Saved:
    """What a checkpoint holds; `step` (1,) are the rounds, by which it is named."""

    step: jax.Array
    progress: rounds_of.Progress


@dataclasses.dataclass(frozen=True)
class Run:
    """What is to be done, and where it is kept."""

    settings: Settings
    plan: Plan
    utilities: tuple[Utility, ...]
    agent: Agent
    config: Any
    delta: float
    out: Path
    head: dict[str, Any]


class _Stopped(Exception):
    """By a signal, after a checkpoint."""


def federate(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Runs a federation; 130 and 143 where it was stopped."""
    known: Mapping[str, Agent] = options.agents()
    settings = read(options.config)
    if settings.algorithm not in known:
        raise Refused(f"no algorithm {settings.algorithm!r}: choose one of {', '.join(known)}")
    out = options.out or Path("runs") / options.config.stem
    if options.out:
        check_folder(out)
    found = to_go_on(out, options.resume, errors, FORMAT)
    out.mkdir(parents=True, exist_ok=True)
    run = prepared(settings, known[settings.algorithm], out, errors)
    began = time.perf_counter()
    try:
        progress, ledgers = _go(run, found, errors)
    except _Stopped as stop:
        number, done = stop.args
        which = signal.Signals(number).name
        errors.print(Text(f"gridjax: {which} after {done} rounds; --resume goes on from there"), soft_wrap=True)
        return 128 + number
    return _close(run, progress, ledgers, time.perf_counter() - began, console, errors)


def prepared(settings: Settings, agent: Agent, out: Path, errors: Console) -> Run:
    """Utilities with their logs, and the plan.

    Raises:
      Refused: a combination that has no claim, or a budget that allows no round.
    """
    utilities = tuple(utility(owner, out, errors) for owner in settings.utilities)
    config = configured(agent, settings)
    samplers = tuple(_sampler(settings, owner.clients) for owner in settings.utilities)
    p = settings.privacy
    inside = p if p is not None and p.unit == "trajectory" else None
    if inside is not None:
        works, own, delta, z = _private_works(settings, inside, utilities, agent, config)
    else:
        works = tuple(
            agent_work(
                agent, config, one.space, steps=settings.steps, batch_size=settings.batch_size, shared=settings.shared
            )
            for one in utilities
        )
        own, (delta, z) = (), _promise(settings, samplers)
    rate = float(getattr(config, "actor_rate", getattr(config, "rate", 0.0)))
    works = tuple(dataclasses.replace(work, prox=settings.prox, rate=rate) for work in works)
    expected = sum(s.expected(owner.clients) for s, owner in zip(samplers, settings.utilities, strict=True))
    central = p if inside is None else None
    federation = Federation(
        works, OPTIMISERS[settings.optimiser](settings.rate), RULES[settings.rule], settings.compression,
        bound=None if central is None else Adaptive() if isinstance(central.bound, str) else central.bound,
        noise_multiplier=0.0 if central is None else z, expected=0.0 if central is None else expected,
        hardened=central is not None and central.randomness == "hardened",
    )  # fmt: skip
    budget = Budget(p.epsilon, delta) if p is not None and math.isfinite(p.epsilon) else None
    plan = Plan(federation, samplers, "zero-out" if p is None else p.adjacency, budget, own)  # type: ignore[arg-type]
    head = {
        "format": FORMAT, "version": checkpoints.VERSION, "settings": _plain(settings), "noise_multiplier": z,
        "data": {one.owner.name: one.data.fingerprint for one in utilities},
        "source": checkpoints.source_version(),
    }  # fmt: skip
    return Run(settings, plan, utilities, agent, config, delta, out, head)


def _sampler(settings: Settings, clients: int) -> Sampler:
    if settings.share == 1:
        return Everyone()
    mean = settings.share * clients
    return Poisson(settings.share, max(1, math.ceil(mean + 4 * math.sqrt(mean))))


def _promise(settings: Settings, samplers: tuple[Sampler, ...]) -> tuple[float, float]:
    """delta, and the noise multiplier: the one asked for, or the least for the budget and all rounds."""
    p = settings.privacy
    if p is None:
        return 0.1 / settings.clients, 0.0
    delta = 0.1 / settings.clients if p.delta is None else p.delta
    if p.noise_multiplier is not None:
        return delta, p.noise_multiplier
    groups = zip(samplers, settings.utilities, strict=True)
    adjacency: Any = p.adjacency
    each, discrete = {(s, owner.clients) for s, owner in groups}, p.randomness == "hardened"
    return delta, max(
        noise_multiplier_for(p.epsilon, delta, settings.rounds, s, n, adjacency, discrete=discrete) for s, n in each
    )


def _private_works(
    settings: Settings, p: Privacy, utilities: tuple[Utility, ...], agent: Agent, config: Any
) -> tuple[tuple[Work, ...], tuple[tuple[Mechanism, int], ...], float, float]:
    """Works whose noise is inside, what each releases in a round, delta, and z of one release.

    The releases of an update see the same trajectories, and count as one of z over the square root of their number.
    """
    bound, adjacency = p.bound, p.adjacency
    assert isinstance(bound, float)
    data = [trajectories(one.batches[0]) for one in utilities]
    numbers = [len(one.length) for one in data]
    delta = 0.1 / max(numbers) if p.delta is None else p.delta
    samplers = [Poisson(p.drawn, min(n, math.ceil(p.drawn * n + 4 * math.sqrt(p.drawn * n)))) for n in numbers]
    each = list(zip(samplers, numbers, strict=True))
    count = max(releases(agent, config, one.space) for one in utilities)
    z = p.noise_multiplier
    if z is None:
        least: list[float] = [
            noise_multiplier_for(p.epsilon, delta, settings.rounds * settings.steps, s, n, adjacency)  # type: ignore[arg-type]
            for s, n in set(each)
        ]
        z = max(least) * math.sqrt(count)
    joint = joint_multiplier(z, count)
    works = tuple(
        private_work(
            agent, config, one.space, steps=settings.steps, sampler=s, shared=settings.shared,
            private=Private(bound, z, p.drawn * n, None if own.equal else one.env.horizon),
        )
        for one, own, (s, n) in zip(utilities, data, each, strict=True)
    )  # fmt: skip
    own = tuple((Mechanism(joint, s, n, adjacency), settings.steps) for s, n in each)  # type: ignore[arg-type]
    return works, own, delta, z


def _go(
    run: Run, found: tuple[Path, dict[str, Any]] | None, errors: Console
) -> tuple[rounds_of.Progress, tuple[Ledger, ...]]:
    """All rounds, from a checkpoint or from the start."""
    settings, plan = run.settings, run.plan
    key = jax.random.key(settings.seed)
    groups = tuple(clients_of(one, run.agent, run.config, key, private=bool(plan.own)) for one in run.utilities)
    first = plan.federation.works[0].part(jax.tree.map(lambda a: a[0], groups[0].state))
    progress, ledgers = rounds_of.start(plan, first, groups), None
    if found is not None:
        path, old = found
        other = [k for k in ("settings", "noise_multiplier", "data") if old.get(k) != run.head[k]]
        if other:
            raise Refused(f"{path} cannot be taken up, it is of another run: other {', '.join(other)}")
        like = jax.eval_shape(lambda: _kept(progress))
        kept = checkpoints.restored(path, like, "this federation").progress
        progress = _with_data(kept, progress)
        ledgers = tuple(Ledger.from_dict(one) for one in old["ledgers"])
        checkpoints.set_aside(run.out, int(progress.server.round))
    rows = Rows(run.out / "rounds.csv", int(progress.server.round))
    with ExitStack() as stack:
        done = int(progress.server.round)
        advance = stack.enter_context(Bar(settings.rounds, done, plan.budget, run.delta, errors))
        caught = stack.enter_context(signals())

        def seen(progress: rounds_of.Progress, ledgers: tuple[Ledger, ...], values: Mapping[str, Any]) -> None:
            done, values = int(progress.server.round), {k: float(v) for k, v in values.items()}
            epsilon = rounds_of.spent(plan, ledgers, run.delta) if plan.private else math.nan
            sent = round_bytes(plan.federation, progress.server, values["present"])
            # Under privacy a round is kept, and so counted for good, before anything shows it.
            due = plan.private or done % settings.every == 0 or done == settings.rounds
            if caught or due:
                held = {**run.head, "ledgers": [ledger.to_dict() for ledger in ledgers]}
                checkpoints.save(run.out, held, _kept(progress), keep=2)
            rows.add(done, {**values, "bound": float(progress.server.bound), "epsilon": epsilon, **sent})
            advance.update(done, epsilon)
            if caught:
                raise _Stopped(caught[0], done)

        noise = fresh_key() if plan.federation.private else None
        return rounds_of.federate(
            plan,
            progress,
            fresh_key() if plan.own else jax.random.fold_in(key, 1),
            noise,
            rounds=settings.rounds,
            ledgers=ledgers,
            seen=seen,
            way=("groups", None),
        )


def _kept(progress: rounds_of.Progress) -> Saved:
    """A checkpoint's content: all but the data, which the utilities hold."""
    groups = tuple(g.replace(data=(), rows=()) for g in progress.groups)  # type: ignore[attr-defined]
    return Saved(progress.server.round[None], progress.replace(groups=groups))  # type: ignore[attr-defined]


def _with_data(kept: rounds_of.Progress, fresh: rounds_of.Progress) -> rounds_of.Progress:
    pairs = zip(kept.groups, fresh.groups, strict=True)
    return kept.replace(groups=tuple(old.replace(data=new.data, rows=new.rows) for old, new in pairs))  # type: ignore[attr-defined]


def statement_of(run: Run, progress: rounds_of.Progress, ledgers: tuple[Ledger, ...]) -> PrivacyStatement:
    """What the run has promised: that of the group whose clients it cost most."""
    federation, done, p = run.plan.federation, int(progress.server.round), run.settings.privacy
    if run.plan.private:
        ledger = max(ledgers, key=lambda one: one.spent(run.delta))
    else:
        bare = Mechanism(0.0, Everyone(), run.settings.clients, run.plan.adjacency)
        ledger = Ledger().after(bare, done)
    if run.plan.own and p is not None:
        return stated(
            ledger, run.delta, unit="trajectory", clip_norm=float(p.bound), released=INSIDE,
            unaccounted=(*UNACCOUNTED[1:], *OF_TRAJECTORIES),
        )  # fmt: skip
    return stated(
        ledger, run.delta, unit="client", clip_norm=float(progress.server.bound),
        adaptive=isinstance(federation.bound, Adaptive), unaccounted=UNACCOUNTED,
    )  # fmt: skip


def _close(
    run: Run,
    progress: rounds_of.Progress,
    ledgers: tuple[Ledger, ...],
    seconds: float,
    console: Console,
    errors: Console,
) -> int:
    """Statement, agents, held-out days, pictures, and the tables on the console."""
    done = int(progress.server.round)
    if done == 0:
        raise Refused("the budget allows no round: take a larger epsilon, fewer rounds or more noise", 1)
    if done < run.settings.rounds:
        errors.print(Text(f"gridjax: the budget is spent after {done} of {run.settings.rounds} rounds"), soft_wrap=True)
    statement = statement_of(run, progress, ledgers)
    (run.out / "statement.json").write_text(statement.to_json(), encoding="utf-8")
    (run.out / "statement.txt").write_text(statement.text(), encoding="utf-8")
    states = tuple(final(run, progress, g) for g in range(len(run.utilities)))
    for one, state in zip(run.utilities, states, strict=True):
        _keep_agent(run, one, state, done)
    rows = [_evaluated(run, one, s, errors) for one, s in zip(run.utilities, states, strict=True) if run.settings.days]
    results = {
        **run.head, "rounds": done, "seconds": seconds, "clients": rows, "delta": run.delta,
        "epsilon": statement.epsilon if statement.claims else None,
        "parameters": sum(int(np.size(a)) for a in jax.tree.leaves(progress.server.shared)),
    }  # fmt: skip
    (run.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    charts.rounds(run.out / "rounds.csv", run.out / "rounds.svg")
    if rows:
        charts.scores(rows, run.out / "scores.svg")
        console.print(_table(run, rows, done, seconds))
    console.print(Text(statement.text()))
    console.print(Text(f"{printable(str(run.out))} holds all of it"), soft_wrap=True)
    return 0


def final(run: Run, progress: rounds_of.Progress, group: int) -> Any:
    """A utility's agent with the shared parameters, (1, ...); of several clients the first one's own parts."""
    state = jax.tree.map(lambda a: a[0], progress.groups[group].state)
    state = run.plan.federation.works[group].join(state, progress.server.shared)
    return jax.tree.map(lambda a: a[None], state)


def _keep_agent(run: Run, one: Utility, state: Any, done: int) -> None:
    """A folder that `gridjax evaluate` takes."""
    of_run = {"seeds": 1, "federation": str(run.out), "rounds": done, "steps": run.settings.steps}
    head = checkpoints.header(
        run.agent,
        run.config,
        one.space,
        jax.random.key(run.settings.seed),
        one.data,
        environment=one.made_by,
        run=of_run,
    )
    checkpoints.save(run.out / one.owner.name, head, state, keep=1)


def _evaluated(run: Run, one: Utility, state: Any, errors: Console) -> dict[str, Any]:
    """A utility's held-out days: the learned policy beside no control."""
    days = run.settings.days
    with errors.status(f"playing {days} days of {one.owner.name}"):
        env, params, keys = held = days_of(one, days)
        figures = played(one, run.agent, run.config, state, held)
        nothing = evaluate_policy(env, params, policies.nothing(env, params), keys)
    mine, none = score(one, figures)[0], score(one, nothing)[0]
    gap = mine - none
    interval = student(gap)
    return {
        "name": one.owner.name, "env": one.made_by["name"], "clients": one.owner.clients, "rows": len(one.data.episode),
        "score": float(mine.mean()), "no_control": float(none.mean()), "gain": float(gap.mean()),
        "gain_half": (interval.high - interval.low) / 2 if len(gap) > 1 else None,
        "violated": (figures["violated"].sum(axis=(0, 1)) / figures["steps"].sum()).tolist()[:-1],
        "violated_no_control": (nothing["violated"].sum(axis=(0, 1)) / nothing["steps"].sum()).tolist()[:-1],
        "days": len(gap),
    }  # fmt: skip


def _table(run: Run, rows: list[dict[str, Any]], done: int, seconds: float) -> Table:
    """Each utility on its held-out days."""
    s = run.settings
    title = f"{run.agent.name}, {done} rounds of {s.steps} updates, {s.clients} clients, {seconds:.0f} s"
    out = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "score", "no control", "gain", "steps violated", "no control"):
        out.add_column(Text(column), justify="right" if column else "left", overflow="fold")
    for r in rows:
        half = f" ± {r['gain_half']:,.4g}" if r["gain_half"] is not None else ""
        shares = (", ".join(f"{100 * v:.3g} %" for v in r[k]) for k in ("violated", "violated_no_control"))
        gain = f"{r['gain']:,.4g}{half}"
        out.add_row(Text(f"{r['name']} ({r['env']})"), f"{r['score']:,.5g}", f"{r['no_control']:,.5g}", gain, *shares)
    return out


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON has it; an infinite epsilon is a text."""
    plain = dataclasses.asdict(settings)
    if settings.privacy is not None and math.isinf(settings.privacy.epsilon):
        plain["privacy"]["epsilon"] = "infinite"
    return json.loads(json.dumps(plain))
