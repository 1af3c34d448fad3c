"""An interpolated Kneser-Ney n-gram model: what a neural model should beat.

    python -m results.ngram                       # 5-gram on python-docs
    python -m results.ngram ptb --order 3
"""

import collections
import math

import data


class KneserNey:
    """P(next token) from the counts of n-grams in a training text:

        P(w | context) = max(count(context w) - D, 0) / count(context)
                         + D types(context) / count(context) * P(w | shorter context)

    Below the highest order, the count of an n-gram is the number of different tokens that precede it. In each order
    D = n1 / (n1 + 2 n2), where n1 and n2 are the numbers of n-grams counted once and twice, or 0.5 if n1 is 0. A
    context that was never seen is shortened, and after the shortest all V tokens are equally probable (Kneser and Ney,
    1995; Chen and Goodman, 1999).

    train: list of token numbers, each below vocabulary_size.  order: the n.
    """

    def __init__(self, train, order, vocabulary_size):
        self.order, self.vocabulary_size = order, vocabulary_size
        counts = [None] * (order + 1)  # counts[n]: {n-gram: count}; there is no counts[0]
        counts[order] = collections.Counter(zip(*(train[k:] for k in range(order))))
        for n in range(order - 1, 0, -1):
            longer = set(zip(*(train[k:] for k in range(n + 1))))
            counts[n] = collections.Counter(gram[1:] for gram in longer)
        self.counts, self.totals, self.types, self.discounts = counts, [None], [None], [None]
        for table in counts[1:]:
            total = collections.Counter()
            for gram, count in table.items():
                total[gram[:-1]] += count
            self.totals.append(total)
            self.types.append(collections.Counter(gram[:-1] for gram in table))
            n1, n2 = (sum(count == k for count in table.values()) for k in (1, 2))
            self.discounts.append(n1 / (n1 + 2 * n2) if n1 else 0.5)

    def probability(self, context, word):
        """P(word | context). context: a tuple of token numbers, of which the last order - 1 count."""
        p = 1 / self.vocabulary_size
        for n in range(1, min(self.order, len(context) + 1) + 1):
            seen = context[len(context) - n + 1 :]
            if total := self.totals[n][seen]:
                discounted = max(self.counts[n][(*seen, word)] - self.discounts[n], 0)
                p = (discounted + self.discounts[n] * self.types[n][seen] * p) / total
        return p

    def perplexity(self, test):
        """exp of the mean of -log P over a list of token numbers."""
        contexts = (tuple(test[max(0, t - self.order + 1) : t]) for t in range(len(test)))
        return math.exp(-sum(math.log(self.probability(*pair)) for pair in zip(contexts, test)) / len(test))


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = data.Parser(__doc__)
    parser.add_argument("data", nargs="?", default="python-docs", help="name, file or folder (%(default)s)")
    data.add_corpus_flags(parser)
    parser.add_argument("--order", type=data.at_least(1), default=5, metavar="N", help="of the N-gram (%(default)s)")
    args = parser.parse_args(argv)
    corpus = data.load_corpus(**data.corpus_settings(vars(args)))
    model = KneserNey(corpus.train.tolist(), args.order, len(corpus.vocabulary))
    for name, tokens in ("valid", corpus.valid), ("test", corpus.test):
        if len(tokens):
            print(f"Kneser-Ney {args.order}-gram: {name} perplexity {model.perplexity(tokens.tolist()):.2f}")


if __name__ == "__main__":
    data.run_script(main)
