//! A device with the commands of a step, which are recorded until somebody wants to read.
//!
//! A step that launches what an earlier one did, with the same addresses and numbers, is a graph that the device already has:
//! what differs from step to step (ids, positions, blocks of the cache) is data in memory that the launches read.

use crate::driver::{Driver, Function, Graph, KERNELS, Launch, Staging};
use crate::error::CudaError;
use crate::fixed::Loaded;
use crate::kernels::Kernels;
use crate::memory::{Buffer, CudaSource, Retired, take_retired};
use crate::tuning::Tuning;
use bitnet_core::BackendError;
use bitnet_memory::{DevicePool, Profile, Tag};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Launches that are worth a graph, at least.
const GRAPH_LAUNCHES: usize = 16;
/// Graphs that are kept; the one that was used longest ago makes room.
const GRAPHS: usize = 24;
/// Launches of a long step that are recorded before they are sent off, so that the device works while more are recorded.
const AHEAD: usize = 24;
/// Parameters of a norm.
pub(crate) const NORM_PARAMS: usize = 10;
/// Launches of a kernel that are timed together.
const TIMED: usize = 6;
/// How often, each.
const ROUNDS: usize = 5;
/// Bytes of a weight that are uploaded at once, where a row has no more.
pub(crate) const STAGED: usize = 16 << 20;
/// The least that there is room for of a weight.
const LEAST_STAGED: usize = 1 << 16;
/// Bytes of uploads that there is room for in the beginning.
const UPLOADS: usize = 1 << 20;

pub(crate) struct Gpu {
    name: String,
    pub(crate) driver: Arc<Driver>,
    pub(crate) kernels: Kernels,
    /// The best of the kernels that do the same.
    pub(crate) tuning: Arc<Tuning>,
    pub(crate) memory: Arc<DevicePool<CudaSource>>,
    retired: Arc<Retired>,
    /// What went wrong since somebody asked. Devices that make steps together have one.
    failure: Arc<Failure>,
    state: Mutex<State>,
    /// Devices whose work goes into what is read here next.
    peers: Mutex<Vec<Peer>>,
}

/// What made a step fail.
pub(crate) type Failure = Mutex<Option<BackendError>>;

/// Another device, by its name.
#[derive(Clone)]
struct Peer {
    name: String,
    driver: Arc<Driver>,
}

/// Where a sum of so many elements goes, and of what it is.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) to: u64,
    pub(crate) x: u64,
    pub(crate) y: u64,
    pub(crate) n: usize,
}

/// A rotation of queries, and the keys and values that it appends: the addresses of the tensor and of the layer's keys.
pub(crate) type Rope = (u64, u64);

#[derive(Default)]
struct State {
    launches: Vec<Launch>,
    /// Whether launches of this step are sent off early rather than kept as a graph.
    eager: bool,
    /// What the host gives to the commands of a step, each content once, where it lies in `room`, and how much has been sent.
    uploads: Vec<u8>,
    contents: Vec<(usize, usize)>,
    sent: usize,
    room: Option<Buffer>,
    /// For weights, until the next step begins.
    staging: Option<Staging>,
    /// Changes whenever what was uploaded is forgotten.
    generation: u64,
    /// A sum that is not recorded yet. A norm of it takes it along.
    sum: Option<Sum>,
    /// A launch that is not recorded yet, and what it is known by: an operation that is recorded next may do its work.
    rope: Option<(Launch, Rope)>,
    /// One whose work such an operation did, but for what it leaves in the tensor: recorded if anything else reads that.
    done: Option<(Launch, Rope)>,
    graphs: Vec<(Vec<Launch>, Graph)>,
    /// Steps that were run once, by their hash.
    seen: HashSet<u64>,
    fixed: Loaded,
}

impl State {
    fn forget_uploads(&mut self) {
        self.uploads.clear();
        self.contents.clear();
        self.sent = 0;
        self.generation += 1;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    pub(crate) fn open(number: usize, tuning: Arc<Tuning>) -> Result<Self, CudaError> {
        let driver = Arc::new(Driver::open(number, KERNELS)?);
        tuning.open(driver.details());
        let kernels = Kernels::load(&driver)?;
        let name = format!("cuda:{number}");
        let source = CudaSource::new(Arc::clone(&driver));
        let memory = Arc::new(DevicePool::new(name.clone(), source, Profile::Inference.into()));
        let (retired, failure, state, peers) = Default::default();
        Ok(Self { name, driver, kernels, tuning, memory, retired, failure, state, peers })
    }

    /// Makes the step fail. What is recorded from here on is not run.
    pub(crate) fn fail(&self, error: BackendError) {
        locked(&self.failure).get_or_insert(error);
    }

    /// Gives what went wrong, once.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        locked(&self.failure).take().map_or(Ok(()), Err)
    }

    /// Where it is kept that a step fails.
    pub(crate) fn failure(&self) -> &Arc<Failure> {
        &self.failure
    }

    /// Makes steps fail with those of another device, and those with these.
    pub(crate) fn fail_with(&mut self, failure: &Arc<Failure>) {
        self.failure = Arc::clone(failure);
    }

    /// Forgets what is recorded, and waits for what was sent off.
    pub(crate) fn abandon(&self) {
        let mut state = locked(&self.state);
        state.launches.clear();
        (state.sum, state.rope, state.done) = (None, None, None);
        // A context that is broken gives its error again to whoever asks something of it.
        let _ = self.synchronize();
    }

    fn has_failed(&self) -> bool {
        locked(&self.failure).is_some()
    }

    pub(crate) fn error(&self, error: CudaError, bytes: usize, what: &'static str) -> BackendError {
        match error {
            CudaError::OutOfMemory => BackendError::OutOfMemory { bytes, what },
            error => BackendError::Device { device: self.name.clone(), why: error.to_string() },
        }
    }

    /// Memory for kernels; what it holds is undefined.
    pub(crate) fn storage_for(
        &self,
        tag: Tag,
        bytes: usize,
        what: &'static str,
    ) -> Result<Buffer, BackendError> {
        let taken = self.take(&mut locked(&self.state), tag, bytes);
        taken.map_err(|e| self.error(e, bytes, what))
    }

    /// Memory for kernels with zeros in it.
    pub(crate) fn zeroed(&self, tag: Tag, bytes: usize, what: &'static str) -> Result<Buffer, BackendError> {
        let buffer = self.storage_for(tag, bytes, what)?;
        let _order = locked(&self.state);
        self.driver.zero(&buffer).map_err(|e| self.error(e, bytes, what))?;
        Ok(buffer)
    }

    fn take(&self, state: &mut State, tag: Tag, bytes: usize) -> Result<Buffer, CudaError> {
        let pool = &self.memory;
        let piece = || pool.piece(bytes, tag).map_err(|_| pool.source().refusal());
        let piece = match piece() {
            Err(CudaError::OutOfMemory) => {
                // Memory that nobody needs any more comes back when what uses it has run.
                self.settle(state);
                self.send(state);
                self.synchronize()?;
                piece()
            }
            outcome => outcome,
        };
        Ok(Buffer::new(piece?, bytes, &self.retired))
    }

    /// Waits for what was sent off, with nothing recorded that was not, and lets memory go that had retired before.
    fn synchronize(&self) -> Result<(), CudaError> {
        let retired = take_retired(&self.retired);
        let outcome = self.driver.synchronize();
        drop(retired);
        outcome
    }

    /// Puts bytes into a buffer at once: behind what is under way, before what is recorded.
    pub(crate) fn write(&self, buffer: &Buffer, at: usize, bytes: &[u8]) -> Result<(), BackendError> {
        let _order = locked(&self.state);
        self.driver.upload(buffer, at, bytes).map_err(|e| self.error(e, bytes.len(), "an upload"))
    }

    /// Has a piece of a weight copied to the device, where launches, made for its address there, put it where kernels want it. The device
    /// copies the next piece meanwhile. The bytes are copied before this returns; what goes wrong later is told when something waits.
    pub(crate) fn load(
        &self,
        bytes: &[u8],
        launches: impl FnOnce(u64) -> Vec<Launch>,
    ) -> Result<(), BackendError> {
        self.staged(bytes, |staging| {
            let launches = launches(staging.put(bytes)?);
            // SAFETY: as in `send_launches`; the piece stays where it is until they have run.
            unsafe { self.driver.launch(&launches) }?;
            staging.release()
        })
    }

    /// Has a piece of a weight copied into a buffer that nothing has used yet, as [`Gpu::load`] does it.
    pub(crate) fn load_into(&self, buffer: &Buffer, at: usize, bytes: &[u8]) -> Result<(), BackendError> {
        self.staged(bytes, |staging| staging.put_into(bytes, buffer, at))
    }

    fn staged(
        &self,
        bytes: &[u8],
        put: impl FnOnce(&mut Staging) -> Result<(), CudaError>,
    ) -> Result<(), BackendError> {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        self.send(&mut state);
        if self.has_failed() {
            return self.check();
        }
        let outcome = self.staging(&mut state, bytes.len()).and_then(put);
        outcome.map_err(|e| self.error(e, bytes.len(), "weights on their way"))
    }

    /// What uploads of so many bytes go through.
    fn staging<'a>(&self, state: &'a mut State, bytes: usize) -> Result<&'a mut Staging, CudaError> {
        let staging = match state.staging.take() {
            Some(staging) if staging.bytes() >= bytes => staging,
            smaller => {
                drop(smaller);
                let size = bytes.next_power_of_two().max(LEAST_STAGED);
                let buffers = [self.take(state, Tag::Scratch, size)?, self.take(state, Tag::Scratch, size)?];
                Staging::new(&self.driver, buffers, size)?
            }
        };
        Ok(state.staging.insert(staging))
    }

    /// Begins a step of so many tokens: what an earlier one left recorded is sent off.
    pub(crate) fn begin(&self, tokens: usize) {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        self.send(&mut state);
        state.eager = tokens > 16;
        state.done = None;
        state.staging = None;
        state.forget_uploads();
    }

    /// As long as this stays the same, addresses of uploads are good.
    pub(crate) fn generation(&self) -> u64 {
        locked(&self.state).generation
    }

    /// The address of these bytes for the commands that are recorded next.
    pub(crate) fn upload(&self, bytes: &[u8]) -> u64 {
        let mut state = locked(&self.state);
        let State { uploads, contents, room, .. } = &mut *state;
        let known = contents.iter().find(|(at, len)| *len == bytes.len() && uploads[*at..][..*len] == *bytes);
        if let (Some((at, _)), Some(room)) = (known, &*room) {
            return room.address() + *at as u64;
        }
        let at = uploads.len();
        let end = (at + bytes.len()).next_multiple_of(16);
        if room.as_ref().is_none_or(|room| room.bytes() < end) {
            // What is recorded still reads from the room that it was promised, and so does what will be soon.
            self.settle(&mut state);
            self.send(&mut state);
            if let Err(e) = self.send_uploads(&mut state) {
                self.fail(self.error(e, 0, "what a step is given"));
            }
            state.room = None;
            let size = end.next_power_of_two().max(UPLOADS);
            match self.take(&mut state, Tag::Scratch, size) {
                Ok(room) => state.room = Some(room),
                Err(e) => {
                    self.fail(self.error(e, size, "what a step is given"));
                    return 0;
                }
            }
            state.forget_uploads();
        }
        let at = state.uploads.len();
        state.uploads.extend_from_slice(bytes);
        let padded = state.uploads.len().next_multiple_of(16);
        state.uploads.resize(padded, 0);
        state.contents.push((at, bytes.len()));
        state.room.as_ref().map_or(0, |room| room.address() + at as u64)
    }

    /// Records a kernel: `grid` blocks of `threads` threads with `shared` bytes, and its arguments.
    pub(crate) fn run(
        &self,
        kernel: Function,
        grid: [usize; 3],
        threads: u32,
        shared: usize,
        params: &[u64],
    ) {
        self.run_launch(Launch::new(kernel, grid, threads, shared, params), grid);
    }

    /// Records a launch of `grid` blocks.
    pub(crate) fn run_launch(&self, launch: Launch, grid: [usize; 3]) {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        if let Some((rotation, _)) = state.done.take_if(|(_, (tensor, _))| launch.mentions(*tensor)) {
            self.record(&mut state, rotation, [1; 3]);
        }
        self.record(&mut state, launch, grid);
    }

    /// Records a rotation, or leaves it to the attention that is recorded next.
    pub(crate) fn rotate(&self, launch: Launch, rope: Rope) {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        state.done = None;
        state.rope = Some((launch, rope));
    }

    /// Whether the operation that is recorded next has to rotate, because nothing did.
    pub(crate) fn take_rotation(&self, rope: Rope) -> bool {
        let mut state = locked(&self.state);
        if state.rope.is_some_and(|(_, known)| known == rope) {
            state.done = state.rope.take();
        } else {
            self.settle(&mut state);
        }
        state.done.is_some_and(|(_, known)| known == rope)
    }

    /// Says that nobody will read what a tensor holds.
    pub(crate) fn overwritten(&self, tensor: u64) {
        locked(&self.state).done.take_if(|(_, (known, _))| *known == tensor);
    }

    /// Records a launch that rotates.
    pub(crate) fn run_rotating(&self, launch: Launch, grid: [usize; 3]) {
        self.record(&mut locked(&self.state), launch, grid);
    }

    /// Records a sum, or leaves it to a norm that is recorded next.
    pub(crate) fn add(&self, sum: Sum) {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        state.sum = Some(sum);
    }

    /// What is at an address, of `n` elements, if that is a sum that was put off; the caller adds. Anything else is recorded.
    pub(crate) fn take_sum(&self, to: u64, n: usize) -> Option<Sum> {
        let mut state = locked(&self.state);
        let sum = state.sum.take_if(|sum| (sum.to, sum.n) == (to, n));
        self.settle(&mut state);
        sum
    }

    /// Takes back what was recorded last, if that is the norm of one token with these int8 activations and its arguments are none of
    /// `written`: what does its work writes there while others still read.
    pub(crate) fn take_norm(&self, q: u64, written: u64) -> Option<[u64; NORM_PARAMS]> {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        let launch = state.launches.last()?;
        let params: &[u64; NORM_PARAMS] = launch.is(self.kernels.rms_norm, [1, 1, 1])?;
        let [x, extra, sum, _, _, own_q, ..] = *params;
        let apart = (extra == 0 || sum != x) && written != x && written != extra;
        let params = (own_q == q && apart).then_some(*params)?;
        state.launches.pop();
        Some(params)
    }

    /// The index of the launch that takes the shortest time here; all of them do the same. `None`: the step has failed.
    pub(crate) fn fastest(&self, launches: &[Launch]) -> Option<usize> {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        self.send(&mut state);
        if self.has_failed() {
            return None;
        }
        let time = |launch: &Launch| -> Result<Duration, CudaError> {
            self.synchronize()?;
            let begin = Instant::now();
            // SAFETY: as in `send_launches`.
            unsafe { self.driver.launch(&[*launch; TIMED]) }?;
            self.driver.synchronize()?;
            Ok(begin.elapsed())
        };
        // Rounds of all of them, since a device takes a while to come up to its speed.
        let mut least = vec![Duration::MAX; launches.len()];
        for _ in 0..ROUNDS {
            for (launch, least) in launches.iter().zip(&mut least) {
                match time(launch) {
                    Ok(time) => *least = time.min(*least),
                    Err(e) => {
                        self.fail(self.error(e, 0, "a step on the GPU"));
                        return None;
                    }
                }
            }
        }
        (0..least.len()).min_by_key(|i| least[*i])
    }

    /// Records the sum that was put off, if there is one.
    pub(crate) fn settle_sum(&self) {
        self.settle(&mut locked(&self.state));
    }

    fn settle(&self, state: &mut State) {
        if let Some(Sum { to, x, y, n }) = state.sum.take() {
            let grid = elements(n);
            self.record(state, Launch::new(self.kernels.add, grid, 256, 0, &[to, x, y, n as u64]), grid);
        }
        if let Some((launch, _)) = state.rope.take() {
            self.record(state, launch, [1; 3]);
        }
    }

    fn record(&self, state: &mut State, launch: Launch, grid: [usize; 3]) {
        if grid.contains(&0) || self.has_failed() {
            return;
        }
        state.launches.push(launch);
        if state.eager && state.launches.len() >= AHEAD {
            self.send(state);
        }
    }

    /// Sends the recorded commands off.
    fn send(&self, state: &mut State) {
        let launches = std::mem::take(&mut state.launches);
        if launches.is_empty() || self.has_failed() {
            return;
        }
        if let Err(e) = self.send_launches(state, &launches) {
            self.fail(self.error(e, 0, "a step on the GPU"));
        }
        // The room is used again.
        state.launches = launches;
        state.launches.clear();
    }

    fn send_uploads(&self, state: &mut State) -> Result<(), CudaError> {
        if let Some(room) = &state.room {
            self.driver.upload(room, state.sent, &state.uploads[state.sent..])?;
            state.sent = state.uploads.len();
        }
        Ok(())
    }

    fn send_launches(&self, state: &mut State, launches: &[Launch]) -> Result<(), CudaError> {
        self.send_uploads(state)?;
        if state.fixed.refresh(&self.driver, &self.tuning) {
            for (_, graph) in state.graphs.drain(..) {
                self.driver.forget(graph)?;
            }
        }
        if self.tuning.observes() {
            self.tuning.note(state.fixed.candidates(&self.driver, launches));
        }
        // SAFETY: here and below: the operations of `backend.rs` and `weight.rs` record launches with the parameters of their
        // kernels and with addresses of buffers that hold what the shapes ask for. A buffer is given back only when the stream
        // was waited for with nothing recorded before it went. A graph is run where the very launches are recorded that it
        // was made of, so that its addresses are those of buffers that live now. A kernel for fixed sizes has the parameters of the one
        // that it stands for, and is launched with the sizes that it was compiled for.
        let now = |fixed: &mut Loaded| unsafe { self.driver.launch(&fixed.of(&self.driver, launches)) };
        // SAFETY: as above.
        let again = |graph: &Graph| unsafe { self.driver.run(graph) };
        if state.eager || launches.len() < GRAPH_LAUNCHES {
            return now(&mut state.fixed);
        }
        if let Some(at) = state.graphs.iter().position(|(known, _)| known == launches) {
            let found = state.graphs.remove(at);
            let run = again(&found.1);
            state.graphs.push(found);
            return run;
        }
        let mut hasher = DefaultHasher::new();
        launches.hash(&mut hasher);
        if state.seen.len() > 64 * GRAPHS {
            state.seen.clear();
        }
        if state.seen.insert(hasher.finish()) {
            return now(&mut state.fixed);
        }
        if state.graphs.len() == GRAPHS {
            let (_, oldest) = state.graphs.remove(0);
            self.driver.forget(oldest)?;
        }
        // SAFETY: as above.
        let graph = unsafe { self.driver.capture(&state.fixed.of(&self.driver, launches)) }?;
        let run = again(&graph);
        state.graphs.push((launches.to_vec(), graph));
        run
    }

    /// Has bytes copied behind what is recorded.
    pub(crate) fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), bytes: usize) {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        self.send(&mut state);
        if !self.has_failed() {
            let _ = self.driver.copy(from, to, bytes).map_err(|e| self.fail(self.error(e, bytes, "a copy")));
        }
    }

    /// Sends off what is recorded, for another device to go on with; gives what went wrong.
    pub(crate) fn hand_over(&self) -> Result<(), BackendError> {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        self.send(&mut state);
        if self.has_failed() {
            let _ = self.synchronize();
            return self.check();
        }
        self.driver.mark().map_err(|e| self.error(e, 0, "a copy"))
    }

    /// Has the beginning of a buffer of another device copied, up to which that one has handed over. What is recorded there next waits
    /// until it is.
    pub(crate) fn receive(
        &self,
        other: &Self,
        from: &Buffer,
        to: &Buffer,
        bytes: usize,
    ) -> Result<(), BackendError> {
        let mut peers = locked(&self.peers);
        let before = std::mem::take(&mut *locked(&other.peers));
        let itself = Peer { name: other.name.clone(), driver: Arc::clone(&other.driver) };
        for peer in before.into_iter().chain([itself]) {
            if !peers.iter().any(|known| Arc::ptr_eq(&known.driver, &peer.driver)) {
                peers.push(peer);
            }
        }
        let copied = self
            .driver
            .reach(&other.driver)
            .and_then(|()| self.driver.wait_for(&other.driver))
            .and_then(|()| self.driver.copy_from(&other.driver, (from, 0), (to, 0), bytes))
            .and_then(|()| self.driver.mark());
        copied.map_err(|e| self.error(e, bytes, "a copy"))?;
        other.driver.wait_for(&self.driver).map_err(|e| other.error(e, bytes, "a copy"))
    }

    /// Runs what is recorded, and reads so many bytes at an offset of each buffer, one behind the other.
    pub(crate) fn read(
        &self,
        from: &[(&Buffer, usize, usize)],
        take: impl FnOnce(&[u8]),
    ) -> Result<(), BackendError> {
        let mut state = locked(&self.state);
        self.settle(&mut state);
        let reads = |tensor: u64| from.iter().any(|(buffer, _, _)| buffer.address() == tensor);
        if let Some((rotation, _)) = state.done.take_if(|(_, (tensor, _))| reads(*tensor)) {
            self.record(&mut state, rotation, [1; 3]);
        }
        self.send(&mut state);
        if self.has_failed() {
            // What ran of the step must not be met by the next one.
            let _ = self.synchronize();
            return self.check();
        }
        // What they failed to do is not seen here; by the time that this device is done, they are.
        for Peer { name, driver } in std::mem::take(&mut *locked(&self.peers)) {
            let failed = |e: CudaError| BackendError::Device { device: name, why: e.to_string() };
            driver.synchronize().map_err(failed)?;
        }
        let retired = take_retired(&self.retired);
        let outcome = self.driver.read(from, take);
        drop(retired);
        outcome.map_err(|e| self.error(e, 0, "what is read back"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // A context that is broken gives an error here, which nobody can do anything about.
        let _ = self.synchronize();
    }
}

/// Blocks of 256 threads for so many elements, which threads take in strides.
pub(crate) fn elements(n: usize) -> [usize; 3] {
    [n.div_ceil(256).min(4096), 1, 1]
}
