// The largest logit of each group of LOGIT_GROUP neighbouring tokens, by which sample finds the largest of a row
// without reading all of it.
#pragma once

#include "common.cuh"

constexpr unsigned GROUP = LOGIT_GROUP;

// Groups of a row; the last may be smaller.
__host__ __device__ constexpr unsigned groups_of(unsigned vocab) { return div_up(vocab, GROUP); }

// Stores the maxima of a row's groups. Lanes have neighbouring tokens, the first of them a multiple of 32; all
// lanes of the warp call it, beyond the vocabulary's end with -infinity.
__device__ inline void store_maxima(float *maxima, unsigned vocab, unsigned token, float logit) {
  for (unsigned distance = GROUP / 2; distance > 0; distance /= 2) {
    logit = MaxOrNan::combine(logit, __shfl_xor_sync(ALL_LANES, logit, distance));
  }
  if (token % GROUP == 0 && token < vocab) maxima[token / GROUP] = logit;
}
