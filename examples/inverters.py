"""Photovoltaic inverters on a shipped feeder, their volt-var droop, and OpenDSS's InvControl beside it.

Shared by `volt_var_dispatch.py` and `droop_tuning.py`. Set-points x are reactive powers in per unit of each inverter's
rating s, positive when injected; an inverter that delivers p has room for `|x| <= sqrt(1 - (p/s)^2)` (active power goes
first). The droop of IEEE 1547-2018, 5.3.3, is the piecewise linear function through (V1, Q1), (V2, 0), (V3, 0) and
(V4, -Q4) of the mean u of the terminal's phase voltages, in per unit of the inverter's rated voltage. With u itself a
function of x through the power flow, an inverter rests at the fixed point

    x = h(u(x); curve),          d x = (1 - D S)^-1 (dh/dcurve) dcurve,     D = dh/du,  S = du/dx,

whose derivative is taken by the implicit function theorem.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

import gridjax
from gridjax.feeder import Feeder, PVSystem, split_terminal

# IEEE 1547-2018, table 8: V1, V2, V3, V4 in per unit, Q1 injected and Q4 absorbed in per unit of the rating.
CATEGORY_A = (0.90, 1.00, 1.00, 1.10, 0.25, 0.25)
CATEGORY_B = (0.92, 0.98, 1.02, 1.08, 0.44, 0.44)
NO_CONTROL = (0.92, 0.98, 1.02, 1.08, 0.0, 0.0)
# Installed peak power over the feeder's rated load. The European customers' rated load is 1 kW, a roof's peak about 4.
PENETRATION = {"ieee13": 0.6, "ieee123": 1.0, "european_lv": 2.2}
HIGHEST_TAP = 1.0125  # of regulators: two steps up
OFF_LOAD_TAP = 0.975  # 252 V without load, as published, leaves 1 V below EN 50160's limit; this leaves 7
GAP = 1e-8  # at a fixed point, in per unit of a rating
RATING = 1.1  # kVA over peak kW: at full sun an inverter keeps sqrt(1.1^2 - 1)/1.1 = 0.42 for reactive power


@flax.struct.dataclass
class Fleet:
    """The inverters of a feeder; each array has one row an inverter, in the order of `feeder.pv_systems`.

    Attributes:
      peak_kw: (m,) power at full sun.
      kva: (m,) rating s.
      nodes: (m, 3) nodes of the terminal; one-phase inverters repeat theirs.
      ratio: (m,) the bus's base voltage over the inverter's rated voltage.
    """

    peak_kw: jax.Array
    kva: jax.Array
    nodes: jax.Array
    ratio: jax.Array


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
    rng = np.random.default_rng(seed)
    loads = [load for load in feeder.loads if load.connection == "wye" and load.bus.endswith(".0")]
    chosen = np.sort(rng.choice(len(loads), max(2, round(share * len(loads))), replace=False))
    size = rng.uniform(0.5, 1.5, len(chosen))
    peak = PENETRATION[feeder.name] * sum(load.kw for load in feeder.loads) * size / size.sum()
    number = {name: i for i, name in enumerate(feeder.node_names)}
    base = {bus.name: bus.base_kv for bus in feeder.buses}
    systems, nodes, ratio = [], [], []
    for i, (k, kw) in enumerate(zip(chosen, peak, strict=True)):
        at = loads[k]
        bus, phases = split_terminal(at.bus)
        here = [number[f"{bus}.{n}"] for n in phases if n]
        nodes.append((here * 3)[:3])
        ratio.append(base[bus] * (np.sqrt(3) if at.phases > 1 else 1.0) / at.kv)
        pv = PVSystem(f"pv{i}", at.bus, at.phases, "wye", at.kv, RATING * float(kw), float(kw), watt_priority=True)
        # They run at any irradiance, and at constant power at any voltage met here.
        systems.append(dataclasses.replace(pv, cut_in_percent=0.0, cut_out_percent=0.0, vmin_pu=0.5, vmax_pu=1.5))
    fleet = Fleet(*map(jnp.asarray, (peak, RATING * peak, nodes, ratio)))
    return lower_taps(feeder).replace(pv_systems=tuple(systems)), fleet


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


def terminal_voltages(fleet: Fleet, v: jax.Array) -> jax.Array:
    """Mean phase-voltage magnitude at each inverter, (m,) in per unit of its rated voltage."""
    return jnp.mean(jnp.abs(v[fleet.nodes]), axis=1) * fleet.ratio


def droop(curve: jax.Array, u: jax.Array, largest: jax.Array) -> jax.Array:
    """The reactive power that the curve asks for, (m,).

    Args:
      curve: (m, 6) V1, V2, V3, V4, Q1, Q4; V1 < V2 <= V3 < V4.
      u: (m,) terminal voltages.
      largest: (m,) room for reactive power.
    """
    v1, v2, v3, v4, q1, q4 = curve.T
    injected = q1 * jnp.clip((v2 - u) / (v2 - v1), 0.0, 1.0)
    absorbed = q4 * jnp.clip((u - v3) / (v4 - v3), 0.0, 1.0)
    return jnp.clip(injected - absorbed, -largest, largest)


def curves(fleet: Fleet, curve: Any) -> jax.Array:
    """One curve for all inverters, (m, 6)."""
    return jnp.tile(jnp.asarray(curve, fleet.kva.dtype), (fleet.kva.shape[0], 1))


def sensitivity(grid: gridjax.Grid, fleet: Fleet, step: float = 0.05) -> jax.Array:
    """du/dx at the nominal point without reactive power, (m, m), by central differences in one batch.

    It hardly changes from scenario to scenario and serves as a preconditioner, so its error costs iterations only.
    """
    idle = dataclasses.replace(grid.nominal, generation_kw=0.5 * fleet.peak_kw)

    def voltages(x):
        return terminal_voltages(fleet, gridjax.solve(grid, with_setpoints(fleet, idle, x)).v)

    steps = step * jnp.eye(fleet.kva.shape[0])
    u = jax.jit(jax.vmap(voltages))(jnp.concatenate([steps, -steps]))
    ahead, behind = jnp.split(u, 2)
    return (ahead - behind).T / (2 * step)


def _refine(matvec: Callable[[jax.Array], jax.Array], right: jax.Array, near: jax.Array) -> jax.Array:
    """Solves `matvec(z) = right` to 1e-8 by refinement with the nearby matrix `near`."""

    def body(carry):
        z, residual, count = carry
        z = z + jnp.linalg.solve(near, residual[:, None])[:, 0]
        return z, right - matvec(z), count + 1

    def going(carry):
        return (jnp.max(jnp.abs(carry[1])) > 1e-8 * jnp.max(jnp.abs(right))) & (carry[2] < 30)

    return jax.lax.while_loop(going, body, (jnp.zeros_like(right), right, jnp.zeros((), jnp.int32)))[0]


def settle(
    grid: gridjax.Grid, fleet: Fleet, point: gridjax.OperatingPoint, curve: jax.Array, near: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the droop and the power flow agree, in one scenario; without derivatives (see `droop_setpoints`).

    Semismooth Newton (L. Qi and J. Sun, 1993) with `near` for S; the step is halved where the gap does not shrink.

    Args:
      grid: with the inverters.
      fleet: the inverters.
      point: loads and active powers; its reactive generation is ignored.
      curve: (m, 6), see `droop`.
      near: du/dx or close to it, from `sensitivity`.

    Returns:
      Set-points x (m,), the gap that is left in per unit of a rating, and the number of power flows.
    """
    largest = room(fleet, point)

    def body(carry):
        x, last, step, count = carry
        asked, slope = _droop_and_slope(curve, _voltages_at(grid, fleet, point, x), largest)
        gap = jnp.max(jnp.abs(asked - x))
        step = jnp.where(gap > 0.9 * last, jnp.maximum(step / 2, 1 / 16), 1.0)
        further = step * jnp.linalg.solve(jnp.eye(x.shape[0]) - slope[:, None] * near, (asked - x)[:, None])[:, 0]
        return jnp.where(gap <= GAP, x, x + further), gap, step, count + 1

    def going(carry):
        return (carry[1] > GAP) & (carry[3] < 60)

    infinite = jnp.asarray(jnp.inf, fleet.kva.dtype)
    begin = (jnp.zeros_like(fleet.kva), infinite, jnp.ones_like(infinite), jnp.zeros((), jnp.int32))
    x, gap, _, count = jax.lax.while_loop(going, body, begin)
    return x, gap, count


def _voltages_at(grid: gridjax.Grid, fleet: Fleet, point: gridjax.OperatingPoint, x: jax.Array) -> jax.Array:
    """u(x), (m,)."""
    return terminal_voltages(fleet, gridjax.solve(grid, with_setpoints(fleet, point, x), tol=1e-10).v)


def _droop_and_slope(curve: jax.Array, u: jax.Array, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h(u) and the diagonal of D, (m,) each."""
    return jax.jvp(lambda u: droop(curve, u, largest), (u,), (jnp.ones_like(u),))


def droop_setpoints(
    grid: gridjax.Grid, fleet: Fleet, point: gridjax.OperatingPoint, curve: jax.Array, near: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `settle`, with the derivative by the curve: set-points x (m,), and the gap that is left.

    Guarantees:
      x has the derivative of the fixed point with respect to `curve`, forward and reverse, away from the curve's
      corners and where the gap is at most `GAP`. The grid and the point count as constants.
    """
    grid, point, fixed_curve = jax.lax.stop_gradient((grid, point, curve))
    x, gap, _ = jax.lax.stop_gradient(settle(grid, fleet, point, fixed_curve, near))
    linearized: Any = jax.linearize(lambda x: _voltages_at(grid, fleet, point, x), x)
    u, du_dx = linearized
    largest = room(fleet, point)
    _, slope = _droop_and_slope(fixed_curve, u, largest)
    matrix = jnp.eye(x.shape[0]) - slope[:, None] * near
    # x + z with (1 - D S) z = h(u, curve) - h(u, curve as a constant): z is 0, and has the derivative that we want.
    z = jax.lax.custom_linear_solve(
        lambda d: d - slope * du_dx(d),
        droop(curve, u, largest) - droop(fixed_curve, u, largest),
        lambda f, b: _refine(f, b, matrix),
        lambda f, b: _refine(f, b, matrix.T),
    )
    return x + z, gap


class InvControl:
    """OpenDSS's engine with the same inverters under its own InvControl in VOLTVAR mode; its regulators rest.

    Args:
      feeder: with `pv_systems`.
      curve: V1, V2, V3, V4, Q1, Q4 for all inverters.
    """

    def __init__(self, feeder: Feeder, curve: tuple[float, ...]) -> None:
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
        v1, v2, v3, v4, q1, q4 = curve
        self._run(f"new xycurve.droop npts=6 xarray=[0.5 {v1} {v2} {v3} {v4} 1.5] yarray=[{q1} {q1} 0 0 -{q4} -{q4}]")
        names = " ".join(f"pvsystem.{pv.name}" for pv in feeder.pv_systems)
        self._run(
            f"new invcontrol.fleet derlist=[{names}] mode=VOLTVAR vvc_curve1=droop voltage_curvex_ref=rated "
            "refreactivepower=VARMAX deltaq_factor=0.4 voltagechangetolerance=1e-8 varchangetolerance=1e-8"
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
