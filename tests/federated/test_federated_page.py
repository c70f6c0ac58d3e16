"""The page on federated learning runs, prints what it shows, has the shipped example, all keys, and true figures."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from federated.accounting import noise_multiplier_for
from federated.noise import noise_to_clip
from federated.sampling import Everyone
from federated.settings import Owner, Privacy, Settings

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "federated.md").read_text()


def test_the_page_runs_and_prints_what_it_shows():
    code, shown = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", PAGE, re.DOTALL).groups()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    number = r"-?\d+\.\d+"
    assert re.sub(number, "x", run.stdout) == re.sub(number, "x", shown)
    found, told = ([*map(float, re.findall(number, text))] for text in (run.stdout, shown))
    assert found == pytest.approx(told, abs=0.011)


def test_the_configuration_is_the_shipped_one():
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert shown == (ROOT / "examples" / "federated" / "two_utilities.toml").read_text()


def test_all_keys_with_their_defaults():
    table = dict(re.findall(r"^\| `([a-z_\[\]]+)` \| (.*?) \|", PAGE, re.MULTILINE))
    for kind in (Settings, Privacy, Owner):
        for field in dataclasses.fields(kind):
            assert {field.name, f"[{field.name}]", f"[[{field.name}]]"} & set(table), field.name
    for field in dataclasses.fields(Settings):
        if isinstance(field.default, int | float):
            assert float(table[field.name]) == field.default, field.name


@pytest.mark.parametrize(
    "n, rounds, d, z, ratio",
    re.findall(r"^\| (\d+) \| (\d+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE),
)
def test_what_noise_costs(n, rounds, d, z, ratio):
    found = noise_multiplier_for(8.0, 0.1 / int(n), int(rounds), Everyone(), int(n), "zero-out")
    assert found == pytest.approx(float(z), rel=2e-3)
    assert noise_to_clip(found, int(d.replace(",", "")), int(n)) == pytest.approx(float(ratio), rel=0.03)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
