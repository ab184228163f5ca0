//! Operations on whole rows, and sums over all of a tensor.

use super::recording::{Operand, Recording, a_row_each, strided};
use super::shader::{NORM_ROWS, PART, Shader, THREADS};
use crate::product::word;
use bitnet_core::{At, BackendError, DeviceNorm};

pub(super) fn norm(r: &mut Recording<'_>, norm: DeviceNorm<'_>, y: At<'_>) -> Result<(), BackendError> {
    let (m, n) = norm.sizes;
    if m * n == 0 {
        return Ok(());
    }
    let (x, w, y) = (r.floats(norm.x, m * n)?, r.floats(norm.w, n)?, r.floats(y, m * n)?);
    let params = [word(m), word(n), x.first, w.first, y.first, 0, norm.eps.to_bits(), 0];
    r.run(Shader::Norm, &[&x, &w, &y], &params, a_row_each(m));
    Ok(())
}

pub(super) fn norm_backward(
    r: &mut Recording<'_>,
    norm: DeviceNorm<'_>,
    dy: At<'_>,
    add: bool,
    dx: At<'_>,
    dw: Option<At<'_>>,
) -> Result<(), BackendError> {
    let (m, n) = norm.sizes;
    if m * n == 0 {
        return Ok(());
    }
    let (x, w) = (r.floats(norm.x, m * n)?, r.floats(norm.w, n)?);
    let (dy, dx) = (r.floats(dy, m * n)?, r.floats(dx, m * n)?);
    let (factors, pieces) = (r.scratch(4 * m)?, m.div_ceil(NORM_ROWS));
    let factors = Operand::all(&factors);
    let params = |to: &Operand<'_>| {
        [word(m), word(n), x.first, w.first, to.first, dy.first, norm.eps.to_bits(), u32::from(add)]
    };
    r.run(Shader::NormBackward, &[&x, &w, &dx, &dy, &factors], &params(&dx), a_row_each(m));
    if let Some(dw) = dw {
        let dw = r.floats(dw, n)?;
        let parts = r.scratch(4 * pieces * n)?;
        let parts = Operand::all(&parts);
        let across = n.div_ceil(THREADS);
        let bound = [(0, &x), (3, &dy), (4, &factors), (5, &parts)];
        r.run_bound(Shader::NormWeightParts, &bound, &params(&dw), [across, pieces, 1]);
        r.run_bound(Shader::NormWeight, &[(2, &dw), (5, &parts)], &params(&dw), [across, 1, 1]);
    }
    Ok(())
}

/// Int8 `[rows, stride]`: the operand and the words of a row.
fn codes<'m>(
    r: &Recording<'_>,
    codes: At<'m>,
    rows: usize,
    stride: usize,
) -> Result<(Operand<'m>, usize), BackendError> {
    let codes = r.bytes(codes, rows * stride)?;
    Ok((Operand { first: codes.first / 4, ..codes }, stride / 4))
}

pub(super) fn quantize(
    r: &mut Recording<'_>,
    x: At<'_>,
    (m, k): (usize, usize),
    to: At<'_>,
    stride: usize,
    d: At<'_>,
) -> Result<(), BackendError> {
    if m == 0 {
        return Ok(());
    }
    let (x, d) = (r.floats(x, m * k)?, r.floats(d, m)?);
    let (codes, words) = codes(r, to, m, stride)?;
    let params = [word(m), word(k), x.first, codes.first, word(words), d.first];
    r.run(Shader::Quantize, &[&x, &codes, &d], &params, a_row_each(m));
    Ok(())
}

pub(super) fn absmean(
    r: &mut Recording<'_>,
    masters: At<'_>,
    (rows, cols): (usize, usize),
    to: At<'_>,
    stride: usize,
    scale: At<'_>,
) -> Result<(), BackendError> {
    let n = rows * cols;
    let (masters, scale) = (r.floats(masters, n)?, r.floats(scale, 1)?);
    let (codes, words) = codes(r, to, rows, stride)?;
    let pieces = n.div_ceil(PART);
    let parts = r.scratch(8 * (pieces + 1))?;
    let parts = Operand::all(&parts);
    let params =
        [word(rows), word(cols), word(n), masters.first, codes.first, word(words), scale.first, word(pieces)];
    r.run_bound(Shader::Magnitudes, &[(0, &masters), (1, &parts)], &params, [pieces, 1, 1]);
    r.run_bound(Shader::Mean, &[(1, &parts), (3, &scale)], &params, [1, 1, 1]);
    let bound = [(0, &masters), (1, &parts), (2, &codes)];
    r.run_bound(Shader::Trits, &bound, &params, strided(rows * words));
    Ok(())
}

pub(super) fn cross_entropy(
    r: &mut Recording<'_>,
    logits: At<'_>,
    vocab: usize,
    targets: &[u32],
    weights: &[f32],
    parts: At<'_>,
) -> Result<(), BackendError> {
    let m = targets.len();
    let pairs: Vec<u32> = targets.iter().zip(weights).flat_map(|(id, w)| [*id, w.to_bits()]).collect();
    // As many rows at a time as a binding has room for.
    let most = (r.most() / vocab.max(1)).max(1);
    for first in (0..m).step_by(most) {
        let count = most.min(m - first);
        let logits = r.floats(logits.skip(first * vocab), count * vocab)?;
        let parts = r.floats(parts.skip(3 * first), 3 * count)?;
        let list = r.give(&pairs[2 * first..2 * (first + count)]);
        let params = [word(count), word(vocab), logits.first, parts.first];
        r.run(Shader::CrossEntropy, &[&logits, &parts, &Operand::given(&list)], &params, a_row_each(count));
    }
    Ok(())
}

/// The square root of the sum of squares.
pub(super) fn length(r: &mut Recording<'_>, x: At<'_>, len: usize) -> Result<f64, BackendError> {
    let mut held = Vec::new();
    for (first, n) in r.pieces(len) {
        let x = r.floats(x.skip(first), n)?;
        let (pieces, most) = (n.div_ceil(PART), x.first);
        let parts = r.scratch(8 * pieces)?;
        r.run(Shader::Squares, &[&x, &Operand::all(&parts)], &[word(n), most], [pieces, 1, 1]);
        held.push((parts, 8 * pieces));
    }
    let from: Vec<_> = held.iter().map(|(parts, bytes)| (parts, 0, *bytes)).collect();
    let mut sum = 0.0;
    r.gpu.read(&from, |bytes| {
        for [most, squares] in bytes.as_chunks::<8>().0.iter().map(|part| {
            let [a, b] = [[part[0], part[1], part[2], part[3]], [part[4], part[5], part[6], part[7]]];
            [u32::from_le_bytes(a), u32::from_le_bytes(b)]
        }) {
            sum += part_of_sum(most, squares);
        }
    })?;
    Ok(f64::sqrt(sum))
}

/// A part of a sum of squares, from the bits of the largest magnitude and of the sum that was divided by its power of two.
fn part_of_sum(most: u32, squares: u32) -> f64 {
    let largest = f32::from_bits(most);
    if !largest.is_finite() {
        return f64::from(largest);
    }
    let exponent = (most >> 23).clamp(1, 253) as i32 - 127;
    f64::from(f32::from_bits(squares)) * 2f64.powi(2 * exponent)
}
