// Quantizing weights: what a job is. Letters: N output rows, K input columns, g group, G = K/g.
#pragma once
#include "matrix.h"

namespace expertune {

// One matrix to quantize. Passed from Python: plain 8-byte fields only.
//
// 8 bits: symmetric, one scale a row. 4, 3 and 2 bits: scale and zero of each group of g columns.
// Codes are dense along K, the first in the lowest bits; a row's codes follow the row before.
struct QuantizeJob {
  const void* weights;  // element (n, k) at n * row_stride + k * column_stride
  int64_t number;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
  int64_t bits;
  int64_t group;     // a multiple of 8 that divides K; without meaning at 8 bits
  int64_t weighted;  // 1: search scale and zero by weighted squares; 0: from minimum and maximum
  uint8_t* codes;    // [N, K * bits / 8]; 8 bits: int8 [N, K]
  uint16_t* scales;  // bf16 [N, G, 2]: scale and zero; 8 bits: [N]
};

// The fractions of the min-max range that a search starts from, after the whole range.
constexpr float kSpans[] = {0.92f, 0.84f, 0.76f, 0.68f, 0.6f};
constexpr int kRounds = 8;
constexpr float kLeastScale = 1e-12f, kLeastRms = 1e-12f, kLeastSpread = 1e-6f;

static inline int64_t groups_of(const QuantizeJob& job) {
  return job.bits == 8 ? 1 : job.columns / job.group;
}

// Columns that share a scale.
static inline int64_t length_of(const QuantizeJob& job) {
  return job.bits == 8 ? job.columns : job.group;
}

// Where the codes of a group begin.
static inline uint8_t* codes_of(const QuantizeJob& job, int64_t row, int64_t group) {
  return job.codes + (row * job.columns + group * length_of(job)) * job.bits / 8;
}

// Floats that a call of `Products::quantize` needs besides its result.
static inline int64_t quantize_scratch(const QuantizeJob& job) {
  return (job.bits == 8 ? 1 : 3) * kLanes * length_of(job);
}

void quantize_reference(const QuantizeJob& job, int64_t first, int64_t end, float* scratch);

}  // namespace expertune
