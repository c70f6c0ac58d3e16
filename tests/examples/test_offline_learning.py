"""The example of offline learning runs, plays the same days with everyone, and draws."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

import numpy as np
import offline_learning


def test_from_the_log_to_held_out_days(tmp_path, capsys):
    assert offline_learning.main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "offline_learning.json").read_text())
    rows = {row["policy"]: row for row in record["rows"]}
    assert list(rows) == ["iql", "no control", "best constant"]
    assert np.shape(rows["iql"]["returns"]) == (3, 6) and np.shape(rows["no control"]["returns"]) == (1, 6)
    # Without a search the best constant is no control: the same days, the same program, the same returns.
    assert rows["best constant"]["returns"] == rows["no control"]["returns"]
    assert len(np.unique(rows["no control"]["returns"])) == 6
    # The curve ends with the agents of the table.
    assert [done for done, _ in record["curve"]] == [30, 60]
    np.testing.assert_allclose(record["curve"][-1][1], np.mean(rows["iql"]["returns"], axis=1), rtol=1e-6)
    assert (tmp_path / "offline_learning.png").stat().st_size > 10_000
    assert "logged 24 days, 144 steps" in capsys.readouterr().out
