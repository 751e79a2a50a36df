#include "plugin.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "log.h"

namespace edgeprune {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr int32_t kOk = 0;
constexpr int32_t kFailed = 1;

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

// The sizes of a stage from its tensors. Says what does not fit, and returns false.
bool read_sizes(const PluginTensorDesc* in, const PluginTensorDesc* out, int32_t keep_per_10000,
                PruneSizes& sizes) {
    constexpr int32_t ranks[kInputs] = {3, 2, 2, 2, 1};
    constexpr const char* names[kInputs] = {"hidden_states", "score", "visual_index", "visual_valid",
                                            "bias_curve"};
    for (int32_t input = 0; input < kInputs; ++input)
        if (in[input].dims.nbDims != ranks[input]) {
            log_error("%s has %d dimensions, expected %d; export the model again", names[input],
                      in[input].dims.nbDims, ranks[input]);
            return false;
        }
    const auto dim = [&](Input input, int32_t axis) { return static_cast<int64_t>(in[input].dims.d[axis]); };
    sizes.batch = dim(kHiddenStates, 0);
    sizes.sequence = dim(kHiddenStates, 1);
    sizes.width = dim(kHiddenStates, 2);
    sizes.visual = dim(kVisualIndex, 1);
    sizes.element_bytes = element_bytes(in[kHiddenStates].type);
    sizes.keep_per_10000 = keep_per_10000;
    const auto fits = [&](Input input, int64_t columns) {
        if (dim(input, 0) == sizes.batch && dim(input, 1) == columns)
            return true;
        log_error("%s is [%lld, %lld], expected [%lld, %lld]; pass inputs of one batch", names[input],
                  static_cast<long long>(dim(input, 0)), static_cast<long long>(dim(input, 1)),
                  static_cast<long long>(sizes.batch), static_cast<long long>(columns));
        return false;
    };
    if (!fits(kScore, sizes.sequence) || !fits(kVisualIndex, sizes.visual) ||
        !fits(kVisualValid, sizes.visual))
        return false;
    if (const char* problem = sizes_problem(sizes)) {
        log_error("%s", problem);
        return false;
    }
    if (dim(kBiasCurve, 0) < sizes.visual) {
        log_error(
            "bias_curve has %lld weights for %lld visual tokens, expected one each; pass fewer visual tokens "
            "or export with a longer curve",
            static_cast<long long>(dim(kBiasCurve, 0)), static_cast<long long>(sizes.visual));
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

// Reads the keep ratio, or says what is wrong with it and returns 0.
int32_t read_keep(const nvinfer1::PluginFieldCollection* fields) {
    const nvinfer1::PluginField* found = nullptr;
    for (int32_t number = 0; fields != nullptr && fields->fields != nullptr && number < fields->nbFields;
         ++number)
        if (fields->fields[number].name != nullptr &&
            std::strcmp(fields->fields[number].name, kKeepField) == 0)
            found = &fields->fields[number];
    if (found == nullptr || found->data == nullptr) {
        log_error(
            "the field %s is missing, expected the keep ratio in ten-thousandths; export the model again",
            kKeepField);
        return 0;
    }
    int64_t keep = 0;
    if (found->type == PluginFieldType::kINT32 && found->length == 1) {
        int32_t narrow = 0;
        std::memcpy(&narrow, found->data, sizeof narrow);
        keep = narrow;
    } else if (found->type == PluginFieldType::kINT64 && found->length == 1) {
        std::memcpy(&keep, found->data, sizeof keep);
    } else {
        log_error(
            "the field %s has type %d and length %d, expected one integer (type %d or %d); export the model "
            "again",
            kKeepField, static_cast<int>(found->type), found->length,
            static_cast<int>(PluginFieldType::kINT32), static_cast<int>(PluginFieldType::kINT64));
        return 0;
    }
    if (keep < 1 || keep > 10000) {
        log_error(
            "%s is %lld, expected 1 to 10000, the keep ratio in ten-thousandths; export the model again",
            kKeepField, static_cast<long long>(keep));
        return 0;
    }
    return static_cast<int32_t>(keep);
}

} // namespace

DebiasedTokenPrunePlugin::DebiasedTokenPrunePlugin(int32_t keep_per_10000) noexcept
    : keep_per_10000_(keep_per_10000), field_(kKeepField, &keep_per_10000_, PluginFieldType::kINT32, 1) {
    std::snprintf(configuration_, sizeof configuration_, "%s=%d", kKeepField, keep_per_10000_);
    fields_.nbFields = 1;
    fields_.fields = &field_;
}

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
    auto* copy = new (std::nothrow) DebiasedTokenPrunePlugin(keep_per_10000_);
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
    // Said while the engine is built, before a long prompt meets it.
    if (most(in[kBiasCurve], 0) < most(in[kVisualIndex], 1)) {
        log_error(
            "bias_curve has %lld weights for up to %lld visual tokens, expected one each; build for fewer "
            "visual tokens or export with a longer curve",
            static_cast<long long>(most(in[kBiasCurve], 0)),
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
    if (shape_inputs != 0 || in[kHiddenStates].nbDims != 3 || in[kVisualIndex].nbDims != 2) {
        log_error(
            "expected hidden_states of 3 dimensions, visual_index of 2 and no shape inputs, found %d, %d and "
            "%d; export the model again",
            in[kHiddenStates].nbDims, in[kVisualIndex].nbDims, shape_inputs);
        return kFailed;
    }
    // An expression is null where the builder refused one of its parts.
    bool failed = false;
    using Expression = nvinfer1::IDimensionExpr const*;
    const auto constant = [&](int64_t value) { return builder.constant(value); };
    const auto apply = [&](DimensionOperation operation, Expression left, Expression right) -> Expression {
        Expression made =
            left != nullptr && right != nullptr ? builder.operation(operation, *left, *right) : nullptr;
        failed = failed || made == nullptr;
        return made;
    };
    // S' = S - V + max((2 * V * keep + 10000) / 20000, min(V, 1))
    const Expression visual = in[kVisualIndex].d[1];
    const Expression share = apply(DimensionOperation::kPROD, visual, constant(int64_t{2} * keep_per_10000_));
    const Expression rounded =
        apply(DimensionOperation::kFLOOR_DIV, apply(DimensionOperation::kSUM, share, constant(10000)),
              constant(20000));
    const Expression kept =
        apply(DimensionOperation::kMAX, rounded, apply(DimensionOperation::kMIN, visual, constant(1)));
    const Expression text = apply(DimensionOperation::kSUB, in[kHiddenStates].d[1], visual);
    const Expression length = apply(DimensionOperation::kSUM, text, kept);
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
    return configuration_;
}
char const* DebiasedTokenPrunePlugin::getMetadataString() noexcept {
    return configuration_;
}

int32_t DebiasedTokenPrunePlugin::onShapeChange(PluginTensorDesc const* in, int32_t inputs,
                                                PluginTensorDesc const* out, int32_t outputs) noexcept {
    PruneSizes sizes;
    return counts_fit("new shapes", inputs, outputs) && read_sizes(in, out, keep_per_10000_, sizes) ? kOk
                                                                                                    : kFailed;
}

int32_t DebiasedTokenPrunePlugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out,
                                          void const* const* inputs, void* const* outputs, void* workspace,
                                          cudaStream_t stream) noexcept {
    PruneSizes sizes;
    if (!read_sizes(in, out, keep_per_10000_, sizes))
        return kFailed;
    PruneBuffers buffers{};
    buffers.hidden_states = inputs[kHiddenStates];
    buffers.score = static_cast<const float*>(inputs[kScore]);
    buffers.visual_index = static_cast<const int64_t*>(inputs[kVisualIndex]);
    buffers.visual_valid = static_cast<const float*>(inputs[kVisualValid]);
    buffers.bias_curve = static_cast<const float*>(inputs[kBiasCurve]);
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
    return &fields_;
}

DebiasedTokenPruneCreator::DebiasedTokenPruneCreator() noexcept
    : field_(kKeepField, nullptr, PluginFieldType::kINT32, 1) {
    fields_.nbFields = 1;
    fields_.fields = &field_;
}

nvinfer1::IPluginV3* DebiasedTokenPruneCreator::createPlugin(nvinfer1::AsciiChar const*,
                                                             nvinfer1::PluginFieldCollection const* fields,
                                                             nvinfer1::TensorRTPhase) noexcept {
    const int32_t keep = read_keep(fields);
    if (keep == 0)
        return nullptr;
    auto* plugin = new (std::nothrow) DebiasedTokenPrunePlugin(keep);
    if (plugin == nullptr)
        log_error("out of memory for the plugin");
    return plugin;
}

nvinfer1::PluginFieldCollection const* DebiasedTokenPruneCreator::getFieldNames() noexcept {
    return &fields_;
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
