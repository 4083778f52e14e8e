// A pool of threads that work through numbered items, the caller among them.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace expertune {

// Numbers below 2^-126 count as zero in everything that the library computes, as they do in products of bf16 pairs: every
// instruction set gives the same bits, and none falls into slow steps.
class Flush {
 public:
#if defined(__x86_64__)
  Flush() : former_(_mm_getcsr()) { _mm_setcsr(former_ | 0x8040u); }
  ~Flush() { _mm_setcsr(former_); }

 private:
  const unsigned former_;
#elif defined(__aarch64__)
  Flush() {
    asm volatile("mrs %0, fpcr" : "=r"(former_));
    asm volatile("msr fpcr, %0" ::"r"(former_ | (1ull << 24)));
  }
  ~Flush() { asm volatile("msr fpcr, %0" ::"r"(former_)); }

 private:
  uint64_t former_;
#endif
};

// Which thread takes an item is left to chance; what an item computes must not depend on it.
class Pool {
 public:
  // threads: with the caller. Waiting threads spin for spin_us, then sleep.
  Pool(int threads, int spin_us);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  using Work = void (*)(void* context, int64_t item);

  // Run work(context, item) for items 0..count; returns when all are done. A second caller at the
  // same time works alone.
  void run(int64_t count, Work work, void* context);

  template <class F>
  void each(int64_t count, const F& body) {
    run(count, [](void* context, int64_t item) { (*static_cast<const F*>(context))(item); },
        const_cast<F*>(&body));
  }

 private:
  void serve();
  void take_items();

  const int spin_us_;
  std::vector<std::thread> workers_;
  std::mutex callers_;  // one run at a time
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> open_{0};  // the number of the open run; 0: none is open
  std::atomic<int> inside_{0};     // workers that may touch the run's fields
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  uint64_t runs_ = 0;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace expertune
