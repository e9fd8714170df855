# The declaration of order.h: keys that sort scores, selection and sorting of small runs, random
# numbers by counter.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from "order.h" nogil:
    uint64_t score_key(float score, int32_t id) noexcept
    int32_t key_id(uint64_t key) noexcept
    float key_score(uint64_t key) noexcept
    uint64_t count_key(int count, int32_t id) noexcept
    int32_t count_key_id(uint64_t key) noexcept

    void insertion_sort(uint64_t *a, Py_ssize_t n) noexcept
    void select_smallest(uint64_t *a, Py_ssize_t n, Py_ssize_t k) noexcept
    void sort_keys(uint64_t *a, Py_ssize_t n) noexcept
    void sort_ids(int32_t *a, int32_t *spare, Py_ssize_t n, int64_t bound) noexcept

    ctypedef struct top_t:
        Py_ssize_t n
        uint64_t worst
    top_t top_begin(uint64_t *keys, Py_ssize_t capacity, Py_ssize_t k) noexcept
    void top_push(top_t *top, float score, int32_t id) noexcept
    float top_floor(const top_t *top) noexcept
    float top_kth(top_t *top) noexcept
    void top_end(top_t *top, bint sorted, int32_t *ids, float *scores) noexcept

    uint64_t random_at(uint64_t seed, uint64_t counter) noexcept
    int32_t random_below(uint64_t seed, uint64_t counter, int32_t bound) noexcept
