/* The inner loops: plain C over contiguous runs, compiled once per instruction set.

   loops.c is built once per level, a set of instructions that processors have together:

       baseline   what every processor of the architecture has
       v3         x86-64-v3: AVX2 and FMA
       avx-vnni   v3, and 8-bit dot products (client processors without AVX-512)
       v4         x86-64-v4: AVX-512
       v4-vnni    v4, and 8-bit dot products
       v4-bf16    v4-vnni, and bfloat16 dot products
       amx        v4-bf16, and products of tiles in bfloat16 and 8 bits
       neon       AArch64, by its vector instructions
       neon-dot   neon, and 8-bit dot products
       neon-bf16  neon-dot, and bfloat16 dot products

   Some levels are built once more, as "reproducible-baseline" and so on: results are then the same
   for every instruction set, bit by bit, at the cost of fused operations (docs/design.md,
   section 5). None multiplies pairs of bfloat16 numbers.

   dispatch.c selects the best one that the processor supports. A kernel gets the table once, by
   `const loops_t *f = loops()`, and calls through it: one indirect call per row, none per
   element. */
#ifndef SPARSELSH_LOOPS_H
#define SPARSELSH_LOOPS_H

#include <stddef.h>
#include <stdint.h>

/* One optimizer step: everything that does not depend on the row, computed in advance. */
typedef struct {
    int kind;             /* RULE_SGD or RULE_ADAM */
    int nesterov;         /* SGD */
    float lr;             /* SGD: learning rate.  Adam: learning rate / (1 - beta1^t) */
    float momentum;       /* SGD */
    float beta1, beta2;   /* Adam */
    float eps;            /* Adam */
    float root_scale;     /* Adam: 1 / sqrt(1 - beta2^t) */
    float decay;          /* SGD: decay * w is added to the gradient.  Adam: w *= 1 - decay first */
    uint32_t key;         /* for random rounding; differs from step to step */
} rule_t;

/* Element types of an array: no array; float32; bfloat16, the upper half of a float32; one float32
   per row (the second moment of an optimizer); 8-bit integers with a float32 scale per row (weights
   for inference only). All arithmetic is in float32. */
enum {
    DTYPE_NONE = 0, DTYPE_FLOAT32 = 1, DTYPE_BFLOAT16 = 2, DTYPE_FLOAT32_PER_ROW = 3, DTYPE_INT8 = 4
};

/* An array of weights or of optimizer state; never DTYPE_INT8. */
typedef struct {
    void *data;
    int dtype;
} typed_array_t;

enum {
    SKETCH_BLOCK_NEURONS = 32,  /* stored together: a nibble each, two in each of 16 bytes */
    SIGN_LANES = 32,            /* rows whose signed sums are computed together */
    INT8_LANES = 16,            /* neurons whose 8-bit weights are stored together, */
    INT8_BLOCK_BYTES = 4 * INT8_LANES  /* by groups of four inputs */
};

enum { RULE_SGD = 0, RULE_ADAM = 1 };

enum {
    ACTIVATION_NONE = 0, ACTIVATION_RELU = 1, ACTIVATION_GELU = 2, ACTIVATION_GELU_TANH = 3,
    ACTIVATION_SILU = 4, ACTIVATION_TANH = 5, ACTIVATION_SIGMOID = 6
};

/* A matrix product on one thread. Entry (i, p) of a is a[i * a_row + p * a_column]; entry (p, j) of
   b is b[p * b_row + j * b_column]. With `rows` b is gathered: row rows[j] stands for j (gather 1,
   along j) or row rows[p] for p (gather 2, along p). c is row-major. b is float32 or, with b_dtype
   DTYPE_BFLOAT16, bfloat16; b_first is the index of its first number. Each entry of c is summed
   over p in an order that depends on k alone, so that a product may be divided into blocks of c,
   among threads or not, without changing a bit of the result. With in_bfloat16 the entries of a and
   b are rounded to the nearest bfloat16 and the sums are in float32. `packed` is b as pack_whole_b
   has left it, or NULL. */
typedef struct {
    ptrdiff_t m, n, k;
    const float *a;
    ptrdiff_t a_row, a_column;
    const void *b;
    int b_dtype;
    int in_bfloat16;
    ptrdiff_t b_first, b_row, b_column;
    const int32_t *rows;     /* NULL: nothing is gathered */
    int gather;
    const float *bias;       /* (n,), added to each row of c; or NULL */
    float *c;
    ptrdiff_t c_row;
    const float *packed;
} gemm_t;

enum {
    GEMM_M = 256, GEMM_K = 256,  /* rows and columns of a panel of a, in words of four bytes */
    GEMM_MAX_TILE = 32,          /* columns of a sliver of b, at most */
    GEMM_TILES_M = 1024,         /* rows of a panel where tiles are multiplied */
    GEMM_LINE = GEMM_K + 16,     /* so that the lines of a tile are in different sets of a cache */
    GEMM_PANEL_FLOATS = GEMM_LINE * (GEMM_TILES_M + 8),
    /* a panel of a, a sliver of b, and a sliver of b before it is transposed */
    GEMM_WORK_FLOATS = GEMM_PANEL_FLOATS + GEMM_K * 2 * GEMM_MAX_TILE
};

typedef struct {
    const char *name;
    /* sum_k a[k] b[k] */
    float (*dot)(const float *a, const float *b, ptrdiff_t n);
    /* out[r] = w[rows[r]] . x, or w[r] . x if rows is NULL; w has rows of d numbers */
    void (*dots)(const float *w, const int32_t *rows, ptrdiff_t n_rows, const float *x, ptrdiff_t d,
                 float *out);
    /* y[k] += a x[k] */
    void (*axpy)(float a, const float *x, float *y, ptrdiff_t n);
    /* sum_k data[k] dense[indices[k]] */
    float (*gather_dot)(const float *data, const int32_t *indices, ptrdiff_t n, const float *dense);
    /* y[k] += a dense[indices[k]] */
    void (*gather_axpy)(float a, const float *dense, const int32_t *indices, float *y, ptrdiff_t n);
    /* max_k x[k]; n >= 1 */
    float (*max)(const float *x, ptrdiff_t n);
    /* x[k] <- exp(x[k] - shift), shift >= max x; returns the sum */
    float (*exp_sum)(float *x, ptrdiff_t n, float shift);
    /* z[k] <- 1 / (1 + exp(-z[k])); returns sum_k log(1 + exp(z[k])) */
    float (*sigmoid_sum)(float *z, ptrdiff_t n);
    /* x[k] *= a */
    void (*scale)(float a, float *x, ptrdiff_t n);
    /* Neurons whose approximate score reaches `floor`, from the sign sketches of
       n_blocks * SKETCH_BLOCK_NEURONS neurons:
       score[j] = factors[j] * (a * sum_g lut[g][nibble g of neuron j] + b)
                  + weight * biases[j] + slack * errors[j].
       biases and errors may be NULL: their terms are then absent. If ids is NULL, the scores of all
       neurons are stored. Byte g * 16 + k of a block holds
       nibble g of neuron k (low half) and of neuron k + 16 (high half). Places, counted from the
       first block, and scores go to ids and scores, in the order of the places; returns their
       number. */
    ptrdiff_t (*sketch_scan)(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                             const uint8_t *lut, float a, float b, const float *factors,
                             const float *biases, float weight, const float *errors, float slack,
                             float floor, int32_t *ids, float *scores);
    /* The places k < n with scores[k] + slack * errors[k] >= floor, and these sums, in their order;
       returns their number. n is a multiple of SKETCH_BLOCK_NEURONS; errors may be NULL, as above.
       places and out hold n and a register more. */
    ptrdiff_t (*at_least)(const float *scores, const float *errors, float slack, ptrdiff_t n,
                          float floor, int32_t *places, float *out);
    /* c (m, n) = a b + bias; see gemm_t */
    void (*gemm)(const gemm_t *g, float *work);
    /* b of a product, as gemm packs it, for products that share it; `packed` holds
       (k + GEMM_MAX_TILE) (n + GEMM_MAX_TILE) numbers */
    void (*pack_whole_b)(const gemm_t *g, float *packed, float *work);
    /* Signed sums of SIGN_LANES rows at once: out[lane] = sum_k columns[ids[k] * SIGN_LANES + lane]
       over the first n_plus ids, minus the same over the n_minus ids after them, each in the order
       of the ids */
    void (*signed_sums)(const float *columns, const int32_t *ids, ptrdiff_t n_plus,
                        ptrdiff_t n_minus, float *out);
    /* bit b of codes[t] = [p[t * n_bits + b] > 0] for t < n_codes; n_bits <= 30 */
    void (*pack_signs)(const float *p, int n_bits, ptrdiff_t n_codes, int32_t *codes);
    /* plus[k] += x where signs[k] > 0, minus[k] += x where signs[k] < 0 */
    void (*add_signed)(float x, const int8_t *signs, float *plus, float *minus, ptrdiff_t n);
    /* x <- H (signs * x), H the Hadamard matrix of order n (entries +-1), n a power of two; spare
       holds n */
    void (*hadamard)(const float *signs, float *x, float *spare, ptrdiff_t n);
    /* the lowest k with the largest |x[k]|; n >= 1 */
    ptrdiff_t (*largest_magnitude)(const float *x, ptrdiff_t n);
    /* One optimizer step on n numbers of row `row`, which begin at number `first` of the arrays. m
       and v are DTYPE_NONE if the rule keeps no such state. If v is DTYPE_FLOAT32_PER_ROW, its
       number `row` is the mean over the n numbers. bfloat16 is rounded at random, but m to the
       nearest. */
    void (*update)(const rule_t *rule, const typed_array_t *w, const typed_array_t *m,
                   const typed_array_t *v, ptrdiff_t row, ptrdiff_t first, const float *g,
                   ptrdiff_t n);
    /* the same on float32, where g is not zero; other entries keep weight and state */
    void (*update_touched)(const rule_t *rule, float *w, float *m, float *v, const float *g,
                           ptrdiff_t n);
    /* y[k] = x[k], x bfloat16 */
    void (*to_float32)(const uint16_t *x, float *y, ptrdiff_t n);
    /* y[k] = x[k] rounded to the nearest, ties to even, y bfloat16 */
    void (*to_bfloat16)(const float *x, uint16_t *y, ptrdiff_t n);
    /* dot, dots and axpy for bfloat16 rows */
    float (*dot_bfloat16)(const uint16_t *a, const float *b, ptrdiff_t n);
    void (*dots_bfloat16)(const uint16_t *w, const int32_t *rows, ptrdiff_t n_rows, const float *x,
                          ptrdiff_t d, float *out);
    void (*axpy_bfloat16)(float a, const uint16_t *x, float *y, ptrdiff_t n);
    /* y[k] += sum_r a[r] w[rows[r]][first + k], k < n, in the order of r; w has rows of d
       numbers */
    void (*sums)(const float *w, const int32_t *rows, const float *a, ptrdiff_t n_rows, ptrdiff_t d,
                 ptrdiff_t first, ptrdiff_t n, float *y);
    void (*sums_bfloat16)(const uint16_t *w, const int32_t *rows, const float *a, ptrdiff_t n_rows,
                          ptrdiff_t d, ptrdiff_t first, ptrdiff_t n, float *y);
    /* sums and dots for rows of 8-bit integers; row j of sums stands for scales[j] times its
       integers */
    void (*sums_int8)(const int8_t *w, const float *scales, const int32_t *rows, const float *a,
                      ptrdiff_t n_rows, ptrdiff_t d, ptrdiff_t first, ptrdiff_t n, float *y);
    void (*dots_int8)(const int8_t *w, const int32_t *rows, ptrdiff_t n_rows, const float *x,
                      ptrdiff_t d, float *out);
    /* out[i * out_row + j] = sum_k x[i * x_row + k] w[j][k], k < 4 n_groups, exactly, for INT8_LANES n_blocks
       neurons j. Byte (g * INT8_LANES + j) * 4 + q of a block is w[j][4 g + q]; totals[j] is the
       sum of w[j]. */
    void (*dots_blocks)(const int8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                        const int32_t *totals, const uint8_t *x, ptrdiff_t n_x, ptrdiff_t x_row,
                        int32_t *out, ptrdiff_t out_row);
    /* out[k] = x[k] / step + zero, rounded half to even; returns the step, of which the number with
       the largest magnitude is 127 or, where none is negative and zero is 0, 255 */
    float (*quantize_input)(const float *x, ptrdiff_t n, uint8_t *out, int32_t *zero);
    /* out[j] = (dots[j] - zero * totals[j]) * (scale * scales[j]) + bias[j] */
    void (*scale_dots)(const int32_t *dots, const int32_t *totals, int32_t zero, float scale,
                       const float *scales, const float *bias, float *out, ptrdiff_t n);
    /* out[i * out_row + j] = (2 sum_k x[i][k] c[j][k] - 15 totals[i]) * factors[i] * scales[j]
       + offsets[j] for INT8_LANES n_blocks neurons j, whose codes c[j][k] are in 0 .. 15; the sum
       is exact. Rows of x have 8 n_groups numbers, and totals[i] is the sum of x[i]. Byte
       (g * INT8_LANES + j) * 4 + q of a block holds c[j][8 g + q] (low half) and
       c[j][8 g + 4 + q]. */
    void (*coded_scores)(const uint8_t *blocks, ptrdiff_t n_blocks, ptrdiff_t n_groups,
                         const int8_t *x, ptrdiff_t n_x, const int32_t *totals,
                         const float *factors, const float *scales, const float *offsets,
                         float *out, ptrdiff_t out_row);
    /* x[k] = activation(x[k]), an ACTIVATION_ */
    void (*activate)(int kind, float *x, ptrdiff_t n);
} loops_t;

const loops_t *loops(void);          /* the level in use */
int loops_select(const char *name);  /* 0; -1: unknown name; -2: not on this processor */
/* the fastest of the usual or of the reproducible levels */
void loops_select_fastest(int reproducible);
int loops_are_reproducible(void);    /* whether the level in use is */
/* the name of usual or of reproducible level i; returns whether this processor supports it, -1 past
   the end */
int loops_available(int reproducible, int i, const char **name);

/* Prefetch a run of memory. Otherwise a random row costs a cache miss per line: the hardware
   prefetcher does not know where the next row is. */
static inline void prefetch_run(const void *p, ptrdiff_t bytes)
{
    const char *c = (const char *)p;
    for (ptrdiff_t k = 0; k < bytes; k += 64)
        __builtin_prefetch(c + k, 0, 3);
    if (bytes > 0)
        __builtin_prefetch(c + bytes - 1, 0, 3);  /* an unaligned run ends on one more line */
    /* GCC considers a function that only prefetches to have no effect and removes calls of it, and
       of functions that do nothing but call it. A volatile statement, even an empty one, keeps
       them. */
    __asm__ volatile("");
}

#endif
