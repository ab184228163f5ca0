//! Published shapes.

use super::{Item, Role};

/// Which family a model belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Microsoft's BitNet b1.58 2B-4T.
    BitNet,
    /// 1bitLLM's reproductions.
    OneBitLlm,
    /// Llama with ternary weights.
    Llama,
}

/// Hyper-parameters.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) family: Family,
    pub(super) hidden: usize,
    pub(super) ffn: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab: usize,
    pub(super) context: usize,
    pub(super) theta: f32,
    pub(super) tied: bool,
}

pub(super) static SHAPES: &[Shape] = &[
    Shape {
        name: "2b-4t",
        family: Family::BitNet,
        hidden: 2560,
        ffn: 6912,
        layers: 30,
        heads: 20,
        kv_heads: 5,
        head_dim: 128,
        vocab: 128_256,
        context: 4096,
        theta: 500_000.0,
        tied: true,
    },
    // What instructions are counted on.
    Shape {
        name: "2b-4t-slice",
        family: Family::BitNet,
        hidden: 2560,
        ffn: 6912,
        layers: 2,
        heads: 20,
        kv_heads: 5,
        head_dim: 128,
        vocab: 16_032,
        context: 4096,
        theta: 500_000.0,
        tied: true,
    },
    Shape {
        name: "0.7b",
        family: Family::OneBitLlm,
        hidden: 1536,
        ffn: 4096,
        layers: 24,
        heads: 16,
        kv_heads: 16,
        head_dim: 96,
        vocab: 32_002,
        context: 2048,
        theta: 10_000.0,
        tied: true,
    },
    Shape {
        name: "3b",
        family: Family::OneBitLlm,
        hidden: 3200,
        ffn: 8640,
        layers: 26,
        heads: 32,
        kv_heads: 32,
        head_dim: 100,
        vocab: 32_002,
        context: 2048,
        theta: 10_000.0,
        tied: true,
    },
    Shape {
        name: "8b",
        family: Family::Llama,
        hidden: 4096,
        ffn: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        context: 8192,
        theta: 500_000.0,
        tied: false,
    },
    Shape {
        name: "13b",
        family: Family::Llama,
        hidden: 5120,
        ffn: 13_824,
        layers: 40,
        heads: 40,
        kv_heads: 40,
        head_dim: 128,
        vocab: 32_002,
        context: 4096,
        theta: 10_000.0,
        tied: false,
    },
    Shape {
        name: "70b",
        family: Family::Llama,
        hidden: 8192,
        ffn: 28_672,
        layers: 80,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        context: 8192,
        theta: 500_000.0,
        tied: false,
    },
    Shape {
        name: "tiny",
        family: Family::BitNet,
        hidden: 256,
        ffn: 512,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocab: 1024,
        context: 512,
        theta: 500_000.0,
        tied: true,
    },
];

pub(super) fn find(name: &str) -> Result<&'static Shape, String> {
    let names = || SHAPES.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
    SHAPES.iter().find(|s| s.name == name).ok_or_else(|| format!("known shapes are {}", names()))
}

/// How a container calls the tensors; `{}` is the layer.
pub(super) struct Names {
    pub(super) embedding: &'static str,
    pub(super) final_norm: &'static str,
    pub(super) head: &'static str,
    /// attention norm, q, k, v, sub-norm, o, feed-forward norm, gate, up, sub-norm, down
    pub(super) layer: [&'static str; 11],
}

/// Where a tensor stands, as far as anything depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Embedding,
    FfnNorm { layer: usize },
    Gate,
    FfnSubNorm,
    Elsewhere,
}

impl Shape {
    /// Deviation of embedding and head: logits then have one of a few units, so that sampling has something to choose from.
    pub(super) fn table_deviation(&self) -> f32 {
        2.5 / (self.hidden as f32).sqrt()
    }

    pub(super) fn sub_norms(&self) -> bool {
        self.family != Family::Llama
    }

    /// Every tensor, in the order of a file.
    pub(super) fn items(&self, names: &Names) -> Vec<Item> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let item =
            |name: &str, role, place, rows, cols| Item { name: name.to_owned(), role, place, rows, cols };
        let mut items = vec![item(names.embedding, Role::Table, Place::Embedding, self.vocab, self.hidden)];
        for layer in 0..self.layers {
            let parts = [
                (Role::Norm, Place::Elsewhere, 1, self.hidden),
                (Role::Projection, Place::Elsewhere, q, self.hidden),
                (Role::Projection, Place::Elsewhere, kv, self.hidden),
                (Role::Projection, Place::Elsewhere, kv, self.hidden),
                (Role::Norm, Place::Elsewhere, 1, q),
                (Role::Residual, Place::Elsewhere, self.hidden, q),
                (Role::Norm, Place::FfnNorm { layer }, 1, self.hidden),
                (Role::Projection, Place::Gate, self.ffn, self.hidden),
                (Role::Projection, Place::Elsewhere, self.ffn, self.hidden),
                (Role::Norm, Place::FfnSubNorm, 1, self.ffn),
                (Role::Residual, Place::Elsewhere, self.hidden, self.ffn),
            ];
            for (i, (role, place, rows, cols)) in parts.into_iter().enumerate() {
                if self.sub_norms() || (i != 4 && i != 9) {
                    items.push(item(
                        &names.layer[i].replace("{}", &layer.to_string()),
                        role,
                        place,
                        rows,
                        cols,
                    ));
                }
            }
        }
        items.push(item(names.final_norm, Role::Norm, Place::Elsewhere, 1, self.hidden));
        if !self.tied {
            items.push(item(names.head, Role::Table, Place::Elsewhere, self.vocab, self.hidden));
        }
        items
    }
}
