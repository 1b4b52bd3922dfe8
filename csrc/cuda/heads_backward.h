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
  HeadsBackward(const Triangles<T>& logits, const BackwardArrays<T>& arrays, double scale,
                const Stream& stream);

  /// Writes grad_query; adds to grad_key and grad_value. `far` are the blocks of the far products
  /// of Gradient::attention in each triangle, see attention_gradient.h. rows_exact may be empty.
  void run(Gradient gradient, std::span<const Schedule> far, View<index_t, 2> rows_exact);

 private:
  /// One triangle of the matrix, and what its gradients read of the rows, in the triangle's order.
  struct Triangle {
    const Strips<T>& logits;
    const Strips<T>& weights;
    const Schedule& schedule;
    Array<T> query, key, shares;
    const double* delta_shares;
    SpoiledGradient<T> spoiled;
  };
  /// Those of the upper triangle, of the forward pass.
  struct Turned {
    DeviceBuffer<std::int32_t> spoiled;
    DeviceBuffer<double> lse, delta, delta_shares;
  };

  void divide(std::span<const Schedule> far, View<index_t, 2> rows_exact);
  [[nodiscard]] Triangle triangle_of(std::size_t i, const SpoiledRows& list,
                                     const Turned& turned) const;
  void add_values(std::span<const Triangle> triangles) const;
  void add_kernels(std::span<const Triangle> triangles) const;
  void add_kernels_of(const Triangle& triangle, const Array<T>& grad_query,
                      const Array<T>& grad_key) const;
  void add_entries(std::span<const Triangle> triangles, std::span<const Schedule> far) const;
  void put_queries(const Array<T>& sums, const HeadUnits* units) const;
  void add_groups(const Array<T>& sums, const Array<T>& to, const HeadUnits* units, bool both_units,
                  double scale) const;
  [[nodiscard]] Array<T> of_heads(const DeviceBuffer<T>& memory, index_t rows,
                                  index_t channels) const {
    return packed_array(memory.data(), all_, rows, channels);
  }
  /// Rows of key heads as query heads see them.
  [[nodiscard]] Array<T> key_rows(const DeviceBuffer<T>& memory, index_t channels) const {
    const index_t heads = arrays_.value.heads, of_batch = heads / arrays_.value.group;
    return array_of(
        contiguous_view<T, 4>(memory.data(), {all_ / heads, of_batch, columns_, channels}), heads);
  }

  const Triangles<T>& logits_;
  BackwardArrays<T> arrays_;
  double scale_;
  Stream stream_;
  index_t all_, rows_, columns_, channels_, key_heads_;
  GpuModel model_;
  HeadsForward<T> forward_;
  Shares<T> shares_;
};

}  // namespace convbasis::cuda
