// The products, written once for every instruction set of simd.h. See reference.cpp for the order of
// sums that each of them keeps.
#pragma once
#include "gate.h"
#include "simd.h"

#include "arrange.h"

namespace expertune {
namespace {

inline const uint8_t* row_of(const Matrix& m, const uint8_t* record, int64_t row) {
  return record + m.codes_offset + row * row_bytes((Format)m.format, m.columns);
}

// Rows are read one after the other, as one stream: several at once defeat the processor's own
// prefetching (measured: 13 instead of 24 GB/s a thread with four rows of one token, 16 instead of 25
// with two rows of two). Their lanes are added 16 rows at a time. A tile is R rows times T tokens.

// Packed codes are asked for this many bytes ahead: 20 instead of 16 GB/s from pages of 4 kB, which
// the processor's own prefetching does not cross; from huge pages it changes little.
constexpr int kAhead = 4096;

// The sums of a tile stay in registers only where all that adds to them is one function.
#define EXPERTUNE_WHOLE inline __attribute__((always_inline))
#define EXPERTUNE_UNROLL _Pragma("GCC unroll 8")

// ---- codes of 4, 3 and 2 bits, and mxfp4: blocks of 128 columns, eight codes a lane ---------------

// GROUPS: groups a block with a scale and a zero each; 0: mxfp4, four groups without zeros. WORDS: they
// lie in one word a group.
template <int BITS, int GROUPS, bool WORDS = false>
struct PackedTile {
  static constexpr bool kE2m1 = GROUPS == 0;
  static constexpr int kGroups = kE2m1 ? 4 : GROUPS;
  static constexpr int kCodeBytes = kPackedColumns * BITS / 8;
  static constexpr int kBlocksOfScales = kLanes / kGroups;  // blocks that 16 scales serve

  static Scales scales(const uint8_t* p, int64_t group, int64_t groups) {
    const int64_t count = groups - group < kLanes ? groups - group : kLanes;
    if constexpr (kE2m1) return e8m0_scales(p + group, count);
    else if constexpr (WORDS) return word_scales(p + 4 * group, count);
    else return pair_scales(p + 4 * group, count);
  }

  template <int STEP, int R, int T>
  static EXPERTUNE_WHOLE void step(const W (&words)[R], Table codebook, const float* const (&x)[T],
                                   V (&sum)[R][T]) {
    constexpr int kNumber = STEP % 2 == 0 ? 4 + STEP / 2 : STEP / 2;
    V weight[R];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) weight[r] = code<BITS, kE2m1, kNumber>(words[r], codebook);
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) {
      const V value = load(x[t] + STEP * kLanes);
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) sum[r][t] = fma(weight[r], value, sum[r][t]);
    }
  }

  template <int R, int T>
  static EXPERTUNE_WHOLE void block(const uint8_t* const (&codes)[R], Table codebook,
                                    const float* const (&x)[T], V (&sum)[R][T]) {
    W words[R];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) words[r] = kept(packed<BITS>(codes[r]));
    step<0, R, T>(words, codebook, x, sum);
    step<1, R, T>(words, codebook, x, sum);
    step<2, R, T>(words, codebook, x, sum);
    step<3, R, T>(words, codebook, x, sum);
    step<4, R, T>(words, codebook, x, sum);
    step<5, R, T>(words, codebook, x, sum);
    step<6, R, T>(words, codebook, x, sum);
    step<7, R, T>(words, codebook, x, sum);
  }

#if defined(EXPERTUNE_BF16)
  // Two codes of a lane at once: these products add the upper of a pair first, then the lower, each
  // in one fused step. Codes 0 to 3 lie in the lower half of a lane.
  template <int STEP, int R, int T>
  static EXPERTUNE_WHOLE void pair_step(const W (&words)[R], __m512i codebook,
                                        const uint16_t* const (&x)[T], V (&sum)[R][T]) {
    __m512i weight[R];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      weight[r] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words[r].a, BITS * STEP), codebook);
    }
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) {
      const __m512i value = _mm512_loadu_si512(x[t] + STEP * 2 * kLanes);
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        sum[r][t].a = _mm512_dpbf16_ps(sum[r][t].a, (__m512bh)weight[r], (__m512bh)value);
      }
    }
  }

  template <int R, int T>
  static EXPERTUNE_WHOLE void block(const uint8_t* const (&codes)[R], __m512i codebook,
                                    const uint16_t* const (&x)[T], V (&sum)[R][T]) {
    W words[R];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      words[r] = kept(packed<BITS>(codes[r]));
      if constexpr (BITS != 4) {
        const __m512i upper = _mm512_slli_epi32(words[r].a, 16 - 4 * BITS);
        words[r].a = _mm512_mask_blend_epi16(0xaaaaaaaa, words[r].a, upper);
      }
    }
    pair_step<0, R, T>(words, codebook, x, sum);
    pair_step<1, R, T>(words, codebook, x, sum);
    pair_step<2, R, T>(words, codebook, x, sum);
    pair_step<3, R, T>(words, codebook, x, sum);
  }

  static inline __m512i pair_table() {
    alignas(64) uint16_t values[32];
    for (int i = 0; i < 32; ++i) {
      const int code = i & ((1 << BITS) - 1);
      values[i] = to_bf16((float)(kE2m1 ? kTwiceE2m1[code] : code - 8));
    }
    return _mm512_load_si512(values);
  }
#endif

  // total[r][t] += scale of row r times what a block of its codes gives for token t. S: 1, or T if
  // scales differ by token.
  template <int R, int T, int S, class X, class Codebook>
  static EXPERTUNE_WHOLE void add_block(const uint8_t* const (&codes)[R], Codebook codebook,
                                        const X* const (&x)[T],
                                        const Spread<kGroups> (&spread)[R][S], int number,
                                        V (&total)[R][T]) {
    V sum[R][T];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) sum[r][t] = zero();
    }
    block<R, T>(codes, codebook, x, sum);
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      V scale = spread[r][0].of(number);
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) {
        if (S > 1 && t > 0) scale = spread[r][S > 1 ? t : 0].of(number);
        total[r][t] = fma(scale, sum[r][t], total[r][t]);
      }
    }
  }

  // A row's scales for tokens whose activations are rounded: times what one of their numbers counts,
  // which is a power of two.
  template <int T>
  static EXPERTUNE_WHOLE void spread_steps(V scales, const Prepared& x, int64_t token,
                                           int64_t group, Spread<kGroups> (&out)[T]) {
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) {
      const float* steps = x.steps + x.at(token + t) * x.steps_width + group;
      out[t] = Spread<kGroups>(mul(scales, load(steps)));
    }
  }

  // X: float, or uint16_t for pairs of bf16. S: T if activations are rounded, else 1.
  template <int S, int R, int T, class X, class Codebook>
  static EXPERTUNE_WHOLE void sum_blocks(const Matrix& m, const uint8_t* (&codes)[R],
                                         const uint8_t* const (&own_scales)[R], Codebook codebook,
                                         const Prepared& prepared, int64_t token, const X* (&x)[T],
                                         V (&total)[R][T]) {
    const int64_t groups = m.columns / (kE2m1 ? 32 : m.group);
    const int64_t whole = m.columns / kPackedColumns;
    int64_t number = 0;
    for (int64_t group = 0; group < groups; group += kLanes) {
      Spread<kGroups> spread[R][S];
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        const V own = scales_of(scales(own_scales[r], group, groups));
        if (prepared.steps == nullptr) spread[r][0] = Spread<kGroups>(own);
        else spread_steps<S>(own, prepared, token, group, spread[r]);
      }
      const int64_t left = whole - number;
      const int end = (int)(left < kBlocksOfScales ? left : kBlocksOfScales);
      for (int i = 0; i < end; ++i) {
        EXPERTUNE_UNROLL
        for (int r = 0; r < R; ++r) __builtin_prefetch(codes[r] + kAhead, 0, 3);
        add_block<R, T, S>(codes, codebook, x, spread, i, total);
        EXPERTUNE_UNROLL
        for (int r = 0; r < R; ++r) codes[r] += kCodeBytes;
        EXPERTUNE_UNROLL
        for (int t = 0; t < T; ++t) x[t] += kPackedColumns;
      }
      number += end;
      if (end == kBlocksOfScales || m.columns % kPackedColumns == 0) continue;
      alignas(64) uint8_t rest[R][64] = {};  // the columns after the last whole block
      const uint8_t* ends[R];
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        std::memcpy(rest[r], codes[r], m.columns % kPackedColumns * BITS / 8);
        ends[r] = rest[r];
      }
      add_block<R, T, S>(ends, codebook, x, spread, end, total);
    }
  }

#if defined(EXPERTUNE_BYTES)
  template <int R, int T>
  static EXPERTUNE_WHOLE void add_byte_block(const uint8_t* const (&codes)[R],
                                             const int8_t* const (&x)[T],
                                             const int32_t* const (&starts)[T],
                                             const Spread<kGroups> (&spread)[R][T], int number,
                                             V (&total)[R][T]) {
    W own[R][2];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) code_bytes<BITS, kE2m1>(codes[r], own[r]);
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) {
      const W start = load_starts(starts[t]), first = load_bytes(x[t]), second = load_bytes(x[t] + 64);
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        const W sum = dot_codes(start, own[r], first, second);
        total[r][t] = fma(spread[r][t].of(number), numbers(sum), total[r][t]);
      }
    }
  }

  // As sum_blocks, for products of bytes.
  template <int R, int T>
  static EXPERTUNE_WHOLE void sum_bytes(const Matrix& m, const uint8_t* (&codes)[R],
                                        const uint8_t* const (&own_scales)[R], const Prepared& x,
                                        int64_t token, V (&total)[R][T]) {
    const int64_t groups = m.columns / (kE2m1 ? 32 : m.group), rest = m.columns % kPackedColumns;
    const int8_t* bytes[T];
    const int32_t* starts[T];
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) {
      const int64_t own = x.at(token + t);
      bytes[t] = x.bytes + own * x.width;
      starts[t] = x.starts + own * x.blocks * kLanes;
    }
    int64_t number = 0;
    for (int64_t group = 0; group < groups; group += kLanes) {
      Spread<kGroups> spread[R][T];
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        spread_steps<T>(scales_of(scales(own_scales[r], group, groups)), x, token, group, spread[r]);
      }
      const int64_t left = x.blocks - number;
      const int end = (int)(left < kBlocksOfScales ? left : kBlocksOfScales);
      for (int i = 0; i < end; ++i, ++number) {
        alignas(64) uint8_t last[R][64];
        const uint8_t* at[R];
        const bool whole = rest == 0 || number + 1 < x.blocks;
        EXPERTUNE_UNROLL
        for (int r = 0; r < R; ++r) {
          __builtin_prefetch(codes[r] + kAhead, 0, 3);
          at[r] = codes[r];
          codes[r] += kCodeBytes;
          if (whole) continue;
          std::memset(last[r], 0, sizeof(last[r]));
          std::memcpy(last[r], at[r], rest * BITS / 8);
          at[r] = last[r];
        }
        add_byte_block<R, T>(at, bytes, starts, spread, i, total);
        EXPERTUNE_UNROLL
        for (int t = 0; t < T; ++t) bytes[t] += kPackedColumns, starts[t] += kLanes;
      }
    }
  }
#endif

  // The lanes of R rows times T tokens.
  template <int R, int T>
  static EXPERTUNE_WHOLE void lanes(const Matrix& m, const uint8_t* record, int64_t row,
                                    const Prepared& x, int64_t token, V (&total)[R][T]) {
    const int64_t groups = m.columns / (kE2m1 ? 32 : m.group);
    const uint8_t *codes[R], *own_scales[R];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      codes[r] = record + m.codes_offset + (row + r) * (m.columns * BITS / 8);
      own_scales[r] = record + m.scales_offset + (row + r) * groups * (kE2m1 ? 1 : 4);
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) total[r][t] = zero();
    }
#if defined(EXPERTUNE_BYTES)
    if (x.bytes != nullptr) {
      sum_bytes<R, T>(m, codes, own_scales, x, token, total);
    } else
#endif
#if defined(EXPERTUNE_BF16)
    if (x.pairs != nullptr) {
      const uint16_t* values[T];
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) values[t] = x.pairs + x.at(token + t) * x.width;
      sum_blocks<1>(m, codes, own_scales, pair_table(), x, token, values, total);
    } else
#endif
    {
      const float* values[T];
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) values[t] = x.values + x.at(token + t) * x.width;
#if !defined(EXPERTUNE_BYTES)
      if (x.steps != nullptr) {
        sum_blocks<T>(m, codes, own_scales, table<BITS, kE2m1>(), x, token, values, total);
      } else
#endif
      sum_blocks<1>(m, codes, own_scales, table<BITS, kE2m1>(), x, token, values, total);
    }
    if constexpr (!kE2m1) {
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        V zeros[T];
        EXPERTUNE_UNROLL
        for (int t = 0; t < T; ++t) zeros[t] = zero();
        for (int64_t group = 0; group < groups; group += kLanes) {
          const V zero_points = zeros_of(scales(own_scales[r], group, groups));
          EXPERTUNE_UNROLL
          for (int t = 0; t < T; ++t) {
            const float* sums = x.sums + x.at(token + t) * x.sums_width + group;
            zeros[t] = fma(zero_points, load(sums), zeros[t]);
          }
        }
        EXPERTUNE_UNROLL
        for (int t = 0; t < T; ++t) total[r][t] = add(total[r][t], zeros[t]);
      }
    }
  }

  static inline float scaled(const Matrix&, const uint8_t*, int64_t, float sum) { return sum; }
};

// ---- weights of 16 and 8 bits ---------------------------------------------------------------------

struct PairsTile {
  template <int R, int T>
  static EXPERTUNE_WHOLE void lanes(const Matrix& m, const uint8_t* record, int64_t row,
                                    const Prepared& x, int64_t token, V (&total)[R][T]) {
    const uint8_t* at[R];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      at[r] = record + m.codes_offset + (row + r) * m.columns * 2;
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) total[r][t] = zero();
    }
    const int64_t whole = m.columns / 32;
    alignas(64) uint8_t end[R][64] = {};
    for (int64_t block = 0; block < x.blocks; ++block) {
      W words[R];
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        if (block == whole) {
          std::memcpy(end[r], at[r], (m.columns - whole * 32) * 2);
          at[r] = end[r];
        }
        words[r] = load_words(at[r]);
        at[r] += 64;
      }
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) {
        const int64_t place = x.at(token + t) * x.width + block * 32;
#if defined(EXPERTUNE_BF16)
        if (x.pairs != nullptr) {
          const __m512i value = _mm512_loadu_si512(x.pairs + place);
          EXPERTUNE_UNROLL
          for (int r = 0; r < R; ++r) {
            total[r][t].a =
                _mm512_dpbf16_ps(total[r][t].a, (__m512bh)words[r].a, (__m512bh)value);
          }
          continue;
        }
#endif
        const V first = load(x.values + place), second = load(x.values + place + kLanes);
        EXPERTUNE_UNROLL
        for (int r = 0; r < R; ++r) {
          total[r][t] = fma(as_floats(bf16_pairs_upper(words[r])), first, total[r][t]);
          total[r][t] = fma(as_floats(bf16_pairs_lower(words[r])), second, total[r][t]);
        }
      }
    }
  }

  static inline float scaled(const Matrix&, const uint8_t*, int64_t, float sum) { return sum; }
};

template <Format FORMAT>
inline V sixteen(const uint8_t* p) {
  if constexpr (FORMAT == Format::kFp16) return halves(p);
  else if constexpr (FORMAT == Format::kInt8) return bytes_signed(p);
  else return fp8s(p);
}

template <Format FORMAT>
struct NaturalTile {
  static constexpr bool kBlocked = FORMAT == Format::kFp8;
  static constexpr int kBytes = FORMAT == Format::kFp16 ? 2 : 1;

  template <int R, int T>
  static EXPERTUNE_WHOLE void lanes(const Matrix& m, const uint8_t* record, int64_t row,
                                    const Prepared& x, int64_t token, V (&total)[R][T]) {
    const uint8_t* at[R];
    const float* scales[R] = {};
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      at[r] = record + m.codes_offset + (row + r) * m.columns * kBytes;
      if constexpr (kBlocked) {
        const int64_t across = (m.columns + m.group - 1) / m.group;
        scales[r] = (const float*)(record + m.scales_offset) + (row + r) / m.block_rows * across;
      }
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) total[r][t] = zero();
    }
    const int64_t whole = m.columns / 64;
    alignas(64) uint8_t end[R][64 * kBytes] = {};
    const float* values[T];
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) values[t] = x.values + x.at(token + t) * x.width;
    for (int64_t block = 0; block < x.blocks; ++block) {
      V sum[R][T];
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        if (block == whole) {
          std::memcpy(end[r], at[r], (m.columns - whole * 64) * kBytes);
          at[r] = end[r];
        }
        __builtin_prefetch(at[r] + kAhead, 0, 3);
        EXPERTUNE_UNROLL
        for (int t = 0; t < T; ++t) sum[r][t] = kBlocked ? zero() : total[r][t];
      }
      for (int step = 0; step < 4; ++step) {
        V weight[R];
        EXPERTUNE_UNROLL
        for (int r = 0; r < R; ++r) weight[r] = sixteen<FORMAT>(at[r] + step * kLanes * kBytes);
        EXPERTUNE_UNROLL
        for (int t = 0; t < T; ++t) {
          const V value = load(values[t] + block * 64 + step * kLanes);
          EXPERTUNE_UNROLL
          for (int r = 0; r < R; ++r) sum[r][t] = fma(weight[r], value, sum[r][t]);
        }
      }
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        at[r] += 64 * kBytes;
        if constexpr (kBlocked) {
          const V scale = all(scales[r][block * 64 / m.group]);
          EXPERTUNE_UNROLL
          for (int t = 0; t < T; ++t) total[r][t] = fma(scale, sum[r][t], total[r][t]);
        } else {
          EXPERTUNE_UNROLL
          for (int t = 0; t < T; ++t) total[r][t] = sum[r][t];
        }
      }
    }
  }

  static inline float scaled(const Matrix& m, const uint8_t* record, int64_t row, float sum) {
    if constexpr (FORMAT != Format::kInt8) return sum;
    return sum * from_bf16(((const uint16_t*)(record + m.scales_offset))[row]);
  }
};

// Codes of 8 bits times rounded activations: four neighbours a lane, whose sum is exact.
struct QuadsTile {
  template <int R, int T>
  static EXPERTUNE_WHOLE void lanes(const Matrix& m, const uint8_t* record, int64_t row,
                                    const Prepared& x, int64_t token, V (&total)[R][T]) {
    const uint8_t* at[R];
    EXPERTUNE_UNROLL
    for (int r = 0; r < R; ++r) {
      at[r] = record + m.codes_offset + (row + r) * m.columns;
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) total[r][t] = zero();
    }
    const int64_t whole = m.columns / 64, blocks = x.blocks;
    alignas(64) uint8_t end[R][64] = {};
    const float* steps[T];
#if defined(EXPERTUNE_BYTES)
    const int8_t* bytes[T];
    const int32_t* starts[T];
#else
    const float* values[T];
#endif
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) {
      const int64_t own = x.at(token + t);
      steps[t] = x.steps + own * x.steps_width;
#if defined(EXPERTUNE_BYTES)
      bytes[t] = x.bytes + own * x.width;
      starts[t] = x.starts + own * blocks * kLanes;
#else
      values[t] = x.values + own * x.width;
#endif
    }
    for (int64_t block = 0; block < blocks; ++block) {
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(at[r] + kAhead, 0, 3);
        if (block != whole) continue;
        std::memcpy(end[r], at[r], m.columns - whole * 64);
        at[r] = end[r];
      }
#if defined(EXPERTUNE_BYTES)
      W codes[R];
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) codes[r] = whole_codes(load_words(at[r]));
      EXPERTUNE_UNROLL
      for (int t = 0; t < T; ++t) {
        const W values = load_bytes(bytes[t] + block * 64);
        const W start = load_starts(starts[t] + block * kLanes);
        const V step = all(steps[t][block]);
        EXPERTUNE_UNROLL
        for (int r = 0; r < R; ++r) {
          total[r][t] = fma(step, numbers(dot_whole(start, codes[r], values)), total[r][t]);
        }
      }
#else
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) {
        V codes[4];
        bytes_of_quads(at[r], codes);
        EXPERTUNE_UNROLL
        for (int t = 0; t < T; ++t) {
          V sum = zero();
          for (int i = 0; i < 4; ++i) {
            sum = fma(codes[i], load(values[t] + block * 64 + i * kLanes), sum);
          }
          total[r][t] = fma(all(steps[t][block]), sum, total[r][t]);
        }
      }
#endif
      EXPERTUNE_UNROLL
      for (int r = 0; r < R; ++r) at[r] += 64;
    }
  }

  static inline float scaled(const Matrix& m, const uint8_t* record, int64_t row, float sum) {
    return NaturalTile<Format::kInt8>::scaled(m, record, row, sum);
  }
};

// ---- 16-bit weights stored [K, N]: lanes are rows, columns follow one another --------------------

template <bool BF16>
inline V column_weights(const uint8_t* p) {
  if constexpr (BF16) return bf16s(p);
  else return halves(p);
}

template <bool BF16, int C>
inline void columns_lanes(const Matrix& m, const uint8_t* record, int64_t row, const Prepared& x,
                          int64_t token, float* y) {
  const uint8_t* at = record + m.codes_offset + row * 2;
  const float* values = x.values + x.at(token) * x.width;
  V total[C];
  for (int c = 0; c < C; ++c) total[c] = zero();
  for (int64_t column = 0; column < m.columns; ++column, at += m.rows * 2) {
    const V value = all(values[column]);
    for (int c = 0; c < C; ++c) {
      total[c] = fma(column_weights<BF16>(at + c * kLanes * 2), value, total[c]);
    }
  }
  for (int c = 0; c < C; ++c) store(y + c * kLanes, total[c]);
}

template <bool BF16>
inline void columns_rows(const Matrix& m, const uint8_t* record, int64_t first, int64_t end,
                         const Prepared& x, float* y, int64_t stride) {
  const auto* weights = (const uint16_t*)(record + m.codes_offset);
  for (int64_t token = 0; token < x.tokens; ++token) {
    int64_t row = first;
    float* out = y + token * stride - first;
    for (; row + 8 * kLanes <= end; row += 8 * kLanes) {
      columns_lanes<BF16, 8>(m, record, row, x, token, out + row);
    }
    for (; row + kLanes <= end; row += kLanes) {
      columns_lanes<BF16, 1>(m, record, row, x, token, out + row);
    }
    for (; row < end; ++row) {
      float sum = 0;
      for (int64_t column = 0; column < m.columns; ++column) {
        const uint16_t weight = weights[column * m.rows + row];
        const float value = BF16 ? from_bf16(weight) : from_fp16(weight);
        sum = __builtin_fmaf(value, x.values[x.at(token) * x.width + column], sum);
      }
      out[row] = sum;
    }
  }
}

// ---- rows and tokens in tiles ---------------------------------------------------------------------

#if defined(EXPERTUNE_AVX512)
constexpr int kTileTokens = 4, kRowsAtOnce = 2;
#else
constexpr int kTileTokens = 2, kRowsAtOnce = 1;  // half the registers
#endif

// R rows times T tokens: their lanes.
template <class Tile, int R, int T>
__attribute__((noinline)) void lanes_of_rows(const Matrix& m, const uint8_t* record, int64_t row, const Prepared& x,
                          int64_t token, float (&lanes)[T][kLanes * kLanes], int64_t place) {
  V total[R][T];
  Tile::template lanes<R, T>(m, record, row, x, token, total);
  EXPERTUNE_UNROLL
  for (int r = 0; r < R; ++r) {
    EXPERTUNE_UNROLL
    for (int t = 0; t < T; ++t) store(lanes[t] + (place + r) * kLanes, total[r][t]);
  }
}

// Up to 16 rows times T tokens, from token `token` on. After the first tokens the rows lie in a near
// cache, and two are read at once: what is loaded of a token then serves both.
template <class Tile, int T>
inline void rows_of_tokens(const Matrix& m, const uint8_t* record, int64_t first, int64_t count,
                           const Prepared& x, int64_t token, float* y, int64_t stride) {
  alignas(64) float lanes[T][kLanes * kLanes];
  int64_t row = 0;
  const bool two = token > 0 || (T == kTileTokens && x.bytes == nullptr);
  for (; kRowsAtOnce > 1 && two && row + kRowsAtOnce <= count; row += kRowsAtOnce) {
    lanes_of_rows<Tile, kRowsAtOnce, T>(m, record, first + row, x, token, lanes, row);
  }
  for (; row < count; ++row) {
    lanes_of_rows<Tile, 1, T>(m, record, first + row, x, token, lanes, row);
  }
  EXPERTUNE_UNROLL
  for (int t = 0; t < T; ++t) {
    float* out = y + (token + t) * stride;
    float sums[kLanes];
    if (count == kLanes) {
      trees(lanes[t], sums);
    } else {
      for (int64_t row = 0; row < count; ++row) sums[row] = tree(load(lanes[t] + row * kLanes));
    }
    for (int64_t row = 0; row < count; ++row) {
      out[row] = Tile::scaled(m, record, first + row, sums[row]);
    }
  }
}

// 16 rows at a time for all tokens: their codes stay in a near cache.
template <class Tile>
inline void tiled(const Matrix& m, const uint8_t* record, int64_t first, int64_t end,
                  const Prepared& x, float* y, int64_t stride) {
  for (int64_t row = first; row < end; row += kLanes) {
    const int64_t count = row + kLanes <= end ? kLanes : end - row;
    float* out = y + row - first;
    int64_t token = 0;
    for (; token + kTileTokens <= x.tokens; token += kTileTokens) {
      rows_of_tokens<Tile, kTileTokens>(m, record, row, count, x, token, out, stride);
    }
    const int64_t left = x.tokens - token;
    if (kTileTokens > 3 && left == 3) {
      rows_of_tokens<Tile, 3>(m, record, row, count, x, token, out, stride);
    } else if (kTileTokens > 2 && left == 2) {
      rows_of_tokens<Tile, 2>(m, record, row, count, x, token, out, stride);
    } else if (left == 1) {
      rows_of_tokens<Tile, 1>(m, record, row, count, x, token, out, stride);
    }
  }
}

template <int BITS, bool WORDS = false>
inline void by_groups(const Matrix& m, const uint8_t* record, int64_t first, int64_t end,
                      const Prepared& x, float* y, int64_t stride) {
  switch (m.group) {
    case 128: return tiled<PackedTile<BITS, 1, WORDS>>(m, record, first, end, x, y, stride);
    case 64: return tiled<PackedTile<BITS, 2, WORDS>>(m, record, first, end, x, y, stride);
    case 32: return tiled<PackedTile<BITS, 4, WORDS>>(m, record, first, end, x, y, stride);
    default: return tiled<PackedTile<BITS, 8, WORDS>>(m, record, first, end, x, y, stride);
  }
}

void rows(const Matrix& m, const uint8_t* record, int64_t first, int64_t end, const Prepared& x,
          float* y, int64_t stride) {
  switch ((Format)m.format) {
    case Format::kBf16: return tiled<PairsTile>(m, record, first, end, x, y, stride);
    case Format::kFp16:
      return tiled<NaturalTile<Format::kFp16>>(m, record, first, end, x, y, stride);
    case Format::kInt8:
      if (order_of(m) == Order::kQuads64) {
        return tiled<QuadsTile>(m, record, first, end, x, y, stride);
      }
      return tiled<NaturalTile<Format::kInt8>>(m, record, first, end, x, y, stride);
    case Format::kFp8:
      return tiled<NaturalTile<Format::kFp8>>(m, record, first, end, x, y, stride);
    case Format::kInt4: return by_groups<4>(m, record, first, end, x, y, stride);
    case Format::kUint4: return by_groups<4, true>(m, record, first, end, x, y, stride);
    case Format::kInt3: return by_groups<3>(m, record, first, end, x, y, stride);
    case Format::kInt2: return by_groups<2>(m, record, first, end, x, y, stride);
    case Format::kMxfp4:
      return tiled<PackedTile<4, 0>>(m, record, first, end, x, y, stride);
    case Format::kBf16Columns: return columns_rows<true>(m, record, first, end, x, y, stride);
    case Format::kFp16Columns: return columns_rows<false>(m, record, first, end, x, y, stride);
  }
}

bool wants_pairs(Format format) {
#if defined(EXPERTUNE_BF16)
  return order_of(format) == Order::kPacked128 || order_of(format) == Order::kPairs32;
#else
  (void)format;
  return false;
#endif
}

bool wants_bytes(const Matrix& m) {
#if defined(EXPERTUNE_BYTES)
  return rounded_columns(m) != 0;
#else
  (void)m;
  return false;
#endif
}

// ---- plain weights --------------------------------------------------------------------------------

inline void put(void* out, Number number, int64_t at, V v) {
  if (number == Number::kFloat32) {
    store((float*)out + at, v);
  } else if (number == Number::kBf16) {
    store_bf16((uint16_t*)out + at, v);
  } else {
    float lanes[kLanes];
    store(lanes, v);
    for (int i = 0; i < kLanes; ++i) ((uint16_t*)out)[at + i] = to_fp16(lanes[i]);
  }
}

// Sixteen neighbours at `column` of a row of 8-bit codes, scaled. `column`: a multiple of 16.
inline void plain_bytes(const Matrix& m, const uint8_t* record, int64_t row, void* out,
                        Number number, int64_t place) {
  const bool fp8 = (Format)m.format == Format::kFp8;
  const uint8_t* codes = row_of(m, record, row);
  const int64_t across = fp8 ? (m.columns + m.group - 1) / m.group : 0;
  const auto* blocks = (const float*)(record + m.scales_offset) +
                       (fp8 ? row / m.block_rows * across : 0);
  const float own = fp8 ? 0 : from_bf16(((const uint16_t*)(record + m.scales_offset))[row]);
  int64_t column = 0;
  for (; column + kLanes <= m.columns; column += kLanes) {
    const V value = fp8 ? fp8s(codes + column) : bytes_signed(codes + column);
    put(out, number, place + column, mul(value, all(fp8 ? blocks[column / m.group] : own)));
  }
  for (; column < m.columns; ++column) {
    const float value = fp8 ? from_fp8(codes[column]) * blocks[column / m.group]
                            : (float)(int8_t)codes[column] * own;
    put_number(out, number, place + column, value);
  }
}

// Sixteen codes through a table of 16 results.
template <int BITS>
inline void sixteen_halves(const uint8_t* codes, const uint16_t* table, uint16_t* out) {
  uint64_t word = 0;
  std::memcpy(&word, codes, 2 * BITS);
#if defined(EXPERTUNE_AVX512) || defined(EXPERTUNE_AVX2)
  constexpr uint64_t kSpread = 0x0101010101010101ull * ((1 << BITS) - 1);  // a code to a byte
  const __m128i bytes = _mm_set_epi64x((long long)_pdep_u64(word >> (8 * BITS), kSpread),
                                       (long long)_pdep_u64(word, kSpread));
#if defined(EXPERTUNE_AVX512)
  const __m256i results = _mm256_loadu_si256((const __m256i*)table);
  const __m256i found = _mm256_permutexvar_epi16(_mm256_cvtepu8_epi16(bytes), results);
  _mm256_storeu_si256((__m256i*)out, found);
#else
  const __m128i first = _mm_loadu_si128((const __m128i*)table);
  const __m128i last = _mm_loadu_si128((const __m128i*)(table + 8));
  const __m128i low_mask = _mm_set1_epi16(0xff);
  const __m128i low = _mm_packus_epi16(_mm_and_si128(first, low_mask), _mm_and_si128(last, low_mask));
  const __m128i high = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(last, 8));
  const __m128i a = _mm_shuffle_epi8(low, bytes), b = _mm_shuffle_epi8(high, bytes);
  _mm_storeu_si128((__m128i*)out, _mm_unpacklo_epi8(a, b));
  _mm_storeu_si128((__m128i*)(out + 8), _mm_unpackhi_epi8(a, b));
#endif
#else
  for (int i = 0; i < kLanes; ++i) out[i] = table[(word >> (BITS * i)) & ((1 << BITS) - 1)];
#endif
}

// A group has at most 16 different values: they are scaled once, then looked up.
template <int BITS, bool E2M1>
inline void plain_packed(const Matrix& m, const uint8_t* record, int64_t row, void* out,
                         Number number, int64_t place) {
  const uint8_t* codes = row_of(m, record, row);
  const int64_t group = E2M1 ? 32 : m.group;
  const uint8_t* scales = record + m.scales_offset + row * (m.columns / group) * (E2M1 ? 1 : 4);
  float codebook[kLanes];
  for (int i = 0; i < kLanes; ++i) codebook[i] = (float)(E2M1 ? kTwiceE2m1[i] : i - 8);
  const V values = load(codebook);
  alignas(64) float wide[kLanes];
  alignas(64) uint16_t halves[kLanes];
  for (int64_t start = 0; start < m.columns; start += group) {
    V scaled;
    if (E2M1) {
      scaled = mul(values, all(half_e8m0(scales[start / group])));
    } else if ((Format)m.format == Format::kUint4) {
      const uint32_t word = ((const uint32_t*)scales)[start / group];
      scaled = add(mul(values, all(word_scale(word))), all(word_zero(word)));
    } else {
      const auto* pair = (const uint16_t*)scales + start / group * 2;
      scaled = add(mul(values, all(from_bf16(pair[0]))), all(from_bf16(pair[1])));
    }
    if (number == Number::kFloat32) store(wide, scaled);
    else put(halves, number, 0, scaled);
    for (int64_t column = start; column < start + group; column += kLanes) {
      const uint8_t* at = codes + column * BITS / 8;
      if (number != Number::kFloat32) {
        sixteen_halves<BITS>(at, halves, (uint16_t*)out + place + column);
        continue;
      }
      uint64_t word = 0;
      std::memcpy(&word, at, 2 * BITS);
      float* into = (float*)out + place + column;
      for (int i = 0; i < kLanes; ++i) into[i] = wide[(word >> (BITS * i)) & ((1 << BITS) - 1)];
    }
  }
}

void plain(const Matrix& m, const uint8_t* record, int64_t first, int64_t end, void* out,
           Number number) {
  for (int64_t row = first; row < end; ++row) {
    const int64_t place = (row - first) * m.columns;
    switch ((Format)m.format) {
      case Format::kInt4:
      case Format::kUint4: plain_packed<4, false>(m, record, row, out, number, place); break;
      case Format::kInt3: plain_packed<3, false>(m, record, row, out, number, place); break;
      case Format::kInt2: plain_packed<2, false>(m, record, row, out, number, place); break;
      case Format::kMxfp4: plain_packed<4, true>(m, record, row, out, number, place); break;
      case Format::kInt8:
      case Format::kFp8: plain_bytes(m, record, row, out, number, place); break;
      default: reference_products().plain(m, record, row, row + 1,
                                          (char*)out + place * (number == Number::kFloat32 ? 4 : 2),
                                          number);
    }
  }
}

// ---- attention of one query, and norms ------------------------------------------------------------

template <Number NUMBER>
inline V load_number(const void* at, int64_t index) {
  if constexpr (NUMBER == Number::kFloat32) return load((const float*)at + index);
  else if constexpr (NUMBER == Number::kBf16) return bf16s((const uint8_t*)at + 2 * index);
  else return halves((const uint8_t*)at + 2 * index);
}

template <Number NUMBER>
inline V load_end(const void* at, int64_t index, int64_t count) {  // fewer than 16, then zeros
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from_number(at, NUMBER, index + i);
  return load(lanes);
}

template <Number NUMBER>
inline V score_lanes(const Attended& at, const float* query, int64_t key) {
  V total = zero();
  int64_t i = 0;
  for (; i + kLanes <= at.key_width; i += kLanes) {
    total = fma(load(query + i), load_number<NUMBER>(at.keys, key * at.key_stride + i), total);
  }
  if (i < at.key_width) {
    const int64_t rest = at.key_width - i;
    const V own = load_end<Number::kFloat32>(query, i, rest);
    total = fma(own, load_end<NUMBER>(at.keys, key * at.key_stride + i, rest), total);
  }
  return total;
}

// Values columns first.. of C vectors, all keys.
template <Number NUMBER, int C>
inline void weigh(const Attended& at, const float* weights, int64_t first, float* out) {
  V total[C];
  for (int c = 0; c < C; ++c) total[c] = zero();
  for (int64_t key = 0; key < at.length; ++key) {
    const V weight = all(weights[key]);
    for (int c = 0; c < C; ++c) {
      const int64_t place = key * at.value_stride + first + c * kLanes;
      total[c] = fma(weight, load_number<NUMBER>(at.values, place), total[c]);
    }
  }
  for (int c = 0; c < C; ++c) store(out + first + c * kLanes, total[c]);
}

// The largest of `count` numbers, those that are none left out.
inline float largest(const float* x, int64_t count) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = -__builtin_inff();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
  }
  float most = -__builtin_inff();
  for (; i < count; ++i) most = x[i] > most ? x[i] : most;
  for (float lane : lanes) most = lane > most ? lane : most;
  return most;
}

template <Number NUMBER>
inline void attend_to(const Attended& at, const float* query, float* scores, float* out) {
  const int64_t length = at.length, width = at.value_width;  // compilers see that they stay
  alignas(64) float lanes[kLanes * kLanes];
  int64_t key = 0;
  for (; key + kLanes <= length; key += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      store(lanes + i * kLanes, score_lanes<NUMBER>(at, query, key + i));
    }
    trees(lanes, scores + key);
  }
  for (; key < length; ++key) scores[key] = tree(score_lanes<NUMBER>(at, query, key));
  if (at.mask != nullptr) {
    for (key = 0; key < length; ++key) scores[key] += at.mask[key];
  }
  const float most = largest(scores, length);
  for (key = 0; key < length; ++key) scores[key] = exp_of(scores[key] - most);
  V sums = zero();
  key = 0;
  for (; key + kLanes <= length; key += kLanes) sums = add(sums, load(scores + key));
  if (key < length) sums = add(sums, load_end<Number::kFloat32>(scores, key, length - key));
  const float sum = tree(sums);
  int64_t i = 0;
  for (; i + 8 * kLanes <= width; i += 8 * kLanes) weigh<NUMBER, 8>(at, scores, i, out);
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) weigh<NUMBER, 4>(at, scores, i, out);
  for (; i + kLanes <= width; i += kLanes) weigh<NUMBER, 1>(at, scores, i, out);
  for (; i < width; ++i) {
    float total = 0;
    for (key = 0; key < length; ++key) {
      const float value = from_number(at.values, NUMBER, key * at.value_stride + i);
      total = __builtin_fmaf(scores[key], value, total);
    }
    out[i] = total;
  }
  for (i = 0; i < width; ++i) out[i] /= sum;
}

void attend(const Attended& at, Number number, const float* query, float* scores, float* out) {
  switch (number) {
    case Number::kFloat32: return attend_to<Number::kFloat32>(at, query, scores, out);
    case Number::kBf16: return attend_to<Number::kBf16>(at, query, scores, out);
    case Number::kFp16: return attend_to<Number::kFp16>(at, query, scores, out);
  }
}

// Each lane rounded to the number.
template <Number NUMBER>
inline V rounded_lanes(V v) {
  if constexpr (NUMBER == Number::kFloat32) return v;
  alignas(64) uint16_t lanes[kLanes];
  put(lanes, NUMBER, 0, v);
  return load_number<NUMBER>(lanes, 0);
}

template <Number NUMBER>
inline void rotate_of(void* head, const float* cosine, const float* sine, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const V a = load_number<NUMBER>(head, i), b = load_number<NUMBER>(head, half + i);
    const V less = mul(mul(b, all(-1.0f)), load(sine + i));
    const V more = mul(a, load(sine + half + i));
    const V first = rounded_lanes<NUMBER>(mul(a, load(cosine + i)));
    const V second = rounded_lanes<NUMBER>(mul(b, load(cosine + half + i)));
    put(head, NUMBER, i, add(first, rounded_lanes<NUMBER>(less)));
    put(head, NUMBER, half + i, add(second, rounded_lanes<NUMBER>(more)));
  }
  for (; i < half; ++i) {
    const float a = from_number(head, NUMBER, i), b = from_number(head, NUMBER, half + i);
    const float less = round_to<NUMBER>(-b * sine[i]), more = round_to<NUMBER>(a * sine[half + i]);
    put_number(head, NUMBER, i, round_to<NUMBER>(a * cosine[i]) + less);
    put_number(head, NUMBER, half + i, round_to<NUMBER>(b * cosine[half + i]) + more);
  }
}

void rotate(Number number, void* head, const float* cosine, const float* sine, int64_t half) {
  switch (number) {
    case Number::kFloat32: return rotate_of<Number::kFloat32>(head, cosine, sine, half);
    case Number::kBf16: return rotate_of<Number::kBf16>(head, cosine, sine, half);
    case Number::kFp16: return rotate_of<Number::kFp16>(head, cosine, sine, half);
  }
}

template <Number NUMBER>
inline void combine_of(const void* y, const float* weights, int64_t count, int64_t columns,
                       void* out) {
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    V total = zero();
    for (int64_t k = 0; k < count; ++k) {
      const V own = mul(load_number<NUMBER>(y, k * columns + i), all(weights[k]));
      total = add(total, rounded_lanes<NUMBER>(own));
    }
    put(out, NUMBER, i, total);
  }
  for (; i < columns; ++i) {
    float total = 0;
    for (int64_t k = 0; k < count; ++k) {
      total += round_to<NUMBER>(from_number(y, NUMBER, k * columns + i) * weights[k]);
    }
    put_number(out, NUMBER, i, total);
  }
}

void combine(Number number, const void* y, const float* weights, int64_t count, int64_t columns,
             void* out) {
  switch (number) {
    case Number::kFloat32: return combine_of<Number::kFloat32>(y, weights, count, columns, out);
    case Number::kBf16: return combine_of<Number::kBf16>(y, weights, count, columns, out);
    case Number::kFp16: return combine_of<Number::kFp16>(y, weights, count, columns, out);
  }
}

template <Number NUMBER>
inline void norm_of(const void* x, const void* weight, int64_t count, float epsilon, void* out) {
  V squares = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const V value = load_number<NUMBER>(x, i);
    squares = fma(value, value, squares);
  }
  if (i < count) {
    const V rest = load_end<NUMBER>(x, i, count - i);
    squares = fma(rest, rest, squares);
  }
  const float factor = 1.0f / __builtin_sqrtf(tree(squares) / (float)count + epsilon);
  for (i = 0; i + kLanes <= count; i += kLanes) {
    const V normed = rounded_lanes<NUMBER>(mul(load_number<NUMBER>(x, i), all(factor)));
    put(out, NUMBER, i, mul(normed, load_number<NUMBER>(weight, i)));
  }
  for (; i < count; ++i) {
    const float normed = round_to<NUMBER>(from_number(x, NUMBER, i) * factor);
    put_number(out, NUMBER, i, normed * from_number(weight, NUMBER, i));
  }
}

void norm(Number number, const void* x, const void* weight, int64_t count, float epsilon,
          void* out) {
  switch (number) {
    case Number::kFloat32: return norm_of<Number::kFloat32>(x, weight, count, epsilon, out);
    case Number::kBf16: return norm_of<Number::kBf16>(x, weight, count, epsilon, out);
    case Number::kFp16: return norm_of<Number::kFp16>(x, weight, count, epsilon, out);
  }
}

}  // namespace
}  // namespace expertune
