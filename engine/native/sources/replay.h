// Replay: the time that a recorded stream of decisions takes. engine/replay/clock.py is the plain
// version; both give the same bits. Letters: B precisions, T most tokens of a pass, plus one.
#pragma once
#include <cstdint>

namespace expertune {

// Passed from Python: engine/replay/native_clock.py mirrors it. Curves hold seconds by tokens, [T];
// by precision: [B, T], [B] or, for rates by chunks in flight, [B, workers + 1].
struct ReplayTimings {
  const double *pass_s, *non_expert_s, *router_s, *policy_s, *layer_s;
  const double *expert_s, *host_expert_s;
  const double *ready_non_expert_s, *ready_policy_s, *ready_expert_s;  // of layers passed unasked
  const double *record_chunks, *record_chunk_bytes, *chunk_s, *rates;
  const int64_t* queued;  // whether chunks are served one after the other
  // Of a host tier that does not hold all records: how many it holds (0: there is none, or it holds
  // all), and which at first, [B, tier_most]; of one that it does not hold: what the disk reads, at
  // which rates, and the seconds of one read alone.
  const int64_t* tier_records;
  const int32_t* tier_filled;
  const double *disk_bytes, *disk_rates, *disk_s;
  int64_t precisions, tier_most, most_tokens, workers, slots;
  int64_t watches_gate, two_priority, order, has_ready;
  double submit_s, gate_lookahead_s, wake_s, restart_s, restart_non_expert_s, host_start_s;
  double contention, host_contention;
};

// Events, as int32: a kind, then what follows it. A step is (expert, slot, bits, hit, after), a fetch
// (layer, expert, slot, bits); experts are numbered over all layers, `after` is -1 for none.
enum class ReplayEvent : int32_t {
  kBeginPass = 0,    // tokens, whether it decodes, fetches
  kGateEntered = 1,  // tokens, fetches
  kRouted = 2,       // layer, tokens, steps
  kLayerRouted = 3,  // layer, steps, fetches, tokens of all steps of the layer pass
  kEndPass = 4,
  kCountArrivals = 5,  // from here on
};

enum class ReplayActivity { kOther, kNonExpert, kPolicy, kRouter, kCompute, kWait, kCount };

// Of a pass: seconds, moved bytes, seconds by activity, which activities there were (bits).
constexpr int64_t kReplayRow = 3 + static_cast<int64_t>(ReplayActivity::kCount);

// rows: [passes, kReplayRow]; arrivals: predicted transfers that were demanded, and those of them
// that had arrived. Returns 0, or 1 if a wait for a cancelled transfer would never end.
int64_t replay(const ReplayTimings& timings, const int32_t* events, int64_t count, double* rows,
               int64_t* arrivals);

}  // namespace expertune
