// 8x8 matrices of 16-bit elements from shared memory into fragments (PTX ISA, ldmatrix).
//
// Lane 8 i + r hands over the address of row r of matrix i, 16 bytes aligned to 16; lanes past the
// last row hand over anything. Register i of lane l receives elements 2 (l % 4) and the next of row
// l / 4 of matrix i; with transpose, of column l / 4.
#pragma once

#include "../memory.cuh"

#ifdef FLASHVL_SIMT
#include "../../simt/ldmatrix.h"
#else

namespace flashvl::cuda {

template <class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[1], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(row.window())
               : "memory");
}

template <class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[2], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.window())
               : "memory");
}

template <class T>
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.window())
               : "memory");
}

template <class T>
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[1], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(row.window())
               : "memory");
}

template <class T>
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[2], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.window())
               : "memory");
}

template <class T>
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.window())
               : "memory");
}

}  // namespace flashvl::cuda
#endif
