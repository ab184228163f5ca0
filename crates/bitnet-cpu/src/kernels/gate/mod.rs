//! Gated activations (rule 9 of `docs/numerics.md`).

use crate::Isa;
use crate::kernels::norm::padded;
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_core::Activation;
use bitnet_quant::spec::{GELU_CUBE, GELU_SLOPE};

/// Outputs that one piece of parallel work makes.
const PIECE: usize = 1024;

/// `out = act(gate) * up`, all of one length.
pub(crate) struct Gate<'a> {
    pub(crate) gate: &'a [f32],
    pub(crate) up: &'a [f32],
    pub(crate) act: Activation,
    pub(crate) out: &'a mut [f32],
}

#[inline(always)]
fn apply<L: Lanes>(l: L, act: Activation, g: L::F, u: L::F) -> L::F {
    match act {
        Activation::Relu2 => {
            let t = l.max(g, l.splat(0.0));
            // The product with +0 may be -0 or, for an infinite `u`, not a number; a closed gate is +0 by rule 9.
            l.zero_unless_positive(t, l.mul(l.mul(t, t), u))
        }
        Activation::Silu => {
            let e = l.exp(l.sub(l.splat(-0.0), g));
            l.mul(l.div(g, l.add(l.splat(1.0), e)), u)
        }
        Activation::Gelu => {
            let c = l.fma(l.mul(l.mul(g, g), l.splat(GELU_CUBE)), g, g);
            let e = l.exp(l.sub(l.splat(-0.0), l.mul(c, l.splat(GELU_SLOPE))));
            l.mul(l.div(g, l.add(l.splat(1.0), e)), u)
        }
    }
}

impl Kernel for Gate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (g_blocks, g_tail) = self.gate.as_chunks::<16>();
        let (u_blocks, u_tail) = self.up.as_chunks::<16>();
        let (o_blocks, o_tail) = self.out.as_chunks_mut::<16>();
        for ((g, u), o) in g_blocks.iter().zip(u_blocks).zip(o_blocks) {
            l.store(apply(l, self.act, l.load(g), l.load(u)), o);
        }
        if !o_tail.is_empty() {
            let mut last = [0.0; 16];
            l.store(apply(l, self.act, l.load(&padded(g_tail)), l.load(&padded(u_tail))), &mut last);
            o_tail.copy_from_slice(&last[..o_tail.len()]);
        }
    }
}

/// `out[m, n] = act(gate) * up` from rows `[gate | up]` of `gate_up [m, 2n]`.
pub(crate) fn gate(isa: Isa, pool: &Pool, gate_up: &[f32], n: usize, act: Activation, out: &mut [f32]) {
    // Pieces never cross a row end: a row is cut into whole pieces only when its length allows it.
    let piece = if n.is_multiple_of(PIECE) { PIECE } else { n };
    pool.chunks_mut(out, piece, &|i, out| {
        let (row, col) = (i * piece / n, i * piece % n);
        let (g, u) = gate_up[row * 2 * n..(row + 1) * 2 * n].split_at(n);
        dispatch(isa, Gate { gate: &g[col..col + piece], up: &u[col..col + piece], act, out });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};
    use bitnet_quant::spec;

    #[test]
    fn equals_the_specification() {
        for_each_isa_and_pool(|isa, pool| {
            for n in [1, 17, 384, 2048] {
                let (m, mut noise) = (2, Noise(n as u32));
                let mut x = noise.floats(m * 2 * n, 30.0);
                x[0] = 0.0;
                x[n / 2] = -0.0;
                for act in [Activation::Relu2, Activation::Silu, Activation::Gelu] {
                    let mut got = vec![f32::NAN; m * n];
                    gate(isa, pool, &x, n, act, &mut got);
                    for (i, got) in got.iter().enumerate() {
                        let (row, col) = (i / n, i % n);
                        let (g, u) = (x[row * 2 * n + col], x[row * 2 * n + n + col]);
                        let want = match act {
                            Activation::Relu2 => spec::gate_relu2(g, u),
                            Activation::Silu => spec::gate_silu(g, u),
                            Activation::Gelu => spec::gate_gelu(g, u),
                        };
                        assert_eq!(got.to_bits(), want.to_bits(), "{isa} {act:?} {g} {u}");
                    }
                }
            }
        });
    }
}
