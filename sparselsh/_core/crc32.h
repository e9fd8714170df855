/* CRC-32 as zlib computes it, 64 bytes at a time by products without carry (Gopal et al., "Fast CRC
   Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009). zlib itself takes
   one byte or some by tables, which costs more than writing the bytes to a file. */
#ifndef SPARSELSH_CRC32_H
#define SPARSELSH_CRC32_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>

static int has_fast_crc32(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

/* x times x^128 or x^512, by the factors of its halves, plus the next 16 bytes */
__attribute__((target("pclmul,sse4.1")))
static inline __m128i fold(__m128i x, __m128i factors, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(x, factors, 0x00);
    __m128i high = _mm_clmulepi64_si128(x, factors, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* The checksum of n bytes that follow those of which `before` is the checksum; n is a multiple of
   16 and at least 64. Constants are those of the paper for the polynomial of zlib, reflected. */
__attribute__((target("pclmul,sse4.1")))
static uint32_t fast_crc32(const uint8_t *p, ptrdiff_t n, uint32_t before)
{
    const __m128i by_512 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
    const __m128i by_128 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const __m128i by_64 = _mm_set_epi64x(0, 0x0163cd6124);
    const __m128i polynomial = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    const __m128i low_words = _mm_set_epi32(0, -1, 0, -1);
    const __m128i *next = (const __m128i *)p, *end = next + n / 16;
    __m128i x[4], folded;

    for (int i = 0; i < 4; i++)
        x[i] = _mm_loadu_si128(next++);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)~before));
    for (; end - next >= 4; next += 4)
        for (int i = 0; i < 4; i++)
            x[i] = fold(x[i], by_512, _mm_loadu_si128(next + i));
    folded = x[0];
    for (int i = 1; i < 4; i++)
        folded = fold(folded, by_128, x[i]);
    while (next < end)
        folded = fold(folded, by_128, _mm_loadu_si128(next++));

    /* 128 bits to 96, to 64, and by Barrett's reduction to 32 */
    folded = _mm_xor_si128(_mm_srli_si128(folded, 8), _mm_clmulepi64_si128(folded, by_128, 0x10));
    folded = _mm_xor_si128(_mm_srli_si128(folded, 4),
                           _mm_clmulepi64_si128(_mm_and_si128(folded, low_words), by_64, 0x00));
    x[0] = _mm_clmulepi64_si128(_mm_and_si128(folded, low_words), polynomial, 0x10);
    x[0] = _mm_clmulepi64_si128(_mm_and_si128(x[0], low_words), polynomial, 0x00);
    return ~(uint32_t)_mm_extract_epi32(_mm_xor_si128(folded, x[0]), 1);
}

#else

static int has_fast_crc32(void) { return 0; }

static uint32_t fast_crc32(const uint8_t *p, ptrdiff_t n, uint32_t before)
{
    (void)p, (void)n;
    return before;
}

#endif

#endif
