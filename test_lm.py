"""The tests behind "Why trust it" in the README: the code against torch, and against plain loops.

    pytest                      # all, about a minute on two cores, offline
    pytest -k attention         # a part, by name

Equivalences are checked in float64 over many random shapes, values and gradients both. The tests are in the order of
the files in the README.
"""

import collections
import contextlib
import csv
import functools
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import pathlib
import pickle
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import unicodedata

import data  # before torch, see there
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attention_lm
import lstm_cell
import sample
import train
from attention_lm import AttentionLM, attention
from data import InputError, Vocabulary
from lstm_cell import LSTM, LSTMCell
from lstm_lm import LanguageModel, LSTMLM

MODELS = ["lstm", "cell", "attention", "self-attention"]
HERE = pathlib.Path(__file__).resolve().parent
SIZES = "--hidden-size 16 --batch-size 4 --bptt 8 --lr 0.02 --device cpu --dtype float32 --threads 1".split()
SMALL = [*SIZES, "--epochs", "2"]  # 47 steps in an epoch
TINY = [*SIZES, "--bptt", "40", "--hidden-size", "8", "--epochs", "1"]  # 10 steps in an epoch
ATTENTION = ["attention", "attention-alone", "self-attention"]  # the second does not copy
KINDS = [*attention_lm.MODELS, "attention-alone"]  # with the models that you add to `attention_lm.MODELS`
each_attention = pytest.mark.parametrize("name", ATTENTION)
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


def flags_of(name):
    """A kind of model as flags."""
    return ["--model", "attention", "--no-copy"] if name == "attention-alone" else ["--model", name]


def settings_of(*flags):
    """The settings that train.py makes of flags."""
    return vars(train.parse_arguments(list(flags)))


def make_model(name, vocab_size=11, size=6, dtype=torch.float64, seed=0, **more):
    """A small model of each kind, in evaluation mode.  more: other settings."""
    torch.manual_seed(seed)
    small = {"hidden_size": size, "embedding_size": size, "memory_size": 6, "dropout": 0.0, "tie_weights": False}
    settings = {**settings_of(*flags_of(name)), **small, **more}
    return attention_lm.MODELS[settings["model"]](vocab_size, settings).to(dtype).eval()


def results_and_gradients(module, inputs, hx):
    """A module's output, states, and the gradients into its inputs, states and parameters of one scalar."""
    inputs = inputs.detach().clone().requires_grad_()
    hx = None if hx is None else tuple(part.detach().clone().requires_grad_() for part in hx)
    module.zero_grad()
    torch.manual_seed(1)  # for dropout, and for the weights
    output, rest = module(inputs, hx)
    flat = [output, *(rest if isinstance(rest, tuple) else [rest])]
    sum((part * torch.randn_like(part)).sum() for part in flat).backward()
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


def refused(message, call, *args):
    """`call(*args)` raises an InputError that says this."""
    with pytest.raises(InputError, match=message):
        call(*args)


def ended(capsys, main, *words):
    """Run a script's `main` as its command does -> its exit code, what it printed, and what it printed on stderr."""
    with pytest.raises(SystemExit) as left:
        data.run_script(lambda: main(list(words)))
    return left.value.code, *capsys.readouterr()


# --- lstm_cell.py ------------------------------------------------------------------------


def twins(ours, theirs, *sizes, **options):
    """A module of ours and one of torch's, made from one seed: their parameters have the same names and values."""
    modules = []
    for kind in (ours, theirs):
        torch.manual_seed(0)
        modules.append(kind(*sizes, **options))
    a, b = (module.state_dict() for module in modules)
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
    return [module.double() for module in modules]


@pytest.mark.parametrize("bias", [True, False])
def test_cell_is_torchs_cell(bias):
    for B, I, H in shapes(12, 0, 9, 12, 12):
        ours, theirs = twins(LSTMCell, nn.LSTMCell, I, H, bias=bias)
        for batch in ((B,), ()):  # batched and not
            x, h, c = (torch.randn(*batch, size, dtype=torch.float64) for size in (I, H, H))
            for hx in ((h, c), None):
                assert_same(results_and_gradients(ours, x, hx), results_and_gradients(theirs, x, hx))


@pytest.mark.parametrize("bias", [True, False])
def test_lstm_is_torchs_lstm(bias):
    """Also in training with dropout between layers."""
    for T, B, I, H, L in shapes(15, 1, 9, 6, 9, 9, 3):
        ours, theirs = twins(LSTM, nn.LSTM, I, H, L, bias, dropout=0.5 if L > 1 else 0.0)
        for batch in ((B,), ()):
            x = torch.randn(T, *batch, I, dtype=torch.float64)
            h, c = torch.randn(2, L, *batch, H, dtype=torch.float64)
            for hx in ((h, c), None):
                assert_same(results_and_gradients(ours, x, hx), results_and_gradients(theirs, x, hx))


def test_wrong_sizes_are_refused():
    x_h_c = [((2, 3, 4),), ((),), ((2, 5),), ((5,),), ((2, 4), (3, 6), (3, 6)), ((2, 4), (2, 5), (2, 5))]
    x_h_c += [((2, 4), (2, 6), (2, 5)), ((2, 4), (1, 2, 6), (1, 2, 6)), ((4,), (5,), (5,))]
    for x, *state in x_h_c:
        with pytest.raises((ValueError, RuntimeError), match="of shape|has shape"):
            LSTMCell(4, 6)(torch.zeros(x), tuple(map(torch.zeros, state)) or None)
    for shape in [(0, 2, 4), (2, 2, 5), (2,), (1, 2, 3, 4)]:
        with pytest.raises(RuntimeError, match="of shape|has shape"):
            LSTM(4, 6)(torch.zeros(shape))
    zeros = torch.zeros(2, 2, 6)
    for state in [(zeros[:1], zeros[:1]), (zeros, zeros[:, :1]), zeros, (zeros,), (zeros, zeros, zeros)]:
        with pytest.raises(RuntimeError, match=r"a pair \(h, c\)"):
            LSTM(4, 6, 2)(torch.zeros(3, 2, 4), state)
    with pytest.raises(TypeError, match="PackedSequence"):
        LSTM(4, 6)(nn.utils.rnn.pack_sequence([torch.zeros(3, 4)]))


def test_constructors_take_torchs_arguments_or_refuse_them():
    for kind, (I, H) in itertools.product((LSTM, LSTMCell), [(4, 0), (4, -1), (0, 6), (-1, 6)]):
        with pytest.raises(ValueError, match=f"input_size is {I}, hidden_size {H}"):
            kind(I, H)
    for L, p in [(0, 0.0), (2, -0.1), (2, 1), (2, 1.5)]:
        with pytest.raises(ValueError, match=f"num_layers is {L}, dropout {p}"):
            LSTM(4, 6, L, dropout=p)
    for options in ([0.5], [False, 0.5]):  # the fifth argument of torch's is batch_first, the sixth dropout
        with pytest.raises(TypeError):
            LSTM(4, 6, 2, True, *options)
    assert repr(LSTM(5, 3, 2, dropout=0.5)) == repr(nn.LSTM(5, 3, 2, dropout=0.5))


def test_second_derivatives_are_torchs():
    """Also where a gradient is differentiated: jvp, hessian, hvp and a gradient penalty."""
    functional = torch.autograd.functional
    for T, B, I, H, L in shapes(6, 2, 4, 3, 4, 4, 2):
        modules, both = twins(LSTM, nn.LSTM, I, H, L), []
        point, along = ([torch.randn(T, B, I), *torch.randn(2, L, B, H)] for _ in "ab")
        point, along = (tuple(part.double() for part in parts) for parts in (point, along))
        for module in modules:

            def loss(x, h, c):
                output, (h, c) = module(x, (h, c))
                return output.square().sum() + (h * c).sum()

            inputs = tuple(part.clone().requires_grad_() for part in point)
            grads = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
            penalty = torch.autograd.grad(sum(grad.square().sum() for grad in grads), list(module.parameters()))
            hessian = itertools.chain.from_iterable(functional.hessian(loss, point))
            jvp, hvp = functional.jvp(loss, point, along)[1], functional.hvp(loss, point, along)[1]
            both.append([jvp, *hvp, *hessian, *penalty])
        assert_same(*both)
        lstm, x = modules[0], point[0]
        assert_same([torch.func.vmap(lstm, 1, 1)(x)[0]], [lstm(x)[0]])  # torch.func sees plain code, too


@pytest.mark.parametrize("name", ["cell", *ATTENTION])
def test_what_is_read_is_what_runs(name, monkeypatch):
    """A training step calls `lstm_cell.gates` at each step of each layer, and its backward passes there."""
    counts, gates = collections.Counter(), lstm_cell.gates

    def recorded(z, c):
        counts["forward"] += 1
        z.register_hook(lambda grad: counts.update(["backward"]))
        return gates(z, c)

    monkeypatch.setattr(lstm_cell, "gates", recorded)
    model = make_model(name, num_layers=2).train()
    model.loss(*torch.randint(11, (2, 7, 3)))[0].backward()
    lstms = 3 if "encoder" in dict(model.named_children()) else 2
    assert counts == {"forward": 7 * lstms, "backward": 7 * lstms}


def test_backpropagation_by_hand_is_autograd(monkeypatch):
    """The chapter at the end, given the values of the loop that trains, finds the gradients that autograd finds."""
    gates = lstm_cell.gates
    for T, B, I, H in shapes(12, 4, 9, 5, 6, 7):
        torch.manual_seed(T + B + I + H)
        lstm, x = LSTM(I, H).double(), torch.randn(T, B, I, dtype=torch.float64)
        h, c = torch.randn(2, 1, B, H, dtype=torch.float64)
        zs, states = [], [(h[0], c[0])]

        def recorded(z, c):
            z.retain_grad()
            zs.append(z)
            states.append(gates(z, c))
            return states[-1]

        monkeypatch.setattr(lstm_cell, "gates", recorded)
        output, _ = lstm(x, (h, c))
        dh = torch.randn_like(output)
        output.backward(dh)
        with torch.no_grad():
            z, h, c = (torch.stack(values) for values in (zs, *zip(*states)))
            dz, dW_hh = lstm_cell.backward(lstm.weight_hh_l0, z, h, c, dh)
        assert_same([dz, dW_hh], [torch.stack([z.grad for z in zs]), lstm.weight_hh_l0.grad])


# --- lstm_lm.py and attention_lm.py --------------------------------------------------------


def test_attention_is_torchs_attention_over_the_parts():
    for B, T, S, H in shapes(12, 3, 4, 6, 9, 7):
        torch.manual_seed(B + T + S + H)
        query, *memory = (torch.randn(B, size, H).double().requires_grad_() for size in (T, 1, S - 1, T))
        masked = torch.rand(B, T, S + T) < 0.5
        masked[..., 0] = False  # the sentinel is always visible
        bias = torch.randn(B, T, S + T).double().masked_fill(masked, -torch.inf)
        context, weights = attention(query, memory, bias)
        values = torch.cat(memory, dim=1)
        theirs = F.scaled_dot_product_attention(query, values, values, attn_mask=bias, scale=1.0)
        towards = torch.randn_like(context)
        grads = [torch.autograd.grad(part, [query, *memory], towards, retain_graph=True) for part in (context, theirs)]
        assert_same([context, *grads[0]], [theirs, *grads[1]])
        assert_same([weights.sum(-1)], [torch.ones(B, T, dtype=torch.float64)])
        assert torch.equal(weights == 0, masked)
        with torch.autocast("cpu", torch.bfloat16):  # it has too few digits for the scores, and is not used
            near = attention(query.float(), [part.float() for part in memory], bias.float())
        assert_same(near, [context.float(), weights.float()], rtol=1e-4, atol=1e-5)


def plain_attention_model(model, tokens):
    """The model written in plain loops, one stream and one position at a time -> probabilities (T, B, V)."""
    zeros, M = torch.zeros(model.hidden_size, dtype=torch.float64), model.memory_size
    n = max(1, model.near // 2) if model.training else model.near
    predictions = []
    for stream in tokens.t():
        state = encoder_state = (zeros, zeros)
        context, memory, rows = zeros, [], []
        for t, token in enumerate(stream):
            x = model.embedding.weight[token]
            if isinstance(model, attention_lm.SelfAttentionLM):
                h, _ = state = plain_step(model.decoder, x, state, "_l0")
                m = query = h
                seen = [h]
            else:
                m, _ = encoder_state = plain_step(model.encoder, x, encoder_state, "_l0")
                h, _ = state = plain_step(model.decoder, torch.cat((x, context)), state)
                query = h + m
                seen = [h, m]
            visible = range(max(0, t - M), t)  # positions t-M to t-1
            if model.copy:
                visible = [j for j in visible if stream[j + 1] != token]
            scores = [model.sentinel @ query + model.sentinel_bias[0]]
            scores += [memory[j] @ query - model.decay[0] * math.log(max(t - j, n)) for j in visible]
            generate, *a = (score.exp() / sum(other.exp() for other in scores) for score in scores)
            context = generate * model.sentinel + sum(weight * memory[j] for weight, j in zip(a, visible))
            seen.insert(1, context)
            features = model.readout.weight @ torch.cat(seen) + model.readout.bias
            p = torch.softmax(model.output.weight @ features + model.output.bias, 0)
            if model.copy:
                p = generate * p
                for weight, j in zip(a, visible):
                    p = p + weight * F.one_hot(stream[j + 1], len(p))
            rows.append(p)
            memory.append(m)
        predictions.append(torch.stack(rows))
    return torch.stack(predictions, dim=1)


def plain_step(lstm, x, state, suffix=""):
    """One step of an LSTM from its four parameters, for one stream."""
    W_ih, W_hh, b_ih, b_hh = (getattr(lstm, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, c = state
    i, f, g, o = (W_ih @ x + b_ih + W_hh @ h + b_hh).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@pytest.mark.parametrize("M, near, training", [(3, 1, False), (4, 1, True), (6, 4, False), (100, 7, True)])
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", ["attention", "self-attention"])
def test_attention_model_is_the_one_in_plain_loops(name, copy, M, near, training):
    """Log-probabilities and the gradient of the loss in every parameter, the encoder's too."""
    model = make_model(name, memory_size=M, copy=copy, tie_weights=True).train(training)
    model.near = near
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
@each_attention
def test_memory_is_respected_to_the_position(name, training):
    """A step sees the positions t-M to t-1, without those whose next token is the token just read if it can copy."""
    for M, T in shapes(8, 5, 7, 12):
        model = make_model(name, memory_size=M).train(training)
        tokens = torch.randint(4, (T, 2))  # so few that tokens are often doubled
        _, weights, next_tokens, (read, carried, *_) = model.attend(tokens)
        assert torch.equal(next_tokens[:-1], tokens[1:])
        assert torch.equal(read, tokens[-M:]) and carried.shape == (min(M, T), 2, 6)
        for t, b in itertools.product(range(T), range(2)):
            seen = weights[t, b, 1:].nonzero()[:, 0].tolist()
            visible = range(max(0, t - M), t)
            assert seen == [j for j in visible if not model.copy or tokens[j + 1, b] != tokens[t, b]]
    model = make_model(name, memory_size=1000).train(training)
    _, weights, _, (read, *_) = model.attend(torch.arange(230)[:, None] // 229)  # zeros, and a one at the end
    assert weights[-1, 0, 1:].nonzero()[0, 0] == (29 if training else 0)  # in training at most 200
    assert len(read) == (200 if training else 230)


@pytest.mark.parametrize("name", ["attention", "self-attention"])
def test_a_text_cannot_be_doubled_by_copying(name):
    """The token just read can only be generated, though it came next at many positions."""
    model, tokens = make_model(name, memory_size=20), torch.randint(3, (20, 4))
    features, weights, _, _ = model.attend(tokens)
    generated = weights[..., :1].log() + model.log_softmax(features)
    ours, again = model(tokens)[0], F.one_hot(tokens, 11).bool()
    assert_same([ours[again]], [generated[again]])
    others = ~again & (torch.arange(11) < 3)
    assert (ours[others] > generated[others] + 0.1).double().mean() > 0.5


def pairs(B):
    """Names and random numbers, in six pairs, and then the same pairs in another order (24, B)."""
    names, order = (torch.rand(6, B).argsort(0) for _ in "ab")  # (6, B)
    numbers = torch.randint(6, 60, (6, B))
    names, numbers = (torch.cat((part, part.gather(0, order))) for part in (names, numbers))
    return torch.stack((names, numbers), dim=1).flatten(0, 1)  # name number name number ...


def mirrored(B):
    """Six of twelve tokens, and then the same in reverse (12, B)."""
    tokens = torch.rand(12, B).argsort(0)[:6]
    return torch.cat((tokens, tokens.flip(0)))


def learn(model, text, B, steps, lr):
    """Train on `text(B)`, another one at each step -> features, nats for each token, of 200 streams of one more."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        tokens = text(B)
        model.loss(tokens[:-1], tokens[1:])[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # as in train.py
        optimizer.step()
    tokens = text(200)
    log_probs, _ = model.eval()(tokens[:-1])
    return model.features(tokens[:-1])[0], F.nll_loss(log_probs.mT, tokens[1:], reduction="none")


@pytest.mark.parametrize("name", ["attention", "self-attention"])
def test_attention_copies_what_it_can_only_know_by_looking_back(name):
    """When a random name comes again, its random number can only be copied."""
    model = make_model(name, vocab_size=60, size=32, dtype=torch.float32, memory_size=30, seed=1)
    _, nats = learn(model, pairs, 12, steps=30, lr=0.03)
    assert nats[12::2].mean() < 2  # without looking back, at least log 54 = 4.0


@pytest.mark.parametrize("name", ["cell", "attention", "self-attention"])
def test_attention_alone_learns_to_look_back(name):
    """Without copying, and where most words never occur, which pushes the features far out at the start.

    It fails if the readout is followed by a tanh: after 25 steps nearly all features are then at -1 or 1, no gradient
    goes through them, and nothing else is learned.
    """
    model = make_model(name, vocab_size=60, size=64, dtype=torch.float32, memory_size=30, copy=False, seed=1)
    nn.init.normal_(model.embedding.weight)  # with small ones the first steps take longer
    features, nats = learn(model, mirrored, 16, steps=160, lr=0.006)  # as in train.py
    if name == "cell":
        assert nats[6:].mean() > 2.3  # with chance alone log 12 = 2.5: an LSTM does not learn it in this time
    else:
        assert nats[6:].mean() < 0.5
        assert (features.abs() > 0.98 * features.abs().max()).double().mean() < 0.05  # few at a bound, if there is one


@pytest.mark.parametrize("layers", [1, 2])
@each_kind
def test_reading_in_pieces_is_reading_at_once(name, layers):
    """Step by step, in windows, in uneven pieces: the state carries all there is, and the gradient too."""
    model = make_model(name, num_layers=layers)
    tokens = torch.randint(11, (23, 3))
    expected, last = model(tokens)
    towards = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, list(model.parameters()), towards)
    for lengths in ([1] * 23, [5, 5, 5, 5, 3], [9, 1, 2, 8, 3]):
        state, outputs = None, []
        for piece in tokens.split(lengths):
            log_probs, state = model(piece, state)
            outputs.append(log_probs)
        ours = torch.cat(outputs)
        assert_same([ours, *state], [expected, *last])
        assert_same(torch.autograd.grad(ours, list(model.parameters()), towards), grads)


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
    """That one whose vectors are the rows of the unit matrix."""
    by_vector, by_lookup = make_model(name, input="one-hot"), make_model(name, embedding_size=11)
    by_lookup.load_state_dict({**by_vector.state_dict(), "embedding.weight": torch.eye(11)})
    tokens = torch.randint(11, (12, 2))
    assert_same([by_vector(tokens)[0]], [by_lookup(tokens)[0]])


@each_kind
def test_log_probabilities_and_loss(name):
    for T, B, V in shapes(8, 4, 12, 4, 15):
        model = make_model(name, V)
        input, target = torch.randint(V, (2, T, B))
        log_probs, state = model(input)
        assert log_probs.shape == (T, B, V)
        assert_same([log_probs.exp().sum(-1)], [torch.ones(T, B, dtype=torch.float64)])
        expected = F.nll_loss(log_probs.flatten(0, 1), target.flatten())
        loss, after = model.loss(input, target)
        assert_same([loss, *after], [expected, *state])
    with pytest.raises(ValueError, match="they must be equal"):
        model.loss(torch.zeros(4, 3).long(), torch.zeros(3, 4).long())
    model = make_model(name, dtype=torch.float32)
    nn.init.constant_(model.output.bias[3:4], -1e4)  # an impossible token has a finite loss
    loss, _ = model.loss(torch.zeros(6, 2).long(), torch.full((6, 2), 3))
    loss.backward()
    assert 80 < loss < 2e4 and all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("layers", [1, 2])
@each_kind
def test_gradcheck_of_whole_models(name, layers):
    """The gradient of the loss in every parameter against finite differences."""
    model = make_model(name, vocab_size=7, size=4, num_layers=layers, tie_weights=True)
    input, target = torch.randint(7, (2, 12, 3))
    parameters = tuple(model.parameters())  # gradcheck changes them in place
    for parameter in parameters:
        nn.init.normal_(parameter)  # gradients so large that an error would show

    def loss(*parameters):
        return model.loss(input, target)[0]

    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "lstm"])  # not each processor has torch's
def test_bfloat16_products_leave_the_loss_in_float32(name):
    """The loss and its gradients stay near those with products in float32."""
    model = make_model(name, 500, size=16, dtype=torch.float32)
    input, target = torch.randint(500, (2, 12, 3))
    exact, _ = model.loss(input, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss, state = model.loss(input, target)
        log_probs, _ = model(input, state)
    assert loss.dtype == log_probs.dtype == torch.float32 and abs(loss - exact) < 1e-3
    near, grads = (torch.autograd.grad(part, list(model.parameters())) for part in (loss, exact))
    assert all((a - b).norm() < 0.02 * b.norm() + 1e-5 for a, b in zip(near, grads))


@pytest.mark.parametrize("name", [*MODELS, "attention-alone"])
def test_first_weights(name):
    """And their shapes, with sizes that are not equal."""
    for tie in (False, True):
        model = make_model(name, 500, 20, embedding_size=16, tie_weights=tie)
        assert (model.output.weight is model.embedding.weight) == tie
        assert model.output.weight.shape == (500, 16 if tie else 20)
        assert model(torch.arange(9)[:, None])[0].shape == (9, 1, 500)
        for weight in (model.embedding.weight.detach(), model.output.weight.detach()):
            assert 0.099 < weight.abs().max() < 0.1001  # uniform between them
            assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
        assert not model.output.bias.any()
    if name in ATTENTION:
        _, weights, _, _ = model.attend(torch.arange(9)[:, None])
        assert_same([weights[6, 0, 1:6] * 7.4], [weights[6, 0, :1].expand(5)], rtol=0.2, atol=0.0)


def test_hidden_sizes_give_equally_many_parameters():
    counts = []
    for name, size in [("lstm", 256), ("cell", 256), ("attention", 190), ("self-attention", 240)]:
        settings = settings_of("--model", name)
        assert settings["hidden_size"] == settings["embedding_size"] == size
        model = attention_lm.MODELS[name](4820, settings)
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    assert max(counts) < 1.02 * min(counts)
    assert settings_of("--model", "attention", "--hidden-size", "7")["embedding_size"] == 7
    assert settings_of()["tie_weights"] and not settings_of("--input", "one-hot")["tie_weights"]


def test_what_no_model_can_be_is_refused():
    wrongs = [(LSTMLM, "core", "Cell"), (LSTMLM, "dropout", 1.0), (AttentionLM, "dropout", -0.1)]
    for kind, name, value in [*wrongs, (AttentionLM, "memory_size", 0)]:
        with pytest.raises(ValueError, match=f"{name} is {value!r}"):
            kind(11, 6, 6, **{name: value})


@each_kind
def test_dropout_is_off_in_evaluation_and_on_in_training(name):
    """It is behind the embedding, before the output layer, and between layers."""
    tokens, r = torch.randint(11, (8, 2)), torch.randn(8, 2, 6, dtype=torch.float64)
    for layers in (1, 2):
        model = make_model(name, num_layers=layers, dropout=0.5)
        assert torch.equal(model(tokens)[0], model(tokens)[0])
        torch.manual_seed(1)
        ours = [model.train().embed(tokens), model.log_softmax(r)]
        torch.manual_seed(1)
        x, dropped = F.dropout(model.embedding(tokens), 0.5), F.dropout(r, 0.5)
        assert_same(ours, [x, F.log_softmax(model.output(dropped), dim=-1)])
        model.embed = model.embedding.forward  # without dropout
        assert torch.equal(model.features(tokens)[0], model.features(tokens)[0]) == (layers == 1)


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
    assert list(data.words_of_lines("a N <unk>\nB c\n")) == ["a", "N", "<unk>", "<eos>", "B", "c", "<eos>"]
    assert list(data.TOKENISERS["char"].cut("Ab\n")) == ["A", "b", "\n"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_of_many_languages_are_whole(form):
    words = "été l'été l'università м'ята हिन्दी क्‍ष ภาษาไทย العَرَبِيَّةُ می‌خواهم שָׁלוֹם ǰab don't".split()
    words = [unicodedata.normalize("NFC", word) for word in words]
    text = unicodedata.normalize(form, " ".join(words).replace("'", "’"))
    assert list(data.normalise(text)) == [*words, "<eos>"]
    assert list(data.normalise("3ครั้ง ❤️ a_x'y_ a'1")) == ["N", "❤", "\ufe0f", "a_x'y", "_", "a", "'", "N", "<eos>"]


def test_text_reads_as_text_again():
    text = "the file (see os.path) can't be \"read-only\", or 'empty'.\nis it?\nyes: [a, b]\n"
    for call in (text, "os.getenv(x), or read_text(path)\n", ">>> f(x)\n"):
        assert "".join(data.detokenise(data.normalise(call))) == call
    assert "".join(data.detokenise(data.normalise("See e.g. this, i.e. that"))) == "see e.g. this, i.e. that\n"
    endless = data.detokenise(itertools.cycle(["a", "."]))
    assert [next(endless) for _ in range(3)] == ["a", ".", "a"]  # a piece for each token, as it comes
    begun = time.process_time()
    assert len(list(data.detokenise(["f", "("] * 20_000))) == 40_000
    assert time.process_time() - begun < 3  # looking at the whole line for each "(" took 14 seconds


def test_vocabulary():
    counts = collections.Counter("b b b a a c <eos> <eos>".split())
    vocabulary = Vocabulary.build(counts, "word", min_count=2)
    assert vocabulary.index2word == ["b", "<eos>", "a", "<unk>"]  # by frequency, then by name
    assert vocabulary.encode(["a", "c", "b", "zebra"]).tolist() == [2, 3, 0, 3]
    assert Vocabulary.build(counts, "word", max_size=3).index2word == ["<unk>", "b", "<eos>"]
    assert Vocabulary.build({"b": 2, "a": 3, "c": 0}, "word").index2word == ["a", "b", "<eos>", "<unk>"]
    assert "\n" in Vocabulary.build({"a": 1}, "char").word2index  # what the first token is predicted from
    assert (vocabulary.start, vocabulary.unknown, len(vocabulary)) == (1, 3, 4)


def test_a_tokeniser_may_learn_from_the_training_text(monkeypatch):
    def learn(text):
        return [word for word, _ in collections.Counter(text.split()).most_common(9)]

    def cut(text, words):
        return re.findall("|".join([*words, "(?s:.)"]), text)  # in these words, and else in characters

    monkeypatch.setitem(data.TOKENISERS, "words", data.Tokeniser(cut, iter, "\n", learn=learn))
    text, file = make_text(), io.BytesIO()
    parts, corpus = data.split_text(text, "words"), data.corpus_of([text], "words")
    torch.save(corpus.vocabulary.plain(), file)
    vocabulary = Vocabulary(**torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert vocabulary.learned == learn(parts[0]) != learn(text)
    for part, tokens in zip(parts, corpus[1:]):
        assert "".join(vocabulary.join(vocabulary.decode(tokens))) == part and len(tokens) < 0.7 * len(part)
        assert torch.equal(vocabulary.encode(vocabulary.cut(part)), tokens.long())


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


@pytest.mark.parametrize("gap", ["\n\n\n", "\n\n", "\n", "\r", "\r\n", " "])
def test_a_text_with_any_separator_can_be_split(gap, tmp_path):
    (tmp_path / "text.txt").write_bytes(gap.join(["word"] * 1000).encode())
    text = data.read_text(tmp_path / "text.txt")
    for split in ((0.01, 0.5), None):
        parts = data.split_text(text, "word", split)
        assert "".join(parts) == text and all(part.startswith("word") for part in parts)
    assert set(data.normalise(text)) == {"word", "<eos>"}
    assert len(data.prepare(parts).train) >= 800
    for raw in (b"\xef\xbb\xbfone\r\ntwo\r\n", b"one\rtwo\r", b"one\ntwo\n"):
        (tmp_path / "text.txt").write_bytes(raw)  # line ends and a byte order mark are no part of a text
        assert data.read_text(tmp_path / "text.txt") == "one\ntwo\n"


def test_what_is_no_text_is_told(tmp_path):
    for raw, found in [
        ("’x".encode("cp1252"), r"not UTF-8 \(byte 0 is 0x92\): save it as UTF-8"),
        (b"\xef\xbb\xbfabc\xe9", r"not UTF-8 \(byte 6 is 0xe9\): save it as UTF-8"),
        ("text".encode("utf-16"), "looks like UTF-16: save it as UTF-8"),
        ("text".encode("utf-16-le"), r"binary \(character 1 is zero\): save it as UTF-8"),
        (b"\x1f\x8b\x08\x00", "looks like gzip"),
        (b" \n", "is empty"),
    ]:
        (tmp_path / "file").write_bytes(raw)
        refused(found, data.read_text, tmp_path / "file")


def test_a_text_that_does_not_suit_is_told():
    dna = ["ACGT" * 1000]
    refused("give a list of strings", data.corpus_of, make_text())
    refused("too short.*give more text", data.corpus_of, ["Too short."])
    refused("no words between spaces.*--level char", data.corpus_of, dna)
    assert data.sizes(data.corpus_of(dna, "char")) == (
        "3,200 train, 400 valid, 400 test tokens, 6 different; 0.0% of the validation tokens are <unk>"
    )
    for rare in (19, 21):  # of 100 tokens
        texts = ["a " * 999, "a " * (99 - rare) + "z " * rare, ""]
        first, *advice = data.sizes(data.prepare(texts)).split("\n")
        sizes = "1,000 train, 100 valid, 0 test tokens, 3 different"
        assert first == f"{sizes}; {rare}.0% of the validation tokens are <unk>"
        assert [line.split(": ")[1] for line in advice] == ["try --level char or --min-count 1"] * (rare > 20)


def test_split_fractions(tmp_path):
    text = make_text()
    for split, sizes in [(None, [800, 100, 100]), ((0.7, 0.2), [700, 200, 100]), ((0.9, 0.1), [900, 100, 0])]:
        parts = data.split_text(text[:1000], "char", split)
        assert [len(part) for part in parts] == sizes and "".join(parts) == text[:1000]
    (tmp_path / "text.txt").write_text(text)
    assert len(data.load_corpus(tmp_path / "text.txt", split=(0.9, 0.1)).test) == 0
    refused("sum to more than 1", data.load_corpus, tmp_path / "text.txt", "word", 3, None, (0.9, 0.2))
    for split in data.SPLITS:
        (tmp_path / f"{split}.txt").write_text(text)
    refused("leave --split out", data.load_corpus, tmp_path, "word", 3, None, (0.9, 0.1))


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
    input, target = data.pairs(vocabulary.encode(tokens), vocabulary.start)
    batch = torch.cat((data.streams(input, 2), data.streams(target, 2)), dim=1)
    shown = re.sub(" +", " ", data.__doc__)
    lines = [["tokens", *tokens], ["ids", *target.tolist()], ["input", *input.tolist()], ["target", *target.tolist()]]
    for line in [*lines, *(["\n", *row] for row in batch.tolist())]:
        assert " ".join(map(str, line)) in shown


def test_the_built_in_corpus():
    text = data.python_docs()
    parts = data.split_text(text)
    assert len(parts[0]) > 1_000_000 and len(parts[1]) > 100_000 and len(parts[2]) > 100_000
    corpus, tokens = data.prepare([parts[1], parts[2], ""]), list(data.normalise(parts[2]))  # all would take longer
    assert corpus.train.dtype == corpus.valid.dtype == torch.int32
    assert torch.equal(corpus.valid.long(), corpus.vocabulary.encode(tokens))
    assert torch.bincount(corpus.train)[-1] == 3  # rarer words are unknown
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
    assert len(paragraphs) > 10_000
    assert len(set(paragraphs)) == len(paragraphs)  # nothing occurs twice, so the splits share no paragraph
    again = data.normalise(re.sub(r"\bN\b", "0", "".join(data.detokenise(tokens))))  # N is a number in these tokens
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
    (tmp_path / "train").mkdir()  # a folder is no file of the corpus
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


def test_download_is_checked_cached_and_atomic(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    text, file = make_text().encode(), tmp_path / "input.txt"
    sha256 = {"input.txt": hashlib.sha256(text).hexdigest()}
    monkeypatch.setitem(data.DOWNLOADS, "shakespeare", (f"{tmp_path.as_uri()}/", sha256))
    for wrong in (None, text + b"!"):
        if wrong:
            file.write_bytes(wrong)
        refused(r"no download \(.*: save file:.*/input.txt .* as .*cache.*input.txt", data.load_corpus, "shakespeare")
        assert not list((tmp_path / "cache").rglob("*.*"))
    file.write_bytes(text)
    corpus = data.load_corpus("shakespeare")
    file.unlink()
    assert torch.equal(data.load_corpus("shakespeare").train, corpus.train)  # from the cache, offline


def test_a_script_whose_output_is_not_read_or_cannot_be_shown():
    code = "import data; data.run_script(lambda: [print('caf\\u00e9 \\u4e00', flush=k == 0) for k in range(10**5)])"
    environment, pipe = {**os.environ, "PYTHONIOENCODING": "latin1"}, subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE, env=environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout.readline().rstrip() == "café ?".encode("latin1")
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)
    with pytest.raises(ZeroDivisionError):  # a fault of the program has its traceback
        data.run_script(lambda: 1 / 0)


def test_the_settings_of_a_corpus_are_its_flags(monkeypatch):
    parser, expected = data.Parser(""), inspect.signature(data.load_corpus).parameters
    data.add_corpus_flags(parser)
    settings = data.corpus_settings({"data": "python-docs", "lr": 1.0, **vars(parser.parse_args([]))})
    assert settings == {name: parameter.default for name, parameter in expected.items()}
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert vars(parser.parse_args([]))
    refused(r"pass a list of flags, for example main\(", parser.parse_args)


# --- sample.py -----------------------------------------------------------------------------


def sampled(capsys, *words):
    sample.main([str(word) for word in words])
    return capsys.readouterr()


def test_greedy_and_drawing(monkeypatch):
    log_probs = torch.log_softmax(torch.randn(4, 30, dtype=torch.float64), -1)
    assert torch.equal(sample.choose(log_probs, greedy=True), log_probs.argmax(-1))
    rows = log_probs[:1].expand(40_000, -1)
    drawn = sample.choose(rows, generator=torch.Generator().manual_seed(0))
    seen = torch.bincount(drawn, minlength=30) / 40_000
    assert (seen - log_probs[0].exp()).abs().max() < 0.01
    log_probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    for number, token in [(0.0, 1), (1 - 2.0**-53, 2)]:  # the least and the largest that torch.rand gives
        monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.full(shape, number, dtype=torch.float64))
        assert sample.choose(log_probs).tolist() == [token]


@each_kind
def test_temperature_acts_on_what_is_generated(name):
    """P = softmax(logits / t), and in a model that copies a_0 softmax(logits / t) + what is copied."""
    model, tokens = make_model(name), torch.randint(11, (12, 2))
    logits = []
    model.output.register_forward_hook(lambda module, inputs, output: logits.append(output))
    plain = model(tokens)[0].exp()
    share = torch.ones(12, 2, 1, dtype=torch.float64)
    if getattr(model, "copy", False):
        share = model.attend(tokens)[1][..., :1]
    copied = plain - share * torch.softmax(logits[0], -1)
    for temperature in (0.3, 0.9, 2.0):
        p = model(tokens, None, temperature)[0].exp()
        assert_same([p], [share * torch.softmax(logits[0] / temperature, -1) + copied])
    for temperature in (1e-300, 1e-46, 1e39, 1e300):  # no number overflows into nan
        assert model.float()(tokens, None, temperature)[0].exp().sum(-1).allclose(torch.ones(12, 2))
    prompts = torch.randint(11, (5, 3))
    greedy, coldest = (torch.stack(list(sample.generate(model, prompts, 9, temperature=t))) for t in (None, 1e-30))
    assert getattr(model, "copy", False) or torch.equal(greedy, coldest)  # temperature -> 0 tends to greedy


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


def test_a_prompt_is_cut_as_the_corpus_was(capsys):
    def cut(text, words):
        return sample.prompt_tokens(text, words, "a.pt"), capsys.readouterr().err

    words = Vocabulary(["the", "<unk>", "N", "<eos>", "n", "."], "word")  # it may contain the tokens of the corpus
    assert cut("The <unk> N. N n", words) == (["the", "<unk>", "N", ".", "<eos>", "N", "n"], "")
    assert cut("The THE. 42", words) == (["the", "the", ".", "<eos>", "N"], "")
    lines = Vocabulary(["the", "<unk>", "N", "<eos>", "end", "."], "lines")
    assert cut("The N end", lines) == (["the", "N", "end"], "")
    tokens, note = cut("The zebra a zebra", lines)
    assert tokens == ["the", "zebra", "a", "zebra"] and note == "note: a.pt does not know zebra, a; read as <unk>\n"
    assert cut("The N", Vocabulary([*"The N", "<unk>", "\n"], "char")) == (list("The N"), "")


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
    paths = [trained[name].path for name in MODELS[:3]]
    flags = ["--prompt", "the cat", "--prompt", "a dog", "--greedy", "--temperature", 0.5, 1, "--tokens", 20]
    shown = sampled(capsys, *paths, *flags).out
    assert shown.count("===") == 2 * 2 * 3  # two prompts, three ways to decode
    assert all(f"{trained[name].results['test_ppl']:.2f}" in shown for name in MODELS[:3])
    assert max(map(len, shown.splitlines())) <= 120
    assert any(line.count("the cat") == 3 for line in shown.splitlines())
    assert sample.compare([("a", "b c"), ("d", "e")], 40) == "a\nb c\n\nd\ne"  # where it is narrow


def test_attention_can_be_looked_at(trained, capsys):
    path, text = trained["attention"].path, "the cat sees fish, 3 times. the old man likes the sea"
    shown = sampled(capsys, path, "--prompt", text, "--tokens", 0, "--show-attention").out  # nothing is generated
    model, vocabulary, _ = sample.load_checkpoint(path)
    tokens = sample.prompt_tokens(text, vocabulary, path)
    N = len(tokens)
    lines = shown[shown.index("P(word)") :].splitlines()[1 : 1 + N]
    assert [line.split()[0] for line in lines] == tokens
    rows = sample.look_back(model, vocabulary, tokens)
    start = torch.cat((torch.tensor([vocabulary.start]), vocabulary.encode(tokens)))[:, None]
    log_probs, _ = model(start[:-1])
    for t, (word, p, looks, weights) in enumerate(rows):
        assert word == tokens[t] and len(weights) == N and not any(weights[t:])
        assert sum(weights) == pytest.approx(looks, abs=1e-5)
        assert p == pytest.approx(log_probs[t, 0, start[t + 1, 0]].exp().item(), rel=1e-4)
        again = sum(weight for weight, next_token in zip(weights, tokens) if next_token == word)
        assert again <= p * (1 + 1e-5)  # what is copied is a part of P(word)
    assert sample.most_seen([("", 0, 0, [0.1, 0.5, 0.0]), ("", 0, 0, [0.3, 0.1, 0.2])], 2) == [0, 1]
    refused("nothing to look back at", sampled, capsys, path, "--tokens", 0, "--show-attention")
    refused("has no attention", sampled, capsys, trained["cell"].path, "--show-attention")
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


@pytest.mark.parametrize("name", MODELS)
def test_training_end_to_end(trained, name, corpus):
    out, path, results, printed = trained[name]
    assert results["test_ppl"] < 12  # the text's grammar leaves about 3 choices, its words are 20
    assert f"test perplexity {results['test_ppl']:.2f}" in printed
    assert len(printed.split("test perplexity")[1].split()) > 20  # and a sample after it
    lines = printed.splitlines()
    writes = [lines[k + 1] for k, line in enumerate(lines) if line.startswith("epoch")]
    assert len(writes) == 2 and all(line.startswith("    the old man") and len(line) > 70 for line in writes)
    rows = read_log(out)
    assert list(rows[0]) == "step,epoch,seconds,tokens_per_second,train_loss,valid_loss,valid_ppl".split(",")
    assert [(row["step"], row["epoch"]) for row in rows] == [("47", "1.00"), ("94", "2.00")]
    assert float(rows[1]["valid_ppl"]) < float(rows[0]["valid_ppl"])
    model, vocabulary, checkpoint = sample.load_checkpoint(path)
    assert checkpoint["results"] == {key: results[key] for key in ("valid_ppl", "test_ppl")}
    assert vocabulary.index2word == corpus.vocabulary.index2word and not model.training
    nats = train.evaluate(model, corpus.test, vocabulary.start)  # the round trip loses nothing
    assert train.perplexity(nats) == pytest.approx(results["test_ppl"], rel=1e-6)


def test_the_first_commands_own_defaults_run(corpus_file, tmp_path):
    """Every other test names sizes, threads and a device; a newcomer names none."""
    how = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, HERE / "train.py", "--data", corpus_file, "--epochs", "1"]
    ran = subprocess.run(words, **how, env=clean)
    assert (ran.returncode, ran.stderr) == (0, "") and "float32 products" in ran.stdout
    assert "\r" not in ran.stdout  # plain lines where there is no terminal
    words = [sys.executable, HERE / "sample.py", "out/cell/checkpoint.pt", "--prompt", "-", "--tokens", "9"]
    ran = subprocess.run(words, input="The cat", **how)
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.startswith("the cat")


def test_cell_and_lstm_open_each_others_checkpoints(trained, corpus):
    for path in (trained["cell"].path, trained["lstm"].path):
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
    optimizer, state, start = torch.optim.AdamW(model.parameters(), weight_decay=0.2), None, 0
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
        assert run.training_step(step / steps).item() == pytest.approx(loss.item(), rel=1e-4)
    assert step * 30 > len(input) and max(norms) > 0.15
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


def test_what_is_reported(corpus, monkeypatch, tmp_path):
    """The training loss is the mean since the last row, and all processes' tokens are counted."""
    run, now = make_run(corpus, processes=2), [100.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    run.begun = now[0]
    assert "left" not in train.status(run, 0.0)  # there is no estimate yet
    for steps, seconds, rows in [(5, 2, 5 * 8), (43, 4, len(run.input) - 4 * 8)]:  # to the end, and the next window
        losses = [run.training_step(0.5).item() for _ in range(steps)]
        now[0] += seconds
        loss, speed, left = sum(losses) / steps, 4 * rows / seconds, f"0:00:{now[0] - 100:02.0f}"  # half is done
        run.progress()
        assert re.search(f"loss {loss:.3f} .* {speed:,.0f} tokens/s  {left} left$", train.status(run, 0.5))
        train.validate(run, tmp_path)
        row = run.counters.log.splitlines()[-1].split(",")
        assert float(row[4]) == pytest.approx(loss, abs=1e-4) and float(row[3]) == pytest.approx(speed, abs=0.5)
    halves = [make_run(corpus, rank=rank, processes=2).input for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), make_run(corpus).input)
    with pytest.raises(InputError, match="--batch-size 4 cannot be divided by 3 processes"):
        make_run(corpus, processes=3)


def test_a_passing_line_fits_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(train.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    train.show("x" * 99, passing=True)
    train.show("y")
    train.show("z" * 99)
    shown = capsys.readouterr().out
    assert shown == "x" * 29 + "\r" + "y".ljust(29) + "\n" + "z" * 99 + "\n"


def test_the_best_model_is_kept_and_tested(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "schedule", lambda progress, *_: 1 if progress < 0.7 else 200)  # then it gets worse
    flags = [*SMALL, "--weight-decay", "0", "--valid-every", "30"]
    results, out = assert_kills_lose_nothing(flags, tmp_path, corpus, monkeypatch, seed=0)  # also after the best
    rows = read_log(out)
    assert [row["step"] for row in rows] == ["30", "60", "90", "94"]  # the last step, too
    losses = [float(row["valid_loss"]) for row in rows]
    assert losses.index(min(losses)) < len(losses) - 1
    model, vocabulary, _ = sample.load_checkpoint(out / "checkpoint.pt")
    valid, test = (train.perplexity(train.evaluate(model, part, vocabulary.start)) for part in corpus[2:])
    assert valid == pytest.approx(train.perplexity(min(losses)), rel=1e-3)
    assert [results["valid_ppl"], results["test_ppl"]] == pytest.approx([valid, test], rel=1e-5)


def test_training_stops_at_the_target(corpus, tmp_path):
    flags = [*SMALL, "--epochs", "20", "--target-ppl", "9", "--valid-every", "10", "--out", str(tmp_path / "run")]
    assert train.main(flags, corpus)["valid_ppl"] <= 9
    rows = read_log(tmp_path / "run")
    assert len(rows) > 2 and [float(row["valid_ppl"]) <= 9 for row in rows] == [False] * (len(rows) - 1) + [True]


@pytest.mark.parametrize("step", [70, 94])  # the last is the last of the training
def test_what_is_no_number_is_never_saved(step, corpus, tmp_path, monkeypatch):
    training_step, out = train.Run.training_step, tmp_path / "run"

    def spoiling_step(run, progress):
        training_step(run, progress)
        if run.counters.step == step:
            next(run.model.parameters()).data[0, 0] = float("nan")

    monkeypatch.setattr(train.Run, "training_step", spoiling_step)
    message = "became inf or nan by step 94: .*--lr.*checkpoint.pt holds the run before"
    refused(message, train.main, [*SMALL, "--out", str(out)], corpus)
    checkpoint = sample.read_checkpoint(out / "checkpoint.pt")
    assert checkpoint["training"]["counters"]["step"] == 47
    for weights in (checkpoint["weights"], checkpoint["training"]["weights"]):
        assert all(value.isfinite().all() for value in weights.values())


def test_the_fastest_number_of_threads_stays(corpus, tmp_path, monkeypatch):
    used, now, threads = [], [0.0], [6]
    seconds = {1: 3.0, 2: 2.0, 4: 1.0, 6: 30.0}  # of a step

    def step(run, progress):
        used.append(threads[-1])
        run.counters.step += 1
        now[0] += seconds[used[-1]] + (90 if len(used) == 11 else 0)  # and one step is disturbed

    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(train.Run, "training_step", step)
    monkeypatch.setattr(train, "evaluate", lambda *_: 1.0)
    monkeypatch.setattr(train, "test", lambda *_: None)
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sizes = [*TINY[: TINY.index("--threads")], "--epochs", "1", "--bptt", "20"]
    for flags, expected in [([], [1, 2, 4, 6] * 3 + [4] * 7), (["--threads", "2"], [2] * 19)]:
        used.clear()
        train.main([*sizes, *flags, "--out", str(tmp_path / str(len(flags)))], corpus)
        assert used == expected and threads[-1] == 6


def work_together(folder):
    """Losses of steps and results of whole runs for each model.

    It is called in each of several processes, and in one alone.
    """
    torch.set_num_threads(1)
    corpus, found = data.corpus_of([make_text()]), {}
    rank, processes = train.join_processes()
    for name in MODELS:
        run = make_run(corpus, "--model", name, "--dropout", "0", rank=rank, processes=processes)
        found[name] = [run.training_step(step / 6).item() for step in range(6)]
    flags = [*TINY, "--dropout", "0", "--out", f"{folder}/{processes}"]
    found["results"] = train.main(flags, corpus)
    return found


def test_two_processes_make_the_steps_of_one(tmp_path):
    out = str(tmp_path)
    script = f"import json, sys, test_lm; print('found', json.dumps(test_lm.work_together({out!r})), file=sys.stderr)"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    workers = []
    for rank in "01":
        environment = {**os.environ, **where, "RANK": rank}
        workers.append(subprocess.Popen(command, cwd=HERE, env=environment, stdout=pipe, stderr=pipe))
    outputs = [worker.communicate(timeout=120) for worker in workers]
    both = [json.loads(error.split(b"found ")[1].splitlines()[0]) for _, error in outputs]
    assert outputs[1][0] == b""  # the second process prints nothing
    alone = work_together(out)
    for name in MODELS:
        halves = [sum(pair) / 2 for pair in zip(both[0][name], both[1][name])]  # each has half of the streams
        assert halves == pytest.approx(alone[name], abs=1e-5) and both[0][name] != both[1][name]
    assert both[1]["results"] is None  # the first process tests, saves and prints
    assert both[0]["results"]["test_ppl"] == pytest.approx(alone["results"]["test_ppl"], rel=1e-5)
    one, two = (sample.read_checkpoint(tmp_path / n / "checkpoint.pt")["training"]["weights"] for n in ("1", "2"))
    assert_same(list(one.values()), list(two.values()), rtol=1e-3, atol=1e-5)


def test_without_a_test_split_training_says_so(corpus_file, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert train.main(["--data", corpus_file, "--out", out, *TINY, "--split", "0.8", "0.2"])["test_ppl"] is None
    assert "leaves no test text" in capsys.readouterr().out
    assert train.main(["--resume", out])["test_ppl"] is None
    pair = [f"{out}/checkpoint.pt"] * 2
    assert "valid\n" in sampled(capsys, *pair, "--tokens", 3).out.replace(" valid |", " valid\n")


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

    places = (os, "fsync"), (os, "replace"), (train.Run, "training_step"), (train, "evaluate")
    for owner, name in (*places, (train.nn.utils, "clip_grad_norm_"), (train, "continuation")):
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


def run_to_its_end(flags, folder, corpus, monkeypatch, kills=()):
    """Repeat a command that is killed at moments -> its results, and the number of moments."""
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(train.time, "monotonic", itertools.count(0.0, 5.0).__next__)  # 5 s at each look: it saves often
        events = kill_at(patch, kills)
        for _ in kills:
            with pytest.raises(Killed):
                train.main([*flags, "--resume", str(folder)], corpus)
        return train.main([*flags, "--resume", str(folder)], corpus), len(events)


def assert_kills_lose_nothing(flags, tmp_path, corpus, monkeypatch, seed, trials=1):
    """A run that is killed three times ends as one that is not -> the results, and the folder of the latter."""
    results, moments = run_to_its_end(flags, tmp_path / "whole", corpus, monkeypatch)
    draw = random.Random(seed)
    for trial in range(trials):
        folder = tmp_path / f"killed {trial}"
        resumed, _ = run_to_its_end(flags, folder, corpus, monkeypatch, draw.sample(range(moments), 3))
        assert {**resumed, "checkpoint": results["checkpoint"]} == results
        assert_same_runs(tmp_path / "whole", folder)
        assert {path.name for path in folder.iterdir()} <= {"checkpoint.pt", "log.csv", "checkpoint.pt.part"}
    return results, tmp_path / "whole"


@each_kind
def test_a_kill_at_any_moment_loses_nothing(name, tmp_path, monkeypatch):
    """With dropout, which is what an undisturbed run draws."""
    corpus = data.corpus_of([make_text(30)])
    flags = [*SMALL, *flags_of(name), "--hidden-size", "8", "--valid-every", "4"]
    if name == "lstm":
        corpus, flags = data.corpus_of([make_text(8)], "char"), [*flags, "--input", "one-hot"]
    assert_kills_lose_nothing(flags, tmp_path, corpus, monkeypatch, seed=name, trials=2)


def test_a_process_that_is_killed(trained, corpus_file, tmp_path):
    flags = ["--model", "cell", "--data", corpus_file, *SMALL, "--resume", str(tmp_path)]
    worker = subprocess.Popen([sys.executable, HERE / "train.py", *flags], stdout=subprocess.DEVNULL)
    while not (tmp_path / "log.csv").exists() or not read_log(tmp_path):  # until the first validation
        assert worker.poll() is None
        time.sleep(0.001)
    worker.kill()
    assert worker.wait() == -9
    assert read_counters(tmp_path)["step"] == 47
    assert train.main(flags)["test_ppl"] == trained["cell"].results["test_ppl"]
    assert_same_runs(trained["cell"].out, tmp_path)


def test_ctrl_c_prints_one_line_and_goes_on(trained, corpus_file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a run"
    flags = ["--model", "cell", "--data", corpus_file, *SMALL, "--out", str(out)]
    with monkeypatch.context() as patch:
        kill_at(patch, {30}, KeyboardInterrupt)
        code, printed, error = ended(capsys, train.main, *flags)
    assert (code, error) == (130, "")
    assert printed.splitlines()[-1] == f"go on with: python train.py --resume '{out}'"
    assert printed.count("--resume") == 1 and "test perplexity" not in printed
    assert read_counters(out)["step"] == 0  # in the first minute nothing more is saved
    assert train.main(["--resume", f"{out}/checkpoint.pt"])["test_ppl"] == trained["cell"].results["test_ppl"]
    assert_same_runs(trained["cell"].out, out)


def test_after_training_resume_only_tests(trained, corpus_file, tmp_path, capsys):
    """Also with the text in another place and a file of another version; and with more epochs it goes on."""
    folder = shutil.copytree(trained["cell"].out, tmp_path / "run")
    checkpoint = sample.read_checkpoint(folder / "checkpoint.pt")
    for name in ("threads", "halve_after"):  # what a later version adds has its default
        del checkpoint["settings"][name]
    del checkpoint["training"]["counters"]["loss_sum"]
    checkpoint["settings"]["flag_of_old"] = checkpoint["training"]["counters"]["counter_of_old"] = 3
    checkpoint["training"]["state"] = None  # as after training by several processes
    sample.save_checkpoint(folder / "checkpoint.pt", checkpoint)
    moved = shutil.copy(corpus_file, tmp_path / "moved text.txt")
    flags = ["--resume", str(folder), "--data", str(moved)]
    assert train.main(flags)["test_ppl"] == trained["cell"].results["test_ppl"]
    assert "this run has ended" in capsys.readouterr().out
    assert_same_runs(trained["cell"].out, folder)
    assert train.main([*flags, "--epochs", "3"])["test_ppl"] > 1
    assert [row["step"] for row in read_log(folder)] == ["47", "94", "141"]


def test_minutes_count_across_a_resume(corpus, tmp_path, monkeypatch):
    """The schedule ends when the time does: 3 s, which are 300 looks at a clock that each look moves by 10 ms."""
    flags, rates = [*SIZES, "--minutes", "0.05", "--resume", str(tmp_path)], []
    monkeypatch.setattr(train, "schedule", lambda progress, *_: rates.append(progress) or 0.1)
    monkeypatch.setattr(train.time, "monotonic", itertools.count(0.0, 0.01).__next__)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "SAVE_EVERY", 0.1)
        kill_at(patch, {100})
        train.main(flags, corpus)
    assert 0.5 < read_counters(tmp_path)["seconds"] < 2.5
    train.main(["--resume", str(tmp_path)], corpus)
    assert 3 <= read_counters(tmp_path)["seconds"] < 3.2
    assert 20 < len(rates) < 300 and rates[0] < 0.1 and 0.9 < rates[-1] <= 1
    assert max(a - b for a, b in itertools.pairwise(rates)) < 0.1  # a kill costs little
    step = read_counters(tmp_path)["step"]
    assert train.main(["--resume", str(tmp_path), "--epochs", "3"], corpus)  # epochs take the place of minutes
    assert read_counters(tmp_path)["step"] == 3 * 47 > step
    refused("not allowed with", train.main, [*flags, "--epochs", "3"], corpus)


def test_which_folder_a_run_is_in(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = [["--model", "cell"], ["--seed", "2"], flags_of("attention-alone")]  # the default is cell
    runs = [train.main([*TINY, *model], corpus) for model in models]
    folders = [pathlib.Path(run["checkpoint"]).parent for run in runs]
    assert folders == [pathlib.Path("out", name) for name in ("cell", "cell-2", "attention-no-copy")]
    assert len({run["test_ppl"] for run in runs}) == 3  # the seed matters
    before = {path: path.read_bytes() for path in pathlib.Path("out").rglob("*.*")}
    pathlib.Path("empty").mkdir()
    for flags, message in [
        (["--out", "out/cell"], "out/cell exists.*--resume out/cell"),
        (["--out", "empty"], "empty exists"),
        (["--out", "x", "--resume", "out/cell"], "not allowed with"),
    ]:
        refused(message, train.main, [*TINY, *flags], corpus)
    assert before == {path: path.read_bytes() for path in pathlib.Path("out").rglob("*.*")}


def test_resume_refuses_another_model_or_text(trained, corpus, corpus_file, tmp_path):
    folder = str(trained["cell"].out)
    for flags, message in [
        (["--hidden-size", "17"], "hidden_size 16, not 17: leave the flag out"),
        (["--model", "attention"], "model cell"),
        (["--batch-size", "5"], "batch_size 4, not 5"),
        (["--seed", "2"], "seed 1, not 2"),
        (["--optimizer", "sgd"], "optimizer adamw"),
        (["--init", "0.2"], "init"),
    ]:
        refused(message, train.main, ["--resume", folder, *flags])
    text = pathlib.Path(corpus_file).read_text()
    for other in (text.replace("cat", "cow"), text + "\n\nThe cat sees fish.", text.replace("cat", "dog", 1)):
        (tmp_path / "text.txt").write_text(other)
        flags = ["--resume", folder, "--data", str(tmp_path / "text.txt")]
        refused("text.txt is not the text that .* was trained on", train.main, flags)
    checkpoint = sample.read_checkpoint(trained["cell"].path)
    del checkpoint["training"]["text"]  # as before runs kept it
    sample.save_checkpoint(tmp_path / "checkpoint.pt", checkpoint)
    refused("is of another version of train.py: train anew", train.main, ["--resume", str(tmp_path)])


def test_a_corpus_from_python(corpus, tmp_path):
    """No flag of a corpus beside it, and no advice that reads another text."""
    for flags in (["--data", "ptb"], ["--level", "char"], ["--min-count", "1"], ["--split", "0.5", "0.2"]):
        refused("the corpus is given: leave --data", train.main, [*TINY, *flags], corpus)
    out = str(tmp_path / "run")
    results = train.main([*TINY, "--out", out], corpus)
    refused("corpus from Python: give its text with --data", train.main, ["--resume", out])
    assert train.main(["--resume", out], corpus) == results


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_whole(broken, trained, corpus_file, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("No space left on device")

    folder = shutil.copytree(trained["cell"].out, tmp_path / "run")
    before = (folder / "checkpoint.pt").read_bytes()
    other = tmp_path / "other"
    os.link(folder / "checkpoint.pt", other)  # a second name of the same file, which would show a write in place
    flags = ["--resume", str(folder), "--epochs", "3", "--valid-every", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        code, _, error = ended(capsys, train.main, *flags)
    assert code == 2 and error.count("\n") == 1 and "No space left" in error
    assert (folder / "checkpoint.pt").read_bytes() == before
    train.main(flags)
    assert other.read_bytes() == before != (folder / "checkpoint.pt").read_bytes()


# --- What one may add --------------------------------------------------------------------------


class GRULM(LanguageModel):
    """A language model on a GRU, as a reader may write it."""

    def __init__(self, vocab_size, settings):
        super().__init__(vocab_size, settings["embedding_size"], settings["hidden_size"])
        self.gru = nn.GRU(settings["embedding_size"], settings["hidden_size"])

    def features(self, input, state=None):
        h, last = self.gru(self.embed(input), state and state[0])
        return h, (last,)


def test_what_is_added_is_trained_resumed_and_sampled(tmp_path, monkeypatch, capsys):
    spaces = data.Tokeniser(str.split, lambda tokens: (" " + token for token in tokens), drops_rare=True)
    monkeypatch.setitem(data.TOKENISERS, "spaces", spaces)
    monkeypatch.setitem(attention_lm.MODELS, "gru", GRULM)
    momentum = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)
    monkeypatch.setitem(train.OPTIMIZERS, "momentum", momentum)
    corpus = data.corpus_of([make_text(20, seed) for seed in range(7)], "spaces")
    flags = [*TINY, *"--epochs 2 --model gru --optimizer momentum --halve-after 1 --weight-decay 0".split()]
    results, _ = assert_kills_lose_nothing(flags, tmp_path, corpus, monkeypatch, seed=0)
    capsys.readouterr()
    shown = sampled(capsys, results["checkpoint"], "--prompt", "the cat", "--tokens", 9)
    assert shown.out.strip().startswith("the cat") and shown.err == ""


# --- The command line, and what is refused -------------------------------------------------


REFUSED = [  # (script, flags, message)
    (train, "--data nowhere.txt", "no corpus nowhere.txt"),
    (train, "--data empty.txt", "empty.txt is empty"),
    (train, "--data binary.txt", "binary"),
    (train, "--data latin1.txt", "latin1.txt.*UTF-8"),
    (train, "--data short.txt", "too short"),
    (train, "--data folder", "folder"),
    (train, "--bptt 0", r"--bptt.*at least 1 \(see --help\)"),
    (train, "--lr much", "--lr.*invalid float"),
    (train, "--lr nan", "--lr"),
    (train, "--dropout 1", "dropout is 1"),
    (train, "--batch-size 100000", "larger than the corpus"),
    (train, "--tie-weights --input one-hot", "one-hot"),
    (train, "--device cuda:7", "no device cuda:7"),
    (train, "--device meta", "no device meta"),
    (train, "--out good.txt/run", "good.txt/run"),
    (train, "--resume nowhere", "no folder nowhere"),
    (train, "--resume good.txt", "no folder good.txt"),
    (train, "--no-such-flag", "--no-such-flag"),
    (train, "--model transformer", "transformer"),
    (sample, "nowhere.pt", "^error: nowhere.pt: No such file or directory$"),
    (sample, "folder", "folder"),
    (sample, "truncated.pt", "truncated.pt is not a checkpoint"),
    (sample, "good.txt", "good.txt is not a checkpoint"),
    (sample, "harmful.pt", "not a checkpoint"),
    (sample, "harmful2.pt", "not a checkpoint"),
    (sample, "other.pt", "not a checkpoint"),
    (sample, "misfit.pt", "does not fit these models"),
    (sample, "unknown.pt", "model mine, which has no entry"),
    (sample, "", "checkpoint"),
    (sample, "good.pt --prompt=", "prompt is empty"),
    (sample, "good.pt --temperature 0", "--temperature"),
    (sample, "good.pt --temperature nan", "--temperature"),
    (sample, "good.pt --top-k 0", "--top-k.*at least 1"),
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
    torch.save({**contents, "settings": {**contents["settings"], "model": "mine"}}, folder / "unknown.pt")
    return folder


@pytest.mark.parametrize("script, flags, message", REFUSED, ids=[flags for _, flags, _ in REFUSED])
def test_bad_input_gets_one_clear_line(script, flags, message, bad_folder, monkeypatch, capsys):
    monkeypatch.chdir(bad_folder)
    words = flags.split()
    if script is train:
        default = [] if "--data" in words else ["--data", "good.txt"]
        out = [] if {"--resume", "--out"} & set(words) else ["--out", "new"]
        words = [*SMALL, *default, *out, *words]
    code, _, error = ended(capsys, script.main, *words)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)
    assert not (bad_folder / "new").exists()  # no folder is made for a run that cannot begin
    assert not (bad_folder / "harm").exists()  # nothing in a file was run


def test_a_changed_bit_is_noticed(trained, tmp_path):
    """In each of 40 places of a file: it is refused, or the weights are the same."""
    raw, draw, refused = trained["attention"].path.read_bytes(), random.Random(0), 0
    expected, path = sample.read_checkpoint(trained["attention"].path)["weights"], tmp_path / "checkpoint.pt"
    for _ in range(40):
        place = draw.randrange(len(raw))
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << draw.randrange(8)]) + raw[place + 1 :])
        try:
            model, _, _ = sample.load_checkpoint(path)
        except InputError as error:
            assert "is not a checkpoint of train.py, or is damaged" in str(error)
            refused += 1
        else:
            assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())
    assert refused > 15


def test_help_groups_flags_and_states_defaults(capsys, corpus_file):
    for script in (data, sample, train):
        code, shown, _ = ended(capsys, script.main, "--help")
        assert code == 0 and shown.startswith("usage:")
    for words in ("corpus:", "model:", "training:", "machine and files:", "(python-docs)", "(cell)"):
        assert words in shown
    data.main([corpus_file])  # shows what a corpus looks like
    shown = capsys.readouterr().out
    assert "18 different" in shown and "test begins\n" in shown and "the cat" in shown
