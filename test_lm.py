"""The tests behind "Why trust it" in the README: the code against torch, and against plain loops.

    pytest                      # all, about a minute on two cores, offline
    pytest -k attention         # a part, by name

Equivalences are checked in float64 over many random shapes, values and gradients both. The tests are in the order of
the files in the README.
"""

import collections
import contextlib
import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import zipfile

import data  # before torch, see there
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lstm_cell
import sample
import train
from attention_lm import AttentionLM, attention
from data import InputError, Vocabulary
from lstm_cell import LSTM, LSTMCell, unroll
from lstm_lm import LanguageModel, LSTMLM

MODELS = ["lstm", "cell", "attention"]
OURS = [*MODELS, "self-attention"]  # the last is attention with the decoder's memory
KINDS = [*sample.MODELS, "self-attention"]  # and the models that you add to `sample.MODELS`
HERE = pathlib.Path(__file__).resolve().parent
SIZES = "--hidden-size 16 --batch-size 4 --bptt 8 --lr 0.02 --device cpu --dtype float32 --threads 1".split()
SMALL = [*SIZES, "--epochs", "2"]  # 47 steps in an epoch
TINY = [*SIZES, "--bptt", "40", "--hidden-size", "8", "--epochs", "1"]  # 10 steps in an epoch
each_model = pytest.mark.parametrize("name", MODELS)
each_kind = pytest.mark.parametrize("name", KINDS)


def make_text(sentences=400, seed=0):
    """A text with a grammar: subjects, verbs, objects, numbers, in paragraphs of five sentences."""
    draw = random.Random(seed)
    who, does, what = ["the cat", "a dog", "the old man"], ["sees", "likes", "eats"], ["fish", "the sea", "bread"]
    lines = [
        f"{draw.choice(who)} {draw.choice(does)} {draw.choice(what)}, {draw.randint(1, 9)} times."
        for _ in range(sentences)
    ]
    return "\n\n".join("\n".join(lines[k : k + 5]).capitalize() for k in range(0, sentences, 5))


def make_model(name, vocab_size=11, size=6, dtype=torch.float64, seed=0, **more):
    """A small model of each kind, in evaluation mode."""
    torch.manual_seed(seed)
    if name.endswith("attention"):
        memory_from = "encoder" if name == "attention" else "decoder"
        model = AttentionLM(vocab_size, size, size, memory_from=memory_from, **{"memory_size": 6, **more})
    elif name in MODELS:
        model = LSTMLM(vocab_size, size, size, core=name, **more)
    else:
        settings = vars(train.parse_arguments(["--model", name, "--hidden-size", str(size), "--no-tie-weights"]))
        more = {"dropout": 0.0, "layers": more.pop("num_layers", 1), **more}
        more["input"] = "one-hot" if more.pop("one_hot", False) else "embedding"
        model = sample.MODELS[name](vocab_size, {**settings, **more})
    return model.to(dtype).eval()


def flags_of(name):
    """A kind of model as flags."""
    return ["--model", name.removeprefix("self-"), *["--memory-from", "decoder"] * (name == "self-attention")]


def results_and_gradients(module, inputs, hx, bfloat16=False):
    """A module's output, states, and the gradients into its inputs, states and parameters of one scalar.

    bfloat16: compute products in it, by autocast, which ends before the backward, as in training.
    """
    inputs = inputs.detach().clone().requires_grad_()
    hx = None if hx is None else tuple(part.detach().clone().requires_grad_() for part in hx)
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output, rest = module(inputs, hx)
    flat = [output, *(rest if isinstance(rest, tuple) else [rest])]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype) for part in flat]
    sum((part * weight).sum() for part, weight in zip(flat, weights)).backward()
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    return [*flat, inputs.grad, *(part.grad for part in hx or ()), *(grads[name] for name in sorted(grads))]


def assert_same(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-10, "atol": 1e-12}))


def shapes(count, seed, *limits):
    """`count` random shapes, each size from 1 to its limit."""
    draw = random.Random(seed)
    return [tuple(draw.randint(1, limit) for limit in limits) for _ in range(count)]


# --- lstm_cell.py ------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_cell_is_torchs_cell(bias):
    for B, I, H in shapes(12, 0, 9, 12, 12):
        torch.manual_seed(B + I + H)
        theirs, ours = nn.LSTMCell(I, H, bias=bias).double(), LSTMCell(I, H, bias=bias).double()
        ours.load_state_dict(theirs.state_dict())
        for batch in ((B,), ()):  # batched and not
            x, h, c = (torch.randn(*batch, size, dtype=torch.float64) for size in (I, H, H))
            for hx in ((h, c), None):
                assert_same(results_and_gradients(ours, x, hx), results_and_gradients(theirs, x, hx))


def test_parameters_are_drawn_as_torchs():
    for ours, theirs in [(LSTMCell, nn.LSTMCell), (LSTM, nn.LSTM)]:
        torch.manual_seed(3)
        a = ours(5, 7).state_dict()
        torch.manual_seed(3)
        b = theirs(5, 7).state_dict()
        assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_wrong_sizes_are_refused():
    """By the cell, where torch's refuses them and with the same error; by the LSTM."""
    x_h_c = [((2, 3, 4), None, None), ((), None, None), ((2, 5), None, None), ((5,), None, None)]
    x_h_c += [((2, 4), (3, 6), (3, 6)), ((2, 4), (2, 5), (2, 5)), ((2, 4), (2, 6), (2, 5))]
    x_h_c += [((2, 4), (1, 2, 6), (1, 2, 6)), ((4,), (5,), (5,))]
    for x, h, c in x_h_c:
        hx = None if h is None else (torch.zeros(h), torch.zeros(c))
        with pytest.raises((ValueError, RuntimeError)) as theirs:
            nn.LSTMCell(4, 6)(torch.zeros(x), hx)
        with pytest.raises(theirs.type):
            LSTMCell(4, 6)(torch.zeros(x), hx)
    for shape in [(0, 2, 4), (2, 2, 5), (2,), (1, 2, 3, 4)]:
        with pytest.raises(RuntimeError):
            LSTM(4, 6)(torch.zeros(shape))
    with pytest.raises(RuntimeError):
        LSTM(4, 6, 2)(torch.zeros(3, 2, 4), (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)))
    for name, p in itertools.product(("dropout", "weight_dropout"), (-0.1, 1, 1.5)):
        with pytest.raises(ValueError):
            LSTM(4, 6, 2, **{name: p})


def lstm_pair(I, H, L, bias=True):
    ours, theirs = (kind(I, H, L, bias=bias).double() for kind in (LSTM, nn.LSTM))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
def test_lstm_is_torchs_lstm(bias):
    for T, B, I, H, L in shapes(15, 1, 9, 6, 9, 9, 3):
        torch.manual_seed(T + B + I + H + L)
        ours, theirs = lstm_pair(I, H, L, bias)
        for batch in ((B,), ()):
            x = torch.randn(T, *batch, I, dtype=torch.float64)
            h, c = torch.randn(2, L, *batch, H, dtype=torch.float64)
            for hx in ((h, c), None):
                assert_same(results_and_gradients(ours, x, hx), results_and_gradients(theirs, x, hx))


class Unrolled(nn.Module):
    """The plain loop, with the parameters of an LSTM."""

    def __init__(self, lstm):
        super().__init__()
        self.cell = LSTMCell(lstm.input_size, lstm.hidden_size).double()
        self.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})

    def forward(self, x, hx):
        output, (h, c) = unroll(self.cell, x, hx and tuple(part[0] for part in hx))
        return output, (h[None], c[None])


def test_lstm_is_the_cell_unrolled():
    """The faster form, with its gradient derived by hand, is the plain loop with the gradient of autograd."""
    for T, B, I, H in shapes(8, 2, 7, 5, 7, 7):
        lstm, x = LSTM(I, H).double(), torch.randn(T, B, I, dtype=torch.float64)
        for hx in (tuple(torch.randn(2, 1, B, H, dtype=torch.float64)), None):
            assert_same(results_and_gradients(lstm, x, hx), results_and_gradients(Unrolled(lstm), x, hx))


def test_lstm_used_as_autograd_allows():
    """Twice in one graph, backward twice, without gradient, on a transposed input, through one of the last states."""
    x, both = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True).transpose(0, 1), []
    for module in lstm_pair(4, 5, 2):
        output, hx = module(x)
        again, _ = module(x * 2, hx)
        (output.sum() + again.square().sum()).backward(retain_graph=True)
        (output.sum() + again.square().sum()).backward()
        last = [torch.autograd.grad(module(x)[1][pick].sum(), x)[0] for pick in (0, 1)]
        both.append([output, again, *(parameter.grad for parameter in module.parameters()), *last])
        with torch.no_grad():
            silent, _ = module(x)
        assert not silent.requires_grad and torch.equal(silent, output)
    assert_same(*both)


def test_lstm_refuses_to_go_back_over_changed_weights():
    """As torch does: the gradient for weights that have changed since would be wrong."""
    for module in lstm_pair(4, 4, 1):
        for name, _ in list(module.named_parameters())[:2]:
            output, _ = module(torch.randn(2, 8, 4, dtype=torch.float64).requires_grad_())
            with torch.no_grad():
                module.get_parameter(name).mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                output.sum().backward()


def test_lstm_in_lower_precision():
    """In float32, and with products in bfloat16 under autocast, values and gradients stay near those in float64."""
    torch.manual_seed(0)
    for T, B, I, H, L in [(12, 7, 33, 64, 2), (1, 1, 16, 16, 1), (35, 20, 50, 50, 1), (4, 9, 1, 560, 1)]:
        exact, _ = lstm_pair(I, H, L)
        x, hx = torch.randn(T, B, I, dtype=torch.float64), tuple(torch.randn(2, L, B, H, dtype=torch.float64))
        expected = results_and_gradients(exact, x, hx)
        single = LSTM(I, H, L)
        single.load_state_dict(exact.state_dict())
        near = results_and_gradients(single, x.float(), tuple(part.float() for part in hx))
        assert_same([part.double() for part in near], expected, rtol=1e-4, atol=1e-4)
        rough = results_and_gradients(single, x.float(), tuple(part.float() for part in hx), bfloat16=True)
        assert all((a.double() - b).norm() < 0.03 * b.norm() for a, b in zip(rough, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_is_as_torchs(dtype):
    """A part p is zero, the rest is scaled as F.dropout scales it, and so is the gradient."""
    torch.manual_seed(0)
    x = torch.ones(300, 1000, dtype=dtype, requires_grad=True)
    for p in (0.1, 0.5, 0.9):
        y = lstm_cell.dropout(x, p)
        kept = y != 0
        assert abs(kept.double().mean() - (1 - p)) < 0.005  # more than 5 standard deviations
        assert kept.double().mean(0).std() < 0.05 and kept.double().mean(1).std() < 0.05
        assert_same([y[kept].unique()], [F.dropout(x, p).unique()[1:]])
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(grad, y)
    assert lstm_cell.dropout(x, 0.5, training=False) is x and lstm_cell.dropout(x, 0.0) is x


def test_locked_dropout_is_the_same_at_all_steps():
    torch.manual_seed(0)
    y = lstm_cell.dropout(torch.ones(30, 40, 500), 0.3, locked=True)  # (T, B, H)
    assert torch.equal(y, y[:1].expand_as(y))
    assert abs((y[0] != 0).double().mean() - 0.7) < 0.02 and (y[0] != 0).double().mean(1).std() < 0.05
    assert not torch.equal(y, lstm_cell.dropout(torch.ones(30, 40, 500), 0.3, locked=True))


def test_weight_dropout_is_torchs_lstm_with_fewer_weights():
    """In training some elements of W_hh, other ones at each call, are zero in all steps, and get no gradient."""
    lstm, theirs = LSTM(4, 8, 2, weight_dropout=0.4).double(), nn.LSTM(4, 8, 2).double()
    x, hx = torch.randn(6, 5, 4, dtype=torch.float64), tuple(torch.randn(2, 2, 5, 8, dtype=torch.float64))
    theirs.load_state_dict(lstm.state_dict())
    assert_same(results_and_gradients(lstm.eval(), x, hx), results_and_gradients(theirs, x, hx))
    for seed in (0, 1):
        torch.manual_seed(seed)
        masks = [lstm_cell.dropout(torch.ones(32, 8, dtype=torch.float64), 0.4) for _ in range(2)]
        weights = lstm.state_dict()
        for layer, mask in enumerate(masks):
            weights[f"weight_hh_l{layer}"] = weights[f"weight_hh_l{layer}"] * mask
        theirs.load_state_dict(weights)
        torch.manual_seed(seed)
        ours, expected = results_and_gradients(lstm.train(), x, hx), results_and_gradients(theirs, x, hx)
        expected[-4:-2] = [grad * mask for grad, mask in zip(expected[-4:-2], masks)]  # those of W_hh
        assert_same(ours, expected)


def test_lstm_dropout_is_between_its_layers():
    torch.manual_seed(0)
    lstm, x = LSTM(4, 8, 2, dropout=0.5), torch.randn(6, 5, 4)
    layers = LSTM(4, 8), LSTM(8, 8)
    for number, layer in enumerate(layers):
        weights = {name: value for name, value in lstm.state_dict().items() if name.endswith(str(number))}
        layer.load_state_dict({name[:-1] + "0": value for name, value in weights.items()})
    torch.manual_seed(1)
    output, _ = lstm(x)
    torch.manual_seed(1)
    assert torch.equal(output, layers[1](lstm_cell.dropout(layers[0](x)[0], 0.5))[0])
    assert not torch.equal(output, lstm(x)[0])
    assert torch.equal(lstm.eval()(x)[0], layers[1](layers[0](x)[0])[0])


# --- lstm_lm.py and attention_lm.py --------------------------------------------------------


def test_attention_is_torchs_attention_over_the_slots_in_view():
    """The sentinel is a slot of zeros with a score of its own."""
    for B, T, carried, H in shapes(10, 3, 4, 6, 9, 7):
        h = torch.randn(B, T, H, dtype=torch.float64)
        slots = [torch.randn(B, S, H, dtype=torch.float64) for S in (carried, T)]
        sentinel = nn.Linear(H, 1).double()
        in_view = torch.rand(B, T, carried + T) < 0.5
        bias = torch.randn(B, T, carried + T, dtype=torch.float64).masked_fill(~in_view, -torch.inf)
        context, weights = (part.transpose(0, 1) for part in attention(h.transpose(0, 1), sentinel, slots, bias))
        zero = torch.zeros(B, 1, H, dtype=torch.float64)
        values = torch.cat((zero, *slots), dim=1)
        bias = torch.cat((sentinel(h), bias), dim=-1)  # the score of the sentinel
        theirs = F.scaled_dot_product_attention(h, values, values, attn_mask=bias, scale=1.0)
        assert_same([context], [theirs])
        assert_same([weights.sum(-1)], [torch.ones(B, T, dtype=torch.float64)])
        assert (weights[..., 1:][~in_view] == 0).all()


def plain_attention_model(model, tokens):
    """The model written in plain loops, one stream and one slot at a time -> probabilities (T, B, V)."""
    T, B = tokens.shape
    H, M, k = model.hidden_size, model.memory_size, model.delay
    n = max(1, model.near // 2) if model.training else model.near
    predictions = []
    for b in range(B):
        state = encoder_state = [torch.zeros(H, dtype=torch.float64)] * 2
        context, slots, rows = torch.zeros(H, dtype=torch.float64), [], []
        for t in range(T):
            if t:
                slots.append((m, tokens[t, b]))  # now it is known what followed
            x = model.embedding.weight[tokens[t, b]]
            if model.memory_from == "encoder":
                state = plain_step(model.decoder, torch.cat((x, context)), state)
                encoder_state = plain_step(model.encoder, x, encoder_state, "_l0")
                m = encoder_state[0]
            else:
                state = plain_step(model.decoder, x, state, "_l0")
                m = state[0]
            h = state[0]
            scores = [model.sentinel.weight[0] @ h + model.sentinel.bias[0]]
            seen = range(max(0, t - M), max(0, t - k))  # slots t-M to t-1-k
            seen = [j for j in seen if slots[j][1] != tokens[t, b]]
            scores += [(slots[j][0] * h).sum() - model.decay[0] * math.log(max(t - j, n)) for j in seen]
            a = [score.exp() / sum(other.exp() for other in scores) for score in scores]
            context = torch.zeros(H, dtype=torch.float64)
            for weight, j in zip(a[1:], seen):
                context = context + weight * slots[j][0]
            parts = (h, context, m) if model.memory_from == "encoder" else (h, context)
            r = torch.tanh(model.readout.weight @ torch.cat(parts) + model.readout.bias)
            p = list(a[0] * torch.softmax(model.output.weight @ r + model.output.bias, 0))
            for weight, j in zip(a[1:], seen):
                p[slots[j][1]] = p[slots[j][1]] + weight
            rows.append(torch.stack(p))
        predictions.append(torch.stack(rows))
    return torch.stack(predictions, dim=1)


def plain_step(lstm, x, state, suffix=""):
    """One step of an LSTM from its four parameters, for one stream."""
    W_ih, W_hh, b_ih, b_hh = (getattr(lstm, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, c = state
    i, f, g, o = (W_ih @ x + b_ih + W_hh @ h + b_hh).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@pytest.mark.parametrize("M, k, n, training", [(3, 0, 1, False), (4, 1, 3, True), (6, 2, 4, False), (100, 4, 7, True)])
@pytest.mark.parametrize("name", ["attention", "self-attention"])
def test_attention_model_is_the_one_in_plain_loops(name, M, k, n, training):
    """Log-probabilities and the gradient of the loss in every parameter, the encoder's too."""
    model = make_model(name, memory_size=M, delay=k, near=n, tie_weights=True).train(training)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)  # so that attention is far from uniform
    input, target = torch.randint(11, (2, 13, 3))
    expected = plain_attention_model(model, input).log()
    assert_same([model(input)[0]], [expected])
    losses = [model.loss(input, target)[0], F.nll_loss(expected.flatten(0, 1), target.flatten())]
    ours, theirs = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    assert_same([losses[0], *ours], [losses[1], *theirs])
    assert all(grad.abs().sum() > 0 for grad in ours)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["attention", "self-attention"])
def test_memory_is_respected_to_the_slot(name, training):
    """A step sees the slots t-M to t-1-k whose follower is not the token just read, and no others."""
    for M, k, T in shapes(6, 5, 7, 3, 12):
        model = make_model(name, memory_size=M + 1, delay=k).train(training)
        model.memory_size_in_training = M
        seen_at_most = M if training else M + 1
        tokens = torch.randint(4, (T, 2))  # so few that tokens are often doubled
        _, state = model(tokens)
        assert len(state.tokens) == len(state.memory) == min(T, seen_at_most)
        _, weights, followers, _ = model.attend(tokens)
        assert torch.equal(followers[:-1], tokens[1:])
        for t, b in itertools.product(range(T), range(2)):
            seen = weights[t, b, 1:].nonzero()[:, 0].tolist()
            in_view = range(max(0, t - seen_at_most), max(0, t - k))
            assert seen == [j for j in in_view if tokens[j + 1, b] != tokens[t, b]]


def test_memory_grows_in_training():
    model = make_model("attention", memory_size=1000)
    views = []
    for progress in (0.0, 0.05, 0.5, 1.0):
        model.grow(progress)
        views.append(model.memory_size_in_training)
    assert views == [35, 35, 200, 400]
    model.memory_size = 20
    model.grow(0.0)
    assert model.memory_size_in_training == 20


@pytest.mark.parametrize("name", ["attention", "self-attention"])
def test_attention_copies_what_it_can_only_know_by_looking_back(name):
    """Pairs of random names and random numbers: when a name comes again, its number can only be copied."""
    torch.manual_seed(0)
    model = make_model(name, vocab_size=60, size=32, dtype=torch.float32, memory_size=30, seed=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)

    def text(B=12):
        names, order = (torch.rand(6, B).argsort(0) for _ in "ab")  # (6, B)
        numbers = torch.randint(6, 60, (6, B))
        names, numbers = (torch.cat((part, part.gather(0, order))) for part in (names, numbers))
        return torch.stack((names, numbers), dim=1).flatten(0, 1)  # (24, B): name number name number ...

    for _ in range(30):
        optimizer.zero_grad()
        tokens = text()
        model.loss(tokens[:-1], tokens[1:])[0].backward()
        optimizer.step()
    tokens = text(200)
    log_probs, _ = model.eval()(tokens[:-1])
    nats = F.nll_loss(log_probs[12::2].flatten(0, 1), tokens[13::2].flatten())
    assert nats < 2  # without looking back, at least log 54 = 4.0


@pytest.mark.parametrize("layers", [1, 2])
@each_kind
def test_reading_in_pieces_is_reading_at_once(name, layers):
    """Step by step, in windows, in uneven pieces, some shorter than the delay k: the state carries all there is."""
    model = make_model(name, num_layers=layers, **({"delay": 3} if "attention" in name else {}))
    tokens = torch.randint(11, (23, 3))
    expected, last = model(tokens)
    for lengths in ([1] * 23, [5, 5, 5, 5, 3], [9, 1, 2, 8, 3]):
        state, outputs = None, []
        for piece in tokens.split(lengths):
            log_probs, state = model(piece, state)
            outputs.append(log_probs)
        assert_same([torch.cat(outputs), *state], [expected, *last])


@each_kind
def test_no_model_sees_the_future_or_another_stream(name):
    model, tokens = make_model(name), torch.randint(11, (17, 1))
    expected = model(tokens)[0]
    for t in range(1, 17):
        changed = tokens.clone()
        changed[t:] = (changed[t:] + 1) % 11
        assert torch.equal(model(changed)[0][:t], expected[:t])
    tokens = torch.randint(11, (12, 3))
    alone = torch.cat([model(tokens[:, b : b + 1])[0] for b in range(3)], 1)
    assert_same([model(tokens)[0]], [alone])


@each_kind
def test_one_hot_is_an_embedding(name):
    """W_ih of one-hot input is W_ih E^T of an embedding E: the same function."""
    by_lookup, by_vector = make_model(name), make_model(name, one_hot=True)
    weights = by_lookup.state_dict()
    E = weights.pop("embedding.weight")  # (V, E)
    for key in weights:
        if key.endswith("weight_ih_l0"):
            weights[key] = weights[key] @ E.t()
        if key == "decoder.weight_ih":
            weights[key] = torch.cat((weights[key][:, :6] @ E.t(), weights[key][:, 6:]), 1)
    by_vector.load_state_dict(weights)
    tokens = torch.randint(11, (12, 2))
    assert_same([by_vector(tokens)[0]], [by_lookup(tokens)[0]])


@each_kind
def test_log_probabilities_and_loss(name):
    for T, B, V in shapes(8, 4, 12, 4, 15):
        model = make_model(name, V)
        input, target = torch.randint(V, (2, T, B))
        log_probs, _ = model(input)
        assert log_probs.shape == (T, B, V)
        assert_same([log_probs.exp().sum(-1)], [torch.ones(T, B, dtype=torch.float64)])
        expected = F.nll_loss(log_probs.flatten(0, 1), target.flatten())
        assert_same([model.loss(input, target)[0]], [expected])


@pytest.mark.parametrize("layers", [1, 2])
@each_kind
def test_gradcheck_of_whole_models(name, layers):
    """The gradient of the loss in every parameter against finite differences."""
    model = make_model(name, vocab_size=7, size=4, num_layers=layers, tie_weights=True)
    input, target = torch.randint(7, (2, 12, 3))
    names, values = zip(*model.named_parameters())
    for value in values:
        nn.init.normal_(value)  # gradients so large that an error would show

    whole = train.Loss(model)

    def loss(*parameters):
        weights = {f"model.{name}": value for name, value in zip(names, parameters)}
        return torch.func.functional_call(whole, weights, (input, target, None), tie_weights=True)[0]

    assert torch.autograd.gradcheck(loss, values, fast_mode=True, atol=1e-7, rtol=1e-4)


@each_kind
def test_bfloat16_products_leave_the_loss_in_float32(name):
    model = make_model(name, 500, size=16, dtype=torch.float32)
    input, target = torch.randint(500, (2, 12, 3))
    with torch.autocast("cpu", torch.bfloat16):
        if name == "lstm":
            try:
                model(input)
            except RuntimeError as error:
                pytest.skip(f"torch.nn.LSTM has no bfloat16 on this processor: {error}")
        loss, state = model.loss(input, target)
        log_probs, _ = model(input, state)
    assert loss.dtype == log_probs.dtype == torch.float32
    assert abs(loss - model.loss(input, target)[0]) < 1e-3


def test_first_weights_are_small():
    for name in OURS:
        for tie in (False, True):
            model = make_model(name, 500, 20, tie_weights=tie)
            for weight in (model.embedding.weight.detach(), model.output.weight.detach()):
                assert 0.099 < weight.abs().max() < 0.1001  # uniform between them
                assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
            assert not model.output.bias.any()


@each_kind
def test_layers_and_sizes_are_used(name):
    counts = [sum(p.numel() for p in make_model(name, num_layers=L).parameters()) for L in (1, 2)]
    assert counts[0] < counts[1]
    for tie in ("--tie-weights", "--no-tie-weights"):
        args = train.parse_arguments([*flags_of(name), "--hidden-size", "6", "--embedding-size", "4", tie])
        model = sample.MODELS[args.model](11, vars(args))
        assert model(torch.randint(11, (5, 2)))[0].shape == (5, 2, 11)
        assert model.output.weight.shape == (11, 4 if tie == "--tie-weights" else 6)
        assert (model.output.weight is model.embedding.weight) == (tie == "--tie-weights")


@each_kind
def test_dropout_is_off_in_evaluation_and_on_in_training(name):
    """Each kind alone changes what a model computes, and one layer's locked dropout is the same at all steps."""
    tokens, has_all = torch.randint(11, (8, 2)), name in OURS and name != "lstm"
    others = [{"dropout": 0.5, "locked_dropout": True}, {"weight_dropout": 0.5}] * has_all
    for options in [{"dropout": 0.5}, *others]:
        model = make_model(name, num_layers=2, **options).train()
        assert not torch.equal(model(tokens)[0], model(tokens)[0])
        assert torch.equal(model.eval()(tokens)[0], model(tokens)[0])
    # It is also before the output layer.
    model, r = make_model(name, dropout=0.5).train(), torch.randn(8, 2, 6, dtype=torch.float64)
    torch.manual_seed(1)
    log_probs = model.log_softmax(r)
    torch.manual_seed(1)
    assert_same([log_probs], [F.log_softmax(model.output(lstm_cell.dropout(r, 0.5)), dim=-1)])
    if has_all:
        model = make_model(name, dropout=0.5, locked_dropout=True).train()
        zero = model.embed(tokens.new_zeros(8, 2)) == 0  # one token at all steps
        assert zero.any() and torch.equal(zero, zero[:1].expand_as(zero))


# --- data.py -------------------------------------------------------------------------------


def test_normalisation():
    text = "Don't panic! Call  os.path.join('a', 3.14)\nnow, e.g. for 1,000 files.\n----\n>>> x == y\n* An “item”."
    text += "\n\nEnd"
    assert " ".join(data.normalise(text)).split(" <eos>") == [
        "don't panic !",
        " call os . path . join ( ' a ' , N ) now , e . g . for N files .",
        " >>> x == y",
        ' * an " item " .',
        " end",
        "",
    ]
    assert list(data.normalise("Zombie.g. b")) == ["zombie", ".", "g", ".", "<eos>", "b", "<eos>"]
    assert list(data.normalise("A b.\n\nC")) == ["a", "b", ".", "<eos>", "c", "<eos>"]
    assert list(data.normalise("一。二！ 三")) == ["一", "。", "<eos>", "二", "！", "<eos>", "三", "<eos>"]
    assert list(data.words_of_lines("a N <unk>\nB c\n")) == ["a", "N", "<unk>", "<eos>", "B", "c", "<eos>"]
    assert list(data.TOKENISERS["char"].cut("Ab\n")) == ["A", "b", "\n"]


def test_a_line_of_any_length_is_cut_after_a_word():
    words = ["word", "longer"] * 150_000  # 1.8 million characters
    for cut in (data.normalise, data.words_of_lines):
        assert [token for token in cut(" ".join(words)) if token != "<eos>"] == words
    text = " ".join(words) + "\n\n\n"
    assert "".join(data.lines_of(text)) == text


def test_text_reads_as_text_again():
    text = "the file (see os.path) can't be \"read-only\", or 'empty'.\nis it?\nyes: [a, b]\n"
    for call in (text, "os.getenv(x), or read_text(path)\n", ">>> f(x)\n"):
        assert "".join(data.detokenise(data.normalise(call))) == call
    endless = data.detokenise(itertools.cycle(["a", "."]))
    assert [next(endless) for _ in range(3)] == ["a", ".", "a"]  # a piece for each token, as it comes


def test_a_prompt_is_cut_as_the_corpus_was():
    words = Vocabulary(["the", "<unk>", "N", "<eos>", "n", "."], "word")  # it may contain the tokens of the corpus
    assert sample.prompt_tokens("The <unk> N. N n", words) == (["the", "<unk>", "N", ".", "<eos>", "N", "n"], [])
    assert list(data.normalise("N")) == ["n", "<eos>"]  # but in a corpus it is a letter
    assert sample.prompt_tokens("The THE. 42", words) == (["the", "the", ".", "<eos>", "N"], [])
    lines = Vocabulary(["the", "<unk>", "N", "<eos>", "end", "."], "lines")
    assert sample.prompt_tokens("The N end", lines) == (["the", "N", "end"], [])
    assert sample.prompt_tokens("The zebra a zebra", lines) == (["the", "zebra", "a", "zebra"], ["zebra", "a"])
    assert sample.prompt_tokens("The", Vocabulary(["T", "h", "<unk>", "\n"], "char")) == (["T", "h", "e"], ["e"])


def test_vocabulary():
    counts = collections.Counter("b b b a a c <eos> <eos>".split())
    vocabulary = Vocabulary.build(counts, "word", min_count=2)
    assert vocabulary.index2word == ["b", "<eos>", "a", "<unk>"]  # by frequency, then by name
    assert vocabulary.encode(["a", "c", "b", "zebra"]).tolist() == [2, 3, 0, 3]
    assert Vocabulary.build(counts, "word", max_size=3).index2word == ["<unk>", "b", "<eos>"]
    assert Vocabulary.build({"b": 2, "a": 3, "c": 0}, "word").index2word == ["a", "b", "<eos>", "<unk>"]
    assert "\n" in Vocabulary.build({"a": 1}, "char").word2index  # what the first token is predicted from


def test_splits_are_contiguous_and_cut_no_document():
    for seed in range(30):
        draw = random.Random(seed)
        documents = ["\n\n".join("x" * draw.randint(1, 9) for _ in range(3)) for _ in range(draw.randint(60, 90))]
        text = "\n\n\n".join(documents)
        parts = data.split_text(text)
        assert "".join(parts) == text and all(parts)
        assert [document for part in parts for document in part.strip("\n").split("\n\n\n")] == documents
        for fraction, part in [(0.8, parts[0]), (0.9, parts[0] + parts[1])]:  # no document has 40 characters
            assert fraction * len(text) - 40 < len(part) <= fraction * len(text)


@pytest.mark.parametrize("gap", ["\n\n", "\n", "\r", "\r\n", "\t", " ", "\u00a0", "\u3000", "。", "！"])
def test_a_text_with_any_separator_can_be_split(gap, tmp_path):
    (tmp_path / "text.txt").write_bytes(gap.join(["word"] * 1000).encode())
    text = data.read_text(tmp_path / "text.txt")
    parts = data.split_text(text)
    assert "".join(parts) == text and all(part.startswith("word") for part in parts)
    assert set(data.normalise(text)) <= {"word", "<eos>", "。", "！"}
    assert len(data.prepare(parts).train) >= 800
    for raw in (b"\xef\xbb\xbfone\r\ntwo\r\n", b"one\rtwo\r", b"one\ntwo\n"):
        (tmp_path / "text.txt").write_bytes(raw)  # line ends and a byte order mark are no part of a text
        assert data.read_text(tmp_path / "text.txt") == "one\ntwo\n"


def test_split_fractions(tmp_path):
    text = make_text()
    (tmp_path / "text.txt").write_text(text)
    end = int(0.9 * len(text))
    assert data.split_text(text, "char", (0.9, 0.1)) == [text[:end], text[end:], ""]
    assert [len(part) for part in data.split_text("x" * 1000, "char")] == [800, 100, 100]
    assert [len(part) for part in data.split_text("x" * 1000, "char", (0.7, 0.2))] == [700, 200, 100]
    corpus = data.load_corpus(tmp_path / "text.txt", "char", fractions=(0.9, 0.1))
    assert [len(corpus.train), len(corpus.valid), len(corpus.test)] == [end, len(text) - end, 0]
    assert len(data.load_corpus(tmp_path / "text.txt", fractions=(0.9, 0.1)).test) == 0
    with pytest.raises(InputError, match="sum to more than 1"):
        data.load_corpus(tmp_path / "text.txt", fractions=(0.9, 0.2))
    for split in data.SPLITS:
        (tmp_path / f"{split}.txt").write_text(text)
    with pytest.raises(InputError, match="leave --split out"):
        data.load_corpus(tmp_path, fractions=(0.9, 0.1))


def test_pairs_and_streams_and_windows():
    for seed in range(30):
        draw = random.Random(seed)
        N, B, T = draw.randint(20, 200), draw.randint(1, 9), draw.randint(1, 12)
        tokens = torch.arange(1, N + 1, dtype=draw.choice([torch.int32, torch.int64]))
        input, target = data.pairs(tokens, start=0)
        assert target.tolist() == list(range(1, N + 1)) and torch.equal(input, target - 1)
        x, y = data.streams(input, B), data.streams(target, B)
        assert torch.equal(y, x + 1) and len(y) == N // B
        assert torch.equal(y.t().flatten(), target[: N // B * B])  # streams are contiguous, in order
        cut = list(data.windows(x, y, T))
        assert torch.equal(torch.cat([a for a, _ in cut]), x.long())
        assert torch.equal(torch.cat([b for _, b in cut]), y.long())
        assert all(len(a) == T for a, _ in cut[:-1]) and all(a.shape == b.shape for a, b in cut)
        assert all(part.dtype == torch.int64 for pair in cut for part in pair)


def test_the_docstrings_example():
    """The picture in data.py's docstring is what happens."""
    tokens = list(data.normalise("A cat sat. It slept."))
    vocabulary = Vocabulary.build(collections.Counter(tokens), "word")
    ids = vocabulary.encode(tokens)
    input, target = data.pairs(ids, vocabulary.start)
    assert tokens == "a cat sat . <eos> it slept . <eos>".split()
    assert ids.tolist() == [2, 3, 5, 0, 1, 4, 6, 0, 1] and input.tolist() == [1, 2, 3, 5, 0, 1, 4, 6, 0]
    assert data.streams(input, 2).tolist() == [[1, 0], [2, 1], [3, 4], [5, 6]]
    assert data.streams(target, 2).tolist() == [[2, 1], [3, 4], [5, 6], [0, 0]]
    for number in range(4):  # and the docstring shows these numbers
        rows = [*data.streams(input, 2)[number].tolist(), *data.streams(target, 2)[number].tolist()]
        assert "{}  {}    {}  {}".format(*rows) in data.__doc__


def test_the_built_in_corpus():
    text = data.python_docs()
    parts = data.split_text(text)
    corpus, tokens = data.prepare(parts), list(data.normalise(parts[2]))
    assert len(corpus.train) > 200_000 and len(corpus.valid) > 20_000 and len(corpus.test) > 20_000
    assert corpus.train.dtype == corpus.test.dtype == torch.int32
    assert torch.equal(corpus.test.long(), corpus.vocabulary.encode(tokens))
    assert torch.bincount(corpus.train)[-1] == 3  # rarer words are unknown
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
    assert len(paragraphs) > 10_000
    assert len(set(paragraphs)) == len(paragraphs)  # nothing occurs twice, so the splits share no paragraph
    again = data.normalise_again("".join(data.detokenise(tokens)))
    given, found = (collections.Counter(" ".join(part).split("<eos>")) for part in (tokens, again))
    assert (given & found).total() >= 0.7 * given.total()  # most sentences that are written are read as they were


def test_the_built_in_corpus_is_shuffled_and_always_the_same(monkeypatch, tmp_path):
    for k in range(40):
        (tmp_path / f"m{k:02}.py").write_text(f'"""Module {k}\n\nIn all."""\n\ndef f():\n    """Text {k}"""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text('"""Left out"""')
    monkeypatch.setattr(data.sysconfig, "get_path", lambda _: tmp_path)
    text = data.python_docs()
    assert text == data.python_docs() and "Left out" not in text and text.count("In all.") == 1
    documents = [document.split("\n\n") for document in text.split("\n\n\n")]
    order = [int(document[0].split()[1]) for document in documents if document[0].startswith("Module ")]
    assert sorted(order) == list(range(40)) and 10 < sum(a < b for a, b in itertools.pairwise(order)) < 30
    topics = [k for k, document in enumerate(documents) if not document[0].startswith("Module ")]
    assert topics != list(range(len(topics)))  # and the topics of pydoc stand among the modules


def test_vocabulary_and_splits_come_from_the_right_text(tmp_path):
    for split, word in zip(data.SPLITS, ("apple", "banana", "cherry")):
        (tmp_path / f"my.{split}.txt").write_text(f"The {word} is here.\n" * 20)
    corpus = data.load_corpus(str(tmp_path))
    assert "apple" in corpus.vocabulary.word2index and "cherry" not in corpus.vocabulary.word2index
    assert corpus.vocabulary.decode(corpus.test[:3]) == ["the", "<unk>", "is"]
    for split in data.SPLITS:  # already normalised: only <eos> is added
        (tmp_path / f"my.{split}.txt").write_text(" Mr. <unk> has N x\n" * 10)
    corpus = data.load_corpus(str(tmp_path))
    assert corpus.vocabulary.tokeniser == "lines"
    assert corpus.vocabulary.decode(corpus.test[:6]) == ["Mr.", "<unk>", "has", "N", "x", "<eos>"]


def serve(monkeypatch, files):
    """Let `urlopen` answer from a dict {end of the address: bytes}."""

    def urlopen(address, timeout):
        for end, content in files.items():
            if address.endswith(end):
                return io.BytesIO(content)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(data.urllib.request, "urlopen", urlopen)


def test_download_is_checked_cached_and_atomic(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    text = make_text().encode()
    monkeypatch.setitem(data.DOWNLOADS, "shakespeare", ("http://x/", {"input.txt": hashlib.sha256(text).hexdigest()}))
    serve(monkeypatch, {})
    with pytest.raises(InputError, match=r"no network.*save it as .*input\.txt"):
        data.load_corpus("shakespeare")
    serve(monkeypatch, {"input.txt": text + b"!"})
    with pytest.raises(InputError, match="x/input.txt is not the published file.*save it as"):
        data.load_corpus("shakespeare")
    assert not list(tmp_path.rglob("*.txt*"))
    serve(monkeypatch, {"input.txt": text})
    corpus = data.load_corpus("shakespeare")
    serve(monkeypatch, {})
    assert torch.equal(data.load_corpus("shakespeare").train, corpus.train)  # from the cache, offline
    [path] = tmp_path.rglob("*.txt")
    path.write_text("damaged")
    with pytest.raises(InputError, match="delete it"):
        data.load_corpus("shakespeare")


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path, other = tmp_path / "folder" / "file", tmp_path / "other"
    data.write_atomically(path, b"earlier")
    os.link(path, other)  # a second name of the same file, which would show a write in place
    data.write_atomically(path, b"new")
    assert (path.read_bytes(), other.read_bytes()) == (b"new", b"earlier")
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match="file cannot be written: No space"):
            patch.setattr(data.os, broken, full)
            data.write_atomically(path, b"newer")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


# --- sample.py -----------------------------------------------------------------------------


def test_greedy_and_drawing():
    log_probs = torch.log_softmax(torch.randn(4, 30, dtype=torch.float64), -1)
    assert torch.equal(sample.choose(log_probs, greedy=True), log_probs.argmax(-1))
    rows = log_probs[:1].expand(40_000, -1)
    drawn = sample.choose(rows, generator=torch.Generator().manual_seed(0))
    seen = torch.bincount(drawn, minlength=30) / 40_000
    assert (seen - log_probs[0].exp()).abs().max() < 0.01


@each_kind
def test_temperature_acts_on_what_is_generated(name):
    """P = softmax(logits / t), and in a model that copies a_0 softmax(logits / t) + what is copied."""
    model, tokens = make_model(name), torch.randint(11, (12, 2))
    logits = []
    model.output.register_forward_hook(lambda module, inputs, output: logits.append(output))
    plain = model(tokens)[0].exp()
    share = torch.ones(12, 2, 1, dtype=torch.float64)
    if "attention" in name:
        share = model.attend(tokens)[1][..., :1]
    copied = plain - share * torch.softmax(logits[0], -1)
    for temperature in (0.3, 0.9, 2.0):
        p = model(tokens, None, temperature)[0].exp()
        assert_same([p], [share * torch.softmax(logits[0] / temperature, -1) + copied])
    for temperature in (1e-300, 1e-46, 1e39, 1e300):  # all that --temperature takes: no number overflows into nan
        assert model.float()(tokens, None, temperature)[0].exp().sum(-1).allclose(torch.ones(12, 2))
    prompts = torch.randint(11, (5, 3))
    greedy, coldest = (torch.stack(list(sample.generate(model, prompts, 9, temperature=t))) for t in (None, 1e-30))
    assert "attention" in name or torch.equal(greedy, coldest)  # temperature -> 0 tends to greedy


def test_a_draw_at_either_end_takes_no_token_of_probability_zero(monkeypatch):
    log_probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    for number, token in [(0.0, 1), (1 - 2.0**-53, 2)]:  # the least and the largest that torch.rand gives
        monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.full(shape, number, dtype=torch.float64))
        assert sample.choose(log_probs).tolist() == [token]


def test_top_k_and_top_p_keep_the_right_tokens():
    p = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]]).log().expand(5000, -1)

    def kept(**how):
        generator = torch.Generator().manual_seed(0)
        return set(sample.choose(p, generator=generator, **how).tolist())

    assert kept(top_k=2) == {1, 3} and kept(top_k=99) == kept() == {0, 1, 2, 3, 4}
    assert kept(top_p=0.39) == {1} and kept(top_p=0.41) == {1, 3} and kept(top_p=0.9) == {0, 1, 3, 4}
    assert kept(top_k=3, top_p=0.7) == {1, 3}
    p = torch.zeros(5000, 4)  # all equal, and still no more than two
    assert len(kept(top_k=2)) == len(kept(top_p=0.5)) == 2
    rows = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()  # the order differs from row to row
    assert sample.choose(rows, top_p=0.5).tolist() == [0, 1]


@each_kind
def test_generation(name):
    model, prompts = make_model(name), torch.randint(11, (3, 4))  # (P, B)
    greedy = torch.stack(list(sample.generate(model, prompts, 12)))  # (12, B)
    text = prompts
    for token in greedy:  # against a forward of the whole text for each token
        assert torch.equal(token, model(text)[0][-1].argmax(-1))
        text = torch.cat((text, token[None]))
    never = greedy[0].unique().tolist()
    assert not torch.isin(torch.cat(list(sample.generate(model, prompts, 12, never))), greedy[0]).any()

    long = torch.randint(11, (300, 1))  # read in parts
    assert torch.equal(next(sample.generate(model, long, 1)), model(long)[0][-1].argmax(-1))

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack(list(sample.generate(model, prompts[:, :1].expand(-1, 5), 12, (), generator, temperature=1)))

    assert draw(0).shape == (12, 5) and len(draw(0).t().unique(dim=0)) == 5  # each sample is drawn alone
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def sampled(capsys, *words):
    sample.main([str(word) for word in words])
    return capsys.readouterr()


def test_sampling_from_the_command_line(trained, capsys):
    paths = [trained[name].path for name in MODELS]
    alone = sampled(capsys, paths[0], "--prompt", "the zebra", "--greedy", "--tokens", 12)
    assert "does not know zebra" in alone.err and alone.out.startswith("the zebra")
    assert len(alone.out.split()) > 6  # and goes on
    drawn = [sampled(capsys, paths[1], "--seed", seed).out for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sampled(capsys, paths[1], "--temperature", sample.DEFAULT_TEMPERATURE).out  # the default
    several = sampled(capsys, paths[2], "--num-samples", 3, "--prompt", "a dog", "--tokens", 9).out
    assert several.count("a dog") >= 3
    model, vocabulary, _ = sample.load_checkpoint(paths[0])
    nn.init.constant_(model.output.bias, -9.0)
    model.output.bias.data[vocabulary.unknown] = 99.0
    steps = sample.continuations(model, vocabulary, ["zebra"], 9, 2, temperature=1.0)
    assert all("<unk>" not in step for step in steps)  # it is never written, however probable


def test_the_comparison_shows_checkpoints_side_by_side(trained, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    flags = ["--prompt", "the cat", "--prompt", "a dog", "--greedy", "--temperature", 0.5, 1, "--tokens", 20]
    shown = sampled(capsys, *(trained[name].path for name in MODELS), *flags).out
    assert shown.count("===") == 2 * 2 * 3  # two prompts, three ways to decode
    assert all(f"{trained[name].results['test_ppl']:.2f}" in shown for name in MODELS)
    assert max(map(len, shown.splitlines())) <= 120
    assert any(line.count("the cat") == 3 for line in shown.splitlines())
    rows = sample.compare([("a", "b c " * 30), ("d", "e " * 50)], 40).splitlines()
    assert all(len(row) <= 40 for row in rows if " | " in row)


def test_attention_can_be_looked_at(trained, capsys):
    path, text = trained["attention"].path, "the cat sees fish, 3 times. the old man likes the sea"
    shown = sampled(capsys, path, "--prompt", text, "--tokens", 0, "--show-attention").out  # nothing is generated
    model, vocabulary, _ = sample.load_checkpoint(path)
    tokens, _ = sample.prompt_tokens(text, vocabulary)
    N, k = len(tokens), model.delay
    lines = shown[shown.index("P(word)") :].splitlines()[1 : 1 + N]
    assert [line.split()[0] for line in lines] == tokens
    rows = sample.look_back(model, vocabulary, tokens)
    start = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(tokens)))[:, None]
    log_probs, _ = model(start[:-1])
    for t, (word, p, copied, weights) in enumerate(rows):
        assert word == tokens[t] and len(weights) == N and not any(weights[max(0, t - k) :])
        assert sum(weights) == pytest.approx(copied, abs=1e-5)
        assert p == pytest.approx(log_probs[t, 0, start[t + 1, 0]].exp().item(), rel=1e-4)
        again = sum(weight for weight, follower in zip(weights, tokens) if follower == word)
        assert again <= p * (1 + 1e-5)  # what is copied is a part of P(word)
    assert sample.most_seen([("", 0, 0, [0.1, 0.5, 0.0]), ("", 0, 0, [0.3, 0.1, 0.2])], 2) == [0, 1]
    with pytest.raises(InputError, match="nothing to look back at"):
        sampled(capsys, path, "--tokens", 1, "--show-attention")
    with pytest.raises(InputError, match="has no attention"):
        sampled(capsys, trained["cell"].path, "--show-attention")
    before = sampled(capsys, path, "--prompt", text, "--greedy").out
    assert sampled(capsys, path, "--prompt", text, "--greedy", "--memory", 3).out != before


# --- train.py: the steps -------------------------------------------------------------------


@each_kind
def test_perplexity_counts_every_token_once(name):
    """Without dropout, and however the text is cut into chunks."""
    model, tokens = make_model(name, dropout=0.5), torch.randint(11, (101,))
    input = torch.cat((torch.tensor([3]), tokens[:-1]))
    log_probs, _ = model(input[:, None])
    expected = F.nll_loss(log_probs[:, 0], tokens).item()
    model.train()  # evaluate turns dropout off, and on again
    for chunk in (1, 7, 100, 256):
        assert abs(train.evaluate(model, tokens, 3, chunk) - expected) < 1e-12
    assert model.training and train.perplexity(0.0) == 1 and train.perplexity(1e9) == float("inf")


@pytest.fixture(scope="session", autouse=True)
def fast_and_the_same():
    """One thread: tiny models are fastest with it, and it always gives the same bits. No test waits for the disk."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "text.txt"
    path.write_text(make_text(200))
    return str(path)


@pytest.fixture(scope="session")
def corpus(corpus_file):
    return data.load_corpus(corpus_file)


Trained = collections.namedtuple("Trained", "out path results printed")


@functools.cache  # pytest makes a fixture once for each file that imports it
def train_each(folder, corpus_file):
    """A small run of each model -> {name: Trained}."""
    runs = {}
    for name in MODELS:
        out, printed = folder / name, io.StringIO()
        with contextlib.redirect_stdout(printed):
            results = train.main(["--model", name, "--data", corpus_file, "--out", str(out), *SMALL])
        runs[name] = Trained(out, out / "checkpoint.pt", results, printed.getvalue())
    return runs


@pytest.fixture(scope="session")
def trained(tmp_path_factory, corpus_file):
    return train_each(tmp_path_factory.getbasetemp(), corpus_file)


def read_log(folder):
    """The rows of a run's log -> a list of dicts."""
    with open(folder / "log.csv") as file:
        return list(csv.DictReader(file))


def read_counters(folder):
    """A run's saved counters, a dict."""
    return sample.read_checkpoint(folder / "checkpoint.pt")["training"]["counters"]


def make_run(corpus, *flags, rank=0, processes=1):
    """A Run, as `main` makes it."""
    return train.Run(train.parse_arguments([*SMALL, *flags]), corpus, torch.device("cpu"), rank, processes)


@each_model
def test_training_end_to_end(trained, name, corpus):
    out, path, results, printed = trained[name]
    assert results["test_ppl"] < 12  # the text's grammar leaves about 3 choices, its words are 20
    assert f"test perplexity {results['test_ppl']:.2f}" in printed
    assert len(printed.split("test perplexity")[1].split()) > 20  # and a sample after it
    rows = read_log(out)
    assert list(rows[0]) == "step,epoch,seconds,tokens_per_second,train_loss,valid_loss,valid_ppl".split(",")
    assert [(row["step"], row["epoch"]) for row in rows] == [("47", "1.00"), ("94", "2.00")]
    assert float(rows[1]["valid_ppl"]) < float(rows[0]["valid_ppl"])
    model, vocabulary, checkpoint = sample.load_checkpoint(path)
    assert checkpoint["results"] == {key: results[key] for key in ("valid_ppl", "test_ppl")}
    assert vocabulary.index2word == corpus.vocabulary.index2word and not model.training
    nats = train.evaluate(model, corpus.test, vocabulary.start)  # the round trip loses nothing
    assert train.perplexity(nats) == pytest.approx(results["test_ppl"], rel=1e-6)


def test_cell_and_lstm_open_each_others_checkpoints(trained, corpus, tmp_path, capsys):
    paths = [trained["cell"].path, trained["lstm"].path]
    flags = [*TINY, "--locked-dropout", "--weight-dropout", "0.2", "--out", str(tmp_path)]
    paths.append(train.main(flags, corpus)["checkpoint"])
    for path in paths:
        cell, lstm = (sample.load_checkpoint(path, model=core)[0] for core in ("cell", "lstm"))
        assert isinstance(cell.core, LSTM) and isinstance(lstm.core, nn.LSTM)
        a, b = (train.evaluate(model, corpus.test, 0) for model in (cell, lstm))
        assert abs(a - b) < 1e-5


@each_kind
def test_training_is_a_plain_loop(name, corpus):
    """For more than an epoch: the state carried and reset, gradients clipped, the learning rate, the windows' order."""
    flags = [*flags_of(name), "--dropout", "0", "--clip", "0.1", "--bptt", "30"]
    run, twin = (make_run(corpus, *flags) for _ in range(2))
    model, norms, steps = twin.model, [], 15
    tokens, B = corpus.train[: len(corpus.train) // 4 * 4].long(), 4
    target = tokens.view(B, -1).t()  # (N / B, B)
    input = torch.cat((torch.tensor([corpus.vocabulary.start]), tokens[:-1])).view(B, -1).t()
    optimizer, state, start, grown = torch.optim.AdamW(model.parameters()), None, 0, []
    run.model.grow = grown.append
    for step in range(steps):
        if start >= len(input):
            state, start = None, 0
        loss, state = model.loss(input[start : start + 30], target[start : start + 30], state)
        state, start = tuple(part.detach() for part in state), start + 30
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
        optimizer.param_groups[0]["lr"] = 0.02 * train.schedule(step / steps)
        optimizer.step()
        run.training_step(step / steps)
    assert step * 30 > len(input) and max(norms) > 0.15
    assert grown == [step / steps for step in range(steps)]
    for a, b in zip(run.model.parameters(), model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_same(run.state, state, rtol=1e-4, atol=1e-5)


def test_learning_rate_schedule():
    rates = [train.schedule(k / 1000) for k in range(1001)]
    peak = max(rates)
    assert 0.99 < peak <= 1 and 0 < rates[0] < 0.05 and rates[-1] == pytest.approx(0, abs=1e-9)
    top = rates.index(peak)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[515] == pytest.approx(0.5, abs=0.03)  # half of it at half of the time


def test_training_as_zaremba_2014(corpus):
    """Uniform weights, then plain SGD with a learning rate that is halved at each epoch after the second."""
    flags = "--init 0.07 --optimizer sgd --halve-after 2 --epochs 4 --lr 0.5 --clip 99 --bptt 40".split()
    run = make_run(corpus, *flags)
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    assert 0.069 < weights.abs().max() <= 0.07 and abs(weights.mean()) < 0.001
    assert weights.std().item() == pytest.approx(0.07 / 3**0.5, rel=0.02)
    rates, n = [], run.steps_per_epoch
    for _ in range(4 * n):
        before = [p.detach().clone() for p in run.model.parameters()]
        run.training_step(0.5)
        rates.append(run.optimizer.param_groups[0]["lr"])
        for p, b in zip(run.model.parameters(), before):
            torch.testing.assert_close(p.detach(), b - rates[-1] * p.grad)
    assert rates == [0.5] * 2 * n + [0.25] * n + [0.125] * n


def test_what_is_reported(corpus, monkeypatch):
    """The training loss is the mean since the last row, and all processes' tokens are counted."""
    run, losses, now = make_run(corpus, processes=2), [], [100.0]
    assert run.input.shape[1] == 2  # each process has half of the streams
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    run.begun = run.speed_since = now[0]
    forward, steps_done = run.forward_and_backward, []

    def recording():
        loss, state = forward()
        losses.append(loss.item())
        return loss, state

    run.forward_and_backward = recording
    for steps, seconds in [(5, 2), (3, 4)]:
        losses.clear()
        for _ in range(steps):
            run.training_step(0.5)
        now[0] += seconds
        expected, speed = sum(losses) / steps, 4 * 8 * steps / seconds  # all 4 streams, 8 steps each
        assert f"loss {expected:.3f}" in train.status(run, 0.5) and f"{speed:,.0f} tokens/s" in train.status(run, 0.5)
        run.progress()
        assert f" {train.clock(now[0] - 100)} left" in train.status(run, 0.5)  # half is done
        run.validate()
        row = run.counters.log.splitlines()[-1].split(",")
        assert float(row[4]) == pytest.approx(expected, abs=1e-4) and float(row[3]) == pytest.approx(speed, abs=0.5)
        steps_done.append(int(row[0]))
    assert steps_done == [5, 8]
    halves = [make_run(corpus, rank=rank, processes=2).input for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), make_run(corpus).input)
    with pytest.raises(InputError, match="--batch-size 4 cannot be divided by 3 processes"):
        make_run(corpus, processes=3)


def test_the_best_model_is_kept_and_tested(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "schedule", lambda progress, *_: 1 if progress < 0.7 else 200)  # then it gets worse
    flags, out = [*SMALL, "--valid-every", "30"], tmp_path / "whole"
    results = train.main([*flags, "--out", str(out)], corpus)
    rows = read_log(out)
    assert [row["step"] for row in rows] == ["30", "60", "90", "94"]  # the last step, too
    losses = [float(row["valid_loss"]) for row in rows]
    assert losses.index(min(losses)) < len(losses) - 1
    model, vocabulary, _ = sample.load_checkpoint(out / "checkpoint.pt")
    valid, test = (train.perplexity(train.evaluate(model, part, vocabulary.start)) for part in corpus[2:])
    assert valid == pytest.approx(train.perplexity(min(losses)), rel=1e-3)
    assert [results["valid_ppl"], results["test_ppl"]] == pytest.approx([valid, test], rel=1e-5)
    resumed, deaths = run_with_kills(flags, tmp_path / "killed", corpus, monkeypatch, {300, 360, 400})
    assert deaths == 3 and resumed["test_ppl"] == results["test_ppl"]  # also by a run that is resumed after the best
    assert_same_runs(out, tmp_path / "killed")


def test_training_stops_at_the_target_and_at_the_time(corpus, tmp_path, monkeypatch):
    flags = [*SMALL, "--epochs", "20", "--target-ppl", "9", "--valid-every", "10", "--out", str(tmp_path / "target")]
    assert train.main(flags, corpus)["valid_ppl"] <= 9
    rows = read_log(tmp_path / "target")
    assert len(rows) > 2 and [float(row["valid_ppl"]) <= 9 for row in rows] == [False] * (len(rows) - 1) + [True]
    rates = []
    monkeypatch.setattr(train, "schedule", lambda progress, *_: rates.append(progress) or 0.1)
    monkeypatch.setattr(train.time, "monotonic", itertools.count(0.0, 0.01).__next__)  # each look at the clock is 10 ms
    train.main([*SIZES, "--minutes", "0.05", "--out", str(tmp_path / "time")], corpus)
    assert 20 < len(rates) < 300 and rates == sorted(rates)  # 3 s are 300 looks
    assert rates[0] < 0.1 and 0.9 < rates[-1] <= 1  # the schedule ends when the time does


@pytest.mark.parametrize("spoiled", ["loss", "weights"])
def test_what_is_no_number_is_never_saved(spoiled, corpus, tmp_path, monkeypatch):
    count, loss, step = itertools.count(1), LSTMLM.loss, torch.optim.AdamW.step

    def spoiling_loss(self, *args):
        value, state = loss(self, *args)
        return (value * float("nan") if self.training and next(count) == 70 else value), state

    def spoiling_step(self, *args, **kwargs):
        step(self, *args, **kwargs)
        if next(count) == 94:  # the last step
            self.param_groups[0]["params"][0].data.fill_(float("nan"))

    if spoiled == "loss":
        monkeypatch.setattr(LSTMLM, "loss", spoiling_loss)
    else:
        monkeypatch.setattr(torch.optim.AdamW, "step", spoiling_step)
    with pytest.raises(InputError, match="became inf or nan by step 94: .*--lr.*checkpoint.pt holds the run before"):
        train.main([*SMALL, "--out", str(tmp_path)], corpus)
    checkpoint = sample.read_checkpoint(tmp_path / "checkpoint.pt")
    assert checkpoint["training"]["counters"]["step"] == 47
    for weights in (checkpoint["weights"], checkpoint["training"]["weights"]):
        assert all(value.isfinite().all() for value in weights.values())


def test_the_faster_number_of_threads_is_used(corpus, tmp_path, monkeypatch, capsys):
    try:
        for seconds, expected in [({1: 1.0, 4: 30.0}, 1), ({1: 1.0, 4: 0.6}, 4), ({1: 1.0, 4: 1.0}, 4)]:
            assert train.faster_threads(lambda: seconds[torch.get_num_threads()], 4) == expected
            assert torch.get_num_threads() == expected
        disturbed = iter([5.0, 9.0, 1.0, 0.6, 1.0, 0.6])  # by a short moment
        assert train.faster_threads(lambda: next(disturbed), 4) == 4
        used, trials, now = [], [], [0.0]

        def step(run, progress):
            used.append(torch.get_num_threads())
            run.counters.step += 1
            now[0] += 5

        def trial(run):
            trials.append(run.counters.step)
            now[0] += 100  # which does not bring the next choice nearer
            return {1: 1.0, 3: 30.0}[torch.get_num_threads()]

        monkeypatch.setattr(train.Run, "training_step", step)
        monkeypatch.setattr(train, "evaluate", lambda *_: 1.0)
        monkeypatch.setattr(train, "test", lambda *_: None)
        monkeypatch.setattr(train, "trial", trial)
        monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        for flags, expected in [([], 1), (["--threads", "2"], 2)]:
            used.clear()
            torch.set_num_threads(3)
            sizes = [*TINY[: TINY.index("--threads")], "--epochs", "1", "--bptt", "20"]
            train.main([*sizes, *flags, "--out", str(tmp_path / f"{expected}")], corpus)
            assert set(used) == {expected} and torch.get_num_threads() == 3
            assert capsys.readouterr().out.count("1 of 3 threads") == (expected == 1)
        assert trials == [0, 0, 13, 13]  # once a minute of training, until step 20
    finally:
        torch.set_num_threads(1)


def test_a_trial_changes_nothing(corpus):
    once, tried = make_run(corpus), make_run(corpus)
    for run in (once, tried):
        torch.manual_seed(0)
        for step in range(5):
            if run is tried:
                assert train.trial(run) > 0
            run.training_step(step / 5)
    assert vars(once.counters) == {**vars(tried.counters), "seconds": once.counters.seconds}
    assert all(torch.equal(a, b) for a, b in zip(once.model.parameters(), tried.model.parameters()))


def work_together(folder):
    """Losses of steps and results of whole runs, the means over the processes, for each model.

    It is called in each of several processes, and in one alone.
    """
    torch.set_num_threads(1)
    corpus, found = data.corpus_of([make_text()]), {}
    rank, processes = train.join_processes()
    for name in MODELS:
        run = make_run(corpus, "--model", name, "--dropout", "0", rank=rank, processes=processes)
        if processes > 1:
            train.share(run)
        found[name] = []
        for step in range(6):
            before = float(run.counters.loss_sum)
            run.training_step(step / 6)
            found[name].append(train.mean(float(run.counters.loss_sum) - before))
    flags = [*TINY, "--dropout", "0", "--out", f"{folder}/{processes}"]
    found["results"] = train.main(flags, corpus)
    return found


def test_two_processes_make_the_steps_of_one(tmp_path):
    out = str(tmp_path)
    script = f"import json, test_lm; print('found', json.dumps(test_lm.work_together({out!r})))"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script], cwd=HERE, env={**os.environ, **where, "RANK": rank}, stdout=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    both = [json.loads(worker.communicate(timeout=120)[0].split(b"found ")[1]) for worker in workers]
    alone = work_together(out)
    for name in MODELS:
        assert both[0][name] == both[1][name] == pytest.approx(alone[name], abs=1e-5)
    assert both[1]["results"] is None  # the first process tests, saves and prints
    assert both[0]["results"]["test_ppl"] == pytest.approx(alone["results"]["test_ppl"], rel=1e-5)
    one, two = (sample.read_checkpoint(tmp_path / n / "checkpoint.pt")["training"]["weights"] for n in ("1", "2"))
    assert_same(list(one.values()), list(two.values()), rtol=1e-3, atol=1e-5)
    for a, b in zip(read_log(tmp_path / "1"), read_log(tmp_path / "2")):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=2e-4)


def test_without_a_test_split_training_says_so(corpus_file, tmp_path, capsys):
    flags = ["--data", corpus_file, "--out", str(tmp_path), *TINY, "--split", "0.8", "0.2"]
    assert train.main(flags)["test_ppl"] is None
    assert "leaves no test text" in capsys.readouterr().out
    assert train.main(["--resume", str(tmp_path)])["test_ppl"] is None
    assert "valid\n" in sampled(capsys, tmp_path / "checkpoint.pt", "--num-samples", 2, "--tokens", 3).out


# --- train.py: a run and its folder --------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill_at(patch, moments, exception=Killed):
    """Kill the run at moments, counted over writes, steps and evaluations -> a list that grows by one at each."""
    events = []

    def dying(call):
        def wrapped(*args, **kwargs):
            events.append(call)
            if len(events) - 1 in moments:
                raise exception
            return call(*args, **kwargs)

        return wrapped

    places = (data.os, "fsync"), (data.os, "replace"), (train.Run, "training_step"), (train, "evaluate")
    for owner, name in (*places, (train.nn.utils, "clip_grad_norm_"), (sample, "write_atomically")):
        patch.setattr(owner, name, dying(getattr(owner, name)))
    return events


def assert_same_runs(one, other):
    """Two folders hold the same weights, and the same log but for its times."""
    checkpoints = [sample.read_checkpoint(folder / "checkpoint.pt") for folder in (one, other)]
    for a, b in zip(*([saved["weights"], saved["training"]["weights"]] for saved in checkpoints)):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    times = {"seconds": "", "tokens_per_second": ""}
    logs = [[{**row, **times} for row in read_log(folder)] for folder in (one, other)]
    assert logs[0] == logs[1] and len(logs[0]) > 0


def run_with_kills(flags, folder, corpus, monkeypatch, moments):
    """Repeat a command until the run has ended -> its results, and how often it was killed."""
    deaths = 0
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(train.time, "monotonic", itertools.count(0.0, 5.0).__next__)  # 5 s at each look: it saves often
        kill_at(patch, moments)
        while True:
            try:
                return train.main([*flags, "--resume", str(folder)], corpus), deaths
            except Killed:
                deaths += 1


@each_kind
def test_a_kill_at_any_moment_loses_nothing(name, tmp_path, monkeypatch):
    corpus = data.corpus_of([make_text(30)])
    flags = [*SMALL, *flags_of(name), "--hidden-size", "8", "--valid-every", "4"]
    if name == "lstm":
        corpus, flags = data.corpus_of([make_text(8)], "char"), [*flags, "--input", "one-hot"]
    results = train.main([*flags, "--out", str(tmp_path / "whole")], corpus)
    draw = random.Random(name)
    for trial in range(2):
        folder = tmp_path / str(trial)
        resumed, deaths = run_with_kills(flags, folder, corpus, monkeypatch, draw.sample(range(90), 3))
        assert deaths == 3
        assert (resumed["valid_ppl"], resumed["test_ppl"]) == (results["valid_ppl"], results["test_ppl"])
        assert_same_runs(tmp_path / "whole", folder)
        assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "log.csv"}


def test_a_process_that_is_killed(trained, corpus_file, tmp_path):
    flags = ["--model", "cell", "--data", corpus_file, *SMALL, "--resume", str(tmp_path)]
    worker = subprocess.Popen([sys.executable, HERE / "train.py", *flags], stdout=subprocess.DEVNULL)
    while not (tmp_path / "log.csv").exists() or not read_log(tmp_path):  # until the first validation
        assert worker.poll() is None
        time.sleep(0.001)
    worker.kill()
    assert worker.wait() == -signal.SIGKILL
    assert read_counters(tmp_path)["step"] == 47
    assert train.main(flags)["test_ppl"] == trained["cell"].results["test_ppl"]
    assert_same_runs(trained["cell"].out, tmp_path)


def test_ctrl_c_prints_one_line_and_goes_on(trained, corpus_file, tmp_path, monkeypatch, capsys):
    flags = ["--model", "cell", "--data", corpus_file, *SMALL, "--out", str(tmp_path)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        kill_at(patch, {30}, KeyboardInterrupt)
        data.run_script(lambda: train.main(flags))
    shown = capsys.readouterr()
    assert left.value.code == 130 and shown.err == ""
    assert shown.out.splitlines()[-1] == f"interrupted; go on with: python train.py --resume {tmp_path}"
    assert shown.out.count("--resume") == 1 and "test perplexity" not in shown.out
    assert read_counters(tmp_path)["step"] == 0  # in the first minute nothing more is saved
    assert train.main(["--resume", str(tmp_path)])["test_ppl"] == trained["cell"].results["test_ppl"]
    assert_same_runs(trained["cell"].out, tmp_path)


def test_after_training_resume_only_tests(trained, corpus, tmp_path, capsys):
    folder = shutil.copytree(trained["cell"].out, tmp_path / "run")
    assert train.main(["--resume", str(folder)], corpus)["test_ppl"] == trained["cell"].results["test_ppl"]
    assert "this run has ended" in capsys.readouterr().out
    assert_same_runs(trained["cell"].out, folder)
    assert train.main(["--resume", str(folder), "--epochs", "3"], corpus)["test_ppl"] > 1
    assert [row["step"] for row in read_log(folder)] == ["47", "94", "141"]


def test_minutes_count_across_a_resume(corpus, tmp_path, monkeypatch):
    flags = [*SIZES, "--minutes", "0.05", "--resume", str(tmp_path)]  # 3 s, which are 300 looks at the clock
    monkeypatch.setattr(train.time, "monotonic", itertools.count(0.0, 0.01).__next__)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "SAVE_EVERY", 0.1)
        kill_at(patch, {100})
        train.main(flags, corpus)
    spent = read_counters(tmp_path)["seconds"]
    assert 0.5 < spent < 2.5
    begun = train.time.monotonic()
    train.main(["--resume", str(tmp_path)], corpus)
    assert 3 <= read_counters(tmp_path)["seconds"] < 3.2
    assert train.time.monotonic() - begun < 3.2 - spent + 0.2
    step = read_counters(tmp_path)["step"]
    assert train.main(["--resume", str(tmp_path), "--epochs", "3"], corpus)  # epochs take the place of minutes
    assert read_counters(tmp_path)["step"] == 3 * 47 > step
    with pytest.raises(InputError, match="not allowed with"):
        train.main([*flags, "--epochs", "3"], corpus)


def test_which_folder_a_run_is_in(trained, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [["--model", "cell"], ["--seed", "2"], flags_of("self-attention")]  # the default is cell
    runs = [train.main([*TINY, *model], corpus) for model in models]
    folders = [pathlib.Path(run["checkpoint"]).parent for run in runs]
    assert folders == [pathlib.Path("out", name) for name in ("cell", "cell-2", "self-attention")]
    assert len({run["test_ppl"] for run in runs}) == 3  # the seed matters
    before = {path: path.read_bytes() for path in pathlib.Path("out").rglob("*.*")}
    for flags, message in [
        (["--out", "out/cell"], "out/cell holds a run already.*--resume out/cell"),
        (["--out", "x", "--resume", "out/cell"], "leave --out out"),
    ]:
        with pytest.raises(InputError, match=message):
            train.main([*TINY, *flags], corpus)
    assert before == {path: path.read_bytes() for path in pathlib.Path("out").rglob("*.*")}


def test_resume_refuses_another_model_or_text(trained, corpus):
    folder = str(trained["cell"].out)
    for flags, message in [
        (["--hidden-size", "17"], "--hidden-size 16, not 17: leave the flag out"),
        (["--model", "attention"], "--model cell"),
        (["--data", "ptb"], "--data"),
        (["--batch-size", "5"], "--batch-size 4, not 5"),
        (["--seed", "2"], "--seed 1, not 2"),
        (["--optimizer", "sgd"], "--optimizer adamw"),
        (["--init", "0.2"], "--init"),
    ]:
        with pytest.raises(InputError, match=message):
            train.main(["--resume", folder, *flags], corpus)
    with pytest.raises(InputError, match="its vocabulary differs"):
        train.main(["--resume", folder], data.corpus_of([make_text().replace("cat", "cow")]))


def test_checkpoints_of_other_versions_are_resumed(trained, corpus, tmp_path):
    """A flag or counter that is added or taken away later has its default."""
    checkpoint = sample.read_checkpoint(trained["cell"].path)
    for name in ("threads", "halve_after"):
        del checkpoint["settings"][name]
    checkpoint["settings"]["flag_of_old"] = 3
    del checkpoint["training"]["counters"]["loss_sum"]
    checkpoint["training"]["counters"]["counter_of_old"] = 3
    sample.save_checkpoint(tmp_path / "checkpoint.pt", checkpoint)
    assert train.main(["--resume", str(tmp_path)], corpus)["test_ppl"] == trained["cell"].results["test_ppl"]
    checkpoint["training"]["random"] = {}  # as after training on a GPU or by several processes
    checkpoint["training"]["state"] = None
    sample.save_checkpoint(tmp_path / "checkpoint.pt", checkpoint)
    train.main(["--resume", str(tmp_path), "--epochs", "3"], corpus)
    assert len(read_log(tmp_path)) == 3


def test_a_full_disk_leaves_the_file_whole(trained, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained["cell"].out, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(data.os, "fsync", full)
    with pytest.raises(SystemExit) as left:
        data.run_script(lambda: train.main(["--resume", str(folder), "--epochs", "3", "--valid-every", "1"]))
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and "No space left" in error
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# --- What one may add --------------------------------------------------------------------------


class GRULM(LanguageModel):
    """A language model on a GRU, as a reader may write it."""

    def __init__(self, vocab_size, settings):
        super().__init__(vocab_size, settings["embedding_size"], settings["hidden_size"])
        self.gru = nn.GRU(settings["embedding_size"], settings["hidden_size"])

    def features(self, input, state=None):
        h, last = self.gru(self.embed(input), state and state[0])
        return h, (last,)


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)


def join_spaced(tokens):
    return (" " + token for token in tokens)


@pytest.mark.parametrize("level", ["bytes", "spaces"])
def test_what_is_added_is_trained_resumed_and_sampled(level, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sample.MODELS, "gru", GRULM)
    monkeypatch.setitem(train.OPTIMIZERS, "momentum", momentum)
    monkeypatch.setitem(data.TOKENISERS, "bytes", data.Tokeniser(lambda text: map(chr, text.encode()), iter))
    monkeypatch.setitem(data.TOKENISERS, "spaces", data.Tokeniser(str.split, join_spaced, drops_rare=True))
    strings = [make_text(20, seed) for seed in range(7)]
    corpus = data.corpus_of(strings, level)
    if level == "bytes":  # nothing is lost
        text = "\n\n\n".join(strings)
        assert "".join(corpus.vocabulary.decode(torch.cat(corpus[1:]))) == text
    flags = [*TINY, "--level", level, *"--epochs 2 --model gru --optimizer momentum --halve-after 1".split()]
    results = train.main([*flags, "--out", str(tmp_path / "whole")], corpus)
    resumed, deaths = run_with_kills(flags, tmp_path / "killed", corpus, monkeypatch, {12, 40, 60})
    assert deaths == 3 and resumed["test_ppl"] == results["test_ppl"]
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    capsys.readouterr()
    shown = sampled(capsys, resumed["checkpoint"], "--prompt", "the cat", "--tokens", 9)
    assert shown.out.strip().startswith("the cat") and shown.err == ""


# --- The command line, and what is refused -------------------------------------------------


def test_the_commands_run_without_a_warning(corpus_file, tmp_path):
    how = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    words = [sys.executable, HERE / "train.py", "--model", "lstm", "--data", corpus_file, *TINY]
    ran = subprocess.run(words, **how)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\r" not in ran.stdout  # plain lines where there is no terminal
    words = [sys.executable, HERE / "sample.py", "out/lstm/checkpoint.pt", "--prompt", "-", "--tokens", "9"]
    ran = subprocess.run(words, input="The cat", **how)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("the cat ")


def test_hidden_sizes_give_equally_many_parameters():
    counts = []
    for name, size in zip(OURS, (256, 256, 190, 240)):
        args = train.parse_arguments(flags_of(name))
        assert (args.hidden_size, args.embedding_size) == (size, size)
        model = sample.MODELS[args.model](4820, vars(args))
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert max(counts) < 1.02 * min(counts)
    assert train.parse_arguments(["--model", "attention", "--hidden-size", "7"]).embedding_size == 7


REFUSED = [  # (script, flags, message)
    (train, "--data nowhere.txt", "no corpus nowhere.txt"),
    (train, "--data empty.txt", "empty.txt is empty"),
    (train, "--data binary.txt", r"binary \(character 5 is zero\)"),
    (train, "--data latin1.txt", r"not UTF-8 \(byte 7 is 0xe9\)"),
    (train, "--data short.txt", "too short"),
    (train, "--data folder", "0 files with 'valid'"),
    (train, "--bptt 0", "--bptt.*at least 1"),
    (train, "--lr much", "--lr.*not a number"),
    (train, "--dropout 1", "--dropout.*at most"),
    (train, f"--hidden-size 1{'0' * 30}", "--hidden-size.*at most"),
    (train, "--layers 1000000", "--layers.*at most"),
    (train, "--batch-size 100000", "larger than the corpus"),
    (train, "--model lstm --weight-dropout 0.1", "--model cell"),
    (train, "--model lstm --locked-dropout", "--model cell"),
    (train, "--tie-weights --input one-hot", "one-hot"),
    (train, "--device cuda:7", "no device cuda:7"),
    (train, "--device meta", "no device meta"),
    (train, "--out good.txt/run", "cannot be written"),
    (train, "--resume nowhere", "no folder nowhere"),
    (train, "--resume good.txt", "no folder good.txt"),
    (train, "--no-such-flag", "--no-such-flag"),
    (train, "--model transformer", "transformer"),
    (sample, "nowhere.pt", "nowhere.pt cannot be read"),
    (sample, "folder", "cannot be read"),
    (sample, "truncated.pt", "truncated.pt is not a checkpoint"),
    (sample, "good.txt", "good.txt is not a checkpoint"),
    (sample, "harmful.pt", "not a checkpoint"),
    (sample, "harmful2.pt", "not a checkpoint"),
    (sample, "compressed.pt", "not a checkpoint.*damaged"),
    (sample, "other.pt", "settings"),
    (sample, "misfit.pt", "not a checkpoint"),
    (sample, "", "checkpoint"),
    (sample, "good.pt --prompt=", "prompt is empty"),
    (sample, "good.pt --temperature 0", "--temperature.*above 0"),
    (sample, "good.pt --temperature nan", "--temperature"),
    (sample, "good.pt --top-k 0", "--top-k.*at least 1"),
    (sample, "good.pt --top-p 1.5", "--top-p.*at most 1"),
    (sample, "good.pt --tokens -1", "--tokens.*at least 0"),
    (sample, "good.pt --device cuda:7", "no device"),
    (sample, "attention.pt --model cell", "attention.pt is of another"),
]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.fixture(scope="session")
def bad_folder(tmp_path_factory, trained):
    folder, good = tmp_path_factory.mktemp("bad"), trained["cell"].path.read_bytes()
    (folder / "folder").mkdir()
    files = {"good.txt": make_text().encode(), "folder/train.txt": make_text().encode(), "empty.txt": b" \n"}
    files |= {"binary.txt": b"text \0 more", "latin1.txt": b"a\r\nccaf\xe9" * 50, "short.txt": b"Too short."}
    files |= {"good.pt": good, "truncated.pt": good[: len(good) // 2], "harmful.pt": pickle.dumps(Harmful())}
    files |= {"attention.pt": trained["attention"].path.read_bytes()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    torch.save({"settings": Harmful()}, folder / "harmful2.pt")
    torch.save({"weights": torch.zeros(3)}, folder / "other.pt")
    contents = sample.read_checkpoint(folder / "good.pt")
    torch.save({**contents, "settings": {**contents["settings"], "hidden_size": 17}}, folder / "misfit.pt")
    with zipfile.ZipFile(folder / "good.pt") as archive:
        with zipfile.ZipFile(folder / "compressed.pt", "w", zipfile.ZIP_DEFLATED) as smaller:
            for name in archive.namelist():
                smaller.writestr(name, archive.read(name))
    return folder


@pytest.mark.parametrize("script, flags, message", REFUSED, ids=[flags for _, flags, _ in REFUSED])
def test_bad_input_gets_one_clear_line(script, flags, message, bad_folder, monkeypatch):
    monkeypatch.chdir(bad_folder)
    words = flags.split()
    if script is train:
        default = [] if "--data" in words else ["--data", "good.txt"]
        out = [] if {"--resume", "--out"} & set(words) else ["--out", "new"]
        words = [*SMALL, *default, *out, *words]
    with pytest.raises(InputError, match=message) as raised:
        script.main(words)
    assert "\n" not in str(raised.value)
    assert not (bad_folder / "new").exists()  # no folder is made for a run that cannot begin
    assert not (bad_folder / "harm").exists()  # nothing in a file was run


def outcome(opener, place):
    """Whether something opens; if not, its error must be an InputError of one line, and must come soon."""
    begun = time.perf_counter()
    try:
        opener()
        return "opened"
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, place
        return "refused"
    finally:
        assert time.perf_counter() - begun < 5, place


@pytest.fixture
def openers(corpus, tmp_path, monkeypatch):
    """Two ways to open a folder's checkpoint: as sample.py and as train.py do."""
    monkeypatch.setattr(train, "train", lambda run, *_: run.training_step(0.5))
    monkeypatch.setattr(train, "test", lambda *_: None)
    path = tmp_path / "checkpoint.pt"
    return path, [lambda: sample.load_checkpoint(path), lambda: train.main(["--resume", str(tmp_path)], corpus)]


def test_a_changed_bit_is_noticed(trained, openers):
    """In each of 40 places of a file: it is refused, or the weights are the same."""
    path, opens = openers
    raw, draw, refused = trained["attention"].path.read_bytes(), random.Random(0), 0
    expected = sample.read_checkpoint(trained["attention"].path)["weights"]
    for _ in range(40):
        place = draw.randrange(len(raw))
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << draw.randrange(8)]) + raw[place + 1 :])
        if "refused" in [outcome(opener, place) for opener in opens]:
            refused += 1
        else:
            weights = sample.read_checkpoint(path)["weights"]
            assert all(torch.equal(weights[key], value) for key, value in expected.items())
    assert refused > 15


def edits(contents, draw):
    """Checkpoints that each lack something, or have something odd in its place -> yields (name of the place, dict)."""
    deep = [1]
    for _ in range(60):  # small in a file, but 2^60 ones when it is printed
        deep = [deep, deep]
    odd = [None, -1, 0, 10**30, 2.5, float("nan"), float("-inf"), "x", "a\nb", True, [], {}, (), ([],), [1, "a"]]
    odd += [{"x": 1}, {0: {}}, torch.zeros(0), torch.ones(3, 5), torch.full((16,), torch.nan), deep, "lstm", 7]
    odd += [torch.zeros(1).expand(10**9), ["<unk>", "<unk>"], {"x": deep}]
    for value in odd:
        yield "all", value
    alike = all(isinstance(part, (torch.Tensor, dict)) for part in contents.values()) and len(contents) > 5
    for key, value in list(contents.items())[: 2 if alike else None]:  # of many weights, two
        drop, both = draw.random() < 0.5, isinstance(value, dict)
        if drop or both:
            yield f"without {key}", {name: part for name, part in contents.items() if name != key}
        if both or not drop:
            yield key, {**contents, key: draw.choice([*odd, deep, deep, deep])}
        if isinstance(value, dict):
            for place, edited in edits(value, draw):
                if place != "all":
                    yield f"{key}/{place}", {**contents, key: edited}


@pytest.mark.filterwarnings("ignore:Using a non-tuple")  # of torch, about a tensor where a dict should be
def test_edited_checkpoints_get_one_clear_line(trained, openers, capsys):
    """An entry is replaced or left out: the file is refused, or opens as a model and goes on as a run."""
    path, opens = openers
    original, outcomes = sample.read_checkpoint(trained["attention"].path), collections.Counter()
    torch.save(original, path)
    assert [outcome(opener, "unchanged") for opener in opens] == ["opened", "opened"]
    capsys.readouterr()
    for place, edited in edits(original, random.Random(0)):
        torch.save(edited, path)
        outcomes.update(outcome(opener, place) for opener in opens)
    assert outcomes["refused"] > outcomes["opened"] > 0


@pytest.mark.parametrize("size", [{"hidden_size": 10**5}, {"embedding_size": 10**6}, {"layers": 10**8}])
def test_settings_that_ask_for_too_much_memory_are_refused_at_once(size, trained, openers, monkeypatch):
    path, opens = openers
    contents = sample.read_checkpoint(trained["cell"].path)
    contents["settings"].update(size, tie_weights=False)
    torch.save(contents, path)
    monkeypatch.setitem(sample.MODELS, "cell", lambda *_: pytest.fail("the model was built"))
    assert [outcome(opener, size) for opener in opens] == ["refused", "refused"]


def test_errors_leave_with_code_2_and_one_line(bad_folder, capsys):
    for script, flags in [(sample, [str(bad_folder / "good.txt")]), (data, ["nowhere"]), (train, ["--bptt", "0"])]:
        with pytest.raises(SystemExit) as raised:
            data.run_script(lambda: script.main(flags))
        shown = capsys.readouterr()
        assert (raised.value.code, shown.out) == (2, "")
        assert shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_torchs_errors_that_a_user_can_correct(capsys):
    def raise_error(text):
        raise RuntimeError(text)

    for text, advice in [("can't allocate memory: 8 bytes", "sizes"), ("could not create a primitive", "--dtype")]:
        with pytest.raises(SystemExit):
            data.run_script(lambda: raise_error(text))
        shown = capsys.readouterr().err
        assert advice in shown and shown.count("\n") == 1
    with pytest.raises(RuntimeError, match="a fault"):
        data.run_script(lambda: raise_error("a fault of the program"))


@pytest.mark.parametrize("script", [data, sample, train])
def test_help_groups_flags_and_states_defaults(script, capsys, corpus_file):
    with pytest.raises(SystemExit) as raised:
        script.main(["--help"])
    shown = capsys.readouterr().out
    assert raised.value.code == 0 and shown.startswith("usage:")
    if script is train:
        for words in ("corpus:", "model:", "training:", "machine and files:", "(python-docs)", "(cell)"):
            assert words in shown
    data.main([corpus_file])  # shows what a corpus looks like
    shown = capsys.readouterr().out
    assert "different tokens, tokeniser word" in shown and "test:" in shown and "the cat" in shown
