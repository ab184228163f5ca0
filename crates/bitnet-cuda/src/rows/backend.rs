//! The operations of several devices: each is one of every device, and of those whose results have columns of their own, a gathering.

use super::{CudaRows, CudaRowsKv, CudaRowsTensor, CudaRowsVector, CudaRowsWeight, Cut};
use crate::attention::bytes_of;
use crate::backend::CudaBackend;
use crate::driver::Rectangle;
use crate::head::Asked;
use crate::tensor::CudaTensor;
use crate::weight::{CudaWeight, TILE_ROWS};
use bitnet_core::{
    Activation, ActivationPrecision, AttentionShape, Backend, BackendError, KvSpan, KvSpec, Logits,
    LogitsNeed, Matrix, OperationTime, Purpose, RopeRows,
};
use bitnet_memory::{DeviceMemory, Pool};
use std::ops::Range;
use std::sync::Arc;

impl CudaRows {
    /// `run` on every device that has rows of a weight, with its input and the room for its piece.
    fn product(
        &self,
        x: &CudaRowsTensor,
        w: &CudaRowsWeight,
        out: &mut CudaRowsTensor,
        mut run: impl FnMut(usize, &CudaBackend, &CudaTensor, &CudaWeight, &mut CudaTensor),
    ) {
        let room = if w.cut.is_some() { &mut out.pieces } else { &mut out.whole };
        for (at, (device, room)) in self.devices.iter().zip(self.each(room)).enumerate() {
            if let Some(w) = &w.parts[at] {
                run(at, device, &x.whole()[at], w, room);
            }
        }
        (out.cut, out.rows) = (w.cut.clone(), x.rows());
    }

    /// `run` on every device, with its whole tensors.
    fn everywhere(
        &self,
        x: &CudaRowsTensor,
        out: &mut CudaRowsTensor,
        run: impl Fn(usize, &CudaBackend, &CudaTensor, &mut CudaTensor),
    ) {
        out.cut = None;
        for (at, (device, out)) in self.devices.iter().zip(self.each(&mut out.whole)).enumerate() {
            run(at, device, &x.whole()[at], out);
        }
    }

    /// The same in place.
    fn in_place(&self, x: &mut CudaRowsTensor, run: impl Fn(usize, &CudaBackend, &mut CudaTensor)) {
        self.gather(x);
        for (at, (device, x)) in self.devices.iter().zip(self.each(&mut x.whole)).enumerate() {
            run(at, device, x);
        }
    }
}

impl Backend for CudaRows {
    type Tensor = CudaRowsTensor;
    type Vector = CudaRowsVector;
    type Weight = CudaRowsWeight;
    type Kv = CudaRowsKv;

    fn memory(&self) -> &Arc<Pool> {
        self.devices[0].memory()
    }

    fn device_memory(&self) -> Vec<Arc<dyn DeviceMemory>> {
        self.devices.iter().flat_map(CudaBackend::device_memory).collect()
    }

    fn profile(&self) -> Result<Vec<OperationTime>, BackendError> {
        self.devices[0].profile()
    }

    fn tensor(&self) -> CudaRowsTensor {
        CudaRowsTensor::default()
    }

    fn vector(&self, values: &[f32]) -> Result<CudaRowsVector, BackendError> {
        let each = self.devices.iter().map(|device| device.vector(values));
        each.collect::<Result<_, _>>().map(CudaRowsVector)
    }

    fn prepare(
        &self,
        stacked: &[Matrix],
        act: ActivationPrecision,
        purpose: Purpose,
    ) -> Result<CudaRowsWeight, BackendError> {
        let (rows, cols) = (stacked.iter().map(Matrix::rows).sum(), stacked.first().map_or(0, Matrix::cols));
        if purpose == Purpose::Adapter {
            let each = self.devices.iter().map(|device| device.prepare(stacked, act, purpose).map(Some));
            let parts = each.collect::<Result<_, _>>()?;
            return Ok(CudaRowsWeight { rows, cols, parts, cut: None, kept: false });
        }
        let unit = |matrix: &Matrix| match purpose {
            Purpose::Attention { kv_heads } => matrix.rows() / kv_heads.max(1),
            _ => TILE_ROWS,
        };
        let sizes: Vec<_> = stacked.iter().map(|matrix| (matrix.rows(), unit(matrix))).collect();
        let cut = Cut::of(&sizes, &self.shares);
        let part = |at: usize| {
            let mut first = 0;
            let mut own = Vec::new();
            for (matrix, columns) in stacked.iter().zip(cut.columns(at)) {
                if !columns.is_empty() {
                    own.push(matrix.slice(columns.start - first..columns.end - first));
                }
                first += matrix.rows();
            }
            (!own.is_empty()).then(|| self.devices[at].prepare(&own, act, purpose)).transpose()
        };
        let parts = (0..self.devices.len()).map(part).collect::<Result<_, _>>()?;
        let kept = matches!(purpose, Purpose::Attention { .. });
        Ok(CudaRowsWeight { rows, cols, parts, cut: Some(Arc::new(cut)), kept })
    }

    fn weight_bytes(&self, w: &CudaRowsWeight) -> (usize, usize) {
        let each =
            self.devices.iter().zip(&w.parts).flat_map(|(device, part)| {
                part.iter().map(|part| device.weight_bytes(part)).collect::<Vec<_>>()
            });
        each.fold((0, 0), |all, own| (all.0 + own.0, all.1 + own.1))
    }

    fn kv(&self, spec: KvSpec) -> Result<CudaRowsKv, BackendError> {
        let AttentionShape { heads, kv_heads, head_dim } = spec.shape;
        let group = heads / kv_heads;
        let (query, key) = ((heads * head_dim, group * head_dim), (kv_heads * head_dim, head_dim));
        let own = Cut::of(&[(kv_heads, 1)], &self.shares);
        let part = |at: usize| {
            let kv_heads = own.width(at);
            let shape = AttentionShape { heads: group * kv_heads, kv_heads, head_dim };
            (kv_heads > 0).then(|| self.devices[at].kv(KvSpec { shape, ..spec })).transpose()
        };
        let parts = (0..self.devices.len()).map(part).collect::<Result<_, _>>()?;
        let [stacked, attended] =
            [&[query, key, key][..], &[query]].map(|stack| Arc::new(Cut::of(stack, &self.shares)));
        Ok(CudaRowsKv { spec, parts, stacked, attended })
    }

    fn copy_block(&self, kv: &mut CudaRowsKv, from: u32, to: u32) {
        for (device, kv) in self.devices.iter().zip(&mut kv.parts) {
            if let Some(kv) = kv {
                device.copy_block(kv, from, to);
            }
        }
    }

    fn block_bytes(&self, kv: &CudaRowsKv) -> usize {
        kv.parts.iter().flatten().map(|part| part.block_bytes()).sum()
    }

    /// As one device has it: of each layer the keys of all heads, then the values.
    fn save_block(&self, kv: &CudaRowsKv, block: u32, out: &mut Vec<u8>) -> Result<(), BackendError> {
        let mut pieces = Vec::new();
        for (device, part) in self.devices.iter().zip(&kv.parts) {
            let Some(part) = part else { continue };
            let mut bytes = Vec::new();
            self.told(device.save_block(part, block, &mut bytes))?;
            pieces.push((part, bytes, 0));
        }
        self.told(self.wait())?;
        for at in 0..2 * kv.spec.layers {
            for (part, bytes, done) in &mut pieces {
                let len = part.part_bytes(at);
                out.extend_from_slice(&bytes[*done..*done + len]);
                *done += len;
            }
        }
        Ok(())
    }

    fn load_block(&self, kv: &mut CudaRowsKv, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.block_bytes(kv), "bytes of a block");
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new(); self.devices.len()];
        let mut rest = bytes;
        for at in 0..2 * kv.spec.layers {
            for (part, piece) in kv.parts.iter().zip(&mut pieces) {
                let (own, behind) = rest.split_at(part.as_ref().map_or(0, |part| part.part_bytes(at)));
                piece.extend_from_slice(own);
                rest = behind;
            }
        }
        for ((device, part), piece) in self.devices.iter().zip(&mut kv.parts).zip(&pieces) {
            if let Some(part) = part {
                device.load_block(part, block, piece);
            }
        }
    }

    fn embed(&self, w: &CudaRowsWeight, ids: &[u32], out: &mut CudaRowsTensor) -> Result<(), BackendError> {
        self.told(self.begin(ids.len()))?;
        let cut = w.cut.as_ref().expect("rows of an embedding are shared");
        // Each device makes the rows that it has; behind each other they are all rows in another order.
        let mut own: Vec<Vec<u32>> = vec![Vec::new(); self.devices.len()];
        let mut places = Vec::with_capacity(ids.len());
        for id in ids {
            let Some((device, row)) = cut.place(*id as usize) else {
                return Err(BackendError::IdOutOfRange { id: *id, rows: w.rows });
            };
            places.push((device, own[device].len()));
            own[device].push(row as u32);
        }
        let (mut first, pitch) = (Vec::new(), 4 * w.cols);
        let mut rectangles = Vec::new();
        let mut before = 0;
        for (at, (device, piece)) in self.devices.iter().zip(self.each(&mut out.pieces)).enumerate() {
            let rows = own[at].len();
            let whole = Rectangle {
                from: 0,
                from_pitch: pitch,
                to: before * pitch,
                to_pitch: pitch,
                width: pitch,
                height: rows,
            };
            if let Some(w) = w.parts[at].as_ref().filter(|_| rows > 0) {
                piece.shape(&device.gpu, rows, w.cols);
                device.embed_rows(w, device.gpu.upload(&bytes_of(&own[at])), rows, piece);
                rectangles.push(vec![whole]);
            } else {
                rectangles.push(Vec::new());
            }
            first.push(before);
            before += rows;
        }
        out.cut = None;
        self.exchange(&out.pieces, self.each(&mut out.whole), (ids.len(), w.cols), &rectangles);
        let order: Vec<usize> = places.into_iter().map(|(device, at)| first[device] + at).collect();
        self.in_place(out, |_, device, whole| device.take_rows(whole, &order));
        Ok(())
    }

    fn rms_norm(&self, x: &CudaRowsTensor, w: &CudaRowsVector, eps: f32, out: &mut CudaRowsTensor) {
        self.everywhere(x, out, |at, device, x, out| device.rms_norm(x, &w.0[at], eps, out));
    }

    fn rms_norm_heads(
        &self,
        x: &mut CudaRowsTensor,
        first: usize,
        count: usize,
        head_dim: usize,
        w: &CudaRowsVector,
        eps: f32,
    ) {
        let Some(cut) = x.cut.clone() else {
            return self.in_place(x, |at, device, x| {
                device.rms_norm_heads(x, first, count, head_dim, &w.0[at], eps);
            });
        };
        let columns = first * head_dim..(first + count) * head_dim;
        for (at, (device, piece)) in self.devices.iter().zip(&mut x.pieces).enumerate() {
            for own in cut.within(at, &columns) {
                let (first, count) = (own.start / head_dim, own.len() / head_dim);
                device.rms_norm_heads(piece, first, count, head_dim, &w.0[at], eps);
            }
        }
    }

    fn linear(&self, x: &CudaRowsTensor, w: &CudaRowsWeight, out: &mut CudaRowsTensor) {
        self.product(x, w, out, |_, device, x, w, out| device.linear(x, w, out));
        if !w.kept {
            self.gather(out);
        }
    }

    fn add_low_rank(
        &self,
        x: &CudaRowsTensor,
        rows: Range<usize>,
        (a, b): (&CudaRowsWeight, &CudaRowsWeight),
        scale: f32,
        y: &mut CudaRowsTensor,
        first: usize,
    ) {
        assert!(a.cut.is_none() && b.cut.is_none(), "matrices that were prepared for this");
        self.in_place(y, |at, device, y| {
            if let (Some(a), Some(b)) = (&a.parts[at], &b.parts[at]) {
                device.add_low_rank(&x.whole()[at], rows.clone(), (a, b), scale, y, first);
            }
        });
    }

    fn rope_append(
        &self,
        qkv: &mut CudaRowsTensor,
        rope: RopeRows<'_>,
        kv: &mut CudaRowsKv,
        layer: usize,
        spans: &[KvSpan<'_>],
    ) -> Result<(), BackendError> {
        self.spread(qkv, &kv.stacked);
        for ((device, kv), piece) in self.devices.iter().zip(&mut kv.parts).zip(&mut qkv.pieces) {
            if let Some(kv) = kv {
                self.told(device.rope_append(piece, rope, kv, layer, spans))?;
            }
        }
        Ok(())
    }

    fn attend(
        &self,
        qkv: &CudaRowsTensor,
        kv: &CudaRowsKv,
        layer: usize,
        spans: &[KvSpan<'_>],
        window: Option<usize>,
        out: &mut CudaRowsTensor,
    ) {
        assert_eq!(qkv.cut.as_ref(), Some(&kv.stacked), "columns of heads");
        for (at, (device, out)) in self.devices.iter().zip(self.each(&mut out.pieces)).enumerate() {
            if let Some(kv) = &kv.parts[at] {
                device.attend(&qkv.pieces[at], kv, layer, spans, window, out);
            }
        }
        (out.cut, out.rows) = (Some(Arc::clone(&kv.attended)), qkv.rows());
        self.gather(out);
    }

    fn gate(&self, gate_up: &CudaRowsTensor, act: Activation, out: &mut CudaRowsTensor) {
        self.everywhere(gate_up, out, |_, device, gate_up, out| device.gate(gate_up, act, out));
    }

    fn gated(
        &self,
        x: &CudaRowsTensor,
        w: &CudaRowsWeight,
        act: Activation,
        wide: &mut CudaRowsTensor,
        out: &mut CudaRowsTensor,
    ) {
        let Some(halved) = w.cut.as_ref().and_then(|cut| cut.halved()) else {
            self.linear(x, w, wide);
            return self.gate(wide, act, out);
        };
        let wide = self.each(&mut wide.pieces);
        self.product(x, w, out, |at, device, x, w, out| device.gated(x, w, act, &mut wide[at], out));
        out.cut = Some(Arc::new(halved));
        self.gather(out);
    }

    fn join(&self, parts: &[CudaRowsTensor], out: &mut CudaRowsTensor) {
        out.cut = None;
        for (at, (device, out)) in self.devices.iter().zip(self.each(&mut out.whole)).enumerate() {
            device.join_all(&parts.iter().map(|part| &part.whole()[at]).collect::<Vec<_>>(), out);
        }
    }

    fn scale(&self, x: &mut CudaRowsTensor, factor: f32) {
        self.in_place(x, |_, device, x| device.scale(x, factor));
    }

    fn add(&self, x: &mut CudaRowsTensor, y: &CudaRowsTensor) {
        self.in_place(x, |at, device, x| device.add(x, &y.whole()[at]));
    }

    fn head(
        &self,
        x: &CudaRowsTensor,
        w: &CudaRowsWeight,
        needs: &[LogitsNeed],
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        assert_eq!((x.rows(), x.whole()[0].cols), (needs.len(), w.cols), "tokens and input features");
        out.clear();
        if let Some(asked) = Asked::new(needs, w.rows) {
            if self.told(self.largest(x, w, &asked, out))? {
                return Ok(());
            }
            out.clear();
        }
        self.told(self.all_logits(x, w, out))
    }

    fn keep_rows(&self, x: &mut CudaRowsTensor, rows: &[usize]) {
        self.in_place(x, |_, device, x| device.take_rows(x, rows));
    }

    fn upload(&self, values: &[f32], cols: usize, out: &mut CudaRowsTensor) -> Result<(), BackendError> {
        self.told(self.begin(values.len() / cols))?;
        out.cut = None;
        for (device, out) in self.devices.iter().zip(self.each(&mut out.whole)) {
            self.told(device.upload(values, cols, out))?;
        }
        Ok(())
    }

    fn download(&self, x: &CudaRowsTensor, out: &mut Vec<f32>) -> Result<(), BackendError> {
        out.clear();
        if let Some(whole) = x.whole().first() {
            self.told(self.devices[0].download(whole, out))?;
        }
        self.told(self.wait())
    }
}
