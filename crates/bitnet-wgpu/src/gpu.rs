//! A device: its memory, its pipelines, and the commands of a step, which are recorded until somebody wants to read.

mod clock;
mod transfer;

use crate::adapter::{self, AdapterDetails, WgpuError};
use crate::kernel::{Fold, Kernel};
use crate::memory::{Buffer, Kind, Part, WgpuSource};
use bitnet_core::BackendError;
use bitnet_memory::{Config, DevicePool, Piece, Pool, Tag};
use clock::Clock;
use pollster::block_on;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use transfer::{Gifts, Written};
use wgpu::{
    BindGroupDescriptor, CommandEncoder, ComputePass, ComputePassDescriptor, ComputePipeline,
    ComputePipelineDescriptor, Device, DeviceDescriptor, Features, PollType, Queue, ShaderModuleDescriptor,
    ShaderSource,
};

/// What places of bindings are multiples of at least: a vector of words.
const MIN_ALIGNMENT: usize = 16;

/// What went wrong.
#[derive(Default)]
struct Failure {
    /// The first thing since somebody asked.
    first: Option<BackendError>,
    /// Why the device is gone, for good.
    lost: Option<String>,
}

pub(crate) struct Gpu {
    name: String,
    details: AdapterDetails,
    device: Device,
    queue: Queue,
    max_binding: usize,
    /// What places of bindings are multiples of.
    alignment: usize,
    /// How workgroups fold.
    fold: Fold,
    /// Tells its buffers from those of other devices.
    number: u64,
    /// Buffers that shaders see.
    storage: Arc<DevicePool<WgpuSource>>,
    uploads: Arc<Pool<WgpuSource>>,
    downloads: Arc<Pool<WgpuSource>>,
    /// Stands for a buffer that could not be had.
    nothing: Arc<Buffer>,
    failure: Arc<Mutex<Failure>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of kernels whose bindings have a buffer each, and of those where some share one.
    pipelines: HashMap<(Kernel, bool), ComputePipeline>,
    /// The open pass of `encoder`, which ends before it.
    pass: Option<ComputePass<'static>>,
    encoder: Option<CommandEncoder>,
    /// What is done before the commands of `encoder`: copies of what the host gives, which would otherwise end passes.
    before: Option<CommandEncoder>,
    /// Submissions so far.
    submissions: u64,
    gifts: Gifts,
    written: Written,
    /// Once somebody has asked how long kernels take.
    clock: Option<Clock>,
}

impl State {
    /// The one whose commands are recorded now.
    fn submission(&self) -> u64 {
        self.submissions + 1
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens the adapter of this number, with pools of its memory.
    pub(crate) fn open(number: usize, config: Config) -> Result<Self, WgpuError> {
        let mut adapters = adapter::usable();
        if number >= adapters.len() {
            return Err(WgpuError::NoSuchAdapter { number, found: adapters.len() });
        }
        let adapter = adapters.swap_remove(number);
        let (details, limits) = (adapter::details(&adapter), adapter.limits());
        let most = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let max_buffer = most(limits.max_buffer_size);
        let max_binding = most(limits.max_storage_buffer_binding_size).min(max_buffer);
        let max_binding = max_binding / MIN_ALIGNMENT * MIN_ALIGNMENT;
        let alignment = (limits.min_storage_buffer_offset_alignment as usize).max(MIN_ALIGNMENT);
        let wanted = Features::SUBGROUP | Features::TIMESTAMP_QUERY;
        let (device, queue) = block_on(adapter.request_device(&DeviceDescriptor {
            required_features: Features::IMMEDIATES | (adapter.features() & wanted),
            required_limits: limits,
            ..DeviceDescriptor::default()
        }))
        .map_err(|source| WgpuError::Open { name: details.name.clone(), source })?;

        let has_subgroups = device.features().contains(Features::SUBGROUP);
        let fold = if has_subgroups { Fold::Subgroups } else { Fold::Tree };
        let failure = Arc::<Mutex<Failure>>::default();
        let name = format!("wgpu:{number}");
        watch(&device, &name, &failure);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let source = WgpuSource::new(&device, number, max_buffer);
        let [uploads, downloads] =
            [Kind::Upload, Kind::Download].map(|kind| Arc::new(Pool::with(source.of(kind), config)));
        let storage = Arc::new(DevicePool::new(name.clone(), source, config));
        let nothing = storage
            .piece(MIN_ALIGNMENT, Tag::Other)
            .map_err(|_| WgpuError::NoMemory { name: details.name.clone() })?;
        Ok(Self {
            name,
            details,
            device,
            queue,
            max_binding,
            alignment,
            fold,
            number,
            storage,
            uploads,
            downloads,
            nothing: Arc::new(Buffer::new(nothing)),
            failure,
            state: Mutex::default(),
        })
    }

    /// Folds so, as on an adapter that has no other way.
    #[cfg(test)]
    pub(crate) fn set_fold(&mut self, fold: Fold) {
        self.fold = fold;
    }

    /// Bindings are no larger than this, as on an adapter that allows no more.
    #[cfg(test)]
    pub(crate) fn limit_bindings(&mut self, bytes: usize) {
        self.max_binding = bytes;
    }

    /// After so many requests for memory there is none; with `usize::MAX` there is.
    #[cfg(test)]
    pub(crate) fn serve(&self, requests: usize) {
        self.storage.source().serve(requests);
    }

    /// Requests for memory that met the driver, and submissions.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (u64, u64) {
        let pools = [&**self.storage, &*self.uploads, &*self.downloads];
        let requests = pools.map(|pool| pool.snapshot().source_requests);
        (requests.iter().sum(), locked(&self.state).submissions)
    }

    /// Takes the device away.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.device.destroy();
    }

    pub(crate) fn details(&self) -> &AdapterDetails {
        &self.details
    }

    /// `wgpu:0` or the like.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Tells its buffers from those of other devices.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Bytes that a buffer may have of which a shader sees all.
    pub(crate) fn max_binding(&self) -> usize {
        self.max_binding
    }

    /// How workgroups fold what their threads have.
    pub(crate) fn fold(&self) -> Fold {
        self.fold
    }

    /// What the place of a binding in its buffer is a multiple of.
    pub(crate) fn alignment(&self) -> usize {
        self.alignment
    }

    pub(crate) fn nothing(&self) -> Part<'_> {
        self.nothing.all()
    }

    /// The device's memory that shaders see.
    pub(crate) fn memory(&self) -> &Arc<DevicePool<WgpuSource>> {
        &self.storage
    }

    /// Makes the step fail. What is recorded from here on is not run.
    pub(crate) fn fail(&self, error: BackendError) {
        locked(&self.failure).first.get_or_insert(error);
    }

    /// Gives what went wrong, once; that the device is lost, whenever it is asked.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        // That a device is lost is told when somebody looks. This waits for nothing.
        let looked = self.device.poll(PollType::Poll);
        let mut failure = locked(&self.failure);
        if let Err(e) = looked {
            failure.first.get_or_insert(self.broken(&e));
        }
        match (failure.first.take(), &failure.lost) {
            (_, Some(why)) => Err(self.device_error(why.clone())),
            (first, None) => first.map_or(Ok(()), Err),
        }
    }

    /// Memory for shaders, all of which one may see; what it holds is undefined.
    pub(crate) fn storage(&self, tag: Tag, bytes: usize, what: &'static str) -> Result<Buffer, BackendError> {
        self.fits(bytes, what)?;
        self.large(tag, bytes, what)
    }

    /// Refuses what no binding has.
    fn fits(&self, bytes: usize, what: &str) -> Result<(), BackendError> {
        if bytes <= self.max_binding {
            return Ok(());
        }
        Err(BackendError::Unsupported {
            backend: "wgpu",
            what: format!("{what} of {bytes} bytes in one piece: {} are the most", self.max_binding),
            hint: "a smaller --ctx-size or --batch-size, or --device cpu, would do",
        })
    }

    /// Memory of which shaders see parts.
    pub(crate) fn large(&self, tag: Tag, bytes: usize, what: &'static str) -> Result<Buffer, BackendError> {
        self.take(&mut locked(&self.state), &self.storage, tag, bytes, what).map(Buffer::new)
    }

    /// Memory for shaders with zeros in it.
    pub(crate) fn zeroed(&self, tag: Tag, bytes: usize, what: &'static str) -> Result<Buffer, BackendError> {
        let buffer = self.storage(tag, bytes, what)?;
        if !buffer.is_fresh() {
            let mut state = locked(&self.state);
            buffer.record(state.submission());
            self.encoder(&mut state).clear_buffer(buffer.handle(), 0, None);
        }
        Ok(buffer)
    }

    fn take(
        &self,
        state: &mut State,
        pool: &Pool<WgpuSource>,
        tag: Tag,
        bytes: usize,
        what: &'static str,
    ) -> Result<Piece<WgpuSource>, BackendError> {
        if let Some(why) = &locked(&self.failure).lost {
            return Err(self.device_error(why.clone()));
        }
        if let Ok(piece) = pool.piece(bytes, tag) {
            return Ok(piece);
        }
        // The driver gets back what the pool gave up when the commands that use it have run.
        self.submit_locked(state);
        self.wait(state)?;
        pool.piece(bytes, tag).map_err(|_| BackendError::OutOfMemory { bytes, what })
    }

    /// Sends the recorded commands off.
    pub(crate) fn submit(&self) {
        self.submit_locked(&mut locked(&self.state));
    }

    fn submit_locked(&self, state: &mut State) {
        state.pass = None;
        self.send_gifts(state);
        if let (Some(clock), Some(encoder)) = (&state.clock, &mut state.encoder) {
            clock.resolve(encoder);
        }
        let commands = [state.before.take(), state.encoder.take()];
        if commands.iter().any(Option::is_some) {
            if !self.has_failed() {
                self.queue.submit(commands.into_iter().flatten().map(CommandEncoder::finish));
            }
            state.submissions += 1;
        }
        state.written.sent();
        self.read_clock(state);
    }

    pub(crate) fn has_failed(&self) -> bool {
        let failure = locked(&self.failure);
        failure.first.is_some() || failure.lost.is_some()
    }

    /// Records a kernel on `groups` workgroups, with what it sees in the order of its bindings and parameters as it declares them.
    pub(crate) fn run(&self, kernel: Kernel, parts: &[Part<'_>], params: &[u32], groups: [usize; 3]) {
        let bindings: Vec<_> = (0..).zip(parts.iter().copied()).collect();
        self.run_bound(kernel, &bindings, params, groups);
    }

    /// The same with the number of each part's binding.
    pub(crate) fn run_bound(
        &self,
        kernel: Kernel,
        bindings: &[(u32, Part<'_>)],
        params: &[u32],
        groups: [usize; 3],
    ) {
        if self.has_failed() || groups.contains(&0) {
            return;
        }
        let is_same = |one: &Part<'_>, other: &Part<'_>| std::ptr::eq(one.buffer, other.buffer);
        // Any number of bindings may read what the host gave, and nobody reads what stands for nothing.
        let counts = |part: &Part<'_>| !part.is_given && !is_same(part, &self.nothing());
        let shared = bindings
            .iter()
            .enumerate()
            .any(|(i, (_, one))| counts(one) && bindings[..i].iter().any(|(_, other)| is_same(one, other)));
        let mut state = locked(&self.state);
        if state.clock.as_ref().is_some_and(Clock::is_full) {
            self.submit_locked(&mut state);
        }
        let submission = state.submission();
        bindings.iter().for_each(|(_, part)| part.buffer.record(submission));
        let State { pipelines, pass, encoder, clock, .. } = &mut *state;
        let pipeline = pipelines.entry((kernel, shared)).or_insert_with(|| self.pipeline(kernel, shared));
        let bind_group = self.device.create_bind_group(&BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &bindings.iter().map(|(binding, part)| part.entry(*binding)).collect::<Vec<_>>(),
        });
        let encoder = encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
        if clock.is_some() {
            *pass = None;
        }
        let pass = pass.get_or_insert_with(|| {
            let timestamp_writes = clock.as_mut().map(|clock| clock.pass(kernel));
            let descriptor = ComputePassDescriptor { label: None, timestamp_writes };
            encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        let params: Vec<u8> = params.iter().flat_map(|word| word.to_le_bytes()).collect();
        pass.set_immediates(0, &params);
        let [x, y, z] = groups.map(|n| n as u32);
        pass.dispatch_workgroups(x, y, z);
    }

    fn pipeline(&self, kernel: Kernel, shared: bool) -> ComputePipeline {
        let source = if shared { kernel.source_of_shared() } else { kernel.source() };
        let source = ShaderSource::Wgsl(source.into());
        let module = self.device.create_shader_module(ShaderModuleDescriptor { label: None, source });
        self.device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some(kernel.entry()),
            compilation_options: Default::default(),
            cache: None,
        })
    }

    /// Commands outside of a pass, behind all that are recorded.
    fn encoder<'s>(&self, state: &'s mut State) -> &'s mut CommandEncoder {
        state.pass = None;
        state.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
    }

    /// Records a copy of bytes: from a buffer and an offset to another buffer and an offset.
    pub(crate) fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), bytes: usize) {
        if !self.has_failed() {
            self.copy_locked(&mut locked(&self.state), from, to, bytes);
        }
    }

    fn copy_locked(&self, state: &mut State, from: (&Buffer, usize), to: (&Buffer, usize), bytes: usize) {
        let submission = state.submission();
        from.0.record(submission);
        to.0.record(submission);
        let (source, target) = (from.0.handle(), to.0.handle());
        self.encoder(state).copy_buffer_to_buffer(source, from.1 as u64, target, to.1 as u64, bytes as u64);
    }

    /// Waits for all that was sent off.
    fn wait(&self, state: &mut State) -> Result<(), BackendError> {
        let waited = self.device.poll(PollType::wait_indefinitely()).map(drop).map_err(|e| self.broken(&e));
        state.written.reap();
        waited
    }

    fn broken(&self, error: &dyn std::error::Error) -> BackendError {
        self.device_error(error.to_string())
    }

    fn device_error(&self, why: String) -> BackendError {
        BackendError::Device { device: self.name.clone(), why }
    }
}

/// Has what goes wrong with a device kept.
fn watch(device: &Device, name: &str, failure: &Arc<Mutex<Failure>>) {
    let (name, first) = (name.to_owned(), Arc::clone(failure));
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let one_line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        locked(&first).first.get_or_insert(match error {
            wgpu::Error::OutOfMemory { .. } => {
                BackendError::OutOfMemory { bytes: 0, what: "a step on the GPU" }
            }
            _ => BackendError::Device { device: name.clone(), why: one_line },
        });
    }));
    let lost = Arc::clone(failure);
    device.set_device_lost_callback(move |reason, why| {
        locked(&lost)
            .lost
            .get_or_insert(format!("the device is lost ({reason:?}) {why}").trim_end().to_owned());
    });
}

#[cfg(test)]
mod tests;
