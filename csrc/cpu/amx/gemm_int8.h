// The kernel of a gemm with AMX in integers: byte planes of x times codes. Sums of a segment are scaled and added in
// float32 while tiles multiply the next segments, so that both units of the processor are busy.
#pragma once

#include "cpu/amx/block.h"

#if defined(__x86_64__)

QAIG_AMX_BEGIN

namespace qaig::amx {

struct MultiplyInt8 {
    template <int Sums, int X, int Weights>
    static QAIG_INLINE void into() {
        multiply_int8<Sums, X, Weights>();
    }
};

constexpr int kPendingSegments = 2;  // segments whose sums are scaled and added at once

// Scales of a panel in a segment, and the part of its zero points that sums lack.
struct PanelQParams {
    alignas(64) float scale[kPanelRows];
    alignas(64) int32_t zero[kPanelRows];
};

// Sums of tiles over a segment, of up to two planes of x.
struct TileSums {
    alignas(64) int32_t at[2][kBatchPair][kPanelTiles][kMaxBatchRows][kTileRows];
};

// Sums that are not added yet: batches by consecutive segments of a panel, their scales, and where they go.
struct Pending {
    int batches = 0, planes = 0, segments = 0;
    const TileSums* sums = nullptr;
    const PanelQParams* qparams = nullptr;
    const float* x_scale = nullptr;
    const int32_t* x_sum = nullptr;
    float* out = nullptr;  // [2 tiles][R][16]
    int64_t batch_stride = 0;
};

template <bool HasZero>
class Int8Kernel {
public:
    using Weights = Int8Weights;

    Int8Kernel(const Linear&, const Activations& a, const std::vector<Steps>& steps, int64_t panels, int64_t segments)
        : a_(a),
          R_(a.batch_rows),
          steps_(steps),
          segments_(segments),
          qparams_(panels * segments),
          sums_(2 * kPendingSegments) {
        std::fill_n(qparams_.data(), panels * segments, PanelQParams{});
        for (const Steps& each : steps) {
            equal_steps_ &= each.count == steps[0].count;
        }
    }

    void set_qparams(int64_t panel, int c, int64_t segment, const Int8Weights& format, Floats scale) {
        PanelQParams& qparams = qparams_[panel * segments_ + segment];
        write(qparams.scale + c * kTileRows, scale);
        write(qparams.zero + c * kTileRows, format.sum_zero);
    }

    void multiply(int64_t b, int batches, int64_t panel, int64_t first, int64_t last, const char* weights, float* out,
                  int64_t batch_stride) {
        for (int64_t i = first; i < last; i += kPendingSegments) {
            const SegmentRange range{i, std::min(i + kPendingSegments, last), &qparams_[panel * segments_ + i - first],
                                     weights + (steps_[i].before - steps_[first].before) * kPanelTiles * kTileBytes,
                                     batch_stride};
            if (batches == 2 && a_.planes[b] == a_.planes[b + 1]) {
                multiply<2>(b, range, out);
                continue;
            }
            for (int k = 0; k < batches; k++) {
                multiply<1>(b + k, range, out + k * batch_stride);
            }
        }
    }

    void finish() {
        const Pending& pending = pending_[current_];
        for (int k = 0; k < pending.batches; k++) {
            for (int c = 0; c < kPanelTiles; c++) {
                if (pending.planes == 1) {
                    finish<1>(k, c);
                } else {
                    finish<2>(k, c);
                }
            }
        }
        pending_[current_].batches = 0;
    }

private:
    // Up to kPendingSegments segments [i, end) of a panel.
    struct SegmentRange {
        int64_t i, end;
        const PanelQParams* qparams;
        const char* weights;
        int64_t batch_stride;  // of `out`
    };

    template <int Batches>
    void multiply(int64_t b, const SegmentRange& range, float* out) {
        const int planes = a_.planes[b];
        if (planes == 1) {
            return multiply<Batches, 1>(b, range, planes, out);
        }
        if (planes == 2) {
            return multiply<Batches, 2>(b, range, planes, out);
        }
        for_each_segment(range, [&](const SegmentRange& one) {  // both terms, in the order of every instruction set
            multiply<Batches, 2, 1, 0>(b, one, planes, 0, out);
            multiply<Batches, 1, 1, 0>(b, one, planes, 1, out);
        });
    }

    template <int Batches, int Planes>
    void multiply(int64_t b, const SegmentRange& range, int planes, float* out) {
        constexpr int kMost = kSegmentUnits / Int8Weights::kStepUnits;
        if (range.end - range.i < kPendingSegments || !equal_steps_) {
            for_each_segment(range,
                             [&](const SegmentRange& one) { multiply<Batches, Planes, 1, 0>(b, one, planes, 0, out); });
        } else if (steps_[0].count == kMost) {
            multiply<Batches, Planes, kPendingSegments, kMost>(b, range, planes, 0, out);
        } else {
            multiply<Batches, Planes, kPendingSegments, 1>(b, range, planes, 0, out);
        }
    }

    template <class Multiply>
    void for_each_segment(SegmentRange range, Multiply multiply) const {
        for (; range.i < range.end; range.i++, range.qparams++) {
            multiply(range);
            range.weights += steps_[range.i].count * kPanelTiles * kTileBytes;
        }
    }

    // Multiplies a term of x with `Segments` segments of `NumSteps` steps (0: any number), and adds the pending sums.
    template <int Batches, int Planes, int Segments, int NumSteps>
    __attribute__((noinline)) void multiply(int64_t b, const SegmentRange& range, int planes, int term, float* out) {
        constexpr int kSumTiles = Batches * kPanelTiles, kPasses = Segments * Planes;
        const Pending& pending = pending_[current_];
        if (pending.batches != Batches || pending.planes != Planes || pending.segments != Segments) {
            finish();
        }
        const bool is_pending = pending.batches != 0;
        TileSums* const sums = sums_.data() + (1 - current_) * kPendingSegments;
        int added = 0;  // pending tiles of sums that were added: batches by tiles of the weight
        const auto add_up_to = [&](int end) QAIG_LAMBDA_INLINE {
            for (; is_pending && added < end; added++) {
                add<Planes, Segments>(pending, added / kPanelTiles, added % kPanelTiles);
            }
        };
        const char* weights = range.weights;
        unroll<Segments>([&](auto s) QAIG_LAMBDA_INLINE {
            const Steps& steps = steps_[range.i + s];
            const int64_t count = NumSteps ? NumSteps : steps.count, plane_bytes = steps.segment.units * kUnitQuads * 4;
            const char* x = reinterpret_cast<const char*>(a_.words.data() + b * a_.batch_words) +
                            steps.segment.unit * kUnitQuads * 4 * planes * R_ + term * 2 * plane_bytes;
            unroll<Planes>([&](auto plane) QAIG_LAMBDA_INLINE {
                constexpr int pass = s * Planes + plane;
                clear_sums<Batches>();
                const auto step = [&](int64_t t) QAIG_LAMBDA_INLINE {
                    multiply_step<MultiplyInt8, Batches>(x + plane * plane_bytes + t * kRowBytes, planes * plane_bytes,
                                                         a_.batch_words * 4, weights + t * kPanelTiles * kTileBytes);
                };
                if constexpr (NumSteps != 0) {
                    unroll<NumSteps>([&](auto t) QAIG_LAMBDA_INLINE {
                        step(t);
                        add_up_to((pass * NumSteps + t + 1) * kSumTiles / (kPasses * NumSteps));
                    });
                } else {
                    for (int64_t t = 0; t < count; t++) {
                        step(t);
                    }
                    add_up_to((pass + 1) * kSumTiles / kPasses);
                }
                store_sums<Batches>(sums[s].at[plane]);
            });
            weights += count * kPanelTiles * kTileBytes;
        });
        // Fields are written one by one: copying a struct that was just written would wait for all earlier stores.
        Pending& next = pending_[1 - current_];
        const int64_t offset = b * a_.batch_sums + (range.i * kMaxTerms + term) * R_;
        next.batches = Batches;
        next.planes = Planes;
        next.segments = Segments;
        next.sums = sums;
        next.qparams = range.qparams;
        next.x_scale = a_.scales.data() + offset;
        next.x_sum = a_.sums.data() + offset;
        next.out = out;
        next.batch_stride = range.batch_stride;
        current_ = 1 - current_;
    }

    template <int Batches>
    static QAIG_INLINE void clear_sums() {
        clear<0>();
        clear<1>();
        if constexpr (Batches == 2) {
            clear<2>();
            clear<3>();
        }
    }

    template <int Batches>
    static QAIG_INLINE void store_sums(int32_t (&sums)[kBatchPair][kPanelTiles][kMaxBatchRows][kTileRows]) {
        store<0>(sums[0][0], kRowBytes);
        store<1>(sums[0][1], kRowBytes);
        if constexpr (Batches == 2) {
            store<2>(sums[1][0], kRowBytes);
            store<3>(sums[1][1], kRowBytes);
        }
    }

    // Scales and adds the sums of batch `k` and tile `c` of the weight.
    template <int Planes, int Segments>
    QAIG_INLINE void add(const Pending& pending, int k, int c) const {
        constexpr int64_t kPlane = sizeof(TileSums::at[0]) / sizeof(int32_t),
                          kSums = sizeof(TileSums) / sizeof(int32_t);
        const int64_t rows = R_, segment_stride = kMaxTerms * rows;
        const int32_t* sums = pending.sums->at[0][k][c][0];
        const float* x_scale = pending.x_scale + k * a_.batch_sums;
        const int32_t* x_sum = pending.x_sum + k * a_.batch_sums;
        float* out = pending.out + k * pending.batch_stride + c * rows * kTileRows;
        Floats scale[Segments];
        Ints zero[Segments];
        unroll<Segments>([&](auto s) QAIG_LAMBDA_INLINE {
            scale[s] = read(pending.qparams[s].scale + c * kTileRows);
            zero[s] = read(pending.qparams[s].zero + c * kTileRows);
        });
#pragma GCC unroll 4
        for (int64_t m = 0; m < rows; m++) {
            Floats value = read(out + m * kTileRows);
            unroll<Segments>([&](auto s) QAIG_LAMBDA_INLINE {
                const int32_t* at = sums + s * kSums + m * kTileRows;
                Ints sum = Planes == 2 ? combine_planes(read(at), read(at + kPlane)) : read(at);
                if constexpr (HasZero) {
                    sum = minus(sum, times(zero[s], broadcast(x_sum[s * segment_stride + m])));
                }
                value =
                    multiply_add(times(scale[s], broadcast(x_scale[s * segment_stride + m])), to_floats(sum), value);
            });
            write(out + m * kTileRows, value);
        }
    }

    template <int Planes>
    void finish(int k, int c) const {
        if (pending_[current_].segments == 1) {
            return add<Planes, 1>(pending_[current_], k, c);
        }
        add<Planes, kPendingSegments>(pending_[current_], k, c);
    }

    const Activations& a_;
    const int64_t R_;
    const std::vector<Steps>& steps_;
    bool equal_steps_ = true;  // all segments have the same number of steps
    const int64_t segments_;
    const Buffer<PanelQParams> qparams_;  // [panels][segments]
    const Buffer<TileSums> sums_;         // written and pending
    Pending pending_[2];
    int current_ = 0;  // index of the pending one
};

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
