/* Products of bfloat16 numbers by tiles (AMX); part of loops_gemm.h.

   One operation adds the product of a tile of a, of 16 rows and 32 terms, and a tile of b, of 32
   terms as 16 rows of pairs and 16 columns, to a tile of c in float32. Slivers of b are packed as
   for other levels, rows of a by lines always. A block of c is two tiles by two, so that a tile
   that is loaded is used twice. */

enum { BLOCK = 2 * TILE };

/* A block of c, of one or two tiles each way: constants where this is inlined */
static inline __attribute__((always_inline)) void multiply_tiles(const int two_down,
                                                                 const int two_across,
                                                                 ptrdiff_t words, const float *a,
                                                                 const float *b, float *c,
                                                                 ptrdiff_t c_row, const float *bias,
                                                                 int accumulate)
{
    const ptrdiff_t c_bytes = c_row * sizeof(float);
    float *below = c + TILE * c_row;

    BEFORE_TILES;
    if (accumulate || bias) {  /* the bias: each row of a tile is the same */
        const float *from = accumulate ? c : bias, *from_below = accumulate ? below : bias;
        const ptrdiff_t step = accumulate ? c_bytes : 0;
        _tile_loadd(0, from, step);
        if (two_across)
            _tile_loadd(1, from + TILE, step);
        if (two_down)
            _tile_loadd(2, from_below, step);
        if (two_down && two_across)
            _tile_loadd(3, from_below + TILE, step);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }

    for (ptrdiff_t q = 0; q < words; q += TILE) {
        _tile_loadd(4, a + q, LINE * sizeof(float));
        _tile_loadd(6, b + q * NR, NR * sizeof(float));
        _tile_dpbf16ps(0, 4, 6);
        if (two_across) {
            _tile_loadd(7, b + q * NR + TILE, NR * sizeof(float));
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_down) {
            _tile_loadd(5, a + TILE * LINE + q, LINE * sizeof(float));
            _tile_dpbf16ps(2, 5, 6);
        }
        if (two_down && two_across)
            _tile_dpbf16ps(3, 5, 7);
    }

    _tile_stored(0, c, c_bytes);
    if (two_across)
        _tile_stored(1, c + TILE, c_bytes);
    if (two_down)
        _tile_stored(2, below, c_bytes);
    if (two_down && two_across)
        _tile_stored(3, below + TILE, c_bytes);
}

/* a block of c of m rows and n columns, at most BLOCK each */
static inline void block_of_tiles(ptrdiff_t words, const float *a, const float *b, float *c,
                                  ptrdiff_t c_row, ptrdiff_t m, ptrdiff_t n, const float *bias,
                                  int accumulate)
{
    if (m == BLOCK && n == BLOCK) {
        for (ptrdiff_t i = BLOCK; i < 2 * BLOCK; i++) {  /* what the next block writes */
            __builtin_prefetch(c + i * c_row, 1);
            __builtin_prefetch(c + i * c_row + TILE, 1);
        }
        multiply_tiles(1, 1, words, a, b, c, c_row, bias, accumulate);
        return;
    }

    float edge[BLOCK * BLOCK] = {0}, edge_bias[BLOCK] = {0};
    for (ptrdiff_t i = 0; accumulate && i < m; i++)
        memcpy(edge + i * BLOCK, c + i * c_row, n * sizeof(float));
    if (bias)
        memcpy(edge_bias, bias, n * sizeof(float));
    bias = bias ? edge_bias : 0;

    if (m <= TILE && n <= TILE)
        multiply_tiles(0, 0, words, a, b, edge, BLOCK, bias, accumulate);
    else if (m <= TILE)
        multiply_tiles(0, 1, words, a, b, edge, BLOCK, bias, accumulate);
    else if (n <= TILE)
        multiply_tiles(1, 0, words, a, b, edge, BLOCK, bias, accumulate);
    else
        multiply_tiles(1, 1, words, a, b, edge, BLOCK, bias, accumulate);
    for (ptrdiff_t i = 0; i < m; i++)
        memcpy(c + i * c_row, edge + i * BLOCK, n * sizeof(float));
}

/* Rows first .. first + m, up to whole tiles, by lines, of an a with contiguous columns: the words
   of 32 terms are put into `rows` by reading all their rows from end to end, and transposed */
static inline void pack_transposed_a(const gemm_t *g, ptrdiff_t first, ptrdiff_t m, ptrdiff_t p0,
                                     ptrdiff_t k, float *panel, float *rows)
{
    const float *from = g->a + first + p0 * g->a_column;
    for (ptrdiff_t p = 0; p < k; p += 2 * TILE) {
        for (ptrdiff_t q = 0; q < TILE; q++) {
            const float *low = from + (p + 2 * q) * g->a_column, *high = 0;
            if (p + 2 * q + 1 < k)
                high = low + g->a_column;
            for (ptrdiff_t r = 0; r < m; r += TILE)
                _mm512_storeu_si512(rows + q * GEMM_M + r,
                                    p + 2 * q < k ? words_between(low + r, high ? high + r : 0, 0,
                                                                  m - r)
                                                  : _mm512_setzero_si512());
        }
        for (ptrdiff_t r = 0; r < m; r += TILE) {
            __m512 v[TILE];
#pragma GCC unroll 16
            for (int q = 0; q < TILE; q++)
                v[q] = _mm512_loadu_ps(rows + q * GEMM_M + r);
            transpose_registers(v);
            store_registers(v, TILE, panel + r * LINE + p / 2, LINE);
        }
    }
}

static __attribute__((noinline)) void gemm_by_tiles(const gemm_t *g, float *work)
{
    float *panel = work, *own = work + GEMM_PANEL_FLOATS, *wide = own + NR * GEMM_K;

    begin_tiles((const uint8_t[]){ TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE },
                (const uint8_t[]){ TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE });
    for (ptrdiff_t i = 0; i < g->m; i += GEMM_TILES_M) {
        const ptrdiff_t m = g->m - i < GEMM_TILES_M ? g->m - i : GEMM_TILES_M;
        for (ptrdiff_t p = 0; p < g->k || p == 0; p += 2 * GEMM_K) {
            const ptrdiff_t k = g->k - p < 2 * GEMM_K ? g->k - p : 2 * GEMM_K;
            const ptrdiff_t words = words_of(1, k);
            if (g->a_row == 1)
                for (ptrdiff_t r = 0; r < m; r += GEMM_M)
                    pack_transposed_a(g, i + r, m - r < GEMM_M ? m - r : GEMM_M, p, k,
                                      panel + r * LINE, wide);
            else
                for (ptrdiff_t r = 0; r < m; r += MR)
                    pack_lines_of_a(1, g, i + r, p, k, m - r < MR ? (int)(m - r) : MR,
                                    panel + r * LINE);

            for (ptrdiff_t j = 0; j < g->n; j += NR) {
                const ptrdiff_t n = g->n - j < NR ? g->n - j : NR;
                const float *sliver = own;
                if (g->packed)
                    sliver = g->packed + packed_place(1, g, j, p, words);
                else
                    pack_sliver(1, g, j, p, k, own, wide);
                for (ptrdiff_t r = 0; r < m; r += BLOCK)
                    block_of_tiles(words, panel + r * LINE, sliver, g->c + (i + r) * g->c_row + j,
                                   g->c_row, m - r < BLOCK ? m - r : BLOCK, n,
                                   g->bias && p == 0 ? g->bias + j : 0, p > 0);
            }
        }
    }
    _tile_release();
}
