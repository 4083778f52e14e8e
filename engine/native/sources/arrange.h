// Activations in the order in which products read them, with what else products know of them.
#pragma once
#include <algorithm>

#include "rounding.h"

namespace expertune {
namespace {

constexpr int64_t kMostRounded = 128;

// A block of 128 columns that are not rounded, or of their whole numbers: lanes of codes [8][16].
inline void lanes_of_block(const float* x, float (&out)[8 * kLanes]) {
#if defined(EXPERTUNE_AVX512)
  // Halves of codes of four lanes each, then four lanes of a code side by side.
  const __m512i low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
  for (int half = 0; half < 2; ++half) {
    __m512 part[4];
    for (int i = 0; i < 4; ++i) {
      const __m512 a = _mm512_loadu_ps(x + 32 * i), b = _mm512_loadu_ps(x + 32 * i + 16);
      part[i] = _mm512_permutex2var_ps(a, half == 0 ? low : high, b);
    }
    const __m512 a = _mm512_shuffle_f32x4(part[0], part[1], 0x88);  // codes 0, 2 of lanes 0-3, 4-7
    const __m512 b = _mm512_shuffle_f32x4(part[2], part[3], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(part[0], part[1], 0xdd);  // codes 1, 3
    const __m512 d = _mm512_shuffle_f32x4(part[2], part[3], 0xdd);
    float* into = out + half * 4 * kLanes;
    _mm512_storeu_ps(into, _mm512_shuffle_f32x4(a, b, 0x88));
    _mm512_storeu_ps(into + kLanes, _mm512_shuffle_f32x4(c, d, 0x88));
    _mm512_storeu_ps(into + 2 * kLanes, _mm512_shuffle_f32x4(a, b, 0xdd));
    _mm512_storeu_ps(into + 3 * kLanes, _mm512_shuffle_f32x4(c, d, 0xdd));
  }
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int code = 0; code < 8; ++code) out[code * kLanes + lane] = x[lane * 8 + code];
  }
#endif
}

// As many columns as are in a block, or fewer at the end of a row: the others count as zero.
struct Block {
  float lanes[8 * kLanes];
  Block(const float* x, int64_t count) {
    if (count == kPackedColumns) {
      lanes_of_block(x, lanes);
      return;
    }
    float whole[kPackedColumns] = {};
    std::copy(x, x + count, whole);
    lanes_of_block(whole, lanes);
  }
};

// Sums of eight columns, which groups are made of: codes in the order of kStepOfPacked.
inline void sum_eights(const Block& block, float* out, int64_t first, int64_t end) {
  float sums[kLanes] = {};
  for (int step = 0; step < 8; ++step) {
    const float* own = block.lanes + kStepOfPacked[step] * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += own[lane];
  }
  for (int64_t lane = first; lane < end; ++lane) out[lane] = sums[lane];
}

// A block's lanes first..end for products of floats, or of pairs of bf16, which these numbers are.
inline void put_packed(const Arranged& to, int64_t base, const Block& block, int64_t first,
                       int64_t end) {
  if (to.pairs == nullptr) {
    for (int step = 0; step < 8; ++step) {
      const float* own = block.lanes + kStepOfPacked[step] * kLanes;
      float* into = to.values + base + step * kLanes;
      for (int64_t lane = first; lane < end; ++lane) into[lane] = own[lane];
    }
    return;
  }
  for (int code = 0; code < 4; ++code) {
    const float *lower = block.lanes + code * kLanes, *upper = lower + 4 * kLanes;
    uint32_t pairs[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      pairs[lane] = (to_bits(lower[lane]) >> 16) | (to_bits(upper[lane]) & 0xffff0000u);
    }
    std::memcpy(to.pairs + base + code * 2 * kLanes + 2 * first, pairs + first,
                (end - first) * sizeof(uint32_t));
  }
}

// The same for products of bytes: of a lane's columns those with even numbers, then the others, where
// two codes lie in a byte, else the first four, then the others.
inline void put_bytes(const Arranged& to, int64_t base, const Block& block, int64_t first,
                      int64_t end) {
  int32_t codes[8][kLanes], sums[kLanes] = {};
  for (int code = 0; code < 8; ++code) {
    for (int lane = 0; lane < kLanes; ++lane) {
      codes[code][lane] = static_cast<int32_t>(block.lanes[code * kLanes + lane]);
      sums[lane] += codes[code][lane];
    }
  }
  for (int half = 0; half < 2; ++half) {
    uint32_t four[kLanes];
    const int from = to.nibbles ? half : 4 * half, step = to.nibbles ? 2 : 1;
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t own = 0;
      for (int place = 0; place < 4; ++place) {
        own |= (static_cast<uint32_t>(codes[from + place * step][lane]) & 0xffu) << (8 * place);
      }
      four[lane] = own;
    }
    std::memcpy(to.bytes + base + half * 64 + 4 * first, four + first,
                (end - first) * sizeof(uint32_t));
  }
  int32_t* starts = to.starts + base / 8;
  for (int64_t lane = first; lane < end; ++lane) starts[lane] = -to.offset * sums[lane];
}

// Columns of other orders.
inline void put_natural(const Arranged& to, int64_t first, int64_t count, const float* x) {
  if (to.order == Order::kPairs32 && to.pairs != nullptr) {
    for (int64_t i = 0; i < count; ++i) to.pairs[first + i] = to_bf16(x[i]);
  } else if (to.order == Order::kPairs32) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = first + i, within = column % 32;
      to.values[column - within + (1 - within % 2) * kLanes + within / 2] = x[i];
    }
  } else if (to.order == Order::kQuads64 && to.bytes != nullptr) {
    for (int64_t i = 0; i < count; ++i) to.bytes[first + i] = static_cast<int8_t>(x[i]);
    for (int64_t i = 0; i < count; i += 4) {
      float sum = 0;
      for (int64_t own = i; own < std::min(i + 4, count); ++own) sum += x[own];
      to.starts[(first + i) / 4] = -to.offset * static_cast<int32_t>(sum);
    }
  } else if (to.order == Order::kQuads64) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = first + i, within = column % 64;
      to.values[column - within + within % 4 * kLanes + within / 4] = x[i];
    }
  } else {
    std::copy(x, x + count, to.values + first);
  }
}

// Columns first..first + count, of one block of 128.
inline void arrange_block(const Arranged& to, int64_t first, int64_t count, const float* x) {
  const int64_t within = first % kPackedColumns, base = first - within;
  float whole[kPackedColumns], rounded[kPackedColumns];
  const float *numbers = x, *values = x;  // what is multiplied, and what it stands for
  if (to.rounded != 0) {
    for (int64_t start = 0; start < count; start += to.rounded) {
      const int64_t own = std::min(to.rounded, count - start);
      const float step = round_group(x + start, own, whole + start);
      to.steps[(first + start) / to.rounded] = step;
      for (int64_t i = 0; i < own; ++i) rounded[start + i] = whole[start + i] * step;
    }
    numbers = whole, values = rounded;
  }
  if (to.order != Order::kPacked128) return put_natural(to, first, count, numbers);
  // Only a row's last columns are no multiple of eight.
  const int64_t lane = within / 8, end = (within + count + 7) / 8;
  float at[kPackedColumns];
  const auto block_of = [&](const float* own) {
    if (within == 0) return Block(own, count);
    std::fill(at, at + within, 0.0f);
    std::copy(own, own + count, at + within);
    return Block(at, within + count);
  };
  const Block block = block_of(numbers);
  if (to.bytes != nullptr) put_bytes(to, base, block, lane, end);
  else put_packed(to, base, block, lane, end);
  if (to.eights == nullptr) return;
  if (values == numbers) sum_eights(block, to.eights + base / 8, lane, end);
  else sum_eights(block_of(values), to.eights + base / 8, lane, end);
}

// See Products::arrange.
inline void arrange(const Arranged& to, Number number, const void* x, int64_t index, int64_t first,
                    int64_t count) {
  for (int64_t done = 0; done < count;) {
    const int64_t left = kPackedColumns - (first + done) % kPackedColumns;
    const int64_t own = std::min(left, count - done);
    float values[kPackedColumns];
    read_numbers(x, number, index + done, own, values);
    arrange_block(to, first + done, own, values);
    done += own;
  }
}

}  // namespace
}  // namespace expertune
