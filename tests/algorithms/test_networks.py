"""Bodies of networks: one set of parameters for all feeders, order does not matter, messages go hop by hop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from algorithms.batches import Batch
from algorithms.device_networks import DeviceBody, Shared, own_actions, scaled
from algorithms.graph_networks import GraphBody, Messages, at_devices, means
from algorithms.iql import IQL, Config
from algorithms.networks import BODIES, Design
from algorithms.spaces import Space, space_of
from algorithms.training import train
from gridjax import feeders
from gridjax.env.device_view import Buses, DeviceView, device_view
from gridjax.env.volt_var_tasks import volt_var

ALIKE = ("device", "graph")
pytestmark = pytest.mark.filterwarnings("ignore:feeder 'ieee34' has doubtful data")


def made(name):
    feeder = feeders.load(name)
    multiplier = np.linspace(0.4, 1.2, 8)[None, :, None] * np.ones((1, 1, len(feeder.loads)))
    env, params = volt_var(feeder, multiplier, hours=3.0, actions="mixed")
    return env, params, feeder


@pytest.fixture(scope="module")
def small():
    return made("ieee13")


@pytest.fixture(scope="module")
def spaces(small):
    """Of two feeders, with positions and numbers, and anchors."""
    out = {}
    for name in ("ieee13", "ieee34"):
        env, params, feeder = small if name == "ieee13" else made(name)
        out[name] = space_of(env, view=device_view(env, params, feeder))
    return out


def observations(space, rows=5, seed=0):
    """Drawn about the scales, devices standing at their positions."""
    x = np.random.default_rng(seed).uniform(-1, 1, (rows, space.observation_size))
    x = np.asarray(space.offset) + np.asarray(space.scale) * x
    for (entry, gain, shift), count in zip(space.anchor, space.counts, strict=True):
        if entry >= 0:
            place = np.random.default_rng(entry).integers(0, count, rows)
            x[:, entry] = (2 * place / (count - 1) - 1 - shift) / gain
    return jnp.asarray(x, jnp.float32)


def actions(space, rows=5):
    draw = np.random.default_rng(1)
    columns = [draw.integers(0, n, rows) if n else draw.uniform(-1, 1, rows) for n in space.counts]
    return jnp.asarray(np.stack(columns, axis=1), jnp.float32)


def shapes(design):
    """Names and shapes of the parameters of actor, critics and value."""
    return jax.eval_shape(lambda key: design.begin(key, "actor", "critic", "value"), jax.random.key(0))


def loud(params, seed=1):
    """Parameters of these shapes, last layers not small, biases not zero."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(0.4 * draw.normal(size=a.shape), a.dtype), params)


@pytest.mark.parametrize("body", ALIKE)
def test_parameters_do_not_depend_on_the_feeder(spaces, body):
    designs = {name: Design(space, hidden=(16, 16), body=body) for name, space in spaces.items()}
    assert shapes(designs["ieee13"]) == shapes(designs["ieee34"])
    actor, critic, value = loud(shapes(designs["ieee13"]))
    assert 1000 <= sum(a.size for a in jax.tree.leaves(actor)) <= 5000
    for name, design in designs.items():
        space = spaces[name]
        x, features = observations(space), space.features(actions(space))
        run = jax.jit(lambda x, f, design=design: (design.act(actor, x), design.q(critic, x, f), design.v(value, x)))
        chosen, q, v = run(x, features)
        assert chosen.mode().shape == (5, space.action_size) and q.shape == (2, 5) and v.shape == (5,)
        for a in (chosen.mean, chosen.log_std, chosen.logits, q, v):
            assert a.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(a)))
        assert float(jnp.std(v)) > 0


def permuted(space, order):
    """The space whose device i is the old one's `order[i]`."""
    view, back = space.view, np.argsort(order)

    def rows(table):
        return tuple(table[k] for k in order)

    near = tuple(tuple(int(back[k]) for k in view.neighbour[d]) for d in order)
    buses = dataclasses.replace(view.buses, device=rows(view.buses.device))
    moved = dataclasses.replace(
        view, names=rows(view.names), kind=rows(view.kind), voltage=rows(view.voltage), neighbour=near,
        own=rows(view.own), buses=buses,
    )  # fmt: skip
    return dataclasses.replace(space, counts=rows(space.counts), anchor=rows(space.anchor), view=moved)


def relabelled(space, order):
    """The space whose bus i is the old one's `order[i]`."""
    buses, back = space.view.buses, np.argsort(order)
    buses = Buses(
        tuple(buses.voltage[k] for k in order),
        tuple((int(back[a]), int(back[b])) for a, b in buses.edges),
        tuple(int(back[k]) for k in buses.device),
    )
    return dataclasses.replace(space, view=dataclasses.replace(space.view, buses=buses))


def run_all(space, body, params):
    design = Design(space, hidden=(16, 16), body=body)

    def run(x, a):
        chosen = design.act(params[0], x)
        q, v = design.q(params[1], x, space.features(a)), design.v(params[2], x)
        return chosen.mean, chosen.log_std, chosen.logits, q, v

    return jax.jit(run)


@pytest.mark.parametrize("body", ALIKE)
def test_the_order_of_devices_and_buses_does_not_matter(spaces, body):
    space = spaces["ieee34"]
    design = Design(space, hidden=(16, 16), body=body)
    params = loud(shapes(design))
    x, a = observations(space), actions(space)
    order = np.random.default_rng(2).permutation(space.action_size)
    other = relabelled(permuted(space, order), np.random.default_rng(3).permutation(len(space.view.buses.voltage)))
    run = run_all(other, body, params)
    here, there = run_all(space, body, params)(x, a), run(x, a[:, order])
    for one, two in zip(here[:3], there[:3], strict=True):
        np.testing.assert_allclose(one[:, order], two, rtol=2e-4, atol=2e-5)
        assert float(jnp.max(jnp.abs(one - two))) > 1e-2  # so that the order was of account
    for one, two in zip(here[3:], there[3:], strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)
    exchanged = run(x, a)  # the devices, but not their actions
    assert float(jnp.min(jnp.abs(exchanged[3] - here[3]))) > 1e-3


def test_the_layer_is_the_papers():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    layer = Shared((5,))
    params = loud(jax.eval_shape(layer.init, jax.random.key(1), x))
    w, b = (np.asarray(params["params"]["Dense_0"][name]) for name in ("kernel", "bias"))
    u = np.asarray(params["params"]["Dense_1"]["kernel"])
    wanted = np.empty((2, 4, 5))
    for batch in range(2):
        for d in range(4):
            mean = sum(np.asarray(x[batch, e]) for e in range(4)) / 4
            wanted[batch, d] = np.maximum(np.asarray(x[batch, d]) @ w + mean @ u + b, 0)
    np.testing.assert_allclose(layer.apply(params, x), wanted, rtol=1e-6)


@pytest.mark.parametrize("body", BODIES)
def test_policies_put_out_changes(spaces, body):
    """A last layer that says "one up" moves every capacitor and tap one up from where it stands."""
    space = spaces["ieee34"]
    design = Design(space, hidden=(16,), body=body)
    params = shapes(design)[0]
    x = observations(space)
    most = max(space.counts)
    wide = 2 * most - 1

    def lean(a):
        if a.ndim != 1 or a.size not in (wide, wide * space.action_size):
            return jnp.zeros(a.shape, a.dtype)
        return jnp.tile(100.0 * (jnp.arange(wide) == most), a.size // wide).astype(a.dtype)  # most - 1: stay

    mode = np.asarray(jax.jit(lambda p: design.act(p, x).mode())(jax.tree.map(lean, params)))
    counts, discrete = np.array(space.counts), space.discrete
    stands = np.round((np.asarray(space.standing(x)) + 1) / 2 * (counts - 1))
    inside = discrete[None] & (stands < counts - 1)
    assert inside.sum() > 10
    np.testing.assert_array_equal(mode[inside], stands[inside] + 1)
    numbers = dataclasses.replace(space, counts=(0,) * space.action_size)
    design = Design(numbers, hidden=(16,), body=body)
    mean = jax.jit(lambda key: design.act(design.begin(key, "actor")[0], x).mean)(jax.random.key(0))
    np.testing.assert_allclose(mean, numbers.standing(x), atol=0.25)


def test_each_device_sees_its_own_action(spaces):
    view = dataclasses.replace(spaces["ieee13"].view, numbers=2, action=(0, 2, 4, 6, 8, 10, 1, -1))
    space = Space((0,) * 8, (0.0,), (1.0,))
    own = own_actions(view, space, jnp.arange(1.0, 9.0)[None])
    np.testing.assert_array_equal(own[0], [[1, 7], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0]])
    hot = Space((2, 3, 0), (0.0,), (1.0,), one_hot=True)
    view = dataclasses.replace(view, names=view.names[:3], numbers=1, action=(0, 1, 2))
    own = own_actions(view, hot, hot.features(jnp.array([[1.0, 2.0, 0.5]])))
    np.testing.assert_array_equal(own[0], [[0, 1, 0], [0, 0, 1], [0.5, 0, 0]])


def test_numbers_go_where_the_action_has_them():
    """Two numbers a device; widths are those of its kind; an entry that no device has stays at 0."""
    view = dataclasses.replace(chain(3), kind=(0, 1, 1), kinds=2, numbers=2, action=(0, 2, 4, 1, -1))
    space = Space((0,) * 5, (0.0,) * 3, (1.0,) * 3, view=view)
    design = Design(space, hidden=(4,), body="device")
    params = loud(shapes(design)[0])
    params["params"]["log_std"] = jnp.array([[-1.0, -2.0], [-3.0, -4.0]], jnp.float32)
    x = jnp.array([[0.95, 1.0, 1.05]], jnp.float32)
    chosen = jax.jit(design.act)(params, x)
    np.testing.assert_array_equal(chosen.log_std[0], [-1, -3, -3, -2, 0])
    w, b = (np.asarray(params["params"]["Dense_0"][name]) for name in ("kernel", "bias"))
    body = {"params": params["params"]["DeviceBody_0"]}
    each = np.tanh(np.asarray(jax.jit(DeviceBody(view, (4,), False).apply)(body, x)) @ w + b)[0]
    wanted = [each[0, 0], each[1, 0], each[2, 0], each[0, 1], 0]
    np.testing.assert_allclose(chosen.mean[0], wanted, rtol=1e-5)


def test_voltages_are_scaled_by_fixed_numbers(spaces):
    view = spaces["ieee13"].view
    x = observations(spaces["ieee13"])
    plain, seen = view.features(x), scaled(view, x)
    np.testing.assert_allclose(seen[..., 3:7], (plain[..., 3:7] - 1) / 0.05, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(seen[..., 7:], plain[..., 7:])


def chain(count):
    """A feeder of buses in a row, each with one voltage and one device, all seen by one another."""
    row = tuple(range(count))
    near = tuple(tuple(k for k in row if k != d)[:3] for d in row)
    buses = Buses(tuple((k, -1, -1) for k in row), tuple((k, k + 1) for k in row[:-1]), row)
    own = ((((-1), 0.0, 0.0),),) * count
    voltage = tuple((k, k, k) for k in row)
    return DeviceView(tuple(map(str, row)), (0,) * count, 1, voltage, near, own, ((0, 0.0, ""),), 1, row, buses)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_messages_go_one_branch_a_round(rounds):
    view = chain(8)
    body = GraphBody(view, (16,), 16, rounds, False)
    x = jnp.ones((1, 8), jnp.float32)
    params = loud(jax.eval_shape(body.init, jax.random.key(0), x))
    total = np.zeros((8, 8))
    slope = jax.jit(jax.jacobian(lambda x: body.apply(params, x)[0]))
    for k in range(4):
        new = 1 + 0.05 * jax.random.normal(jax.random.key(k), x.shape, jnp.float32)
        total += np.abs(slope(new)[:, :, 0]).sum(axis=1)
    hops = np.abs(np.arange(8)[:, None] - np.arange(8)[None])
    assert np.all(total[hops <= rounds] > 0) and np.all(total[hops > rounds] == 0)


def test_means_over_neighbours_by_hand():
    buses = Buses(((0, -1, -1),) * 5, ((0, 1), (1, 2), (1, 3), (3, 4), (4, 3), (0, 3)), (3, 0, 3))
    h = jax.random.normal(jax.random.key(0), (5, 2, 3))
    rows = np.asarray(h)
    nothing = np.zeros((2, 3))
    up = [nothing, rows[0], rows[1], (rows[1] + rows[4] + rows[0]) / 3, rows[3]]
    down = [(rows[1] + rows[3]) / 2, (rows[2] + rows[3]) / 2, nothing, rows[4], rows[3]]
    for seen, wanted in zip(means(buses, h), (up, down), strict=True):
        np.testing.assert_allclose(seen, np.stack(wanted), rtol=1e-12)
    np.testing.assert_array_equal(at_devices(buses, h), np.stack([rows[3], rows[0], rows[3]], axis=1))
    read = jax.jit(lambda h: sum(jnp.sum(jnp.sin(a)) for a in (*means(buses, h), at_devices(buses, h))))
    check_grads(read, (h,), order=1, modes=["rev"], rtol=1e-6)


def test_absent_phases_count_as_nothing(spaces):
    """A phase that there is not gives 0 and says so, whatever stands in the observation's first entry."""
    view = chain(3)
    x = jnp.array([[1.02, 0.97, 1.0]], jnp.float32)
    module = Messages(view.buses, 4, 0)
    params = loud(jax.eval_shape(module.init, jax.random.key(0), x))
    w, b = (np.asarray(params["params"]["Dense_0"][name]) for name in ("kernel", "bias"))
    inputs = np.array([[0.4, 0, 0, 1, 0, 0], [-0.6, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]])
    np.testing.assert_allclose(module.apply(params, x)[:, 0], np.maximum(inputs @ w + b, 0), rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_on_one_device_and_without_neighbours():
    view = chain(1)
    view = dataclasses.replace(view, neighbour=((0,),))
    for body in ALIKE:
        design = Design(Space((0,), (0.0,), (1.0,), view=view), hidden=(8,), body=body, rounds=1, critic_norm=True)
        actor, critic, _ = loud(shapes(design))
        x = jnp.array([[1.0], [0.9]], jnp.float32)

        def loss(params, design=design, x=x):
            chosen = design.act(params[0], x)
            return jnp.sum(design.q(params[1], x, chosen.soft_mode())) - jnp.sum(chosen.log_prob(x))

        slope = jax.jit(jax.grad(loss))((actor, critic))
        assert all(bool(jnp.all(jnp.isfinite(a))) and a.dtype == jnp.float32 for a in jax.tree.leaves(slope))


@pytest.fixture(scope="module")
def logged(spaces):
    """Steps of which only the reward follows from the rest: it is larger the lower the voltages."""
    space, rows = spaces["ieee13"], 256
    x, taken = observations(space, rows), actions(space, rows)
    low = -np.mean((np.asarray(x) - np.asarray(space.offset)) / np.asarray(space.scale), axis=1)
    nothing = np.zeros(rows)
    columns = (x, taken, low, np.zeros((rows, space.constraints)), x, taken, nothing, nothing, nothing)
    return Batch(*(jnp.asarray(np.asarray(a, np.float32)) for a in columns))


@pytest.mark.parametrize("body", ALIKE)  # the others' agents are in test_agents.py
def test_iql_learns_with_networks_of_devices(spaces, logged, body):
    kept = []
    config = Config(hidden=(8,), body=body, rate=3e-3, actor_rate=3e-3)
    train(
        IQL, config, spaces["ieee13"], logged, jax.random.key(0), updates=120, batch_size=32, every=40,
        seen=lambda done, states, metrics: kept.append({name: float(m[0]) for name, m in metrics.items()}),
    )  # fmt: skip
    assert kept[-1]["critic_loss"] < 0.8 * kept[0]["critic_loss"]
    assert kept[-1]["log_prob"] > kept[0]["log_prob"]


def test_what_cannot_be_built_is_refused(spaces):
    space = spaces["ieee13"]
    with pytest.raises(ValueError, match="body 'tree' is unknown"):
        Design(space, body="tree")
    with pytest.raises(ValueError, match="needs devices"):
        Design(dataclasses.replace(space, view=None), body="device")
    without = dataclasses.replace(space, view=dataclasses.replace(space.view, buses=None))
    with pytest.raises(ValueError, match="needs the feeder"):
        Design(without, body="graph")
