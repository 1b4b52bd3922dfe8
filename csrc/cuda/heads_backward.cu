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

/// The gradient by queries of heads that are not left out, without its units if it has any.
template <class T>
struct PutQueries {
  StripTable<T> logits;
  Array<T> from, to;
  const HeadUnits* units;
  double scale;
  CONVBASIS_DEVICE void operator()(index_t head, index_t item) const {
    if (!logits.is_listed(head)) return;
    const auto [row, c] = position_of(item, to.channels);
    const T sum = from.load(head, row, c);
    to.store(head, row, c,
             units == nullptr
                 ? sum
                 : static_cast<T>(units[head].without_both(static_cast<double>(sum), scale)));
  }
};

}  // namespace

template <class T>
HeadsBackward<T>::HeadsBackward(const Triangles<T>& logits, const BackwardArrays<T>& arrays,
                                double scale, const Stream& stream)
    : logits_(logits),
      arrays_(arrays),
      scale_(scale),
      stream_(stream),
      all_(static_cast<index_t>(logits.front().layouts.size())),
      rows_(logits.front().table.rows),
      columns_(logits.front().table.columns),
      channels_(arrays.value.channels),
      key_heads_(all_ / arrays.value.group) {}

template <class T>
void HeadsBackward<T>::run(Gradient gradient, std::span<const Schedule> far,
                           View<index_t, 2> rows_exact) {
  divide(far, rows_exact);
  const SpoiledRows list = list_spoiled(forward_.spoiled.data(), all_, rows_, stream_);
  std::vector<Triangle> triangles{triangle_of(0, list, {})};
  Turned turned;
  SpoiledRows turned_list;
  if (logits_.size() > 1) {
    turned = {reversed_rows(forward_.spoiled, rows_, stream_),
              reversed_rows(forward_.lse, rows_, stream_),
              reversed_rows(shares_.delta, rows_, stream_),
              reversed_rows(shares_.delta_shares, rows_, stream_)};
    turned_list = list_spoiled(turned.spoiled.data(), all_, rows_, stream_);
    triangles.push_back(triangle_of(1, turned_list, turned));
  }
  add_values(triangles);
  if (gradient == Gradient::basis) {
    add_kernels(triangles);
  } else {
    add_entries(triangles, far);
  }
}

/// The forward pass, and what both gradients need of each row.
template <class T>
void HeadsBackward<T>::divide(std::span<const Schedule> far, View<index_t, 2> rows_exact) {
  const DeviceBuffer<T> memory(stream_, all_ * rows_ * channels_);
  const Array<T> output = of_heads(memory, rows_, channels_);
  forward_ = attend_heads(logits_, arrays_.value, output, {}, true, far, stream_);
  if (rows_exact.data != nullptr)
    count_spoiled(forward_.spoiled.data(), rows_, rows_exact, stream_);
  shares_ = divide_by_sums(forward_, arrays_.value, arrays_.grad_output, output, stream_);
}

template <class T>
typename HeadsBackward<T>::Triangle HeadsBackward<T>::triangle_of(std::size_t i,
                                                                  const SpoiledRows& list,
                                                                  const Turned& turned) const {
  const auto rows = [i](const Array<T>& array) { return rows_of_triangle(i, array); };
  const bool is_lower = i == 0;
  const double* lse = is_lower ? forward_.lse.data() : turned.lse.data();
  const double* delta = is_lower ? shares_.delta.data() : turned.delta.data();
  const double* delta_shares = is_lower ? shares_.delta_shares.data() : turned.delta_shares.data();
  return {logits_[i],
          forward_.weights.triangles[i],
          forward_.schedules[i],
          rows(arrays_.query),
          rows(arrays_.key),
          rows(of_heads(shares_.shares, rows_, channels_)),
          delta_shares,
          {logits_[i].table, list.rows.data(), list.counts.data(), lse, delta, shares_.units.data(),
           rows(key_rows(shares_.value, channels_)), rows(arrays_.grad_output), first_lag(i)}};
}

template <class T>
void HeadsBackward<T>::add_values(std::span<const Triangle> triangles) const {
  const DeviceBuffer<T> memory(stream_, all_ * columns_ * channels_);
  const Array<T> sums = of_heads(memory, columns_, channels_);
  for (std::size_t i = 0; i < triangles.size(); ++i) {
    const Triangle& triangle = triangles[i];
    DeviceBuffer<T> own;
    if (i > 0) own = DeviceBuffer<T>(stream_, memory.size());
    const Array<T> product = i > 0 ? of_heads(own, columns_, channels_) : sums;
    multiply_strips(triangle.weights, triangle.schedule, true, triangle.shares, product,
                    model_.workspace, stream_);
    add_spoiled_values(triangle.spoiled, product, stream_);
    if (i > 0) add_array(all_, reversed(product), sums, stream_);
  }
  add_groups(sums, arrays_.grad_value, shares_.units.data(), false, 1);
}

template <class T>
void HeadsBackward<T>::add_kernels(std::span<const Triangle> triangles) const {
  if (triangles.size() == 1)
    return add_kernels_of(triangles[0], arrays_.grad_query, arrays_.grad_key);
  // Sums of both triangles are rounded once.
  const index_t dim = arrays_.query.channels;
  const DeviceBuffer<T> of_lower(stream_, all_ * rows_ * dim),
      of_upper(stream_, all_ * rows_ * dim), of_keys(stream_, key_heads_ * columns_ * dim);
  fill_zero(stream_, of_keys.data(), static_cast<std::size_t>(of_keys.size()) * sizeof(T));
  const Array<T> lower = of_heads(of_lower, rows_, dim), upper = of_heads(of_upper, rows_, dim);
  const Array<T> keys = key_rows(of_keys, dim);
  add_kernels_of(triangles[0], lower, keys);
  add_kernels_of(triangles[1], upper, reversed(keys));
  add_array(all_, reversed(upper), lower, stream_);
  put_queries(lower, nullptr);
  add_array(all_, keys, arrays_.grad_key, stream_);
}

template <class T>
void HeadsBackward<T>::add_kernels_of(const Triangle& triangle, const Array<T>& grad_query,
                                      const Array<T>& grad_key) const {
  const DeviceBuffer<T> of_kernels = differentiate_kernels(
      triangle.logits, triangle.weights, triangle.schedule, triangle.delta_shares,
      triangle.spoiled.value, triangle.shares, model_.workspace, stream_);
  add_spoiled_kernels(triangle.spoiled, all_, of_kernels.data(), stream_);
  add_kernel_gradients(triangle.logits, of_kernels.data(), shares_.units.data(), scale_,
                       triangle.query, triangle.key, grad_query, grad_key, stream_);
}

template <class T>
void HeadsBackward<T>::add_entries(std::span<const Triangle> triangles,
                                   std::span<const Schedule> far) const {
  const index_t dim = arrays_.query.channels;
  const DeviceBuffer<T> keys(stream_, key_heads_ * columns_ * dim);
  subtract_means(arrays_.key, key_heads_, means_of_rows(arrays_.key, key_heads_, stream_).data(),
                 nullptr, keys.data(), stream_);
  std::vector<DeviceBuffer<T>> memory;
  for (std::size_t i = 0; i < triangles.size(); ++i) {
    const Triangle& triangle = triangles[i];
    const DeviceBuffer<T>& of_queries = memory.emplace_back(stream_, all_ * rows_ * dim);
    const Array<T> grad_query = of_heads(of_queries, rows_, dim);
    const DeviceBuffer<T>& of_keys = memory.emplace_back(stream_, all_ * columns_ * dim);
    const Array<T> grad_key = of_heads(of_keys, columns_, dim);
    differentiate_entries(triangle.weights, triangle.shares, triangle.delta_shares,
                          triangle.spoiled, far[i], triangle.query,
                          rows_of_triangle(i, key_rows(keys, dim)), grad_query, grad_key, stream_);
    if (i == 0) continue;
    add_array(all_, reversed(grad_query), of_heads(memory[0], rows_, dim), stream_);
    add_array(all_, reversed(grad_key), of_heads(memory[1], columns_, dim), stream_);
  }
  put_queries(of_heads(memory[0], rows_, dim), shares_.units.data());
  add_groups(of_heads(memory[1], columns_, dim), arrays_.grad_key, shares_.units.data(), true,
             scale_);
}

template <class T>
void HeadsBackward<T>::put_queries(const Array<T>& sums, const HeadUnits* units) const {
  launch(stream_, all_, rows_ * sums.channels,
         PutQueries<T>{logits_.front().table, sums, arrays_.grad_query, units, scale_});
}

template <class T>
void HeadsBackward<T>::add_groups(const Array<T>& sums, const Array<T>& to, const HeadUnits* units,
                                  bool both_units, double scale) const {
  launch(stream_, key_heads_, columns_ * to.channels,
         AddGroups<T>{sums, to, units, both_units, scale});
}

template class HeadsBackward<float>;
template class HeadsBackward<double>;

}  // namespace convbasis::cuda
