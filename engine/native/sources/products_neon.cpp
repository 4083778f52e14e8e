#if defined(__aarch64__)
#define EXPERTUNE_NEON
#include "fit_lanes.h"
#include "products.h"
#else
#include "matrix.h"
#endif

namespace expertune {

const Products* neon_products() {
#if defined(EXPERTUNE_NEON)
  static const Products products = {"neon", rows, wants_pairs, wants_bytes, plain, gate_rows, attend,
                                    norm, rotate, combine, arrange, round_row, quantize};
  return &products;
#else
  return nullptr;
#endif
}

}  // namespace expertune
