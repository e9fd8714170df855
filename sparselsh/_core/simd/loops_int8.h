/* Products of 8-bit integers, whose sums are exact and the same at every level; part of loops.c. */
#include "loops.h"
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(USE_NEON)
#include <arm_neon.h>
#endif

/* Weights are in blocks of INT8_LANES neurons: for each group of four inputs, four bytes of each
   neuron. A lane is the sum of a neuron, so that nothing is added across lanes at the end.

   lanes_t: sums of a block, each in one or two parts; weights_t: a group of a block; INPUTS and
   BLOCKS: the tile that fills the registers. */
#if defined(__AVX512VNNI__)

enum { INPUTS_PER_TILE = 6, BLOCKS_PER_TILE = 4 };
typedef __m512i lanes_t;
typedef __m512i weights_t;

static inline lanes_t no_sums(void) { return _mm512_setzero_si512(); }
static inline weights_t load_group(const int8_t *p) { return _mm512_loadu_si512(p); }
static inline lanes_t add_group(lanes_t sums, weights_t w, uint32_t x)
{
    return _mm512_dpbusd_epi32(sums, _mm512_set1_epi32((int)x), w);
}
static inline void store_lanes(lanes_t sums, const int32_t *totals, int32_t *out)
{
    (void)totals;
    _mm512_storeu_si512(out, sums);
}

#elif defined(__AVXVNNI__)

enum { INPUTS_PER_TILE = 3, BLOCKS_PER_TILE = 2 };
typedef struct { __m256i low, high; } lanes_t;
typedef lanes_t weights_t;

static inline lanes_t no_sums(void)
{
    return (lanes_t){ _mm256_setzero_si256(), _mm256_setzero_si256() };
}
static inline weights_t load_group(const int8_t *p)
{
    return (weights_t){ _mm256_loadu_si256((const __m256i *)p),
                        _mm256_loadu_si256((const __m256i *)(p + 32)) };
}
static inline lanes_t add_group(lanes_t sums, weights_t w, uint32_t x)
{
    const __m256i input = _mm256_set1_epi32((int)x);
    return (lanes_t){ _mm256_dpbusd_avx_epi32(sums.low, input, w.low),
                      _mm256_dpbusd_avx_epi32(sums.high, input, w.high) };
}
static inline void store_lanes(lanes_t sums, const int32_t *totals, int32_t *out)
{
    (void)totals;
    memcpy(out, &sums, sizeof sums);
}

#elif defined(__AVX2__)

/* without such products: 16-bit ones, of which two are added without saturation */
enum { INPUTS_PER_TILE = 2, BLOCKS_PER_TILE = 1 };
typedef struct { __m256i quarters[4]; } lanes_t;  /* of a neuron, two sums side by side */
typedef lanes_t weights_t;

static inline lanes_t no_sums(void)
{
    const __m256i zero = _mm256_setzero_si256();
    return (lanes_t){ { zero, zero, zero, zero } };
}
static inline weights_t load_group(const int8_t *p)
{
    weights_t w;
    for (int q = 0; q < 4; q++)
        w.quarters[q] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + 16 * q)));
    return w;
}
static inline lanes_t add_group(lanes_t sums, weights_t w, uint32_t x)
{
    const __m256i input = _mm256_cvtepu8_epi16(_mm_set1_epi32((int)x));
    for (int q = 0; q < 4; q++)
        sums.quarters[q] = _mm256_add_epi32(sums.quarters[q],
                                            _mm256_madd_epi16(w.quarters[q], input));
    return sums;
}
static inline void store_lanes(lanes_t sums, const int32_t *totals, int32_t *out)
{
    int32_t parts[2 * INT8_LANES];
    (void)totals;
    memcpy(parts, &sums, sizeof parts);
    for (int j = 0; j < INT8_LANES; j++)
        out[j] = parts[2 * j] + parts[2 * j + 1];
}

#elif defined(USE_NEON) && defined(__ARM_FEATURE_DOTPROD)

/* signed by signed: the inputs less 128, and 128 times the totals of the weights at the end */
enum { INPUTS_PER_TILE = 3, BLOCKS_PER_TILE = 2 };
typedef struct { int32x4_t quarters[4]; } lanes_t;
typedef struct { int8x16_t quarters[4]; } weights_t;

static inline lanes_t no_sums(void)
{
    const int32x4_t zero = vdupq_n_s32(0);
    return (lanes_t){ { zero, zero, zero, zero } };
}
static inline weights_t load_group(const int8_t *p)
{
    return (weights_t){ { vld1q_s8(p), vld1q_s8(p + 16), vld1q_s8(p + 32), vld1q_s8(p + 48) } };
}
static inline lanes_t add_group(lanes_t sums, weights_t w, uint32_t x)
{
    const int8x16_t input = vreinterpretq_s8_u32(vdupq_n_u32(x ^ 0x80808080u));
    for (int q = 0; q < 4; q++)
        sums.quarters[q] = vdotq_s32(sums.quarters[q], w.quarters[q], input);
    return sums;
}
static inline void store_lanes(lanes_t sums, const int32_t *totals, int32_t *out)
{
    for (int q = 0; q < 4; q++)
        vst1q_s32(out + 4 * q, vaddq_s32(sums.quarters[q],
                                         vshlq_n_s32(vld1q_s32(totals + 4 * q), 7)));
}

#else

enum { INPUTS_PER_TILE = 1, BLOCKS_PER_TILE = 1 };
typedef struct { int32_t sums[INT8_LANES]; } lanes_t;
typedef const int8_t *weights_t;

static inline lanes_t no_sums(void) { return (lanes_t){ { 0 } }; }
static inline weights_t load_group(const int8_t *p) { return p; }
static inline lanes_t add_group(lanes_t s, weights_t w, uint32_t x)
{
    const int32_t x0 = x & 255, x1 = x >> 8 & 255, x2 = x >> 16 & 255, x3 = (int32_t)(x >> 24);
    for (int j = 0; j < INT8_LANES; j++)
        s.sums[j] += x0 * w[4 * j] + x1 * w[4 * j + 1] + x2 * w[4 * j + 2] + x3 * w[4 * j + 3];
    return s;
}
static inline void store_lanes(lanes_t s, const int32_t *totals, int32_t *out)
{
    (void)totals;
    memcpy(out, s.sums, sizeof s.sums);
}

#endif

/* n_x inputs times n_b blocks, constants where this is inlined */
static inline __attribute__((always_inline)) void tile_int8(const int n_x, const int n_b,
                                                            const int8_t *blocks,
                                                            ptrdiff_t n_groups,
                                                            const int32_t *totals,
                                                            const uint8_t *x, ptrdiff_t x_row,
                                                            int32_t *out, ptrdiff_t out_row)
{
    lanes_t sums[INPUTS_PER_TILE][4];
    for (int i = 0; i < n_x; i++)
        for (int b = 0; b < n_b; b++)
            sums[i][b] = no_sums();

    for (ptrdiff_t g = 0; g < n_groups; g++) {
        weights_t w[4];
#pragma GCC unroll 4
        for (int b = 0; b < n_b; b++)
            w[b] = load_group(blocks + (b * n_groups + g) * INT8_BLOCK_BYTES);
#pragma GCC unroll 6
        for (int i = 0; i < n_x; i++) {
            uint32_t four;
            memcpy(&four, x + i * x_row + 4 * g, sizeof four);
#pragma GCC unroll 4
            for (int b = 0; b < n_b; b++)
                sums[i][b] = add_group(sums[i][b], w[b], four);
        }
    }

    for (int i = 0; i < n_x; i++)
        for (int b = 0; b < n_b; b++)
            store_lanes(sums[i][b], totals + b * INT8_LANES, out + i * out_row + b * INT8_LANES);
}

#if defined(__AMX_INT8__)

#include "loops_tiles.h"

/* Tiles of inputs, and of 16 groups of a block, which lie in memory as in a tile. Tiles 0 to 3 are
   sums, 4 and 5 inputs, 6 and 7 weights. */
enum {
    TILE_BYTES = 4 * TILE,
    MIN_TILE_INPUTS = 6,   /* with fewer, memory is the limit */
    GROUPS_PER_PASS = 128  /* of which 32 inputs and two blocks are in the first-level cache */
};

/* Inputs of one or two tiles times one or two blocks, over groups that fill tiles; `first` says
   that there are no sums yet. n_a and n_b are constants where this is inlined. */
static inline __attribute__((always_inline)) void tiles_of(const int n_a, const int n_b,
                                                           const int8_t *w, ptrdiff_t block,
                                                           const uint8_t *x, ptrdiff_t row,
                                                           ptrdiff_t n_groups, int first,
                                                           int32_t *out, ptrdiff_t out_bytes)
{
    int32_t *lower = (int32_t *)((char *)out + TILE * out_bytes);
    BEFORE_TILES;
    if (first) {
        _tile_zero(0);
        if (n_b > 1) _tile_zero(1);
        if (n_a > 1) _tile_zero(2);
        if (n_a > 1 && n_b > 1) _tile_zero(3);
    } else {
        _tile_loadd(0, out, out_bytes);
        if (n_b > 1) _tile_loadd(1, out + INT8_LANES, out_bytes);
        if (n_a > 1) _tile_loadd(2, lower, out_bytes);
        if (n_a > 1 && n_b > 1) _tile_loadd(3, lower + INT8_LANES, out_bytes);
    }

    for (ptrdiff_t g = 0; g < n_groups; g += TILE) {
        _tile_loadd(6, w + g * INT8_BLOCK_BYTES, INT8_BLOCK_BYTES);
        if (n_b > 1) _tile_loadd(7, w + block + g * INT8_BLOCK_BYTES, INT8_BLOCK_BYTES);
        _tile_loadd(4, x + 4 * g, row);
        _tile_dpbusd(0, 4, 6);
        if (n_b > 1) _tile_dpbusd(1, 4, 7);
        if (n_a > 1) _tile_loadd(5, x + TILE * row + 4 * g, row);
        if (n_a > 1) _tile_dpbusd(2, 5, 6);
        if (n_a > 1 && n_b > 1) _tile_dpbusd(3, 5, 7);
    }

    _tile_stored(0, out, out_bytes);
    if (n_b > 1) _tile_stored(1, out + INT8_LANES, out_bytes);
    if (n_a > 1) _tile_stored(2, lower, out_bytes);
    if (n_a > 1 && n_b > 1) _tile_stored(3, lower + INT8_LANES, out_bytes);
    BEFORE_TILES;  /* the next ones are read where these were written */
}

static void tiles(int n_a, int n_b, const int8_t *w, ptrdiff_t block, const uint8_t *x,
                  ptrdiff_t row, ptrdiff_t n_groups, int first, int32_t *out, ptrdiff_t out_bytes)
{
    if (n_a == 2 && n_b == 2)
        tiles_of(2, 2, w, block, x, row, n_groups, first, out, out_bytes);
    else if (n_a == 2)
        tiles_of(2, 1, w, block, x, row, n_groups, first, out, out_bytes);
    else if (n_b == 2)
        tiles_of(1, 2, w, block, x, row, n_groups, first, out, out_bytes);
    else
        tiles_of(1, 1, w, block, x, row, n_groups, first, out, out_bytes);
}

/* Some groups of up to 32 inputs and of all blocks. Groups that fill no tile are copied beside
   zeros. */
static void pass_of_tiles(const int8_t *w, ptrdiff_t n_blocks, ptrdiff_t block, const uint8_t *x,
                          ptrdiff_t n, ptrdiff_t x_row, ptrdiff_t n_groups, int first,
                          int32_t *out, ptrdiff_t out_bytes)
{
    uint8_t some_x[2 * TILE][TILE_BYTES];
    int8_t some_w[2][TILE * INT8_BLOCK_BYTES];
    const int copies = n_groups < TILE, n_a = n > TILE ? 2 : 1;

    if (copies) {
        memset(some_x, 0, sizeof some_x);
        memset(some_w, 0, sizeof some_w);
        for (ptrdiff_t i = 0; i < n; i++)
            memcpy(some_x[i], x + i * x_row, 4 * n_groups);
    }
    for (ptrdiff_t b = 0; b < n_blocks; b += 2) {
        const int n_b = b + 2 <= n_blocks ? 2 : 1;
        const int8_t *from = w + b * block;
        if (copies) {
            for (int k = 0; k < n_b; k++)
                memcpy(some_w[k], from + k * block, n_groups * INT8_BLOCK_BYTES);
            tiles(n_a, n_b, some_w[0], sizeof some_w[0], some_x[0], TILE_BYTES, TILE, first,
                  out + b * INT8_LANES, out_bytes);
        } else
            tiles(n_a, n_b, from, block, x, x_row, n_groups, first, out + b * INT8_LANES,
                  out_bytes);
    }
}

static void dots_by_tiles(const int8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                          const uint8_t *x, ptrdiff_t n_x, ptrdiff_t x_row, int32_t *out,
                          ptrdiff_t out_row)
{
    const ptrdiff_t whole = n_groups - n_groups % TILE;
    ptrdiff_t configured = 0;
    for (ptrdiff_t i = 0, n; i < n_x; i += n) {
        n = n_x - i < 2 * TILE ? n_x - i : 2 * TILE;
        const uint8_t upper = n < TILE ? n : TILE, lower = n > TILE ? n - TILE : 1;
        if (n != configured)
            begin_tiles((const uint8_t[]){ upper, upper, lower, lower, upper, lower, TILE, TILE },
                        (const uint8_t[]){ TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE });
        configured = n;
        for (ptrdiff_t g = 0, size; g < n_groups; g += size) {
            size = g == whole ? n_groups - whole
                : whole - g < GROUPS_PER_PASS ? whole - g : GROUPS_PER_PASS;
            pass_of_tiles(blocks + g * INT8_BLOCK_BYTES, n_blocks, n_groups * INT8_BLOCK_BYTES,
                          x + i * x_row + 4 * g, n, x_row, size, g == 0, out + i * out_row,
                          out_row * (ptrdiff_t)sizeof *out);
        }
    }
    _tile_release();
}

#endif

static void dots_blocks(const int8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                        const int32_t *totals, const uint8_t *x, ptrdiff_t n_x, ptrdiff_t x_row,
                        int32_t *out, ptrdiff_t out_row)
{
    const ptrdiff_t block = n_groups * INT8_BLOCK_BYTES;
    ptrdiff_t b = 0, i;

#if defined(__AMX_INT8__)
    if (n_x >= MIN_TILE_INPUTS) {
        dots_by_tiles(blocks, n_blocks, n_groups, x, n_x, x_row, out, out_row);
        return;
    }
#endif
    if (n_x == 1)  /* bound by memory: many loads at once */
        for (; b + 4 <= n_blocks; b += 4)
            tile_int8(1, 4, blocks + b * block, n_groups, totals + b * INT8_LANES, x, x_row,
                      out + b * INT8_LANES, out_row);
    for (; b + BLOCKS_PER_TILE <= n_blocks; b += BLOCKS_PER_TILE) {
        const int8_t *w = blocks + b * block;
        const int32_t *t = totals + b * INT8_LANES;
        int32_t *to = out + b * INT8_LANES;
        for (i = 0; i + INPUTS_PER_TILE <= n_x; i += INPUTS_PER_TILE)
            tile_int8(INPUTS_PER_TILE, BLOCKS_PER_TILE, w, n_groups, t, x + i * x_row, x_row,
                      to + i * out_row, out_row);
        for (; i < n_x; i++)
            tile_int8(1, BLOCKS_PER_TILE, w, n_groups, t, x + i * x_row, x_row, to + i * out_row,
                      out_row);
    }
    for (; b < n_blocks; b++)
        for (i = 0; i < n_x; i++)
            tile_int8(1, 1, blocks + b * block, n_groups, totals + b * INT8_LANES, x + i * x_row,
                      x_row, out + i * out_row + b * INT8_LANES, out_row);
}

/* Weights in four bits: a block of INT8_LANES neurons has, for each group of eight inputs, four
   bytes of each neuron; byte q holds the codes of inputs q (low half) and q + 4 of the group. */
#if defined(__AVX512VNNI__)

enum { ROWS_PER_CODED_TILE = 6 };
typedef __m512i coded_t;
typedef struct { __m512i low, high; } codes_t;

static inline coded_t no_coded(void) { return _mm512_setzero_si512(); }
static inline codes_t load_codes(const uint8_t *p)
{
    const __m512i half = _mm512_set1_epi8(15), both = _mm512_loadu_si512(p);
    return (codes_t){ _mm512_and_si512(both, half),
                      _mm512_and_si512(_mm512_srli_epi16(both, 4), half) };
}
static inline coded_t add_codes(coded_t sums, codes_t c, int32_t x0, int32_t x1)
{
    sums = _mm512_dpbusd_epi32(sums, c.low, _mm512_set1_epi32(x0));
    return _mm512_dpbusd_epi32(sums, c.high, _mm512_set1_epi32(x1));
}
static inline void store_coded(coded_t sums, int32_t *out) { _mm512_storeu_si512(out, sums); }

#elif defined(__AVX2__)

/* sums of two products, and of two such, fit into 16 bits: 4 * 15 * 127 */
enum { ROWS_PER_CODED_TILE = 3 };
typedef struct { __m256i first, last; } coded_t;
typedef struct { __m256i low[2], high[2]; } codes_t;

static inline coded_t no_coded(void)
{
    return (coded_t){ _mm256_setzero_si256(), _mm256_setzero_si256() };
}
static inline codes_t load_codes(const uint8_t *p)
{
    const __m256i half = _mm256_set1_epi8(15);
    codes_t c;
    for (int k = 0; k < 2; k++) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(p + 32 * k));
        c.low[k] = _mm256_and_si256(both, half);
        c.high[k] = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
    }
    return c;
}
static inline __m256i add_half(__m256i sums, __m256i low, __m256i high, __m256i x0, __m256i x1)
{
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, x0), _mm256_maddubs_epi16(high, x1));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline coded_t add_codes(coded_t sums, codes_t c, int32_t x0, int32_t x1)
{
    const __m256i a = _mm256_set1_epi32(x0), b = _mm256_set1_epi32(x1);
    return (coded_t){ add_half(sums.first, c.low[0], c.high[0], a, b),
                      add_half(sums.last, c.low[1], c.high[1], a, b) };
}
static inline void store_coded(coded_t sums, int32_t *out)
{
    _mm256_storeu_si256((__m256i *)out, sums.first);
    _mm256_storeu_si256((__m256i *)(out + 8), sums.last);
}

#elif defined(USE_NEON) && defined(__ARM_FEATURE_DOTPROD)

enum { ROWS_PER_CODED_TILE = 3 };
typedef struct { int32x4_t quarters[4]; } coded_t;
typedef struct { int8x16_t low[4], high[4]; } codes_t;

static inline coded_t no_coded(void)
{
    const int32x4_t zero = vdupq_n_s32(0);
    return (coded_t){ { zero, zero, zero, zero } };
}
static inline codes_t load_codes(const uint8_t *p)
{
    codes_t c;
    for (int k = 0; k < 4; k++) {
        uint8x16_t both = vld1q_u8(p + 16 * k);
        c.low[k] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        c.high[k] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
    return c;
}
static inline coded_t add_codes(coded_t sums, codes_t c, int32_t x0, int32_t x1)
{
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(x0));
    const int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(x1));
    for (int k = 0; k < 4; k++)
        sums.quarters[k] = vdotq_s32(vdotq_s32(sums.quarters[k], c.low[k], a), c.high[k], b);
    return sums;
}
static inline void store_coded(coded_t sums, int32_t *out)
{
    for (int k = 0; k < 4; k++)
        vst1q_s32(out + 4 * k, sums.quarters[k]);
}

#else

enum { ROWS_PER_CODED_TILE = 1 };
typedef struct { int32_t sums[INT8_LANES]; } coded_t;
typedef const uint8_t *codes_t;

static inline coded_t no_coded(void) { return (coded_t){ { 0 } }; }
static inline codes_t load_codes(const uint8_t *p) { return p; }
static inline coded_t add_codes(coded_t s, codes_t c, int32_t x0, int32_t x1)
{
    for (int q = 0; q < 4; q++) {
        const int32_t low = (int8_t)(x0 >> 8 * q), high = (int8_t)(x1 >> 8 * q);
        for (int j = 0; j < INT8_LANES; j++)
            s.sums[j] += low * (c[4 * j + q] & 15) + high * (c[4 * j + q] >> 4);
    }
    return s;
}
static inline void store_coded(coded_t s, int32_t *out) { memcpy(out, s.sums, sizeof s.sums); }

#endif

/* n_x inputs times n_b blocks, constants where this is inlined */
static inline __attribute__((always_inline)) void tile_codes(const int n_x, const int n_b,
                                                             const uint8_t *blocks,
                                                             ptrdiff_t n_groups, const int8_t *x,
                                                             const int32_t *totals,
                                                             const float *factors,
                                                             const float *scales,
                                                             const float *offsets, float *out,
                                                             ptrdiff_t out_row)
{
    coded_t sums[ROWS_PER_CODED_TILE][4];
    for (int i = 0; i < n_x; i++)
        for (int b = 0; b < n_b; b++)
            sums[i][b] = no_coded();

    for (ptrdiff_t g = 0; g < n_groups; g++) {
        codes_t c[4];
#pragma GCC unroll 4
        for (int b = 0; b < n_b; b++)
            c[b] = load_codes(blocks + (b * n_groups + g) * INT8_BLOCK_BYTES);
#pragma GCC unroll 6
        for (int i = 0; i < n_x; i++) {
            int32_t eight[2];
            memcpy(eight, x + (i * n_groups + g) * 8, sizeof eight);
#pragma GCC unroll 4
            for (int b = 0; b < n_b; b++)
                sums[i][b] = add_codes(sums[i][b], c[b], eight[0], eight[1]);
        }
    }

    for (int i = 0; i < n_x; i++)
        for (int b = 0; b < n_b; b++) {
            const float *scale = scales + b * INT8_LANES, *offset = offsets + b * INT8_LANES;
            float *to = out + i * out_row + b * INT8_LANES;
            int32_t dots[INT8_LANES];
            store_coded(sums[i][b], dots);
            for (int j = 0; j < INT8_LANES; j++)
                to[j] = (float)(2 * dots[j] - 15 * totals[i]) * factors[i] * scale[j] + offset[j];
        }
}

static void coded_scores(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                         const int8_t *x, ptrdiff_t n_x, const int32_t *totals,
                         const float *factors, const float *scales, const float *offsets,
                         float *out, ptrdiff_t out_row)
{
    const ptrdiff_t block = n_groups * INT8_BLOCK_BYTES, row = 8 * n_groups;

    for (ptrdiff_t b = 0; b < n_blocks;) {
        const int n_b = n_x == 1 && b + 4 <= n_blocks ? 4 : b + 2 <= n_blocks ? 2 : 1;
        const float *s = scales + b * INT8_LANES, *o = offsets + b * INT8_LANES;
        float *to = out + b * INT8_LANES;
        ptrdiff_t i = 0;
        if (n_b == 4)
            tile_codes(1, 4, blocks, n_groups, x, totals, factors, s, o, to, out_row);
        else if (n_b == 2) {
            for (; i + ROWS_PER_CODED_TILE <= n_x; i += ROWS_PER_CODED_TILE)
                tile_codes(ROWS_PER_CODED_TILE, 2, blocks, n_groups, x + i * row, totals + i,
                           factors + i, s, o, to + i * out_row, out_row);
            for (; i < n_x; i++)
                tile_codes(1, 2, blocks, n_groups, x + i * row, totals + i, factors + i, s, o,
                           to + i * out_row, out_row);
        } else
            for (; i < n_x; i++)
                tile_codes(1, 1, blocks, n_groups, x + i * row, totals + i, factors + i, s, o,
                           to + i * out_row, out_row);
        blocks += n_b * block;
        b += n_b;
    }
}

/* Results of these two are the same at every level: no product and sum become one operation. */
#if defined(__clang__)
#define ROUND_EACH _Pragma("clang fp contract(off)")
#define ROUNDS_EACH
#else
#define ROUND_EACH
#define ROUNDS_EACH __attribute__((optimize("fp-contract=off")))
#endif

ROUNDS_EACH static float quantize_input(const float *x, ptrdiff_t n, uint8_t *out, int32_t *zero)
{
    ROUND_EACH
    float largest = 0, smallest = 0;
#pragma omp simd reduction(max : largest) reduction(min : smallest)
    for (ptrdiff_t k = 0; k < n; k++) {
        largest = x[k] > largest ? x[k] : largest;
        smallest = x[k] < smallest ? x[k] : smallest;
    }

    const float size = largest > -smallest ? largest : -smallest;
    const int32_t shift = smallest < 0 ? 128 : 0;
    const float steps = smallest < 0 ? 127.0f : 255.0f;
    *zero = shift;
    if (!(size >= 1e-30f && size <= 1e30f)) {  /* nothing to scale by */
        memset(out, shift, n);
        return 0;
    }

    const float inverse = steps / size, magic = 12582912.0f;  /* 1.5 * 2^23: rounds to an integer */
    for (ptrdiff_t k = 0; k < n; k++) {
        float shifted = x[k] * inverse + magic;
        uint32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        out[k] = (uint8_t)(bits - 0x4B400000u + (uint32_t)shift);
    }
    return size / steps;
}

ROUNDS_EACH static void scale_dots(const int32_t *dots, const int32_t *totals, int32_t zero,
                                   float scale, const float *scales, const float *bias, float *out,
                                   ptrdiff_t n)
{
    ROUND_EACH
    for (ptrdiff_t j = 0; j < n; j++)
        out[j] = (float)(dots[j] - zero * totals[j]) * (scale * scales[j]) + bias[j];
}
