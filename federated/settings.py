"""The configuration of `gridjax federate`: a TOML file, read as data and refused clearly.

rounds = 20                  # all keys with their defaults are the fields of `Settings`
algorithm = "rebrac"

[agent]                      # fields of the algorithm's config
hidden = [16, 16]

[privacy]                    # fields of `Privacy`; without this table nothing is clipped, noised or claimed
epsilon = 8.0

[[utilities]]                # fields of `Owner`, at least two such tables or one with several clients
name = "north"
env = "DerControl-ieee13"
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from federated import aggregation, compression
from federated.aggregation import Rule
from federated.compression import Compression
from federated.mechanism import Adjacency
from federated.round import fed_adam, fed_avg, fed_avg_m, fed_yogi
from federated.statement import Randomness
from gridjax.commands import Refused

UNITS = ("client", "trajectory")
OPTIMISERS = {"fed_avg": fed_avg, "fed_avg_m": fed_avg_m, "fed_adam": fed_adam, "fed_yogi": fed_yogi}
RULES: dict[str, Rule] = {
    "mean": aggregation.Mean(), "weighted": aggregation.Weighted(), "median": aggregation.Median(),
    "trimmed_mean": aggregation.TrimmedMean(),
}  # fmt: skip


@dataclass(frozen=True)
class Owner:
    """A utility.

    Attributes:
      name: a word.
      env: its environment, such as DerControl-ieee13.
      dataset: its logs, a file of `gridjax collect` or behaviours to collect from, as `gridjax train --dataset` has it.
      episodes: to collect.
      seed: of the days they are logged on.
      options: of the environment.
      clients: among how many owners of data its episodes are dealt out; 1 is the utility itself.
    """

    name: str
    env: str
    dataset: str = "holding-nothing"
    episodes: int = 100
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    clients: int = 1


@dataclass(frozen=True)
class Privacy:
    """What is promised to every client, or to every trajectory of a client.

    Attributes:
      epsilon: the budget at `delta`; infinite is none.
      delta: None is a tenth of one over the clients, or over the trajectories of the utility that has most.
      noise_multiplier: z, of trajectories that of each sum; None is the least that allows all rounds within epsilon.
      bound: of an update's norm, or "adaptive"; of trajectories that of each one's share in a gradient.
      adjacency: what neighbours are, see `federated.mechanism`.
      unit: "client": noise on the clients' sum; "trajectory": noise inside each utility, whose clients is 1.
      randomness: "research": JAX's generator; "hardened": integers with noise from the operating system.
      drawn: probability of each trajectory to be drawn for an update.
    """

    epsilon: float = math.inf
    delta: float | None = None
    noise_multiplier: float | None = None
    bound: float | str = 1.0
    adjacency: str = "zero-out"
    unit: str = "client"
    randomness: str = "research"
    drawn: float = 0.1


@dataclass(frozen=True)
class Settings:
    """All of a run.

    Attributes:
      utilities: who takes part.
      rounds: how many.
      steps: updates of each client in a round.
      batch_size: rows of each update.
      algorithm: the agents'.
      agent: fields of its config.
      shared: learners of its state that are shared.
      optimiser: of the server: fed_avg, fed_avg_m, fed_adam or fed_yogi.
      rate: its rate.
      prox: FedProx's mu.
      rule: mean, weighted, median or trimmed_mean.
      bits: of quantised updates; None sends them whole.
      top_share: of the entries that are sent; None sends all.
      share: of each utility's clients that are drawn for a round.
      seed: of everything random but the noise.
      days: held-out days of the evaluation of each utility; 0 goes without.
      every: rounds between checkpoints; under privacy each round has one.
      privacy: what is promised; None promises nothing.
    """

    utilities: tuple[Owner, ...]
    rounds: int = 20
    steps: int = 50
    batch_size: int = 256
    algorithm: str = "rebrac"
    agent: dict[str, Any] = field(default_factory=dict)
    shared: tuple[str, ...] = ("actor",)
    optimiser: str = "fed_avg"
    rate: float = 1.0
    prox: float = 0.0
    rule: str = "mean"
    bits: int | None = None
    top_share: float | None = None
    share: float = 1.0
    seed: int = 0
    days: int = 100
    every: int = 5
    privacy: Privacy | None = None

    @property
    def compression(self) -> Compression:
        """Of what clients send."""
        if self.bits is not None:
            return compression.Quantised(self.bits)
        return compression.Whole() if self.top_share is None else compression.TopK(self.top_share)

    @property
    def clients(self) -> int:
        """Of all utilities."""
        return sum(owner.clients for owner in self.utilities)


def read(path: Path) -> Settings:
    """The settings of a file.

    Raises:
      Refused: it is no TOML, or a key is unknown, missing or makes no sense; the message names it.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is no TOML file: {error}") from error
    utilities = given.pop("utilities", [])
    if not isinstance(utilities, list) or not utilities:
        raise Refused(f"{path}: no utilities; begin each with [[utilities]] and give it a name and an env")
    owners = tuple(_filled(Owner, one, f"{path}: utilities {k + 1}") for k, one in enumerate(utilities))
    privacy = given.pop("privacy", None)
    if privacy is not None:
        privacy = _filled(Privacy, privacy, f"{path}: privacy")
    given = {**given, "utilities": owners, "privacy": privacy}
    settings = _filled(Settings, given, str(path))
    _check(settings, path)
    return settings


def _filled(kind: type, given: Any, where: str) -> Any:
    """A dataclass from a table."""
    if not isinstance(given, dict):
        raise Refused(f"{where}: a table of keys is wanted, not {given!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in given.items():
        if name not in fields:
            raise Refused(f"{where}: no key {name!r}; known are {', '.join(fields)}")
        if not _fits(value, str(fields[name].type)):
            raise Refused(f"{where}: {name} = {value!r} is not of type {fields[name].type}")
    for name, f in fields.items():
        if name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise Refused(f"{where}: {name} is missing")
    return kind(**{name: _value(value, str(fields[name].type)) for name, value in given.items()})


def _fits(value: Any, kind: str) -> bool:
    kinds = {
        "str": str, "int": int, "float": (int, float), "dict[str, Any]": dict, "None": type(None),
        "tuple[str, ...]": (list, tuple), "tuple[Owner, ...]": tuple, "Privacy": Privacy,
    }  # fmt: skip
    if kind == "tuple[str, ...]" and isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    return not isinstance(value, bool) and any(isinstance(value, kinds[one]) for one in kind.split(" | "))


def _value(value: Any, kind: str) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return float(value) if isinstance(value, int) and "float" in kind else value


def _check(s: Settings, path: Path) -> None:
    """Refuses numbers and names that make no sense."""
    positive = {"rounds": s.rounds, "steps": s.steps, "batch_size": s.batch_size, "every": s.every, "rate": s.rate}
    for owner in s.utilities:
        positive |= {f"{owner.name}: clients": owner.clients, f"{owner.name}: episodes": owner.episodes}
        if not owner.name.isidentifier() or owner.name == "checkpoints":
            raise Refused(f"{path}: name = {owner.name!r}: take a word of letters, digits and _, and not checkpoints")
    for name, number in positive.items():
        if not 0 < number < math.inf:
            raise Refused(f"{path}: {name} = {number}: take a positive number")
    if len({owner.name for owner in s.utilities}) < len(s.utilities):
        raise Refused(f"{path}: two utilities of one name: give each its own")
    if s.clients < 2:
        raise Refused(f"{path}: one client alone is no federation: name more utilities, or give one more clients")
    for name, value, known in (("optimiser", s.optimiser, OPTIMISERS), ("rule", s.rule, RULES)):
        if value not in known:
            raise Refused(f"{path}: no {name} {value!r}: choose one of {', '.join(known)}")
    if not 0 < s.share <= 1:
        raise Refused(f"{path}: share = {s.share:g}: take one above 0, at most 1")
    for name, number in (("days", s.days), ("prox", s.prox)):
        if not 0 <= number < math.inf:
            raise Refused(f"{path}: {name} = {number:g}: take 0 or more")
    if not s.shared:
        raise Refused(f"{path}: shared = []: name a learner of the agent's state, such as actor")
    _check_compression(s, path)
    if s.privacy is not None:
        _check_privacy(s.privacy, path)
        _check_tiers(s, s.privacy, path)


def _check_compression(s: Settings, path: Path) -> None:
    if s.bits is not None and s.top_share is not None:
        raise Refused(f"{path}: bits and top_share: take one of them")
    for name, given in (("bits", s.bits), ("top_share", s.top_share)):
        try:
            _ = given is not None and s.compression
        except ValueError as error:
            raise Refused(f"{path}: {name} = {given}: {error}") from error


def _check_privacy(p: Privacy, path: Path) -> None:
    for name, number in (("epsilon", p.epsilon), ("noise_multiplier", p.noise_multiplier), ("bound", p.bound)):
        if isinstance(number, float) and not number > 0:
            raise Refused(f"{path}: {name} = {number:g}: take a positive number")
    if p.delta is not None and not 0 < p.delta < 1:
        raise Refused(f"{path}: delta = {p.delta:g}: take one above 0 and below 1, or leave it out")
    if p.adjacency not in get_args(Adjacency):
        raise Refused(f"{path}: no adjacency {p.adjacency!r}: choose one of {', '.join(get_args(Adjacency))}")
    if p.noise_multiplier is None and not math.isfinite(p.epsilon):
        raise Refused(f"{path}: privacy needs an epsilon or a noise_multiplier")
    if isinstance(p.bound, str) and p.bound != "adaptive":
        raise Refused(f'{path}: bound = {p.bound!r}: take a number or "adaptive"')


def _check_tiers(s: Settings, p: Privacy, path: Path) -> None:
    """Refuses units and randomness that do not go with the rest."""
    for name, value, known in (("unit", p.unit, UNITS), ("randomness", p.randomness, get_args(Randomness))):
        if value not in known:
            raise Refused(f"{path}: no {name} {value!r}: choose one of {', '.join(known)}")
    if not 0 < p.drawn <= 1:
        raise Refused(f"{path}: drawn = {p.drawn:g}: take a probability above 0, at most 1")
    if p.unit == "trajectory":
        if isinstance(p.bound, str) or p.randomness != "research":
            raise Refused(f'{path}: unit = "trajectory" takes a number as bound, and randomness = "research"')
        for owner in s.utilities:
            if owner.clients != 1:
                raise Refused(f'{path}: {owner.name}: unit = "trajectory" protects what one client owns: clients = 1')
    if p.randomness == "hardened" and (isinstance(p.bound, str) or s.share != 1):
        raise Refused(f'{path}: randomness = "hardened" takes a number as bound, and share = 1')
