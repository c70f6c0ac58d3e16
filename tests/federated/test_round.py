"""A round against sums by hand, in one place and spread over lanes and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from quadratics_for_tests import RATE, SHARED, clients, cohort, work

from federated import aggregation, compression
from federated.clipping import Adaptive
from federated.round import Federation, begin, fed_adam, fed_avg, fed_avg_m, fed_yogi, round_bytes, spread

KEY, NOISE = jax.random.key(7), jax.random.key(8)
GOALS = [np.random.default_rng(k).normal(k / 8, 1.0, (1 + k % 3, 3)) for k in range(8)]
MEANS = np.array([g.mean(axis=0) for g in GOALS])
ROWS = np.array([len(g) for g in GOALS])


def after(federation, these, present=None, way="block", mesh=None, rounds=1):
    server = begin(federation, SHARED)
    here = cohort(federation, server, these, present)
    go = spread(federation, way, mesh)
    go = go if way in ("pmap", "groups") else jax.jit(go)
    for k in range(rounds):
        server, (now,), metrics = go(jax.random.fold_in(KEY, k), jax.random.fold_in(NOISE, k), server, here)
        here = (here[0].replace(clients=now),)
    return server, here[0].clients, metrics


def far(steps):
    """How far a client gets to its goal from zero."""
    return 1 - (1 - RATE) ** steps


def test_the_mean_and_the_weighted_mean_by_hand():
    for rule, w in ((aggregation.Mean(), np.ones(8)), (aggregation.Weighted(), ROWS)):
        server, _, metrics = after(Federation((work(steps=3),), fed_avg(), rule), clients(GOALS))
        np.testing.assert_allclose(server.shared["a"], far(3) * (w @ MEANS) / w.sum(), rtol=1e-12)
        assert metrics["present"] == 8 and metrics["lost"] == 0
        np.testing.assert_allclose(metrics["norm"], far(3) * np.linalg.norm(MEANS, axis=1).mean(), rtol=1e-12)


def test_identical_clients_are_one_client():
    alone = after(Federation((work(steps=4),), fed_adam()), clients(GOALS[2:3]), rounds=3)[0]
    many = after(Federation((work(steps=4),), fed_adam()), clients(GOALS[2:3] * 5), rounds=3)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), alone, many)


def test_padding_and_absent_clients_have_no_effect():
    federation = Federation((work(steps=2),), fed_avg(), aggregation.Weighted())
    plain = after(federation, clients(GOALS[:4]))[0].shared["a"]
    wide = clients(GOALS[:4])
    wide = wide.replace(data={k: jnp.pad(v, [(0, 0), (0, 5)] + [(0, 0)] * (v.ndim - 2), constant_values=9.9)
                              for k, v in wide.data.items()})  # fmt: skip
    np.testing.assert_array_equal(after(federation, wide)[0].shared["a"], plain)
    some, kept, metrics = after(federation, clients(GOALS), present=[1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(some.shared["a"], plain, rtol=1e-12)
    assert metrics["present"] == 4
    np.testing.assert_array_equal(kept.state["seen"], [2, 2, 2, 2, 0, 0, 0, 0])


def test_nobody_there_leaves_everything():
    server = after(Federation((work(),), fed_avg()), clients(GOALS), present=np.zeros(8))[0]
    np.testing.assert_array_equal(server.shared["a"], np.zeros(3))


@pytest.mark.parametrize("rule", [aggregation.Mean(), aggregation.Median(), aggregation.Merit(0.5)], ids=repr)
def test_a_client_that_fails_is_lost_and_hurts_nobody(rule):
    these = clients(GOALS)
    broken = these.replace(data={**these.data, "goal": these.data["goal"].at[3].set(jnp.nan)})
    federation = Federation((work(steps=2, merit=lambda m: -m["loss"]),), fed_avg(), rule)
    server, kept, metrics = after(federation, broken)
    without = after(federation, these, present=[1, 1, 1, 0, 1, 1, 1, 1])[0]
    np.testing.assert_allclose(server.shared["a"], without.shared["a"], rtol=1e-12)
    assert metrics["lost"] == 1 and metrics["present"] == 7 and np.isfinite(metrics["loss"])
    assert kept.state["seen"][3] == 0 and np.isfinite(kept.state["theta"]["a"]).all()


FEDERATIONS = {
    "mean": dict(rule=aggregation.Mean()),
    "weighted, FedProx, momentum": dict(
        rule=aggregation.Weighted(), optimiser=fed_avg_m(), works=(work(steps=3, prox=2.0),)
    ),
    "median": dict(rule=aggregation.Median()),
    "trimmed, Yogi": dict(rule=aggregation.TrimmedMean(0.2), optimiser=fed_yogi()),
    "Krum": dict(rule=aggregation.Krum(1, keep=2)),
    "merit": dict(rule=aggregation.Merit(0.5), works=(work(steps=2, merit=lambda m: -m["loss"]),)),
    "SCAFFOLD": dict(scaffold=8, works=(work(steps=4),)),
    "top k": dict(compression=compression.TopK(0.34)),
    "quantised": dict(compression=compression.Quantised(6)),
    "noise": dict(bound=0.3, noise_multiplier=0.8, expected=8.0),
    "noise, adaptive bound": dict(bound=Adaptive(start=0.2, count_noise=1.0), noise_multiplier=0.8, expected=8.0),
}  # fmt: skip


@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_round_is_the_same_wherever_clients_are(name):
    """Eight clients: in one block (also two by two), a lane each, a device each, two on each of four devices."""
    federation = Federation(**{"works": (work(steps=2),), "optimiser": fed_avg(), "at_once": 8, **FEDERATIONS[name]})
    mesh = jax.make_mesh((4,), ("clients",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    present = [1, 1, 0, 1, 1, 1, 1, 1]
    whole = after(federation, clients(GOALS), present, rounds=2)
    ways = {"groups": None, "vmap": None, "pmap": None, "shard_map": mesh}
    found = {way: after(federation, clients(GOALS), present, way, m, rounds=2) for way, m in ways.items()}
    small = Federation(**{**federation.__dict__, "at_once": 3})
    found["two at once"] = after(small, clients(GOALS), present, rounds=2)
    assert np.abs(whole[0].shared["a"]).max() > 1e-3
    for got in found.values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), got, whole)


def test_prox_and_scaffold_by_hand():
    """Four steps of two clients, written out."""
    goals, mu = MEANS[:2], 0.7
    federation = Federation((work(steps=4, prox=mu),), fed_avg())
    got = after(federation, clients([g[None] for g in goals]))[0].shared["a"]
    ends = []
    for goal in goals:
        x = np.zeros(3)
        for _ in range(4):
            x = x - RATE * ((x - goal) + mu * (x - 0.0))
        ends.append(x)
    np.testing.assert_allclose(got, np.mean(ends, axis=0), rtol=1e-12)
    theta, c, own = np.zeros(3), np.zeros(3), np.zeros((2, 3))
    for _ in range(3):
        ends, fresh = [], []
        for goal, c_i in zip(goals, own, strict=True):
            x = theta.copy()
            for _ in range(4):
                x = x - RATE * ((x - goal) - c_i + c)
            ends.append(x)
            fresh.append(c_i - c + (theta - x) / (4 * RATE))
        c = c + np.sum(np.array(fresh) - own, axis=0) / 2
        theta, own = np.mean(ends, axis=0), np.array(fresh)
    federation = Federation((work(steps=4),), fed_avg(), scaffold=2)
    server, kept, _ = after(federation, clients([g[None] for g in goals]), rounds=3)
    np.testing.assert_allclose(server.shared["a"], theta, rtol=1e-12)
    np.testing.assert_allclose(server.control["a"], c, rtol=1e-12)
    np.testing.assert_allclose(kept.variate["a"], own, rtol=1e-12)


def test_scaffold_removes_what_unequal_curvature_does_to_averaging():
    """Losses k_i/2 (theta - goal_i)^2: many local steps average to the goals' mean, not to the loss's minimum."""

    def step(key, state, data, rows):
        g = data["k"][0] * (state - data["goal"][0])
        return state - 0.1 * g, {"loss": jnp.sum(g**2)}

    from federated.work import Clients, Work, padded

    data, rows = padded(
        [{"k": np.array([9.0]), "goal": np.array([0.0])}, {"k": np.array([1.0]), "goal": np.array([1.0])}]
    )
    these = Clients(data, rows, jnp.zeros(2))
    found = {}
    for scaffold in (0, 2):
        federation = Federation((Work(step, lambda s: s, lambda _, t: t, 20, 0.1),), fed_avg(), scaffold=scaffold)
        server = begin(federation, jnp.zeros(()))
        here, go = cohort(federation, server, these), jax.jit(spread(federation))
        for k in range(200):
            server, (now,), _ = go(jax.random.fold_in(KEY, k), jax.random.fold_in(NOISE, k), server, here)
            here = (here[0].replace(clients=now),)
        found[scaffold] = float(server.shared)
    assert found[2] == pytest.approx(0.1, abs=1e-6)  # (9 0 + 1 1) / 10
    assert found[0] > 0.3


@pytest.mark.parametrize(
    "rule", [aggregation.Median(), aggregation.TrimmedMean(0.25), aggregation.Krum(2, keep=3)], ids=repr
)
def test_a_fifth_of_clients_that_flip_signs(rule):
    """Two of ten send minus twenty times their update: the mean goes astray, robust rules stay near."""
    rng = np.random.default_rng(0)
    goals = [rng.normal(1.0, 0.1, (1, 3)) for _ in range(8)] + [np.full((1, 3), -20.0)] * 2
    near = after(Federation((work(steps=5),), fed_avg(), rule), clients(goals))[0].shared["a"]
    mean = after(Federation((work(steps=5),), fed_avg()), clients(goals))[0].shared["a"]
    bounded = after(Federation((work(steps=5),), fed_avg(), bound=0.7), clients(goals))[0].shared["a"]
    assert np.abs(near / far(5) - 1).max() < 0.15
    assert (mean < -1).all() and (bounded > 0).all()


def test_the_noise_of_a_round_has_its_variance_over_any_number_of_devices():
    wide = {"a": jnp.zeros(20_000)}
    for devices in (1, 2, 8):
        mesh = jax.make_mesh((devices,), ("clients",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
        still = work().__class__(lambda k, s, d, r: (s, {}), lambda s: s, lambda _, t: t)
        federation = Federation((still,), fed_avg(), bound=0.5, noise_multiplier=3.0, expected=4.0)
        server = begin(federation, wide)
        these = clients(GOALS).replace(state=jax.tree.map(lambda a: jnp.zeros((8, *a.shape)), wide))
        moved = jax.jit(spread(federation, "shard_map", mesh))(KEY, NOISE, server, cohort(federation, server, these))[0]
        assert np.std(moved.shared["a"]) == pytest.approx(3.0 * 0.5 / 4.0, rel=0.02)


def test_one_client_moves_the_sum_by_no_more_than_the_bound():
    wild = [g * 1e3 for g in GOALS]
    federation = Federation((work(steps=3),), fed_avg(), bound=0.25, expected=8.0)
    base = after(federation, clients(wild), present=[1] * 7 + [0])[0].shared["a"]
    more = after(federation, clients(wild))[0].shared["a"]
    assert np.linalg.norm(more - base) * 8 == pytest.approx(0.25, rel=1e-9)


def test_groups_of_different_shapes_share_one_round():
    """Clients with 1 and with 4 columns of data of their own, and one parameter."""
    federation = Federation((work(steps=2), work(steps=2)), fed_avg())
    server = begin(federation, SHARED)
    a, b = clients(GOALS[:3]), clients([np.repeat(g, 7, axis=0) for g in GOALS[3:]])
    cohorts = (*cohort(federation, server, a), *cohort(federation, server, b))
    server, _, metrics = jax.jit(spread(federation))(KEY, NOISE, server, cohorts)
    np.testing.assert_allclose(server.shared["a"], far(2) * MEANS.mean(axis=0), rtol=1e-12)
    assert metrics["present"] == 8
    with pytest.raises(ValueError, match="one size that they divide"):
        spread(federation, "vmap")(KEY, None, begin(federation, SHARED), cohorts)


def test_what_has_no_claim_is_refused():
    noisy = dict(noise_multiplier=1.0, bound=1.0, expected=4.0)
    for rule in (aggregation.Weighted(), aggregation.Merit(), aggregation.Median(), aggregation.Krum(1)):
        with pytest.raises(ValueError, match="no bounded sensitivity: under privacy take Mean"):
            Federation((work(),), fed_avg(), rule, **noisy)
    with pytest.raises(ValueError, match="give the updates' norm a bound"):
        Federation((work(),), fed_avg(), noise_multiplier=1.0, expected=4.0)
    with pytest.raises(ValueError, match="fixed number `expected`"):
        Federation((work(),), fed_avg(), noise_multiplier=1.0, bound=1.0)
    with pytest.raises(ValueError, match="SCAFFOLD's variates are sent unbounded"):
        Federation((work(),), fed_avg(), scaffold=8, **noisy)
    private = Federation((work(),), fed_avg(), **noisy)
    with pytest.raises(ValueError, match="needs a key for its noise"):
        server = begin(private, SHARED)
        spread(private)(KEY, None, server, cohort(private, server, clients(GOALS)))
    with pytest.raises(ValueError, match="give rate"):
        work(prox=1.0, rate=0.0)
    with pytest.raises(ValueError, match="needs a mesh"):
        spread(Federation((work(),), fed_avg()), "shard_map")
    with pytest.raises(ValueError, match="Krum for 3 bad ones of 4"):
        after(Federation((work(),), fed_avg(), aggregation.Krum(3)), clients(GOALS[:4]))
    with pytest.raises(ValueError, match=r"client 1: leaves of \[0\] rows"):
        clients([GOALS[0], np.zeros((0, 3))])


def test_bytes_are_counted():
    server = begin(Federation((work(),), fed_avg()), {"a": jnp.zeros((10, 5)), "b": jnp.zeros(7)})
    for how, up in (
        (compression.Whole(), 228),
        (compression.Quantised(4), 25 + 4 + 4 + 4),
        (compression.TopK(0.1), 48),
    ):
        federation = Federation((work(),), fed_avg(), compression=how)
        assert round_bytes(federation, server, 3) == {"down": 3 * 228, "up": 3 * up}
    assert round_bytes(Federation((work(),), fed_avg(), scaffold=3), server, 1) == {"down": 456, "up": 456}
