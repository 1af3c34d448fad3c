"""Where an attention model looks while it reads a text, as a picture.

    python -m results.attention out/self-attention/checkpoint.pt --prompt "..." --file attention.svg

`python sample.py --show-attention` prints the same as text. In a browser, a square names its position and its weight.
"""

import pathlib

from data import InputError, Parser, run_script  # before torch, see there

import sample
from attention_lm import AttentionLM
from results.drawing import svg, svg_rect, svg_text

STYLE = ".position{fill:#0b5394}.hit{fill:#d95f02}.bar{fill:#666}"


def draw(rows, tokens):
    """The last rows of `sample.look_back` as an SVG picture.

    Rows are the words to come. Columns are the positions most looked at, each named by its word and the next one. A
    square is as dark as its weight, and orange where the next word is the word to come. A bar beside each row is the
    sum of its weights without that of the sentinel: a model that copies, copies with this probability.
    """
    rows, cell, left, top = rows[-36:], 16, 110, 130
    before = ["(start)", *tokens]
    columns = [(left + cell * n, j) for n, j in enumerate(sample.most_seen(rows, 46))]  # (x, position)
    right, bottom = left + cell * len(columns), top + cell * len(rows)
    parts = [svg_text(right + 8, top - 8, "looks back")]
    for x, j in columns:
        label = svg_text(0, 0, f"{before[j][:12]} \u2192 {tokens[j][:12]}")
        parts.append(f'<g transform="translate({x + 11},{top - 6}) rotate(-60)">{label}</g>')
    for y, (word, p, looks, weights) in zip(range(top, bottom, cell), rows):
        parts.append(svg_text(left - 8, y + 12, word[:16], "end"))
        parts.append(svg_rect("bar", right + 8, y + 3, 60 * looks, cell - 6))
        for x, j in columns:
            if weights[j] > 0:  # it is 0 for a masked position
                hover = f"{before[j]} \u2192 {tokens[j]}: {weights[j]:.3f}; P({word}) = {p:.3f}"
                kind = "hit" if tokens[j] == word else "position"
                parts.append(svg_rect(kind, x, y, cell - 1, cell - 1, 0.05 + 0.95 * weights[j], hover))
    return svg(right + 90, bottom + 10, parts, STYLE)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="checkpoint.pt", help="of attention or self-attention")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what it reads")
    parser.add_argument("--file", default="attention.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    args = parser.parse_args(argv)
    model, vocabulary, _ = sample.load_checkpoint(args.checkpoint)
    if not isinstance(model, AttentionLM):
        raise InputError(f"{args.checkpoint} has no attention: give a checkpoint of an attention model")
    tokens = sample.prompt_tokens(args.prompt, vocabulary, args.checkpoint)
    picture = draw(sample.look_back(model, vocabulary, tokens), tokens)
    pathlib.Path(args.file).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
