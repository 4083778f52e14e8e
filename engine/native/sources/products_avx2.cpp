#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define EXPERTUNE_AVX2
#include "fit_lanes.h"
#include "products.h"
#else
#include "matrix.h"
#endif

namespace expertune {

const Products* avx2_products() {
#if defined(EXPERTUNE_AVX2)
  static const Products products = {"avx2", rows, wants_pairs, wants_bytes, plain, gate_rows, attend,
                                    norm, rotate, combine, arrange, round_row, quantize};
  return &products;
#else
  return nullptr;
#endif
}

}  // namespace expertune
