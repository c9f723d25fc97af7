"""The recurrence as Triton kernels: one program for each row, chunk of time and block of channels.

A program takes its steps in order, with the carry in registers, in float32. Each round loads `ROWS`
steps before it computes and stores the first of them, since the compiler cannot move a load before
a store to what may be the same address. By `num_stages` the loads become asynchronous copies to
shared memory, issued up to `STAGES - 1` rounds ahead, so that one warp keeps many bytes on their
way. A last loop takes the steps that do not fill a round, and issues all of its loads at once.

Numbers are tuples of planes: one plane if real, two if complex. What is absent is an empty tuple;
the pointer that a kernel receives for it is neither read nor written.
"""

# These functions are in Triton's language, which type checkers do not know.
# pyright: reportMissingImports=false, reportArgumentType=false, reportAssignmentType=false
import triton
import triton.language as tl


@triton.jit
def _add(x, y):
    total = ()
    for p in tl.static_range(len(x)):
        total = total + (x[p] + y[p],)
    return total


@triton.jit
def _multiply(x, y):
    if len(x) == 2:
        return (x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0])
    else:
        return (x[0] * y[0],)


@triton.jit
def _conjugate(x):
    if len(x) == 2:
        return (x[0], -x[1])
    else:
        return x


@triton.jit
def _unless(cut, x):
    """`x`, or zero where it is cut. A product with zero would let infinities through."""
    if len(cut) == 0:
        return x
    else:
        kept = ()
        for p in tl.static_range(len(x)):
            kept = kept + (tl.where(cut[0], 0.0, x[p]),)
        return kept


@triton.jit
def _float(x):
    wide = ()
    for p in tl.static_range(len(x)):
        wide = wide + (x[p].to(tl.float32),)
    return wide


@triton.jit
def _constant(value, BLOCK: tl.constexpr, PLANAR: tl.constexpr):
    real = tl.full((BLOCK,), value, tl.float32)
    if PLANAR:
        return (real, tl.full((BLOCK,), 0.0, tl.float32))
    else:
        return (real,)


@triton.jit
def _planes(re, im, PLANAR: tl.constexpr):
    if PLANAR:
        return (re, im)
    else:
        return (re,)


@triton.jit
def _at(pointers, offset):
    moved = ()
    for p in tl.static_range(len(pointers)):
        moved = moved + (pointers[p] + offset,)
    return moved


@triton.jit
def _load(pointers, mask):
    values = ()
    for p in tl.static_range(len(pointers)):
        values = values + (tl.load(pointers[p], mask=mask),)
    return values


@triton.jit
def _store(pointers, values, mask):
    for p in tl.static_range(len(pointers)):
        tl.store(pointers[p], values[p].to(pointers[p].dtype.element_ty), mask=mask)


@triton.jit
def _load_rows(pointers, mask, STRIDE: tl.constexpr, ROWS: tl.constexpr):
    rows = ()
    for i in tl.static_range(ROWS):
        rows = rows + (_load(_at(pointers, i * STRIDE), mask),)
    return rows


@triton.jit
def _place(
    time, chunk, inner, decay_rows,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, DESCENDING: tl.constexpr,
):  # fmt: skip
    """The row, chunk and channels of this program, and the first of its steps."""
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    channels = (program % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    chunks = (time + chunk - 1) // chunk
    index = program // BLOCKS % chunks
    row = program // BLOCKS // chunks
    decay_row = row // inner % decay_rows
    first = index * chunk
    steps = tl.minimum(chunk, time - first)
    if DESCENDING:
        first += steps - 1
    return row.to(tl.int64), decay_row.to(tl.int64), index, chunks, first, steps, channels


# Functions named `_..._rows` are one round of a pass: they load `ROWS` steps from `start` on, then
# take them one after another.


@triton.jit
def _forward_rows(
    a, constant, b, cut, h, carry, start, mask,
    STRIDE: tl.constexpr, DIRECTION: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    offset = tl.cast(start, tl.int64) * STRIDE
    a_rows = _load_rows(_at(a, offset), mask, STRIDE, ROWS)
    b_rows = _load_rows(_at(b, offset), mask, STRIDE, ROWS)
    cut_rows = _load_rows(_at(cut, start * DIRECTION), None, DIRECTION, ROWS)
    for i in tl.static_range(ROWS):
        decay = constant
        if len(a) > 0:
            decay = _float(a_rows[i])
        carry = _add(_unless(cut_rows[i], _multiply(decay, carry)), _float(b_rows[i]))
        _store(_at(h, offset + i * STRIDE), carry, mask)
    return carry


@triton.jit
def forward(
    a_re, a_im, b_re, b_im, h0_re, h0_im, cut, time, chunk, inner, decay_rows,
    h_re, h_im, last_re, last_im,
    PLANAR: tl.constexpr, VARYING: tl.constexpr, CUT: tl.constexpr, DESCENDING: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """h = a h + b, step by step: all states, and the last one of each chunk."""
    STRIDE: tl.constexpr = -CHANNELS if DESCENDING else CHANNELS
    DIRECTION: tl.constexpr = -1 if DESCENDING else 1
    row, decay_row, index, chunks, first, steps, channels = _place(
        time, chunk, inner, decay_rows, CHANNELS, BLOCK, DESCENDING
    )
    mask = channels < CHANNELS
    at_chunk = (row * chunks + index) * CHANNELS + channels
    at_first = (row * time + first) * CHANNELS + channels
    a = _planes(a_re, a_im, PLANAR)
    constant = ()
    if VARYING:
        a = _at(a, (decay_row * time + first) * CHANNELS + channels)
    else:
        constant = _float(_load(_at(a, decay_row * CHANNELS + channels), mask))
        a = ()
    b = _at(_planes(b_re, b_im, PLANAR), at_first)
    h = _at(_planes(h_re, h_im, PLANAR), at_first)
    cuts = ()
    if CUT:
        cuts = (cut + row * time + first,)
    carry = _load(_at(_planes(h0_re, h0_im, PLANAR), at_chunk), mask)

    in_rounds = steps // ROWS * ROWS
    for start in tl.range(0, in_rounds, ROWS, num_stages=STAGES):
        carry = _forward_rows(a, constant, b, cuts, h, carry, start, mask, STRIDE, DIRECTION, ROWS)
    for start in tl.range(in_rounds, steps, num_stages=ROWS):
        carry = _forward_rows(a, constant, b, cuts, h, carry, start, mask, STRIDE, DIRECTION, 1)
    _store(_at(_planes(last_re, last_im, PLANAR), at_chunk), carry, mask)


@triton.jit
def _totals_rows(
    a, constant, x, cut, product, end, start, mask,
    ADJOINT: tl.constexpr, STRIDE: tl.constexpr, DIRECTION: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    offset = tl.cast(start, tl.int64) * STRIDE
    a_rows = _load_rows(_at(a, offset), mask, STRIDE, ROWS)
    x_rows = _load_rows(_at(x, offset), mask, STRIDE, ROWS)
    cut_rows = _load_rows(_at(cut, start * DIRECTION), None, DIRECTION, ROWS)
    for i in tl.static_range(ROWS):
        decay = constant
        if len(a) > 0:
            decay = _float(a_rows[i])
            product = _multiply(decay, product)
        if ADJOINT:
            end = _multiply(_conjugate(decay), _add(_float(x_rows[i]), end))
            end = _unless(cut_rows[i], end)
        else:
            end = _add(_unless(cut_rows[i], _multiply(decay, end)), _float(x_rows[i]))
    return product, end


@triton.jit
def totals(
    a_re, a_im, x_re, x_im, cut, time, chunk, inner, decay_rows,
    product_re, product_im, end_re, end_im,
    PLANAR: tl.constexpr, VARYING: tl.constexpr, CUT: tl.constexpr, DESCENDING: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    ADJOINT: tl.constexpr,
):  # fmt: skip
    """What leaves a chunk that zero enters, in `forward`, or in `backward` with `ADJOINT`."""
    STRIDE: tl.constexpr = -CHANNELS if DESCENDING else CHANNELS
    DIRECTION: tl.constexpr = -1 if DESCENDING else 1
    row, decay_row, index, chunks, first, steps, channels = _place(
        time, chunk, inner, decay_rows, CHANNELS, BLOCK, DESCENDING
    )
    mask = channels < CHANNELS
    at_chunk = (row * chunks + index) * CHANNELS + channels
    a = _planes(a_re, a_im, PLANAR)
    constant = ()
    product = ()
    if VARYING:
        a = _at(a, (decay_row * time + first) * CHANNELS + channels)
        product = _constant(1.0, BLOCK, PLANAR)
    else:
        constant = _float(_load(_at(a, decay_row * CHANNELS + channels), mask))
        a = ()
    x = _at(_planes(x_re, x_im, PLANAR), (row * time + first) * CHANNELS + channels)
    cuts = ()
    if CUT:
        cuts = (cut + row * time + first,)
    end = _constant(0.0, BLOCK, PLANAR)

    in_rounds = steps // ROWS * ROWS
    for start in tl.range(0, in_rounds, ROWS, num_stages=STAGES):
        product, end = _totals_rows(
            a, constant, x, cuts, product, end, start, mask, ADJOINT, STRIDE, DIRECTION, ROWS
        )
    for start in tl.range(in_rounds, steps, num_stages=ROWS):
        product, end = _totals_rows(
            a, constant, x, cuts, product, end, start, mask, ADJOINT, STRIDE, DIRECTION, 1
        )
    if VARYING:
        _store(_at(_planes(product_re, product_im, PLANAR), at_chunk), product, mask)
    _store(_at(_planes(end_re, end_im, PLANAR), at_chunk), end, mask)


@triton.jit
def _backward_step(decay, h, cut, g, c):
    """`(da, db, c)` from the cotangent `c` that comes in, and `h`, the state before the step."""
    s = _add(_float(g), c)
    da = _unless(cut, _multiply(s, _conjugate(_float(h))))
    return da, s, _unless(cut, _multiply(_conjugate(decay), s))


@triton.jit
def _backward_rows(
    a, constant, h, cut, g, da, db, total, c, start, mask,
    STRIDE: tl.constexpr, DIRECTION: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    offset = tl.cast(start, tl.int64) * STRIDE
    a_rows = _load_rows(_at(a, offset), mask, STRIDE, ROWS)
    h_rows = _load_rows(_at(h, offset), mask, STRIDE, ROWS)
    g_rows = _load_rows(_at(g, offset), mask, STRIDE, ROWS)
    cut_rows = _load_rows(_at(cut, start * DIRECTION), None, DIRECTION, ROWS)
    # Summed round by round: the rounding error grows with the rounds, not with the steps.
    sums = ()
    for i in tl.static_range(ROWS):
        decay = constant
        if len(a) > 0:
            decay = _float(a_rows[i])
        da_row, db_row, c = _backward_step(decay, h_rows[i], cut_rows[i], g_rows[i], c)
        _store(_at(db, offset + i * STRIDE), db_row, mask)
        if len(a) > 0:
            _store(_at(da, offset + i * STRIDE), da_row, mask)
        elif i == 0:
            sums = da_row
        else:
            sums = _add(sums, da_row)
    return _add(total, sums), c


@triton.jit
def backward(
    a_re, a_im, h_re, h_im, h0_re, h0_im, cut, g_re, g_im, c_re, c_im,
    time, chunk, inner, decay_rows,
    da_re, da_im, db_re, db_im, c_out_re, c_out_im,
    PLANAR: tl.constexpr, VARYING: tl.constexpr, CUT: tl.constexpr, DESCENDING: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The adjoint of `forward`, in the other direction. `DESCENDING` is that of this pass."""
    STRIDE: tl.constexpr = -CHANNELS if DESCENDING else CHANNELS
    DIRECTION: tl.constexpr = -1 if DESCENDING else 1
    row, decay_row, index, chunks, first, steps, channels = _place(
        time, chunk, inner, decay_rows, CHANNELS, BLOCK, DESCENDING
    )
    mask = channels < CHANNELS
    at_chunk = (row * chunks + index) * CHANNELS + channels
    at_first = (row * time + first) * CHANNELS + channels
    a = _planes(a_re, a_im, PLANAR)
    da = _planes(da_re, da_im, PLANAR)
    constant = ()
    total = ()
    if VARYING:
        a = _at(a, (decay_row * time + first) * CHANNELS + channels)
        da = _at(da, at_first)
    else:
        constant = _float(_load(_at(a, decay_row * CHANNELS + channels), mask))
        total = _constant(0.0, BLOCK, PLANAR)
        a = ()
    # The state before a step is `h` at the step that this pass takes next.
    h = _at(_planes(h_re, h_im, PLANAR), at_first + STRIDE)
    g = _at(_planes(g_re, g_im, PLANAR), at_first)
    db = _at(_planes(db_re, db_im, PLANAR), at_first)
    cuts = ()
    if CUT:
        cuts = (cut + row * time + first,)
    c = _load(_at(_planes(c_re, c_im, PLANAR), at_chunk), mask)

    # The step that is last in the row has no next one: the state before it is `h0`.
    ends_row = index == (0 if DESCENDING else chunks - 1)
    followed = steps - ends_row.to(tl.int32)
    in_rounds = followed // ROWS * ROWS
    for start in tl.range(0, in_rounds, ROWS, num_stages=STAGES):
        total, c = _backward_rows(
            a, constant, h, cuts, g, da, db, total, c, start, mask, STRIDE, DIRECTION, ROWS
        )
    for start in tl.range(in_rounds, followed, num_stages=ROWS):
        total, c = _backward_rows(
            a, constant, h, cuts, g, da, db, total, c, start, mask, STRIDE, DIRECTION, 1
        )
    if ends_row:
        offset = followed.to(tl.int64) * STRIDE
        h0 = _at(_planes(h0_re, h0_im, PLANAR), row * CHANNELS + channels - offset)
        total, c = _backward_rows(
            a, constant, h0, cuts, g, da, db, total, c, followed, mask, STRIDE, DIRECTION, 1
        )
    if not VARYING:
        _store(_at(da, at_chunk), total, mask)
    _store(_at(_planes(c_out_re, c_out_im, PLANAR), at_chunk), c, mask)
