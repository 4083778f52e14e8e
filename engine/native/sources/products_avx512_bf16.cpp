#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define EXPERTUNE_AVX512
#define EXPERTUNE_BF16
#include "fit_lanes.h"
#include "products.h"
#else
#include "matrix.h"
#endif

namespace expertune {

const Products* avx512_bf16_products() {
#if defined(EXPERTUNE_BF16)
  static const Products products = {"avx512_bf16", rows, wants_pairs, wants_bytes, plain, gate_rows, attend,
                                    norm, rotate, combine, arrange, round_row, quantize};
  return &products;
#else
  return nullptr;
#endif
}

}  // namespace expertune
