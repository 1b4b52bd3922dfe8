#pragma once

#include <algorithm>
#include <vector>

#include "core/shape.h"

namespace convbasis {

/// The listed query heads of every key head, for those that have any.
struct Group {
  index_t batch, kv_head;
  std::vector<index_t> heads;
};
[[nodiscard]] inline std::vector<Group> groups_of(const HeadList& list, index_t batch,
                                                  index_t heads, index_t kv_heads) {
  std::vector<Group> all(static_cast<std::size_t>(batch * kv_heads));
  for (index_t i = 0; i < list.size(); ++i) {
    const auto [b, h, g] = head_index(list[i], heads, kv_heads);
    Group& group = all[static_cast<std::size_t>(b * kv_heads + g)];
    group.batch = b;
    group.kv_head = g;
    group.heads.push_back(h);
  }
  for (Group& group : all) {  // one order of the sums, and nothing twice
    std::sort(group.heads.begin(), group.heads.end());
    group.heads.erase(std::unique(group.heads.begin(), group.heads.end()), group.heads.end());
  }
  std::erase_if(all, [](const Group& group) { return group.heads.empty(); });
  return all;
}

}  // namespace convbasis
