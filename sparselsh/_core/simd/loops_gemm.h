/* The inner loop of the matrix products; part of loops.c. */
#include "loops.h"
#include <string.h>

/* Matrix product by packed panels (Goto and van de Geijn 2008, from whom the names MR and NR are).
   Here m is a batch or a block of neurons. A panel of a, GEMM_M x GEMM_K, stays in the second-level
   cache; a sliver of b, GEMM_K x NR, in the first; a tile of c, MR x NR, in registers: MR *
   REGS_PER_ROW of them for sums, one for a and REGS_PER_ROW for b. */
#if defined(__AVX512F__)
enum { FLOATS_PER_REG = 16, MR = 8, REGS_PER_ROW = 2 };
#elif defined(__AVX__)
enum { FLOATS_PER_REG = 8, MR = 6, REGS_PER_ROW = 2 };
#else
enum { FLOATS_PER_REG = 4, MR = 4, REGS_PER_ROW = 2 };
#endif
enum { NR = FLOATS_PER_REG * REGS_PER_ROW };
typedef float reg __attribute__((vector_size(4 * FLOATS_PER_REG)));

static inline reg load_reg(const float *p) { reg v; memcpy(&v, p, sizeof v); return v; }

/* nv registers per row, a constant where this is inlined */
static inline __attribute__((always_inline)) void tile_of(const int nv, ptrdiff_t k, const float *a,
                                                          const float *b, float *c, ptrdiff_t c_row,
                                                          int m, int n, const float *bias,
                                                          int accumulate)
{
    reg sum[MR][REGS_PER_ROW];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < nv; j++)
            sum[i][j] = (reg){0};

    for (ptrdiff_t p = 0; p < k; p++, a += MR, b += NR) {
        reg bj[REGS_PER_ROW];
        for (int j = 0; j < nv; j++)
            bj[j] = load_reg(b + j * FLOATS_PER_REG);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++)
                sum[i][j] += a[i] * bj[j];
    }

    if (m == MR && n == nv * FLOATS_PER_REG) {
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < nv; j++) {
                float *to = c + i * c_row + j * FLOATS_PER_REG;
                reg v = sum[i][j];
                if (bias)
                    v += load_reg(bias + j * FLOATS_PER_REG);
                if (accumulate)
                    v += load_reg(to);
                memcpy(to, &v, sizeof v);
            }
        return;
    }

    for (int i = 0; i < m; i++) {
        float row[NR];
        memcpy(row, sum[i], nv * sizeof sum[i][0]);
        for (int j = 0; j < n; j++) {
            float *to = c + i * c_row + j;
            *to = row[j] + (bias ? bias[j] : 0) + (accumulate ? *to : 0);
        }
    }
}

static void tile(ptrdiff_t k, const float *a, const float *b, float *c, ptrdiff_t c_row, int m,
                 int n, const float *bias, int accumulate)
{
    if (n > FLOATS_PER_REG)
        tile_of(REGS_PER_ROW, k, a, b, c, c_row, m, n, bias, accumulate);
    else  /* the end of a row: no sums that are not needed */
        tile_of(1, k, a, b, c, c_row, m, n, bias, accumulate);
}

typedef float quad __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t quad_index __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (quad_index){i, j, k, l})
#endif

/* to[p * width + i] = from[i][p] for 4 i and k p: four by four, as single floats would cost three
   times as much */
static inline void transpose4(const float *const *from, ptrdiff_t k, float *restrict to,
                              ptrdiff_t width)
{
    ptrdiff_t p = 0;

    for (; p + 4 <= k; p += 4, to += 4 * width) {
        quad a, b, c, d;
        memcpy(&a, from[0] + p, 16);
        memcpy(&b, from[1] + p, 16);
        memcpy(&c, from[2] + p, 16);
        memcpy(&d, from[3] + p, 16);

        quad ab0 = SHUFFLE(a, b, 0, 4, 1, 5), ab2 = SHUFFLE(a, b, 2, 6, 3, 7);
        quad cd0 = SHUFFLE(c, d, 0, 4, 1, 5), cd2 = SHUFFLE(c, d, 2, 6, 3, 7);
        quad t[4] = { SHUFFLE(ab0, cd0, 0, 1, 4, 5), SHUFFLE(ab0, cd0, 2, 3, 6, 7),
                      SHUFFLE(ab2, cd2, 0, 1, 4, 5), SHUFFLE(ab2, cd2, 2, 3, 6, 7) };

        for (int q = 0; q < 4; q++)
            memcpy(to + q * width, &t[q], 16);
    }

    for (; p < k; p++, to += width)
        for (int i = 0; i < 4; i++)
            to[i] = from[i][p];
}

/* to[p * width + i] = line[i][p * step]; lines from `count` on are zero */
static inline void pack_lines(const float *const *line, ptrdiff_t step, int count, int width,
                              ptrdiff_t k, float *restrict to)
{
    int i = 0;
    if (step == 1)
        for (; i + 4 <= count; i += 4)
            transpose4(line + i, k, to + i, width);
    for (; i < width; i++)
        for (ptrdiff_t p = 0; p < k; p++)
            to[p * width + i] = i < count ? line[i][p * step] : 0;
}

/* pack_lines for line[i][p * step] = from[p * step + i] */
static inline void pack_rows(const float *from, ptrdiff_t step, int count, int width, ptrdiff_t k,
                             float *restrict to)
{
    if (count == width) {
        for (ptrdiff_t p = 0; p < k; p++)
            memcpy(to + p * width, from + p * step, width * sizeof(float));
        return;
    }
    for (ptrdiff_t p = 0; p < k; p++)
        for (int i = 0; i < width; i++)
            to[p * width + i] = i < count ? from[p * step + i] : 0;
}

static void pack_a(const gemm_t *g, ptrdiff_t i0, ptrdiff_t p0, ptrdiff_t k, int count, float *to)
{
    const float *from = g->a + i0 * g->a_row + p0 * g->a_column, *line[MR];
    if (g->a_row == 1) {
        pack_rows(from, g->a_column, count, MR, k, to);
        return;
    }
    for (int i = 0; i < count; i++)
        line[i] = from + i * g->a_row;
    pack_lines(line, g->a_column, count, MR, k, to);
}

/* pack_b for bfloat16: contiguous numbers are converted, then packed; wide holds NR * GEMM_K */
static void pack_b_bfloat16(const gemm_t *g, ptrdiff_t j0, ptrdiff_t p0, ptrdiff_t k, int count,
                            float *to, float *wide)
{
    const uint16_t *b = (const uint16_t *)g->b + g->b_first;

    if (g->b_column == 1 && !(g->rows && g->gather == 1)) {
        const int32_t *rows = g->rows;
        for (ptrdiff_t p = p0; p < p0 + k; p++, to += NR) {
            if (rows && p + 8 < p0 + k)
                prefetch_run(b + rows[p + 8] * g->b_row + j0, NR * sizeof(uint16_t));
            to_float32(b + (rows ? rows[p] : p) * g->b_row + j0, to, count);
            for (int i = count; i < NR; i++)
                to[i] = 0;
        }
        return;
    }

    const float *line[NR];
    for (int i = 0; i < count; i++) {
        to_float32(b + (g->rows ? g->rows[j0 + i] : j0 + i) * g->b_column + p0 * g->b_row,
                   wide + i * GEMM_K, k);
        line[i] = wide + i * GEMM_K;
    }

    for (ptrdiff_t j = j0 + NR; g->rows && j < g->n && j < j0 + 2 * NR; j++)
        prefetch_run(b + g->rows[j] * g->b_column + p0, k * sizeof(uint16_t));
    pack_lines(line, 1, count, NR, k, to);
}

static void pack_b(const gemm_t *g, ptrdiff_t j0, ptrdiff_t p0, ptrdiff_t k, int count, float *to)
{
    const float *b = (const float *)g->b + g->b_first, *from = b + p0 * g->b_row, *line[NR];

    if (g->rows && g->gather == 2) {
        from = b + j0 * g->b_column;
        for (ptrdiff_t p = 0; p < k; p++) {
            if (p + 8 < k)
                prefetch_run(from + g->rows[p0 + p + 8] * g->b_row, NR * sizeof(float));
            pack_rows(from + g->rows[p0 + p] * g->b_row, 0, count, NR, 1, to + p * NR);
        }
    } else if (g->b_column == 1 && !g->rows) {  /* with rows and one input, b_column is 1 too */
        pack_rows(from + j0, g->b_row, count, NR, k, to);
    } else {
        for (int i = 0; i < count; i++)
            line[i] = from + (g->rows ? g->rows[j0 + i] : j0 + i) * g->b_column;

        /* the next sliver: its rows are anywhere in memory */
        for (ptrdiff_t j = j0 + NR; g->rows && j < g->n && j < j0 + 2 * NR; j++)
            prefetch_run(from + g->rows[j] * g->b_column, k * sizeof(float));
        pack_lines(line, g->b_row, count, NR, k, to);
    }
}

static void gemm(const gemm_t *g, float *work)
{
    float *panel = work, *sliver = work + GEMM_K * (GEMM_M + 8);  /* MR need not divide GEMM_M */

    for (ptrdiff_t i = 0; i < g->m; i += GEMM_M) {
        ptrdiff_t m = g->m - i < GEMM_M ? g->m - i : GEMM_M;
        for (ptrdiff_t p = 0; p < g->k || p == 0; p += GEMM_K) {
            ptrdiff_t k = g->k - p < GEMM_K ? g->k - p : GEMM_K;
            for (ptrdiff_t r = 0; r < m; r += MR)
                pack_a(g, i + r, p, k, m - r < MR ? (int)(m - r) : MR, panel + r * k);

            for (ptrdiff_t j = 0; j < g->n; j += NR) {
                int n = g->n - j < NR ? (int)(g->n - j) : NR;
                if (g->b_dtype == DTYPE_BFLOAT16)
                    pack_b_bfloat16(g, j, p, k, n, sliver, sliver + NR * GEMM_K);
                else
                    pack_b(g, j, p, k, n, sliver);
                for (ptrdiff_t r = 0; r < m; r += MR)
                    tile(k, panel + r * k, sliver, g->c + (i + r) * g->c_row + j, g->c_row,
                         m - r < MR ? (int)(m - r) : MR, n, g->bias && p == 0 ? g->bias + j : 0,
                         g->accumulate || p > 0);
            }
        }
    }
}
