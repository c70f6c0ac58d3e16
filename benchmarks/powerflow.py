"""Throughput of batched power flows beside OpenDSS, power-grid-model, pandapower and lightsim2grid.

    python -m benchmarks.powerflow                  # everything; writes docs/powerflow.md, .json and the plots
    python -m benchmarks.powerflow --quick          # a smoke run; writes to demo_out/bench/
    python -m benchmarks.powerflow --device gpu     # the same with gridjax on a GPU or TPU

Every scenario has its own loads (50 to 150 % each), all of them written anew for every scenario, and all node voltages
are read. All tools solve the same scenarios to 1e-8 pu (gridjax in float32: to 1e-6 pu). Before any time counts, the
first scenarios must agree between all tools to 1e-6 pu (float32: 1e-5 pu) in every batch; if they do not, nothing is
written and the exit status is 1. Times are the best of several runs; compiling is apart.

`benchmarks.gridjax_case` says what is timed of gridjax, `benchmarks.opendss_peer` and `benchmarks.peers` how the others
are run, `benchmarks.cases` which circuits they share.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import opendss_peer, peers
from benchmarks.cases import Case, cases
from benchmarks.gridjax_case import PLATFORMS
from benchmarks.oracle import floating_buses, without_zero_sequence
from benchmarks.record import plots, table
from gridjax.feeder import Feeder

AGREE = {"float64": 1e-6, "float32": 1e-5}
QUICK = ("ieee13", "ieee123_equivalent", "baran_wu33")
TOOLS = (
    "jax",
    "jaxlib",
    "numpy",
    "dss-python",
    "dss-python-backend",
    "power-grid-model",
    "pandapower",
    "lightsim2grid",
)
ROOT = Path(__file__).parent.parent


class DisagreementError(Exception):
    """Tools differ, or one did not solve: no time counts."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


def run_gridjax(case: Case, dtype: str, args: argparse.Namespace, folder: str) -> dict:
    """All batches in a process of their own.

    Raises:
      DisagreementError: the process failed for another reason than memory.
    """
    if args.device == "tpu" and dtype == "float64":
        return {"dtype": dtype, "rows": [{"batch": b, "not_run": "no complex128 on a TPU"} for b in args.batches]}
    spec = {
        "name": case.name, "seed": args.seed, "dtype": dtype, "batches": args.batches, "repeats": args.repeats,
        "results_batches": args.results_batches, "keep": args.check, "folder": folder, "limit_s": args.limit,
        "device": args.device, "cores": args.cores, "seconds": args.seconds,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.gridjax_case", json.dumps(spec)]
    # The caller's PYTHONPATH stays; the package may be installed or lie beside this file.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    memory = done.returncode in (-9, 137)
    if done.returncode and not memory:
        raise DisagreementError(f"{case.name}, {dtype}: the process ended with status {done.returncode}; see above")
    head, rows = (lines[0], lines[1:]) if lines else ({}, [])
    missing = sorted(set(args.batches) - {r["batch"] for r in rows})
    rows += [{"batch": b, "not_run": "memory: the process was killed"} for b in missing]
    return {"dtype": dtype, **head, "rows": rows}


def check(case: str, what: str, ours: np.ndarray, theirs: np.ndarray, limit: float) -> float:
    """The largest difference in pu.

    Raises:
      DisagreementError: it is beyond the limit.
    """
    count = min(len(ours), len(theirs))
    gap = float(np.abs(ours[:count] - theirs[:count]).max())
    if not gap <= limit:
        raise DisagreementError(f"{case}: {what} differ by {gap:.1e} pu, more than {limit:.0e}: no time counts")
    return gap


def optional(run: Callable[[], dict], package: str) -> dict:
    """A peer's figures, or that it is not there."""
    try:
        return run()
    except ImportError as error:
        return {"not_run": f"{package} is not installed (extra `bench`): {error}"}


def run_peers(case: Case, feeder: Feeder, args: argparse.Namespace) -> dict[str, dict]:
    """The peers that can express the case, with their voltages as "v"."""
    out: dict[str, dict] = {}
    batch = min(args.peer_batch, max(4, 20_000_000 // (8 * len(feeder.node_names))))
    many = (args.seed, batch, args.repeats, args.cores, args.check)
    if case.opendss:
        say(f"{case.name}: OpenDSS")
        out["opendss"] = opendss_peer.measure(
            feeder, case.name, args.seed, args.repeats, args.seconds, args.cores, args.check
        )
    if case.power_grid_model:
        say(f"{case.name}: power-grid-model")
        out["power-grid-model"] = optional(lambda: peers.measure_power_grid_model(feeder, *many), "power-grid-model")
    if case.balanced:
        say(f"{case.name}: pandapower, lightsim2grid")
        few = (args.seed, max(args.check, min(batch, 64)), args.repeats, args.check)
        out["pandapower"] = optional(lambda: peers.measure_pandapower(feeder, *few), "pandapower")
        out["lightsim2grid"] = optional(lambda: peers.measure_lightsim2grid(feeder, *many), "lightsim2grid")
    return out


def measure(case: Case, args: argparse.Namespace) -> dict:
    """All figures of one case.

    Raises:
      DisagreementError: two tools differ, or a scenario did not converge.
    """
    feeder = case.make()
    found = run_peers(case, feeder, args)
    floating = floating_buses(feeder)
    reference = without_zero_sequence(feeder, found["opendss"].pop("v"), floating)
    gaps = {}
    for name, peer in found.items():
        if "v" in peer:
            ours = reference if name == "power-grid-model" else reference[:, _first_phases(feeder)]
            theirs = peer.pop("v")
            if name == "power-grid-model":
                theirs = without_zero_sequence(feeder, theirs, floating)
            gaps[name] = check(case.name, f"OpenDSS and {name}", ours, theirs, AGREE["float64"])
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in args.dtypes:
            say(f"{case.name}: gridjax, {dtype}")
            run = run_gridjax(case, dtype, args, folder)
            for row in run["rows"]:
                if row.get("unconverged"):
                    text = f"{case.name}: {row['unconverged']} of {row['batch']} scenarios did not converge in {dtype}"
                    raise DisagreementError(text)
                if "v" in row:
                    ours = without_zero_sequence(feeder, np.load(row.pop("v")), floating)
                    row["gap_pu"] = check(case.name, f"gridjax {dtype} and OpenDSS", ours, reference, AGREE[dtype])
            runs.append(run)
    return {
        "feeder": case.name, "nodes": len(feeder.node_names), "buses": len(feeder.buses), "loads": len(feeder.loads),
        "gaps_to_opendss_pu": gaps, "gridjax": runs, **found,
    }  # fmt: skip


def _first_phases(feeder: Feeder) -> np.ndarray:
    """The nodes of phase 1, one a bus."""
    return np.array([i for i, n in enumerate(n for b in feeder.buses for n in b.nodes) if n == 1])


def machine() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """What is installed."""
    out = {"python": platform.python_version()}
    for tool in TOOLS:
        try:
            out[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            out[tool] = "not installed"
    return out


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line; `--quick` changes the defaults, not what is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small feeders, small batches, one run")
    parser.add_argument("--feeders", nargs="+", choices=list(cases(0)), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, metavar="N")
    parser.add_argument("--results-batches", nargs="*", type=int, metavar="N", help="where currents and losses are too")
    parser.add_argument("--dtypes", nargs="+", choices=list(AGREE), default=list(AGREE))
    parser.add_argument("--device", choices=list(PLATFORMS), default="cpu", help="for gridjax")
    parser.add_argument("--repeats", type=int, help="runs, of which the best counts")
    parser.add_argument(
        "--seconds", type=float, help="of a run of OpenDSS, and of all runs of one batch of gridjax at least"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one batch of gridjax may take")
    parser.add_argument("--peer-batch", type=int, help="scenarios for the other peers")
    parser.add_argument("--check", type=int, default=3, help="scenarios compared")
    parser.add_argument("--cores", type=int, default=cores(), help="for the peers; at most those of this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    full = dict(feeders=list(cases(0)), batches=[1, 64, 1024, 16384], repeats=5, seconds=5.0, peer_batch=1024)
    quick = dict(feeders=list(QUICK), batches=[1, 16], repeats=1, seconds=0.05, peer_batch=16)
    for key, value in (quick if args.quick else full).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.results_batches is None:
        args.results_batches = [16] if args.quick else [64, 1024]
    args.out = args.out or Path("demo_out/bench" if args.quick else "docs")
    if min(args.batches) < 1 or args.repeats < 1 or args.check < 1 or args.cores < 1:
        parser.error("batches, repeats, check and cores must be at least 1")
    return args


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark."""
    args = arguments(words)
    known, rows, text = cases(args.seed), [], ""
    for name in args.feeders:
        try:
            rows.append(measure(known[name], args))
        except (DisagreementError, RuntimeError, ValueError) as error:
            say(f"error: {error}")
            return 1
        text = write(rows, args, sys.argv[1:] if words is None else words)  # what is measured is not lost
    print(text)
    return 0


def write(rows: list[dict], args: argparse.Namespace, given: list[str]) -> str:
    """Writes the record, its table and its plots; returns the table."""
    record: dict[str, Any] = {
        "meta": {
            "command": shlex.join(["python", "-m", "benchmarks.powerflow", *given]),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "processor": machine(), "cores": args.cores, "device": rows[0]["gridjax"][0].get("device", args.device),
            "seed": args.seed, "repeats": args.repeats, "versions": versions(),
        },
        "cases": rows,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(record)
    (args.out / "powerflow.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "powerflow.md").write_text(text)
    plots(record, args.out)
    return text


if __name__ == "__main__":
    raise SystemExit(main())
