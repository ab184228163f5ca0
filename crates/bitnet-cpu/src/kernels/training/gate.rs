//! The way back through gated activations.

use crate::Isa;
use crate::kernels::norm::padded;
use crate::pool::Pool;
use crate::simd::{Kernel, Lanes, dispatch};
use bitnet_core::Activation;
use bitnet_quant::spec::{GELU_CUBE, GELU_SLOPE};

struct Row<'a> {
    /// `[gate | up]`, `[2 n]`.
    gate_up: &'a [f32],
    dout: &'a [f32],
    act: Activation,
    /// `[gate | up]`, `[2 n]`.
    out: &'a mut [f32],
}

/// The activation of a gate, and its slope.
#[inline(always)]
fn slope<L: Lanes>(l: L, act: Activation, g: L::F) -> (L::F, L::F) {
    let (zero, one) = (l.splat(0.0), l.splat(1.0));
    match act {
        Activation::Relu2 => {
            let t = l.max(g, zero);
            (l.mul(t, t), l.add(t, t))
        }
        Activation::Silu => {
            let sigmoid = l.div(one, l.add(one, l.exp(l.sub(zero, g))));
            let rest = l.fma(g, l.sub(one, sigmoid), one);
            (l.mul(g, sigmoid), l.mul(sigmoid, rest))
        }
        Activation::Gelu => {
            let square = l.mul(g, g);
            let c = l.fma(l.mul(square, l.splat(GELU_CUBE)), g, g);
            let sigmoid = l.div(one, l.add(one, l.exp(l.sub(zero, l.mul(c, l.splat(GELU_SLOPE))))));
            let steep = l.mul(l.fma(square, l.splat(3.0 * GELU_CUBE), one), l.splat(GELU_SLOPE));
            let rest = l.fma(l.mul(g, l.sub(one, sigmoid)), steep, one);
            (l.mul(g, sigmoid), l.mul(sigmoid, rest))
        }
    }
}

impl Kernel for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let n = self.dout.len();
        let (gate, up) = self.gate_up.split_at(n);
        let (dgate, dup) = self.out.split_at_mut(n);
        let out = dgate.chunks_mut(16).zip(dup.chunks_mut(16));
        for (((g, u), d), (dgate, dup)) in
            gate.chunks(16).zip(up.chunks(16)).zip(self.dout.chunks(16)).zip(out)
        {
            let (g, u, d) = (l.load(&padded(g)), l.load(&padded(u)), l.load(&padded(d)));
            let (value, slope) = slope(l, self.act, g);
            let mut lanes = [0.0; 16];
            l.store(l.mul(l.mul(slope, u), d), &mut lanes);
            dgate.copy_from_slice(&lanes[..dgate.len()]);
            l.store(l.mul(value, d), &mut lanes);
            dup.copy_from_slice(&lanes[..dup.len()]);
        }
    }
}

/// `out [m, 2n]`, the gradients of `gate_up [m, 2n]`, from `dout [m, n]`, those of `act(gate) * up`.
pub(crate) fn backward(
    isa: Isa,
    pool: &Pool,
    gate_up: &[f32],
    dout: &[f32],
    n: usize,
    act: Activation,
    out: &mut [f32],
) {
    pool.chunks_mut(out, 2 * n, &|row, out| {
        dispatch(
            isa,
            Row { gate_up: &gate_up[row * 2 * n..][..2 * n], dout: &dout[row * n..][..n], act, out },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, for_each_isa_and_pool};

    #[test]
    fn is_the_slope() {
        for_each_isa_and_pool(|isa, pool| {
            for act in [Activation::Relu2, Activation::Silu, Activation::Gelu] {
                let (m, n) = (2, 21);
                let (x, dout) = (Noise(1).floats(m * 2 * n, 3.0), Noise(2).floats(m * n, 1.0));
                let mut got = vec![0.0; m * 2 * n];
                backward(isa, pool, &x, &dout, n, act, &mut got);
                let value = |g: f64, u: f64| match act {
                    Activation::Relu2 => g.max(0.0).powi(2) * u,
                    Activation::Silu => g / (1.0 + (-g).exp()) * u,
                    Activation::Gelu => {
                        let c = g + 0.044715 * g * g * g;
                        g / (1.0 + (-c * 2.0 * (2.0 / std::f64::consts::PI).sqrt()).exp()) * u
                    }
                };
                for (i, d) in dout.iter().enumerate() {
                    let at = i / n * 2 * n + i % n;
                    let (g, u, d) = (f64::from(x[at]), f64::from(x[at + n]), f64::from(*d));
                    let h = 1e-6;
                    let dg = (value(g + h, u) - value(g - h, u)) / (2.0 * h) * d;
                    let du = value(g, 1.0) * d;
                    for (got, want) in [(got[at], dg), (got[at + n], du)] {
                        assert!((f64::from(got) - want).abs() < 2e-5, "{isa} {act:?} {g} {u}: {got} {want}");
                    }
                }
            }
        });
    }
}
