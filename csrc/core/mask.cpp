#include "core/mask.h"

#include <algorithm>
#include <string>

#include "core/shape.h"

namespace convbasis {
namespace {

/// The rules for a mask of each kind, one `if` a rule.
struct Check {
  const char* function;
  index_t n_q, n_kv;

  void wrong(const std::string& argument, const std::string& fault, const std::string& expected,
             index_t got) const {
    throw InvalidArgument("[" + std::string(function) + "] mask." + argument + " " + fault +
                          "; expected " + expected + "; got " + std::to_string(got));
  }
  void length(const std::string& argument, std::size_t got, index_t expected,
              const char* what) const {
    if (static_cast<index_t>(got) != expected)
      wrong(argument, "has the wrong length", std::to_string(expected) + ", " + std::string(what),
            static_cast<index_t>(got));
  }
  void below(const std::string& argument, std::span<const index_t> indices, index_t limit,
             const char* what) const {
    for (const index_t index : indices)
      if (index < 0 || index >= limit)
        wrong(argument, "holds a number that is no " + std::string(what),
              "0 <= " + std::string(what) + " < " + std::to_string(limit), index);
  }
  void lists(const std::string& argument, const masks::KeyLists& lists) const {
    length(argument + ".offsets", lists.offsets.size(), n_q, "one for each query");
    index_t last = 0;
    for (const index_t offset : lists.offsets) {
      if (offset < last)
        wrong(argument + ".offsets", "does not rise", "at least " + std::to_string(last), offset);
      last = offset;
    }
    if (n_q > 0 && lists.offsets.front() != 0)
      wrong(argument + ".offsets", "does not start at 0", "0", lists.offsets.front());
    length(argument + ".keys", lists.keys.size(), last, "the last offset");
    below(argument + ".keys", lists.keys, n_kv, "key");
  }
  void patterns(const std::string& argument, std::span<const index_t> which,
                const View<const bool, 2>& table, index_t positions, index_t columns,
                const char* position, const char* column) const {
    length(argument, which.size(), positions, position);
    if (table.shape[1] != columns)
      wrong("patterns", "have the wrong length", std::to_string(columns) + ", " + column,
            table.shape[1]);
    below(argument, which, table.shape[0], "pattern");
  }
  void size(const char* argument, index_t got) const {
    if (got < 1) wrong(argument, "is too small", "at least 1", got);
  }

  void operator()(std::monostate) const {}
  void operator()(const masks::RowWindow& mask) const {
    length("start", mask.start.size(), n_q, "one for each query");
    length("stop", mask.stop.size(), n_q, "one for each query");
    for (std::size_t i = 0; i < mask.start.size(); ++i) {
      if (mask.start[i] < 0) wrong("start", "is negative", "at least 0", mask.start[i]);
      if (mask.stop[i] < mask.start[i])
        wrong("stop", "is before start in row " + std::to_string(i),
              "at least " + std::to_string(mask.start[i]), mask.stop[i]);
      if (mask.stop[i] > n_kv)
        wrong("stop", "is past the last key", "at most " + std::to_string(n_kv), mask.stop[i]);
    }
  }
  void operator()(const masks::RowChange& mask) const {
    below("first_row", mask.first_row, n_kv, "key");
    lists("added", mask.added);
    lists("removed", mask.removed);
  }
  void operator()(const masks::DistinctRows& mask) const {
    patterns("pattern_of_row", mask.pattern_of_row, mask.patterns, n_q, n_kv, "one for each query",
             "one for each key");
  }
  void operator()(const masks::DistinctColumns& mask) const {
    patterns("pattern_of_column", mask.pattern_of_column, mask.patterns, n_kv, n_q,
             "one for each key", "one for each query");
  }
  void operator()(const masks::SlidingWindow& mask) const { size("size", mask.size); }
  void operator()(const masks::Longformer& mask) const {
    size("window", mask.window);
    below("global_tokens", mask.global_tokens, std::max(n_q, n_kv), "token");
    for (std::size_t t = 1; t < mask.global_tokens.size(); ++t)
      if (mask.global_tokens[t] <= mask.global_tokens[t - 1])
        wrong("global_tokens", "does not rise",
              "more than " + std::to_string(mask.global_tokens[t - 1]), mask.global_tokens[t]);
  }
};

}  // namespace

void require_mask(const char* function, const Mask& mask, index_t n_q, index_t n_kv) {
  std::visit(Check{function, n_q, n_kv}, mask);
}

}  // namespace convbasis
