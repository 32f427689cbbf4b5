//! SIGINT, SIGTERM and SIGUSR1 as something to wait for.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::{flag, low_level::pipe};

/// From construction on, the first signal that asks the program to end no longer ends it. A
/// second one does: it means that obeying takes too long for somebody.
#[derive(Debug)]
pub(crate) struct Shutdown {
    raised: Arc<AtomicBool>,
    wake: UnixStream,
}

impl Shutdown {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let (wake, other) = UnixStream::pair().context("cannot make a socket pair")?;
        for signal in [SIGINT, SIGTERM] {
            let failed = "cannot catch signals";
            // In this order: the flag is looked at before it is set.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&raised))
                .context(failed)?;
            flag::register(signal, Arc::clone(&raised)).context(failed)?;
            pipe::register(signal, other.try_clone().context(failed)?).context(failed)?;
        }
        Ok(Self { raised, wake })
    }

    /// Whether a signal came.
    pub(crate) fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Readable, and stays so, once a signal came.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Waits for a signal, at most for `timeout` if there is one. `true` if it came.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        self.wait_for(None, deadline)
    }

    /// The same up to a moment, or until somebody asks for something.
    pub(crate) fn wait_or(&self, request: &Request, deadline: Option<Instant>) -> bool {
        self.wait_for(Some(&request.wake), deadline)
    }

    fn wait_for(&self, other: Option<&UnixStream>, deadline: Option<Instant>) -> bool {
        while !self.raised() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            fds.extend(other.map(|other| PollFd::new(other, PollFlags::IN)));
            // An interrupted wait is a short one.
            let _ = poll(&mut fds, left.as_ref());
            if fds
                .last()
                .is_some_and(|last| other.is_some() && !last.revents().is_empty())
            {
                break;
            }
        }
        self.raised()
    }
}

/// From construction on, SIGUSR1 no longer ends the program but asks it for something.
#[derive(Debug)]
pub(crate) struct Request {
    wake: UnixStream,
}

impl Request {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let (wake, other) = UnixStream::pair().context("cannot make a socket pair")?;
        wake.set_nonblocking(true)
            .context("cannot make a socket pair")?;
        pipe::register(SIGUSR1, other).context("cannot catch signals")?;
        Ok(Self { wake })
    }

    /// Whether somebody asked since the last time; several times at once are one.
    pub(crate) fn take(&self) -> bool {
        let mut bytes = [0; 64];
        (&self.wake).read(&mut bytes).is_ok_and(|count| count > 0)
    }
}
