"""Charts as SVG: box plots, curves, intervals around zero. Colours are the page's style sheet's."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnseg.report.markup import Markup, join, tag

WIDTH = 760
LEFT, RIGHT = 170, 84  # room for names, and for figures
ROW = 44
LONGEST_NAME = 20
WHISKER = 1.5  # quartile ranges; Tukey's rule
MOST_DOTS = 400  # of a box; more are drawn without a name each


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """The values of a row of a box plot, by name, and the interval of their mean."""

    name: str
    values: tuple[tuple[str, float], ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of a chart: (x, y); where y is None there is a gap."""

    name: str
    points: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and what it lies between."""

    name: str
    value: float
    low: float | None
    high: float | None


def box_plot(
    boxes: Sequence[Box], title: str, *, span: tuple[float, float] | None = None
) -> Markup:
    """Draw a row a box: quartiles, median, whiskers, a dot a value, the mean's interval.

    Args:
        boxes: Rows without a value stay empty.
        title: What is drawn, for those who cannot see it.
        span: Ends of the axis; None are those of the values.
    """
    found = [value for box in boxes for _, value in box.values]
    first, last = span or _nice_span(found)
    axis = _Axis(first=first, last=last)
    height = ROW * len(boxes) + 30
    rows = [_box_row(box, axis, 8 + ROW * i) for i, box in enumerate(boxes)]
    return _figure(title, height, _grid(axis, height - 24), *rows)


def curves(lines: Sequence[Line], title: str, *, span: tuple[float, float] | None = None) -> Markup:
    """Draw lines over a common axis of whole numbers, with their names as a legend."""
    width, height, left, bottom = 480, 260, 46, 26
    points = [(x, y) for line in lines for x, y in line.points if y is not None]
    if not points:
        return tag("p", "no values", class_="note")
    low, high = span or _nice_span([y for _, y in points])
    start, stop = min(x for x, _ in points), max(x for x, _ in points)
    stop = stop if stop > start else start + 1

    def place(x: float, y: float) -> tuple[float, float]:
        right = left + (x - start) / (stop - start) * (width - left - 10)
        return right, 8 + (high - min(max(y, low), high)) / (high - low) * (height - bottom - 8)

    parts: list[Markup] = []
    for value in _ticks(low, high):
        _, y = place(start, value)
        parts.append(tag("line", x1=left, x2=width - 10, y1=y, y2=y, class_="grid"))
        parts.append(_label(left - 6, y + 4, _number(value), "end"))
    for value in _ticks(start, stop):
        if value == int(value):
            x, _ = place(value, low)
            parts.append(_label(x, height - 8, _number(value), "middle"))
    for number, line in enumerate(lines):
        parts.append(_polyline([(x, y) for x, y in line.points], place, number))
    legend = tag(
        "figcaption",
        *(
            tag("span", tag("i", "", class_=f"key line{i % 8}"), line.name, class_="legend")
            for i, line in enumerate(lines)
        ),
    )
    svg = tag(
        "svg",
        tag("title", title),
        *parts,
        viewbox=f"0 0 {width} {height}",
        role="img",
        class_="chart",
    )
    return tag("figure", tag("h3", title), svg, legend)


def intervals(rows: Sequence[Interval], title: str) -> Markup:
    """Draw a row a value with its interval, on an axis that holds zero in its middle."""
    ends = [abs(v) for row in rows for v in (row.value, row.low, row.high) if v is not None]
    reach = max([*ends, 1e-3]) * 1.15
    axis = _Axis(first=-reach, last=reach)
    height = ROW * len(rows) + 30
    parts = [_grid(axis, height - 24), _rule(axis.at(0), 4, height - 24, "zero")]
    for i, row in enumerate(rows):
        y = 8 + ROW * i + ROW / 2 - 4
        parts.append(_name(row.name, y))
        if row.low is not None and row.high is not None:
            ends_at = axis.at(row.low), axis.at(row.high)
            parts.append(tag("line", x1=ends_at[0], x2=ends_at[1], y1=y, y2=y, class_="interval"))
        parts.append(tag("circle", cx=axis.at(row.value), cy=y, r=5.0, class_="mean"))
        parts.append(_label(WIDTH - RIGHT + 12, y + 4, f"{row.value:+.4f}", "start"))
    return _figure(title, height, *parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    first: float
    last: float

    def at(self, value: float) -> float:
        share = (value - self.first) / (self.last - self.first)
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)


def _box_row(box: Box, axis: _Axis, top: float) -> Markup:
    middle = top + ROW / 2 - 4
    parts = [_name(box.name, middle)]
    values = np.array([value for _, value in box.values])
    if not len(values):
        return join(*parts, _label(LEFT + 8, middle + 4, "no value", "start"))
    first, median, third = (float(q) for q in np.percentile(values, (25, 50, 75)))
    reach = WHISKER * (third - first)
    inside = values[(values >= first - reach) & (values <= third + reach)]
    left, right = axis.at(float(inside.min())), axis.at(float(inside.max()))
    parts += [
        tag("line", x1=left, x2=right, y1=middle, y2=middle, class_="whisker"),
        tag(
            "rect",
            x=axis.at(first),
            y=middle - 10,
            width=max(1.0, axis.at(third) - axis.at(first)),
            height=20.0,
            rx=3.0,
            class_="box",
        ),
        *_dots(box, axis, middle),
        _rule(axis.at(median), middle - 10, middle + 10, "median"),
    ]
    if box.low is not None and box.high is not None:
        ends = axis.at(box.low), axis.at(box.high)
        y = middle + 15
        parts.append(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="interval"))
    mean = float(values.mean())
    parts.append(tag("circle", cx=axis.at(mean), cy=middle + 15, r=4.0, class_="mean"))
    parts.append(_label(WIDTH - RIGHT + 12, middle + 4, _three(mean), "start"))
    return join(*parts)


def _dots(box: Box, axis: _Axis, middle: float) -> list[Markup]:
    """Give a dot a value; its height, which keeps dots apart, follows from its name."""
    named = len(box.values) <= MOST_DOTS
    dots = []
    for name, value in box.values:
        up = (zlib.crc32(name.encode("utf-8", "replace")) % 17 - 8) * 0.9
        inner = [tag("title", f"{name}: {_three(value)}")] if named else []
        dots.append(tag("circle", *inner, cx=axis.at(value), cy=middle + up, r=2.4, class_="dot"))
    return dots


def _polyline(points: Sequence[tuple[float, float | None]], place: object, number: int) -> Markup:
    assert callable(place)
    steps, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        right, down = place(x, y)
        steps.append(f"{pen}{right:.1f} {down:.1f}")
        pen = "L"
    return tag("path", d=" ".join(steps), class_=f"curve line{number % 8}")


def _figure(title: str, height: float, *parts: Markup) -> Markup:
    svg = tag(
        "svg",
        tag("title", title),
        *parts,
        viewbox=f"0 0 {WIDTH} {height:.0f}",
        role="img",
        class_="chart wide",
    )
    return tag("figure", svg)


def _grid(axis: _Axis, bottom: float) -> Markup:
    parts = []
    for value in _ticks(axis.first, axis.last):
        parts.append(_rule(axis.at(value), 4, bottom, "grid"))
        parts.append(_label(axis.at(value), bottom + 16, _number(value), "middle"))
    return join(*parts)


def _rule(x: float, top: float, bottom: float, name: str) -> Markup:
    return tag("line", x1=x, x2=x, y1=top, y2=bottom, class_=name)


def _name(name: str, y: float) -> Markup:
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return tag(
        "text", tag("title", name), short, x=LEFT - 12, y=y + 4, text_anchor="end", class_="rowname"
    )


def _label(x: float, y: float, content: str, anchor: str) -> Markup:
    return tag("text", content, x=x, y=y, text_anchor=anchor)


def _ticks(first: float, last: float) -> list[float]:
    """Give some four to eight round numbers from `first` to `last`."""
    raw = (last - first) / 5
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    count = math.floor(last / step + 1e-9) - math.ceil(first / step - 1e-9)
    start = math.ceil(first / step - 1e-9)
    return [round((start + i) * step, 10) for i in range(count + 1)]


def _nice_span(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = (high - low) * 0.06 or max(abs(high) * 0.1, 0.1)
    return (0.0 if 0 <= low < margin else low - margin), high + margin


def _number(value: float) -> str:
    return f"{value:.6g}"


def _three(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
