"""Offline agents as clients: what is shared, what stays at home, and which rows are seen."""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "algorithms"))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems_for_tests import CHAIN, LQ, chain_data, lq_data

from algorithms.awr import AWR
from algorithms.batches import from_dataset, rows
from algorithms.bc import BC
from algorithms.iql import IQL
from algorithms.private import Private
from algorithms.rebrac import REBRAC
from federated.federation import Plan, federate, start
from federated.learning import agent_work, agents, private_work
from federated.round import Federation, fed_avg
from federated.sampling import Everyone, Poisson

KEY = jax.random.key(11)
HIDDEN = (4,)
CASES = {
    "iql, positions": (IQL, CHAIN, lambda: from_dataset(chain_data(12, 6), CHAIN)),
    "rebrac, numbers": (REBRAC, LQ, lambda: from_dataset(lq_data(12, 6), LQ)),
}
CUTS = (0, 10, 35, 72)


def setting(name, steps=2, cuts=CUTS, **options):
    """The plan, the clients and the progress before the first round."""
    agent, space, data = CASES[name]
    config, batch = agent.config(hidden=HIDDEN), data()
    parts = [rows(batch, jnp.arange(a, b)) for a, b in itertools.pairwise(cuts)]
    work = agent_work(agent, config, space, steps=steps, **{"batch_size": 8, **options})
    plan = Plan(Federation((work,), fed_avg()), (Everyone(),))
    these = agents(agent, config, space, parts, jax.random.key(0))
    return plan, these, start(plan, work.part(one(these.state, 0)), (these,))


def one(tree, k):
    return jax.tree.map(lambda a: a[k], tree)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def close(a, b, tol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tol, atol=tol), a, b)


def differ(tree, i, j):
    return any(np.abs(np.asarray(a[i] - a[j])).max() > 1e-5 for a in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", CASES)
def test_the_server_moves_the_shared_part_alone(name):
    """A round is each agent's own updates on its own rows, and the mean of their actors."""
    agent, space, data = CASES[name]
    plan, these, begin = setting(name)
    after = federate(plan, begin, KEY, rounds=1)[0]
    batch, config = data(), jax.tree.map(jnp.float32, agent.config(hidden=HIDDEN))
    update = jax.jit(lambda key, state, batch: agent.update(key, state, batch, config, space)[0])
    of_round = jax.random.split(jax.random.fold_in(KEY, 0))[1]
    actors = []
    for k, (a, b) in enumerate(itertools.pairwise(CUTS)):
        state, own = one(these.state, k), jax.random.split(jax.random.fold_in(of_round, k))[0]
        for step in range(2):
            draw, key = jax.random.split(jax.random.fold_in(own, step))
            index = a + jax.random.randint(draw, (8,), 0, jnp.int32(b - a))
            state = update(key, state, rows(batch, index))
        close(one(after.groups[0].state, k), state)
        actors.append(state.actor.params)
    mean = jax.tree.map(lambda *a: sum(a) / len(a), *actors)
    close(after.server.shared["actor"], mean)
    assert differ(after.groups[0].state.actor.params, 0, 1)

    later = federate(plan, after, KEY, rounds=2)[0]
    assert set(later.server.shared) == {"actor"} and differ(later.groups[0].state.critic.params, 0, 2)


@pytest.mark.parametrize("name", CASES)
def test_joining_replaces_the_named_learners_parameters_alone(name):
    plan, these, begin = setting(name, shared=("actor", "critic"))
    (work,), state = plan.federation.works, one(these.state, 0)
    other = jax.tree.map(lambda a: a + 1, begin.server.shared)
    joined = work.join(state, other)
    same_bits(work.part(joined), other)
    same_bits(work.join(joined, work.part(state)), state)
    same_bits(joined.actor.moments, state.actor.moments)
    # Slow networks, values and steps are at home.
    same_bits(joined.replace(actor=state.actor, critic=state.critic), state)
    after = federate(plan, begin, KEY, rounds=1)[0]
    assert set(after.server.shared) == {"actor", "critic"}
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.server.shared, begin.server.shared)
    assert all(max(jax.tree.leaves(moved[one])) > 1e-5 for one in moved)


def test_identical_clients_are_one_agent_trained_alone():
    """With one row each every draw is the same, and IQL has no other chance: federated or alone, it learns the same."""
    agent, space, data = CASES["iql, positions"]
    row = rows(data(), jnp.arange(1))
    config = agent.config(hidden=HIDDEN)
    work = agent_work(agent, config, space, steps=1, batch_size=8)
    plan = Plan(Federation((work,), fed_avg()), (Everyone(),))
    these = agents(agent, config, space, [row] * 3, jax.random.key(0))
    progress = federate(plan, start(plan, work.part(one(these.state, 0)), (these,)), KEY, rounds=5)[0]
    alone, update = one(these.state, 0), jax.jit(agent.update, static_argnums=4)
    config = jax.tree.map(jnp.float32, config)
    for _ in range(5):
        alone, _ = update(KEY, alone, rows(row, jnp.zeros(8, int)), config, space)
    close(progress.server.shared["actor"], alone.actor.params)
    close(one(progress.groups[0].state.critic, 1), alone.critic)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b[0]).max()), alone.actor.params, these.state.actor.params)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_padding_is_never_seen():
    """Rows beyond a client's own are poison here; one poisoned row of its own is found."""
    plan, these, begin = setting("rebrac, numbers", batch_size=64)
    place = jnp.arange(these.data.reward.shape[1])

    def poisoned(first):
        """Poison from row rows + first."""
        bad = place[None] >= (these.rows + first)[:, None]
        data = jax.tree.map(lambda a: jnp.where(bad.reshape(bad.shape + (1,) * (a.ndim - 2)), jnp.nan, a), these.data)
        found = []
        group = begin.groups[0].replace(data=data)
        after = federate(plan, begin.replace(groups=(group,)), KEY, rounds=2, seen=lambda *a: found.append(a[2]))[0]
        return after.server.shared, [float(m["lost"]) for m in found]

    shared, lost = poisoned(0)
    same_bits(shared, federate(plan, begin, KEY, rounds=2)[0].server.shared)
    assert lost == [0.0, 0.0] and all(jnp.isfinite(a).all() for a in jax.tree.leaves(shared))
    assert poisoned(-1)[1][0] > 0


def test_what_cannot_be_federated_is_refused():
    config = AWR.config(hidden=HIDDEN)
    with pytest.raises(ValueError, match="awr works over the whole data set between updates"):
        agent_work(AWR, config, CHAIN, steps=1)
    config = IQL.config(hidden=HIDDEN)
    for name in ("head", "target", "step"):  # no such field, bare parameters, a number
        with pytest.raises(ValueError, match=f"iql has no learner '{name}' to share"):
            agent_work(IQL, config, CHAIN, steps=1, shared=("actor", name))
    with pytest.raises(ValueError, match="no clients"):
        agents(IQL, config, CHAIN, [], KEY)


def test_private_work_without_noise_and_clip_is_the_agent_s_own():
    """All trajectories drawn in each step: what is left is an update by the mean over all rows."""
    batch, config = from_dataset(lq_data(4, 6), LQ), REBRAC.config(hidden=HIDDEN, noise=0.0)
    parts = [rows(batch, jnp.arange(0, 12)), rows(batch, jnp.arange(12, 24))]
    work = private_work(REBRAC, config, LQ, steps=1, private=Private(1e6, 0.0, 2.0), sampler=Poisson(1.0, 2))
    these = agents(REBRAC, config, LQ, parts, jax.random.key(0), private=True)
    plan = Plan(Federation((work,), fed_avg()), (Everyone(),))
    after = federate(plan, start(plan, work.part(one(these.state, 0)), (these,)), KEY, rounds=1)[0]
    floats = jax.tree.map(jnp.float32, config)
    for k, part in enumerate(parts):
        state = REBRAC.update(KEY, one(these.state, k), part, floats, LQ)[0]
        close(one(after.groups[0].state, k).critic.params, state.critic.params, 1e-5)


def test_private_work_is_noisy():
    """Behaviour cloning of all trajectories has no other chance."""
    batch, config = from_dataset(lq_data(4, 6), LQ), BC.config(hidden=HIDDEN)
    these = agents(BC, config, LQ, [batch], jax.random.key(0), private=True)
    moved = []
    for z in (0.0, 5.0):
        work = private_work(BC, config, LQ, steps=1, private=Private(1.0, z, 4.0), sampler=Poisson(1.0, 4))
        plan = Plan(Federation((work,), fed_avg()), (Everyone(),))
        begin = start(plan, work.part(one(these.state, 0)), (these,))
        moved.append([federate(plan, begin, jax.random.key(k), rounds=1)[0].server.shared for k in (1, 2)])
    close(*moved[0])
    assert differ(jax.tree.map(lambda *a: jnp.stack(a), *moved[1]), 0, 1)
