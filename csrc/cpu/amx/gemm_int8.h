// Products of integer planes of x with codes. What tiles sum up over a segment is scaled and added in float32 while the
// next segments are multiplied: neither waits for the other.
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

constexpr int kTogether = 2;  // segments whose sums are added at once

// Scales of a panel in a segment, and what is left of its zero points.
struct PanelGrid {
    alignas(64) float scale[kPanelRows];
    alignas(64) int32_t zero[kPanelRows];
};

// What tiles sum up over a segment, of up to two planes of x.
struct Sums {
    alignas(64) int32_t at[2][kPair][kPanelTiles][kMaxBatchRows][kTileRows];
};

// Sums of some batches with some segments of a panel, one after the other in memory, and where their values go.
struct Pending {
    int batches = 0, planes = 0, segments = 0;
    const Sums* sums = nullptr;
    const PanelGrid* grid = nullptr;
    const float* x_scale = nullptr;
    const int32_t* x_sum = nullptr;
    float* out = nullptr;  // [2 tiles][R][16]
    int64_t to_next = 0;
};

template <bool HasZero>
class Int8Kernel {
public:
    using Form = Bytes;

    Int8Kernel(const Linear&, const Activations& a, const std::vector<Steps>& steps, int64_t panels, int64_t segments)
        : a_(a), R_(a.batch_rows), steps_(steps), segments_(segments), grids_(panels * segments), sums_(2 * kTogether) {
        std::fill_n(grids_.data(), panels * segments, PanelGrid{});
        for (const Steps& each : steps) {
            are_equal_ &= each.count == steps[0].count;
        }
    }

    void put_grid(int64_t panel, int c, int64_t segment, const Bytes& form, Floats scale) {
        PanelGrid& grid = grids_[panel * segments_ + segment];
        write(grid.scale + c * kTileRows, scale);
        write(grid.zero + c * kTileRows, form.left);
    }

    void multiply(int64_t b, int batches, int64_t panel, int64_t first, int64_t last, const char* weights, float* out,
                  int64_t to_next) {
        for (int64_t i = first; i < last; i += kTogether) {
            const Part part{i, std::min(i + kTogether, last), &grids_[panel * segments_ + i - first],
                            weights + (steps_[i].before - steps_[first].before) * kPanelTiles * kTileBytes, to_next};
            if (batches == 2 && a_.planes[b] == a_.planes[b + 1]) {
                multiply<2>(b, part, out);
                continue;
            }
            for (int k = 0; k < batches; k++) {
                multiply<1>(b + k, part, out + k * to_next);
            }
        }
    }

    void finish() {
        const Pending& pending = pending_[now_];
        for (int k = 0; k < pending.batches; k++) {
            for (int c = 0; c < kPanelTiles; c++) {
                if (pending.planes == 1) {
                    finish<1>(k, c);
                } else {
                    finish<2>(k, c);
                }
            }
        }
        pending_[now_].batches = 0;
    }

private:
    // Up to kTogether segments [i, end) of a panel.
    struct Part {
        int64_t i, end;
        const PanelGrid* grid;
        const char* weights;
        int64_t to_next;  // batch of `out`
    };

    template <int Batches>
    void multiply(int64_t b, const Part& part, float* out) {
        const int planes = a_.planes[b];
        if (planes == 1) {
            return multiply<Batches, 1>(b, part, planes, out);
        }
        if (planes == 2) {
            return multiply<Batches, 2>(b, part, planes, out);
        }
        for_each_segment(part, [&](const Part& one) {  // both parts of x, as every instruction set adds them
            multiply<Batches, 2, 1, 0>(b, one, planes, 0, out);
            multiply<Batches, 1, 1, 0>(b, one, planes, 1, out);
        });
    }

    template <int Batches, int Planes>
    void multiply(int64_t b, const Part& part, int planes, float* out) {
        constexpr int kMost = kSegmentUnits / Bytes::kStepUnits;
        if (part.end - part.i < kTogether || !are_equal_) {
            for_each_segment(part, [&](const Part& one) { multiply<Batches, Planes, 1, 0>(b, one, planes, 0, out); });
        } else if (steps_[0].count == kMost) {
            multiply<Batches, Planes, kTogether, kMost>(b, part, planes, 0, out);
        } else {
            multiply<Batches, Planes, kTogether, 1>(b, part, planes, 0, out);
        }
    }

    template <class Multiply>
    void for_each_segment(Part part, Multiply multiply) const {
        for (; part.i < part.end; part.i++, part.grid++) {
            multiply(part);
            part.weights += steps_[part.i].count * kPanelTiles * kTileBytes;
        }
    }

    // Multiplies a part of x with `Segments` segments of `NumSteps` steps (0: of any number), and adds what is pending.
    template <int Batches, int Planes, int Segments, int NumSteps>
    __attribute__((noinline)) void multiply(int64_t b, const Part& part, int planes, int x_part, float* out) {
        constexpr int kParts = Batches * kPanelTiles, kPasses = Segments * Planes;
        const Pending& pending = pending_[now_];
        if (pending.batches != Batches || pending.planes != Planes || pending.segments != Segments) {
            finish();
        }
        const bool is_pending = pending.batches != 0;
        Sums* const sums = sums_.data() + (1 - now_) * kTogether;
        int added = 0;  // parts of what is pending: batches by tiles of the weight
        const auto add_up_to = [&](int end) QAIG_LAMBDA_INLINE {
            for (; is_pending && added < end; added++) {
                add<Planes, Segments>(pending, added / kPanelTiles, added % kPanelTiles);
            }
        };
        const char* weights = part.weights;
        unroll<Segments>([&](auto s) QAIG_LAMBDA_INLINE {
            const Steps& steps = steps_[part.i + s];
            const int64_t count = NumSteps ? NumSteps : steps.count, plane_bytes = steps.segment.units * kUnitQuads * 4;
            const char* x = reinterpret_cast<const char*>(a_.words.data() + b * a_.batch_words) +
                            steps.segment.unit * kUnitQuads * 4 * planes * R_ + x_part * 2 * plane_bytes;
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
                        add_up_to((pass * NumSteps + t + 1) * kParts / (kPasses * NumSteps));
                    });
                } else {
                    for (int64_t t = 0; t < count; t++) {
                        step(t);
                    }
                    add_up_to((pass + 1) * kParts / kPasses);
                }
                store_sums<Batches>(sums[s].at[plane]);
            });
            weights += count * kPanelTiles * kTileBytes;
        });
        // Written where it stays: a wide read of what was just written would wait for all that was stored before.
        Pending& next = pending_[1 - now_];
        const int64_t of_part = b * a_.batch_sums + (part.i * kMaxParts + x_part) * R_;
        next.batches = Batches;
        next.planes = Planes;
        next.segments = Segments;
        next.sums = sums;
        next.grid = part.grid;
        next.x_scale = a_.scales.data() + of_part;
        next.x_sum = a_.sums.data() + of_part;
        next.out = out;
        next.to_next = part.to_next;
        now_ = 1 - now_;
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
    static QAIG_INLINE void store_sums(int32_t (&sums)[kPair][kPanelTiles][kMaxBatchRows][kTileRows]) {
        store<0>(sums[0][0], kRowBytes);
        store<1>(sums[0][1], kRowBytes);
        if constexpr (Batches == 2) {
            store<2>(sums[1][0], kRowBytes);
            store<3>(sums[1][1], kRowBytes);
        }
    }

    // Adds the values of batch `k` and tile `c` of the weight.
    template <int Planes, int Segments>
    QAIG_INLINE void add(const Pending& pending, int k, int c) const {
        constexpr int64_t kPlane = sizeof(Sums::at[0]) / sizeof(int32_t), kSums = sizeof(Sums) / sizeof(int32_t);
        const int64_t rows = R_, to_segment = kMaxParts * rows;
        const int32_t* sums = pending.sums->at[0][k][c][0];
        const float* x_scale = pending.x_scale + k * a_.batch_sums;
        const int32_t* x_sum = pending.x_sum + k * a_.batch_sums;
        float* out = pending.out + k * pending.to_next + c * rows * kTileRows;
        Floats scale[Segments];
        Ints zero[Segments];
        unroll<Segments>([&](auto s) QAIG_LAMBDA_INLINE {
            scale[s] = read(pending.grid[s].scale + c * kTileRows);
            zero[s] = read(pending.grid[s].zero + c * kTileRows);
        });
#pragma GCC unroll 4
        for (int64_t m = 0; m < rows; m++) {
            Floats value = read(out + m * kTileRows);
            unroll<Segments>([&](auto s) QAIG_LAMBDA_INLINE {
                const int32_t* at = sums + s * kSums + m * kTileRows;
                Ints sum = Planes == 2 ? joined(read(at), read(at + kPlane)) : read(at);
                if constexpr (HasZero) {
                    sum = minus(sum, times(zero[s], all(x_sum[s * to_segment + m])));
                }
                value = fused(times(scale[s], all(x_scale[s * to_segment + m])), floats(sum), value);
            });
            write(out + m * kTileRows, value);
        }
    }

    template <int Planes>
    void finish(int k, int c) const {
        if (pending_[now_].segments == 1) {
            return add<Planes, 1>(pending_[now_], k, c);
        }
        add<Planes, kTogether>(pending_[now_], k, c);
    }

    const Activations& a_;
    const int64_t R_;
    const std::vector<Steps>& steps_;
    bool are_equal_ = true;  // the numbers of steps
    const int64_t segments_;
    const Buffer<PanelGrid> grids_;  // [panels][segments]
    const Buffer<Sums> sums_;        // written and pending
    Pending pending_[2];
    int now_ = 0;  // which of them is pending
};

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
