// How much an AMX tile register holds.
#pragma once

#include <cstdint>

#include "../levels.h"

namespace flashvl::cpu::FLASHVL_LEVEL {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row: 16 fp32, or 32 bf16
constexpr int kTileDepth = 32;  // bf16 products summed by one instruction

}  // namespace
}  // namespace flashvl::cpu::FLASHVL_LEVEL
