//! What a file's float projections and scales mean.

/// What becomes of projections that the file stores as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masters {
    /// One magnitude a tensor: ternary with that scale; else absmean.
    Absmean,
    /// One magnitude a tensor: ternary with that scale; else dense.
    Dense,
    /// Always absmean, as transformers' online mode quantizes.
    Online,
}

/// What a `weight_scale` tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleMeaning {
    /// `weight = trit * scale`: transformers' `AutoBitLinear`.
    Multiplier,
    /// `weight = trit / scale`: transformers' `BitLinear`, its default.
    Divisor,
}
