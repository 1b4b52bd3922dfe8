// Fixed kernels whose instructions guard.py counts under callgrind.
//
//   convbasis_guard            the names of the cases
//   convbasis_guard <case>     runs it, and prints what the counts depend on
//
// One thread, the same inputs every time, and each case runs once before it is counted, so that
// neither start-up nor the first use of memory is. Valgrind shows every program the same
// processor, without AVX-512: the AVX2 build is what is counted, on any newer machine.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "convbasis/convbasis.h"
#include "cpu/blas.h"
#include "cpu/simd/kernels.h"

using namespace convbasis;

namespace {

constexpr Exec kOneThread{1, nullptr};

/// Uniform in [-1, 1). Not a standard distribution: these differ from one library to the next.
template <class T>
std::vector<T> random_numbers(index_t count, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (T& number : numbers) number = static_cast<T>(std::ldexp(double(random() >> 11), -52) - 1);
  return numbers;
}

/// One head of k strips of equal length, and what is multiplied with them.
template <class T>
struct StripProblem {
  StripProblem(index_t n, index_t k, index_t d)
      : rows(n),
        channels(d),
        kernels(random_numbers<T>(k * n, 1)),
        x(random_numbers<T>(n * d, 2)),
        y(static_cast<std::size_t>(n * d)),
        sums(static_cast<std::size_t>(n)) {
    for (index_t r = 0; r < k; ++r) starts.push_back(r * n / k);
    counts.push_back(k);
  }
  [[nodiscard]] BasisView<T> basis() const {
    return {contiguous_view<const index_t, 3>(starts.data(), {1, 1, counts[0]}),
            contiguous_view<const index_t, 2>(counts.data(), {1, 1}),
            contiguous_view<const T, 4>(kernels.data(), {1, 1, counts[0], rows}), rows};
  }
  [[nodiscard]] View<const T, 4> input() const {
    return contiguous_view<const T, 4>(x.data(), {1, 1, rows, channels});
  }
  [[nodiscard]] View<T, 4> output() {
    return contiguous_view<T, 4>(y.data(), {1, 1, rows, channels});
  }
  [[nodiscard]] View<T, 3> row_sums() { return contiguous_view<T, 3>(sums.data(), {1, 1, rows}); }

  index_t rows, channels;
  std::vector<index_t> starts, counts;
  std::vector<T> kernels, x, y, sums;
};

/// One head of query, key and value. Logits are sums of amplitude * cos(frequency * (i - j)), with
/// amplitudes that change four times along the keys: a basis of four strips.
struct HeadProblem {
  HeadProblem(index_t n, index_t d)
      : rows(n),
        dim(d),
        query(static_cast<std::size_t>(n * d)),
        key(query),
        value(random_numbers<float>(n * d, 3)),
        out(value.size()) {
    constexpr index_t kStrips = 4;
    const std::vector<float> amplitude = random_numbers<float>(kStrips * d, 4);
    for (index_t i = 0; i < n; ++i) {
      for (index_t c = 0; c < d; ++c) {
        const double angle = static_cast<double>(i * (c / 2 + 1)) / static_cast<double>(d);
        const double turn = c % 2 == 0 ? std::cos(angle) : std::sin(angle);
        const auto strip = static_cast<std::size_t>(i * kStrips / n * d + c / 2);
        query[static_cast<std::size_t>(i * d + c)] = static_cast<float>(turn);
        key[static_cast<std::size_t>(i * d + c)] = static_cast<float>(turn) * amplitude[strip];
      }
    }
  }
  [[nodiscard]] View<const float, 4> view(const std::vector<float>& array) const {
    return contiguous_view<const float, 4>(array.data(), {1, 1, rows, dim});
  }
  [[nodiscard]] View<float, 4> output() {
    return contiguous_view<float, 4>(out.data(), {1, 1, rows, dim});
  }

  index_t rows, dim;
  std::vector<float> query, key, value, out;
};

template <class T>
std::function<void()> matmul(index_t n, index_t k, index_t d, bool transpose) {
  return [p = std::make_shared<StripProblem<T>>(n, k, d), transpose] {
    conv_matmul<T>(p->basis(), p->input(), p->output(), transpose, kOneThread);
  };
}

std::function<void()> attention(index_t n, index_t k, index_t d) {
  return [p = std::make_shared<StripProblem<float>>(n, k, d)] {
    conv_attention<float>(p->basis(), nullptr, p->input(), p->output(), p->row_sums(), {},
                          kOneThread);
  };
}

/// The gradient of a loss through one head of strips; query and key have nothing to do with them.
std::function<void()> backward(index_t n, index_t k, index_t d, Gradient gradient) {
  struct Arrays {
    Arrays(index_t rows, index_t count, index_t channels)
        : head(rows, channels),
          strips(rows, count, channels),
          grad_query(head.out),
          grad_key(head.out) {}
    [[nodiscard]] View<float, 4> write(std::vector<float>& array) const {
      return contiguous_view<float, 4>(array.data(), {1, 1, head.rows, head.dim});
    }
    HeadProblem head;
    StripProblem<float> strips;
    std::vector<float> grad_query, grad_key;
  };
  return [p = std::make_shared<Arrays>(n, k, d), gradient] {
    (void)conv_attention_backward<float>(
        p->strips.basis(), nullptr, p->head.view(p->head.query), p->head.view(p->head.key),
        p->head.view(p->head.value), p->strips.input(), p->write(p->grad_query),
        p->write(p->grad_key), p->head.output(), 0.125, gradient, {}, kOneThread);
  };
}

std::function<void()> sums(index_t n, index_t k) {
  return [p = std::make_shared<StripProblem<float>>(n, k, 1)] {
    row_sums<float>(p->basis(), p->row_sums(), kOneThread);
  };
}

std::function<void()> recovery(index_t n, index_t d) {
  return [p = std::make_shared<HeadProblem>(n, d)] {
    RecoverOptions options;
    options.num_bases = 8;
    options.window = 16;
    (void)recover_basis<float>(p->view(p->query), p->view(p->key), 0.125, options, kOneThread);
  };
}

std::function<void()> exact(index_t n, index_t d) {
  return [p = std::make_shared<HeadProblem>(n, d)] {
    AttentionOptions options;
    options.is_causal = true;
    exact_attention<float>(p->view(p->query), p->view(p->key), p->view(p->value), p->output(), {},
                           options, {}, kOneThread);
  };
}

std::function<void()> windowed(index_t n, index_t d, index_t size) {
  return [p = std::make_shared<HeadProblem>(n, d), size] {
    AttentionOptions options;
    options.mask = masks::SlidingWindow{size};
    exact_attention<float>(p->view(p->query), p->view(p->key), p->view(p->value), p->output(), {},
                           options, {}, kOneThread);
  };
}

std::function<void()> polynomial(index_t n, index_t d, index_t degree) {
  return [p = std::make_shared<HeadProblem>(n, d),
          of_head =
              std::vector<HeadPolynomial>{{exp_polynomial(degree, 1).coefficients, {}, {}, {}}}] {
    AttentionOptions options;
    options.scale = 0.01;
    options.is_causal = true;
    (void)polynomial_attention<float>(p->view(p->query), p->view(p->key), p->view(p->value),
                                      p->output(), {}, of_head, options, {}, kOneThread);
  };
}

/// Calibration and attention, everything but the judging.
std::function<void()> calibrated(index_t n, index_t d) {
  struct Arrays {
    Arrays(index_t rows, index_t channels)
        : head(rows, channels),
          share(static_cast<std::size_t>(rows)),
          norms(static_cast<std::size_t>(rows)) {}
    HeadProblem head;
    std::vector<float> share;
    std::vector<double> norms;
  };
  return [p = std::make_shared<Arrays>(n, d)] {
    HeadProblem& head = p->head;
    const SelfAttention<float> attention(head.view(head.query), head.view(head.key),
                                         head.view(head.value), {}, kOneThread);
    const Calibration<float> found = calibrate(attention, {}, kOneThread);
    calibrated_attention<float>(attention, found, head.output(), {},
                                contiguous_view<float, 3>(p->share.data(), {1, 1, head.rows}),
                                contiguous_view<double, 3>(p->norms.data(), {1, 1, head.rows}), {},
                                kOneThread);
  };
}

struct Case {
  const char* name;
  std::function<void()> (*make)();
};

const Case kCases[] = {
    {"conv_matmul", [] { return matmul<float>(4096, 4, 64, false); }},
    {"conv_matmul_transposed", [] { return matmul<float>(4096, 4, 64, true); }},
    {"conv_matmul_64_strips", [] { return matmul<float>(2048, 64, 64, false); }},
    {"conv_matmul_double", [] { return matmul<double>(2048, 4, 32, false); }},
    {"conv_matmul_double_transposed", [] { return matmul<double>(2048, 4, 32, true); }},
    {"conv_attention", [] { return attention(4096, 4, 64); }},
    {"conv_attention_backward_basis", [] { return backward(2048, 4, 64, Gradient::basis); }},
    {"conv_attention_backward_attention",
     [] { return backward(1024, 4, 16, Gradient::attention); }},
    {"row_sums", [] { return sums(8192, 16); }},
    {"recover_basis", [] { return recovery(2048, 64); }},
    {"exact_attention", [] { return exact(512, 64); }},
    {"exact_attention_windowed", [] { return windowed(1024, 64, 64); }},
    {"calibrated_attention", [] { return calibrated(1024, 64); }},
    {"polynomial_attention", [] { return polynomial(1024, 8, 4); }},
};

}  // namespace

/// Callgrind counts while this function runs. The barrier keeps the call from becoming a jump out
/// of it.
extern "C" [[gnu::noinline]] void convbasis_guard_counted(const std::function<void()>& work) {
  work();
  asm volatile("" ::: "memory");
}

int main(int argc, char** argv) {
  // A measured model would let the clock choose the schedules.
  set_cost_model<float>({0.1, 0.05, 0.01, 0.04, 4.0});
  set_cost_model<double>({0.2, 0.1, 0.02, 0.08, 5.0});
  if (argc == 1) {
    for (const Case& one : kCases) std::printf("%s\n", one.name);
    return 0;
  }
  for (const Case& one : kCases) {
    if (std::strcmp(one.name, argv[1]) != 0) continue;
    const std::function<void()> work = one.make();
    work();
    convbasis_guard_counted(work);
    std::printf("compiler: %s\nsimd: %s\nblas: %s\n", CONVBASIS_GUARD_COMPILER,
                kernels<float>().name.data(), blas::description());
    return 0;
  }
  std::fprintf(stderr, "[convbasis_guard] case is %s; expected a name that it prints without one\n",
               argv[1]);
  return 2;
}
