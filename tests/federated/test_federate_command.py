"""`gridjax federate`: what it writes and states; being killed changes neither parameters nor what is counted."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import dp_accounting
import jax
import numpy as np
import pytest
from rich.console import Console

from algorithms import checkpoints
from algorithms.agents import AGENTS
from federated import federate_command
from federated.accounting import epsilon
from federated.federate_command import prepared
from federated.mechanism import Mechanism
from federated.noise import fresh_key
from federated.sampling import Poisson
from federated.settings import read
from federated.statement import PrivacyStatement, recomputed
from gridjax.__main__ import main

TOP = """
rounds = {rounds}
steps = 3
batch_size = 8
algorithm = "{algorithm}"
days = {days}
every = 2
[agent]
hidden = [8]
{privacy}
"""
OWNER = """
[[utilities]]
name = "{name}"
env = "DerControl-ieee13"
dataset = "{dataset}"
options = {{hours = 12.0, days = 2}}
{more}
"""


@pytest.fixture(autouse=True, scope="module")
def _one_source():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "source_version", lambda: "of these tests")  # a checkout may change meanwhile
        yield


def written(folder, owners, rounds, days=0, privacy="", algorithm="rebrac"):
    """A configuration, with owners (name, dataset, more)."""
    owners = [OWNER.format(name=name, dataset=dataset, more=more) for name, dataset, more in owners]
    path = folder / "run.toml"
    path.write_text(TOP.format(rounds=rounds, days=days, privacy=privacy, algorithm=algorithm) + "".join(owners))
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Two utilities that log their days, learn for two rounds without privacy, and play two held-out days."""
    folder = tmp_path_factory.mktemp("first")
    owners = [("north", "holding-nothing", "episodes = 3"), ("south", "random", "episodes = 2")]
    config = written(folder, owners, rounds=2, days=2)
    assert main(["federate", str(config), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture
def small(first, tmp_path):
    """Four rounds of two clients of one utility, which clone behaviour: they compile sooner."""

    def small(privacy=""):
        return written(tmp_path, [("north", first / "north.npz", "clients = 2")], 4, 0, privacy, "bc")

    return small


@pytest.fixture
def run(capsys):
    def run(config, out, *more):
        code = main(["federate", str(config), "--out", str(out), *more])
        shown, err = capsys.readouterr()
        assert "Traceback" not in shown + err
        return code, " ".join(shown.split()), " ".join(err.split())

    return run


def killed(config, out, at):
    script = Path(__file__).parent / "killed_for_tests.py"
    done = subprocess.run(
        [sys.executable, script, str(at), "federate", str(config), "--out", str(out)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def rounds(out):
    with (out / "rounds.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def actor(folder):
    return jax.device_get(checkpoints.load_agent(folder)[3].actor.params)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in leaves)


def test_what_a_run_writes(first):
    names = ("north.npz", "south.npz", "rounds.csv", "rounds.svg", "scores.svg", "results.json", "statement.txt")
    assert all((first / name).stat().st_size > 0 for name in names)
    table = rounds(first)
    assert [row["round"] for row in table] == ["1", "2"] and table[0]["present"] == "2" and table[0]["bound"] == "inf"
    agent, config, _, states, head = checkpoints.load_agent(first / "north")
    assert agent.name == "rebrac" and config.body == "device" and config.hidden == (8,) and config.steps == 6.0
    assert head["run"]["rounds"] == 2 and head["environment"]["hours"] == 12.0
    assert same(actor(first / "south"), jax.device_get(states.actor.params))  # one policy
    other = checkpoints.load_agent(first / "south")[3]
    assert not same(jax.device_get(states.critic.params), jax.device_get(other.critic.params))  # critics at home
    results = json.loads((first / "results.json").read_text())
    entries = sum(a[0].size for a in jax.tree.leaves(states.actor.params))
    assert results["parameters"] == entries and float(table[0]["up"]) == 2 * 4 * entries
    assert [row["name"] for row in results["clients"]] == ["north", "south"] and results["epsilon"] is None


def test_without_privacy_nothing_is_claimed(first):
    statement = PrivacyStatement.from_json((first / "statement.json").read_text())
    assert not statement.claims and statement.rounds == 2 and recomputed(statement) == statement.epsilon == np.inf
    text = (first / "statement.txt").read_text()
    assert "NO PRIVACY IS CLAIMED" in text and "Nothing was clipped" in text


def test_a_utility_s_folder_is_an_agent_s(first, capsys):
    assert main(["evaluate", str(first / "north"), "--episodes", "1", "--baselines", "none"]) == 0, capsys.readouterr()


def test_a_killed_run_goes_on_to_the_same_parameters(small, tmp_path, run):
    config = small()
    assert run(config, tmp_path / "whole")[0] == 0
    killed(config, tmp_path / "cut", at=3)
    assert [row["round"] for row in rounds(tmp_path / "cut")] == ["1", "2", "3"]
    assert not (tmp_path / "cut" / "statement.json").exists()
    code, _, err = run(config, tmp_path / "cut")
    assert code == 2 and "holds a run: go on with it by --resume" in err
    assert run(config, tmp_path / "cut", "--resume")[0] == 0
    assert same(actor(tmp_path / "cut" / "north"), actor(tmp_path / "whole" / "north"))
    assert (tmp_path / "cut" / "rounds.csv").read_text() == (tmp_path / "whole" / "rounds.csv").read_text()


def test_a_private_run_counts_what_was_shown_before_it_was_killed(small, tmp_path, run):
    """Also round 3, which every = 2 would not have kept."""
    config = small("[privacy]\nepsilon = 8.0\ndelta = 0.01\nbound = 0.5")
    killed(config, tmp_path / "cut", at=3)
    header = json.loads(next((tmp_path / "cut" / "checkpoints").glob("*3/header.json")).read_text())
    assert [one["entries"][0]["rounds"] for one in header["ledgers"]] == [3]
    code, shown, _ = run(config, tmp_path / "cut", "--resume")
    statement = PrivacyStatement.from_json((tmp_path / "cut" / "statement.json").read_text())
    ((mechanism, counted),) = statement.ledger.entries
    assert code == 0 and counted == 4 and mechanism.clients == 2 and "Privacy statement" in shown
    one = dp_accounting.get_epsilon_gaussian(mechanism.noise_multiplier / 2, 0.01)  # z / sqrt(4)
    assert recomputed(statement) == statement.epsilon == pytest.approx(one) and 7.9 < one <= 8.0
    spent = [float(row["epsilon"]) for row in rounds(tmp_path / "cut")]
    assert spent[-1] == pytest.approx(one) and (np.diff(spent) > 0).all() and len(spent) == 4


def test_a_hardened_run_states_discrete_noise(small, tmp_path, run):
    """Epsilon by hand: rho = T / (2 z^2), turned to (epsilon, delta) by dp-accounting."""
    config = small('[privacy]\nepsilon = 8.0\ndelta = 0.01\nbound = 0.5\nrandomness = "hardened"')
    code, shown, _ = run(config, tmp_path / "out")
    statement = PrivacyStatement.from_json((tmp_path / "out" / "statement.json").read_text())
    ((mechanism, counted),) = statement.ledger.entries
    assert code == 0 and counted == 4 and mechanism.discrete and statement.randomness == "hardened"
    event = dp_accounting.ZCDpEvent(4 / (2 * mechanism.noise_multiplier**2))
    expected = dp_accounting.rdp.RdpAccountant().compose(event).get_epsilon(0.01)
    assert recomputed(statement) == statement.epsilon == pytest.approx(expected) and 7.9 < expected <= 8.0
    assert "Hardened tier" in shown
    assert run(config, tmp_path / "again")[0] == 0  # noise that no seed repeats
    assert not same(actor(tmp_path / "out" / "north"), actor(tmp_path / "again" / "north"))


def test_trajectories_kept_private_inside_the_utilities(first, tmp_path, run, monkeypatch):
    """z = 2 of one release each update: the budget allows three of the four rounds of three updates, counted apart."""
    owners = [("north", first / "north.npz", ""), ("south", first / "south.npz", "")]
    z, delta, drawn = 2.0, 0.05, 0.5
    each = (north, south) = [Mechanism(z, Poisson(drawn, n), n, "zero-out") for n in (3, 2)]
    three, four = (max(epsilon(m, 3 * rounds, delta) for m in each) for rounds in (3, 4))
    budget = (three + four) / 2
    keys = f'unit = "trajectory"\nepsilon = {budget}\ndelta = {delta}\nnoise_multiplier = {z}\ndrawn = {drawn}'
    config = written(tmp_path, owners, 4, 0, f"[privacy]\n{keys}\nbound = 0.5", "bc")
    fresh, used = [], []
    monkeypatch.setattr(federate_command, "fresh_key", lambda: fresh.append(fresh_key()) or fresh[-1])
    rounds_of = federate_command.rounds_of.federate
    monkeypatch.setattr(federate_command.rounds_of, "federate", lambda *a, **k: used.append(a[2]) or rounds_of(*a, **k))
    code, shown, err = run(config, tmp_path / "out")
    assert code == 0 and "the budget is spent after 3 of 4 rounds" in err
    statement = PrivacyStatement.from_json((tmp_path / "out" / "statement.json").read_text())
    ((mechanism, counted),) = statement.ledger.entries
    assert statement.unit == "trajectory" and counted == 9 and mechanism in (north, south)
    assert recomputed(statement) == statement.epsilon == pytest.approx(three)
    assert (
        "with adding the noise before anything leaves" in shown and "Differential privacy for each trajectory" in shown
    )
    assert len(fresh) == 1 and used[0] is fresh[0]  # the key of the work, and so of its noise, comes from no seed


def test_noise_for_trajectories_is_found_from_epsilon(first, tmp_path):
    """ReBRAC releases two sums of the same trajectories an update: one of z / sqrt(2)."""
    owners = [("north", first / "north.npz", ""), ("south", first / "north.npz", "")]
    keys = 'unit = "trajectory"\nepsilon = 8.0\ndelta = 0.05\ndrawn = 0.5'
    settings = read(written(tmp_path, owners, 1, 0, f"[privacy]\n{keys}", "rebrac"))
    made = prepared(settings, AGENTS["rebrac"], tmp_path, Console())
    z = made.head["noise_multiplier"]
    for mechanism, counted in made.plan.own:
        assert counted == 3 and mechanism.noise_multiplier == pytest.approx(z / np.sqrt(2))
    assert 7.5 < max(epsilon(*one, 0.05) for one in made.plan.own) <= 8.0
    assert not made.plan.federation.private  # the sum of the utilities gets no noise of its own


@pytest.mark.parametrize(
    "change, says",
    [
        (('"bc"', '"krum"'), "no algorithm 'krum'"),
        (("hidden = [8]", "wide = 3"), "[agent] wide: bc has no such field"),
        (("every = 2", 'rule = "median"\nevery = 2'), "Median has no bounded sensitivity: under privacy take Mean"),
        (("every = 2", 'shared = ["head"]\nevery = 2'), "bc has no learner 'head' to share"),
    ],
)
def test_refusals(change, says, small, tmp_path, run):
    config = small("[privacy]\nepsilon = 8.0")
    config.write_text(config.read_text().replace(*change))
    code, _, err = run(config, tmp_path / "out")
    assert code == 2 and says in err
