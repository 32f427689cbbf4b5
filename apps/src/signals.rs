//! SIGINT and SIGTERM as something to wait for.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// From construction on, the signals that ask a program to end no longer end it.
pub(crate) struct Shutdown(Receiver<()>);

impl Shutdown {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot catch signals")?;
        let (sender, receiver) = channel();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in signals.forever() {
                    if sender.send(()).is_err() {
                        // Nobody waits any more: the first signal is being obeyed. A second one
                        // means that it takes too long for somebody.
                        std::process::exit(130);
                    }
                }
            })
            .context("cannot start a thread")?;
        Ok(Self(receiver))
    }

    /// Waits for a signal, at most for `timeout` if there is one. `true` if it came.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        match timeout {
            None => self.0.recv().is_ok(),
            Some(timeout) => {
                !matches!(self.0.recv_timeout(timeout), Err(RecvTimeoutError::Timeout))
            }
        }
    }
}
