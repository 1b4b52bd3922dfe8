#pragma once

#include <span>

#include "cpu/panels.h"
#include "cpu/rows.h"

namespace convbasis {

/// Keys and values of one key head where BLAS can read them, in the order given or as they are.
template <class T>
struct KeyValueRows {
  KeyValueRows(const View<const T, 2>& k, const View<const T, 2>& v, std::span<const index_t> order,
               const Exec& exec)
      : key(as_rows(in_order(k, order, ordered_key), key_copy)),
        value(as_value_rows(in_order(v, order, ordered_value), v.shape[1], value_copy, exec)) {}

  Buffer<T> ordered_key, ordered_value, key_copy, value_copy;
  Rows<const T> key;
  ValueRows<T> value;
};

/// The same with keys packed for many products.
template <class T>
struct KeyArrays : KeyValueRows<T> {
  KeyArrays(const View<const T, 2>& k, const View<const T, 2>& v, std::span<const index_t> order,
            const Exec& exec)
      : KeyValueRows<T>(k, v, order, exec), panels(this->key, k.shape[0], k.shape[1], exec) {}

  Panels<T> panels;
};

}  // namespace convbasis
