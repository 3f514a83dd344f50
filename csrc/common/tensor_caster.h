// pybind11 caster from any DLPack array to TensorView: through the C exchange API of the object's type where
// it has one (torch >= 2.10: no Python call, no allocation), else through a capsule (older torch, NumPy,
// CuPy).
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/check.h"
#include "common/tensor_view.h"

namespace sysgen::dlpack {

// The ABI of DLPack 1.x, as far as it is read here.
struct Version {
  uint32_t major, minor;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct ManagedTensor {
  Tensor tensor;
  void* manager;
  void (*deleter)(ManagedTensor*);
};
struct ManagedTensorVersioned {
  Version version;
  void* manager;
  void (*deleter)(ManagedTensorVersioned*);
  uint64_t flags;
  Tensor tensor;
};
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

inline DType dtype_of(DataType t) {
  if (t.lanes != 1) return DType::unknown;
  enum { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };
  switch (t.code) {
    case kInt:
      return t.bits == 64   ? DType::i64
             : t.bits == 32 ? DType::i32
             : t.bits == 16 ? DType::i16
             : t.bits == 8  ? DType::i8
                            : DType::unknown;
    case kUInt:
      return t.bits == 8 ? DType::u8 : DType::unknown;
    case kFloat:
      return t.bits == 64   ? DType::f64
             : t.bits == 32 ? DType::f32
             : t.bits == 16 ? DType::f16
                            : DType::unknown;
    case kBfloat:
      return t.bits == 16 ? DType::bf16 : DType::unknown;
    case kBool:
      return DType::boolean;
    default:
      return DType::unknown;
  }
}

inline TensorView view_of(const Tensor& t) {
  TensorView v;
  check(t.ndim <= kMaxDims, "tensor argument: at most ", kMaxDims, " dimensions, got ", t.ndim);
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.dtype = dtype_of(t.dtype);
  v.device = t.device_type == 1 ? Device::cpu : t.device_type == 2 ? Device::cuda : Device::other;
  v.device_index = t.device_id;
  v.ndim = t.ndim;
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    v.shape[i] = t.shape[i];
    v.stride[i] = t.strides ? t.strides[i] : expected;
    expected *= t.shape[i];
  }
  // A fake tensor's address is null plus its storage offset; no system maps the lowest 64 KiB.
  if (reinterpret_cast<uintptr_t>(v.data) < 65536 && v.numel() > 0)
    throw ValueError("tensor argument has no data (a fake or meta tensor reached the compiled core)");
  return v;
}

// The API of a Python type, or null. Types live as long as the interpreter in practice; a few are remembered.
inline const ExchangeApi* api_of(PyTypeObject* type) {
  struct Entry {
    PyTypeObject* type;
    const ExchangeApi* api;
  };
  static Entry cache[8];
  for (Entry& e : cache)
    if (e.type == type) return e.api;
  const ExchangeApi* api = nullptr;
  if (PyObject* capsule =
          PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__")) {
    if (PyCapsule_IsValid(capsule, "dlpack_exchange_api"))
      api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
    if (api && (api->version.major != 1 || !api->tensor_from_object)) api = nullptr;
  } else {
    PyErr_Clear();
  }
  static int next = 0;
  Py_INCREF(type);  // a remembered address must not be reused for another type
  PyTypeObject* const forgotten = cache[next].type;
  cache[next] = {type, api};
  Py_XDECREF(forgotten);
  next = (next + 1) % 8;
  return api;
}

}  // namespace sysgen::dlpack

namespace pybind11::detail {

template <>
struct type_caster<sysgen::TensorView> {
  PYBIND11_TYPE_CASTER(sysgen::TensorView, const_name("Tensor"));

  bool load(handle source, bool) {
    if (!source || source.is_none()) return false;
    if (const auto* api = sysgen::dlpack::api_of(Py_TYPE(source.ptr()))) {
      sysgen::dlpack::Tensor t;
      if (api->tensor_from_object(source.ptr(), &t) != 0) throw error_already_set();
      value = sysgen::dlpack::view_of(t);
      return true;
    }
    return load_capsule(source);
  }

 private:
  bool load_capsule(handle source) {
    object array = reinterpret_borrow<object>(source);
    if (!hasattr(array, "__dlpack__")) return false;
    if (hasattr(array, "detach"))
      array = array.attr("detach")();  // torch refuses tensors that require a gradient
    // On CUDA -1 asks the producer not to synchronise: the caller names the stream that the kernels run on.
    const bool on_cuda = array.attr("__dlpack_device__")().attr("__getitem__")(0).cast<int>() == 2;
    const object capsule =
        on_cuda ? array.attr("__dlpack__")(arg("stream") = -1) : array.attr("__dlpack__")();
    // It owns the array, and must do so until the call returns, also where this caster is a temporary
    // (optional).
    loader_life_support::add_patient(capsule);
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
      auto* managed =
          static_cast<sysgen::dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
      value = sysgen::dlpack::view_of(managed->tensor);
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
      auto* managed = static_cast<sysgen::dlpack::ManagedTensorVersioned*>(
          PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
      value = sysgen::dlpack::view_of(managed->tensor);
    } else {
      return false;
    }
    return true;
  }
};

}  // namespace pybind11::detail
