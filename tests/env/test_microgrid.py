"""What an island promises: a power balance at every moment, frequencies by formula, money, and last resorts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gridjax
from benchmarks.oracle import Oracle
from gridjax.control.frequency import fastest_s, inertia
from gridjax.env import island as plant
from gridjax.env.disturbances import strike
from gridjax.env.microgrid import FEATURES
from gridjax.env.microgrid_tasks import island_feeder, microgrid
from gridjax.env.tasks import feeder_of, names
from gridjax.feeder import Generator

BATCH = 32


def put(tree, **changes):
    """A copy with changes; dotted names go down."""
    for name, value in changes.items():
        first, _, rest = name.partition("__")
        value = put(getattr(tree, first), **{rest: value}) if rest else value
        tree = dataclasses.replace(tree, **{first: value})
    return tree


@pytest.fixture(scope="module")
def made():
    return microgrid(gridjax.feeders.ieee13(), jax.random.key(0), days=12)


@pytest.fixture(scope="module")
def step(made):
    return jax.jit(jax.vmap(made[0].step, in_axes=(0, 0, 0, None)))


@pytest.fixture(scope="module")
def starts(made):
    env, params = made
    return jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(jax.random.split(jax.random.key(1), BATCH), params)[1]


def walk(env, key, state, action, params):
    """One step's parts: what was asked, the states before and after, the swing, the energies at its end."""
    request = env.ask(state, action, params)
    struck, lost, _ = strike(key, params.disturbances, params.island, request)
    none = jnp.zeros(len(env.blocks), bool)
    grid, island = params.grid, params.island
    before = plant.settle(grid, island, request, state.stores, params.hours, none)
    trace, stores, fallen, over = plant.ride(grid, island, before, struck, request.available_kw, state.stores)
    rest = params.hours - jnp.sum(island.seconds) / 3600
    after = plant.settle(grid, island, struck, stores, rest, fallen)
    figures = env.energies(before, trace, after, struck, rest, params)
    return struck, lost, before, trace, after, figures, over


@pytest.fixture(scope="module")
def walked(made):
    """Steps under random actions of which each is struck by something, at noon, with droops of all machines varied."""
    env, params = made
    params = put(params, disturbances__chances=jnp.array([0.4, 0.3, 0.3]))

    @jax.jit
    @jax.vmap
    def run(key, state, action, droop):
        return walk(env, key, state, action, put(params, island__machines__droop=droop))

    def go(states, actions, droops=None, keys=None):
        keys = jax.random.split(jax.random.key(5), BATCH) if keys is None else keys
        droop = jnp.broadcast_to(params.island.machines.droop, (BATCH, 3)) if droops is None else droops
        return run(keys, states, actions, droop)

    return go


@pytest.fixture(scope="module")
def random_actions(made):
    return jax.random.uniform(jax.random.key(2), (BATCH, made[0].action_size), minval=-0.3, maxval=0.3)


@pytest.fixture(scope="module")
def noon(starts):
    return dataclasses.replace(starts, t=jnp.full(BATCH, 12, jnp.int32))


def test_what_is_given_is_what_is_taken_and_lost_at_every_inner_step(made, walked, noon, random_actions):
    _, params = made
    struck, _, _, trace, _, _, over = walked(noon, random_actions)
    assert not bool(over.any()) and bool(trace.solved.all())

    def judge(struck, kw, fallen, w, sun):
        request = dataclasses.replace(struck, available_kw=sun)
        point, flow, _ = plant.network(params.grid, params.island, request, kw, fallen, w)
        taken, given = gridjax.device_powers(params.grid, point, flow)
        lost = sum(jnp.sum(x) for x in gridjax.element_losses(params.grid, point, flow).values())
        return jnp.sum(taken).real + lost.real, jnp.sum(given).real

    many = jax.jit(jax.vmap(jax.vmap(judge, in_axes=(None, 0, 0, 0, 0))))
    used, given = many(struck, trace.kw, trace.fallen, trace.w_before, trace.available_kw)
    np.testing.assert_allclose(given, trace.kw.sum(axis=2), rtol=1e-12)
    np.testing.assert_allclose(trace.slack.real + trace.kw.sum(axis=2), used, rtol=1e-9)
    assert np.abs(np.asarray(trace.w)).max() > 1e-3


def test_the_energies_of_the_machines_balance(made, walked, noon, random_actions):
    env, params = made
    struck, _, before, trace, after, figures, _ = walked(noon, random_actions)
    m, d = params.island.machines, len(env.diesels)
    on = np.concatenate([np.ones((BATCH, 1)), np.asarray(struck.on)[:, :d] * (np.asarray(before.kw)[:, :d] > 0)], 1)
    weight = np.asarray(jax.vmap(lambda on: inertia(m, on).sum())(jnp.asarray(on)))
    electric = np.asarray(trace.slack.real) + np.asarray(trace.kw)[:, :, :d].sum(axis=2)
    mechanical = np.asarray(trace.mechanical_kws).sum(axis=2)
    moved = np.diff(np.asarray(trace.w), axis=1, prepend=0.0) * weight[:, None]
    seconds = np.asarray(trace.seconds)
    np.testing.assert_allclose(moved, mechanical - electric * seconds - trace.damped_kws, rtol=1e-9, atol=1e-9)
    # Over the whole step the kinetic energy is back, so the primary energy is the electric one.
    rest = 1.0 - seconds.sum(axis=1) / 3600
    settled = np.asarray(after.slack.real) + np.asarray(after.kw)[:, :d].sum(axis=1)
    whole = (electric * seconds).sum(axis=1) / 3600 + rest * settled
    np.testing.assert_allclose(np.asarray(figures["mechanical"]).sum(axis=1), whole, rtol=1e-9)


def test_without_machines_beside_it_the_inverter_follows_the_closed_form(made, walked, noon, random_actions):
    """With diesels out, 2HS dw/dt = P0 - S w/R - Pe: an exponential in each inner step, and droop in the end."""
    env, params = made
    m, d = params.island.machines, len(env.diesels)
    out = noon.out_h.at[:, :d].set(9.0)
    factor = jnp.linspace(1.0, 3.0, BATCH)[:, None]
    _, _, before, trace, _, _, _ = walked(dataclasses.replace(noon, out_h=out), random_actions, factor * m.droop[None])
    alone = jax.tree.map(lambda a: a[:1], m)  # the fastest that an island can be
    assert float(fastest_s(alone)) > float(params.island.seconds.max()) / plant.SWING_STEPS
    s, h, r = float(m.kva[0]), float(m.inertia_s[0]), np.asarray(m.droop)[0] * np.asarray(factor)
    seconds, w = np.asarray(trace.seconds), np.asarray(trace.w)
    change = np.asarray(trace.slack.real) - np.asarray(before.slack.real)[:, None]
    final = -r * change / s
    earlier = np.concatenate([np.zeros((BATCH, 1)), w[:, :-1]], axis=1)
    exact = final + (earlier - final) * np.exp(-seconds / (2 * h * r))
    np.testing.assert_allclose(w, exact, atol=2e-6)
    np.testing.assert_allclose(w[:, -1], final[:, -1], rtol=0.01, atol=1e-7)  # sources that follow still move
    steep = np.abs(change[:, 0]) > 5  # a load step: the first slope is dP / 2HS
    assert steep.any()
    start = change[:, 0] / (-2 * h * s)
    np.testing.assert_allclose(
        exact[steep, 0] / start[steep], (2 * h * r[steep, 0]) * (1 - np.exp(-0.1 / (2 * h * r[steep, 0])))
    )


def test_the_slack_gives_what_opendss_says(walked, noon, random_actions):
    _, _, before, *_ = walked(noon, random_actions)
    feeder = island_feeder(gridjax.feeders.ieee13())
    sources = (*feeder.generators, *feeder.pv_systems, *feeder.storages)
    same = feeder.replace(
        generators=tuple(
            Generator(x.name, x.bus, x.phases, x.connection, x.kv, 1.0, 0.0, vmin_pu=0.5, vmax_pu=1.5) for x in sources
        ),
        pv_systems=(), storages=(),
    )  # fmt: skip
    oracle = Oracle(same)
    for k in range(2):
        point = jax.tree.map(lambda a, k=k: a[k], before.point)
        v, converged = oracle.solve(point)
        circuit = oracle.engine.ActiveCircuit
        circuit.SetActiveElement("vsource.forming")
        powers = np.array(circuit.ActiveCktElement.Powers)
        assert converged
        np.testing.assert_allclose(v, before.flow.v[k], atol=1e-6)
        given = complex(-powers[0:6:2].sum(), -powers[1:6:2].sum())
        assert complex(before.slack[k]) == pytest.approx(given, rel=1e-6, abs=1e-3)


def test_do_nothing_lives_through_the_day(made, step, starts):
    """Three days each, drawn afresh as they end."""
    env, params = made
    state, action = starts, jnp.zeros((BATCH, env.action_size))
    worst, kinds, days = 0.0, set(), set()
    for t in range(3 * env.horizon):
        keys = jax.random.split(jax.random.key(100 + t), BATCH)
        days |= set(np.asarray(state.episode).tolist())
        _, state, _, cost, terminated, truncated, info = step(keys, state, action, params)
        assert bool(info["solved"].all()) and not bool(terminated.any())
        assert bool(truncated.all()) == ((t + 1) % env.horizon == 0)
        assert float(jnp.max(cost[:, 3])) == 0
        worst = max(worst, -float(jnp.min(info["frequency_low_hz"])))
        kinds |= set(np.asarray(info["disturbance"]).astype(int).tolist())
    assert len(days) == 12 and kinds == {0, 1, 2, 3}
    assert 0.3 < worst < 1.2  # the disturbances are felt, and borne


def test_money_is_counted_by_hand(made, step, walked, noon):
    env, params = made
    params = put(params, disturbances__chances=jnp.array([0.4, 0.3, 0.3]))
    action = jnp.zeros((BATCH, env.action_size)).at[:, -3].set(0.5).at[:, 2].set(-0.4)
    keys = jax.random.split(jax.random.key(7), BATCH)
    own = jax.vmap(lambda k: jax.random.split(k)[0])(keys)
    _, state, reward, _, _, _, info = step(keys, noon, action, params)

    struck, _, before, trace, after, figures, _ = walked(noon, action, keys=own)
    d = len(env.diesels)
    seconds = np.asarray(trace.seconds)
    rest = 1 - seconds.sum(axis=1) / 3600
    fuel = 0.246 * np.asarray(figures["mechanical"])[:, 1:].sum(axis=1)
    for k in range(d):
        on = np.asarray(struck.on)[:, k]
        rated = float(params.island.machines.kw_high[k + 1])
        hours = on * (np.asarray(before.kw)[:, k] > 0) * seconds.sum(axis=1) / 3600
        fuel += 0.08145 * rated * (hours + on * (np.asarray(after.kw)[:, k] > 0) * rest)
    np.testing.assert_allclose(info["fuel_cost"], 1.2 * fuel, rtol=1e-9)
    block = np.asarray(params.island.block)
    important = np.asarray(struck.point.load_kw)[:, block == 2].sum(axis=1)  # half of it is shed, at 8 a kWh
    np.testing.assert_allclose(info["unserved_cost"], 8 * 0.5 * important, rtol=1e-9)
    total = info["fuel_cost"] + info["unserved_cost"] + 0.05 * info["curtailed_kwh"] + info["wear_cost"]
    np.testing.assert_allclose(reward, -total, rtol=1e-9)
    assert float(jnp.median(info["curtailed_kwh"])) > 1
    assert state.t.shape == (BATCH,)


def test_an_empty_unit_sheds_and_then_is_a_blackout(made, step, starts):
    env, params = made
    d = len(env.diesels)
    own = dataclasses.replace(starts.stores.own, kwh=jnp.full((BATCH, 1), params.island.store.kwh_reserve[0]))
    dark = dataclasses.replace(
        starts, t=jnp.full(BATCH, 2, jnp.int32), stores=dataclasses.replace(starts.stores, own=own),
        out_h=starts.out_h.at[:, :d].set(9.0),
    )  # fmt: skip
    action = jnp.zeros((BATCH, env.action_size))
    _, _, reward, cost, terminated, _, info = step(jax.random.split(jax.random.key(0), BATCH), dark, action, params)
    assert bool(terminated.all()) and bool(info["solved"].all())
    np.testing.assert_array_equal(info["relay_blocks"], 3.0)
    np.testing.assert_array_equal(cost[:, 3], 1.0)
    price = float(params.prices.blackout)
    np.testing.assert_array_equal(info["blackout_cost"], price)
    assert bool(jnp.all(reward <= -price)) and float(jnp.min(reward)) > env.failure_penalty
    v = info["final_observation"][:, : len(env.nodes)]
    np.testing.assert_array_equal(v, 0.0)


def test_after_a_blackout_nothing_is_burnt_and_no_energy_moves(made, step, noon):
    env, params = made
    fragile = put(params, island__limits__steady=jnp.asarray(1e-3, float))
    action, keys = jnp.zeros((BATCH, env.action_size)), jax.random.split(jax.random.key(4), BATCH)
    _, _, reward, _, terminated, _, info = step(keys, noon, action, fragile)
    assert bool(terminated.all()) and bool(info["solved"].all())
    np.testing.assert_array_equal(reward, -float(params.prices.blackout))
    charge = info["final_observation"][:, env.observation_names.index("state of charge grid-forming")]
    np.testing.assert_array_equal(charge, noon.stores.own.kwh[:, 0] / params.island.store.kwh_rated[0])


def test_one_source_is_lost_at_a_time_and_back_after_its_repair(made, step, starts):
    env, params = made
    params = put(params, disturbances__chances=jnp.array([0.0, 1.0, 0.0]))
    state, action, out, kinds = starts, jnp.zeros((BATCH, env.action_size)), [], []
    for t in range(5):
        _, state, *_, info = step(jax.random.split(jax.random.key(t), BATCH), state, action, params)
        out.append(np.asarray(state.out_h))
        kinds.append(np.asarray(info["disturbance"]))
    np.testing.assert_array_equal(np.sum(out, axis=2), np.array([3.0, 2.0, 1.0, 0.0, 3.0])[:, None] + np.zeros(BATCH))
    np.testing.assert_array_equal(kinds, np.array([2.0, 0.0, 0.0, 0.0, 2.0])[:, None] + np.zeros(BATCH))


def test_frequencies_beyond_the_limits_are_a_blackout_and_the_relay_comes_before(made, step, noon):
    env, params = made
    d = len(env.diesels)
    params = put(
        params, disturbances__chances=jnp.array([0.0, 0.0, 1.0]), disturbances__cloud_least=jnp.asarray(0.79, float)
    )
    alone = dataclasses.replace(noon, out_h=noon.out_h.at[:, :d].set(9.0))
    action, keys = jnp.zeros((BATCH, env.action_size)), jax.random.split(jax.random.key(4), BATCH)
    early = jnp.array([-0.0005, -0.001, -0.0015, -jnp.inf])
    sensitive = put(params, island__relay__below=early)
    *_, cost, terminated, _, info = step(keys, alone, action, sensitive)
    cut = info["relay_blocks"] > 0
    assert bool(cut.any()) and not bool(terminated[cut].any()) and bool((info["unserved_kwh"][cut] > 0).all())
    narrow = put(params, island__limits__low=jnp.asarray(-0.0005, float), band_hz=jnp.asarray(0.001, float))
    *_, cost, terminated, _, info = step(keys, alone, action, narrow)
    deep = info["frequency_low_hz"] < -0.04
    assert bool(deep.any()) and bool(terminated[deep].all())
    np.testing.assert_allclose(cost[:, 0], jnp.maximum(-info["frequency_low_hz"] - 0.001, 0.0), atol=2e-3)


def test_the_return_of_an_island_formed_by_a_machine_has_a_derivative():
    """Forward mode here; the contract's test takes the reverse mode."""
    env, params = microgrid(gridjax.feeders.ieee13(), jax.random.key(0), forming="machine", days=1, hours=2.0)
    assert params.island.store is None and float(params.island.machines.kw_low[0]) == 0
    params = put(params, disturbances__chances=jnp.array([1.0, 0.0, 0.0]))
    state = env.begin(jax.random.key(0), params)
    state = dataclasses.replace(state, t=jnp.asarray(9, jnp.int32))
    action = jnp.zeros(env.action_size).at[3].set(-0.3).at[0].set(0.05)

    def total(x):
        share, scale, droop = x
        changed = put(
            params, dispatch__share=params.dispatch.share.at[1].multiply(share),
            island__machines__droop=params.island.machines.droop * droop,
        )  # fmt: skip

        def one(state, key):
            state, outcome = env.advance(key, state, scale * action, changed)
            return state, outcome.reward + 1e3 * outcome.info["frequency_low_hz"] + 1e2 * outcome.info["loss_kw"]

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(0), 2))[1].sum()

    both, x, by = jax.jit(lambda x, dx: jax.jvp(total, (x,), (dx,))), jnp.ones(3), 1e-4
    for move in jnp.eye(3):
        _, slope = both(x, move)
        up, down = (both(x + s * by * move, move)[0] for s in (1, -1))
        assert float(slope) == pytest.approx(float(up - down) / (2 * by), rel=1e-4, abs=1e-4)
        assert float(slope) != 0


def test_single_precision_walks_alike(made, walked, noon, random_actions):
    env, params = made

    def single(tree):
        less = {jnp.dtype("float64"): jnp.float32, jnp.dtype("complex128"): jnp.complex64}
        return jax.tree.map(lambda a: a.astype(less.get(a.dtype, a.dtype)), tree)

    struck, _, before, trace, *_ = walked(noon, random_actions)
    exact = [jax.tree.map(lambda a: a[0], x) for x in (struck, before, trace, noon)]
    asked, start, seen, state = (single(x) for x in exact)
    small, none = single(params), jnp.zeros(len(env.blocks), bool)

    @jax.jit
    def run(params, asked, start, stores):
        settled = plant.settle(params.grid, params.island, asked, stores, params.hours, none)
        return settled, plant.ride(params.grid, params.island, start, asked, seen.available_kw[0], stores)[0]

    settled, course = run(small, asked, start, state.stores)
    assert settled.kw.dtype == course.w.dtype == jnp.float32
    assert bool(settled.solved) and bool(course.solved.all()) and not bool(settled.lost)
    np.testing.assert_allclose(course.w[-1], exact[2].w[-1], atol=2e-4)


def test_devices_see_themselves_and_act_for_themselves(made, noon):
    env, params = made
    state = jax.tree.map(lambda a: a[0], noon)
    seen = np.asarray(jax.jit(env.observe_devices)(state, params))
    many = len(env.devices)
    assert seen.shape == (many, len(FEATURES))
    counts = [len(x) for x in (env.diesels, env.inverters, env.batteries, env.blocks)]
    np.testing.assert_array_equal(seen[:, :4], np.repeat(np.eye(4), counts, axis=0))
    own = np.asarray(state.v)[np.asarray(params.place)].mean(axis=1)
    np.testing.assert_allclose(seen[:, 4], own)
    assert not np.any(np.asarray(params.neighbour) == np.arange(many)[:, None])
    actions = jnp.arange(2.0 * many).reshape(many, 2)
    whole = np.asarray(env.from_devices(actions))
    n = len(env.sources)
    assert whole.shape == (env.action_size,)
    np.testing.assert_array_equal(whole[:n], np.arange(n) * 2)
    np.testing.assert_array_equal(whole[n : 2 * n], np.arange(n) * 2 + 1)
    np.testing.assert_array_equal(whole[2 * n :], [*(np.arange(n, many) * 2), 0])


@pytest.mark.parametrize("name", ["ieee13", "ieee34", "ieee123"])
def test_an_island_is_sized_from_its_feeders_load(name):
    assert f"Microgrid-{name}-v0" in names()
    feeder = gridjax.feeders.load(name)
    own, other = (island_feeder(feeder, forming=kind) for kind in ("battery", "machine"))
    kw, kva = sum(x.kw for x in feeder.loads), abs(sum(complex(x.kw, x.kvar) for x in feeder.loads))
    unit = own.sources[0]
    assert unit.bus == feeder.sources[0].bus and unit.x1_ohm == pytest.approx(0.05 * unit.base_kv**2 * 1e3 / kva)
    assert other.sources[0].x2_ohm == pytest.approx(3 * unit.x1_ohm)
    assert [x.kw for x in own.generators] == pytest.approx([0.4 * kw] * 2)
    assert sum(x.pmpp_kw for x in own.pv_systems) == pytest.approx(0.8 * kw)
    assert len(own.storages) == len(feeder.loads) // 8
    levels = {b.name: (b.base_kv, len(b.nodes)) for b in feeder.buses}
    assert all(levels[x.bus.split(".")[0]][1] == 3 and x.kw > 0 for x in own.generators)
    assert len({x.bus for x in own.generators}) == 2
    assert own.loads == feeder.loads and own.lines == feeder.lines
    assert feeder_of(f"Microgrid-{name}-v0", forming="machine") == other


def test_what_cannot_be_an_island_is_refused():
    feeder = gridjax.feeders.ieee13()
    with pytest.raises(ValueError, match="one source with three phases"):
        island_feeder(feeder.replace(sources=(*feeder.sources, *feeder.sources)))
    with pytest.raises(ValueError, match="forming 'wind'"):
        island_feeder(feeder, forming="wind")
    with pytest.raises(ValueError, match="at most 1"):
        microgrid(feeder, jax.random.key(0), chances=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="steps that divide"):
        microgrid(feeder, jax.random.key(0), hours=0.001)
    own = Generator("own", "671.1.2.3", 3, "delta", 4.16, 500.0, 0.0, model=2)
    with pytest.raises(ValueError, match="set its model to 1"):
        island_feeder(feeder.replace(generators=(own,)))
