"""The table of metrics and TensorBoard's event files: the numbers are there, once."""

import struct
import sys

import numpy as np
import pytest

from algorithms import metrics


def values(k):
    return {"loss": np.array([0.1 * k, 1e-9 / 3 * k], np.float32), "a": np.array([k, -k], np.float32)}


def test_the_table_has_all_digits_of_each_seed(tmp_path):
    path = tmp_path / "metrics.csv"
    for k in (1, 2):
        metrics.append(path, 10 * k, values(k))
    lines = path.read_text().splitlines()
    assert lines[0] == "updates,seed,a,loss" and len(lines) == 5 and lines[1].startswith("10,0,1.0,0.1")
    table = metrics.read(path)
    np.testing.assert_array_equal(table["updates"], [10, 10, 20, 20])
    np.testing.assert_array_equal(table["seed"], [0, 1, 0, 1])
    wanted = np.concatenate([values(1)["loss"], values(2)["loss"]])
    np.testing.assert_array_equal(table["loss"].astype(np.float32), wanted)
    with pytest.raises(ValueError, match=r"has columns updates, seed, a, loss, not updates, seed, b"):
        metrics.append(path, 30, {"b": np.zeros(2)})


@pytest.mark.parametrize("torn", ["", "30,0,1.", "up"])
def test_a_run_that_goes_on_has_no_row_twice(tmp_path, torn):
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    for k in (1, 2, 3):
        metrics.append(whole, 10 * k, values(k))
    metrics.trim(resumed, 0)
    assert not resumed.exists()
    if torn != "up":
        for k in (1, 2):  # two chunks, a checkpoint of the first, and perhaps half a row
            metrics.append(resumed, 10 * k, values(k))
    with resumed.open("a") as file:
        file.write(torn)
    metrics.trim(resumed, 0 if torn == "up" else 10)
    for k in (1, 2, 3) if torn == "up" else (2, 3):
        metrics.append(resumed, 10 * k, values(k))
    assert resumed.read_bytes() == whole.read_bytes()


def events(folder):
    """Steps and values of an event file by name, and where its session starts, read record by record."""
    from tensorboardX.proto.event_pb2 import Event

    found, starts = {}, []
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)  # length, its sum, the record, its sum
            event = Event.FromString(content[place + 12 : place + 12 + size])
            place += 12 + size + 4
            if event.HasField("session_log"):
                starts.append(event.step)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found, starts


def test_event_files_have_the_numbers_of_the_table(tmp_path):
    pytest.importorskip("tensorboardX")
    with metrics.tensorboard(tmp_path, 2) as write:
        write(10, values(1))
        write(20, values(2))
    with metrics.tensorboard(tmp_path, 2, done=10) as write:  # at once, in the same second
        write(20, values(2))
    for s in range(2):
        found, starts = events(tmp_path / f"seed-{s}")
        rows = [(10, 1), (20, 2), (20, 2)]
        assert sorted(found) == ["train/a", "train/loss"] and starts == [1, 11]  # the second hides the first's 20
        assert found["train/loss"] == [(n, float(values(k)["loss"][s])) for n, k in rows]
        assert found["train/a"] == [(n, float(values(k)["a"][s])) for n, k in rows]


def test_without_its_package_event_files_are_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"gridjax\[tensorboard\]"), metrics.tensorboard(tmp_path, 1):
        pass
    assert not list(tmp_path.iterdir())
