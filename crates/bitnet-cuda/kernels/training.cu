// The kernels of training, as a module of their own.
#include "training_elements.cu"
#include "training_rows.cu"
#include "training_product.cu"
#include "training_attention.cu"
#include "training_attention_bf16.cu"
