"""Throughput of batched power flows beside OpenDSS: writes docs/powerflow.md and the raw figures beside it.

Every scenario has its own loads (50 to 150 %, keyed), all written anew, and all node voltages are read. OpenDSS runs
on one core through its compiled API (controls off, warm start from the scenario before, loads written through
`Loads`); gridjax runs `jax.jit(jax.vmap(gridjax.solve, in_axes=(None, 0)))` on whatever device JAX has. Before any
time counts, both tools solve the same scenario and must agree to 1e-6 pu. Compile and run time are apart; times are
the best of several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import gridjax
from benchmarks.oracle import Oracle, floating_buses, without_zero_sequence

FEEDERS = ("ieee13", "ieee34", "ieee37", "ieee123", "european_lv", "ieee8500")
TOLERANCE = {"float64": 1e-8, "float32": 1e-6}


def draw(grid: gridjax.Grid, key: jax.Array, count: int) -> gridjax.OperatingPoint:
    """Scenarios of independent loads between 50 and 150 %."""
    nominal = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), grid.nominal)
    scale = jax.random.uniform(key, nominal.load_kw.shape, minval=0.5, maxval=1.5).astype(nominal.load_kw.dtype)
    return nominal.replace(load_kw=nominal.load_kw * scale, load_kvar=nominal.load_kvar * scale)


def time_opendss(oracle: Oracle, points: gridjax.OperatingPoint, count: int) -> tuple[float, np.ndarray]:
    """Seconds a scenario, and the last scenario's voltages; loads are written one by one, voltages read at once."""
    circuit, loads = oracle.engine.ActiveCircuit, oracle.engine.ActiveCircuit.Loads
    kw, kvar = np.asarray(points.load_kw, float), np.asarray(points.load_kvar, float)
    oracle.command("set tolerance=1e-8")
    oracle.solve(jax.tree.map(lambda a: a[0], points))
    start = time.perf_counter()
    for i in range(count):
        for k in range(kw.shape[1]):
            loads.idx = k + 1
            loads.kW, loads.kvar = kw[i, k], kvar[i, k]
        circuit.Solution.Solve()
        volts = circuit.AllBusVolts
    seconds = (time.perf_counter() - start) / count
    return seconds, np.array(volts).view(complex)[oracle.order] / oracle.base


def measure(name: str, batch: int, repeats: int, seed: int) -> dict:
    """All figures of one feeder."""
    feeder = gridjax.feeders.load(name)
    row: dict = {"feeder": name, "nodes": len(feeder.node_names), "loads": len(feeder.loads), "batch": batch}
    oracle = Oracle(feeder, tolerance=1e-8)
    for dtype in ("float64", "float32"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubts about rated voltages in the published data
            start = time.perf_counter()
            grid = gridjax.compile(feeder, dtype=dtype)
            built = time.perf_counter() - start
        points = draw(grid, jax.random.key(seed), batch)
        tol = TOLERANCE[dtype]
        run = jax.jit(jax.vmap(lambda g, p, t=tol: gridjax.solve(g, p, tol=t), in_axes=(None, 0)))
        start = time.perf_counter()
        compiled = run.lower(grid, points).compile()
        compile_seconds = time.perf_counter() - start
        flow = jax.block_until_ready(compiled(grid, points))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(grid, points))
            times.append(time.perf_counter() - start)
        if not bool(jnp.all(flow.converged)):
            raise RuntimeError(f"{name}: {int(jnp.sum(~flow.converged))} scenarios did not converge in {dtype}")
        if dtype == "float64":
            count = max(3, min(batch, int(40000 / len(feeder.node_names))))
            seconds, theirs = time_opendss(oracle, points, count)
            row["opendss_us"] = 1e6 * seconds
            row["opendss_scenarios"] = count
            checked = count - 1
        ours = without_zero_sequence(feeder, np.asarray(flow.v[checked]), floating_buses(feeder))
        gap = np.abs(ours - without_zero_sequence(feeder, theirs, floating_buses(feeder))).max()
        if gap > (1e-6 if dtype == "float64" else 1e-5):
            raise RuntimeError(f"{name}: {dtype} differs from OpenDSS by {gap:.1e} pu: no time counts")
        row[dtype] = {
            "grid_seconds": built,
            "compile_seconds": compile_seconds,
            "us": 1e6 * min(times) / batch,
            "iterations": float(jnp.mean(flow.iterations)),
            "gap_pu": float(gap),
            "ratio": row["opendss_us"] / (1e6 * min(times) / batch),
        }
    return row


def table(rows: list[dict], meta: dict) -> str:
    """The rows as Markdown."""
    out = [
        "# Throughput beside OpenDSS\n",
        f"Written by `make bench` (`{meta['command']}`) on {meta['machine']}, Python {meta['python']}, "
        f"JAX {meta['jax']}, dss-python {meta['dss']}. Raw figures: [powerflow.json](powerflow.json).\n",
        "Microseconds a scenario, every load rewritten, all node voltages read. OpenDSS: one core, compiled API, "
        "tolerance 1e-8. gridjax: plain `jit(vmap(solve))`, tolerance 1e-8 (float64) and 1e-6 (float32); compile time "
        "is apart. Both agree to 1e-6 pu (float64) and 1e-5 (float32) on the last scenario timed.\n",
        "| feeder | nodes | batch | OpenDSS, us | float64, us | times | float32, us | times | sweeps | compile, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        d, f = r["float64"], r["float32"]
        out.append(
            f"| {r['feeder']} | {r['nodes']} | {r['batch']} | {r['opendss_us']:.0f} | {d['us']:.1f} | {d['ratio']:.1f} "
            f"| {f['us']:.1f} | {f['ratio']:.1f} | {d['iterations']:.1f} "
            f"| {d['grid_seconds']:.1f} + {d['compile_seconds']:.1f} |"
        )
    return "\n".join(out) + "\n"


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--feeders", nargs="*", default=list(FEEDERS))
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    import dss

    rows = []
    for name in args.feeders:
        rows.append(measure(name, args.batch, args.repeats, args.seed))
        print(json.dumps(rows[-1]), flush=True)
    meta = {
        "command": f"python -m benchmarks.powerflow --batch {args.batch} --repeats {args.repeats} --seed {args.seed}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "dss": dss.__version__,
    }
    args.out.mkdir(exist_ok=True)
    (args.out / "powerflow.md").write_text(table(rows, meta))
    (args.out / "powerflow.json").write_text(json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n")
    print(table(rows, meta))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
