"""Epsilons: golden values of dp-accounting's own accountants, closed forms, what is refused, and budgets."""

import json
import math
import sys

import dp_accounting
import dp_accounting.pld
import dp_accounting.rdp
import numpy as np
import pytest
from scipy import stats

from federated import accounting
from federated.accounting import Budget, Ledger, composed, epsilon, epsilon_of_zcdp, noise_multiplier_for, rounds_within
from federated.mechanism import Mechanism
from federated.sampling import Everyone, FixedSize, Poisson

DELTA, ROUNDS = 1e-4, 200
POISSON = Poisson(0.1, 140)


def curve(eps, ratio):
    """The delta of a Gaussian whose sensitivity over deviation is `ratio` (Balle and Wang, 2018, theorem 8)."""
    return stats.norm.cdf(ratio / 2 - eps / ratio) - math.exp(eps) * stats.norm.cdf(-ratio / 2 - eps / ratio)


@pytest.mark.parametrize(
    "z, sampler, adjacency, golden",
    [
        (1.0, Poisson(0.1, 1000), "add-or-remove", 8.6073),
        (1.0, POISSON, "add-or-remove", 8.6162),
        (1.0, POISSON, "zero-out", 8.6162),
        (1.0, POISSON, "replace", 14.1611),
        (2.0, FixedSize(100), "replace", 18.4119),  # 1.0 over the sensitivity, which is what dp-accounting takes
        (1.0, Everyone(), "add-or-remove", 151.7079),
        (1.0, Everyone(), "zero-out", 151.7079),
        (1.0, Everyone(), "replace", 504.2505),
    ],
)
def test_golden_values(z, sampler, adjacency, golden):
    """1,000 clients, 200 rounds, delta 1e-4, as dp-accounting 0.6.0 was measured to give them."""
    spent = ((Mechanism(z, sampler, 1000, adjacency), ROUNDS),)
    assert composed(spent, DELTA, accounting.COARSE) == pytest.approx(golden, abs=1e-3)


def test_the_coarse_step_is_conservative():
    mechanism = Mechanism(1.0, POISSON, 1000, "zero-out")
    fine, coarse = epsilon(mechanism, ROUNDS, DELTA), composed(((mechanism, ROUNDS),), DELTA, accounting.COARSE)
    assert fine == pytest.approx(8.61622, abs=1e-5)
    assert fine < coarse < fine + 1e-4


def test_pld_is_tighter_than_rdp():
    accountant = dp_accounting.rdp.RdpAccountant(orders=[2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.1, 3.2])
    event = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
    by_rdp = accountant.compose(event, ROUNDS).get_epsilon(DELTA)
    assert by_rdp == pytest.approx(9.7385, abs=2e-3)
    assert composed(((Mechanism(1.0, POISSON, 1000, "zero-out"), ROUNDS),), DELTA, accounting.COARSE) < by_rdp


def test_replacing_has_twice_the_sensitivity():
    """The trap: dp-accounting's RDP gives a Gaussian the same epsilon for replacing as for removing."""
    one = dp_accounting.GaussianDpEvent(5.0)
    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    by_rdp = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation).compose(one).get_epsilon(1e-5)
    by_pld = dp_accounting.pld.PLDAccountant(relation).compose(one).get_epsilon(1e-5)
    ours = epsilon(Mechanism(5.0, Everyone(), 10, "replace"), 1, 1e-5)
    assert by_rdp == pytest.approx(0.795, abs=1e-3) and by_pld == pytest.approx(1.555, abs=1e-3)
    assert ours == pytest.approx(by_pld, abs=1e-3)
    # All of 50 without replacement is everyone: RDP may be looser than the exact value, and must not be below it.
    fixed = epsilon(Mechanism(5.0, FixedSize(50), 50, "replace"), 1, 1e-5)
    assert ours < fixed < 1.2 * ours


@pytest.mark.parametrize("adjacency, sensitivity", [("zero-out", 1.0), ("replace", 2.0)])
def test_full_participation_by_the_closed_form(adjacency, sensitivity):
    eps = epsilon(Mechanism(20.0, Everyone(), 5, adjacency), 100, 1e-3)
    assert curve(eps, sensitivity * math.sqrt(100) / 20) == pytest.approx(1e-3, rel=1e-6)


def test_one_round_of_a_coin_by_the_closed_form():
    """delta(eps) of a subsampled Gaussian, by integrating the larger of its two directions."""
    q, z, eps = 0.25, 1.3, 0.5
    x = np.linspace(-40, 40, 400_001)
    off, on = stats.norm.pdf(x, 0, z), (1 - q) * stats.norm.pdf(x, 0, z) + q * stats.norm.pdf(x, 1, z)
    deltas = [np.trapezoid(np.maximum(a - math.exp(eps) * b, 0), x) for a, b in ((on, off), (off, on))]
    assert epsilon(Mechanism(z, Poisson(q, 20), 20, "zero-out"), 1, max(deltas)) == pytest.approx(eps, abs=1e-4)


def test_truncation_costs_something():
    loose, tight = (epsilon(Mechanism(2.0, Poisson(0.1, most), 100, "zero-out"), 10, 1e-3) for most in (100, 10))
    assert loose < tight


def test_integer_noise_is_concentrated():
    z, rounds = 10.0, 30
    rho = rounds / (2 * z**2)
    ours = epsilon(Mechanism(z, Everyone(), 8, "zero-out", discrete=True), rounds, 1e-5)
    exact = epsilon(Mechanism(z, Everyone(), 8, "zero-out"), rounds, 1e-5)
    assert ours == pytest.approx(epsilon_of_zcdp(rho, 1e-5))
    assert exact < ours <= rho + 2 * math.sqrt(rho * math.log(1e5))  # Bun and Steinke 2016, proposition 1.3
    double = epsilon(Mechanism(z, Everyone(), 8, "replace", discrete=True), rounds, 1e-5)
    assert double == pytest.approx(epsilon_of_zcdp(4 * rho, 1e-5))
    assert epsilon_of_zcdp(0.0, 1e-5) == 0.0


def test_no_noise_and_no_rounds():
    for sampler, adjacency in ((Everyone(), "zero-out"), (POISSON, "zero-out"), (FixedSize(10), "replace")):
        assert epsilon(Mechanism(0.0, sampler, 1000, adjacency), 1, DELTA) == math.inf
        assert epsilon(Mechanism(0.0, sampler, 1000, adjacency), 0, DELTA) == 0.0


@pytest.mark.parametrize(
    "sampler, adjacency", [(Everyone(), "replace"), (Poisson(0.2, 100), "zero-out"), (FixedSize(20), "replace")]
)
def test_noise_for_an_epsilon(sampler, adjacency):
    z = noise_multiplier_for(4.0, 1e-3, 20, sampler, 100, adjacency)
    assert 3.95 < epsilon(Mechanism(z, sampler, 100, adjacency), 20, 1e-3) <= 4.0
    assert composed(((Mechanism(0.995 * z, sampler, 100, adjacency), 20),), 1e-3, accounting.COARSE) > 4.0


@pytest.mark.parametrize(
    "z, sampler, adjacency",
    [(20.0, Everyone(), "zero-out"), (2.0, Poisson(0.2, 30), "zero-out")],
)
def test_rounds_within_an_epsilon(z, sampler, adjacency):
    mechanism = Mechanism(z, sampler, 100, adjacency)
    rounds = rounds_within(mechanism, 3.0, 1e-3)
    assert rounds > 2
    assert epsilon(mechanism, rounds, 1e-3) <= 3.0 < composed(((mechanism, rounds + 1),), 1e-3, accounting.COARSE)
    assert rounds_within(mechanism, 0.01, 1e-3) == 0


def test_what_no_accountant_supports_is_refused():
    for adjacency in ("add-or-remove", "zero-out"):
        with pytest.raises(ValueError, match="take the adjacency replace"):
            Mechanism(1.0, FixedSize(10), 100, adjacency)
    with pytest.raises(ValueError, match="discrete Gaussian noise with Poisson"):
        Mechanism(1.0, POISSON, 1000, "zero-out", discrete=True)
    with pytest.raises(ValueError, match="take one of"):
        Mechanism(1.0, POISSON, 1000, "swap")
    with pytest.raises(ValueError, match="take 0 or more"):
        Mechanism(-1.0, POISSON, 1000, "zero-out")
    with pytest.raises(ValueError, match="take at most 5"):
        Mechanism(1.0, FixedSize(10), 5, "replace")
    fine = Mechanism(1.0, Everyone(), 10, "zero-out")
    for call in (
        lambda: epsilon(fine, 1, 0.0),
        lambda: epsilon(fine, -1, 0.1),
        lambda: noise_multiplier_for(1.0, 0.1, 0, Everyone(), 10, "zero-out"),
        lambda: rounds_within(fine, 0.0, 0.1),
        lambda: epsilon_of_zcdp(-1.0, 0.1),
        lambda: composed(((fine, 1), (Mechanism(1.0, Everyone(), 10, "replace"), 1)), 0.1),
    ):
        with pytest.raises(ValueError, match=r"take|account for all"):
            call()


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r'pip install "gridjax\[privacy\]"'):
        epsilon(Mechanism(1.0, Everyone(), 10, "zero-out"), 1, 0.1)


def test_a_ledger_composes():
    """Gaussians by the sum of squares; coins and Gaussians in one accountant; RDP beside it with half of delta."""
    one, two = Mechanism(10.0, Everyone(), 50, "replace"), Mechanism(20.0, Everyone(), 50, "replace")
    both = Ledger().after(one, 3).after(two, 4)
    ratio = 2 * math.sqrt(3 / 100 + 4 / 400)
    assert curve(both.spent(1e-3), ratio) == pytest.approx(1e-3, rel=1e-6)
    coin = Mechanism(10.0, Poisson(1.0, 50), 50, "replace")  # a coin that always falls so is everyone
    mixed = Ledger().after(one, 3).after(coin, 2)
    assert mixed.spent(1e-3) == pytest.approx(epsilon(one, 5, 1e-3), abs=1e-3)
    fixed = Mechanism(10.0, FixedSize(5), 50, "replace")
    apart = both.after(fixed, 6)
    assert apart.spent(1e-3) == pytest.approx(both.spent(5e-4) + epsilon(fixed, 6, 5e-4))


def test_a_resumed_run_goes_on_counting():
    mechanism, budget = Mechanism(2.0, Poisson(0.2, 30), 100, "zero-out"), Budget(3.0, 1e-3)
    rounds = rounds_within(mechanism, budget.epsilon, budget.delta)
    before = Ledger().after(mechanism, rounds - 2)
    resumed = Ledger.from_dict(json.loads(json.dumps(before.to_dict())))
    assert resumed == before
    assert resumed.rounds_left(mechanism, budget) == 2
    assert resumed.allows(mechanism, 2, budget) and not resumed.allows(mechanism, 3, budget)
    ended = resumed.after(mechanism, 2)
    assert ended.entries == ((mechanism, rounds),) and ended.rounds_left(mechanism, budget) == 0
    assert Ledger().spent(1e-3) == 0.0 and Ledger().after(mechanism, 0) == Ledger()


def test_a_ledger_refuses():
    ledger = Ledger().after(Mechanism(1.0, Everyone(), 10, "zero-out"), 5)
    with pytest.raises(ValueError, match="go on with the same adjacency"):
        ledger.after(Mechanism(1.0, Everyone(), 10, "replace"), 1)
    with pytest.raises(ValueError, match="cannot be taken back"):
        ledger.after(ledger.entries[0][0], -1)
    with pytest.raises(ValueError, match="take a positive one"):
        Budget(0.0, 0.1)
    good = ledger.to_dict()
    entry = good["entries"][0]
    for bad in (
        [],
        {"entries": [], "more": 1},
        {"entries": [{**entry, "rounds": 1.5}]},
        {"entries": [{**entry, "rounds": -5}]},
        {"entries": [{"rounds": 3}]},
        {"entries": [{**entry, "mechanism": {**entry["mechanism"], "clients": "10"}}]},
        {"entries": [{**entry, "mechanism": {**entry["mechanism"], "noise_multiplier": float("nan")}}]},
        {"entries": [{**entry, "mechanism": {**entry["mechanism"], "extra": 0}}]},
    ):
        with pytest.raises(ValueError):
            Ledger.from_dict(bad)
