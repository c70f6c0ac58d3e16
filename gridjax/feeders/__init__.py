"""The shipped test feeders: their data, source and licence, one loader each.

The IEEE circuits were read from OpenDSS's copies by `benchmarks/import_feeders.py`, which also holds the table of the
33-bus feeder; each feeder says in `origin` and `licence` where its data come from. Import reads nothing; a loader reads
its own file. `synthetic` makes random feeders of any size.
"""

from __future__ import annotations

import functools
from pathlib import Path

from gridjax.feeder import Feeder
from gridjax.feeders.synthetic import synthetic as synthetic
from gridjax.io.json import read_json

_FOLDER = Path(__file__).parent


@functools.cache
def load(name: str) -> Feeder:
    """A shipped feeder by name.

    Raises:
      ValueError: there is no such feeder; the message lists those there are.
    """
    if name not in NAMES:
        raise ValueError(f"no shipped feeder {name!r}: choose one of {', '.join(NAMES)}")
    return read_json(_FOLDER / f"{name}.json.gz")


def ieee4_yy() -> Feeder:
    """IEEE 4-bus, grounded wye - grounded wye step-down, balanced load."""
    return load("ieee4_yy")


def ieee4_yd() -> Feeder:
    """IEEE 4-bus, ungrounded wye - delta step-down, balanced load."""
    return load("ieee4_yd")


def ieee4_dy() -> Feeder:
    """IEEE 4-bus, delta - grounded wye step-down, balanced load."""
    return load("ieee4_dy")


def ieee4_gryd() -> Feeder:
    """IEEE 4-bus, grounded wye - delta step-down, balanced load."""
    return load("ieee4_gryd")


def ieee4_oyod() -> Feeder:
    """IEEE 4-bus, open wye - open delta step-down, balanced load."""
    return load("ieee4_oyod")


def ieee4_oyod_unbal() -> Feeder:
    """IEEE 4-bus, open wye - open delta step-down, unbalanced load."""
    return load("ieee4_oyod_unbal")


def ieee13() -> Feeder:
    """IEEE 13-node: short, heavily loaded, with every kind of load."""
    return load("ieee13")


def ieee34() -> Feeder:
    """IEEE 34-node (OpenDSS's model 1): long, lightly loaded, two regulators."""
    return load("ieee34")


def ieee34_mod2() -> Feeder:
    """IEEE 34-node (OpenDSS's model 2), distributed loads at the middle of their sections."""
    return load("ieee34_mod2")


def ieee37() -> Feeder:
    """IEEE 37-node: a three-wire delta feeder with an open-delta regulator."""
    return load("ieee37")


def ieee123() -> Feeder:
    """IEEE 123-node: four regulators, switches, single-phase laterals."""
    return load("ieee123")


def ieee8500() -> Feeder:
    """IEEE 8500-node with balanced loads on its centre-tapped services."""
    return load("ieee8500")


def ieee8500_unbal() -> Feeder:
    """IEEE 8500-node with unbalanced loads on its centre-tapped services."""
    return load("ieee8500_unbal")


def european_lv() -> Feeder:
    """IEEE European low-voltage feeder: 906 buses, 55 single-phase customers."""
    return load("european_lv")


def baran_wu33() -> Feeder:
    """The 33-bus feeder of Baran and Wu (1989): balanced, 12.66 kV, 3715 kW, with its five tie switches open."""
    return load("baran_wu33")


NAMES = (
    "ieee4_yy",
    "ieee4_yd",
    "ieee4_dy",
    "ieee4_gryd",
    "ieee4_oyod",
    "ieee4_oyod_unbal",
    "ieee13",
    "ieee34",
    "ieee34_mod2",
    "ieee37",
    "ieee123",
    "ieee8500",
    "ieee8500_unbal",
    "european_lv",
    "baran_wu33",
)
