"""The one-line diagram and the voltage profile as SVG text, for `gridjax.page`.

Colours are classes whose values the page's style sheet sets, so that light and dark schemes both work. Names never
enter the SVG; what they are called is in the page's data.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from gridjax.drawing import (
    PHASES,
    RANGE_A,
    RANGE_B,
    Branch,
    branch_symbols,
    bus_devices,
    conductor_pairs,
    is_secondary,
    node_bus,
    node_phases,
)
from gridjax.feeder import Feeder

BINS = 18  # colours of the voltage scale
SIZE = 1000.0  # width of both pictures in their own units
_PROFILE = (64.0, 970.0, 16.0, 380.0)  # left, right, top, bottom of the profile's field
_MARGIN = 40.0


class Scale(NamedTuple):
    """A linear map of data to a picture's units: `at = offset + factor * value`."""

    offset: float
    factor: float

    def __call__(self, value):
        """The place of a value or an array of values."""
        return self.offset + self.factor * value


def fit(xy: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates in the diagram's units (y down), (buses, 2), and the diagram's height."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    extent = np.maximum(high - low, 1e-9)
    inner = SIZE - 2 * _MARGIN
    factor = min(inner / extent[0], 0.85 * inner / extent[1])
    used = factor * (high - low)
    height = max(used[1] + 2 * _MARGIN, 300.0)
    start = (np.array([SIZE, height]) - used) / 2
    out = np.stack([xy[:, 0] - low[0], high[1] - xy[:, 1]], axis=1) * factor + start
    return np.round(out, 3), float(round(height, 3))


def bins(v: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The colour of each voltage, -1 where it is not finite, and the scale's ends."""
    finite = v[np.isfinite(v)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else RANGE_A
    if high - low < 1e-4:
        low, high = low - 5e-5, high + 5e-5
    number = np.floor((np.where(np.isfinite(v), v, low) - low) / (high - low) * BINS).astype(int)
    return np.where(np.isfinite(v), np.clip(number, 0, BINS - 1), -1), low, high


def diagram(
    feeder: Feeder, edges: list[Branch], at: np.ndarray, height: float, v: np.ndarray, widths: np.ndarray, failed: bool
) -> str:
    """The one-line diagram.

    Args:
      feeder: the tables.
      edges: `branches(feeder)`.
      at: the buses' places, (buses, 2), from `fit`.
      height: the picture's height.
      v: lowest phase voltage of each bus, (buses,), pu.
      widths: each branch's width in pixels.
      failed: the flow has not converged.

    Returns:
      An `svg` element with the id `oneline`.
    """
    ends = np.array([[edge.ends[0].bus, edge.ends[1].bus] for edge in edges], int).reshape(-1, 2)
    of_branch, low, high = bins(np.fmin(v[ends[:, 0]], v[ends[:, 1]]) if len(ends) else np.zeros(0))
    of_bus, _, _ = bins(v)
    text = f"lowest phase voltage {low:.4f} to {high:.4f} pu; {len(at)} buses, {len(edges)} branches"
    out = [
        f'<svg id="oneline" viewBox="0 0 {SIZE:g} {height:g}" role="img" tabindex="0" '
        'aria-labelledby="oneline-title oneline-desc">',
        '<title id="oneline-title">One-line diagram</title>',
        f'<desc id="oneline-desc">The feeder drawn from its source, coloured by voltage: {text}.</desc>',
        _SYMBOLS,
        '<g class="branches">',
    ]
    for b, edge in enumerate(edges):
        (x1, y1), (x2, y2) = at[ends[b, 0]].tolist(), at[ends[b, 1]].tolist()
        colour = f"c{of_branch[b]}" if edge.closed and of_branch[b] >= 0 else "open" if not edge.closed else "none"
        path = f"M{x1:g} {y1:g}L{x2:g} {y2:g}"
        out.append(f'<path class="{colour}" data-branch="{b}" stroke-width="{widths[b]:.1f}" d="{path}"/>')
    out.append('</g><g class="buses">')
    for i, (x, y) in enumerate(at.tolist()):
        colour = f"c{of_bus[i]}" if of_bus[i] >= 0 else "none"
        out.append(f'<path class="{colour}" data-bus="{i}" d="M{x:g} {y:g}h0"/>')
    out.append('</g><g class="symbols">')
    places = [
        (name, (at[ends[b, 0]] + at[ends[b, 1]]) / 2, f' data-of="{b}"')
        for name, rows in branch_symbols(feeder, edges).items()
        for b in rows
    ]
    places += [(name, at[i], "") for name, rows in bus_devices(feeder).items() for i in rows]
    for name, (x, y), of in places:
        if name != "service transformer":
            shape, move = name.replace(" ", "-"), f"translate({x:g} {y:g})"
            out.append(f'<use href="#{shape}" data-x="{x:g}" data-y="{y:g}"{of} transform="{move}"/>')
    out.append('</g><g class="labels"></g><path class="mark" d=""/>')
    out.append(_stamp(SIZE / 2, height / 2) if failed else "")
    out.append("</svg>")
    return "".join(out)


def profile(
    feeder: Feeder, edges: list[Branch], km: np.ndarray, v: np.ndarray, shown: np.ndarray, failed: bool
) -> tuple[str, Scale, Scale]:
    """The voltage profile.

    Args:
      feeder: the tables.
      edges: `branches(feeder)`.
      km: distance of each node from the source, (nodes,).
      v: voltage of each node in pu, (nodes,).
      shown: which nodes to draw, (nodes,).
      failed: the flow has not converged.

    Returns:
      An `svg` element with the id `profile`, and its scales for km and pu.
    """
    left, right, top, bottom = _PROFILE
    far = max(float(km[shown].max(initial=0.0)), 1e-6)
    low, high = (float(v[shown].min()), float(v[shown].max())) if shown.any() else RANGE_A
    low = min(low, RANGE_A[0] if low >= RANGE_A[0] else RANGE_B[0])
    high = max(high, RANGE_A[1] if high <= RANGE_A[1] else RANGE_B[1])
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    x = Scale(left, (right - left) / (1.02 * far))
    y = Scale(bottom + (bottom - top) * low / (high - low), -(bottom - top) / (high - low))
    out = [
        f'<svg id="profile" viewBox="0 0 {SIZE:g} 430" role="img" aria-labelledby="profile-title profile-desc">',
        '<title id="profile-title">Voltage profile</title>',
        '<desc id="profile-desc">Voltage of every phase in pu against the distance from the source in km.</desc>',
    ]
    for (a, b), name in ((RANGE_B, "range-b"), (RANGE_A, "range-a")):
        from_y, to_y = max(y(b), top), min(y(a), bottom)
        if to_y > from_y:
            size = f'width="{right - left:g}" height="{to_y - from_y:.2f}"'
            out.append(f'<rect class="{name}" x="{left:g}" y="{from_y:.2f}" {size}/>')
    out += _axes(x, y, 1.02 * far, low, high)
    phase, secondary = node_phases(feeder), is_secondary(feeder)[node_bus(feeder)]
    lines: dict[tuple[bool, int], list[str]] = defaultdict(list)
    for _, a, b in conductor_pairs(feeder, edges):
        if shown[a] and shown[b] and phase[b] in PHASES:
            key = (not (secondary[a] or secondary[b]), int(phase[b]))
            lines[key].append(f"M{x(km[a]):.1f} {y(v[a]):.1f}L{x(km[b]):.1f} {y(v[b]):.1f}")
    for (primary, p), parts in sorted(lines.items()):
        kind = "primary" if primary else "secondary"
        out.append(f'<path class="phase {kind} p{PHASES[p][0]}" d="{"".join(parts)}"/>')
    out.append('<path class="mark" d=""/>' + (_stamp(SIZE / 2, 200.0) if failed else "") + "</svg>")
    return "".join(out), x, y


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Some round numbers between two values, with their text."""
    raw = (high - low) / 7
    step = 10 ** np.floor(np.log10(raw))
    step *= next(k for k in (1, 2, 5, 10) if k * step >= raw * 0.999)
    digits = max(0, -int(np.floor(np.log10(step) + 1e-9)))
    numbers = range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)
    return [(float(k * step), f"{k * step:.{digits}f}") for k in numbers]


def _axes(x: Scale, y: Scale, far: float, low: float, high: float) -> list[str]:
    left, right, top, bottom = _PROFILE
    out = [f'<g class="axes"><path d="M{left:g} {top:g}V{bottom:g}H{right:g}"/>']
    for value, text in ticks(0.0, far):
        out.append(f'<text x="{x(value):.1f}" y="{bottom + 18:g}" text-anchor="middle">{text}</text>')
    for value, text in ticks(low, high):
        out.append(f'<path class="grid" d="M{left:g} {y(value):.1f}H{right:g}"/>')
        out.append(f'<text x="{left - 8:g}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (left + right) / 2
    out.append(f'<text x="{middle:g}" y="{bottom + 38:g}" text-anchor="middle">distance from the source (km)</text>')
    out.append('<text transform="translate(14 200) rotate(-90)" text-anchor="middle">voltage to ground (pu)</text></g>')
    return out


def _stamp(x: float, y: float) -> str:
    turn = f"rotate(-15 {x:g} {y:g})"
    return f'<text class="stamp" x="{x:g}" y="{y:g}" text-anchor="middle" transform="{turn}">NOT CONVERGED</text>'


_SYMBOLS = (
    "<defs>"
    '<g id="transformer"><circle cx="-3.5" r="6"/><circle cx="3.5" r="6"/></g>'
    '<path id="regulator" class="filled" d="M0-7L7 0L0 7L-7 0Z"/>'
    '<path id="closed-switch" class="solid" d="M-4-4H4V4H-4Z"/>'
    '<path id="open-switch" class="empty" d="M-4-4H4V4H-4Z"/>'
    '<path id="capacitor" d="M-7-2H7M-7 2H7M0-8V-2M0 2V8"/>'
    '<path id="source" class="source" '
    'd="M0-10L2.4-3.2L9.5-3.1L3.8 1.2L5.9 8.1L0 4L-5.9 8.1L-3.8 1.2L-9.5-3.1L-2.4-3.2Z"/>'
    "</defs>"
)
