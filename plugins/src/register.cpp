// libedgeprune_plugins_register.so: registers the plugin when it is loaded.
//
// trtexec --staticPlugins and Polygraphy --plugins only open a library and expect that. It is a library of
// its own because IPluginRegistry::loadLibrary() opens libedgeprune_plugins.so and then refuses it if a
// plugin of it is registered already.
#include <NvInferRuntime.h>

#include "exports.h"
#include "loaded_tensorrt.h"

namespace {

struct Registration {
    Registration() noexcept {
        int32_t count = 0;
        nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
        if (count == 0)
            return; // it has said why
        void* tensorrt = edgeprune::loaded_tensorrt(NV_TENSORRT_MAJOR);
        void* found = tensorrt == nullptr ? nullptr : dlsym(tensorrt, "getPluginRegistry");
        const auto get_registry = reinterpret_cast<decltype(&getPluginRegistry)>(found);
        nvinfer1::IPluginRegistry* registry = get_registry == nullptr ? nullptr : get_registry();
        if (registry == nullptr) {
            std::fprintf(
                stderr,
                "DebiasedTokenPrune: TensorRT %d is not loaded, so the plugin was not registered; load "
                "TensorRT first, or load libedgeprune_plugins.so by IPluginRegistry::loadLibrary\n",
                NV_TENSORRT_MAJOR);
            return;
        }
        for (int32_t number = 0; number < count; ++number)
            if (!registry->registerCreator(*creators[number], ""))
                std::fprintf(stderr,
                             "DebiasedTokenPrune: TensorRT did not register the plugin; load only one of its "
                             "libraries, once\n");
    }
};

const Registration registration;

} // namespace
