// Which thread computes which tile of the upper triangle, and where its half of E is kept.
//
// The rows are cut into two groups per rank. A round-robin tournament lets every pair of groups
// meet once, in rounds in which no two ranks touch the same group: sums and gradients of a group
// are written by one rank at a time, in an order that depends on the number of ranks alone. So
// nothing is private to a thread, nothing is merged, and the result is deterministic.
#pragma once
#include <cstdint>

namespace {

constexpr int kMaxRanks = 128;
constexpr int64_t kTile = 192;  // rows and columns of a tile: three operands of it fill the L2 cache
constexpr int64_t kKeptHeader = 16;  // elements in front of the kept tiles: KeptHeader

struct Tile {
  int64_t i0, i1, j0, j1;
  bool diagonal() const { return i0 == j0; }
  int64_t area() const { return (i1 - i0) * (j1 - j0); }
};

// [begin, end) cut into equal pieces of at most kTile, at multiples of `unit`.
struct Cut {
  int64_t begin, end, pieces, unit;
  Cut(int64_t begin, int64_t end, int64_t unit)
      : begin(begin), end(end), pieces((end - begin + kTile - 1) / kTile), unit(unit) {}
  int64_t edge(int64_t piece) const {
    return begin + (end - begin) / unit * piece / pieces * unit;
  }
};

struct Schedule {
  int ranks;
  int64_t rows, unit;  // rows: a multiple of unit

  int rounds() const { return 2 * ranks - 1; }
  int64_t group_edge(int group) const { return rows / unit * group / (2 * ranks) * unit; }

  // The circle method, with players renamed so that round 0 pairs groups 2r and 2r + 1.
  void match(int round, int rank, int* first, int* second) const {
    const int circle = 2 * ranks - 1;
    const auto group_of = [&](int player) {
      player %= circle;
      if (player == 0) return 1;
      return player < ranks ? 2 * player : 2 * (circle - player) + 1;
    };
    const int a = rank == 0 ? 0 : group_of(round + rank);
    const int b = group_of(round + circle - rank);
    *first = a < b ? a : b;
    *second = a < b ? b : a;
  }

  // Round 0 is the triangle over both groups, the others the rectangle of one against the other.
  template <class F> void tiles(int round, int rank, const F& visit) const {
    int first, second;
    match(round, rank, &first, &second);
    const bool triangle = round == 0;
    const Cut down(group_edge(first), group_edge(triangle ? second + 1 : first + 1), unit);
    const Cut right(triangle ? down.begin : group_edge(second), group_edge(second + 1), unit);
    for (int64_t a = 0; a < down.pieces; ++a)
      for (int64_t b = triangle ? a : 0; b < right.pieces; ++b)
        visit(Tile{down.edge(a), down.edge(a + 1), right.edge(b), right.edge(b + 1)});
  }

  int64_t elements(int rank) const {
    int64_t total = 0;
    for (int round = 0; round < rounds(); ++round)
      tiles(round, rank, [&](const Tile& tile) { total += tile.area(); });
    return total;
  }
};

// The part of the kept buffer that belongs to a rank: all it needs where everything fits, else an
// equal share, so that the ranks have equally much to recompute.
struct KeptRange {
  int64_t begin, end;
};

inline KeptRange kept_range(const Schedule& schedule, int rank, int64_t capacity) {
  int64_t total = 0, before = 0, own = 0;
  for (int r = 0; r < schedule.ranks; ++r) {
    const int64_t need = schedule.elements(r);
    if (r < rank) before += need;
    if (r == rank) own = need;
    total += need;
  }
  const int64_t room = capacity > kKeptHeader ? capacity - kKeptHeader : 0;
  if (total <= room) return {kKeptHeader + before, kKeptHeader + before + own};
  const int64_t share = room / schedule.ranks / 16 * 16;
  return {kKeptHeader + share * rank, kKeptHeader + share * (rank + 1)};
}

}  // namespace
