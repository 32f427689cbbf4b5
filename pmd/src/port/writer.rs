//! Writing over chains of whatever sizes and pieces.

use std::ops::Range;

use vvu::memory::{VolatileSlice, copy};

use crate::vring::{Segments, Taken};

/// Writes into consecutive chains as if they were one buffer.
pub(super) struct Writer<'r> {
    taken: &'r Taken,
    chains: Range<usize>,
    segments: Option<Segments<'r>>,
    now: Option<VolatileSlice<'r>>,
}

impl<'r> Writer<'r> {
    pub(super) fn new(taken: &'r Taken, chains: usize) -> Self {
        let mut this = Self {
            taken,
            chains: 0..chains,
            segments: None,
            now: None,
        };
        this.advance();
        this
    }

    /// On to the next segment that is not full.
    fn advance(&mut self) {
        loop {
            self.now = self.segments.as_mut().and_then(Iterator::next);
            if self.now.is_some() {
                return;
            }
            let chain = self.chains.next().and_then(|n| self.taken.chains().get(n));
            let Some(chain) = chain else {
                return;
            };
            self.segments = Some(self.taken.writable(chain));
        }
    }

    /// `len` bytes of the current segment were written.
    fn wrote(&mut self, now: VolatileSlice<'r>, len: usize) {
        match now.offset(len) {
            Ok(rest) if !rest.is_empty() => self.now = Some(rest),
            _ => self.advance(),
        }
    }

    /// Copies our own bytes.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) {
        while let Some(now) = self.now
            && !bytes.is_empty()
        {
            let (part, rest) = bytes.split_at(bytes.len().min(now.len()));
            copy::write(part, now);
            self.wrote(now, part.len());
            bytes = rest;
        }
    }

    /// Copies from one guest's memory to another's (or within one: overlap is allowed).
    pub(super) fn copy(&mut self, mut from: VolatileSlice<'_>) {
        while let Some(now) = self.now
            && !from.is_empty()
        {
            let len = from.len().min(now.len());
            copy::across(from, now);
            self.wrote(now, len);
            match from.offset(len) {
                Ok(rest) => from = rest,
                Err(_) => return,
            }
        }
    }
}
