//! Norms of heads of q and k, before they are rotated (Qwen3).

use super::Model;
use super::forward::sized;

impl Model {
    /// Norms every head of q and k in rows of `qkv`; `before` keeps them as they were.
    pub(super) fn norm_heads(
        &self,
        (q_norm, k_norm): (usize, usize),
        qkv: &mut [f32],
        before: &mut (Vec<f32>, Vec<f32>),
        room: &mut Vec<f32>,
    ) {
        let (q, k) = self.head_columns();
        for (norm, (first, len), kept) in [(q_norm, q, &mut before.0), (k_norm, k, &mut before.1)] {
            self.gather(qkv, first, len, kept);
            let normed = sized(room, kept.len());
            self.ops.rms_norm(kept, self.value(norm), self.config.eps, normed);
            self.scatter(normed, first, len, qkv);
        }
    }

    /// Gradients of heads behind the norms become those of heads before them; those of the norms are added.
    pub(super) fn norm_heads_backward(
        &mut self,
        (q_norm, k_norm): (usize, usize),
        before: &(Vec<f32>, Vec<f32>),
        dqkv: &mut [f32],
        room: &mut Vec<f32>,
    ) {
        let (q, k) = self.head_columns();
        let mut dy = Vec::new();
        for (norm, (first, len), x) in [(q_norm, q, &before.0), (k_norm, k, &before.1)] {
            self.gather(dqkv, first, len, &mut dy);
            let dx = sized(room, x.len());
            self.norm_backward(norm, x, self.config.eps, &dy, false, dx);
            self.scatter(dx, first, len, dqkv);
        }
    }

    /// Where heads of q and of k lie in a row: the first column and how many there are.
    fn head_columns(&self) -> ((usize, usize), (usize, usize)) {
        let shape = self.shape();
        let (q, k) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        ((0, q), (q, k))
    }

    /// Some columns of `qkv`, row after row.
    fn gather(&self, qkv: &[f32], first: usize, len: usize, out: &mut Vec<f32>) {
        let cols = self.shape().qkv_cols();
        self.ops.chunks(sized(out, qkv.len() / cols * len), len, &|row, out| {
            out.copy_from_slice(&qkv[row * cols + first..][..len]);
        });
    }

    fn scatter(&self, from: &[f32], first: usize, len: usize, qkv: &mut [f32]) {
        self.ops.chunks(qkv, self.shape().qkv_cols(), &|row, qkv| {
            qkv[first..first + len].copy_from_slice(&from[row * len..][..len]);
        });
    }
}
