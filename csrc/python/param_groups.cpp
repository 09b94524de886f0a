// The scalars of a step from the optimizer's param_groups, with the bits of radam_fused/numerics/scalars.py. Python
// takes some 3 us per row, and six times that after a training step has emptied the caches.
#include "python/param_groups.h"

#include <cmath>
#include <limits>

#include "numerics/scalars.h"
#include "python/sequence.h"

namespace radam_fused {
namespace {

// The keys of a group, made once: a string per lookup would cost more than the scalars.
struct Names {
  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }
  PyObject *lr = intern("lr"), *betas = intern("betas"), *eps = intern("eps"), *weight_decay = intern("weight_decay"),
           *decoupled = intern("decoupled_weight_decay"), *maximize = intern("maximize"),
           *threshold = intern("rho_threshold"), *to_sgd = intern("degenerated_to_sgd"),
           *rectification = intern("rectification"), *seed = intern("seed"), *differentiable = intern("differentiable");
};

// Reads the hyperparameters of a group. Any unexpected value makes `plain` false; Python then reports what is wrong
// (`check_later` in radam_fused/options.py has the ranges).
class Group {
 public:
  explicit Group(PyObject* dict) : dict_(dict), plain_(PyDict_Check(dict)) {}

  bool plain() const { return plain_; }
  void require(bool condition) { plain_ = plain_ && condition; }

  PyObject* get(PyObject* name) {
    PyObject* value = plain_ ? PyDict_GetItemWithError(dict_, name) : nullptr;
    require(value != nullptr);
    return plain_ ? value : Py_None;
  }

  // A number that is at least `low`.
  double number(PyObject* name, double low = 0.0) {
    const double number = number_of(get(name));
    require(number >= low);
    return number;
  }

  // A whole number in [0, 2^32).
  double seed(PyObject* name) {
    require(PyLong_Check(get(name)));
    const double seed = number(name);
    require(seed < 4294967296.0);
    return seed;
  }

  bool flag(PyObject* name) {
    PyObject* value = get(name);
    require(PyBool_Check(value));
    return value == Py_True;
  }

  // A beta in [0, 1).
  double beta(PyObject* betas, Py_ssize_t index) {
    betas = get(betas);
    require(PyTuple_Check(betas) && PyTuple_Size(betas) == 2);
    const double beta = plain_ ? number_of(PyTuple_GetItem(betas, index)) : 0.0;
    require(beta >= 0.0 && beta < 1.0);
    return beta;
  }

  // The index of a string among the choices.
  template <size_t n>
  double choice(PyObject* name, const char* const (&choices)[n]) {
    PyObject* value = get(name);
    require(PyUnicode_Check(value));
    for (size_t i = 0; plain_ && i < n; ++i) {
      if (PyUnicode_CompareWithASCIIString(value, choices[i]) == 0) return double(i);
    }
    plain_ = false;
    return 0.0;
  }

 private:
  double number_of(PyObject* value) {
    require(PyFloat_Check(value) || (PyLong_Check(value) && !PyBool_Check(value)));
    const double number = plain_ ? PyFloat_AsDouble(value) : 0.0;
    require(std::isfinite(number));
    return number;
  }

  PyObject* dict_;
  bool plain_;
};

// As `decay_rate` of radam_fused/rectification.py.
double decay_rate(double beta) {
  if (beta == 0.0) return std::numeric_limits<double>::infinity();
  return beta >= 0.5 ? -std::log1p(beta - 1.0) : -std::log(beta);
}

// Must match radam_fused/numerics/scalars.py.
GroupScalars read_group_scalars(Group& group) {
  static const Names names;
  static const char* const kKinds[] = {"first_order", "exact", "none"};
  const double beta1 = group.beta(names.betas, 0), beta2 = group.beta(names.betas, 1);
  const double decay = group.number(names.weight_decay);
  const bool decoupled = group.flag(names.decoupled);
  GroupScalars h;
  h.lr = group.number(names.lr);
  h.one_minus_beta1 = 1.0 - beta1;
  h.decay_rate1 = decay_rate(beta1);
  h.beta2 = beta2;
  h.one_minus_beta2 = 1.0 - beta2;
  h.decay_rate2 = decay_rate(beta2);
  h.rho_inf = (1.0 + beta2) / (1.0 - beta2);
  h.rho_threshold = group.number(names.threshold, 4.0);
  h.eps = group.number(names.eps);
  h.l2_decay = decoupled ? 0.0 : decay;
  h.decoupled_decay = decoupled ? decay : 0.0;
  h.sign = group.flag(names.maximize) ? -1.0 : 1.0;
  h.unrectified_rule = double(group.flag(names.to_sgd) ? UpdateRule::kUnrectified : UpdateRule::kNoParamUpdate);
  h.kind = group.choice(names.rectification, kKinds);
  h.seed = group.seed(names.seed);
  group.require(!group.flag(names.differentiable));  // these steps are plain torch operations
  const bool exact = group.plain() && h.kind == kExactRectification && h.rho_inf > h.rho_threshold;
  h.limit_variance = exact ? exact_variance(h.rho_inf) : 1.0;
  return h;
}

}  // namespace

// write_scalars(address, groups, pairs, taken) -> bool: for each (group, segment) pair of a list writes its scalars,
// from this address on; the float64 array at `taken` has the number of steps that each segment has taken. False if a
// group has anything but plain numbers; some scalars may be written then.
PyObject* write_scalars(PyObject*, PyObject* args) {
  unsigned long long address, taken;
  PyObject *groups, *pairs;
  if (!PyArg_ParseTuple(args, "KOO!K", &address, &groups, &PyList_Type, &pairs, &taken)) return nullptr;
  if (size_of(groups) < 0) Py_RETURN_FALSE;
  auto* columns = reinterpret_cast<double*>(address);
  const CommonScalars unscaled{1.0, 1.0, false};
  for (Py_ssize_t i = 0; i < PyList_Size(pairs); ++i, columns += kScalarColumns) {
    Py_ssize_t index, segment;
    if (!PyArg_ParseTuple(PyList_GetItem(pairs, i), "nn", &index, &segment)) return nullptr;
    PyObject* dict = item_of(groups, index);  // borrowed; null, with IndexError, where there is none
    if (dict == nullptr) return nullptr;
    Group group(dict);
    const GroupScalars h = read_group_scalars(group);
    if (PyErr_Occurred()) return nullptr;  // a number that no double holds, say
    if (!group.plain()) Py_RETURN_FALSE;
    compute_scalars(columns, h, reinterpret_cast<const double*>(taken)[segment] + 1.0, h.lr, unscaled);
  }
  Py_RETURN_TRUE;
}

}  // namespace radam_fused
