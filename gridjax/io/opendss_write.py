"""Feeders as OpenDSS scripts.

One script builds the whole circuit. Taps and capacitor states are forced, controls are written with
their data but `controlmode` is off, and each bus gets its own voltage base, so that the engine
finds the voltages of the feeder as it stands. A generic `Admittance` has no equal in OpenDSS: it is
written as one-phase reactors between its nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

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
    phases = {code.name: commands.code_phases(code) for code in feeder.codes}
    geometries = {code.name: code for code in feeder.codes if isinstance(code, Geometry)}
    yield f"! {feeder.name}: written by gridjax"
    yield "Clear"
    yield f"Set DefaultBaseFrequency={commands.text(hz)}"
    yield f"New Circuit.{feeder.name}"
    yield from _sources(feeder)
    yield from map(commands.wire, feeder.wires)
    for code in feeder.codes:
        yield commands.geometry(code) if isinstance(code, Geometry) else commands.code(code)
    for line in feeder.lines:
        yield commands.line(line, phases[line.code], geometries.get(line.code))
    for switch in feeder.switches:
        yield from commands.switch(switch)
    yield from map(commands.transformer, feeder.transformers)
    for capacitor in feeder.capacitors:
        yield commands.capacitor(capacitor, hz)
    yield from map(commands.reactor, feeder.reactors)
    for admittance in feeder.admittances:
        yield from commands.admittance(admittance)
    yield from map(commands.load, feeder.loads)
    yield from map(commands.generator, feeder.generators)
    for pv in feeder.pv_systems:
        yield from commands.pv_system(pv)
    yield from map(commands.storage, feeder.storages)
    yield from map(commands.regulator, feeder.regulators)
    for control in feeder.capacitor_controls:
        yield commands.capacitor_control(feeder, control)
    yield "MakeBusList"
    for bus in feeder.buses:
        yield from commands.bus(bus)
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
        yield commands.source(source, feeder.frequency_hz)
