//! Where a step's tokens lie in their sequences, and how attention is cut into launches.

use crate::CudaBackend;
use crate::backend::bytes_of_floats;
use crate::driver::Launch;
use crate::gpu::Gpu;
use crate::kernels::CacheKernels;
use crate::kv::{CudaKv, head_bytes};
use crate::tensor::CudaTensor;
use bitnet_core::{KV_BLOCK, KvSpan, RopeRows};
use bitnet_quant::spec::SEGMENT;

/// Bytes that segments of attention may take before they are merged.
const PARTIAL_BYTES: usize = 128 << 20;
/// Up to so many heads of all tokens and segments, each has a block of its own.
const SINGLE: usize = 1024;

/// What kernels were told about a step's tokens: addresses.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sent {
    /// For each token its position, and where the blocks of its sequence begin in `tables`.
    pub(crate) places: u64,
    pub(crate) tables: u64,
    /// Segments of the longest sequence, rounded up so that graphs of steps stay the same for a while.
    segments: usize,
}

/// The tokens of a step are the same in all layers: they are sent once.
#[derive(Default)]
pub(crate) struct SentPlaces {
    generation: u64,
    /// The spans, as numbers.
    spans: Vec<u32>,
    sent: Sent,
    /// Tiles of all tokens: of sequences with one, and of those with several.
    tiles: Tiles,
}

/// Tiles of sequences with one token in the step, and of those with several: the rows that each has, how many there are, and where.
type Tiles = [(usize, usize, u64); 2];

/// Cosines and sines of a step: those of layers with a window may be others than those without.
#[derive(Default)]
pub(crate) struct SentRope {
    generation: u64,
    known: Vec<KnownRope>,
}

struct KnownRope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    sent: (u64, u64),
}

impl SentRope {
    /// Addresses of cosines and sines.
    pub(crate) fn send(&mut self, gpu: &Gpu, rope: RopeRows<'_>) -> (u64, u64) {
        if self.generation != gpu.generation() {
            self.known.clear();
        }
        if let Some(known) = self.known.iter().find(|known| known.cos == rope.cos && known.sin == rope.sin) {
            return known.sent;
        }
        let sent = (gpu.upload(&bytes_of_floats(rope.cos)), gpu.upload(&bytes_of_floats(rope.sin)));
        if self.generation != gpu.generation() {
            self.generation = gpu.generation();
            self.known.clear();
            // The first of them may have gone with what was sent before.
            return self.send(gpu, rope);
        }
        self.known.push(KnownRope { cos: rope.cos.to_vec(), sin: rope.sin.to_vec(), sent });
        sent
    }
}

/// Numbers are below 2^32: they count what is in memory, in larger pieces than bytes.
pub(crate) fn word(n: usize) -> u32 {
    n as u32
}

pub(crate) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl SentPlaces {
    pub(crate) fn send(&mut self, gpu: &Gpu, kv: &CudaKv, spans: &[KvSpan<'_>]) -> &Sent {
        let numbers = spans.iter().flat_map(|s| {
            let head = [word(s.start), word(s.len)];
            head.into_iter().chain(s.blocks[..s.end().div_ceil(KV_BLOCK)].iter().copied())
        });
        if self.generation == gpu.generation() && self.spans.iter().copied().eq(numbers.clone()) {
            return &self.sent;
        }
        self.spans = numbers.collect();
        let longest = spans.iter().map(|s| s.end().div_ceil(SEGMENT)).max().unwrap_or(0);
        let segments = longest.next_power_of_two();
        let m: usize = spans.iter().map(|s| s.len).sum();
        let (mut places, mut tables) = (Vec::with_capacity(2 * m), Vec::new());
        for span in spans {
            let table = word(tables.len());
            places.extend((span.start..span.end()).flat_map(|position| [word(position), table]));
            let begin = tables.len();
            tables.extend_from_slice(&span.blocks[..span.end().div_ceil(KV_BLOCK)]);
            tables.resize(begin + segments * (SEGMENT / KV_BLOCK), 0);
        }
        let pieces = pieces(spans, segments);
        loop {
            self.generation = gpu.generation();
            let sent = Sent {
                places: gpu.upload(&bytes_of(&places)),
                tables: gpu.upload(&bytes_of(&tables)),
                segments,
            };
            self.sent = sent;
            self.tiles = send_tiles(gpu, kv, &pieces, segments);
            // Where there was no room, what was sent before is gone.
            if self.generation == gpu.generation() {
                return &self.sent;
            }
        }
    }
}

/// Words of a tile.
const TILE_WORDS: usize = 5;

fn send_tiles(gpu: &Gpu, kv: &CudaKv, pieces: &[Piece], segments: usize) -> Tiles {
    let group = kv.spec.shape.heads / kv.spec.shape.kv_heads;
    let singles = pieces.iter().filter(|p| p.tokens == 1).count();
    let single = match singles * kv.spec.shape.heads * segments <= SINGLE {
        true => kv.kernels.single,
        false => kv.kernels.batched,
    };
    [(single.rows, false), (kv.kernels.several.rows, true)].map(|(rows, several)| {
        let of_kind = pieces.iter().filter(|p| (p.tokens > 1) == several);
        let tiles = of_kind.flat_map(|p| {
            let first = (0..p.tokens * group).step_by(rows);
            first.flat_map(|row| [p.token, p.position, p.tokens, p.table, row].map(word))
        });
        let tiles: Vec<u32> = tiles.collect();
        (rows, tiles.len() / TILE_WORDS, gpu.upload(&bytes_of(&tiles)))
    })
}

/// Bytes that a block of attention shares, without values and with them.
fn shared(kv: &CudaKv, rows: usize) -> (usize, usize) {
    let d = kv.spec.shape.head_dim;
    let own = 4 * (rows * (d + SEGMENT) + d + 2 * rows.next_multiple_of(4));
    (own, own + SEGMENT * head_bytes(kv.spec.value, d))
}

/// Neighbouring tokens of a sequence: the first one in the step, its position, their number, and where the table begins.
#[derive(Clone, Copy)]
struct Piece {
    token: usize,
    position: usize,
    tokens: usize,
    table: usize,
}

impl CudaBackend {
    pub(crate) fn attention(
        &self,
        qkv: &CudaTensor,
        kv: &CudaKv,
        layer: usize,
        (spans, window): (&[KvSpan<'_>], Option<usize>),
        (partials, sent): (&mut CudaTensor, &mut SentPlaces),
        out: &CudaTensor,
    ) {
        let (gpu, shape) = (&self.gpu, kv.spec.shape);
        let Sent { places, tables, segments } = *sent.send(gpu, kv, spans);
        let window = window.map_or(u32::MAX, word);
        let rotates = gpu.take_rotation((qkv.address(), kv.keys[layer].address()));
        let rope = qkv.rope.filter(|_| rotates);
        if segments <= 1 {
            let launch = Attend { qkv, kv, layer, tables, segments, window, parts: 0, out, base: 0, rope };
            return self.attend_tiles(&sent.tiles, &launch);
        }
        let each = shape.heads * segments * (shape.head_dim + 2);
        let at_once = qkv.rows.min(PARTIAL_BYTES / (4 * each)).max(1);
        partials.shape(gpu, at_once, each);
        let parts = partials.address();
        let (mut rest, mut base) = (pieces(spans, segments), 0);
        while !rest.is_empty() {
            let own = take(&mut rest, at_once);
            let tokens: usize = own.iter().map(|p| p.tokens).sum();
            let tiles = match tokens == qkv.rows {
                true => sent.tiles,
                false => send_tiles(gpu, kv, &own, segments),
            };
            let launch = Attend { qkv, kv, layer, tables, segments, window, parts, out, base, rope };
            self.attend_tiles(&tiles, &launch);
            let sizes = [shape.heads, shape.head_dim, segments].map(|n| n as u64);
            let addresses = [parts, out.address(), places];
            let rest = [u64::from(window), base as u64, tokens as u64];
            let params: Vec<u64> = addresses.into_iter().chain(sizes).chain(rest).collect();
            gpu.run(gpu.kernels.merge, [(shape.heads * tokens).div_ceil(8), 1, 1], 256, 0, &params);
            base += tokens;
        }
    }

    fn attend_tiles(&self, tiles: &Tiles, a: &Attend<'_>) {
        let (gpu, spec) = (&self.gpu, a.kv.spec);
        let shape = spec.shape;
        let kernels = &a.kv.kernels;
        for (several, (rows, count, tiles)) in [false, true].into_iter().zip(*tiles) {
            if count == 0 {
                continue;
            }
            let single = if rows == kernels.single.rows { kernels.single } else { kernels.batched };
            let of = if several { kernels.several } else { single };
            let (own, with_values) = shared(a.kv, rows);
            let staged = with_values <= gpu.driver.max_shared().saturating_sub(STATIC);
            let addresses = [
                a.qkv.address(),
                tiles,
                a.tables,
                a.kv.keys[a.layer].address(),
                a.kv.values[a.layer].address(),
                a.parts,
                a.out.address(),
            ];
            let sizes = [shape.heads, shape.kv_heads, shape.head_dim, a.segments].map(|n| n as u64);
            let factor = 1.0 / (shape.head_dim as f32).sqrt();
            let rest = [u64::from(a.window), u64::from(factor.to_bits()), a.base as u64, u64::from(staged)];
            let (cosines, sines) = a.rope.unwrap_or_default();
            let params: Vec<u64> =
                addresses.into_iter().chain(sizes).chain(rest).chain([cosines, sines]).collect();
            let bytes = if staged { with_values } else { own };
            let grid = [a.segments, shape.kv_heads, count];
            match (a.rope, of.roped) {
                (Some(_), Some(roped)) => {
                    gpu.run_rotating(Launch::new(roped, grid, 256, bytes, &params), grid);
                }
                _ => gpu.run(of.plain, grid, 256, bytes, &params),
            }
        }
    }

    /// Whether attention can append keys and values of these spans itself.
    pub(crate) fn attention_rotates(&self, kv: &CudaKv, spans: &[KvSpan<'_>]) -> bool {
        let CacheKernels { single, batched, .. } = &kv.kernels;
        spans.iter().all(|s| s.len == 1)
            && single.roped.is_some()
            && batched.roped.is_some()
            && shared(kv, batched.rows).1 <= self.gpu.driver.max_shared().saturating_sub(STATIC)
    }
}

/// Bytes that blocks of attention share besides, at most.
const STATIC: usize = 1024;

/// What launches of attention have in common.
struct Attend<'a> {
    qkv: &'a CudaTensor,
    kv: &'a CudaKv,
    layer: usize,
    tables: u64,
    segments: usize,
    window: u32,
    parts: u64,
    out: &'a CudaTensor,
    base: usize,
    /// Cosines and sines, where queries are not rotated and keys and values are not in the cache yet.
    rope: Option<(u64, u64)>,
}

fn pieces(spans: &[KvSpan<'_>], segments: usize) -> Vec<Piece> {
    let (mut token, mut pieces) = (0, Vec::with_capacity(spans.len()));
    for (number, span) in spans.iter().enumerate() {
        let table = number * segments * (SEGMENT / KV_BLOCK);
        pieces.push(Piece { token, position: span.start, tokens: span.len, table });
        token += span.len;
    }
    pieces
}

/// Takes pieces of so many tokens off the front, cutting one if need be.
fn take(rest: &mut Vec<Piece>, tokens: usize) -> Vec<Piece> {
    let (mut left, mut own) = (tokens, Vec::new());
    while let Some(piece) = rest.first_mut().filter(|_| left > 0) {
        let n = piece.tokens.min(left);
        own.push(Piece { tokens: n, ..*piece });
        left -= n;
        if n == piece.tokens {
            rest.remove(0);
        } else {
            (piece.token, piece.position, piece.tokens) =
                (piece.token + n, piece.position + n, piece.tokens - n);
        }
    }
    own
}
