#include "convbasis/cuda.h"
#include "convbasis/device.h"
#include "convbasis/error.h"

namespace convbasis::cuda {
namespace {

[[noreturn]] void refuse(const char* function) {
  throw BackendError("[" + std::string(function) + "] " + why_unavailable());
}

}  // namespace

std::shared_ptr<void> make_memory(const Stream&, std::size_t) { refuse("make_memory"); }
void wait(const Stream&) { refuse("wait"); }
void order(const Stream&, void*) { refuse("order"); }
void clear(const Stream&, void*, std::size_t) { refuse("clear"); }

template <class E>
void conv_matmul(const BasisView<Compute<E>>&, View<const E, 4>, View<E, 4>, bool, const Stream&) {
  refuse("conv_matmul");
}

template <class T>
void row_sums(const BasisView<T>&, View<T, 3>, const Stream&) {
  refuse("row_sums");
}

template <class E>
StripStarts recover_starts(View<const E, 4>, View<const E, 4>, double, const RecoverOptions&,
                           const Stream&) {
  refuse("recover_basis");
}

template <class E>
void recover_kernels(View<const E, 4>, View<const E, 4>, View<const index_t, 3>,
                     View<const index_t, 2>, double, View<Compute<E>, 4>, const Stream&) {
  refuse("recover_kernels");
}

template <class E>
void conv_attention(const BasisView<Compute<E>>&, const BasisView<Compute<E>>*, View<const E, 4>,
                    View<E, 4>, View<Compute<E>, 3>, View<index_t, 2>, std::span<const index_t>,
                    const Stream&) {
  refuse("conv_attention");
}

template <class E>
void conv_attention_backward(const BasisView<Compute<E>>&, const BasisView<Compute<E>>*,
                             View<const E, 4>, View<const E, 4>, View<const E, 4>, View<const E, 4>,
                             View<E, 4>, View<E, 4>, View<E, 4>, double, Gradient, View<index_t, 2>,
                             std::span<const index_t>, const Stream&) {
  refuse("conv_attention_backward");
}

template <class E>
void exact_attention(View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>,
                     View<Compute<E>, 3>, const AttentionOptions&, std::span<const index_t>,
                     const Stream&) {
  refuse("exact_attention");
}

template <class E>
LogitRange logit_range(View<const E, 4>, View<const E, 4>, const AttentionOptions&, const Stream&) {
  refuse("logit_range");
}

template <class E>
void polynomial_attention(View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>,
                          View<Compute<E>, 3>, std::span<const HeadPolynomial>,
                          const AttentionOptions&, std::span<const index_t>, const Stream&) {
  refuse("polynomial_attention");
}

template <class E>
void exact_attention_backward(View<const E, 4>, View<const E, 4>, View<const E, 4>,
                              View<const E, 4>, View<E, 4>, View<E, 4>, View<E, 4>,
                              const AttentionOptions&, std::span<const index_t>, const Stream&) {
  refuse("exact_attention_backward");
}

template <class E>
void polynomial_attention_backward(View<const E, 4>, View<const E, 4>, View<const E, 4>,
                                   View<const E, 4>, View<E, 4>, View<E, 4>, View<E, 4>,
                                   std::span<const HeadPolynomial>, const AttentionOptions&,
                                   std::span<const index_t>, const Stream&) {
  refuse("polynomial_attention_backward");
}

#define CONVBASIS_INSTANTIATE(E)                                                                  \
  template void conv_matmul(const BasisView<Compute<E>>&, View<const E, 4>, View<E, 4>, bool,     \
                            const Stream&);                                                       \
  template void recover_kernels(View<const E, 4>, View<const E, 4>, View<const index_t, 3>,       \
                                View<const index_t, 2>, double, View<Compute<E>, 4>,              \
                                const Stream&);                                                   \
  template void conv_attention(const BasisView<Compute<E>>&, const BasisView<Compute<E>>*,        \
                               View<const E, 4>, View<E, 4>, View<Compute<E>, 3>,                 \
                               View<index_t, 2>, std::span<const index_t>, const Stream&);        \
  template void conv_attention_backward(                                                          \
      const BasisView<Compute<E>>&, const BasisView<Compute<E>>*, View<const E, 4>,               \
      View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>, View<E, 4>, View<E, 4>,   \
      double, Gradient, View<index_t, 2>, std::span<const index_t>, const Stream&);               \
  template StripStarts recover_starts(View<const E, 4>, View<const E, 4>, double,                 \
                                      const RecoverOptions&, const Stream&);                      \
  template LogitRange logit_range(View<const E, 4>, View<const E, 4>, const AttentionOptions&,    \
                                  const Stream&);                                                 \
  template void polynomial_attention(View<const E, 4>, View<const E, 4>, View<const E, 4>,        \
                                     View<E, 4>, View<Compute<E>, 3>,                             \
                                     std::span<const HeadPolynomial>, const AttentionOptions&,    \
                                     std::span<const index_t>, const Stream&);                    \
  template void exact_attention(View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>, \
                                View<Compute<E>, 3>, const AttentionOptions&,                     \
                                std::span<const index_t>, const Stream&);                         \
  template void polynomial_attention_backward(                                                    \
      View<const E, 4>, View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>,         \
      View<E, 4>, View<E, 4>, std::span<const HeadPolynomial>, const AttentionOptions&,           \
      std::span<const index_t>, const Stream&);                                                   \
  template void exact_attention_backward(                                                         \
      View<const E, 4>, View<const E, 4>, View<const E, 4>, View<const E, 4>, View<E, 4>,         \
      View<E, 4>, View<E, 4>, const AttentionOptions&, std::span<const index_t>, const Stream&);
CONVBASIS_INSTANTIATE(float)
CONVBASIS_INSTANTIATE(double)
CONVBASIS_INSTANTIATE(Float16)
CONVBASIS_INSTANTIATE(BFloat16)
#undef CONVBASIS_INSTANTIATE
template void row_sums(const BasisView<float>&, View<float, 3>, const Stream&);
template void row_sums(const BasisView<double>&, View<double, 3>, const Stream&);

}  // namespace convbasis::cuda
