// The AMX tile registers: eight of 16 rows by 64 bytes, named 0 to 7 by template argument.
//
//   Tiles scope;                      configures them for this thread; releases them at the end
//   Tiles scope(rows);                the same with fewer rows in tiles 0 to 5; 6 and 7 keep 16
//   tile_zero<t>()                    all zero
//   tile_load<t>(p, stride)           16 rows of 64 bytes, `stride` bytes apart
//   tile_load_once<t>(p, stride)      the same of memory that the first-level cache need not keep
//   tile_store<t>(p, stride)
//   tile_dot_bf16<c, a, b>()          c (16 x 16 fp32) += a (16 rows x 32 bf16) times b; row r of b
//                                     holds (k = 2r, 2r + 1) of 16 columns: a bf16 weight panel
//   tile_dot_bytes<c, a, b>()         c (16 x 16 int32) += a (16 rows x 64 int8) times b (uint8);
//                                     row r of b holds (k = 4r to 4r + 3) of 16 columns: an int8
//                                     panel
//
// Columns that a matrix lacks are zeros in packed memory, and rows too where there are many: a
// configuration costs more than the arithmetic it saves. Products of bf16 subnormals are zero.
//
// Exists at level amx only. A build with -DFLASHVL_EMULATED_TILES=ON has tiles in memory instead
// (tile_emulated.h), so that what is written here runs, and is tested, where no CPU has tiles.
#pragma once

#if defined(FLASHVL_LEVEL_amx)
#include "tile_shape.h"
#if defined(FLASHVL_EMULATED_TILES)
#include "tile_emulated.h"
#else
#include "tile_registers.h"
#endif
#endif
