// bfloat16 forms of elementwise.py: one pass over each operand, sums and products in float32.
// Strides are in elements, between rows; the elements of a row are adjacent.

#include <cmath>
#include <cstdint>
#include <cstring>

typedef uint16_t bf16;
typedef int64_t n_t;

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 narrow(float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// e^x to 2e-7 of itself: 2^n p(f), with p a polynomial for 2^f on [-1/2, 1/2] (its Taylor series).
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float scaled = x * 1.44269504f;
    const float whole = std::nearbyintf(scaled);
    const float f = scaled - whole;
    float p = 1.54035304e-4f;
    p = p * f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
    p = p * f + 5.55041087e-2f;
    p = p * f + 2.40226507e-1f;
    p = p * f + 6.93147181e-1f;
    p = p * f + 1.0f;
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

static inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Activations: 0 is silu, 1 gelu by tanh, written as x logistic(2 u) with u = k (x + c x^3).
template <int kind>
static inline void activate(float x, float* value, float* slope) {
    if (kind == 0) {
        const float s = logistic(x);
        *value = x * s;
        *slope = s * (1.0f + x * (1.0f - s));
    } else {
        const float k = 1.59576912f, c = 0.044715f;
        const float s = logistic(k * (x + c * x * x * x));
        *value = x * s;
        *slope = s + x * s * (1.0f - s) * k * (1.0f + 3.0f * c * x * x);
    }
}

template <int kind>
static void gate_rows(const bf16* in, n_t ld_in, bf16* out, n_t ld_out, n_t rows, n_t width) {
    for (n_t r = 0; r < rows; ++r) {
        const bf16 *opened = in + r * ld_in, *up = opened + width;
        bf16* to = out + r * ld_out;
        for (n_t j = 0; j < width; ++j) {
            float value, slope;
            activate<kind>(widen(opened[j]), &value, &slope);
            to[j] = narrow(value * widen(up[j]));
        }
    }
}

template <int kind>
static void gate_gradient_rows(const bf16* grad, n_t ld_grad, const bf16* in, n_t ld_in, bf16* out,
                               n_t ld_out, n_t rows, n_t width) {
    for (n_t r = 0; r < rows; ++r) {
        const bf16 *opened = in + r * ld_in, *up = opened + width, *from = grad + r * ld_grad;
        bf16 *of_opened = out + r * ld_out, *of_up = of_opened + width;
        for (n_t j = 0; j < width; ++j) {
            float value, slope;
            activate<kind>(widen(opened[j]), &value, &slope);
            const float g = widen(from[j]);
            of_opened[j] = narrow(g * widen(up[j]) * slope);
            of_up[j] = narrow(g * value);
        }
    }
}

extern "C" {

void norm(const bf16* x, n_t ld_x, const float* weight, bf16* out, float* inverse, n_t rows,
          n_t width, float eps) {
    for (n_t r = 0; r < rows; ++r) {
        const bf16* from = x + r * ld_x;
        bf16* to = out + r * width;
        float squares = 0.0f;
        for (n_t j = 0; j < width; ++j) squares += widen(from[j]) * widen(from[j]);
        const float scale = 1.0f / std::sqrt(squares / width + eps);
        inverse[r] = scale;
        for (n_t j = 0; j < width; ++j) to[j] = narrow(widen(from[j]) * scale * weight[j]);
    }
}

void norm_backward(const bf16* grad, n_t ld_grad, const bf16* x, n_t ld_x, const float* weight,
                   const float* inverse, bf16* out, n_t rows, n_t width) {
    for (n_t r = 0; r < rows; ++r) {
        const bf16 *g = grad + r * ld_grad, *from = x + r * ld_x;
        bf16* to = out + r * width;
        float dot = 0.0f;
        for (n_t j = 0; j < width; ++j) dot += widen(g[j]) * weight[j] * widen(from[j]);
        const float scale = inverse[r], along = dot * scale * scale * scale / width;
        for (n_t j = 0; j < width; ++j)
            to[j] = narrow(widen(g[j]) * weight[j] * scale - widen(from[j]) * along);
    }
}

void gate(const bf16* in, n_t ld_in, bf16* out, n_t ld_out, n_t rows, n_t width, int kind) {
    (kind ? gate_rows<1> : gate_rows<0>)(in, ld_in, out, ld_out, rows, width);
}

void gate_backward(const bf16* grad, n_t ld_grad, const bf16* in, n_t ld_in, bf16* out, n_t ld_out,
                   n_t rows, n_t width, int kind) {
    (kind ? gate_gradient_rows<1> : gate_gradient_rows<0>)(grad, ld_grad, in, ld_in, out, ld_out,
                                                           rows, width);
}

// In place; with `back`, the transposed rotation.
void rotate(bf16* x, n_t ld_x, const bf16* cos, const bf16* sin, n_t tokens, n_t heads, n_t width,
            int back) {
    const n_t half = width / 2;
    for (n_t t = 0; t < tokens; ++t) {
        const bf16 *c = cos + t * width, *s = sin + t * width;
        const bf16 *s1 = back ? s + half : s, *s2 = back ? s : s + half;
        const float sign = back ? -1.0f : 1.0f;
        for (n_t h = 0; h < heads; ++h) {
            bf16 *x1 = x + t * ld_x + h * width, *x2 = x1 + half;
#pragma GCC ivdep
            for (n_t j = 0; j < half; ++j) {
                const float a = widen(x1[j]), b = widen(x2[j]);
                x1[j] = narrow(a * widen(c[j]) - sign * b * widen(s1[j]));
                x2[j] = narrow(b * widen(c[half + j]) + sign * a * widen(s2[j]));
            }
        }
    }
}

// In place over matrices [width, width], width a multiple of 16: row i attends to columns
// max(0, i - window + 1) to i.
void softmax(bf16* scores, n_t matrices, n_t width, n_t window) {
    for (n_t r = 0; r < matrices * width; ++r) {
        const int i = r % width, first = i + 1 > window ? i + 1 - window : 0;
        const int from = first / 16 * 16, end = (i + 16) / 16 * 16;  // whole vectors
        bf16* row = scores + r * width;
        float highest = -3e38f, sum = 0.0f, buffer[width];
        for (int j = from; j < end; ++j) {
            const float value = (j >= first) & (j <= i) ? widen(row[j]) : -1e38f;
            buffer[j] = value;
            highest = value > highest ? value : highest;
        }
        for (int j = from; j < end; ++j) {
            const float value = exponential(buffer[j] - highest);
            buffer[j] = (j >= first) & (j <= i) ? value : 0.0f;
            sum += buffer[j];
        }
        const float scale = 1.0f / sum;
        memset(row, 0, from * sizeof(bf16));
        for (int j = from; j < end; ++j) row[j] = narrow(buffer[j] * scale);
        memset(row + end, 0, (width - end) * sizeof(bf16));
    }
}

// In place over the gradients of probabilities, which are 0 outside of `softmax`'s columns.
void softmax_backward(bf16* grad, const bf16* probabilities, n_t matrices, n_t width) {
    for (n_t r = 0; r < matrices * width; ++r) {
        const int end = (int)(r % width + 16) / 16 * 16;
        bf16* g = grad + r * width;
        const bf16* p = probabilities + r * width;
        float dot = 0.0f;
        for (int j = 0; j < end; ++j) dot += widen(g[j]) * widen(p[j]);
        for (int j = 0; j < end; ++j) g[j] = narrow(widen(p[j]) * (widen(g[j]) - dot));
        memset(g + end, 0, (width - end) * sizeof(bf16));
    }
}
}
