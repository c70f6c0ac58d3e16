"""`gridjax train`: what it writes and shows, that no interruption changes a bit of it, and its exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import training_for_tests
from training_for_tests import NAME, patches, same_bits

from algorithms import checkpoints, evaluate_command, evaluation, metrics, mixtures
from gridjax import dataset_commands
from gridjax.__main__ import main
from gridjax.env.datasets import load

GIVEN = (
    *("--env", "Walk-line", "--algorithm", "iql", "--dataset", "random,nothing=3", "--episodes", "8"),
    *("--updates", "6", "--every", "2", "--seeds", "2", "--batch-size", "8", "--hidden", "4"),
    "--no-evaluation",
)


@pytest.fixture(autouse=True, scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patches().items():
            patch.setattr(mixtures, name, value)
        patch.setattr(checkpoints, "source_version", lambda: "of these tests")  # a checkout may change meanwhile
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["train", *GIVEN, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(capsys):
    def run(*argv):
        capsys.readouterr()
        code = main(["train", *map(str, argv)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, " ".join(err.split())

    return run


def agent(out):
    return checkpoints.load_agent(out)[3]


def updates(out):
    return [int(p.name.removeprefix("update-")) for p in sorted((out / "checkpoints").glob("update-*"))]


def same_run(out, whole):
    """Whether nothing tells that a run was interrupted."""
    one, other = ((p / "metrics.csv").read_bytes() for p in (out, whole))
    return one == other and updates(out) == updates(whole) and same_bits(agent(out), agent(whole))


def test_a_run_is_written_and_shown(whole, run):
    found, config, space, states, head = checkpoints.load_agent(whole)
    assert found.name == "iql" and config.hidden == (4,) and config.steps == 6.0 and space.counts == (3, 0)
    assert updates(whole) == [2, 4, 6] and states.step.tolist() == [6, 6] and head["environment"]["name"] == NAME
    assert head["run"]["seeds"] == 2 and head["dataset"]["fingerprint"] == load(whole / "data.npz").fingerprint
    assert not np.array_equal(*states.actor.params["params"]["Mlp_0"]["Dense_0"]["kernel"])  # each seed learns its own
    table = metrics.read(whole / "metrics.csv")
    assert table["updates"].tolist() == [2, 2, 4, 4, 6, 6] and "critic_loss" in table
    code, out, err = run(*GIVEN, "--out", whole, "--resume")  # there is nothing left to do
    assert code == 0 and err == "" and "40 steps" in out and f"gridjax evaluate {whole}" in out
    mean = table["critic_loss"][-2:].mean()
    assert f"{mean:.5g}" in out and updates(whole) == [2, 4, 6]


def test_a_trained_agent_is_shown_on_held_out_days_beside_the_baselines(whole, tmp_path, run, monkeypatch):
    monkeypatch.setattr(evaluation, "make", training_for_tests.make)
    monkeypatch.setattr(evaluate_command, "make", training_for_tests.make)
    monkeypatch.setattr(evaluate_command, "feeder_of", lambda **made_by: None)
    monkeypatch.setattr(evaluate_command, "USUAL", ("nothing",))  # the others compile longer
    monkeypatch.setattr(evaluate_command, "EPISODES", 30)
    shutil.copytree(whole, tmp_path / "r")
    code, out, err = run(*GIVEN[:-1], "--out", tmp_path / "r", "--resume")
    assert code == 0 and err == "" and "critic_loss" in out and "30 held-out days" in out
    assert "gridjax evaluate" not in out
    record = json.loads((tmp_path / "r" / "evaluation" / "evaluation.json").read_text())
    assert [row["policy"] for row in record["rows"]] == ["iql", "nothing", "random"]
    assert np.shape(record["rows"][0]["returns"]) == (2, 30) and record["environment"]["seed"] == [1]


def test_a_mixture_is_what_collect_writes(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_commands, "make", training_for_tests.make)
    monkeypatch.setattr(dataset_commands, "feeder_of", lambda **made_by: None)
    argv = ["collect", "--env", NAME, "--behaviour", "random", "--behaviour", "nothing=3", "--episodes", "8"]
    assert main([*argv, "--out", str(tmp_path / "d.npz")]) == 0
    assert load(tmp_path / "d.npz").fingerprint == load(whole / "data.npz").fingerprint


def test_a_file_gives_the_same_agent_as_the_mixture_it_holds(whole, tmp_path, run):
    given = [*GIVEN[:5], whole / "data.npz", *GIVEN[8:]]
    assert given[3] == "iql" and given[4] == "--dataset"
    code, _, _ = run(*given, "--out", tmp_path / "r")
    assert code == 0 and same_bits(agent(tmp_path / "r"), agent(whole)) and not (tmp_path / "r" / "data.npz").exists()
    for other, says in (
        (["--env-set", "limit=3.0"], "was logged with limit None, not 3.0"),
        (["--episodes", 5], "not of a file"),
    ):
        code, _, err = run(*given, *other, "--out", tmp_path / "s")
        assert code == 2 and says in err


@pytest.mark.parametrize("at", [2])
def test_a_run_killed_while_it_saves_goes_on_to_the_same_bits(whole, tmp_path, run, at):
    program = Path(training_for_tests.__file__)
    root = str(program.parent.parent.parent)
    command = [sys.executable, str(program), str(at), "train", *GIVEN, "--out", str(tmp_path / "r")]
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    names = {p.name for p in (tmp_path / "r" / "checkpoints").iterdir()}
    assert updates(tmp_path / "r") == [2] and ".update-000000004.part" in names  # half of the second was written
    assert len((tmp_path / "r" / "metrics.csv").read_text().splitlines()) == 5  # the second's rows were already
    code, _, err = run(*GIVEN, "--out", tmp_path / "r", "--resume")
    assert code == 0 and err == "" and same_run(tmp_path / "r", whole)
    assert {p.name[0] for p in (tmp_path / "r" / "checkpoints").iterdir()} == {"u"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_whole_checkpoint_to_go_on_from(whole, tmp_path, run, monkeypatch, number, code):
    real = metrics.append

    def signalled(*args):
        os.kill(os.getpid(), number)
        real(*args)

    before = signal.getsignal(number)
    with monkeypatch.context() as now:
        now.setattr(metrics, "append", signalled)
        got, _, err = run(*GIVEN, "--out", tmp_path / "r")
    assert got == code and f"{number.name} after 2 updates; --resume goes on" in err
    assert updates(tmp_path / "r") == [2] and signal.getsignal(number) == before
    chunks = []
    monkeypatch.setattr(metrics, "append", lambda path, done, values: (chunks.append(done), real(path, done, values)))
    assert run(*GIVEN, "--out", tmp_path / "r", "--resume")[0] == 0 and same_run(tmp_path / "r", whole)
    assert chunks == [4, 6]  # what was learned is not learned again


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on_to_the_same_bits(whole, tmp_path, run):
    assert run(*GIVEN[:9], 4, *GIVEN[10:], "--set", "steps=6", "--out", tmp_path / "r")[0] == 0
    header = tmp_path / "r" / "checkpoints" / "update-000000004" / "header.json"
    header.write_text(header.read_text().replace("iql", "cql"))
    code, _, err = run(*GIVEN, "--out", tmp_path / "r", "--resume")
    assert code == 0 and "update-000000004 is damaged: header.json is not what was written" in err
    assert "update-000000002 is taken" in err and same_run(tmp_path / "r", whole)
    assert (tmp_path / "r" / "checkpoints" / "damaged-update-000000004").is_dir()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--seed", 1), "run.key"),
        (("--batch-size", 9), "run.batch_size: 8, now 9"),
        (("--set", "expectile=0.9"), "config.expectile: 0.7, now 0.9"),
        (("--updates", 8), "config.steps: 6.0, now 8.0"),
        (("--price", "1,0"), "run.prices: None, now [1.0, 0.0]"),
        (("--episodes", 9), "data.npz is another data set (episodes 8, now 9)"),
        (("--dataset", "random"), "data.npz is another data set (behaviours"),
        (("--env-set", "limit=9.0"), "data.npz is another data set (made_by"),
    ],
)
def test_another_run_is_not_taken_up_and_what_differs_is_named(whole, run, more, says):
    before = sorted(whole.rglob("*"))
    code, out, err = run(*GIVEN, *more, "--out", whole, "--resume")
    assert code == 2 and out == "" and says in err and sorted(whole.rglob("*")) == before


def test_another_data_set_in_a_file_is_not_taken_up(whole, tmp_path, run, monkeypatch):
    monkeypatch.setattr(dataset_commands, "make", training_for_tests.make)
    monkeypatch.setattr(dataset_commands, "feeder_of", lambda **made_by: None)
    assert main(["collect", "--env", NAME, "--episodes", "8", "--out", str(tmp_path / "d.npz")]) == 0
    given = [*GIVEN[:5], tmp_path / "d.npz", *GIVEN[8:]]
    code, _, err = run(*given, "--out", whole, "--resume")
    assert code == 2 and "dataset.fingerprint" in err and "of another run" in err


def test_each_seed_may_have_its_own_number(whole, tmp_path, run):
    given = (*GIVEN, "--set", "temperature=[3.0, 0.1]", "--out", tmp_path / "r")
    assert run(*given)[0] == 0
    config, states = checkpoints.load_agent(tmp_path / "r")[1::2][:2]
    np.testing.assert_array_equal(config.temperature, np.array([3.0, 0.1], np.float32))
    whole_table, table = metrics.read(whole / "metrics.csv"), metrics.read(tmp_path / "r" / "metrics.csv")
    np.testing.assert_allclose(table["weight"][::2], whole_table["weight"][::2], rtol=1e-5)
    assert np.all(np.abs(table["weight"][1::2] - whole_table["weight"][1::2]) > 1e-3)
    assert states.step.tolist() == [6, 6] and run(*given, "--resume")[0] == 0


def test_the_run_without_a_checkpoint_begins_anew_with_its_data(whole, tmp_path, run):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "data.npz").write_bytes((whole / "data.npz").read_bytes())
    code, _, err = run(*GIVEN, "--out", tmp_path / "r", "--resume")
    assert code == 0 and "begins anew" in err and same_run(tmp_path / "r", whole)


def test_a_loss_that_is_not_finite_ends_with_1_and_keeps_what_was_good(tmp_path, run):
    code, _, err = run(*GIVEN, "--set", "rate=1e30", "--out", tmp_path / "r")
    assert code == 1 and "is not finite after" in err and "lower the rates" in err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--env", "Walk-moon"), "choose one of Walk-line-v0"),
        (("--algorithm", "magic"), "no algorithm 'magic'"),
        (("--dataset", "clever"), "'clever' is none of"),
        (("--dataset", "random,random"), "named twice"),
        (("--dataset", "nowhere.npz", "--updates", 1), "not of a file"),
        (("--set", "speed=1"), "iql has no 'speed': set discount"),
        (("--set", "expectile=high"), "'high' is not a number"),
        (("--set", "expectile=true"), "True is not a number"),
        (("--set", "expectile=[0.7,0.8,0.9]"), "3 numbers for 2 seeds"),
        (("--set", "expectile=0.7", "--set", "expectile=0.8"), "twice"),
        (("--set", "norm=1"), "1 is not such as False"),
        (("--set", "hidden=[4.5]"), "is not such as"),
        (("--set", "extraction=magic"), "extraction 'magic' is unknown"),
        (("--algorithm", "constrained", "--set", "costs=[1.0]"), "1 weights for 2 costs"),
        (("--algorithm", "cql", "--set", "samples=0"), "samples 0: take at least 1"),
        (("--hidden", "0"), "256,256"),
        (("--price", "1"), "one for each of: beyond 1, power flow not solved"),
        (("--price", "-1"), "not negative"),
        (("--best", "1.5"), "above 1"),
        (("--reward-scale", "nan"), "not a positive number"),
        (("--algorithm", "td3_bc"), "numbers only"),
        (("--actions", "mixed"), "unexpected keyword argument 'actions'"),
        (("--env-set", "name=Other"), "take --env"),
        (("--out", "nowhere/r"), "no folder"),
        (("--every", "0"), "not between 1"),
    ],
)
def test_bad_requests_end_with_2_and_a_reason(tmp_path, monkeypatch, run, more, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*GIVEN, *more)
    assert code == 2 and out == "" and says in err and not list(tmp_path.rglob("update-*"))
    assert not list(tmp_path.rglob("data.npz"))  # nothing is collected for what cannot be trained


def test_a_run_is_not_written_over(whole, run):
    code, _, err = run(*GIVEN, "--out", whole)
    assert code == 2 and "--resume" in err and updates(whole) == [2, 4, 6]


def test_event_files_are_written_where_asked_for(tmp_path, monkeypatch, run):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code, _, err = run(*GIVEN, "--out", tmp_path / "r", "--tensorboard")
    assert code == 2 and "gridjax[tensorboard]" in err and not (tmp_path / "r").exists()
    monkeypatch.undo()
    pytest.importorskip("tensorboardX")
    assert run(*GIVEN, "--out", tmp_path / "r", "--tensorboard")[0] == 0
    assert [p.name for p in sorted((tmp_path / "r" / "tensorboard").iterdir())] == ["seed-0", "seed-1"]


def test_the_algorithms_can_be_listed(run):
    code, out, _ = run(*GIVEN, "--algorithm", "list")
    assert code == 0 and "iql" in out and "Kostrikov" in out


def test_mixed_has_controls_only_where_there_are_some():
    assert list(mixtures.shares("VoltVar-ieee13-v0", "mixed")) == ["random", "noisy-classical", "noisy-constant"]
    assert list(mixtures.shares("Restoration-ieee123-v0", "mixed")) == ["random", "noisy-constant"]
    assert mixtures.shares("any", "random,noisy-constant=3") == {"random": 1.0, "noisy-constant": 3.0}
