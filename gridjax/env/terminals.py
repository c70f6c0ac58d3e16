"""Where devices stand, for what each of them observes: its terminal's nodes and the nearest others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gridjax.days import distances_km
from gridjax.feeder import Feeder, split_terminal

NEIGHBOURS = 4


def places(feeder: Feeder, terminals: Sequence[str]) -> np.ndarray:
    """The nodes of each terminal ("671.1.2.3.0"), (terminals, 3), repeated where there are fewer."""
    number = {name: i for i, name in enumerate(feeder.node_names)}
    out = []
    for terminal in terminals:
        bus, nodes = split_terminal(terminal)
        here = [number[f"{bus}.{n}"] for n in nodes if n]
        out.append((here * 3)[:3])
    return np.array(out)


def neighbours(feeder: Feeder, terminals: Sequence[str]) -> np.ndarray:
    """The terminals nearest to each along the lines, (terminals, up to 4), itself where there are no others."""
    far = distances_km(feeder, [split_terminal(t)[0] for t in terminals])
    np.fill_diagonal(far, np.inf)
    count = min(NEIGHBOURS, len(terminals) - 1)
    if not count:
        return np.zeros((1, 1), int)
    return np.argsort(far, axis=1, kind="stable")[:, :count]
