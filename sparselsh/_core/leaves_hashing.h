/* Leaf loops of the hash families; part of leaves.c. */
#include "simd.h"
#include <string.h>

/* plus and minus side by side: their chains of additions do not wait for each other */
static void signed_sums(const float *columns, const int32_t *ids, ptrdiff_t n_plus, ptrdiff_t n_minus, float *out)
{
    enum { N = SIGN_LANES / VN };
    reg plus[N] = {{0}}, minus[N] = {{0}};
    const int32_t *minus_ids = ids + n_plus;
    ptrdiff_t k = 0, both = n_plus < n_minus ? n_plus : n_minus;
    for (; k < both; k++) {
        const float *p = columns + (ptrdiff_t)ids[k] * SIGN_LANES, *m = columns + (ptrdiff_t)minus_ids[k] * SIGN_LANES;
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
            plus[j] += load_reg(p + j * VN);
            minus[j] += load_reg(m + j * VN);
        }
    }
    for (ptrdiff_t i = k; i < n_plus; i++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++)
            plus[j] += load_reg(columns + (ptrdiff_t)ids[i] * SIGN_LANES + j * VN);
    for (ptrdiff_t i = k; i < n_minus; i++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++)
            minus[j] += load_reg(columns + (ptrdiff_t)minus_ids[i] * SIGN_LANES + j * VN);
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) {
        plus[j] -= minus[j];
        memcpy(out + j * VN, &plus[j], sizeof plus[j]);
    }
}

static void add_signed(float x, const int8_t *restrict signs, float *restrict plus, float *restrict minus, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++) {
        plus[k] += signs[k] > 0 ? x : 0.0f;
        minus[k] += signs[k] < 0 ? x : 0.0f;
    }
}

/* Magnitudes of floats sort as integers, whose maximum needs no care for NaN and becomes one instruction */
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

/* Each stage reads its pairs from the two halves and writes them side by side, so that every stage is the same
   loop over contiguous memory; log2(n) such shuffles of the index undo each other. */
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
