// The positions that each prompt keeps. Reference: select_reference.h.
//
// One block per prompt, four steps:
// 1. Each visual token's debiased score becomes a 32-bit key whose unsigned order is the order of
//    edgeprune/debias/selection.py.
// 2. Radix select, eight bits at a time from the top: count the digits of the keys that share the digits
//    found so far, and walk down from the largest digit to the one that holds the K-th best key. This gives
//    the K-th best key (the threshold) and how many of the keys equal to it are among the best K.
// 3. Tokens below the threshold are marked as dropped in a bitmap over positions, and of those equal to it
//    all but the first ones. Marks do not depend on the order in which threads set them. Where none or all
//    are kept, this step alone decides.
// 4. Prefix sums over the bitmap's words give each kept position its place; a warp writes a word at a time,
//    so that neighbouring lanes write neighbouring places.
// A long sequence is done in stretches of the bitmap's size. Whatever visual_index holds, the work is
// bounded, nothing outside the buffers is touched, and every place of kept_index gets a position in 0..S-1.
#include <cfloat>

#include "prune.h"

namespace edgeprune {
namespace {

constexpr uint32_t kFullWarp = 0xffffffffu;
constexpr uint32_t kWarp = 32;
constexpr uint32_t kMostThreads = 1024;
constexpr uint32_t kDigits = 256;
// Below and above the keys of all numbers, which lie from 0x00800000 to 0xff7fffff.
constexpr uint32_t kWeightlessKey = 0;
constexpr uint32_t kLastPositionKey = 0xffffffffu;
// Keys of up to this many visual tokens stay in shared memory (16 KB); more go to the workspace.
constexpr uint32_t kSharedKeys = 4096;
// The bitmap's words: 65,536 positions in 8 KB, and their prefix sums in as much again.
constexpr uint32_t kWords = 2048;

struct SelectArguments {
    const float* score;
    const int64_t* visual_index;
    const float* weight;
    int64_t* kept_index;
    uint32_t* workspace_keys;
    uint32_t sequence;
    uint32_t visual;
    uint32_t kept;
};

struct SelectShared {
    uint32_t keys[kSharedKeys];
    uint32_t dropped[kWords];
    uint32_t places[kWords];
    uint32_t histogram[kDigits];
    uint32_t warp_sums[kMostThreads / kWarp];
    uint32_t digit;
    uint32_t rank;
};

// A key whose unsigned order is the order of the debiased scores. NaN and -inf are the lowest finite number,
// +inf is the largest, and -0 equals 0.
__device__ uint32_t order_key(float score, float weight) {
    if (weight == 0.0f)
        return kWeightlessKey;
    float product = score * weight;
    if (!(product >= -FLT_MAX)) // also where it is NaN
        product = -FLT_MAX;
    if (product > FLT_MAX)
        product = FLT_MAX;
    const uint32_t bits = product == 0.0f ? 0 : __float_as_uint(product);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The sum of the values of lower threads, and in total the sum of all. Every thread of the block calls it.
__device__ uint32_t exclusive_sum(uint32_t value, uint32_t* warp_sums, uint32_t& total) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t warp = threadIdx.x / kWarp;
    uint32_t inclusive = value;
    for (uint32_t offset = 1; offset < kWarp; offset *= 2) {
        const uint32_t lower = __shfl_up_sync(kFullWarp, inclusive, offset);
        inclusive += lane >= offset ? lower : 0;
    }
    if (lane == kWarp - 1)
        warp_sums[warp] = inclusive;
    __syncthreads();
    uint32_t before = 0;
    total = 0;
    for (uint32_t other = 0; other < blockDim.x / kWarp; ++other) {
        before += other < warp ? warp_sums[other] : 0;
        total += warp_sums[other];
    }
    __syncthreads(); // the caller may call again at once
    return before + inclusive - value;
}

// Adds 1 to the histogram's bin of each counted lane. Attention scores share their leading digits, so lanes
// of one bin add together instead of queueing for it.
__device__ void count_digits(uint32_t* histogram, bool counted, uint32_t digit) {
    const uint32_t alike = __match_any_sync(kFullWarp, counted ? digit : kDigits);
    const uint32_t lane = threadIdx.x % kWarp;
    if (counted && lane == static_cast<uint32_t>(__ffs(static_cast<int>(alike))) - 1)
        atomicAdd(&histogram[digit], static_cast<uint32_t>(__popc(alike)));
}

// Finds the bin that holds the rank-th largest counted key (rank from 1) and its rank within the bin.
// The first warp calls it.
__device__ void find_digit(SelectShared& shared, uint32_t rank) {
    constexpr uint32_t bins = kDigits / kWarp;
    const uint32_t lane = threadIdx.x;
    // Lane 0 holds the largest digits, each lane its own in falling order.
    const uint32_t first = kDigits - 1 - lane * bins;
    uint32_t own = 0;
    for (uint32_t bin = 0; bin < bins; ++bin)
        own += shared.histogram[first - bin];
    uint32_t inclusive = own;
    for (uint32_t offset = 1; offset < kWarp; offset *= 2) {
        const uint32_t lower = __shfl_up_sync(kFullWarp, inclusive, offset);
        inclusive += lane >= offset ? lower : 0;
    }
    uint32_t above = inclusive - own;
    if (above >= rank || inclusive < rank)
        return; // another lane's
    uint32_t digit = first;
    while (above + shared.histogram[digit] < rank)
        above += shared.histogram[digit--];
    shared.digit = digit;
    shared.rank = rank - above;
}

__device__ void drop(SelectShared& shared, int64_t position, uint32_t first, uint32_t count) {
    if (position >= first && position < static_cast<int64_t>(first) + count) {
        const uint32_t bit = static_cast<uint32_t>(position) - first;
        atomicOr(&shared.dropped[bit / 32], 1u << (bit % 32));
    }
}

__device__ uint32_t kept_bits(const SelectShared& shared, uint32_t word, uint32_t count) {
    const uint32_t left = count - word * 32;
    const uint32_t inside = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    return ~shared.dropped[word] & inside;
}

__global__ void __launch_bounds__(kMostThreads) select_kernel(SelectArguments arguments) {
    __shared__ SelectShared shared;
    const uint32_t thread = threadIdx.x;
    const uint32_t threads = blockDim.x;
    const uint32_t lane = thread % kWarp;
    const uint32_t visual = arguments.visual;
    const uint32_t sequence = arguments.sequence;
    const uint32_t length = sequence - visual + arguments.kept;
    const bool keep_all = arguments.kept == visual;
    const bool keep_none = arguments.kept == 0;
    const float* score = arguments.score + static_cast<size_t>(blockIdx.x) * sequence;
    const int64_t* index = arguments.visual_index + static_cast<size_t>(blockIdx.x) * visual;
    const float* weight = arguments.weight + static_cast<size_t>(blockIdx.x) * visual;
    int64_t* kept_index = arguments.kept_index + static_cast<size_t>(blockIdx.x) * length;
    uint32_t* keys = visual <= kSharedKeys
                         ? shared.keys
                         : arguments.workspace_keys + static_cast<size_t>(blockIdx.x) * visual;

    uint32_t threshold = 0;
    uint32_t equal_kept = 0;
    uint32_t equal_total = 0;
    if (!keep_all && !keep_none) {
        for (uint32_t token = thread; token < visual; token += threads) {
            const int64_t position = index[token];
            if (position < 0 || position >= sequence)
                keys[token] = kWeightlessKey;
            else if (position == static_cast<int64_t>(sequence) - 1)
                keys[token] = kLastPositionKey;
            else
                keys[token] = order_key(score[position], weight[token]);
        }
        uint32_t rank = arguments.kept;
        uint32_t found = 0; // mask of the digits found
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (uint32_t bin = thread; bin < kDigits; bin += threads)
                shared.histogram[bin] = 0;
            __syncthreads(); // also behind the keys
            for (uint32_t base = 0; base < visual; base += threads) {
                const uint32_t token = base + thread;
                const uint32_t key = token < visual ? keys[token] : 0;
                const bool counted = token < visual && (key & found) == threshold;
                count_digits(shared.histogram, counted, (key >> shift) & (kDigits - 1));
            }
            __syncthreads();
            if (thread < kWarp)
                find_digit(shared, rank);
            __syncthreads();
            threshold |= shared.digit << shift;
            found |= (kDigits - 1) << shift;
            rank = shared.rank;
        }
        equal_kept = rank;
        equal_total = shared.histogram[shared.digit];
    }

    uint32_t written = 0;
    for (uint32_t first = 0; first < sequence; first += kWords * 32) {
        const uint32_t count = min(sequence - first, kWords * 32);
        const uint32_t words = (count + 31) / 32;
        for (uint32_t word = thread; word < words; word += threads)
            shared.dropped[word] = 0;
        __syncthreads();
        if (keep_none) {
            for (uint32_t token = thread; token < visual; token += threads)
                drop(shared, index[token], first, count);
        } else if (!keep_all && equal_kept == equal_total) {
            for (uint32_t token = thread; token < visual; token += threads)
                if (keys[token] < threshold)
                    drop(shared, index[token], first, count);
        } else if (!keep_all) {
            // Of the keys equal to the threshold the first ones stay: rank them by index.
            uint32_t seen = 0;
            for (uint32_t base = 0; base < visual; base += threads) {
                const uint32_t token = base + thread;
                const bool equal = token < visual && keys[token] == threshold;
                uint32_t total = 0;
                const uint32_t place = seen + exclusive_sum(equal ? 1 : 0, shared.warp_sums, total);
                if (token < visual && (keys[token] < threshold || (equal && place >= equal_kept)))
                    drop(shared, index[token], first, count);
                seen += total;
            }
        }
        __syncthreads();
        uint32_t stretch = 0;
        for (uint32_t base = 0; base < words; base += threads) {
            const uint32_t word = base + thread;
            const uint32_t ones =
                word < words ? static_cast<uint32_t>(__popc(kept_bits(shared, word, count))) : 0;
            uint32_t total = 0;
            const uint32_t place = stretch + exclusive_sum(ones, shared.warp_sums, total);
            if (word < words)
                shared.places[word] = place;
            stretch += total;
        }
        __syncthreads();
        for (uint32_t word = thread / kWarp; word < words; word += threads / kWarp) {
            const uint32_t bits = kept_bits(shared, word, count);
            const uint32_t place =
                written + shared.places[word] + static_cast<uint32_t>(__popc(bits & ((1u << lane) - 1)));
            if ((bits >> lane & 1) != 0 && place < length)
                kept_index[place] = first + word * 32 + lane;
        }
        written += stretch;
        __syncthreads(); // before the bitmap is cleared
    }
}

} // namespace

size_t workspace_bytes(int64_t batch, int64_t visual) {
    if (batch <= 0 || visual <= kSharedKeys)
        return 0;
    return static_cast<size_t>(batch) * static_cast<size_t>(visual) * sizeof(uint32_t);
}

cudaError_t launch_select(const PruneSizes& sizes, const PruneBuffers& buffers, cudaStream_t stream) {
    if (sizes.batch == 0 || sizes.sequence == 0)
        return cudaSuccess;
    SelectArguments arguments{};
    arguments.score = buffers.score;
    arguments.visual_index = buffers.visual_index;
    arguments.weight = buffers.weight;
    arguments.kept_index = buffers.kept_index;
    arguments.workspace_keys = static_cast<uint32_t*>(buffers.workspace);
    arguments.sequence = static_cast<uint32_t>(sizes.sequence);
    arguments.visual = static_cast<uint32_t>(sizes.visual);
    arguments.kept = static_cast<uint32_t>(sizes.kept);
    // A barrier of few warps is cheaper; a long prompt needs many loads in flight.
    const uint32_t threads = sizes.sequence <= 2048 ? 256 : kMostThreads;
    void* parameters[] = {&arguments};
    return cudaLaunchKernel(select_kernel, dim3(static_cast<uint32_t>(sizes.batch)), dim3(threads),
                            parameters, 0, stream);
}

} // namespace edgeprune
