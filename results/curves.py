"""Learning curves: how perplexity falls in training, as a picture.

    python -m results.curves out/*/log.csv --file curves.svg

Each run has a colour and the name of its folder. The solid line is the perplexity on the validation text. The dashed
line is that on the training text: the mean since the validation before, while the model still learned and with dropout.
On the left they stand by epochs, on the right by the time that the training took.
"""

import csv
import itertools
import math
import pathlib

from data import InputError, Parser, run_script  # before torch, see there

from results.drawing import COLOURS, Panel, names, svg, svg_text
from train import perplexity

STYLE = """path{stroke-linecap:round}.valid{stroke-width:2}.train{stroke-dasharray:3 4}
text{paint-order:stroke;stroke:#fdfdfc;stroke-width:3px}"""
MARKS = [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], *([k / 100 for k in range(100, 1000, step)] for step in (50, 20, 5))]


def read_log(path):
    """The rows of a log.csv -> a list of (epoch, seconds, training perplexity, validation perplexity).

    Raises InputError for another file, and OSError for one that cannot be read.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns = [header.index(name) for name in ("epoch", "seconds", "train_loss", "valid_loss")]
        rows = [[float(row[column]) for column in columns] for row in rows]
    except (IndexError, ValueError, csv.Error):
        raise InputError(f"{path} is not a log of train.py: give the log.csv of a run") from None
    if not rows:
        raise InputError(f"{path} has no validation yet: leave it out, or wait for the first one")
    return [(epoch, seconds, perplexity(train), perplexity(valid)) for epoch, seconds, train, valid in rows]


def log_ticks(low, high):
    """At least four round numbers between two numbers above 0, if possible -> {number: label}."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in MARKS:
        ticks = [mark * 10.0**power for power in powers for mark in marks if low <= mark * 10.0**power <= high]
        if len(ticks) >= 4:
            break
    return {tick: f"{tick:,.6g}" for tick in ticks}


def even_ticks(reach):
    """About five to ten round numbers from 0 to a number -> {number: label}."""
    power = 10.0 ** math.floor(math.log10(reach / 5))
    step = max(power * factor for factor in (1, 2, 5) if power * factor <= reach / 5)
    return {k * step: f"{k * step:g}" for k in range(int(reach / step + 1e-9) + 1)}


def draw(runs):
    """An SVG picture.  runs: [(name, what `read_log` returned), ...]."""
    numbers = [ppl for _, rows in runs for row in rows for ppl in row[2:] if math.isfinite(ppl)]
    low, high = min(numbers, default=1) / 1.05, max(numbers, default=2) * 1.05
    most = max(rows[-1][1] for _, rows in runs)
    unit, length = ("minutes", 60) if most > 300 else ("seconds", 1)
    names_width = 20 + 7 * max(len(name) for name, _ in runs)  # beside each panel
    lines = "Solid: validation. Dashed: training, the mean since the validation before."
    parts, left = [svg_text(60, 24, f"Perplexity by epochs and by time. {lines}")], 60
    for column, title, scale in ((0, "epochs", 1), (1, unit, length)):
        reach = max(max(row[column] for _, rows in runs for row in rows) / scale, 1e-9)
        panel = Panel(left, left + 300, 44, 364, reach, low, high)
        parts += panel.grid(even_ticks(reach), log_ticks(low, high), title)
        ends = []
        for (name, rows), colour in zip(runs, itertools.cycle(COLOURS)):
            for kind, which in (("train", 2), ("valid", 3)):
                points = [(row[column] / scale, row[which]) for row in rows if math.isfinite(row[which])]
                parts += [panel.curve(points, colour, kind)] * bool(points)
            ends += [(*panel.place(*points[-1]), name, colour)] * bool(points)
        parts += names(ends)
        left = panel.right + names_width + 50
    return svg(left - 44, 414, parts, STYLE)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("logs", nargs="+", metavar="log.csv", help="of runs of train.py")
    parser.add_argument("--file", default="curves.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    args = parser.parse_args(argv)
    runs = [(pathlib.Path(path).resolve().parent.name, read_log(path)) for path in args.logs]
    pathlib.Path(args.file).write_text(draw(runs), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
