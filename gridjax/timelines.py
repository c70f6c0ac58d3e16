"""Timelines as SVG text, for `gridjax.episode`: lines over the steps of an episode, and what is on in which step.

Step k takes the k-th of equal parts of the field's width, the same in all of them, so that one cursor serves all.
Colours are classes whose values the page's style sheet sets. Text is escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np

from gridjax.drawing import printable
from gridjax.svg import SIZE, Scale, ticks

LEFT, RIGHT = 78.0, 990.0
COLOURS = 8  # classes s0, s1, ...
MANY = 12  # of more lines than that only the range is drawn
ROWS = 40  # of more devices than that only how many are on is drawn
_TOP = 14.0


def width(steps: int) -> float:
    """Of one step."""
    return (RIGHT - LEFT) / max(steps, 1)


def chart(
    name: str,
    title: str,
    series: Mapping[str, np.ndarray],
    solved: np.ndarray,
    *,
    band: tuple[float, float] | None = None,
    held: bool = False,
    height: float = 190.0,
) -> str:
    """Lines over the steps, or of many the lowest, the mean and the highest.

    Args:
      name: of the picture, whose id it ends.
      title: above it.
      series: by their labels, (steps,) each; nothing is drawn where a value is not finite.
      solved: (steps,) False where the step's figures mean nothing.
      band: a range that is shaded.
      held: whether a value holds for its whole step, and changes at once.
      height: of the field.

    Returns:
      A `figure` element; empty where no value is finite.
    """
    shown = {label: np.where(solved, values, np.nan) for label, values in series.items()}
    if len(shown) > MANY:
        found = summary(np.stack(list(shown.values())))
        shown = {f"{label} of {len(series)}": values for label, values in found.items()}
    everything = np.concatenate([a[np.isfinite(a)] for a in shown.values()]) if shown else np.zeros(0)
    if not len(everything):
        return ""
    low, high = float(everything.min()), float(everything.max())
    if band is not None:
        low, high = min(low, band[0]), max(high, band[1])
    margin = 0.06 * (high - low) if high - low > 1e-9 else max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin
    bottom, steps = _TOP + height, len(solved)
    y = Scale(bottom + height * low / (high - low), -height / (high - low))
    out = [_begin(name, title, bottom)]
    if band is not None:
        upper, lower = y(band[1]), y(band[0])
        out.append(_box("range-a", LEFT, upper, RIGHT - LEFT, lower - upper))
    for value, text in ticks(low, high):
        out.append(f'<path class="grid" d="M{LEFT:g} {y(value):.1f}H{RIGHT:g}"/>')
        out.append(f'<text x="{LEFT - 8:g}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    out += _frame(steps, bottom) + _unsolved(solved, bottom)
    for k, values in enumerate(shown.values()):
        out.append(f'<path class="line s{k % COLOURS}" d="{_path(values, y, held)}"/>')
    out.append(f'<path class="cursor" data-y="{_TOP:g} {bottom:g}" d=""/></svg>')
    return "".join(out) + _legend(shown) + "</figure>"


def switches(name: str, title: str, states: Mapping[str, np.ndarray], solved: np.ndarray) -> str:
    """A row for each device, filled in the steps in which it is on (above 0.5); a `figure` element, empty if none."""
    if not states:
        return ""
    if len(states) > ROWS:
        count = np.sum([np.asarray(a) > 0.5 for a in states.values()], axis=0).astype(float)
        return chart(name, title, {f"how many of {len(states)}": count}, solved, held=True, height=120.0)
    each, w = 18.0, width(len(solved))
    bottom = _TOP + each * len(states)
    out = [_begin(name, title, bottom), *_frame(len(solved), bottom), *_unsolved(solved, bottom)]
    for row, (label, values) in enumerate(states.items()):
        top = _TOP + each * row
        on = np.asarray(solved) & (np.asarray(values) > 0.5)
        edges = np.nonzero(np.diff(np.concatenate([np.zeros(1), on, np.zeros(1)])))[0]
        for start, stop in np.reshape(edges, (-1, 2)).tolist():
            out.append(_box("on s0", LEFT + w * start, top + 3, w * (stop - start), each - 6))
        text = html.escape(printable(label)[:24])
        out.append(f'<text x="{LEFT - 8:g}" y="{top + each / 2 + 4:.1f}" text-anchor="end">{text}</text>')
    out.append(f'<path class="cursor" data-y="{_TOP:g} {bottom:g}" d=""/></svg></figure>')
    return "".join(out)


def summary(table: np.ndarray) -> dict[str, np.ndarray]:
    """The highest, the mean and the lowest of the finite values of many lines (lines, steps), NaN where none is."""
    some = np.any(np.isfinite(table), axis=0)
    safe = np.where(np.expand_dims(some, 0), np.where(np.isfinite(table), table, np.nan), 0.0)
    found = {"highest": np.nanmax(safe, axis=0), "mean": np.nanmean(safe, axis=0), "lowest": np.nanmin(safe, axis=0)}
    return {label: np.where(some, values, np.nan) for label, values in found.items()}


def _begin(name: str, title: str, bottom: float) -> str:
    text = html.escape(title)
    return (
        f'<figure><figcaption>{text}</figcaption><svg class="timeline" id="timeline-{name}" viewBox="0 0 {SIZE:g} '
        f'{bottom + 22:g}" role="img" aria-label="{text} over the steps">'
    )


def _frame(steps: int, bottom: float) -> list[str]:
    """The axes, with the steps' numbers."""
    out = [f'<g class="axes"><path d="M{LEFT:g} {_TOP:g}V{bottom:g}H{RIGHT:g}"/>']
    every = max(1, -(-steps // 24))
    for k in range(0, steps, every):
        x = LEFT + width(steps) * (k + 0.5)
        out.append(f'<text x="{x:.1f}" y="{bottom + 16:g}" text-anchor="middle">{k + 1}</text>')
    return [*out, "</g>"]


def _unsolved(solved: np.ndarray, bottom: float) -> list[str]:
    w = width(len(solved))
    return [_box("unsolved", LEFT + w * k, _TOP, w, bottom - _TOP) for k in np.nonzero(np.asarray(~solved))[0].tolist()]


def _box(kind: str, x: float, y: float, w: float, h: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{max(h, 0):.1f}"/>'


def _path(values: np.ndarray, y: Scale, held: bool) -> str:
    """A line through the middles of the steps, or along them; broken where a value is not finite."""
    w, out, before = width(len(values)), [], False
    for k, value in enumerate(values.tolist()):
        now = bool(np.isfinite(value))
        if now and held:
            out.append(f"{'V' if before else f'M{LEFT + w * k:.1f} '}{y(value):.1f}H{LEFT + w * (k + 1):.1f}")
        elif now:
            out.append(f"{'L' if before else 'M'}{LEFT + w * (k + 0.5):.1f} {y(value):.1f}{'' if before else 'h0'}")
        before = now
    return "".join(out)


def _legend(series: Mapping[str, np.ndarray]) -> str:
    keys = (f'<span class="key s{k % COLOURS}">{html.escape(printable(name))}</span>' for k, name in enumerate(series))
    return f'<p class="legend">{"".join(keys)}</p>'
