// The Python face of the extension: importing radam_fused._C loads the library, whose static initialisers register the
// operators; the module itself only tells which instruction set the kernels use.
#include <Python.h>

#include "kernels.h"

namespace {

PyObject* instruction_set(PyObject*, PyObject*) { return PyUnicode_FromString(radam_fused::instruction_set()); }

PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "The instruction set that the CPU kernels use on this machine."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
