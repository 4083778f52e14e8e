// Quantizing sixteen groups at once, one a lane, written once for every instruction set of simd.h.
// Every lane does what fit.cpp does with one group, step by step, and so gives the same bits.
#pragma once
#include "fit.h"
#include "simd.h"

namespace expertune {
namespace {

// ---- what quantizing needs of an instruction set besides simd.h -----------------------------------

#if defined(EXPERTUNE_AVX512)

inline V sub(V x, V y) { return {_mm512_sub_ps(x.a, y.a)}; }
inline V div(V x, V y) { return {_mm512_div_ps(x.a, y.a)}; }
inline V root(V x) { return {_mm512_sqrt_ps(x.a)}; }
inline V size_of(V x) { return {_mm512_abs_ps(x.a)}; }
// y if x is not a number.
inline V most(V x, V y) { return {_mm512_max_ps(x.a, y.a)}; }
inline V least(V x, V y) { return {_mm512_min_ps(x.a, y.a)}; }
inline V to_even(V x) { return {_mm512_roundscale_ps(x.a, _MM_FROUND_TO_NEAREST_INT)}; }
using Mask = __mmask16;
inline Mask below(V x, V y) { return _mm512_cmp_ps_mask(x.a, y.a, _CMP_LT_OQ); }
inline V choose(Mask mask, V x, V y) { return {_mm512_mask_blend_ps(mask, y.a, x.a)}; }
inline bool equal(V x, V y) { return _mm512_cmp_ps_mask(x.a, y.a, _CMP_EQ_OQ) == 0xffff; }
inline W whole(V x) { return {_mm512_cvtps_epi32(x.a)}; }
inline W both(W x, W y) { return {_mm512_or_si512(x.a, y.a)}; }
inline W masked(W x, uint32_t mask) { return {_mm512_and_si512(x.a, _mm512_set1_epi32((int)mask))}; }
inline W shifted(W x, int count) { return {_mm512_sll_epi32(x.a, _mm_cvtsi32_si128(count))}; }
inline void store_words(uint32_t* p, W w) { _mm512_storeu_si512(p, w.a); }
inline V as_stored(V v) {
  const __m512i bits = _mm512_castps_si512(v.a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 unordered = _mm512_cmp_ps_mask(v.a, v.a, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, unordered, bits, _mm512_set1_epi32(0x400000));
  return as_floats(bf16_pairs_upper({up}));
}

#elif defined(EXPERTUNE_AVX2)

inline V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V root(V x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
inline V size_of(V x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline V most(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V least(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V to_even(V x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
struct Mask { __m256 a, b; };
inline Mask below(V x, V y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
inline V choose(Mask mask, V x, V y) {
  return {_mm256_blendv_ps(y.a, x.a, mask.a), _mm256_blendv_ps(y.b, x.b, mask.b)};
}
inline bool equal(V x, V y) {
  return (_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)) &
          _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ))) == 0xff;
}
inline W whole(V x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline W both(W x, W y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline W masked(W x, uint32_t mask) {
  const __m256i wide = _mm256_set1_epi32((int)mask);
  return {_mm256_and_si256(x.a, wide), _mm256_and_si256(x.b, wide)};
}
inline W shifted(W x, int count) {
  const __m128i wide = _mm_cvtsi32_si128(count);
  return {_mm256_sll_epi32(x.a, wide), _mm256_sll_epi32(x.b, wide)};
}
inline void store_words(uint32_t* p, W w) {
  _mm256_storeu_si256((__m256i*)p, w.a);
  _mm256_storeu_si256((__m256i*)(p + 8), w.b);
}
inline V as_stored(V v) {
  return as_floats(bf16_pairs_lower({bf16_bits(v.a), bf16_bits(v.b)}));
}

#elif defined(EXPERTUNE_NEON)

inline V sub(V x, V y) { return each([&](int i) { return vsubq_f32(x.q[i], y.q[i]); }); }
inline V div(V x, V y) { return each([&](int i) { return vdivq_f32(x.q[i], y.q[i]); }); }
inline V root(V x) { return each([&](int i) { return vsqrtq_f32(x.q[i]); }); }
inline V size_of(V x) { return each([&](int i) { return vabsq_f32(x.q[i]); }); }
inline V most(V x, V y) { return each([&](int i) { return vmaxnmq_f32(x.q[i], y.q[i]); }); }
inline V least(V x, V y) { return each([&](int i) { return vminnmq_f32(x.q[i], y.q[i]); }); }
inline V to_even(V x) { return each([&](int i) { return vrndnq_f32(x.q[i]); }); }
struct Mask { uint32x4_t q[4]; };
inline Mask below(V x, V y) {
  Mask mask;
  for (int i = 0; i < 4; ++i) mask.q[i] = vcltq_f32(x.q[i], y.q[i]);
  return mask;
}
inline V choose(Mask mask, V x, V y) {
  return each([&](int i) { return vbslq_f32(mask.q[i], x.q[i], y.q[i]); });
}
inline bool equal(V x, V y) {
  uint32x4_t same = vceqq_f32(x.q[0], y.q[0]);
  for (int i = 1; i < 4; ++i) same = vandq_u32(same, vceqq_f32(x.q[i], y.q[i]));
  return vminvq_u32(same) != 0;
}
inline W whole(V x) {
  W w;
  for (int i = 0; i < 4; ++i) w.q[i] = vreinterpretq_u32_s32(vcvtnq_s32_f32(x.q[i]));
  return w;
}
inline W both(W x, W y) {
  for (int i = 0; i < 4; ++i) x.q[i] = vorrq_u32(x.q[i], y.q[i]);
  return x;
}
inline W masked(W x, uint32_t mask) {
  for (auto& q : x.q) q = vandq_u32(q, vdupq_n_u32(mask));
  return x;
}
inline W shifted(W x, int count) {
  for (auto& q : x.q) q = vshlq_u32(q, vdupq_n_s32(count));
  return x;
}
inline void store_words(uint32_t* p, W w) {
  for (int i = 0; i < 4; ++i) vst1q_u32(p + 4 * i, w.q[i]);
}
inline V as_stored(V v) {
  uint16_t bits[kLanes];
  store_bf16(bits, v);
  return bf16s((const uint8_t*)bits);
}

#endif

// ---- reading weights into lanes: [columns, 16] ----------------------------------------------------

struct Places {
  int64_t count;  // lanes that are wanted; the others repeat the first
  int64_t row[kLanes], group[kLanes];
};

// The groups from number `index` of rows first..end. Neighbours in memory become neighbours here.
inline Places places_of(const QuantizeJob& job, int64_t first, int64_t end, int64_t index) {
  const int64_t groups = groups_of(job), rows = end - first, left = rows * groups - index;
  Places places;
  places.count = left < kLanes ? left : kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int64_t number = index + (lane < places.count ? lane : 0);
    const bool by_row = job.column_stride == 1;
    places.row[lane] = first + (by_row ? number / groups : number % rows);
    places.group[lane] = by_row ? number % groups : number / rows;
  }
  return places;
}

inline V load_numbers(const void* p, Number number, int64_t index) {
  if (number == Number::kFloat32) return load((const float*)p + index);
  const auto* halves_at = (const uint8_t*)p + 2 * index;
  return number == Number::kBf16 ? bf16s(halves_at) : halves(halves_at);
}

inline void read_lanes(const QuantizeJob& job, const Places& places, float* values) {
  const int64_t length = length_of(job), step = job.column_stride;
  const auto number = (Number)job.number;
  int64_t starts[kLanes];
  bool side_by_side = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    starts[lane] = places.row[lane] * job.row_stride + places.group[lane] * length * step;
    side_by_side = side_by_side && starts[lane] == starts[0] + lane;
  }
  if (side_by_side) {
    for (int64_t i = 0; i < length; ++i) {
      store(values + kLanes * i, load_numbers(job.weights, number, starts[0] + i * step));
    }
    return;
  }
  int64_t done = 0;
  for (; step == 1 && done + kLanes <= length; done += kLanes) {
    float square[kLanes][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      store(square[lane], load_numbers(job.weights, number, starts[lane] + done));
    }
    for (int i = 0; i < kLanes; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) values[(done + i) * kLanes + lane] = square[lane][i];
    }
  }
  for (; done < length; ++done) {
    for (int lane = 0; lane < kLanes; ++lane) {
      values[done * kLanes + lane] = from_number(job.weights, number, starts[lane] + done * step);
    }
  }
}

// ---- writing codes from lanes ---------------------------------------------------------------------

// Codes of 8, 4, 3 or 2 bits: code(i) gives those of column i as floats.
template <int BITS, class Code>
inline void write_codes(const QuantizeJob& job, const Places& places, const Code& code) {
  constexpr int kEach = BITS == 8 ? 4 : 8;  // codes of a lane's word
  const int64_t length = length_of(job);
  uint8_t* at[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    at[lane] = codes_of(job, places.row[lane], places.group[lane]);
  }
  for (int64_t start = 0; start < length; start += kEach) {
    const int count = (int)(length - start < kEach ? length - start : kEach);
    W words = masked(whole(code(start)), (1u << BITS) - 1);
    for (int i = 1; i < count; ++i) {
      words = both(words, shifted(masked(whole(code(start + i)), (1u << BITS) - 1), BITS * i));
    }
    uint32_t lanes[kLanes];
    store_words(lanes, words);
    const int64_t place = start * BITS / 8;
    for (int lane = 0; lane < places.count; ++lane) {
      if (count == kEach) std::memcpy(at[lane] + place, &lanes[lane], kEach * BITS / 8);
      else std::memcpy(at[lane] + place, &lanes[lane], count * BITS / 8);
    }
  }
}

// ---- 8 bits ---------------------------------------------------------------------------------------

inline void quantize_rows(const QuantizeJob& job, const Places& places, const float* values) {
  V peak = zero();
  for (int64_t i = 0; i < job.columns; ++i) peak = most(size_of(load(values + kLanes * i)), peak);
  const V scale = as_stored(most(div(peak, all(127)), all(kLeastScale)));
  uint16_t scales[kLanes];
  store_bf16(scales, scale);
  for (int lane = 0; lane < places.count; ++lane) job.scales[places.row[lane]] = scales[lane];
  write_codes<8>(job, places, [&](int64_t i) {
    return least(most(to_even(div(load(values + kLanes * i), scale)), all(-127)), all(127));
  });
}

// ---- 4, 3 and 2 bits ------------------------------------------------------------------------------

struct Line { V scale, zero; };

inline Line range_line(const float* values, int64_t length, float top) {
  V low = all(__builtin_inff()), high = all(-__builtin_inff());
  for (int64_t i = 0; i < length; ++i) {
    const V value = load(values + kLanes * i);
    low = least(value, low);
    high = most(value, high);
  }
  const V scale = as_stored(most(div(sub(high, low), all(top)), all(kLeastScale)));
  return {scale, as_stored(add(low, mul(all(8), scale)))};
}

class Search {
 public:
  // scratch: values, importance and codes, [length, 16] each; the values are there.
  Search(float* scratch, int64_t length, float top)
      : values_(scratch), importance_(scratch + kLanes * length),
        codes_(scratch + 2 * kLanes * length), length_(length), top_(top) {}

  Line run(Line given) {
    weigh();
    best_ = given;
    best_cost_ = all(__builtin_inff());
    consider<false>(given);
    const V half = all(top_ / 2 - 8), middle = add(given.zero, mul(half, given.scale));
    for (float span : kSpans) {
      const V start = as_stored(mul(given.scale, all(span)));
      consider<false>({start, as_stored(sub(middle, mul(half, start)))});
    }
    Line last = best_;
    consider<true>(last);
    for (int round = 0; round < kRounds; ++round) {
      const Line next = least_squares();
      if (equal(next.scale, last.scale) && equal(next.zero, last.zero)) break;  // stays so
      consider<true>(next);
      last = next;
    }
    return best_;
  }

 private:
  void weigh() {
    V squares = zero();
    for (int64_t i = 0; i < length_; ++i) squares = fma(value(i), value(i), squares);
    const V rms = most(root(div(squares, all((float)length_))), all(kLeastRms));
    V total = zero(), sum = zero();
    for (int64_t i = 0; i < length_; ++i) {
      const V one = add(div(size_of(value(i)), rms), all(1));
      const V importance = mul(one, one);
      store(importance_ + kLanes * i, importance);
      total = add(total, importance);
      sum = fma(importance, value(i), sum);
    }
    total_ = total;
    mean_ = div(sum, total);
  }

  // KEEP: the codes serve `least_squares`.
  template <bool KEEP>
  void consider(Line line) {
    V cost = zero(), code_sum = zero();
    for (int64_t i = 0; i < length_; ++i) {
      const V own = value(i), importance = load(importance_ + kLanes * i);
      const V raw = to_even(add(div(sub(own, line.zero), line.scale), all(8)));
      const V code = sub(least(most(raw, all(0)), all(top_)), all(8));
      const V error = sub(own, add(mul(code, line.scale), line.zero));
      cost = fma(mul(error, error), importance, cost);
      if (!KEEP) continue;
      code_sum = fma(importance, code, code_sum);
      store(codes_ + kLanes * i, code);
    }
    code_sum_ = code_sum;
    const Mask better = below(cost, best_cost_);
    best_ = {choose(better, line.scale, best_.scale), choose(better, line.zero, best_.zero)};
    best_cost_ = choose(better, cost, best_cost_);
  }

  Line least_squares() const {
    const V code = div(code_sum_, total_);
    V rise = zero(), run = zero();
    for (int64_t i = 0; i < length_; ++i) {
      const V spread = sub(load(codes_ + kLanes * i), code);
      const V weighted = mul(load(importance_ + kLanes * i), spread);
      rise = fma(weighted, value(i), rise);
      run = fma(weighted, spread, run);
    }
    const V slope = div(rise, most(run, all(kLeastSpread)));
    const V scale = as_stored(most(slope, all(kLeastScale)));
    return {scale, as_stored(sub(mean_, mul(code, scale)))};
  }

  V value(int64_t i) const { return load(values_ + kLanes * i); }

  const float* values_;
  float* importance_;
  float* codes_;
  const int64_t length_;
  const float top_;
  V total_, mean_, code_sum_, best_cost_;
  Line best_;
};

template <int BITS>
inline void quantize_groups(const QuantizeJob& job, const Places& places, float* scratch) {
  constexpr float kTop = (1 << BITS) - 1;
  Line line = range_line(scratch, job.group, kTop);
  if (job.weighted) line = Search(scratch, job.group, kTop).run(line);
  uint16_t scales[kLanes], zeros[kLanes];
  store_bf16(scales, line.scale);
  store_bf16(zeros, line.zero);
  for (int lane = 0; lane < places.count; ++lane) {
    uint16_t* at = job.scales + (places.row[lane] * groups_of(job) + places.group[lane]) * 2;
    at[0] = scales[lane];
    at[1] = zeros[lane];
  }
  const V offset = sub(line.zero, mul(all(8), line.scale));
  write_codes<BITS>(job, places, [&](int64_t i) {
    const V raw = to_even(div(sub(load(scratch + kLanes * i), offset), line.scale));
    return least(most(raw, all(0)), all(kTop));
  });
}

// Rows first..end. scratch: quantize_scratch(job) floats.
void quantize(const QuantizeJob& job, int64_t first, int64_t end, float* scratch) {
  for (int64_t index = 0; index < (end - first) * groups_of(job); index += kLanes) {
    const Places places = places_of(job, first, end, index);
    read_lanes(job, places, scratch);
    switch (job.bits) {
      case 8: quantize_rows(job, places, scratch); break;
      case 4: quantize_groups<4>(job, places, scratch); break;
      case 3: quantize_groups<3>(job, places, scratch); break;
      default: quantize_groups<2>(job, places, scratch);
    }
  }
}

}  // namespace
}  // namespace expertune
