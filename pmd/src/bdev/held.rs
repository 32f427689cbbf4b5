//! Requests that wait for their time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::Request;
use super::timer::Timer;
use crate::wake::Quiet;

/// A request and when it may go on. Greater is what comes first: see [`BinaryHeap`].
#[derive(Debug)]
struct Waiting {
    at: Instant,
    /// Those of one moment keep their order.
    number: u64,
    request: Request,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

/// Requests that wait, and what tells a sleeping worker when the first may go on.
#[derive(Debug)]
pub(super) struct Held {
    heap: BinaryHeap<Waiting>,
    number: u64,
    timer: Timer,
}

impl Held {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            heap: BinaryHeap::new(),
            number: 0,
            timer: Timer::new()?,
        })
    }

    /// Keeps `request` until `at`.
    pub(super) fn put(&mut self, at: Instant, request: Request) {
        self.number += 1;
        self.heap.push(Waiting {
            at,
            number: self.number,
            request,
        });
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Moves those whose time has come to `into`.
    #[inline]
    pub(super) fn take_due(&mut self, into: &mut Vec<Request>) {
        if self.heap.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.heap.peek().is_some_and(|first| first.at <= now) {
            into.extend(self.heap.pop().map(|waiting| waiting.request));
        }
    }

    /// Moves all to `into`, whatever the time.
    pub(super) fn take_all(&mut self, into: &mut Vec<Request>) {
        while let Some(waiting) = self.heap.pop() {
            into.push(waiting.request);
        }
    }

    /// Lets the descriptor tell when the first may go on.
    pub(super) fn arm(&mut self) -> Quiet {
        let Some(first) = self.heap.peek() else {
            return Quiet::Kicked;
        };
        let now = Instant::now();
        if first.at <= now {
            return Quiet::Busy;
        }
        self.timer.set(first.at, now);
        Quiet::Kicked
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.timer.fd()
    }
}
