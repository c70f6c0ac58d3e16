"""Comparing the records of linear elements with the engine's own primitive admittances.

`gridjax.admittance` builds Y from the record; the engine has its own. Both are summed over the
nodes that the conductors are tied to, the ground left out. They agree when no entry is off by more
than `TOLERANCE` of the largest one, and none of what leaks to ground, which the former cannot see
where a line is short, by more than `LEAK_TOLERANCE` of the largest leak beside the rounding of the
entries. The leak is a line's charging matrix, and the sum of each row of other elements.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gridjax.feeder import Admittance, Feeder
from gridjax.io.opendss_tables import Element

if TYPE_CHECKING:
    import jax

TOLERANCE = 1e-8
LEAK_TOLERANCE = 1e-6
ROUNDING = 1e-12


def check_admittances(feeder: Feeder, linear: list) -> list[tuple[Element, object, str]]:
    """Finds the records that do not give the engine's admittance.

    Args:
      feeder: where the records' codes are looked up.
      linear: pairs of an engine's element and its record.

    Returns:
      Element, record and the reason for each that deviates.
    """
    from gridjax.admittance import describe

    wrong, groups = [], defaultdict(list)
    for element, record in linear:
        try:
            description = describe(feeder, record)
        except ValueError as error:
            wrong.append((element, record, str(error)))
            continue
        groups[description.static].append((element, record, description))
    for static, members in groups.items():
        matrices = _primitives(static, [description.params for *_, description in members])
        for (element, record, description), y in zip(members, matrices, strict=True):
            reason = _deviation(element, description.conductors, y)
            if reason:
                wrong.append((element, record, reason))
    return wrong


def as_admittance(element: Element) -> Admittance:
    """The element as the engine's own matrix."""
    return Admittance(
        name=f"{element.kind}_{element.name}",
        terminals=element.terminals,
        g=tuple(map(tuple, np.real(element.y).tolist())),
        b=tuple(map(tuple, np.imag(element.y).tolist())),
    )


def _primitives(static: tuple, params: list[dict]) -> np.ndarray:
    """The matrices of elements of one kind and shape, (count, m, m)."""
    import jax

    stacked = {key: np.stack([p[key] for p in params]) for key in params[0]}
    with jax.enable_x64(True):
        return np.asarray(_batched(static)(stacked))


@functools.lru_cache(maxsize=256)
def _batched(static: tuple) -> Callable[[dict], jax.Array]:
    """`primitive` over stacked params; kept, so that like circuits are compiled once."""
    import jax

    from gridjax.admittance import primitive

    return jax.jit(jax.vmap(functools.partial(primitive, static)))


def _deviation(element: Element, conductors: tuple[str, ...], y: np.ndarray) -> str:
    """Why the matrix is not the engine's; empty where it is."""
    theirs = [
        f"{bus}.{node}" for bus, *nodes in (terminal.split(".") for terminal in element.terminals) for node in nodes
    ]
    nodes = sorted({c for c in (*conductors, *theirs) if not c.endswith(".0")})
    ours, engine = _nodal(nodes, conductors, y), _nodal(nodes, tuple(theirs), element.y)
    scale = np.abs(engine).max(initial=0.0)
    off = np.abs(ours - engine).max(initial=0.0)
    if not off <= TOLERANCE * scale:
        return f"its record is off the engine's admittance by {off:.1e} of {scale:.1e} S"
    if element.kind == "line":
        ours, engine = _charging(y), _charging(element.y)
    else:
        ours, engine = ours.sum(1), engine.sum(1)
    leak, leak_off = np.abs(engine), np.abs(ours - engine)
    if not (leak_off <= LEAK_TOLERANCE * leak.max(initial=0.0) + ROUNDING * scale).all():
        return f"its record's admittance to ground is off the engine's by {leak_off.max():.1e} S"
    return ""


def _charging(y: np.ndarray) -> np.ndarray:
    """What a line draws when both its ends have the same voltages."""
    phases = len(y) // 2
    return y.reshape(2, phases, 2, phases).sum((0, 2))


def _nodal(nodes: list[str], conductors: tuple[str, ...], y: np.ndarray) -> np.ndarray:
    """The matrix summed over the nodes; the ground's rows and columns are dropped."""
    incidence = np.array([[c == n for n in nodes] for c in conductors], dtype=float)
    incidence = incidence.reshape(len(conductors), len(nodes))
    return incidence.T @ y @ incidence
