// What libedgeprune_plugins.so shows: the two functions by which TensorRT's registry loads a plugin library,
// and the TensorRT it was built against.
#pragma once

#include <NvInferRuntime.h>

#define EDGEPRUNE_PLUGINS_API __attribute__((visibility("default")))

extern "C" {

// Who to ask for a logger. IPluginRegistry::loadLibrary() calls it first.
EDGEPRUNE_PLUGINS_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

// The plugin creators, of static lifetime. None, and a message, where the process has loaded a TensorRT of
// another major version: its interfaces have another layout.
EDGEPRUNE_PLUGINS_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

// The version of the TensorRT headers, as "10.3.0".
EDGEPRUNE_PLUGINS_API const char* edgeprune_plugins_tensorrt_version();
}
