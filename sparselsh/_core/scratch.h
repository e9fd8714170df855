/* Work memory of threads, one part per thread. It is aligned to cache lines, so that no two parts
   share one if their sizes are multiples of the alignment. Threads that write to one line in turn
   wait for each other; a vector that spans two lines is read and written twice. */
#ifndef SPARSELSH_SCRATCH_H
#define SPARSELSH_SCRATCH_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { ALIGNMENT_BYTES = 128 };  /* two cache lines, which many processors fetch together */

/* n floats, rounded up to a multiple of the alignment */
static inline ptrdiff_t aligned_size(ptrdiff_t n)
{
    const ptrdiff_t floats = ALIGNMENT_BYTES / (ptrdiff_t)sizeof(float);
    return (n + floats - 1) / floats * floats;
}

/* NULL if there is not enough memory. Written by hand, as not every C library has aligned_alloc:
   the address that malloc returned is stored before the one returned here. */
static inline void *malloc_aligned(size_t bytes)
{
    void *raw = malloc(bytes + ALIGNMENT_BYTES + sizeof(void *));
    if (!raw)
        return NULL;
    void **at = (void **)(((uintptr_t)raw + sizeof(void *) + ALIGNMENT_BYTES - 1)
                          / ALIGNMENT_BYTES * ALIGNMENT_BYTES);
    at[-1] = raw;
    return at;
}

static inline void free_aligned(void *p)
{
    if (p)
        free(((void **)p)[-1]);
}

#endif
