"""Each fault that a person can make is found, by name; sound feeders give no finding."""

import dataclasses
import math

import pytest
from feeders_for_tests import MIDDLE, every_element_feeder, two_bus_feeder
from hypothesis import given, settings
from hypothesis import strategies as st

from gridjax.feeder import (
    Admittance,
    Bus,
    Feeder,
    Line,
    LineCode,
    Load,
    Reactor,
    SequenceCode,
    Switch,
    Transformer,
    Winding,
)
from gridjax.validate import KINDS, Problem, check, validate

FEEDER = every_element_feeder()
TABLES = {kind: table for table, kind in KINDS.items()}


def change(element: str, feeder: Feeder = FEEDER, /, **fields: object) -> Feeder:
    """The feeder with one record's fields replaced; `winding2__kv=...` reaches into a winding."""
    kind, name = element.split(".")
    table = TABLES[kind]

    def altered(record):
        plain = {k: v for k, v in fields.items() if not k.startswith("winding") or k == "winding"}
        for key, value in fields.items():
            if key not in plain:
                number, field = int(key[7]) - 1, key[10:]
                windings = list(record.windings)
                windings[number] = dataclasses.replace(windings[number], **{field: value})
                record = dataclasses.replace(record, windings=tuple(windings))
        return dataclasses.replace(record, **plain)

    records = getattr(feeder, table)
    assert name in {record.name for record in records}
    changed = tuple(altered(record) if record.name == name else record for record in records)
    return feeder.replace(**{table: changed})


def add(table: str, *records: object, feeder: Feeder = FEEDER) -> Feeder:
    return feeder.replace(**{table: (*getattr(feeder, table), *records)})


def without(element: str, feeder: Feeder = FEEDER) -> Feeder:
    kind, name = element.split(".")
    kept = tuple(r for r in getattr(feeder, TABLES[kind]) if r.name != name)
    return feeder.replace(**{TABLES[kind]: kept})


@pytest.mark.parametrize("feeder", [FEEDER, two_bus_feeder()], ids=lambda f: f.name)
def test_a_sound_feeder_has_no_problems(feeder):
    assert validate(feeder) == []
    check(feeder)


# One record's fields changed: the element is found, with these words.
ONE_FIELD = [
    # names and buses
    ("bus.g", {"name": ""}, "no name"),
    ("bus.g", {"nodes": (1, 2, 3, 3)}, "distinct"),
    ("bus.g", {"nodes": (0, 1, 2, 3)}, "distinct"),
    ("bus.g", {"base_kv": 0.0}, "must be positive"),
    # terminals
    ("load.three", {"bus": "nowhere.1.2.3.0"}, "unknown bus 'nowhere'"),
    ("load.phase", {"bus": "e2.2.0"}, "no node 2"),
    ("load.three", {"bus": "d"}, "not of the form"),
    ("load.three", {"bus": "d.1.x.3.0"}, "not of the form"),
    ("load.three", {"bus": "d.1.2.3"}, "need 4"),
    ("load.delta", {"bus": "f.1.2.3.0"}, "need 3"),
    ("load.between", {"bus": "c.2"}, "need 2"),
    ("load.open", {"bus": "k.1.2"}, "need 3"),
    ("load.three", {"bus": "d.1.2.2.0"}, "a node twice"),
    ("generator.g1", {"bus": "c.1.2.3"}, "need 4"),
    ("pv_system.pv1", {"bus": "t.3.0"}, "no node 3"),
    ("storage.b1", {"bus": "m.1.2.3.0"}, "need 3"),
    ("source.grid", {"bus": "src.1.2.3.0"}, "leave out the 0"),
    ("line.l1", {"bus2": "b.1.2"}, "bus1 lists 3 nodes and bus2 2"),
    ("switch.s2", {"bus2": "b.1"}, "bus1 lists 3 nodes and bus2 1"),
    ("transformer.neutral", {"winding1__bus": "c.1.2"}, "winding 1: terminal 'c.1.2' lists 2"),
    ("transformer.reg", {"winding2__bus": "r.1.2.3.4"}, "winding 2: bus 'r' has no node 4"),
    ("capacitor.cw", {"bus2": "d.0"}, "bus2: terminal 'd.0' lists 1"),
    ("capacitor.cw", {"bus2": None}, "bus2 belongs to wye"),
    ("capacitor.cd", {"bus2": "c.0.0.0"}, "bus2 belongs to wye"),
    ("reactor.rd", {"bus1": "c.1.2.3"}, "need 2"),
    ("admittance.y1", {"terminals": ("h.1.2.3", "k.1.2")}, "5 by 5"),
    # references
    ("line.l1", {"code": "nope"}, "unknown code 'nope'"),
    ("code.overhead", {"wires": ("acsr", "acsr", "acsr", "nope")}, "unknown wire 'nope'"),
    ("regulator.reg", {"transformer": "nope"}, "unknown transformer 'nope'"),
    ("regulator.reg", {"winding": 3}, "no winding 3"),
    ("regulator.reg", {"winding": 0}, "no winding 0"),
    ("regulator.reg", {"monitored_bus": "nope"}, "unknown monitored_bus"),
    ("capacitor_control.cc", {"capacitor": "nope"}, "unknown capacitor 'nope'"),
    ("capacitor_control.cc", {"element": "line.nope"}, "unknown element 'line.nope'"),
    # shapes
    ("line.l4", {"code": "matrix"}, "1 conductors, but its code 'matrix' is for 3"),
    ("line.l1", {"code": "double"}, "3 conductors, but its code 'double' is for 2"),
    ("line.l5", {"code": "sequence"}, "2 conductors"),
    ("line.l4", {"code": "overhead"}, "1 conductors"),
    ("code.double", {"c": ((1.0,),)}, "c must be square"),
    ("code.double", {"x": ((0.8, 0.2), (0.21, 0.8))}, "x is not symmetric"),
    ("code.double", {"r": ((0.8, 0.2), (0.21, 0.8))}, "r is not symmetric"),
    ("code.overhead", {"x_m": (0.0, 1.0)}, "one entry for each conductor"),
    ("code.overhead", {"x_m": (0.0, 0.76, 0.76, 1.2)}, "in one place"),
    ("transformer.service", {"x_percent": (2.0, 2.0)}, "3 windings have 3 pairs"),
    ("capacitor.cw", {"closed": (True,)}, "one entry for each step"),
    ("capacitor.c1", {"xl_ohm": (0.0, 0.0)}, "one entry for each step"),
    ("pv_system.pv1", {"power_curve": ((0.0, 1.0), (1.0,))}, "power_curve must be"),
    ("pv_system.pv1", {"efficiency_curve": ((1.0, 0.5), (1.0, 0.9))}, "x rising"),
    ("load.zip", {"zipv": (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)}, "zipv of 7"),
    ("load.zip", {"zipv": None}, "zipv of 7"),
    # impedances
    ("code.single", {"r": ((0.0,),), "x": ((0.0,),)}, "singular"),
    ("code.double", {"r": ((0.0, 0.0), (0.0, 0.0)), "x": ((1.0, 1.0), (1.0, 1.0))}, "singular"),
    ("code.sequence", {"r1": 0.0, "x1": 0.0}, "singular"),
    ("code.sequence", {"r0": 0.0, "x0": 0.0}, "singular"),
    ("switch.s1", {"r_ohm": 0.0}, "zero impedance"),
    ("source.grid", {"r1_ohm": 0.0, "x1_ohm": 0.0}, "zero impedance"),
    ("source.grid", {"r0_ohm": 0.0, "x0_ohm": 0.0}, "zero impedance"),
    ("source.grid", {"r2_ohm": 0.0, "x2_ohm": 0.0}, "zero impedance"),
    ("reactor.rs", {"r_ohm": 0.0, "x_ohm": 0.0}, "zero impedance"),
    # numbers
    ("line.l1", {"length": 0.0}, "length is 0.0"),
    ("line.l1", {"length": -1.0}, "length is -1.0"),
    ("line.l1", {"rating_a": 0.0}, "rating_a is 0.0"),
    ("switch.s2", {"rating_a": -5.0}, "rating_a is -5.0"),
    ("wire.acsr", {"gmr_m": 0.0}, "gmr_m is 0.0"),
    ("code.overhead", {"rho_ohm_m": 0.0}, "rho_ohm_m is 0.0"),
    ("code.overhead", {"h_m": (8.5, 8.5, 8.5, -1.0)}, "h_m must be positive"),
    ("load.three", {"kv": 0.0}, "kv is 0.0"),
    ("transformer.sub", {"winding2__kva": 0.0}, "winding 2: kva is 0.0"),
    ("transformer.sub", {"winding1__kv": -115.0}, "winding 1: kv is -115.0"),
    ("generator.g1", {"kva": 0.0}, "kva is 0.0"),
    ("storage.b1", {"kwh_rated": 0.0, "kwh_stored": 0.0}, "kwh_rated is 0.0"),
    ("storage.b1", {"kwh_stored": 60.0}, "outside [0, 50.0]"),
    ("capacitor.cw", {"kvar": (100.0, 0.0)}, "must be positive in every step"),
    ("regulator.reg", {"pt_ratio": 0.0}, "pt_ratio is 0.0"),
    ("load.three", {"kw": math.nan}, "kw is not finite"),
    ("bus.g", {"x": math.inf}, "x is not finite"),
    ("transformer.reg", {"winding2__tap": math.nan}, "windings[1].tap is not finite"),
    ("load.zip", {"zipv": (0.3, 0.3, 0.4, 0.2, math.nan, 0.5, 0.8)}, "zipv[4] is not finite"),
    ("code.matrix", {"c": ((math.inf, 0.0, 0.0),) * 3}, "c[0][0] is not finite"),
    # order
    ("transformer.reg", {"winding2__tap": 1.2}, "tap 1.2 is outside [0.9, 1.1]"),
    ("transformer.reg", {"winding1__tap": 0.8}, "winding 1: tap 0.8"),
    ("load.three", {"vmin_pu": 1.1}, "vlow <= vmin < vmax"),
    ("load.three", {"vlow_pu": 0.96}, "vlow <= vmin < vmax"),
    ("pv_system.pv1", {"vmin_pu": 1.1}, "must be below vmax_pu"),
    # words
    ("load.three", {"connection": "star"}, "unknown connection 'star'"),
    ("load.three", {"model": 9}, "unknown model 9"),
    ("load.three", {"phases": 4}, "unknown phases 4"),
    ("generator.g1", {"model": 3}, "unknown model 3"),
    ("transformer.sub", {"winding1__connection": "zigzag"}, "unknown connection 'zigzag'"),
    ("transformer.sub", {"lead_lag": "euro"}, "unknown lead_lag 'euro'"),
    ("capacitor.cd", {"connection": "ungrounded"}, "unknown connection"),
    ("capacitor_control.cc", {"kind": "temperature"}, "unknown kind 'temperature'"),
    ("code.overhead", {"earth_model": "flat"}, "unknown earth_model 'flat'"),
    ("code.matrix", {"unit": "yard"}, "unknown unit 'yard'"),
    ("line.l1", {"unit": "miles"}, "unknown unit 'miles'"),
    # voltages
    ("load.three", {"kv": 2.4}, "does not fit bus 'd'"),
    ("load.phase", {"kv": 4.16}, "does not fit bus 'e2'"),
    ("load.between", {"kv": 2.4}, "does not fit bus 'c'"),
    ("load.leg", {"kv": 0.24}, "does not fit bus 't'"),
    ("capacitor.cw", {"kv": 2.4}, "does not fit bus 'd'"),
    ("capacitor.c1", {"kv": 4.16}, "does not fit bus 'e2'"),
    ("capacitor.cd", {"kv": 2.4}, "does not fit bus 'c'"),
    ("transformer.sub", {"winding1__kv": 66.4}, "winding 1: kv 66.4 does not fit"),
    ("transformer.sub", {"winding2__kv": 2.4}, "winding 2: kv 2.4 does not fit"),
    ("transformer.service", {"winding3__kv": 0.24}, "winding 3: kv 0.24 does not fit"),
    ("source.grid", {"base_kv": 66.4}, "base_kv 66.4 does not fit"),
]
FOUND_AT = {"code.single": "line.l4", "code.double": "line.l5", "code.sequence": "line.l2"}


@pytest.mark.parametrize(("element", "fields", "words"), ONE_FIELD, ids=str)
def test_a_fault_in_one_field_is_found_by_name(element, fields, words):
    problems = validate(change(element, **fields))
    owner = FOUND_AT.get(element, element) if words == "singular" else element
    owner = "bus." if fields.get("name") == "" else owner
    assert any(p.element == owner and words in p.message for p in problems), problems


@pytest.mark.parametrize(
    ("element", "fields"),
    [
        ("load.three", {"kw": -300.0}),  # a load may feed in
        ("load.three", {"kv": 4.16 * 1.14}),
        ("load.three", {"kv": 4.16 * 0.86}),
        ("bus.g", {"base_kv": MIDDLE * 1.2}),  # only a series capacitor leads there ...
        ("load.zip", {"model": 1}),
        ("switch.s2", {"r_ohm": 0.0}),  # open
        ("transformer.sub", {"winding1__r_percent": 0.0, "winding2__r_percent": 0.0}),
        ("transformer.reg", {"winding2__tap": 1.1}),
        ("transformer.neutral", {"winding2__r_neutral_ohm": 5.0}),
        ("line.l1", {"bus1": "r.3.1.2", "bus2": "b.3.1.2"}),
        ("capacitor.cw", {"closed": (False, False)}),
        ("capacitor.cw", {"bus2": "n.4.4.4"}),
        ("source.grid", {"r1_ohm": 0.0}),
        ("capacitor_control.cc", {"kind": "time", "element": ""}),
        ("regulator.reg", {"monitored_bus": "b"}),
        ("load.legs", {"kv": 0.208}),
    ],
    ids=str,
)
def test_what_is_unusual_but_sound_is_not_reported(element, fields):
    feeder = change(element, **fields)
    if element == "bus.g":  # ... whose load is then told of it
        feeder = without("load.zip", feeder)
    assert validate(feeder) == []


def test_zero_short_circuit_impedance():
    windings = {f"winding{i}__r_percent": 0.0 for i in (1, 2, 3)}
    feeder = change("transformer.service", x_percent=(0.0, 0.0, 0.0), **windings)
    assert [p.element for p in validate(feeder)] == ["transformer.service"]
    feeder = change("transformer.service", x_percent=(0.0, 2.0, 1.0), **windings)
    assert [p.element for p in validate(feeder)] == ["transformer.service"]
    feeder = change("transformer.service", x_percent=(1.0, 1.0, 0.0), **windings)
    assert "singular" in validate(feeder)[0].message


@pytest.mark.parametrize("kind", [k for k in TABLES if getattr(FEEDER, TABLES[k])])
def test_a_name_twice_in_a_table(kind):
    record = getattr(FEEDER, TABLES[kind])[0]
    problems = validate(add(TABLES[kind], record))
    assert Problem(f"{kind}.{record.name}", "the name occurs 2 times: make names unique") in problems


def test_a_bus_name_with_a_dot():
    problems = validate(add("buses", Bus("a.b", 1.0, (1,))))
    assert any(p.element == "bus.a.b" and "'.'" in p.message for p in problems)


@pytest.mark.parametrize("field", ["frequency_hz", "base_mva"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_numbers_of_the_feeder_itself(field, value):
    (problem,) = validate(FEEDER.replace(**{field: value}))
    assert problem.element == "feeder.every-element" and field in problem.message


def test_no_source_is_one_finding_not_an_island_for_every_bus():
    assert [p.message for p in validate(FEEDER.replace(sources=()))] == ["has no source: add one to `sources`"]


def test_an_empty_feeder():
    messages = [p.message for p in validate(Feeder("none", 60.0, (), ()))]
    assert messages == ["is empty: add buses", "has no source: add one to `sources`"]


def islands(feeder: Feeder) -> set[str]:
    problems = validate(feeder)
    assert all("island" in p.message for p in problems), problems
    return {p.element for p in problems}


def test_islands():
    assert islands(add("buses", Bus("alone", 1.0, (1,)))) == {"bus.alone"}
    assert islands(without("line.l4")) == {"bus.e", "bus.t"}
    assert islands(without("switch.s1")) == {"bus.f"}  # s2 is open
    assert islands(change("switch.s1", closed=False)) == {"bus.f"}
    assert islands(change("switch.s1", change("switch.s2", closed=True), closed=False)) == set()
    assert islands(without("reactor.rs")) == {"bus.h", "bus.k"}
    assert islands(without("capacitor.cs")) == {"bus.g"}
    assert islands(change("capacitor.cs", closed=(False,))) == {"bus.g"}
    assert islands(without("admittance.y1")) == {"bus.k"}
    assert islands(without("transformer.floating")) == {"bus.m"}
    no_loop = without("switch.s2", without("regulator.reg"))
    assert len(islands(without("transformer.reg", no_loop))) == len(FEEDER.buses) - 2


def test_a_shunt_to_ground_energises_nothing():
    shunt = Reactor("shunt", "alone.1", 1, "wye", 1.0, 1.0, bus2="alone.0")
    feeder = add("reactors", shunt, feeder=add("buses", Bus("alone", MIDDLE, (1,))))
    assert islands(feeder) == {"bus.alone"}


def test_a_phase_that_does_not_reach():
    feeder = change("bus.e", nodes=(2, 3))
    (problem,) = validate(feeder)
    assert problem.element == "bus.e" and "from node 3 (" in problem.message
    # Through a grounded wye-wye transformer a phase stays dead; a delta winding carries it over.
    lateral = add("buses", Bus("e3", MIDDLE, (1, 2, 3)), feeder=change("bus.e", nodes=(1, 2, 3)))
    ends = Winding("e.1.2.3.0", "wye", 4.16, 100.0), Winding("e3.1.2.3.0", "wye", 4.16, 100.0)
    wye = add("transformers", Transformer("t", 3, ends, (4.0,)), feeder=lateral)
    assert [(p.element, "node 1, 3" in p.message) for p in validate(wye)] == [
        ("bus.e", True),
        ("bus.e3", True),
    ]
    ends = ends[0], Winding("e3.1.2.3", "delta", 4.16, 100.0)
    assert validate(add("transformers", Transformer("t", 3, ends, (4.0,)), feeder=lateral)) == []


def test_a_neutral_may_hang_on_a_transformer_or_on_the_ground():
    assert validate(without("reactor.ground")) == []
    grounded = Reactor("rod", "c.4", 1, "wye", 5.0, 0.0, bus2="c.0")
    assert validate(add("reactors", grounded, feeder=change("bus.c", nodes=(1, 2, 3, 4)))) == []
    (problem,) = validate(change("bus.c", nodes=(1, 2, 3, 4)))
    assert problem.element == "bus.c" and "from node 4" in problem.message


def test_a_four_wire_line_carries_the_neutral():
    code = LineCode("four", *[tuple(tuple(float(i == j) for i in range(4)) for j in range(4))] * 3)
    feeder = add("buses", Bus("n2", FEEDER.buses[-1].base_kv, (1, 2, 3, 4)))
    feeder = add("codes", code, feeder=feeder)
    feeder = add("lines", Line("l6", "n.1.2.3.4", "n2.1.2.3.4", "four", 1.0), feeder=feeder)
    assert validate(feeder) == []


@pytest.mark.parametrize("table", ["lines", "switches"])
def test_ends_with_different_base_voltages(table):
    record = {
        "lines": Line("bad", "b.1.2.3", "n.1.2.3", "matrix", 1.0),
        "switches": Switch("bad", "b.1.2.3", "n.1.2.3"),
    }[table]
    (problem,) = validate(add(table, record))
    assert problem.element == f"{KINDS[table]}.bad" and "different base_kv" in problem.message
    assert validate(add("switches", Switch("tie", "b.1.2.3", "n.1.2.3", closed=False))) == []


def test_a_two_phase_sequence_code_is_singular_by_its_own_formula():
    feeder = change("line.l5", code="two")
    code = SequenceCode("two", 2, 1.0, 0.5, -0.5, -0.25, 0.0, 0.0)  # z1 + 2 z0 = 0
    (problem,) = validate(add("codes", code, feeder=feeder))
    assert problem.element == "line.l5" and "singular" in problem.message


def test_a_zigzag_bank_is_sound():
    zigzag = [
        Transformer(
            f"z{i}",
            1,
            (
                Winding(f"b.{i}.{3 + i}", "wye", 4.16 / 3, 100.0),
                Winding(f"b.0.{3 + (i % 3) + 1}", "wye", 4.16 / 3, 100.0),
            ),
            (3.0,),
        )
        for i in (1, 2, 3)
    ]
    feeder = add("transformers", *zigzag, feeder=change("bus.b", nodes=(1, 2, 3, 4, 5, 6)))
    assert validate(feeder) == []


def test_an_admittance_with_a_matrix_of_the_wrong_size():
    bad = Admittance("bad", ("b.1.2",), ((1.0,),), ((1.0, 0.0), (0.0, 1.0)))
    (problem,) = validate(add("admittances", bad))
    assert problem.element == "admittance.bad" and "2 by 2" in problem.message


def test_doubts_warn_and_do_not_stop():
    doubtful = change("line.l1", change("load.three", kv=2.4), rating_a=0.0)
    problems = validate(doubtful)
    assert [(p.element, p.fatal) for p in problems] == [("line.l1", False), ("load.three", False)]
    with pytest.warns(UserWarning, match=r"doubtful data:\n  line\.l1: .*\n  load\.three: "):
        check(doubtful)
    with pytest.raises(ValueError, match=r"problems:\n  load\.leg: .*\n  line\.l1: "):
        check(change("load.leg", doubtful, model=99))


def test_all_problems_are_found_at_once():
    feeder = change("load.three", change("line.l2", length=0.0), model=9, kv=math.nan)
    found = sorted(p.element for p in validate(feeder))
    assert found == ["line.l2", "load.three", "load.three"]


def test_check_lists_twenty_and_counts_the_rest():
    loads = [Load(f"bad{i}", "b.1.0", 1, "wye", 99, 2.4, 1.0, 0.0) for i in range(25)]
    with pytest.raises(ValueError, match="'every-element' has problems") as caught:
        check(add("loads", *loads))
    text = str(caught.value)
    assert text.count("unknown model 99") == 20 and "load.bad19: " in text
    assert text.endswith("... and 5 more")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_validate_never_raises_on_right_types(data):
    """Any field of any record takes any value of its type."""
    feeder = FEEDER
    values = {
        float: st.sampled_from([0.0, -1.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf]),
        int: st.sampled_from([0, -1, 4, 99, -(2**31), 2**31]),
        str: st.sampled_from(["", ".", "b", "b.0", "b.1.1", "b.-1", "b.1.2.3.4.5", "é.1", "delta"]),
        tuple: st.sampled_from([(), "drop", "double"]),
        bool: st.booleans(),
    }
    for _ in range(3):
        table = data.draw(st.sampled_from([t for t in KINDS if getattr(feeder, t)]))
        records = list(getattr(feeder, table))
        index = data.draw(st.integers(0, len(records) - 1))
        field = data.draw(st.sampled_from(sorted(vars(records[index]))))
        old = getattr(records[index], field)
        if type(old) not in values:
            continue
        new = data.draw(values[type(old)])
        if isinstance(old, tuple):
            new = {"drop": old[1:], "double": old + old}.get(new, ())
        records[index] = dataclasses.replace(records[index], **{field: new})
        feeder = feeder.replace(**{table: tuple(records)})
    assert all(isinstance(problem, Problem) for problem in validate(feeder))
