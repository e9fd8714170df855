/* The inner loop of the matrix products; part of loops.c. */
#include "loops.h"
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(USE_NEON)
#include <arm_neon.h>
#endif

/* Matrix product by packed panels (Goto and van de Geijn 2008, from whom the names MR and NR are).
   Here m is a batch or a block of neurons. A panel of a, GEMM_M x GEMM_K, stays in the second-level
   cache; a sliver of b, GEMM_K x NR, in the first; a tile of c, MR x NR, in registers: MR *
   REGS_PER_ROW of them for sums, one for a and REGS_PER_ROW for b. */
#if defined(__AVX512F__)
enum { FLOATS_PER_REG = 16, MR = 8, REGS_PER_ROW = 2 };
#elif defined(__AVX__)
enum { FLOATS_PER_REG = 8, MR = 6, REGS_PER_ROW = 2 };
#elif defined(USE_NEON)
enum { FLOATS_PER_REG = 4, MR = 8, REGS_PER_ROW = 3 };
#else
enum { FLOATS_PER_REG = 4, MR = 4, REGS_PER_ROW = 2 };
#endif
enum { NR = FLOATS_PER_REG * REGS_PER_ROW };
typedef float reg __attribute__((vector_size(4 * FLOATS_PER_REG)));

static inline reg load_reg(const float *p) { reg v; memcpy(&v, p, sizeof v); return v; }

/* Products of bfloat16 numbers, two terms of a sum per lane: a word holds the terms 2 p (low half)
   and 2 p + 1 (high half) of a row of a or a column of b. Words are packed as if they were floats.
   A level without such an instruction multiplies the rounded numbers in float32. */
#if defined(__AVX512BF16__)
#define MULTIPLIES_PAIRS 1
static inline reg add_pairs(reg sum, float a, reg b)
{
    return (reg)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
}
#elif defined(USE_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define MULTIPLIES_PAIRS 1
static inline reg add_pairs(reg sum, float a, reg b)
{
    return (reg)vbfdotq_f32((float32x4_t)sum, vreinterpretq_bf16_f32(vdupq_n_f32(a)),
                            vreinterpretq_bf16_f32((float32x4_t)b));
}
#else
#define MULTIPLIES_PAIRS 0
static inline reg add_pairs(reg sum, float a, reg b) { return sum + a * b; }  /* never called */
#endif

/* Words of a panel are a multiple of this: as many as one operation sums */
#if defined(__AMX_BF16__)
enum { WORDS_PER_STEP = 16 };
#else
enum { WORDS_PER_STEP = 1 };
#endif

/* How a panel is packed: by lines, where entry (i, p) of a tile is a[i * LINE + p], which takes no
   transposition of an a with contiguous rows; or by columns, where it is a[p * MR + i]. */
enum { LINE = GEMM_LINE };

/* nv registers per row; whether a and b are words of pairs; whether a is packed by lines: constants
   where this is inlined */
static inline __attribute__((always_inline)) void tile_of(const int nv, const int pairs,
                                                          const int lines, ptrdiff_t k,
                                                          const float *a, const float *b, float *c,
                                                          ptrdiff_t c_row, int m, int n,
                                                          const float *bias, int accumulate)
{
    reg sum[MR][REGS_PER_ROW];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < nv; j++)
            sum[i][j] = (reg){0};

    for (ptrdiff_t p = 0; p < k; p++, a += lines ? 1 : MR, b += NR) {
        reg bj[REGS_PER_ROW];
        for (int j = 0; j < nv; j++)
            bj[j] = load_reg(b + j * FLOATS_PER_REG);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++)
                sum[i][j] = pairs ? add_pairs(sum[i][j], a[lines ? i * LINE : i], bj[j])
                                  : sum[i][j] + a[lines ? i * LINE : i] * bj[j];
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

#if defined(__AVX512F__)
static inline __attribute__((always_inline)) void transpose_registers(__m512 v[16])
{
    __m512 w[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        w[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512d low = _mm512_castps_pd(w[i + h]), high = _mm512_castps_pd(w[i + 2 + h]);
            v[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            v[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    /* v[4 q + r] has column 4 s + r of lines 4 q .. 4 q + 3 in its quarter s */
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        __m512 a = _mm512_shuffle_f32x4(v[r], v[4 + r], 0x88);
        __m512 b = _mm512_shuffle_f32x4(v[r], v[4 + r], 0xDD);
        __m512 c = _mm512_shuffle_f32x4(v[8 + r], v[12 + r], 0x88);
        __m512 d = _mm512_shuffle_f32x4(v[8 + r], v[12 + r], 0xDD);
        w[r] = _mm512_shuffle_f32x4(a, c, 0x88);
        w[8 + r] = _mm512_shuffle_f32x4(a, c, 0xDD);
        w[4 + r] = _mm512_shuffle_f32x4(b, d, 0x88);
        w[12 + r] = _mm512_shuffle_f32x4(b, d, 0xDD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        v[i] = w[i];
}

/* to[q * width] = v[q] for q < n */
static inline __attribute__((always_inline)) void store_registers(const __m512 v[16], ptrdiff_t n,
                                                                  float *to, ptrdiff_t width)
{
    if (n >= 16) {
#pragma GCC unroll 16
        for (int q = 0; q < 16; q++)
            _mm512_storeu_ps(to + q * width, v[q]);
    } else
        for (int q = 0; q < n; q++)
            _mm512_storeu_ps(to + q * width, v[q]);
}

/* transpose4 for 16 lines */
static inline void transpose16(const float *const *from, ptrdiff_t k, float *restrict to,
                               ptrdiff_t width)
{
    for (ptrdiff_t p = 0; p < k; p += 16) {
        const __mmask16 in = k - p < 16 ? (__mmask16)((1u << (k - p)) - 1) : 0xFFFF;
        __m512 v[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            v[i] = _mm512_maskz_loadu_ps(in, from[i] + p);
        transpose_registers(v);
        store_registers(v, k - p, to + p * width, width);
    }
}
#endif

/* to[p * width + i] = line[i][p * step]; lines from `count` on are zero */
static inline void pack_lines(const float *const *line, ptrdiff_t step, int count, int width,
                              ptrdiff_t k, float *restrict to)
{
    int i = 0;
#if defined(__AVX512F__)
    if (step == 1)
        for (; i + 16 <= count; i += 16)
            transpose16(line + i, k, to + i, width);
#endif
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

/* Pairs are packed as words: of a line, terms 2 p and 2 p + 1 side by side; of rows, those of a
   term and of the next. `halves`: what is packed is bfloat16 already, elsewhere float32. Terms from
   k on and numbers from `count` on are zero. */
static inline ptrdiff_t words_of(const int pairs, ptrdiff_t k)
{
    return !pairs ? k : ((k + 1) / 2 + WORDS_PER_STEP - 1) / WORDS_PER_STEP * WORDS_PER_STEP;
}

#if defined(__AVX512BF16__)

/* 32 terms of a line from term p < k on */
static inline __m512i words_at(const void *line, const int halves, ptrdiff_t p, ptrdiff_t k)
{
    const uint32_t in = k - p < 32 ? (1u << (k - p)) - 1 : ~0u;
    if (halves)
        return _mm512_maskz_loadu_epi16(in, (const uint16_t *)line + p);
    const float *x = (const float *)line + p;
    __m512 low = _mm512_maskz_loadu_ps((__mmask16)in, x);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps((__mmask16)(in >> 16), x + 16), low);
}

/* 16 numbers of two rows; high NULL for zeros */
static inline __m512i words_between(const void *low, const void *high, const int halves,
                                    ptrdiff_t count)
{
    const __mmask16 in = count >= 16 ? 0xFFFF : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
    const __mmask16 in_high = high ? in : 0;
    const __m512i places = _mm512_set_epi32(
        0x1F000F, 0x1E000E, 0x1D000D, 0x1C000C, 0x1B000B, 0x1A000A, 0x190009, 0x180008,
        0x170007, 0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    __m512i both;
    if (halves)
        both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi16(in, low)),
                                  _mm256_maskz_loadu_epi16(in_high, high), 1);
    else
        both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(in_high, high),
                                            _mm512_maskz_loadu_ps(in, low));
    return _mm512_permutexvar_epi16(places, both);
}

static inline void words_of_line(const float *x, ptrdiff_t k, float *restrict to)
{
    const ptrdiff_t words = words_of(1, k);
    for (ptrdiff_t p = 0; p < k; p += 32) {
        const ptrdiff_t n = words - p / 2;
        _mm512_mask_storeu_epi32(to + p / 2, n < 16 ? (__mmask16)((1u << n) - 1) : 0xFFFF,
                                 words_at(x, 0, p, k));
    }
}

static inline void words_of_rows(const void *low, const void *high, const int halves, int count,
                                 int width, float *restrict to)
{
    const ptrdiff_t size = halves ? sizeof(uint16_t) : sizeof(float);
    for (int i = 0; i < width; i += 16) {
        __m512i words = words_between((const char *)low + i * size,
                                      high ? (const char *)high + i * size : 0, halves, count - i);
        const int n = width - i;
        _mm512_mask_storeu_epi32(to + i, n >= 16 ? 0xFFFF : (__mmask16)((1u << n) - 1), words);
    }
}

/* to[p * NR + i] = word p of line i; wide is not used */
static inline void words_of_lines(const char *const *line, const int halves, int count, ptrdiff_t k,
                                  float *restrict to, float *wide)
{
    const ptrdiff_t words = words_of(1, k);
    (void)wide;
    for (int i = 0; i < NR; i += 16)
        for (ptrdiff_t p = 0; p < k; p += 32) {
            __m512 v[16];
#pragma GCC unroll 16
            for (int r = 0; r < 16; r++)
                v[r] = i + r < count ? (__m512)words_at(line[i + r], halves, p, k)
                                     : _mm512_setzero_ps();
            transpose_registers(v);
            store_registers(v, words - p / 2, to + p / 2 * NR + i, NR);
        }
}

#else

static inline void words_of_line(const float *x, ptrdiff_t k, float *restrict to)
{
    ptrdiff_t p = 0;
    for (; p + 2 <= k; p += 2)
        to[p / 2] = word_of(x[p], x[p + 1]);
    if (p < k)
        to[p / 2] = word_of(x[p], 0);
}

static inline void words_of_rows(const void *low, const void *high, const int halves, int count,
                                 int width, float *restrict to)
{
    for (int i = 0; i < count; i++) {
        if (halves) {
            const uint32_t word = ((const uint16_t *)low)[i]
                                  | (high ? (uint32_t)((const uint16_t *)high)[i] << 16 : 0);
            memcpy(to + i, &word, sizeof word);
        } else
            to[i] = word_of(((const float *)low)[i], high ? ((const float *)high)[i] : 0);
    }
    for (int i = count; i < width; i++)
        to[i] = 0;
}

/* to[p * NR + i] = word p of line i; wide holds NR lines of GEMM_K words */
static inline void words_of_lines(const char *const *line, const int halves, int count, ptrdiff_t k,
                                  float *restrict to, float *wide)
{
    const float *lines[NR];
    for (int i = 0; i < count; i++) {
        float *words = wide + i * GEMM_K;
        lines[i] = words;
        if (halves) {
            words[k / 2] = 0;  /* its high half, if k is odd */
            memcpy(words, line[i], k * sizeof(uint16_t));
        } else
            words_of_line((const float *)line[i], k, words);
    }
    pack_lines(lines, 1, count, NR, (k + 1) / 2, to);
}

#endif

/* pack_b as words */
static inline __attribute__((always_inline)) void pack_b_words(const int halves, const gemm_t *g,
                                                               ptrdiff_t j0, ptrdiff_t p0,
                                                               ptrdiff_t k, int count, float *to,
                                                               float *wide)
{
    const ptrdiff_t size = halves ? sizeof(uint16_t) : sizeof(float);
    const char *b = (const char *)g->b + g->b_first * size, *line[NR];

    if (g->b_column == 1 && !(g->rows && g->gather == 1)) {
        const int32_t *rows = g->rows ? g->rows + p0 : 0;
        const float *end = to + words_of(1, k) * NR;
        for (ptrdiff_t p = 0; p < k; p += 2, to += NR) {
            const char *low = b + ((rows ? rows[p] : p0 + p) * g->b_row + j0) * size, *high = 0;
            if (p + 1 < k)
                high = b + ((rows ? rows[p + 1] : p0 + p + 1) * g->b_row + j0) * size;
            for (ptrdiff_t q = p + 8; rows && q < p + 10 && q < k; q++)
                prefetch_run(b + (rows[q] * g->b_row + j0) * size, NR * size);
            words_of_rows(low, high, halves, count, NR, to);
        }
        memset(to, 0, (end - to) * sizeof(float));
        return;
    }

    for (int i = 0; i < count; i++)
        line[i] = b + ((g->rows ? g->rows[j0 + i] : j0 + i) * g->b_column + p0 * g->b_row) * size;
    for (ptrdiff_t j = j0 + NR; g->rows && j < g->n && j < j0 + 2 * NR; j++)
        prefetch_run(b + (g->rows[j] * g->b_column + p0) * size, k * size);
    words_of_lines(line, halves, count, k, to, wide);
}

/* Rows first .. first + count of a, by lines: count is at most MR, and lines from there on zero */
static inline void pack_lines_of_a(const int pairs, const gemm_t *g, ptrdiff_t first, ptrdiff_t p0,
                                   ptrdiff_t k, int count, float *to)
{
    for (int i = 0; i < MR; i++, to += LINE) {
        const float *from = g->a + (first + i) * g->a_row + p0;
        if (i >= count)
            memset(to, 0, words_of(pairs, k) * sizeof(float));
        else if (pairs)
            words_of_line(from, k, to);
        else if (k > 0) {  /* an empty matrix may have no address */
            memcpy(to, from, k * sizeof(float));
            if (g->in_bfloat16)
                round_to_bfloat16(to, k);
        }
    }
}

/* Rows first .. first + m by columns, of an a with contiguous columns; tiles are `tile` apart. All
   rows of a term are read together: those of the next term may be in the same set of the caches. */
static inline void pack_columns_of_a(const int pairs, const gemm_t *g, ptrdiff_t first, ptrdiff_t m,
                                     ptrdiff_t p0, ptrdiff_t k, ptrdiff_t tile, float *panel)
{
    const float *from = g->a + first + p0 * g->a_column;
    for (ptrdiff_t p = 0; p < k; p += pairs ? 2 : 1, panel += MR) {
        const float *low = from + p * g->a_column, *high = p + 1 < k ? low + g->a_column : 0;
        ptrdiff_t r = 0;
#if defined(__AVX512F__)
        for (float *to = panel; r + 2 * MR <= m; r += 2 * MR, to += 2 * tile) {
            __m512i words = _mm512_loadu_si512(low + r);
#if defined(__AVX512BF16__)
            if (pairs)
                words = words_between(low + r, high ? high + r : 0, 0, 16);
#endif
            _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(words));
            _mm256_storeu_si256((__m256i *)(to + tile), _mm512_extracti64x4_epi64(words, 1));
        }
#endif
        for (; r < m; r += MR) {
            const int count = m - r < MR ? (int)(m - r) : MR;
            float *to = panel + r / MR * tile;
            if (pairs)
                words_of_rows(low + r, high ? high + r : 0, 0, count, MR, to);
            else if (count == MR)
                memcpy(to, low + r, MR * sizeof(float));
            else
                for (int i = 0; i < MR; i++)
                    to[i] = i < count ? low[r + i] : 0;
        }
    }
}

static inline void pack_sliver(const int pairs, const gemm_t *g, ptrdiff_t j, ptrdiff_t p,
                               ptrdiff_t k, float *to, float *wide)
{
    const int n = g->n - j < NR ? (int)(g->n - j) : NR;
    if (pairs && g->b_dtype == DTYPE_BFLOAT16)
        pack_b_words(1, g, j, p, k, n, to, wide);
    else if (pairs)
        pack_b_words(0, g, j, p, k, n, to, wide);
    else if (g->b_dtype == DTYPE_BFLOAT16)
        pack_b_bfloat16(g, j, p, k, n, to, wide);
    else {
        pack_b(g, j, p, k, n, to);
        if (g->in_bfloat16)
            round_to_bfloat16(to, k * NR);
    }
}

/* the place of a sliver in g->packed */
static inline ptrdiff_t packed_place(const int pairs, const gemm_t *g, ptrdiff_t j, ptrdiff_t p,
                                     ptrdiff_t words)
{
    const ptrdiff_t n_slivers = (g->n + NR - 1) / NR;
    return ((pairs ? p / 2 : p) * n_slivers + j / NR * words) * NR;
}

/* Terms p .. p + k of rows i .. i + m of the product; `pairs` and `lines` are constants where this
   is inlined */
static inline __attribute__((always_inline)) void gemm_panel(const int pairs, const int lines,
                                                             const gemm_t *g, ptrdiff_t i,
                                                             ptrdiff_t m, ptrdiff_t p, ptrdiff_t k,
                                                             float *work)
{
    float *panel = work, *own = work + GEMM_PANEL_FLOATS, *wide = own + NR * GEMM_K;
    const ptrdiff_t words = words_of(pairs, k);
    const ptrdiff_t tile = lines ? MR * LINE : MR * words + 16;  /* 16: in different sets */
    const int accumulate = p > 0;

    if (lines)
        for (ptrdiff_t r = 0; r < m; r += MR)
            pack_lines_of_a(pairs, g, i + r, p, k, m - r < MR ? (int)(m - r) : MR,
                            panel + r / MR * tile);
    else {
        pack_columns_of_a(pairs, g, i, m, p, k, tile, panel);
        if (!pairs && g->in_bfloat16)
            for (ptrdiff_t r = 0; r < m; r += MR)
                round_to_bfloat16(panel + r / MR * tile, MR * words);
    }

    for (ptrdiff_t j = 0; j < g->n; j += NR) {
        const int n = g->n - j < NR ? (int)(g->n - j) : NR;
        const float *sliver = own, *bias = g->bias && p == 0 ? g->bias + j : 0;
        if (g->packed)
            sliver = g->packed + packed_place(pairs, g, j, p, words);
        else
            pack_sliver(pairs, g, j, p, k, own, wide);

        for (ptrdiff_t r = 0; r < m; r += MR) {
            const int count = m - r < MR ? (int)(m - r) : MR;
            float *c = g->c + (i + r) * g->c_row + j;
            if (n > FLOATS_PER_REG)
                tile_of(REGS_PER_ROW, pairs, lines, words, panel + r / MR * tile, sliver, c,
                        g->c_row, count, n, bias, accumulate);
            else  /* the end of a row: no sums that are not needed */
                tile_of(1, pairs, lines, words, panel + r / MR * tile, sliver, c, g->c_row, count,
                        n, bias, accumulate);
        }
    }
}

#if defined(__AMX_BF16__)
#include "loops_tiles.h"
#include "loops_gemm_amx.h"
#endif

static void gemm(const gemm_t *g, float *work)
{
#if defined(__AMX_BF16__)
    if (g->in_bfloat16) {
        gemm_by_tiles(g, work);
        return;
    }
#endif
    const int pairs = MULTIPLIES_PAIRS && g->in_bfloat16, lines = g->a_row != 1;
    const ptrdiff_t depth = pairs ? 2 * GEMM_K : GEMM_K;

    for (ptrdiff_t i = 0; i < g->m; i += GEMM_M) {
        ptrdiff_t m = g->m - i < GEMM_M ? g->m - i : GEMM_M;
        for (ptrdiff_t p = 0; p < g->k || p == 0; p += depth) {
            ptrdiff_t k = g->k - p < depth ? g->k - p : depth;
            if (pairs && lines)
                gemm_panel(MULTIPLIES_PAIRS, 1, g, i, m, p, k, work);
            else if (pairs)
                gemm_panel(MULTIPLIES_PAIRS, 0, g, i, m, p, k, work);
            else if (lines)
                gemm_panel(0, 1, g, i, m, p, k, work);
            else
                gemm_panel(0, 0, g, i, m, p, k, work);
        }
    }
}

static void pack_whole_b(const gemm_t *g, float *packed, float *work)
{
    const int pairs = MULTIPLIES_PAIRS && g->in_bfloat16;
    const ptrdiff_t depth = pairs ? 2 * GEMM_K : GEMM_K;
    for (ptrdiff_t p = 0; p < g->k; p += depth) {
        ptrdiff_t k = g->k - p < depth ? g->k - p : depth, words = words_of(pairs, k);
        for (ptrdiff_t j = 0; j < g->n; j += NR)
            pack_sliver(pairs, g, j, p, k, packed + packed_place(pairs, g, j, p, words), work);
    }
}
