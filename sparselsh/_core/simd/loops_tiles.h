/* The registers of AMX; part of loops_gemm.h and loops_int8.h.

   A tile has up to 16 rows of 16 words. They are configured where a kernel begins and released,
   by _tile_release, where it ends: a thread that uses none is switched faster, and callers find the
   state that they left. The statements that load tiles do not tell the compiler that they read
   memory; BEFORE_TILES does. */
#ifndef SPARSELSH_LOOPS_TILES_H
#define SPARSELSH_LOOPS_TILES_H

#include <immintrin.h>
#include <stdint.h>

#define BEFORE_TILES __asm__ volatile("" ::: "memory")

enum { TILE = 16, N_TILES = 8 };

static inline void begin_tiles(const uint8_t rows[N_TILES], const uint8_t words[N_TILES])
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = { .palette = 1 };
    for (int t = 0; t < N_TILES; t++) {
        config.row_bytes[t] = 4 * words[t];
        config.rows[t] = rows[t];
    }
    BEFORE_TILES;
    _tile_loadconfig(&config);
}

#endif
