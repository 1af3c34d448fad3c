"""From a checkpoint to text: greedy and temperature decoding, comparison, attention pictures.

    python sample.py out/cell/checkpoint.pt --prompt "the function returns"
    python sample.py out/cell/checkpoint.pt --prompt "the function returns" --greedy
    echo "if the file" | python sample.py out/cell/checkpoint.pt --prompt - --temperature 0.7
    python sample.py out/*/checkpoint.pt --prompt "the function returns" --greedy --temperature 0.5 1.0
    python sample.py out/attention/checkpoint.pt --show-attention attention.svg

A language model gives log P(next token | text so far). Decoding is how a text is made of it:

    greedy          the most probable token, every time
    temperature t   a draw from P^(1/t), normalised: t = 1 is the model's own distribution,
                    t -> 0 tends to greedy, t > 1 is bolder than the model
    top-k           the draw is among the k most probable tokens only
    top-p           among the fewest tokens that hold p of the probability (nucleus sampling,
                    Holtzman et al., 2020)

Each token goes back in as the next input, with the model's state: nothing is computed
twice. `<unk>` is never chosen; it stands for words that the vocabulary does not have.

Sizes in comments: P tokens of prompt, B samples in parallel, V words.
"""

import argparse
import html
import inspect
import io
import itertools
import pathlib
import shutil
import sys
import textwrap
import warnings

from data import EOS, SPLITS, UNK, InputError, Parser, Vocabulary, detokenise, number, restore_numbers, run
from data import tokenise, write_atomically
import torch

from attention_lm import AttentionLM
from lstm_lm import LSTMLM

# --- Checkpoints -----------------------------------------------------------------------


def build_model(settings, vocab_size):
    """The model that a dict of settings (train.py's flags) describes.

    Raises InputError for settings that contradict each other.
    """
    shared = dict(
        vocab_size=vocab_size,
        embedding_size=settings["embedding_size"],
        hidden_size=settings["hidden_size"],
        num_layers=settings["layers"],
        dropout=settings["dropout"],
        input=settings["input"],
        tie_weights=settings["tie_weights"],
    )
    try:
        if settings["model"] == "attention":
            return AttentionLM(**shared, memory_from=settings["memory_from"], memory=settings["memory"])
        return LSTMLM(**shared, core=settings["model"])
    except ValueError as error:
        raise InputError(str(error)) from None


def read_checkpoint(path, device="cpu"):
    """The dict in a checkpoint file, read with `weights_only`: a file cannot run code here.

    Raises InputError for a file that is missing, damaged, or no checkpoint of this project.
    """
    try:
        raw = io.BytesIO(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how the file was pickled: below it is said in one line
            checkpoint = torch.load(raw, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for what is not a whole, plain file of weights
        unsafe = "weights_only" in str(error).lower() and "GLOBAL" in str(error)
        reason = "it holds more than weights and could run code" if unsafe else "it is damaged or something else"
        raise InputError(f"{path} is not a checkpoint that train.py wrote: {reason}") from None
    if not isinstance(checkpoint, dict) or not {"settings", "vocabulary", "weights"} <= checkpoint.keys():
        raise InputError(f"{path} is not a checkpoint that train.py wrote: it has no settings, vocabulary and weights")
    return checkpoint


def load_checkpoint(path, device="cpu", model=None):
    """Open a checkpoint -> (model in evaluation mode, Vocabulary, the checkpoint's dict).

    model: "lstm" or "cell" opens a checkpoint of either with that one.
    Raises InputError for a file that is missing, damaged, of another kind, or does not fit.
    """
    checkpoint = read_checkpoint(path, device)
    try:
        settings = dict(checkpoint["settings"], **({"model": model} if model else {}))
        if model and checkpoint["settings"]["model"] == "attention":
            raise InputError(f"--model opens checkpoints of lstm and cell, but {path} is of attention: leave it out")
        vocabulary = Vocabulary(**checkpoint["vocabulary"])
        network = build_model(settings, len(vocabulary)).to(device)
        network.load_state_dict(checkpoint["weights"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} does not fit the model it is opened with: {reason}") from None
    return network.eval(), vocabulary, checkpoint


# --- Decoding --------------------------------------------------------------------------


def choose(log_probs, temperature=None, top_k=None, top_p=None, generator=None):
    """Choose the next token of each sample: log_probs (B, V) -> int64 (B,).

    temperature: None is greedy.  top_k: int >= 1.  top_p: in (0, 1].
    """
    if temperature is None:
        return log_probs.argmax(dim=-1)
    logits = log_probs.double()  # where no temperature that a float can be is 0 or infinite
    logits = (logits - logits.max(dim=-1, keepdim=True).values) / temperature  # (B, V), 0 at the best
    if top_k is not None:
        best, where = logits.topk(min(top_k, logits.shape[-1]))  # (B, K)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, where, best)
    if top_p is not None:
        p, order = torch.softmax(logits, dim=-1).sort(descending=True)  # (B, V)
        beyond = p.cumsum(dim=-1) - p >= top_p  # the tokens before it hold top_p already
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    up_to = torch.softmax(logits, dim=-1).cumsum(dim=-1)  # (B, V): P(this token or one before)
    # one random number a sample says where in these; torch.multinomial draws V of them and takes longer than a model
    drawn = torch.rand(len(up_to), 1, dtype=up_to.dtype, generator=generator) * up_to[:, -1:]  # (B, 1)
    return torch.searchsorted(up_to, drawn, right=True)[:, 0]


@torch.inference_mode()
def generate(model, prompt, tokens, samples=1, never=(), generator=None, **how):
    """Continue a prompt: int64 (P,), P >= 1 -> yields `tokens` tensors (samples,), one a step.

    never: numbers of tokens not to choose.  generator: a CPU torch.Generator.  how: see `choose`.
    """
    device, state = next(model.parameters()).device, None
    unread = prompt[:, None].expand(-1, samples)  # (P, B)
    for _ in range(tokens):
        for part in unread.split(256):  # the log-probabilities of a long prompt would fill the memory
            log_probs, state = model(part.to(device), state)  # (<= 256, B, V)
        scores = log_probs[-1].float().cpu()  # (B, V)
        scores[:, list(never)] = -torch.inf
        token = choose(scores, generator=generator, **how)  # (B,)
        yield token
        unread = token[None]  # (1, B)


def prompt_tokens(text, vocabulary):
    """A prompt's tokens, cut as the corpus was -> (list of tokens, list of those unknown).

    Raises InputError for a prompt without any token.
    """
    tokens = list(tokenise(restore_numbers(text) if vocabulary.tokeniser == "text" else text, vocabulary.tokeniser))
    if tokens and tokens[-1] == EOS:
        tokens.pop()  # the prompt's last sentence may go on
    if vocabulary.tokeniser == "lines":  # The is the in a corpus of lower case
        tokens = [token if token in vocabulary.word2index else token.lower() for token in tokens]
    if not tokens:
        raise InputError("the prompt is empty: give some words, or leave --prompt out to start from nothing")
    unknown = [token for token in tokens if vocabulary.index(token) == vocabulary.index(UNK) and token != UNK]
    return tokens, list(dict.fromkeys(unknown))


def continuations(model, vocabulary, prompt, tokens, samples, seed, **how):
    """Yield (samples,) lists of new tokens, step by step, after a prompt given as a list of tokens."""
    start = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(prompt)))
    generator = torch.Generator().manual_seed(seed)
    for token in generate(model, start, tokens, samples, [vocabulary.index(UNK)], generator, **how):
        yield vocabulary.decode(token)


def compare(columns, width):
    """Texts side by side: [(title, text), ...] -> a string at most `width` wide, or one below the other."""
    each = (width - 3 * (len(columns) - 1)) // len(columns)
    if each < 24:
        return "\n\n".join(f"{title}\n{text}" for title, text in columns)

    def wrap(text):
        return [row for line in text.split("\n") for row in textwrap.wrap(line, each) or [""]]

    wrapped = [[*wrap(title), "-" * each, *wrap(text)] for title, text in columns]
    height = max(map(len, wrapped))
    rows = zip(*(column + [""] * (height - len(column)) for column in wrapped))
    return "\n".join(" | ".join(f"{cell:{each}}" for cell in row).rstrip() for row in rows)


# --- Attention, for people to look at ----------------------------------------------------


@torch.inference_mode()
def look_back(model, vocabulary, tokens):
    """What an AttentionLM sees as it reads a text: for each token a tuple (token, p, copied, weights).

    tokens: list of N tokens, each predicted from those before it.  p: the probability that the model gives the token.
    copied: the share of its prediction that it copies from the memory.  weights: that of each earlier slot, oldest
    first. Slot j is followed by tokens[j].
    """
    indices = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(tokens)))[:, None]  # (1 + N, 1)
    indices = indices.to(next(model.parameters()).device)
    log_probs, _ = model(indices[:-1])  # (N, 1, V)
    p = log_probs.exp().gather(-1, indices[1:, None])[:, 0, 0].tolist()
    weights = model.attend(indices[:-1])[1][:, 0].tolist()  # N lists of 1 + N weights, the sentinel's first
    return [(tokens[t], p[t], 1 - weights[t][0], weights[t][1 : t + 1]) for t in range(len(tokens))]


def most_seen(rows, count):
    """The slots with the largest sums of weights over the rows of `look_back`, at most `count`, in order of the text."""
    slots = range(len(rows[-1][3]))
    total = [sum(weights[j] for *_, weights in rows if j < len(weights)) for j in slots]
    return sorted(sorted(slots, key=total.__getitem__)[-count:])


def draw_attention(rows, tokens, width):
    """The last rows of `look_back` as text, at most `width` wide: a shade for each slot, and the two largest weights."""
    columns = most_seen(rows, max(10, width - 74))
    before = ["(start)", *tokens]
    lines = ["         the word  P(word)  copied  the slots most looked at, as: word -> the word that followed it"]
    for word, p, copied, weights in rows[-40:]:
        shades = "".join(" .:-=+*#%@"[min(9, int(10 * weights[j]))] if j < len(weights) else " " for j in columns)
        best = sorted(((weight, j) for j, weight in enumerate(weights) if weight >= 0.05), reverse=True)[:2]
        seen = "  ".join(f"{before[j][:10]} -> {tokens[j][:10]} {weight:.2f}" for weight, j in best)
        lines.append(f"{word[:17]:>17}  {p:7.3f}  {copied:6.2f} |{shades}| {seen}".rstrip())
    return "\n".join(lines)


def attention_svg(rows, tokens):
    """The last rows of `look_back` as an SVG picture.

    Rows are the words to come. Columns are the slots most looked at, each named by its word and the word that followed.
    A cell is as dark as its weight, and orange where the word that followed is the word to come. A bar beside each row
    is the share of the prediction that is copied.
    """
    rows, cell, left, top = rows[-36:], 16, 110, 130
    columns, before = most_seen(rows, 46), ["(start)", *tokens]
    right, bottom = left + cell * len(columns), top + cell * len(rows)
    parts = [f'<text x="{right + 8}" y="{top - 8}">copied</text>']
    for column, j in enumerate(columns):
        place = f"translate({left + (column + 0.7) * cell:.0f},{top - 6}) rotate(-60)"
        label = html.escape(f"{before[j][:12]} \u2192 {tokens[j][:12]}")
        parts.append(f'<text transform="{place}">{label}</text>')
    for row, (word, p, copied, weights) in enumerate(rows):
        y = top + row * cell
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{html.escape(word[:16])}</text>')
        parts.append(f'<rect class="bar" x="{right + 8}" y="{y + 3}" width="{60 * copied:.1f}" height="{cell - 6}"/>')
        for column, j in enumerate(columns):
            weight = weights[j] if j < len(weights) else 0.0
            kind = "none" if j >= len(weights) else "hit" if tokens[j] == word else "slot"
            words = html.escape(f"{before[j]} \u2192 {tokens[j]}: {weight:.3f}; P({word}) = {p:.3f}")
            parts.append(
                f'<rect class="{kind}" x="{left + column * cell}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{0.05 + 0.95 * weight:.3f}"><title>{words}</title></rect>'
            )
    style = (
        "text{font:11px sans-serif;fill:#222}.slot{fill:#0b5394}.hit{fill:#d95f02}.none{fill:#fff}.bar{fill:#666}"
        ".page{fill:#fff}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + 80}" height="{bottom + 10}"><style>{style}</style>'
    return f'{head}<rect class="page" width="100%" height="100%"/>{"".join(parts)}</svg>\n'


def show_attention(file, model, vocabulary, tokens):
    """Print where the model looks as it reads a text and, unless `file` is empty, draw it as an SVG file.

    Raises InputError when the text has less than two tokens, or the file cannot be written.
    """
    if len(tokens) < 2:
        raise InputError("there is nothing to look back at: give a --prompt or --tokens of at least 2 words")
    rows = look_back(model, vocabulary, tokens)
    print(draw_attention(rows, tokens, shutil.get_terminal_size((110, 24)).columns))
    if file:
        write_atomically(file, lambda out: out.write(attention_svg(rows, tokens).encode()))
        print(f"\nwrote {file}: open it in a browser; a cell names its slot and weight")


# --- The command -------------------------------------------------------------------------


def device_of(name):
    """A device's name, or "auto" -> a torch.device that is there.  Raises InputError if it is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(1, device=name).device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
    except (RuntimeError, AssertionError):
        raise InputError(f"there is no device {name} here: give cpu, or leave --device out") from None
    return torch.device(name)


def read_stdin():
    """Standard input as text, without its last line end.  Raises InputError if it is not text."""
    try:
        if hasattr(sys.stdin, "reconfigure"):  # in some locales Python lets wrong bytes pass
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on standard input is not UTF-8: byte {error.start}") from None


def parse_arguments(argv):
    """The flags -> a namespace."""
    parser = Parser(description=inspect.cleandoc(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint.pt", help="several are shown side by side")
    text = parser.add_argument_group("text")
    text.add_argument(
        "--prompt", action="append", help="text to continue, - for standard input; may be repeated (none)"
    )
    text.add_argument("--tokens", type=number(int, 1), default=100, help="tokens to add (%(default)s)")
    text.add_argument(
        "--num-samples", type=number(int, 1), default=1, help="continuations of each prompt (%(default)s)"
    )
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument("--greedy", action="store_true", help="take the most probable token (off)")
    decoding.add_argument(
        "--temperature", type=number(float, 0, open_low=True), nargs="+", help="above 0; several are compared (0.8)"
    )
    decoding.add_argument("--top-k", type=number(int, 1), metavar="K", help="draw among the K most probable (all)")
    decoding.add_argument(
        "--top-p", type=number(float, 0, 1, open_low=True), metavar="P", help="draw among those that hold P (1)"
    )
    decoding.add_argument(
        "--seed", type=number(int, 0, 2**62), default=0, help="another seed is another text (%(default)s)"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=["lstm", "cell"], help="open a checkpoint of one with the other (its own)")
    model.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (%(default)s)")
    model.add_argument(
        "--show-attention", nargs="?", const="", metavar="FILE.svg", help="draw what each word looked at (off)"
    )
    return parser.parse_args(argv)


def title(path, checkpoint):
    """A checkpoint's path and, on a second line, the perplexities that training found."""
    results = checkpoint.get("results", {})
    known = [f"{results[f'{split}_ppl']:.2f} {split}" for split in SPLITS if f"{split}_ppl" in results]
    return f"{path}\nperplexity {', '.join(known)}" if known else str(path)


def stream(given, steps, tokeniser):
    """Print a prompt and its continuation as it is made -> the list of all its tokens."""
    tokens = []

    def as_made():
        for token in itertools.chain(given, (token for (token,) in steps)):
            tokens.append(token)
            yield token

    for piece in detokenise(as_made(), tokeniser):
        print(piece, end="", flush=True)
    print()
    return tokens


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None.

    Raises InputError for whatever the user can mend.
    """
    args = parse_arguments(argv)
    device = device_of(args.device)
    loaded = [load_checkpoint(path, device, args.model) for path in args.checkpoints]
    for path, (model, _, _) in zip(args.checkpoints, loaded):
        if args.show_attention is not None and not isinstance(model, AttentionLM):
            raise InputError(f"{path} has no attention to show: train one with --model attention")
    prompts = [read_stdin() if text == "-" else text for text in args.prompt or []] or [None]
    temperatures = args.temperature or ([] if args.greedy else [0.8])
    decoders = [None] * args.greedy + temperatures
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
            how = dict(temperature=temperature, top_k=args.top_k, top_p=args.top_p)
            steps = continuations(model, vocabulary, given, args.tokens, args.num_samples, args.seed, **how)
            if alone:
                firsts.append(stream(given, steps, vocabulary.tokeniser))
            else:
                samples = [[*given, *new] for new in zip(*steps)]
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
