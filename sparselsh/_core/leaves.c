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
   numbers adds low + 256 high; the sum of the high bytes, kept beside it, is taken off at the end. */
#if defined(__AVX512BW__)

static inline __m256i sum_lanes(__m512i lo, __m512i hi)
{
    __m256i a = _mm256_add_epi16(_mm512_castsi512_si256(lo), _mm512_extracti64x4_epi64(lo, 1));
    __m256i b = _mm256_add_epi16(_mm512_castsi512_si256(hi), _mm512_extracti64x4_epi64(hi, 1));
    return _mm256_add_epi16(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

static inline void finish(__m512i even, __m512i odd, float a, float b, const float *factors, float *scores)
{
    even = _mm512_sub_epi16(even, _mm512_slli_epi16(odd, 8));
    __m256i sums = sum_lanes(_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
    __m512 s = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums));
    s = _mm512_fmadd_ps(s, _mm512_set1_ps(a), _mm512_set1_ps(b));
    _mm512_storeu_ps(scores, _mm512_mul_ps(s, _mm512_loadu_ps(factors)));
}

static void sketch_scores(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups, const uint8_t *lut,
                          float a, float b, const float *factors, float *scores)
{
    const __m512i nibble = _mm512_set1_epi8(15);
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
        finish(even0, odd0, a, b, factors, scores);
        finish(even1, odd1, a, b, factors + 16, scores + 16);
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK;
        scores += SKETCH_BLOCK;
    }
}

#elif defined(__AVX2__)

static inline void finish(__m256i even, __m256i odd, float a, float b, const float *factors, float *scores)
{
    even = _mm256_sub_epi16(even, _mm256_slli_epi16(odd, 8));
    __m256i lo = _mm256_unpacklo_epi16(even, odd), hi = _mm256_unpackhi_epi16(even, odd);
    __m128i sums[2] = { _mm_add_epi16(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1)),
                        _mm_add_epi16(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1)) };
    for (int k = 0; k < 2; k++) {
        __m256 s = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(sums[k]));
        s = _mm256_fmadd_ps(s, _mm256_set1_ps(a), _mm256_set1_ps(b));
        _mm256_storeu_ps(scores + 8 * k, _mm256_mul_ps(s, _mm256_loadu_ps(factors + 8 * k)));
    }
}

static void sketch_scores(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups, const uint8_t *lut,
                          float a, float b, const float *factors, float *scores)
{
    const __m256i nibble = _mm256_set1_epi8(15);
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
        finish(even0, odd0, a, b, factors, scores);
        finish(even1, odd1, a, b, factors + 16, scores + 16);
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK;
        scores += SKETCH_BLOCK;
    }
}

#else

static void sketch_scores(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups, const uint8_t *lut,
                          float a, float b, const float *factors, float *scores)
{
    for (ptrdiff_t k = 0; k < n_blocks; k++) {
        uint16_t sums[SKETCH_BLOCK] = {0};
        for (ptrdiff_t g = 0; g < n_groups; g++)
            for (int j = 0; j < 16; j++) {
                sums[j] += lut[g * 16 + (blocks[g * 16 + j] & 15)];
                sums[j + 16] += lut[g * 16 + (blocks[g * 16 + j] >> 4)];
            }
        for (int j = 0; j < SKETCH_BLOCK; j++)
            scores[j] = factors[j] * (a * sums[j] + b);
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK;
        scores += SKETCH_BLOCK;
    }
}

#endif

static ptrdiff_t above(const float *x, ptrdiff_t n, float floor, int32_t *out)
{
    ptrdiff_t k = 0, found = 0;
    /* few pass: look at many at once, and one by one only where one of them does */
#if defined(__AVX512F__)
    for (; k + 16 <= n; k += 16)
        for (unsigned m = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k), _mm512_set1_ps(floor), _CMP_GE_OQ); m; m &= m - 1)
            out[found++] = (int32_t)k + __builtin_ctz(m);
#elif defined(__AVX2__)
    for (; k + 8 <= n; k += 8)
        for (unsigned m = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + k), _mm256_set1_ps(floor), _CMP_GE_OQ));
             m; m &= m - 1)
            out[found++] = (int32_t)k + __builtin_ctz(m);
#endif
    for (; k < n; k++) {
        out[found] = (int32_t)k;
        found += x[k] >= floor;
    }
    return found;
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
    sketch_scores, above, update,
};
