#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "convbasis/mask.h"

/// Masks of all kinds with the arrays they look at, and what each of them shows.
namespace sample {

using convbasis::index_t;
using convbasis::Mask;

struct Lists {
  std::vector<index_t> keys, offsets{0};
  [[nodiscard]] convbasis::masks::KeyLists view() const { return {keys, offsets}; }
};

struct Bools {
  Bools(index_t rows, index_t columns)
      : shape{rows, columns}, data(new bool[static_cast<std::size_t>(rows * columns + 1)]()) {}
  [[nodiscard]] bool& at(index_t i, index_t j) const { return data[i * shape[1] + j]; }
  [[nodiscard]] convbasis::View<const bool, 2> view() const {
    return {data.get(), shape, {shape[1], 1}};
  }
  std::array<index_t, 2> shape;
  std::unique_ptr<bool[]> data;
};

/// A mask and its matrix. Spans point into what `kept` owns.
struct Case {
  std::string name;
  Mask mask;
  Bools dense;
};

class Cases {
 public:
  Cases(index_t n_q, index_t n_kv, unsigned seed) : n_q_(n_q), n_kv_(n_kv), random_(seed) {
    for (const index_t size : {index_t{1}, index_t{3}, n_kv / 3 + 1, index_t{1} << 62})
      add("sliding", convbasis::masks::SlidingWindow{size},
          [=](index_t i, index_t j) { return i - j < size && j - i < size; });
    add_row_window();
    for (const double density : {0.0, 0.05, 0.5, 1.0}) {
      add_row_change(density);
      add_distinct(density);
    }
    for (const index_t tokens : {0, 1, 3, 40}) add_longformer(tokens);
  }
  [[nodiscard]] const std::vector<Case>& all() const { return cases_; }

 private:
  template <class Seen>
  void add(const std::string& name, const Mask& mask, const Seen& seen) {
    Bools dense(n_q_, n_kv_);
    for (index_t i = 0; i < n_q_; ++i)
      for (index_t j = 0; j < n_kv_; ++j) dense.at(i, j) = seen(i, j);
    cases_.push_back({name, mask, std::move(dense)});
  }
  [[nodiscard]] index_t below(index_t limit) {
    return std::uniform_int_distribution<index_t>(0, limit - 1)(random_);
  }
  [[nodiscard]] bool chance(double share) { return std::bernoulli_distribution(share)(random_); }
  std::vector<index_t>& keep() {
    kept_.push_back(std::make_unique<std::vector<index_t>>());
    return *kept_.back();
  }

  void add_row_window() {
    std::vector<index_t>&start = keep(), &stop = keep();
    for (index_t i = 0; i < n_q_; ++i) {
      start.push_back(below(n_kv_ + 1));
      stop.push_back(start.back() + below(n_kv_ - start.back() + 1));
    }
    add("row_window", convbasis::masks::RowWindow{start, stop}, [&](index_t i, index_t j) {
      return start[static_cast<std::size_t>(i)] <= j && j < stop[static_cast<std::size_t>(i)];
    });
  }
  void add_row_change(double density) {
    Bools seen(n_q_, n_kv_);
    std::vector<index_t>& first = keep();
    lists_.push_back(std::make_unique<std::array<Lists, 2>>());
    auto& [added, removed] = *lists_.back();
    for (index_t i = 0; i < n_q_; ++i) {
      for (index_t j = n_kv_; j-- > 0;) {
        const bool before = i > 0 && seen.at(i - 1, j);
        seen.at(i, j) = i == 0 ? chance(density) : before != chance(density / 4);
        if (seen.at(i, j) == before) continue;
        if (i == 0) {
          first.push_back(j);
        } else {
          (before ? removed : added).keys.push_back(j);
        }
      }
      if (i == 0) continue;
      added.offsets.push_back(static_cast<index_t>(added.keys.size()));
      removed.offsets.push_back(static_cast<index_t>(removed.keys.size()));
    }
    add("row_change", convbasis::masks::RowChange{first, added.view(), removed.view()},
        [&](index_t i, index_t j) { return seen.at(i, j); });
  }
  void add_distinct(double density) {
    constexpr index_t kPatterns = 5;
    std::vector<index_t>&of_row = keep(), &of_column = keep();
    patterns_.push_back(std::make_unique<Bools>(kPatterns, n_kv_));
    const Bools& rows = *patterns_.back();
    patterns_.push_back(std::make_unique<Bools>(kPatterns, n_q_));
    const Bools& columns = *patterns_.back();
    for (index_t p = 0; p < kPatterns; ++p) {
      for (index_t j = 0; j < n_kv_; ++j) rows.at(p, j) = chance(density);
      for (index_t i = 0; i < n_q_; ++i) columns.at(p, i) = chance(density);
    }
    for (index_t i = 0; i < n_q_; ++i) of_row.push_back(below(kPatterns));
    for (index_t j = 0; j < n_kv_; ++j) of_column.push_back(below(kPatterns));
    add("distinct_rows", convbasis::masks::DistinctRows{of_row, rows.view()},
        [&](index_t i, index_t j) { return rows.at(of_row[static_cast<std::size_t>(i)], j); });
    add("distinct_columns", convbasis::masks::DistinctColumns{of_column, columns.view()},
        [&](index_t i, index_t j) {
          return columns.at(of_column[static_cast<std::size_t>(j)], i);
        });
  }
  void add_longformer(index_t count) {
    std::vector<index_t>& tokens = keep();
    const index_t most = std::max(n_q_, n_kv_), window = n_kv_ / 8 + 1;
    for (index_t token = 0; token < most; ++token)
      if (below(most) < count) tokens.push_back(token);
    const auto is_token = [&](index_t at) {
      return std::find(tokens.begin(), tokens.end(), at) != tokens.end();
    };
    add("longformer", convbasis::masks::Longformer{window, tokens}, [&](index_t i, index_t j) {
      return (i - j < window && j - i < window) || is_token(i) || is_token(j);
    });
  }

  index_t n_q_, n_kv_;
  std::mt19937_64 random_;
  std::vector<Case> cases_;
  std::vector<std::unique_ptr<std::vector<index_t>>> kept_;
  std::vector<std::unique_ptr<std::array<Lists, 2>>> lists_;
  std::vector<std::unique_ptr<Bools>> patterns_;
};

}  // namespace sample
