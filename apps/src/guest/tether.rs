//! A connection that may break, with what is shared over it: what every guest has, whatever its
//! rings are for.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vvu::socket::Endpoint;

use super::args::{Options, Socket};
use super::error::{Fault, GuestError, io};
use super::link::{Link, Tracked, Wanted};
use super::memory::Memory;
use super::queues::Queue;
use crate::signals::Shutdown;

/// For this long nothing is worth going to sleep for.
const SPIN: Duration = Duration::from_micros(10);
/// For this long others may run, but we look again at once.
const YIELD: Duration = Duration::from_micros(50);

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// There may be something to do.
    Ready,
    /// It was time.
    Late,
    /// A signal says to stop.
    Stopped,
    /// The back-end went away and is back. What was under way may be lost, or done twice.
    Reconnected,
}

/// All rings of a machine, in the order of their numbers.
pub(super) trait Queues {
    fn all(&self) -> impl Iterator<Item = &Queue>;
    fn all_mut(&mut self) -> impl Iterator<Item = &mut Queue>;
}

/// What a bed tells a hang-up by; everything else only wakes.
const HANG_UP: u64 = 1;

/// A place to sleep at, where a hang-up, a signal and the calls of `queues` wake.
fn bed(link: &Link, shutdown: &Shutdown, queues: &impl Queues) -> std::io::Result<Epoll> {
    let bed = Epoll::new()?;
    let watch = |fd: &dyn AsRawFd, data| {
        let event = EpollEvent::new(EventSet::IN, data);
        bed.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    };
    watch(&link.fd(), HANG_UP)?;
    watch(&shutdown.fd(), 0)?;
    for queue in queues.all() {
        watch(&queue.call, 0)?;
        watch(&queue.err, 0)?;
    }
    Ok(bed)
}

fn is_ready(queues: &impl Queues, awaited: impl Fn(usize) -> bool) -> bool {
    let mut queues = queues.all().enumerate();
    queues.any(|(n, queue)| awaited(n) && queue.ring.has_used())
}

/// Where a guest meets its back-end, and under which conditions.
pub(super) struct Meeting<'a> {
    pub(super) socket: &'a Socket,
    pub(super) endpoint: &'a mut Endpoint,
    pub(super) options: &'a Options,
    pub(super) shutdown: &'a Shutdown,
    pub(super) wanted: Wanted,
}

impl<'a> Meeting<'a> {
    /// Gets a connection and negotiates.
    pub(super) fn link(&mut self) -> Result<Link, GuestError> {
        let deadline = Instant::now() + self.timeout();
        let connected = self.connected(deadline)?;
        Link::open(connected, self.wanted, self.timeout())
    }

    /// Hands over memory and rings and starts them.
    pub(super) fn tie(
        self,
        mut link: Link,
        memory: Memory,
        queues: &mut impl Queues,
    ) -> Result<Tether<'a>, GuestError> {
        let mut tracked = None;
        link.start(&memory, &mut tracked, queues.all_mut())?;
        let bed = bed(&link, self.shutdown, queues);
        tracing::info!(
            "connected: features {:#x}, {} regions, rings of {}",
            link.features,
            memory.regions(),
            self.options.queue_size
        );
        Ok(Tether {
            meeting: self,
            bed: bed.map_err(io("wait for events"))?,
            features: link.features,
            link: Some(link),
            memory,
            tracked,
            connections: 1,
        })
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.options.timeout)
    }

    fn connected(&mut self, deadline: Instant) -> Result<OwnedFd, GuestError> {
        let (endpoint, socket) = (&mut *self.endpoint, self.socket);
        connected(endpoint, socket, self.options, self.shutdown, deadline)
    }
}

/// See the [module](self).
pub(super) struct Tether<'a> {
    meeting: Meeting<'a>,
    link: Option<Link>,
    bed: Epoll,
    features: u64,
    memory: Memory,
    /// Where the back-end keeps what it has not answered, if it does.
    tracked: Option<Tracked>,
    connections: u64,
}

impl Tether<'_> {
    /// The virtio features in use.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// How often a connection was made.
    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    /// How long the back-end may take.
    pub(super) fn timeout(&self) -> Duration {
        self.meeting.timeout()
    }

    /// Whether a signal says to stop.
    pub(super) fn stopped(&self) -> bool {
        self.meeting.shutdown.raised()
    }

    /// Waits until the back-end returned something on a ring that is `awaited`. Returns early now
    /// and then.
    pub(super) fn wait(
        &mut self,
        deadline: Instant,
        queues: &mut impl Queues,
        awaited: impl Fn(usize) -> bool,
    ) -> Result<Woken, GuestError> {
        let start = Instant::now();
        loop {
            if is_ready(queues, &awaited) {
                return Ok(Woken::Ready);
            }
            if self.stopped() {
                return Ok(Woken::Stopped);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Woken::Late);
            }
            match now - start {
                spent if spent < SPIN => std::hint::spin_loop(),
                spent if spent < YIELD => std::thread::yield_now(),
                _ => break,
            }
        }
        for (n, queue) in queues.all_mut().enumerate() {
            if awaited(n) && queue.ring.enable_calls() {
                return Ok(Woken::Ready);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let gone = self.sleep(left, queues)?;
        for queue in queues.all_mut() {
            queue.ring.disable_calls();
        }
        if gone && !is_ready(queues, &awaited) {
            self.reconnect(queues)?;
            return Ok(Woken::Reconnected);
        }
        Ok(Woken::Ready)
    }

    /// Sleeps until a call, a signal or a hang-up, at most for `time`; whether it was the last.
    fn sleep(&self, time: Duration, queues: &impl Queues) -> Result<bool, GuestError> {
        let Some(link) = &self.link else {
            return Ok(true);
        };
        let millis = time.as_micros().div_ceil(1000).min(1 << 30) as i32;
        let mut events = [EpollEvent::default(); 8];
        // An interrupted wait is a short one.
        let count = self.bed.wait(millis, &mut events).unwrap_or(0);
        let hung_up = |event: &EpollEvent| event.data() == HANG_UP;
        let over = events.iter().take(count).any(hung_up) && link.is_over();
        for queue in queues.all() {
            let _ = queue.call.read();
            if queue.err.read().is_ok() && !over {
                return Err(Fault::Signalled(queue.name).into());
            }
        }
        Ok(over)
    }

    /// The back-end hung up: waits for it to come back, if that is wanted.
    fn reconnect(&mut self, queues: &mut impl Queues) -> Result<(), GuestError> {
        self.link = None;
        if !self.meeting.options.reconnect {
            return Err(GuestError::Gone);
        }
        tracing::info!("the back-end is gone; waiting for it");
        let deadline = Instant::now() + self.timeout();
        let mut useful = true;
        loop {
            self.meeting.endpoint.rearm(useful);
            let connected = self.meeting.connected(deadline)?;
            match self.resume(connected, queues) {
                Ok(link) => {
                    self.link = Some(link);
                    self.connections += 1;
                    tracing::info!("connected again");
                    return Ok(());
                }
                // It may have died once more.
                Err(GuestError::Handshake { what, why }) => {
                    tracing::info!("{what}: {why}");
                    useful = false;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn resume(&mut self, connected: OwnedFd, queues: &mut impl Queues) -> Result<Link, GuestError> {
        let before = self.features;
        // Only what is in use: rings and headers are as they are.
        let wanted = Wanted {
            features: before,
            ..self.meeting.wanted
        };
        let mut link = Link::open(connected, wanted, self.timeout())?;
        let now = link.features;
        if now != before {
            return Err(GuestError::Changed { before, now });
        }
        link.start(&self.memory, &mut self.tracked, queues.all_mut())?;
        self.bed = bed(&link, self.meeting.shutdown, queues).map_err(io("wait for events"))?;
        Ok(link)
    }

    /// Stops the rings and hangs up.
    pub(super) fn stop(self, queues: &impl Queues) -> Result<(), GuestError> {
        match self.link {
            None => Ok(()),
            Some(link) => link.stop(queues.all()),
        }
    }
}

pub(super) fn endpoint(socket: &Socket) -> Result<Endpoint, GuestError> {
    Ok(match socket.server {
        true => Endpoint::listen(&socket.path)?,
        false => Endpoint::connect(&socket.path)?,
    })
}

/// Waits for a connected socket.
pub(super) fn connected(
    endpoint: &mut Endpoint,
    socket: &Socket,
    options: &Options,
    shutdown: &Shutdown,
    deadline: Instant,
) -> Result<OwnedFd, GuestError> {
    while !shutdown.raised() {
        if let Some(connected) = endpoint.attempt() {
            return Ok(connected);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(nobody(socket, options));
        }
        let mut fds = [
            PollFd::from_borrowed_fd(endpoint.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shutdown.fd(), PollFlags::IN),
        ];
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
    }
    Err(GuestError::Interrupted)
}

fn nobody(socket: &Socket, options: &Options) -> GuestError {
    let why = match std::os::unix::net::UnixStream::connect(&socket.path) {
        Err(error) if !socket.server => format!(": {error}"),
        _ => String::new(),
    };
    GuestError::NoBackEnd {
        how: if socket.server {
            "called"
        } else {
            "answers at"
        },
        path: socket.path.clone(),
        seconds: options.timeout,
        why,
    }
}
