"""Data sets of Minari (O. Younes et al., 2024), written from ours and read, through its own interface and offline.

    write_minari(data, "gridjax/volt-var-ieee13/mixed-v0")      # into MINARI_DATASETS_PATH
    data = read_minari("gridjax/volt-var-ieee13/mixed-v0")

Minari keeps episodes with one observation more than steps; costs, log probabilities and the environment's figures go
into their infos, behaviour and seed into their metadata, our header into the data set's. Others' data sets can be read
too where observations and actions are flat: they have no costs, and names that are numbers. Needs the extra `minari`.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np

from gridjax.env.datasets import Dataset, assemble
from gridjax.env.environment import Transitions

try:
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer
except ImportError as error:  # which names the package that is missing
    raise ImportError(f"{error}; install the extra: pip install 'gridjax[minari]'") from error

from gridjax.env.gym import action_space, join, observation_space, split

_HEADER = "gridjax"


def write_minari(
    data: Dataset, dataset_id: str, *, author: str | None = None, email: str | None = None
) -> minari.MinariDataset:
    """Makes a data set of Minari from ours, in its folder of local data sets.

    Args:
      data: ours.
      dataset_id: "(namespace/)name-v0".
      author: for its metadata.
      email: likewise.

    Returns:
      Minari's.

    Raises:
      ValueError: a name that Minari does not take, or one that exists already.
    """
    seen: Any = data.transitions
    counts = data.header["action_counts"]
    ends = np.append(np.flatnonzero(np.diff(data.episode)), len(data.episode) - 1)
    buffers = []
    for start, end in zip(np.append(0, ends[:-1] + 1), ends, strict=True):
        rows = slice(start, end + 1)
        info = {name: value[rows] for name, value in seen.info.items()}
        observed: Any = np.concatenate([seen.observation[rows], seen.next_observation[end : end + 1]])
        buffers.append(
            EpisodeBuffer(
                observations=observed,
                actions=split(counts, seen.action[rows]),
                rewards=seen.reward[rows],
                terminations=seen.terminated[rows],
                truncations=seen.truncated[rows],
                infos={**info, "cost": seen.cost[rows], "log_probability": data.log_probability[rows]},
            )
        )
    spec = _spec(data.header.get("made_by", {}))
    if dataset_id in minari.list_local_datasets():
        raise ValueError(
            f"there is a data set {dataset_id!r} already: take another version, or minari.delete_dataset it"
        )
    with warnings.catch_warnings():  # it recommends what it cannot know
        warnings.filterwarnings("ignore", ".*(is set to None|env_spec is None)", UserWarning)
        made = minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=spec,
            eval_env=spec,
            observation_space=observation_space(seen.observation.shape[1]),
            action_space=action_space(counts),
            algorithm_name=", ".join(data.header["behaviours"]),
            author=author,
            author_email=email,
            description=f"{data.header['environment']}: logged by gridjax, fingerprint {data.fingerprint}",
        )
    made.storage.update_metadata({_HEADER: json.dumps(data.header, allow_nan=False)})
    names = data.header["behaviours"]
    notes = [{"behaviour": names[b], "gridjax_seed": int(s)} for b, s in zip(data.behaviour, data.seed, strict=True)]
    made.storage.update_episode_metadata(notes)
    return made


def read_minari(source: str | minari.MinariDataset) -> Dataset:
    """Our data set from one of Minari's.

    Args:
      source: the name of a local data set (nothing is downloaded), or a data set.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: observations or actions that are not flat.
    """
    given = minari.load_dataset(source, download=False) if isinstance(source, str) else source
    text = given.storage.metadata.get(_HEADER)
    header = json.loads(text) if text else _foreign(given)
    counts = header["action_counts"]
    parts = [_part(episode, counts, len(header["cost_names"])) for episode in given.iterate_episodes()]
    notes = list(given.storage.get_episode_metadata(given.episode_indices))
    names = header["behaviours"]
    who = np.array([names.index(note.get("behaviour", names[0])) for note in notes])
    seed = np.array([note.get("gridjax_seed", 0) for note in notes])
    return assemble(parts, who, seed, header)


def _part(episode: Any, counts: list[int], costs: int) -> tuple[Transitions, np.ndarray]:
    seen = np.asarray(episode.observations, np.float32).reshape(len(episode.rewards) + 1, -1)
    steps = len(episode.rewards)
    info = {name: value for name, value in (episode.infos or {}).items() if np.shape(value)[:1] == (steps,)}
    info = info if costs else {}  # others' may be called the same and mean something else
    cost = info.pop("cost", np.zeros((steps, costs), np.float32))
    log_probability = info.pop("log_probability", np.full(steps, np.nan, np.float32))
    action = join(counts, episode.actions).reshape(steps, -1)
    columns: dict[str, Any] = {
        "observation": seen[:-1],
        "action": action.astype(np.int32 if all(counts) else np.float32),
        "reward": np.asarray(episode.rewards, np.float32),
        "cost": np.asarray(cost, np.float32),
        "next_observation": seen[1:],
        "terminated": np.asarray(episode.terminations, bool),
        "truncated": np.asarray(episode.truncations, bool),
        "info": info,
    }
    return Transitions(**columns), np.asarray(log_probability, np.float32)


def _foreign(given: minari.MinariDataset) -> dict[str, Any]:
    """A header for a data set that is not ours."""
    seen, act = given.observation_space, given.action_space
    discrete, whole = gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete
    if isinstance(act, discrete):
        counts = [int(act.n)]
    elif isinstance(act, whole):
        counts = np.ravel(act.nvec).tolist()
    elif isinstance(act, gymnasium.spaces.Box):
        counts = [0] * int(np.prod(act.shape))
    else:
        raise ValueError(
            f"{given.id}: actions in {act} are not flat; flatten them with a gymnasium wrapper and record anew"
        )
    if np.any(getattr(act, "start", 0)) or not isinstance(seen, gymnasium.spaces.Box):
        raise ValueError(f"{given.id}: takes flat observations, and positions from 0 on; flatten and record anew")
    return {
        "environment": given.env_spec.id if given.env_spec else given.id,
        "made_by": {"minari": given.id},
        "behaviours": ["unknown"],
        "observation_names": [f"observation {k}" for k in range(int(np.prod(seen.shape)))],
        "action_names": [f"action {k}" for k in range(len(counts))],
        "action_counts": counts,
        "cost_names": [],
    }


def _spec(made_by: dict[str, Any]) -> Any:
    """What Minari makes the environment anew from; None if that is not known."""
    if f"gridjax/{made_by.get('name')}" not in gymnasium.registry:
        return None
    options = {key: value for key, value in made_by.items() if key != "name"}
    spec = gymnasium.spec(f"gridjax/{made_by['name']}")
    spec.kwargs = {**spec.kwargs, **options}
    return spec
