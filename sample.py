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
from data import tokenise
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
            return AttentionLM(**shared, window=settings["window"])
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


def attention_windows(model, vocabulary, tokens):
    """What each word of a text looked at -> list of (memory words, [(new word, weights over the memory), ...]).

    tokens: list of N tokens; a model's own window is one entry, its memory the window before.
    """
    indices = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(tokens)))
    device = next(model.parameters()).device
    with torch.inference_mode():
        weights = model.attend(indices[:-1, None].to(device))[1]  # N tensors (1, M)
    read = [EOS, *tokens]  # step t reads read[t] and predicts read[t + 1]
    W = model.window
    return [
        (read[k - W : k], [(read[t + 1], weights[t][0].tolist()) for t in range(k, min(k + W, len(tokens)))])
        for k in range(W, len(tokens), W)
    ]


def draw_attention(windows):
    """The weights as text: a row for each new word, a shade for each word of the memory."""
    lines = []
    for memory, rows in windows:
        lines += ["", "the memory: " + " ".join(memory), ""]
        for word, weights in rows:
            shades = "".join(" ·░▒▓█"[min(5, int(6 * weight / max(weights)))] for weight in weights)
            best = sorted(zip(weights, memory), reverse=True)[:3]
            looked = "  ".join(f"{other} {weight:.2f}" for weight, other in best)
            lines.append(f"{word[:14]:>14} |{shades}| {looked}")
    return "\n".join(lines)


def attention_svg(windows):
    """The weights as an SVG picture: a grid for each window, rows are new words, columns the memory."""
    cell, left, top = 18, 130, 110
    parts, y = [], 10
    for memory, rows in windows:
        y += top
        for column, word in enumerate(memory):
            x = left + (column + 0.7) * cell
            parts.append(f'<text transform="translate({x:.0f},{y - 6}) rotate(-60)">{html.escape(word)}</text>')
        for row, (word, weights) in enumerate(rows):
            parts.append(
                f'<text x="{left - 8}" y="{y + (row + 0.7) * cell:.0f}" text-anchor="end">{html.escape(word)}</text>'
            )
            for column, weight in enumerate(weights):
                words = html.escape(f"{word} looked at {memory[column]}: {weight:.3f}")
                parts.append(
                    f'<rect x="{left + column * cell}" y="{y + row * cell}" width="{cell - 1}" height="{cell - 1}" '
                    f'fill-opacity="{0.04 + 0.96 * weight / max(weights):.3f}"><title>{words}</title></rect>'
                )
        y += len(rows) * cell + 20
    width = left + cell * max((len(memory) for memory, _ in windows), default=0) + 60
    style = "<style>text{font:12px sans-serif;fill:#222}rect{fill:#0b5394}</style>"
    style += '<rect width="100%" height="100%" style="fill:#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}">{style}{"".join(parts)}</svg>\n'


def show_attention(file, model, vocabulary, tokens):
    """Draw what each word of a text looked at, in the terminal and, unless `file` is empty, as an SVG file.

    Raises InputError when the text is shorter than a window, or the file cannot be written.
    """
    windows = attention_windows(model, vocabulary, tokens)
    if not windows:
        raise InputError(f"the memory is empty for the first {model.window} words: give --tokens {2 * model.window}")
    print(draw_attention(windows))
    if file:
        try:
            pathlib.Path(file).write_text(attention_svg(windows), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}") from None
        print(f"\nwrote {file}: open it in a browser; a cell names its words and weight")


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
