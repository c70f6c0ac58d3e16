"""Makes the shipped feeders in gridjax/feeders from the IEEE circuits of the OpenDSS distribution.

    python benchmarks/import_feeders.py --circuits DIR [--out gridjax/feeders] [--only ieee13 ...]

DIR is the folder `IEEETestCases` of the OpenDSS distribution, with its `License.txt` beside it or
in it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from gridjax.feeder import Feeder, Geometry
from gridjax.io.json import write_json
from gridjax.io.opendss import read_opendss

SOURCE = "EPRI OpenDSS distribution, IEEETestCases/{path}; the circuit: IEEE PES test feeder working group"
LICENCE = "BSD-3-Clause (see LICENSE.opendss.txt)"
LICENCE_FILE = "LICENSE.opendss.txt"


@dataclass(frozen=True)
class Circuit:
    """A script under the circuits' folder.

    `coordinates` names a file of bus coordinates that the script itself does not load. `first`
    takes of a file that holds several scripts, each beginning with `clear`, the first alone. `unit` is the unit of
    length of a script that names none: of the lines that use its line codes, and of these codes.
    """

    name: str
    path: str
    coordinates: str = ""
    first: bool = False
    unit: str = ""


CIRCUITS = (
    Circuit("ieee4_yy", "4Bus-YY-Bal/4Bus-YY-Bal.DSS"),
    Circuit("ieee4_yd", "4Bus-YD-Bal/4Bus-YD-Bal.DSS"),
    Circuit("ieee4_dy", "4Bus-DY-Bal/4Bus-DY-Bal.DSS"),
    Circuit("ieee4_gryd", "4Bus-GrdYD-Bal/4Bus-GrdYD-Bal.DSS"),
    Circuit("ieee4_oyod", "4Bus-OYOD-Bal/4Bus-OYOD-Bal.DSS", first=True),
    Circuit("ieee4_oyod_unbal", "4Bus-OYOD-UnBal/4bus-OYOD-UnBal.dss"),
    Circuit("ieee13", "13Bus/IEEE13Nodeckt.dss"),
    Circuit("ieee34", "34Bus/ieee34Mod1.dss", coordinates="34Bus/IEEE34_BusXY.csv"),
    Circuit("ieee34_mod2", "34Bus/ieee34Mod2.dss", coordinates="34Bus/IEEE34_BusXY.csv"),
    Circuit("ieee37", "37Bus/ieee37.dss", unit="kft"),
    Circuit("ieee123", "123Bus/IEEE123Master.dss", coordinates="123Bus/BusCoords.dat"),
    Circuit("ieee8500", "8500-Node/Master.dss"),
    Circuit("ieee8500_unbal", "8500-Node/Master-unbal.dss"),
    Circuit("european_lv", "LVTestCase/Master.dss"),
)


def script(circuit: Circuit, folder: Path) -> str:
    """The OpenDSS script that builds the circuit and loads its coordinates."""
    path = (folder / circuit.path).resolve()
    if circuit.first:
        text = path.read_text(encoding="latin-1")
        starts = [i for i, line in enumerate(text.splitlines()) if line.strip().lower() == "clear"]
        return "\n".join(text.splitlines()[: starts[1]]) + "\n"
    lines = [f'redirect "{path}"']
    if circuit.coordinates:
        lines += ["makebuslist", f'buscoords "{(folder / circuit.coordinates).resolve()}"']
    return "\n".join(lines) + "\n"


def load(circuit: Circuit, folder: Path) -> Feeder:
    """Reads the circuit and says where it comes from."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{circuit.name}.dss"
        path.write_text(script(circuit, folder), encoding="latin-1")
        feeder = read_opendss(path)
    origin = SOURCE.format(path=circuit.path)
    if circuit.first:
        origin += "; the first of the file's scripts (ppm_antifloat=0)"
    if circuit.unit:
        feeder = with_unit(feeder, circuit.unit)
        origin += f"; lengths in {circuit.unit}, which the script does not say"
    return feeder.replace(name=circuit.name, origin=origin, licence=LICENCE)


def with_unit(feeder: Feeder, unit: str) -> Feeder:
    """The same lines with their unit of length named; lines with a code of their own stay as they are."""
    own = {line.code for line in feeder.lines if line.code == f"line_{line.name}"}
    codes = tuple(c if c.name in own or isinstance(c, Geometry) else replace(c, unit=unit) for c in feeder.codes)
    lines = tuple(line if line.code in own else replace(line, unit=unit) for line in feeder.lines)
    return feeder.replace(codes=codes, lines=lines)


def copy_licence(folder: Path, out: Path) -> None:
    """Puts the circuits' licence beside the feeders."""
    for path in (folder / "License.txt", folder.parent / "License.txt"):
        if path.is_file():
            shutil.copyfile(path, out / LICENCE_FILE)
            return
    raise SystemExit(f"there is no License.txt in {folder} or beside it; the data need it")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the shipped feeders from OpenDSS circuits.")
    parser.add_argument("--circuits", type=Path, required=True, help="the folder IEEETestCases")
    parser.add_argument("--out", type=Path, default=Path("gridjax/feeders"))
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CIRCUITS], metavar="NAME")
    arguments = parser.parse_args()
    copy_licence(arguments.circuits, arguments.out)
    for circuit in CIRCUITS:
        if arguments.only and circuit.name not in arguments.only:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            feeder = load(circuit, arguments.circuits)
        path = arguments.out / f"{circuit.name}.json.gz"
        write_json(feeder, path)
        print(f"{path}: {len(feeder.buses)} buses, {path.stat().st_size} bytes")
        for warning in caught:
            print(f"  {warning.message}")


if __name__ == "__main__":
    main()
