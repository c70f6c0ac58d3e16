"""The pictures show the flow's own numbers, mark what is no solution, and cannot be broken by names."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feeders_for_tests import every_element_feeder, two_bus_feeder
from matplotlib.collections import LineCollection

import gridjax
from gridjax import drawing, placement, plot, scenarios, summary
from gridjax.feeder import Bus, Feeder, Line, LineCode, Load, Source, Transformer, Winding

HOSTILE = "</script><script>alert(1)</script>\"'&$x_{$<b>"


@functools.cache
def solved(make):
    feeder = make()
    grid = gridjax.compile(feeder)
    return feeder, grid, jax.jit(gridjax.solve)(grid, grid.nominal)


def solved_every_element():
    return solved(every_element_feeder)


def split_phase_feeder() -> Feeder:
    """A single-phase lateral of phase 3 with a centre-tapped service and its triplex line."""
    code = LineCode("one", ((0.5,),), ((0.5,),), ((0.0,),))
    triplex = LineCode("two", ((0.5, 0.1), (0.1, 0.5)), ((0.2, 0.1), (0.1, 0.2)), ((0.0, 0.0), (0.0, 0.0)))
    windings = (
        Winding("p.3.0", "wye", 7.2, 25.0, 0.6),
        Winding("s.1.0", "wye", 0.12, 25.0, 1.2),
        Winding("s.0.2", "wye", 0.12, 25.0, 1.2),
    )
    return Feeder(
        name="split",
        frequency_hz=60.0,
        buses=(Bus("a", 7.2, (1, 2, 3)), Bus("p", 7.2, (3,)), Bus("s", 0.12, (1, 2)), Bus("h", 0.12, (1, 2))),
        sources=(Source("grid", "a.1.2.3", 7.2 * 3**0.5),),
        codes=(code, triplex),
        lines=(Line("l1", "a.3", "p.3", "one", 2.0), Line("l2", "s.1.2", "h.1.2", "two", 0.03)),
        transformers=(Transformer("t", 1, windings, (2.04, 2.04, 1.36)),),
        loads=(Load("x", "h.1.0", 1, "wye", 1, 0.12, 5.0, 1.0), Load("y", "h.2.0", 1, "wye", 1, 0.12, 2.0, 1.0)),
    )


def hostile_feeder() -> Feeder:
    feeder = two_bus_feeder()
    a, b = feeder.buses
    rename = dataclasses.replace
    return feeder.replace(
        name=HOSTILE,
        origin=HOSTILE,
        buses=(a, rename(b, name=HOSTILE)),
        lines=(rename(feeder.lines[0], name=HOSTILE, bus2=f"{HOSTILE}.1.2.3"),),
        loads=(rename(feeder.loads[0], bus=f"{HOSTILE}.1.2.3.0"),),
    )


def failed(flow: gridjax.PowerFlow) -> gridjax.PowerFlow:
    return dataclasses.replace(flow, converged=jnp.asarray(False))


def profile_lines(figure) -> dict[str, list]:
    return {c.get_label(): c.get_segments() for c in figure.axes[0].collections if isinstance(c, LineCollection)}


# The voltage profile.


def test_profile_has_the_flows_voltages_at_the_distances():
    feeder, _, flow = solved(two_bus_feeder)
    lines = profile_lines(plot.voltage_profile(feeder, flow))
    v = np.abs(np.asarray(flow.v))
    assert sorted(lines) == ["phase A", "phase B", "phase C"]
    for k, (segment,) in enumerate(lines[label] for label in sorted(lines)):
        np.testing.assert_allclose(segment, [(0.0, v[k]), (1.0, v[3 + k])])


def test_profile_draws_every_connected_phase_node_once_or_more():
    feeder, _, flow = solved_every_element()
    drawn = {
        round(float(y), 12)
        for segments in profile_lines(plot.voltage_profile(feeder, flow)).values()
        for s in segments
        for _, y in s
    }
    v = np.abs(np.asarray(flow.v))
    expected = {round(float(x), 12) for x, phase in zip(v, drawing.phase_nodes(feeder), strict=True) if phase}
    assert drawn == expected


def test_secondary_legs_have_the_colour_of_their_phase():
    feeder, _, flow = solved(split_phase_feeder)
    assert drawing.node_phases(feeder).tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    lines = profile_lines(plot.voltage_profile(feeder, flow))
    assert {label: len(segments) for label, segments in lines.items()} == {"phase C": 1, "phase C secondary": 4}


def test_profile_title_names_the_extremes():
    feeder, _, flow = solved(two_bus_feeder)
    title = plot.voltage_profile(feeder, flow).axes[0].get_title(loc="left")
    v = np.abs(np.asarray(flow.v))
    assert feeder.name in title and f"{v.min():.4f} pu at {feeder.node_names[v.argmin()]}" in title


def test_unreached_and_infinite_nodes_are_left_out():
    feeder, _, flow = solved(two_bus_feeder)
    flow = dataclasses.replace(flow, v=flow.v.at[3].set(jnp.nan))
    lines = profile_lines(plot.voltage_profile(feeder, flow))
    assert sorted(lines) == ["phase B", "phase C"]


@pytest.mark.parametrize("value", [None, jnp.nan, 1e200])
def test_unconverged_flows_are_stamped(tmp_path, value):
    feeder, grid, flow = solved(two_bus_feeder)
    bad = failed(flow)
    if value is not None:
        bad = dataclasses.replace(bad, v=jnp.full_like(bad.v, value), residual=jnp.asarray(jnp.inf))
    for good, figure in (
        (True, plot.voltage_profile(feeder, flow)),
        (True, plot.oneline(feeder, grid, grid.nominal, flow)),
        (False, plot.voltage_profile(feeder, bad, tmp_path / "profile.png")),
        (False, plot.oneline(feeder, grid, grid.nominal, bad, tmp_path / "oneline.png")),
    ):
        texts = [t.get_text() for axes in figure.axes for t in axes.texts]
        assert ("NOT CONVERGED" in texts) != good
    plot.page(feeder, grid, grid.nominal, bad, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("NOT CONVERGED") == 2 and 'role="alert"' in page
    numbers = summary.summarize(feeder, grid, grid.nominal, bad)
    assert numbers["min_voltage_pu"] is None and numbers["source_kw"] is None


def test_a_batch_is_refused():
    feeder, grid, flow = solved(two_bus_feeder)
    flows = jax.tree.map(lambda a: jnp.stack([a, a]), flow)
    with pytest.raises(ValueError, match="take one scenario"):
        plot.voltage_profile(feeder, flows)
    with pytest.raises(ValueError, match="take one scenario"):
        plot.oneline(feeder, grid, grid.nominal, flows)


def test_the_ranges_are_those_of_the_standard():
    np.testing.assert_allclose(drawing.RANGE_A, (0.95, 1.05))
    np.testing.assert_allclose(drawing.RANGE_B, (0.917, 1.058), atol=5e-4)


# The one-line diagram.


def test_oneline_colours_by_the_lowest_voltage_of_the_ends():
    feeder, grid, flow = solved_every_element()
    figure = plot.oneline(feeder, grid, grid.nominal, flow)
    lines = next(c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    v = np.abs(np.asarray(flow.v))
    of_bus, i = {}, 0
    for bus in feeder.buses:
        of_bus[bus.name] = min(v[i + k] for k, n in enumerate(bus.nodes) if n <= 3)
        i += len(bus.nodes)
    names = [bus.name for bus in feeder.buses]
    closed = [edge for edge in drawing.branches(feeder) if edge.closed]
    want = [min(of_bus[names[end.bus]] for end in edge.ends) for edge in closed]
    np.testing.assert_allclose(lines.get_array(), want)
    assert len(lines.get_segments()) == len(closed)


def test_branch_values_are_the_results():
    feeder, grid, flow = solved_every_element()
    edges = drawing.branches(feeder)
    values = drawing.branch_values(grid, grid.nominal, flow, edges)
    found = drawing.all_results(grid, grid.nominal, flow)
    amps, kva = found["currents"], found["powers"]
    seen = set()
    for b, edge in enumerate(edges):
        table = drawing.TABLES[edge.kind]
        assert values.loss_kva[b] == pytest.approx(complex(kva[table][edge.row].sum()), abs=1e-9)
        for e, end in enumerate(edge.ends):
            at = list(end.terminals)
            assert values.amps[b, e] == pytest.approx(float(np.abs(amps[table][edge.row, at]).max()))
            assert values.kva[b, e] == pytest.approx(complex(kva[table][edge.row, at].sum()), abs=1e-9)
        seen.add(edge.kind)
    assert seen == set(drawing.TABLES)
    rated = next(b for b, edge in enumerate(edges) if edge.name == "l1")
    assert values.loading[rated] == pytest.approx(values.amps[rated].max() / 400.0)
    unrated = next(b for b, edge in enumerate(edges) if edge.name == "l2")
    assert np.isnan(values.loading[unrated])


def test_widths_follow_the_current_where_nothing_is_rated():
    feeder, grid, flow = solved(two_bus_feeder)
    assert feeder.lines[0].rating_a is None
    title = plot.oneline(feeder, grid, grid.nominal, flow).axes[0].get_title(loc="left")
    assert "width by current" in title and "computed layout" in title


def test_coordinates_of_the_feeder_are_kept_and_gaps_filled():
    feeder = every_element_feeder()
    xy, note = placement.place(feeder)
    assert "5 of 15" in note
    for bus, at in zip(feeder.buses, xy, strict=True):
        assert bus.x is None or (bus.x, bus.y) == tuple(at)
    assert np.isfinite(xy).all()


def test_a_computed_tree_puts_no_two_buses_on_one_place():
    feeder = every_element_feeder()
    feeder = feeder.replace(buses=tuple(dataclasses.replace(bus, x=None, y=None) for bus in feeder.buses))
    xy, note = placement.place(feeder)
    assert "computed" in note
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2) + np.eye(len(xy))
    assert apart.min() > 0.5


def test_an_island_and_coordinates_that_coincide_are_placed():
    feeder = two_bus_feeder()
    buses = [dataclasses.replace(bus, x=1.0, y=1.0) for bus in feeder.buses]
    feeder = feeder.replace(buses=(*buses, Bus("alone", 2.4, (1,))))
    xy, note = placement.place(feeder)
    assert "computed" in note and len(np.unique(xy, axis=0)) == 3


def test_a_deep_tree_is_placed_without_deep_recursion():
    buses = tuple(Bus(f"b{i}", 2.4, (1,)) for i in range(3000))
    lines = tuple(Line(f"l{i}", f"b{i}.1", f"b{i + 1}.1", "c", 1.0) for i in range(2999))
    feeder = Feeder("chain", 60.0, buses, (Source("s", "b0.1", 2.4),), lines=lines)
    xy, _ = placement.place(feeder)
    np.testing.assert_allclose(xy[:, 0], np.arange(3000))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_files_are_written(tmp_path, suffix):
    feeder, grid, flow = solved_every_element()
    plot.voltage_profile(feeder, flow, tmp_path / f"profile.{suffix}")
    plot.oneline(feeder, grid, grid.nominal, flow, tmp_path / f"oneline.{suffix}")
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        if suffix == "png":
            assert content[:8] == b"\x89PNG\r\n\x1a\n"
        else:
            assert ET.fromstring(content).tag.endswith("svg")


def test_importing_the_package_imports_no_matplotlib():
    code = "import sys, gridjax, gridjax.plot; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_histogram_counts_the_converged_scenarios():
    n = 50
    outcome = scenarios.Outcome(
        converged=np.arange(n) > 0,
        iterations=np.full(n, 3),
        residual=np.zeros(n),
        min_pu=np.linspace(0.9, 1.0, n),
        min_node=np.zeros(n, int),
        max_pu=np.linspace(1.0, 1.1, n),
        max_node=np.zeros(n, int),
        outside_a=np.zeros(n, int),
        outside_b=np.zeros(n, int),
    )
    axes = plot.voltage_histogram("f", outcome).axes[0]
    bars = [sum(bar.get_height() for bar in container) for container in axes.containers]
    assert bars == [n - 1, n - 1] and "1 more not converged" in axes.get_title(loc="left")


# Scenarios.


def test_a_scenario_depends_on_its_number_not_on_the_chunks():
    feeder, grid, _ = solved(two_bus_feeder)
    runs = [
        scenarios.join(list(scenarios.run(feeder, grid, jax.random.key(3), 7, batch_size=size))) for size in (7, 3, 100)
    ]
    for run in runs:
        assert run.min_pu.shape == (7,) and run.converged.all()
        np.testing.assert_allclose(run.min_pu, runs[0].min_pu, rtol=0, atol=1e-12)
    assert len(set(runs[0].min_pu.tolist())) == 7


def test_scenarios_solve_the_loads_that_were_drawn():
    feeder, grid, _ = solved(two_bus_feeder)
    key, draw = jax.random.key(5), scenarios.Draw(spread=0.8)
    (outcome,) = scenarios.run(feeder, grid, key, 4, draw=draw)
    solve = jax.jit(lambda factors: gridjax.solve(grid, scenarios.with_loads(grid.nominal, factors)).v)
    for number in range(4):
        factors = scenarios.load_multipliers(key, number, grid.nominal, draw)
        assert ((factors >= 0) & (factors <= draw.most)).all()
        v = np.abs(np.asarray(solve(factors)))
        assert outcome.min_pu[number] == pytest.approx(v.min(), abs=1e-9)
        assert outcome.max_pu[number] == pytest.approx(v.max(), abs=1e-9)
        assert outcome.min_node[number] == v.argmin()


def test_ungrounded_nodes_are_counted():
    assert summary.floating_nodes(two_bus_feeder()) == 0
    assert summary.floating_nodes(split_phase_feeder()) == 0
    assert summary.floating_nodes(every_element_feeder()) == 3  # the bus behind the delta-delta transformer


# The page.


class Reader(HTMLParser):
    """Collects the page's elements and the content of its scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.data, self.urls, self._script = [], {}, [], None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.urls += [v for k, v in attrs.items() if k in ("src", "href", "action", "data", "xlink:href") and v]
        if tag == "script":
            self._script = attrs.get("id", "code")

    def handle_data(self, data):
        if self._script:
            self.data[self._script] = self.data.get(self._script, "") + data

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None


def read_page(path) -> tuple[str, Reader]:
    text, reader = path.read_text(encoding="utf-8"), Reader()
    reader.feed(text)
    return text, reader


def test_page_holds_the_flows_values(tmp_path):
    feeder, grid, flow = solved_every_element()
    plot.page(feeder, grid, grid.nominal, flow, tmp_path / "p.html")
    _, reader = read_page(tmp_path / "p.html")
    data = json.loads(reader.data["data"])
    v, volts = np.asarray(flow.v), np.asarray(gridjax.voltages(grid, flow))
    nodes = [node for bus in data["buses"] for node in bus["nodes"]]
    assert [f"{bus['name']}.{node[0]}" for bus in data["buses"] for node in bus["nodes"]] == list(feeder.node_names)
    np.testing.assert_allclose([node[2] for node in nodes], np.abs(volts), atol=1e-4)
    np.testing.assert_allclose([node[3] for node in nodes], np.abs(v), atol=1e-6)
    turned = np.exp(1j * np.radians([node[4] for node in nodes]))
    np.testing.assert_allclose(turned * np.abs(v), v, atol=1e-5)
    edges = drawing.branches(feeder)
    values = drawing.branch_values(grid, grid.nominal, flow, edges)
    for branch, edge, amps, kva in zip(data["branches"], edges, values.amps, values.kva, strict=True):
        assert branch["name"] == f"{edge.kind}.{edge.name}"
        np.testing.assert_allclose([end[0] for end in branch["ends"]], amps, atol=1e-3)
        np.testing.assert_allclose([end[1] + 1j * end[2] for end in branch["ends"]], kva, atol=1e-3)


def test_page_is_self_contained_and_its_pictures_parse(tmp_path):
    feeder, grid, flow = solved_every_element()
    plot.page(feeder, grid, grid.nominal, flow, tmp_path / "p.html")
    text, reader = read_page(tmp_path / "p.html")
    assert not re.search(
        r"(https?:)?//[a-z0-9]", re.sub(r"//.*", "", reader.data["code"]) + text.split("<script")[0], re.I
    )
    assert all(url.startswith("#") for url in reader.urls)
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert not [a for _, a in reader.tags if any(key.startswith("on") for key in a)]
    pictures = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert [svg.get("id") for svg in pictures] == ["oneline", "profile"]
    for svg in pictures:
        assert svg.get("role") == "img" and svg.find("title").text and svg.find("desc").text
    assert len(pictures[0].findall(".//path[@data-bus]")) == len(feeder.buses)
    assert len(pictures[0].findall(".//path[@data-branch]")) == len(drawing.branches(feeder))


def test_hostile_names_stay_text(tmp_path):
    feeder = hostile_feeder()
    grid = gridjax.compile(feeder)
    flow = jax.jit(gridjax.solve)(grid, grid.nominal)
    plot.page(feeder, grid, grid.nominal, flow, tmp_path / "p.html")
    text, reader = read_page(tmp_path / "p.html")
    assert "<script>alert" not in text and "<b>" not in text
    assert sum(tag == "script" for tag, _ in reader.tags) == 2
    data = json.loads(reader.data["data"])
    assert data["buses"][1]["name"] == HOSTILE and data["branches"][0]["name"] == f"line.{HOSTILE}"
    for suffix in ("png", "svg"):
        plot.voltage_profile(feeder, flow, tmp_path / f"v.{suffix}")
        plot.oneline(feeder, grid, grid.nominal, flow, tmp_path / f"o.{suffix}")
    ET.parse(tmp_path / "v.svg")
    ET.parse(tmp_path / "o.svg")


def test_names_with_placeholders_are_not_filled_in(tmp_path):
    feeder = two_bus_feeder().replace(name="@@data@@", origin="@@summary@@")
    _, grid, flow = solved(two_bus_feeder)
    plot.page(feeder, grid, grid.nominal, flow, tmp_path / "p.html")
    assert "<h1>@@data@@</h1>" in (tmp_path / "p.html").read_text()


def test_printable_removes_what_moves_a_terminals_cursor():
    assert drawing.printable("a\x1b[2Jb\n\u202ec") == "a\ufffd[2Jb\ufffd\ufffdc"
    assert len(drawing.printable("x" * 500)) == 60
