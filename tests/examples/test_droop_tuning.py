"""Tuned droop curves: gradients, allowed curves, the synthetic year, and the script from end to end."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import droop_tuning as example
import inverters

from gridjax.control.inverters import terminal_voltages
from gridjax.control.regulation import regulate

COUNT = 24  # hours in a batch: one size, compiled once


BUILD = functools.cache(example.build)  # one grid for all tests


@pytest.fixture(scope="module")
def study():
    return dataclasses.replace(BUILD("ieee13", 0)[1], scale_kw=jnp.asarray(30.0, float))


@pytest.fixture(scope="module")
def points(study):
    """A few hours around noon, and the evening, of days all over the year."""
    numbers = jnp.array([[day, hour] for day in (10, 100, 170, 190, 200, 350) for hour in (11, 12, 14, 19)])
    return jax.vmap(lambda n: example.hour_of_year(study.grid, study.fleet, jax.random.key(0), n[0], n[1]))(numbers)


def test_gradient_through_the_fixed_point_is_that_of_differences(study, points):
    """By the curve of each inverter; the differences solve the fixed point anew, without derivatives."""
    m = study.fleet.kva.shape[0]
    z = example.from_category_b()[None] + 0.3 * jax.random.normal(jax.random.key(1), (m, 7))
    z = z.at[:, 5:].set(1.0 + 0.1 * z[:, :2])
    # A deadband below the usual voltages, so that the droop is at work.
    z = z.at[:, 0].set(-1.0)
    value, gradient = example.value_and_gradient(z, study, points)
    means = []
    for seed in (2, 3):
        direction, h = jax.random.normal(jax.random.key(seed), z.shape), 3e-4
        ahead, behind = (
            example.simulate(study, points, example.to_curve(z + s * h * direction)).objective.mean() for s in (1, -1)
        )
        means.append((jnp.sum(gradient * direction), (ahead - behind) / (2 * h)))
    ours, theirs = np.array(means).T
    assert np.abs(theirs).min() > 1e-3, "the objective hardly depends on the curves"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, example.simulate(study, points, example.to_curve(z)).objective.mean(), rtol=1e-9)


def test_inverters_rest_on_their_curves(study, points):
    curve = inverters.with_droop(study.settings, jnp.asarray(inverters.CATEGORY_B))
    at, flow = jax.jit(jax.vmap(regulate, in_axes=(None, 0, None)))(study.grid, points, curve)
    assert flow.converged.all()
    u = jax.vmap(terminal_voltages, in_axes=(None, 0))(study.settings, flow.v)
    room = np.sqrt(1 - (np.asarray(points.generation_kw) / np.asarray(study.fleet.kva)) ** 2)
    expected = np.interp(u, [0.92, 0.98, 1.02, 1.08], [0.44, 0.0, 0.0, -0.44])
    x = np.asarray(at.generation_kvar) / np.asarray(study.fleet.kva)
    np.testing.assert_allclose(x, np.clip(expected, -room, room), atol=1e-7)
    assert np.abs(x).max() > 0.02


def test_every_curve_is_monotone_and_allowed_by_the_standard():
    v1, v2, v3, v4, q1, q4 = np.asarray(example.to_curve(5 * jax.random.normal(jax.random.key(0), (500, 7)))).T
    assert (v2 - v1 >= 0.02 - 1e-12).all() and (v4 - v3 >= 0.02 - 1e-12).all() and (v3 >= v2).all()
    assert (v3 - v2 <= 0.06 + 1e-12).all() and (v1 >= 0.95 - 0.18).all() and (v4 <= 1.05 + 0.18).all()
    assert (q1 >= 0).all() and (q1 <= 0.44).all() and (q4 >= 0).all() and (q4 <= 0.44).all()
    start = example.to_curve(example.from_category_b())
    np.testing.assert_allclose(start, np.array(inverters.CATEGORY_B) * [1, 1, 1, 1, 0.99, 0.99], rtol=1e-12)


def test_the_sun_is_where_astronomy_has_it():
    hours = np.arange(24.0)
    june, december = (
        np.asarray(example.clear_sky(d, jnp.asarray(hours) + 0.5, example.LATITUDE_DEG)) for d in (172.0, 355.0)
    )
    np.testing.assert_allclose(june, june[::-1], atol=1e-9)
    # Day lengths at 40 degrees: 14.8 h and 9.2 h (2/15 arccos(-tan 40 tan(+-23.45))).
    assert (june > 0).sum() == 14 and (december > 0).sum() == 10
    noon = np.cos(np.deg2rad(7.5)) * np.cos(np.deg2rad(40)) * np.cos(np.deg2rad(23.45))
    noon += np.sin(np.deg2rad(40)) * np.sin(np.deg2rad(23.45))
    np.testing.assert_allclose(june.max(), 1.098 * noon * np.exp(-0.057 / noon), rtol=1e-4)


def test_training_days_are_not_held_out():
    train, test = example.split_days(0, 2, 0)
    assert len(train) == 24 and len(test) == 341 and not set(train) & set(test)
    assert set(train) | set(test) == set(range(1, 366))
    assert len(example.split_days(0, 2, 3)[1]) == 36
    with pytest.raises(ValueError, match="take fewer"):
        example.split_days(0, 20, 20)


def test_the_script_tunes_and_judges(tmp_path, monkeypatch):
    monkeypatch.setattr(example, "build", BUILD)
    arguments = ["--feeder", "ieee13", "--train-days", "1", "--test-days", "1", "--steps", "4", "--rate", "0.3"]
    code = example.main([*arguments, "--batch", str(COUNT), "--chunk", str(COUNT), "--out", str(tmp_path)])
    record = json.loads((tmp_path / "droop_tuning.json").read_text())
    result = record["result"]
    assert code == 0
    assert result["training_hours"] == result["held_out_hours"] == 288
    held_out = {way: figures["held_out"] for way, figures in result["ways"].items()}
    assert all(f["not_converged"] == 0 for f in held_out.values())
    assert held_out["tuned, one for all"]["objective"] < held_out["1547 category B"]["objective"]
    assert held_out["1547 category B"]["objective"] < held_out["no control"]["objective"]
    assert len(result["history"]["one for all"]) == 4
    assert (tmp_path / "droop_tuning.png").stat().st_size > 10_000
