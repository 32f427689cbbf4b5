//! Bytes that came and were not looked at yet.

/// A buffer of fixed size.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    /// For `room` bytes.
    pub(super) fn new(room: usize) -> Self {
        Self {
            bytes: vec![0; room].into(),
            start: 0,
            end: 0,
        }
    }

    /// What came.
    pub(super) fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or(&[])
    }

    /// The first `n` bytes were looked at.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.end);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Where more can be put; what came moves to the front first.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or(&mut [])
    }

    /// `n` bytes were put there.
    pub(super) fn came(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(self.bytes.len());
    }
}
