// One token through a whole LLaMA as one kernel, for one sequence in bfloat16 on Hopper.
//
// A decode step is the reading of all weights once, and the memory must never rest. Here each warp copies its own share of
// every matrix, in the order of use, into its own ring in shared memory, and goes on doing so across the borders between
// products: weights depend on nothing. What was computed passes from one product to the next through a barrier of all
// programs, and while that takes its time the rings fill. A layer is five phases:
//
//     qkv = Wqkv norm(x)  |  attention in parts  |  x += Wo attended  |  inner = silu(G y) * U y, y = norm(x)  |  x += Wd inner
//
// and the last phase of a step is the head. A product's rows are dealt out in pairs, a pair to a warp; both rows of a pair
// are copied in chunks side by side. Attention's chunks are keys and values of a few cached positions, so they travel in the
// same rings. One program a multiprocessor; all must be resident, since they wait for each other.
//
// Sizes are given by whoever compiles: LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY, HEAD_NORMS, PROGRAMS,
// WARPS, STAGES, SPLITS. HIDDEN, INNER and HEADS * HEAD_SIZE are multiples of 256; HEAD_SIZE is 64 or 128.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INFINITE __int_as_float(0x7f800000)
constexpr int CHUNK = 512;  // numbers of each of a pair's rows
constexpr int BLOCK = 256;  // numbers of a row that a warp takes in at once
constexpr int STAGE_BYTES = 2 * CHUNK * sizeof(bf16);
constexpr int THREADS = 32 * WARPS;
constexpr int WIDTH = HEADS * HEAD_SIZE;
constexpr int QKV = WIDTH + 2 * KV_HEADS * HEAD_SIZE;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int POSITIONS = CHUNK / HEAD_SIZE;   // in a chunk of keys
constexpr int LANES = HEAD_SIZE / 16;          // that share a position
constexpr int HALF = HEAD_SIZE / 2;
constexpr int UNIT = 8;                        // numbers that an offset into a cache counts in
constexpr int ENTRIES = 12;                    // of the table, a layer
constexpr int LARGEST = HIDDEN > INNER ? (HIDDEN > WIDTH ? HIDDEN : WIDTH) : (INNER > WIDTH ? INNER : WIDTH);
constexpr int ATTENTION_BYTES = (3 * HEAD_SIZE + WARPS * (HEAD_SIZE + 2)) * sizeof(float);
constexpr int INPUT_BYTES = LARGEST * sizeof(bf16) > ATTENTION_BYTES ? LARGEST * sizeof(bf16) : ATTENTION_BYTES;

enum Entry { QKV_W, OUT_W, GATE_UP_W, DOWN_W, QKV_B, OUT_B, GATE_UP_B, DOWN_B, INPUT_GAIN, POST_GAIN, Q_GAIN, K_GAIN };
enum Last { HEAD_W, HEAD_B, FINAL_GAIN };
enum Phase { PHASE_QKV, PHASE_ATTENTION, PHASE_OUT, PHASE_GATE_UP, PHASE_DOWN, PHASES };

struct Shared {
    u64 full[WARPS * STAGES];
    u64 table[(LAYERS + 1) * ENTRIES];
    float sums[WARPS];
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
__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }
// What other programs wrote since this one began is read past the cache that they do not write through.
__device__ __forceinline__ uint4 fresh(const void* at) { return __ldcg((const uint4*)at); }
__device__ __forceinline__ float fresh_number(const bf16* at) { return wide(__ldcg(at)); }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
    return value;
}

// All programs meet; what each wrote before is there for all afterwards. The counter's top bit flips once a meeting.
__device__ __forceinline__ void meet(u32* counter) {
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 before, now;
        const u32 mine = blockIdx.x == 0 ? 0x80000000u - (PROGRAMS - 1) : 1;
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(mine) : "memory");
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        } while (!((before ^ now) & 0x80000000u));
    }
    __syncthreads();
}

// Keys of this sequence, ``[LAYERS, 2, KV_HEADS, capacity, HEAD_SIZE]``.
struct Cache {
    bf16* at;
    long long capacity;
    int length;
    __device__ bf16* keys(int layer, int head) const {
        return at + ((long long)layer * 2 * KV_HEADS + head) * capacity * HEAD_SIZE;
    }
    __device__ bf16* values(int layer, int head) const { return keys(layer, head) + KV_HEADS * capacity * HEAD_SIZE; }
};

// A warp's share of all that is read in a step, in the order of use.
struct Stream {
    Shared* shared;
    char* ring;
    u64* full;
    Cache cache;
    u64 policy;
    int first_pair, first_group, kv_head;
    int slot;
    u32 parity;
    // Where the next copy begins, and how many bytes of this pair of rows are still to come.
    const char *a, *b;
    int rest, item, layer, phase;

    __device__ __forceinline__ int count() const {
        if (layer == LAYERS) return (VOCABULARY + 1) / 2;
        if (phase == PHASE_QKV) return QKV / 2;
        if (phase == PHASE_ATTENTION) return (cache.length + POSITIONS - 1) / POSITIONS;
        if (phase == PHASE_GATE_UP) return INNER;
        return HIDDEN / 2;
    }

    __device__ __forceinline__ void locate() {
        if (phase == PHASE_ATTENTION && layer < LAYERS) {
            a = (const char*)(cache.keys(layer, kv_head) + item * CHUNK);
            b = (const char*)(cache.values(layer, kv_head) + item * CHUNK);
            rest = CHUNK * sizeof(bf16);
            return;
        }
        const u64* entries = shared->table + layer * ENTRIES;
        int which = layer == LAYERS ? HEAD_W : phase == PHASE_QKV ? QKV_W : phase == PHASE_OUT ? OUT_W : phase == PHASE_GATE_UP ? GATE_UP_W : DOWN_W;
        int k = phase == PHASE_OUT ? WIDTH : phase == PHASE_DOWN ? INNER : HIDDEN;
        int first = 2 * item, second = first + 1;
        if (layer == LAYERS && second == VOCABULARY) second = first;
        if (layer < LAYERS && phase == PHASE_GATE_UP) first = item, second = INNER + item;
        const bf16* weight = (const bf16*)entries[which];
        a = (const char*)(weight + (long long)first * k);
        b = (const char*)(weight + (long long)second * k);
        rest = k * sizeof(bf16);
    }

    // Goes to the first item of this phase, or of the first one after it in which this warp has any.
    __device__ __forceinline__ void open() {
        for (; !(layer == LAYERS && phase > 0); layer += phase == PHASES - 1, phase = phase == PHASES - 1 ? 0 : phase + 1) {
            item = phase == PHASE_ATTENTION ? first_group : first_pair;
            if (item < count()) return locate();
        }
        rest = 0;
    }

    __device__ __forceinline__ void copy() {
        if (rest == 0) return;
        const int size = rest < CHUNK * (int)sizeof(bf16) ? rest : CHUNK * (int)sizeof(bf16);
        if (threadIdx.x % 32 == 0) {
            const u32 to = shared_address(ring + slot * STAGE_BYTES), bar = shared_address(full + slot);
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(2 * size) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(a), "r"(size), "r"(bar), "l"(policy) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to + CHUNK * (u32)sizeof(bf16)), "l"(b), "r"(size), "r"(bar), "l"(policy) : "memory");
        }
        a += size, b += size, rest -= size;
        if (rest) return;
        item += phase == PHASE_ATTENTION ? SPLITS * WARPS : PROGRAMS * WARPS;
        if (item < count()) return locate();
        layer += phase == PHASES - 1, phase = phase == PHASES - 1 ? 0 : phase + 1;
        open();
    }

    __device__ __forceinline__ void begin() {
        layer = phase = slot = 0;
        parity = 0;
        open();
        for (slot = 0; slot < STAGES; ++slot) copy();
        slot = 0;
    }

    // The oldest chunk, once it is there.
    __device__ __forceinline__ const char* take() {
        const u32 bar = shared_address(full + slot);
        u32 there;
        do {
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(there) : "r"(bar), "r"(parity) : "memory");
        } while (!there);
        return ring + slot * STAGE_BYTES;
    }

    // It has been read: its place is filled again.
    __device__ __forceinline__ void give_back() {
        __syncwarp();
        copy();
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void multiply_add(float& even, float& odd, uint4 w, uint4 x) {
    even += low(w.x) * low(x.x), odd += high(w.x) * high(x.x);
    even += low(w.y) * low(x.y), odd += high(w.y) * high(x.y);
    even += low(w.z) * low(x.z), odd += high(w.z) * high(x.z);
    even += low(w.w) * low(x.w), odd += high(w.w) * high(x.w);
}

// Every pair of rows of this warp times ``input [K]``; ``done(item, first, second)`` on every lane.
template <int K, class Done>
__device__ __forceinline__ void multiply(Stream& stream, const char* input, int count, Done done) {
    const int lane = threadIdx.x % 32;
    for (int item = stream.first_pair; item < count; item += PROGRAMS * WARPS) {
        float first[2] = {}, second[2] = {};
#pragma unroll 1
        for (int start = 0; start < K; start += CHUNK) {
            const char* chunk = stream.take() + lane * 16;
            const char* x = input + start * sizeof(bf16) + lane * 16;
#pragma unroll
            for (int block = 0; block < CHUNK; block += BLOCK) {
                if (K % CHUNK == 0 || start + block < K) {
                    const uint4 values = *(const uint4*)(x + block * sizeof(bf16));
                    multiply_add(first[0], first[1], *(const uint4*)(chunk + block * sizeof(bf16)), values);
                    multiply_add(second[0], second[1], *(const uint4*)(chunk + (CHUNK + block) * sizeof(bf16)), values);
                }
            }
            stream.give_back();
        }
        done(item, warp_sum(first[0] + first[1]), warp_sum(second[0] + second[1]));
    }
}

// RMS norm of ``x [HIDDEN]``, rounded before the gain, as the model does it.
struct Normed {
    static constexpr int EACH = (HIDDEN / 8 + THREADS - 1) / THREADS;
    uint4 gain[EACH];
    // Before the meeting: it depends on nothing.
    __device__ __forceinline__ void fetch(const bf16* gains) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int at = threadIdx.x + i * THREADS;
            if (at < HIDDEN / 8) gain[i] = *(const uint4*)(gains + 8 * at);
        }
    }
    __device__ __forceinline__ void put(char* input, const bf16* x, float eps, float* sums) {
        uint4 values[EACH];
        float square = 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int at = threadIdx.x + i * THREADS;
            values[i] = at < HIDDEN / 8 ? fresh(x + 8 * at) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            float even = 0, odd = 0;
            multiply_add(even, odd, values[i], values[i]);
            square += even + odd;
        }
        square = warp_sum(square);
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = square;
        __syncthreads();
        float whole = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) whole += sums[w];
        const float scale = rsqrtf(whole / HIDDEN + eps);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int at = threadIdx.x + i * THREADS;
            const u32 *from = &values[i].x, *times = &gain[i].x;
            uint4 result;
            u32* to = &result.x;
#pragma unroll
            for (int j = 0; j < 4; ++j)
                to[j] = packed(rounded(low(from[j]) * scale) * low(times[j]), rounded(high(from[j]) * scale) * high(times[j]));
            if (at < HIDDEN / 8) *(uint4*)(input + 16 * at) = result;
        }
        __syncthreads();
    }
};

// Attention of one head to a share of the positions, by one program. ``partial`` is ``[HEADS, SPLITS, HEAD_SIZE]`` and
// behind it ``[HEADS, SPLITS, 2]``: the largest score and the sum of powers.
struct Attention {
    float *q, *k, *v, *parts, *marks;

    __device__ __forceinline__ explicit Attention(char* memory) {
        q = (float*)memory, k = q + HEAD_SIZE, v = k + HEAD_SIZE, parts = v + HEAD_SIZE, marks = parts + WARPS * HEAD_SIZE;
    }

    // A warp: one head's numbers, normed and turned.
    __device__ __forceinline__ void turn(float* out, const bf16* from, const bf16* gain, const bf16* cosine, const bf16* sine, float eps, float times, bf16* cached) {
        const int lane = threadIdx.x % 32;
        float lows[HALF / 32], highs[HALF / 32], square = 0;
#pragma unroll
        for (int i = 0; i < HALF / 32; ++i) {
            lows[i] = fresh_number(from + lane + 32 * i);
            highs[i] = fresh_number(from + HALF + lane + 32 * i);
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

    // Queries of this head; of one program a head the new position's key and value too, which go into the cache.
    __device__ __forceinline__ void prepare(const Stream& stream, int layer, int head, int split, const bf16* qkv, const bf16* cosine, const bf16* sine, float eps, float scale) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = stream.kv_head;
        const u64* entries = stream.shared->table + layer * ENTRIES;
        const bool keeps = head % GROUP == 0;
        if (warp == 0)
            turn(q, qkv + head * HEAD_SIZE, (const bf16*)entries[Q_GAIN], cosine, sine, eps, scale * 1.4426950408889634f, nullptr);
        if (split == 0 && warp == 1) {
            bf16* to = stream.cache.keys(layer, kv_head) + (long long)stream.cache.length * HEAD_SIZE;
            turn(k, qkv + WIDTH + kv_head * HEAD_SIZE, (const bf16*)entries[K_GAIN], cosine, sine, eps, 1, keeps ? to : nullptr);
        }
        if (split == 0 && warp == 2) {
            const bf16* from = qkv + WIDTH + (KV_HEADS + kv_head) * HEAD_SIZE;
            bf16* to = stream.cache.values(layer, kv_head) + (long long)stream.cache.length * HEAD_SIZE;
#pragma unroll
            for (int at = lane; at < HEAD_SIZE; at += 32) {
                const bf16 value = __ldcg(from + at);
                v[at] = wide(value);
                if (keeps) to[at] = value;
            }
        }
        __syncthreads();
    }

    float best, weight, total[16];

    __device__ __forceinline__ void add(float score, const float* value) {
        const float higher = fmaxf(best, score), old = power_of_2(best - higher), p = power_of_2(score - higher);
        weight = weight * old + p;
#pragma unroll
        for (int i = 0; i < 16; ++i) total[i] = total[i] * old + p * value[i];
        best = higher;
    }

    __device__ __forceinline__ static float over_position(float value) {
#pragma unroll
        for (int apart = 1; apart < LANES; apart *= 2) value += __shfl_xor_sync(~0u, value, apart);
        return value;
    }

    __device__ __forceinline__ void attend(Stream& stream, int head, int split, float* partial) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = lane / LANES, dims = lane % LANES * 16;
        float query[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) query[i] = q[dims + i], total[i] = 0;
        best = -INFINITE, weight = 0;
        for (int group = stream.first_group; group * POSITIONS < stream.cache.length; group += SPLITS * WARPS) {
            const char* chunk = stream.take() + lane * 32;
            float score = 0, other = 0, value[16];
            const uint4 keys[2] = {*(const uint4*)chunk, *(const uint4*)(chunk + 16)};
            const char* behind = chunk + CHUNK * sizeof(bf16);
            const uint4 values[2] = {*(const uint4*)behind, *(const uint4*)(behind + 16)};
            stream.give_back();
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const u32 key = (&keys[i / 4].x)[i % 4], pair = (&values[i / 4].x)[i % 4];
                score += low(key) * query[2 * i], other += high(key) * query[2 * i + 1];
                value[2 * i] = low(pair), value[2 * i + 1] = high(pair);
            }
            score = over_position(score + other);
            // Behind the last position lies anything.
            if (group * POSITIONS + mine < stream.cache.length) add(score, value);
        }
        if (split == 0 && warp == 0) {
            float score = 0;
#pragma unroll
            for (int i = 0; i < 16; ++i) score += query[i] * k[dims + i];
            score = over_position(score);
            if (mine == 0) add(score, v + dims);
        }
#pragma unroll
        for (int apart = LANES; apart < 32; apart *= 2) {
            const float their_best = __shfl_xor_sync(~0u, best, apart), their_weight = __shfl_xor_sync(~0u, weight, apart);
            const float higher = fmaxf(best, their_best);
            // Two that saw no position must not give inf - inf.
            const float safe = higher == -INFINITE ? 0 : higher, old = power_of_2(best - safe), theirs = power_of_2(their_best - safe);
            weight = weight * old + their_weight * theirs;
#pragma unroll
            for (int i = 0; i < 16; ++i) total[i] = total[i] * old + __shfl_xor_sync(~0u, total[i], apart) * theirs;
            best = higher;
        }
        if (mine == 0) {
#pragma unroll
            for (int i = 0; i < 16; ++i) parts[warp * HEAD_SIZE + dims + i] = total[i];
            if (dims == 0) marks[2 * warp] = best, marks[2 * warp + 1] = weight;
        }
        __syncthreads();
        const int at = threadIdx.x;
        if (at < HEAD_SIZE) {
            float higher = -INFINITE, all = 0, sum = 0;
            for (int w = 0; w < WARPS; ++w) higher = fmaxf(higher, marks[2 * w]);
            const float safe = higher == -INFINITE ? 0 : higher;
            for (int w = 0; w < WARPS; ++w) {
                const float factor = power_of_2(marks[2 * w] - safe);
                all += marks[2 * w + 1] * factor, sum += parts[w * HEAD_SIZE + at] * factor;
            }
            const int part = head * SPLITS + split;
            partial[part * HEAD_SIZE + at] = sum;
            float* mark = partial + HEADS * SPLITS * HEAD_SIZE + 2 * part;
            if (at == 0) mark[0] = higher, mark[1] = all;
        }
    }

    // All heads put together, by every program, for the product that follows.
    __device__ __forceinline__ static void gather(char* input, const float* partial) {
        for (int at = threadIdx.x; at < WIDTH / 8; at += THREADS) {
            const int head = at * 8 / HEAD_SIZE, dim = at * 8 % HEAD_SIZE;
            const float2* marks = (const float2*)(partial + HEADS * SPLITS * HEAD_SIZE) + head * SPLITS;
            float2 mark[SPLITS];
            float4 some[SPLITS], more[SPLITS];
#pragma unroll
            for (int s = 0; s < SPLITS; ++s) {
                mark[s] = __ldcg(marks + s);
                const float4* from = (const float4*)(partial + (head * SPLITS + s) * HEAD_SIZE + dim);
                some[s] = __ldcg(from), more[s] = __ldcg(from + 1);
            }
            float higher = -INFINITE, all = 0, sum[8] = {};
#pragma unroll
            for (int s = 0; s < SPLITS; ++s) higher = fmaxf(higher, mark[s].x);
#pragma unroll
            for (int s = 0; s < SPLITS; ++s) {
                const float factor = power_of_2(mark[s].x - higher);
                all += mark[s].y * factor;
                sum[0] += some[s].x * factor, sum[1] += some[s].y * factor, sum[2] += some[s].z * factor, sum[3] += some[s].w * factor;
                sum[4] += more[s].x * factor, sum[5] += more[s].y * factor, sum[6] += more[s].z * factor, sum[7] += more[s].w * factor;
            }
            const float over = 1 / all;
            *(uint4*)(input + 16 * at) = make_uint4(
                packed(sum[0] * over, sum[1] * over), packed(sum[2] * over, sum[3] * over),
                packed(sum[4] * over, sum[5] * over), packed(sum[6] * over, sum[7] * over));
        }
        __syncthreads();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_step(
    const u64* table, bf16* x, float* logits, const bf16* cosine, const bf16* sine, bf16* anchor, const long long* caches,
    const int* capacity, const int* here, bf16* qkv, bf16* inner, float* partial, u32* counter, float eps, float scale) {
    extern __shared__ __align__(128) char memory[];
    char* input = memory + WARPS * STAGES * STAGE_BYTES;
    Shared* shared = (Shared*)(input + INPUT_BYTES);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x < WARPS * STAGES)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(shared->full + threadIdx.x)) : "memory");
    for (int i = threadIdx.x; i < (LAYERS + 1) * ENTRIES; i += THREADS) shared->table[i] = table[i];
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    const bool attends = blockIdx.x < HEADS * SPLITS;
    const int head = attends ? blockIdx.x / SPLITS : 0, split = blockIdx.x % SPLITS;
    Stream stream;
    stream.shared = shared;
    stream.ring = memory + warp * STAGES * STAGE_BYTES;
    stream.full = shared->full + warp * STAGES;
    stream.cache.at = anchor + caches[0] * UNIT, stream.cache.capacity = capacity[0], stream.cache.length = here[0];
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(stream.policy));
    stream.first_pair = warp * PROGRAMS + blockIdx.x;
    stream.first_group = attends ? split + SPLITS * warp : 0x7fffffff / POSITIONS;
    stream.kv_head = head / GROUP;
    stream.begin();

    const auto bias = [](u64 from, int at) { return from ? wide(((const bf16*)from)[at]) : 0.0f; };
    const auto add = [&](u64 biases) {
        return [=](int item, float first, float second) {
            if (lane == 0) {
                // A linear layer's output is rounded before it is added, as the model does it.
                const u32 before = __ldcg((const u32*)x + item);
                const float one = rounded(first + bias(biases, 2 * item)), two = rounded(second + bias(biases, 2 * item + 1));
                ((u32*)x)[item] = packed(low(before) + one, high(before) + two);
            }
        };
    };
    Normed norm;
    Attention attention(input);
    norm.fetch((const bf16*)shared->table[INPUT_GAIN]);
#pragma unroll 1
    for (int layer = 0; layer < LAYERS; ++layer) {
        const u64* entries = shared->table + layer * ENTRIES;
        norm.put(input, x, eps, shared->sums);
        multiply<HIDDEN>(stream, input, QKV / 2, [&](int item, float first, float second) {
            if (lane == 0)
                ((u32*)qkv)[item] = packed(first + bias(entries[QKV_B], 2 * item), second + bias(entries[QKV_B], 2 * item + 1));
        });
        meet(counter);
        if (attends) {
            attention.prepare(stream, layer, head, split, qkv, cosine, sine, eps, scale);
            attention.attend(stream, head, split, partial);
        }
        meet(counter);
        Attention::gather(input, partial);
        multiply<WIDTH>(stream, input, HIDDEN / 2, add(entries[OUT_B]));
        norm.fetch((const bf16*)entries[POST_GAIN]);
        meet(counter);
        norm.put(input, x, eps, shared->sums);
        multiply<HIDDEN>(stream, input, INNER, [&](int item, float gate, float up) {
            if (lane == 0) {
                gate += bias(entries[GATE_UP_B], item), up += bias(entries[GATE_UP_B], INNER + item);
                inner[item] = narrow(gate / (1 + __expf(-gate)) * up);
            }
        });
        meet(counter);
        for (int at = threadIdx.x; at < INNER / 8; at += THREADS) *(uint4*)(input + 16 * at) = fresh(inner + 8 * at);
        __syncthreads();
        multiply<INNER>(stream, input, HIDDEN / 2, add(entries[DOWN_B]));
        norm.fetch((const bf16*)(layer + 1 < LAYERS ? entries[ENTRIES + INPUT_GAIN] : entries[ENTRIES + FINAL_GAIN]));
        meet(counter);
    }
    const u64* last = shared->table + LAYERS * ENTRIES;
    norm.put(input, x, eps, shared->sums);
    multiply<HIDDEN>(stream, input, (VOCABULARY + 1) / 2, [&](int item, float first, float second) {
        if (lane == 0) {
            // Rounded to the model's dtype, as its own are.
            logits[2 * item] = rounded(first + bias(last[HEAD_B], 2 * item));
            if (2 * item + 1 < VOCABULARY) logits[2 * item + 1] = rounded(second + bias(last[HEAD_B], 2 * item + 1));
        }
    });
}
