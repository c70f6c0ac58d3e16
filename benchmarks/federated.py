"""Utilities that learn together: `python -m benchmarks.federated`; writes docs/federated_results.{md,json,svg}.

Five utilities with feeders of their own (IEEE 13, 34, 37 and 123, and the European low-voltage feeder), each with 12
photovoltaic inverters, 4 batteries and 4 car chargers, log five days of settings that are held for hours, drawn
around the middle of every range; in half of the days devices of one kind move together. They learn one policy for
single devices by TD3+BC, the actor shared, critics at home. *Central* is the upper bound: all learn in step, one
update a round, as one trainer with everybody's data would. *Alone* each learns from its own log, as long and as fast
as the others (2,500 updates, rates that fall to zero along a cosine), and, since that overfits so few days, also
*gently*: half of the updates at a third of the rate; *closed* is the share of the gap between the better of these two
and central. *Untrained* networks act in the middle of every range. The score is the return less priced violations,
over the price of one pu of violation on that feeder, as a mean over held-out days; intervals are Student's over seeds
of the learners (the logs are the same). Noise is that of a client-level promise, the client being a utility: five of
them cannot hide one another, and the table shows it.

The second part has owners of single days of the IEEE 13 feeder as clients, of whom a share is drawn each round; actor
and critics are shared, and the discount is 0, since nobody has more than a day. The actor's rate is a sixth of the
critics', which must be about right before it follows them. *Alone* eight owners learn from their days by the same
numbers, as many updates as a round has, in all rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from algorithms.evaluation import evaluate_policy
from algorithms.td3_bc import TD3_BC
from benchmarks.federated_page import PARTS, page, picture
from benchmarks.powerflow import machine, versions
from federated.accounting import noise_multiplier_for
from federated.aggregation import Mean
from federated.federation import Plan, federate, start
from federated.learning import agent_work
from federated.noise import noise_to_clip
from federated.round import Federation, fed_avg, fed_avg_m
from federated.sampling import Everyone, Poisson
from federated.settings import Owner
from federated.utilities import Utility, clients_of, days_of, played, score, utility
from federated.work import Work
from gridjax.env import policies
from gridjax.env.behaviours import named
from gridjax.env.collection import collect
from gridjax.env.datasets import save
from gridjax.env.tasks import feeder_of, make

FEEDERS = ("ieee13", "ieee34", "ieee37", "ieee123", "european_lv")
FLEET = {"fleet": 12, "batteries": 4, "cars": 4}
RATE = 3e-3
SETTINGS = {"noise": 0.1, "noise_clip": 0.2, "alpha": 10.0, "norm": True, "body": "device"}
EPSILONS = (8.0, 4.0, 2.0, 1.0)
BOUND, CLIENT_BOUND = 0.5, 1.0
HELD: dict[str, Any] = {}  # held-out days of the utilities


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done; `cases` of the second part are owners, the networks' width, and epsilons."""

    feeders: tuple[str, ...] = FEEDERS
    episodes: int = 5
    updates: int = 2500
    steps: int = 20
    batch_size: int = 64
    hidden: tuple[int, ...] = (32, 32)
    days: int = 60
    seeds: int = 3
    private_rounds: int = 40
    clients: int = 1000
    single: int = 8
    drawn: float = 0.2
    client_rounds: int = 15
    client_steps: int = 20
    cases: tuple[tuple[int, int, tuple[float | None, ...]], ...] = (
        (400, 16, (None, *EPSILONS)), (400, 8, (None, 8.0)), (400, 32, (None, 8.0)), (100, 16, (8.0,)),
        (1000, 16, (8.0,)),
    )  # fmt: skip


QUICK = Size(("ieee13", "ieee34"), 4, 6, 3, 16, (4,), 2, 2, 2, 12, 2, 0.5, 2, 2, ((12, 4, (None, 8.0)),))


def logs(name: str, seed: int, episodes: int, place: Path) -> None:
    """Held settings around the middle of every range."""
    options: dict[str, Any] = {"name": name, "seed": seed, "days": 365, **FLEET}
    env, params = make(**options)
    shares = {"holding-middle": 0.5, "holding-each": 0.5}
    made = named(shares, env, params, feeder_of(**options), jax.random.key(seed))
    save(place, collect(env, params, made, jax.random.key(seed), episodes, made_by={**options, "hours": None}))


def utilities(size: Size, folder: Path) -> tuple[Utility, ...]:
    """All with their logs."""
    out = []
    for k, feeder in enumerate(size.feeders):
        place = folder / f"{feeder}.npz"
        logs(f"DerControl-{feeder}-v0", 10 + k, size.episodes, place)
        out.append(utility(Owner(feeder, f"DerControl-{feeder}", str(place)), folder, Console(stderr=True)))
        say(f"{feeder}: logged")
    return tuple(out)


def config(size: Size, updates: int, rate: float = RATE, **more: Any) -> Any:
    """TD3+BC's numbers; rates fall over so many updates."""
    rates = {"rate": rate, "actor_rate": rate, "steps": float(updates)}
    return TD3_BC.config(**{**SETTINGS, "hidden": size.hidden, "discount": 0.9, **rates, **more})


@functools.cache
def work(space: Any, size: Size, steps: int, updates: int, rate: float) -> Work:
    """A utility's; the same object for the same arguments, so that it is compiled once."""
    return agent_work(TD3_BC, config(size, updates, rate), space, steps=steps, batch_size=size.batch_size)


def trained(
    owners: tuple[Utility, ...],
    size: Size,
    seed: int,
    *,
    steps: int,
    updates: int,
    rate: float = RATE,
    optimiser: Any = None,
    noise: float = 0.0,
) -> tuple[Any, ...]:
    """Each utility's agent (1, ...) after this many updates, so many of them a round."""
    key = jax.random.key(seed)
    works = tuple(work(u.space, size, steps, updates, rate) for u in owners)
    federation = Federation(
        works, optimiser or fed_avg(), Mean(), bound=BOUND if noise else None, noise_multiplier=noise,
        expected=float(len(owners)) if noise else 0.0,
    )  # fmt: skip
    plan = Plan(federation, (Everyone(),) * len(owners))
    groups = tuple(clients_of(u, TD3_BC, config(size, updates, rate), key) for u in owners)
    progress = start(plan, works[0].part(first_of(groups[0])), groups)
    noises = jax.random.key(1000 + seed) if noise else None  # a simulation's: it can be made again
    progress, _ = federate(
        plan, progress, jax.random.fold_in(key, 1), noises, rounds=updates // steps, way=("groups", None)
    )
    shared = progress.server.shared
    return tuple(
        jax.tree.map(lambda a: a[None], w.join(first_of(g), shared))
        for w, g in zip(works, progress.groups, strict=True)
    )


def first_of(clients: Any) -> Any:
    """The state of the first client."""
    return jax.tree.map(lambda a: a[0], clients.state)


def scores(owners: tuple[Utility, ...], states: tuple[Any, ...], size: Size, numbers: Any) -> list[dict[str, float]]:
    """Of each utility's held-out days: score over the price, and share of steps that violate the voltage."""
    out = []
    for u, state in zip(owners, states, strict=True):
        figures = played(u, TD3_BC, numbers, state, held(u, size.days))
        out.append(of_figures(u, figures))
    return out


def held(u: Utility, days: int) -> Any:
    """A utility's held-out days, made once."""
    known = HELD.get(u.owner.name)
    if known is None:
        known = HELD[u.owner.name] = days_of(u, days)
    return known


def of_figures(u: Utility, figures: dict[str, np.ndarray]) -> dict[str, float]:
    """Score over the price of 1 pu, and share of steps that violate the voltage limits."""
    violated = figures["violated"][..., 0].sum() / figures["steps"].sum()
    return {"score": float(score(u, figures).mean() / u.price[0]), "violated": float(violated)}


def five(size: Size, owners: tuple[Utility, ...]) -> dict[str, Any]:
    """The first part."""
    none = []
    for u in owners:
        env, params, keys = held(u, size.days)
        none.append(of_figures(u, evaluate_policy(env, params, policies.nothing(env, params), keys)))
    n, few = size.updates, size.private_rounds
    numbers = config(size, n)
    z = {
        e: noise_multiplier_for(e, 0.1 / len(owners), few, Everyone(), len(owners), "zero-out") for e in EPSILONS
    }  # fmt: skip

    def together(steps: int, updates: int = n, **more: Any) -> Any:
        return lambda seed: trained(owners, size, seed, steps=steps, updates=updates, **more)

    def apart(updates: int, rate: float) -> Any:
        return lambda seed: tuple(
            trained((u,), size, seed, steps=size.steps, updates=updates, rate=rate)[0] for u in owners
        )

    arms: dict[str, Any] = {
        "untrained": together(size.steps, 0),
        "central": together(1),
        "FedAvg": together(size.steps),
        "FedAvgM": together(size.steps, optimiser=fed_avg_m(0.3, 0.7)),
        "alone": apart(n, RATE),
        "alone, gently": apart(n // 2, RATE / 3),
        "FedAvg, few rounds": together(size.steps, few * size.steps),
        **{f"FedAvg, few rounds, epsilon {e:g}": together(size.steps, few * size.steps, noise=z[e]) for e in EPSILONS},
    }
    found: dict[str, Any] = {"no control": [none]}
    for name, arm in arms.items():
        begun = time.time()
        found[name] = [scores(owners, arm(seed), size, numbers) for seed in range(size.seeds)]
        say(f"{name}: {np.mean([[r['score'] for r in one] for one in found[name]]):.4f}, {time.time() - begun:.0f} s")
    shared = trained_parameters(owners[0], numbers)
    return {
        "feeders": list(size.feeders),
        "arms": found,
        "noise": {f"{e:g}": z[e] for e in EPSILONS},
        "parameters": shared,
    }


def trained_parameters(u: Utility, numbers: Any, names: tuple[str, ...] = ("actor",)) -> int:
    """How many numbers are shared."""
    state = jax.eval_shape(lambda: TD3_BC.init(jax.random.key(0), numbers, u.space))
    return sum(a.size for name in names for a in jax.tree.leaves(getattr(state, name).params))


def customers(size: Size, folder: Path) -> dict[str, Any]:
    """The second part: owners of one day each."""
    place = folder / "customers.npz"
    logs("DerControl-ieee13-v0", 50, size.clients, place)
    owner = Owner("customers", "DerControl-ieee13", str(place), clients=size.clients)
    u = utility(owner, folder, Console(stderr=True))
    rounds, rows = size.client_rounds, []
    for clients, width, epsilons in size.cases:
        mean, delta = size.drawn * clients, 0.1 / clients
        sampler = Poisson(size.drawn, int(np.ceil(mean + 4 * np.sqrt(mean))))
        own, numbers = of_owners(u, size, width)
        parameters = trained_parameters(u, numbers, ("actor", "critic"))
        for epsilon in epsilons:
            z = noise_multiplier_for(epsilon, delta, rounds, sampler, clients, "zero-out") if epsilon else 0.0
            plan = Plan(
                Federation((own,), fed_avg(), bound=CLIENT_BOUND, noise_multiplier=z, expected=mean), (sampler,)
            )
            some = dataclasses.replace(u, batches=u.batches[:clients])
            seeds = [of_customers(plan, some, numbers, size, seed) for seed in range(size.seeds)]
            row = {
                "clients": clients, "delta": delta, "epsilon": epsilon, "noise_multiplier": z, "width": width,
                "parameters": parameters, "noise_to_clip": noise_to_clip(z, parameters, mean) if z else 0.0,
                "seeds": seeds,
            }  # fmt: skip
            rows.append(row)
            score = np.mean([f["score"] for f in seeds])
            say(f"{clients} owners, {parameters} parameters, epsilon {epsilon}: {score:.4f}")
    env, params, keys = held(u, size.days)
    middle = policies.constant(np.zeros(env.action_size))
    return {
        "rows": rows,
        "no control": of_figures(u, evaluate_policy(env, params, policies.nothing(env, params), keys)),
        "the middle": of_figures(u, evaluate_policy(env, params, middle, keys)), "alone": single(u, size),
    }  # fmt: skip


def of_owners(u: Utility, size: Size, width: int) -> tuple[Work, Any]:
    """An owner's work with networks of this width, and its numbers."""
    numbers = config(size, 0, hidden=(width, width), discount=0.0, actor_rate=RATE / 6)
    shared = ("actor", "critic")
    return agent_work(TD3_BC, numbers, u.space, steps=size.client_steps, batch_size=24, shared=shared), numbers


def single(u: Utility, size: Size) -> list[dict[str, float]]:
    """What owners reach who learn from their day alone, by the numbers of the first case."""
    own, numbers = of_owners(u, size, size.cases[0][1])
    plan = Plan(Federation((own,), fed_avg()), (Everyone(),))
    each = [dataclasses.replace(u, batches=u.batches[k : k + 1]) for k in range(size.single)]
    return [of_customers(plan, one, numbers, size, k) for k, one in enumerate(each)]


def of_customers(plan: Plan, u: Utility, numbers: Any, size: Size, seed: int) -> dict[str, float]:
    """The figures of the policy that the owners learned, and the mean share of updates below the bound."""
    clients, own = clients_of(u, TD3_BC, numbers, jax.random.key(seed)), plan.federation.works[0]
    inside: list[float] = []
    progress, _ = federate(
        plan, start(plan, own.part(first_of(clients)), (clients,)), jax.random.key(2000 + seed),
        jax.random.key(3000 + seed) if plan.federation.private else None, rounds=size.client_rounds,
        way=("groups", None), seen=lambda progress, ledgers, m: inside.append(float(m["inside"])),
    )  # fmt: skip
    state = own.join(first_of(progress.groups[0]), progress.server.shared)
    (figures,) = scores((u,), (jax.tree.map(lambda a: a[None], state),), size, numbers)
    return {**figures, "inside": float(np.mean(inside))}


def say(text: str) -> None:
    """Progress."""
    print(text, flush=True)


def main(words: list[str] | None = None) -> int:
    """Runs both parts."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to try it out")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the page keeps the other")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(words)
    size = QUICK if options.quick else Size()
    size = dataclasses.replace(size, seeds=options.seeds or size.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "federated_results.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() and len(options.parts) < len(PARTS) else {}
    record |= {
        "command": "python -m benchmarks.federated" + (" --quick" if options.quick else ""),
        "made_on": f"{machine()}, {os.cpu_count()} cores, " + ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            begun = time.time()
            made = five(size, utilities(size, Path(folder))) if part == "five" else customers(size, Path(folder))
            record[part] = {**made, "size": dataclasses.asdict(size), "seconds": time.time() - begun}
            file.write_text(json.dumps(record, indent=1) + "\n")
            (options.out / "federated_results.md").write_text(page(record, __doc__ or ""))
    if all(part in record for part in PARTS):
        picture(record, options.out / "federated_results.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
