// Threads with an instruction set, activations prepared for its products, and what they share.
#pragma once
#include <algorithm>
#include <new>
#include <vector>

#include "matrix.h"
#include "pool.h"
#include "rounding.h"

namespace expertune {
namespace {

// Numbers that begin with a cache line: what lies over two is loaded twice.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* at, size_t) { ::operator delete(at, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};

template <class T>
using Lines = std::vector<T, LineAllocator<T>>;

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

  // count numbers of x from `index` on, as the columns of a token from `first` on: see
  // Products::arrange.
  void put(const Products& products, int64_t token, int64_t first, int64_t count, const void* x,
           Number number, int64_t index) {
    const int64_t at = token * prepared_.width;
    const Arranged to = {order_, rounded_, nibbles_, offset_,
                         prepared_.values ? values_.data() + at : nullptr,
                         prepared_.pairs ? pairs_.data() + at : nullptr,
                         prepared_.bytes ? bytes_.data() + at : nullptr,
                         prepared_.bytes ? starts_.data() + token * prepared_.blocks * kLanes : nullptr,
                         steps_.data() + token * prepared_.steps_width,
                         group_ != 0 ? eights_.data() + at / 8 : nullptr};
    products.arrange(to, number, x, index, first, count);
  }

 private:
  Order order_ = Order::kPlain;
  int64_t columns_ = 0;
  Prepared prepared_ = {};
  Lines<float> values_;
  Lines<uint16_t> pairs_;
  int64_t group_ = 0;
  Lines<float> eights_;  // sums of eight columns
  Lines<float> sums_;
  int64_t rounded_ = 0;
  int32_t offset_ = 0;
  bool nibbles_ = false;
  Lines<int8_t> bytes_;
  Lines<int32_t> starts_;
  Lines<float> steps_;
};

void fill(Context& context, Workspace& into, const Matrix& matrix, const void* x, Number number,
          int64_t tokens, int64_t stride) {
  into.shape(context.products, matrix, number, tokens);
  auto one = [&](int64_t token) {
    into.put(context.products, token, 0, matrix.columns, x, number, token * stride);
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
