// Lets one allocation of one thread fail: preloaded into a process, switched on and off through ctypes
// (tests/support/failing_allocations.py). While it is switched off, every allocation is the ordinary one.
#include <Python.h>
#include <dlfcn.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

enum Kinds {
  kExtension = 1,     // operator new, called from the package's extension
  kTensorMemory = 2,  // posix_memalign, called from libc10, which allocates the memory of tensors
  kLibtorch = 4,      // operator new, called from anything else: libtorch, most of all
  kPython = 8,        // CPython's own allocations, in all three of its domains
};

// Not allocated at the first use: that would be an allocation within one.
#define ON_THREAD thread_local __attribute__((tls_model("initial-exec")))
ON_THREAD int kinds = 0;     // what is counted on this thread now
ON_THREAD long counted = 0;  // how many allocations were
ON_THREAD long failing = 0;  // which of them fails

bool is_from(const void* caller, const char* library) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && info.dli_fname != nullptr && std::strstr(info.dli_fname, library) != nullptr;
}

// Counts an allocation of these kinds; whether it is the one that fails.
bool fails(int of) { return (kinds & of) != 0 && ++counted == failing; }

bool new_fails(const void* caller) {
  if ((kinds & (kExtension | kLibtorch)) == 0) return false;
  return fails(is_from(caller, "radam_fused/_C") ? kExtension : kLibtorch);
}

void* allocate(std::size_t size, const void* caller, bool throws) {
  void* memory = new_fails(caller) ? nullptr : std::malloc(size > 0 ? size : 1);
  if (memory == nullptr && throws) throw std::bad_alloc();
  return memory;
}

constexpr PyMemAllocatorDomain kDomains[] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
PyMemAllocatorEx ordinary[3];

void* python_malloc(void* context, size_t size) {
  auto* of = static_cast<PyMemAllocatorEx*>(context);
  return fails(kPython) ? nullptr : of->malloc(of->ctx, size);
}

void* python_calloc(void* context, size_t count, size_t size) {
  auto* of = static_cast<PyMemAllocatorEx*>(context);
  return fails(kPython) ? nullptr : of->calloc(of->ctx, count, size);
}

void* python_realloc(void* context, void* memory, size_t size) {
  auto* of = static_cast<PyMemAllocatorEx*>(context);
  return fails(kPython) ? nullptr : of->realloc(of->ctx, memory, size);
}

void python_free(void* context, void* memory) {
  auto* of = static_cast<PyMemAllocatorEx*>(context);
  of->free(of->ctx, memory);
}

}  // namespace

// libstdc++'s own operator delete calls free().
void* operator new(std::size_t size) { return allocate(size, __builtin_return_address(0), true); }
void* operator new[](std::size_t size) { return allocate(size, __builtin_return_address(0), true); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size, __builtin_return_address(0), false);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size, __builtin_return_address(0), false);
}

extern "C" {

int posix_memalign(void** memory, size_t alignment, size_t size) noexcept {
  static auto* const real = reinterpret_cast<decltype(&posix_memalign)>(dlsym(RTLD_NEXT, "posix_memalign"));
  if ((kinds & kTensorMemory) != 0 && is_from(__builtin_return_address(0), "libc10") && fails(kTensorMemory)) {
    return ENOMEM;
  }
  return real(memory, alignment, size);
}

// From now on counts the allocations of these kinds on this thread; one of them fails, none where `which` is 0.
void fail_allocation(long which, int of) {
  counted = 0;
  failing = which;
  for (int i = 0; (of & kPython) != 0 && i < 3; ++i) {
    PyMem_GetAllocator(kDomains[i], &ordinary[i]);
    PyMemAllocatorEx counting{&ordinary[i], python_malloc, python_calloc, python_realloc, python_free};
    PyMem_SetAllocator(kDomains[i], &counting);
  }
  kinds = of;
}

// Ends that; how many allocations there were.
long count_allocations() {
  for (int i = 0; (kinds & kPython) != 0 && i < 3; ++i) PyMem_SetAllocator(kDomains[i], &ordinary[i]);
  kinds = 0;
  return counted;
}

}  // extern "C"
