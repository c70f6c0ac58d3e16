"""Results: Kirchhoff's laws, balances, quantities by hand, and what may not change the answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feeders_for_tests import MIDDLE, every_element_feeder
from hypothesis import given, settings
from hypothesis import strategies as st

import gridjax
from gridjax.feeder import (
    Bus,
    Capacitor,
    Feeder,
    Generator,
    Line,
    LineCode,
    Load,
    Reactor,
    Regulator,
    Source,
    Switch,
    Transformer,
    Winding,
)
from gridjax.powerflow.results import currents, loading, unit_powers

# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SOLVE = jit(lambda grid, point: gridjax.solve(grid, point, tol=1e-14, max_iterations=200))
MANY = jit(jax.vmap(lambda grid, point: gridjax.solve(grid, point, tol=1e-14, max_iterations=200), (None, 0)))
LOSSES = jit(gridjax.losses)


def every_result(grid, point, flow):
    """Everything there is to ask of one scenario."""
    names = ("currents", "powers", "element_losses", "losses", "source_power", "device_powers", "current_residual",
             "loading")  # fmt: skip
    out = {name: getattr(gridjax, name)(grid, point, flow) for name in names}
    return out | {name: getattr(gridjax, name)(grid, flow) for name in ("voltages", "sequence_voltages", "unbalance")}


results = jit(every_result)


def hand_feeder() -> Feeder:
    """s -line- a -switch- b =delta-wye= c (4.16 to 0.48 kV), c.2 =regulator= d.2, a capacitor, devices."""
    matrix = LineCode(
        "m",
        ((0.3, 0.1, 0.08), (0.1, 0.32, 0.09), (0.08, 0.09, 0.31)),
        ((0.7, 0.3, 0.25), (0.3, 0.72, 0.28), (0.25, 0.28, 0.69)),
        ((9.0, -2.0, -1.0), (-2.0, 9.5, -1.5), (-1.0, -1.5, 8.5)),
    )
    low = 0.48 / 3**0.5
    return Feeder(
        "hand",
        60.0,
        (
            *(Bus(name, MIDDLE, (1, 2, 3)) for name in "sab"),
            Bus("c", low, (1, 2, 3)),
            Bus("d", low, (2,)),
        ),
        (Source("g", "s.1.2.3", 4.16, 1.01, 10.0, 0.05, 0.2, 0.1, 0.5),),
        (matrix,),
        lines=(Line("l", "s.1.2.3", "a.1.2.3", "m", 0.7, rating_a=120.0),),
        switches=(Switch("sw", "a.1.2.3", "b.1.2.3", r_ohm=0.01, x_ohm=0.02, rating_a=80.0),),
        transformers=(
            Transformer(
                "t",
                3,
                (Winding("b.1.2.3", "delta", 4.16, 500.0, 0.6), Winding("c.1.2.3.0", "wye", 0.48, 500.0, 0.7)),
                (5.0,),
                0.3,
                0.6,
            ),
            Transformer(
                "r",
                1,
                (Winding("c.2.0", "wye", 0.277, 60.0), Winding("d.2.0", "wye", 0.277, 60.0, tap=1.0125)),
                (1.0,),
            ),
        ),
        regulators=(Regulator("reg", "r", 2),),
        capacitors=(Capacitor("cap", "a.1.2.3", 3, "wye", 4.16, (60.0, 30.0), (True, False), "a.0.0.0"),),
        reactors=(Reactor("x", "c.3", 1, "wye", 0.5, 9.0, bus2="c.0"),),
        loads=(
            Load("three", "a.1.2.3.0", 3, "wye", 1, 4.16, 300.0, 100.0, vmin_pu=0.8),
            Load("delta", "b.2.3", 1, "delta", 5, 4.16, 60.0, 20.0),
            Load("low", "c.1.2.3.0", 3, "wye", 4, 0.48, 90.0, 30.0),
            Load("end", "d.2.0", 1, "wye", 2, 0.277, 20.0, 5.0),
        ),
        generators=(Generator("pv", "c.1.0", 1, "wye", 0.277, 15.0, 3.0),),
    )


HAND = hand_feeder()


@pytest.fixture(scope="module")
def hand():
    grid = gridjax.compile(HAND)
    flow = SOLVE(grid, grid.nominal)
    assert flow.converged
    return grid, grid.nominal, flow, results(grid, grid.nominal, flow)


def phasors(feeder, flow, bus):
    """Complex volts of the nodes of a bus."""
    at = [i for i, name in enumerate(feeder.node_names) if name.startswith(f"{bus}.")]
    base = next(b.base_kv for b in feeder.buses if b.name == bus) * 1e3
    return np.asarray(flow.v)[np.array(at)] * base


# --- Kirchhoff and the balance. ---


@pytest.fixture(scope="module", params=["hand", "every"])
def scenarios(request):
    """Points with other taps, fractional capacitor steps, other generation and source voltages, solved."""
    grid = gridjax.compile({"hand": HAND, "every": every_element_feeder()}[request.param])
    rng, n, count = np.random.default_rng(4), grid.nominal, 5

    def about(x, low, high):
        return x[None] * rng.uniform(low, high, (count, x.shape[0]))

    points = jax.tree.map(lambda a: about(a, 0.6, 1.4), n).replace(
        tap=jnp.asarray(rng.uniform(0.93, 1.07, (count, n.tap.shape[0]))),
        source_pu=about(n.source_pu, 0.98, 1.02),
        capacitor=jnp.asarray(rng.uniform(0.3, 1.0, (count, n.capacitor.shape[0]))),
    )
    flows = MANY(grid, points)
    assert flows.converged.all()
    return grid, points, flows, jit(jax.vmap(every_result, (None, 0, 0)))(grid, points, flows)


def test_currents_at_every_node_sum_to_zero(scenarios):
    grid, points, flows, found = scenarios
    assert np.abs(found["current_residual"]).max() < 1e-8
    # A node that is off by a millionth, a load that is not the solved one, another tap, another step: all show.
    first = jax.tree.map(lambda a: a[0], (points, flows))
    others = [
        (first[0], first[1].replace(v=first[1].v.at[-1].add(1e-6))),
        (first[0].replace(load_kw=first[0].load_kw.at[0].add(1.0)), first[1]),
        (first[0].replace(generation_kvar=first[0].generation_kvar.at[0].add(1.0)), first[1]),
        (first[0].replace(tap=first[0].tap.at[0].add(1e-4)), first[1]),
        (first[0].replace(capacitor=first[0].capacitor.at[0].add(0.01)), first[1]),
        (first[0].replace(source_pu=first[0].source_pu.at[0].add(1e-4)), first[1]),
    ]
    for point, flow in others:
        assert np.abs(results(grid, point, flow)["current_residual"]).max() > 1e-7


def test_sources_deliver_loads_and_losses(scenarios):
    _, _, _, found = scenarios
    loads, machines = found["device_powers"]
    delivered = found["source_power"].sum(axis=1)
    parts = sum(np.asarray(s).sum(axis=1) for s in found["element_losses"].values())
    balance = loads.sum(axis=1) - machines.sum(axis=1) + parts
    np.testing.assert_allclose(delivered, balance, rtol=1e-9)
    np.testing.assert_allclose(found["losses"], parts, rtol=1e-9)
    assert "sources" not in found["element_losses"]
    assert (found["losses"].real > 0).all()


def test_powers_are_voltages_times_currents(scenarios):
    grid, _, flows, found = scenarios
    volts = np.concatenate([found["voltages"], np.zeros((5, 1))], axis=1)
    np.testing.assert_allclose(volts[:, :-1], np.asarray(flows.v) * np.asarray(grid.node_volts)[None, :-1], rtol=1e-15)
    for kind, i in found["currents"].items():
        s = volts[:, np.asarray(grid.branches[kind].nodes)] * np.conj(i) / 1e3
        np.testing.assert_allclose(found["powers"][kind], s, rtol=1e-12, atol=1e-12)
        if kind != "sources":
            np.testing.assert_allclose(found["element_losses"][kind], s.sum(axis=(2, 3)), rtol=1e-9, atol=1e-9)


# --- By hand. ---


def test_a_line_by_hand(hand):
    """Currents of the pi circuit at both ends, |I|^2 R of its series part, loading."""
    _, _, flow, found = hand
    code, line = HAND.codes[0], HAND.lines[0]
    z = (np.array(code.r) + 1j * np.array(code.x)) * line.length
    shunt = 2j * np.pi * 60 * 1e-9 * np.array(code.c) * line.length / 2
    vs, va = phasors(HAND, flow, "s"), phasors(HAND, flow, "a")
    series = np.linalg.solve(z, vs - va)
    i = np.stack([series + shunt @ vs, -series + shunt @ va])
    np.testing.assert_allclose(found["currents"]["lines"][0], i, rtol=1e-9)
    np.testing.assert_allclose(found["powers"]["lines"][0], np.stack([vs, va]) * i.conj() / 1e3, rtol=1e-9)
    resistive = (series.conj() @ np.array(code.r) @ series).real * line.length / 1e3
    assert found["element_losses"]["lines"][0].real == pytest.approx(resistive, rel=1e-9)
    assert found["loading"]["lines"][0] == pytest.approx(np.abs(i).max() / 120.0, rel=1e-9)


def test_a_switch_and_its_loading_by_hand(hand):
    _, _, flow, found = hand
    i = (phasors(HAND, flow, "a") - phasors(HAND, flow, "b")) / (0.01 + 0.02j)
    np.testing.assert_allclose(found["currents"]["switches"][0], [i, -i], rtol=1e-9)
    assert found["loading"]["switches"][0] == pytest.approx(np.abs(i).max() / 80.0, rel=1e-9)
    assert found["element_losses"]["switches"][0] == pytest.approx((np.abs(i) ** 2).sum() * (0.01 + 0.02j) / 1e3)


def test_transformers_by_hand(hand):
    """Loading by the windings' rated currents; the regulator's currents from its short circuit and tap."""
    _, point, flow, found = hand
    i = np.abs(np.asarray(found["currents"]["transformers"]))
    rated = np.array([[500 / (3**0.5 * 4.16), 500 / (3**0.5 * 0.48)], [60 / 0.277, 60 / 0.277]])
    np.testing.assert_allclose(found["loading"]["transformers"], i.max(axis=2) / rated, rtol=1e-12)
    vc, vd = phasors(HAND, flow, "c")[1], phasors(HAND, flow, "d")[0]
    tap = float(point.tap[0])
    through = (vc - vd / tap) / ((0.004 + 0.01j) * 277**2 / 60e3)
    regulator = np.asarray(found["currents"]["transformers"][1])
    np.testing.assert_allclose(regulator[0, :2], [through, -through], rtol=1e-5)  # but for the antifloat shunts
    np.testing.assert_allclose(regulator[1, :2], np.array([-through, through]) / tap, rtol=1e-5)


def test_capacitors_and_reactors_by_hand(hand):
    grid, _, flow, found = hand
    va = np.abs(phasors(HAND, flow, "a"))
    kvar = 60.0 / 3 * (va**2).sum() / (4160**2 / 3)
    assert found["element_losses"]["capacitors"][0] == pytest.approx(-1j * kvar, rel=1e-12)
    point = grid.nominal.replace(capacitor=jnp.array([0.5, 1.0]))
    other = SOLVE(grid, point)
    va = np.abs(phasors(HAND, other, "a"))
    found_other = results(grid, point, other)
    assert found_other["element_losses"]["capacitors"][0] == pytest.approx(-1j * kvar * (va**2).sum() / (
        np.abs(phasors(HAND, flow, "a")) ** 2).sum(), rel=1e-12)  # fmt: skip
    i = phasors(HAND, flow, "c")[2] / (0.5 + 9j)
    np.testing.assert_allclose(found["currents"]["reactors"][0, :, 0], [i, -i], rtol=1e-12)
    assert found["element_losses"]["reactors"][0] == pytest.approx(abs(i) ** 2 * (0.5 + 9j) / 1e3, rel=1e-12)


def test_devices_by_hand(hand):
    """Each law at the solved voltages; the source's delivery from its terminal currents."""
    _, _, flow, found = hand
    loads, machines = found["device_powers"]
    across = abs(phasors(HAND, flow, "b")[1] - phasors(HAND, flow, "b")[2]) / 4160
    low = np.abs(phasors(HAND, flow, "c")) / (480 / 3**0.5)
    end = abs(phasors(HAND, flow, "d")[0]) / 277
    assert (np.abs(low - 1) < 0.05).all() and abs(across - 1) < 0.05 and end > 0.9
    by_hand = [300 + 100j, (60 + 20j) * across, 30 * low.sum() + 10j * (low**2).sum(), (20 + 5j) * end**2]
    np.testing.assert_allclose(loads, by_hand, rtol=1e-12)
    np.testing.assert_allclose(machines, [15 + 3j], rtol=1e-12)


def test_units_by_hand(hand):
    """The phases of devices, which make what `test_devices_by_hand` says."""
    grid, point, flow, found = hand
    loads, machines = found["device_powers"]
    zone, slot = np.nonzero(np.asarray(grid.units.share) != 0)
    drawn = np.asarray(unit_powers(grid, point, flow, zone, slot))
    device = np.asarray(grid.units.device)[zone, slot]
    total = [drawn[device == k].sum() for k in range(grid.shape.devices)]
    np.testing.assert_allclose(total, np.concatenate([loads, -machines]), rtol=1e-12)
    assert len(drawn) > len(total)
    line = np.asarray(found["powers"]["lines"][0, 0]).sum()
    assert found["source_power"][0] == pytest.approx(line, rel=1e-9)


def test_sequence_voltages_and_unbalance_by_hand(hand):
    grid, _, flow, _ = hand
    a = np.exp(2j * np.pi / 3)
    zero, one, two = 0.02 + 0.01j, 0.97 - 0.1j, 0.03j
    three = np.array([zero + one + two, zero + a**2 * one + a * two, zero + a * one + a**2 * two])
    v = np.asarray(flow.v).copy()
    v[3:6] = three  # bus a
    made = flow.replace(v=jnp.asarray(v))
    sequence = gridjax.sequence_voltages(grid, made)
    np.testing.assert_allclose(sequence[1], [zero, one, two], atol=1e-15)
    np.testing.assert_allclose(sequence[4], 0.0)  # one phase only
    spread = gridjax.unbalance(grid, made)
    assert spread[1] == pytest.approx(abs(two) / abs(one), rel=1e-12)
    assert spread[4] == 0.0
    dark = flow.replace(v=jnp.zeros_like(flow.v))
    np.testing.assert_array_equal(gridjax.unbalance(grid, dark), 0.0)


# --- What may not change the answers. ---


def walk(x, change):
    """Applies `change` to every string of nested tables."""
    if isinstance(x, str):
        return change(x)
    if isinstance(x, tuple):
        return tuple(walk(y, change) for y in x)
    if dataclasses.is_dataclass(x):
        return dataclasses.replace(x, **{f.name: walk(getattr(x, f.name), change) for f in dataclasses.fields(x)})
    return x


def renamed(feeder: Feeder, suffix: str) -> Feeder:
    """Every bus, every element and every reference with a suffix on its name."""
    buses = {b.name for b in feeder.buses}
    words = {"wye", "delta", "lag", "km", "deri", ""}

    def change(text):
        bus, dot, nodes = text.partition(".")
        if dot and bus in buses:
            return f"{bus}{suffix}.{nodes}"
        return text if text in words else text + suffix

    return walk(feeder, change)


def turned(feeder: Feeder) -> Feeder:
    """Phases 1, 2, 3 become 2, 3, 1, but for the source, whose angle is turned instead."""
    turn = str.maketrans("123", "231")
    buses = {b.name for b in feeder.buses}

    def change(text):
        bus, dot, nodes = text.partition(".")
        return f"{bus}.{nodes.translate(turn)}" if dot and bus in buses else text

    sources = tuple(dataclasses.replace(s, angle_deg=s.angle_deg + 120.0) for s in feeder.sources)
    tables = walk(feeder, change)
    buses_ = tuple(dataclasses.replace(b, nodes=tuple(sorted(n % 3 + 1 for n in b.nodes))) for b in feeder.buses)
    return tables.replace(sources=sources, buses=buses_)


def volts_by_name(feeder: Feeder) -> tuple[dict[str, complex], complex]:
    grid = gridjax.compile(feeder)
    flow = SOLVE(grid, grid.nominal)
    assert flow.converged
    volts = gridjax.voltages(grid, flow)
    losses = LOSSES(grid, grid.nominal, flow)
    return dict(zip(feeder.node_names, np.asarray(volts), strict=True)), complex(losses)


@pytest.fixture(scope="module")
def expected(hand):
    _, _, _, found = hand
    return dict(zip(HAND.node_names, np.asarray(found["voltages"]), strict=True)), complex(found["losses"])


def check_alike(feeder: Feeder, expected, name=lambda text: text):
    """Volts of the nodes called `name(...)`, and losses, are those expected."""
    volts, losses = volts_by_name(feeder)
    for node, value in expected[0].items():
        assert volts[name(node)] == pytest.approx(value, rel=1e-10)
    assert losses == pytest.approx(expected[1], rel=1e-9)


@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0.1, 1.0, 25.0]))
def test_order_names_and_base_leave_the_answers(expected, random, base_mva):
    """Tables in any order (the first source stays), other names, another base."""
    shuffled = {}
    for f in dataclasses.fields(HAND):
        table = getattr(HAND, f.name)
        if isinstance(table, tuple) and f.name != "sources":
            shuffled[f.name] = tuple(random.sample(table, len(table)))
    feeder = renamed(HAND.replace(base_mva=base_mva, **shuffled), "_x")
    check_alike(feeder, expected, lambda node: node.replace(".", "_x."))


def test_turning_the_phases_turns_the_answers(expected):
    check_alike(turned(HAND), expected, lambda node: node.translate(str.maketrans("123", "231")))


def test_more_buses_than_needed_change_nothing(expected):
    """A branch without current: its far end has the voltage of its near end."""
    longer = HAND.replace(
        buses=(*HAND.buses, Bus("z", MIDDLE, (1, 2, 3))),
        switches=(*HAND.switches, Switch("end", "s.1.2.3", "z.1.2.3")),
    )
    check_alike(longer, expected)
    volts, _ = volts_by_name(longer)
    assert volts["z.2"] == pytest.approx(volts["s.2"], rel=1e-12)


@jax.jit
def amps_and_share(grid, point):
    flow = gridjax.solve(grid, point)
    return currents(grid, point, flow), loading(grid, point, flow)


@pytest.mark.parametrize("name", ["ieee13", "ieee123"])
def test_switches_carry_in_float32_what_they_carry_in_float64(name):
    """Their ends' voltages are the same float32 number: the difference says nothing of the current."""
    feeder = gridjax.feeders.load(name)
    found = []
    for dtype in (jnp.float64, jnp.float32):
        grid = gridjax.compile(feeder, dtype=dtype)
        found.append(jax.tree.map(np.asarray, amps_and_share(grid, grid.nominal)))
    (amps, share), (single, single_share) = found
    largest = np.abs(amps["switches"]).max()
    assert largest > 100.0
    np.testing.assert_allclose(single["switches"], amps["switches"], atol=1e-4 * largest)
    for kind in ("lines", "switches"):
        np.testing.assert_allclose(single_share[kind], share[kind], atol=1e-4)
