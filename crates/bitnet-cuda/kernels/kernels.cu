// All kernels, as one module.
#include "norm.cu"
#include "elementwise.cu"
#include "ternary.cu"
#include "interleaved.cu"
#include "dense.cu"
#include "attention.cu"
#include "screen.cu"
#include "select.cu"
