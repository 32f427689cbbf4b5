//! Where frames are completed whose receiver does not take them as they are.

use vvu::memory::{VolatileSlice, copy};

use super::burst::{Body, Burst};
use super::head::{Head, MAX_FRAME};
use super::offload::{Accepts, MAX_HEADERS, MAX_LARGE, Offload};

/// A frame as one destination gets it.
#[derive(Debug)]
pub struct Shown<'f> {
    /// What is left to the destination.
    pub offload: &'f Offload,
    /// Its first bytes, perhaps none...
    pub first: &'f [u8],
    /// ...and the others.
    pub body: Body<'f>,
    /// How many they are together.
    pub len: usize,
}

/// A worker's room for one frame and one segment of it.
#[derive(Debug)]
pub struct Scratch {
    frame: Box<[u8]>,
    segment: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            frame: vec![0; MAX_LARGE].into(),
            // A segment's payload is as long as its sender says, up to all of it.
            segment: Vec::with_capacity(MAX_LARGE + MAX_HEADERS),
        }
    }
}

impl Scratch {
    /// Hands `each` a frame as it is, if its destination `accepts` what it asks for, and else the
    /// frames that come of it, complete. Returns false if one of them was too long for any port.
    pub fn show(
        &mut self,
        burst: &Burst<'_>,
        head: &Head,
        accepts: Accepts,
        mut each: impl FnMut(Shown<'_>),
    ) -> bool {
        if accepts.takes(head.offload()) {
            each(Shown {
                offload: head.offload(),
                first: head.bytes(),
                body: burst.body(head),
                len: head.frame_len(),
            });
            return true;
        }
        self.finish(burst, head, |frame| {
            each(Shown {
                offload: &Offload::NONE,
                first: &[],
                body: Body::of_one(frame),
                len: frame.len(),
            });
        })
    }

    /// Copies a frame, does what it asks for, and hands `each` the frames that come of it.
    /// Returns false if one of them was too long for any port.
    pub fn finish(
        &mut self,
        burst: &Burst<'_>,
        head: &Head,
        mut each: impl FnMut(VolatileSlice<'_>),
    ) -> bool {
        let Some(frame) = self.frame.get_mut(..head.frame_len()) else {
            return false;
        };
        let (first, mut rest) = frame.split_at_mut(head.bytes().len());
        first.copy_from_slice(head.bytes());
        for piece in burst.body(head) {
            let copied = copy::read(piece, rest);
            rest = rest.get_mut(copied..).unwrap_or(&mut []);
        }
        let mut fits = true;
        head.offload().finish(frame, &mut self.segment, |done| {
            if done.len() > MAX_FRAME {
                fits = false;
            } else {
                each(VolatileSlice::from(done));
            }
        });
        fits
    }
}
