//! What happens when bytes vanish under us.
//!
//! A front-end shares its memory as a file and can truncate that file at any time. To touch a
//! mapped byte beyond its end raises SIGBUS, which would end this process with all its other
//! front-ends. So mappings of files are entered in a registry, and a handler for SIGBUS puts
//! private zeroed memory in the place of what is missing and marks the mapping as lost. The reader
//! goes on with zeroes, as if the front-end had written them; whoever looks after the connection
//! sees the mark and ends it.
//!
//! The handler may run at any instruction of any thread. It therefore takes no lock, allocates
//! nothing, and reads the registry through atomics only. Any other SIGBUS is none of its business
//! and goes to whoever handled it before.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

/// `si_code` of a SIGBUS for an address that has no memory behind it (asm-generic/siginfo.h).
const BUS_ADRERR: c_int = 2;

/// A mapping that may fault. Free while `start` is zero.
#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    lost: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// Start, length and page size, if the slot is in use.
    ///
    /// A thread that faults keeps its mapping alive, so the slot of that mapping holds still. Other
    /// slots may change while they are read; a start that is not the same before and after means
    /// that what was read belongs to two mappings.
    fn read(&self) -> Option<(usize, usize, usize)> {
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Acquire);
        let page = self.page.load(Ordering::Acquire);
        let same = self.start.load(Ordering::Acquire) == start;
        (start != 0 && same).then_some((start, len, page))
    }
}

const CHUNK: usize = 256;

/// Slots, and more slots if those are not enough. Chunks are never freed.
struct Chunk {
    slots: [Slot; CHUNK],
    next: OnceLock<&'static Chunk>,
}

impl Chunk {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; CHUNK],
            next: OnceLock::new(),
        }
    }
}

static REGISTRY: Chunk = Chunk::new();
/// Held by whoever takes a slot.
static TAKING: Mutex<()> = Mutex::new(());
/// Who handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn chunks() -> impl Iterator<Item = &'static Chunk> {
    std::iter::successors(Some(&REGISTRY), |chunk| chunk.next.get().copied())
}

/// Keeps a mapping in the registry.
#[derive(Debug)]
pub(super) struct Guard {
    slot: &'static Slot,
}

impl Guard {
    /// Whether bytes of the mapping went missing.
    pub(super) fn is_lost(&self) -> bool {
        self.slot.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.start.store(0, Ordering::Release);
    }
}

/// Enters the mapping of `len` bytes at `start`, both multiples of `page`. It must stay mapped for
/// as long as the guard lives.
pub(super) fn guard(start: usize, len: usize, page: usize) -> Guard {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(install);
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_free = |slot: &&Slot| slot.start.load(Ordering::Acquire) == 0;
    let free = chunks().flat_map(|chunk| &chunk.slots).find(is_free);
    let slot = free.unwrap_or_else(|| {
        let new: &'static Chunk = Box::leak(Box::new(Chunk::new()));
        if let Some(last) = chunks().last() {
            // Only who holds the lock adds a chunk, so this one is the next.
            let _ = last.next.set(new);
        }
        let [first, ..] = &new.slots;
        first
    });
    slot.lost.store(false, Ordering::Relaxed);
    slot.len.store(len, Ordering::Release);
    slot.page.store(page, Ordering::Release);
    slot.start.store(start, Ordering::Release);
    Guard { slot }
}

fn install() {
    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask, the default action.
    let (mut new, mut old): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    new.sa_sigaction = handler as libc::sighandler_t;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both point to valid structures; the handler has the signature that SA_SIGINFO asks
    // for and calls async-signal-safe functions only.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const new, &raw mut old) };
    if result == 0 {
        let _ = BEFORE.set(old);
    } else {
        tracing::error!("cannot handle SIGBUS: a front-end that shrinks its memory ends us");
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid siginfo, and one for SIGBUS with
    // this code has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if code == BUS_ADRERR && replace(address) {
        return;
    }
    pass_on(signal, info, context);
}

/// Puts zeroes in the place of everything from the page of `address` to the end of its mapping: a
/// file that lost a page has none after it either, and one replacement is enough for all of them.
/// Returns whether the address was in a mapping of ours.
fn replace(address: usize) -> bool {
    for slot in chunks().flat_map(|chunk| &chunk.slots) {
        let Some((start, len, page)) = slot.read() else {
            continue;
        };
        let Some(offset) = address.checked_sub(start).filter(|offset| *offset < len) else {
            continue;
        };
        slot.lost.store(true, Ordering::Relaxed);
        let kept = offset - offset % page;
        // A kernel that does not overcommit may refuse a long replacement and grant one page.
        return [len - kept, page].into_iter().any(|missing| {
            // SAFETY: start + kept .. start + kept + missing lies inside a mapping that a Mapping
            // owns (guard's contract: whole pages of `page` bytes) and that the faulting thread
            // keeps alive. Its bytes are only reached through volatile accesses, which do not mind
            // what is mapped there.
            let result = unsafe {
                rustix::mm::mmap_anonymous(
                    std::ptr::without_provenance_mut(start + kept),
                    missing,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
                )
            };
            result.is_ok()
        });
    }
    false
}

/// Does what would have been done without us.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    type Informed = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
    type Simple = extern "C" fn(c_int);
    let (action, flags) = BEFORE
        .get()
        .map_or((libc::SIG_DFL, 0), |old| (old.sa_sigaction, old.sa_flags));
    if action == libc::SIG_DFL || action == libc::SIG_IGN {
        // SAFETY: both are async-signal-safe and take no pointers. The signal is blocked here, so
        // it arrives when we return, and is deadly then.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    } else if flags & libc::SA_SIGINFO != 0 {
        // SAFETY: sigaction gave us this address as that of a handler with SA_SIGINFO.
        let handler = unsafe { std::mem::transmute::<usize, Informed>(action) };
        handler(signal, info, context);
    } else {
        // SAFETY: sigaction gave us this address as that of a handler without SA_SIGINFO.
        let handler = unsafe { std::mem::transmute::<usize, Simple>(action) };
        handler(signal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::process::ExitStatusExt;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{Mapping, MemTable, Region, page_size};

    fn file(len: u64) -> OwnedFd {
        let file = memfd_create("vvu-fault", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file
    }

    #[test]
    fn a_truncated_file_reads_as_zeroes_and_is_noticed() {
        let page = page_size();
        let file = file(8 * page as u64);
        let mapping = Mapping::of_file(file.as_fd(), 0, 8 * page as u64).unwrap();
        let other = Mapping::of_file(file.as_fd(), 0, page as u64).unwrap();
        for at in 0..8 {
            mapping.slice().write_obj(0xffu8, at * page).unwrap();
        }
        ftruncate(&file, 2 * page as u64).unwrap();
        assert!(!mapping.is_lost(), "nobody looked yet");
        let read = |at: usize| mapping.slice().read_obj::<u8>(at * page).unwrap();
        assert_eq!(read(1), 0xff);
        assert!(!mapping.is_lost());
        assert_eq!(read(5), 0);
        assert!(mapping.is_lost());
        // What is below may fault as well; what is still there is still shared.
        assert_eq!([read(2), read(7), read(0)], [0, 0, 0xff]);
        mapping.slice().write_obj(1u8, 7 * page).unwrap();
        assert_eq!(read(7), 1);
        mapping.slice().write_obj(2u8, page / 2).unwrap();
        assert_eq!(other.slice().read_obj::<u8>(page / 2).unwrap(), 2);
        assert!(!other.is_lost());

        let region = Region {
            guest_addr: 0,
            user_addr: 0,
            bytes: mapping.into(),
        };
        assert!(MemTable::new(vec![region]).unwrap().is_lost());
    }

    #[test]
    fn many_mappings_come_and_go() {
        let page = page_size() as u64;
        let file = file(page);
        let map = || Mapping::of_file(file.as_fd(), 0, page).unwrap();
        let mut all: Vec<Mapping> = (0..3 * CHUNK).map(|_| map()).collect();
        all.truncate(CHUNK);
        let last = map();
        ftruncate(&file, 0).unwrap();
        assert_eq!(last.slice().read_obj::<u8>(0).unwrap(), 0);
        assert!(last.is_lost());
        assert!(!all.iter().any(Mapping::is_lost));
        drop(last);
        ftruncate(&file, page).unwrap();
        assert!(!map().is_lost(), "a slot begins anew");
    }

    #[test]
    fn any_other_fault_is_deadly() {
        let name = "memory::fault::tests::fault_elsewhere";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored"])
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }

    #[test]
    #[ignore = "run by any_other_fault_is_deadly, in a process of its own"]
    fn fault_elsewhere() {
        let page = page_size() as u64;
        let guarded = Mapping::of_file(file(page).as_fd(), 0, page).unwrap();
        // Mappings that are not of a file have no guard.
        let file = file(page);
        let bare = Mapping::shared(file.as_fd(), 0, page).unwrap();
        ftruncate(&file, 0).unwrap();
        let _ = bare.slice().read_obj::<u8>(0);
        drop(guarded);
    }
}
