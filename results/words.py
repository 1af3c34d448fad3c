"""Which words gain from looking back, and how far back the models should look.

    python -m results.words out/lstm/checkpoint.pt out/attention/checkpoint.pt

For each checkpoint the perplexity is printed on all words of the validation text, on those that stand among the 400
words before them, on the others, and on all but `<unk>`, which an attention model can copy, too. For a model with
attention there follows its perplexity with smaller and larger memories than in training.
"""

import math

import data  # before torch, see there
import torch

import sample
from attention_lm import AttentionLM
from data import UNK, InputError
from train import evaluate, is_text_of, perplexity

MEMORY_SIZES = (35, 70, 140, 400, 1000, 2000, 4000)
NEAR = 400  # words


def open_together(paths):
    """Open checkpoints of one corpus -> (what `sample.load_checkpoint` returns for each, the Corpus).

    Raises InputError for a file that is no checkpoint, for one of another corpus, and for a corpus from Python.
    """
    loaded = [sample.load_checkpoint(path) for path in paths]
    settings = loaded[0][2]["settings"]
    if settings["data"] is None:
        raise InputError(f"{paths[0]} was trained on a corpus from Python: give one that was trained with --data")
    corpus = data.load_corpus(**data.corpus_settings(settings))
    for path, (_, _, checkpoint) in zip(paths, loaded):
        if not is_text_of(checkpoint, corpus):
            raise InputError(f"{path} is not of the corpus {settings['data']} as it is: give checkpoints of one corpus")
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
    input, target = (side[:, None] for side in data.pairs(tokens, start))  # (N, 1)
    for x, y in data.windows(input, target, 256):
        log_probs, state = model(x, state)  # (T, 1, V)
        nats.append(-log_probs.gather(-1, y[..., None]).flatten().double())
    return torch.cat(nats)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = data.Parser(__doc__)
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
    data.run_script(main)
