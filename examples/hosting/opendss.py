"""OpenDSS as the second judge of `hosting_capacity.py`: its own voltages and currents against the same limits.

Needs dss-python when an `Engine` is made. Nothing here calls gridjax's solver.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import gridjax
from gridjax.feeder import Feeder, Transformer

from .feeders import TIE


def as_operated(feeder: Feeder, point: gridjax.OperatingPoint) -> Feeder:
    """The feeder with the point's loads and taps written into its tables."""
    kw, kvar, taps = (np.asarray(a) for a in (point.load_kw, point.load_kvar, point.tap))
    loads = tuple(
        dataclasses.replace(x, kw=float(p), kvar=float(q)) for x, p, q in zip(feeder.loads, kw, kvar, strict=True)
    )
    at = {(r.transformer, r.winding): float(tap) for r, tap in zip(feeder.regulators, taps, strict=True)}
    transformers = tuple(
        dataclasses.replace(
            t,
            windings=tuple(dataclasses.replace(w, tap=at.get((t.name, k), w.tap)) for k, w in enumerate(t.windings, 1)),
        )
        for t in feeder.transformers
    )
    return feeder.replace(loads=loads, transformers=transformers)


class Engine:
    """A feeder in OpenDSS, its controls off.

    Args:
      feeder: its loads, taps and ratings are those of the study; its last `systems` generators are the PV systems.
      systems: how many PV systems there are.
      nodes: (nodes,) whether a node has a voltage limit.
      limit_pu, unbalance_limit: the study's limits.
    """

    def __init__(self, feeder: Feeder, systems: int, nodes: np.ndarray, limit_pu: float, unbalance_limit: float):
        import dss

        self.engine = dss.DSS.NewContext()
        self.engine.AllowChangeDir = False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "feeder.dss"
            gridjax.write_opendss(feeder, path)
            self.command(f'redirect "{path}"')
        for line in ("set controlmode=off", "set tolerance=1e-10", "set maxiterations=1000"):
            self.command(line)
        order = {name.lower(): i for i, name in enumerate(self.engine.ActiveCircuit.AllNodeNames)}
        self.order = np.array([order[name.lower()] for name in feeder.node_names])
        self.base = np.array([1e3 * b.base_kv for b in feeder.buses for _ in b.nodes])
        self.systems = [x.name for x in feeder.generators[len(feeder.generators) - systems :]]
        self.nodes, self.limit_pu, self.unbalance_limit = nodes, limit_pu, unbalance_limit
        self.lines = [(f"line.{x.name}", np.array([x.rating_a or np.inf])) for x in feeder.lines]
        self.transformers = [(f"transformer.{t.name}", rated_amperes(t)) for t in feeder.transformers]
        index = {name: i for i, name in enumerate(feeder.node_names)}
        three = [all(f"{b.name}.{n}" in index for n in (1, 2, 3)) for b in feeder.buses]
        self.phases = np.array(
            [
                [index[f"{b.name}.{n}"] if ok else 0 for n in (1, 2, 3)]
                for b, ok in zip(feeder.buses, three, strict=True)
            ]
        )
        self.three = np.array(three)

    def command(self, text: str) -> None:
        """Runs one line of the engine's language; its errors raise."""
        self.engine.Text.Command = text

    def _loading(self, elements: list[tuple[str, np.ndarray]]) -> np.ndarray:
        """Largest conductor current over rating of each element."""
        circuit, out = self.engine.ActiveCircuit, []
        for name, rating in elements:
            circuit.SetActiveElement(name)
            element = circuit.ActiveCktElement
            amps = np.abs(np.asarray(element.Currents).view(complex)).reshape(element.NumTerminals, -1)
            out.append(np.max(amps.max(axis=1) / rating))
        return np.array(out)

    def judge(self, pv_kw: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, float]:
        """Worst ratio to the limit and its element for each kind, whether converged, and the source's kW.

        Args:
          pv_kw: (systems,) PV power.
        """
        circuit = self.engine.ActiveCircuit
        for name, kw in zip(self.systems, pv_kw, strict=True):
            circuit.Generators.Name = name
            circuit.Generators.kW, circuit.Generators.kvar = float(kw), 0.0
        # Every point from the linear solution, so that none depends on the one before.
        for line in ("solve mode=direct", "set mode=snapshot", "set controlmode=off"):
            self.command(line)
        circuit.Solution.Solve()
        v = np.asarray(circuit.AllBusVolts).view(complex)[self.order] / self.base
        a = np.exp(2j * np.pi / 3)
        positive, negative = (np.abs(v[self.phases] @ np.array([1, w, w**2])) for w in (a, a**2))
        values = (
            np.where(self.nodes, np.abs(v), 0.0) / self.limit_pu,
            self._loading(self.lines),
            self._loading(self.transformers),
            np.where(self.three, negative / positive, 0.0) / self.unbalance_limit,
        )
        ratio = np.array([x.max() for x in values])
        element = np.array([np.argmax(x >= (1 - TIE) * x.max()) for x in values])
        return ratio, element, bool(circuit.Solution.Converged), -float(np.asarray(circuit.TotalPower)[0])


def rated_amperes(transformer: Transformer) -> np.ndarray:
    """Rated line current of each winding: kVA over the phases' voltage."""
    rated = [w.kva / w.kv if transformer.phases == 1 else w.kva / (np.sqrt(3) * w.kv) for w in transformer.windings]
    return np.array(rated)
