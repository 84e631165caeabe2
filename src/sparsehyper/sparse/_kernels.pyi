# Arrays are given by their addresses; bytes are packed int64, or float32 for factors and offsets.
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
def copies(rows: int, n: int, m: int, k: int) -> int: ...
def space(rows: int, layers: bytes) -> tuple[int, int, int, int, int]: ...
def chain(rows: int, layers: bytes, x: int, between: int, y: int, table: int) -> None: ...
def chain_adjoint(
    threads: int,
    rows: int,
    layers: bytes,
    x: int,
    between: int,
    g: int,
    gx: int,
    gw: bytes,
    gradients: int,
    table: int,
    sums: int,
) -> None: ...
def runs(
    gather: bool,
    rows: int,
    sizes: bytes,
    factors: bytes,
    offsets: bytes,
    added: int,
    flat: int,
    run: bytes,
) -> None: ...
