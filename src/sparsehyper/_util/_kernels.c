/* Kernels on the CPU, in float32: products with sparse layers, and copies between one flat vector
   and many tensors. sparse/wirings.py and target/unpacking.py have the equations.

   All arrays are contiguous and are given by their addresses. The callers, sparse/native.py and
   _util/kernels.py, check dtypes, strides and shapes. Sizes and shifts are checked here at the
   start of a call, and each source when it is used, because anybody may have written to the tensor
   of the sources. A product reads and writes each weight once, whatever the batch size, and splits
   its work between the threads of PyTorch's own OpenMP pool.

   Microsoft's compiler takes no variable declared in a parallel loop, and has a min and a max. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* Not with AddressSanitizer: it is not yet running when the loader chooses among the clones. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && \
    !defined(__SANITIZE_ADDRESS__)
#define VECTORISED __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define VECTORISED
#endif

#if defined(__GNUC__)
#define PREFETCH(address, to_write) __builtin_prefetch(address, to_write)
#else
#define PREFETCH(address, to_write) (void)0
#endif

typedef int64_t i64;

enum {
    BLOCK = 8192,        /* positions handled at a time, so that a block of every row is in cache */
    SHORT_BLOCK = 1024,  /* the same for one to three rows */
    GROUP = 8,           /* rows of a batch that are interleaved */
    MAX_SERIAL = 32768,  /* products up to which waking other threads costs more than it saves */
    CHECKED = 32,        /* sources that are checked at a time */
    AHEAD = 32,          /* distance of prefetching, in connections, for one row */
    ROWS_AHEAD = 8,      /* the same for a GROUP of rows */
    MAX_COPIES = 16      /* threads that sum up a gradient in a copy of their own */
};

static i64 least(i64 a, i64 b) { return a < b ? a : b; }
static i64 most(i64 a, i64 b) { return a > b ? a : b; }

/* Whether rows · k · m products are worth waking other threads. */
static int in_parallel(i64 rows, i64 k, i64 m)
{
    return (double)rows * (double)k * (double)m > MAX_SERIAL;
}

/* y = Σ_t w[t] · x[t], elementwise over `l` positions. The sum is added to y unless `fresh`. */
VECTORISED static void taps(float *restrict y, const float **x, const float **w, i64 k, i64 l,
                            int fresh)
{
    i64 t = 0;
    if (fresh && k >= 4) {
        const float *a = x[0], *b = x[1], *c = x[2], *d = x[3];
        const float *p = w[0], *q = w[1], *r = w[2], *s = w[3];
        for (i64 j = 0; j < l; j++) y[j] = a[j] * p[j] + b[j] * q[j] + c[j] * r[j] + d[j] * s[j];
        t = 4;
    } else if (fresh && k == 3) {
        const float *a = x[0], *b = x[1], *c = x[2], *p = w[0], *q = w[1], *r = w[2];
        for (i64 j = 0; j < l; j++) y[j] = a[j] * p[j] + b[j] * q[j] + c[j] * r[j];
        t = 3;
    } else if (fresh && k == 2) {
        const float *a = x[0], *b = x[1], *p = w[0], *q = w[1];
        for (i64 j = 0; j < l; j++) y[j] = a[j] * p[j] + b[j] * q[j];
        t = 2;
    } else if (fresh) {
        const float *a = x[0], *p = w[0];
        for (i64 j = 0; j < l; j++) y[j] = a[j] * p[j];
        t = 1;
    }
    for (; t + 1 < k; t += 2) {
        const float *a = x[t], *b = x[t + 1], *p = w[t], *q = w[t + 1];
        for (i64 j = 0; j < l; j++) y[j] += a[j] * p[j] + b[j] * q[j];
    }
    if (t < k) {
        const float *a = x[t], *p = w[t];
        for (i64 j = 0; j < l; j++) y[j] += a[j] * p[j];
    }
}

/* For `rows` rows, 1 or 4: gx += g · w, and gw = Σ_r g[r] · x[r], which is added to gw unless
   `fresh`. Either of gx and gw may be null. The stride of rows is n in x and gx, and m in g. Four
   rows together read the weights and write their gradient only once. */
VECTORISED static void adjoint_rows(i64 rows, i64 n, i64 m, float *restrict gx, float *restrict gw,
                                    const float *restrict g, const float *restrict x,
                                    const float *restrict w, i64 l, int fresh)
{
    const float *g1 = g + m, *g2 = g1 + m, *g3 = g2 + m, *x1 = x + n, *x2 = x1 + n, *x3 = x2 + n;
    if (rows == 1 && gx && gw) {
        if (fresh)
            for (i64 j = 0; j < l; j++) gx[j] += g[j] * w[j], gw[j] = g[j] * x[j];
        else
            for (i64 j = 0; j < l; j++) gx[j] += g[j] * w[j], gw[j] += g[j] * x[j];
    } else if (rows == 1 && gx) {
        for (i64 j = 0; j < l; j++) gx[j] += g[j] * w[j];
    } else if (rows == 1 && fresh) {
        for (i64 j = 0; j < l; j++) gw[j] = g[j] * x[j];
    } else if (rows == 1) {
        for (i64 j = 0; j < l; j++) gw[j] += g[j] * x[j];
    } else {
        float *restrict gx1 = gx + n, *restrict gx2 = gx1 + n, *restrict gx3 = gx2 + n;
        if (gx && gw && fresh)
            for (i64 j = 0; j < l; j++) {
                gx[j] += g[j] * w[j], gx1[j] += g1[j] * w[j];
                gx2[j] += g2[j] * w[j], gx3[j] += g3[j] * w[j];
                gw[j] = g[j] * x[j] + g1[j] * x1[j] + g2[j] * x2[j] + g3[j] * x3[j];
            }
        else if (gx && gw)
            for (i64 j = 0; j < l; j++) {
                gx[j] += g[j] * w[j], gx1[j] += g1[j] * w[j];
                gx2[j] += g2[j] * w[j], gx3[j] += g3[j] * w[j];
                gw[j] += g[j] * x[j] + g1[j] * x1[j] + g2[j] * x2[j] + g3[j] * x3[j];
            }
        else if (gx)
            for (i64 j = 0; j < l; j++) {
                gx[j] += g[j] * w[j], gx1[j] += g1[j] * w[j];
                gx2[j] += g2[j] * w[j], gx3[j] += g3[j] * w[j];
            }
        else if (fresh)
            for (i64 j = 0; j < l; j++)
                gw[j] = g[j] * x[j] + g1[j] * x1[j] + g2[j] * x2[j] + g3[j] * x3[j];
        else
            for (i64 j = 0; j < l; j++)
                gw[j] += g[j] * x[j] + g1[j] * x1[j] + g2[j] * x2[j] + g3[j] * x3[j];
    }
}

/* y = W x with source(t, c·n + i) = (i + shifts[c·k + t]) mod n. Output j has the weights of column
   j mod columns. */
static void circulant(i64 rows, i64 n, i64 m, i64 k, i64 columns, const i64 *shifts, const float *x,
                      const float *w, float *y)
{
    const i64 size = rows < 4 ? SHORT_BLOCK : BLOCK, blocks = (m + size - 1) / size;
    i64 block;
    #pragma omp parallel for schedule(static) if (in_parallel(rows, k, m))
    for (block = 0; block < blocks; block++) {
        const i64 end = least((block + 1) * size, m);
        const float *from[8], *weights[8];
        for (i64 a = block * size, b; a < end; a = b) {
            const i64 copy = a / n, i = a % n, column = a % columns;
            b = least(end, least((copy + 1) * n, a + columns - column));
            for (i64 t = 0; t < k; t++) /* stop where the first source wraps around */
                b = least(b, a + n - (i + shifts[copy * k + t]) % n);
            for (i64 r = 0; r < rows; r++)
                for (i64 t = 0; t < k; t += 8) {
                    const i64 some = least(8, k - t);
                    for (i64 u = 0; u < some; u++) {
                        from[u] = x + r * n + (i + shifts[copy * k + t + u]) % n;
                        weights[u] = w + (t + u) * columns + column;
                    }
                    taps(y + r * m + a, from, weights, some, b - a, t == 0);
                }
        }
    }
}

/* to = Σ_c from[c] of `copies` arrays of l numbers */
static void add_copies(float *to, const float *from, i64 copies, i64 l)
{
    i64 i;
    #pragma omp parallel for schedule(static) if (in_parallel(copies, 1, l))
    for (i = 0; i < l; i++) {
        float sum = 0;
        for (i64 copy = 0; copy < copies; copy++) sum += from[copy * l + i];
        to[i] = sum;
    }
}

/* gx = Wᵀ g, and gw[t, c] = Σ_j Σ_r g[r, j] · x[r, source(t, j)] over all outputs j of column c;
   either may be null. Each input belongs to one thread. So does each column that belongs to one
   output; where outputs share columns, each of `copies` threads, if there are several, sums up gw in
   a copy of its own, in `sums`: [copies, k, columns]. */
static void circulant_adjoint(i64 rows, i64 n, i64 m, i64 k, i64 columns, const i64 *shifts,
                              const float *g, const float *x, const float *w, float *gx, float *gw,
                              float *sums, i64 copies)
{
    const i64 size = rows < 4 ? SHORT_BLOCK : BLOCK, blocks = (n + size - 1) / size;
    const i64 taps = (m + n - 1) / n * k, weights = k * columns;
    const int shared = gw && columns < m, apart = shared && copies > 1;
    i64 used = 1; /* there may be fewer threads than asked for */
    #pragma omp parallel num_threads((int)copies) if (copies > 1)
    {
        i64 thread = 0, threads = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
        if (thread == 0) used = threads;
        float *own = apart ? sums + thread * weights : gw;
        if (shared) memset(own, 0, weights * sizeof(float));
        for (i64 block = blocks * thread / threads; block < blocks * (thread + 1) / threads;
             block++) {
            const i64 start = block * size, end = least(start + size, n);
            if (gx)
                for (i64 r = 0; r < rows; r++)
                    memset(gx + r * n + start, 0, (end - start) * sizeof(float));
            for (i64 tap = 0; tap < taps; tap++) {
                const i64 copy = tap / k, t = tap % k;
                for (i64 a = start, b; a < end; a = b) {
                    const i64 i = (a + n - shifts[tap]) % n, j = copy * n + i, c = j % columns;
                    b = least(end, least(a + n - i, a + columns - c));
                    const i64 l = least(b - a, m - j), at = t * columns + c;
                    for (i64 r = 0, some; r < rows && l > 0; r += some) {
                        some = rows - r < 4 ? 1 : 4;
                        adjoint_rows(some, n, m, gx ? gx + r * n + a : NULL, own ? own + at : NULL,
                                     g + r * m + j, x + r * n + a, w + at, l, r == 0 && !shared);
                    }
                }
            }
        }
    }
    if (apart) add_copies(gw, sums, used, weights);
}

/* Transpose `width` rows of a batch: [width, n] to [n, width]. */
static void interleave(float *to, const float *from, i64 width, i64 n)
{
    i64 i;
    #pragma omp parallel for schedule(static) if (in_parallel(width, 1, n))
    for (i = 0; i < n; i++)
        for (i64 r = 0; r < width; r++) to[i * width + r] = from[r * n + i];
}

/* Whether a source is one of n < 2³¹ inputs. Without its sign, a negative number is a large one. */
#define IS_INPUT(source, n) ((uint32_t)(source) < (uint32_t)(n))

/* Whether `l` sources are inputs: neither source nor last - source has its sign bit set. */
static inline int are_inputs(const int32_t *sources, i64 l, i64 n)
{
    const uint32_t last = (uint32_t)(n - 1);
    uint32_t bits = 0;
    for (i64 j = 0; j < l; j++) bits |= (uint32_t)sources[j] | (last - (uint32_t)sources[j]);
    return bits >> 31 == 0;
}

/* Like all functions that follow, this returns whether all sources are inputs. */
VECTORISED static int gather_one(float *restrict y, const float *restrict x,
                                 const float *restrict w, const int32_t *restrict sources, i64 n,
                                 i64 l, int fresh)
{
    for (i64 a = 0, b; a < l; a = b) {
        b = least(a + CHECKED, l);
        if (!are_inputs(sources + a, b - a, n)) return 0;
        if (fresh)
            for (i64 j = a; j < b; j++) y[j] = w[j] * x[sources[j]];
        else
            for (i64 j = a; j < b; j++) y[j] += w[j] * x[sources[j]];
    }
    return 1;
}

VECTORISED static int gather_rows(float *restrict y, const float *restrict x,
                                  const float *restrict w, const int32_t *restrict sources, i64 n,
                                  i64 l, i64 width)
{
    for (i64 j = 0; j < l; j++) {
        if (!IS_INPUT(sources[j], n)) return 0;
        const float *from = x + sources[j] * width;
        if (j + ROWS_AHEAD < l) PREFETCH(x + sources[j + ROWS_AHEAD] * width, 0);
        for (i64 r = 0; r < width; r++) y[j * width + r] += w[j] * from[r];
    }
    return 1;
}

/* As circulant. */
static int indexed(i64 rows, i64 n, i64 m, i64 k, i64 columns, const int32_t *sources,
                   const float *x, const float *w, float *y, float *table)
{
    int ok = 1;
    for (i64 first = 0; first < rows; first += GROUP) {
        const i64 width = least(GROUP, rows - first);
        if (width > 1) interleave(table, x + first * n, width, n);
        const i64 size = BLOCK / width, blocks = (m + size - 1) / size;
        i64 block;
        #pragma omp parallel for schedule(static) if (in_parallel(width, k, m)) reduction(&& : ok)
        for (block = 0; block < blocks; block++) {
            const i64 start = block * size, end = least(start + size, m), l = end - start;
            float sums[BLOCK];
            if (width > 1) memset(sums, 0, l * width * sizeof(float));
            for (i64 a = start, b; a < end; a = b) {
                const i64 column = a % columns;
                b = least(end, a + columns - column);
                for (i64 t = 0; t < k; t++) {
                    const float *weights = w + t * columns + column;
                    if (width == 1)
                        ok &= gather_one(y + first * m + a, x + first * n, weights,
                                         sources + t * m + a, n, b - a, t == 0);
                    else
                        ok &= gather_rows(sums + (a - start) * width, table, weights,
                                          sources + t * m + a, n, b - a, width);
                }
            }
            if (width == 1) continue;
            for (i64 r = 0; r < width; r++)
                for (i64 j = 0; j < l; j++)
                    y[(first + r) * m + start + j] = sums[j * width + r];
        }
    }
    return ok;
}

VECTORISED static int scatter_one(float *gx, float *restrict gw, const float *restrict g,
                                  const float *restrict x, const float *restrict w,
                                  const int32_t *restrict sources, i64 n, i64 l, int fresh)
{
    for (i64 a = 0, b; a < l; a = b) {
        b = least(a + CHECKED, l);
        if (!are_inputs(sources + a, b - a, n)) return 0;
        if (gx && gw && fresh) {
            for (i64 j = a; j < b; j++) {
                const int32_t source = sources[j];
                if (j + AHEAD < l) {
                    PREFETCH(x + sources[j + AHEAD], 0);
                    PREFETCH(gx + sources[j + AHEAD], 1);
                }
                gw[j] = g[j] * x[source];
                gx[source] += g[j] * w[j];
            }
            continue;
        }
        if (gw && fresh)
            for (i64 j = a; j < b; j++) gw[j] = g[j] * x[sources[j]];
        else if (gw)
            for (i64 j = a; j < b; j++) gw[j] += g[j] * x[sources[j]];
        if (gx)
            for (i64 j = a; j < b; j++) gx[sources[j]] += g[j] * w[j];
    }
    return 1;
}

VECTORISED static int scatter_rows(float *restrict gx, float *restrict gw,
                                   const float *restrict g, const float *restrict x,
                                   const float *restrict w, const int32_t *restrict sources, i64 n,
                                   i64 l, int fresh, i64 width)
{
    for (i64 j = 0; j < l; j++) {
        if (!IS_INPUT(sources[j], n)) return 0;
        const i64 at = sources[j] * width;
        if (j + ROWS_AHEAD < l) {
            const i64 next = sources[j + ROWS_AHEAD] * width;
            if (gw) PREFETCH(x + next, 0);
            if (gx) PREFETCH(gx + next, 1);
        }
        const float *gj = g + j * width;
        if (gw) {
            float sum = fresh ? 0 : gw[j];
            for (i64 r = 0; r < width; r++) sum += gj[r] * x[at + r];
            gw[j] = sum;
        }
        if (gx)
            for (i64 r = 0; r < width; r++) gx[at + r] += w[j] * gj[r];
    }
    return 1;
}

/* As circulant_adjoint. Many outputs use the same input, so each of `copies` threads sums up gx in
   a copy of its own too: [copies, n, width] in `sums`, behind the copies of gw. */
static int indexed_adjoint(i64 rows, i64 n, i64 m, i64 k, i64 columns, const int32_t *sources,
                           const float *g, const float *x, const float *w, float *gx, float *gw,
                           float *table, float *sums, i64 copies)
{
    const int shared = gw && columns < m, apart = shared && copies > 1;
    float *sums_w = apart ? sums : gw;
    int ok = 1;
    if (apart) sums += copies * k * columns;
    if (shared) memset(sums_w, 0, copies * k * columns * sizeof(float));
    for (i64 first = 0; first < rows; first += GROUP) {
        const i64 width = least(GROUP, rows - first);
        const float *inputs = x + first * n;
        if (width > 1 && gw) {
            interleave(table, x + first * n, width, n);
            inputs = table;
        }
        const i64 size = BLOCK / width, blocks = (m + size - 1) / size;
        const int fresh = first == 0 && !shared;
        i64 used = 1; /* there may be fewer threads than asked for */
        #pragma omp parallel num_threads((int)copies) if (copies > 1) reduction(&& : ok)
        {
            i64 thread = 0, threads = 1;
#ifdef _OPENMP
            thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
            if (thread == 0) used = threads;
            float *own = gx ? sums + thread * n * width : NULL;
            float *own_w = apart ? sums_w + thread * k * columns : gw;
            if (gx) memset(own, 0, n * width * sizeof(float));
            float rows_of_g[BLOCK];
            for (i64 block = blocks * thread / threads; block < blocks * (thread + 1) / threads;
                 block++) {
                const i64 start = block * size, end = least(start + size, m);
                const float *grad = g + first * m + start;
                if (width > 1) {
                    for (i64 r = 0; r < width; r++)
                        for (i64 j = start; j < end; j++)
                            rows_of_g[(j - start) * width + r] = g[(first + r) * m + j];
                    grad = rows_of_g;
                }
                for (i64 a = start, b; a < end; a = b) {
                    const i64 column = a % columns;
                    const float *grad_a = grad + (a - start) * width;
                    b = least(end, a + columns - column);
                    for (i64 t = 0; t < k; t++) {
                        const i64 at = t * columns + column;
                        const int32_t *some = sources + t * m + a;
                        float *to = own_w ? own_w + at : NULL;
                        if (width == 1)
                            ok &= scatter_one(own, to, grad_a, inputs, w + at, some, n, b - a,
                                              fresh);
                        else
                            ok &= scatter_rows(own, to, grad_a, inputs, w + at, some, n, b - a,
                                               fresh, width);
                    }
                }
            }
        }
        if (!gx) continue;
        i64 i;
        #pragma omp parallel for schedule(static) if (in_parallel(copies, width, n))
        for (i = 0; i < n; i++)
            for (i64 r = 0; r < width; r++) {
                float sum = 0;
                for (i64 c = 0; c < used; c++) sum += sums[(c * n + i) * width + r];
                gx[(first + r) * n + i] = sum;
            }
    }
    if (apart) add_copies(gw, sums_w, copies, k * columns);
    return ok;
}

static i64 threads_now(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* One layer of a chain, as sparse/native.py packs it. */
typedef struct {
    i64 n, m, k; /* inputs, outputs, fan-in */
    i64 columns; /* weights of a tap: m, or fewer, which outputs share */
    i64 is_circulant;
    i64 wiring, w; /* addresses of the shifts or sources, and of the weights */
} Layer;

/* Number of threads, of those given, for the adjoint of a layer. Each thread of indexed_adjoint adds
   up n sums besides its share of the k · m products; where outputs share columns, each has sums for
   the weights. */
static i64 copies_of(i64 threads, i64 rows, Layer l)
{
    if (!in_parallel(l.is_circulant ? rows : least(rows, GROUP), l.k, l.m)) return 1;
    if (l.is_circulant) return l.columns < l.m ? least(threads, MAX_COPIES) : threads;
    return least(threads, least(MAX_COPIES, most(2, l.k * l.m / l.n)));
}

/* Sizes, in floats, of the buffers that a chain needs beside its operands. */
typedef struct {
    i64 between;      /* outputs of all layers but the last */
    i64 gradients[2]; /* inputs' gradients of even and of odd layers, the first excluded */
    i64 table, sums;  /* buffers of indexed_adjoint, and of circulant_adjoint */
} Space;

static Space space_of(i64 threads, i64 rows, i64 count, const Layer *layer)
{
    Space space = {0, {0, 0}, 0, 0};
    const i64 width = least(GROUP, rows);
    for (i64 i = 0; i < count; i++) {
        if (i < count - 1) space.between += rows * layer[i].m;
        if (i > 0) space.gradients[i % 2] = most(space.gradients[i % 2], rows * layer[i].n);
        const i64 copies = copies_of(threads, rows, layer[i]);
        const int apart = layer[i].columns < layer[i].m && copies > 1;
        i64 sums = apart ? copies * layer[i].k * layer[i].columns : 0;
        if (!layer[i].is_circulant) {
            if (width > 1) space.table = most(space.table, layer[i].n * width);
            sums += copies * layer[i].n * width;
        }
        space.sums = most(space.sums, sums);
    }
    return space;
}

enum { OK = -1 };

/* Returns the first layer that has a source which is not an input, or OK. */
static i64 chain(i64 rows, i64 count, const Layer *layer, const float *x, float *between, float *y,
                 float *table)
{
    for (i64 i = 0; i < count; i++) {
        const Layer l = layer[i];
        const float *w = (const float *)l.w;
        float *out = i < count - 1 ? between : y;
        if (l.is_circulant)
            circulant(rows, l.n, l.m, l.k, l.columns, (const i64 *)l.wiring, x, w, out);
        else if (!indexed(rows, l.n, l.m, l.k, l.columns, (const int32_t *)l.wiring, x, w, out,
                          table))
            return i;
        x = out;
        between += i < count - 1 ? rows * l.m : 0;
    }
    return OK;
}

/* The gradients gw of all layers, and gx of the first; a null address means that a gradient is not
   wanted. Returns what chain returns. */
static i64 chain_adjoint(i64 threads, i64 rows, i64 count, const Layer *layer, const float *x,
                         const float *between, const float *g, float *gx, float *const *gw,
                         float *gradients, float *table, float *sums)
{
    const Space space = space_of(threads, rows, count, layer);
    i64 first = 0; /* first layer with a wanted gradient */
    while (!gx && first < count && !gw[first]) first++;
    between += space.between;
    for (i64 i = count - 1; i >= first; i--) {
        const Layer l = layer[i];
        if (i > 0) between -= rows * l.n;
        const float *in = i > 0 ? between : x, *w = (const float *)l.w;
        float *to = i > first ? gradients + (i % 2) * space.gradients[0] : i > 0 ? NULL : gx;
        const i64 copies = copies_of(threads, rows, l);
        if (l.is_circulant)
            circulant_adjoint(rows, l.n, l.m, l.k, l.columns, (const i64 *)l.wiring, g, in, w, to,
                              gw[i], sums, copies);
        else if (!indexed_adjoint(rows, l.n, l.m, l.k, l.columns, (const int32_t *)l.wiring, g, in,
                                  w, to, gw[i], table, sums, copies))
            return i;
        g = to;
    }
    return OK;
}

VECTORISED static void scale(float *restrict to, const float *restrict from,
                             const float *restrict added, float factor, float offset, i64 l)
{
    if (added)
        for (i64 j = 0; j < l; j++) to[j] = added[j] + factor * from[j];
    else if (offset != 0)
        for (i64 j = 0; j < l; j++) to[j] = offset + factor * from[j];
    else
        for (i64 j = 0; j < l; j++) to[j] = factor * from[j];
}

/* Copies between `flat`, [rows, Σ sizes], and one array [rows, size] for each run of its columns:
   run = offset + factor · flat, or to `gather`, flat = factor · run. If `added`, [Σ sizes], is not
   null, it is used instead of the offsets. A run that is null is skipped. Each thread has its share
   of the columns. */
static void runs(int gather, i64 rows, i64 count, const i64 *sizes, const float *factors,
                 const float *offsets, const float *added, float *flat, float *const *run)
{
    i64 total = 0;
    for (i64 i = 0; i < count; i++) total += sizes[i];
    #pragma omp parallel if (in_parallel(rows, 1, total))
    {
        i64 thread = 0, threads = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
        const i64 first = total * thread / threads, last = total * (thread + 1) / threads;
        i64 start = 0;
        for (i64 i = 0; i < count; start += sizes[i], i++) {
            const i64 a = start > first ? start : first, b = least(start + sizes[i], last);
            for (i64 r = 0; r < rows && a < b && run[i]; r++) {
                float *in_flat = flat + r * total + a, *in_run = run[i] + r * sizes[i] + a - start;
                const float *in_added = added ? added + a : NULL;
                if (gather) scale(in_flat, in_run, NULL, factors[i], 0, b - a);
                else scale(in_run, in_flat, in_added, factors[i], offsets[i], b - a);
            }
        }
    }
}

/* Check `size` bytes of layers; set an exception and return 0 if the kernels cannot take them. */
static int check_layers(i64 rows, const Layer *layer, i64 size)
{
    if (rows < 0 || size % (i64)sizeof(Layer)) {
        PyErr_SetString(PyExc_ValueError,
                        "`rows` must be at least 0, and `layers` whole packed layers");
        return 0;
    }
    for (const Layer *l = layer; l < layer + size / (i64)sizeof(Layer); l++) {
        if (l->n < 1 || l->n > INT32_MAX || l->m < 0 || l->k < 1) {
            PyErr_Format(PyExc_ValueError,
                         "a sparse layer must have 1 to 2147483647 inputs and a fan-in of at least "
                         "1, got %zd inputs, %zd outputs and a fan-in of %zd",
                         (Py_ssize_t)l->n, (Py_ssize_t)l->m, (Py_ssize_t)l->k);
            return 0;
        }
        if (l->columns > l->m || (l->columns < 1 && l->m > 0)) {
            PyErr_Format(PyExc_ValueError,
                         "the weights of a sparse layer of %zd outputs must have 1 to %zd columns, "
                         "got %zd",
                         (Py_ssize_t)l->m, (Py_ssize_t)l->m, (Py_ssize_t)l->columns);
            return 0;
        }
        if (!l->is_circulant) continue;
        const i64 *shifts = (const i64 *)l->wiring;
        for (i64 i = 0; i < (l->m + l->n - 1) / l->n * l->k; i++)
            if (shifts[i] < 0 || shifts[i] >= l->n) {
                PyErr_Format(PyExc_ValueError, "`shifts` must lie in [0, %zd), got %zd",
                             (Py_ssize_t)l->n, (Py_ssize_t)shifts[i]);
                return 0;
            }
    }
    return 1;
}

/* None, or an exception for a layer that has a source which is not an input. */
static PyObject *as_python(i64 result, const Layer *layer)
{
    if (result == OK) Py_RETURN_NONE;
    const Layer l = layer[result];
    const int32_t *source = (const int32_t *)l.wiring, *last = source + l.k * l.m - 1;
    while (source < last && IS_INPUT(*source, l.n)) source++;
    PyErr_Format(PyExc_ValueError, "`sources` of layer %zd must lie in [0, %zd), got %d",
                 (Py_ssize_t)result, (Py_ssize_t)l.n, (int)*source);
    return NULL;
}

static PyObject *py_space(PyObject *self, PyObject *args)
{
    Py_ssize_t rows, size;
    const char *layers;
    if (!PyArg_ParseTuple(args, "ny#", &rows, &layers, &size)) return NULL;
    const Layer *layer = (const Layer *)layers;
    if (!check_layers(rows, layer, size)) return NULL;
    const i64 threads = threads_now();
    const Space s = space_of(threads, rows, size / (Py_ssize_t)sizeof(Layer), layer);
    return Py_BuildValue("nnnnn", (Py_ssize_t)threads, (Py_ssize_t)s.between,
                         (Py_ssize_t)(s.gradients[0] + s.gradients[1]), (Py_ssize_t)s.table,
                         (Py_ssize_t)s.sums);
}

static PyObject *py_chain(PyObject *self, PyObject *args)
{
    Py_ssize_t rows, size, x, between, y, table;
    const char *layers;
    if (!PyArg_ParseTuple(args, "ny#nnnn", &rows, &layers, &size, &x, &between, &y, &table))
        return NULL;
    const Layer *layer = (const Layer *)layers;
    if (!check_layers(rows, layer, size)) return NULL;
    i64 result;
    Py_BEGIN_ALLOW_THREADS
    result = chain(rows, size / (Py_ssize_t)sizeof(Layer), layer, (float *)x, (float *)between,
                   (float *)y, (float *)table);
    Py_END_ALLOW_THREADS
    return as_python(result, layer);
}

static PyObject *py_chain_adjoint(PyObject *self, PyObject *args)
{
    Py_ssize_t threads, rows, size, x, between, g, gx, gradients, table, sums, wanted;
    const char *layers, *gw;
    if (!PyArg_ParseTuple(args, "nny#nnnny#nnn", &threads, &rows, &layers, &size, &x, &between, &g,
                          &gx, &gw, &wanted, &gradients, &table, &sums))
        return NULL;
    const Layer *layer = (const Layer *)layers;
    const Py_ssize_t count = size / (Py_ssize_t)sizeof(Layer);
    if (!check_layers(rows, layer, size)) return NULL;
    if (wanted != count * (Py_ssize_t)sizeof(float *)) {
        PyErr_SetString(PyExc_ValueError, "`gw` must hold an address for each layer");
        return NULL;
    }
    i64 result;
    Py_BEGIN_ALLOW_THREADS
    result = chain_adjoint(threads, rows, count, layer, (float *)x, (float *)between, (float *)g,
                           (float *)gx, (float *const *)gw, (float *)gradients, (float *)table,
                           (float *)sums);
    Py_END_ALLOW_THREADS
    return as_python(result, layer);
}

static PyObject *py_runs(PyObject *self, PyObject *args)
{
    Py_ssize_t rows, total, added, flat, of_sizes, of_factors, of_offsets, of_runs;
    int gather;
    const char *sizes, *factors, *offsets, *run;
    if (!PyArg_ParseTuple(args, "pnny#y#y#nny#", &gather, &rows, &total, &sizes, &of_sizes,
                          &factors, &of_factors, &offsets, &of_offsets, &added, &flat, &run,
                          &of_runs))
        return NULL;
    const i64 count = of_sizes / (i64)sizeof(i64), *size = (const i64 *)sizes;
    int ok = rows >= 0 && of_sizes == count * (i64)sizeof(i64) &&
               of_factors == count * (i64)sizeof(float) &&
               of_offsets == count * (i64)sizeof(float) && of_runs == count * (i64)sizeof(float *);
    i64 left = total;
    for (i64 i = 0; ok && i < count; i++) {
        ok = size[i] >= 0 && size[i] <= left;
        left -= size[i];
    }
    if (!ok || left != 0) {
        PyErr_Format(PyExc_ValueError,
                     "`sizes` must add up to %zd, with a run, a factor and an offset for each", total);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    runs(gather, rows, count, size, (const float *)factors, (const float *)offsets, (float *)added,
         (float *)flat, (float *const *)run);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"space", py_space, METH_VARARGS,
     "space(rows, layers): the number of threads, and the sizes of the buffers between, gradients, "
     "table and sums for that number; layers are packed: n, m, k, columns, is_circulant, and the "
     "addresses of wiring and weights"},
    {"chain", py_chain, METH_VARARGS,
     "chain(rows, layers, x, between, y, table): compute y; arrays are addresses"},
    {"chain_adjoint", py_chain_adjoint, METH_VARARGS,
     "chain_adjoint(threads, rows, layers, x, between, g, gx, gw, gradients, table, sums): compute "
     "gx and gw; threads is as space returned it, gw holds packed addresses"},
    {"runs", py_runs, METH_VARARGS,
     "runs(gather, rows, numel, sizes, factors, offsets, added, flat, run): copy runs to flat "
     "(gather) or back; sizes, factors, offsets and the addresses in run are packed"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Kernels on the CPU, in float32.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    PyObject *made = PyModule_Create(&module);
#ifdef _OPENMP
    const int openmp = 1;
#else
    const int openmp = 0;
#endif
    if (made && PyModule_AddIntConstant(made, "openmp", openmp) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
