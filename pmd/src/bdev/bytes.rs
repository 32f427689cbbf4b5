//! Private bytes from and to any place in a request's data.

use vvu::memory::{Scatter, VolatileSlice, copy};

/// The pieces of `data` from `offset` on, `len` bytes of them at most.
fn part(
    data: &Scatter,
    mut offset: u64,
    mut len: usize,
) -> impl Iterator<Item = VolatileSlice<'_>> {
    data.pieces().filter_map(move |piece| {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        offset = offset.saturating_sub(piece.len() as u64);
        let part = piece.len().checked_sub(skip).filter(|left| *left > 0)?;
        let part = piece.subslice(skip, part.min(len)).ok()?;
        len -= part.len();
        Some(part).filter(|part| !part.is_empty())
    })
}

/// Copies bytes from `offset` of the data on, as many as both have.
pub(super) fn read_at(data: &Scatter, offset: u64, mut into: &mut [u8]) {
    for piece in part(data, offset, into.len()) {
        let (now, later) = into.split_at_mut(piece.len().min(into.len()));
        copy::read(piece, now);
        into = later;
    }
}

/// Copies `bytes` to `offset` of the data, as many as there is room for.
pub(super) fn write_at(data: &Scatter, offset: u64, mut bytes: &[u8]) {
    for piece in part(data, offset, bytes.len()) {
        let (now, later) = bytes.split_at(piece.len().min(bytes.len()));
        copy::write(now, piece);
        bytes = later;
    }
}

/// Makes `len` bytes at `offset` of the data zero.
pub(super) fn zero_at(data: &Scatter, offset: u64, len: usize) {
    const ZEROES: [u8; 4096] = [0; 4096];
    for piece in part(data, offset, len) {
        let mut at = 0;
        while at < piece.len() {
            at += copy::write_at(&ZEROES, piece, at).max(1);
        }
    }
}
