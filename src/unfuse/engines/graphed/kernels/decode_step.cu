// A whole LLaMA pass over 1 to 16 consecutive tokens of one sequence as one persistent kernel: bfloat16, Hopper.
//
// A pass reads every weight once, so memory bandwidth limits its speed. Each SM runs one thread block for the whole pass.
// Its producer warp streams the block's share of every weight matrix through a ring in shared memory with bulk copies;
// because weights do not depend on activations, this warp prefetches the next product while the other warps wait at a grid
// barrier. Sixteen warps compute. A layer is five phases with a grid barrier between them:
//
//     qkv = Wqkv norm(x)  |  attention  |  x += Wo attended  |  inner = silu(G y) * U y, y = norm(x)  |  x += Wd inner
//
// and the head is the last phase of a pass.
//
// The bits of a token do not depend on how many tokens are in the pass. Each product puts weight rows on the M and tokens
// on the N of an mma. An element of C depends only on its row of A, its column of B and its accumulator, so the other
// tokens of a pass cannot change the element. The order of every sum depends on K only: a warp adds up its columns in one
// chain of accumulators per run and then adds the chains, the partial sums of the sixteen warps are added as a fixed tree,
// and a K above SLICE columns is summed slice by slice. Attention assigns a position to a stage, a warp and a block by the
// absolute position, whether the position is cached or new. Some multiplications and additions are written as intrinsics:
// the compiler could fuse them to an fma in one template instance and not in another.
//
// A tile is ROWS = 16 / RUNS weight rows with all columns of K; a stage is COLUMNS columns of a tile. An mma has 16 rows
// of A, so each weight row fills RUNS rows of A. A warp splits its columns into RUNS runs (see Fragment). A row of A is
// one run of a weight row, and a column of B is one run of a token. C then has the product of every run of a row with
// every run of a token. The sum of the products with equal run numbers is the result; the kernel discards the rest of C.
// More runs give smaller tiles, which spread more evenly over the blocks, and longer copies of each row. Fewer runs
// discard less of the tensor cores' work.
//
// An atomic counter assigns most tiles (work stealing), since memory latency differs between SMs. The result does not
// depend on the block that computes a tile.
//
// Activations that products read are stored in the order of B fragments (see Fragment), norm weights too.
//
// Macros: LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY, HEAD_NORMS, PROGRAMS, STAGES, SPLITS, TOKENS, RUNS,
// FLIGHT, SETMAXNREG, SHARED_BYTES. PROGRAMS: blocks of the grid, one per SM. STAGES: stages of the ring; at most FLIGHT stages
// have copies in flight. SPLITS: blocks (1 or 2) that share an attention head; the grid consists of clusters of SPLITS blocks.
// TOKENS: most tokens of a pass (4, 8 or 16). RUNS: runs of a weight row (1, 2 or 4). SETMAXNREG: with 1, registers move from
// the producer's warpgroup to the computing warps. SHARED_BYTES: dynamic shared memory of the launch. HIDDEN, INNER and
// HEADS * HEAD_SIZE are multiples of 256; HEAD_SIZE is 64 or 128. All blocks must be resident, since they wait for each other.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INFINITE __int_as_float(0x7f800000)
constexpr int WARPS = 16;                          // computing warps; one more warp copies
constexpr int THREADS = 32 * WARPS;
constexpr int BLOCK_THREADS = THREADS + (SETMAXNREG ? 128 : 32);  // setmaxnreg counts in warpgroups of 4 warps
constexpr int ROWS = 16 / RUNS;                    // rows of a tile
constexpr int WARP_COLUMNS = 32 * RUNS;            // columns of a stage for each warp: two mma of 16 columns for each run
constexpr int COLUMNS = WARPS * WARP_COLUMNS;      // columns of a stage
constexpr int SLICE = 4096;                        // columns of K that are summed at once
constexpr int BOX = 64;                            // columns of one line of a stage: 128 bytes, the width of the copy engine's swizzle
constexpr int POSITIONS = 4096 / HEAD_SIZE;        // keys and values of a stage
constexpr int POSITION_BYTES = 2 * HEAD_SIZE;
constexpr int VALUES = POSITIONS * POSITION_BYTES;  // where a stage's values begin
constexpr int STAGE_BYTES = 2 * ROWS * COLUMNS;
constexpr int PER_MMA = 8 / RUNS;                  // tokens of an mma
constexpr int MIN_TOKENS = RUNS == 1 ? 8 : 4;          // tokens of the smallest code path
constexpr int RESULTS = ROWS * TOKENS > 128 ? ROWS * TOKENS : 128;  // results of a batch of tiles, or of the largest tile
constexpr int PARTS = THREADS / RESULTS;           // lanes that add the partial sums of a result
constexpr int SUMS_PITCH = RESULTS + 32 / PARTS;   // padded against bank conflicts between the warps' sums
constexpr int WIDTH = HEADS * HEAD_SIZE;
constexpr int QKV = WIDTH + 2 * KV_HEADS * HEAD_SIZE;
constexpr int GROUP = HEADS / KV_HEADS;          // query heads per KV head
constexpr int HALF = HEAD_SIZE / 2;
constexpr int WARP_PAIRS = WARPS / 2;                   // pairs of warps in attention; each pair takes every eighth stage
constexpr int OUT_ROWS = 4;                        // tokens whose partial attention is merged at once
constexpr int UNIT = 8;                            // elements per unit of an offset into a cache
constexpr int ENTRIES = 8;                         // table entries per layer
constexpr int END = -1;                            // tag of the stage after the last stage of a product or slice
constexpr int PRODUCTS = 4;                        // products of a layer

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int slices(int k) { return divide_up(k, SLICE); }
// Tiles per block of a product that is summed slice by slice: they are assigned statically, and their sums stay in the block.
__host__ __device__ constexpr int static_tiles(int k, int tiles) { return slices(k) > 1 ? divide_up(tiles, PROGRAMS) : 0; }
constexpr int QKV_TILES = QKV / ROWS, HIDDEN_TILES = HIDDEN / ROWS, INNER_TILES = 2 * INNER / ROWS, HEAD_TILES = divide_up(VOCABULARY, ROWS);
constexpr int MAX_STATIC_TILES = larger(larger(static_tiles(HIDDEN, QKV_TILES), static_tiles(WIDTH, HIDDEN_TILES)),
                            larger(larger(static_tiles(HIDDEN, INNER_TILES), static_tiles(INNER, HIDDEN_TILES)), static_tiles(HIDDEN, HEAD_TILES)));

enum Entry { QKV_B, OUT_B, GATE_UP_B, DOWN_B, INPUT_NORM, POST_NORM, Q_NORM, K_NORM };
enum HeadEntry { HEAD_B, FINAL_NORM };
enum Kind { QKV_OF, OUT, GATE_UP, DOWN, HEAD };  // product; the first four in the order of their biases above

// Tensor maps of all weight matrices, in the order of use. One copy by a map is one stage: ROWS rows x COLUMNS columns. In
// shared memory a stage is [COLUMNS / BOX][ROWS] lines of BOX columns.
struct __align__(64) TensorMap {
    char opaque[128];
};
extern "C" __constant__ TensorMap maps[LAYERS * PRODUCTS + 1] = {};

struct Shared {
    u64 full[STAGES], empty[STAGES], partner;
    int tags[(STAGES + 3) / 4 * 4];  // the tile of each stage
    u64 table[(LAYERS + 1) * ENTRIES];
    __align__(16) float squares[TOKENS][WARPS];
    float2 received_softmax[TOKENS], partial_softmax[WARP_PAIRS][16];  // (largest score, softmax denominator)
    union {
        float received[TOKENS * HEAD_SIZE];                 // partial result of the cluster's second block
        float slice_sums[larger(MAX_STATIC_TILES, 1) * ROWS * TOKENS];        // sums of earlier slices
    };
    union __align__(16) {
        float sums[2][WARPS][SUMS_PITCH];
        struct {
            bf16 q[16][HEAD_SIZE + 32], k[TOKENS][HEAD_SIZE], v[TOKENS][HEAD_SIZE];
        } new_tokens;
        float attended[WARP_PAIRS * OUT_ROWS * HEAD_SIZE];
    };
};

static_assert(STAGES * STAGE_BYTES + sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is too small");

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float((u32)value << 16); }
__device__ __forceinline__ u32 packed(float first, float second) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
__device__ __forceinline__ bf16 to_bf16(float value) { return (bf16)packed(value, 0.0f); }
__device__ __forceinline__ float rounded(float value) { return low(packed(value, 0.0f)); }
__device__ __forceinline__ float power_of_2(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
// Avoids NaN in exp2(score - largest) where there is no position at all.
__device__ __forceinline__ float finite(float score) { return score == -INFINITE ? 0.0f : score; }

// Volatile, so that each phase reads it: values that the compiler derives once for all phases would occupy registers.
__device__ __forceinline__ int thread_index() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    __builtin_assume(thread >= 0 && thread < THREADS);
    return thread;
}
__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }
__device__ __forceinline__ void wait(u64* barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!done);
}
__device__ __forceinline__ uint4 shared_words(u32 at) {
    uint4 found;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "r"(at) : "memory");
    return found;
}
__device__ __forceinline__ u32 transposed(u32 matrix) {
    u32 result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
    return result;
}
__device__ __forceinline__ u32 times(u32 a, u32 b) {
    u32 result;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
__device__ __forceinline__ void exchange(bool swap, u32& a, u32& b) {
    const u32 first = swap ? b : a;
    b = swap ? a : b, a = first;
}
__device__ __forceinline__ void load_matrices(u32* to, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load_transposed(u32* to, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Barrier of the sixteen computing warps; the producer warp is not in it.
__device__ __forceinline__ void block_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// Writes of all blocks before the barrier are visible to all blocks after it. The increments of all blocks add up to 2^31:
// block 0 adds 2^31 - (PROGRAMS - 1), every other block adds 1. So the counter's top bit flips when the last block arrives,
// and the counter needs no reset.
__device__ __forceinline__ void grid_barrier(u32* counter) {
    block_barrier();
    if (threadIdx.x == 0) {
        u32 before, now;
        const u32 mine = blockIdx.x == 0 ? 0x80000000u - (PROGRAMS - 1) : 1;
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(mine) : "memory");
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        } while (!((before ^ now) & 0x80000000u));
    }
    block_barrier();
}

// Order of B fragments. Activations are stored in this order, so that one 16-byte load gives a lane the words of a stage
// that the lane passes to its mma. A warp has WARP_COLUMNS columns of a stage, in chunks of 8. A chunk is one half of the K
// of one mma of one run. A lane holds 2 columns of each chunk of its run.
struct Fragment {
    // Number of a chunk among the warp's columns.
    // step: 0 or 1, the first or the second mma of the stage.
    // upper: 1 for rows 8 to 15 of A and C. With 2 runs the run itself, with 4 runs the high bit of the run.
    // half: 0 for columns 0 to 7 of the mma's K, 1 for columns 8 to 15.
    // lower: with 4 runs the low bit of the run.
    // With 2 runs, run 0 is thus columns 0 to 15 and 32 to 47, run 1 is columns 16 to 31 and 48 to 63.
    __device__ __forceinline__ static constexpr int chunk(int step, int upper, int half, int lower) {
        return RUNS == 4 ? step * 8 + lower * 4 + upper * 2 + half : RUNS == 2 ? step * 4 + upper * 2 + half : step * 2 + half;
    }
    // Index at which a column is stored.
    __device__ __forceinline__ static u32 index(u32 column) {
        const u32 at = column % WARP_COLUMNS, chunk = at / 8, step = chunk / (2 * RUNS), half = chunk % 2;
        const u32 run = RUNS == 4 ? chunk / 2 % 2 * 2 + chunk / 4 % 2 : RUNS == 2 ? chunk / 2 % 2 : 0;
        return column - at + ((run * 4 + at % 8 / 2) * 4 + step * 2 + half) * 2 + at % 2;
    }
    // Byte offset of a chunk of a row in a stage; ``chunk`` counts among the columns of the thread's warp. A line has 8 chunks
    // of 16 bytes. The copy engine stores chunk i of a line at i ^ (line % 8), so the 8 rows of an ldmatrix do not meet in a bank.
    __device__ __forceinline__ static u32 in_stage(int thread, int row, int chunk) {
        const int column = thread / 32 * WARP_COLUMNS + chunk * 8, line = column / BOX * ROWS + row;
        return line * 128 + (column % BOX / 8 ^ line % 8) * 16;
    }
    // Run and token of column n = lane / 4 of B. A lane holds columns 2 j and 2 j + 1 of C (j = lane % 4), so with 2 runs both
    // runs of token j are in one lane and can be added without a shuffle.
    __device__ __forceinline__ static int run(int thread) {
        const int n = thread % 32 / 4;
        return RUNS == 4 ? n % 2 * 2 + n / 2 % 2 : RUNS == 2 ? n % 2 : 0;
    }
    __device__ __forceinline__ static int token(int thread) {
        const int n = thread % 32 / 4;
        return RUNS == 4 ? n / 4 : RUNS == 2 ? n / 2 : n / 2 + n % 2 * 4;
    }
    __device__ __forceinline__ static int offset(int thread) { return (run(thread) * 4 + thread % 4) * 8; }
    // Lanes of a warp (a power of two) that hold words of one token.
    static constexpr int LANES = 4 * RUNS;
};

// This block's share of attention: one head, and every SPLITS-th stage of its positions.
struct HeadSplit {
    bool active;
    int head, split;
    __device__ __forceinline__ HeadSplit() : active(blockIdx.x < HEADS * SPLITS), head(active ? blockIdx.x / SPLITS : 0), split(blockIdx.x % SPLITS) {}
};

// Keys and values of the sequence, ``[LAYERS, 2, KV_HEADS, capacity, HEAD_SIZE]``.
struct Cache {
    bf16* at;
    long long capacity;
    int length, tokens;  // cached positions before this pass, new tokens
    __device__ bf16* keys(int layer, int head) const {
        return at + ((long long)layer * 2 * KV_HEADS + head) * capacity * HEAD_SIZE;
    }
    __device__ bf16* values(int layer, int head) const { return keys(layer, head) + KV_HEADS * capacity * HEAD_SIZE; }
    __device__ int end() const { return length + tokens; }
};

// A slot of the ring, and the parity of the number of rounds over the ring.
struct RingCursor {
    int slot = 0;
    u32 parity = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

// A product of the pass: four in each layer, then the head.
struct Product {
    int layer, kind, k, tiles;
    __device__ __forceinline__ Product(int index) : layer(index / PRODUCTS), kind(index == LAYERS * PRODUCTS ? HEAD : index % PRODUCTS) {
        k = kind == OUT ? WIDTH : kind == DOWN ? INNER : HIDDEN;
        tiles = kind == QKV_OF ? QKV_TILES : kind == GATE_UP ? INNER_TILES : kind == HEAD ? HEAD_TILES : HIDDEN_TILES;
    }
    // Whether K exceeds a slice: the sum runs slice by slice, and tiles are assigned statically.
    __device__ __forceinline__ bool sliced() const { return k > SLICE; }
    __device__ __forceinline__ int first() const { return divide_up(tiles, PROGRAMS) * blockIdx.x; }
    __device__ __forceinline__ bool normed() const { return kind == QKV_OF || kind == GATE_UP || kind == HEAD; }
};

// The producer: one thread.
struct Producer {
    Shared& shared;
    char* ring;
    u32* tile_counters;
    u64 policy;
    RingCursor cursor, oldest;
    int in_flight = 0;

    // Waits until the next slot of the ring is empty, writes the stage's tag and announces ``bytes`` to the full barrier.
    __device__ __forceinline__ void acquire(int tag, u32 bytes) {
        // In the first round the barrier is new, and a wait for parity 1 returns at once. In each later round the wait ends
        // when all 16 warps have released the slot of the round before.
        wait(shared.empty + cursor.slot, cursor.parity ^ 1);
        // At most FLIGHT stages have copies in flight. More would delay every other access to the L2.
        if (FLIGHT < STAGES) {
            if (in_flight == FLIGHT) wait(shared.full + oldest.slot, oldest.parity), oldest.advance();
            else ++in_flight;
        }
        shared.tags[cursor.slot] = tag;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(shared.full + cursor.slot)), "r"(bytes) : "memory");
    }
    __device__ __forceinline__ void copy(const bf16* from, u32 offset, u32 bytes) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                     ::"r"(shared_address(ring) + cursor.slot * STAGE_BYTES + offset), "l"(from), "r"(bytes),
                       "r"(shared_address(shared.full + cursor.slot)), "l"(policy) : "memory");
    }
    // Copies one stage of a tile: COLUMNS columns from ``column`` on; elements outside the matrix are zeros. With ``gated``,
    // even rows of the tile are rows of gate, odd rows are rows of up.
    __device__ __forceinline__ void copy_tile(const TensorMap* map, bool gated, int tile, int column) {
        const u32 to = shared_address(ring) + cursor.slot * STAGE_BYTES, full = shared_address(shared.full + cursor.slot);
        if (gated)
            asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %3, %4, %5}], [%2], %6;"
                         ::"r"(to), "l"(map), "r"(full), "r"(0), "r"(tile * (ROWS / 2)), "r"(column / BOX), "l"(policy) : "memory");
        else
            asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;"
                         ::"r"(to), "l"(map), "r"(full), "r"(0), "r"(tile * ROWS), "r"(column / BOX), "l"(policy) : "memory");
    }

    // Copies this block's tiles of a product: first the static tiles, then the tiles of drawn tickets. Each slice ends with a
    // stage without data, whose tag is END.
    __device__ __forceinline__ void product(const Product& product, const TensorMap* map, u32* tile_counter) {
        const int per_block = divide_up(product.tiles, PROGRAMS), own = product.sliced() ? per_block : (product.tiles / PROGRAMS + 7) / 8;
        const int first = own * blockIdx.x, last = first + own < product.tiles ? first + own : product.tiles;
        // Draw the next ticket one tile ahead, so that the copies do not wait for the atomic addition.
        int next = product.sliced() ? product.tiles : own * PROGRAMS + atomicAdd(tile_counter, 1);
#pragma unroll 1
        for (int begin = 0; begin < product.k; begin += SLICE) {
            const int end = begin + SLICE < product.k ? begin + SLICE : product.k;
#pragma unroll 1
            for (int i = first;; ++i) {
                int tile = i;
                if (i >= last) {
                    tile = next;
                    if (tile >= product.tiles) break;
                    next = own * PROGRAMS + atomicAdd(tile_counter, 1);
                }
#pragma unroll 1
                for (int column = begin; column < end; column += COLUMNS) {
                    acquire(tile, STAGE_BYTES);
                    copy_tile(map, product.kind == GATE_UP, tile, column);
                    cursor.advance();
                }
            }
            acquire(END, 0);
            cursor.advance();
        }
    }

    __device__ __forceinline__ void keys_and_values(const Cache& cache, int layer) {
        const HeadSplit head_split;
        if (!head_split.active) return;
#pragma unroll 1
        for (int at = head_split.split * POSITIONS; at < cache.end(); at += SPLITS * POSITIONS) {
            // The copy covers positions after the cached positions too: ``insert`` replaces the new positions, and later
            // positions are masked. The copy must not read beyond the cache's capacity.
            const int room = (int)cache.capacity - at;
            const u32 bytes = POSITION_BYTES * (room < POSITIONS ? room : POSITIONS);
            acquire(0, 2 * bytes);
            copy(cache.keys(layer, head_split.head / GROUP) + (long long)at * HEAD_SIZE, 0, bytes);
            copy(cache.values(layer, head_split.head / GROUP) + (long long)at * HEAD_SIZE, VALUES, bytes);
            cursor.advance();
        }
    }

    __device__ void all(const Cache& cache) {
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#pragma unroll 1
        for (int index = 0; index <= LAYERS * PRODUCTS; ++index) {
            const Product now(index);
            if (now.kind == OUT) keys_and_values(cache, now.layer);
            // Prefetch the next product's tensor map.
            if (index < LAYERS * PRODUCTS) asm volatile("prefetch.tensormap [%0];" ::"l"(maps + index + 1) : "memory");
            product(now, maps + index, tile_counters + index);
        }
    }
};

// Consumer of the ring: a computing warp.
struct Consumer {
    Shared& shared;
    u32 ring;
    RingCursor cursor;

    // Waits until the oldest stage is full, and returns its address.
    __device__ __forceinline__ u32 wait_full() {
        wait(shared.full + cursor.slot, cursor.parity);
        return ring + cursor.slot * STAGE_BYTES;
    }

    // Marks the stage as read by this warp.
    __device__ __forceinline__ void release() {
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(shared.empty + cursor.slot)) : "memory");
        cursor.advance();
    }
};

// Attention of one head's new tokens to the block's share of the positions. Tokens are on the mma's N. The M has positions
// when scores are computed, and dimensions when values are added up.
struct Attention {
    Shared& shared;
    const HeadSplit head_split;

    // Norms and rotates one head's query or key of one token; one warp.
    __device__ __forceinline__ void rotate(bf16* out, const bf16* from, u64 weights, const bf16* cosine, const bf16* sine, float eps, bf16* cached) {
        const int lane = threadIdx.x % 32;
        const bf16* weight = (const bf16*)weights;
        float lows[HALF / 32], highs[HALF / 32], square = 0;
#pragma unroll
        for (int i = 0; i < HALF / 32; ++i) lows[i] = to_float(__ldcg(from + lane + 32 * i)), highs[i] = to_float(__ldcg(from + HALF + lane + 32 * i));
        float scale = 1;
        if (HEAD_NORMS) {
#pragma unroll
            for (int i = 0; i < HALF / 32; ++i) square = __fmaf_rn(highs[i], highs[i], __fmaf_rn(lows[i], lows[i], square));
#pragma unroll
            for (int distance = 16; distance; distance /= 2) square = __fadd_rn(square, __shfl_xor_sync(~0u, square, distance));
            scale = rsqrtf(__fadd_rn(__fdiv_rn(square, HEAD_SIZE), eps));
        }
#pragma unroll
        for (int i = 0; i < HALF / 32; ++i) {
            const int at = lane + 32 * i;
            if (HEAD_NORMS) {
                lows[i] = __fmul_rn(rounded(__fmul_rn(lows[i], scale)), to_float(weight[at]));
                highs[i] = __fmul_rn(rounded(__fmul_rn(highs[i], scale)), to_float(weight[HALF + at]));
            }
            const float c = to_float(cosine[at]), s = to_float(sine[at]);
            const bf16 first = to_bf16(__fmaf_rn(lows[i], c, -__fmul_rn(highs[i], s))), second = to_bf16(__fmaf_rn(highs[i], c, __fmul_rn(lows[i], s)));
            out[at] = first, out[HALF + at] = second;
            if (cached) cached[at] = first, cached[HALF + at] = second;
        }
    }

    // Prepares this head's queries and the new positions' keys and values; one block per KV head also caches them.
    __device__ __forceinline__ void prepare(const Cache& cache, int layer, const bf16* qkv, const bf16* cosine, const bf16* sine, float eps) {
        const int thread = thread_index(), token = thread / 32, lane = thread % 32, kv_head = head_split.head / GROUP;
        const u64* entries = shared.table + layer * ENTRIES;
        if (token < cache.tokens) {
            const bool caches = head_split.split == 0 && head_split.head % GROUP == 0 && cache.length + token < cache.capacity;
            const long long to = (long long)(cache.length + token) * HEAD_SIZE;
            const bf16 *from = qkv + token * QKV, *c = cosine + token * HALF, *s = sine + token * HALF;
            const bf16* value = from + WIDTH + (KV_HEADS + kv_head) * HEAD_SIZE;
            bf16 values[HEAD_SIZE / 32];
#pragma unroll
            for (int i = 0; i < HEAD_SIZE / 32; ++i) values[i] = __ldcg(value + lane + 32 * i);
            rotate(shared.new_tokens.q[token], from + head_split.head * HEAD_SIZE, entries[Q_NORM], c, s, eps, nullptr);
            rotate(shared.new_tokens.k[token], from + WIDTH + kv_head * HEAD_SIZE, entries[K_NORM], c, s, eps, caches ? cache.keys(layer, kv_head) + to : nullptr);
#pragma unroll
            for (int i = 0; i < HEAD_SIZE / 32; ++i) {
                shared.new_tokens.v[token][lane + 32 * i] = values[i];
                if (caches) cache.values(layer, kv_head)[to + lane + 32 * i] = values[i];
            }
        }
        block_barrier();
    }

    // Inserts the new tokens' keys and values into a stage, and zeros as the values of later positions: a masked position has
    // weight 0, and 0 * NaN is NaN. Both warps of a pair write every new key, and each warp writes all values that the warp
    // reads. So neither warp waits for the other.
    template <bool WIDE>
    __device__ __forceinline__ void insert(char* stage, int at, const Cache& cache, int half) {
        constexpr int WORDS = HEAD_SIZE / 8, OWN_WORDS = WIDE ? WORDS : WORDS / 2;
        const int lane = threadIdx.x % 32;
        for (int i = lane; i < cache.tokens * WORDS; i += 32) {
            const int token = i / WORDS, position = cache.length + token - at;
            if (position >= 0 && position < POSITIONS)
                *(uint4*)(stage + position * POSITION_BYTES + i % WORDS * 16) = ((const uint4*)shared.new_tokens.k[token])[i % WORDS];
        }
        const int first = cache.length > at ? cache.length - at : 0;
        for (int i = first * OWN_WORDS + lane; i < POSITIONS * OWN_WORDS; i += 32) {
            const int position = i / OWN_WORDS, token = at + position - cache.length, word = (WIDE ? 0 : half * OWN_WORDS) + i % OWN_WORDS;
            *(uint4*)(stage + VALUES + position * POSITION_BYTES + word * 16) =
                token < cache.tokens ? ((const uint4*)shared.new_tokens.v[token])[word] : make_uint4(0, 0, 0, 0);
        }
        __syncwarp();
    }

    // Writes ``attended [TOKENS, WIDTH]`` in fragment order. Each pair of warps takes every eighth stage. With up to 8 tokens
    // both warps of a pair compute all scores, and each warp adds up half of the dimensions. With more tokens (WIDE) each warp
    // takes 8 tokens and all dimensions. Every sum has the same order in both cases.
    template <bool WIDE>
    __device__ __forceinline__ void attend(Consumer& consumer, char* ring, const Cache& cache, int layer, float scale, bf16* out) {
        constexpr int TILES = POSITIONS / 16,            // groups of 16 positions in a stage
            WORDS = HEAD_SIZE / 32,                      // blocks of 32 dimensions of a key: a lane reads 16 bytes of each
            CHUNKS = HEAD_SIZE / (WIDE ? 32 : 64);       // blocks of 32 dimensions whose values this warp adds up
        const int thread = thread_index(), warp = thread / 32, lane = thread % 32, pair = warp / 2, half = warp % 2, matrix = lane / 8;
        // Rows of keys are not padded, so all rows start in the same bank. A lane reads two 16-byte words of a key (each holds
        // the operands of two mma). Lanes of odd keys read their two words in reverse order, so that keys 2 i and 2 i + 1 use
        // different banks.
        const bool odd = lane / 4 % 2;
        const int first_token = WIDE ? half * 8 : 0, first_dim = WIDE ? 0 : half * HALF;
        const u32 queries = shared_address(shared.new_tokens.q[first_token + lane / 4]) + lane % 4 * 16, keys = lane / 4 * POSITION_BYTES + lane % 4 * 16 + odd * 64;
        // Rows of values start in the same bank too. Four chunks of 8 dimensions make a block of 32. To avoid bank conflicts,
        // positions 2 i and 2 i + 1 read chunk c ^ (i % 4) in place of chunk c.
        const u32 values = VALUES + (lane % 8 + matrix % 2 * 8) * POSITION_BYTES + first_dim * 2, value_chunk = (matrix / 2 ^ lane % 8 / 2) * 16;
        float o[2 * CHUNKS][4] = {}, running_max[2] = {-INFINITE, -INFINITE}, weight[2] = {};
        int turn = 0;
#pragma unroll 1
        for (int at = head_split.split * POSITIONS; at < cache.end(); at += SPLITS * POSITIONS, turn = (turn + 1) % WARP_PAIRS) {
            const u32 stage = consumer.wait_full();
            if (turn == pair) {
                if (at + POSITIONS > cache.length) insert<WIDE>(ring + consumer.cursor.slot * STAGE_BYTES, at, cache, half);
                u32 p[TILES][2];
                // Two chains of accumulators, for even and for odd blocks of 32 dimensions: in a single chain each mma would wait
                // for the mma before.
                float score[2][TILES][4] = {};
#pragma unroll
                for (int word = 0; word < WORDS; word += 2) {
                    const u32 query = queries + word * 64;
                    const uint4 b[2] = {shared_words(query), shared_words(query + 64)};
#pragma unroll
                    for (int tile = 0; tile < TILES; ++tile) {
                        uint4 a[2][2];  // [positions 0 to 7 or 8 to 15][chain]
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            const u32 from = stage + (tile * 16 + i * 8) * POSITION_BYTES + word * 64;
                            const uint4 one = shared_words(from + keys), two = shared_words(from + (keys ^ 64));
                            a[i][0] = odd ? two : one, a[i][1] = odd ? one : two;
                        }
#pragma unroll
                        for (int chain = 0; chain < 2; ++chain) {
                            const u32 first[4] = {a[0][chain].x, a[1][chain].x, a[0][chain].y, a[1][chain].y};
                            const u32 second[4] = {a[0][chain].z, a[1][chain].z, a[0][chain].w, a[1][chain].w};
                            mma(score[chain][tile], first, b[chain].x, b[chain].y), mma(score[chain][tile], second, b[chain].z, b[chain].w);
                        }
                    }
                }
                // Rows of C are positions, columns are tokens. A lane holds two positions of two tokens.
                float new_max[2] = {-INFINITE, -INFINITE};
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int position = at + tile * 16 + i / 2 * 8 + lane / 4, token = first_token + lane % 4 * 2 + i % 2;
                        float& value = score[0][tile][i];
                        value = position <= cache.length + token ? __fmul_rn(__fadd_rn(value, score[1][tile][i]), scale) : -INFINITE;
                        new_max[i % 2] = fmaxf(new_max[i % 2], value);
                    }
                float safe[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
#pragma unroll
                    for (int distance = 4; distance < 32; distance *= 2) new_max[i] = fmaxf(new_max[i], __shfl_xor_sync(~0u, new_max[i], distance));
                    new_max[i] = fmaxf(new_max[i], running_max[i]);
                    safe[i] = finite(new_max[i]);
                    const float rescale = power_of_2(__fadd_rn(running_max[i], -safe[i]));
                    running_max[i] = new_max[i], weight[i] = __fmul_rn(weight[i], rescale);
#pragma unroll
                    for (int j = 0; j < 2 * CHUNKS; ++j) o[j][i] = __fmul_rn(o[j][i], rescale), o[j][2 + i] = __fmul_rn(o[j][2 + i], rescale);
                }
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float* two = score[0][tile] + 2 * i;
                        two[0] = power_of_2(__fadd_rn(two[0], -safe[0])), two[1] = power_of_2(__fadd_rn(two[1], -safe[1]));
                        weight[0] = __fadd_rn(weight[0], two[0]), weight[1] = __fadd_rn(weight[1], two[1]);
                        p[tile][i] = transposed(packed(two[0], two[1]));
                    }
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                        u32 a[2][4];
                        const u32 from = stage + values + tile * 16 * POSITION_BYTES + chunk * 64;
                        load_transposed(a[0], from + value_chunk), load_transposed(a[1], from + (value_chunk ^ 32));
                        // Of the eight registers in ``a``, 2 i and 2 i + 1 hold chunk i ^ (lane % 4). Exchange registers until 2 i
                        // and 2 i + 1 hold chunk i.
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            exchange(lane & 1, a[0][i], a[0][2 + i]), exchange(lane & 1, a[1][i], a[1][2 + i]);
                            exchange(lane & 2, a[0][i], a[1][i]), exchange(lane & 2, a[0][2 + i], a[1][2 + i]);
                        }
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            const u32 rows[4] = {a[i][0], a[i][2], a[i][1], a[i][3]};
                            mma(o[2 * chunk + i], rows, p[tile][0], p[tile][1]);
                        }
                    }
                // This warp wrote to the stage by ordinary stores. The fence orders these stores before the next bulk copy into
                // the slot, which is a write of the async proxy.
                if (at + POSITIONS > cache.length) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            }
            consumer.release();
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) weight[i] = __fadd_rn(weight[i], __shfl_xor_sync(~0u, weight[i], distance));
            if ((WIDE || half == 0) && lane < 4) shared.partial_softmax[pair][first_token + lane * 2 + i] = make_float2(running_max[i], weight[i]);
        }
        // ``attended`` and the queries share memory (union): no warp may still read the queries.
        block_barrier();
#pragma unroll 1
        for (int first = 0; first < cache.tokens; first += OUT_ROWS) {
            if (lane % 4 / 2 == first / 4 % 2 && (!WIDE || half == first / 8)) {
#pragma unroll
                for (int j = 0; j < 2 * CHUNKS; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int row = lane % 2 * 2 + i % 2, dim = first_dim + j * 16 + i / 2 * 8 + lane / 4;
                        // Swizzled by the row to avoid bank conflicts.
                        shared.attended[(pair * OUT_ROWS + row) * HEAD_SIZE + (dim ^ row * 8)] = o[j][i];
                    }
            }
            block_barrier();
            const int row = thread / HEAD_SIZE, dim = thread % HEAD_SIZE, token = first + row;
            if (row < OUT_ROWS && token < cache.tokens) finish(row, dim, token, layer, out);
            if (first + OUT_ROWS < cache.tokens) block_barrier();
        }
        // The warps of the second block arrive at ``partner`` of the first block after they have sent their results.
        if (SPLITS == 2 && head_split.split == 1) {
            __syncwarp();
            if (lane == 0) asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(in_first_block(&shared.partner)) : "memory");
        }
    }

    __device__ __forceinline__ static u32 in_first_block(const void* at) {
        u32 address;
        asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(address) : "r"(shared_address(at)));
        return address;
    }

    // Merges one element of one token over the pairs of warps, then over the two blocks of the cluster.
    __device__ __forceinline__ void finish(int row, int dim, int token, int layer, bf16* out) {
        float new_max = -INFINITE, sum = 0, weight = 0;
#pragma unroll
        for (int i = 0; i < WARP_PAIRS; ++i) new_max = fmaxf(new_max, shared.partial_softmax[i][token].x);
#pragma unroll
        for (int i = 0; i < WARP_PAIRS; ++i) {
            const float2 other_softmax = shared.partial_softmax[i][token];
            const float factor = power_of_2(__fadd_rn(other_softmax.x, -finite(new_max)));
            weight = __fmaf_rn(other_softmax.y, factor, weight);
            sum = __fmaf_rn(shared.attended[(i * OUT_ROWS + row) * HEAD_SIZE + (dim ^ row * 8)], factor, sum);
        }
        if (SPLITS == 2 && head_split.split == 1) {
            asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(in_first_block(shared.received + token * HEAD_SIZE + dim)), "f"(sum) : "memory");
            if (dim == 0)
                asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(in_first_block(shared.received_softmax + token)), "f"(new_max), "f"(weight) : "memory");
            return;
        }
        if (SPLITS == 2) {
            u32 done;
            do {
                asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                             : "=r"(done) : "r"(shared_address(&shared.partner)), "r"(layer & 1) : "memory");
            } while (!done);
            // Position 0 belongs to this block, so this block's maximum is finite.
            const float2 other_softmax = shared.received_softmax[token];
            const float highest = fmaxf(new_max, other_softmax.x), own = power_of_2(__fadd_rn(new_max, -highest)), other = power_of_2(__fadd_rn(other_softmax.x, -highest));
            sum = __fmaf_rn(shared.received[token * HEAD_SIZE + dim], other, __fmul_rn(sum, own));
            weight = __fmaf_rn(other_softmax.y, other, __fmul_rn(weight, own));
        }
        out[token * WIDTH + Fragment::index(head_split.head * HEAD_SIZE + dim)] = to_bf16(__fdiv_rn(sum, weight));
    }
};

struct Arguments {
    bf16* x;               // [TOKENS, HIDDEN], embeddings in fragment order
    float* logits;         // [TOKENS, VOCABULARY]
    const bf16 *cosine, *sine;  // [TOKENS, HEAD_SIZE / 2]
    bf16 *qkv, *attended, *inner;  // [TOKENS, ...]; the last two in fragment order
    u32 *counter, *tile_counters;
    float eps, scale;
};

// All products of a pass of up to TC tokens, by the computing warps. All products share one copy of each loop, so that the
// code stays in the instruction cache: fetching instructions takes long while the memory is busy.
template <int TC>
struct Pass {
    static constexpr int CHUNKS = divide_up(larger(larger(HIDDEN, WIDTH), INNER) < SLICE ? larger(larger(HIDDEN, WIDTH), INNER) : SLICE, COLUMNS);
    static constexpr int BLOCKS = divide_up(TC, PER_MMA);
    static constexpr int TILE = ROWS * TC, BATCH = RESULTS / TILE;  // results of a tile; tiles between two barriers of the block

    Shared& shared;
    const Arguments& arguments;
    Consumer& consumer;
    const int tokens;
    int batch = 0, thread = 0;
    // B fragments: this lane's words of a slice, [stage of the slice][group of PER_MMA tokens][word].
    u32 x[CHUNKS][BLOCKS][4];

    __device__ __forceinline__ int column(int slice, int chunk) const {
        return slice * SLICE + chunk * COLUMNS + thread / 32 * WARP_COLUMNS;
    }

    // Loads activations from ``[TOKENS, K]`` in fragment order; absent tokens are zeros.
    __device__ __forceinline__ void load(const bf16* from, int k, int slice) {
        const uint4* row = (const uint4*)(from + Fragment::token(thread) * k + column(slice, 0) + Fragment::offset(thread));
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block, row += PER_MMA * k / 8) {
            const bool present = block * PER_MMA + Fragment::token(thread) < tokens;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const uint4 found = present && column(slice, chunk) < k ? __ldcg(row + chunk * COLUMNS / 8) : make_uint4(0, 0, 0, 0);
                u32* to = x[chunk][block];
                to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
            }
        }
    }

    // Norm weights do not depend on activations. Before the grid barrier, each warp copies the norm weights of its columns of
    // the first slice to shared memory, in fragment order. The destination is the half of ``sums`` that no warp reads.
    __device__ __forceinline__ uint4* staged() const { return (uint4*)shared.sums[batch] + thread / 32 * (CHUNKS * WARP_COLUMNS / 8); }
    __device__ __forceinline__ void prefetch(const bf16* weights) {
        static_assert(CHUNKS * WARP_COLUMNS <= 256, "a lane copies one vector");
        const int lane = thread % 32, at = column(0, lane / (WARP_COLUMNS / 8)) + lane % (WARP_COLUMNS / 8) * 8;
        if (lane < CHUNKS * WARP_COLUMNS / 8 && at < HIDDEN)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(staged() + lane)), "l"(weights + at) : "memory");
    }
    __device__ __forceinline__ uint4 weight(const bf16* weights, int slice, int chunk) const {
        const int at = Fragment::offset(thread) / 8;
        // ``prefetch`` copies nothing for columns outside the matrix. Return zeros for them: the memory may hold NaN, and
        // 0 * NaN is NaN.
        if (HIDDEN != CHUNKS * COLUMNS && column(slice, chunk) >= HIDDEN) return make_uint4(0, 0, 0, 0);
        return slice == 0 ? staged()[chunk * (WARP_COLUMNS / 8) + at] : ((const uint4*)(weights + column(slice, chunk)))[at];
    }

    __device__ __forceinline__ void add_squares(float* even, float* odd) const {
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block)
#pragma unroll
            for (int i = 0; i < 4 * CHUNKS; ++i) {
                const u32 pair = x[i / 4][block][i % 4];
                even[block] = __fmaf_rn(low(pair), low(pair), even[block]), odd[block] = __fmaf_rn(high(pair), high(pair), odd[block]);
            }
    }

    // Computes the RMS norm's factor of each token; afterwards ``x`` holds the first slice.
    __device__ __forceinline__ void compute_rms(float* scale) {
        float even[BLOCKS] = {}, odd[BLOCKS] = {};
        add_squares(even, odd);
#pragma unroll 1
        for (int slice = 1; slice < slices(HIDDEN); ++slice) load(arguments.x, HIDDEN, slice), add_squares(even, odd);
        if (slices(HIDDEN) > 1) load(arguments.x, HIDDEN, 0);
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            float sum = __fadd_rn(even[block], odd[block]);
#pragma unroll
            for (int distance = 1; distance < Fragment::LANES; distance *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, distance));
            if (thread % Fragment::LANES == 0) shared.squares[block * PER_MMA + Fragment::token(thread)][thread / 32] = sum;
        }
        block_barrier();
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            const float4* squares = (const float4*)shared.squares[block * PER_MMA + Fragment::token(thread)];
            float whole = 0;
#pragma unroll
            for (int i = 0; i < WARPS / 4; ++i) {
                const float4 four = squares[i];
                whole = __fadd_rn(whole, __fadd_rn(__fadd_rn(four.x, four.y), __fadd_rn(four.z, four.w)));
            }
            scale[block] = rsqrtf(__fadd_rn(__fdiv_rn(whole, HIDDEN), arguments.eps));
        }
    }

    // Applies the norm. The normalised value is rounded before the product with the norm weight, as in the model.
    __device__ __forceinline__ void norm(const bf16* weights, int slice, const float* scale) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const uint4 four = weight(weights, slice, chunk);
            const u32 by[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    u32& pair = x[chunk][block][i];
                    // Without this line the compiler keeps the unpacked values of ``add_squares`` in registers.
                    asm volatile("" : "+r"(pair));
                    pair = times(packed(__fmul_rn(low(pair), scale[block]), __fmul_rn(high(pair), scale[block])), by[i]);
                }
        }
    }

    // Bias and residual of one row and one token of a tile. One thread loads both while the tile's first stage is multiplied.
    struct Epilogue {
        float bias, residual;
    };
    __device__ __forceinline__ Epilogue load_epilogue(const Product& product, const bf16* bias, int tile, int row, int token) const {
        Epilogue epilogue = {};
        const int at = tile * ROWS + row;
        if (bias && !(product.kind == HEAD && at >= VOCABULARY))
            epilogue.bias = to_float(bias[product.kind == GATE_UP ? row % 2 * INNER + tile * (ROWS / 2) + row / 2 : at]);
        if (product.kind == OUT || product.kind == DOWN) epilogue.residual = to_float(__ldcg(arguments.x + token * HIDDEN + Fragment::index(at)));
        return epilogue;
    }
    // Writes one result. ``next`` is the sum of row ``row ^ 1``: for a row of gate, the sum of the matching row of up.
    __device__ __forceinline__ void finish(const Product& product, int tile, int row, int token, float sum, float next, float residual) const {
        const int at = tile * ROWS + row;
        if (product.kind == QKV_OF) arguments.qkv[token * QKV + at] = to_bf16(sum);
        else if (product.kind == GATE_UP) {
            // Even rows of a tile are gate rows, odd rows up rows.
            if (row % 2 == 0)
                arguments.inner[token * INNER + Fragment::index(tile * (ROWS / 2) + row / 2)] = to_bf16(__fmul_rn(__fdiv_rn(sum, __fadd_rn(1.0f, __expf(-sum))), next));
        } else if (product.kind == HEAD) {
            // Rounded to the model's dtype, as the model's own logits are.
            if (at < VOCABULARY) arguments.logits[(long long)token * VOCABULARY + at] = rounded(sum);
        } else
            // The product is rounded before it is added to the residual, as in the model.
            arguments.x[token * HIDDEN + Fragment::index(at)] = to_bf16(__fadd_rn(residual, rounded(sum)));
    }

    // Multiplies this block's tiles with the input.
    __device__ __forceinline__ void multiply(const Product& product, const bf16* from, const bf16* weights, const bf16* bias) {
        thread = thread_index();
        const int warp = thread / 32, lane = thread % 32, matrix = lane / 8;
        // ldmatrix loads an A fragment as four matrices: rows 0 to 7 and 8 to 15 of the first half of K, then of the second half.
        // Lane i gives the address of row i % 8 of matrix i / 8; ``mine`` has the offsets of the two mma of a stage.
        const int row_of_lane = RUNS == 4 ? lane % 4 : RUNS == 2 ? lane % 8 : lane % 8 + matrix % 2 * 8;
        u32 mine[2];
#pragma unroll
        for (int step = 0; step < 2; ++step) mine[step] = Fragment::in_stage(thread, row_of_lane, Fragment::chunk(step, matrix % 2, matrix / 2, lane / 4 % 2));
        const int part = thread % PARTS, result = thread / PARTS, slot = result / TILE, token = result % TILE / ROWS, row = result % ROWS;
        const bool present = token < tokens;
        float scale[BLOCKS];
        load(from, product.k, 0);
        if (product.normed()) {
            compute_rms(scale);
            asm volatile("cp.async.wait_all;" ::: "memory");
            __syncwarp();
            norm(weights, 0, scale);
            // Switch to the other half of ``sums``: otherwise a fast warp could overwrite norm weights that a slow warp still reads.
            batch ^= 1;
        }
#pragma unroll 1
        for (int slice = 0; slice * SLICE < product.k; ++slice) {
            const bool last = (slice + 1) * SLICE >= product.k;
#pragma unroll 1
            for (bool more = true; more; batch ^= 1) {
                float(*const sums)[SUMS_PITCH] = shared.sums[batch];
                Epilogue epilogue = {};
                int tile = 0, count = 0;
#pragma unroll 1
                for (; count < BATCH; ++count) {
                    u32 stage = consumer.wait_full();
                    const int tag = shared.tags[consumer.cursor.slot];
                    if (tag == END) {
                        consumer.release();
                        more = false;
                        break;
                    }
                    if (slot == count) {
                        tile = tag;
                        if (present && last && part == 0) epilogue = load_epilogue(product, bias, tile, row, token);
                    }
                    float c[BLOCKS][4] = {};
#pragma unroll
                    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                        if (slice * SLICE + chunk * COLUMNS >= product.k) break;
                        if (chunk) stage = consumer.wait_full();
#pragma unroll
                        for (int step = 0; step < 2; ++step) {
                            u32 a[4];
                            load_matrices(a, stage + mine[step]);
#pragma unroll
                            for (int block = 0; block < BLOCKS; ++block) mma(c[block], a, x[chunk][block][2 * step], x[chunk][block][2 * step + 1]);
                        }
                        consumer.release();
                    }
                    // Keep only the products of equal runs. With 2 runs, c[0] is run 0 of the row with run 0 of the token, and c[3]
                    // is run 1 with run 1; c[1] and c[2] mix runs. With 4 runs the other two equal runs are in lane ^ 17. With a
                    // single run every element counts.
                    float* const to = sums[warp] + count * TILE;
#pragma unroll
                    for (int block = 0; block < BLOCKS; ++block) {
                        if (RUNS == 1) {
                            to[(block * 8 + lane % 4) * ROWS + lane / 4] = c[block][0], to[(block * 8 + lane % 4 + 4) * ROWS + lane / 4] = c[block][1];
                            to[(block * 8 + lane % 4) * ROWS + lane / 4 + 8] = c[block][2], to[(block * 8 + lane % 4 + 4) * ROWS + lane / 4 + 8] = c[block][3];
                        } else {
                            float sum = __fadd_rn(c[block][0], c[block][3]);
                            if (RUNS == 2) to[(block * 4 + lane % 4) * ROWS + lane / 4] = sum;
                            if (RUNS == 4) {
                                sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 17));
                                if (!(lane & 17)) to[(block * 2 + lane / 2 % 2) * ROWS + lane / 4 % 4] = sum;
                            }
                        }
                    }
                }
                if (!more && !last) {
                    thread = thread_index();
                    load(from, product.k, slice + 1);
                    if (slices(HIDDEN) > 1 && product.normed()) norm(weights, slice + 1, scale);
                }
                block_barrier();
                if (warp * 32 / PARTS < count * TILE) {
                    float some[WARPS / PARTS];
#pragma unroll
                    for (int i = 0; i < WARPS / PARTS; ++i) some[i] = sums[i * PARTS + part][result];
#pragma unroll
                    for (int distance = 1; distance < WARPS / PARTS; distance *= 2)
#pragma unroll
                        for (int i = 0; i < WARPS / PARTS; i += 2 * distance) some[i] = __fadd_rn(some[i], some[i + distance]);
                    float sum = some[0];
#pragma unroll
                    for (int distance = 1; distance < PARTS; distance *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, distance));
                    const bool mine = part == 0 && slot < count && present;
                    if (product.sliced() && mine) {
                        // A result of a tile has a fixed thread in all slices, so ``slice_sums`` needs no barrier.
                        float* const slice_sums = shared.slice_sums + (tile - product.first()) * TILE + result % TILE;
                        if (slice) sum = __fadd_rn(*slice_sums, sum);
                        *slice_sums = sum;
                    }
                    sum = __fadd_rn(sum, epilogue.bias);
                    const float next = __shfl_xor_sync(~0u, sum, PARTS);
                    if (mine && last) finish(product, tile, row, token, sum, next, epilogue.residual);
                }
            }
        }
    }

    __device__ __forceinline__ void all(const Cache& cache, char* ring) {
        Attention attention{shared, HeadSplit()};
        const bf16* weights = (const bf16*)shared.table[INPUT_NORM];
        thread = thread_index();
        prefetch(weights);
#pragma unroll 1
        for (int index = 0; index <= LAYERS * PRODUCTS; ++index) {
            const Product product(index);
            const u64* entries = shared.table + product.layer * ENTRIES;
            multiply(product, product.kind == OUT ? arguments.attended : product.kind == DOWN ? arguments.inner : arguments.x, weights,
                     (const bf16*)entries[product.kind == HEAD ? HEAD_B : QKV_B + product.kind]);
            if (product.kind == HEAD) break;
            // After the grid barrier no producer draws tickets of this product: block 0 resets the tile counter for the next pass.
            // No grid barrier follows the head, so the head's counter is reset after the first barrier of the next pass.
            const auto barrier = [&] {
                grid_barrier(arguments.counter);
                if (blockIdx.x == 0 && threadIdx.x == 0) arguments.tile_counters[product.kind == QKV_OF && product.layer == 0 ? LAYERS * PRODUCTS : index] = arguments.tile_counters[index] = 0;
            };
            if (product.kind == QKV_OF) {
                barrier();
                if (attention.head_split.active) {
                    attention.prepare(cache, product.layer, arguments.qkv, arguments.cosine, arguments.sine, arguments.eps);
                    attention.attend<(TC > 8)>(consumer, ring, cache, product.layer, arguments.scale * 1.4426950408889634f, arguments.attended);
                }
                grid_barrier(arguments.counter);
            } else {
                if (product.kind != GATE_UP) {
                    weights = (const bf16*)(product.kind == OUT ? entries[POST_NORM] : entries[ENTRIES + (product.layer + 1 < LAYERS ? (int)INPUT_NORM : (int)FINAL_NORM)]);
                    prefetch(weights);
                }
                barrier();
            }
        }
    }
};

template <int TC>
__device__ __forceinline__ void run(Shared& shared, char* ring, const Cache& cache, const Arguments& arguments) {
    Consumer consumer{shared, shared_address(ring)};
    Pass<TC>{shared, arguments, consumer, cache.tokens}.all(cache, ring);
}

// ``tokens[0]`` is the number of tokens; with 0 the kernel returns at once. Keys and values of the tokens go to the cache from
// position ``length[0]`` on, and the cache has room for all tokens.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1) decode_step(
    const u64* table, bf16* x, float* logits, const bf16* cosine, const bf16* sine, bf16* base, const long long* caches,
    const int* capacity, const int* length, const int* tokens, bf16* qkv, bf16* attended, bf16* inner, u32* counter, u32* tile_counters,
    float eps, float scale) {
    extern __shared__ __align__(1024) char memory[];
    Shared& shared = *(Shared*)(memory + STAGES * STAGE_BYTES);
    const Cache cache = {base + caches[0] * UNIT, capacity[0], length[0], tokens[0] < TOKENS ? tokens[0] : TOKENS};
    if (cache.tokens <= 0) return;
    if (threadIdx.x < STAGES) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(shared.full + threadIdx.x)) : "memory");
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(shared.empty + threadIdx.x)), "n"(WARPS) : "memory");
    }
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&shared.partner)), "n"(WARPS) : "memory");
    for (int i = threadIdx.x; i < (LAYERS + 1) * ENTRIES; i += BLOCK_THREADS) shared.table[i] = table[i];
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    // No cluster barrier is needed here: a block accesses the other block of its cluster only after a grid barrier, and both
    // blocks have initialised their mbarriers before they arrive at that barrier.
    __syncthreads();
    if (threadIdx.x >= THREADS) {
#if SETMAXNREG
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
#endif
        if (threadIdx.x == THREADS) Producer{shared, memory, tile_counters}.all(cache);
        return;
    }
#if SETMAXNREG
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
#endif
    const Arguments arguments = {x, logits, cosine, sine, qkv, attended, inner, counter, tile_counters, eps, scale};
    if (cache.tokens <= MIN_TOKENS) run<MIN_TOKENS>(shared, memory, cache, arguments);
    else if (TOKENS > 4 && MIN_TOKENS < 8 && cache.tokens <= 8) run<(TOKENS > 4 ? 8 : 4)>(shared, memory, cache, arguments);
    else if (TOKENS > 8) run<(TOKENS > 8 ? 16 : TOKENS)>(shared, memory, cache, arguments);
}
