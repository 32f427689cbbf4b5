//! Address space whose contents change while others hold it: a BAR that shows files.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

use super::fault::{self, Guard};
use super::{Area, Mapping, MemoryError, file_page_size, page_size};

/// Files are mapped in pages of at most this size; one page of it at most is lost to alignment.
const MOST_ALIGNED: usize = 1 << 30;

/// A piece of a file, and where in a [`Reservation`] it shall be seen. All three numbers are
/// multiples of the file's page size ([`file_page_size`]).
#[derive(Debug)]
pub struct Piece {
    /// Offset in the reservation.
    pub offset: u64,
    /// The file.
    pub file: OwnedFd,
    /// Offset in the file.
    pub file_offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Which bytes are where, and their entry in the registry of mappings that may fault.
#[derive(Debug)]
struct Shown {
    start: u64,
    end: u64,
    /// Device, inode, offset.
    file: (u64, u64, u64),
    _guard: Guard,
}

/// Reserved address space. [`Area`]s of it stay valid for as long as somebody has one, and see
/// whatever is shown at their place: zeroes at first, and wherever there is nothing to show.
#[derive(Debug)]
pub struct Reservation {
    mapping: Arc<Mapping>,
    shown: Mutex<Vec<Shown>>,
}

impl Reservation {
    /// Reserves `len` bytes, whole pages.
    pub fn new(len: u64) -> Result<Self, MemoryError> {
        let overflow = || MemoryError::Overflow { start: 0, len };
        let bytes = usize::try_from(len).map_err(|_| overflow())?;
        let align = bytes
            .checked_next_power_of_two()
            .ok_or_else(overflow)?
            .clamp(page_size(), MOST_ALIGNED);
        Ok(Self {
            mapping: Arc::new(Mapping::reserve(bytes, align)?),
            shown: Mutex::default(),
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// `len` bytes from `offset` on; `None` if they are not all inside.
    pub fn area(&self, offset: u64, len: u64) -> Option<Area> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        Area::new(Arc::clone(&self.mapping), offset, len)
    }

    /// Whether all of these bytes belong to one piece that is shown.
    pub fn is_shown(&self, offset: u64, len: u64) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        offset.checked_add(len).is_some_and(|end| {
            shown
                .iter()
                .any(|shown| shown.start <= offset && end <= shown.end)
        })
    }

    /// Shows these pieces and nothing else. What is shown already at the same place is left
    /// alone. If a piece cannot be mapped nothing changes; should the kernel change its mind
    /// between looking and doing, nothing is shown any more.
    pub fn show(&self, pieces: &[Piece]) -> Result<(), MemoryError> {
        self.show_in(0..self.len(), pieces)
    }

    /// The same for a part of it: what begins outside of `range` stays, and may not be covered.
    pub fn show_in(&self, range: Range<u64>, pieces: &[Piece]) -> Result<(), MemoryError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted: Vec<(&Piece, u64, u64, _)> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (start, end) = self.check(piece)?;
            if let Some(other) = wanted.iter().find(|w| w.1 < end && start < w.2) {
                return Err(MemoryError::Overlap(other.1, start));
            }
            let stays = |shown: &&Shown| !range.contains(&shown.start);
            let mut others = shown.iter().filter(stays);
            if let Some(other) = others.find(|other| other.start < end && start < other.end) {
                return Err(MemoryError::Overlap(other.start, start));
            }
            // Mapped aside first: a file may be there and yet refuse.
            drop(Mapping::shared(
                piece.file.as_fd(),
                piece.file_offset,
                piece.len,
            )?);
            let stat = rustix::fs::fstat(&piece.file).map_err(|errno| failed(piece, errno))?;
            wanted.push((
                piece,
                start,
                end,
                (stat.st_dev, stat.st_ino, piece.file_offset),
            ));
        }
        let all = std::mem::take(&mut *shown).into_iter();
        let (mut old, mut next): (Vec<_>, Vec<_>) =
            all.partition(|shown| range.contains(&shown.start));
        for (piece, start, end, file) in &wanted {
            let same =
                |shown: &Shown| (shown.start, shown.end, shown.file) == (*start, *end, *file);
            if let Some(kept) = old.iter().position(same) {
                next.push(old.swap_remove(kept));
                continue;
            }
            match self.put(piece) {
                Ok(guard) => next.push(Shown {
                    start: *start,
                    end: *end,
                    file: *file,
                    _guard: guard,
                }),
                Err(error) => return Err(self.give_up(error)),
            }
        }
        for Shown { start, end, .. } in &old {
            self.wipe_rest(*start, *end, &next)
                .map_err(|error| self.give_up(error))?;
        }
        *shown = next;
        Ok(())
    }

    /// Takes everything away: one mapping in the place of many, which a kernel that has no room
    /// for more mappings does not refuse.
    fn give_up(&self, error: MemoryError) -> MemoryError {
        if let Err(error) = self.wipe(0, self.len()) {
            tracing::error!(%error, "memory that should be gone may still be seen");
        }
        error
    }

    /// Whether all of a piece lies inside, on whole pages, and in its file.
    fn check(&self, piece: &Piece) -> Result<(u64, u64), MemoryError> {
        let overflow = |start| MemoryError::Overflow {
            start,
            len: piece.len,
        };
        let page = file_page_size(piece.file.as_fd()).map_err(|errno| failed(piece, errno))?;
        let end = piece.offset.checked_add(piece.len);
        let end = end
            .filter(|end| *end <= self.len())
            .ok_or(overflow(piece.offset))?;
        let needed = piece.file_offset.checked_add(piece.len);
        let needed = needed.ok_or(overflow(piece.file_offset))?;
        let numbers = piece.offset | piece.file_offset | piece.len;
        if piece.len == 0 || !numbers.is_multiple_of(page) {
            return Err(MemoryError::Unaligned {
                offset: piece.file_offset,
                len: piece.len,
                place: piece.offset,
                page,
            });
        }
        let file = rustix::fs::fstat(&piece.file).map_err(|errno| failed(piece, errno))?;
        let file = file.st_size as u64;
        if file
            .checked_next_multiple_of(page)
            .is_none_or(|file| file < needed)
        {
            return Err(MemoryError::ShortFile { file, needed });
        }
        Ok((piece.offset, end))
    }

    /// Maps a checked piece over whatever is at its place.
    fn put(&self, piece: &Piece) -> Result<Guard, MemoryError> {
        let page = file_page_size(piece.file.as_fd()).map_err(|errno| failed(piece, errno))?;
        let start = self.mapping.address() + piece.offset as usize;
        // First, because the file may shrink as soon as it is mapped.
        let guard = fault::guard(start, piece.len as usize, page as usize);
        // SAFETY: offset + len <= the length of a mapping that `self` owns (check), so nothing
        // else is replaced; its bytes are only reached through volatile accesses, which do not
        // mind what is mapped there.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::without_provenance_mut(start),
                piece.len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                &piece.file,
                piece.file_offset,
            )
        };
        mapped.map_err(|errno| failed(piece, errno))?;
        Ok(guard)
    }

    /// Zeroes for what lies in `start..end` and is not covered by `next`.
    fn wipe_rest(&self, start: u64, end: u64, next: &[Shown]) -> Result<(), MemoryError> {
        let mut at = start;
        while at < end {
            let covered = next
                .iter()
                .find(|shown| shown.start <= at && at < shown.end);
            if let Some(shown) = covered {
                at = shown.end;
                continue;
            }
            let starts = next.iter().map(|shown| shown.start);
            let stop = starts.filter(|start| *start > at).min().unwrap_or(end);
            let stop = stop.min(end);
            self.wipe(at, stop)?;
            at = stop;
        }
        Ok(())
    }

    /// Zeroes in the place of `start..end`, which lies inside.
    fn wipe(&self, start: u64, end: u64) -> Result<(), MemoryError> {
        // SAFETY: start <= end <= the length of a mapping that `self` owns: the callers pass
        // checked pieces or all of it. As for `put` otherwise.
        let wiped = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::without_provenance_mut(self.mapping.address() + start as usize),
                (end - start) as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            )
        };
        wiped.map(drop).map_err(|errno| MemoryError::Map {
            offset: start,
            len: end - start,
            source: errno.into(),
        })
    }
}

fn failed(piece: &Piece, errno: rustix::io::Errno) -> MemoryError {
    MemoryError::Map {
        offset: piece.file_offset,
        len: piece.len,
        source: errno.into(),
    }
}

#[cfg(test)]
#[path = "reservation_tests.rs"]
mod tests;
