// The interface of the library: plain C, addresses and sizes. engine/native/library.py mirrors it.
#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "fit.h"
#include "layers.h"
#include "processor.h"
#include "replay.h"

#ifndef EXPERTUNE_DIGEST
#define EXPERTUNE_DIGEST "unknown"
#endif

namespace expertune {
namespace {

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
    for (int cell = 0; cell < 4; ++cell) {  // in bf16 and float32, rounded and not
      const Number number = cell % 2 == 0 ? Number::kBf16 : Number::kFloat32;
      const int64_t group = format == 7 ? 64 : 32, rounded = cell < 2 ? 0 : 8;
      const Matrix matrix = {format, kRows, kColumns, group, 16, 0, kScales, 0, -1, rounded};
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

// x [T, D] -> out [T, D]; cosine, sine [T, rotated], `stride` numbers apart (0: one for all); stores
// [T], to whose positions keys and values are written.
void expertune_step(void* context, const Step* step, const void* x, int64_t tokens,
                    const void* cosine, const void* sine, int64_t stride, const Store* stores,
                    void* out) {
  const Flush flush;
  run_step(*static_cast<Context*>(context), *step, x, tokens, cosine, sine, stride, stores, out);
}

// x [T, count] -> out [T, count], both contiguous; weight [count]; all of `number`.
void expertune_norm(void* context, int64_t number, const void* x, const void* weight, int64_t tokens,
                    int64_t count, double epsilon, void* out) {
  const Flush flush;
  norm_rows(*static_cast<Context*>(context), static_cast<Number>(number), x,
            reinterpret_cast<uint64_t>(weight), tokens, count, epsilon, static_cast<char*>(out));
}

// x [T, columns] -> out [T, columns], both contiguous and of `number`: rounded to 8 bits in groups of
// this many columns.
void expertune_round(void* context, int64_t number, const void* x, int64_t tokens, int64_t columns,
                     int64_t group, void* out) {
  const Flush flush;
  const int64_t width = columns * (number == 0 ? 4 : 2), step = std::max<int64_t>(1, 4096 / columns);
  auto& own = *static_cast<Context*>(context);
  own.pool.each((tokens + step - 1) / step, [&](int64_t item) {
    thread_local std::vector<float> scratch;
    scratch.resize(2 * group);
    for (int64_t token = item * step; token < std::min(tokens, (item + 1) * step); ++token) {
      own.products.round(static_cast<Number>(number), static_cast<const char*>(x) + token * width,
                         columns, group, scratch.data(), static_cast<char*>(out) + token * width);
    }
  });
}

// x [T, D] -> logits [T, E], weights [T, K], index [T, K].
void expertune_route(void* context, const Router* router, const void* x, int64_t number,
                     int64_t tokens, void* logits, void* weights, int64_t* index) {
  const Flush flush;
  run_router(*static_cast<Context*>(context), *router, x, static_cast<Number>(number), tokens,
             {static_cast<char*>(logits), static_cast<char*>(weights), index});
}

// y [T * K, D] of `number` and weights [T, K] -> out [T, D]: each row times its weight, both rounded,
// then the K of a token added in their order in float32.
void expertune_combine(void* context, int64_t number, const void* y, const void* weights,
                       int64_t weights_number, int64_t tokens, int64_t chosen, int64_t columns,
                       void* out) {
  const Flush flush;
  run_combine(*static_cast<Context*>(context), static_cast<Number>(number), y, weights,
              static_cast<Number>(weights_number), tokens, chosen, columns,
              static_cast<char*>(out));
}

// See run_layers.
int64_t expertune_layers(void* context, Layers* layers) {
  const Flush flush;
  return run_layers(*static_cast<Context*>(context), *layers);
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

int64_t expertune_replay(const ReplayTimings* timings, const int32_t* events, int64_t count,
                         double* rows, int64_t* arrivals) {
  return replay(*timings, events, count, rows, arrivals);
}

}  // extern "C"
#pragma GCC visibility pop
