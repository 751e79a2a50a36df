// The operator com.edgeprune::DebiasedTokenPrune as a TensorRT plugin (IPluginV3, TensorRT 10.3 and later).
//
// Inputs and outputs are those of the ONNX operator, in its order; it has no attributes. The selection's
// sizes follow from the input shapes alone, kept_slots' length among them, so that no output size has to be
// read back from the device and no value on the host. The values of kept_slots are never read.
#pragma once

#include <NvInferRuntime.h>

#include "prune.h"

#if NV_TENSORRT_MAJOR < 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 3)
#error "edgeprune's plugin needs the headers of TensorRT 10.3 or later"
#endif

namespace edgeprune {

inline constexpr char kPluginName[] = "DebiasedTokenPrune";
inline constexpr char kPluginVersion[] = "2";
// The ONNX parser looks in the empty namespace unless the node says otherwise.
inline constexpr char kPluginNamespace[] = "";

enum Input : int32_t { kHiddenStates, kScore, kVisualIndex, kWeight, kKeptSlots, kInputs };
enum Output : int32_t { kPrunedStates, kKeptIndex, kOutputs };

class DebiasedTokenPrunePlugin final : public nvinfer1::IPluginV3,
                                       public nvinfer1::IPluginV3OneCore,
                                       public nvinfer1::IPluginV3OneBuild,
                                       public nvinfer1::IPluginV3OneRuntime {
public:
    // IPluginV3
    nvinfer1::IPluginCapability*
    getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs,
                               nvinfer1::DataType const* input_types, int32_t inputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                            nvinfer1::DimsExprs const* shape_in, int32_t shape_inputs,
                            nvinfer1::DimsExprs* out, int32_t outputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* in_out,
                                   int32_t inputs, int32_t outputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const* out,
                            int32_t outputs) const noexcept override;
    // The plugin's whole configuration as text, which is its version: "version=2".
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::PluginTensorDesc const* out, int32_t outputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;
};

class DebiasedTokenPruneCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name,
                                      nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;
};

} // namespace edgeprune
