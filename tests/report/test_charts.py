import re

import pytest

from nnseg.report.charts import Box, Interval, Line, box_plot, curves, intervals


def attributes(svg: str, kind: str, name: str) -> list[float]:
    found = re.findall(rf'<(?:line|rect|circle)[^>]*class="{kind}"[^>]*>', svg)
    return [float(re.search(rf' {name}="([^"]+)"', one)[1]) for one in found]  # type: ignore[index]


def test_a_box_has_its_median_mean_and_dots_on_the_axis() -> None:
    values = tuple((f"case {v}", v) for v in (0.0, 0.5, 0.6, 0.7, 1.0))
    svg = box_plot([Box(name="liver", values=values, low=0.4, high=0.8)], "t", span=(0.0, 1.0))
    dots = attributes(svg, "dot", "cx")
    left, right = min(dots), max(dots)
    at = [left + (right - left) * v for v in (0.5, 0.6, 0.7)]
    assert attributes(svg, "median", "x1") == [pytest.approx(at[1], abs=0.01)]
    assert attributes(svg, "box", "x") == [pytest.approx(at[0], abs=0.01)]
    assert attributes(svg, "box", "width") == [pytest.approx(at[2] - at[0], abs=0.01)]
    assert attributes(svg, "mean", "cx") == [pytest.approx(left + (right - left) * 0.56, abs=0.01)]
    assert attributes(svg, "whisker", "x1")[0] > left  # 0 lies beyond the whisker
    assert "case 0.5: 0.500" in svg


def test_a_row_without_values_says_so() -> None:
    assert "no value" in box_plot([Box(name="cyst", values=())], "t")


def test_the_same_values_give_the_same_drawing() -> None:
    boxes = [Box(name="a", values=(("x", 0.2), ("y", 0.2)))]
    assert box_plot(boxes, "t") == box_plot(boxes, "t")
    heights = attributes(box_plot(boxes, "t"), "dot", "cy")
    assert len(set(heights)) == 2


def test_a_gap_in_a_line_stays_a_gap() -> None:
    line = Line(name="dice", points=((1, 0.1), (2, 0.2), (3, None), (4, 0.3), (5, 0.2)))
    (path,) = re.findall(r' d="([^"]+)"', curves([line], "t"))
    assert [step[0] for step in path.split(" ") if step[0].isalpha()] == ["M", "L", "M", "L"]


def test_lines_without_values_are_words() -> None:
    assert curves([Line(name="dice", points=((1, None),))], "t") == '<p class="note">no values</p>'


def test_zero_is_in_the_middle_of_differences() -> None:
    svg = intervals([Interval(name="a", value=0.0, low=-0.1, high=0.3)], "t")
    (zero,) = attributes(svg, "zero", "x1")
    assert attributes(svg, "mean", "cx") == [pytest.approx(zero)]
    (low,), (high,) = attributes(svg, "interval", "x1"), attributes(svg, "interval", "x2")
    assert zero - low == pytest.approx((high - zero) / 3, rel=1e-3)


def test_names_in_charts_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    box = Box(name=evil, values=((evil, 0.5),))
    drawn = [box_plot([box], evil), curves([Line(name=evil, points=((1, 1.0),))], evil)]
    drawn.append(intervals([Interval(name=evil, value=1, low=None, high=None)], evil))
    assert not any("<script" in svg for svg in drawn)
