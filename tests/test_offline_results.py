"""The arithmetic of the table of offline learning, and that its constants are those of the baselines."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent / "env"))

import jax
import jax.numpy as jnp
import numpy as np
from environments_for_tests import Walk

from benchmarks import offline_results as results
from benchmarks import restoration_room, shield_limits
from gridjax.control.storage import StorageState
from gridjax.env.der_control import DerState
from gridjax.env.tasks import make


def test_the_gap_that_is_closed():
    rows = [
        {"policy": "best constant action", "means": {"return": {"mean": -4.0}, "score": {"mean": -40.0}}},
        {"policy": "search, full knowledge", "means": {"return": {"mean": -2.0}, "score": {"mean": -20.0}}},
    ]
    assert results.closed({"rows": rows}, -25.0) == 0.75
    plain = [{**r, "means": {"return": r["means"]["return"]}} for r in rows]
    assert results.closed({"rows": plain}, -5.0) == -0.5


def test_positions_become_the_numbers_that_stand_for_them():
    case = results.CASES[0]
    env, params = make(case.name, days=1, **dict(case.options))
    numbers = results.as_numbers(case, env, [1, 0, 32, 16, 0, 16])
    np.testing.assert_allclose(numbers, [1, -1, 1, 0, -1, 0])
    capacitor, position, share = env._targets(np.asarray(numbers), params)
    np.testing.assert_array_equal(np.concatenate([capacitor, position, share]), [1, 0, 32, 16, 0, 0])


def test_scores_and_rows_of_made_up_figures():
    figures = {
        "return": np.array([[-1.0, -3.0], [-2.0, -2.0]]), "steps": np.full((2, 2), 24.0),
        "cost": np.array([[[0.5, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.25, 0.0]]]),
        "violated": np.array([[[3.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]]]),
    }  # fmt: skip
    row = results.row("agent", figures, np.array([4.0, 0.0]), np.array([-4.0, -4.0]), np.array([1]))
    assert row["seeds"] == [-3.0, -2.5] and row["score"][0] == -2.75  # -1 - 2, -3; -2, -2 - 1
    assert row["violated"] == [12 / 96, 0.0]
    assert row["gain"][0] == np.mean([-2.5 + 4, -3 + 4])
    assert row["violated_sunny"] == [9 / 48, 0.0]
    assert row["days"] == 2


def test_every_case_has_recorded_baselines_and_a_training_seed_of_its_own():
    assert results.TRAINING not in results.HELD_OUT
    for case in results.CASES:
        recorded = results.baseline(case.name)
        assert len(recorded["price"]) == len(recorded["constraints"])
        assert np.isfinite(results.closed(recorded, 0.0))


def test_the_sunniest_days():
    params = make("DerControl-ieee13-v0", days=8)[1]
    kwh = np.array([np.asarray(params.days.generation_kw)[k][:, np.asarray(params.pv_row)].sum() for k in range(8)])
    assert set(results.sunniest(params)) == set(np.argsort(kwh)[-2:])
    assert len(results.sunniest(make("VoltVar-ieee13-v0", days=4)[1])) == 0


def test_overloads_that_remain():
    """Batteries are full in every step, whatever the state says."""

    @dataclasses.dataclass(frozen=True)
    class Seen(Walk):
        def advance(self, key, state, action, params):
            return state.storage.kwh, action

    walk = Seen(horizon=1, failure_penalty=0.0)
    env = shield_limits.Full(walk.horizon, walk.failure_penalty, walk)
    storage = StorageState(jnp.array([1.0, 2.0]))
    state = DerState(*(jnp.zeros(()) for _ in range(2)), storage, None, *(jnp.zeros(1),) * 3)  # type: ignore[arg-type]
    params = SimpleNamespace(batteries=SimpleNamespace(kwh_rated=np.array([5.0, 6.0])))
    kwh, action = env.advance(jax.random.key(0), state, jnp.ones(1), params)
    np.testing.assert_array_equal(kwh, [5.0, 6.0])  # type: ignore[arg-type]
    assert action == 1.0
    record = {
        "name": "N", "days": 4, "steps": 80, "seconds": 1.0, "made_on": "here",
        "no control": [[0.1, 0.02], [0.3, 0.01]], "no control, shielded": [[0.0, 0.0125], [0.0, 0.005]],
    }  # fmt: skip
    text = shield_limits.page(record)
    assert "| no control | 2 % | 1 % | 10 % | 30 % |" in text
    assert "| no control, shielded | 1.25 % | 0.5 % | 0 % | 0 % |" in text


def test_the_room_above_the_operators_rule():
    record = {
        "name": "N", "days": 2, "seed": 1, "seconds": 1.0, "made_on": "here", "bound": [-60.0, -120.0],
        "no control": {"return": [-300.0, -500.0], "not served": [30.0, 50.0]},
        "operator's rule": {"return": [-80.0, -120.0], "not served": [8.0, 12.0]},
    }  # fmt: skip
    assert np.isclose(restoration_room.room(record), 0.1)  # 90 of 100 is lost all the same
    text = restoration_room.page(record)
    assert "10.0 % better than the rule" in text and "| operator's rule | -100 (" in text
    assert "| proven bound | -90 (" in text
