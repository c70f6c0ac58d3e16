"""The 33-bus feeder against what its authors and later users published.

M. E. Baran and F. F. Wu (1989) give 3715 kW and 2300 kvar of load; the loss of the initial configuration, 202.68 kW,
and its lowest voltage, 0.9131 pu at bus 18, are the values on which the literature agrees for this data (for example
MATPOWER's and pandapower's `case33bw`).
"""

import math

import jax
import networkx as nx
import numpy as np
import pytest

import gridjax


@pytest.fixture(scope="module")
def feeder():
    return gridjax.feeders.baran_wu33()


@pytest.fixture(scope="module")
def solved(feeder):
    grid = gridjax.compile(feeder)
    return grid, gridjax.solve(grid, grid.nominal, tol=1e-10)


def test_the_table_is_whole(feeder):
    assert len(feeder.buses) == 33 and len(feeder.node_names) == 99
    assert len(feeder.lines) == 32 and len(feeder.loads) == 32
    assert sum(x.kw for x in feeder.loads) == 3715.0
    assert sum(x.kvar for x in feeder.loads) == 2300.0
    assert all(math.isclose(b.base_kv * math.sqrt(3), 12.66) for b in feeder.buses)
    assert "Baran" in feeder.origin and "1989" in feeder.origin and feeder.licence
    assert gridjax.validate(feeder) == []


def test_the_ties_are_open_and_close_five_loops(feeder):
    assert [x.closed for x in feeder.switches] == [False] * 5
    graph = gridjax.to_networkx(feeder)
    closed = nx.MultiGraph([(a, b) for a, b, data in graph.edges(data=True) if data["closed"]])
    assert nx.is_tree(nx.Graph(closed)) and closed.number_of_nodes() == 33
    assert graph.number_of_edges() - closed.number_of_edges() == 5


def test_published_loss_and_lowest_voltage(feeder, solved):
    grid, flow = solved
    assert bool(flow.converged)
    assert float(gridjax.losses(grid, grid.nominal, flow).real) == pytest.approx(202.68, abs=0.005)
    v = np.abs(np.asarray(flow.v))
    assert feeder.node_names[int(v.argmin())].startswith("18.")
    assert v.min() == pytest.approx(0.9131, abs=5e-5)


def test_the_phases_are_balanced(solved):
    v = np.asarray(solved[1].v).reshape(33, 3)
    turned = v * np.exp(2j * np.pi / 3 * np.arange(3))
    assert np.abs(turned - turned[:, :1]).max() < 1e-9


def test_loads_are_constant_power_over_the_benchmark_s_range(feeder, solved):
    grid, _ = solved
    point = jax.tree.map(lambda a: a, grid.nominal)
    point = point.replace(load_kw=1.5 * point.load_kw, load_kvar=1.5 * point.load_kvar)
    flow = gridjax.solve(grid, point, tol=1e-10)
    assert bool(flow.converged)
    consumed, _ = gridjax.device_powers(grid, point, flow)
    assert np.allclose(np.asarray(consumed), np.asarray(point.load_kw + 1j * point.load_kvar), rtol=1e-8)
