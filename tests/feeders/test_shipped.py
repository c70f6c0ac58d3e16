"""What the shipped feeders hold, against published totals and OpenDSS's own counts.

Where the numbers come from:

- IEEE 4 to 123 nodes: tests/data/published, sums over the working group's data sheets.
- European LV: "one 0.8 MVA MV/LV transformer", "906 LV buses and 55 single phase loads" (pandapower, tutorial
  ieee_european_lv_asymmetric, after the working group's document); its line length is the sum over OpenDSS's Lines.txt.
- 8500 nodes: a "peak load of about 11 MW", "approximately 1100 single-phase, center-tapped transformers with triplex
  service drops", "4 shunt capacitor banks" (GridAPPS-D training, "IEEE 8500-Node Test Feeder"; it counts 6 regulator
  banks where OpenDSS's scripts have 4). No exact published totals were found, so the exact ones are OpenDSS's: load and
  lengths are sums over the statements of Loads.dss, Lines.dss and Triplex_Lines.DSS, the counts are the engine's.
- BUSES and ELEMENTS: the engine's counts after compiling OpenDSS's scripts (DSS C-API 0.14: NumBuses, NumNodes and the
  Count of Lines, Transformers, RegControls, Capacitors and Loads).
"""

import collections
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

import gridjax
from gridjax.feeder import split_terminal

PUBLISHED = Path(__file__).parents[1] / "data" / "published"
FOLDER = Path(gridjax.feeders.__file__).parent
FOUR_NODE = tuple(name for name in gridjax.feeders.NAMES if name.startswith("ieee4_"))

# Buses and nodes. The 4-node Y-D has its primary neutral as a node.
BUSES = {
    **dict.fromkeys(FOUR_NODE, (4, 12)),
    "ieee4_yd": (4, 13),
    "ieee13": (16, 41),
    "ieee34": (37, 95),
    "ieee34_mod2": (56, 138),
    "ieee37": (39, 117),
    "ieee123": (132, 278),
    "ieee8500": (4876, 8531),
    "ieee8500_unbal": (4876, 8531),
    "european_lv": (907, 2721),  # the source's bus and 906
}
# Lines with switches, transformers (one a phase in regulators), regulators, capacitors, loads.
ELEMENTS = {
    **dict.fromkeys(FOUR_NODE, (2, 1, 0, 0, 1)),
    "ieee4_oyod": (2, 2, 0, 0, 1),
    "ieee4_oyod_unbal": (2, 2, 0, 0, 3),
    "ieee13": (12, 5, 3, 2, 15),
    "ieee34": (32, 8, 6, 2, 68),
    "ieee34_mod2": (51, 8, 6, 2, 38),
    "ieee37": (36, 4, 2, 0, 30),
    "ieee123": (126, 8, 7, 4, 91),
    "ieee8500": (3703 - 5, 1190, 12, 10, 1177),  # five tie switches are not enabled
    "ieee8500_unbal": (3703 - 5, 1190, 12, 10, 2354),
    "european_lv": (905, 1, 0, 0, 55),
}
# Nominal voltages, line to line in kV.
LEVELS = {
    **dict.fromkeys(FOUR_NODE, (12.47, 4.16)),
    "ieee13": (115.0, 4.16, 0.48),
    "ieee34": (69.0, 24.9, 4.16),
    "ieee34_mod2": (69.0, 24.9, 4.16),
    "ieee37": (230.0, 4.8, 0.48),
    "ieee123": (4.16, 0.48),
    "ieee8500": (115.0, 12.47, 0.208),
    "ieee8500_unbal": (115.0, 12.47, 0.208),
    "european_lv": (11.0, 0.416),
}
SWITCHES = {"ieee13": 1, "ieee123": 8}
CAPACITORS_KVAR = {"ieee8500": 3900.0, "ieee8500_unbal": 3900.0}  # three banks of three units and one of 900 kvar
TABLES = {"ieee13": "ieee13", "ieee34": "ieee34", "ieee34_mod2": "ieee34", "ieee37": "ieee37", "ieee123": "ieee123"}


def published(table):
    return json.loads((PUBLISHED / f"{table}.json").read_text(encoding="utf-8"))


def length_ft(feeder):
    return sum(data["length_km"] for *_, data in gridjax.to_networkx(feeder).edges(data=True)) / 0.3048e-3


def loads_by_phase(feeder):
    """Nominal kW and kvar of phases 1 to 3, a load between phases counted at its first: AB, BC, CA."""
    total = collections.Counter()
    for load in feeder.loads:
        nodes = [n for n in split_terminal(load.bus)[1] if n]
        if load.phases == 3:
            first = [1, 2, 3]
        else:
            first = [next(a for a in nodes if len(nodes) == 1 or a % 3 + 1 in nodes)]
        for phase in first:
            total["kw", phase] += load.kw / len(first)
            total["kvar", phase] += load.kvar / len(first)
    return total


def test_origin_and_licence(shipped):
    assert "OpenDSS" in shipped.origin and "IEEE" in shipped.origin
    assert "BSD-3-Clause" in shipped.licence and "LICENSE.opendss.txt" in shipped.licence
    assert shipped.frequency_hz == (50.0 if shipped.name == "european_lv" else 60.0)


def test_loaders_files_and_names_are_the_same(shipped):
    assert shipped.name in gridjax.feeders.NAMES
    assert shipped is gridjax.feeders.load(shipped.name)  # read once
    assert getattr(gridjax.feeders, shipped.name).__doc__.startswith("IEEE ")


def test_no_file_is_orphaned():
    assert {path.name for path in FOLDER.iterdir() if not path.name.startswith("__")} == {
        "LICENSE.opendss.txt",
        "synthetic.py",
        *(f"{name}.json.gz" for name in gridjax.feeders.NAMES),
    }
    licence = (FOLDER / "LICENSE.opendss.txt").read_text(encoding="utf-8")
    assert "Electric Power Research Institute" in licence and "Redistribution" in licence


def test_unknown_name():
    with pytest.raises(ValueError, match="choose one of ieee4_yy, "):
        gridjax.feeders.load("ieee14")


def test_validation_finds_nothing_fatal_and_only_the_known_doubts(shipped):
    problems = gridjax.validate(shipped)
    # OpenDSS's model 1 has the delta loads between 832 and 858 on single conductors, at 24.9 kV: each is tied from its
    # phase to ground and draws a third of its impedance's power.
    ends = {f"load.d832_858{end}{phase}" for end in "sr" for phase in "abc"}
    assert {problem.element for problem in problems} == (ends if shipped.name == "ieee34" else set())
    assert not any(problem.fatal for problem in problems)


def test_buses_nodes_and_elements(shipped):
    assert (len(shipped.buses), len(shipped.node_names)) == BUSES[shipped.name]
    assert len(set(shipped.node_names)) == len(shipped.node_names)
    assert len(shipped.switches) == SWITCHES.get(shipped.name, 0)
    assert all(switch.closed for switch in shipped.switches)
    tables = shipped.transformers, shipped.regulators, shipped.capacitors, shipped.loads
    assert (len(shipped.lines) + len(shipped.switches), *map(len, tables)) == ELEMENTS[shipped.name]
    assert not (shipped.generators or shipped.pv_systems or shipped.storages or shipped.admittances)


def test_voltage_levels(shipped):
    """Every bus has the nominal voltage of its level, to the rounding of transformers' ratings (7.2 for 7.1996 kV)."""
    levels = set()
    for bus in shipped.buses:
        kv = bus.base_kv * 3**0.5
        near = {level for level in LEVELS[shipped.name] if kv == pytest.approx(level, rel=1e-3)}
        assert len(near) == 1, bus
        levels |= near
    assert levels == set(LEVELS[shipped.name])


def test_radial_and_connected(shipped):
    graph = gridjax.to_networkx(shipped)
    assert set(graph) == {bus.name for bus in shipped.buses}
    closed = nx.Graph((a, b) for a, b, data in graph.edges(data=True) if data["closed"])
    assert nx.is_tree(closed) and set(closed) == set(graph)  # parallel phases of a bank are one edge here
    assert max(gridjax.distance_km(shipped).values()) < math.inf


def test_json_round_trip(shipped, tmp_path):
    path = tmp_path / "feeder.json.gz"
    gridjax.write_json(shipped, path)
    assert gridjax.read_json(path) == shipped


@pytest.mark.parametrize("name", TABLES)
def test_published_loads_and_capacitors(name):
    feeder, totals = gridjax.feeders.load(name), published(TABLES[name])["totals"]
    assert sum(load.kw for load in feeder.loads) == pytest.approx(totals["nominal_load_kw"])
    assert sum(load.kvar for load in feeder.loads) == pytest.approx(totals["nominal_load_kvar"])
    tables = [totals["nominal_spot_load"], totals.get("nominal_distributed_load")]
    ours = loads_by_phase(feeder)
    for quantity in ("kw", "kvar"):
        for phase in (1, 2, 3):
            want = sum(table[quantity][str(phase)] for table in tables if table)
            assert ours[quantity, phase] == pytest.approx(want), (quantity, phase)
    banks = sum(sum(bank.kvar) for bank in feeder.capacitors)
    assert banks == pytest.approx(totals["capacitor_rated_kvar"]["total"])


def test_published_lines():
    rows = {name: published(table)["totals"]["line_segment_rows_nonzero_length"] for name, table in TABLES.items()}
    feet = {name: published(table)["totals"]["line_length_ft"] for name, table in TABLES.items()}
    feeder = {name: gridjax.feeders.load(name) for name in TABLES}
    extra = {name: len(feeder[name].lines) - rows[name] for name in TABLES}
    # 13: 632-671 is cut at 670; 34 model 2: the 19 sections with distributed loads are halved; 37: a jumper of length
    # 1 beside the open-delta regulator.
    assert extra == {"ieee13": 1, "ieee34": 0, "ieee34_mod2": 19, "ieee37": 1, "ieee123": 0}
    for name in ("ieee13", "ieee34", "ieee34_mod2"):
        assert length_ft(feeder[name]) == pytest.approx(feet[name])
    # OpenDSS has 175 ft for 475 in 80-81 and 250 ft for 225 in 89-90.
    assert length_ft(feeder["ieee123"]) == pytest.approx(feet["ieee123"] - 300 + 25)
    # OpenDSS's script gives thousands of feet without naming a unit.
    lines = [line for line in feeder["ieee37"].lines if line.name != "jumper"]
    assert sum(line.length for line in lines) * 1000 == pytest.approx(feet["ieee37"])
    assert {line.unit for line in lines} == {"kft"}


@pytest.mark.parametrize("name", TABLES)
def test_published_buses_have_their_phases(name):
    """The nodes are those of the published table and those that OpenDSS adds."""
    names = {
        "ieee13": {"xfxfm1": "634"},
        "ieee34": {"rg10": "814r", "rg11": "852r", "xf10": "888"},
        "ieee37": {"rg7": "799r", "xf7": "775"},
        "ieee123": {"rg1": "150r", "rg2": "9r", "rg3": "25r", "rg4": "160r", "xf1": "610"},
    }[TABLES[name]]
    printed = collections.defaultdict(set)
    for row in published(TABLES[name])["voltages"]:
        bus = row["bus"].lower()
        printed[names.get(bus, bus)] |= {row.get("phase", row.get("from_phase"))}
    feeder = gridjax.feeders.load(name)
    ours = {bus.name: set(bus.nodes) for bus in feeder.buses}
    added = {bus for bus in ours if bus not in printed}
    assert set(printed) <= set(ours)
    assert {bus: ours[bus] for bus in printed} == printed
    assert {bus for bus in added if not bus.startswith("mid")} == {
        "ieee13": {"sourcebus", "670"},
        "ieee34": {"sourcebus"},
        "ieee34_mod2": {"sourcebus"},
        "ieee37": {"sourcebus"},
        "ieee123": {"61s", "300_open", "94_open"},
    }[name]


def test_4_node_loads():
    data = published("ieee4")["data"]
    for name in FOUR_NODE:
        feeder = gridjax.feeders.load(name)
        kind = data["load_open" if "oyod" in name else "load_closed"]["unbalanced" if "unbal" in name else "balanced"]
        kvar = sum(kw * math.tan(math.acos(pf)) for kw, pf in zip(kind["kw"], kind["pf_lag"], strict=True))
        assert sum(load.kw for load in feeder.loads) == pytest.approx(sum(kind["kw"]))
        assert sum(load.kvar for load in feeder.loads) == pytest.approx(kvar)
        assert feeder.sources[0].base_kv == data["source_kv_ll"]
        assert length_ft(feeder) == pytest.approx(2000 + 2500)


@pytest.mark.parametrize("name", ["ieee8500", "ieee8500_unbal"])
def test_8500_node_totals(name):
    feeder = gridjax.feeders.load(name)
    kw = sum(load.kw for load in feeder.loads)
    assert kw == pytest.approx(10773.17, abs=0.005)  # "about 11 MW"
    assert sum(load.kvar for load in feeder.loads) == pytest.approx(kw * math.tan(math.acos(0.97)))
    services = [t for t in feeder.transformers if len(t.windings) == 3]
    assert len(services) == 1177  # "approximately 1100"
    assert all(t.phases == 1 for t in services)
    drops = [line for line in feeder.lines if line.unit == "ft"]
    assert len(drops) == 1177 and {line.length for line in drops} == {50.0}
    # Lines.dss: 169.8185 km of lines and 38 switches of 1 m.
    assert length_ft(feeder) * 0.3048e-3 == pytest.approx(169.8185 + 0.038 + 1177 * 50 * 0.3048e-3, abs=1e-4)
    assert sum(sum(bank.kvar) for bank in feeder.capacitors) == CAPACITORS_KVAR[name]
    assert len({bank.bus1.split(".")[0] for bank in feeder.capacitors}) == 4
    assert len(feeder.capacitor_controls) == 9
    assert len({t.bank for t in feeder.transformers if t.bank}) == 4
    assert len(feeder.reactors) == 1


def test_8500_unbalanced_loads_are_the_balanced_ones_on_two_legs():
    balanced, legs = gridjax.feeders.ieee8500(), collections.Counter()
    for load in gridjax.feeders.ieee8500_unbal().loads:
        legs[load.bus.split(".")[0]] += load.kw
    assert legs == pytest.approx({load.bus.split(".")[0]: load.kw for load in balanced.loads})


def test_european_lv_totals():
    feeder = gridjax.feeders.european_lv()
    assert {load.phases for load in feeder.loads} == {1}
    assert sum(load.kw for load in feeder.loads) == 55.0  # profiles scale 1 kW each
    assert length_ft(feeder) * 0.3048 == pytest.approx(1431.514623)
    (transformer,) = feeder.transformers
    assert {winding.kva for winding in transformer.windings} == {800.0}


IMPORT = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import gridjax
here = os.path.dirname(gridjax.__file__)
print([path for path in opened if path.startswith(here) and not path.endswith((".py", ".pyc")) and ".pyc." not in path])
import jax
print(jax.config.jax_enable_x64)
"""


def test_import_reads_no_data_and_sets_no_flag():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
