#include <type_traits>

#include "core/recover_checks.h"
#include "cuda/element.h"
#include "cuda/gemm.h"
#include "cuda/strips.h"

namespace convbasis::cuda {
namespace {

/// Rows of a caller's array as contiguous rows of T; of a strip table the keys that strips begin
/// at.
template <class T>
struct PackRows {
  Array<T> from;
  StripTable<T> strips;
  bool first_keys;
  index_t first_head, rows;  // rows a head
  T* to;
  CONVBASIS_DEVICE void operator()(index_t local, index_t item) const {
    const int head = static_cast<int>(first_head + local);
    const auto [row, c] = position_of(item, from.channels);
    const int r = static_cast<int>(row);
    T value = 0;
    if (!first_keys) {
      value = from.load(head, r, c);
    } else if (r < strips.counts[head]) {
      value = from.load(head, strips.begin(head, r), c);
    }
    to[local * rows * from.channels + item] = value;
  }
};

/// Columns of logits, (heads, most, rows), as kernels: the row of a strip's start is lag 0. Entries
/// past the last row, and strips that are not in use, are zero.
template <class T>
struct ColumnsToKernels {
  StripTable<T> strips;
  const T* columns;
  index_t first_head;
  T* kernels;  // of the first head
  index_t head_stride, strip_stride;
  CONVBASIS_DEVICE void operator()(index_t item, index_t lag) const {
    const int local = static_cast<int>(item / strips.most);
    const int head = static_cast<int>(first_head) + local;
    const int strip = static_cast<int>(item % strips.most);
    const bool used = strip < strips.counts[head];
    const index_t row = used ? strips.begin(head, strip) + lag : strips.rows;
    kernels[local * head_stride + strip * strip_stride + lag] =
        row < strips.rows ? columns[item * strips.rows + row] : T(0);
  }
};

/// Can a matrix product read the rows of a head where they lie?
template <class E>
bool are_matrices(const View<const E, 4>& rows) {
  return std::is_same_v<E, Compute<E>> && rows.strides[3] == 1 && rows.strides[1] >= 0 &&
         rows.strides[2] >= rows.shape[3];
}

}  // namespace

template <class E>
void recover_kernels(View<const E, 4> query, View<const E, 4> key, View<const index_t, 3> starts,
                     View<const index_t, 2> num_bases, double scale, View<Compute<E>, 4> kernels,
                     const Stream& stream) {
  using T = Compute<E>;
  constexpr const char* kName = "recover_kernels";
  const auto [batch, heads, n, dim] = query.shape;
  const index_t keys = key.shape[2], most = kernels.shape[2];
  require_query_key(kName, query, key);
  require_shape(kName, "kernels", kernels.shape, {batch, heads, most, n}, "to match query");
  const BasisView<T> basis{starts, num_bases, kernels, std::min(n, keys)};
  require_basis<T>(kName, basis);
  for (index_t b = 0; b < batch; ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t r = 0; r < num_bases(b, h); ++r)
        require(starts(b, h, r) < keys, kName,
                "starts holds " + std::to_string(starts(b, h, r)) + "; expected less than the " +
                    std::to_string(keys) + " keys");
  if (kernels.empty()) return;
  require_narrow(kName, batch * heads, most, n);

  const DeviceGuard guard(stream.device);
  const Strips<T> strips = strips_of_basis(basis, {}, stream);
  const Array<T> queries = array_of(query, heads), all_keys = array_of(key, heads);
  const bool in_place = are_matrices<E>(query);
  const DeviceBuffer<T> first_keys(stream, heads * most * dim);
  const DeviceBuffer<T> packed(stream, in_place ? 0 : heads * n * dim);
  const DeviceBuffer<T> columns(stream, heads * most * n);
  for (index_t b = 0; b < batch; ++b) {
    const index_t first = b * heads;
    launch(stream, heads, most * dim,
           PackRows<T>{all_keys, strips.table, true, first, most, first_keys.data()});
    Matrices<const T> rows{packed.data(), dim, n * dim};
    if constexpr (std::is_same_v<E, T>)
      if (in_place) rows = {query.data + b * query.strides[0], query.strides[2], query.strides[1]};
    if (!in_place)
      launch(stream, heads, n * dim,
             PackRows<T>{queries, strips.table, false, first, n, packed.data()});
    multiply<T, T>(stream, most, n, dim, static_cast<T>(scale),
                   {first_keys.data(), dim, most * dim}, rows, true, T(0),
                   {columns.data(), n, most * n}, heads);
    launch(stream, heads * most, n,
           ColumnsToKernels<T>{strips.table, columns.data(), first,
                               kernels.data + b * kernels.strides[0], kernels.strides[1],
                               kernels.strides[2]});
  }
}

#define CONVBASIS_INSTANTIATE(E)                                                            \
  template void recover_kernels(View<const E, 4>, View<const E, 4>, View<const index_t, 3>, \
                                View<const index_t, 2>, double, View<Compute<E>, 4>,        \
                                const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis::cuda
