// The TensorRT that the process has already loaded, found without linking to it.
#pragma once

#include <cstdio>

#include <NvInferVersion.h>
#include <dlfcn.h>

namespace edgeprune {

// A handle of TensorRT's runtime library of a major version, or nullptr where it is not loaded. Asks for that
// library by its name: TensorRT for RTX exports the same functions and must not be given plugins.
inline void* loaded_tensorrt(int major) noexcept {
    char name[32];
    std::snprintf(name, sizeof name, "libnvinfer.so.%d", major);
    return dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
}

// The major version of a loaded TensorRT that this library was not built for, or 0. None is loaded where an
// application links TensorRT statically or uses only its lean runtime.
inline int other_tensorrt_major() noexcept {
    const auto is_loaded = [](int major) {
        void* library = loaded_tensorrt(major);
        if (library != nullptr)
            dlclose(library); // asking counted it once more
        return library != nullptr;
    };
    if (is_loaded(NV_TENSORRT_MAJOR))
        return 0;
    for (int major = 8; major < 20; ++major)
        if (is_loaded(major))
            return major;
    return 0;
}

} // namespace edgeprune
