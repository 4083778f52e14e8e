// The experts of a layer: gate, up, activation and down of every expert that is ready.
#pragma once
#include "structures.h"
#include "workspace.h"

namespace expertune {
namespace {

struct Chosen {  // the tokens of one expert that is computed
  const uint8_t* record;
  int64_t first;  // into `tokens` and `places`
  int64_t count;
};

struct ExpertsScratch {
  Workspace x, hidden;
  std::vector<Chosen> experts;
  std::vector<int32_t> tokens, order;
  std::vector<int64_t> places, starts;
};

void list_tokens(ExpertsScratch& scratch, const uint64_t* records, int64_t experts, int64_t tokens,
                 int64_t chosen, const int64_t* index) {
  const int64_t all = tokens * chosen;
  scratch.starts.assign(experts + 1, 0);
  for (int64_t i = 0; i < all; ++i) {
    if (index[i] >= 0 && index[i] < experts && records[index[i]]) ++scratch.starts[index[i] + 1];
  }
  scratch.experts.clear();
  for (int64_t expert = 0; expert < experts; ++expert) {
    const int64_t count = scratch.starts[expert + 1];
    scratch.starts[expert + 1] += scratch.starts[expert];
    if (count == 0) continue;
    scratch.experts.push_back(
        {reinterpret_cast<const uint8_t*>(records[expert]), scratch.starts[expert], count});
  }
  scratch.tokens.resize(scratch.starts[experts]);
  scratch.places.resize(scratch.starts[experts]);
  for (int64_t i = 0; i < all; ++i) {
    if (index[i] < 0 || index[i] >= experts || !records[index[i]]) continue;
    const int64_t place = scratch.starts[index[i]]++;
    scratch.tokens[place] = static_cast<int32_t>(i / chosen);
    scratch.places[place] = i;
  }
}

void run_experts(Context& context, const Experts& spec, const uint64_t* records, int64_t experts,
                 const void* x, Number number, int64_t tokens, int64_t chosen, const int64_t* index,
                 void* out) {
  thread_local ExpertsScratch own;
  ExpertsScratch& scratch = own;
  list_tokens(scratch, records, experts, tokens, chosen, index);
  if (scratch.experts.empty()) return;
  fill(context, scratch.x, spec.up, x, number, tokens, spec.up.columns);
  const bool gated = spec.gate.form != static_cast<int64_t>(GateForm::kNone);
  const int64_t width = spec.down.columns;  // F
  scratch.hidden.shape(context.products, spec.down, number, scratch.places.size());

  const int64_t together = std::max<int64_t>(kLanes, rounded_columns(spec.down));
  const int64_t step = rows_of_item(spec.up, context.pool.threads(), kItemBytes, together);
  const int64_t pieces = (width + step - 1) / step;
  context.pool.each(scratch.experts.size() * pieces, [&](int64_t item) {
    const Chosen& expert = scratch.experts[item / pieces];
    const int64_t first = item % pieces * step, count = std::min(step, width - first);
    thread_local std::vector<float> y, g, u, h;
    const int64_t wide = gated ? 2 * count : count;
    y.resize(kTokensAtOnce * wide);
    g.resize(count), u.resize(count), h.resize(count);
    for (int64_t start = 0; start < expert.count; start += kTokensAtOnce) {
      Prepared part = scratch.x.prepared();
      part.tokens = std::min(kTokensAtOnce, expert.count - start);
      part.chosen = scratch.tokens.data() + expert.first + start;
      auto rows = [&](int64_t from, int64_t number_of_rows, float* into) {
        context.products.rows(spec.up, expert.record, from, from + number_of_rows, part, into,
                              number_of_rows);
        finish(spec.up, expert.record, from, number_of_rows, part.tokens, number, into);
      };
      if (!gated) {
        rows(first, count, y.data());
      } else if (spec.gate.interleaved) {
        rows(2 * first, 2 * count, y.data());
      } else {
        rows(first, count, y.data());
        rows(width + first, count, y.data() + part.tokens * count);
      }
      for (int64_t token = 0; token < part.tokens; ++token) {
        const float *gate = nullptr, *up = y.data() + token * count;
        if (gated && spec.gate.interleaved) {
          const float* both = y.data() + token * 2 * count;
          for (int64_t i = 0; i < count; ++i) g[i] = both[2 * i], u[i] = both[2 * i + 1];
          gate = g.data();
          up = u.data();
        } else if (gated) {
          gate = y.data() + token * count;
          up = y.data() + (part.tokens + token) * count;
        } else {
          gate = up;
        }
        context.products.gate(spec.gate, number, gate, up, h.data(), count);
        scratch.hidden.put(context.products, expert.first + start + token, first, count, h.data(),
                           Number::kFloat32, 0);
      }
    }
  });

  for (size_t token = 0; token < scratch.places.size(); ++token) scratch.hidden.sum_groups(token);
  const int64_t height = spec.down.rows;  // D
  const int64_t down_step = rows_of_item(spec.down, context.pool.threads(), kItemBytes);
  const int64_t down_pieces = (height + down_step - 1) / down_step;
  scratch.order.resize(scratch.places.size());
  for (size_t i = 0; i < scratch.order.size(); ++i) scratch.order[i] = static_cast<int32_t>(i);
  context.pool.each(scratch.experts.size() * down_pieces, [&](int64_t item) {
    const Chosen& expert = scratch.experts[item / down_pieces];
    const int64_t first = item % down_pieces * down_step;
    const int64_t count = std::min(down_step, height - first);
    thread_local std::vector<float> y;
    y.resize(kTokensAtOnce * count);
    for (int64_t start = 0; start < expert.count; start += kTokensAtOnce) {
      Prepared part = scratch.hidden.prepared();
      part.tokens = std::min(kTokensAtOnce, expert.count - start);
      part.chosen = scratch.order.data() + expert.first + start;
      context.products.rows(spec.down, expert.record, first, first + count, part, y.data(), count);
      finish(spec.down, expert.record, first, count, part.tokens, number, y.data());
      for (int64_t token = 0; token < part.tokens; ++token) {
        const int64_t place = scratch.places[expert.first + start + token];
        write_numbers(out, number, place * height + first, count, y.data() + token * count);
      }
    }
  });
}

// y [T * K, D], weights [T, K] -> out [T, D].
void run_combine(Context& context, Number number, const void* y, const void* weights,
                 Number weights_number, int64_t tokens, int64_t chosen, int64_t columns, char* out) {
  const int64_t size = columns * (number == Number::kFloat32 ? 4 : 2);
  auto one = [&](int64_t token) {
    thread_local std::vector<float> own;
    own.resize(chosen);
    read_numbers(weights, weights_number, token * chosen, chosen, own.data());
    round_numbers(own.data(), number, chosen);
    context.products.combine(number, static_cast<const char*>(y) + token * chosen * size,
                             own.data(), chosen, columns, out + token * size);
  };
  if (tokens * chosen * columns < 1 << 16) {
    for (int64_t token = 0; token < tokens; ++token) one(token);
  } else {
    context.pool.each(tokens, one);
  }
}

}  // namespace
}  // namespace expertune
