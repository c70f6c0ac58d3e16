"""The state-estimation example on the 13-node feeder: derivatives, statistics, planted gross errors."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import state_estimation as example
from estimation.bad_data import p_value, threshold

import gridjax

BATCH = 10  # one size of all batches: one compilation


@pytest.fixture(scope="module")
def case():
    feeder = gridjax.feeders.ieee13()
    grid = gridjax.compile(feeder)
    return grid, *example.place_meters(feeder, grid)


@pytest.fixture(scope="module")
def drawn(case):
    """True states, readings and estimates of a batch without gross errors."""
    grid, meters, _ = case
    truth, z = example.draw_many(jax.random.split(jax.random.key(3), BATCH), grid, meters)
    return truth, z, example.estimate_many(grid, meters, z, jnp.ones_like(z))


def test_rows_have_names_and_scales(case):
    _, meters, names = case
    assert len(names) == len(meters.sigma) == len(set(names))
    assert (np.asarray(meters.sigma) > 0).all()
    assert names[0] == "kW of load 671"
    assert "voltage 675.2" in names and "kvar into line 692675, conductor 3" in names


def test_information_equals_that_of_central_differences(case, drawn):
    grid, meters, _ = case
    _, _, found = drawn
    x, u = np.asarray(found.x[0]), np.asarray(found.factor[0])
    steps = np.append(0.02 * np.abs(meters.usual), 0.002)
    moved = jnp.asarray(x[None] + np.concatenate([np.diag(steps), -np.diag(steps)]))
    h = np.asarray(jax.jit(jax.vmap(example.metered, in_axes=(None, None, 0)))(grid, meters, moved))
    slopes = ((h[: len(x)] - h[len(x) :]) / (2 * steps[:, None])).T
    whitened = np.concatenate([np.eye(len(x) - 1, len(x)), slopes]) / np.asarray(meters.sigma)[:, None]
    scale = np.linalg.norm(whitened, axis=0)
    gain = whitened.T @ whitened / np.outer(scale, scale)
    np.testing.assert_allclose(u.T @ u / np.outer(scale, scale), gain, atol=1e-4)


def test_exact_readings_give_the_exact_state(case):
    grid, meters, _ = case
    x = jnp.append(meters.usual, 1.013)
    z = jnp.append(meters.usual, example.metered(grid, meters, x))
    found = example.estimate_one(grid, meters, z, jnp.ones_like(z), BATCH)
    np.testing.assert_allclose(found.x, x, rtol=1e-6)
    assert float(found.objective) < 1e-8


def test_estimates_are_settled_and_as_far_off_as_their_covariance_says(case, drawn):
    truth, _, found = drawn
    assert float(found.last_step.max()) < 1e-3
    # U (x - truth) are independent standard normal numbers.
    white = np.asarray(jnp.einsum("bij,bj->bi", found.factor, found.x - truth))
    assert np.mean(white**2) == pytest.approx(1.0, abs=4 * np.sqrt(2 / white.size))
    assert np.mean(np.abs(white) < 1.96) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / white.size))


def test_objective_follows_chi_square_and_residuals_are_normal(case, drawn):
    _, meters, _ = case
    _, _, found = drawn
    freedom = int(example.real_rows(meters).sum()) - 1
    assert float(found.objective.mean()) == pytest.approx(freedom, abs=4 * np.sqrt(2 * freedom / BATCH))
    # Leverages sum to the number of states.
    np.testing.assert_allclose(found.left.sum(axis=1), freedom, rtol=1e-9)
    tested = np.asarray(found.left) > example.CRITICAL
    assert np.mean(np.asarray(found.normalised)[tested] ** 2) == pytest.approx(1.0, abs=0.2)


def test_estimates_are_better_than_usual_loads_and_gross_errors_are_found(case):
    grid, meters, _ = case
    run = example.trials(jax.random.key(5), grid, meters, 2 * BATCH, 30.0, BATCH, Console(quiet=True))
    rms = np.sqrt(np.mean(run.rms**2, axis=0))
    assert rms[1] < 0.3 * rms[0]
    assert rms[1] < rms[3] < rms[2]
    count = int(example.real_rows(meters).sum())
    sure = run.shift > threshold(count) + 3
    assert sure.sum() >= BATCH
    assert (run.largest[sure, 1] > threshold(count)).all()
    assert (run.found == run.row)[sure].mean() > 0.9
    assert (p_value(run.spoilt[sure], count - 1) < 0.01).all()
    assert (run.largest[:, 0] > threshold(count)).mean() < 0.2


def test_two_planted_errors_are_removed_and_nothing_else(case):
    grid, meters, names = case
    found = example.one_case(jax.random.key(1), grid, meters, names, BATCH)
    assert set(found["removed"]) == set(found["planted"])
    error = {k: np.sqrt(np.mean((found["v"][k] - found["v"]["truth"]) ** 2)) for k in found["v"]}
    assert error["estimate"] < error["spoilt"]
    assert error["estimate"] < error["usual"]
    inside = np.abs(found["v"]["estimate"] - found["v"]["truth"]) < 4 * found["std"] + 1e-9
    assert inside.all()


def test_a_wrong_model_is_not_removed_meter_by_meter(case):
    grid, meters, _ = case
    _, z = example.draw(jax.random.key(2), grid, meters)
    proud = dataclasses.replace(meters, sigma=jnp.where(example.real_rows(meters), meters.sigma / 100, meters.sigma))
    with pytest.raises(ValueError, match="check model and sigmas"):
        example.remove_bad_data(grid, proud, z, BATCH, most=2)


def test_threshold_and_p_value():
    assert threshold(1) == pytest.approx(2.5758, abs=1e-4)  # two-sided 1 % of a normal number
    assert threshold(100) == pytest.approx(3.8906, abs=1e-4)
    assert float(p_value(18.307, 10)) == pytest.approx(0.05, abs=1e-5)  # a table's quantile


def test_refuses_a_feeder_without_meters(case):
    with pytest.raises(ValueError, match="no meters are placed on feeder 'ieee37': choose one of ieee13, ieee123"):
        example.place_meters(gridjax.feeders.ieee37(), case[0])


def test_main_writes_what_it_prints(tmp_path, capsys):
    assert example.main(["--feeder", "ieee13", "--scenarios", str(BATCH), "--seed", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "state_estimation.json").read_text())
    assert result["states"] == 31 and result["clean"]["draws"] == 3 * BATCH
    assert f"{100 * result['clean']['rms_error_estimate_pu']:.3f} % estimated" in capsys.readouterr().out
    assert (tmp_path / "state_estimation.png").read_bytes().startswith(b"\x89PNG")
