// Attention of one query, and decoder layers up to their experts for one token of each sequence.
#pragma once
#include "router.h"

namespace expertune {
namespace {

// Heads of queries and of keys.
struct Heads {
  int64_t query, key;
  double scale;
};

// query [B, Q, key_width] -> out [B, Q, value_width]; at(sequence, head): what a head attends to.
template <class At>
void attend_all(Context& context, Number number, int64_t sequences, const Heads& heads,
                const void* query, void* out, const At& at) {
  const int64_t shared = heads.query / heads.key;
  context.pool.each(sequences * heads.key, [&](int64_t item) {
    const int64_t sequence = item / heads.key, head = item % heads.key;
    const Attended to = at(sequence, head);
    thread_local std::vector<float> own_query, scores, found;
    own_query.resize(to.key_width);
    scores.resize(to.length);
    found.resize(to.value_width);
    for (int64_t i = 0; i < shared; ++i) {
      const int64_t row = sequence * heads.query + head * shared + i;
      for (int64_t d = 0; d < to.key_width; ++d) {
        own_query[d] =
            from_number(query, number, row * to.key_width + d) * static_cast<float>(heads.scale);
      }
      context.products.attend(to, number, own_query.data(), scores.data(), found.data());
      write_numbers(out, number, row * to.value_width, to.value_width, found.data());
    }
  });
}

void run_attention(Context& context, const Attention& a, const void* query, const void* keys,
                   const void* values, const float* mask, void* out) {
  const auto number = static_cast<Number>(a.number);
  const int64_t size = number == Number::kFloat32 ? 4 : 2;
  const auto at = [&](int64_t sequence, int64_t head) -> Attended {
    return {static_cast<const char*>(keys) + (sequence * a.key_batch + head * a.key_head) * size,
            static_cast<const char*>(values) +
                (sequence * a.value_batch + head * a.value_head) * size,
            a.length, a.key_width, a.value_width, a.key_stride, a.value_stride,
            mask == nullptr ? nullptr : mask + sequence * a.length};
  };
  attend_all(context, number, a.sequences, {a.query_heads, a.heads, a.scale}, query, out, at);
}

// x [T, count] -> out [T, count], both contiguous; weight [count]; all of `number`.
void norm_rows(Context& context, Number number, const void* x, uint64_t weight, int64_t tokens,
               int64_t count, double epsilon, char* out) {
  const int64_t size = count * (number == Number::kFloat32 ? 4 : 2);
  auto one = [&](int64_t token) {
    context.products.norm(number, static_cast<const char*>(x) + token * size,
                          reinterpret_cast<const void*>(weight), count,
                          static_cast<float>(epsilon), out + token * size);
  };
  if (tokens * count < 1 << 15) {
    context.pool.each(1, [&](int64_t) {
      for (int64_t token = 0; token < tokens; ++token) one(token);
    });
  } else {
    context.pool.each(tokens, one);
  }
}

// Into `targets`, writing to out [T, rows].
void add_targets(const Linear& linear, char* out, int64_t size, std::vector<Target>& targets) {
  int64_t first = 0;
  for (int64_t i = 0; i < linear.count; ++i) {
    const Block& block = linear.blocks[i];
    targets.push_back({&block.matrix, reinterpret_cast<const uint8_t*>(block.record),
                       out + first * size, linear.rows});
    first += block.matrix.rows;
  }
}

// Between -most and most, rounded, where they lie.
void clip_numbers(void* x, Number number, int64_t count, float most) {
  const float clip = rounded(most, number);
  for (int64_t i = 0; i < count; ++i) {
    const float v = from_number(x, number, i);
    put_number(x, number, i, v < -clip ? -clip : v > clip ? clip : v);
  }
}

// x [T, heads * width]: norm, clip, rotate, in place. cosine, sine [T or 1, rotated].
void turn(Context& context, const Step& step, uint64_t weight, int64_t norm_width, double epsilon,
          int64_t heads, int64_t tokens, const void* cosine, const void* sine, int64_t stride, char* x) {
  const auto number = static_cast<Number>(step.number);
  const int64_t size = number == Number::kFloat32 ? 4 : 2, row = heads * step.width;
  thread_local std::vector<float> c, s;
  c.resize(step.rotated), s.resize(step.rotated);
  for (int64_t token = 0; token < tokens; ++token) {
    char* own = x + token * row * size;
    for (int64_t first = 0; norm_width != 0 && first < row; first += norm_width) {
      context.products.norm(number, own + first * size, reinterpret_cast<const void*>(weight),
                            norm_width, static_cast<float>(epsilon), own + first * size);
    }
    if (step.clip > 0) clip_numbers(own, number, row, static_cast<float>(step.clip));
    read_numbers(cosine, number, token * stride, step.rotated, c.data());
    read_numbers(sine, number, token * stride, step.rotated, s.data());
    for (int64_t head = 0; head < heads; ++head) {
      context.products.rotate(number, own + head * step.width * size, c.data(), s.data(),
                              step.rotated / 2);
    }
  }
}

void run_step(Context& context, const Step& step, const void* x, int64_t tokens,
              const void* cosine, const void* sine, int64_t stride, const Store* stores, void* out) {
  const auto number = static_cast<Number>(step.number);
  const int64_t size = number == Number::kFloat32 ? 4 : 2;
  const int64_t wide = step.heads * step.width, narrow = step.key_heads * step.width;
  thread_local std::vector<char> own_buffer;
  thread_local std::vector<Target> own_targets;
  std::vector<char>& buffer = own_buffer;
  std::vector<Target>& targets = own_targets;
  buffer.resize(tokens * (2 * wide + 2 * narrow) * size);
  char* query = buffer.data();
  char* key = query + tokens * wide * size;
  char* value = key + tokens * narrow * size;
  char* attended = value + tokens * narrow * size;
  targets.clear();
  add_targets(step.query, query, size, targets);
  add_targets(step.key, key, size, targets);
  add_targets(step.value, value, size, targets);
  const int64_t columns = targets[0].matrix->columns;
  run_linears(context, targets.data(), targets.size(), x, number, tokens, columns);
  context.pool.each(1, [&](int64_t) {
    turn(context, step, step.query_norm, step.query_norm_width, step.query_epsilon, step.heads,
         tokens, cosine, sine, stride, query);
    turn(context, step, step.key_norm, step.key_norm_width, step.key_epsilon, step.key_heads, tokens,
         cosine, sine, stride, key);
    if (step.clip > 0) clip_numbers(value, number, tokens * narrow, static_cast<float>(step.clip));
    const int64_t width = step.width * size;
    for (int64_t row = 0; row < tokens * step.key_heads; ++row) {
      const Store& store = stores[row / step.key_heads];
      const int64_t to = (row % step.key_heads * store.room + store.position) * width;
      std::memcpy(reinterpret_cast<char*>(store.keys) + to, key + row * width, width);
      std::memcpy(reinterpret_cast<char*>(store.values) + to, value + row * width, width);
    }
  });
  const auto at = [&](int64_t sequence, int64_t head) -> Attended {
    const Store& store = stores[sequence];
    const int64_t first = head * store.room * step.width * size;
    return {reinterpret_cast<const char*>(store.keys) + first,
            reinterpret_cast<const char*>(store.values) + first,
            store.position + 1, step.width, step.width, step.width, step.width, nullptr};
  };
  attend_all(context, number, tokens, {step.heads, step.key_heads, step.scale}, query, attended, at);
  targets.clear();
  add_targets(step.output, static_cast<char*>(out), size, targets);
  run_linears(context, targets.data(), targets.size(), attended, number, tokens, wide);
}

template <Number NUMBER>
void add_numbers(const void* a, const void* b, int64_t count, void* out) {
  for (int64_t i = 0; i < count; ++i) {
    put_number(out, NUMBER, i, from_number(a, NUMBER, i) + from_number(b, NUMBER, i));
  }
}

void add_rows(Number number, const void* a, const void* b, int64_t count, void* out) {
  switch (number) {
    case Number::kFloat32: return add_numbers<Number::kFloat32>(a, b, count, out);
    case Number::kBf16: return add_numbers<Number::kBf16>(a, b, count, out);
    case Number::kFp16: return add_numbers<Number::kFp16>(a, b, count, out);
  }
}

// x [T, D] -> residual [T, D], normed [T, D] and what the router says of it.
void run_front(Context& context, const Front& front, const void* x, int64_t tokens,
               const void* cosine, const void* sine, int64_t stride, const Store* stores,
               char* residual, char* normed, const Routed& routed) {
  const auto number = static_cast<Number>(front.step.number);
  const int64_t width = front.step.query.blocks[0].matrix.columns;
  norm_rows(context, number, x, front.input_norm, tokens, width, front.input_epsilon, normed);
  run_step(context, front.step, normed, tokens, cosine, sine, stride, stores, residual);
  add_rows(number, x, residual, tokens * width, residual);
  norm_rows(context, number, residual, front.post_norm, tokens, width, front.post_epsilon, normed);
  if (front.router.block.matrix.rows != 0) {
    run_router(context, front.router, normed, number, tokens, routed);
  }
}

}  // namespace
}  // namespace expertune
