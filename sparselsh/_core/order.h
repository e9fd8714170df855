/* Selecting and sorting small runs of integer keys; a smaller key is better.

   A score and its id form one 64-bit key, so that ties are broken by the id and the result
   depends on neither the order of the input nor the number of threads. */
#ifndef SPARSELSH_ORDER_H
#define SPARSELSH_ORDER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Descending by score, then ascending by id. A float with its bits flipped sorts as an integer.
   Adding 0 turns -0 into 0, which it ties with. */
static inline uint64_t score_key(float score, int32_t id)
{
    uint32_t u;
    score += 0.0f;
    memcpy(&u, &score, sizeof u);
    u = u >> 31 ? u : ~u & 0x7FFFFFFFu;
    return (uint64_t)u << 32 | (uint32_t)id;
}

static inline int32_t key_id(uint64_t key) { return (int32_t)(uint32_t)key; }

static inline float key_score(uint64_t key)
{
    uint32_t u = (uint32_t)(key >> 32);
    float score;
    u = u >> 31 ? u : ~u & 0x7FFFFFFFu;
    memcpy(&score, &u, sizeof score);
    return score;
}

/* Descending by count, ties in an order that looks random (a bijection of the id): otherwise
   candidates with equal counts would favour the low ids, which many data sets give to frequent
   classes. */
static inline uint64_t count_key(int count, int32_t id)
{
    return (uint64_t)(255 - count) << 32 | (uint32_t)id * 0x9E3779B1u;
}
static inline int32_t count_key_id(uint64_t key)
{
    return (int32_t)((uint32_t)key * 0x0E8B2F51u);  /* the inverse of 0x9E3779B1 modulo 2^32 */
}

static inline void insertion_sort(uint64_t *a, ptrdiff_t n)
{
    for (ptrdiff_t i = 1; i < n; i++) {
        uint64_t x = a[i];
        ptrdiff_t j = i;
        for (; j > 0 && a[j - 1] > x; j--)
            a[j] = a[j - 1];
        a[j] = x;
    }
}

/* Bring the k smallest keys to the front, in any order. Quickselect, O(n) on average. The partition
   moves every key and has no branch on a comparison: such branches cannot be predicted and cost
   five times as much. */
static inline void select_smallest(uint64_t *a, ptrdiff_t n, ptrdiff_t k)
{
    ptrdiff_t lo = 0, hi = n - 1;
    if (k <= 0 || k >= n)
        return;

    while (hi - lo > 16) {
        ptrdiff_t mid = lo + (hi - lo) / 2, store = lo;
        uint64_t x = a[lo], y = a[mid], z = a[hi];
        ptrdiff_t median = x < y ? (y < z ? mid : (x < z ? hi : lo))
                                 : (x < z ? lo : (y < z ? hi : mid));
        uint64_t pivot = a[median];
        a[median] = a[hi];

        for (ptrdiff_t i = lo; i < hi; i++) {
            uint64_t t = a[i];
            a[i] = a[store];
            a[store] = t;
            store += t < pivot;
        }

        a[hi] = a[store];
        a[store] = pivot;
        if (k - 1 < store) hi = store - 1;
        else if (k - 1 > store) lo = store + 1;
        else return;
    }
    insertion_sort(a + lo, hi - lo + 1);
}

/* Ascending. Quicksort by halves of select_smallest would do as well; heapsort is short and never
   quadratic. */
static inline void sort_keys(uint64_t *a, ptrdiff_t n)
{
    if (n <= 32) {
        insertion_sort(a, n);
        return;
    }

    for (ptrdiff_t start = n / 2 - 1, end = n;;) {
        ptrdiff_t root = start;
        if (start < 0) {
            if (--end <= 0)
                return;
            uint64_t t = a[0];
            a[0] = a[end];
            a[end] = t;
            root = 0;
        } else
            start--;

        for (ptrdiff_t child; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && a[child] < a[child + 1])
                child++;
            if (a[root] >= a[child])
                break;
            uint64_t t = a[root];
            a[root] = a[child];
            a[child] = t;
        }
    }
}

/* Ascending sort of ids below `bound` by bytes, least significant first; `spare` holds n. */
static inline void sort_ids(int32_t *a, int32_t *spare, ptrdiff_t n, int64_t bound)
{
    int32_t *from = a, *to = spare;

    for (int shift = 0; shift < 32 && (bound - 1) >> shift; shift += 8) {
        ptrdiff_t count[257] = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            count[(((uint32_t)from[i] >> shift) & 255) + 1]++;
        for (int b = 0; b < 256; b++)
            count[b + 1] += count[b];
        for (ptrdiff_t i = 0; i < n; i++)
            to[count[((uint32_t)from[i] >> shift) & 255]++] = from[i];

        int32_t *t = from;
        from = to;
        to = t;
    }

    if (from != a)
        memcpy(a, from, (size_t)n * sizeof *a);
}

/* The k best of a stream of scores: what beats the k-th best so far is kept in a buffer a few times
   as long as k, which is cut back when it is full. */
typedef struct {
    uint64_t *keys;          /* capacity entries, capacity > k */
    ptrdiff_t n, k, capacity;
    uint64_t worst;          /* keys from here on cannot be among the k best */
} top_t;

static inline top_t top_begin(uint64_t *keys, ptrdiff_t capacity, ptrdiff_t k)
{
    top_t top = { keys, 0, k, capacity, UINT64_MAX };
    return top;
}

static inline void top_cut(top_t *top)
{
    if (top->n <= top->k)
        return;
    select_smallest(top->keys, top->n, top->k);
    top->n = top->k;
    top->worst = 0;
    for (ptrdiff_t i = 0; i < top->k; i++)
        top->worst = top->keys[i] > top->worst ? top->keys[i] : top->worst;
}

static inline void top_push(top_t *top, float score, int32_t id)
{
    uint64_t key = score_key(score, id);
    if (key >= top->worst)
        return;
    top->keys[top->n++] = key;
    if (top->n == top->capacity)
        top_cut(top);
}

/* A score below this cannot enter */
static inline float top_floor(const top_t *top)
{
    return top->worst == UINT64_MAX ? -__builtin_inff() : key_score(top->worst);
}

/* The score of the k-th best so far, -inf while there are fewer */
static inline float top_kth(top_t *top)
{
    top_cut(top);
    if (top->n < top->k)
        return -__builtin_inff();
    top->worst = 0;
    for (ptrdiff_t i = 0; i < top->k; i++)
        top->worst = top->keys[i] > top->worst ? top->keys[i] : top->worst;
    return key_score(top->worst);
}

/* Filled up with id -1 and score -inf to k, best first if `sorted`; either output may be NULL */
static inline void top_end(top_t *top, int sorted, int32_t *ids, float *scores)
{
    top_cut(top);
    if (sorted)
        sort_keys(top->keys, top->n);
    for (ptrdiff_t i = 0; i < top->k; i++) {
        if (ids) ids[i] = i < top->n ? key_id(top->keys[i]) : -1;
        if (scores) scores[i] = i < top->n ? key_score(top->keys[i]) : -__builtin_inff();
    }
}

/* A counter-based random number: the same for the same (seed, counter), in any order of calls. */
static inline uint64_t random_at(uint64_t seed, uint64_t counter)
{
    uint64_t z = seed + (counter + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static inline int32_t random_below(uint64_t seed, uint64_t counter, int32_t bound)
{
    return (int32_t)((random_at(seed, counter) >> 32) * (uint64_t)bound >> 32);
}

#endif
