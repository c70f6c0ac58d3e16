"""Currents into elements from the nodes' voltages, a few scenarios at a time: `gridjax.powerflow.element_currents`.

And what the largest current of each terminal says to voltages and taps, backwards: with `I = s Y x + (1/s - s) g x`,
`x = s v` and a bar for derivatives of a real number (in real coordinates),

    x_bar = Y^H s I_bar + (1/s - s) g^H I_bar,   v_bar = s x_bar,
    s_bar = (Y x - (1/s^2 + 1) g x) . I_bar + x . x_bar / s.
"""

# Numba gives intrinsics their first argument, the typing context, itself.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from typing import Any, NamedTuple

from numba import njit

from gridjax.native.lanes import (
    above,
    all_true,
    at,
    at_most,
    full,
    full_zero,
    further,
    gather,
    gather_pair,
    largest,
    load,
    magnitude,
    root,
    scatter,
    scatter_pair,
    select,
    spread,
    store,
)


class Elements(NamedTuple):
    """Pointers to the tables of one kind of element, and how much there is of each.

    A row is one conductor at one terminal.
    """

    node: Any  # (elements, rows)
    y: Any  # (elements, rows, rows, 2)
    volts: Any  # (nodes,)
    regulator: Any  # (elements, terminals), one past the last where there is none
    made: Any  # (elements, terminals) the taps of y
    ground: Any  # (elements, rows, 2)
    used: Any  # (elements, rows) whether y has anything there
    mirrored: Any  # (elements,) whether the current at the second terminal is that at the first, reversed
    count: int
    terminals: int
    conductors: int
    nodes: int
    regulators: int
    series: bool


@njit
def room_size(elements):
    """How many vectors a pass needs; those of the nodes only backwards."""
    rows = elements.terminals * elements.conductors
    return 6 * rows + 2 * elements.conductors + elements.terminals + 2 * elements.nodes + elements.regulators


@njit
def _see(elements, k, first, last, v, tap, x, one, zero):
    """The volts at the rows of element k, as its matrix sees them, and behind them their ratios to the real ones."""
    rows = elements.terminals * elements.conductors
    for t in range(elements.terminals):
        i, scale = k * elements.terminals + t, one
        if at(elements.regulator, i) < elements.regulators:
            now = gather(tap, first, last, elements.regulators, at(elements.regulator, i))
            scale = spread(at(elements.made, i)) / now
        store(x, 2 * rows + t, scale)
        for i in range(t * elements.conductors, (t + 1) * elements.conductors):
            node, re, im = at(elements.node, k * rows + i), zero, zero
            if node < elements.nodes:
                re, im = gather_pair(v, first, last, 2 * elements.nodes, 2 * node)
                volts = scale * at(elements.volts, node)
                re, im = re * volts, im * volts
            store(x, 2 * i, re)
            store(x, 2 * i + 1, im)


@njit
def _times(y, o, x, i, re, im):
    """Adds entry o of the matrix times the complex vector number i."""
    g, b, xr, xi = at(y, 2 * o), at(y, 2 * o + 1), load(x, 2 * i), load(x, 2 * i + 1)
    return re + xr * g - xi * b, im + xr * b + xi * g


@njit
def _row(elements, k, i, x, zero):
    """The current at row i of element k."""
    rows, node = elements.terminals * elements.conductors, elements.node
    o, re, im = (k * rows + i) * rows, zero, zero
    for j in range(rows):
        if at(node, k * rows + j) < elements.nodes:
            re, im = _times(elements.y, o + j, x, j, re, im)
    t = i // elements.conductors
    if at(elements.regulator, k * elements.terminals + t) < elements.regulators:
        scale = load(x, 2 * rows + t)
        re, im = re * scale, im * scale
        rest = full(zero, 1.0) / scale - scale  # ties to ground see the whole voltage
        gr, gi = _times(elements.ground, k * rows + i, x, i, zero, zero)
        re, im = re + gr * rest, im + gi * rest
    return re, im


@njit
def _series_rows(elements, k, i, x, difference, zero):
    """The currents at conductor i of both terminals, by the difference of their voltages."""
    n, node = elements.conductors, elements.node
    y, o = elements.y, 4 * k * n * n
    here, there = o + 2 * i * n, o + 2 * (n + i) * n
    re, im = zero, zero
    for j in range(n):
        if at(node, 2 * k * n + j) < elements.nodes or at(node, 2 * k * n + n + j) < elements.nodes:
            re, im = _times(y, here + n + j, difference, j, re, im)
    ar, ai, br, bi = zero - re, zero - im, re, im
    if at(elements.mirrored, k) == 0:
        br, bi = zero, zero
        for j in range(n):
            br, bi = _times(y, there + j, difference, j, br, bi)
            ar, ai = _times(y, here + j, x, j, ar, ai)
            ar, ai = _times(y, here + n + j, x, j, ar, ai)
            br, bi = _times(y, there + j, x, n + j, br, bi)
            br, bi = _times(y, there + n + j, x, n + j, br, bi)
    return ar, ai, br, bi


@njit
def currents_pass(elements, x, first, last, v, tap, amps, peaks, whole):
    """Currents of some scenarios: all of them (`whole`), or the largest at each terminal."""
    zero = full_zero(x)
    one = full(zero, 1.0)
    n, terminals = elements.conductors, elements.terminals
    rows = terminals * n
    numbers = elements.count * rows
    difference = further(x, 2 * rows + terminals)
    for k in range(elements.count):
        _see(elements, k, first, last, v, tap, x, one, zero)
        if elements.series:
            for j in range(2 * n):
                store(difference, j, load(x, j) - load(x, 2 * n + j))
            a, b = zero, zero
            for i in range(n):
                ar, ai, br, bi = zero, zero, zero, zero
                if at(elements.used, k * rows + i) or at(elements.used, k * rows + n + i):
                    ar, ai, br, bi = _series_rows(elements, k, i, x, difference, zero)
                if whole:
                    scatter_pair(amps, first, last, 2 * numbers, 2 * (k * rows + i), ar, ai)
                    scatter_pair(amps, first, last, 2 * numbers, 2 * (k * rows + n + i), br, bi)
                else:
                    a, b = largest(a, ar * ar + ai * ai), largest(b, br * br + bi * bi)
            if not whole:
                scatter(peaks, first, last, 2 * elements.count, 2 * k, root(a))
                scatter(peaks, first, last, 2 * elements.count, 2 * k + 1, root(b))
        else:
            for t in range(terminals):
                a = zero
                for i in range(t * n, t * n + n):
                    re, im = zero, zero
                    if at(elements.used, k * rows + i):
                        re, im = _row(elements, k, i, x, zero)
                    if whole:
                        scatter_pair(amps, first, last, 2 * numbers, 2 * (k * rows + i), re, im)
                    else:
                        a = largest(a, re * re + im * im)
                if not whole:
                    scatter(peaks, first, last, terminals * elements.count, k * terminals + t, root(a))


@njit
def _largest_only(elements, t, amps, bar, bars, zero):
    """Derivatives by the currents `amps` of terminal t from that by the largest; of equal ones the first has it."""
    n = elements.conductors
    most = zero
    for i in range(t * n, t * n + n):
        re, im = load(amps, 2 * i), load(amps, 2 * i + 1)
        own = re * re + im * im
        most = largest(most, own)
        store(bars, 2 * i, own)  # computed again it could be rounded otherwise, and none would be the largest
    left = select(above(most, zero), bar / root(most), zero)
    for i in range(t * n, t * n + n):
        lower = above(most, load(bars, 2 * i))
        part = select(lower, zero, left)
        left = select(lower, left, zero)
        store(bars, 2 * i, part * load(amps, 2 * i))
        store(bars, 2 * i + 1, part * load(amps, 2 * i + 1))


@njit
def _by_ratio(elements, k, t, x, amps, bars, one, zero):
    """The part of s_bar at terminal t with x held, and the bars as Y's own current has them."""
    n, rows = elements.conductors, elements.terminals * elements.conductors
    scale = load(x, 2 * rows + t)
    rest, total = one / scale - scale, zero
    for i in range(t * n, t * n + n):
        br, bi = load(bars, 2 * i), load(bars, 2 * i + 1)
        gr, gi = _times(elements.ground, k * rows + i, x, i, zero, zero)
        re, im = (load(amps, 2 * i) - rest * gr) / scale, (load(amps, 2 * i + 1) - rest * gi) / scale
        both = one / (scale * scale) + one
        total = total + (re - both * gr) * br + (im - both * gi) * bi
    return total


@njit
def _back(elements, k, j, x, bars, one, zero):
    """x_bar at row j of element k."""
    n, rows = elements.conductors, elements.terminals * elements.conductors
    re, im = zero, zero
    for i in range(rows):
        if at(elements.used, k * rows + i):
            br, bi = load(bars, 2 * i), load(bars, 2 * i + 1)
            scale = load(x, 2 * rows + i // n)
            g, b = at(elements.y, 2 * ((k * rows + i) * rows + j)), at(elements.y, 2 * ((k * rows + i) * rows + j) + 1)
            re, im = re + scale * (br * g + bi * b), im + scale * (bi * g - br * b)
    if at(elements.regulator, k * elements.terminals + j // n) < elements.regulators:
        scale, br, bi = load(x, 2 * rows + j // n), load(bars, 2 * j), load(bars, 2 * j + 1)
        rest = one / scale - scale
        g, b = at(elements.ground, 2 * (k * rows + j)), at(elements.ground, 2 * (k * rows + j) + 1)
        re, im = re + rest * (br * g + bi * b), im + rest * (bi * g - br * b)
    return re, im


@njit
def largest_cotangent_pass(elements, x, first, last, v, tap, bar, v_bar, tap_bar):
    """Derivatives by voltages and taps of some scenarios from those by the largest current of each terminal.

    An element none of whose currents matters, as one that is not overloaded, is left out.
    """
    zero = full_zero(x)
    one = full(zero, 1.0)
    n, terminals = elements.conductors, elements.terminals
    rows = terminals * n
    difference = further(x, 2 * rows + terminals)
    amps = further(difference, 2 * n)
    bars = further(amps, 2 * rows)
    nodes = further(bars, 2 * rows)
    taps = further(nodes, 2 * elements.nodes)
    for i in range(2 * elements.nodes + elements.regulators):
        store(nodes, i, zero)
    for k in range(elements.count):
        most = zero
        for t in range(terminals):
            most = most + magnitude(gather(bar, first, last, elements.count * terminals, k * terminals + t))
        if all_true(at_most(most, zero)):
            continue
        _see(elements, k, first, last, v, tap, x, one, zero)
        for j in range(2 * n):
            store(difference, j, load(x, j) - load(x, 2 * n + j))
        for i in range(rows):
            re, im = zero, zero
            if at(elements.used, k * rows + i):
                if elements.series:
                    ar, ai, br, bi = _series_rows(elements, k, i % n, x, difference, zero)
                    re, im = (ar, ai) if i < n else (br, bi)
                else:
                    re, im = _row(elements, k, i, x, zero)
            store(amps, 2 * i, re)
            store(amps, 2 * i + 1, im)
        for t in range(terminals):
            own = gather(bar, first, last, elements.count * terminals, k * terminals + t)
            _largest_only(elements, t, amps, own, bars, zero)
        for t in range(terminals):
            regulator, scale, total = at(elements.regulator, k * terminals + t), load(x, 2 * rows + t), zero
            if regulator < elements.regulators:
                total = _by_ratio(elements, k, t, x, amps, bars, one, zero)
            for j in range(t * n, t * n + n):
                node = at(elements.node, k * rows + j)
                if node < elements.nodes:
                    re, im = _back(elements, k, j, x, bars, one, zero)
                    total = total + (re * load(x, 2 * j) + im * load(x, 2 * j + 1)) / scale
                    volts = scale * at(elements.volts, node)
                    store(nodes, 2 * node, load(nodes, 2 * node) + re * volts)
                    store(nodes, 2 * node + 1, load(nodes, 2 * node + 1) + im * volts)
            if regulator < elements.regulators:
                made = spread(at(elements.made, k * terminals + t))
                store(taps, regulator, load(taps, regulator) - total * scale * scale / made)
    for i in range(elements.nodes):
        re, im = load(nodes, 2 * i), load(nodes, 2 * i + 1)
        scatter_pair(v_bar, first, last, 2 * elements.nodes, 2 * i, re, im)
    for r in range(elements.regulators):
        scatter(tap_bar, first, last, elements.regulators, r, load(taps, r))
