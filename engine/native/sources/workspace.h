// Threads with an instruction set, activations prepared for its products, and what they share.
#pragma once
#include <algorithm>
#include <vector>

#include "matrix.h"
#include "pool.h"
#include "rounding.h"

namespace expertune {
namespace {

struct Context {
  Context(int threads, int spin_us, const Products& chosen) : pool(threads, spin_us), products(chosen) {}
  Pool pool;
  const Products& products;
};

// Columns that share a zero; 0: none do.
int64_t group_of(const Matrix& matrix) {
  return has_zeros(static_cast<Format>(matrix.format)) ? matrix.group : 0;
}

// Whether activations that were prepared for one serve the other.
bool read_alike(const Matrix& a, const Matrix& b) {
  const auto x = static_cast<Format>(a.format), y = static_cast<Format>(b.format);
  const int64_t rounded = rounded_columns(a);
  return a.columns == b.columns && order_of(a) == order_of(b) && group_of(a) == group_of(b) &&
         rounded == rounded_columns(b) && (rounded == 0 || row_bytes(x, 8) == row_bytes(y, 8)) &&
         (rounded == 0 || byte_offset(x) == byte_offset(y));
}

// Activations in a format's order, written piece by piece.
class Workspace {
 public:
  // For products with this matrix, or with one that is read_alike.
  void shape(const Products& products, const Matrix& matrix, Number number, int64_t tokens) {
    const auto format = static_cast<Format>(matrix.format);
    order_ = order_of(matrix);
    columns_ = matrix.columns;
    const int64_t step = block_columns(order_), group = group_of(matrix);
    prepared_ = {};
    prepared_.tokens = tokens;
    prepared_.blocks = (columns_ + step - 1) / step;
    prepared_.width = prepared_.blocks * step;
    rounded_ = rounded_columns(matrix);
    const bool pairs = number == Number::kBf16 && products.wants_pairs(format);
    if (rounded_ != 0) {
      const int64_t groups = (columns_ + rounded_ - 1) / rounded_;
      prepared_.steps_width = (groups + kLanes - 1) / kLanes * kLanes;
      steps_.assign(tokens * prepared_.steps_width, 0.0f);
      prepared_.steps = steps_.data();
    }
    if (rounded_ != 0 && products.wants_bytes(matrix)) {
      offset_ = byte_offset(format);
      nibbles_ = row_bytes(format, 2) == 1;
      bytes_.assign(tokens * prepared_.width, 0);
      starts_.assign(tokens * prepared_.blocks * kLanes, 0);
      prepared_.bytes = bytes_.data();
      prepared_.starts = starts_.data();
    } else if (pairs) {
      pairs_.assign(tokens * prepared_.width, 0);
      prepared_.pairs = pairs_.data();
    } else {
      values_.assign(tokens * prepared_.width, 0.0f);
      prepared_.values = values_.data();
    }
    group_ = group;
    if (group != 0) {
      prepared_.sums_width = (columns_ / group + kLanes - 1) / kLanes * kLanes;
      eights_.assign(tokens * prepared_.width / 8, 0.0f);
      sums_.assign(tokens * prepared_.sums_width, 0.0f);
      prepared_.sums = sums_.data();
    }
  }

  // After the last `put` of a token, if there are groups.
  void sum_groups(int64_t token) {
    if (group_ == 0) return;
    const float* eights = eights_.data() + token * prepared_.width / 8;
    float* sums = sums_.data() + token * prepared_.sums_width;
    for (int64_t group = 0; group < columns_ / group_; ++group) {
      float sum = 0;
      for (int64_t i = 0; i < group_ / 8; ++i) sum += eights[group * (group_ / 8) + i];
      sums[group] = sum;
    }
  }

  const Prepared& prepared() const { return prepared_; }

  // Columns first..first + count of a token. first: a multiple of 8, and of the columns that are
  // rounded together; so is count, but at the end.
  void put(int64_t token, int64_t first, int64_t count, const float* x) {
    if (rounded_ == 0) {
      if (group_ != 0) put_eights(token, first, count, x);
      return put_values(token, first, count, x);
    }
    float q[kMostRounded], rounded[kMostRounded];
    for (int64_t start = 0; start < count; start += rounded_) {
      const int64_t own = std::min(rounded_, count - start);
      const float step = round_group(x + start, own, q);
      steps_[token * prepared_.steps_width + (first + start) / rounded_] = step;
      for (int64_t i = 0; i < own; ++i) rounded[i] = q[i] * step;
      if (group_ != 0) put_eights(token, first + start, own, rounded);
      if (prepared_.bytes != nullptr) put_bytes(token, first + start, own, q);
      else put_values(token, first + start, own, q);
    }
  }

 private:
  static constexpr int64_t kMostRounded = 128;

  // Bytes of a lane's columns: of 8 those with even numbers, then the others, where two codes lie in
  // a byte, else the first four, then the others; of 4 as they come.
  void put_bytes(int64_t token, int64_t first, int64_t count, const float* q) {
    if (order_ == Order::kQuads64) put_lanes<4, false>(token, first, count, q);
    else if (nibbles_) put_lanes<8, true>(token, first, count, q);
    else put_lanes<8, false>(token, first, count, q);
  }

  template <int EACH, bool NIBBLES>
  void put_lanes(int64_t token, int64_t first, int64_t count, const float* q) {
    int8_t* bytes = bytes_.data() + token * prepared_.width;
    int32_t* starts = starts_.data() + token * prepared_.blocks * kLanes;
    for (int64_t start = 0; start < count; start += EACH) {
      const int64_t lane = (first + start) / EACH;
      int8_t* into = bytes + lane / kLanes * EACH * kLanes + lane % kLanes * 4;
      int32_t own[EACH] = {}, sum = 0;
      for (int i = 0; i < EACH && start + i < count; ++i) own[i] = static_cast<int32_t>(q[start + i]);
      for (int i = 0; i < EACH; ++i) {
        const int half = NIBBLES ? i % 2 : i / 4, place = NIBBLES ? i / 2 : i % 4;
        into[half * 64 + place] = static_cast<int8_t>(own[i]);
        sum += own[i];
      }
      starts[lane] = -offset_ * sum;
    }
  }

  void put_values(int64_t token, int64_t first, int64_t count, const float* x) {
    float* values = prepared_.pairs ? nullptr : values_.data() + token * prepared_.width;
    uint16_t* pairs = prepared_.pairs ? pairs_.data() + token * prepared_.width : nullptr;
    switch (order_) {
      case Order::kPacked128: return put_packed(first, count, x, values, pairs);
      case Order::kQuads64:
        for (int64_t i = 0; i < count; ++i) {
          const int64_t column = first + i, within = column % 64;
          values[column - within + within % 4 * kLanes + within / 4] = x[i];
        }
        return;
      case Order::kPairs32:
        for (int64_t i = 0; i < count; ++i) {
          const int64_t column = first + i, within = column % 32;
          if (pairs) pairs[column] = to_bf16(x[i]);
          else values[column - within + (1 - within % 2) * kLanes + within / 2] = x[i];
        }
        return;
      default: std::copy(x, x + count, values + first);
    }
  }

  // Sums of eight columns, which groups are made of.
  void put_eights(int64_t token, int64_t first, int64_t count, const float* x) {
    for (int64_t start = 0; start < count; start += 8) {
      float sum = 0;
      for (int step = 0; step < 8; ++step) {
        const int64_t i = start + kStepOfPacked[step];
        sum += i < count ? x[i] : 0.0f;
      }
      eights_[(token * prepared_.width + first + start) / 8] = sum;
    }
  }

  static void put_packed(int64_t first, int64_t count, const float* x, float* values,
                         uint16_t* pairs) {
    for (int64_t start = 0; start < count; start += 8) {
      float eight[8] = {};
      std::copy(x + start, x + std::min(start + 8, count), eight);
      const int64_t column = first + start, block = column / kPackedColumns;
      const int64_t lane = column % kPackedColumns / 8, base = block * kPackedColumns;
      if (pairs) {  // products of pairs read nothing else
        for (int code = 0; code < 4; ++code) {
          uint16_t* pair = pairs + base + code * 2 * kLanes + 2 * lane;
          pair[0] = to_bf16(eight[code]);
          pair[1] = to_bf16(eight[code + 4]);
        }
        continue;
      }
      for (int step = 0; step < 8; ++step) {
        values[base + step * kLanes + lane] = eight[kStepOfPacked[step]];
      }
    }
  }

  Order order_ = Order::kPlain;
  int64_t columns_ = 0;
  Prepared prepared_ = {};
  std::vector<float> values_;
  std::vector<uint16_t> pairs_;
  int64_t group_ = 0;
  std::vector<float> eights_;  // sums of eight columns
  std::vector<float> sums_;
  int64_t rounded_ = 0;
  int32_t offset_ = 0;
  bool nibbles_ = false;
  std::vector<int8_t> bytes_;
  std::vector<int32_t> starts_;
  std::vector<float> steps_;
};

void fill(Context& context, Workspace& into, const Matrix& matrix, const void* x, Number number,
          int64_t tokens, int64_t stride) {
  into.shape(context.products, matrix, number, tokens);
  auto one = [&](int64_t token) {
    thread_local std::vector<float> row;
    row.resize(matrix.columns);
    read_numbers(x, number, token * stride, matrix.columns, row.data());
    into.put(token, 0, matrix.columns, row.data());
    into.sum_groups(token);
  };
  if (tokens < 4) {
    for (int64_t token = 0; token < tokens; ++token) one(token);
  } else {
    context.pool.each(tokens, one);
  }
}

// y [T, count] of rows first.. : rounded, with the bias added, as torch would.
void finish(const Matrix& matrix, const uint8_t* record, int64_t first, int64_t count,
            int64_t tokens, Number number, float* y) {
  round_numbers(y, number, tokens * count);
  if (matrix.bias_number < 0) return;
  const auto* bias = record + matrix.bias_offset;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t row = 0; row < count; ++row) {
      const float own = from_number(bias, static_cast<Number>(matrix.bias_number), first + row);
      float& value = y[token * count + row];
      value = rounded(value + rounded(own, number), number);
    }
  }
}

// Bytes of an item. Read from memory by two threads, 4-bit experts gave 15.6, 21.9, 24.0 and 25.4
// GB/s with 8, 32, 128 and 512 kB, of 30 that memory gives.
constexpr int64_t kItemBytes = 1 << 18;

// Rows of one item: enough bytes for a long read, few enough to share evenly. A multiple of `multiple`,
// itself one of 16.
int64_t rows_of_item(const Matrix& matrix, int threads, int64_t most_bytes,
                     int64_t multiple = kLanes) {
  const auto format = static_cast<Format>(matrix.format);
  const bool columns = order_of(format) == Order::kPlain;
  const int64_t each = std::max<int64_t>(1, row_bytes(format, matrix.columns));
  int64_t count = columns ? 8 * kLanes : most_bytes / each;
  count = std::min(count, matrix.rows / (4 * threads));
  return std::max<int64_t>(multiple, count / multiple * multiple);
}

// Up to this many tokens of an expert share one pass over a tile's floats.
constexpr int64_t kTokensAtOnce = 64;

}  // namespace
}  // namespace expertune
