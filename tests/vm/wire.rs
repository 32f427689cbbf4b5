//! What the host and the agent in a guest say to each other.
//!
//! The line is a serial port of a machine that may be reset in the middle of a message. So a message
//! is postcard under COBS: it contains no zero byte and ends with one, and the agent begins each
//! boot with a zero byte, which ends whatever was torn.
//!
//! The host chooses the id of a [`Request`]; every [`Event`] that answers it carries the same id.
//! [`Event::Hello`] has id 0 and is sent once at each boot.

use std::io::{self, BufRead, Read, Write};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest message in its encoded form.
const MAX_MESSAGE: u64 = 1 << 20;

/// Bytes of a file that travel in one message.
pub const CHUNK: usize = 32 * 1024;

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Start a program. Answered by `Started`, any number of `Stdout` and `Stderr`, `Exited`.
    Spawn {
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// Run a task of the agent. Answered as `Spawn` is; standard output is the report.
    Run(Task),
    /// Send a signal to a process. Answered by `Done`.
    Signal {
        /// The process.
        pid: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Write or append to a file with one `write`. Answered by `Done`.
    Write {
        /// The file.
        path: String,
        /// The bytes.
        data: Vec<u8>,
        /// Append to what is there.
        append: bool,
        /// Permission bits of a new file.
        mode: u32,
    },
    /// Read a file. Answered by any number of `Stdout`, then `Done`.
    Read {
        /// The file.
        path: String,
    },
}

/// What the agent tells the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The guest has booted and is ready.
    Hello,
    /// A program runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// Bytes of a program's standard output, or of a file.
    Stdout(Vec<u8>),
    /// Bytes of a program's standard error.
    Stderr(Vec<u8>),
    /// A program has ended; all its output came before.
    Exited {
        /// Exit code, absent when a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// The request was carried out.
    Done,
    /// The request could not be carried out.
    Failed(String),
}

impl Event {
    /// No further event follows this one for the same request.
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Exited { .. } | Event::Done | Event::Failed(_))
    }
}

/// What the agent can do by itself. Each runs in its own process of the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Task {
    /// ICMP echo requests; reports [`PingReport`].
    Ping {
        /// Whom to ask.
        to: Ipv4Addr,
        /// Bytes of payload.
        size: u16,
        /// How many requests.
        count: u32,
        /// Milliseconds between a reply, or a loss, and the next request.
        interval_ms: u64,
        /// Milliseconds after which a reply counts as lost.
        timeout_ms: u64,
    },
    /// Accept one TCP connection and read it to its end; reports [`TcpReport`].
    TcpReceive {
        /// Where to listen.
        port: u16,
        /// Check what arrives, or only count it.
        verify: bool,
    },
    /// Send a pseudo-random stream over TCP; reports [`TcpReport`].
    TcpSend {
        /// The receiver.
        to: Ipv4Addr,
        /// Its port.
        port: u16,
        /// Length of the stream.
        bytes: u64,
        /// Seed of the stream.
        seed: u64,
        /// Compute a checksum, or send one block again and again.
        verify: bool,
    },
    /// Turn a feature of an interface on, as `ethtool -K` does; reports nothing, as null.
    TurnOn {
        /// Interface.
        device: String,
        /// The feature's name in the kernel.
        feature: String,
    },
    /// Send datagrams whose contents the receiver knows, some at once, and wait after each such
    /// burst until it has arrived; reports [`UdpReport`].
    UdpSend {
        /// The receiver.
        to: Ipv4Addr,
        /// Its port.
        port: u16,
        /// What is sent.
        shape: Datagrams,
    },
    /// Receive them, check each, and answer each burst; reports [`UdpReport`].
    UdpReceive {
        /// Where.
        port: u16,
        /// What is expected.
        shape: Datagrams,
        /// Let the kernel hand over several datagrams at once (UDP_GRO).
        merge: bool,
    },
    /// Send datagrams without waiting for anything, then an empty one; reports [`UdpReport`].
    UdpFlood {
        /// The receiver.
        to: Ipv4Addr,
        /// Its port.
        port: u16,
        /// Bytes of each.
        size: u16,
        /// How many the kernel gets at once (UDP_SEGMENT).
        burst: u16,
        /// For how long.
        millis: u64,
    },
    /// Count datagrams from the first to the first empty one, or until none comes any more;
    /// reports [`UdpReport`].
    UdpCount {
        /// Where.
        port: u16,
    },
    /// Send back what arrives: on one TCP connection, or as datagrams until an empty one comes.
    /// Reports nothing.
    Echo {
        /// Where.
        port: u16,
        /// Datagrams.
        udp: bool,
    },
    /// Ask an `Echo`, one request at a time; reports [`PingReport`].
    Ask {
        /// Whom.
        to: Ipv4Addr,
        /// Its port.
        port: u16,
        /// Datagrams.
        udp: bool,
        /// Bytes of a request and of its answer.
        size: u16,
        /// How many.
        count: u32,
    },
    /// Send raw Ethernet frames as fast as the interface takes them; reports [`BlastReport`].
    Blast {
        /// Interface.
        device: String,
        /// Destination address of every frame.
        to: [u8; 6],
        /// Length of a frame without its checksum.
        size: u16,
        /// For how long.
        millis: u64,
    },
    /// Count the frames that an interface receives; reports [`BlastReport`].
    Count {
        /// Interface.
        device: String,
        /// For how long.
        millis: u64,
    },
    /// Processor time that a process uses; reports [`CpuReport`].
    Cpu {
        /// The process.
        pid: u32,
        /// For how long to watch it.
        millis: u64,
    },
}

/// Replies to echo requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Round-trip times of the replies in microseconds, in order of arrival.
    pub micros: Vec<u64>,
}

impl PingReport {
    /// Requests without a reply.
    pub fn lost(&self) -> u32 {
        self.sent.saturating_sub(self.micros.len() as u32)
    }

    /// Median round-trip time in microseconds, if any reply came.
    pub fn median(&self) -> Option<u64> {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

/// One end's view of a TCP stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpReport {
    /// Bytes that passed.
    pub bytes: u64,
    /// Checksum of these bytes, 0 when it was not asked for.
    pub checksum: u64,
    /// Time from the connection to the stream's end, in microseconds.
    pub micros: u64,
}

/// Datagrams whose contents both ends know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagrams {
    /// How many; whole bursts.
    pub count: u32,
    /// How many the kernel gets at once (UDP_SEGMENT), if more than one.
    pub burst: u16,
    /// Bytes of each but the last of a burst, which is shorter.
    pub size: u16,
    /// Seed of the contents.
    pub seed: u64,
}

impl Datagrams {
    /// What the last of a burst lacks.
    const SHORTER: u16 = 7;
    /// Bytes that say which one it is.
    pub const NUMBER: usize = 4;

    /// Writes datagram `number`: the number itself, and then what only its place and the seed
    /// decide.
    pub fn write(&self, number: u32, datagram: &mut Vec<u8>) {
        let burst = u32::from(self.burst.max(1));
        let is_last = burst > 1 && number % burst == burst - 1;
        let shorter = if is_last { Self::SHORTER } else { 0 };
        let length = usize::from(self.size - shorter);
        datagram.clear();
        datagram.resize(length.max(Self::NUMBER), 0);
        let (head, body) = datagram.split_at_mut(Self::NUMBER);
        head.copy_from_slice(&number.to_le_bytes());
        Stream::new(self.seed ^ u64::from(number) << 32).fill(body);
    }
}

/// Datagrams that passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UdpReport {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were not what was expected, or came twice.
    pub wrong: u64,
    /// Most bytes that the kernel handed over at once.
    pub largest: u64,
    /// Time from the first to the last, in microseconds.
    pub micros: u64,
}

/// Frames that passed an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlastReport {
    /// Frames.
    pub frames: u64,
    /// Time taken, in microseconds.
    pub micros: u64,
}

impl BlastReport {
    /// Thousands of frames per second.
    pub fn kpps(&self) -> f64 {
        self.frames as f64 * 1000.0 / self.micros.max(1) as f64
    }
}

/// Processor time of a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuReport {
    /// Nanoseconds that its threads ran.
    pub busy_nanos: u64,
    /// Nanoseconds it was watched.
    pub watched_nanos: u64,
}

impl CpuReport {
    /// Share of one processor, in percent.
    pub fn percent(&self) -> f64 {
        100.0 * self.busy_nanos as f64 / self.watched_nanos.max(1) as f64
    }
}

/// Sends one message.
pub fn send<T: Serialize>(line: &mut impl Write, id: u32, message: &T) -> io::Result<()> {
    let encoded = postcard::to_stdvec_cobs(&(id, message)).map_err(io::Error::other)?;
    line.write_all(&encoded)?;
    line.flush()
}

/// Ends what an earlier boot may have left unfinished on the line.
pub fn begin(line: &mut impl Write) -> io::Result<()> {
    line.write_all(&[0])
}

/// Receives the next well-formed message, skipping whatever precedes it.
pub fn receive<T: DeserializeOwned>(line: &mut impl BufRead) -> io::Result<(u32, T)> {
    let mut encoded = Vec::new();
    loop {
        encoded.clear();
        line.take(MAX_MESSAGE).read_until(0, &mut encoded)?;
        if encoded.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Ok(message) = postcard::from_bytes_cobs(&mut encoded) {
            return Ok(message);
        }
    }
}

/// The stream that both ends of a checked TCP transfer know: a generator and its checksum.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// A stream of its own for every seed.
    pub fn new(seed: u64) -> Stream {
        Stream { state: seed }
    }

    /// Fills a block with the next bytes (SplitMix64). Blocks are multiples of eight bytes, except the last.
    pub fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A checksum that knows the order of the words, and takes the bytes in pieces of any length.
#[derive(Debug, Clone, Default)]
pub struct Checksum {
    hash: u64,
    pending: Vec<u8>,
}

impl Checksum {
    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if !self.pending.is_empty() {
            let missing = (8 - self.pending.len()).min(bytes.len());
            self.pending.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.pending.len() < 8 {
                return;
            }
            let word = std::mem::take(&mut self.pending);
            self.add(&word);
        }
        let words = bytes.chunks_exact(8);
        self.pending.extend_from_slice(words.remainder());
        words.for_each(|word| self.add(word));
    }

    /// The checksum of all bytes so far.
    pub fn finish(mut self) -> u64 {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.add(&rest);
        }
        self.hash
    }

    fn add(&mut self, bytes: &[u8]) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        self.hash = (self.hash ^ u64::from_le_bytes(word))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
}

/// The checksum that a stream of `bytes` bytes must have.
pub fn expected_checksum(seed: u64, bytes: u64) -> u64 {
    let mut stream = Stream::new(seed);
    let mut checksum = Checksum::default();
    let mut block = [0; 4096];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(block.len() as u64) as usize;
        stream.fill(&mut block[..length]);
        checksum.update(&block[..length]);
        left -= length as u64;
    }
    checksum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_behind_a_torn_one() -> io::Result<()> {
        let mut line = Vec::new();
        send(&mut line, 6, &Event::Stdout(vec![1; 100]))?;
        line.truncate(50);
        begin(&mut line)?;
        send(&mut line, 7, &Event::Stdout(vec![0, 255, 3]))?;
        let (id, event) = receive::<Event>(&mut line.as_slice())?;
        assert_eq!((id, event), (7, Event::Stdout(vec![0, 255, 3])));
        Ok(())
    }

    #[test]
    fn a_checksum_does_not_depend_on_the_pieces() {
        let mut bytes = vec![0; 1003];
        Stream::new(9).fill(&mut bytes);
        let mut checksum = Checksum::default();
        bytes.chunks(13).for_each(|piece| checksum.update(piece));
        assert_eq!(checksum.finish(), expected_checksum(9, 1003));
        assert_ne!(expected_checksum(9, 1003), expected_checksum(8, 1003));
    }
}
