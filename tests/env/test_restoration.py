"""Switching: sections, radial power flows against OpenDSS, protection, what is refused, what is counted, policies."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

import gridjax
from benchmarks.oracle import Oracle
from gridjax.control.sections import closed_everywhere, cut
from gridjax.env.environment import rollout
from gridjax.env.restoration import FEATURES, may_close, trips
from gridjax.env.restoration_policies import greedy, upper_bound, waiting
from gridjax.env.restoration_tasks import restoration, switched
from gridjax.feeder import Bus, Feeder, Line, Load, SequenceCode, Source, Switch
from gridjax.powerflow.radial import _linear, solve_radial
from gridjax.powerflow.topology import topology
from gridjax.reliability import of_rollout

NAMES = ("baran_wu33", "ieee123")
BATCH = 24
OPTIMAL = ("l7_8", "l9_10", "l14_15", "l32_33", "tie25_29")  # switches 7, 9, 14, 32, 37 of the literature


@dataclasses.dataclass
class Case:
    """A feeder with random radial states of its switches and their power flows."""

    feeder: Feeder
    grid: gridjax.Grid
    sections: object
    facts: object
    closed: np.ndarray
    scale: np.ndarray
    top: object
    flow: object
    run: object


def graph_of(sections, closed):
    """Sections, joined by closed switches; the sources are one vertex, "source"."""
    edges = np.asarray(sections.edge)
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(sections.count))
    for k, (a, b) in enumerate(edges):
        if k < sections.switches and closed[k]:
            graph.add_edge(int(a), int(b), key=k)
        elif k >= sections.switches:
            graph.add_edge(int(a), "source", key=k)
    return graph


def radial(sections, closed):
    """Whether closed switches make no loop and join no sources."""
    return nx.is_forest(nx.Graph(g)) and nx.Graph(g).number_of_edges() == g.number_of_edges() if (
        g := graph_of(sections, closed)
    ) else False  # fmt: skip


def random_radial(sections, facts, rng, drop):
    """Switches closed in random order unless they make a loop or join sources; some stay open."""
    closed = np.zeros(sections.switches, bool)
    for k in rng.permutation(sections.switches):
        if facts.covers[k].any() and rng.random() >= drop:
            closed[k] = True
            closed[k] = radial(sections, closed)
    return closed


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    feeder = switched(gridjax.feeders.load(request.param))
    grid = gridjax.compile(closed_everywhere(feeder))
    sections, facts = cut(feeder, grid)
    rng = np.random.default_rng(7)
    states = [np.array([s.closed for s in feeder.switches])]
    if request.param == "baran_wu33":
        states.append(np.array([s.name not in OPTIMAL for s in feeder.switches]))
    states += [random_radial(sections, facts, rng, 0.15 * (k % 2)) for k in range(BATCH - len(states))]
    closed, scale = np.array(states), np.append(np.ones(2), rng.uniform(0.2, 0.6, BATCH - 2))

    def one(closed, scale):
        top = topology(sections, closed)
        load = grid.nominal.load_kw * scale, grid.nominal.load_kvar * scale
        return top, solve_radial(sections, top, load, grid.nominal.source_pu, tol=1e-11)

    run = jax.jit(jax.vmap(one))
    top, flow = run(jnp.asarray(closed), jnp.asarray(scale))
    return Case(feeder, grid, sections, facts, closed, scale, top, flow, run)


def losses_kw(case):
    flow = case.flow
    return (np.asarray(flow.source).sum(axis=1) - np.asarray(flow.taken)).real * float(case.grid.base_va) / 1e3


def test_any_radial_state_is_opendss_s(case):
    judge = Oracle(case.feeder, tolerance=1e-12)
    assert np.asarray(case.flow.converged).all()
    for k in range(BATCH):
        for s, c in zip(case.feeder.switches, case.closed[k], strict=True):
            for terminal in (1, 2):
                judge.command(f"{'close' if c else 'open'} line.{s.name} {terminal}")
        nominal = case.grid.nominal
        loads = {"load_kw": nominal.load_kw * case.scale[k], "load_kvar": nominal.load_kvar * case.scale[k]}
        v, fine = judge.solve(dataclasses.replace(nominal, **loads))
        live = np.asarray(case.flow.live[k])
        assert fine
        np.testing.assert_allclose(np.asarray(case.flow.v[k])[live], v[live], atol=1e-8, rtol=0)
        assert not np.asarray(case.flow.v[k])[~live].any()
        if live.all():
            lost = float(np.asarray(judge.engine.ActiveCircuit.Losses).view(float)[0]) / 1e3
            assert losses_kw(case)[k] == pytest.approx(lost, abs=1e-5)
    assert len({c.tobytes() for c in case.closed}) > BATCH / 2 and not np.asarray(case.flow.live).all()


@pytest.mark.parametrize("case", ["baran_wu33"], indirect=True)
def test_published_losses_before_and_after_reconfiguration(case):
    assert losses_kw(case)[:2] == pytest.approx([202.68, 139.55], abs=0.005)
    assert np.abs(np.asarray(case.flow.v))[:2].min(axis=1) == pytest.approx([0.9131, 0.9378], abs=5e-5)


def test_islands_and_ways_are_networkx_s(case):
    guards = np.arange(case.sections.switches) % 3 == 0
    tops = jax.jit(jax.vmap(lambda c: topology(case.sections, c, jnp.asarray(guards))))(jnp.asarray(case.closed))
    edges = np.asarray(case.sections.edge)
    for k in range(BATCH):
        graph = graph_of(case.sections, case.closed[k])
        top = jax.tree.map(lambda a, k=k: np.asarray(a[k]), tops)
        fed = nx.node_connected_component(graph, "source")
        ways = nx.shortest_path(graph, target="source")
        apart = graph.copy()
        apart.remove_node("source")
        for s in range(case.sections.count):
            assert top.live[s] == (s in fed)
            if s in fed:
                assert top.depth[s] == len(ways[s]) - 1
                keys = [next(iter(graph[a][b])) for a, b in itertools.pairwise(ways[s])]
                assert top.up[s] == keys[0]
                guarding = [int(e) for e in keys if int(e) < len(guards) and guards[int(e)]]
                assert top.guard[s] == (guarding[0] if guarding else len(edges))
        for part in nx.connected_components(apart):
            assert len({int(top.island[s]) for s in part}) == 1
        assert len(set(top.island[: case.sections.count].tolist())) == nx.number_connected_components(apart)


def test_the_power_balances(case):
    """Sources deliver what their currents carry, losses are positive, and open switches carry nothing."""
    flow, switches = case.flow, case.sections.switches
    emf = np.asarray(case.sections.emf)
    into = np.asarray(flow.edge_current)[:, switches:]
    np.testing.assert_allclose(np.sum(emf * into.conj(), axis=2), flow.source, atol=1e-12)
    assert (losses_kw(case) >= -1e-9).all()
    open_ = ~case.closed
    assert not np.abs(np.asarray(flow.edge_current)[:, :switches][open_]).any()


@pytest.mark.parametrize("case", ["ieee123"], indirect=True)  # that with shunts
def test_single_precision(case):
    small = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, case.sections)
    small = jax.tree.map(lambda a: a.astype(jnp.complex64) if a.dtype == jnp.complex128 else a, small)
    nominal = case.grid.nominal
    load = tuple((a * case.scale[3]).astype(jnp.float32) for a in (nominal.load_kw, nominal.load_kvar))
    top = jax.tree.map(lambda a: a[3], case.top)
    flow = jax.jit(solve_radial)(small, top, load, nominal.source_pu.astype(jnp.float32))
    assert flow.v.dtype == jnp.complex64 and bool(flow.converged)
    np.testing.assert_allclose(flow.v, case.flow.v[3], atol=2e-5)


# A feeder of five sections, two sources and a tie, small enough to be reckoned by hand:
# source A -s0- a -s1- b -s2- c, then open ties c -t- d and a -u- c, and source B -s4- d.
def small_feeder():
    code = SequenceCode("c", 3, 0.3, 0.3, 0.6, 0.9, 0.0, 0.0)
    names = ("source_a", "source_b", "a0", "a", "b0", "b", "c0", "c", "d0", "d")
    buses = tuple(Bus(n, 12.47 / 3**0.5, (1, 2, 3)) for n in names)

    def t(bus):
        return f"{bus}.1.2.3"

    lines = tuple(Line(f"l{x}", t(f"{x}0"), t(x), "c", km) for x, km in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True))
    pairs = [("s0", "source_a", "a0"), ("s1", "a", "b0"), ("s2", "b", "c0"), ("t", "c", "d"), ("s4", "source_b", "d0"),
             ("u", "a", "c")]  # fmt: skip
    switches = tuple(Switch(n, t(x), t(y), closed=n not in "tu", rating_a=30.0) for n, x, y in pairs)
    loads = tuple(Load(f"load_{x}", f"{x}.1.2.3.0", 3, "wye", 1, 12.47, kw, kw / 3)
                  for x, kw in zip("abcd", (100.0, 200.0, 300.0, 150.0), strict=True))  # fmt: skip
    sources = tuple(Source(f"s{x}", f"source_{x}.1.2.3", 12.47) for x in "ab")
    return Feeder("small", 60.0, buses, sources, (code,), lines=lines, switches=switches, loads=loads)


HORIZON, HOURS = 4, 0.5


@pytest.fixture(scope="module")
def small():
    multiplier = np.array([[[0.5, 0.5, 0.5, 0.5], [1.0, 0.9, 0.8, 0.7]]])
    env, params = restoration(
        small_feeder(), multiplier, hours=HOURS, horizon=HORIZON, guards=("s0", "s4"), severity=0.0, at_once=(1.0,)
    )
    state = jax.jit(env.begin)(jax.random.key(0), params)
    return env, params, state, jax.jit(env.advance)


@jax.jit
def settled(params, state, repair, closed):
    """The state right after faults while the switches stood so, and protection's answer."""
    before = topology(params.sections, closed, params.guard)
    gone = trips(params, closed, before, repair > 0)
    top = topology(params.sections, closed & ~gone, params.guard)
    zero = jnp.zeros((), jnp.int32)
    return dataclasses.replace(
        state, start=zero, t=zero, closed=closed & ~gone, tripped=gone, repair_hours=repair, served=before.live, top=top
    )


def faulted(env, params, state, where, hours):
    """The state right after a fault in a section in normal operation."""
    repair = jnp.zeros_like(state.repair_hours).at[list(env.sections).index(where)].set(hours)
    return settled(params, state, repair, params.normal)


def choose(env, name):
    return jnp.array([env.switches.index(name) + 1 if name else 0])


def walk(small, state, names):
    env, params, _, advance = small
    out = []
    for name in names:
        state, outcome = advance(jax.random.key(1), state, choose(env, name), params)
        out.append((state, outcome))
    return out


def on(env, state):
    return "".join(x for x in "abcd" if bool(state.top.live[list(env.sections).index(f"{x}0")]))


def test_the_nearest_guard_trips_and_closes_again_after_repair(small):
    env, params, state, _ = small
    state = faulted(env, params, state, "b0", 0.9)
    assert on(env, state) == "d" and np.flatnonzero(state.tripped).tolist() == [0]
    steps = walk(small, state, [None] * 4)
    assert [on(env, s) for s, _ in steps] == ["d", "d", "abcd", "abcd"]
    assert not bool(steps[-1][0].tripped.any()) and [float(o.info["operations"]) for _, o in steps] == [0] * 4


def test_what_a_step_counts_by_hand(small):
    env, params, state, _ = small
    state = faulted(env, params, state, "b0", 50.0)
    steps = walk(small, state, ["s1", None, "s2", "u"])
    assert [on(env, s) for s, _ in steps] == ["d", "ad", "ad", "acd"]
    kw, level = np.array([100.0, 200, 300]), np.array([[0.5, 0.5, 0.5], [1.0, 0.9, 0.8]])
    dead = np.array([[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 0]])
    people = np.array([50.0, 100, 150])
    for t, (_, outcome) in enumerate(steps):
        kwh = HOURS * float((kw * level[t % 2] * dead[t]).sum())
        loss, moves = float(outcome.info["loss_kwh"]), float(outcome.info["operations"])
        assert moves == (0 if t == 1 else 1)
        assert float(outcome.info["energy_not_served_kwh"]) == pytest.approx(kwh)
        assert float(outcome.reward) == pytest.approx(-10 * kwh - 0.1 * loss - moves)
        assert float(outcome.info["customer_minutes"]) == pytest.approx(30 * float((people * dead[t]).sum()))
        assert float(outcome.info["customers_interrupted"]) == (300 if t == 0 else 0)
    info = jax.tree.map(lambda *a: jnp.stack(a)[:, None], *(o.info for _, o in steps))
    found = of_rollout(info, params.customers, HOURS)
    assert float(found.saifi) == pytest.approx(300 / 375)
    assert float(found.saidi_h) == pytest.approx(0.5 * float((people * dead).sum()) / 375)


def test_a_restoration_within_the_step_is_momentary(small):
    env, params, state, _ = small
    state = faulted(env, params, state, "c0", 50.0)
    # The fault stands alone once s2 is open, and s0 closes again by itself: those on a and b were out for one interval.
    (first, outcome), (second, _) = walk(small, state, ["s2", None])
    assert float(outcome.info["customers_interrupted"]) == 300 and on(env, first) == "d" and on(env, second) == "abd"
    # Had s2 been open before, closing s0 by hand within the step would leave them without a lasting interruption.
    again = settled(params, state, state.repair_hours, state.closed.at[2].set(False))
    again = dataclasses.replace(again, served=state.served)
    ((_, outcome),) = walk(small, again, ["s0"])
    assert float(outcome.info["customers_momentary"]) == 150 and float(outcome.info["customers_interrupted"]) == 150


def test_forbidden_moves_are_refused_and_change_nothing(small):
    env, params, state, _ = small
    healthy = faulted(env, params, state, "b0", 0.0)
    fault = faulted(env, params, state, "b0", 50.0)
    for start, name in ((healthy, "u"), (healthy, "t"), (fault, "s0"), (fault, "t")):
        ((after, outcome),) = walk(small, start, [name])
        assert float(outcome.info["refused"]) == 1 == float(outcome.cost[2]) and float(outcome.info["operations"]) == 0
        np.testing.assert_array_equal(after.closed, start.closed)
        (waited,) = walk(small, start, [None])
        assert float(waited[1].reward - outcome.reward) == pytest.approx(5.0)
        assert not bool(env.allowed(start, params)[env.switches.index(name) + 1])


def test_limits_are_counted(small):
    env, params, state, _ = small
    state = faulted(env, params, state, "b0", 50.0)
    tight = dataclasses.replace(params, low=params.low + 0.5, rating_a=params.rating_a / 1e3)
    outcome = small[3](jax.random.key(0), state, choose(env, None), tight)[1]
    flow = jax.jit(env.flow)(state, tight)
    v, amps = np.abs(flow.v), np.abs(flow.edge_current).max(axis=1)[:6] * np.asarray(params.base_a)
    live = np.asarray(flow.live)
    assert live.sum() == 12  # those of the sources, d0 and d
    assert float(outcome.cost[0]) == pytest.approx((1.4 - v[live]).sum())
    assert float(outcome.cost[1]) == pytest.approx(np.maximum(amps / 0.03 - 1, 0).sum())


@pytest.fixture(scope="module")
def bound(small):
    return upper_bound(small[0], small[1])


@pytest.fixture(scope="module")
def exhaustive(small):
    """The returns of all sequences of moves from a state."""
    env, params, *_ = small
    moves = jnp.array(list(itertools.product(range(7), repeat=HORIZON)))

    def total(state, actions):
        def one(s, a):
            s, outcome = env.advance(jax.random.key(0), s, a[None], params)
            return s, outcome.reward

        return jax.lax.scan(one, state, actions)[1].sum()

    many = jax.jit(jax.vmap(total, in_axes=(None, 0)))
    return lambda state: np.asarray(many(state, moves))


@pytest.mark.parametrize(("where", "hours"), [("b0", 50.0), ("c0", 0.7), ("a0", 1.2)])
def test_the_bound_is_the_best_of_all_sequences_of_moves(small, bound, exhaustive, where, hours):
    env, params, state, _ = small
    state = faulted(env, params, state, where, hours)
    returns = exhaustive(state)
    assert returns.max() > returns[0] + 10 and np.isfinite(returns).all()  # the first waits
    assert float(bound(state)) == pytest.approx(returns.max(), abs=1e-6)


def test_the_rule_restores_more_than_waiting_and_less_than_the_bound(small, bound):
    env, params, *_ = small
    reset = jax.jit(env.begin)
    states = [reset(key, params) for key in jax.random.split(jax.random.key(0), 4)]

    def played(policy, state):
        gained = 0.0
        for _ in range(HORIZON):
            action, _ = policy(jax.random.key(0), jnp.zeros(()), state, None)
            state, outcome = small[3](jax.random.key(0), state, action, params)
            assert bool(outcome.solved) and not float(outcome.info["refused"])
            gained += float(outcome.reward)
        return gained

    policies = jax.jit(greedy(env, params)), waiting(env)
    ruled, waited = (np.array([played(policy, state) for state in states]) for policy in policies)
    best = np.array([float(bound(state)) for state in states])
    assert (ruled >= waited - 1e-9).all() and ruled.mean() > waited.mean() + 100
    assert (best >= ruled - 1e-9).all()
    assert waiting(env)(jax.random.key(0), jnp.zeros(()), None, None)[0].tolist() == [0]


@pytest.fixture(scope="module")
def world():
    """Random moves on the 33-bus feeder in a storm: every state of 16 environments over 12 steps."""
    feeder = gridjax.feeders.baran_wu33()
    env, params = restoration(feeder, np.full((1, 12, 32), 0.5), severity=2000.0, at_once=(0.3, 0.3, 0.4))

    def policy(key, obs, state, memory):
        return jax.random.randint(key, (1,), 0, 38), memory

    def keep(seen):
        return seen.observation, seen.cost, seen.info["solved"]

    (obs, cost, solved), (state, _) = rollout(env, policy, jax.random.key(5), params, steps=11, batch=16, keep=keep)
    return env, params, np.asarray(obs), np.asarray(cost), np.asarray(solved), state


def test_no_state_has_a_loop_or_feeds_a_fault(world):
    env, params, obs, cost, solved, _ = world
    names = list(env.observation_names)
    first = {
        kind: names.index(next(n for n in names if n.startswith(kind))) for kind in ("closed ", "energised ", "fault ")
    }
    edges = np.asarray(params.sections.edge)
    faults = 0
    for row in obs.reshape(-1, obs.shape[-1]):
        closed = row[first["closed "] :][:37] > 0
        assert radial(params.sections, closed)
        fed = nx.node_connected_component(graph_of(params.sections, closed), "source")
        np.testing.assert_array_equal(row[first["energised "] :][:33] > 0, [s in fed for s in range(33)])
        bad = row[first["fault "] :][:37] > 0
        faults += bad.sum()
        assert not any(bad[k] and closed[k] and (edges[k, 0] in fed or edges[k, 1] in fed) for k in range(37))
    assert faults > obs.shape[0] * obs.shape[1] and cost[..., 2].sum() > 0 and solved.all()


def test_what_may_be_closed_is_what_makes_no_loop_and_feeds_no_fault(world):
    env, params, *_, states = world
    allowed = np.asarray(jax.jit(jax.vmap(env.allowed, in_axes=(0, None)))(states, params))[:, 1:]
    edges, shut = np.asarray(params.sections.edge), 0
    for k in range(16):
        closed, bad = np.asarray(states.closed[k]), np.asarray(states.repair_hours[k][33:]) > 0
        for e in np.flatnonzero(~closed):
            tried = closed.copy()
            tried[e] = True
            fed = nx.node_connected_component(graph_of(params.sections, tried), "source")
            feeds = any(bad[x] and tried[x] and set(edges[x]) & fed for x in range(37))
            assert allowed[k, e] == (radial(params.sections, tried) and not feeds and not bad[e])
            shut += not allowed[k, e]
        assert allowed[k][closed].all()
    assert shut > 16


def test_devices_see_themselves_and_their_neighbours(world):
    env, params, *_, states = world
    state = jax.tree.map(lambda a: a[0], states)
    seen = np.asarray(jax.jit(env.observe_devices)(state, params))
    assert seen.shape == (37, len(FEATURES)) and np.isfinite(seen).all()
    np.testing.assert_array_equal(seen[:, 0], state.closed)
    edges, v = np.asarray(params.sections.edge)[:37], np.asarray(state.v).reshape(33, 3).mean(axis=1)
    np.testing.assert_allclose(seen[:, 8:10], v[edges])
    near = [
        set(np.flatnonzero((edges == a).any(axis=1) | (edges == b).any(axis=1))) - {k} for k, (a, b) in enumerate(edges)
    ]
    assert [set(row) - {k} for k, row in enumerate(np.asarray(params.neighbour).tolist())] == near
    scores = jnp.where(jnp.arange(37) == 4, 0.5, -1.0)
    assert env.from_devices(scores).tolist() == [5] and env.from_devices(scores - 1).tolist() == [0]


def test_first_faults_are_drawn_by_rate(small):
    env, params, *_ = small
    params = dataclasses.replace(params, failures=dataclasses.replace(params.failures, at_once=jnp.array([0.6, 0.4])))
    before = topology(params.sections, params.normal, params.guard)
    keys = jax.random.split(jax.random.key(3), 4000)
    repair = np.asarray(jax.jit(jax.vmap(lambda k: env._first_faults(k, before, params)))(keys))
    count = (repair > 0).sum(axis=1)
    assert set(count) == {1, 2} and (count == 2).mean() == pytest.approx(0.4, abs=0.03)
    rate = np.asarray(params.failures.rate)
    np.testing.assert_allclose((repair[count == 1] > 0).mean(axis=0), rate / rate.sum(), atol=0.04)
    assert rate.sum() == pytest.approx(0.065 * 10)
    hours = repair[repair > 0]
    assert hours.mean() == pytest.approx(5.0, rel=0.03) and hours.std() == pytest.approx(2.5, rel=0.08)


def test_the_123_s_single_phase_tie_is_never_closed():
    env, params = restoration(gridjax.feeders.ieee123(), np.ones((1, 2, 91)))
    assert env.switches[6:] == ("sw7", "sw8", "sw250_251", "sw450_451", "sw300_350")
    dead = jnp.zeros(11, bool)
    closing = jax.jit(
        lambda: may_close(params, dead, topology(params.sections, dead, params.guard), params.failures.rate < 0)
    )()
    assert closing.tolist() == [True] * 7 + [False] + [True] * 3


def test_what_cannot_be_is_refused():
    feeder, multiplier = small_feeder(), np.ones((1, 2, 4))

    def with_switch(name, **changes):
        return feeder.replace(
            switches=tuple(dataclasses.replace(s, **changes) if s.name == name else s for s in feeder.switches)
        )

    guards = ("s0", "s4")
    with pytest.raises(ValueError, match=r"multiplier of shape \(1, 2, 3\)"):
        restoration(feeder, multiplier[..., :3], guards=guards)
    with pytest.raises(ValueError, match="normally closed switches make a loop"):
        restoration(with_switch("u", closed=True), multiplier, guards=guards)
    with pytest.raises(ValueError, match="make a loop or join sources"):
        restoration(with_switch("t", closed=True), multiplier, guards=guards)
    dark = [Switch(n, f"{x}.1.2.3", f"{y}.1.2.3", closed=n != "v") for n, x, y in ("vde", "wef", "xef")]
    buses = tuple(Bus(n, 12.47 / 3**0.5, (1, 2, 3)) for n in "ef")
    with pytest.raises(ValueError, match="make a loop"):  # even where nobody is fed
        more = feeder.replace(buses=feeder.buses + buses, switches=(*feeder.switches, *dark))
        restoration(more, multiplier, guards=guards)
    with pytest.raises(ValueError, match=r"load\.load_c: has no supply"):
        restoration(with_switch("s2", closed=False), multiplier, guards=guards)
    with pytest.raises(ValueError, match=r"switch\.s4: leaves a section with a source"):
        restoration(feeder, multiplier, guards=("s0",))
    with pytest.raises(ValueError, match="guards \\['x'\\] are no switches"):
        restoration(feeder, multiplier, guards=("x",))
    with pytest.raises(ValueError, match=r"switch\.u: both ends are joined"):
        restoration(with_switch("u", bus1="c0.1.2.3"), multiplier, guards=guards)
    with pytest.raises(ValueError, match="may not fail"):
        restoration(feeder, multiplier, guards=guards, rate=np.ones(12))
    with pytest.raises(ValueError, match="2\\^37 states"):
        upper_bound(*restoration(gridjax.feeders.baran_wu33(), np.ones((1, 2, 32))))


def test_derivatives_of_losses_are_those_of_differences(case):
    """By the loads and the EMF, in a state with a dark section too."""
    dark = next((k for k in range(BATCH) if not np.asarray(case.flow.live[k]).all()), 0)
    nominal, sections = case.grid.nominal, case.sections

    def losses(at, closed):
        load = nominal.load_kw * at[0], nominal.load_kvar * at[0]
        flow = solve_radial(sections, topology(sections, closed), load, nominal.source_pu * at[1], tol=1e-12)
        return (jnp.sum(flow.source) - flow.taken).real * case.grid.base_va / 1e3

    value = jax.jit(losses)
    slope = jax.jit(jax.grad(losses))
    for k in (0, dark):
        at, closed, step = np.array([case.scale[k], 1.0]), jnp.asarray(case.closed[k]), 1e-5
        ways = step * np.eye(2)
        differences = [float(value(at + way, closed) - value(at - way, closed)) / (2 * step) for way in ways]
        np.testing.assert_allclose(slope(jnp.asarray(at), closed), differences, rtol=1e-5)


def test_slopes_that_sweeps_do_not_find_are_not_numbers():
    """`x = A x - right` by repetition: with A = 0.5 it settles at -2 right, with A = -1.5 it swings away."""
    right = jnp.array([1.0, -3.0])
    np.testing.assert_allclose(_linear(lambda x: 0.5 * x - x, right, 1e-11), -2 * right, rtol=1e-9)
    assert jnp.isnan(_linear(lambda x: -1.5 * x - x, right, 1e-11)).all()
    assert not _linear(lambda x: -1.5 * x - x, 0 * right, 1e-11).any()
