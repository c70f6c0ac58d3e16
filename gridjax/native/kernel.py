"""The kernel: sweeps of a few scenarios at a time over a tree of small zones, in the vectors of `gridjax.native.lanes`.

The mathematics is that of `gridjax.powerflow` (the sweep, the chord method with acceleration, Newton's method, the
linearised circuit and its transpose) on the operators of `gridjax.tree`. Every scenario stops when it has converged,
whatever its neighbours do.
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
    below,
    blend,
    blend_33,
    both,
    either,
    exponential,
    full,
    full_zero,
    further,
    gather,
    largest,
    load,
    logarithm,
    magnitude,
    product,
    root,
    scatter,
    scatter_pair,
    select,
    smallest,
    some,
    spread,
    store,
)

# Columns of the units' table: the fields of `Laws` in their order, then these.
LAW_COLUMNS = 22
(POWER_P, CURRENT_P, IMPEDANCE_P, POWER_Q, CURRENT_Q, IMPEDANCE_Q, EXTRA_P, EXTRA_Q, EXPONENT_P, EXPONENT_Q,
 VMIN, VMAX, VLOW, OFFSET_P, OFFSET_Q, SLOPE_P, SLOPE_Q, LOW_P, LOW_Q,
 HIGH_P, HIGH_Q, CUTOFF) = range(LAW_COLUMNS)  # fmt: skip
SHARE, NO_LOAD, START, SLOPE, EMF, SOURCE, TAP, COLUMNS = 22, 23, 25, 27, 31, 33, 34, 35

SWEEP, NEWTON = 0, 1
MIN_STEP = 1 / 8
NEAR = 0.1  # the last change, in per unit, of voltages worth starting from
INNER_GAIN = 1e-3  # how far below the outer change
DIRECTIONS = 16  # of a linear solution, before it starts anew

# What is called for every unit: a call would put all of `Circuit` and `Room` on the stack.
inlined = njit(forceinline=True)

up_33, down_33 = product(6, 6, onto=True), product(6, 6, 6, onto=False)
up_93, down_93 = product(6, 18, onto=True), product(18, 18, 6, onto=False)
up_11, down_11 = product(2, 2, onto=True), product(2, 2, 2, onto=False)
up_21, down_21 = product(2, 4, onto=True), product(4, 4, 2, onto=False)
up_22, down_22 = product(4, 4, onto=True), product(4, 4, 4, onto=False)


class Circuit(NamedTuple):
    """Pointers to the tree (see `gridjax.tree.Tree`) and the units' table, and how much there is of each."""

    zones: Any
    unit: Any
    device: Any
    term_start: Any
    term: Any
    weight: Any
    direct: Any
    passive: Any
    passive_node: Any
    recovery: Any
    slot: Any
    zone_count: int
    units: int
    direct_count: int
    passive_count: int
    operators: int
    size: int
    nodes: int
    devices: int
    sources: int
    heads: int  # numbers of the root's coordinates
    consumers: int  # the first devices: loads and generators


class Room(NamedTuple):
    """Pointers to what the scenarios of one pass need, in vectors."""

    c: Any  # coordinates
    j: Any  # their currents
    more: Any  # currents that do not depend on the voltages
    kept: Any  # coordinates or voltages of scenarios that have finished
    u: Any  # voltages of the units
    y: Any  # the last sweep's
    d: Any  # its change
    e: Any  # the change before
    r: Any  # currents at voltage zero
    k: Any  # slopes
    f: Any  # factors of the powers, the units' shares included
    w: Any  # the voltages at which they are so
    p: Any  # powers of the devices
    q: Any
    s: Any  # sources
    dp: Any  # changes of these, or cotangents
    dq: Any
    ds: Any
    head: Any  # the current through the root
    heads: Any  # that of the directions
    base: Any  # directions of a linear solution and their images
    part: Any  # how far the solution goes along each direction
    inverse: Any  # of their images' squares
    lean: Any  # how far each image leant on those before


@njit
def room_size(circuit):
    """How many vectors a pass needs."""
    return (
        8 * circuit.size + 20 * circuit.units + 4 * circuit.devices + 2 * circuit.sources + circuit.heads
        + (4 * circuit.units + circuit.heads + 2 + DIRECTIONS) * DIRECTIONS
    )  # fmt: skip


@njit
def make_room(circuit, memory):
    """Places everything in memory."""
    n, u, d = 2 * circuit.size, 2 * circuit.units, circuit.devices
    start = 4 * n + u  # `kept` holds coordinates or voltages
    powers = start + 9 * u
    sources = powers + 4 * d
    head = sources + 2 * circuit.sources
    heads = head + circuit.heads
    base = heads + circuit.heads * DIRECTIONS
    parts = base + 2 * u * DIRECTIONS
    return Room(
        further(memory, 0), further(memory, n), further(memory, 2 * n), further(memory, 3 * n),
        further(memory, start), further(memory, start + u), further(memory, start + 2 * u),
        further(memory, start + 3 * u), further(memory, start + 4 * u), further(memory, start + 5 * u),
        further(memory, start + 7 * u), further(memory, start + 8 * u),
        further(memory, powers), further(memory, powers + d), further(memory, sources),
        further(memory, powers + 2 * d), further(memory, powers + 3 * d), further(memory, sources + circuit.sources),
        further(memory, head), further(memory, heads), further(memory, base),
        further(memory, parts), further(memory, parts + DIRECTIONS), further(memory, parts + 2 * DIRECTIONS),
    )  # fmt: skip


@njit
def sweep(circuit, operators, c, j, zero):
    """The coordinates from their currents (which are changed) and the root's coordinates."""
    zones, o = circuit.zones, circuit.operators
    for z in range(4 * circuit.zone_count - 4, -4, -4):
        s, a, h, n = 2 * at(zones, z), 2 * at(zones, z + 1), 2 * at(zones, z + 2), 2 * at(zones, z + 3)
        o -= a * (a + 2 * n)
        t = o + a * (a + n)
        if a == 6 and n == 6:
            up_33(j, h, operators, t, j, s)
        elif a == 2 and n == 2:
            up_11(j, h, operators, t, j, s)
        elif a == 4 and n == 2:
            up_21(j, h, operators, t, j, s)
        elif a == 4 and n == 4:
            up_22(j, h, operators, t, j, s)
        elif a == 18 and n == 6:  # three regulators
            up_93(j, h, operators, t, j, s)
        else:
            for i in range(n):
                total = load(j, h + i)
                for k in range(a):
                    total = total + load(j, s + k) * at(operators, t + i * a + k)
                store(j, h + i, total)
    o = 0
    for z in range(0, 4 * circuit.zone_count, 4):
        s, a, h, n = 2 * at(zones, z), 2 * at(zones, z + 1), 2 * at(zones, z + 2), 2 * at(zones, z + 3)
        if a == 6 and n == 6:
            down_33(c, s, operators, o, j, s, c, h)
        elif a == 2 and n == 2:
            down_11(c, s, operators, o, j, s, c, h)
        elif a == 4 and n == 2:
            down_21(c, s, operators, o, j, s, c, h)
        elif a == 4 and n == 4:
            down_22(c, s, operators, o, j, s, c, h)
        elif a == 18 and n == 6:
            down_93(c, s, operators, o, j, s, c, h)
        else:
            w = o + a * a
            for i in range(a):
                total = zero
                for k in range(a):
                    total = total + load(j, s + k) * at(operators, o + i * a + k)
                for k in range(n):
                    total = total + load(c, h + k) * at(operators, w + i * n + k)
                store(c, s + i, total)
        o += a * (a + 2 * n)


@njit
def _branch(unit, o, q, v, inverse, high, inside, low, zero):
    """One of the two factors of a law (q: 0 real, 1 imaginary) and its derivative by the squared voltage."""
    power, current = at(unit, o + POWER_P + 3 * q), at(unit, o + CURRENT_P + 3 * q)
    extra, offset = at(unit, o + EXTRA_P + q), at(unit, o + OFFSET_P + q)
    half = inverse * inverse * full(zero, 0.5)
    band = (inverse * power + spread(current)) * inverse + spread(at(unit, o + IMPEDANCE_P + 3 * q))
    slope = zero - half * (inverse * (power + power) + spread(current)) * inverse
    if extra != 0:
        exponent = at(unit, o + EXPONENT_P + q)
        if exponent == 1:  # OpenDSS's own for active power, and 2 for reactive
            term = inverse * extra
        elif exponent == 2:
            term = spread(extra)
        else:
            term = exponential(logarithm(v) * (spread(exponent) - full(zero, 2.0))) * extra
        band = band + term
        slope = slope + term * half * (spread(exponent) - full(zero, 2.0))
    line = inverse * offset + spread(at(unit, o + SLOPE_P + q))
    outside = select(low, spread(at(unit, o + LOW_P + q)), line)
    factor = select(high, spread(at(unit, o + HIGH_P + q)), select(inside, band, outside))
    falling = select(low, zero, zero - half * inverse * offset)
    return factor, select(high, zero, select(inside, slope, falling))


@njit
def law(unit, o, re, im, zero):
    """The factors of the power drawn at a voltage (`gridjax.powerflow.injections.factors`), and their derivatives."""
    one = full(zero, 1.0)
    v2 = largest(re * re + im * im, full(zero, 1e-6))
    v = root(v2)
    inverse = one / v
    high = above(v, spread(at(unit, o + VMAX)))
    inside = above(v, spread(at(unit, o + VMIN)))
    low = at_most(v, spread(at(unit, o + VLOW)))
    fp, dp = _branch(unit, o, 0, v, inverse, high, inside, low, zero)
    fq, dq = _branch(unit, o, 1, v, inverse, high, inside, low, zero)
    cutoff = at(unit, o + CUTOFF)
    if cutoff > 0:
        steep = full(zero, 1000.0)
        beyond = (v - spread(cutoff)) * steep
        power = exponential(largest(smallest(beyond, full(zero, 80.0)), full(zero, -80.0)))
        drop = select(low, one, power / (power + one))
        rise = select(low, zero, drop * (one - drop) * inverse * (full(zero, 0.5) * steep))
        dp, dq = dp * drop + fp * rise, dq * drop + fq * rise
        fp, fq = fp * drop, fq * drop
    return fp, fq, dp, dq


@inlined
def is_plain(unit, o):
    """Whether a law has only power, current and impedance between its limits."""
    return at(unit, o + EXTRA_P) == 0 and at(unit, o + EXTRA_Q) == 0 and at(unit, o + CUTOFF) <= 0


@inlined
def is_impedance(unit, o):
    """Whether a plain law is an impedance at any voltage, as those of taps and capacitors are."""
    return (
        at(unit, o + POWER_P) == 0 and at(unit, o + POWER_Q) == 0 and at(unit, o + CURRENT_P) == 0
        and at(unit, o + CURRENT_Q) == 0 and at(unit, o + VMIN) <= 0 and at(unit, o + VMAX) >= 1e9
    )  # fmt: skip


@inlined
def drawn(unit, o, re, im, zero):
    """What `law` gives, of plain laws at less cost; where derivatives are not used they cost nothing.

    What it gives for a scenario does not depend on whether its neighbours leave the limits.
    """
    if not is_plain(unit, o):
        return law(unit, o, re, im, zero)
    fp, fq = spread(at(unit, o + IMPEDANCE_P)), spread(at(unit, o + IMPEDANCE_Q))
    if is_impedance(unit, o):
        return fp, fq, zero, zero
    v2 = re * re + im * im
    if at(unit, o + CURRENT_P) == 0 and at(unit, o + CURRENT_Q) == 0:
        inverse = full(zero, 1.0) / v2
        p, q = inverse * at(unit, o + POWER_P), inverse * at(unit, o + POWER_Q)
        dp, dq = zero - p * inverse, zero - q * inverse
    else:
        by_v = full(zero, 1.0) / root(v2)
        p, q = by_v * at(unit, o + POWER_P), by_v * at(unit, o + POWER_Q)
        ip, iq = spread(at(unit, o + CURRENT_P)), spread(at(unit, o + CURRENT_Q))
        fall = by_v * by_v * by_v * full(zero, -0.5)
        dp, dq = (p + p + ip) * fall, (q + q + iq) * fall
        p, q = (p + ip) * by_v, (q + iq) * by_v
    fp, fq = p + fp, q + fq
    lo, hi = at(unit, o + VMIN), at(unit, o + VMAX)
    high, inside = above(v2, spread(hi * hi)), above(v2, spread(lo * lo))
    fp, fq = select(high, spread(at(unit, o + HIGH_P)), fp), select(high, spread(at(unit, o + HIGH_Q)), fq)
    dp, dq = select(high, zero, dp), select(high, zero, dq)
    if not all_true(inside):
        gp, gq, hp, hq = law(unit, o, re, im, zero)
        fp, fq = select(inside, fp, gp), select(inside, fq, gq)
        dp, dq = select(inside, dp, hp), select(inside, dq, hq)
    return fp, fq, dp, dq


@inlined
def inject(circuit, k, xr, xi, j):
    """Adds the current of unit k at its terms."""
    for t in range(at(circuit.term_start, k), at(circuit.term_start, k + 1)):
        c, w = 2 * at(circuit.term, t), at(circuit.weight, t)
        store(j, c, load(j, c) + xr * w)
        store(j, c + 1, load(j, c + 1) + xi * w)


@inlined
def see(circuit, k, c, zero):
    """The voltage of unit k."""
    yr, yi = zero, zero
    for t in range(at(circuit.term_start, k), at(circuit.term_start, k + 1)):
        i, w = 2 * at(circuit.term, t), at(circuit.weight, t)
        yr = yr + load(c, i) * w
        yi = yi + load(c, i + 1) * w
    return yr, yi


@inlined
def source(circuit, k, s, zero):
    """The current of a further source at unit k, from the sources' EMF in pu."""
    o = k * COLUMNS
    if at(circuit.unit, o + SOURCE) < 0:
        return zero, zero
    pu = load(s, int(at(circuit.unit, o + SOURCE)))
    return pu * at(circuit.unit, o + EMF), pu * at(circuit.unit, o + EMF + 1)


@njit
def draw(circuit, room, apart, zero):
    """The currents at the units' voltages, those of the nominal slopes apart or not; they are in `r` too."""
    unit = circuit.unit
    for i in range(2 * circuit.size):
        store(room.j, i, zero)
    for k in range(circuit.units):
        o = k * COLUMNS
        ur, ui = load(room.u, 2 * k), load(room.u, 2 * k + 1)
        re, im = ur + spread(at(unit, o + NO_LOAD)), ui + spread(at(unit, o + NO_LOAD + 1))
        d, share = at(circuit.device, k), at(unit, o + SHARE)
        p, q = load(room.p, d) * share, load(room.q, d) * share
        fp, fq, _, _ = drawn(unit, o, re, im, zero)
        a, b = p * fp, q * fq
        sr, si = source(circuit, k, room.s, zero)
        xr, xi = sr - a * re - b * im, si + b * re - a * im
        if apart:
            xr = xr - (ur * at(unit, o + SLOPE) + ui * at(unit, o + SLOPE + 1))
            xi = xi - (ur * at(unit, o + SLOPE + 2) + ui * at(unit, o + SLOPE + 3))
        store(room.r, 2 * k, xr)
        store(room.r, 2 * k + 1, xi)
        inject(circuit, k, xr, xi, room.j)


@njit
def linearise(circuit, room, zero):
    """Slopes at the units' voltages, less the nominal ones, in `k`; currents less slopes times voltages in `r`.

    And the factors of the powers in `f`, the whole voltages in `w`.
    """
    unit = circuit.unit
    for k in range(circuit.units):
        o = k * COLUMNS
        ur, ui = load(room.u, 2 * k), load(room.u, 2 * k + 1)
        re, im = ur + spread(at(unit, o + NO_LOAD)), ui + spread(at(unit, o + NO_LOAD + 1))
        d, share = at(circuit.device, k), at(unit, o + SHARE)
        p, q = load(room.p, d) * share, load(room.q, d) * share
        fp, fq, dp, dq = drawn(unit, o, re, im, zero)
        store(room.w, 2 * k, re)
        store(room.w, 2 * k + 1, im)
        store(room.f, 2 * k, fp * share)
        store(room.f, 2 * k + 1, fq * share)
        a, b, da, db = p * fp, q * fq, p * dp, q * dq
        along = (da * re + db * im) * full(zero, -2.0)
        across = (db * re - da * im) * full(zero, 2.0)
        rr, ri = along * re - a, along * im - b
        ir, ii = across * re + b, across * im - a
        sr, si = source(circuit, k, room.s, zero)
        xr, xi = sr - a * re - b * im, si + b * re - a * im
        store(room.r, 2 * k, xr - (rr * ur + ri * ui))
        store(room.r, 2 * k + 1, xi - (ir * ur + ii * ui))
        store(room.k, 4 * k, rr - spread(at(unit, o + SLOPE)))
        store(room.k, 4 * k + 1, ri - spread(at(unit, o + SLOPE + 1)))
        store(room.k, 4 * k + 2, ir - spread(at(unit, o + SLOPE + 2)))
        store(room.k, 4 * k + 3, ii - spread(at(unit, o + SLOPE + 3)))


@njit
def respond(circuit, room, changes, zero):
    """The linearised currents at the units' voltages and `more`; of `changes` only what depends on the voltages."""
    for i in range(2 * circuit.size):
        store(room.j, i, zero if changes else load(room.more, i))
    for k in range(circuit.units):
        ur, ui = load(room.u, 2 * k), load(room.u, 2 * k + 1)
        xr = load(room.k, 4 * k) * ur + load(room.k, 4 * k + 1) * ui
        xi = load(room.k, 4 * k + 2) * ur + load(room.k, 4 * k + 3) * ui
        if not changes:
            xr, xi = load(room.r, 2 * k) + xr, load(room.r, 2 * k + 1) + xi
        inject(circuit, k, xr, xi, room.j)


@njit
def mismatch(circuit, room, weighted, zero):
    """The largest change of the units' voltages by the last sweep, a sum that shows whether all are finite; `d`.

    Taps count as far as they matter: their currents may be those of very stiff transformers.
    """
    size, check = zero, zero
    for k in range(circuit.units):
        yr, yi = see(circuit, k, room.c, zero)
        cr, ci = yr - load(room.u, 2 * k), yi - load(room.u, 2 * k + 1)
        store(room.d, 2 * k, cr)
        store(room.d, 2 * k + 1, ci)
        change = largest(magnitude(cr), magnitude(ci))
        if weighted and at(circuit.unit, k * COLUMNS + TAP) != 0:
            change = change * magnitude(load(room.p, at(circuit.device, k)))
        size, check = largest(change, size), check + change
    return size, check


@njit
def bend(circuit, room, zero):
    """How far D. G. Anderson's method (1965) of depth one goes back along the last step."""
    top, bottom = zero, full(zero, 1e-30)
    for i in range(2 * circuit.units):
        c = load(room.d, i)
        b = c - load(room.e, i)
        top, bottom = top + b * c, bottom + b * b
    one = full(zero, 1.0)
    return smallest(largest(top / bottom, zero - one), one)


@njit
def accelerated(circuit, operators, room, linear, tol, limit, active, zero):
    """Chord steps from `u`, accelerated (see `gridjax.powerflow.chord`), of the power flow or its linearisation.

    A step is bent back at most to where it came from: so nothing converges to a solution at which plain steps would
    leave along one direction for good, as they do beyond the nose.

    Returns:
      Each scenario's last change, the steps it made, and whether it has converged. The coordinates are the last
      sweep's, `u` of converged scenarios the voltages it came from.
    """
    one, limitless = full(zero, 1.0), full(zero, 1e30)
    before, residual = limitless, limitless
    count, reached = zero, below(one, zero)
    for step in range(limit):
        if linear:
            respond(circuit, room, False, zero)
        else:
            draw(circuit, room, True, zero)
        sweep(circuit, operators, room.c, room.j, zero)
        size, check = mismatch(circuit, room, not linear, zero)
        count = select(active, count + one, count)
        fine = below(check, limitless)
        residual = select(active, select(fine, size, limitless), residual)
        reached = either(reached, both(active, both(fine, at_most(size, tol))))
        active = both(active, both(fine, above(size, tol)))
        if not some(active):
            break
        slope = zero
        if step > 0:
            slope = select(above(before, size), bend(circuit, room, zero), zero)
        before = size
        for i in range(2 * circuit.units):
            old, change = load(room.u, i), load(room.d, i)
            y = old + change
            new = y
            if step > 0:
                new = y - slope * (y - load(room.y, i))
            store(room.y, i, y)
            store(room.e, i, change)
            store(room.u, i, select(active, new, old))
    return residual, count, reached


@njit
def damped(circuit, operators, room, tol, limit, active, zero):
    """Plain sweeps from `u`, with half the step where the changes stop shrinking (see `gridjax.powerflow.sweep`)."""
    one, limitless = full(zero, 1.0), full(zero, 1e30)
    residual, length, half = limitless, one, full(zero, 0.5)
    count, reached = zero, below(one, zero)
    for _ in range(limit):
        draw(circuit, room, False, zero)
        sweep(circuit, operators, room.c, room.j, zero)
        size, check = mismatch(circuit, room, True, zero)
        stalled = both(above(size, residual * full(zero, 0.95)), above(length, full(zero, MIN_STEP)))
        length = select(stalled, length * half, length)
        count = select(active, count + one, count)
        fine = below(check, limitless)
        residual = select(active, select(fine, size, limitless), residual)
        reached = either(reached, both(active, both(fine, at_most(size, tol))))
        active = both(active, both(fine, above(size, tol)))
        if not some(active):
            break
        for i in range(2 * circuit.units):
            old = load(room.u, i)
            store(room.u, i, select(active, old + length * load(room.d, i), old))
    return residual, count, reached


@njit
def newton(circuit, plain, chord, room, tol, limit, inner, active, zero):
    """Newton's method from `u`, its linear systems by the chord method.

    A system that the chord method does not solve ends it, for there the determinant of the Jacobian may have changed
    its sign. The last sweep is one of the power flow.
    """
    one, limitless = full(zero, 1.0), full(zero, 1e30)
    residual, count, reached = limitless, zero, below(one, zero)
    solved = below(zero, one)
    for i in range(2 * circuit.size):
        store(room.more, i, zero)
    for _ in range(limit):
        draw(circuit, room, False, zero)
        sweep(circuit, plain, room.c, room.j, zero)
        size, check = mismatch(circuit, room, True, zero)
        fine = both(below(check, limitless), solved)
        residual = select(active, select(fine, size, limitless), residual)
        reached = either(reached, both(active, both(fine, at_most(size, tol))))
        active = both(active, both(fine, above(size, tol)))
        if not some(active):
            break
        linearise(circuit, room, zero)
        for i in range(2 * circuit.units):
            store(room.kept, i, load(room.u, i))
        wanted = largest(size * full(zero, INNER_GAIN), tol * full(zero, 0.1))
        _, _, solved = accelerated(circuit, chord, room, True, wanted, inner, active, zero)
        for i in range(2 * circuit.units):
            store(room.u, i, select(active, load(room.u, i) + load(room.d, i), load(room.kept, i)))
        count = select(active, count + one, count)
    if some(active):
        draw(circuit, room, False, zero)
        sweep(circuit, plain, room.c, room.j, zero)
    return residual, count, reached


@njit
def go(circuit, room, held):
    """Adds to `y` and `head` what the directions held give, each less what its image leant on those before."""
    n = 2 * circuit.units
    for j in range(held - 1, -1, -1):
        part, p = load(room.part, j), further(room.base, 2 * n * j)
        for i in range(j):
            store(room.part, i, load(room.part, i) - part * load(room.lean, j * DIRECTIONS + i))
        for i in range(n):
            store(room.y, i, load(room.y, i) + part * load(p, i))
        for i in range(circuit.heads):
            store(room.head, i, load(room.head, i) + part * load(room.heads, j * circuit.heads + i))


@njit
def response(circuit, operators, room, tolerance, limit, zero):
    """Solves the linearised circuit by generalised conjugate residuals.

    (S. C. Eisenstat, H. C. Elman, M. H. Schultz, 1983.) The equation `w = L (r + K w) + more` is taken as
    `w - L' (K - K0) w = L' (r + more)` with the chord operators L'; the residual is made smallest over the last
    `DIRECTIONS` directions. What one more sweep would give is known without it: the units' voltages are the last ones
    and their residual, in `y`; the root's current is in `head`. The root's coordinates are taken from `kept`. All is in
    per unit of the first residual, `norm`, so that the smallest of changes have their answer too.

    Returns:
      Whether each scenario has converged.
    """
    n = 2 * circuit.units
    least, one = full(zero, 1e-37), full(zero, 1.0)
    for i in range(n):
        store(room.u, i, zero)
    root_coordinates(circuit, room, True, zero)
    respond(circuit, room, False, zero)
    sweep(circuit, operators, room.c, room.j, zero)
    goal = zero
    for k in range(circuit.units):
        yr, yi = see(circuit, k, room.c, zero)
        store(room.d, 2 * k, yr)
        store(room.d, 2 * k + 1, yi)
        store(room.y, 2 * k, zero)
        store(room.y, 2 * k + 1, zero)
        goal = goal + yr * yr + yi * yi
    for i in range(circuit.heads):
        store(room.head, i, load(room.j, i))
    some_change = above(goal, least)
    norm = select(some_change, root(goal), one)
    inverse = one / norm
    for i in range(n):
        store(room.d, i, load(room.d, i) * inverse)
    size, goal = select(some_change, one, zero), tolerance * tolerance
    root_coordinates(circuit, room, False, zero)
    held = 0
    for _ in range(limit):
        if not some(above(size, goal)):
            break
        p, q = further(room.base, 2 * n * held), further(room.base, 2 * n * held + n)
        for i in range(n):
            store(room.u, i, load(room.d, i))
            store(p, i, load(room.d, i))
        respond(circuit, room, True, zero)
        sweep(circuit, operators, room.c, room.j, zero)
        for k in range(circuit.units):
            yr, yi = see(circuit, k, room.c, zero)
            store(q, 2 * k, load(room.u, 2 * k) - yr)
            store(q, 2 * k + 1, load(room.u, 2 * k + 1) - yi)
        for i in range(circuit.heads):
            store(room.heads, held * circuit.heads + i, load(room.j, i))
        for other in range(held):
            q2, top = further(room.base, 2 * n * other + n), zero
            for i in range(n):
                top = top + load(q, i) * load(q2, i)
            lean = top * load(room.inverse, other)
            store(room.lean, held * DIRECTIONS + other, lean)
            for i in range(n):
                store(q, i, load(q, i) - lean * load(q2, i))
        top, bottom = zero, least
        for i in range(n):
            a = load(q, i)
            top, bottom = top + a * load(room.d, i), bottom + a * a
        part = select(above(size, goal), top / bottom, zero)
        store(room.part, held, part * norm)
        store(room.inverse, held, one / bottom)
        size_now = zero
        for i in range(n):
            left = load(room.d, i) - part * load(q, i)
            store(room.d, i, left)
            size_now = size_now + left * left
        size = size_now
        held += 1
        if held == DIRECTIONS:
            go(circuit, room, held)
            held = 0
    go(circuit, room, held)
    for i in range(n):
        store(room.u, i, load(room.y, i))
        store(room.y, i, load(room.y, i) + load(room.d, i) * norm)
    return at_most(size, goal * full(zero, 1e4))


@njit
def root_coordinates(circuit, room, given, zero):
    """Makes the root's coordinates those that `kept` holds, or zero."""
    for i in range(circuit.heads):
        store(room.c, i, load(room.kept, i) if given else zero)


class Rows(NamedTuple):
    """The first scenario of a pass, the last of all (taken again where lanes go beyond it), and lengths of rows."""

    first: int
    last: int
    nodes: int
    slots: int


@njit
def root_current(circuit, room, own, j, given):
    """The current through the root, in `head`; to what came up, `j`, adds what the root's coordinates draw.

    That is `own`, of the chord's operators or their transposes; the plain circuit's is left to the caller. `given` are
    the root's coordinates.
    """
    n = circuit.heads
    for i in range(n):
        total = load(j, i)
        for k in range(n):
            total = total + load(given, k) * at(own, i * n + k)
        store(room.head, i, total)


@njit
def consumption(circuit, room, apart, zero):
    """The power that loads and generators take by the last sweep: its voltages and the currents that led to them.

    By J. Tellegen's theorem (1952) it balances with the root's to rounding, however far the iteration went.
    """
    p, q = zero, zero
    for k in range(circuit.units):
        if at(circuit.device, k) >= circuit.consumers:
            continue
        o = k * COLUMNS
        ur, ui = see(circuit, k, room.c, zero)
        xr, xi = load(room.r, 2 * k), load(room.r, 2 * k + 1)
        if apart:
            xr = xr + (ur * at(circuit.unit, o + SLOPE) + ui * at(circuit.unit, o + SLOPE + 1))
            xi = xi + (ur * at(circuit.unit, o + SLOPE + 2) + ui * at(circuit.unit, o + SLOPE + 3))
        re = ur + spread(at(circuit.unit, o + NO_LOAD))
        im = ui + spread(at(circuit.unit, o + NO_LOAD + 1))
        p, q = p - (re * xr + im * xi), q - (im * xr - re * xi)
    return p, q


@njit
def read(circuit, room, rows, p, q, emf):
    """Takes the scenarios' powers and sources."""
    for d in range(circuit.devices):
        store(room.p, d, gather(p, rows.first, rows.last, circuit.devices, d))
        store(room.q, d, gather(q, rows.first, rows.last, circuit.devices, d))
    for i in range(circuit.sources):
        store(room.s, i, gather(emf, rows.first, rows.last, circuit.sources, i))


@njit
def read_head(circuit, rows, head, c):
    """Takes the root's coordinates."""
    for i in range(circuit.heads):
        store(c, i, gather(head, rows.first, rows.last, circuit.heads, i))


@njit
def read_slots(circuit, rows, slots, u):
    """The units' voltages from their slots."""
    for i in range(2 * circuit.units):
        store(u, i, gather(slots, rows.first, rows.last, rows.slots, at(circuit.slot, i)))


@njit
def write_nodes(circuit, room, rows, no_load, v):
    """All nodes' voltages from the coordinates."""
    c, direct, passive, recovery = room.c, circuit.direct, circuit.passive, circuit.recovery
    for i in range(0, 3 * circuit.direct_count, 3):
        node, k, last = 2 * at(direct, i), 2 * at(direct, i + 1), 2 * at(direct, i + 2)
        re = load(c, k) + spread(at(no_load, node))
        im = load(c, k + 1) + spread(at(no_load, node + 1))
        if last >= 0:
            re, im = re + load(c, last), im + load(c, last + 1)
        scatter_pair(v, rows.first, rows.last, 2 * rows.nodes, node, re, im)
    o, n = 0, 0
    for i in range(0, 4 * circuit.passive_count, 4):
        z = 4 * at(passive, i)
        s, a = 2 * at(circuit.zones, z), at(circuit.zones, z + 1)
        h, b = 2 * at(passive, i + 2), at(passive, i + 3)
        for _ in range(at(passive, i + 1)):
            node = 2 * at(circuit.passive_node, n)
            n += 1
            if a == 3 and b == 3:
                re, im = blend_33(recovery, o, c, s, c, h)
                o += 12
            else:
                re, im = full_zero(c), full_zero(c)
                for k in range(a):
                    dr, di = blend(recovery, o, c, s + 2 * k)
                    re, im = re + dr, im + di
                    o += 2
                for k in range(b):
                    dr, di = blend(recovery, o, c, h + 2 * k)
                    re, im = re + dr, im + di
                    o += 2
            re, im = re + spread(at(no_load, node)), im + spread(at(no_load, node + 1))
            scatter_pair(v, rows.first, rows.last, 2 * rows.nodes, node, re, im)


@njit
def take_nodes(circuit, room, rows, v_bar):
    """Adds the cotangents of all nodes' voltages to those of the coordinates, the transpose of `write_nodes`."""
    more, direct, passive, recovery = room.more, circuit.direct, circuit.passive, circuit.recovery
    for i in range(0, 3 * circuit.direct_count, 3):
        node, k, last = 2 * at(direct, i), 2 * at(direct, i + 1), 2 * at(direct, i + 2)
        for part in range(2):
            value = gather(v_bar, rows.first, rows.last, 2 * rows.nodes, node + part)
            store(more, k + part, load(more, k + part) + value)
            if last >= 0:
                store(more, last + part, load(more, last + part) + value)
    o, n = 0, 0
    for i in range(0, 4 * circuit.passive_count, 4):
        z = 4 * at(passive, i)
        s, a = 2 * at(circuit.zones, z), at(circuit.zones, z + 1)
        h, b = 2 * at(passive, i + 2), at(passive, i + 3)
        for _ in range(at(passive, i + 1)):
            node = 2 * at(circuit.passive_node, n)
            n += 1
            re = gather(v_bar, rows.first, rows.last, 2 * rows.nodes, node)
            im = gather(v_bar, rows.first, rows.last, 2 * rows.nodes, node + 1)
            for part in range(2):
                start, count = (s, a) if part == 0 else (h, b)
                for k in range(count):
                    gr, gi, i_c = at(recovery, o), at(recovery, o + 1), start + 2 * k
                    store(more, i_c, load(more, i_c) + re * gr + im * gi)
                    store(more, i_c + 1, load(more, i_c + 1) + im * gr - re * gi)
                    o += 2


@njit
def solve_pass(circuit, plain, chord, own, room, rows, head, no_load, method, tolerance, chord_limit, limit, inner,
               v, slots, steps_out, residual_out, head_out, taken_out):  # fmt: skip
    """Solves the scenarios that `read` has taken."""
    zero = full_zero(room.c)
    one, tol = full(zero, 1.0), zero + spread(tolerance)
    everywhere = below(zero, one)
    read_head(circuit, rows, head, room.c)
    for k in range(circuit.units):
        for i in range(2):
            store(room.u, 2 * k + i, spread(at(circuit.unit, k * COLUMNS + START + i)))
    if method == NEWTON:  # from no load, whence it finds the operable solution
        for i in range(2 * circuit.units):
            store(room.u, i, zero)
        size, steps, _ = newton(circuit, plain, chord, room, tol, limit, inner, everywhere, zero)
        for i in range(circuit.heads):
            store(room.head, i, load(room.j, i))
        p, q = consumption(circuit, room, False, zero)
    else:
        size, steps, reached = accelerated(circuit, chord, room, False, tol, chord_limit, everywhere, zero)
        root_current(circuit, room, own, room.j, room.c)
        p, q = consumption(circuit, room, True, zero)
        left = below(select(reached, one, zero), one)
        if some(left) and limit > chord_limit:
            near = both(left, below(size, full(zero, NEAR)))
            for i in range(2 * circuit.units):
                store(room.u, i, select(near, load(room.u, i), zero))
            for i in range(2 * circuit.size):
                store(room.kept, i, load(room.c, i))
            again, more, _ = damped(circuit, plain, room, tol, limit - chord_limit, left, zero)
            size, steps = select(left, again, size), steps + more
            p_now, q_now = consumption(circuit, room, False, zero)
            p, q = select(left, p_now, p), select(left, q_now, q)
            for i in range(circuit.heads):
                store(room.head, i, select(left, load(room.j, i), load(room.head, i)))
            for i in range(2 * circuit.size):
                store(room.c, i, select(left, load(room.c, i), load(room.kept, i)))
    write_nodes(circuit, room, rows, no_load, v)
    for k in range(circuit.units):
        yr, yi = see(circuit, k, room.c, zero)
        scatter(slots, rows.first, rows.last, rows.slots, at(circuit.slot, 2 * k), yr)
        scatter(slots, rows.first, rows.last, rows.slots, at(circuit.slot, 2 * k + 1), yi)
    scatter(steps_out, rows.first, rows.last, 1, 0, steps)
    scatter(residual_out, rows.first, rows.last, 1, 0, size)
    for i in range(circuit.heads):
        scatter(head_out, rows.first, rows.last, circuit.heads, i, load(room.head, i))
    scatter(taken_out, rows.first, rows.last, 2, 0, p)
    scatter(taken_out, rows.first, rows.last, 2, 1, q)


@njit
def current(circuit, room, k, p, q):
    """What unit k injects at voltage `w` if its device has the powers p, q; without a source's current."""
    re, im, d = load(room.w, 2 * k), load(room.w, 2 * k + 1), at(circuit.device, k)
    a, b = load(p, d) * load(room.f, 2 * k), load(q, d) * load(room.f, 2 * k + 1)
    return full_zero(room.c) - (a * re + b * im), b * re - a * im


@njit
def whole(circuit, room, k, xr, xi, transposed):
    """The slopes in `k` and the nominal ones, or their transpose, times a vector."""
    unit, o = circuit.unit, k * COLUMNS + SLOPE
    across, down = at(unit, o + 1), at(unit, o + 2)
    if transposed:
        across, down = down, across
    yr = (load(room.k, 4 * k) + spread(at(unit, o))) * xr + (load(room.k, 4 * k + 1) + spread(across)) * xi
    yi = (load(room.k, 4 * k + 2) + spread(down)) * xr + (load(room.k, 4 * k + 3) + spread(at(unit, o + 3))) * xi
    return yr, yi


@njit
def tangent_pass(circuit, chord, own, room, rows, none, tolerance, limit, u, dp, dq, dhead, dsource, more, v, slots,
                 lost, head_out, taken_out):  # fmt: skip
    """How the solution answers to changes of what `read` takes; `u` are the units' voltages, in their slots.

    `more` are changes of the units' voltages that come from elsewhere. The slopes act on the whole voltage w + more, of
    which the circuit gives w.
    """
    zero = full_zero(room.c)
    one = full(zero, 1.0)
    for d in range(circuit.devices):
        store(room.dp, d, gather(dp, rows.first, rows.last, circuit.devices, d))
        store(room.dq, d, gather(dq, rows.first, rows.last, circuit.devices, d))
    for i in range(circuit.sources):
        store(room.ds, i, gather(dsource, rows.first, rows.last, circuit.sources, i))
    read_head(circuit, rows, dhead, room.kept)
    read_slots(circuit, rows, u, room.u)
    linearise(circuit, room, zero)
    for i in range(2 * circuit.size):
        store(room.more, i, zero)
    for k in range(circuit.units):
        xr, xi = current(circuit, room, k, room.dp, room.dq)
        sr, si = source(circuit, k, room.ds, zero)
        fr = gather(more, rows.first, rows.last, rows.slots, at(circuit.slot, 2 * k))
        fi = gather(more, rows.first, rows.last, rows.slots, at(circuit.slot, 2 * k + 1))
        kr, ki = whole(circuit, room, k, fr, fi, False)
        store(room.r, 2 * k, sr + xr + kr)
        store(room.r, 2 * k + 1, si + xi + ki)
    reached = response(circuit, chord, room, spread(tolerance), limit, zero)
    root_coordinates(circuit, room, True, zero)
    respond(circuit, room, False, zero)
    sweep(circuit, chord, room.c, room.j, zero)
    write_nodes(circuit, room, rows, none, v)
    root_current(circuit, room, own, room.head, room.kept)
    for i in range(circuit.heads):
        scatter(head_out, rows.first, rows.last, circuit.heads, i, load(room.head, i))
    p, q = zero, zero
    for k in range(circuit.units):
        yr, yi = see(circuit, k, room.c, zero)
        i, j = at(circuit.slot, 2 * k), at(circuit.slot, 2 * k + 1)
        dr = yr + gather(more, rows.first, rows.last, rows.slots, i)
        di = yi + gather(more, rows.first, rows.last, rows.slots, j)
        scatter(slots, rows.first, rows.last, rows.slots, i, dr)
        scatter(slots, rows.first, rows.last, rows.slots, j, di)
        if at(circuit.device, k) < circuit.consumers:
            re, im = load(room.w, 2 * k), load(room.w, 2 * k + 1)
            xr, xi = current(circuit, room, k, room.p, room.q)
            kr, ki = whole(circuit, room, k, yr, yi, False)
            kr, ki = kr + load(room.r, 2 * k), ki + load(room.r, 2 * k + 1)
            p = p - (dr * xr + di * xi + re * kr + im * ki)
            q = q - (di * xr - dr * xi + im * kr - re * ki)
    scatter(taken_out, rows.first, rows.last, 2, 0, p)
    scatter(taken_out, rows.first, rows.last, 2, 1, q)
    scatter(lost, rows.first, rows.last, 1, 0, select(reached, zero, one))


@njit
def weigh(sp, sq, re, im, zero):
    """What cotangents of a unit's power are as ones of its current."""
    return zero - (sp * re + sq * im), sq * re - sp * im


@njit
def cotangent_pass(circuit, transposed, own, room, rows, tolerance, limit, u, v_bar, u_bar, root_bar, taken_bar, p_bar,
                   q_bar, head_bar, source_bar, more_bar, lost):  # fmt: skip
    """The transpose of `tangent_pass`."""
    zero = full_zero(room.c)
    one = full(zero, 1.0)
    read_slots(circuit, rows, u, room.u)
    linearise(circuit, room, zero)
    read_head(circuit, rows, root_bar, room.kept)
    sp, sq = gather(taken_bar, rows.first, rows.last, 2, 0), gather(taken_bar, rows.first, rows.last, 2, 1)
    for i in range(2 * circuit.size):
        store(room.more, i, zero)
    take_nodes(circuit, room, rows, v_bar)
    for k in range(circuit.units):
        across = load(room.k, 4 * k + 1)
        store(room.k, 4 * k + 1, load(room.k, 4 * k + 2))
        store(room.k, 4 * k + 2, across)
        ur = gather(u_bar, rows.first, rows.last, rows.slots, at(circuit.slot, 2 * k))
        ui = gather(u_bar, rows.first, rows.last, rows.slots, at(circuit.slot, 2 * k + 1))
        if at(circuit.device, k) < circuit.consumers:
            re, im = load(room.w, 2 * k), load(room.w, 2 * k + 1)
            xr, xi = current(circuit, room, k, room.p, room.q)
            wr, wi = weigh(sp, sq, re, im, zero)
            kr, ki = whole(circuit, room, k, wr, wi, True)
            ur, ui = ur + kr - (sp * xr - sq * xi), ui + ki - (sp * xi + sq * xr)
        store(room.e, 2 * k, ur)
        store(room.e, 2 * k + 1, ui)
        inject(circuit, k, ur, ui, room.more)
    for i in range(2 * circuit.units):
        store(room.r, i, zero)
    reached = response(circuit, transposed, room, spread(tolerance), limit, zero)
    root_current(circuit, room, own, room.head, room.kept)
    for i in range(circuit.heads):
        scatter(head_bar, rows.first, rows.last, circuit.heads, i, load(room.head, i))
    for d in range(circuit.devices):
        store(room.dp, d, zero)
        store(room.dq, d, zero)
    for i in range(circuit.sources):
        store(room.ds, i, zero)
    for k in range(circuit.units):
        o, d = k * COLUMNS, at(circuit.device, k)
        re, im = load(room.w, 2 * k), load(room.w, 2 * k + 1)
        xr, xi = load(room.y, 2 * k), load(room.y, 2 * k + 1)
        fr, fi = whole(circuit, room, k, xr, xi, True)
        i, j = at(circuit.slot, 2 * k), at(circuit.slot, 2 * k + 1)
        scatter(more_bar, rows.first, rows.last, rows.slots, i, fr + load(room.e, 2 * k))
        scatter(more_bar, rows.first, rows.last, rows.slots, j, fi + load(room.e, 2 * k + 1))
        if at(circuit.unit, o + SOURCE) >= 0:
            i = int(at(circuit.unit, o + SOURCE))
            total = load(room.ds, i) + xr * at(circuit.unit, o + EMF) + xi * at(circuit.unit, o + EMF + 1)
            store(room.ds, i, total)
        if d < circuit.consumers:
            wr, wi = weigh(sp, sq, re, im, zero)
            xr, xi = xr + wr, xi + wi
        store(room.dp, d, load(room.dp, d) - load(room.f, 2 * k) * (xr * re + xi * im))
        store(room.dq, d, load(room.dq, d) + load(room.f, 2 * k + 1) * (xi * re - xr * im))
    for d in range(circuit.devices):
        scatter(p_bar, rows.first, rows.last, circuit.devices, d, load(room.dp, d))
        scatter(q_bar, rows.first, rows.last, circuit.devices, d, load(room.dq, d))
    for i in range(circuit.sources):
        scatter(source_bar, rows.first, rows.last, circuit.sources, i, load(room.ds, i))
    scatter(lost, rows.first, rows.last, 1, 0, select(reached, zero, one))
