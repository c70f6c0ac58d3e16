"""OpenDSS's engine as the judge of a feeder: the same operating points, solved by it.

Used by `validation.py`, the tests and the demo. Needs the `opendss` extra.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import gridjax
from gridjax.feeder import Feeder


class Oracle:
    """A feeder in the engine, with its controls off.

    Args:
      feeder: written as a script and compiled by a fresh engine context.
      tolerance: the engine's, on the change of voltage in per unit.
    """

    def __init__(self, feeder: Feeder, tolerance: float = 1e-10):
        import dss

        self.feeder = feeder
        self.engine = dss.DSS.NewContext()
        self.engine.AllowChangeDir = False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "feeder.dss"
            gridjax.write_opendss(feeder, path)
            self.command(f'redirect "{path}"')
        for line in ("set controlmode=off", f"set tolerance={tolerance}", "set maxiterations=1000"):
            self.command(line)
        circuit = self.engine.ActiveCircuit
        order = {name.lower(): i for i, name in enumerate(circuit.AllNodeNames)}
        self.order = np.array([order[name] for name in feeder.node_names])
        self.base = np.array([1e3 * b.base_kv for b in feeder.buses for _ in b.nodes])

    def command(self, text: str) -> None:
        """Runs one line of the engine's language; its errors raise."""
        self.engine.Text.Command = text

    def set_point(self, point: gridjax.OperatingPoint) -> None:
        """Writes every load, generator, tap, capacitor state and source voltage."""
        circuit = self.engine.ActiveCircuit
        loads, transformers = circuit.Loads, circuit.Transformers
        kw, kvar = np.asarray(point.load_kw), np.asarray(point.load_kvar)
        for i, load in enumerate(self.feeder.loads):
            loads.Name = load.name
            loads.kW, loads.kvar = float(kw[i]), float(kvar[i])
        for i, g in enumerate(self.feeder.generators):
            self.command(f"edit generator.{g.name} kw={float(point.generation_kw[i])!r}")
            self.command(f"edit generator.{g.name} kvar={float(point.generation_kvar[i])!r}")
        for r, regulator in enumerate(self.feeder.regulators):
            transformers.Name = regulator.transformer
            transformers.Wdg = regulator.winding
            transformers.Tap = float(point.tap[r])
        step = 0
        for bank in self.feeder.capacitors:
            circuit.Capacitors.Name = bank.name
            states = np.asarray(point.capacitor[step : step + len(bank.kvar)])
            if not np.isin(states, (0.0, 1.0)).all():
                raise ValueError(f"capacitor.{bank.name}: the engine knows only whole steps, not {states}")
            circuit.Capacitors.States = states.astype(int)
            step += len(bank.kvar)
        for i, source in enumerate(self.feeder.sources):
            circuit.Vsources.Name = source.name
            circuit.Vsources.pu = float(point.source_pu[i])

    def solve(self, point: gridjax.OperatingPoint | None = None, start: float = 0.0) -> tuple[np.ndarray, bool]:
        """Complex node voltages in per unit, in gridjax's order, and whether the engine converged.

        Args:
          point: the operating point; None leaves the engine's as it is.
          start: 0 starts from the linear solution, another number from the solution with all loads times that. It
            matters where a circuit has several solutions: some load models (3, 4, 6 and 7) jump at vminpu and vmaxpu.
        """
        solution = self.engine.ActiveCircuit.Solution
        if point is not None:
            self.set_point(point)
        for line in ("solve mode=direct", "set mode=snapshot", "set controlmode=off"):
            self.command(line)
        if start:
            for loadmult in (start, 1.0):
                self.command(f"set loadmult={loadmult}")
                solution.Solve()
        solution.Solve()
        volts = np.array(self.engine.ActiveCircuit.AllBusVolts).view(complex)[self.order]
        return volts / self.base, bool(solution.Converged)


def floating_buses(feeder: Feeder) -> set[str]:
    """Buses without a path to ground but the antifloat shunts: secondaries of delta windings with nothing grounded.

    There the zero sequence is set by shunts of 1e-6 of a rating, and by both programs' rounding: compare line to line.
    """
    delta = {w.bus.partition(".")[0] for t in feeder.transformers for w in t.windings[1:] if w.connection == "delta"}
    ends = [t for x in feeder.admittances for t in x.terminals]
    for x in (*feeder.lines, *feeder.switches, *feeder.reactors, *feeder.capacitors):
        ends += [x.bus1, x.bus2 or x.bus1]
    touched = {t.partition(".")[0] for t in ends}
    return delta - touched


def without_zero_sequence(feeder: Feeder, v: np.ndarray, buses: set[str]) -> np.ndarray:
    """The voltages with the mean of the phases taken out at the buses named."""
    v = np.array(v)
    start = 0
    for bus in feeder.buses:
        stop = start + len(bus.nodes)
        if bus.name in buses:
            v[..., start:stop] -= v[..., start:stop].mean(axis=-1, keepdims=True)
        start = stop
    return v
