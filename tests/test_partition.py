"""Cutting into zones, and zones of zones, for any circuit; answers that do not depend on the cuts."""

import itertools

import jax
import networkx as nx
import numpy as np
import pytest
from feeders_for_tests import MIDDLE, every_element_feeder
from hypothesis import given, settings
from hypothesis import strategies as st

import gridjax
from gridjax.feeder import Bus, Feeder, LineCode, Load, SequenceCode, Source, Switch
from gridjax.feeder import Line as FeederLine
from gridjax.partition import Limits, hierarchy, partition

DERANDOMIZED = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def circuits(draw):
    """Elements of a connected circuit: a tree from the root, some loops, elements of three buses, shunts."""
    n = draw(st.integers(2, 40))
    label = draw(st.permutations(range(n)))
    elements = [(n, label[0])]
    elements += [(label[draw(st.integers(max(0, i - 8), i - 1))], label[i]) for i in range(1, n)]
    pick = st.integers(0, n - 1)
    for _ in range(draw(st.integers(0, 4))):
        elements.append((draw(pick), draw(pick)))  # a loop, a parallel line, or nothing
    for _ in range(draw(st.integers(0, 3))):
        bus = draw(pick)
        elements.append((bus, bus, bus))
    if n > 3 and draw(st.booleans()):
        elements.append(tuple(draw(st.lists(pick, min_size=3, max_size=3, unique=True))))
    ports = [*draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), 0]
    nodes = [*draw(st.lists(st.integers(1, 4), min_size=n, max_size=n)), 0]
    return draw(st.permutations(elements)), n, ports, nodes


def blocks_of(elements) -> list[set[int]]:
    graph = nx.Graph(pair for e in elements for pair in itertools.combinations(set(e), 2))
    return list(nx.biconnected_components(graph))


@DERANDOMIZED
@given(circuits())
def test_zones_share_out_buses_and_elements(circuit):
    elements, root, ports, nodes = circuit
    for limits in (Limits(1, 1), Limits(6, 12), Limits(24, 500)):
        cut = partition(elements, root, ports, nodes, limits)
        inside = [bus for zone in cut.zones for bus in zone.buses]
        assert sorted(inside) == list(range(root))
        assert cut.zone_of_bus == {bus: z for z, zone in enumerate(cut.zones) for bus in zone.buses}
        assert cut.zones[0].head == root
        for z, zone in enumerate(cut.zones):
            assert zone.buses
            assert set(zone.tails) == {other.head for other in cut.zones[1:]} & set(zone.buses)
            if z:
                assert zone.head in cut.zones[cut.zone_of_bus[zone.head]].tails
        for buses, z in zip(elements, cut.zone_of_element, strict=True):
            assert set(buses) <= {*cut.zones[z].buses, cut.zones[z].head}


@DERANDOMIZED
@given(circuits())
def test_a_zone_is_within_its_limits_unless_a_loop_fills_it(circuit):
    """Ports are the devices' at its buses, and the nodes of every tail."""
    elements, root, ports, nodes = circuit
    loops = [block for block in blocks_of(elements) if len(block) > 2]
    for limits in (Limits(10, 10), Limits(24, 40)):
        for zone in partition(elements, root, ports, nodes, limits).zones:
            if any(loop <= {*zone.buses, zone.head} for loop in loops):
                continue
            assert sum(ports[b] + nodes[b] * (b in zone.tails) for b in zone.buses) <= limits.ports
            assert sum(nodes[b] for b in zone.buses) <= limits.nodes
            assert len(zone.tails) <= 1


@DERANDOMIZED
@given(circuits())
def test_zones_of_zones_lead_to_one(circuit):
    elements, root, ports, nodes = circuit
    tiers = hierarchy(partition(elements, root, ports, nodes, Limits(4, 6)), root, nodes, 3)
    assert len(tiers[-1].zones) == 1
    assert (tiers[-1].zones[0].head, tiers[-1].zones[0].tails) == (root, [])
    for below, above in itertools.pairwise(tiers):
        assert len(above.zones) < len(below.zones)
        assert len(above.zone_of_element) == len(below.zones)
        for zone, z in zip(below.zones, above.zone_of_element, strict=True):
            known = {*above.zones[z].buses, above.zones[z].head}
            assert set(zone.boundary) <= known  # so the members' boundaries are nodes of the zone that holds them


def test_stiff_pairs_do_not_bound_a_zone_together():
    path = [(9, 0), *((i, i + 1) for i in range(8))]
    args = (path, 9, [1] * 9 + [0], [1] * 9 + [0], Limits(3, 100))
    free = {zone.head for zone in partition(*args).zones}
    assert 5 in free
    together = {zone.head for zone in partition(*args, stiff=[(4, 5), (5, 6)]).zones}
    assert not {4, 5} <= together
    assert not {5, 6} <= together


def test_a_path_is_cut_evenly():
    elements = [(9, 0), *((i, i + 1) for i in range(8))]
    cut = partition(elements, 9, [1] * 9 + [0], [1] * 9 + [0], Limits(3, 100))
    assert all(len(zone.buses) <= 3 for zone in cut.zones)
    assert len(cut.zones) > 3


def test_a_loop_is_never_cut():
    ring = [(6, 0), *((i, (i + 1) % 6) for i in range(6))]
    cut = partition(ring, 6, [5] * 6 + [0], [3] * 6 + [0], Limits(2, 2))
    assert {frozenset(zone.buses) for zone in cut.zones} == {frozenset({0}), frozenset(range(1, 6))}


def test_one_zone_holds_all_when_there_is_room():
    elements = [(9, 0), *((i // 2, i) for i in range(1, 9))]
    cut = partition(elements, 9, [1] * 9 + [0], [3] * 9 + [0], Limits(1000, 1000))
    assert len(cut.zones) == 1


# --- Feeders: the answers do not depend on the cuts. ---

CODE = LineCode("c", ((0.3, 0.1), (0.1, 0.3)), ((0.6, 0.25), (0.25, 0.6)), ((9.0, -2.0), (-2.0, 9.0)))


def random_feeder(seed: int, buses: int, loops: int) -> Feeder:
    """A two-phase circuit with loops, an open and a closed switch, loads of several models."""
    rng = np.random.default_rng(seed)
    ends = [(int(rng.integers(max(0, i - 5), i)), i) for i in range(1, buses)]
    ends += [tuple(int(x) for x in rng.choice(buses, 2, replace=False)) for _ in range(loops)]
    lines = tuple(
        FeederLine(f"l{k}", f"b{i}.1.2", f"b{j}.1.2", "c", float(rng.uniform(0.05, 0.3)))
        for k, (i, j) in enumerate(ends)
    )
    loads = tuple(
        Load(
            f"s{b}.{k}", f"b{b}.{k}.0", 1, "wye", int(rng.choice([1, 2, 4, 5])), MIDDLE, *rng.uniform(2, 20, 2).tolist()
        )
        for b in range(1, buses)
        for k in (1, 2)
        if rng.random() < 0.7
    )
    ties = (Switch("tie", f"b{buses - 1}.1.2", "x.1.2"), Switch("open", f"b{buses - 2}.1.2", "x.1.2", closed=False))
    return Feeder(
        name="random",
        frequency_hz=60.0,
        buses=(*(Bus(f"b{i}", MIDDLE, (1, 2)) for i in range(buses)), Bus("x", MIDDLE, (1, 2))),
        sources=(Source("s", "b0.1.2", 2 * MIDDLE, 1.01, r1_ohm=0.05, x1_ohm=0.2, r0_ohm=0.05, x0_ohm=0.2),),
        codes=(CODE,),
        lines=lines,
        switches=ties,
        loads=(*loads, Load("sx", "x.1.2", 1, "delta", 1, 2 * MIDDLE, 9.0, 3.0)),
    )


SOLVE = jax.jit(
    lambda grid, point: gridjax.solve(grid, point, tol=1e-14, max_iterations=300),
    compiler_options={"xla_backend_optimization_level": 0},  # compiling takes longer than running here
)


def answers(feeder: Feeder, limits) -> tuple[list[np.ndarray], set[int]]:
    """Voltages off the nominal point for each pair of limits, and how many zones there were."""
    out, counts = [], set()
    for ports, nodes in limits:
        grid = gridjax.compile(feeder, zone_ports=ports, zone_nodes=nodes)
        point = grid.nominal.replace(tap=grid.nominal.tap * 1.03, capacitor=grid.nominal.capacitor * 0.4)
        flow = SOLVE(grid, point)
        assert flow.residual < 1e-12
        out.append(np.asarray(flow.v))
        counts.add(grid.zones.u_ref.shape[0])
    return out, counts


def test_answers_do_not_depend_on_the_zones_of_a_meshed_feeder():
    found, counts = answers(random_feeder(2, 16, 2), ((2, 512), (24, 8), (1000, 1000)))
    assert len(counts) == 3  # else nothing was compared
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-12, rtol=0)


def test_answers_do_not_depend_on_the_zones_of_every_element():
    """The common mode of bus m, on which only a millionth of a transformer's rating acts, is less exact."""
    feeder = every_element_feeder()
    (fine, coarse), counts = answers(feeder, ((2, 512), (1000, 1000)))
    assert max(counts) > 5
    floating = np.array([name.startswith("m.") for name in feeder.node_names])
    np.testing.assert_allclose(fine[~floating], coarse[~floating], atol=1e-12, rtol=0)
    common = fine[floating].mean() - coarse[floating].mean()
    np.testing.assert_allclose(fine[floating] - coarse[floating], common, atol=1e-12, rtol=0)
    assert abs(common) < 1e-7


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_phase_selector_at_a_head(which):
    """Three switches tie one node to the phases of a bus; in small zones that bus is a head."""
    feeder = Feeder(
        "selector",
        60.0,
        (*(Bus(b, MIDDLE, (1, 2, 3)) for b in "ab"), Bus("c", MIDDLE, (1,))),
        (Source("s", "a.1.2.3", 4.16),),
        (SequenceCode("q", 3, 0.2, 0.4, 0.5, 1.0, 0.0, 0.0),),
        lines=(FeederLine("l", "a.1.2.3", "b.1.2.3", "q", 1.0),),
        switches=tuple(Switch(f"s{k}", f"b.{k + 1}", "c.1", closed=k == which) for k in range(3)),
        loads=(
            Load("x", "c.1.0", 1, "wye", 1, MIDDLE, 200.0, 80.0),
            Load("y", "b.1.2.3.0", 3, "wye", 1, 4.16, 200.0, 80.0),
        ),
    )
    (fine, coarse), counts = answers(feeder, ((2, 512), (1000, 1000)))
    assert counts == {1, 3}
    np.testing.assert_allclose(fine, coarse, atol=1e-11, rtol=0)
    tied = 1e3 * MIDDLE * np.abs(coarse[6] - coarse[3 + which])  # 1e-4 ohm carry about 90 A
    assert 0.005 < tied < 0.02
