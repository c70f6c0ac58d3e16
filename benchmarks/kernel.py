"""What the throughput table does not say: derivatives, Newton, `auto`, many feeders at once; gridjax against itself.

    python -m benchmarks.kernel                # writes docs/kernel.md and docs/kernel.json
    python -m benchmarks.kernel --quick        # a smoke run; writes to demo_out/bench/

One device, float64, 1e-8 pu, every load of every scenario drawn between 50 and 150 %; the best of several runs,
compiling apart. *In batches* is `jax.lax.map(..., batch_size=128)`, in which all that belongs to a scenario stays in
the cache, against the plain `jax.vmap`.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gridjax
from benchmarks.cases import factors
from benchmarks.powerflow import cores, machine, say, versions
from gridjax.feeders import synthetic

CHUNK = 128


def timed(function: Callable, *arguments: Any, repeats: int) -> dict[str, float]:
    """Seconds to trace, lower and compile, and of the best run."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*arguments))
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        runs.append(time.perf_counter() - start)
    return {"compile_s": seconds, "run_s": min(runs)}


def points(grid: gridjax.Grid, batch: int) -> gridjax.OperatingPoint:
    """The nominal point with other loads in each scenario."""
    scale = jnp.asarray(factors(0, batch, grid.nominal.load_kw.shape[0]))
    many = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), grid.nominal)
    return many.replace(load_kw=many.load_kw * scale, load_kvar=many.load_kvar * scale)


def derivatives(name: str, batch: int, repeats: int) -> list[dict]:
    """Value, and value with gradient by all loads' powers, of three scalars."""
    grid = gridjax.compile(gridjax.feeders.load(name))
    many = points(grid, batch)

    def squares(grid, point):
        return jnp.sum(jnp.abs(gridjax.solve(grid, point).v) ** 2)

    def losses(grid, point):
        return gridjax.losses(grid, point, gridjax.solve(grid, point)).real

    def loadings(grid, point):
        rated = gridjax.loading(grid, point, gridjax.solve(grid, point))
        return sum((jnp.sum(a**2) for a in rated.values()), jnp.zeros(()))

    def with_gradient(scalar):
        def both(grid, point):
            def of(kw, kvar):
                return scalar(grid, point.replace(load_kw=kw, load_kvar=kvar))

            return jax.value_and_grad(of, argnums=(0, 1))(point.load_kw, point.load_kvar)

        return both

    def in_batches(function):
        return lambda grid, many: jax.lax.map(lambda point: function(grid, point), many, batch_size=min(CHUNK, batch))

    rows = []
    scalars = ("sum of squared voltages", squares), ("losses", losses), ("sum of squared loadings", loadings)
    for what, scalar in scalars:
        for how, spread in (("vmap", lambda f: jax.vmap(f, in_axes=(None, 0))), ("in batches", in_batches)):
            value = timed(spread(scalar), grid, many, repeats=repeats)
            both = timed(spread(with_gradient(scalar)), grid, many, repeats=repeats)
            rows.append({
                "feeder": name, "scalar": what, "how": how,
                "value_us": 1e6 * value["run_s"] / batch, "with_gradient_us": 1e6 * both["run_s"] / batch,
                "times": both["run_s"] / value["run_s"],
                "value_compile_s": value["compile_s"], "with_gradient_compile_s": both["compile_s"],
            })  # fmt: skip
    return rows


def methods(name: str, batch: int, repeats: int) -> list[dict]:
    """The sweep, Newton and `auto` on the same batch."""
    grid = gridjax.compile(gridjax.feeders.load(name))
    many, rows = points(grid, batch), []
    for method in ("sweep", "newton", "auto"):

        def run(grid, many, method=method):
            return jax.vmap(lambda point: gridjax.solve(grid, point, method=method))(many)

        found = timed(run, grid, many, repeats=repeats)
        flow = jax.jit(run)(grid, many)
        rows.append({
            "feeder": name, "method": method, "us": 1e6 * found["run_s"] / batch, "compile_s": found["compile_s"],
            "iterations": float(flow.iterations.mean()), "converged": int(flow.converged.sum()), "of": batch,
        })  # fmt: skip
    return rows


def many_feeders(count: int, nodes: int, scenarios: int, repeats: int) -> dict:
    """Random feeders stacked, each with scenarios of its own, in one call; and one of them alone."""
    start = time.perf_counter()
    grids = []
    for seed in range(count):
        grids.append(gridjax.compile(synthetic(nodes, seed=seed)))
        if seed % 100 == 99:
            say(f"  {seed + 1} of {count} feeders compiled, {time.perf_counter() - start:.0f} s")
    compiled = time.perf_counter() - start
    stacked = gridjax.stack(grids)

    def each(grid, key):
        scale = jax.random.uniform(key, (scenarios, grid.nominal.load_kw.shape[0]), minval=0.5, maxval=1.5)

        def one(s):
            nominal = grid.nominal
            point = nominal.replace(load_kw=nominal.load_kw * s, load_kvar=nominal.load_kvar * s)
            flow = gridjax.solve(grid, point)
            return jnp.sum(jnp.abs(flow.v)), flow.converged

        return jax.vmap(one)(scale)

    def together(grids, keys):
        return jax.lax.map(lambda a: each(*a), (grids, keys))

    keys = jax.random.split(jax.random.key(0), count)
    several = timed(together, stacked, keys, repeats=repeats)
    alone = timed(each, grids[0], keys[0], repeats=max(repeats, 5))
    _, converged = jax.jit(together)(stacked, keys)
    us = 1e6 * several["run_s"] / (count * scenarios)
    single = 1e6 * alone["run_s"] / scenarios
    return {
        "feeders": count, "nodes": nodes, "scenarios_each": scenarios, "compile_all_s": compiled,
        "jit_s": several["compile_s"], "us": us, "one_feeder_us": single, "throughput_ratio": single / us,
        "not_converged": int((~converged).sum()),
    }  # fmt: skip


def filling(megabytes: int, repeats: int) -> dict:
    """GB/s at which all cores together write memory: the same again and again, and fresh from the system."""
    count, each = cores(), megabytes * 2**20 // 8 // cores()
    kept, rates = [np.empty(each) for _ in range(count)], {}
    for what in ("kept", "fresh"):
        runs = []
        for k in range(repeats + 1):
            start = time.perf_counter()
            parts = kept if what == "kept" else [np.empty(each) for _ in range(count)]
            threads = [threading.Thread(target=part.fill, args=(float(k),)) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            runs.append(time.perf_counter() - start)
        rates[f"{what}_gb_s"] = 8 * each * count / min(runs[1:]) / 1e9
    return {"megabytes": megabytes, "cores": count, **rates}


def table(record: dict) -> str:
    meta = record["meta"]
    made = ", ".join(f"{tool} {meta['versions'][tool]}" for tool in ("python", "jax", "numpy"))
    lines = [
        "# Derivatives, methods, many feeders",
        "",
        f"Written by `{meta['command']}` on {meta['processor']}, one device, {made}; raw figures: "
        "[kernel.json](kernel.json). Float64, 1e-8 pu, batch "
        f"{meta['batch']:,}; microseconds a scenario. *In batches*: `jax.lax.map(..., batch_size={CHUNK})`.",
        "",
        "| feeder | scalar | how | value | with gradient | times | compile, s | with gradient, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in record["derivatives"]:
        lines.append(
            f"| {r['feeder']} | {r['scalar']} | {r['how']} | {r['value_us']:.1f} | {r['with_gradient_us']:.1f} | "
            f"{r['times']:.1f} | {r['value_compile_s']:.1f} | {r['with_gradient_compile_s']:.1f} |"
        )
    lines += ["", "| feeder | method | us | iterations | converged | compile, s |", "|---|---|---|---|---|---|"]
    for r in record["methods"]:
        lines.append(
            f"| {r['feeder']} | {r['method']} | {r['us']:.1f} | {r['iterations']:.1f} | "
            f"{r['converged']} of {r['of']} | {r['compile_s']:.1f} |"
        )
    m, fill = record["many_feeders"], record["filling"]
    lines += [
        "",
        f"{m['feeders']:,} random feeders of {m['nodes']} nodes (`feeders.synthetic`, seeds from 0), compiled in "
        f"{m['compile_all_s']:.0f} s and stacked; {m['scenarios_each']:,} scenarios of each in one call: "
        f"{m['us']:.1f} us a scenario, {m['not_converged']} not converged. One of them alone: "
        f"{m['one_feeder_us']:.1f} us. Throughput against that: {m['throughput_ratio']:.2f}.",
        "",
        f"{fill['cores']} cores together fill {fill['megabytes']} MB of memory that they keep at "
        f"{fill['kept_gb_s']:.1f} GB/s, of fresh memory at {fill['fresh_gb_s']:.1f} GB/s.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="gridjax against itself")
    parser.add_argument("--quick", action="store_true", help="small, one run")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--feeders", type=int, default=1000, help="random feeders")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names, nodes, scenarios = ("ieee123", "european_lv"), 100, 1000
    if args.quick:
        names, nodes, scenarios = ("ieee13",), 30, 10
        args.batch, args.feeders, args.repeats = 16, 3, 1
    out = args.out or Path("demo_out/bench" if args.quick else "docs")
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", UserWarning)
    record: dict[str, Any] = {
        "meta": {
            "command": " ".join(["python -m benchmarks.kernel", *sys.argv[1:]]), "processor": machine(),
            "versions": versions(), "batch": args.batch,
        },
        "derivatives": [], "methods": [],
    }  # fmt: skip
    for name in names:
        say(f"{name}: derivatives")
        record["derivatives"] += derivatives(name, args.batch, args.repeats)
    say(f"{names[0]}: methods")
    record["methods"] = methods(names[0], args.batch, args.repeats)
    say("random feeders")
    record["filling"] = filling(44, 4 * args.repeats)  # the voltages of 1,024 scenarios of European LV
    record["many_feeders"] = many_feeders(args.feeders, nodes, scenarios, 1)
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernel.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "kernel.md").write_text(table(record))
    print(table(record))
    bad = record["many_feeders"]["not_converged"] or any(r["converged"] < r["of"] for r in record["methods"])
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
