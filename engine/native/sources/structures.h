// What Python passes: addresses are plain numbers. engine/native/values.py mirrors it, field for field.
// Letters: T tokens, D hidden, F expert width, E experts, K chosen ones.
#pragma once
#include "gate.h"
#include "matrix.h"

namespace expertune {

struct Experts {
  Matrix up;    // gate and up together: [2F, D], or [F, D] without a gate
  Matrix down;  // [D, F]
  Gate gate;
};

// One query of each of B sequences: query [B, Q, key_width], keys and values [B, H, length, width]
// with the given strides in numbers; mask float32 [B, length] or null -> out [B, Q, value_width].
struct Attention {
  int64_t number, sequences, query_heads, heads, length, key_width, value_width;
  int64_t key_batch, key_head, key_stride, value_batch, value_head, value_stride;
  double scale;
};

struct Block {
  Matrix matrix;
  uint64_t record;
};

// A linear layer: blocks of rows.
struct Linear {
  int64_t count;
  int64_t rows;
  Block blocks[8];
};

// A whole attention layer for one token of each sequence: projections, norms over `*_norm_width`
// columns (0: none), clipping, rotation of the halves of a head's first `rotated` columns, keys and
// values appended, attention, output.
struct Step {
  Linear query, key, value, output;
  int64_t number, heads, key_heads, width, query_norm_width, key_norm_width, rotated;
  uint64_t query_norm, key_norm;  // weights
  double query_epsilon, key_epsilon, scale, clip;  // clip 0: none
};

enum class RouterForm : int64_t {
  kSoftmax = 0,          // over all experts, then the best
  kSoftmaxOfChosen = 1,  // the best, then over those
};

struct Router {
  Block block;  // [E, D]; no rows: there is no router
  int64_t form, chosen, normalized, weights_number;
};

// What comes before the experts of a decoder layer: norm, attention, its sum with the layer's
// input, norm, router.
struct Front {
  Step step;
  Router router;
  uint64_t input_norm, post_norm;  // weights [D]
  double input_epsilon, post_epsilon;
};

struct Store {  // keys and values of a sequence in a layer, [key_heads, room, width]
  uint64_t keys, values;
  int64_t room, position;  // of its next token
};

// One token of each of T sequences through layers first..count. Passed from Python.
struct Layers {
  int64_t count, first, tokens, experts_of_layer;
  uint64_t fronts;   // of each layer
  uint64_t experts;  // of every layer
  uint64_t records;  // [count, experts_of_layer]: addresses; 0: not there. No array: none is
  uint64_t stores;   // [count, T]
  uint64_t x;        // [T, D]
  uint64_t cosine, sine;
  int64_t stride;
  uint64_t residuals[2];            // [T, D]; a layer's result lies in that of its number
  uint64_t normed, logits, weights; // of the last layer
  uint64_t index;                   // [count, T, K]
  double experts_s;                 // seconds that experts took, added
};

}  // namespace expertune
