"""The LSTM, written out: one step, the loop over time, and a faster form of the same.

    from lstm_cell import LSTM, LSTMCell      # drop-ins for torch.nn.LSTM (time first) and torch.nn.LSTMCell

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

The file begins with these equations and a loop, `LSTMCell` and `unroll`. `LSTM`, which the models use, computes the
same faster, in one layer or more: skip it on a first reading. (The decoder of the model with an encoder uses
`LSTMCell`.) The parameters have the names, shapes, order and, from one seed, the initial values of torch's modules:
random numbers between -1/sqrt(H) and 1/sqrt(H).

Sizes in comments: T steps, B sequences in parallel, I inputs, H hidden units, L layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


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

        Raises ValueError for a wrong number of dimensions and RuntimeError for wrong sizes.
        """
        h, c = checked_state(self, x, state)
        z = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)  # (B, 4H)
        z_i, z_f, z_g, z_o = z.chunk(4, dim=-1)  # (B, H) each
        i, f, o = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.sigmoid(z_o)  # (B, H) each
        g = torch.tanh(z_g)  # (B, H)
        c = f * c + i * g  # (B, H)
        h = o * torch.tanh(c)  # (B, H)
        return h, c


def unroll(cell, x, state=None):
    """Run an LSTMCell over a sequence: x (T, B, I) -> the hidden states of all steps (T, B, H), last (h, c)."""
    hidden_states = []
    for x_t in x:
        state = cell(x_t, state)
        hidden_states.append(state[0])
    return torch.stack(hidden_states), state


def dropout(x, p, training=True, locked=False):
    """`F.dropout`: set each element to zero with probability p and divide the others by 1 - p.

    locked: x is (T, B, ...) and loses the same elements at all T steps (Gal and Ghahramani, 2016).
    On a CPU it takes less than half the time of F.dropout, because it draws its random numbers by `torch.rand`.
    """
    if not training or p == 0:
        return x
    shape = x[:1].shape if locked else x.shape
    return x * (torch.rand(shape, device=x.device) >= p).to(x.dtype).div_(1 - p)


# --- The same, faster: skip this on a first reading ----------------------------------------
#
# Autograd would differentiate `unroll` correctly, but it would compute a gradient of the shape of W_hh at every step,
# and add them up. `Recurrence` computes the gradients without it, by backpropagation through time. Write dv for the
# derivative of the loss with respect to v. At each step, from the last to the first:
#
#     dh' = (from the layer above, or the loss) + (dh of the next step)       because h' is the h of the next step
#     dc' = (dc of the next step) + dh' * o * (1 - tanh(c')^2)                because h' depends on c'
#     dz_i = dc' * g * i * (1 - i)                                            i * (1 - i) is the slope of the sigmoid
#     dz_f = dc' * c * f * (1 - f)
#     dz_g = dc' * i * (1 - g^2)                                              1 - g^2 is the slope of the tanh
#     dz_o = dh' * tanh(c') * o * (1 - o)
#     dh = W_hh^T dz                                                          part of dh' of the step before
#     dc = dc' * f                                                            part of dc' of the step before
#     dW_hh = sum over steps and sequences of dz h^T                          one matrix product, after the loop
#
# The line dc = dc' * f has neither a matrix nor a slope. So while f stays near 1, the gradient survives many steps.
#
# Only what needs the result of the neighbouring step is inside the two loops. All else is computed for all steps at
# once: the product W_ih x before the loop, and in backward the factors that dh' and dc' are multiplied by. Under
# autocast W_hh has 16 bits: dz is converted to its dtype before the product, and the result back.


class Recurrence(torch.autograd.Function):
    """One layer over all steps: what `unroll` does, given zx = W_ih x + b_ih + b_hh. Autograd differentiates zx."""

    @staticmethod
    def forward(ctx, zx, h, c, W_hh):
        """zx (T, B, 4H), h and c (B, H), W_hh (4H, H) -> h' of all steps (T, B, H), last h' (B, H), last c' (B, H).

        The products with W_hh are computed in the dtype of zx, which has 16 bits under autocast.
        """
        T, (B, H) = len(zx), h.shape
        W_hh = W_hh.to(zx.dtype)
        gates = zx.to(c.dtype, copy=True)  # (T, B, 4H): at step t, zx becomes z, then i, f, g, o
        hs, cs, tanh_cs = (c.new_empty(steps, B, H) for steps in (T + 1, T + 1, T))  # hs[t] and cs[t] enter step t
        hs[0], cs[0] = h, c
        for t in range(T):
            z = gates[t]  # (B, 4H), a view: what is done to it and to its parts is done to gates
            z += F.linear(hs[t].to(zx.dtype), W_hh)
            i_and_f, g, o = z.split([2 * H, H, H], dim=-1)
            i, f = i_and_f.sigmoid_().chunk(2, dim=-1)  # (B, H) each; one call is faster than two
            g.tanh_()
            o.sigmoid_()
            torch.addcmul(f * cs[t], i, g, out=cs[t + 1])  # c' = f * c + i * g
            torch.tanh(cs[t + 1], out=tanh_cs[t])
            torch.mul(o, tanh_cs[t], out=hs[t + 1])  # h' = o * tanh(c')
        ctx.save_for_backward(W_hh, gates, hs, cs, tanh_cs)
        return hs[1:], hs[-1].clone(), cs[-1].clone()  # what is returned must not share memory

    @staticmethod
    @torch.autograd.function.once_differentiable  # autograd does not record what happens in here
    def backward(ctx, dhs, dh, dc):
        """dhs (T, B, H), dh and dc of the last state -> dzx (T, B, 4H), dh and dc of the first, dW_hh (4H, H)."""
        W_hh, gates, hs, cs, tanh_cs = ctx.saved_tensors
        T, B, H = dhs.shape
        i, f, g, o = gates.chunk(4, dim=-1)  # (T, B, H) each
        dc_per_dh = o * (1 - tanh_cs**2)  # (T, B, H), what dh' is multiplied by to give its part of dc'
        dz_per_dh = tanh_cs * o * (1 - o)  # (T, B, H), and to give dz_o
        # (T, B, 3, H), what dc' is multiplied by to give dz_i, dz_f and dz_g
        dz_per_dc = torch.stack((g * i * (1 - i), cs[:-1] * f * (1 - f), i * (1 - g**2)), dim=2)
        dz = torch.empty(T, B, 4, H, dtype=gates.dtype, device=gates.device)
        for t in reversed(range(T)):  # dh and dc come from the step after
            dh = dhs[t] + dh  # dh' (B, H)
            dc = torch.addcmul(dc, dh, dc_per_dh[t])  # dc' = dc + dh' * dc_per_dh (B, H)
            torch.mul(dz_per_dc[t], dc[:, None], out=dz[t, :, :3])
            torch.mul(dz_per_dh[t], dh, out=dz[t, :, 3])
            dh = (dz[t].flatten(1).to(W_hh.dtype) @ W_hh).to(dc.dtype)  # dh = W_hh^T dz (B, H), for the step before
            dc = dc * f[t]  # dc (B, H)
        dz = dz.flatten(2).to(W_hh.dtype)  # (T, B, 4H), which is dzx as well
        dW_hh = dz.flatten(0, 1).t() @ hs[:-1].flatten(0, 1).to(dz.dtype)  # (4H, H)
        return dz, dh, dc, dW_hh


class LSTM(nn.Module):
    """`LSTMCell` over time and in layers, like `torch.nn.LSTM` (time first, one direction, no projection).

    input_size, hidden_size, num_layers: I, H and L.  bias: whether b_ih and b_hh exist.
    dropout: the probability, 0 <= dropout < 1, with which each output of a layer, but not of the last, is set to zero
    in training.  locked_dropout: drop the same units at all steps.  weight_dropout: the probability with which an
    element of W_hh is set to zero, anew at each call (DropConnect: Wan et al., 2013; in LSTMs: Merity et al., 2018).
    torch's module has neither of the last two.
    Raises ValueError for a dropout outside the range.  The gradient cannot be differentiated again.
    """

    def __init__(
        self, input_size, hidden_size, num_layers=1, bias=True, dropout=0.0, locked_dropout=False, weight_dropout=0.0
    ):
        super().__init__()
        if not (0 <= dropout < 1 and 0 <= weight_dropout < 1):
            raise ValueError(f"dropout is {dropout}, weight_dropout {weight_dropout}: expected at least 0 and below 1")
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.dropout, self.locked_dropout, self.weight_dropout = dropout, locked_dropout, weight_dropout
        for layer in range(num_layers):
            add_parameters(self, hidden_size if layer else input_size, hidden_size, bias, f"_l{layer}")

    def forward(self, x, state=None):
        """x (T, B, I) or (T, I), state = (h, c), each (L, B, H) or (L, H), or None for zeros.

        Returns the last layer's h' of all steps, (T, B, H) or (T, H), and the next (h, c).
        Raises RuntimeError for a wrong shape.
        """
        if x.dim() == 2:
            output, (h, c) = self(x[:, None], None if state is None else [part[:, None] for part in state])
            return output[:, 0], (h[:, 0], c[:, 0])
        if x.dim() != 3 or len(x) == 0:
            raise RuntimeError(f"LSTM takes x of shape (T, B, I) or (T, I) with T > 0, got {tuple(x.shape)}")
        T, B, L, H = *x.shape[:2], self.num_layers, self.hidden_size
        zeros = x.new_zeros(L, B, H)
        h, c = (zeros, zeros) if state is None else state
        for name, tensor, *shape in (("x", x, T, B, self.input_size), ("h", h, L, B, H), ("c", c, L, B, H)):
            expect_shape(name, tensor, *shape)
        last_hs, last_cs = [], []
        for layer in range(L):
            W_ih, W_hh = getattr(self, f"weight_ih_l{layer}"), getattr(self, f"weight_hh_l{layer}")
            b_ih, b_hh = getattr(self, f"bias_ih_l{layer}"), getattr(self, f"bias_hh_l{layer}")
            zx = F.linear(x, W_ih, b_ih + b_hh if self.bias else None)  # (T, B, 4H)
            W_hh = dropout(W_hh, self.weight_dropout, self.training)  # (4H, H)
            hs, last_h, last_c = Recurrence.apply(zx, h[layer], c[layer], W_hh)  # (T, B, H), (B, H), (B, H)
            last_hs.append(last_h)
            last_cs.append(last_c)
            x = dropout(hs, self.dropout, self.training and layer < L - 1, self.locked_dropout)  # (T, B, H)
        return x, (torch.stack(last_hs), torch.stack(last_cs))  # (T, B, H), (L, B, H) each


# --- Parameters and checks -----------------------------------------------------------------


def add_parameters(module, input_size, hidden_size, bias, suffix=""):
    """Give a module the parameters of one layer, uniform between -1/sqrt(H) and 1/sqrt(H), as in torch.

    suffix: what torch adds to the names in a layer, for example "_l0"; nothing in a cell.
    """
    bound = 1 / math.sqrt(hidden_size)
    rows = 4 * hidden_size
    shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size), "bias_ih": (rows,), "bias_hh": (rows,)}
    for name, shape in shapes.items():
        exists = bias or name.startswith("weight")
        parameter = nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) if exists else None
        module.register_parameter(name + suffix, parameter)


def checked_state(cell, x, state):
    """The state (h, c) that an LSTMCell starts from, after a check of all shapes. See `LSTMCell.forward`."""
    H = cell.hidden_size
    zeros = x.new_zeros(*x.shape[:-1], H)
    h, c = (zeros, zeros) if state is None else state
    for name, tensor, size in (("x", x, cell.input_size), ("h", h, H), ("c", c, H)):
        if tensor.dim() not in (1, 2):
            raise ValueError(f"LSTMCell takes {name} with 1 or 2 dimensions, got {tensor.dim()}")
        expect_shape(name, tensor, *x.shape[:-1], size)
    return h, c


def expect_shape(name, tensor, *shape):
    """Raise RuntimeError, as torch does, unless the tensor has this shape."""
    if tensor.shape != shape:
        raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
