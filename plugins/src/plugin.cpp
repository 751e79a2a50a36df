#include "plugin.h"

#include <algorithm>
#include <new>

#include "log.h"

namespace edgeprune {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kOk = 0;
constexpr int32_t kFailed = 1;
constexpr char kConfiguration[] = "version=2";
constexpr const char* kNames[kInputs] = {"hidden_states", "score", "visual_index", "weight", "kept_slots"};

// Bytes of an element of the hidden states, 0 for a type that the plugin does not take.
int32_t element_bytes(DataType type) {
    switch (type) {
    case DataType::kFLOAT:
        return 4;
    case DataType::kHALF:
    case DataType::kBF16:
        return 2;
    default:
        return 0;
    }
}

bool counts_fit(const char* step, int32_t inputs, int32_t outputs) {
    if (inputs == kInputs && outputs == kOutputs)
        return true;
    log_error("%s: found %d inputs and %d outputs, expected %d and %d; export the model again", step, inputs,
              outputs, static_cast<int>(kInputs), static_cast<int>(kOutputs));
    return false;
}

// Whether each input has its number of dimensions; rank_of gives that of an input.
template <typename RankOf>
bool ranks_fit(const RankOf& rank_of) {
    for (int32_t input = 0; input < kInputs; ++input) {
        const int32_t expected = input == kHiddenStates ? 3 : 2;
        if (rank_of(input) == expected)
            continue;
        log_error("%s has %d dimensions, expected %d; export the model again", kNames[input], rank_of(input),
                  expected);
        return false;
    }
    return true;
}

// The sizes of a stage from its tensors. Says what does not fit, and returns false.
bool read_sizes(const PluginTensorDesc* in, const PluginTensorDesc* out, PruneSizes& sizes) {
    if (!ranks_fit([&](int32_t input) { return in[input].dims.nbDims; }))
        return false;
    const auto dim = [&](Input input, int32_t axis) { return static_cast<int64_t>(in[input].dims.d[axis]); };
    sizes.batch = dim(kHiddenStates, 0);
    sizes.sequence = dim(kHiddenStates, 1);
    sizes.visual = dim(kVisualIndex, 1);
    sizes.kept = dim(kKeptSlots, 1);
    sizes.width = dim(kHiddenStates, 2);
    sizes.element_bytes = element_bytes(in[kHiddenStates].type);
    const auto fits = [&](Input input, int64_t columns) {
        if (dim(input, 0) == sizes.batch && dim(input, 1) == columns)
            return true;
        log_error("%s is [%lld, %lld], expected [%lld, %lld]; pass inputs of one batch", kNames[input],
                  static_cast<long long>(dim(input, 0)), static_cast<long long>(dim(input, 1)),
                  static_cast<long long>(sizes.batch), static_cast<long long>(columns));
        return false;
    };
    if (!fits(kScore, sizes.sequence) || !fits(kVisualIndex, sizes.visual) || !fits(kWeight, sizes.visual))
        return false;
    if (dim(kKeptSlots, 0) != 1 && dim(kKeptSlots, 0) != sizes.batch) {
        log_error(
            "kept_slots has %lld rows, expected 1 or %lld; pass one row for all prompts or one for each",
            static_cast<long long>(dim(kKeptSlots, 0)), static_cast<long long>(sizes.batch));
        return false;
    }
    if (sizes.kept > sizes.visual) {
        log_error("kept_slots is %lld long for %lld visual tokens, expected at most as many; pass a shorter "
                  "one, as no more can be kept than there are",
                  static_cast<long long>(sizes.kept), static_cast<long long>(sizes.visual));
        return false;
    }
    if (const char* problem = sizes_problem(sizes)) {
        log_error("%s", problem);
        return false;
    }
    const nvinfer1::Dims& states = out[kPrunedStates].dims;
    const nvinfer1::Dims& kept = out[kKeptIndex].dims;
    if (states.nbDims != 3 || states.d[0] != sizes.batch || states.d[1] != sizes.length() ||
        states.d[2] != sizes.width || kept.nbDims != 2 || kept.d[0] != sizes.batch ||
        kept.d[1] != sizes.length()) {
        log_error(
            "the outputs do not have the shapes [%lld, %lld, %lld] and [%lld, %lld] that follow from the "
            "inputs; build the engine again",
            static_cast<long long>(sizes.batch), static_cast<long long>(sizes.length()),
            static_cast<long long>(sizes.width), static_cast<long long>(sizes.batch),
            static_cast<long long>(sizes.length()));
        return false;
    }
    return true;
}

// The most that a dimension can be: its bound in the profile, or what it is.
int64_t most(const nvinfer1::DynamicPluginTensorDesc& tensor, int32_t axis) {
    return std::max<int64_t>(tensor.max.d[axis], tensor.desc.dims.d[axis]);
}

// Nothing has to be told to a plugin or stored of it.
const nvinfer1::PluginFieldCollection kNoFields{};

} // namespace

nvinfer1::IPluginCapability*
DebiasedTokenPrunePlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    log_error("capability %d is unknown to this plugin", static_cast<int>(type));
    return nullptr;
}

nvinfer1::IPluginV3* DebiasedTokenPrunePlugin::clone() noexcept {
    auto* copy = new (std::nothrow) DebiasedTokenPrunePlugin();
    if (copy == nullptr)
        log_error("out of memory for a copy of the plugin");
    return copy;
}

nvinfer1::AsciiChar const* DebiasedTokenPrunePlugin::getPluginName() const noexcept {
    return kPluginName;
}
nvinfer1::AsciiChar const* DebiasedTokenPrunePlugin::getPluginVersion() const noexcept {
    return kPluginVersion;
}
nvinfer1::AsciiChar const* DebiasedTokenPrunePlugin::getPluginNamespace() const noexcept {
    return kPluginNamespace;
}

int32_t DebiasedTokenPrunePlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                                                  nvinfer1::DynamicPluginTensorDesc const*,
                                                  int32_t outputs) noexcept {
    if (!counts_fit("configuring", inputs, outputs))
        return kFailed;
    // Said while the engine is built, before a prompt meets it.
    if (most(in[kKeptSlots], 1) > most(in[kVisualIndex], 1)) {
        log_error("kept_slots is up to %lld long for up to %lld visual tokens, expected at most as many; "
                  "build with a profile that keeps fewer or admits more visual tokens",
                  static_cast<long long>(most(in[kKeptSlots], 1)),
                  static_cast<long long>(most(in[kVisualIndex], 1)));
        return kFailed;
    }
    return kOk;
}

int32_t DebiasedTokenPrunePlugin::getOutputDataTypes(DataType* output_types, int32_t outputs,
                                                     DataType const* input_types,
                                                     int32_t inputs) const noexcept {
    if (!counts_fit("output types", inputs, outputs))
        return kFailed;
    output_types[kPrunedStates] = input_types[kHiddenStates];
    output_types[kKeptIndex] = DataType::kINT64;
    return kOk;
}

int32_t DebiasedTokenPrunePlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                                                  nvinfer1::DimsExprs const*, int32_t shape_inputs,
                                                  nvinfer1::DimsExprs* out, int32_t outputs,
                                                  nvinfer1::IExprBuilder& builder) noexcept {
    if (!counts_fit("output shapes", inputs, outputs))
        return kFailed;
    if (!ranks_fit([&](int32_t input) { return in[input].nbDims; }))
        return kFailed;
    if (shape_inputs != 0) {
        log_error("found %d shape inputs, expected none; name no input of the node as one", shape_inputs);
        return kFailed;
    }
    // An expression is null where the builder refused one of its parts.
    bool failed = false;
    using Expression = nvinfer1::IDimensionExpr const*;
    const auto apply = [&](DimensionOperation operation, Expression left, Expression right) -> Expression {
        Expression made =
            left != nullptr && right != nullptr ? builder.operation(operation, *left, *right) : nullptr;
        failed = failed || made == nullptr;
        return made;
    };
    // S' = S - V + K
    const Expression text = apply(DimensionOperation::kSUB, in[kHiddenStates].d[1], in[kVisualIndex].d[1]);
    const Expression length = apply(DimensionOperation::kSUM, text, in[kKeptSlots].d[1]);
    if (failed) {
        log_error("TensorRT refused the expression of the output's length; build with another TensorRT");
        return kFailed;
    }
    out[kPrunedStates].nbDims = 3;
    out[kPrunedStates].d[0] = in[kHiddenStates].d[0];
    out[kPrunedStates].d[1] = length;
    out[kPrunedStates].d[2] = in[kHiddenStates].d[2];
    out[kKeptIndex].nbDims = 2;
    out[kKeptIndex].d[0] = in[kHiddenStates].d[0];
    out[kKeptIndex].d[1] = length;
    return kOk;
}

bool DebiasedTokenPrunePlugin::supportsFormatCombination(int32_t position,
                                                         nvinfer1::DynamicPluginTensorDesc const* in_out,
                                                         int32_t inputs, int32_t outputs) noexcept {
    if (inputs != kInputs || outputs != kOutputs || position < 0 || position >= kInputs + kOutputs)
        return false;
    const PluginTensorDesc& tensor = in_out[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR)
        return false;
    switch (position) {
    case kHiddenStates:
        return element_bytes(tensor.type) != 0;
    case kVisualIndex:
    case kKeptSlots:
    case kInputs + kKeptIndex:
        return tensor.type == DataType::kINT64;
    case kInputs + kPrunedStates:
        return tensor.type == in_out[kHiddenStates].desc.type;
    default:
        return tensor.type == DataType::kFLOAT;
    }
}

int32_t DebiasedTokenPrunePlugin::getNbOutputs() const noexcept {
    return kOutputs;
}

size_t DebiasedTokenPrunePlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                                                  nvinfer1::DynamicPluginTensorDesc const*,
                                                  int32_t) const noexcept {
    return inputs == kInputs ? workspace_bytes(most(in[kVisualIndex], 0), most(in[kVisualIndex], 1)) : 0;
}

char const* DebiasedTokenPrunePlugin::getTimingCacheID() noexcept {
    return kConfiguration;
}
char const* DebiasedTokenPrunePlugin::getMetadataString() noexcept {
    return kConfiguration;
}

int32_t DebiasedTokenPrunePlugin::onShapeChange(PluginTensorDesc const* in, int32_t inputs,
                                                PluginTensorDesc const* out, int32_t outputs) noexcept {
    PruneSizes sizes;
    return counts_fit("new shapes", inputs, outputs) && read_sizes(in, out, sizes) ? kOk : kFailed;
}

int32_t DebiasedTokenPrunePlugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out,
                                          void const* const* inputs, void* const* outputs, void* workspace,
                                          cudaStream_t stream) noexcept {
    PruneSizes sizes;
    if (!read_sizes(in, out, sizes))
        return kFailed;
    PruneBuffers buffers{};
    buffers.hidden_states = inputs[kHiddenStates];
    buffers.score = static_cast<const float*>(inputs[kScore]);
    buffers.visual_index = static_cast<const int64_t*>(inputs[kVisualIndex]);
    buffers.weight = static_cast<const float*>(inputs[kWeight]);
    buffers.pruned_states = outputs[kPrunedStates];
    buffers.kept_index = static_cast<int64_t*>(outputs[kKeptIndex]);
    buffers.workspace = workspace;
    const cudaError_t error = prune(sizes, buffers, stream);
    if (error == cudaSuccess)
        return kOk;
    log_error("launching the kernels failed: %s; check that the plugin was built for this GPU",
              cudaGetErrorString(error));
    return static_cast<int32_t>(error);
}

nvinfer1::IPluginV3* DebiasedTokenPrunePlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone(); // nothing is kept per context
}

nvinfer1::PluginFieldCollection const* DebiasedTokenPrunePlugin::getFieldsToSerialize() noexcept {
    return &kNoFields;
}

nvinfer1::IPluginV3* DebiasedTokenPruneCreator::createPlugin(nvinfer1::AsciiChar const*,
                                                             nvinfer1::PluginFieldCollection const*,
                                                             nvinfer1::TensorRTPhase) noexcept {
    auto* plugin = new (std::nothrow) DebiasedTokenPrunePlugin();
    if (plugin == nullptr)
        log_error("out of memory for the plugin");
    return plugin;
}

nvinfer1::PluginFieldCollection const* DebiasedTokenPruneCreator::getFieldNames() noexcept {
    return &kNoFields;
}
nvinfer1::AsciiChar const* DebiasedTokenPruneCreator::getPluginName() const noexcept {
    return kPluginName;
}
nvinfer1::AsciiChar const* DebiasedTokenPruneCreator::getPluginVersion() const noexcept {
    return kPluginVersion;
}
nvinfer1::AsciiChar const* DebiasedTokenPruneCreator::getPluginNamespace() const noexcept {
    return kPluginNamespace;
}

} // namespace edgeprune
