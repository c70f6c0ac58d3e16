"""Baselines: days walked once, intervals by hand, searches against brute force, and a record that holds together."""

import itertools
import json
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from benchmarks import ascent, contenders, environments, searches
from benchmarks.days import day_keys, interval, replay
from gridjax.env import policies
from gridjax.env.environment import Environment, Outcome, rollout
from gridjax.env.volt_var_tasks import volt_var

STEPS, DAYS = 3, 3


@flax.struct.dataclass
class Where:
    """Which day, and how many steps were made."""

    episode: jax.Array
    t: jax.Array


@dataclass(frozen=True)
class Chase(Environment):
    """Follow the day's goals: reward -(a - goal)^2 summed with a twist between neighbours; the cost is a's sum."""

    counts: tuple[int, ...]

    constraints = property(lambda self: ("sum, pu",))
    observation_names = property(lambda self: ("time",))
    action_size = property(lambda self: len(self.counts))
    action_counts = property(lambda self: self.counts)

    def begin(self, key, params):
        return Where(jax.random.randint(key, (), 0, params.shape[0]), jnp.zeros((), int))

    def observe(self, state, params):
        return 1.0 * state.t[None]

    def advance(self, key, state, action, params):
        gap = action - params[state.episode, state.t]
        reward = -jnp.sum(gap**2) - 0.5 * gap[0] * gap[-1]
        new = Where(state.episode, state.t + 1)
        yes = jnp.ones((), bool)
        return new, Outcome(reward, jnp.sum(jnp.abs(action))[None], yes, ~yes, new.t >= self.horizon, {"gap": gap[0]})


def test_intervals_are_students():
    mean, half = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert half == pytest.approx(3.182446305 * np.sqrt(5 / 3) / 2, rel=1e-9)  # t of 3 degrees of freedom at 0.975
    assert np.isnan(interval(np.array([1.0]))[1])


def test_every_day_is_walked_once_and_sums_are_its_own():
    env = Chase(STEPS, -9.0, (4, 5))
    goals = jnp.asarray(np.random.default_rng(0).uniform(0, 4, (7, STEPS, 2)))
    keys = day_keys(env, goals, 7, 0)
    actions = np.random.default_rng(1).integers(0, 4, (7, STEPS, 2))
    for at_once in (None, 3):  # the last chunk is not full
        sums = replay(env, keys, goals, actions, at_once)
        gap = actions - np.asarray(goals)
        expected = -(gap**2).sum(axis=2) - 0.5 * gap[..., 0] * gap[..., 1]
        np.testing.assert_allclose(sums["return"], expected.sum(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(sums["violation"][:, 0], actions.sum(axis=(1, 2)))
        np.testing.assert_array_equal(sums["violated"][:, 0], (actions.sum(axis=2) > 0).sum(axis=1))
        np.testing.assert_array_equal(sums["steps"], STEPS)


def test_the_best_constant_action_is_that_of_brute_force():
    env = Chase(STEPS, -9.0, (4, 5))
    goals = jnp.asarray(np.random.default_rng(2).uniform(0, 4, (5, STEPS, 2)))
    keys, price = day_keys(env, goals, 5, 0), np.array([0.3, 0.0])
    every = np.array(list(itertools.product(range(4), range(5))))
    scores = searches.constant_scores(env, goals, keys, every, price).mean(axis=1)
    gap = every[:, None, None] - np.asarray(goals)[None]
    by_hand = (-(gap**2).sum(axis=3) - 0.5 * gap[..., 0] * gap[..., 1] - 0.3 * every.sum(axis=1)[:, None, None]).sum(2)
    np.testing.assert_allclose(scores, by_hand.mean(axis=1), rtol=1e-12)
    action, found = searches.best_constant(env, goals, keys, np.zeros(2, int), price=price, groups=((0, 1), (0,), (1,)))
    assert found == pytest.approx(scores.max()) and action.tolist() == every[scores.argmax()].tolist()


def test_switches_that_pay_only_together_are_tried_together():
    env = Chase(STEPS, -9.0, (2, 2))
    goals = jnp.full((3, STEPS, 2), jnp.array([0.42, 0.5]))  # (0, 1) is best, and (1, 0) better than its neighbours
    keys, price, start = day_keys(env, goals, 3, 0), np.zeros(2), np.array([1, 0])
    alone, _ = searches.best_constant(env, goals, keys, start, price=price)
    together, _ = searches.best_constant(env, goals, keys, start, price=price, groups=((0, 1),))
    assert alone.tolist() == [1, 0] and together.tolist() == [0, 1]


def test_steps_in_turn_find_what_is_best_of_one_entry():
    env = Chase(STEPS, -9.0, (5,))
    goals = np.random.default_rng(7).uniform(0, 4, (3, STEPS, 1))
    keys, start = day_keys(env, jnp.asarray(goals), 3, 0), np.zeros((3, STEPS, 1), int)
    found = searches.step_by_step(env, jnp.asarray(goals), keys, [start, start + 4], price=np.zeros(2))
    np.testing.assert_array_equal(found, np.round(goals))  # of one entry the reward is -1.5 gap^2


def test_ascent_reaches_what_is_known():
    env = Chase(STEPS, -9.0, (0, 0))
    goals = np.random.default_rng(3).uniform(-0.7, 0.7, (4, STEPS, 2))
    goals[0, 0, 0] = 3.0  # out of reach: the nearest allowed
    keys = day_keys(env, jnp.asarray(goals), 4, 0)
    starts = [np.zeros((4, STEPS, 2)), np.full((4, STEPS, 2), 0.9)]
    found = ascent.ascend(env, jnp.asarray(goals), keys, starts, np.zeros(1), 200)
    inner = np.abs(goals).max(axis=2) < 1
    np.testing.assert_allclose(found[inner], goals[inner], atol=0.01)
    assert found[0, 0, 0] == 1.0 and found[0, 0, 1] == pytest.approx(min(goals[0, 0, 1] + 0.5, 1), abs=0.01)
    priced = ascent.ascend(env, jnp.asarray(goals), keys, starts, np.full(1, 100.0), 200)
    np.testing.assert_allclose(priced, 0, atol=0.01)  # a violation costs more than any goal is worth
    rest = jnp.asarray(goals[1:])
    action, _ = ascent.best_constant(env, rest, day_keys(env, rest, 3, 0), np.zeros(2), np.zeros(1), 200)
    np.testing.assert_allclose(action, goals[1:].mean(axis=(0, 1)), atol=0.01)


def test_paths_are_those_of_brute_force():
    rng = np.random.default_rng(4)
    stage, place = rng.normal(size=(2, 4, 3)), rng.integers(0, 5, (2, 4, 3, 2)).astype(float)
    start, weight = rng.integers(0, 5, (2, 2)).astype(float), np.array([0.3, 0.1])
    chosen = np.asarray(searches.best_path(stage, place, start, weight))
    for day in range(2):

        def total(path, day=day):
            at = np.concatenate([start[day][None], place[day][range(4), list(path)]])
            return stage[day][range(4), list(path)].sum() - (np.abs(np.diff(at, axis=0)) @ weight).sum()

        assert tuple(chosen[day]) == max(itertools.product(range(3), repeat=4), key=total)


def test_energies_are_those_of_brute_force():
    stage, taken = np.random.default_rng(5).normal(size=(2, 5, 3)), np.array([-1.0, 0.0, 1.0])
    start = np.array([1.0, 2.0])
    chosen = np.asarray(searches.best_energies(stage, taken, start, 0.0, 2.0))
    for day in range(2):

        def total(path, day=day):
            kwh = start[day] - np.cumsum(taken[list(path)])
            fits = np.all((kwh >= 0) & (kwh <= 2))
            return stage[day][range(5), list(path)].sum() if fits else -np.inf

        assert total(tuple(chosen[day])) == pytest.approx(max(map(total, itertools.product(range(3), repeat=5))))


def small(name, *, seed, days):
    """An environment of short days in the place of the one named."""
    return volt_var(gridjax.feeders.ieee13(), np.random.default_rng(seed).uniform(0.3, 1.0, (days, STEPS, 15)))


@pytest.fixture(scope="module")
def case():
    """What a quick run prepares of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "make", small)
        return contenders.prepare("VoltVar-ieee13-v0", contenders.QUICK, DAYS)


@pytest.fixture(scope="module")
def volts(case):
    return case.env, case.params, case.keys


def test_held_out_days_are_others_than_those_of_training(case):
    held_out, training = np.asarray(case.params.multiplier), np.asarray(case.training.multiplier)
    assert held_out.shape[0] == len(case.keys) == DAYS
    assert training.shape[0] == len(case.training_keys) == contenders.QUICK.training
    assert not np.isin(held_out, training).any()


def test_stages_and_moves_make_the_return(volts):
    env, params, keys = volts
    actions = np.random.default_rng(6).integers(0, env.action_counts, (DAYS, STEPS, env.action_size))
    actions[..., -1] = env.battery_count // 2  # energy to spare at all times
    kwh = np.broadcast_to(np.asarray(params.batteries.kwh_initial), (DAYS, STEPS, 1))
    stage = searches.stage_rewards(env, params, np.arange(DAYS), kwh, actions[:, :, None])[..., 0]
    neutral = np.r_[1, 1, 16, 16, 16]
    at = np.concatenate([np.broadcast_to(neutral, (DAYS, 1, 5)), actions[..., :5]], axis=1)
    moves = np.abs(np.diff(at, axis=1)).sum(axis=(1, 2)) / 33
    np.testing.assert_allclose(replay(env, keys, params, actions)["return"], stage.sum(axis=1) - moves, atol=1e-6)


def test_a_walk_is_a_rollout_of_the_same_days(volts):
    env, params, keys = volts
    policy = policies.nothing(env, params)
    actions = np.broadcast_to(np.asarray(policy.action, int), (DAYS, STEPS, env.action_size))
    ours = replay(env, keys, params, actions)["return"]
    seen, _ = rollout(env, policy, jax.random.key(0), params, steps=STEPS, batch=16)
    for value in np.asarray(seen.reward.sum(axis=0)):
        assert np.abs(ours - value).min() < 1e-6


def test_a_small_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contenders, "make", small)
    words = ["--quick", "--env", "VoltVar-ieee13-v0", "--out", str(tmp_path)]
    assert environments.main(words) == 0
    record = json.loads((tmp_path / "baselines.json").read_text())
    (case,) = record["environments"]
    rows = {row["policy"]: row for row in case["rows"]}
    assert "no inverters" in rows[contenders.DROOP]["not_run"]
    first = np.array(rows[contenders.NOTHING]["returns"])
    for policy in (contenders.CLASSICAL, contenders.CONSTANT, contenders.RANDOM, contenders.SEARCH):
        row = rows[policy]
        values = np.array(row["returns"])
        assert row["days"] == len(values) and row["unsolved"] == 0 and row["steps"] == row["whole"]
        beyond = row["means"]["beyond no control"]["mean"]
        if row["days"] == len(first):
            assert beyond == pytest.approx(np.mean(values - first), abs=1e-4)
    found = np.array(rows[contenders.SEARCH]["returns"])
    for policy in (contenders.NOTHING, contenders.CLASSICAL, contenders.CONSTANT):  # day by day
        assert np.all(found >= np.array(rows[policy]["returns"])[: len(found)] - 1e-4)
    assert rows[contenders.RANDOM]["means"]["tap_moves"]["mean"] > 0
    text = (tmp_path / "baselines.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| IEEE 1547 droop | - | there are no inverters" in text
    for plot in ("baselines_returns.svg", "baselines_violations.svg"):
        assert plot in text and (tmp_path / plot).read_text().rstrip().endswith("</svg>")


@pytest.mark.filterwarnings("ignore:feeder")
@pytest.mark.parametrize("name", ["DerControl-ieee34-v0", "Restoration-ieee123-v0"])
def test_the_record_is_of_the_days_of_now(name):
    """Whoever changes how days or circuits are made records the tables anew: the committed returns come out again."""
    record = json.loads((environments.ROOT / "docs/baselines.json").read_text())["environments"]
    case = contenders.prepare(name, None, None)
    rows = np.array([0, 40, 99])
    have = contenders.play(case, contenders.held(case, contenders.idle(case))[rows], rows).sums["return"]
    (recorded,) = (row for row in record if row["name"] == name)
    want = np.array(next(row for row in recorded["rows"] if row["policy"] == contenders.NOTHING)["returns"])[rows]
    np.testing.assert_allclose(have, want, rtol=1e-5)  # six digits are kept
