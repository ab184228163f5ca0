//! Where the keys and values of sequences lie: in blocks of [`KV_BLOCK`] positions that any sequence may hold.

/// Element type of the key and value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types, reason = "the names say it")]
pub enum KvType {
    F32,
    F16,
    BF16,
    /// Eight bits, and an f16 scale for each 32 elements of a head.
    Q8_0,
}

impl KvType {
    /// Bytes that a head of `head_dim` elements takes; what a backend fills up with is not counted.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 | Self::BF16 => 2 * head_dim,
            Self::Q8_0 => head_dim + 2 * head_dim.div_ceil(32),
        }
    }
}

/// Heads and their size. `q` rows are `[heads * head_dim]`, `k` and `v` rows `[kv_heads * head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `j` reads kv head `j / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Width of the stacked `q, k, v` row.
    pub fn qkv_cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Positions that a block of the cache holds.
pub const KV_BLOCK: usize = 64;

/// What a key-value cache has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Transformer layers.
    pub layers: usize,
    /// Heads and their size.
    pub shape: AttentionShape,
    /// Positions of all sequences, rounded up to whole blocks.
    pub capacity: usize,
    /// Type of keys.
    pub key: KvType,
    /// Type of values.
    pub value: KvType,
}

impl KvSpec {
    /// Blocks of the cache.
    pub fn blocks(&self) -> usize {
        self.capacity.div_ceil(KV_BLOCK)
    }
}

/// Consecutive tokens of one sequence in a step, and where the sequence lies in the cache.
#[derive(Clone, Copy, Debug)]
pub struct KvSpan<'a> {
    /// Position of the first token.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// The blocks that hold the sequence's positions, in their order.
    pub blocks: &'a [u32],
}

impl KvSpan<'_> {
    /// Positions of the sequence behind this step.
    pub fn end(&self) -> usize {
        self.start + self.len
    }

    /// Where a position of the sequence lies, counted from the beginning of the cache.
    pub fn slot(&self, position: usize) -> usize {
        self.blocks[position / KV_BLOCK] as usize * KV_BLOCK + position % KV_BLOCK
    }
}
