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

The default is temperature 0.9 for all models, a compromise: see results/README.md. In a model that copies, it acts on
what is generated. What is copied keeps its probability: made more probable, it would be copied again and again.

Each token goes back in as the next input, together with the model's state, so no token is read twice. `<unk>` is never
chosen, because it stands for words outside the vocabulary.

Sizes in comments: P tokens of prompt, B samples in parallel, V words.
"""

import io
import itertools
import os
import pathlib
import re
import shutil
import sys
import textwrap
import zipfile

import data  # before torch, see there
import torch

import attention_lm
from data import EOS, NUMBER, UNK, InputError, at_least

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
        beyond = p.cumsum(dim=-1) - p >= top_p  # (B, V), sorted: true where the tokens before add up to top_p already
        outside = torch.zeros_like(beyond).scatter(-1, order, beyond)  # (B, V), in the order of tokens
        logits = logits.masked_fill(outside, -torch.inf)
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1)  # (B, V): P(this token or one before it)
    # One random number for each sample picks the first token whose cumulative probability is larger. (right=True: it
    # never has probability 0.) torch.multinomial would draw V numbers, which takes longer than the model.
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
    """What an AttentionLM sees as it reads a text: for each token a tuple (token, p, looks, weights).

    tokens: list of N tokens, each predicted from those before it.  p: the probability that the model gives the token.
    looks: the sum of its weights on all positions but the sentinel; a model that copies, copies with this probability.
    weights: those of the N positions without the sentinel, oldest first, and 0 for a masked one. What came next at
    position j is tokens[j]; position 0 is the token that starts a text.
    Raises InputError for an empty text.
    """
    if not tokens:
        raise InputError("there is nothing to look back at: give a --prompt, or --tokens above 0")
    indices = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(tokens)))[:, None]  # (1 + N, 1)
    indices = indices.to(next(model.parameters()).device)
    features, weights, next_tokens, _ = model.attend(indices[:-1])
    log_probs = model.mixture(features, weights, next_tokens)  # (N, 1, V)
    p = log_probs.exp().gather(-1, indices[1:, :, None]).flatten().tolist()  # (N,)
    weights = weights[:, 0].tolist()  # N lists of 1 + N weights, the sentinel's first
    return [(token, p_t, 1 - sentinel, others) for token, p_t, (sentinel, *others) in zip(tokens, p, weights)]


# --- The rest is not about language models: skip it on a first reading ------------------------


# --- Checkpoints -----------------------------------------------------------------------
#
# A checkpoint is a dict of plain values and tensors, written by torch.save:
#
#   settings     train.py's flags by name, {"hidden_size": 256, ...}
#   vocabulary   what the constructor of `data.Vocabulary` takes
#   weights      the state_dict of the model that was best on the validation split
#   results      {"valid_ppl": float, "test_ppl": float}, as far as they are known
#   training     what train.py needs to go on


def save_checkpoint(path, checkpoint):
    """Write a checkpoint's dict to a new file, which then replaces `path`. After any failure the old file is whole."""
    contents = io.BytesIO()  # torch.save into memory cannot fail halfway
    torch.save(checkpoint, contents)
    part = f"{path}.part"
    with open(part, "wb") as file:
        file.write(contents.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_checkpoint(path):
    """Read a file that `save_checkpoint` wrote -> its dict, with the tensors in main memory.

    Nothing in a file is ever run, because of weights_only, and its checksums tell a changed bit.
    Raises OSError for a file that cannot be read and InputError for one that is no checkpoint.
    """
    raw = pathlib.Path(path).read_bytes()
    try:
        if zipfile.ZipFile(io.BytesIO(raw)).testzip():
            raise ValueError
        checkpoint = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        if not {"settings", "vocabulary", "weights", "results"} <= checkpoint.keys():
            raise ValueError
        return checkpoint
    except Exception:  # zipfile and torch raise many kinds of errors for a file that is not theirs
        raise InputError(f"{path} is not a checkpoint of train.py, or is damaged") from None


def load_checkpoint(path, device="cpu", model=None):
    """Open a checkpoint -> (model in evaluation mode, Vocabulary, the checkpoint's dict).

    model: "lstm" or "cell" opens a checkpoint of either with that one; None, with the one that was trained.
    Raises OSError and InputError as `read_checkpoint` does, also where the weights do not fit the settings.
    """
    checkpoint = read_checkpoint(path)
    settings = checkpoint["settings"]
    if settings["model"] not in attention_lm.MODELS:
        raise InputError(f"{path} is of model {settings['model']}, which has no entry in attention_lm.MODELS")
    if model and settings["model"] not in ("lstm", "cell"):
        raise InputError(f"--model opens checkpoints of lstm and cell, but {path} is of another: leave it out")
    settings = {**settings, "model": model or settings["model"]}
    try:
        vocabulary = data.Vocabulary(**checkpoint["vocabulary"])
        network = attention_lm.MODELS[settings["model"]](len(vocabulary), settings)
        network.load_state_dict(checkpoint["weights"])
    except Exception:  # torch and Python raise many kinds of errors for settings that do not fit
        raise InputError(f"{path} does not fit these models: train anew, it is of another version") from None
    return network.to(device).eval(), vocabulary, checkpoint


# --- Attention as text --------------------------------------------------------------------


def most_seen(rows, count):
    """The positions with the largest sums of weights over the rows of `look_back`: at most `count`, in order."""
    totals = [sum(column) for column in zip(*(weights for *_, weights in rows))]
    seen = [j for j in range(len(totals)) if totals[j] > 0]
    seen.sort(key=lambda j: totals[j], reverse=True)
    return sorted(seen[:count])


def draw_attention(rows, tokens, width):
    """The last rows of `look_back` as text of about this width: shades for positions, and the two largest weights."""
    rows = rows[-40:]
    columns = most_seen(rows, max(10, width - 74))
    before = ["(start)", *tokens]
    lines = ["         the word  P(word)   looks  where it looks most, as: word -> the word that came next"]
    for word, p, looks, weights in rows:
        shades = "".join(" .:-=+*#%@"[min(9, int(10 * weights[j]))] for j in columns)
        best = sorted(((weight, j) for j, weight in enumerate(weights) if weight >= 0.05), reverse=True)[:2]
        seen = "  ".join(f"{before[j][:10]} -> {tokens[j][:10]} {weight:.2f}" for weight, j in best)
        lines.append(f"{word[:17]:>17}  {p:7.3f}  {looks:6.2f} |{shades}| {seen}".rstrip())
    return "\n".join(lines)


# --- The command -------------------------------------------------------------------------


def prompt_tokens(text, vocabulary, path):
    """Cut a prompt into tokens as the corpus was -> list of tokens, after a note about those that are unknown.

    Raises InputError for a prompt without any token.
    """
    if vocabulary.tokeniser == "word":  # N, as texts are written, must be a number again and not the letter n
        text = re.sub(rf"\b{NUMBER}\b", "0", text)
    tokens, known = list(vocabulary.cut(text)), vocabulary.word2index
    if tokens and tokens[-1] == EOS:
        tokens.pop()  # so that the model may continue the prompt's last sentence
    if not tokens:
        raise InputError("the prompt is empty: give some words, or leave --prompt out to start from nothing")
    for position, token in enumerate(tokens):
        if token not in known and token.lower() in known:  # in a corpus of small letters, such as ptb
            tokens[position] = token.lower()
    unknown = dict.fromkeys(token for token in tokens if token not in known)
    if unknown:
        print(f"note: {path} does not know {', '.join(unknown)}; read as {UNK}", file=sys.stderr)
    return tokens


def read_stdin():
    """Standard input as text, without line ends at its end.  Raises InputError if it is not UTF-8."""
    try:
        return open(0, encoding="utf-8", closefd=False).read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt on standard input is not UTF-8: {error}") from None


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


def parse_arguments(argv):
    """The flags -> a namespace."""
    parser = data.Parser(__doc__)
    positive, above_0 = at_least(1), at_least(1e-9, float)
    parser.add_argument("checkpoints", nargs="+", metavar="checkpoint.pt", help="several are shown side by side")
    flag = parser.add_argument_group("text").add_argument
    flag("--prompt", action="append", help="text to continue, - for standard input; may be repeated (none)")
    flag("--tokens", type=at_least(0), default=100, metavar="N", help="tokens to add (%(default)s)")
    flag("--num-samples", type=positive, default=1, metavar="N", help="continuations of each prompt (%(default)s)")
    flag = parser.add_argument_group("decoding").add_argument
    flag("--greedy", action="store_true", help="take the most probable token (off)")
    flag("--temperature", type=above_0, nargs="+", metavar="T", help="above 0; several are compared (0.9)")
    flag("--top-k", type=positive, metavar="K", help="draw among the K most probable tokens (all)")
    flag("--top-p", type=above_0, metavar="P", help="draw among the fewest that hold P, above 0 (1)")
    flag("--seed", type=at_least(0), default=0, metavar="N", help="of the random numbers (%(default)s)")
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=["lstm", "cell"], help="open a checkpoint of one with the other (its own)")
    flag("--device", default="cpu", help="cpu, cuda, mps or auto (%(default)s)")
    flag("--memory", type=positive, metavar="N", help="how many steps back an attention model sees (its own)")
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


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None.

    Raises InputError for what the user can correct.
    """
    args = parse_arguments(argv)
    device, width = device_of(args.device), shutil.get_terminal_size((120, 24)).columns
    loaded = [load_checkpoint(path, device, args.model) for path in args.checkpoints]
    for path, (model, _, _) in zip(args.checkpoints, loaded):
        if (args.memory or args.show_attention) and not isinstance(model, attention_lm.AttentionLM):
            raise InputError(f"{path} has no attention: leave --memory and --show-attention out")
        if args.memory:
            model.memory_size = args.memory
    prompts = [read_stdin() if text == "-" else text for text in args.prompt or []] or [None]
    temperatures = args.temperature or ([] if args.greedy else [DEFAULT_TEMPERATURE])
    decoders = ([None] if args.greedy else []) + temperatures  # None is greedy
    for prompt, temperature in itertools.product(prompts, decoders):
        if len(prompts) * len(decoders) * len(loaded) > 1:
            name = f"temperature {temperature:g}" if temperature else "greedy"
            print(f"\n=== {'from nothing' if prompt is None else prompt.strip()}, {name} ===\n")
        columns, pictures = [], []
        for path, (model, vocabulary, checkpoint) in zip(args.checkpoints, loaded):
            given = [] if prompt is None else prompt_tokens(prompt, vocabulary, path)
            how = {"temperature": temperature, "top_k": args.top_k, "top_p": args.top_p}
            steps = continuations(model, vocabulary, given, args.tokens, args.num_samples, args.seed, **how)
            samples = [[*given, *new] for new in zip(*steps)] or [given]  # one list for each sample
            texts = ["".join(vocabulary.join(tokens)).strip() for tokens in samples]
            columns.append((title(path, checkpoint), "\n\n".join(texts)))
            if args.show_attention:
                pictures.append(draw_attention(look_back(model, vocabulary, samples[0]), samples[0], width))
        print(compare(columns, width) if len(columns) > 1 else columns[0][1])
        for picture in pictures:
            print(picture)


if __name__ == "__main__":
    data.run_script(main)
