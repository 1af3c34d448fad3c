"""How far back a gradient reaches: the norm of the derivative of a step's loss by the input k steps before.

    python -m results.gradient out/lstm/checkpoint.pt --train-tanh out/tanh           # train a plain network first
    python -m results.gradient out/lstm/checkpoint.pt --tanh out/tanh/checkpoint.pt --file gradient.svg

Three networks of one size are compared: the LSTM of the checkpoint, the same at its first weights, and a plain
recurrent network, h' = tanh(W x + b + U h + d), trained with the LSTM's settings. The loss is that of predicting the
last token of a passage of the validation text. The input is the embedding vector of a token, k steps before the last
that was read. Each number is the geometric mean of the norms in all passages, computed in float64.

Sizes in comments: T steps, B passages, E embedding, H hidden units, L layers, R what the output layer is given.
"""

import math

from data import Parser, number, run_script, write_atomically
import torch
import torch.nn.functional as F
from torch import nn

import train
from lstm_lm import LanguageModel
from results.attention import svg, svg_text
from results.texts import passages
from results.words import open_together
from sample import MODELS, load_checkpoint, shared_options

REACH = 100  # steps back
COLOURS = ("#0072b2", "#56b4e9", "#d55e00")  # also different for readers who do not see red or green
STYLE = "path{fill:none;stroke-width:2}.grid{stroke:#ddd;stroke-width:1}"


class TanhLM(LanguageModel):
    """A language model on torch.nn.RNN. The arguments are those of `LSTMLM`; the state is (h,), h (L, B, H)."""

    def __init__(self, vocab_size, embedding_size, hidden_size, num_layers=1, **options):
        super().__init__(vocab_size, embedding_size, hidden_size, **options)
        self.core = nn.RNN(self.embedding_size, hidden_size, num_layers)
        self.project = nn.Identity() if self.readout_size == hidden_size else nn.Linear(hidden_size, self.readout_size)

    def features(self, input, state=None):
        """int64 (T, B) -> (T, B, R), next state."""
        h, last = self.core(self.embed(input), None if state is None else state[0])  # (T, B, H), (L, B, H)
        return self.project(h), (last,)


def build_tanh(vocab_size, settings):
    """The entry "tanh" of `sample.MODELS`."""
    return TanhLM(vocab_size, **shared_options(settings))


def gradient_norms(model, texts, reach):
    """The norm of the derivative of the last token's loss by the input k steps back, in each text -> (reach + 1, B).

    model: an LSTMLM or a TanhLM.  texts: int64 (T, B), T >= reach + 2. They are read from a state of zeros.
    """
    x = model.embed(texts[:-1]).detach().requires_grad_()  # (T - 1, B, E)
    h, _ = model.core(x)  # (T - 1, B, H)
    log_probs = model.log_softmax(model.project(h[-1:]))  # (1, B, V)
    loss = F.nll_loss(log_probs[0], texts[-1], reduction="sum")  # a text's input acts on the loss of this text alone
    (grad,) = torch.autograd.grad(loss, x)  # (T - 1, B, E)
    return grad.norm(dim=-1).flip(0)[: reach + 1]


def draw(curves, bptt):
    """An SVG picture.  curves: {label: the norms for k = 1 to REACH}.  bptt: steps of a window of the training."""
    left, right, top, bottom = 50, 660, 56, 426
    norms = [norm for curve in curves.values() for norm in curve]
    low, high = math.floor(math.log10(min(norms))), math.ceil(math.log10(max(norms)))

    def place(k, norm):
        height = (math.log10(norm) - low) / (high - low)
        return left + (right - left) * k / REACH, bottom - (bottom - top) * height

    def grid_line(x1, y1, x2, y2):
        return f'<path class="grid" d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}"/>'

    title = "Norm of the derivative of a step's loss with respect to the input k steps before."
    parts = [svg_text(left, 20, title), svg_text(left, 36, "A straight line means the same factor at each step.")]
    for power in range(high, low - 1, -max(1, (high - low) // 8)):
        _, y = place(0, 10.0**power)
        exponent = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        parts += [grid_line(left, y, right, y), svg_text(left - 8, y + 4, f"10{exponent}", "end")]
    for k in range(0, REACH + 1, 10):
        parts.append(svg_text(place(k, 1)[0], bottom + 18, str(k), "middle"))
    parts.append(svg_text((left + right) / 2, bottom + 38, "k, steps back", "middle"))
    if bptt <= REACH:
        x, _ = place(bptt, 1)
        parts += [grid_line(x, top, x, bottom), svg_text(x + 5, bottom - 8, f"{bptt} steps: a window of the training")]
    for (label, curve), colour in zip(curves.items(), COLOURS):
        points = [place(k, norm) for k, norm in enumerate(curve, start=1)]
        parts.append(f'<path stroke="{colour}" d="M{"L".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        factor = (curve[-1] / curve[9]) ** (1 / (REACH - 10))  # the mean from k = 10 on
        x, y = points[-1]
        parts.append(svg_text(x + 8, y + 4, f"{label}: \u00d7 {factor:.2f} a step"))
    return svg(880, bottom + 50, parts, STYLE)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("checkpoint", metavar="checkpoint.pt", help="of lstm or cell")
    either = parser.add_mutually_exclusive_group(required=True).add_argument
    either("--tanh", metavar="checkpoint.pt", help="of the plain network")
    either("--train-tanh", metavar="DIR", help="train one, with the settings of the LSTM, into this new folder")
    flag("--texts", type=number(int, 1), default=50, metavar="N", help="number of passages (%(default)s)")
    flag("--file", default="gradient.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    args = parser.parse_args(argv)
    MODELS["tanh"] = build_tanh
    [(lstm, _, checkpoint)], corpus = open_together([args.checkpoint], model="cell")
    settings = checkpoint["settings"]
    known = vars(train.make_parser().parse_args([]))
    if args.train_tanh:
        words = train.as_flags({**settings, "model": "tanh"}, known)
        args.tanh = train.main([*words, "--out", args.train_tanh], corpus)["checkpoint"]
    flags = train.parse_arguments(train.as_flags(settings, known))
    first = train.Run(flags, corpus, torch.device("cpu")).model.eval()
    tanh, _, _ = load_checkpoint(args.tanh)
    texts = passages(corpus.valid, args.texts, 2 * REACH)  # (2 * REACH, B): more than REACH, so that the state settles
    curves = {}
    for label, model in [("LSTM, trained", lstm), ("LSTM, first weights", first), ("tanh network, trained", tanh)]:
        norms = gradient_norms(model.double(), texts, REACH).log().mean(dim=1).exp()  # (REACH + 1,)
        print(f"{label:24}" + "  ".join(f"k = {k}: {norms[k]:.2g}" for k in (1, 10, 30, 100)))
        curves[label] = norms[1:].tolist()
    write_atomically(args.file, draw(curves, settings["bptt"]).encode())


if __name__ == "__main__":
    run_script(main)
