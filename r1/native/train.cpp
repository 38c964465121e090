// What a forward and backward pass of a Llama-like model over packed tokens needs, in float32.
//
// Legend: N tokens of all sequences one after another, C hidden size, H query heads, K key-value heads, D head size,
// W = (H + 2 K) D width of query, key and value together, I feed-forward size, V vocabulary.
// A segment is a run of tokens that attend to themselves causally and to the whole of an earlier run, its prefix:
// a group's prompt is the prefix of its completions.

#include <algorithm>
#include <vector>

#include "common.h"

namespace {

constexpr int DEPTH = 384;         // summands of a product kept in a panel at a time
constexpr int ROWS_AT_ONCE = 40 * TILE_ROWS;  // of the left factor, which stay in the CPU's cache
constexpr int WORTH_PACKING = 256;            // columns of the right factor from which on the left one is packed

struct Factor {
    const float* data;
    int64_t row, col;  // strides
};

template <int ROWS>
void block(const float* a, int64_t row, int64_t step, const float* panel, int depth, float* c, int64_t ldc, int width,
           bool add) {
    Vector sums[ROWS][2] = {};
    for (int k = 0; k < depth; ++k) {
        const Vector b0 = *reinterpret_cast<const Vector*>(panel + int64_t(k) * PANEL);
        const Vector b1 = *reinterpret_cast<const Vector*>(panel + int64_t(k) * PANEL + LANES);
        const float* column = a + k * step;
        for (int r = 0; r < ROWS; ++r) {
            const float value = column[r * row];
            sums[r][0] += value * b0;
            sums[r][1] += value * b1;
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        float* out = c + r * ldc;
        if (width == PANEL) {
            Vector *first = reinterpret_cast<Vector*>(out), *second = reinterpret_cast<Vector*>(out + LANES);
            *first = add ? *first + sums[r][0] : sums[r][0];
            *second = add ? *second + sums[r][1] : sums[r][1];
        } else {
            float values[PANEL];
            std::memcpy(values, sums[r], sizeof(values));
            for (int j = 0; j < width; ++j) out[j] = add ? out[j] + values[j] : values[j];
        }
    }
}

using Block = void (*)(const float*, int64_t, int64_t, const float*, int, float*, int64_t, int, bool);
const Block BLOCKS[] = {nullptr, block<1>, block<2>, block<3>, block<4>, block<5>, block<6>,
#ifdef __AVX512F__
                        block<7>, block<8>, block<9>, block<10>, block<11>, block<12>,
#endif
};

// Columns first..first+PANEL of b, summands start..start+depth, one summand after another.
void fill_panel(const Factor& b, int first, int width, int start, int depth, float* panel) {
    if (width < PANEL) std::memset(panel, 0, sizeof(float) * PANEL * depth);
    if (b.col == 1) {
        for (int k = 0; k < depth; ++k)
            std::memcpy(panel + int64_t(k) * PANEL, b.data + (start + k) * b.row + first, sizeof(float) * width);
        return;
    }
    for (int k0 = 0; k0 < depth; k0 += 16) {
        const int end = std::min(k0 + 16, depth);
        for (int j = 0; j < width; ++j) {
            const float* from = b.data + (first + j) * b.col + start * b.row;
            for (int k = k0; k < end; ++k) panel[int64_t(k) * PANEL + j] = from[k * b.row];
        }
    }
}

// Four query rows at a time against keys (D, T) laid out by dimension.
constexpr int QUERIES = 4, KEYS = 4 * LANES;

// scores (QUERIES, T): rows of a (stride `row`) times b (D, T), positions 0..limit.
void scores_of(const float* const* rows, const float* b, int D, int64_t T, int limit, float* scores) {
    for (int start = 0; start < limit; start += KEYS) {
        Vector sums[QUERIES][4] = {};
        for (int d = 0; d < D; ++d) {
            const Vector* key = reinterpret_cast<const Vector*>(b + d * T + start);
            for (int r = 0; r < QUERIES; ++r)
                for (int v = 0; v < 4; ++v) sums[r][v] += rows[r][d] * key[v];
        }
        for (int r = 0; r < QUERIES; ++r) std::memcpy(scores + r * T + start, sums[r], sizeof(sums[r]));
    }
}

// out (QUERIES, D) = p (QUERIES, limit) @ b (T, D), which is contiguous.
void mix(const float* p, const float* b, int D, int64_t T, int limit, float* out) {
    for (int d = 0; d < D; d += 2 * LANES) {
        const int vectors = std::min(2, (D - d) / LANES);
        Vector sums[QUERIES][2] = {};
        if (vectors == 2) {
            for (int l = 0; l < limit; ++l) {
                const Vector* value = reinterpret_cast<const Vector*>(b + int64_t(l) * D + d);
                for (int r = 0; r < QUERIES; ++r) {
                    sums[r][0] += p[r * T + l] * value[0];
                    sums[r][1] += p[r * T + l] * value[1];
                }
            }
        } else {
            for (int l = 0; l < limit; ++l) {
                const Vector value = *reinterpret_cast<const Vector*>(b + int64_t(l) * D + d);
                for (int r = 0; r < QUERIES; ++r) sums[r][0] += p[r * T + l] * value;
            }
        }
        for (int r = 0; r < QUERIES; ++r) std::memcpy(out + r * D + d, sums[r], sizeof(Vector) * vectors);
    }
}

// total (T, D) += p (QUERIES, limit).T @ rows (QUERIES, D).
void spread(const float* p, const float* const* rows, int D, int64_t T, int limit, float* total) {
    for (int d = 0; d < D; d += LANES) {
        Vector values[QUERIES];
        for (int r = 0; r < QUERIES; ++r) values[r] = *reinterpret_cast<const Vector*>(rows[r] + d);
        for (int l = 0; l < limit; ++l) {
            Vector* sum = reinterpret_cast<Vector*>(total + int64_t(l) * D + d);
            Vector more = p[l] * values[0];
            for (int r = 1; r < QUERIES; ++r) more += p[r * T + l] * values[r];
            *sum += more;
        }
    }
}

struct Segment {
    int32_t start, length, prefix, prefix_length;
};

struct Shape {
    int32_t heads, kv_heads, head_dim, num_segments, num_threads, longest;  // longest prefix + segment
};

int64_t padded(int length) { return int64_t(length + KEYS - 1) / KEYS * KEYS; }

// Copy columns `at`..at+D of a segment's prefix and its own tokens to (T, D), or to (D, T) when `turned`.
void gather(const Segment& s, const float* heads, int64_t width, int at, int D, int64_t T, bool turned, float* out) {
    const int total = s.prefix_length + s.length;
    for (int l = 0; l < total; ++l) {
        const int64_t token = l < s.prefix_length ? s.prefix + l : s.start + l - s.prefix_length;
        const float* from = heads + token * width + at;
        if (turned)
            for (int d = 0; d < D; ++d) out[d * T + l] = from[d];
        else
            std::memcpy(out + int64_t(l) * D, from, sizeof(float) * D);
    }
    if (turned)
        for (int d = 0; d < D; ++d)
            for (int64_t l = total; l < padded(total); ++l) out[d * T + l] = 0.0f;
}

}  // namespace

extern "C" {

int32_t lanes() { return LANES; }

// c (m, n) = a (m, k) @ b (k, n), added to c when `add`; strides in elements, b with unit stride one way or the other.
void matmul(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_row, int64_t b_col, float* c,
            int64_t ldc, int32_t m, int32_t n, int32_t k, int32_t add, int32_t num_threads) {
    const Factor right{b, b_row, b_col};
    const int num_panels = (n + PANEL - 1) / PANEL;
    const bool packs = n >= WORTH_PACKING && (a_col != 1 || k > DEPTH);
    if (k == 0 && !add)
        for (int i = 0; i < m; ++i) std::memset(c + i * ldc, 0, sizeof(float) * n);
    std::vector<float> left(packs ? ROWS_AT_ONCE * std::min(k, DEPTH) : 0);
    (void)num_threads;
    for (int start = 0; start < k; start += DEPTH)
        for (int top = 0; top < m; top += ROWS_AT_ONCE) {
            const int depth = std::min(k - start, DEPTH), height = std::min(m - top, ROWS_AT_ONCE);
            const int num_tiles = (height + TILE_ROWS - 1) / TILE_ROWS;
            const float* rows = a + top * a_row + start * a_col;
            if (packs)  // each tile's values in the order in which they are read
                for (int t = 0; t < num_tiles; ++t) {
                    const int begin = height * t / num_tiles, count = height * (t + 1) / num_tiles - begin;
                    float* to = left.data() + begin * depth;
                    for (int j = 0; j < depth; ++j)
                        for (int r = 0; r < count; ++r) to[j * count + r] = rows[(begin + r) * a_row + j * a_col];
                }
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
            for (int p = 0; p < num_panels; ++p) {
                std::vector<float> panel(PANEL * depth);
                const int first = p * PANEL, width = std::min(n - first, PANEL);
                fill_panel(right, first, width, start, depth, panel.data());
                for (int t = 0; t < num_tiles; ++t) {
                    const int begin = height * t / num_tiles, count = height * (t + 1) / num_tiles - begin;
                    float* to = c + (top + begin) * ldc + first;
                    if (packs)
                        BLOCKS[count](left.data() + begin * depth, 1, count, panel.data(), depth, to, ldc, width,
                                      add || start);
                    else
                        BLOCKS[count](rows + begin * a_row, a_row, a_col, panel.data(), depth, to, ldc, width,
                                      add || start);
                }
            }
        }
}

void norm_forward(const float* x, const float* weight, float* y, int32_t n, int32_t size, float eps) {
    for (int64_t i = 0; i < n; ++i) rms_norm(x + i * size, weight, y + i * size, size, eps);
}

// dx += gradient of the norm, dweight += that of its weight.
void norm_backward(const float* dy, const float* x, const float* weight, float* dx, float* dweight, int32_t n,
                   int32_t size, float eps) {
    for (int64_t i = 0; i < n; ++i) {
        const float *g = dy + i * size, *v = x + i * size;
        const float scale = rms_scale(v, size, eps);
        float dot = 0.0f;
        for (int j = 0; j < size; ++j) dot += g[j] * weight[j] * v[j];
        const float back = dot * scale * scale * scale / size;
        float* out = dx + i * size;
        for (int j = 0; j < size; ++j) {
            out[j] += scale * weight[j] * g[j] - back * v[j];
            dweight[j] += g[j] * v[j] * scale;
        }
    }
}

// Normalise (Qwen3) and rotate the query and key heads of `raw` (N, W) to `out`; the values are copied.
void heads_forward(const float* raw, float* out, const int32_t* positions, const float* cos, const float* sin,
                   const float* q_norm, const float* k_norm, int32_t n, const Shape* shape, float eps) {
    const int D = shape->head_dim, half = D / 2, turned = shape->heads + shape->kv_heads;
    const int64_t width = int64_t(turned + shape->kv_heads) * D;
    if (out != raw) std::memcpy(out, raw, sizeof(float) * n * width);
    for (int64_t i = 0; i < n; ++i)
        for (int h = 0; h < turned; ++h) {
            float* head = out + i * width + h * D;
            const float* norm = h < shape->heads ? q_norm : k_norm;
            if (norm) rms_norm(head, norm, head, D, eps);
            rotate(head, cos + int64_t(positions[i]) * half, sin + int64_t(positions[i]) * half, half);
        }
}

// Turn the gradient `d` (N, W) of heads_forward's output into that of its input, in place.
void heads_backward(float* d, const float* raw, const int32_t* positions, const float* cos, const float* sin,
                    const float* q_norm, const float* k_norm, float* dq_norm, float* dk_norm, int32_t n,
                    const Shape* shape, float eps) {
    const int D = shape->head_dim, half = D / 2, turned = shape->heads + shape->kv_heads;
    const int64_t width = int64_t(turned + shape->kv_heads) * D;
    std::vector<float> copy(D);
    for (int64_t i = 0; i < n; ++i)
        for (int h = 0; h < turned; ++h) {
            float* head = d + i * width + h * D;
            rotate(head, cos + int64_t(positions[i]) * half, sin + int64_t(positions[i]) * half, half, true);
            if (!q_norm) continue;
            std::copy(head, head + D, copy.begin());
            std::fill(head, head + D, 0.0f);
            norm_backward(copy.data(), raw + i * width + h * D, h < shape->heads ? q_norm : k_norm, head,
                          h < shape->heads ? dq_norm : dk_norm, 1, D, eps);
        }
}

// out (N, H D) and the logarithm of each softmax's denominator (N, H).
void attention_forward(const float* heads, float* out, float* logsumexps, const Segment* segments,
                       const Shape* shape) {
    const int H = shape->heads, K = shape->kv_heads, D = shape->head_dim, group = H / K;
    const int64_t width = int64_t(H + 2 * K) * D, T = padded(shape->longest);
    const float scale = 1.0f / std::sqrt(float(D));
#pragma omp parallel for num_threads(shape->num_threads) if (shape->num_threads > 1) schedule(dynamic)
    for (int job = 0; job < shape->num_segments * K; ++job) {
        const Segment& s = segments[job / K];
        const int k = job % K, total = s.prefix_length + s.length;
        std::vector<float> keys(D * T), values(int64_t(total) * D), scores(QUERIES * T), mixed(QUERIES * D);
        gather(s, heads, width, (H + k) * D, D, T, true, keys.data());
        gather(s, heads, width, (H + K + k) * D, D, T, false, values.data());
        for (int h = k * group; h < (k + 1) * group; ++h)
            for (int begin = 0; begin < s.length; begin += QUERIES) {
                const int rows = std::min(QUERIES, s.length - begin), limit = s.prefix_length + begin + rows;
                const float* queries[QUERIES];
                for (int r = 0; r < QUERIES; ++r)
                    queries[r] = heads + (s.start + begin + std::min(r, rows - 1)) * width + h * D;
                scores_of(queries, keys.data(), D, T, limit, scores.data());
                float totals[QUERIES];
                for (int r = 0; r < rows; ++r) {
                    float* row = scores.data() + r * T;
                    const int seen = s.prefix_length + begin + r + 1;
                    float top = row[0];
                    for (int l = 1; l < seen; ++l) top = row[l] > top ? row[l] : top;
                    float sum = 0.0f;
                    for (int l = 0; l < seen; ++l) {
                        row[l] = exp_f32((row[l] - top) * scale);
                        sum += row[l];
                    }
                    for (int l = seen; l < limit; ++l) row[l] = 0.0f;
                    totals[r] = sum;
                    logsumexps[int64_t(s.start + begin + r) * H + h] = top * scale + std::log(sum);
                }
                mix(scores.data(), values.data(), D, T, limit, mixed.data());
                for (int r = 0; r < rows; ++r) {
                    float* to = out + (int64_t(s.start + begin + r) * H + h) * D;
                    for (int d = 0; d < D; ++d) to[d] = mixed[r * D + d] / totals[r];
                }
            }
    }
}

// dheads (N, W), zero before, becomes the gradient of `heads`.
void attention_backward(const float* dout, const float* heads, const float* out, const float* logsumexps,
                        float* dheads, const Segment* segments, const Shape* shape) {
    const int H = shape->heads, K = shape->kv_heads, D = shape->head_dim, group = H / K;
    const int64_t width = int64_t(H + 2 * K) * D, T = padded(shape->longest);
    const float scale = 1.0f / std::sqrt(float(D));
    // Segments add to the keys and values of a prefix that they share: one thread has all of a head's.
#pragma omp parallel for num_threads(shape->num_threads) if (shape->num_threads > 1)
    for (int k = 0; k < K; ++k) {
        std::vector<float> turned_keys(D * T), turned_values(D * T), keys(T * D), dkeys(T * D), dvalues(T * D);
        std::vector<float> scores(QUERIES * T), dscores(QUERIES * T), dquery(QUERIES * D);
        for (int number = 0; number < shape->num_segments; ++number) {
            const Segment& s = segments[number];
            const int total = s.prefix_length + s.length;
            gather(s, heads, width, (H + k) * D, D, T, true, turned_keys.data());
            gather(s, heads, width, (H + K + k) * D, D, T, true, turned_values.data());
            gather(s, heads, width, (H + k) * D, D, T, false, keys.data());
            std::fill(dkeys.begin(), dkeys.begin() + int64_t(total) * D, 0.0f);
            std::fill(dvalues.begin(), dvalues.begin() + int64_t(total) * D, 0.0f);
            for (int h = k * group; h < (k + 1) * group; ++h)
                for (int begin = 0; begin < s.length; begin += QUERIES) {
                    const int rows = std::min(QUERIES, s.length - begin), limit = s.prefix_length + begin + rows;
                    const float *queries[QUERIES], *douts[QUERIES];
                    for (int r = 0; r < QUERIES; ++r) {
                        const int64_t token = s.start + begin + std::min(r, rows - 1);
                        queries[r] = heads + token * width + h * D;
                        douts[r] = dout + (token * H + h) * D;
                    }
                    scores_of(queries, turned_keys.data(), D, T, limit, scores.data());
                    scores_of(douts, turned_values.data(), D, T, limit, dscores.data());
                    for (int r = 0; r < QUERIES; ++r) {
                        float *p = scores.data() + r * T, *dp = dscores.data() + r * T;
                        const int seen = r < rows ? s.prefix_length + begin + r + 1 : 0;
                        if (seen) {
                            const int64_t at = int64_t(s.start + begin + r) * H + h;
                            float dot = 0.0f;
                            for (int d = 0; d < D; ++d) dot += douts[r][d] * out[at * D + d];
                            const float lse = logsumexps[at];
                            for (int l = 0; l < seen; ++l) {
                                p[l] = exp_f32(p[l] * scale - lse);
                                dp[l] = p[l] * (dp[l] - dot) * scale;
                            }
                        }
                        for (int l = seen; l < limit; ++l) p[l] = dp[l] = 0.0f;
                    }
                    mix(dscores.data(), keys.data(), D, T, limit, dquery.data());
                    for (int r = 0; r < rows; ++r)
                        std::memcpy(dheads + int64_t(s.start + begin + r) * width + h * D, dquery.data() + r * D,
                                    sizeof(float) * D);
                    spread(dscores.data(), queries, D, T, limit, dkeys.data());
                    spread(scores.data(), douts, D, T, limit, dvalues.data());
                }
            for (int l = 0; l < total; ++l) {
                const int64_t token = l < s.prefix_length ? s.prefix + l : s.start + l - s.prefix_length;
                float *dkey = dheads + token * width + (H + k) * D, *dvalue = dkey + K * D;
                for (int d = 0; d < D; ++d) dkey[d] += dkeys[int64_t(l) * D + d];
                for (int d = 0; d < D; ++d) dvalue[d] += dvalues[int64_t(l) * D + d];
            }
        }
    }
}

// act (n, I) = silu(gate) * up of gate_up (n, 2 I).
void gated_forward(const float* gate_up, float* act, int32_t n, int32_t size) {
    for (int64_t i = 0; i < n; ++i) {
        const float *gate = gate_up + 2 * i * size, *up = gate + size;
        for (int j = 0; j < size; ++j) act[i * size + j] = gate[j] / (1.0f + exp_f32(-gate[j])) * up[j];
    }
}

void gated_backward(const float* dact, const float* gate_up, float* dgate_up, int32_t n, int32_t size) {
    for (int64_t i = 0; i < n; ++i) {
        const float *gate = gate_up + 2 * i * size, *up = gate + size, *d = dact + i * size;
        float *dgate = dgate_up + 2 * i * size, *dup = dgate + size;
        for (int j = 0; j < size; ++j) {
            const float sigmoid = 1.0f / (1.0f + exp_f32(-gate[j])), silu = gate[j] * sigmoid;
            dup[j] = d[j] * silu;
            dgate[j] = d[j] * up[j] * (sigmoid + silu * (1.0f - sigmoid));
        }
    }
}

// Of logits (n, V) times `scale`: log softmax at the targets, the softmax's log denominator, and (if asked) the entropy.
// A target outside of them is in another tile of the vocabulary, and its entry is left alone.
void logps_forward(float* logits, const int64_t* targets, float scale, float* logps, float* logsumexps, float* entropy,
                   int32_t n, int32_t vocab, int32_t num_threads) {
    (void)num_threads;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
    for (int64_t i = 0; i < n; ++i) {
        float* row = logits + i * vocab;
        float top = row[0];
        for (int v = 1; v < vocab; ++v) top = row[v] > top ? row[v] : top;
        double total = 0.0, weighted = 0.0;
        for (int start = 0; start < vocab; start += 1024) {
            const int end = std::min(start + 1024, vocab);
            float sum = 0.0f, moment = 0.0f;
            for (int v = start; v < end; ++v) {
                const float z = (row[v] - top) * scale, e = exp_f32(z);
                sum += e;
                moment += z > -80.0f ? e * z : 0.0f;
            }
            total += sum;
            weighted += moment;
        }
        const float log_total = float(std::log(total));
        logsumexps[i] = top * scale + log_total;
        if (targets[i] >= 0 && targets[i] < vocab) logps[i] = (row[targets[i]] - top) * scale - log_total;
        if (entropy) entropy[i] = float(std::log(total) - weighted / total);
    }
}

// Overwrite logits (n, V) with d(sum of weights * logps) / d(logits).
void logps_backward(float* logits, const int64_t* targets, float scale, const float* logsumexps, const float* weights,
                    int32_t n, int32_t vocab, int32_t num_threads) {
    (void)num_threads;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
    for (int64_t i = 0; i < n; ++i) {
        float* row = logits + i * vocab;
        const float weight = weights[i] * scale, lse = logsumexps[i];
        for (int v = 0; v < vocab; ++v) row[v] = -weight * exp_f32(row[v] * scale - lse);
        if (targets[i] >= 0 && targets[i] < vocab) row[targets[i]] += weight;
    }
}
}
