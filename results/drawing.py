"""What the scripts that draw have in common: SVG pictures, and panels with curves.

Every picture has a light page of its own, so that it can be read in a dark theme, too. Readers who do not see red or
green can tell the colours of curves apart. Places are in pixels from the left and from the top.
"""

import html
import math
import typing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def svg(width, height, parts, style=""):
    """A picture of this size, with its parts on a light page.  style: CSS."""
    style = f"<style>text{{font:11px sans-serif}}.page{{fill:#fdfdfc}}.grid{{stroke:#ddd}}{style}</style>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
    page = '<rect class="page" width="100%" height="100%" rx="10"/>'
    return f'{head} viewBox="0 0 {width:.0f} {height:.0f}">{style}{page}{"".join(parts)}</svg>\n'


def svg_text(x, y, words, anchor="start", colour="#222"):
    """Words that start, end or have their "middle" at a point."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}">{html.escape(words)}</text>'


def svg_rect(kind, x, y, width, height, opacity=1.0, hover=None):
    """A rectangle of a class in the style.  hover: words that a browser shows under the mouse."""
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    title = f"<title>{html.escape(hover)}</title>" if hover else ""
    return f'<rect class="{kind}" {size} fill-opacity="{opacity:.3f}">{title}</rect>'


def names(ends):
    """The names of curves beside their ends, one below the other where they would overlap.

    ends: [(x, y, name, colour), ...].
    """
    parts, above = [], 0
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        above = max(y, above + 13)
        parts.append(svg_text(x + 7, above + 4, name, colour=colour))
    return parts


class Panel(typing.NamedTuple):
    """A place for curves. The x axis goes from 0 to `reach`, and the logarithmic y axis from `low` to `high`."""

    left: float
    right: float
    top: float
    bottom: float
    reach: float
    low: float
    high: float

    def place(self, x, y):
        """The point of these values."""
        height = math.log(y / self.low) / math.log(self.high / self.low)
        return self.left + (self.right - self.left) * x / self.reach, self.bottom + (self.top - self.bottom) * height

    def grid(self, x_ticks, y_ticks, x_title):
        """The axes.  x_ticks, y_ticks: {value: label}."""
        parts = [svg_text((self.left + self.right) / 2, self.bottom + 38, x_title, "middle")]
        for value, label in y_ticks.items():
            _, y = self.place(0, value)
            parts.append(f'<path class="grid" d="M{self.left},{y:.1f}H{self.right}"/>')
            parts.append(svg_text(self.left - 8, y + 4, label, "end"))
        for value, label in x_ticks.items():
            x, _ = self.place(value, self.low)
            parts.append(f'<path class="grid" d="M{x:.1f},{self.bottom}v5"/>')
            parts.append(svg_text(x, self.bottom + 18, label, "middle"))
        return parts

    def curve(self, points, colour, kind="curve"):
        """A line through points (x, y).  kind: a class in the style."""
        line = "L".join("{:.1f},{:.1f}".format(*self.place(x, y)) for x, y in points)
        return f'<path class="{kind}" fill="none" stroke="{colour}" d="M{line}h0"/>'  # h0: also one point is seen
