"""Utilities with grids and logs of their own, ready to learn together.

Each has its environment, its logged days, and the same agent, whose networks treat all devices alike so that their
parameters fit every feeder. Rewards are divided by half the price of a violation, which grows with the feeder, so that
critics see numbers of like size everywhere; the price is what `docs/baselines.md` takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from algorithms import mixtures
from algorithms.batches import Batch, from_dataset, rows
from algorithms.evaluation import Figures, evaluate, held_out, prices
from algorithms.learning import Agent
from algorithms.spaces import Space, space_of
from federated.learning import agents
from federated.settings import Owner, Settings
from federated.work import Clients
from gridjax.commands import Refused
from gridjax.env.datasets import Dataset
from gridjax.env.device_view import device_view
from gridjax.env.environment import Environment
from gridjax.env.tasks import feeder_of

HELD_OUT = 1_000_003  # seed of the held-out days, apart from those that logs are from


@dataclass(frozen=True)
class Utility:
    """An owner with what it owns.

    Attributes:
      owner: its settings.
      made_by: the arguments of `gridjax.env.tasks.make`.
      env: its environment.
      space: with a view of its devices.
      price: (constraints,) of violations, in the units of the reward.
      batches: a client's transitions each.
      data: its logs.
    """

    owner: Owner
    made_by: dict[str, Any]
    env: Environment
    space: Space
    price: np.ndarray
    batches: tuple[Batch, ...]
    data: Dataset


def utility(owner: Owner, folder: Path, errors: Console) -> Utility:
    """Makes a utility; its logs are collected into the folder unless they are there.

    Raises:
      Refused: an environment whose devices cannot share a network, or fewer days than clients.
    """
    name, options = mixtures.full_name(owner.env), dict(owner.options)
    given = options if owner.dataset.endswith(".npz") else {"seed": owner.seed, **options}
    episodes = None if owner.dataset.endswith(".npz") else owner.episodes
    made_by, data = mixtures.source(name, owner.dataset, given, episodes)
    env, params = mixtures.environment(made_by, errors)
    if data is None:
        data = mixtures.collected(
            env, params, made_by, owner.dataset, owner.episodes, folder / f"{owner.name}.npz", errors
        )
    mixtures.check_names(data, env)
    try:
        space = space_of(env, view=device_view(env, params, feeder_of(**made_by)))
    except ValueError as error:
        raise Refused(f"{owner.name}: {error}") from error
    price = prices(env)
    batch = from_dataset(data, space, reward_scale=scale(price), prices=price)
    return Utility(owner, made_by, env, space, price, dealt(batch, data, owner), data)


def scale(price: np.ndarray) -> float:
    """The factor of the rewards that networks learn; 1 where violations have no price."""
    return 2.0 / price.max() if price.any() else 1.0


def dealt(batch: Batch, data: Dataset, owner: Owner) -> tuple[Batch, ...]:
    """The transitions dealt out episode by episode, one after the other, to the owner's clients."""
    if data.episodes < owner.clients:
        raise Refused(f"{owner.name}: {data.episodes} episodes for {owner.clients} clients: give each at least one")
    whose = np.unique(data.episode, return_inverse=True)[1] % owner.clients
    return tuple(rows(batch, jnp.asarray(np.flatnonzero(whose == k))) for k in range(owner.clients))


def clients_of(one: Utility, agent: Agent, config: Any, key: jax.Array, *, private: bool = False) -> Clients:
    """Its clients with new networks, the same for all whose key is the same; `private` as of `agents`."""
    return agents(agent, config, one.space, list(one.batches), key, private=private)


def configured(agent: Agent, settings: Settings) -> Any:
    """The agent's config with networks for any feeder."""
    default = agent.config(body="device")
    known = {f.name for f in dataclasses.fields(default)}
    for name in settings.agent:
        if name not in known:
            raise Refused(f"[agent] {name}: {agent.name} has no such field; known are {', '.join(sorted(known))}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.agent.items()}
    if "steps" in known and "steps" not in values:
        values["steps"] = float(settings.rounds * settings.steps)
    try:
        return dataclasses.replace(default, **values)
    except TypeError as error:
        raise Refused(f"[agent]: {error}") from error


def played(one: Utility, agent: Agent, config: Any, states: Any, held: tuple[Environment, Any, jax.Array]) -> Figures:
    """Held-out days, as from `days_of`, under agents (agents, ...), each day once for every one."""
    env, params, keys = held
    return evaluate(env, params, agent, config, one.space, states, keys)


def days_of(one: Utility, days: int) -> tuple[Environment, Any, jax.Array]:
    """The held-out days of a utility: environment, parameters and keys."""
    given: Mapping[str, Any] = {k: v for k, v in one.made_by.items() if k not in ("name", "seed", "days")}
    return held_out(one.made_by["name"], (HELD_OUT,), days, **given)


def score(one: Utility, figures: Figures) -> np.ndarray:
    """Return less priced violations of each day, (agents, days)."""
    return figures["return"] - figures["cost"] @ one.price
