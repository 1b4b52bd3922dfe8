#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>

#include "convbasis/backward.h"
#include "convbasis/basis.h"
#include "convbasis/lowrank.h"
#include "convbasis/options.h"
#include "convbasis/recover.h"

/// The stages on an NVIDIA GPU: the names, the order of arguments and the meaning of the CPU's.
///
/// - Every View is of device memory, except starts and num_bases of a basis, which the schedule
///   needs, and which are host memory that may change as soon as the call returns.
/// - Work is enqueued on the caller's stream. Nothing here but wait, recover_starts and logit_range
///   waits for it, so errors of the device itself appear at the caller's next synchronisation.
///   Scratch is taken from and given back to the device's memory pool in the order of the stream.
/// - E is float, double, Float16 or BFloat16. Sums and kernels are double for double, else float.
/// - Any other call may be captured into a CUDA graph after it has run once with the same sizes,
///   which makes plans and handles. The graph then holds starts and num_bases as they were.
/// - Throws InvalidArgument as on the CPU; BackendError when CUDA refuses something, or in a build
///   without CUDA.
namespace convbasis::cuda {

/// Where work goes: a device, and a cudaStream_t of it (null = its default stream).
struct Stream {
  int device = 0;
  void* stream = nullptr;
};

/// Uninitialised memory of a device, given back in the order of the stream by its last owner.
[[nodiscard]] std::shared_ptr<void> make_memory(const Stream& stream, std::size_t bytes);

/// Fills memory of a device with zeros.
void clear(const Stream& stream, void* memory, std::size_t bytes);

/// Waits for all work that is on the stream by now.
void wait(const Stream& stream);

/// What is enqueued on `then`, a cudaStream_t, from now on waits for what is on `first` by now.
void order(const Stream& first, void* then);

/// What elements of type E are computed in.
template <class E>
using Compute = std::conditional_t<std::is_same_v<E, double>, double, float>;

/// y = A x, or A^T x when transpose is set; see toeplitz.h.
template <class E>
void conv_matmul(const BasisView<Compute<E>>& basis, View<const E, 4> x, View<E, 4> y,
                 bool transpose, const Stream& stream);

/// Row sums of the matrices, (batch, heads, n); see basis.h.
template <class T>
void row_sums(const BasisView<T>& basis, View<T, 3> sums, const Stream& stream);

/// Where the strips of scale * Q K^T begin; with recover_kernels, this is recover_basis. See
/// recover.h; seen_finite may be false where it could be true.
///
/// The result is host memory: the call waits for the stream, once, when all heads are searched. A
/// bisection forms the heads of all columns too, so that a scan is the faster one here;
/// break_even() is the CPU's. O(n T d) a head; memory O(n T) a head, for as many heads at a time as
/// 256 MiB hold.
template <class E>
[[nodiscard]] StripStarts recover_starts(View<const E, 4> query, View<const E, 4> key, double scale,
                                         const RecoverOptions& options, const Stream& stream);

/// Fills kernels (batch, heads, k, n) from the columns of scale * Q K^T at the given starts, which
/// are host memory; see recover.h. Whether logits are finite is not looked at.
template <class E>
void recover_kernels(View<const E, 4> query, View<const E, 4> key, View<const index_t, 3> starts,
                     View<const index_t, 2> num_bases, double scale, View<Compute<E>, 4> kernels,
                     const Stream& stream);

/// D^-1 exp(H) V for logits H given as a conv basis, causal where upper is null; see attention.h.
/// Without a causal mask both triangles are multiplied by, one after the other, and summed before
/// rows are divided.
///
/// value (batch, kv_heads, num_columns, dv), out (batch, heads, n, dv), lse (batch, heads, n) or
/// empty. Rows that rounding may have spoiled are summed directly, as on the CPU; rows_exact
/// (batch, heads), or empty, receives how many. `heads` as exact_attention takes it; rows of others
/// are left untouched, and cost little.
template <class E>
void conv_attention(const BasisView<Compute<E>>& lower, const BasisView<Compute<E>>* upper,
                    View<const E, 4> value, View<E, 4> out, View<Compute<E>, 3> lse,
                    View<index_t, 2> rows_exact, std::span<const index_t> heads,
                    const Stream& stream);

/// Gradients of conv_attention by query, key and value, of the listed `heads`; see backward.h.
/// grad_query is written, gradients are added to what grad_key and grad_value hold: sums over the
/// query heads of a shared key head, formed before they are rounded to E. rows_exact (batch,
/// heads), or empty, receives how many rows were computed one by one.
///
/// The forward pass is run again. Next to it, for each triangle, both gradients need a transposed
/// product; Gradient::basis a correlation, which transforms as much as a product does, and 4 k n d
/// FLOP a head; Gradient::attention products with 2 (dv + 1) d channels, or tiles of n^2 (4 dv + 4
/// d) / 2 FLOP a head where that is less. Memory O(k n + n d).
template <class E>
void conv_attention_backward(const BasisView<Compute<E>>& lower, const BasisView<Compute<E>>* upper,
                             View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                             View<const E, 4> grad_output, View<E, 4> grad_query,
                             View<E, 4> grad_key, View<E, 4> grad_value, double scale,
                             Gradient gradient, View<index_t, 2> rows_exact,
                             std::span<const index_t> heads, const Stream& stream);

/// softmax(scale * Q K^T) V; see attention.h. options.mask must be empty. `heads` lists flat head
/// numbers, empty = all, and is host memory that may change as soon as the call returns.
///
/// In one kernel with an online softmax and sums in a fixed order: no scratch beyond the list of
/// heads, and of device memory (or its cache) keys and values are read once for 64 query rows of a
/// head. A row with a logit that overflows becomes NaN, where the CPU throws. Values are summed
/// before they are divided: those within a factor of m of the largest float may overflow. Float16
/// and BFloat16 go through tensor cores: weights are rounded to that type, sums are float.
template <class E>
void exact_attention(View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                     View<E, 4> out, View<Compute<E>, 3> lse, const AttentionOptions& options,
                     std::span<const index_t> heads, const Stream& stream);

/// What a polynomial has to be good for, see logit_range.h.
struct LogitRange {
  std::vector<double> centre;  ///< (batch, kv_heads, d), the mean of the keys that are seen
  std::vector<double> radius;  ///< (batch, heads), no logit is larger; infinity: no bound
};

/// Bounds as logit_norms gives them, of the largest norms alone. options.mask must be empty.
///
/// The result is host memory: the call waits for the stream, once. Queries and keys are read once,
/// keys twice: 0.1 ms for 2^20 rows of 64 channels of float32 at 2 TB/s or more.
template <class E>
[[nodiscard]] LogitRange logit_range(View<const E, 4> query, View<const E, 4> key,
                                     const AttentionOptions& options, const Stream& stream);

/// D^-1 P(scale * Q (K - centre)^T) V with one polynomial for each head; see lowrank.h. Polynomials
/// are host memory that may change as soon as the call returns. options.mask must be empty, and no
/// polynomial may have exact columns, or a degree above kMostDegree. Exact rows, and those whose
/// weights sum to 0 or less, are computed one by one, exactly.
///
/// Features are formed on the chip and never stored; sums have a fixed order. Of n rows, rank r and
/// dv channels a head takes about 4 n r (dv + 1) FLOP, twice g n r for features, and if causal
/// n b (d + dv) for the keys of a row's own chunk. b is chosen to balance that with what states
/// take of device memory: sizeof(T) r (dv + 1) n / b bytes, written, summed and read (16 bytes a
/// number in float). Scratch: the states, and (d + 1) (n + m) numbers, for as many heads at a time
/// as 256 MiB hold.
template <class E>
void polynomial_attention(View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                          View<E, 4> out, View<Compute<E>, 3> lse,
                          std::span<const HeadPolynomial> polynomials,
                          const AttentionOptions& options, std::span<const index_t> heads,
                          const Stream& stream);

/// Gradients through polynomials; see lowrank.h. grad_query is written for the listed heads,
/// gradients are added to what grad_key and grad_value hold: sums over the listed query heads of a
/// shared key head, formed before they are rounded to E. What polynomial_attention refuses is
/// refused.
///
/// A head with exact rows, or with a row whose weights sum to 0 or less, is differentiated as
/// exact_attention_backward does it. The latter is known on the device alone, so that the kernels
/// for it always run; where a head has no such row, their thread blocks end at once.
///
/// dQ takes products with d (dv + 1) channels, dK as many transposed ones, dV and the forward pass
/// dv: of n rows and rank r a head 8 n r d (dv + 1) FLOP and 8 n r dv. For each c channels, as many
/// terms as 64 have room for, or one of d, come twice g n r for features, and if causal n b (d + c)
/// next to the diagonal. Terms are formed before a product and summed after it; 12 to 16 bytes of
/// float move for each channel of a row. Scratch: the gradients of each query head before they are
/// summed, n (2 dv + 5) numbers a head, and what the products take, for as many heads at a time as
/// 256 MiB hold, but at least one.
template <class E>
void polynomial_attention_backward(View<const E, 4> query, View<const E, 4> key,
                                   View<const E, 4> value, View<const E, 4> grad_output,
                                   View<E, 4> grad_query, View<E, 4> grad_key,
                                   View<E, 4> grad_value,
                                   std::span<const HeadPolynomial> polynomials,
                                   const AttentionOptions& options, std::span<const index_t> heads,
                                   const Stream& stream);

/// Gradients of exact_attention; see backward.h. options.mask and `heads` as above.
///
/// Weights are formed again tile by tile, once for the rows' sums and once for each gradient:
/// scratch is three numbers a query row. Every sum has one order, so that results repeat to the
/// last bit. Where a logit overflows, the gradients by its row and by the keys that it sees become
/// NaN, where the CPU throws. O(n m d) a head.
template <class E>
void exact_attention_backward(View<const E, 4> query, View<const E, 4> key, View<const E, 4> value,
                              View<const E, 4> grad_output, View<E, 4> grad_query,
                              View<E, 4> grad_key, View<E, 4> grad_value,
                              const AttentionOptions& options, std::span<const index_t> heads,
                              const Stream& stream);

}  // namespace convbasis::cuda
