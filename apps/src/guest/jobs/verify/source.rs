//! Frames of random length, content and layout.

use crate::guest::args::MIN_FRAME;
use crate::guest::queues::MAX_PIECES;
use crate::guest::wrap::{MOST, SEGMENT, Wrapping, feature};

/// Random bytes that bodies are cut from.
const POOL: usize = 1 << 16;

/// See the [module](self).
pub(super) struct Source {
    rng: fastrand::Rng,
    pool: Vec<u8>,
    max: usize,
    buffer_len: usize,
}

impl Source {
    pub(super) fn new(seed: u64, max: usize, buffer_len: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut pool = vec![0; POOL];
        rng.fill(&mut pool);
        Self {
            rng,
            pool,
            max,
            buffer_len,
        }
    }

    /// What the next frame is wrapped in, as far as `features` allow.
    pub(super) fn wrapping(&mut self, features: u64) -> Option<Wrapping> {
        if features & feature::CSUM == 0 || self.rng.u8(..3) == 0 {
            return None;
        }
        let segment = self.rng.bool().then(|| self.rng.u16(SEGMENT));
        let wrapping = Wrapping {
            ipv6: self.rng.bool(),
            udp: self.rng.bool(),
            segment,
        };
        wrapping.may_be_sent(features).then_some(wrapping)
    }

    /// The next frame's body, in `frame`, and where to cut it.
    pub(super) fn fill(&mut self, frame: &mut Vec<u8>, wrapping: Option<Wrapping>) -> Vec<usize> {
        let rng = &mut self.rng;
        let min = usize::from(MIN_FRAME);
        let len = match rng.u8(..4) {
            0 => rng.usize(min..=self.max.min(128)),
            // Around the ends of buffers and of what may be sent.
            1 => {
                let edges = [self.buffer_len - 12, 2 * self.buffer_len - 12, self.max];
                let edge = rng.choice(edges).unwrap_or(min);
                (edge + 2).saturating_sub(rng.usize(..=4))
            }
            _ => rng.usize(min..=self.max),
        };
        let len = match wrapping {
            None => len.clamp(min, self.max),
            // The headers around it must fit, too.
            Some(Wrapping { segment: None, .. }) => len.clamp(min, self.max.min(1400).max(min)),
            Some(_) => rng.usize(usize::from(*SEGMENT.end()) + 100..=MOST),
        };
        let start = rng.usize(..=POOL - len);
        frame.clear();
        frame.extend(self.pool.get(start..start + len).unwrap_or_default());
        if rng.bool() {
            return Vec::new();
        }
        let count = rng.usize(1..MAX_PIECES - 1);
        let mut cuts: Vec<_> = (0..count).map(|_| rng.usize(1..len)).collect();
        cuts.sort_unstable();
        cuts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_all_lengths_and_layouts() {
        let mut source = Source::new(7, 9014, 2048);
        let mut frame = Vec::new();
        let (mut shortest, mut longest, mut most) = (usize::MAX, 0, 0);
        for _ in 0..10_000 {
            let cuts = source.fill(&mut frame, None);
            assert!((60..=9014).contains(&frame.len()));
            assert!(cuts.is_sorted() && cuts.len() < MAX_PIECES - 1);
            assert!(cuts.iter().all(|cut| (1..frame.len()).contains(cut)));
            shortest = shortest.min(frame.len());
            longest = longest.max(frame.len());
            most = most.max(cuts.len());
        }
        assert_eq!((shortest, longest, most), (60, 9014, MAX_PIECES - 2));
        // The smallest range of all.
        let mut source = Source::new(7, 60, 65535);
        source.fill(&mut frame, None);
        assert_eq!(frame.len(), 60);
    }
}
