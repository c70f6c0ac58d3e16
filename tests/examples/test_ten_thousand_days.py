"""The script of many days runs, counts, and draws."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
sys.path.insert(0, str(Path(__file__).parent.parent / "env"))

import jax.numpy as jnp
import numpy as np
import ten_thousand_days
from environments_for_tests import walk

from gridjax.env.policies import constant


def test_a_hundred_days(tmp_path, capsys):
    words = ["--env", "VoltVar-ieee13-v0", "--days", "100", "--drawn", "5", "--out", str(tmp_path)]
    assert ten_thousand_days.main(words) == 0
    record = json.loads((tmp_path / "ten_thousand_days.json").read_text())["policies"]
    assert set(record) == {"no control", "random", "the feeder's own controls"}
    assert all(row["steps"] == 2400 and row["unsolved"] == 0 for row in record.values())
    assert record["random"]["mean_return"] < 3 * record["no control"]["mean_return"] < 0
    assert record["the feeder's own controls"]["violation"] < record["no control"]["violation"]
    assert (tmp_path / "ten_thousand_days.png").stat().st_size > 10_000
    assert "2,400 of 2,400 steps solved" in capsys.readouterr().out


def test_a_day_that_ends_early_counts_to_its_end():
    env, _ = walk()  # from x in (0, 1) to 2 at most: the second to fourth step of 0.6 is not solved
    row = ten_thousand_days.walk(env, jnp.asarray(2.0), constant([0.6, 0.0]), 50, 0)
    assert row["unsolved"] == 50 and 100 < row["steps"] <= 200
    assert np.all((row["returns"] < -100) & (row["returns"] > -109))  # the penalty once, and x^2 of the steps before
