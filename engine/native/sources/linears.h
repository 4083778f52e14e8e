// Linear layers that read the same activations.
#pragma once
#include "workspace.h"

namespace expertune {
namespace {

// One matrix times the same activations as others.
struct Target {
  const Matrix* matrix;
  const uint8_t* record;
  void* out;  // [T, N], rows `stride` numbers apart
  int64_t stride;
};

void run_linears(Context& context, const Target* targets, int64_t count, const void* x,
                 Number number, int64_t tokens, int64_t stride) {
  for (int64_t i = 1; i < count; ++i) {
    if (read_alike(*targets[0].matrix, *targets[i].matrix)) continue;
    for (i = 0; i < count; ++i) run_linears(context, targets + i, 1, x, number, tokens, stride);
    return;
  }
  thread_local Workspace own;
  thread_local std::vector<int64_t> own_ends;
  Workspace& prepared = own;
  std::vector<int64_t>& ends = own_ends;
  fill(context, prepared, *targets[0].matrix, x, number, tokens, stride);
  ends.clear();
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t step = rows_of_item(*targets[i].matrix, context.pool.threads(), kItemBytes);
    pieces += (targets[i].matrix->rows + step - 1) / step;
    ends.push_back(pieces);
  }
  context.pool.each(pieces, [&](int64_t item) {
    const int64_t which = std::upper_bound(ends.begin(), ends.end(), item) - ends.begin();
    const Target& target = targets[which];
    const Matrix& matrix = *target.matrix;
    const int64_t step = rows_of_item(matrix, context.pool.threads(), kItemBytes);
    const int64_t first = (item - (which == 0 ? 0 : ends[which - 1])) * step;
    const int64_t rows = std::min(step, matrix.rows - first);
    thread_local std::vector<float> y;
    y.resize(kTokensAtOnce * rows);
    for (int64_t start = 0; start < tokens; start += kTokensAtOnce) {
      Prepared part = prepared.prepared();
      part.tokens = std::min(kTokensAtOnce, tokens - start);
      if (part.values) part.values += start * part.width;
      if (part.pairs) part.pairs += start * part.width;
      if (part.sums) part.sums += start * part.sums_width;
      if (part.steps) part.steps += start * part.steps_width;
      if (part.bytes) {
        part.bytes += start * part.width;
        part.starts += start * part.blocks * kLanes;
      }
      context.products.rows(matrix, target.record, first, first + rows, part, y.data(), rows);
      finish(matrix, target.record, first, rows, part.tokens, number, y.data());
      for (int64_t token = 0; token < part.tokens; ++token) {
        write_numbers(target.out, number, (start + token) * target.stride + first, rows,
                      y.data() + token * rows);
      }
    }
  });
}

void run_linear(Context& context, const Matrix& matrix, const uint8_t* record, const void* x,
                Number number, int64_t tokens, int64_t stride, void* out, int64_t out_stride) {
  const Target target = {&matrix, record, out, out_stride};
  run_linears(context, &target, 1, x, number, tokens, stride);
}

}  // namespace
}  // namespace expertune
