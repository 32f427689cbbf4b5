//! SIGINT and SIGTERM as something to wait for.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
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
        let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
        while !self.raised() {
            let left = deadline
                .map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            // An interrupted wait is a short one.
            let _ = poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], left.as_ref());
        }
        self.raised()
    }
}
