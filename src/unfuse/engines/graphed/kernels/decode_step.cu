// One token through a whole LLaMA as one kernel, for one sequence in bfloat16 on Hopper.
//
// A decode step is the reading of all weights once, and the memory must never rest. Here a producer thread of each program
// copies the program's share of every matrix, in the order of use, into a ring in shared memory, and goes on doing so
// across the borders between products: weights depend on nothing. What was computed passes from one product to the next
// through a meeting of all programs, and while that takes its time the rings fill. A layer is five phases:
//
//     qkv = Wqkv norm(x)  |  attention in parts  |  x += Wo attended  |  inner = silu(G y) * U y, y = norm(x)  |  x += Wd inner
//
// and the last phase of a step is the head. A product's rows are dealt out in pairs. All warps of a program work on the same
// pair, each on its own columns, so that they end together, and all but an eighth of the pairs go to whoever comes for them,
// since some multiprocessors are nearer to the memory than others: while some are late, the rings of the others fill, and
// then are of no use when the programs meet. A warp keeps its part of the input in registers. Keys and values of cached
// positions travel in the same rings. One program a multiprocessor; all must be resident, since they wait for each other;
// what they wrote is read past the caches that they do not share. Who multiplies a row changes nothing in the result.
//
// Sizes are given by whoever compiles: LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY, HEAD_NORMS, PROGRAMS,
// STAGES, SPLITS. HIDDEN, INNER and HEADS * HEAD_SIZE are multiples of 256; HEAD_SIZE is 64 or 128.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INFINITE __int_as_float(0x7f800000)
constexpr int WARPS = 16;                      // that compute; one more copies
constexpr int BLOCK = 256;                     // numbers of a row that a warp takes in at once
constexpr int CHUNK = WARPS * BLOCK;           // numbers of each row of a pair that a stage holds
constexpr int STAGE_BYTES = 2 * CHUNK * sizeof(bf16);
constexpr int THREADS = 32 * WARPS;
constexpr int BATCH = WARPS;                   // pairs whose sums wait to be added up, each by a warp
constexpr int WIDTH = HEADS * HEAD_SIZE;
constexpr int QKV = WIDTH + 2 * KV_HEADS * HEAD_SIZE;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int POSITIONS = CHUNK / HEAD_SIZE;   // in a stage
constexpr int LANES = HEAD_SIZE / 8;           // that share a position
constexpr int HALF = HEAD_SIZE / 2;
constexpr int UNIT = 8;                        // numbers that an offset into a cache counts in
constexpr int ENTRIES = 12;                    // of the table, a layer
constexpr int END = -1;                        // the tag of a stage behind a product's last
constexpr int PRODUCTS = 4;                    // a layer

enum Entry { QKV_W, OUT_W, GATE_UP_W, DOWN_W, QKV_B, OUT_B, GATE_UP_B, DOWN_B, INPUT_GAIN, POST_GAIN, Q_GAIN, K_GAIN };
enum Last { HEAD_W, HEAD_B, FINAL_GAIN };

struct Shared {
    u64 full[STAGES], empty[STAGES];
    u32 x[HIDDEN / 2];  // pairs of numbers, as they were when they were normed last
    int pairs[2][BATCH];
    int tags[(STAGES + 3) / 4 * 4];  // which pair of rows each stage is of
    u64 table[(LAYERS + 1) * ENTRIES];
    float squares[WARPS];
    union {
        float sums[2][BATCH][2][WARPS * 8];
        struct {
            float q[HEAD_SIZE], k[HEAD_SIZE], v[HEAD_SIZE], totals[WARPS][HEAD_SIZE], bests[WARPS], weights[WARPS];
        } attention;
    };
};

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
__device__ __forceinline__ void unpack(float* to, uint4 from) {
    to[0] = low(from.x), to[1] = high(from.x), to[2] = low(from.y), to[3] = high(from.y);
    to[4] = low(from.z), to[5] = high(from.z), to[6] = low(from.w), to[7] = high(from.w);
}
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
    return value;
}

__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }
__device__ __forceinline__ uint4 shared_numbers(u32 at) {
    uint4 found;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "r"(at) : "memory");
    return found;
}
__device__ __forceinline__ void wait(u64* barrier, u32 parity) {
    u32 there;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(there) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!there);
}

// Those threads that compute; the producer goes its own way.
__device__ __forceinline__ void together() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// All programs meet; what each wrote before is there for all afterwards. The counter's top bit flips once a meeting.
__device__ __forceinline__ void meet(u32* counter) {
    together();
    if (threadIdx.x == 0) {
        u32 before, now;
        const u32 mine = blockIdx.x == 0 ? 0x80000000u - (PROGRAMS - 1) : 1;
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(mine) : "memory");
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        } while (!((before ^ now) & 0x80000000u));
    }
    together();
}

// This program's part of attention: a head, and every so many of the stages that its positions fill.
struct Part {
    bool any;
    int head, split;
    __device__ __forceinline__ Part() : any(blockIdx.x < HEADS * SPLITS), head(any ? blockIdx.x / SPLITS : 0), split(blockIdx.x % SPLITS) {}
};

// Keys and values of the sequence, ``[LAYERS, 2, KV_HEADS, capacity, HEAD_SIZE]``.
struct Cache {
    bf16* at;
    long long capacity;
    int length;
    __device__ bf16* keys(int layer, int head) const {
        return at + ((long long)layer * 2 * KV_HEADS + head) * capacity * HEAD_SIZE;
    }
    __device__ bf16* values(int layer, int head) const { return keys(layer, head) + KV_HEADS * capacity * HEAD_SIZE; }
};

// A place in the ring, and whether it was passed an even number of times.
struct Place {
    int slot = 0;
    u32 parity = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

// The producer: one thread.
struct Producer {
    Shared& shared;
    char* ring;
    u32* tickets;
    u64 policy;
    Place place;

    __device__ void stage(int tag, const bf16* a, const bf16* b, int numbers) {
        // Passed an even number of times: nobody has read it yet, or everybody has.
        wait(shared.empty + place.slot, place.parity ^ 1);
        shared.tags[place.slot] = tag;
        const u32 to = shared_address(ring + place.slot * STAGE_BYTES), full = shared_address(shared.full + place.slot);
        const u32 bytes = numbers * sizeof(bf16);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(2 * bytes) : "memory");
        if (bytes) {
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                         ::"r"(to), "l"(a), "r"(bytes), "r"(full), "l"(policy) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                         ::"r"(to + CHUNK * (u32)sizeof(bf16)), "l"(b), "r"(bytes), "r"(full), "l"(policy) : "memory");
        }
        place.advance();
    }

    // Rows 2 i and 2 i + 1, or, of two matrices one below the other, row i of each.
    __device__ void pairs(int begin, int end, const bf16* weight, int k, int step, int apart, int last) {
        for (int pair = begin; pair < end; ++pair) {
            const int first = step * pair, second = first + apart < last ? first + apart : last;
            const bf16 *a = weight + (long long)first * k, *b = weight + (long long)second * k;
            for (int start = 0; start < k; start += CHUNK) stage(pair, a + start, b + start, k - start < CHUNK ? k - start : CHUNK);
        }
    }

    template <int K, int PAIRS, int APART, int LAST>
    __device__ void product(u64 weights, u32* ticket) {
        constexpr int STEP = APART == 1 ? 2 : 1, OWN = PAIRS / 8 / PROGRAMS, REST = OWN * PROGRAMS;
        const bf16* weight = (const bf16*)weights;
        // The next ticket is drawn before it is needed.
        int next = REST + atomicAdd(ticket, 1);
        pairs(OWN * blockIdx.x, OWN * (blockIdx.x + 1), weight, K, STEP, APART, LAST);
        while (next < PAIRS) {
            const int pair = next;
            next = REST + atomicAdd(ticket, 1);
            pairs(pair, pair + 1, weight, K, STEP, APART, LAST);
        }
        stage(END, nullptr, nullptr, 0);
    }

    __device__ void all(const Cache& cache) {
        const Part part;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        for (int layer = 0; layer < LAYERS; ++layer) {
            const u64* entries = shared.table + layer * ENTRIES;
            u32* ticket = tickets + layer * PRODUCTS;
            product<HIDDEN, QKV / 2, 1, QKV - 1>(entries[QKV_W], ticket);
            const bf16 *keys = cache.keys(layer, part.head / GROUP), *values = cache.values(layer, part.head / GROUP);
            for (int at = part.split * POSITIONS; part.any && at < cache.length; at += SPLITS * POSITIONS) {
                const int left = ((int)cache.capacity - at) * HEAD_SIZE;
                stage(0, keys + at * HEAD_SIZE, values + at * HEAD_SIZE, left < CHUNK ? left : CHUNK);
            }
            product<WIDTH, HIDDEN / 2, 1, HIDDEN - 1>(entries[OUT_W], ticket + 1);
            product<HIDDEN, INNER, INNER, 2 * INNER - 1>(entries[GATE_UP_W], ticket + 2);
            product<INNER, HIDDEN / 2, 1, HIDDEN - 1>(entries[DOWN_W], ticket + 3);
        }
        const u64 head = shared.table[LAYERS * ENTRIES + HEAD_W];
        product<HIDDEN, (VOCABULARY + 1) / 2, 1, VOCABULARY - 1>(head, tickets + LAYERS * PRODUCTS);
    }
};

// A warp that computes.
struct Consumer {
    Shared& shared;
    u32 ring;
    Place place;
    int batch = 0;

    // The oldest stage, once it is there.
    __device__ __forceinline__ u32 take() {
        wait(shared.full + place.slot, place.parity);
        return ring + place.slot * STAGE_BYTES;
    }

    // It has been read: its place may be filled again.
    __device__ __forceinline__ void give_back() {
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(shared.empty + place.slot)) : "memory");
        place.advance();
    }

    // This program's pairs of rows times the input. Of each pair one thread calls ``done(pair, first, second)``.
    //
    // Tensor cores want sixteen rows, and there are two. So a row is read as eight, each of every eighth run of 8 numbers,
    // and the input as eight columns in the same way: of the products of all rows and all columns the diagonal is what was
    // wanted, and the rest is given away. It still takes fewer instructions than multiplying number by number, and a ring
    // that was filled while programs met is to be emptied faster than the memory fills it.
    template <int K, class Input, class Done>
    __device__ __forceinline__ void multiply(const Input& input, Done done) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, eighth = lane / 4;
        const int mine = warp * BLOCK * sizeof(bf16) + lane / 16 * 128 + lane / 8 % 2 * CHUNK * sizeof(bf16) + lane % 8 * 16;
        for (bool more = true; more; batch ^= 1) {
            int count = 0;
#pragma unroll 1
            for (; count < BATCH; ++count) {
                u32 stage = take();
                const int pair = shared.tags[place.slot];
                if (pair == END) {
                    give_back();
                    more = false;
                    break;
                }
                if (threadIdx.x == 0) shared.pairs[batch][count] = pair;
                float sum[4] = {};
#pragma unroll
                for (int chunk = 0; chunk < (K + CHUNK - 1) / CHUNK; ++chunk) {
                    if (chunk) stage = take();
                    if (chunk * CHUNK + warp * BLOCK < K) {
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            u32 a[4];
                            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                                         : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(stage + mine + half * 256) : "memory");
                            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                         : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(input.x[chunk][2 * half]), "r"(input.x[chunk][2 * half + 1]));
                        }
                    }
                    give_back();
                }
                // Of a row of eight columns each lane has two.
                if (lane % 4 == eighth / 2) {
                    shared.sums[batch][count][0][warp * 8 + eighth] = eighth % 2 ? sum[1] : sum[0];
                    shared.sums[batch][count][1][warp * 8 + eighth] = eighth % 2 ? sum[3] : sum[2];
                }
            }
            together();
            if (warp < count) {
                const float4* sums = (const float4*)(shared.sums[batch][warp][lane / 16] + lane % 16 * 8);
                const float4 some = sums[0], others = sums[1];
                float total = ((some.x + some.y) + (some.z + some.w)) + ((others.x + others.y) + (others.z + others.w));
#pragma unroll
                for (int apart = 8; apart; apart /= 2) total += __shfl_xor_sync(~0u, total, apart);
                const float second = __shfl_xor_sync(~0u, total, 16);
                const int pair = shared.pairs[batch][warp];
                if (lane == 0) done(pair, total, second);
            }
        }
    }
};

// Numbers that this lane is concerned with: of each chunk that the warp has a part of, four pairs 64 apart.
template <int K>
struct Input {
    static constexpr int CHUNKS = (K + CHUNK - 1) / CHUNK;
    u32 x[CHUNKS][4];
    __device__ __forceinline__ static int at(int chunk, int i) {
        return chunk * CHUNK + threadIdx.x / 32 * BLOCK + 64 * i + threadIdx.x % 32 * 2;
    }
    __device__ __forceinline__ static bool inside(int chunk) { return chunk * CHUNK + threadIdx.x / 32 * BLOCK < K; }
    __device__ __forceinline__ void read(const bf16* from) {
#pragma unroll
        for (int i = 0; i < 4 * CHUNKS; ++i) x[i / 4][i % 4] = inside(i / 4) ? __ldcg((const u32*)(from + at(i / 4, i % 4))) : 0;
    }
};

// RMS norm of ``x [HIDDEN]``, rounded before the gain, as the model does it.
struct Normed : Input<HIDDEN> {
    u32 gain[CHUNKS][4];
    // Before the meeting: gains depend on nothing.
    __device__ __forceinline__ void fetch(u64 gains) {
#pragma unroll
        for (int i = 0; i < 4 * CHUNKS; ++i)
            if (inside(i / 4)) gain[i / 4][i % 4] = *(const u32*)((const bf16*)gains + at(i / 4, i % 4));
    }
    __device__ __forceinline__ void read(const bf16* from, float eps, Shared& shared) {
        Input<HIDDEN>::read(from);
        float even = 0, odd = 0;
#pragma unroll
        for (int i = 0; i < 4 * CHUNKS; ++i) {
            const float first = low(x[i / 4][i % 4]), second = high(x[i / 4][i % 4]);
            even += first * first, odd += second * second;
            // To be added to without a look at the memory, which takes long while the ring is filled.
            if (inside(i / 4)) shared.x[at(i / 4, i % 4) / 2] = x[i / 4][i % 4];
        }
        even = warp_sum(even + odd);
        if (threadIdx.x % 32 == 0) shared.squares[threadIdx.x / 32] = even;
        together();
        float whole = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) whole += shared.squares[w];
        const float scale = rsqrtf(whole / HIDDEN + eps);
#pragma unroll
        for (int i = 0; i < 4 * CHUNKS; ++i) {
            u32& pair = x[i / 4][i % 4];
            const u32 times = gain[i / 4][i % 4];
            pair = packed(rounded(low(pair) * scale) * low(times), rounded(high(pair) * scale) * high(times));
        }
    }
};

// Attention of one head to a share of the positions, by one program. ``partial`` is ``[HEADS, SPLITS, HEAD_SIZE]`` and
// behind it ``[HEADS, SPLITS, 2]``: the largest score and the sum of powers.
struct Attention {
    Shared& shared;
    const Part part;
    float best, weight, total[8];

    // A warp: one head's numbers, normed and turned.
    __device__ __forceinline__ void turn(float* out, const bf16* from, u64 gains, const bf16* cosine, const bf16* sine, float eps, float times, bf16* cached) {
        const int lane = threadIdx.x % 32;
        const bf16* gain = (const bf16*)gains;
        float lows[HALF / 32], highs[HALF / 32], square = 0;
#pragma unroll
        for (int i = 0; i < HALF / 32; ++i) {
            lows[i] = wide(__ldcg(from + lane + 32 * i)), highs[i] = wide(__ldcg(from + HALF + lane + 32 * i));
            square += lows[i] * lows[i] + highs[i] * highs[i];
        }
        const float scale = HEAD_NORMS ? rsqrtf(warp_sum(square) / HEAD_SIZE + eps) : 1;
#pragma unroll
        for (int i = 0; i < HALF / 32; ++i) {
            const int at = lane + 32 * i;
            if (HEAD_NORMS) {
                lows[i] = rounded(lows[i] * scale) * wide(gain[at]);
                highs[i] = rounded(highs[i] * scale) * wide(gain[HALF + at]);
            }
            const float c = wide(cosine[at]), s = wide(sine[at]);
            const float first = rounded(lows[i] * c - highs[i] * s), second = rounded(highs[i] * c + lows[i] * s);
            out[at] = first * times, out[HALF + at] = second * times;
            if (cached) cached[at] = narrow(first), cached[HALF + at] = narrow(second);
        }
    }

    // This head's query; in one program a head also the new position's key and value, which go into the cache.
    __device__ __forceinline__ void prepare(const Cache& cache, int layer, const bf16* qkv, const bf16* cosine, const bf16* sine, float eps, float scale) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = part.head / GROUP;
        const u64* entries = shared.table + layer * ENTRIES;
        const bool keeps = part.head % GROUP == 0;
        // Base 2, so that the exponential is one instruction.
        if (warp == 0)
            turn(shared.attention.q, qkv + part.head * HEAD_SIZE, entries[Q_GAIN], cosine, sine, eps, scale * 1.4426950408889634f, nullptr);
        if (part.split == 0 && warp == 1) {
            bf16* to = cache.keys(layer, kv_head) + (long long)cache.length * HEAD_SIZE;
            turn(shared.attention.k, qkv + WIDTH + kv_head * HEAD_SIZE, entries[K_GAIN], cosine, sine, eps, 1, keeps ? to : nullptr);
        }
        if (part.split == 0 && warp == 2) {
            const bf16* from = qkv + WIDTH + (KV_HEADS + kv_head) * HEAD_SIZE;
            bf16* to = cache.values(layer, kv_head) + (long long)cache.length * HEAD_SIZE;
#pragma unroll
            for (int at = lane; at < HEAD_SIZE; at += 32) {
                const bf16 value = __ldcg(from + at);
                shared.attention.v[at] = wide(value);
                if (keeps) to[at] = value;
            }
        }
        together();
    }

    __device__ __forceinline__ static float over_position(float value) {
#pragma unroll
        for (int apart = 1; apart < LANES; apart *= 2) value += __shfl_xor_sync(~0u, value, apart);
        return value;
    }

    __device__ __forceinline__ void add(float score, const float* value) {
        const float higher = fmaxf(best, score), old = power_of_2(best - higher), p = power_of_2(score - higher);
        weight = weight * old + p;
#pragma unroll
        for (int i = 0; i < 8; ++i) total[i] = total[i] * old + p * value[i];
        best = higher;
    }

    __device__ __forceinline__ void attend(Consumer& consumer, int length, float* partial) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = lane / LANES, dims = lane % LANES * 8;
        float query[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) query[i] = shared.attention.q[dims + i], total[i] = 0;
        best = -INFINITE, weight = 0;
        for (int at = part.split * POSITIONS; at < length; at += SPLITS * POSITIONS) {
            const u32 stage = consumer.take() + (warp * BLOCK + lane * 8) * sizeof(bf16);
            float key[8], value[8], score = 0;
            unpack(key, shared_numbers(stage));
            unpack(value, shared_numbers(stage + CHUNK * sizeof(bf16)));
            consumer.give_back();
#pragma unroll
            for (int i = 0; i < 8; ++i) score += key[i] * query[i];
            score = over_position(score);
            // Behind the last position lies anything.
            if (at + warp * (BLOCK / HEAD_SIZE) + mine < length) add(score, value);
        }
        if (part.split == 0 && warp == 0) {
            float score = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) score += query[i] * shared.attention.k[dims + i];
            score = over_position(score);
            if (mine == 0) add(score, shared.attention.v + dims);
        }
#pragma unroll
        for (int apart = LANES; apart < 32; apart *= 2) {
            const float their_best = __shfl_xor_sync(~0u, best, apart), their_weight = __shfl_xor_sync(~0u, weight, apart);
            const float higher = fmaxf(best, their_best);
            // Two that saw no position must not give inf - inf.
            const float safe = higher == -INFINITE ? 0 : higher, old = power_of_2(best - safe), theirs = power_of_2(their_best - safe);
            weight = weight * old + their_weight * theirs;
#pragma unroll
            for (int i = 0; i < 8; ++i) total[i] = total[i] * old + __shfl_xor_sync(~0u, total[i], apart) * theirs;
            best = higher;
        }
        if (mine == 0) {
#pragma unroll
            for (int i = 0; i < 8; ++i) shared.attention.totals[warp][dims + i] = total[i];
            if (dims == 0) shared.attention.bests[warp] = best, shared.attention.weights[warp] = weight;
        }
        together();
        const int at = threadIdx.x;
        if (at < HEAD_SIZE) {
            float higher = -INFINITE, all = 0, sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) higher = fmaxf(higher, shared.attention.bests[w]);
            const float safe = higher == -INFINITE ? 0 : higher;
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                const float factor = power_of_2(shared.attention.bests[w] - safe);
                all += shared.attention.weights[w] * factor, sum += shared.attention.totals[w][at] * factor;
            }
            const int which = part.head * SPLITS + part.split;
            partial[which * HEAD_SIZE + at] = sum;
            if (at == 0) ((float2*)(partial + HEADS * SPLITS * HEAD_SIZE))[which] = make_float2(higher, all);
        }
    }
};

// All heads put together, by every program, for the product that follows.
struct Attended : Input<WIDTH> {
    __device__ __forceinline__ void gather(const float* partial) {
#pragma unroll
        for (int i = 0; i < 4 * CHUNKS; ++i) {
            const int from = at(i / 4, i % 4), head = from / HEAD_SIZE, dim = from % HEAD_SIZE;
            float2 mark[SPLITS], some[SPLITS];
#pragma unroll
            for (int s = 0; s < SPLITS; ++s) {
                mark[s] = some[s] = make_float2(0, 0);
                if (inside(i / 4)) {
                    mark[s] = __ldcg((const float2*)(partial + HEADS * SPLITS * HEAD_SIZE) + head * SPLITS + s);
                    some[s] = __ldcg((const float2*)(partial + (head * SPLITS + s) * HEAD_SIZE + dim));
                }
            }
            float higher = -INFINITE, all = 0, first = 0, second = 0;
#pragma unroll
            for (int s = 0; s < SPLITS; ++s) higher = fmaxf(higher, mark[s].x);
#pragma unroll
            for (int s = 0; s < SPLITS; ++s) {
                const float factor = power_of_2(mark[s].x - higher);
                all += mark[s].y * factor, first += some[s].x * factor, second += some[s].y * factor;
            }
            x[i / 4][i % 4] = inside(i / 4) ? packed(first / all, second / all) : 0;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) decode_step(
    const u64* table, bf16* x, float* logits, const bf16* cosine, const bf16* sine, bf16* anchor, const long long* caches,
    const int* capacity, const int* here, bf16* qkv, bf16* inner, float* partial, u32* counter, u32* tickets, float eps, float scale) {
    extern __shared__ __align__(128) char memory[];
    Shared& shared = *(Shared*)(memory + STAGES * STAGE_BYTES);
    if (threadIdx.x < STAGES) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(shared.full + threadIdx.x)) : "memory");
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(shared.empty + threadIdx.x)), "n"(WARPS) : "memory");
    }
    for (int i = threadIdx.x; i < (LAYERS + 1) * ENTRIES; i += THREADS + 32) shared.table[i] = table[i];
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const Cache cache = {anchor + caches[0] * UNIT, capacity[0], here[0]};
    if (threadIdx.x >= THREADS) {
        if (threadIdx.x == THREADS) Producer{shared, memory, tickets}.all(cache);
        return;
    }

    const auto bias = [](u64 from, int at) { return from ? wide(((const bf16*)from)[at]) : 0.0f; };
    const auto add = [&](u64 biases) {
        return [=, &shared](int pair, float first, float second) {
            const u32 before = shared.x[pair];
            // A linear layer's output is rounded before it is added, as the model does it.
            const float one = rounded(first + bias(biases, 2 * pair)), two = rounded(second + bias(biases, 2 * pair + 1));
            ((u32*)x)[pair] = packed(low(before) + one, high(before) + two);
        };
    };
    Consumer consumer{shared, shared_address(memory)};
    Attention attention{shared, Part()};
    Normed normed;
    normed.fetch(shared.table[INPUT_GAIN]);
#pragma unroll 1
    for (int layer = 0; layer < LAYERS; ++layer) {
        const u64* entries = shared.table + layer * ENTRIES;
        normed.read(x, eps, shared);
        consumer.multiply<HIDDEN>(normed, [&](int pair, float first, float second) {
            ((u32*)qkv)[pair] = packed(first + bias(entries[QKV_B], 2 * pair), second + bias(entries[QKV_B], 2 * pair + 1));
        });
        meet(counter);
        // Nobody draws any more: ready for the next step.
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            tickets[layer * PRODUCTS] = 0;
            if (layer == 0) tickets[LAYERS * PRODUCTS] = 0;
        }
        if (attention.part.any) {
            attention.prepare(cache, layer, qkv, cosine, sine, eps, scale);
            attention.attend(consumer, cache.length, partial);
        }
        meet(counter);
        {
            Attended attended;
            attended.gather(partial);
            consumer.multiply<WIDTH>(attended, add(entries[OUT_B]));
        }
        normed.fetch(entries[POST_GAIN]);
        meet(counter);
        if (blockIdx.x == 0 && threadIdx.x == 0) tickets[layer * PRODUCTS + 1] = 0;
        normed.read(x, eps, shared);
        consumer.multiply<HIDDEN>(normed, [&](int row, float gate, float up) {
            gate += bias(entries[GATE_UP_B], row), up += bias(entries[GATE_UP_B], INNER + row);
            inner[row] = narrow(gate / (1 + __expf(-gate)) * up);
        });
        meet(counter);
        if (blockIdx.x == 0 && threadIdx.x == 0) tickets[layer * PRODUCTS + 2] = 0;
        {
            Input<INNER> input;
            input.read(inner);
            consumer.multiply<INNER>(input, add(entries[DOWN_B]));
        }
        normed.fetch(layer + 1 < LAYERS ? entries[ENTRIES + INPUT_GAIN] : entries[ENTRIES + FINAL_GAIN]);
        meet(counter);
        if (blockIdx.x == 0 && threadIdx.x == 0) tickets[layer * PRODUCTS + 3] = 0;
    }
    const u64* last = shared.table + LAYERS * ENTRIES;
    normed.read(x, eps, shared);
    consumer.multiply<HIDDEN>(normed, [&](int pair, float first, float second) {
        // Rounded to the model's dtype, as its own are.
        logits[2 * pair] = rounded(first + bias(last[HEAD_B], 2 * pair));
        if (2 * pair + 1 < VOCABULARY) logits[2 * pair + 1] = rounded(second + bias(last[HEAD_B], 2 * pair + 1));
    });
}
