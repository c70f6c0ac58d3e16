"""The benchmark runs, agrees with its peers, writes what it measured, and refuses to write when tools disagree."""

import importlib.util
import json

import numpy as np
import pytest

import gridjax
from benchmarks import kernel, powerflow
from benchmarks.cases import cases, equivalent, factors
from benchmarks.opendss_peer import WAYS, Engine

SMALL = ["--quick", "--batches", "1", "4", "--results-batches", "4", "--dtypes", "float64", "--cores", "1"]


def test_a_small_run_writes_table_figures_and_plots(tmp_path):
    assert powerflow.main([*SMALL, "--feeders", "ieee123_equivalent", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "powerflow.json").read_text())
    (case,) = record["cases"]
    (run,) = case["gridjax"]
    assert [row["batch"] for row in run["rows"]] == [1, 4]
    for row in run["rows"]:
        assert row["us"] > 0 and row["unconverged"] == 0 and row["gap_pu"] < 1e-6 and row["peak_mib"] > 50
    assert run["rows"][1]["results"]["us"] > 0
    assert run["latency_us"] > 0 and run["grid_seconds"] > 0 and run["jit_seconds"] > 0
    assert case["opendss"]["one_core_us"] == pytest.approx(case["opendss"]["ways_us"][case["opendss"]["way"]], rel=10.0)
    peer = case["power-grid-model"]
    if importlib.util.find_spec("power_grid_model"):
        assert peer["us"] > 0 and case["gaps_to_opendss_pu"]["power-grid-model"] < 1e-6
    else:
        assert "not installed" in peer["not_run"]
    meta = record["meta"]
    assert meta["versions"]["jax"] and meta["cores"] == 1 and "--feeders ieee123_equivalent" in meta["command"]
    text = (tmp_path / "powerflow.md").read_text()
    assert f"| ieee123_equivalent | {case['nodes']} | 4 |" in text
    for plot in ("powerflow_batch.svg", "powerflow_nodes.svg"):
        assert plot in text and (tmp_path / plot).read_text().rstrip().endswith("</svg>")


def test_a_disagreement_writes_nothing_and_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(powerflow.AGREE, "float64", 0.0)  # more than any two programs can agree to
    assert powerflow.main([*SMALL, "--feeders", "ieee13", "--batches", "1", "--out", str(tmp_path)]) == 1
    assert "no time counts" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ieee13", "european_lv"])
def test_all_ways_to_write_loads_write_the_same(name):
    feeder = cases(0)[name].make()
    engine = Engine(feeder, tolerance=1e-10)
    scales = factors(1, 3, len(feeder.loads))
    found = []
    for way in WAYS:
        engine.run(way, factors(2, 2, len(feeder.loads)))  # something else in between
        found.append(engine.run(way, scales, keep=3)[1])
    assert found[0].shape == (3, len(feeder.node_names))
    for other in found[1:]:
        assert np.abs(other - found[0]).max() < 1e-8
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-5


def test_scenarios_are_the_same_in_every_batch():
    assert np.array_equal(factors(0, 5, 7), factors(0, 64, 7)[:5])
    assert not np.array_equal(factors(0, 5, 7), factors(1, 5, 7))
    assert factors(0, 64, 7).min() >= 0.5 and factors(0, 64, 7).max() < 1.5


def test_equivalents_keep_the_load_and_hold_only_what_can_be_said():
    for name in ("ieee123", "european_lv"):
        feeder = gridjax.feeders.load(name)
        twin = equivalent(feeder)
        assert gridjax.validate(twin) == []
        for power in ("kw", "kvar"):
            total = sum(getattr(x, power) for x in feeder.loads)
            assert sum(getattr(x, power) for x in twin.loads) == pytest.approx(total, rel=1e-12)
        assert not (twin.regulators or twin.capacitors or twin.switches)
        assert {(x.model, x.connection) for x in twin.loads} == {(1, "wye")}
        assert all([w.connection for w in x.windings] == ["delta", "wye"] for x in twin.transformers)


def test_what_cannot_be_said_is_refused_by_name():
    with pytest.raises(ValueError, match=r"load\.\S+ hangs behind a transformer that power-grid-model cannot express"):
        equivalent(gridjax.feeders.synthetic(200, 0, services=1.0))


def test_gridjax_against_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kernel", "--quick", "--out", str(tmp_path)])
    assert kernel.main() == 0
    record = json.loads((tmp_path / "kernel.json").read_text())
    scalars = "sum of squared voltages", "losses", "sum of squared loadings"
    assert [(r["scalar"], r["how"]) for r in record["derivatives"]] == [
        (scalar, how) for scalar in scalars for how in ("vmap", "in batches")
    ]
    assert all(r["times"] == pytest.approx(r["with_gradient_us"] / r["value_us"]) for r in record["derivatives"])
    assert [r["method"] for r in record["methods"]] == ["sweep", "newton", "auto"]
    assert all(r["converged"] == r["of"] == 16 for r in record["methods"])
    assert record["many_feeders"]["feeders"] == 3 and record["many_feeders"]["not_converged"] == 0
    assert (tmp_path / "kernel.md").read_text().strip() == capsys.readouterr().out.strip()
