// Reports to ThreadSanitizer what libgomp orders: a parallel region starts after what its caller did before, and the
// caller goes on after what the region's threads did. libgomp waits by futexes, which ThreadSanitizer does not see, so
// that without this library every step would be a race with the step before. Preloaded; torch's threads are libgomp's.
#include <dlfcn.h>

extern "C" {

void __tsan_acquire(void* address);
void __tsan_release(void* address);

namespace {

struct Region {
  void (*body)(void*);
  void* data;
  char started;
  char ended;
};

void run(void* pointer) {
  auto& region = *static_cast<Region*>(pointer);
  __tsan_acquire(&region.started);
  region.body(region.data);
  __tsan_release(&region.ended);
}

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

}  // namespace

__attribute__((visibility("default"))) void GOMP_parallel(void (*body)(void*), void* data, unsigned threads,
                                                          unsigned flags) {
  static const auto next = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data, 0, 0};
  __tsan_release(&region.started);
  next(run, &region, threads, flags);
  __tsan_acquire(&region.ended);
}

}  // extern "C"
