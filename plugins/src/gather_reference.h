// The kept hidden states of one prompt, in plain C++: the reference of gather.cu.
#pragma once

#include <cstdint>
#include <cstring>

namespace edgeprune {

// hidden_states [S, row_bytes], kept_index [length] -> pruned_states [length, row_bytes].
inline void gather_reference(int64_t length, int64_t row_bytes, const void* hidden_states,
                             const int64_t* kept_index, void* pruned_states) {
    if (row_bytes == 0)
        return;
    for (int64_t place = 0; place < length; ++place)
        std::memcpy(static_cast<char*>(pruned_states) + place * row_bytes,
                    static_cast<const char*>(hidden_states) + kept_index[place] * row_bytes,
                    static_cast<size_t>(row_bytes));
}

} // namespace edgeprune
