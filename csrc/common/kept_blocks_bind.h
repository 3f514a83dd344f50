// Kept blocks as DLPack capsules, from which torch makes tensors that give them back when they are freed.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "common/kept_blocks.h"
#include "common/tensor_caster.h"

namespace sysgen {

struct BlockTensor {
  dlpack::ManagedTensor managed;
  std::vector<int64_t> shape, strides;
  std::size_t size;
};

inline pybind11::capsule block_tensor(std::vector<int64_t> shape, std::vector<int64_t> strides,
                                      std::size_t bytes, int code, int bits) {
  auto t = std::make_unique<BlockTensor>();
  t->shape = std::move(shape);
  t->strides = std::move(strides);
  const auto deleter = [](dlpack::ManagedTensor* managed) {
    const std::unique_ptr<BlockTensor> owner(static_cast<BlockTensor*>(managed->manager));
    return_block(managed->tensor.data, owner->size);
  };
  void* const data = take_block(bytes, t->size);
  if (!data) throw std::bad_alloc();
  t->managed = {{data,
                 1,
                 0,
                 static_cast<int32_t>(t->shape.size()),
                 {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1},
                 t->shape.data(),
                 t->strides.data(),
                 0},
                t.get(),
                deleter};
  // A capsule that nobody made a tensor of is still called dltensor.
  return pybind11::capsule(&t.release()->managed, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

inline void register_kept_blocks(pybind11::module_& m) {
  m.def("block_tensor", &block_tensor);
  m.def("release_kept_blocks", &release_kept_blocks);
}

}  // namespace sysgen
