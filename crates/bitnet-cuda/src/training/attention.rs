//! Attention of whole sequences, and the way back.

use super::stream::{Stream, bits};
use super::words;
use crate::memory::Buffer;
use bitnet_core::{At, AttentionShape, BackendError, Sequences, Terms};

/// Rows of a tile, and the positions and queries that it meets at a time (`kernels/training_attention.cu`).
const TILE: usize = 32;
const SEGMENT: usize = 256;
const QUERIES: usize = 64;
/// Elements between two barriers, how far apart columns of weights lie, and elements of a head that are summed together.
const STEP: usize = 16;
const PITCH: usize = TILE + 4;
const ELEMENTS: usize = 128;
/// How far apart rows of pairs of bf16 lie, and the most elements of a head that is multiplied so.
const PAIR_PITCH: usize = 20;
const MOST_ELEMENTS: usize = 256;
const THREADS: u32 = 256;

/// Floats that products of a tile with so many rows need.
const fn dots(rows: usize) -> usize {
    STEP * (PITCH + rows + 1)
}

/// Words of what is multiplied as pairs of bf16, with so many columns; heads have no more elements then.
const fn pairs(columns: usize) -> usize {
    let rows = if TILE + columns > MOST_ELEMENTS { TILE + columns } else { MOST_ELEMENTS };
    let (pairs, floats) = (rows * PAIR_PITCH, dots(columns));
    if pairs > floats { pairs } else { floats }
}

/// Bytes that blocks share which have a tile of queries, or of keys.
fn shared(d: usize) -> (usize, usize) {
    let queries = SEGMENT * PITCH + dots(SEGMENT) + TILE * d;
    let keys = 2 * QUERIES * PITCH + dots(QUERIES).max(STEP * ELEMENTS) + 2 * TILE * d;
    (queries * 4, keys * 4)
}

/// The same with terms of bf16.
fn shared_pairs() -> (usize, usize) {
    let queries = SEGMENT * PITCH + TILE * (SEGMENT / 2 + 4) + pairs(SEGMENT);
    let keys = QUERIES * PITCH + 2 * TILE * (QUERIES / 2 + 4) + pairs(QUERIES);
    (queries * 4, keys * 4)
}

/// Tiles of all sequences: the first row of the sequence, its length, the first row of the tile in it.
fn tiles(s: &Stream, sequences: &Sequences<'_>) -> Option<(Buffer, usize)> {
    let Sequences { rows, shape, spans, .. } = *sequences;
    let (mut end, mut tiles) = (0, Vec::new());
    for span in spans {
        assert!(
            end <= span.start && span.start <= span.end && span.end <= rows,
            "sequences overlap or lie outside"
        );
        end = span.end;
        let of = |first: usize| [span.start as u32, span.len() as u32, first as u32, 0];
        tiles.extend((0..span.len()).step_by(TILE).map(of));
    }
    let (queries, keys) = shared(shape.head_dim);
    if queries.max(keys) > s.driver.max_shared() {
        s.fail(BackendError::Unsupported {
            backend: "cuda",
            what: format!("attention of heads of {} elements in training", shape.head_dim),
            hint: "heads of up to 256 elements fit every GPU",
        });
        return None;
    }
    Some((s.given(&words(tiles.as_flattened()))?, tiles.len()))
}

/// What kernels are told of heads.
fn heads(shape: AttentionShape) -> [u64; 4] {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    [heads as u64, kv_heads as u64, head_dim as u64, bits(1.0 / (head_dim as f32).sqrt())]
}

pub(super) fn attend(s: &Stream, sequences: Sequences<'_>, out: At<'_>, sums: At<'_>) {
    let Sequences { qkv, rows, shape, .. } = sequences;
    let qkv = s.floats(qkv, rows * shape.qkv_cols());
    let (out, sums) =
        (s.floats(out, rows * shape.heads * shape.head_dim), s.floats(sums, rows * shape.heads * 2));
    let Some((tiles, count)) = tiles(s, &sequences) else { return };
    let params = [&[qkv, tiles.address(), out, sums], &heads(shape)[..]].concat();
    s.run(s.kernels.train_attend, [count, shape.heads, 1], THREADS, shared(shape.head_dim).0, &params);
}

pub(super) fn attend_backward(
    s: &Stream,
    sequences: Sequences<'_>,
    (out, sums): (At<'_>, At<'_>),
    dout: At<'_>,
    terms: Terms,
    dqkv: At<'_>,
) {
    let Sequences { qkv, rows, shape, .. } = sequences;
    let (cols, wide, owners) = (shape.qkv_cols(), shape.heads * shape.head_dim, rows * shape.heads);
    let (qkv, dqkv) = (s.floats(qkv, rows * cols), s.floats(dqkv, rows * cols));
    let (out, dout, sums) =
        (s.floats(out, rows * wide), s.floats(dout, rows * wide), s.floats(sums, owners * 2));
    let Some((tiles, count)) = tiles(s, &sequences) else { return };
    let Some(means) = s.room(owners * 4) else { return };
    let k = &s.kernels;
    let params = [means.address(), out, dout, owners as u64, shape.head_dim as u64];
    s.run(k.train_attend_means, [owners.div_ceil(16), 1, 1], THREADS, 0, &params);
    // Larger heads than tensor cores are given have f32 terms in any case.
    let (queries, keys, (of_queries, of_keys)) = match terms {
        Terms::Bf16 if shape.head_dim <= MOST_ELEMENTS => {
            (k.train_attend_back_queries_bf16, k.train_attend_back_keys_bf16, shared_pairs())
        }
        _ => (k.train_attend_back_queries, k.train_attend_back_keys, shared(shape.head_dim)),
    };
    let params = [&[qkv, tiles.address(), sums, means.address(), dout, dqkv], &heads(shape)[..]].concat();
    s.run(queries, [count, shape.heads, 1], THREADS, of_queries, &params);
    s.run(keys, [count, shape.kv_heads, 1], THREADS, of_keys, &params);
}
