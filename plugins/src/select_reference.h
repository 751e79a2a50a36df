// Which positions one prompt keeps, in plain C++: the reference of select.cu.
//
// Follows the total order of edgeprune/debias/selection.py by comparisons and a stable sort, where the kernel
// counts digits, so that the two have nothing in common to be wrong in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace edgeprune {

// The debiased score: score * weight in float32. NaN and -inf rank as the lowest finite number and +inf as
// the largest, so that a weight of 0 is below and the last position above every number, as -inf and +inf.
inline float effective_score_reference(float score, float weight, bool last) {
    using Limits = std::numeric_limits<float>;
    if (last)
        return Limits::infinity();
    if (weight == 0.0f)
        return -Limits::infinity();
    const float product = score * weight;
    return std::isnan(product) ? Limits::lowest() : std::clamp(product, Limits::lowest(), Limits::max());
}

// One prompt: score [S], visual_index [V], weight [V] -> kept_index [S - V + K]. A position outside 0..S-1 in
// visual_index counts as one of weight 0. Only for such input, or for repeated positions, are there more
// positions to keep than S - V + K; the first ones are written.
inline void select_reference(int64_t sequence, int64_t visual, int64_t kept, const float* score,
                             const int64_t* visual_index, const float* weight, int64_t* kept_index) {
    std::vector<float> effective(visual);
    const auto inside = [&](int64_t token) {
        return visual_index[token] >= 0 && visual_index[token] < sequence;
    };
    for (int64_t token = 0; token < visual; ++token)
        effective[token] = inside(token)
                               ? effective_score_reference(score[visual_index[token]], weight[token],
                                                           visual_index[token] == sequence - 1)
                               : -std::numeric_limits<float>::infinity();
    std::vector<int64_t> order(visual);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t left, int64_t right) { return effective[left] > effective[right]; });
    std::vector<bool> dropped(sequence, false);
    for (int64_t rank = kept; rank < visual; ++rank)
        if (inside(order[rank]))
            dropped[visual_index[order[rank]]] = true;
    const int64_t length = sequence - visual + kept;
    for (int64_t position = 0, place = 0; position < sequence && place < length; ++position)
        if (!dropped[position])
            kept_index[place++] = position;
}

} // namespace edgeprune
