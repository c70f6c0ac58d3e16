"""The hosting-capacity example: placements, minimum load, bisection, and the whole study against OpenDSS."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

CHUNK = 8  # one size of the vmapped power flow, so that it is compiled once
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import hosting_capacity as example
from hosting.feeders import KINDS, STUDIES, equipped, judged_nodes, minimum_load
from hosting.opendss import Engine, as_operated

import gridjax


@pytest.fixture(scope="module")
def case():
    return example.prepare("ieee123")


def test_placements_are_shares_of_one_that_depend_on_seed_and_number_alone():
    nominal_kw = np.array([20.0, 40.0, 40.0, 75.0, 0.5, 10.0])
    weights = example.draw_placements(0, 400, nominal_kw)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)
    assert set((weights > 0).sum(axis=1)) == {1, 2, 3, 4, 5, 6}
    np.testing.assert_allclose((weights > 0).mean(axis=0), 3.5 / 6, atol=0.1)
    np.testing.assert_array_equal(weights[:50], example.draw_placements(0, 50, nominal_kw))
    assert not np.array_equal(weights, example.draw_placements(1, 400, nominal_kw))


def straight_lines(limits_kw, silent_from):
    """Verdicts whose ratios rise from 0.5 to 1 at `limits_kw` (placements, kinds); silent beyond `silent_from`."""

    def judge(kw):
        ratio = 0.5 + 0.5 * kw[:, None] / limits_kw
        converged = kw < silent_from
        ratio = np.where(converged[:, None], ratio, np.nan)
        return example.Verdict(ratio, np.tile(np.arange(10, 14), (len(kw), 1)), converged, -kw)

    return judge


def test_bisection_finds_known_capacities_and_says_what_it_could_not_find():
    limits = np.full((4, 4), 1000.0)
    limits[0, 3], limits[1, 1], limits[1, 2] = 33.3, 60.0, 60.01
    silent_from = np.array([80.0, np.inf, 40.0, np.inf])
    found = example.bisect(straight_lines(limits, silent_from), 4, 100.0, 10)
    width = 100.0 / 2**10
    np.testing.assert_array_equal(found.limited, [True, True, False, False])
    np.testing.assert_array_equal(found.undetermined, [False, False, True, False])
    np.testing.assert_array_equal(found.beyond, [False, False, False, True])
    for i, capacity in ((0, 33.3), (1, 60.0)):
        assert found.hosted_kw[i] <= capacity < found.violated_kw[i] <= found.hosted_kw[i] + 1.001 * width
    # Kinds 1 and 2 both are violated at the end of the last bracket: the one that is reached first counts.
    np.testing.assert_array_equal(found.kind, [3, 1, -1, -1])
    np.testing.assert_array_equal(found.element, [13, 11, -1, -1])
    assert found.unsolved[0] > 0 and found.unsolved[2] > 1 and found.unsolved[1] == found.unsolved[3] == 0


def test_a_limit_violated_without_pv_is_refused_by_name():
    ratio = np.array([[0.9, 1.5, 0.0, 0.0]])

    def judge(kw):
        return straight_lines(np.ones((1, 4)), np.inf)(kw)._replace(ratio=ratio)

    with pytest.raises(ValueError, match=r"line current 1\.500"):
        example.bisect(judge, 1, 9, 3)


def test_a_line_code_without_rating_is_refused_by_name():
    study = STUDIES["ieee123"]
    rating_a = {code: amps for code, amps in study.rating_a.items() if code != "12"}
    with pytest.raises(ValueError, match=r"\['12'\]"):
        equipped(gridjax.feeders.ieee123(), study._replace(rating_a=rating_a))


def test_regulators_settle_where_opendss_s_own_controls_leave_them(case):
    assert not np.array_equal(case.point.tap, case.grid.nominal.tap)
    study = case.study
    feeder = as_operated(case.feeder, case.point)
    nodes = judged_nodes(feeder)
    engine = Engine(feeder, len(case.nominal_kw), nodes, study.limit_pu, study.unbalance_limit)
    for line in ("set controlmode=static", "set maxcontroliter=100", "solve"):
        engine.command(line)
    taps = []
    for regulator in feeder.regulators:
        engine.engine.ActiveCircuit.Transformers.Name = regulator.transformer
        engine.engine.ActiveCircuit.Transformers.Wdg = regulator.winding
        taps.append(engine.engine.ActiveCircuit.Transformers.Tap)
    np.testing.assert_allclose(case.point.tap, taps, atol=1e-9)


def test_a_regulator_that_runs_out_of_taps_is_named(case):
    regulators = tuple(dataclasses.replace(r, vreg=160.0) for r in case.feeder.regulators)
    with pytest.raises(ValueError, match=r"regulator 'creg\w+' runs out of taps"):
        minimum_load(case.feeder.replace(regulators=regulators), case.grid, case.study)


def test_floating_secondaries_have_no_voltage_limit(case):
    left_out = {
        name for name, judged in zip(case.feeder.node_names, judged_nodes(case.feeder), strict=True) if not judged
    }
    assert left_out == {"610.1", "610.2", "610.3"}


def test_verdicts_are_opendss_s(case):
    study, feeder = case.study, as_operated(case.feeder, case.point)
    engine = Engine(feeder, len(case.nominal_kw), judged_nodes(feeder), study.limit_pu, study.unbalance_limit)
    pv_kw = example.draw_placements(5, CHUNK, case.nominal_kw) * np.linspace(100.0, 3490.0, CHUNK)[:, None]
    ours = case.judge(case.point, pv_kw)
    assert ours.converged.all()
    for i, kw in enumerate(pv_kw):
        ratio, element, converged, source_kw = engine.judge(kw)
        assert converged
        np.testing.assert_allclose(ours.ratio[i], ratio, atol=1e-6)
        np.testing.assert_array_equal(ours.element[i], element)
        np.testing.assert_allclose(ours.source_kw[i], source_kw, atol=1e-3)


@pytest.mark.parametrize(("name", "placements"), [("ieee123", 24), ("european_lv", 8)])
def test_the_study_agrees_with_opendss_and_writes_what_it_found(tmp_path, capsys, name, placements):
    argv = ["--feeder", name, "--placements", str(placements), "--chunk", str(CHUNK), "--check", "3", "--seed", "7"]
    assert example.main([*argv, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "hosting_capacity.json").read_text())["rows"]
    assert row["limited"] + row["beyond_range"] + row["undetermined"] == row["placements"] == placements
    assert sum(row["limited_by"].values()) == row["limited"] and set(row["limited_by"]) == set(KINDS)
    assert row["opendss"]["same_limit"] == 3 and row["violated_below"] == 0
    percentiles = list(row["percent_of_nominal_load"].values())
    assert percentiles == sorted(percentiles) and 0 < percentiles[0] < percentiles[-1] <= row["study"]["most_percent"]
    assert f"PV hosting capacity of {name}" in shown and "3 of 3 the same limit" in shown
    picture = (tmp_path / f"hosting_capacity_{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 200_000


def test_nonsense_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        example.main(["--placements", "0"])
    assert refused.value.code == 2 and "--placements" in capsys.readouterr().err
