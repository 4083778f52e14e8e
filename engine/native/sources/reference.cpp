// The scalar reference: the oracle of every other instruction set, bit for bit.
//
// Each row has 16 lanes of sums. A block of columns is spread over the lanes in the format's order;
// codes with groups are summed by lane over a block, then scaled; the groups' zeros, times the sums of
// their activations, have 16 lanes of their own, group number modulo 16. Lanes are added at the end
// as a tree: i and i + 8, i + 4, i + 2, i + 1. Every multiplication with an addition is one fused step.
#include <cmath>
#include <vector>

#include "arrange.h"
#include "fit.h"
#include "gate.h"
#include "matrix.h"

namespace expertune {
namespace {

const uint8_t* codes_of(const Matrix& m, const uint8_t* record, int64_t row) {
  const auto format = static_cast<Format>(m.format);
  return record + m.codes_offset + row * row_bytes(format, m.columns);
}

// Code number `column` of a row whose codes have `bits` bits.
int code_of(const uint8_t* row, int64_t column, int bits) {
  const int64_t first = column * bits;
  unsigned word = row[first / 8];
  if (first % 8 + bits > 8) word |= static_cast<unsigned>(row[first / 8 + 1]) << 8;
  return static_cast<int>(word >> (first % 8)) & ((1 << bits) - 1);
}

int bits_of(Format format) {
  return format == Format::kInt3 ? 3 : format == Format::kInt2 ? 2 : 4;
}

// The code as a number: what the scale multiplies.
float packed_value(Format format, const uint8_t* row, int64_t column) {
  const int code = code_of(row, column, bits_of(format));
  return static_cast<float>(format == Format::kMxfp4 ? kTwiceE2m1[code] : code - 8);
}

uint32_t word_of(const Matrix& m, const uint8_t* record, int64_t row, int64_t column) {
  const auto* words = reinterpret_cast<const uint32_t*>(record + m.scales_offset);
  return words[row * (m.columns / m.group) + column / m.group];
}

float scale_of(const Matrix& m, const uint8_t* record, int64_t row, int64_t column) {
  const uint8_t* scales = record + m.scales_offset;
  switch (static_cast<Format>(m.format)) {
    case Format::kMxfp4: return half_e8m0(scales[row * (m.columns / 32) + column / 32]);
    case Format::kFp8: {
      const int64_t across = (m.columns + m.group - 1) / m.group;
      return reinterpret_cast<const float*>(scales)[row / m.block_rows * across + column / m.group];
    }
    case Format::kInt8: return from_bf16(reinterpret_cast<const uint16_t*>(scales)[row]);
    case Format::kUint4: return word_scale(word_of(m, record, row, column));
    default:
      return from_bf16(reinterpret_cast<const uint16_t*>(
          scales)[2 * (row * (m.columns / m.group) + column / m.group)]);
  }
}

float zero_of(const Matrix& m, const uint8_t* record, int64_t row, int64_t column) {
  if (static_cast<Format>(m.format) == Format::kUint4) {
    return word_zero(word_of(m, record, row, column));
  }
  const auto* scales = reinterpret_cast<const uint16_t*>(record + m.scales_offset);
  return from_bf16(scales[2 * (row * (m.columns / m.group) + column / m.group) + 1]);
}

float tree(const float* lanes) {
  float part[8];
  for (int i = 0; i < 8; ++i) part[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) part[i] += part[i + 4];
  for (int i = 0; i < 2; ++i) part[i] += part[i + 2];
  return part[0] + part[1];
}

// steps: of rounded activations, of which x are the whole numbers; null: they are not rounded.
float packed_row(const Matrix& m, const uint8_t* record, int64_t row, const float* x,
                 const float* sums, const float* steps) {
  const auto format = static_cast<Format>(m.format);
  const uint8_t* codes = codes_of(m, record, row);
  float total[kLanes] = {};
  for (int64_t start = 0; start < m.columns; start += kPackedColumns) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t first = start + 8 * lane;
      if (first >= m.columns) continue;
      float sum = 0;
      for (int step = 0; step < 8; ++step) {
        const int64_t column = first + kStepOfPacked[step];
        sum = std::fmaf(packed_value(format, codes, column), x[start + step * kLanes + lane], sum);
      }
      const float step = steps == nullptr ? 1.0f : steps[first / rounded_columns(m)];
      total[lane] = std::fmaf(scale_of(m, record, row, first) * step, sum, total[lane]);
    }
  }
  if (!has_zeros(format)) return tree(total);
  float zeros[kLanes] = {};
  for (int64_t group = 0; group < m.columns / m.group; ++group) {
    float& lane = zeros[group % kLanes];
    lane = std::fmaf(zero_of(m, record, row, group * m.group), sums[group], lane);
  }
  for (int lane = 0; lane < kLanes; ++lane) total[lane] += zeros[lane];
  return tree(total);
}

float natural_row(const Matrix& m, const uint8_t* record, int64_t row, const float* x) {
  const auto format = static_cast<Format>(m.format);
  const uint8_t* codes = codes_of(m, record, row);
  float total[kLanes] = {};
  for (int64_t start = 0; start < m.columns; start += 64) {
    for (int lane = 0; lane < kLanes; ++lane) {
      float sum = format == Format::kFp8 ? 0 : total[lane];
      for (int step = 0; step < 4; ++step) {
        const int64_t column = start + step * kLanes + lane;
        if (column >= m.columns) break;
        float weight;
        if (format == Format::kFp8) weight = from_fp8(codes[column]);
        else if (format == Format::kInt8) weight = static_cast<int8_t>(codes[column]);
        else weight = from_fp16(reinterpret_cast<const uint16_t*>(codes)[column]);
        sum = std::fmaf(weight, x[column], sum);
      }
      const bool scaled = format == Format::kFp8 && start + lane < m.columns;
      if (scaled) total[lane] = std::fmaf(scale_of(m, record, row, start), sum, total[lane]);
      else if (format != Format::kFp8) total[lane] = sum;
    }
  }
  const float sum = tree(total);
  return format == Format::kInt8 ? sum * scale_of(m, record, row, 0) : sum;
}

float pairs_row(const Matrix& m, const uint8_t* record, int64_t row, const float* x) {
  const auto* weights = reinterpret_cast<const uint16_t*>(codes_of(m, record, row));
  float total[kLanes] = {};
  for (int64_t start = 0; start < m.columns; start += 32) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int step = 0; step < 2; ++step) {  // the upper of two neighbours first
        const int64_t column = start + 2 * lane + 1 - step;
        if (column >= m.columns) continue;
        total[lane] =
            std::fmaf(from_bf16(weights[column]), x[start + step * kLanes + lane], total[lane]);
      }
    }
  }
  return tree(total);
}

// Four neighbours a lane, summed over a block of 64: exact, since x are whole numbers.
float quads_row(const Matrix& m, const uint8_t* record, int64_t row, const float* x,
                const float* steps) {
  const auto* codes = reinterpret_cast<const int8_t*>(codes_of(m, record, row));
  float total[kLanes] = {};
  for (int64_t start = 0; start < m.columns; start += 64) {
    for (int lane = 0; lane < kLanes; ++lane) {
      float sum = 0;
      for (int step = 0; step < 4; ++step) {
        const int64_t column = start + 4 * lane + step;
        if (column < m.columns) sum = std::fmaf(codes[column], x[start + step * kLanes + lane], sum);
      }
      total[lane] = std::fmaf(steps[start / 64], sum, total[lane]);
    }
  }
  return tree(total) * scale_of(m, record, row, 0);
}

float columns_row(const Matrix& m, const uint8_t* record, int64_t row, const float* x) {
  const auto* weights = reinterpret_cast<const uint16_t*>(record + m.codes_offset);
  const auto number =
      static_cast<Format>(m.format) == Format::kBf16Columns ? Number::kBf16 : Number::kFp16;
  float sum = 0;
  for (int64_t column = 0; column < m.columns; ++column) {
    sum = std::fmaf(from_number(weights, number, column * m.rows + row), x[column], sum);
  }
  return sum;
}

void rows(const Matrix& m, const uint8_t* record, int64_t first, int64_t end, const Prepared& x,
          float* y, int64_t stride) {
  for (int64_t token = 0; token < x.tokens; ++token) {
    const float* values = x.values + x.at(token) * x.width;
    const float* sums = x.sums == nullptr ? nullptr : x.sums + x.at(token) * x.sums_width;
    const float* steps = x.steps == nullptr ? nullptr : x.steps + x.at(token) * x.steps_width;
    for (int64_t row = first; row < end; ++row) {
      float* out = y + token * stride + (row - first);
      switch (order_of(m)) {
        case Order::kQuads64: *out = quads_row(m, record, row, values, steps); break;
        case Order::kPacked128: *out = packed_row(m, record, row, values, sums, steps); break;
        case Order::kNatural64: *out = natural_row(m, record, row, values); break;
        case Order::kPairs32: *out = pairs_row(m, record, row, values); break;
        case Order::kPlain: *out = columns_row(m, record, row, values); break;
      }
    }
  }
}

void plain(const Matrix& m, const uint8_t* record, int64_t first, int64_t end, void* out,
           Number number) {
  const auto format = static_cast<Format>(m.format);
  for (int64_t row = first; row < end; ++row) {
    const uint8_t* codes = codes_of(m, record, row);
    for (int64_t column = 0; column < m.columns; ++column) {
      float value;
      switch (format) {
        case Format::kBf16: value = from_bf16(reinterpret_cast<const uint16_t*>(codes)[column]); break;
        case Format::kFp16: value = from_fp16(reinterpret_cast<const uint16_t*>(codes)[column]); break;
        case Format::kInt8:
          value = static_cast<float>(static_cast<int8_t>(codes[column])) *
                  scale_of(m, record, row, 0);
          break;
        case Format::kFp8:
          value = from_fp8(codes[column]) * scale_of(m, record, row, column);
          break;
        default:
          value = packed_value(format, codes, column) * scale_of(m, record, row, column);
          // a product, then a sum: as torch's dequantization rounds
          if (has_zeros(format)) value += zero_of(m, record, row, column);
      }
      put_number(out, number, (row - first) * m.columns + column, value);
    }
  }
}

// Scores have 16 lanes along the width, the sum of weights 16 along the keys; values are added key by
// key.
void attend(const Attended& at, Number number, const float* query, float* scores, float* out) {
  float most = -INFINITY;
  for (int64_t key = 0; key < at.length; ++key) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < at.key_width; ++i) {
      const float value = from_number(at.keys, number, key * at.key_stride + i);
      lanes[i % kLanes] = std::fmaf(query[i], value, lanes[i % kLanes]);
    }
    scores[key] = tree(lanes);
    if (at.mask != nullptr) scores[key] += at.mask[key];
    most = scores[key] > most ? scores[key] : most;
  }
  float sums[kLanes] = {};
  for (int64_t i = 0; i < at.value_width; ++i) out[i] = 0;
  for (int64_t key = 0; key < at.length; ++key) {
    const float weight = exp_of(scores[key] - most);
    sums[key % kLanes] += weight;
    for (int64_t i = 0; i < at.value_width; ++i) {
      out[i] = std::fmaf(weight, from_number(at.values, number, key * at.value_stride + i), out[i]);
    }
  }
  const float sum = tree(sums);
  for (int64_t i = 0; i < at.value_width; ++i) out[i] /= sum;
}

void norm(Number number, const void* x, const void* weight, int64_t count, float epsilon,
          void* out) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float value = from_number(x, number, i);
    lanes[i % kLanes] = std::fmaf(value, value, lanes[i % kLanes]);
  }
  const float factor = 1.0f / std::sqrt(tree(lanes) / static_cast<float>(count) + epsilon);
  for (int64_t i = 0; i < count; ++i) {
    const float normed = rounded(from_number(x, number, i) * factor, number);
    put_number(out, number, i, normed * from_number(weight, number, i));
  }
}

void rotate(Number number, void* head, const float* cosine, const float* sine, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = from_number(head, number, i), b = from_number(head, number, half + i);
    const float first = rounded(a * cosine[i], number) + rounded(-b * sine[i], number);
    const float second = rounded(b * cosine[half + i], number) + rounded(a * sine[half + i], number);
    put_number(head, number, i, first);
    put_number(head, number, half + i, second);
  }
}

void combine(Number number, const void* y, const float* weights, int64_t count, int64_t columns,
             void* out) {
  for (int64_t i = 0; i < columns; ++i) {
    float total = 0;
    for (int64_t k = 0; k < count; ++k) {
      total += rounded(from_number(y, number, k * columns + i) * weights[k], number);
    }
    put_number(out, number, i, total);
  }
}

bool wants_pairs(Format) { return false; }

bool wants_bytes(const Matrix&) { return false; }

}  // namespace

const Products& reference_products() {
  static const Products products = {"reference", rows, wants_pairs, wants_bytes, plain,
                                    gate_rows,   attend, norm, rotate, combine,
                                    arrange,     round_row, quantize_reference};
  return products;
}

}  // namespace expertune
