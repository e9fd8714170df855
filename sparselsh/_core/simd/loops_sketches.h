/* Inner loops of the sketches; part of loops.c. */
#include "loops.h"
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(USE_NEON)
#include <arm_neon.h>
#endif

#if defined(REPRODUCIBLE)
#define MULTIPLY_ADD_512(a, b, c) _mm512_add_ps(_mm512_mul_ps(a, b), c)
#define MULTIPLY_ADD_256(a, b, c) _mm256_add_ps(_mm256_mul_ps(a, b), c)
#else
#define MULTIPLY_ADD_512(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MULTIPLY_ADD_256(a, b, c) _mm256_fmadd_ps(a, b, c)
#endif

/* A byte shuffle looks up 16 nibbles at once. Sums are kept in 16 bits: adding a register of bytes
   as 16-bit numbers adds low + 256 high; the sum of the high bytes, kept separately, is subtracted
   at the end. A score is stored only if it reaches the floor, which few do. */
#if defined(__AVX512BW__)

static inline __m256i sum_lanes(__m512i lo, __m512i hi)
{
    __m256i a = _mm256_add_epi16(_mm512_castsi512_si256(lo), _mm512_extracti64x4_epi64(lo, 1));
    __m256i b = _mm256_add_epi16(_mm512_castsi512_si256(hi), _mm512_extracti64x4_epi64(hi, 1));
    return _mm256_add_epi16(_mm256_permute2x128_si256(a, b, 0x20),
                            _mm256_permute2x128_si256(a, b, 0x31));
}

static inline ptrdiff_t store_from(__m512 s, float floor, int32_t first, int32_t *ids,
                                   float *scores)
{
    __mmask16 mask = _mm512_cmp_ps_mask(s, _mm512_set1_ps(floor), _CMP_GE_OQ);
    if (!mask)
        return 0;

    const __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    _mm512_storeu_ps(scores, _mm512_maskz_compress_ps(mask, s));
    _mm512_storeu_si512(ids, _mm512_maskz_compress_epi32(
                                 mask, _mm512_add_epi32(places, _mm512_set1_epi32(first))));
    return __builtin_popcount(mask);
}

static inline ptrdiff_t keep(__m512i even, __m512i odd, float a, float b, const float *factors,
                             const float *biases, float weight, const float *errors, float slack,
                             float floor, int32_t first, int32_t *ids, float *scores)
{
    even = _mm512_sub_epi16(even, _mm512_slli_epi16(odd, 8));
    __m256i sums = sum_lanes(_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
    __m512 s = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums));
    s = MULTIPLY_ADD_512(s, _mm512_set1_ps(a), _mm512_set1_ps(b));
    s = _mm512_mul_ps(s, _mm512_loadu_ps(factors));
    if (biases)
        s = MULTIPLY_ADD_512(_mm512_set1_ps(weight), _mm512_loadu_ps(biases), s);
    if (errors)
        s = MULTIPLY_ADD_512(_mm512_set1_ps(slack), _mm512_loadu_ps(errors), s);
    if (!ids) {
        _mm512_storeu_ps(scores, s);
        return 16;
    }
    return store_from(s, floor, first, ids, scores);
}

static ptrdiff_t at_least(const float *scores, const float *errors, float slack, ptrdiff_t n,
                          float floor, int32_t *places, float *out)
{
    const __m512 least = _mm512_set1_ps(floor), factor = _mm512_set1_ps(slack);
    ptrdiff_t found = 0;
    for (ptrdiff_t k = 0; k < n; k += 32) {  /* hardly ever does one of 32 reach the floor */
        __m512 s0 = _mm512_loadu_ps(scores + k), s1 = _mm512_loadu_ps(scores + k + 16);
        if (errors) {
            s0 = MULTIPLY_ADD_512(factor, _mm512_loadu_ps(errors + k), s0);
            s1 = MULTIPLY_ADD_512(factor, _mm512_loadu_ps(errors + k + 16), s1);
        }
        if (!(_mm512_cmp_ps_mask(s0, least, _CMP_GE_OQ)
              | _mm512_cmp_ps_mask(s1, least, _CMP_GE_OQ)))
            continue;
        found += store_from(s0, floor, (int32_t)k, places + found, out + found);
        found += store_from(s1, floor, (int32_t)k + 16, places + found, out + found);
    }
    return found;
}

static ptrdiff_t sketch_scan(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                             const uint8_t *lut, float a, float b, const float *factors,
                             const float *biases, float weight, const float *errors, float slack,
                             float floor, int32_t *ids, float *scores)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    ptrdiff_t found = 0;

    for (ptrdiff_t k = 0; k < n_blocks; k++) {
        __m512i even0 = _mm512_setzero_si512(), odd0 = even0, even1 = even0, odd1 = even0;
        for (ptrdiff_t g = 0; g < n_groups; g += 4) {
            __m512i codes = _mm512_loadu_si512(blocks + g * 16);
            __m512i t = _mm512_loadu_si512(lut + g * 16);
            __m512i lo = _mm512_shuffle_epi8(t, _mm512_and_si512(codes, nibble));
            __m512i hi = _mm512_shuffle_epi8(
                t, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble));
            even0 = _mm512_add_epi16(even0, lo);
            odd0 = _mm512_add_epi16(odd0, _mm512_srli_epi16(lo, 8));
            even1 = _mm512_add_epi16(even1, hi);
            odd1 = _mm512_add_epi16(odd1, _mm512_srli_epi16(hi, 8));
        }

        int32_t first = (int32_t)(k * SKETCH_BLOCK_NEURONS);
        found += keep(even0, odd0, a, b, factors, biases, weight, errors, slack, floor, first,
                      ids ? ids + found : ids, scores + found);
        found += keep(even1, odd1, a, b, factors + 16, biases ? biases + 16 : biases, weight,
                      errors ? errors + 16 : errors, slack, floor, first + 16,
                      ids ? ids + found : ids, scores + found);
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK_NEURONS;
        biases = biases ? biases + SKETCH_BLOCK_NEURONS : biases;
        errors = errors ? errors + SKETCH_BLOCK_NEURONS : errors;
    }
    return found;
}

#elif defined(__AVX2__)

static inline ptrdiff_t store_from(__m256 v, float floor, int32_t first, int32_t *ids,
                                   float *scores)
{
    float s[8];
    ptrdiff_t found = 0;
    unsigned mask = _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_set1_ps(floor), _CMP_GE_OQ));
    if (!mask)
        return 0;
    _mm256_storeu_ps(s, v);
    for (; mask; mask &= mask - 1, found++) {
        int place = __builtin_ctz(mask);
        ids[found] = first + place;
        scores[found] = s[place];
    }
    return found;
}

/* The scores of 16 neurons from their sums. */
static inline void scores_of(__m256i even, __m256i odd, float a, float b, const float *factors,
                             const float *biases, float weight, const float *errors, float slack,
                             __m256 scores[2])
{
    even = _mm256_sub_epi16(even, _mm256_slli_epi16(odd, 8));
    __m256i lo = _mm256_unpacklo_epi16(even, odd), hi = _mm256_unpackhi_epi16(even, odd);
    __m128i sums[2] = {
        _mm_add_epi16(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1)),
        _mm_add_epi16(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1)),
    };
    for (int k = 0; k < 2; k++) {
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(sums[k]));
        v = MULTIPLY_ADD_256(v, _mm256_set1_ps(a), _mm256_set1_ps(b));
        v = _mm256_mul_ps(v, _mm256_loadu_ps(factors + 8 * k));
        if (biases)
            v = MULTIPLY_ADD_256(_mm256_set1_ps(weight), _mm256_loadu_ps(biases + 8 * k), v);
        if (errors)
            v = MULTIPLY_ADD_256(_mm256_set1_ps(slack), _mm256_loadu_ps(errors + 8 * k), v);
        scores[k] = v;
    }
}

/* Those of 32 scores that reach the floor: hardly ever does one. */
static inline ptrdiff_t store_32_from(const __m256 v[4], float floor, int32_t first, int32_t *ids,
                                      float *scores)
{
    const __m256 least = _mm256_set1_ps(floor);
    __m256 low = _mm256_or_ps(_mm256_cmp_ps(v[0], least, _CMP_GE_OQ),
                              _mm256_cmp_ps(v[1], least, _CMP_GE_OQ));
    __m256 high = _mm256_or_ps(_mm256_cmp_ps(v[2], least, _CMP_GE_OQ),
                               _mm256_cmp_ps(v[3], least, _CMP_GE_OQ));
    ptrdiff_t found = 0;
    if (!_mm256_movemask_ps(_mm256_or_ps(low, high)))
        return 0;
    for (int k = 0; k < 4; k++)
        found += store_from(v[k], floor, first + 8 * k, ids + found, scores + found);
    return found;
}

static ptrdiff_t at_least(const float *scores, const float *errors, float slack, ptrdiff_t n,
                          float floor, int32_t *places, float *out)
{
    ptrdiff_t found = 0;
    for (ptrdiff_t k = 0; k < n; k += 32) {
        __m256 v[4];
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(scores + k + 8 * i);
            if (errors)
                v[i] = MULTIPLY_ADD_256(_mm256_set1_ps(slack), _mm256_loadu_ps(errors + k + 8 * i),
                                        v[i]);
        }
        found += store_32_from(v, floor, (int32_t)k, places + found, out + found);
    }
    return found;
}

static ptrdiff_t sketch_scan(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                             const uint8_t *lut, float a, float b, const float *factors,
                             const float *biases, float weight, const float *errors, float slack,
                             float floor, int32_t *ids, float *scores)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    ptrdiff_t found = 0;

    for (ptrdiff_t k = 0; k < n_blocks; k++) {
        __m256i even0 = _mm256_setzero_si256(), odd0 = even0, even1 = even0, odd1 = even0;
#pragma GCC unroll 2
        for (ptrdiff_t g = 0; g < n_groups; g += 2) {
            __m256i codes = _mm256_loadu_si256((const __m256i *)(blocks + g * 16));
            __m256i t = _mm256_loadu_si256((const __m256i *)(lut + g * 16));
            __m256i lo = _mm256_shuffle_epi8(t, _mm256_and_si256(codes, nibble));
            __m256i hi = _mm256_shuffle_epi8(
                t, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
            even0 = _mm256_add_epi16(even0, lo);
            odd0 = _mm256_add_epi16(odd0, _mm256_srli_epi16(lo, 8));
            even1 = _mm256_add_epi16(even1, hi);
            odd1 = _mm256_add_epi16(odd1, _mm256_srli_epi16(hi, 8));
        }

        __m256 v[4];
        scores_of(even0, odd0, a, b, factors, biases, weight, errors, slack, v);
        scores_of(even1, odd1, a, b, factors + 16, biases ? biases + 16 : biases, weight,
                  errors ? errors + 16 : errors, slack, v + 2);
        if (ids) {
            found += store_32_from(v, floor, (int32_t)(k * SKETCH_BLOCK_NEURONS), ids + found,
                                   scores + found);
        } else {
            for (int i = 0; i < 4; i++)
                _mm256_storeu_ps(scores + found + 8 * i, v[i]);
            found += SKETCH_BLOCK_NEURONS;
        }
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK_NEURONS;
        biases = biases ? biases + SKETCH_BLOCK_NEURONS : biases;
        errors = errors ? errors + SKETCH_BLOCK_NEURONS : errors;
    }
    return found;
}

#else

/* the sums of a block, by table lookup */
static inline void nibble_sums(const uint8_t *block, ptrdiff_t n_groups, const uint8_t *lut,
                               uint16_t sums[SKETCH_BLOCK_NEURONS])
{
#if defined(USE_NEON)
    uint16x8_t s0 = vdupq_n_u16(0), s1 = s0, s2 = s0, s3 = s0;
    for (ptrdiff_t g = 0; g < n_groups; g++) {
        uint8x16_t codes = vld1q_u8(block + g * 16), t = vld1q_u8(lut + g * 16);
        uint8x16_t lo = vqtbl1q_u8(t, vandq_u8(codes, vdupq_n_u8(15)));
        uint8x16_t hi = vqtbl1q_u8(t, vshrq_n_u8(codes, 4));
        s0 = vaddw_u8(s0, vget_low_u8(lo));
        s1 = vaddw_high_u8(s1, lo);
        s2 = vaddw_u8(s2, vget_low_u8(hi));
        s3 = vaddw_high_u8(s3, hi);
    }
    vst1q_u16(sums, s0);
    vst1q_u16(sums + 8, s1);
    vst1q_u16(sums + 16, s2);
    vst1q_u16(sums + 24, s3);
#else
    memset(sums, 0, SKETCH_BLOCK_NEURONS * sizeof *sums);
    for (ptrdiff_t g = 0; g < n_groups; g++)
        for (int j = 0; j < 16; j++) {
            sums[j] += lut[g * 16 + (block[g * 16 + j] & 15)];
            sums[j + 16] += lut[g * 16 + (block[g * 16 + j] >> 4)];
        }
#endif
}

static ptrdiff_t sketch_scan(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                             const uint8_t *lut, float a, float b, const float *factors,
                             const float *biases, float weight, const float *errors, float slack,
                             float floor, int32_t *ids, float *scores)
{
    ptrdiff_t found = 0;

    for (ptrdiff_t k = 0; k < n_blocks; k++) {
        uint16_t sums[SKETCH_BLOCK_NEURONS];
        nibble_sums(blocks, n_groups, lut, sums);

        for (int j = 0; j < SKETCH_BLOCK_NEURONS; j++) {
            float s = factors[j] * (a * sums[j] + b);
            s = biases ? s + weight * biases[j] : s;
            s = errors ? s + slack * errors[j] : s;
            if (ids)
                ids[found] = (int32_t)(k * SKETCH_BLOCK_NEURONS) + j;
            scores[found] = s;
            found += !ids || s >= floor;
        }
        blocks += n_groups * 16;
        factors += SKETCH_BLOCK_NEURONS;
        biases = biases ? biases + SKETCH_BLOCK_NEURONS : biases;
        errors = errors ? errors + SKETCH_BLOCK_NEURONS : errors;
    }
    return found;
}

static ptrdiff_t at_least(const float *scores, const float *errors, float slack, ptrdiff_t n,
                          float floor, int32_t *places, float *out)
{
    ptrdiff_t found = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        float s = errors ? scores[k] + slack * errors[k] : scores[k];
        places[found] = (int32_t)k;
        out[found] = s;
        found += s >= floor;
    }
    return found;
}

#endif
