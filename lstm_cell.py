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

dc = dc' * f, without a matrix, is why gradients survive.

What makes it fast is to leave to the loop over the steps only what has to wait for the step
before. W_ih x is one product for all steps, and so is dW_hh, where autograd would add up
a matrix of its size at every step. And dz is dc', or dh' in the quarter of o, times factors
that need neither: those, too, are computed for all steps at once.

Sizes in comments: T steps, B sequences in parallel, I inputs, H hidden units.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


# --- One step ----------------------------------------------------------------------------


def lstm_step(z, c, out=(None, None, None)):
    """The equations above from z on: z (B, 4H), c (B, H) -> h', c' and s_c, each (B, H), where tanh(c') = 1 - 2 s_c.

    z itself turns into i, f, s and o, where g = 1 - 2 s. out: where h', c' and s_c shall be written, None for new
    tensors, which autograd needs.

    tanh(x) = 1 - 2 sigmoid(-2x): with it one sigmoid does for all four gates, and on a CPU it takes torch a fraction
    of the time of a tanh. Its error is that of a number near 1, so a tanh near 0 keeps fewer digits.
    """
    H = c.shape[-1]
    z.narrow(-1, 2 * H, H).mul_(-2)  # (B, 4H): z_i, z_f, -2 z_g, z_o
    i, f, s, o = z.sigmoid_().chunk(4, dim=-1)  # (B, H) each: i, f, o = sigmoid(...), g = tanh(z_g) = 1 - 2 s
    c = torch.addcmul(i, i, s, value=-2, out=out[1]).addcmul_(f, c)  # (B, H): c' = f * c + i * g, i * g = i - 2 i s
    s_c = torch.mul(c, -2, out=out[2]).sigmoid_()  # (B, H): tanh(c') = 1 - 2 s_c
    h = torch.addcmul(o, o, s_c, value=-2, out=out[0])  # (B, H): h' = o * tanh(c') = o - 2 o s_c
    return h, c, s_c


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
        h, c, _ = lstm_step(z.to(c.dtype), c)
        return h, c


# --- What torch has, but not at its fastest on a CPU -----------------------------------------


def by_onednn(x):
    """Whether products with a matrix x (N, K) are better left to oneDNN: in float32 on a CPU, unless they are small.

    torch multiplies float32 matrices with MKL, which on some processors reaches half the speed of oneDNN, the library
    under `nn.LSTM` and under torch's convolutions.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    large = len(x) >= 8 and x.numel() >= 5000
    return large and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()


def pixels(x):
    """A matrix (N, K) as an image of N pixels in K channels, (1, K, 1, N): the same memory."""
    return x[None, None].permute(0, 3, 1, 2)


def multiply(x, W, b=None):
    """x (N, K), W (M, K), b (M,) or None -> x W^T + b (N, M): a convolution whose kernel is one pixel."""
    return F.conv2d(pixels(x), W[:, :, None, None], b).permute(0, 2, 3, 1).flatten(0, 2)


def sum_of_outer(dy, x):
    """dy (N, M), x (N, K) -> dy^T x (M, K), the sum over N of dy x^T: the gradient of a weight."""
    if not by_onednn(x):
        return dy.t() @ x
    return torch.nn.grad.conv2d_weight(pixels(x), (dy.shape[1], x.shape[1], 1, 1), pixels(dy)).flatten(1)


class Linear(torch.autograd.Function):
    """y = x W^T + b by `multiply`, and its gradient: dx = dy W, dW = the sum of dy x^T, db = the sum of dy."""

    @staticmethod
    def forward(ctx, x, W, b):
        """x (N, K), W (M, K), b (M,) or None -> y (N, M)."""
        ctx.save_for_backward(x, W)
        return multiply(x, W, b)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        """dy (N, M) -> dx (N, K), dW (M, K), db (M,), None for each that nobody asks for."""
        x, W = ctx.saved_tensors
        need_dx, need_dW, need_db = ctx.needs_input_grad
        dx = multiply(dy, W.t()) if need_dx else None  # (N, K)
        dW = sum_of_outer(dy, x) if need_dW else None  # (M, K)
        return dx, dW, dy.sum(0) if need_db else None


def linear(x, W, b=None):
    """`F.linear` of a matrix: x (N, K), W (M, K), b (M,) or None -> x W^T + b (N, M)."""
    return Linear.apply(x, W, b) if by_onednn(x) else F.linear(x, W, b)


def dropout(x, share, training=True):
    """`F.dropout`: a share of x set to zero, the rest divided by 1 - share; outside training x as it is.

    `torch.rand` takes a quarter of the time of the bernoulli_ in F.dropout.
    """
    if not training or share == 0:
        return x
    return x * (torch.rand(x.shape, device=x.device) >= share).to(x.dtype).div_(1 - share)


# --- All steps -----------------------------------------------------------------------------


def product(a, W):
    """a (B, K), W (M, K) as `Recurrence` has prepared it -> a W^T (B, M), in the dtype of a."""
    if W.is_mkldnn:
        return F.linear(a.to_mkldnn(), W).to_dense()
    return F.linear(a.to(W.dtype), W).to(a.dtype)


class Recurrence(torch.autograd.Function):
    """One layer over all steps, forward and backward, as the file's docstring derives it."""

    @staticmethod
    def forward(ctx, zx, h0, c0, weight_hh):
        """zx = W_ih x + b (T, B, 4H), h0 and c0 (B, H), weight_hh (4H, H) -> all h' (T, B, H), last h', last c'.

        zx is lost: its memory becomes the gates'. A zx in bfloat16, as under autocast, asks for products in bfloat16.
        """
        T, (B, H) = len(zx), h0.shape
        ctx.zx_dtype, ctx.W_hh = zx.dtype, weight_hh.to_mkldnn() if by_onednn(h0) else weight_hh.to(zx.dtype)
        gates = zx.detach().to(c0.dtype)  # (T, B, 4H)
        hs, cs, s_cs = (c0.new_empty(steps, B, H) for steps in (T + 1, T + 1, T))
        hs[0], cs[0] = h, c = h0, c0
        with torch.inference_mode(), torch.autocast(zx.device.type, enabled=False):  # less to book at each call
            for z, *out in zip(gates, hs[1:], cs[1:], s_cs):
                z += product(h, ctx.W_hh)  # (B, 4H)
                h, c, _ = lstm_step(z, c, out)  # (B, H)
        ctx.save_for_backward(weight_hh, gates, hs, cs, s_cs)  # weight_hh: to be told if it changes
        return hs[1:], h.clone(), c.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dhs, dh, dc):
        """dhs (T, B, H), dh and dc (B, H) -> dzx (T, B, 4H), dh0 and dc0 (B, H), dW_hh (4H, H)."""
        _, gates, hs, cs, s_cs = ctx.saved_tensors
        H, W_hh_transposed = hs.shape[-1], ctx.W_hh.transpose(0, 1)  # (H, 4H)
        i, f, s, o = gates.chunk(4, dim=-1)  # (T, B, H) each
        h, c = hs[:-1], cs[:-1]  # (T, B, H), before each step
        # dz without its dc' and dh', for all steps
        dz = torch.addcmul(gates, gates, gates, value=-1)  # i (1 - i), f (1 - f), s (1 - s), o (1 - o)
        dz_i, dz_f, dz_g, dz_o = dz.chunk(4, dim=-1)  # (T, B, H) each
        dz_i *= 1 - 2 * s  # g * i (1 - i)
        dz_f *= c  # c * f (1 - f)
        dz_g *= 4 * i  # i * (1 - g^2), as 1 - g^2 = 4 s (1 - s)
        dz_o *= 1 - 2 * s_cs  # tanh(c') * o (1 - o)
        dc_dh = torch.addcmul(s_cs, s_cs, s_cs, value=-1).mul_(o).mul_(4)  # o * (1 - tanh(c')^2)
        steps = dhs, dc_dh, dz, dz.unflatten(-1, (4, H))[:, :, :3], dz_o, f
        with torch.inference_mode():
            for dh_t, dc_dh_t, dz_t, dz_t_ifg, dz_t_o, f_t in zip(*(reversed(part.unbind(0)) for part in steps)):
                dh = dh + dh_t  # (B, H)
                dc = torch.addcmul(dc, dh, dc_dh_t)  # dc' = dc' + dh' * o (1 - tanh(c')^2)
                dz_t_ifg *= dc[:, None]  # (B, 3, H)
                dz_t_o *= dh  # (B, H)
                dc *= f_t  # dc = dc' * f
                dh = product(dz_t, W_hh_transposed)  # dh = W_hh^T dz
        dz = dz.to(ctx.zx_dtype)  # (T, B, 4H)
        dW_hh = sum_of_outer(dz.flatten(0, 1), h.flatten(0, 1).to(dz.dtype))  # (4H, H)
        return dz, dh.clone(), dc.clone(), dW_hh  # clones are autograd's again


class LSTM(nn.Module):
    """`LSTMCell` over time and in layers: a drop-in for a time-major `torch.nn.LSTM`, weights and all.

    input_size, hidden_size: I and H.  num_layers: L.  bias: whether b_ih and b_hh exist.
    dropout: the share of each layer's outputs, but the last's, set to zero in training, 0 <= dropout < 1.
    Raises ValueError for another dropout. Its gradient cannot be differentiated again.
    """

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, dropout=0.0):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}, expected a share of at least 0 and below 1")
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
            if layer:
                output = dropout(output, self.dropout, self.training)
            weight_ih, weight_hh = getattr(self, f"weight_ih_l{layer}"), getattr(self, f"weight_hh_l{layer}")
            bias = getattr(self, f"bias_ih_l{layer}") + getattr(self, f"bias_hh_l{layer}") if self.bias else None
            zx = linear(output.flatten(0, 1), weight_ih, bias).unflatten(0, (T, B))  # (T, B, 4H)
            output, h_last, c_last = Recurrence.apply(zx, h[layer], c[layer], weight_hh)
            h_n.append(h_last)
            c_n.append(c_last)
        return output, (torch.stack(h_n), torch.stack(c_n))
