// Messages of the plugin, through the logger that TensorRT hands over.
#pragma once

#include <NvInferRuntime.h>

namespace edgeprune {

// Where the messages go from now on; nullptr is standard error. TensorRT calls it through setLoggerFinder().
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// An error, as printf writes it, behind the plugin's name. Cut off at 1023 characters, never throws.
__attribute__((format(printf, 1, 2))) void log_error(const char* format, ...) noexcept;

} // namespace edgeprune
