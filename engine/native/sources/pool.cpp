#include "pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace expertune {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads, int spin_us) : spin_us_(spin_us) {
  for (int number = 1; number < threads; ++number) workers_.emplace_back([this] { serve(); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> held(sleep_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int64_t count, Work work, void* context) {
  std::unique_lock<std::mutex> caller(callers_, std::try_to_lock);
  if (!caller.owns_lock() || workers_.empty() || count < 2) {
    const Flush flush;
    for (int64_t item = 0; item < count; ++item) work(context, item);
    return;
  }
  work_ = work;
  context_ = context;
  count_ = count;
  next_.store(0);
  open_.store(++runs_);  // publishes the fields above
  if (asleep_.load() > 0) {
    { std::lock_guard<std::mutex> held(sleep_); }  // nobody is between looking and sleeping
    wake_.notify_all();
  }
  take_items();
  // A worker that wakes from now on finds no open run; those inside still use the fields.
  open_.store(0);
  for (int tries = 0; inside_.load() != 0; ++tries) {
    if (tries < 4096) relax();
    else std::this_thread::yield();
  }
}

void Pool::take_items() {
  const Flush flush;
  for (int64_t item; (item = next_.fetch_add(1)) < count_;) work_(context_, item);
}

void Pool::serve() {
  using Clock = std::chrono::steady_clock;
  uint64_t done = 0;
  Clock::time_point idle_since = Clock::now();
  for (int tries = 1; !stop_.load(); ++tries) {
    const uint64_t seen = open_.load();
    if (seen != 0 && seen != done) {
      inside_.fetch_add(1);
      if (open_.load() == seen) {  // still open: the caller waits until inside_ falls
        take_items();
        done = seen;
      }
      inside_.fetch_sub(1);
      idle_since = Clock::now();
      tries = 0;
      continue;
    }
    relax();
    if (tries % 64 != 0) continue;
    if (Clock::now() - idle_since < std::chrono::microseconds(spin_us_)) continue;
    std::unique_lock<std::mutex> held(sleep_);
    asleep_.fetch_add(1);
    wake_.wait(held, [&] {
      const uint64_t now = open_.load();
      return stop_.load() || (now != 0 && now != done);
    });
    asleep_.fetch_sub(1);
  }
}

}  // namespace expertune
