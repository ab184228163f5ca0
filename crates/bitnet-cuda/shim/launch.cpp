// The driver API's modules, functions and launches.

#include "state.h"

// EXPORT_KERNEL puts a row here.
extern "C" const shim::Kernel __start_cuda_kernels[], __stop_cuda_kernels[];

namespace shim {

namespace {

CUfunc_st *find_function(const CUctx_st &context, CUfunction function) {
    for (auto &module : context.modules)
        if (module->functions.find(function)) return function;
    return nullptr;
}

// The parameters' values, one after another, each at a multiple of 16 bytes.
struct Parameters {
    std::vector<uint4> bytes;
    std::vector<void *> pointers;

    Parameters(const Kernel &kernel, void *const *values) : pointers(kernel.count) {
        size_t units = 0;
        for (size_t i = 0; i < kernel.count; i++) units += (kernel.sizes[i] + 15) / 16;
        bytes.resize(units);
        uint4 *next = bytes.data();
        for (size_t i = 0; i < kernel.count; next += (kernel.sizes[i] + 15) / 16, i++) {
            memcpy(static_cast<void *>(next), values[i], kernel.sizes[i]);
            pointers[i] = next;
        }
    }
};

// Of both devices.
uint64_t launches;

CUresult launch(CUctx_st &context, CUfunction handle, const CUlaunchConfig &config, void **values, void **extra) {
    CUfunc_st *function = find_function(context, handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    dim3 grid{config.gridDimX, config.gridDimY, config.gridDimZ}, block{config.blockDimX, config.blockDimY, config.blockDimZ};
    unsigned shared_bytes = config.sharedMemBytes;
    bool fits = grid.x && grid.y && grid.z && grid.x <= INT32_MAX && grid.y <= 65535 && grid.z <= 65535 && block.x && block.y &&
                block.z && block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
                uint64_t(block.x) * block.y * block.z <= MAX_THREADS && shared_bytes <= function->max_dynamic_bytes;
    bool overlaps = false;
    for (const CUlaunchAttribute *attribute = config.attrs; attribute != config.attrs + config.numAttrs; attribute++) {
        switch (attribute->id) {
        case CU_LAUNCH_ATTRIBUTE_IGNORE:
        case CU_LAUNCH_ATTRIBUTE_PRIORITY:
        case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: break;
        case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: overlaps = attribute->value[0] != 0; break;
        default: return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    const Kernel &kernel = *function->kernel;
    if (!fits || extra || (kernel.count && !values)) return CUDA_ERROR_INVALID_VALUE;
    auto parameters = std::make_shared<const Parameters>(kernel, values);
    return enqueue(context, config.hStream, [=, &kernel](CUctx_st &context) {
        if (++launches == settings.failing_launch) {
            context.error = CUDA_ERROR_LAUNCH_FAILED;
            return;
        }
        // A kernel may write its parameters: they are copies on a GPU too.
        Parameters copy(kernel, parameters->pointers.data());
        run_grid(kernel, grid, block, shared_bytes, copy.pointers.data(), overlaps, settings.seed);
        check_guards(kernel.name);
    });
}

} // namespace

} // namespace shim

using namespace shim;

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return in_context([&](CUctx_st &context) {
        if (!image) return CUDA_ERROR_INVALID_IMAGE;
        *module = context.modules.add();
        return CUDA_SUCCESS;
    });
}
CUresult cuModuleUnload(CUmodule module) {
    return in_context([&](CUctx_st &context) {
        run_everything(context);
        return context.modules.remove(module) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    return in_context([&](CUctx_st &context) {
        if (!context.modules.find(module)) return CUDA_ERROR_INVALID_HANDLE;
        for (const Kernel *kernel = __start_cuda_kernels; kernel < __stop_cuda_kernels; kernel++) {
            if (strcmp(kernel->name, name)) continue;
            for (auto &loaded : module->functions)
                if (loaded->kernel == kernel) return *function = loaded.get(), CUDA_SUCCESS;
            *function = module->functions.add();
            (*function)->kernel = kernel;
            return CUDA_SUCCESS;
        }
        return CUDA_ERROR_NOT_FOUND;
    });
}

CUresult cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
    return in_context([&](CUctx_st &context) {
        CUfunc_st *function = find_function(context, handle);
        if (!function) return CUDA_ERROR_INVALID_HANDLE;
        if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
        if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || value > int(MAX_SHARED)) return CUDA_ERROR_INVALID_VALUE;
        function->max_dynamic_bytes = value;
        return CUDA_SUCCESS;
    });
}
CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction handle) {
    return in_context([&](CUctx_st &context) {
        CUfunc_st *function = find_function(context, handle);
        if (!function) return CUDA_ERROR_INVALID_HANDLE;
        switch (attribute) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = MAX_THREADS; break;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
        case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = 0; break;
        case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 64; break;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = 90; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function->max_dynamic_bytes; break;
        default: return CUDA_ERROR_INVALID_VALUE;
        }
        return CUDA_SUCCESS;
    });
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction handle, int threads, size_t dynamic_bytes) {
    return in_context([&](CUctx_st &context) {
        CUfunc_st *function = find_function(context, handle);
        if (!function) return CUDA_ERROR_INVALID_HANDLE;
        if (threads < 1) return CUDA_ERROR_INVALID_VALUE;
        *blocks = 0;
        if (threads > int(MAX_THREADS) || dynamic_bytes > function->max_dynamic_bytes) return CUDA_SUCCESS;
        int warps = (threads + 31) / 32;
        *blocks = std::min({32, 64 / warps, int(233472 / (dynamic_bytes + 1024))});
        return CUDA_SUCCESS;
    });
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
    return in_context([&](CUctx_st &context) { return launch(context, function, *config, parameters, extra); });
}
CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                        unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters, void **extra) {
    CUlaunchConfig config{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, nullptr, 0};
    return cuLaunchKernelEx(&config, function, parameters, extra);
}
