// Finds the expert and the rows of x that a block multiplies, from the experts' offsets.
#pragma once

#include "cuda/device/intrinsics.cuh"
#include "cuda/geometry.h"

namespace qaig {
namespace cuda {

// The column tiles of all experts of one width, in order. A column tile is up to `columns` rows of x of one expert.
// Every warp finds a tile by itself: its lanes have 32 experts at a time, and compute prefix sums of their tiles and
// widths.
template <int bits, int columns>
struct ExpertRows {
    // One expert for each lane of a warp. `tiles_end` and `widths_end` are prefix sums, this lane included.
    struct Lanes {
        int row, rows, width;
        unsigned tiles, tiles_end, widths_end;
    };

    const QaigExperts& d;
    int window = 0;                                // first of the 32 experts that were loaded last
    unsigned tiles_before = 0, widths_before = 0;  // of the experts before the window

    // The column tile that was found.
    int expert = 0, first = 0, count = 0;
    unsigned widths = 0;  // sum of the bits of the experts before

    QAIG_MEMBER explicit ExpertRows(const QaigExperts& d) : d(d) {}

    QAIG_MEMBER int offset(int e) const {
        const int at = static_cast<int>(load_global(reinterpret_cast<const unsigned*>(d.offsets) + e));
        return at < 0 ? 0 : at < d.rows ? at : d.rows;
    }

    // Sum over this lane and those before it.
    QAIG_MEMBER static unsigned inclusive_prefix_sum(unsigned value, int lane) {
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const unsigned before = shuffle(value, lane < distance ? lane : lane - distance);
            value += lane < distance ? 0 : before;
        }
        return value;
    }

    // Loads the window again for each tile: the products need the registers.
    QAIG_MEMBER Lanes load() const {
        const int lane = static_cast<int>(threadIdx.x) % 32, e = window + lane;
        Lanes l = {};
        if (e < d.experts) {
            l.row = offset(e);
            const int end = offset(e + 1);
            l.rows = end > l.row ? end - l.row : 0;
            l.width = d.bits[e];
        }
        l.tiles = l.width == bits ? static_cast<unsigned>((l.rows + columns - 1) / columns) : 0;
        l.tiles_end = inclusive_prefix_sum(l.tiles, lane);
        l.widths_end = inclusive_prefix_sum(static_cast<unsigned>(l.width), lane);
        return l;
    }

    // Finds tile `wanted`, which must not be before the last one found. Returns false if there are fewer tiles.
    QAIG_MEMBER bool find(unsigned wanted) {
        Lanes lanes = load();
        for (;;) {
            const unsigned here = shuffle(lanes.tiles_end, 31);
            if (wanted < tiles_before + here) {
                break;
            }
            if (window + 32 >= d.experts) {
                return false;
            }
            window += 32;
            tiles_before += here;
            widths_before += shuffle(lanes.widths_end, 31);
            lanes = load();
        }
        const unsigned place = wanted - tiles_before;
        unsigned owner = lanes.tiles_end <= place ? 1 : 0;  // number of lanes whose tiles come before
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            owner += shuffle_xor(owner, mask);
        }
        const int from = static_cast<int>(owner);
        const int skipped = static_cast<int>(place - shuffle(lanes.tiles_end - lanes.tiles, from)) * columns;
        const int rest = static_cast<int>(shuffle(static_cast<unsigned>(lanes.rows), from)) - skipped;
        expert = window + from;
        first = static_cast<int>(shuffle(static_cast<unsigned>(lanes.row), from)) + skipped;
        count = rest < columns ? rest : columns;
        widths = widths_before + shuffle(lanes.widths_end - static_cast<unsigned>(lanes.width), from);
        return true;
    }

    // The column tile as a layer of its own.
    QAIG_MEMBER QaigLayer layer() const {
        const Shape s = {d.out_features, d.in_features, d.group_size, bits};
        const long long values = static_cast<long long>(expert) * s.row_blocks() * s.groups() * kBlockRows;
        const long long item_bytes = 512;  // of each bit
        QaigLayer l = {};
        l.words = static_cast<const char*>(d.words) + widths * s.work_items() * item_bytes;
        l.scale = static_cast<const unsigned short*>(d.scale) + values;
        l.zero = d.zero ? d.zero + values : nullptr;
        l.x = static_cast<const unsigned short*>(d.x) + first * d.x_stride;
        l.token_scale = d.token_scale ? d.token_scale + first : nullptr;
        l.y = static_cast<unsigned short*>(d.y) + static_cast<long long>(first) * d.out_features;
        l.x_stride = d.x_stride;
        l.x_slots = d.x_slots;
        l.out_features = d.out_features;
        l.in_features = d.in_features;
        l.group_size = d.group_size;
        l.bits = bits;
        l.scale_type = d.scale_type;
        return l;
    }

    // Stores zeros to the rows of no expert.
    QAIG_MEMBER void clear_unrouted_rows() const {
        const long long routed = offset(d.experts), size = (d.rows - routed) * d.out_features;
        const long long blocks = static_cast<long long>(gridDim.x) * gridDim.y;
        const long long block = static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x;
        auto* y = static_cast<unsigned short*>(d.y) + routed * d.out_features;
        for (long long i = block * kGemvThreads + threadIdx.x; i < size; i += blocks * kGemvThreads) {
            store_global(y + i, static_cast<unsigned short>(0));
        }
    }
};

}  // namespace cuda
}  // namespace qaig
