// A whole LLaMA pass over 1 to 16 consecutive tokens of one sequence as one persistent kernel: bfloat16, Hopper.
//
// A pass reads every weight once, so its floor is the memory's bandwidth. One thread block per SM stays for the whole pass.
// Its producer warp streams the block's share of every weight matrix through a ring in shared memory with bulk copies;
// because weights do not depend on activations, it prefetches the next product while the other warps wait at a grid
// barrier. Sixteen warps compute. A layer is five phases with a grid barrier between them:
//
//     qkv = Wqkv norm(x)  |  attention  |  x += Wo attended  |  inner = silu(G y) * U y, y = norm(x)  |  x += Wd inner
//
// and the head is the last phase of a pass.
//
// The bits of a token do not depend on how many tokens are in the pass. Each product puts weight rows on the M and tokens
// on the N of an mma: an element of C depends on its own row of A, its own column of B and its accumulator only, so the
// other tokens of a pass cannot change it. The order of every sum is fixed by K: a warp adds its own columns in one chain
// of accumulators, the sixteen warps' partial sums are added as a fixed tree, and a K above SLICE columns is summed slice
// by slice. Attention divides cached and new positions by their absolute position. Multiplications and additions that the
// compiler could contract differently in two template instances are written as intrinsics.
//
// An mma takes 16 rows, and a tile has ROWS = 16 / RUNS: each row is read as RUNS runs of columns, and each token as the
// same runs, so that of the products of all runs the diagonal counts. Fewer rows per tile make longer copies and smaller
// tiles; more make better use of the tensor cores.
//
// Most tiles are handed out by an atomic counter (work stealing), since memory latency differs between SMs. Which block
// computes a tile does not change the result.
//
// Activations that products read are stored in the order of B fragments (see Fragment), norm weights too.
//
// Macros: LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY, HEAD_NORMS, PROGRAMS, STAGES, SPLITS, TOKENS, RUNS,
// FLIGHT, SETMAXNREG, SHARED_BYTES. PROGRAMS are blocks, one per SM; STAGES are of the ring, and copies to at most FLIGHT of
// them are in flight; SPLITS blocks (1 or 2) share an attention head; a pass has up to TOKENS tokens (4, 8 or 16); RUNS is 1,
// 2 or 4; SETMAXNREG moves registers from the producer's warpgroup to the others; SHARED_BYTES are those of the launch.
// HIDDEN, INNER and HEADS * HEAD_SIZE are multiples of 256; HEAD_SIZE is 64 or 128. The kernel is launched in clusters of
// SPLITS blocks. All blocks must be resident, since they wait for each other.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INFINITE __int_as_float(0x7f800000)
constexpr int WARPS = 16;                          // that compute; one more copies
constexpr int THREADS = 32 * WARPS;
constexpr int LAUNCHED = THREADS + (SETMAXNREG ? 128 : 32);  // setmaxnreg counts in warpgroups of 4 warps
constexpr int ROWS = 16 / RUNS;                    // of a tile
constexpr int WARP_COLUMNS = 32 * RUNS;            // of a stage, for each warp: two steps of an mma
constexpr int COLUMNS = WARPS * WARP_COLUMNS;      // of a stage
constexpr int SLICE = 4096;                        // columns of K that are summed at once
constexpr int BOX = 64;                            // columns that the copy engine swizzles together: 128 bytes
constexpr int POSITIONS = 4096 / HEAD_SIZE;        // keys and values of a stage
constexpr int POSITION_BYTES = 2 * HEAD_SIZE;
constexpr int VALUES = POSITIONS * POSITION_BYTES;  // where a stage's values begin
constexpr int STAGE_BYTES = 2 * ROWS * COLUMNS;
constexpr int PER_MMA = 8 / RUNS;                  // tokens
constexpr int FEWEST = RUNS == 1 ? 8 : 4;          // tokens of the smallest code path
constexpr int RESULTS = ROWS * TOKENS > 128 ? ROWS * TOKENS : 128;  // whose partial sums wait to be added
constexpr int PARTS = THREADS / RESULTS;           // lanes that add the partial sums of a result
constexpr int SUMS_PITCH = RESULTS + 32 / PARTS;   // padded against bank conflicts between the warps' sums
constexpr int WIDTH = HEADS * HEAD_SIZE;
constexpr int QKV = WIDTH + 2 * KV_HEADS * HEAD_SIZE;
constexpr int QUERIES = HEADS / KV_HEADS;          // heads that share keys and values
constexpr int HALF = HEAD_SIZE / 2;
constexpr int SLOTS = WARPS / 2;                   // pairs of warps that attend, each to every eighth stage
constexpr int OUT_ROWS = 4;                        // tokens whose attention is put together at once
constexpr int UNIT = 8;                            // elements per unit of an offset into a cache
constexpr int ENTRIES = 8;                         // of the table, a layer
constexpr int END = -1;                            // tag of the stage behind a product's (or a slice's) last
constexpr int PRODUCTS = 4;                        // a layer

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ constexpr int slices(int k) { return divide_up(k, SLICE); }
// Tiles per block of a product that is summed slice by slice: they are assigned statically, and their sums stay in the block.
__host__ __device__ constexpr int kept_tiles(int k, int tiles) { return slices(k) > 1 ? divide_up(tiles, PROGRAMS) : 0; }
constexpr int QKV_TILES = QKV / ROWS, HIDDEN_TILES = HIDDEN / ROWS, INNER_TILES = 2 * INNER / ROWS, HEAD_TILES = divide_up(VOCABULARY, ROWS);
constexpr int KEPT = larger(larger(kept_tiles(HIDDEN, QKV_TILES), kept_tiles(WIDTH, HIDDEN_TILES)),
                            larger(larger(kept_tiles(HIDDEN, INNER_TILES), kept_tiles(INNER, HIDDEN_TILES)), kept_tiles(HIDDEN, HEAD_TILES)));

enum Entry { QKV_B, OUT_B, GATE_UP_B, DOWN_B, INPUT_NORM, POST_NORM, Q_NORM, K_NORM };
enum Last { HEAD_B, FINAL_NORM };
enum Kind { QKV_OF, OUT, GATE_UP, DOWN, HEAD };  // of a product; the first four in the order of their biases above

// Tensor maps of all weight matrices, in the order of use: boxes of 64 columns, the rows of a tile and a stage's columns.
struct __align__(64) TensorMap {
    char opaque[128];
};
extern "C" __constant__ TensorMap maps[LAYERS * PRODUCTS + 1] = {};

struct Shared {
    u64 full[STAGES], empty[STAGES], partner;
    int tags[(STAGES + 3) / 4 * 4];  // the tile of each stage
    u64 table[(LAYERS + 1) * ENTRIES];
    __align__(16) float squares[TOKENS][WARPS];
    float2 received_marks[TOKENS], marks[SLOTS][16];  // the largest score and the sum of powers
    union {
        float received[TOKENS * HEAD_SIZE];                 // what the cluster's second block attended to
        float kept[larger(KEPT, 1) * ROWS * TOKENS];        // sums of the slices before
    };
    union __align__(16) {
        float sums[2][WARPS][SUMS_PITCH];
        struct {
            bf16 q[16][HEAD_SIZE + 32], k[TOKENS][HEAD_SIZE], v[TOKENS][HEAD_SIZE];
        } given;
        float attended[SLOTS * OUT_ROWS * HEAD_SIZE];
    };
};

static_assert(STAGES * STAGE_BYTES + sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is too small");

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float wide(bf16 value) { return __uint_as_float((u32)value << 16); }
__device__ __forceinline__ u32 packed(float first, float second) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
__device__ __forceinline__ bf16 narrow(float value) { return (bf16)packed(value, 0.0f); }
__device__ __forceinline__ float rounded(float value) { return low(packed(value, 0.0f)); }
__device__ __forceinline__ float power_of_2(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
// exp2 of the difference between a score and the largest; of no position at all, 0 and not NaN.
__device__ __forceinline__ float finite(float score) { return score == -INFINITE ? 0.0f : score; }

// Read anew in each phase: what the compiler derives from it once for all phases fills the registers.
__device__ __forceinline__ int thread_index() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    __builtin_assume(thread >= 0 && thread < THREADS);
    return thread;
}
__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }
__device__ __forceinline__ void wait(u64* barrier, u32 parity) {
    u32 there;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(there) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!there);
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
__device__ __forceinline__ void exchange(bool really, u32& a, u32& b) {
    const u32 first = really ? b : a;
    b = really ? a : b, a = first;
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

// What each block wrote before is visible to all afterwards. The counter's top bit flips at each barrier.
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

// Activations are stored in the order of B fragments, so that a lane reads its words of a stage by one 16-byte load. In a
// warp's columns of a stage, the chunk of 8 columns says run, step and half of K; a lane holds 2 columns of each chunk.
struct Fragment {
    // Chunk of 8 columns: of 4 runs the lower bit, the bit of the run that tells C's halves apart, half of K.
    __device__ __forceinline__ static constexpr int chunk(int step, int upper, int half, int lower) {
        return RUNS == 4 ? step * 8 + lower * 4 + upper * 2 + half : RUNS == 2 ? step * 4 + upper * 2 + half : step * 2 + half;
    }
    // Where a column is stored.
    __device__ __forceinline__ static u32 place(u32 column) {
        const u32 at = column % WARP_COLUMNS, chunk = at / 8, step = chunk / (2 * RUNS), half = chunk % 2;
        const u32 run = RUNS == 4 ? chunk / 2 % 2 * 2 + chunk / 4 % 2 : RUNS == 2 ? chunk / 2 % 2 : 0;
        return column - at + ((run * 4 + at % 8 / 2) * 4 + step * 2 + half) * 2 + at % 2;
    }
    // Where a row's chunk of a warp's columns lies in a stage. The copy engine swizzles the chunks of 8 rows of 128 bytes, so
    // that ldmatrix has no bank conflicts.
    __device__ __forceinline__ static u32 in_stage(int thread, int row, int chunk) {
        const int column = thread / 32 * WARP_COLUMNS + chunk * 8, line = column / BOX * ROWS + row;
        return line * 128 + (column % BOX / 8 ^ line % 8) * 16;
    }
    // The run and token of the mma's column n = lane / 4. Columns 2 j and 2 j + 1 of C lie in one lane.
    __device__ __forceinline__ static int run(int thread) {
        const int n = thread % 32 / 4;
        return RUNS == 4 ? n % 2 * 2 + n / 2 % 2 : RUNS == 2 ? n % 2 : 0;
    }
    __device__ __forceinline__ static int token(int thread) {
        const int n = thread % 32 / 4;
        return RUNS == 4 ? n / 4 : RUNS == 2 ? n / 2 : n / 2 + n % 2 * 4;
    }
    __device__ __forceinline__ static int offset(int thread) { return (run(thread) * 4 + thread % 4) * 8; }
    // Lanes (a power of two) that hold the same token.
    static constexpr int LANES = 4 * RUNS;
};

// This block's part of attention: a head, and every so many of the stages that its positions fill.
struct Part {
    bool any;
    int head, split;
    __device__ __forceinline__ Part() : any(blockIdx.x < HEADS * SPLITS), head(any ? blockIdx.x / SPLITS : 0), split(blockIdx.x % SPLITS) {}
};

// Keys and values of the sequence, ``[LAYERS, 2, KV_HEADS, capacity, HEAD_SIZE]``.
struct Cache {
    bf16* at;
    long long capacity;
    int length, tokens;  // cached before this pass, and new
    __device__ bf16* keys(int layer, int head) const {
        return at + ((long long)layer * 2 * KV_HEADS + head) * capacity * HEAD_SIZE;
    }
    __device__ bf16* values(int layer, int head) const { return keys(layer, head) + KV_HEADS * capacity * HEAD_SIZE; }
    __device__ int end() const { return length + tokens; }
};

// A slot of the ring, and whether it was passed an even number of times.
struct Place {
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
    // Summed slice by slice, of tiles that are assigned statically.
    __device__ __forceinline__ bool sliced() const { return k > SLICE; }
    __device__ __forceinline__ int first() const { return divide_up(tiles, PROGRAMS) * blockIdx.x; }
    __device__ __forceinline__ bool normed() const { return kind == QKV_OF || kind == GATE_UP || kind == HEAD; }
};

// The producer: one thread.
struct Producer {
    Shared& shared;
    char* ring;
    u32* tickets;
    u64 policy;
    Place place, landing;
    int flying = 0;

    // The next slot of the ring, once it is empty: for ``bytes`` in all, of this tile.
    __device__ __forceinline__ void open(int tag, u32 bytes) {
        // Passed an even number of times: nobody has read it yet, or everybody has.
        wait(shared.empty + place.slot, place.parity ^ 1);
        // More copies in flight than the memory needs would only lengthen every other access to the L2.
        if (FLIGHT < STAGES) {
            if (flying == FLIGHT) wait(shared.full + landing.slot, landing.parity), landing.advance();
            else ++flying;
        }
        shared.tags[place.slot] = tag;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(shared.full + place.slot)), "r"(bytes) : "memory");
    }
    __device__ __forceinline__ void copy(const bf16* from, u32 offset, u32 bytes) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                     ::"r"(shared_address(ring) + place.slot * STAGE_BYTES + offset), "l"(from), "r"(bytes),
                       "r"(shared_address(shared.full + place.slot)), "l"(policy) : "memory");
    }
    // A tile's rows of COLUMNS columns from ``column`` on; what lies outside of the matrix is zeros. Of two matrices one below
    // the other, a tile has rows by turns.
    __device__ __forceinline__ void copy_tile(const TensorMap* map, bool gated, int tile, int column) {
        const u32 to = shared_address(ring) + place.slot * STAGE_BYTES, full = shared_address(shared.full + place.slot);
        if (gated)
            asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %3, %4, %5}], [%2], %6;"
                         ::"r"(to), "l"(map), "r"(full), "r"(0), "r"(tile * (ROWS / 2)), "r"(column / BOX), "l"(policy) : "memory");
        else
            asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;"
                         ::"r"(to), "l"(map), "r"(full), "r"(0), "r"(tile * ROWS), "r"(column / BOX), "l"(policy) : "memory");
    }

    __device__ __forceinline__ void product(const Product& product, const TensorMap* map, u32* ticket) {
        const int per_block = divide_up(product.tiles, PROGRAMS), own = product.sliced() ? per_block : (product.tiles / PROGRAMS + 7) / 8;
        const int first = own * blockIdx.x, last = first + own < product.tiles ? first + own : product.tiles;
        // The next ticket is drawn before it is needed.
        int next = product.sliced() ? product.tiles : own * PROGRAMS + atomicAdd(ticket, 1);
#pragma unroll 1
        for (int begin = 0; begin < product.k; begin += SLICE) {
            const int end = begin + SLICE < product.k ? begin + SLICE : product.k;
#pragma unroll 1
            for (int i = first;; ++i) {
                int tile = i;
                if (i >= last) {
                    tile = next;
                    if (tile >= product.tiles) break;
                    next = own * PROGRAMS + atomicAdd(ticket, 1);
                }
#pragma unroll 1
                for (int column = begin; column < end; column += COLUMNS) {
                    open(tile, STAGE_BYTES);
                    copy_tile(map, product.kind == GATE_UP, tile, column);
                    place.advance();
                }
            }
            open(END, 0);
            place.advance();
        }
    }

    __device__ __forceinline__ void keys_and_values(const Cache& cache, int layer) {
        const Part part;
        if (!part.any) return;
#pragma unroll 1
        for (int at = part.split * POSITIONS; at < cache.end(); at += SPLITS * POSITIONS) {
            // What lies behind the cached positions is replaced or masked.
            const int room = (int)cache.capacity - at;
            const u32 bytes = POSITION_BYTES * (room < POSITIONS ? room : POSITIONS);
            open(0, 2 * bytes);
            copy(cache.keys(layer, part.head / QUERIES) + (long long)at * HEAD_SIZE, 0, bytes);
            copy(cache.values(layer, part.head / QUERIES) + (long long)at * HEAD_SIZE, VALUES, bytes);
            place.advance();
        }
    }

    __device__ void all(const Cache& cache) {
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#pragma unroll 1
        for (int index = 0; index <= LAYERS * PRODUCTS; ++index) {
            const Product now(index);
            if (now.kind == OUT) keys_and_values(cache, now.layer);
            // The next product's map, before it is needed.
            if (index < LAYERS * PRODUCTS) asm volatile("prefetch.tensormap [%0];" ::"l"(maps + index + 1) : "memory");
            product(now, maps + index, tickets + index);
        }
    }
};

// The ring as a computing warp reads it.
struct Consumer {
    Shared& shared;
    u32 ring;
    Place place;

    // The oldest stage, once it is full.
    __device__ __forceinline__ u32 take() {
        wait(shared.full + place.slot, place.parity);
        return ring + place.slot * STAGE_BYTES;
    }

    // This warp has read it.
    __device__ __forceinline__ void give_back() {
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(shared.empty + place.slot)) : "memory");
        place.advance();
    }
};

// Attention of one head's new tokens to a share of the positions, by one block. Positions and dimensions are on the mma's M,
// tokens on its N.
struct Attention {
    Shared& shared;
    const Part part;

    // A warp: one head's query or key of one token, normed and rotated.
    __device__ __forceinline__ void rotate(bf16* out, const bf16* from, u64 weights, const bf16* cosine, const bf16* sine, float eps, bf16* cached) {
        const int lane = threadIdx.x % 32;
        const bf16* weight = (const bf16*)weights;
        float lows[HALF / 32], highs[HALF / 32], square = 0;
#pragma unroll
        for (int i = 0; i < HALF / 32; ++i) lows[i] = wide(__ldcg(from + lane + 32 * i)), highs[i] = wide(__ldcg(from + HALF + lane + 32 * i));
        float scale = 1;
        if (HEAD_NORMS) {
#pragma unroll
            for (int i = 0; i < HALF / 32; ++i) square = __fmaf_rn(highs[i], highs[i], __fmaf_rn(lows[i], lows[i], square));
#pragma unroll
            for (int apart = 16; apart; apart /= 2) square = __fadd_rn(square, __shfl_xor_sync(~0u, square, apart));
            scale = rsqrtf(__fadd_rn(__fdiv_rn(square, HEAD_SIZE), eps));
        }
#pragma unroll
        for (int i = 0; i < HALF / 32; ++i) {
            const int at = lane + 32 * i;
            if (HEAD_NORMS) {
                lows[i] = __fmul_rn(rounded(__fmul_rn(lows[i], scale)), wide(weight[at]));
                highs[i] = __fmul_rn(rounded(__fmul_rn(highs[i], scale)), wide(weight[HALF + at]));
            }
            const float c = wide(cosine[at]), s = wide(sine[at]);
            const bf16 first = narrow(__fmaf_rn(lows[i], c, -__fmul_rn(highs[i], s))), second = narrow(__fmaf_rn(highs[i], c, __fmul_rn(lows[i], s)));
            out[at] = first, out[HALF + at] = second;
            if (cached) cached[at] = first, cached[HALF + at] = second;
        }
    }

    // This head's queries and the new positions' keys and values, which one block per key-value head also caches.
    __device__ __forceinline__ void prepare(const Cache& cache, int layer, const bf16* qkv, const bf16* cosine, const bf16* sine, float eps) {
        const int thread = thread_index(), token = thread / 32, lane = thread % 32, kv_head = part.head / QUERIES;
        const u64* entries = shared.table + layer * ENTRIES;
        if (token < cache.tokens) {
            const bool caches = part.split == 0 && part.head % QUERIES == 0 && cache.length + token < cache.capacity;
            const long long to = (long long)(cache.length + token) * HEAD_SIZE;
            const bf16 *from = qkv + token * QKV, *c = cosine + token * HALF, *s = sine + token * HALF;
            const bf16* value = from + WIDTH + (KV_HEADS + kv_head) * HEAD_SIZE;
            bf16 values[HEAD_SIZE / 32];
#pragma unroll
            for (int i = 0; i < HEAD_SIZE / 32; ++i) values[i] = __ldcg(value + lane + 32 * i);
            rotate(shared.given.q[token], from + part.head * HEAD_SIZE, entries[Q_NORM], c, s, eps, nullptr);
            rotate(shared.given.k[token], from + WIDTH + kv_head * HEAD_SIZE, entries[K_NORM], c, s, eps, caches ? cache.keys(layer, kv_head) + to : nullptr);
#pragma unroll
            for (int i = 0; i < HEAD_SIZE / 32; ++i) {
                shared.given.v[token][lane + 32 * i] = values[i];
                if (caches) cache.values(layer, kv_head)[to + lane + 32 * i] = values[i];
            }
        }
        block_barrier();
    }

    // Puts the new positions of a stage where they belong and zeros behind them, since 0 * NaN is NaN. Each warp of a pair
    // writes all that it reads, so that neither waits for the other.
    template <bool WIDE>
    __device__ __forceinline__ void insert(char* stage, int at, const Cache& cache, int half) {
        constexpr int WORDS = HEAD_SIZE / 8, OWN_WORDS = WIDE ? WORDS : WORDS / 2;
        const int lane = threadIdx.x % 32;
        for (int i = lane; i < cache.tokens * WORDS; i += 32) {
            const int token = i / WORDS, position = cache.length + token - at;
            if (position >= 0 && position < POSITIONS)
                *(uint4*)(stage + position * POSITION_BYTES + i % WORDS * 16) = ((const uint4*)shared.given.k[token])[i % WORDS];
        }
        const int first = cache.length > at ? cache.length - at : 0;
        for (int i = first * OWN_WORDS + lane; i < POSITIONS * OWN_WORDS; i += 32) {
            const int position = i / OWN_WORDS, token = at + position - cache.length, word = (WIDE ? 0 : half * OWN_WORDS) + i % OWN_WORDS;
            *(uint4*)(stage + VALUES + position * POSITION_BYTES + word * 16) =
                token < cache.tokens ? ((const uint4*)shared.given.v[token])[word] : make_uint4(0, 0, 0, 0);
        }
        __syncwarp();
    }

    // Writes ``attended [TOKENS, WIDTH]`` in fragment order. Each pair of warps takes every eighth stage. Of up to 8 tokens both
    // warps compute all scores, and each adds up half of the dimensions; of more, each takes 8 tokens. The order of no sum differs.
    template <bool WIDE>
    __device__ __forceinline__ void attend(Consumer& consumer, char* ring, const Cache& cache, int layer, float scale, bf16* out) {
        constexpr int TILES = POSITIONS / 16, WORDS = HEAD_SIZE / 32, CHUNKS = HEAD_SIZE / (WIDE ? 32 : 64);  // of 16 positions; of 32 dimensions
        const int thread = thread_index(), warp = thread / 32, lane = thread % 32, pair = warp / 2, half = warp % 2, matrix = lane / 8;
        // Rows of keys and values are not padded, and lie in the same banks. A lane reads 16 bytes of a key, the words of two
        // mma steps; of two such reads, keys with odd numbers take the second first.
        const bool odd = lane / 4 % 2;
        const int first_token = WIDE ? half * 8 : 0, first_dim = WIDE ? 0 : half * HALF;
        const u32 queries = shared_address(shared.given.q[first_token + lane / 4]) + lane % 4 * 16, keys = lane / 4 * POSITION_BYTES + lane % 4 * 16 + odd * 64;
        // Of four chunks of 8 dimensions, two neighbouring positions take another one first than the next two.
        const u32 values = VALUES + (lane % 8 + matrix % 2 * 8) * POSITION_BYTES + first_dim * 2, value_chunk = (matrix / 2 ^ lane % 8 / 2) * 16;
        float o[2 * CHUNKS][4] = {}, best[2] = {-INFINITE, -INFINITE}, weight[2] = {};
        int turn = 0;
#pragma unroll 1
        for (int at = part.split * POSITIONS; at < cache.end(); at += SPLITS * POSITIONS, turn = (turn + 1) % SLOTS) {
            const u32 stage = consumer.take();
            if (turn == pair) {
                if (at + POSITIONS > cache.length) insert<WIDE>(ring + consumer.place.slot * STAGE_BYTES, at, cache, half);
                u32 p[TILES][2];
                // Two chains of accumulators, since one waits for itself: of even and of odd blocks of 32 dimensions.
                float score[2][TILES][4] = {};
#pragma unroll
                for (int word = 0; word < WORDS; word += 2) {
                    const u32 query = queries + word * 64;
                    const uint4 b[2] = {shared_words(query), shared_words(query + 64)};
#pragma unroll
                    for (int tile = 0; tile < TILES; ++tile) {
                        uint4 a[2][2];  // of positions 0 to 7 and 8 to 15, by chain
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
                // Rows are positions, columns tokens: this lane has two of each.
                float higher[2] = {-INFINITE, -INFINITE};
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int position = at + tile * 16 + i / 2 * 8 + lane / 4, token = first_token + lane % 4 * 2 + i % 2;
                        float& value = score[0][tile][i];
                        value = position <= cache.length + token ? __fmul_rn(__fadd_rn(value, score[1][tile][i]), scale) : -INFINITE;
                        higher[i % 2] = fmaxf(higher[i % 2], value);
                    }
                float safe[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
#pragma unroll
                    for (int apart = 4; apart < 32; apart *= 2) higher[i] = fmaxf(higher[i], __shfl_xor_sync(~0u, higher[i], apart));
                    higher[i] = fmaxf(higher[i], best[i]);
                    safe[i] = finite(higher[i]);
                    const float old = power_of_2(__fadd_rn(best[i], -safe[i]));
                    best[i] = higher[i], weight[i] = __fmul_rn(weight[i], old);
#pragma unroll
                    for (int j = 0; j < 2 * CHUNKS; ++j) o[j][i] = __fmul_rn(o[j][i], old), o[j][2 + i] = __fmul_rn(o[j][2 + i], old);
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
                        // Chunk i is where chunk i ^ (lane % 4) was read.
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
                // The stage was written here, and is filled by a bulk copy next.
                if (at + POSITIONS > cache.length) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            }
            consumer.give_back();
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int apart = 4; apart < 32; apart *= 2) weight[i] = __fadd_rn(weight[i], __shfl_xor_sync(~0u, weight[i], apart));
            if ((WIDE || half == 0) && lane < 4) shared.marks[pair][first_token + lane * 2 + i] = make_float2(best[i], weight[i]);
        }
        // ``attended`` lies where the queries were.
        block_barrier();
#pragma unroll 1
        for (int first = 0; first < cache.tokens; first += OUT_ROWS) {
            if (lane % 4 / 2 == first / 4 % 2 && (!WIDE || half == first / 8)) {
#pragma unroll
                for (int j = 0; j < 2 * CHUNKS; ++j)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int row = lane % 2 * 2 + i % 2, dim = first_dim + j * 16 + i / 2 * 8 + lane / 4;
                        // Swizzled by the row, against bank conflicts.
                        shared.attended[(pair * OUT_ROWS + row) * HEAD_SIZE + (dim ^ row * 8)] = o[j][i];
                    }
            }
            block_barrier();
            const int row = thread / HEAD_SIZE, dim = thread % HEAD_SIZE, token = first + row;
            if (row < OUT_ROWS && token < cache.tokens) finish(row, dim, token, layer, out);
            if (first + OUT_ROWS < cache.tokens) block_barrier();
        }
        // All warps have written to the other block before it is told.
        if (SPLITS == 2 && part.split == 1) {
            __syncwarp();
            if (lane == 0) asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(in_first_block(&shared.partner)) : "memory");
        }
    }

    __device__ __forceinline__ static u32 in_first_block(const void* at) {
        u32 there;
        asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(there) : "r"(shared_address(at)));
        return there;
    }

    // One number of one token: the sum over the pairs of warps, then over the two blocks of the cluster.
    __device__ __forceinline__ void finish(int row, int dim, int token, int layer, bf16* out) {
        float higher = -INFINITE, sum = 0, weight = 0;
#pragma unroll
        for (int i = 0; i < SLOTS; ++i) higher = fmaxf(higher, shared.marks[i][token].x);
#pragma unroll
        for (int i = 0; i < SLOTS; ++i) {
            const float2 mark = shared.marks[i][token];
            const float factor = power_of_2(__fadd_rn(mark.x, -finite(higher)));
            weight = __fmaf_rn(mark.y, factor, weight);
            sum = __fmaf_rn(shared.attended[(i * OUT_ROWS + row) * HEAD_SIZE + (dim ^ row * 8)], factor, sum);
        }
        if (SPLITS == 2 && part.split == 1) {
            asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(in_first_block(shared.received + token * HEAD_SIZE + dim)), "f"(sum) : "memory");
            if (dim == 0)
                asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(in_first_block(shared.received_marks + token)), "f"(higher), "f"(weight) : "memory");
            return;
        }
        if (SPLITS == 2) {
            u32 there;
            do {
                asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                             : "=r"(there) : "r"(shared_address(&shared.partner)), "r"(layer & 1) : "memory");
            } while (!there);
            // The first position is this block's, so that its own score is finite.
            const float2 mark = shared.received_marks[token];
            const float highest = fmaxf(higher, mark.x), own = power_of_2(__fadd_rn(higher, -highest)), other = power_of_2(__fadd_rn(mark.x, -highest));
            sum = __fmaf_rn(shared.received[token * HEAD_SIZE + dim], other, __fmul_rn(sum, own));
            weight = __fmaf_rn(mark.y, other, __fmul_rn(weight, own));
        }
        out[token * WIDTH + Fragment::place(part.head * HEAD_SIZE + dim)] = narrow(__fdiv_rn(sum, weight));
    }
};

struct Arguments {
    bf16* x;               // [TOKENS, HIDDEN], embeddings in fragment order
    float* logits;         // [TOKENS, VOCABULARY]
    const bf16 *cosine, *sine;  // [TOKENS, HEAD_SIZE / 2]
    bf16 *qkv, *attended, *inner;  // [TOKENS, ...]; the last two in fragment order
    u32 *counter, *tickets;
    float eps, scale;
};

// All products of a pass of up to TC tokens; the computing warps. There is one copy of each loop for all products, since
// their code has to stay in the instruction cache: fetching it takes long while the memory is busy.
template <int TC>
struct Pass {
    static constexpr int CHUNKS = divide_up(larger(larger(HIDDEN, WIDTH), INNER) < SLICE ? larger(larger(HIDDEN, WIDTH), INNER) : SLICE, COLUMNS);
    static constexpr int BLOCKS = divide_up(TC, PER_MMA);
    static constexpr int TILE = ROWS * TC, BATCH = RESULTS / TILE;  // results of a tile; tiles whose sums wait

    Shared& shared;
    const Arguments& given;
    Consumer& consumer;
    const int tokens;
    int batch = 0, thread = 0;
    // B fragments: of each stage's columns the words of this lane.
    u32 x[CHUNKS][BLOCKS][4];

    __device__ __forceinline__ int column(int slice, int chunk) const {
        return slice * SLICE + chunk * COLUMNS + thread / 32 * WARP_COLUMNS;
    }

    // From ``[TOKENS, K]`` in fragment order; tokens that are not there are zeros.
    __device__ __forceinline__ void load(const bf16* from, int k, int slice) {
        const uint4* row = (const uint4*)(from + Fragment::token(thread) * k + column(slice, 0) + Fragment::offset(thread));
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block, row += PER_MMA * k / 8) {
            const bool there = block * PER_MMA + Fragment::token(thread) < tokens;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const uint4 found = there && column(slice, chunk) < k ? __ldcg(row + chunk * COLUMNS / 8) : make_uint4(0, 0, 0, 0);
                u32* to = x[chunk][block];
                to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
            }
        }
    }

    // The norm's weights, in fragment order, do not depend on activations: each warp copies its own, of the first slice, to
    // shared memory before the grid barrier, into the half of ``sums`` that no warp reads any more.
    __device__ __forceinline__ uint4* staged() const { return (uint4*)shared.sums[batch] + thread / 32 * (CHUNKS * WARP_COLUMNS / 8); }
    __device__ __forceinline__ void prefetch(const bf16* weights) {
        static_assert(CHUNKS * WARP_COLUMNS <= 256, "a lane copies one vector");
        const int lane = thread % 32, at = column(0, lane / (WARP_COLUMNS / 8)) + lane % (WARP_COLUMNS / 8) * 8;
        if (lane < CHUNKS * WARP_COLUMNS / 8 && at < HIDDEN)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(staged() + lane)), "l"(weights + at) : "memory");
    }
    __device__ __forceinline__ uint4 weight(const bf16* weights, int slice, int chunk) const {
        const int at = Fragment::offset(thread) / 8;
        // Nothing was copied for columns that are not there, and 0 * NaN is NaN.
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

    // RMS norm: the factor of each token, from all of x; the first slice stays loaded.
    __device__ __forceinline__ void measure(float* scale) {
        float even[BLOCKS] = {}, odd[BLOCKS] = {};
        add_squares(even, odd);
#pragma unroll 1
        for (int slice = 1; slice < slices(HIDDEN); ++slice) load(given.x, HIDDEN, slice), add_squares(even, odd);
        if (slices(HIDDEN) > 1) load(given.x, HIDDEN, 0);
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            float sum = __fadd_rn(even[block], odd[block]);
#pragma unroll
            for (int apart = 1; apart < Fragment::LANES; apart *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, apart));
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
            scale[block] = rsqrtf(__fadd_rn(__fdiv_rn(whole, HIDDEN), given.eps));
        }
    }

    // Rounded before the weight, as the model does it.
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
                    // Keeps the compiler from holding what it unpacked for the squares.
                    asm volatile("" : "+r"(pair));
                    pair = times(packed(__fmul_rn(low(pair), scale[block]), __fmul_rn(high(pair), scale[block])), by[i]);
                }
        }
    }

    // One thread for each row and token of a tile: what it adds to the sum and to x, prefetched with the tile's first stage.
    struct Held {
        float bias, before;
    };
    __device__ __forceinline__ Held hold(const Product& product, const bf16* bias, int tile, int row, int token) const {
        Held held = {};
        const int at = tile * ROWS + row;
        if (bias && !(product.kind == HEAD && at >= VOCABULARY))
            held.bias = wide(bias[product.kind == GATE_UP ? row % 2 * INNER + tile * (ROWS / 2) + row / 2 : at]);
        if (product.kind == OUT || product.kind == DOWN) held.before = wide(__ldcg(given.x + token * HIDDEN + Fragment::place(at)));
        return held;
    }
    // ``next`` is the sum of the row beside it (``row ^ 1``).
    __device__ __forceinline__ void finish(const Product& product, int tile, int row, int token, float sum, float next, float before) const {
        const int at = tile * ROWS + row;
        if (product.kind == QKV_OF) given.qkv[token * QKV + at] = narrow(sum);
        else if (product.kind == GATE_UP) {
            // Even rows of a tile are the gate's, odd ones up's.
            if (row % 2 == 0)
                given.inner[token * INNER + Fragment::place(tile * (ROWS / 2) + row / 2)] = narrow(__fmul_rn(__fdiv_rn(sum, __fadd_rn(1.0f, __expf(-sum))), next));
        } else if (product.kind == HEAD) {
            // Rounded to the model's dtype, as its own are.
            if (at < VOCABULARY) given.logits[(long long)token * VOCABULARY + at] = rounded(sum);
        } else
            // A linear layer's output is rounded before it is added, as the model does it.
            given.x[token * HIDDEN + Fragment::place(at)] = narrow(__fadd_rn(before, rounded(sum)));
    }

    // This block's tiles times the input.
    __device__ __forceinline__ void multiply(const Product& product, const bf16* from, const bf16* weights, const bf16* bias) {
        thread = thread_index();
        const int warp = thread / 32, lane = thread % 32, matrix = lane / 8;
        // Rows of the four matrices of an A fragment: rows 0 to 7 and 8 to 15 of the first half of K, then of the second.
        const int row_of_lane = RUNS == 4 ? lane % 4 : RUNS == 2 ? lane % 8 : lane % 8 + matrix % 2 * 8;
        u32 mine[2];
#pragma unroll
        for (int step = 0; step < 2; ++step) mine[step] = Fragment::in_stage(thread, row_of_lane, Fragment::chunk(step, matrix % 2, matrix / 2, lane / 4 % 2));
        const int part = thread % PARTS, result = thread / PARTS, slot = result / TILE, token = result % TILE / ROWS, row = result % ROWS;
        const bool there = token < tokens;
        float scale[BLOCKS];
        load(from, product.k, 0);
        if (product.normed()) {
            measure(scale);
            asm volatile("cp.async.wait_all;" ::: "memory");
            __syncwarp();
            norm(weights, 0, scale);
            // Warps that are ahead leave the weights alone until the next barrier of the block.
            batch ^= 1;
        }
#pragma unroll 1
        for (int slice = 0; slice * SLICE < product.k; ++slice) {
            const bool last = (slice + 1) * SLICE >= product.k;
#pragma unroll 1
            for (bool more = true; more; batch ^= 1) {
                float(*const sums)[SUMS_PITCH] = shared.sums[batch];
                Held held = {};
                int tile = 0, count = 0;
#pragma unroll 1
                for (; count < BATCH; ++count) {
                    u32 stage = consumer.take();
                    const int tag = shared.tags[consumer.place.slot];
                    if (tag == END) {
                        consumer.give_back();
                        more = false;
                        break;
                    }
                    if (slot == count) {
                        tile = tag;
                        if (there && last && part == 0) held = hold(product, bias, tile, row, token);
                    }
                    float c[BLOCKS][4] = {};
#pragma unroll
                    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                        if (slice * SLICE + chunk * COLUMNS >= product.k) break;
                        if (chunk) stage = consumer.take();
#pragma unroll
                        for (int step = 0; step < 2; ++step) {
                            u32 a[4];
                            load_matrices(a, stage + mine[step]);
#pragma unroll
                            for (int block = 0; block < BLOCKS; ++block) mma(c[block], a, x[chunk][block][2 * step], x[chunk][block][2 * step + 1]);
                        }
                        consumer.give_back();
                    }
                    // Of C's columns, which are runs of tokens, each row keeps its own run.
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
                    for (int apart = 1; apart < WARPS / PARTS; apart *= 2)
#pragma unroll
                        for (int i = 0; i < WARPS / PARTS; i += 2 * apart) some[i] = __fadd_rn(some[i], some[i + apart]);
                    float sum = some[0];
#pragma unroll
                    for (int apart = 1; apart < PARTS; apart *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, apart));
                    const bool mine = part == 0 && slot < count && there;
                    if (product.sliced() && mine) {
                        // The same thread in each slice.
                        float* const kept = shared.kept + (tile - product.first()) * TILE + result % TILE;
                        if (slice) sum = __fadd_rn(*kept, sum);
                        *kept = sum;
                    }
                    sum = __fadd_rn(sum, held.bias);
                    const float next = __shfl_xor_sync(~0u, sum, PARTS);
                    if (mine && last) finish(product, tile, row, token, sum, next, held.before);
                }
            }
        }
    }

    __device__ __forceinline__ void all(const Cache& cache, char* ring) {
        Attention attention{shared, Part()};
        const bf16* weights = (const bf16*)shared.table[INPUT_NORM];
        thread = thread_index();
        prefetch(weights);
#pragma unroll 1
        for (int index = 0; index <= LAYERS * PRODUCTS; ++index) {
            const Product product(index);
            const u64* entries = shared.table + product.layer * ENTRIES;
            multiply(product, product.kind == OUT ? given.attended : product.kind == DOWN ? given.inner : given.x, weights,
                     (const bf16*)entries[product.kind == HEAD ? HEAD_B : QKV_B + product.kind]);
            if (product.kind == HEAD) break;
            // No block draws tickets of this product behind the grid barrier: ready for the next pass.
            const auto barrier = [&] {
                grid_barrier(given.counter);
                if (blockIdx.x == 0 && threadIdx.x == 0) given.tickets[product.kind == QKV_OF && product.layer == 0 ? LAYERS * PRODUCTS : index] = given.tickets[index] = 0;
            };
            if (product.kind == QKV_OF) {
                barrier();
                if (attention.part.any) {
                    attention.prepare(cache, product.layer, given.qkv, given.cosine, given.sine, given.eps);
                    attention.attend<(TC > 8)>(consumer, ring, cache, product.layer, given.scale * 1.4426950408889634f, given.attended);
                }
                grid_barrier(given.counter);
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
__device__ __forceinline__ void run(Shared& shared, char* ring, const Cache& cache, const Arguments& given) {
    Consumer consumer{shared, shared_address(ring)};
    Pass<TC>{shared, given, consumer, cache.tokens}.all(cache, ring);
}

// ``tokens[0]`` says how many tokens there are; with none the kernel returns at once. They take the positions from
// ``length[0]`` on, and the cache has room for them.
extern "C" __global__ void __launch_bounds__(LAUNCHED, 1) decode_step(
    const u64* table, bf16* x, float* logits, const bf16* cosine, const bf16* sine, bf16* base, const long long* caches,
    const int* capacity, const int* length, const int* tokens, bf16* qkv, bf16* attended, bf16* inner, u32* counter, u32* tickets,
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
    for (int i = threadIdx.x; i < (LAYERS + 1) * ENTRIES; i += LAUNCHED) shared.table[i] = table[i];
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    // The other block of the cluster is reached only after grid barriers, so that its barriers are there by then.
    __syncthreads();
    if (threadIdx.x >= THREADS) {
#if SETMAXNREG
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
#endif
        if (threadIdx.x == THREADS) Producer{shared, memory, tickets}.all(cache);
        return;
    }
#if SETMAXNREG
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
#endif
    const Arguments given = {x, logits, cosine, sine, qkv, attended, inner, counter, tickets, eps, scale};
    if (cache.tokens <= FEWEST) run<FEWEST>(shared, memory, cache, given);
    else if (TOKENS > 4 && FEWEST < 8 && cache.tokens <= 8) run<(TOKENS > 4 ? 8 : 4)>(shared, memory, cache, given);
    else if (TOKENS > 8) run<(TOKENS > 8 ? 16 : TOKENS)>(shared, memory, cache, given);
}
