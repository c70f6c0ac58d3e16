"""The graph of buses, distances along lines, and which nodes a source reaches."""

import dataclasses
import math

import pytest
from feeders_for_tests import MIDDLE, every_element_feeder, two_bus_feeder

from gridjax.feeder import Bus, Line, Switch, Transformer, Winding
from gridjax.graph import distance_km, energised, to_networkx

FEEDER = every_element_feeder()


def test_the_vertices_are_the_buses():
    graph = to_networkx(FEEDER)
    assert list(graph) == [bus.name for bus in FEEDER.buses]
    assert graph.nodes["b"] == {"base_kv": MIDDLE, "x": 2.0, "y": 0.0, "nodes": (1, 2, 3)}
    assert graph.nodes["e"]["x"] is None


def test_the_edges_are_the_branches():
    edges = {(u, v, key) for u, v, key in to_networkx(FEEDER).edges(keys=True)}
    assert edges == {
        ("r", "b", "line.l1"),
        ("b", "c", "line.l2"),
        ("c", "d", "line.l3"),
        ("b", "e", "line.l4"),
        ("b", "e2", "line.l5"),
        ("d", "f", "switch.s1"),
        ("b", "f", "switch.s2"),
        ("src", "a", "transformer.sub"),
        ("a", "r", "transformer.reg"),
        ("e", "t", "transformer.service"),  # windings 2 and 3 are on one bus
        ("c", "n", "transformer.neutral"),
        ("c", "m", "transformer.floating"),
        ("d", "g", "capacitor.cs"),  # the shunts cw, c1 and cd are no edges
        ("d", "h", "reactor.rs"),
        ("h", "k", "admittance.y1"),
    }


def test_the_attributes_of_edges():
    graph = to_networkx(FEEDER)
    assert graph.edges["r", "b", "line.l1"] == {"kind": "line", "length_km": 0.61, "closed": True}
    assert graph.edges["b", "f", "switch.s2"] == {
        "kind": "switch",
        "length_km": 0.0,
        "closed": False,
    }
    lengths = {key: data["length_km"] for *_, key, data in graph.edges(keys=True, data=True)}
    assert lengths["line.l2"] == pytest.approx(0.6096)  # 2000 ft
    assert lengths["line.l4"] == pytest.approx(0.1524)  # "none" with a code in ft
    assert lengths["transformer.sub"] == 0.0
    overhead = Line("l9", "b.1.2.3", "c.1.2.3", "overhead", 2.0, "none")  # no unit at all: km
    graph = to_networkx(FEEDER.replace(lines=(overhead,)))
    assert graph.edges["b", "c", "line.l9"]["length_km"] == 2.0


def test_parallel_elements_are_separate_edges():
    feeder = two_bus_feeder()
    twin = dataclasses.replace(feeder.lines[0], name="l2")
    graph = to_networkx(feeder.replace(lines=(*feeder.lines, twin)))
    assert set(graph["a"]["b"]) == {"line.l1", "line.l2"}


def test_a_three_winding_transformer_joins_its_first_bus_to_the_others():
    service = next(t for t in FEEDER.transformers if t.name == "service")
    first, second, third = service.windings
    third = dataclasses.replace(third, bus="t2.0.1")
    service = dataclasses.replace(service, windings=(first, second, third))
    feeder = FEEDER.replace(transformers=(service,), buses=(*FEEDER.buses, Bus("t2", 0.12, (1,))))
    edges = to_networkx(feeder).edges(keys=True)
    assert [e for e in edges if "transformer" in e[2]] == [
        ("e", "t", "transformer.service"),
        ("e", "t2", "transformer.service"),
    ]


def test_an_open_capacitor_in_series_is_open():
    bank = next(c for c in FEEDER.capacitors if c.name == "cs")
    bank = dataclasses.replace(bank, closed=(False,))
    graph = to_networkx(FEEDER.replace(capacitors=(bank,)))
    assert graph.edges["d", "g", "capacitor.cs"]["closed"] is False


@pytest.mark.parametrize("terminal", ["nowhere.1.2.3", "b", "b.x"])
def test_a_bad_terminal_is_named(terminal):
    line = Line("bad", "b.1.2.3", terminal, "matrix", 1.0)
    with pytest.raises(ValueError, match=r"^line\.bad: "):
        to_networkx(FEEDER.replace(lines=(line,)))


def test_distances_run_along_closed_elements_from_the_first_source():
    distance = distance_km(FEEDER)
    assert list(distance) == [bus.name for bus in FEEDER.buses]
    assert distance["src"] == distance["r"] == 0.0
    assert distance["b"] == pytest.approx(0.61)
    assert distance["t"] == pytest.approx(0.61 + 0.1524)
    assert distance["f"] == distance["d"] == pytest.approx(0.61 + 0.6096 + 0.3)  # s2 is open
    closed = FEEDER.replace(switches=tuple(
        dataclasses.replace(switch, closed=True) for switch in FEEDER.switches
    ))  # fmt: skip
    assert distance_km(closed)["d"] == pytest.approx(0.61)


def test_an_island_is_infinitely_far():
    feeder = two_bus_feeder().replace(lines=())
    assert distance_km(feeder) == {"a": 0.0, "b": math.inf}


def test_distances_need_a_source_and_lengths():
    feeder = two_bus_feeder()
    with pytest.raises(ValueError, match="no source"):
        distance_km(feeder.replace(sources=()))
    line = dataclasses.replace(feeder.lines[0], length=-1.0)
    with pytest.raises(ValueError, match=r"line\.l1: length -1\.0"):
        distance_km(feeder.replace(lines=(line,)))


def test_every_node_of_a_sound_feeder_is_energised():
    reached, grounded = energised(FEEDER)
    assert reached == {(bus.name, node) for bus in FEEDER.buses for node in bus.nodes}
    assert grounded == {("n", 4)}


def test_a_delta_winding_joins_all_its_nodes():
    feeder = two_bus_feeder()
    source = dataclasses.replace(feeder.sources[0], bus="a.1")
    corner = Winding("a.1.2.0", "delta", 4.16, 10.0), Winding("b.1.2.3.0", "wye", 4.16, 10.0)
    feeder = feeder.replace(sources=(source,), lines=(), transformers=(Transformer("t", 3, corner, (4.0,)),))
    assert energised(feeder)[0] == {("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)}


def test_conductors_are_followed_by_position():
    feeder = two_bus_feeder()
    line = dataclasses.replace(feeder.lines[0], bus1="a.1.3", bus2="b.2.1")
    reached, _ = energised(feeder.replace(lines=(line,)))
    assert {node for node in reached if node[0] == "b"} == {("b", 1), ("b", 2)}
    switch = Switch("s", "b.1", "b.3")
    reached, _ = energised(feeder.replace(lines=(line,), switches=(switch,)))
    assert ("b", 3) in reached
