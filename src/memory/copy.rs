//! Copies between private and shared bytes, in moves that suit their size.
//!
//! Most of what is copied here is small: descriptors' worth of headers, short frames. A call into
//! the C library's memcpy costs more than such a copy, so up to [`SMALL`] bytes are moved by a few
//! wide loads and stores that overlap in the middle; longer ones go to the library, which has the
//! widest moves of the machine.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use vm_memory::VolatileSlice;

/// The longest copy that is made in place.
pub const SMALL: usize = 128;

/// One wide move.
#[cfg(target_arch = "x86_64")]
type Wide = std::arch::x86_64::__m128i;
/// One wide move.
#[cfg(not(target_arch = "x86_64"))]
type Wide = [u64; 2];

/// Copies bytes from `offset` on into private memory, as many as both hold, and returns how many.
/// What is read is read once: nothing written to `from` later shows in `into`.
#[inline]
pub fn read_at(from: VolatileSlice<'_>, offset: usize, into: &mut [u8]) -> usize {
    let len = from.len().saturating_sub(offset).min(into.len());
    // SAFETY: `from` is mapped for its lifetime and `into` is ours; if `len` is not zero, `offset`
    // is inside `from` and `len` bytes follow it, and `into` has as many.
    unsafe {
        copy(
            from.ptr_guard().as_ptr().wrapping_add(offset),
            into.as_mut_ptr(),
            len,
        )
    };
    // The compiler must not take a later look at `from` for a look at `into`.
    compiler_fence(Ordering::SeqCst);
    len
}

/// [`read_at`] from the beginning.
#[inline]
pub fn read(from: VolatileSlice<'_>, into: &mut [u8]) -> usize {
    read_at(from, 0, into)
}

/// The first `N` bytes, read once; `None` if there are fewer.
#[inline]
pub fn read_array<const N: usize>(from: VolatileSlice<'_>) -> Option<[u8; N]> {
    if from.len() < N {
        return None;
    }
    // SAFETY: `from` is mapped for its lifetime and has N bytes; an array of bytes may be anywhere
    // and hold anything.
    let bytes = unsafe { from.ptr_guard().as_ptr().cast::<[u8; N]>().read_unaligned() };
    compiler_fence(Ordering::SeqCst);
    Some(bytes)
}

/// Writes all of `bytes` at `offset` in `to`; false, and nothing done, if they do not fit.
#[inline]
pub fn write_array_at<const N: usize>(
    bytes: [u8; N],
    to: VolatileSlice<'_>,
    offset: usize,
) -> bool {
    if to.len().checked_sub(N).is_none_or(|last| offset > last) {
        return false;
    }
    // SAFETY: `to` is mapped for its lifetime and has N bytes from `offset` on; an array of bytes
    // may be anywhere.
    unsafe {
        let place = to.ptr_guard_mut().as_ptr().add(offset);
        place.cast::<[u8; N]>().write_unaligned(bytes)
    };
    true
}

/// [`write_array_at`] the beginning.
#[inline]
pub fn write_array<const N: usize>(bytes: [u8; N], to: VolatileSlice<'_>) -> bool {
    write_array_at(bytes, to, 0)
}

/// Copies private bytes to `offset` in shared memory, as many as there is room for, and returns how
/// many.
#[inline]
pub fn write_at(from: &[u8], to: VolatileSlice<'_>, offset: usize) -> usize {
    let len = to.len().saturating_sub(offset).min(from.len());
    // SAFETY: as in `read_at`, the other way round.
    unsafe {
        copy(
            from.as_ptr(),
            to.ptr_guard_mut().as_ptr().wrapping_add(offset),
            len,
        )
    };
    len
}

/// [`write_at`] the beginning.
#[inline]
pub fn write(from: &[u8], to: VolatileSlice<'_>) -> usize {
    write_at(from, to, 0)
}

/// Copies as many bytes as both hold from shared memory to `offset` in shared memory, which may
/// overlap, and returns how many.
#[inline]
pub fn across_at(from: VolatileSlice<'_>, to: VolatileSlice<'_>, offset: usize) -> usize {
    let len = to.len().saturating_sub(offset).min(from.len());
    let (from, to) = (from.ptr_guard().as_ptr(), to.ptr_guard_mut().as_ptr());
    // SAFETY: both are mapped for their lifetimes; if `len` is not zero, `offset` is inside `to`
    // and `len` bytes follow it, and `from` has as many.
    unsafe { copy(from, to.wrapping_add(offset), len) };
    len
}

/// [`across_at`] to the beginning.
#[inline]
pub fn across(from: VolatileSlice<'_>, to: VolatileSlice<'_>) -> usize {
    across_at(from, to, 0)
}

/// Says that the bytes at `place` will be wanted soon.
#[inline]
pub fn prefetch(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it accesses nothing and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Says that the bytes at `place` will be written soon.
#[inline]
pub fn prefetch_write(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it accesses nothing and cannot fault. Processors that do not know it take it
    // for a no-operation.
    unsafe {
        std::arch::asm!(
            "prefetchw [{}]",
            in(reg) place,
            options(nostack, preserves_flags, readonly),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Moves the first and the last pieces of so many bytes, which may be the same: piece `$n` from the
/// beginning and from the end. They have names, because in an array they would be kept in memory
/// between load and store.
macro_rules! ends {
    ($from:ident, $to:ident, $len:ident, $piece:ty, $($first:ident $last:ident $n:literal),+) => {{
        let size = size_of::<$piece>();
        $(
            let $first = $from.add($n * size).cast::<$piece>().read_unaligned();
            let $last = $from.add($len - ($n + 1) * size).cast::<$piece>().read_unaligned();
        )+
        $(
            $to.add($n * size).cast::<$piece>().write_unaligned($first);
            $to.add($len - ($n + 1) * size).cast::<$piece>().write_unaligned($last);
        )+
    }};
}

/// Copies `len` bytes as if through a buffer of their own.
///
/// # Safety
///
/// `from` is valid for reads and `to` for writes of `len` bytes. Another party may write to them
/// at the same time: then what arrives is any mixture of bytes, which is what everybody who reads
/// shared memory has to expect.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: each branch moves [0, n) and [len - n, len) for an n of at most len, and every load
    // comes before every store, so that overlap does no harm.
    unsafe {
        // The most frequent first.
        if len > 32 {
            if len <= 64 {
                ends!(from, to, len, Wide, a b 0, c d 1);
            } else if len <= SMALL {
                ends!(from, to, len, Wide, a b 0, c d 1, e f 2, g h 3);
            } else {
                ptr::copy(from, to, len);
            }
        } else if len > 8 {
            if len <= 16 {
                ends!(from, to, len, u64, a b 0);
            } else {
                ends!(from, to, len, Wide, a b 0);
            }
        } else {
            match len {
                0 => {}
                1..4 => {
                    let (first, middle, last) = (*from, *from.add(len / 2), *from.add(len - 1));
                    *to = first;
                    *to.add(len / 2) = middle;
                    *to.add(len - 1) = last;
                }
                _ => ends!(from, to, len, u32, a b 0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern() -> Vec<u8> {
        (0..600u32).map(|n| (n * 7 + n / 256) as u8).collect()
    }

    #[test]
    fn every_length_arrives_and_nothing_else_changes() {
        for len in 0..300 {
            for offset in [0, 1, 7] {
                let mut source = pattern();
                let wanted = source[offset..offset + len].to_vec();
                let mut private = vec![0xee; len + 2];
                let shared = VolatileSlice::from(&mut source[offset..]);
                assert_eq!(read(shared, &mut private[1..=len]), len);
                assert_eq!(private[1..=len], wanted);
                assert_eq!((private[0], private[len + 1]), (0xee, 0xee));

                let mut there = vec![0xee; len + 2];
                let shared = VolatileSlice::from(&mut there[1..=len]);
                assert_eq!(write(&pattern()[offset..], shared), len);
                assert_eq!(there[1..=len], wanted);
                assert_eq!((there[0], there[len + 1]), (0xee, 0xee));

                let mut there = vec![0xee; len + 2];
                let from = VolatileSlice::from(&mut source[offset..]);
                let to = VolatileSlice::from(&mut there[1..=len]);
                prefetch(ptr::null());
                prefetch_write(ptr::null());
                assert_eq!(read_array::<4>(from).is_some(), from.len() >= 4);
                assert_eq!(across(from, to), len);
                assert_eq!(there[1..=len], wanted);
                assert_eq!((there[0], there[len + 1]), (0xee, 0xee));
            }
        }
    }

    #[test]
    fn offsets_beyond_the_end_move_nothing() {
        let (mut one, mut two) = ([1u8; 8], [2u8; 8]);
        for (offset, moved) in [(0, 8), (5, 3), (8, 0), (9, 0), (usize::MAX, 0)] {
            let (mut private, shared) = ([0; 8], VolatileSlice::from(&mut one[..]));
            assert_eq!(read_at(shared, offset, &mut private), moved);
            assert_eq!(private.iter().filter(|byte| **byte == 1).count(), moved);
            let there = VolatileSlice::from(&mut two[..]);
            assert_eq!(write_at(&[3; 8], there, offset), moved);
            assert_eq!(across_at(shared, there, offset), moved);
        }
        assert_eq!(
            read_array::<3>(VolatileSlice::from(&mut one[..])),
            Some([1; 3])
        );
        assert_eq!(read_array::<9>(VolatileSlice::from(&mut one[..])), None);
        assert!(write_array([7; 8], VolatileSlice::from(&mut one[..])));
        assert!(!write_array([9; 9], VolatileSlice::from(&mut one[..])));
        assert_eq!(one, [7; 8]);
        let there = VolatileSlice::from(&mut one[..]);
        assert!(write_array_at([5; 2], there, 6));
        for offset in [7, 8, 9, usize::MAX] {
            assert!(!write_array_at([6; 2], there, offset));
        }
        assert_eq!(one, [7, 7, 7, 7, 7, 7, 5, 5]);
    }

    #[test]
    fn overlap_is_allowed_both_ways() {
        for len in [3, 5, 12, 20, 50, 100, 128, 129, 290] {
            for (from, to) in [(0, 1), (1, 0), (0, 15), (15, 0), (40, 3)] {
                let mut bytes = pattern();
                let mut wanted = bytes.clone();
                wanted.copy_within(from..from + len, to);
                let all = VolatileSlice::from(&mut bytes[..]);
                let part = |at| all.subslice(at, len);
                if let (Ok(from), Ok(to)) = (part(from), part(to)) {
                    across(from, to);
                }
                assert_eq!(bytes, wanted, "{len} from {from} to {to}");
            }
        }
    }
}
