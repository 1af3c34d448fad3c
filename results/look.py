"""One look back with attention as a picture, in the symbols of the equations of attention_lm.py.

    python -m results.look --file results/look.svg

The scores are invented. The weights are their softmax, and a line to the sum is as thick as its weight.
"""

import math
import pathlib

from data import Parser, run_script

from results.cell import STYLE, arrow, box, circle, words
from results.drawing import svg, svg_rect

SCORES = {"(sentinel)": 0.9, "the": 2.6, "cat": 0.2, "sat": -0.6, ".": 0.4, "but": -0.3}  # by the token read
LEFT, GAP = 100, 105  # the first position of the memory, and from one to the next
CONTEXT, WEIGHTS, SOFTMAX, SCORE, MEMORY = 60, 185, 230, 310, 385  # heights, from the end to the beginning


def draw():
    """The picture, as SVG."""
    total = sum(math.exp(score) for score in SCORES.values())
    right = LEFT + GAP * len(SCORES)  # where the query enters, and the context leaves above it
    parts = [arrow(f"M{right - 10},{SCORE}H{LEFT + 14}")]
    parts += [box("sigmoid", right + 25, SCORE, 90, 38, "h' + m_t")]
    parts += [words(right - 20, SCORE + 40, "name", "query: what the model looks for", "start")]
    parts += [box("tanh", (LEFT + right - GAP) / 2, SOFTMAX, right - LEFT, 34, "a = softmax(score)")]
    for j, (word, score) in enumerate(SCORES.items()):
        x, a = LEFT + GAP * j, math.exp(score) / total
        parts += [arrow(f"M{x},{MEMORY - 18}V{SCORE + 14}"), arrow(f"M{x},{SCORE - 14}V{SOFTMAX + 17}")]
        parts += [circle(x, SCORE, "."), words(x + 8, SCORE - 28, "formula", f"{score:.1f}", "start")]
        parts += [box("linear", x, MEMORY, 60, 36, f"m_{j}"), words(x, MEMORY + 36, "name", word)]
        top = WEIGHTS - 80 * a
        parts += [f'<path class="memory" style="stroke-width:{1 + 12 * a:.1f}" d="M{x},{top:.1f}V{CONTEXT}"/>']
        parts += [svg_rect("memorytip", x - 22, top, 44, WEIGHTS - top)]
        parts += [words(x + 27, WEIGHTS, "small", f"{a:.2f}", "start")]
    parts += [arrow(f"M{LEFT},{CONTEXT}H{right + 130}", "memory")]
    parts += [words(right - 20, CONTEXT - 12, "formula", "context' = sum_j a_j m_j", "start")]
    parts += [words(right - 20, WEIGHTS, "name", "weights: they sum to 1", "start")]
    parts += [words(right - 20, SCORE - 38, "formula", "score_j = m_j . (h' + m_t)", "start")]
    parts += [words(right + 160, SCORE - 38, "small", "minus the decay", "start")]
    parts += [words(right - 20, MEMORY + 5, "name", "memory: a state for each token read", "start")]
    return svg(right + 255, 450, parts, STYLE)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("--file", default="look.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    pathlib.Path(parser.parse_args(argv).file).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
