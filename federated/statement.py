"""What a run promises of privacy, in fields that a test can recompute and in words that a lawyer can read.

A statement is made from what was really released (the ledger of `federated.accounting`), never from what was planned.
It names what the promise is about (the unit, the neighbours), what it costs (epsilon at delta), what it rests on (the
randomness, whom one must trust), and what lies outside it (everything else that was released). A run without noise
promises nothing, and its statement says so.
"""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from federated.accounting import Ledger, accountant_version
from federated.mechanism import Mechanism
from federated.sampling import Everyone, Poisson

Unit = Literal["client", "trajectory", "customer-day"]
Randomness = Literal["research", "hardened"]
PLURALS = {"client": "clients", "trajectory": "trajectories", "customer-day": "customer-days"}
FORMAT = 1


@dataclass(frozen=True)
class PrivacyStatement:
    """A run's claim; make it with `stated`.

    Attributes:
      unit: whose data is protected: all of one client, one trajectory, or one customer-day.
      ledger: mechanisms and rounds; they hold adjacency, sampler, number of units and noise multiplier.
      clip_norm: C, where it is adaptive what it has come to after the last round; infinity where nothing was clipped
        (and claimed).
      adaptive: whether C followed the norms, by noisy counts that the noise multiplier covers.
      delta: of the claim.
      epsilon: of the claim; infinity without noise.
      accountant: what computed it, with its version; "no accountant" where nothing is claimed.
      randomness: "research" or "hardened".
      trusted: who must be trusted with what, a sentence each.
      released: what was released to whom under this claim, such as ("the parameters after each round, to all clients").
      unaccounted: what else was released, and is NOT covered: normalisers, metrics, early stopping, settings chosen.
    """

    unit: Unit
    ledger: Ledger
    clip_norm: float
    adaptive: bool
    delta: float
    epsilon: float
    accountant: str
    randomness: Randomness
    trusted: tuple[str, ...]
    released: tuple[str, ...]
    unaccounted: tuple[str, ...]

    def __post_init__(self):
        if self.unit not in get_args(Unit) or self.randomness not in get_args(Randomness):
            raise ValueError(
                f"unit {self.unit!r} and randomness {self.randomness!r}: take one of {', '.join(get_args(Unit))}, and "
                f"one of {', '.join(get_args(Randomness))}"
            )
        if not self.ledger.entries:
            raise ValueError("a statement is about what was released, and this ledger is empty: state it after a round")
        if not (self.clip_norm > 0 and 0 < self.delta < 1 and self.epsilon >= 0):
            raise ValueError(
                f"clip norm {self.clip_norm}, delta {self.delta} and epsilon {self.epsilon}: a positive clip norm, a "
                "delta between 0 and 1 and an epsilon of 0 or more are wanted"
            )
        if self.claims and math.isinf(self.clip_norm):
            raise ValueError("updates that were not clipped have no bounded sensitivity: state the norm C of the clip")
        if not self.trusted or not self.released:
            raise ValueError("a statement names who must be trusted with what, and what was released to whom")
        if {m.discrete for m, _ in self.ledger.entries} != {self.randomness == "hardened"}:
            raise ValueError("hardened randomness is discrete noise in every round, and research randomness in none")

    @property
    def claims(self) -> bool:
        """Whether anything is promised."""
        return math.isfinite(self.epsilon)

    @property
    def rounds(self) -> int:
        """Rounds of all mechanisms."""
        return sum(rounds for _, rounds in self.ledger.entries)

    def text(self) -> str:
        """The statement in plain words, ending with a newline."""
        parts = [("Privacy statement", [self._promise()]), ("What was done", self._done())]
        parts.append(
            (
                "Randomness",
                [_RANDOMNESS[self.randomness]] if self.claims else ["Nothing rests on it, since nothing is claimed."],
            )
        )
        parts += [("Who must be trusted", list(self.trusted)), ("What was released, and to whom", list(self.released))]
        parts.append(("Released besides, and not covered by this statement", list(self.unaccounted) or ["Nothing."]))
        return "\n".join(f"{head}\n" + "".join(map(_item, lines)) for head, lines in parts)

    def to_json(self) -> str:
        """The fields as JSON text; an infinite epsilon or clip norm is the string "infinite"."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data |= {"format": FORMAT, "ledger": self.ledger.to_dict()}
        data |= {name: "infinite" for name in _INFINITE if math.isinf(data[name])}
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PrivacyStatement:
        """What `to_json` wrote; nothing of it is run.

        Raises:
          ValueError: no JSON, fields that are missing or unknown, or values that make no sense.
        """
        data = _parsed(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != {*names, "format"} or data["format"] != FORMAT:
            raise ValueError(
                f"no privacy statement of format {FORMAT}: its fields are {sorted(names)} and format; "
                f"this has {sorted(data) if isinstance(data, dict) else type(data).__name__}"
            )
        del data["format"]
        data |= {name: math.inf for name in _INFINITE if data[name] == "infinite"}
        for name, kind in _KINDS.items():
            if not isinstance(data[name], kind) or (isinstance(data[name], bool) and kind is not bool):
                raise ValueError(f"a statement's {name} is {data[name]!r}: another type is wanted")
        for name in ("trusted", "released", "unaccounted"):
            if not all(isinstance(line, str) for line in data[name]):
                raise ValueError(f"a statement's {name} is {data[name]!r}: a list of sentences is wanted")
            data[name] = tuple(data[name])
        data["ledger"] = Ledger.from_dict(data["ledger"])
        return cls(**data)

    def _promise(self) -> str:
        bare = sum(rounds for m, rounds in self.ledger.entries if not m.noise_multiplier)
        if not self.claims:
            why = f"{bare} of {self.rounds} rounds were released without noise" if bare else "the cost has no bound"
            return f"NO PRIVACY IS CLAIMED: {why}. What was released may reveal any part of the data."
        return (
            f"Differential privacy for each {self.unit}: epsilon {_upwards(self.epsilon)} at delta {self.delta:g}, "
            f"over {self.rounds} rounds. Whatever is concluded from all that was released under this claim would be "
            f"concluded with nearly the same probability had one {self.unit} {_NEIGHBOURS[self._adjacency]}: the "
            f"probabilities differ by a factor of at most {_factor(self.epsilon)}, apart from cases whose probability "
            f"is {self.delta:g}."
        )

    def _done(self) -> list[str]:
        follows = ", which followed the updates' norms (this is what it came to)" if self.adaptive else ""
        lines = [f"Every update was clipped to a Euclidean norm of {self.clip_norm:g}{follows}."]
        if math.isinf(self.clip_norm):
            lines = ["Nothing was clipped."]
        for m, rounds in self.ledger.entries:
            noise = f"{'discrete ' if m.discrete else ''}Gaussian noise of {m.noise_multiplier:g} times the clip norm"
            if not m.noise_multiplier:
                noise = "no noise"
            lines.append(f"{rounds} rounds: {_who(m, PLURALS[self.unit])}; {noise} on the sum, once a round.")
        return [*lines, f"Neighbours: {self._adjacency}. Computed by {self.accountant}."]

    @property
    def _adjacency(self) -> str:
        return self.ledger.entries[0][0].adjacency


def stated(
    ledger: Ledger,
    delta: float,
    *,
    unit: Unit = "client",
    clip_norm: float,
    adaptive: bool = False,
    secure_aggregation: bool = False,
    released: tuple[str, ...] = ("The shared parameters after each round: to the server and to all clients.",),
    unaccounted: tuple[str, ...] = (),
) -> PrivacyStatement:
    """The statement of what a ledger holds.

    Args:
      ledger: all that was released.
      delta: of the claim.
      unit: whose data is protected.
      clip_norm: C; where it is adaptive what it has come to; infinity where nothing was clipped.
      adaptive: whether C followed the norms.
      secure_aggregation: whether the server sees sums only.
      released: what was released to whom, a sentence each.
      unaccounted: what else was released, a sentence or a name each.

    Returns:
      The statement; its epsilon comes from the ledger, its randomness from the ledger's noise.

    Raises:
      ValueError: an empty ledger, mixed tiers of noise, or numbers that make no sense.
      ImportError: dp-accounting is not installed, and there is noise to account for.
    """
    epsilon = ledger.spent(delta)
    discrete = bool(ledger.entries) and all(m.discrete for m, _ in ledger.entries)
    if unit == "client":
        server = "The server, with the sum of a round's updates before the noise, and with adding the noise"
        server += "; it does not see single updates." if secure_aggregation else " once; and with EVERY SINGLE UPDATE."
        trusted = (server, "The server, with keeping the noise, its key and who was drawn to itself.")
    else:
        trusted = (
            f"The owner of the {PLURALS[unit]}, with its own data, and with adding the noise before anything leaves.",
            "Nobody else: what leaves the owner carries the noise already.",
        )
    return PrivacyStatement(
        unit=unit,
        ledger=ledger,
        clip_norm=float(clip_norm),
        adaptive=adaptive,
        delta=delta,
        epsilon=epsilon,
        accountant=accountant_version() if math.isfinite(epsilon) else "no accountant",
        randomness="hardened" if discrete else "research",
        trusted=trusted,
        released=tuple(released),
        unaccounted=tuple(unaccounted),
    )


def recomputed(statement: PrivacyStatement) -> float:
    """The epsilon once more, from the ledger and delta alone; a statement that differs is wrong.

    Raises:
      ImportError: dp-accounting is not installed.
    """
    return statement.ledger.spent(statement.delta)


_INFINITE = ("epsilon", "clip_norm")  # fields that may be
_KINDS: dict[str, Any] = {
    **{name: str for name in ("unit", "accountant", "randomness")},
    **{name: (int, float) for name in ("clip_norm", "delta", "epsilon")},
    **{name: list for name in ("trusted", "released", "unaccounted")},
    "adaptive": bool,
}
_NEIGHBOURS = {
    "zero-out": "contributed nothing",
    "add-or-remove": "not been there",
    "replace": "had entirely different data",
}
_RANDOMNESS = {
    "research": (
        "Research tier: noise and draws come from JAX's threefry generator in floating point. The claim holds for "
        "ideal arithmetic and ideal randomness only; this does not protect against someone who attacks the "
        "generator, its 64-bit keys or the low-order digits of the released numbers."
    ),
    "hardened": (
        "Hardened tier: discrete Gaussian noise on integers, drawn from the operating system's randomness. The claim "
        "needs no assumption on floating-point arithmetic; timing is not covered."
    ),
}


def _who(m: Mechanism, units: str) -> str:
    if isinstance(m.sampler, Everyone):
        return f"all {m.clients} {units}"
    if isinstance(m.sampler, Poisson):
        return (
            f"each of {m.clients} {units} drawn with probability {m.sampler.rate:g} (of more than {m.sampler.most}, "
            f"{m.sampler.most} at random)"
        )
    return f"{m.sampler.size} of {m.clients} {units}, drawn without replacement"


def _item(line: str) -> str:
    return "  - " + "\n    ".join(textwrap.wrap(line, 96, break_long_words=False, break_on_hyphens=False)) + "\n"


def _upwards(epsilon: float) -> str:
    """Three decimals, never rounded down."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def _factor(epsilon: float) -> str:
    return f"{math.exp(epsilon):.3g}" if epsilon < 700 else "more than 1e300"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refused, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("no privacy statement: it is nested too deeply") from error


def _whole(digits: str) -> int:
    return int(digits) if len(digits) < 19 else _refused(digits)


def _refused(name: str) -> Any:
    raise ValueError(f"no privacy statement: {name} is not a number that it can have")
