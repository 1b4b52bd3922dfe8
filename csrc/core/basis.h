#pragma once

#include "convbasis/basis.h"
#include "core/schedule.h"

namespace convbasis {

/// Strips of one head of a basis, without the padding. Kernels are not looked at: they may be on
/// another device.
template <class T>
[[nodiscard]] StripLayout head_layout(const BasisView<T>& basis, index_t batch, index_t head);

/// Throws InvalidArgument unless shapes fit each other and starts are increasing inside the matrix.
template <class T>
void require_basis(const char* function, const BasisView<T>& basis);

/// The same of both halves (upper may be null), and that they and value (batch, kv_heads,
/// num_columns, dv) fit each other.
template <class T>
void require_operands(const char* function, const BasisView<T>& lower, const BasisView<T>* upper,
                      const View<const T, 4>& value);

}  // namespace convbasis
