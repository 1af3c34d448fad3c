"""What one unit of an LSTM remembers: the unit whose memory c best follows a property that a reader can name.

    python -m results.unit out/lstm/checkpoint.pt --file unit.svg        # whether a parenthesis is open
    python -m results.unit out/chars/checkpoint.pt --property name       # of a speaker, in a play

Karpathy et al. (2015) found such units by eye. Here a rule finds one. On the validation text, it takes the unit of the
first layer whose c has the largest absolute Pearson correlation with the property, which is 1 where it holds after a
token and else 0, and then the threshold of c that tells the property best. How often that threshold is right is
measured on the test text. (Without one, on the second half of the validation text, and the search is on the first.)

Sizes in comments: N tokens, E embedding, H hidden units.
"""

import pathlib
import typing

from data import EOS, UNK, InputError, Parser, run_script  # before torch, see there
import torch
import torch.nn.functional as F

from lstm_cell import gates
from lstm_lm import LSTMLM
from results.drawing import svg, svg_rect, svg_text
from results.words import open_together

WIDTH, LEFT, ROW = 880, 24, 76  # of the picture, its margin and a row of text, in pixels
STYLE = ".outside{fill:none}.inside{fill:#ffe680}.yes{fill:#d95f02}.no{fill:#0b5394}.zero{fill:#999}.gate{fill:#222}"


def parenthesis(tokens, start):
    """For each token, whether a parenthesis is open after it. `start`, which ends a sentence, closes all."""
    depth = 0
    for token in tokens:
        depth = 0 if token == start else max(0, depth + token.count("(") - token.count(")"))
        yield depth > 0


def name(tokens, start):
    """For each character, whether its line is the name of a speaker: capitals, with a colon at the end."""
    text = "".join(token[-1] for token in tokens)  # `<unk>` is one character, too
    for line in text.splitlines(keepends=True):
        yield from [line.isupper() and line.endswith(":\n")] * len(line)


PROPERTIES = {"parenthesis": parenthesis, "name": name}


class Steps(typing.NamedTuple):
    """What an LSTM computes at each of N steps: the new memory c and the gates, (N, H) each."""

    c: torch.Tensor
    i: torch.Tensor
    f: torch.Tensor
    g: torch.Tensor
    o: torch.Tensor


@torch.inference_mode()
def memory_and_gates(core, x):
    """What the first layer of a torch.nn.LSTM or lstm_cell.LSTM computes as it reads x (N, E) -> Steps."""
    h = c = x.new_zeros(core.hidden_size)  # (H,)
    zs, cs = [], []
    for zx in F.linear(x, core.weight_ih_l0, core.bias_ih_l0 + core.bias_hh_l0):  # (4H,)
        z = zx + F.linear(h, core.weight_hh_l0)  # (4H,)
        h, c = gates(z, c)  # (H,) each
        zs.append(z)
        cs.append(c)
    z_i, z_f, z_g, z_o = torch.stack(zs).chunk(4, dim=-1)  # (N, H) each
    return Steps(torch.stack(cs), torch.sigmoid(z_i), torch.sigmoid(z_f), torch.tanh(z_g), torch.sigmoid(z_o))


def find_unit(c, holds):
    """The unit that follows a property best: c (N, H), holds bool (N,) -> its number, correlation and threshold.

    The unit says that the property holds where c is at least the threshold, or at most, if the correlation is negative.
    """
    table = torch.cat((c, holds[:, None]), dim=1).double()  # (N, H + 1)
    correlation = torch.corrcoef(table.t())[-1, :-1].nan_to_num()  # (H,); nan is a unit that never changes
    unit = correlation.abs().argmax().item()
    order = c[:, unit].argsort(descending=correlation[unit].item() > 0)
    said_yes = torch.arange(1, len(c) + 1)  # how many tokens are called inside, if the last of them is the threshold
    right_yes = holds[order].cumsum(dim=0)
    right_no = (~holds).sum() - (said_yes - right_yes)
    last = order[(right_yes + right_no).argmax()]
    return unit, correlation[unit].item(), c[last, unit].item()


def choose_passage(tokens, holds, start, length):
    """Where to draw from: after this sentence, or line, the property holds for about a third, and few are unknown."""
    unknown = torch.tensor([token == UNK for token in tokens])

    def distance(n):
        part = slice(n, n + length)
        return abs(holds[part].float().mean().item() - 1 / 3) + unknown[part].float().mean().item()

    places = [n + 1 for n in range(len(tokens) - length) if tokens[n] == start]
    return min(places, key=distance, default=0)


def draw(legend, tokens, holds, says, c, f):
    """A passage as SVG: each token, and below it c as a bar and f as a shade.  All are lists of N values."""
    parts, highest = [], max(0, *c)
    scale = 28 / (highest - min(0, *c))  # pixels for 1 of c
    for n, (kind, meaning) in enumerate(legend):
        parts += [svg_rect(kind, LEFT, 12 + 17 * n, 12, 12), svg_text(LEFT + 20, 22 + 17 * n, meaning)]
    x, y = LEFT, 30 + 17 * len(legend)
    for token, held, said, c_t, f_t in zip(tokens, holds, says, c, f):
        word = "\u00b6" if token in (EOS, "\n") else token[:16]
        width = 12 + 7 * len(word)
        if x + width > WIDTH - 8:
            x, y = LEFT, y + ROW
        if x == LEFT:
            parts += [svg_text(LEFT - 7, y + 38, "c", "end"), svg_text(LEFT - 7, y + 62, "f", "end")]
        zero = y + 20 + scale * highest
        parts.append(svg_rect("inside" if held else "outside", x, y, width, 16))
        parts.append(svg_text(x + width / 2, y + 12, word, "middle"))
        parts.append(svg_rect("yes" if said else "no", x + 1, zero - scale * max(0, c_t), width - 2, scale * abs(c_t)))
        parts.append(svg_rect("zero", x, zero, width, 0.7))
        parts.append(svg_rect("gate", x, y + 53, width, 10, f_t))
        x += width
    return svg(WIDTH, y + ROW, parts, STYLE)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("checkpoint", metavar="checkpoint.pt", help="of lstm or cell")
    flag("--property", choices=list(PROPERTIES), default="parenthesis", help="(%(default)s)")
    flag("--file", default="unit.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    args = parser.parse_args(argv)
    [(model, vocabulary, _)], corpus = open_together([args.checkpoint])
    if not isinstance(model, LSTMLM):
        raise InputError(f"{args.checkpoint} is of another model: give a checkpoint of lstm or cell")
    start = vocabulary.index2word[vocabulary.start]
    readings = []
    for text in (corpus.valid, corpus.test) if len(corpus.test) else corpus.valid.tensor_split(2):
        tokens = vocabulary.decode(text)
        holds = torch.tensor(list(PROPERTIES[args.property](tokens, start)))
        if not 0 < holds.sum() < len(holds):
            raise InputError(f"the text has no {args.property}: give another --property")
        readings.append((tokens, holds, memory_and_gates(model.core, model.embed(text.long()))))
    (_, holds, steps), (tokens, tested, test_steps) = readings
    unit, correlation, threshold = find_unit(steps.c, holds)
    c, f = test_steps.c[:, unit], test_steps.f[:, unit]
    says = c >= threshold if correlation > 0 else c <= threshold
    accuracy, baseline = (says == tested).float().mean().item(), (~tested).float().mean().item()
    found = f"unit {unit} of {model.core.hidden_size}, correlation {correlation:.2f}"
    print(f"{found}: right at {accuracy:.1%} of the tokens that it is tested on, always no at {baseline:.1%}")

    length = 400 if vocabulary.tokeniser == "char" else 110
    n = choose_passage(tokens, tested, start, length)
    tested, says, c, f = (values[n : n + length].tolist() for values in (tested, says, c, f))
    side, inside = "above" if correlation > 0 else "below", f'"inside a {args.property}"'
    ends = "\u00b6 ends a line" if start == "\n" else "\u00b6 ends a sentence"
    legend = [
        ("outside", f"An LSTM reads a text that it was not trained on. Its {found} with {inside}:"),
        ("inside", f"the text is inside a {args.property}"),
        ("yes", f"c, the unit's memory, where it is {side} {threshold:.2f}: the unit says {inside}"),
        ("no", f"c elsewhere: the unit says no. The grey line is c = 0, the longest bar {max(c, key=abs):.1f}"),
        ("gate", "f, the unit's forget gate: black keeps all of c (f = 1), white forgets it (f = 0)"),
        ("outside", f"It is right at {accuracy:.1%} of the tokens of this text, always no at {baseline:.1%}. {ends}"),
    ]
    picture = draw(legend, tokens[n : n + length], tested, says, c, f)
    pathlib.Path(args.file).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
