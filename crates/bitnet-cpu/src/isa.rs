//! Instruction sets that kernels exist for.

#[cfg(target_arch = "x86_64")]
mod amx;

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::fmt;
use std::str::FromStr;

/// An instruction set, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; runs everywhere.
    Scalar,
    /// SSSE3 and SSE4.1, for ternary products; all else is plain Rust.
    #[cfg(target_arch = "x86_64")]
    Sse,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-VNNI, for ternary products, besides AVX2.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 F, BW, VL and DQ, besides AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx512Bw,
    /// AVX-512 VNNI, besides the others.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 VBMI, besides those.
    #[cfg(target_arch = "x86_64")]
    Avx512Vbmi,
    /// AMX with int8 and bf16 products, besides those; on Linux, which has to allow it.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// NEON, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// `sdot`, besides NEON.
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    /// `smmla`, besides `sdot`.
    #[cfg(target_arch = "aarch64")]
    I8mm,
}

impl Isa {
    /// Every instruction set this build has kernels for, slowest first.
    pub const ALL: &[Self] = &[
        Self::Scalar,
        #[cfg(target_arch = "x86_64")]
        Self::Sse,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::AvxVnni,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bw,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Vbmi,
        #[cfg(target_arch = "x86_64")]
        Self::Amx,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        #[cfg(target_arch = "aarch64")]
        Self::Dotprod,
        #[cfg(target_arch = "aarch64")]
        Self::I8mm,
    ];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Sse => is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bw => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx512Bw.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vbmi => Self::Avx512.is_available() && is_x86_feature_detected!("avx512vbmi"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Vbmi.is_available() && amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => Self::Neon.is_available() && is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm => Self::Dotprod.is_available() && is_aarch64_feature_detected!("i8mm"),
        }
    }

    /// Whether a processor with this instruction set runs kernels of `other` too.
    pub fn includes(self, other: Self) -> bool {
        // AVX-512 is older than AVX-VNNI, so processors may have it alone.
        #[cfg(target_arch = "x86_64")]
        if other == Self::AvxVnni {
            return self == other;
        }
        // Each one but that holds those before it.
        other <= self
    }

    /// The ones this processor has, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest one this processor has.
    pub fn detect() -> Self {
        Self::ALL.iter().copied().rfind(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    /// Whether it has products of bf16.
    pub(crate) fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Sse => "sse",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bw => "avx512bw",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vbmi => "avx512-vbmi",
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::I8mm => "i8mm",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no instruction set of this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown instruction set {name:?}, this build has {}", names())]
pub struct UnknownIsa {
    /// What was asked for.
    pub name: String,
}

fn names() -> String {
    Isa::ALL.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Isa {
    type Err = UnknownIsa;
    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Self::ALL
            .iter()
            .copied()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| UnknownIsa { name: name.to_owned() })
    }
}
