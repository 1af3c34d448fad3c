"""One step of the LSTM as a picture, in the symbols of the equations of lstm_cell.py.

    python -m results.cell --file results/cell.svg
"""

import pathlib
import re

from data import Parser, run_script

from results.drawing import svg

TOP, MIDDLE, GATE, BOTTOM = 100, 205, 300, 388  # the heights of c, of the products, of the gates and of h
GATES = [  # the place of each, its name and function, and what it is for
    (160, "f", "sigmoid", "forget gate", "how much of c to keep"),
    (340, "i", "sigmoid", "input gate", "how much of g to write"),
    (520, "g", "tanh", "candidate", "what to write"),
    (700, "o", "sigmoid", "output gate", "how much to show"),
]
STYLE = """
.step{fill:#f4f6f8;stroke:#d5dbe1}
.sigmoid{fill:#fdf1cf;stroke:#cfa93a}
.tanh{fill:#deeedd;stroke:#6fa368}
.linear{fill:#e3e8f3;stroke:#8797b8}
.circle{fill:#fff;stroke:#444;stroke-width:1.4}
.line{fill:none;stroke:#444;stroke-width:1.4}
.memory{fill:none;stroke:#0b5394;stroke-width:3}
.bridge{fill:none;stroke:#f4f6f8;stroke-width:8}
.tip{fill:#444}.memorytip{fill:#0b5394}
.name{font:600 13px sans-serif;fill:#222}
.formula{font:italic 15px Georgia,'DejaVu Serif',serif;fill:#222}
.small{font:11px sans-serif;fill:#666}
.sign{font:16px sans-serif;fill:#222}
.state{font:italic 20px Georgia,'DejaVu Serif',serif;fill:#222}
"""


def words(x, y, kind, text, anchor="middle"):
    """A text of a class in `STYLE`. Letters and digits after an underscore are lowered."""
    text = re.sub(r"_([a-z0-9]+)", r'<tspan dy="4" font-size="75%">\1</tspan><tspan dy="-4">&#8203;</tspan>', text)
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def box(kind, x, y, width, height, text):
    """A box with its middle at a point, and a text in it."""
    shape = f'x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}" rx="6"'
    return f'<rect class="{kind}" {shape}/>' + words(x, y + 5, "formula", text)


def circle(x, y, sign):
    """A product or a sum."""
    base = y + {"+": 6, "*": 9, ".": 2}[sign]  # where the sign has its line, so that it is in the middle
    return f'<circle class="circle" cx="{x}" cy="{y}" r="14"/>' + words(x, base, "sign", sign)


def arrow(path, kind="line"):
    """A line along a path of horizontal and vertical parts, for example "M0,10H20V5", with a tip at its end."""
    x = y = 0
    for command, numbers in re.findall(r"([MHV])([\d.,]+)", path):
        last = x, y
        *before, end = (float(number) for number in numbers.split(","))
        x, y = (*before, end) if command == "M" else (end, y) if command == "H" else (x, end)
    dx, dy = ((x > last[0]) - (x < last[0]), (y > last[1]) - (y < last[1]))
    tip = f"M{x},{y}l{-9 * dx - 4 * dy},{-9 * dy - 4 * dx}l{8 * dy},{8 * dx}z"
    return f'<path class="{kind}" d="{path}"/><path class="{"memorytip" if kind == "memory" else "tip"}" d="{tip}"/>'


def draw():
    """The picture, as SVG."""
    f, i, g, o = (x for x, *_ in GATES)
    out = 855  # where h' goes up
    parts = ['<rect class="step" x="70" y="50" width="830" height="380" rx="18"/>']
    # The memory, from left to right.
    parts += [arrow(f"M30,{TOP}H{f - 14}", "memory"), arrow(f"M{f + 14},{TOP}H{i - 14}", "memory")]
    parts += [arrow(f"M{i + 14},{TOP}H945", "memory")]
    parts += [words(50, TOP - 10, "state", "c"), words(922, TOP - 10, "state", "c'")]
    parts += [words((f + i) / 2, TOP - 12, "formula", "f * c")]
    parts += [words(i + 22, TOP - 12, "formula", "c' = f * c + i * g", "start")]
    # What enters at the bottom, and z.
    parts += [arrow(f"M30,{BOTTOM}H100"), arrow(f"M140,465V{BOTTOM + 20}")]
    parts += [words(50, BOTTOM - 10, "state", "h"), words(124, 462, "state", "x")]
    parts += [box("linear", 440, BOTTOM, 680, 40, "z = W_ih x + b_ih + W_hh h + b_hh")]
    for x, name, function, title, meaning in GATES:
        parts += [arrow(f"M{x},{BOTTOM - 20}V{GATE + 19}")]
        parts += [words(x + 8, GATE + 49, "formula", f"z_{name}", "start")]
        parts += [box(function, x, GATE, 136, 38, f"{name} = {function}(z_{name})")]
        parts += [words(x + 10, GATE - 53, "name", title, "start"), words(x + 10, GATE - 38, "small", meaning, "start")]
    # The products and the sum.
    above = GATE - 19
    parts += [arrow(f"M{f},{above}V{TOP + 14}"), arrow(f"M{i},{above}V{MIDDLE + 14}")]
    parts += [arrow(f"M{g},{above}V{MIDDLE}H{i + 14}")]
    parts += [arrow(f"M{i},{MIDDLE - 14}V{TOP + 14}"), words(i + 9, 163, "formula", "i * g", "start")]
    parts += [circle(f, TOP, "*"), circle(i, TOP, "+"), circle(i, MIDDLE, "*")]
    # What is shown of the memory.
    parts += [f'<circle class="memorytip" cx="{o}" cy="{TOP}" r="4"/>', arrow(f"M{o},{TOP}V133")]
    parts += [box("tanh", o, 150, 70, 34, "tanh"), arrow(f"M{o},167V{MIDDLE - 14}")]
    parts.append(arrow(f"M{o},{above}V{MIDDLE + 14}"))
    parts += [f'<path class="bridge" d="M{out},{TOP - 12}V{TOP + 12}"/>', arrow(f"M{o + 14},{MIDDLE}H{out}V20")]
    parts += [arrow(f"M{out},{MIDDLE}V{BOTTOM}H945"), f'<circle class="tip" cx="{out}" cy="{MIDDLE}" r="3.5"/>']
    parts += [circle(o, MIDDLE, "*"), words(o + 22, MIDDLE - 10, "formula", "h' = o * tanh(c')", "start")]
    parts += [words(out + 16, 36, "state", "h'"), words(922, BOTTOM - 10, "state", "h'")]
    return svg(970, 485, parts, STYLE)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("--file", default="cell.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    pathlib.Path(parser.parse_args(argv).file).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
