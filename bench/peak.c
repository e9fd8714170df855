/* Multiplications and additions per second from registers: the bound of the products.

   cc -O3 -march=native bench/peak.c -o peak && ./peak

   prints the rate of one core in float32 and, where the processor has the instructions, with
   bfloat16 and 8-bit factors; two operations per product, best of three. Needs AVX-512. */
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { CHAINS = 16, REPEATS = 20000000 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* the assembler statement hides from the compiler that all sums are equal */
#define RATE(name, type, zero, operations, step)                                         \
    static double name(void)                                                             \
    {                                                                                    \
        double best = 0;                                                                 \
        for (int trial = 0; trial < 3; trial++) {                                        \
            type sum[CHAINS];                                                            \
            for (int i = 0; i < CHAINS; i++)                                             \
                sum[i] = zero;                                                           \
            double begin = seconds();                                                    \
            for (long k = 0; k < REPEATS; k++) {                                         \
                _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) sum[i] = step; \
                _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++)                \
                    __asm__ volatile("" : "+v"(sum[i]));                                 \
            }                                                                            \
            double rate = operations * (double)CHAINS * REPEATS / (seconds() - begin);   \
            best = rate > best ? rate : best;                                            \
        }                                                                                \
        return best * 1e-9;                                                              \
    }

RATE(float32, __m512, _mm512_setzero_ps(), 32,
     _mm512_fmadd_ps(_mm512_set1_ps(1), _mm512_set1_ps(1), sum[i]))
#ifdef __AVX512BF16__
RATE(bfloat16, __m512, _mm512_setzero_ps(), 64,
     _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(0x3F803F80),
                      (__m512bh)_mm512_set1_epi32(0x3F803F80)))
#endif
#ifdef __AVX512VNNI__
RATE(int8, __m512i, _mm512_setzero_si512(), 128,
     _mm512_dpbusd_epi32(sum[i], _mm512_set1_epi8(1), _mm512_set1_epi8(1)))
#endif

int main(void)
{
    printf("float32   %7.1f GF/s\n", float32());
#ifdef __AVX512BF16__
    printf("bfloat16  %7.1f GF/s\n", bfloat16());
#endif
#ifdef __AVX512VNNI__
    printf("int8      %7.1f Gop/s\n", int8());
#endif
}
