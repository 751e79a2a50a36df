// A library with the name of TensorRT's that holds a plugin registry which only counts. For
// test_register.cpp.
#include <NvInferRuntime.h>

namespace {

int32_t registered = 0;

class CountingRegistry final : public nvinfer1::IPluginRegistry {
public:
    ~CountingRegistry() noexcept override = default;
    bool registerCreator(nvinfer1::IPluginCreatorInterface& creator,
                         const char* plugin_namespace) noexcept override {
        const char* kind = creator.getInterfaceInfo().kind;
        registered += kind[0] == 'P' && plugin_namespace[0] == '\0';
        return true;
    }
    bool deregisterCreator(nvinfer1::IPluginCreatorInterface const&) noexcept override { return false; }
    nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
        *count = registered;
        return nullptr;
    }
    nvinfer1::IPluginCreatorInterface* getCreator(const char*, const char*, const char*) noexcept override {
        return nullptr;
    }
    void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override {}
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool) override {}
    PluginLibraryHandle loadLibrary(const char*) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    nvinfer1::IPluginResource* acquirePluginResource(const char*,
                                                     nvinfer1::IPluginResource*) noexcept override {
        return nullptr;
    }
    int32_t releasePluginResource(const char*) noexcept override { return 0; }
#if NV_TENSORRT_MAJOR < 11
    bool registerCreator(nvinfer1::IPluginCreator&, const char*) noexcept override { return false; }
    bool deregisterCreator(nvinfer1::IPluginCreator const&) noexcept override { return false; }
    nvinfer1::IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override {
        return nullptr;
    }
    nvinfer1::IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override {
        return nullptr;
    }
#endif
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 10
    nvinfer1::IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept override {
        *count = registered;
        return nullptr;
    }
#endif
};

} // namespace

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    static CountingRegistry registry;
    return &registry;
}
