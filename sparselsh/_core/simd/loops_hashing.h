/* Inner loops of the hash families; part of loops.c. */
#include "loops.h"
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

/* plus and minus in parallel: their chains of additions do not wait for each other */
static void signed_sums(const float *columns, const int32_t *ids, ptrdiff_t n_plus,
                        ptrdiff_t n_minus, float *out)
{
    enum { REGS_PER_LANES = SIGN_LANES / FLOATS_PER_REG };
    reg plus[REGS_PER_LANES] = {{0}}, minus[REGS_PER_LANES] = {{0}};
    const int32_t *minus_ids = ids + n_plus;
    ptrdiff_t k = 0, both = n_plus < n_minus ? n_plus : n_minus;

    for (; k < both; k++) {
        const float *p = columns + (ptrdiff_t)ids[k] * SIGN_LANES;
        const float *m = columns + (ptrdiff_t)minus_ids[k] * SIGN_LANES;
#pragma GCC unroll 8
        for (int j = 0; j < REGS_PER_LANES; j++) {
            plus[j] += load_reg(p + j * FLOATS_PER_REG);
            minus[j] += load_reg(m + j * FLOATS_PER_REG);
        }
    }

    for (ptrdiff_t i = k; i < n_plus; i++)
#pragma GCC unroll 8
        for (int j = 0; j < REGS_PER_LANES; j++)
            plus[j] += load_reg(columns + (ptrdiff_t)ids[i] * SIGN_LANES + j * FLOATS_PER_REG);

    for (ptrdiff_t i = k; i < n_minus; i++)
#pragma GCC unroll 8
        for (int j = 0; j < REGS_PER_LANES; j++)
            minus[j] += load_reg(columns + (ptrdiff_t)minus_ids[i] * SIGN_LANES
                                 + j * FLOATS_PER_REG);

#pragma GCC unroll 8
    for (int j = 0; j < REGS_PER_LANES; j++) {
        plus[j] -= minus[j];
        memcpy(out + j * FLOATS_PER_REG, &plus[j], sizeof plus[j]);
    }
}

/* bit k = [p[k] > 0], k < n <= 16 */
static inline uint32_t signs16(const float *p, ptrdiff_t n)
{
#if defined(__AVX512F__)
    __m512 x = _mm512_maskz_loadu_ps(n < 16 ? (__mmask16)((1u << n) - 1) : (__mmask16)0xFFFF, p);
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
#else
    uint32_t bits = 0;
#if defined(__AVX__)
    if (n == 16) {
        const __m256 zero = _mm256_setzero_ps();
        return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), zero, _CMP_GT_OQ))
             | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p + 8), zero,
                                                          _CMP_GT_OQ)) << 8;
    }
#endif
    for (ptrdiff_t k = 0; k < n; k++)
        bits |= (uint32_t)(p[k] > 0) << k;
    return bits;
#endif
}

/* The signs form one string of bits, appended sixteen at a time; each code is its next n_bits. */
static void pack_signs(const float *p, int n_bits, ptrdiff_t n_codes, int32_t *codes)
{
    uint64_t string = 0;
    int length = 0;
    ptrdiff_t n = n_codes * n_bits, t = 0;
    for (ptrdiff_t k = 0; k < n; k += 16) {
        ptrdiff_t left = n - k;
        string |= (uint64_t)signs16(p + k, left < 16 ? left : 16) << length;
        length += left < 16 ? (int)left : 16;
        for (; length >= n_bits && t < n_codes; length -= n_bits, string >>= n_bits)
            codes[t++] = (int32_t)(string & ((1u << n_bits) - 1));
    }
}

static void add_signed(float x, const int8_t *restrict signs, float *restrict plus,
                       float *restrict minus, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++) {
        plus[k] += signs[k] > 0 ? x : 0.0f;
        minus[k] += signs[k] < 0 ? x : 0.0f;
    }
}

/* Magnitudes of floats sort as integers; their maximum needs no care for NaN and is one
   instruction. */
static ptrdiff_t largest_magnitude(const float *x, ptrdiff_t n)
{
    uint32_t most = 0, bits;
    int32_t where = INT32_MAX;

#pragma omp simd reduction(max : most) private(bits)
    for (ptrdiff_t k = 0; k < n; k++) {
        memcpy(&bits, x + k, sizeof bits);
        bits &= 0x7FFFFFFFu;
        most = bits > most ? bits : most;
    }

#pragma omp simd reduction(min : where) private(bits)
    for (int32_t k = 0; k < (int32_t)n; k++) {
        memcpy(&bits, x + k, sizeof bits);
        int32_t here = (bits & 0x7FFFFFFFu) == most ? k : INT32_MAX;
        where = here < where ? here : where;
    }
    return where;
}

/* Each stage reads its pairs from the two halves and writes them side by side, so that every stage
   is the same loop over contiguous memory; log2(n) such shuffles of the index cancel. */
static inline void butterflies(const float *restrict from, float *restrict to, ptrdiff_t half)
{
    for (ptrdiff_t k = 0; k < half; k++) {
        float a = from[k], b = from[k + half];
        to[2 * k] = a + b;
        to[2 * k + 1] = a - b;
    }
}

static void hadamard(const float *signs, float *x, float *spare, ptrdiff_t n)
{
    float *from = x, *to = spare;
    for (ptrdiff_t k = 0; k < n; k++)
        x[k] *= signs[k];

    for (ptrdiff_t h = 1; h < n; h *= 2) {
        butterflies(from, to, n / 2);
        float *t = from;
        from = to;
        to = t;
    }

    if (from != x)
        memcpy(x, from, n * sizeof *x);
}
