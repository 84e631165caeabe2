# Arrays are given by their addresses; `shifts` is packed int64.
def circulant(rows: int, n: int, m: int, k: int, shifts: bytes, x: int, w: int, y: int) -> None: ...
def circulant_adjoint(
    rows: int, n: int, m: int, k: int, shifts: bytes, g: int, x: int, w: int, gx: int, gw: int
) -> None: ...
def indexed(
    rows: int, n: int, m: int, k: int, sources: int, x: int, w: int, y: int, table: int
) -> None: ...
def indexed_adjoint(
    rows: int,
    n: int,
    m: int,
    k: int,
    sources: int,
    g: int,
    x: int,
    w: int,
    gx: int,
    gw: int,
    table: int,
    sums: int,
    copies: int,
) -> None: ...
def width(rows: int) -> int: ...
def copies(rows: int, m: int, k: int) -> int: ...
