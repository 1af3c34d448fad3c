"""Tests of `results/page.py`: what the page holds, and how a browser shows it."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the scripts under test import the project

import data  # before torch, see there
import pytest
import torch

import sample
import train
from data import InputError
from lstm_cell import gates
from results import page
from results.words import nats_of_each

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FAMILY = "\U0001f600\U0001f468\u200d\U0001f469"  # emoji, two of them joined
HOSTILE = ["</script>", "<script>alert(1)</script>", "\"'`&amp;<!--", FAMILY, "\u05e9\u05dc\u05d5\u05dd", "a\\b"]
KINDS = {
    "lstm": ["lstm"],
    "cell": ["cell", "--input", "one-hot", "--layers", "2"],
    "attention": ["attention"],
    "no-copy": ["attention", "--no-copy"],
    "self-attention": ["self-attention"],
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A small run of each kind, on words that are hostile to HTML -> {kind: path}."""
    folder = tmp_path_factory.mktemp("page")
    torch.set_num_threads(1)
    lines = [f'the "cat" ( {HOSTILE[k % 6]} ) sees {HOSTILE[k % 5]} , <b>dog</b> & DATA .' for k in range(300)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    corpus = ["--data", str(folder / "text.txt"), "--level", "lines", "--device", "cpu", "--threads", "1"]
    sizes = "--hidden-size 16 --batch-size 4 --bptt 8 --epochs 1 --lr 0.02".split()
    for kind, flags in KINDS.items():
        train.main([*corpus, *sizes, "--out", str(folder / kind), "--model", *flags])
    return {kind: str(folder / kind / "checkpoint.pt") for kind in KINDS}


def data_of(path):
    """The data in a page's file, found as a browser finds it: up to the first `</script`."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json">')[1].split("</script")[0])


def unpacked(text, R, step):
    """What `pack` wrote -> i, f, g, o, c, lists of R numbers each."""
    digits = [ord(character) - 35 for character in text]
    i, f, g, o = ([digit / 90 for digit in digits[n * R : (n + 1) * R]] for n in range(4))
    c = [(91 * high + low - 4140) * step for high, low in zip(digits[4 * R :: 2], digits[4 * R + 1 :: 2])]
    return i, f, [2 * value - 1 for value in g], o, c


@pytest.mark.parametrize("kind", KINDS)
def test_data_is_what_the_model_computes(kind, checkpoints, tmp_path):
    file = tmp_path / "page.html"
    prompt = f"the \"cat\" ( {HOSTILE[0]} ) sees {HOSTILE[4]} , <b>dog</b> & DATA .\nthe unheard ( {HOSTILE[1]} )"
    page.main([checkpoints[kind], "--prompt", prompt, "--write", "7", "--seed", "3", "--file", str(file)])
    model, vocabulary, _ = sample.load_checkpoint(checkpoints[kind])
    shown, given = data_of(file), sample.prompt_tokens(prompt, vocabulary, "")
    [found] = shown["models"]
    T, rows, words = 1 + len(given), found["rows"], {int(key): word for key, word in shown["words"].items()}
    assert (shown["text"], shown["write"], len(rows)) == (T, 7, T + 14)
    # By other functions than those of the page.
    readings = [(None, range(T + 7)), (sample.DEFAULT_TEMPERATURE, [*range(T), *range(T + 7, T + 14)])]
    for temperature, places in readings:
        new = sample.continuations(model, vocabulary, given, 7, seed=3, temperature=temperature)
        tokens = [*given, *(token for [token] in new)]
        indices = vocabulary.encode(tokens)
        assert [rows[r]["token"] for r in places] == [vocabulary.start, *indices.tolist()]
        assert "".join(rows[r]["piece"] for r in places[1:]) == "".join(vocabulary.join(tokens))
        p = (-nats_of_each(model, indices, vocabulary.start)).exp().tolist()
        assert [rows[r]["p"] for r in places[1:]] == pytest.approx(p, rel=6e-3)
        input = torch.cat((torch.tensor([vocabulary.start]), indices))
        with torch.inference_mode():
            expected = model(input[:, None])[0][:, 0].exp().topk(5)
        for r, best, probabilities in zip(places, expected.indices.tolist(), expected.values.tolist()):
            assert [word for word, _, _ in rows[r]["next"]] == best
            assert [q for _, q, _ in rows[r]["next"]] == pytest.approx(probabilities, rel=6e-3)
        assert all(words[word] == vocabulary.index2word[word] for row in rows for word, _, _ in row["next"])
        if kind in ("lstm", "cell"):
            assert not found["looks"] and all(row["copied"] == 0 and "at" not in row for row in rows)
        else:
            for t, (token, _, looks, weights) in enumerate(sample.look_back(model, vocabulary, tokens)):
                row, after = rows[places[t]], rows[places[t + 1]]
                assert row["looks"] == pytest.approx(looks, abs=1e-3)
                seen = {places[j]: weight for j, weight in enumerate(weights) if weight >= 0.01}
                assert dict(row["at"]) == pytest.approx(seen, abs=1e-3)
                read = [vocabulary.index2word[index] for index in indices.tolist()]
                copied = sum(weight for weight, word in zip(weights, read) if word == read[t]) * (kind != "no-copy")
                assert after["copied"] == pytest.approx(copied / p[t], abs=6e-3)
        names = {"attention": "encoder", "no-copy": "encoder", "self-attention": "decoder"}
        core = getattr(model, names.get(kind, "core"))
        assert set(found["units"]) == {str(unit) for unit in range(16)}
        h = c = torch.zeros(16)
        values = {unit: unpacked(text, len(rows), found["step"]) for unit, text in found["units"].items()}
        for r, x in zip(places, model.embed(input).detach()):
            z = core.weight_ih_l0 @ x + core.bias_ih_l0 + core.weight_hh_l0 @ h + core.bias_hh_l0
            h, c = (part.detach() for part in gates(z, c))
            i, f, g, o = (part.detach() for part in z.chunk(4))
            computed = [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), c]
            for unit in range(16):
                near = [0.006, 0.006, 0.012, 0.006, 0.0051]
                for ours, theirs, tolerance in zip(values[str(unit)], computed, near):
                    assert ours[r] == pytest.approx(theirs[unit].item(), abs=tolerance)


def test_properties():
    tokens = ['say', '"', "a", "(", "b", ")", '"', "c", "<eos>", "a", "b", "(", "<eos>", '"']
    found = page.properties(tokens, "<eos>")
    marks = {what: "".join(".x"[holds] for holds in values.tolist()) for what, values in found.items()}
    assert marks["inside a parenthesis"] == "...xx......x.."
    assert marks["inside a quotation"] == ".xxxxx.......x"
    assert marks["in the first 3 tokens of a sentence"] == "xxx.....xxxxxx"
    assert marks["beyond token 12 of a sentence"] == "." * 14
    assert marks["at a word seen before"] == "......x..xxxxx"
    long_line = page.properties("a" * 14 + "\n", "\n")["beyond token 12 of a line"].tolist()
    assert long_line == [False] * 12 + [True] * 2 + [False]


def test_best_units_are_different_and_in_order():
    torch.manual_seed(0)
    holds = torch.rand(500) < 0.3
    c = torch.randn(500, 6)
    c[:, 4] -= 5 * holds
    c[:, 2] += 2 * holds
    (first, r1, _), (second, r2, _), (third, r3, _) = page.best_units(c, holds)
    assert (first, second) == (4, 2) and third not in (2, 4)
    assert r1 < -0.8 and r2 > 0.5 and abs(r3) < 0.2
    assert len(page.best_units(c[:, :2], holds)) == 2


def test_page_is_one_file(checkpoints, tmp_path, monkeypatch, capsys):
    """All text comes out whole, no other host is named, and units are left out where the page would be too large."""
    file = tmp_path / "page.html"
    page.main([*checkpoints.values(), "--tokens", "120", "--file", str(file)])
    text, shown = file.read_text(encoding="utf-8"), data_of(file)
    printed = f"page.html: {len(text.encode()) / 1000:.0f} kB, 120 tokens of text, and units: 16 of 16, "
    assert printed in capsys.readouterr().out
    assert {word for word in HOSTILE} <= set(shown["words"].values())
    assert text.count("<script") == text.count("</script>") == 2 and "DATA" in shown["words"].values()
    assert not re.search(r"https?:|//\w|url\(|@import|fetch\(|XMLHttp", page.TEMPLATE.read_text(encoding="utf-8"))
    assert [model["name"] for model in shown["models"]] == ["lstm", "cell", "attention", "attention", "self-attention"]
    assert len({tuple(row["token"] for row in model["rows"][:121]) for model in shown["models"]}) == 1
    monkeypatch.setattr(page, "BUDGET", 100)
    page.main([checkpoints["lstm"], "--tokens", "120", "--file", str(file)])
    [small] = data_of(file)["models"]
    listed = {str(unit) for found in small["found"] for unit, _, _ in found["units"]}
    assert set(small["units"]) == listed and len(listed) < small["size"] == 16
    with pytest.raises(InputError, match="prompt is empty"):
        page.main([checkpoints["lstm"], "--prompt", " ", "--file", str(file)])


# A script in a copy of the page: it clicks on a token, presses keys, and writes down what is then shown.
PROBE = """<script>
const seen = { errors, texts: [...document.querySelectorAll(".flow")].map(flow => flow.textContent) };
const state = () => [...document.querySelectorAll(".token.at")].map(token => token.id);
const cards = () => [...document.querySelectorAll(".card")].map(card => card.textContent);
const press = key => document.querySelector(".flow").dispatchEvent(new KeyboardEvent("keydown", { key }));
document.getElementById("m0t5").click();
seen.clicked = [state(), cards(), document.querySelector(".gates").textContent];
const mouse = new PointerEvent("pointerover", { pointerType: "mouse" });
const over = () => document.getElementById("m0t9").dispatchEvent(mouse);
over();
seen.held = state();
document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
over();
seen.free = state();
document.getElementById("m0t5").click();
press("ArrowRight"); press("ArrowRight"); press("ArrowLeft");
seen.right = state();
press("ArrowDown");
seen.down = state();
press("ArrowUp");
seen.up = state();
seen.labels = document.getElementById("m0t5").ariaLabel;
document.querySelector("details").open = true;
document.querySelectorAll("button")[1].click();
seen.unit = document.querySelector(".gates h3").textContent;
seen.scripts = document.scripts.length;
seen.requests = performance.getEntriesByType("resource").length;
document.body.replaceChildren(JSON.stringify(seen));
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_page_in_a_browser(checkpoints, tmp_path):
    file = tmp_path / "page.html"
    page.main([checkpoints["attention"], checkpoints["lstm"], "--tokens", "150", "--file", str(file)])
    listen = "<script>const errors = []; window.onerror = error => { errors.push(String(error)); };</script>"
    text = file.read_text(encoding="utf-8").replace("<h1>", listen + "<h1>", 1)
    (tmp_path / "probe.html").write_text(text + PROBE, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = f"--disable-component-update --disable-sync --enable-logging=stderr --user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *flags.split(), *more.split(), "--dump-dom", (tmp_path / "probe.html").as_uri()]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert "CONSOLE" not in run.stderr, run.stderr
    body = re.search(r"<body>(.*)</body>", run.stdout, re.DOTALL)[1]
    seen = json.loads(body.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\xa0").replace("&amp;", "&"))
    assert seen["errors"] == [] and seen["requests"] == 0 and seen["scripts"] == 4
    shown = data_of(file)
    rows, start = shown["models"][0]["rows"], shown["models"][0]["rows"][0]["token"]
    for text, model in zip(seen["texts"], shown["models"]):
        pieces = [row["piece"].strip() or "\u00b6" for row in model["rows"]]
        text = re.sub(r"It goes on with .*?(each time|temperature 0\.9)", "", text)
        assert re.sub(r"\s", "", text) == re.sub(r"\s", "", "".join(pieces))
        assert all(word in text for word in HOSTILE)
    ids, cards, numbers = seen["clicked"]
    assert ids == ["m0t5", "m1t5"]  # both models read the same text
    for card, model in zip(cards, shown["models"]):
        log_p = -torch.tensor(model["rows"][5]["p"]).log().item()
        assert f"\u2212log P = {log_p:.2f}" in card and card.count("\u25c2") == 2
        assert all(shown["words"][str(word)] in card for word, _, _ in model["rows"][5]["next"][1:] if word != start)
    assert "It looks back, and so copies, with" in cards[0] and "looks back" not in cards[1]
    unit = shown["models"][0]["found"][0]["units"][0][0]
    values = unpacked(shown["models"][0]["units"][str(unit)], len(rows), shown["models"][0]["step"])
    for value in (values[0][5], values[1][5], values[3][5]):
        assert f"{value:.2f}" in numbers
    assert seen["held"] == ids and seen["free"] == ["m0t9", "m1t9"]
    assert seen["right"] == ["m0t6", "m1t6"]
    assert int(seen["down"][0][3:]) > 10 and seen["up"] != seen["down"]
    assert seen["labels"].startswith(rows[5]["piece"].strip() + ": ")
    assert seen["unit"].startswith(f"What unit {shown['models'][0]['found'][0]['units'][1][0]} of 16")
