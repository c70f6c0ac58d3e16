"""The year's script runs and counts."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import year


def test_two_days_of_ieee13(capsys):
    assert year.main(["--feeder", "ieee13", "--days", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 192 and result["not_converged"] == 0
    assert 10_000 < result["source"] < 170_000 and 0 < result["losses"] < 0.06 * result["source"]
    assert result["tap_moves"] > 0
