"""The shield: corrections against projections by hand, and DER control within its limits where it was not."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments_for_tests import Walk, walk

from algorithms.spaces import space_of
from gridjax.env.broadcast import broadcast
from gridjax.env.device_view import device_view
from gridjax.env.environment import Outcome
from gridjax.env.lanes import where_some
from gridjax.env.pettingzoo import GridParallelEnv
from gridjax.env.shield import REACH, shield
from gridjax.env.summary import summary
from gridjax.env.tasks import feeder_of, make

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Plane(Walk):
    """The walk, moved by a_0 + 2 a_1, with a second constraint on a_1."""

    @property
    def constraints(self):
        return ("beyond 1", "second below -0.5")

    def advance(self, key, state, action, params):
        x, t = state
        x = x + action[0] + 2 * action[1]
        cost = jnp.stack([jnp.maximum(jnp.abs(x) - 1, 0.0), jnp.maximum(-0.5 - action[1], 0.0)])
        out = Outcome(-(x**2), cost, jnp.abs(x) <= params, jnp.zeros((), bool), t + 1 >= self.horizon, {})
        return (x, t + 1), out


PLANE = Plane(horizon=5, failure_penalty=-100.0)


def taken(guarded, x, action, params=jnp.inf):
    """What came of an action at x: its distance, cost and info; x + a_0 (+ 2 a_1) afterwards."""
    state = (jnp.asarray(x, float), jnp.zeros((), jnp.int32))
    return jax.jit(guarded.advance)(KEY, state, jnp.asarray(action), jnp.asarray(params))


def test_an_action_within_the_limits_stays_as_it_is():
    env, params = walk()
    (x, _), out = taken(shield(env), 0.25, [0.5, -0.75], params)
    assert x == 0.75 and out.cost == 0.0 and out.info["corrected"] == out.info["correction"] == 0.0
    slope = jax.grad(lambda a: shield(env).advance(KEY, (jnp.array(0.25), jnp.array(0)), a, params)[1].reward)
    np.testing.assert_allclose(slope(jnp.array([0.5, -0.75])), [-1.5, 0.0])  # of -(0.25 + a_0)^2


def test_an_action_beyond_a_limit_is_projected():
    """One step, as the violation is linear: to the margin within the limit; the entry without effect stays."""
    env, params = walk()
    (x, _), out = taken(shield(env, margin=0.01), 0.5, [0.7, 0.3], params)
    np.testing.assert_allclose(x, 0.99, atol=1e-12)
    assert out.cost == 0.0 and out.info["corrected"] == 1.0
    np.testing.assert_allclose(out.info["correction"], 0.21 / np.sqrt(2), atol=1e-12)


def test_no_entry_moves_far_in_one_step():
    """From 1.9 by a quarter, four times at most, where the projection would take one step."""
    env, params = walk()
    for steps, cost in ((1, 0.9), (2, 0.65), (3, 0.4), (4, 0.15), (5, 0.0)):
        guarded = shield(env, margin=0.01, steps=steps, backup=(1.0, 0.0))
        _, out = taken(guarded, 0.9, [1.0, 0.3], params)
        np.testing.assert_allclose(out.cost, [cost], atol=1e-12)
    assert REACH == 0.25


@pytest.mark.parametrize("willing", [(1.0, 1.0), (1.0, 0.25), (0.0, 1.0)])
def test_what_is_willing_moves_first(willing):
    """From x = 0 with a = (0.8, 0.2): f = 0.2, g = (1, 2), so a - (f + m) W g / (g W g)."""
    guarded = shield(PLANE, willing=willing, margin=0.05)
    action, w, g = jnp.array([0.8, 0.2]), np.array(willing), np.array([1.0, 2.0])
    found = guarded.corrected(KEY, (jnp.array(0.0), jnp.array(0)), action, jnp.inf)
    np.testing.assert_allclose(found, action - 0.25 * w * g / (g @ (w * g)), atol=1e-12)


def test_several_constraints_and_the_ends_of_the_range_are_kept():
    """x = -1.4: without the second entry, held at -0.5 and above, a_0 would have to be above 1."""
    guarded = shield(PLANE, margin=1e-3, steps=50)
    (x, _), out = taken(guarded, -1.4, [0.9, -0.9])
    assert np.all(np.asarray(out.cost) == 0.0) and -1 <= x <= 1


def test_the_least_violation_is_taken_where_there_must_be_one():
    env, params = walk()
    (x, _), out = taken(shield(env), 3.0, [0.2, 0.0], params)
    assert x == 2.0 and out.cost == 1.0


def test_the_backup_is_taken_where_the_action_is_not_solved():
    """What is not solved has no slope; the backup, -0.7, is corrected in its turn."""
    env, _ = walk()
    (x, _), out = taken(shield(env, backup=(-0.7, 0.0), margin=0.1), -0.4, [-1.0, 0.0], params=1.3)
    np.testing.assert_allclose(x, -0.9, atol=1e-12)
    assert out.solved and out.cost == 0.0


def test_a_shield_may_be_mistaken():
    """It believes that nothing above 0.5 is solved, and goes by its backup; or that all is, and does nothing."""
    env, _ = walk()
    (x, _), _ = taken(shield(env, model=lambda params: 0.5 * params), 0.3, [0.5, 0.0], params=1.0)
    assert x == 0.3
    env = Plane(horizon=5, failure_penalty=-100.0)
    (x, _), out = taken(shield(env, model=lambda params: params + 9, backup=(0.0, 0.0)), 0.0, [0.9, 0.0], params=0.8)
    assert x == 0.9 and not out.solved


def test_der_control_is_kept_within_its_limits():
    """Random actions: without the shield most steps violate a limit; with it none that could be avoided does."""
    env, params = make("DerControl-ieee13-v0", days=4)
    guarded, _ = make("DerControl-ieee13-v0", days=4, shield=True)
    assert guarded.base is guarded.inner and guarded.inner == env
    keys = jax.random.split(KEY, 12)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    action = jax.random.uniform(KEY, (12, env.action_size), float, -1.0, 1.0)
    action = action.at[0].set(env.nothing())

    def moved(one):
        return jax.jit(jax.vmap(one.move, in_axes=(0, 0, 0, None)))(keys, state, action, params)

    (_, _, before, *_), (_, reward, after, *_, info) = moved(env), moved(guarded)
    before, after = (np.asarray(c).sum(axis=1) for c in (before, after))
    assert (before > 0.01).sum() >= 6 and np.all(after <= before) and (after > 1e-9).sum() <= 1, after
    np.testing.assert_array_equal(np.asarray(info["corrected"]) == 1.0, before > 1e-9)
    single = jax.jit(guarded.move)(keys[5], jax.tree.map(lambda a: a[5], state), action[5], params)
    np.testing.assert_allclose(single[1], reward[5], rtol=1e-9)  # a batch is a loop


def test_signals_and_summaries_go_around_it():
    name = "DerControl-ieee13-v0"
    guarded, params = make(name, days=1, shield=True)
    env = make(name, days=1)[0]
    tied = broadcast(guarded)
    assert tied.action_size == 4 and tied.names == broadcast(env).names
    np.testing.assert_array_equal(tied.nothing(), broadcast(env).nothing())
    short = summary(tied)
    assert short.observation_names == summary(broadcast(env)).observation_names
    assert make(name, days=1, shield=True, summary=True)[0].observation_names == summary(env).observation_names
    feeder = feeder_of(name, shield=True)
    assert feeder.storages == feeder_of(name).storages
    assert device_view(guarded, params, feeder) == device_view(env, params, feeder)
    with pytest.raises(ValueError, match="Summary: its whole-feeder observation"):
        device_view(summary(guarded), params, feeder)
    assert space_of(short).action_size == 4


def test_devices_that_act_by_themselves_are_shielded():
    """In PettingZoo's form, with every device's numbers at random, as the whole action is."""
    many = GridParallelEnv("DerControl-ieee13-v0", days=2, shield=True)
    _, _ = many.reset(seed=0), many.action_space(many.agents[0])
    rng = np.random.default_rng(0)
    *_, info = many.step({agent: rng.uniform(-1, 1, 2) for agent in many.agents})
    one = info[many.possible_agents[0]]
    assert one["corrected"] == 1.0 and one["correction"] > 0.01 and one["cost"].sum() < 1e-6


def test_an_action_that_cannot_be_moved_costs_no_more_power_flows():
    """Nothing has a slope beyond 1.3: one look at the action and one at the backup, then it ends."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Counted(Walk):
        def advance(self, key, state, action, params):
            jax.debug.callback(lambda _: seen.append(1), action)
            return super().advance(key, state, action, params)

    env = Counted(horizon=5, failure_penalty=-100.0)
    _, out = taken(shield(env, backup=(-0.95, 0.0)), -0.5, [-1.0, 0.0], params=1.3)
    jax.effects_barrier()
    assert not out.solved and len(seen) == 4  # the action's own step before and after


def test_what_makes_no_sense_is_refused():
    env, _ = walk(counts=(3, 3))
    with pytest.raises(ValueError, match="Walk has actions that are positions"):
        shield(env)
    env, _ = walk()
    wrong: list[dict[str, Any]] = [{"margin": 0.0}, {"steps": 0}, {"weights": (1.0, 1.0)}, {"backup": (0.0,)}]
    wrong.append({"willing": (1.0, -1.0)})
    with pytest.raises(ValueError, match="VoltVar does not say what controls nothing: give a backup action"):
        make("VoltVar-ieee13-v0", days=1, actions="continuous", shield=True)
    for more in wrong:
        with pytest.raises(ValueError, match="give"):
            shield(env, **more)


def halved(shared, x, n):
    """x halved until it is below shared, and how often by now."""
    return jax.lax.while_loop(lambda c: c[0] >= shared, lambda c: (c[0] / 2, c[1] + 1), (x, n))


@pytest.mark.parametrize("at_once", [1, 3, 128])
def test_lanes_that_need_it_are_computed(at_once):
    some = where_some(halved, at_once)
    x, n = jnp.arange(12.0).reshape(3, 4), jnp.arange(12).reshape(3, 4)

    def one(x, n, shared=2.0):
        return some((x % 3) == 1, (-x, n), shared, x, n)

    def expected(x, n, shared=2.0):
        while x % 3 != 1 or x < shared:
            return (x, n) if x % 3 == 1 else (-x, n)
        while x >= shared:
            x, n = x / 2, n + 1
        return x, n

    want = np.array([expected(float(a), int(b)) for a, b in zip(x.ravel(), n.ravel(), strict=True)]).reshape(3, 4, 2)
    inside = jax.vmap(lambda x, n: jax.lax.map(lambda lane: one(*lane), (x, n)))
    for way in (jax.jit(jax.vmap(jax.vmap(one))), inside):
        np.testing.assert_array_equal(np.stack(way(x, n), axis=-1), want)
    shared = jnp.array([2.0, 8.0, 100.0])
    own = jax.vmap(lambda x, n, s: jax.vmap(lambda a, b: one(a, b, s))(x, n))(x, n, shared)
    np.testing.assert_array_equal(own[1][2], [8, 9, 10, 11])  # none is above 100
    np.testing.assert_array_equal(np.stack(own, axis=-1)[0], want[0])
