"""A page that shows how trained models read a text: open the file in any browser, and point at a word.

    python -m results.page out/self-attention/checkpoint.pt --file page.html
    python -m results.page out/lstm/checkpoint.pt out/attention/checkpoint.pt --prompt "the file is open (if it"

The text is from the validation split, unless there is a prompt. Each model goes on with it twice: greedily, and drawn.
The file is `page.html` of this folder with the data in it. It needs no server, no library and no network.

The page has a *row* for each token, with what the model computes when it has read it. Row 0 is the token that starts a
text. The rows of the text follow, then those of the greedy continuation, then those of the drawn one.

Sizes in comments: N tokens of one reading, R rows of the page, V words, H hidden units.
"""

import json
import pathlib

from data import EOS, InputError, Parser, at_least, run_script  # before torch, see there
import torch

from attention_lm import AttentionLM
from results.unit import PROPERTIES, Steps, choose_passage, find_unit, memory_and_gates
from results.words import open_together, stands_before
from sample import DEFAULT_TEMPERATURE, continuations, prompt_tokens, title

TEMPLATE = pathlib.Path(__file__).with_name("page.html")
SEARCH = 10_000  # tokens of the validation text, in which the units are searched
NEAR = 400  # tokens back in which a word counts as seen before
BUDGET = 960_000  # bytes for the data of all models: if they are too many, some units are left out
ABOUT = {
    "lstm": "One LSTM. All that it knows of the text is in its memory c and its state h.",
    "attention": "Two LSTMs: one keeps its states, and the other looks back at them. The units are those of the first.",
    "self-attention": "One LSTM, which can look back at all its earlier states.",
}


# --- What a unit may follow ----------------------------------------------------------------


def quotation(tokens, start):
    """For each token, whether a quotation in double quotes is open after it. `start` closes it."""
    is_open = False
    for token in tokens:
        is_open = token != start and is_open != (token.count('"') % 2 == 1)  # two quotes in one token change nothing
        yield is_open


def place(tokens, start):
    """For each token, how many tokens its sentence, or line, has up to it. `start` ends it and counts as 0."""
    count = 0
    for token in tokens:
        count = 0 if token == start else count + 1
        yield count


def properties(tokens, start):
    """What a unit may follow -> {what, in words: whether it holds after each token, bool (N,)}."""
    part, places = "sentence" if start == EOS else "line", torch.tensor(list(place(tokens, start)))
    rules = {**PROPERTIES, "quotation": quotation}
    found = {f"inside a {name}": torch.tensor(list(rule(tokens, start))) for name, rule in rules.items()}
    found[f"in the first 3 tokens of a {part}"] = places <= 3
    found[f"beyond token 12 of a {part}"] = places > 12
    found["at a word seen before"] = stands_before(tokens, NEAR)
    return found


def best_units(c, holds, count=3):
    """The units that follow a property best: c (N, H), holds bool (N,) -> [unit, correlation, threshold] of each."""
    c, found = c.clone(), []
    for _ in range(min(count, c.shape[1])):
        unit, correlation, threshold = find_unit(c, holds)
        found.append([unit, round(correlation, 2), rounded(threshold)])
        c[:, unit] = 0  # a unit that never changes follows nothing, so the next best is found
    return found


# --- What a model computes -----------------------------------------------------------------


def units_of(model, tokens):
    """What the units of a model's LSTM, in its first layer, compute as they read tokens int64 (N,) -> Steps.

    Of two LSTMs it is the encoder.  Raises InputError for a model that has none.
    """
    found = [getattr(model, name) for name in ("core", "encoder", "decoder") if hasattr(model, name)]
    if not found:
        raise InputError(f"{type(model).__name__} has no LSTM to show: name it core, encoder or decoder")
    return memory_and_gates(found[0], model.embed(tokens))


@torch.inference_mode()
def read(model, tokens):
    """Read tokens int64 (N,), the first of them the start of a text.

    Returns the probabilities of the next token (N, V), the part of them that is copied (N, V), and the weights with the
    sentinel's first (N, 1 + N). A model without attention has None for the weights.
    """
    input = tokens[:, None]  # (N, 1)
    copied = model.output.weight.new_zeros(len(tokens), model.vocab_size)  # (N, V)
    if not isinstance(model, AttentionLM):
        log_probs, _ = model(input)  # (N, 1, V)
        return log_probs[:, 0].exp(), copied, None
    features, weights, next_tokens, _ = model.attend(input)  # weights (N, 1, 1 + N), next_tokens (N, 1)
    if model.copy:
        copied.scatter_add_(-1, next_tokens.t().expand(len(tokens), -1), weights[:, 0, 1:])
    return model.mixture(features, weights, next_tokens)[:, 0].exp(), copied, weights[:, 0]


# --- The data of the page ------------------------------------------------------------------


def rounded(x):
    """A number with three digits that count."""
    return float(f"{x:.3g}")


def rows_of(model, tokens, pieces, begin, shift):
    """The rows of one reading from `begin` on: tokens int64 (N,), the text that each adds -> a list of dicts.

    p: the probability that the model gave the token.  copied: the share of p that was copied.
    next: the five most probable next tokens, each with its p and the part of p that is copied.
    looks: the weight of all positions but the sentinel.  at: [row, weight] of those with a weight of 0.01 or more.
    shift: by how much the row of a position that is not before `begin` differs from the position.
    """
    p, copied, weights = read(model, tokens)
    rows = []
    for t in range(begin, len(tokens)):
        token = tokens[t].item()
        p_t, copied_t = (p[t - 1, token].item(), copied[t - 1, token].item()) if t > 0 else (1.0, 0.0)
        row = {"token": token, "piece": pieces[t], "p": rounded(p_t), "copied": round(copied_t / max(p_t, 1e-30), 2)}
        best = p[t].topk(min(5, model.vocab_size)).indices.tolist()
        row["next"] = [[word, rounded(p[t, word].item()), rounded(copied[t, word].item())] for word in best]
        if weights is not None:
            sentinel, *others = weights[t].tolist()
            row["looks"] = round(1 - sentinel, 3)
            row["at"] = [[j + shift * (j >= begin), round(a, 3)] for j, a in enumerate(others) if a >= 0.01]
        rows.append(row)
    return rows


def pack(steps, unit, step):
    """What a unit computes in R rows, as text: first i, f, g and o, each in R characters, then c in 2 R.

    A character is a digit from 0 to 90. The gates and g are rounded to one of 91 numbers from 0 to 1, or -1 to 1.
    c is rounded to a multiple of `step`, and its multiple, above -4140, is written in two digits.
    """
    i, f, g, o, c = (values[:, unit] for values in (steps.i, steps.f, steps.g, steps.o, steps.c))  # (R,) each
    gates = torch.cat((i, f, (g + 1) / 2, o)).mul(90).round().int().tolist()
    memory = [digit for number in c.div(step).round().int().tolist() for digit in divmod(number + 4140, 91)]
    return "".join(chr(35 + digit) for digit in [*gates, *memory])


def model_data(model, vocabulary, tokens, long_text, write, seed, budget):
    """What the page shows of one model, as a dict.  `main` names the arguments."""
    start, rows, parts, holds = vocabulary.index2word[vocabulary.start], [], [], []
    for temperature in (None, DEFAULT_TEMPERATURE):
        new = continuations(model, vocabulary, tokens, write, seed=seed, temperature=temperature)
        text = [start, *tokens, *(token for [token] in new)]
        indices, begin = vocabulary.encode(text), 1 + len(tokens) if rows else 0
        rows += rows_of(model, indices, ["\n", *vocabulary.join(text[1:])], begin, write if rows else 0)
        parts.append(Steps(*(values[begin:] for values in units_of(model, indices))))
        holds.append({what: values[begin:] for what, values in properties(text, start).items()})
    steps = Steps(*(torch.cat(both) for both in zip(*parts)))  # (R, H) each
    known, c = properties(vocabulary.decode(long_text), start), units_of(model, long_text.long()).c
    found = [
        {"what": what, "units": best_units(c, known[what]), "holds": torch.cat([part[what] for part in holds]).tolist()}
        for what in known
        if 0 < known[what].sum() < len(c)
    ]
    listed = dict.fromkeys(unit for each in found for unit, _, _ in each["units"])
    room = (budget - len(as_json([rows, found]))) // (7 * len(rows))  # 6 characters a row, some of them escaped
    kept = list(dict.fromkeys([*listed, *range(c.shape[1])]))[: max(len(listed), room)]
    step = max(0.01, steps.c.abs().max().item() / 4000)
    units = {unit: pack(steps, unit, step) for unit in sorted(kept)}
    attention = {"looks": isinstance(model, AttentionLM), "copies": getattr(model, "copy", False)}
    return {"rows": rows, "found": found, "units": units, "size": c.shape[1], "step": step, **attention}


def as_json(value):
    """Compact JSON, in which `<` is written so that no token can end a script."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def main(argv=None):
    """Run the command; argv is a list of words as in a shell, sys.argv if None."""
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("checkpoints", nargs="+", metavar="checkpoint.pt", help="all trained on one corpus")
    flag("--prompt", metavar="TEXT", help="what they read (a passage of the validation text)")
    flag("--tokens", type=at_least(1), default=200, metavar="N", help="length of this passage (%(default)s)")
    flag("--write", type=at_least(0), default=40, metavar="N", help="tokens of each continuation (%(default)s)")
    flag("--seed", type=at_least(0), default=0, metavar="N", help="of the drawn continuation (%(default)s)")
    flag("--file", default="page.html", metavar="FILE.html", help="the page (%(default)s)")
    args = parser.parse_args(argv)
    loaded, corpus = open_together(args.checkpoints)
    vocabulary, long_text = corpus.vocabulary, corpus.valid[:SEARCH]
    start = vocabulary.index2word[vocabulary.start]
    if args.prompt is None:
        valid = vocabulary.decode(corpus.valid)
        begin = choose_passage(valid, torch.tensor(list(PROPERTIES["parenthesis"](valid, start))), start, args.tokens)
        tokens = valid[begin : begin + args.tokens]
    else:
        tokens = prompt_tokens(args.prompt, vocabulary, args.checkpoints[0])
    models = []
    for path, (model, _, checkpoint) in zip(args.checkpoints, loaded):
        shown = model_data(model, vocabulary, tokens, long_text, args.write, args.seed, BUDGET // len(loaded))
        name = checkpoint["settings"]["model"]
        models.append({"name": name, "path": title(path, checkpoint), "about": ABOUT.get(name, ABOUT["lstm"]), **shown})
    used = {token for model in models for row in model["rows"] for token, *_ in [[row["token"]], *row["next"]]}
    words = {index: vocabulary.index2word[index] for index in sorted(used)}
    page = {"words": words, "text": 1 + len(tokens), "write": args.write, "temperature": DEFAULT_TEMPERATURE}
    page |= {"gap": "\n" if start == "\n" else " ", "models": models}  # gap: what follows a line, or a sentence
    html = TEMPLATE.read_text(encoding="utf-8").replace("DATA", as_json(page), 1)
    size = pathlib.Path(args.file).write_bytes(html.encode())
    kept = ", ".join(f"{len(model['units'])} of {model['size']}" for model in models)
    print(f"{args.file}: {size / 1000:.0f} kB, {len(tokens)} tokens of text, and units: {kept}")


if __name__ == "__main__":
    run_script(main)
