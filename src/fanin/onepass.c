/* All that a summary holds of a tensor, from one read of it on the CPU: moments, extremes, zeros, and the histogram of
 * the upper bits of a sample. `fanin.onepass` calls it; `fanin.summary` explains what the numbers mean.
 *
 * Sums run in float64, in which the square of a float32 is exact, of deviations from the first value (shifted data;
 * Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", section 3): what cancels in
 * M2 = S(d^2) - S(d)^2 / n is then no more than that value's own part of M2, n times: M2 is exact to n (n / BLOCK + 256)
 * roundings at the very worst, where the first of n values carries all of it, and to (n / BLOCK + 256) elsewhere.
 *
 * Nothing is allocated, nothing outlives a call, and no function of another library is called.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "NaN and infinities must stay what they are"
#endif
#ifndef SOURCE
#define SOURCE 0 /* hatch_build.py says which source this is built from */
#endif

#define LANES 16
#define BLOCK 2048 /* values, 8 KiB in float32: read, then sampled, while they are in the first-level cache */
#define BITS 14    /* of a float32, that name a bin */
#define BINS (1 << BITS)
#define RUN 32     /* bins, of the values between two powers of two */
#define STRIP 256  /* columns whose sums fit into it */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(PLAIN)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

enum { FLOAT32, BFLOAT16, FLOAT16 };

/* Of some values: how many are zero, sums of d = x - centre and of its square, extremes, sum of weight * x. */
typedef struct {
    double centre, sum, squares, along;
    float low, high;
    int64_t zeros;
} Sums;

static float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Without a subnormal operand, which a processor that is told to takes for zero. */
static float half(uint16_t h) {
    uint32_t rest = h & 0x7fffu, bits = (rest << 13) + ((127 - 15) << 23);
    float small = (float)rest * 0x1p-24f;
    if (rest >= 0x7c00u) bits = 0x7f800000u | rest << 13;
    if (rest < 0x400u) memcpy(&bits, &small, sizeof bits);
    return of_bits(bits | (uint32_t)(h & 0x8000u) << 16);
}

/* Values [start, start + n) in float32, which holds them exactly: in place, or in the buffer. */
static inline const float *fetch(const void *x, int dtype, int64_t start, int64_t n, float *buffer) {
    const uint16_t *narrow = (const uint16_t *)x + start;
    if (dtype == FLOAT32) return (const float *)x + start;
    if (dtype == BFLOAT16)
        for (int64_t i = 0; i < n; i++) buffer[i] = of_bits((uint32_t)narrow[i] << 16);
    else
        for (int64_t i = 0; i < n; i++) buffer[i] = half(narrow[i]);
    return buffer;
}

static inline void one(Sums *to, float x, double weight) {
    double d = x - to->centre;
    to->sum += d;
    to->squares += d * d;
    to->along += weight * x;
    to->low = x < to->low ? x : to->low;
    to->high = x > to->high ? x : to->high;
    to->zeros += x == 0;
}

/* Add up to BLOCK values. A value that is not finite leaves sums that are not. */
static inline void add(Sums *to, const float *restrict x, const double *restrict weights, int64_t n) {
    double sum[LANES] = {0}, squares[LANES] = {0}, along[LANES] = {0}, centre = to->centre;
    float low[LANES], high[LANES];
    int32_t zeros[LANES] = {0};
    int64_t i = 0;
    for (int k = 0; k < LANES; k++) low[k] = to->low, high[k] = to->high;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float v = x[i + k];
            double d = v - centre;
            sum[k] += d;
            squares[k] += d * d;
            low[k] = v < low[k] ? v : low[k];
            high[k] = v > high[k] ? v : high[k];
            zeros[k] += v == 0;
        }
    if (weights)
        for (int64_t j = 0; j < i; j += LANES)
            for (int k = 0; k < LANES; k++) along[k] += weights[j + k] * x[j + k];
    for (int k = 0; k < LANES; k++) {
        to->sum += sum[k];
        to->squares += squares[k];
        to->along += along[k];
        to->low = low[k] < to->low ? low[k] : to->low;
        to->high = high[k] > to->high ? high[k] : to->high;
        to->zeros += zeros[k];
    }
    for (; i < n; i++) one(to, x[i], weights ? weights[i] : 0);
}

static inline Sums around(double centre) {
    Sums none = {0};
    none.centre = centre;
    none.low = of_bits(0x7f800000u);
    none.high = of_bits(0xff800000u);
    return none;
}

static inline int is_finite(double x) { return x - x == 0; }

/* [mean, M2, lowest, highest, sum of weight * x]; whether all values were finite. */
static inline int settle(const Sums *s, int64_t n, double *out) {
    double m2 = s->squares - s->sum * s->sum / (double)n;
    int constant = s->low == s->high;
    out[0] = constant ? s->low : s->centre + s->sum / (double)n;
    out[1] = constant || m2 < 0 ? 0 : m2;
    out[2] = s->low;
    out[3] = s->high;
    out[4] = s->along;
    return is_finite(s->squares) && is_finite(s->along);
}

uint32_t fanin_source(void) { return SOURCE; }
int fanin_bins(void) { return BINS; }

/* Values [start, start + n) of one unit. */
static inline void read_run(Sums *to, const void *x, int dtype, int64_t start, int64_t n, const double *weights) {
    float buffer[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t size = n - i < BLOCK ? n - i : BLOCK;
        add(to, fetch(x, dtype, start + i, size, buffer), weights ? weights + i : NULL, size);
    }
}

/* Counts of values by the upper BITS of their float32, and which runs of RUN bins hold any: what is empty, which is
 * nearly all, need not be looked through nor cleared. */
typedef struct {
    uint32_t *bins;
    uint8_t runs[BINS / RUN];
} Counts;

/* Every stride-th value from the next one on, up to the end; positions count from the block's first value. */
static inline int64_t count(Counts *to, const float *block, int64_t next, int64_t end, int64_t stride) {
    for (; next < end; next += stride) {
        uint32_t name;
        memcpy(&name, block + next, sizeof name);
        name >>= 32 - BITS;
        to->bins[name]++;
        to->runs[name / RUN] = 1;
    }
    return next;
}

/* Move a run of bins out, upwards or downwards, under names that ascend with the values in them. */
static inline int64_t take(Counts *from, int run, int down, int64_t *names, int64_t *counts, int64_t found) {
    for (int i = 0; i < RUN; i++) {
        int k = run * RUN + (down ? RUN - 1 - i : i);
        if (from->bins[k]) {
            names[found] = down ? BINS / 2 - 1 - k : k;
            counts[found++] = from->bins[k];
            from->bins[k] = 0;
        }
    }
    return found;
}

/* Occupied bins by ascending value: those of negative values come first, the last of them foremost, and are called -1
 * less their distance from the first. All bins are zero again afterwards. Returns how many. */
static int64_t take_all(Counts *from, int64_t *names, int64_t *counts) {
    int64_t found = 0;
    for (int run = BINS / RUN - 1; run >= BINS / RUN / 2; run--)
        if (from->runs[run]) found = take(from, run, 1, names, counts, found);
    for (int run = 0; run < BINS / RUN / 2; run++)
        if (from->runs[run]) found = take(from, run, 0, names, counts, found);
    return found;
}

/* A tensor as a whole: out holds the [5] of `settle`; whole how many values are zero, and how many bins are occupied.
 * With a stride, every stride-th value is counted: in bins [BINS], which are zero before and after, and from there into
 * names and counts [BINS].
 *
 * Returns whether all values were finite; otherwise nothing of the results means anything. */
WIDE int fanin_whole(const void *x, int dtype, int64_t n, int64_t stride, uint32_t *bins, int64_t *names,
                     int64_t *counts, double *out, int64_t *whole) {
    float buffer[BLOCK];
    Sums all = around(*fetch(x, dtype, 0, 1, buffer));
    Counts counted = {bins, {0}};
    int64_t next = 0;
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t size = n - start < BLOCK ? n - start : BLOCK;
        const float *block = fetch(x, dtype, start, size, buffer);
        add(&all, block, NULL, size);
        if (stride) next = count(&counted, block, next, size, stride) - size;
    }
    whole[0] = all.zeros;
    whole[1] = take_all(&counted, names, counts);
    return settle(&all, n, out);
}

/* Unit u of x [before, units, after]. */
static inline Sums read_unit(double centre, const void *x, int dtype, int64_t u, int64_t before, int64_t units,
                             int64_t after, const double *weights) {
    Sums unit = around(centre);
    for (int64_t b = 0; b < before; b++)
        read_run(&unit, x, dtype, (b * units + u) * after, after, weights ? weights + b * after : NULL);
    return unit;
}

/* Units of x [before, units, after]: [units, 5] of `settle`. weights: [before, after], or NULL. Returns as above. */
WIDE int fanin_rows(const void *x, int dtype, int64_t before, int64_t units, int64_t after, const double *weights,
                    double *out, int64_t *zeros) {
    float first;
    int finite = 1;
    *zeros = 0;
    for (int64_t u = 0; u < units; u++) {
        double centre = *fetch(x, dtype, u * after, 1, &first);
        Sums unit = read_unit(centre, x, dtype, u, before, units, after, weights);
        finite &= settle(&unit, before * after, out + 5 * u);
        *zeros += unit.zeros;
    }
    return finite;
}

/* Columns, side by side. */
typedef struct {
    double centre[STRIP], sum[STRIP], squares[STRIP], along[STRIP];
    float low[STRIP], high[STRIP];
    int64_t zeros;
} Strip;

static inline void begin(Strip *to, const float *row, int64_t width, int64_t after) {
    to->zeros = 0;
    for (int64_t k = 0; k < width; k++) {
        to->centre[k] = row[k - k % after]; /* one for all columns of a unit, so that their sums add up */
        to->sum[k] = to->squares[k] = to->along[k] = 0;
        to->low[k] = to->high[k] = row[k];
    }
}

static inline void add_row(Strip *restrict to, const float *restrict row, int64_t width) {
    int32_t none = 0;
    for (int64_t k = 0; k < width; k++) {
        double d = row[k] - to->centre[k];
        to->sum[k] += d;
        to->squares[k] += d * d;
    }
    for (int64_t k = 0; k < width; k++) {
        float v = row[k];
        to->low[k] = v < to->low[k] ? v : to->low[k];
        to->high[k] = v > to->high[k] ? v : to->high[k];
        none += v == 0;
    }
    to->zeros += none;
}

/* weights [after], the same for all units. */
static inline void weigh_row(Strip *restrict to, const float *restrict row, int64_t width,
                             const double *restrict weights, int64_t after) {
    if (after == 1) /* the common case, which a loop of one turn hides from the compiler */
        for (int64_t k = 0; k < width; k++) to->along[k] += weights[0] * row[k];
    else
        for (int64_t k = 0; k < width; k += after)
            for (int64_t i = 0; i < after; i++) to->along[k + i] += weights[i] * row[k + i];
}

/* The columns of a unit, together. */
static inline Sums together(const Strip *s, int64_t first, int64_t after) {
    Sums unit = around(s->centre[first]);
    for (int64_t k = first; k < first + after; k++) {
        unit.sum += s->sum[k];
        unit.squares += s->squares[k];
        unit.along += s->along[k];
        unit.low = s->low[k] < unit.low ? s->low[k] : unit.low;
        unit.high = s->high[k] > unit.high ? s->high[k] : unit.high;
    }
    return unit;
}

/* The same as `fanin_rows` where `after` is at most STRIP: rows of all units are read side by side. */
WIDE int fanin_columns(const void *x, int dtype, int64_t before, int64_t units, int64_t after, const double *weights,
                       double *out, int64_t *zeros) {
    float buffer[STRIP];
    Strip strip;
    int finite = 1;
    int64_t row = units * after, most = STRIP / after * after;
    *zeros = 0;
    for (int64_t first = 0; first < row; first += most) {
        int64_t width = row - first < most ? row - first : most;
        begin(&strip, fetch(x, dtype, first, width, buffer), width, after);
        for (int64_t r = 0; r < before; r++) {
            const float *values = fetch(x, dtype, r * row + first, width, buffer);
            add_row(&strip, values, width);
            if (weights) weigh_row(&strip, values, width, weights + r * after, after);
        }
        for (int64_t k = 0; k < width; k += after) {
            Sums unit = together(&strip, k, after);
            finite &= settle(&unit, before * after, out + 5 * ((first + k) / after));
        }
        *zeros += strip.zeros;
    }
    return finite;
}
