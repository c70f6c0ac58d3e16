"""What a round costs beside its clients' own work, beside two peers, and with many clients.

    make bench-federated                               # makes .venv-flower; writes docs/federated_speed.{md,json}
    python -m benchmarks.federated_speed               # gridjax alone; writes to demo_out/bench/

The work is the same everywhere: behaviour cloning of made-up rows of 60 observations and 6 actions, K steps of Adam on
batches that follow each other, from the server's weights and with a new optimiser in every round; then the clip, the
mean, Gaussian noise on it and a step of plain averaging. Measured are

  round     the whole round beside the same local steps under the same scan and vmap, without clip, noise, sum and
            server; in turns, the overhead is the median of the turns' ratios. Nothing else is left out: the steps alone
            return the clients' states, which they must keep.
  peers     rounds a second of pfl-research and of Flower's simulation (`benchmarks.federated_peers`). Before any time
            counts, two rounds without noise must give the same weights here and there.
  clients   10 to 10,000 with a small network, each in a process of its own for its memory.

Compiling is apart. A round that does nothing but its matrix products could not be faster than
`benchmarks.offline_speed` finds for them; the page shows that limit too, as no speedup can pass it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.batches import Batch
from algorithms.bc import BC, Config
from algorithms.learning import learner
from algorithms.spaces import plain_space
from benchmarks.federated_speed_page import page
from benchmarks.offline_speed import most, update_products
from benchmarks.powerflow import cores, machine, say, versions
from federated.learning import agents
from federated.round import Cohort, Federation, begin, fed_avg, ready, spread
from federated.work import Clients, Work, local

ROOT = Path(__file__).parent.parent
OBSERVED, ACTIONS = 60, 6
SPACE = plain_space(OBSERVED, (0,) * ACTIONS)
RATE, BOUND, NOISE = 3e-4, 0.1, 1.0
AGREE = 1e-3  # largest distance of the peers' weights from ours, as a share of the way that they went
SHOWN = ("python", "jax", "jaxlib", "numpy")
SIZES = (10, 100, 1_000, 10_000)
ATTEMPTS = 3  # processes of a peer that end together sometimes abort one another


@dataclass(frozen=True)
class Load:
    """What a round has to do: clients, steps of each, rows of a step, hidden layers, and clients side by side."""

    clients: int = 64
    steps: int = 10
    batch: int = 64
    hidden: tuple[int, ...] = (260, 260)
    at_once: int = 4

    @property
    def config(self) -> Config:
        """Of behaviour cloning."""
        return Config(rate=RATE, hidden=self.hidden)

    @property
    def parameters(self) -> int:
        """Numbers that are shared."""
        sizes = (OBSERVED, *self.hidden, ACTIONS)
        return sum((i + 1) * o for i, o in pairwise(sizes)) + ACTIONS


LARGE, SMALL = Load(), Load(hidden=(12, 12), at_once=64)
LOADS = (LARGE, SMALL)
MANY = Load(steps=2, batch=8, hidden=(12, 12), at_once=64)


def rows(load: Load, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations (clients, rows, 60) and actions (clients, rows, 6) of a linear policy, clients much alike."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(load.clients, load.steps * load.batch, OBSERVED)).astype(np.float32)
    gain = rng.normal(size=(OBSERVED, ACTIONS)).astype(np.float32) / 8
    return observation, np.tanh(observation @ gain)


def work(load: Load) -> Work:
    """Steps on batches that follow each other; `state.step` counts a client's steps."""

    def step(key: jax.Array, state: Any, data: Batch, own: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        at = (state.step % load.steps) * load.batch
        batch = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at, load.batch), data)
        return BC.update(key, state, batch, load.config, SPACE)

    def join(state: Any, shared: Any) -> Any:
        return state.replace(actor=learner(shared))

    return Work(step, lambda state: state.actor.params, join, load.steps)


def population(load: Load) -> Clients:
    """New clients."""
    observation, action = rows(load)
    none, one = jnp.zeros(action.shape[1]), jnp.ones(action.shape[1])
    pairs = zip(jnp.asarray(observation), jnp.asarray(action), strict=True)
    # The next observations, which cloning does not look at, are short.
    batches = [Batch(o, a, none, none[:, None], none[:, None], a, one, one, none) for o, a in pairs]
    return agents(BC, load.config, SPACE, batches, jax.random.key(0))


def setting(load: Load, noise: float = NOISE) -> tuple[Federation, Any, tuple[Cohort, ...]]:
    """The federation, its server and all its clients, present."""
    how = Federation(
        (work(load),), fed_avg(), bound=BOUND, noise_multiplier=noise, expected=float(load.clients),
        at_once=load.at_once,
    )  # fmt: skip
    clients = population(load)
    server = begin(how, jax.tree.map(lambda a: a[0], clients.state.actor.params))
    return how, server, (Cohort(ready(how, server, clients), jnp.arange(load.clients), jnp.ones(load.clients)),)


def steps_alone(load: Load) -> Callable[..., Any]:
    """The clients' states after their steps, as many side by side as in a round."""
    what = work(load)
    lanes = max(n for n in range(1, min(load.clients, load.at_once) + 1) if load.clients % n == 0)

    def run(key: jax.Array, server: Any, cohorts: tuple[Cohort, ...]) -> Any:
        def one(client: Clients, number: jax.Array) -> Any:
            _, after, metrics = local(what, jax.random.fold_in(key, number), server.shared, (), client)
            return after.state, metrics

        xs = (cohorts[0].clients, cohorts[0].ids)
        xs = jax.tree.map(lambda a: a.reshape(load.clients // lanes, lanes, *a.shape[1:]), xs)
        return jax.lax.scan(lambda done, x: (done, jax.vmap(one)(*x)), (), xs)[1]

    return run


def compiled(run: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
    """A function ready to run, and the seconds that this took."""
    started = time.perf_counter()
    ready_made = jax.jit(run).lower(*args).compile()
    return ready_made, time.perf_counter() - started


def seconds(run: Callable[..., Any], *args: Any) -> float:
    """Of one run, all its results there."""
    started = time.perf_counter()
    jax.block_until_ready(run(*args))
    return time.perf_counter() - started


def overhead(load: Load, turns: int) -> dict[str, Any]:
    """The whole round beside its local steps, in turns, the first of which does not count."""
    how, server, cohorts = setting(load)
    key, noise = jax.random.key(1), jax.random.key(2)
    alone, alone_s = compiled(steps_alone(load), key, server, cohorts)
    whole, whole_s = compiled(spread(how), key, noise, server, cohorts)
    pairs = [
        (seconds(alone, key, server, cohorts), seconds(whole, key, noise, server, cohorts)) for _ in range(turns + 1)
    ]
    steps, rounds = np.array(pairs[1:]).T
    return {
        **described(load), "compile_steps_s": alone_s, "compile_round_s": whole_s, "turns": turns,
        "steps_s": float(np.median(steps)), "round_s": float(np.median(rounds)),
        "overhead": float(np.median(rounds / steps - 1)), "least": float(min(rounds / steps - 1)),
        "greatest": float(max(rounds / steps - 1)),
    }  # fmt: skip


def peak_mib() -> float:
    """Of this process; the figure of `resource` would be the parent's where that was larger."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    raise RuntimeError("the peak memory is not in /proc/self/status: run this on Linux")


def described(load: Load) -> dict[str, Any]:
    """A load as JSON has it."""
    return {**asdict(load), "parameters": load.parameters}


def rounds(load: Load, count: int, noise: float = NOISE) -> tuple[dict[str, Any], Any]:
    """So many rounds, one after another: their seconds, and the server's parameters afterwards."""
    how, server, cohorts = setting(load, noise)
    key = jax.random.key(3)
    go, compile_s = compiled(spread(how), key, key, server, cohorts)
    found = []
    for k in range(count):
        started = time.perf_counter()
        server, (clients,), _ = jax.block_until_ready(
            go(jax.random.fold_in(key, 2 * k), jax.random.fold_in(key, 2 * k + 1), server, cohorts)
        )
        found.append(time.perf_counter() - started)
        cohorts = (cohorts[0].replace(clients=clients),)  # type: ignore[attr-defined]
    return {"seconds": found, "compile_s": compile_s, "peak_mib": peak_mib()}, server.shared


def plain(params: Any) -> dict[str, np.ndarray]:
    """An actor's weights as torch has them."""
    inner, last = params["params"]["Mlp_0"], params["params"]["Dense_0"]
    layers = [inner[f"Dense_{k}"] for k in range(len(inner))] + [last]
    out = {"log_std": np.asarray(params["params"]["log_std"])}
    for k, layer in enumerate(layers):
        out |= {f"w{k}": np.asarray(layer["kernel"]).T.copy(), f"b{k}": np.asarray(layer["bias"])}
    return out


def distance(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray], first: dict[str, np.ndarray]) -> float:
    """How far two results are apart, as a share of the way from the first weights."""

    def norm(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
        return float(np.sqrt(sum(np.sum((np.asarray(a[k], float) - b[k]) ** 2) for k in ours)))

    return norm(theirs, ours) / norm(ours, first)


def asked(peer: Path, request: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A peer's answer and its weights.

    Raises:
      RuntimeError: it failed, with the end of what it said; of several processes, three times.
    """
    request = {**request, "out": str(folder / "answer")}
    (folder / "request.json").write_text(json.dumps(request))
    command = [str(peer)]
    if request["peer"] == "pfl" and request["processes"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(request["processes"])]
    script = Path(__file__).parent / "federated_peers.py"
    env = {**os.environ, "PYTHONPATH": str(script.parent), "OMP_NUM_THREADS": str(request["threads"])}
    command += [str(script), str(folder / "request.json")]
    for attempt in range(1, ATTEMPTS + 1):
        run = subprocess.run(command, capture_output=True, text=True, env=env)
        if not run.returncode and (folder / "answer.json").exists():
            break
        why = f"{request['peer']} failed:\n{(run.stdout + run.stderr)[-2000:]}"
        if request["processes"] == 1 or attempt == ATTEMPTS:
            raise RuntimeError(why)
        say(f"attempt {attempt} of {ATTEMPTS}: {why}")
    answer = json.loads((folder / "answer.json").read_text())
    (folder / "answer.json").unlink()
    with np.load(folder / "answer.npz") as kept:
        return answer, dict(kept)


def beside(load: Load, peer: Path, count: int) -> dict[str, Any]:
    """Rounds a second of gridjax and of the peers, the first of each left out, after a check of their weights.

    Raises:
      RuntimeError: a peer's weights after two rounds are not ours.
    """
    first = plain(setting(load)[1].shared)
    two = plain(rounds(load, 2, noise=0.0)[1])
    # torch's threads and processes on two cores; Flower has a process for a client at a time.
    ways = (("pfl", 1, 1), ("pfl", 2, 1), ("pfl", 1, 2), ("flower", 1, 2))
    before, out = rounds(load, count)[0], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        observation, action = rows(load)
        archive: dict[str, Any] = {"observation": observation, "action": action, **first}
        np.savez(folder / "data.npz", **archive)
        same: dict[str, Any] = {
            "data": str(folder / "data.npz"), "batch": load.batch, "steps": load.steps, "rate": RATE, "bound": BOUND
        }  # fmt: skip
        for kind, threads, processes in ways:
            say(f"{load.parameters} parameters: {kind}, {processes} x {threads} threads")
            how = {"peer": kind, "threads": threads, "processes": processes}
            gap = distance(asked(peer, {**same, **how, "noise": 0.0, "rounds": 2}, folder)[1], two, first)
            if not gap < AGREE:
                raise RuntimeError(f"{kind}'s weights after two rounds are {gap:.1e} of the way from ours")
            answer = asked(peer, {**same, **how, "noise": NOISE, "rounds": count}, folder)[0]
            out.append({**how, "gap": gap, **answer, "rounds_per_s": 1 / float(np.median(answer["seconds"][1:]))})
    after = rounds(load, count)[0]
    found = before["seconds"][1:] + after["seconds"][1:]
    products = update_products("bc", SPACE, load.hidden, load.batch, {})
    limit = most(products, {})["most_updates_per_s"] / (load.clients * load.steps)
    return {
        **described(load), "rounds": count, "seconds": found, "rounds_per_s": 1 / float(np.median(found)),
        "compile_s": before["compile_s"], "products_rounds_per_s": limit, "peers": out,
    }  # fmt: skip


def sized(clients: int, count: int) -> dict[str, Any]:
    """A number of clients, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.federated_speed", "--clients", str(clients), "--rounds", str(count)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        raise RuntimeError(f"{clients} clients failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout)


def one_size(clients: int, count: int) -> dict[str, Any]:
    """Rounds of so many clients; the first does not count."""
    load = Load(clients, MANY.steps, MANY.batch, MANY.hidden, MANY.at_once)
    found = rounds(load, count + 1)[0]
    return {**described(load), **found, "round_s": float(np.median(found["seconds"][1:]))}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", type=Path, help="a Python that has the peers")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--clients", type=int, help="prints the figures of so many clients, and does nothing else")
    parser.add_argument("--out", type=Path, help="a folder")
    args = parser.parse_args(words)
    if args.clients:
        print(json.dumps(one_size(args.clients, args.rounds)))
        return 0
    out = (args.out or ROOT / ("docs" if args.peer else "demo_out/bench")).resolve()
    given = ["PYTHON" if word == str(args.peer) else word for word in words or sys.argv[1:]]
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.federated_speed", *given]), "machine": machine(),
        "cores": cores(), "versions": {k: v for k, v in versions().items() if k in SHOWN},
        "observations": OBSERVED, "actions": ACTIONS, "rate": RATE, "bound": BOUND, "noise": NOISE,
    }  # fmt: skip
    say("the round beside its local steps")
    record["overheads"] = [overhead(load, args.rounds) for load in LOADS]
    if args.peer:
        record["beside"] = [beside(load, args.peer.absolute(), args.rounds) for load in LOADS]
    say("numbers of clients")
    record["sizes"] = [sized(n, args.rounds) for n in SIZES]
    out.mkdir(parents=True, exist_ok=True)
    (out / "federated_speed.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "federated_speed.md").write_text(page(record))
    print(page(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
