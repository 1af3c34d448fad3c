"""What each part of an attention model is worth: train one that is changed from outside.

    python -m results.ablate no-decay
    python -m results.ablate near --model self-attention --no-copy --epochs 2

The first word says what is changed. The model is attention or self-attention; the other flags are those of train.py:

    no-decay      all positions count as equally far back, so decay only lowers all their scores alike
    near          n is 1 in training and in reading: each step nearer counts
    no-context    the readout is given zeros in place of the context
    no-feeding    the decoder is given zeros in place of the context; only with an encoder
    few           35 positions are visible in training
    no-m          the decoder looks back with h' alone, not with h' + m_t; only with an encoder
    tanh          the readout has a tanh around it

The run's folder is out/no-decay-attention, out/near-self-attention-no-copy, and so on. Other scripts do not open its
checkpoint, because they do not know what was changed.
"""

import argparse
import functools

from data import Parser, run_script  # before torch, see there
import torch

import train
from attention_lm import MODELS

CHANGES = ["no-decay", "near", "no-context", "no-feeding", "few", "no-m", "tanh"]


def zeros_between(begin, end):
    """A hook for a module that sets columns `begin` to `end` of its input to zero before the module reads it."""

    def hook(module, arguments):
        x = arguments[0].clone()  # (..., columns)
        x[..., begin:end] = 0
        return x, *arguments[1:]

    return hook


def decode_without_m(model):
    """A `decode` for an AttentionLM that looks back with h' alone."""
    decode, H = model.decode, model.hidden_size

    def changed(x, m, *others):
        def put_back(readout, arguments):  # the readout is still given [h', context', m]
            return torch.cat((arguments[0][..., : 2 * H], m), dim=-1)  # (T, B, 3H)

        with model.readout.register_forward_pre_hook(put_back):
            return decode(x, torch.zeros_like(m), *others)

    return changed


def build(change, kind, vocab_size, settings):
    """A model for `attention_lm.MODELS`, with one change.  kind: "attention" or "self-attention".

    Raises ValueError for a change that does not apply.
    """
    if change in ("no-feeding", "no-m") and kind != "attention":
        raise ValueError(f"{change} needs --model attention: without an encoder there is nothing to change")
    model = MODELS[kind](vocab_size, {**settings, "model": kind})
    E, H = model.embedding_size, model.hidden_size
    if change == "no-decay":
        model.near = 2 * model.memory_size  # n, in training half of this, is no smaller than any distance
    elif change == "near":
        model.near = 1
    elif change == "no-context":
        model.readout.register_forward_pre_hook(zeros_between(H, 2 * H))  # of [h', context'] and perhaps m
    elif change == "no-feeding":
        model.decoder.register_forward_pre_hook(zeros_between(E, E + H))  # of [x, context]
    elif change == "few":
        model.memory_size_in_training = min(model.memory_size, 35)
    elif change == "no-m":
        model.decode = decode_without_m(model)
    elif change == "tanh":
        model.readout.register_forward_hook(lambda readout, arguments, features: torch.tanh(features))
    return model


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None.  Returns what train.main does."""
    parser = Parser(__doc__)
    parser.add_argument("change", choices=CHANGES)
    parser.add_argument("--model", choices=["attention", "self-attention"], default="attention", help="(%(default)s)")
    parser.add_argument("--copy", action=argparse.BooleanOptionalAction, default=True, help="(yes)")
    args, flags = parser.parse_known_args(argv)
    name = f"{args.change}-{args.model}"
    unchanged = train.parse_arguments([*flags, "--model", args.model])
    if not unchanged.resume:  # of a new name, train.py knows no default size
        flags = ["--hidden-size", str(unchanged.hidden_size), *flags]
    MODELS[name] = functools.partial(build, args.change, args.model)
    try:
        return train.main([*flags, "--model", name, "--copy" if args.copy else "--no-copy"])
    finally:
        del MODELS[name]


if __name__ == "__main__":
    run_script(main)
