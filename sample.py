"""From a checkpoint to text: greedy and temperature decoding, comparison, and what attention looked at.

    python sample.py out/cell/checkpoint.pt --prompt "the function returns"
    python sample.py out/cell/checkpoint.pt --prompt "the function returns" --greedy
    echo "if the file" | python sample.py out/cell/checkpoint.pt --prompt - --temperature 0.7
    python sample.py out/*/checkpoint.pt --prompt "the function returns" --greedy --temperature 0.5 1.0
    python sample.py out/attention/checkpoint.pt --show-attention

A language model gives log P(next token | text so far). Decoding turns it into a text:

    greedy          always take the most probable token
    temperature t   draw from softmax(logits / t): t = 1 is the model's own distribution,
                    t -> 0 tends to greedy (in a model that does not copy), and t > 1 gives
                    rare tokens more chances
    top-k           draw among the k most probable tokens only
    top-p           draw among the fewest tokens whose probabilities add up to p (nucleus
                    sampling, Holtzman et al., 2020)

The default is temperature 0.9 for all models, a compromise: see results/README.md. In a model that copies, the
temperature acts on what it generates. What it copies is probable already: made more so, it would be copied again and
again.

Each token goes back in as the next input, together with the model's state, so no token is read twice. `<unk>` is never
chosen, because it stands for words outside the vocabulary.

Sizes in comments: P tokens of prompt, B samples in parallel, V words.
"""

import io
import itertools
import os
import pathlib
import shutil
import sys
import textwrap
import zipfile

from data import EOS, UNK, InputError, Parser, Vocabulary, number, run_script, write_atomically
import torch

from attention_lm import AttentionLM
from lstm_lm import LSTMLM

LARGEST = 1_000_000  # the largest size that a flag may ask for
DEFAULT_TEMPERATURE = 0.9

# --- Decoding --------------------------------------------------------------------------


def choose(log_probs, greedy=False, top_k=None, top_p=None, generator=None):
    """Choose the next token of each sample: log_probs (B, V) -> int64 (B,).

    greedy: take the most probable one; otherwise draw.  top_k: int >= 1.  top_p: in (0, 1].
    """
    if greedy:
        return log_probs.argmax(dim=-1)
    logits = log_probs.double()  # (B, V); log-probabilities are logits, too
    if top_k is not None:
        best, where = logits.topk(min(top_k, logits.shape[-1]))  # (B, K)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, where, best)
    if top_p is not None:
        p, order = torch.softmax(logits, dim=-1).sort(descending=True)  # (B, V)
        beyond = p.cumsum(dim=-1) - p >= top_p  # in order of probability: those before it add up to top_p already
        outside = torch.zeros_like(beyond).scatter(-1, order, beyond)  # in order of token
        logits = logits.masked_fill(outside, -torch.inf)
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1)  # (B, V): P(this token or one before it)
    # One random number for each sample picks a place in it. torch.multinomial would draw V, slower than the model.
    # With right=True no place belongs to a token of probability 0.
    drawn = torch.rand(len(cumulative), 1, dtype=cumulative.dtype, generator=generator) * cumulative[:, -1:]  # (B, 1)
    return torch.searchsorted(cumulative, drawn, right=True)[:, 0]


@torch.inference_mode()
def generate(model, prompts, count, never=(), generator=None, temperature=None, top_k=None, top_p=None):
    """Continue prompts: int64 (P, B), P >= 1 -> yields `count` tensors (B,), one a step.

    never: indices of tokens that are never chosen.  generator: a CPU torch.Generator.
    temperature: None is greedy.  top_k, top_p: see `choose`.
    """
    greedy = temperature is None
    device, state = next(model.parameters()).device, None
    unread = prompts  # (P, B)
    for _ in range(count):
        for part in unread.split(256):  # the log-probabilities of a long prompt at once could fill the memory
            log_probs, state = model(part.to(device), state, 1.0 if greedy else temperature)  # (<= 256, B, V)
        scores = log_probs[-1].float().cpu()  # (B, V)
        scores[:, list(never)] = -torch.inf
        token = choose(scores, greedy, top_k, top_p, generator)  # (B,)
        yield token
        unread = token[None]  # (1, B)


def continuations(model, vocabulary, prompt, count, num_samples=1, seed=0, **how):
    """Continue a prompt, a list of tokens -> yields `count` lists of new tokens, one a step, (num_samples,) each.

    how: temperature, top_k and top_p, see `generate`.
    """
    start = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(prompt)))  # (P,)
    prompts = start[:, None].expand(-1, num_samples)  # (P, B)
    generator = torch.Generator().manual_seed(seed)
    for token in generate(model, prompts, count, [vocabulary.unknown], generator, **how):
        yield vocabulary.decode(token)


# --- What attention looks at -------------------------------------------------------------


@torch.inference_mode()
def look_back(model, vocabulary, tokens):
    """What an AttentionLM sees as it reads a text: for each token a tuple (token, p, copied, weights).

    tokens: list of N tokens, each predicted from those before it.  p: the probability that the model gives the token.
    copied: the share of its prediction that it copies from the memory.  weights: those of the N slots, oldest first,
    and 0 for a slot that is not in view. Slot j is followed by tokens[j].
    Raises InputError when the text is so short that no slot comes into view.
    """
    if len(tokens) < model.delay + 2:
        raise InputError(f"there is nothing to look back at: give at least {model.delay + 2} words")
    indices = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(tokens)))[:, None]  # (1 + N, 1)
    indices = indices.to(next(model.parameters()).device)
    r, weights, followers, _ = model.attend(indices[:-1])
    log_probs = model.mixture(r, weights, followers)  # (N, 1, V)
    p = log_probs.exp().gather(-1, indices[1:, :, None]).flatten().tolist()  # (N,)
    weights = weights[:, 0].tolist()  # N lists of 1 + N weights, the sentinel's first
    return [(token, p_t, 1 - sentinel, slots) for token, p_t, (sentinel, *slots) in zip(tokens, p, weights)]


# --- Models ----------------------------------------------------------------------------


def shared_options(settings):
    """The settings that all models take, as arguments of `LSTMLM`."""
    names = "embedding_size hidden_size dropout locked_dropout weight_dropout tie_weights".split()
    same = {name: settings[name] for name in names if name in settings}  # one that an older file lacks has its default
    return {**same, "num_layers": settings["layers"], "one_hot": settings["input"] == "one-hot"}


def build_lstm(vocab_size, settings):
    """The entries "lstm" and "cell" of `MODELS`."""
    return LSTMLM(vocab_size, core=settings["model"], **shared_options(settings))


def build_attention(vocab_size, settings):
    """The entry "attention" of `MODELS`."""
    options = {"memory_from": settings["memory_from"], "memory_size": settings["memory"]}
    return AttentionLM(vocab_size, **options, **shared_options(settings))


# Each entry takes V and a dict of settings, train.py's flags by name, and returns a LanguageModel. For a model of your
# own, add an entry: train.py and this script can then do all with it that they do with these.
MODELS = {"lstm": build_lstm, "cell": build_lstm, "attention": build_attention}


def model_name(settings):
    """What a model is called: its entry in `MODELS`, but self-attention without an encoder."""
    alone = settings["model"] == "attention" and settings["memory_from"] == "decoder"
    return "self-attention" if alone else settings["model"]


# --- The rest is not about language models: skip it on a first reading ------------------------
#
# It keeps models in files, draws attention, and reads prompts and flags.


# --- Checkpoints -----------------------------------------------------------------------
#
# A checkpoint is a dict of plain values and tensors, written by torch.save:
#
#   settings     train.py's flags by name, {"hidden_size": 256, ...}
#   vocabulary   {"index2word": list of V words, "tokeniser": a name in TOKENISERS}
#   weights      the state_dict of the model that was best on the validation split
#   results      {"valid_ppl": float, "test_ppl": float}, as far as they are known
#   training     what train.py needs to go on


def save_checkpoint(path, checkpoint):
    """Write a checkpoint's dict to a file, whole or not at all.  Raises InputError if it cannot be written."""
    contents = io.BytesIO()  # torch.save into memory cannot fail halfway
    torch.save(checkpoint, contents)
    write_atomically(path, contents.getbuffer())


def check_sizes(settings, vocab_size, path):
    """Raise InputError if a model of these settings would be many times larger than its file.

    The weights of a plain recurrent network of these sizes are counted. Those of the models here are in proportion; one
    that you add may do with fewer.
    """
    if settings["model"] not in ("lstm", "cell", "attention"):
        return
    H, E, L = settings["hidden_size"], settings["embedding_size"], settings["layers"]
    inputs = vocab_size if settings["input"] == "one-hot" else E
    readout = E if settings["tie_weights"] else H
    weights = H * (inputs + L * H) + vocab_size * (E + readout)
    if min(H, E, L) < 1 or 4 * weights > 2 * os.path.getsize(path):
        raise InputError(f"{path} is damaged: its settings ask for larger weights than it holds")


def check_contents(value, file_size, depth=10):
    """Raise ValueError if what was read from a file of so many bytes could take forever to copy or to print.

    A small file can hold a tensor that repeats one number a billion times, and a list that contains another one twice,
    which contains another one twice, and so on.
    """
    if isinstance(value, torch.Tensor) and value.numel() > file_size:
        raise ValueError("it has a tensor that is larger than the file")
    if isinstance(value, (dict, list, tuple)):
        if depth == 0:
            raise ValueError("it is nested too deeply")
        for part in value.values() if isinstance(value, dict) else value:
            check_contents(part, file_size, depth - 1)


def read_checkpoint(path):
    """Read a file that `save_checkpoint` wrote -> its dict, with the tensors in main memory.

    Raises InputError for a file that is missing, damaged, or no checkpoint. Nothing in a file is ever run.
    """
    try:
        raw = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(raw) or archive.testzip():
                raise ValueError("it is damaged")  # compressed by someone, or testzip found a wrong checksum
        checkpoint = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        if type(checkpoint) is not dict:
            raise ValueError("it holds something else")
        check_contents(checkpoint, len(raw))
        return checkpoint
    except Exception as error:  # zipfile and torch raise many kinds of errors for a file that is not theirs
        raise InputError(f"{path} is not a checkpoint of train.py: {first_line(error)}") from None


def load_checkpoint(path, device="cpu", model=None):
    """Open a checkpoint -> (model in evaluation mode, Vocabulary, the checkpoint's dict).

    model: "lstm" or "cell" opens a checkpoint of either with that one.
    Raises InputError as `read_checkpoint` does, and when a model cannot be built from the file or cannot read a token.
    """
    checkpoint = read_checkpoint(path)
    try:
        settings, vocabulary = checkpoint["settings"], checkpoint["vocabulary"]
        if settings["model"] not in MODELS:
            raise ValueError(f"there is no model {settings['model']} in MODELS")
        words = vocabulary["index2word"]
        if not all(type(word) is str for word in words) or len(set(words)) < len(words):
            raise ValueError("its vocabulary is damaged")
        vocabulary = Vocabulary(**vocabulary)
        if model and settings["model"] not in ("lstm", "cell"):
            raise InputError(f"--model opens checkpoints of lstm and cell, but {path} is of another: leave it out")
        if model:  # reading needs no dropout, and torch.nn.LSTM does not have these two
            settings = {**settings, "model": model, "locked_dropout": False, "weight_dropout": 0.0}
        check_sizes(settings, len(vocabulary), path)
        network = MODELS[settings["model"]](len(vocabulary), settings)
        network.load_state_dict(checkpoint["weights"])
        with torch.inference_mode():
            log_probs, _ = network.eval()(torch.tensor([[vocabulary.start]]))  # (1, 1, V)
        if not log_probs.isfinite().all():
            raise ValueError("its weights are not finite")
        title(path, checkpoint)  # an error here means that the results are damaged
    except InputError:
        raise
    except Exception as error:  # whatever is wrong in the file
        raise InputError(f"{path} is not a checkpoint that this version can open: {first_line(error)}") from None
    return network.to(device), vocabulary, checkpoint


def first_line(error):
    """The beginning of an error's message, or its kind if it has none, in one printable line."""
    text = " ".join(str(error).split())[:100] or type(error).__name__
    if isinstance(error, KeyError):
        text = f"it has no {text}"
    return text if text.isprintable() else type(error).__name__


# --- Attention as text --------------------------------------------------------------------


def most_seen(rows, count):
    """The slots with the largest sums of weights over the rows of `look_back`: at most `count`, in order."""
    totals = [sum(column) for column in zip(*(weights for *_, weights in rows))]
    seen = [j for j in range(len(totals)) if totals[j] > 0]
    seen.sort(key=lambda j: totals[j], reverse=True)
    return sorted(seen[:count])


def draw_attention(rows, tokens, width):
    """The last rows of `look_back` as text of about this width: a shade for each slot, and the two largest weights."""
    rows = rows[-40:]
    columns = most_seen(rows, max(10, width - 74))
    before = ["(start)", *tokens]
    lines = ["         the word  P(word)  copied  the slots most looked at, as: word -> the word that followed it"]
    for word, p, copied, weights in rows:
        shades = "".join(" .:-=+*#%@"[min(9, int(10 * weights[j]))] for j in columns)
        best = sorted(((weight, j) for j, weight in enumerate(weights) if weight >= 0.05), reverse=True)[:2]
        seen = "  ".join(f"{before[j][:10]} -> {tokens[j][:10]} {weight:.2f}" for weight, j in best)
        lines.append(f"{word[:17]:>17}  {p:7.3f}  {copied:6.2f} |{shades}| {seen}".rstrip())
    return "\n".join(lines)


# --- The command -------------------------------------------------------------------------


def prompt_tokens(text, vocabulary):
    """Split a prompt into tokens as the corpus was -> (list of tokens, list of those not in the vocabulary).

    Raises InputError for a prompt without any token.
    """
    tokens = list(vocabulary.cut_again(text))
    if tokens and tokens[-1] == EOS:
        tokens.pop()  # so that the model may continue the prompt's last sentence
    known = vocabulary.word2index
    for position, token in enumerate(tokens):
        if token not in known and token.lower() in known:  # in a corpus of small letters, such as ptb
            tokens[position] = token.lower()
    if not tokens:
        raise InputError("the prompt is empty: give some words, or leave --prompt out to start from nothing")
    unknown = [token for token in tokens if token not in known]
    return tokens, list(dict.fromkeys(unknown))


def read_prompt(text, vocabulary, path):
    """`prompt_tokens` -> list of tokens, after a note on stderr about those that the model at `path` does not know."""
    tokens, unknown = prompt_tokens(text, vocabulary)
    if unknown:
        print(f"note: {path} does not know {', '.join(unknown)}; read as {UNK}", file=sys.stderr)
    return tokens


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
    parser = Parser(__doc__)
    size, above_0 = number(int, 1, LARGEST), number(float, 0, open_low=True)
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint.pt", help="several are shown side by side")
    flag = parser.add_argument_group("text").add_argument
    flag("--prompt", action="append", help="text to continue, - for standard input; may be repeated (none)")
    flag("--tokens", type=number(int, 0, LARGEST), default=100, metavar="N", help="tokens to add (%(default)s)")
    flag("--num-samples", type=size, default=1, metavar="N", help="continuations of each prompt (%(default)s)")
    flag = parser.add_argument_group("decoding").add_argument
    flag("--greedy", action="store_true", help="take the most probable token (off)")
    flag("--temperature", type=above_0, nargs="+", metavar="T", help="above 0; several are compared (0.9)")
    flag("--top-k", type=size, metavar="K", help="draw among the K most probable tokens (all)")
    top_p = number(float, 0, 1, open_low=True)
    flag("--top-p", type=top_p, metavar="P", help="draw among the fewest that hold P (1)")
    flag("--seed", type=number(int, 0, 2**62), default=0, metavar="N", help="of the random numbers (%(default)s)")
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=["lstm", "cell"], help="open a checkpoint of one with the other (its own)")
    flag("--device", default="cpu", help="cpu, cuda, mps or auto (%(default)s)")
    flag("--memory", type=size, metavar="N", help="how many steps back an attention model sees (its own)")
    flag("--show-attention", action="store_true", help="print what each word looked at (off)")
    return parser.parse_args(argv)


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


def title(path, checkpoint):
    """A checkpoint's path and, on a second line, the perplexities that training found."""
    perplexities = [(checkpoint["results"].get(f"{split}_ppl"), split) for split in ("valid", "test")]
    known = [f"{ppl:.2f} {split}" for ppl, split in perplexities if ppl is not None]
    return f"{path}\nperplexity {', '.join(known)}" if known else str(path)


def stream(given, steps, vocabulary):
    """Print a prompt and, word by word, its continuation -> the list of all its tokens."""
    text = itertools.chain(given, (token for (token,) in steps))
    tokens, shown = itertools.tee(text)  # the same tokens twice: to return, and to print as they come
    for piece in vocabulary.join(shown):
        print(piece, end="", flush=True)
    print()
    return list(tokens)


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None.

    Raises InputError for what the user can correct.
    """
    args = parse_arguments(argv)
    device = device_of(args.device)
    loaded = [load_checkpoint(path, device, args.model) for path in args.checkpoints]
    for path, (model, _, _) in zip(args.checkpoints, loaded):
        if (args.memory or args.show_attention) and not isinstance(model, AttentionLM):
            raise InputError(f"{path} has no attention: leave --memory and --show-attention out")
        if args.memory:
            model.memory_size = args.memory
    prompts = [read_stdin() if text == "-" else text for text in args.prompt or []] or [None]
    temperatures = args.temperature or ([] if args.greedy else [DEFAULT_TEMPERATURE])
    decoders = ([None] if args.greedy else []) + temperatures  # None is greedy
    alone = len(loaded) == args.num_samples == 1
    how = {"top_k": args.top_k, "top_p": args.top_p}
    for prompt, temperature in itertools.product(prompts, decoders):
        if not alone or len(prompts) * len(decoders) > 1:
            name = f"temperature {temperature:g}" if temperature else "greedy"
            print(f"\n=== {'from nothing' if prompt is None else prompt.strip()}, {name} ===\n")
        columns, firsts = [], []
        for path, (model, vocabulary, checkpoint) in zip(args.checkpoints, loaded):
            given = [] if prompt is None else read_prompt(prompt, vocabulary, path)
            steps = continuations(
                model, vocabulary, given, args.tokens, args.num_samples, args.seed, temperature=temperature, **how
            )
            if alone:
                firsts.append(stream(given, steps, vocabulary))
                continue
            samples = [[*given, *new] for new in zip(*steps)] or [given] * args.num_samples
            texts = ["".join(vocabulary.join(sample)).strip() for sample in samples]
            columns.append((title(path, checkpoint), "\n\n".join(texts)))
            firsts.append(samples[0])
        if columns:
            print(compare(columns, shutil.get_terminal_size((120, 24)).columns))
        if args.show_attention:
            for tokens, (model, vocabulary, _) in zip(firsts, loaded):
                rows = look_back(model, vocabulary, tokens)
                print(draw_attention(rows, tokens, shutil.get_terminal_size((110, 24)).columns))


if __name__ == "__main__":
    run_script(main)
