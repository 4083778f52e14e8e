// Activations of experts, rounded after every operation as torch rounds in the same precision.
#pragma once
#include <cmath>

#include "matrix.h"

namespace expertune {

// The numbers are part of the interface with engine/native/library.py.
enum class Activation : int64_t {
  kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kReluSquared = 4, kQuickGelu = 5
};
enum class GateForm : int64_t {
  kNone = 0,           // act(u)
  kProduct = 1,        // act(g) * u
  kClamped = 2,        // act(min(g, limit)) * clamp(u)
  kClampedPlusOne = 3, // (clamp(u) + 1) * g' * sigmoid(alpha * g'), g' = min(g, limit)
  kClampedAfter = 4,   // min(act(g), limit) * clamp(u)
  kWide = 5,           // act(g) * u in float32, rounded once
};

struct Gate {
  int64_t form;
  int64_t activation;
  int64_t interleaved;  // gate and up alternate; else all gates come first
  double alpha;
  double limit;
};

namespace {

// exp to about 2 units in the last place, by the same steps everywhere.
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = __builtin_fmaf(x, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  float r = __builtin_fmaf(n, -0.693359375f, x);
  r = __builtin_fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __builtin_fmaf(p, r, 1.3981999507e-3f);
  p = __builtin_fmaf(p, r, 8.3334519073e-3f);
  p = __builtin_fmaf(p, r, 4.1665795894e-2f);
  p = __builtin_fmaf(p, r, 1.6666665459e-1f);
  p = __builtin_fmaf(p, r, 5.0000001201e-1f);
  p = __builtin_fmaf(p, r * r, r) + 1.0f;
  return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

template <Number NUMBER>
inline float round_to(float x) {
  if constexpr (NUMBER == Number::kFloat32) return x;
  else if constexpr (NUMBER == Number::kBf16) return from_bf16(to_bf16(x));
  else return from_fp16(to_fp16(x));
}

template <Number NUMBER>
inline float activated(Activation kind, float x) {
  switch (kind) {
    case Activation::kSilu: return round_to<NUMBER>(x / (1.0f + exp_of(-x)));
    case Activation::kGelu: return round_to<NUMBER>(x * 0.5f * (1.0f + std::erf(x * 0.70710678f)));
    case Activation::kGeluTanh: {
      const float inner = 0.79788456f * (x + 0.044715f * x * x * x);
      return round_to<NUMBER>(0.5f * x * (2.0f - 2.0f / (exp_of(2.0f * inner) + 1.0f)));
    }
    case Activation::kRelu: return x < 0 ? 0 : x;
    case Activation::kReluSquared: return x < 0 ? 0 : round_to<NUMBER>(x * x);
    case Activation::kQuickGelu:
      return round_to<NUMBER>(x * round_to<NUMBER>(sigmoid(round_to<NUMBER>(1.702f * x))));
  }
  return x;
}

inline float between(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

template <Number NUMBER>
inline float gated(const Gate& gate, float g, float u) {
  const auto kind = (Activation)gate.activation;
  const float limit = round_to<NUMBER>((float)gate.limit);
  switch ((GateForm)gate.form) {
    case GateForm::kNone: return activated<NUMBER>(kind, u);
    case GateForm::kProduct: return round_to<NUMBER>(activated<NUMBER>(kind, g) * u);
    case GateForm::kWide: return round_to<NUMBER>(activated<Number::kFloat32>(kind, g) * u);
    case GateForm::kClamped:
      return round_to<NUMBER>(activated<NUMBER>(kind, g > limit ? limit : g) *
                              between(u, -limit, limit));
    case GateForm::kClampedAfter: {
      const float a = activated<NUMBER>(kind, g);
      return round_to<NUMBER>((a > limit ? limit : a) * between(u, -limit, limit));
    }
    case GateForm::kClampedPlusOne: {
      const float low = g > limit ? limit : g;
      const float inner = round_to<NUMBER>(low * (float)gate.alpha);
      const float glu = round_to<NUMBER>(low * round_to<NUMBER>(sigmoid(inner)));
      return round_to<NUMBER>(round_to<NUMBER>(between(u, -limit, limit) + 1.0f) * glu);
    }
  }
  return u;
}

// out[i] = the gate of g[i] and u[i]; g and u are rounded to NUMBER already. The common gate has a
// loop of its own, which compilers turn into vectors.
template <Number NUMBER>
inline void gate_all(const Gate& gate, const float* g, const float* u, float* out, int64_t count) {
  if (gate.form == (int64_t)GateForm::kProduct && gate.activation == (int64_t)Activation::kSilu) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = round_to<NUMBER>(round_to<NUMBER>(g[i] / (1.0f + exp_of(-g[i]))) * u[i]);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = gated<NUMBER>(gate, g[i], u[i]);
}

inline void gate_rows(const Gate& gate, Number number, const float* g, const float* u, float* out,
                      int64_t count) {
  switch (number) {
    case Number::kFloat32: return gate_all<Number::kFloat32>(gate, g, u, out, count);
    case Number::kBf16: return gate_all<Number::kBf16>(gate, g, u, out, count);
    case Number::kFp16: return gate_all<Number::kFp16>(gate, g, u, out, count);
  }
}

}  // namespace
}  // namespace expertune
