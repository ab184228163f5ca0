//! The shaders of training: what each is made of and where it begins.

use bitnet_core::Activation;

/// Elements that a part of a sum over a whole tensor has (`absmean.wgsl`, `length.wgsl`).
pub(super) const PART: usize = 16_384;
/// Rows that give to a norm's weight together.
pub(super) const NORM_ROWS: usize = 64;
/// Threads of a workgroup, but for attention.
pub(super) const THREADS: usize = 256;
/// Rows and columns of a product that a workgroup has.
pub(super) const TILE: usize = 64;
/// Rows of a sequence that a workgroup of attention has, and columns of a head.
pub(super) const BLOCK: usize = 32;
pub(super) const CHUNK: usize = 64;

/// What a side of a product consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stored {
    F32,
    I8,
    Trits,
}

/// How the sides of a product are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sides {
    pub(crate) a: Stored,
    pub(crate) a_columns: bool,
    pub(crate) b: Stored,
    pub(crate) b_columns: bool,
}

/// A compute shader of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shader {
    /// With terms rounded to bf16, or not.
    Product(Sides, bool),
    Integers(Sides),
    Fill,
    Mix,
    Columns,
    Gather,
    Scatter,
    Norm,
    NormBackward,
    NormWeightParts,
    NormWeight,
    Quantize,
    Magnitudes,
    Mean,
    Trits,
    Rotate,
    Attend,
    AttendMeans,
    /// With terms rounded to bf16, or not.
    AttendQueries(bool),
    AttendKeys(bool),
    Gate(Activation),
    GateBackward(Activation),
    CrossEntropy,
    Squares,
    Adam,
    Sgd,
}

impl Shader {
    /// The function that is run.
    pub(crate) fn entry(self) -> &'static str {
        match self {
            Self::Product(..) | Self::Integers(_) => "product",
            Self::Fill => "fill",
            Self::Mix => "mix",
            Self::Columns => "columns",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::Norm | Self::Gate(_) => "forward",
            Self::NormBackward | Self::GateBackward(_) => "backward",
            Self::NormWeightParts => "weight_parts",
            Self::NormWeight => "weight",
            Self::Quantize => "quantize",
            Self::Magnitudes => "magnitudes",
            Self::Mean => "mean",
            Self::Trits => "trits",
            Self::Rotate => "rotate",
            Self::Attend => "attend",
            Self::AttendMeans => "means_of",
            Self::AttendQueries(_) => "of_queries",
            Self::AttendKeys(_) => "of_keys",
            Self::CrossEntropy => "cross_entropy",
            Self::Squares => "squares",
            Self::Adam => "adam",
            Self::Sgd => "sgd",
        }
    }

    /// WGSL.
    pub(crate) fn source(self) -> String {
        const EXP: &str = include_str!("../shaders/exp.wgsl");
        const FOLD: &str = include_str!("../shaders/training/fold.wgsl");
        const ROUNDED: &str = include_str!("../shaders/training/rounded.wgsl");
        const SIDES: &str = include_str!("../shaders/training/sides.wgsl");
        const ATTENTION: &str = include_str!("../shaders/training/attention.wgsl");
        match self {
            Self::Product(sides, bf16) => format!(
                "{}{SIDES}{ROUNDED}const BF16 = {bf16};\n{}",
                sides.source(),
                include_str!("../shaders/training/product.wgsl")
            ),
            Self::Integers(sides) => {
                format!("{}{SIDES}{}", sides.source(), include_str!("../shaders/training/integers.wgsl"))
            }
            Self::Fill | Self::Mix => include_str!("../shaders/training/elementwise.wgsl").to_owned(),
            Self::Columns | Self::Gather | Self::Scatter => {
                include_str!("../shaders/training/rows.wgsl").to_owned()
            }
            Self::Norm | Self::NormBackward | Self::NormWeightParts | Self::NormWeight => {
                format!("{FOLD}{}", include_str!("../shaders/training/norm.wgsl"))
            }
            Self::Quantize => format!("{FOLD}{}", include_str!("../shaders/training/quantize.wgsl")),
            Self::Magnitudes | Self::Mean | Self::Trits => {
                include_str!("../shaders/training/absmean.wgsl").to_owned()
            }
            Self::Rotate => include_str!("../shaders/training/rotate.wgsl").to_owned(),
            Self::Attend => {
                format!("{EXP}{ROUNDED}{ATTENTION}{}", include_str!("../shaders/training/attend.wgsl"))
            }
            Self::AttendMeans => include_str!("../shaders/training/attend_means.wgsl").to_owned(),
            Self::AttendQueries(bf16) | Self::AttendKeys(bf16) => format!(
                "const BF16 = {bf16};\n{EXP}{ROUNDED}{ATTENTION}{}",
                include_str!("../shaders/training/attend_backward.wgsl")
            ),
            Self::Gate(act) | Self::GateBackward(act) => {
                let act = match act {
                    Activation::Relu2 => "relu2",
                    Activation::Silu => "silu",
                    Activation::Gelu => "gelu",
                };
                let gate = include_str!("../shaders/training/gate.wgsl");
                format!("fn act(g: f32) -> vec2<f32> {{ return {act}(g); }}\n{EXP}{gate}")
            }
            Self::CrossEntropy => {
                format!("{EXP}{FOLD}{}", include_str!("../shaders/training/cross_entropy.wgsl"))
            }
            Self::Squares => format!("{FOLD}{}", include_str!("../shaders/training/length.wgsl")),
            Self::Adam | Self::Sgd => include_str!("../shaders/training/optimizer.wgsl").to_owned(),
        }
    }

    /// Every one there is.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Fill,
            Self::Mix,
            Self::Columns,
            Self::Gather,
            Self::Scatter,
            Self::Norm,
            Self::NormBackward,
            Self::NormWeightParts,
            Self::NormWeight,
            Self::Quantize,
            Self::Magnitudes,
            Self::Mean,
            Self::Trits,
            Self::Rotate,
            Self::Attend,
            Self::AttendMeans,
            Self::CrossEntropy,
            Self::Squares,
            Self::Adam,
            Self::Sgd,
        ];
        all.extend(
            [false, true].into_iter().flat_map(|bf16| [Self::AttendQueries(bf16), Self::AttendKeys(bf16)]),
        );
        for act in [Activation::Relu2, Activation::Silu, Activation::Gelu] {
            all.extend([Self::Gate(act), Self::GateBackward(act)]);
        }
        for (a, b) in [Stored::F32, Stored::I8]
            .into_iter()
            .flat_map(|a| [Stored::F32, Stored::I8, Stored::Trits].map(|b| (a, b)))
        {
            for (a_columns, b_columns) in [(false, false), (false, true), (true, false), (true, true)] {
                let sides = Sides { a, a_columns, b, b_columns };
                all.extend([Self::Product(sides, false), Self::Product(sides, true)]);
                if sides.are_integers() {
                    all.push(Self::Integers(sides));
                }
            }
        }
        all
    }
}

impl Sides {
    /// Whether sums are exact, where sides have no factors.
    pub(crate) fn are_integers(self) -> bool {
        self.a != Stored::F32 && self.b != Stored::F32
    }

    /// How each side is read: one element; where it is packed, also four neighbours from a multiple of four on, as numbers and as a word of
    /// integers, and one integer as a byte.
    fn source(self) -> String {
        let of = |name: &str, stored, columns| {
            let body = match stored {
                Stored::F32 => format!(
                    "fn {name}_value(i: u32) -> f32 {{ return bitcast<f32>({name}[p.{name} + i]); }}\n\
                     fn {name}_values(i: u32) -> vec4<f32> {{ return vec4({name}_value(i)); }}\n"
                ),
                Stored::I8 => format!(
                    "fn {name}_signed(i: u32) -> i32 {{\n\
                         let at = p.{name} + i;\n\
                         return signed_byte({name}[at / 4u], at % 4u);\n\
                     }}\n\
                     fn {name}_four(i: u32) -> u32 {{ return {name}[(p.{name} + i) / 4u]; }}\n"
                ),
                Stored::Trits => format!(
                    "fn {name}_codes(i: u32) -> u32 {{\n\
                         let at = p.{name} + i / 4u;\n\
                         return ({name}[at / 4u] >> (8u * (at % 4u))) & 0xffu;\n\
                     }}\n\
                     fn {name}_signed(i: u32) -> i32 {{ return trit({name}_codes(i), i % 4u); }}\n\
                     fn {name}_four(i: u32) -> u32 {{ return four_trits({name}_codes(i)); }}\n"
                ),
            };
            let integers = match stored {
                Stored::F32 => String::new(),
                Stored::I8 | Stored::Trits => format!(
                    "fn {name}_value(i: u32) -> f32 {{ return f32({name}_signed(i)); }}\n\
                     fn {name}_values(i: u32) -> vec4<f32> {{ return vec4<f32>(unpack4xI8({name}_four(i))); }}\n\
                     fn {name}_integer(i: u32) -> u32 {{ return bitcast<u32>({name}_signed(i)) & 0xffu; }}\n"
                ),
            };
            let (upper, packed) = (name.to_uppercase(), stored != Stored::F32);
            format!("const {upper}_COLUMNS = {columns};\nconst {upper}_PACKED = {packed};\n{body}{integers}")
        };
        format!("{}{}", of("a", self.a, self.a_columns), of("b", self.b, self.b_columns))
    }
}
