//! Rotation, cache and attention against the specification.

use super::{Partials, attend};
use crate::kernels::rope::rope_append;
use crate::kv::KvCache;
use crate::testing::{Noise, for_each_isa_and_pool};
use bitnet_core::{AttentionShape, KvSpec, KvType, RopeRows};
use bitnet_quant::spec;
use half::{bf16, f16};

fn rounded(ty: KvType, x: f32) -> f32 {
    match ty {
        KvType::F32 => x,
        KvType::F16 => f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32(),
        KvType::BF16 => bf16::from_f32(x).to_f32(),
    }
}

/// Feeds `n` positions in steps of `step` and compares every output.
fn check(shape: AttentionShape, ty: KvType, n: usize, step: usize) {
    let (d, cols) = (shape.head_dim, shape.qkv_cols());
    let mut noise = Noise((n + step) as u32);
    let mut qkv = noise.floats(n * cols, 2.0);
    qkv[cols - 1] = 1e6;
    let inv = spec::inverse_frequencies(10_000.0, d);
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    (0..n as u32).for_each(|p| spec::rope_angles(p, &inv, &mut cos, &mut sin));
    let mut rotated = qkv.clone();
    for (p, row) in rotated.chunks_mut(cols).enumerate() {
        for head in row.chunks_mut(d).take(shape.heads + shape.kv_heads) {
            spec::rotate_half(head, &cos[p * d / 2..][..d / 2], &sin[p * d / 2..][..d / 2]);
        }
    }
    let cached: Vec<f32> = rotated.iter().map(|x| rounded(ty, *x)).collect();
    for_each_isa_and_pool(|isa, pool| {
        let spec = KvSpec { layers: 1, shape, capacity: n, key: ty, value: ty };
        let mut cache = KvCache::new(spec).unwrap();
        let mut partials = Partials::default();
        for start in (0..n).step_by(step) {
            let end = n.min(start + step);
            let rope = RopeRows { cos: &cos[start * d / 2..], sin: &sin[start * d / 2..] };
            let mut rows = qkv[start * cols..end * cols].to_vec();
            rope_append(isa, pool, &mut rows, rope, &mut cache, 0, start);
            let mut out = vec![f32::NAN; (end - start) * shape.heads * d];
            attend(isa, pool, &rows, &cache, 0, start, &mut partials, &mut out);
            for (i, got) in out.chunks(d).enumerate() {
                let (p, head) = (start + i / shape.heads, i % shape.heads);
                let group = head / (shape.heads / shape.kv_heads);
                let mut want = vec![0.0; d];
                let at = |p: usize, h: usize| &cached[p * cols + h * d..][..d];
                spec::attend_head(
                    &rotated[p * cols + head * d..][..d],
                    p + 1,
                    |p| at(p, shape.heads + group),
                    |p| at(p, shape.heads + shape.kv_heads + group),
                    &mut want,
                );
                assert_eq!(got, want, "{isa} {ty:?} position {p} head {head}");
            }
        }
    });
}

#[test]
fn equals_the_specification() {
    let shape = |heads, kv_heads, head_dim| AttentionShape { heads, kv_heads, head_dim };
    for ty in [KvType::F32, KvType::F16, KvType::BF16] {
        check(shape(4, 2, 32), ty, 37, 5);
        check(shape(2, 1, 100), ty, 19, 19);
    }
    check(shape(1, 1, 136), KvType::F16, 17, 1);
    check(shape(1, 1, 16), KvType::F16, 530, 300);
    // Steps of one token and a few past the first segment; groups of queries that do not fill a block; prefill in blocks.
    check(shape(6, 2, 40), KvType::BF16, 263, 1);
    check(shape(5, 1, 72), KvType::F16, 521, 3);
    check(shape(4, 1, 64), KvType::F32, 530, 263);
}
