// Sixteen lanes of float32 and of 32-bit integers, on AVX-512, AVX2 with FMA, or NEON. Everything
// has internal linkage: the linker must never take one instruction set's copy for another's.
#pragma once
#include "matrix.h"

#if defined(EXPERTUNE_AVX512) || defined(EXPERTUNE_AVX2)
#include <immintrin.h>
#elif defined(EXPERTUNE_NEON)
#include <arm_neon.h>
#endif

namespace expertune {
namespace {

// Which of 16 groups' scales a lane takes, by block: GROUPS groups a block.
template <int GROUPS>
struct SpreadTable {
  alignas(64) int32_t lanes[kLanes / GROUPS][kLanes];
  constexpr SpreadTable() : lanes{} {
    for (int block = 0; block < kLanes / GROUPS; ++block) {
      for (int i = 0; i < kLanes; ++i) lanes[block][i] = block * GROUPS + i * GROUPS / kLanes;
    }
  }
};

#if defined(EXPERTUNE_AVX512)

struct V { __m512 a; };
struct W { __m512i a; };

inline V zero() { return {_mm512_setzero_ps()}; }
inline V load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v.a); }
inline V all(float x) { return {_mm512_set1_ps(x)}; }
inline V fma(V x, V y, V sum) { return {_mm512_fmadd_ps(x.a, y.a, sum.a)}; }
inline V mul(V x, V y) { return {_mm512_mul_ps(x.a, y.a)}; }
inline V add(V x, V y) { return {_mm512_add_ps(x.a, y.a)}; }
inline float tree(V v) {
  const __m256 upper = _mm512_extractf32x8_ps(v.a, 1);
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v.a), upper);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// The trees of 16 rows' lanes at once: lanes [16, 16] -> out [16].
inline void trees(const float* lanes, float* out) {
  __m512 v[16];
  for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_ps(lanes + 16 * i);
  for (int i = 0; i < 8; ++i) {
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),
                         _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
  }
  for (int i = 0; i < 2; ++i) {
    v[i] = _mm512_add_ps(_mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0x44),
                         _mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0xee));
  }
  v[0] = _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
  const __m512i rows = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_ps(out, _mm512_permutexvar_ps(rows, v[0]));
}
inline W load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline W bf16_pairs_upper(W w) { return {_mm512_and_si512(w.a, _mm512_set1_epi32(-65536))}; }
inline W bf16_pairs_lower(W w) { return {_mm512_slli_epi32(w.a, 16)}; }
inline V as_floats(W w) { return {_mm512_castsi512_ps(w.a)}; }
inline V bytes_signed(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline V halves(const uint8_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
inline V bf16s(const uint8_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void store_bf16(uint16_t* p, V v) {
  const __m512i bits = _mm512_castps_si512(v.a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 unordered = _mm512_cmp_ps_mask(v.a, v.a, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, unordered, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}
// 16 lanes with 8 codes each in their lowest bits.
template <int BITS>
inline W packed(const uint8_t* p) {
  if constexpr (BITS == 4) return load_words(p);
  if constexpr (BITS == 2) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))};
  }
  // 48 bytes: 12 into each quarter, then 3 bytes into each lane
  const __m512i raw = _mm512_maskz_loadu_epi32(0x0fff, p);
  const __m512i quarters = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0), raw);
  const __m512i spread = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
  return {_mm512_shuffle_epi8(quarters, spread)};
}
// What a code of a format stands for, by its lowest four bits.
struct Table { __m512 values; };
template <int BITS, bool E2M1>
inline Table table() {
  alignas(64) float values[16];
  for (int i = 0; i < 16; ++i) {
    values[i] = E2M1 ? (float)kTwiceE2m1[i] : (float)((i & ((1 << BITS) - 1)) - 8);
  }
  return {_mm512_load_ps(values)};
}
template <int BITS, bool E2M1, int NUMBER>
inline V code(W w, Table t) {
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(w.a, BITS * NUMBER), t.values)};
}
// What scales 16 groups: bf16 (scale, zero) pairs, or e8m0 for twice the values. `count`: groups
// that are there, 1 to 16; the others give zeros.
struct Scales { __m512 scale, zero_point; };
inline Scales pair_scales(const uint8_t* p, int64_t count) {
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  const __m512i pairs = _mm512_maskz_loadu_epi32(there, p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)))};
}
inline Scales word_scales(const uint8_t* p, int64_t count) {
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  const __m512i words = _mm512_maskz_loadu_epi32(there, p);
  const __m512 scale =
      _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)kScaleBits)));
  const __m512i point = _mm512_and_si512(words, _mm512_set1_epi32(kPointBits));
  const __m512i less = _mm512_sub_epi32(_mm512_set1_epi32(8), point);
  return {scale, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(less))};
}
inline Scales e8m0_scales(const uint8_t* p, int64_t count) {
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  const __m512i exponents = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, p));
  const __mmask16 normal = _mm512_cmpge_epu32_mask(exponents, _mm512_set1_epi32(2));
  const __m512i less = _mm512_sub_epi32(exponents, _mm512_set1_epi32(1));
  __m512i bits = _mm512_maskz_slli_epi32(normal, less, 23);
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(exponents, _mm512_set1_epi32(255));
  bits = _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000));
  return {_mm512_castsi512_ps(bits), _mm512_setzero_ps()};
}
inline V zeros_of(Scales s) { return {s.zero_point}; }
inline V scales_of(Scales s) { return {s.scale}; }
// The scales of block `block` of the 16 groups, each over its lanes; GROUPS of a block.
template <int GROUPS>
struct Spread {
  __m512 scale;
  Spread() = default;
  inline explicit Spread(V scales) : scale(scales.a) {}
  inline V of(int block) const {
    static constexpr SpreadTable<GROUPS> kTable = {};
    const __m512i index = _mm512_load_si512(kTable.lanes[block]);
    return {_mm512_permutexvar_ps(index, scale)};
  }
};
inline V fp8s(const uint8_t* p) {  // as half floats, 2^8 too small: these decode denormals fast
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
  const __m256i rest = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
  const __m256i nan = _mm256_cmpeq_epi16(rest, _mm256_set1_epi16(0x7f));
  const __m256i half = _mm256_or_si256(_mm256_slli_epi16(rest, 7), sign);
  const __m256i safe = _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
  return {_mm512_mul_ps(_mm512_cvtph_ps(safe), _mm512_set1_ps(256.0f))};
}

// Products of bytes: sums of four neighbours a lane.
inline W words_and(W w, uint32_t mask) { return {_mm512_and_si512(w.a, _mm512_set1_epi32((int)mask))}; }
template <int BY>
inline W words_right(W w) { return {_mm512_srli_epi32(w.a, BY)}; }
template <int BY>
inline W joined_left(W w) { return {_mm512_or_si512(w.a, _mm512_slli_epi32(w.a, BY))}; }
inline W looked_up(W w, const int8_t* table) {
  const __m128i values = _mm_loadu_si128((const __m128i*)table);
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), w.a)};
}
inline V numbers(W w) { return {_mm512_cvtepi32_ps(w.a)}; }
#if defined(EXPERTUNE_BF16)  // processors with products of bf16 have these too (processor.h asks)
inline W dot_codes(W start, const W (&codes)[2], W x, W y) {
  const __m512i first = _mm512_dpbusd_epi32(start.a, codes[0].a, x.a);
  return {_mm512_dpbusd_epi32(first, codes[1].a, y.a)};
}
inline W whole_codes(W w) { return {_mm512_xor_si512(w.a, _mm512_set1_epi8(-128))}; }
inline W dot_whole(W start, W codes, W x) { return {_mm512_dpbusd_epi32(start.a, codes.a, x.a)}; }
#else
inline __m512i in_pairs(__m512i pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }
inline W dot_codes(W start, const W (&codes)[2], W x, W y) {  // codes up to 24: four fit into 16 bits
  const __m512i first = _mm512_maddubs_epi16(codes[0].a, x.a);
  const __m512i pairs = _mm512_add_epi16(first, _mm512_maddubs_epi16(codes[1].a, y.a));
  return {_mm512_add_epi32(start.a, in_pairs(pairs))};
}
inline W whole_codes(W w) { return w; }
inline W dot_whole(W, W codes, W x) {  // the codes' signs go to x: pairs of products fit into 16 bits
  const __mmask64 negative = _mm512_movepi8_mask(codes.a);
  const __m512i turned = _mm512_mask_sub_epi8(x.a, negative, _mm512_setzero_si512(), x.a);
  return {in_pairs(_mm512_maddubs_epi16(_mm512_abs_epi8(codes.a), turned))};
}
#endif

#elif defined(EXPERTUNE_AVX2)

struct V { __m256 a, b; };
struct W { __m256i a, b; };

inline V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
inline V all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V fma(V x, V y, V sum) {
  return {_mm256_fmadd_ps(x.a, y.a, sum.a), _mm256_fmadd_ps(x.b, y.b, sum.b)};
}
inline V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline float tree(V v) {
  const __m256 eight = _mm256_add_ps(v.a, v.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline V halves_of(float a, float b) { return {_mm256_set1_ps(a), _mm256_set1_ps(b)}; }
inline W load_words(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline W bf16_pairs_upper(W w) {
  const __m256i mask = _mm256_set1_epi32(-65536);
  return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
inline W bf16_pairs_lower(W w) { return {_mm256_slli_epi32(w.a, 16), _mm256_slli_epi32(w.b, 16)}; }
inline V as_floats(W w) { return {_mm256_castsi256_ps(w.a), _mm256_castsi256_ps(w.b)}; }
inline V converted(W w) { return {_mm256_cvtepi32_ps(w.a), _mm256_cvtepi32_ps(w.b)}; }
inline V bytes_signed(const uint8_t* p) {
  return converted({_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
                    _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))});
}
inline V halves(const uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 16)))};
}
inline V bf16s(const uint8_t* p) {
  return as_floats(bf16_pairs_lower(
      {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
       _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 16)))}));
}
inline __m256i bf16_bits(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i kept = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 unordered = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(kept), unordered);
  return _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
}
inline void store_bf16(uint16_t* p, V v) {
  const __m256i both = _mm256_packus_epi32(bf16_bits(v.a), bf16_bits(v.b));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(both, 0xd8));
}
template <int BITS>
inline W packed(const uint8_t* p) {
  if constexpr (BITS == 4) return load_words(p);
  if constexpr (BITS == 2) {
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 16)))};
  }
  // 24 bytes into each half: 12 into each quarter, then 3 bytes into each lane
  const __m256i six = _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, 0, 0);
  const __m256i quarters = _mm256_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0);
  const __m256i spread = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
  const __m256i a = _mm256_maskload_epi32((const int*)p, six);
  const __m256i b = _mm256_maskload_epi32((const int*)(p + 24), six);
  return {_mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(a, quarters), spread),
          _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(b, quarters), spread)};
}
struct Table { __m256i values; };
template <int BITS, bool E2M1>
inline Table table() {
  return {_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kTwiceE2m1))};
}
template <int BITS, bool E2M1, int NUMBER>
inline __m256 code_of_half(__m256i w, Table t) {
  const __m256i mask = _mm256_set1_epi32((1 << BITS) - 1);
  const __m256i index = _mm256_and_si256(_mm256_srli_epi32(w, BITS * NUMBER), mask);
  if constexpr (!E2M1) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(index, _mm256_set1_epi32(8)));
  }
  // the value into the lowest byte, zero (the value of code 0) into the others
  const __m256i byte = _mm256_shuffle_epi8(t.values, index);
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(byte, 24), 24));
}
template <int BITS, bool E2M1, int NUMBER>
inline V code(W w, Table t) {
  return {code_of_half<BITS, E2M1, NUMBER>(w.a, t), code_of_half<BITS, E2M1, NUMBER>(w.b, t)};
}
struct Scales { V scale, zero_point; };
inline V zeros_of(Scales s) { return s.zero_point; }
inline V scales_of(Scales s) { return s.scale; }
inline __m256 fp8_half(__m128i bytes) {
  const __m128i wide = _mm_cvtepu8_epi16(bytes);
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8);
  const __m128i rest = _mm_and_si128(wide, _mm_set1_epi16(0x7f));
  const __m128i nan = _mm_cmpeq_epi16(rest, _mm_set1_epi16(0x7f));
  const __m128i half = _mm_or_si128(_mm_slli_epi16(rest, 7), sign);
  const __m128i safe = _mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7e00)));
  return _mm256_mul_ps(_mm256_cvtph_ps(safe), _mm256_set1_ps(256.0f));
}
inline V fp8s(const uint8_t* p) {
  return {fp8_half(_mm_loadl_epi64((const __m128i*)p)),
          fp8_half(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}

inline W words_and(W w, uint32_t mask) {
  const __m256i all_of = _mm256_set1_epi32((int)mask);
  return {_mm256_and_si256(w.a, all_of), _mm256_and_si256(w.b, all_of)};
}
template <int BY>
inline W words_right(W w) { return {_mm256_srli_epi32(w.a, BY), _mm256_srli_epi32(w.b, BY)}; }
template <int BY>
inline W joined_left(W w) {
  return {_mm256_or_si256(w.a, _mm256_slli_epi32(w.a, BY)),
          _mm256_or_si256(w.b, _mm256_slli_epi32(w.b, BY))};
}
inline W looked_up(W w, const int8_t* table) {
  const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return {_mm256_shuffle_epi8(values, w.a), _mm256_shuffle_epi8(values, w.b)};
}
inline V numbers(W w) { return converted(w); }
inline __m256i in_pairs(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
inline __m256i four_of(__m256i first, __m256i x, __m256i second, __m256i y) {
  return in_pairs(_mm256_add_epi16(_mm256_maddubs_epi16(first, x), _mm256_maddubs_epi16(second, y)));
}
inline W dot_codes(W start, const W (&codes)[2], W x, W y) {  // codes up to 24: four fit into 16 bits
  return {_mm256_add_epi32(start.a, four_of(codes[0].a, x.a, codes[1].a, y.a)),
          _mm256_add_epi32(start.b, four_of(codes[0].b, x.b, codes[1].b, y.b))};
}
inline W whole_codes(W w) { return w; }
inline __m256i signed_quads(__m256i codes, __m256i x) {  // the codes' signs go to x: pairs fit
  return in_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes)));
}
inline W dot_whole(W, W codes, W x) {
  return {signed_quads(codes.a, x.a), signed_quads(codes.b, x.b)};
}

#elif defined(EXPERTUNE_NEON)

struct V { float32x4_t q[4]; };
struct W { uint32x4_t q[4]; };

template <class F>
inline V each(F&& f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline V zero() { return each([](int) { return vdupq_n_f32(0); }); }
inline V load(const float* p) { return each([&](int i) { return vld1q_f32(p + 4 * i); }); }
inline void store(float* p, V v) { for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v.q[i]); }
inline V all(float x) { return each([&](int) { return vdupq_n_f32(x); }); }
inline V fma(V x, V y, V sum) {
  return each([&](int i) { return vfmaq_f32(sum.q[i], x.q[i], y.q[i]); });
}
inline V mul(V x, V y) { return each([&](int i) { return vmulq_f32(x.q[i], y.q[i]); }); }
inline V add(V x, V y) { return each([&](int i) { return vaddq_f32(x.q[i], y.q[i]); }); }
inline float tree(V v) {
  const float32x4_t low = vaddq_f32(v.q[0], v.q[2]), high = vaddq_f32(v.q[1], v.q[3]);
  const float32x4_t four = vaddq_f32(low, high);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline V halves_of(float a, float b) { return each([&](int i) { return vdupq_n_f32(i < 2 ? a : b); }); }
inline W load_words(const uint8_t* p) {
  W w;
  for (int i = 0; i < 4; ++i) w.q[i] = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
  return w;
}
inline W bf16_pairs_upper(W w) {
  for (auto& q : w.q) q = vandq_u32(q, vdupq_n_u32(0xffff0000u));
  return w;
}
inline W bf16_pairs_lower(W w) {
  for (auto& q : w.q) q = vshlq_n_u32(q, 16);
  return w;
}
inline V as_floats(W w) { return each([&](int i) { return vreinterpretq_f32_u32(w.q[i]); }); }
inline V bytes_signed(const uint8_t* p) {
  const int8x16_t raw = vld1q_s8((const int8_t*)p);
  const int16x8_t low = vmovl_s8(vget_low_s8(raw)), high = vmovl_s8(vget_high_s8(raw));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
           vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
// Every fourth of 64 bytes, from the first, the second and so on.
inline void bytes_of_quads(const uint8_t* p, V (&out)[4]) {
  const int8x16x4_t four = vld4q_s8((const int8_t*)p);
  for (int i = 0; i < 4; ++i) {
    const int16x8_t low = vmovl_s8(vget_low_s8(four.val[i]));
    const int16x8_t high = vmovl_s8(vget_high_s8(four.val[i]));
    out[i] = {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
               vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
               vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
  }
}
inline V halves(const uint8_t* p) {
  return each([&](int i) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p + 4 * i)));
  });
}
inline V bf16s(const uint8_t* p) {
  return each([&](int i) {
    const uint16x4_t four = vld1_u16((const uint16_t*)p + 4 * i);
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(four), 16));
  });
}
inline void store_bf16(uint16_t* p, V v) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v.q[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t ordered = vceqq_f32(v.q[i], v.q[i]);
    const uint32x4_t kept = vbslq_u32(ordered, up, vorrq_u32(bits, vdupq_n_u32(0x400000)));
    vst1_u16(p + 4 * i, vshrn_n_u32(kept, 16));
  }
}
template <int BITS>
inline W packed(const uint8_t* p) {
  if constexpr (BITS == 4) return load_words(p);
  W w;
  for (int i = 0; i < 4; ++i) {
    if constexpr (BITS == 2) {
      w.q[i] = vmovl_u16(vld1_u16((const uint16_t*)p + 4 * i));
    } else {
      uint8_t twelve[16] = {};
      std::memcpy(twelve, p + 12 * i, 12);
      const uint8_t places[16] = {0, 1, 2, 255, 3, 4, 5, 255, 6, 7, 8, 255, 9, 10, 11, 255};
      w.q[i] = vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(twelve), vld1q_u8(places)));
    }
  }
  return w;
}
struct Table { int8x16_t values; };
template <int BITS, bool E2M1>
inline Table table() { return {vld1q_s8(kTwiceE2m1)}; }
template <int BITS, bool E2M1, int NUMBER>
inline V code(W w, Table t) {
  const int32x4_t shift = vdupq_n_s32(-BITS * NUMBER);
  return each([&](int i) {
    const uint32x4_t index = vandq_u32(vshlq_u32(w.q[i], shift), vdupq_n_u32((1 << BITS) - 1));
    if constexpr (!E2M1) {
      return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(index), vdupq_n_s32(8)));
    } else {
      const int8x16_t byte = vqtbl1q_s8(t.values, vreinterpretq_u8_u32(index));
      return vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_s8(byte), 24), 24));
    }
  });
}
struct Scales { V scale, zero_point; };
inline V zeros_of(Scales s) { return s.zero_point; }
inline V scales_of(Scales s) { return s.scale; }
inline V fp8s(const uint8_t* p) {
  const uint8x16_t raw = vld1q_u8(p);
  const uint16x8_t wide[2] = {vmovl_u8(vget_low_u8(raw)), vmovl_u8(vget_high_u8(raw))};
  V v;
  for (int i = 0; i < 2; ++i) {
    const uint16x8_t sign = vshlq_n_u16(vandq_u16(wide[i], vdupq_n_u16(0x80)), 8);
    const uint16x8_t rest = vandq_u16(wide[i], vdupq_n_u16(0x7f));
    const uint16x8_t nan = vceqq_u16(rest, vdupq_n_u16(0x7f));
    const uint16x8_t half = vorrq_u16(vshlq_n_u16(rest, 7), sign);
    const uint16x8_t safe = vorrq_u16(half, vandq_u16(nan, vdupq_n_u16(0x7e00)));
    const float16x8_t both = vreinterpretq_f16_u16(safe);
    v.q[2 * i] = vmulq_n_f32(vcvt_f32_f16(vget_low_f16(both)), 256.0f);
    v.q[2 * i + 1] = vmulq_n_f32(vcvt_f32_f16(vget_high_f16(both)), 256.0f);
  }
  return v;
}

#endif

#if defined(EXPERTUNE_AVX512)
// In a register from here on: shifts that read memory would load the same words again and again.
inline W kept(W w) {
  asm("" : "+v"(w.a));
  return w;
}
#else
inline W kept(W w) { return w; }
#endif

#if !defined(EXPERTUNE_NEON)
#define EXPERTUNE_BYTES  // there are products of bytes

constexpr int8_t kE2m1Codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

inline W load_bytes(const int8_t* p) { return load_words((const uint8_t*)p); }
inline W load_starts(const int32_t* p) { return load_words((const uint8_t*)p); }

// Codes of a lane's eight columns as bytes, in the order of put_bytes (workspace.h).
template <int BITS, bool E2M1>
inline void code_bytes(const uint8_t* p, W (&out)[2]) {
  const W words = packed<BITS>(p);
  if constexpr (BITS == 4) {
    out[0] = words_and(words, 0x0f0f0f0fu);
    out[1] = words_and(words_right<4>(words), 0x0f0f0f0fu);
    if constexpr (E2M1) {
      out[0] = looked_up(out[0], kE2m1Codes);
      out[1] = looked_up(out[1], kE2m1Codes);
    }
  } else {
    constexpr uint32_t kFour = (1u << 4 * BITS) - 1, kTwo = ((1u << 2 * BITS) - 1) * 0x00010001u;
    constexpr uint32_t kOne = ((1u << BITS) - 1) * 0x01010101u;
    out[0] = words_and(words, kFour);
    out[1] = words_and(words_right<4 * BITS>(words), kFour);
    for (W& four : out) {  // two into each half of a lane, then one into each byte
      const W halves_of_four = words_and(joined_left<16 - 2 * BITS>(four), kTwo);
      four = words_and(joined_left<8 - BITS>(halves_of_four), kOne);
    }
  }
}
#endif

#if !defined(EXPERTUNE_AVX512)
inline void trees(const float* lanes, float* out) {
  for (int i = 0; i < kLanes; ++i) out[i] = tree(load(lanes + kLanes * i));
}
inline Scales pair_scales(const uint8_t* p, int64_t count) {
  alignas(64) uint8_t there[64] = {};
  if (count < kLanes) {
    std::memcpy(there, p, 4 * count);
    p = there;
  }
  const W pairs = load_words(p);
  return {as_floats(bf16_pairs_lower(pairs)), as_floats(bf16_pairs_upper(pairs))};
}
inline Scales word_scales(const uint8_t* p, int64_t count) {
  uint32_t words[kLanes] = {};
  std::memcpy(words, p, 4 * count);
  float scale[kLanes], zero_point[kLanes];
  for (int i = 0; i < kLanes; ++i) scale[i] = word_scale(words[i]);
  for (int i = 0; i < kLanes; ++i) zero_point[i] = word_zero(words[i]);
  return {load(scale), load(zero_point)};
}
inline Scales e8m0_scales(const uint8_t* p, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = half_e8m0(p[i]);
  return {load(lanes), zero()};
}
template <int GROUPS>
struct Spread {
  float scale[kLanes];
  Spread() = default;
  inline explicit Spread(V scales) { store(scale, scales); }
  inline V of(int block) const {
    const float* own = scale + block * GROUPS;
    if constexpr (GROUPS == 1) return all(own[0]);
    if constexpr (GROUPS == 2) return halves_of(own[0], own[1]);
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = own[i * GROUPS / kLanes];
    return load(lanes);
  }
};
#endif

}  // namespace
}  // namespace expertune
