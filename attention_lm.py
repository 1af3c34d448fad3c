"""Language models with attention, in three steps: attention, copying, and self-attention. You can stop after each.

    from attention_lm import AttentionLM
    model = AttentionLM(vocab_size=10000, embedding_size=200, hidden_size=200)
    log_probs, state = model(input, state)

**1. Attention** (`--model attention --no-copy`). An LSTM has to keep all that it has read in two vectors. Here an
encoder LSTM reads the text, and all its hidden states m_j are kept in a memory. A decoder LSTM reads the same text. At
each step it compares its own state with those in the memory, and sees their mean, weighted by how well they agree:

    m_t       = LSTM(x_t)                           the encoder
    h', c'    = LSTMCell([x, context], (h, c))      the decoder is fed the context of the step before
    score_j   = m_j . (h' + m_t) - decay log(max(t - j, n))
    a         = softmax(score)                      a weight for each position of the memory
    context'  = sum_j a_j m_j                       what the decoder sees by looking back; m_0 is explained below
    r         = Linear([h', context', m_t])         the features: what the output layer reads
    P(w)      = softmax(Linear(r))_w                the probability of the next token

The score is a dot product. h' comes from another LSTM and at first has nothing in common with the states in the memory,
so the encoder's newest state m_t is added to it. `decay`, a learned number, makes positions far back count less; those
nearer than n steps count as n steps away. At step t the positions t-M to t-1 are visible. M is the size of the memory.

The first position of the memory, j = 0, is the *sentinel*, a learned vector with a learned score of its own beside its
dot product. It is always visible and has no decay, or it could not outweigh thousands of positions. A model that does
not want to look back looks at it.

**2. Copying** (`--model attention`). m_j is the encoder's state after it has read the token x_j, and x_{j+1} came
next. If the text is in the same situation now, the same token may come next again:

    P(w) = a_0 softmax(Linear(r))_w + sum_{j > 0} a_j [x_{j+1} = w]     the brackets are 1 if the tokens are equal

This is a mixture of two distributions: the model generates a token with probability a_0, the weight of the sentinel,
and copies one with probability 1 - a_0. For example, after "the cat sat . but the":

    position j            1     2     3     4     5     6
    token x_j             the   cat   sat   .     but   the
    next token x_{j+1}    cat   sat   .     but   the

The model is in the situation in which it was at position 1, so it may copy the next token of position 1, "cat". A
position is masked if its next token is the token just read, because to copy it would double that token. So the position
just before is always masked.

**3. Self-attention** (`--model self-attention`). There is no encoder: m_t is the state h' of the decoder itself, and
score_j = m_j . h' - decay log(max(t - j, n)). The context is not fed, so all steps can look back at once.

Attention and the fed context are those of Bahdanau et al. (2015), the dot product and the Linear over states and
context those of Luong et al. (2015). The mixture with a sentinel is that of Merity et al. (2017), the memory of states
with the tokens that came next that of Grave et al. (2017); see also See et al. (2017), and Cheng et al. (2016) for an
LSTM that attends to its own states.

Sizes in comments: T steps, B streams, V words, E embedding, H hidden units, R features, L layers, K positions carried
from earlier calls, S = K + T positions, and 1 + S with the sentinel.
"""

import argparse

from data import at_least  # before torch, see there
import torch
from torch import nn

from lstm_cell import LSTM, LSTMCell
from lstm_lm import LSTMLM, LanguageModel

# --- 1. Attention ----------------------------------------------------------------------------


def attention(query, memory, bias):
    """Dot-product attention: each query sees the mean of the memory, weighted by how well it agrees with the positions.

    query (B, T, H).  memory: a list of its parts, (B, N_1, H), (B, N_2, H) and so on, N positions in all. They stay
    apart because those of earlier calls need no gradient: a training step then takes a fifth less time.
    bias (B, T, N): is added to the scores; -inf masks a position.
    Returns context (B, T, H) and weights (B, T, N), which sum to 1 at each step.
    """
    with torch.autocast(query.device.type, enabled=False):  # bfloat16 has too few digits for scores
        scores = torch.cat([torch.bmm(query, part.transpose(1, 2)) for part in memory], dim=-1)  # (B, T, N)
        weights = torch.softmax(scores + bias, dim=-1)  # (B, T, N)
        parts = weights.split([part.shape[1] for part in memory], dim=-1)  # (B, T, N_1), (B, T, N_2), ...
        context = sum(torch.bmm(a, part) for a, part in zip(parts, memory))  # (B, T, H)
    return context, weights


class AttentionLM(LanguageModel):
    """An encoder and a decoder LSTM. The decoder looks back at the encoder's states, and can copy what came next.

    num_layers: L, of the encoder.
    memory_size: M outside training. In training it is at most 200.
    copy: whether the model copies.
    near: n outside training. In training n is half of this: see `bias`.
    The other arguments are those of `LanguageModel`.  Raises ValueError for a size below 1.

    The state is a tuple: the tokens of the last K <= M positions (K, B), their states m (K, B, H), then h and c of the
    encoder (L, B, H), and context, h and c of the decoder (1, B, H).
    """

    def __init__(
        self, vocab_size, embedding_size, hidden_size, num_layers=1, memory_size=2000, copy=True, near=64, **options
    ):
        super().__init__(vocab_size, embedding_size, hidden_size, **options)
        if min(memory_size, near) < 1:
            raise ValueError(f"memory_size is {memory_size}, near {near}: expected 1 or more")
        self.num_layers, self.copy, self.near = num_layers, copy, near
        self.memory_size, self.memory_size_in_training = memory_size, min(memory_size, 200)
        self.sentinel = nn.Parameter(torch.zeros(hidden_size))
        # All other scores are near 0 at first. With 2 the sentinel has the weight of e^2, about 7, positions. With 0, a
        # model that copies would at first hardly train its output layer.
        self.sentinel_bias = nn.Parameter(torch.full((1,), 2.0))
        self.decay = nn.Parameter(torch.zeros(1))
        self.add_networks()

    def add_networks(self):
        """Make the LSTMs and the Linear to the features."""
        E, H = self.embedding_size, self.hidden_size
        self.encoder = LSTM(E, H, self.num_layers, dropout=self.dropout)
        self.decoder = LSTMCell(E + H, H)
        self.readout = nn.Linear(3 * H, self.feature_size)

    def start(self, B):
        """The state before anything has been read: an empty memory, and zeros."""
        zeros, L, H = self.output.weight.new_zeros, self.num_layers, self.hidden_size
        networks = zeros(L, B, H), zeros(L, B, H), zeros(1, B, H), zeros(1, B, H), zeros(1, B, H)
        return zeros(0, B).long(), zeros(0, B, H), *networks

    def attend(self, input, state=None):
        """Read input int64 (T, B) and look back at each step.

        Returns features (T, B, R), weights (T, B, 1 + S), next_tokens int64 (S, B), next state. weights[..., 0] is the
        weight of the sentinel. The next token of the last position is not known yet, and no step sees this position.
        """
        tokens, carried, h, c, *decoder_state = self.start(input.shape[1]) if state is None else state
        M = self.memory_size_in_training if self.training else self.memory_size
        tokens = torch.cat((tokens, input))  # (S, B)
        next_tokens = torch.cat((tokens[1:], tokens[-1:]))  # (S, B)
        bias = self.bias(input, next_tokens, M)  # (B, T, 1 + S)
        x = self.embed(input)  # (T, B, E)
        m, (h, c) = self.encode(x, (h, c))  # (T, B, H)
        sentinel = self.sentinel.expand(input.shape[1], 1, -1)  # (B, 1, H)
        memory = [sentinel, carried.transpose(0, 1).contiguous(), m.transpose(0, 1).contiguous()]  # 1 + K + T positions
        features, weights, decoder_state = self.decode(x, m, memory, bias, decoder_state)
        carried = torch.cat((carried, m))  # (S, B, H)
        return features, weights, next_tokens, (tokens[-M:], carried[-M:], h, c, *decoder_state)

    def bias(self, input, next_tokens, M):
        """What is added to the scores: minus the decay, or -inf where a position is masked.

        input int64 (T, B), next_tokens int64 (S, B), M the size of the memory -> (B, T, 1 + S), the sentinel's first.
        """
        # A model that prefers the nearest positions repeats the phrase it has just written. With a larger n outside
        # training, its texts repeat themselves about as often as real ones do.
        n = max(1, self.near // 2) if self.training else self.near
        position = torch.arange(len(next_tokens), device=input.device)  # (S,)
        distance = position[-len(input) :, None] - position  # (T, S), t - j; below 0 for positions yet to come
        masked = (distance <= 0) | (distance > M)  # (T, S)
        if self.copy:  # the token just read is never copied
            masked = masked | (next_tokens.t()[:, None, :] == input.t()[:, :, None])  # (B, T, S)
        bias = -self.decay * distance.clamp_min(n).to(self.decay.dtype).log()  # (T, S)
        bias = bias.expand(input.shape[1], -1, -1).masked_fill(masked, -torch.inf)  # (B, T, S)
        return torch.cat((self.sentinel_bias.expand(*bias.shape[:2], 1), bias), dim=-1)  # (B, T, 1 + S)

    def encode(self, x, state):
        """x (T, B, E) and (h, c), each (L, B, H) -> the states m (T, B, H) for the memory, the next (h, c)."""
        return self.encoder(x, state)

    def decode(self, x, m, memory, bias, decoder_state):
        """The decoder reads x (T, B, E) step by step, with what it sees in the memory.

        The memory has positions of steps that the decoder has not come to yet; bias (B, T, 1 + S) masks them.
        Returns features (T, B, R), weights (T, B, 1 + S) and the next context, h and c, (1, B, H) each.
        """
        context, h, c = (part[0] for part in decoder_state)  # (B, H) each
        hs, contexts, weights = [], [], []
        for t in range(len(x)):
            h, c = self.decoder(torch.cat((x[t], context), dim=-1), (h, c))  # (B, H) each
            query = h + m[t]  # (B, H)
            context, a = attention(query[:, None], memory, bias[:, t : t + 1])  # (B, 1, H), (B, 1, 1 + S)
            context = context[:, 0]  # (B, H)
            hs.append(h)
            contexts.append(context)
            weights.append(a)
        seen = torch.stack(hs), torch.stack(contexts), m  # (T, B, H) each
        features = self.readout(torch.cat(seen, dim=-1))  # (T, B, R)
        return features, torch.cat(weights, dim=1).transpose(0, 1), (context[None], h[None], c[None])

    def features(self, input, state=None):
        """As `LSTMLM.features`: int64 (T, B) -> (T, B, R), next state."""
        features, _, _, state = self.attend(input, state)
        return features, state

    # --- 2. Copying ------------------------------------------------------------------------

    def forward(self, input, state=None, temperature=1.0):
        """As `LanguageModel.forward`. The temperature acts on what is generated, not on what is copied."""
        features, weights, next_tokens, state = self.attend(input, state)
        return self.mixture(features, weights, next_tokens, temperature), state

    def mixture(self, features, weights, next_tokens, temperature=1.0):
        """What `attend` returned -> log-probabilities (T, B, V), generated and copied."""
        log_probs = self.log_softmax(features, temperature)  # (T, B, V)
        if not self.copy:
            return log_probs
        p = weights[..., :1] * log_probs.exp()  # (T, B, V), generated
        copied = weights[..., 1:]  # (T, B, S)
        words = next_tokens.t().expand(copied.shape)  # (T, B, S), the same at all steps
        return log(p.scatter_add(-1, words, copied))  # adds copied[t, b, j] to p[t, b, words[t, b, j]]

    def loss(self, input, target, state=None):
        """As `LanguageModel.loss`, but the mixture is computed for the target alone, which is faster."""
        if not self.copy or input.shape != target.shape:
            return super().loss(input, target, state)
        features, weights, next_tokens, state = self.attend(input, state)
        generated = self.log_softmax(features).gather(-1, target[..., None])[..., 0].exp()  # (T, B)
        copied = (weights[..., 1:] * (next_tokens.t() == target[..., None])).sum(dim=-1)  # (T, B)
        return -log(weights[..., 0] * generated + copied).mean(), state


def log(p):
    """The logarithm of probabilities, finite also where p is too small for a float."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


# --- 3. Self-attention --------------------------------------------------------------------------


class SelfAttentionLM(AttentionLM):
    """One LSTM that looks back at its own states. The arguments are those of `AttentionLM`.

    The state is a tuple: tokens (K, B), states m (K, B, H), and h and c of the LSTM (L, B, H).
    """

    def add_networks(self):
        """Make the LSTM and the Linear to the features."""
        self.decoder = LSTM(self.embedding_size, self.hidden_size, self.num_layers, dropout=self.dropout)
        self.readout = nn.Linear(2 * self.hidden_size, self.feature_size)

    def start(self, B):
        """The state before anything has been read."""
        return super().start(B)[:4]

    def encode(self, x, state):
        """The states for the memory are those of the decoder, which needs no context and has read all of x."""
        return self.decoder(x, state)

    def decode(self, x, m, memory, bias, decoder_state):
        """As `AttentionLM.decode`, for all steps at once."""
        context, weights = attention(m.transpose(0, 1), memory, bias)  # (B, T, H), (B, T, 1 + S)
        features = self.readout(torch.cat((m, context.transpose(0, 1)), dim=-1))  # (T, B, R)
        return features, weights.transpose(0, 1), decoder_state


# --- The models by name, and their flags ------------------------------------------------------


def shared_options(settings):
    """The settings that all models take, as arguments of `LSTMLM`."""
    names = ("embedding_size", "hidden_size", "num_layers", "dropout", "tie_weights")
    return {**{name: settings[name] for name in names}, "one_hot": settings["input"] == "one-hot"}


def build_lstm(vocab_size, settings):
    """The entries "lstm" and "cell" of `MODELS`."""
    return LSTMLM(vocab_size, core=settings["model"], **shared_options(settings))


def build_attention(vocab_size, settings):
    """The entries "attention" and "self-attention" of `MODELS`."""
    kind = SelfAttentionLM if settings["model"] == "self-attention" else AttentionLM
    return kind(vocab_size, memory_size=settings["memory_size"], copy=settings["copy"], **shared_options(settings))


# Each entry takes V and a dict of settings, the flags by name, and returns a LanguageModel. For a model of your own,
# add an entry: train.py and sample.py can then do all with it that they do with these.
MODELS = {"lstm": build_lstm, "cell": build_lstm, "attention": build_attention, "self-attention": build_attention}


def add_model_flags(parser):
    """The flags that `shared_options` and the entries of `MODELS` read. `set_sizes` completes them."""
    flag = parser.add_argument_group("model").add_argument
    size, yes_or_no = at_least(1), argparse.BooleanOptionalAction
    flag("--model", choices=list(MODELS), default="cell", help="(%(default)s)")
    flag("--input", choices=["embedding", "one-hot"], default="embedding", help="(%(default)s)")
    flag("--hidden-size", metavar="N", type=size, help="units in a layer (256; attention: 190; self-attention: 240)")
    flag("--embedding-size", metavar="N", type=size, help="numbers in a token's vector (the hidden size)")
    flag("--layers", metavar="N", type=size, default=1, dest="num_layers", help="stacked LSTMs (%(default)s)")
    flag("--dropout", metavar="X", type=at_least(0, float), default=0.3, help="part set to 0, below 1 (%(default)s)")
    flag("--tie-weights", action=yes_or_no, help="one matrix for embedding and output (yes, unless one-hot)")
    flag = parser.add_argument_group("attention").add_argument
    flag("--copy", action=yes_or_no, default=True, help="mix in what it copies (yes)")
    reach = "how many steps back it sees in reading; in training at most 200 (%(default)s)"
    flag("--memory", metavar="N", type=size, default=2000, dest="memory_size", help=reach)


def set_sizes(settings):
    """Set the sizes that are None to their defaults: all models have as many parameters on python-docs, within 2%."""
    hidden_size = {"attention": 190, "self-attention": 240}.get(settings["model"], 256)
    settings["hidden_size"] = settings["hidden_size"] or hidden_size
    settings["embedding_size"] = settings["embedding_size"] or settings["hidden_size"]
    if settings["tie_weights"] is None:
        settings["tie_weights"] = settings["input"] == "embedding"
