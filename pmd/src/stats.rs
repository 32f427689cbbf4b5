//! Counters: written by the one worker that owns a port, read by anybody at any time.
//!
//! A counter is an atomic with a single writer, so counting is a plain load and store and a
//! reader never stops the worker. Every reason to drop a frame has a name. This room knows no
//! packets, rings or threads; [`Snapshot`] is what people and tools read.

pub mod latency;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. By the one writer only: this is no read-modify-write.
    #[inline]
    pub fn add(&self, n: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(n), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a frame went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Drop {
    /// Received: shorter than its headers.
    Truncated,
    /// Received: longer than any port takes.
    TooLong,
    /// Received with a request for a checksum or for segmentation that makes no sense.
    BadOffload,
    /// Received on a ring that is not enabled.
    Disabled,
    /// Received with a group or zero address as its source.
    BadSource,
    /// Received with a source address that its port may not have.
    Spoofed,
    /// Received with a source address that belongs to another port for good.
    HeldAddress,
    /// Received from one address more than its port may have.
    MacLimit,
    /// Received with a VLAN tag that its port may not send, or without one that it must.
    Vlan,
    /// Received: more bits per second than its port may send.
    BitRate,
    /// Received: more frames per second than its port may send.
    PacketRate,
    /// Received for everybody: more of them per second than its port may send.
    Storm,
    /// Received from a port that only watches.
    Monitor,
    /// Switched: both ports are isolated.
    Isolated,
    /// Switched: its destination is where it came from, or no port at all.
    NoDestination,
    /// Switched: the other worker's queue was full.
    QueueFull,
    /// Switched: no mbuf to carry it to another worker.
    NoMbuf,
    /// To send: the port has no running ring that is enabled.
    NoRing,
    /// To send: the ring has no (or not enough) buffers.
    RingFull,
    /// To send: the next buffer is too small, and buffers may not be merged.
    SmallBuffer,
    /// To send: the guest said on its control queue that it does not want it.
    Filtered,
    /// Received by the kernel, which found the ring to us full.
    KernelFull,
    /// To send: the interface is down, or gone.
    LinkDown,
    /// To send: longer than the interface's MTU allows.
    OverMtu,
    /// To send: the kernel did not take it, for another reason.
    Refused,
    /// To a file: the thread that writes it is behind.
    WriterFull,
}

impl Drop {
    /// Names of all reasons, in order.
    pub const NAMES: [&str; 26] = [
        "truncated",
        "too-long",
        "bad-offload",
        "disabled",
        "bad-source",
        "spoofed",
        "held-address",
        "mac-limit",
        "vlan",
        "bit-rate",
        "packet-rate",
        "storm",
        "monitor",
        "isolated",
        "no-destination",
        "queue-full",
        "no-mbuf",
        "no-ring",
        "ring-full",
        "small-buffer",
        "filtered",
        "kernel-full",
        "link-down",
        "over-mtu",
        "refused",
        "writer-full",
    ];
}

/// What a ring does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RingState {
    /// Not started.
    Stopped,
    /// Started, not enabled.
    Disabled,
    /// Started and enabled.
    Running,
    /// Stopped because of what its driver wrote.
    Broken,
}

impl RingState {
    pub(crate) fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Disabled,
            2 => Self::Running,
            3 => Self::Broken,
            _ => Self::Stopped,
        }
    }

    pub(crate) fn letter(self) -> char {
        match self {
            Self::Stopped => '-',
            Self::Disabled => 'd',
            Self::Running => 'R',
            Self::Broken => 'B',
        }
    }
}

/// Counters of one port.
#[derive(Debug)]
pub struct PortStats {
    /// Frames from the port.
    pub rx_packets: Counter,
    /// Their bytes, without virtio headers.
    pub rx_bytes: Counter,
    /// Frames delivered to the port.
    pub tx_packets: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Frames from the port that went to all ports because nobody was known to have their
    /// destination.
    pub unlearnt: Counter,
    /// Commands of the guest's control queue that were refused.
    pub refused: Counter,
    /// Frames that a capture of the port missed, because the thread that writes it was behind.
    pub uncaptured: Counter,
    /// Frames dropped, by [`Drop`].
    drops: [Counter; Drop::NAMES.len()],
    /// Rings stopped for a fault of their driver, by reason.
    faults: Box<[(&'static str, Counter)]>,
    rings: Box<[AtomicU8]>,
}

impl PortStats {
    /// All zero, for a port with `rings` rings that can break for one of `faults`.
    pub fn new(rings: usize, faults: &[&'static str]) -> Arc<CachePadded<Self>> {
        Arc::new(CachePadded::new(Self {
            rx_packets: Counter::default(),
            rx_bytes: Counter::default(),
            tx_packets: Counter::default(),
            tx_bytes: Counter::default(),
            unlearnt: Counter::default(),
            refused: Counter::default(),
            uncaptured: Counter::default(),
            drops: Default::default(),
            faults: faults.iter().map(|f| (*f, Counter::default())).collect(),
            rings: (0..rings).map(|_| AtomicU8::new(0)).collect(),
        }))
    }

    /// Counts `n` frames dropped.
    #[inline]
    pub fn dropped(&self, reason: Drop, n: u64) {
        if n > 0
            && let Some(counter) = self.drops.get(reason as usize)
        {
            counter.add(n);
        }
    }

    /// Frames dropped for `reason` so far.
    pub fn drops(&self, reason: Drop) -> u64 {
        self.drops.get(reason as usize).map_or(0, Counter::get)
    }

    /// Counts a ring that broke for the reason of this number.
    pub fn fault(&self, reason: usize) {
        if let Some((_, counter)) = self.faults.get(reason) {
            counter.add(1);
        }
    }

    /// Notes what ring `index` does now.
    pub fn set_ring(&self, index: u16, state: RingState) {
        if let Some(ring) = self.rings.get(usize::from(index)) {
            ring.store(state as u8, Ordering::Relaxed);
        }
    }
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WorkerState {
    /// It polls and finds something.
    Busy,
    /// It polls and finds nothing.
    Idle,
    /// It sleeps.
    Asleep,
}

impl WorkerState {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Asleep => "asleep",
        }
    }
}

/// Counters of one worker.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Rounds over everything that is polled.
    pub rounds: Counter,
    /// Rounds that found something to do.
    pub busy: Counter,
    /// Times that it went to sleep.
    pub sleeps: Counter,
    /// Control requests served.
    pub mails: Counter,
    /// Frames from other workers for a port that is gone, and copies of them that found no way to
    /// who watches from another worker.
    pub stray: Counter,
    /// Rings that are not polled because they had nothing for long: as of now.
    resting: AtomicU64,
    /// A [`WorkerState`].
    state: AtomicU8,
}

impl WorkerStats {
    /// Notes what the worker does now.
    #[inline]
    pub fn set_state(&self, state: WorkerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Notes how many rings rest now.
    pub fn set_resting(&self, rings: usize) {
        self.resting.store(rings as u64, Ordering::Relaxed);
    }
}

/// A port's counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSnapshot {
    /// Name of the port.
    pub name: String,
    /// Number of the worker that owns it.
    pub worker: usize,
    /// Frames from the port.
    pub rx_packets: u64,
    /// Bytes from the port.
    pub rx_bytes: u64,
    /// Frames to the port.
    pub tx_packets: u64,
    /// Bytes to the port.
    pub tx_bytes: u64,
    /// Frames flooded because their destination was not known.
    pub unlearnt: u64,
    /// Commands of the control queue refused.
    pub refused: u64,
    /// Frames that a capture missed.
    pub uncaptured: u64,
    /// Frames dropped, by reason; all reasons.
    pub drops: Vec<(&'static str, u64)>,
    /// Rings that broke, by reason; all reasons.
    pub faults: Vec<(&'static str, u64)>,
    /// State of each ring.
    pub rings: Vec<RingState>,
}

impl PortSnapshot {
    /// Reads the counters of a port.
    pub fn of(name: &str, worker: usize, stats: &PortStats) -> Self {
        let state = |ring: &AtomicU8| RingState::from_u8(ring.load(Ordering::Relaxed));
        Self {
            name: name.to_owned(),
            worker,
            rx_packets: stats.rx_packets.get(),
            rx_bytes: stats.rx_bytes.get(),
            tx_packets: stats.tx_packets.get(),
            tx_bytes: stats.tx_bytes.get(),
            unlearnt: stats.unlearnt.get(),
            refused: stats.refused.get(),
            uncaptured: stats.uncaptured.get(),
            drops: Drop::NAMES
                .into_iter()
                .zip(stats.drops.iter().map(Counter::get))
                .collect(),
            faults: stats.faults.iter().map(|(n, c)| (*n, c.get())).collect(),
            rings: stats.rings.iter().map(state).collect(),
        }
    }

    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops.get(reason as usize).map_or(0, |(_, n)| *n)
    }

    /// Frames dropped, whatever the reason.
    pub fn dropped_all(&self) -> u64 {
        self.drops.iter().map(|(_, n)| n).sum()
    }
}

/// A worker's counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSnapshot {
    /// The CPU it runs on.
    pub cpu: usize,
    /// Rounds over everything that is polled.
    pub rounds: u64,
    /// Rounds that found something to do.
    pub busy: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Control requests served.
    pub mails: u64,
    /// Frames from other workers for a port that is gone.
    pub stray: u64,
    /// Rings that are not polled because they had nothing for long.
    pub resting: u64,
    /// What it does.
    pub state: WorkerState,
}

impl WorkerSnapshot {
    /// Reads the counters of a worker.
    pub fn of(cpu: usize, stats: &WorkerStats) -> Self {
        Self {
            cpu,
            rounds: stats.rounds.get(),
            busy: stats.busy.get(),
            sleeps: stats.sleeps.get(),
            mails: stats.mails.get(),
            stray: stats.stray.get(),
            resting: stats.resting.load(Ordering::Relaxed),
            state: match stats.state.load(Ordering::Relaxed) {
                0 => WorkerState::Busy,
                1 => WorkerState::Idle,
                _ => WorkerState::Asleep,
            },
        }
    }
}

impl fmt::Display for WorkerSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "on cpu {}, {}: {} of {} rounds busy, slept {} times, {} rings rest, {} requests",
            self.cpu,
            self.state.name(),
            self.busy,
            self.rounds,
            self.sleeps,
            self.resting,
            self.mails
        )
    }
}

/// All counters at (almost) one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Ports in the order they were added.
    pub ports: Vec<PortSnapshot>,
    /// Workers in order.
    pub workers: Vec<WorkerSnapshot>,
}

impl Snapshot {
    /// The port of this name.
    pub fn port(&self, name: &str) -> Option<&PortSnapshot> {
        self.ports.iter().find(|port| port.name == name)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>2} {:>14} {:>16} {:>14} {:>16} {:>10}  rings",
            "port", "w", "rx packets", "rx bytes", "tx packets", "tx bytes", "dropped"
        )?;
        for port in &self.ports {
            let rings: String = port.rings.iter().map(|ring| ring.letter()).collect();
            writeln!(
                f,
                "{:<24} {:>2} {:>14} {:>16} {:>14} {:>16} {:>10}  {rings}",
                port.name,
                port.worker,
                port.rx_packets,
                port.rx_bytes,
                port.tx_packets,
                port.tx_bytes,
                port.dropped_all(),
            )?;
            let others = [
                ("unlearnt-flood", port.unlearnt),
                ("control-refused", port.refused),
                ("uncaptured", port.uncaptured),
            ];
            let reasons = port.drops.iter().chain(&port.faults).chain(&others);
            for (name, n) in reasons.filter(|(_, n)| *n > 0) {
                writeln!(f, "    {name:<22} {n}")?;
            }
        }
        for (number, worker) in self.workers.iter().enumerate() {
            writeln!(f, "worker {number} {worker}")?;
        }
        Ok(())
    }
}
