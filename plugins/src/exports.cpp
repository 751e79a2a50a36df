#include "exports.h"

#include "loaded_tensorrt.h"
#include "log.h"
#include "plugin.h"

#define EDGEPRUNE_TEXT_OF(value) #value
#define EDGEPRUNE_TEXT(value) EDGEPRUNE_TEXT_OF(value)

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    // A finder of another major version cannot be called; messages then go to standard error.
    edgeprune::set_logger_finder(edgeprune::other_tensorrt_major() == 0 ? finder : nullptr);
}

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static edgeprune::DebiasedTokenPruneCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    if (const int major = edgeprune::other_tensorrt_major()) {
        edgeprune::log_error(
            "the plugin library was built for TensorRT %s and TensorRT %d is loaded; build it with "
            "-DTensorRT_ROOT of that version",
            edgeprune_plugins_tensorrt_version(), major);
        count = 0;
    }
    return creators;
}

const char* edgeprune_plugins_tensorrt_version() {
    return EDGEPRUNE_TEXT(NV_TENSORRT_MAJOR) "." EDGEPRUNE_TEXT(NV_TENSORRT_MINOR) "." EDGEPRUNE_TEXT(
        NV_TENSORRT_PATCH);
}
