# The table of inner loops (simd/loops.h), which every kernel module gets by table().
from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t

cdef extern from "simd/loops.h" nogil:
    ctypedef struct rule_t:
        int kind
        int nesterov
        float lr, momentum, beta1, beta2, eps, root_scale, decay
        uint32_t key

    ctypedef struct typed_array_t:
        void *data
        int dtype

    ctypedef struct gemm_t:
        Py_ssize_t m, n, k
        const float *a
        Py_ssize_t a_row, a_column
        const void *b
        int b_dtype
        bint in_bfloat16
        Py_ssize_t b_first, b_row, b_column
        const int32_t *rows
        int gather
        const float *bias
        float *c
        Py_ssize_t c_row
        const float *packed

    enum:
        DTYPE_NONE
        DTYPE_FLOAT32
        DTYPE_BFLOAT16
        DTYPE_FLOAT32_PER_ROW
        DTYPE_INT8
        GEMM_K
        GEMM_MAX_TILE
        GEMM_WORK_FLOATS
        INT8_BLOCK_BYTES
        INT8_LANES
        RULE_SGD
        RULE_ADAM
        SIGN_LANES
        SKETCH_BLOCK_NEURONS

    ctypedef struct loops_t:
        float (*dot)(const float *a, const float *b, Py_ssize_t n) noexcept nogil
        void (*dots)(const float *w, const int32_t *rows, Py_ssize_t n_rows, const float *x,
                     Py_ssize_t d, float *out) noexcept nogil
        void (*axpy)(float a, const float *x, float *y, Py_ssize_t n) noexcept nogil
        float (*gather_dot)(const float *data, const int32_t *indices, Py_ssize_t n,
                            const float *dense) noexcept nogil
        void (*gather_axpy)(float a, const float *dense, const int32_t *indices, float *y,
                            Py_ssize_t n) noexcept nogil
        float (*max)(const float *x, Py_ssize_t n) noexcept nogil
        float (*exp_sum)(float *x, Py_ssize_t n, float shift) noexcept nogil
        float (*sigmoid_sum)(float *z, Py_ssize_t n) noexcept nogil
        void (*scale)(float a, float *x, Py_ssize_t n) noexcept nogil
        Py_ssize_t (*sketch_scan)(const uint8_t *blocks, Py_ssize_t n_blocks, Py_ssize_t n_groups,
                                  const uint8_t *lut, float a, float b, const float *factors,
                                  const float *biases, float weight, const float *errors,
                                  float slack, float floor, int32_t *ids,
                                  float *scores) noexcept nogil
        Py_ssize_t (*at_least)(const float *scores, const float *errors, float slack, Py_ssize_t n,
                               float floor, int32_t *places, float *out) noexcept nogil
        void (*gemm)(const gemm_t *g, float *work) noexcept nogil
        void (*pack_whole_b)(const gemm_t *g, float *packed, float *work) noexcept nogil
        void (*signed_sums)(const float *columns, const int32_t *ids, Py_ssize_t n_plus,
                            Py_ssize_t n_minus, float *out) noexcept nogil
        void (*pack_signs)(const float *p, int n_bits, Py_ssize_t n_codes,
                           int32_t *codes) noexcept nogil
        void (*add_signed)(float x, const int8_t *signs, float *plus, float *minus,
                           Py_ssize_t n) noexcept nogil
        void (*hadamard)(const float *signs, float *x, float *spare, Py_ssize_t n) noexcept nogil
        Py_ssize_t (*largest_magnitude)(const float *x, Py_ssize_t n) noexcept nogil
        void (*update)(const rule_t *rule, const typed_array_t *w, const typed_array_t *m,
                       const typed_array_t *v, Py_ssize_t row, Py_ssize_t first, const float *g,
                       Py_ssize_t n) noexcept nogil
        void (*update_touched)(const rule_t *rule, float *w, float *m, float *v, const float *g,
                               Py_ssize_t n) noexcept nogil
        void (*to_float32)(const uint16_t *x, float *y, Py_ssize_t n) noexcept nogil
        void (*to_bfloat16)(const float *x, uint16_t *y, Py_ssize_t n) noexcept nogil
        float (*dot_bfloat16)(const uint16_t *a, const float *b, Py_ssize_t n) noexcept nogil
        void (*dots_bfloat16)(const uint16_t *w, const int32_t *rows, Py_ssize_t n_rows,
                              const float *x, Py_ssize_t d, float *out) noexcept nogil
        void (*axpy_bfloat16)(float a, const uint16_t *x, float *y, Py_ssize_t n) noexcept nogil
        void (*sums)(const float *w, const int32_t *rows, const float *a, Py_ssize_t n_rows,
                     Py_ssize_t d, Py_ssize_t first, Py_ssize_t n, float *y) noexcept nogil
        void (*sums_bfloat16)(const uint16_t *w, const int32_t *rows, const float *a,
                              Py_ssize_t n_rows, Py_ssize_t d, Py_ssize_t first, Py_ssize_t n,
                              float *y) noexcept nogil
        void (*sums_int8)(const int8_t *w, const float *scales, const int32_t *rows, const float *a,
                          Py_ssize_t n_rows, Py_ssize_t d, Py_ssize_t first, Py_ssize_t n,
                          float *y) noexcept nogil
        void (*dots_int8)(const int8_t *w, const int32_t *rows, Py_ssize_t n_rows, const float *x,
                          Py_ssize_t d, float *out) noexcept nogil
        void (*dots_blocks)(const int8_t *blocks, Py_ssize_t n_blocks, Py_ssize_t n_groups,
                            const int32_t *totals, const uint8_t *x, Py_ssize_t n_x,
                            Py_ssize_t x_row, int32_t *out, Py_ssize_t out_row) noexcept nogil
        float (*quantize_input)(const float *x, Py_ssize_t n, uint8_t *out,
                                int32_t *zero) noexcept nogil
        void (*scale_dots)(const int32_t *dots, const int32_t *totals, int32_t zero, float scale,
                           const float *scales, const float *bias, float *out,
                           Py_ssize_t n) noexcept nogil
        void (*coded_scores)(const uint8_t *blocks, Py_ssize_t n_blocks, Py_ssize_t n_groups,
                             const int8_t *x, Py_ssize_t n_x, const int32_t *totals,
                             const float *factors, const float *scales, const float *offsets,
                             float *out, Py_ssize_t out_row) noexcept nogil
        void (*activate)(int kind, float *x, Py_ssize_t n) noexcept nogil

    void prefetch_run(const void *p, Py_ssize_t n_bytes) noexcept

cdef const loops_t *table() noexcept nogil
