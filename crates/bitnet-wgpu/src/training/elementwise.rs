//! Operations on single elements and on copies of rows.

use super::recording::{Operand, Recording, strided};
use super::shader::Shader;
use crate::product::word;
use bitnet_core::{Activation, AdamStep, At, AttentionShape, BackendError, ColumnsOf, SgdStep};
use std::collections::BTreeMap;

pub(super) fn fill(r: &mut Recording<'_>, to: At<'_>, len: usize, value: f32) -> Result<(), BackendError> {
    for (first, n) in r.pieces(len) {
        let to = r.floats(to.skip(first), n)?;
        let params = [word(n), 0, 0, to.first, value.to_bits(), 0, 0];
        r.run(Shader::Fill, &[&to], &params, strided(n));
    }
    Ok(())
}

/// The factors of a sum and its operands.
pub(super) struct Mix<'m> {
    pub(super) x: At<'m>,
    pub(super) a: f32,
    pub(super) y: At<'m>,
    pub(super) b: f32,
    pub(super) to: At<'m>,
}

pub(super) fn mix(r: &mut Recording<'_>, mix: &Mix<'_>, len: usize) -> Result<(), BackendError> {
    let Mix { x, a, y, b, to } = mix;
    let is_place = |at: &At<'_>| std::ptr::eq(at.memory, to.memory) && at.first == to.first;
    let (in_x, in_y) = (is_place(x), is_place(y));
    let (a, b) = match (in_x, in_y) {
        // Where both are the result's place, their sum is a multiple of it.
        (true, true) => (a + b, 0.0),
        _ => (*a, *b),
    };
    let place = if in_x { 1 } else { u32::from(in_y) * 2 };
    for (first, n) in r.pieces(len) {
        let x = if in_x || a == 0.0 { r.nothing() } else { r.floats(x.skip(first), n)? };
        let y = if in_y || b == 0.0 { r.nothing() } else { r.floats(y.skip(first), n)? };
        let to = r.floats(to.skip(first), n)?;
        let params = [word(n), x.first, y.first, to.first, a.to_bits(), b.to_bits(), place];
        r.run(Shader::Mix, &[&to, &x, &y], &params, strided(n));
    }
    Ok(())
}

pub(super) fn columns(
    r: &mut Recording<'_>,
    from: ColumnsOf<'_>,
    to: ColumnsOf<'_>,
    rows: usize,
    count: usize,
) -> Result<(), BackendError> {
    let n = rows * count;
    if n == 0 {
        return Ok(());
    }
    let of = |c: ColumnsOf<'_>| (c.at.first + c.first, (rows - 1) * c.stride + count);
    let ((from_first, from_len), (to_first, to_len)) = (of(from), of(to));
    let source = r.floats(At { first: from_first, ..from.at }, from_len)?;
    let target = r.floats(At { first: to_first, ..to.at }, to_len)?;
    let params = [word(n), word(count), target.first, word(to.stride), source.first, word(from.stride), 0];
    r.run(Shader::Columns, &[&target, &source], &params, strided(n));
    Ok(())
}

/// The rows of a table from the first to the last that is meant, `[.., n]`, and the number of the first.
fn rows_of<'m>(
    r: &Recording<'_>,
    table: At<'m>,
    ids: &[u32],
    n: usize,
) -> Result<(Operand<'m>, u32), BackendError> {
    let (lowest, highest) = ids.iter().fold((u32::MAX, 0), |(low, high), id| (low.min(*id), high.max(*id)));
    let rows = (highest - lowest) as usize + 1;
    Ok((r.floats(table.skip(lowest as usize * n), rows * n)?, lowest))
}

pub(super) fn gather(
    r: &mut Recording<'_>,
    table: At<'_>,
    ids: &[u32],
    n: usize,
    to: At<'_>,
) -> Result<(), BackendError> {
    let len = ids.len() * n;
    if len == 0 {
        return Ok(());
    }
    let (table, lowest) = rows_of(r, table, ids, n)?;
    let to = r.floats(to, len)?;
    let list = r.give(&ids.iter().map(|id| id - lowest).collect::<Vec<_>>());
    let params = [word(len), word(n), to.first, word(n), table.first, word(n), 0];
    r.run(Shader::Gather, &[&to, &table, &Operand::given(&list)], &params, strided(len));
    Ok(())
}

pub(super) fn scatter(
    r: &mut Recording<'_>,
    from: At<'_>,
    ids: &[u32],
    n: usize,
    table: At<'_>,
) -> Result<(), BackendError> {
    if ids.is_empty() || n == 0 {
        return Ok(());
    }
    let (table, lowest) = rows_of(r, table, ids, n)?;
    let from = r.floats(from, ids.len() * n)?;
    let mut rows: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (row, id) in (0..).zip(ids) {
        rows.entry(id - lowest).or_default().push(row);
    }
    let mut list: Vec<u32> = rows.keys().copied().collect();
    let mut begin = 0;
    for rows in rows.values() {
        list.push(begin);
        begin += word(rows.len());
    }
    list.push(begin);
    list.extend(rows.values().flatten());
    let list = r.give(&list);
    let len = rows.len() * n;
    let params = [word(len), word(n), table.first, word(n), from.first, word(n), word(rows.len())];
    r.run(Shader::Scatter, &[&table, &from, &Operand::given(&list)], &params, strided(len));
    Ok(())
}

pub(super) fn rotate(
    r: &mut Recording<'_>,
    qkv: At<'_>,
    shape: AttentionShape,
    positions: &[u32],
    (cos, sin): (At<'_>, At<'_>),
    back: bool,
) -> Result<(), BackendError> {
    let (half, heads) = (shape.head_dim / 2, shape.heads + shape.kv_heads);
    let n = positions.len() * heads * half;
    if n == 0 {
        return Ok(());
    }
    let angles = (positions.iter().max().map_or(0, |p| *p as usize) + 1) * half;
    let qkv = r.floats(qkv, positions.len() * shape.qkv_cols())?;
    let (cos, sin) = (r.floats(cos, angles)?, r.floats(sin, angles)?);
    let positions = r.give(positions);
    let sense = if back { -1.0f32 } else { 1.0 };
    let params = [
        word(n),
        word(heads),
        word(half),
        word(shape.qkv_cols()),
        qkv.first,
        cos.first,
        sin.first,
        sense.to_bits(),
    ];
    r.run(Shader::Rotate, &[&qkv, &cos, &sin, &Operand::given(&positions)], &params, strided(n));
    Ok(())
}

pub(super) fn gate(
    r: &mut Recording<'_>,
    gate_up: At<'_>,
    (m, n): (usize, usize),
    act: Activation,
    out: At<'_>,
) -> Result<(), BackendError> {
    if m * n == 0 {
        return Ok(());
    }
    let (x, to) = (r.floats(gate_up, 2 * m * n)?, r.floats(out, m * n)?);
    let params = [word(m * n), word(n), x.first, 0, to.first];
    r.run(Shader::Gate(act), &[&to, &x], &params, strided(m * n));
    Ok(())
}

pub(super) fn gate_backward(
    r: &mut Recording<'_>,
    (gate_up, dout): (At<'_>, At<'_>),
    (m, n): (usize, usize),
    act: Activation,
    out: At<'_>,
) -> Result<(), BackendError> {
    if m * n == 0 {
        return Ok(());
    }
    let (x, dy) = (r.floats(gate_up, 2 * m * n)?, r.floats(dout, m * n)?);
    let to = r.floats(out, 2 * m * n)?;
    let params = [word(m * n), word(n), x.first, dy.first, to.first];
    r.run(Shader::GateBackward(act), &[&to, &x, &dy], &params, strided(m * n));
    Ok(())
}

pub(super) fn adam(r: &mut Recording<'_>, step: &AdamStep<'_>) -> Result<(), BackendError> {
    for (first, n) in r.pieces(step.len) {
        let [p, gradient, m, v] =
            [step.p, step.gradient, step.m, step.v].map(|at| r.floats(at.skip(first), n));
        let (p, gradient, m, v) = (p?, gradient?, m?, v?);
        let mut params = vec![word(n), p.first, gradient.first, m.first, v.first];
        let factors = [step.scale, step.keep, step.step, step.pull, step.root];
        let shares = [step.first.0, step.first.1, step.second.0, step.second.1, step.eps];
        params.extend(factors.into_iter().chain(shares).map(f32::to_bits));
        r.run(Shader::Adam, &[&p, &gradient, &m, &v], &params, strided(n));
    }
    Ok(())
}

pub(super) fn sgd(r: &mut Recording<'_>, step: &SgdStep<'_>) -> Result<(), BackendError> {
    for (first, n) in r.pieces(step.len) {
        let [p, gradient, buffer] =
            [step.p, step.gradient, step.buffer].map(|at| r.floats(at.skip(first), n));
        let (p, gradient, buffer) = (p?, gradient?, buffer?);
        let mut params = vec![word(n), p.first, gradient.first, buffer.first, 0];
        let ahead = f32::from(u8::from(step.nesterov));
        let factors = [step.scale, step.keep, step.rate, 0.0, 0.0, step.momentum, ahead, 0.0, 0.0, 0.0];
        params.extend(factors.map(f32::to_bits));
        r.run(Shader::Sgd, &[&p, &gradient, &buffer], &params, strided(n));
    }
    Ok(())
}
