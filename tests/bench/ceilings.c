// What the machine can do, measured without our code: STREAM's read and copy, and products that
// stay in registers. Reads lines "<kind> <seconds>" and answers each with units a second:
// bytes (read, copy; half: a read that goes over everything twice) or FLOPs (fma, tiles).
//
//   cc -O3 -march=native -fno-tree-loop-distribute-patterns -pthread ceilings.c -o ceilings
//   ./ceilings THREADS BYTES

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#else
#define BYTES 32
#endif
// A pass takes milliseconds, so that waking the threads is no part of it.
enum { FMA_ROUNDS = 1000000, TILE_ROUNDS = 100000 };
typedef float Floats __attribute__((vector_size(BYTES)));

static double* source;
static double* target;
static size_t count, threads;
static double done[64];
static int over;
static char kind[16];
static pthread_barrier_t begin, end;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Four places in turns: with a single stream a core leaves up to a third of the bandwidth unused.
static double read_once(size_t first, size_t last) {
  Floats a = {0}, b = {0}, c = {0}, d = {0};
  const Floats* p = (const Floats*)(source + first);
  const size_t quarter = (last - first) * sizeof(double) / sizeof(Floats) / 16 * 4;
  for (size_t i = 0; i < quarter; i += 4) {
#pragma GCC unroll 4
    for (size_t at = i; at < 4 * quarter; at += quarter) {
      a += p[at], b += p[at + 1], c += p[at + 2], d += p[at + 3];
    }
  }
  __asm__ volatile("" ::"m"(a), "m"(b), "m"(c), "m"(d));
  return 4 * quarter * sizeof(Floats);
}

static double copy_once(size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) target[i] = source[i];
  __asm__ volatile("" ::"r"(target) : "memory");
  return 2.0 * (last - first) * sizeof(double);
}

static double fma_once(void) {
  Floats sums[12], factor;
  for (size_t i = 0; i < BYTES / sizeof(float); ++i) factor[i] = 0.5f;
  for (int c = 0; c < 12; ++c) sums[c] = factor + (float)c;
  for (int round = 0; round < FMA_ROUNDS; ++round) {
    __asm__ volatile("" : "+v"(factor));
#pragma GCC unroll 12
    for (int c = 0; c < 12; ++c) sums[c] = sums[c] * factor + factor;
  }
  for (int c = 0; c < 12; ++c) __asm__ volatile("" ::"v"(sums[c]));
  return (double)FMA_ROUNDS * 12 * 2 * (BYTES / sizeof(float));
}

static double tiles_once(void) {
#if defined(__AMX_BF16__)
  struct {
    uint8_t palette, row, zero[14];
    uint16_t columns[16];
    uint8_t rows[16];
  } shape = {.palette = 1};
  for (int i = 0; i < 8; ++i) shape.columns[i] = 64, shape.rows[i] = 16;
  _tile_loadconfig(&shape);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int round = 0; round < TILE_ROUNDS; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return (double)TILE_ROUNDS * 4 * 2 * 16 * 16 * 32;
#else
  return 0;
#endif
}

// One thread's share of a pass, until there are no more. All start together, and the pass ends with
// the last one, as it does where a kernel is split over threads.
static void* work(void* argument) {
  const size_t i = (size_t)argument, step = count / threads / 64 * 64;
  const size_t first = i * step, last = first + step;
  for (;;) {
    pthread_barrier_wait(&begin);
    if (over) return 0;
    double units = 0;
    if (!strcmp(kind, "read")) units = read_once(first, last);
    if (!strcmp(kind, "half")) units = read_once(first, last), read_once(first, last);
    if (!strcmp(kind, "copy")) units = copy_once(first, last);
    if (!strcmp(kind, "fma")) units = fma_once();
    if (!strcmp(kind, "tiles")) units = tiles_once();
    done[i] = units;
    pthread_barrier_wait(&end);
  }
}

// Units a second in the best pass of so many seconds.
static double best_pass(double seconds) {
  double best = 0;
  const double deadline = now() + seconds;
  do {
    const double start = now();
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&end);
    double units = 0;
    for (size_t i = 0; i < threads; ++i) units += done[i];
    const double rate = units / (now() - start);
    if (rate > best) best = rate;
  } while (now() < deadline);
  return best;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  threads = strtoul(argv[1], 0, 10);
  if (threads < 1 || threads > 64) return 2;
  const size_t bytes = strtoul(argv[2], 0, 10);
  count = bytes / sizeof(double);
  source = aligned_alloc(4096, bytes);
  target = aligned_alloc(4096, bytes);
  if (!source || !target) return 3;
  for (size_t i = 0; i < count; ++i) source[i] = 1, target[i] = 0;
  syscall(SYS_arch_prctl, 0x1023, 18);  // Linux hands out the AMX state on request
  pthread_barrier_init(&begin, 0, threads + 1);
  pthread_barrier_init(&end, 0, threads + 1);
  pthread_t made[64];
  for (size_t i = 0; i < threads; ++i) pthread_create(&made[i], 0, work, (void*)i);
  double seconds;
  while (scanf("%15s %lf", kind, &seconds) == 2) {
    printf("%.6g\n", best_pass(seconds));
    fflush(stdout);
  }
  over = 1;
  pthread_barrier_wait(&begin);
  for (size_t i = 0; i < threads; ++i) pthread_join(made[i], 0);
  return 0;
}
