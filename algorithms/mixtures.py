"""Data sets by name: a file of `gridjax collect`, or a mixture of behaviours that is collected on the spot.

A mixture is what `gridjax collect --env NAME --behaviour ... --episodes N` would write: on the training days (those of
seed 0), with the behaviours' seed 0. "mixed" has equal shares of random actions and of exploration around the feeder's
own controls (where the environment has some) and around the best constant action: no optimal behaviour is in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from gridjax.commands import Refused
from gridjax.dataset_commands import behaviour
from gridjax.env.behaviours import NAMES, named
from gridjax.env.collection import collect
from gridjax.env.datasets import Dataset, load, save
from gridjax.env.environment import Environment
from gridjax.env.tasks import feeder_of, make, names

WITH_CONTROLS = ("VoltVar", "Powergym", "DerControl")
EPISODES = 1000
DAYS = {"seed": 0, "days": 100, "hours": None}  # what `make` is asked for


def full_name(name: str) -> str:
    """An environment's name with its version, which may be left out."""
    known = names()
    for wanted in (name, f"{name}-v0"):
        if wanted in known:
            return wanted
    raise Refused(f"no environment {name!r}: choose one of {', '.join(known)}")


def shares(name: str, dataset: str) -> dict[str, float]:
    """The behaviours of a mixture: of "mixed", or of names with shares, as "random,noisy-classical=3"."""
    if dataset == "mixed":
        around = ("noisy-classical",) if name.split("-")[0] in WITH_CONTROLS else ()
        return {one: 1.0 for one in ("random", *around, "noisy-constant")}
    try:
        found = [behaviour(one) for one in dataset.split(",")]
    except argparse.ArgumentTypeError as error:
        what = f'take a .npz file, "mixed", or some of {", ".join(NAMES)}, as in random,noisy-classical=3'
        raise Refused(f"--dataset {dataset}: {error}; {what}") from error
    if len(dict(found)) < len(found):
        raise Refused(f"--dataset {dataset}: a behaviour is named twice; give each one share")
    return dict(found)


def source(
    name: str, dataset: str, given: Mapping[str, Any], episodes: int | None
) -> tuple[dict[str, Any], Dataset | None]:
    """What the environment is made from, and the data where they are in a file.

    Args:
      name: of the environment.
      dataset: a .npz file, or a mixture.
      given: options of the environment.
      episodes: of a mixture.

    Returns:
      The arguments of `gridjax.env.tasks.make`, and the data set or None.
    """
    if not dataset.endswith(".npz"):
        shares(name, dataset)
        return {"name": name, **DAYS, **given}, None
    if episodes is not None:
        raise Refused("--episodes is of a mixture that is collected, not of a file")
    data = load(dataset)
    made_by = data.header.get("made_by") or {"name": name, **DAYS, **given}
    for key, value in {"name": name, **given}.items():
        if made_by.get(key) != value:
            raise Refused(f"{dataset} was logged with {key} {made_by.get(key)!r}, not {value!r}: ask for the same")
    return made_by, data


def environment(made_by: Mapping[str, Any], errors: Console) -> tuple[Environment, Any]:
    """The environment and its parameters."""
    with errors.status("making the environment"):
        try:
            return make(**made_by)
        except TypeError as error:  # an option that the task does not have
            raise Refused(f"{made_by['name']}: {error}; see gridjax.env.tasks.make") from error


def collected(
    env: Environment, params: Any, made_by: Mapping[str, Any], dataset: str, episodes: int, place: Path, errors: Console
) -> Dataset:
    """A mixture's data set, kept at `place`: what is there already is taken if it is the same mixture, else refused."""
    search, key = jax.random.split(jax.random.key(0))
    wanted = shares(made_by["name"], dataset)
    if place.exists():
        data = load(place)
        asked = {
            "made_by": made_by, "behaviours": list(wanted), "shares": list(wanted.values()), "episodes": episodes,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
        }  # fmt: skip
        there = {**data.header, "episodes": data.episodes}
        other = [f"{what} {there.get(what)}, now {now}" for what, now in asked.items() if there.get(what) != now]
        if other:
            raise Refused(f"{place} is another data set ({'; '.join(other)}): take another --out")
        return data
    with errors.status("making the behaviours"):
        chosen = named(wanted, env, params, feeder_of(**made_by), search)
    data = collect(env, params, chosen, key, episodes, made_by=made_by, progress=errors.is_terminal)
    save(place, data)
    unsolved = int(data.transitions.cost[:, -1].sum())
    if unsolved:
        errors.print(Text(f"gridjax: {unsolved} of {len(data.episode)} logged steps were not solved"), soft_wrap=True)
    return data


def check_names(data: Dataset, env: Environment) -> None:
    """Refuses a data set whose columns are not those of the environment."""
    for what in ("observation_names", "action_names", "cost_names"):
        there, wanted = data.header.get(what), list(getattr(env, what))
        if there is not None and list(there) != wanted:
            raise Refused(f"the data set is of another environment: its {what} are {there}, not {wanted}")
