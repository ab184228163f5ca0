//! How long kernels take: an adapter's timestamps around each, once somebody has asked.

use super::{Gpu, State, locked};
use crate::kernel::Kernel;
use bitnet_core::{BackendError, OperationTime};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ComputePassTimestampWrites, Features, MapMode,
    QUERY_SET_MAX_QUERIES, QuerySet, QuerySetDescriptor, QueryType,
};

/// Bytes of a timestamp.
const TICKS: u64 = 8;

/// Timestamps of a submission, and what earlier ones came to.
pub(super) struct Clock {
    /// Where a kernel begins and ends, one pair after the other.
    queries: QuerySet,
    resolved: Buffer,
    read: Buffer,
    /// The kernels that are recorded.
    recorded: Vec<Kernel>,
    /// How often each has run, and its ticks.
    spent: HashMap<Kernel, (u64, u64)>,
}

impl Clock {
    fn new(gpu: &Gpu) -> Self {
        let count = QUERY_SET_MAX_QUERIES;
        let buffer = |usage| {
            let size = TICKS * u64::from(count);
            gpu.device.create_buffer(&BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let timestamps = QuerySetDescriptor { label: None, ty: QueryType::Timestamp, count };
        Self {
            queries: gpu.device.create_query_set(&timestamps),
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            read: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            recorded: Vec::new(),
            spent: HashMap::new(),
        }
    }

    /// Timestamps that are recorded.
    fn len(&self) -> u32 {
        2 * self.recorded.len() as u32
    }

    /// Whether the next kernel's timestamps have no place any more.
    pub(super) fn is_full(&self) -> bool {
        self.len() == QUERY_SET_MAX_QUERIES
    }

    /// The timestamps of a pass with this kernel alone.
    pub(super) fn pass(&mut self, kernel: Kernel) -> ComputePassTimestampWrites<'_> {
        let first = self.len();
        self.recorded.push(kernel);
        ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        }
    }

    /// Has the recorded timestamps copied to where the host sees them.
    pub(super) fn resolve(&self, encoder: &mut CommandEncoder) {
        if self.len() > 0 {
            encoder.resolve_query_set(&self.queries, 0..self.len(), &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.read, 0, TICKS * u64::from(self.len()));
        }
    }
}

impl Gpu {
    /// What kernels have taken since this was last called, the longest first; the first call begins to measure. From then on each kernel has a
    /// pass of its own, and the end of a submission is waited for.
    pub(crate) fn profile(&self) -> Result<Vec<OperationTime>, BackendError> {
        if !self.device.features().contains(Features::TIMESTAMP_QUERY) {
            return Err(BackendError::Unsupported {
                backend: "wgpu",
                what: format!("a profile on {}, which has no timestamps", self.details.name),
                hint: "another adapter would do",
            });
        }
        let mut state = locked(&self.state);
        self.submit_locked(&mut state);
        let clock = state.clock.get_or_insert_with(|| Clock::new(self));
        let period = f64::from(self.queue.get_timestamp_period());
        let times = clock.spent.drain().map(|(kernel, (count, ticks))| OperationTime {
            name: format!("{kernel:?}"),
            count,
            time: Duration::from_nanos((ticks as f64 * period) as u64),
        });
        let times = OperationTime::joined(times);
        self.check().map(|()| times)
    }

    /// Adds up the timestamps of what was sent off.
    pub(super) fn read_clock(&self, state: &mut State) {
        let Some(clock) = state.clock.as_mut().filter(|clock| clock.len() > 0) else { return };
        let recorded = std::mem::take(&mut clock.recorded);
        if self.has_failed() {
            return;
        }
        let bytes = ..2 * TICKS * recorded.len() as u64;
        let outcome = Arc::new(OnceLock::new());
        let told = Arc::clone(&outcome);
        clock.read.map_async(MapMode::Read, bytes, move |result| {
            let _ = told.set(result);
        });
        let spent = &mut clock.spent;
        let read = clock.read.clone();
        if let Err(e) = self.device.poll(wgpu::PollType::wait_indefinitely()) {
            return self.fail(self.broken(&e));
        }
        if !matches!(outcome.get(), Some(Ok(()))) {
            return self.fail(self.device_error("its timestamps cannot be read".to_owned()));
        }
        match read.get_mapped_range(bytes) {
            Err(e) => self.fail(self.broken(&e)),
            Ok(view) => {
                let ticks: Vec<u64> =
                    view.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
                for (kernel, [begin, end]) in recorded.into_iter().zip(ticks.as_chunks::<2>().0) {
                    let (count, sum) = spent.entry(kernel).or_default();
                    *count += 1;
                    *sum += end.saturating_sub(*begin);
                }
            }
        }
        read.unmap();
    }
}
