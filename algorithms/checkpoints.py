"""Checkpoints of training: whole, or not there.

A run's folder has `checkpoints/update-000012000/`, each with

    header.json   what was trained, on what, how, by which version, and how far
    states/       the states of all seeds with their optimisers, as Orbax writes arrays
    SHA256SUMS    of both, as `sha256sum -c` reads it

A checkpoint is written beside its place under a name that begins with a dot, brought to the disk, and renamed when it
is whole; so a run that is killed at any moment leaves only whole ones. What is damaged afterwards is found by its sums.
Nothing in a checkpoint is executed or unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax

from algorithms.agents import AGENTS
from algorithms.learning import Agent
from algorithms.spaces import Space
from algorithms.training import begin, seed_keys
from gridjax.env.datasets import Dataset

FORMAT, VERSION = "gridjax agent", 1
SAME = ("agent", "config", "space", "run", "dataset", "environment")  # what a run that is taken up must agree in
_NAME = re.compile(r"update-(\d+)")
_LONGEST = 60  # of a value in a message


def header(
    agent: Agent,
    config: Any,
    space: Space,
    key: jax.Array,
    data: Dataset,
    *,
    environment: Mapping[str, Any],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint says of its agent, as JSON has it.

    Args:
      agent: the algorithm.
      config: of the agent.
      space: of the environment.
      key: of `algorithms.training.train`.
      data: the data set.
      environment: the arguments of `gridjax.env.tasks.make`, with "name".
      run: whatever else decides the outcome: seeds, batch_size, every, reward_scale and so on.
    """
    known = {name: data.header[name] for name in ("behaviours", "shares", "made_by") if name in data.header}
    sizes = {"episodes": data.episodes, "rows": len(data.episode)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "agent": agent.name,
        "config": _plain(config),
        "space": _plain(space),
        "run": {**_plain(dict(run)), "key": np.asarray(jax.random.key_data(key)).tolist(), "x64": _x64()},
        "dataset": {"fingerprint": data.fingerprint, **sizes, **known},
        "environment": dict(environment),
        "source": source_version(),
        "versions": _versions(),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps one header's run from being taken up by another: a text each, empty where nothing does.

    Versions of the programs are not among it; see `other_versions`.
    """
    before, after = (dict(_leaves({name: h.get(name) for name in SAME})) for h in (old, new))
    both = {**before, **after}
    return [
        f"{name}: {_short(before.get(name, 'not there'))}, now {_short(after.get(name, 'not there'))}"
        for name in both
        if before.get(name, None) != after.get(name, None) or (name in before) != (name in after)
    ]


def other_versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Programs whose versions differ, by which numbers may differ in their last digits."""
    both = {"gridjax's source": (old["source"], new["source"])}
    both |= {name: (old["versions"].get(name), now) for name, now in new["versions"].items()}
    return [f"{name} {before}, now {now}" for name, (before, now) in both.items() if before != now]


def save(folder: str | Path, header: Mapping[str, Any], states: Any, *, keep: int = 3) -> Path:
    """Writes a checkpoint and removes the oldest ones.

    Args:
      folder: of the run; made if it is not there.
      header: see `header`.
      states: of all seeds, leading axis (seeds,); each has `step`.
      keep: so many stay, this one included.

    Returns:
      The checkpoint's folder.

    Raises:
      ValueError: keep is not positive.

    Guarantees:
      A process that is killed in here leaves the checkpoints there were before, this one whole, or both.
    """
    if keep < 1:
        raise ValueError(f"keep {keep}: at least one checkpoint stays")
    updates = int(states.step[0])
    root = Path(folder) / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    place = root / f"update-{updates:09d}"
    part = _beside(place)
    part.mkdir()
    with orbax.StandardCheckpointer() as writer:
        writer.save(part.resolve() / "states", jax.tree.map(np.asarray, states))
    text = json.dumps({**header, "updates": updates}, indent=1)
    (part / "header.json").write_text(text + "\n", encoding="utf-8")
    lines = [f"{_sum(path)}  {path.relative_to(part).as_posix()}\n" for path in _files(part)]
    (part / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    for path in (*_files(part), part / "SHA256SUMS", *(p for p in part.rglob("*") if p.is_dir()), part):
        _sync(path)
    if place.exists():  # a damaged one, or one that is written again
        _remove(place)
    os.rename(part, place)
    _sync(root)
    for old in list(_found(root))[keep:]:
        _remove(old)
    return place


def check(path: str | Path, kind: str = FORMAT) -> dict[str, Any]:
    """The header of a checkpoint of this format, every byte of which is as it was written.

    Raises:
      ValueError: it is half written, damaged, or not one of this gridjax; the message names it and what is wrong.
    """
    path = Path(path)
    try:
        lines = (path / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{path} is no whole checkpoint: it has no SHA256SUMS that can be read") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {file.relative_to(path).as_posix(): file for file in _files(path)}
    if "header.json" not in sums or set(sums) - set(there):
        missing = sorted(({"header.json"} | set(sums)) - (set(there) & set(sums)))
        raise ValueError(f"{path} is no whole checkpoint: {missing[0]} is missing")
    for name, file in there.items():
        if sums.get(name) != _sum(file):
            raise ValueError(f"{path} is damaged: {name} is not what was written")
    out = json.loads((path / "header.json").read_text(encoding="utf-8"))
    if out.get("format") != kind or out.get("version") != VERSION:
        raise ValueError(f"{path} is of format {out.get('format')!r} {out.get('version')!r}, not {kind!r} {VERSION}")
    return out


def newest(folder: str | Path, kind: str = FORMAT) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The last whole checkpoint of a run.

    Args:
      folder: of the run, or a checkpoint of one.
      kind: the format.

    Returns:
      Its folder, its header, and of each newer one what is wrong with it; or None if there is no checkpoint at all.

    Raises:
      ValueError: there are checkpoints, but none is whole.
    """
    folder = Path(folder)
    places = [folder] if _NAME.fullmatch(folder.name) else list(_found(folder / "checkpoints"))
    wrong: list[str] = []
    for place in places:
        try:
            return place, check(place, kind), wrong
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(f"{folder} has no whole checkpoint: {'; '.join(wrong)}. Train it anew in another folder")
    return None


def set_aside(folder: str | Path, after: int) -> None:
    """Renames the checkpoints of more than `after` updates, which are damaged, so that they count no longer."""
    for place in _found(Path(folder) / "checkpoints"):
        if int(place.name.removeprefix("update-")) > after:
            aside = place.with_name(f"damaged-{place.name}")
            if aside.exists():
                _remove(aside)
            os.rename(place, aside)


def restore(path: str | Path, agent: Agent, config: Any, space: Space, seeds: int) -> Any:
    """The states of a checkpoint that `check` has passed, leading axis (seeds,).

    Raises:
      ValueError: they are not such an agent's.
    """
    return restored(path, shapes(agent, config, space, seeds), f"this {agent.name}")


def restored(path: str | Path, like: Any, what: str) -> Any:
    """The arrays of a checkpoint that `check` has passed, of the shapes and types of `like`.

    Raises:
      ValueError: they are not such.
    """
    target = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like)
    try:
        with orbax.StandardCheckpointer() as reader:
            found = reader.restore(Path(path).resolve() / "states", target)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not of {what}: take the gridjax that wrote it ({error})") from error
    wanted = [(a.shape, a.dtype) for a in jax.tree.leaves(target)]
    if [(a.shape, a.dtype) for a in jax.tree.leaves(found)] != wanted:
        raise ValueError(f"{path} is not of {what}'s networks: take the gridjax that wrote it")
    return jax.tree.map(lambda a: jnp.array(a, copy=True), found)


def shapes(agent: Agent, config: Any, space: Space, seeds: int) -> Any:
    """The states' shapes and types; nothing is computed.

    Raises:
      ValueError: an agent that is not for such a space.
    """
    return jax.eval_shape(lambda: begin(agent, space, seed_keys(jax.random.key(0), seeds), numbers(config)))


def load_agent(folder: str | Path) -> tuple[Agent, Any, Space, Any, dict[str, Any]]:
    """An agent as it was trained, without the data set.

    Args:
      folder: of a run, of which the last whole checkpoint is taken with a warning if a newer one is damaged; or a
        checkpoint.

    Returns:
      The agent, its config, its space, the states (seeds,), and the header, whose "environment" has the arguments of
      `gridjax.env.tasks.make`.

    Raises:
      ValueError: there is no whole checkpoint, or it is of an unknown agent.
    """
    found = newest(folder)
    if found is None:
        raise ValueError(f"{folder} has no checkpoint: `gridjax train --out {folder}` makes them")
    path, head, wrong = found
    for text in wrong:
        warnings.warn(f"{text}; {path.name} is taken", stacklevel=2)
    if head["agent"] not in AGENTS:
        raise ValueError(f"{path} is of agent {head['agent']!r}, not one of {', '.join(AGENTS)}")
    agent = AGENTS[head["agent"]]
    config, space = rebuilt(head["config"]), rebuilt(head["space"])
    return agent, config, space, restore(path, agent, config, space, head["run"]["seeds"]), head


def numbers(config: Any) -> Any:
    """A config's floating fields in single precision, as training takes them."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)


def rebuilt(value: Any) -> Any:
    """What `header` made plain: the config or the space.

    Raises:
      ValueError: a class that is none of gridjax's.
    """
    if isinstance(value, dict) and "class" in value:
        module, _, name = value["class"].rpartition(".")
        ours = module.startswith(("algorithms.", "gridjax.env."))
        found = getattr(importlib.import_module(module), name, None) if ours else None
        if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
            raise ValueError(f"{value['class']!r} is no class of this gridjax: take the one that wrote it")
        return found(**{field: rebuilt(given) for field, given in value["fields"].items()})
    if isinstance(value, dict) and "array" in value:
        return jnp.asarray(value["array"], jnp.float32)
    return tuple(rebuilt(v) for v in value) if isinstance(value, list) else value


def source_version() -> str:
    """The commit that the package is checked out at, with "-dirty" where files differ from it; else its version."""
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass  # git is not installed here, or refuses the checkout
    return version("gridjax")


def _plain(value: Any) -> Any:
    """As JSON has it, with the names of the dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", "fields": fields}
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | jax.Array | np.generic):
        plain = np.asarray(value).tolist()
        return {"array": plain} if np.ndim(value) else plain
    return value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested dictionaries with their paths."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, name if key == "fields" else f"{name}.{key}".removeprefix("."))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "\u2026"


def _x64() -> bool:
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]


def _versions() -> dict[str, str]:
    names = ("gridjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _found(root: Path) -> Iterator[Path]:
    """The checkpoints there are, the newest first, whole or not."""
    named = [(int(match[1]), path) for path in root.glob("update-*") if (match := _NAME.fullmatch(path.name))]
    return (path for _, path in sorted(named, reverse=True))


def _files(path: Path) -> list[Path]:
    """All files that sums are taken of."""
    return sorted(p for p in path.rglob("*") if p.is_file() and p.name != "SHA256SUMS" and p.name[0] != ".")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(place: Path) -> Path:
    """A name for what is not whole, with nothing there."""
    part = place.with_name(f".{place.name}.part")
    if part.exists():
        shutil.rmtree(part)
    return part


def _remove(place: Path) -> None:
    """Removes a checkpoint, so that it is never there by half."""
    gone = place.with_name(f".{place.name}.gone")
    if gone.exists():
        shutil.rmtree(gone)
    os.rename(place, gone)
    shutil.rmtree(gone)


def _sync(path: Path) -> None:
    """Brings a file or a folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
