//! Rotation, cache and attention against the specification.

use super::attend;
use crate::kernels::rope::rope_append;
use crate::kv::KvCache;
use crate::memory::alone;
use crate::testing::{Noise, for_each_isa_and_pool};
use bitnet_core::{AttentionShape, KV_BLOCK, KvSpan, KvSpec, KvType, RopeRows};
use bitnet_quant::spec;
use half::{bf16, f16};

/// A head as the cache holds it.
fn rounded(ty: KvType, x: &[f32]) -> Vec<f32> {
    let each = |f: fn(f32) -> f32| x.iter().map(|x| f(*x)).collect();
    match ty {
        KvType::F32 => x.to_vec(),
        KvType::F16 => each(|x| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32()),
        KvType::BF16 => each(|x| bf16::from_f32(x).to_f32()),
        KvType::Q8_0 => {
            let block = |x: &[f32]| -> Vec<f32> {
                let mut q = vec![0; x.len()];
                let scale = spec::quantize_q8(x, &mut q).to_f32();
                q.iter().map(|q| f32::from(*q) * scale).collect()
            };
            x.chunks(32).flat_map(block).collect()
        }
    }
}

/// Feeds `n` positions in steps of `step` and compares every output. Blocks lie in another order than positions, and a second
/// sequence with the same tokens, shorter by a block, rides along.
fn check(shape: AttentionShape, ty: KvType, n: usize, step: usize) {
    check_window(shape, (ty, ty), n, step, None);
}

fn check_window(
    shape: AttentionShape,
    types: (KvType, KvType),
    n: usize,
    step: usize,
    window: Option<usize>,
) {
    let (key, value) = types;
    let (d, cols) = (shape.head_dim, shape.qkv_cols());
    let mut noise = Noise((n + step) as u32);
    let mut qkv = noise.floats(n * cols, 2.0);
    qkv[cols - 1] = 1e6;
    let inv = spec::inverse_frequencies(10_000.0, d);
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    (0..n as u32).for_each(|p| spec::rope_angles(p, &inv, 1.0, &mut cos, &mut sin));
    let mut rotated = qkv.clone();
    for (p, row) in rotated.chunks_mut(cols).enumerate() {
        for head in row.chunks_mut(d).take(shape.heads + shape.kv_heads) {
            spec::rotate_half(head, &cos[p * d / 2..][..d / 2], &sin[p * d / 2..][..d / 2]);
        }
    }
    let first_value = shape.heads + shape.kv_heads;
    let heads = rotated.chunks(d).enumerate();
    let of = |i: usize| if i % (cols / d) < first_value { key } else { value };
    let cached: Vec<f32> = heads.flat_map(|(i, head)| rounded(of(i), head)).collect();
    for_each_isa_and_pool(|isa, pool| {
        let blocks = n.div_ceil(KV_BLOCK) as u32;
        let spec = KvSpec { layers: 2, shape, capacity: 2 * n.next_multiple_of(KV_BLOCK), key, value };
        let (here, there): (Vec<u32>, Vec<u32>) =
            ((0..blocks).rev().map(|b| 2 * b).collect(), (0..blocks).map(|b| 2 * b + 1).collect());
        let mut cache = KvCache::new(pool.memory(), spec).unwrap();
        for start in (0..n).step_by(step) {
            let end = n.min(start + step);
            let spans = [
                KvSpan { start, len: end - start, blocks: &here },
                KvSpan {
                    start,
                    len: end.min(n.saturating_sub(KV_BLOCK)).saturating_sub(start),
                    blocks: &there,
                },
            ];
            let spans = &spans[..1 + usize::from(spans[1].len > 0)];
            let positions = || spans.iter().flat_map(|s| s.start..s.end());
            let angles = |all: &[f32]| -> Vec<f32> {
                positions().flat_map(|p| all[p * d / 2..][..d / 2].to_vec()).collect()
            };
            let rope = RopeRows { cos: &angles(&cos), sin: &angles(&sin) };
            let mut rows: Vec<f32> = positions().flat_map(|p| qkv[p * cols..][..cols].to_vec()).collect();
            let mut out = vec![f32::NAN; rows.len() / cols * shape.heads * d];
            alone(pool.memory(), |scratch| {
                rope_append(pool, &mut rows, rope, &mut cache, 1, spans, scratch)?;
                attend(isa, pool, &rows, &cache, 1, (spans, window), scratch, &mut out)
            });
            let positions: Vec<usize> = positions().collect();
            for (i, got) in out.chunks(d).enumerate() {
                let (p, head) = (positions[i / shape.heads], i % shape.heads);
                let group = head / (shape.heads / shape.kv_heads);
                let mut want = vec![0.0; d];
                let at = |p: usize, h: usize| &cached[p * cols + h * d..][..d];
                spec::attend_head(
                    &rotated[p * cols + head * d..][..d],
                    (p + 1).saturating_sub(window.unwrap_or(usize::MAX))..p + 1,
                    |p| at(p, shape.heads + group),
                    |p| at(p, shape.heads + shape.kv_heads + group),
                    &mut want,
                );
                assert_eq!(got, want, "{isa} {types:?} position {p} head {head}");
            }
        }
    });
}

#[test]
fn equals_the_specification() {
    let shape = |heads, kv_heads, head_dim| AttentionShape { heads, kv_heads, head_dim };
    for ty in [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0] {
        check(shape(4, 2, 32), ty, 37, 5);
        check(shape(2, 1, 100), ty, 19, 19);
    }
    check(shape(1, 1, 136), KvType::F16, 17, 1);
    check(shape(1, 1, 16), KvType::F16, 530, 300);
    check(shape(2, 1, 80), KvType::Q8_0, 270, 90);
    // Steps of one token and a few past the first segment; groups of queries that do not fill a block; prefill in blocks.
    check(shape(6, 2, 40), KvType::BF16, 263, 1);
    check(shape(5, 1, 72), KvType::F16, 521, 3);
    check(shape(4, 1, 64), KvType::F32, 530, 263);
}

#[test]
fn mixed_types_equal_the_specification() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 48 };
    check_window(shape, (KvType::Q8_0, KvType::F16), 300, 1, None);
    check_window(shape, (KvType::F32, KvType::Q8_0), 270, 100, Some(150));
}

#[test]
fn a_window_equals_the_specification() {
    let shape = |heads, kv_heads, head_dim| AttentionShape { heads, kv_heads, head_dim };
    // Windows within a block, across blocks and segments, and of more than there is; alone, in prefill, and shared out by segments.
    for window in [1, 7, 64, 200, 300, 5000] {
        check_window(shape(2, 1, 32), (KvType::F16, KvType::F16), 330, 83, Some(window));
    }
    check_window(shape(6, 2, 40), (KvType::Q8_0, KvType::Q8_0), 300, 1, Some(100));
    check_window(shape(5, 1, 72), (KvType::F16, KvType::F16), 850, 3, Some(513));
}
