// Decoder layers one after another, as long as the record of every chosen expert is there.
#pragma once
#include <chrono>

#include "experts.h"
#include "layer.h"

namespace expertune {
namespace {

template <class T>
T* at_address(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// Returns the layer that lacks a record, up to whose router all is done; `count`: there is none. Without
// records that is the first.
int64_t run_layers(Context& context, Layers& all) {
  using Clock = std::chrono::steady_clock;
  const auto* fronts = at_address<const Front>(all.fronts);
  const auto* stores = at_address<const Store>(all.stores);
  const auto& spec = *at_address<const Experts>(all.experts);
  thread_local std::vector<char> each, summed;
  const void* x = at_address<const void>(all.x);
  for (int64_t number = all.first; number < all.count; ++number) {
    const Front& front = fronts[number];
    const auto kind = static_cast<Number>(front.step.number);
    const int64_t chosen = front.router.chosen, places = all.tokens * chosen;
    const int64_t width = front.step.query.blocks[0].matrix.columns;
    const int64_t row = width * (kind == Number::kFloat32 ? 4 : 2);
    auto* index = at_address<int64_t>(all.index) + number * places;
    char* residual = at_address<char>(all.residuals[number % 2]);
    char* normed = at_address<char>(all.normed);
    char* weights = at_address<char>(all.weights);
    run_front(context, front, x, all.tokens, at_address<const void>(all.cosine),
              at_address<const void>(all.sine), all.stride, stores + number * all.tokens, residual,
              normed, {at_address<char>(all.logits), weights, index});
    if (all.records == 0) return number;
    const auto since = Clock::now();
    const auto* records = at_address<const uint64_t>(all.records) + number * all.experts_of_layer;
    for (int64_t i = 0; i < places; ++i) {
      if (records[index[i]] == 0) return number;
    }
    each.resize(places * row), summed.resize(all.tokens * row);
    run_experts(context, spec, records, all.experts_of_layer, normed, kind, all.tokens, chosen,
                index, each.data());
    run_combine(context, kind, each.data(), weights, static_cast<Number>(front.router.weights_number),
                all.tokens, chosen, width, summed.data());
    add_rows(kind, residual, summed.data(), all.tokens * width, residual);
    all.experts_s += std::chrono::duration<double>(Clock::now() - since).count();
    x = residual;
  }
  return all.count;
}

}  // namespace
}  // namespace expertune
