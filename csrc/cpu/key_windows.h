#pragma once

#include <span>
#include <vector>

#include "convbasis/mask.h"

namespace convbasis {

/// Part of a mask: query rows[i] sees keys[start[i] .. stop[i]).
struct KeyWindows {
  std::vector<index_t> rows, keys;
  std::vector<index_t> start, stop;
};

/// A tile of rows of a part, at positions [first, last): all of them see all keys of the chunks
/// [first_chunk, last_chunk), and none sees a key outside of [start, stop).
struct WindowTile {
  index_t first, last;
  index_t first_chunk, last_chunk;
  index_t start, stop;
};

/// The mask as a sum of windows in lists of rows and keys; every entry that is seen is in one of
/// them. Only the listed keys count (rising). A RowChange has no such form, and gives none.
[[nodiscard]] std::vector<KeyWindows> key_windows(const Mask& mask, bool is_causal, index_t n_q,
                                                  std::span<const index_t> keys);

/// The part as the keys see it: rows and keys change places. Throws Unsupported, in the name of
/// `function`, unless both ends of the windows rise from row to row; those of all masks but a
/// RowWindow do.
[[nodiscard]] KeyWindows transposed(const char* function, const KeyWindows& part);

/// Cuts a part into tiles of at most `most` rows with few keys outside of common chunks, after
/// sorting the rows where their windows do not rise. The last chunk may be shorter.
[[nodiscard]] std::vector<WindowTile> window_tiles(KeyWindows& part, index_t chunk, index_t most);

}  // namespace convbasis
