// What a product needs to know of a matrix and of activations. Letters: T tokens, N rows, K columns.
#pragma once
#include <cstdint>
#include <cstring>

namespace expertune {

// The numbers are part of the interface with engine/native/library.py.
enum class Format : int32_t {
  kBf16 = 0,        // [N, K]
  kFp16 = 1,        // [N, K]
  kInt8 = 2,        // codes [N, K], one bf16 scale a row
  kInt4 = 3,        // codes of 4 bits along K, bf16 (scale, zero) a group: [N, G, 2]
  kInt3 = 4,        // the same with 3 bits: 8 codes in 3 bytes, the first in the lowest bits
  kInt2 = 5,        // the same with 2 bits
  kMxfp4 = 6,       // two e2m1 codes a byte, e8m0 scales [N, K/32]
  kFp8 = 7,         // e4m3 codes [N, K], float32 scales by block of rows and columns
  kBf16Columns = 8, // [K, N]: stored transposed
  kFp16Columns = 9, // [K, N]
  kUint4 = 10,      // codes of 4 bits along K less a zero point; one word a group: [N, G]
};

enum class Number : int32_t { kFloat32 = 0, kBf16 = 1, kFp16 = 2 };

// One matrix. Passed from Python: plain 8-byte fields only.
struct Matrix {
  int64_t format;
  int64_t rows;
  int64_t columns;
  int64_t group;          // of kInt4..kInt2 and kUint4; columns of a block of kFp8
  int64_t block_rows;     // rows of a block of kFp8
  int64_t codes_offset;   // bytes from the record's start
  int64_t scales_offset;  // the same; unused at 16 bits
  int64_t bias_offset;    // the same
  int64_t bias_number;    // the type of the bias; -1: there is none
  int64_t activation_bits;  // 8: activations are rounded to whole numbers (rounding.h); 0: they are not
};

// The order in which products visit the columns, and so the order of `Prepared::values`.
enum class Order : int32_t { kPairs32 = 0, kNatural64 = 1, kPacked128 = 2, kPlain = 3, kQuads64 = 4 };

constexpr int kLanes = 16;
constexpr int kPackedColumns = 128;
constexpr int kStepOfPacked[8] = {4, 0, 5, 1, 6, 2, 7, 3};  // code of a lane's 8, by step

static inline Order order_of(Format format) {
  switch (format) {
    case Format::kBf16: return Order::kPairs32;
    case Format::kFp16:
    case Format::kInt8:
    case Format::kFp8: return Order::kNatural64;
    case Format::kBf16Columns:
    case Format::kFp16Columns: return Order::kPlain;
    default: return Order::kPacked128;
  }
}

// Columns that share a scale of rounded activations: those of a group of codes, 64 where a row has one
// scale. 0: they are not rounded, or the format's weights are no whole numbers.
static inline int64_t rounded_columns(const Matrix& m) {
  if (m.activation_bits != 8) return 0;
  switch (static_cast<Format>(m.format)) {
    case Format::kInt8: return 64;
    case Format::kMxfp4: return 32;
    case Format::kInt4:
    case Format::kInt3:
    case Format::kInt2:
    case Format::kUint4: return m.group;
    default: return 0;
  }
}

static inline Order order_of(const Matrix& m) {
  const auto format = static_cast<Format>(m.format);
  return format == Format::kInt8 && rounded_columns(m) != 0 ? Order::kQuads64 : order_of(format);
}

static inline int64_t block_columns(Order order) {
  switch (order) {
    case Order::kPairs32: return 32;
    case Order::kQuads64:
    case Order::kNatural64: return 64;
    case Order::kPacked128: return kPackedColumns;
    default: return 1;
  }
}

static inline int64_t row_bytes(Format format, int64_t columns) {
  switch (format) {
    case Format::kBf16:
    case Format::kFp16: return columns * 2;
    case Format::kInt8:
    case Format::kFp8: return columns;
    case Format::kInt3: return columns * 3 / 8;
    case Format::kInt2: return columns / 4;
    default: return columns / 2;
  }
}

static inline bool has_zeros(Format format) {
  return format == Format::kInt4 || format == Format::kInt3 || format == Format::kInt2 ||
         format == Format::kUint4;
}

// Activations in the order of a format, padded with zeros to whole blocks.
struct Prepared {
  int64_t tokens;
  int64_t blocks;
  int64_t width;         // padded columns
  const float* values;   // [T, width], in the format's order; null if there are pairs
  const uint16_t* pairs; // bf16 [T, width], in the order of bf16 pair products; null: not exact in bf16
  const float* sums;     // [T, sums_width]: of each group of columns; for formats with zeros only
  int64_t sums_width;    // groups, padded to a multiple of 16 with zeros
  // Of rounded activations: what one of their numbers counts, by group of columns, [T, steps_width];
  // null: they are not rounded. For products of bytes, in place of values: the numbers, [T, width] in
  // the order of put_bytes (workspace.h), and what their sums begin with, [T, blocks, 16].
  const float* steps;
  int64_t steps_width;
  const int8_t* bytes;
  const int32_t* starts;
  const int32_t* chosen; // the rows of the arrays above that are meant, [T]; null: all in order

  int64_t at(int64_t token) const { return chosen == nullptr ? token : chosen[token]; }
};

static inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static inline float from_bf16(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// Round to nearest, ties to even; not-a-number stays one.
static inline uint16_t to_bf16(float value) {
  uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float from_fp16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -value : value;
  }
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (mantissa << 13));
  return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

static inline uint16_t to_fp16(float value) {
  const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (rest < 0x38800000u) {  // below 2^-14: the sum's last bits are the rounded mantissa
    return static_cast<uint16_t>(sign | (to_bits(from_bits(rest) + 0.5f) & 0x7ffu));
  }
  return static_cast<uint16_t>(sign | ((rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13));
}

// e4m3 without infinities; 0x7f and 0xff are not numbers.
static inline float from_fp8(uint8_t code) {
  const uint32_t exponent = (code >> 3) & 0xfu, mantissa = code & 7u;
  float value;
  if ((code & 0x7fu) == 0x7fu) value = from_bits(0x7fc00000u);
  else if (exponent == 0) value = static_cast<float>(mantissa) * 0.001953125f;  // 2^-9
  else value = from_bits(((exponent + 120) << 23) | (mantissa << 20));
  return code & 0x80u ? -value : value;
}

// Half of 2^(e - 127), since e2m1 codes are decoded to twice their value. Below 2^-126: zero.
static inline float half_e8m0(uint8_t exponent) {
  if (exponent == 255) return from_bits(0x7fc00000u);
  return exponent < 2 ? 0.0f : from_bits(static_cast<uint32_t>(exponent - 1) << 23);
}

// The word of a group of kUint4: the upper 19 bits of its scale as float32, which hold every bf16 and
// fp16 number, and in the lowest 5 its zero point, 0 to 16.
constexpr uint32_t kScaleBits = 0xffffe000u, kPointBits = 31u;

static inline float word_scale(uint32_t word) { return from_bits(word & kScaleBits); }

// What is added to (code - 8) * scale: exact, as it has at most 15 bits.
static inline float word_zero(uint32_t word) {
  return word_scale(word) * static_cast<float>(8 - static_cast<int32_t>(word & kPointBits));
}

constexpr int8_t kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static inline float from_number(const void* at, Number number, int64_t index) {
  if (number == Number::kFloat32) return static_cast<const float*>(at)[index];
  const uint16_t half = static_cast<const uint16_t*>(at)[index];
  return number == Number::kBf16 ? from_bf16(half) : from_fp16(half);
}

static inline float rounded(float value, Number number) {
  if (number == Number::kFloat32) return value;
  return number == Number::kBf16 ? from_bf16(to_bf16(value)) : from_fp16(to_fp16(value));
}

static inline void put_number(void* at, Number number, int64_t index, float value) {
  if (number == Number::kFloat32) static_cast<float*>(at)[index] = value;
  else static_cast<uint16_t*>(at)[index] =
      number == Number::kBf16 ? to_bf16(value) : to_fp16(value);
}

struct Gate;
struct QuantizeJob;

// The keys and values that one query attends to. Rows lie key_stride and value_stride numbers apart.
struct Attended {
  const void* keys;
  const void* values;
  int64_t length;
  int64_t key_width;
  int64_t value_width;
  int64_t key_stride;
  int64_t value_stride;
  const float* mask;  // added to the scores, [length]; null: none
};

// count numbers from `index` on as float32; below 2^-126 they count as zero, as some instructions
// take them.
static inline void read_numbers(const void* at, Number number, int64_t index, int64_t count,
                                float* out) {
  const auto* halves = static_cast<const uint16_t*>(at) + index;
  const auto flushed = [](float x) { return (to_bits(x) & 0x7f800000u) == 0 ? 0.0f : x; };
  switch (number) {
    case Number::kFloat32: {
      const auto* floats = static_cast<const float*>(at) + index;
      for (int64_t i = 0; i < count; ++i) out[i] = flushed(floats[i]);
      return;
    }
    case Number::kBf16:
      for (int64_t i = 0; i < count; ++i) out[i] = flushed(from_bf16(halves[i]));
      return;
    case Number::kFp16:
      for (int64_t i = 0; i < count; ++i) out[i] = from_fp16(halves[i]);
  }
}

// Rounded to `number` where they lie.
static inline void round_numbers(float* values, Number number, int64_t count) {
  if (number == Number::kBf16) {
    for (int64_t i = 0; i < count; ++i) values[i] = from_bf16(to_bf16(values[i]));
  } else if (number == Number::kFp16) {
    for (int64_t i = 0; i < count; ++i) values[i] = from_fp16(to_fp16(values[i]));
  }
}

// float32 values, rounded to `number`, into places from `index` on.
static inline void write_numbers(void* at, Number number, int64_t index, int64_t count,
                                 const float* values) {
  auto* halves = static_cast<uint16_t*>(at) + index;
  if (number == Number::kBf16) {
    for (int64_t i = 0; i < count; ++i) halves[i] = to_bf16(values[i]);
  } else if (number == Number::kFp16) {
    for (int64_t i = 0; i < count; ++i) halves[i] = to_fp16(values[i]);
  } else {
    std::memcpy(static_cast<float*>(at) + index, values, count * sizeof(float));
  }
}

// Where one token's activations go.
struct Arranged {
  Order order;
  int64_t rounded;  // columns that are rounded together; 0: none are
  bool nibbles;     // two codes lie in a byte
  int32_t offset;   // byte_offset of the codes
  float* values;    // null if there are pairs or bytes
  uint16_t* pairs;
  int8_t* bytes;
  int32_t* starts;
  float* steps;
  float* eights;    // sums of eight columns; null: nobody needs them
};

// The products of one instruction set.
struct Products {
  const char* name;
  // y[t * stride + n - first] = row n of the matrix times token t, for rows first..end.
  void (*rows)(const Matrix& matrix, const uint8_t* record, int64_t first, int64_t end,
               const Prepared& x, float* y, int64_t stride);
  // Whether `rows` reads `Prepared::pairs` for this format.
  bool (*wants_pairs)(Format format);
  // Whether `rows` reads `Prepared::bytes` for this matrix, whose activations are rounded.
  bool (*wants_bytes)(const Matrix& matrix);
  // Plain weights of rows first..end as bf16 or float32 [end - first, K]; [K, N] formats are not taken.
  void (*plain)(const Matrix& matrix, const uint8_t* record, int64_t first, int64_t end,
                void* out, Number number);
  // out[i] = the gate of g[i] and u[i], which are rounded to `number` already.
  void (*gate)(const Gate& gate, Number number, const float* g, const float* u, float* out,
               int64_t count);
  // out [value_width] = the values, weighted by the softmax of query [key_width] times keys. scores:
  // scratch [length].
  void (*attend)(const Attended& at, Number number, const float* query, float* scores, float* out);
  // out = x / sqrt(mean(x^2) + epsilon), rounded to `number`, times weight, rounded again.
  // All three [count] of `number`.
  void (*norm)(Number number, const void* x, const void* weight, int64_t count, float epsilon,
               void* out);
  // head [2 * half] in place: halves a, b -> a * cosine - b * sine, b * cosine + a * sine, each product
  // rounded to `number`. cosine, sine: [2 * half].
  void (*rotate)(Number number, void* head, const float* cosine, const float* sine, int64_t half);
  // out [columns] = the rows of y [count, columns], each times its weight and rounded to `number`,
  // added one after the other in float32.
  void (*combine)(Number number, const void* y, const float* weights, int64_t count,
                  int64_t columns, void* out);
  // count numbers of x from `index` on become the columns from `first` on: a multiple of 8, and of the
  // columns that are rounded together. So is count, but at the end of a row.
  void (*arrange)(const Arranged& to, Number number, const void* x, int64_t index, int64_t first,
                  int64_t count);
  // x [columns] -> out [columns], both of `number`, rounded to 8 bits in groups of this many columns.
  // scratch: 2 * group floats.
  void (*round)(Number number, const void* x, int64_t columns, int64_t group, float* scratch,
                void* out);
  // Rows first..end of a job. scratch: quantize_scratch(job) floats.
  void (*quantize)(const QuantizeJob& job, int64_t first, int64_t end, float* scratch);
};

const Products& reference_products();
const Products* avx2_products();    // null: not compiled for this machine
const Products* avx512_products();
const Products* avx512_bf16_products();
const Products* neon_products();

}  // namespace expertune
