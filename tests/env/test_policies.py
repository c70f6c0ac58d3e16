"""Policies that learn nothing do what their names say, and know how probable it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments_for_tests import walk
from scipy import stats

import gridjax
from gridjax.control.inverters import terminal_voltages
from gridjax.control.switching import at_rest, switching
from gridjax.env import behaviours
from gridjax.env.behaviours import best_constant, kinds, named
from gridjax.env.der_tasks import der_control, equip
from gridjax.env.environment import rollout
from gridjax.env.holding import holding
from gridjax.env.policies import Stochastic, classical, constant, droop, noisy, nothing, random, volt_var_action
from gridjax.env.tasks import make
from gridjax.env.volt_var_tasks import powergym, volt_var
from gridjax.profiles import Profiles
from gridjax.series import Controls, ControlState, simulate

STEPS = 4


@pytest.fixture(scope="module")
def feeder():
    return gridjax.feeders.ieee13()


@pytest.fixture(scope="module")
def day():
    return np.random.default_rng(0).uniform(0.2, 1.0, (1, STEPS, 15))


def test_the_classical_controls_are_those_of_a_time_series(feeder, day):
    env, params = volt_var(feeder, day, actions="mixed")
    policy = classical(env, params, feeder)
    seen, _ = rollout(env, policy, jax.random.key(0), params, steps=STEPS)
    action = np.asarray(seen.action[:, 0])
    grid, loads = params.grid, params.grid.nominal
    profiles = Profiles(
        load_kw=jnp.asarray(day[0] * np.asarray(loads.load_kw)),
        load_kvar=jnp.asarray(day[0] * np.asarray(loads.load_kvar)),
        generation_kw=jnp.zeros((STEPS, 1)),
        generation_kvar=jnp.zeros((STEPS, 1)),
        hour=jnp.arange(STEPS) + 1.0,
    )
    controls = Controls(switching=switching(feeder, grid))
    start = dataclasses.replace(loads, tap=jnp.ones(3), capacitor=jnp.ones(2))
    state = ControlState(switching=at_rest(controls.switching, start))
    record, _ = simulate(grid, profiles, controls, state, differentiable=False)
    np.testing.assert_array_equal(action[:, :2], record.capacitor)
    np.testing.assert_allclose(0.9 + 0.00625 * action[:, 2:5], record.tap, atol=1e-12)
    np.testing.assert_allclose(seen.info["loss_kw"][:, 0], record.losses_kva.real, rtol=1e-7)
    np.testing.assert_array_equal(action[:, 5], 0.0)
    assert np.ptp(action[:, 2:5], axis=0).max() >= 2  # the controls had to move


def test_positions_mean_the_same_in_every_form_of_action(feeder, day):
    banks, position = jnp.array([1.0, 0.0]), jnp.array([3.0, 16.0, 32.0])
    for actions in ("discrete", "mixed", "continuous"):
        env, params = volt_var(feeder, day, actions=actions)
        action = volt_var_action(env, banks, position)
        assert (action.dtype == jnp.int32) == (actions == "discrete") and action.shape == (env.action_size,)
        for wanted, got in zip((banks, position, jnp.zeros(1)), env._targets(action, params), strict=True):
            np.testing.assert_allclose(wanted, got, atol=1e-12)


def test_regulators_keep_their_places_in_powergym_s_order(feeder, day):
    other = feeder.replace(regulators=feeder.regulators[::-1])  # powergym has them in the transformers' order
    env, params = powergym("ieee13", day, feeder=other)
    assert env.regulators != tuple(r.name for r in other.regulators)
    tap = dict(zip((r.name for r in other.regulators), (0.9, 1.0, 1.00625), strict=True))
    point = dataclasses.replace(params.grid.nominal, tap=jnp.array(list(tap.values())), capacitor=jnp.array([0.0, 1.0]))
    action = classical(env, params, other).asking_for(point)
    position = dict(zip(env.action_names, np.asarray(action).tolist(), strict=True))
    assert [position[f"tap {name}"] for name in tap] == [0, 16, 17]
    assert [position[f"capacitor {c.name}"] for c in feeder.capacitors] == [0, 1]


@pytest.fixture(scope="module")
def sunny(feeder):
    made = der_control(feeder, jax.random.key(0), days=2, hours=6.0, fleet=6, batteries=1, cars=2, penetration=3.0)
    return *made, equip(feeder, fleet=6, batteries=1, penetration=3.0)


def test_droop_rests_on_the_standard_s_curves(sunny):
    env, params, equipped = sunny
    policy = droop(env, params, equipped)

    @jax.jit
    def settled():
        state = dataclasses.replace(env.begin(jax.random.key(0), params), v=None, source_kw=None)
        action, _ = policy(None, None, state, None)
        both = jnp.stack([action, env.nothing()])
        point, *_ = jax.vmap(lambda a: env.act(state, a, params))(both)
        return both, point, jax.vmap(gridjax.solve, in_axes=(None, 0))(params.grid, point)

    (action, idle), points, flows = settled()
    point, flow = jax.tree.map(lambda a: a[0], (points, flows))
    u = np.asarray(terminal_voltages(policy.curves, flow.v))[np.asarray(params.pv_row)]
    kva = np.asarray(params.pv_kva)
    q = np.asarray(point.generation_kvar)[np.asarray(params.pv_row)] / kva
    wanted = np.interp(u, [0.92, 0.98, 1.02, 1.08], [0.44, 0.0, 0.0, -0.44])
    np.testing.assert_allclose(q, wanted, atol=2e-6)
    assert np.abs(q).max() > 0.02
    kw = np.asarray(point.generation_kw)[np.asarray(params.pv_row)]
    available = np.asarray(points.generation_kw)[1][np.asarray(params.pv_row)]
    rated = np.array([pv.pmpp_kw for pv in equipped.pv_systems])
    most = np.minimum(available, rated * np.interp(u, [1.06, 1.10], [1.0, 0.0]))
    np.testing.assert_allclose(kw, np.minimum(most, kva * np.sqrt(1 - wanted**2)), rtol=1e-5)
    np.testing.assert_array_equal(action[12:], idle[12:])  # battery idle, cars at full power
    beyond = np.abs(np.abs(np.asarray(flows.v)) - 1) - 0.05
    assert np.maximum(beyond, 0).sum(axis=1)[0] < np.maximum(beyond, 0).sum(axis=1)[1]


def test_droop_wants_the_feeder_with_its_devices(sunny, feeder):
    env, params, _ = sunny
    with pytest.raises(ValueError, match="equip"):
        droop(env, params, feeder)


def test_nothing_is_neutral_and_what_an_environment_says(feeder, day, sunny):
    env, params = volt_var(feeder, day)
    assert nothing(env, params).action == (1, 1, 16, 16, 16, 16)
    der, its, _ = sunny
    assert nothing(der, its).action == tuple(np.asarray(der.nothing()).tolist())
    with pytest.raises(ValueError, match="classical"):
        classical(walk()[0], None, feeder)


def test_equal_policies_compile_once():
    env, params = walk()
    before = rollout._cache_size()
    for _ in range(2):
        seen, _ = rollout(env, constant([0.25, 0.0]), jax.random.key(0), params, steps=3)
    assert rollout._cache_size() == before + 1
    np.testing.assert_allclose(np.diff(seen.observation[:, 0, 0]), 0.25)


def draws(policy):
    """4,000 actions and their log probabilities."""
    draw = jax.jit(jax.vmap(lambda key: policy.draw(key, None, None, None)[:2]))
    return draw(jax.random.split(jax.random.key(0), 4000))


def test_random_actions_have_the_probability_that_they_say():
    env, _ = walk(counts=(5, 0, 3))
    policy = random(env)
    assert isinstance(policy, Stochastic) and not isinstance(constant([0]), Stochastic)
    action, log_probability = draws(policy)
    np.testing.assert_allclose(log_probability, -np.log(5 * 2 * 3))
    counts = np.unique(np.asarray(action[:, 0]), return_counts=True)[1]
    assert stats.chisquare(counts).pvalue > 1e-3 and len(counts) == 5
    assert stats.kstest(np.asarray(action[:, 1]), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_noise_has_the_density_that_it_says():
    env, _ = walk(counts=(4, 0, 0))
    policy = noisy(env, constant([2, 0.9, -1.0]), share=0.3, width=0.4)
    action, log_probability = draws(policy)
    a = np.asarray(action)
    assert a[:, 1:].min() >= -1 and a[:, 1:].max() <= 1
    place = np.where(a[:, 0] == 2, 0.7 + 0.3 / 4, 0.3 / 4)
    number = [stats.truncnorm((-1 - b) / 0.4, (1 - b) / 0.4, b, 0.4) for b in (0.9, -1.0)]
    expected = np.log(place) + sum(d.logpdf(a[:, k + 1]) for k, d in enumerate(number))
    np.testing.assert_allclose(log_probability, expected, atol=1e-4)
    assert stats.kstest(a[:, 1], number[0].cdf).pvalue > 1e-3
    assert np.mean(a[:, 0] == 2) == pytest.approx(0.775, abs=0.03)
    with pytest.raises(ValueError, match="share"):
        noisy(env, constant([0, 0, 0]), share=0.0)


def test_the_best_constant_action_is_found():
    env, params = walk(counts=(0, 0), horizon=3)
    policy, best = best_constant(env, params, jax.random.key(0), candidates=64, rounds=12)
    # From x uniform in (0, 1), steps a: the mean of -sum (x + k a)^2 is largest at a = -E x sum k / sum k^2 = -3/7 E x.
    key = jax.random.split(jax.random.key(0), 13)[0]  # that of the days
    seen, _ = rollout(env, constant([0.0, 0.0]), key, params, steps=3, batch=16)
    assert policy.action[0] == pytest.approx(-3 / 7 * float(seen.observation[0, :, 0].mean()), abs=0.01)
    assert best > float(seen.reward.sum(0).mean())
    tied = best_constant(env, params, jax.random.key(0), tie=(0, 0), rounds=2)[0].action
    assert tied[0] == tied[1]


def test_an_episode_counts_to_its_end_only():
    env, _ = walk()
    limit, key = jnp.asarray(1.5), jax.random.key(3)
    policy, found = best_constant(env, limit, key, rounds=1, candidates=8)
    days = jax.random.split(key, 2)[0]
    score = behaviours._scores(env, jnp.array([[0.4, 0.0], policy.action]), days, limit, 16)
    assert score[1] == pytest.approx(found)
    rows, _ = rollout(env, constant([0.4, 0.0]), days, limit, steps=env.horizon, batch=16)
    by_hand = 0.0
    for reward, ended in zip(np.asarray(rows.reward).T, np.asarray(rows.terminated | rows.truncated).T, strict=True):
        by_hand += reward[: np.flatnonzero(ended)[0] + 1].sum() / 16
    assert score[0] == pytest.approx(by_hand) and by_hand > np.asarray(rows.reward).sum() / 16 + 10


def test_kinds_are_numbered_without_gaps(sunny):
    env = dataclasses.replace(sunny[0], inverters=("a", "b"), batteries=(), cars=("c",))
    assert behaviours.kinds(env) == (0, 0, 1, 1, 2)


def test_unknown_names_are_refused(feeder):
    env, params = walk()
    with pytest.raises(ValueError, match="no behaviour 'clever'"):
        named({"clever": 1.0}, env, params, feeder, jax.random.key(0))


def test_holding_keeps_settings_and_moves_tied_entries_together():
    env, _ = make("DerControl-ieee13-v0", days=1)
    base = np.asarray(env.nothing()) * 0.5
    tie = kinds(env)
    policy, memory = holding(env, base, share=0.3, width=0.1, tie=tie)

    def step(memory, key):
        action, memory = policy(key, None, None, memory)
        return memory, action

    actions = np.asarray(jax.lax.scan(step, memory, jax.random.split(jax.random.key(3), 4000))[1])
    first = np.array([tie.index(g) for g in range(max(tie) + 1)])
    np.testing.assert_allclose(actions - base, (actions - base)[:, first[np.array(tie)]], atol=1e-12)
    changed = np.diff(actions[:, first], axis=0) != 0
    assert np.all(np.abs(changed.mean(axis=0) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 3999))
    assert np.abs((actions - base).std() - 0.1) < 0.01


@pytest.mark.parametrize("name, groups", [("holding-middle", 4), ("holding-each", None)])
def test_trials_cover_the_range_around_its_middle(sunny, name, groups):
    """Devices of a kind together, or each by itself."""
    env, params, feeder = sunny
    (made,) = named({name: 1.0}, env, params, feeder, jax.random.key(0))

    def first(key):
        return made.policy(key, None, None, made.memory)[0]

    actions = np.asarray(jax.vmap(first)(jax.random.split(jax.random.key(1), 2000)))
    assert np.abs(actions.mean(axis=0)).max() < 0.06 and (actions.min(axis=0) == -1).all()
    assert len({tuple(column) for column in actions.T}) == (groups or env.action_size)


def test_holding_draws_positions_once_where_nothing_changes():
    env, params = make("VoltVar-ieee13-v0", days=1)
    policy, memory = holding(env, nothing(env, params).action, share=0.0, width=0.2)
    seen = []
    for key in jax.random.split(jax.random.key(1), 3):
        action, memory = policy(key, None, None, memory)
        seen.append(np.asarray(action))
    assert seen[0].dtype == np.int32 and np.array_equal(seen[0], seen[1]) and np.array_equal(seen[1], seen[2])
    assert np.all((seen[0] >= 0) & (seen[0] < np.array(env.action_counts)))
    with pytest.raises(ValueError, match="positive width"):
        holding(env, seen[0], width=0.0)
    with pytest.raises(ValueError, match="entries"):
        holding(env, seen[0][:2])
