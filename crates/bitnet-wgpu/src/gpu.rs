//! A device: its memory, its pipelines, and the commands of a step, which are recorded until somebody wants to read.

use crate::adapter::{self, AdapterDetails, WgpuError};
use crate::kernel::Kernel;
use bitnet_core::BackendError;
use pollster::block_on;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::{
    BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer, BufferBinding, BufferDescriptor,
    BufferUsages, CommandEncoder, ComputePass, ComputePipeline, ComputePipelineDescriptor, Device,
    DeviceDescriptor, Features, MapMode, PollType, Queue, ShaderModuleDescriptor, ShaderSource,
};

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
    max_buffer: usize,
    /// What places of bindings are multiples of.
    alignment: usize,
    /// Stands for a buffer that could not be had.
    nothing: Buffer,
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
    /// What the host gives to the recorded commands: each content once.
    uploads: Vec<(Vec<u8>, Buffer)>,
    /// Buffers for the next uploads.
    spare_uploads: Vec<Buffer>,
    /// What the host reads from.
    staging: Option<Buffer>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    pub(crate) fn open(number: usize) -> Result<Self, WgpuError> {
        let mut adapters = adapter::usable();
        if number >= adapters.len() {
            return Err(WgpuError::NoSuchAdapter { number, found: adapters.len() });
        }
        let adapter = adapters.swap_remove(number);
        let (details, limits) = (adapter::details(&adapter), adapter.limits());
        let (max_buffer, alignment) = (limits.max_buffer_size, limits.min_storage_buffer_offset_alignment);
        let max_binding = limits.max_storage_buffer_binding_size.min(max_buffer);
        let (device, queue) = block_on(adapter.request_device(&DeviceDescriptor {
            required_features: Features::IMMEDIATES,
            required_limits: limits,
            ..DeviceDescriptor::default()
        }))
        .map_err(|source| WgpuError::Open { name: details.name.clone(), source })?;

        let failure = Arc::<Mutex<Failure>>::default();
        let name = format!("wgpu:{number}");
        let (device_name, first) = (name.clone(), Arc::clone(&failure));
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let one_line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            locked(&first).first.get_or_insert(match error {
                wgpu::Error::OutOfMemory { .. } => {
                    BackendError::OutOfMemory { bytes: 0, what: "a step on the GPU" }
                }
                _ => BackendError::Device { device: device_name.clone(), why: one_line },
            });
        }));
        let lost = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, why| {
            locked(&lost)
                .lost
                .get_or_insert(format!("the device is lost ({reason:?}) {why}").trim_end().to_owned());
        });
        let nothing = device.create_buffer(&BufferDescriptor {
            label: None,
            size: 16,
            usage: BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let state = Mutex::default();
        let [max_binding, max_buffer] =
            [max_binding, max_buffer].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let alignment = alignment as usize;
        Ok(Self { name, details, device, queue, max_binding, max_buffer, alignment, nothing, failure, state })
    }

    /// Bindings are no larger than this, as on an adapter that allows no more.
    #[cfg(test)]
    pub(crate) fn limit_bindings(&mut self, bytes: usize) {
        self.max_binding = bytes;
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

    /// Bytes that a buffer may have of which a shader sees all.
    pub(crate) fn max_binding(&self) -> usize {
        self.max_binding
    }

    /// What the place of a binding in its buffer is a multiple of.
    pub(crate) fn alignment(&self) -> usize {
        self.alignment
    }

    pub(crate) fn nothing(&self) -> &Buffer {
        &self.nothing
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

    /// Memory for shaders, zeroed.
    pub(crate) fn storage(&self, bytes: usize, what: &'static str) -> Result<Buffer, BackendError> {
        self.buffer(
            bytes,
            what,
            BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            false,
        )
    }

    /// Memory of which shaders see parts, and a word more, so that there is one even where it ends.
    pub(crate) fn large(&self, bytes: usize) -> Result<Buffer, BackendError> {
        let what = "a buffer of the GPU";
        let none = BackendError::OutOfMemory { bytes, what };
        if bytes > self.max_buffer - 8 {
            return Err(none);
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        self.create(bytes.next_multiple_of(4) + 4, what, usage, false).map_err(|e| match e {
            BackendError::OutOfMemory { .. } => none,
            e => e,
        })
    }

    /// Memory for shaders with what `fill` puts into it, one behind the other.
    pub(crate) fn filled(
        &self,
        bytes: usize,
        what: &'static str,
        fill: impl FnOnce(&mut dyn FnMut(&[u8])),
    ) -> Result<Buffer, BackendError> {
        let buffer = self.buffer(bytes, what, BufferUsages::STORAGE, true)?;
        let mut view = buffer.get_mapped_range_mut(..).map_err(|e| self.broken(&e))?;
        let mut at = 0;
        fill(&mut |bytes| {
            view.slice(at..at + bytes.len()).copy_from_slice(bytes);
            at += bytes.len();
        });
        drop(view);
        buffer.unmap();
        Ok(buffer)
    }

    fn buffer(
        &self,
        bytes: usize,
        what: &'static str,
        usage: BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<Buffer, BackendError> {
        if bytes > self.max_binding {
            return Err(BackendError::Unsupported {
                backend: "wgpu",
                what: format!("{what} of {bytes} bytes in one piece: {} are the most", self.max_binding),
                hint: "a smaller --ctx-size or --batch-size, or --device cpu, would do",
            });
        }
        self.create(bytes, what, usage, mapped_at_creation)
    }

    fn create(
        &self,
        bytes: usize,
        what: &'static str,
        usage: BufferUsages,
        mapped_at_creation: bool,
    ) -> Result<Buffer, BackendError> {
        let size = bytes.next_multiple_of(4).max(16) as u64;
        let buffer =
            self.device.create_buffer(&BufferDescriptor { label: None, size, usage, mapped_at_creation });
        self.check().map_err(|e| match e {
            BackendError::OutOfMemory { .. } => BackendError::OutOfMemory { bytes, what },
            e => e,
        })?;
        Ok(buffer)
    }

    /// Has what was uploaded taken over, so that it is not held twice, and gives what went wrong.
    pub(crate) fn settle(&self) -> Result<(), BackendError> {
        self.queue.submit([]);
        self.wait()?;
        self.check()
    }

    /// Sends the recorded commands off.
    pub(crate) fn submit(&self) {
        self.submit_locked(&mut locked(&self.state));
    }

    fn submit_locked(&self, state: &mut State) {
        state.pass = None;
        if let Some(encoder) = state.encoder.take().filter(|_| !self.has_failed()) {
            self.queue.submit([encoder.finish()]);
        }
        let State { uploads, spare_uploads, .. } = state;
        spare_uploads.extend(uploads.drain(..).map(|(_, buffer)| buffer));
    }

    pub(crate) fn has_failed(&self) -> bool {
        let failure = locked(&self.failure);
        failure.first.is_some() || failure.lost.is_some()
    }

    /// A buffer with these words for the commands that are recorded next.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Buffer {
        let mut state = locked(&self.state);
        let known = state.uploads.iter().find(|(content, _)| content == bytes);
        if let Some((_, buffer)) = known {
            return buffer.clone();
        }
        let fits = |b: &Buffer| b.size() >= bytes.len() as u64;
        let buffer = match state.spare_uploads.iter().position(fits) {
            Some(at) => state.spare_uploads.swap_remove(at),
            None => match self.storage(bytes.len().next_power_of_two(), "what a step is given") {
                Ok(buffer) => buffer,
                Err(e) => {
                    self.fail(e);
                    return self.nothing.clone();
                }
            },
        };
        self.queue.write_buffer(&buffer, 0, bytes);
        state.uploads.push((bytes.to_vec(), buffer.clone()));
        buffer
    }

    /// Records a kernel on `groups` workgroups, with buffers in the order of their bindings and parameters as it declares them.
    pub(crate) fn run(&self, kernel: Kernel, buffers: &[&Buffer], params: &[u32], groups: [usize; 3]) {
        let whole = |buffer| BufferBinding { buffer, offset: 0, size: None };
        let bindings: Vec<_> = (0..).zip(buffers.iter().map(|buffer| whole(*buffer))).collect();
        self.run_on(kernel, &bindings, params, groups);
    }

    /// The same with parts of buffers, each with its binding.
    pub(crate) fn run_on(
        &self,
        kernel: Kernel,
        bindings: &[(u32, BufferBinding<'_>)],
        params: &[u32],
        groups: [usize; 3],
    ) {
        if self.has_failed() || groups.contains(&0) {
            return;
        }
        let shared = bindings.iter().enumerate().any(|(i, (_, one))| {
            one.buffer != &self.nothing && bindings[..i].iter().any(|(_, other)| other.buffer == one.buffer)
        });
        let mut state = locked(&self.state);
        let State { pipelines, pass, encoder, .. } = &mut *state;
        let pipeline = pipelines.entry((kernel, shared)).or_insert_with(|| self.pipeline(kernel, shared));
        let entries: Vec<BindGroupEntry<'_>> = bindings
            .iter()
            .map(|(binding, part)| BindGroupEntry {
                binding: *binding,
                resource: BindingResource::Buffer(part.clone()),
            })
            .collect();
        let layout = pipeline.get_bind_group_layout(0);
        let bind_group = self.device.create_bind_group(&BindGroupDescriptor {
            label: None,
            layout: &layout,
            entries: &entries,
        });
        let encoder = encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
        let pass =
            pass.get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
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

    /// Records copies of bytes: from a buffer and an offset to a buffer and an offset.
    pub(crate) fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), bytes: usize) {
        if !self.has_failed() {
            self.copy_locked(&mut locked(&self.state), from, to, bytes);
        }
    }

    fn copy_locked(&self, state: &mut State, from: (&Buffer, usize), to: (&Buffer, usize), bytes: usize) {
        state.pass = None;
        let encoder =
            state.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
        encoder.copy_buffer_to_buffer(from.0, from.1 as u64, to.0, to.1 as u64, bytes as u64);
    }

    /// Writes bytes behind the commands that are recorded.
    pub(crate) fn write(&self, buffer: &Buffer, at: usize, bytes: &[u8]) {
        self.submit();
        self.queue.write_buffer(buffer, at as u64, bytes);
    }

    /// Runs what is recorded, and reads so many bytes at an offset of each buffer, one behind the other.
    pub(crate) fn read(
        &self,
        from: &[(&Buffer, usize, usize)],
        take: impl FnOnce(&[u8]),
    ) -> Result<(), BackendError> {
        let bytes: usize = from.iter().map(|(_, _, bytes)| bytes).sum();
        let mut state = locked(&self.state);
        if self.has_failed() {
            // Nothing that is recorded runs; what it would have made may be of any size.
            self.submit_locked(&mut state);
            return self.check();
        }
        let staging = match state.staging.take().filter(|b| b.size() >= bytes as u64) {
            Some(staging) => staging,
            None => {
                let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
                self.create(bytes, "what is read back", usage, false)?
            }
        };
        let mut at = 0;
        for (buffer, offset, bytes) in from {
            if !self.has_failed() {
                self.copy_locked(&mut state, (buffer, *offset), (&staging, at), *bytes);
            }
            at += bytes;
        }
        self.submit_locked(&mut state);
        self.check()?;
        if bytes > 0 {
            let outcome = Arc::new(Mutex::new(None));
            let mapped = Arc::clone(&outcome);
            staging.map_async(MapMode::Read, ..bytes as u64, move |result| *locked(&mapped) = Some(result));
            self.wait()?;
            self.check()?;
            match locked(&outcome).take() {
                Some(Ok(())) => {}
                Some(Err(e)) => return Err(self.broken(&e)),
                None => return Err(self.device_error("what was computed cannot be read".to_owned())),
            }
            take(&staging.get_mapped_range(..bytes as u64).map_err(|e| self.broken(&e))?);
            staging.unmap();
        }
        state.staging = Some(staging);
        Ok(())
    }

    fn wait(&self) -> Result<(), BackendError> {
        self.device.poll(PollType::wait_indefinitely()).map(drop).map_err(|e| self.broken(&e))
    }

    fn broken(&self, error: &dyn std::error::Error) -> BackendError {
        self.device_error(error.to_string())
    }

    fn device_error(&self, why: String) -> BackendError {
        BackendError::Device { device: self.name.clone(), why }
    }
}
