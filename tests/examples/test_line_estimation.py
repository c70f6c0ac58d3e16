"""The line-estimation example on the 13-node feeder: sections, derivatives, error bars, phase labels."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import line_estimation as example
from estimation.metering import customers, join_series, labels_of, study, with_labels

import gridjax

STEPS, DRAWS = 24, 16


@pytest.fixture(scope="module")
def model():
    return example.Model(study(gridjax.feeders.ieee13()))


@pytest.fixture(scope="module")
def result(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("line_estimation")
    found = example.run(model, STEPS, DRAWS, 0, out, Console(quiet=True))
    assert (out / "line_estimation.png").read_bytes().startswith(b"\x89PNG")
    return found


def test_joining_series_undoes_splitting():
    feeder = gridjax.feeders.ieee13()
    line = next(x for x in feeder.lines if x.name == "632633")
    bus = next(b for b in feeder.buses if b.name == "632")
    middle = dataclasses.replace(bus, name="middle")
    near = dataclasses.replace(line, bus2="middle.1.2.3", length=0.3 * line.length)
    far = dataclasses.replace(line, name="far", bus1="middle.1.2.3", length=0.7 * line.length)
    others = tuple(x for x in feeder.lines if x is not line)
    joined = join_series(feeder.replace(buses=(*feeder.buses, middle), lines=(*others, near, far)))

    def table(f):
        return {frozenset((x.bus1, x.bus2)): (x.code, x.unit, pytest.approx(x.length)) for x in f.lines}

    assert table(joined) == table(feeder)
    assert joined.buses == feeder.buses


def test_lines_without_load_have_no_section_and_each_other_line_its_own(model):
    work = model.work
    dead = [x.name for x, s in zip(work.feeder.lines, work.section, strict=True) if s < 0]
    assert dead == ["671680"]
    assert work.sections == len(work.feeder.lines) - 1
    assert len(work.ends) == sum(x.phases for x in work.feeder.loads) + 3


def test_european_lines_in_series_share_a_section():
    work = study(join_series(gridjax.feeders.european_lv()))
    assert work.path.sum(axis=0).min() >= 0
    assert len(work.feeder.lines) < 300
    assert work.sections < 2 * len(work.feeder.loads)
    # In a tree with a load at each end, as many sections end at loads' buses.
    served = [frozenset(np.flatnonzero(column)) for column in work.path.T]
    for s in range(work.sections):
        assert len({served[i] for i in np.flatnonzero(work.section == s)}) == 1


def test_slopes_equal_central_differences_and_the_dead_line_has_none(model):
    work = model.work
    demand = example.draw_demand(jax.random.key(4), work.feeder, STEPS)
    f = 1 + 0.1 * jax.random.normal(jax.random.key(5), (work.sections,))
    r, x, source = model.slopes(f, demand, Console(quiet=True))
    direction = jax.random.normal(jax.random.key(6), f.shape)
    along = jnp.einsum("tms,s->tm", r + x, direction)
    h = 1e-2
    up, down = (model.voltages(f + sign * h * direction, demand) for sign in (1, -1))
    np.testing.assert_allclose(along, (up - down) / (2 * h), atol=2e-4 * float(jnp.abs(along).max()))
    up, down = (model.voltages(f, demand._replace(source=demand.source + sign * 1e-3)) for sign in (1, -1))
    np.testing.assert_allclose(source, (up - down) / 2e-3, rtol=1e-4)


def test_factors_are_recovered_within_their_error_bars(result):
    assert result["last_step"] < 1e-2
    assert result["sections_identified"] >= 3
    assert result["factor_rms_error_identified"] < 0.5 * result["factor_rms_error_record"]
    assert result["path_rms_error"] < 0.05
    spread = np.sqrt(2 * result["chi_square_expected"])
    assert abs(result["chi_square"] - result["chi_square_expected"]) < 5 * spread


def test_error_bars_cover_the_truth_as_often_as_they_say(result):
    count = result["sections"] * DRAWS
    assert result["draws"] == DRAWS
    assert result["coverage_95"] == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / count))
    assert result["score_rms"] == pytest.approx(1.0, abs=0.2)


def test_x_apart_from_r_is_known_less_well_than_their_common_factor(result):
    assert result["bar_median_x_apart"] > result["bar_median"]
    assert result["bar_largest"] <= example.RECORD


def test_phase_labels_are_recovered(result):
    assert result["labels_right"]["record"] < 1
    assert result["labels_right"]["power flow"] == 1
    assert result["labels_right"]["power flow"] >= result["labels_right"]["correlation"]


def test_labels_are_written_and_read():
    feeder = gridjax.feeders.ieee13()
    labels = labels_of(feeder)
    assert [feeder.loads[i].name for i in customers(feeder)][:3] == ["634a", "634b", "634c"]
    assert labels[:3].tolist() == [0, 1, 2]
    moved = with_labels(feeder, (labels + 1) % 3)
    assert labels_of(moved).tolist() == ((labels + 1) % 3).tolist()
    assert with_labels(moved, labels) == feeder


def test_refuses_loops_and_too_few_readings():
    feeder = gridjax.feeders.ieee13()
    loop = dataclasses.replace(feeder.lines[0], name="loop", bus1="633.1.2.3", bus2="671.1.2.3")
    with pytest.raises(ValueError, match="has loops"):
        study(feeder.replace(lines=(*feeder.lines, loop)))
    with pytest.raises(SystemExit):
        example.main(["--steps", "3"])
