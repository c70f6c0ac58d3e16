"""Feeders as OpenDSS scripts.

One script builds the whole circuit. Taps and capacitor states are forced, controls are written with
their data but `controlmode` is off, and each bus gets its own voltage base, so that the engine
finds the voltages of the feeder as it stands. A generic `Admittance` has no equal in OpenDSS: it is
written as one-phase reactors between its nodes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gridjax.feeder import Feeder, Geometry, split_terminal
from gridjax.io import opendss_commands as commands

NAME = re.compile(r"[A-Za-z0-9_+*#$&:<>?-]+(/[A-Za-z0-9_+#$&:<>?-]+)*")
# Tables that share a class, and with it a space of names, in OpenDSS.
SHARED = (
    ("lines", "switches"),
    *((table,) for table in ("buses", "sources", "codes", "wires", "transformers", "regulators")),
    *((table,) for table in ("capacitors", "capacitor_controls", "loads", "generators")),
    ("pv_systems",),
    ("storages",),
    ("reactors",),
)


def write_opendss(feeder: Feeder, path: str | Path) -> None:
    """Writes a script that makes the OpenDSS engine solve this feeder.

    The solution's tolerance is left at the engine's 1e-4: set a smaller one and solve again to
    compare voltages.

    Args:
      feeder: the feeder.
      path: the file to write.

    Raises:
      ValueError: OpenDSS cannot hold the feeder: a name with characters of its syntax, names that
        differ in case only, a switch without impedance, an admittance that is not symmetric. The
        message names the element.
    """
    _require_names(feeder)
    Path(path).write_text("\n".join(_script(feeder)) + "\n", encoding="ascii")


def _script(feeder: Feeder) -> Iterator[str]:
    hz = feeder.frequency_hz
    phases = {code.name: code_phases(code) for code in feeder.codes}
    geometries = {code.name: code for code in feeder.codes if isinstance(code, Geometry)}
    yield f"! {feeder.name}: written by gridjax"
    yield "Clear"
    yield f"Set DefaultBaseFrequency={text(hz)}"
    yield f"New Circuit.{feeder.name}"
    yield from _sources(feeder)
    yield from map(wire_command, feeder.wires)
    for code in feeder.codes:
        yield geometry_command(code) if isinstance(code, Geometry) else code_command(code)
    for line in feeder.lines:
        yield line_command(line, phases[line.code], geometries.get(line.code))
    for switch in feeder.switches:
        yield from switch_command(switch)
    yield from map(transformer_command, feeder.transformers)
    for capacitor in feeder.capacitors:
        yield capacitor_command(capacitor, hz)
    yield from map(reactor_command, feeder.reactors)
    for admittance in feeder.admittances:
        yield from admittance_command(admittance)
    yield from map(load_command, feeder.loads)
    yield from map(generator_command, feeder.generators)
    for pv in feeder.pv_systems:
        yield from pv_system_command(pv)
    yield from map(storage_command, feeder.storages)
    yield from map(regulator_command, feeder.regulators)
    for control in feeder.capacitor_controls:
        yield capacitor_control_command(feeder, control)
    yield "MakeBusList"
    for bus in feeder.buses:
        yield from bus_command(bus)
    yield "Set ControlMode=off"
    yield "Set MaxIterations=500"
    yield "Solve"


# --- Names. ---


def _require_names(feeder: Feeder) -> None:
    _require_name("the feeder", feeder.name)
    for tables in SHARED:
        seen: dict[str, str] = {}
        for table in tables:
            for record in getattr(feeder, table):
                label = f"{table}: {record.name!r}"
                _require_name(label, record.name, dots=table in ("codes", "wires"))
                if record.name.lower() in seen:
                    raise ValueError(
                        f"{label}: OpenDSS cannot tell it from {seen[record.name.lower()]}; rename one of them"
                    )
                seen[record.name.lower()] = label
    for admittance in feeder.admittances:
        _require_name(f"admittances: {admittance.name!r}", admittance.name)


def _require_name(label: str, name: str, dots: bool = False) -> None:
    if not NAME.fullmatch(name.replace(".", "") if dots else name):
        raise ValueError(f"{label}: OpenDSS cannot hold the name {name!r}; use ASCII letters, digits, '_' and '-'")


def _sources(feeder: Feeder) -> Iterator[str]:
    """`New Circuit` has made a Vsource named source already."""
    if not any(source.name.lower() == "source" for source in feeder.sources):
        first = split_terminal(feeder.sources[0].bus)[0]
        yield f"Edit Vsource.source bus1={first} enabled=no"
    for source in feeder.sources:
        yield source_command(source, feeder.frequency_hz)


