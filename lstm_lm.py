"""A language model on an LSTM: tokens in, the log-probabilities of the next token out.

    from lstm_lm import LSTMLM
    model = LSTMLM(vocab_size=10000, embedding_size=200, hidden_size=200, core="cell")
    log_probs, state = model(input, state)

    input (T, B)  ->  embedding or one-hot (T, B, E)  ->  LSTM (T, B, H)  ->  Linear (T, B, V)  ->  log_softmax

after Mikolov et al. (2010) and Zaremba et al. (2014), whose dropout it uses: on what enters
and leaves each LSTM, never on what it passes to its own next step. With tied weights the
Linear's matrix is the embedding's (Press and Wolf, 2017; Inan et al., 2017).

The LSTM is `torch.nn.LSTM` (core="lstm") or this project's own (core="cell"). They hold
the same parameters under the same names, so either opens the other's checkpoints.

`LanguageModel` is what every model here shares, and all that training, evaluation and
sampling know of one:

    model(input, state)          log-probabilities (T, B, V) and the state to go on from
    model.loss(input, target, state)    mean cross-entropy in nats, and that state
    state None                   nothing has been read yet

A state is a tuple of tensors; how many and which is the model's own affair.

Sizes in comments: T steps, B streams, V words, E embedding, H hidden units, L layers.
"""

import torch.nn.functional as F
from torch import nn

from lstm_cell import LSTM, dropout, linear


class LanguageModel(nn.Module):
    """The first and the last layer of a language model; a subclass adds `features` between them.

    vocab_size, embedding_size, hidden_size: V, E, H.  dropout: share of units set to zero in training.
    input: "embedding", a learned vector for each token, or "one-hot", the vector of V
    numbers with a single one; its E is V.
    tie_weights: one matrix serves as embedding and output, which needs E = H.
    Raises ValueError for settings that contradict each other.
    """

    def __init__(self, vocab_size, embedding_size, hidden_size, dropout=0.0, input="embedding", tie_weights=False):
        super().__init__()
        self.vocab_size, self.input, self.dropout = vocab_size, input, dropout
        self.output = nn.Linear(hidden_size, vocab_size)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        if input == "one-hot":
            if tie_weights:
                raise ValueError("tied weights need --input embedding: one-hot input has no matrix to share")
            self.embedding_size = vocab_size
        else:
            self.embedding_size = embedding_size
            self.embedding = nn.Embedding(vocab_size, embedding_size)
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
            if tie_weights:
                if embedding_size != hidden_size:
                    raise ValueError(
                        f"tied weights need equal sizes: embedding {embedding_size}, hidden {hidden_size} "
                        "(make them equal, or give --no-tie-weights)"
                    )
                self.embedding.weight = self.output.weight

    def grow(self, progress):
        """Called before each training step with the part of training that is done, 0 to 1; does nothing here."""

    def embed(self, input):
        """int64 (T, B) -> (T, B, E)."""
        if self.input == "one-hot":
            return F.one_hot(input, self.vocab_size).to(self.output.weight.dtype)  # (T, B, V)
        return dropout(self.embedding(input), self.dropout, self.training)  # (T, B, E)

    def log_softmax(self, h):
        """Hidden states (N, H) -> dropout -> log-probabilities (N, V), in the weights' dtype even under autocast."""
        logits = linear(dropout(h, self.dropout, self.training), self.output.weight, self.output.bias)  # (N, V)
        return F.log_softmax(logits, dim=-1, dtype=self.output.weight.dtype)

    def forward(self, input, state=None):
        """input int64 (T, B), state as returned before or None -> log-probabilities (T, B, V), state."""
        h, state = self.features(input, state)  # (T, B, H)
        return self.log_softmax(h.flatten(0, 1)).unflatten(0, input.shape), state

    def loss(self, input, target, state=None):
        """Mean of -log P(target) in nats, target int64 (T, B), and the state: `forward`, scored.

        Where they would take more than 32 MB, the log-probabilities are made and scored some rows at a time: that is
        the most that the C library keeps for reuse, and fresh memory costs more than arithmetic.
        """
        h, state = self.features(input, state)  # (T, B, H)
        rows = max(1, 8_000_000 // self.vocab_size)
        parts = zip(h.flatten(0, 1).split(rows), target.flatten().split(rows))
        total = sum(F.nll_loss(self.log_softmax(h), y, reduction="sum") for h, y in parts)
        return total / target.numel(), state


class LSTMLM(LanguageModel):
    """Embedding or one-hot -> LSTM -> Linear -> log_softmax.

    num_layers: L.  core: "lstm" for `torch.nn.LSTM`, "cell" for `lstm_cell.LSTM`; nothing
    else differs.  Its state is (h, c), each (L, B, H).  The rest: see `LanguageModel`.
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
        core="cell",
    ):
        super().__init__(vocab_size, embedding_size, hidden_size, dropout, input, tie_weights)
        Core = {"lstm": nn.LSTM, "cell": LSTM}[core]
        between = dropout if num_layers > 1 else 0.0  # of a single layer nn.LSTM would warn
        self.core = Core(self.embedding_size, hidden_size, num_layers, dropout=between)

    def features(self, input, state=None):
        """int64 (T, B) -> hidden states (T, B, H), state."""
        return self.core(self.embed(input), state)
