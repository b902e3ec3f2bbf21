// Picks a token for each row of logits, without sorting.
//
// Kept are the top_k largest logits and those tied with the last of them, then the most probable
// of these that reach the mass top_p (of tied ones the lowest ids). Weights are
// e^((logit - max) / temperature); the token is the first, in id order, at which the running sum
// exceeds the draw times the kept mass. These sums are f64, in an order fixed by the vocabulary: each
// warp has a range of it, lanes side by side. What is kept is found by sums over bins, of tokens or of
// weights in whole numbers (2^-40 of the largest), which have no order.
//
// What top_k or top_p can keep mostly lies near the largest logit and is little: it is listed in
// shared memory, in id order, and the rest is done with the list as the row.
//
// grid: rows; block: SAMPLE_THREADS; shared: SAMPLE_SHARED. Passes over the row's logits (4 bytes each, from
// the cache after the first): 2 if greedy, else 3; where the list does not do, 4 more for top_k, 5 for
// top_p and 9 for both.
#include "common.cuh"

constexpr unsigned SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr unsigned BINS = 2048;
// Logits that a thread loads before it looks at the first.
constexpr unsigned UNDER_WAY = 16;
// Tokens of a list.
constexpr unsigned LISTED = 1024;
// The mass of the most probable token: 2^40, so that 2^24 of them have one of 64 bits.
constexpr float MASS = 1099511627776.0f;
// The bins of a list are as wide as 1 / 64 of a logit.
constexpr float BINS_PER_LOGIT = 64;

namespace {

// Numbers in the order of the floats that they stand for.
__device__ inline unsigned key_of(float value) {
  unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float value_of(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
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

// Sums of whole numbers by bin, the same in whatever order they are added. A processor adds numbers of
// 64 bits to shared memory only by trying until nobody was in between, so halves are added.
struct Bins {
  unsigned low[BINS], high[BINS];

  // Ones, fewer than 2^32.
  __device__ void add(unsigned bin, unsigned amount) { atomicAdd(&low[bin], amount); }

  __device__ void add(unsigned bin, unsigned long long amount) {
    unsigned part = unsigned(amount), sum = atomicAdd(&low[bin], part) + part;
    unsigned upper = unsigned(amount >> 32) + (sum < part);
    if (upper > 0) atomicAdd(&high[bin], upper);
  }

  __device__ unsigned long long at(unsigned bin) const {
    return static_cast<unsigned long long>(high[bin]) << 32 | low[bin];
  }
};

// Where the sum of some bins, from the highest on, reaches what is wanted: the bin, and the sum above it.
struct Reached {
  unsigned bin;
  unsigned long long above;
};

struct Scratch {
  double sums[SAMPLE_WARPS];
  unsigned long long totals[SAMPLE_WARPS];
  unsigned counts[SAMPLE_WARPS];
  Bins bins;
  Reached reached;
  unsigned token, listed;
  unsigned unordered_ids[LISTED], ids[LISTED];
  float unordered[LISTED], logits[LISTED];
};
static_assert(sizeof(Scratch) == SAMPLE_SHARED, "what the host asks for");

// One row's distribution: what of it is kept.
struct Row {
  const float *logits;
  unsigned vocab, begin, end;  // the warp's range
  float max, temperature;
  unsigned bound = 0;          // keys from here on are kept
  unsigned tied_key = 0;       // of this key, only the first `tied` tokens
  unsigned tied = 0xffffffffu;

  __device__ float weight(float logit) const {
    float x = (logit - max) / temperature;
    // Exactly nothing for what cannot be drawn.
    return x > -87 ? expf(x) : 0;
  }

  // The weight of what is kept as a whole number, whose sums have no order.
  __device__ unsigned long long mass(float logit) const {
    return key_of(logit) >= bound ? static_cast<unsigned long long>(weight(logit) * MASS) : 0;
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

  // The block's sum of amount(logit) over all tokens.
  template <class A>
  __device__ unsigned long long sum(unsigned long long *scratch, A amount) const {
    unsigned long long mine = 0;
    each([&](unsigned, float logit) { mine += amount(logit); });
    return block_reduce<Add>(mine, scratch);
  }
};

// Sums what tokens count for by bin: `amount(logit)` in `bin_of(logit)`. All of it together.
template <class B, class A>
__device__ unsigned long long fill(const Row &row, B bin_of, A amount, Scratch &scratch) {
  Bins &bins = scratch.bins;
  for (unsigned i = threadIdx.x; i < BINS; i += SAMPLE_THREADS) bins.low[i] = bins.high[i] = 0;
  __syncthreads();
  return row.sum(scratch.totals, [&](float logit) {
    auto counted = amount(logit);
    if (counted > 0) bins.add(bin_of(logit), counted);
    return counted;
  });
}

// Of the first `count` bins, which together have at least what is `wanted`, more than nothing. The bins
// are free again afterwards.
__device__ Reached reach(unsigned long long wanted, unsigned count, Scratch &scratch) {
  const Bins &bins = scratch.bins;
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, per_thread = count / SAMPLE_THREADS;
  unsigned bin = count - threadIdx.x * per_thread;
  unsigned long long mine = 0;
  for (unsigned i = 1; i <= per_thread; i++) mine += bins.at(bin - i);
  unsigned long long upto = mine;
  for (unsigned distance = 1; distance < 32; distance *= 2) {
    unsigned long long other = __shfl_up_sync(ALL_LANES, upto, distance);
    if (lane >= distance) upto += other;
  }
  if (lane == 31) scratch.totals[warp] = upto;
  __syncthreads();
  unsigned long long above = upto - mine;
  for (unsigned other = 0; other < warp; other++) above += scratch.totals[other];
  // One thread passes it.
  if (above < wanted && wanted <= above + mine) {
    while (above + bins.at(bin - 1) < wanted) above += bins.at(--bin);
    scratch.reached = Reached{bin - 1, above};
  }
  __syncthreads();
  return scratch.reached;
}

// The bins of a list.
struct BinOf {
  float max;

  __device__ unsigned operator()(float logit) const {
    float below = (max - logit) * BINS_PER_LOGIT;
    return below < BINS - 1 ? BINS - 1 - unsigned(below) : 0;
  }
};

// Lists the tokens of the bins from `lowest` on. How many; 0 if they are too many.
__device__ unsigned list_from(unsigned lowest, const Row &row, BinOf bin_of, Scratch &scratch) {
  if (threadIdx.x == 0) scratch.listed = 0;
  __syncthreads();
  row.each([&](unsigned token, float logit) {
    if (bin_of(logit) < lowest) return;
    unsigned at = atomicAdd(&scratch.listed, 1u);
    if (at >= LISTED) return;
    scratch.unordered_ids[at] = token;
    scratch.unordered[at] = logit;
  });
  __syncthreads();
  unsigned count = scratch.listed;
  if (count > LISTED) return 0;
  for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
    unsigned id = scratch.unordered_ids[i], before = 0;
    for (unsigned j = 0; j < count; j++) before += scratch.unordered_ids[j] < id;
    scratch.ids[before] = id;
    scratch.logits[before] = scratch.unordered[i];
  }
  __syncthreads();
  return count;
}

// The key at which the amounts of all tokens, from the largest logit on, reach what is wanted, 11 bits at
// a time from the top; and the sum of those above it.
template <class A>
__device__ Reached reach_key(const Row &row, unsigned long long wanted, A amount, Scratch &scratch) {
  unsigned prefix = 0, known = 0;
  unsigned long long above = 0;
  for (unsigned digit = 0; digit < 3; digit++) {
    unsigned shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, width = digit == 2 ? 10 : 11;
    unsigned mask = (1u << width) - 1;
    auto bin_of = [&](float logit) { return key_of(logit) >> shift & mask; };
    auto amount_here = [&](float logit) {
      return (key_of(logit) & known) == prefix ? amount(logit) : 0;
    };
    fill(row, bin_of, amount_here, scratch);
    Reached reached = reach(wanted - above, 1u << width, scratch);
    prefix |= reached.bin << shift;
    known |= mask << shift;
    above += reached.above;
  }
  return Reached{prefix, above};
}

// Where, in id order, the running sum of kept weights passes `draw` times their total.
__device__ unsigned draw_token(const Row &row, float draw, Scratch &scratch) {
  unsigned *counts = scratch.counts;
  double *sums = scratch.sums;
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
      if (!each(token, kept ? double(row.weight(logit)) : 0.0)) break;
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
    if (lane == 0) scratch.token = last;
  }
  __syncthreads();
  return scratch.token;
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
    unsigned top_k = how.top_k < p.vocab ? how.top_k : 0, listed = 0;
    unsigned long long wanted = 0;
    auto one = [](float) { return 1u; };
    auto mass = [&](float logit) { return row.mass(logit); };
    auto nucleus = [&](unsigned long long all) {
      return static_cast<unsigned long long>(fmax(ceil(double(how.top_p) * double(all)), 1.0));
    };
    if (top_k > 0 || how.top_p < 1) {
      BinOf bin_of{row.max};
      if (top_k > 0) {
        fill(row, bin_of, one, scratch);
        wanted = top_k;
      } else {
        wanted = nucleus(fill(row, bin_of, mass, scratch));
      }
      listed = list_from(reach(wanted, BINS, scratch).bin, row, bin_of, scratch);
      if (listed > 0) row.take(scratch.logits, listed);
    }
    if (top_k > 0) {
      row.bound = reach_key(row, top_k, one, scratch).bin;
      if (how.top_p < 1) wanted = nucleus(row.sum(scratch.totals, mass));
    }
    if (how.top_p < 1) {
      Reached least = reach_key(row, wanted, mass, scratch);
      unsigned long long each = row.mass(value_of(least.bin));
      row.tied = unsigned((wanted - least.above + each - 1) / each);
      row.bound = row.tied_key = least.bin;
    }
    float draw = float(philox(how) >> 8) * (1.0f / (1 << 24));
    token = draw_token(row, draw, scratch);
    if (listed > 0) token = scratch.ids[token];
  }
  if (threadIdx.x == 0) p.tokens[blockIdx.x] = token;
}
