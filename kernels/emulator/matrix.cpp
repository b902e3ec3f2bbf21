// The instructions that a warp's lanes carry out together on matrices spread over their registers.

#include "emulator.h"

#include <algorithm>

namespace emulator {

// ---- how tensor cores add ----
//
// Of Hopper, by the model of Li et al., MMA-Sim (arXiv 2511.10909), which an H200 gave the bits of in 18,000 sums:
// 16 exact products and the sum so far are cut off, towards zero, at 2^-25 of the largest exponent, added without
// rounding, and cut off to f32. A product's exponent is the sum of its factors', though it may be twice as large.

namespace {

constexpr int NONE = -100000;  // the exponent of a zero

// bf16 numbers' values, and the exponents of their leading bits; a subnormal's is that of the least normal one.
template <unsigned COUNT>
struct Numbers {
  float values[COUNT];
  int exponents[COUNT];
  // Of all but zeros.
  int least = 1000, greatest = NONE;

  inline __attribute__((always_inline)) explicit Numbers(const unsigned short *bits) {
    for (unsigned i = 0; i < COUNT; i++) {
      int word = bits[i], field = word >> 7 & 0xff;
      unsigned wide = unsigned(word) << 16;
      memcpy(&values[i], &wide, sizeof wide);
      int exponent = (field > 1 ? field : 1) - 127;
      bool zero = (word & 0x7fff) == 0;
      exponents[i] = zero ? NONE : exponent;
      int low = zero ? 1000 : exponent;
      least = low < least ? low : least;
      greatest = exponents[i] > greatest ? exponents[i] : greatest;
    }
  }
  bool special() const { return greatest == 128; }
  bool moderate() const { return least >= -40 && greatest <= 40; }
};

int exponent_of(float sum) {
  unsigned bits = __float_as_uint(sum);
  int field = int(bits >> 23 & 0xff);
  return (bits & 0x7fffffff) == 0 ? NONE : (field ? field : 1) - 127;
}

// Cut off towards zero.
float cut(double exact) {
  float near = float(exact);
  bool beyond = std::fabs(double(near)) > std::fabs(exact);
  return __uint_as_float(__float_as_uint(near) - beyond);
}

// One sum, whatever the numbers are.
float add_16(const unsigned short (&left)[16], const unsigned short (&right)[16], float sum) {
  Numbers<16> a(left), b(right);
  int most = exponent_of(sum);
  if (a.special() || b.special() || most == 128) {
    // Infinities and what is no number go their way as in any sum.
    double total = sum;
    for (unsigned k = 0; k < 16; k++) total += double(a.values[k]) * double(b.values[k]);
    return total != total ? __uint_as_float(0x7fffffffu) : float(total);
  }
  for (unsigned k = 0; k < 16; k++) most = std::max(most, a.exponents[k] + b.exponents[k]);
  if (most < -1000) return 0;
  // In units of the last place: whole numbers below 2^28, so a double adds them exactly.
  double total = std::trunc(std::ldexp(double(sum), 25 - most));
  for (unsigned k = 0; k < 16; k++) {
    total += std::trunc(std::ldexp(double(a.values[k]) * double(b.values[k]), 25 - most));
  }
  return cut(std::ldexp(total, most - 25));
}

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("avx2", "default")))
#endif
void add_products(const unsigned short (&left)[16][16], const unsigned short (&right)[8][16],
                  float (&sums)[16][8]) {
  // A row's columns side by side.
  typedef float Floats __attribute__((vector_size(32)));
  typedef int Ints __attribute__((vector_size(32)));
  Numbers<128> of_right(right[0]);
  Numbers<256> of_left(left[0]);
  bool all_moderate = of_right.moderate() && of_left.moderate();
  Floats right_values[16];
  Ints right_exponents[16];
  for (unsigned k = 0; k < 16; k++) {
    for (unsigned column = 0; column < 8; column++) {
      right_values[k][column] = of_right.values[column * 16 + k];
      right_exponents[k][column] = of_right.exponents[column * 16 + k];
    }
  }
  for (unsigned row = 0; row < 16; row++) {
    const float *values = of_left.values + row * 16;
    const int *exponents = of_left.exponents + row * 16;
    Floats sum;
    memcpy(&sum, sums[row], sizeof sum);
    Ints bits;
    memcpy(&bits, &sum, sizeof bits);
    // Where all is zero, anything will do.
    Ints most = (bits >> 23 & 0xff) - 127;
    Ints moderate = (most >= -80 && most <= 80) || (bits & 0x7fffffff) == 0;
    most = most > -80 ? most : most * 0 - 80;
    bool plain = all_moderate;
    for (unsigned column = 0; column < 8; column++) plain &= moderate[column] != 0;
    if (!plain) {
      for (unsigned column = 0; column < 8; column++) {
        sums[row][column] = add_16(left[row], right[column], sums[row][column]);
      }
      continue;
    }
    for (unsigned k = 0; k < 16; k++) {
      Ints exponent = exponents[k] + right_exponents[k];
      most = exponent > most ? exponent : most;
    }
    // In units of the last place. Products have 16 bits and are below 2^27, so f32 has them exactly, and 16 of
    // them are below 2^31: each is under 3.97 * 2^25.
    Ints scale_bits = (25 - most + 127) << 23, unit_bits = (most - 25 + 127) << 23;
    Floats scale, unit;
    memcpy(&scale, &scale_bits, sizeof scale);
    memcpy(&unit, &unit_bits, sizeof unit);
    Ints products = {};
    for (unsigned k = 0; k < 16; k++) {
      products += __builtin_convertvector(values[k] * right_values[k] * scale, Ints);
    }
    Ints before = __builtin_convertvector(sum * scale, Ints);
    for (unsigned column = 0; column < 8; column++) {
      double total = double(before[column]) + double(products[column]);
      sums[row][column] = cut(total * double(unit[column]));
    }
  }
}

void mma(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Operands {
    float *sums;
    const unsigned *a, *b;
  } mine{sums, a, b};
  warp_collective("mma", &mine, [](void *const *lanes) {
    unsigned short left[16][16], right[8][16];
    float total[16][8];
    auto split = [](unsigned word, unsigned short *to) {
      to[0] = (unsigned short)word;
      to[1] = (unsigned short)(word >> 16);
    };
    for (unsigned lane = 0; lane < 32; lane++) {
      auto *from = static_cast<Operands *>(lanes[lane]);
      unsigned group = lane / 4, at = lane % 4 * 2;
      for (unsigned i = 0; i < 4; i++) {
        split(from->a[i], &left[group + i % 2 * 8][at + i / 2 * 8]);
        total[group + i / 2 * 8][at + i % 2] = from->sums[i];
      }
      split(from->b[0], &right[group][at]);
      split(from->b[1], &right[group][at + 8]);
    }
    add_products(left, right, total);
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
