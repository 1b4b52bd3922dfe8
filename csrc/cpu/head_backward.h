#pragma once

#include "convbasis/backward.h"
#include "cpu/head_forward.h"
#include "cpu/kernel_gradient.h"

namespace convbasis {

/// Gradients of attention through the strips of one head.
template <class T>
class HeadBackward {
 public:
  HeadBackward(const StripMatrix<T>& lower, const StripMatrix<T>* upper,
               const View<const T, 2>& query, const View<const T, 2>& key,
               const View<const T, 2>& value, const View<const T, 2>& grad_output, double scale,
               const CostModel& model, const Exec& exec);

  /// Writes grad_query; adds to grad_key and grad_value.
  void run(Gradient gradient, const View<T, 2>& grad_query, const View<T, 2>& grad_key,
           const View<T, 2>& grad_value);

  StageSeconds seconds;
  index_t rows_exact = 0;

 private:
  void run_forward(Gradient gradient);
  void divide_by_sums();
  void scale_to_one(T peak);
  void multiply_transposed();
  [[nodiscard]] Unscale<T> scale_for_products(Buffer<T>& scaled);
  void differentiate_kernels();
  void differentiate_entries();
  template <class Consume>
  void add_spoiled_rows(const Consume& consume);

  View<const T, 2> query_, key_, grad_output_;
  double scale_;
  CostModel model_;
  Exec exec_;
  index_t rows_, keys_, head_dim_;
  HeadForward<T> forward_;
  Buffer<T> query_copy_, key_copy_, grad_copy_;
  Rows<const T> query_rows_, key_rows_, grad_rows_;
  index_t near_ = 0;  // rows of the near blocks of Gradient::attention
  Buffer<T> output_;
  // Gradients are formed of grad_output * unit_, whose largest entry is about 1, and of the values
  // as forward_ scaled them.
  T unit_ = 1;
  Buffer<T> grads_;                   // grad_output * unit_
  std::vector<double> delta_;         // grads_ . output of each row
  Buffer<T> shares_;                  // grads_ / row sum, 0 for rows that are spoiled
  std::vector<double> delta_shares_;  // delta_ / row sum
  double largest_share_ = 0;          // 1 / (smallest row sum)
  Buffer<T> grad_query_, grad_key_, grad_value_;
};

}  // namespace convbasis
