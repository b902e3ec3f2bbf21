// The instructions that a warp's lanes carry out together on matrices spread over their registers.

#include "emulator.h"

namespace emulator {

void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Operands {
    float *sums;
    const unsigned *a, *b;
  } mine{sums, a, b};
  warp_collective("mma", &mine, [](void *const *lanes) {
    // Both with the inner dimension first, so that the compiler takes several columns at a time;
    // each sum goes from the first position to the last.
    float left[16][16], right[16][8], total[16][8];
    auto split = [](unsigned word, float &low, float &high) {
      low = __uint_as_float(word << 16);
      high = __uint_as_float(word & 0xffff0000u);
    };
    for (unsigned lane = 0; lane < 32; lane++) {
      auto *from = static_cast<Operands *>(lanes[lane]);
      unsigned group = lane / 4, at = lane % 4 * 2;
      for (unsigned i = 0; i < 4; i++) {
        unsigned row = group + i % 2 * 8, position = at + i / 2 * 8;
        split(from->a[i], left[position][row], left[position + 1][row]);
        total[group + i / 2 * 8][at + i % 2] = from->sums[i];
      }
      split(from->b[0], right[at][group], right[at + 1][group]);
      split(from->b[1], right[at + 8][group], right[at + 9][group]);
    }
    for (unsigned k = 0; k < 16; k++) {
      for (unsigned row = 0; row < 16; row++) {
        for (unsigned column = 0; column < 8; column++) {
          total[row][column] += left[k][row] * right[k][column];
        }
      }
    }
    for (unsigned lane = 0; lane < 32; lane++) {
      auto *to = static_cast<Operands *>(lanes[lane]);
      for (unsigned i = 0; i < 4; i++) {
        to->sums[i] = total[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      }
    }
  });
}

namespace {

// Row `row` of the transposed 8 x 8 matrix whose rows begin at `rows`: numbers 2 quad, 2 quad + 1.
unsigned transposed_pair(const unsigned short *const *rows, unsigned row, unsigned quad) {
  return rows[2 * quad][row] | unsigned(rows[2 * quad + 1][row]) << 16;
}

}  // namespace

unsigned transpose(unsigned pair) {
  warp_collective("transpose", &pair, [](void *const *lanes) {
    unsigned short numbers[8][8];
    const unsigned short *rows[8];
    for (unsigned row = 0; row < 8; row++) rows[row] = numbers[row];
    for (unsigned lane = 0; lane < 32; lane++) {
      unsigned given = *static_cast<unsigned *>(lanes[lane]);
      numbers[lane / 4][lane % 4 * 2] = (unsigned short)given;
      numbers[lane / 4][lane % 4 * 2 + 1] = (unsigned short)(given >> 16);
    }
    for (unsigned lane = 0; lane < 32; lane++) {
      *static_cast<unsigned *>(lanes[lane]) = transposed_pair(rows, lane / 4, lane % 4);
    }
  });
  return pair;
}

void load_transposed(unsigned (&pairs)[4], const void *row) {
  require_shared(row);
  struct Operands {
    unsigned *pairs;
    const unsigned short *row;
  } mine{pairs, static_cast<const unsigned short *>(row)};
  warp_collective("load_transposed", &mine, [](void *const *lanes) {
    const unsigned short *rows[32];
    for (unsigned lane = 0; lane < 32; lane++) {
      rows[lane] = static_cast<Operands *>(lanes[lane])->row;
    }
    for (unsigned lane = 0; lane < 32; lane++) {
      unsigned *to = static_cast<Operands *>(lanes[lane])->pairs;
      for (unsigned i = 0; i < 4; i++) to[i] = transposed_pair(rows + 8 * i, lane / 4, lane % 4);
    }
  });
}

}  // namespace emulator
