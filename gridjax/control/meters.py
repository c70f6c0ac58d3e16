r"""What controls measure: voltages at nodes, currents into single conductors, powers into terminals.

With the primitive admittance of its element, the current into conductor c is

    I_c = sum_p y_p (V_plus(p) - V_minus(p)) / (t_a(p) t_b(p)),

one term p for each pair of nodes that drives it. In a line or a switch the pairs are the conductors' ends and, for
what flows to ground, each end and the ground: a switch of 1e-7 ohm is not a difference of products. In a
transformer of winding admittance Y1 and incidence B (see `gridjax.admittance`) they are the windings' voltages,
`I_c = sum_k sum_j B_kwc (Y1)_wj (B_kj V) / (t_w t_j) + y_c V_c`, so that only the rows of the controlled windings are
computed, at any taps. The power into a terminal is `S = sum_c V_c conj(I_c)`.
"""

from __future__ import annotations

from collections.abc import Iterable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.admittance import ground_admittance, incidence, primitive, winding_admittance
from gridjax.description import describe
from gridjax.feeder import Feeder, Transformer, split_terminal
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.solve import PowerFlow

# One term of a conductor's current: admittance in siemens, its two nodes, its two regulators.
Term = tuple[complex, int, int, int, int]
TABLES = {"line": ("lines", "switches"), "transformer": ("transformers",), "reactor": ("reactors",)}


@flax.struct.dataclass
class Meters:
    """Current meters in single conductors, (meters, terms); the ground and the absent tap are one past the last.

    Attributes:
      y_re, y_im: siemens, at unity taps of the regulated windings.
      plus, minus: the nodes whose voltage drives the term.
      tap_a, tap_b: the regulators by whose ratios the term is divided.
      node: (meters,) the conductor's node.
      owner: (meters,) which terminal's power the meter belongs to, one past the last if none.
      terminals: how many terminals' powers are measured.
    """

    y_re: jax.Array
    y_im: jax.Array
    plus: jax.Array
    minus: jax.Array
    tap_a: jax.Array
    tap_b: jax.Array
    node: jax.Array
    owner: jax.Array
    terminals: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Reading:
    """Volts to ground (nodes + 1,), amperes into the metered conductors (meters + 1,), watts and vars (terminals + 1,).

    All complex; the last of each is zero.
    """

    volts: jax.Array
    amps: jax.Array
    powers: jax.Array


def read(meters: Meters, grid: Grid, point: OperatingPoint, flow: PowerFlow) -> Reading:
    """What the meters show in one power flow."""
    zero = jnp.zeros(1, flow.v.dtype)
    volts = jnp.append(flow.v * grid.node_volts[:-1], zero)
    if not meters.node.shape[0]:
        return Reading(volts=volts, amps=zero, powers=jnp.zeros(meters.terminals + 1, zero.dtype))
    tap = jnp.append(point.tap, jnp.ones(1, point.tap.dtype))
    y = jax.lax.complex(meters.y_re, meters.y_im) / (tap[meters.tap_a] * tap[meters.tap_b])
    amps = jnp.sum(y * (volts[meters.plus] - volts[meters.minus]), axis=1)
    into = volts[meters.node] * jnp.conj(amps)
    powers = jnp.zeros(meters.terminals + 1, into.dtype).at[meters.owner].add(into)
    return Reading(volts=volts, amps=jnp.append(amps, zero), powers=powers.at[-1].set(0.0))


class Workshop:
    """Makes the meters of a feeder on the host, one conductor or terminal after the other."""

    def __init__(self, feeder: Feeder):
        self.feeder = feeder
        self.numbers = {name: i for i, name in enumerate(feeder.node_names)}
        self.ground = len(self.numbers)
        self.tap = {(r.transformer, r.winding): i for i, r in enumerate(feeder.regulators)}
        self.rows: list[tuple[list[Term], int]] = []
        self.owners: list[int] = []
        self.terminals = 0

    def nodes(self, terminal: str) -> list[int]:
        """Node numbers of a terminal's conductors."""
        bus, nodes = split_terminal(terminal)
        return [self.numbers[f"{bus}.{n}"] if n else self.ground for n in nodes]

    def find(self, element: str):
        """The record named by `"line.l1"`, `"transformer.t"`, `"reactor.r"`, with or without the class; or None."""
        kind, _, name = element.rpartition(".")
        tables = TABLES.get(kind, ()) if kind else [t for group in TABLES.values() for t in group]
        records = (record for table in tables for record in getattr(self.feeder, table))
        return next((record for record in records if record.name == name), None)

    def terminal_strings(self, record) -> tuple[str, ...]:
        """The terminals of a record of `TABLES`, or of a capacitor."""
        if isinstance(record, Transformer):
            return tuple(w.bus for w in record.windings)
        return (record.bus1, record.bus2) if record.bus2 else (record.bus1,)

    def conductors(self, record) -> list[tuple[list[Term], int]]:
        """Terms and node of every conductor of an element, terminal after terminal."""
        nodes = [n for t in self.terminal_strings(record) for n in self.nodes(t)]
        description = describe(self.feeder, record)
        if isinstance(record, Transformer):
            return [(terms, n) for terms, n in zip(self._windings(record, description, nodes), nodes, strict=True)]
        y = np.asarray(primitive(description.static, description.params))
        m, none = len(nodes), len(self.feeder.regulators)
        out = []
        for c in range(m):
            terms: list[Term] = []
            for i in range(m):
                other = (i + m // 2) % m
                same_end = (i < m // 2) == (c < m // 2)
                if description.static[0] == "reactor" and description.static[2] != "wye":
                    terms.append((y[c, i], nodes[i], self.ground, none, none))
                elif same_end:
                    terms.append((y[c, i] + y[c, other], nodes[i], self.ground, none, none))
                    terms.append((-y[c, other], nodes[i], nodes[other], none, none))
            out.append((terms, nodes[c]))
        return out

    def _windings(self, record: Transformer, description, nodes: list[int]) -> Iterable[list[Term]]:
        static, params = description.static, description.params
        none = len(self.feeder.regulators)
        tap = [self.tap.get((record.name, w + 1), none) for w in range(len(record.windings))]
        fixed = np.array([w.tap if t == none else 1.0 for w, t in zip(record.windings, tap, strict=True)])
        y1 = np.asarray(winding_admittance(static, params)) / (fixed[:, None] * fixed[None])
        b, ground = incidence(static), np.asarray(ground_admittance(static, params))
        for c in range(len(nodes)):
            terms: list[Term] = [(ground[c], nodes[c], self.ground, none, none)]
            for k, w in zip(*np.nonzero(b[:, :, c]), strict=True):
                for j in range(len(record.windings)):
                    plus, minus = (nodes[int(np.nonzero(b[k, j] == sign)[0][0])] for sign in (1, -1))
                    terms.append((b[k, w, c] * y1[w, j], plus, minus, tap[w], tap[j]))
            yield terms

    def meter(self, conductor: tuple[list[Term], int], owner: int | None = None) -> int:
        """Puts a meter into a conductor; returns its number."""
        self.rows.append(conductor)
        self.owners.append(-1 if owner is None else owner)
        return len(self.rows) - 1

    def power_meter(self, record, terminal: int) -> int:
        """Meters the power into a terminal, counted from 0; returns its number."""
        sizes = [len(self.nodes(t)) for t in self.terminal_strings(record)]
        start = sum(sizes[:terminal])
        for conductor in self.conductors(record)[start : start + sizes[terminal]]:
            self.meter(conductor, self.terminals)
        self.terminals += 1
        return self.terminals - 1

    def finish(self, dtype) -> Meters:
        """All the meters as arrays."""
        width = max((len(terms) for terms, _ in self.rows), default=0)
        none = len(self.feeder.regulators)
        empty: Term = (0.0, self.ground, self.ground, none, none)
        table = [[*terms, *[empty] * (width - len(terms))] for terms, _ in self.rows]

        def column(i: int, kind) -> jax.Array:
            values = [[term[i] for term in row] for row in table]
            return jnp.asarray(np.array(values, kind).reshape(len(table), width))

        y = np.array([term[0] for row in table for term in row], np.complex128).reshape(len(table), width)
        owners = [self.terminals if o < 0 else o for o in self.owners]
        return Meters(
            y_re=jnp.asarray(np.real(y), dtype),
            y_im=jnp.asarray(np.imag(y), dtype),
            plus=column(1, np.int32),
            minus=column(2, np.int32),
            tap_a=column(3, np.int32),
            tap_b=column(4, np.int32),
            node=jnp.asarray(np.array([node for _, node in self.rows], np.int32)),
            owner=jnp.asarray(np.array(owners, np.int32)),
            terminals=self.terminals,
        )
