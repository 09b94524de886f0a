// Functions of torch's C++ library that the stable ABI lacks, by their mangled names, which have not changed since
// torch 1.8. They are weak symbols: with a torch that lacks one of them this library still loads, and `has_all` is
// false.
//
// A handle of the stable ABI is the address of an at::Tensor, which contains nothing but the address of its TensorImpl.
// A C++ reference is passed and returned as an address, and `this` as a first argument (Itanium C++ ABI). So none of
// torch's headers is needed, whose inline parts change from release to release.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace radam_fused {
namespace libtorch {

// const at::Tensor& c10::TensorImpl::grad() const: `.grad`, without making a Python object.
const void* grad(const void* impl) __asm__("_ZNK3c1010TensorImpl4gradEv") __attribute__((weak));
// bool at::native::is_neg(const at::Tensor&): whether torch negates the elements as it reads them.
bool is_neg(const void* tensor) __asm__("_ZN2at6native6is_negERKNS_6TensorE") __attribute__((weak));
// bool at::native::is_inference(const at::Tensor&): whether it was made in inference mode, and so has no version
// counter.
bool is_inference(const void* tensor) __asm__("_ZN2at6native12is_inferenceERKNS_6TensorE") __attribute__((weak));
// void torch::autograd::impl::bump_version(const at::Tensor&)
void bump_version(const void* tensor) __asm__("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE")
    __attribute__((weak));

// The message of the last exception on this thread; in the stable ABI from torch 2.13 on. Older versions print it.
extern "C" const char* message() __asm__("torch_exception_get_what_without_backtrace") __attribute__((weak));

inline bool has_all() {
  return &grad != nullptr && &is_neg != nullptr && &is_inference != nullptr && &bump_version != nullptr;
}

}  // namespace libtorch

// The address of a tensor's TensorImpl.
inline const void* impl_of(AtenTensorHandle tensor) { return *reinterpret_cast<const void* const*>(tensor); }

// The gradient of a tensor, by its TensorImpl; a handle of an undefined tensor if there is none.
inline AtenTensorHandle grad_of(const void* impl) {
  return static_cast<AtenTensorHandle>(const_cast<void*>(libtorch::grad(impl)));
}

inline bool is_defined(AtenTensorHandle tensor) {
  bool defined;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_defined(tensor, &defined));
  return defined;
}

inline bool is_neg(AtenTensorHandle tensor) { return libtorch::is_neg(tensor); }
inline bool is_inference(AtenTensorHandle tensor) { return libtorch::is_inference(tensor); }
inline void bump_version(AtenTensorHandle tensor) { libtorch::bump_version(tensor); }

}  // namespace radam_fused
