"""The LSTM, written out: its gates, one step, and the loop over time.

    from lstm_cell import LSTM, LSTMCell      # used like torch.nn.LSTM (time first) and torch.nn.LSTMCell

An LSTM reads a sequence one vector x at a time. It carries two vectors from step to step: the cell state c is its
memory, and the hidden state h is what it shows of that memory (Hochreiter and Schmidhuber, 1997; the forget gate is
from Gers et al., 2000). One step computes the new states, h' and c', from x, h and c:

    z  = W_ih x + b_ih + W_hh h + b_hh      four blocks: z_i, z_f, z_g, z_o
    i  = sigmoid(z_i)                       input gate: how much of g to write
    f  = sigmoid(z_f)                       forget gate: how much of c to keep
    g  = tanh(z_g)                          the candidate: what to write
    o  = sigmoid(z_o)                       output gate: how much of the memory to show
    c' = f * c + i * g                      * multiplies element by element
    h' = o * tanh(c')

The function `gates` computes all but the first line. `LSTMCell` is one step, and `LSTM` is the loop that the models
train with; both call `gates`. The parameters have the names, shapes, order and, with the same seed, the initial values
of torch's modules. The last chapter derives the gradient by hand; no model uses it, because autograd finds the same.

Sizes in comments: T steps, B sequences in parallel, I inputs, H hidden units, L layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def gates(z, c):
    """The gates and the new states: z (..., 4H) and c (..., H) -> h' and c', (..., H) each."""
    z_i, z_f, z_g, z_o = z.chunk(4, dim=-1)  # (..., H) each
    i = torch.sigmoid(z_i)  # (..., H)
    f = torch.sigmoid(z_f)  # (..., H)
    g = torch.tanh(z_g)  # (..., H)
    o = torch.sigmoid(z_o)  # (..., H)
    c = f * c + i * g  # (..., H)
    h = o * torch.tanh(c)  # (..., H)
    return h, c


class LSTMCell(nn.Module):
    """One step of an LSTM, like `torch.nn.LSTMCell`.

    input_size, hidden_size: I and H.  bias: whether b_ih and b_hh exist.
    Parameters: weight_ih (4H, I), weight_hh (4H, H), bias_ih and bias_hh (4H,). Without bias, both are None.
    """

    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        add_parameters(self, input_size, hidden_size, bias)

    def forward(self, x, state=None):
        """x (B, I) or (I,), state = (h, c), each (B, H) or (H,), or None for zeros -> the next (h, c).

        Raises ValueError for a wrong number of dimensions of x and RuntimeError for a wrong shape.
        """
        if x.dim() not in (1, 2):
            raise ValueError(f"LSTMCell takes x of shape (B, I) or (I,), got {tuple(x.shape)}")
        h, c = checked_state(state, x, self.input_size, (*x.shape[:-1], self.hidden_size))
        z = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)  # (B, 4H)
        return gates(z, c)


class LSTM(nn.Module):
    """`LSTMCell` over time and in layers, like `torch.nn.LSTM` (time first, one direction, no projection).

    input_size, hidden_size, num_layers: I, H and L.  bias: whether b_ih and b_hh exist.
    dropout: the probability, 0 <= dropout < 1, with which each output of a layer, but not of the last, is set to zero
    in training.
    Raises ValueError for a size below 1 or a dropout outside the range.
    """

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, *, dropout=0.0):
        super().__init__()
        if num_layers < 1 or not 0 <= dropout < 1:
            raise ValueError(f"num_layers is {num_layers}, dropout {dropout}: expected 1 or more, and 0 <= dropout < 1")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.dropout = bias, dropout
        for layer in range(num_layers):
            add_parameters(self, hidden_size if layer else input_size, hidden_size, bias, f"_l{layer}")

    def extra_repr(self):
        """What `print` shows between the brackets."""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, dropout={self.dropout}"

    def forward(self, x, state=None):
        """x (T, B, I) or (T, I), state = (h, c), each (L, B, H) or (L, H), or None for zeros.

        Returns the last layer's h' of all steps, (T, B, H) or (T, H), and the next (h, c).
        Raises TypeError for anything but a tensor, such as a PackedSequence, and RuntimeError for a wrong shape.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"LSTM takes a tensor, got {type(x).__name__}")
        if x.dim() not in (2, 3) or len(x) == 0:
            raise RuntimeError(f"LSTM takes x of shape (T, B, I) or (T, I) with T > 0, got {tuple(x.shape)}")
        h, c = checked_state(state, x, self.input_size, (self.num_layers, *x.shape[1:-1], self.hidden_size))
        last = []
        for layer in range(self.num_layers):
            W_ih, W_hh = getattr(self, f"weight_ih_l{layer}"), getattr(self, f"weight_hh_l{layer}")
            b_ih, b_hh = getattr(self, f"bias_ih_l{layer}"), getattr(self, f"bias_hh_l{layer}")
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)  # (T, B, H)
            # This part of z needs no h, so it is one product for all steps. (With --dtype bfloat16 it has 16 bits.)
            zx = F.linear(x, W_ih, b_ih + b_hh if self.bias else None).to(c.dtype)  # (T, B, 4H)
            h_t, c_t, outputs = h[layer], c[layer], []  # (B, H) each
            for zx_t in zx.unbind():  # step by step
                z = zx_t + F.linear(h_t, W_hh)  # (B, 4H)
                h_t, c_t = gates(z, c_t)  # (B, H) each
                outputs.append(h_t)
            last.append((h_t, c_t))
            x = torch.stack(outputs)  # (T, B, H), what the next layer reads
        h, c = (torch.stack(states) for states in zip(*last))  # (L, B, H) each
        return x, (h, c)


def add_parameters(module, input_size, hidden_size, bias, suffix=""):
    """Give a module the parameters of one layer, random numbers between -1/sqrt(H) and 1/sqrt(H), as in torch."""
    if input_size < 1 or hidden_size < 1:
        raise ValueError(f"input_size is {input_size}, hidden_size {hidden_size}: expected 1 or more")
    bound, rows = 1 / math.sqrt(hidden_size), 4 * hidden_size
    shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size), "bias_ih": (rows,), "bias_hh": (rows,)}
    for name, shape in shapes.items():
        exists = bias or name.startswith("weight")
        parameter = nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) if exists else None
        module.register_parameter(name + suffix, parameter)


def checked_state(state, x, input_size, shape):
    """The (h, c) to start from, zeros for None.  Raises RuntimeError for a wrong size of x, or not this shape."""
    if x.shape[-1] != input_size:
        raise RuntimeError(f"x has shape {tuple(x.shape)}, expected {input_size} as the last size")
    if state is None:
        return x.new_zeros(shape), x.new_zeros(shape)
    is_pair = isinstance(state, (tuple, list)) and len(state) == 2
    if not is_pair or any(getattr(part, "shape", None) != shape for part in state):
        raise RuntimeError(f"the state must be a pair (h, c) of tensors of shape {tuple(shape)}")
    return state


# --- Backpropagation through time, by hand -------------------------------------------------
#
# Write dv for the derivative of the loss with respect to v. From the last step to the first:
#
#     dh' = (from the loss, or the layer above) + (dh of the next step)    because h' is the h of the next step
#     dc' = (dc of the next step) + dh' * o * (1 - tanh(c')^2)             because h' depends on c'
#     dz_i = dc' * g * i * (1 - i)                                         i * (1 - i) is the slope of the sigmoid
#     dz_f = dc' * c * f * (1 - f)
#     dz_g = dc' * i * (1 - g^2)                                           1 - g^2 is the slope of the tanh
#     dz_o = dh' * tanh(c') * o * (1 - o)
#     dh = W_hh^T dz                                                       part of dh' of the step before
#     dc = dc' * f                                                         part of dc' of the step before
#     dW_hh = sum over steps and sequences of dz h^T
#
# The line dc = dc' * f has neither a matrix nor a slope. So while f stays near 1, the gradient survives many steps.


def backward(W_hh, z, h, c, dh_out):
    """The gradients of one layer, from the values of a forward pass -> dz (T, B, 4H), dW_hh (4H, H).

    W_hh (4H, H).  z (T, B, 4H).  h, c (T + 1, B, H): h[t] and c[t] enter step t, so h[0] and c[0] are the first state.
    dh_out (T, B, H): the derivative of the loss with respect to each h', without what comes from the next step.
    """
    dz, dW_hh = torch.zeros_like(z), torch.zeros_like(W_hh)
    dh, dc = torch.zeros_like(h[0]), torch.zeros_like(c[0])  # nothing comes from a step after the last
    for t in reversed(range(len(z))):
        z_i, z_f, z_g, z_o = z[t].chunk(4, dim=-1)  # (B, H) each
        i, f, o = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.sigmoid(z_o)  # (B, H) each
        g, tanh_c = torch.tanh(z_g), torch.tanh(c[t + 1])  # (B, H) each
        dh = dh_out[t] + dh  # dh' (B, H)
        dc = dc + dh * o * (1 - tanh_c**2)  # dc' (B, H)
        dz_i = dc * g * i * (1 - i)  # (B, H)
        dz_f = dc * c[t] * f * (1 - f)  # (B, H)
        dz_g = dc * i * (1 - g**2)  # (B, H)
        dz_o = dh * tanh_c * o * (1 - o)  # (B, H)
        dz[t] = torch.cat((dz_i, dz_f, dz_g, dz_o), dim=-1)  # (B, 4H)
        dW_hh += dz[t].t() @ h[t]  # (4H, H)
        dh = dz[t] @ W_hh  # dh = W_hh^T dz (B, H), for the step before
        dc = dc * f  # dc (B, H), for the step before
    return dz, dW_hh
