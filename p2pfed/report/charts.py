"""Charts as inline SVG: no script, no font or file from elsewhere, fit for paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
TICKS = 4
RELIABILITY_SIZE = 240


@dataclass(frozen=True, slots=True)
class Point:
    """A value after a round, with its confidence interval where known."""

    round_number: int
    value: float
    interval: tuple[float, float] | None = None


class _Axes:
    """From values to places in the picture."""

    def __init__(
        self, x_range: tuple[float, float], y_range: tuple[float, float], size: tuple[int, int]
    ) -> None:
        self._x, self._y = _widened(x_range), _widened(y_range)
        self._width, self._height = size
        self.parts: list[str] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        (x_low, x_high), (y_low, y_high) = self._x, self._y
        across = (x - x_low) / (x_high - x_low) * (self._width - LEFT - RIGHT)
        up = (y - y_low) / (y_high - y_low) * (self._height - TOP - BOTTOM)
        return LEFT + across, self._height - BOTTOM - up

    def text_of(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))

    def draw_frame(self, x_format: str, y_format: str) -> None:
        for at in range(TICKS + 1):
            y = self._y[0] + at / TICKS * (self._y[1] - self._y[0])
            (left, height), (right, _) = self.place(self._x[0], y), self.place(self._x[1], y)
            self.parts.append(
                f'<line class="grid" x1="{left:.1f}" y1="{height:.1f}" x2="{right:.1f}" '
                f'y2="{height:.1f}"/><text x="{left - 6:.1f}" y="{height + 4:.1f}" '
                f'text-anchor="end">{y:{y_format}}</text>'
            )
        for x, anchor in ((self._x[0], "start"), (self._x[1], "end")):
            across, _ = self.place(x, self._y[0])
            self.parts.append(
                f'<text x="{across:.1f}" y="{self._height - 8}" text-anchor="{anchor}">'
                f"{x:{x_format}}</text>"
            )

    def svg(self, title: str) -> str:
        return (
            f'<svg role="img" viewBox="0 0 {self._width} {self._height}" '
            f'width="{self._width}" height="{self._height}"><title>{escape(title)}</title>'
            f"{''.join(self.parts)}</svg>"
        )


def line_chart(title: str, points: Sequence[Point]) -> str:
    """A value over the rounds, its confidence interval as a band; "" of fewer than two points."""
    if len(points) < 2:
        return ""
    heights = [point.value for point in points]
    heights += [end for point in points if point.interval is not None for end in point.interval]
    axes = _Axes(
        (points[0].round_number, points[-1].round_number),
        (min(heights), max(heights)),
        (WIDTH, HEIGHT),
    )
    axes.draw_frame(".0f", ".3g")
    known = [(p.round_number, p.interval) for p in points if p.interval is not None]
    if len(known) > 1:
        upper = [(at, ends[1]) for at, ends in known]
        lower = [(at, ends[0]) for at, ends in reversed(known)]
        axes.parts.append(f'<polygon class="band" points="{axes.text_of(upper + lower)}"/>')
    line = axes.text_of([(point.round_number, point.value) for point in points])
    axes.parts.append(f'<polyline class="line" points="{line}"/>')
    return axes.svg(title)


def reliability_chart(points: Sequence[tuple[float, float]]) -> str:
    """Observed share over predicted probability; a perfect model lies on the diagonal."""
    if not points:
        return ""
    axes = _Axes((0.0, 1.0), (0.0, 1.0), (RELIABILITY_SIZE + LEFT, RELIABILITY_SIZE + BOTTOM))
    axes.draw_frame(".0f", ".2f")
    axes.parts.append(f'<polyline class="ideal" points="{axes.text_of([(0, 0), (1, 1)])}"/>')
    axes.parts.append(f'<polyline class="line" points="{axes.text_of(points)}"/>')
    for x, y in (axes.place(*point) for point in points):
        axes.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return axes.svg("observed share over predicted probability")


def _widened(ends: tuple[float, float]) -> tuple[float, float]:
    """A range that is none, given a width."""
    low, high = ends
    if high > low:
        return low, high
    return low - max(abs(low), 1.0) / 100, high + max(abs(high), 1.0) / 100
