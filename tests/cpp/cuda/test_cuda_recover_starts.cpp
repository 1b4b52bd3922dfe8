#include <limits>

#include "convbasis/cuda.h"
#include "convbasis/error.h"
#include "convbasis/recover.h"
#include "device_arrays.h"

using namespace convbasis;
using namespace convbasis::cuda;

namespace {

constexpr index_t kPeriod = 9;

/// (batch, heads, rows, kPeriod) queries and (batch, kv_heads, keys, kPeriod) keys whose logits are
/// strips without rounding, even in half precision: query i is one-hot at i mod kPeriod, key j
/// holds its strip's numbers shifted by j. Query heads of a group differ by a power of two.
struct Logits {
  Logits(index_t batch, index_t heads, index_t kv_heads, index_t rows, index_t keys, double density)
      : of_query{batch, heads, rows, kPeriod}, of_key{batch, kv_heads, keys, kPeriod} {
    std::mt19937_64 random(static_cast<unsigned>(rows + 7 * keys));
    std::uniform_int_distribution<int> sixteenths(-32, 32);
    std::bernoulli_distribution begins(density);
    query.resize(static_cast<std::size_t>(batch * rows * heads * kPeriod));
    key.resize(static_cast<std::size_t>(batch * keys * kv_heads * kPeriod));
    const View<double, 4> q = rows_first<double>(query.data(), of_query);
    const View<double, 4> k = rows_first<double>(key.data(), of_key);
    for (index_t b = 0; b < batch; ++b) {
      for (index_t h = 0; h < heads; ++h)
        for (index_t i = 0; i < rows; ++i) q(b, h, i, i % kPeriod) = h % 2 == 0 ? 1 : 0.25;
      for (index_t g = 0; g < kv_heads; ++g) {
        double strip[kPeriod] = {};
        for (index_t j = 0; j < keys; ++j) {
          if (begins(random))
            for (double& logit : strip) logit = sixteenths(random) / 16.0;
          for (index_t t = 0; t < kPeriod; ++t) k(b, g, j, (j + t) % kPeriod) = strip[t];
        }
      }
    }
  }
  std::array<index_t, 4> of_query, of_key;
  std::vector<double> query, key;
};

template <class E>
std::vector<E> as_elements(const std::vector<double>& numbers) {
  std::vector<E> elements;
  for (const double number : numbers) elements.push_back(element_from<E>(number));
  return elements;
}

/// Checks that the device finds what the CPU does; returns the former.
template <class E>
StripStarts check_same(const Logits& logits, const RecoverOptions& options) {
  using T = Compute<E>;
  const std::vector<T> query = as_elements<T>(logits.query), key = as_elements<T>(logits.key);
  const StripStarts want = convbasis::recover_starts<T>(
      rows_first<const T>(query.data(), logits.of_query),
      rows_first<const T>(key.data(), logits.of_key), 0.5, options, {1});
  const DeviceBuffer<E> q = to_device(as_elements<E>(logits.query));
  const DeviceBuffer<E> k = to_device(as_elements<E>(logits.key));
  StripStarts got =
      cuda::recover_starts<E>(rows_first<const E>(q.data(), logits.of_query),
                              rows_first<const E>(k.data(), logits.of_key), 0.5, options, kStream);
  CHECK(got.batch == want.batch && got.heads == want.heads && got.max_bases == want.max_bases);
  CHECK(got.starts == want.starts);
  CHECK(got.num_bases == want.num_bases);
  CHECK(got.complete == want.complete);
  CHECK(got.seen_finite == want.seen_finite);
  return got;
}

RecoverOptions options_of(index_t window, std::optional<index_t> num_bases = 1000000) {
  RecoverOptions options;
  options.window = window;
  options.num_bases = num_bases;
  return options;
}

}  // namespace

TEST(a_scan_finds_what_the_cpu_finds) {
  for (const index_t n : {1, 2, 63, 64, 65, 127, 300, 1100})
    for (const index_t window : {1, 5, 16, 17, 70}) {
      const Logits logits(2, 4, 2, n, n - n / 5, 0.05);
      check_same<float>(logits, options_of(window, n / 2 + 1));
      check_same<double>(logits, options_of(window, 3));
      check_same<Float16>(logits, options_of(window, {}));
    }
  const StripStarts found =
      check_same<BFloat16>(Logits(1, 2, 1, 700, 700, 0.02), options_of(8, 99));
  CHECK(found.max_bases > 5 && found.seen_finite && found.num_bases[0] == found.num_bases[1]);
}

TEST(more_keys_than_queries_are_not_looked_at) {
  check_same<double>(Logits(1, 2, 2, 40, 90, 0.1), options_of(4, 20));
  check_same<double>(Logits(1, 2, 2, 40, 0, 0.1), options_of(4));
  check_same<double>(Logits(1, 2, 2, 0, 5, 0.1), options_of(4));
  check_same<double>(Logits(0, 2, 2, 5, 5, 0.1), options_of(4));
}

TEST(every_candidate_is_a_strip_when_there_is_room) {
  for (const index_t n : {1, 64, 270}) {
    const StripStarts found = check_same<float>(Logits(1, 2, 1, n, n, 0.1), options_of(3));
    CHECK(found.num_bases[0] == std::max<index_t>(n - 2, 1));
  }
}

TEST(a_bisection_finds_what_the_cpu_finds) {
  for (const index_t n : {1, 2, 65, 300, 1100})
    for (const index_t window : {1, 9, 300}) {
      RecoverOptions options = options_of(window, 40);
      options.search = RecoverOptions::Search::bisect;
      check_same<double>(Logits(1, 3, 3, n, n, 0.01), options);
      check_same<float>(Logits(1, 2, 1, n, n, 0.2), options);
    }
}

TEST(a_tail_that_differs_from_its_strip_is_seen) {
  Logits logits(1, 2, 1, 100, 100, 0.0);
  for (const double last : {0.0, 3.0}) {
    logits.key[99 * kPeriod] = last;  // of query 99 = 0 mod kPeriod
    const StripStarts found = check_same<float>(logits, options_of(16, 9));
    CHECK((found.complete[0] != 0) == (last == 0));
  }
}

TEST(entries_that_are_not_finite_are_noticed) {
  for (const std::size_t at : {0UL, 50UL * kPeriod, 99UL * kPeriod + 3})
    for (const double number : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
      Logits logits(1, 1, 1, 100, 100, 0.0);
      logits.key[at] = number;
      const DeviceBuffer<double> q = to_device(logits.query), k = to_device(logits.key);
      const auto found = cuda::recover_starts<double>(
          rows_first<const double>(q.data(), logits.of_query),
          rows_first<const double>(k.data(), logits.of_key), 1, options_of(16, 90), kStream);
      CHECK(!found.seen_finite);
    }
}

TEST(wrong_options_of_a_search_are_refused) {
  const DeviceBuffer<float> x(kStream, 8);
  const auto in = contiguous_view<const float, 4>(x.data(), {1, 1, 4, 2});
  CHECK_THROWS((void)cuda::recover_starts<float>(in, in, 1, options_of(0), kStream),
               InvalidArgument, "[recover_basis] window is 0; expected at least 1");
  const auto other = contiguous_view<const float, 4>(x.data(), {1, 1, 4, 1});
  CHECK_THROWS((void)cuda::recover_starts<float>(in, other, 1, options_of(1), kStream),
               InvalidArgument, "[recover_basis] key has shape (1, 1, 4, 1)");
}
