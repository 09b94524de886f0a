// The Python module radam_fused._C_cuda. Importing it loads the CUDA library, whose static initialisers register the
// operators for CUDA tensors; its functions return what the library was built for.
#include <Python.h>
#include <cuda_runtime_api.h>

#include "cuda/architectures.h"

namespace {

PyObject* cuda_version(PyObject*, PyObject*) { return PyLong_FromLong(CUDART_VERSION); }
PyObject* architectures(PyObject*, PyObject*) { return PyUnicode_FromString(radam_fused::architectures()); }

#define RADAM_TEXT(...) #__VA_ARGS__
#define RADAM_EXPANDED(...) RADAM_TEXT(__VA_ARGS__)
#ifndef RADAM_FUSED_CODE
#error "RADAM_FUSED_CODE: setup.py says which code nvcc makes, as in sm_80,sm_90,compute_90"
#endif
PyObject* code(PyObject*, PyObject*) { return PyUnicode_FromString(RADAM_EXPANDED(RADAM_FUSED_CODE)); }

PyMethodDef methods[] = {
    {"cuda_version", cuda_version, METH_NOARGS, "The CUDA that this library was built with, as 13000 for 13.0."},
    {"architectures", architectures, METH_NOARGS, "The GPU architectures with machine code in it, as '800,900'."},
    {"code", code, METH_NOARGS, "The code in it: machine code and PTX, as 'sm_80,sm_90,compute_90'."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
