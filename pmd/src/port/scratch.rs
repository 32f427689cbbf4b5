//! Where frames are completed whose receiver does not take them as they are.

use vvu::memory::VolatileSlice;

use super::burst::{Burst, Head, MAX_FRAME};
use super::offload::{MAX_HEADERS, MAX_LARGE};

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
            let copied = piece.copy_to(rest);
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
