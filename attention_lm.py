"""A language model with attention: it looks back at what it has read, and can copy a word from there.

    from attention_lm import AttentionLM
    model = AttentionLM(vocab_size=10000, embedding_size=200, hidden_size=200)
    log_probs, state = model(input, state)

An LSTM has to keep all that it has read in two vectors. This model also keeps the states of earlier steps, in a memory.
Slot j of the memory is a pair: the state m_j after reading the token x_j, and the token x_{j+1} that followed. At each
step the model compares its own state with those in the slots. A slot that agrees with it is a place where the text was
in a similar situation, and what followed there may well follow here:

    h', c'   = LSTMCell([x, context], (h, c))       the decoder; x is an embedding, context that of the step before
    score_j  = m_j . h'                             dot product with each slot in view
    score_0  = s . h' + b                           the sentinel: "look at no slot"
    a        = softmax(score)                       weights over the sentinel and the slots
    context' = sum_j a_j m_j                        what the model sees by looking back (bmm)
    r        = tanh(W [h', context'] + d)           the readout; with an encoder, W [h', context', m]
    P(w)     = a_0 softmax(Linear(r))_w + sum_j a_j [x_{j+1} = w]

The last line is a mixture of two distributions over the next word w. The model generates a word with probability a_0,
and copies one from the memory with probability 1 - a_0.

The memory can hold the states of one of two networks:

    memory_from="encoder"    An encoder LSTM reads the same tokens, and m_j is its state: the encoder-decoder model.
                             Its newest state m is in the readout, too: this trains it to predict words itself.
    memory_from="decoder"    m_j is the decoder's own h' of that step: self-attention. The context is not fed to the
                             decoder, so that the decoder is a plain LSTM and all its steps look back at once.

The memory slides along the text. A slot comes into view as soon as the token that followed it has been read, and
leaves it when M newer ones are in view. Before the first slot, a_0 is 1, the context is zero and nothing is copied.

Attention is that of Bahdanau et al. (2015), with the dot product, the readout and the fed context of Luong et al.
(2015). Copying and the sentinel are those of Merity et al. (2017); see also Grave et al. (2017) and See et al. (2017).

Sizes in comments: T steps, B streams, V words, E embedding, H hidden units, R readout, L layers, S slots: those carried
from earlier calls, then T new ones.
"""

import torch
from torch import nn

from lstm_cell import LSTM, LSTMCell
from lstm_lm import LanguageModel


def attention(h, sentinel, slots, in_view):
    """Dot-product attention to the sentinel and to the slots in view.

    h (B, T, H).  sentinel: a Linear from H to 1, for its score.  slots: a list of parts, (B, S_k, H) each, S in all.
    in_view: bool (T, S) or (S,).  -> context (B, T, H), weights (B, T, 1 + S), that of the sentinel first, sum 1.
    The slots come in parts because in training the carried ones need no gradient: a step takes a fifth less time.
    """
    with torch.autocast(h.device.type, enabled=False):  # bfloat16 has too few digits for scores
        scores = torch.cat([torch.bmm(h, part.transpose(1, 2)) for part in slots], dim=-1)  # (B, T, S)
        scores = torch.cat((sentinel(h), scores.masked_fill(~in_view, -torch.inf)), dim=-1)  # (B, T, 1 + S)
        weights = torch.softmax(scores, dim=-1)  # (B, T, 1 + S)
        _, *parts = weights.split([1, *(part.shape[1] for part in slots)], dim=-1)  # (B, T, S_k) each
        return sum(torch.bmm(a, part) for a, part in zip(parts, slots)), weights


def log(p):
    """The logarithm of probabilities, finite also where p is too small for a float."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


class AttentionLM(LanguageModel):
    """An LSTM language model that looks back at earlier states and can copy the words that followed them.

    num_layers: L, of the LSTM whose states are the memory.  memory_from: "encoder" or "decoder", as above.
    memory: M, the number of slots in view. In training it grows to M, see `grow`.
    The other arguments are those of `LanguageModel`.

    The state is (tokens, memory, context, h, c, and with an encoder its h and c): the tokens (M, B) and states
    (M, B, H) of the slots, the last context (1, B, H), and the states of the LSTMs, (L, B, H) or (1, B, H).
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
        memory_from="encoder",
        memory=400,
    ):
        super().__init__(vocab_size, embedding_size, hidden_size, dropout, input, tie_weights)
        self.hidden_size, self.memory_from, self.memory, self.in_view = hidden_size, memory_from, memory, memory
        lstm = LSTM(self.embedding_size, hidden_size, num_layers, dropout=dropout)
        if memory_from == "encoder":
            self.encoder = lstm
            self.decoder = LSTMCell(self.embedding_size + hidden_size, hidden_size)
            self.readout = nn.Linear(3 * hidden_size, self.readout_size)
        else:
            self.decoder = lstm
            self.readout = nn.Linear(2 * hidden_size, self.readout_size)
        self.sentinel = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.sentinel.weight)
        nn.init.constant_(self.sentinel.bias, 2)

    def start(self, B):
        """The state before anything has been read: an empty memory, and zeros."""

        def zeros(*shape):
            return self.output.weight.new_zeros(*shape, B, self.hidden_size)

        layers = [1, self.encoder.num_layers] if self.memory_from == "encoder" else [self.decoder.num_layers]
        tokens = torch.zeros(0, B, dtype=torch.int64, device=self.output.weight.device)
        return tokens, zeros(0), zeros(1), *(zeros(L) for L in layers for _ in "hc")

    def attend(self, input, state=None):
        """Read input int64 (T, B) and look back at each step.

        Returns r (T, B, R), weights (T, B, 1 + S), followers int64 (S, B), next state. weights[..., 0] is the weight
        of the sentinel. followers[j] is the token that followed slot j; that of the last slot is not known yet, and
        no step sees this slot.
        """
        tokens, memory, context, *lstm_states = self.start(input.shape[1]) if state is None else state
        M = self.in_view if self.training else self.memory
        slot = torch.arange(len(memory) + len(input), device=input.device)  # (S,), the carried ones and those to come
        step = slot[len(memory) :, None]  # (T, 1), the slot that each step adds
        in_view = (step - M <= slot) & (slot < step)  # (T, S)
        read = self.read_with_encoder if self.memory_from == "encoder" else self.read_alone
        m, seen, contexts, weights, lstm_states = read(self.embed(input), memory, in_view, context, lstm_states)
        r = torch.tanh(self.readout(seen))  # (T, B, R)
        tokens, memory = torch.cat((tokens, input)), torch.cat((memory, m))  # (S, B), (S, B, H)
        followers = torch.cat((tokens[1:], tokens[-1:]))  # (S, B)
        return r, weights, followers, (tokens[-M:], memory[-M:], contexts[-1:], *lstm_states)

    def read_with_encoder(self, x, memory, in_view, context, lstm_states):
        """The encoder reads x (T, B, E) first. Then the decoder reads it step by step, with what it sees.

        memory (S - T, B, H): the carried slots.  in_view: bool (T, S).  context (1, B, H) and lstm_states are from the
        state.  Returns the new slots (T, B, H), what the readout is given (T, B, 3H), contexts (T, B, H), weights
        (T, B, 1 + S) and the next lstm_states.
        """
        h, c, *encoder_state = lstm_states
        m, encoder_state = self.encoder(x, encoder_state)  # (T, B, H)
        slots = [part.transpose(0, 1).contiguous() for part in (memory, m)]  # (B, S - T, H), (B, T, H)
        h, c, context = h[0], c[0], context[0]  # (B, H) each
        steps = []
        for x_t, in_view_t in zip(x, in_view):
            h, c = self.decoder(torch.cat((x_t, context), dim=-1), (h, c))
            context, a = attention(h[:, None], self.sentinel, slots, in_view_t)  # (B, 1, H), (B, 1, 1 + S)
            context, a = context[:, 0], a[:, 0]
            steps.append((h, context, a))
        hs, contexts, weights = map(torch.stack, zip(*steps))  # (T, B, H), (T, B, H), (T, B, 1 + S)
        return m, torch.cat((hs, contexts, m), dim=-1), contexts, weights, (h[None], c[None], *encoder_state)

    def read_alone(self, x, memory, in_view, context, lstm_states):
        """The decoder reads x, and its own states are the new slots. See `read_with_encoder`, with 2H for 3H."""
        h, lstm_states = self.decoder(x, lstm_states)  # (T, B, H)
        slots = [part.transpose(0, 1) for part in (memory, h)]  # (B, S - T, H), (B, T, H)
        contexts, weights = attention(h.transpose(0, 1), self.sentinel, slots, in_view)  # (B, T, H), (B, T, 1 + S)
        contexts, weights = contexts.transpose(0, 1), weights.transpose(0, 1)  # (T, B, H), (T, B, 1 + S)
        return h, torch.cat((h, contexts), dim=-1), contexts, weights, lstm_states

    def forward(self, input, state=None):
        """input int64 (T, B), state as returned before or None -> log-probabilities (T, B, V), next state."""
        r, weights, followers, state = self.attend(input, state)
        p = weights[..., :1] * self.log_softmax(r).exp()  # (T, B, V)
        copied = weights[..., 1:]  # (T, B, S)
        p = p.scatter_add(-1, followers.t().expand(copied.shape), copied)  # (T, B, V)
        return log(p), state

    def loss(self, input, target, state=None):
        """input and target int64 (T, B) -> the mean of -log P(target) in nats, next state.

        It equals `LanguageModel.loss`, but computes the mixture for the target alone.
        """
        r, weights, followers, state = self.attend(input, state)
        generated = self.log_softmax(r).gather(-1, target[..., None])[..., 0].exp()  # (T, B)
        copied = (weights[..., 1:] * (followers.t() == target[..., None])).sum(dim=-1)  # (T, B)
        return -log(weights[..., 0] * generated + copied).mean(), state

    def grow(self, progress):
        """Let a step of training see 35 slots at first, and more and more until M at the end.

        With M slots from the start, the model would take several epochs to learn to look at the right ones.
        """
        self.in_view = min(self.memory, max(35, round(progress * self.memory)))
