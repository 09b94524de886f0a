// The tables of launches (csrc/cuda/table_cache.cpp, as it stands) over memory of the host, with captures and replays
// that a test directs through these functions. stubs/ has what the file includes of CUDA and torch.
#include "cuda/table_cache.cpp"

namespace {

using namespace radam_fused;

// What a launch reads: where, and what it should find.
struct Read {
  std::weak_ptr<stub::Block> block;
  stub::Block expected;
};

std::vector<stub::Graph> graphs(64);
std::vector<std::vector<Read>> launches;
size_t captures = 0;

template <typename T>
stub::Block bytes_of(const std::vector<T>& values) {
  const auto* at = reinterpret_cast<const unsigned char*>(values.data());
  return {at, at + values.size() * sizeof(T)};
}

}  // namespace

extern "C" {

int begin_capture() {
  stub::captured = &graphs.at(captures);
  return int(captures++);
}

void end_capture() { stub::captured = nullptr; }

bool replay(int graph) { return graphs.at(graph).replay(); }

// A launch over a bucket, on a stream, with tables that a number stands in; `capturing` is what the launch takes it
// for.
int launch(int64_t bucket, int64_t stream, int64_t number, bool capturing) {
  SegmentTable table;
  TileSegment segment{};
  segment.start = number;
  segment.length = 1;
  table.segments.push_back(segment);
  table.tiles = 1;
  const std::vector<double> scalars{double(number)};
  const std::vector<const void*> grads{reinterpret_cast<const void*>(number)};
  const TableKey key{0, reinterpret_cast<cudaStream_t>(stream), reinterpret_cast<const void*>(bucket), 0, 0, 1};
  const DeviceTables found = table_cache().find(key, table, &scalars, &grads, capturing);
  stub::Block written(table.bytes());
  table.write(written.data());
  launches.push_back({{found.segments.block, written},
                      {found.scalars.block, bytes_of(scalars)},
                      {found.grads.block, bytes_of(grads)}});
  return int(launches.size()) - 1;
}

// Whether a launch finds now what it should: 1, or 0, or -1 where the memory is gone.
int reads_right(int launch) {
  for (const Read& read : launches.at(launch)) {
    const auto block = read.block.lock();
    if (block == nullptr) return -1;
    if (*block != read.expected) return 0;
  }
  return 1;
}
}
