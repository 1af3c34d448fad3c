"""How far back a gradient reaches: the norm of the derivative of a step's loss by the input k steps before.

    python -m results.gradient out/lstm/checkpoint.pt --train-tanh out/plain/tanh    # train a plain network first
    python -m results.gradient out/lstm/checkpoint.pt --tanh out/plain/tanh/checkpoint.pt --file gradient.svg

Three networks of one size are compared: the LSTM of the checkpoint, the same at its first weights, and a plain
recurrent network, h' = tanh(W x + b + U h + d), trained with the LSTM's settings. The loss is that of predicting the
last token of a passage of the validation text. The input is the embedding vector of a token, k steps before the last
that was read. Each number is the geometric mean of the norms in all passages, computed in float64.

Sizes in comments: T steps, B passages, E embedding, H hidden units, L layers, R features.
"""

import argparse
import math
import pathlib

from data import InputError, Parser, at_least, run_script  # before torch, see there
import torch
import torch.nn.functional as F
from torch import nn

import sample
import train
from attention_lm import MODELS, shared_options
from lstm_lm import LanguageModel, LSTMLM
from results.drawing import COLOURS, Panel, names, svg, svg_text
from results.texts import passages
from results.words import open_together

REACH = 100  # steps back


class TanhLM(LanguageModel):
    """A language model on torch.nn.RNN. The arguments are those of `LSTMLM`; the state is (h,), h (L, B, H)."""

    def __init__(self, vocab_size, embedding_size, hidden_size, num_layers=1, **options):
        super().__init__(vocab_size, embedding_size, hidden_size, **options)
        self.core = nn.RNN(self.embedding_size, hidden_size, num_layers)
        self.project = nn.Identity() if self.feature_size == hidden_size else nn.Linear(hidden_size, self.feature_size)

    def features(self, input, state=None):
        """int64 (T, B) -> (T, B, R), next state."""
        h, last = self.core(self.embed(input), None if state is None else state[0])  # (T, B, H), (L, B, H)
        return self.project(h), (last,)


def build_tanh(vocab_size, settings):
    """The entry "tanh" of `attention_lm.MODELS`."""
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
    norms = [norm for curve in curves.values() for norm in curve]
    low, high = math.floor(math.log10(min(norms))), math.ceil(math.log10(max(norms)))
    panel = Panel(50, 660, 56, 426, REACH, 10.0**low, 10.0**high)
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    powers = range(high, low - 1, -max(1, (high - low) // 8))
    y_ticks = {10.0**power: f"10{str(power).translate(superscript)}" for power in powers}
    title = "Norm of the derivative of a step's loss with respect to the input k steps before."
    parts = [svg_text(50, 20, title), svg_text(50, 36, "A straight line means the same factor at each step.")]
    parts += panel.grid({k: str(k) for k in range(0, REACH + 1, 10)}, y_ticks, "k, steps back")
    if bptt <= REACH:
        parts.append(panel.curve([(bptt, 10.0**low), (bptt, 10.0**high)], "#ddd", "window"))
        x, y = panel.place(bptt, 10.0**low)
        parts.append(svg_text(x + 5, y - 8, f"{bptt} steps: a window of the training"))
    ends = []
    for (label, curve), colour in zip(curves.items(), COLOURS):
        parts.append(panel.curve(list(enumerate(curve, start=1)), colour))
        factor = (curve[-1] / curve[9]) ** (1 / (REACH - 10))  # the mean from k = 10 on
        ends.append((*panel.place(REACH, curve[-1]), f"{label}: \u00d7 {factor:.2f} a step", colour))
    return svg(880, 476, parts + names(ends), ".curve{stroke-width:2}")


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("checkpoint", metavar="checkpoint.pt", help="of lstm or cell")
    either = parser.add_mutually_exclusive_group(required=True).add_argument
    either("--tanh", metavar="checkpoint.pt", help="of the plain network")
    either("--train-tanh", metavar="DIR", help="train one, with the settings of the LSTM, into this new folder")
    flag("--texts", type=at_least(1), default=50, metavar="N", help="number of passages (%(default)s)")
    flag("--file", default="gradient.svg", metavar="FILE.svg", help="the picture (%(default)s)")
    args = parser.parse_args(argv)
    MODELS["tanh"] = build_tanh
    [(lstm, _, checkpoint)], corpus = open_together([args.checkpoint])
    if not isinstance(lstm, LSTMLM):
        raise InputError(f"{args.checkpoint} is of another model: give a checkpoint of lstm or cell")
    settings, cpu = checkpoint["settings"], torch.device("cpu")
    if args.train_tanh:
        flags = argparse.Namespace(**{**settings, "model": "tanh", "out": args.train_tanh})
        run, out = train.Run(flags, corpus, cpu), train.new_folder(flags)
        train.train(run, out)
        args.tanh = train.test(run, out)["checkpoint"]
    first = train.Run(argparse.Namespace(**settings), corpus, cpu).model.eval()
    tanh, _, _ = sample.load_checkpoint(args.tanh)
    texts = passages(corpus.valid, args.texts, 2 * REACH)  # (2 * REACH, B): more than REACH, so that the state settles
    curves = {}
    for label, model in [("LSTM, trained", lstm), ("LSTM, first weights", first), ("tanh network, trained", tanh)]:
        norms = gradient_norms(model.double(), texts, REACH).log().mean(dim=1).exp()  # (REACH + 1,)
        print(f"{label:24}" + "  ".join(f"k = {k}: {norms[k]:.2g}" for k in (1, 10, 30, 100)))
        curves[label] = norms[1:].tolist()
    pathlib.Path(args.file).write_text(draw(curves, settings["bptt"]), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
