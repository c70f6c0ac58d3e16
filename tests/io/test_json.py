"""Feeders come back bit for bit; a hostile file gives a ValueError that says where and what."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import re
import types
import typing

import numpy as np
import pytest
from feeders_for_tests import every_element_feeder, two_bus_feeder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gridjax.io.json as feeder_json
from gridjax.feeder import Feeder, Geometry, Matrix
from gridjax.io.json import read_json, write_json

FEEDER = every_element_feeder()
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """The file of `every_element_feeder`."""
    path = tmp_path_factory.mktemp("json") / "feeder.json"
    write_json(FEEDER, path)
    return path.read_text(encoding="utf-8")


def error_of(path, content: str | bytes) -> str:
    """The message with which a file is refused; it must name the file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        read_json(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.startswith(f"{path}: ")
    assert len(message) < len(str(path)) + 1000
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["f.json", "f.json.gz", "F.JSON.GZ"])
@pytest.mark.parametrize("feeder", [FEEDER, two_bus_feeder(), Feeder("", 50.0, (), ())])
def test_round_trip(tmp_path, name, feeder):
    write_json(feeder, tmp_path / name)
    assert repr(read_json(str(tmp_path / name))) == repr(feeder)
    assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith(".gz")


def _strategy(hint, field: str = "") -> st.SearchStrategy:
    """Any value of an annotation that the format can hold."""
    if hint == Matrix:
        return st.integers(0, 3).flatmap(
            lambda n: st.lists(
                st.lists(_strategy(float), min_size=n, max_size=n).map(tuple),
                min_size=n,
                max_size=n,
            ).map(tuple)
        )
    if hint in (str, bool, int, float):
        return {
            str: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            bool: st.booleans(),
            int: st.integers(-(2**31) + 1, 2**31 - 1),
            float: st.floats(allow_nan=False, allow_infinity=False),
        }[hint]
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{n: _strategy(h, n) for n, h in hints.items()})
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return st.lists(_strategy(args[0]), max_size=2).map(tuple)
    assert isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return st.one_of([st.none() if a is type(None) else _strategy(a) for a in args])


@pytest.mark.parametrize("table", [f.name for f in dataclasses.fields(Feeder)])
def test_any_record_round_trips_bit_for_bit(tmp_path, table):
    hint = typing.get_type_hints(Feeder)[table]

    @settings(quick, max_examples=12)
    @given(_strategy(hint))
    def round_trip(value):
        feeder = two_bus_feeder().replace(**{table: value})
        write_json(feeder, tmp_path / "f.json")
        assert repr(read_json(tmp_path / "f.json")) == repr(feeder)  # repr tells -0.0 from 0.0

    round_trip()


def test_a_negative_zero_at_a_default_of_zero_survives(tmp_path):
    feeder = two_bus_feeder()
    feeder = feeder.replace(sources=(dataclasses.replace(feeder.sources[0], angle_deg=-0.0),))
    write_json(feeder, tmp_path / "f.json")
    assert math.copysign(1.0, read_json(tmp_path / "f.json").sources[0].angle_deg) == -1.0


def test_the_file_is_readable(text):
    lines = text.splitlines()
    assert lines[:3] == ["{", '"format": "gridjax-feeder",', '"version": 1,']
    records = [json.loads(line.rstrip(",")) for line in lines if line.startswith("  {")]
    tables = [v for v in vars(FEEDER).values() if isinstance(v, tuple)]
    assert len(records) == sum(map(len, tables))
    assert '  {"name": "s1", "bus1": "d.1.2.3", "bus2": "f.1.2.3"}' in text  # no defaults
    assert [r["kind"] for r in records if "kind" in r][:5] == [
        "matrix", "sequence", "matrix", "matrix", "geometry"
    ]  # fmt: skip


def test_one_feeder_gives_the_same_bytes(tmp_path, text):
    for name in ("a.json.gz", "b.json.gz"):
        write_json(FEEDER, tmp_path / name)
    data = (tmp_path / "a.json.gz").read_bytes()
    assert data == (tmp_path / "b.json.gz").read_bytes()
    assert data[3:8] == bytes(5)  # no file name, no time
    assert gzip.decompress(data).decode() == text


def test_numpy_numbers_and_lists_are_written_as_plain_ones(tmp_path):
    load = dataclasses.replace(FEEDER.loads[0], kw=np.float32(0.1), phases=np.int64(3), kvar=2)
    code = dataclasses.replace(FEEDER.codes[3], r=np.array(FEEDER.codes[3].r), unit=np.str_("km"))
    feeder = FEEDER.replace(loads=[load], codes=(code,))
    write_json(feeder, tmp_path / "f.json")
    read = read_json(tmp_path / "f.json")
    assert read.loads == (dataclasses.replace(load, kw=float(np.float32(0.1))),)
    assert type(read.loads[0].kvar) is float and '"kvar": 2.0' in (tmp_path / "f.json").read_text()
    assert read.codes == (FEEDER.codes[3],)


@pytest.mark.parametrize(
    ("value", "words"),
    [(math.nan, "finite"), (math.inf, "finite"), ("4", "number"), (None, "null"), (True, "true")],
)
def test_what_cannot_be_read_is_not_written(tmp_path, value, words):
    path = tmp_path / "f.json"
    path.write_text("before")
    load = dataclasses.replace(FEEDER.loads[3], kw=value)
    with pytest.raises(ValueError, match=rf"loads\[0\] \('phase'\)\.kw .*{words}"):
        write_json(FEEDER.replace(loads=(load,)), path)
    assert path.read_text() == "before"


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


# A piece of the good file is replaced; the refusal holds these words.
REPLACED = [
    ('"version": 1', '"version": 2', "version the number 2, but the versions supported are: 1"),
    ('"version": 1', '"version": true', "the version true"),
    ('"version": 1', '"version": 1.0', "the version the number 1.0"),
    ('"version": 1,\n', "", "has the version null"),
    ('"gridjax-feeder"', '"other"', "expected 'gridjax-feeder'"),
    ('"format": "gridjax-feeder",\n', "", "has the format null"),
    ('"loads": [', '"lodes": [', "unknown field 'lodes'"),
    ('"kw": 300.0', '"kW": 300.0', "loads[0] ('three') has the unknown field 'kW'"),
    ('"kw": 300.0, ', "", "loads[0] ('three') lacks the field 'kw': add it"),
    ('"kw": 300.0', '"kw": "300"', "loads[0] ('three').kw must be a number, found the text '300'"),
    ('"kw": 300.0', '"kw": true', "loads[0] ('three').kw must be a number, found true"),
    ('"kw": 300.0', '"kw": null', "loads[0] ('three').kw must be a number, found null"),
    ('"kw": 300.0', '"kw": [1]', "kw must be a number, found a list"),
    ('"kw": 300.0', '"kw": {}', "kw must be a number, found an object"),
    ('"kw": 300.0', '"kw": NaN', "('three').kw must be a number, found the number 'NaN'"),
    ('"kw": 300.0', '"kw": -Infinity', "found the number '-Infinity'"),
    ('"kw": 300.0', '"kw": 1e999', "kw must be finite"),
    ('"kw": 300.0', '"kw": 1, "kw": 2', "loads[0] ('three') has the key 'kw' twice"),
    ('"kw": 300.0', '"kw": ' + "9" * 5000, "kw must be a number, found the number '999"),
    ('"kw": 300.0', '"kw": 300.0.0', "not JSON"),
    ('"name": "three"', '"name": 3', "loads[0].name must be text, found the number 3"),
    ('"name": "three"', '"name": "\\ud800"', "surrogate"),
    ('"phases": 3, "connection": "wye", "model"', '"phases": 3.0, "connection": "wye", "model"',
     "phases must be a whole number, found the number 3.0"),
    ('"phases": 3, "connection": "wye", "model"', '"phases": true, "connection": "wye", "model"',
     "phases must be a whole number, found true"),
    ('"phases": 3, "connection": "wye", "model"',
     '"phases": 3000000000, "connection": "wye", "model"', "beyond 2147483647"),
    ('"closed": false', '"closed": 0', "switches[1] ('s2').closed must be true or false"),
    ('"nodes": [1, 2]', '"nodes": 1', "('t').nodes must be a list, found the number 1"),
    ('"nodes": [1, 2]', '"nodes": [1, 2.5]', "('t').nodes[1] must be a whole number"),
    ('"windings": [{', '"windings": [{"oops": 1, ', "windings[0] has the unknown field 'oops'"),
    ('"kv": 115.0, "kva"', '"kv": "x", "kva"', "transformers[0] ('sub').windings[0].kv must be"),
    ('"kind": "matrix"', '"kind": "cable"', "codes[0] ('matrix') must be an object with a"),
    ('"kind": "matrix", ', "", "codes[0] ('matrix') must be an object with a"),
    ('"kind": "matrix"', '"kind": ["matrix"]', "codes[0] ('matrix') must be an object with a"),
    ('"kind": "matrix"', '"kind": "geometry"', "codes[0] ('matrix') has the unknown field 'r'"),
    ("[[0.22, 0.1, 0.1], ", "[[0.22, 0.1], ", "codes[0] ('matrix').r is ragged"),
    ("[[0.22, 0.1, 0.1], ", "[", "r has 2 rows of 3: a square matrix is needed"),
    ("[[0.22, 0.1, 0.1], ", '[["0.22", 0.1, 0.1], ', "codes[0] ('matrix').r[0][0] must be"),
    ("[[0.5, 0.0, ", "[[0.5, ", "admittances[0] ('y1').g is ragged"),
    ('"loads": [', '"loads": {"a": [', "not JSON"),
    ('"loads": [', '"loads": null, "nope": [', "loads must be a list, found null"),
    ('"base_mva": 5.0', '"base_mva": 5.0, "base_mva": 5.0', "has the key 'base_mva' twice"),
    ('"name": "every-element",\n', "", "lacks the field 'name'"),
    ('"loads": [\n', '"loads": [\n3,', "loads[0] must be an object, found the number 3"),
    ('"x": -1.0', '"x": ' + "[" * 100000, "nested deeper than 12"),
    ('"x": -1.0', '"x": ' + '{"a":' * 100000, "nested deeper than 12"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), REPLACED, ids=[r[2] for r in REPLACED])
def test_a_wrong_file_is_refused_with_its_place(tmp_path, text, old, new, words):
    assert old in text
    assert words in error_of(tmp_path / "f.json", text.replace(old, new, 1))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "[1, 2]"])
def test_not_an_object(tmp_path, content):
    assert "must hold a JSON object" in error_of(tmp_path / "f.json", content)


@pytest.mark.parametrize("content", ["", " ", "{", "{]", "not json", '{"a" 1}', "{'a': 1}"])
def test_not_json(tmp_path, content):
    assert "not JSON" in error_of(tmp_path / "f.json", content)


def test_not_utf8(tmp_path, text):
    data = text.encode().replace(b'"three"', b'"thr\xff"')
    assert "not UTF-8 at byte" in error_of(tmp_path / "f.json", data)


def test_a_byte_order_mark_is_accepted(tmp_path, text):
    (tmp_path / "f.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_json(tmp_path / "f.json") == FEEDER


def test_compressed_data_under_a_plain_name(tmp_path, text):
    assert "ends in .gz" in error_of(tmp_path / "f.json", gzip.compress(text.encode()))


def test_damaged_compressed_data(tmp_path, text):
    data = gzip.compress(text.encode())
    flipped = data[:200] + bytes([data[200] ^ 255]) + data[201:]
    for damaged in (text.encode(), data[:-20], data[:30], flipped, data + b"more"):
        assert "is not whole gzip data" in error_of(tmp_path / "f.json.gz", damaged)


@pytest.mark.parametrize("name", ["f.json", "f.json.gz"])
def test_size_limit(tmp_path, monkeypatch, text, name):
    monkeypatch.setattr(feeder_json, "MAX_BYTES", len(text) - 1)
    content = gzip.compress(text.encode()) if name.endswith("gz") else text
    assert "split the feeder" in error_of(tmp_path / name, content)
    with pytest.raises(ValueError, match="cannot be written: would take"):
        write_json(FEEDER, tmp_path / "other.json")
    monkeypatch.setattr(feeder_json, "MAX_BYTES", len(text))
    assert read_json(tmp_path / name) == FEEDER


def test_a_compressed_file_of_nothing_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(feeder_json, "MAX_BYTES", 1000)
    assert "more than 1000 bytes" in error_of(tmp_path / "f.json.gz", gzip.compress(b"") * 100)


def test_a_compressed_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """A gigabyte in a megabyte: reading stops at the limit, and holds no more than that."""
    piece = gzip.compress(bytes(2**24), 1)
    limit = 2**22
    monkeypatch.setattr(feeder_json, "MAX_BYTES", limit)
    asked = []
    original = gzip.GzipFile.read

    def read(self, size=-1):
        data = original(self, size)
        asked.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", read)
    assert "more than" in error_of(tmp_path / "f.json.gz", piece * 64)
    assert sum(asked) <= limit + 2**20


def test_too_many_records(tmp_path, monkeypatch, text):
    monkeypatch.setattr(feeder_json, "MAX_RECORDS", len(FEEDER.buses) - 1)
    assert "buses has 15 records, more than 14" in error_of(tmp_path / "f.json", text)


def test_long_names_and_control_characters_are_cut_and_escaped(tmp_path, text):
    name = json.dumps("\x1b[31m" + "x" * 5000)
    old = '"name": "three", "bus": "d.1.2.3.0"'
    assert old in text
    message = error_of(tmp_path / "f.json", text.replace(old, f'"name": {name}, "bus": 3', 1))
    assert "\x1b" not in message and "\\x1b[31m" in message and "xxx..." in message


@quick
@given(cut=st.integers(0, 10_000))
def test_a_file_that_is_cut_off_is_refused(tmp_path, text, cut):
    part = text[: min(cut, len(text.rstrip()) - 1)]
    assert "not JSON" in error_of(tmp_path / "f.json", part)


@settings(quick, max_examples=250)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(tmp_path, text, data):
    """Tokens swapped for other tokens, and bytes for other bytes: never anything but ValueError."""
    tokens = re.findall(r'"[^"]*"|[-\w.]+|\s+|.', text)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(tokens) - 1))
        tokens[where] = data.draw(
            st.sampled_from(['"x"', "3", "-0.0", "1e400", "NaN", "[", "]", "{}", ",", ":", "null",
                             "true", '"', "\\", '"kind"', '"loads"', "[[]]", "\x00", ""])
            | st.sampled_from(tokens)
        )  # fmt: skip
    content = bytearray("".join(tokens).encode())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "f.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), Feeder)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")


@settings(quick, max_examples=60)
@given(value=st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["name"]), inner),
))  # fmt: skip
def test_any_json_in_the_place_of_a_table_is_read_or_refused(tmp_path, text, value):
    document = json.loads(text)
    for name in ("codes", "transformers", "name"):
        (tmp_path / "f.json").write_text(json.dumps(document | {name: value}))
        try:
            assert isinstance(read_json(tmp_path / "f.json"), Feeder)
        except ValueError as error:
            assert str(error).startswith(str(tmp_path))


def test_every_class_of_codes_has_a_kind():
    """The one thing that is listed by hand; the rest follows the dataclasses."""
    union = typing.get_args(typing.get_args(typing.get_type_hints(Feeder)["codes"])[0])
    assert set(union) == set(feeder_json._KINDS.values())
    assert Geometry in union
