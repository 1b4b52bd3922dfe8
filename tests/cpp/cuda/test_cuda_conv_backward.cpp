#include <algorithm>
#include <limits>

#include "convbasis/backward.h"
#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "cuda/attention_gradient.h"
#include "cuda/heads_backward.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

struct Shape {
  index_t batch = 1, heads = 1, kv_heads = 1, rows, columns, strips, dim = 5, value_dim = 3;
  bool is_causal = true;
};

/// Gradients on the device and the CPU's, of the same numbers: those that E can hold.
template <class E>
struct Both {
  using T = Compute<E>;
  Both(const Shape& s, Gradient gradient, unsigned seed, double spread = 1, double value_size = 1,
       double grad_size = 1, double before_ = 0.5, const std::vector<index_t>& heads = {})
      : before(before_),
        basis(s.batch, s.heads, s.strips, s.rows, s.columns, seed, spread),
        upper(s.batch, s.heads, s.strips + 1, s.rows, s.rows, seed + 9, spread) {
    const BasisView<T> host_upper = upper.host(), device_upper = upper.device();
    const std::array<index_t, 4> of_query{s.batch, s.heads, s.rows, s.dim},
        of_key{s.batch, s.kv_heads, s.columns, s.dim},
        of_value{s.batch, s.kv_heads, s.columns, s.value_dim},
        of_output{s.batch, s.heads, s.rows, s.value_dim};
    const auto size_of = [](const std::array<index_t, 4>& shape) {
      return shape[0] * shape[1] * shape[2] * shape[3];
    };
    const RandomArray<E> query(size_of(of_query), seed + 1), key(size_of(of_key), seed + 2);
    const RandomArray<E> value(size_of(of_value), seed + 3, value_size);
    const RandomArray<E> grad(size_of(of_output), seed + 4, grad_size);
    const std::array<index_t, 4> shapes[] = {of_query, of_key, of_value};
    DeviceBuffer<E> grads[3];
    for (std::size_t i = 0; i < 3; ++i) {
      const auto count = static_cast<std::size_t>(size_of(shapes[i]));
      want[i].assign(count, static_cast<T>(before));
      grads[i] = to_device(std::vector<E>(count, element_from<E>(before)));
    }
    constexpr double kScale = 0.25;
    report = convbasis::conv_attention_backward<T>(
        basis.host(), s.is_causal ? nullptr : &host_upper,
        contiguous_view<const T, 4>(query.numbers.data(), of_query),
        rows_first<const T>(key.numbers.data(), of_key),
        contiguous_view<const T, 4>(value.numbers.data(), of_value),
        rows_first<const T>(grad.numbers.data(), of_output),
        contiguous_view<T, 4>(want[0].data(), of_query), rows_first<T>(want[1].data(), of_key),
        contiguous_view<T, 4>(want[2].data(), of_value), kScale, gradient, heads, {1});
    const DeviceBuffer<index_t> counts(kStream, s.batch * s.heads);
    cuda::conv_attention_backward<E>(
        basis.device(), s.is_causal ? nullptr : &device_upper,
        contiguous_view<const E, 4>(query.on_device.data(), of_query),
        rows_first<const E>(key.on_device.data(), of_key),
        contiguous_view<const E, 4>(value.on_device.data(), of_value),
        rows_first<const E>(grad.on_device.data(), of_output),
        contiguous_view<E, 4>(grads[0].data(), of_query), rows_first<E>(grads[1].data(), of_key),
        contiguous_view<E, 4>(grads[2].data(), of_value), kScale, gradient,
        contiguous_view<index_t, 2>(counts.data(), {s.batch, s.heads}), heads, kStream);
    for (std::size_t i = 0; i < 3; ++i)
      for (const E element : to_host(grads[i])) got[i].push_back(number_of(element));
    rows_exact = to_host(counts);
  }

  /// |got - want| / |want - what was there before|, of one gradient; |got - want| of a
  /// single row, of whose one entry nothing but rounding is left.
  [[nodiscard]] double error(std::size_t which) const {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < want[which].size(); ++i) {
      const auto right = static_cast<double>(want[which][i]);
      error += std::pow(static_cast<double>(got[which][i]) - right, 2);
      size += std::pow(right - (which == 0 ? 0 : before), 2);
    }
    return std::sqrt(basis.rows > 1 ? error / size : error);
  }
  void check(double tolerance) const {
    for (const std::size_t which : {0U, 1U, 2U}) CHECK_NEAR(error(which), 0.0, tolerance);
  }

  double before;  // what all three gradients hold
  RandomBasis<T> basis, upper;
  std::vector<T> want[3], got[3];
  std::vector<index_t> rows_exact;
  BackwardReport report;
};

}  // namespace

TEST(gradients_through_strips_match_the_cpu) {
  for (const index_t n : {1, 2, 63, 65, 300, 700})
    for (const index_t k : {1, 2, 17}) {
      const auto seed = static_cast<unsigned>(n + k);
      const Shape grouped{2, 4, 2, n, n - n / 4, k};
      Both<double>(grouped, Gradient::basis, seed).check(1e-12);
      Both<float>({1, 3, 3, n, n, k, 3, 5}, Gradient::basis, seed).check(1e-5);
    }
  Both<double>({1, 2, 1, 200, 150, 40, 70, 67}, Gradient::basis, 3).check(1e-12);
}

TEST(gradients_of_attention_match_the_cpu) {
  for (const index_t n : {1, 2, 63, 65, 300, 700})
    for (const index_t k : {1, 17}) {
      const auto seed = static_cast<unsigned>(n + k);
      const Shape grouped{2, 4, 2, n, n - n / 4, k};
      Both<double>(grouped, Gradient::attention, seed).check(1e-12);
      Both<float>({1, 3, 3, n, n, k, 3, 5}, Gradient::attention, seed).check(1e-5);
    }
  Both<double>({1, 2, 1, 200, 150, 40, 70, 67}, Gradient::attention, 3).check(1e-12);
  Both<float>({1, 1, 1, 200, 150, 40, 130, 67}, Gradient::attention, 3).check(1e-5);
}

TEST(far_gradients_of_attention_match_near_ones) {
  // The same call with all entries near, whose values are held against the CPU's.
  const index_t n = 1000, dim = 5, value_dim = 3, heads = 4, kv_heads = 2;
  for (const index_t m : {900, 1000}) {  // causal, or not
    const RandomBasis<double> basis(1, heads, 9, n, m, 3), above(1, heads, 7, n, n, 8);
    const RandomArray<double> query(heads * n * dim, 4), key(kv_heads * m * dim, 5);
    const RandomArray<double> value(kv_heads * m * value_dim, 6), grad(heads * n * value_dim, 7);
    const auto run = [&](const Schedule& far) {
      const auto zeros = [](index_t count) {
        return to_device(std::vector<double>(static_cast<std::size_t>(count), 0.0));
      };
      const DeviceBuffer<double> of_query = zeros(heads * n * dim);
      const DeviceBuffer<double> of_key = zeros(kv_heads * m * dim);
      const DeviceBuffer<double> of_value = zeros(kv_heads * m * value_dim);
      const auto array = [&](const DeviceBuffer<double>& memory, index_t of, index_t channels) {
        const index_t rows = memory.size() / of / channels;
        return array_of(contiguous_view<double, 4>(memory.data(), {1, of, rows, channels}), heads);
      };
      const BasisView<double> upper = above.device();
      const Triangles<double> logits =
          triangles_of<double>(basis.device(), m < n ? nullptr : &upper, {}, kStream);
      const std::vector<Schedule> of_triangles(logits.size(), far);
      HeadsBackward<double>(
          logits,
          {array(query.on_device, heads, dim), array(key.on_device, kv_heads, dim),
           array(value.on_device, kv_heads, value_dim), array(grad.on_device, heads, value_dim),
           array(of_query, heads, dim), array(of_key, kv_heads, dim),
           array(of_value, kv_heads, value_dim)},
          0.25, kStream)
          .run(Gradient::attention, of_triangles, {});
      return std::array{to_host(of_query), to_host(of_key), to_host(of_value)};
    };
    const auto want = run({{}, 1024});
    for (const index_t near : {64, 256, 512}) {
      const auto got = run({{{near, 1024}}, near});
      for (std::size_t which = 0; which < 3; ++which) {
        double error = 0, size = 0;
        for (std::size_t i = 0; i < want[which].size(); ++i) {
          error += std::pow(got[which][i] - want[which][i], 2);
          size += std::pow(want[which][i], 2);
        }
        CHECK_NEAR(std::sqrt(error / size), 0.0, 1e-12);
      }
    }
  }
}

TEST(far_schedules_pay_for_long_heads) {
  const auto chosen = [](index_t n) {
    const std::vector<StripLayout> heads(32, {n, n, {0, n / 2}});
    return far_schedule(heads, 64, 64, 4, GpuModel());
  };
  CHECK(chosen(1000).levels.empty() && chosen(1000).diagonal >= 1000);
  CHECK(chosen(131072).levels.size() == 1);
  CHECK(chosen(131072).diagonal == chosen(131072).levels.front().block);
}

TEST(long_gradients_through_strips_match_the_cpu) {
  const Both<float> both({1, 1, 1, 4133, 4133, 5, 4, 4}, Gradient::basis, 3);
  both.check(1e-4);
  CHECK(both.rows_exact[0] < 400);
}

TEST(gradients_of_rows_that_rounding_spoils_are_computed_one_by_one) {
  // Logits of a wide range: the early weights of a kernel are nothing beside later ones.
  for (const Gradient gradient : {Gradient::basis, Gradient::attention}) {
    const Both<float> both({1, 2, 1, 2000, 2000, 3, 3, 2}, gradient, 5, 6);
    CHECK(both.rows_exact[0] > 0 && both.rows_exact[0] < 2000);
    both.check(1e-4);
    const Shape small{1, 2, 2, 500, 500, 3, 3, 33};
    for (const double value_size : {1e30, 1e-30})
      for (const double grad_size : {1e-6, 1e6})
        Both<float>(small, gradient, 6, 3, value_size, grad_size, 0).check(1e-4);
  }
}

TEST(gradients_without_a_causal_mask_match_the_cpu) {
  for (const Gradient gradient : {Gradient::basis, Gradient::attention}) {
    for (const index_t n : {1, 2, 63, 65, 300, 700})
      for (const index_t k : {1, 17}) {
        const auto seed = static_cast<unsigned>(n + k);
        Both<double>({2, 4, 2, n, n, k, 5, 3, false}, gradient, seed).check(1e-12);
        Both<float>({1, 3, 3, n, n, k, 3, 5, false}, gradient, seed).check(1e-5);
      }
    const Shape wide{1, 4, 2, 700, 700, 3, 3, 2, false};
    const Both<float> both(wide, gradient, 5, 6, 1, 1, 0.5, {1, 2, 3});
    CHECK(both.rows_exact[1] > 0 && both.rows_exact[1] < 700 && both.rows_exact[0] == 0);
    both.check(1e-4);
    const Shape shared{1, 4, 2, 300, 300, 5, 8, 8, false};
    Both<Float16>(shared, gradient, 7, 1, 1, 1, 0).check(0x1p-10);
    Both<BFloat16>(shared, gradient, 8, 1, 1, 1, 0).check(0x1p-7);
  }
}

TEST(gradients_of_listed_heads_are_those_of_the_cpu) {
  // The second key head has one listed head, the third none; logits of a wide range, so that there
  // are spoiled rows too.
  const Shape shape{1, 6, 3, 300, 260, 5, 4, 3};
  for (const Gradient gradient : {Gradient::basis, Gradient::attention})
    for (const double spread : {1.0, 6.0}) {
      const Both<double> both(shape, gradient, 11, spread, 1, 1, 0.5, {3, 0, 1});
      both.check(1e-9);
      for (const std::size_t unlisted : {2U, 4U, 5U})
        CHECK(both.got[0][unlisted * 300 * 4] == 0.5 && both.rows_exact[unlisted] == 0);
      for (std::size_t i = std::size_t{2} * 260 * 3; i < both.got[2].size(); ++i)
        CHECK(both.got[2][i] == 0.5);
    }
  CHECK_THROWS(Both<double>(shape, Gradient::basis, 11, 1, 1, 1, 0.5, {6}), InvalidArgument,
               "[conv_attention_backward] heads holds 6; expected 0 <= head < 6");
}

TEST(gradients_through_strips_in_half_precision_are_rounded_once) {
  // The CPU's gradients of the same numbers in float, rounded: half an eps of each, and
  // of what was there before.
  const Shape shape{1, 4, 2, 300, 300, 5, 8, 8};
  for (const Gradient gradient : {Gradient::basis, Gradient::attention}) {
    Both<Float16>(shape, gradient, 7).check(0x1p-10);
    Both<BFloat16>(shape, gradient, 8).check(0x1p-7);
  }
}

TEST(no_key_gives_gradients_of_zero) {
  for (const Gradient gradient : {Gradient::basis, Gradient::attention}) {
    const Both<double> both({1, 1, 1, 5, 0, 1}, gradient, 9);
    for (const double value : both.got[0]) CHECK(value == 0);
  }
}

TEST(a_backward_pass_through_strips_refuses_what_does_not_fit) {
  const RandomBasis<float> basis(1, 1, 1, 4, 4, 61);
  const DeviceBuffer<float> memory(kStream, 8);
  const auto in = contiguous_view<const float, 4>(memory.data(), {1, 1, 4, 2});
  const auto out = contiguous_view<float, 4>(memory.data(), {1, 1, 4, 2});
  const auto wrong = contiguous_view<float, 4>(memory.data(), {1, 1, 3, 2});
  CHECK_THROWS(
      cuda::conv_attention_backward<float>(basis.device(), nullptr, in, in, in, in, out, wrong, out,
                                           1.0, Gradient::basis, {}, {}, kStream),
      InvalidArgument,
      "[conv_attention_backward] grad_key has shape (1, 1, 3, 2); expected (1, 1, 4, 2)");
}
