#include "python/segment_table.h"

#include <cstdint>
#include <exception>

#include "python/held_gradients.h"
#include "python/pairs_argument.h"
#include "python/step_counts.h"
#include "python/tensor_pairs.h"

namespace radam_fused {
namespace {

// A row. Must match SEGMENT_COLUMNS in radam_fused/backends/triton/tables.py.
struct SegmentRow {
  int64_t param_address;
  int64_t grad_address;
  int64_t start;
  int64_t length;
  int64_t scalar_index;
  int64_t first_tile;
  int64_t aligned;
  int64_t strides_at;
  int64_t rng_offset;
};

// A row of a norm's table. Must match NORM_COLUMNS there.
struct NormRow {
  int64_t address;
  int64_t length;
  int64_t first_tile;
  int64_t tiles;
  int64_t full_tiles;
  int64_t strides_at;
};

constexpr int64_t kAligned = 16;    // bytes: the width of a vector access
constexpr int64_t kNoStrides = -1;  // parameter, gradient and moments are plain arrays in one order

// Fills in the table; whether a row has changed. Only addresses can change between two steps of a plan, but a table
// that is new holds nothing yet.
bool fill(const TensorPairs& pairs, const int64_t* scalar_index, const int64_t* rng_offsets, int64_t tile,
          SegmentRow* rows) {
  int64_t changed = 0, first_tile = 0;
  for (int64_t i = 0; i < pairs.count; ++i) {
    const TensorPair& pair = pairs.data[i];
    const int64_t param = reinterpret_cast<int64_t>(pair.param), grad = reinterpret_cast<int64_t>(pair.grad);
    const int64_t start = pairs.segments[i].start;
    SegmentRow& row = rows[i];
    changed |= (row.param_address ^ param) | (row.grad_address ^ grad) | (row.length ^ pair.numel);
    row = {param,
           grad,
           start,
           pair.numel,
           scalar_index[i],
           first_tile,
           (param | grad) % kAligned == 0,
           kNoStrides,
           rng_offsets == nullptr ? start : rng_offsets[i]};
    first_tile += (pair.numel + tile - 1) / tile;
  }
  return changed != 0;
}

// What fills in a norm's table: the rows written, the tiles of all, and whether a row has changed.
struct NormTable {
  int64_t rows = 0, tiles = 0;
  bool changed = false;
};

// Gradients without elements have no row.
NormTable fill_norm(const TensorPairs& pairs, int64_t tile, NormRow* rows) {
  NormTable table;
  for (int64_t i = 0; i < pairs.count; ++i) {
    const int64_t length = pairs.data[i].numel, grad = reinterpret_cast<int64_t>(pairs.data[i].grad);
    if (length == 0) continue;
    NormRow& row = rows[table.rows++];
    table.changed = table.changed || row.address != grad || row.length != length;
    const int64_t tiles = (length + tile - 1) / tile;
    row = {grad, length, table.tiles, tiles, grad % kAligned == 0 ? length / tile : 0, kNoStrides};
    table.tiles += tiles;
  }
  return table;
}

// The dtype of all gradients; -1 if they have several.
int gradient_dtype(const TensorPairs& pairs) {
  for (int64_t i = 1; i < pairs.count; ++i) {
    if (pairs.data[i].grad_dtype != pairs.data[0].grad_dtype) return -1;
  }
  return pairs.count == 0 ? -1 : int(pairs.data[0].grad_dtype);
}

}  // namespace

// fill_segments(pairs, held, scalar_index, rng_offsets, tile, rows, zero_grads) -> (grad_dtype, changed) or None: reads
// the pairs as `read_pairs` does, raises the version counters of what the step writes, and writes the row of each
// segment. `changed`: whether a row is another than before. `held`, of hold_gradients(), then keeps the gradients alive
// until release_gradients(): other threads may replace them while the step is launched. None, with nothing done, where
// `read_pairs` returns False or the gradients have several dtypes. `rng_offsets` is 0 where random bits start where the
// moments do.
PyObject* fill_segments(PyObject*, PyObject* args) try {
  TensorPairs pairs;
  HeldGradients* held;
  unsigned long long scalar_index, rng_offsets, rows;
  long long tile;
  int zero_grads;
  if (!PyArg_ParseTuple(args, "O&O&KKLKp", parse_pairs, &pairs, held_gradients, &held, &scalar_index, &rng_offsets,
                        &tile, &rows, &zero_grads)) {
    return nullptr;
  }
  if (tile < 1) return PyErr_Format(PyExc_ValueError, "tiles of %lld elements", tile);
  if (!read_pairs(pairs)) Py_RETURN_NONE;
  const int grad_dtype = gradient_dtype(pairs);
  if (grad_dtype < 0) Py_RETURN_NONE;
  held->hold(pairs);
  bump_versions(pairs, zero_grads);
  const bool changed = fill(pairs, reinterpret_cast<const int64_t*>(scalar_index),
                            reinterpret_cast<const int64_t*>(rng_offsets), tile, reinterpret_cast<SegmentRow*>(rows));
  return Py_BuildValue("iN", grad_dtype, PyBool_FromLong(changed));
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// fill_norm_segments(pairs, held, tile, rows) -> (grad_dtype, rows, tiles, changed) or None: the same for the gradients
// alone, of which a norm reads the squares. Writes the row of each gradient that has elements, and returns how many
// have.
PyObject* fill_norm_segments(PyObject*, PyObject* args) try {
  TensorPairs pairs;
  HeldGradients* held;
  unsigned long long rows;
  long long tile;
  if (!PyArg_ParseTuple(args, "O&O&LK", parse_pairs, &pairs, held_gradients, &held, &tile, &rows)) return nullptr;
  if (tile < 1) return PyErr_Format(PyExc_ValueError, "tiles of %lld elements", tile);
  if (!read_pairs(pairs)) Py_RETURN_NONE;
  const int grad_dtype = gradient_dtype(pairs);
  if (grad_dtype < 0) Py_RETURN_NONE;
  held->hold(pairs);
  const NormTable filled = fill_norm(pairs, tile, reinterpret_cast<NormRow*>(rows));
  return Py_BuildValue("iLLN", grad_dtype, static_cast<long long>(filled.rows), static_cast<long long>(filled.tiles),
                       PyBool_FromLong(filled.changed));
} catch (const std::exception& error) {
  return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
}

// count_step(counts): `counts` is (shown, taken, size, counted), addresses as integers, or None.
PyObject* count_step(PyObject*, PyObject* argument) {
  StepCounts counts;
  if (!parse(argument, counts)) return nullptr;
  add_step(counts);
  Py_RETURN_NONE;
}

}  // namespace radam_fused
