#include <algorithm>
#include <optional>
#include <vector>

#include "convbasis/backward.h"
#include "core/groups.h"
#include "core/heads.h"
#include "core/shape.h"
#include "cpu/backward_tiles.h"
#include "cpu/blas.h"
#include "cpu/rows.h"
#include "cpu/visible.h"

namespace convbasis {
namespace {

constexpr const char* kName = "exact_attention_backward";

/// Query rows, or keys, of a block. Blocks are what threads share out.
constexpr index_t kBlock = 256;

/// Query block and key block that meet.
struct Pair {
  index_t query, key;
};

/// The pairs of one step of max(queries, keys). No two of them share a block, so threads may take
/// them side by side, and the sums of a block grow in the order of the steps, whatever the threads.
/// Query block a meets key block (step - a) mod steps; when causal that is a tournament, with half
/// of all blocks in every step.
std::vector<Pair> pairs_of(index_t step, index_t queries, index_t keys, bool is_causal) {
  const index_t steps = std::max(queries, keys);
  std::vector<Pair> pairs;
  for (index_t a = 0; a < queries; ++a) {
    const index_t b = (step - a + steps) % steps;
    if (b < keys && (b <= a || !is_causal)) pairs.push_back({a, b});
  }
  return pairs;
}

/// The pairs of a masked step: query block a meets key block (a + step) mod steps, so that those
/// along a diagonal, which windows see, share a step.
std::vector<Pair> masked_pairs_of(index_t step, std::span<const RowSight> reach, index_t keys) {
  const index_t queries = static_cast<index_t>(reach.size()), steps = std::max(queries, keys);
  std::vector<Pair> pairs;
  for (index_t a = 0; a < queries; ++a) {
    const index_t b = (a + step) % steps;
    const auto [first, last] =
        reach[static_cast<std::size_t>(a)].within(b * kBlock, (b + 1) * kBlock);
    if (b < keys && first < last) pairs.push_back({a, b});
  }
  return pairs;
}

/// Of each block of rows, outside of which none of them sees a key.
std::vector<RowSight> reach_of(const VisibleKeys& visible, std::span<const index_t> rows) {
  std::vector<RowSight> reach;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto [lead, range, bits, base] = visible.sight(rows[i]);
    if (i % static_cast<std::size_t>(kBlock) == 0) reach.push_back({});
    RowSight& all = reach.back();
    all.lead = std::max(all.lead, lead);
    if (range.first >= range.last) continue;
    const bool none = all.range.first == all.range.last;
    all.range = {none ? range.first : std::min(all.range.first, range.first),
                 std::max(all.range.last, range.last)};
  }
  return reach;
}

/// A matrix that tiles add to.
template <class T>
class Sums {
 public:
  Sums(index_t rows, index_t channels) : numbers_(rows * channels), channels_(channels) {
    std::fill_n(numbers_.data(), numbers_.size(), T(0));
  }
  [[nodiscard]] Rows<T> rows() { return {numbers_.data(), channels_}; }
  [[nodiscard]] blas::Matrix<T> from(index_t row) { return {rows().row(row), channels_}; }
  /// The sums times both factors, which together may overflow, into an array of any layout; row i
  /// to where `order`, unless it is empty, has it.
  void write(const View<T, 2>& to, T factor, T unscale, std::span<const index_t> order) {
    kernels<T>().scale(numbers_.data(), factor, numbers_.size());
    for (index_t i = 0; i < to.shape[0]; ++i)
      write_row(rows().row(i), to, order.empty() ? i : order[static_cast<std::size_t>(i)], unscale);
  }

 private:
  Buffer<T> numbers_;
  index_t channels_;
};

/// One query head: what the forward pass left, and the gradient by its rows, all in the order of
/// the queries but for `numbered`.
template <class T>
struct QueryHead {
  QueryHead(const View<const T, 2>& query_view, const View<const T, 2>& grad_view,
            std::span<const index_t> order)
      : count(query_view.shape[0]),
        query(as_rows(in_order(query_view, order, ordered_query), query_copy)),
        grad_output(as_rows(in_order(grad_view, order, ordered_grad), grad_copy)),
        numbered(query_view),
        row_numbers(positions(order, count)),
        lse(count),
        delta(count),
        grad_query(count, query_view.shape[1]) {
    if (order.empty()) numbered = {query.data, query_view.shape, {query.stride, 1}};
  }
  /// At most `most` rows from `first` on, before `last`.
  [[nodiscard]] BackwardRows<T> tile(index_t first, index_t last, index_t most) {
    const index_t size = std::min(most, last - first);
    const auto at = static_cast<std::size_t>(first);
    return {std::span(row_numbers).subspan(at, static_cast<std::size_t>(size)),
            {grad_output.row(first), grad_output.stride},
            lse.data() + first,
            delta.data() + first};
  }

  index_t count;
  Buffer<T> ordered_query, ordered_grad, query_copy, grad_copy;
  Rows<const T> query, grad_output;
  View<const T, 2> numbered;  // the queries by their numbers
  std::vector<index_t> row_numbers;
  Buffer<double> lse;
  Buffer<T> delta;
  Sums<T> grad_query;
};

/// Key and value of one head in the order of the keys, and the gradients by them, summed over its
/// query heads.
template <class T>
class KeyHead {
 public:
  KeyHead(const View<const T, 2>& key, const View<const T, 2>& value, double scale,
          const VisibleKeys& visible, const Exec& exec)
      : exec_(exec),
        keys_(key.shape[0]),
        head_dim_(key.shape[1]),
        channels_(value.shape[1]),
        scale_(scale),
        visible_(visible),
        key_(as_rows(in_order(key, visible.key_order(), ordered_key_), key_copy_)),
        value_(as_value_rows(in_order(value, visible.key_order(), ordered_value_), channels_,
                             value_copy_, exec)),
        key_panels_(key_, keys_, head_dim_, exec),
        value_panels_(value_.rows, keys_, channels_, exec),
        tile_rows_(panel_rows<T>(std::max(head_dim_, channels_))),
        grad_key_(keys_, head_dim_),
        grad_value_(keys_, channels_),
        tiles_(static_cast<std::size_t>(resolve_threads(exec))) {}

  void add(QueryHead<T>& head) {
    forward(head);
    const index_t queries = ceil_div(head.count, kBlock), keys = ceil_div(keys_, kBlock);
    std::vector<RowSight> reach;
    if (visible_.has_mask()) reach = reach_of(visible_, head.row_numbers);
    for (index_t step = 0; step < std::max(queries, keys); ++step) {
      const std::vector<Pair> pairs = visible_.has_mask()
                                          ? masked_pairs_of(step, reach, keys)
                                          : pairs_of(step, queries, keys, visible_.is_causal());
      parallel_for(exec_, static_cast<index_t>(pairs.size()), [&](index_t item, int worker) {
        backward(head, pairs[static_cast<std::size_t>(item)], tiles(worker));
      });
    }
  }
  void write_query(QueryHead<T>& head, const View<T, 2>& to) const {
    head.grad_query.write(to, static_cast<T>(scale_), value_.unscale, visible_.query_order());
  }
  void write(const View<T, 2>& grad_key, const View<T, 2>& grad_value) {
    grad_key_.write(grad_key, static_cast<T>(scale_), value_.unscale, visible_.key_order());
    grad_value_.write(grad_value, 1, 1, visible_.key_order());
  }

 private:
  [[nodiscard]] DotScores<T> scores(const QueryHead<T>& head) const {
    return {head.numbered, key_panels_, head_dim_, scale_};
  }
  BackwardTiles<T>& tiles(int worker) {
    auto& mine = tiles_[static_cast<std::size_t>(worker)];
    if (!mine) mine.emplace(value_.rows, value_panels_, channels_, visible_, kName);
    return *mine;
  }
  void forward(QueryHead<T>& head) {
    const index_t count = ceil_div(head.count, tile_rows_);
    parallel_for(exec_, count, [&](index_t item, int worker) {
      DotScores<T> source = scores(head);
      const index_t first = (count - 1 - item) * tile_rows_;  // the longest rows first
      tiles(worker).forward(source, head.tile(first, head.count, tile_rows_));
    });
  }
  void backward(QueryHead<T>& head, Pair pair, BackwardTiles<T>& tiles) {
    DotScores<T> source = scores(head);
    const index_t last_row = std::min((pair.query + 1) * kBlock, head.count);
    const index_t last_key = std::min((pair.key + 1) * kBlock, keys_);
    for (index_t row = pair.query * kBlock; row < last_row; row += tile_rows_) {
      const BackwardRows<T> rows = head.tile(row, last_row, tile_rows_);
      const index_t count = static_cast<index_t>(rows.rows.size());
      for (const KeyRange& segment : tiles.look(rows, {pair.key * kBlock, last_key}).segments()) {
        for (index_t key = segment.first, next = 0; key < segment.last; key = next) {
          next = std::min((key / kPanel + 1) * kPanel, segment.last);
          const index_t width = next - key;
          const Rows<const T> grad = tiles.backward(source, key, next, rows, grad_value_.rows());
          blas::multiply<T>(count, head_dim_, width, T(1), {grad.data, grad.stride},
                            {key_.row(key), key_.stride}, T(1), head.grad_query.from(row));
          blas::add_transposed_product<T>(width, head_dim_, count, {grad.data, grad.stride},
                                          {head.query.row(row), head.query.stride},
                                          grad_key_.from(key));
        }
      }
    }
  }

  Exec exec_;
  index_t keys_, head_dim_, channels_;
  double scale_;
  const VisibleKeys& visible_;
  Buffer<T> ordered_key_, ordered_value_, key_copy_, value_copy_;
  Rows<const T> key_;
  ValueRows<T> value_;
  Panels<T> key_panels_, value_panels_;
  index_t tile_rows_;
  Sums<T> grad_key_, grad_value_;
  std::vector<std::optional<BackwardTiles<T>>> tiles_;  // of each worker
};

}  // namespace

template <class T>
void exact_attention_backward(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                              View<const T, 4> grad_output, View<T, 4> grad_query,
                              View<T, 4> grad_key, View<T, 4> grad_value,
                              const AttentionOptions& options, std::span<const index_t> heads,
                              const Exec& exec) {
  require_attention(kName, query, key, value);
  const auto [batch, query_heads, n, head_dim] = query.shape;
  const index_t kv_heads = key.shape[1];
  require_shape(kName, "grad_output", grad_output.shape, {batch, query_heads, n, value.shape[3]},
                "to match query and value");
  require_shape(kName, "grad_query", grad_query.shape, query.shape, "to match query");
  require_shape(kName, "grad_key", grad_key.shape, key.shape, "to match key");
  require_shape(kName, "grad_value", grad_value.shape, value.shape, "to match value");
  const HeadList list(kName, heads, batch * query_heads);
  const std::vector<Group> groups = groups_of(list, batch, query_heads, kv_heads);
  const VisibleKeys visible(kName, options.mask, options.is_causal, n, key.shape[2]);
  const double scale = scale_of(options, head_dim);
  for_each_head(exec, static_cast<index_t>(groups.size()), [&](index_t i, const Exec& inside) {
    const auto& [b, g, listed] = groups[static_cast<std::size_t>(i)];
    KeyHead<T> shared(head_view(key, b, g), head_view(value, b, g), scale, visible, inside);
    for (const index_t h : listed) {
      QueryHead<T> mine(head_view(query, b, h), head_view(grad_output, b, h),
                        visible.query_order());
      shared.add(mine);
      shared.write_query(mine, head_view(grad_query, b, h));
    }
    shared.write(head_view(grad_key, b, g), head_view(grad_value, b, g));
  });
}

#define CONVBASIS_INSTANTIATE(T)                                                          \
  template void exact_attention_backward(                                                 \
      View<const T, 4>, View<const T, 4>, View<const T, 4>, View<const T, 4>, View<T, 4>, \
      View<T, 4>, View<T, 4>, const AttentionOptions&, std::span<const index_t>, const Exec&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
#undef CONVBASIS_INSTANTIATE

}  // namespace convbasis
