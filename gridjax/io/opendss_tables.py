"""What the OpenDSS reader carries: an element as the engine gives it, and the growing tables."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gridjax.feeder import (
    Admittance,
    Capacitor,
    CapacitorControl,
    Feeder,
    Generator,
    Geometry,
    Line,
    LineCode,
    Load,
    PVSystem,
    Reactor,
    Regulator,
    SequenceCode,
    Source,
    Storage,
    Switch,
    Transformer,
    Wire,
)

NAMED = 10  # elements that a warning names
TABLES = {
    Source: "sources",
    Line: "lines",
    Switch: "switches",
    Transformer: "transformers",
    Regulator: "regulators",
    Capacitor: "capacitors",
    CapacitorControl: "capacitor_controls",
    Reactor: "reactors",
    Load: "loads",
    Generator: "generators",
    PVSystem: "pv_systems",
    Storage: "storages",
    Admittance: "admittances",
}


@dataclass(frozen=True)
class Element:
    """A circuit element as the engine gives it.

    Attributes:
      kind: its class, lower case.
      name: its name, lower case.
      data: its properties, from the engine's JSON export.
      enabled: False for one that takes no part in the circuit.
      phases: number of phases.
      terminals: `"bus.n1.n2..."` of each terminal, with all of its conductors.
      is_open: some conductor was opened.
      y: (m, m) siemens, the engine's primitive admittance over the conductors of all terminals.
      power: kW + j kvar into all conductors at the engine's solution.
      volts: (m,) from each conductor to ground at the engine's solution.
    """

    kind: str
    name: str
    data: dict[str, Any]
    enabled: bool = True
    phases: int = 0
    terminals: tuple[str, ...] = ()
    is_open: bool = False
    y: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), complex), compare=False)
    power: complex = 0j
    volts: np.ndarray = field(default_factory=lambda: np.zeros(0, complex), compare=False)

    @property
    def full_name(self) -> str:
        """`"class.name"`."""
        return f"{self.kind}.{self.name}"

    def terminal(self, i: int = 0, conductors: int | None = None) -> str:
        """Terminal i (from 0), cut down to its first conductors."""
        bus, *nodes = self.terminals[i].split(".")
        return ".".join([bus, *nodes[:conductors]])

    def refuse(self, reason: str, cure: str) -> ValueError:
        """The error to raise for what has no equal in the tables."""
        return ValueError(f"{self.full_name}: {reason}; {cure}")


@dataclass
class Tables:
    """The tables of the feeder that is being read.

    Attributes:
      frequency: Hz.
      admittance_loads: the script asks for `loadmodel=admittance`.
      properties: the engine's export, by class and name.
      notes: warnings, in order.
    """

    frequency: float
    admittance_loads: bool
    properties: dict[str, dict[str, dict]]
    notes: list[str]
    rows: dict[type, list] = field(default_factory=lambda: defaultdict(list))
    codes: dict[str, LineCode | SequenceCode | Geometry] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Any) -> Any:
        """Puts a record in its table."""
        self.rows[type(record)].append(record)
        return record

    def add_code(self, code: LineCode | SequenceCode | Geometry) -> str:
        """Keeps a code, under another name if other values have that one; returns its name."""
        base, number = code.name, 1
        while self.codes.setdefault(code.name, code) != code:
            number += 1
            code = dataclasses.replace(code, name=f"{base}_{number}")
        return code.name

    def replace(self, record: Any, other: Any, element: Element, reason: str) -> None:
        """Puts a generic admittance in the place of a record, with a warning."""
        if isinstance(record, Source):
            raise element.refuse(
                f"its record does not give the engine's admittance ({reason})",
                "describe it by r1, x1, r0 and x0",
            )
        self.rows[type(record)] = [r for r in self.rows[type(record)] if r is not record]
        self.add(other)
        self.note_constant(element, reason)

    def note(self, text: str) -> None:
        """Adds a warning of its own."""
        self.notes.append(text)

    def note_constant(self, element: Element, reason: str) -> None:
        """Warns that an element came in as an `Admittance`."""
        self.note(f"{element.full_name} is read as a constant admittance, with nothing to vary in it: {reason}")

    def note_group(self, what: str, name: str) -> None:
        """Adds a name to a warning that several elements share."""
        self.groups[what].append(name)

    def note_groups(self) -> None:
        """Turns the shared warnings into text."""
        for what, names in self.groups.items():
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            self.notes.append(f"{what}: {', '.join(names[:NAMED])}{more}")
        self.groups.clear()

    def feeder(self, name: str, buses: tuple) -> Feeder:
        """The feeder with the tables as they are; codes that no line uses any more are left out."""
        used = {line.code for line in self.rows[Line]}
        codes = tuple(code for code in self.codes.values() if code.name in used)
        wired = {w for code in codes if isinstance(code, Geometry) for w in code.wires}
        rows: dict[str, Any] = {table: tuple(self.rows[kind]) for kind, table in TABLES.items()}
        return Feeder(
            name=name,
            frequency_hz=self.frequency,
            buses=buses,
            codes=codes,
            wires=tuple(wire for wire in self.wires.values() if wire.name in wired),
            **rows,
        )
