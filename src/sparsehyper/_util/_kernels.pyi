# Arrays are given by their addresses. `bytes` hold int64, or float32 for factors and offsets.
openmp: int  # 1 if built with OpenMP: the kernels then use several threads

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
    numel: int,
    sizes: bytes,
    factors: bytes,
    offsets: bytes,
    added: int,
    flat: int,
    run: bytes,
) -> None: ...
