#pragma once

#include "cuda/spoiled_gradient.h"

namespace convbasis::cuda {

/// The caller's arrays as query heads see them.
template <class T>
struct BackwardArrays {
  Array<T> query, key, value, grad_output, grad_query, grad_key, grad_value;
};

/// Gradients of attention through the strips of all heads.
template <class T>
class HeadsBackward {
 public:
  HeadsBackward(const Strips<T>& logits, const BackwardArrays<T>& arrays, double scale,
                const Stream& stream);

  /// Writes grad_query; adds to grad_key and grad_value. `far` are the blocks of the far products
  /// of Gradient::attention, see attention_gradient.h. rows_exact may be empty.
  void run(Gradient gradient, const Schedule& far, View<index_t, 2> rows_exact);

 private:
  void divide(const Schedule& far, View<index_t, 2> rows_exact);
  void add_values(const SpoiledGradient<T>& spoiled) const;
  void add_kernels(const SpoiledGradient<T>& spoiled) const;
  void add_entries(const SpoiledGradient<T>& spoiled, const Schedule& far) const;
  [[nodiscard]] Array<T> rows_of(const DeviceBuffer<T>& memory) const {
    return packed_array(memory.data(), all_, rows_, channels_);
  }
  /// Rows of key heads as query heads see them.
  [[nodiscard]] Array<T> key_rows(const DeviceBuffer<T>& memory, index_t channels) const {
    const index_t heads = arrays_.value.heads, of_batch = heads / arrays_.value.group;
    return array_of(
        contiguous_view<T, 4>(memory.data(), {all_ / heads, of_batch, columns_, channels}), heads);
  }

  const Strips<T>& logits_;
  BackwardArrays<T> arrays_;
  double scale_;
  Stream stream_;
  index_t all_, rows_, columns_, channels_, key_heads_;
  GpuModel model_;
  HeadsForward<T> forward_;
  Shares<T> shares_;
};

}  // namespace convbasis::cuda
