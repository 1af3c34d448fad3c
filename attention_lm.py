"""A language model with attention: an encoder remembers, a decoder looks back while it writes.

    from attention_lm import AttentionLM
    model = AttentionLM(vocab_size=10000, embedding_size=200, hidden_size=200, window=35)
    log_probs, state = model(input, state)
    h, weights, state = model.attend(input, state)          # the weights, to look at

The text is cut into windows of W tokens. While the decoder reads a window and predicts,
the encoder's hidden states over the window before are its memory:

    memory   m_1 ... m_W = encoder LSTM over the window before

    at each step, with x the token's embedding and h, c the decoder's states (with more
    layers, the top one's h scores and the first one's cell takes the context):
      score_j = m_j . h                            dot product
      a       = softmax(score)                     weights over the memory, sum 1
      context = sum_j a_j m_j                      bmm
      h', c'  = LSTMCell([x, context], (h, c))
      log P(next token) = log_softmax(Linear(h'))

This is the attention of Bahdanau et al. (2015), looking before it steps, with the dot
score of Luong et al. (2015), put to language modelling as by Salton et al. (2017). Both
LSTMs carry their states from window to window; so the decoder alone sees all that a
plain LSTM language model sees, and its perplexity is over the same tokens.

In the first window the memory is empty, no state is made up: a softmax over nothing has
no weights, and a sum of nothing is a context of exact zeros.

Sizes in comments: T steps, B streams, V words, E embedding, H hidden units, L layers,
W the window, M the memory's length: W, or 0 in the first window.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lstm_cell import LSTM, LSTMCell, dropout, linear, lstm_step, sum_of_outer
from lstm_lm import LanguageModel


def attention(h, memory, offsets=None):
    """Dot-product attention: h (B, H), memory (B, M, H) -> context (B, H), weights (B, M).

    It is `F.scaled_dot_product_attention` with one query and a scale of 1. offsets: what to add to the scores and
    to the context, (B, 1, M) and (B, 1, H), zeros if None.
    """
    to_scores, to_context = memory.new_zeros(2) if offsets is None else offsets
    with torch.autocast(h.device.type, enabled=False):  # casting the memory at every step costs more than it saves
        scores = torch.baddbmm(to_scores, h[:, None], memory.transpose(1, 2))  # (B, 1, M)
        weights = torch.softmax(scores, dim=-1)  # (B, 1, M)
        context = torch.baddbmm(to_context, weights, memory)  # (B, 1, H)
    return context[:, 0], weights[:, 0]


class GradientOnce(torch.autograd.Function):
    """y = y0 + W u at T steps: the gradient of W as one product after them all, where autograd adds up one a step.

    y0 = GradientOnce.apply(y0, W, inputs) hands y0 on. Step t then makes y = y0[t] + W.detach() u and appends
    u.detach() to inputs. So the gradient that comes back to y0 is dy of all steps, and that of W the sum of dy u^T.
    """

    @staticmethod
    def forward(ctx, y0, W, inputs):
        """y0 (T, B, N), W (N, K), or (B, N, K), one for each stream, inputs, a list that will hold T u (B, K) -> y0."""
        ctx.inputs, ctx.each = inputs, W.dim() == 3
        return y0.view_as(y0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        """dy (T, B, N) -> dy0, the same, and dW like W, the sum of dy u^T."""
        u = torch.stack(ctx.inputs).to(dy.dtype)  # (T, B, K)
        if ctx.each:
            return dy, torch.einsum("tbn,tbk->bnk", dy, u), None
        return dy, sum_of_outer(dy.flatten(0, 1), u.flatten(0, 1)), None


class AttentionLM(LanguageModel):
    """Encoder-decoder language model with dot-product attention over the previous window.

    num_layers: L, of the encoder and of the decoder.  window: W; training in windows of as
    many steps sends the decoder's loss through the whole encoder.  The rest: see
    `LanguageModel`.

    Its state is (tokens, memory, h_enc, c_enc, h_dec, c_dec): the tokens (<= W, B) of the
    window being read, the memory (M, B, H) it looks at, and the two LSTMs' states (L, B, H).
    """

    def __init__(
        self,
        vocab_size,
        embedding_size,
        hidden_size,
        num_layers=1,
        dropout=0.0,
        input="embedding",
        tie_weights=False,
        window=35,
    ):
        super().__init__(vocab_size, embedding_size, hidden_size, dropout, input, tie_weights)
        self.window, self.hidden_size, self.num_layers = window, hidden_size, num_layers
        self.encoder = LSTM(self.embedding_size, hidden_size, num_layers, dropout=dropout)
        sizes = [self.embedding_size + hidden_size] + [hidden_size] * (num_layers - 1)
        self.decoder = nn.ModuleList(LSTMCell(size, hidden_size) for size in sizes)

    def attend(self, input, state=None):
        """input int64 (T, B) -> hidden states (T, B, H), weights, a list of T tensors (B, M), state.

        Any T > 0 will do: wherever a window is full, the encoder reads it and it becomes the
        memory. Reading a text at once, in pieces or token by token is the same.
        """
        if state is None:
            B, new_zeros = input.shape[1], self.output.weight.new_zeros
            zeros = new_zeros(self.num_layers, B, self.hidden_size)
            state = (input[:0], new_zeros(0, B, self.hidden_size), zeros, zeros, zeros, zeros)
        tokens, memory, h_enc, c_enc, h_dec, c_dec = state
        memory = memory.transpose(0, 1)  # (B, M, H)
        h, c = list(h_dec), list(c_dec)  # a (B, H) for each layer
        first, *upper = self.decoder
        outputs, weights = [], []
        while len(input):
            if len(tokens) == self.window:  # it is full: it becomes the memory
                states, (h_enc, c_enc) = self.encoder(self.embed(tokens), (h_enc, c_enc))  # (W, B, H)
                memory, tokens = states.transpose(0, 1).contiguous(), tokens[:0]  # (B, W, H)
            now, input = input.tensor_split([self.window - len(tokens)])
            tokens = torch.cat((tokens, now))
            # W_ih [x, context] + W_hh h = W_x x + W_rest [context, h]; the first of these for all steps at once
            W_x, W_context = first.weight_ih.split([self.embedding_size, self.hidden_size], dim=1)  # (4H, E), (4H, H)
            x = self.embed(now).flatten(0, 1)  # (T * B, E)
            zx = linear(x, W_x, first.bias_ih + first.bias_hh).unflatten(0, now.shape)  # (T, B, 4H)
            W_rest = torch.cat((W_context, first.weight_hh), dim=1).to(zx.dtype)  # (4H, 2H)
            # Each step has three products: by W_rest, the memory and its transpose. Of each, what it multiplies is kept
            # in a list, and what it is added to (for two of them zeros) tells its gradient at the end.
            rests, queries, looks = [], [], []
            zx = GradientOnce.apply(zx, W_rest, rests)
            to_scores = GradientOnce.apply(memory.new_zeros(*now.shape, memory.shape[1]), memory, queries)  # (T, B, M)
            to_contexts = memory.new_zeros(*now.shape, self.hidden_size)
            to_contexts = GradientOnce.apply(to_contexts, memory.transpose(1, 2), looks)  # (T, B, H)
            W, m = W_rest.detach(), memory.detach()
            for zx_t, *offsets in zip(zx, to_scores[:, :, None], to_contexts[:, :, None]):
                context, a = attention(h[-1], m, offsets)  # (B, H), (B, M)
                rest = torch.cat((context, h[0]), dim=-1)  # (B, 2H)
                rests.append(rest.detach())
                queries.append(h[-1].detach())
                looks.append(a.detach())
                z = zx_t + F.linear(rest, W)  # (B, 4H)
                h[0], c[0], _ = lstm_step(z.to(c[0].dtype), c[0])
                for layer, cell in enumerate(upper, 1):
                    h[layer], c[layer] = cell(dropout(h[layer - 1], self.dropout, self.training), (h[layer], c[layer]))
                outputs.append(h[-1])
                weights.append(a)
        return torch.stack(outputs), weights, (tokens, memory.transpose(0, 1), h_enc, c_enc, torch.stack(h), torch.stack(c))

    def features(self, input, state=None):
        """int64 (T, B) -> hidden states (T, B, H), state."""
        h, _, state = self.attend(input, state)
        return h, state
