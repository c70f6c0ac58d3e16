"""The page of an episode: what is in it, in numbers, without a browser."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from feeders_for_tests import two_bus_feeder

from gridjax import timelines
from gridjax.drawing import branches
from gridjax.env.environment import Environment, Transitions
from gridjax.episode import write_episode
from gridjax.feeder import Switch

STEPS = 6


@dataclasses.dataclass(frozen=True)
class Named(Environment):
    """An environment that only has names."""

    names: tuple[str, ...] = ()

    constraints = ("voltage <violation>, pu",)
    action_size = 1
    action_counts = (0,)
    begin = advance = observe = None

    @property
    def observation_names(self):
        return self.names


@dataclasses.dataclass
class Params:
    low: float = 0.97
    high: float = 1.03


DEVICES = ("tap <b>r</b>", "capacitor c1", "state of charge battery", "load level")


def episode(names=DEVICES, unsolved=()):
    """An environment with the two buses' nodes and devices, and hand-made transitions."""
    nodes = tuple(f"voltage {name}" for name in two_bus_feeder().node_names)
    env = Named(horizon=STEPS, failure_penalty=-9.0, names=nodes + names)
    rng = np.random.default_rng(0)
    seen = np.concatenate(
        [rng.uniform(0.96, 1.04, (STEPS, len(nodes))), rng.uniform(0.5, 1.0, (STEPS, len(names)))], axis=1
    )
    if "capacitor c1" in names:
        seen[:, env.names.index("capacitor c1")] = [1, 1, 0, 0, 1, 1]
    solved = ~np.isin(np.arange(STEPS), unsolved)
    loss = np.where(solved, np.arange(STEPS) * 1.5, np.nan)
    rows = Transitions(
        observation=seen, action=np.zeros((STEPS, 1)), reward=-np.arange(STEPS, dtype=float),
        cost=np.stack([np.full(STEPS, 0.25), ~solved], axis=1).astype(float), next_observation=seen,
        terminated=np.zeros(STEPS, bool), truncated=np.arange(STEPS) == STEPS - 1,
        info={"loss_kw": loss, "solved": solved},
    )  # fmt: skip
    return env, rows


def written(tmp_path, env, rows, feeder=None, **options):
    path = tmp_path / "episode.html"
    write_episode(path, env, Params(), rows, feeder, **options)
    text = path.read_text()
    data = json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    return text, data


class Reader(html.parser.HTMLParser):
    """Elements of a page, and which are not closed."""

    def __init__(self):
        super().__init__()
        self.found, self.stack = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_a_page_stands_alone_and_is_well_formed(tmp_path):
    text, _ = written(tmp_path, *episode(), two_bus_feeder(), title="<i>day</i>")
    reader = Reader()
    reader.feed(text)
    assert reader.stack == []
    for _, attrs in reader.found:
        assert not {"src", "srcset", "onclick", "onload"} & set(attrs)
        assert attrs.get("href", "#").startswith("#")
    policy = next(a["content"] for t, a in reader.found if t == "meta" and "content" in a and "http-equiv" in a)
    assert "default-src 'none'" in policy and "@@" not in text and "http:" not in text.replace("http-equiv", "")
    assert ("i", {}) not in reader.found and ("b", {}) not in reader.found  # names are text
    assert "&lt;i&gt;day&lt;/i&gt;" in text and "&lt;b&gt;r&lt;/b&gt;" in text and "violation&gt;" in text
    ids = [a["id"] for _, a in reader.found if "id" in a]
    assert len(ids) == len(set(ids)) and "oneline" in ids
    timelines_shown = [i.removeprefix("timeline-") for i in ids if i.startswith("timeline-")]
    assert timelines_shown == ["voltage", "tap", "state-of-charge", "capacitor", "reward", "cost0"]


def test_the_data_are_the_transitions(tmp_path):
    env, rows = episode()
    _, data = written(tmp_path, env, rows, two_bus_feeder())
    figures = dict(zip(data["figures"]["names"], data["figures"]["values"], strict=True))
    np.testing.assert_allclose(figures["reward"], rows.reward)
    np.testing.assert_allclose(figures["return so far"], np.cumsum(rows.reward))
    np.testing.assert_allclose(figures["loss kw"], rows.info["loss_kw"])
    assert figures["voltage <violation>, pu"] == [0.25] * STEPS and "solved" not in figures
    devices = dict(zip(data["devices"]["names"], data["devices"]["values"], strict=True))
    assert devices["capacitor c1"] == [1, 1, 0, 0, 1, 1] and "load level" in devices
    v = rows.next_observation[:, :6]
    for k in range(STEPS):
        low, high = data["worst"][k]
        assert [x for _, x in low] == pytest.approx(np.sort(v[k])[:3], abs=1e-5)
        assert high[0] == [two_bus_feeder().node_names[v[k].argmax()], pytest.approx(v[k].max(), abs=1e-5)]
    np.testing.assert_allclose(data["diagram"]["pu"], v.reshape(STEPS, 2, 3).min(axis=2), atol=1e-4)
    lowest = v.reshape(STEPS, 2, 3).min(axis=2)
    share = (lowest - lowest.min()) / np.ptp(lowest)
    np.testing.assert_array_equal(data["diagram"]["classes"], np.minimum(np.floor(share * 18), 17))


def test_a_step_that_is_not_solved_has_no_voltages(tmp_path):
    env, rows = episode(unsolved=(2,))
    text, data = written(tmp_path, env, rows, two_bus_feeder())
    assert "The power flow of 1 of 6 steps was not solved" in text and data["solved"] == [
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    assert data["worst"][2] == [[], []] and data["diagram"]["classes"][2] == [-1, -1]
    figures = dict(zip(data["figures"]["names"], data["figures"]["values"], strict=True))
    assert figures["loss kw"][2] is None and figures["reward"][2] == -2
    chart = re.search('<svg class="timeline" id="timeline-voltage".*?</svg>', text)[0]
    assert chart.count('class="unsolved"') == 1
    assert all(d.count("M") == 2 for d in re.findall(r'class="line s\d" d="(.*?)"', chart))  # broken there
    nothing = dataclasses.replace(rows, info={"solved": np.zeros(STEPS, bool)})
    text, data = written(tmp_path, env, nothing, two_bus_feeder())
    assert 'id="timeline-voltage"' not in text and data["diagram"]["classes"] == [[-1, -1]] * STEPS


def test_lines_stand_where_the_values_are(tmp_path):
    text, _ = written(tmp_path, *episode())
    chart = re.search('<svg class="timeline" id="timeline-tap".*?</svg>', text)[0]
    line = re.search('class="line s0" d="(.*?)"', chart)[1]
    levels = [float(y) for y in re.findall(r"[ V]([\d.]+)H", line)]
    tap = episode()[1].next_observation[:, 6]
    grid = [(float(y), float(t)) for y, t in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', chart)]
    slope, start = np.polyfit([t for _, t in grid], [y - 4 for y, _ in grid], 1)
    np.testing.assert_allclose(levels, start + slope * tap, atol=0.3)
    box = re.search(r'class="range-a" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', text)
    chart = re.search('<svg class="timeline" id="timeline-voltage".*?</svg>', text)[0]
    grid = [(float(y), float(t)) for y, t in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', chart)]
    slope, start = np.polyfit([t for _, t in grid], [y - 4 for y, _ in grid], 1)
    assert float(box[1]) == pytest.approx(start + slope * 1.03, abs=0.3)  # the limits of the parameters
    assert float(box[2]) == pytest.approx(-slope * 0.06, abs=0.3)
    on = re.findall(r'class="on s0" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', text)
    w = timelines.width(STEPS)
    np.testing.assert_allclose(
        np.array(on, float), [[timelines.LEFT, 2 * w], [timelines.LEFT + 4 * w, 2 * w]], atol=0.1
    )


def test_there_are_only_panels_for_what_there_is(tmp_path):
    env = Named(horizon=STEPS, failure_penalty=-9.0, names=("soil moisture",))
    _, rows = episode()
    one = dataclasses.replace(rows, observation=np.ones((STEPS, 1)), next_observation=np.ones((STEPS, 1)))
    text, data = written(tmp_path, env, one)
    assert re.findall('class="timeline" id="timeline-(.*?)"', text) == ["reward", "cost0"] and data["diagram"] is None
    many = {f"b{k}": np.full(STEPS, float(k)) for k in range(20)}
    chart = timelines.chart("x", "x", many, np.ones(STEPS, bool))
    assert chart.count('class="line') == 3 and "highest of 20" in chart


def test_episodes_of_something_else_are_refused(tmp_path):
    env, rows = episode()
    path = tmp_path / "x.html"
    batch = Transitions(**{f.name: None for f in dataclasses.fields(rows)} | {"next_observation": np.zeros((3, 2, 10))})
    with pytest.raises(ValueError, match="take one episode"):
        write_episode(path, env, Params(), batch)
    with pytest.raises(ValueError, match="not of this environment"):
        write_episode(path, dataclasses.replace(env, names=("a",)), Params(), rows)
    other = two_bus_feeder().replace(buses=two_bus_feeder().buses[:1])
    with pytest.raises(ValueError, match="nodes are not those of 'two-bus'"):
        write_episode(path, env, Params(), rows, other)
    two = dataclasses.replace(rows, truncated=np.arange(STEPS) == 3)
    assert written(tmp_path, env, two)[1]["steps"] == 4  # only the first


def test_nodes_that_are_cut_off_have_no_voltage(tmp_path):
    env, rows = episode()
    dark = rows.next_observation.copy()
    dark[1, 3:6] = 0.0
    text, data = written(tmp_path, env, dataclasses.replace(rows, next_observation=dark), two_bus_feeder())
    assert data["diagram"]["classes"][1][1] == -1 and data["diagram"]["pu"][1][1] is None
    assert {name for name, _ in data["worst"][1][0]} == {"a.1", "a.2", "a.3"} and "0.000" not in text


def test_of_many_devices_the_page_shows_how_many_are_on():
    states = {f"s{k}": np.arange(STEPS) > k for k in range(60)}
    picture = timelines.switches("x", "x", states, np.ones(STEPS, bool))
    assert 'class="on' not in picture and "how many of 60" in picture and picture.count('class="line') == 1


def test_switches_open_and_close_in_the_diagram(tmp_path):
    feeder = two_bus_feeder()
    feeder = feeder.replace(switches=(Switch("s", "a.1.2.3", "b.1.2.3", closed=False),))
    env, rows = episode(("closed s",))
    rows.next_observation[:, -1] = [0, 0, 1, 1, 0, 0]
    text, data = written(tmp_path, env, rows, feeder)
    names = [edge.name for edge in branches(feeder)]
    assert data["diagram"]["closed"][names.index("s")] == [False, False, True, True, False, False]
    assert data["diagram"]["closed"][names.index("l1")] == [True] * STEPS
    assert 'href="#open-switch"' in text and f'data-of="{names.index("s")}"' in text
