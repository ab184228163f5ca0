//! The transformer.

use crate::low_rank::Adapters;
use crate::rope_table::RopeTable;
use crate::{
    Adapter, AdapterUse, Decoder, LoadReport, ModelConfig, ModelError, Role, Rows, Span, Stage, StepOutput,
};
use bitnet_core::{Backend, BackendError, KV_BLOCK, KvSpan, KvSpec, Logits, LogitsNeed, OperationTime};
use bitnet_memory::{DeviceMemory, Pool};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

/// Projections that share their input; their products lie side by side.
pub(crate) enum Projections<B: Backend> {
    /// One product.
    Stacked(B::Weight),
    /// Each has a norm of its own before it, with this epsilon.
    Normed(f32, Vec<(B::Vector, B::Weight)>),
}

impl<B: Backend> Projections<B> {
    fn apply(&self, b: &B, x: &B::Tensor, room: &mut Room<B>, out: &mut B::Tensor) {
        match self {
            Self::Stacked(w) => b.linear(x, w, out),
            Self::Normed(eps, parts) => {
                room.parts.resize_with(parts.len(), || b.tensor());
                for ((norm, w), part) in parts.iter().zip(&mut room.parts) {
                    b.rms_norm(x, norm, *eps, &mut room.normed);
                    b.linear(&room.normed, w, part);
                }
                b.join(&room.parts, out);
            }
        }
    }
}

/// What norms beside the usual ones need.
struct Room<B: Backend> {
    normed: B::Tensor,
    parts: Vec<B::Tensor>,
}

/// One layer's weights.
pub(crate) struct Layer<B: Backend> {
    pub(crate) attn_norm: B::Vector,
    pub(crate) qkv: Projections<B>,
    pub(crate) qk_norms: Option<(B::Vector, B::Vector)>,
    pub(crate) attn_sub_norm: Option<B::Vector>,
    pub(crate) o: Projections<B>,
    pub(crate) attn_post_norm: Option<B::Vector>,
    pub(crate) ffn_norm: B::Vector,
    pub(crate) gate_up: Projections<B>,
    pub(crate) ffn_sub_norm: Option<B::Vector>,
    pub(crate) down: Projections<B>,
    pub(crate) ffn_post_norm: Option<B::Vector>,
}

/// What is behind the last layer.
pub(crate) struct End<B: Backend> {
    pub(crate) norm: B::Vector,
    /// `None`: the embedding is the head.
    pub(crate) head: Option<B::Weight>,
}

/// Weights of a model, or of some of its layers.
pub(crate) struct Weights<B: Backend> {
    /// With the first layer.
    pub(crate) embedding: Option<B::Weight>,
    /// Which of the model's layers these are.
    pub(crate) range: Range<usize>,
    pub(crate) layers: Vec<Layer<B>>,
    /// With the last layer.
    pub(crate) end: Option<End<B>>,
}

/// Activations of a step.
struct Activations<B: Backend> {
    /// The residual stream, `[m, hidden]`.
    h: B::Tensor,
    /// Input of a product.
    x: B::Tensor,
    /// Output of a product.
    y: B::Tensor,
    /// A wide product: stacked q, k, v or gate and up.
    wide: B::Tensor,
    room: Room<B>,
}

/// What a forward pass is asked for besides filling the cache, and where it goes.
struct Wanted<'a> {
    /// Numbers of the tokens whose logits are wanted, ascending.
    rows: &'a [usize],
    /// Which logits are enough for each of them.
    needs: &'a [LogitsNeed],
    logits: &'a mut Logits,
    /// Numbers of the tokens whose states behind the final norm are wanted, ascending.
    state_rows: &'a [usize],
    states: &'a mut Vec<f32>,
    /// One buffer a stage; empty where none is wanted.
    hidden: &'a mut [Vec<f32>],
}

/// A model on a backend, with its cache; or some of its layers, as a [`Stage`] of a [`crate::Pipeline`].
pub struct Transformer<B: Backend> {
    backend: Arc<B>,
    config: ModelConfig,
    report: LoadReport,
    weights: Weights<B>,
    adapters: Adapters<B>,
    rope: RopeTable,
    /// That of layers with a window, where it is another one.
    local_rope: Option<RopeTable>,
    kv: B::Kv,
    /// Blocks of the cache, and positions of one sequence.
    blocks: usize,
    capacity: usize,
    /// Positions of the sequence that has the cache to itself.
    position: usize,
    act: Activations<B>,
    /// Room for states on the host.
    states: Vec<f32>,
    /// Numbers of tokens that are left behind the last layer, and behind the last norm.
    left: (Vec<usize>, Vec<usize>),
    lists: Lists,
}

/// A few words about a step, whose memory is kept for the next one.
#[derive(Default)]
struct Lists {
    /// Blocks, and tokens and what they need, of the sequence that has the cache to itself.
    blocks: Vec<u32>,
    rows: Vec<usize>,
    needs: Vec<LogitsNeed>,
    /// Where the logits of tokens lie.
    logits: Vec<(Range<usize>, Range<usize>)>,
}

impl<B: Backend> Transformer<B> {
    pub(crate) fn new(
        backend: Arc<B>,
        config: ModelConfig,
        report: LoadReport,
        weights: Weights<B>,
        spec: KvSpec,
        capacity: usize,
    ) -> Result<Self, ModelError> {
        let kv = backend.kv(spec)?;
        let tensor = || backend.tensor();
        let room = Room { normed: tensor(), parts: Vec::new() };
        let act = Activations { h: tensor(), x: tensor(), y: tensor(), wide: tensor(), room };
        let table = |rope| {
            RopeTable::new(backend.memory(), rope, config.shape.head_dim, capacity)
                .map_err(BackendError::from)
        };
        let rope = table(&config.rope)?;
        let local = config.local.as_ref().and_then(|local| local.rope.as_ref());
        let local_rope = local.map(table).transpose()?;
        let blocks = spec.blocks();
        let adapters = Adapters::default();
        Ok(Self {
            backend,
            config,
            report,
            weights,
            adapters,
            rope,
            local_rope,
            kv,
            blocks,
            capacity,
            position: 0,
            act,
            states: Vec::new(),
            left: Default::default(),
            lists: Lists { blocks: Vec::with_capacity(capacity.div_ceil(KV_BLOCK)), ..Lists::default() },
        })
    }

    /// Runs the tokens of some sequences, whose ids follow each other in `ids`.
    fn forward(
        &mut self,
        ids: &[u32],
        spans: &[KvSpan<'_>],
        adapters: &mut dyn Iterator<Item = (usize, &[AdapterUse])>,
        wanted: &mut Wanted<'_>,
    ) -> Result<(), ModelError> {
        let (b, c) = (&*self.backend, &self.config);
        let adapters = self.adapters.step(adapters)?;
        let (q, k) = (c.slot(Role::Q, 0).rows, c.slot(Role::K, 0).rows);
        let Activations { h, x, y, wide, room } = &mut self.act;
        let rope = self.rope.rows(b.memory(), spans).map_err(BackendError::from)?;
        let local_rope = self.local_rope.as_mut().map_or(Ok(rope), |table| table.rows(b.memory(), spans));
        let local_rope = local_rope.map_err(BackendError::from)?;
        let keep = |stage: usize, h: &B::Tensor, wanted: &mut Wanted<'_>| {
            wanted.hidden.get_mut(stage).map_or(Ok(()), |out| b.download(h, out))
        };
        // Without an embedding, the stage before has given what `h` holds.
        if let Some(embedding) = &self.weights.embedding {
            b.embed(embedding, ids, h)?;
            if let Some(scale) = c.embedding_scale() {
                b.scale(h, scale);
            }
            keep(0, h, wanted)?;
        }
        for (own, layer) in self.weights.layers.iter().enumerate() {
            let l = self.weights.range.start + own;
            b.rms_norm(h, &layer.attn_norm, c.eps, x);
            layer.qkv.apply(b, x, room, wide);
            adapters.add(b, l, &[(Role::Q, 0), (Role::K, q), (Role::V, q + k)], x, wide);
            if let Some((q, k)) = &layer.qk_norms {
                b.rms_norm_heads(wide, 0, c.shape.heads, c.shape.head_dim, q, c.eps);
                b.rms_norm_heads(wide, c.shape.heads, c.shape.kv_heads, c.shape.head_dim, k, c.eps);
            }
            let window = c.window(l);
            let rope = if window.is_some() { local_rope } else { rope };
            b.rope_append(wide, rope, &mut self.kv, own, spans)?;
            b.attend(wide, &self.kv, own, spans, window, y);
            let o = sub_norm(b, layer.attn_sub_norm.as_ref(), c.eps, y, x);
            layer.o.apply(b, o, room, wide);
            adapters.add(b, l, &[(Role::O, 0)], o, wide);
            b.add(h, sub_norm(b, layer.attn_post_norm.as_ref(), c.eps, wide, &mut room.normed));

            b.rms_norm(h, &layer.ffn_norm, c.eps, x);
            match &layer.gate_up {
                Projections::Stacked(w) if !adapters.adds_to(l, &[Role::Gate, Role::Up]) => {
                    b.gated(x, w, c.activation, wide, y);
                }
                gate_up => {
                    gate_up.apply(b, x, room, wide);
                    adapters.add(b, l, &[(Role::Gate, 0), (Role::Up, c.ffn)], x, wide);
                    b.gate(wide, c.activation, y);
                }
            }
            let gated = sub_norm(b, layer.ffn_sub_norm.as_ref(), c.eps, y, x);
            layer.down.apply(b, gated, room, wide);
            adapters.add(b, l, &[(Role::Down, 0)], gated, wide);
            b.add(h, sub_norm(b, layer.ffn_post_norm.as_ref(), c.eps, wide, &mut room.normed));
            keep(l + 1, h, wanted)?;
        }
        let Some(end) = &self.weights.end else { return Ok(()) };
        if wanted.hidden.is_empty() {
            let (rows, places) = &mut self.left;
            rows.clear();
            rows.extend(wanted.rows.iter().chain(wanted.state_rows));
            rows.sort_unstable();
            rows.dedup();
            if rows.is_empty() {
                return Ok(());
            }
            b.keep_rows(h, rows);
            b.rms_norm(h, &end.norm, c.eps, x);
            let place = |row: &usize| rows.binary_search(row).expect("it is among those that are kept");
            if !wanted.state_rows.is_empty() {
                b.download(x, &mut self.states)?;
                for row in wanted.state_rows.iter().map(place) {
                    wanted.states.extend_from_slice(&self.states[row * c.hidden..][..c.hidden]);
                }
            }
            places.clear();
            places.extend(wanted.rows.iter().map(place));
            b.keep_rows(x, places);
        } else {
            b.rms_norm(h, &end.norm, c.eps, x);
            keep(c.layers + 1, x, wanted)?;
            b.keep_rows(x, wanted.rows);
        }
        let rows = wanted.rows;
        if rows.is_empty() {
            return Ok(());
        }
        let head = end.head.as_ref().or(self.weights.embedding.as_ref()).expect("one of them is the head");
        Ok(b.head(x, head, wanted.needs, wanted.logits)?)
    }

    /// Refuses tokens that are none, and more of them than a sequence may have.
    fn check(&self, ids: &[u32], end: usize) -> Result<(), ModelError> {
        let vocab = self.config.vocab;
        if ids.is_empty() {
            return Err(ModelError::NoTokens);
        }
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
            return Err(ModelError::UnknownId { id: *id, vocab });
        }
        if end > self.capacity {
            return Err(ModelError::ContextFull { capacity: self.capacity, need: end });
        }
        Ok(())
    }
}

/// The tensor that goes on: normed into `out` where the architecture has a norm here.
fn sub_norm<'a, B: Backend>(
    b: &B,
    w: Option<&B::Vector>,
    eps: f32,
    x: &'a B::Tensor,
    out: &'a mut B::Tensor,
) -> &'a B::Tensor {
    match w {
        Some(w) => {
            b.rms_norm(x, w, eps, out);
            out
        }
        None => x,
    }
}

impl<B: Backend> Decoder for Transformer<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn report(&self) -> &LoadReport {
        &self.report
    }
    fn memory(&self) -> Vec<Arc<Pool>> {
        vec![Arc::clone(self.backend.memory())]
    }
    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>> {
        self.backend.device_memory()
    }
    fn profile(&self) -> Result<Vec<OperationTime>, ModelError> {
        Ok(self.backend.profile()?)
    }
    fn capacity(&self) -> usize {
        self.capacity
    }
    fn blocks(&self) -> usize {
        self.blocks
    }
    fn copy_block(&mut self, from: u32, to: u32) {
        self.backend.copy_block(&mut self.kv, from, to);
    }
    fn discard_block(&mut self, block: u32) -> usize {
        self.backend.discard_block(&mut self.kv, block)
    }
    fn block_bytes(&self) -> usize {
        self.backend.block_bytes(&self.kv)
    }
    fn save_block(&self, block: u32, out: &mut Vec<u8>) -> Result<(), ModelError> {
        Ok(self.backend.save_block(&self.kv, block, out)?)
    }
    fn load_block(&mut self, block: u32, bytes: &[u8]) {
        self.backend.load_block(&mut self.kv, block, bytes);
    }

    fn load_adapter(&mut self, id: u32, adapter: &Adapter) -> Result<(), ModelError> {
        self.adapters.load(&self.backend, id, adapter, self.weights.range.clone())
    }
    fn unload_adapter(&mut self, id: u32) {
        self.adapters.unload(id);
    }

    fn batch(
        &mut self,
        batch: &[Span<'_>],
        out: &mut Logits,
        states: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let (mut ids, mut rows, mut state_rows) = (Vec::new(), Vec::new(), Vec::new());
        let (mut needs, mut spans) = (Vec::new(), Vec::with_capacity(batch.len()));
        for span in batch {
            self.check(span.ids, span.start + span.ids.len())?;
            ids.extend_from_slice(span.ids);
            state_rows.extend(span.states.clone().map(|token| ids.len() - span.ids.len() + token));
            rows.extend(ids.len().saturating_sub(span.needs.len())..ids.len());
            needs.extend_from_slice(span.needs);
            spans.push(KvSpan { start: span.start, len: span.ids.len(), blocks: span.blocks });
        }
        self.position = 0;
        out.clear();
        states.clear();
        let hidden = &mut [];
        let mut wanted =
            Wanted { rows: &rows, needs: &needs, logits: out, state_rows: &state_rows, states, hidden };
        let mut adapters = batch.iter().map(|span| (span.ids.len(), span.adapters));
        self.forward(&ids, &spans, &mut adapters, &mut wanted)
    }

    fn position(&self) -> usize {
        self.position
    }
    fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    fn step(&mut self, ids: &[u32], out: &mut StepOutput) -> Result<(), ModelError> {
        let end = self.position + ids.len();
        self.check(ids, end)?;
        out.hidden.resize_with(if out.keep_hidden { self.config.layers + 2 } else { 0 }, Vec::new);
        let mut lists = std::mem::take(&mut self.lists);
        let Lists { blocks, rows, needs, logits: places } = &mut lists;
        blocks.clear();
        blocks.extend(0..end.div_ceil(KV_BLOCK) as u32);
        rows.clear();
        needs.clear();
        if out.rows == Rows::All {
            rows.extend(0..ids.len());
            needs.resize(ids.len(), LogitsNeed::All);
        }
        let last = [ids.len() - 1];
        let (rows, needs) = match out.rows {
            Rows::Last => (&last[..], std::slice::from_ref(&out.need)),
            Rows::None | Rows::All => (&rows[..], &needs[..]),
        };
        let span = KvSpan { start: self.position, len: ids.len(), blocks };
        let mut logits = Logits {
            ids: std::mem::take(&mut out.ids),
            values: std::mem::take(&mut out.logits),
            rows: std::mem::take(places),
        };
        logits.clear();
        let mut wanted = Wanted {
            rows,
            needs,
            logits: &mut logits,
            state_rows: &[],
            states: &mut Vec::new(),
            hidden: &mut out.hidden,
        };
        let ran = self.forward(ids, &[span], &mut std::iter::empty(), &mut wanted);
        (out.ids, out.logits, lists.logits) = (logits.ids, logits.values, logits.rows);
        self.lists = lists;
        ran?;
        self.position = end;
        Ok(())
    }
}

impl<B: Backend> Stage for Transformer<B> {
    fn layers(&self) -> Range<usize> {
        self.weights.range.clone()
    }

    fn send(&self, out: &mut Vec<f32>) -> Result<(), ModelError> {
        Ok(self.backend.download(&self.act.h, out)?)
    }

    fn receive(&mut self, before: &dyn Stage) -> Result<(), ModelError> {
        let (b, h) = (&self.backend, &mut self.act.h);
        // Between devices of one kind there may be a shorter way than over the host.
        if let Some(before) = (before as &dyn Any).downcast_ref::<Self>()
            && b.receive(&before.backend, &before.act.h, h)?
        {
            return Ok(());
        }
        before.send(&mut self.states)?;
        Ok(b.upload(&self.states, self.config.hidden, h)?)
    }
}
