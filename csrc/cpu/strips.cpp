#include "cpu/strips.h"

#include <chrono>

namespace convbasis {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

StageTimer::StageTimer(double& total) : total_(total), begin_(now()) {}
StageTimer::~StageTimer() { total_ += now() - begin_; }

void add_share(StageSeconds& total, const StageSeconds& part, index_t workers) {
  const double share = 1 / static_cast<double>(workers);
  total.exp += share * part.exp;
  total.transform += share * part.transform;
  total.products += share * part.products;
  total.inverse += share * part.inverse;
  total.diagonal += share * part.diagonal;
  total.normalize += share * part.normalize;
  total.rows += share * part.rows;
}

template <class T>
StripMatrix<T> head_strips(const BasisView<T>& basis, index_t batch, index_t head) {
  StripMatrix<T> matrix;
  matrix.layout = head_layout(basis, batch, head);
  const T* first = basis.kernels.data;
  if (!basis.kernels.empty()) first = &basis.kernels(batch, head, 0, 0);
  matrix.kernels = {first, basis.kernels.strides[2]};
  return matrix;
}

template StripMatrix<float> head_strips(const BasisView<float>&, index_t, index_t);
template StripMatrix<double> head_strips(const BasisView<double>&, index_t, index_t);

}  // namespace convbasis
