//! The table of shaders: what each is made of and where it begins.

use crate::training::Shader;
use bitnet_core::{Activation, DenseType, KvType};
use bitnet_quant::spec::Q8_BLOCK;

/// Columns that a head may have at most.
pub(crate) const MAX_HEAD_DIM: usize = 512;
/// Numbers of which a workgroup finds the largest.
pub(crate) const RUN: usize = 4096;

/// A compute shader. Types that shaders read are written into their source, so that each has a pipeline of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    /// Activations to int8.
    Quantize(Fold),
    /// Ternary weights, int8 activations, a token a workgroup.
    Gemv,
    /// The same for many tokens.
    Gemm,
    /// Ternary weights with scales for groups of columns, int8 activations.
    Grouped,
    /// Ternary weights, float activations.
    FloatGemv,
    /// Rows of a ternary embedding.
    EmbedTernary,
    /// Dense weights, one token a workgroup or four.
    Dense(DenseType, DenseTokens),
    /// Rows of a dense embedding.
    EmbedDense(DenseType),
    Norm,
    NormHeads,
    /// With these types of keys and values.
    RopeAppend(KvType, KvType),
    /// Segments of attention, with these types of keys and values.
    Attend(KvType, KvType, Fold),
    /// Segments become outputs.
    Merge,
    Gate(Activation),
    Add,
    Scale,
    Place,
    AddScaled,
    Gather,
    /// The largest of each run of numbers.
    Largest(Numbers),
    /// Numbers of certain ids.
    Besides,
    Training(Shader),
}

/// How a workgroup finds the largest number and the sum of integers that its threads have: the same either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fold {
    /// In the memory that they share.
    Tree,
    /// By operations of subgroups, where an adapter has them.
    Subgroups,
}

/// Numbers of which the largest are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Numbers {
    Logits,
    /// Of an id and a logit.
    Pairs,
}

/// Tokens that a workgroup multiplies a dense matrix with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DenseTokens {
    One = 1,
    Four = 4,
}

impl Kernel {
    /// The function that is run.
    pub(crate) fn entry(self) -> &'static str {
        match self {
            Self::Quantize(_) => "quantize",
            Self::Gemv => "gemv",
            Self::Gemm => "gemm",
            Self::Grouped => "grouped",
            Self::FloatGemv => "float_gemv",
            Self::EmbedTernary | Self::EmbedDense(_) => "embed",
            Self::Dense(..) => "linear",
            Self::Norm => "rows",
            Self::NormHeads => "heads",
            Self::RopeAppend(..) => "append",
            Self::Attend(..) => "segment",
            Self::Merge => "merge",
            Self::Gate(_) => "gate",
            Self::Add => "add",
            Self::Scale => "scale",
            Self::Place => "place",
            Self::AddScaled => "add_scaled",
            Self::Gather => "gather",
            Self::Largest(_) => "largest",
            Self::Besides => "besides",
            Self::Training(shader) => shader.entry(),
        }
    }

    /// WGSL.
    pub(crate) fn source(self) -> String {
        const EXP: &str = include_str!("shaders/exp.wgsl");
        match self {
            Self::Quantize(fold) => format!("{}{}", folds(fold, 256), include_str!("shaders/quantize.wgsl")),
            Self::Gemv | Self::Gemm | Self::Grouped | Self::FloatGemv | Self::EmbedTernary => {
                include_str!("shaders/ternary.wgsl").to_owned()
            }
            Self::Dense(dtype, tokens) => dense(dtype, tokens),
            Self::EmbedDense(dtype) => dense(dtype, DenseTokens::One),
            // A row is worth more threads than a head.
            Self::Norm => format!("const SIZE = 256u;\n{}", include_str!("shaders/norm.wgsl")),
            Self::NormHeads => format!("const SIZE = 64u;\n{}", include_str!("shaders/norm.wgsl")),
            Self::RopeAppend(key, value) => {
                format!("{}{}", cache(key, value), include_str!("shaders/rope.wgsl"))
            }
            Self::Attend(key, value, fold) => format!(
                "const MAX_HEAD_DIM = {MAX_HEAD_DIM}u;\n{EXP}{}{}{}",
                folds(fold, 64),
                cache(key, value),
                include_str!("shaders/attend.wgsl")
            ),
            Self::Merge => format!("{EXP}{}", include_str!("shaders/merge.wgsl")),
            Self::Gate(act) => {
                let act = match act {
                    Activation::Relu2 => "relu2",
                    Activation::Silu => "silu",
                    Activation::Gelu => "gelu",
                };
                let gate = include_str!("shaders/gate.wgsl");
                format!("fn act(g: f32, u: f32) -> f32 {{ return {act}(g, u); }}\n{EXP}{gate}")
            }
            Self::Add | Self::Scale | Self::Place | Self::AddScaled | Self::Gather => {
                include_str!("shaders/elementwise.wgsl").to_owned()
            }
            Self::Largest(numbers) => select(numbers),
            Self::Besides => select(Numbers::Logits),
            Self::Training(shader) => shader.source(),
        }
    }

    /// The same where parts of one buffer are bound: of one that is written, all are bound for writing. A list of blocks is the host's and has a
    /// buffer of its own; loops with barriers end where it says, so every compiler must see that it stays as it is.
    pub(crate) fn source_of_shared(self) -> String {
        let writable = |line: &str| {
            if line.contains(" blocks: ") {
                format!("{line}\n")
            } else {
                line.replace("<storage, read>", "<storage, read_write>") + "\n"
            }
        };
        self.source().lines().map(writable).collect()
    }

    /// Whether it asks for an adapter with operations of subgroups.
    #[cfg(test)]
    pub(crate) fn has_subgroups(self) -> bool {
        matches!(self, Self::Quantize(Fold::Subgroups) | Self::Attend(_, _, Fold::Subgroups))
    }

    /// Every one there is.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        use DenseType::{BF16, F16, F32, Q4_0, Q6_K, Q8_0};
        let mut all = vec![
            Self::Gemv,
            Self::Gemm,
            Self::Grouped,
            Self::FloatGemv,
            Self::EmbedTernary,
            Self::Norm,
            Self::NormHeads,
            Self::Merge,
            Self::Add,
            Self::Scale,
            Self::Place,
            Self::AddScaled,
            Self::Gather,
            Self::Largest(Numbers::Logits),
            Self::Largest(Numbers::Pairs),
            Self::Besides,
        ];
        for dtype in [F32, F16, BF16, Q8_0, Q4_0, Q6_K] {
            all.extend([DenseTokens::One, DenseTokens::Four].map(|tokens| Self::Dense(dtype, tokens)));
            all.push(Self::EmbedDense(dtype));
        }
        const CACHES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];
        for key in CACHES {
            for value in CACHES {
                all.push(Self::RopeAppend(key, value));
                all.extend([Fold::Tree, Fold::Subgroups].map(|fold| Self::Attend(key, value, fold)));
            }
        }
        all.extend([Fold::Tree, Fold::Subgroups].map(Self::Quantize));
        all.extend([Activation::Relu2, Activation::Silu, Activation::Gelu].map(Self::Gate));
        all.extend(Shader::all().into_iter().map(Self::Training));
        all
    }
}

/// Folds for workgroups of so many threads.
fn folds(fold: Fold, threads: usize) -> String {
    let folds = match fold {
        Fold::Tree => include_str!("shaders/fold/tree.wgsl"),
        Fold::Subgroups => include_str!("shaders/fold/subgroups.wgsl"),
    };
    format!("const SIZE = {threads}u;\n{folds}")
}

fn dense(dtype: DenseType, tokens: DenseTokens) -> String {
    let value = match dtype {
        // Q4_1 lies there as F32.
        DenseType::F32 | DenseType::Q4_1 => include_str!("shaders/dense/f32.wgsl"),
        DenseType::F16 => include_str!("shaders/dense/f16.wgsl"),
        DenseType::BF16 => include_str!("shaders/dense/bf16.wgsl"),
        DenseType::Q8_0 => include_str!("shaders/dense/q8_0.wgsl"),
        DenseType::Q4_0 => include_str!("shaders/dense/q4_0.wgsl"),
        DenseType::Q6_K => include_str!("shaders/dense/q6_k.wgsl"),
    };
    format!("const TOKENS = {}u;\n{}{value}", tokens as u32, include_str!("shaders/dense.wgsl"))
}

fn select(numbers: Numbers) -> String {
    let pair = match numbers {
        Numbers::Logits => "vec2(at, bitcast<u32>(logits[token * p.stride + at]))",
        Numbers::Pairs => "pairs[token * p.stride + at]",
    };
    format!(
        "const RUN = {RUN}u;\nfn pair(token: u32, at: u32) -> vec2<u32> {{ return {pair}; }}\n{}",
        include_str!("shaders/select.wgsl")
    )
}

/// Elements of a type of cache that share a word.
pub(crate) fn values_a_word(ty: KvType) -> usize {
    match ty {
        KvType::F32 => 1,
        KvType::F16 | KvType::BF16 => 2,
        KvType::Q8_0 => 4,
    }
}

/// Words that a head of so many elements takes: behind them, a type with scales has one for each 32 elements.
pub(crate) fn head_words(ty: KvType, head_dim: usize) -> usize {
    let scales = if ty == KvType::Q8_0 { head_dim.div_ceil(Q8_BLOCK) } else { 0 };
    head_dim / values_a_word(ty) + scales
}

fn cache(key: KvType, value: KvType) -> String {
    let of = |what: &str, ty: KvType| {
        let name = match ty {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::Q8_0 => "q8",
        };
        // Elements that a thread rounds: those that share a word, or a scale.
        let (values, scaled) = (values_a_word(ty), ty == KvType::Q8_0);
        let run = if scaled { Q8_BLOCK } else { values };
        format!(
            "const {upper}_VALUES = {values}u;\n\
             const {upper}_RUN = {run}u;\n\
             const {upper}_SCALED = {scaled};\n\
             fn pack_{what}(four: vec4<f32>) -> u32 {{ return pack_{name}(four); }}\n\
             fn unpack_{what}(word: u32) -> vec4<f32> {{ return unpack_{name}(word); }}\n",
            upper = what.to_uppercase()
        )
    };
    format!("{}{}{}", of("key", key), of("value", value), include_str!("shaders/cache.wgsl"))
}

#[cfg(test)]
mod tests;
