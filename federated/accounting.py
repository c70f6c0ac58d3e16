"""What rounds of noisy sums cost: (epsilon, delta), by Google's dp-accounting.

A mechanism M is (epsilon, delta)-private for an adjacency if, for all neighbouring federations D, D' and all sets S,

    P(M(D) in S) <= e^epsilon P(M(D') in S) + delta

Here M adds N(0, (z C)^2) to the sum of the drawn clients' updates, each clipped to norm C; z is always the deviation
over C, and s C the sum's sensitivity (`federated.mechanism`): s = 1 for zero-out and add-or-remove, 2 for replace.

    sampler     zero-out, add-or-remove             replace
    Everyone    one Gaussian of z / sqrt(T), exact  one Gaussian of z / (2 sqrt(T)), exact
    Poisson     PLD                                 PLD
    FixedSize   refused                             RDP with z / 2

T rounds of everyone are one Gaussian (B. Balle and Y.-X. Wang, "Improving the Gaussian mechanism for differential
privacy", ICML 2018, theorem 8, gives its exact epsilon). PLD are privacy loss distributions (K. Sommer, S. Meiser and
E. Mohammadi, PoPETs 2019), here rounded so that epsilon is never too small; RDP is Renyi privacy (I. Mironov, CSF 2017;
Y.-X. Wang, B. Balle and S. Kasiviswanathan, AISTATS 2019, for fixed sizes). PLD knows z as noise over C for each
adjacency; RDP takes noise over sensitivity, and would give half the sensitivity for "replace" if it were handed z.

Noise that is a discrete Gaussian on integers is concentrated: rho = T s^2 / (2 z^2) for sensitivity s C (C. Canonne,
G. Kamath and T. Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, theorem 14).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from federated.mechanism import Adjacency, Mechanism
from federated.sampling import Poisson, Sampler

# Step of the discretised privacy loss: the fine one for what is reported, the coarse one, which gives up to a few 1e-4
# more and takes a tenth of the time, for searches.
FINE, COARSE = 1e-4, 1e-3


@dataclass(frozen=True)
class Budget:
    """What may be spent: epsilon at delta. A delta well below 1 over the number of clients says something."""

    epsilon: float
    delta: float

    def __post_init__(self):
        if not self.epsilon > 0:
            raise ValueError(f"a budget of epsilon {self.epsilon}: take a positive one")
        _checked(self.delta)


Spent = tuple[tuple[Mechanism, int], ...]


def epsilon(mechanism: Mechanism, rounds: int, delta: float) -> float:
    """The smallest epsilon that dp-accounting proves for a number of rounds.

    Args:
      mechanism: of every round.
      rounds: T, 0 or more.
      delta: above 0 and below 1.

    Returns:
      epsilon; infinity without noise.

    Raises:
      ValueError: a delta or a number of rounds that makes no sense.
      ImportError: dp-accounting is not installed.

    Guarantees:
      Not below the true value, for the sampling and noise of ideal arithmetic.
    """
    return composed(((mechanism, rounds),), delta)


def composed(spent: Spent, delta: float, interval: float = FINE) -> float:
    """The epsilon of several mechanisms, one after the other; all fixed before their rounds, whatever their order.

    Mechanisms of one accountant compose in it. Where several are needed, each gets an equal part of delta and the
    epsilons add up (C. Dwork et al.'s basic composition), which is looser.

    Args:
      spent: mechanisms and rounds of each; of one adjacency.
      delta: above 0 and below 1.
      interval: step of the discretised privacy loss.

    Raises:
      ValueError: several adjacencies, or numbers that make no sense.
      ImportError: dp-accounting is not installed.
    """
    _checked(delta)
    if any(rounds < 0 for _, rounds in spent):
        raise ValueError("a negative number of rounds: take 0 or more")
    if len({m.adjacency for m, _ in spent}) > 1:
        raise ValueError("mechanisms of several adjacencies do not compose: account for all of them with one of them")
    totals: dict[Mechanism, int] = {}
    for mechanism, rounds in spent:
        totals[mechanism] = totals.get(mechanism, 0) + rounds
    groups: dict[str, list[tuple[Mechanism, int]]] = {}
    for mechanism, rounds in totals.items():
        if rounds and mechanism.noise_multiplier == 0:
            return math.inf
        if rounds:
            groups.setdefault(mechanism.accountant, []).append((mechanism, rounds))
    if "pld" in groups and "gaussian" in groups:  # a Gaussian is a privacy loss distribution too
        groups["pld"] += groups.pop("gaussian")
    part = delta / max(len(groups), 1)
    return float(sum(_RULES[name](tuple(of), part, interval) for name, of in groups.items()))


def epsilon_of_zcdp(rho: float, delta: float) -> float:
    """The epsilon at delta of a rho-zero-concentrated mechanism (M. Bun and T. Steinke, TCC 2016), for integer noise.

    Args:
      rho: 0 or more; adds up over rounds: T s^2 / (2 z^2) for sensitivity s C.
      delta: above 0 and below 1.

    Raises:
      ValueError: numbers that make no sense.
      ImportError: dp-accounting is not installed.
    """
    _checked(delta)
    if not rho >= 0:
        raise ValueError(f"rho {rho}: take 0 or more")
    accounting = _dp_accounting()
    accountant = accounting.rdp.RdpAccountant()
    return float(accountant.compose(accounting.ZCDpEvent(rho)).get_epsilon(delta)) if rho else 0.0


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    rounds: int,
    sampler: Sampler,
    clients: int,
    adjacency: Adjacency,
    tolerance: float = 1e-3,
    discrete: bool = False,
) -> float:
    """The smallest noise multiplier with which a number of rounds stays within an epsilon.

    Args:
      epsilon: wanted, above 0.
      delta: above 0 and below 1.
      rounds: T, at least 1.
      sampler: who takes part in a round.
      clients: units of privacy.
      adjacency: what neighbours are.
      tolerance: relative, of the answer.
      discrete: whether the noise is a discrete Gaussian on integers.

    Returns:
      z, deviation over clip norm.

    Raises:
      ValueError: numbers that make no sense, a pair that is refused, or an epsilon that no noise reaches.
      ImportError: dp-accounting is not installed.

    Guarantees:
      What `federated.accounting.epsilon` gives for this z does not exceed `epsilon`. Apart from the step `COARSE`, z is
      at most `tolerance` too large; z below 0.1, which protects nobody, is not looked for.
    """
    Budget(epsilon, delta)
    if rounds < 1:
        raise ValueError(f"{rounds} rounds: take at least 1")

    def within(z: float) -> bool:
        return composed(((Mechanism(z, sampler, clients, adjacency, discrete), rounds),), delta, COARSE) <= epsilon

    # Sampling only lowers the noise that everyone's taking part needs; the search goes downwards from there, since too
    # little noise makes wide distributions that take long.
    sensitivity = 2.0 if adjacency == "replace" else 1.0
    high = sensitivity * math.sqrt(rounds) * _dp_accounting().get_sigma_gaussian(epsilon, delta) * (1 + tolerance)
    for _ in range(20):
        if within(high):
            break
        high *= 2
    else:
        raise ValueError(
            f"no noise multiplier up to {high / 2:.3g} was found for epsilon {epsilon} at delta {delta}: take a "
            "larger epsilon or delta, or another sampler"
        )
    low = high / 2
    while high > 0.1 and within(low):
        low, high = low / 2, low
    while high > max(low * (1 + tolerance), 0.1):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if within(middle) else (middle, high)
    return high


def rounds_within(mechanism: Mechanism, epsilon: float, delta: float, before: Spent = ()) -> int:
    """The largest number of further rounds that stays within an epsilon.

    Args:
      mechanism: of every further round.
      epsilon: that may be spent in all, above 0.
      delta: at which.
      before: what was spent already, as a `Ledger` has it.

    Returns:
      T; 0 where one round is too much, or nothing is left. By the coarse discretisation of `COARSE`: conservative.

    Raises:
      ValueError: numbers that make no sense, or no end below 2^40 rounds.
      ImportError: dp-accounting is not installed.
    """
    Budget(epsilon, delta)

    def within(rounds: int) -> bool:
        return composed((*before, (mechanism, rounds)), delta, COARSE) <= epsilon

    if not within(1):
        return 0
    low, high = 1, 2
    while within(high):
        low, high = high, 2 * high
        if high > 2**40:
            raise ValueError(f"epsilon {epsilon} allows more than 2^39 rounds: take less noise or a smaller epsilon")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def accountant_version() -> str:
    """As statements name it, such as "dp-accounting 0.6.0".

    Raises:
      ImportError: dp-accounting is not installed.
    """
    from importlib.metadata import version

    _dp_accounting()
    return f"dp-accounting {version('dp-accounting')}"


def _gaussian(spent: Spent, delta: float, interval: float) -> float:
    """Everyone in every round: sum_t (s / z_t)^2 is (s / z)^2 of one Gaussian."""
    del interval
    ratio = math.sqrt(sum(rounds * (m.sensitivity / m.noise_multiplier) ** 2 for m, rounds in spent))
    return float(_dp_accounting().get_epsilon_gaussian(1 / ratio, delta))


def _zcdp(spent: Spent, delta: float, interval: float) -> float:
    del interval
    return epsilon_of_zcdp(sum(rounds * (m.sensitivity / m.noise_multiplier) ** 2 / 2 for m, rounds in spent), delta)


def _rdp(spent: Spent, delta: float, interval: float) -> float:
    """Fixed sizes under replace: the accountant takes noise over sensitivity, here z / 2."""
    del interval
    accounting = _dp_accounting()
    accountant = accounting.rdp.RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE)
    for m, rounds in spent:
        one = accounting.GaussianDpEvent(m.noise_multiplier / m.sensitivity)
        drawn = accounting.SampledWithoutReplacementDpEvent(m.clients, m.sampler.places(m.clients), one)
        accountant.compose(drawn, rounds)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def _pld(spent: Spent, delta: float, interval: float) -> float:
    accounting = _dp_accounting()
    relation = {
        "add-or-remove": accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace": accounting.NeighboringRelation.REPLACE_ONE,
        "zero-out": accounting.NeighboringRelation.REPLACE_SPECIAL,
    }[spent[0][0].adjacency]
    accountant = accounting.pld.PLDAccountant(relation, interval)
    for m, rounds in spent:
        if isinstance(m.sampler, Poisson):
            most = m.sampler.places(m.clients)
            event = accounting.TruncatedSubsampledGaussianDpEvent(m.clients, m.sampler.rate, most, m.noise_multiplier)
        else:
            event = accounting.GaussianDpEvent(m.noise_multiplier)
        accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))


_RULES: dict[str, Callable[[Spent, float, float], float]] = {
    "gaussian": _gaussian,
    "pld": _pld,
    "rdp": _rdp,
    "zcdp": _zcdp,
}


@dataclass(frozen=True)
class Ledger:
    """What was spent, in order; kept with a checkpoint, so that a resumed run goes on counting.

    Attributes:
      entries: mechanisms and rounds of each.
    """

    entries: Spent = ()

    def after(self, mechanism: Mechanism, rounds: int) -> Ledger:
        """This ledger and some more rounds.

        Raises:
          ValueError: a negative number of rounds, or another adjacency than before.
        """
        if rounds < 0:
            raise ValueError(f"{rounds} rounds: take 0 or more; what was released cannot be taken back")
        if self.entries and self.entries[0][0].adjacency != mechanism.adjacency:
            raise ValueError(
                f"this ledger counts by {self.entries[0][0].adjacency}, and not by {mechanism.adjacency}: go on with "
                "the same adjacency"
            )
        if not rounds:
            return self
        if self.entries and self.entries[-1][0] == mechanism:
            return Ledger((*self.entries[:-1], (mechanism, self.entries[-1][1] + rounds)))
        return Ledger((*self.entries, (mechanism, rounds)))

    def spent(self, delta: float) -> float:
        """The epsilon of all entries at a delta; 0 where nothing was released."""
        return composed(self.entries, delta)

    def allows(self, mechanism: Mechanism, rounds: int, budget: Budget) -> bool:
        """Whether these further rounds stay within the budget."""
        return self.after(mechanism, rounds).spent(budget.delta) <= budget.epsilon

    def rounds_left(self, mechanism: Mechanism, budget: Budget) -> int:
        """The largest number of further rounds within the budget; ask once, before the rounds."""
        return rounds_within(mechanism, budget.epsilon, budget.delta, self.entries)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"entries": [{"mechanism": m.to_dict(), "rounds": rounds} for m, rounds in self.entries]}

    @classmethod
    def from_dict(cls, data: Any) -> Ledger:
        """What `to_dict` wrote.

        Raises:
          ValueError: fields that are missing, unknown, or make no sense.
        """
        if not isinstance(data, dict) or set(data) != {"entries"} or not isinstance(data["entries"], list):
            raise ValueError("no ledger: a list of entries is wanted")
        ledger = cls()
        for entry in data["entries"]:
            if not isinstance(entry, dict) or set(entry) != {"mechanism", "rounds"} or type(entry["rounds"]) is not int:
                raise ValueError(f"no entry of a ledger: {entry!r}; a mechanism and a number of rounds are wanted")
            ledger = ledger.after(Mechanism.from_dict(entry["mechanism"]), entry["rounds"])
        return ledger


def _checked(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta}: take one above 0 and below 1, such as a tenth of one over the clients")


def _dp_accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError('epsilon is accounted by dp-accounting: pip install "gridjax[privacy]"') from error
    return dp_accounting
