"""OpenDSS scripts: `read_opendss` and `write_opendss`.

The OpenDSS engine itself (dss-python) compiles a script, lets its controls settle and gives the
values, so that everything the script language can say (likes, codes, batch edits, in-line
mathematics) is understood. Numbers are taken in full double precision from the engine's JSON
export.

What the reader makes of the engine's classes:

- Vsource, Line, Transformer, Capacitor, Reactor, Load, Generator, PVSystem, Storage, RegControl and
  CapControl have tables. LineCode, LineGeometry and WireData come along with the lines that use
  them.
- Any other linear element (Fault, AutoTrans, GICTransformer, one that an `open` command cut)
  becomes an `Admittance` with the engine's own matrix, and so does each linear element whose record
  does not give the engine's matrix (`gridjax.io.opendss_check`): a misreading cannot give a wrong
  answer. A warning names it.
- Other elements that inject currents, and features without an equal in the tables, are refused by
  name.
- Meters, the other controls, load shapes and disabled elements are left out; warnings name them.

`write_opendss` is its inverse: `gridjax.io.opendss_write`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gridjax.feeder import Bus, Feeder
from gridjax.io.opendss_check import as_admittance, check_admittances
from gridjax.io.opendss_elements import CONTROLS, LINEAR, METERS, Element, read_element
from gridjax.io.opendss_tables import Tables
from gridjax.io.opendss_write import write_opendss

__all__ = ["read_opendss", "write_opendss"]

FULL = 1  # DSSJSONFlags.Full: every property, set or not
NOT_FOUND = 243  # the engine's error number for a script that it cannot find
UNSETTLED = 485  # the controls were still moving at the limit that the script set
SNAPSHOT = 0
WHOLE_MATRIX = 1
ADMITTANCE_LOADS = 2
CONTROL_OFF = -1
SHARP_TOLERANCE = 1e-10
MAX_ITERATIONS = 500
MAX_CONTROL_ITERATIONS = 200


def read_opendss(path: str | Path, settle: bool = True) -> Feeder:
    """Reads a circuit from an OpenDSS script at its settled snapshot.

    The script runs in an engine context of its own: the working directory, the default context and
    its circuit stay as they are; nothing is shown, and reports (`show`, `export`) go to a temporary
    folder, unless the script itself changes the folder with `compile` or `cd`.

    Args:
      path: the script; other scripts are found relative to it.
      settle: let the controls move taps, capacitors and inverters as the script's control mode
        says. False reads them as the script leaves them.

    Returns:
      The feeder. Load and generator powers are those of the snapshot: with the load multiplier,
      growth and allocation in them; the daily, yearly and duty shapes are not read.

    Raises:
      ImportError: dss-python is not installed.
      FileNotFoundError: there is no such script.
      ValueError: the engine refuses the script, the voltage bases are missing, or an element has no
        equal in the tables. The message names it.

    Warns:
      UserWarning: something was left out or replaced; the message names it and says what is lost.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no OpenDSS script {str(path)!r}")
    notes: list[str] = []
    with _engine() as engine:
        default_bases = _run(engine, path)
        circuit = engine.ActiveCircuit
        _require_frequency(circuit, path)
        _require_bases(engine, path, default_bases)
        _solve(engine, settle, notes)
        feeder = _read_circuit(circuit, notes)
    for note in notes:
        warnings.warn(f"{path.name}: {note}", UserWarning, stacklevel=2)
    return feeder


@contextlib.contextmanager
def _engine() -> Iterator[Any]:
    """A fresh engine context, silent, and all that is common to the process as it was before."""
    try:
        from dss import DSS
    except ImportError as error:
        raise ImportError("reading OpenDSS scripts needs the OpenDSS engine: pip install gridjax[opendss]") from error
    kept = {name: getattr(DSS, name) for name in ("AllowChangeDir", "AllowEditor", "AllowForms")}
    here = os.getcwd()
    engine = DSS.NewContext()
    os.chdir(here)  # a new context goes to where the engine was loaded
    try:
        for name in kept:
            setattr(engine, name, False)
        with tempfile.TemporaryDirectory() as folder:
            engine.DataPath = folder
            yield engine
            engine.ClearAll()
    finally:
        for name, value in kept.items():
            setattr(DSS, name, value)


def _run(engine: Any, path: Path) -> tuple[float, ...]:
    """Runs the script; returns the voltage bases that the engine has when nobody sets them."""
    engine.Text.Command = "new circuit.empty"
    default_bases = tuple(engine.ActiveCircuit.Settings.VoltageBases)
    engine.Text.Command = "clear"
    _command(engine, f'redirect "{path.resolve()}"', path)
    if engine.NumCircuits == 0:
        raise ValueError(f"{path}: the script makes no circuit; it needs a line 'New Circuit.name'")
    return default_bases


def _command(engine: Any, command: str, path: Path) -> None:
    try:
        engine.Text.Command = command
    except Exception as error:  # dss.DSSException, a plain Exception
        number, text = (*error.args, "", "")[:2]
        text = str(text or error).strip().replace("\n", " ")
        if number == NOT_FOUND:
            raise FileNotFoundError(f"{path}: {text}") from error
        cure = "Correct that line." if number != UNSETTLED else "Raise 'Set MaxControlIter' before that Solve."
        raise ValueError(f"{path}: OpenDSS refuses it: {text} {cure}") from error


def _require_frequency(circuit: Any, path: Path) -> None:
    solved, base = circuit.Solution.Frequency, json.loads(circuit.ToJSON(0))["DefaultBaseFreq"]
    if solved != base:
        raise ValueError(
            f"{path}: it solves at {solved:g} Hz a circuit of {base:g} Hz; write "
            f"'Set DefaultBaseFrequency={solved:g}' before 'New Circuit'"
        )


def _solve(engine: Any, settle: bool, notes: list[str]) -> None:
    """Solves the snapshot with the script's controls."""
    circuit = engine.ActiveCircuit
    solution = circuit.Solution
    if solution.Mode != SNAPSHOT:
        notes.append(
            f"the script asks for the solution mode {solution.ModeID!r}; the snapshot is read, where shapes do not act"
        )
        control, loads = solution.ControlMode, solution.LoadModel
        solution.Mode = SNAPSHOT
        solution.ControlMode, solution.LoadModel = control, loads
    solution.MaxIterations = max(solution.MaxIterations, MAX_ITERATIONS)
    solution.MaxControlIterations = max(solution.MaxControlIterations, MAX_CONTROL_ITERATIONS)
    if not settle:
        solution.ControlMode = CONTROL_OFF
    try:
        solution.Solve()
    except Exception as error:  # dss.DSSException, a plain Exception
        notes.append(f"the engine's solution failed: {str(error).strip()}")
    if not solution.Converged:
        notes.append(
            "the engine's solution did not converge; taps, capacitors and inverters stand as the controls left them"
        )
    if circuit.PVSystems.Count or circuit.Storages.Count or circuit.Generators.Count:
        _sharpen(solution)
    # Solving may leave loads the primitive admittances that they had before; this makes them anew.
    solution.BuildYMatrix(WHOLE_MATRIX, False)


def _sharpen(solution: Any) -> None:
    """Solves on with the controls held, so that the powers of what generates are known to many digits."""
    solution.ControlMode = CONTROL_OFF
    solution.Tolerance = SHARP_TOLERANCE
    # An error here means that rounding does not allow the tolerance.
    with contextlib.suppress(Exception):
        solution.Solve()


def _require_bases(engine: Any, path: Path, default_bases: tuple[float, ...]) -> None:
    """Sees to it that each bus has a voltage base, from the bases that the script set."""
    circuit = engine.ActiveCircuit
    _command(engine, "makebuslist", path)
    bases = tuple(circuit.Settings.VoltageBases)
    if bases != default_bases and not _based(circuit)[0]:
        _command(engine, "calcvoltagebases", path)
    missing = _based(circuit)[1]
    if missing:
        raise ValueError(
            f"{path}: no voltage base at bus {', '.join(missing[:5])}"
            f"{' ...' if missing[5:] else ''}; add 'Set VoltageBases=[...]' with the line-to-line "
            "kV of each level and 'CalcVoltageBases' to the script"
        )


def _based(circuit: Any) -> tuple[list[str], list[str]]:
    """The buses with and without a voltage base."""
    groups: tuple[list[str], list[str]] = ([], [])
    for i in range(circuit.NumBuses):
        circuit.SetActiveBusi(i)
        groups[not circuit.ActiveBus.kVBase > 0].append(circuit.ActiveBus.Name.lower())
    return groups


def _buses(circuit: Any) -> tuple[Bus, ...]:
    """The buses and their nodes in the engine's order."""
    names = (name.lower().rpartition(".") for name in circuit.AllNodeNames)
    grouped = itertools.groupby(names, key=lambda parts: parts[0])
    nodes = {bus: tuple(int(parts[2]) for parts in group) for bus, group in grouped}
    buses = []
    for i in range(circuit.NumBuses):
        circuit.SetActiveBusi(i)
        bus = circuit.ActiveBus
        name = bus.Name.lower()
        x, y = (float(bus.x), float(bus.y)) if bus.Coorddefined else (None, None)
        if name in nodes:
            buses.append(Bus(name, float(bus.kVBase), nodes[name], x, y))
    return tuple(buses)


def _properties(circuit: Any) -> dict[str, dict[str, dict]]:
    """The engine's full export: class, name, property."""
    # Matrices that were never set hold whatever was in the memory, even what JSON cannot say.
    text = re.sub(r"([\[,:]\s*)[+-]?(?:nan|inf)\b", r"\1null", circuit.ToJSON(FULL), flags=re.I)
    export = json.loads(text)
    return {
        kind.lower(): {item["Name"].lower(): item for item in items}
        for kind, items in export.items()
        if isinstance(items, list) and items and isinstance(items[0], dict)
    }


def _elements(circuit: Any, properties: dict) -> Iterator[Element]:
    """The circuit's elements in the engine's order, disabled ones with no terminals."""
    for i, full_name in enumerate(circuit.AllElementNames):
        kind, _, name = full_name.lower().partition(".")
        circuit.CktElements(i)
        engine = circuit.ActiveCktElement
        data = properties[kind][name]
        if not engine.Enabled:
            yield Element(kind, name, data, enabled=False)
        elif kind in METERS or kind in CONTROLS:
            yield Element(kind, name, data)
        else:
            count, width = engine.NumTerminals, engine.NumConductors
            nodes = [int(n) for n in engine.NodeOrder]
            buses = [bus.lower().partition(".")[0] for bus in engine.BusNames]
            yprim = np.asarray(engine.Yprim, dtype=float)
            size = count * width
            yield Element(
                kind,
                name,
                data,
                phases=engine.NumPhases,
                terminals=tuple(
                    ".".join([buses[t], *map(str, nodes[t * width : (t + 1) * width])]) for t in range(count)
                ),
                is_open=any(engine.IsOpen(t + 1, 0) for t in range(count)),
                # The engine gives its matrices column by column.
                y=(yprim[0::2] + 1j * yprim[1::2]).reshape(size, size).T
                if yprim.size == 2 * size**2
                else np.zeros((size, size), complex),
                power=complex(*_pairs(engine.Powers).sum(0)),
                volts=_pairs(engine.Voltages) @ np.array([1, 1j]),
            )


def _pairs(values: Any) -> np.ndarray:
    """The engine's flat list of real and imaginary parts, (n, 2)."""
    return np.asarray(values, dtype=float).reshape(-1, 2)


def _read_circuit(circuit: Any, notes: list[str]) -> Feeder:
    """All tables from the engine's present state."""
    solution = circuit.Solution
    properties = _properties(circuit)
    tables = Tables(
        frequency=solution.Frequency,
        admittance_loads=solution.LoadModel == ADMITTANCE_LOADS,
        properties=properties,
        notes=notes,
    )
    elements = list(_elements(circuit, properties))
    _refuse_twins(elements)
    linear = []
    for element in elements:
        record = read_element(tables, element)
        if record is not None and element.kind in LINEAR:
            linear.append((element, record))
    feeder = tables.feeder(circuit.Name.lower(), _buses(circuit))
    wrong = check_admittances(feeder, linear)
    for element, record, reason in wrong:
        tables.replace(record, as_admittance(element), element, reason)
    tables.note_groups()
    return tables.feeder(circuit.Name.lower(), feeder.buses)


def _refuse_twins(elements: list[Element]) -> None:
    seen: set[str] = set()
    for element in elements:
        if element.full_name in seen:
            raise ValueError(f"{element.full_name} is defined twice; give each its own name")
        seen.add(element.full_name)
