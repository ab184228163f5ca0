//! Norms of heads of q and k, before they are rotated (Qwen3).

use super::Model;
use crate::Array;

impl Model {
    /// Norms every head of q and k in rows of `qkv`; `before` keeps them as they were.
    pub(super) fn norm_heads(
        &self,
        (q_norm, k_norm): (usize, usize),
        qkv: &mut Array,
        before: &mut (Array, Array),
        room: &mut Array,
    ) {
        let (q, k) = self.head_columns();
        let cols = self.shape().qkv_cols();
        for (norm, columns, kept) in [(q_norm, q, &mut before.0), (k_norm, k, &mut before.1)] {
            self.ops.take_columns(qkv, cols, columns, kept);
            self.ops.rms_norm(&*kept, self.value(norm), self.config.eps, room);
            self.ops.put_columns(room, columns, qkv, cols);
        }
    }

    /// Gradients of heads behind the norms become those of heads before them; those of the norms are added.
    pub(super) fn norm_heads_backward(
        &mut self,
        (q_norm, k_norm): (usize, usize),
        before: &(Array, Array),
        dqkv: &mut Array,
        room: &mut Array,
    ) {
        let (q, k) = self.head_columns();
        let (mut dy, cols) = (Array::default(), self.shape().qkv_cols());
        for (norm, columns, x) in [(q_norm, q, &before.0), (k_norm, k, &before.1)] {
            self.ops.take_columns(dqkv, cols, columns, &mut dy);
            let dx = room.sized(x.len());
            self.norm_backward(norm, x, self.config.eps, &dy, false, dx);
            self.ops.put_columns(dx, columns, dqkv, cols);
        }
    }

    /// Where heads of q and of k lie in a row: the first column and how many there are.
    fn head_columns(&self) -> ((usize, usize), (usize, usize)) {
        let shape = self.shape();
        let (q, k) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        ((0, q), (q, k))
    }
}
