"""The README's picture: blocks of a stream, the boundaries between them, the workers that share them.

python -m tpdist.experiments.picture > tpdist/experiments/blocks.svg
"""

import sys

from tpdist.experiments.svg import standalone

WIDTH, HEIGHT = 760, 330
WORDS = (("the", "cat", "sat"), ("on", "the", "mat"), ("and", "ate", "a"), ("big", "fish", "."))  # a block each
WORKERS = ((16, 340), (404, 340))  # left edge, width; two blocks each
TOP, BOTTOM = 16, 216  # of the workers
MIDDLE = 118  # of the recurrence
SUM = 262  # top of the bar of the θ-gradient
BLOCK, STRIDE, STEP = 150, 170, 33
DIGITS = "₀₁₂₃₄"


def picture() -> str:
    """The content of blocks.svg."""
    lefts = [x + 10 + STRIDE * i for x, _ in WORKERS for i in range(2)]
    parts = [_worker(rank, x, width) for rank, (x, width) in enumerate(WORKERS)]
    parts += [_block(number, x) for number, x in enumerate(lefts)]
    parts += [_boundary(i, lefts[i - 1] + BLOCK - 14, lefts[i] + 14) for i in range(1, len(lefts))]
    (end, begin) = (WORKERS[0][0] + WORKERS[0][1], WORKERS[1][0])
    parts += [_arrow(end - 12, 52, begin + 12, 52), _text((end + begin) / 2, 45, "ĥ₂", "ink")]
    parts += [_arrow(begin + 12, 186, end - 12, 186), _text((end + begin) / 2, 204, "h₂, u₂", "ink")]
    middles = [x + width / 2 for x, width in WORKERS]
    parts += [_arrow(x - 5, BOTTOM + 4, x - 5, SUM - 4) + _arrow(x + 5, SUM - 4, x + 5, BOTTOM + 4) for x in middles]
    parts.append(_box(16, SUM, WIDTH - 32, 28, "faint-line"))
    parts.append(_text(WIDTH / 2, SUM + 19, "gradient of θ: the sum over all workers", "ink"))
    parts.append(_legend())
    about = 'role="img" aria-label="Four blocks of a stream on two workers" font-family="system-ui, sans-serif"'
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    lines = "<style>.faint-line{fill:none;stroke:#8a8f98}.now{stroke:currentColor;fill:none}</style>"
    return standalone(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {about} font-size="13">{lines}{"".join(parts)}</svg>'
    )


def _worker(rank: int, x: float, width: float) -> str:
    box = f'<g class="c0">{_box(x, TOP, width, BOTTOM - TOP, "now")}</g>'
    return box + _text(x + 12, TOP + 22, f"worker {rank}", "ink", "start", bold=True)


def _block(number: int, x: float) -> str:
    """A start, the recurrence over three words, a prediction."""
    parts = [_box(x, 60, BLOCK, 106, "faint-line"), _text(x + BLOCK / 2, 80, f"block {number}", "faint")]
    places = [x + 42 + STEP * i for i in range(3)]
    ends = [x + 14, *places, x + BLOCK - 14]
    reach = [7, 10, 10, 10, 7]  # from the middle of each to its edge
    for a, b, before, after in zip(ends, ends[1:], reach, reach[1:], strict=False):
        parts.append(_arrow(a + before, MIDDLE, b - after - 1, MIDDLE))
    for place, word in zip(places, WORDS[number], strict=True):
        parts.append(_box(place - 10, MIDDLE - 10, 20, 20, "faint-line", round_by=3))
        parts.append(_text(place, MIDDLE + 4, "g", "faint"))
        parts.append(_text(place, MIDDLE + 34, word, "ink"))
    if number == 0:  # the window's first start is no variable
        parts.append(f'<circle class="faint" cx="{x + 14}" cy="{MIDDLE}" r="6"/>')
    if number == len(WORDS) - 1:
        parts.append(_prediction(x + BLOCK - 14))
    return "".join(parts)


def _boundary(number: int, end: float, begin: float) -> str:
    """From the prediction of a block to the target that is the next one's start."""
    line = f'<path class="now" stroke-width="2" stroke-dasharray="3 3" d="M{end + 7} {MIDDLE}H{begin - 7}"/>'
    target = f'<g class="c0"><circle cx="{begin}" cy="{MIDDLE}" r="7" fill="currentColor"/></g>'
    names = _text(end, MIDDLE - 14, f"ĥ{DIGITS[number]}", "ink") + _text(
        begin, MIDDLE - 14, f"h{DIGITS[number]}", "ink"
    )
    between_workers = begin - end > STRIDE - BLOCK + 28
    name = _text((end + begin) / 2, BOTTOM + 20 if between_workers else 190, f"boundary {number}", "faint")
    return f'<g class="c1">{line}</g>{_prediction(end)}{target}{names}{name}'


def _prediction(x: float) -> str:
    return f'<g class="c0"><circle class="now" stroke-width="2" cx="{x}" cy="{MIDDLE}" r="6"/></g>'


def _legend() -> str:
    y = HEIGHT - 14
    dash = f'<path class="now" stroke-width="2" stroke-dasharray="3 3" d="M438 {y - 4}h26"/>'
    return "".join(
        [
            f'<g class="c0"><circle cx="24" cy="{y - 4}" r="6" fill="currentColor"/>',
            f'<circle class="now" stroke-width="2" cx="214" cy="{y - 4}" r="5"/></g><g class="c1">{dash}</g>',
            _text(36, y, "target, free to move", "ink", "start"),
            _text(226, y, "prediction of the block before", "ink", "start"),
            _text(472, y, "residual, to become 0", "ink", "start"),
        ]
    )


def _box(x: float, y: float, width: float, height: float, name: str, round_by: int = 8) -> str:
    return f'<rect class="{name}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{round_by}"/>'


def _text(x: float, y: float, text: str, name: str, anchor: str = "middle", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text class="{name}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight}>{text}</text>'


def _arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """Along an axis. The head is drawn, since markers do not take the line's colour everywhere."""
    right, down = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    ax, ay = x1 - 5 * right, y1 - 5 * down
    head = f"M{ax - 3 * down:g} {ay - 3 * right:g}L{x1:g} {y1:g}L{ax + 3 * down:g} {ay + 3 * right:g}"
    return f'<path class="faint-line" d="M{x0:g} {y0:g}L{x1:g} {y1:g}{head}"/>'


if __name__ == "__main__":
    sys.stdout.write(picture())
