#include "bindings/mask.h"

namespace convbasis::bindings {
namespace {

/// The parts of a description after its kind.
class Parts {
 public:
  explicit Parts(const py::tuple& description) : description_(description) {}
  [[nodiscard]] index_t number() { return next().cast<index_t>(); }
  [[nodiscard]] std::span<const index_t> indices() {
    const auto array = input<index_t, 1>(next_array(), "mask");
    if (array.shape[0] > 1 && array.strides[0] != 1)
      throw InvalidArgument("[_core] mask has indices with a stride; expected contiguous ones");
    return {array.data, static_cast<std::size_t>(array.shape[0])};
  }
  [[nodiscard]] View<const bool, 2> patterns() { return input<bool, 2>(next_array(), "mask"); }

 private:
  py::object next() { return description_[at_++]; }
  /// A cast would make an array of anything, which nobody holds.
  py::array next_array() {
    const py::object part = next();
    if (!py::isinstance<py::array>(part))
      throw py::type_error("[_core] mask has no array; expected a NumPy array");
    return py::reinterpret_borrow<py::array>(part);
  }
  const py::tuple& description_;
  std::size_t at_ = 1;
};

}  // namespace

Mask mask_of(const std::optional<py::tuple>& description) {
  if (!description) return {};
  const auto kind = (*description)[0].cast<std::string>();
  Parts parts(*description);
  // Braces keep the order of the parts.
  if (kind == "RowWindow") return masks::RowWindow{parts.indices(), parts.indices()};
  if (kind == "RowChange")
    return masks::RowChange{
        parts.indices(), {parts.indices(), parts.indices()}, {parts.indices(), parts.indices()}};
  if (kind == "DistinctRows") return masks::DistinctRows{parts.indices(), parts.patterns()};
  if (kind == "DistinctColumns") return masks::DistinctColumns{parts.indices(), parts.patterns()};
  if (kind == "SlidingWindow") return masks::SlidingWindow{parts.number()};
  if (kind == "Longformer") return masks::Longformer{parts.number(), parts.indices()};
  throw InvalidArgument("[_core] mask has an unknown kind; expected a class of masks; got " + kind);
}

}  // namespace convbasis::bindings
