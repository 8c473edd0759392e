// The floating-point mode that kernels compute in: rounding to nearest even, subnormals are zeros. What a program set
// for its own thread comes back; bits don't depend on it, and bf16 instructions know no other mode.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace qwench {

class KernelFloatingPoint {
 public:
  KernelFloatingPoint() : before_(mode()) { set_mode(kKernelMode); }
  ~KernelFloatingPoint() { set_mode(before_); }
  KernelFloatingPoint(const KernelFloatingPoint&) = delete;
  KernelFloatingPoint& operator=(const KernelFloatingPoint&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kKernelMode = 0x9fc0;  // MXCSR: FTZ, DAZ, all exceptions masked
  static uint64_t mode() { return _mm_getcsr(); }
  static void set_mode(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kKernelMode = uint64_t(1) << 24;  // FPCR: FZ
  static uint64_t mode() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set_mode(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  static constexpr uint64_t kKernelMode = 0;  // no such mode: subnormals keep their value
  static uint64_t mode() { return 0; }
  static void set_mode(uint64_t) {}
#endif
  uint64_t before_;
};

}  // namespace qwench
