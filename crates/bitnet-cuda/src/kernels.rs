//! The kernels by name (`kernels/*.cu` says what each does and what it is given).

use crate::driver::{Driver, Function};
use crate::error::CudaError;
use bitnet_core::{DenseType, KvType};

macro_rules! kernels {
    ($(#[$doc:meta])* $of:ident: $($name:ident)*) => {
        $(#[$doc])*
        pub(crate) struct $of {
            $(pub(crate) $name: Function,)*
        }

        impl $of {
            pub(crate) fn load(driver: &Driver) -> Result<Self, CudaError> {
                Ok(Self { $($name: driver.function(stringify!($name))?,)* })
            }
        }
    };
}

kernels! {
    /// Handles of the kernels that are always there.
    Kernels:
    quantize quantize_many rms_norm rms_norm_many rms_norm_heads
    add scale place add_scaled gather gate
    gemv gemv_gated norm_gemv norm_gemv_gated few_8 few_8_gated few_16 few_16_gated
    gemm_32x32 gemm_32x64 gemm_64x64 gemm_64x128 gemm_128x128 gemm_128x128_wide
    gemm_32x32_gated gemm_32x64_gated gemm_32x128_gated gemm_64x128_gated gemm_64x128_gated_wide
    grouped ternary_floats embed_ternary tile_codes gemv_interleaved interleave_codes
    dense_f32 dense_f16 dense_f16_many dense_bf16 dense_bf16_many dense_q8_0 dense_q4_0 dense_q6_k spread_lanes
    embed_f32 embed_f16 embed_bf16 embed_q8_0 embed_q4_0 embed_q6_k
    merge
    clear select_count select_also select_take select_best
    screen_query screen_8 screen_64
    screen_rows_f32 screen_rows_f16 screen_rows_bf16 screen_rows_q8_0 screen_rows_q4_0 screen_rows_q6_k
    screen_exact_f32 screen_exact_f16 screen_exact_bf16 screen_exact_q8_0 screen_exact_q4_0 screen_exact_q6_k
}

kernels! {
    /// Handles of the kernels of training, which are a module of their own.
    TrainingKernels:
    train_mix train_fill train_columns train_gather train_scatter train_rotate
    train_gate train_gate_back train_adam train_sgd
    train_norm train_norm_back train_norm_parts train_norm_weight
    train_quantize train_magnitudes train_mean train_trits train_cross_entropy train_squares
    train_arrange_f32 train_arrange_bf16 train_arrange_i8
    train_product_f32_64 train_product_f32_128 train_product_bf16_64 train_product_bf16_128
    train_product_i8_64 train_product_i8_128 train_product_parts
    train_attend train_attend_means
    train_attend_back_queries train_attend_back_queries_bf16 train_attend_back_keys train_attend_back_keys_bf16
}

/// From so many rows on, each has fewer threads.
const MANY_ROWS: usize = 100;

impl Kernels {
    /// Products with dense weights, and how many rows and tokens a block of it has.
    pub(crate) fn dense(&self, dtype: DenseType, m: usize) -> (Function, usize, usize) {
        match (dtype, m) {
            // Q4_1 lies there as F32.
            (DenseType::F32 | DenseType::Q4_1, _) => (self.dense_f32, 16, 4),
            (DenseType::F16, 1) => (self.dense_f16, 32, 1),
            (DenseType::F16, _) => (self.dense_f16_many, 64, 8),
            (DenseType::BF16, 1) => (self.dense_bf16, 32, 1),
            (DenseType::BF16, _) => (self.dense_bf16_many, 64, 8),
            (DenseType::Q8_0, _) => (self.dense_q8_0, 16, 4),
            (DenseType::Q4_0, _) => (self.dense_q4_0, 16, 4),
            (DenseType::Q6_K, _) => (self.dense_q6_k, 16, 4),
        }
    }

    /// Norms of so many tokens, and the threads of a block.
    pub(crate) fn norm(&self, m: usize) -> (Function, u32) {
        if m > MANY_ROWS { (self.rms_norm_many, 256) } else { (self.rms_norm, 512) }
    }

    /// Int8 activations of so many tokens, and the threads of a block.
    pub(crate) fn quantization(&self, m: usize) -> (Function, u32) {
        if m > MANY_ROWS { (self.quantize_many, 256) } else { (self.quantize, 512) }
    }

    /// What copies rows for screening, and what computes those that are found.
    pub(crate) fn screen(&self, dtype: DenseType) -> (Function, Function) {
        match dtype {
            DenseType::F32 | DenseType::Q4_1 => (self.screen_rows_f32, self.screen_exact_f32),
            DenseType::F16 => (self.screen_rows_f16, self.screen_exact_f16),
            DenseType::BF16 => (self.screen_rows_bf16, self.screen_exact_bf16),
            DenseType::Q8_0 => (self.screen_rows_q8_0, self.screen_exact_q8_0),
            DenseType::Q4_0 => (self.screen_rows_q4_0, self.screen_exact_q4_0),
            DenseType::Q6_K => (self.screen_rows_q6_k, self.screen_exact_q6_k),
        }
    }

    /// Rows of a dense embedding.
    pub(crate) fn embed(&self, dtype: DenseType) -> Function {
        match dtype {
            DenseType::F32 | DenseType::Q4_1 => self.embed_f32,
            DenseType::F16 => self.embed_f16,
            DenseType::BF16 => self.embed_bf16,
            DenseType::Q8_0 => self.embed_q8_0,
            DenseType::Q4_0 => self.embed_q4_0,
            DenseType::Q6_K => self.embed_q6_k,
        }
    }
}

/// A kernel of attention for tiles of so many rows, and the one that appends a step's keys and values besides.
#[derive(Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) rows: usize,
    pub(crate) plain: Function,
    pub(crate) roped: Option<Function>,
}

/// The kernels of a cache with these types of keys and values.
pub(crate) struct CacheKernels {
    pub(crate) rope_append: Function,
    /// For a token of a sequence, where there are few of them and where there are many, and for several tokens of one.
    pub(crate) single: Attention,
    pub(crate) batched: Attention,
    pub(crate) several: Attention,
}

impl CacheKernels {
    pub(crate) fn load(driver: &Driver, key: KvType, value: KvType) -> Result<Self, CudaError> {
        macro_rules! of {
            ($key:ident $value:ident) => {
                (|| {
                    let plain =
                        driver.function(concat!("attend_4_", stringify!($key), "_", stringify!($value)))?;
                    let attention = Attention { rows: 4, plain, roped: None };
                    let rope_append = driver.function(concat!(
                        "rope_append_",
                        stringify!($key),
                        "_",
                        stringify!($value)
                    ))?;
                    Ok(Self { rope_append, single: attention, batched: attention, several: attention })
                })()
            };
            ($ty:ident) => {
                (|| {
                    let function = |name| driver.function(name);
                    let of = |rows, plain, roped: Option<&'static str>| {
                        let roped = roped.map(function).transpose()?;
                        Ok::<_, CudaError>(Attention { rows, plain: function(plain)?, roped })
                    };
                    macro_rules! name {
                        ($kernel:literal) => {
                            concat!($kernel, "_", stringify!($ty), "_", stringify!($ty))
                        };
                    }
                    Ok(Self {
                        rope_append: function(name!("rope_append"))?,
                        single: of(1, name!("attend_1"), Some(name!("rope_attend_1")))?,
                        batched: of(4, name!("attend_4"), Some(name!("rope_attend_4")))?,
                        several: of(16, name!("attend_16"), None)?,
                    })
                })()
            };
        }
        match (key, value) {
            (KvType::F32, KvType::F32) => of!(f32),
            (KvType::F32, KvType::F16) => of!(f32 f16),
            (KvType::F32, KvType::BF16) => of!(f32 bf16),
            (KvType::F16, KvType::F32) => of!(f16 f32),
            (KvType::F16, KvType::F16) => of!(f16),
            (KvType::F16, KvType::BF16) => of!(f16 bf16),
            (KvType::BF16, KvType::F32) => of!(bf16 f32),
            (KvType::BF16, KvType::F16) => of!(bf16 f16),
            (KvType::BF16, KvType::BF16) => of!(bf16),
            (KvType::F32, KvType::Q8_0) => of!(f32 q8_0),
            (KvType::F16, KvType::Q8_0) => of!(f16 q8_0),
            (KvType::BF16, KvType::Q8_0) => of!(bf16 q8_0),
            (KvType::Q8_0, KvType::F32) => of!(q8_0 f32),
            (KvType::Q8_0, KvType::F16) => of!(q8_0 f16),
            (KvType::Q8_0, KvType::BF16) => of!(q8_0 bf16),
            (KvType::Q8_0, KvType::Q8_0) => of!(q8_0),
        }
    }
}
