"""Learning curves: the validation perplexity of runs over their time, in one picture.

    python -m results.curves out/lstm out/cell out/attention --file results/curves.svg

Each run's log.csv is one line, with a dot for each validation. Perplexity has a logarithmic scale.
"""

import csv
import math
import pathlib

from data import InputError, Parser, run, write_atomically

from sample import svg, svg_text

LEFT, TOP, WIDTH, HEIGHT = 40, 30, 540, 320  # of the part of the picture that has the lines, in pixels
COLOURS = ("#0b5394", "#d95f02", "#1b9e77", "#7570b3", "#666666")


def read_curve(path):
    """A log.csv -> its points (minutes, validation perplexity).  Raises InputError if it has fewer than two."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            points = [(float(row["seconds"]) / 60, float(row["valid_ppl"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise InputError(f"{path} is not a log.csv that train.py wrote") from None
    points = [(minutes, ppl) for minutes, ppl in points if 0 < minutes < 1e7 and 1 <= ppl < math.inf]
    if len(points) < 2:
        raise InputError(f"{path} has fewer than two validations to draw a line through: try a smaller --valid-every")
    return points


def curves_svg(curves):
    """Learning curves, a list of (name, points) with points as `read_curve` returns them, as an SVG picture."""
    minutes, perplexities = zip(*(point for _, points in curves for point in points))
    end, low, high = max(minutes), math.log(min(perplexities) / 1.25), math.log(max(perplexities) * 1.25)

    def place(minutes, perplexity):
        return LEFT + WIDTH * minutes / end, TOP + HEIGHT * (high - math.log(perplexity)) / (high - low)

    parts = [svg_text(4, 14, "validation perplexity"), svg_text(LEFT + WIDTH, TOP + HEIGHT + 34, "minutes", "end")]
    step = next(10**k * m for k in range(-4, 7) for m in (1, 2, 5) if 10**k * m * 8 >= end)  # at most 8 steps
    for n in range(int(end / step) + 1):
        x, _ = place(n * step, 1)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}v{HEIGHT}"/>')
        parts.append(svg_text(x, TOP + HEIGHT + 16, f"{n * step:g}", "middle"))
    for tick in (10**k * m for k in range(9) for m in (1, 1.5, 2, 3, 4, 5, 7)):
        _, y = place(0, tick)
        if TOP <= y <= TOP + HEIGHT:
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDTH}"/>')
            parts.append(svg_text(LEFT - 6, y + 4, f"{tick:g}", "end"))
    label_y = -math.inf
    order = sorted(range(len(curves)), key=lambda n: -curves[n][1][-1][1])  # from the top of the picture down
    for n in order:
        name, points = curves[n]
        colour = COLOURS[n % len(COLOURS)]
        dots = [place(*point) for point in points]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in dots)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        label_y = max(dots[-1][1], label_y + 15)  # so that labels do not overlap
        parts.append(svg_text(dots[-1][0] + 8, label_y + 4, f"{name}  {points[-1][1]:.1f}", colour=colour))
    longest = max(len(name) for name, _ in curves)
    return svg(LEFT + WIDTH + 7 * longest + 60, TOP + HEIGHT + 44, parts, ".grid{stroke:#ddd}")


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=pathlib.Path, metavar="out/NAME", help="runs of train.py")
    parser.add_argument("--file", default="curves.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    args = parser.parse_args(argv)
    curves = [(folder.absolute().name, read_curve(folder / "log.csv")) for folder in args.folders]
    write_atomically(args.file, curves_svg(curves).encode())
    print(f"wrote {args.file}: open it in a browser")


if __name__ == "__main__":
    run(main)
