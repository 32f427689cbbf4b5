//! A transport that writes down what passes through it.
//!
//! One line for each event: seconds since the tracer was made, direction, and the message in
//! words. It changes nothing and knows nothing of what a message does.

use std::fmt::Display;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::{Event, RegionRequest, Transport, TransportError};
use crate::memory::Region;
use crate::notify::{Call, Kick};
use crate::protocol::{Message, describe};

/// A [`Transport`] around another one. See the [module](self).
pub struct Tracer<W: Write + Send> {
    inner: Box<dyn Transport>,
    out: W,
    start: Instant,
}

impl<W: Write + Send> Tracer<W> {
    /// Traces `inner` to `out`. Time counts from now.
    pub fn new(inner: Box<dyn Transport>, out: W) -> Self {
        Self {
            inner,
            out,
            start: Instant::now(),
        }
    }

    /// One line. A trace that cannot be written must not harm the connection.
    fn line(&mut self, direction: &str, what: impl Display) {
        let micros = self.start.elapsed().as_micros();
        let _ = writeln!(
            self.out,
            "{:>6}.{:06} {} {direction} {what}",
            micros / 1_000_000,
            micros % 1_000_000,
            self.inner.name()
        );
        let _ = self.out.flush();
    }

    /// Passes a result on, and writes it down if it is a failure.
    fn failure<T>(&mut self, result: Result<T, TransportError>) -> Result<T, TransportError> {
        if let Err(error) = &result {
            self.line("--", error);
        }
        result
    }
}

impl<W: Write + Send> Transport for Tracer<W> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.inner.poll_fd()
    }

    fn next(&mut self) -> Option<Event> {
        let event = self.inner.next()?;
        match &event {
            Event::Connected => self.line("--", "connected"),
            Event::Disconnected(reason) => self.line("--", format!("disconnected: {reason}")),
            Event::Message(incoming) => {
                let text = describe(&incoming.message);
                match incoming.attached.len() {
                    0 => self.line("->", text),
                    fds => self.line("->", format!("{text} fds={fds}")),
                }
            }
        }
        Some(event)
    }

    fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        self.line("<-", describe(message));
        let result = self.inner.send(message);
        self.failure(result)
    }

    fn protocol_features(&self) -> u64 {
        self.inner.protocol_features()
    }

    fn max_rings(&self) -> u16 {
        self.inner.max_rings()
    }

    fn map_memory(
        &mut self,
        regions: &[RegionRequest],
        attached: Vec<OwnedFd>,
        whole: bool,
    ) -> Result<Vec<Region>, TransportError> {
        let begin = Instant::now();
        let result = self.inner.map_memory(regions, attached, whole);
        if let Ok(mapped) = &result {
            let bytes: u64 = mapped.iter().map(|region| region.bytes.len() as u64).sum();
            let micros = begin.elapsed().as_micros();
            let text = format!("mapped {bytes:#x} bytes in {micros} us");
            self.line("--", text);
        }
        self.failure(result)
    }

    fn kick(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Kick, TransportError> {
        let result = self.inner.kick(index, nofd, attached);
        self.failure(result)
    }

    fn call(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError> {
        let result = self.inner.call(index, nofd, attached);
        self.failure(result)
    }

    fn err(
        &mut self,
        index: u16,
        nofd: bool,
        attached: Vec<OwnedFd>,
    ) -> Result<Call, TransportError> {
        let result = self.inner.err(index, nofd, attached);
        self.failure(result)
    }

    fn disconnect(&mut self) {
        self.line("--", "disconnecting");
        self.inner.disconnect();
    }

    fn shutdown(&mut self) {
        self.line("--", "shutting down");
        self.inner.shutdown();
    }
}
