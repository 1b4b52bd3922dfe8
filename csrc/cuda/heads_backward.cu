#include "cuda/attention_gradient.h"
#include "cuda/heads_backward.h"
#include "cuda/kernel_gradient.h"
#include "cuda/start_gradient.h"
#include "cuda/toeplitz.h"

namespace convbasis::cuda {
namespace {

/// Adds what the heads of a group give to the gradient that they share, in their order.
template <class T>
struct AddGroups {
  Array<T> from, to;  // to: as query heads see it
  const HeadUnits* units;
  bool both_units;
  double scale;
  CONVBASIS_DEVICE void operator()(index_t key_head, index_t item) const {
    const auto [row, c] = position_of(item, to.channels);
    const index_t first = key_head * to.group;
    double total = 0;
    for (index_t head = first; head < first + to.group; ++head) {
      const auto sum = static_cast<double>(from.load(head, row, c));
      total += both_units ? units[head].without_both(sum, scale) : units[head].without_grad(sum);
    }
    const auto before = static_cast<double>(to.load(first, row, c));
    to.store(first, row, c, static_cast<T>(before + total));
  }
};

/// The gradient by queries without its units.
template <class T>
struct PutQueries {
  Array<T> from, to;
  const HeadUnits* units;
  double scale;
  CONVBASIS_DEVICE void operator()(index_t head, index_t item) const {
    const auto [row, c] = position_of(item, to.channels);
    const auto sum = static_cast<double>(from.load(head, row, c));
    to.store(head, row, c, static_cast<T>(units[head].without_both(sum, scale)));
  }
};

}  // namespace

template <class T>
HeadsBackward<T>::HeadsBackward(const Strips<T>& logits, const BackwardArrays<T>& arrays,
                                double scale, const Stream& stream)
    : logits_(logits),
      arrays_(arrays),
      scale_(scale),
      stream_(stream),
      all_(static_cast<index_t>(logits.layouts.size())),
      rows_(logits.table.rows),
      columns_(logits.table.columns),
      channels_(arrays.value.channels),
      key_heads_(all_ / arrays.value.group) {}

template <class T>
void HeadsBackward<T>::run(Gradient gradient, const Schedule& far, View<index_t, 2> rows_exact) {
  divide(far, rows_exact);
  const SpoiledRows list = list_spoiled(forward_.spoiled.data(), all_, rows_, stream_);
  const SpoiledGradient<T> spoiled{logits_.table,
                                   list.rows.data(),
                                   list.counts.data(),
                                   forward_.lse.data(),
                                   shares_.delta.data(),
                                   shares_.units.data(),
                                   key_rows(shares_.value, channels_),
                                   arrays_.grad_output};
  add_values(spoiled);
  if (gradient == Gradient::basis) {
    add_kernels(spoiled);
  } else {
    add_entries(spoiled, far);
  }
}

/// The forward pass, and what both gradients need of each row.
template <class T>
void HeadsBackward<T>::divide(const Schedule& far, View<index_t, 2> rows_exact) {
  const DeviceBuffer<T> memory(stream_, all_ * rows_ * channels_);
  const Array<T> output = packed_array(memory.data(), all_, rows_, channels_);
  forward_ = attend_heads(logits_, arrays_.value, output, {}, true, far, stream_);
  if (rows_exact.data != nullptr)
    count_spoiled(forward_.spoiled.data(), rows_, rows_exact, stream_);
  shares_ = divide_by_sums(forward_, arrays_.value, arrays_.grad_output, output, stream_);
}

template <class T>
void HeadsBackward<T>::add_values(const SpoiledGradient<T>& spoiled) const {
  const DeviceBuffer<T> memory(stream_, all_ * columns_ * channels_);
  const Array<T> sums = packed_array(memory.data(), all_, columns_, channels_);
  multiply_strips(forward_.weights.strips, forward_.schedule, true, rows_of(shares_.shares), sums,
                  model_.workspace, stream_);
  add_spoiled_values(spoiled, sums, stream_);
  launch(stream_, key_heads_, columns_ * channels_,
         AddGroups<T>{sums, arrays_.grad_value, shares_.units.data(), false, 1});
}

template <class T>
void HeadsBackward<T>::add_kernels(const SpoiledGradient<T>& spoiled) const {
  const DeviceBuffer<T> of_kernels =
      differentiate_kernels(logits_, forward_, shares_, spoiled.value, rows_of(shares_.shares),
                            model_.workspace, stream_);
  add_spoiled_kernels(spoiled, all_, of_kernels.data(), stream_);
  add_kernel_gradients(logits_, of_kernels.data(), shares_.units.data(), scale_, arrays_.query,
                       arrays_.key, arrays_.grad_query, arrays_.grad_key, stream_);
}

template <class T>
void HeadsBackward<T>::add_entries(const SpoiledGradient<T>& spoiled, const Schedule& far) const {
  const index_t dim = arrays_.query.channels;
  const DeviceBuffer<T> keys(stream_, key_heads_ * columns_ * dim);
  const DeviceBuffer<T> of_queries(stream_, all_ * rows_ * dim),
      of_keys(stream_, all_ * columns_ * dim);
  const Array<T> grad_query = packed_array(of_queries.data(), all_, rows_, dim);
  const Array<T> grad_key = packed_array(of_keys.data(), all_, columns_, dim);
  subtract_means(arrays_.key, key_heads_, means_of_rows(arrays_.key, key_heads_, stream_).data(),
                 nullptr, keys.data(), stream_);
  differentiate_entries(forward_, shares_, spoiled, far, arrays_.query, key_rows(keys, dim),
                        grad_query, grad_key, stream_);
  launch(stream_, all_, rows_ * dim,
         PutQueries<T>{grad_query, arrays_.grad_query, shares_.units.data(), scale_});
  launch(stream_, key_heads_, columns_ * dim,
         AddGroups<T>{grad_key, arrays_.grad_key, shares_.units.data(), true, scale_});
}

template class HeadsBackward<float>;
template class HeadsBackward<double>;

}  // namespace convbasis::cuda
