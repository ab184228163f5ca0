//! Logits of a head whose rows lie on several devices: of the largest of each, the largest.

use super::{CudaRows, CudaRowsTensor, CudaRowsWeight};
use crate::backend::put_floats;
use crate::head::{Asked, HEAD_TOKENS, Pair};
use bitnet_core::{BackendError, Logits};

impl CudaRows {
    /// The logits that were asked for; `false` where a device says that all may as well be computed.
    pub(super) fn largest(
        &self,
        x: &CudaRowsTensor,
        w: &CudaRowsWeight,
        asked: &Asked,
        out: &mut Logits,
    ) -> Result<bool, BackendError> {
        let cut = w.cut.as_ref().expect("rows of a head are shared");
        let mut parts = Vec::new();
        for (at, (device, x)) in self.devices.iter().zip(x.whole()).enumerate() {
            let Some(w) = &w.parts[at] else { continue };
            let own =
                |id: u32| cut.place(id as usize).filter(|place| place.0 == at).map(|(_, row)| row as u32);
            let asked = asked.of(own);
            device.find(x, w, &asked, &mut device.scratch().head);
            parts.push((at, device, asked));
        }
        // All devices are at work before the first one is waited for.
        self.hand_over();
        let mut tokens: Vec<Vec<(u32, f32)>> = vec![Vec::new(); x.rows()];
        for (at, device, asked) in &parts {
            let found = device.found(asked, &device.scratch().head, |token, pairs| {
                let entry =
                    |[row, bits]: &Pair| (cut.column(*at, *row as usize) as u32, f32::from_bits(*bits));
                tokens[token].extend(pairs.iter().map(entry));
                Ok(())
            })?;
            if !found {
                return Ok(false);
            }
        }
        for (token, entries) in tokens.iter_mut().enumerate() {
            asked.keep(token, entries);
            self.devices[0].push_list(entries, out)?;
        }
        self.wait().map(|()| true)
    }

    /// All logits of all tokens.
    pub(super) fn all_logits(
        &self,
        x: &CudaRowsTensor,
        w: &CudaRowsWeight,
        out: &mut Logits,
    ) -> Result<(), BackendError> {
        let cut = w.cut.as_ref().expect("rows of a head are shared");
        let m = x.rows();
        self.devices[0].memory.fit(&mut out.values, m * w.rows)?;
        for first in (0..m).step_by(HEAD_TOKENS) {
            let rows = first..m.min(first + HEAD_TOKENS);
            for ((device, x), w) in self.devices.iter().zip(x.whole()).zip(&w.parts) {
                let Some(w) = w else { continue };
                let scratch = &mut device.scratch().head;
                device.linear_rows(x, rows.clone(), w, &mut scratch.int8, &mut scratch.logits);
            }
            self.hand_over();
            for (at, device) in self.devices.iter().enumerate().filter(|(at, _)| w.parts[*at].is_some()) {
                let scratch = &device.scratch().head;
                let Some(buffer) = scratch.logits.buffer() else { return device.gpu.check() };
                let width = 4 * cut.width(at);
                device.gpu.read(&[(buffer, 0, rows.len() * width)], |bytes| {
                    for (row, mut bytes) in rows.clone().zip(bytes.chunks_exact(width)) {
                        for run in cut.columns(at) {
                            let (own, rest) = bytes.split_at(4 * run.len());
                            put_floats(&mut out.values[row * cut.cols..][run.clone()], own);
                            bytes = rest;
                        }
                    }
                })?;
            }
        }
        out.push_full(m);
        self.wait()
    }
}
