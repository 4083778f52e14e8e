// Quantizing in plain loops, one group after another: the oracle of fit_lanes.h, bit for bit.
//
// The search is that of engine/experts/encoding/scale_search.py: codes are chosen for a scale and
// zero, then scale and zero follow as the weighted least-squares line through (code, weight); the
// best candidate stays, judged as it would be stored, in bf16. Sums run over a group's columns in
// order; a multiplication is fused with an addition only in these sums.
#include "fit.h"

#include <cmath>

namespace expertune {
namespace {

// y if x is not a number.
float most(float x, float y) { return x > y ? x : y; }
float least(float x, float y) { return x < y ? x : y; }
float as_stored(float value) { return from_bf16(to_bf16(value)); }

struct Line {
  float scale, zero;
};

struct Group {
  const float* values;
  float* importance;
  float* codes;  // less 8
  int64_t length;
  float top;  // the largest code
  float total, mean;  // of the importance; of the values, weighted
  Line best;
  float best_cost;
  float code_sum;  // of the last candidate, weighted
};

Line range_line(const float* values, int64_t length, float top) {
  float low = INFINITY, high = -INFINITY;
  for (int64_t i = 0; i < length; ++i) {
    low = least(values[i], low);
    high = most(values[i], high);
  }
  const float scale = as_stored(most((high - low) / top, kLeastScale));
  return {scale, as_stored(low + 8 * scale)};
}

// (rms + |w|)^2, scaled to the group so that it neither overflows nor vanishes.
void weigh(Group& group) {
  float squares = 0;
  for (int64_t i = 0; i < group.length; ++i) {
    squares = std::fmaf(group.values[i], group.values[i], squares);
  }
  const float rms = most(std::sqrt(squares / static_cast<float>(group.length)), kLeastRms);
  float total = 0, sum = 0;
  for (int64_t i = 0; i < group.length; ++i) {
    const float root = std::fabs(group.values[i]) / rms + 1;
    group.importance[i] = root * root;
    total = total + group.importance[i];
    sum = std::fmaf(group.importance[i], group.values[i], sum);
  }
  group.total = total;
  group.mean = sum / total;
}

void consider(Group& group, Line line) {
  float cost = 0, code_sum = 0;
  for (int64_t i = 0; i < group.length; ++i) {
    const float value = group.values[i];
    const float raw = std::nearbyint((value - line.zero) / line.scale + 8);
    const float code = least(most(raw, 0), group.top) - 8;
    const float error = value - (code * line.scale + line.zero);
    cost = std::fmaf(error * error, group.importance[i], cost);
    code_sum = std::fmaf(group.importance[i], code, code_sum);
    group.codes[i] = code;
  }
  group.code_sum = code_sum;
  if (cost < group.best_cost) {
    group.best = line;
    group.best_cost = cost;
  }
}

Line least_squares(const Group& group) {
  const float code = group.code_sum / group.total;
  float rise = 0, run = 0;
  for (int64_t i = 0; i < group.length; ++i) {
    const float spread = group.codes[i] - code;
    const float weighted = group.importance[i] * spread;
    rise = std::fmaf(weighted, group.values[i], rise);
    run = std::fmaf(weighted, spread, run);
  }
  const float scale = as_stored(most(rise / most(run, kLeastSpread), kLeastScale));
  return {scale, as_stored(group.mean - code * scale)};
}

Line searched(Group& group, Line given) {
  weigh(group);
  group.best = given;
  group.best_cost = INFINITY;
  consider(group, given);
  const float half = group.top / 2 - 8, middle = given.zero + half * given.scale;
  for (float span : kSpans) {
    const float start = as_stored(given.scale * span);
    consider(group, {start, as_stored(middle - half * start)});
  }
  consider(group, group.best);
  for (int round = 0; round < kRounds; ++round) consider(group, least_squares(group));
  return group.best;
}

// The code of number i into the bits from i * bits.
void put_code(uint8_t* codes, int64_t i, int bits, unsigned code) {
  for (int bit = 0; bit < bits; ++bit) {
    const int64_t place = i * bits + bit;
    const unsigned mask = 1u << (place % 8);
    uint8_t& byte = codes[place / 8];
    byte = static_cast<uint8_t>(code >> bit & 1u ? byte | mask : byte & ~mask);
  }
}

void quantize_row(const QuantizeJob& job, int64_t row, const float* values) {
  float peak = 0;
  for (int64_t i = 0; i < job.columns; ++i) peak = most(std::fabs(values[i]), peak);
  job.scales[row] = to_bf16(most(peak / 127, kLeastScale));
  const float scale = from_bf16(job.scales[row]);
  for (int64_t i = 0; i < job.columns; ++i) {
    const float code = least(most(std::nearbyint(values[i] / scale), -127), 127);
    codes_of(job, row, 0)[i] = static_cast<uint8_t>(static_cast<int>(code));
  }
}

void quantize_group(const QuantizeJob& job, int64_t row, int64_t number, float* scratch) {
  const int64_t length = job.group;
  const float top = static_cast<float>((1 << job.bits) - 1);
  Line line = range_line(scratch, length, top);
  if (job.weighted) {
    Group group = {};
    group.values = scratch;
    group.importance = scratch + length;
    group.codes = scratch + 2 * length;
    group.length = length;
    group.top = top;
    line = searched(group, line);
  }
  uint16_t* scales = job.scales + (row * groups_of(job) + number) * 2;
  scales[0] = to_bf16(line.scale);
  scales[1] = to_bf16(line.zero);
  const float offset = line.zero - 8 * line.scale;
  for (int64_t i = 0; i < length; ++i) {
    const float raw = std::nearbyint((scratch[i] - offset) / line.scale);
    put_code(codes_of(job, row, number), i, static_cast<int>(job.bits),
             static_cast<unsigned>(least(most(raw, 0), top)));
  }
}

}  // namespace

void quantize_reference(const QuantizeJob& job, int64_t first, int64_t end, float* scratch) {
  const int64_t length = length_of(job);
  for (int64_t row = first; row < end; ++row) {
    for (int64_t group = 0; group < groups_of(job); ++group) {
      for (int64_t i = 0; i < length; ++i) {
        const int64_t column = group * length + i;
        scratch[i] = from_number(job.weights, static_cast<Number>(job.number),
                                 row * job.row_stride + column * job.column_stride);
      }
      if (job.bits == 8) quantize_row(job, row, scratch);
      else quantize_group(job, row, group, scratch);
    }
  }
}

}  // namespace expertune
