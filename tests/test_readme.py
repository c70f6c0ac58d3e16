"""The README's code runs and prints what it says; its table is the benchmark's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_code_prints_what_the_readme_shows():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == shown


def test_the_environments_page_runs_and_prints_what_it_shows():
    page = (ROOT / "docs" / "environments.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL).group(1)
    run = subprocess.run([sys.executable, "-c", first + second], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == shown


def test_the_page_of_offline_learning_runs_and_prints_what_it_shows():
    page = (ROOT / "docs" / "offline.md").read_text()
    code, shown = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", page, re.DOTALL).groups()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr
    number = r"-?\d+\.\d+"
    assert re.sub(number, "x", run.stdout) == re.sub(number, "x", shown)
    # Agents that learned on another machine differ a little.
    assert [*map(float, re.findall(number, run.stdout))] == pytest.approx(
        [*map(float, re.findall(number, shown))], abs=0.2
    )


def test_the_figures_are_the_benchmark_s():
    table = [line for line in README.splitlines() if line.startswith("| ")]
    measured = (ROOT / "docs" / "powerflow.md").read_text()
    rows = [line for line in table if re.match(r"\| [a-z]+[0-9a-z_]* \| \d", line)]
    assert len(rows) >= 5
    for row in rows:
        assert row in measured


def test_the_scores_of_learning_are_those_of_the_record():
    """Every score of the README's table, with its interval, and violations, stand in one row of the page."""
    page = (ROOT / "docs" / "offline_results.md").read_text().splitlines()
    rows = re.findall(r"^\| [^|]+ \| (-[\d,]+ \(-[\d,]+ to -[\d,]+\)) \| ([\d.]+ %) \|$", README, re.M)
    assert len(rows) == 6
    for score, violated in rows:
        assert any(f"| {score} |" in line and f"| {violated}, " in line for line in page), score


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        path, _, heading = target.partition("#")
        assert (ROOT / path).exists(), target
        titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.M) if heading else []
        assert not heading or heading in [title.lower().replace(" ", "-") for title in titles], target


def test_the_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)) - {"nothing"}:
        assert f"\n{target}:" in makefile, target
