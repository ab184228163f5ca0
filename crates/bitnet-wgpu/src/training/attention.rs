//! Causal attention of whole sequences, and the way back.

use super::recording::{MAX_GROUPS, Operand, Recording, SUBMISSION, strided};
use super::shader::{BLOCK, CHUNK, Shader};
use crate::product::word;
use bitnet_core::{At, BackendError, Sequences, Terms};

/// Pairs of rows times elements of heads for which a dispatch counts as one.
const WORK: usize = 1 << 26;

/// For each 32 rows of a sequence its first row, the one behind its last, and the first of these; as many together as take no longer than a
/// submission should, when the work of all is this.
fn blocks(s: &Sequences<'_>, work: usize) -> Vec<Vec<u32>> {
    let of_span = |first: usize, end: usize| {
        (first..end).step_by(BLOCK).flat_map(move |row| [first, end, row, 0].map(word))
    };
    let list: Vec<u32> = s.spans.iter().flat_map(|span| of_span(span.start, span.end)).collect();
    let at_once = (list.len() / 4).div_ceil(work / SUBMISSION + 1);
    list.chunks(4 * at_once.clamp(1, MAX_GROUPS)).map(<[u32]>::to_vec).collect()
}

/// Dispatches that a pass through all pairs of rows is worth.
fn work(s: &Sequences<'_>) -> usize {
    let pairs: usize = s.spans.iter().map(|span| span.len() * span.len()).sum();
    pairs.saturating_mul(s.shape.heads * s.shape.head_dim) / WORK
}

fn is_nothing(s: &Sequences<'_>) -> bool {
    s.spans.iter().all(|span| span.is_empty()) || s.shape.qkv_cols() == 0
}

fn params(s: &Sequences<'_>, places: [u32; 5]) -> Vec<u32> {
    let sizes = [s.shape.heads, s.shape.kv_heads, s.shape.head_dim].map(word);
    let scale = 1.0 / (s.shape.head_dim as f32).sqrt();
    sizes.into_iter().chain([scale.to_bits()]).chain(places).collect()
}

pub(super) fn attend(
    r: &mut Recording<'_>,
    s: &Sequences<'_>,
    out: At<'_>,
    sums: At<'_>,
) -> Result<(), BackendError> {
    if is_nothing(s) {
        return Ok(());
    }
    let (m, heads, d) = (s.rows, s.shape.heads, s.shape.head_dim);
    let qkv = r.floats(s.qkv, m * s.shape.qkv_cols())?;
    let (out, sums) = (r.floats(out, m * heads * d)?, r.floats(sums, 2 * m * heads)?);
    let params = params(s, [qkv.first, out.first, sums.first, 0, 0]);
    let work = work(s);
    let lists = blocks(s, work);
    for list in &lists {
        let blocks = r.give(list);
        let groups = [list.len() / 4, heads, d.div_ceil(CHUNK)];
        r.run(Shader::Attend, &[&qkv, &Operand::given(&blocks), &out, &sums], &params, groups);
        *r.work += work / lists.len();
        r.send_when_much();
    }
    Ok(())
}

pub(super) fn attend_backward(
    r: &mut Recording<'_>,
    s: &Sequences<'_>,
    (out, sums): (At<'_>, At<'_>),
    dout: At<'_>,
    terms: Terms,
    dqkv: At<'_>,
) -> Result<(), BackendError> {
    if is_nothing(s) {
        return Ok(());
    }
    let (m, heads, d) = (s.rows, s.shape.heads, s.shape.head_dim);
    let (qkv, dqkv) = (r.floats(s.qkv, m * s.shape.qkv_cols())?, r.floats(dqkv, m * s.shape.qkv_cols())?);
    let (out, dout) = (r.floats(out, m * heads * d)?, r.floats(dout, m * heads * d)?);
    let sums = r.floats(sums, 2 * m * heads)?;
    let means = r.scratch(4 * m * heads)?;
    let means = Operand::all(&means);
    let sizes = [word(m * heads), word(d), out.first, dout.first];
    r.run(Shader::AttendMeans, &[&out, &dout, &means], &sizes, strided(m * heads));

    let params = params(s, [qkv.first, 0, sums.first, dout.first, dqkv.first]);
    let (bf16, chunks) = (terms == Terms::Bf16, d.div_ceil(CHUNK));
    let work = 3 * work(s);
    let lists = blocks(s, work);
    for list in &lists {
        let (blocks, count) = (r.give(list), list.len() / 4);
        let operands = [&qkv, &Operand::given(&blocks), &dout, &sums, &means, &dqkv];
        r.run(Shader::AttendQueries(bf16), &operands, &params, [count, heads, chunks]);
        r.run(Shader::AttendKeys(bf16), &operands, &params, [count, s.shape.kv_heads, chunks]);
        *r.work += work / lists.len();
        r.send_when_much();
    }
    Ok(())
}
