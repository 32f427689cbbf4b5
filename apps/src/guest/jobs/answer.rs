//! Being there for others: probes are answered, blasts are counted.

use crate::guest::GuestError;
use crate::guest::args::MIN_FRAME;
use crate::guest::frames::{Header, Kind, Seen};
use crate::guest::machine::Machine;
use crate::guest::report::Sunk;

/// What arrived, and what is to be answered.
#[derive(Debug)]
pub(super) struct Answerer {
    origin: u64,
    mac: [u8; 6],
    /// Whose blast is being counted, and how many frames of it came.
    blasting: (u64, u64),
    pub(super) counts: Sunk,
    answers: Vec<(Header, usize)>,
    frame: Vec<u8>,
}

impl Answerer {
    pub(super) fn new(origin: u64, mac: [u8; 6]) -> Self {
        Self {
            origin,
            mac,
            blasting: (0, 0),
            counts: Sunk::default(),
            answers: Vec::new(),
            frame: Vec::new(),
        }
    }

    /// Takes note of a frame; `None` is one of others.
    pub(super) fn see(&mut self, seen: Option<&Seen>) {
        match seen {
            Some(Seen { header, .. }) if header.origin == self.origin => self.counts.others += 1,
            Some(Seen { header, len }) if header.kind == Kind::Probe => {
                let arrived = match self.blasting {
                    (origin, count) if origin == header.origin => count,
                    _ => 0,
                };
                let answer = Header {
                    destination: header.source,
                    source: self.mac,
                    kind: Kind::Answer,
                    value: arrived,
                    ..*header
                };
                self.answers.push((answer, *len));
                self.counts.answered += 1;
            }
            Some(Seen { header, .. }) if header.kind == Kind::Blast => {
                if self.blasting.0 != header.origin {
                    self.blasting = (header.origin, 0);
                }
                self.blasting.1 += 1;
                self.counts.blasts += 1;
            }
            _ => self.counts.others += 1,
        }
    }

    /// Answers what is to be answered, as far as there is room.
    pub(super) fn answer(&mut self, machine: &mut Machine<'_>) -> Result<(), GuestError> {
        if self.answers.is_empty() {
            return Ok(());
        }
        let (min, max) = (usize::from(MIN_FRAME), machine.max_frame());
        for (header, len) in self.answers.drain(..) {
            self.frame.clear();
            self.frame.resize(len.clamp(min, max), 0);
            crate::guest::frames::finish(&mut self.frame, &header);
            // Who asks does not wait for ever, and who asks for too much gets less.
            machine.add(&self.frame, &[])?;
        }
        machine.flush();
        Ok(())
    }
}
