"""Makes the shipped feeders in gridjax/feeders.

    python -m benchmarks.import_feeders --circuits DIR [--out gridjax/feeders] [--only ieee13 ...]
    python -m benchmarks.import_feeders --only baran_wu33

DIR is the folder `IEEETestCases` of the OpenDSS distribution, with its `License.txt` beside it or
in it. The 33-bus feeder is in a table here and needs no folder.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from gridjax.feeder import Bus, Feeder, Geometry, Line, Load, SequenceCode, Source, Switch
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


# M. E. Baran and F. F. Wu, "Network reconfiguration in distribution systems for loss reduction and load balancing",
# IEEE Transactions on Power Delivery 4(2), 1989, table of the 33-bus test system, as pandapower's `case33bw`
# (BSD-3-Clause) and MATPOWER's have it. From bus, to bus, r and x in ohm, kW and kvar at the to bus.
BARAN_WU = (
    (1, 2, 0.0922, 0.0470, 100, 60), (2, 3, 0.4930, 0.2511, 90, 40), (3, 4, 0.3660, 0.1864, 120, 80),
    (4, 5, 0.3811, 0.1941, 60, 30), (5, 6, 0.8190, 0.7070, 60, 20), (6, 7, 0.1872, 0.6188, 200, 100),
    (7, 8, 0.7114, 0.2351, 200, 100), (8, 9, 1.0300, 0.7400, 60, 20), (9, 10, 1.0440, 0.7400, 60, 20),
    (10, 11, 0.1966, 0.0650, 45, 30), (11, 12, 0.3744, 0.1238, 60, 35), (12, 13, 1.4680, 1.1550, 60, 35),
    (13, 14, 0.5416, 0.7129, 120, 80), (14, 15, 0.5910, 0.5260, 60, 10), (15, 16, 0.7463, 0.5450, 60, 20),
    (16, 17, 1.2890, 1.7210, 60, 20), (17, 18, 0.7320, 0.5740, 90, 40), (2, 19, 0.1640, 0.1565, 90, 40),
    (19, 20, 1.5042, 1.3554, 90, 40), (20, 21, 0.4095, 0.4784, 90, 40), (21, 22, 0.7089, 0.9373, 90, 40),
    (3, 23, 0.4512, 0.3083, 90, 50), (23, 24, 0.8980, 0.7091, 420, 200), (24, 25, 0.8960, 0.7011, 420, 200),
    (6, 26, 0.2030, 0.1034, 60, 25), (26, 27, 0.2842, 0.1447, 60, 25), (27, 28, 1.0590, 0.9337, 60, 20),
    (28, 29, 0.8042, 0.7006, 120, 70), (29, 30, 0.5075, 0.2585, 200, 600), (30, 31, 0.9744, 0.9630, 150, 70),
    (31, 32, 0.3105, 0.3619, 210, 100), (32, 33, 0.3410, 0.5302, 60, 40),
)  # fmt: skip
BARAN_WU_TIES = ((8, 21, 2.0), (9, 15, 2.0), (12, 22, 2.0), (18, 33, 0.5), (25, 29, 0.5))  # from, to, r = x in ohm
BARAN_WU_KV = 12.66


def baran_wu33() -> Feeder:
    """The 33-bus feeder in three balanced phases: each line has the same impedance in all sequences.

    The substation's voltage is held at 1.0 pu by a source of 10 microohm (3e-7 pu at this load). Ties are open
    switches that have their lines' impedance.
    """
    kv, phases = BARAN_WU_KV, "1.2.3"
    codes = tuple(
        SequenceCode(f"b{a}_{b}", 3, r, x, r, x, 0.0, 0.0, "none") for a, b, r, x, *_ in BARAN_WU
    )  # fmt: skip
    return Feeder(
        name="baran_wu33",
        frequency_hz=60.0,
        buses=tuple(Bus(str(i), kv / math.sqrt(3), (1, 2, 3)) for i in range(1, 34)),
        sources=(Source("substation", f"1.{phases}", kv, x1_ohm=1e-5, x0_ohm=1e-5),),
        codes=codes,
        lines=tuple(
            Line(f"l{a}_{b}", f"{a}.{phases}", f"{b}.{phases}", f"b{a}_{b}", 1.0, "none") for a, b, *_ in BARAN_WU
        ),
        switches=tuple(
            Switch(f"tie{a}_{b}", f"{a}.{phases}", f"{b}.{phases}", False, z, z) for a, b, z in BARAN_WU_TIES
        ),
        loads=tuple(
            Load(f"s{b}", f"{b}.{phases}.0", 3, "wye", 1, kv, float(kw), float(kvar), 0.5, 1.5, 0.4)
            for _, b, _, _, kw, kvar in BARAN_WU
        ),
        origin="M. E. Baran and F. F. Wu, Network reconfiguration in distribution systems for loss reduction and load "
        "balancing, IEEE Transactions on Power Delivery 4(2), 1989; numbers as in pandapower's case33bw",
        licence="BSD-3-Clause (pandapower's copy); published numbers",
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
    parser.add_argument("--circuits", type=Path, help="the folder IEEETestCases")
    parser.add_argument("--out", type=Path, default=Path("gridjax/feeders"))
    parser.add_argument("--only", nargs="+", choices=[*(c.name for c in CIRCUITS), "baran_wu33"], metavar="NAME")
    arguments = parser.parse_args()
    wanted = [c for c in CIRCUITS if not arguments.only or c.name in arguments.only]
    if not arguments.only or "baran_wu33" in arguments.only:
        write_json(baran_wu33(), arguments.out / "baran_wu33.json.gz")
        print(f"{arguments.out / 'baran_wu33.json.gz'}: 33 buses")
    if not wanted:
        return
    if arguments.circuits is None:
        parser.error("--circuits is missing: name the folder IEEETestCases of the OpenDSS distribution")
    copy_licence(arguments.circuits, arguments.out)
    for circuit in wanted:
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
