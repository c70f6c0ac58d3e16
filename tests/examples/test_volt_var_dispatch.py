"""The dispatch of inverters: optimal, within the limits, and its droop as OpenDSS's InvControl."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import inverters
import volt_var_dispatch as example

import gridjax

COUNT = 8  # one size of every batch, so that it is compiled once


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The whole script on the 13-node feeder: its exit code, its figures, its arrays."""
    out, seen = tmp_path_factory.mktemp("out"), {}
    draw = example.draw_picture

    def keep(name, arrays, path):
        seen.update(arrays)
        draw(name, arrays, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "draw_picture", keep)
        arguments = ["--feeder", "ieee13", "--scenarios", str(COUNT), "--checked", "4", "--scipy", "1"]
        code = example.main([*arguments, "--out", str(out)])
    record = json.loads((out / "volt_var_dispatch.json").read_text())
    assert (out / "volt_var_dispatch_ieee13.png").stat().st_size > 10_000
    return code, record, seen


@pytest.fixture(scope="module")
def points(study):
    return example.draw(study[2]["case"], jax.random.key(0), COUNT)


def test_the_script_succeeds_and_says_how_its_figures_were_made(study):
    code, record, _ = study
    assert code == 0
    assert record["meta"]["seed"] == 0 and "volt_var_dispatch.py" in record["meta"]["command"]
    assert all(way["not_converged"] == 0 for way in record["results"][0]["ways"].values())


def test_setpoints_respect_the_ratings(study, points):
    case, x = study[2]["case"], study[2]["joined"]["x"]
    kva = np.asarray(case.fleet.kva)
    assert (np.hypot(x * kva, points.generation_kw) <= kva * (1 + 1e-12)).all()


def test_limits_hold_where_no_control_violates_them_and_losses_fall_elsewhere(study):
    case, joined = study[2]["case"], study[2]["joined"]
    before, after = (example.beyond(case, joined[way][1]) for way in ("no control", "optimal"))
    assert before.max() > 0.005, "the scenarios are too easy to tell anything"
    assert after.max() <= 1e-5
    inside = before <= 0
    assert inside.any()
    assert (joined["optimal"][0] <= joined["no control"][0])[inside].all()
    droop_inside = example.beyond(case, joined["droop"][1]) <= 0
    assert (joined["optimal"][0] <= joined["droop"][0])[droop_inside].all()


def test_no_small_change_of_the_setpoints_loses_less(study, points):
    """In scenarios that are inside the limits with room to spare, at random feasible neighbours."""
    case, joined = study[2]["case"], study[2]["joined"]
    x = joined["x"]
    room = jax.vmap(inverters.room, in_axes=(None, 0))(case.fleet, points)
    free = example.beyond(case, joined["optimal"][1]) < -1e-3
    assert free.any()
    for seed in range(4):
        near = jnp.clip(x + 0.02 * jax.random.normal(jax.random.key(seed), x.shape), -room, room)
        loss, v, _ = example.no_derivative(case, points, near)
        keeps = free & (example.beyond(case, np.asarray(v)) <= 0)
        assert keeps.any() and (np.asarray(loss) > joined["optimal"][0])[keeps].all()


def test_projected_gradient_vanishes_and_an_interior_point_method_finds_the_same(study):
    result = study[1]["results"][0]
    # Per unit of a rating and of the losses; loads that turn into impedances at a limit leave corners.
    assert result["stationarity"]["within_limits"] == COUNT and result["stationarity"]["largest"] < 2e-3
    (other,) = result["scipy"]
    assert other["success"] and other["excess_pu"] <= 1e-5
    np.testing.assert_allclose(other["loss_kw_dispatch"], other["loss_kw"], rtol=1e-5)


def test_gradient_of_the_augmented_lagrangian_is_that_of_differences(study, points):
    case = study[2]["case"]
    x = jax.random.uniform(jax.random.key(1), study[2]["joined"]["x"].shape, minval=-0.2, maxval=0.2)
    mu = jax.random.uniform(jax.random.key(2), (COUNT, 2, len(case.low)))
    direction, rho, h = jax.random.normal(jax.random.key(3), x.shape), jnp.full(COUNT, 10.0, float), 1e-4
    ahead, behind = (example.evaluate(x + s * h * direction, case, points, mu, rho).merit for s in (1, -1))
    slope = jnp.sum(example.evaluate(x, case, points, mu, rho).gradient * direction, axis=1)
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-6)


def test_droop_is_opendss_invcontrol(study):
    check = study[1]["results"][0]["opendss"]
    assert check["checked"] and check["scenarios"] == 4
    assert check["max_setpoint_gap"] < 1e-7  # of the rating
    assert check["max_voltage_gap_pu"] < 1e-8
    assert check["max_loss_gap_kw"] < 1e-5
    x = study[2]["joined"]["droop_x"][:4]
    assert np.abs(x).max() > 0.02, "the droop did nothing to compare"


def test_inverters_are_placed_by_the_seed_with_the_penetration_that_is_asked_for():
    base = gridjax.feeders.ieee123()
    feeder, fleet = inverters.place(base, 3)
    assert feeder == inverters.place(base, 3)[0] != inverters.place(base, 4)[0]
    np.testing.assert_allclose(fleet.peak_kw.sum(), inverters.PENETRATION["ieee123"] * sum(x.kw for x in base.loads))
    assert len({pv.bus for pv in feeder.pv_systems}) == len(feeder.pv_systems) == len(fleet.kva)
    regulated = {(r.transformer, r.winding) for r in feeder.regulators}
    taps = [w.tap for t in feeder.transformers for k, w in enumerate(t.windings, 1) if (t.name, k) in regulated]
    assert max(taps) <= inverters.HIGHEST_TAP
    with pytest.raises(ValueError, match="choose one of ieee13"):
        inverters.place(gridjax.feeders.ieee37(), 0)


def test_european_limits_are_those_of_230_volts():
    feeder = gridjax.feeders.european_lv()
    low, high, _ = inverters.limits(feeder)
    at = feeder.node_names.index("34.1")
    volts = 1e3 * next(bus.base_kv for bus in feeder.buses if bus.name == "34")
    np.testing.assert_allclose([low[at] * volts, high[at] * volts], [207.0, 253.0])
