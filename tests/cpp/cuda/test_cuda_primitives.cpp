#include <complex>
#include <cstring>
#include <limits>

#include "convbasis/device.h"
#include "convbasis/error.h"
#include "cuda/element.h"
#include "cuda/gemm.h"
#include "cuda/library.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

// Test programs are plain C++: conversions run on the host, whatever the device.
TEST(half_precision_rounds_to_the_nearest_even) {
  struct Case {
    float value;
    std::uint16_t half, brain;
  };
  const float inf = std::numeric_limits<float>::infinity();
  for (const Case& c :
       {Case{1.0F, 0x3c00, 0x3f80}, Case{-2.5F, 0xc100, 0xc020}, Case{0.0F, 0, 0},
        Case{65504.0F, 0x7bff, 0x4780}, Case{65519.9F, 0x7bff, 0x4780},
        Case{65520.0F, 0x7c00, 0x4780}, Case{inf, 0x7c00, 0x7f80}, Case{-inf, 0xfc00, 0xff80},
        Case{0x1p-24F, 0x0001, 0x3380}, Case{0x1p-25F, 0x0000, 0x3300},
        Case{0x1.8p-24F, 0x0002, 0x33c0}, Case{0x1p-14F, 0x0400, 0x3880},
        Case{1.0F + 0x1p-11F, 0x3c00, 0x3f80}, Case{1.0F + 0x1.8p-10F, 0x3c02, 0x3f80},
        Case{1.0F + 0x1p-8F, 0x3c04, 0x3f80}, Case{1.0F + 0x1.8p-7F, 0x3c0c, 0x3f82}}) {
    CHECK(to_float16(c.value) == c.half);
    CHECK(to_bfloat16(c.value) == c.brain);
  }
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {  // every number comes back
    const auto half = static_cast<std::uint16_t>(bits);
    const float single = from_float16(half), brain = from_bfloat16(half);
    CHECK(std::isnan(single) ? std::isnan(from_float16(to_float16(single)))
                             : to_float16(single) == half);
    CHECK(std::isnan(brain) ? std::isnan(from_bfloat16(to_bfloat16(brain)))
                            : to_bfloat16(brain) == half);
  }
}

TEST(tables_of_any_size_reach_the_device) {
  for (const index_t count : {0, 1, 7679, 7680, 7681, 20000}) {
    std::vector<std::int32_t> table(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(3 * i + 1);
    CHECK(to_host(upload<std::int32_t>(kStream, table)) == table);
  }
}

TEST(transforms_go_there_and_back) {
  const auto check = []<class T>(T) {
    for (const index_t length : {32, 512})
      for (const index_t batch : {1, 5}) {
        const std::vector<T> x = normal_numbers<T>(length * batch, 4);
        const DeviceBuffer<T> in = to_device(x), back(kStream, length * batch);
        const DeviceBuffer<Complex<T>> spectra(kStream, (length / 2 + 1) * batch);
        transform(kStream, length, batch, in.data(), spectra.data());
        const std::vector<Complex<T>> got = to_host(spectra);
        const double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
        for (index_t b = 0; b < batch; ++b) {  // one frequency by its definition
          std::complex<double> sum = 0;
          for (index_t t = 0; t < length; ++t)
            sum += static_cast<double>(x[static_cast<std::size_t>(t * batch + b)]) *
                   std::polar(1.0,
                              -2 * M_PI * 3 * static_cast<double>(t) / static_cast<double>(length));
          const Complex<T> value = got[static_cast<std::size_t>(3 * batch + b)];
          CHECK_NEAR(static_cast<double>(value.re), sum.real(), 50 * eps * std::sqrt(length));
          CHECK_NEAR(static_cast<double>(value.im), sum.imag(), 50 * eps * std::sqrt(length));
        }
        transform_back(kStream, length, batch, spectra.data(), back.data());
        const std::vector<T> again = to_host(back);
        for (std::size_t i = 0; i < x.size(); ++i)
          CHECK_NEAR(static_cast<double>(again[i]) / static_cast<double>(length),
                     static_cast<double>(x[i]), 20 * eps);
      }
  };
  check(float());
  check(double());
}

TEST(matrix_products_are_row_major) {
  // Two products of A (2 x 3) and B (3 x 2), or B^T, in rows wider than they need.
  const std::vector<double> a{1, 2, 3, 0, 4, 5, 6, 0, 1, 0, 0, 0, 0, 1, 0, 0};
  const std::vector<double> b{1, 4, 2, 5, 3, 6, 7, 8, 9, 10, 11, 12};
  const std::vector<double> ones(8, 1);
  const DeviceBuffer<double> left = to_device(a), right = to_device(b);
  for (const bool transpose : {false, true}) {
    const DeviceBuffer<double> c = to_device(ones);
    multiply<double, double>(kStream, 2, 2, 3, 2.0, {left.data(), 4, 8},
                             {right.data(), transpose ? 3 : 2, 6}, transpose, 1.0, {c.data(), 2, 4},
                             2);
    const std::vector<double> want = transpose
                                         ? std::vector<double>{31, 59, 73, 143, 15, 21, 17, 23}
                                         : std::vector<double>{29, 65, 65, 155, 15, 17, 19, 21};
    CHECK(to_host(c) == want);
  }
  const std::vector<Complex<float>> i{{0, 1}}, z{{2, 3}};
  const DeviceBuffer<Complex<float>> x = to_device(i), y = to_device(z), product(kStream, 1);
  multiply<Complex<float>, float>(kStream, 1, 1, 1, 1.0F, {x.data(), 1, 1}, {y.data(), 1, 1}, false,
                                  0.0F, {product.data(), 1, 1}, 1);
  CHECK(to_host(product)[0].re == -3 && to_host(product)[0].im == 2);
}

TEST(a_device_that_is_not_there_is_an_error) {
  CHECK(cuda_available() && why_unavailable().empty() && device_count() > 0);
  CHECK(!device_info(0).name.empty());
  CHECK_THROWS(device_info(1000), BackendError, "[cuda] cudaGetDeviceProperties: invalid device");
  CHECK_THROWS(DeviceGuard(1000), BackendError, "[cuda] cudaSetDevice: invalid device");
}

TEST(a_library_is_loaded_when_it_is_needed) {
  Library math("libm.so.6");
  CHECK(math.why_missing().empty());
  const auto root = reinterpret_cast<double (*)(double)>(math.function("sqrt"));
  CHECK(root(9.0) == 3.0);
  CHECK_THROWS(math.function("cufftCreate"), BackendError, "libm.so.6 has no function cufftCreate");

  Library missing("libconvbasis-nowhere.so.12");
  CHECK(missing.why_missing().find("pip install 'convbasis[cuda13]'") != std::string::npos);
  CHECK_THROWS(missing.function("cufftCreate"), BackendError,
               "[cuda] libconvbasis-nowhere.so.12 cannot be loaded (");
}
