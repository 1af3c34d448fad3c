"""The LSTM, written out: one step, its unrolling over time, and its gradient by hand.

    from lstm_cell import LSTM, LSTMCell      # drop-ins for time-major torch.nn.LSTM and nn.LSTMCell

One step takes an input x, a hidden state h and a cell state c to new states h', c'
(Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000):

    z  = W_ih x + b_ih + W_hh h + b_hh      four quarters, one for each of i, f, g, o
    i  = sigmoid(z_i)                       input gate: how much of g to write
    f  = sigmoid(z_f)                       forget gate: how much of c to keep
    g  = tanh(z_g)                          what could be written
    o  = sigmoid(z_o)                       output gate: how much of c' to show
    c' = f * c + i * g
    h' = o * tanh(c')

`LSTMCell` is this and no more. `LSTM` runs it over a sequence, layer upon layer, and
computes the gradient itself, by backpropagation through time. Write dv for dL/dv. The
loss reaches a step through h' (from the layer above and from the next step) and through
c' (from the next step). From the last step to the first:

    do  = dh' * tanh(c')
    dc' = dc' + dh' * o * (1 - tanh(c')^2)              h' depends on c' too
    di  = dc' * g,   df = dc' * c,   dg = dc' * i
    dz  = di * i (1 - i),  df * f (1 - f),  dg * (1 - g^2),  do * o (1 - o)
    dc  = dc' * f                                       to the step before
    dh  = W_hh^T dz                                     to the step before
    dW_hh = sum over steps of dz h^T                    one product, after the last of them

Autograd would add to dW_hh, a matrix as large as W_hh, at every step; summing inside one
large product is what makes the unrolled LSTM fast. So does the other hoisted product,
W_ih x for all steps at once. dc = dc' * f, without a matrix, is why gradients survive.

Sizes in comments: T steps, B sequences in parallel, I inputs, H hidden units.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def tanh(x):
    """tanh by way of the sigmoid, which torch computes several times faster on a CPU."""
    return 2 * torch.sigmoid(2 * x) - 1


def through_sigmoid(dy, y):
    """The gradient before y = sigmoid(x) from the one after it: dy * y (1 - y)."""
    dx = dy * y
    return dx.addcmul_(dx, y, value=-1)


def through_tanh(dy, y):
    """The gradient before y = tanh(x) from the one after it: dy * (1 - y^2)."""
    return dy.addcmul(dy * y, y, value=-1)


def lstm_step(z, c):
    """The equations above from z on: z (B, 4H), c (B, H) -> h' (B, H), c' (B, H), and (i, f, g, o, tanh c')."""
    z_i, z_f, z_g, z_o = z.to(c.dtype).chunk(4, dim=-1)  # (B, H) each; z is bfloat16 under autocast
    i = torch.sigmoid(z_i)
    f = torch.sigmoid(z_f)
    g = tanh(z_g)
    o = torch.sigmoid(z_o)
    c = f * c + i * g  # (B, H)
    tanh_c = tanh(c)
    h = o * tanh_c  # (B, H)
    return h, c, (i, f, g, o, tanh_c)


# --- One step ----------------------------------------------------------------------------


def add_parameters(module, input_size, hidden_size, bias, suffix=""):
    """Give a module the four parameters of one layer, named, shaped and drawn as torch does."""
    shapes = {"weight_ih": (4 * hidden_size, input_size), "weight_hh": (4 * hidden_size, hidden_size)}
    if bias:
        shapes.update(bias_ih=(4 * hidden_size,), bias_hh=(4 * hidden_size,))
    bound = 1 / math.sqrt(hidden_size)
    for name, shape in shapes.items():
        module.register_parameter(name + suffix, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))


def expect(name, tensor, *shape):
    """Raise RuntimeError, as torch does, unless the tensor has this shape."""
    if tensor.shape != shape:
        raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")


class LSTMCell(nn.Module):
    """One step of an LSTM: a drop-in for `torch.nn.LSTMCell`, parameters and all.

    input_size, hidden_size: I and H.  bias: whether b_ih and b_hh exist.
    """

    def __init__(self, input_size, hidden_size, bias=True):
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        add_parameters(self, input_size, hidden_size, bias)
        if not bias:
            self.bias_ih = self.bias_hh = None

    def forward(self, input, hx=None):
        """input (B, I) or (I,), hx = (h, c) each (B, H) or (H,), zeros if None -> (h', c') likewise.

        Raises ValueError for a wrong number of dimensions, RuntimeError for wrong sizes.
        """
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell takes input of 1 or 2 dimensions, got {input.dim()}")
        if hx is None:
            hx = (input.new_zeros(*input.shape[:-1], self.hidden_size),) * 2
        h, c = hx
        expect("input", input, *input.shape[:-1], self.input_size)
        for name, state in (("h", h), ("c", c)):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell takes {name} of 1 or 2 dimensions, got {state.dim()}")
            expect(name, state, *input.shape[:-1], self.hidden_size)
        z = F.linear(input, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)  # (B, 4H)
        h, c, _ = lstm_step(z, c)
        return h, c


# --- All steps -----------------------------------------------------------------------------


def operand(x, like=None):
    """A matrix (N, K) in the form in which its products are fastest, or in the form of another operand.

    Under autocast that is its lower precision. In float32 on a CPU it is oneDNN's: torch
    multiplies dense float32 matrices with MKL, which on some processors reaches half of
    the speed that oneDNN, the library under `nn.LSTM`, has there. A few rows are not worth
    the conversion.
    """
    if like is not None:
        return x.to_mkldnn() if like.is_mkldnn else x.to(like.dtype)
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    dense = x.device.type != "cpu" or x.dtype != torch.float32 or len(x) < 8 or not torch.backends.mkldnn.is_available()
    return x if dense else x.to_mkldnn()


def product(a, b, bias=None):
    """An operand a (N, K) times b (M, K), an operand like it or a parameter -> a b^T + bias (N, M), ordinary."""
    out = F.linear(a, b, bias)
    return out.to_dense() if out.is_mkldnn else out


class Recurrence(torch.autograd.Function):
    """One layer over all steps, forward and backward, as the file's docstring derives it."""

    @staticmethod
    def forward(ctx, zx, h, c, weight_hh):
        """zx = W_ih x + b (T, B, 4H), h and c (B, H), weight_hh (4H, H) -> all h' (T, B, H), last h', last c'."""
        W_hh = operand(weight_hh, like=operand(h))
        ctx.h0, ctx.W_hh, ctx.zx_dtype, ctx.steps = h, W_hh, zx.dtype, []
        outputs = []
        for zx_t in zx.unbind(0):
            z = zx_t + product(operand(h, like=W_hh), W_hh)  # (B, 4H)
            h, c_next, gates = lstm_step(z, c)
            ctx.steps.append((c, *gates))
            outputs.append(h)
            c = c_next
        output = torch.stack(outputs)  # (T, B, H)
        ctx.save_for_backward(output)
        return output, h.clone(), c

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, doutput, dh, dc):
        (output,) = ctx.saved_tensors
        T, B, H = output.shape
        W_hh_transposed = ctx.W_hh.transpose(0, 1)  # (H, 4H)
        dz = output.new_empty(T, B, 4 * H, dtype=ctx.zx_dtype)
        for t in reversed(range(T)):
            c, i, f, g, o, tanh_c = ctx.steps[t]  # (B, H) each
            dh = dh + doutput[t]
            do = dh * tanh_c
            dc = dc + through_tanh(dh * o, tanh_c)
            di, df, dg = dc * g, dc * c, dc * i
            quarters = through_sigmoid(di, i), through_sigmoid(df, f), through_tanh(dg, g), through_sigmoid(do, o)
            torch.cat(quarters, dim=-1, out=dz[t])  # (B, 4H)
            dc = dc * f
            dh = product(operand(dz[t], like=ctx.W_hh), W_hh_transposed).to(dc.dtype)  # (B, H)
        h_before = torch.cat((ctx.h0[None], output[:-1])).view(T * B, H)
        dz_operand = operand(dz.view(T * B, 4 * H), like=ctx.W_hh)
        dW_hh = product(dz_operand.transpose(0, 1), operand(h_before, like=ctx.W_hh).transpose(0, 1))  # (4H, H)
        return dz, dh, dc, dW_hh


class LSTM(nn.Module):
    """`LSTMCell` over time and in layers: a drop-in for a time-major `torch.nn.LSTM`, weights and all.

    input_size, hidden_size: I and H.  num_layers: L.  bias: whether b_ih and b_hh exist.
    dropout: the share of each layer's outputs, but the last's, set to zero in training.
    """

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, dropout=0.0):
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.dropout = bias, dropout
        for layer in range(num_layers):
            add_parameters(self, hidden_size if layer else input_size, hidden_size, bias, f"_l{layer}")

    def forward(self, input, hx=None):
        """input (T, B, I) or (T, I), hx = (h, c) each (L, B, H) or (L, H), zeros if None.

        Returns output (T, B, H) or (T, H), the last layer's h' at every step, and (h_n, c_n), like hx.
        Raises RuntimeError for wrong sizes, as `torch.nn.LSTM` does.
        """
        if input.dim() == 2:
            output, (h_n, c_n) = self(input[:, None], None if hx is None else [state[:, None] for state in hx])
            return output[:, 0], (h_n[:, 0], c_n[:, 0])
        if input.dim() != 3 or len(input) == 0:
            raise RuntimeError(f"LSTM takes input (T, B, I) or (T, I) with T > 0, got {tuple(input.shape)}")
        T, B = input.shape[:2]
        expect("input", input, T, B, self.input_size)
        h, c = (input.new_zeros(self.num_layers, B, self.hidden_size),) * 2 if hx is None else hx
        expect("h", h, self.num_layers, B, self.hidden_size)
        expect("c", c, self.num_layers, B, self.hidden_size)
        output, h_n, c_n = input, [], []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                output = F.dropout(output, self.dropout, self.training)
            weight_ih, weight_hh = getattr(self, f"weight_ih_l{layer}"), getattr(self, f"weight_hh_l{layer}")
            bias = getattr(self, f"bias_ih_l{layer}") + getattr(self, f"bias_hh_l{layer}") if self.bias else None
            zx = product(operand(output.flatten(0, 1)), weight_ih, bias).view(T, B, -1)  # (T, B, 4H)
            output, h_last, c_last = Recurrence.apply(zx, h[layer], c[layer], weight_hh)
            h_n.append(h_last)
            c_n.append(c_last)
        return output, (torch.stack(h_n), torch.stack(c_n))
