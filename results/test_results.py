"""Tests of the scripts behind the README's figures: each against a plain form of what it computes, and one small run.

pytest results
"""

import collections
import itertools
import math
import pathlib
import random
import re
import sys
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the scripts under test import the project

from data import InputError  # before torch, see there
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sample
import train
from lstm_cell import LSTM
from results import ablate, attention, gradient, ngram, speed, texts, unit, windows, words
from test_lm import MODELS, SMALL, Unrolled, assert_same, corpus, corpus_file, make_model, make_text, plain_step
from test_lm import fast_and_the_same, trained  # fixtures are found by their names


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
    # By hand, "0 1 0 0": word 0 is counted 3 times and word 1 once, so D = 1 / (1 + 0) = 1 and 2 types are seen.
    assert ngram.KneserNey([0, 1, 0, 0], 1, 2).probability((), 0) == pytest.approx((3 - 1) / 4 + 1 * 2 / 4 * 1 / 2)
    # "0 0 1 2 2 3 3": 1 is counted once and the others twice or more, so D = 1 / (1 + 2 * 3).
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
    assert ngram.KneserNey([0, 1] * 50, 2, 2).perplexity([0, 1] * 20) < 1.2
    ngram.main([corpus_file, "--order", "2"])
    model = ngram.KneserNey(corpus.train.tolist(), 2, len(corpus.vocabulary))
    assert f"2-gram: test perplexity {model.perplexity(corpus.test.tolist()):.2f}\n" in capsys.readouterr().out


def test_texts_are_measured(trained, corpus, capsys, monkeypatch):
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
    with pytest.raises(InputError, match="fewer than a passage of 31"):
        texts.passages(torch.arange(30), 1, 31)
    flags = "--texts 5 --given 10 --tokens 12 --greedy --temperature 0.7 1 --top-p 0.9 1 --half first".split()
    texts.main([*(str(trained[name].path) for name in MODELS), *flags])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [name for name in MODELS for _ in range(1 + 2 * 2)]
    known = set(zip(*(corpus.train[k:].tolist() for k in range(4))))
    real = texts.passages(corpus.valid[: len(corpus.valid) // 2], 5, 22).t().tolist()
    numbers = texts.measure(real, 10, known, ngram.KneserNey(corpus.train.tolist(), 5, len(corpus.vocabulary)))
    shown = [f"{numbers[k]:.1f}" if k == 3 else f"{numbers[k]:.1%}" for k in range(6)]
    assert lines[1].split()[-6:] == shown


def test_attention_is_drawn(trained, tmp_path):
    path, picture = trained["attention"].path, tmp_path / "a.svg"
    text = "the cat sees fish, 3 times. the old man likes the sea"
    attention.main([str(path), "--prompt", text, "--file", str(picture)])
    model, vocabulary, _ = sample.load_checkpoint(path)
    tokens, _ = sample.prompt_tokens(text, vocabulary)
    kinds = collections.Counter(element.get("class") for element in xml.etree.ElementTree.parse(picture).iter())
    before = ["<eos>", *tokens]  # word t is predicted when before[t] has been read
    views = [(t, j) for t in range(len(tokens)) for j in range(t - model.delay) if tokens[j] != before[t]]
    assert kinds["slot"] + kinds["hit"] == len(views) and kinds["bar"] == len(tokens)
    assert kinds["hit"] == sum(tokens[j] == tokens[t] for t, j in views)
    with pytest.raises(InputError, match="has no attention"):
        attention.main([str(trained["cell"].path), "--prompt", text])


def test_speed_is_a_median_of_turns(corpus_file, capsys, monkeypatch):
    """With a clock that only steps move: the first step of each job takes 100 seconds more, the others as below."""
    seconds = {"lstm": 1, "cell": 2, "attention": 8, "self-attention": 4, nn.LSTM: 0.5, LSTM: 1}
    now, counts = 0.0, collections.Counter()
    training_step, core_step = train.Run.training_step, speed.core_step

    def took(kind):
        nonlocal now
        counts[kind] += 1
        now += seconds[kind] + 100 * (counts[kind] == 1)

    def slow_training_step(run, progress):
        training_step(run, progress)
        took(sample.model_name(vars(run.args)))

    def slow_core_step(core, x, bfloat16):
        core_step(core, x, bfloat16)
        took(type(core))

    monkeypatch.setattr(train.Run, "training_step", slow_training_step)
    monkeypatch.setattr(speed, "core_step", slow_core_step)
    monkeypatch.setattr(speed.time, "monotonic", lambda: now)
    speed.main(["--data", corpus_file, *SMALL], rounds=2, steps=2)  # a step is 4 streams of 8 tokens
    assert set(counts.values()) == {3 * 2}
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.replace(" alone", "-alone").splitlines()] == [
        ["lstm", "32 tokens/s  1.00 of lstm"],
        ["lstm-alone", "64 tokens/s  1.00 of lstm-alone"],
        ["cell", "16 tokens/s  0.50 of lstm"],
        ["cell-alone", "32 tokens/s  0.50 of lstm-alone"],
        ["attention", "4 tokens/s  0.12 of lstm"],
        ["self-attention", "8 tokens/s  0.25 of lstm"],
    ]
    with pytest.raises(InputError, match="--bptt"):
        speed.main(["--bptt", "0"])


@pytest.mark.parametrize("change, slots", [("fixed", 35), ("full", 400)])
def test_ablations_train_like_other_models(change, slots, tmp_path, monkeypatch):
    used, step = set(), train.Run.training_step

    def training_step(run, progress):
        step(run, progress)
        used.add(run.model.memory_size_in_training)

    monkeypatch.setattr(train.Run, "training_step", training_step)
    monkeypatch.chdir(tmp_path)
    pathlib.Path("text.txt").write_text(make_text(100))
    found = ablate.main([change, "--memory-from", "decoder", "--data", "text.txt", *SMALL, "--epochs", "1"])
    assert used == {slots}
    assert pathlib.Path(found["checkpoint"]) == pathlib.Path("out", change, "checkpoint.pt")
    assert change not in sample.MODELS
    with pytest.raises(InputError, match=change):  # it is not taken for a model of another kind
        sample.load_checkpoint(found["checkpoint"])
    assert ablate.main([change, "--resume", f"out/{change}"])["test_ppl"] == found["test_ppl"]


@pytest.mark.parametrize("memory_from", ["encoder", "decoder"])
@pytest.mark.parametrize("change", ["no-copying", "no-output", "no-input", "no-decay", "no-delay", "near"])
def test_ablations_change_what_they_say(change, memory_from):
    flags = ["--model", "attention", "--memory-from", memory_from, *SMALL, "--dropout", "0"]
    settings = vars(train.parse_arguments(flags))
    if (change, memory_from) == ("no-input", "decoder"):
        with pytest.raises(ValueError, match="--memory-from encoder"):
            ablate.build(change, 7, settings)
        return
    models = sample.MODELS["attention"](7, settings), ablate.build(change, 7, settings)
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in models[0].state_dict().items()}
    input, target = torch.randint(7, (2, 9, 2))
    log_probs, slots = [], []
    for model in models:
        model.load_state_dict({**weights, "decay": weights["decay"] * (change != "no-decay" or model is models[0])})
        log_probs.append(model(input)[0])
        slots.append(model.attend(input)[1])
        loss, _ = model.loss(input, target)
        torch.testing.assert_close(loss, F.nll_loss(log_probs[-1].flatten(0, 1), target.flatten()))
        loss.backward()
    before, after = models
    assert not torch.allclose(*log_probs, atol=1e-4)
    if change == "no-copying":
        r, _, _, _ = before.attend(input)
        assert_same([log_probs[1]], [before.output(r).log_softmax(dim=-1)], rtol=1e-5, atol=1e-6)
    if change == "no-output":
        unused = after.readout.weight.grad[:, 16:32]
        assert not unused.any() and before.readout.weight.grad[:, 16:32].any() and after.readout.weight.grad.any()
    if change == "no-input":
        unused = after.decoder.weight_ih.grad[:, 16:]
        assert not unused.any() and before.decoder.weight_ih.grad[:, 16:].any() and after.decoder.weight_ih.grad.any()
    if change == "no-decay":
        assert "decay" not in dict(after.named_parameters()) and before.decay.grad.any()
    if change == "no-delay":
        newest = [torch.stack([weights[t, :, t - 1] for t in range(2, 9)]) for weights in slots]  # that of slot t - 2
        assert not newest[0].any() and torch.equal(newest[1] > 0, input[1:-1] != input[2:])
    if change == "near":
        assert (before.near, after.near) == (64, 1)


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
    path = trained["lstm"].path
    contents = sample.read_checkpoint(path)
    index2word = ["kitten" if word == "cat" else word for word in contents["vocabulary"]["index2word"]]
    other = {**contents, "vocabulary": {**contents["vocabulary"], "index2word": index2word}}
    sample.save_checkpoint(tmp_path / "other.pt", other)
    for script in (words, windows):
        with pytest.raises(InputError, match="trained on one corpus"):
            script.main([str(path), str(tmp_path / "other.pt")])


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
    with pytest.raises(InputError, match="fewer than a window"):
        windows.main([path, "--length", "100000"])


@pytest.fixture(scope="session")
def with_parentheses(tmp_path_factory):
    """A small LSTM trained on a text with parentheses -> the path of its checkpoint."""
    folder = tmp_path_factory.mktemp("parentheses")
    (folder / "text.txt").write_text(make_text(150).replace(", ", " (").replace(" times.", " times)."))
    flags = ["--data", str(folder / "text.txt"), "--split", "0.5", "0.25", "--out", str(folder / "lstm"), *SMALL]
    return train.main(["--model", "lstm", *flags])["checkpoint"]


def test_memory_and_gate_are_those_of_the_cell():
    """f is the derivative of the next c by the last c, with h as it is."""
    model, tokens = make_model("cell"), torch.randint(11, (9,))
    x = model.embed(tokens).detach()
    cell = Unrolled(model.core).cell
    c, f = unit.memory_and_gate(model.core, x)
    h, memory = torch.zeros(2, 6, dtype=torch.float64)
    for t in range(9):
        before = memory.detach().requires_grad_()
        h, memory = cell(x[t], (h.detach(), before))
        assert_same([c[t], f[t]], [memory, *torch.autograd.grad(memory.sum(), before)])


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


@pytest.mark.parametrize(
    "name, tokens, expected",
    [
        ("parenthesis", "a ( b (( c ) d )) e ( f <eos> ) g ( h".split(), "0111111001100011"),
        ("quotation", 'a " b c " d "" e " f <eos> g " h'.split(), "01110000110011"),
        ("name", list("ROMEO:\nI am: no.\nA:\nB"), "1111111" + "0000000000" + "111" + "0"),
    ],
)
def test_properties_hold_where_a_reader_says(name, tokens, expected):
    holds = unit.PROPERTIES[name](tokens, "\n" if name == "name" else "<eos>")
    assert "".join(str(int(held)) for held in holds) == expected


def test_unit_end_to_end(with_parentheses, tmp_path, capsys):
    unit.main([with_parentheses, "--file", str(tmp_path / "unit.svg")])
    printed = capsys.readouterr().out
    accuracy, baseline = (float(share) for share in re.findall(r"([\d.]+)%", printed))
    assert 70 < baseline < accuracy <= 100  # two tokens of about nine are inside
    root = xml.etree.ElementTree.parse(tmp_path / "unit.svg").getroot()
    assert {"(", "times", "\u00b6"} < {element.text for element in root.iter() if element.tag.endswith("text")}
    with pytest.raises(InputError, match="no quotation: give another"):
        unit.main([with_parentheses, "--property", "quotation"])


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
    monkeypatch.setitem(sample.MODELS, "tanh", gradient.build_tanh)  # so that the script's entry is gone after the test
    file, tanh = str(tmp_path / "gradient.svg"), str(tmp_path / "tanh" / "checkpoint.pt")
    flags = [with_parentheses, "--texts", "5", "--file", file]
    gradient.main([*flags, "--train-tanh", str(tmp_path / "tanh")])
    first = capsys.readouterr().out.splitlines()[-3:]
    gradient.main([*flags, "--tanh", tanh])
    assert capsys.readouterr().out.splitlines() == first
    settings = sample.read_checkpoint(tanh)["settings"]
    assert settings == {**sample.read_checkpoint(with_parentheses)["settings"], "model": "tanh"}
    root = xml.etree.ElementTree.parse(file).getroot()
    curves = [element for element in root.iter() if element.get("stroke")]
    assert [len(element.get("d").split("L")) for element in curves] == [gradient.REACH] * 3
