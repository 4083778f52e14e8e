// The interface of the library: plain C, addresses and sizes. engine/native/library.py mirrors it.
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "fit.h"
#include "gate.h"
#include "matrix.h"
#include "pool.h"
#include "processor.h"

#ifndef EXPERTUNE_DIGEST
#define EXPERTUNE_DIGEST "unknown"
#endif

namespace expertune {
namespace {

struct Context {
  Context(int threads, int spin_us, const Products& chosen) : pool(threads, spin_us), products(chosen) {}
  Pool pool;
  const Products& products;
};

bool runs_here(const Products* products) {
  if (products == nullptr) return false;
  const std::string name = products->name;
  static const Processor here = this_processor();
  if (name == "avx2") return here.avx2;
  if (name == "avx512") return here.avx512;
  if (name == "avx512_bf16") return here.avx512_bf16;
  return true;
}

// Best first.
std::vector<const Products*> available() {
  std::vector<const Products*> found;
  for (const Products* one :
       {avx512_bf16_products(), avx512_products(), avx2_products(), neon_products()}) {
    if (runs_here(one)) found.push_back(one);
  }
  found.push_back(&reference_products());
  return found;
}


// Activations in a format's order, written piece by piece.
class Workspace {
 public:
  // group: columns that share a zero; 0: none.
  void shape(Order order, int64_t tokens, int64_t columns, bool pairs, int64_t group) {
    order_ = order;
    columns_ = columns;
    const int64_t step = block_columns(order);
    prepared_ = {};
    prepared_.tokens = tokens;
    prepared_.blocks = (columns + step - 1) / step;
    prepared_.width = prepared_.blocks * step;
    values_.assign(tokens * prepared_.width, 0.0f);
    prepared_.values = values_.data();
    if (pairs) {
      pairs_.assign(tokens * prepared_.width, 0);
      prepared_.pairs = pairs_.data();
    }
    group_ = group;
    if (group != 0) {
      prepared_.sums_width = (columns / group + kLanes - 1) / kLanes * kLanes;
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

  // Columns first..first + count of a token. first: a multiple of 8; so is count, but at the end.
  void put(int64_t token, int64_t first, int64_t count, const float* x) {
    float* values = values_.data() + token * prepared_.width;
    uint16_t* pairs = prepared_.pairs ? pairs_.data() + token * prepared_.width : nullptr;
    switch (order_) {
      case Order::kPacked128: return put_packed(token, first, count, x, values, pairs);
      case Order::kPairs32:
        for (int64_t i = 0; i < count; ++i) {
          const int64_t column = first + i, within = column % 32;
          values[column - within + (1 - within % 2) * kLanes + within / 2] = x[i];
          if (pairs) pairs[column] = to_bf16(x[i]);
        }
        return;
      default: std::copy(x, x + count, values + first);
    }
  }

 private:
  void put_packed(int64_t token, int64_t first, int64_t count, const float* x, float* values,
                  uint16_t* pairs) {
    for (int64_t start = 0; start < count; start += 8) {
      float eight[8] = {};
      std::copy(x + start, x + std::min(start + 8, count), eight);
      const int64_t column = first + start, block = column / kPackedColumns;
      const int64_t lane = column % kPackedColumns / 8, base = block * kPackedColumns;
      float sum = 0;
      for (int step = 0; step < 8; ++step) {
        values[base + step * kLanes + lane] = eight[kStepOfPacked[step]];
        sum += eight[kStepOfPacked[step]];
      }
      if (group_ != 0) eights_[(token * prepared_.width + column) / 8] = sum;
      if (!pairs) continue;
      for (int code = 0; code < 4; ++code) {
        pairs[base + code * 2 * kLanes + 2 * lane] = to_bf16(eight[code]);
        pairs[base + code * 2 * kLanes + 2 * lane + 1] = to_bf16(eight[code + 4]);
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
};

int64_t group_of(const Matrix& matrix) {
  return has_zeros(static_cast<Format>(matrix.format)) ? matrix.group : 0;
}

void fill(Context& context, Workspace& into, const Matrix& matrix, const void* x, Number number,
          int64_t tokens, int64_t stride) {
  const auto format = static_cast<Format>(matrix.format);
  const bool pairs = number == Number::kBf16 && context.products.wants_pairs(format);
  into.shape(order_of(format), tokens, matrix.columns, pairs, group_of(matrix));
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

// Rows of one item: enough bytes for a long read, few enough to share evenly. A multiple of 16.
int64_t rows_of_item(const Matrix& matrix, int threads, int64_t most_bytes) {
  const auto format = static_cast<Format>(matrix.format);
  const bool columns = order_of(format) == Order::kPlain;
  const int64_t each = std::max<int64_t>(1, row_bytes(format, matrix.columns));
  int64_t count = columns ? 8 * kLanes : most_bytes / each;
  count = std::min(count, matrix.rows / (4 * threads));
  return std::max<int64_t>(kLanes, count / kLanes * kLanes);
}

struct Experts {
  Matrix up;    // gate and up together: [2F, D], or [F, D] without a gate
  Matrix down;  // [D, F]
  Gate gate;
};

struct Chosen {  // the tokens of one expert that is computed
  const uint8_t* record;
  int64_t first;  // into `tokens` and `places`
  int64_t count;
};

struct ExpertsScratch {
  Workspace x, hidden;
  std::vector<Chosen> experts;
  std::vector<int32_t> tokens, order;
  std::vector<int64_t> places, starts;
};

void list_tokens(ExpertsScratch& scratch, const uint64_t* records, int64_t experts, int64_t tokens,
                 int64_t chosen, const int64_t* index) {
  const int64_t all = tokens * chosen;
  scratch.starts.assign(experts + 1, 0);
  for (int64_t i = 0; i < all; ++i) {
    if (index[i] >= 0 && index[i] < experts && records[index[i]]) ++scratch.starts[index[i] + 1];
  }
  scratch.experts.clear();
  for (int64_t expert = 0; expert < experts; ++expert) {
    const int64_t count = scratch.starts[expert + 1];
    scratch.starts[expert + 1] += scratch.starts[expert];
    if (count == 0) continue;
    scratch.experts.push_back(
        {reinterpret_cast<const uint8_t*>(records[expert]), scratch.starts[expert], count});
  }
  scratch.tokens.resize(scratch.starts[experts]);
  scratch.places.resize(scratch.starts[experts]);
  for (int64_t i = 0; i < all; ++i) {
    if (index[i] < 0 || index[i] >= experts || !records[index[i]]) continue;
    const int64_t place = scratch.starts[index[i]]++;
    scratch.tokens[place] = static_cast<int32_t>(i / chosen);
    scratch.places[place] = i;
  }
}

// Up to this many tokens of an expert share one pass over a tile's floats.
constexpr int64_t kTokensAtOnce = 64;

void run_experts(Context& context, const Experts& spec, const uint64_t* records, int64_t experts,
                 const void* x, Number number, int64_t tokens, int64_t chosen, const int64_t* index,
                 void* out) {
  thread_local ExpertsScratch own;
  ExpertsScratch& scratch = own;
  list_tokens(scratch, records, experts, tokens, chosen, index);
  if (scratch.experts.empty()) return;
  fill(context, scratch.x, spec.up, x, number, tokens, spec.up.columns);
  const bool gated = spec.gate.form != static_cast<int64_t>(GateForm::kNone);
  const int64_t width = spec.down.columns;  // F
  const auto down_format = static_cast<Format>(spec.down.format);
  const bool pairs = number == Number::kBf16 && context.products.wants_pairs(down_format);
  scratch.hidden.shape(order_of(down_format), scratch.places.size(), width, pairs,
                       group_of(spec.down));

  const int64_t step = rows_of_item(spec.up, context.pool.threads(), kItemBytes);
  const int64_t pieces = (width + step - 1) / step;
  context.pool.each(scratch.experts.size() * pieces, [&](int64_t item) {
    const Chosen& expert = scratch.experts[item / pieces];
    const int64_t first = item % pieces * step, count = std::min(step, width - first);
    thread_local std::vector<float> y, g, u, h;
    const int64_t wide = gated ? 2 * count : count;
    y.resize(kTokensAtOnce * wide);
    g.resize(count), u.resize(count), h.resize(count);
    for (int64_t start = 0; start < expert.count; start += kTokensAtOnce) {
      Prepared part = scratch.x.prepared();
      part.tokens = std::min(kTokensAtOnce, expert.count - start);
      part.chosen = scratch.tokens.data() + expert.first + start;
      auto rows = [&](int64_t from, int64_t number_of_rows, float* into) {
        context.products.rows(spec.up, expert.record, from, from + number_of_rows, part, into,
                              number_of_rows);
        finish(spec.up, expert.record, from, number_of_rows, part.tokens, number, into);
      };
      if (!gated) {
        rows(first, count, y.data());
      } else if (spec.gate.interleaved) {
        rows(2 * first, 2 * count, y.data());
      } else {
        rows(first, count, y.data());
        rows(width + first, count, y.data() + part.tokens * count);
      }
      for (int64_t token = 0; token < part.tokens; ++token) {
        const float *gate = nullptr, *up = y.data() + token * count;
        if (gated && spec.gate.interleaved) {
          const float* both = y.data() + token * 2 * count;
          for (int64_t i = 0; i < count; ++i) g[i] = both[2 * i], u[i] = both[2 * i + 1];
          gate = g.data();
          up = u.data();
        } else if (gated) {
          gate = y.data() + token * count;
          up = y.data() + (part.tokens + token) * count;
        } else {
          gate = up;
        }
        context.products.gate(spec.gate, number, gate, up, h.data(), count);
        read_numbers(h.data(), Number::kFloat32, 0, count, h.data());
        scratch.hidden.put(expert.first + start + token, first, count, h.data());
      }
    }
  });

  for (size_t token = 0; token < scratch.places.size(); ++token) scratch.hidden.sum_groups(token);
  const int64_t height = spec.down.rows;  // D
  const int64_t down_step = rows_of_item(spec.down, context.pool.threads(), kItemBytes);
  const int64_t down_pieces = (height + down_step - 1) / down_step;
  scratch.order.resize(scratch.places.size());
  for (size_t i = 0; i < scratch.order.size(); ++i) scratch.order[i] = static_cast<int32_t>(i);
  context.pool.each(scratch.experts.size() * down_pieces, [&](int64_t item) {
    const Chosen& expert = scratch.experts[item / down_pieces];
    const int64_t first = item % down_pieces * down_step;
    const int64_t count = std::min(down_step, height - first);
    thread_local std::vector<float> y;
    y.resize(kTokensAtOnce * count);
    for (int64_t start = 0; start < expert.count; start += kTokensAtOnce) {
      Prepared part = scratch.hidden.prepared();
      part.tokens = std::min(kTokensAtOnce, expert.count - start);
      part.chosen = scratch.order.data() + expert.first + start;
      context.products.rows(spec.down, expert.record, first, first + count, part, y.data(), count);
      finish(spec.down, expert.record, first, count, part.tokens, number, y.data());
      for (int64_t token = 0; token < part.tokens; ++token) {
        const int64_t place = scratch.places[expert.first + start + token];
        write_numbers(out, number, place * height + first, count, y.data() + token * count);
      }
    }
  });
}

// One matrix times the same activations as others.
struct Target {
  const Matrix* matrix;
  const uint8_t* record;
  void* out;  // [T, N], rows `stride` numbers apart
  int64_t stride;
};

bool prepared_alike(const Matrix& a, const Matrix& b) {
  const auto x = static_cast<Format>(a.format), y = static_cast<Format>(b.format);
  return a.columns == b.columns && order_of(x) == order_of(y) && group_of(a) == group_of(b);
}

void run_linears(Context& context, const Target* targets, int64_t count, const void* x,
                 Number number, int64_t tokens, int64_t stride) {
  for (int64_t i = 1; i < count; ++i) {
    if (prepared_alike(*targets[0].matrix, *targets[i].matrix)) continue;
    for (i = 0; i < count; ++i) run_linears(context, targets + i, 1, x, number, tokens, stride);
    return;
  }
  thread_local Workspace own;
  thread_local std::vector<int64_t> own_ends;
  Workspace& prepared = own;
  std::vector<int64_t>& ends = own_ends;
  fill(context, prepared, *targets[0].matrix, x, number, tokens, stride);
  ends.clear();
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t step = rows_of_item(*targets[i].matrix, context.pool.threads(), kItemBytes);
    pieces += (targets[i].matrix->rows + step - 1) / step;
    ends.push_back(pieces);
  }
  context.pool.each(pieces, [&](int64_t item) {
    const int64_t which = std::upper_bound(ends.begin(), ends.end(), item) - ends.begin();
    const Target& target = targets[which];
    const Matrix& matrix = *target.matrix;
    const int64_t step = rows_of_item(matrix, context.pool.threads(), kItemBytes);
    const int64_t first = (item - (which == 0 ? 0 : ends[which - 1])) * step;
    const int64_t rows = std::min(step, matrix.rows - first);
    thread_local std::vector<float> y;
    y.resize(kTokensAtOnce * rows);
    for (int64_t start = 0; start < tokens; start += kTokensAtOnce) {
      Prepared part = prepared.prepared();
      part.tokens = std::min(kTokensAtOnce, tokens - start);
      part.values += start * part.width;
      if (part.pairs) part.pairs += start * part.width;
      if (part.sums) part.sums += start * part.sums_width;
      context.products.rows(matrix, target.record, first, first + rows, part, y.data(), rows);
      finish(matrix, target.record, first, rows, part.tokens, number, y.data());
      for (int64_t token = 0; token < part.tokens; ++token) {
        write_numbers(target.out, number, (start + token) * target.stride + first, rows,
                      y.data() + token * rows);
      }
    }
  });
}

void run_linear(Context& context, const Matrix& matrix, const uint8_t* record, const void* x,
                Number number, int64_t tokens, int64_t stride, void* out, int64_t out_stride) {
  const Target target = {&matrix, record, out, out_stride};
  run_linears(context, &target, 1, x, number, tokens, stride);
}

// One query of each of B sequences: query [B, Q, key_width], keys and values [B, H, length, width]
// with the given strides in numbers; mask float32 [B, length] or null -> out [B, Q, value_width].
struct Attention {
  int64_t number, sequences, query_heads, heads, length, key_width, value_width;
  int64_t key_batch, key_head, key_stride, value_batch, value_head, value_stride;
  double scale;
};

void run_attention(Context& context, const Attention& a, const void* query, const void* keys,
                   const void* values, const float* mask, void* out) {
  const auto number = static_cast<Number>(a.number);
  const int64_t size = number == Number::kFloat32 ? 4 : 2, shared = a.query_heads / a.heads;
  context.pool.each(a.sequences * a.heads, [&](int64_t item) {
    const int64_t sequence = item / a.heads, head = item % a.heads;
    thread_local std::vector<float> own_query, scores, found;
    own_query.resize(a.key_width);
    scores.resize(a.length);
    found.resize(a.value_width);
    const Attended at = {
        static_cast<const char*>(keys) + (sequence * a.key_batch + head * a.key_head) * size,
        static_cast<const char*>(values) + (sequence * a.value_batch + head * a.value_head) * size,
        a.length, a.key_width, a.value_width, a.key_stride, a.value_stride,
        mask == nullptr ? nullptr : mask + sequence * a.length};
    for (int64_t i = 0; i < shared; ++i) {
      const int64_t row = sequence * a.query_heads + head * shared + i;
      for (int64_t d = 0; d < a.key_width; ++d) {
        own_query[d] =
            from_number(query, number, row * a.key_width + d) * static_cast<float>(a.scale);
      }
      context.products.attend(at, number, own_query.data(), scores.data(), found.data());
      write_numbers(out, number, row * a.value_width, a.value_width, found.data());
    }
  });
}

struct Block {
  Matrix matrix;
  uint64_t record;
};

// A linear layer: blocks of rows.
struct Linear {
  int64_t count;
  int64_t rows;
  Block blocks[8];
};

// A whole attention layer for one token of each sequence: projections, norms over `*_norm_width`
// columns (0: none), clipping, rotation of halves, keys and values appended, attention, output.
struct Step {
  Linear query, key, value, output;
  int64_t number, heads, key_heads, width, query_norm_width, key_norm_width;
  uint64_t query_norm, key_norm;  // weights
  double query_epsilon, key_epsilon, scale, clip;  // clip 0: none
};

// Into `targets`, writing to out [T, rows].
void add_targets(const Linear& linear, char* out, int64_t size, std::vector<Target>& targets) {
  int64_t first = 0;
  for (int64_t i = 0; i < linear.count; ++i) {
    const Block& block = linear.blocks[i];
    targets.push_back({&block.matrix, reinterpret_cast<const uint8_t*>(block.record),
                       out + first * size, linear.rows});
    first += block.matrix.rows;
  }
}

// x [T, heads * width]: norm, clip, rotate, in place. cosine, sine [T or 1, width].
void turn(Context& context, const Step& step, uint64_t weight, int64_t norm_width, double epsilon,
          int64_t heads, int64_t tokens, const void* cosine, const void* sine, int64_t stride, char* x) {
  const auto number = static_cast<Number>(step.number);
  const int64_t size = number == Number::kFloat32 ? 4 : 2, row = heads * step.width;
  const int64_t half = step.width / 2;
  thread_local std::vector<float> values, c, s, turned;
  values.resize(step.width), c.resize(step.width), s.resize(step.width), turned.resize(step.width);
  for (int64_t token = 0; token < tokens; ++token) {
    char* own = x + token * row * size;
    for (int64_t first = 0; norm_width != 0 && first < row; first += norm_width) {
      context.products.norm(number, own + first * size, reinterpret_cast<const void*>(weight),
                            norm_width, static_cast<float>(epsilon), own + first * size);
    }
    read_numbers(cosine, number, token * stride, step.width, c.data());
    read_numbers(sine, number, token * stride, step.width, s.data());
    for (int64_t head = 0; head < heads; ++head) {
      read_numbers(own, number, head * step.width, step.width, values.data());
      if (step.clip > 0) {
        const float clip = rounded(static_cast<float>(step.clip), number);
        for (float& v : values) v = v < -clip ? -clip : v > clip ? clip : v;
      }
      for (int64_t i = 0; i < half; ++i) {
        turned[i] = -values[half + i] * s[i];
        turned[half + i] = values[i] * s[half + i];
      }
      for (int64_t i = 0; i < step.width; ++i) values[i] *= c[i];
      round_numbers(turned.data(), number, step.width);
      round_numbers(values.data(), number, step.width);
      for (int64_t i = 0; i < step.width; ++i) values[i] += turned[i];
      write_numbers(own, number, head * step.width, step.width, values.data());
    }
  }
}

void run_step(Context& context, const Step& step, const void* x, int64_t tokens,
              const void* cosine, const void* sine, int64_t stride, char* keys, char* values,
              int64_t room, int64_t position, void* out) {
  const auto number = static_cast<Number>(step.number);
  const int64_t size = number == Number::kFloat32 ? 4 : 2;
  const int64_t wide = step.heads * step.width, narrow = step.key_heads * step.width;
  thread_local std::vector<char> own_buffer;
  thread_local std::vector<Target> own_targets;
  std::vector<char>& buffer = own_buffer;
  std::vector<Target>& targets = own_targets;
  buffer.resize(tokens * (2 * wide + 2 * narrow) * size);
  char* query = buffer.data();
  char* key = query + tokens * wide * size;
  char* value = key + tokens * narrow * size;
  char* attended = value + tokens * narrow * size;
  targets.clear();
  add_targets(step.query, query, size, targets);
  add_targets(step.key, key, size, targets);
  add_targets(step.value, value, size, targets);
  const int64_t columns = targets[0].matrix->columns;
  run_linears(context, targets.data(), targets.size(), x, number, tokens, columns);
  context.pool.each(1, [&](int64_t) {
    turn(context, step, step.query_norm, step.query_norm_width, step.query_epsilon, step.heads,
         tokens, cosine, sine, stride, query);
    turn(context, step, step.key_norm, step.key_norm_width, step.key_epsilon, step.key_heads, tokens,
         cosine, sine, stride, key);
    if (step.clip > 0) {
      const float clip = rounded(static_cast<float>(step.clip), number);
      for (int64_t i = 0; i < tokens * narrow; ++i) {
        const float v = from_number(value, number, i);
        put_number(value, number, i, v < -clip ? -clip : v > clip ? clip : v);
      }
    }
    for (int64_t row = 0; row < tokens * step.key_heads; ++row) {
      const int64_t to = (row * room + position) * step.width * size, from = row * step.width * size;
      std::memcpy(keys + to, key + from, step.width * size);
      std::memcpy(values + to, value + from, step.width * size);
    }
  });
  const int64_t head = room * step.width;
  const Attention attention = {step.number, tokens, step.heads, step.key_heads, position + 1,
                               step.width, step.width, step.key_heads * head, head, step.width,
                               step.key_heads * head, head, step.width, step.scale};
  run_attention(context, attention, query, keys, values, nullptr, attended);
  targets.clear();
  add_targets(step.output, static_cast<char*>(out), size, targets);
  run_linears(context, targets.data(), targets.size(), attended, number, tokens, wide);
}

// Whether an instruction set gives the reference's bits on small matrices of every format: how
// processors add pairs of bf16 products, for one, is not the same by any law.
bool agrees(const Products& products) {
  constexpr int64_t kRows = 17, kColumns = 160, kTokens = 3, kScales = 1 << 14;
  std::vector<uint8_t> record(2 * kScales);
  std::vector<float> x(kTokens * kColumns);
  uint32_t state = 1;
  auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 8; };
  for (auto& value : x) {
    value = from_bf16(to_bf16(static_cast<float>(next() % 2001) / 500.0f - 2.0f));
  }
  Context mine(1, 0, products), plain(1, 0, reference_products());
  for (int64_t format = 0; format <= static_cast<int64_t>(Format::kFp16Columns); ++format) {
    for (auto& byte : record) byte = static_cast<uint8_t>(next() & 0x3b);  // moderate in every format
    const Matrix matrix = {format, kRows, kColumns, format == 7 ? 64 : 32, 16, 0, kScales, 0, -1};
    for (Number number : {Number::kBf16, Number::kFloat32}) {
      std::vector<uint16_t> halves(x.size());
      for (size_t i = 0; i < x.size(); ++i) halves[i] = to_bf16(x[i]);
      const void* input = number == Number::kBf16 ? static_cast<const void*>(halves.data()) : x.data();
      std::vector<float> found(kTokens * kRows), expected(kTokens * kRows);
      run_linear(mine, matrix, record.data(), input, number, kTokens, kColumns, found.data(), kRows);
      run_linear(plain, matrix, record.data(), input, number, kTokens, kColumns, expected.data(),
                 kRows);
      if (std::memcmp(found.data(), expected.data(), 4 * found.size()) != 0) return false;
    }
  }
  return true;
}

// The best that runs here and agrees, or the named one; null if that does not.
const Products* by_name(const char* name) {
  for (const Products* one : available()) {
    if ((*name == '\0' || std::string(name) == one->name) && agrees(*one)) return one;
  }
  return nullptr;
}

}  // namespace
}  // namespace expertune

using namespace expertune;  // NOLINT: everything below is the library's own interface

#pragma GCC visibility push(default)
extern "C" {

const char* expertune_digest() { return EXPERTUNE_DIGEST; }

// Name of the instruction set number `index`, best first; null after the last.
const char* expertune_instruction_set(int64_t index) {
  const auto found = available();
  return index < static_cast<int64_t>(found.size()) ? found[index]->name : nullptr;
}

// instruction_set: "" for the best. Null if it does not run here.
void* expertune_open(int64_t threads, int64_t spin_us, const char* instruction_set) {
  const Products* products = by_name(instruction_set);
  if (products == nullptr || threads < 1) return nullptr;
  return new Context(static_cast<int>(threads), static_cast<int>(spin_us), *products);
}

// The instruction set that was taken.
const char* expertune_chosen(void* context) {
  return static_cast<Context*>(context)->products.name;
}

void expertune_close(void* context) { delete static_cast<Context*>(context); }

// x [T, K], rows `stride` numbers apart -> out [T, N], rows `out_stride` numbers apart.
void expertune_linear(void* context, const Matrix* matrix, const void* record, const void* x,
                      int64_t number, int64_t tokens, int64_t stride, void* out,
                      int64_t out_stride) {
  const Flush flush;
  run_linear(*static_cast<Context*>(context), *matrix, static_cast<const uint8_t*>(record), x,
             static_cast<Number>(number), tokens, stride, out, out_stride);
}

// x [T, D] through the experts in index [T, K] whose records are given (address 0: not now)
// -> their places in out [T * K, D]; other places are left as they are.
void expertune_experts(void* context, const Experts* experts, const uint64_t* records,
                       int64_t count, const void* x, int64_t number, int64_t tokens,
                       int64_t chosen, const int64_t* index, void* out) {
  const Flush flush;
  run_experts(*static_cast<Context*>(context), *experts, records, count, x,
              static_cast<Number>(number), tokens, chosen, index, out);
}

// Plain weights of the rows first..end: out [end - first, K] of `number`. Not for [K, N] formats.
void expertune_plain(void* context, const Matrix* matrix, const void* record, int64_t first,
                     int64_t end, void* out, int64_t number) {
  const Flush flush;
  auto& own = *static_cast<Context*>(context);
  const int64_t step = 16, width = matrix->columns * (number == 0 ? 4 : 2);
  own.pool.each((end - first + step - 1) / step, [&](int64_t item) {
    const int64_t from = first + item * step;
    own.products.plain(*matrix, static_cast<const uint8_t*>(record), from,
                       std::min(from + step, end), static_cast<char*>(out) + item * step * width,
                       static_cast<Number>(number));
  });
}

void expertune_attend(void* context, const Attention* attention, const void* query,
                      const void* keys, const void* values, const float* mask, void* out) {
  const Flush flush;
  run_attention(*static_cast<Context*>(context), *attention, query, keys, values, mask, out);
}

// x [T, D] -> out [T, D]; cosine, sine [T, width], `stride` numbers apart (0: one for all); keys,
// values [T, key_heads, room, width], to which position `position` is written.
void expertune_step(void* context, const Step* step, const void* x, int64_t tokens,
                    const void* cosine, const void* sine, int64_t stride, void* keys, void* values,
                    int64_t room, int64_t position, void* out) {
  const Flush flush;
  run_step(*static_cast<Context*>(context), *step, x, tokens, cosine, sine, stride,
           static_cast<char*>(keys), static_cast<char*>(values), room, position, out);
}

// x [T, count] -> out [T, count], both contiguous; weight [count]; all of `number`.
void expertune_norm(void* context, int64_t number, const void* x, const void* weight, int64_t tokens,
                    int64_t count, double epsilon, void* out) {
  const Flush flush;
  auto& own = *static_cast<Context*>(context);
  const auto kind = static_cast<Number>(number);
  const int64_t size = count * (kind == Number::kFloat32 ? 4 : 2);
  auto one = [&](int64_t token) {
    own.products.norm(kind, static_cast<const char*>(x) + token * size, weight, count,
                      static_cast<float>(epsilon), static_cast<char*>(out) + token * size);
  };
  if (tokens * count < 1 << 15) {
    own.pool.each(1, [&](int64_t) {
      for (int64_t token = 0; token < tokens; ++token) one(token);
    });
  } else {
    own.pool.each(tokens, one);
  }
}

// out[i] = the gate of g[i] and u[i], float32 rounded to `number`.
void expertune_gate(void* context, const Gate* gate, int64_t number, const float* g, const float* u,
                    float* out, int64_t count) {
  const Flush flush;
  static_cast<Context*>(context)->products.gate(*gate, static_cast<Number>(number), g, u, out, count);
}

// Quantize `count` matrices.
void expertune_quantize(void* context, const QuantizeJob* jobs, int64_t count) {
  const Flush flush;
  auto& own = *static_cast<Context*>(context);
  std::vector<int64_t> starts(count + 1);  // of each job's items, kLanes rows each
  for (int64_t i = 0; i < count; ++i) {
    starts[i + 1] = starts[i] + (jobs[i].rows + kLanes - 1) / kLanes;
  }
  own.pool.each(starts[count], [&](int64_t item) {
    const auto after = std::upper_bound(starts.begin(), starts.end(), item);
    const int64_t number = after - starts.begin() - 1, first = (item - starts[number]) * kLanes;
    const QuantizeJob& job = jobs[number];
    thread_local std::vector<float> scratch;
    scratch.resize(quantize_scratch(job));
    own.products.quantize(job, first, std::min(first + kLanes, job.rows), scratch.data());
  });
}

// Seconds to read `size` bytes once with all threads.
double expertune_read_seconds(void* context, const void* memory, int64_t size) {
  auto& own = *static_cast<Context*>(context);
  const auto* words = static_cast<const uint64_t*>(memory);
  constexpr int64_t kPiece = 1 << 17;  // words
  const int64_t count = size / 8;
  std::vector<uint64_t> sums((count + kPiece - 1) / kPiece);
  const auto started = std::chrono::steady_clock::now();
  own.pool.each(static_cast<int64_t>(sums.size()), [&](int64_t item) {
    const int64_t end = std::min(count, (item + 1) * kPiece);
    uint64_t part[8] = {};
    int64_t i = item * kPiece;
    for (; i + 8 <= end; i += 8) {
      for (int lane = 0; lane < 8; ++lane) part[lane] ^= words[i + lane];
    }
    uint64_t sum = 0;
    for (int lane = 0; lane < 8; ++lane) sum ^= part[lane];
    sums[item] = sum;
  });
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - started;
  volatile uint64_t kept = 0;
  for (uint64_t sum : sums) kept = kept ^ sum;
  return spent.count();
}

}  // extern "C"
#pragma GCC visibility pop
