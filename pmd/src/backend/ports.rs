//! Kinds of port, and their halves.

use std::sync::Arc;

use thiserror::Error;
use vvu::memory::MemoryError;

use crate::mempool::MempoolError;
use crate::net::{Control, ControlPort, MAX_PORTS, NetConfig};
use crate::port::capture::{CaptureError, FileConfig, FileTx, Recorder, Replay};
use crate::port::uplink::{self, TapConfig, UplinkError, XdpConfig};
use crate::port::{
    ControlQueue, Generator, MAX_FRAME, Rings, RxPort, Stats, TxPort, VhostRx, VhostTx,
};
use crate::wake::Waker;
use crate::worker::WorkerError;

/// What a generator sends.
#[derive(Debug, Clone)]
pub struct GenConfig {
    /// Length of a frame, without its checksum.
    pub size: usize,
    /// Source address.
    pub source: [u8; 6],
    /// Destination address. One that nobody has is flooded.
    pub destination: [u8; 6],
}

impl Default for GenConfig {
    fn default() -> Self {
        Self {
            size: 60,
            source: [0x02, 0, 0, 0, 0, 0x01],
            destination: [0x02, 0, 0, 0, 0, 0x02],
        }
    }
}

/// Kinds of port.
#[derive(Debug, Clone)]
pub enum PortKind {
    /// A guest's network card.
    Vhost(NetConfig),
    /// Takes frames and forgets them.
    Null,
    /// Sends frames, as fast as it can.
    Gen(GenConfig),
    /// A TAP interface.
    Tap(TapConfig),
    /// The interface of this name, through a packet socket.
    Packet(String),
    /// A queue of an interface, through an AF_XDP socket.
    Xdp(XdpConfig),
    /// Frames of a file, and a file of frames.
    File(FileConfig),
    /// Sends each frame back to where it came from.
    Echo {
        /// With source and destination address exchanged.
        swap: bool,
    },
}

/// Why a port or a worker cannot be had.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// No buffers.
    #[error(transparent)]
    Mempool(#[from] MempoolError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No way to the kernel.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// A file that cannot be read or written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// All numbers are taken.
    #[error("a switch has at most {MAX_PORTS} ports")]
    TooManyPorts,
    /// A worker that does not exist.
    #[error("there is no worker {0}, only {1}")]
    NoWorker(usize, usize),
    /// A port that does not exist.
    #[error("there is no such port")]
    NoPort,
    /// Rules that contradict each other, or another port's.
    #[error("{0}")]
    Rules(&'static str),
    /// A configuration that no device can have.
    #[error("{what} is {found}, expected {expected}")]
    Config {
        /// What is wrong.
        what: &'static str,
        /// What was found.
        found: usize,
        /// What would do.
        expected: String,
    },
}

/// Number of queues of a card that can be.
pub(super) fn check(config: &NetConfig) -> Result<usize, BackendError> {
    let within = |what, found: u16, low: u16, high: u16| {
        if (low..=high).contains(&found) {
            return Ok(());
        }
        Err(BackendError::Config {
            what,
            found: usize::from(found),
            expected: format!("{low} to {high}"),
        })
    };
    let most = match config.control {
        true => NetConfig::MAX_PAIRS_CONTROLLED,
        false => NetConfig::MAX_PAIRS,
    };
    within("the number of queue pairs", config.pairs, 1, most)?;
    within(
        "the MTU",
        config.mtu,
        NetConfig::MIN_MTU,
        NetConfig::MAX_MTU,
    )?;
    Ok(config.queues().into())
}

/// The control queue of a card that has one.
pub(super) fn control(kind: &PortKind, name: &Arc<str>, stats: &Stats) -> Option<ControlPort> {
    let PortKind::Vhost(config @ NetConfig { control: true, .. }) = kind else {
        return None;
    };
    let rings = Rings::new(Arc::clone(name), Arc::clone(stats));
    let queue = ControlQueue::new(rings);
    Some(ControlPort::new(queue, Control::new(config)))
}

/// The halves of a port that has some.
pub(super) fn halves(
    kind: &PortKind,
    name: &Arc<str>,
    stats: &Stats,
    waker: &Arc<Waker>,
    recorder: &mut Option<Recorder>,
) -> Result<Option<(RxPort, TxPort)>, BackendError> {
    let rings = || Rings::new(Arc::clone(name), Arc::clone(stats));
    let null = TxPort::Null(Arc::clone(stats));
    Ok(match kind {
        PortKind::Vhost(_) => Some((
            RxPort::Vhost(VhostRx::new(rings())),
            TxPort::Vhost(VhostTx::new(rings())),
        )),
        PortKind::Null => Some((RxPort::None, null)),
        PortKind::Gen(generator) => {
            let GenConfig {
                size,
                source,
                destination,
            } = *generator;
            if !(14..=MAX_FRAME).contains(&size) {
                return Err(BackendError::Config {
                    what: "the generator's frame size",
                    found: size,
                    expected: format!("14 to {MAX_FRAME}"),
                });
            }
            let generator = Generator::new(size, source, destination, Arc::clone(stats))?;
            Some((RxPort::Gen(generator), null))
        }
        PortKind::Tap(config) => {
            let (rx, tx) = uplink::tap(config, stats, waker)?;
            Some((RxPort::Tap(rx), TxPort::Tap(tx)))
        }
        PortKind::Packet(name) => {
            let (rx, tx) = uplink::packet(name, stats, waker)?;
            Some((RxPort::Packet(rx), TxPort::Packet(tx)))
        }
        PortKind::Xdp(config) => {
            let (rx, tx) = uplink::xdp(config, stats, waker)?;
            Some((RxPort::Xdp(rx), TxPort::Xdp(tx)))
        }
        PortKind::File(FileConfig {
            input,
            output,
            repeat,
        }) => {
            let rx = match input {
                None => RxPort::None,
                Some(path) => RxPort::File(Replay::open(path, *repeat, Arc::clone(stats))?),
            };
            let tx = match output {
                None => null,
                Some(path) => {
                    let (started, pen) = Recorder::start(path, name, Recorder::SNAP)?;
                    *recorder = Some(started);
                    TxPort::File(FileTx::new(pen, Arc::clone(stats)))
                }
            };
            Some((rx, tx))
        }
        PortKind::Echo { .. } => None,
    })
}
