"""Every loss against NumPy written out here, on the outputs of small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms import awr, constrained, cql, iql, rebrac, td3_bc
from algorithms.batches import Batch
from algorithms.learning import cosine, imitation_loss, learner, temporal_loss
from algorithms.networks import Design
from algorithms.spaces import plain_space

ROWS, SPACE = 6, plain_space(3, (0, 0))
DESIGN = Design(SPACE, (8,))
ACTOR, CRITIC, VALUE = jax.jit(lambda key: DESIGN.begin(key, "actor", "critic", "value"))(jax.random.key(0))
MASK, FOLLOWS = np.array([1, 1, 0, 1, 1, 1.0]), np.array([1, 1, 0, 1, 0, 1.0])
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    columns = {
        "observation": draw.normal(size=(ROWS, 3)), "action": draw.uniform(-0.9, 0.9, (ROWS, 2)),
        "reward": draw.normal(size=ROWS), "cost": draw.uniform(size=(ROWS, 1)),
        "next_observation": draw.normal(size=(ROWS, 3)), "next_action": draw.uniform(-0.9, 0.9, (ROWS, 2)),
        "mask": MASK, "follows": FOLLOWS, "value": draw.normal(size=ROWS),
    }  # fmt: skip
    return Batch(**{name: jnp.asarray(a, jnp.float32) for name, a in columns.items()})


@pytest.fixture(scope="module")
def seen(batch):
    """What the networks put out at the batch, in double precision."""
    chosen = DESIGN.act(ACTOR, batch.observation)
    out = {
        "mean": chosen.mean, "log_std": chosen.log_std, "v": DESIGN.v(VALUE, batch.observation),
        "q": DESIGN.q(CRITIC, batch.observation, batch.action),
        "q_actor": DESIGN.q(CRITIC, batch.observation, chosen.mean),
    }  # fmt: skip
    return {name: np.asarray(a, float) for name, a in out.items()}


def log_normal(x, mean, log_std):
    """Sum over entries of the normal density's logarithm."""
    return np.sum(-0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi), axis=-1)


def test_half_an_expectile_is_the_mean():
    draw = np.random.default_rng(1).exponential(size=500)
    places = np.linspace(0, 3, 3001)
    for expectile in (0.5, 0.9):
        losses = np.mean(np.asarray(iql.expectile_loss(draw[None] - places[:, None], expectile)), axis=1)
        best = places[int(np.argmin(losses))]
        if expectile == 0.5:
            np.testing.assert_allclose(best, draw.mean(), atol=2e-3)
        else:  # where the weighted distances above and below are equal
            above, below = np.maximum(draw - best, 0).mean(), np.maximum(best - draw, 0).mean()
            np.testing.assert_allclose(0.9 * above, 0.1 * below, rtol=0.02)


def test_value_loss_is_asymmetric_around_the_critics_value(batch, seen):
    q, config = np.linspace(-1, 1, ROWS), iql.Config(expectile=0.8)
    u = q - seen["v"]
    assert (u > 0).any() and (u < 0).any()
    loss, _ = iql.value_loss(VALUE, jnp.asarray(q, jnp.float32), batch, config, DESIGN)
    np.testing.assert_allclose(loss, np.mean(np.where(u > 0, 0.8, 0.2) * u**2), **CLOSE)


def test_bootstrap_stops_at_an_end_and_not_at_the_time_limit(batch, seen):
    after = np.arange(1.0, ROWS + 1)
    loss, _ = temporal_loss(CRITIC, jnp.asarray(after, jnp.float32), batch, 0.9, DESIGN)
    goal = np.asarray(batch.reward, float) + 0.9 * np.array([1, 2, 0, 4, 5, 6])  # row 4 is cut off, row 2 is an end
    np.testing.assert_allclose(loss, np.mean(np.sum((seen["q"] - goal) ** 2, axis=0)), **CLOSE)


def test_weights_grow_with_the_advantage_to_a_top():
    a = np.array([-1.0, 0.0, 0.5, 50.0])
    np.testing.assert_allclose(iql.weights(a, 2.0), [np.exp(-2), 1, np.e, 100], **CLOSE)
    np.testing.assert_allclose(awr.weights(a, 0.5), [np.exp(-2), 1, np.e, 20], **CLOSE)


def test_imitation_is_the_weighted_log_likelihood(batch, seen):
    weight = np.arange(ROWS, dtype=float)
    loss, _ = imitation_loss(ACTOR, jnp.asarray(weight, jnp.float32), batch, DESIGN)
    log_prob = log_normal(np.asarray(batch.action, float), seen["mean"], seen["log_std"])
    np.testing.assert_allclose(loss, -np.mean(weight * log_prob), **CLOSE)


def test_slope_extraction(batch, seen):
    """The likelihood is that of a width of one, whatever the actor's own is, so that alpha alone weighs it."""
    wide = jax.tree_util.tree_map_with_path(
        lambda path, a: a + 0.5 if "log_std" in jax.tree_util.keystr(path) else a, ACTOR
    )
    q = seen["q_actor"].min(axis=0)
    log_prob = log_normal(np.asarray(batch.action, float), seen["mean"], np.zeros(2))
    for params in (ACTOR, wide):
        loss, _ = iql.slope_loss(params, CRITIC, batch, iql.Config(alpha=0.3), DESIGN)
        np.testing.assert_allclose(loss, -q.mean() / np.abs(q).mean() - 0.3 * log_prob.mean(), **CLOSE)


def test_td3_bc_actor_loss(batch, seen):
    loss, _ = td3_bc.actor_loss(ACTOR, CRITIC, batch, td3_bc.Config(alpha=1.5), DESIGN)
    q = seen["q_actor"][0]
    square = np.mean((seen["mean"] - np.asarray(batch.action, float)) ** 2)
    np.testing.assert_allclose(loss, -1.5 / np.abs(q).mean() * q.mean() + square, **CLOSE)


def test_the_slopes_factor_has_no_derivative(batch):
    """Else the slope of -E Q / E |Q| is zero wherever all Q have one sign."""
    for module, config in ((td3_bc, td3_bc.Config()), (rebrac, rebrac.Config(actor_penalty=0.0))):
        shifted = jax.tree.map(lambda a: a, CRITIC)
        shifted = jax.tree_util.tree_map_with_path(
            lambda path, a: a + 50.0 if a.shape == (1,) and "bias" in jax.tree_util.keystr(path) else a, shifted
        )

        def both(params, module=module, config=config, shifted=shifted):
            loss, metrics = module.actor_loss(params, shifted, batch, config, DESIGN)
            return metrics["q_actor"], loss

        slope, whole = jax.jit(jax.jacrev(both))(ACTOR)
        if module is rebrac:
            q = np.abs(np.asarray(DESIGN.q(shifted, batch.observation, DESIGN.act(ACTOR, batch.observation).mode())))
            for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(b, -np.asarray(a) / q.min(axis=0).mean(), rtol=1e-3, atol=1e-7)
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole)) > 1e-5


def test_next_actions_have_clipped_noise(batch):
    mode = np.asarray(DESIGN.act(ACTOR, batch.observation).mode())
    none = td3_bc.noisy_action(jax.random.key(3), ACTOR, batch.observation, 0.0, 0.5, DESIGN)
    np.testing.assert_array_equal(none, mode)
    noisy = td3_bc.noisy_action(jax.random.key(3), ACTOR, batch.observation, 10.0, 0.25, DESIGN)
    moved = np.abs(np.asarray(noisy) - mode)
    assert moved.max() <= 0.25 + 1e-6 and np.median(moved) > 0.2
    wild = td3_bc.noisy_action(jax.random.key(3), ACTOR, batch.observation, 10.0, 9.0, DESIGN)
    assert np.abs(np.asarray(wild)).max() == 1.0


def test_rebrac_penalises_next_actions_where_they_are_known(batch):
    action = np.random.default_rng(2).uniform(-1, 1, (ROWS, 2))
    given = jnp.asarray(action, jnp.float32)
    got = rebrac.next_value(CRITIC, given, batch, rebrac.Config(critic_penalty=0.7), DESIGN)
    q = np.asarray(DESIGN.q(CRITIC, batch.next_observation, given), float).min(axis=0)
    penalty = np.sum((action - np.asarray(batch.next_action, float)) ** 2, axis=-1)
    np.testing.assert_allclose(got, q - 0.7 * penalty * np.array([1, 1, 0, 1, 0, 1]), **CLOSE)


def test_rebrac_actor_loss(batch, seen):
    loss, _ = rebrac.actor_loss(ACTOR, CRITIC, batch, rebrac.Config(actor_penalty=0.4), DESIGN)
    q = seen["q_actor"].min(axis=0)
    square = np.mean(np.sum((seen["mean"] - np.asarray(batch.action, float)) ** 2, axis=-1))
    np.testing.assert_allclose(loss, 0.4 * square - q.mean() / np.abs(q).mean(), **CLOSE)


@pytest.mark.parametrize("trace", [0.0, 0.6, 1.0])
def test_lambda_returns_as_mixed_n_step_returns(batch, trace):
    """The definition: (1 - lambda) sum lambda^(n-1) G^(n), the rest of the weight on the longest there is."""
    after = np.linspace(-2, 2, ROWS)
    got = awr.lambda_returns(jnp.asarray(after, jnp.float32), batch, awr.Config(discount=0.9, trace=trace))
    reward, last = np.asarray(batch.reward, float), [2, 2, 2, 4, 4, 5]  # an end at row 2, cut off at 4; row 5 goes on
    for t in range(ROWS):
        n_steps = [
            sum(0.9 ** (k - t) * reward[k] for k in range(t, end + 1)) + 0.9 ** (end + 1 - t) * MASK[end] * after[end]
            for end in range(t, last[t] + 1)
        ]
        wanted = sum((1 - trace) * trace**n * g for n, g in enumerate(n_steps[:-1])) + (
            trace ** (len(n_steps) - 1) * n_steps[-1]
        )
        if t < 5:
            np.testing.assert_allclose(got[t], wanted, **CLOSE)


def test_values_of_awr_meet_the_returns(batch, seen):
    loss, _ = awr.value_loss(VALUE, batch, DESIGN)
    np.testing.assert_allclose(loss, np.mean((np.asarray(batch.value, float) - seen["v"]) ** 2), **CLOSE)


def test_the_sampled_integral_is_the_integral():
    """For Q = - 3 (a - 0.4)^2 in one dimension, and densities that differ by sample, against a fine sum."""
    grid = np.linspace(-1, 1, 200_001)
    true = np.log(np.mean(np.exp(-3 * (grid - 0.4) ** 2)) * 2)
    n, draw = 40_000, np.random.default_rng(0)
    even = draw.uniform(-1, 1, n)
    u = 0.2 + 0.8 * draw.normal(size=n)  # a tanh of a normal number, as the policy's samples are
    near = np.tanh(u)
    log_near = -0.5 * ((u - 0.2) / 0.8) ** 2 - np.log(0.8 * np.sqrt(2 * np.pi)) - np.log(1 - near**2)
    a = np.concatenate([even, near])[:, None]
    log_density = np.concatenate([np.full(n, np.log(0.5)), log_near])[:, None]
    got = cql.log_integral(jnp.asarray(-3 * (a - 0.4) ** 2)[None], jnp.asarray(log_density))
    np.testing.assert_allclose(got, [[true]], atol=0.01)
    flat = cql.log_integral(jnp.zeros((2, 7, 1)), jnp.full((7, 1), -2 * np.log(2.0)))
    np.testing.assert_allclose(flat, np.full((2, 1), np.log(4.0)), rtol=1e-6)  # a square of side 2


def test_cqls_actions_come_from_what_their_densities_say(batch):
    space = plain_space(3, (0, 3, 2))
    design = Design(space, (8,), squashed=True, free_std=True)
    (actor,) = jax.jit(lambda key: design.begin(key, "actor"))(jax.random.key(1))
    mixed = batch.replace(action=jnp.zeros((ROWS, 3), jnp.float32))
    features, log_density = jax.jit(lambda key: cql.actions(key, actor, mixed, 4, design))(jax.random.key(2))
    assert features.shape == (12, ROWS, 3) and log_density.shape == (12, ROWS)
    np.testing.assert_allclose(log_density[:4], np.full((4, ROWS), -np.log(2 * 3 * 2)), rtol=1e-6)
    density = jax.jit(lambda x, a: jax.vmap(design.act(actor, x).log_prob)(a))
    top = jnp.array([0.0, 1.0, 0.5], jnp.float32).reshape(1, 1, 3)
    actions = jnp.where(top > 0, (features + 1) * top, features)  # positions of the features
    for rows, where in ((slice(4, 8), mixed.observation), (slice(8, 12), mixed.next_observation)):
        wanted = density(where, actions[rows])
        np.testing.assert_allclose(log_density[rows], wanted, atol=2e-3)
    even, _ = cql.uniform(jax.random.key(5), space, (4000,))
    np.testing.assert_allclose(np.bincount(np.asarray(even[:, 1], int)) / 4000, [1 / 3] * 3, atol=0.03)
    np.testing.assert_allclose([even[:, 0].mean(), (even[:, 0] ** 2).mean()], [0, 1 / 3], atol=0.03)


def test_cql_pushes_the_critics_down_away_from_the_data(batch, seen):
    draw = np.random.default_rng(4)
    others, log_density = draw.uniform(-1, 1, (5, ROWS, 2)), draw.normal(size=(5, ROWS))
    drawn = (jnp.asarray(others, jnp.float32), jnp.asarray(log_density, jnp.float32))
    after, config = jnp.zeros(ROWS, jnp.float32), cql.Config(discount=0.9)
    c = jnp.float32(2.0)
    loss, metrics = jax.jit(lambda p: cql.critic_loss(p, after, drawn, c, batch, DESIGN, config))(CRITIC)
    wide = jnp.broadcast_to(batch.observation[None], (5, ROWS, 3))
    q = np.asarray(DESIGN.q(CRITIC, wide, drawn[0]), float)
    over = np.log(np.mean(np.exp(q - log_density), axis=1)) - seen["q"]
    td = np.sum((seen["q"] - np.asarray(batch.reward, float)) ** 2, axis=0)
    np.testing.assert_allclose(loss, np.mean(td + 2.0 * over.sum(axis=0)), **CLOSE)
    np.testing.assert_allclose(metrics["excess"], over.mean(), **CLOSE)
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(cql.excess(p, drawn, batch, DESIGN))))(CRITIC)
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, CRITIC, gradient)
    rise = np.asarray(DESIGN.q(moved, batch.observation, batch.action), float) - seen["q"]
    fall = np.asarray(DESIGN.q(moved, wide, drawn[0]), float) - q
    assert rise.mean() > fall.mean() + 1e-3


def test_sac_losses(batch):
    design = Design(SPACE, (8,), squashed=True, free_std=True)
    (actor,) = jax.jit(lambda key: design.begin(key, "actor"))(jax.random.key(1))
    key = jax.random.key(7)
    action, log_prob = jax.jit(lambda key: design.act(actor, batch.observation).sample(key))(key)
    q = np.asarray(design.q(CRITIC, batch.observation, action), float).min(axis=0)
    loss, metrics = jax.jit(lambda key: cql.actor_loss(actor, key, CRITIC, 0.3, batch, design))(key)
    np.testing.assert_allclose(loss, np.mean(0.3 * np.asarray(log_prob, float) - q), **CLOSE)
    np.testing.assert_allclose(cql.goal(cql.Config(), SPACE), -2.0)
    np.testing.assert_allclose(cql.goal(cql.Config(position_entropy=0.5), plain_space(3, (0, 4))), -1 + np.log(2))
    np.testing.assert_allclose(metrics["log_pi"], np.mean(np.asarray(log_prob, float)), **CLOSE)


def test_alpha_rises_below_the_entropy_and_the_multiplier_above_the_gap():
    for log_pi, sign in ((3.0, -1), (1.0, 1)):  # the entropy is -log_pi, and -2 is aimed at
        slope = jax.grad(lambda a, p=log_pi: cql.alpha_loss(a, p, -2.0)[0])(0.1)
        assert np.sign(slope) == sign  # the loss falls towards a larger alpha where the entropy is too low
    for over, sign in ((6.0, -1), (4.0, 1)):
        slope = jax.grad(lambda a, o=over: cql.multiplier_loss(a, o, 5.0)[0])(0.1)
        np.testing.assert_allclose(slope, sign * np.exp(0.1), rtol=1e-6)
    assert cql.multiplier(jnp.asarray(50.0)) == 1e6


def test_pid_by_hand():
    config = constrained.Config(limit=0.5, proportional=2.0, integral=0.1, derivative=4.0, smoothing=1.0, most=6.0)
    control = constrained.Control(*jnp.zeros(4, jnp.float32))
    # e = -0.3, 0.5, 0.4, -0.5, 3.5: the integral is cut at 0, falling errors have no derivative, the top is 6.
    wanted = [0.0, 0.05 + 1.0 + 4 * 0.8, 0.09 + 0.8, 0.04, 6.0]
    for cost, multiplier in zip([0.2, 1.0, 0.9, 0.0, 4.0], wanted, strict=True):
        control = constrained.controlled(control, jnp.asarray(cost, jnp.float32), config)
        np.testing.assert_allclose(control.multiplier, multiplier, rtol=1e-5)


def test_the_costs_value_is_weighted_as_the_policy_is(batch, seen):
    c, weight = np.linspace(0, 2, ROWS), np.linspace(0, 3, ROWS)
    of = [jnp.asarray(a, jnp.float32) for a in (c, weight)]
    loss, _ = constrained.cost_value_loss(VALUE, *of, batch, DESIGN)
    np.testing.assert_allclose(loss, np.mean(weight * (c - seen["v"]) ** 2), **CLOSE)
    two = plain_space(3, (0, 0), constraints=2)
    both = batch.replace(cost=jnp.stack([batch.reward, batch.value], -1))
    got = constrained.priced(both, (2.0, 0.5), two).reward
    np.testing.assert_allclose(got, 2 * np.asarray(batch.reward) + 0.5 * np.asarray(batch.value), rtol=1e-5)
    np.testing.assert_allclose(constrained.priced(both, (), two).reward, both.cost.sum(axis=-1), rtol=1e-5)
    with pytest.raises(ValueError, match="1 weights for 2 costs"):
        constrained.priced(both, (1.0,), two)


def test_columns_are_not_combined_with_vectors(batch):
    """Where NumPy would make an (n, n) of an (n,) and an (n, 1), each loss refuses it."""
    column, row = jnp.ones((ROWS, 1), jnp.float32), jnp.ones(ROWS, jnp.float32)
    standing = batch.replace(value=column, reward=row)
    drawn = (jnp.zeros((5, ROWS, 2), jnp.float32), jnp.zeros((5, 1), jnp.float32))
    calls = {
        "value": lambda: iql.value_loss(VALUE, column, batch, iql.Config(), DESIGN),
        "temporal": lambda: temporal_loss(CRITIC, column, batch, 0.9, DESIGN),
        "imitation": lambda: imitation_loss(ACTOR, column, batch, DESIGN),
        "returns": lambda: awr.lambda_returns(column, batch, awr.Config()),
        "awr": lambda: awr.value_loss(VALUE, standing, DESIGN),
        "excess": lambda: cql.log_integral(jnp.zeros((2, 5, ROWS)), drawn[1]),
        "cost": lambda: constrained.cost_value_loss(VALUE, row, column, batch, DESIGN),
        "rebrac": lambda: rebrac.next_value(CRITIC, column, batch, rebrac.Config(), DESIGN),
        "squares": lambda: td3_bc.squares(ACTOR, batch.replace(action=column), DESIGN),
    }
    with jax.numpy_rank_promotion("allow"):
        for name, call in calls.items():
            with pytest.raises(ValueError, match="must not be combined"):
                jax.eval_shape(call)
                pytest.fail(name)


def test_losses_that_stay_near_the_data_move_with_its_actions(batch):
    weight = jnp.ones(ROWS, jnp.float32)
    drawn = (jnp.zeros((2, ROWS, 2), jnp.float32), jnp.zeros((2, ROWS), jnp.float32))
    losses = {
        "likelihood": lambda b: imitation_loss(ACTOR, weight, b, DESIGN)[0],
        "slope": lambda b: iql.slope_loss(ACTOR, CRITIC, b, iql.Config(), DESIGN)[0],
        "td3_bc": lambda b: td3_bc.actor_loss(ACTOR, CRITIC, b, td3_bc.Config(), DESIGN)[0],
        "rebrac": lambda b: rebrac.actor_loss(ACTOR, CRITIC, b, rebrac.Config(), DESIGN)[0],
        "cql": lambda b: jnp.mean(cql.excess(CRITIC, drawn, b, DESIGN)),
    }
    values = jax.jit(jax.jacrev(lambda a: {name: loss(batch.replace(action=a)) for name, loss in losses.items()}))
    for name, slope in values(batch.action).items():
        assert (np.abs(slope).max(axis=1) > 1e-6).all(), name


def test_the_actor_and_the_slow_networks_move_in_their_turn(batch):
    """With a delay of 2 in updates 0 and 2; the slow ones by a share of the way."""
    config = td3_bc.Config(polyak=0.25, actor_rate=0.1)
    state = jax.jit(lambda key: td3_bc.begin(key, DESIGN))(jax.random.key(0))
    critic = learner(jax.tree.map(lambda a: a + 1.0, state.critic.params))
    move = jax.jit(lambda s: td3_bc.move_actor(s, critic, config, td3_bc.actor_loss, batch, config, DESIGN)[0])
    moved = move(state)
    still = move(moved)
    assert (int(moved.step), int(still.step)) == (1, 2)
    before, after = (jax.tree.leaves(s.actor.params) for s in (state, moved))
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0.05
    slow, old = jax.tree.leaves(moved.slow_critic), jax.tree.leaves(state.slow_critic)
    for a, b in zip(slow, old, strict=True):
        np.testing.assert_allclose(a, b + 0.25, atol=1e-5)
    for a, b, c in zip(jax.tree.leaves(moved.slow_actor), before, after, strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, atol=1e-5)
    for name in ("actor", "slow_actor", "slow_critic"):
        for a, b in zip(jax.tree.leaves(getattr(still, name)), jax.tree.leaves(getattr(moved, name)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_rates_fall_along_half_a_cosine_or_stay():
    fallen = cosine(2.0, jnp.asarray([0, 25, 50, 100, 300]), 100.0)
    np.testing.assert_allclose(fallen, [2.0, 2 * np.cos(np.pi / 8) ** 2, 1.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(cosine(2.0, jnp.asarray([0, 7, 10**6]), 0.0), [2.0, 2.0, 2.0])


def test_rebrac_s_networks_rest_where_its_rates_have_fallen_to_zero(batch):
    """Both rates; the slow networks go on to where the others are."""
    moved = {}
    for steps in (0.0, 4.0):
        config = rebrac.Config(steps=steps, delay=1, hidden=(8,))
        state = rebrac.init(jax.random.key(0), config, SPACE).replace(step=jnp.asarray(4))
        after, _ = rebrac.update(jax.random.key(1), state, batch, config, SPACE)
        moved[steps] = [
            max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
            for x, y in ((after.actor.params, state.actor.params), (after.critic.params, state.critic.params))
        ]
    assert moved[4.0] == [0.0, 0.0] and min(moved[0.0]) > 1e-4
