//! Bytes between the host and a device: what commands are given, what is written, and what is read back.
//!
//! All of it goes through buffers that the host sees, pieces of pools like all others, and is copied by commands. wgpu's own way to write
//! to a buffer takes memory of the driver's each time, and a device whose memory is short is lost there for good.

use super::{Gpu, State, locked};
use crate::memory::{Buffer, Given};
use bitnet_core::BackendError;
use bitnet_memory::Tag;
use std::sync::{Arc, OnceLock};
use wgpu::MapMode;

/// Bytes that are copied to or from the device at once.
pub(super) const CHUNK: usize = 8 << 20;
/// Bytes that the host may have written and the device not copied yet.
const UNDER_WAY: usize = 4 * CHUNK;
/// Room for what a step is given, at first.
pub(super) const ROOM: usize = 64 << 10;

/// What room for gifts is for.
const GIFT: &str = "what a step is given";

/// What the host gives to the commands of a submission: each content once, one behind the other, copied to the device in one piece before
/// all of them.
#[derive(Default)]
pub(super) struct Gifts {
    bytes: Vec<u8>,
    /// Where each content is, and its length.
    contents: Vec<(usize, usize)>,
    /// Where they will be. The next submission's are there again where nobody holds on to these.
    room: Option<Arc<Buffer>>,
    /// What they go through.
    staged: Option<Buffer>,
}

/// Buffers that the host has written.
#[derive(Default)]
pub(super) struct Written {
    /// Those that recorded commands copy.
    recorded: Vec<Buffer>,
    /// Those that commands under way copy, and whether the host may write them again, once it is known.
    sent: Vec<(Buffer, Arc<OnceLock<bool>>)>,
}

impl Written {
    /// Bytes of them.
    fn bytes(&self) -> usize {
        let sent = self.sent.iter().map(|(buffer, _)| buffer);
        self.recorded.iter().chain(sent).map(Buffer::bytes).sum()
    }

    /// Notes that what was recorded has been sent off.
    pub(super) fn sent(&mut self) {
        for buffer in self.recorded.drain(..) {
            let done = Arc::new(OnceLock::new());
            let told = Arc::clone(&done);
            buffer.handle().map_async(MapMode::Write, .., move |outcome| {
                let _ = told.set(outcome.is_ok());
            });
            self.sent.push((buffer, done));
        }
    }

    /// Gives back those that the host may write again.
    pub(super) fn reap(&mut self) {
        for (buffer, done) in self.sent.extract_if(.., |(_, done)| done.get().is_some()) {
            if done.get() != Some(&true) {
                buffer.discard();
            }
        }
    }
}

impl Gpu {
    /// Bytes for the commands that are recorded next, whole words.
    pub(crate) fn give(&self, bytes: &[u8]) -> Given {
        let nothing = || Given { room: Arc::clone(&self.nothing), offset: 0, bytes: 0 };
        if bytes.is_empty() {
            return nothing();
        }
        self.given(&mut locked(&self.state), bytes).unwrap_or_else(|e| {
            self.fail(e);
            nothing()
        })
    }

    fn given(&self, state: &mut State, bytes: &[u8]) -> Result<Given, BackendError> {
        let gifts = &state.gifts;
        let is_known = |(at, len): &&(usize, usize)| gifts.bytes[*at..][..*len] == *bytes;
        let known = gifts.contents.iter().find(is_known).map(|(at, _)| *at);
        if let (Some(room), Some(offset)) = (&gifts.room, known) {
            return Ok(Given { room: Arc::clone(room), offset, bytes: bytes.len() });
        }
        self.fits(bytes.len(), GIFT)?;
        let end = gifts.bytes.len().next_multiple_of(self.alignment) + bytes.len();
        let held = gifts.room.as_ref().map_or(0, |room| room.bytes());
        if gifts.staged.is_none() || held < end {
            self.make_room(state, held, end)?;
        }
        let gifts = &mut state.gifts;
        let room = gifts.room.as_ref().map(Arc::clone).expect("it was made");
        let at = gifts.bytes.len().next_multiple_of(self.alignment);
        gifts.bytes.resize(at, 0);
        gifts.bytes.extend_from_slice(bytes);
        gifts.contents.push((at, bytes.len()));
        Ok(Given { room, offset: at, bytes: bytes.len() })
    }

    /// Makes room for the first gift of a submission, or for one that the room which is held has no place for.
    fn make_room(&self, state: &mut State, held: usize, end: usize) -> Result<(), BackendError> {
        if held < end {
            // What is recorded reads the old room, and may have used what the new one is made of.
            self.submit_locked(state);
            state.gifts.room = None;
        }
        let size = if held < end { end.next_power_of_two().max(ROOM) } else { held };
        state.written.reap();
        let staged = Buffer::new(self.take(state, &self.uploads, Tag::Scratch, size, GIFT)?);
        if state.gifts.room.is_none() {
            let room = self.take(state, &self.storage, Tag::Scratch, size, GIFT)?;
            state.gifts.room = Some(Arc::new(Buffer::new(room)));
        }
        state.gifts.staged = Some(staged);
        Ok(())
    }

    /// Has what was given copied before all that is recorded.
    pub(super) fn send_gifts(&self, state: &mut State) {
        let State { gifts, before, written, .. } = state;
        if let (Some(staged), Some(room)) = (gifts.staged.take(), &gifts.room) {
            let bytes = gifts.bytes.len() as u64;
            match put(&staged, &gifts.bytes) {
                Ok(()) => before
                    .get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
                    .copy_buffer_to_buffer(staged.handle(), 0, room.handle(), 0, bytes),
                Err(e) => self.fail(self.broken(&e)),
            }
            written.recorded.push(staged);
        }
        gifts.bytes.clear();
        gifts.contents.clear();
        // Whoever holds on to the room may record commands that read what is there now.
        gifts.room.take_if(|room| Arc::strong_count(room) > 1);
    }

    /// Writes whole words behind the commands that are recorded.
    pub(crate) fn write(&self, buffer: &Buffer, at: usize, bytes: &[u8]) -> Result<(), BackendError> {
        for (at, bytes) in (at..).step_by(CHUNK).zip(bytes.chunks(CHUNK)) {
            let mut state = locked(&self.state);
            if state.written.bytes() + bytes.len() > UNDER_WAY {
                self.submit_locked(&mut state);
                self.wait(&mut state)?;
            }
            if self.has_failed() {
                return Ok(());
            }
            let staged = self.take(&mut state, &self.uploads, Tag::Scratch, bytes.len(), "an upload")?;
            let staged = Buffer::new(staged);
            if let Err(e) = put(&staged, bytes) {
                staged.discard();
                return Err(self.broken(&e));
            }
            let is_used = buffer.is_recorded(state.submission());
            let encoder = if is_used {
                self.encoder(&mut state)
            } else {
                // Nothing that is recorded reads or writes it: the open pass need not end for it.
                state.before.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
            };
            let (from, to) = (staged.handle(), buffer.handle());
            encoder.copy_buffer_to_buffer(from, 0, to, at as u64, bytes.len() as u64);
            state.written.recorded.push(staged);
        }
        Ok(())
    }

    /// Writes what `fill` gives, one behind the other: whole words in all.
    pub(crate) fn fill(
        &self,
        buffer: &Buffer,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), BackendError>) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let (mut chunk, mut at) = (Vec::with_capacity(CHUNK.min(buffer.bytes())), 0);
        fill(&mut |mut bytes: &[u8]| {
            while !bytes.is_empty() {
                let (now, later) = bytes.split_at(bytes.len().min(CHUNK - chunk.len()));
                chunk.extend_from_slice(now);
                bytes = later;
                if chunk.len() == CHUNK {
                    self.write(buffer, at, &chunk)?;
                    at += CHUNK;
                    chunk.clear();
                }
            }
            Ok(())
        })?;
        self.write(buffer, at, &chunk)
    }

    /// Runs what is recorded, and reads so many bytes at an offset of each buffer: one behind the other, a part of them at a time.
    pub(crate) fn read(
        &self,
        from: &[(&Buffer, usize, usize)],
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), BackendError> {
        let mut state = locked(&self.state);
        if self.has_failed() {
            // Nothing that is recorded runs; what it would have made may be of any size.
            self.submit_locked(&mut state);
            return self.check();
        }
        let mut rest = from.to_vec();
        rest.retain(|(_, _, bytes)| *bytes > 0);
        rest.reverse();
        while !rest.is_empty() {
            let bytes: usize = rest.iter().map(|(_, _, bytes)| bytes).sum();
            let bytes = bytes.min(CHUNK);
            let read = self.take(&mut state, &self.downloads, Tag::Scratch, bytes, "what is read back")?;
            let read = Buffer::new(read);
            let mut at = 0;
            while at < bytes {
                let (buffer, offset, bytes) = rest.pop().expect("there are so many bytes");
                let now = bytes.min(CHUNK - at);
                self.copy_locked(&mut state, (buffer, offset), (&read, at), now);
                at += now;
                if now < bytes {
                    rest.push((buffer, offset + now, bytes - now));
                }
            }
            self.submit_locked(&mut state);
            let outcome = self.check().and_then(|()| self.map(&mut state, &read, bytes, &mut take));
            if let Err(e) = outcome {
                // The host may be about to have it, or not; nobody else gets it.
                read.discard();
                return Err(e);
            }
        }
        self.submit_locked(&mut state);
        self.check()
    }

    /// Waits for what was sent off, and shows the host what is in a buffer by then.
    fn map(
        &self,
        state: &mut State,
        buffer: &Buffer,
        bytes: usize,
        take: &mut impl FnMut(&[u8]),
    ) -> Result<(), BackendError> {
        let outcome = Arc::new(OnceLock::new());
        let told = Arc::clone(&outcome);
        buffer.handle().map_async(MapMode::Read, ..bytes as u64, move |result| {
            let _ = told.set(result);
        });
        self.wait(state)?;
        self.check()?;
        match outcome.get() {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(self.broken(e)),
            None => return Err(self.device_error("what was computed cannot be read".to_owned())),
        }
        take(&buffer.handle().get_mapped_range(..bytes as u64).map_err(|e| self.broken(&e))?);
        buffer.handle().unmap();
        Ok(())
    }
}

/// Writes whole words to the beginning of a buffer that the host has, and leaves it to the device.
fn put(buffer: &Buffer, bytes: &[u8]) -> Result<(), wgpu::MapRangeError> {
    let mut view = buffer.handle().get_mapped_range_mut(..bytes.len() as u64)?;
    view.slice(..).copy_from_slice(bytes);
    drop(view);
    buffer.handle().unmap();
    Ok(())
}
