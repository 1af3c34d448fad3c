"""A language model on an LSTM: tokens (the numbers of words) in, log-probabilities of the next token out.

    from lstm_lm import LSTMLM
    model = LSTMLM(vocab_size=10000, embedding_size=200, hidden_size=200, core="cell")
    log_probs, state = model(input, state)

    input (T, B)  ->  embedding or one-hot (T, B, E)  ->  LSTM (T, B, H)  ->  Linear (T, B, V)  ->  log_softmax

The model follows Mikolov et al. (2010) and Zaremba et al. (2014). As in the latter paper, dropout is applied to the
embedding, between layers and before the output layer, and never to what an LSTM passes to its own next step. (One-hot
input has no dropout.) With tied weights, one matrix is both the embedding and the weight of the last Linear (Press and
Wolf, 2017; Inan et al., 2017).

The LSTM is `torch.nn.LSTM` (core="lstm") or this project's own (core="cell"). Both have the same parameters under the
same names, so a checkpoint of one opens with the other. Training, evaluation and text generation need only these calls:

    model(input, state, temperature)    log-probabilities (T, B, V) and the next state
    model.loss(input, target, state)    mean of -log P(target), natural logarithm (nats), and the next state

The state is a tuple of tensors whose second dimension is B, or None before anything has been read.

Sizes in comments: T steps, B streams (texts read in parallel), V words, E embedding, H hidden units, L layers, R
features (what the output layer is given: E with tied weights, else H).
"""

import torch.nn.functional as F
from torch import nn

from lstm_cell import LSTM


class LanguageModel(nn.Module):
    """What the models share: the embedding, the output layer, the probabilities and the loss.

    A subclass adds `features`, the layers between.

    vocab_size, embedding_size, hidden_size: V, E and H.
    dropout: the probability with which a unit is set to zero in training.
    one_hot: whether a token is read as a vector of V numbers with a single 1, so that E is V, and not as its embedding,
    a learned vector.
    tie_weights: whether the output layer shares the matrix of the embedding.
    Raises ValueError if it cannot, and for a dropout outside 0 <= dropout < 1.
    """

    def __init__(self, vocab_size, embedding_size, hidden_size, dropout=0.0, one_hot=False, tie_weights=False):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}: give at least 0 and less than 1")
        if tie_weights and one_hot:
            raise ValueError("tied weights need --input embedding: one-hot input has no matrix to share")
        self.vocab_size, self.hidden_size, self.dropout, self.one_hot = vocab_size, hidden_size, dropout, one_hot
        self.embedding_size = vocab_size if one_hot else embedding_size
        self.feature_size = embedding_size if tie_weights else hidden_size
        self.output = nn.Linear(self.feature_size, vocab_size)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        if not one_hot:
            self.embedding = nn.Embedding(vocab_size, embedding_size)
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        if tie_weights:
            self.embedding.weight = self.output.weight

    def embed(self, input):
        """int64 (T, B) -> (T, B, E)."""
        if self.one_hot:
            return F.one_hot(input, self.vocab_size).to(self.output.weight.dtype)  # (T, B, V)
        return F.dropout(self.embedding(input), self.dropout, self.training)  # (T, B, E)

    def log_softmax(self, features, temperature=1.0):
        """What `features` returns, (T, B, R) -> log-probabilities (T, B, V).

        Their dtype is that of the weights, also under autocast, in which torch computes products in 16 bits.
        """
        logits = self.output(F.dropout(features, self.dropout, self.training))  # (T, B, V)
        if temperature != 1:  # the largest logit becomes 0, in 64 bits, so that a tiny temperature gives no nan
            logits = (logits - logits.amax(dim=-1, keepdim=True)).double()  # (T, B, V)
            logits = logits / temperature
        return F.log_softmax(logits, dim=-1, dtype=self.output.weight.dtype)  # (T, B, V)

    def forward(self, input, state=None, temperature=1.0):
        """input int64 (T, B), state as returned before or None -> log-probabilities (T, B, V), next state.

        temperature: the logits, which enter the softmax, are divided by it, for drawing a text.
        """
        features, state = self.features(input, state)  # (T, B, R)
        return self.log_softmax(features, temperature), state

    def loss(self, input, target, state=None):
        """input and target int64 (T, B) -> the mean of -log P(target) in nats, next state.

        Raises ValueError if their shapes differ.
        """
        if input.shape != target.shape:
            raise ValueError(f"input has shape {tuple(input.shape)}, target {tuple(target.shape)}: they must be equal")
        log_probs, state = self(input, state)  # (T, B, V)
        return F.nll_loss(log_probs.flatten(0, 1), target.flatten()), state


class LSTMLM(LanguageModel):
    """Embedding or one-hot -> LSTM -> Linear -> log_softmax.

    hidden_size, num_layers: H and L.  core: "lstm" for `torch.nn.LSTM`, "cell" for `lstm_cell.LSTM`.
    With tied weights and H different from E, a Linear from H to E stands before the output layer.
    The other arguments are those of `LanguageModel`.  The state is (h, c), each (L, B, H).
    Raises ValueError for another core.
    """

    def __init__(self, vocab_size, embedding_size, hidden_size, num_layers=1, core="cell", **options):
        super().__init__(vocab_size, embedding_size, hidden_size, **options)
        if core not in ("lstm", "cell"):
            raise ValueError(f'core is {core!r}: expected "lstm" or "cell"')
        kind = nn.LSTM if core == "lstm" else LSTM
        between_layers = self.dropout if num_layers > 1 else 0.0  # nn.LSTM warns of dropout with one layer
        self.core = kind(self.embedding_size, hidden_size, num_layers, dropout=between_layers)
        self.project = nn.Identity() if self.feature_size == hidden_size else nn.Linear(hidden_size, self.feature_size)

    def features(self, input, state=None):
        """int64 (T, B) -> (T, B, R), next state."""
        h, state = self.core(self.embed(input), state)  # (T, B, H)
        return self.project(h), state
