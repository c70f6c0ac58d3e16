"""Photovoltaic inverters on a shipped feeder, and OpenDSS's InvControl beside gridjax's.

Shared by `volt_var_dispatch.py` and `droop_tuning.py`. Set-points x are reactive powers in per unit of each inverter's
rating s, positive when injected; an inverter that delivers p has room for `|x| <= sqrt(1 - (p/s)^2)` (active power
goes first). The droop of IEEE 1547-2018, 5.3.3, is the piecewise linear function through (V1, Q1), (V2, 0), (V3, 0)
and (V4, -Q4) of the mean of the terminal's phase voltages, in per unit of the inverter's rated voltage. Inverters rest
where droop and power flow agree: `gridjax.control.regulation`.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

import gridjax
from gridjax.control.fleet import add_fleet
from gridjax.control.regulation import inverters as settings_of
from gridjax.control.settings import Inverters, Rule, replace_volt_var
from gridjax.feeder import Feeder, split_terminal

# IEEE 1547-2018, table 8: V1, V2, V3, V4 in per unit, Q1 injected and Q4 absorbed in per unit of the rating.
CATEGORY_A = (0.90, 1.00, 1.00, 1.10, 0.25, 0.25)
CATEGORY_B = (0.92, 0.98, 1.02, 1.08, 0.44, 0.44)
NO_CONTROL = (0.92, 0.98, 1.02, 1.08, 0.0, 0.0)
# Installed peak power over the feeder's rated load. The European customers' rated load is 1 kW, a roof's peak about 4.
PENETRATION = {"ieee13": 0.6, "ieee123": 1.0, "european_lv": 2.2}
HIGHEST_TAP = 1.0125  # of regulators: two steps up
OFF_LOAD_TAP = 0.975  # 252 V without load, as published, leaves 1 V below EN 50160's limit; this leaves 7
RATING = 1.1  # kVA over peak kW: at full sun an inverter keeps sqrt(1.1^2 - 1)/1.1 = 0.42 for reactive power


@flax.struct.dataclass
class Fleet:
    """The inverters of a feeder; each array has one row an inverter, in the order of `feeder.pv_systems`.

    Attributes:
      peak_kw: (m,) power at full sun.
      kva: (m,) rating s.
      nodes: (m, 3) nodes of the terminal; one-phase inverters repeat theirs.
    """

    peak_kw: jax.Array
    kva: jax.Array
    nodes: jax.Array


def place(feeder: Feeder, seed: int, share: float = 0.5) -> tuple[Feeder, Fleet]:
    """Puts inverters at a seeded choice of the grounded-wye loads, and regulators at most at `HIGHEST_TAP`.

    The published taps suit full load without generation; with them a lightly loaded feeder violates the limits right
    behind its regulators, where no inverter can help.

    Args:
      feeder: one of those in `PENETRATION`.
      seed: of the choice and of the sizes, which spread by a factor of three.
      share: of those loads that get an inverter.

    Returns:
      The feeder with `pv_systems`, and the fleet.

    Raises:
      ValueError: a feeder without a known penetration.
    """
    if feeder.name not in PENETRATION:
        raise ValueError(f"no penetration is known for {feeder.name!r}: choose one of {', '.join(PENETRATION)}")
    at = [load.name for load in feeder.loads if load.connection == "wye" and load.bus.endswith(".0")]
    count = max(2, round(share * len(at)))
    placed = add_fleet(feeder, seed, count=count, penetration=PENETRATION[feeder.name], rating=RATING, at=at)
    peak, kva = (jnp.asarray([getattr(pv, k) for pv in placed.pv_systems]) for k in ("pmpp_kw", "kva"))
    number = {name: i for i, name in enumerate(feeder.node_names)}
    terminals = [split_terminal(pv.bus) for pv in placed.pv_systems]
    nodes = [([number[f"{bus}.{n}"] for n in phases if n] * 3)[:3] for bus, phases in terminals]
    return lower_taps(placed), Fleet(peak, kva, jnp.asarray(nodes))


def lower_taps(feeder: Feeder) -> Feeder:
    """The feeder with its regulators' taps at most at `HIGHEST_TAP`, and the European transformer one step down."""
    highest = {(r.transformer, r.winding): HIGHEST_TAP for r in feeder.regulators}
    if feeder.name == "european_lv":
        highest[feeder.transformers[0].name, 2] = OFF_LOAD_TAP
    transformers = []
    for t in feeder.transformers:
        windings = tuple(
            dataclasses.replace(w, tap=min(w.tap, highest.get((t.name, k), w.tap))) for k, w in enumerate(t.windings, 1)
        )
        transformers.append(dataclasses.replace(t, windings=windings))
    return feeder.replace(transformers=tuple(transformers))


def limits(feeder: Feeder) -> tuple[jax.Array, jax.Array, str]:
    """Voltage limits of all nodes, (nodes,) each in per unit of the node's base, and their source.

    EN 50160:2010 allows 90 to 110 % of 230 V (and of the declared medium voltage) where customers have 230 V; ANSI
    C84.1-2020, range A, 95 to 105 %.
    """
    base = np.array([bus.base_kv for bus in feeder.buses for _ in bus.nodes])
    if feeder.name != "european_lv":
        return jnp.full(len(base), 0.95, float), jnp.full(len(base), 1.05, float), "ANSI C84.1 range A, 0.95 to 1.05 pu"
    declared = jnp.asarray(np.where(base < 1.0, 0.23 / base, 1.0))
    return 0.9 * declared, 1.1 * declared, "EN 50160, 230 V +-10 %"


def with_setpoints(fleet: Fleet, point: gridjax.OperatingPoint, x: jax.Array) -> gridjax.OperatingPoint:
    """The point with the inverters' reactive powers, x (m,) in per unit of the ratings."""
    return dataclasses.replace(point, generation_kvar=x * fleet.kva)


def room(fleet: Fleet, point: gridjax.OperatingPoint) -> jax.Array:
    """The largest |x| that the ratings leave beside the active power, (m,)."""
    return jnp.sqrt(jnp.maximum(1.0 - (point.generation_kw / fleet.kva) ** 2, 0.0))


def volt_var(feeder: Feeder, grid: gridjax.Grid, curve: tuple[float, ...] = CATEGORY_B) -> Inverters:
    """All inverters on one droop, active power first: the settings for `gridjax.control.regulation.regulate`."""
    return with_droop(settings_of(feeder, grid, Rule(priority="active")), jnp.asarray(curve))


def with_droop(settings: Inverters, curve: jax.Array) -> Inverters:
    """The settings with other droops: V1, V2, V3, V4, Q1, Q4 in (m, 6) or (6,)."""
    zero = jnp.zeros_like(curve[..., 4])
    return replace_volt_var(settings, curve[..., :4], jnp.stack([curve[..., 4], zero, zero, -curve[..., 5]], axis=-1))


class InvControl:
    """OpenDSS's engine with the same inverters under its own InvControl; its regulators rest.

    Args:
      feeder: with `pv_systems`.
      curve: V1, V2, V3, V4, Q1, Q4 of volt-var for all inverters; None for none.
      volt_watt: V1, V2, P1, P2 of volt-watt for all inverters, P in per unit of the peak power; None for none.
    """

    def __init__(
        self, feeder: Feeder, curve: tuple[float, ...] | None, volt_watt: tuple[float, ...] | None = None
    ) -> None:
        from dss import DSS

        self.feeder, self.engine = feeder, DSS.NewContext()
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "feeder.dss"
            gridjax.write_opendss(feeder, script)
            self._run(f'redirect "{script}"')
        for regulator in feeder.regulators:
            self._run(f"edit regcontrol.{regulator.name} enabled=no")
        for control in feeder.capacitor_controls:
            self._run(f"edit capcontrol.{control.name} enabled=no")
        modes = []
        if curve is not None:
            v1, v2, v3, v4, q1, q4 = curve
            corners = f"xarray=[0.5 {v1} {v2} {v3} {v4} 1.5] yarray=[{q1} {q1} 0 0 -{q4} -{q4}]"
            self._run(f"new xycurve.droop npts=6 {corners}")
            modes.append("vvc_curve1=droop refreactivepower=VARMAX deltaq_factor=0.4")
        if volt_watt is not None:
            v1, v2, p1, p2 = volt_watt
            self._run(f"new xycurve.watts npts=4 xarray=[0.5 {v1} {v2} 1.5] yarray=[{p1} {p1} {p2} {p2}]")
            modes.append("voltwatt_curve=watts voltwattyaxis=PMPPPU deltap_factor=0.4")
        kind = "combimode=VV_VW" if len(modes) == 2 else "mode=VOLTVAR" if curve is not None else "mode=VOLTWATT"
        names = " ".join(f"pvsystem.{pv.name}" for pv in feeder.pv_systems)
        self._run(
            f"new invcontrol.fleet derlist=[{names}] {kind} {' '.join(modes)} voltage_curvex_ref=rated "
            "voltagechangetolerance=1e-8 varchangetolerance=1e-8 activepchangetolerance=1e-8"
        )
        for line in ("controlmode=static", "maxcontroliter=2000", "tolerance=1e-10", "maxiterations=1000"):
            self._run(f"set {line}")
        order = {name.lower(): i for i, name in enumerate(self.engine.ActiveCircuit.AllNodeNames)}
        self._order = [order[name.lower()] for name in feeder.node_names]
        self._base = np.array([1e3 * bus.base_kv for bus in feeder.buses for _ in bus.nodes])

    def _run(self, text: str) -> None:
        self.engine.Text.Command = text

    def solve(self, point: gridjax.OperatingPoint) -> tuple[np.ndarray, np.ndarray, float]:
        """Solves one scenario with the control.

        Returns:
          Set-points x (m,) in per unit of the ratings, node voltages (nodes,) complex pu in gridjax's order, and losses
          in kW.

        Raises:
          RuntimeError: the engine's power flow or its control loop did not converge.
        """
        circuit = self.engine.ActiveCircuit
        for load, kw, kvar in zip(self.feeder.loads, point.load_kw, point.load_kvar, strict=True):
            circuit.Loads.Name = load.name
            circuit.Loads.kW, circuit.Loads.kvar = float(kw), float(kvar)
        for pv, kw in zip(self.feeder.pv_systems, point.generation_kw, strict=True):
            self._run(f"edit pvsystem.{pv.name} irradiance={float(kw) / pv.pmpp_kw!r} kvar=0")
        self._run("solve")
        if not circuit.Solution.Converged or circuit.Solution.ControlIterations >= 2000:
            raise RuntimeError(f"{self.feeder.name}: OpenDSS's InvControl did not settle")
        kvar = []
        for pv in self.feeder.pv_systems:
            circuit.SetActiveElement(f"pvsystem.{pv.name}")
            kvar.append(-float(np.sum(circuit.ActiveCktElement.Powers[1::2])))
        v = np.asarray(circuit.AllBusVolts).view(complex)[self._order] / self._base
        ratings = np.array([pv.kva for pv in self.feeder.pv_systems])
        return np.array(kvar) / ratings, v, float(np.asarray(circuit.Losses).view(float)[0]) / 1e3


def provenance(command: str, seed: int) -> dict:
    """What a file of figures says about its making."""
    return {
        "command": command,
        "seed": seed,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} core(s) used, {jax.default_backend()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "gridjax": gridjax.__version__,
    }
