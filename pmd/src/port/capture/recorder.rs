//! A file that frames are written to, a buffer before it, and the thread between the two.
//!
//! The buffer is a ring of bytes: whole blocks of the file, one after the other. The worker that
//! owns the port holds its [`Pen`]s and moves the head, the thread moves the tail.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_utils::CachePadded;
use vvu::memory::{Mapping, VolatileSlice, copy};

use super::CaptureError;
use super::blocks::{self, BACK, Direction, FRONT};
use crate::port::Stats;
use crate::port::burst::{Burst, Pick};
use crate::port::head::{Edit, Head};
use crate::stats::Counter;

/// Bytes of the buffer, a power of two: several milliseconds of ten gigabits a second.
const ROOM: usize = 16 << 20;

/// How long the thread sleeps when it finds nothing: from the first to the second, and at once
/// back to the first.
const SHORT_NAP: Duration = Duration::from_millis(1);
const LONG_NAP: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Ring {
    memory: Mapping,
    /// Bytes that were ever put in.
    head: CachePadded<AtomicUsize>,
    /// Bytes that were ever taken out.
    tail: CachePadded<AtomicUsize>,
    /// Frames seen, and those of them that found no room.
    seen: Counter,
    missed: Counter,
    stop: AtomicBool,
}

impl Ring {
    /// What lies at position `at`, as far as the end of the memory.
    fn at(&self, at: usize) -> VolatileSlice<'_> {
        let all = self.memory.slice();
        all.offset(at % ROOM).unwrap_or(all)
    }

    /// Copies our own bytes to position `at`. Returns the position after them.
    fn put(&self, at: usize, bytes: &[u8]) -> usize {
        let first = self.at(at);
        let (front, back) = bytes.split_at(bytes.len().min(first.len()));
        copy::write(front, first);
        if !back.is_empty() {
            copy::write(back, self.memory.slice());
        }
        at + bytes.len()
    }

    /// The same for bytes of others.
    fn copy(&self, at: usize, bytes: VolatileSlice<'_>) -> usize {
        let first = self.at(at);
        let front = copy::across(bytes, first);
        if let Ok(back) = bytes.offset(front)
            && !back.is_empty()
        {
            copy::across(back, self.memory.slice());
        }
        at + bytes.len()
    }
}

/// Writes frames into a buffer. All pens of a [`Recorder`] belong to one worker.
#[derive(Debug, Clone)]
pub struct Pen {
    ring: Arc<Ring>,
    snap: usize,
}

impl Pen {
    /// Writes down all frames that came from a port.
    pub(in crate::port) fn incoming(&self, burst: &Burst<'_>, stats: &Stats) {
        let now = now();
        for head in burst.heads() {
            let noted = self.note(now, Direction::In, head, burst.body(head));
            stats.uncaptured.add(u64::from(!noted));
        }
    }

    /// Writes down the frames that go to a port.
    pub(in crate::port) fn outgoing(&self, burst: &Burst<'_>, picks: &[Pick], stats: &Stats) {
        let now = now();
        for pick in picks {
            let Some(head) = burst.heads().get(usize::from(pick.frame)) else {
                continue;
            };
            let noted = match pick.edit {
                Edit::Keep => self.note(now, Direction::Out, head, burst.body(head)),
                edit => self.note(now, Direction::Out, &head.edited(edit), burst.body(head)),
            };
            stats.uncaptured.add(u64::from(!noted));
        }
    }

    fn note<'b>(
        &self,
        now: u64,
        direction: Direction,
        head: &Head,
        body: impl Iterator<Item = VolatileSlice<'b>>,
    ) -> bool {
        self.write(now, direction, head.frame_len(), head.bytes(), body)
    }

    /// Writes down a frame of `len` bytes, `first` and then `body`. False if there is no room.
    pub(super) fn write<'b>(
        &self,
        now: u64,
        direction: Direction,
        len: usize,
        first: &[u8],
        body: impl Iterator<Item = VolatileSlice<'b>>,
    ) -> bool {
        let ring = &*self.ring;
        ring.seen.add(1);
        let captured = len.min(self.snap);
        let needed = FRONT + blocks::padded(captured) + BACK;
        let head = ring.head.load(Ordering::Relaxed);
        // Acquire: pairs with the thread's release: it does not read there any more.
        let used = head.wrapping_sub(ring.tail.load(Ordering::Acquire));
        if needed > ROOM - used.min(ROOM) {
            ring.missed.add(1);
            return false;
        }
        let mut at = ring.put(head, &blocks::front(now, captured, len));
        let end = at + captured;
        at = ring.put(at, first.get(..captured).unwrap_or(first));
        for piece in body {
            let part = piece.subslice(0, piece.len().min(end - at));
            at = part.map_or(at, |part| ring.copy(at, part));
        }
        // A frame that is shorter than it said leaves what was there before: never a guest's
        // doing, because lengths come from the chains.
        let (back, from) = blocks::back(captured, direction);
        ring.put(end, back.get(from..).unwrap_or(&[]));
        // Release: whoever sees the new head sees the block.
        ring.head
            .store(head.wrapping_add(needed), Ordering::Release);
        true
    }
}

/// Nanoseconds of the wall clock.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

/// A file being written. Dropping it writes what is left and completes the file; no pen should be
/// in use then.
#[derive(Debug)]
pub struct Recorder {
    ring: Arc<Ring>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Longest part of a frame that is written if nothing else is wanted: all of any frame.
    pub const SNAP: u32 = 262_144;

    /// Makes the file at `path`, about the interface called `name`, and what writes to it the
    /// first `snap` bytes of frames.
    pub fn start(path: &Path, name: &str, snap: u32) -> Result<(Self, Pen), CaptureError> {
        let failed = |source| CaptureError::io("write to", path, source);
        let mut file = File::create(path).map_err(failed)?;
        file.write_all(&blocks::beginning(name, snap))
            .map_err(failed)?;
        let ring = Arc::new(Ring {
            memory: Mapping::anonymous(ROOM)?,
            head: CachePadded::default(),
            tail: CachePadded::default(),
            seen: Counter::default(),
            missed: Counter::default(),
            stop: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&ring);
        let target = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || keep_writing(&theirs, file, &target))
            .map_err(|source| CaptureError::io("start a thread that writes to", path, source))?;
        let pen = Pen {
            ring: Arc::clone(&ring),
            snap: snap as usize,
        };
        let recorder = Self {
            ring,
            thread: Some(thread),
        };
        Ok((recorder, pen))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.ring.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

/// What the thread does, until told to stop and nothing is left.
fn keep_writing(ring: &Ring, mut file: File, path: &Path) {
    let mut room = vec![0; 256 << 10];
    let mut nap = SHORT_NAP;
    loop {
        // In this order: what was put in before the end is written.
        let stop = ring.stop.load(Ordering::Acquire);
        let tail = ring.tail.load(Ordering::Relaxed);
        // Acquire: the blocks below the head are seen.
        let waiting = ring.head.load(Ordering::Acquire).wrapping_sub(tail);
        if waiting == 0 {
            if stop {
                break;
            }
            std::thread::park_timeout(nap);
            nap = (2 * nap).min(LONG_NAP);
            continue;
        }
        nap = SHORT_NAP;
        let from = ring.at(tail);
        let len = waiting.min(from.len()).min(room.len());
        let (part, _) = room.split_at_mut(len);
        copy::read(from, part);
        // Release: the worker may write there again.
        ring.tail.store(tail.wrapping_add(len), Ordering::Release);
        if let Err(error) = file.write_all(part) {
            // What comes from now on finds the buffer full, and is counted.
            tracing::error!(path = %path.display(), %error, "capture ends: its file cannot be written");
            return;
        }
    }
    let end = blocks::end(now(), ring.seen.get(), ring.missed.get());
    let ended = file.write_all(&end).and_then(|()| file.flush());
    if let Err(error) = ended {
        tracing::error!(path = %path.display(), %error, "capture without an end");
    }
}
