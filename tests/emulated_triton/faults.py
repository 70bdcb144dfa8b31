"""Small kernels, right ones and ones with a fault planted: a comment `fault: NAME` marks the line to be named.

A planted fault is the constexpr FAULT's name; with another, or none, the kernel is right.
"""

import triton
import triton.language as tl


@triton.jit
def scale_kernel(x, y, columns, stride, gain, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """y = gain · x for `x [rows, columns]` with rows `stride` apart and `y` dense; a program a row."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    if FAULT == "load before the start":
        v = tl.load(x + row * stride + i - 1, mask=inside)  # fault: load before the start
    elif FAULT == "load past the end":
        v = tl.load(x + row * stride + i)  # fault: load past the end
    elif FAULT == "row stride":
        v = tl.load(x + row * (stride + 1) + i, mask=inside)  # fault: row stride
    else:
        v = tl.load(x + row * stride + i, mask=inside)
    v = v * gain
    if FAULT == "store past the end":
        tl.store(y + row * columns + i, v)  # fault: store past the end
    elif FAULT == "two write one":
        tl.store(y + i, v, mask=inside)  # fault: two write one
    elif FAULT == "nothing written":
        tl.store(y + row * columns + i, v, mask=inside & (row > 0))
    elif FAULT == "one reads what another writes":
        tl.store(y + row * columns + i, v, mask=inside)
        v = tl.load(y + i, mask=inside)  # fault: one reads what another writes
        tl.store(y + row * columns + i, v, mask=inside & (v != v))
    else:
        tl.store(y + row * columns + i, v, mask=inside)


@triton.jit
def arithmetic_kernel(a, b, c, y, BLOCK: tl.constexpr):
    """y = a · b + c, rounded after each operation as the elements' type has it."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(a + i) * tl.load(b + i) + tl.load(c + i))


@triton.jit
def scalars_kernel(y, annotated: tl.float64, plain):
    """What arrives of two Python floats."""
    tl.store(y, annotated)
    tl.store(y + 1, plain.to(tl.float64))


@triton.jit
def sums_kernel(x, y, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y = the sums of the even and of the odd rows of `x [ROWS, BLOCK]`: a tuple carried through a loop."""
    i = tl.arange(0, BLOCK)
    sums = (tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32))
    for row in range(0, ROWS, 2):
        even = tl.load(x + row * BLOCK + i)
        odd = tl.load(x + (row + 1) * BLOCK + i)
        sums = (sums[0] + even, sums[1] + odd)
    tl.store(y + i, sums[0])
    tl.store(y + BLOCK + i, sums[1])
