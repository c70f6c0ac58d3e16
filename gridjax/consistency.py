"""Whether the parts of a feeder fit each other: terminals, matrices, voltages, paths to a source.

These are the findings of `gridjax.validate` for which more than one record must be looked at. Each
function yields pairs of an element (`"load.s47"`) and a message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gridjax.feeder import (
    Bus,
    Capacitor,
    Feeder,
    Geometry,
    Line,
    LineCode,
    Matrix,
    Reactor,
    SequenceCode,
    Source,
    Transformer,
    split_terminal,
)
from gridjax.graph import energised

KINDS = {
    "buses": "bus",
    "sources": "source",
    "codes": "code",
    "wires": "wire",
    "lines": "line",
    "switches": "switch",
    "transformers": "transformer",
    "regulators": "regulator",
    "capacitors": "capacitor",
    "capacitor_controls": "capacitor_control",
    "reactors": "reactor",
    "loads": "load",
    "generators": "generator",
    "pv_systems": "pv_system",
    "storages": "storage",
    "admittances": "admittance",
}
"""The tables of a feeder, and what one record of each is called in `Problem.element`."""

BASE_TOLERANCE = 0.01  # between the two ends of a line or switch
RATED_TOLERANCE = 0.15  # between an element's kv and its bus's base_kv
SYMMETRY_TOLERANCE = 1e-6  # of a matrix's largest entry

Found = Iterator[tuple[str, str]]


class Lookup:
    """The feeder with its names: the terminals that are sound, the records by name."""

    def __init__(self, feeder: Feeder) -> None:
        self.feeder = feeder
        self.buses: dict[str, Bus] = {bus.name: bus for bus in feeder.buses}
        self.codes = {code.name: code for code in feeder.codes}
        self.transformers = {t.name: t for t in feeder.transformers}

    def nodes(self, terminal: str) -> tuple[Bus, tuple[int, ...]] | None:
        """The terminal's bus and node numbers; None if the terminal is not sound."""
        try:
            name, numbers = split_terminal(terminal)
        except ValueError:
            return None
        bus = self.buses.get(name)
        return None if bus is None else (bus, numbers)

    def records(self, *tables: str) -> Iterator[tuple[str, Any]]:
        """`("load.s47", Load(...))` for every record of the tables."""
        for table in tables:
            for record in getattr(self.feeder, table):
                yield f"{KINDS[table]}.{record.name}", record


def _conductors(phases: int, connection: str) -> int | None:
    """How many nodes a wye or delta element's terminal lists; None if it cannot be said."""
    if phases not in (1, 2, 3):
        return None
    return {"wye": phases + 1, "delta": min(phases + 1, 3)}.get(connection)


def terminals(lookup: Lookup) -> Found:
    """Each terminal by itself: its text, bus and nodes, and how many nodes it lists."""
    for element, record in lookup.records(*list(KINDS)[1:]):
        for label, terminal, count, free in _terminals_of(record):
            try:
                name, numbers = split_terminal(terminal)
            except ValueError as error:
                yield element, f"{label}{error}: correct it"
                continue
            bus = lookup.buses.get(name)
            if bus is None:
                yield element, f"{label}unknown bus {name!r}: add it or correct the terminal"
            else:
                for node in sorted({n for n in numbers if n != 0} - set(bus.nodes)):
                    yield (
                        element,
                        f"{label}bus {name!r} has no node {node} (no such phase there; it has "
                        f"{', '.join(map(str, bus.nodes))}): correct the terminal or the bus",
                    )
            if count is not None and len(numbers) != count:
                yield (
                    element,
                    f"{label}terminal {terminal!r} lists {len(numbers)} nodes, but the phases and "
                    f"connection need {count}: correct the terminal",
                )
            live = [n for n in numbers if n != 0]
            if not free and len(set(live)) < len(live):
                yield (
                    element,
                    f"{label}terminal {terminal!r} lists a node twice: name each phase once",
                )
            if isinstance(record, Source) and len(live) < len(numbers):
                yield element, "a source has one node a phase and no ground: leave out the 0"


def _terminals_of(record: Any) -> Iterator[tuple[str, str, int | None, bool]]:
    """Label, terminal, number of nodes (if known), and whether nodes may repeat."""
    if isinstance(record, Transformer):
        for number, winding in enumerate(record.windings, 1):
            count = _conductors(record.phases, winding.connection)
            yield f"winding {number}: ", winding.bus, count, False
    elif isinstance(record, Capacitor | Reactor):
        wye = record.connection == "wye"
        count = record.phases if wye else _conductors(record.phases, record.connection)
        yield "bus1: ", record.bus1, count, False
        if record.bus2 is not None:
            yield "bus2: ", record.bus2, record.phases if wye else None, True
    elif hasattr(record, "terminals"):
        yield from (("", terminal, None, True) for terminal in record.terminals)
    elif hasattr(record, "bus1"):
        yield "bus1: ", record.bus1, None, False
        yield "bus2: ", record.bus2, None, False
    elif hasattr(record, "connection"):
        yield "", record.bus, _conductors(record.phases, record.connection), False
    elif hasattr(record, "bus"):
        yield "", record.bus, None, False


def shapes(lookup: Lookup) -> Found:
    """Matrices and lists that must have as many entries as something else."""
    for element, code in lookup.records("codes"):
        yield from ((element, text) for text in _code_shape(code))
    for element, line in lookup.records("lines", "switches"):
        ends = [lookup.nodes(terminal) for terminal in (line.bus1, line.bus2)]
        counts = [len(end[1]) for end in ends if end is not None]
        if len(set(counts)) > 1:
            yield (
                element,
                f"bus1 lists {counts[0]} nodes and bus2 {counts[1]}: list as many at both",
            )
        size = _size(lookup.codes.get(line.code)) if isinstance(line, Line) else None
        if size is not None and counts and size not in counts:
            yield (
                element,
                f"has {counts[0]} conductors, but its code {line.code!r} is for {size}: "
                "use another code or correct the terminals",
            )
    for element, transformer in lookup.records("transformers"):
        count = len(transformer.windings)
        if count < 2:
            yield element, f"has {count} windings: give two or more"
        elif len(transformer.x_percent) != count * (count - 1) // 2:
            yield (
                element,
                f"x_percent has {len(transformer.x_percent)} entries, but {count} windings have "
                f"{count * (count - 1) // 2} pairs: give one for each, in order 12, 13, ..., 23",
            )
    for element, shunt in lookup.records("capacitors", "reactors"):
        if (shunt.bus2 is None) != (shunt.connection == "delta"):
            yield element, "bus2 belongs to wye, all 0 when grounded; delta has None: correct it"
    for element, bank in lookup.records("capacitors"):
        lengths = [len(bank.closed)] + [len(v) for v in (bank.r_ohm, bank.xl_ohm) if v]
        if not bank.kvar or set(lengths) != {len(bank.kvar)}:
            yield (
                element,
                "kvar, closed, and r_ohm and xl_ohm if given, need one entry for each step",
            )
    for element, item in lookup.records("admittances"):
        ends = [lookup.nodes(terminal) for terminal in item.terminals]
        count = sum(len(end[1]) for end in ends if end is not None)
        if None not in ends and not (_is_square(item.g, count) and _is_square(item.b, count)):
            yield (
                element,
                f"g and b must be {count} by {count}, one row for each conductor: correct them",
            )
    for element, pv in lookup.records("pv_systems"):
        for field in ("power_curve", "efficiency_curve"):
            curve = getattr(pv, field)
            if curve is not None and not _is_curve(curve):
                yield element, f"{field} must be ((x, ...), (y, ...)) of equal lengths, x rising"


def _is_square(matrix: Matrix, size: int) -> bool:
    return len(matrix) == size and all(len(row) == size for row in matrix)


def _is_curve(curve: Matrix) -> bool:
    if len(curve) != 2 or not curve[0] or len(curve[0]) != len(curve[1]):
        return False
    return not any(b <= a for a, b in zip(curve[0], curve[0][1:], strict=False))


def _size(code: LineCode | SequenceCode | Geometry | None) -> int | None:
    """For how many conductors a code is."""
    if code is None:
        return None
    return len(code.r) if isinstance(code, LineCode) else code.phases


def _code_shape(code: LineCode | SequenceCode | Geometry) -> Iterator[str]:
    if isinstance(code, SequenceCode):
        if code.phases < 1:
            yield f"cannot have {code.phases} phases: use 1 or more"
        return
    if isinstance(code, Geometry):
        count = len(code.wires)
        if not count == len(code.x_m) == len(code.h_m):
            yield "wires, x_m and h_m need one entry for each conductor: make their lengths equal"
        if not 1 <= code.phases <= count:
            yield f"has {count} wires for {code.phases} phases: give at least a wire for each phase"
        places = list(zip(code.x_m, code.h_m, strict=False))
        if len(set(places)) < len(places):
            yield "two conductors are in one place: correct x_m or h_m"
        return
    for field in ("r", "x", "c"):
        matrix = getattr(code, field)
        if not matrix or not _is_square(matrix, len(code.r)):
            yield f"{field} must be square, of the size of r ({len(code.r)}): correct it"
        else:
            entries = np.array(matrix)
            if np.any(abs(entries - entries.T) > SYMMETRY_TOLERANCE * np.max(abs(entries))):
                yield f"{field} is not symmetric: give [i][j] and [j][i] the same value"


def impedances(lookup: Lookup) -> Found:
    """Series impedances that cannot be inverted."""
    singular = {name: _is_singular(code) for name, code in lookup.codes.items()}
    for element, line in lookup.records("lines"):
        if singular.get(line.code):
            yield (
                element,
                f"the series impedance of its code {line.code!r} is singular: "
                "give it an impedance, or model the line as a switch",
            )
    for element, switch in lookup.records("switches"):
        if switch.closed and switch.r_ohm == 0 and switch.x_ohm == 0:
            yield element, "is closed with zero impedance: give it some, such as r_ohm=1e-4"
    for element, transformer in lookup.records("transformers"):
        if _is_shorted(transformer):
            yield (
                element,
                "the short-circuit impedance between its windings is zero or singular: "
                "give x_percent (or r_percent) a value",
            )
    for element, reactor in lookup.records("reactors"):
        if reactor.r_ohm == 0 and reactor.x_ohm == 0:
            yield element, "has zero impedance: give r_ohm or x_ohm a value"
    for element, source in lookup.records("sources"):
        end = lookup.nodes(source.bus)
        z1, z0 = complex(source.r1_ohm, source.x1_ohm), complex(source.r0_ohm, source.x0_ohm)
        z2 = complex(
            source.r1_ohm if source.r2_ohm is None else source.r2_ohm,
            source.x1_ohm if source.x2_ohm is None else source.x2_ohm,
        )
        one_phase = end is not None and len(end[1]) == 1
        if z1 == 0 or (not one_phase and (z0 == 0 or z2 == 0)):
            yield element, "has zero impedance in a sequence: give it some, such as x1_ohm=1e-3"


def _is_singular(code: LineCode | SequenceCode | Geometry) -> bool:
    if isinstance(code, SequenceCode):
        z1, z0 = complex(code.r1, code.x1), complex(code.r0, code.x0)
        n = code.phases  # the eigenvalues of (2 z1 + z0)/3 on and (z0 - z1)/3 off the diagonal
        return z1 == 0 or (n > 1 and (3 - n) * z1 + n * z0 == 0)
    if isinstance(code, Geometry):
        return False  # conductors have impedance
    size = len(code.r)
    if not (_is_square(code.r, size) and _is_square(code.x, size)):
        return False  # which is another finding
    return _is_deficient(np.array(code.r) + 1j * np.array(code.x))


def _is_deficient(z: np.ndarray) -> bool:
    """Whether a finite matrix is singular to rounding."""
    scale = float(max(np.max(abs(np.real(z)), initial=0.0), np.max(abs(np.imag(z)), initial=0.0)))
    if not math.isfinite(scale) or z.size == 0:
        return False
    return bool(scale == 0 or np.linalg.matrix_rank(z / scale) < len(z))


def _is_shorted(transformer: Transformer) -> bool:
    """Whether `ZB` (percent, from winding 1 to the others) is singular or has a zero pair."""
    count = len(transformer.windings)
    if count < 2 or len(transformer.x_percent) != count * (count - 1) // 2:
        return False
    r = [winding.r_percent for winding in transformer.windings]
    pair = np.zeros((count, count), complex)
    rows, columns = np.triu_indices(count, 1)
    for i, j, x in zip(rows, columns, transformer.x_percent, strict=True):
        pair[i, j] = pair[j, i] = complex(r[i] + r[j], x)
    to_first = pair[0, 1:]
    zb = (to_first[:, None] + to_first[None, :] - pair[1:, 1:]) / 2
    return bool(np.any(to_first == 0)) or _is_deficient(zb)


def voltages(lookup: Lookup) -> Found:
    """Base and rated voltages that do not belong together."""
    for element, line in lookup.records("lines", "switches"):
        ends = [lookup.nodes(terminal) for terminal in (line.bus1, line.bus2)]
        bases = [end[0].base_kv for end in ends if end is not None]
        if len(bases) < 2 or not getattr(line, "closed", True):
            continue
        first, second = bases
        if abs(first - second) > BASE_TOLERANCE * max(first, second):
            yield (
                element,
                f"joins buses with different base_kv, {first} and {second}: correct one of them, "
                "or put a transformer between",
            )
    for element, transformer in lookup.records("transformers"):
        for number, winding in enumerate(transformer.windings, 1):
            text = _misrated(lookup, winding.bus, winding.kv, transformer.phases, winding.connection)
            end = lookup.nodes(winding.bus)
            zigzag = transformer.phases == 1 and end is not None and max(end[1]) >= 4
            if text and not zigzag:
                yield element, f"winding {number}: {text}"
    for element, item in lookup.records("capacitors", "loads", "generators", "pv_systems", "storages"):
        terminal = _across(item) if isinstance(item, Capacitor) else item.bus
        text = _misrated(lookup, terminal, item.kv, item.phases, item.connection)
        if text:
            yield element, text
    for element, source in lookup.records("sources"):
        end = lookup.nodes(source.bus)
        phases = len(end[1]) if end is not None else 0
        text = _misrated(lookup, source.bus, source.base_kv, phases, "wye")
        if text:
            yield element, text.replace("kv", "base_kv", 1)


def _across(bank: Capacitor) -> str:
    """The terminal across which a bank stands, as for a load; empty for a bank in series."""
    if bank.bus2 is None:
        return bank.bus1
    try:
        (bus1, _), (bus2, nodes) = split_terminal(bank.bus1), split_terminal(bank.bus2)
    except ValueError:
        return ""
    if bus1 != bus2 and any(nodes):
        return ""
    return f"{bank.bus1}.{nodes[0]}"


def _misrated(lookup: Lookup, terminal: str, kv: float, phases: int, connection: str) -> str:
    """What is wrong with an element's rated voltage at its bus; empty if nothing is."""
    end = lookup.nodes(terminal)
    if end is None or not (0 < end[0].base_kv < math.inf and 0 < kv < math.inf):
        return ""
    bus, nodes = end
    hot = nodes[: min(phases, len(nodes))] if connection == "wye" else nodes
    if phases == 1:
        hot = tuple(node for node in nodes if node not in (0, 4))
    if not hot or max(hot) >= 4:  # further conductors: their voltage is not known
        return ""
    if phases > 1:
        factors = (math.sqrt(3.0), 2.0) if phases == 2 or connection == "delta" else (math.sqrt(3.0),)
    else:
        factors = (1.0,) if len(hot) == 1 else (math.sqrt(3.0), 2.0)
    if any(abs(kv / (factor * bus.base_kv) - 1) <= RATED_TOLERANCE for factor in factors):
        return ""
    return (
        f"kv {kv:g} does not fit bus {bus.name!r}, where {factors[0] * bus.base_kv:.5g} kV is "
        f"expected (base_kv {bus.base_kv:.5g} to neutral): correct kv (line to line for 2 and 3 "
        "phases) or base_kv"
    )


def reach(lookup: Lookup) -> Found:
    """Buses and nodes to which no path leads from a source."""
    feeder = lookup.feeder
    if not any(lookup.nodes(source.bus) for source in feeder.sources):
        return  # then everything is dead, for a reason already given
    reached, grounded = energised(feeder)
    for bus in feeder.buses:
        dead = [n for n in bus.nodes if (bus.name, n) not in reached and (bus.name, n) not in grounded]
        if dead and not any((bus.name, node) in reached for node in bus.nodes):
            yield (
                f"bus.{bus.name}",
                "is an island, with no path to a source: close a switch, connect it, or remove it",
            )
        elif dead:
            names = ", ".join(map(str, dead))
            yield (
                f"bus.{bus.name}",
                f"no path to a source from node {names} (a phase that does not reach): "
                "connect it, or leave it out of the bus's nodes",
            )
