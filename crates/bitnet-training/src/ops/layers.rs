//! What layers are made of besides products.

use super::Ops;
use super::array::{Array, View, ViewMut};
use super::tokens::Tokens;
use bitnet_core::{Activation, At, AttentionShape, DeviceNorm, Sequences, Terms};
use bitnet_cpu::{CpuTraining, Norm, QuantizedTokens};
use bitnet_quant::spec::rotate_half;
use std::ops::Range;

impl Ops {
    /// `y = x / rms(x) * w` for every row.
    pub(crate) fn rms_norm<'a>(&self, x: impl Into<View<'a>>, w: View<'_>, eps: f32, y: &mut Array) {
        let x = x.into();
        y.sized(x.len());
        if self.device.is_none() {
            return self.cpu.rms_norm(x.host(), w.host(), eps, y);
        }
        self.try_on(|device, on| {
            let sizes = (x.len() / w.len(), w.len());
            let norm = DeviceNorm { x: x.on(device)?, w: w.on(device)?, sizes, eps };
            on.norm(norm, At::start(y.written_on(device)?));
            Ok(())
        });
    }

    /// See [`CpuTraining::rms_norm_backward`].
    pub(crate) fn rms_norm_backward(
        &self,
        (x, w, eps): (&Array, View<'_>, f32),
        dy: &Array,
        add: bool,
        dx: &mut Array,
        dw: Option<ViewMut<'_>>,
    ) {
        let mut dw = dw;
        if self.device.is_none() {
            let norm = Norm { x, w: w.host(), eps };
            return self.cpu.rms_norm_backward(norm, dy, add, dx, dw.as_mut().map(|dw| dw.host()));
        }
        self.try_on(|device, on| {
            let sizes = (x.len() / w.len(), w.len());
            let norm = DeviceNorm { x: At::start(x.on(device)?), w: w.on(device)?, sizes, eps };
            let dy = At::start(dy.on(device)?);
            let dx = At::start(if add { dx.changed_on(device)? } else { dx.written_on(device)? });
            let dw = dw.as_mut().map(|dw| dw.changed_on(device)).transpose()?;
            on.norm_backward(norm, dy, add, dx, dw);
            Ok(())
        });
    }

    /// Int8 codes of every row of `x [m, k]`.
    pub(crate) fn quantize(&self, x: &Array, k: usize, out: &mut Tokens) {
        if self.device.is_none() {
            self.cpu.quantize(x, k, &mut out.host);
            return self.keep_factors(out);
        }
        let sizes = (x.len() / k, k);
        let (codes, factors) = out.device.get_or_insert_default();
        codes.sized_in_rows(sizes);
        factors.sized(sizes.0);
        self.try_on(|device, on| {
            let (x, stride) = (At::start(x.on(device)?), codes.stride());
            let (codes, factors) = (codes.written_on(device)?, factors.written_on(device)?);
            on.quantize(x, sizes, At::start(codes), stride, At::start(factors));
            Ok(())
        });
    }

    /// Codes that `f` makes on the host.
    pub(crate) fn quantize_with(
        &self,
        k: usize,
        out: &mut Tokens,
        f: impl FnOnce(&CpuTraining, &mut QuantizedTokens),
    ) {
        f(&self.cpu, &mut out.host);
        self.keep_factors(out);
        if self.device.is_none() {
            return;
        }
        let (codes, stride) = out.host.integers();
        let rows = codes.chunks_exact(stride.max(1)).flat_map(|row| &row[..k]).copied().collect();
        out.device = Some((Array::in_rows(rows, k), out.factors.clone()));
    }

    fn keep_factors(&self, out: &mut Tokens) {
        let factors = out.host.factors();
        out.factors.sized(factors.len()).copy_from_slice(factors);
    }

    /// Trits and the scale of master weights by absmean; `false` where the caller has to make them.
    pub(crate) fn absmean(
        &self,
        masters: View<'_>,
        cols: usize,
        codes: &mut Array<i8>,
        scales: &mut Array,
    ) -> bool {
        let sizes = (masters.len() / cols, cols);
        self.try_on(|device, on| {
            codes.sized_in_rows(sizes);
            scales.sized(1);
            let (masters, stride) = (masters.on(device)?, codes.stride());
            let (codes, scales) = (codes.written_on(device)?, scales.written_on(device)?);
            on.absmean(masters, sizes, At::start(codes), stride, At::start(scales));
            Ok(())
        })
    }

    /// Turns queries and keys in rows of `qkv` by the angles of their positions, or back.
    pub(crate) fn rotate(
        &self,
        qkv: &mut Array,
        shape: AttentionShape,
        positions: &[u32],
        (cos, sin): (&Array, &Array),
        back: bool,
    ) {
        let (d, half) = (shape.head_dim, shape.head_dim / 2);
        let turned = (shape.heads + shape.kv_heads) * d;
        if self.device.is_none() {
            let (cos, sin) = (&**cos, &**sin);
            return self.cpu.chunks(qkv, shape.qkv_cols(), &|row, qkv| {
                let at = positions[row] as usize * half;
                let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
                for head in qkv[..turned].chunks_exact_mut(d) {
                    if back {
                        rotate_back(head, cos, sin);
                    } else {
                        rotate_half(head, cos, sin);
                    }
                }
            });
        }
        self.try_on(|device, on| {
            let (cos, sin) = (At::start(cos.on(device)?), At::start(sin.on(device)?));
            on.rotate(At::start(qkv.changed_on(device)?), shape, positions, cos, sin, back);
            Ok(())
        });
    }

    /// See [`CpuTraining::attend`].
    pub(crate) fn attend(
        &self,
        qkv: &Array,
        shape: AttentionShape,
        spans: &[Range<usize>],
        out: &mut Array,
        sums: &mut Array,
    ) {
        let m = qkv.len() / shape.qkv_cols();
        out.sized(m * shape.heads * shape.head_dim);
        sums.sized(m * shape.heads * 2);
        if self.device.is_none() {
            return self.cpu.attend(qkv, shape, spans, out, sums);
        }
        self.try_on(|device, on| {
            let sequences = Sequences { qkv: At::start(qkv.on(device)?), rows: m, shape, spans };
            let (out, sums) = (out.written_on(device)?, sums.written_on(device)?);
            on.attend(sequences, At::start(out), At::start(sums));
            Ok(())
        });
    }

    /// See [`CpuTraining::attend_backward`].
    #[allow(clippy::too_many_arguments, reason = "what went in, what came out, and the gradients of both")]
    pub(crate) fn attend_backward(
        &self,
        qkv: &Array,
        shape: AttentionShape,
        spans: &[Range<usize>],
        (out, sums): (&Array, &Array),
        dout: &Array,
        terms: Terms,
        dqkv: &mut Array,
    ) {
        let m = qkv.len() / shape.qkv_cols();
        dqkv.sized(qkv.len());
        if self.device.is_none() {
            return self.cpu.attend_backward(qkv, shape, spans, (out, sums), dout, terms, dqkv);
        }
        self.try_on(|device, on| {
            let sequences = Sequences { qkv: At::start(qkv.on(device)?), rows: m, shape, spans };
            let gave = (At::start(out.on(device)?), At::start(sums.on(device)?));
            let dout = At::start(dout.on(device)?);
            on.attend_backward(sequences, gave, dout, terms, At::start(dqkv.written_on(device)?));
            Ok(())
        });
    }

    /// `out [m, n] = act(gate) * up` from rows `[gate | up]`.
    pub(crate) fn gate(&self, gate_up: &Array, n: usize, act: Activation, out: &mut Array) {
        out.sized(gate_up.len() / 2);
        if self.device.is_none() {
            return self.cpu.gate(gate_up, n, act, out);
        }
        self.try_on(|device, on| {
            let sizes = (out.len() / n, n);
            on.gate(At::start(gate_up.on(device)?), sizes, act, At::start(out.written_on(device)?));
            Ok(())
        });
    }

    /// The gradients of `gate_up` from those of `out`.
    pub(crate) fn gate_backward(
        &self,
        gate_up: &Array,
        dout: &Array,
        n: usize,
        act: Activation,
        out: &mut Array,
    ) {
        out.sized(gate_up.len());
        if self.device.is_none() {
            return self.cpu.gate_backward(gate_up, dout, n, act, out);
        }
        self.try_on(|device, on| {
            let (gate_up, dout_at) = (At::start(gate_up.on(device)?), At::start(dout.on(device)?));
            let sizes = (dout.len() / n, n);
            on.gate_backward(gate_up, dout_at, sizes, act, At::start(out.written_on(device)?));
            Ok(())
        });
    }

    /// See [`CpuTraining::cross_entropy`].
    pub(crate) fn cross_entropy(
        &self,
        logits: &mut Array,
        targets: &[u32],
        weights: &[f32],
        parts: ViewMut<'_>,
    ) {
        let mut parts = parts;
        if self.device.is_none() {
            return self.cpu.cross_entropy(logits, targets, weights, parts.host());
        }
        let vocab = logits.len() / targets.len().max(1);
        self.try_on(|device, on| {
            let logits = At::start(logits.changed_on(device)?);
            on.cross_entropy(logits, vocab, targets, weights, parts.changed_on(device)?);
            Ok(())
        });
    }
}

/// Undoes [`rotate_half`]; the same is the way back of gradients.
fn rotate_back(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (u, v) = (*a, *b);
        *a = u * c + v * s;
        *b = v * c - u * s;
    }
}
