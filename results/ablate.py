"""What each part of the attention model is worth: train one that is changed from outside.

    python -m results.ablate no-copying
    python -m results.ablate no-copying --memory-from decoder --epochs 6

The first word says what is changed, and the flags after it are those of train.py:

    no-copying    the prediction is the softmax over the vocabulary alone
    no-output     the readout is given zeros in place of the context
    no-input      the decoder is given zeros in place of the context; only with an encoder
    fixed         35 slots are in view throughout training
    full          as many slots as otherwise at the end, 400, are in view from the start of training
    no-decay      a slot's weight does not fall with its distance
    no-delay      the k newest slots are in view, too, but for the newest one: its follower is the token just read
    near          each step nearer counts: n is 1 in training and in reading

The run's folder is out/no-copying, and so on. Other scripts do not open its checkpoint, because they do not know what
was changed.
"""

import argparse
import functools

from data import Parser, run_script
import torch

import train
from attention_lm import AttentionLM
from lstm_lm import LanguageModel
from sample import MODELS, shared_options

CHANGES = ["no-copying", "no-output", "no-input", "fixed", "full", "no-decay", "no-delay", "near"]


class NoCopying(AttentionLM):
    """An AttentionLM whose prediction is the softmax alone."""

    loss = LanguageModel.loss

    def mixture(self, r, weights, followers, temperature=1.0):
        """What `attend` returned -> log-probabilities (T, B, V)."""
        return self.log_softmax(r, temperature)


def zeros_between(begin, end):
    """A hook for a module that sets columns `begin` to `end` of its input to zero before the module reads it."""

    def hook(module, arguments):
        x = arguments[0].clone()  # (..., columns)
        x[..., begin:end] = 0
        return x, *arguments[1:]

    return hook


def do_not_grow(progress):
    """A `grow` that changes nothing."""


def build(change, vocab_size, settings):
    """An entry of `sample.MODELS`: an AttentionLM with one change.  Raises ValueError if it does not apply."""
    if change == "no-copying":
        options = {"memory_from": settings["memory_from"], "memory_size": settings["memory"]}
        return NoCopying(vocab_size, **options, **shared_options(settings))
    model = MODELS["attention"](vocab_size, settings)
    E, H = model.embedding_size, model.hidden_size
    if change == "no-output":
        model.readout.register_forward_pre_hook(zeros_between(H, 2 * H))  # of [h', context'] and perhaps m
    elif change == "no-input":
        if settings["memory_from"] != "encoder":
            raise ValueError("no-input needs --memory-from encoder: the other decoder is not given the context")
        model.decoder.register_forward_pre_hook(zeros_between(E, E + H))  # of [x, context]
    elif change == "fixed":
        model.memory_size_in_training = min(model.memory_size, 35)
        model.grow = do_not_grow
    elif change == "full":
        model.grow = do_not_grow  # from what it begins with, 400
    elif change == "no-decay":
        del model.decay
        model.register_buffer("decay", torch.zeros(1))  # this is no parameter, so it is not trained
    elif change == "no-delay":
        model.delay = 0
    elif change == "near":
        model.near = 1
    return model


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None.  Returns what train.main does."""
    parser = Parser(__doc__)
    parser.add_argument("change", choices=CHANGES)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of train.py")
    args = parser.parse_args(argv)
    unchanged = train.parse_arguments([*args.flags, "--model", "attention"])
    size = [] if unchanged.resume else ["--hidden-size", str(unchanged.hidden_size)]  # the default depends on --model
    MODELS[args.change] = functools.partial(build, args.change)
    try:
        return train.main([*size, *args.flags, "--model", args.change])
    finally:
        del MODELS[args.change]


if __name__ == "__main__":
    run_script(main)
