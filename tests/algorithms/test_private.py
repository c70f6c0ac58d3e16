"""Trajectory-level privacy of every agent's losses: what one trajectory can change, the noise, the count, and learning.

Rates of 0 keep an update's later losses from seeing the earlier ones' steps; what was released is then read from Adam's
first moments, which after one step are (1 - 0.9) g.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import CHAIN, CHAIN_DISCOUNT, LQ, Chain, chain_data, lq_data

from algorithms import learning, private
from algorithms import private_training as training
from algorithms.agents import AGENTS
from algorithms.batches import from_dataset, rows
from algorithms.learning import Agent, Learner
from algorithms.private import AXIS, Private

PLACES = 4
# Noisy sums of an update: the losses of each module's text (CQL's in the Lagrange form), and the constrained agent's
# mean cost.
COUNTED = {"bc": 1, "awr": 2, "cql": 4, "iql": 3, "td3_bc": 2, "rebrac": 2, "constrained": 6}
FREE = Private(clip=1e9, noise_multiplier=0.0, expected=PLACES)
CLIPPED = Private(clip=0.3, noise_multiplier=0.0, expected=2.0)
CLIPPED_NOISY = Private(clip=0.3, noise_multiplier=1.0, expected=2.0)


def settings(name, **numbers):
    agent = AGENTS[name]
    still = {"rate": 0.0, "actor_rate": 0.0, "multiplier_rate": 0.0}
    still |= {"hidden": (4,), "samples": 2, "lagrange": True, **numbers}
    return agent, agent.config(**{k: v for k, v in still.items() if k in agent.config.__dataclass_fields__})


@functools.cache
def some(count=PLACES):
    whole = training.trajectories(from_dataset(lq_data(), LQ))
    return jax.tree.map(lambda leaf: leaf[:count], whole)


@functools.cache
def program(name):
    """(noise key, drawn, static setting) -> state after one update of a new agent."""
    agent, config = settings(name)
    state = agent.init(jax.random.key(0), config, LQ)

    @functools.partial(jax.jit, static_argnames="setting")
    def run(key, drawn, setting):
        return training.update(key, state, drawn, agent=agent, config=config, space=LQ, private=setting)[0]

    return state, run


@functools.cache
def refreshed(name):
    state, _ = program(name)
    agent, config = settings(name)
    return jax.jit(lambda batch: agent.refresh(state, batch, config, LQ))


def told(state, smoothing=0.01):
    """What was released, one tree for each noisy sum."""
    learners = [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Learner)) if isinstance(x, Learner)]
    out = [jax.tree.map(lambda m: np.asarray(m, float) / 0.1, x.moments[0].mu) for x in learners]
    if hasattr(state, "control"):
        out.append(np.asarray(state.control.cost, float) / smoothing)
    return out


def size(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def difference(a, b):
    return jax.tree.map(lambda x, y: x - y, a, b)


def without(drawn, place):
    return drawn.replace(present=drawn.present.at[place].set(0.0))


@pytest.mark.parametrize("name", COUNTED)
def test_it_is_the_sum_of_the_trajectories_clipped_gradients(name):
    """Each trajectory's by the agent's plain update, with the randomness that the private update gives its place."""
    state, run = program(name)
    agent, config = settings(name)
    key, drawn = jax.random.key(7), some()
    plain = jax.jit(lambda own, batch: agent.update(own, state, batch, config, LQ)[0])
    parts = []
    for place, own in enumerate(jax.random.split(jax.random.split(key)[1], PLACES)):
        batch = jax.tree.map(lambda leaf, place=place: leaf[place], drawn.batch)
        batch = batch if agent.refresh is None else refreshed(name)(batch)
        parts.append(told(plain(jax.random.split(own)[1], batch)))
    found = told(run(key, drawn, CLIPPED))
    for k, release in enumerate(found):
        scales = [min(1.0, CLIPPED.clip / max(size(part[k]), 1e-30)) for part in parts]
        trees = [jax.tree.map(lambda leaf, f=f: f * leaf, part[k]) for part, f in zip(parts, scales, strict=True)]
        wanted = jax.tree.map(lambda *x: np.sum(x, axis=0) / CLIPPED.expected, *trees)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-6), release, wanted)


@pytest.mark.parametrize("name", ["awr", "iql"])
def test_without_clip_and_noise_it_is_the_batchs_gradient(name):
    """All trajectories are present and of one length."""
    state, run = program(name)
    agent, config = settings(name)
    data = rows(from_dataset(lq_data(), LQ), jnp.arange(PLACES * 8))
    batch = data if agent.refresh is None else refreshed(name)(data)
    wanted = told(jax.jit(lambda batch: agent.update(jax.random.key(0), state, batch, config, LQ)[0])(batch))
    found = told(run(jax.random.key(1), training.trajectories(data), FREE))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, wanted)


@pytest.mark.parametrize("name", COUNTED)
def test_one_trajectory_moves_no_sum_by_more_than_the_clip(name):
    """Neither an ordinary one nor one whose numbers are huge; one that is not finite moves nothing."""
    _, run = program(name)
    most = CLIPPED.clip / CLIPPED.expected
    plain = some()
    reward = plain.batch.reward.at[2].set(1e12)
    reward = reward.at[3, 0].set(jnp.nan)
    wild = plain.batch.replace(
        reward=reward, cost=plain.batch.cost.at[2].set(1e12).at[3].set(jnp.nan),
        observation=plain.batch.observation.at[3].set(jnp.nan),
        next_observation=plain.batch.next_observation.at[3].set(jnp.nan),
    )  # fmt: skip
    drawn = plain.replace(batch=wild)
    key = jax.random.key(3)
    whole = told(run(key, drawn, CLIPPED))
    assert len(whole) == COUNTED[name]
    for place in range(PLACES):
        moved = [
            size(difference(a, b)) for a, b in zip(whole, told(run(key, without(drawn, place), CLIPPED)), strict=True)
        ]
        assert max(moved) <= most * (1 + 1e-4)
        if place == 2 and name != "bc":  # which sees neither rewards nor costs
            assert max(moved) > 0.999 * most
        if place == 3:
            assert max(moved) == 0


def test_the_sum_and_not_the_mean_of_those_present_is_released():
    """Half the trajectories give half the sum: the denominator does not know how many were drawn."""
    _, run = program("bc")
    drawn, key = some(), jax.random.key(0)
    (whole,), (first,), (second,) = (
        told(run(key, drawn.replace(present=jnp.asarray(p, jnp.float32)), FREE))
        for p in ([1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1])
    )
    jax.tree.map(lambda w, f, s: np.testing.assert_allclose(w, f + s, atol=1e-6), whole, first, second)


def noises(run, setting, count=60):
    """Everything that is released where no trajectory is present: (count, numbers)."""
    empty = some().replace(present=jnp.zeros(PLACES, jnp.float32))
    out = [told(run(jax.random.key(k), empty, setting)) for k in range(count)]
    return np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(one)]) for one in out])


def holds(sample, std):
    """Whether a sample's variance is std^2, within five standard errors."""
    return abs(np.mean(sample**2) / std**2 - 1) < 5 * np.sqrt(2 / sample.size)


def test_the_noise_is_there_once_with_its_variance(monkeypatch):
    setting = Private(clip=0.5, noise_multiplier=3.0, expected=2.0)
    _, run = program("iql")
    sample = noises(run, setting)
    assert holds(sample, 3.0 * 0.5 / 2.0)
    assert np.abs(sample.mean(axis=0)).max() < 5 * 0.75 / np.sqrt(len(sample))
    # No two numbers of a release, nor of two releases, have the same noise.
    values = np.sort(sample[0])
    assert (np.diff(values) > 0).mean() > 0.99
    correlation = np.corrcoef(sample.T) - np.eye(sample.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(len(sample))

    def wrong(key, present, tree, setting):
        """Noise in each place, before the sum."""
        own = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        std = setting.noise_multiplier * setting.clip
        noisy = jax.tree.map(lambda x: present * x + std * jax.random.normal(own, x.shape, x.dtype), tree)
        return jax.tree.map(lambda x: jax.lax.psum(x, AXIS) / setting.expected, noisy)

    monkeypatch.setattr(private, "gaussian_release", wrong)
    assert not holds(noises(program.__wrapped__("bc")[1], setting), 3.0 * 0.5 / 2.0)


def test_the_next_release_of_a_learner_has_noise_of_its_own():
    def two(present):
        release, first = private.noisy_mean(private.Release(jax.random.key(0), present, CLIPPED_NOISY), jnp.zeros(50))
        return first, private.noisy_mean(release, jnp.zeros(50))[1]

    first, second = jax.vmap(two, out_axes=None, axis_name=AXIS)(jnp.zeros(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.6


@pytest.mark.parametrize("name,lagrange", [*((name, True) for name in COUNTED), ("cql", False)])
def test_releases_are_counted(name, lagrange, monkeypatch):
    """As the module's text says, as the program has them, and as the steps that are taken while it is traced."""
    agent, config = settings(name, lagrange=lagrange)
    calls = []
    noisy = learning.noisy_mean
    monkeypatch.setattr(learning, "noisy_mean", lambda *args: calls.append(1) or noisy(*args))
    assert training.releases(agent, config, LQ) == len(calls) == COUNTED[name] - (not lagrange)


def test_releases_of_the_same_trajectories_are_one_mechanism():
    """k Gaussians of equal sensitivity are one of sqrt(k): mu^2 adds up (J. Dong, A. Roth and W. Su, 2022)."""
    z = 1.7
    assert 1 / training.joint_multiplier(z, 3) ** 2 == pytest.approx(3 / z**2)


def counting(key, state, batch, config, space):
    """Behaviour cloning that also keeps the mean reward as it is."""
    state, metrics = AGENTS["bc"].update(key, state, batch, config, space)
    return state.replace(step=state.step + (jnp.mean(batch.reward) > 0).astype(jnp.int32)), metrics


def looping(key, state, batch, config, space):
    """Behaviour cloning, three times in a loop."""
    body = lambda state, _: AGENTS["bc"].update(key, state, batch, config, space)  # noqa: E731
    return jax.lax.scan(body, state, None, length=3)


def test_an_agent_that_keeps_what_was_not_released_is_refused():
    agent, config = settings("bc")
    leaky = Agent("leaky", agent.config, agent.init, counting)
    state = agent.init(jax.random.key(0), config, LQ)
    with pytest.raises(ValueError, match=r"leaky keeps something .* not released .*learning\.released"):
        training.update(jax.random.key(1), state, some(), agent=leaky, config=config, space=LQ, private=FREE)
    with pytest.raises(ValueError, match="looping releases in a loop or a branch"):
        training.releases(Agent("looping", agent.config, agent.init, looping), config, LQ)


def test_trajectories_of_several_lengths():
    """Rows beyond an episode's end are never drawn, and all others are."""
    data = rows(from_dataset(lq_data(), LQ), jnp.arange(16))
    follows = data.follows.at[2].set(0.0).at[7].set(0.0)
    whole = training.trajectories(data.replace(follows=follows))
    np.testing.assert_array_equal(whole.length, [3, 5, 8])
    np.testing.assert_array_equal(whole.batch.reward[1, :5], data.reward[3:8])
    agent, config = settings("bc")
    state = agent.init(jax.random.key(0), config, LQ)
    step = functools.partial(training.update, agent=agent, config=config, space=LQ)
    with pytest.raises(ValueError, match=r"not equally long: give Private\.rows"):
        step(jax.random.key(0), state, whole, private=FREE)
    setting, observation = Private(1e9, 0.0, 3.0, rows=200), whole.batch.observation
    real = jnp.arange(8)[None] < whole.length[:, None]
    run = jax.jit(lambda batch: step(jax.random.key(5), state, whole.replace(batch=batch), private=setting)[0])

    def release(observation):
        return told(run(whole.batch.replace(observation=observation)))[0]

    (plain, padded) = (release(o) for o in (observation, jnp.where(real[..., None], observation, jnp.nan)))
    assert size(plain) > 0 and size(difference(plain, padded)) == 0
    for place in range(3):  # a trajectory of which any real row is not finite tells nothing, once that row is drawn
        told_of = [
            size(difference(plain, release(observation.at[place, row].set(jnp.nan))))
            for row in range(int(whole.length[place]))
        ]
        assert min(told_of) > 0 and np.ptp(told_of) < 1e-6
    with pytest.raises(ValueError, match="give whole episodes"):
        training.trajectories(data.replace(follows=jnp.ones(16)))


def test_truncated_poisson():
    """Who is drawn, how many, and that all are drawn equally often where some must be left out."""
    data = jax.tree.map(lambda leaf: leaf[:40], training.trajectories(from_dataset(lq_data(), LQ)))
    data = data.replace(length=jnp.arange(40))
    run = jax.jit(jax.vmap(lambda key: training.draw(key, data, 0.25, 12)))
    drawn = run(jax.random.split(jax.random.key(0), 4000))
    present = np.asarray(drawn.present)
    count = present.sum(axis=1)
    chances = np.array(
        [np.prod([(40 - i) / (i + 1) for i in range(k)]) * 0.25**k * 0.75 ** (40 - k) for k in range(41)]
    )
    wanted = np.append(chances[:12], chances[12:].sum())
    found = np.bincount(count.astype(int), minlength=13) / 4000
    np.testing.assert_allclose(found, wanted, atol=4 * 0.5 / np.sqrt(4000))
    often = np.bincount(np.asarray(drawn.length)[present > 0], minlength=40) / 4000
    mean = np.sum(np.minimum(np.arange(41), 12) * chances) / 40
    np.testing.assert_allclose(often, mean, atol=4.5 * np.sqrt(0.25 * 0.75 / 4000))
    for one in np.asarray(drawn.length)[:50]:
        assert len(set(one)) == 12
    padded = data.replace(present=(jnp.arange(40) >= 20).astype(jnp.float32))
    one = training.draw(jax.random.key(0), padded, 1.0, 20)
    assert set(np.asarray(one.length)) == set(range(20, 40)) and one.present.sum() == 20
    assert training.draw(jax.random.key(0), padded, 1.0, 30).present.sum() == 20
    for rate, most, message in ((0.1, 41, "41 places for 40"), (0.1, 0, "0 places"), (1.2, 4, "rate 1.2")):
        with pytest.raises(ValueError, match=message):
            training.draw(jax.random.key(0), data, rate, most)


def test_settings_that_make_no_sense_are_refused():
    for numbers in ((0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0), (np.inf, 1.0, 1.0)):
        with pytest.raises(ValueError, match="positive clip"):
            Private(*numbers)
    with pytest.raises(ValueError, match="rows 0"):
        Private(1.0, 1.0, 1.0, rows=0)


@pytest.mark.parametrize("name", ["bc", "iql"])
def test_the_chain_is_learned_with_mild_noise(name):
    """To the optimal values within a tenth."""
    agent = AGENTS[name]
    numbers = {"discount": CHAIN_DISCOUNT, "actor_rate": 0.01, "polyak": 0.05, "rate": 0.01, "hidden": (16,)}
    config = agent.config(**{k: v for k, v in numbers.items() if k in agent.config.__dataclass_fields__})
    data = training.trajectories(from_dataset(chain_data(), CHAIN))
    setting = Private(clip=1.0, noise_multiplier=0.5, expected=50.0)
    step = functools.partial(training.update, agent=agent, config=config, space=CHAIN, private=setting)
    run = jax.jit(functools.partial(training.train, step=step, rate=0.25, most=70, updates=400))
    start = agent.init(jax.random.key(0), config, CHAIN)
    state, metrics = run(jax.random.key(1), start, data)
    assert np.isfinite(metrics["actor_norm"]) and int(state.step) == 400
    act = config.design(CHAIN).act(state.actor.params, jnp.eye(5, dtype=jnp.float32)).mode()
    value, _ = Chain().worth(np.asarray(act)[:, 0])
    assert (value / Chain().best()).min() > 0.9


def test_many_clients_side_by_side_on_devices():
    """A vmap over clients, and a shard_map over devices: the same as one client after the other."""
    agent, config = settings("bc", rate=1e-2)
    state = agent.init(jax.random.key(0), config, LQ)
    setting = Private(clip=0.1, noise_multiplier=0.3, expected=2.0, rows=5)
    step = functools.partial(training.update, agent=agent, config=config, space=LQ, private=setting)

    data = some(12)

    def one(key):
        after, _ = training.train(key, state, data, step, rate=0.3, most=6, updates=2)
        return after.actor.params

    keys = jax.random.split(jax.random.key(1), 4)
    alone = [jax.jit(one)(key) for key in keys]
    mesh = jax.make_mesh((2,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.PartitionSpec("clients")
    # With check_vma JAX 0.10 fails on any collective over a vmap's axis within a shard_map.
    spread = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=place, out_specs=place, check_vma=False)
    for together in (jax.jit(jax.vmap(one))(keys), jax.jit(spread)(keys)):
        for k in range(4):
            jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, atol=1e-6), together, alone[k])


def test_releases_of_one_draw_cost_more_than_of_several():
    """Three releases an update that share their trajectories are not three updates: epsilon is larger by two thirds."""
    pytest.importorskip("dp_accounting")
    from federated.accounting import epsilon
    from federated.mechanism import Mechanism
    from federated.sampling import Poisson

    def claim(z, updates):
        return epsilon(Mechanism(z, Poisson(0.05, 120), 1000, "add-or-remove"), updates, 1e-5)

    assert claim(training.joint_multiplier(2.0, 3), 20) > 1.5 * claim(2.0, 3 * 20)
