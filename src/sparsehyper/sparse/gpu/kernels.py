"""Kernels in Triton for the products of ``wirings`` and their gradients, on a GPU.

Every sum has one owner and a fixed order: there are no atomics, and no result depends on timing.
Sums are in float32, whatever the tensors' dtype. Each function is one launch; ``steps`` says when,
and how large its blocks are.

Outputs may share weights: w has ``period`` columns, and output j has column j mod period. SHARED is
whether these are fewer than the outputs, in any layer of the launch.

A loop whose length is not a compile-time constant is a ``while``, which Triton's interpreter takes
too. A tuple of blocks grows by ``a = a + (b,)``, the only way that Triton knows.
"""

from __future__ import annotations

import triton
import triton.language as tl

# No value of these sizes is worth a compilation of its own.
_SIZES = ("rows", "n", "m", "k", "copy", "tap", "pair", "width", "period", "blocks")
# Nor is an alignment: a shift may be any number, so wide loads are no use.
_UNALIGNED = ("w", "y", "gx", "gw", "weights", "tables", "between", "slopes", "grads")
_INDICES = ("sources", "starts", "order")
_SHIFTED = {
    "do_not_specialize": _SIZES,
    "do_not_specialize_on_alignment": (*_UNALIGNED, "x", "g"),
}
# But columns are read in wide loads.
_GATHERED = {
    "do_not_specialize": _SIZES,
    "do_not_specialize_on_alignment": (*_UNALIGNED, *_INDICES),
}


@triton.jit
def _parts(size, most):
    """Number of parts of at most ``most``. (Triton's own needs its interpreter from the start.)"""
    return (size + most - 1) // most


@triton.jit
def _column(j, period, SHARED: tl.constexpr):
    """The column of the weights of output j."""
    return j.to(tl.int32) % period if SHARED else j


@triton.jit
def _enter(EARLY: tl.constexpr):
    """Wait for the launch before this one, and let the next one start; both may overlap a little.

    So nothing may be read or written before. EARLY is whether the device can do this.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit(**_SHIFTED)
def circulant(
    x, w, y, shifts, rows, n, m, k, period, copy, tap,
    ADD: tl.constexpr, COPIES: tl.constexpr, TAPS: tl.constexpr, SHARED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``y[b, j] = Σ_t w[t, j mod period] · x[b, (i + shifts[c, t]) mod n]``, where j = c·n + i.

    A launch is for COPIES copies from ``copy`` on and TAPS taps from ``tap`` on; with ADD it adds
    to y. The shifts come as arguments, because loading them would cost as much as loading x again.
    A program computes BLOCK outputs for ROWS rows: few rows at a time leave x in the cache, where
    every tap finds it again.
    """
    _enter(EARLY)
    ONCE: tl.constexpr = "evict_first" if ROWS > 1 and not SHARED else ""
    OFTEN: tl.constexpr = "evict_last" if ROWS > 1 else ""
    per_group = _parts(n, BLOCK) * COPIES
    first = tl.program_id(0) // per_group * ROWS
    block = tl.program_id(0) % per_group
    which = block % COPIES
    i = block // COPIES * BLOCK + tl.arange(0, BLOCK)
    j = (copy + which).to(tl.int64) * n + i
    inside = (i < n) & (j < m)
    column = _column(j, period, SHARED)
    stride = period if SHARED else m
    x += first.to(tl.int64) * n
    y += first.to(tl.int64) * m
    sums = ()
    for r in tl.static_range(ROWS):
        there = inside & (first + r < rows)
        at = y + r * m.to(tl.int64) + j
        start = tl.load(at, mask=there, other=0.0) if ADD else tl.full([BLOCK], 0.0, tl.float32)
        sums = sums + (start.to(tl.float32),)
    for u in tl.static_range(TAPS):
        shift = shifts[u]
        for c in tl.static_range(1, COPIES):
            shift = tl.where(which == c, shifts[c * TAPS + u], shift)
        source = i + shift
        source = tl.where(source >= n, source - n, source)
        here = inside & (tap + u < k)
        at = w + (tap + u).to(tl.int64) * stride + column
        weight = tl.load(at, mask=here, other=0.0, eviction_policy=ONCE).to(tl.float32)
        more = ()
        for r in tl.static_range(ROWS):
            at = x + r * n.to(tl.int64) + source
            there = here & (first + r < rows)
            value = tl.load(at, mask=there, other=0.0, eviction_policy=OFTEN)
            more = more + (sums[r] + weight * value.to(tl.float32),)
        sums = more
    for r in tl.static_range(ROWS):
        at = y + r * m.to(tl.int64) + j
        there = inside & (first + r < rows)
        tl.store(at, sums[r], mask=there, cache_modifier=".cs" if ROWS > 1 else "")


@triton.jit(**_SHIFTED)
def circulant_adjoint(
    g, x, w, gx, gw, shifts, rows, n, m, k, period, pair,
    NEED_X: tl.constexpr, NEED_W: tl.constexpr, ADD: tl.constexpr, SHARED: tl.constexpr,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The gradients of x and w, in one pass.

    Input i has one connection for each pair of a copy c and a tap t: to output c·n + p, where
    p = (i - shifts[c, t]) mod n. So a program that owns BLOCK inputs owns their weights too. It
    holds these in registers while it goes through the rows. A launch is for PAIRS pairs from
    ``pair`` on; with ADD it adds to the gradient of x. Of shared weights it gives no gradient.
    """
    tl.static_assert(not (SHARED and NEED_W))
    _enter(EARLY)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    stride = period if SHARED else m
    outputs, weights, sums = (), (), ()
    for u in tl.static_range(PAIRS):
        position = i - shifts[u]
        position = tl.where(position < 0, position + n, position)
        j = (pair + u) // k * n + position
        j = tl.where(inside & (j < m), j, -1)  # cut short, or beyond the last copy
        outputs = outputs + (j,)
        sums = sums + (tl.full([BLOCK], 0.0, tl.float32),)
        if NEED_X:
            place = ((pair + u) % k).to(tl.int64) * stride + _column(j, period, SHARED)
            weights = weights + (tl.load(w + place, mask=j >= 0, other=0.0).to(tl.float32),)
    row = 0
    while row < rows:
        if NEED_W:
            value = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
        if NEED_X:
            start = tl.load(gx + i, mask=inside, other=0.0) if ADD else 0.0 * i
            sum_x = start.to(tl.float32)
        more = ()
        for u in tl.static_range(PAIRS):
            slope = tl.load(g + outputs[u], mask=outputs[u] >= 0, other=0.0).to(tl.float32)
            if NEED_X:
                sum_x += weights[u] * slope
            if NEED_W:
                more = more + (sums[u] + slope * value,)
        if NEED_W:
            sums = more
        if NEED_X:
            tl.store(gx + i, sum_x, mask=inside)
        row += 1
        x += n
        gx += n
        g += m
    if NEED_W:
        for u in tl.static_range(PAIRS):
            place = ((pair + u) % k).to(tl.int64) * m + outputs[u]
            tl.store(gw + place, sums[u], mask=outputs[u] >= 0)


@triton.jit(**_SHIFTED)
def narrow(
    x, weights, tables, between, y, periods, rows, n, width,
    SHARED: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Several narrow circulant layers in sequence; a program computes one row of all of them.

    Args:
        x, y: input of the first layer and output of the last.
        weights: one pointer for each layer.
        tables: one for each layer: number of inputs, fan-in and then the shifts.
        between: outputs of the other layers ``[rows, n_out]``, one after another.
        periods: number of columns of each layer's weights.
        rows, n, width: number of rows, inputs of the first layer and outputs of the last.
    """
    _enter(EARLY)
    row = tl.program_id(0).to(tl.int64)
    source = x + row * n
    for layer in tl.static_range(len(weights)):
        w = weights[layer]
        n_in = tl.load(tables[layer])
        k = tl.load(tables[layer] + 1)
        n_out = tl.load(tables[layer + 1]) if layer + 1 < len(tables) else width
        target = y + row * width if layer == len(weights) - 1 else between + row * n_out
        start = 0
        while start < n_out:
            j = start + tl.arange(0, BLOCK)
            inside = j < n_out
            copy = j // n_in
            i = j - copy * n_in
            column = _column(j, periods[layer], SHARED)
            total = tl.full([BLOCK], 0.0, tl.float32)
            tap = 0
            while tap < k:
                for u in tl.static_range(TAPS):
                    here = inside & (tap + u < k)
                    shift = tl.load(tables[layer] + 2 + copy * k + tap + u, mask=here, other=0)
                    at = i + shift
                    at = tl.where(at >= n_in, at - n_in, at)
                    place = (tap + u) * periods[layer] + column
                    weight = tl.load(w + place, mask=here, other=0.0)
                    value = tl.load(source + at, mask=here, other=0.0)
                    total += weight.to(tl.float32) * value.to(tl.float32)
                tap += TAPS
            tl.store(target + j, total, mask=inside)
            start += BLOCK
        tl.debug_barrier()  # the next layer reads what other threads wrote
        source = target
        between += rows.to(tl.int64) * n_out


@triton.jit(**_SHIFTED)
def narrow_adjoint_x(
    g, weights, tables, slopes, gx, periods, rows, n, width,
    NEED_X: tl.constexpr, SHARED: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The gradients of the inputs of narrow layers, last to first; a program computes one row.

    Args:
        g: gradient of the last layer's output.
        weights, tables, periods, rows, n, width: as for `narrow`.
        slopes: gradients of what `narrow` writes to ``between``, in the same places.
        gx: gradient of the first layer's input.
    """
    _enter(EARLY)
    row = tl.program_id(0).to(tl.int64)
    for layer in tl.static_range(len(weights) - 1):
        slopes += rows.to(tl.int64) * tl.load(tables[layer + 1])
    of_y = g + row * width
    for layer in tl.static_range(len(weights) - 1, -1, -1):
        w = weights[layer]
        n_in = tl.load(tables[layer])
        k = tl.load(tables[layer] + 1)
        n_out = tl.load(tables[layer + 1]) if layer + 1 < len(tables) else width
        pairs = _parts(n_out, n_in) * k
        if layer > 0:
            slopes -= rows.to(tl.int64) * n_in
        of_x = slopes + row * n_in if layer > 0 else gx + row * n
        if layer > 0 or NEED_X:
            start = 0
            while start < n_in:
                i = start + tl.arange(0, BLOCK)
                inside = i < n_in
                total = tl.full([BLOCK], 0.0, tl.float32)
                pair = 0
                while pair < pairs:
                    for u in tl.static_range(PAIRS):
                        copy = (pair + u) // k
                        tap = pair + u - copy * k
                        shift = tl.load(
                            tables[layer] + 2 + pair + u, mask=pair + u < pairs, other=0
                        )
                        j = i - shift
                        j = copy * n_in + tl.where(j < 0, j + n_in, j)
                        here = inside & (j < n_out) & (pair + u < pairs)
                        place = tap * periods[layer] + _column(j, periods[layer], SHARED)
                        weight = tl.load(w + place, mask=here, other=0.0)
                        slope = tl.load(of_y + j, mask=here, other=0.0)
                        total += weight.to(tl.float32) * slope.to(tl.float32)
                    pair += PAIRS
                tl.store(of_x + i, total, mask=inside)
                start += BLOCK
            tl.debug_barrier()
        of_y = of_x


@triton.jit(**_SHIFTED)
def circulant_adjoint_w(
    g, x, between, slopes, grads, tables, periods, rows, n, width,
    SHARES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The gradients of the weights of circulant layers in sequence, which outputs may share.

    A program computes BLOCK weights of one tap of one layer, from SHARES of the outputs that share
    each at a time.

    Args:
        g, x, between, slopes, tables, periods, rows, n, width: as for `narrow` and
            `narrow_adjoint_x`.
        grads: the gradients, one pointer for each layer.
    """
    _enter(EARLY)
    block = tl.program_id(0)
    source = x
    for layer in tl.static_range(len(grads)):
        n_in = tl.load(tables[layer])
        k = tl.load(tables[layer] + 1)
        n_out = tl.load(tables[layer + 1]) if layer + 1 < len(tables) else width
        period = periods[layer]
        per_tap = _parts(period, BLOCK)
        of_y = g if layer == len(grads) - 1 else slopes
        if (block >= 0) & (block < k * per_tap):
            tap = block // per_tap
            column = block % per_tap * BLOCK + tl.arange(0, BLOCK)
            shares = (n_out - 1) // period + 1
            # Neighbouring threads read neighbouring outputs.
            total = tl.full([SHARES, BLOCK], 0.0, tl.float32)
            first = 0
            while first < shares:
                share = first + tl.arange(0, SHARES)[:, None]
                start = share * period  # of the outputs that are of this share
                here = (share < shares) & (column < period)[None, :]
                here = here & (column[None, :] < n_out - start)
                j = start + column[None, :]
                copy = j // n_in
                at = tables[layer] + 2 + copy * k + tap
                i = j - copy * n_in + tl.load(at, mask=here, other=0)
                i = tl.where(i >= n_in, i - n_in, i)
                row = 0
                while row < rows:
                    for r in tl.static_range(ROWS):
                        there = here & (row + r < rows)
                        b = (row + r).to(tl.int64)
                        slope = tl.load(of_y + b * n_out + j, mask=there, other=0.0)
                        value = tl.load(source + b * n_in + i, mask=there, other=0.0)
                        total += slope.to(tl.float32) * value.to(tl.float32)
                    row += ROWS
                first += SHARES
            place = tap.to(tl.int64) * period + column
            tl.store(grads[layer] + place, tl.sum(total, axis=0), mask=column < period)
        block -= k * per_tap
        source = between if layer == 0 else source + rows.to(tl.int64) * n_in
        slopes += rows.to(tl.int64) * n_out


@triton.jit(**_GATHERED)
def columns(x, out, rows, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """``out[b, i, r] = x[b · ROWS + r, i]``, or 0 where x has no such row.

    What an index points to is then one run of ROWS numbers.
    """
    _enter(EARLY)
    blocks = _parts(n, BLOCK)
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = group * ROWS + tl.arange(0, ROWS)
    value = tl.load(
        x + row[None, :] * n + i[:, None],
        mask=(i < n)[:, None] & (row < rows)[None, :],
        other=0.0,
    )
    place = (group * n + i)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    tl.store(out + place, value, mask=(i < n)[:, None])


@triton.jit(**_GATHERED)
def indexed(
    x, w, y, sources, rows, n, m, k, period,
    SHARED: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``y[b, j] = Σ_t w[t, j mod period] · x[b, sources[t, j]]``; x is in `columns`.

    A source that is not an input, in a tensor that was written to in secret, gives NaN.
    """
    _enter(EARLY)
    blocks = _parts(m, BLOCK)
    j = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    x += group * n * ROWS
    stride = period if SHARED else m
    column = _column(j, period, SHARED)
    total = tl.full([BLOCK, ROWS], 0.0, tl.float32)
    tap = 0
    while tap < k:
        for u in tl.static_range(TAPS):
            here = (j < m) & (tap + u < k)
            i = tl.load(sources + (tap + u).to(tl.int64) * m + j, mask=here, other=0)
            place = (tap + u).to(tl.int64) * stride + column
            weight = tl.load(w + place, mask=here, other=0.0).to(tl.float32)
            valid = (i >= 0) & (i < n)
            weight = tl.where(valid, weight, float("nan"))
            at = i.to(tl.int64)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
            value = tl.load(x + at, mask=(here & valid)[:, None], other=0.0)
            total += weight[:, None] * value.to(tl.float32)
        tap += TAPS
    row = group * ROWS + tl.arange(0, ROWS)
    mask = (j < m)[:, None] & (row < rows)[None, :]
    tl.store(y + row[None, :] * m + j[:, None], total, mask=mask)


@triton.jit(**_GATHERED)
def indexed_adjoint(
    g, x, w, gx, gw, sources, starts, order, rows, n, m, k, period, blocks,
    SHARED: tl.constexpr, SHARES: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_W: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The gradients of x and w; g and x are in `columns`.

    Args:
        sources: as for `indexed`.
        starts, order: the connections of input i are ``order[starts[i] : starts[i + 1]]``.
        blocks: number of programs for the gradient of x; the others are for that of w, BLOCK_W
            numbers each, from SHARES of the outputs that share each at a time.
    """
    _enter(EARLY)
    program = tl.program_id(0)
    if program < blocks:
        per_group = _parts(n, BLOCK)
        group = program // per_group
        block = program % per_group
        _indexed_adjoint_x(
            g, w, gx, starts, order, rows, n, m, period, group, block, SHARED, PAIRS, ROWS, BLOCK
        )
    else:
        block = program - blocks
        _indexed_adjoint_w(g, x, gw, sources, rows, n, m, k, period, block, SHARES, ROWS, BLOCK_W)


@triton.jit
def _indexed_adjoint_x(
    g, w, gx, starts, order, rows, n, m, period, group, block,
    SHARED: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = block * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(starts + i, mask=i < n, other=0)
    stop = tl.load(starts + i + 1, mask=i < n, other=0)
    most = tl.max(stop - start, axis=0)
    total = tl.full([BLOCK, ROWS], 0.0, tl.float32)
    g += group.to(tl.int64) * m * ROWS
    pair = 0
    while pair < most:
        for u in tl.static_range(PAIRS):
            here = start + pair + u < stop
            place = tl.load(order + start + pair + u, mask=here, other=0)
            j = place % m
            at = place // m * period + _column(j, period, SHARED) if SHARED else place
            weight = tl.load(w + at, mask=here, other=0.0).to(tl.float32)
            at = j.to(tl.int64)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
            slope = tl.load(g + at, mask=here[:, None], other=0.0)
            total += weight[:, None] * slope.to(tl.float32)
        pair += PAIRS
    row = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (i < n)[:, None] & (row < rows)[None, :]
    tl.store(gx + row[None, :] * n + i[:, None], total, mask=mask)


@triton.jit
def _indexed_adjoint_w(
    g, x, gw, sources, rows, n, m, k, period, block,
    SHARES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < k * period
    tap = place // period
    column = place - tap * period
    total = tl.full([BLOCK, ROWS], 0.0, tl.float32)
    left = m  # number of outputs from the first of this share on
    while left > 0:
        outputs, inputs = (), ()
        for _ in tl.static_range(SHARES):
            here = inside & (column < left)
            j = tl.where(here, m - left + column, -1)
            source = sources + tap.to(tl.int64) * m + j
            outputs = outputs + (j,)
            inputs = inputs + (tl.load(source, mask=here, other=-1),)
            left -= period
        of_y, of_x = g, x
        row = 0
        while row < rows:
            for s in tl.static_range(SHARES):
                j, i = outputs[s], inputs[s]
                valid = (i >= 0) & (i < n)
                at = j.to(tl.int64)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
                slope = tl.load(of_y + at, mask=(j >= 0)[:, None], other=0.0)
                at = i.to(tl.int64)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
                value = tl.load(of_x + at, mask=valid[:, None], other=0.0)
                total += slope.to(tl.float32) * value.to(tl.float32)
            of_y += m.to(tl.int64) * ROWS
            of_x += n.to(tl.int64) * ROWS
            row += ROWS
    tl.store(gw + place, tl.sum(total, axis=1), mask=inside)
