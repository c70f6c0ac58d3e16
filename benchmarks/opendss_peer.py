"""OpenDSS's engine as a peer: one core, or all of them with one engine each.

The engine runs controls off and warm-starts from the scenario before. All loads are written anew for each scenario, by
the fastest of three ways, which are timed on the case itself:

- `idx`: `Loads.idx`, `Loads.kW`, `Loads.kvar`, load by load;
- `next`: the same with `Loads.First` and `Loads.Next`;
- `batch`: DSS C-API's `Batch_SetFloat64Array` on the properties kw and kvar of all loads at once, with the flag
  `AvoidFullRecalc`, which makes it do what the `Loads` interface does.

All node voltages are read by `AllBusVolts` as one array.
"""

from __future__ import annotations

import itertools
import multiprocessing as mp
import time
from typing import Any

import numpy as np

from benchmarks.cases import cases, factors, nominal
from benchmarks.oracle import Oracle
from gridjax.feeder import Feeder

AVOID_FULL_RECALC = 2
WAYS = ("batch", "next", "idx")


class Engine:
    """A feeder in the engine, ready to run scenarios."""

    def __init__(self, feeder: Feeder, tolerance: float):
        self.oracle = Oracle(feeder, tolerance=tolerance)
        self.oracle.solve()
        self.kw, self.kvar = nominal(feeder)
        self.circuit = self.oracle.engine.ActiveCircuit
        self._batch()

    def _batch(self) -> None:
        """All loads as one object of the engine's batch interface."""
        engine: Any = self.oracle.engine
        names = [x.name.lower() for x in self.oracle.feeder.loads]
        if list(self.circuit.Loads.AllNames) != names:
            raise RuntimeError(
                f"{self.oracle.feeder.name}: the engine orders the loads otherwise; they cannot be paired"
            )
        self.lib, self.ffi = engine._lib, engine._api_util.ffi
        pointer, size = self.ffi.new("void***"), self.ffi.new("int32_t[4]")
        self.lib.Batch_CreateByClassS(pointer, size, b"Load")
        self.batch, self.count = pointer[0], size[0]
        self.circuit.SetActiveElement(f"load.{names[0]}")
        properties = [p.lower() for p in self.circuit.ActiveCktElement.AllPropertyNames]
        self.property = [properties.index(p) + 1 for p in ("kw", "kvar")]

    def write(self, way: str, scale: np.ndarray) -> None:
        """Writes kW and kvar of every load."""
        loads, kw, kvar = self.circuit.Loads, self.kw * scale, self.kvar * scale
        if way == "batch":
            for number, values in zip(self.property, (kw, kvar), strict=True):
                array = self.ffi.from_buffer("double[]", values)
                self.lib.Batch_SetFloat64Array(self.batch, self.count, number, array, AVOID_FULL_RECALC)
        elif way == "next":
            _ = loads.First
            for p, q in zip(kw.tolist(), kvar.tolist(), strict=True):
                loads.kW, loads.kvar = p, q
                _ = loads.Next
        else:
            for k, (p, q) in enumerate(zip(kw.tolist(), kvar.tolist(), strict=True), 1):
                loads.idx = k
                loads.kW, loads.kvar = p, q

    def run(self, way: str, scales: np.ndarray, keep: int = 0) -> tuple[float, np.ndarray]:
        """Seconds for all scenarios, and the voltages of the first `keep` in gridjax's order.

        Raises:
          RuntimeError: the engine did not converge.
        """
        solution, kept = self.circuit.Solution, []
        start = time.perf_counter()
        for i, scale in enumerate(scales):
            self.write(way, scale)
            solution.Solve()
            volts = self.circuit.AllBusVolts
            if i < keep:
                kept.append(np.array(volts).view(complex)[self.oracle.order] / self.oracle.base)
        seconds = time.perf_counter() - start
        if not solution.Converged:
            raise RuntimeError(f"{self.oracle.feeder.name}: OpenDSS did not converge: its time does not count")
        return seconds, np.array(kept)

    def fastest(self, scales: np.ndarray) -> tuple[str, dict[str, float]]:
        """The fastest way of writing loads, and the microseconds a scenario of each."""
        times = {way: 1e6 * min(self.run(way, scales)[0] for _ in range(2)) / len(scales) for way in WAYS}
        return min(times, key=times.__getitem__), times


def measure(feeder: Feeder, name: str, seed: int, repeats: int, seconds: float, cores: int, keep: int) -> dict:
    """Both rows of OpenDSS, and the voltages of the first scenarios.

    Args:
      feeder: the case's.
      name: the case's, from which other processes make the feeder again.
      seed: of the scenarios.
      repeats: runs, of which the best counts.
      seconds: about how long one run may take.
      cores: processes for the second row.
      keep: scenarios whose voltages are returned as "v".
    """
    engine = Engine(feeder, tolerance=1e-8)
    loads = len(feeder.loads)
    few = factors(seed, 8, loads)
    way, ways = engine.fastest(few[:4])
    count = int(min(max(seconds / (1e-6 * ways[way]), keep, 4), 1024))
    scales = factors(seed, count, loads)
    runs = [engine.run(way, scales) for _ in range(repeats)]
    engine.oracle.command("set tolerance=1e-10")  # for the comparison alone
    v = engine.run(way, scales[:keep], keep)[1]
    one = 1e6 * min(t for t, _ in runs) / count
    out = {"scenarios": count, "way": way, "ways_us": ways, "one_core_us": one, "cores": cores, "v": v}
    if cores > 1:
        out["all_cores_us"] = _parallel(name, seed, way, max(count, 2 * cores), cores, repeats)
    return out


def _work(pipe: Any, name: str, seed: int, way: str, share: slice, count: int) -> None:
    feeder = cases(seed)[name].make()
    engine = Engine(feeder, tolerance=1e-8)
    scales = factors(seed, count, len(feeder.loads))[share]
    engine.run(way, scales[:1])
    pipe.send("ready")
    while pipe.recv() == "go":
        engine.run(way, scales)
        pipe.send("done")


def _parallel(name: str, seed: int, way: str, count: int, cores: int, repeats: int) -> float:
    """Microseconds a scenario with one engine a core, the scenarios split among them; building is not counted."""
    context = mp.get_context("spawn")
    edges = np.linspace(0, count, cores + 1).astype(int)
    workers = []
    for a, b in itertools.pairwise(edges.tolist()):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, name, seed, way, slice(a, b), count))
        process.start()
        theirs.close()
        workers.append((ours, process))
    try:
        for pipe, _ in workers:
            pipe.recv()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            for message in ("go", None):
                for pipe, _ in workers:
                    if message:
                        pipe.send(message)
                    else:
                        pipe.recv()
            times.append(time.perf_counter() - start)
        for pipe, _ in workers:
            pipe.send("stop")
    except EOFError:
        raise RuntimeError(f"{name}: an OpenDSS process ended early; its error is printed above") from None
    finally:
        for pipe, process in workers:
            pipe.close()
            process.join()
    return 1e6 * min(times) / count
