//! One blob: ranged requests, resumed, verified, put in place.

use crate::cache::RepoFolder;
use crate::event::{Event, Events};
use crate::http::{Answer, Attempt, Client, Follow, Method, Request};
use crate::partial::Partial;
use crate::wire::{self, FileHead, HashKind};
use crate::{Cancel, HubError};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Bytes of one read.
const BUFFER: usize = 128 << 10;

/// A file to fetch.
pub(crate) struct Blob {
    /// Its path in the repository.
    pub(crate) file: Arc<str>,
    /// Its address on the hub.
    pub(crate) url: String,
    pub(crate) head: FileHead,
    pub(crate) size: u64,
}

/// What the downloads of one pull share.
pub(crate) struct Transfer<'a> {
    pub(crate) client: &'a Client,
    pub(crate) folder: &'a RepoFolder,
    pub(crate) events: Events<'a>,
    pub(crate) permits: Permits,
}

impl Transfer<'_> {
    /// Fetches a blob whose lock is held, unless it is there.
    pub(crate) fn blob(&self, blob: &Blob, cancel: &Cancel) -> Result<(), HubError> {
        let target = self.folder.blob(&blob.head.etag);
        let mut partial = Partial::open(&target, blob.size)?;
        (self.events)(Event::Started { file: Arc::clone(&blob.file), present_bytes: partial.done_bytes() });
        for last in [false, true] {
            partial = self.bytes(blob, partial, cancel)?;
            (self.events)(Event::Verifying { file: Arc::clone(&blob.file) });
            match verify(&blob.file, partial.path(), &blob.head, cancel) {
                Ok(()) => return partial.finish(&target),
                // What an earlier attempt left may be damaged; then a new one helps.
                Err(HubError::Damaged { .. }) if !last => {
                    partial.clear()?;
                    (self.events)(Event::Restarted { file: Arc::clone(&blob.file) });
                }
                Err(e @ HubError::Damaged { .. }) => {
                    partial.remove();
                    return Err(e);
                }
                Err(e) => return Err(e),
            }
        }
        unreachable!("the second round returns")
    }

    /// Lets all missing bytes arrive.
    fn bytes(&self, blob: &Blob, partial: Partial, cancel: &Cancel) -> Result<Partial, HubError> {
        let stop = cancel.child();
        let fetch = Fetch {
            transfer: self,
            blob,
            partial: Mutex::new(partial),
            direct: Mutex::new(None),
            ranged: AtomicBool::new(true),
            stop,
        };
        let settings = self.client.settings();
        let pieces = blob.size.div_ceil(settings.piece_bytes.max(1));
        let workers = usize::try_from(pieces).unwrap_or(usize::MAX).clamp(1, settings.connections.max(1));
        let first_error = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    if let Err(e) = fetch.pieces() {
                        fetch.stop.cancel();
                        keep_first(&first_error, e);
                    }
                });
            }
        });
        let result = lock(&first_error).take();
        let ranged = fetch.ranged.load(Ordering::Relaxed);
        let mut fetch = Fetch { stop: cancel.clone(), ..fetch };
        match result {
            _ if !ranged => fetch.stream()?,
            Some(e) => {
                // The next attempt goes on here.
                fetch.partial.get_mut().unwrap_or_else(PoisonError::into_inner).save()?;
                return Err(e);
            }
            None => {}
        }
        Ok(fetch.partial.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps the error that came first; that others were stopped because of it is none.
pub(crate) fn keep_first(first: &Mutex<Option<HubError>>, e: HubError) {
    let mut first = lock(first);
    if first.is_none() || matches!(*first, Some(HubError::Cancelled)) {
        *first = Some(e);
    }
}

/// The transfer of one blob.
struct Fetch<'a> {
    transfer: &'a Transfer<'a>,
    blob: &'a Blob,
    partial: Mutex<Partial>,
    /// Where the hub leads to. It is asked again when that address has expired.
    direct: Mutex<Option<String>>,
    /// Whether the server answers with the ranges it is asked for.
    ranged: AtomicBool,
    stop: Cancel,
}

impl Fetch<'_> {
    /// Fetches piece after piece until none is left.
    fn pieces(&self) -> Result<(), HubError> {
        let client = self.transfer.client;
        let mut file = self.open()?;
        loop {
            let Some(range) = lock(&self.partial).take(client.settings().piece_bytes) else { return Ok(()) };
            let _permit = self.transfer.permits.acquire();
            let mut at = range.0;
            let done = client.persist(&self.blob.url, self.transfer.events, &self.stop, &mut || {
                self.piece(&mut file, &mut at, range.1)
            });
            lock(&self.partial).give_back(range);
            done?;
        }
    }

    fn open(&self) -> Result<File, HubError> {
        let path = lock(&self.partial).path().to_owned();
        File::options().write(true).open(&path).map_err(HubError::io(&path))
    }

    /// Bytes from `at` to `end`; `at` moves along.
    fn piece(&self, file: &mut File, at: &mut u64, end: u64) -> Result<(), Attempt> {
        let whole = (*at, end) == (0, self.blob.size);
        if whole && end == 0 {
            return Ok(());
        }
        let mut answer = self.answer((!whole).then_some((*at, end)))?;
        let mut end = end;
        match (answer.status(), answer.header("content-range").and_then(wire::content_range)) {
            (206, Some((first, last, size))) if first == *at && size == self.blob.size => end = end.min(last),
            (206, Some((_, _, size))) if size != self.blob.size => return Err(self.other_size(size).into()),
            (206, _) => {
                return Err(HubError::response(
                    self.address(&answer),
                    "it is another range than was asked for",
                )
                .into());
            }
            _ if whole => {}
            _ => {
                self.ranged.store(false, Ordering::Relaxed);
                self.stop.cancel();
                return Err(HubError::Cancelled.into());
            }
        }
        self.receive(&mut answer, file, at, end, Account::Bytes)
    }

    /// The whole file in one answer, again and again from its beginning: for servers without ranges.
    fn stream(&self) -> Result<(), HubError> {
        let mut file = self.open()?;
        let _permit = self.transfer.permits.acquire();
        self.transfer.client.persist(&self.blob.url, self.transfer.events, &self.stop, &mut || {
            lock(&self.partial).clear()?;
            (self.transfer.events)(Event::Restarted { file: Arc::clone(&self.blob.file) });
            let mut answer = self.answer(None)?;
            self.receive(&mut answer, &mut file, &mut 0, self.blob.size, Account::Nothing)
        })
    }

    /// Writes the body of an answer into the file.
    fn receive(
        &self,
        answer: &mut Answer,
        file: &mut File,
        at: &mut u64,
        end: u64,
        account: Account,
    ) -> Result<(), Attempt> {
        let url = answer.url.clone();
        let begin = *at;
        let mut buffer = vec![0; BUFFER];
        let path = lock(&self.partial).path().to_owned();
        file.seek(SeekFrom::Start(begin)).map_err(HubError::io(&path))?;
        let mut reader = answer.response.body_mut().as_reader();
        while *at < end {
            self.stop.check()?;
            let want = usize::try_from(end - *at).unwrap_or(BUFFER).min(BUFFER);
            let broken =
                |e, at| self.transfer.client.broken(&url, e, account == Account::Bytes && at > begin);
            let n = match reader.read(&mut buffer[..want]) {
                Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into(), *at)),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(e, *at)),
            };
            file.write_all(&buffer[..n]).map_err(HubError::io(&path))?;
            let first = *at;
            *at += n as u64;
            lock(&self.partial).arrived(first, *at)?;
            (self.transfer.events)(Event::Received { file: Arc::clone(&self.blob.file), bytes: n as u64 });
        }
        Ok(())
    }

    fn answer(&self, range: Option<(u64, u64)>) -> Result<Answer, Attempt> {
        let direct = lock(&self.direct).clone();
        let known = direct.is_some();
        let url = direct.as_deref().unwrap_or(&self.blob.url);
        let request = Request { method: Method::Get, url, range, follow: Follow::Everywhere };
        match self.transfer.client.accepted(&request) {
            Ok(answer) => {
                if !known && answer.url != self.blob.url {
                    *lock(&self.direct) = Some(answer.url.clone());
                }
                Ok(answer)
            }
            Err(Attempt::Fatal(HubError::Status { status: 416, .. })) => Err(self.other_size(0).into()),
            // Addresses of files hold for an hour or so.
            Err(Attempt::Fatal(error @ HubError::Status { status: 400..=410, .. })) if known => {
                *lock(&self.direct) = None;
                Err(Attempt::Again { error, wait: None, progress: false })
            }
            Err(other) => Err(other),
        }
    }

    fn address<'b>(&self, answer: &'b Answer) -> &'b str {
        answer.url.split('?').next().unwrap_or_default()
    }

    fn other_size(&self, found: u64) -> HubError {
        HubError::Damaged {
            file: self.blob.file.to_string(),
            kind: "size",
            expected: self.blob.size.to_string(),
            found: found.to_string(),
        }
    }
}

/// Whether bytes that arrived before a connection broke are worth something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Account {
    Bytes,
    Nothing,
}

/// Compares a file with the hash that the hub named it by.
fn verify(file: &str, path: &Path, head: &FileHead, cancel: &Cancel) -> Result<(), HubError> {
    let found = match head.hash_kind() {
        HashKind::Unknown => return Ok(()),
        HashKind::Sha256 => digest(path, Sha256::new(), cancel)?,
        HashKind::GitBlob => {
            let size = std::fs::metadata(path).map_err(HubError::io(path))?.len();
            digest(path, Sha1::new_with_prefix(format!("blob {size}\0")), cancel)?
        }
    };
    let kind = "hash";
    match found == head.etag {
        true => Ok(()),
        false => Err(HubError::Damaged { file: file.to_owned(), kind, expected: head.etag.clone(), found }),
    }
}

fn digest<D: Digest>(path: &Path, mut hash: D, cancel: &Cancel) -> Result<String, HubError> {
    let mut file = File::open(path).map_err(HubError::io(path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        cancel.check()?;
        match file.read(&mut buffer).map_err(HubError::io(path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Connections that may be open at a time, over all files of a pull.
pub(crate) struct Permits {
    free: Mutex<usize>,
    freed: Condvar,
}

pub(crate) struct Permit<'a>(&'a Permits);

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        Self { free: Mutex::new(count.max(1)), freed: Condvar::new() }
    }

    fn acquire(&self) -> Permit<'_> {
        let mut free = lock(&self.free);
        while *free == 0 {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

/// A panic on another thread is told by that thread.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
