// Python entry points of the content-based operations: argument checks, then the CPU or CUDA host function.
#pragma once
#include "common/define_op.h"
#include "content/content.h"

namespace sysgen {

// Checks the arguments of one operation. The memory decides type, device and sizes.
struct MemoryChecker {
  const char* op;
  const TensorView& memory;
  MemorySizes s{};

  MemoryChecker(const char* op_, const TensorView& memory_, const TensorView& by_head)
      : MemoryChecker(op_, memory_) {
    check(by_head.ndim == 3, op, ": what each head has must have 3 dimensions [B, R, ..], got shape ",
          shape_of(by_head));
    s.heads = by_head.shape[1];
  }
  MemoryChecker(const char* op_, const TensorView& memory_) : op(op_), memory(memory_) {
    check_dtype(op, "memory", memory, {DType::f64, DType::f32});
    check(memory.ndim == 3, op, ": memory must have 3 dimensions [B, N, W], got shape ", shape_of(memory));
    check_contiguous(op, "memory", memory);
    s.dtype = memory.dtype;
    s.batch = memory.shape[0];
    s.cells = memory.shape[1];
    s.width = memory.shape[2];
  }
  void* of(const char* name, const std::optional<TensorView>& t, std::initializer_list<int64_t> shape) const {
    return check_dense(op, name, t, memory.dtype, shape, memory);
  }
  void* like_memory(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.cells, s.width});
  }
  void* head_words(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.heads, s.width});
  }
  void* head_cells(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.heads, s.cells});
  }
  void* cells(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.cells});
  }
  void* words(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.width});
  }
  template <class Args>
  void check_write(Args& a, const TensorView& weights, const TensorView& erase, const TensorView& value,
                   const std::optional<TensorView>& retention) const {
    a.s = s;
    a.memory = memory.data;
    a.weights = cells("write_weights", weights);
    a.erase = words("erase", erase);
    a.value = words("value", value);
    a.retention = cells("retention", retention);
  }
  void* heads(const char* name, const std::optional<TensorView>& t) const {
    return of(name, t, {s.batch, s.heads});
  }
};

inline ContentAddressing content_addressing(const MemoryChecker& c, const TensorView& key,
                                            const TensorView& strength, const std::optional<TensorView>& mask,
                                            double eps) {
  check(eps > 0, c.op, ": eps must be positive, got ", eps);
  return {
      c.s, c.memory.data, c.head_words("key", key), c.heads("strength", strength), c.head_words("mask", mask),
      eps};
}

inline NtmAddressing ntm_addressing(const MemoryChecker& c, const TensorView& key, const TensorView& strength,
                                    const TensorView& gate, const TensorView& shift,
                                    const TensorView& sharpness, const TensorView& previous, double eps) {
  NtmAddressing a{content_addressing(c, key, strength, std::nullopt, eps)};
  check(shift.ndim == 3 && shift.shape[2] % 2 == 1, c.op,
        ": shift must have an odd last dimension [B, R, 2 S + 1], got shape ", shape_of(shift));
  a.shifts = shift.shape[2];
  a.gate = c.heads("gate", gate);
  a.shift = c.of("shift", shift, {c.s.batch, c.s.heads, a.shifts});
  a.sharpness = c.heads("sharpness", sharpness);
  a.previous = c.head_cells("previous", previous);
  return a;
}

inline void register_content(pybind11::module_& m) {
  using T = const TensorView&;
  using M = const std::optional<TensorView>&;

  define_op<ContentAddressFwdArgs>(
      m, "content_address_fwd", Types<T, T, T, M, T>{}, Types<double>{},
      [](const char* op, T memory, T key, T strength, M mask, T weights, double eps) {
        const MemoryChecker c(op, memory, key);
        ContentAddressFwdArgs a{content_addressing(c, key, strength, mask, eps)};
        a.weights = c.head_cells("weights", weights);
        return a;
      },
      SYSGEN_IF_CPU(&content_address_fwd_cpu), SYSGEN_IF_CUDA(&content_address_fwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&content_address_fwd_cuda));
  define_op<ContentAddressBwdArgs>(
      m, "content_address_bwd", Types<T, T, T, M, T, T, T, T, M>{}, Types<double>{},
      [](const char* op, T memory, T key, T strength, M mask, T dweights, T dmemory, T dkey, T dstrength,
         M dmask, double eps) {
        const MemoryChecker c(op, memory, key);
        check(mask.has_value() == dmask.has_value(), op, ": dmask must be given with a mask only");
        ContentAddressBwdArgs a{content_addressing(c, key, strength, mask, eps)};
        a.dweights = c.head_cells("dweights", dweights);
        a.dmemory = c.like_memory("dmemory", dmemory);
        a.dkey = c.head_words("dkey", dkey);
        a.dstrength = c.heads("dstrength", dstrength);
        a.dmask = c.head_words("dmask", dmask);
        return a;
      },
      SYSGEN_IF_CPU(&content_address_bwd_cpu), SYSGEN_IF_CUDA(&content_address_bwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&content_address_bwd_cuda));

  define_op<MemoryWriteFwdArgs>(
      m, "memory_write_fwd", Types<T, T, T, T, M, T>{}, Types<>{},
      [](const char* op, T memory, T weights, T erase, T value, M retention, T written) {
        const MemoryChecker c(op, memory);
        MemoryWriteFwdArgs a{};
        c.check_write(a, weights, erase, value, retention);
        a.written = c.like_memory("written", written);
        return a;
      },
      SYSGEN_IF_CPU(&memory_write_fwd_cpu), SYSGEN_IF_CUDA(&memory_write_fwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&memory_write_fwd_cuda));
  define_op<MemoryWriteBwdArgs>(
      m, "memory_write_bwd", Types<T, T, T, T, M, T, T, T, T, T, M>{}, Types<>{},
      [](const char* op, T memory, T weights, T erase, T value, M retention, T dwritten, T dmemory,
         T dweights, T derase, T dvalue, M dretention) {
        const MemoryChecker c(op, memory);
        check(retention.has_value() == dretention.has_value(), op,
              ": dretention must be given with a retention only");
        MemoryWriteBwdArgs a{};
        c.check_write(a, weights, erase, value, retention);
        a.dwritten = c.like_memory("dwritten", dwritten);
        a.dmemory = c.like_memory("dmemory", dmemory);
        a.dweights = c.cells("dwrite_weights", dweights);
        a.derase = c.words("derase", derase);
        a.dvalue = c.words("dvalue", dvalue);
        a.dretention = c.cells("dretention", dretention);
        return a;
      },
      SYSGEN_IF_CPU(&memory_write_bwd_cpu), SYSGEN_IF_CUDA(&memory_write_bwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&memory_write_bwd_cuda));
  define_op<MemoryReadFwdArgs>(
      m, "memory_read_fwd", Types<T, T, T>{}, Types<>{},
      [](const char* op, T memory, T weights, T reads) {
        const MemoryChecker c(op, memory, weights);
        MemoryReadFwdArgs a{c.s, memory.data};
        a.weights = c.head_cells("read_weights", weights);
        a.reads = c.head_words("reads", reads);
        return a;
      },
      SYSGEN_IF_CPU(&memory_read_fwd_cpu), SYSGEN_IF_CUDA(&memory_read_fwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&memory_read_fwd_cuda));
  define_op<MemoryReadBwdArgs>(
      m, "memory_read_bwd", Types<T, T, T, T, T>{}, Types<>{},
      [](const char* op, T memory, T weights, T dreads, T dmemory, T dweights) {
        const MemoryChecker c(op, memory, weights);
        MemoryReadBwdArgs a{c.s, memory.data};
        a.weights = c.head_cells("read_weights", weights);
        a.dreads = c.head_words("dreads", dreads);
        a.dmemory = c.like_memory("dmemory", dmemory);
        a.dweights = c.head_cells("dread_weights", dweights);
        return a;
      },
      SYSGEN_IF_CPU(&memory_read_bwd_cpu), SYSGEN_IF_CUDA(&memory_read_bwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&memory_read_bwd_cuda));

  define_op<NtmAddressFwdArgs>(
      m, "ntm_address_fwd", Types<T, T, T, T, T, T, T, T>{}, Types<double>{},
      [](const char* op, T memory, T key, T strength, T gate, T shift, T sharpness, T previous, T weights,
         double eps) {
        const MemoryChecker c(op, memory, key);
        NtmAddressFwdArgs a{ntm_addressing(c, key, strength, gate, shift, sharpness, previous, eps)};
        a.weights = c.head_cells("weights", weights);
        return a;
      },
      SYSGEN_IF_CPU(&ntm_address_fwd_cpu), SYSGEN_IF_CUDA(&ntm_address_fwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&ntm_address_fwd_cuda));
  define_op<NtmAddressBwdArgs>(
      m, "ntm_address_bwd", Types<T, T, T, T, T, T, T, T, T, T, T, T, T, T, T>{}, Types<double>{},
      [](const char* op, T memory, T key, T strength, T gate, T shift, T sharpness, T previous, T dweights,
         T dmemory, T dkey, T dstrength, T dgate, T dshift, T dsharpness, T dprevious, double eps) {
        const MemoryChecker c(op, memory, key);
        NtmAddressBwdArgs a{ntm_addressing(c, key, strength, gate, shift, sharpness, previous, eps)};
        a.dweights = c.head_cells("dweights", dweights);
        a.dmemory = c.like_memory("dmemory", dmemory);
        a.dkey = c.head_words("dkey", dkey);
        a.dstrength = c.heads("dstrength", dstrength);
        a.dgate = c.heads("dgate", dgate);
        a.dshift = c.of("dshift", dshift, {c.s.batch, c.s.heads, a.shifts});
        a.dsharpness = c.heads("dsharpness", dsharpness);
        a.dprevious = c.head_cells("dprevious", dprevious);
        return a;
      },
      SYSGEN_IF_CPU(&ntm_address_bwd_cpu), SYSGEN_IF_CUDA(&ntm_address_bwd_cuda_scratch_bytes),
      SYSGEN_IF_CUDA(&ntm_address_bwd_cuda));
}

}  // namespace sysgen
