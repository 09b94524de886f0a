// As much of CUDA's header as csrc/cuda/table_cache.cpp needs, for tests without CUDA (tests/kernels/cuda_tables.cpp).
#pragma once

using cudaStream_t = struct Stream*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };

inline int cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return 0; }
