"""Data sets of logged behaviour, in memory and in files.

A data set is `Transitions` in rows, episode after episode, with whatever offline learning and its evaluation need
beside them: the costs, where episodes begin and end (and whether by an end or by the time limit), which behaviour
acted, with which probability, and the seed of each episode, by which it can be played again.

The file is a NumPy archive (`.npz`) without pickled objects. Its entry "header" is JSON: what the environment was, the
names of all columns, versions, each array's type and shape, and the fingerprint, which is the SHA-256 of all arrays
with their names, types and shapes, in the order of the names. Observations are there once: a row's next observation is
the next row's, or the episode's last one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gridjax.env.environment import Transitions

FORMAT, VERSION = "gridjax data set", 1
_ROWS = ("action", "reward", "cost", "terminated", "truncated")
_CURE = "copy it again from where it came from, or collect it anew (the header of an intact copy says how)"


@dataclass(frozen=True)
class Dataset:
    """Logged transitions; all arrays are NumPy's, floating ones in single precision.

    Attributes:
      transitions: with leading axis (rows,), episode after episode.
      log_probability: (rows,) of the action, by the behaviour; of a density where actions are numbers; NaN where it is
        not known.
      episode: (rows,) number of the episode, from 0.
      step: (rows,) number of the step in its episode, from 0.
      behaviour: (episodes,) number of the behaviour in `header["behaviours"]`.
      seed: (episodes,) the episode ran with `jax.random.key(seed)`, see `gridjax.env.collection.collect`.
      header: what else is known, as JSON would have it.
    """

    transitions: Transitions
    log_probability: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    behaviour: np.ndarray
    seed: np.ndarray
    header: dict[str, Any]

    @property
    def episodes(self) -> int:
        """How many."""
        return len(self.behaviour)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays, in hexadecimal digits."""
        return self.header["fingerprint"]


def assemble(
    parts: Sequence[tuple[Transitions, np.ndarray]], behaviour: np.ndarray, seed: np.ndarray, header: dict[str, Any]
) -> Dataset:
    """The data set of episodes.

    Args:
      parts: of each episode its transitions (steps, ...), NumPy arrays, and log probabilities (steps,).
      behaviour: (episodes,) as in `Dataset`.
      seed: (episodes,) likewise.
      header: likewise; what is to be counted is put in here.

    Raises:
      ValueError: an episode's next observations are not its observations.
    """
    seen, log_probability = _joined(parts)
    lengths = np.array([len(part[1]) for part in parts], np.int32)
    episode, step = _places(lengths)
    data = Dataset(seen, log_probability, episode, step, behaviour.astype(np.int32), seed.astype(np.uint32), header)
    return dataclasses.replace(data, header=_sealed(header, arrays(data)))


def returns(data: Dataset) -> np.ndarray:
    """The sum of each episode's rewards, (episodes,)."""
    return np.bincount(data.episode, np.asarray(data.transitions.reward, float), data.episodes)


def costs(data: Dataset) -> np.ndarray:
    """The sum of each episode's costs, (episodes, constraints)."""
    out = np.zeros((data.episodes, data.transitions.cost.shape[1]))
    np.add.at(out, data.episode, np.asarray(data.transitions.cost, float))
    return out


def take(data: Dataset, episodes: np.ndarray | Sequence[int]) -> Dataset:
    """The data set of some of its episodes, in the order given; its header keeps what it says of the whole."""
    wanted = np.asarray(episodes)
    chosen = np.arange(data.episodes)[wanted] if wanted.size else wanted
    if not len(chosen):
        raise ValueError("takes at least one episode")
    starts = np.searchsorted(data.episode, np.arange(data.episodes + 1))
    rows = [slice(starts[e], starts[e + 1]) for e in chosen]
    whole: Any = (data.transitions, data.log_probability)
    parts = [jax.tree.map(lambda a, r=r: a[r], whole) for r in rows]
    return assemble(parts, data.behaviour[chosen], data.seed[chosen], data.header)


def save(path: str | Path, data: Dataset) -> None:
    """Writes a data set to a `.npz` file; what stood there before stays until the new file is whole.

    Raises:
      ValueError: another suffix, an array of objects, or an episode whose next observations are not its observations.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a data set's file ends in .npz")
    stored = arrays(data)
    objects = [name for name, a in stored.items() if a.dtype.hasobject]
    if objects:
        raise ValueError(f"{path}: {objects[0]} holds Python objects; make it an array of numbers")
    text = json.dumps(_sealed(data.header, stored), allow_nan=False).encode()
    columns: dict[str, Any] = {"header": np.frombuffer(text, np.uint8), **stored}
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            np.savez(file, **columns)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | Path) -> Dataset:
    """Reads a data set from a file; nothing in it is executed or unpickled.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is no data set, is damaged, or comes from a newer gridjax; the message names it and the cure.
    """
    path = Path(path)
    try:
        stored = _unpacked(path)
        header = json.loads(stored.pop("header").tobytes())
    except FileNotFoundError:
        raise
    except Exception as error:  # a file can be wrong in more ways than zipfile, NumPy and json have one exception for
        raise ValueError(f"{path} is no data set, or is damaged ({_first(error)}): {_CURE}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} is no data set of gridjax: save one with gridjax.env.datasets.save")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {header.get('version')!r}, not {VERSION}: take the gridjax that wrote it"
        )
    if header.get("arrays") != _shapes(stored) or header.get("fingerprint") != _fingerprint(stored):
        raise ValueError(f"{path} is damaged, its arrays are not those that were saved: {_CURE}")
    try:
        return _from_arrays(stored, header)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({_first(error)}): {_CURE}") from error


def arrays(data: Dataset) -> dict[str, np.ndarray]:
    """What a file holds, without the header.

    Raises:
      ValueError: an episode whose next observations are not its observations.
    """
    seen: Any = data.transitions
    ends = np.append(np.diff(data.episode) != 0, True)
    if not np.array_equal(seen.next_observation[~ends], seen.observation[1:][~ends[:-1]], equal_nan=True):
        raise ValueError("within an episode, a row's next observation must be the next row's observation")
    out = {name: np.asarray(getattr(seen, name)) for name in ("observation", *_ROWS)}
    out["last_observation"] = seen.next_observation[ends]
    out |= {f"info/{name}": np.asarray(value) for name, value in seen.info.items()}
    lengths = np.bincount(data.episode, minlength=data.episodes).astype(np.int32)
    out |= {"log_probability": data.log_probability, "length": lengths}
    return out | {"behaviour": data.behaviour, "seed": data.seed}


def _unpacked(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, which take no more memory than it has bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its arrays are compressed, which `save` does not do")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _from_arrays(stored: Mapping[str, np.ndarray], header: dict[str, Any]) -> Dataset:
    lengths = stored["length"]
    _check(stored, lengths, len(header["behaviours"]))
    episode, step = _places(lengths)
    after = np.roll(stored["observation"], -1, axis=0)
    after[np.cumsum(lengths) - 1] = stored["last_observation"]
    info = {name.removeprefix("info/"): value for name, value in stored.items() if name.startswith("info/")}
    rows: dict[str, Any] = {name: stored[name] for name in ("observation", *_ROWS)}
    columns: dict[str, Any] = {"next_observation": after, "info": info, **rows}
    seen = Transitions(**columns)
    return Dataset(seen, stored["log_probability"], episode, step, stored["behaviour"], stored["seed"], header)


def _check(stored: Mapping[str, np.ndarray], lengths: np.ndarray, behaviours: int) -> None:
    """Refuses arrays that do not belong together; their fingerprint says only that they are those of the header."""
    rows, who = stored["observation"].shape[0], stored["behaviour"]
    an_episode = ("last_observation", "behaviour", "seed", "length")
    short = [name for name, a in stored.items() if a.shape[:1] != (len(lengths) if name in an_episode else rows,)]
    whole = lengths.dtype.kind == who.dtype.kind == "i" and 0 < lengths.min() <= lengths.max() <= rows
    if short or not whole or lengths.sum() != rows or not 0 <= who.min() <= who.max() < behaviours:
        raise ValueError("its columns, episodes and behaviours do not go together")


def _joined(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def _places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Episode and step of each row."""
    episode = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    first = np.cumsum(lengths) - lengths
    return episode, (np.arange(len(episode)) - first[episode]).astype(np.int32)


def _shapes(stored: Mapping[str, np.ndarray]) -> dict[str, list]:
    return {name: [a.dtype.str, list(a.shape)] for name, a in sorted(stored.items())}


def _fingerprint(stored: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, a in sorted(stored.items()):
        digest.update(json.dumps([name, a.dtype.str, list(a.shape)]).encode())
        digest.update(np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


def _sealed(header: dict[str, Any], stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    own = {"format": FORMAT, "version": VERSION, "arrays": _shapes(stored), "fingerprint": _fingerprint(stored)}
    return {**header, **own}


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
