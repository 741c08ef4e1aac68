"""Line charts as SVG text, to stand in an HTML page."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 30, 40
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#666666")
TICKS = 5
Series = Mapping[str, Sequence[tuple[float, float]]]


def chart(title: str, across: str, series: Series, log: bool = False) -> str:
    """One chart with a legend. Points that are not finite, or not above 0 where `log`, are left out."""

    def height(y: float) -> float:
        return math.log10(y) if log else y

    kept = {
        name: [(x, height(y)) for x, y in points if y is not None and math.isfinite(y) and (y > 0 or not log)]
        for name, points in series.items()
    }
    every = [point for points in kept.values() for point in points]
    if not every:
        return f"<p>{html.escape(title)}: nothing to show.</p>"
    (x0, x1), (y0, y1) = (_span([point[axis] for point in every]) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return right, HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{html.escape(title)}</text>']
    for tick in range(TICKS):
        share = tick / (TICKS - 1)
        y = y0 + share * (y1 - y0)
        _, row = at(x0, y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{row:.1f}" y2="{row:.1f}" stroke="#e5e5e5"/>')
        label = f"{10**y if log else y:,.4g}"
        parts.append(f'<text x="{LEFT - 6}" y="{row + 4:.1f}" text-anchor="end">{label}</text>')
    whole = sorted({x for x, _ in every})
    for x in whole[:: -(-len(whole) // (2 * TICKS))]:
        column, _ = at(x, y0)
        parts.append(f'<text x="{column:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{html.escape(across)}</text>')
    for number, (name, points) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="2.5" fill="{}"/>'.format(*at(x, y), colour) for x, y in points]
        row = TOP + 12 + 15 * number
        where = f'x="{WIDTH - RIGHT - 4}" y="{row}" text-anchor="end"'
        parts.append(f'<text {where} fill="{colour}">{html.escape(name)}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, a little apart where they are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
