//! A transport that writes down what passes through it.
//!
//! One line for each event: seconds since the tracer was made, direction, and the message in
//! words. It changes nothing and knows nothing of what a message does.

use std::fmt::Display;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::{Event, RegionRequest, Transport, TransportError};
use crate::memory::{Area, Region};
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

    fn map_inflight(
        &mut self,
        mmap_offset: u64,
        size: u64,
        attached: Vec<OwnedFd>,
    ) -> Result<Area, TransportError> {
        let result = self.inner.map_inflight(mmap_offset, size, attached);
        self.failure(result)
    }

    fn send_inflight(&mut self, message: &Message, size: u64) -> Result<(), TransportError> {
        self.line("<-", format!("{} fds=1", describe(message)));
        let result = self.inner.send_inflight(message, size);
        self.failure(result)
    }

    fn backend_channel(&mut self, attached: Vec<OwnedFd>) -> Result<(), TransportError> {
        let result = self.inner.backend_channel(attached);
        self.failure(result)
    }

    fn send_request(&mut self, message: &Message) -> bool {
        let sent = self.inner.send_request(message);
        let text = format!("request {} of the back-end, sent: {sent}", message.request);
        self.line("<=", text);
        sent
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::protocol::{Reply, Request, VringFd};
    use crate::transport::unix::UnixTransport;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_event_is_a_line() {
        let path = std::env::temp_dir().join(format!("vvu-tracer-{}", std::process::id()));
        let lines = Lines::default();
        let inner = UnixTransport::listen(&path).unwrap();
        let mut tracer = Tracer::new(Box::new(inner), lines.clone());
        let mut stream = UnixStream::connect(&path).unwrap();
        let next = |tracer: &mut Tracer<Lines>| {
            loop {
                if let Some(event) = tracer.next() {
                    return event;
                }
            }
        };
        next(&mut tracer);
        let fd = VringFd {
            index: 3,
            nofd: false,
        };
        let kick = Request::SetVringKick(fd).to_message(true);
        stream.write_all(&kick.to_bytes()).unwrap();
        next(&mut tracer);
        assert!(tracer.kick(3, false, Vec::new()).is_err());
        tracer.send(&Reply::U64(0).to_message(12)).unwrap();
        drop(stream);
        next(&mut tracer);
        tracer.shutdown();

        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let name = format!("unix:{} ", path.display());
        let ends: Vec<&str> = text
            .lines()
            .map(|line| {
                let (time, rest) = line.trim_start().split_once(' ').unwrap();
                let (seconds, micros) = time.split_once('.').unwrap();
                assert!(seconds.parse::<u32>().is_ok() && micros.len() == 6);
                rest.strip_prefix(&name).unwrap()
            })
            .collect();
        assert_eq!(
            ends,
            [
                "-- connected",
                "-> SET_VRING_KICK ring 3 need-reply",
                "-- SET_VRING_KICK came with 0 file descriptors instead of 1",
                "<- SET_VRING_KICK reply ok",
                "-- disconnected: the front-end closed the connection",
                "-- shutting down",
            ]
        );
    }
}
