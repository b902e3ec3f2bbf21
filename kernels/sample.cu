// Picks a token for each row of logits, without sorting.
//
// Kept are the top_k largest logits and those tied with the last of them, then the most probable
// of these that reach the mass top_p (of tied ones the lowest ids). Weights are
// e^((logit - max) / temperature); the token is the first, in id order, at which the running sum
// exceeds the draw times the kept mass. Sums are f64, in an order fixed by the vocabulary: each
// warp has a range of it, lanes side by side.
//
// What top_k or top_p can keep mostly lies near the largest logit and is little: it is listed in
// shared memory, in id order, and the rest is done with the list as the row.
//
// grid: rows; block: SAMPLE_THREADS; shared: Scratch. Passes over the row's logits (4 bytes each, from
// the cache after the first): 2 if greedy, 3 with top_k, 4 with top_p, 4 with neither; where the list
// does not do, 3 more for top_k and 34 for top_p.
#include "common.cuh"

constexpr unsigned SAMPLE_THREADS = 512;
constexpr unsigned SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr unsigned BINS = 2048;
// Logits that a thread loads before it looks at the first.
constexpr unsigned UNDER_WAY = 16;
// Tokens of a list.
constexpr unsigned LISTED = 1024;
// The bins of a list are as wide as 1 / 64 of a logit.
constexpr float BINS_PER_LOGIT = 64;

namespace {

// Numbers in the order of the floats that they stand for.
__device__ inline unsigned key_of(float value) {
  unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Ten rounds of Philox4x32 (Salmon et al., SC 2011); the first word.
__device__ inline unsigned philox(const SampleRowParams &row) {
  unsigned c0 = row.candidate, c1 = row.position, c2 = row.stream[0], c3 = row.stream[1];
  unsigned k0 = row.seed[0], k1 = row.seed[1];
  for (unsigned round = 0; round < 10; round++) {
    unsigned long long a = c0 * 0xD2511F53ull, b = c2 * 0xCD9E8D57ull;
    unsigned high_a = unsigned(a >> 32), high_b = unsigned(b >> 32);
    c0 = high_b ^ c1 ^ k0;
    c1 = unsigned(b);
    c2 = high_a ^ c3 ^ k1;
    c3 = unsigned(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

struct Scratch {
  double sums[SAMPLE_WARPS];
  unsigned counts[SAMPLE_WARPS];
  unsigned bins[BINS + 3];  // and three results
  unsigned listed;
  unsigned unordered_ids[LISTED], ids[LISTED];
  float unordered[LISTED], logits[LISTED];
};

// One row's distribution: what of it is kept.
struct Row {
  const float *logits;
  unsigned vocab, begin, end;  // the warp's range
  float max, temperature;
  unsigned bound = 0;          // keys from here on are kept
  unsigned tied_key = 0;       // of this key, only the first `tied` tokens
  unsigned tied = 0xffffffffu;

  __device__ double weight(float logit) const {
    float x = (logit - max) / temperature;
    // Exactly nothing for what cannot be drawn.
    return x > -87 ? double(expf(x)) : 0;
  }

  __device__ void take(const float *from, unsigned count) {
    logits = from;
    vocab = count;
    // Whole steps of 32 per warp.
    unsigned range = div_up(count, SAMPLE_THREADS) * 32;
    begin = min(threadIdx.x / 32 * range, count);
    end = min(begin + range, count);
  }

  // Calls f(token, logit) for the lane's part of the warp's range, in order.
  template <class F>
  __device__ void each(F f) const {
    for (unsigned first = begin + threadIdx.x % 32; first < end; first += 32 * UNDER_WAY) {
      float under_way[UNDER_WAY];
#pragma unroll
      for (unsigned i = 0; i < UNDER_WAY; i++) {
        if (first + 32 * i < end) under_way[i] = logits[first + 32 * i];
      }
#pragma unroll
      for (unsigned i = 0; i < UNDER_WAY; i++) {
        if (first + 32 * i < end) f(first + 32 * i, under_way[i]);
      }
    }
  }

  // The block's sum of f(logit, key) over all tokens.
  template <class T, class F>
  __device__ T sum(T *scratch, F f) const {
    T mine = 0;
    each([&](unsigned, float logit) { mine += f(logit, key_of(logit)); });
    return block_reduce<Add>(mine, scratch);
  }
};

// Where the sum of some bins, from the highest on, reaches what is wanted: the bin, and the sums above
// it and with it. If all of them do not, the bin is the one below the lowest, ~0.
struct Reached {
  unsigned bin, above, with;
};

// Of the first `count` bins, a multiple of 32, which are free again afterwards.
__device__ Reached reach(unsigned wanted, unsigned count, unsigned *bins) {
  if (threadIdx.x < 32) {
    unsigned lane = threadIdx.x, per_lane = count / 32, bin = (32 - lane) * per_lane, mine = 0;
    for (unsigned i = 1; i <= per_lane; i++) mine += bins[bin - i];
    unsigned upto = mine;
    for (unsigned distance = 1; distance < 32; distance *= 2) {
      unsigned other = __shfl_up_sync(ALL_LANES, upto, distance);
      if (lane >= distance) upto += other;
    }
    unsigned above = upto - mine;
    // At most one lane passes it.
    bool passes = above < wanted && wanted <= upto;
    if (passes) {
      while (above + bins[bin - 1] < wanted) above += bins[--bin];
    }
    if (passes || (lane == 31 && upto < wanted)) {
      bins[BINS] = passes ? bin - 1 : ~0u;
      bins[BINS + 1] = passes ? above : upto;
      bins[BINS + 2] = passes ? above + bins[bin - 1] : upto;
    }
  }
  __syncthreads();
  Reached reached{bins[BINS], bins[BINS + 1], bins[BINS + 2]};
  __syncthreads();
  return reached;
}

// Lists the tokens with the largest logits: at least `top_k` and all tied with the last of them, or, if
// that is 0, as many as fit. How many; 0 if they are too many.
__device__ unsigned list_largest(const Row &row, unsigned top_k, Scratch &scratch) {
  auto bin_of = [&](float logit) {
    float below = (row.max - logit) * BINS_PER_LOGIT;
    return below < BINS - 1 ? BINS - 1 - unsigned(below) : 0;
  };
  for (unsigned i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) scratch.bins[i] = 0;
  if (threadIdx.x == 0) scratch.listed = 0;
  __syncthreads();
  row.each([&](unsigned, float logit) { atomicAdd(&scratch.bins[bin_of(logit)], 1u); });
  __syncthreads();
  Reached reached = reach(top_k > 0 ? top_k : LISTED + 1, BINS, scratch.bins);
  // With the bin in which top_k is reached, or without the one that overflows.
  unsigned lowest = reached.bin + (top_k == 0);
  unsigned count = top_k > 0 ? reached.with : reached.above;
  if (count > LISTED) return 0;
  row.each([&](unsigned token, float logit) {
    if (bin_of(logit) < lowest) return;
    unsigned at = atomicAdd(&scratch.listed, 1u);
    scratch.unordered_ids[at] = token;
    scratch.unordered[at] = logit;
  });
  __syncthreads();
  for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
    unsigned id = scratch.unordered_ids[i], before = 0;
    for (unsigned j = 0; j < count; j++) before += scratch.unordered_ids[j] < id;
    scratch.ids[before] = id;
    scratch.logits[before] = scratch.unordered[i];
  }
  __syncthreads();
  return count;
}

// The key of the k-th largest logit, 11 bits at a time from the top.
__device__ unsigned kth_key(const Row &row, unsigned k, unsigned *bins) {
  unsigned prefix = 0, known = 0;
  for (unsigned digit = 0; digit < 3; digit++) {
    unsigned shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, width = digit == 2 ? 10 : 11;
    for (unsigned i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    row.each([&](unsigned, float logit) {
      unsigned key = key_of(logit);
      if ((key & known) == prefix) atomicAdd(&bins[key >> shift & ((1u << width) - 1)], 1u);
    });
    __syncthreads();
    Reached reached = reach(k, 1u << width, bins);
    prefix |= reached.bin << shift;
    known |= ((1u << width) - 1) << shift;
    // The rest that is looked for within this bin.
    k -= reached.above;
  }
  return prefix;
}

// The mass of all tokens from the bound on.
__device__ double kept_mass(const Row &row, double *scratch) {
  return row.sum(scratch, [&](float logit, unsigned at) {
    return at >= row.bound ? row.weight(logit) : 0.0;
  });
}

// Keeps only the most probable tokens that reach the mass `wanted`.
__device__ void keep_nucleus(Row &row, double wanted, double *scratch) {
  auto mass_above = [&](unsigned key) {
    return row.sum(scratch, [&](float logit, unsigned at) {
      return at > key && at >= row.bound ? row.weight(logit) : 0.0;
    });
  };
  // The smallest key with less than the wanted mass above it: the last that is kept.
  unsigned low = row.bound, high = key_of(row.max);
  while (low < high) {
    unsigned middle = low + (high - low) / 2;
    if (mass_above(middle) < wanted) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  double above = mass_above(low);
  unsigned raw = low & 0x80000000u ? low & 0x7fffffffu : ~low;
  double each = row.weight(__uint_as_float(raw));
  row.bound = low;
  row.tied_key = low;
  // At least one token is kept, so at least one of the largest.
  double needed = each > 0 ? ceil((wanted - above) / each) : 0;
  row.tied = needed < 1 ? (above > 0 ? 0 : 1) : unsigned(fmin(needed, 4e9));
}

// Where, in id order, the running sum of kept weights passes `draw` times their total.
__device__ unsigned draw_token(const Row &row, float draw, unsigned *counts, double *sums,
                               unsigned *result) {
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // How many tied tokens lie before this warp's range.
  unsigned ties = 0;
  if (row.tied != 0xffffffffu) {
    row.each([&](unsigned, float logit) { ties += key_of(logit) == row.tied_key; });
  }
  ties = warp_reduce<Add>(ties);
  if (lane == 0) counts[warp] = ties;
  __syncthreads();
  unsigned ties_before = 0;
  for (unsigned other = 0; other < warp; other++) ties_before += counts[other];

  // Visits the warp's range 32 tokens a time: each(token, weight or 0 if it is not kept).
  auto visit = [&](auto each) {
    unsigned seen = ties_before;
    for (unsigned start = row.begin; start < row.end; start += 32) {
      unsigned token = start + lane;
      float logit = token < row.end ? row.logits[token] : 0;
      unsigned key = key_of(logit);
      bool kept = token < row.end && key >= row.bound;
      bool tie = kept && row.tied != 0xffffffffu && key == row.tied_key;
      unsigned among = __ballot_sync(ALL_LANES, tie);
      unsigned rank = seen + __popc(among & ((1u << lane) - 1));
      seen += __popc(among);
      if (tie && rank >= row.tied) kept = false;
      if (!each(token, kept ? row.weight(logit) : 0.0)) break;
    }
  };
  double mine = 0;
  visit([&](unsigned, double weight) {
    mine += weight;
    return true;
  });
  mine = warp_reduce<Add>(mine);
  if (lane == 0) sums[warp] = mine;
  __syncthreads();
  double total = 0, before = 0;
  unsigned winner = 0;
  for (unsigned other = 0; other < SAMPLE_WARPS; other++) total += sums[other];
  double target = double(draw) * total, running = 0;
  for (unsigned other = 0; other < SAMPLE_WARPS; other++) {
    // The last range with any weight takes what rounding leaves over.
    if (sums[other] > 0 && running <= target) {
      winner = other;
      before = running;
    }
    running += sums[other];
  }
  if (warp == winner) {
    double sum = before;
    unsigned last = 0;
    bool found = false;
    visit([&](unsigned token, double weight) {
      double upto = weight;
      for (unsigned distance = 1; distance < 32; distance *= 2) {
        double other = __shfl_up_sync(ALL_LANES, upto, distance);
        if (lane >= distance) upto += other;
      }
      unsigned past = __ballot_sync(ALL_LANES, weight > 0 && sum + upto > target);
      unsigned some = __ballot_sync(ALL_LANES, weight > 0);
      unsigned base = token - lane;
      if (past) {
        last = base + (__ffs(past) - 1);
        found = true;
      } else if (some) {
        last = base + (31 - __clz(some));
      }
      sum += __shfl_sync(ALL_LANES, upto, 31);
      return !found;
    });
    if (lane == 0) *result = last;
  }
  __syncthreads();
  return *result;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample(const SampleParams p) {
  SHARED(Scratch, shared);
  Scratch &scratch = *shared;
  const SampleRowParams &how = p.rows[blockIdx.x];
  Row row;
  row.take(p.logits + size_t(how.logits) * p.vocab, p.vocab);
  row.temperature = how.temperature;
  float most = -INFINITY;
  bool broken = false;
  row.each([&](unsigned, float logit) {
    // fmaxf passes over what is no number.
    most = fmaxf(most, logit);
    broken |= logit != logit;
  });
  row.max = block_reduce<Max>(most, reinterpret_cast<float *>(scratch.counts));
  broken = block_reduce<Add>(unsigned(broken), scratch.counts) > 0;
  unsigned token;
  // Logits that are not numbers have no distribution; whoever made them is told elsewhere.
  if (how.temperature == 0 || broken || !(row.max > -INFINITY && row.max < INFINITY)) {
    unsigned first = p.vocab;
    row.each([&](unsigned at, float logit) {
      if (logit == row.max) first = min(first, at);
    });
    first = block_reduce<Min>(first, scratch.counts);
    token = first < p.vocab ? first : 0;
  } else {
    // Keys of -infinity are below all others and weigh nothing.
    unsigned top_k = how.top_k < p.vocab ? how.top_k : 0;
    double all = top_k == 0 && how.top_p < 1 ? kept_mass(row, scratch.sums) : 0;
    unsigned listed = top_k > 0 || how.top_p < 1 ? list_largest(row, top_k, scratch) : 0;
    if (listed > 0) {
      Row list = row;
      list.take(scratch.logits, listed);
      // Without top_k the list must hold the whole nucleus.
      if (top_k == 0 && kept_mass(list, scratch.sums) < double(how.top_p) * all) listed = 0;
      if (listed > 0) row = list;
    }
    if (top_k > 0) {
      row.bound = kth_key(row, top_k, scratch.bins);
      all = how.top_p < 1 ? kept_mass(row, scratch.sums) : 0;
    }
    if (how.top_p < 1) keep_nucleus(row, double(how.top_p) * all, scratch.sums);
    float draw = float(philox(how) >> 8) * (1.0f / (1 << 24));
    token = draw_token(row, draw, scratch.counts, scratch.sums, scratch.bins);
    if (listed > 0) token = scratch.ids[token];
  }
  if (threadIdx.x == 0) p.tokens[blockIdx.x] = token;
}
