"""Line charts, bars and heat maps as SVG text, for an HTML page or, by `standalone`, for a file of their own.

Colours are classes, so that they follow the reader's light or dark scheme.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 32, 40
LINE = 17  # of a legend
TICKS = 5
# light and dark, told apart by people who do not see all colours (after Paul Tol's schemes)
LIGHT = ("#3b6fa5", "#c8324a", "#1f7a36", "#8a6d00", "#93307a", "#00748f", "#666666")
DARK = ("#7fb4ea", "#ff8c9c", "#74cf86", "#dfc251", "#e888c6", "#63d2ee", "#b0b0b0")
# of a heat map, from low to high; lightness rises with the value, so it does without colour too
RAMP = ((48, 18, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
COLUMNS = 96  # of a heat map, at most
Series = Mapping[str, Sequence[tuple[float, float]]]
Curves = Mapping[str, Sequence[tuple[float, float | None]]]
Cells = Sequence[tuple[float, Sequence[float | None]]]


def style() -> str:
    """The CSS of all charts."""

    def colours(names: Sequence[str]) -> str:
        return "".join(f".c{i}{{color:{name}}}" for i, name in enumerate(names))

    dark = f".ink{{fill:#e4e4e4}}.faint{{fill:#a8a8a8}}.grid{{stroke:#3a3f47}}{colours(DARK)}"
    return (
        f".ink{{fill:#222}}.faint{{fill:#5a5a5a}}.grid{{stroke:#e2e2e2}}{colours(LIGHT)}"
        f"@media (prefers-color-scheme: dark){{{dark}}}"
    )


def standalone(drawing: str) -> str:
    """A chart as the content of an SVG file, with the CSS and a ground of its own."""
    ground = ".ground{fill:#fff}@media (prefers-color-scheme: dark){.ground{fill:#16181d}}"
    opening, rest = drawing.split(">", 1)
    return f'{opening}><style>{style()}{ground}</style><rect class="ground" width="100%" height="100%"/>{rest}\n'


def chart(title: str, across: str, series: Curves, log: bool = False) -> str:
    """Lines with a legend beneath. Points that are not finite, or not above 0 where `log`, are left out."""

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
    right, up = _scale(x0, x1, LEFT, WIDTH - RIGHT), _scale(y0, y1, HEIGHT - BOTTOM, TOP)
    parts = [_title(title, across)]
    for y in _powers(y0, y1) if log else _round(y0, y1):
        parts += _grid(up(y), _number(10**y if log else y))
    parts += _across([(x, _number(x)) for x in _round(x0, x1, whole=True)], right)
    for number, points in enumerate(kept.values()):
        path = " ".join(f"{right(x):.1f},{up(y):.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{right(x):.1f}" cy="{up(y):.1f}" r="2.4"/>' for x, y in points)
        line = f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.8"/>'
        parts.append(f'<g class="c{number % len(LIGHT)}" fill="currentColor">{line}{dots}</g>')
    return _with_legend(parts, title, kept, [name for name, points in kept.items() if points])


def bars(title: str, across: str, series: Series) -> str:
    """Bars from 0 up, those of one x side by side, with a legend beneath. A series may be empty, to keep its colour."""
    every = [point for points in series.values() for point in points]
    if not every:
        return f"<p>{html.escape(title)}: nothing to show.</p>"
    x0, x1 = min(x for x, _ in every), max(x for x, _ in every) + 1
    _, top = _span([0.0, *(y for _, y in every)])
    right, up = _scale(x0, x1, LEFT, WIDTH - RIGHT), _scale(0, top, HEIGHT - BOTTOM, TOP)
    parts = [_title(title, across)]
    for y in _round(0, top):
        parts += _grid(up(y), _number(y))
    parts += _across([(x + 0.5, _number(x)) for x in _round(x0, x1 - 1, whole=True)], right)
    shown = [name for name, points in series.items() if points]
    each = 0.8 / len(shown)  # of the place of an x
    numbers = {name: number for number, name in enumerate(series)}
    for at, name in enumerate(shown):
        rects = "".join(
            f'<rect x="{right(x + 0.1 + each * at):.1f}" y="{up(y):.1f}" width="{right(each) - right(0):.1f}" '
            f'height="{up(0) - up(y):.1f}"/>'
            for x, y in series[name]
        )
        parts.append(f'<g class="c{numbers[name] % len(LIGHT)}" fill="currentColor">{rects}</g>')
    return _with_legend(parts, title, series, shown)


def heat(title: str, across: str, cells: Cells) -> str:
    """Columns of (x, values from the bottom up) as colours of the values' logarithms; what is not above 0 stays empty.

    Where there are more than COLUMNS, the last of every run of neighbours is shown.
    """
    step = -(-len(cells) // COLUMNS)
    shown = [cells[i] for i in range(len(cells) - 1, -1, -step)][::-1]
    logs = [[math.log10(v) if v and math.isfinite(v) and v > 0 else None for v in column] for _, column in shown]
    known = [value for column in logs for value in column if value is not None]
    if not known:
        return f"<p>{html.escape(title)}: nothing to show.</p>"
    (low, high), rows = _span(known), max(map(len, logs))
    right, up = _scale(0, len(shown), LEFT, WIDTH - RIGHT), _scale(0, rows, HEIGHT - BOTTOM, TOP)
    wide, high_each = right(1) - right(0), up(0) - up(1)
    parts = [_title(title, across), '<g shape-rendering="crispEdges">']
    for i, column in enumerate(logs):
        for j, value in enumerate(column):
            if value is not None:
                at = f'x="{right(i):.1f}" y="{up(j + 1):.1f}" width="{wide + 0.3:.1f}" height="{high_each + 0.3:.1f}"'
                parts.append(f'<rect {at} fill="{_colour((value - low) / (high - low))}"/>')
    parts.append("</g>")
    for j in _round(1, rows, whole=True):
        row = up(j - 0.5) + 4
        parts.append(f'<text class="faint" x="{LEFT - 6}" y="{row:.1f}" text-anchor="end">{j:g}</text>')
    places = [x for x, _ in shown]
    marked = {min(range(len(places)), key=lambda i: abs(places[i] - x)) for x in _round(*_span(places), whole=True)}
    parts += _across([(i + 0.5, f"{places[i]:g}") for i in sorted(marked)], right)
    parts.append(_ramp(_number(10**low, 3), _number(10**high, 3)))
    return _svg("".join(parts), HEIGHT + LINE + 6, title)


def _ramp(low: str, high: str) -> str:
    """The legend of a heat map."""
    pieces, width = 32, 140
    rects = "".join(
        f'<rect x="{LEFT + 44 + i * width / pieces:.1f}" y="{HEIGHT + 3}" width="{width / pieces + 0.3:.1f}" '
        f'height="10" fill="{_colour(i / (pieces - 1))}"/>'
        for i in range(pieces)
    )
    ends = [(LEFT + 38, "end", low), (LEFT + 50 + width, "start", high)]
    return f'<g shape-rendering="crispEdges">{rects}</g>' + "".join(
        f'<text class="faint" x="{x}" y="{HEIGHT + 12}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in ends
    )


def _colour(share: float) -> str:
    """On RAMP, at a share of its way."""
    at = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    mixed = (round(a + (at - i) * (b - a)) for a, b in zip(RAMP[i], RAMP[i + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _number(value: float, digits: int = 6) -> str:
    """1200 -> 1,200; without an exponent where a person reads it so."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{float(f'{value:.{digits}g}'):,.{digits}g}" if plain else f"{value:.3g}"


def _title(title: str, across: str) -> str:
    return (
        f'<text class="ink" x="4" y="18" font-weight="600" font-size="13">{html.escape(title)}</text>'
        f'<text class="faint" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{html.escape(across)}</text>'
    )


def _grid(row: float, label: str) -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{row:.1f}" y2="{row:.1f}"/>',
        f'<text class="faint" x="{LEFT - 6}" y="{row + 4:.1f}" text-anchor="end">{label}</text>',
    ]


def _with_legend(parts: list[str], title: str, series: Iterable[str], shown: Sequence[str]) -> str:
    """The names that have something to show beneath, in the colours of their places in the series."""
    colours = {name: f"c{number % len(LIGHT)}" for number, name in enumerate(series)}
    names = shown if len(colours) > 1 else []
    for number, name in enumerate(names):
        row = HEIGHT + 12 + LINE * number
        parts.append(
            f'<g class="{colours[name]}"><rect x="{LEFT}" y="{row - 9}" width="14" height="10" '
            f'fill="currentColor"/><text class="ink" x="{LEFT + 20}" y="{row}">{html.escape(name)}</text></g>'
        )
    return _svg("".join(parts), HEIGHT + (LINE * len(names) + 6 if names else 0), title)


def _across(marks: Sequence[tuple[float, str]], right: Callable[[float], float]) -> list[str]:
    return [
        f'<text class="faint" x="{right(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{text}</text>'
        for x, text in marks
    ]


def _svg(content: str, height: int, title: str) -> str:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    about = f'role="img" aria-label="{html.escape(title)}" font-family="system-ui, sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {about}>{content}</svg>'


def _scale(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    return lambda value: begin + (value - low) / (high - low) * (end - begin)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, a little apart where they are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _round(low: float, high: float, whole: bool = False) -> list[float]:
    """Some TICKS round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    found = [n * step for n in range(first, last + 1)]
    return [low, *[x for x in found if x - low >= step / 2]] if whole and low == int(low) else found


def _powers(low: float, high: float) -> list[float]:
    """Ticks of a logarithm: powers of ten where there are enough of them, else the logarithms of round numbers."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first >= 2:
        return [float(n) for n in range(first, last + 1, -(-(last - first) // TICKS))]
    return [math.log10(x) for x in _round(10**low, 10**high) if x > 0]
