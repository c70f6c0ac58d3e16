"""`gridjax collect`: what it writes and shows, and its exit codes."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gridjax import dataset_commands
from gridjax.__main__ import main
from gridjax.env.datasets import load

sys.path.insert(0, str(Path(__file__).parent / "env"))
from environments_for_tests import walk


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A small environment that fails where x goes beyond an option."""

    def make(name, *, seed, days, hours, limit=10.0):
        assert name == "Walk-line-v0"
        return walk(counts=(3, 0))[0], jnp.asarray(limit)

    monkeypatch.setattr(dataset_commands, "make", make)
    monkeypatch.setattr(dataset_commands, "feeder_of", lambda **made_by: None)


def run(capsys, *argv):
    code = main(["collect", *map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def test_a_mixture_is_written_and_shown(capsys, tmp_path):
    path = tmp_path / "d.npz"
    given = ("--env", "Walk-line-v0", "--behaviour", "random", "--behaviour", "nothing=3", "--episodes", 8)
    code, out, err = run(capsys, *given, "--seed", 5, "--set", "limit=9.5", "--out", path)
    assert code == 0 and err == "" and "8 episodes, 40 steps" in out
    data = load(path)
    np.testing.assert_array_equal(np.bincount(data.behaviour), [2, 6])
    assert data.header["behaviours"] == ["random", "nothing"] and data.fingerprint[:12] in out
    assert data.header["made_by"] == {"name": "Walk-line-v0", "seed": 0, "days": 100, "hours": None, "limit": 9.5}


def test_steps_that_fail_are_told(capsys, tmp_path):
    code, out, err = run(
        capsys, "--env", "Walk-line-v0", "--episodes", 20, "--set", "limit=1.0", "--out", tmp_path / "d.npz"
    )
    failed = int(load(tmp_path / "d.npz").transitions.terminated.sum())
    assert code == 1 and failed > 0 and f"{failed} of " in err and "random" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--env", "Walk-line-v0"), "--out"),
        (("--env", "Walk-line-v0", "--out", "d.csv"), "ends in .npz"),
        (("--env", "Walk-line-v0", "--out", "nowhere/d.npz"), "no folder"),
        (("--env", "Walk-line-v0", "--out", "d.npz", "--behaviour", "clever"), "is none of"),
        (("--env", "Walk-line-v0", "--out", "d.npz", "--behaviour", "random=-1"), "share"),
        (("--env", "Walk-line-v0", "--out", "d.npz", "--behaviour", "random", "--behaviour", "random=2"), "twice"),
        (("--env", "Walk-line-v0", "--out", "d.npz", "--set", "limit"), "KEY=VALUE"),
        (("--env", "Walk-line-v0", "--out", "d.npz", "--set", "name=Other-line-v0"), "--set name: take --env"),
        (("--env", "Walk-line-v0", "--out", "d.npz", "--set", "depth=1"), "unexpected keyword argument 'depth'"),
        (("--env", "Walk-line-v0", "--out", "d.npz", "--behaviour", "classical"), "classical controls"),
        (("--out", "d.npz"), "--env"),
    ],
)
def test_bad_requests_end_with_2_and_a_reason(capsys, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *argv)
    assert code == 2 and says in err and list(tmp_path.iterdir()) == []


def test_the_names_can_be_listed(capsys):
    code, out, _ = run(capsys, "--env", "list")
    assert code == 0 and "VoltVar-ieee123-v0" in out.splitlines()
