"""One round's noisy sum, as accountants see it, and which of them are refused.

A mechanism clips every drawn client's update to norm C, and adds N(0, (z C)^2) to each entry of their sum. Its noise
multiplier z is ALWAYS the noise's deviation over the clip norm C, never over the sensitivity. Neighbouring federations
differ in one client:

    "zero-out"        it contributes nothing, neither an update nor a bit to an adaptive bound: the sum changes by at
                      most C. The number of clients is public.
    "add-or-remove"   it is there or not: C too, and the same epsilon.
    "replace"         it has other data: the sum changes by at most 2 C, so that noise over sensitivity is z / 2.

`federated.accounting` says what each costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from federated import sampling
from federated.sampling import Everyone, FixedSize, Poisson, Sampler

Adjacency = Literal["add-or-remove", "replace", "zero-out"]
# Fields beside the sampler, and their types in JSON.
_FIELDS: dict[str, Any] = {"noise_multiplier": (int, float), "clients": int, "adjacency": str, "discrete": bool}


@dataclass(frozen=True)
class Mechanism:
    """One round's noisy sum.

    Attributes:
      noise_multiplier: z, the deviation of the noise on the sum over the clip norm C (not over the sensitivity); 0 or
        more. With an adaptive bound the joint z, see `federated.clipping.update_noise`.
      sampler: who takes part.
      clients: n, units of privacy in the federation: clients, or trajectories of one client's data.
      adjacency: what neighbours are.
      discrete: whether the noise is a discrete Gaussian on integers; only for Everyone.

    Raises:
      ValueError: numbers that make no sense, or a pair of sampler and adjacency that no accountant supports.
    """

    noise_multiplier: float
    sampler: Sampler
    clients: int
    adjacency: Adjacency
    discrete: bool = False

    def __post_init__(self):
        if self.adjacency not in get_args(Adjacency):
            raise ValueError(f"adjacency {self.adjacency!r}: take one of {', '.join(get_args(Adjacency))}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0) or self.clients < 1:
            raise ValueError(
                f"noise multiplier {self.noise_multiplier} and {self.clients} clients: take 0 or more, and at least 1"
            )
        self.sampler.places(self.clients)  # refuses a sampler that does not fit
        if isinstance(self.sampler, FixedSize) and self.adjacency != "replace":
            raise ValueError(
                f"no accountant knows FixedSize with {self.adjacency}: take the adjacency replace, which a fixed size "
                "suits, or draw with Poisson; a Poisson's epsilon must not be claimed for a fixed size"
            )
        if self.discrete and not isinstance(self.sampler, Everyone):
            raise ValueError(
                f"no accountant here knows discrete Gaussian noise with {type(self.sampler).__name__}: take "
                "Everyone(), or continuous noise"
            )

    @property
    def sensitivity(self) -> float:
        """Of the sum, in units of C."""
        return 2.0 if self.adjacency == "replace" else 1.0

    @property
    def accountant(self) -> str:
        """What accounts for it: "gaussian", "pld", "rdp" or "zcdp"."""
        if isinstance(self.sampler, Everyone):
            return "zcdp" if self.discrete else "gaussian"
        return "pld" if isinstance(self.sampler, Poisson) else "rdp"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**{name: getattr(self, name) for name in _FIELDS}, "sampler": sampling.to_dict(self.sampler)}

    @classmethod
    def from_dict(cls, data: Any) -> Mechanism:
        """What `to_dict` wrote.

        Raises:
          ValueError: fields that are missing, unknown, or make no sense.
        """
        if not isinstance(data, dict) or set(data) != {*_FIELDS, "sampler"}:
            raise ValueError(f"no mechanism: {data!r}; its fields are {[*_FIELDS, 'sampler']}")
        for name, kind in _FIELDS.items():
            if not isinstance(data[name], kind) or (isinstance(data[name], bool) and kind is not bool):
                raise ValueError(f"a mechanism's {name} is {data[name]!r}: another type is wanted")
        return cls(sampler=sampling.from_dict(data["sampler"]), **{name: data[name] for name in _FIELDS})
