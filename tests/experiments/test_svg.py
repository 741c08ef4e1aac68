"""Charts and heat maps: what is drawn where, and that it is SVG."""

import xml.etree.ElementTree as ElementTree

import pytest

from tpdist.experiments.svg import COLUMNS, bars, chart, heat, standalone

SVG = "{http://www.w3.org/2000/svg}"


def cells_of(drawing: str) -> list[tuple[float, float, str]]:
    """x, y and colour of a heat map's cells; the others are its legend's."""
    rects = [rect.attrib for rect in ElementTree.fromstring(drawing).iter(f"{SVG}rect")]
    return [(float(r["x"]), float(r["y"]), r["fill"]) for r in rects][:-32]


def test_a_chart_leaves_out_what_it_cannot_draw():
    drawing = chart("a < b", "x", {"one": [(1, 0.0), (2, 10.0), (3, float("nan")), (4, 1000.0)]}, log=True)
    root = ElementTree.fromstring(drawing)
    assert [c.get("cx") for c in root.iter(f"{SVG}circle")] == ["58.0", "406.0"]
    assert "nothing to show" in chart("empty", "x", {"one": [(1, 0.0)]}, log=True)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12, 1e12])
def test_a_chart_of_one_value_has_it_in_the_middle(value: float):
    root = ElementTree.fromstring(chart("one", "x", {"one": [(1, value), (2, value)]}))
    assert {circle.get("cy") for circle in root.iter(f"{SVG}circle")} == {"131.0"}


def test_bars_begin_at_0_and_stand_side_by_side():
    drawing = bars("a", "rank", {"none": [], "one": [(0, 10.0), (1, 20.0)], "two": [(0, 5.0)]})
    assert 'class="c0"' not in drawing
    assert "none" not in drawing.replace('fill="none"', "")
    rects = [rect.attrib for rect in ElementTree.fromstring(drawing).iter(f"{SVG}rect")][:3]
    assert [float(r["height"]) for r in rects] == pytest.approx([99, 198, 49.5], abs=0.11)
    assert {round(float(r["y"]) + float(r["height"])) for r in rects} == {230}
    first, other, beside = (float(r["x"]) for r in rects)
    assert first < beside < other
    assert beside == pytest.approx(first + float(rects[0]["width"]), abs=0.11)


def test_a_legend_names_what_is_drawn_in_its_own_colour():
    points = {"nothing": [(1, 0.0)], "a < b": [(1, 1.0), (2, 2.0)]}
    root = ElementTree.fromstring(chart("a", "x", points, log=True))
    (group,) = [g for g in root.iter(f"{SVG}g") if g.find(f"{SVG}text") is not None]
    assert group.get("class") == "c1"
    assert group.findtext(f"{SVG}text") == "a < b"


def test_a_heat_map_goes_from_dark_to_light_and_leaves_gaps():
    found = cells_of(heat("a < b", "epoch", [(1, [1.0, 10.0]), (2, [None, 0.0]), (3, [100.0, float("inf")])]))
    (low, middle, high) = found
    assert (low[2], high[2]) == ("#301254", "#fde725")
    assert middle[2] == "#21918c"  # the middle of the logarithms
    assert low[0] == middle[0] < high[0]  # columns from the left
    assert low[1] == high[1] > middle[1]  # values from the bottom
    assert "nothing to show" in heat("empty", "epoch", [(1, [0.0, None])])


def test_a_heat_map_of_many_columns_shows_some_of_them_and_the_last():
    every = [(x, [float(x)]) for x in range(1, 10 * COLUMNS + 4)]
    found = cells_of(heat("many", "epoch", every))
    assert COLUMNS // 2 < len(found) <= COLUMNS
    assert found[-1][2] == "#fde725"


def test_a_chart_in_a_file_of_its_own_brings_its_colours():
    text = standalone(chart("one", "x", {"one": [(1, 1.0), (2, 2.0)]}))
    root = ElementTree.fromstring(text)
    style = root.find(f"{SVG}style")
    assert style is not None
    assert style.text is not None
    assert "prefers-color-scheme: dark" in style.text
    used = {part.get("class") for part in root.iter() if part.get("class")}
    assert used
    assert all(f".{name}{{" in style.text for name in used)
