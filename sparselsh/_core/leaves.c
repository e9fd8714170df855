/* The leaf loops of one instruction set; LEVEL names it. See simd.h for what each computes.

   Sums are reassociated by `omp simd reduction`, here only and never by -ffast-math, which would
   flush denormals in the whole process. Several independent accumulators hide the latency of the FMA:
   one vector at a time waits four cycles for each addition. */
#include "simd.h"
#include <math.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define STRING_(a) #a
#define STRING(a) STRING_(a)

/* sixteen floats: one register of AVX-512, two of AVX, four of SSE or NEON */
typedef float vec __attribute__((vector_size(64)));
enum { VEC = 16 };

static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }

static inline float sum(vec v)
{
    float s = 0;
    for (int k = 0; k < VEC; k++)
        s += v[k];
    return s;
}

static float dot(const float *a, const float *b, ptrdiff_t n)
{
    ptrdiff_t k = 0;
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (; k + 4 * VEC <= n; k += 4 * VEC) {
        s0 += load(a + k) * load(b + k);
        s1 += load(a + k + VEC) * load(b + k + VEC);
        s2 += load(a + k + 2 * VEC) * load(b + k + 2 * VEC);
        s3 += load(a + k + 3 * VEC) * load(b + k + 3 * VEC);
    }
    for (; k + VEC <= n; k += VEC)
        s0 += load(a + k) * load(b + k);
    float s = sum((s0 + s1) + (s2 + s3));
    for (; k < n; k++)
        s += a[k] * b[k];
    return s;
}

static void axpy(float a, const float *restrict x, float *restrict y, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++)
        y[k] += a * x[k];
}

static float gather_dot(const float *data, const int32_t *indices, ptrdiff_t n, const float *dense)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (ptrdiff_t k = 0; k < n; k++)
        s += data[k] * dense[indices[k]];
    return s;
}

static void scatter_axpy(float a, const float *data, const int32_t *indices, ptrdiff_t n, float *dense)
{
    for (ptrdiff_t k = 0; k < n; k++)
        dense[indices[k]] += a * data[k];
}

static float max(const float *x, ptrdiff_t n)
{
    float m = x[0];
#pragma omp simd reduction(max : m)
    for (ptrdiff_t k = 1; k < n; k++)
        m = x[k] > m ? x[k] : m;
    return m;
}

static void scale(float a, float *x, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++)
        x[k] *= a;
}

/* exp(x) for x <= 0 within 2 units in the last place; below -87 it is 0 for all that follows.
   x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, so that r keeps its digits), a polynomial
   in r, then n goes into the exponent. Adding 1.5 * 2^23 rounds to an integer that stands in the low bits. */
static inline float exp_negative(float x)
{
    const float magic = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * (4.1666502e-2f
            + r * (8.3333741e-3f + r * 1.3981999e-3f)))));
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000 + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static float exp_sum(float *x, ptrdiff_t n, float shift)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (ptrdiff_t k = 0; k < n; k++) {
        x[k] = exp_negative(x[k] - shift);
        s += x[k];
    }
    return s;
}

/* log(1 + u), u in [0, 1], as 2 artanh(u / (2 + u)); the series' ninth term is below 1e-9 */
static inline float log1p_unit(float u)
{
    float s = u / (2.0f + u), q = s * s;
    return 2.0f * s * (1.0f + q * (1 / 3.0f + q * (1 / 5.0f + q * (1 / 7.0f + q * (1 / 9.0f
             + q * (1 / 11.0f + q * (1 / 13.0f + q * (1 / 15.0f))))))));
}

static float sigmoid_sum(float *z, ptrdiff_t n)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (ptrdiff_t k = 0; k < n; k++) {
        float positive = z[k] > 0 ? z[k] : 0;
        float u = exp_negative(-fabsf(z[k]));
        s += positive + log1p_unit(u);
        z[k] = (z[k] > 0 ? 1.0f : u) / (1.0f + u);
    }
    return s;
}

/* A byte shuffle looks 16 nibbles up at once. Sums are kept in 16 bits: adding a register of bytes as 16-bit
   numbers adds low + 256 high; the sum of the high bytes, kept beside it, is taken off at the end.
   A score is stored only if it reaches the floor, which few do. */
#if defined(__AVX512BW__)

static inline __m256i sum_lanes(__m512i lo, __m512i hi)
{
    __m256i a = _mm256_add_epi16(_mm512_castsi512_si256(lo), _mm512_extracti64x4_epi64(lo, 1));
    __m256i b = _mm256_add_epi16(_mm512_castsi512_si256(hi), _mm512_extracti64x4_epi64(hi, 1));
    return _mm256_add_epi16(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

static inline ptrdiff_t keep(__m512i even, __m512i odd, float a, float b, const float *factors, float floor,
                             int32_t first, int32_t *ids, float *scores)
{
    even = _mm512_sub_epi16(even, _mm512_slli_epi16(odd, 8));
    __m256i sums = sum_lanes(_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
    __m512 s = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums));
    s = _mm512_fmadd_ps(s, _mm512_set1_ps(a), _mm512_set1_ps(b));
    s = _mm512_mul_ps(s, _mm512_loadu_ps(factors));
    __mmask16 mask = _mm512_cmp_ps_mask(s, _mm512_set1_ps(floor), _CMP_GE_OQ);
    if (!mask)
        return 0;
    const __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    _mm512_storeu_ps(scores, _mm512_maskz_compress_ps(mask, s));
    _mm512_storeu_si512(ids, _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(places, _mm512_set1_epi32(first))));
    return __builtin_popcount(mask);
}

static ptrdiff_t sketch_scan(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups, const uint8_t *lut,
                             float a, float b, const float *factors, float floor, int32_t *ids, float *scores)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    ptrdiff_t found = 0;
    for (ptrdiff_t k = 0; k < n_blocks; k++) {
        __m512i even0 = _mm512_setzero_si512(), odd0 = even0, even1 = even0, odd1 = even0;
        for (ptrdiff_t g = 0; g < n_groups; g += 4) {
            __m512i codes = _mm512_loadu_si512(blocks + g * 16), t = _mm512_loadu_si512(lut + g * 16);
            __m512i lo = _mm512_shuffle_epi8(t, _mm512_and_si512(codes, nibble));
            __m512i hi = _mm512_shuffle_epi8(t, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble));
            even0 = _mm512_add_epi16(even0, lo);
            odd0 = _mm512_add_epi16(odd0, _mm512_srli_epi16(lo, 8));
            even1 = _mm512_add_epi16(even1, hi);
            odd1 = _mm512_add_epi16(odd1, _mm512_srli_epi16(hi, 8));
        }
        int32_t first = (int32_t)(k * SKETCH_BLOCK);
        found += keep(even0, odd0, a, b, factors, floor, first, ids + found, scores + found);
        found += keep(even1, odd1, a, b, factors + 16, floor, first + 16, ids + found, scores + found);
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK;
    }
    return found;
}

#elif defined(__AVX2__)

static inline ptrdiff_t keep(__m256i even, __m256i odd, float a, float b, const float *factors, float floor,
                             int32_t first, int32_t *ids, float *scores)
{
    even = _mm256_sub_epi16(even, _mm256_slli_epi16(odd, 8));
    __m256i lo = _mm256_unpacklo_epi16(even, odd), hi = _mm256_unpackhi_epi16(even, odd);
    __m128i sums[2] = { _mm_add_epi16(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1)),
                        _mm_add_epi16(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1)) };
    ptrdiff_t found = 0;
    for (int k = 0; k < 2; k++) {
        float s[8];
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(sums[k]));
        v = _mm256_fmadd_ps(v, _mm256_set1_ps(a), _mm256_set1_ps(b));
        v = _mm256_mul_ps(v, _mm256_loadu_ps(factors + 8 * k));
        unsigned mask = _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_set1_ps(floor), _CMP_GE_OQ));
        _mm256_storeu_ps(s, v);
        for (; mask; mask &= mask - 1, found++) {
            int place = __builtin_ctz(mask);
            ids[found] = first + 8 * k + place;
            scores[found] = s[place];
        }
    }
    return found;
}

static ptrdiff_t sketch_scan(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups, const uint8_t *lut,
                             float a, float b, const float *factors, float floor, int32_t *ids, float *scores)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    ptrdiff_t found = 0;
    for (ptrdiff_t k = 0; k < n_blocks; k++) {
        __m256i even0 = _mm256_setzero_si256(), odd0 = even0, even1 = even0, odd1 = even0;
        for (ptrdiff_t g = 0; g < n_groups; g += 2) {
            __m256i codes = _mm256_loadu_si256((const __m256i *)(blocks + g * 16));
            __m256i t = _mm256_loadu_si256((const __m256i *)(lut + g * 16));
            __m256i lo = _mm256_shuffle_epi8(t, _mm256_and_si256(codes, nibble));
            __m256i hi = _mm256_shuffle_epi8(t, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
            even0 = _mm256_add_epi16(even0, lo);
            odd0 = _mm256_add_epi16(odd0, _mm256_srli_epi16(lo, 8));
            even1 = _mm256_add_epi16(even1, hi);
            odd1 = _mm256_add_epi16(odd1, _mm256_srli_epi16(hi, 8));
        }
        int32_t first = (int32_t)(k * SKETCH_BLOCK);
        found += keep(even0, odd0, a, b, factors, floor, first, ids + found, scores + found);
        found += keep(even1, odd1, a, b, factors + 16, floor, first + 16, ids + found, scores + found);
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK;
    }
    return found;
}

#else

static ptrdiff_t sketch_scan(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups, const uint8_t *lut,
                             float a, float b, const float *factors, float floor, int32_t *ids, float *scores)
{
    ptrdiff_t found = 0;
    for (ptrdiff_t k = 0; k < n_blocks; k++) {
        uint16_t sums[SKETCH_BLOCK] = {0};
        for (ptrdiff_t g = 0; g < n_groups; g++)
            for (int j = 0; j < 16; j++) {
                sums[j] += lut[g * 16 + (blocks[g * 16 + j] & 15)];
                sums[j + 16] += lut[g * 16 + (blocks[g * 16 + j] >> 4)];
            }
        for (int j = 0; j < SKETCH_BLOCK; j++) {
            ids[found] = (int32_t)(k * SKETCH_BLOCK) + j;
            scores[found] = factors[j] * (a * sums[j] + b);
            found += scores[found] >= floor;
        }
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK;
    }
    return found;
}

#endif

/* Matrix product by packed panels (Goto and van de Geijn 2008). Here m is a batch or a block of neurons, so a
   panel of a, GEMM_M x GEMM_K, stays in the second-level cache, a sliver of b, GEMM_K x NR, in the first, and a
   tile of c, MR x NR, in registers: MR * NV of them for sums, one for a and NV for b. */
#if defined(__AVX512F__)
enum { VN = 16, MR = 8, NV = 2 };
#elif defined(__AVX__)
enum { VN = 8, MR = 6, NV = 2 };
#else
enum { VN = 4, MR = 4, NV = 2 };
#endif
enum { NR = VN * NV };
typedef float reg __attribute__((vector_size(4 * VN)));

static inline reg load_reg(const float *p) { reg v; memcpy(&v, p, sizeof v); return v; }

static void tile(ptrdiff_t k, const float *a, const float *b, float *c, ptrdiff_t c_row, int m, int n,
                 const float *bias, int accumulate)
{
    reg sum[MR][NV];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NV; j++)
            sum[i][j] = (reg){0};
    for (ptrdiff_t p = 0; p < k; p++, a += MR, b += NR) {
        reg bj[NV];
        for (int j = 0; j < NV; j++)
            bj[j] = load_reg(b + j * VN);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++)
                sum[i][j] += a[i] * bj[j];
    }
    if (m == MR && n == NR) {
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NV; j++) {
                float *to = c + i * c_row + j * VN;
                reg v = sum[i][j];
                if (bias)
                    v += load_reg(bias + j * VN);
                if (accumulate)
                    v += load_reg(to);
                memcpy(to, &v, sizeof v);
            }
        return;
    }
    for (int i = 0; i < m; i++) {
        float row[NR];
        memcpy(row, sum[i], sizeof row);
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

/* to[p * width + i] = from[i][p] for 4 i and k p: four by four, as single floats would cost three times as much */
static inline void transpose4(const float *const *from, ptrdiff_t k, float *restrict to, ptrdiff_t width)
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
static inline void pack_lines(const float *const *line, ptrdiff_t step, int count, int width, ptrdiff_t k,
                              float *restrict to)
{
    int i = 0;
    if (step == 1)
        for (; i + 4 <= count; i += 4)
            transpose4(line + i, k, to + i, width);
    for (; i < width; i++)
        for (ptrdiff_t p = 0; p < k; p++)
            to[p * width + i] = i < count ? line[i][p * step] : 0;
}

/* the same where line[i][p * step] = from[p * step + i] */
static inline void pack_rows(const float *from, ptrdiff_t step, int count, int width, ptrdiff_t k, float *restrict to)
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

static void pack_b(const gemm_t *g, ptrdiff_t j0, ptrdiff_t p0, ptrdiff_t k, int count, float *to)
{
    const float *from = g->b + p0 * g->b_row, *line[NR];
    if (g->rows && g->gather == 2) {
        from = g->b + j0 * g->b_column;
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
        /* the sliver after this one: its rows lie anywhere in memory */
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
                pack_b(g, j, p, k, n, sliver);
                for (ptrdiff_t r = 0; r < m; r += MR)
                    tile(k, panel + r * k, sliver, g->c + (i + r) * g->c_row + j, g->c_row,
                         m - r < MR ? (int)(m - r) : MR, n, g->bias && p == 0 ? g->bias + j : 0,
                         g->accumulate || p > 0);
            }
        }
    }
}

static void sgd(const rule_t *rule, float *restrict w, float *restrict m, const float *restrict g, ptrdiff_t n)
{
    const float lr = rule->lr, momentum = rule->momentum, decay = rule->decay;
    if (!m)
        for (ptrdiff_t k = 0; k < n; k++)
            w[k] -= lr * (g[k] + decay * w[k]);
    else if (rule->nesterov)
        for (ptrdiff_t k = 0; k < n; k++) {
            float d = g[k] + decay * w[k];
            m[k] = momentum * m[k] + d;
            w[k] -= lr * (d + momentum * m[k]);
        }
    else
        for (ptrdiff_t k = 0; k < n; k++) {
            m[k] = momentum * m[k] + (g[k] + decay * w[k]);
            w[k] -= lr * m[k];
        }
}

static void adam(const rule_t *rule, float *restrict w, float *restrict m, float *restrict v,
                 const float *restrict g, ptrdiff_t n)
{
    const float lr = rule->lr, b1 = rule->beta1, b2 = rule->beta2, eps = rule->eps;
    const float root_scale = rule->root_scale, keep = 1.0f - rule->decay;
    for (ptrdiff_t k = 0; k < n; k++) {
        m[k] = b1 * m[k] + (1.0f - b1) * g[k];
        v[k] = b2 * v[k] + (1.0f - b2) * (g[k] * g[k]);
        w[k] = keep * w[k] - lr * m[k] / (sqrtf(v[k]) * root_scale + eps);
    }
}

static void update(const rule_t *rule, float *w, float *m, float *v, const float *g, ptrdiff_t n)
{
    if (rule->kind == RULE_SGD)
        sgd(rule, w, m, g, n);
    else
        adam(rule, w, m, v, g, n);
}

const leaves_t PASTE(leaves_, LEVEL) = {
    STRING(LEVEL), dot, axpy, gather_dot, scatter_axpy, max, exp_sum, sigmoid_sum, scale,
    sketch_scan, gemm, update,
};
