"""The operations and their gradients in NumPy, one step after another, in double precision.

Written from the equations, sharing nothing with the code it checks. Complex values are complex
NumPy arrays. For a real loss E the gradient of a complex z = x + iy is dE/dx + i dE/dy, the two
planes of a `Planar` gradient.
"""

import numpy as np


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _is_cut(reset, t: int, steps: int, reverse: bool):
    """Whether, in each row, the state that enters step `t` comes from another segment."""
    if reset is None:
        return False
    if not reverse:
        return reset[..., t, None]
    return reset[..., t + 1, None] if t + 1 < steps else False


def linear_scan(a, b, h0, *, reverse=False, reset=None):
    """`(h, h_last)` for h_t = a_t h_{t-1} + b_t, with `a` of the shape of `b` or one step long."""
    steps = b.shape[-2]
    h = np.zeros(np.broadcast_shapes(a.shape, b.shape), np.result_type(a, b, h0))
    carry = h0
    for t in _order(steps, reverse):
        carry = np.where(_is_cut(reset, t, steps, reverse), 0, carry)
        carry = a[..., t if a.shape[-2] > 1 else 0, :] * carry + b[..., t, :]
        h[..., t, :] = carry
    return h, carry


def linear_scan_gradient(a, b, h0, g, g_last, *, reverse=False, reset=None):
    """(da, db, dh0) for the cotangents `g` of h and `g_last` of h_last."""
    steps = b.shape[-2]
    h, _ = linear_scan(a, b, h0, reverse=reverse, reset=reset)
    da, db = np.zeros(h.shape, h.dtype), np.zeros(h.shape, h.dtype)
    s = g_last
    order = list(_order(steps, reverse))
    for i in reversed(range(steps)):
        t = order[i]
        s = s + g[..., t, :]
        before = h[..., order[i - 1], :] if i else h0
        cut = _is_cut(reset, t, steps, reverse)
        db[..., t, :] = s
        da[..., t, :] = np.where(cut, 0, s * np.conj(before))
        s = np.where(cut, 0, s * np.conj(a[..., t if a.shape[-2] > 1 else 0, :]))
    axes = tuple(i for i, n in enumerate(a.shape) if n == 1 and da.shape[i] != 1)
    return da.sum(axes, keepdims=True), db, s


def block_scan(a, b, h0, *, reverse=False, reset=None):
    """`(h, h_last)` for h_t = A_t h_{t-1} + b_t.

    `b` is "*batch time channel k", with the planes in the last axis, and `a` "*batch time channel k
    k", whose batch and time may be one long. For matrices there is one channel.
    """
    steps = b.shape[-3]
    h = np.zeros(b.shape, np.result_type(a, b, h0))
    carry = h0
    for t in _order(steps, reverse):
        carry = np.where(_is_cut_block(reset, t, steps, reverse), 0, carry)
        a_t = a[..., t if a.shape[-4] > 1 else 0, :, :, :]
        carry = (a_t @ carry[..., None])[..., 0] + b[..., t, :, :]
        h[..., t, :, :] = carry
    return h, carry


def block_scan_gradient(a, b, h0, g, g_last, *, reverse=False, reset=None):
    """(da, db, dh0) for the cotangents `g` of h and `g_last` of h_last."""
    steps = b.shape[-3]
    h, _ = block_scan(a, b, h0, reverse=reverse, reset=reset)
    da, db = np.zeros((*h.shape, h.shape[-1]), h.dtype), np.zeros(h.shape, h.dtype)
    s = g_last
    order = list(_order(steps, reverse))
    for i in reversed(range(steps)):
        t = order[i]
        s = s + g[..., t, :, :]
        cut = _is_cut_block(reset, t, steps, reverse)
        before = np.where(cut, 0, h[..., order[i - 1], :, :] if i else h0)
        db[..., t, :, :] = s
        da[..., t, :, :, :] = s[..., :, None] * before[..., None, :]
        a_t = a[..., t if a.shape[-4] > 1 else 0, :, :, :]
        s = np.where(cut, 0, (np.swapaxes(a_t, -1, -2) @ s[..., None])[..., 0])
    axes = tuple(i for i, n in enumerate(a.shape) if n == 1 and da.shape[i] != 1)
    return da.sum(axes, keepdims=True), db, s


def _is_cut_block(reset, t: int, steps: int, reverse: bool):
    cut = _is_cut(reset, t, steps, reverse)
    return cut if cut is False else cut[..., None]


def diagonal_ssm(u, decay, b, c, h0, *, reverse=False, reset=None, lengths=None):
    """(y, h_last): h_t = decay h_{t-1} + B u_t, y_t = Re(C h_t), for `u` "batch time idim"."""
    rows, steps, _ = u.shape
    y = np.zeros((rows, steps, c.shape[0]))
    h_last = h0.copy()
    for row in range(rows):
        length = steps if lengths is None else lengths[row]
        h, _ = _states(u, decay, b, h0, row, length, reverse, reset)
        for t in range(length):
            y[row, t] = (c @ h[t]).real
        if length:
            h_last[row] = h[0 if reverse else length - 1]
    return y, h_last


def diagonal_ssm_gradient(
    u, decay, b, c, h0, g_y, g_last, *, reverse=False, reset=None, lengths=None
):
    """(du, d_decay, db, dc, dh0) for the cotangents of y and h_last."""
    rows, steps, _ = u.shape
    du, dh0 = np.zeros_like(u), np.zeros_like(h0)
    d_decay, db, dc = (np.zeros_like(x) for x in (decay, b, c))
    for row in range(rows):
        length = steps if lengths is None else lengths[row]
        h, entering = _states(u, decay, b, h0, row, length, reverse, reset)
        order = list(_order(length, reverse))
        s = g_last[row]
        for t in reversed(order):
            s = s + np.conj(c).T @ g_y[row, t]
            dc += np.outer(g_y[row, t], np.conj(h[t]))
            db += np.outer(s, u[row, t])
            du[row, t] = (np.conj(b).T @ s).real
            cut = _is_cut(None if reset is None else reset[row, :length], t, length, reverse)
            d_decay += s * np.conj(np.where(cut, 0, entering[t]))
            s = np.where(cut, 0, np.conj(decay) * s)
        dh0[row] = s
    return du, d_decay, db, dc, dh0


def _states(u, decay, b, h0, row, length, reverse, reset):
    """All states of one row, and the state before each of its steps (before any cut)."""
    h, entering = np.zeros((length, *h0.shape[1:]), h0.dtype), {}
    carry = h0[row]
    for t in _order(length, reverse):
        entering[t] = carry
        cut = _is_cut(None if reset is None else reset[row, :length], t, length, reverse)
        carry = decay * np.where(cut, 0, carry) + b @ u[row, t]
        h[t] = carry
    return h, entering


def linear_attention(
    query, key, value, log_decay, erase, h0, *, reverse=False, reset=None, lengths=None
):
    """`(y, h_last)` for H_t = (I - k_t e_t^T) diag(exp(g_t)) H_{t-1} + k_t v_t^T, y_t = H_t^T q_t.

    Arrays have one row, without an axis for it: `value` is "time head value". `log_decay` and
    `erase` may be `None`, and queries, keys and `erase` have heads of which each serves several of
    those of `value`. `lengths` is the number of valid steps.
    """
    y, h, _ = _attend(query, key, value, log_decay, erase, h0, reverse, reset, lengths)
    return y, h


def linear_attention_gradient(
    query, key, value, log_decay, erase, h0, g_y, g_last,
    *, reverse=False, reset=None, lengths=None,
):  # fmt: skip
    """`(d_query, d_key, d_value, d_log_decay, d_erase, d_h0)` for the cotangents of y and h_last;
    `None` where the argument is `None`."""
    arrays = query, key, value, log_decay, erase
    _, _, steps = _attend(*arrays, h0, reverse, reset, lengths)
    d_query, d_key, d_value = (np.zeros_like(x) for x in arrays[:3])
    d_log_decay, d_erase = (np.zeros(() if x is None else x.shape) for x in arrays[3:])
    s = g_last
    for t, cut, (q, k, decay, e), before, u, after in reversed(steps):
        s = s + np.einsum("hk,hv->hkv", q, g_y[t])
        d_query[t] += _by_group(np.einsum("hkv,hv->hk", after, g_y[t]), query)
        d_key[t] += _by_group(np.einsum("hkv,hv->hk", s, u), key)
        du = np.einsum("hkv,hk->hv", s, k)
        d_value[t] += du
        decayed = decay[:, :, None] * before
        if erase is not None:
            d_erase[t] -= _by_group(np.einsum("hkv,hv->hk", decayed, du), erase)
            s = s - np.einsum("hk,hv->hkv", e, du)
        if log_decay is not None:
            by_channel = np.sum(s * decayed, -1)
            d_log_decay[t] += by_channel if log_decay.ndim == 3 else by_channel.sum(-1)
        s = np.zeros_like(s) if cut else decay[:, :, None] * s
    d_log_decay, d_erase = (
        None if x is None else d for x, d in ((log_decay, d_log_decay), (erase, d_erase))
    )
    return d_query, d_key, d_value, d_log_decay, d_erase, s


def _attend(query, key, value, log_decay, erase, h0, reverse, reset, lengths):
    """Outputs, last state, and for each step in processing order what its gradient depends on."""
    time, heads, _ = value.shape
    y, h, steps = np.zeros_like(value), h0, []

    def at(x, t):
        return np.repeat(x[t], heads // x.shape[1], axis=0)

    end = time if lengths is None else int(lengths)
    for t in _order(end, reverse):
        cut = reset is not None and _is_cut(reset[:end], t, end, reverse)
        before = np.zeros_like(h) if cut else h
        q, k = at(query, t), at(key, t)
        decay = np.ones_like(k)
        if log_decay is not None:
            decay = np.exp(log_decay[t].reshape(heads, -1)) * decay
        decayed = decay[:, :, None] * before
        u, e = value[t], None
        if erase is not None:
            e = at(erase, t)
            u = u - np.einsum("hk,hkv->hv", e, decayed)
        h = decayed + np.einsum("hk,hv->hkv", k, u)
        y[t] = np.einsum("hkv,hk->hv", h, q)
        steps.append((t, cut, (q, k, decay, e), before, u, h))
    return y, h, steps


def _by_group(gradient, like):
    """The gradient for heads, summed over the heads that share one of `like`, "time head key"."""
    return gradient.reshape(like.shape[1], -1, gradient.shape[-1]).sum(1)
