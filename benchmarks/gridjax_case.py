"""One feeder, one precision, all batches of gridjax, in a process of its own so that its memory can be seen.

    python -m benchmarks.gridjax_case '{"name": "ieee13", ...}'

Prints one JSON object a line: the compilation, then each batch. What is timed is the plain
`jax.jit(jax.vmap(gridjax.solve, in_axes=(None, 0)))`, compiled ahead, with loads already on the device, until all
voltages are there. On a processor every core is a device, and batches that they divide are spread over them by
`jax.set_mesh`. Memory is the process's high-water mark after each batch, batches in rising order.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}

if __name__ == "__main__":  # before jax is there
    os.environ["JAX_PLATFORMS"] = PLATFORMS[json.loads(sys.argv[1])["device"]]

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

import gridjax
from benchmarks.cases import cases, factors

TOLERANCE = {"float64": 1e-8, "float32": 1e-6}
SPARE = 0.9  # of the free memory that a run may take


def operating_points(grid: gridjax.Grid, seed: int, batch: int) -> gridjax.OperatingPoint:
    """The first `batch` scenarios."""
    dtype = grid.nominal.load_kw.dtype
    scale = jnp.asarray(factors(seed, batch, grid.nominal.load_kw.shape[0]), dtype)
    point = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), grid.nominal)
    return point.replace(load_kw=point.load_kw * scale, load_kvar=point.load_kvar * scale)


def over_devices(batch: int) -> Sharding | None:
    """How a batch lies on the devices: scenario by scenario if they divide it, None for the first alone."""
    devices = jax.devices()
    if len(devices) == 1 or batch % len(devices):
        return None
    mesh = jax.make_mesh((len(devices),), ("scenarios",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("scenarios"))


def shapes(grid: gridjax.Grid, batch: int, sharding: Sharding | None) -> gridjax.OperatingPoint:
    """Their shapes alone, to compile before anything large exists."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape), a.dtype, sharding=sharding), grid.nominal)


def free_bytes() -> int:
    """Memory that is free on the device, or on the host for the CPU."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    import psutil

    return psutil.virtual_memory().available


def needed_bytes(compiled: Any) -> int:
    """What XLA says that a run takes beside its code."""
    m = compiled.memory_analysis()
    return m.temp_size_in_bytes + m.output_size_in_bytes + m.argument_size_in_bytes


def peak_mib() -> float:
    """The process's high-water mark."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def timed(run: Callable[[], Any], repeats: int, seconds: float, limit_s: float) -> tuple[list[float], Any]:
    """Seconds of each run after a first one, and the result; a long first run is the only one.

    Short runs are repeated for as many seconds as a run of a peer takes.
    """
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    first = time.perf_counter() - start
    if first * repeats > limit_s:
        return [first], result
    times = []
    while len(times) < repeats or sum(times) < seconds:
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times, result


def compiled_seconds(function: Callable, *arguments: Any) -> tuple[float, Any]:
    """Seconds to lower and compile, and the executable."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    return time.perf_counter() - start, compiled


def one_batch(spec: dict, grid: gridjax.Grid, solve: Callable, batch: int) -> dict:
    """The row of one batch; the voltages of its first scenarios go to a file."""
    sharding = over_devices(batch)
    if isinstance(sharding, NamedSharding):
        grid = jax.device_put(grid, NamedSharding(sharding.mesh, PartitionSpec()))
        assert isinstance(sharding.mesh, Mesh)
        with jax.set_mesh(sharding.mesh):
            return on_devices(spec, grid, solve, batch, sharding)
    return on_devices(spec, grid, solve, batch, None)


def on_devices(spec: dict, grid: gridjax.Grid, solve: Callable, batch: int, sharding: Sharding | None) -> dict:
    """The same, once the grid is where the batch will be."""
    row: dict[str, Any] = {"batch": batch, "devices": 1 if sharding is None else len(sharding.device_set)}
    of_batch = shapes(grid, batch, sharding)
    row["jit_seconds"], compiled = compiled_seconds(jax.vmap(solve, in_axes=(None, 0)), grid, of_batch)
    need, free = needed_bytes(compiled), free_bytes()
    if need > SPARE * free:
        return {**row, "not_run": f"memory: {need / 2**30:.0f} GiB needed, {free / 2**30:.0f} GiB free"}
    points = operating_points(grid, spec["seed"], batch)
    points = points if sharding is None else jax.device_put(points, sharding)
    times, flow = timed(lambda: compiled(grid, points), spec["repeats"], spec["seconds"], spec["limit_s"])
    row["us"], row["us_median"] = 1e6 * min(times) / batch, 1e6 * statistics.median(times) / batch
    row["runs"] = len(times)
    row["iterations"] = float(jnp.mean(flow.iterations))
    row["unconverged"] = int(jnp.sum(~flow.converged))
    keep = min(batch, spec["keep"])
    path = Path(spec["folder"]) / f"{spec['name']}_{spec['dtype']}_{batch}.npy"
    np.save(path, np.asarray(flow.v[:keep]))
    row["v"] = str(path)
    row["peak_mib"] = peak_mib()
    if batch in spec["results_batches"]:
        del flow
        row["results"] = with_results(spec, grid, solve, points, of_batch)
    return row


def with_results(spec: dict, grid: gridjax.Grid, solve: Callable, points: Any, of_batch: Any) -> dict:
    """Voltages, all currents at all terminals, and losses."""

    def everything(grid: gridjax.Grid, point: gridjax.OperatingPoint) -> Any:
        flow = solve(grid, point)
        return flow, gridjax.currents(grid, point, flow), gridjax.losses(grid, point, flow)

    seconds, compiled = compiled_seconds(jax.vmap(everything, in_axes=(None, 0)), grid, of_batch)
    batch = of_batch.load_kw.shape[0]
    need, free = needed_bytes(compiled), free_bytes()
    if need > SPARE * free:
        return {"not_run": f"memory: {need / 2**30:.0f} GiB needed, {free / 2**30:.0f} GiB free"}
    times, _ = timed(lambda: compiled(grid, points), spec["repeats"], spec["seconds"], spec["limit_s"])
    return {"jit_seconds": seconds, "us": 1e6 * min(times) / batch, "us_median": 1e6 * statistics.median(times) / batch}


def run(spec: dict) -> None:
    """Measures and prints."""
    jax.config.update("jax_enable_x64", spec["dtype"] == "float64")
    if spec["device"] == "cpu":
        jax.config.update("jax_num_cpu_devices", spec["cores"])
    feeder = cases(spec["seed"])[spec["name"]].make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # doubts about rated voltages in the published data
        start = time.perf_counter()
        grid = jax.block_until_ready(gridjax.compile(feeder, dtype=np.dtype(spec["dtype"])))
        built = time.perf_counter() - start

    def solve(grid: gridjax.Grid, point: gridjax.OperatingPoint) -> gridjax.PowerFlow:
        return gridjax.solve(grid, point, tol=TOLERANCE[spec["dtype"]])

    seconds, compiled = compiled_seconds(solve, grid, grid.nominal)
    times, flow = timed(lambda: compiled(grid, grid.nominal), max(spec["repeats"], 3), spec["seconds"], spec["limit_s"])
    device = jax.devices()[0]
    head = {
        "grid_seconds": built, "jit_seconds": seconds, "latency_us": 1e6 * min(times),
        "latency_us_median": 1e6 * statistics.median(times), "latency_converged": bool(flow.converged),
        "peak_mib": peak_mib(), "device": f"{device.platform}: {device.device_kind}",
    }  # fmt: skip
    print(json.dumps(head), flush=True)
    last = None
    for batch in sorted(spec["batches"]):
        if last is not None and last * batch / 1e6 > spec["limit_s"]:
            text = f"time: {last * batch / 1e6:.0f} s expected, {spec['limit_s']:.0f} s allowed"
            print(json.dumps({"batch": batch, "not_run": text}), flush=True)
            continue
        row = one_batch(spec, grid, solve, batch)
        last = row.get("us", last)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
