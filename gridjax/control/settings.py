"""The settings of a feeder's inverters as arrays, made from rules that a person writes.

One row for each entry of `OperatingPoint.generation_kw`: generators, PV systems, storages in this order. A row without
a rule is left alone. What the settings mean: `gridjax.control.inverters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.control import standard
from gridjax.feeder import Feeder, Generator, PVSystem, Storage, split_terminal
from gridjax.layout import generators, rated_volts

MODES = ("none", "constant reactive power", "constant power factor", "volt-var", "watt-var")
NONE, CONSTANT_REACTIVE_POWER, CONSTANT_POWER_FACTOR, VOLT_VAR, WATT_VAR = range(len(MODES))
VOLT_WATT, FREQUENCY_WATT, LOW_POWER = range(len(MODES), len(MODES) + 3)
PRIORITIES = ("reactive", "minimum", "active")

Curve = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Rule:
    """How an inverter behaves; the defaults are those of IEEE 1547-2018 for its category.

    Attributes:
      mode: one of `MODES`; with constant reactive power it is the point's `generation_kvar`.
      category: of normal performance, "A" or "B".
      volt_watt: whether active power is limited by the voltage.
      frequency_watt: whether it follows the frequency.
      priority: what gives way at the rated apparent power. "reactive": active power; "minimum": active power in favour
        of the reactive power that the category requires, reactive power beyond that; "active": reactive power.
      volt_var: ((V1, V2, V3, V4), (Q1, Q2, Q3, Q4)); None: the category's default, likewise below.
      volt_watt_curve: ((V1, V2), (P1, P2)).
      watt_var: six corners (P'3, P'2, P'1, P1, P2, P3), and their Q.
      power_factor: positive injects reactive power with active power, negative absorbs it.
      most_injected: reactive power that the inverter can inject, per unit of its rating; None: what is required.
      most_absorbed: likewise absorbed.
      reduced_at_low_power: whether that capability goes down below 20 % of the rated active power, as is permitted.
      most_power: limit of active power (clause 4.6.2), per unit of the rated one.
      least_power: what the droop leaves at least, per unit of the rated active power.
      droop: per unit of frequency for one per unit of power; above and below the nominal frequency.
      dead_band_hz: likewise.
      seconds: open-loop response times of reactive power, volt-watt and droop; None: the defaults.
    """

    mode: str = "volt-var"
    category: str = "B"
    volt_watt: bool = False
    frequency_watt: bool = False
    priority: str = "reactive"
    volt_var: Curve | None = None
    volt_watt_curve: Curve | None = None
    watt_var: Curve | None = None
    power_factor: float = 1.0
    most_injected: float | None = None
    most_absorbed: float | None = None
    reduced_at_low_power: bool = False
    most_power: float = 1.0
    least_power: float = 0.0
    droop: tuple[float, float] = (standard.DROOP, standard.DROOP)
    dead_band_hz: tuple[float, float] = (standard.DEAD_BAND_HZ, standard.DEAD_BAND_HZ)
    seconds: tuple[float, float, float] | None = None


@flax.struct.dataclass
class Inverters:
    """Settings as arrays of n rows; see `Rule` for what they mean.

    Attributes:
      kva, rated_kw: (n,) ratings.
      nodes: (n, 3, 2) where each phase's voltage is measured, the ground being one past the last node.
      scale: (n, 3, 2) those nodes' base voltages over the rated voltage of a phase.
      share: (n, 3) of each phase in the mean, 0 where there is none.
      mode: (n,) index into `MODES`.
      volt_watt, frequency_watt, reduced_at_low_power: (n,) booleans.
      volt_var_v, volt_var_q: (n, 4). volt_watt_v, volt_watt_p: (n, 2). watt_var_p, watt_var_q: (n, 6).
      tangent: (n,) reactive over active power at constant power factor.
      most_injected, most_absorbed: (n,) reactive capability in per unit of kva.
      first_injected, first_absorbed: (n,) reactive power that goes before active power, likewise.
      most_power, least_power: (n,) in per unit of rated_kw.
      droop, dead_band_hz: (n, 2) above and below the nominal frequency. nominal_hz: (n,).
      seconds: (n, 3) response times.
      near: (n, 2 n) about the terminal voltages' derivatives by all p and all q in per unit of kva; it shortens the
        search for the fixed point and does not change it.
      used: which modes and functions occur (indices into `MODES`, VOLT_WATT, FREQUENCY_WATT, LOW_POWER); others are
        left out of the calculation. Static.
      smooth: half width in per unit of the rounded corners of all curves and limits; 0 is exact. Static.
    """

    kva: jax.Array
    rated_kw: jax.Array
    nodes: jax.Array
    scale: jax.Array
    share: jax.Array
    mode: jax.Array
    volt_watt: jax.Array
    frequency_watt: jax.Array
    reduced_at_low_power: jax.Array
    volt_var_v: jax.Array
    volt_var_q: jax.Array
    volt_watt_v: jax.Array
    volt_watt_p: jax.Array
    watt_var_p: jax.Array
    watt_var_q: jax.Array
    tangent: jax.Array
    most_injected: jax.Array
    most_absorbed: jax.Array
    first_injected: jax.Array
    first_absorbed: jax.Array
    most_power: jax.Array
    least_power: jax.Array
    droop: jax.Array
    dead_band_hz: jax.Array
    nominal_hz: jax.Array
    seconds: jax.Array
    near: jax.Array
    used: frozenset[int] = flax.struct.field(pytree_node=False)
    smooth: float = flax.struct.field(pytree_node=False, default=0.0)


def settings(feeder: Feeder, rules: Rule | Mapping[str, Rule], smooth: float = 0.0) -> Inverters:
    """The settings of a feeder's generating units, still without sensitivities (see `inverters`).

    Args:
      feeder: the tables.
      rules: one for all PV systems and storages, or one for each element's name.
      smooth: half width of rounded corners in per unit; 0 for exact curves.

    Raises:
      ValueError: an unknown name, mode, category or priority, or a curve that is none; it names the element.
    """
    devices = generators(feeder)
    if not isinstance(rules, Mapping):
        rules = {x.name: rules for x in devices if not isinstance(x, Generator)}
    names = [x.name for x in devices]
    for name in rules:
        if names.count(name) != 1:
            raise ValueError(
                f"a rule for {name!r}: the feeder has {names.count(name)} generating units of that name, not one"
            )
    if smooth < 0:
        raise ValueError(f"smooth is a half width in per unit: {smooth} is negative")
    rows = [_row(x, rules.get(x.name, Rule(mode="none")), feeder.frequency_hz) for x in devices]
    n, places = len(rows), _places(feeder)
    width = {k: np.shape(v) for k, v in _row(_NOTHING, Rule(), standard.NOMINAL_HZ).items()}
    columns = {k: jnp.asarray(np.array([r[k] for r in rows]).reshape(n, *width[k])) for k in width}
    columns["mode"] = columns["mode"].astype(jnp.int32)
    for k in ("volt_watt", "frequency_watt", "reduced_at_low_power"):
        columns[k] = columns[k].astype(bool)
    nothing = jnp.zeros((n, 2 * n), jnp.float32)
    given = [r for r in rows if r["mode"] != NONE]
    used = {int(r["mode"]) for r in given}
    functions = {"volt_watt": VOLT_WATT, "frequency_watt": FREQUENCY_WATT, "reduced_at_low_power": LOW_POWER}
    used |= {code for name, code in functions.items() if any(r[name] for r in given)}
    floating = {k: v.astype(jnp.result_type(float)) for k, v in columns.items() if v.dtype == np.float64}
    return Inverters(**{**columns, **floating, **places}, near=nothing, used=frozenset(used), smooth=float(smooth))


_NOTHING = Generator("nothing", "nowhere.1", 1, "wye", 1.0, 1.0, 0.0, kva=1.0)


def _row(device: Generator | PVSystem | Storage, rule: Rule, hz: float) -> dict[str, Any]:
    """One row of every array but those of the places."""
    _check(device, rule)
    if isinstance(device, PVSystem):
        kva, rated = device.kva, min(device.pmpp_percent / 100 * device.pmpp_kw, device.kva)
    elif isinstance(device, Storage):
        kva, rated = device.kva, min(device.kw_rated, device.kva)
    else:
        rated = abs(device.kw)
        kva = float(np.hypot(device.kw, device.kvar)) if device.kva is None else device.kva
    category = standard.REACTIVE[rule.category]
    volt_var, watt_var = rule.volt_var or category.volt_var, rule.watt_var or category.watt_var
    volt_watt = rule.volt_watt_curve or standard.VOLT_WATT
    first = {"reactive": (1.0, 1.0), "minimum": (category.most_injected, category.most_absorbed), "active": (0.0, 0.0)}
    reactive_seconds = category.volt_var_seconds if rule.mode == "volt-var" else standard.POWER_FACTOR_SECONDS
    default = (reactive_seconds, standard.VOLT_WATT_SECONDS, standard.DROOP_SECONDS)
    return {
        "kva": max(kva, 1e-9),
        "rated_kw": max(rated, 1e-9),
        "mode": MODES.index(rule.mode),
        "volt_watt": rule.volt_watt,
        "frequency_watt": rule.frequency_watt,
        "reduced_at_low_power": rule.reduced_at_low_power,
        "volt_var_v": np.array(volt_var[0], float),
        "volt_var_q": np.array(volt_var[1], float),
        "volt_watt_v": np.array(volt_watt[0], float),
        "volt_watt_p": np.array(volt_watt[1], float),
        "watt_var_p": np.array(watt_var[0], float),
        "watt_var_q": np.array(watt_var[1], float),
        "tangent": float(np.sign(rule.power_factor) * np.sqrt(1 - rule.power_factor**2) / abs(rule.power_factor)),
        "most_injected": category.most_injected if rule.most_injected is None else float(rule.most_injected),
        "most_absorbed": category.most_absorbed if rule.most_absorbed is None else float(rule.most_absorbed),
        "first_injected": first[rule.priority][0],
        "first_absorbed": first[rule.priority][1],
        "most_power": float(rule.most_power),
        "least_power": float(rule.least_power),
        "droop": np.array(rule.droop, float),
        "dead_band_hz": np.array(rule.dead_band_hz, float),
        "nominal_hz": float(hz),
        "seconds": np.array(rule.seconds or default, float),
    }


def _check(device: Generator | PVSystem | Storage, rule: Rule) -> None:
    what = f"the rule for {device.name!r}"
    for value, known in ((rule.mode, MODES), (rule.category, tuple(standard.REACTIVE)), (rule.priority, PRIORITIES)):
        if value not in known:
            raise ValueError(f"{what}: {value!r} is unknown; choose one of {', '.join(known)}")
    if not 0 < abs(rule.power_factor) <= 1:
        raise ValueError(f"{what}: the power factor {rule.power_factor} is not between 0 and 1 in magnitude")
    if min(rule.droop) <= 0 or min(rule.dead_band_hz) < 0:
        raise ValueError(f"{what}: needs a positive droop and a dead band that is not negative")
    for limit in (rule.most_injected, rule.most_absorbed):
        if limit is not None and not 0 <= limit <= 1:
            raise ValueError(f"{what}: reactive capabilities are magnitudes in per unit of the rating, not {limit}")
    curves = (
        ("volt_var", rule.volt_var, 4),
        ("volt_watt_curve", rule.volt_watt_curve, 2),
        ("watt_var", rule.watt_var, 6),
    )
    for name, curve, count in curves:
        if curve is None:
            continue
        if len(curve) != 2 or any(len(row) != count for row in curve):
            raise ValueError(f"{what}: {name} needs two rows of {count} numbers")
        for (x, y), (further_x, further_y) in zip(
            zip(*curve, strict=True), list(zip(*curve, strict=True))[1:], strict=False
        ):
            if further_x < x or (further_x == x and further_y != y):
                raise ValueError(f"{what}: {name} must rise in its first row and may not jump; spread the corners")


def _places(feeder: Feeder) -> dict[str, jax.Array]:
    """Where every unit measures its voltages."""
    number = {name: i for i, name in enumerate(feeder.node_names)}
    base = {bus.name: 1e3 * bus.base_kv for bus in feeder.buses}
    devices = generators(feeder)
    nodes = np.full((len(devices), 3, 2), len(number), np.int32)
    scale, share = np.zeros(nodes.shape), np.zeros(nodes.shape[:2])
    for i, x in enumerate(devices):
        bus, conductors = split_terminal(x.bus)
        volts = rated_volts(x.kv, x.phases, x.connection)
        for k in range(x.phases):
            other = -1 if x.connection == "wye" else (k + 1) % len(conductors)
            nodes[i, k] = [number.get(f"{bus}.{n}", len(number)) for n in (conductors[k], conductors[other])]
            scale[i, k], share[i, k] = base[bus] / volts, 1 / x.phases
    dtype = jnp.result_type(float)
    return {"nodes": jnp.asarray(nodes), "scale": jnp.asarray(scale, dtype), "share": jnp.asarray(share, dtype)}


def replace_volt_var(inverters: Inverters, v: jax.Array, q: jax.Array) -> Inverters:
    """The same with other volt-var curves, (n, 4) or (4,) each; differentiable."""
    shape = inverters.volt_var_v.shape
    v, q = (jnp.broadcast_to(a.reshape((1,) * (2 - a.ndim) + a.shape), shape) for a in (v, q))
    return dataclasses.replace(inverters, volt_var_v=v, volt_var_q=q)
