//! Kernels for fixed sizes: the sources of those that were compiled ahead, compiled once more with a model's sizes as constants, so
//! that the compiler knows how often loops run and what remainders there are. They compute the same, `==`.
//!
//! [`TABLE`] says which kernels there are and which of their parameters are sizes. A launch of such a kernel runs the one for its
//! sizes where that is loaded and wanted ([`crate::Tuning`]); nobody who records launches knows of it.

use crate::driver::{Driver, Function, Launch};
use crate::error::CompileError;
use crate::nvrtc;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// The hash of the kernels' sources.
pub(crate) const SOURCES_HASH: &str = include_str!("../generated/sources.sha256").trim_ascii();

/// What sources include, by the names that they have for it.
const HEADERS: [(&str, &str); 4] = [
    ("device.cuh", include_str!("../kernels/device.cuh")),
    ("norm.cu", include_str!("../kernels/norm.cu")),
    ("ternary.cu", include_str!("../kernels/ternary.cu")),
    ("attention.cu", include_str!("../kernels/attention.cu")),
];

/// A kernel: the file that it is in, what its definition begins with there, and those of its parameters that are sizes.
struct Row {
    kernel: &'static str,
    file: &'static str,
    definition: &'static str,
    sizes: &'static [&'static str],
}

const fn row(
    kernel: &'static str,
    file: &'static str,
    definition: &'static str,
    sizes: &'static [&'static str],
) -> Row {
    Row { kernel, file, definition, sizes }
}

const GEMV: (&str, &str, &[&str]) = ("ternary.cu", "#define GEMV(", &["rows", "tiles", "up", "act"]);
const NORM_GEMV: (&str, &str, &[&str]) =
    ("ternary.cu", "#define NORM_GEMV(", &["cols", "words", "rows", "tiles", "up", "act"]);
const ATTEND: (&str, &str, &[&str]) = ("attention.cu", "#define ATTEND(", &["heads", "kv_heads", "head_dim"]);

/// What a step of one token spends its time on.
static TABLE: [Row; 15] = [
    row("gemv", GEMV.0, GEMV.1, GEMV.2),
    row("gemv_gated", GEMV.0, GEMV.1, GEMV.2),
    row("norm_gemv", NORM_GEMV.0, NORM_GEMV.1, NORM_GEMV.2),
    row("norm_gemv_gated", NORM_GEMV.0, NORM_GEMV.1, NORM_GEMV.2),
    row("rms_norm", "norm.cu", "#define RMS_NORM(", &["cols", "words"]),
    row("merge", "attention.cu", "KERNEL(merge,", &["heads", "head_dim"]),
    row("attend_1_f32_f32", ATTEND.0, ATTEND.1, ATTEND.2),
    row("attend_1_f16_f16", ATTEND.0, ATTEND.1, ATTEND.2),
    row("attend_1_bf16_bf16", ATTEND.0, ATTEND.1, ATTEND.2),
    row("rope_attend_1_f32_f32", ATTEND.0, ATTEND.1, ATTEND.2),
    row("rope_attend_1_f16_f16", ATTEND.0, ATTEND.1, ATTEND.2),
    row("rope_attend_1_bf16_bf16", ATTEND.0, ATTEND.1, ATTEND.2),
    row("rope_attend_4_f32_f32", ATTEND.0, ATTEND.1, ATTEND.2),
    row("rope_attend_4_f16_f16", ATTEND.0, ATTEND.1, ATTEND.2),
    row("rope_attend_4_bf16_bf16", ATTEND.0, ATTEND.1, ATTEND.2),
];

impl Row {
    /// Where its sizes stand among its parameters; `None`, its source has no such parameters.
    fn places(&self) -> Option<Vec<usize>> {
        let (_, source) = HEADERS.iter().find(|(name, _)| *name == self.file)?;
        let names = parameters(source, self.definition)?;
        self.sizes.iter().map(|size| names.iter().position(|name| name == size)).collect()
    }
}

/// Names of the parameters of the kernel that is defined behind `definition`.
fn parameters<'a>(source: &'a str, definition: &str) -> Option<Vec<&'a str>> {
    let from = &source[source.find(definition)?..];
    let head = &from[from.find("KERNEL(")?..];
    let head = &head[..head.find('{')?];
    let inner = &head[head.rfind('(')? + 1..head.rfind(')')?];
    let last = |parameter: &'a str| {
        parameter.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').find(|word| !word.is_empty())
    };
    inner.split(',').map(last).collect()
}

/// A kernel for fixed sizes. Its text is its name and its sizes: `gemv rows=2560 tiles=54 up=0 act=0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FixedKernel {
    kernel: &'static str,
    /// In the order of the table.
    sizes: Vec<u32>,
}

impl FixedKernel {
    fn row(&self) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.kernel == self.kernel)
    }

    /// Its machine code, of the compiler that is found at run time.
    pub(crate) fn compile(&self, architecture: &str) -> Result<Vec<u8>, CompileError> {
        let row = self.row().ok_or_else(|| CompileError::Failed { why: format!("no kernel {self}") })?;
        let sizes = row.sizes.iter().zip(&self.sizes).map(|(name, value)| format!("{name} = {value}u; "));
        let options = [
            "-DFIXED".to_owned(),
            format!("-DONLY_{}=,", self.kernel),
            format!("-DFIXED_SIZES={}", sizes.collect::<String>()),
        ];
        nvrtc::compile(&format!("#include \"{}\"\n", row.file), &HEADERS, architecture, &options)
    }
}

impl fmt::Display for FixedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kernel)?;
        let names = self.row().map_or(&[][..], |row| row.sizes);
        names.iter().zip(&self.sizes).try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// No kernel for fixed sizes has such a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no kernel for fixed sizes")]
pub struct UnknownKernel {
    text: String,
}

impl FromStr for FixedKernel {
    type Err = UnknownKernel;

    fn from_str(text: &str) -> Result<Self, UnknownKernel> {
        let read = || {
            let mut words = text.split(' ');
            let name = words.next()?;
            let row = TABLE.iter().find(|row| row.kernel == name)?;
            let size = |size: &&str| words.next()?.strip_prefix(*size)?.strip_prefix('=')?.parse().ok();
            let sizes = row.sizes.iter().map(size).collect::<Option<Vec<u32>>>()?;
            words.next().is_none().then_some(Self { kernel: row.kernel, sizes })
        };
        // One text for each kernel: leading zeros and signs are none.
        read()
            .filter(|kernel| kernel.to_string() == text)
            .ok_or_else(|| UnknownKernel { text: text.to_owned() })
    }
}

/// What a device has loaded of them.
#[derive(Default)]
pub(crate) struct Loaded {
    /// The version of the tuning that this is of.
    version: u64,
    /// The table's kernels by their handles, with the places of their sizes.
    rows: HashMap<Function, (&'static str, Vec<usize>)>,
    functions: HashMap<FixedKernel, Option<Function>>,
    wanted: Vec<FixedKernel>,
}

impl Loaded {
    /// Loads what the tuning wants since it was last asked; true where launches run other kernels from here on.
    pub(crate) fn refresh(&mut self, driver: &Driver, tuning: &crate::Tuning) -> bool {
        let version = tuning.version();
        if self.version == version {
            return false;
        }
        self.version = version;
        self.wanted.clear();
        for (kernel, image) in tuning.images(&driver.details().architecture()) {
            // Code that the driver does not take is left alone: what was compiled ahead does the same.
            let load = || driver.load_function(&image, kernel.kernel).ok();
            if self.functions.entry(kernel.clone()).or_insert_with(load).is_some() {
                self.wanted.push(kernel);
            }
        }
        true
    }

    /// The launches with kernels for their sizes, where there are such.
    pub(crate) fn of<'a>(&mut self, driver: &Driver, launches: &'a [Launch]) -> Cow<'a, [Launch]> {
        if self.wanted.is_empty() {
            return Cow::Borrowed(launches);
        }
        let fixed = |launch: &Launch| {
            let function = self.kernel_of(driver, launch).filter(|kernel| self.wanted.contains(kernel));
            let function = function.and_then(|kernel| self.functions.get(&kernel).copied().flatten());
            function.map_or(*launch, |function| launch.with(function))
        };
        launches.iter().map(fixed).collect()
    }

    /// The kernels for fixed sizes that these launches could run.
    pub(crate) fn candidates(&mut self, driver: &Driver, launches: &[Launch]) -> Vec<FixedKernel> {
        launches.iter().filter_map(|launch| self.kernel_of(driver, launch)).collect()
    }

    fn kernel_of(&mut self, driver: &Driver, launch: &Launch) -> Option<FixedKernel> {
        let (kernel, places) = self.rows.entry(launch.function()).or_insert_with(|| {
            let row = TABLE.iter().find(|row| Some(row.kernel) == driver.name(launch.function()));
            row.and_then(|row| Some((row.kernel, row.places()?))).unwrap_or_default()
        });
        let size = |place: &usize| u32::try_from(launch.param(*place)?).ok();
        let sizes = places.iter().map(size).collect::<Option<Vec<u32>>>()?;
        (!kernel.is_empty()).then_some(FixedKernel { kernel, sizes })
    }
}

#[cfg(test)]
mod tests;
