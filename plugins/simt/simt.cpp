// Runs a kernel's threads as fibers of one thread of the CPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include <ucontext.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr uint32_t kLanes = 32;

enum class State { ready, at_barrier, in_warp, done };

struct Fiber {
    ucontext_t context;
    State state;
    dim3 thread;
    uint32_t exchanges; // warp functions called so far
    int tag;
};

struct Warp {
    // Two sets of values: a lane can be one exchange ahead of one that still reads.
    uint32_t values[2][kLanes];
    uint32_t arrived;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<uint32_t> order; // in which fibers run, whole warps together
    size_t started;              // of the order, those whose thread has begun
    std::vector<Warp> warps;
    ucontext_t scheduler;
    uint32_t running;
    const std::function<void()>* kernel;
};

std::mutex one_launch; // the kernel's shared memory is static
uint32_t order_seed = 0;
Block block;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "kernel on the CPU: %s\n", what);
    std::abort();
}

void switch_to_scheduler(State state) {
    Fiber& fiber = block.fibers[block.running];
    fiber.state = state;
    swapcontext(&fiber.context, &block.scheduler);
}

// Gives the stack at hand to the next thread that has not begun; false where all have.
bool begin_next() {
    if (block.started == block.order.size())
        return false;
    block.running = block.order[block.started++];
    threadIdx = block.fibers[block.running].thread;
    return true;
}

// Where a thread never waits, the next one runs on its stack, without a switch.
void fiber_main() {
    do {
        (*block.kernel)();
        block.fibers[block.running].state = State::done;
    } while (begin_next());
    switch_to_scheduler(State::done);
}

void prepare(ucontext_t& context, char* stack) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
}

void resume(uint32_t number) {
    block.running = number;
    threadIdx = block.fibers[number].thread;
    swapcontext(&block.scheduler, &block.fibers[number].context);
}

void choose_order(std::minstd_rand& random) {
    const uint32_t warps = static_cast<uint32_t>(block.warps.size());
    std::vector<uint32_t> warp_order(warps), lane_order(kLanes);
    std::iota(warp_order.begin(), warp_order.end(), 0u);
    std::iota(lane_order.begin(), lane_order.end(), 0u);
    for (std::vector<uint32_t>* order : {&warp_order, &lane_order}) {
        if (order_seed == 1)
            std::reverse(order->begin(), order->end());
        else if (order_seed > 1)
            std::shuffle(order->begin(), order->end(), random);
    }
    block.order.clear();
    for (const uint32_t warp : warp_order)
        for (const uint32_t lane : lane_order)
            if (warp * kLanes + lane < block.fibers.size())
                block.order.push_back(warp * kLanes + lane);
}

// Resumes fibers until each waits for a barrier, for its warp or is done; false where none could go on. A
// warp runs as far as it can before the next one, as nothing but a barrier holds it.
bool run_ready() {
    bool moved = false;
    for (size_t first = 0; first < block.order.size();) {
        const size_t warp = block.order[first] / kLanes;
        size_t behind = first;
        bool again = true;
        while (again) {
            again = false;
            for (behind = first; behind < block.order.size() && block.order[behind] / kLanes == warp;
                 ++behind)
                if (block.fibers[block.order[behind]].state == State::ready) {
                    resume(block.order[behind]);
                    again = moved = true;
                }
        }
        first = behind;
    }
    return moved;
}

void run_block(char* stacks) {
    std::minstd_rand random(order_seed);
    choose_order(random);
    block.started = 0;
    while (begin_next()) {
        prepare(block.fibers[block.running].context, stacks + block.running * kStackBytes);
        swapcontext(&block.scheduler, &block.fibers[block.running].context);
    }
    for (;;) {
        choose_order(random);
        if (run_ready())
            continue;
        size_t done = 0;
        for (const Fiber& fiber : block.fibers) {
            if (fiber.state == State::in_warp)
                fail("a lane waits in a warp function that others of its warp do not call");
            done += fiber.state == State::done;
        }
        if (done == block.fibers.size())
            return;
        if (done != 0)
            fail("threads wait at a barrier that others of the block have left behind");
        for (Fiber& fiber : block.fibers)
            fiber.state = State::ready;
    }
}

} // namespace

void simt_set_order(uint32_t order) {
    order_seed = order;
}

void simt_block_barrier() {
    switch_to_scheduler(State::at_barrier);
}

const uint32_t* simt_warp_exchange(int tag, uint32_t mask, uint32_t value) {
    if (mask != 0xffffffffu || block.fibers.size() % kLanes != 0 || blockDim.y != 1 || blockDim.z != 1)
        fail("a warp function needs every lane of whole warps along x");
    Fiber& fiber = block.fibers[block.running];
    Warp& warp = block.warps[block.running / kLanes];
    const uint32_t first = block.running / kLanes * kLanes;
    uint32_t* values = warp.values[fiber.exchanges++ % 2];
    values[block.running % kLanes] = value;
    fiber.tag = tag;
    if (++warp.arrived < kLanes) {
        switch_to_scheduler(State::in_warp);
        return values;
    }
    warp.arrived = 0;
    for (uint32_t lane = first; lane < first + kLanes; ++lane) {
        if (block.fibers[lane].tag != tag)
            fail("lanes of one warp call different warp functions");
        block.fibers[lane].state = State::ready;
    }
    return values;
}

void simt_run(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> lock(one_launch);
    const uint32_t count = threads.x * threads.y * threads.z;
    if (count == 0 || count > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0)
        fail("a launch needs 1 to 1024 threads and at least one block");
    // Left as it is, so that only pages in use become memory.
    static const std::unique_ptr<char[]> stacks(new char[1024 * kStackBytes]);
    gridDim = grid;
    blockDim = threads;
    block.kernel = &kernel;
    block.fibers.resize(count);
    block.warps.resize((count + kLanes - 1) / kLanes);
    for (uint64_t index = 0; index < uint64_t{grid.x} * grid.y * grid.z; ++index) {
        blockIdx = dim3(static_cast<uint32_t>(index % grid.x), static_cast<uint32_t>(index / grid.x % grid.y),
                        static_cast<uint32_t>(index / grid.x / grid.y));
        for (Warp& warp : block.warps)
            warp.arrived = 0;
        for (uint32_t number = 0; number < count; ++number) {
            Fiber& fiber = block.fibers[number];
            fiber.state = State::ready;
            fiber.exchanges = 0;
            fiber.thread =
                dim3(number % threads.x, number / threads.x % threads.y, number / threads.x / threads.y);
        }
        run_block(stacks.get());
    }
}
