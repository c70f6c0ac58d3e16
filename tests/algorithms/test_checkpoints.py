"""Checkpoints: nothing is lost, nothing half written or damaged is taken, and what differs is named."""

import hashlib
import importlib.metadata
import json
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_for_tests import same_bits

from algorithms import checkpoints
from algorithms.agents import AGENTS
from algorithms.iql import IQL
from algorithms.spaces import Space
from algorithms.training import begin, seed_keys

SPACE = Space((3, 0), (1.0, 0.0), (0.05, 1.0), constraints=2, anchor=((1, 2.0, -1.0), (-1, 0.0, 0.0)))
CONFIG = IQL.config(hidden=(4,), temperature=np.array([1.0, 3.0], np.float32))
DATA = SimpleNamespace(episodes=2, episode=np.zeros(10), fingerprint="ab" * 32, header={"behaviours": ["random"]})


def head(**changes):
    given = {"agent": IQL, "config": CONFIG, "space": SPACE, "key": jax.random.key(5), "data": DATA} | changes
    environment, run = given.pop("environment", {"name": "Walk", "hours": None}), given.pop("run", {"seeds": 2})
    return checkpoints.header(*given.values(), environment=environment, run=run)


@pytest.fixture(scope="module")
def states():
    return begin(IQL, SPACE, seed_keys(jax.random.key(0), 2), checkpoints.numbers(CONFIG))


def after(states, updates):
    """States whose every number tells how many updates were made."""
    return jax.tree.map(lambda a: a + updates, states)


def write(folder, states, *updates, **options):
    return [checkpoints.save(folder, head(), after(states, n), **options) for n in updates]


def test_an_agent_comes_back_to_the_bit_and_with_all_that_is_known_of_it(tmp_path, states):
    write(tmp_path, states, 7)
    agent, config, space, found, header = checkpoints.load_agent(tmp_path)
    assert agent is IQL and space == SPACE and same_bits(found, after(states, 7))
    assert type(config) is type(CONFIG) and config.hidden == (4,) and config.expectile == CONFIG.expectile
    np.testing.assert_array_equal(config.temperature, CONFIG.temperature)
    assert jax.tree.structure(found) == jax.tree.structure(states)
    assert header["updates"] == 7 and header["dataset"]["fingerprint"] == DATA.fingerprint
    assert header["environment"] == {"name": "Walk", "hours": None} and header["versions"]["jax"] == jax.__version__
    assert header["run"]["key"] == [0, 5] and header["run"]["x64"] is True


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_comes_back(tmp_path, name):
    agent = AGENTS[name]
    config = agent.config(hidden=(4,))
    space = replace(SPACE, counts=(0, 0))
    like = checkpoints.shapes(agent, config, space, 1)
    states = jax.tree.map(lambda a: np.arange(a.size).reshape(a.shape).astype(a.dtype), like)
    checkpoints.save(tmp_path, head(agent=agent, config=config, space=space, run={"seeds": 1}), states)
    found = checkpoints.load_agent(tmp_path)
    assert found[:3] == (agent, config, space) and same_bits(found[3], states)


def test_the_sums_are_those_of_the_files(tmp_path, states):
    (place,) = write(tmp_path, states, 1)
    lines = (place / "SHA256SUMS").read_text().splitlines()
    there = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert {line[66:] for line in lines} == there and "header.json" in there
    for line in lines:
        assert hashlib.sha256((place / line[66:]).read_bytes()).hexdigest() == line[:64]


def test_the_last_ones_are_kept(tmp_path, states):
    write(tmp_path, states, 8, 9, 10, 12, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["update-000000010", "update-000000012"]
    with pytest.raises(ValueError, match="at least one"):
        write(tmp_path, states, 14, keep=0)


class Killed(BaseException):
    """What no code of ours catches."""


class _Half:
    """Orbax that dies in the middle."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def save(self, path, states):
        path.mkdir()
        (path / "_METADATA").write_text("half")
        raise Killed


def _killed(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize(
    ("moment", "left"),
    [("orbax", 2), ("_sum", 2), ("_sync", 2), ("os.rename", 2), ("_remove", 4)],
)
def test_a_run_that_is_killed_while_it_saves_leaves_whole_checkpoints_only(tmp_path, states, monkeypatch, moment, left):
    write(tmp_path, states, 1, 2)
    with monkeypatch.context() as now:
        if moment == "orbax":
            now.setattr(checkpoints.orbax, "StandardCheckpointer", _Half)
        else:
            owner, _, name = f"checkpoints.{moment}".rpartition(".")
            now.setattr(checkpoints.os if owner.endswith("os") else checkpoints, name, _killed)
        with pytest.raises(Killed):
            write(tmp_path, states, 4, keep=2)
    _, header, wrong = checkpoints.newest(tmp_path)
    assert header["updates"] == left and wrong == []
    write(tmp_path, states, 4, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["update-000000002", "update-000000004"]
    assert same_bits(checkpoints.load_agent(tmp_path)[3], after(states, 4))


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _biggest(place):
    return max((p for p in (place / "states").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGES = {
    "a bit of the states": lambda place: _flip(_biggest(place)),
    "half of the states": lambda place: _biggest(place).write_bytes(_biggest(place).read_bytes()[:50]),
    "a file less": lambda place: _biggest(place).unlink(),
    "a file more": lambda place: (place / "states" / "new").write_text("x"),
    "the header": lambda place: (place / "header.json").write_text((place / "header.json").read_text() + " "),
    "no sums": lambda place: (place / "SHA256SUMS").unlink(),
    "half of the sums": lambda place: (place / "SHA256SUMS").write_text((place / "SHA256SUMS").read_text()[:200]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_named_and_the_last_whole_one_is_taken(tmp_path, states, damage):
    places = write(tmp_path, states, 2, 3)
    damage(places[1])
    with pytest.raises(ValueError, match=r"update-000000003 is (damaged|no whole checkpoint)"):
        checkpoints.check(places[1])
    path, header, wrong = checkpoints.newest(tmp_path)
    assert path == places[0] and header["updates"] == 2 and len(wrong) == 1 and "update-000000003" in wrong[0]
    with pytest.warns(UserWarning, match=r"update-000000003 .*; update-000000002 is taken"):
        found = checkpoints.load_agent(tmp_path)[3]
    assert same_bits(found, after(states, 2))
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoints.load_agent(places[1])
    checkpoints.set_aside(tmp_path, 2)
    assert checkpoints.newest(tmp_path)[2] == [] and (places[1].parent / "damaged-update-000000003").is_dir()


def test_where_none_is_whole_there_is_no_agent(tmp_path, states):
    with pytest.raises(ValueError, match="has no checkpoint"):
        checkpoints.load_agent(tmp_path)
    for place in write(tmp_path, states, 1, 2):
        (place / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"no whole checkpoint.*update-000000002.*update-000000001"):
        checkpoints.load_agent(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"config": CONFIG.replace(expectile=0.9)}, "config.expectile: 0.7, now 0.9"),
        ({"config": CONFIG.replace(temperature=3.0)}, "config.temperature"),
        ({"space": replace(SPACE, one_hot=True)}, "space.one_hot: False, now True"),
        ({"key": jax.random.key(6)}, "run.key: [0, 5], now [0, 6]"),
        ({"run": {"seeds": 3}}, "run.seeds: 2, now 3"),
        ({"run": {"seeds": 2, "best": None}}, "run.best: not there, now None"),
        ({"environment": {"name": "Walk", "hours": 0.5}}, "environment.hours: None, now 0.5"),
        ({"data": SimpleNamespace(**vars(DATA) | {"fingerprint": "cd" * 32})}, "dataset.fingerprint: abab"),
        ({"agent": IQL._replace(name="cql")}, "agent: iql, now cql"),
    ],
)
def test_what_differs_between_runs_is_named(changes, says):
    old = json.loads(json.dumps(head()))  # as it comes from a file
    found = checkpoints.differences(old, json.loads(json.dumps(head(**changes))))
    assert found == [] if says is None else len(found) >= 1 and any(says in text for text in found)
    assert checkpoints.differences(old, head(**changes)) == found


def test_single_precision_draws_other_rows_and_is_another_run():
    with jax.enable_x64(False):
        single = head()
    assert checkpoints.differences(head(), single) == ["run.x64: True, now False"]


def test_versions_are_told_apart_from_what_makes_a_run():
    old, new = head(), head()
    new["versions"] = new["versions"] | {"jax": "9.9"}
    assert checkpoints.differences(old, new) == []
    assert checkpoints.other_versions(old, new) == [f"jax {jax.__version__}, now 9.9"]


def test_the_commit_is_told_in_a_checkout_and_the_version_elsewhere(tmp_path, monkeypatch):
    file = tmp_path / "algorithms" / "checkpoints.py"
    file.parent.mkdir()
    file.write_text("1")
    monkeypatch.setattr(checkpoints, "__file__", str(file))
    assert checkpoints.source_version() == importlib.metadata.version("gridjax")

    def git(*argv):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *argv], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    assert checkpoints.source_version() == git("rev-parse", "HEAD")
    file.write_text("2")
    assert checkpoints.source_version() == git("rev-parse", "HEAD") + "-dirty"


def test_states_of_other_networks_are_refused(tmp_path, states):
    (place,) = write(tmp_path, states, 1)
    with pytest.raises(ValueError, match="not of this iql"):
        checkpoints.restore(place, IQL, CONFIG.replace(hidden=(5,)), SPACE, 2)
    with pytest.raises(ValueError, match="not of this iql"):
        checkpoints.restore(place, IQL, CONFIG.replace(hidden=(4, 4)), SPACE, 2)


def test_no_class_but_gridjaxs_is_made_of_a_header():
    for name in ("subprocess.Popen", "os.system", "algorithms.training.train", "algorithms.iql.Nothing"):
        with pytest.raises(ValueError, match=name):
            checkpoints.rebuilt({"class": name, "fields": {}})


@flax.struct.dataclass
class _Outer:
    inner: tuple
    number: float


def test_nested_values_are_made_plain_and_built_again():
    plain = json.loads(json.dumps(checkpoints._plain(_Outer((1, (2, "a"), None), jnp.float32(0.5)))))
    assert plain["fields"] == {"inner": [1, [2, "a"], None], "number": 0.5}
    assert checkpoints.rebuilt(plain["fields"]["inner"]) == (1, (2, "a"), None)
