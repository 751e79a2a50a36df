#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace edgeprune {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

} // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
    logger_finder = finder;
}

void log_error(const char* format, ...) noexcept {
    char message[1024] = "DebiasedTokenPrune: ";
    const size_t used = sizeof "DebiasedTokenPrune: " - 1;
    va_list values;
    va_start(values, format);
    std::vsnprintf(message + used, sizeof message - used, format, values);
    va_end(values);
    try {
        nvinfer1::ILoggerFinder* finder = logger_finder;
        nvinfer1::ILogger* logger = finder != nullptr ? finder->findLogger() : nullptr;
        if (logger != nullptr) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, message);
            return;
        }
    } catch (...) { // findLogger() may throw; the message still has a place to go
    }
    std::fprintf(stderr, "%s\n", message);
}

} // namespace edgeprune
