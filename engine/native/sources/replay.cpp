// Simulated transfers and the clock of a replay; see replay.h.
#include "replay.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <list>
#include <unordered_map>
#include <vector>

namespace expertune {
namespace {

constexpr int32_t kOnHost = -1, kNobody = -1;
constexpr double kNever = std::numeric_limits<double>::infinity();

struct Transfer {
  int32_t expert, bits;
  double chunks, chunk_bytes;
  double issued = 0, arrived = 0;
  bool cancelled = false, ready = false, listed = false;
  int level = -1;  // of the queue; -1: not in it
  Transfer *before = nullptr, *next = nullptr;
};

// The order of transfers: demands before predictions before stale ones, or first come, first served.
class Queue {
 public:
  explicit Queue(bool two_priority) : two_priority_(two_priority) {}

  void push(Transfer* one, bool urgent) { append(one, urgent || !two_priority_ ? 0 : 1); }
  void promote(Transfer* one) { move(one, 0); }
  void demote(Transfer* one) { move(one, 2); }

  void remove(Transfer* one) {
    if (one->level < 0) return;
    (one->before ? one->before->next : first_[one->level]) = one->next;
    (one->next ? one->next->before : last_[one->level]) = one->before;
    one->before = one->next = nullptr;
    one->level = -1;
  }

  Transfer* head() const {
    for (Transfer* one : first_) {
      if (one != nullptr) return one;
    }
    return nullptr;
  }

 private:
  void append(Transfer* one, int level) {
    one->level = level;
    one->before = last_[level];
    (one->before ? one->before->next : first_[level]) = one;
    last_[level] = one;
  }

  void move(Transfer* one, int level) {
    if (!two_priority_ || one->level < 0) return;
    remove(one);
    append(one, level);
  }

  bool two_priority_;
  Transfer *first_[3] = {}, *last_[3] = {};
};

// The records of one precision that a host tier holds; the one used longest ago makes room.
class Tier {
 public:
  Tier(const int32_t* filled, int64_t count) {
    for (int64_t i = 0; i < count; ++i) use(filled[i]);
  }

  // Whether all records come from where the timings say.
  bool is_whole() const { return held_.empty(); }

  // Whether the record is held. It is from now on.
  bool borrow(int32_t expert) {
    const auto found = held_.find(expert);
    const bool held = found != held_.end();
    if (held) {
      order_.erase(found->second);
    } else {
      held_.erase(order_.front());
      order_.pop_front();
    }
    use(expert);
    return held;
  }

 private:
  void use(int32_t expert) { held_[expert] = order_.insert(order_.end(), expert); }

  std::list<int32_t> order_;
  std::unordered_map<int32_t, std::list<int32_t>::iterator> held_;
};

// Transfers that advance only when a later time is asked for.
class Transfers {
 public:
  Transfers(const ReplayTimings& timings, std::vector<Tier>& tiers)
      : timings_(timings),
        tiers_(tiers),
        queue_(timings.two_priority != 0),
        by_slot_(timings.slots) {}

  Transfer* submit(double now, int32_t expert, int32_t slot, int32_t bits, bool demanded) {
    advance(now);
    Transfer* former = by_slot_[slot];
    if (former != nullptr && !former->ready) {
      queue_.remove(former);
      former->cancelled = true;
    }
    all_.push_back({expert, bits, timings_.record_chunks[bits], timings_.record_chunk_bytes[bits]});
    queue_.push(&all_.back(), demanded);
    return by_slot_[slot] = &all_.back();
  }

  void promote(double now, Transfer* one) {
    advance(now);
    queue_.promote(one);
  }

  void demote(double now, Transfer* one) {
    advance(now);
    queue_.demote(one);
  }

  Transfer* in_slot(int32_t slot) const { return by_slot_[slot]; }

  void advance(double until) {
    if (until <= now_) return;
    while (step(until)) {
    }
    now_ = std::max(now_, until);
  }

  // When the first of these is ready; kNever if none will be.
  double wait(double now, const std::vector<Transfer*>& any) {
    advance(now);
    const auto arrived = [&] {
      return std::any_of(any.begin(), any.end(), [](const Transfer* one) { return one->ready; });
    };
    while (!arrived()) {
      if (!step(kNever)) return kNever;
    }
    return std::max(now, now_);
  }

  double moving_fraction(double since, double until) {
    if (until <= since) return 0.0;
    advance(since);
    const double before = busy_s_;
    advance(until);
    return std::min(1.0, (busy_s_ - before) / (until - since));
  }

  double moved_bytes() const { return moved_bytes_; }

 private:
  struct Moving {
    Transfer* transfer;
    double rest_bytes, disk_bytes, speed;

    // The disk reads first what a tier does not hold.
    double next_bytes() const { return disk_bytes > 0 ? disk_bytes : rest_bytes; }
  };

  // To the next arrival, or to `until`; whether there may be more before it.
  bool step(double until) {
    fill();
    if (moving_.empty()) return false;
    set_speeds();
    double span = kNever;
    for (const Moving& one : moving_) {
      if (one.speed > 0) span = std::min(span, one.next_bytes() / one.speed);
    }
    if (until != kNever && now_ + span > until) {
      progress(until - now_);
      now_ = until;
      return false;
    }
    progress(span);
    now_ += span;
    arrive();
    return true;
  }

  void set_speeds() {
    const auto shares = [&](const Moving& one) {
      return one.disk_bytes > 0 || !timings_.queued[one.transfer->bits];
    };
    const int64_t sharing = std::count_if(moving_.begin(), moving_.end(), shares);
    bool is_taken = false;
    for (Moving& one : moving_) {
      if (shares(one)) {
        one.speed = rate(one, sharing) / static_cast<double>(sharing);
      } else {
        one.speed = is_taken ? 0.0 : rate(one, 1);
        is_taken = true;
      }
    }
  }

  double rate(const Moving& one, int64_t in_flight) const {
    const double* rates = one.disk_bytes > 0 ? timings_.disk_rates : timings_.rates;
    return rates[one.transfer->bits * (timings_.workers + 1) + in_flight];
  }

  void progress(double span) {
    busy_s_ += span;
    for (Moving& one : moving_) {
      if (one.disk_bytes > 0) {
        const double left = one.disk_bytes - span * one.speed;
        one.disk_bytes = left > 1e-6 ? left : 0.0;
      } else {
        one.rest_bytes -= span * one.speed;
      }
    }
  }

  void fill() {
    while (static_cast<int64_t>(moving_.size()) < timings_.workers) {
      Transfer* one = queue_.head();
      if (one == nullptr) return;
      one->issued += 1;
      if (one->issued == one->chunks) queue_.remove(one);
      Moving chunk = {one, 0.0, 0.0, 0.0};
      chunk.rest_bytes = one->chunk_bytes + timings_.chunk_s[one->bits] * rate(chunk, 1);
      Tier& tier = tiers_[one->bits];
      if (!tier.is_whole() && !tier.borrow(one->expert)) {
        chunk.disk_bytes = timings_.disk_bytes[one->bits];
      }
      moving_.push_back(chunk);
    }
  }

  void arrive() {
    size_t kept = 0;
    for (size_t i = 0; i < moving_.size(); ++i) {
      if (moving_[i].disk_bytes > 0 || moving_[i].rest_bytes > 1e-6) {
        moving_[kept++] = moving_[i];
        continue;
      }
      Transfer* one = moving_[i].transfer;
      one->arrived += 1;
      moved_bytes_ += one->chunk_bytes;
      if (one->arrived == one->chunks && !one->cancelled) one->ready = true;
    }
    moving_.resize(kept, Moving{});
  }

  const ReplayTimings& timings_;
  std::vector<Tier>& tiers_;
  Queue queue_;
  std::vector<Transfer*> by_slot_;
  std::deque<Transfer> all_;
  std::vector<Moving> moving_;
  double now_ = 0, busy_s_ = 0, moved_bytes_ = 0;
};

struct Step {
  int32_t expert, slot, bits, hit, after, tokens;
};

struct Held {
  bool is_gate;
  int32_t tokens;
};

class Clock {
 public:
  Clock(const ReplayTimings& timings, double* rows, int64_t* arrivals)
      : timings_(timings), transfers_(timings, tiers_), next_row_(rows), arrivals_(arrivals) {
    tiers_.reserve(timings.precisions);  // moving one would leave its places behind
    for (int64_t bits = 0; bits < timings.precisions; ++bits) {
      tiers_.emplace_back(timings.tier_filled + bits * timings.tier_most,
                          timings.tier_records[bits]);
    }
  }

  bool run(const int32_t* at, const int32_t* end) {
    at_ = at;
    while (at_ < end && !stuck_) {
      switch (static_cast<ReplayEvent>(next())) {
        case ReplayEvent::kBeginPass: begin_pass(); break;
        case ReplayEvent::kGateEntered: gate_entered(); break;
        case ReplayEvent::kRouted: routed(); break;
        case ReplayEvent::kLayerRouted: layer_routed(); break;
        case ReplayEvent::kEndPass: end_pass(); break;
        case ReplayEvent::kCountArrivals: arrivals_[0] = arrivals_[1] = 0; break;
      }
    }
    return !stuck_;
  }

 private:
  using Activity = ReplayActivity;

  int32_t next() { return *at_++; }

  void begin_pass() {
    row_ = next_row_;
    next_row_ += kReplayRow;
    activities_ = 0;
    started_ = now_;
    const int32_t tokens = next();
    holds_ = next() && timings_.has_ready;
    fetch();
    spend(Activity::kOther, timings_.pass_s[tokens]);
    hold();
  }

  void gate_entered() {
    const int32_t tokens = next();
    if (is_held_) {
      held_.push_back({true, tokens});
      next();  // no fetches
      return;
    }
    enter(tokens, true);
  }

  void enter(int32_t tokens, bool fetches) {
    spend(Activity::kNonExpert, timings_.non_expert_s[tokens] + woken_s());
    if (timings_.watches_gate) spend(Activity::kPolicy, timings_.gate_lookahead_s);
    if (fetches) fetch();
    spend(Activity::kRouter, timings_.router_s[tokens]);
  }

  void routed() {
    next();  // the layer
    const int32_t tokens = next();
    if (steps_.empty()) tokens_ = 0;
    tokens_ += tokens;
    const size_t first = steps_.size();
    take_steps();
    if (is_held_) {
      held_.push_back({false, tokens});
      if (are_there(first)) return;
      ask();
    } else {
      spend(Activity::kPolicy, timings_.policy_s[tokens]);
    }
    for (size_t i = first; i < steps_.size(); ++i) {
      const Step& step = steps_[i];
      if (step.slot == kOnHost) continue;
      if (!step.hit) {
        load(step.expert, step.slot, step.bits, true);
        continue;
      }
      Transfer* transfer = transfers_.in_slot(step.slot);
      if (transfer == nullptr) continue;
      transfers_.advance(now_);
      const bool arrived = transfer->ready;
      if (!arrived) transfers_.promote(now_, transfer);
      if (transfer->listed) {
        arrivals_[0] += 1;
        arrivals_[1] += arrived;
      }
    }
  }

  void layer_routed() {
    const int32_t layer = next();
    const size_t first = steps_.size();
    take_steps();
    if (is_held_ && first == steps_.size()) {
      pass_unasked();
      return;
    }
    if (is_held_) ask();
    for (size_t i = first; i < steps_.size(); ++i) {
      if (steps_[i].after == kNobody) load(steps_[i].expert, steps_[i].slot, steps_[i].bits, true);
    }
    demote(layer);
    fetch();
    for (Step& step : steps_) step.tokens = next();
    spend(Activity::kCompute, timings_.layer_s[tokens_]);
    const double host_done = start_host();
    waiting_.clear();
    pending_.clear();
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (i >= first && steps_[i].after != kNobody) waiting_[steps_[i].after] = &steps_[i];
      if (steps_[i].slot != kOnHost && steps_[i].after == kNobody) pending_.push_back(&steps_[i]);
    }
    while (!pending_.empty() && !stuck_) compute_one();
    if (host_done > now_) {
      note(Activity::kCompute, host_done - now_);
      now_ = host_done;
    }
    steps_.clear();
    hold();
  }

  // A layer that may be passed unasked: what it would spend is held until that is known.
  void hold() {
    held_.clear();
    is_held_ = holds_;
  }

  void ask() {
    is_held_ = false;
    for (const Held& one : held_) {
      if (one.is_gate) {
        enter(one.tokens, false);
      } else {
        spend(Activity::kPolicy, timings_.policy_s[one.tokens]);
      }
    }
  }

  void pass_unasked() {
    int32_t entered = 0;
    for (const Held& one : held_) entered += one.is_gate ? one.tokens : 0;
    spend(Activity::kNonExpert, timings_.ready_non_expert_s[entered] + woken_s());
    spend(Activity::kPolicy, timings_.ready_policy_s[tokens_]);
    fetch();
    for (Step& step : steps_) {
      step.tokens = next();
      spend(Activity::kCompute,
            timings_.ready_expert_s[step.bits * timings_.most_tokens + step.tokens]);
    }
    steps_.clear();
    hold();
  }

  // What a wait in the layer before costs what follows.
  double woken_s() {
    const double seconds = slept_ ? timings_.restart_non_expert_s : 0.0;
    slept_ = false;
    return seconds;
  }

  bool are_there(size_t first) {
    for (size_t i = first; i < steps_.size(); ++i) {
      const Step& step = steps_[i];
      if (step.slot == kOnHost || !step.hit) return false;
      transfers_.advance(now_);
      const Transfer* transfer = transfers_.in_slot(step.slot);
      if (transfer != nullptr && !transfer->ready) return false;
    }
    return true;
  }

  void compute_one() {
    transfers_.advance(now_);
    size_t chosen = choose();
    if (chosen == pending_.size() || !is_ready(*pending_[chosen])) {
      const bool any = chosen == pending_.size();
      awaited_.clear();
      for (size_t i = any ? 0 : chosen; i < (any ? pending_.size() : chosen + 1); ++i) {
        awaited_.push_back(transfers_.in_slot(pending_[i]->slot));
      }
      wait();
      if (any) return;
    }
    const Step step = *pending_[chosen];
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(chosen));
    double seconds = timings_.expert_s[step.bits * timings_.most_tokens + step.tokens];
    if (waited_) {
      seconds += timings_.restart_s;
      waited_ = false;
    }
    spend(Activity::kCompute, seconds);
    const auto follower = waiting_.find(step.expert);
    if (follower == waiting_.end()) return;
    const Step* later = follower->second;
    waiting_.erase(follower);
    load(later->expert, later->slot, later->bits, true);
    pending_.push_back(later);
  }

  // The place of the next step in `pending_`; its size if none is ready and any may come first. The
  // orders of engine/policy/compute_order.py, in the order of their registry.
  size_t choose() const {
    enum { kRouted, kPopularity, kReadyFirst, kHotFirst };
    const size_t count = pending_.size();
    size_t best = count;
    switch (timings_.order) {
      case kRouted: return 0;
      case kReadyFirst:
        for (size_t i = 0; i < count; ++i) {
          if (is_ready(*pending_[i])) return i;
        }
        return count;
      case kPopularity:
        for (size_t i = 0; i < count; ++i) {
          const auto key = [&](size_t n) {
            return std::make_pair(pending_[n]->hit, pending_[n]->tokens);
          };
          if (best == count || key(i) > key(best)) best = i;
        }
        return best;
      default:
        for (size_t i = 0; i < count; ++i) {
          if (!is_ready(*pending_[i])) continue;
          if (best == count || pending_[i]->tokens > pending_[best]->tokens) best = i;
        }
        return best;
    }
  }

  bool is_ready(const Step& step) const { return transfers_.in_slot(step.slot)->ready; }

  void end_pass() {
    transfers_.advance(now_);
    row_[0] = now_ - started_;
    row_[1] = transfers_.moved_bytes() - moved_;
    row_[2] = static_cast<double>(activities_);
    moved_ = transfers_.moved_bytes();
  }

  void note(Activity activity, double seconds) {
    activities_ |= 1 << static_cast<int>(activity);
    row_[3 + static_cast<int>(activity)] += seconds;
  }

  void spend(Activity activity, double seconds) {
    if (seconds > 0) seconds *= slowness(seconds);
    note(activity, seconds);
    now_ += seconds;
  }

  double slowness(double seconds) {
    double slowness = 1.0;
    if (timings_.contention != 1.0) {
      const double fraction = transfers_.moving_fraction(now_, now_ + seconds);
      slowness += (timings_.contention - 1) * fraction;
    }
    if (host_free_ > now_) {
      const double fraction = std::min(1.0, (host_free_ - now_) / seconds);
      slowness += (timings_.host_contention - 1) * fraction;
    }
    return slowness;
  }

  void wait() {
    double until = transfers_.wait(now_, awaited_);
    if (until == kNever) {
      stuck_ = true;
      return;
    }
    until += timings_.wake_s;
    waited_ = slept_ = true;
    note(Activity::kWait, until - now_);
    now_ = until;
  }

  double start_host() {
    double done = 0.0;
    const bool borrows = std::any_of(tiers_.begin(), tiers_.end(),
                                     [](const Tier& tier) { return !tier.is_whole(); });
    if (borrows) transfers_.advance(now_);  // they borrow records too
    for (const Step& step : steps_) {
      if (step.slot != kOnHost) continue;
      double begin = std::max(now_ + timings_.host_start_s, host_free_);
      Tier& tier = tiers_[step.bits];
      if (!tier.is_whole() && !tier.borrow(step.expert)) begin += timings_.disk_s[step.bits];
      const double alone = timings_.host_expert_s[step.bits * timings_.most_tokens + step.tokens];
      done = host_free_ = begin + alone * timings_.host_contention;
    }
    return done;
  }

  Transfer* load(int32_t expert, int32_t slot, int32_t bits, bool demanded) {
    spend(Activity::kPolicy, timings_.submit_s);
    return transfers_.submit(now_, expert, slot, bits, demanded);
  }

  void fetch() {
    for (int32_t left = next(); left > 0; --left) {
      const int32_t layer = next(), expert = next(), slot = next(), bits = next();
      Transfer* transfer = load(expert, slot, bits, false);
      transfer->listed = true;
      prefetching_[layer].push_back(transfer);
    }
  }

  void take_steps() {
    for (int32_t left = next(); left > 0; --left) {
      const int32_t expert = next(), slot = next(), bits = next(), hit = next(), after = next();
      steps_.push_back({expert, slot, bits, hit, after, 0});
    }
  }

  void demote(int32_t layer) {
    for (Transfer* transfer : prefetching_[layer]) {
      transfer->listed = false;
      const bool demanded = std::any_of(steps_.begin(), steps_.end(), [&](const Step& step) {
        return step.expert == transfer->expert;
      });
      if (!demanded && !transfer->ready) transfers_.demote(now_, transfer);
    }
    prefetching_[layer].clear();
  }

  const ReplayTimings& timings_;
  std::vector<Tier> tiers_;
  Transfers transfers_;
  const int32_t* at_ = nullptr;
  double *row_ = nullptr, *next_row_;
  int64_t* arrivals_;
  int activities_ = 0;
  double now_ = 0, started_ = 0, moved_ = 0, host_free_ = 0;
  bool waited_ = false, slept_ = false, stuck_ = false, holds_ = false, is_held_ = false;
  int32_t tokens_ = 0;
  std::vector<Held> held_;
  std::vector<Step> steps_;
  std::vector<const Step*> pending_;
  std::vector<Transfer*> awaited_;
  std::unordered_map<int32_t, const Step*> waiting_;
  std::unordered_map<int32_t, std::vector<Transfer*>> prefetching_;
};

}  // namespace

int64_t replay(const ReplayTimings& timings, const int32_t* events, int64_t count, double* rows,
               int64_t* arrivals) {
  return Clock(timings, rows, arrivals).run(events, events + count) ? 0 : 1;
}

}  // namespace expertune
