"""Statements: recomputed from their file alone, in plain words, and refused when tampered with."""

import dataclasses
import json
import math
import sys

import dp_accounting
import pytest

from federated.accounting import Ledger
from federated.mechanism import Mechanism
from federated.sampling import Everyone, FixedSize, Poisson
from federated.statement import PrivacyStatement, recomputed, stated

GAUSSIAN = Mechanism(20.0, Everyone(), 16, "zero-out")
NOISELESS = Mechanism(0.0, Everyone(), 16, "zero-out")
RUN = Ledger().after(GAUSSIAN, 100)


def words(statement):
    """The text with its lines joined."""
    text = statement.text()
    assert max(map(len, text.splitlines())) <= 100
    return " ".join(text.split())


def test_a_saved_run_is_recomputed():
    """From the file's numbers, by dp-accounting's own function for one Gaussian."""
    text = stated(RUN, 1e-3, clip_norm=0.5).to_json()
    read = PrivacyStatement.from_json(text)
    data = json.loads(text)
    (entry,) = data["ledger"]["entries"]
    z = entry["mechanism"]["noise_multiplier"] / math.sqrt(entry["rounds"])
    assert recomputed(read) == read.epsilon == pytest.approx(dp_accounting.get_epsilon_gaussian(z, data["delta"]))
    assert read == stated(RUN, 1e-3, clip_norm=0.5) and read.rounds == 100
    assert read.accountant.startswith("dp-accounting 0.6")


def test_a_wrong_epsilon_is_found():
    data = json.loads(stated(RUN, 1e-3, clip_norm=0.5).to_json())
    data["epsilon"] /= 2
    wrong = PrivacyStatement.from_json(json.dumps(data))
    assert recomputed(wrong) == pytest.approx(2 * wrong.epsilon)


def test_the_text_says_what_one_must_know():
    ledger = RUN.after(Mechanism(2.0, Poisson(0.25, 8), 16, "zero-out"), 7)
    statement = stated(
        ledger, 1e-3, clip_norm=0.5, adaptive=True, unaccounted=("The mean return of every utility: to all clients.",)
    )
    text = words(statement)
    shown = math.ceil(statement.epsilon * 1000) / 1000
    for part in (
        f"each client: epsilon {shown:.3f} at delta 0.001, over 107 rounds",
        f"factor of at most {math.exp(statement.epsilon):.3g}",
        "contributed nothing",
        "norm of 0.5, which followed the updates' norms",
        "100 rounds: all 16 clients; Gaussian noise of 20 times the clip norm",
        "7 rounds: each of 16 clients drawn with probability 0.25 (of more than 8, 8 at random)",
        "Neighbours: zero-out. Computed by dp-accounting 0.6",
        "Research tier",
        "ideal arithmetic",
        "EVERY SINGLE UPDATE",
        "not covered by this statement - The mean return of every utility",
    ):
        assert part in text, part
    hidden = words(stated(RUN, 1e-3, clip_norm=0.5, secure_aggregation=True))
    assert "does not see single updates" in hidden and "EVERY SINGLE UPDATE" not in hidden


def test_other_units_and_samplers():
    ledger = Ledger().after(Mechanism(9.0, FixedSize(4), 40, "replace"), 3)
    text = words(stated(ledger, 1e-3, clip_norm=1.0, unit="trajectory"))
    assert "each trajectory" in text and "4 of 40 trajectories, drawn without replacement" in text
    assert "had entirely different data" in text and "The owner of the trajectories" in text


def test_integer_noise_is_the_hardened_tier():
    ledger = Ledger().after(Mechanism(20.0, Everyone(), 16, "zero-out", discrete=True), 10)
    statement = stated(ledger, 1e-3, clip_norm=0.5)
    assert statement.randomness == "hardened" and "Hardened tier: discrete Gaussian" in words(statement)
    with pytest.raises(ValueError, match="hardened randomness is discrete noise in every round"):
        dataclasses.replace(stated(RUN, 1e-3, clip_norm=0.5), randomness="hardened")
    with pytest.raises(ValueError, match="research randomness in none"):
        stated(ledger.after(GAUSSIAN, 1), 1e-3, clip_norm=0.5)


@pytest.mark.parametrize("ledger, bare", [(Ledger().after(NOISELESS, 5), 5), (RUN.after(NOISELESS, 2), 2)])
def test_without_noise_nothing_is_claimed(ledger, bare):
    statement = stated(ledger, 1e-3, clip_norm=0.5)
    assert not statement.claims and statement.epsilon == math.inf
    text = words(statement)
    assert f"NO PRIVACY IS CLAIMED: {bare} of {statement.rounds} rounds were released without noise" in text
    assert "Differential privacy" not in text and "Research tier" not in text
    assert PrivacyStatement.from_json(statement.to_json()) == statement


def test_a_run_without_noise_needs_no_accountant(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)  # as if it were not installed
    statement = stated(Ledger().after(NOISELESS, 5), 1e-3, clip_norm=math.inf)
    assert statement.accountant == "no accountant" and recomputed(statement) == math.inf
    with pytest.raises(ImportError, match="pip install"):
        stated(RUN, 1e-3, clip_norm=0.5)


def test_a_run_without_a_clip_is_stated_too():
    statement = stated(Ledger().after(NOISELESS, 5), 1e-3, clip_norm=math.inf)
    text = words(statement)
    assert "NO PRIVACY IS CLAIMED" in text and "Nothing was clipped." in text and "Every update was clipped" not in text
    saved = statement.to_json()
    assert json.loads(saved)["clip_norm"] == "infinite" and PrivacyStatement.from_json(saved) == statement
    assert recomputed(statement) == math.inf
    with pytest.raises(ValueError, match="not clipped have no bounded sensitivity"):
        stated(RUN, 1e-3, clip_norm=math.inf)
    claim = json.loads(stated(RUN, 1e-3, clip_norm=0.5).to_json())
    with pytest.raises(ValueError, match="not clipped have no bounded sensitivity"):
        PrivacyStatement.from_json(json.dumps({**claim, "clip_norm": "infinite"}))


def test_what_is_no_statement_is_refused():
    good = json.loads(stated(RUN, 1e-3, clip_norm=0.5).to_json())
    for change in (
        {"extra": 1},
        {"format": 2},
        {"unit": "person"},
        {"clip_norm": "0.5"},
        {"clip_norm": 0.0},
        {"adaptive": 1},
        {"delta": 1.0},
        {"delta": True},
        {"epsilon": -1.0},
        {"epsilon": None},
        {"trusted": "the server"},
        {"trusted": []},
        {"released": [3]},
        {"ledger": {"entries": []}},
        {"ledger": {"entries": [{"rounds": 3}]}},
        {"randomness": "quantum"},
    ):
        with pytest.raises(ValueError):
            PrivacyStatement.from_json(json.dumps({**good, **change}))
    for name in good:
        with pytest.raises(ValueError, match="no privacy statement"):
            PrivacyStatement.from_json(json.dumps({k: v for k, v in good.items() if k != name}))
    text = json.dumps(good)
    for broken in ("", "[]", text[:-5], "[" * 100_000, text.replace("0.001", "NaN"), text.replace("0.5", "1" * 5000)):
        with pytest.raises(ValueError):
            PrivacyStatement.from_json(broken)
    with pytest.raises(ValueError, match="this ledger is empty"):
        stated(Ledger(), 1e-3, clip_norm=0.5)
