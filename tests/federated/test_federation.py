"""Rounds under a budget, cut in two, over drawn clients, over two groups, and over two processes."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from quadratics_for_tests import RATE, SHARED, clients, work

from federated import round as round_of
from federated.accounting import Budget, Ledger
from federated.clipping import Adaptive
from federated.compression import TopK
from federated.federation import Plan, federate, mechanisms, spent, start
from federated.hardened import Hardened, hardened_sum
from federated.mechanism import Mechanism
from federated.round import Federation, fed_adam, fed_avg
from federated.sampling import Everyone, Poisson
from federated.work import Clients, Work, padded

KEY, NOISE = jax.random.key(3), jax.random.key(4)
GOALS = [np.random.default_rng(k).normal(1.0, 1.0, (1 + k % 3, 3)) for k in range(8)]
MEANS = np.array([g.mean(axis=0) for g in GOALS])
ALL = Plan(Federation((work(steps=2),), fed_avg()), (Everyone(),))
FAR = 1 - (1 - RATE) ** 2  # of the way to its goal goes a client in two steps


def private(z=4.0, budget=None, **options):
    federation = Federation((work(steps=2),), fed_avg(), bound=0.5, noise_multiplier=z, expected=8.0)
    return Plan(dataclasses.replace(federation, **options), (Everyone(),), budget=budget)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(map(np.asarray, jax.tree.leaves(a)), map(np.asarray, jax.tree.leaves(b)), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


def test_rounds_of_averaging_by_hand():
    """With everyone there, theta goes FAR of the way to the mean of the goals in every round."""
    progress, ledgers = federate(ALL, start(ALL, SHARED, (clients(GOALS),)), KEY, rounds=4)
    np.testing.assert_allclose(progress.server.shared["a"], (1 - (1 - FAR) ** 4) * MEANS.mean(axis=0), rtol=1e-12)
    assert progress.server.round == 4 and ledgers == (Ledger(),) and spent(ALL, ledgers, 0.01) == np.inf
    again, _ = federate(ALL, progress, KEY, rounds=4)  # that many were made
    same_bits(again, progress)


def test_the_budget_stops_the_rounds_before_it_is_exceeded():
    """By the exact epsilon of one Gaussian of z / sqrt(T), five rounds are within this budget and six are not."""
    z, delta = 4.0, 0.0125
    five, six = (dp_accounting.get_epsilon_gaussian(z / np.sqrt(t), delta) for t in (5, 6))
    plan = private(z, Budget((five + six) / 2, delta))
    progress, ledgers = federate(plan, start(plan, SHARED, (clients(GOALS),)), KEY, NOISE, rounds=20)
    assert progress.server.round == 5 and ledgers[0].entries == ((Mechanism(z, Everyone(), 8, "zero-out"), 5),)
    assert spent(plan, ledgers, delta) == pytest.approx(five) and ledgers[0].spent(delta) <= plan.budget.epsilon
    assert ledgers[0].after(*mechanisms(plan, progress)[0]).spent(delta) > plan.budget.epsilon
    more, now = federate(plan, progress, KEY, NOISE, rounds=20, ledgers=ledgers)  # taken up: nothing is left
    assert more.server.round == 5 and now == ledgers


def test_a_run_that_is_taken_up_stops_where_one_in_one_go_does():
    z, delta = 4.0, 0.0125
    plan = private(z, Budget(dp_accounting.get_epsilon_gaussian(z / np.sqrt(5.5), delta), delta))
    some, ledgers = federate(plan, start(plan, SHARED, (clients(GOALS),)), KEY, NOISE, rounds=3)
    assert some.server.round == 3
    whole, ledgers = federate(plan, some, KEY, NOISE, rounds=20, ledgers=ledgers)
    assert whole.server.round == 5 and ledgers[0].entries[0][1] == 5


CUT = {
    "SCAFFOLD": Plan(Federation((work(steps=2),), fed_adam(), scaffold=8), (Poisson(0.5, 6),)),
    "privacy": Plan(
        Federation(
            (work(steps=2),), fed_adam(), compression=TopK(0.4), bound=Adaptive(start=0.2, count_noise=1.0),
            noise_multiplier=1.0, expected=4.0,
        ),
        (Poisson(0.5, 7),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_a_run_cut_in_two_has_the_same_bits(name):
    plan = CUT[name]
    begin = start(plan, SHARED, (clients(GOALS),))
    whole = federate(plan, begin, KEY, NOISE, rounds=4)
    some, ledgers = federate(plan, begin, KEY, NOISE, rounds=1)
    ledgers = tuple(Ledger.from_dict(one.to_dict()) for one in ledgers)  # as a checkpoint keeps them
    parts = federate(plan, some, KEY, NOISE, rounds=4, ledgers=ledgers)
    same_bits(parts[0], whole[0])
    assert parts[1] == whole[1] and whole[0].server.round == 4
    other = federate(plan, begin, jax.random.key(5), jax.random.key(6), rounds=4)[0]
    assert np.abs(other.server.shared["a"] - whole[0].server.shared["a"]).max() > 1e-6


def test_absent_clients_stay_as_they_are():
    plan = Plan(Federation((work(steps=3),), fed_avg(), compression=TopK(0.4)), (Poisson(0.5, 5),))
    found, present = [start(plan, SHARED, (clients(GOALS),))], []

    def seen(progress, ledgers, metrics):
        found.append(progress)
        present.append(int(metrics["present"]))

    federate(plan, found[0], KEY, rounds=6, seen=seen)
    for before, after, number in zip(found[:-1], found[1:], present, strict=True):
        old, new = before.groups[0], after.groups[0]
        came = np.asarray(new.state["seen"] - old.state["seen"])
        assert set(came) <= {0, 3} and (came > 0).sum() == number
        for one in ("state", "residual"):
            away = [jax.tree.map(lambda a, came=came: a[came == 0], getattr(g, one)) for g in (old, new)]
            same_bits(*away)
        same_bits(new.data, old.data)
    assert len(set(present)) > 1 and min(present) > 0 and max(present) <= 5


def test_two_groups_with_different_rows_learn_one_parameter():
    """Groups of three clients with few rows and five with seven times as many."""
    groups = (clients(GOALS[:3]), clients([np.repeat(g, 7, axis=0) for g in GOALS[3:]]))
    plan = Plan(Federation((work(steps=2), work(steps=2)), fed_avg()), (Everyone(), Everyone()))
    progress, _ = federate(plan, start(plan, SHARED, groups), KEY, rounds=3)
    np.testing.assert_allclose(progress.server.shared["a"], (1 - (1 - FAR) ** 3) * MEANS.mean(axis=0), rtol=1e-12)
    assert [g.state["seen"].tolist() for g in progress.groups] == [[6] * 3, [6] * 5]
    noisy = dataclasses.replace(plan.federation, bound=0.5, noise_multiplier=2.0, expected=3 + 2.5)
    plan = Plan(noisy, (Everyone(), Poisson(0.5, 4)))
    progress, ledgers = federate(plan, start(plan, SHARED, groups), KEY, NOISE, rounds=2)
    assert [one.entries[0][0].clients for one in ledgers] == [8, 5] and {one.entries[0][1] for one in ledgers} == {2}
    each = [one.spent(0.01) for one in ledgers]
    assert spent(plan, ledgers, 0.01) == max(each) > min(each)


def test_clients_of_two_groups_draw_apart():
    """The same data in two groups, and a step that goes where chance says."""

    def step(key, state, data, rows):
        return state + jax.random.normal(key, state.shape), {}

    one = Work(step, lambda state: state, lambda _, shared: shared)
    data, rows = padded([{"x": np.zeros(1)}])
    groups = (Clients(data, rows, jnp.zeros((1, 2))),) * 2
    plan = Plan(Federation((one, one), fed_avg()), (Everyone(), Everyone()))
    progress, _ = federate(plan, start(plan, jnp.zeros(2), groups), KEY, rounds=1)
    a, b = (np.asarray(group.state) for group in progress.groups)
    assert np.abs(a - b).min() > 1e-3
    np.testing.assert_allclose(progress.server.shared, (a[0] + b[0]) / 2, rtol=1e-12)


def test_a_round_is_counted_before_its_result_is_seen():
    plan, counted = private(), []
    federate(
        plan, start(plan, SHARED, (clients(GOALS),)), KEY, NOISE, rounds=3,
        seen=lambda progress, ledgers, _: counted.append((int(progress.server.round), ledgers[0].entries[0][1])),
    )  # fmt: skip
    assert counted == [(1, 1), (2, 2), (3, 3)]


def test_what_makes_no_sense_is_refused():
    plan, these = private(), (clients(GOALS),)
    progress, ledgers = federate(plan, start(plan, SHARED, these), KEY, NOISE, rounds=1)
    with pytest.raises(ValueError, match="1 rounds were made: give their ledgers"):
        federate(plan, progress, KEY, NOISE, rounds=2)
    with pytest.raises(ValueError, match="needs a key for its noise"):
        federate(plan, progress, KEY, rounds=2, ledgers=ledgers)
    with pytest.raises(ValueError, match="expected 8, but the samplers expect 4 clients"):
        start(dataclasses.replace(plan, samplers=(Poisson(0.5, 8),)), SHARED, these)
    with pytest.raises(ValueError, match="2 samplers for 1 groups"):
        dataclasses.replace(plan, samplers=(Everyone(), Everyone()))
    with pytest.raises(ValueError, match="2 groups of clients for 1 works"):
        start(plan, SHARED, these * 2)
    with pytest.raises(ValueError, match="a budget without noise"):
        dataclasses.replace(ALL, budget=Budget(1.0, 0.01))


@pytest.mark.parametrize("name", ["groups", "vmap", "pmap", "shard_map"])
def test_the_way_does_not_change_the_result(name):
    mesh = jax.make_mesh((4,), ("clients",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    plan = private(1.0)
    begin = start(plan, SHARED, (clients(GOALS),))
    block = federate(plan, begin, KEY, NOISE, rounds=3)[0]
    other = federate(plan, begin, KEY, NOISE, rounds=3, way=(name, mesh if name == "shard_map" else None))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), other, block)


def test_two_processes_give_the_result_of_one():
    script = Path(__file__).parent / "two_processes_for_tests.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"process (\d): 4 devices of 2 processes, gap ([\d.e+-]+)", run.stdout)
    assert sorted(process for process, _ in found) == ["0", "1"] and all(float(gap) <= 1e-10 for _, gap in found)


def watched():
    """A work, and a list that grows whenever its step is traced."""
    traced, plain = [], work(steps=2)

    def step(*args):
        traced.append(1)
        return plain.step(*args)

    return dataclasses.replace(plain, step=step), traced


@pytest.mark.parametrize("way", ["block", "groups"])
def test_rounds_are_traced_once(way):
    mine, traced = watched()
    plan = Plan(Federation((mine,), fed_avg()), (Everyone(),))
    progress, _ = federate(plan, start(plan, SHARED, (clients(GOALS),)), KEY, rounds=1, way=(way, None))
    first = len(traced)
    federate(plan, progress, KEY, rounds=5, way=(way, None))
    assert len(traced) == first > 0


def test_a_group_s_program_serves_any_optimiser_bound_and_noise():
    mine, traced = watched()
    counts = []
    for z, bound, optimiser in ((1.0, 0.5, fed_avg()), (2.0, 0.7, fed_avg()), (2.0, 0.7, fed_adam())):
        federation = Federation((mine,), optimiser, bound=bound, noise_multiplier=z, expected=8.0)
        plan = Plan(federation, (Everyone(),))
        federate(plan, start(plan, SHARED, (clients(GOALS),)), KEY, NOISE, rounds=2, way=("groups", None))
        counts.append(len(traced))
    assert counts[0] == counts[1] == counts[2] > 0


def test_noise_inside_the_clients_is_counted_as_often_as_it_is_released():
    """Three releases a round: of 8 that the budget allows, two rounds."""
    own = Mechanism(4.0, Everyone(), 50, "zero-out")
    eight, nine = (dp_accounting.get_epsilon_gaussian(4 / np.sqrt(t), 0.01) for t in (8, 9))
    plan = dataclasses.replace(ALL, budget=Budget((eight + nine) / 2, 0.01), own=((own, 3),))
    progress, ledgers = federate(plan, start(plan, SHARED, (clients(GOALS),)), KEY, rounds=20)
    assert progress.server.round == 2 and ledgers[0].entries == ((own, 6),)
    assert spent(plan, ledgers, 0.01) == pytest.approx(dp_accounting.get_epsilon_gaussian(4 / np.sqrt(6), 0.01))
    with pytest.raises(ValueError, match="give their ledgers"):
        federate(plan, progress, KEY, rounds=20)
    with pytest.raises(ValueError, match="noise inside the clients is for all groups"):
        dataclasses.replace(private(), own=((own, 3),))


def test_hardened_rounds_are_of_integers(monkeypatch):
    """A small z: the mean of the clipped updates to a few thousandths of C, and nothing that a key repeats.

    How wide the noise of a `Hardened` is, test_hardened.py says; here that it gets the round's C and z.
    """
    asked = []
    monkeypatch.setattr(round_of, "hardened_sum", lambda *a: asked.append(a[2]) or hardened_sum(*a))
    plan = private(2e-3, hardened=True)
    begin = start(plan, SHARED, (clients(GOALS),))
    runs = [federate(plan, begin, KEY, rounds=1, way=("groups", None)) for _ in range(2)]
    expected = np.mean([m * FAR * min(1.0, 0.5 / np.linalg.norm(m * FAR)) for m in MEANS], axis=0)
    found = [np.asarray(progress.server.shared["a"]) for progress, _ in runs]
    np.testing.assert_allclose(found[0], expected, atol=2e-3)
    assert not np.array_equal(*found) and asked == [Hardened(0.5, 2e-3)] * 2
    assert all(m.discrete for _, ledgers in runs for m, _ in ledgers[0].entries)
    with pytest.raises(ValueError, match="integers are summed on the host"):
        federate(plan, begin, KEY, rounds=1)
    with pytest.raises(ValueError, match="a bound that is a number"):
        private(hardened=True, bound=Adaptive())
    with pytest.raises(ValueError, match="a noise_multiplier"):
        private(0.0, hardened=True)
