// Attention through the installed C++ library, printed and compared with the oracle's numbers.
#include <convbasis/convbasis.h>

#include <cmath>
#include <cstdio>
#include <vector>

#include "expected.h"

namespace cb = convbasis;

namespace {

/// Entry (h, i, j) is ((a h + b i + c j) mod 11 - 5) / 4: exact in both languages.
std::vector<double> pattern(long n_heads, long columns, long a, long b, long c) {
  std::vector<double> x;
  for (long h = 0; h < n_heads; ++h)
    for (long i = 0; i < rows; ++i)
      for (long j = 0; j < columns; ++j)
        x.push_back(static_cast<double>((a * h + b * i + c * j) % 11 - 5) / 4);
  return x;
}

/// ||got - want|| / ||want||; NaN or a zero array do not pass.
double relative_error(const std::vector<double>& got, const double* want) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

bool passes(const char* what, const std::vector<double>& out, const std::vector<double>& lse) {
  const double error =
      std::fmax(relative_error(out, expected_out), relative_error(lse, expected_lse));
  std::printf("%-16s relative error %.1e; last row", what, error);
  for (std::size_t c = value_dim; c > 0; --c) std::printf(" %9.6f", out[out.size() - c]);
  std::printf("\n");
  return error < 1e-13;
}

}  // namespace

int main() {
  const auto query = pattern(heads, head_dim, 3, 7, 2);
  const auto key = pattern(kv_heads, head_dim, 5, 4, 3);
  const auto value = pattern(kv_heads, value_dim, 2, 3, 5);
  const auto q = cb::contiguous_view<const double, 4>(query.data(), {1, heads, rows, head_dim});
  const auto k = cb::contiguous_view<const double, 4>(key.data(), {1, kv_heads, rows, head_dim});
  const auto v = cb::contiguous_view<const double, 4>(value.data(), {1, kv_heads, rows, value_dim});

  std::vector<double> out(heads * rows * value_dim), lse(heads * rows);
  const auto y = cb::contiguous_view<double, 4>(out.data(), {1, heads, rows, value_dim});
  const auto l = cb::contiguous_view<double, 3>(lse.data(), {1, heads, rows});

  std::printf("convbasis %s, CUDA %s\n", CONVBASIS_VERSION, cb::cuda_available() ? "yes" : "no");

  cb::AttentionOptions causal;
  causal.is_causal = true;
  cb::exact_attention<double>(q, k, v, y, l, causal);
  bool passed = passes("exact_attention", out, lse);

  // As many bases as columns and a window of 1: the conv basis of any logits, without error.
  cb::RecoverOptions every_column;
  every_column.num_bases = rows;
  every_column.window = 1;
  const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
  const cb::ConvBasis<double> basis = cb::recover_basis<double>(q, k, scale, every_column);
  out.assign(out.size(), 0.0);
  lse.assign(lse.size(), 0.0);
  cb::conv_attention<double>(basis.view(), nullptr, v, y, l);
  passed = passes("conv_attention", out, lse) && passed;

  bool refused = false;
  try {
    cb::exact_attention<double>(q, k, v, cb::View<double, 4>{}, l, causal);
  } catch (const cb::InvalidArgument& error) {
    refused = true;
    std::printf("refused: %s\n", error.what());
  }
  return passed && refused ? 0 : 1;
}
