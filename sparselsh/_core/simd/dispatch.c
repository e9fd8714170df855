/* Selects the instruction set of the inner loops at run time. */
#include "loops.h"
#include <string.h>

extern const loops_t loops_baseline;
#ifdef HAVE_v3
extern const loops_t loops_v3, loops_v4;
#endif

static int runs_baseline(void) { return 1; }
#ifdef HAVE_v3
/* GCC 12 knows the levels by name; for older compilers, the features that distinguish the
   processors of a level */
static int runs_v3(void)
{
    __builtin_cpu_init();
#if !defined(__clang__) && __GNUC__ >= 12
    return __builtin_cpu_supports("x86-64-v3");
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("bmi2");
#endif
}
static int runs_v4(void)
{
    return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512cd");
}
#endif

/* from the slowest to the fastest */
static const struct { const loops_t *table; int (*runs)(void); } levels[] = {
    { &loops_baseline, runs_baseline },
#ifdef HAVE_v3
    { &loops_v3, runs_v3 },
    { &loops_v4, runs_v4 },
#endif
};
enum { N_LEVELS = sizeof levels / sizeof *levels };

static const loops_t *chosen = 0;

const loops_t *loops(void)
{
    if (!chosen)  /* two threads may both do this; they write the same pointer */
        for (int i = 0; i < N_LEVELS; i++)
            if (levels[i].runs())
                chosen = levels[i].table;
    return chosen;
}

int loops_select(const char *name)
{
    for (int i = 0; i < N_LEVELS; i++)
        if (!strcmp(levels[i].table->name, name)) {
            if (!levels[i].runs())
                return -2;
            chosen = levels[i].table;
            return 0;
        }
    return -1;
}

int loops_available(int i, const char **name)
{
    if (i >= N_LEVELS)
        return -1;
    *name = levels[i].table->name;
    return levels[i].runs();
}
