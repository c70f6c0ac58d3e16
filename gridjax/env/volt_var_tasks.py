"""Volt-VAR tasks on feeders: which batteries stand where, weights, and how they are made.

The batteries' places, ratings and weights are those of powergym's systems (Fan, Lee and Wang, 2022; its Battery.csv and
environment table), so that results compare. The clean tasks keep places and ratings, at each bus's own voltage.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.assembly import compile
from gridjax.control.storage import Storages, storages
from gridjax.days import average_load
from gridjax.env.terminals import neighbours, places
from gridjax.env.volt_var import ACTIONS, VoltVar, VoltVarParams, Weights
from gridjax.feeder import Feeder, Generator, Load, Storage, split_terminal

WORST_PU = 0.2  # a failed power flow counts as if every node were so far beyond its limit, and every device moved
VMAX = 1.1  # of generators
POWER_FACTOR = 0.95  # powergym's batteries give Q = P / 0.95


@dataclass(frozen=True)
class Battery:
    """A battery of powergym's: its bus with nodes, connection, rated kV as written there, kW and kWh."""

    bus: str
    connection: str
    kv: float
    kw: float
    kwh: float


@dataclass(frozen=True)
class Task:
    """A system of powergym's: its batteries and weights; with `soc`, those of its `_soc` variants.

    `load_model` is what its circuit has for all loads where that is not the test feeder's; loads above `fixed_kw` have
    the status "fixed" there, by which load shapes leave them at their rated power.
    """

    batteries: tuple[Battery, ...]
    loss: float
    discharge: float
    soc_discharge: float
    soc_energy: float
    load_model: int | None = None
    fixed_kw: float = np.inf


def _delta(bus: str, kv: float, kw: float, kwh: float) -> Battery:
    return Battery(f"{bus}.1.2.3", "delta", kv, kw, kwh)


_LATERALS = (  # of the 8500-node feeder
    "l3312692", "l3091052", "l3065696", "l3235247", "l3066804", "l3251854", "l2785537", "l2839331",
)  # fmt: skip
TASKS = {
    "ieee13": Task((_delta("680", 4.16, 200, 1000),), 10, 6 / 33, 1 / 33, 20 / 33, load_model=1),
    "ieee34": Task(
        (_delta("890", 4.16, 500, 4000), _delta("832", 24.9, 500, 4000)), 1, 10 / 33, 4 / 33, 500 / 33
    ),
    "ieee123": Task(
        (
            Battery("33.1", "wye", 2.4, 100, 1000), Battery("114.1", "wye", 2.4, 100, 1000),
            _delta("67", 2.4, 100, 1000), _delta("300", 2.4, 100, 1000),
        ),
        10, 7 / 33, 5 / 33, 500 / 33,
    ),
    "ieee8500": Task(
        (
            _delta("l3160098", 7.2, 100, 1000),
            *(Battery(f"{bus}.1", "wye", 7.2, 100, 1000) for bus in _LATERALS),
            _delta("m1069509", 7.2, 100, 1000),
        ),
        1, 200 / 33, 100 / 33, 10000 / 33, fixed_kw=25.0,
    ),
}  # fmt: skip


def volt_var(
    feeder: Feeder,
    multiplier: np.ndarray | jax.Array,
    *,
    actions: str = "discrete",
    weights: Weights | None = None,
    low: float = 0.95,
    high: float = 1.05,
    hours: float = 1.0,
    tolerance: float = 1e-8,
) -> tuple[VoltVar, VoltVarParams]:
    """The clean task on a feeder, with its regulators, capacitors and batteries.

    Args:
      feeder: has at least one regulator, capacitor or battery; a shipped feeder without batteries gets those of
        `TASKS`. Generators and photovoltaics that it has deliver what they nominally do.
      multiplier: (episodes, steps, loads) factors on the loads' rated powers, at least 0; the episodes are drawn with
        equal chance. Steps are the task's horizon.
      actions: "discrete", "mixed" or "continuous", see `VoltVar`.
      weights: of the reward's terms; None takes those of `TASKS` or, elsewhere, loss 10, moves 1/33, discharge 0.2.
      low: voltage limit in per unit.
      high: likewise.
      hours: length of a step.
      tolerance: of the power flows: the largest voltage change of the last step, per unit. With 1e-5
        rewards are as near to exact ones as those of OpenDSS at its own tolerance, 1e-4, and steps are cheaper
        (docs/steps.md).

    Returns:
      The environment and its parameters.

    Raises:
      ValueError: nothing to control, multipliers of a wrong shape or sign, unknown actions, a tolerance that is
        not positive.
    """
    if not feeder.storages and feeder.name in TASKS:
        feeder = feeder.replace(storages=_storages(feeder, TASKS[feeder.name]))
    if weights is None:
        task = TASKS.get(feeder.name)
        weights = _weights(task.loss if task else 10.0, task.discharge if task else 0.2, 0.0)
    names = tuple(b.name for b in feeder.storages)
    first = len(feeder.generators) + len(feeder.pv_systems)
    fleet = _Fleet(names, storages(feeder), first, np.ones(len(names)), 0.0)
    return _make(feeder, multiplier, actions, weights, (low, high), hours, fleet, tolerance, as_powergym=False)


def powergym(
    name: str,
    multiplier: np.ndarray | jax.Array,
    *,
    actions: str = "discrete",
    soc: bool = False,
    feeder: Feeder | None = None,
    tolerance: float = 1e-8,
) -> tuple[VoltVar, VoltVarParams]:
    """The task as powergym's code has it, quirks included (see `gridjax.env.volt_var`).

    Args:
      name: "ieee13", "ieee34", "ieee123" or "ieee8500".
      multiplier: (episodes, 24, loads) as in `volt_var`; powergym's own come from its folders of load shapes.
      actions: "discrete" or "mixed" (its `_cbat` variants).
      soc: the `_soc` variant, which asks for full batteries at the end of the day.
      feeder: another version of the circuit, without batteries; None is the shipped one.
      tolerance: as in `volt_var`.

    Returns:
      The environment and its parameters.

    Raises:
      ValueError: an unknown name, or as `volt_var`.
    """
    if name not in TASKS:
        raise ValueError(f"powergym has no {name!r}: choose one of {', '.join(TASKS)}")
    from gridjax import feeders

    task = TASKS[name]
    weights = _weights(task.loss, task.soc_discharge if soc else task.discharge, task.soc_energy if soc else 0.0)
    feeder = feeder or feeders.load(name)
    first, ratings = len(feeder.generators), _ratings(task)
    generators, gain = _generators(feeder, task)
    settings = storages(dataclasses.replace(feeder, storages=ratings))
    fleet = _Fleet(tuple(r.name for r in ratings), settings, first, gain, 1 / POWER_FACTOR)
    multiplier = jnp.asarray(multiplier, float)
    fixed = np.array([load.kw > task.fixed_kw for load in feeder.loads])
    if fixed.any() and multiplier.ndim == 3 and multiplier.shape[2] == len(fixed):
        multiplier = jnp.where(fixed[None, None], 1.0, multiplier)
    feeder = feeder.replace(generators=(*feeder.generators, *generators), loads=_loads(feeder, task))
    return _make(feeder, multiplier, actions, weights, (0.95, 1.05), 1.0, fleet, tolerance, as_powergym=True)


def _weights(loss: float, discharge: float, energy: float) -> Weights:
    return Weights(*(jnp.asarray(w, float) for w in (loss, 1.0, 1 / 33, 1 / 33, discharge, energy)))


def _phases(battery: Battery) -> int:
    return len(split_terminal(battery.bus)[1])


def _storages(feeder: Feeder, task: Task) -> tuple[Storage, ...]:
    """The task's batteries at their buses' own voltages, grounded wye."""
    base = {bus.name: bus.base_kv for bus in feeder.buses}
    out = []
    for k, b in enumerate(task.batteries):
        bus, _ = split_terminal(b.bus)
        kv = base[bus] * (np.sqrt(3) if _phases(b) > 1 else 1.0)
        out.append(
            Storage(
                f"battery{k + 1}", f"{b.bus}.0", _phases(b), "wye", float(kv), 1.1 * b.kw, b.kw, b.kwh,
                kwh_stored=b.kwh, idling_percent=0.0,
            )
        )  # fmt: skip
    return tuple(out)


def _generators(feeder: Feeder, task: Task) -> tuple[tuple[Generator, ...], np.ndarray]:
    """The task's batteries as powergym has them, and by how much they deliver more than they are asked for.

    A delta generator rated far below its bus's voltage is beyond its vmax at all times: a constant impedance.
    """
    base = {bus.name: bus.base_kv for bus in feeder.buses}
    out, gain = [], []
    for k, b in enumerate(task.batteries):
        bus = b.bus if b.connection == "delta" else f"{b.bus}.0"
        kv, model, more = b.kv, 1, 1.0
        line_kv = float(base[split_terminal(b.bus)[0]] * np.sqrt(3))
        if b.connection == "delta" and line_kv > 1.2 * VMAX * b.kv:
            kv, model, more = line_kv, 2, (line_kv / b.kv / VMAX) ** 2
        out.append(Generator(f"batt{k + 1}", bus, _phases(b), b.connection, kv, 0.0, 0.0, model, kva=1.2 * b.kw))
        gain.append(more)
    return tuple(out), np.array(gain)


def _loads(feeder: Feeder, task: Task) -> tuple[Load, ...]:
    """The feeder's loads as powergym's circuit has them."""
    out = list(feeder.loads)
    if task.load_model is not None:
        out = [dataclasses.replace(load, model=task.load_model) for load in out]
    if feeder.name == "ieee34":
        # Two loads of constant current are tied to ground there, not between phases, at 0.58 of their rated voltage:
        # between vlow 0.5 and vmin 0.85 of it, where the current goes with 0.5 + (v - 0.5)/0.7 (see load models).
        for k, load in enumerate(out):
            if load.name in ("d816_824sb", "d816_824rb"):
                bus, (phase, _) = split_terminal(load.bus)
                kv = next(b.base_kv for b in feeder.buses if b.name == bus)
                u = kv / load.kv
                zipv = ((u * u / 0.7, (0.5 - 0.5 / 0.7) * u, 0.0) * 2) + (0.0,)
                out[k] = dataclasses.replace(
                    load, bus=f"{bus}.{phase}.0", connection="wye", model=8, kv=kv, zipv=zipv,
                    vmin_pu=0.5 / u, vmax_pu=0.85 / u,
                )  # fmt: skip
    return tuple(out)


def _ratings(task: Task) -> tuple[Storage, ...]:
    """The ratings of powergym's batteries, full and without losses."""
    return tuple(
        Storage(
            f"batt{k + 1}", b.bus, _phases(b), b.connection, b.kv, b.kw, b.kw, b.kwh, kwh_stored=b.kwh,
            reserve_percent=0.0, charge_efficiency_percent=100.0, discharge_efficiency_percent=100.0,
            idling_percent=0.0,
        )
        for k, b in enumerate(task.batteries)
    )  # fmt: skip


@dataclass(frozen=True)
class _Fleet:
    """Batteries: names, settings, their first entry of the generation, gains, reactive for active power."""

    names: tuple[str, ...]
    settings: Storages
    first: int
    gain: np.ndarray
    kvar_per_kw: float


def _make(
    feeder: Feeder, multiplier: np.ndarray | jax.Array, actions: str, weights: Weights, limits: tuple[float, float],
    hours: float, fleet: _Fleet, tolerance: float, as_powergym: bool,
) -> tuple[VoltVar, VoltVarParams]:  # fmt: skip
    if not (feeder.regulators or feeder.capacitors or fleet.names):
        raise ValueError(f"{feeder.name}: nothing to control; add a regulator, a capacitor or a battery")
    if actions not in ACTIONS:
        raise ValueError(f"actions {actions!r} are unknown: choose one of {', '.join(ACTIONS)}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, not {tolerance}")
    multiplier = jnp.asarray(multiplier, float)
    if multiplier.ndim != 3 or multiplier.shape[2] != len(feeder.loads) or not bool(jnp.all(multiplier >= 0)):
        raise ValueError(
            f"multiplier must be (episodes, steps, {len(feeder.loads)} loads) and not negative; its shape is "
            f"{multiplier.shape}"
        )
    names = feeder.node_names
    nodes, order = np.arange(len(names)), np.arange(len(feeder.regulators))
    if as_powergym:  # its regulators stand in the order of the transformers, its nodes in that of their numbers
        place = {t.name: k for k, t in enumerate(feeder.transformers)}
        order = np.argsort([place[r.transformer] for r in feeder.regulators], kind="stable")
        nodes = _bus_nodes(feeder)
        nodes = nodes[nodes < len(names)]
    regulators = [feeder.regulators[k] for k in order]
    windings = {t.name: t.windings for t in feeder.transformers}
    tapped = [windings[r.transformer][r.winding - 1] for r in regulators]
    counts = [w.num_taps + 1 for w in tapped]
    moves = weights.capacitor * len(feeder.capacitors) + weights.tap * sum(counts)
    worst = weights.loss + weights.voltage * WORST_PU * len(nodes) + moves + weights.discharge * len(fleet.names)
    env = VoltVar(
        horizon=int(multiplier.shape[1]), failure_penalty=-float(worst), actions=actions, as_powergym=as_powergym,
        capacitors=tuple(c.name for c in feeder.capacitors), regulators=tuple(r.name for r in regulators),
        batteries=fleet.names, nodes=tuple(names[k] for k in nodes),
        tap_counts=tuple(counts), battery_count=33, tolerance=tolerance,
    )  # fmt: skip
    grid, rows = compile(_at_neutral(feeder), around=average_load), fleet.first + np.arange(len(fleet.names))
    owner = np.asarray(grid.units.device)[..., None] == len(feeder.loads) + rows
    unit = np.stack(np.nonzero(owner & (np.asarray(grid.units.share) != 0)[..., None]))
    producers = (*feeder.generators, *feeder.pv_systems, *feeder.storages)
    at = [*(c.bus1 for c in feeder.capacitors), *(w.bus for w in tapped), *(producers[row].bus for row in rows)]
    params = VoltVarParams(
        grid=grid, multiplier=multiplier, weights=weights,
        low=jnp.asarray(limits[0], float), high=jnp.asarray(limits[1], float),
        tap_low=jnp.asarray([w.min_tap for w in tapped], float),
        tap_step=jnp.asarray([(w.max_tap - w.min_tap) / w.num_taps for w in tapped], float),
        regulator_place=jnp.argsort(jnp.asarray(order)), node_order=jnp.asarray(nodes),
        bus_nodes=jnp.asarray(_bus_nodes(feeder)), batteries=fleet.settings,
        battery_row=jnp.asarray(rows), battery_unit=jnp.asarray(unit), gain=jnp.asarray(fleet.gain, float),
        kvar_per_kw=jnp.full(len(fleet.names), fleet.kvar_per_kw), hours=jnp.asarray(hours, float),
        place=jnp.asarray(places(feeder, at)), neighbour=jnp.asarray(neighbours(feeder, at)),
    )  # fmt: skip
    return env, params


def _at_neutral(feeder: Feeder) -> Feeder:
    """The feeder with the taps of its regulators at neutral.

    Every step sets them anew, anywhere: the solver needs the fewest sweeps if it starts from the middle.
    """
    tapped = {(r.transformer, r.winding - 1) for r in feeder.regulators}
    return feeder.replace(
        transformers=tuple(
            dataclasses.replace(
                t,
                windings=tuple(
                    dataclasses.replace(w, tap=1.0) if (t.name, k) in tapped else w for k, w in enumerate(t.windings)
                ),
            )
            for t in feeder.transformers
        )
    )


def _bus_nodes(feeder: Feeder) -> np.ndarray:
    """The nodes of each bus in the order of their numbers, (buses, most nodes), one past the last where fewer."""
    total = len(feeder.node_names)
    width = max(len(bus.nodes) for bus in feeder.buses)
    out = np.full((len(feeder.buses), width), total)
    start = 0
    for k, bus in enumerate(feeder.buses):
        stop = start + len(bus.nodes)
        out[k, : stop - start] = start + np.argsort(bus.nodes)
        start = stop
    return out
