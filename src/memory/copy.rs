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
type Wide = [u8; 16];

/// Copies as many bytes as both hold into private memory, and returns how many. What is read is
/// read once: nothing written to `from` later shows in `into`.
#[inline]
pub fn read(from: VolatileSlice<'_>, into: &mut [u8]) -> usize {
    let len = from.len().min(into.len());
    // SAFETY: `from` is mapped for its lifetime and `into` is ours; `len` is within both.
    unsafe { copy(from.ptr_guard().as_ptr(), into.as_mut_ptr(), len) };
    // The compiler must not take a later look at `from` for a look at `into`.
    compiler_fence(Ordering::SeqCst);
    len
}

/// Copies as many private bytes as both hold into shared memory, and returns how many.
#[inline]
pub fn write(from: &[u8], to: VolatileSlice<'_>) -> usize {
    let len = from.len().min(to.len());
    // SAFETY: `to` is mapped for its lifetime and `from` is a reference; `len` is within both.
    unsafe { copy(from.as_ptr(), to.ptr_guard_mut().as_ptr(), len) };
    len
}

/// Copies as many bytes as both hold from shared memory to shared memory, which may overlap, and
/// returns how many.
#[inline]
pub fn across(from: VolatileSlice<'_>, to: VolatileSlice<'_>) -> usize {
    let len = from.len().min(to.len());
    // SAFETY: both are mapped for their lifetimes; `len` is within both.
    unsafe { copy(from.ptr_guard().as_ptr(), to.ptr_guard_mut().as_ptr(), len) };
    len
}

/// Says that the first bytes of `place` will be wanted soon.
#[inline]
pub fn prefetch(place: VolatileSlice<'_>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it accesses nothing and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(place.ptr_guard().as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
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
    // SAFETY: each arm moves [0, n) and [len - n, len) for an n of at most len, and every load
    // comes before every store, so that overlap does no harm.
    unsafe {
        match len {
            0 => {}
            1..4 => {
                let (first, middle, last) = (*from, *from.add(len / 2), *from.add(len - 1));
                *to = first;
                *to.add(len / 2) = middle;
                *to.add(len - 1) = last;
            }
            4..=8 => ends::<[u8; 4], 1>(from, to, len),
            9..=16 => ends::<[u8; 8], 1>(from, to, len),
            17..=32 => ends::<Wide, 1>(from, to, len),
            33..=64 => ends::<Wide, 2>(from, to, len),
            65..=SMALL => ends::<Wide, 4>(from, to, len),
            _ => ptr::copy(from, to, len),
        }
    }
}

/// Moves the first and the last `N` pieces of `len` bytes.
///
/// # Safety
///
/// As for [`copy`], and `N` pieces are at most `len` bytes.
#[inline]
unsafe fn ends<T: Copy, const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    let back = len - N * size_of::<T>();
    // SAFETY: both ranges lie in [0, len) by what the caller promises.
    unsafe {
        let first = from.cast::<[T; N]>().read_unaligned();
        let last = from.add(back).cast::<[T; N]>().read_unaligned();
        to.cast::<[T; N]>().write_unaligned(first);
        to.add(back).cast::<[T; N]>().write_unaligned(last);
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
                prefetch(from);
                assert_eq!(across(from, to), len);
                assert_eq!(there[1..=len], wanted);
                assert_eq!((there[0], there[len + 1]), (0xee, 0xee));
            }
        }
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
