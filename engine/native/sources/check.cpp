// Runs every instruction set against the scalar reference, without Python: for sanitizers, and for
// processors that are only emulated. The first difference ends it with one line and exit code 1.
// An argument N: only every Nth case, for sanitizers that are slow.
//
// What the library reads and writes lies in blocks of exactly its size, so that AddressSanitizer
// sees one byte too many; or right before a page that may not be touched, since that sanitizer does
// not look at masked instructions.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "pool.h"
#include "structures.h"

using namespace expertune;  // NOLINT: a program of this library

extern "C" {
const char* expertune_instruction_set(int64_t index);
void* expertune_open(int64_t threads, int64_t spin_us, const char* instruction_set);
void expertune_close(void* context);
void expertune_linear(void* context, const Matrix* matrix, const void* record, const void* x,
                      int64_t number, int64_t tokens, int64_t stride, void* out,
                      int64_t out_stride);
void expertune_experts(void* context, const Experts* experts, const uint64_t* records,
                       int64_t count, const void* x, int64_t number, int64_t tokens,
                       int64_t chosen, const int64_t* index, void* out);
void expertune_plain(void* context, const Matrix* matrix, const void* record, int64_t first,
                     int64_t end, void* out, int64_t number);
void expertune_attend(void* context, const Attention* a, const void* query, const void* keys,
                      const void* values, const float* mask, void* out);
void expertune_round(void* context, int64_t number, const void* x, int64_t tokens, int64_t columns,
                     int64_t group, void* out);
void expertune_norm(void* context, int64_t number, const void* x, const void* weight, int64_t tokens,
                    int64_t count, double epsilon, void* out);
void expertune_route(void* context, const Router* router, const void* x, int64_t number,
                     int64_t tokens, void* logits, void* weights, int64_t* index);
void expertune_combine(void* context, int64_t number, const void* y, const void* weights,
                       int64_t weights_number, int64_t tokens, int64_t chosen, int64_t columns,
                       void* out);
int64_t expertune_layers(void* context, Layers* layers);
void expertune_gate(void* context, const Gate* gate, int64_t number, const float* g, const float* u,
                    float* out, int64_t count);
double expertune_read_seconds(void* context, const void* memory, int64_t size);
}

namespace {

constexpr int kThreads[] = {1, 2, 3, 5};
constexpr int kFormats = 11;
constexpr const char* kFormatNames[] = {"bf16", "fp16", "int8", "int4",         "int3",
                                        "int2", "mxfp4", "fp8", "bf16_columns", "fp16_columns",
                                        "uint4"};
constexpr const char* kNumberNames[] = {"float32", "bf16", "fp16"};

// ---- chance ---------------------------------------------------------------------------------------

uint64_t chance_state = 20261130;

uint32_t chance() {
  chance_state = chance_state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(chance_state >> 33);
}

int64_t below(int64_t count) { return chance() % count; }

// About -1 to 1.
float some_value() { return static_cast<float>(static_cast<int32_t>(chance() % 65536) - 32768) / 32768; }

// ---- memory of exactly the size -------------------------------------------------------------------

// Whole pages, the last of which may not be touched.
struct Pages {
  void* first;
  int64_t size;
  void operator()(void*) const { munmap(first, size); }
};

// By turns in a heap of its own size, and at the end of pages.
class Memory {
 public:
  explicit Memory(int64_t size) : size_(size) {
    static std::atomic<int64_t> made{0};
    if (++made % 2 == 0) {
      heap_.reset(new uint8_t[size]);
      bytes_ = heap_.get();
    } else {
      const int64_t page = sysconf(_SC_PAGESIZE), kept = (size + page - 1) / page * page;
      void* first = mmap(nullptr, kept + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                         -1, 0);
      if (first == MAP_FAILED || mprotect(static_cast<char*>(first) + kept, page, PROT_NONE) != 0) {
        std::printf("no memory\n");
        std::exit(1);
      }
      pages_ = std::unique_ptr<void, Pages>(first, Pages{first, kept + page});
      bytes_ = static_cast<uint8_t*>(first) + kept - (size + 7) / 8 * 8;  // aligned
    }
    std::memset(bytes_, 0x5a, size);
  }
  uint8_t* at(int64_t offset = 0) { return bytes_ + offset; }
  const uint8_t* at(int64_t offset = 0) const { return bytes_ + offset; }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  uint8_t* bytes_;
  std::unique_ptr<uint8_t[]> heap_;
  std::unique_ptr<void, Pages> pages_{nullptr, Pages{nullptr, 0}};
};

void touched_outside(int) {
  constexpr char kText[] = "memory outside of a block was touched\n";
  const auto written = write(STDOUT_FILENO, kText, sizeof(kText) - 1);
  _exit(written < 0 ? 2 : 1);
}

int64_t bytes_of(Number number) { return number == Number::kFloat32 ? 4 : 2; }

// count numbers; a few are zero, below the smallest normal, or large.
Memory some_numbers(int64_t count, Number number) {
  Memory block(count * bytes_of(number));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t kind = below(40);
    const float value = kind == 0 ? 0.0f : kind == 1 ? 1e-40f : kind == 2 ? 100.0f : 1.0f;
    put_number(block.at(), number, i, value * some_value());
  }
  return block;
}

// Equal bits, or both not a number.
bool same(const Memory& a, const Memory& b, Number number, int64_t* where) {
  for (int64_t i = 0; i < a.size() / bytes_of(number); ++i) {
    if (std::memcmp(a.at(i * bytes_of(number)), b.at(i * bytes_of(number)), bytes_of(number)) == 0) {
      continue;
    }
    const float x = from_number(a.at(), number, i), y = from_number(b.at(), number, i);
    if (x != x && y != y) continue;
    *where = i;
    return false;
  }
  return true;
}

// ---- matrices -------------------------------------------------------------------------------------

int64_t code_bytes(const Matrix& m) {
  const auto format = static_cast<Format>(m.format);
  if (order_of(format) == Order::kPlain) return m.rows * m.columns * 2;
  return m.rows * row_bytes(format, m.columns);
}

int64_t scale_bytes(const Matrix& m) {
  switch (static_cast<Format>(m.format)) {
    case Format::kInt8: return m.rows * 2;
    case Format::kInt4:
    case Format::kUint4:
    case Format::kInt3:
    case Format::kInt2: return m.rows * (m.columns / m.group) * 4;
    case Format::kMxfp4: return m.rows * (m.columns / 32);
    case Format::kFp8:
      return (m.rows + m.block_rows - 1) / m.block_rows * ((m.columns + m.group - 1) / m.group) * 4;
    default: return 0;
  }
}

// Put the parts of a matrix behind one another from `start` on, part number `last` at the end.
// Returns the end. bias: its number; -1: none.
int64_t lay_out(Matrix& m, int64_t start, int last, int bias) {
  const int64_t sizes[3] = {code_bytes(m), scale_bytes(m),
                            bias < 0 ? 0 : m.rows * bytes_of(static_cast<Number>(bias))};
  int64_t* offsets[3] = {&m.codes_offset, &m.scales_offset, &m.bias_offset};
  int64_t end = start;
  for (int i = 1; i <= 3; ++i) {
    const int part = (last + i) % 3;
    if (sizes[part] == 0) continue;
    end = (end + 3) / 4 * 4;
    *offsets[part] = end;
    end += sizes[part];
  }
  m.bias_number = bias;
  return end;
}

void put_half(uint8_t* at, int64_t index, uint16_t bits) { std::memcpy(at + 2 * index, &bits, 2); }

void fill_codes(const Matrix& m, uint8_t* codes, bool with_nan) {
  const auto format = static_cast<Format>(m.format);
  for (int64_t i = 0; i < code_bytes(m); ++i) {
    codes[i] = static_cast<uint8_t>(chance());
    if (format == Format::kFp8 && (codes[i] & 0x7f) == 0x7f && !with_nan) codes[i] ^= 1;
  }
  const bool bf16 = format == Format::kBf16 || format == Format::kBf16Columns;
  if (!bf16 && format != Format::kFp16 && format != Format::kFp16Columns) return;
  for (int64_t i = 0; i < code_bytes(m) / 2; ++i) {
    // Some below the smallest normal number.
    const float tiny = bf16 ? 1e-40f : 1e-6f;
    const float value = some_value() * (below(20) == 0 ? tiny : 1.0f);
    put_half(codes, i, bf16 ? to_bf16(value) : to_fp16(value));
  }
}

void fill_scales(const Matrix& m, uint8_t* scales, bool with_nan) {
  const auto format = static_cast<Format>(m.format);
  if (format == Format::kMxfp4) {
    for (int64_t i = 0; i < scale_bytes(m); ++i) {
      const int64_t kind = below(32);
      scales[i] = static_cast<uint8_t>(kind < 3 ? kind : kind == 3 && with_nan ? 255 : 120 + below(12));
    }
  } else if (format == Format::kFp8) {
    for (int64_t i = 0; i < scale_bytes(m) / 4; ++i) {
      const float scale = some_value();
      std::memcpy(scales + 4 * i, &scale, 4);
    }
  } else if (format == Format::kUint4) {
    for (int64_t i = 0; i < scale_bytes(m) / 4; ++i) {
      const uint32_t scale = expertune::to_bits(some_value()) & expertune::kScaleBits;
      const uint32_t word = scale | static_cast<uint32_t>(below(17));
      std::memcpy(scales + 4 * i, &word, 4);
    }
  } else {
    for (int64_t i = 0; i < scale_bytes(m) / 2; ++i) put_half(scales, i, to_bf16(some_value()));
  }
}

void fill(const Matrix& m, uint8_t* record, bool with_nan) {
  fill_codes(m, record + m.codes_offset, with_nan);
  if (scale_bytes(m) > 0) fill_scales(m, record + m.scales_offset, with_nan);
  if (m.bias_number < 0) return;
  const auto number = static_cast<Number>(m.bias_number);
  for (int64_t row = 0; row < m.rows; ++row) {
    put_number(record + m.bias_offset, number, row, some_value());
  }
}

// ---- contexts -------------------------------------------------------------------------------------

struct Side {
  std::string name;
  int threads;
  void* context;
};

struct Sides {
  void* reference = expertune_open(1, 0, "reference");
  std::vector<Side> others;
  std::vector<std::string> names;

  Sides() {
    for (int64_t i = 0; const char* name = expertune_instruction_set(i); ++i) {
      names.push_back(name);
      for (int threads : kThreads) {
        others.push_back({name, threads, expertune_open(threads, 20, name)});
      }
    }
  }
  ~Sides() {
    expertune_close(reference);
    for (const Side& side : others) expertune_close(side.context);
  }
  Sides(const Sides&) = delete;
  Sides& operator=(const Sides&) = delete;
};

int64_t cases = 0, asked = 0, every = 1;

bool is_next() { return ++asked % every == 0; }

// Every instruction set, each with the next number of threads. The reference with one thread is left
// to itself.
template <class F>
void each_side(const Sides& sides, const F& body) {
  ++cases;
  constexpr int64_t kCounts = sizeof(kThreads) / sizeof(kThreads[0]);
  for (size_t i = 0; i < sides.names.size(); ++i) {
    const Side& side = sides.others[i * kCounts + (cases + i) % kCounts];
    if (side.name == "reference" && (side.threads == 1 || cases % 8 != 0)) continue;
    body(side);
  }
}

[[noreturn]] void differs(const Side& side, const std::string& what, int64_t where) {
  std::printf("%s with %d threads differs from the reference at number %lld of %s\n",
              side.name.c_str(), side.threads, static_cast<long long>(where), what.c_str());
  std::exit(1);
}

std::string described(const char* what, const Matrix& m, Number number, int64_t tokens) {
  char text[200];
  std::snprintf(text, sizeof(text), "%s: %s [%d, %d], group %d, block rows %d, %s, %d tokens, bias %d, "
                "activations %d",
                what, kFormatNames[m.format], static_cast<int>(m.rows), static_cast<int>(m.columns),
                static_cast<int>(m.group), static_cast<int>(m.block_rows),
                kNumberNames[static_cast<int>(number)], static_cast<int>(tokens),
                static_cast<int>(m.bias_number), static_cast<int>(m.activation_bits));
  return text;
}

// ---- what is checked ------------------------------------------------------------------------------

void check_linear(const Sides& sides, Matrix m, Number number, int64_t tokens) {
  const int bias = static_cast<int>(below(4)) - 1;
  const Memory record = [&] {
    Memory made(lay_out(m, 0, static_cast<int>(below(3)), bias));
    fill(m, made.at(), false);
    return made;
  }();
  const int64_t stride = m.columns + below(3);
  const Memory x = some_numbers((tokens - 1) * stride + m.columns, number);
  const int64_t size = tokens * m.rows * bytes_of(number);
  Memory expected(size);
  const auto kind = static_cast<int64_t>(number);
  expertune_linear(sides.reference, &m, record.at(), x.at(), kind, tokens, stride, expected.at(),
                   m.rows);
  each_side(sides, [&](const Side& side) {
    Memory found(size);
    expertune_linear(side.context, &m, record.at(), x.at(), kind, tokens, stride, found.at(),
                     m.rows);
    int64_t where;
    if (!same(expected, found, number, &where)) {
      differs(side, described("linear", m, number, tokens), where);
    }
  });
}

void check_plain(const Sides& sides, Matrix m, Number number) {
  Memory record(lay_out(m, 0, static_cast<int>(below(3)), -1));
  fill(m, record.at(), true);
  const int64_t first = below(m.rows), end = first + 1 + below(m.rows - first);
  const int64_t size = (end - first) * m.columns * bytes_of(number);
  Memory expected(size);
  const auto kind = static_cast<int64_t>(number);
  expertune_plain(sides.reference, &m, record.at(), first, end, expected.at(), kind);
  each_side(sides, [&](const Side& side) {
    Memory found(size);
    expertune_plain(side.context, &m, record.at(), first, end, found.at(), kind);
    int64_t where;
    if (!same(expected, found, number, &where)) {
      differs(side, described("plain", m, number, end - first), where);
    }
  });
}

Gate some_gate(int64_t form) {
  return {form, below(6), below(2), 1.702, below(2) ? 7.0 : 0.25};
}

void check_gate(const Sides& sides, int64_t form, Number number, int64_t count) {
  const Gate gate = some_gate(form);
  Memory g(count * 4), u(count * 4), expected(count * 4);
  const float special[] = {0.0f, -0.0f, 1e-40f, 100.0f, -100.0f, 1e30f, -1e30f, HUGE_VALF, -HUGE_VALF,
                           NAN};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t kind = below(30);
    put_number(g.at(), Number::kFloat32, i,
               rounded(kind < 10 ? special[kind] : 9 * some_value(), number));
    put_number(u.at(), Number::kFloat32, i,
               rounded(kind >= 20 ? special[kind - 20] : 9 * some_value(), number));
  }
  const auto floats = [](const Memory& block) { return reinterpret_cast<const float*>(block.at()); };
  const auto kind = static_cast<int64_t>(number);
  expertune_gate(sides.reference, &gate, kind, floats(g), floats(u),
                 reinterpret_cast<float*>(expected.at()), count);
  each_side(sides, [&](const Side& side) {
    Memory found(count * 4);
    expertune_gate(side.context, &gate, kind, floats(g), floats(u),
                   reinterpret_cast<float*>(found.at()), count);
    int64_t where;
    if (!same(expected, found, Number::kFloat32, &where)) {
      differs(side, "gate of form " + std::to_string(form) + ", activation " +
                        std::to_string(gate.activation) + ", " + kNumberNames[kind], where);
    }
  });
}

void check_attend(const Sides& sides, Number number, int64_t length, int64_t width, bool masked) {
  const int64_t value_width = width + below(20), heads = 1 + below(3), shared = 1 + below(3);
  const int64_t size = bytes_of(number), sequences = 1 + below(3);
  Attention a = {};
  a.number = static_cast<int64_t>(number);
  a.sequences = sequences, a.query_heads = heads * shared, a.heads = heads, a.length = length;
  a.key_width = width, a.value_width = value_width, a.scale = 0.125;
  a.key_stride = width, a.key_head = length * width, a.key_batch = heads * length * width;
  a.value_stride = value_width, a.value_head = length * value_width;
  a.value_batch = heads * length * value_width;
  const Memory query = some_numbers(sequences * heads * shared * width, number);
  const Memory keys = some_numbers(sequences * a.key_batch, number);
  const Memory values = some_numbers(sequences * a.value_batch, number);
  Memory mask = some_numbers(sequences * length, Number::kFloat32);
  const auto* added = masked ? reinterpret_cast<const float*>(mask.at()) : nullptr;
  Memory expected(sequences * heads * shared * value_width * size);
  expertune_attend(sides.reference, &a, query.at(), keys.at(), values.at(), added, expected.at());
  each_side(sides, [&](const Side& side) {
    Memory found(expected.size());
    expertune_attend(side.context, &a, query.at(), keys.at(), values.at(), added, found.at());
    int64_t where;
    if (!same(expected, found, number, &where)) {
      differs(side, std::string("attention, ") + kNumberNames[a.number], where);
    }
  });
}

void check_norm(const Sides& sides, Number number, int64_t tokens, int64_t count) {
  const Memory x = some_numbers(tokens * count, number), weight = some_numbers(count, number);
  Memory expected(x.size());
  const auto kind = static_cast<int64_t>(number);
  expertune_norm(sides.reference, kind, x.at(), weight.at(), tokens, count, 1e-6, expected.at());
  each_side(sides, [&](const Side& side) {
    Memory found(x.size());
    expertune_norm(side.context, kind, x.at(), weight.at(), tokens, count, 1e-6, found.at());
    int64_t where;
    if (!same(expected, found, number, &where)) {
      differs(side, std::string("norm, ") + kNumberNames[kind], where);
    }
  });
}

void check_round(const Sides& sides, Number number, int64_t tokens, int64_t count, int64_t group) {
  const Memory x = some_numbers(tokens * count, number);
  Memory expected(x.size());
  const auto kind = static_cast<int64_t>(number);
  expertune_round(sides.reference, kind, x.at(), tokens, count, group, expected.at());
  each_side(sides, [&](const Side& side) {
    Memory found(x.size());
    expertune_round(side.context, kind, x.at(), tokens, count, group, found.at());
    int64_t where;
    if (!same(expected, found, number, &where)) {
      differs(side, std::string("rounding, ") + kNumberNames[kind], where);
    }
  });
}

// up [2F, D] or [F, D], down [D, F].
void check_experts(const Sides& sides, int64_t format, int64_t group, int64_t hidden, int64_t width,
                   int64_t form, Number number, int64_t tokens) {
  constexpr int64_t kExperts = 5;
  Experts spec = {};
  spec.gate = some_gate(form);
  const bool gated = form != static_cast<int64_t>(GateForm::kNone);
  const int64_t rounded = below(2) * 8;
  spec.up = {format, gated ? 2 * width : width, hidden, group, 16, 0, 0, 0, -1, rounded};
  spec.down = {format, hidden, width, group, 16, 0, 0, 0, -1, rounded};
  const int last = static_cast<int>(below(3));
  const int64_t middle = lay_out(spec.up, 0, static_cast<int>(below(3)), static_cast<int>(below(4)) - 1);
  const int64_t record_size = lay_out(spec.down, middle, last, static_cast<int>(below(4)) - 1);
  std::vector<Memory> records;
  Memory addresses(kExperts * 8);
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    records.emplace_back(record_size);
    fill(spec.up, records.back().at(), false);
    fill(spec.down, records.back().at(), false);
    const uint64_t address = below(3) == 0 ? 0 : reinterpret_cast<uint64_t>(records.back().at());
    std::memcpy(addresses.at(expert * 8), &address, 8);
  }
  const int64_t chosen = 1 + below(4);
  Memory index(tokens * chosen * 8);
  for (int64_t i = 0; i < tokens * chosen; ++i) {
    const int64_t expert = below(kExperts + 2) - 1;  // -1 and kExperts are no experts
    std::memcpy(index.at(i * 8), &expert, 8);
  }
  const Memory x = some_numbers(tokens * hidden, number);
  const int64_t size = tokens * chosen * hidden * bytes_of(number);
  const auto run = [&](void* context, Memory& out) {
    expertune_experts(context, &spec, reinterpret_cast<const uint64_t*>(addresses.at()), kExperts,
                      x.at(), static_cast<int64_t>(number), tokens, chosen,
                      reinterpret_cast<const int64_t*>(index.at()), out.at());
  };
  Memory expected(size);
  run(sides.reference, expected);
  each_side(sides, [&](const Side& side) {
    Memory found(size);
    run(side.context, found);
    int64_t where;
    if (same(expected, found, number, &where)) return;
    differs(side, described("experts", spec.down, number, tokens) + ", gate form " +
                      std::to_string(form) + ", activation " + std::to_string(spec.gate.activation) +
                      ", interleaved " + std::to_string(spec.gate.interleaved), where);
  });
  // places without an expert are left as they are
  for (int64_t i = 0; i < tokens * chosen; ++i) {
    int64_t expert;
    uint64_t address = 0;
    std::memcpy(&expert, index.at(i * 8), 8);
    if (expert >= 0 && expert < kExperts) std::memcpy(&address, addresses.at(expert * 8), 8);
    const uint8_t* place = expected.at(i * hidden * bytes_of(number));
    if (address == 0 && (*place != 0x5a || place[hidden * bytes_of(number) - 1] != 0x5a)) {
      std::printf("a place without an expert was written: number %lld\n", static_cast<long long>(i));
      std::exit(1);
    }
  }
}

void check_combine(const Sides& sides, Number number, int64_t tokens, int64_t columns) {
  const int64_t chosen = 1 + below(9);
  const auto weights_number = static_cast<Number>(below(3));
  const Memory y = some_numbers(tokens * chosen * columns, number);
  const Memory weights = some_numbers(tokens * chosen, weights_number);
  const auto run = [&](void* context, Memory& out) {
    expertune_combine(context, static_cast<int64_t>(number), y.at(), weights.at(),
                      static_cast<int64_t>(weights_number), tokens, chosen, columns, out.at());
  };
  Memory expected(tokens * columns * bytes_of(number));
  run(sides.reference, expected);
  each_side(sides, [&](const Side& side) {
    Memory found(expected.size());
    run(side.context, found);
    int64_t where;
    if (!same(expected, found, number, &where)) {
      differs(side, std::string("sums of experts, ") + kNumberNames[static_cast<int>(number)], where);
    }
  });
}

void check_route(const Sides& sides, Number number, int64_t tokens, int64_t columns) {
  const int64_t experts = 1 + below(70), chosen = 1 + below(std::min<int64_t>(experts, 9));
  const auto weights_number = below(2) ? number : Number::kFloat32;
  Router router = {};
  router.block.matrix = {static_cast<int64_t>(below(2) ? Format::kBf16 : Format::kFp16), experts,
                         columns, 0, 0, 0, 0, 0, -1, 0};
  Memory record(lay_out(router.block.matrix, 0, 1, static_cast<int>(below(4)) - 1));
  fill(router.block.matrix, record.at(), false);
  router.block.record = reinterpret_cast<uint64_t>(record.at());
  router.form = below(2), router.chosen = chosen, router.normalized = below(2);
  router.weights_number = static_cast<int64_t>(weights_number);
  const Memory x = some_numbers(tokens * columns, number);
  struct Found {
    Memory logits, weights, index;
  };
  const auto run = [&](void* context) {
    Found found = {Memory(tokens * experts * bytes_of(number)),
                   Memory(tokens * chosen * bytes_of(weights_number)), Memory(tokens * chosen * 8)};
    expertune_route(context, &router, x.at(), static_cast<int64_t>(number), tokens,
                    found.logits.at(), found.weights.at(),
                    reinterpret_cast<int64_t*>(found.index.at()));
    return found;
  };
  const Found expected = run(sides.reference);
  each_side(sides, [&](const Side& side) {
    const Found found = run(side.context);
    int64_t where = 0;
    if (!same(expected.logits, found.logits, number, &where) ||
        !same(expected.weights, found.weights, weights_number, &where) ||
        std::memcmp(expected.index.at(), found.index.at(), found.index.size()) != 0) {
      differs(side, described("router", router.block.matrix, number, tokens), where);
    }
  });
}

int64_t group_for(int64_t format) {
  const auto own = static_cast<Format>(format);
  return has_zeros(own) ? 16 : own == Format::kMxfp4 ? 32 : 64;
}

// Smaller scales, so that nothing overflows from layer to layer.
void calm(const Matrix& m, uint8_t* record) {
  uint8_t* scales = record + m.scales_offset;
  const auto format = static_cast<Format>(m.format);
  for (int64_t i = 0; i < scale_bytes(m); ++i) {
    if (format == Format::kMxfp4) scales[i] = static_cast<uint8_t>(116 + below(4));
  }
  for (int64_t i = 0; format == Format::kFp8 && i < scale_bytes(m) / 4; ++i) {
    const float scale = some_value() / 512;
    std::memcpy(scales + 4 * i, &scale, 4);
  }
}

// A matrix without a bias and its record, kept in `records`.
expertune::Block some_block(int64_t format, int64_t rows, int64_t columns, std::vector<Memory>& records) {
  Matrix m = {format, rows, columns, group_for(format), 16, 0, 0, 0, -1, below(2) * 8};
  records.emplace_back(lay_out(m, 0, 1, -1));
  fill(m, records.back().at(), false);
  calm(m, records.back().at());
  return {m, reinterpret_cast<uint64_t>(records.back().at())};
}

uint64_t norm_weight(int64_t count, Number number, std::vector<Memory>& records) {
  records.push_back(some_numbers(count, number));
  return reinterpret_cast<uint64_t>(records.back().at());
}

// Three decoder layers with keys and values of three tokens; the last one may lack a record.
void check_layers(const Sides& sides, int64_t format, Number number, int64_t tokens) {
  constexpr int64_t kLayers = 3, kExperts = 6, kRoom = 5;
  const int64_t key_heads = 1 + below(2), heads = key_heads * (1 + below(2)), width = 32;
  const int64_t hidden = 32 + 32 * below(2), inner = 32, chosen = 1 + below(4);
  const int64_t rotated = below(2) ? width : width / 2, size = bytes_of(number);
  const int64_t sixteen = static_cast<int64_t>(number == Number::kFp16 ? Format::kFp16 : Format::kBf16);
  std::vector<Memory> records;
  records.reserve(200);  // addresses stay
  Experts spec = {};
  spec.gate = some_gate(static_cast<int64_t>(GateForm::kProduct));
  const int64_t group = group_for(format);
  const int64_t rounded = below(2) * 8;
  spec.up = {format, 2 * inner, hidden, group, 16, 0, 0, 0, -1, rounded};
  spec.down = {format, hidden, inner, group, 16, 0, 0, 0, -1, rounded};
  const int64_t record_size = lay_out(spec.down, lay_out(spec.up, 0, 1, -1), 1, -1);
  std::vector<Front> fronts(kLayers);
  Memory addresses(kLayers * kExperts * 8);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    Front& front = fronts[layer];
    Step& step = front.step;
    const auto whole = [&](int64_t rows, int64_t columns) {
      Linear linear = {};
      linear.count = 1, linear.rows = rows;
      linear.blocks[0] = some_block(format, rows, columns, records);
      return linear;
    };
    step.query = whole(heads * width, hidden), step.key = whole(key_heads * width, hidden);
    step.value = whole(key_heads * width, hidden), step.output = whole(hidden, heads * width);
    step.number = static_cast<int64_t>(number), step.width = width, step.rotated = rotated;
    step.heads = heads, step.key_heads = key_heads, step.scale = 0.25;
    step.clip = below(2) ? 0.0 : 1.0;
    step.query_norm_width = below(2) ? width : 0, step.key_norm_width = step.query_norm_width;
    step.query_norm = norm_weight(width, number, records);
    step.key_norm = norm_weight(width, number, records);
    step.query_epsilon = step.key_epsilon = front.input_epsilon = front.post_epsilon = 1e-6;
    front.input_norm = norm_weight(hidden, number, records);
    front.post_norm = norm_weight(hidden, number, records);
    front.router = {some_block(sixteen, kExperts, hidden, records), below(2), chosen, below(2),
                    below(2) ? static_cast<int64_t>(number) : 0};
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      records.emplace_back(record_size);
      fill(spec.up, records.back().at(), false);
      fill(spec.down, records.back().at(), false);
      calm(spec.up, records.back().at());
      calm(spec.down, records.back().at());
      const bool missing = layer == kLayers - 1 && below(4) == 0;
      const uint64_t address = missing ? 0 : reinterpret_cast<uint64_t>(records.back().at());
      std::memcpy(addresses.at((layer * kExperts + expert) * 8), &address, 8);
    }
  }
  const Memory x = some_numbers(tokens * hidden, number);
  const Memory cosine = some_numbers(tokens * rotated, number);
  const Memory sine = some_numbers(tokens * rotated, number);
  const Memory held = some_numbers(kLayers * 2 * tokens * key_heads * kRoom * width, number);
  const int64_t one = tokens * key_heads * kRoom * width * size;
  std::vector<int64_t> positions;
  for (int64_t token = 0; token < tokens; ++token) positions.push_back(below(kRoom));
  struct Found {
    int64_t reached;
    Memory states, first, second, index;
  };
  const auto run = [&](void* context) {
    Found found = {0, Memory(held.size()), Memory(x.size()), Memory(x.size()),
                   Memory(kLayers * tokens * chosen * 8)};
    std::memcpy(found.states.at(), held.at(), held.size());
    Memory normed(x.size()), logits(tokens * kExperts * size), weights(tokens * chosen * 4);
    std::vector<Store> stores;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const auto keys = reinterpret_cast<uint64_t>(found.states.at(2 * layer * one));
      for (int64_t token = 0; token < tokens; ++token) {
        const int64_t first = token * key_heads * kRoom * width * size;
        stores.push_back({keys + first, keys + one + first, kRoom, positions[token]});
      }
    }
    const auto place = [](const auto* at) { return reinterpret_cast<uint64_t>(at); };
    Layers layers = {kLayers, 0, tokens, kExperts, place(fronts.data()), place(&spec),
                     place(addresses.at()), place(stores.data()), place(x.at()),
                     place(cosine.at()), place(sine.at()), tokens == 1 ? 0 : rotated,
                     {place(found.first.at()), place(found.second.at())}, place(normed.at()),
                     place(logits.at()), place(weights.at()), place(found.index.at()), 0};
    found.reached = expertune_layers(context, &layers);
    return found;
  };
  const Found expected = run(sides.reference);
  each_side(sides, [&](const Side& side) {
    const Found found = run(side.context);
    int64_t where = found.reached;
    if (found.reached == expected.reached && same(expected.states, found.states, number, &where) &&
        same(expected.first, found.first, number, &where) &&
        same(expected.second, found.second, number, &where) &&
        std::memcmp(expected.index.at(), found.index.at(), found.index.size()) == 0) {
      return;
    }
    differs(side, described("decoder layers", spec.down, number, tokens), where);
  });
}

// ---- which shapes ---------------------------------------------------------------------------------

struct Shape {
  int64_t rows, columns, group, block_rows;
};

std::vector<Shape> shapes_of(Format format) {
  switch (format) {
    case Format::kInt4:
    case Format::kUint4:
    case Format::kInt3:
    case Format::kInt2:
      return {{1, 16, 16, 1},   {17, 272, 16, 1},  {50, 560, 16, 1},   {3, 32, 32, 1},
              {33, 288, 32, 1}, {19, 64, 64, 1},   {16, 704, 64, 1},   {5, 1088, 64, 1},
              {34, 128, 128, 1}, {2, 2304, 128, 1}};
    case Format::kMxfp4:
      return {{1, 32, 32, 1}, {17, 96, 32, 1}, {33, 128, 32, 1}, {50, 288, 32, 1}, {3, 608, 32, 1}};
    case Format::kFp8:
      return {{1, 1, 64, 16},   {17, 65, 64, 3},     {33, 200, 128, 16},
              {50, 300, 64, 16}, {130, 128, 128, 128}, {16, 127, 128, 128}};
    default:
      return {{1, 1, 1, 1},   {3, 15, 1, 1},   {17, 31, 1, 1},  {16, 32, 1, 1},   {33, 65, 1, 1},
              {50, 127, 1, 1}, {129, 64, 1, 1}, {300, 10, 1, 1}, {15, 200, 1, 1}};
  }
}

// Hidden and expert width for a group.
Shape experts_shape(Format format) {
  const bool groups = has_zeros(format);
  const int64_t group = groups ? int64_t{16} << below(4) : format == Format::kMxfp4 ? 32 : 64;
  if (!groups && format != Format::kMxfp4) return {30 + below(100), 20 + below(60), group, 16};
  const int64_t most = 256 / group;
  return {group * (1 + below(most)), group * (1 + below(most)), group, 16};
}

void check_all(const Sides& sides) {
  const int64_t token_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 66, 130};
  for (int64_t format = 0; format < kFormats; ++format) {
    for (int number = 0; number < 3; ++number) {
      const auto own = static_cast<Number>(number);
      for (const Shape& s : shapes_of(static_cast<Format>(format))) {
        Matrix m = {format, s.rows, s.columns, s.group, s.block_rows, 0, 0, 0, -1, 0};
        for (int64_t tokens : token_counts) {
          for (int64_t bits : {0, 8}) {
            m.activation_bits = bits;
            if (bits != 0 && rounded_columns(m) == 0) continue;
            if (tokens * s.rows * s.columns < 1'000'000 && is_next()) {
              check_linear(sides, m, own, tokens);
            }
          }
        }
        if (order_of(static_cast<Format>(format)) != Order::kPlain && is_next()) {
          check_plain(sides, m, own);
        }
      }
      for (int64_t form = 0; form < 6; ++form) {
        for (int64_t tokens : {1, 2, 7, 70}) {
          const Shape s = experts_shape(static_cast<Format>(format));
          if (is_next()) {
            check_experts(sides, format, s.group, s.rows, s.columns, form, own, tokens);
          }
        }
      }
    }
  }
  for (int number = 0; number < 3; ++number) {
    const auto own = static_cast<Number>(number);
    for (int64_t length = 1; length < 70; length += 3) {
      for (int64_t width : {1, 15, 16, 64, 70, 130}) {
        if (is_next()) check_attend(sides, own, length, width, length % 2 == 0);
      }
      for (int64_t tokens : {1, 7}) {
        if (is_next()) check_norm(sides, own, tokens, length);
        if (is_next()) check_round(sides, own, tokens, length, 16 << below(4));
        if (is_next()) check_combine(sides, own, tokens, length);
        if (is_next()) check_route(sides, own, tokens, length);
      }
    }
    check_norm(sides, own, 9, 5000);
    check_combine(sides, own, 9, 5000);
    for (int64_t format = 0; format < kFormats; ++format) {
      if (order_of(static_cast<Format>(format)) == Order::kPlain) continue;
      for (int64_t tokens : {1, 2, 5}) {
        if (is_next()) check_layers(sides, format, own, tokens);
      }
    }
  }
  for (int64_t form = 0; form < 6; ++form) {
    for (int number = 0; number < 3; ++number) {
      for (int64_t count = 1; count < 80; ++count) {
        if (is_next()) check_gate(sides, form, static_cast<Number>(number), count);
      }
    }
  }
}

// ---- the pool -------------------------------------------------------------------------------------

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("%s\n", what);
  std::exit(1);
}

// Every item once, and what it wrote is seen after the run.
void many_runs(Pool& pool, int runs, bool alone) {
  std::vector<int64_t> written;
  for (int run = 0; run < runs; ++run) {
    const int64_t count = run % 23;
    written.assign(count, -1);
    pool.each(count, [&](int64_t item) { written[item] = item + run; });
    for (int64_t item = 0; item < count; ++item) {
      require(written[item] == item + run, "the pool lost or repeated an item");
    }
    if (alone && run % 97 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

void stress_pool() {
  for (int threads : kThreads) {
    for (int spin_us : {0, 20}) {
      Pool pool(threads, spin_us);
      many_runs(pool, 1000, true);
    }
  }
  Pool shared(3, 20);
  std::thread other([&] { many_runs(shared, 2000, false); });
  many_runs(shared, 2000, false);
  other.join();
  for (int i = 0; i < 150; ++i) {
    Pool brief(1 + i % 5, i % 3 * 10);
    if (i % 4 != 0) many_runs(brief, i % 7, false);
  }
}

// Two callers of one context at once.
void stress_callers() {
  const char* best = expertune_instruction_set(0);
  void* context = expertune_open(3, 20, best);
  void* reference = expertune_open(1, 0, "reference");
  Matrix m = {static_cast<int64_t>(Format::kInt4), 200, 128, 32, 1, 0, 0, 0, -1, 0};
  Memory record(lay_out(m, 0, 1, 1));
  fill(m, record.at(), false);
  const auto bf16 = static_cast<int64_t>(Number::kBf16);
  constexpr int64_t kTokens = 6;
  const Memory xs[2] = {some_numbers(kTokens * m.columns, Number::kBf16),
                       some_numbers(kTokens * m.columns, Number::kBf16)};
  std::atomic<int> wrong{0};
  auto call = [&](const Memory& x) {
    Memory expected(kTokens * m.rows * 2);
    expertune_linear(reference, &m, record.at(), x.at(), bf16, kTokens, m.columns, expected.at(),
                     m.rows);
    for (int i = 0; i < 200; ++i) {
      Memory found(kTokens * m.rows * 2);
      expertune_linear(context, &m, record.at(), x.at(), bf16, kTokens, m.columns, found.at(),
                       m.rows);
      int64_t where;
      if (!same(expected, found, Number::kBf16, &where)) wrong.fetch_add(1);
    }
  };
  std::thread other([&] { call(xs[1]); });
  call(xs[0]);
  other.join();
  require(wrong.load() == 0, "two callers at once got wrong numbers");
  require(expertune_read_seconds(context, record.at(), record.size()) >= 0, "no time was measured");
  expertune_close(context);
  expertune_close(reference);
}

}  // namespace

int main(int count, char** words) {
  std::signal(SIGSEGV, touched_outside);
  std::signal(SIGBUS, touched_outside);
  if (count > 1) every = std::max(1, std::atoi(words[1]));
  Sides sides;
  check_all(sides);
  stress_pool();
  stress_callers();
  std::printf("equal to the reference in %lld cases:", static_cast<long long>(cases));
  for (const std::string& name : sides.names) std::printf(" %s", name.c_str());
  std::printf("\n");
  return 0;
}
