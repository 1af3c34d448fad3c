"""How near the models' texts are to real ones, in numbers.

    python -m results.texts out/lstm/checkpoint.pt out/attention/checkpoint.pt --half second
    python -m results.texts out/attention/checkpoint.pt --temperature 0.8 0.9 1 --top-p 0.95 1 --split test

Each model continues passages of a text that it has not been trained on. The first row measures the real continuations,
and a decoding is good if its row is near that one in all columns at once:

    doubled    share of the tokens that repeat the token before
    again      share of the 4-grams (four tokens in a row) that the passage or its continuation had already
    training   share of the 4-grams that stand in the training text
    5-gram     perplexity of the continuation under a Kneser-Ney 5-gram model of the training text
    rarer      share of the tokens that are not among the 300 most frequent ones
    back       share of these that the passage or its continuation had already: whether a text stays on its subject
"""

import itertools
import math

import data  # before torch, see there
import torch

from results.ngram import KneserNey
from results.words import open_together
from sample import DEFAULT_TEMPERATURE, generate

FREQUENT = 300


def passages(tokens, count, length):
    """`count` passages of a split (N,), evenly spaced, which overlap if they must -> (length, count)."""
    if len(tokens) < length:
        raise data.InputError(f"the text has {len(tokens)} tokens, fewer than a passage of {length}")
    last = len(tokens) - length
    starts = [last * k // max(1, count - 1) for k in range(count)]
    return torch.stack([tokens[start : start + length].long() for start in starts], dim=1)


def measure(texts, given, known, ngram):
    """The six numbers above about the tokens of texts after the first `given` -> tuple of float.

    texts: lists of token numbers.  known: the set of the training text's 4-grams.  ngram: a KneserNey of that text.
    """
    tokens = doubled = again = training = rarer = back = 0
    nats = 0.0
    for text in texts:
        grams = [tuple(text[t - 3 : t + 1]) for t in range(3, len(text))]
        for t in range(given, len(text)):
            tokens += 1
            doubled += text[t] == text[t - 1]
            again += grams[t - 3] in grams[: t - 3]
            training += grams[t - 3] in known
            nats -= math.log(ngram.probability(tuple(text[max(0, t - 4) : t]), text[t]))
            if text[t] >= FREQUENT:
                rarer += 1
                back += text[t] in text[:t]
    shares = doubled / tokens, again / tokens, training / tokens
    return *shares, math.exp(nats / tokens), rarer / tokens, back / max(1, rarer)


def show(name, how, numbers):
    """Print one row of the table."""
    doubled, again, training, perplexity, rarer, back = numbers
    shares = f"{doubled:7.1%} {again:7.1%} {training:8.1%} {perplexity:7.1f} {rarer:7.1%} {back:7.1%}"
    print(f"{name:24} {how:28} {shares}", flush=True)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = data.Parser(__doc__)
    positive, above_0 = data.at_least(1), data.at_least(1e-9, float)
    flag = parser.add_argument
    flag("checkpoints", nargs="+", metavar="checkpoint.pt", help="all trained on one corpus")
    flag("--split", choices=data.SPLITS[1:], default="valid", help="the text to continue (%(default)s)")
    flag("--half", choices=["first", "second"], help="continue this half of it (all)")
    flag("--texts", type=positive, default=100, metavar="N", help="number of passages (%(default)s)")
    flag("--given", type=data.at_least(4), default=100, metavar="N", help="tokens of a passage (%(default)s)")
    flag("--tokens", type=positive, default=200, metavar="N", help="tokens of a continuation (%(default)s)")
    flag("--temperature", type=above_0, nargs="+", default=[DEFAULT_TEMPERATURE], metavar="T", help="(0.9)")
    flag("--top-p", type=above_0, nargs="+", default=[1.0], metavar="P", help="(1)")
    flag("--greedy", action="store_true", help="also greedy (off)")
    flag("--seeds", type=positive, default=1, metavar="N", help="repeat with seeds 0 to N - 1 (%(default)s)")
    args = parser.parse_args(argv)
    loaded, corpus = open_together(args.checkpoints)
    vocabulary = corpus.vocabulary
    split = getattr(corpus, args.split)
    middle = len(split) // 2
    split = {"first": split[:middle], "second": split[middle:], None: split}[args.half]
    real = passages(split, args.texts, args.given + args.tokens)  # (given + tokens, texts)
    train = corpus.train.tolist()
    known, ngram = set(zip(*(train[k:] for k in range(4)))), KneserNey(train, 5, len(vocabulary))

    print(f"{'':53} doubled   again training  5-gram   rarer    back")
    show("the real continuation", "", measure(real.t().tolist(), args.given, known, ngram))
    hows = [{"temperature": t, "top_p": p} for t in args.temperature for p in args.top_p]
    hows += [{}] * args.greedy
    for (model, _, checkpoint), how, seed in itertools.product(loaded, hows, range(args.seeds)):
        generator = torch.Generator().manual_seed(seed)
        steps = generate(model, real[: args.given], args.tokens, [vocabulary.unknown], generator, **how)
        texts = torch.cat((real[: args.given], torch.stack(list(steps))))  # (given + tokens, texts)
        settings = checkpoint["settings"]
        name = settings["model"] + " --no-copy" * (not settings["copy"])
        decoding = ", ".join(f"{option} {value:g}" for option, value in how.items()).replace("_", "-") or "greedy"
        decoding += f", seed {seed}" * (args.seeds > 1)
        show(name, decoding, measure(texts.t().tolist(), args.given, known, ngram))


if __name__ == "__main__":
    data.run_script(main)
