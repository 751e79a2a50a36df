// test_register LIBRARY COUNT [TENSORRT]: opening LIBRARY registers COUNT plugins in TENSORRT's registry, and
// never fails. Only LIBRARY is told where TensorRT is: by its name, as in a process that has loaded it.
#include <cstdlib>

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include "expect.h"

int main(int count, char** words) {
    if (count < 3)
        return 2;
    void* tensorrt = count > 3 ? dlopen(words[3], RTLD_NOW | RTLD_LOCAL) : nullptr;
    EXPECT(count <= 3 || tensorrt != nullptr);
    void* library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    EXPECT(library != nullptr);
    if (library == nullptr)
        std::printf("%s\n", dlerror());
    int32_t registered = 0;
    if (tensorrt != nullptr) {
        const auto get_registry =
            reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(dlsym(tensorrt, "getPluginRegistry"));
        EXPECT(get_registry != nullptr);
        get_registry()->getAllCreators(&registered);
    }
    EXPECT(registered == std::atoi(words[2]));
    return finish("test_register");
}
