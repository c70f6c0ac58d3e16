"""The script of many days runs, counts, and draws."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import ten_thousand_days


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
