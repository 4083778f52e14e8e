// What this processor and its system offer. Asked directly: ziglang 0.17 answers no to every
// __builtin_cpu_supports.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace expertune {

struct Processor {
  bool avx2 = false;         // with FMA, F16C and BMI2
  bool avx512 = false;       // F, BW, DQ and VL
  bool avx512_bf16 = false;  // and VNNI
};

inline Processor this_processor() {
  Processor found;
#if defined(__x86_64__)
  const auto has = [](unsigned word, int bit) { return ((word >> bit) & 1u) != 0; };
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool saves = has(c, 27), fused = has(c, 12) && has(c, 29) && has(c, 28);
  if (!saves || !fused) return found;
  unsigned kept, upper;  // which registers the system keeps when it switches threads
  asm volatile("xgetbv" : "=a"(kept), "=d"(upper) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const unsigned subleaves = a;
  const bool bytes = has(c, 11);  // AVX512_VNNI
  found.avx2 = (kept & 0x06) == 0x06 && has(b, 5) && has(b, 8);
  found.avx512 = found.avx2 && (kept & 0xe6) == 0xe6 && has(b, 16) && has(b, 17) && has(b, 30) &&
                 has(b, 31);
  if (found.avx512 && subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx512_bf16 = has(a, 5) && bytes;
  }
#endif
  return found;
}

}  // namespace expertune
