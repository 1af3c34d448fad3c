"""Tests of the scripts behind the README's figures: each against a plain form of what it computes, and one small run.

pytest results
"""

import collections
import itertools
import math
import pathlib
import random
import re
import statistics
import sys
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the scripts under test import the project

import data  # before torch, see there
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attention_lm
import lstm_cell
import sample
import train
from attention_lm import MODELS
from results import ablate, attention, cell, curves, gradient, look, ngram, speed, texts, unit, windows, words
from results.drawing import Panel
from test_lm import assert_same, corpus, corpus_file, make_model, make_text, plain_step, refused
from test_lm import fast_and_the_same, trained  # fixtures are found by their names

NAMES = ["lstm", "cell", "attention", "self-attention"]
SMALL = "--hidden-size 16 --batch-size 4 --bptt 8 --lr 0.02 --epochs 2 --device cpu --threads 1".split()


def changed(trained, folder, settings=(), **parts):
    """The checkpoint of attention with other settings or parts -> the path of the new file."""
    contents = sample.read_checkpoint(trained["attention"].path)
    contents = {**contents, **parts, "settings": {**contents["settings"], **dict(settings)}}
    sample.save_checkpoint(folder / "changed.pt", contents)
    return str(folder / "changed.pt")


def elements(picture, kind=None):
    """The elements of an SVG picture, all or those of a class -> list."""
    root = xml.etree.ElementTree.fromstring(picture)
    return [element for element in root.iter() if kind in (None, element.get("class"))]


def plain_kneser_ney(train, context, word, vocabulary_size, highest=True):
    """P(word | context), from the definition and by counting the text anew each time."""
    n = len(context) + 1
    longer = {tuple(train[k : k + n + 1]) for k in range(len(train) - n)}
    grams = [tuple(train[k : k + n]) for k in range(len(train) - n + 1)] if highest else [gram[1:] for gram in longer]
    n1, n2 = (sum(grams.count(gram) == k for gram in set(grams)) for k in (1, 2))
    D = n1 / (n1 + 2 * n2) if n1 else 0.5
    shorter = plain_kneser_ney(train, context[1:], word, vocabulary_size, False) if context else 1 / vocabulary_size
    total = sum(gram[:-1] == tuple(context) for gram in grams)
    if total == 0:
        return shorter
    types = len({gram for gram in grams if gram[:-1] == tuple(context)})
    return (max(grams.count((*context, word)) - D, 0) + D * types * shorter) / total


def test_kneser_ney(corpus_file, corpus, capsys):
    # By hand, "0 0 1 2 2 3 3": 1 is counted once and the others twice or more, so D = 1 / (1 + 2 * 3).
    D = 1 / 7
    assert ngram.KneserNey([0, 0, 1, 2, 2, 3, 3], 1, 4).probability((), 0) == pytest.approx((2 - D) / 7 + D * 4 / 7 / 4)
    draw = random.Random(0)
    tokens = [min(int(draw.expovariate(0.4)), 7) for _ in range(60)]
    for order in (1, 2, 3):
        model = ngram.KneserNey(tokens, order, 9)
        assert len(set(model.discounts)) == order + 1  # each order has its own
        for _ in range(10):
            context = tuple(draw.choices(range(8), k=order - 1))
            p = [model.probability(context, word) for word in range(9)]
            assert p == pytest.approx([plain_kneser_ney(tokens, context, word, 9) for word in range(9)])
            assert sum(p) == pytest.approx(1)
    log_probs = [math.log(model.probability(tuple(tokens[:t]), tokens[t])) for t in range(20)]
    assert model.perplexity(tokens[:20]) == pytest.approx(math.exp(-sum(log_probs) / 20))
    ngram.main([corpus_file, "--order", "2"])
    model = ngram.KneserNey(corpus.train.tolist(), 2, len(corpus.vocabulary))
    assert f"2-gram: test perplexity {model.perplexity(corpus.test.tolist()):.2f}\n" in capsys.readouterr().out


def test_texts_are_measured(trained, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(texts, "FREQUENT", 3)
    model = ngram.KneserNey([0, 1, 2, 3, 4] * 9, 2, 5)
    text = [0, 1, 2, 3, 4, 4, 0, 1, 2, 3, 3]  # given the first 5
    doubled, again, known, perplexity, rarer, back = texts.measure([text], 5, {(1, 2, 3, 4), (4, 0, 1, 2)}, model)
    assert (doubled, again, known) == (2 / 6, 1 / 6, 1 / 6)  # 4 4 and 3 3; 0 1 2 3; 4 0 1 2
    nats = -sum(math.log(model.probability((a,), b)) for a, b in itertools.pairwise(text[4:]))
    assert perplexity == pytest.approx(math.exp(nats / 6))
    assert (rarer, back) == (3 / 6, 3 / 3)  # 4, 3 and 3, which the passage had
    assert texts.measure([[0, 1, 2, 4, 0, 3]], 4, set(), model)[4:] == (1 / 2, 0.0)
    cut = texts.passages(torch.arange(30), 3, 10)  # (length, count), evenly spaced
    assert cut.t().tolist() == [list(range(k, k + 10)) for k in (0, 10, 20)] and cut.dtype == torch.int64
    refused("fewer than a passage of 31", texts.passages, torch.arange(30), 1, 31)
    flags = "--texts 5 --given 10 --tokens 12 --greedy --temperature 0.7 1 --top-p 0.9 1 --half first".split()
    alone = changed(trained, tmp_path, {"copy": False})
    texts.main([*(str(trained[name].path) for name in NAMES), alone, *flags])
    lines = capsys.readouterr().out.splitlines()
    rows = [name for name in [*NAMES, "attention --no-copy"] for _ in range(1 + 2 * 2)]
    assert [line[:24].strip() for line in lines[2:]] == rows
    known = set(zip(*(corpus.train[k:].tolist() for k in range(4))))
    real = texts.passages(corpus.valid[: len(corpus.valid) // 2], 5, 22).t().tolist()
    numbers = texts.measure(real, 10, known, ngram.KneserNey(corpus.train.tolist(), 5, len(corpus.vocabulary)))
    shown = [f"{numbers[k]:.1f}" if k == 3 else f"{numbers[k]:.1%}" for k in range(6)]
    assert lines[1].split()[-6:] == shown


@pytest.mark.parametrize("copy", [True, False])
def test_attention_is_drawn(copy, trained, tmp_path):
    path, picture = changed(trained, tmp_path, {"copy": copy}), tmp_path / "a.svg"
    text = "the cat sees fish, 3 times. the old man likes the sea"
    attention.main([path, "--prompt", text, "--file", str(picture)])
    _, vocabulary, _ = sample.load_checkpoint(path)
    tokens = sample.prompt_tokens(text, vocabulary, path)
    kinds = collections.Counter(element.get("class") for element in elements(picture.read_text(encoding="utf-8")))
    before = ["<eos>", *tokens]  # word t is predicted when before[t] has been read
    views = [(t, j) for t in range(len(tokens)) for j in range(t) if not copy or tokens[j] != before[t]]
    assert kinds["position"] + kinds["hit"] == len(views) and kinds["bar"] == len(tokens)
    assert kinds["hit"] == sum(tokens[j] == tokens[t] for t, j in views)
    refused("has no attention", attention.main, [str(trained["cell"].path), "--prompt", text])


def test_curves_are_those_of_the_logs(tmp_path):
    draw, runs, logs, header = random.Random(0), [], [], train.Counters().log
    for name, count in ("one", 5), ("two", 1), ("three", 9):
        rows = [(k + draw.random(), 90 * k + draw.random(), *(draw.uniform(1, 6) for _ in "tv")) for k in range(count)]
        runs.append([(*row[:2], *map(math.exp, row[2:])) for row in rows])
        logs.append(tmp_path / name / "log.csv")
        logs[-1].parent.mkdir()
        logs[-1].write_text(header + "".join("7,{},{},900,{},{},0\n".format(*row) for row in rows))
        assert curves.read_log(logs[-1]) == runs[-1]
    curves.main([*map(str, logs), "--file", str(tmp_path / "c.svg")])
    picture = (tmp_path / "c.svg").read_text(encoding="utf-8")
    shown = [element.text for element in elements(picture)]
    assert [shown.count(word) for word in ("one", "two", "three", "minutes", "12")] == [2, 2, 2, 1, 1]  # of 12 minutes
    lines = [element.get("d") for element in elements(picture) if element.get("class") in ("train", "valid")]
    for column, part in (0, lines[:6]), (1, lines[6:]):  # the left panel has epochs and the right one seconds
        x, y = zip(*((float(x), float(y)) for line in part for x, y in re.findall(r"([\d.]+),([\d.]+)", line)))
        points = [(row[column], math.log(row[which])) for run in runs for which in (2, 3) for row in run]
        time, nats = zip(*points)
        assert statistics.correlation(x, time) == pytest.approx(1, abs=1e-5)
        assert statistics.correlation(y, nats) == pytest.approx(-1, abs=1e-5)
    for text in ("step,epoch\n1,1\n", "", "a\0", header + "1,2\n", header):
        logs[0].write_text(text)
        refused("no validation yet" if text == header else "is not a log of train.py", curves.main, [str(logs[0])])


def test_axes_have_round_numbers():
    draw = random.Random(0)
    for _ in range(200):
        low = 10 ** draw.uniform(-1, 4)
        high = low * 10 ** draw.uniform(0.1, 4)
        ticks = curves.log_ticks(low, high)
        assert 4 <= len(ticks) <= 20 and low <= min(ticks) <= max(ticks) <= high
        evenly = curves.even_ticks(high)
        assert 6 <= len(evenly) <= 14 and min(evenly) == 0 and max(evenly) <= high * (1 + 1e-9)
        for tick, shown in [*ticks.items(), *evenly.items()]:
            assert float(shown.replace(",", "")) == pytest.approx(tick)
        panel = Panel(10, 110, 20, 220, 5.0, low, high)
        assert panel.place(0, low) == pytest.approx((10, 220)) and panel.place(5, high) == pytest.approx((110, 20))
        assert panel.place(2.5, math.sqrt(low * high)) == pytest.approx((60, 120))


@pytest.mark.parametrize(
    "script, module, names", [(cell, lstm_cell, "c' f g h' i o z"), (look, attention_lm, "a context' scorej")]
)
def test_pictures_have_the_equations(script, module, names, tmp_path):
    script.main(["--file", str(tmp_path / "a.svg")])
    formulas = elements((tmp_path / "a.svg").read_text(encoding="utf-8"), "formula")
    shown = [re.sub(r"[\s\u200b]", "", "".join(formula.itertext())) for formula in formulas]
    shown = [formula for formula in shown if "=" in formula]
    assert sorted(formula.split("=")[0] for formula in shown) == names.split()
    assert all(f"\n{formula}" in re.sub(r"[ _]", "", module.__doc__) for formula in shown)


def test_speed_is_a_median_of_turns(corpus_file, capsys, monkeypatch):
    """With a clock that only steps move: the first two turns of each job take 100 s more, and the others as below."""
    seconds = {"lstm": 1, "cell": 2, "attention": 8, "self-attention": 4, nn.LSTM: 0.5, lstm_cell.LSTM: 1}
    now, counts = [0.0], collections.Counter()

    def slow(step, kind_of):
        def slow_step(first, *others):
            step(first, *others)
            kind = kind_of(first)
            counts[kind] += 1
            now[0] += seconds[kind] + 100 * (counts[kind] in (1, 3))

        return slow_step

    monkeypatch.setattr(train.Run, "training_step", slow(train.Run.training_step, lambda run: run.args.model))
    monkeypatch.setattr(speed, "core_step", slow(speed.core_step, type))
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    speed.main(["--data", corpus_file, *SMALL], rounds=3, steps=2)  # a step is 4 streams of 8 tokens
    assert set(counts.values()) == {4 * 2}
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.replace(" alone", "-alone").splitlines()] == [
        ["lstm", "32 tokens/s  1.00 of lstm"],
        ["lstm-alone", "64 tokens/s  1.00 of lstm-alone"],
        ["cell", "16 tokens/s  0.50 of lstm"],
        ["cell-alone", "32 tokens/s  0.50 of lstm-alone"],
        ["attention", "4 tokens/s  0.12 of lstm"],
        ["self-attention", "8 tokens/s  0.25 of lstm"],
    ]
    refused("--bptt", speed.main, ["--bptt", "0"])


def test_ablations_train_like_other_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("text.txt").write_text(make_text(100))
    flags = ["few", "--model", "self-attention", "--no-copy"]
    found = ablate.main([*flags, "--data", "text.txt", *SMALL, "--epochs", "1"])
    assert pathlib.Path(found["checkpoint"]) == pathlib.Path("out", "few-self-attention-no-copy", "checkpoint.pt")
    assert not sample.read_checkpoint(found["checkpoint"])["settings"]["copy"]
    refused("few-self-attention", sample.load_checkpoint, found["checkpoint"])
    assert ablate.main([*flags, "--resume", "out/few-self-attention-no-copy"])["test_ppl"] == found["test_ppl"]
    flags = ["no-m", "--model", "self-attention", "--data", "text.txt", *SMALL]
    refused("no-m needs --model attention", ablate.main, flags)
    monkeypatch.setattr(train, "main", lambda flags: vars(train.parse_arguments(flags)))
    for kind in ("attention", "self-attention"):
        settings = ablate.main(["near", "--model", kind])
        unchanged = vars(train.parse_arguments(["--model", kind]))
        assert settings == {**unchanged, "model": f"near-{kind}"} and list(MODELS) == NAMES


@pytest.mark.parametrize("copy", ["--copy", "--no-copy"])
@pytest.mark.parametrize("kind", ["attention", "self-attention"])
@pytest.mark.parametrize("change", ablate.CHANGES)
def test_ablations_change_what_they_say(change, kind, copy):
    settings = vars(train.parse_arguments(["--model", kind, copy, *SMALL, "--dropout", "0"]))
    if (change, kind) in [("no-feeding", "self-attention"), ("no-m", "self-attention")]:
        with pytest.raises(ValueError, match="--model attention"):
            ablate.build(change, kind, 7, settings)
        return
    torch.manual_seed(0)
    before = MODELS[kind](7, settings).double()
    after = ablate.build(change, kind, 7, settings).double()
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in before.state_dict().items()}
    before.load_state_dict(weights)
    after.load_state_dict(weights)
    input, target = torch.randint(7, (2, 45, 2))
    log_probs, seen = [], []
    for model in (before, after):  # both are in training, without dropout
        log_probs.append(model(input)[0])
        features, weights, _, _ = model.attend(input)
        seen.append((features, weights))
        loss, _ = model.loss(input, target)
        torch.testing.assert_close(loss, F.nll_loss(log_probs[-1].flatten(0, 1), target.flatten()))
        loss.backward()
    assert not torch.allclose(*log_probs, atol=1e-4)
    if change == "no-decay":
        assert before.decay.grad.any() and after.decay.grad.any()
        long = torch.arange(2100)[:, None] % 7  # (S, 1), more positions than are visible in training and in reading
        for bias in (after.bias(long[-2:], long, 200), after.eval().bias(long[-2:], long, 2000)):
            assert len(bias[..., 1:].unique()) == 2  # -inf, or the same for all
    if change == "near":
        assert (before.near, after.near) == (64, 1)
    if change == "no-context":
        grads = before.readout.weight.grad, after.readout.weight.grad
        assert not grads[1][:, 16:32].any() and grads[0][:, 16:32].any() and grads[1][:, :16].any()
    if change == "no-feeding":
        grads = before.decoder.weight_ih.grad, after.decoder.weight_ih.grad
        assert not grads[1][:, 16:].any() and grads[0][:, 16:].any() and grads[1][:, :16].any()
    if change == "few":
        farthest = [max(t - j for t, _, j in (weights[..., 1:] > 0).nonzero().tolist()) for _, weights in seen]
        assert farthest == [44, 35]
    if change == "no-m":
        hs = []
        after.decoder.register_forward_hook(lambda module, arguments, state: hs.append(state[0]))
        features, weights, next_tokens, _ = after.attend(input)
        h, (m, _) = torch.stack(hs), after.encoder(after.embed(input))  # (T, B, H) each
        memory = torch.cat((after.sentinel.expand(1, 2, -1), m))  # (1 + T, B, H)
        scores = torch.einsum("tbh,jbh->tbj", h, memory) + after.bias(input, next_tokens, 200).transpose(0, 1)
        context = torch.einsum("tbj,jbh->tbh", weights, memory)
        assert_same([weights, features], [scores.softmax(dim=-1), after.readout(torch.cat((h, context, m), dim=-1))])
    if change == "tanh":
        assert_same([seen[1][0]], [seen[0][0].tanh()])


def test_words_are_grouped_by_what_stands_before_them(trained, corpus, capsys, monkeypatch):
    monkeypatch.setattr(words, "NEAR", 20)
    monkeypatch.setattr(words, "MEMORY_SIZES", (4, 2000))
    names = ["lstm", "attention"]
    words.main([str(trained[name].path) for name in names])
    printed = capsys.readouterr().out
    tokens = corpus.valid
    near = torch.tensor([bool((tokens[max(0, t - 20) : t] == tokens[t]).any()) for t in range(len(tokens))])
    for name, rows in zip(names, printed.split(": perplexity on\n")[1:]):
        model, vocabulary, _ = sample.load_checkpoint(trained[name].path)
        nats = words.nats_of_each(model, tokens, vocabulary.start)
        assert nats.mean().item() == pytest.approx(train.evaluate(model, tokens, vocabulary.start), rel=1e-5)
        parts = nats, nats[near], nats[~near], nats[tokens != vocabulary.unknown]
        for row, part in zip(rows.splitlines(), parts):
            assert 0 < len(part) and row.split()[-3:-1] == [str(len(part)), "words"]
            assert float(row.split()[-1]) == pytest.approx(part.mean().exp().item(), abs=0.006)
    seen = {int(size): float(ppl) for size, ppl in re.findall(r"seeing (\d+) steps back: (.*)", printed)}
    model.memory_size = 4  # of attention, the last one
    few = train.perplexity(train.evaluate(model, tokens, vocabulary.start))
    many = trained["attention"].results["valid_ppl"]
    assert seen == {4: pytest.approx(few, abs=0.006), 2000: pytest.approx(many, abs=0.006)}
    assert seen[4] != seen[2000]


def test_checkpoints_of_two_corpora_are_not_compared(trained, tmp_path):
    path = str(trained["attention"].path)
    contents = sample.read_checkpoint(path)
    vocabulary, sums = contents["vocabulary"], contents["training"]["text"]
    index2word = ["kitten" if word == "cat" else word for word in vocabulary["index2word"]]
    for other in (
        {"vocabulary": {**vocabulary, "index2word": index2word}},
        {"training": {**contents["training"], "text": [(tokens, total + 1) for tokens, total in sums]}},
    ):
        refused("give checkpoints of one corpus", words.main, [path, changed(trained, tmp_path, **other)])
    refused("trained on a corpus from Python", words.main, [changed(trained, tmp_path, {"data": None}), path])


def test_windows_are_read_from_nothing(trained, corpus, capsys):
    path = str(trained["attention"].path)
    windows.main([path, "--length", "7"])
    printed = float(re.search(": (.*) nats per token", capsys.readouterr().out)[1])
    model, vocabulary, _ = sample.load_checkpoint(path)
    tokens = corpus.valid.tolist()
    assert len(tokens) // 7 % windows.BATCH and len(tokens) % 7  # so that the last batch is smaller, and a rest remains
    nats = []
    for t in range(len(tokens) // 7 * 7):
        if t % 7 == 0:
            state = None
        last = tokens[t - 1] if t else vocabulary.start
        with torch.no_grad():
            log_probs, state = model(torch.tensor([[last]]), state)
        nats.append(-log_probs[0, 0, tokens[t]].item())
    assert printed == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    refused("fewer than a window", windows.main, [path, "--length", "100000"])


@pytest.fixture(scope="session")
def with_parentheses(tmp_path_factory):
    """A small LSTM trained on a text with parentheses -> the path of its checkpoint."""
    folder = tmp_path_factory.mktemp("parentheses")
    (folder / "text.txt").write_text(make_text(150).replace(", ", " (").replace(" times.", " times)."))
    flags = ["--data", str(folder / "text.txt"), "--split", "0.5", "0.25", "--out", str(folder / "lstm"), *SMALL]
    return train.main(["--model", "lstm", *flags])["checkpoint"]


def test_memory_and_gates_are_those_of_the_equations():
    """f is the derivative of the next c by the last c, with h as it is."""
    cores = [make_model("lstm").core, make_model("cell", num_layers=2).core]
    cores += [make_model("attention").encoder, make_model("self-attention").decoder]
    for core in cores:
        x = torch.randn(9, 6, dtype=torch.float64)
        steps = unit.memory_and_gates(core, x)
        h, memory = torch.zeros(2, 6, dtype=torch.float64)
        for t, (c, i, f, g, o) in enumerate(zip(*steps)):
            before = memory.detach().requires_grad_()
            h, memory = plain_step(core, x[t], (h.detach(), before), "_l0")
            (kept,) = torch.autograd.grad(memory.sum(), before, retain_graph=True)
            assert_same([c, f, i * g, o * c.tanh()], [memory, kept, memory - kept * before, h])
            assert (i > 0).all()  # so i and g are not one in place of the other


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_unit_is_found(sign):
    torch.manual_seed(0)
    holds, c = torch.rand(500) < 0.2, torch.randn(500, 8)
    c[:, 2] = 3.0  # a unit that never changes
    c[:, 5] = sign * (2.0 * holds + torch.rand(500))
    number, correlation, threshold = unit.find_unit(c, holds)
    assert number == 5 and 0.9 < sign * correlation < 1
    assert torch.equal(sign * c[:, 5] >= sign * threshold, holds)
    c[:, 5] += torch.randn(500)  # no threshold is right everywhere now, and none is better than this one
    number, correlation, threshold = unit.find_unit(c, holds)
    shares = [((sign * c[:, number] >= sign * other) == holds).double().mean() for other in c[:, number]]
    assert ((sign * c[:, number] >= sign * threshold) == holds).double().mean() == max(shares)


def test_properties_hold_where_a_reader_says():
    inside = unit.parenthesis("a ( b (( c ) d )) e ( f <eos> ) g ( h".split(), "<eos>")
    assert "".join(str(int(holds)) for holds in inside) == "0111111001100011"
    names = unit.name("ROMEO:\nI am:\nA:\nB", "\n")
    assert "".join(str(int(holds)) for holds in names) == "1111111" + "000000" + "111" + "0"


def test_unit_end_to_end(with_parentheses, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "tanh", gradient.build_tanh)  # so that the entry is gone after the test
    unit.main([with_parentheses, "--file", str(tmp_path / "unit.svg")])
    printed = capsys.readouterr().out
    accuracy, baseline = (float(share) for share in re.findall(r"([\d.]+)%", printed))
    assert 70 < baseline < accuracy <= 100  # two tokens of about nine are inside
    shown = elements((tmp_path / "unit.svg").read_text(encoding="utf-8"))
    assert {"(", "times", "\u00b6"} < {element.text for element in shown}
    refused("no name: give another", unit.main, [with_parentheses, "--property", "name"])
    for main in (unit.main, lambda argv: gradient.main([*argv, "--tanh", "none"])):
        refused("a checkpoint of lstm or cell", main, [str(trained["attention"].path)])


@pytest.mark.parametrize("name", ["lstm", "cell", "tanh"])
def test_gradient_norms_are_those_of_a_plain_loop(name):
    torch.manual_seed(0)
    model = gradient.TanhLM(11, 6, 6, tie_weights=True).double().eval() if name == "tanh" else make_model(name)
    texts = torch.randint(11, (9, 3))
    norms = gradient.gradient_norms(model, texts, 5)
    assert norms.shape == (6, 3)
    W, U, b, d = model.core.parameters()
    for text, found in zip(texts.t(), norms.t()):
        inputs = [model.embedding.weight[token].detach().requires_grad_() for token in text[:-1]]
        h = c = torch.zeros(6, dtype=torch.float64)
        for x in inputs:
            if name == "tanh":
                h = torch.tanh(W @ x + b + U @ h + d)
            else:
                h, c = plain_step(model.core, x, (h, c), "_l0")
        loss = F.cross_entropy(model.output.weight @ h + model.output.bias, text[-1])
        expected = torch.stack([grad.norm() for grad in torch.autograd.grad(loss, inputs)])
        assert_same([found], [expected.flip(0)[:6]])


def test_gradient_end_to_end(with_parentheses, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "tanh", gradient.build_tanh)  # so that the entry is gone after the test
    file, tanh = str(tmp_path / "gradient.svg"), str(tmp_path / "tanh" / "checkpoint.pt")
    flags = [with_parentheses, "--texts", "5", "--file", file]
    gradient.main([*flags, "--train-tanh", str(tmp_path / "tanh")])
    first = capsys.readouterr().out.splitlines()[-3:]
    gradient.main([*flags, "--tanh", tanh])
    assert capsys.readouterr().out.splitlines() == first
    settings = sample.read_checkpoint(tanh)["settings"]
    assert settings == {**sample.read_checkpoint(with_parentheses)["settings"], "model": "tanh"}
    lines = elements(pathlib.Path(file).read_text(encoding="utf-8"), "curve")
    assert [len(line.get("d").split("L")) for line in lines] == [gradient.REACH] * 3
