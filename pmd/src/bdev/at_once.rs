//! The channel of a disk whose requests are done while they are submitted.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use super::{Channel, Done, IoError, Request};
use crate::wake::Quiet;

/// What does requests at once.
pub(super) trait Run: Debug + Send {
    /// Does `request`, or says why not.
    fn run(&self, request: &Request) -> Result<(), IoError>;
}

/// A channel to it.
#[derive(Debug)]
pub(super) struct AtOnce<R> {
    disk: R,
    done: Vec<Done>,
}

impl<R: Run> AtOnce<R> {
    pub(super) fn new(disk: R) -> Self {
        Self {
            disk,
            done: Vec::new(),
        }
    }
}

impl<R: Run> Channel for AtOnce<R> {
    fn submit(&mut self, requests: &mut Vec<Request>) {
        let Self { disk, done } = self;
        done.extend(requests.drain(..).map(|request| {
            let result = disk.run(&request);
            request.done(result)
        }));
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn arm(&mut self) -> Quiet {
        match self.done.is_empty() {
            true => Quiet::Kicked,
            false => Quiet::Busy,
        }
    }
}
