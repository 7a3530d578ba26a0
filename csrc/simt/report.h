// What a launch brings back: findings, each with its source line, and counters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api.h"

namespace flashvl::simt {

// A finding is counted once a kind and source line; the text tells the first occurrence.
struct Finding {
  const char* kind;
  std::string text;
  std::string where;  // file:line
  int64_t count = 1;
};

// Every count is over all warps of the launch. An access of a warp is one instruction.
struct Counters {
  // Global memory. bytes: what lanes asked for, a byte that several lanes of an instruction ask for
  // counted once. sectors: of 32 bytes, an instruction's distinct ones. unique sectors: distinct in
  // the whole launch, what must come from memory with a cache that never forgets: what the launch
  // itself wrote is not read from memory.
  int64_t global_reads = 0, global_read_bytes = 0, read_sectors = 0, unique_read_sectors = 0;
  int64_t global_writes = 0, global_write_bytes = 0, write_sectors = 0, unique_write_sectors = 0;
  int64_t global_atomics = 0;
  int64_t wide_accesses = 0;  // of the reads and writes: 16 bytes a lane
  // Shared memory. wavefronts: passes over the 32 banks; conflicts: those beyond the fewest that
  // the bytes need.
  int64_t shared_reads = 0, shared_writes = 0, shared_atomics = 0;
  int64_t shared_wavefronts = 0, bank_conflicts = 0;
  int64_t shared_bytes = 0;  // of a block, the most
  int64_t barriers = 0;      // of a block, named ones included
  int64_t warp_syncs = 0, shuffles = 0, votes = 0;
  int64_t cp_async = 0;  // warp instructions
  int64_t ldmatrix = 0, mma = 0;
  int64_t blocks = 0, threads = 0;
};

struct Report {
  Counters counters;
  std::vector<Finding> findings;
};

extern Report* report;  // of the launch that runs

uint16_t site_index(const Site& site);  // small numbers for source positions
const Site& site_at(uint16_t index);
std::string describe(const Site& site);  // file:line

// Says which block and thread of which kernel in front of `text`.
void find(const char* kind, const Site& site, const std::string& text);
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace flashvl::simt
