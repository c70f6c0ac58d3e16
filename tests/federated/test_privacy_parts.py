"""The page on privacy: what it shows of trajectories, the hardened tier and the audit runs and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("dp_accounting")

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "privacy.md").read_text()
NUMBER = r"-?\d+\.\d+"


@pytest.mark.parametrize("title", ["Trajectories: noise inside a utility", "The hardened tier", "The audit"])
def test_a_part_runs_and_prints_what_it_shows(title):
    part = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    code, shown = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", part, re.DOTALL).groups()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    assert re.sub(NUMBER, "x", run.stdout) == re.sub(NUMBER, "x", shown)
    # Single precision may move a score over a threshold on another machine.
    assert [*map(float, re.findall(NUMBER, run.stdout))] == pytest.approx(
        [*map(float, re.findall(NUMBER, shown))], rel=0.02
    )
