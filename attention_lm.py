"""A language model with attention: it looks back at what it has read, and can copy a word from there.

    from attention_lm import AttentionLM
    model = AttentionLM(vocab_size=10000, embedding_size=200, hidden_size=200)
    log_probs, state = model(input, state)

An LSTM has to keep all that it has read in two vectors. This model also keeps the states of earlier steps, in a memory.
Slot j of the memory is a pair: the state m_j after reading the token x_j, and the token x_{j+1} that followed. At each
step the model compares its own state with those in the slots. A slot that agrees with it is a place where the text was
in a similar situation, and what followed there may well follow here:

    h', c'   = LSTMCell([x, context], (h, c))       the decoder; x is an embedding, context that of the step before;
                                                    without an encoder, LSTMCell(x, (h, c)), see below
    score_j  = m_j . h' - decay log(max(t - j, n))  dot product with each slot in view, less for slots far back
    score_0  = s . h' + b                           the sentinel: "look at no slot"
    a        = softmax(score)                       weights over the sentinel and the slots
    context' = sum_j a_j m_j                        what the model sees by looking back; the sentinel adds nothing
    r        = tanh(W [h', context'] + d)           the readout; with an encoder, W [h', context', m]
    P(w)     = a_0 softmax(Linear(r))_w + sum_j a_j [x_{j+1} = w]

The last line is a mixture of two distributions over the next word w; the brackets are 1 where the tokens are equal and
0 elsewhere. The model generates a word with probability a_0, and copies one from the memory with probability 1 - a_0.
`decay` is one learned number: the weight of a slot falls with this power of its distance t - j, but slots nearer than n
steps, a fixed number, count as n steps away.

The memory slides along the text. At step t, when x_t has been read, the slots t-M to t-1-k are in view, unless their
follower is x_t itself. M is the size of the memory and k the delay. For example, at step 6 with M = 5 and k = 2:

    step          1     2     3     4     5     6
    token read    the   cat   sat   .     but   the
    slot          m_1   m_2   m_3   m_4   m_5             The model is in the situation that it was in after step 1,
    follower      cat   sat   .     but   the             so it may copy the follower of m_1, "cat".
    in view       yes   yes   yes

The k newest slots are out of view, because h' still holds what was read in the last few steps. The other two rules are
for writing. A model that writes what it has just written gets into a state that agrees even more with the last ones, so
that the text is caught in a loop: "tab id and tab id and tab id". A slot whose follower is x_t would double a word, and
a preference for the nearest slots would repeat the last phrase. So outside training n is 64, twice what it is in
training: this costs 1% of perplexity, and the texts of self-attention repeat themselves about as often as real ones do.

At the first steps no slot is in view, so a_0 is 1 and the context is zero.

The memory can hold the states of one of two networks:

    memory_from="encoder"    An encoder LSTM reads the same tokens, and m_j is its state: the encoder-decoder model.
                             Its newest state m is also given to the readout, so that the encoder is trained to predict
                             the next word, and not only to be looked back at.
    memory_from="decoder"    m_j is the decoder's own h' of that step: self-attention. The context is not fed to the
                             decoder, so that the decoder is a plain LSTM and all its steps look back at once.

Attention and the fed context are those of Bahdanau et al. (2015), the dot product and the readout those of Luong et al.
(2015). The sentinel and the mixture are those of Merity et al. (2017), the slots with their followers those of Grave et
al. (2017); see also See et al. (2017), and Cheng et al. (2016) for an LSTM that attends to its own states.

Sizes in comments: T steps, B streams, V words, E embedding, H hidden units, R readout, L layers, S = K + T slots: K
carried from earlier calls, then T new ones.
"""

import typing

import torch
from torch import nn

from lstm_cell import LSTM, LSTMCell
from lstm_lm import LanguageModel


def attention(h, sentinel, slots, score_bias):
    """Dot-product attention to the sentinel and to the slots -> context (T, B, H), weights (T, B, 1 + S).

    h (T, B, H): the states that look back.
    sentinel: a Linear from H to 1, for its score.
    slots: a list of two parts, (B, K, H) and (B, T, H). They stay apart because in training the carried ones need no
        gradient: a step then takes a fifth less time.
    score_bias (B, T, S): is added to the scores of the slots: what `decay` subtracts, or -inf for a slot out of view.

    The weights of a step sum to 1, and that of the sentinel is first.
    """
    with torch.autocast(h.device.type, enabled=False):  # bfloat16 has too few digits for scores
        h = h.transpose(0, 1)  # (B, T, H)
        scores = torch.cat([torch.bmm(h, part.transpose(1, 2)) for part in slots], dim=-1)  # (B, T, S)
        scores = torch.cat((sentinel(h), scores + score_bias), dim=-1)  # (B, T, 1 + S)
        weights = torch.softmax(scores, dim=-1)  # (B, T, 1 + S)
        parts = weights[..., 1:].split([part.shape[1] for part in slots], dim=-1)  # (B, T, K), (B, T, T)
        context = sum(torch.bmm(a, part) for a, part in zip(parts, slots))  # (B, T, H)
        return context.transpose(0, 1), weights.transpose(0, 1)


def log(p):
    """The logarithm of probabilities, finite also where p is too small for a float."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


class State(typing.NamedTuple):
    """What the model carries from one call to the next. The second dimension of each tensor is B.

    Without an encoder the last three have no rows, (0, B, H).
    """

    tokens: torch.Tensor  # int64 (K, B), the tokens of the last slots, K <= M
    memory: torch.Tensor  # (K, B, H), the states after reading them
    h: torch.Tensor  # (L, B, H), of the LSTM whose states are the memory
    c: torch.Tensor  # (L, B, H)
    context: torch.Tensor  # (1, B, H), that the decoder is fed
    decoder_h: torch.Tensor  # (1, B, H)
    decoder_c: torch.Tensor  # (1, B, H)


class AttentionLM(LanguageModel):
    """An LSTM language model that looks back at earlier states and can copy the words that followed them.

    num_layers: L, of the LSTM whose states are the memory.
    memory_from: "encoder" or "decoder", as above.
    memory_size: M outside training. In training it is smaller, see `grow`.
    delay: k, the number of newest slots that are out of view.
    near: n outside training, the distance up to which all slots count as equally near. In training it is half of this.

    The other arguments are those of `LanguageModel`; weight_dropout acts in the LSTM whose states are the memory.
    The state is a `State`, or any tuple of the same tensors.
    """

    def __init__(
        self,
        vocab_size,
        embedding_size,
        hidden_size,
        num_layers=1,
        memory_from="encoder",
        memory_size=2000,
        delay=2,
        near=64,
        **options,
    ):
        super().__init__(vocab_size, embedding_size, hidden_size, **options)
        self.hidden_size, self.num_layers, self.memory_from = hidden_size, num_layers, memory_from
        self.memory_size, self.delay, self.near = memory_size, delay, near
        self.memory_size_in_training = min(memory_size, 400)
        lstm = LSTM(self.embedding_size, hidden_size, num_layers, **self.dropouts)
        if memory_from == "encoder":
            self.encoder = lstm
            self.decoder = LSTMCell(self.embedding_size + hidden_size, hidden_size)
            self.readout = nn.Linear(3 * hidden_size, self.readout_size)
        else:
            self.decoder = lstm
            self.readout = nn.Linear(2 * hidden_size, self.readout_size)
        self.sentinel = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.sentinel.weight)
        # At first the scores of the slots are near 0. With 2 the sentinel has the weight of 7 slots; without it, the
        # softmax over the words would hardly be trained at the start.
        nn.init.constant_(self.sentinel.bias, 2)
        self.decay = nn.Parameter(torch.zeros(1))

    def start(self, input):
        """The state before anything has been read: an empty memory, and zeros."""
        B, H, L = input.shape[1], self.hidden_size, self.num_layers
        D = 1 if self.memory_from == "encoder" else 0
        zeros = self.output.weight.new_zeros
        memory, h, c = zeros(0, B, H), zeros(L, B, H), zeros(L, B, H)
        return State(input[:0], memory, h, c, zeros(D, B, H), zeros(D, B, H), zeros(D, B, H))

    def attend(self, input, state=None):
        """Read input int64 (T, B) and look back at each step.

        Returns r (T, B, R), weights (T, B, 1 + S), followers int64 (S, B), next state. weights[..., 0] is the weight
        of the sentinel. followers[j] is the token that followed slot j; that of the last slot is not known yet, and
        no step sees this slot.
        """
        state = self.start(input) if state is None else State(*state)  # any tuple becomes a State
        M = self.memory_size_in_training if self.training else self.memory_size
        tokens = torch.cat((state.tokens, input))  # (S, B)
        followers = torch.cat((tokens[1:], tokens[-1:]))  # (S, B)
        score_bias = self.score_bias(input, followers, M)  # (B, T, S)
        read = self.read_with_encoder if self.memory_from == "encoder" else self.read_alone
        m, readout_inputs, weights, carried = read(self.embed(input), state, score_bias)
        r = torch.tanh(self.readout(torch.cat(readout_inputs, dim=-1)))  # (T, B, R)
        memory = torch.cat((state.memory, m))  # (S, B, H)
        return r, weights, followers, State(tokens[-M:], memory[-M:], *carried)

    def score_bias(self, input, followers, M):
        """What is added to the scores: minus the decay of each slot at each step, or -inf where it is out of view.

        input int64 (T, B), followers int64 (S, B), M the size of the memory -> (B, T, S).
        """
        n = max(1, self.near // 2) if self.training else self.near
        slot = torch.arange(len(followers), device=input.device)  # (S,)
        step = slot[-len(input) :, None]  # (T, 1), the slot that each step adds
        distance = step - slot  # (T, S), t - j; below 0 for the slots of later steps
        in_view = (self.delay < distance) & (distance <= M)  # (T, S)
        doubles = followers.t()[:, None, :] == input.t()[:, :, None]  # (B, 1, S) and (B, T, 1) -> (B, T, S)
        # The clamp is max(t - j, n). n is at least 1, so the logarithm is finite also where the distance is below 0.
        decayed = -self.decay * distance.clamp_min(n).to(self.decay.dtype).log()  # (T, S)
        return decayed.masked_fill(~in_view | doubles, -torch.inf)  # (B, T, S)

    def read_with_encoder(self, x, state, score_bias):
        """The encoder reads x (T, B, E) first. Then the decoder reads it step by step, with what it sees.

        Some slots are of steps that the decoder has not come to yet. score_bias (B, T, S), see `attention`, hides them.
        Returns the new slots (T, B, H), what the readout is given, weights (T, B, 1 + S), and h, c, context, decoder_h
        and decoder_c of the next state.
        """
        m, encoder_state = self.encoder(x, (state.h, state.c))  # (T, B, H)
        slots = [state.memory.transpose(0, 1), m.transpose(0, 1)]  # (B, K, H), (B, T, H)
        slots = [part.contiguous() for part in slots]  # once, because each of the T steps reads them
        context, h, c = state.context, state.decoder_h[0], state.decoder_c[0]  # (1, B, H), (B, H), (B, H)
        hs, contexts, weights = [], [], []
        for t in range(len(x)):
            h, c = self.decoder(torch.cat((x[t], context[0]), dim=-1), (h, c))  # (B, H) each
            context, a = attention(h[None], self.sentinel, slots, score_bias[:, t : t + 1])  # (1, B, H), (1, B, 1 + S)
            hs.append(h[None])
            contexts.append(context)
            weights.append(a)
        readout_inputs = torch.cat(hs), torch.cat(contexts), m  # (T, B, H) each
        return m, readout_inputs, torch.cat(weights), (*encoder_state, context, h[None], c[None])

    def read_alone(self, x, state, score_bias):
        """The decoder reads x, and its own states are the new slots. See `read_with_encoder`."""
        h, decoder_state = self.decoder(x, (state.h, state.c))  # (T, B, H)
        slots = [state.memory.transpose(0, 1), h.transpose(0, 1)]  # (B, K, H), (B, T, H)
        contexts, weights = attention(h, self.sentinel, slots, score_bias)  # (T, B, H), (T, B, 1 + S)
        return h, (h, contexts), weights, (*decoder_state, state.context, state.decoder_h, state.decoder_c)

    def forward(self, input, state=None, temperature=1.0):
        """As `LanguageModel.forward`. The temperature acts on what is generated, not on what is copied."""
        r, weights, followers, state = self.attend(input, state)
        return self.mixture(r, weights, followers, temperature), state

    def mixture(self, r, weights, followers, temperature=1.0):
        """What `attend` returned -> log-probabilities (T, B, V), generated and copied."""
        p = weights[..., :1] * self.log_softmax(r, temperature).exp()  # (T, B, V)
        copied = weights[..., 1:]  # (T, B, S)
        words = followers.t().expand(copied.shape)  # (T, B, S), the same at all steps
        return log(p.scatter_add(-1, words, copied))  # adds copied[t, b, j] to p[t, b, words[t, b, j]]

    def loss(self, input, target, state=None):
        """As `LanguageModel.loss`, but the mixture is computed for the target alone."""
        r, weights, followers, state = self.attend(input, state)
        generated = self.log_softmax(r).gather(-1, target[..., None])[..., 0].exp()  # (T, B)
        copied = (weights[..., 1:] * (followers.t() == target[..., None])).sum(dim=-1)  # (T, B)
        return -log(weights[..., 0] * generated + copied).mean(), state

    def grow(self, progress):
        """See 35 slots at first and 400 at the end. With an encoder this saves a sixth of the time for training.

        More than 400 would cost more time and is not needed: decay tells what slots farther back are worth.
        """
        self.memory_size_in_training = min(self.memory_size, max(35, round(progress * 400)))
