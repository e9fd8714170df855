/* Multiplications and additions per second from registers: the bound of the products.

   cc -O3 -march=native bench/peak.c -o peak && ./peak

   prints the rate of one core in float32 and, where the processor has the instructions, with
   bfloat16 and 8-bit factors, also by tiles (AMX, on Linux); two operations per product, best of
   three. Needs AVX-512. */
#include <immintrin.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
/* four sums of 16 x 16 entries, as the kernels have them; 64 bytes of terms per entry */
#define RATE_OF_TILES(name, multiply, terms)                                                     \
    static double name(void)                                                                     \
    {                                                                                            \
        double best = 0;                                                                         \
        for (int trial = 0; trial < 3; trial++) {                                                \
            double begin = seconds();                                                            \
            for (long k = 0; k < REPEATS; k += 4) {                                              \
                multiply(0, 4, 6);                                                               \
                multiply(1, 4, 7);                                                               \
                multiply(2, 5, 6);                                                               \
                multiply(3, 5, 7);                                                               \
            }                                                                                    \
            double rate = 2.0 * 16 * 16 * terms * REPEATS / (seconds() - begin);                 \
            best = rate > best ? rate : best;                                                    \
        }                                                                                        \
        return best * 1e-9;                                                                      \
    }

RATE_OF_TILES(bfloat16_tiles, _tile_dpbf16ps, 32)
RATE_OF_TILES(int8_tiles, _tile_dpbusd, 64)

static int begin_tiles(void)
{
    struct {
        char palette, start_row, reserved[14];
        short row_bytes[16];
        char rows[16];
    } config = { .palette = 1 };
    if (syscall(SYS_arch_prctl, 0x1023, 18))  /* permission for tiles */
        return 0;
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = 64;
        config.rows[t] = 16;
    }
    _tile_loadconfig(&config);
    return 1;
}
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
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
    if (begin_tiles()) {
        printf("bfloat16  %7.1f GF/s by tiles\n", bfloat16_tiles());
        printf("int8      %7.1f Gop/s by tiles\n", int8_tiles());
        _tile_release();
    }
#endif
}
