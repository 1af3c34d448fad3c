"""Which words gain from looking back, and how far back the models should look.

    python -m results.words out/lstm/checkpoint.pt out/attention/checkpoint.pt

For each checkpoint the perplexity is printed on all words of the validation text, on those that stand among the 400
words before them, on the others, and on all but `<unk>`, which an attention model can copy, too. For a model with
attention there follows its perplexity with smaller and larger memories than in training.
"""

import math

from data import UNK, InputError, Parser, load_corpus, pairs, run_script, windows
import torch

from attention_lm import AttentionLM
from sample import load_checkpoint
from train import evaluate, perplexity

MEMORY_SIZES = (35, 70, 140, 400, 1000, 2000, 4000)
NEAR = 400  # words


def open_together(paths, model=None):
    """Open checkpoints of one corpus -> (what `load_checkpoint` returns for each, the Corpus).

    model: as in `load_checkpoint`.  Raises InputError for a file that is no checkpoint, and for one of another corpus.
    """
    loaded = [load_checkpoint(path, model=model) for path in paths]
    settings = loaded[0][2]["settings"]
    corpus = load_corpus(*(settings[name] for name in ("data", "level", "min_count", "vocab_size", "split")))
    if any(vocabulary.plain() != corpus.vocabulary.plain() for _, vocabulary, _ in loaded):
        raise InputError("the checkpoints must be trained on one corpus, and this corpus unchanged")
    return loaded, corpus


def stands_before(tokens, distance):
    """Whether each token stands among the `distance` tokens before it, too: a list of N tokens -> bool (N,)."""
    last, answers = {}, []  # last: {token: its last position}
    for t, token in enumerate(tokens):
        answers.append(t - last.get(token, -math.inf) <= distance)
        last[token] = t
    return torch.tensor(answers)


@torch.inference_mode()
def nats_of_each(model, tokens, start):
    """-log P of each token: integers (N,) -> float64 (N,). `train.evaluate` returns their mean."""
    nats, state = [], None
    input, target = (side[:, None] for side in pairs(tokens, start))  # (N, 1)
    for x, y in windows(input, target, 256):
        log_probs, state = model(x, state)  # (T, 1, V)
        nats.append(-log_probs.gather(-1, y[..., None]).flatten().double())
    return torch.cat(nats)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint.pt", help="all trained on one corpus")
    args = parser.parse_args(argv)
    loaded, corpus = open_together(args.checkpoints)
    near = stands_before(corpus.valid.tolist(), NEAR)  # (N,)
    for path, (model, _, _) in zip(args.checkpoints, loaded):
        nats = nats_of_each(model, corpus.valid, corpus.vocabulary.start)  # (N,)
        print(f"{path}: perplexity on")
        groups = {
            "all words": nats,
            f"words that stand among the {NEAR} before": nats[near],
            "the others": nats[~near],
            f"all but {UNK}": nats[corpus.valid != corpus.vocabulary.unknown],
        }
        for name, part in groups.items():
            print(f"    {name:40} {len(part):>9,} words  {perplexity(part.mean().item()):9.2f}")
        for size in MEMORY_SIZES if isinstance(model, AttentionLM) else ():
            model.memory_size = size
            ppl = perplexity(evaluate(model, corpus.valid, corpus.vocabulary.start))
            print(f"    all words, seeing {size} steps back: {ppl:.2f}", flush=True)


if __name__ == "__main__":
    run_script(main)
