"""Where an attention model looks while it reads a text, as a picture.

    python -m results.attention out/self-attention/checkpoint.pt --prompt "..." --file attention.svg

`python sample.py --show-attention` prints the same as text. In a browser, a square names its slot and its weight.
"""

import html

from data import InputError, Parser, run_script, write_atomically

from attention_lm import AttentionLM
from sample import load_checkpoint, look_back, most_seen, read_prompt


def svg(width, height, parts, style=""):
    """An SVG picture of this size, in pixels, with its parts on a white page."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}">'
    style = f"<style>text{{font:11px sans-serif}}.page{{fill:#fff}}{style}</style>"
    return f'{head}{style}<rect class="page" width="100%" height="100%"/>{"".join(parts)}</svg>\n'


def svg_text(x, y, text, anchor="start"):
    """A text in an SVG picture that starts, ends or has its "middle" at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="black">{html.escape(text)}</text>'


def draw(rows, tokens):
    """The last rows of `sample.look_back` as an SVG picture.

    Rows are the words to come. Columns are the slots most looked at, each named by its word and the word that followed.
    A cell is as dark as its weight, and orange where the word that followed is the word to come. A bar beside each row
    is the share of the prediction that is copied.
    """
    rows, cell, left, top = rows[-36:], 16, 110, 130
    before = ["(start)", *tokens]
    columns = [(left + cell * n, j) for n, j in enumerate(most_seen(rows, 46))]  # (x, slot)
    right, bottom = left + cell * len(columns), top + cell * len(rows)
    parts = [svg_text(right + 8, top - 8, "copied")]
    for x, j in columns:
        label = svg_text(0, 0, f"{before[j][:12]} \u2192 {tokens[j][:12]}")
        parts.append(f'<g transform="translate({x + 11},{top - 6}) rotate(-60)">{label}</g>')
    for y, (word, p, copied, weights) in zip(range(top, bottom, cell), rows):
        parts.append(svg_text(left - 8, y + 12, word[:16], "end"))
        parts.append(f'<rect class="bar" x="{right + 8}" y="{y + 3}" width="{60 * copied:.1f}" height="{cell - 6}"/>')
        for x, j in columns:
            if weights[j] == 0:  # the slot is not in view
                continue
            kind = "hit" if tokens[j] == word else "slot"
            shade = 0.05 + 0.95 * weights[j]
            words = html.escape(f"{before[j]} \u2192 {tokens[j]}: {weights[j]:.3f}; P({word}) = {p:.3f}")
            box = f'class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill-opacity="{shade:.3f}"'
            parts.append(f"<rect {box}><title>{words}</title></rect>")
    return svg(right + 80, bottom + 10, parts, ".slot{fill:#0b5394}.hit{fill:#d95f02}.bar{fill:#666}")


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="checkpoint.pt", help="of attention or self-attention")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what it reads")
    parser.add_argument("--file", default="attention.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    args = parser.parse_args(argv)
    model, vocabulary, _ = load_checkpoint(args.checkpoint)
    if not isinstance(model, AttentionLM):
        raise InputError(f"{args.checkpoint} has no attention: give a checkpoint of an attention model")
    tokens = read_prompt(args.prompt, vocabulary, args.checkpoint)
    write_atomically(args.file, draw(look_back(model, vocabulary, tokens), tokens).encode())


if __name__ == "__main__":
    run_script(main)
