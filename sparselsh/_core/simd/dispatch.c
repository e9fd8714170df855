/* Selects the level of the inner loops at run time. EACH_LEVEL(X) is X(level) for each level that
   was built, as an identifier, from the slowest to the fastest (core/meson.build);
   EACH_REPRODUCIBLE(X) the same for the levels that were built as reproducible ones, too. */
#include "loops.h"
#include <string.h>
#ifdef KNOWS_TILES
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#define MAYBE_UNUSED __attribute__((unused))

static int runs_baseline(void) { return 1; }

#if defined(__x86_64__)

/* GCC 12 knows the levels by name; for older compilers, the features that distinguish the
   processors of a level */
MAYBE_UNUSED static int runs_v3(void)
{
    __builtin_cpu_init();
#if !defined(__clang__) && __GNUC__ >= 12
    return __builtin_cpu_supports("x86-64-v3");
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("bmi2");
#endif
}

MAYBE_UNUSED static int runs_v4(void)
{
    return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512cd");
}

#ifdef KNOWS_DOT_PRODUCTS  /* older compilers refuse names that they do not know */
static int runs_avx_vnni(void) { return runs_v3() && __builtin_cpu_supports("avxvnni"); }
static int runs_v4_vnni(void) { return runs_v4() && __builtin_cpu_supports("avx512vnni"); }
static int runs_v4_bf16(void) { return runs_v4_vnni() && __builtin_cpu_supports("avx512bf16"); }
#endif

#ifdef KNOWS_TILES
/* Tiles need the processor, its operating system, and the permission of Linux for this process,
   which its threads and forks have too (Documentation/arch/x86/xstate.rst). */
static int may_use_tiles(void)
{
#if defined(__linux__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    const unsigned has_tiles = 1u << 22 | 1u << 24 | 1u << 25;  /* AMX-BF16, AMX-TILE, AMX-INT8 */
    unsigned a, b, c, d, state, upper;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & has_tiles) != has_tiles)
        return 0;
    __asm__("xgetbv" : "=a"(state), "=d"(upper) : "c"(0));
    return (state >> 17 & 3) == 3 && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}

static int runs_amx(void)
{
    static int may_use = -1;
    if (may_use < 0)  /* two threads may both do this; they write the same number */
        may_use = runs_v4_bf16() && may_use_tiles();
    return may_use;
}
#endif

#elif defined(__aarch64__)

MAYBE_UNUSED static int runs_neon(void) { return 1; }

#if defined(__linux__)
/* bits of the auxiliary vector, from the documentation of Linux (arch/arm64/elf_hwcaps) */
MAYBE_UNUSED static int runs_neon_dot(void) { return (int)(getauxval(AT_HWCAP) >> 20 & 1); }
MAYBE_UNUSED static int runs_neon_bf16(void)
{
    return runs_neon_dot() && (getauxval(AT_HWCAP2) >> 14 & 1);
}
#elif defined(__APPLE__)
MAYBE_UNUSED static int has(const char *feature)
{
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(feature, &value, &size, 0, 0) == 0 && value;
}
MAYBE_UNUSED static int runs_neon_dot(void) { return has("hw.optional.arm.FEAT_DotProd"); }
MAYBE_UNUSED static int runs_neon_bf16(void)
{
    return runs_neon_dot() && has("hw.optional.arm.FEAT_BF16");
}
#else
MAYBE_UNUSED static int runs_neon_dot(void) { return 0; }
MAYBE_UNUSED static int runs_neon_bf16(void) { return 0; }
#endif

#endif

typedef struct { const loops_t *table; int (*runs)(void); } level_t;

#define DECLARE(level) extern const loops_t loops_##level;
#define DECLARE_REPRODUCIBLE(level) extern const loops_t loops_reproducible_##level;
EACH_LEVEL(DECLARE)
EACH_REPRODUCIBLE(DECLARE_REPRODUCIBLE)

#define ENTRY(level) { &loops_##level, runs_##level },
#define ENTRY_REPRODUCIBLE(level) { &loops_reproducible_##level, runs_##level },
static const level_t usual[] = { EACH_LEVEL(ENTRY) };
static const level_t reproducible[] = { EACH_REPRODUCIBLE(ENTRY_REPRODUCIBLE) };
static const struct { const level_t *levels; int n; } sets[] = {
    { usual, sizeof usual / sizeof *usual },
    { reproducible, sizeof reproducible / sizeof *reproducible },
};

static const loops_t *chosen = 0;

void loops_select_fastest(int is_reproducible)
{
    const loops_t *fastest = 0;
    for (int i = 0; i < sets[is_reproducible].n; i++)
        if (sets[is_reproducible].levels[i].runs())
            fastest = sets[is_reproducible].levels[i].table;
    chosen = fastest;
}

const loops_t *loops(void)
{
    if (!chosen)  /* two threads may both do this; they write the same pointer */
        loops_select_fastest(0);
    return chosen;
}

int loops_are_reproducible(void)
{
    const loops_t *used = loops();
    for (int i = 0; i < sets[1].n; i++)
        if (sets[1].levels[i].table == used)
            return 1;
    return 0;
}

int loops_select(const char *name)
{
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < sets[s].n; i++)
            if (!strcmp(sets[s].levels[i].table->name, name)) {
                if (!sets[s].levels[i].runs())
                    return -2;
                chosen = sets[s].levels[i].table;
                return 0;
            }
    return -1;
}

int loops_available(int is_reproducible, int i, const char **name)
{
    if (i >= sets[is_reproducible].n)
        return -1;
    *name = sets[is_reproducible].levels[i].table->name;
    return sets[is_reproducible].levels[i].runs();
}
