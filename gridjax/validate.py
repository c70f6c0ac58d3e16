"""What is wrong with a feeder, all of it at once, each with its cure.

The tables (`gridjax.feeder`) accept any numbers of the right types. `validate` finds what cannot be
meant: names that lead nowhere, terminals that do not fit, impossible numbers, singular impedances,
mixed-up voltage bases, and nodes that no source reaches. It is cautious in the other direction:
what is merely unusual gives no finding.

Voltages are compared by the conventions of `gridjax.feeder`: a bus has `base_kv` to neutral, so
that between two phases `sqrt(3) base_kv` is expected, or `2 base_kv` between the legs of a split
phase. A finding about voltages or ratings is a doubt, not `fatal`: the feeder can be solved as it
stands (published test feeders have some), though perhaps not as its author meant.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gridjax import consistency
from gridjax.consistency import KINDS, Found, Lookup
from gridjax.feeder import KM_PER_UNIT, Feeder, Geometry

MAX_LISTED = 20

_INJECTING = ("loads", "generators", "pv_systems", "storages")
_POSITIVE = {
    "buses": ("base_kv",),
    "sources": ("base_kv",),
    "codes": ("rho_ohm_m",),
    "wires": ("r_ac_ohm_per_km", "gmr_m", "radius_m", "cap_radius_m"),
    "lines": ("length",),
    "regulators": ("pt_ratio",),
    "capacitors": ("kv",),
    "capacitor_controls": ("pt_ratio", "ct_ratio"),
    "loads": ("kv",),
    "generators": ("kv", "kva"),
    "pv_systems": ("kv", "kva"),
    "storages": ("kv", "kva", "kw_rated", "kwh_rated"),
}
_CHOICES = {
    ("codes", "unit"): tuple(KM_PER_UNIT),
    ("codes", "earth_model"): ("deri", "carson", "fullcarson"),
    ("lines", "unit"): tuple(KM_PER_UNIT),
    ("transformers", "lead_lag"): ("lag", "lead"),
    ("transformers", "phases"): (1, 2, 3),
    ("capacitors", "connection"): ("wye", "delta"),
    ("reactors", "connection"): ("wye", "delta"),
    ("capacitor_controls", "kind"): ("voltage", "kvar", "current", "pf", "time"),
    ("loads", "model"): tuple(range(1, 9)),
    **{(table, "model"): (1, 2) for table in _INJECTING[1:]},
    **{(table, "connection"): ("wye", "delta") for table in _INJECTING},
    **{(table, "phases"): (1, 2, 3) for table in _INJECTING},
}


@dataclass(frozen=True)
class Problem:
    """A finding: the element (`"load.s47"`), and what is wrong with it and how to mend it.

    `fatal` says that the feeder has no meaningful solution; otherwise there is a doubt.
    """

    element: str
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.element}: {self.message}"


def validate(feeder: Feeder) -> list[Problem]:
    """Finds every problem of a feeder.

    Args:
      feeder: any feeder whose fields have the annotated types.

    Returns:
      The problems, those that may follow from others (islands) last; empty for a sound feeder.
    """
    lookup = Lookup(feeder)
    with np.errstate(all="ignore"):
        return [Problem(*found, fatal=rule not in _DOUBTS) for rule in _RULES for found in rule(lookup)]


def check(feeder: Feeder) -> None:
    """Raises if a feeder has fatal problems, and warns of doubts if it has only these.

    Args:
      feeder: any feeder whose fields have the annotated types.

    Raises:
      ValueError: `validate` finds something fatal; the message lists the first 20 problems.

    Warns:
      UserWarning: there are doubts only; the message lists them likewise.
    """
    problems = sorted(validate(feeder), key=lambda problem: not problem.fatal)
    if not problems:
        return
    lines = [f"  {problem}" for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"  ... and {len(problems) - MAX_LISTED} more")
    text = "\n".join(lines)
    if problems[0].fatal:
        raise ValueError(f"feeder {feeder.name!r} has problems:\n{text}")
    warnings.warn(f"feeder {feeder.name!r} has doubtful data:\n{text}", stacklevel=3)


def _names(lookup: Lookup) -> Found:
    for table, kind in KINDS.items():
        counts = Counter(record.name for record in getattr(lookup.feeder, table))
        for name, count in counts.items():
            if count > 1:
                yield f"{kind}.{name}", f"the name occurs {count} times: make names unique"
            if not name:
                yield f"{kind}.{name}", "has no name: give it one"
    for bus in lookup.feeder.buses:
        if "." in bus.name:
            yield (
                f"bus.{bus.name}",
                "a bus name cannot hold a '.', which starts the nodes: rename it",
            )
        if not bus.nodes or min(bus.nodes) < 1 or len(set(bus.nodes)) < len(bus.nodes):
            yield (
                f"bus.{bus.name}",
                f"nodes {bus.nodes} must be distinct numbers from 1 up (the ground, 0, is not "
                "listed), at least one: correct them",
            )
    if not lookup.feeder.buses:
        yield f"feeder.{lookup.feeder.name}", "is empty: add buses"
    if not lookup.feeder.sources:
        yield f"feeder.{lookup.feeder.name}", "has no source: add one to `sources`"


def _numbers(lookup: Lookup) -> Found:
    """Numbers that are not finite, anywhere, and those that must be positive."""
    feeder = lookup.feeder
    for field in ("frequency_hz", "base_mva"):
        value = getattr(feeder, field)
        if not (math.isfinite(value) and value > 0):
            yield f"feeder.{feeder.name}", f"{field} is {value}: give a positive, finite number"
    for element, record in lookup.records(*KINDS):
        for place in _infinite(record):
            yield element, f"{place} is not finite: give a finite number"
    for table, fields in _POSITIVE.items():
        for element, record in lookup.records(table):
            yield from ((element, text) for text in _not_positive(record, fields))
    for element, transformer in lookup.records("transformers"):
        for number, winding in enumerate(transformer.windings, 1):
            for text in _not_positive(winding, ("kv", "kva")):
                yield element, f"winding {number}: {text}"
    for element, bank in lookup.records("capacitors"):
        if any(kvar <= 0 for kvar in bank.kvar):
            yield element, f"kvar {bank.kvar} must be positive in every step: leave out empty steps"
    for element, code in lookup.records("codes"):
        if isinstance(code, Geometry) and any(h <= 0 for h in code.h_m):
            yield element, "h_m must be positive, over ground: buried conductors are not modelled"


def _ratings(lookup: Lookup) -> Found:
    for element, branch in lookup.records("lines", "switches"):
        yield from ((element, f"{text}, or None") for text in _not_positive(branch, ("rating_a",)))


def _not_positive(record: Any, fields: tuple[str, ...]) -> Iterator[str]:
    for field in fields:
        value = getattr(record, field, None)
        if value is not None and value <= 0:
            yield f"{field} is {value}: it must be positive"


def _infinite(record: Any, prefix: str = "") -> Iterator[str]:
    """The places of a record, its windings and matrices where a float is not finite."""
    items = enumerate(record) if isinstance(record, tuple) else vars(record).items()
    for key, value in items:
        if isinstance(value, float):
            if not math.isfinite(value):
                yield f"{prefix}[{key}]" if isinstance(key, int) else f"{prefix}{key}"
        elif isinstance(value, tuple):
            yield from _infinite(value, f"{prefix}[{key}]" if isinstance(key, int) else f"{prefix}{key}")
        elif dataclasses.is_dataclass(value):
            yield from _infinite(value, f"{prefix}[{key}].")


def _choices(lookup: Lookup) -> Found:
    """Words and small numbers that have a list of meanings."""
    for (table, field), allowed in _CHOICES.items():
        for element, record in lookup.records(table):
            value = getattr(record, field, None)
            if value is not None and value not in allowed:
                names = ", ".join(map(str, allowed))
                yield element, f"unknown {field} {value!r}: use one of {names}"
    for element, transformer in lookup.records("transformers"):
        for number, winding in enumerate(transformer.windings, 1):
            if winding.connection not in ("wye", "delta"):
                yield (
                    element,
                    f"winding {number}: unknown connection {winding.connection!r}: use one of wye, delta",
                )
    for element, shunt in lookup.records("capacitors", "reactors"):
        if shunt.phases < 1 or (shunt.connection == "delta" and shunt.phases > 3):
            yield element, f"cannot have {shunt.phases} phases: use 1, 2 or 3"


def _references(lookup: Lookup) -> Found:
    """Names of other records."""
    feeder = lookup.feeder
    wires = {wire.name for wire in feeder.wires}
    for element, code in lookup.records("codes"):
        for wire in dict.fromkeys(code.wires if isinstance(code, Geometry) else ()):
            if wire not in wires:
                yield element, f"unknown wire {wire!r}: add it to `wires` or correct the name"
    for element, line in lookup.records("lines"):
        if line.code not in lookup.codes:
            yield element, f"unknown code {line.code!r}: add it to `codes` or correct the name"
    for element, regulator in lookup.records("regulators"):
        transformer = lookup.transformers.get(regulator.transformer)
        if transformer is None:
            yield element, f"unknown transformer {regulator.transformer!r}: correct the name"
        elif not 1 <= regulator.winding <= len(transformer.windings):
            yield (
                element,
                f"transformer {transformer.name!r} has no winding {regulator.winding}: "
                f"use 1 to {len(transformer.windings)}",
            )
        bus = regulator.monitored_bus
        if bus is not None and bus.split(".")[0] not in lookup.buses:
            yield element, f"unknown monitored_bus {bus!r}: correct the name"
    capacitors = {bank.name for bank in feeder.capacitors}
    elements = {name for table in KINDS for name in (r.name for r in getattr(feeder, table))}
    for element, control in lookup.records("capacitor_controls"):
        if control.capacitor not in capacitors:
            yield element, f"unknown capacitor {control.capacitor!r}: correct the name"
        name = control.element.partition(".")[2] or control.element
        if name not in elements and control.kind != "time":
            yield element, f"unknown element {control.element!r}: name what it measures"


def _ranges(lookup: Lookup) -> Found:
    """Numbers that must stand in order."""
    for element, transformer in lookup.records("transformers"):
        for number, winding in enumerate(transformer.windings, 1):
            low, high = winding.min_tap - 1e-9, winding.max_tap + 1e-9
            if winding.tap < low or winding.tap > high:
                yield (
                    element,
                    f"winding {number}: tap {winding.tap} is outside [{winding.min_tap}, "
                    f"{winding.max_tap}]: correct the tap or its range",
                )
    for element, load in lookup.records("loads"):
        if load.vlow_pu > load.vmin_pu or load.vmin_pu >= load.vmax_pu:
            yield (
                element,
                f"vlow_pu {load.vlow_pu}, vmin_pu {load.vmin_pu}, vmax_pu {load.vmax_pu} must "
                "satisfy vlow <= vmin < vmax: correct them",
            )
        if (load.model == 8 and load.zipv is None) or (load.zipv is not None and len(load.zipv) != 7):
            yield element, "model 8 needs a zipv of 7 numbers: Zp, Ip, Pp, Zq, Iq, Pq, cut-off"
    for element, source in lookup.records("generators", "pv_systems", "storages"):
        if source.vmin_pu >= source.vmax_pu:
            yield (
                element,
                f"vmin_pu {source.vmin_pu} must be below vmax_pu {source.vmax_pu}: correct them",
            )
    for element, battery in lookup.records("storages"):
        if battery.kwh_stored < 0 or battery.kwh_stored > battery.kwh_rated * (1 + 1e-9):
            yield (
                element,
                f"kwh_stored {battery.kwh_stored} is outside [0, {battery.kwh_rated}]: correct it",
            )


_RULES: tuple[Callable[[Lookup], Found], ...] = (
    _names,
    _numbers,
    _choices,
    _references,
    _ranges,
    _ratings,
    consistency.terminals,
    consistency.shapes,
    consistency.impedances,
    consistency.voltages,
    consistency.reach,
)
_DOUBTS = (_ratings, consistency.voltages)
