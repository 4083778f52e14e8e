// Routers: a linear layer, then a softmax and the best experts of each token.
#pragma once
#include "linears.h"
#include "structures.h"

namespace expertune {
namespace {

// Where a router writes: logits [T, E] of the activations' number, weights [T, K], index [T, K].
struct Routed {
  char* logits;
  char* weights;
  int64_t* index;
};

// The best of logits [E], equal ones in their order -> weights [K], index [K]. At most E are chosen.
void choose(const Router& router, const float* logits, float* weights, int64_t* index) {
  const int64_t experts = router.block.matrix.rows;
  const auto form = static_cast<RouterForm>(router.form);
  thread_local std::vector<char> taken;
  taken.assign(experts, 0);
  for (int64_t k = 0; k < router.chosen; ++k) {
    int64_t best = -1;
    for (int64_t expert = 0; expert < experts; ++expert) {
      if (!taken[expert] && (best < 0 || logits[expert] > logits[best])) best = expert;
    }
    index[k] = best;
    taken[best] = 1;
  }
  const float most = logits[index[0]];
  const auto exp_below = [most](float logit) {
    const float less = logit - most;
    return less == less ? exp_of(less) : less;  // not a number stays so
  };
  float sum = 0;
  if (form == RouterForm::kSoftmax) {
    for (int64_t expert = 0; expert < experts; ++expert) sum += exp_below(logits[expert]);
  } else {
    for (int64_t k = 0; k < router.chosen; ++k) sum += exp_below(logits[index[k]]);
  }
  float chosen = 0;
  for (int64_t k = 0; k < router.chosen; ++k) {
    weights[k] = exp_below(logits[index[k]]) / sum;
    chosen += weights[k];
  }
  for (int64_t k = 0; router.normalized != 0 && k < router.chosen; ++k) weights[k] /= chosen;
}

void run_router(Context& context, const Router& router, const void* x, Number number,
                int64_t tokens, const Routed& to) {
  const Matrix& matrix = router.block.matrix;
  run_linear(context, matrix, reinterpret_cast<const uint8_t*>(router.block.record), x, number,
             tokens, matrix.columns, to.logits, matrix.rows);
  thread_local std::vector<float> logits, weights;
  logits.resize(matrix.rows), weights.resize(router.chosen);
  for (int64_t token = 0; token < tokens; ++token) {
    read_numbers(to.logits, number, token * matrix.rows, matrix.rows, logits.data());
    choose(router, logits.data(), weights.data(), to.index + token * router.chosen);
    write_numbers(to.weights, static_cast<Number>(router.weights_number), token * router.chosen,
                  router.chosen, weights.data());
  }
}

}  // namespace
}  // namespace expertune
