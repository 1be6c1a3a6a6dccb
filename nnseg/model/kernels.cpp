// Kernels of a network's layers on CPUs with AVX512-BF16, called by kernels.py.
//
// Tensors are channels last: (batch, z, y, x, channel). What a training needs is in bf16, forward
// and backward; what a prediction needs is in fp32, too. Convolutions of 3x3x3 or 1x3x3, stride 1
// and padding that keeps the shape are computed by Winograd's F(2x2x2, 3x3x3) or F(2x2, 3x3), which
// multiplies 27/8 or 9/4 as little as the plain sum (Lavin and Gray 2016, arXiv:1509.09308): a tile
// of 4 values an axis gives 2 outputs. Sums are in fp32. An image may lie in two tensors of some
// channels each, so that nothing is concatenated. Channels come in multiples of 32.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

typedef uint16_t bf16;
const int LANES = 16, WIDE = 32, ROWS = 6;

alignas(64) const float NOTHING[LANES] = {};  // of either type

inline __m512 load(const bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(bf16* p, __m512 v) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
}
inline void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }

// Products of DEEP input channels at a time for 16 output channels.
template <class T>
struct Product;
template <>
struct Product<bf16> {
  typedef __m512bh Vector;
  static const int DEEP = 2;
  static inline Vector weights(const bf16* p) { return (Vector)_mm512_loadu_si512(p); }
  static inline Vector of_all(const bf16* p) {
    return (Vector)_mm512_castps_si512(_mm512_set1_ps(*(const float*)(const void*)p));
  }
  static inline __m512 add(__m512 sum, Vector x, Vector w) { return _mm512_dpbf16_ps(sum, x, w); }
};
template <>
struct Product<float> {
  typedef __m512 Vector;
  static const int DEEP = 1;
  static inline Vector weights(const float* p) { return _mm512_loadu_ps(p); }
  static inline Vector of_all(const float* p) { return _mm512_set1_ps(*p); }
  static inline __m512 add(__m512 sum, Vector x, Vector w) { return _mm512_fmadd_ps(x, w, sum); }
};

struct Geometry {
  int64_t batch, depth, height, width;
  int64_t tz, ty, tx;
  int flat;
  int64_t tiles() const { return batch * tz * ty * tx; }
};

struct Tile {
  int64_t n, z, y, x;
};

inline Tile tile_at(const Geometry& g, int64_t index) {
  Tile t;
  t.x = index % g.tx * 2;
  index /= g.tx;
  t.y = index % g.ty * 2;
  index /= g.ty;
  t.z = index % g.tz * (g.flat ? 1 : 2);
  t.n = index / g.tz;
  return t;
}

// d0-d2, d1+d2, d2-d1, d1-d3
#define SPREAD(d0, d1, d2, d3, v0, v1, v2, v3) \
  v0 = _mm512_sub_ps(d0, d2);                  \
  v1 = _mm512_add_ps(d1, d2);                  \
  v2 = _mm512_sub_ps(d2, d1);                  \
  v3 = _mm512_sub_ps(d1, d3);

template <class T>
struct Image {
  const T* data;
  int64_t channels;
};

// z and y of one column of a tile spread: PLANES * 4 vectors
template <int PLANES, class T>
inline void spread_column(const Image<T>& im, const Geometry& g, const Tile& t, int64_t x,
                          int64_t channel, __m512* out) {
  const int64_t C = im.channels;
  const bool xin = x >= 0 && x < g.width;
  __m512 rows[4][4];
#pragma GCC unroll 4
  for (int a = 0; a < PLANES; a++) {
    const int64_t z = PLANES == 1 ? t.z : t.z + a - 1;
    const bool zin = xin && z >= 0 && z < g.depth;
    const T* column =
        im.data + (((t.n * g.depth + z) * g.height + t.y - 1) * g.width + x) * C + channel;
    __m512 d[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
      const int64_t y = t.y + b - 1;
      d[b] = load(zin && y >= 0 && y < g.height ? column + b * g.width * C : (const T*)NOTHING);
    }
    SPREAD(d[0], d[1], d[2], d[3], rows[a][0], rows[a][1], rows[a][2], rows[a][3])
  }
#pragma GCC unroll 4
  for (int b = 0; b < 4; b++) {
    if (PLANES == 1)
      out[b] = rows[0][b];
    else {
      SPREAD(rows[0][b], rows[1][b], rows[2][b], rows[3][b], out[b], out[4 + b], out[8 + b],
             out[12 + b])
    }
  }
}

// a run of tiles: what neighbours along x share is computed once
template <int PLANES>
struct Spreader {
  __m512 columns[4][PLANES * 4];
  int64_t last = -1;
  // 16 channels of tile `index`, position by position, to `out`
  template <class T, class Store>
  inline void spread(const Image<T>& im, const Geometry& g, int64_t index, const Tile& t,
                     int64_t channel, Store put) {
    const int base = (t.x & 2);  // the columns of even tiles begin at 0, of odd ones at 2
    if (index != last + 1 || t.x == 0) {
      spread_column<PLANES>(im, g, t, t.x - 1, channel, columns[base]);
      spread_column<PLANES>(im, g, t, t.x, channel, columns[base + 1]);
    }
    spread_column<PLANES>(im, g, t, t.x + 1, channel, columns[base ^ 2]);
    spread_column<PLANES>(im, g, t, t.x + 2, channel, columns[(base ^ 2) + 1]);
    last = index;
    const __m512 *c0 = columns[base], *c1 = columns[base + 1], *c2 = columns[base ^ 2],
                 *c3 = columns[(base ^ 2) + 1];
#pragma GCC unroll 4
    for (int i = 0; i < PLANES * 4; i++) {
      __m512 v0, v1, v2, v3;
      SPREAD(c0[i], c1[i], c2[i], c3[i], v0, v1, v2, v3)
      put(i * 4, v0);
      put(i * 4 + 1, v1);
      put(i * 4 + 2, v2);
      put(i * 4 + 3, v3);
    }
  }
};

// the adjoint of gathering: 2 outputs an axis to 4: y0, y0+y1, y0-y1, -y1
#define WIDEN(y0, y1, v0, v1, v2, v3) \
  v0 = y0;                            \
  v1 = _mm512_add_ps(y0, y1);         \
  v2 = _mm512_sub_ps(y0, y1);         \
  v3 = _mm512_sub_ps(_mm512_setzero_ps(), y1);

template <int PLANES>
inline void spread_gradient(const Image<bf16>& im, const Geometry& g, const Tile& t, int64_t channel,
                            __m512* out) {
  const int64_t C = im.channels;
  const int steps = PLANES == 1 ? 1 : 2;
  __m512 part[2][16];
  for (int a = 0; a < steps; a++) {
    const int64_t z = t.z + a;
    __m512 d[2][2], e[4][2];
    for (int b = 0; b < 2; b++)
      for (int c = 0; c < 2; c++) {
        const int64_t y = t.y + b, x = t.x + c;
        const bool in = z < g.depth && y < g.height && x < g.width;
        d[b][c] =
            load(in ? im.data + (((t.n * g.depth + z) * g.height + y) * g.width + x) * C + channel
                    : (const bf16*)NOTHING);
      }
    for (int c = 0; c < 2; c++) {
      WIDEN(d[0][c], d[1][c], e[0][c], e[1][c], e[2][c], e[3][c])
    }
    for (int b = 0; b < 4; b++) {
      WIDEN(e[b][0], e[b][1], part[a][b * 4], part[a][b * 4 + 1], part[a][b * 4 + 2],
            part[a][b * 4 + 3])
    }
  }
  for (int i = 0; i < 16; i++) {
    if (PLANES == 1)
      out[i] = part[0][i];
    else {
      WIDEN(part[0][i], part[1][i], out[i], out[16 + i], out[32 + i], out[48 + i])
    }
  }
}

// Four positions along the outer axis at once: of M0..M3 only M0+M1+M2 and M1-M2-M3 leave the
// registers; u3 comes negated. R tiles x 32 channels each.
template <int R, class T>
inline void multiply(const T* v, int64_t stride, int64_t next, const T* u, int64_t unext,
                     int64_t channels, float* m0, float* m1) {
  typedef Product<T> Of;
  typedef typename Of::Vector Vector;
  const int D = Of::DEEP;
  __m512 s[R][2], d[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) s[r][0] = s[r][1] = d[r][0] = d[r][1] = _mm512_setzero_ps();
  for (int turn = 0; turn < 2; turn++) {
    const T *a = v + (turn ? 0 : next), *b = v + (turn ? 3 * next : 2 * next);
    const T *ua = u + (turn ? 0 : unext), *ub = u + (turn ? 3 * unext : 2 * unext);
    for (int64_t k = 0; k < channels; k += D) {
      const Vector a0 = Of::weights(ua + k * WIDE), a1 = Of::weights(ua + k * WIDE + D * LANES);
      const Vector b0 = Of::weights(ub + k * WIDE), b1 = Of::weights(ub + k * WIDE + D * LANES);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const Vector x = Of::of_all(a + r * stride + k), y = Of::of_all(b + r * stride + k);
        s[r][0] = Of::add(s[r][0], x, a0);
        s[r][1] = Of::add(s[r][1], x, a1);
        d[r][0] = Of::add(d[r][0], y, b0);
        d[r][1] = Of::add(d[r][1], y, b1);
      }
    }
    if (turn == 0) {
#pragma GCC unroll 6
      for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) {
          const __m512 sum = _mm512_add_ps(s[r][h], d[r][h]);
          d[r][h] = _mm512_sub_ps(s[r][h], d[r][h]);
          s[r][h] = sum;
        }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
    for (int h = 0; h < 2; h++) {
      _mm512_storeu_ps(m0 + r * WIDE + 16 * h, s[r][h]);
      _mm512_storeu_ps(m1 + r * WIDE + 16 * h, d[r][h]);
    }
}

// m: [2][PLANES * 4][tile][32], the outer axis gathered already
template <int PLANES, class T>
inline void gather_output(const float* m, int64_t step, const Geometry& g, const Tile& t,
                          const float* bias, T* y, int64_t C) {
  const __m512 shift = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
  for (int s = 0; s < (PLANES == 1 ? 1 : 2); s++) {
    const int64_t z = t.z + s;
    if (z >= g.depth) break;
    __m512 e[2][4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      if (PLANES == 1) {
        e[0][c] = _mm512_loadu_ps(m + c * step);
        e[1][c] = _mm512_loadu_ps(m + (4 + c) * step);
      } else {
        const float* q = m + (s * 16 + c) * step;
        const __m512 q0 = _mm512_loadu_ps(q), q1 = _mm512_loadu_ps(q + 4 * step),
                     q2 = _mm512_loadu_ps(q + 8 * step), q3 = _mm512_loadu_ps(q + 12 * step);
        e[0][c] = _mm512_add_ps(q0, _mm512_add_ps(q1, q2));
        e[1][c] = _mm512_sub_ps(_mm512_sub_ps(q1, q2), q3);
      }
    }
#pragma GCC unroll 2
    for (int b = 0; b < 2; b++) {
      const int64_t row = t.y + b;
      if (row >= g.height) break;
      T* out = y + (((t.n * g.depth + z) * g.height + row) * g.width + t.x) * C;
      store(out, _mm512_add_ps(shift, _mm512_add_ps(e[b][0], _mm512_add_ps(e[b][1], e[b][2]))));
      if (t.x + 1 < g.width)
        store(out + C,
              _mm512_add_ps(shift, _mm512_sub_ps(_mm512_sub_ps(e[b][1], e[b][2]), e[b][3])));
    }
  }
}

template <int PLANES, class T>
void convolve(const Geometry& g, const Image<T>* in, int inputs, const T* u, const float* bias,
              T** out, const int64_t* out_channels, int threads) {
  const int P = PLANES * 16;
  int64_t cin = 0;
  for (int i = 0; i < inputs; i++) cin += in[i].channels;
  // as many tiles at once as leave room for them and the weights in a core's cache
  const int64_t bytes = cin * sizeof(T), N = bytes <= 128 ? 24 : bytes <= 1024 ? 12 : 6;
  const int64_t tiles = g.tiles(), blocks = (tiles + N - 1) / N;
#pragma omp parallel num_threads(threads)
  {
    T* v = (T*)aligned_alloc(64, P * N * cin * sizeof(T));
    float* m = (float*)aligned_alloc(64, P / 2 * N * WIDE * 4);
#pragma omp for schedule(dynamic, 4)
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = block * N, count = tiles - first < N ? tiles - first : N;
      int64_t at = 0;
      for (int i = 0; i < inputs; i++)
        for (int64_t c = 0; c < in[i].channels; c += LANES, at += LANES) {
          Spreader<PLANES> spreader;
          for (int64_t t = 0; t < count; t++)
            spreader.spread(in[i], g, first + t, tile_at(g, first + t), c,
                            [&](int p, __m512 x) { store(v + (p * N + t) * cin + at, x); });
        }
      int64_t chunk = 0;
      for (int o = 0; out[o]; o++)
        for (int64_t c = 0; c < out_channels[o]; c += WIDE, chunk++) {
          const T* weights = u + chunk * P * cin * WIDE;
          for (int p = 0; p < P / 4; p++)
            for (int64_t t = 0; t < count; t += ROWS)
              multiply<ROWS>(v + (p * N + t) * cin, cin, P / 4 * N * cin, weights + p * cin * WIDE,
                             P / 4 * cin * WIDE, cin, m + (p * N + t) * WIDE,
                             m + ((P / 4 + p) * N + t) * WIDE);
          for (int64_t t = 0; t < count; t++) {
            const Tile tile = tile_at(g, first + t);
            for (int half = 0; half < 2; half++)
              gather_output<PLANES>(m + t * WIDE + half * 16, N * WIDE, g, tile,
                                    bias ? bias + chunk * WIDE + half * 16 : nullptr,
                                    out[o] + c + half * 16, out_channels[o]);
          }
        }
    }
    free(v);
    free(m);
  }
}

inline void store_pairs(bf16* p, __m512 a, __m512 b) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

template <int PLANES>
void weigh(const Geometry& g, const Image<bf16>* in, int inputs, const Image<bf16>& dy, float* du,
           int threads) {
  const int P = PLANES * 16, R = 8;
  int64_t cin = 0;
  for (int i = 0; i < inputs; i++) cin += in[i].channels;
  const int64_t cout = dy.channels, T = cin * cout <= 2048 ? 32 : 64, tiles = g.tiles(),
                blocks = (tiles + T - 1) / T;
  const int64_t size = P * cin * cout;
  std::vector<float*> sums(threads, nullptr);
#pragma omp parallel num_threads(threads)
  {
    float* sum = (float*)aligned_alloc(64, size * 4);
    memset(sum, 0, size * 4);
    sums[omp_get_thread_num()] = sum;
    bf16 *v = (bf16*)aligned_alloc(64, P * T * cin * 2),
         *w = (bf16*)aligned_alloc(64, P * T * cout * 2);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = block * T;
      __m512 one[PLANES * 16], two[PLANES * 16];
      int64_t at = 0;
      for (int i = 0; i < inputs; i++)
        for (int64_t c = 0; c < in[i].channels; c += LANES, at += LANES) {
          Spreader<PLANES> spreader;
          for (int64_t t = 0; t < T; t += 2) {
            const int64_t a = first + t < tiles ? first + t : tiles - 1,
                          b = a + 1 < tiles ? a + 1 : a;
            spreader.spread(in[i], g, a, tile_at(g, a), c, [&](int p, __m512 x) { one[p] = x; });
            spreader.spread(in[i], g, b, tile_at(g, b), c, [&](int p, __m512 x) {
              store_pairs(v + ((p * T + t) * cin + 2 * at), one[p], x);
            });
          }
        }
      for (int64_t t = 0; t < T; t += 2) {
        const bool has1 = first + t < tiles, has2 = first + t + 1 < tiles;
        const Tile a = tile_at(g, has1 ? first + t : 0), b = tile_at(g, has2 ? first + t + 1 : 0);
        for (int64_t c = 0; c < cout; c += LANES) {
          spread_gradient<PLANES>(dy, g, a, c, one);
          spread_gradient<PLANES>(dy, g, b, c, two);
          const __m512 none = _mm512_setzero_ps();
          for (int p = 0; p < P; p++)
            store_pairs(w + ((p * T + t) * cout + 2 * c), has1 ? one[p] : none,
                        has2 ? two[p] : none);
        }
      }
      for (int p = 0; p < P; p++)
        for (int64_t o = 0; o < cout; o += WIDE)
          for (int64_t i = 0; i < cin; i += R) {
            float* target = sum + (p * cin + i) * cout + o;
            const bf16 *a = v + p * T * cin + 2 * i, *b = w + p * T * cout + 2 * o;
            __m512 acc[R][2];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
              acc[r][0] = _mm512_loadu_ps(target + r * cout);
              acc[r][1] = _mm512_loadu_ps(target + r * cout + 16);
            }
            for (int64_t t = 0; t < T; t += 2) {
              const __m512bh b0 = Product<bf16>::weights(b + t * cout),
                             b1 = Product<bf16>::weights(b + t * cout + 32);
#pragma GCC unroll 8
              for (int r = 0; r < R; r++) {
                const __m512bh x = Product<bf16>::of_all(a + t * cin + 2 * r);
                acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, b0);
                acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, b1);
              }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
              _mm512_storeu_ps(target + r * cout, acc[r][0]);
              _mm512_storeu_ps(target + r * cout + 16, acc[r][1]);
            }
          }
    }
    free(v);
    free(w);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < size; i++) {
      float total = 0;
      for (float* each : sums)
        if (each) total += each[i];
      du[i] = total;
    }
    free(sum);
  }
}

// The weights of two input channels for 16 output channels, as `multiply` reads them.
inline void put_weights(bf16* row, int64_t from, __m512 a, __m512 b) {
  store_pairs(row + 2 * from, a, b);
}
inline void put_weights(float* row, int64_t from, __m512 a, __m512 b) {
  store(row + from, a);
  store(row + WIDE + from, b);
}

// w: element (out, in, tap) at out * so + in * si + tap * st, taps z, y, x. The result is
// [out / 32][position][in / DEEP][32][DEEP], with the last position of the outer axis negated.
template <int PLANES, class T>
void pack(const float* w, int64_t outs, int64_t ins, int64_t so, int64_t si, int64_t st, int flip,
          T* u, int threads) {
  const int taps = PLANES == 1 ? 9 : 27, P = PLANES * 16;
  const int64_t pairs = ins / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < outs / LANES * pairs; task++) {
    const int64_t group = task / pairs, k = task % pairs;
    __m512 spread[2][PLANES * 16];
    for (int which = 0; which < 2; which++) {
      alignas(64) float taken[27][LANES];
      for (int lane = 0; lane < LANES; lane++) {
        const float* from = w + (group * LANES + lane) * so + (2 * k + which) * si;
        for (int tap = 0; tap < taps; tap++)
          taken[tap][lane] = from[(flip ? taps - 1 - tap : tap) * st];
      }
      // g0, (g0+g1+g2)/2, (g0-g1+g2)/2, g2 along x, y, z
      const __m512 half = _mm512_set1_ps(0.5f);
      auto widen = [&](__m512 a, __m512 b, __m512 c, __m512* to, int step) {
        const __m512 outer = _mm512_mul_ps(half, _mm512_add_ps(a, c)),
                     inner = _mm512_mul_ps(half, b);
        to[0] = a;
        to[step] = _mm512_add_ps(outer, inner);
        to[2 * step] = _mm512_sub_ps(outer, inner);
        to[3 * step] = c;
      };
      __m512 planes[3][16];
      for (int z = 0; z < taps / 9; z++) {
        __m512 rows[3][4];
        for (int y = 0; y < 3; y++) {
          const float* row = taken[z * 9 + y * 3];
          widen(_mm512_load_ps(row), _mm512_load_ps(row + LANES), _mm512_load_ps(row + 2 * LANES),
                rows[y], 1);
        }
        for (int x = 0; x < 4; x++) widen(rows[0][x], rows[1][x], rows[2][x], planes[z] + x, 4);
      }
      for (int i = 0; i < 16; i++) {
        if (PLANES == 1)
          spread[which][i] = planes[0][i];
        else
          widen(planes[0][i], planes[1][i], planes[2][i], spread[which] + i, 16);
      }
    }
    const __m512 zero = _mm512_setzero_ps();
    for (int p = 0; p < P; p++) {
      __m512 a = spread[0][p], b = spread[1][p];
      if (p >= P / 4 * 3) {
        a = _mm512_sub_ps(zero, a);
        b = _mm512_sub_ps(zero, b);
      }
      put_weights(u + ((group / 2 * P + p) * pairs + k) * 2 * WIDE, group % 2 * LANES, a, b);
    }
  }
}

const int64_t PIECE = 512;  // voxels whose sums are taken at once: 32 channels of them fit into L1
const int64_t GUESSED = 16;  // voxels of which a guess of the mean is made

// Runs `piece(first, last, sums)` over the voxels of a sample and adds up in a fixed order, then
// `finish(total)` once, then `apply(first, last)`: by one thread or, with `split`, by all.
template <class Piece, class Finish, class Apply>
void two_passes(int64_t voxels, int64_t channels, bool split, float* partial, Piece piece,
                Finish finish, Apply apply) {
  const int64_t pieces = (voxels + PIECE - 1) / PIECE;
  auto add_up = [&] {
    for (int64_t c = 0; c < channels; c++) {
      double a = 0, b = 0;
      for (int64_t i = 0; i < pieces; i++) {
        a += partial[(2 * i) * channels + c];
        b += partial[(2 * i + 1) * channels + c];
      }
      finish(c, a, b);
    }
  };
  if (split) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pieces; i++)
      piece(i * PIECE, std::min(voxels, (i + 1) * PIECE), partial + 2 * i * channels);
#pragma omp single
    add_up();
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pieces; i++) apply(i * PIECE, std::min(voxels, (i + 1) * PIECE));
  } else {
    for (int64_t i = 0; i < pieces; i++)
      piece(i * PIECE, std::min(voxels, (i + 1) * PIECE), partial + 2 * i * channels);
    add_up();
    for (int64_t i = 0; i < pieces; i++) apply(i * PIECE, std::min(voxels, (i + 1) * PIECE));
  }
}

// calls work(sample, split, partial sums): samples by threads, or one after the other by all
template <class Work>
void each_sample(int64_t batch, int64_t voxels, int64_t channels, int threads, Work work) {
  const bool split = batch < 3 * threads && threads > 1;
  const int64_t size = (voxels + PIECE - 1) / PIECE * 2 * channels;
  std::vector<float> shared(split ? size : 0);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> own(split ? 0 : size);
    if (split) {
      for (int64_t n = 0; n < batch; n++) work(n, true, shared.data());
    } else {
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < batch; n++) work(n, false, own.data());
    }
  }
}

// A value near each channel's mean, that of voxels spread over the sample by the golden ratio: not
// its first voxel, which padding sets apart.
template <class T>
void guess_means(const T* x, int64_t voxels, int64_t channels, float* mean) {
  const int64_t step = int64_t(0.618 * voxels) | 1;
  const __m512 share = _mm512_set1_ps(1.0f / GUESSED);
  for (int64_t c = 0; c < channels; c += LANES) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < GUESSED; i++)
      sum = _mm512_add_ps(sum, load(x + i * step % voxels * channels + c));
    _mm512_storeu_ps(mean + c, _mm512_mul_ps(sum, share));
  }
}

// y = leaky(scale (x - mean) / deviation + shift); mean and 1 / deviation are (batch, channel).
// Sums are of what differs from a guess of the mean: squares of values far from 0 would leave
// nothing of a small variance.
template <class T>
void normalize(const T* x, int64_t batch, int64_t voxels, int64_t channels, const float* scale,
               const float* shift, float slope, float eps, T* y, float* mean, float* inverse,
               int threads) {
  std::vector<float> factors(2 * batch * channels);
  for (int64_t n = 0; n < batch; n++)
    guess_means(x + n * voxels * channels, voxels, channels, mean + n * channels);
  each_sample(batch, voxels, channels, threads, [&](int64_t n, bool split, float* partial) {
    const T* from = x + n * voxels * channels;
    T* to = y + n * voxels * channels;
    float *factor = factors.data() + 2 * n * channels, *offset = factor + channels;
    two_passes(
        voxels, channels, split, partial,
        [&](int64_t first, int64_t last, float* sums) {
          for (int64_t c = 0; c < channels; c += LANES) {
            const __m512 guess = _mm512_loadu_ps(mean + n * channels + c);
            __m512 a = _mm512_setzero_ps(), b = a;
            for (int64_t v = first; v < last; v++) {
              const __m512 value = _mm512_sub_ps(load(from + v * channels + c), guess);
              a = _mm512_add_ps(a, value);
              b = _mm512_fmadd_ps(value, value, b);
            }
            _mm512_storeu_ps(sums + c, a);
            _mm512_storeu_ps(sums + channels + c, b);
          }
        },
        [&](int64_t c, double a, double b) {
          const double off = a / voxels, m = mean[n * channels + c] + off,
                       r = 1 / std::sqrt(std::max(b / voxels - off * off, 0.0) + eps);
          mean[n * channels + c] = m;
          inverse[n * channels + c] = r;
          factor[c] = scale[c] * r;
          offset[c] = shift[c] - m * scale[c] * r;
        },
        [&](int64_t first, int64_t last) {
          const __m512 leak = _mm512_set1_ps(slope);
          for (int64_t c = 0; c < channels; c += LANES) {
            const __m512 f = _mm512_loadu_ps(factor + c), o = _mm512_loadu_ps(offset + c);
            const __m512 centre = _mm512_loadu_ps(mean + n * channels + c),
                         level = _mm512_loadu_ps(shift + c);
            for (int64_t v = first; v < last; v++) {
              const __m512 taken = load(from + v * channels + c);
              // a mean far from 0 would cost fp32 the digits that bf16 does not have
              const __m512 value = sizeof(T) == 4
                                       ? _mm512_fmadd_ps(_mm512_sub_ps(taken, centre), f, level)
                                       : _mm512_fmadd_ps(taken, f, o);
              store(to + v * channels + c, _mm512_max_ps(value, _mm512_mul_ps(value, leak)));
            }
          }
        });
  });
}

Geometry geometry(const int64_t* s, int flat) {
  Geometry g{s[0], s[1], s[2], s[3], 0, 0, 0, flat};
  g.tz = flat ? g.depth : (g.depth + 1) / 2;
  g.ty = (g.height + 1) / 2;
  g.tx = (g.width + 1) / 2;
  return g;
}
}  // namespace

extern "C" {
// `exact`: images, weights and results are fp32, else bf16.
void winograd_convolve(const int64_t* shape, int flat, int exact, const void* x1, int64_t c1,
                       const void* x2, int64_t c2, const void* u, const float* bias, void* y1,
                       int64_t o1, void* y2, int64_t o2, int threads) {
  const int64_t channels[2] = {o1, o2};
  const Geometry g = geometry(shape, flat);
  auto run = [&](auto typed) {
    typedef decltype(typed) T;
    const Image<T> in[2] = {{(const T*)x1, c1}, {(const T*)x2, c2}};
    T* out[3] = {(T*)y1, (T*)y2, nullptr};
    const int inputs = x2 ? 2 : 1;
    if (flat)
      convolve<1>(g, in, inputs, (const T*)u, bias, out, channels, threads);
    else
      convolve<4>(g, in, inputs, (const T*)u, bias, out, channels, threads);
  };
  exact ? run(float()) : run(bf16());
}
void winograd_weigh(const int64_t* shape, int flat, const bf16* x1, int64_t c1, const bf16* x2,
                    int64_t c2, const bf16* dy, int64_t o, float* du, int threads) {
  const Image<bf16> in[2] = {{x1, c1}, {x2, c2}};
  const Geometry g = geometry(shape, flat);
  (flat ? weigh<1> : weigh<4>)(g, in, x2 ? 2 : 1, {dy, o}, du, threads);
}

void winograd_pack(const float* w, int64_t outs, int64_t ins, int64_t so, int64_t si, int64_t st,
                   int flat, int flip, int exact, void* u, int threads) {
  if (exact)
    (flat ? pack<1, float> : pack<4, float>)(w, outs, ins, so, si, st, flip, (float*)u, threads);
  else
    (flat ? pack<1, bf16> : pack<4, bf16>)(w, outs, ins, so, si, st, flip, (bf16*)u, threads);
}

void norm_forward(const void* x, int exact, int64_t batch, int64_t voxels, int64_t channels,
                  const float* scale, const float* shift, float slope, float eps, void* y,
                  float* mean, float* inverse, int threads) {
  auto run = [&](auto typed) {
    typedef decltype(typed) T;
    normalize((const T*)x, batch, voxels, channels, scale, shift, slope, eps, (T*)y, mean, inverse,
              threads);
  };
  exact ? run(float()) : run(bf16());
}

// dscale and dshift are (batch, channel)
void norm_backward(const bf16* x, const bf16* dy, int64_t batch, int64_t voxels, int64_t channels,
                   const float* scale, const float* shift, float slope, const float* mean,
                   const float* inverse, bf16* dx, float* dscale, float* dshift, int threads) {
  std::vector<float> factors(5 * batch * channels);
  for (int64_t n = 0; n < batch; n++)
    for (int64_t c = 0; c < channels; c++) {
      float* f = factors.data() + 5 * n * channels + c;
      f[0] = scale[c] * inverse[n * channels + c];
      f[channels] = shift[c] - mean[n * channels + c] * f[0];
    }
  each_sample(batch, voxels, channels, threads, [&](int64_t n, bool split, float* partial) {
    const bf16 *from = x + n * voxels * channels, *upper = dy + n * voxels * channels;
    bf16* to = dx + n * voxels * channels;
    float *factor = factors.data() + 5 * n * channels, *offset = factor + channels,
          *slopes = offset + channels, *level = slopes + channels;
    const float *m = mean + n * channels, *r = inverse + n * channels;
    const __m512 zero = _mm512_setzero_ps(), leak = _mm512_set1_ps(slope);
    auto gradient = [&](int64_t at, __m512 value, __m512 f, __m512 o) {
      const __m512 g = load(upper + at);
      return _mm512_mask_mul_ps(
          g, _mm512_cmp_ps_mask(_mm512_fmadd_ps(value, f, o), zero, _CMP_LE_OQ), g, leak);
    };
    two_passes(
        voxels, channels, split, partial,
        [&](int64_t first, int64_t last, float* sums) {
          for (int64_t c = 0; c < channels; c += LANES) {
            const __m512 f = _mm512_loadu_ps(factor + c), o = _mm512_loadu_ps(offset + c),
                         centre = _mm512_loadu_ps(m + c);
            __m512 a = zero, b = zero;
            for (int64_t v = first; v < last; v++) {
              const __m512 value = load(from + v * channels + c),
                           g = gradient(v * channels + c, value, f, o);
              a = _mm512_add_ps(a, g);
              b = _mm512_fmadd_ps(_mm512_sub_ps(value, centre), g, b);
            }
            _mm512_storeu_ps(sums + c, a);
            _mm512_storeu_ps(sums + channels + c, b);
          }
        },
        [&](int64_t c, double a, double b) {  // dx = factor g + slopes x + level
          b *= r[c];
          dshift[n * channels + c] = a;
          dscale[n * channels + c] = b;
          slopes[c] = -factor[c] * b * r[c] / voxels;
          level[c] = -factor[c] * a / voxels - slopes[c] * m[c];
        },
        [&](int64_t first, int64_t last) {
          for (int64_t c = 0; c < channels; c += LANES) {
            const __m512 f = _mm512_loadu_ps(factor + c), o = _mm512_loadu_ps(offset + c),
                         s = _mm512_loadu_ps(slopes + c), l = _mm512_loadu_ps(level + c);
            for (int64_t v = first; v < last; v++) {
              const __m512 value = load(from + v * channels + c),
                           g = gradient(v * channels + c, value, f, o);
              store(to + v * channels + c, _mm512_fmadd_ps(g, f, _mm512_fmadd_ps(value, s, l)));
            }
          }
        });
  });
}

int supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}
}
