"""Elements to static facts, numbers and conductors: the host's half of `gridjax.admittance`.

Everything that decides a shape or a branch goes into `static`, every number into `params`. A wire
without a capacitive radius gets its outer one here: a derivative sees the two apart. A line by
geometry with the unit "none" is measured in metres.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from gridjax.feeder import (
    KM_PER_UNIT,
    Admittance,
    Capacitor,
    Feeder,
    Geometry,
    Line,
    LineCode,
    Reactor,
    SequenceCode,
    Source,
    Switch,
    Transformer,
    split_terminal,
)
from gridjax.line_constants import EARTH_MODELS

Element = Source | Line | Switch | Transformer | Capacitor | Reactor | Admittance


@dataclass(frozen=True)
class Description:
    """An element as `primitive` wants it.

    Attributes:
      static: the kind and the shapes; hashable. Params of equal statics can be stacked.
      params: every number a derivative could be wanted for, as float64 arrays; `static` gives their
        shapes.
      conductors: `"bus.node"` of each row of the matrix, terminal by terminal; `"bus.0"` is ground.
    """

    static: tuple
    params: dict[str, np.ndarray]
    conductors: tuple[str, ...]


def describe(feeder: Feeder, element: Element) -> Description:
    """Translates an element into static facts, numbers and conductors.

    Args:
      feeder: where the codes, the wires and the frequency are looked up.
      element: a Source, Line, Switch, Transformer, Capacitor, Reactor or Admittance.

    Raises:
      ValueError: the element cannot be modelled as it stands; the message says what to change.
    """
    match element:
        case Line():
            static, numbers, terminals = _describe_line(feeder, element)
        case Transformer():
            static, numbers, terminals = _describe_transformer(element)
        case Switch():
            static, numbers, terminals = _describe_switch(element)
        case Source():
            static, numbers, terminals = _describe_source(element)
        case Capacitor():
            static, numbers, terminals = _describe_capacitor(element)
        case Reactor():
            static, numbers, terminals = _describe_reactor(element)
        case Admittance():
            static, numbers, terminals = _describe_admittance(element)
        case _:
            raise ValueError(f"{type(element).__name__} has no primitive admittance matrix")
    params = {key: np.asarray(value, dtype=np.float64) for key, value in numbers.items()}
    for key, value in params.items():
        _require(bool(np.isfinite(value).all()), element, f"{key} must be finite numbers")
    buses = [split_terminal(t) for t in terminals]
    return Description(static, params, tuple(f"{bus}.{n}" for bus, nodes in buses for n in nodes))


def source_from_short_circuit(
    name: str,
    bus: str,
    base_kv: float,
    mva_sc3: float = 2000.0,
    mva_sc1: float = 2100.0,
    x1r1: float = 4.0,
    x0r0: float = 3.0,
    pu: float = 1.0,
    angle_deg: float = 0.0,
) -> Source:
    """A source from its short-circuit powers (MVA, three- and single-phase) and its X/R ratios.

    `|2 Z1 + Z0| = 3 kV^2/mva_sc1` gives R0. A one-phase source has the impedance (2 Z1 + Z0)/3.

    Raises:
      ValueError: no R0 >= 0 gives that single-phase power.
    """
    x1 = base_kv**2 / mva_sc3 / math.sqrt(1 + 1 / x1r1**2)
    r1 = x1 / x1r1
    a, b = 1 + x0r0**2, 4 * (r1 + x1 * x0r0)
    c = 4 * (r1**2 + x1**2) - (3 * base_kv**2 / mva_sc1) ** 2
    if c > 0:
        raise ValueError(f"Source {name!r}: mva_sc1={mva_sc1} needs a negative R0; lower it")
    r0 = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    z1, z0 = complex(r1, x1), complex(r0, r0 * x0r0)
    if len(split_terminal(bus)[1]) == 1:
        z1 = z0 = (2 * z1 + z0) / 3
    return Source(name, bus, base_kv, pu, angle_deg, z1.real, z1.imag, z0.real, z0.imag)


def winding_conductors(phases: int, connection: str) -> int:
    """How many conductors a winding or bank of this connection has."""
    return phases + 1 if connection == "wye" or phases < 3 else 3


def _require(condition: bool, element: Element, cure: str) -> None:
    if not condition:
        raise _refusal(element, cure)


def _refusal(element: Element, cure: str) -> ValueError:
    return ValueError(f"{type(element).__name__} {element.name!r}: {cure}")


class _Table:
    """A table by identity, so that its names are indexed once and not for each line."""

    def __init__(self, rows: tuple) -> None:
        self.rows = rows

    def __hash__(self) -> int:
        return id(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and self.rows is other.rows


@functools.lru_cache(maxsize=8)
def _by_name(table: _Table) -> dict:
    return {row.name: row for row in table.rows}


def _describe_line(feeder: Feeder, line: Line) -> tuple:
    code = _by_name(_Table(feeder.codes)).get(line.code)
    if code is None:
        raise _refusal(line, f"no code named {line.code!r}; add it to the feeder's codes")
    n = _same_nodes(line, line.bus1, line.bus2)
    phases = len(code.r) if isinstance(code, LineCode) else code.phases
    _require(phases == n, line, f"code {code.name!r} has {phases} phases, the terminals {n}")
    _require(line.length > 0, line, f"length must be positive, not {line.length}")
    _require(line.unit in KM_PER_UNIT, line, f"unit {line.unit!r} is not in {list(KM_PER_UNIT)}")
    terminals = (line.bus1, line.bus2)
    numbers = {"frequency_hz": feeder.frequency_hz, "length": line.length}
    if isinstance(code, Geometry):
        numbers["unit_factor"] = 1.0 if line.unit == "none" else KM_PER_UNIT[line.unit] * 1e3
        numbers |= _geometry_numbers(feeder, line, code)
        return ("line", n, "geometry", code.earth_model, len(code.wires)), numbers, terminals
    _require(code.unit in KM_PER_UNIT, line, f"unit {code.unit!r} is not in {list(KM_PER_UNIT)}")
    none = "none" in (line.unit, code.unit)
    numbers["unit_factor"] = 1.0 if none else KM_PER_UNIT[line.unit] / KM_PER_UNIT[code.unit]
    if isinstance(code, SequenceCode):
        numbers |= {key: getattr(code, key) for key in ("r1", "x1", "r0", "x0", "c1", "c0")}
        return ("line", n, "sequence"), numbers, terminals
    square = all(len(m) == n and all(len(row) == n for row in m) for m in (code.r, code.x, code.c))
    _require(square, line, f"r, x and c of code {code.name!r} must be {n} by {n}")
    numbers |= {"r": code.r, "x": code.x, "c": code.c}
    return ("line", n, "matrix"), numbers, terminals


def _geometry_numbers(feeder: Feeder, line: Line, code: Geometry) -> dict:
    n = len(code.wires)
    alike = n == len(code.x_m) == len(code.h_m) and 0 < code.phases <= n
    _require(alike, line, f"geometry {code.name!r} needs one wire, x_m and h_m a conductor")
    known = code.earth_model in EARTH_MODELS
    _require(known, line, f"earth model {code.earth_model!r} is not in {list(EARTH_MODELS)}")
    _require(min(code.h_m) > 0, line, f"geometry {code.name!r} needs heights over 0")
    places = set(zip(code.x_m, code.h_m, strict=True))
    _require(len(places) == n, line, f"geometry {code.name!r} has two conductors in one place")
    table = _by_name(_Table(feeder.wires))
    missing = [name for name in code.wires if name not in table]
    _require(not missing, line, f"no wires named {missing}; add them to the feeder's wires")
    wires = [table[name] for name in code.wires]
    numbers = {
        key: [getattr(wire, key) for wire in wires]
        for key in ("r_dc_ohm_per_km", "r_ac_ohm_per_km", "gmr_m", "radius_m")
    }
    numbers["cap_radius_m"] = [w.radius_m if w.cap_radius_m is None else w.cap_radius_m for w in wires]
    positive = all(min(column) > 0 for column in numbers.values())
    _require(positive, line, f"geometry {code.name!r} needs positive resistances and radii")
    return numbers | {"x_m": code.x_m, "h_m": code.h_m, "rho_ohm_m": code.rho_ohm_m}


def _same_nodes(element: Element, bus1: str, bus2: str) -> int:
    n, other = len(split_terminal(bus1)[1]), len(split_terminal(bus2)[1])
    _require(n == other, element, f"terminals {bus1!r} and {bus2!r} differ in their nodes")
    return n


def _describe_switch(switch: Switch) -> tuple:
    n = _same_nodes(switch, switch.bus1, switch.bus2)
    _require(bool(switch.r_ohm or switch.x_ohm), switch, "r_ohm and x_ohm are both 0; give one")
    numbers = {"r_ohm": switch.r_ohm, "x_ohm": switch.x_ohm, "closed": switch.closed}
    return ("switch", n), numbers, (switch.bus1, switch.bus2)


def _describe_source(source: Source) -> tuple:
    n = len(split_terminal(source.bus)[1])
    numbers = {key: getattr(source, key) for key in ("r1_ohm", "x1_ohm", "r0_ohm", "x0_ohm")}
    _require(any((source.r1_ohm, source.x1_ohm)), source, "r1_ohm and x1_ohm are both 0; give one")
    zero = n > 1 and not any((source.r0_ohm, source.x0_ohm))
    _require(not zero, source, "r0_ohm and x0_ohm are both 0; give one")
    r2 = source.r1_ohm if source.r2_ohm is None else source.r2_ohm
    x2 = source.x1_ohm if source.x2_ohm is None else source.x2_ohm
    symmetric = n == 1 or (r2, x2) == (source.r1_ohm, source.x1_ohm)
    if not symmetric:
        _require(bool(r2 or x2), source, "r2_ohm and x2_ohm are both 0; give one")
        numbers |= {"r2_ohm": r2, "x2_ohm": x2}
    return ("source", n, symmetric), numbers, (source.bus,)


def _describe_transformer(unit: Transformer) -> tuple:
    windings, w = unit.windings, len(unit.windings)
    _require(unit.phases in (1, 2, 3), unit, f"phases must be 1, 2 or 3, not {unit.phases}")
    _require(w >= 2, unit, f"needs two windings or more, not {w}")
    pairs = w * (w - 1) // 2
    _require(len(unit.x_percent) == pairs, unit, f"x_percent must list {pairs} winding pairs")
    _require(unit.lead_lag in ("lead", "lag"), unit, "lead_lag must be 'lead' or 'lag'")
    for i, winding in enumerate(windings, 1):
        _require_terminal(unit, winding.bus, unit.phases, winding.connection)
        good = winding.kv > 0 and winding.kva > 0 and winding.tap != 0
        _require(good, unit, f"winding {i} needs kv > 0, kva > 0 and a tap other than 0")
    first, second = windings[:2]
    high = first if first.kv >= second.kv else second
    leads = (high.connection == "delta") == (unit.lead_lag == "lead")
    direction = 1 if first.connection == second.connection or leads else -1
    neutrals = tuple(
        "none"
        if v.connection == "delta"
        else "open"
        if v.r_neutral_ohm is None
        else "impedance"
        if v.r_neutral_ohm or v.x_neutral_ohm
        else "solid"
        for v in windings
    )
    numbers = {
        "kva": first.kva,
        "kv": [v.kv for v in windings],
        "tap": [v.tap for v in windings],
        "r_percent": [v.r_percent for v in windings],
        "r_neutral_ohm": [v.r_neutral_ohm or 0.0 for v in windings],
        "x_neutral_ohm": [v.x_neutral_ohm for v in windings],
    }
    for key in ("x_percent", "no_load_loss_percent", "magnetizing_percent", "antifloat_ppm"):
        numbers[key] = getattr(unit, key)
    connections = tuple(v.connection for v in windings)
    static = ("transformer", unit.phases, connections, direction, neutrals)
    return static, numbers, tuple(v.bus for v in windings)


def _require_terminal(element: Element, terminal: str, phases: int, connection: str) -> None:
    known = connection in ("wye", "delta")
    _require(known, element, f"connection {connection!r} is neither 'wye' nor 'delta'")
    count, given = winding_conductors(phases, connection), len(split_terminal(terminal)[1])
    _require(given == count, element, f"terminal {terminal!r} must name {count} nodes")


def _branch_terminals(element: Capacitor | Reactor) -> tuple[str, ...]:
    """Checks a bank's terminals: one of a delta's, or two of a wye's with one node a phase."""
    phases = element.phases
    _require(phases in (1, 2, 3), element, f"phases must be 1, 2 or 3, not {phases}")
    if element.connection != "wye":
        _require_terminal(element, element.bus1, phases, element.connection)
        _require(element.bus2 is None, element, "a delta has no bus2; leave it None")
        return (element.bus1,)
    if element.bus2 is None:
        raise _refusal(element, "a wye needs bus2 (all nodes 0 to ground it)")
    n = _same_nodes(element, element.bus1, element.bus2)
    _require(n == phases, element, f"a wye's terminals must name {phases} nodes")
    return element.bus1, element.bus2


def _describe_capacitor(bank: Capacitor) -> tuple:
    terminals, steps = _branch_terminals(bank), len(bank.kvar)
    _require(bank.kv > 0 and steps > 0, bank, "needs kv > 0 and one kvar a step")
    numbers = {"kv": bank.kv, "kvar": bank.kvar, "closed": bank.closed}
    numbers |= {"r_ohm": bank.r_ohm or [0.0] * steps, "xl_ohm": bank.xl_ohm or [0.0] * steps}
    for key in ("closed", "r_ohm", "xl_ohm"):
        _require(len(numbers[key]) == steps, bank, f"{key} must have {steps} entries, one a step")
    open_delta = bank.connection == "delta" and bank.phases == 2
    plain = not any((*numbers["r_ohm"], *numbers["xl_ohm"]))
    cure = "a two-phase delta cannot have r_ohm or xl_ohm; make it two one-phase banks"
    _require(plain or not open_delta, bank, cure)
    return ("capacitor", bank.phases, bank.connection, steps), numbers, terminals


def _describe_reactor(reactor: Reactor) -> tuple:
    terminals = _branch_terminals(reactor)
    _require(bool(reactor.r_ohm or reactor.x_ohm), reactor, "r_ohm and x_ohm are both 0; give one")
    numbers = {"r_ohm": reactor.r_ohm, "x_ohm": reactor.x_ohm}
    if reactor.rp_ohm is not None:
        _require(reactor.rp_ohm != 0, reactor, "rp_ohm must not be 0; leave it None for none")
        numbers["rp_ohm"] = reactor.rp_ohm
    return ("reactor", reactor.phases, reactor.connection, "rp_ohm" in numbers), numbers, terminals


def _describe_admittance(element: Admittance) -> tuple:
    m = sum(len(split_terminal(t)[1]) for t in element.terminals)
    square = all(len(y) == m and all(len(row) == m for row in y) for y in (element.g, element.b))
    _require(square, element, f"g and b must be {m} by {m}, as the terminals have nodes")
    return ("admittance", m), {"g": element.g, "b": element.b}, element.terminals
