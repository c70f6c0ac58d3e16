"""Offline learning beside d3rlpy (T. Seno and M. Imai, JMLR 2022): the same data, the same settings, the same judges.

    make bench-d3rlpy                # makes .venv-d3rlpy; writes docs/offline_peer.{md,json,svg}
    .venv/bin/python -m benchmarks.offline_rl --quick      # 50 updates, to see that it runs; writes to --out

Implicit Q-learning, conservative Q-learning, TD3+BC and behaviour cloning, each on two grid tasks and a pendulum. Every
part (a task, an algorithm, a side) is kept in --out as it is done, with what was asked of it: a run that was killed
goes on where it was when it is started again with the same arguments. --only runs some parts; the page is then made of
all that are there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from algorithms.training import train
from benchmarks import d3rlpy_peer
from benchmarks.offline_page import page, plot
from benchmarks.offline_speed import most, update_products, updates_per_s
from benchmarks.offline_tasks import TASKS, Task, peer_arrays, task_of

FOLDER = Path(__file__).parent.parent
HIDDEN, BATCH, SEEDS = (256, 256), 256, 5
# In gridjax's names; benchmarks/d3rlpy_peer.py has d3rlpy's for each.
SETTINGS: dict[str, dict[str, Any]] = {
    "iql": {
        "discount": 0.99, "polyak": 0.005, "rate": 3e-4, "actor_rate": 3e-4, "expectile": 0.7, "temperature": 3.0,
    },
    "cql": {
        "discount": 0.99, "polyak": 0.005, "rate": 3e-4, "actor_rate": 3e-4, "weight": 5.0, "samples": 4,
    },
    "td3_bc": {
        "discount": 0.99, "polyak": 0.005, "rate": 3e-4, "actor_rate": 3e-4, "alpha": 2.5, "noise": 0.2,
        "noise_clip": 0.5, "delay": 2,
    },
    "bc": {"rate": 3e-4},
}  # fmt: skip
# Ours alone: what makes an algorithm the one that d3rlpy has.
OURS: dict[str, dict[str, Any]] = {"iql": {"steps": 1e12}, "cql": {}, "td3_bc": {}, "bc": {}}
UPDATES = {"iql": 2000, "cql": 300, "td3_bc": 2000, "bc": 2000}
CHUNK = {"iql": 500, "cql": 50, "td3_bc": 500, "bc": 2000}  # updates of one measurement of speed, about


def agent_of(algorithm: str) -> tuple[Any, Any]:
    """Our agent, and its config with the shared settings."""
    agent = getattr(importlib.import_module(f"algorithms.{algorithm}"), algorithm.upper())
    return agent, agent.config(hidden=HIDDEN, **SETTINGS[algorithm], **OURS[algorithm])


def part(path: Path, asked: dict[str, Any], made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is kept at a path, if the same was asked; else it is made and kept."""
    asked = json.loads(json.dumps(asked))
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["asked"] == asked:
            return kept
    started = time.perf_counter()
    out = {"asked": asked, **made(), "wall_s": time.perf_counter() - started}
    part_way = path.with_suffix(".part")
    part_way.write_text(json.dumps(out, indent=1) + "\n")
    part_way.rename(path)
    print(f"{path.stem}: {out['wall_s']:.0f} s", flush=True)
    return out


def ours(task: Task, algorithm: str, updates: int) -> dict[str, Any]:
    """All seeds side by side; the first of ten chunks compiles and is not timed."""
    agent, config = agent_of(algorithm)
    at: list[tuple[int, float]] = []
    every = max(1, updates // 10)
    states = train(
        agent, config, task.space, task.batch, jax.random.key(0), updates=updates, seeds=SEEDS, every=every,
        batch_size=BATCH, seen=lambda done, states, metrics: at.append((done, time.perf_counter())),
    )  # fmt: skip
    (first, began), (last, ended) = at[0], at[-1]
    speed = SEEDS * (last - first) / (ended - began)
    return {"updates_per_s": speed, "returns": task.judged(agent, config, states).tolist()}


def request(task: Task, algorithm: str, asked: argparse.Namespace, name: str, **more: Any) -> list[str]:
    """Writes what the peer is asked for; the command that asks."""
    data = asked.out / f"peer-data-{task.name}-{asked.rows}.npz"
    if not data.exists():
        arrays: dict[str, Any] = dict(peer_arrays(task))
        np.savez(data.with_suffix(".part.npz"), **arrays)
        data.with_suffix(".part.npz").rename(data)
    out = asked.out / name
    wanted = {
        "data": str(data), "algorithm": algorithm, "settings": SETTINGS[algorithm], "hidden": list(HIDDEN),
        "batch_size": BATCH, "out": str(out), **more,
    }  # fmt: skip
    path = asked.out / f"{name}.request"
    path.write_text(json.dumps(wanted, indent=1) + "\n")
    return [str(asked.peer), str(Path(d3rlpy_peer.__file__)), str(path)]


def theirs(task: Task, algorithm: str, updates: int, asked: argparse.Namespace) -> dict[str, Any]:
    """The peer's seeds, one after another, with torch's threads on all cores; its actors judged here."""
    name = f"answer-{task.name}-{algorithm}"
    seeds = list(range(SEEDS))
    subprocess.run(
        request(task, algorithm, asked, name, updates=updates, seeds=seeds, threads=asked.threads), check=True
    )
    answer = json.loads((asked.out / f"{name}.json").read_text())
    if answer["transitions"] != len(task.batch.reward):
        raise ValueError(f"d3rlpy took {answer['transitions']} transitions of {len(task.batch.reward)}")
    if answer["largest_gap_of_actions"] > 1e-5:
        raise ValueError(f"the peer's weights do not act as it does: {answer['largest_gap_of_actions']:.1e} apart")
    with np.load(asked.out / f"{name}.npz") as kept:
        count = len(kept.files) // SEEDS
        weights = [[kept[f"{seed}/{k}"] for k in range(count)] for seed in seeds]
    speed = SEEDS * updates / sum(answer["seconds"])
    return {**answer, "updates_per_s": speed, "returns": task.judged_peer(weights).tolist()}


def speed(task: Task, algorithm: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Updates a second of both and of the machine's products, in turns on the same machine."""
    agent, config = agent_of(algorithm)

    def here(seeds: int) -> float:
        chunk = max(2, round(CHUNK[algorithm] * asked.seconds / 10 / seeds))
        return updates_per_s(agent, config, task.space, task.batch, seeds=seeds, chunk=chunk, batch_size=BATCH)

    products = update_products(algorithm, task.space, HIDDEN, BATCH, SETTINGS[algorithm])
    known: dict[Any, float] = {}
    before = most(products, {}, 0.015 * asked.seconds)
    one, ten = here(1), here(10)
    peer = {threads: _peers_speed(task, algorithm, asked, 1, threads) for threads in (1, 2)}
    after = most(products, known, 0.015 * asked.seconds)
    bound = max(before, after, key=lambda b: b["most_updates_per_s"])
    return {
        "one_seed": one, "ten_seeds": ten, "ten_over_ten_single": one / ten, **bound,
        "products": [[*product, count, known[product]] for product, count in products.items()],
        "peer_1_thread": peer[1], "peer_2_threads": peer[2],
        "peer_2_processes": _peers_speed(task, algorithm, asked, 2, 1),
    }  # fmt: skip


def _peers_speed(task: Task, algorithm: str, asked: argparse.Namespace, processes: int, threads: int) -> float:
    """The peer's updates a second, of all processes together."""
    names = [f"speed-{algorithm}-{k}" for k in range(processes)]
    settings = dict(seconds=asked.seconds, threads=threads)
    running = [subprocess.Popen(request(task, algorithm, asked, name, **settings)) for name in names]
    if any(process.wait() for process in running):
        raise RuntimeError(f"d3rlpy failed with {algorithm}: its message stands above")
    return sum(json.loads((asked.out / f"{name}.json").read_text())["updates_per_s"] for name in names)


def parts(asked: argparse.Namespace) -> dict[str, Any]:
    """All parts asked for, made or kept, {name: part}; those of other runs in the folder are left out."""
    out: dict[str, Any] = {}
    tasks = cache(lambda name: task_of(name, asked.rows, asked.episodes, asked.out))

    def want(name: str, settings: dict[str, Any], made: Callable[[], dict[str, Any]]) -> None:
        wanted = all(word in name for word in asked.only)
        path = asked.out / f"{name}.json"
        if wanted or path.exists():
            out[name] = part(path, settings, made) if wanted else json.loads(path.read_text())

    for algorithm in asked.algorithms:
        updates = asked.updates or round(UPDATES[algorithm] * asked.share)
        common = {"settings": SETTINGS[algorithm], "rows": asked.rows, "hidden": HIDDEN, "batch_size": BATCH}
        training = {**common, "updates": updates, "seeds": SEEDS, "episodes": asked.episodes}
        for name in asked.tasks:
            want(
                f"theirs-{name}-{algorithm}", training | {"threads": asked.threads},
                lambda a=algorithm, n=name, u=updates: theirs(tasks(n), a, u, asked),
            )  # fmt: skip
            want(
                f"ours-{name}-{algorithm}", training | OURS[algorithm],
                lambda a=algorithm, n=name, u=updates: ours(tasks(n), a, u),
            )  # fmt: skip
        want(
            f"speed-{asked.tasks[0]}-{algorithm}", common | {"seconds": asked.seconds},
            lambda a=algorithm: speed(tasks(asked.tasks[0]), a, asked),
        )  # fmt: skip
    out["tasks"] = {name: tasks(name).facts | {"rows": len(tasks(name).batch.reward)} for name in asked.tasks}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=FOLDER / ".venv-d3rlpy/bin/python", help="d3rlpy's Python")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--algorithms", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--only", nargs="*", default=[], help="words of the parts to make: ours, theirs, speed, a task")
    parser.add_argument("--updates", type=int, default=None, help=f"of each seed; default {UPDATES} by --share")
    parser.add_argument("--share", type=float, default=1.0, help="of the default updates")
    parser.add_argument("--rows", type=int, default=24_000, help="transitions of each data set, about")
    parser.add_argument("--episodes", type=int, default=100, help="that each actor is judged by")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of speed, about")
    parser.add_argument("--threads", type=int, default=2, help="of torch in training")
    parser.add_argument("--out", type=Path, default=FOLDER / "demo_out/offline_rl", help="the parts' folder")
    parser.add_argument("--docs", type=Path, default=None, help="default: docs, with --quick the parts' folder")
    parser.add_argument("--note", default="", help="a sentence for the page, on what else the machine did")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    if asked.quick:
        asked.updates, asked.rows, asked.episodes, asked.seconds = asked.updates or 50, 2_400, 10, 1.0
    docs = asked.docs or (asked.out if asked.quick else FOLDER / "docs")
    asked.out.mkdir(parents=True, exist_ok=True)
    asked.out = asked.out.resolve()
    made = parts(asked)
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.offline_rl", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"python": platform.python_version(), **_versions(made)},
        "note": asked.note,
        "seeds": SEEDS, "hidden": HIDDEN, "batch_size": BATCH,
        "settings": SETTINGS, "ours_alone": OURS, "peers_alone": d3rlpy_peer.FIXED,
        "algorithms": asked.algorithms, **made,
    }  # fmt: skip
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "offline_peer.json").write_text(json.dumps(record, indent=1) + "\n")
    (docs / "offline_peer.md").write_text(page(record))
    plot(record, docs / "offline_peer.svg")
    print(page(record))


def _versions(made: dict[str, Any]) -> dict[str, str]:
    here = {name: version(name) for name in ("gridjax", "jax", "flax", "gymnasium")}
    answers = [p["versions"] for p in made.values() if "versions" in p]
    return here | {f"{name} (d3rlpy's)" if name == "numpy" else name: v for a in answers for name, v in a.items()}


if __name__ == "__main__":
    main()
