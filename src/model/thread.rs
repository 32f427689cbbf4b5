//! The model's own thread: waits for front-ends, their messages and their kicks.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::{CHANNEL, ENDPOINT, SOCKET, Shared, WAKE, kicks};
use crate::socket::{Endpoint, Wire};

/// Runs until the model is gone.
pub(super) fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    let mut steps = Steps::new(shared, endpoint);
    while !steps.shared.stopping.load(Ordering::Acquire) {
        if let Err(errno) = steps.step(None) {
            tracing::error!(%errno, "cannot wait for front-ends any more");
            return;
        }
    }
}

/// What the thread does, one wait at a time.
#[derive(Debug)]
pub(super) struct Steps {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    /// Whether the next front-end is waited for.
    waiting: bool,
}

impl Steps {
    pub(super) fn new(shared: Arc<Shared>, mut endpoint: Endpoint) -> Self {
        let mut waiting = false;
        settle(&shared, &mut endpoint, &mut waiting);
        Self {
            shared,
            endpoint,
            waiting,
        }
    }

    /// Waits, and does what there is to do then. Whether there was anything.
    pub(super) fn step(&mut self, timeout: Option<&Timespec>) -> rustix::io::Result<bool> {
        let Self {
            shared,
            endpoint,
            waiting,
        } = self;
        let mut space = [const { MaybeUninit::uninit() }; 64];
        let ready = match epoll::wait(&shared.epoll, &mut space[..], timeout) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        for event in ready.iter() {
            let flags = event.flags;
            match event.data.u64() {
                WAKE => {
                    kicks::take(shared.wake.as_fd());
                    shared.lock().transmit();
                }
                // A call may sleep for a moment when descriptors run out; no lock is held.
                ENDPOINT => {
                    if let Some(socket) = waiting.then(|| endpoint.attempt()).flatten() {
                        let _ = epoll::delete(&shared.epoll, endpoint.fd());
                        *waiting = false;
                        shared.lock().opened(Wire::new(socket));
                    }
                }
                SOCKET => shared.lock().socket_ready(flags),
                CHANNEL => shared.lock().channel_ready(),
                ring => shared.kicks.relay(ring),
            }
        }
        settle(shared, endpoint, waiting);
        Ok(!ready.is_empty())
    }
}

/// Waits for the next front-end if there is none. One at a time: the others stand in line.
fn settle(shared: &Shared, endpoint: &mut Endpoint, waiting: &mut bool) {
    let dropped = {
        let mut locked = shared.lock();
        if locked.state.has_connection() || *waiting {
            return;
        }
        locked.state.dropped.take()
    };
    if let Some(useful) = dropped {
        endpoint.rearm(useful);
    }
    let data = EventData::new_u64(ENDPOINT);
    match epoll::add(&shared.epoll, endpoint.fd(), data, EventFlags::IN) {
        Ok(()) => *waiting = true,
        Err(errno) => tracing::error!(%errno, "cannot wait for the next front-end"),
    }
}
