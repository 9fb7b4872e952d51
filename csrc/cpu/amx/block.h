// The loops of a gemm with AMX over batches, panels and segments, for integers and for bfloat16.
//
// A block of weights, some panels of 32 output channels by some segments, is unpacked into the L2 cache. Each pair of
// batches of x is multiplied with the whole block, and stays in the L1 cache meanwhile.
//
//   tiles 0 - 3  sums [rows of x][16 channels]: of two batches of x, times two tiles of the weight
//   tiles 4, 5   x [rows][64 bytes], of two batches
//   tiles 6, 7   weights [64 bytes][16 channels], of two tiles of the weight
#pragma once

#include <vector>

#include "cpu/amx/codes.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)

QAIG_AMX_BEGIN

namespace qaig::amx {

constexpr int kBatchPair = 2;  // batches of x that are multiplied at once
constexpr int64_t kBlockRows = 512, kBlockPanels = 16, kBlockSegments = 2;
// A weight in checkpoint layout is repacked tile by tile, so blocks have all of its segments, and fewer panels.
constexpr int64_t kRepackedPanels = 2;

inline TileConfig tile_config(int64_t rows) {
    TileConfig config;
    for (int tile = 0; tile < kTiles; tile++) {
        config.set(tile, tile < 6 ? rows : kMaxTileRows, kRowBytes);
    }
    return config;
}

// One step: multiplies tiles of x, of `Batches` batches that are `batch_stride` bytes apart, with two tiles of the
// weight.
template <class Multiply, int Batches>
QAIG_INLINE void multiply_step(const char* x, int64_t stride, int64_t batch_stride, const char* weights) {
    load<4>(x, stride);
    load<6>(weights, kRowBytes);
    Multiply::template into<0, 4, 6>();
    load<7>(weights + kTileBytes, kRowBytes);
    Multiply::template into<1, 4, 7>();
    if constexpr (Batches == 2) {
        load<5>(x + batch_stride, stride);
        Multiply::template into<2, 5, 6>();
        Multiply::template into<3, 5, 7>();
    }
}

// A segment: its group, its number of steps, and the number of steps before it.
struct Steps {
    Segment segment;
    int64_t group, count, before;
};

template <class Weights>
std::vector<Steps> steps_of(const Shape& s) {
    std::vector<Steps> steps;
    int64_t before = 0;
    for (int64_t i = 0; i < s.segments(); i++) {
        const Segment segment = segment_at(s, i);
        steps.push_back({segment, i / s.segments_per_group(),
                         (segment.units + Weights::kStepUnits - 1) / Weights::kStepUnits, before});
        before += steps[i].count;
    }
    return steps;
}

// What `Kernel` provides:
//
//   Kernel::Weights                                  Int8Weights or Bf16Weights
//   Kernel(const Linear&, const Activations&, const std::vector<Steps>&, int64_t panels, int64_t segments)
//   void set_qparams(int64_t panel, int c, int64_t segment, const Weights&, Floats scale)
//                                                    keeps the qparams of tile c; `segment` counts in the block
//   void multiply(int64_t b, int batches, int64_t panel, int64_t first, int64_t last, const char* weights, float* out,
//                 int64_t batch_stride)              adds products of segments [first, last) to out, [2 tiles][R][16];
//                                                    the next batch's out is `batch_stride` further
//   void finish()                                    adds sums that are still pending
template <class Kernel>
class Block {
public:
    Block(const Linear& l, const Activations& a)
        : l_(l),
          a_(a),
          R_(a.batch_rows),
          steps_(steps_of<Weights>(l.weight.shape)),
          batches_(std::min(a.batches, std::max<int64_t>(1, kBlockRows / (kBatchPair * R_)) * kBatchPair)),
          panels_(a.batches <= kBatchPair         ? 1
                  : l.weight.in_checkpoint_layout ? kRepackedPanels
                                                  : kBlockPanels),
          segments_(l.weight.in_checkpoint_layout
                        ? l.weight.shape.segments()
                        : std::max<int64_t>(1, kBlockSegments * kSegmentUnits / steps_[0].segment.units)),
          panel_bytes_(segments_ * steps_[0].count * kPanelTiles * kTileBytes),
          readers_{TileReader(l.weight), TileReader(l.weight)},
          weights_(panels_ * panel_bytes_),
          out_(batches_ * R_ * panels_ * kPanelRows),
          kernel_(l, a, steps_, panels_, segments_) {
        // A panel's second tile may lie beyond the weight.
        std::fill_n(weights_.data(), panels_ * panel_bytes_, char{0});
    }

    // Computes the output channels of the tiles [begin, end).
    void compute(int64_t begin, int64_t end) {
        const Configured configured(tile_config(R_));
        for (int64_t b = 0; b < a_.batches; b += batches_) {
            for (int64_t t = begin; t < end; t += panels_ * kPanelTiles) {
                multiply(b, std::min(b + batches_, a_.batches), t, std::min(t + panels_ * kPanelTiles, end));
            }
        }
    }

private:
    using Weights = typename Kernel::Weights;

    void multiply(int64_t b0, int64_t b1, int64_t begin, int64_t end) {
        const int64_t panels = (end - begin + kPanelTiles - 1) / kPanelTiles, segments = l_.weight.shape.segments();
        const int64_t of_panel = R_ * kPanelRows, of_batch = panels * of_panel;
        std::fill_n(out_.data(), (b1 - b0) * of_batch, 0.f);
        for (int64_t first = 0; first < segments; first += segments_) {
            const int64_t last = std::min(first + segments_, segments);
            for (int64_t t = begin; t < end; t++) {
                unpack_tile(t, (t - begin) / kPanelTiles, static_cast<int>((t - begin) % kPanelTiles), first, last);
            }
            for (int64_t b = b0; b < b1; b += kBatchPair) {
                const int batches = static_cast<int>(std::min<int64_t>(kBatchPair, b1 - b));
                for (int64_t p = 0; p < panels; p++) {
                    kernel_.multiply(b, batches, p, first, last, weights_.data() + p * panel_bytes_,
                                     out_.data() + (b - b0) * of_batch + p * of_panel, of_batch);
                }
            }
            kernel_.finish();
        }
        store_rows(b0, b1, begin, end, panels);
    }

    void unpack_tile(int64_t t, int64_t panel, int c, int64_t first, int64_t last) {
        const int bits = l_.weight.shape.bits;
        const Tile tile = readers_[c](t);
        char* weights = weights_.data() + panel * panel_bytes_ + c * kTileBytes;
        for (int64_t i = first; i < last; i++) {
            const auto& [segment, group, count, before] = steps_[i];
            const Ints zero = tile.zero ? read_bytes(tile.zero + group * kTileRows) : broadcast(1 << (bits - 1));
            const Floats scale = read(tile.scale, l_.weight.scale_type, group * kTileRows);
            const Weights format(zero, scale, bits);
            kernel_.set_qparams(panel, c, i - first, format, scale);
            unpack(bits, tile.words + segment.unit * kernel_bits(bits) * kTileRows, segment.units, format,
                   weights + (before - steps_[first].before) * kPanelTiles * kTileBytes);
        }
    }

    void store_rows(int64_t b0, int64_t b1, int64_t begin, int64_t end, int64_t panels) {
        const int64_t N = l_.weight.shape.out_features;
        for (int64_t m = b0 * R_; m < std::min(b1 * R_, l_.rows); m++) {
            const float* row = out_.data() + (m / R_ - b0) * panels * R_ * kPanelRows + m % R_ * kTileRows;
            for (int64_t t = begin; t < end; t++, row += R_ * kTileRows) {
                const int64_t n = t * kTileRows;
                Floats y = read(row);
                if (l_.bias) {
                    y = plus(y, read_first(l_.bias + n, N - n));
                }
                write(l_.y, l_.type, m * N + n, y, N - n);
            }
        }
    }

    const Linear& l_;
    const Activations& a_;
    const int64_t R_;
    const std::vector<Steps> steps_;  // one for each segment
    const int64_t batches_, panels_, segments_, panel_bytes_;
    const TileReader readers_[kPanelTiles];
    const Buffer<char> weights_;  // [panels][steps of the segments][2 tiles][16 rows][64 bytes]
    const Buffer<float> out_;     // [batches][panels][2 tiles][R][16]
    Kernel kernel_;
};

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
