"""Random feeders: the size asked for, radial, every phase reached, voltages in range, and OpenDSS's answer."""

import collections

import networkx as nx
import numpy as np
import pytest

import gridjax
from benchmarks.oracle import Oracle
from gridjax.feeder import split_terminal
from gridjax.feeders import synthetic

VARIANTS = {"plain": {"services": 0.0}, "services": {"services": 1.0}, "regulators": {"regulators": True}}


@pytest.fixture(scope="module")
def thousand():
    return synthetic(1000, 3, regulators=True)


def radial(feeder):
    """The graph of buses with the phases of a bank as one edge."""
    graph = nx.Graph(gridjax.to_networkx(feeder))
    return nx.is_tree(graph) and graph.number_of_nodes() == len(feeder.buses)


def test_one_seed_one_feeder():
    assert synthetic(500, 7) == synthetic(500, 7)
    assert synthetic(500, 7) != synthetic(500, 8)
    assert synthetic(500, 7).buses != synthetic(500, 8).buses


def test_the_stream_is_pcg64_s_and_stays():
    """The first lines of seed 0, so that a platform or version that draws otherwise is found."""
    feeder = synthetic(100, 0)
    found = [(x.bus1, x.bus2, x.code, round(1000 * x.length)) for x in feeder.lines[:3]]
    # The first raw number of seed 0 is fixed; the pool of 4096 is drawn from its end.
    raw = np.random.PCG64(0).random_raw(4096).tolist()
    assert raw[0] == 11749869230777074271
    assert found[0][3] == 100 + raw[-1] % 200
    assert [x[2] for x in found] == ["601"] * 3


@pytest.mark.parametrize("nodes", [20, 21, 57, 100, 1234, 9999])
def test_size_is_exact_and_the_feeder_sound(nodes):
    feeder = synthetic(nodes, nodes)
    assert len(feeder.node_names) == nodes
    assert gridjax.validate(feeder) == []
    assert radial(feeder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_line_s_phases_are_its_bus_s_and_its_parent_has_them(variant):
    feeder = synthetic(2000, 5, **VARIANTS[variant])
    nodes = {b.name: set(b.nodes) for b in feeder.buses}
    for line in feeder.lines:
        (a, phases), (b, others) = split_terminal(line.bus1), split_terminal(line.bus2)
        assert phases == others and set(phases) == nodes[b] <= nodes[a]
    assert radial(feeder) and gridjax.validate(feeder) == []


def test_the_mix_is_that_of_the_docstring():
    feeder = synthetic(20_000, 1)
    count = len(feeder.loads)
    models = collections.Counter(x.model for x in feeder.loads)
    assert set(models) == {1, 2, 5, 8}
    assert models[1] / count == pytest.approx(0.7, abs=0.03)
    assert {(x.connection, x.phases) for x in feeder.loads} == {("wye", 1), ("wye", 3), ("delta", 1), ("delta", 3)}
    for x in feeder.loads:
        assert 0.92 < x.kw / np.hypot(x.kw, x.kvar) < 0.985
    phases = collections.Counter(len(b.nodes) for b in feeder.buses if b.base_kv > 1)
    assert min(phases[1], phases[2], phases[3]) > 0.05 * len(feeder.buses)
    degree = max(dict(nx.Graph(gridjax.to_networkx(feeder)).degree()).values())
    assert degree < 100
    share = sum(x.phases == 1 and len(x.windings) == 3 for x in feeder.transformers) / count
    assert 0.05 < share < 0.3


def test_regulators_and_services_are_options(thousand):
    assert len(thousand.regulators) == 3
    assert synthetic(300, 0, services=0.0).transformers[1:] == ()
    every = synthetic(300, 0, services=1.0)
    assert any(x.kv == 0.24 for x in every.loads)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("nodes", [100, 1000, 12_000])
def test_voltages_at_nominal_load_are_in_range(nodes, seed):
    v, converged = Oracle(synthetic(nodes, seed)).solve()
    assert converged
    assert np.abs(v).min() > 0.9 and np.abs(v).max() < 1.05
    assert np.abs(v).max() - np.abs(v).min() > 0.005


def test_agrees_with_opendss(thousand):
    grid = gridjax.compile(thousand)
    flow = gridjax.solve(grid, grid.nominal, tol=1e-11)
    engine, converged = Oracle(thousand, tolerance=1e-11).solve(grid.nominal)
    assert converged and bool(flow.converged)
    assert int(flow.iterations) < 25
    assert np.abs(np.asarray(flow.v) - engine).max() < 1e-8
    v = np.abs(np.asarray(flow.v))
    assert v.min() > 0.9 and v.max() < 1.05


@pytest.mark.parametrize("wrong", [{"nodes": 19}, {"seed": -1}, {"services": 1.5}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="give at least 20 nodes"):
        synthetic(**{"nodes": 100, "seed": 0, **wrong})
