"""The example that streams scenarios."""

import json
import sys
from pathlib import Path

import numpy as np

import gridjax
from examples import million_scenarios


def test_figures_are_those_of_the_scenarios(tmp_path, monkeypatch, capsys):
    arguments = ["x", "--feeder", "ieee13", "--scenarios", "210", "--batch", "50", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert million_scenarios.main() == 0
    found = json.loads((tmp_path / "million_scenarios.json").read_text())
    assert found["not_converged"] == 0 and found["scenarios"] == 210
    assert 0 < found["peak_memory_before_mb"] <= found["peak_memory_mb"]
    assert found["scenarios_per_second"] > 0 and found["largest_difference_pu"] < 1e-7
    nominal = np.abs(gridjax.solve(grid := gridjax.compile(gridjax.feeders.ieee13()), grid.nominal).v)
    assert found["lowest_voltage_pu"]["0"] < nominal.min() < found["lowest_voltage_pu"]["100"]
    assert found["losses_kw"]["0"] < 112.39 < found["losses_kw"]["100"]
    assert Path(tmp_path / "million_scenarios.png").stat().st_size > 10_000
    assert '"scenarios": 210' in capsys.readouterr().out
