#include <memory>
#include <optional>

#include "bindings/ndarray.h"
#include "convbasis/cuda.h"

// Arrays that this module owns on a GPU, for libraries whose own arrays cannot be written: they
// take them over by DLPack.
namespace convbasis::bindings {
namespace {

/// DLTensor and DLManagedTensor of DLPack, version 0.
struct Tensor {
  void* data;
  std::int32_t device_kind, device, ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

constexpr int kCuda = 2;                                 // DLPack's number of the kind of device
constexpr std::uint8_t kFloatCode = 2, kBFloatCode = 4;  // and of types
constexpr const char* kFresh = "dltensor";  // the name of a capsule that nobody has taken

/// What a taker keeps, until it calls the deleter from whichever thread.
struct Kept {
  ManagedTensor managed;
  std::shared_ptr<void> data;
  std::vector<std::int64_t> shape, strides;
};

/// Who takes a capsule renames it, and lets go of what is in it at the end.
void drop(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kFresh)) return;
  auto* managed = static_cast<ManagedTensor*>(PyCapsule_GetPointer(capsule, kFresh));
  managed->deleter(managed);
}

class DeviceMemory {
 public:
  DeviceMemory(std::vector<std::int64_t> shape, const std::string& dtype,
               std::tuple<int, std::uintptr_t> stream)
      : shape_(std::move(shape)),
        strides_(shape_.size()),
        stream_{std::get<0>(stream), reinterpret_cast<void*>(std::get<1>(stream))},
        code_(dtype == "bfloat16" ? kBFloatCode : kFloatCode),
        bits_(dtype == "float64"   ? 64
              : dtype == "float32" ? 32
                                   : 16) {
    std::int64_t size = 1;
    for (std::size_t axis = shape_.size(); axis-- > 0; size *= shape_[axis]) strides_[axis] = size;
    if (size > 0) data_ = cuda::make_memory(stream_, static_cast<std::size_t>(size * bits_ / 8));
  }
  [[nodiscard]] std::uintptr_t address() const {
    return reinterpret_cast<std::uintptr_t>(data_.get());
  }
  [[nodiscard]] std::tuple<int, int> device() const { return {kCuda, stream_.device}; }

  /// A capsule whose elements are ready on `stream`: None is the default one, -1 is none.
  [[nodiscard]] py::capsule dlpack(std::optional<std::intptr_t> stream, const py::object&,
                                   std::optional<std::tuple<int, int>> device,
                                   std::optional<bool> copy) const {
    if (device.value_or(this->device()) != this->device())
      throw py::buffer_error("[__dlpack__] dl_device is another device; expected None or its own");
    if (copy.value_or(false))
      throw py::buffer_error("[__dlpack__] copy is True; expected None or False: none is made");
    if (stream != -1) cuda::order(stream_, reinterpret_cast<void*>(stream.value_or(0)));
    auto kept = std::make_unique<Kept>(Kept{{}, data_, shape_, strides_});
    kept->managed = {{data_.get(), kCuda, stream_.device, static_cast<std::int32_t>(shape_.size()),
                      code_, bits_, 1, kept->shape.data(), kept->strides.data(), 0},
                     kept.get(),
                     [](ManagedTensor* self) { delete static_cast<Kept*>(self->context); }};
    const py::capsule capsule(&kept->managed, kFresh, &drop);
    (void)kept.release();  // the capsule's now
    return capsule;
  }

 private:
  std::vector<std::int64_t> shape_, strides_;
  cuda::Stream stream_;
  std::uint8_t code_, bits_;
  std::shared_ptr<void> data_;
};

}  // namespace

void register_device_memory(py::module_& module) {
  using py::arg;
  py::class_<DeviceMemory>(module, "DeviceMemory", py::module_local())
      .def(py::init<std::vector<std::int64_t>, std::string, std::tuple<int, std::uintptr_t>>(),
           arg("shape"), arg("dtype"), arg("stream"))
      .def("address", &DeviceMemory::address)
      .def("__dlpack_device__", &DeviceMemory::device)
      .def("__dlpack__", &DeviceMemory::dlpack, py::kw_only(), arg("stream") = py::none(),
           arg("max_version") = py::none(), arg("dl_device") = py::none(),
           arg("copy") = py::none());
}

}  // namespace convbasis::bindings
