#include "cuda/fft.h"

#include <complex>
#include <pocketfft.hpp>

namespace convbasis::cuda {
namespace {

template <class T>
struct Layout {
  Layout(index_t length, index_t batch)
      : shape{static_cast<std::size_t>(length), static_cast<std::size_t>(batch)},
        reals{batch * static_cast<index_t>(sizeof(T)), sizeof(T)},
        spectra{2 * reals[0], 2 * reals[1]} {}
  pocketfft::shape_t shape;
  pocketfft::stride_t reals, spectra;
};

}  // namespace

template <class T>
void transform(const Stream&, index_t length, index_t batch, const T* in, Complex<T>* out) {
  const Layout<T> layout(length, batch);
  pocketfft::r2c(layout.shape, layout.reals, layout.spectra, std::size_t{0}, true, in,
                 reinterpret_cast<std::complex<T>*>(out), T(1));
}

template <class T>
void transform_back(const Stream&, index_t length, index_t batch, Complex<T>* in, T* out) {
  const Layout<T> layout(length, batch);
  pocketfft::c2r(layout.shape, layout.spectra, layout.reals, std::size_t{0}, false,
                 reinterpret_cast<const std::complex<T>*>(in), out, T(1));
  for (index_t i = 0; i < (length / 2 + 1) * batch; ++i) in[i] = {T(NAN), T(NAN)};
}

template void transform(const Stream&, index_t, index_t, const float*, Complex<float>*);
template void transform(const Stream&, index_t, index_t, const double*, Complex<double>*);
template void transform_back(const Stream&, index_t, index_t, Complex<float>*, float*);
template void transform_back(const Stream&, index_t, index_t, Complex<double>*, double*);

}  // namespace convbasis::cuda
