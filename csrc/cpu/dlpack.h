// What describe.cpp needs of DLPack's C interface, version 1 (https://dmlc.github.io/dlpack). torch's own copy of
// dlpack.h is not for libraries on its stable ABI; the layouts below are a stable ABI of their own.
#pragma once

#include <cstdint>

namespace radam_fused {

constexpr uint32_t kDlpackMajorVersion = 1;
constexpr uint8_t kDlpackFloat = 2;
constexpr uint8_t kDlpackBfloat = 4;

struct DlpackVersion {
  uint32_t major;
  uint32_t minor;
};

struct DlpackDevice {
  int32_t type;
  int32_t index;
};

struct DlpackDtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DlpackTensor {
  void* data;
  DlpackDevice device;
  int32_t ndim;
  DlpackDtype dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

// In the capsule "dlpack_exchange_api", an attribute of the tensor type.
struct DlpackExchange {
  DlpackVersion version;
  DlpackExchange* previous;
  void* allocate;
  void* managed_from_object;
  void* object_from_managed;
  int (*tensor_from_object)(void* object, DlpackTensor* out);  // borrows; -1 with a Python exception set
  void* current_stream;
};

}  // namespace radam_fused
