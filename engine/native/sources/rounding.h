// Activations rounded to 8 bits: q * 2^e with a whole number q of at most 127 and one e for a group of
// columns, the smallest that serves its largest. Every such value is a bf16 number, and sums of a few
// products with codes are exact in float32 and in whole numbers, so that a product of bytes gives
// the bits of the float product with the rounded activations.
#pragma once
#include "matrix.h"

namespace expertune {

// x [count] -> q [count] as floats. Returns 2^e. A group whose largest value is below 2^-60 becomes
// zero, one with a value that is no number or infinite becomes none.
static inline float round_group(const float* x, int64_t count, float* q) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t size = to_bits(x[i]) & 0x7fffffffu;
    most = size > most ? size : most;
  }
  uint32_t exponent = most >> 23;
  if (exponent < 67 || exponent == 255) {
    for (int64_t i = 0; i < count; ++i) q[i] = 0.0f;
    return exponent == 255 ? from_bits(0x7fc00000u) : 1.0f;
  }
  if ((most & 0x7fffffu) >= 0x7f0000u) ++exponent;  // 127.5 and more would become 128
  const float inverse = from_bits((260 - exponent) << 23);
  constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: added and taken away, it rounds to nearest even
  for (int64_t i = 0; i < count; ++i) q[i] = (x[i] * inverse + kWhole) - kWhole;
  return from_bits((exponent - 6) << 23);
}

// x [columns] -> out [columns], both of `number`, in groups of this many columns. scratch: 2 * group.
static inline void round_row(Number number, const void* x, int64_t columns, int64_t group,
                             float* scratch, void* out) {
  float* const values = scratch + group;
  for (int64_t first = 0; first < columns; first += group) {
    const int64_t count = group < columns - first ? group : columns - first;
    read_numbers(x, number, first, count, values);
    const float scale = round_group(values, count, scratch);
    for (int64_t i = 0; i < count; ++i) values[i] = scratch[i] * scale;
    write_numbers(out, number, first, count, values);
  }
}

// What is taken from a code before it meets an activation, in whole numbers that are not negative.
static inline int32_t byte_offset(Format format) {
  return format == Format::kInt8 ? 128 : format == Format::kMxfp4 ? 12 : 8;
}

}  // namespace expertune
