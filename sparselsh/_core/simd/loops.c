/* The inner loops of one instruction set; LEVEL_NAME is its name, LEVEL the same as an identifier.
   loops.h says what each computes. Products, hashing and sketches have files of their own, which
   only this file includes.

   With REPRODUCIBLE the results for finite numbers are the same for every instruction set: a sum
   has an order that does not depend on the width of registers, and no product and sum become one
   operation, for which the build turns contraction off (-ffp-contract=off).

   Sums are reassociated by `omp simd reduction`, not with REPRODUCIBLE, only here and never by
   -ffast-math, which would flush denormals in the whole process. Several independent accumulators hide the latency of the
   FMA: with a single one, each addition waits four cycles. */
#include "loops.h"
#include <math.h>
#include <string.h>

#include "loops_bfloat16.h"
#include "loops_gemm.h"
#include "loops_hashing.h"
#include "loops_int8.h"
#include "loops_sketches.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

/* sixteen floats: one register of AVX-512, two of AVX, four of SSE or NEON */
typedef float vec __attribute__((vector_size(64)));
enum { FLOATS_PER_VEC = 16 };

static inline vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }

/* by halves: sixteen additions one after the other take as long as the product of 256 numbers */
static inline float sum(vec v)
{
    float s[FLOATS_PER_VEC];
    memcpy(s, &v, sizeof s);
    for (int half = FLOATS_PER_VEC / 2; half; half /= 2)
        for (int k = 0; k < half; k++)
            s[k] += s[k + half];
    return s[0];
}

static float dot(const float *a, const float *b, ptrdiff_t n)
{
    ptrdiff_t k = 0;
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};

    for (; k + 4 * FLOATS_PER_VEC <= n; k += 4 * FLOATS_PER_VEC) {
        s0 += load(a + k) * load(b + k);
        s1 += load(a + k + FLOATS_PER_VEC) * load(b + k + FLOATS_PER_VEC);
        s2 += load(a + k + 2 * FLOATS_PER_VEC) * load(b + k + 2 * FLOATS_PER_VEC);
        s3 += load(a + k + 3 * FLOATS_PER_VEC) * load(b + k + 3 * FLOATS_PER_VEC);
    }
    for (; k + FLOATS_PER_VEC <= n; k += FLOATS_PER_VEC)
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

#if defined(REPRODUCIBLE)

enum { FLOATS_PER_SUM = 256 };  /* that are computed before they are added */

/* sum_k x[k], in sixteen lanes */
static inline float sum_of(const float *x, ptrdiff_t n)
{
    vec s0 = {0};
    ptrdiff_t k = 0;
    for (; k + FLOATS_PER_VEC <= n; k += FLOATS_PER_VEC)
        s0 += load(x + k);
    float s = sum(s0);
    for (; k < n; k++)
        s += x[k];
    return s;
}

static inline ptrdiff_t count_of_sum(ptrdiff_t left)
{
    return left < FLOATS_PER_SUM ? left : FLOATS_PER_SUM;
}

static float dot_bfloat16(const uint16_t *a, const float *b, ptrdiff_t n)
{
    float s = 0, wide[FLOATS_PER_SUM];
    for (ptrdiff_t k = 0; k < n; k += FLOATS_PER_SUM) {
        const ptrdiff_t count = count_of_sum(n - k);
        to_float32(a + k, wide, count);
        s += dot(wide, b + k, count);
    }
    return s;
}

static float gather_dot(const float *data, const int32_t *indices, ptrdiff_t n, const float *dense)
{
    float s = 0, gathered[FLOATS_PER_SUM];
    for (ptrdiff_t k = 0; k < n; k += FLOATS_PER_SUM) {
        const ptrdiff_t count = count_of_sum(n - k);
        for (ptrdiff_t j = 0; j < count; j++)
            gathered[j] = dense[indices[k + j]];
        s += dot(data + k, gathered, count);
    }
    return s;
}

#else

static float dot_bfloat16(const uint16_t *a, const float *b, ptrdiff_t n)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (ptrdiff_t k = 0; k < n; k++)
        s += float32_of(a[k]) * b[k];
    return s;
}

static float gather_dot(const float *data, const int32_t *indices, ptrdiff_t n, const float *dense)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (ptrdiff_t k = 0; k < n; k++)
        s += data[k] * dense[indices[k]];
    return s;
}

#endif

static void gather_axpy(float a, const float *dense, const int32_t *indices, float *restrict y,
                        ptrdiff_t n)
{
#pragma omp simd
    for (ptrdiff_t k = 0; k < n; k++)
        y[k] += a * dense[indices[k]];
}

static float max(const float *x, ptrdiff_t n)
{
    float m = x[0];
#pragma omp simd reduction(max : m)
    for (ptrdiff_t k = 1; k < n; k++)
        m = x[k] > m ? x[k] : m;
    return m + 0.0f;  /* of two zeros, the positive one */
}

static void scale(float a, float *x, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++)
        x[k] *= a;
}

/* exp(x) for x <= 0 within 2 units in the last place; below -87 it is 0 for all that follows. x = n
   ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, so that r keeps its digits); a polynomial in r;
   then n is added to the exponent. Adding 1.5 * 2^23 rounds to an integer, which is then in the low
   bits. */
static inline float exp_negative(float x)
{
    const float magic = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;

    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * (4.1666502e-2f
            + r * (8.3333741e-3f + r * 1.3981999e-3f)))));

    uint32_t bits;  /* unsigned: for a NaN, from the weights of a malicious file, a negative number
                       would be shifted */
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000u + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

#if defined(REPRODUCIBLE)

static float exp_sum(float *x, ptrdiff_t n, float shift)
{
    float s = 0;
    for (ptrdiff_t k = 0; k < n; k += FLOATS_PER_SUM) {
        const ptrdiff_t count = count_of_sum(n - k);
        for (ptrdiff_t j = k; j < k + count; j++)
            x[j] = exp_negative(x[j] - shift);
        s += sum_of(x + k, count);
    }
    return s;
}

#else

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

#endif

static inline float sigmoid_of(float x)
{
    const float size = fabsf(x), e = size > 87.0f ? 0.0f : exp_negative(-size);
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

/* of Abramowitz and Stegun, 7.1.26: within 1.5e-7 */
static inline float erf_of(float x)
{
    const float z = fabsf(x), t = 1.0f / (1.0f + 0.3275911f * z);
    const float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f
        + t * (-1.453152027f + t * 1.061405429f))));
    const float y = 1.0f - p * exp_negative(-z * z);
    return x < 0 ? -y : y;
}

static void activate(int kind, float *x, ptrdiff_t n)
{
    ptrdiff_t k;
    switch (kind) {
    case ACTIVATION_RELU:
        for (k = 0; k < n; k++)
            x[k] = x[k] > 0 ? x[k] : 0;
        break;
    case ACTIVATION_GELU:
#pragma omp simd
        for (k = 0; k < n; k++)
            x[k] = 0.5f * x[k] * (1.0f + erf_of(x[k] * 0.70710678f));
        break;
    case ACTIVATION_GELU_TANH:  /* (1 + tanh(y)) / 2 is sigmoid(2 y) */
#pragma omp simd
        for (k = 0; k < n; k++)
            x[k] *= sigmoid_of(1.59576912f * (x[k] + 0.044715f * x[k] * x[k] * x[k]));
        break;
    case ACTIVATION_SILU:
#pragma omp simd
        for (k = 0; k < n; k++)
            x[k] *= sigmoid_of(x[k]);
        break;
    case ACTIVATION_TANH:
#pragma omp simd
        for (k = 0; k < n; k++)
            x[k] = 2.0f * sigmoid_of(2.0f * x[k]) - 1.0f;
        break;
    case ACTIVATION_SIGMOID:
#pragma omp simd
        for (k = 0; k < n; k++)
            x[k] = sigmoid_of(x[k]);
        break;
    default:
        break;
    }
}

/* log(1 + u), u in [0, 1], as 2 artanh(u / (2 + u)); the ninth term of the series is below 1e-9 */
static inline float log1p_unit(float u)
{
    float s = u / (2.0f + u), q = s * s;
    return 2.0f * s * (1.0f + q * (1 / 3.0f + q * (1 / 5.0f + q * (1 / 7.0f + q * (1 / 9.0f
             + q * (1 / 11.0f + q * (1 / 13.0f + q * (1 / 15.0f))))))));
}

/* z <- sigmoid(z); returns log(1 + exp(z)) */
static inline float sigmoid_step(float *z)
{
    float positive = *z > 0 ? *z : 0;
    float u = exp_negative(-fabsf(*z));
    *z = (*z > 0 ? 1.0f : u) / (1.0f + u);
    return positive + log1p_unit(u);
}

#if defined(REPRODUCIBLE)

static float sigmoid_sum(float *z, ptrdiff_t n)
{
    float s = 0, terms[FLOATS_PER_SUM];
    for (ptrdiff_t k = 0; k < n; k += FLOATS_PER_SUM) {
        const ptrdiff_t count = count_of_sum(n - k);
#pragma omp simd
        for (ptrdiff_t j = 0; j < count; j++)
            terms[j] = sigmoid_step(z + k + j);
        s += sum_of(terms, count);
    }
    return s;
}

#else

static float sigmoid_sum(float *z, ptrdiff_t n)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (ptrdiff_t k = 0; k < n; k++)
        s += sigmoid_step(z + k);
    return s;
}

#endif

static void sgd(const rule_t *rule, float *restrict w, float *restrict m, const float *restrict g,
                ptrdiff_t n)
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

/* Adam with one root of the second moment for the whole row */
static void adam_row(const rule_t *rule, float *restrict w, float *restrict m, float lr,
                     const float *restrict g, ptrdiff_t n)
{
    const float b1 = rule->beta1, keep = 1.0f - rule->decay;
    for (ptrdiff_t k = 0; k < n; k++) {
        m[k] = b1 * m[k] + (1.0f - b1) * g[k];
        w[k] = keep * w[k] - lr * m[k];
    }
}

enum { FLOATS_PER_CHUNK = 256 };  /* converted together; stay in the first-level cache */

static float *float32_run(const typed_array_t *s, ptrdiff_t first, ptrdiff_t n, float *wide)
{
    if (s->dtype == DTYPE_FLOAT32)
        return (float *)s->data + first;
    if (s->dtype == DTYPE_BFLOAT16)
        to_float32((const uint16_t *)s->data + first, wide, n);
    return s->dtype == DTYPE_BFLOAT16 ? wide : NULL;
}

static void update(const rule_t *rule, const typed_array_t *w, const typed_array_t *m,
                   const typed_array_t *v, ptrdiff_t row, ptrdiff_t first, const float *g,
                   ptrdiff_t n)
{
    float wide[3][FLOATS_PER_CHUNK], lr_row = 0;
    const int has_bfloat16 = w->dtype == DTYPE_BFLOAT16 || m->dtype == DTYPE_BFLOAT16
                             || v->dtype == DTYPE_BFLOAT16;

    if (v->dtype == DTYPE_FLOAT32_PER_ROW) {
        float *mean = (float *)v->data + row;
        *mean = rule->beta2 * *mean + (1.0f - rule->beta2) * (dot(g, g, n) / n);
        lr_row = rule->lr / (sqrtf(*mean) * rule->root_scale + rule->eps);
    }

    for (ptrdiff_t k = 0, count; k < n; k += count) {
        count = has_bfloat16 && n - k > FLOATS_PER_CHUNK ? FLOATS_PER_CHUNK : n - k;
        float *wk = float32_run(w, first + k, count, wide[0]);
        float *mk = float32_run(m, first + k, count, wide[1]);
        float *vk = float32_run(v, first + k, count, wide[2]);

        if (rule->kind == RULE_SGD)
            sgd(rule, wk, mk, g + k, count);
        else if (v->dtype == DTYPE_FLOAT32_PER_ROW)
            adam_row(rule, wk, mk, lr_row, g + k, count);
        else
            adam(rule, wk, mk, vk, g + k, count);

        const uint32_t key = rule->key + (uint32_t)(first + k);
        if (w->dtype == DTYPE_BFLOAT16)
            to_bfloat16_random(wk, (uint16_t *)w->data + first + k, count, key, 0);
        if (m->dtype == DTYPE_BFLOAT16)
            to_bfloat16(mk, (uint16_t *)m->data + first + k, count);
        if (v->dtype == DTYPE_BFLOAT16)
            to_bfloat16_random(vk, (uint16_t *)v->data + first + k, count, key, 16);
    }
}

enum { FLOATS_PER_TOUCHED_CHUNK = 64 };  /* three copies of 256 bytes */

/* `update` of float32 where g is not zero. Elsewhere weight and state are written unchanged, which
   costs less than a branch. */
static void update_touched(const rule_t *rule, float *restrict w, float *restrict m,
                           float *restrict v, const float *restrict g, ptrdiff_t n)
{
    float w_new[FLOATS_PER_TOUCHED_CHUNK], m_new[FLOATS_PER_TOUCHED_CHUNK];
    float v_new[FLOATS_PER_TOUCHED_CHUNK];

    for (ptrdiff_t first = 0; first < n; first += FLOATS_PER_TOUCHED_CHUNK) {
        const ptrdiff_t size =
            n - first < FLOATS_PER_TOUCHED_CHUNK ? n - first : FLOATS_PER_TOUCHED_CHUNK;

        memcpy(w_new, w + first, size * sizeof(float));
        if (m)
            memcpy(m_new, m + first, size * sizeof(float));
        if (v)
            memcpy(v_new, v + first, size * sizeof(float));

        if (rule->kind == RULE_SGD)
            sgd(rule, w_new, m ? m_new : 0, g + first, size);
        else
            adam(rule, w_new, m_new, v_new, g + first, size);

        for (ptrdiff_t k = 0; k < size; k++)
            w[first + k] = g[first + k] != 0 ? w_new[k] : w[first + k];
        if (m)
            for (ptrdiff_t k = 0; k < size; k++)
                m[first + k] = g[first + k] != 0 ? m_new[k] : m[first + k];
        if (v)
            for (ptrdiff_t k = 0; k < size; k++)
                v[first + k] = g[first + k] != 0 ? v_new[k] : v[first + k];
    }
}

/* Rows of 8-bit integers and of bfloat16. Sixteen entries become a vec of float; the cost is in the
   loads, not in the arithmetic. GCC 12 splits the generic conversion of vectors, hence the
   intrinsics. */
#if defined(__AVX512F__)

static inline vec load_int8(const int8_t *p)
{
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

static inline vec load_bfloat16(const uint16_t *p)
{
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)),
                                  16);
}

#elif defined(__AVX2__)

static inline vec load_int8(const int8_t *p)
{
    __m256 halves[2];
    for (int k = 0; k < 2; k++)
        halves[k] = _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8 * k))));
    vec v;
    memcpy(&v, halves, sizeof v);
    return v;
}

static inline vec load_bfloat16(const uint16_t *p)
{
    __m256i halves[2];
    for (int k = 0; k < 2; k++)
        halves[k] = _mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8 * k))), 16);
    vec v;
    memcpy(&v, halves, sizeof v);
    return v;
}

#elif defined(USE_NEON)

static inline vec load_int8(const int8_t *p)
{
    int8x16_t bytes = vld1q_s8(p);
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    float32x4_t quarters[4] = {
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high)),
    };
    vec v;
    memcpy(&v, quarters, sizeof v);
    return v;
}

static inline vec load_bfloat16(const uint16_t *p)
{
    uint32x4_t quarters[4];
    for (int k = 0; k < 4; k++)
        quarters[k] = vshll_n_u16(vld1_u16(p + 4 * k), 16);
    vec v;
    memcpy(&v, quarters, sizeof v);
    return v;
}

#else

static inline vec load_int8(const int8_t *p)
{
    float x[FLOATS_PER_VEC];
    for (int k = 0; k < FLOATS_PER_VEC; k++)
        x[k] = p[k];
    return load(x);
}

static inline vec load_bfloat16(const uint16_t *p)
{
    float x[FLOATS_PER_VEC];
    to_float32(p, x, FLOATS_PER_VEC);
    return load(x);
}

#endif

/* sixteen numbers of a row from number k on, as float32 */
static inline vec load_typed(const void *row, ptrdiff_t k, int dtype)
{
    if (dtype == DTYPE_INT8)
        return load_int8((const int8_t *)row + k);
    if (dtype == DTYPE_BFLOAT16)
        return load_bfloat16((const uint16_t *)row + k);
    return load((const float *)row + k);
}

static inline float typed_element(const void *row, ptrdiff_t k, int dtype)
{
    return dtype == DTYPE_INT8 ? ((const int8_t *)row)[k]
        : dtype == DTYPE_BFLOAT16 ? float32_of(((const uint16_t *)row)[k])
        : ((const float *)row)[k];
}

#if defined(__AVX2__) && !defined(__AVX512F__)

static inline __m256 load_half(const char *row, ptrdiff_t k, int dtype)
{
    if (dtype == DTYPE_INT8)
        return _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + k))));
    if (dtype == DTYPE_BFLOAT16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(row + 2 * k))), 16));
    return _mm256_loadu_ps((const float *)row + k);
}

/* `sum` of both halves, in the same order */
static inline float sum_of_halves(__m256 low, __m256 high)
{
    const __m256 eight = _mm256_add_ps(low, high);
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}

/* s[i] = a[i] . x up to the returned number. GCC keeps vectors of two registers in memory, hence the
   intrinsics. */
static inline ptrdiff_t dots_of_four(const char *const a[4], int dtype, const float *x, ptrdiff_t d,
                                     float s[4])
{
    __m256 low0 = _mm256_setzero_ps(), low1 = low0, low2 = low0, low3 = low0;
    __m256 high0 = low0, high1 = low0, high2 = low0, high3 = low0;
    ptrdiff_t k = 0;
    for (; k + FLOATS_PER_VEC <= d; k += FLOATS_PER_VEC) {
        const __m256 low = _mm256_loadu_ps(x + k), high = _mm256_loadu_ps(x + k + 8);
        low0 = MULTIPLY_ADD_256(load_half(a[0], k, dtype), low, low0);
        low1 = MULTIPLY_ADD_256(load_half(a[1], k, dtype), low, low1);
        low2 = MULTIPLY_ADD_256(load_half(a[2], k, dtype), low, low2);
        low3 = MULTIPLY_ADD_256(load_half(a[3], k, dtype), low, low3);
        high0 = MULTIPLY_ADD_256(load_half(a[0], k + 8, dtype), high, high0);
        high1 = MULTIPLY_ADD_256(load_half(a[1], k + 8, dtype), high, high1);
        high2 = MULTIPLY_ADD_256(load_half(a[2], k + 8, dtype), high, high2);
        high3 = MULTIPLY_ADD_256(load_half(a[3], k + 8, dtype), high, high3);
    }
    s[0] = sum_of_halves(low0, high0), s[1] = sum_of_halves(low1, high1);
    s[2] = sum_of_halves(low2, high2), s[3] = sum_of_halves(low3, high3);
    return k;
}

#else

static inline ptrdiff_t dots_of_four(const char *const a[4], int dtype, const float *x, ptrdiff_t d,
                                     float s[4])
{
    const char *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    ptrdiff_t k = 0;
    for (; k + FLOATS_PER_VEC <= d; k += FLOATS_PER_VEC) {
        vec v = load(x + k);
        s0 += load_typed(a0, k, dtype) * v;
        s1 += load_typed(a1, k, dtype) * v;
        s2 += load_typed(a2, k, dtype) * v;
        s3 += load_typed(a3, k, dtype) * v;
    }
    s[0] = sum(s0), s[1] = sum(s1), s[2] = sum(s2), s[3] = sum(s3);
    return k;
}

#endif

/* Four rows at a time, so that x is loaded once for all and four sums run in parallel. The last row
   is repeated if fewer than four are left, so that the sum of a row does not depend on its
   position. */
static inline void dots_typed(const void *w, int dtype, const int32_t *rows, ptrdiff_t n_rows,
                              const float *x, ptrdiff_t d, float *out)
{
    const ptrdiff_t size = d * (dtype == DTYPE_INT8 ? 1 : dtype == DTYPE_BFLOAT16 ? 2 : 4);

    for (ptrdiff_t r = 0; r < n_rows; r += 4) {
        const char *a[4];
        for (ptrdiff_t i = 0; i < 4; i++) {
            ptrdiff_t k = r + i < n_rows ? r + i : n_rows - 1;
            a[i] = (const char *)w + (rows ? rows[k] : k) * size;
            if (rows && k + 4 < n_rows)
                prefetch_run((const char *)w + rows[k + 4] * size, size);
        }

        float s[4];
        ptrdiff_t k = dots_of_four(a, dtype, x, d, s);
        for (; k < d; k++)
            for (int i = 0; i < 4; i++)
                s[i] += typed_element(a[i], k, dtype) * x[k];

        for (ptrdiff_t i = 0; i < 4 && r + i < n_rows; i++)
            out[r + i] = s[i];
    }
}

static void dots(const float *w, const int32_t *rows, ptrdiff_t n_rows, const float *x, ptrdiff_t d,
                 float *out)
{
    dots_typed(w, DTYPE_FLOAT32, rows, n_rows, x, d, out);
}

static void dots_bfloat16(const uint16_t *w, const int32_t *rows, ptrdiff_t n_rows, const float *x,
                          ptrdiff_t d, float *out)
{
    dots_typed(w, DTYPE_BFLOAT16, rows, n_rows, x, d, out);
}

static void dots_int8(const int8_t *w, const int32_t *rows, ptrdiff_t n_rows, const float *x,
                      ptrdiff_t d, float *out)
{
    dots_typed(w, DTYPE_INT8, rows, n_rows, x, d, out);
}

/* Four rows at a time, so that y is loaded and stored once for all and memory delivers four rows at
   once; the next four are prefetched as these are read. Each sum is in the order of the rows. */
static inline void sums_typed(const void *w, int dtype, const float *scales, const int32_t *rows,
                              const float *a, ptrdiff_t n_rows, ptrdiff_t d, ptrdiff_t first,
                              ptrdiff_t n, float *restrict y)
{
    const ptrdiff_t size = dtype == DTYPE_INT8 ? 1 : dtype == DTYPE_BFLOAT16 ? 2 : 4;

    for (ptrdiff_t r = 0; r < n_rows; r += 4) {
        const char *x[4], *next[4];
        float c[4];
        for (ptrdiff_t i = 0; i < 4; i++) {
            ptrdiff_t k = r + i < n_rows ? r + i : n_rows - 1;
            ptrdiff_t then = r + i + 4 < n_rows ? r + i + 4 : k;
            x[i] = (const char *)w + (rows[k] * d + first) * size;
            next[i] = (const char *)w + (rows[then] * d + first) * size;
            c[i] = scales ? a[k] * scales[rows[k]] : a[k];
        }

        if (n_rows - r < 4) {
            for (ptrdiff_t i = 0; r + i < n_rows; i++) {
                ptrdiff_t k = 0;
                for (; k + FLOATS_PER_VEC <= n; k += FLOATS_PER_VEC) {
                    vec v = load(y + k) + c[i] * load_typed(x[i], k, dtype);
                    memcpy(y + k, &v, sizeof v);
                }
                for (; k < n; k++)
                    y[k] += c[i] * typed_element(x[i], k, dtype);
            }
            return;
        }

        const char *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
        const char *p0 = next[0], *p1 = next[1], *p2 = next[2], *p3 = next[3];
        const float c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];

        ptrdiff_t k = 0;
        for (; k + FLOATS_PER_VEC <= n; k += FLOATS_PER_VEC) {
            if (k * size % 64 == 0) {
                __builtin_prefetch(p0 + k * size);
                __builtin_prefetch(p1 + k * size);
                __builtin_prefetch(p2 + k * size);
                __builtin_prefetch(p3 + k * size);
            }
            vec v = load(y + k);
            v += c0 * load_typed(x0, k, dtype);
            v += c1 * load_typed(x1, k, dtype);
            v += c2 * load_typed(x2, k, dtype);
            v += c3 * load_typed(x3, k, dtype);
            memcpy(y + k, &v, sizeof v);
        }

        for (; k < n; k++)
            for (int i = 0; i < 4; i++)
                y[k] += c[i] * typed_element(x[i], k, dtype);
    }
}

static void sums(const float *w, const int32_t *rows, const float *a, ptrdiff_t n_rows, ptrdiff_t d,
                 ptrdiff_t first, ptrdiff_t n, float *y)
{
    sums_typed(w, DTYPE_FLOAT32, 0, rows, a, n_rows, d, first, n, y);
}

static void sums_bfloat16(const uint16_t *w, const int32_t *rows, const float *a, ptrdiff_t n_rows,
                          ptrdiff_t d, ptrdiff_t first, ptrdiff_t n, float *y)
{
    sums_typed(w, DTYPE_BFLOAT16, 0, rows, a, n_rows, d, first, n, y);
}

static void sums_int8(const int8_t *w, const float *scales, const int32_t *rows, const float *a,
                      ptrdiff_t n_rows, ptrdiff_t d, ptrdiff_t first, ptrdiff_t n, float *y)
{
    sums_typed(w, DTYPE_INT8, scales, rows, a, n_rows, d, first, n, y);
}

const loops_t PASTE(loops_, LEVEL) = {
    LEVEL_NAME, dot, dots, axpy, gather_dot, gather_axpy, max, exp_sum, sigmoid_sum, scale, sketch_scan,
    at_least, gemm, pack_whole_b, signed_sums, pack_signs, add_signed, hadamard,
    largest_magnitude, update, update_touched, to_float32, to_bfloat16, dot_bfloat16,
    dots_bfloat16, axpy_bfloat16, sums, sums_bfloat16, sums_int8, dots_int8,
    dots_blocks, quantize_input, scale_dots, coded_scores, activate,
};
