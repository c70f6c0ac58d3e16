"""`gridjax evaluate` and `gridjax compare` on a small environment whose returns can be worked out by hand."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "env"))

import jax
import numpy as np
import pytest
from environments_for_tests import walk

from algorithms import charts, checkpoints, comparison, evaluate_command, evaluation, from_logs, metrics, training
from algorithms.iql import IQL
from algorithms.spaces import space_of
from algorithms.statistics import student
from gridjax.__main__ import main
from gridjax.env.behaviours import Behaviour
from gridjax.env.collection import collect
from gridjax.env.datasets import Dataset, save
from gridjax.env.policies import noisy, nothing, random

NAME = "Walk-line-v0"
ENV, PARAMS = walk(counts=(3, 0))
MADE_BY = {"name": NAME, "seed": 0, "days": 100, "hours": None}


def make(name, *, seed, days, hours):
    assert name == NAME
    return ENV, PARAMS


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(evaluation, "make", make)
    monkeypatch.setattr(evaluate_command, "make", make)
    monkeypatch.setattr(evaluate_command, "feeder_of", lambda **made_by: None)


@pytest.fixture(scope="module")
def data() -> Dataset:
    who = [Behaviour("random", random(ENV)), Behaviour("noisy-constant", noisy(ENV, nothing(ENV, PARAMS)))]
    return collect(ENV, PARAMS, who, jax.random.key(3), 40, made_by=MADE_BY)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> Path:
    """A run of two seeds whose agents have learned nothing yet, with a table of metrics."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    space, config = space_of(ENV), IQL.config(hidden=(8,))
    run = {"seeds": 2, "prices": [10.0, 0.0]}
    head = checkpoints.header(IQL, config, space, jax.random.key(0), data, environment=MADE_BY, run=run)
    states = training.begin(IQL, space, training.seed_keys(jax.random.key(0), 2), checkpoints.numbers(config))
    checkpoints.save(folder, head, states)
    for updates in (100, 200):
        metrics.append(folder / "metrics.csv", updates, {"loss": np.array([1.0, 3.0]) / updates, "v": np.ones(2)})
    save(folder / "data.npz", data)
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "one"))


def gridjax(capsys, *argv):
    code = main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def test_an_agent_is_shown_beside_the_baselines(capsys, run):
    code, out, err = gridjax(capsys, "evaluate", run, "--episodes", 12)
    assert code == 0 and "classical is not played: Walk has no classical controls" in " ".join(err.split())
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    rows = {row["policy"]: row for row in record["rows"]}
    assert list(rows) == ["iql", "nothing", "constant", "random", "noisy-constant"] and all(
        name in out for name in rows
    )
    assert record["episodes"] == 12 and record["environment"]["seed"] == [1] and record["versions"]["jax"]
    # Nothing leaves x where it begins, for five steps.
    keys = jax.random.split(jax.random.key(1), evaluation.DRAWS * 12)[:12]
    x = np.array([float(ENV.begin(key, PARAMS)[0]) for key in keys])
    np.testing.assert_allclose(rows["nothing"]["returns"], [-5 * x**2], rtol=1e-6)
    assert rows["nothing"]["return"][0] == pytest.approx(np.sort(-5 * x**2)[3:-3].mean())
    assert rows["nothing"]["figures"]["distance"] == pytest.approx(5 * x.mean())
    assert rows["nothing"]["costs"][0]["violated"] == [0, 0, 0]
    assert np.shape(rows["iql"]["returns"]) == (2, 12) and rows["random"]["costs"][0]["violated"][0] > 0
    low, high = (rows["random"]["score"][0], rows["random"]["return"][0])
    assert low < high - 5 * rows["random"]["costs"][0]["cost"][0]  # each unit of cost is priced at 10
    gain = np.mean(rows["iql"]["returns"]) - np.mean(rows["nothing"]["returns"])
    assert record["gains"]["nothing"][0] == pytest.approx(gain)
    # The constant was searched for; it moves x towards 0 on the whole.
    assert np.mean(rows["constant"]["returns"]) >= np.mean(rows["nothing"]["returns"])
    for name in ("returns.svg", "costs.svg"):
        assert (run / "evaluation" / name).read_text().startswith("<?xml")


def test_runs_are_compared_on_the_same_days(capsys, run, tmp_path):
    assert gridjax(capsys, "evaluate", run, "--episodes", 6, "--baselines", "nothing")[0] == 0
    other = Path(shutil.copytree(run, tmp_path / "two"))
    code, _, err = gridjax(capsys, "compare", run, other, "--metric", "loss", "--out", tmp_path / "c")
    assert code == 0 and err == ""
    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [row["policy"] for row in record["rows"]] == ["one", "two", "nothing"]
    assert record["gains"]["two"] == pytest.approx([0, *record["gains"]["two"][1:]])
    assert record["metrics at the end"]["one"] == {"loss": pytest.approx(list(student(np.array([1.0, 3.0]) / 200)))}
    assert {"curves.svg", "costs.svg", "returns.svg"} <= {path.name for path in (tmp_path / "c").iterdir()}
    assert gridjax(capsys, "evaluate", other, "--episodes", 5, "--baselines", "none")[0] == 0
    code, _, err = gridjax(capsys, "compare", run, other, "--out", tmp_path / "c")
    assert code == 2 and "on the same days" in err
    shutil.rmtree(other / "evaluation")
    code, _, err = gridjax(capsys, "compare", run, other, "--out", tmp_path / "c")
    assert code == 0 and f"gridjax evaluate {other}" in " ".join(err.split())


def test_estimates_from_logs_stand_beside_the_truth(capsys, run, data, monkeypatch):
    small = functools.partial(from_logs.fitted.Config, hidden=(8,), batch_size=16)
    monkeypatch.setattr(from_logs.fitted, "Config", small)
    path = run / "data.npz"
    code, out, err = gridjax(capsys, "evaluate", run, "--from-logs", path, "--updates", 30, "--seeds", 1)
    assert code == 0 and "WDR" in out and "effective episodes" in out
    record = json.loads((run / "evaluation" / "from_logs.json").read_text())
    assert record["fingerprint"] == data.fingerprint
    kinds = [(r["policy"], r["estimator"]) for r in record["rows"]]
    assert kinds == [("mode", "FQE"), *(("drawn", name) for name in ("FQE", "PDIS", "WIS", "DR", "WDR"))]
    for r in record["rows"]:
        assert r["error"] == pytest.approx(r["estimate"][0] - r["truth"][0])
    assert record["behaviour"][0] == pytest.approx(data.transitions.reward.sum() / 40, rel=1e-5)
    agent, config, space, states, _ = checkpoints.load_agent(run)
    played = evaluation.evaluate(ENV, PARAMS, agent, config, space, states, from_logs.start_keys(data))
    assert record["rows"][0]["truth"][0] == pytest.approx(played["return"][0].mean())
    first = jax.vmap(lambda key: ENV.reset(key, PARAMS)[0])(from_logs.start_keys(data))
    np.testing.assert_allclose(first, data.transitions.observation[data.step == 0], rtol=1e-6)
    few = record["effective episodes"][0] < 10
    assert few == ("mean nothing there" in " ".join(err.split()))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("evaluate",), "name one run"),
        (("evaluate", "RUN", "--days-seed", "0"), "training days"),
        (("evaluate", "RUN", "--baselines", "magic"), "choose from nothing"),
        (("evaluate", "RUN", "--seeds", "3"), "the run has 2"),
        (("evaluate", "RUN/nowhere"), "has no checkpoint"),
        (("compare", "RUN", "RUN"), "named twice"),
        (("compare", "RUN", "--metric", "magic"), "choose from loss, v"),
        (("compare", "RUN/nowhere"), "metrics.csv is not there"),
    ],
)
def test_what_cannot_be_is_refused(capsys, run, argv, says):
    code, _, err = gridjax(capsys, *(word.replace("RUN", str(run)) for word in argv))
    assert code == 2 and says in " ".join(err.split())


def test_held_out_years_leave_the_training_days_out():
    assert evaluate_command.held_out_seeds(1, 1000, 0) == ([1, 2, 3], 334)
    assert evaluate_command.held_out_seeds(1, 1000, 2) == ([1, 3, 4], 334)
    assert evaluate_command.held_out_seeds(5, 7, 0) == ([5], 7)


def test_numbers_show_as_many_digits_as_their_intervals_leave():
    assert comparison.shown([1.23456, 1.2, 1.3]) == "1.235 [1.200, 1.300]"
    assert comparison.shown([1234.56, 1000.0, 1500.0]) == "1235 [1000, 1500]"
    assert comparison.shown([0.5, None, None]) == "0.5"
    assert comparison.plain({"a": (np.float64(np.nan), np.arange(2))}) == {"a": [None, [0, 1]]}


def test_pictures_of_one_seed_and_one_day_have_no_intervals(tmp_path):
    figures = {
        "return": np.ones((1, 1)), "cost": np.zeros((1, 1, 1)), "violated": np.zeros((1, 1, 1)),
        "steps": np.ones((1, 1)), "terminated": np.zeros((1, 1)), "power_kw": np.full((1, 1), 3.0),
    }  # fmt: skip
    row = comparison.row("alone", figures, ["limit, pu"], hours=0.5)
    assert row["figures"] == {"power_kwh": 1.5} and np.isnan(row["return"][1])
    charts.returns([row], tmp_path / "r.png")
    charts.costs([comparison.plain(row)], tmp_path / "c.png")
    assert (tmp_path / "r.png").stat().st_size > 1000 and (tmp_path / "c.png").stat().st_size > 1000
