// The few words that the tests need: EXPECT counts and prints what is not so, finish() is main()'s result.
#pragma once

#include <cstdio>

inline int failures = 0;

#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            ++failures;                                                                                      \
            std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                              \
        }                                                                                                    \
    } while (false)

constexpr int kSkipped = 77;

inline int finish(const char* test) {
    std::printf("%s %s\n", test, failures == 0 ? "passed" : "FAILED");
    return failures == 0 ? 0 : 1;
}
