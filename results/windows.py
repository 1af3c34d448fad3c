"""How well models of characters do when they are measured as nanoGPT measures.

    python -m results.windows out/cell/checkpoint.pt out/attention/checkpoint.pt

train.py reads the validation text as one, and a model knows all that it has read before. nanoGPT cuts it into windows
of 256 characters and reads each without a state from before, which gives a larger loss. A remainder shorter than a
window is left out.
"""

import data  # before torch, see there
import torch

from results.words import open_together

BATCH = 16  # windows read in parallel


@torch.inference_mode()
def evaluate_windows(model, tokens, start, length):
    """Mean of -log P(token) in nats over windows of `length` tokens, each read from no state.

    tokens: integers (N,).  start: the token before the first.  Raises InputError for a text shorter than a window.
    """
    count = len(tokens) // length
    if count == 0:
        raise data.InputError(f"the validation text has {len(tokens)} tokens, fewer than a window of {length}")
    input, target = (data.streams(side, count).long() for side in data.pairs(tokens[: count * length], start))
    total = 0.0
    for x, y in zip(input.split(BATCH, dim=1), target.split(BATCH, dim=1)):  # (length, <= BATCH) each
        loss, _ = model.loss(x, y)
        total += loss.item() * x.shape[1]
    return total / count


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = data.Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint.pt", help="all trained on one corpus")
    parser.add_argument("--length", type=data.at_least(1), default=256, metavar="N", help="of a window (%(default)s)")
    args = parser.parse_args(argv)
    loaded, corpus = open_together(args.checkpoints)
    for path, (model, _, _) in zip(args.checkpoints, loaded):
        nats = evaluate_windows(model, corpus.valid, corpus.vocabulary.start, args.length)
        print(f"{path}: {nats:.4f} nats per token in windows of {args.length}")


if __name__ == "__main__":
    data.run_script(main)
