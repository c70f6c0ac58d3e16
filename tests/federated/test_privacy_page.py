"""The page on privacy runs and prints what it shows, and its table of costs is what the accountant says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from federated.accounting import COARSE, composed
from federated.mechanism import Mechanism
from federated.noise import noise_to_clip
from federated.sampling import Everyone, Poisson

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "privacy.md").read_text()


def test_the_page_runs_and_prints_what_it_shows():
    code, shown = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", PAGE, re.DOTALL).groups()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == shown


def rows():
    found = re.findall(r"\| (\d+) \| (all|\d+ of at most \d+) \| ([\d.]+) \| (.*) \|", PAGE)
    assert len(found) == 6
    return found


@pytest.mark.parametrize("clients, who, z, ratios", rows())
def test_the_table_of_costs(clients, who, z, ratios):
    """Each z keeps epsilon 8, to its last digit, and a hundredth less does not."""
    clients, z, drawn = int(clients), float(z), re.findall(r"\d+", who)
    sampler = Poisson(int(drawn[0]) / clients, int(drawn[1])) if drawn else Everyone()

    def cost(z):
        return composed(((Mechanism(z, sampler, clients, "zero-out"), 100),), 1 / (10 * clients), COARSE)

    assert cost(0.99 * z) > 8 > cost(z + 0.0006)
    for d, ratio in zip((85_000, 5_000, 1_000), ratios.split(" | "), strict=True):
        assert noise_to_clip(z, d, sampler.expected(clients)) == pytest.approx(float(ratio), rel=0.05)
