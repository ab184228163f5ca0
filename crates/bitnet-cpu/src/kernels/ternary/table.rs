//! The table of ternary kernels, and a kernel's name as a value.

#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512, avx512bw, avxvnni, sse};
use super::{base3, i2_s, scalar, tl1, tl2};
#[cfg(target_arch = "aarch64")]
use super::{dotprod, i8mm, neon};
use crate::Isa;
use crate::layout::{BASE3, I2_S, Layout, Line, Panels, TILE, TILE2, TL1, TL2};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// `out[tile][row] = sum of code * x` over consecutive tiles of `tile_bytes` bytes, for the activations of one token, `x [at
/// least the tile's columns, zeros behind the matrix's own]`.
pub(super) type Gemv = fn(tiles: &[u8], tile_bytes: usize, x: &[i8], out: &mut [[i32; TILE]]);

/// `out[tile][token][row] = sum of code * x` for a panel and activations `x [columns/C][tokens][C]`, C being [`Gemm::columns`].
pub(super) type Multiply = fn(panel: &[Line], x: &[i8], out: &mut [[i32; TILE]], tokens: usize);

/// The product for several tokens: weights are unpacked to bytes once, a few tiles at a time (a *panel*, which stays in the
/// second-level cache), and every panel is multiplied with all activations, a few tokens at a time.
pub(super) struct Gemm {
    /// Tiles of a full panel.
    pub(super) tiles: usize,
    /// Tokens that `multiply` takes at most.
    pub(super) tokens: usize,
    /// Columns of a token that lie together: 4 or 64.
    pub(super) columns: usize,
    /// Unpacks the tiles, at most `tiles` of them, into [`Gemm::panel_lines`]; what a panel looks like is an affair between the two
    /// functions.
    pub(super) unpack: fn(tiles: &[u8], tile_bytes: usize, panel: &mut [Line]),
    /// Multiplies a panel.
    pub(super) multiply: Multiply,
}

impl Gemm {
    /// Lines of a panel of so many tiles of so many columns: one for every four columns.
    pub(super) fn panel_lines(&self, tiles: usize, cols: usize) -> usize {
        tiles * cols.next_multiple_of(self.columns) / 4
    }
}

/// Products of one layout by one instruction set. All give the same integers.
pub(crate) struct TernaryKernel {
    pub(crate) name: &'static str,
    pub(crate) layout: &'static Layout,
    pub(crate) isa: Isa,
    pub(super) gemv: Gemv,
    pub(super) gemm: Gemm,
}

/// Best first.
pub(super) static TABLE: &[TernaryKernel] = &[
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "base3-amx",
        layout: &BASE3,
        isa: Isa::Amx,
        gemv: base3::avx512::gemv,
        gemm: Gemm { unpack: base3::avx512::unpack_amx, ..amx::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel { name: "tile2-amx", layout: &TILE2, isa: Isa::Amx, gemv: avx512::gemv, gemm: amx::GEMM },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "i2_s-amx",
        layout: &I2_S,
        isa: Isa::Amx,
        gemv: i2_s::avx512::gemv,
        gemm: Gemm { unpack: i2_s::avx512::unpack_amx, ..amx::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "tl2-amx",
        layout: &TL2,
        isa: Isa::Amx,
        gemv: tl2::avx512::gemv,
        gemm: Gemm { unpack: tl2::avx512::unpack_amx, ..amx::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "base3-avx512",
        layout: &BASE3,
        isa: Isa::Avx512Vbmi,
        gemv: base3::avx512::gemv,
        gemm: Gemm { unpack: base3::avx512::unpack, ..avx512::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "tile2-avx512",
        layout: &TILE2,
        isa: Isa::Avx512,
        gemv: avx512::gemv,
        gemm: avx512::GEMM,
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "i2_s-avx512",
        layout: &I2_S,
        isa: Isa::Avx512,
        gemv: i2_s::avx512::gemv,
        gemm: Gemm { unpack: i2_s::avx512::unpack, ..avx512::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "tl2-avx512",
        layout: &TL2,
        isa: Isa::Avx512Vbmi,
        gemv: tl2::avx512::gemv,
        gemm: Gemm { unpack: tl2::avx512::unpack, ..avx512::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "tile2-avx512bw",
        layout: &TILE2,
        isa: Isa::Avx512Bw,
        gemv: avx512bw::gemv,
        gemm: avx512bw::GEMM,
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "tile2-avxvnni",
        layout: &TILE2,
        isa: Isa::AvxVnni,
        gemv: avxvnni::gemv,
        gemm: avxvnni::GEMM,
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel { name: "tile2-avx2", layout: &TILE2, isa: Isa::Avx2, gemv: avx2::gemv, gemm: avx2::GEMM },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "base3-avx2",
        layout: &BASE3,
        isa: Isa::Avx2,
        gemv: base3::avx2::gemv,
        gemm: Gemm { unpack: base3::avx2::unpack, ..avx2::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "i2_s-avx2",
        layout: &I2_S,
        isa: Isa::Avx2,
        gemv: i2_s::avx2::gemv,
        gemm: Gemm { unpack: i2_s::avx2::unpack, ..avx2::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "tl1-avx2",
        layout: &TL1,
        isa: Isa::Avx2,
        gemv: tl1::avx2::gemv,
        gemm: Gemm { unpack: tl1::avx2::unpack, ..avx2::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel {
        name: "tl2-avx2",
        layout: &TL2,
        isa: Isa::Avx2,
        gemv: tl2::avx2::gemv,
        gemm: Gemm { unpack: tl2::avx2::unpack, ..avx2::GEMM },
    },
    #[cfg(target_arch = "x86_64")]
    TernaryKernel { name: "tile2-sse", layout: &TILE2, isa: Isa::Sse, gemv: sse::gemv, gemm: sse::GEMM },
    #[cfg(target_arch = "aarch64")]
    TernaryKernel {
        name: "tile2-i8mm",
        layout: &TILE2,
        isa: Isa::I8mm,
        gemv: dotprod::gemv,
        gemm: i8mm::GEMM,
    },
    #[cfg(target_arch = "aarch64")]
    TernaryKernel {
        name: "tile2-dotprod",
        layout: &TILE2,
        isa: Isa::Dotprod,
        gemv: dotprod::gemv,
        gemm: dotprod::GEMM,
    },
    #[cfg(target_arch = "aarch64")]
    TernaryKernel { name: "tile2-neon", layout: &TILE2, isa: Isa::Neon, gemv: neon::gemv, gemm: neon::GEMM },
    #[cfg(target_arch = "aarch64")]
    TernaryKernel {
        name: "base3-dotprod",
        layout: &BASE3,
        isa: Isa::Dotprod,
        gemv: base3::dotprod::gemv,
        gemm: Gemm { unpack: base3::neon::unpack, ..dotprod::GEMM },
    },
    #[cfg(target_arch = "aarch64")]
    TernaryKernel {
        name: "base3-neon",
        layout: &BASE3,
        isa: Isa::Neon,
        gemv: base3::neon::gemv,
        gemm: Gemm { unpack: base3::neon::unpack, ..neon::GEMM },
    },
    #[cfg(target_arch = "aarch64")]
    TernaryKernel {
        name: "tl1-neon",
        layout: &TL1,
        isa: Isa::Neon,
        gemv: tl1::neon::gemv,
        gemm: Gemm { unpack: tl1::neon::unpack, ..neon::GEMM },
    },
    TernaryKernel {
        name: "tile2-scalar",
        layout: &TILE2,
        isa: Isa::Scalar,
        gemv: scalar::gemv,
        gemm: scalar::GEMM,
    },
    TernaryKernel {
        name: "base3-scalar",
        layout: &BASE3,
        isa: Isa::Scalar,
        gemv: base3::gemv,
        gemm: Gemm { unpack: base3::unpack, ..scalar::GEMM },
    },
    TernaryKernel {
        name: "i2_s-scalar",
        layout: &I2_S,
        isa: Isa::Scalar,
        gemv: i2_s::gemv,
        gemm: Gemm { unpack: i2_s::unpack, ..scalar::GEMM },
    },
    TernaryKernel {
        name: "tl1-scalar",
        layout: &TL1,
        isa: Isa::Scalar,
        gemv: tl1::gemv,
        gemm: Gemm { unpack: tl1::unpack, ..scalar::GEMM },
    },
    TernaryKernel {
        name: "tl2-scalar",
        layout: &TL2,
        isa: Isa::Scalar,
        gemv: tl2::gemv,
        gemm: Gemm { unpack: tl2::unpack, ..scalar::GEMM },
    },
];

/// A row of the table of ternary kernels: a weight layout and the instructions that multiply it.
#[derive(Clone, Copy)]
pub struct Kernel(pub(crate) &'static TernaryKernel);

impl Kernel {
    /// Every kernel of this build, best first.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(Self)
    }

    /// The kernels that run on this processor, best first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::all().filter(|k| k.is_available())
    }

    /// The best kernel of an instruction set.
    pub(crate) fn of(isa: Isa) -> Self {
        Self::all().find(|k| isa.includes(k.isa())).expect("the scalar kernel runs everywhere")
    }

    /// The kernel for what this one's layout cannot do, which is two bits a trit: scales for groups of columns, and
    /// activations that are not quantized.
    pub(crate) fn general(self) -> Self {
        let isa = self.isa();
        Self::all()
            .find(|k| std::ptr::eq(k.0.layout, &TILE2) && isa.includes(k.isa()))
            .expect("the scalar kernel runs everywhere")
    }

    /// The name on the command line: layout and instruction set.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// The instruction set it needs.
    pub fn isa(self) -> Isa {
        self.0.isa
    }

    /// The layout of its weights.
    pub(crate) fn layout(self) -> &'static Layout {
        self.0.layout
    }

    /// `out[tile][row] = sum of code * q` for the tiles of `range`, which lie tile by tile.
    pub(crate) fn gemv(self, w: &Panels, range: Range<usize>, q: &[i8], out: &mut [[i32; TILE]]) {
        (self.0.gemv)(w.tiles_of(range, &mut []), w.tile_bytes, q, out);
    }

    /// Whether it runs on this processor.
    pub fn is_available(self) -> bool {
        self.isa().is_available()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Kernel {}

/// A name that is no kernel of this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown kernel {name:?}, this processor runs {}", names())]
pub struct UnknownKernel {
    /// What was asked for.
    pub name: String,
}

/// Names of the kernels that this processor runs.
pub(crate) fn names() -> String {
    Kernel::available().map(Kernel::name).collect::<Vec<_>>().join(", ")
}

impl FromStr for Kernel {
    type Err = UnknownKernel;
    fn from_str(name: &str) -> Result<Self, UnknownKernel> {
        Self::all().find(|k| k.name() == name).ok_or_else(|| UnknownKernel { name: name.to_owned() })
    }
}
