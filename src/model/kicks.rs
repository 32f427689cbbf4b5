//! Interrupts, kicks and doorbells: eventfds of both sides, and what connects them.
//!
//! A kick waits in the front-end's eventfd for as long as its ring has no vector, or the vector has
//! nobody to tell: it is not polled then, and is found when that changes.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags};

use super::NO_VECTOR;

/// Bytes of one entry of the MSI-X table; the last 4 hold the mask bit.
const ENTRY: usize = 16;

/// An MSI-X vector.
#[derive(Debug, Default)]
struct Vector {
    fd: Option<OwnedFd>,
    pending: bool,
}

/// A front-end's kick of one ring.
#[derive(Debug)]
struct Kick {
    fd: Option<OwnedFd>,
    vector: u16,
    watched: bool,
}

#[derive(Debug)]
struct Table {
    vectors: Vec<Vector>,
    /// As the driver wrote it; who delivers interrupts has a copy of his own.
    entries: Vec<u8>,
    kicks: Vec<Kick>,
    select: u16,
}

/// Which file descriptor of a front-end a doorbell rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bell {
    Call,
    Err,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Kicks {
    table: Mutex<Table>,
    /// Call and error of each ring.
    bells: RwLock<Vec<[Option<OwnedFd>; 2]>>,
    /// Kicks are watched here.
    epoll: OwnedFd,
    pub(super) relayed: AtomicU64,
    pub(super) rung: AtomicU64,
}

impl Kicks {
    /// For so many rings and vectors; readiness of ring i's kick has the token i.
    pub(super) fn new(rings: u16, vectors: u16, epoll: OwnedFd) -> Self {
        let mut entries = vec![0; ENTRY * usize::from(vectors)];
        for mask in entries.iter_mut().skip(12).step_by(ENTRY) {
            *mask = 1;
        }
        let kick = |_| Kick {
            fd: None,
            vector: NO_VECTOR,
            watched: false,
        };
        Self {
            table: Mutex::new(Table {
                vectors: (0..vectors).map(|_| Vector::default()).collect(),
                entries,
                kicks: (0..rings).map(kick).collect(),
                select: 0,
            }),
            bells: RwLock::new((0..rings).map(|_| [None, None]).collect()),
            epoll,
            relayed: AtomicU64::new(0),
            rung: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a vector somebody to tell, or nobody.
    pub(super) fn set_vector(&self, number: u16, fd: Option<OwnedFd>) {
        let mut table = self.lock();
        let Some(vector) = table.vectors.get_mut(usize::from(number)) else {
            return;
        };
        vector.fd = fd;
        if vector.fd.is_some() && std::mem::take(&mut vector.pending) {
            vector.fire();
        }
        for ring in 0..table.kicks.len() {
            self.watch(&mut table, ring);
        }
    }

    /// Raises a vector; whether there is such a one.
    pub(super) fn fire(&self, number: u16) -> bool {
        let mut table = self.lock();
        let vector = table.vectors.get_mut(usize::from(number));
        vector.map(Vector::fire).is_some()
    }

    /// Raises the vector of a ring's kick.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn raise(&self, ring: u8) {
        let kick = self
            .lock()
            .kicks
            .get(usize::from(ring))
            .map(|kick| kick.vector);
        self.fire(kick.unwrap_or(NO_VECTOR));
    }

    /// The vector, if the function has it.
    pub(super) fn granted(&self, vector: u16) -> u16 {
        let exists = usize::from(vector) < self.lock().vectors.len();
        if exists { vector } else { NO_VECTOR }
    }

    /// Puts a front-end's kick in the place of the one that is there.
    pub(super) fn set_kick(&self, ring: u8, fd: Option<OwnedFd>) {
        let mut table = self.lock();
        self.replace_kick(&mut table, ring.into(), fd);
    }

    fn replace_kick(&self, table: &mut Table, ring: usize, fd: Option<OwnedFd>) {
        let Some(kick) = table.kicks.get_mut(ring) else {
            return;
        };
        if let Some(old) = kick.fd.take()
            && std::mem::take(&mut kick.watched)
        {
            // The front-end has the same file: closing ours would not take it out.
            let _ = epoll::delete(&self.epoll, &old);
        }
        kick.fd = fd;
        self.watch(table, ring);
    }

    /// Polls a kick if it has somewhere to go, and only then.
    fn watch(&self, table: &mut Table, ring: usize) {
        let Table { vectors, kicks, .. } = table;
        let Some(kick) = kicks.get_mut(ring) else {
            return;
        };
        let target = vectors.get(usize::from(kick.vector));
        let wanted = target.is_some_and(|vector| vector.fd.is_some());
        let Some(fd) = &kick.fd else { return };
        let changed = match (wanted, kick.watched) {
            (true, false) => epoll::add(
                &self.epoll,
                fd,
                EventData::new_u64(ring as u64),
                EventFlags::IN,
            ),
            (false, true) => epoll::delete(&self.epoll, fd),
            _ => return,
        };
        match changed {
            Ok(()) => kick.watched = wanted,
            Err(errno) => tracing::warn!(ring, %errno, "cannot watch a kick"),
        }
    }

    /// Ring `ring` was kicked: takes what is pending and raises its vector once.
    pub(super) fn relay(&self, ring: u64) {
        let mut table = self.lock();
        let Table { vectors, kicks, .. } = &mut *table;
        let Some(kick) = usize::try_from(ring).ok().and_then(|ring| kicks.get(ring)) else {
            return;
        };
        let vector = vectors.get_mut(usize::from(kick.vector));
        if let (Some(fd), true, Some(vector)) = (&kick.fd, kick.watched, vector)
            && take(fd.as_fd())
        {
            vector.fire();
            self.relayed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts a front-end's call or error in the place of the one that is there.
    pub(super) fn set_bell(&self, bell: Bell, ring: u8, fd: Option<OwnedFd>) {
        let mut bells = self.bells.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = bells.get_mut(usize::from(ring)) {
            let [call, err] = slot;
            match bell {
                Bell::Call => *call = fd,
                Bell::Err => *err = fd,
            }
        }
    }

    /// The driver rings.
    pub(super) fn ring(&self, bell: Bell, ring: u64) {
        let bells = self.bells.read().unwrap_or_else(PoisonError::into_inner);
        let slot = usize::try_from(ring).ok().and_then(|ring| bells.get(ring));
        let fd = slot.and_then(|[call, err]| match bell {
            Bell::Call => call.as_ref(),
            Bell::Err => err.as_ref(),
        });
        if let Some(fd) = fd {
            signal(fd.as_fd());
            self.rung.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection is over: nothing of the front-end's stays. Vectors do.
    pub(super) fn drop_all(&self) {
        let mut table = self.lock();
        for ring in 0..table.kicks.len() {
            self.replace_kick(&mut table, ring, None);
        }
        drop(table);
        let mut bells = self.bells.write().unwrap_or_else(PoisonError::into_inner);
        bells.iter_mut().for_each(|slot| *slot = [None, None]);
    }

    /// Forgets which ring has which vector, and what is pending.
    pub(super) fn reset(&self) {
        let mut table = self.lock();
        table.select = 0;
        for vector in &mut table.vectors {
            vector.pending = false;
        }
        for ring in 0..table.kicks.len() {
            if let Some(kick) = table.kicks.get_mut(ring) {
                kick.vector = NO_VECTOR;
            }
            self.watch(&mut table, ring);
        }
    }

    /// notification_select and notification_msix_vector.
    pub(super) fn selector(&self) -> [u16; 2] {
        let table = self.lock();
        let kick = table.kicks.get(usize::from(table.select));
        [table.select, kick.map_or(NO_VECTOR, |kick| kick.vector)]
    }

    pub(super) fn select(&self, ring: u16) {
        self.lock().select = ring;
    }

    /// The vector that the selected ring's kick raises; none if the function does not have it.
    pub(super) fn set_kick_vector(&self, vector: u16) {
        let mut table = self.lock();
        let ring = usize::from(table.select);
        let exists = usize::from(vector) < table.vectors.len();
        if let Some(kick) = table.kicks.get_mut(ring) {
            kick.vector = if exists { vector } else { NO_VECTOR };
            self.watch(&mut table, ring);
        }
    }

    /// The MSI-X table, as bytes.
    pub(super) fn read_entries(&self, offset: u64, data: &mut [u8]) {
        super::registers::copy(&self.lock().entries, offset, data);
    }

    pub(super) fn write_entries(&self, offset: u64, data: &[u8]) {
        let mut table = self.lock();
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(slot) = table.entries.get_mut(at) {
                *slot = *byte;
            }
        }
    }

    /// The pending bits, as bytes. A kick that waits for somebody to tell is pending, too.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let mut table = self.lock();
        let Table { vectors, kicks, .. } = &mut *table;
        for kick in kicks.iter().filter(|kick| !kick.watched) {
            if let (Some(fd), Some(vector)) = (&kick.fd, vectors.get_mut(usize::from(kick.vector)))
                && take(fd.as_fd())
            {
                vector.pending = true;
            }
        }
        let bits = table.vectors.chunks(8).map(|chunk| {
            let bits = chunk.iter().enumerate();
            bits.fold(0u8, |byte, (bit, vector)| {
                byte | u8::from(vector.pending) << bit
            })
        });
        let bytes: Vec<u8> = bits.collect();
        super::registers::copy(&bytes, offset, data);
    }
}

impl Vector {
    /// Tells who is to be told, now or as soon as there is somebody.
    fn fire(&mut self) {
        match &self.fd {
            Some(fd) => signal(fd.as_fd()),
            None => self.pending = true,
        }
    }
}

/// A new eventfd of ours.
pub(super) fn event() -> rustix::io::Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

/// Signals an eventfd. The other side can change its mode at any time, so ask first; one that is
/// full has been signalled already.
pub(super) fn signal(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    if poll(&mut fds, Some(&Timespec::default())) == Ok(1)
        && fds.iter().all(|fd| fd.revents().contains(PollFlags::OUT))
    {
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }
}

/// Takes what is pending on an eventfd, without waiting whatever its mode is; whether there was
/// anything.
pub(super) fn take(fd: BorrowedFd<'_>) -> bool {
    let mut value = [0; 8];
    let mut bytes = [IoSliceMut::new(&mut value)];
    match rustix::io::preadv2(fd, &mut bytes, u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) => true,
        // An old kernel: its eventfds are what `claim_eventfd` made them.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => rustix::io::read(fd, &mut value).is_ok(),
        Err(_) => false,
    }
}
