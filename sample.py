"""From a checkpoint to text: greedy and temperature decoding, comparison, and pictures of attention and learning.

    python sample.py out/cell/checkpoint.pt --prompt "the function returns"
    python sample.py out/cell/checkpoint.pt --prompt "the function returns" --greedy
    echo "if the file" | python sample.py out/cell/checkpoint.pt --prompt - --temperature 0.7
    python sample.py out/*/checkpoint.pt --prompt "the function returns" --greedy --temperature 0.5 1.0
    python sample.py out/attention/checkpoint.pt --show-attention attention.svg
    python sample.py out/*/checkpoint.pt --greedy --temperature 0.5 1.0 --tokens 400 --num-samples 10 --measure
    python sample.py out/*/checkpoint.pt --show-curves curves.svg     # validation perplexity over time, from log.csv

A language model gives log P(next token | text so far). Decoding turns it into a text:

    greedy          always take the most probable token
    temperature t   draw from P^(1/t), normalised: t = 1 is the model's own distribution,
                    t -> 0 tends to greedy, t > 1 gives rare tokens more chances
    top-k           draw among the k most probable tokens only
    top-p           draw among the fewest tokens whose probabilities add up to p (nucleus
                    sampling, Holtzman et al., 2020)

Each token goes back in as the next input, together with the model's state, so no token is read twice. `<unk>` is never
chosen, because it stands for words outside the vocabulary. A text of words does not repeat a run of 4 tokens if it can
avoid it, see --no-repeat, because models that copy what they have read can copy themselves for ever.

Sizes in comments: P tokens of prompt, B samples in parallel, V words.
"""

import argparse
import collections
import csv
import html
import io
import itertools
import math
import pathlib
import shutil
import sys
import textwrap
import warnings
import zipfile

from data import EOS, SPLITS, UNK, InputError, Parser, Vocabulary, detokenise, number, restore_numbers, run
from data import KneserNey, load_corpus, tokenise, write_atomically
import torch

from attention_lm import AttentionLM
from lstm_lm import LSTMLM

MODELS = ["lstm", "cell", "attention"]
LARGEST = 1_000_000  # the largest size that a flag or a checkpoint may ask for
MOST_LAYERS = 100

# --- Checkpoints -----------------------------------------------------------------------
#
# A checkpoint is a dict of plain values and tensors, written by torch.save:
#
#   run          a name for the training run, the same in all of its files
#   settings     train.py's flags by name, {"hidden_size": 256, ...}
#   vocabulary   {"index2word": list of V words, "tokeniser": "text", "lines" or "chars"}
#   weights      the state_dict of the model that was best on the validation split
#   results      {"valid_ppl": float, "test_ppl": float}, as far as they are known
#
# resume.pt has one more entry, "training", with all that train.py needs to go on: see `check_training`.


def fits(value, form):
    """Whether a value read from a file has a given form.

    A form is a type (a float must be finite and not negative, a tensor finite and contiguous); a range, for an int in
    it; a tuple, for one of its members; a tensor, for one of its shape and dtype; a list of one form, for a list of
    values that have it; or a dict of forms, for a dict with the same keys.
    """
    if form is torch.Tensor:
        plain = type(value) is torch.Tensor and value.layout is torch.strided and value.device.type == "cpu"
        return plain and value.is_contiguous() and bool(value.isfinite().all())
    if isinstance(form, torch.Tensor):
        return fits(value, torch.Tensor) and (value.shape, value.dtype) == (form.shape, form.dtype)
    if isinstance(form, dict):
        same = isinstance(value, dict) and value.keys() == form.keys()
        return same and all(fits(value[name], part) for name, part in form.items())
    if isinstance(form, list):
        return type(value) is list and all(fits(item, form[0]) for item in value)
    if isinstance(form, range):
        return type(value) is int and value in form
    if isinstance(form, tuple):
        return type(value) in map(type, form) and value in form
    return type(value) is form and (form is not float or 0 <= value < math.inf)


def expect(condition, complaint):
    """Raise ValueError with a complaint unless a condition holds."""
    if not condition:
        raise ValueError(complaint)


def check_checkpoint(checkpoint, file_size):
    """Raise ValueError, saying why, unless an object read from a file of so many bytes is a checkpoint as above."""
    parts = ("settings", "vocabulary", "weights", "results")
    whole = isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(part), dict) for part in parts)
    expect(whole, "it has no settings, vocabulary and weights")
    settings, vocabulary, weights, results = (checkpoint[part] for part in parts)
    plain = all(type(value) in (str, int, float, bool, type(None), list) for value in settings.values())
    expect(plain and all(str(value).isprintable() for value in settings.values()), "its settings are damaged")
    old = "form" in vocabulary or "model" in settings and "weight_dropout" not in settings
    expect(not old, "an earlier version of this project wrote it, and this one cannot open it: train the model again")
    size = range(1, LARGEST + 1)
    forms = {"model": tuple(MODELS), "input": ("embedding", "one-hot"), "embedding_size": size, "hidden_size": size}
    forms |= {"layers": range(1, MOST_LAYERS + 1), "dropout": float, "tie_weights": (True, False), "bptt": size}
    forms |= {"locked_dropout": (True, False), "weight_dropout": float}
    if settings.get("model") == "attention":
        forms |= {"memory": size, "memory_from": ("encoder", "decoder")}
    for name, form in forms.items():
        expect(fits(settings.get(name), form), f"its setting {name} is missing or out of range")
    for name in ("dropout", "weight_dropout"):
        expect(settings[name] < 1, f"its setting {name} is out of range")
    words, tokeniser = vocabulary.get("index2word"), vocabulary.get("tokeniser")
    known = fits(vocabulary, {"index2word": [str], "tokeniser": ("text", "lines", "chars")})
    known = known and len(set(words)) == len(words) and ({UNK} if tokeniser == "chars" else {UNK, EOS}) <= set(words)
    expect(known, "its vocabulary is damaged")
    expect(all(type(value) in (float, type(None)) for value in results.values()), "its results are damaged")
    V, H, E = len(words), settings["hidden_size"], settings["embedding_size"]
    inputs = V if settings["input"] == "one-hot" else E
    readout = E if settings["tie_weights"] else H
    least = 4 * (V * readout + 4 * H * (inputs + H * settings["layers"]))  # bytes of the output's matrix, W_ih, W_hh
    expect(least <= file_size, "its settings ask for larger weights than the file holds")
    model = build_model(settings, V)  # on the CPU, and not on the meta device, which takes a second to import
    expect(fits(weights, model.state_dict()), "its weights do not fit its settings, or are not finite")
    if "training" in checkpoint:
        expect(type(checkpoint.get("run")) is str, "it does not name its run")
        check_training(checkpoint["training"], model, settings)


def check_training(training, model, settings):
    """Raise ValueError, saying why, unless the entry "training" of a resume.pt has the form below."""
    expect(isinstance(training, dict) and "state" in training, "its entry training is damaged")
    state, rng = (training.get(name) for name in ("state", "rng"))
    adapted = training.get("step") and settings.get("optimizer") != "sgd"  # plain SGD keeps nothing
    parameters = enumerate(model.parameters()) if adapted else ()
    forms = {
        "weights": model.state_dict(),  # after the last step
        "optimizer": {n: {"step": torch.zeros(()), "exp_avg": p, "exp_avg_sq": p} for n, p in parameters},  # AdamW's
        "rows": [[str]],  # of log.csv
        "best_loss": float if training.get("rows") else (math.inf,),  # the smallest validation loss
        "seconds": float,  # of training so far
        "step": range(2**53),
        "loss_sum": float,  # this and the next since the last validation
        "step_count": range(2**53),
    }
    for name, form in forms.items():
        expect(fits(training.get(name), form), f"its entry training/{name} is damaged")
    # The model's state is a tuple of tensors with the B streams in dimension 1, or None before the first step.
    plain = state is None or type(state) is tuple and fits(list(state), [torch.Tensor])
    plain = plain and all(part.dim() > 1 and part.shape[1] == settings.get("batch_size") for part in state or ())
    expect(plain, "its entry training/state is damaged")
    # The random numbers' state is {device type: [a uint8 tensor from each process]}.
    plain = isinstance(rng, dict) and all(fits(parts, [torch.Tensor]) for parts in rng.values())
    expect(plain, "its entry training/rng is damaged")


def read_archive(raw):
    """The object in a file's bytes as torch.save wrote them.  Raises ValueError for a file that is damaged,
    compressed or something else.  `weights_only` makes torch refuse a file that could run code.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever is wrong with the file is said below in one line
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            small = sum(entry.file_size for entry in entries) <= len(raw)
            expect(stored and small and archive.testzip() is None, "it is damaged")  # testzip compares the checksums
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds of errors for a file that is not theirs
        unsafe = "weights_only" in str(error).lower() and "GLOBAL" in str(error)
        reason = "it holds more than weights and could run code" if unsafe else "it is damaged or something else"
        raise ValueError(reason) from None


def build_model(settings, vocab_size):
    """The model that train.py's flags, a dict, describe.  Raises ValueError if they contradict each other."""
    names = "embedding_size hidden_size dropout locked_dropout weight_dropout input tie_weights".split()
    shared = {"vocab_size": vocab_size, "num_layers": settings["layers"], **{name: settings[name] for name in names}}
    if settings["model"] == "attention":
        return AttentionLM(**shared, memory_from=settings["memory_from"], memory_size=settings["memory"])
    return LSTMLM(**shared, core=settings["model"])


def save_checkpoint(path, checkpoint):
    """Write a checkpoint's dict to a file, whole or not at all.  Raises InputError if it cannot be written."""
    contents = io.BytesIO()  # torch.save into memory cannot fail halfway
    torch.save(checkpoint, contents)
    write_atomically(path, contents.getbuffer())


def read_checkpoint(path):
    """Read a file that `save_checkpoint` wrote and check all of it -> its dict, with the tensors in main memory.

    Raises InputError for a file that is missing, damaged, or no checkpoint of this project.
    """
    try:
        raw = pathlib.Path(path).read_bytes()
        checkpoint = read_archive(raw)
        check_checkpoint(checkpoint, len(raw))
        return checkpoint
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a checkpoint that this version of train.py wrote: {error}") from None


def load_checkpoint(path, device="cpu", model=None):
    """Open a checkpoint -> (model in evaluation mode, Vocabulary, the checkpoint's dict).

    model: "lstm" or "cell" opens a checkpoint of either with that one.  Raises InputError as `read_checkpoint` does.
    """
    checkpoint = read_checkpoint(path)
    settings, vocabulary = checkpoint["settings"], Vocabulary(**checkpoint["vocabulary"])
    if model and settings["model"] == "attention":
        raise InputError(f"--model opens checkpoints of lstm and cell, but {path} is of attention: leave it out")
    if model:  # reading needs no dropout, and torch.nn.LSTM does not have these two
        settings = {**settings, "model": model, "locked_dropout": False, "weight_dropout": 0.0}
    network = build_model(settings, len(vocabulary))
    network.load_state_dict(checkpoint["weights"])
    return network.to(device).eval(), vocabulary, checkpoint


# --- Decoding --------------------------------------------------------------------------


def choose(log_probs, temperature=None, top_k=None, top_p=None, generator=None):
    """Choose the next token of each sample: log_probs (B, V) -> int64 (B,).

    temperature: None is greedy.  top_k: int >= 1.  top_p: in (0, 1].
    """
    if temperature is None:
        return log_probs.argmax(dim=-1)
    logits = log_probs.double()  # so that no temperature, however small or large, gives nan
    logits = (logits - logits.max(dim=-1, keepdim=True).values) / temperature  # (B, V), 0 at the best
    if top_k is not None:
        best, where = logits.topk(min(top_k, logits.shape[-1]))  # (B, K)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, where, best)
    if top_p is not None:
        p, order = torch.softmax(logits, dim=-1).sort(descending=True)  # (B, V)
        beyond = p.cumsum(dim=-1) - p >= top_p  # the more probable tokens add up to top_p already
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1)  # (B, V): P(this token or one before it)
    # One random number for each sample picks a place in it. torch.multinomial would draw V, slower than the model.
    drawn = torch.rand(len(cumulative), 1, dtype=cumulative.dtype, generator=generator) * cumulative[:, -1:]  # (B, 1)
    return torch.searchsorted(cumulative, drawn, right=True)[:, 0]


class NoRepeat:
    """The tokens of a text so far, and which next tokens would repeat a run of n tokens that it already has."""

    def __init__(self, n, tokens):
        self.recent, self.followers = collections.deque(maxlen=n - 1), collections.defaultdict(set)
        for token in tokens:
            self.add(token)

    def add(self, token):
        """The text goes on with this token."""
        if len(self.recent) == self.recent.maxlen:
            self.followers[tuple(self.recent)].add(token)
        self.recent.append(token)

    def banned(self):
        """The tokens that would repeat a run: a list."""
        return list(self.followers.get(tuple(self.recent), ()))


@torch.inference_mode()
def generate(model, prompt, tokens, samples=1, never=(), no_repeat=0, generator=None, **how):
    """Continue a prompt: int64 (P,), P >= 1 -> yields `tokens` tensors (samples,), one a step.

    never: indices of tokens that are never chosen.  no_repeat: the length of runs of tokens that no text repeats, if
    it can avoid it; 0 allows all.  generator: a CPU torch.Generator.  how: see `choose`.
    """
    device, state = next(model.parameters()).device, None
    texts = [NoRepeat(no_repeat, prompt.tolist()) for _ in range(samples)] if no_repeat else []
    unread = prompt[:, None].expand(-1, samples)  # (P, B)
    for _ in range(tokens):
        for part in unread.split(256):  # the log-probabilities of a long prompt at once could fill the memory
            log_probs, state = model(part.to(device), state)  # (<= 256, B, V)
        scores = log_probs[-1].float().cpu()  # (B, V)
        scores[:, list(never)] = -torch.inf
        for row, text in zip(scores, texts):
            allowed = row.index_fill(0, torch.tensor(text.banned(), dtype=torch.int64), -torch.inf)
            if allowed.max() > -torch.inf:
                row.copy_(allowed)
        token = choose(scores, generator=generator, **how)  # (B,)
        for text, index in zip(texts, token.tolist()):
            text.add(index)
        yield token
        unread = token[None]  # (1, B)


def prompt_tokens(text, vocabulary):
    """Split a prompt into tokens as the corpus was -> (list of tokens, list of those not in the vocabulary).

    Raises InputError for a prompt without any token.
    """
    tokens = list(tokenise(restore_numbers(text) if vocabulary.tokeniser == "text" else text, vocabulary.tokeniser))
    if tokens and tokens[-1] == EOS:
        tokens.pop()  # so that the model may continue the prompt's last sentence
    if vocabulary.tokeniser == "lines":  # such a corpus is not normalised here, but "The" may be "the" in it
        tokens = [token if token in vocabulary.word2index else token.lower() for token in tokens]
    if not tokens:
        raise InputError("the prompt is empty: give some words, or leave --prompt out to start from nothing")
    unknown = [token for token in tokens if vocabulary.index(token) == vocabulary.index(UNK) and token != UNK]
    return tokens, list(dict.fromkeys(unknown))


def continuations(model, vocabulary, prompt, tokens, num_samples, seed, no_repeat=None, **how):
    """Yield (num_samples,) lists of new tokens, step by step, after a prompt given as a list of tokens.

    no_repeat: see `generate`; if None, 4 for words and 0 for characters.  how: see `choose`.
    """
    if no_repeat is None:
        no_repeat = 0 if vocabulary.tokeniser == "chars" else 4
    start = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(prompt)))
    generator = torch.Generator().manual_seed(seed)
    for token in generate(model, start, tokens, num_samples, [vocabulary.index(UNK)], no_repeat, generator, **how):
        yield vocabulary.decode(token)


def compare(columns, width):
    """Texts side by side: [(title, text), ...] -> a string at most `width` wide, or one below the other."""
    each = (width - 3 * (len(columns) - 1)) // len(columns)
    if each < 24:
        return "\n\n".join(f"{title}\n{text}" for title, text in columns)

    def wrap(text):
        return [row for line in text.split("\n") for row in textwrap.wrap(line, each) or [""]]

    wrapped = [[*wrap(title), "-" * each, *wrap(text)] for title, text in columns]
    rows = itertools.zip_longest(*wrapped, fillvalue="")
    return "\n".join(" | ".join(f"{cell:{each}}" for cell in row).rstrip() for row in rows)


# --- Decoding, compared by numbers ---------------------------------------------------------


def four_grams(tokens):
    """All runs of four tokens, in order."""
    return list(zip(*(tokens[k:] for k in range(4))))


def measure(texts, known, ngram):
    """Three numbers about texts, lists of at least 4 token numbers -> (repeated, copied, perplexity).

    repeated: the share of 4-grams that the same text has used before.  copied: the share of 4-grams that stand in the
    training text, given as the set `known`.  perplexity: of the texts under `ngram`, a KneserNey of the training text.
    """
    grams = [four_grams(tokens) for tokens in texts]
    count = sum(map(len, grams))
    repeated = 1 - sum(len(set(text)) for text in grams) / count
    copied = sum(gram in known for text in grams for gram in text) / count
    nats = [math.log(ngram.perplexity(tokens)) * len(tokens) for tokens in texts]
    return repeated, copied, math.exp(sum(nats) / sum(map(len, texts)))


def measure_decoding(paths, loaded, temperatures, args):
    """Print `measure` of validation text, and of texts from each checkpoint at each temperature (None is greedy).

    Raises InputError if the checkpoints were not trained on the same corpus.
    """
    settings, vocabulary = loaded[0][2]["settings"], loaded[0][1]
    try:
        corpus = load_corpus(*(settings[name] for name in ("data", "level", "min_count", "vocab_size", "split")))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{paths[0]} does not say which corpus it was trained on") from None
    if any(other.index2word != corpus.vocabulary.index2word for _, other, _ in loaded):
        raise InputError("--measure needs checkpoints that were trained on one corpus, and this corpus unchanged")
    train, N = corpus.train.tolist(), args.tokens
    known, ngram = set(four_grams(train)), KneserNey(train, 5, len(vocabulary))
    print(f"{'repeated':>52}  in training  5-gram ppl")

    def show(name, how, texts):
        repeated, copied, perplexity = measure(texts, known, ngram)
        print(f"{name[-30:]:30} {how:11} {repeated:9.1%}  {copied:11.1%}  {perplexity:10.1f}", flush=True)

    show("validation text", "", [part.tolist() for part in corpus.valid[: N * args.num_samples].split(N)])
    for (path, (model, _, _)), temperature in itertools.product(zip(paths, loaded), temperatures):
        steps = continuations(model, vocabulary, [], temperature=temperature, **args.how)
        texts = [vocabulary.encode(text).tolist() for text in zip(*steps)]
        show(path, f"t = {temperature:g}" if temperature else "greedy", texts)


# --- Attention, for people to look at ----------------------------------------------------


@torch.inference_mode()
def look_back(model, vocabulary, tokens):
    """What an AttentionLM sees as it reads a text: for each token a tuple (token, p, copied, weights).

    tokens: list of N tokens, each predicted from those before it.  p: the probability that the model gives the token.
    copied: the share of its prediction that it copies from the memory.  weights: those of the N slots, oldest first,
    and 0 for a slot that is not in view. Slot j is followed by tokens[j].
    """
    indices = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(tokens)))[:, None]  # (1 + N, 1)
    indices = indices.to(next(model.parameters()).device)
    r, weights, followers, _ = model.attend(indices[:-1])
    p = model.mixture(r, weights, followers).exp().gather(-1, indices[1:, None])[:, 0, 0].tolist()
    weights = weights[:, 0].tolist()  # N lists of 1 + N weights, the sentinel's first
    return [(token, p_t, 1 - sentinel, slots) for token, p_t, (sentinel, *slots) in zip(tokens, p, weights)]


def most_seen(rows, count):
    """The slots with the largest sums of weights over the rows of `look_back`: at most `count`, in order."""
    totals = [sum(column) for column in zip(*(weights for *_, weights in rows))]
    return sorted(sorted(range(len(totals)), key=totals.__getitem__)[-count:])


def draw_attention(rows, tokens, width):
    """The last rows of `look_back` as text of this width: a shade for each slot, and the two largest weights."""
    columns = most_seen(rows, max(10, width - 74))
    before = ["(start)", *tokens]
    lines = ["         the word  P(word)  copied  the slots most looked at, as: word -> the word that followed it"]
    for word, p, copied, weights in rows[-40:]:
        shades = "".join(" .:-=+*#%@"[min(9, int(10 * weights[j]))] for j in columns)
        best = sorted(((weight, j) for j, weight in enumerate(weights) if weight >= 0.05), reverse=True)[:2]
        seen = "  ".join(f"{before[j][:10]} -> {tokens[j][:10]} {weight:.2f}" for weight, j in best)
        lines.append(f"{word[:17]:>17}  {p:7.3f}  {copied:6.2f} |{shades}| {seen}".rstrip())
    return "\n".join(lines)


def svg(width, height, parts, style):
    """An SVG picture of this size, in pixels, with its parts on a white page."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    style = f"<style>text{{font:11px sans-serif}}.page{{fill:#fff}}{style}</style>"
    return f'{head}{style}<rect class="page" width="100%" height="100%"/>{"".join(parts)}</svg>\n'


def svg_text(x, y, text, anchor="start", colour="black"):
    """A text in an SVG picture that starts, ends or has its "middle" at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def attention_svg(rows, tokens):
    """The last rows of `look_back` as an SVG picture.

    Rows are the words to come. Columns are the slots most looked at, each named by its word and the word that followed.
    A cell is as dark as its weight, and orange where the word that followed is the word to come. A bar beside each row
    is the share of the prediction that is copied.
    """
    rows, cell, left, top = rows[-36:], 16, 110, 130
    columns, before = list(zip(itertools.count(left, cell), most_seen(rows, 46))), ["(start)", *tokens]
    right, bottom = left + cell * len(columns), top + cell * len(rows)
    parts = [svg_text(right + 8, top - 8, "copied")]
    for x, j in columns:
        label = svg_text(0, 0, f"{before[j][:12]} \u2192 {tokens[j][:12]}")
        parts.append(f'<g transform="translate({x + 11},{top - 6}) rotate(-60)">{label}</g>')
    for y, (word, p, copied, weights) in zip(range(top, bottom, cell), rows):
        parts.append(svg_text(left - 8, y + 12, word[:16], "end"))
        parts.append(f'<rect class="bar" x="{right + 8}" y="{y + 3}" width="{60 * copied:.1f}" height="{cell - 6}"/>')
        for x, j in columns:
            kind, shade = "hit" if tokens[j] == word else "slot", 0.05 + 0.95 * weights[j]
            words = html.escape(f"{before[j]} \u2192 {tokens[j]}: {weights[j]:.3f}; P({word}) = {p:.3f}")
            box = f'class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill-opacity="{shade:.3f}"'
            if weights[j] > 0:  # otherwise the slot is not in view
                parts.append(f"<rect {box}><title>{words}</title></rect>")
    return svg(right + 80, bottom + 10, parts, ".slot{fill:#0b5394}.hit{fill:#d95f02}.bar{fill:#666}")


def show_attention(file, model, vocabulary, tokens):
    """Print where the model looks as it reads a text and, unless `file` is empty, draw it as an SVG file.

    Raises InputError when the text has fewer than two tokens, or the file cannot be written.
    """
    if len(tokens) < 2:
        raise InputError("there is nothing to look back at: give a --prompt or --tokens of at least 2 words")
    rows = look_back(model, vocabulary, tokens)
    print(draw_attention(rows, tokens, shutil.get_terminal_size((110, 24)).columns))
    if file:
        write_atomically(file, attention_svg(rows, tokens).encode())
        print(f"\nwrote {file}: open it in a browser; a square names its slot and weight")


# --- Learning curves -----------------------------------------------------------------------


def read_curve(path):
    """A log.csv -> its points (seconds, validation perplexity).  Raises InputError if it has fewer than two."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            points = [(float(row["seconds"]), float(row["valid_ppl"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise InputError(f"{path} is not a log.csv that train.py wrote") from None
    points = [point for point in points if 0 < point[0] < 1e9 and 1 <= point[1] < math.inf]
    if len(points) < 2:
        raise InputError(f"{path} has fewer than two validations to draw a line through: try a smaller --valid-every")
    return points


def curves_svg(curves):
    """Learning curves, [(name, [(seconds, perplexity), ...]), ...], as an SVG picture. Perplexity has a log scale."""
    left, top, width, height = 40, 30, 540, 320
    seconds, perplexities = zip(*(point for _, points in curves for point in points))
    end, low, high = max(seconds) / 60, math.log(min(perplexities) / 1.25), math.log(max(perplexities) * 1.25)

    def place(minutes, perplexity):
        return left + width * minutes / end, top + height * (high - math.log(perplexity)) / (high - low)

    parts = [svg_text(4, 14, "validation perplexity"), svg_text(left + width, top + height + 34, "minutes", "end")]
    step = next(10**k * m for k in range(-3, 9) for m in (1, 2, 5) if 10**k * m * 8 >= end)
    for tick in (step * n for n in range(int(end / step) + 1)):
        x, _ = place(tick, 1)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}v{height}"/>')
        parts.append(svg_text(x, top + height + 16, f"{tick:g}", "middle"))
    for tick in (10**k * m for k in range(0, 9) for m in (1, 1.5, 2, 3, 4, 5, 7)):
        _, y = place(0, tick)
        if top <= y <= top + height:
            parts.append(f'<path class="grid" d="M{left} {y:.1f}h{width}"/>')
            parts.append(svg_text(left - 6, y + 4, f"{tick:g}", "end"))
    label_y = -math.inf
    for index, (name, points) in sorted(enumerate(curves), key=lambda curve: -curve[1][1][-1][1]):
        colour = ("#0b5394", "#d95f02", "#1b9e77", "#7570b3", "#666666")[index % 5]
        at = [place(seconds / 60, perplexity) for seconds, perplexity in points]
        label_y = max(at[-1][1], label_y + 15)  # so that labels do not overlap
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at]
        parts.append(svg_text(at[-1][0] + 8, label_y + 4, f"{name}  {points[-1][1]:.1f}", colour=colour))
    longest = max(len(name) for name, _ in curves)
    return svg(left + width + 7 * longest + 60, top + height + 44, parts, ".grid{stroke:#ddd}")


def show_curves(file, paths):
    """Draw the log.csv beside each checkpoint in one SVG file.  Raises InputError as `read_curve` does."""
    folders = [pathlib.Path(path).absolute().parent for path in paths]
    curves = [(folder.name, read_curve(folder / "log.csv")) for folder in folders]
    write_atomically(file, curves_svg(curves).encode())
    print(f"wrote {file}: open it in a browser")


# --- The command -------------------------------------------------------------------------


def device_of(name):
    """A device's name, or "auto" for the fastest one -> torch.device.  Raises InputError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(1, device=name).device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
    except (RuntimeError, AssertionError):
        raise InputError(f"there is no device {name} here: give cpu, or leave --device out") from None
    return torch.device(name)


def read_stdin():
    """Standard input as text, without line ends at its end.  Raises InputError if it is closed or not UTF-8."""
    try:
        return open(0, encoding="utf-8", closefd=False).read().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt on standard input cannot be read: {error}") from None


def parse_arguments(argv):
    """The flags -> a namespace."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size, above_0 = number(int, 1, LARGEST), number(float, 0, open_low=True)

    def temperature(text):  # argparse hands this flag the checkpoints too, if they come after it
        return text if text.endswith(".pt") else above_0(text)

    parser.add_argument("checkpoints", nargs="*", metavar="checkpoint.pt", help="several are shown side by side")
    flag = parser.add_argument_group("text").add_argument
    flag("--prompt", action="append", help="text to continue, - for standard input; may be repeated (none)")
    flag("--tokens", type=number(int, 0, LARGEST), default=100, metavar="N", help="tokens to add (%(default)s)")
    flag("--num-samples", type=size, default=1, metavar="N", help="continuations of each prompt (%(default)s)")
    flag = parser.add_argument_group("decoding").add_argument
    flag("--greedy", action="store_true", help="take the most probable token (off)")
    flag("--temperature", type=temperature, nargs="+", metavar="T", help="above 0; several are compared (0.8)")
    flag("--top-k", type=size, metavar="K", help="draw among the K most probable tokens (all)")
    flag("--top-p", type=number(float, 0, 1, open_low=True), metavar="P", help="draw among the fewest that hold P (1)")
    flag("--no-repeat", type=number(int, 0, 1000), metavar="N", help="write no N tokens in a row twice (4; char: off)")
    flag("--seed", type=number(int, 0, 2**62), default=0, metavar="N", help="of the random numbers (%(default)s)")
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=["lstm", "cell"], help="open a checkpoint of one with the other (its own)")
    flag("--device", default="cpu", help="cpu, cuda, mps or auto (%(default)s)")
    flag("--memory", type=size, metavar="N", help="how many steps back an attention model sees (as in training)")
    flag = parser.add_argument_group("to look closer").add_argument
    flag("--show-attention", nargs="?", const="", metavar="FILE.svg", help="draw what each word looked at (off)")
    flag("--show-curves", metavar="FILE.svg", help="draw the log.csv beside each checkpoint and write no text (off)")
    flag("--measure", action="store_true", help="print numbers about the texts and not the texts (off)")
    args = parser.parse_args(argv)
    args.checkpoints += [value for value in args.temperature or [] if isinstance(value, str)]
    args.temperature = [value for value in args.temperature or [] if not isinstance(value, str)]
    if args.show_attention and args.show_attention.endswith(".pt"):  # the checkpoint, as above
        args.checkpoints, args.show_attention = [*args.checkpoints, args.show_attention], ""
    args.how = {name: getattr(args, name) for name in "tokens num_samples seed top_k top_p no_repeat".split()}
    for picture in (args.show_attention, args.show_curves):
        if picture and not picture.lower().endswith(".svg"):
            parser.error(f"the picture {picture} must have a name that ends in .svg")
    if not args.checkpoints:
        parser.error("give a checkpoint, such as out/cell/checkpoint.pt")
    if args.measure and args.tokens < 4:
        parser.error("--measure needs --tokens of at least 4")
    return args


def title(path, checkpoint):
    """A checkpoint's path and, on a second line, the perplexities that training found."""
    perplexities = [(checkpoint["results"].get(f"{split}_ppl"), split) for split in SPLITS]
    known = [f"{ppl:.2f} {split}" for ppl, split in perplexities if ppl is not None]
    return f"{path}\nperplexity {', '.join(known)}" if known else str(path)


def stream(given, steps, tokeniser):
    """Print a prompt and, word by word, its continuation -> the list of all its tokens."""
    tokens, shown = itertools.tee(itertools.chain(given, (token for (token,) in steps)))
    for piece in detokenise(shown, tokeniser):
        print(piece, end="", flush=True)
    print()
    return list(tokens)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None.

    Raises InputError for what the user can correct.
    """
    args = parse_arguments(argv)
    if args.show_curves:
        return show_curves(args.show_curves, args.checkpoints)
    device = device_of(args.device)
    loaded = [load_checkpoint(path, device, args.model) for path in args.checkpoints]
    for path, (model, _, _) in zip(args.checkpoints, loaded):
        if (args.memory or args.show_attention is not None) and not isinstance(model, AttentionLM):
            raise InputError(f"{path} has no attention: leave --memory and --show-attention out")
        if args.memory:
            model.memory_size = args.memory
    prompts = [read_stdin() if text == "-" else text for text in args.prompt or []] or [None]
    decoders = [None] * args.greedy + (args.temperature or ([] if args.greedy else [0.8]))  # temperatures
    if args.measure:
        return measure_decoding(args.checkpoints, loaded, decoders, args)
    alone = len(loaded) == args.num_samples == 1
    if args.show_attention and len(prompts) * len(decoders) * len(loaded) > 1:
        raise InputError("a file takes one picture: give one checkpoint, prompt and temperature, or no file name")
    for prompt, temperature in itertools.product(prompts, decoders):
        if not alone or len(prompts) * len(decoders) > 1:
            how = f"temperature {temperature:g}" if temperature else "greedy"
            print(f"\n=== {'from nothing' if prompt is None else prompt.strip()}, {how} ===\n")
        columns, firsts = [], []
        for path, (model, vocabulary, checkpoint) in zip(args.checkpoints, loaded):
            given, unknown = ([], []) if prompt is None else prompt_tokens(prompt, vocabulary)
            if unknown:
                print(f"note: {path} does not know {', '.join(unknown)}; read as {UNK}", file=sys.stderr)
            steps = continuations(model, vocabulary, given, temperature=temperature, **args.how)
            if alone:
                firsts.append(stream(given, steps, vocabulary.tokeniser))
            else:
                samples = [[*given, *new] for new in zip(*steps)] or [given] * args.num_samples
                texts = ["".join(detokenise(sample, vocabulary.tokeniser)).strip() for sample in samples]
                columns.append((title(path, checkpoint), "\n\n".join(texts)))
                firsts.append(samples[0])
        if columns:
            print(compare(columns, shutil.get_terminal_size((120, 24)).columns))
        if args.show_attention is not None:
            for tokens, (model, vocabulary, _) in zip(firsts, loaded):
                show_attention(args.show_attention, model, vocabulary, tokens)


if __name__ == "__main__":
    run(main)
