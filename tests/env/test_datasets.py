"""Data sets: what is in them, that files come back bit by bit, and that damaged ones are refused."""

import dataclasses
import io
import json
import re
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments_for_tests import walk

from gridjax.env import datasets
from gridjax.env.behaviours import Behaviour
from gridjax.env.collection import collect, play
from gridjax.env.datasets import costs, load, returns, save, take
from gridjax.env.policies import constant, noisy, random

EPISODES = 20


def counting(key, observation, state, memory):
    """Moves by a tenth of how often it has been asked in this episode."""
    del key, observation, state
    return jnp.stack([0.1 * memory, 0.0]), memory + 1.0


@pytest.fixture(scope="module")
def made():
    env, params = walk()
    base = constant([0.3, 0.0])
    behaviours = (
        Behaviour("still", constant([0.0, 0.0]), 1.0),
        Behaviour("noisy", noisy(env, base, width=0.1), 2.0),
        Behaviour("counting", counting, 1.0, jnp.asarray(0.0)),
    )
    made_by = {"name": "Walk", "horizon": 5}
    return (
        env,
        params,
        behaviours,
        collect(env, params, behaviours, jax.random.key(7), EPISODES, made_by=made_by, at_once=4),
    )


def test_rows_are_whole_episodes_of_the_stated_shares(made):
    env, _, _, data = made
    assert data.episodes == EPISODES and len(data.episode) == EPISODES * env.horizon
    np.testing.assert_array_equal(np.bincount(data.behaviour), [5, 10, 5])
    assert np.any(np.diff(data.behaviour) < 0)  # not one behaviour after the other
    np.testing.assert_array_equal(data.step, np.tile(np.arange(5), EPISODES))
    np.testing.assert_array_equal(data.episode, np.repeat(np.arange(EPISODES), 5))
    seen = data.transitions
    np.testing.assert_array_equal(seen.truncated, data.step == 4)
    assert not seen.terminated.any()
    x = seen.observation[:, 0]
    np.testing.assert_allclose(seen.next_observation[:, 0], x + seen.action[:, 0], rtol=1e-6)
    np.testing.assert_allclose(seen.reward, -(seen.next_observation[:, 0] ** 2), rtol=1e-5)
    np.testing.assert_allclose(seen.cost[:, 0], np.maximum(np.abs(seen.next_observation[:, 0]) - 1, 0), atol=1e-6)
    assert {a.dtype for a in (seen.observation, seen.action, seen.reward, seen.cost)} == {np.dtype("float32")}
    np.testing.assert_allclose(returns(data), seen.reward.reshape(EPISODES, 5).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(costs(data), seen.cost.reshape(EPISODES, 5, 2).sum(axis=1), rtol=1e-6)


def test_behaviours_act_and_say_how_probable_that_is(made):
    *_, data = made
    of = data.behaviour[data.episode]
    action = data.transitions.action
    np.testing.assert_array_equal(action[of == 0], 0.0)
    np.testing.assert_allclose(action[of == 2, 0], 0.1 * data.step[of == 2], rtol=1e-6)  # memory begins anew
    assert np.isnan(data.log_probability[of != 1]).all()
    mean, spread = action[of == 1, 0].mean(), action[of == 1, 0].std()
    assert abs(mean - 0.3) < 0.05 and 0.06 < spread < 0.14
    a = action[of == 1]
    normal = -0.5 * ((a - [0.3, 0.0]) / 0.1) ** 2 - np.log(0.1 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(data.log_probability[of == 1], normal.sum(axis=1), atol=1e-3)


def test_discrete_actions_have_probabilities():
    env, params = walk(counts=(3, 2))
    behaviours = (Behaviour("still", constant([1, 0])), Behaviour("random", random(env)))
    data = collect(env, params, behaviours, jax.random.key(0), 4)
    assert data.transitions.action.dtype == np.int32
    of = data.behaviour[data.episode]
    np.testing.assert_array_equal(data.log_probability[of == 0], 0.0)
    np.testing.assert_allclose(data.log_probability[of == 1], -np.log(6), rtol=1e-6)


@pytest.mark.parametrize(("counts", "kind"), [((3, 0), "float32"), ((3, 2), "int32")])
def test_actions_have_one_type_whatever_policies_return(counts, kind):
    env, params = walk(counts=counts)
    behaviours = (Behaviour("whole", constant([2, 0])), Behaviour("floating", constant([2.0, 1.0])))
    data = collect(env, params, behaviours, jax.random.key(0), 2)
    assert data.transitions.action.dtype == kind
    np.testing.assert_array_equal(data.transitions.action[:, 1], data.behaviour[data.episode])


def test_an_episode_that_fails_is_as_long_as_it_was():
    env, _ = walk()
    data = collect(env, jnp.asarray(1.5), [Behaviour("away", constant([0.4, 0.0]))], jax.random.key(1), 6)
    seen = data.transitions
    lengths = np.bincount(data.episode)
    first = seen.observation[data.step == 0, 0]
    np.testing.assert_array_equal(lengths, np.minimum(np.floor((1.5 - first) / 0.4 + 1e-6).astype(int) + 1, 5))
    ends = np.append(np.diff(data.episode) > 0, True)
    np.testing.assert_array_equal(seen.terminated | seen.truncated, ends)
    failed = seen.terminated
    assert failed.any() and lengths.min() < 5
    np.testing.assert_array_equal(seen.reward[failed], -100.0)
    np.testing.assert_array_equal(seen.cost[failed], np.tile([0.0, 1.0], (failed.sum(), 1)))
    np.testing.assert_array_equal(seen.next_observation[failed], seen.observation[failed])  # nothing is invented
    assert np.isnan(seen.info["distance"][failed]).all() and np.isfinite(seen.info["distance"][~failed]).all()
    np.testing.assert_array_equal(seen.info["solved"], ~failed)


def test_an_episode_can_be_played_again_from_its_seed(made):
    env, params, behaviours, data = made
    k = int(np.flatnonzero(data.behaviour == 1)[3])
    again, log_probability = play(env, behaviours[1].policy, jax.random.key(data.seed[k])[None], params)
    mine = data.episode == k
    np.testing.assert_allclose(again.action[0], data.transitions.action[mine], atol=1e-6)
    np.testing.assert_allclose(log_probability[0], data.log_probability[mine], atol=1e-4)


def test_the_same_key_gives_the_same_bits_whatever_runs_beside(made):
    env, params, behaviours, data = made
    other = collect(env, params, behaviours, jax.random.key(7), EPISODES, made_by=data.header["made_by"], at_once=7)
    assert other.header == data.header
    assert collect(env, params, behaviours, jax.random.key(8), EPISODES).fingerprint != data.fingerprint


def test_some_of_the_episodes(made):
    *_, data = made
    best = np.argsort(-returns(data))[:3]
    some = take(data, best)
    np.testing.assert_allclose(returns(some), returns(data)[best])
    np.testing.assert_array_equal(some.seed, data.seed[best])
    assert some.fingerprint != data.fingerprint and some.header["behaviours"] == data.header["behaviours"]
    assert take(data, range(EPISODES)).fingerprint == data.fingerprint


def test_files_come_back_bit_by_bit(made, tmp_path):
    *_, data = made
    path = tmp_path / "walk.npz"
    save(path, data)
    back = load(path)
    for one, other in zip(jax.tree.leaves(parts(data)), jax.tree.leaves(parts(back)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert back.header == data.header == json.loads(json.dumps(data.header))
    assert back.header["observation_names"] == ["x", "t"] and back.header["made_by"]["name"] == "Walk"
    assert list(tmp_path.iterdir()) == [path]
    save(tmp_path / "again.npz", back)
    assert load(tmp_path / "again.npz").fingerprint == data.fingerprint


def parts(data):
    """All arrays."""
    return {f.name: getattr(data, f.name) for f in dataclasses.fields(data) if f.name != "header"}


def test_files_are_written_as_every_numpy_can(made, tmp_path, monkeypatch):
    *_, data = made
    write = np.savez

    def older(file, **columns):  # before NumPy 2.2 `savez` took every name for an array's
        assert all(isinstance(a, np.ndarray) for a in columns.values())
        write(file, **columns)

    monkeypatch.setattr(np, "savez", older)
    save(tmp_path / "walk.npz", data)
    assert load(tmp_path / "walk.npz").fingerprint == data.fingerprint
    info = data.transitions.info | {"who": np.array([None] * len(data.episode))}
    objects = dataclasses.replace(data, transitions=data.transitions.replace(info=info))
    with pytest.raises(ValueError, match="info/who holds Python objects"):
        save(tmp_path / "objects.npz", objects)


def test_an_interrupted_save_leaves_the_old_file(made, tmp_path, monkeypatch):
    *_, data = made
    path = tmp_path / "walk.npz"
    save(path, data)
    before = path.read_bytes()

    def fails(*args, **kwargs):
        args[0].write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(KeyboardInterrupt):
        save(path, data)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def rewritten(path, compression=zipfile.ZIP_STORED, **changes):
    """The file with some entries changed (None: left out), its checksums made anew."""
    with np.load(path) as archive:
        entries = {name: archive[name] for name in archive.files} | changes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in entries.items():
            if value is not None:
                archive.writestr(f"{name}.npy", _npy(value))


def _npy(value):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, value, allow_pickle=True)
    return buffer.getvalue()


DAMAGE = {
    "half": lambda path, data: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, data: path.write_bytes(b""),
    "a flipped bit": lambda path, data: path.write_bytes(_flipped(path.read_bytes())),
    "other numbers": lambda path, data: rewritten(path, reward=data.transitions.reward + 1),
    "a column less": lambda path, data: rewritten(path, cost=None),
    "no header": lambda path, data: rewritten(path, header=None),
    "pickled": lambda path, data: rewritten(path, reward=np.array([{}, print], object)),
    "a header that is no JSON": lambda path, data: rewritten(path, header=np.frombuffer(b"{", np.uint8)),
    "a header without end": lambda path, data: rewritten(path, header=np.frombuffer(b"[" * 200_000, np.uint8)),
    "one array": lambda path, data: path.write_bytes(_npy(np.zeros(3))),
    "more than its bytes": lambda path, data: sealed(path, zipfile.ZIP_DEFLATED),
    "more than there is memory": lambda path, data: _claimed(path, data, 10**14),
    "encrypted": lambda path, data: path.write_bytes(_encrypted(path.read_bytes())),
    "episodes of other rows": lambda path, data: sealed(path, length=np.full(EPISODES, 4, np.int32)),
    "lengths that are no counts": lambda path, data: sealed(path, length=np.full(EPISODES, 5.0)),
    "a short column": lambda path, data: sealed(path, reward=data.transitions.reward[:3]),
    "an unknown behaviour": lambda path, data: sealed(path, behaviour=data.behaviour + 1),
}


def sealed(path, compression=zipfile.ZIP_STORED, **changes):
    """The file with some entries changed, and a header that vouches for them."""
    rewritten(path, **changes)
    with np.load(path) as archive:
        stored = {name: archive[name] for name in archive.files}
    header = datasets._sealed(json.loads(stored.pop("header").tobytes()), stored)
    rewritten(path, compression, header=np.frombuffer(json.dumps(header).encode(), np.uint8))


def _encrypted(content):
    out = bytearray(content)
    for sign, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags of entries, and of the directory's
        for found in re.finditer(sign, content):
            out[found.start() + place] |= 1
    return bytes(out)


def _claimed(path, data, rows):
    """Says that the rewards are so many, and brings none."""
    rewritten(path, reward=None)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (rows,)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("reward.npy", head.getvalue())


def _flipped(content):
    out = bytearray(content)
    out[len(out) // 2] ^= 1
    return bytes(out)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_by_name(made, tmp_path, damage):
    *_, data = made
    path = tmp_path / "walk.npz"
    save(path, data)
    DAMAGE[damage](path, data)
    with pytest.raises(ValueError, match=r"walk\.npz.*(damaged|no data set).*: (copy|save)"):
        load(path)


def test_files_of_others_and_of_newer_versions_are_refused(made, tmp_path):
    *_, data = made
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz"):
        load(tmp_path / "other.npz")
    save(tmp_path / "new.npz", data)
    header = json.dumps(data.header | {"version": 99}).encode()
    rewritten(tmp_path / "new.npz", header=np.frombuffer(header, np.uint8))
    with pytest.raises(ValueError, match="version 99"):
        load(tmp_path / "new.npz")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        save(tmp_path / "data.csv", data)


def test_senseless_requests_are_refused(made):
    env, params, behaviours, _ = made
    key = jax.random.key(0)
    for some, episodes in ((behaviours, 0), ([], 3), ([Behaviour("a", counting, -1.0)], 3)):
        with pytest.raises(ValueError, match="episodes"):
            collect(env, params, some, key, episodes)
    with pytest.raises(ValueError, match="own name"):
        collect(env, params, [behaviours[0], behaviours[0]], key, 3)
    with pytest.raises(ValueError, match=r"made_by .*int64"):  # before hours of collecting
        collect(env, params, behaviours, key, 3, made_by={"days": np.int64(3)})
    with pytest.raises(ValueError, match="at least one"):
        take(made[-1], [])


def test_the_page_on_data_sets_runs_and_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    monkeypatch.chdir(tmp_path)
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(compile(code, "datasets.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == re.search(r"```text\n(.*?)```", page, re.DOTALL)[1]
    assert "IEEE 13, its own controls" in (tmp_path / "episode.html").read_text()
