#include "bindings/ndarray.h"
#include "convbasis/cost_model.h"

namespace convbasis::bindings {
namespace {

using Times = std::array<double, 5>;

Times times_of(const CostModel& model) {
  return {model.transform, model.product, model.direct, model.exact, model.entry};
}

Times get_model(bool is_double) {
  const py::gil_scoped_release release;
  return times_of(is_double ? cost_model<double>() : cost_model<float>());
}

void set_model(const Times& t, bool is_double) {
  (is_double ? set_cost_model<double> : set_cost_model<float>)({t[0], t[1], t[2], t[3], t[4]});
}

index_t break_even_of(index_t n, index_t head_dim, index_t value_dim, bool is_double) {
  const py::gil_scoped_release release;
  return (is_double ? break_even<double> : break_even<float>)(n, head_dim, value_dim);
}

}  // namespace

void register_cost(py::module_& module) {
  using py::arg;
  module.def("cost_model", &get_model, arg("is_double"));
  module.def("set_cost_model", &set_model, arg("times"), arg("is_double"));
  module.def("break_even", &break_even_of, arg("n"), arg("head_dim"), arg("value_dim"),
             arg("is_double"));
}

}  // namespace convbasis::bindings
