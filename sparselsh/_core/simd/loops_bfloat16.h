/* bfloat16, the upper half of a float32: the same range, eight significant bits. Part of
   loops.c. */
#include "loops.h"
#include <string.h>

static inline float float32_of(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void to_float32(const uint16_t *restrict x, float *restrict y, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++)
        y[k] = float32_of(x[k]);
}

static void to_bfloat16(const float *restrict x, uint16_t *restrict y, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++) {
        uint32_t bits = bits_of(x[k]);
        y[k] = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
}

/* the upper half of x rounded to the nearest bfloat16, ties to even, in place; a NaN stays one */
static inline uint32_t rounded_bits(float x)
{
    uint32_t bits = bits_of(x);
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits | 0x00400000u) & 0xFFFF0000u
                                              : (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
}

/* two bfloat16 numbers in one word, the first in the low half */
static inline float word_of(float low, float high)
{
    uint32_t bits = rounded_bits(low) >> 16 | rounded_bits(high);
    float word;
    memcpy(&word, &bits, sizeof word);
    return word;
}

/* each number becomes the nearest one that bfloat16 represents */
static inline void round_to_bfloat16(float *x, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++) {
        uint32_t bits = rounded_bits(x[k]);
        memcpy(x + k, &bits, sizeof bits);
    }
}

/* Round up with the probability of the part that is cut off, so that many steps below half a unit
   in the last place are not lost: an average over bfloat16 then has no bias. Numbers that bfloat16
   represents exactly stay. The random number of position k is a mix of key + k, so that it does not
   depend on the order of the loop; `shift` selects one half of it. The constants of the mix are
   those of lowbias32 (C. Wellons, 2018). */
static void to_bfloat16_random(const float *restrict x, uint16_t *restrict y, ptrdiff_t n,
                               uint32_t key, int shift)
{
    for (ptrdiff_t k = 0; k < n; k++) {
        uint32_t r = key + (uint32_t)k;
        r ^= r >> 16;
        r *= 0x7FEB352Du;
        r ^= r >> 15;
        r *= 0x846CA68Bu;
        r ^= r >> 16;
        y[k] = (uint16_t)((bits_of(x[k]) + (r >> shift & 0xFFFF)) >> 16);
    }
}

static void axpy_bfloat16(float a, const uint16_t *restrict x, float *restrict y, ptrdiff_t n)
{
    for (ptrdiff_t k = 0; k < n; k++)
        y[k] += a * float32_of(x[k]);
}
