#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "convbasis/options.h"
#include "convbasis/types.h"

namespace convbasis {

/// How attention whose logits depend on content is approximated: some keys exactly, the rest by one
/// convolution a head.
struct CalibrateOptions {
  index_t window = 64;            ///< nearest keys taken exactly, in whole key blocks, or four
                                  ///< times as many where a head is cheaper so
  index_t sinks = 4;              ///< first keys taken exactly
  index_t heavy_keys = 64;        ///< keys with the most attention, taken exactly by all queries
  index_t retrieval_blocks = 16;  ///< most key blocks that query blocks take exactly in the mean;
                                  ///< one may take four times as many
  index_t sample_rows = 128;      ///< rows of exact attention that the basis is fitted to
  index_t sample_keys = 64;       ///< keys that tell how much of a row the convolution carries
  std::uint64_t seed = 0;         ///< of all random choices
  double tol = 0;                 ///< relative error wanted; 0: the least that the options allow
};

/// Queries, and keys, of a block.
constexpr index_t kKeyBlock = 64;

/// Which keys of one head are taken exactly, and the weights of the others: a row of query block I
/// gives key j, of key block J, the weight alpha_i * lag_weights[I - J] * key_weights[j].
template <class T>
struct HeadCalibration {
  index_t near_blocks = 0;         ///< before a query block's own
  bool has_far = false;            ///< whether keys that are not exact count at all
  double sample_error = 0;         ///< relative error of sample rows, which the basis was fitted
                                   ///< to; infinite where exact attention is expected to be
                                   ///< cheaper: then all that the options allow is taken
  std::vector<index_t> heavy;      ///< keys that all queries take exactly, rising
  std::vector<index_t> lags;       ///< far lags that stand out, exact for all queries, rising
  std::vector<index_t> ranked;     ///< (query blocks, most): key blocks by falling weight, then -1
  std::vector<index_t> retrieved;  ///< (query blocks): how many of these are taken, near ones apart
  std::vector<T> key_weights;      ///< (n), 0 for heavy keys
  std::vector<T> lag_weights;  ///< (query blocks), by block lag; 0 for what the options call near
};

/// What calibrate found.
template <class T>
struct Calibration {
  CalibrateOptions options;
  index_t batch = 0, query_heads = 0, rows = 0;
  index_t most_ranked = 0;                ///< row length of HeadCalibration::ranked
  std::vector<HeadCalibration<T>> heads;  ///< (batch * query_heads)
};

/// Causal attention of a sequence to itself, ready for the calls below: keys are packed once for
/// all of them. The arrays have to outlive it.
template <class T>
class SelfAttention {
 public:
  /// Shapes as in exact_attention, with as many keys as queries; of options the scale. Throws
  /// InvalidArgument when shapes do not fit. O(n d), as much memory as keys, and as keys and values
  /// where BLAS cannot read them.
  SelfAttention(View<const T, 4> query, View<const T, 4> key, View<const T, 4> value,
                const AttentionOptions& options = {}, const Exec& exec = {});
  ~SelfAttention();
  SelfAttention(SelfAttention&& other) noexcept;
  SelfAttention& operator=(SelfAttention&& other) noexcept;

  struct Arrays;
  [[nodiscard]] const Arrays& arrays() const { return *arrays_; }

 private:
  std::unique_ptr<Arrays> arrays_;
};

/// Fits a basis to each head, from exact attention of sample rows. Of options.retrieval_blocks no
/// more are taken than options.tol asks for.
///
/// O(sample rows n d + n^2 d / 64) a head. Throws InvalidArgument when options do not fit or a
/// logit overflows.
template <class T>
[[nodiscard]] Calibration<T> calibrate(const SelfAttention<T>& attention,
                                       const CalibrateOptions& options, const Exec& exec = {});

/// Attention by a calibration of it.
///
/// out, lse and heads as in exact_attention. far_share (batch, heads, n) gets the share of each row
/// that keys which are not exact have, as far as drawn keys tell: where errors are to be looked
/// for; norms (batch, heads, n), the Euclidean norm of each row of out. O(n d (exact keys of a row)
/// + n^2 d / 4096) a head.
template <class T>
void calibrated_attention(const SelfAttention<T>& attention, const Calibration<T>& calibration,
                          View<T, 4> out, View<T, 3> lse, View<T, 3> far_share,
                          View<double, 3> norms, std::span<const index_t> heads = {},
                          const Exec& exec = {});

/// Exact attention of listed query rows: rows (listed heads, r), out (listed heads, r, dv). O(r n
/// d) a head.
template <class T>
void exact_rows(const SelfAttention<T>& attention, View<const index_t, 2> rows, View<T, 3> out,
                std::span<const index_t> heads = {}, const Exec& exec = {});

/// Exact attention of some blocks of kKeyBlock query rows: blocks (batch * heads * ceil(n /
/// kKeyBlock)) says which; other rows of out and lse are left alone. O(n d) a row.
template <class T>
void exact_blocks(const SelfAttention<T>& attention, std::span<const char> blocks, View<T, 4> out,
                  View<T, 3> lse, const Exec& exec = {});

}  // namespace convbasis
