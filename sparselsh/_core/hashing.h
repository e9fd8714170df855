/* Shared by the hash families: the order in which a table is probed, and the bin that replaces an
   empty one. */
#ifndef SPARSELSH_HASHING_H
#define SPARSELSH_HASHING_H

#include "order.h"
#include <math.h>

/* A code is a number of several digits, each the best of some options: the sign of a projection,
   the winner of a bin, the nearest vertex of a polytope. Taking option i instead of the best one of
   digit k costs cost[k * width + i] and adds delta[k * width + i] to the code. cost[k * width] = 0;
   costs rise with i and are INFINITY if there is no such option. */
typedef struct {
    double cost, cost_before;        /* of the code; of the digits before the current one */
    int32_t code, code_before;
    int32_t place, option;           /* the current digit by its place in `order`; option >= 1 */
} probe_t;

static inline int probe_less(const probe_t *a, const probe_t *b)
{
    return a->cost < b->cost || (a->cost == b->cost && a->code < b->code);
}

static inline void heap_push(probe_t *heap, ptrdiff_t *n, probe_t x)
{
    ptrdiff_t i = (*n)++;
    for (; i > 0 && probe_less(&x, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = x;
}

static inline probe_t heap_pop(probe_t *heap, ptrdiff_t *n)
{
    probe_t top = heap[0], x = heap[--*n];
    ptrdiff_t i = 0, child;
    while ((child = 2 * i + 1) < *n) {
        if (child + 1 < *n && probe_less(&heap[child + 1], &heap[child]))
            child++;
        if (!probe_less(&heap[child], &x))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = x;
    return top;
}

/* The n_probes cheapest codes in ascending order of cost, -1 if there are fewer.

   Digits are sorted by the cost of their second option. The last digit that a probe changes is its
   current one; the successors of the probe take the next option of the current digit, or change the
   next digit as well, or change the next digit instead. Each costs as much or more, and every set
   of changes has exactly one predecessor, so that a heap of the probes reached so far holds the
   next one and no probe occurs twice (Lv et al. 2007, section 4.4, for digits of two options). heap
   holds 2 * n_probes + 2 entries; order holds n_digits. O(n_probes log n_probes) */
static inline void cheapest_codes(int32_t code, int n_digits, int width, const double *cost,
                                  const int32_t *delta, int32_t *order, probe_t *heap,
                                  ptrdiff_t n_probes, int32_t *codes)
{
    ptrdiff_t n_heap = 0, found = 1;
    codes[0] = code;

    for (int k = 0; width > 1 && k < n_digits; k++) {
        int j = k;
        for (; j > 0 && cost[order[j - 1] * width + 1] > cost[k * width + 1]; j--)
            order[j] = order[j - 1];
        order[j] = k;
    }

#define TAKE(PLACE, OPTION, COST_BEFORE, CODE_BEFORE)                                             \
    if ((PLACE) < n_digits && (OPTION) < width                                                    \
            && cost[order[PLACE] * width + (OPTION)] < INFINITY)                                  \
        heap_push(heap, &n_heap,                                                                  \
                  (probe_t){ (COST_BEFORE) + cost[order[PLACE] * width + (OPTION)], COST_BEFORE,  \
                             (CODE_BEFORE) + delta[order[PLACE] * width + (OPTION)], CODE_BEFORE, \
                             PLACE, OPTION })

    TAKE(0, 1, 0.0, code);

    while (found < n_probes && n_heap) {
        probe_t p = heap_pop(heap, &n_heap);
        codes[found++] = p.code;
        TAKE(p.place, p.option + 1, p.cost_before, p.code_before);
        TAKE(p.place + 1, 1, p.cost, p.code);
        if (p.option == 1)
            TAKE(p.place + 1, 1, p.cost_before, p.code_before);
    }

#undef TAKE
    while (found < n_probes)
        codes[found++] = -1;
}

/* The bin that an empty bin copies: bins are drawn at random until one is not empty (optimal
   densification, Shrivastava 2017). Two rows agree on it if they agree on which of the drawn bins
   are empty. After 64 draws the bins are tried in order, which bounds the time for rows with very
   few entries. At least one bin must not be empty. */
static inline int32_t lender(uint64_t seed, int32_t bin, const uint8_t *full, int32_t n_bins)
{
    int32_t other = bin;
    for (uint64_t attempt = 0; !full[other]; attempt++) {
        if (attempt < 64)
            other = random_below(seed, (uint64_t)bin * 64 + attempt, n_bins);
        else
            other = other + 1 < n_bins ? other + 1 : 0;
    }
    return other;
}

#endif
