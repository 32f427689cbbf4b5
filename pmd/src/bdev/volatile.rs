//! A disk with a cache that power loss empties: for tests of what must not be lost.
//!
//! What is written stays in this process's memory until a flush (or forced unit access) takes it
//! to the disk behind, so killing the process is a power cut: everything that was not flushed is
//! gone, and nothing else. [`Power`] does the same to a process that lives on.
//!
//! Everything that reaches the disk behind does so in jobs, one at a time: the blocks of the job
//! are written, and then flushed. This is no data path: there is a lock, and channels that wait
//! for each other are looked at in intervals.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vvu::memory::{Area, Mapping, Scatter, copy};

use super::slots::Slots;
use super::{
    Abilities, Channel, Data, Disk, DiskError, Done, Geometry, IoError, Op, Request, Size, bytes,
};
use crate::wake::Quiet;

/// Most bytes of one write to the disk behind.
const LONGEST_WRITE: usize = 256 << 10;

/// Blocks by their first byte on the disk.
type Blocks = BTreeMap<u64, Box<[u8]>>;

#[derive(Debug, Default)]
struct Cache {
    /// Written, and not on its way to the disk yet.
    dirty: Blocks,
    /// On its way: the blocks of the job that runs.
    moving: Blocks,
    /// A job runs.
    busy: bool,
}

#[derive(Debug)]
struct Shared {
    cache: Mutex<Cache>,
    off: AtomicBool,
    /// Most bytes that are cached; what is more is written through.
    room: usize,
    block: u32,
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self) -> bool {
        self.off.load(Ordering::SeqCst)
    }
}

/// See the top of this file.
#[derive(Debug)]
pub struct Volatile {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
}

/// The power of a [`Volatile`] disk.
#[derive(Debug, Clone)]
pub struct Power(Arc<Shared>);

impl Power {
    /// Everything that was not flushed is gone. Until the power is back every request ends with
    /// [`IoError::Gone`].
    pub fn cut(&self) {
        self.0.off.store(true, Ordering::SeqCst);
        self.0.cache().dirty.clear();
    }

    /// The power is back.
    pub fn restore(&self) {
        self.0.cache().dirty.clear();
        self.0.off.store(false, Ordering::SeqCst);
    }
}

impl Volatile {
    /// `disk`, behind a cache of at most `room` bytes.
    pub fn new(disk: Arc<dyn Disk>, room: usize) -> Arc<Self> {
        let block = disk.geometry().logical_block;
        Arc::new(Self {
            disk,
            shared: Arc::new(Shared {
                cache: Mutex::default(),
                off: AtomicBool::new(false),
                room,
                block,
            }),
        })
    }

    /// Its power.
    pub fn power(&self) -> Power {
        Power(Arc::clone(&self.shared))
    }
}

impl Disk for Volatile {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn size(&self) -> &Size {
        self.disk.size()
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn abilities(&self) -> Abilities {
        self.disk.abilities()
    }

    fn channel(&self) -> Result<Box<dyn Channel>, DiskError> {
        Ok(Box::new(VolatileChannel {
            inner: self.disk.channel()?,
            disk: Arc::clone(&self.disk),
            shared: Arc::clone(&self.shared),
            jobs: VecDeque::new(),
            running: None,
            asked: Slots::default(),
            done: Vec::new(),
            forward: Vec::new(),
            answers: Vec::new(),
        }))
    }

    fn refresh(&self) -> Result<(), DiskError> {
        self.disk.refresh()
    }
}

/// What the disk behind was asked for.
#[derive(Debug)]
enum Asked {
    /// A read of a guest's, and what of it is newer in the cache.
    Read { token: u64, newer: Blocks },
    /// Something of the job that runs.
    Job,
}

/// Something that shall reach the disk behind.
#[derive(Debug)]
enum Job {
    /// All that is cached, and then the request is done: a flush, or a write for which there was
    /// no room.
    All(Done),
    /// The cached blocks of a range, and then the request is done.
    Range(Done, u64, u64),
    /// The request itself, which replaces what is cached of its range.
    Forward(Request),
}

/// A job that runs.
#[derive(Debug)]
struct Running {
    done: Option<Done>,
    /// What is to be flushed still.
    flush: bool,
    /// How many requests to the disk behind are not answered.
    left: usize,
    result: Result<(), IoError>,
}

#[derive(Debug)]
struct VolatileChannel {
    inner: Box<dyn Channel>,
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    jobs: VecDeque<Job>,
    running: Option<Running>,
    asked: Slots<Asked>,
    done: Vec<Done>,
    forward: Vec<Request>,
    answers: Vec<Done>,
}

impl VolatileChannel {
    fn take(&mut self, request: Request) {
        let result = match self.shared.is_off() {
            true => Err(IoError::Gone),
            false => request.check(self.disk.size().get(), self.shared.block),
        };
        if result.is_err() {
            return self.done.push(request.done(result));
        }
        match request.op {
            Op::Read => self.read(request),
            Op::Write => self.write(request),
            Op::Flush => self.jobs.push_back(Job::All(request.done(Ok(())))),
            Op::Discard | Op::WriteZeroes { .. } => self.jobs.push_back(Job::Forward(request)),
        }
    }

    fn read(&mut self, mut request: Request) {
        let range = request.offset..request.offset + request.len;
        let mut newer = Blocks::new();
        {
            let cache = self.shared.cache();
            for blocks in [&cache.moving, &cache.dirty] {
                let part = blocks.range(range.clone());
                newer.extend(part.map(|(at, block)| (at - request.offset, block.clone())));
            }
        }
        let token = request.token;
        request.token = self.asked.put(Asked::Read { token, newer });
        self.forward.push(request);
    }

    fn write(&mut self, request: Request) {
        let (offset, len, fua) = (request.offset, request.len, request.fua);
        let block = u64::from(self.shared.block);
        let full = {
            let mut cache = self.shared.cache();
            for at in (offset..offset + len).step_by(self.shared.block as usize) {
                let mut bytes = vec![0; block as usize].into_boxed_slice();
                if let Some(data) = &request.data {
                    bytes::read_at(data, at - offset, &mut bytes);
                }
                cache.dirty.insert(at, bytes);
            }
            cache.dirty.len() as u64 * block > self.shared.room as u64
        };
        let done = request.done(Ok(()));
        if full {
            self.jobs.push_back(Job::All(done));
        } else if fua {
            self.jobs.push_back(Job::Range(done, offset, len));
        } else {
            self.done.push(done);
        }
    }

    /// Begins the next job if none runs.
    fn begin(&mut self) {
        if self.running.is_some() || self.jobs.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut cache = shared.cache();
        if cache.busy {
            return;
        }
        let Some(job) = self.jobs.pop_front() else {
            return;
        };
        cache.busy = true;
        let (done, blocks) = match job {
            Job::All(done) => (Some(done), std::mem::take(&mut cache.dirty)),
            Job::Range(done, offset, len) => {
                let part = cache.dirty.extract_if(offset..offset + len, |_, _| true);
                (Some(done), part.collect())
            }
            Job::Forward(mut request) => {
                let range = request.offset..request.offset + request.len;
                cache.dirty.extract_if(range, |_, _| true).for_each(drop);
                let token = request.token;
                request.token = self.asked.put(Asked::Job);
                let done = Done {
                    token,
                    result: Ok(()),
                    data: None,
                };
                self.running = Some(Running {
                    done: Some(done),
                    flush: false,
                    left: 1,
                    result: Ok(()),
                });
                return self.forward.push(request);
            }
        };
        let writes = runs(&blocks, self.shared.block);
        cache.moving = blocks;
        drop(cache);
        self.running = Some(Running {
            done,
            flush: true,
            left: writes.len(),
            result: Ok(()),
        });
        for (offset, bytes) in writes {
            let Some(data) = owned(&bytes) else {
                self.answer_job(Err(IoError::Io(libc::ENOMEM)));
                continue;
            };
            let token = self.asked.put(Asked::Job);
            self.forward.push(Request {
                token,
                op: Op::Write,
                offset,
                len: bytes.len() as u64,
                data: Some(data),
                fua: false,
            });
        }
        self.advance();
    }

    fn answer_job(&mut self, result: Result<(), IoError>) {
        if let Some(running) = &mut self.running {
            running.left = running.left.saturating_sub(1);
            running.result = running.result.and(result);
        }
    }

    /// Goes on with the job if all that was asked for is answered.
    fn advance(&mut self) {
        let Some(running) = self.running.as_mut().filter(|running| running.left == 0) else {
            return;
        };
        if running.flush && running.result.is_ok() {
            running.flush = false;
            running.left = 1;
            let token = self.asked.put(Asked::Job);
            return self.forward.push(Request {
                token,
                op: Op::Flush,
                offset: 0,
                len: 0,
                data: None,
                fua: false,
            });
        }
        if let Some(Running { done, result, .. }) = self.running.take() {
            self.end_job(result);
            if let Some(mut done) = done {
                done.result = match self.shared.is_off() {
                    true => Err(IoError::Gone),
                    false => result,
                };
                self.done.push(done);
            }
        }
    }

    fn end_job(&mut self, result: Result<(), IoError>) {
        let mut cache = self.shared.cache();
        let moved = std::mem::take(&mut cache.moving);
        if result.is_err() && !self.shared.is_off() {
            // Not safe yet; what was written since is newer.
            for (at, block) in moved {
                cache.dirty.entry(at).or_insert(block);
            }
        }
        cache.busy = false;
    }

    fn answered(&mut self, mut answer: Done) {
        match self.asked.take(answer.token) {
            Some(Asked::Read { token, newer }) => {
                answer.token = token;
                if let Some(data) = &answer.data {
                    for (at, block) in &newer {
                        bytes::write_at(data, *at, block);
                    }
                }
                self.done.push(answer);
            }
            Some(Asked::Job) => {
                self.answer_job(answer.result);
                self.advance();
            }
            None => {}
        }
    }

    fn go_on(&mut self) {
        self.begin();
        if !self.forward.is_empty() {
            self.inner.submit(&mut self.forward);
        }
    }
}

/// Blocks that follow each other, together.
fn runs(blocks: &Blocks, block: u32) -> Vec<(u64, Vec<u8>)> {
    let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, bytes) in blocks {
        match all.last_mut() {
            Some((start, run))
                if *start + run.len() as u64 == *at
                    && run.len() + block as usize <= LONGEST_WRITE =>
            {
                run.extend(bytes);
            }
            _ => all.push((*at, bytes.to_vec())),
        }
    }
    all
}

/// Memory of our own with these bytes.
fn owned(bytes: &[u8]) -> Option<Box<Scatter>> {
    let area = Area::whole(Mapping::anonymous(bytes.len()).ok()?);
    copy::write(bytes, area.slice());
    let data: Data = Some(Box::new(Scatter::of_area(area.sub(0, bytes.len())?)));
    data
}

impl Channel for VolatileChannel {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        for request in requests.drain(..) {
            self.take(request);
        }
        self.go_on();
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let mut answers = std::mem::take(&mut self.answers);
        self.inner.reap(&mut answers);
        for answer in answers.drain(..) {
            self.answered(answer);
        }
        self.answers = answers;
        self.go_on();
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        let running = self.running.iter().filter(|job| job.done.is_some()).count();
        let reads = self.inner.in_flight();
        // What a job asks for counts, too: it is more than the guest knows of, never less.
        self.done.len() + self.jobs.len() + running + reads
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.fds()
    }

    fn arm(&mut self) -> Quiet {
        let inner = self.inner.arm();
        if !self.done.is_empty() {
            return Quiet::Busy;
        }
        // Another channel's job is to end first, and nobody tells us of that.
        match self.running.is_none() && !self.jobs.is_empty() {
            true => inner.and(Quiet::Polled),
            false => inner,
        }
    }

    fn hurry(&mut self) {
        self.inner.hurry();
    }
}

impl Drop for VolatileChannel {
    fn drop(&mut self) {
        if self.running.take().is_some() {
            // Whether it would have come to its end nobody knows; it was not promised.
            self.end_job(Err(IoError::Gone));
        }
    }
}
