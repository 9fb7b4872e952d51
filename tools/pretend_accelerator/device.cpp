// An accelerator that is not there: torch's device type MTIA, for which this torch has no kernels, in the CPU's memory.
//
// Every operator is computed by its CPU kernel, once it is sure that all tensors (and generators) it got are on the
// device: what a GPU would refuse, this refuses. Data cannot be reached from outside: `numpy()`, and whatever asks for
// CPU tensors, fail as they do there. So the package's handling of devices can be tested where there is no GPU.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/MTIAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_copy_from_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>

namespace {

constexpr auto kType = c10::DeviceType::MTIA;
const c10::Device kDevice(kType, 0);

// -- what torch asks an accelerator

std::atomic<int64_t> in_use{0}, peak{0};

// Counts bytes as they were asked for: a GPU's caching allocator rounds them up, and keeps what is freed.
struct Memory final : c10::Allocator {
    // In front of the data, for the deleter: how many bytes they are. As long as the alignment.
    static constexpr size_t kHeader = c10::gAlignment;

    c10::DataPtr allocate(size_t bytes) override {
        if (bytes == 0) {
            return {nullptr, nullptr, &release, kDevice};
        }
        char* header = static_cast<char*>(c10::GetCPUAllocator()->raw_allocate(kHeader + bytes));
        *reinterpret_cast<int64_t*>(header) = static_cast<int64_t>(bytes);
        const int64_t now = in_use += static_cast<int64_t>(bytes);
        for (int64_t seen = peak; seen < now && !peak.compare_exchange_weak(seen, now);) {
        }
        return {header + kHeader, header + kHeader, &release, kDevice};
    }
    static void release(void* data) {
        if (data != nullptr) {
            char* header = static_cast<char*>(data) - kHeader;
            in_use -= *reinterpret_cast<int64_t*>(header);
            c10::GetCPUAllocator()->raw_deallocate(header);
        }
    }
    c10::DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(kType, &memory)

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return kType; }
    c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
    c10::Device getDevice() const override { return kDevice; }
    void setDevice(c10::Device) const override {}
    void uncheckedSetDevice(c10::Device) const noexcept override {}
    c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
    c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
    void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    bool queryStream(const c10::Stream&) const override { return true; }
    void synchronizeStream(const c10::Stream&) const override {}
    void synchronizeEvent(void*) const override {}
    void synchronizeDevice(const c10::DeviceIndex) const override {}
    void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(MTIA, Guard)

struct MTIAHooks final : at::MTIAHooksInterface {
    void init() const override {}
    bool hasMTIA() const override { return true; }
    c10::DeviceIndex getDeviceCount() const override { return 1; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    void setCurrentDevice(c10::DeviceIndex) const override {}
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

// -- operators

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
    return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::MTIA),
                                     c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
    return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::MTIA),
                                             c10::dtype_or_default(dtype));
}

// The same memory as a CPU tensor.
at::Tensor on_cpu(const at::Tensor& t) {
    if (!t.defined() || t.is_cpu()) {
        return t;
    }
    return at::from_blob(t.mutable_data_ptr(), t.sizes(), t.strides(), t.options().device(c10::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
    on_cpu(to).copy_(on_cpu(from));
    return to;
}

const at::Tensor& resize_in_place(const at::Tensor& t, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
    if (t.sizes() == size) {
        return t;  // its strides stay
    }
    auto* impl = t.unsafeGetTensorImpl();
    const int64_t bytes = static_cast<int64_t>(
        at::detail::computeStorageNbytesContiguous(size, t.element_size(), static_cast<size_t>(t.storage_offset())));
    auto& storage = const_cast<c10::Storage&>(t.storage());
    if (bytes > static_cast<int64_t>(storage.nbytes())) {
        c10::DataPtr grown = memory.allocate(bytes);
        memory.copy_data(grown.get(), storage.data(), storage.nbytes());
        storage.set_data_ptr_noswap(std::move(grown));
        storage.set_nbytes(bytes);
    }
    impl->set_sizes_contiguous(size);
    return t;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
    return copy_from(from, to.is_cpu() ? to.resize_(from.sizes()) : resize_in_place(to, from.sizes(), std::nullopt),
                     false);
}

at::Tensor& set_storage(at::Tensor& t, at::Storage source, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
    auto* impl = t.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(std::move(source));
    impl->set_storage_offset(offset);
    stride.empty() ? impl->set_sizes_contiguous(size) : impl->set_sizes_and_strides(size, stride);
    return t;
}

at::Scalar local_scalar(const at::Tensor& t) { return on_cpu(t).item(); }

// The one operator that does not reach the fallback.
at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
    TORCH_CHECK(weight.device() == x.device() && (!bias || !bias->defined() || bias->device() == x.device()),
                "Expected all tensors of a convolution to be on ", kDevice);
    const auto cpu_bias = bias ? std::optional<at::Tensor>(on_cpu(*bias)) : std::nullopt;
    return at::convolution(on_cpu(x), on_cpu(weight), cpu_bias, stride, padding, dilation, transposed, output_padding,
                           groups)
        .to(kDevice);
}

// The CPU has no products of 16 bits with results in float32.
at::Tensor mixed_product(const at::Tensor& a, const at::Tensor& b, at::ScalarType dtype) {
    TORCH_CHECK(a.device() == b.device(), "Expected both matrices to be on ", kDevice);
    return at::mm(on_cpu(a).to(dtype), on_cpu(b).to(dtype)).to(kDevice);
}

// Operators that take positions from the CPU on every device.
bool takes_positions(const std::string& name) {
    return name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_" ||
           name == "aten::index_put";
}

void check_devices(const c10::OperatorHandle& op, const torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    const auto arguments = torch::jit::last(stack, schema.arguments().size());
    const auto check = [&](const at::Tensor& t, size_t i) {
        const bool number = t.defined() && t.dim() == 0 && t.is_cpu() && !schema.arguments()[i].alias_info();
        const bool position = takes_positions(schema.name()) && i == 1;
        TORCH_CHECK(!t.defined() || t.device().type() == kType || number || position, "Expected all tensors to be on ",
                    kDevice, ", but argument `", schema.arguments()[i].name(), "` of ", op.operator_name(), " is on ",
                    t.device());
    };
    for (size_t i = 0; i < arguments.size(); i++) {
        const c10::IValue& value = arguments[i];
        if (value.isTensor()) {
            check(value.toTensor(), i);
        } else if (value.isTensorList()) {
            for (const at::Tensor& t : value.toTensorVector()) {
                check(t, i);
            }
        } else if (value.isOptionalTensorList()) {
            for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector()) {
                t ? check(*t, i) : void();
            }
        } else if (value.isGenerator()) {
            TORCH_CHECK(value.toGenerator().device().type() == kType, "Expected a generator of ", kDevice, " for ",
                        op.operator_name(), ", got one of ", value.toGenerator().device());
        }
    }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    check_devices(op, stack);
    at::native::cpu_fallback(op, stack);
}

}  // namespace

namespace at {
REGISTER_MTIA_HOOKS(MTIAHooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, MTIA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, MTIA, m) {
    m.impl("empty.memory_format", empty);
    m.impl("empty_strided", empty_strided);
    m.impl("_copy_from", copy_from);
    m.impl("_copy_from_and_resize", copy_from_and_resize);
    m.impl("resize_", resize_in_place);
    m.impl("set_.source_Storage_storage_offset", set_storage);
    m.impl("set_.source_Tensor", at::native::set_tensor_);
    m.impl("_local_scalar_dense", local_scalar);
    m.impl("convolution_overrideable", convolution);
    m.impl("mm.dtype", mixed_product);
    m.impl("as_strided", at::native::as_strided_tensorimpl);
    m.impl("view", at::native::view);
    m.impl("_reshape_alias", at::native::_reshape_alias);
    m.impl("unfold", at::native::unfold);
}

extern "C" {
int64_t bytes_in_use() { return in_use; }
int64_t peak_bytes() { return peak; }
void reset_peak() { peak = in_use.load(); }
}
