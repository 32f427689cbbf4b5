//! The threads, the switch that spans them, and its ports.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vvu::memory::MemoryError;

use super::net::NetDevice;
use crate::mempool::{Mempool, MempoolError};
use crate::net::{
    Control, ControlPort, Fdb, Inbox, MAX_PORTS, NetConfig, Place, PortRules, Rules, Shared, Switch,
};
use crate::port::capture::{CaptureError, FileConfig, FileTx, Recorder, Replay};
use crate::port::uplink::{self, TapConfig, UplinkError, XdpConfig};
use crate::port::{
    ControlQueue, Generator, MAX_FRAME, Rings, RxPort, Stats, TxPort, VhostRx, VhostTx,
};
use crate::stats::{PortSnapshot, PortStats, Snapshot, WorkerStats};
use crate::vring::RingError;
use crate::wake::{Kicks, Quiet, Waker};
use crate::worker::{Poller, Polling, Worker, WorkerError};

/// What is wanted of the switch as a whole.
#[derive(Debug, Clone)]
pub struct Config {
    /// Seconds after which an address that was not seen again is forgotten.
    pub ageing: u32,
    /// Frames that may be on their way to one worker from the others.
    pub queue: usize,
    /// Buffers for frames between workers; none are made for a single worker.
    pub mbufs: usize,
    /// When workers sleep.
    pub polling: Polling,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ageing: 300,
            queue: 1024,
            mbufs: 2048,
            polling: Polling::default(),
        }
    }
}

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

/// Number of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(pub(super) u16);

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

impl Poller for Switch {
    #[inline]
    fn poll(&mut self, now: u32) -> bool {
        Self::poll(self, now)
    }
    fn enable_kicks(&mut self) -> Quiet {
        Self::enable_kicks(self)
    }
    fn disable_kicks(&mut self) {
        Self::disable_kicks(self);
    }
    fn rest(&mut self) {
        Self::rest(self);
    }
    fn kicked(&mut self, kicks: &Kicks) {
        Self::kicked(self, kicks);
    }
    fn resting(&self) -> usize {
        Self::resting(self)
    }
    fn has_mail(&self) -> bool {
        Self::has_mail(self)
    }
}

#[derive(Debug)]
struct Port {
    name: Arc<str>,
    worker: usize,
    place: PortPlace,
    stats: Stats,
    rules: PortRules,
    /// What writes the file of a port that is one, for as long as the port is there.
    _recorder: Option<Recorder>,
    /// What writes down what passes the port.
    capture: Option<Recorder>,
}

/// Whether a port has halves with its worker, or is a rule that all workers know.
#[derive(Debug, Clone, Copy)]
enum PortPlace {
    Owned,
    Echo { swap: bool },
}

impl PortPlace {
    /// Where the port is for worker `of`, when `owner` owns it.
    fn seen_from(self, of: usize, owner: usize) -> Place {
        match self {
            Self::Echo { swap } => Place::Echo { swap },
            Self::Owned if of == owner => Place::Here,
            Self::Owned => Place::There(owner),
        }
    }
}

/// Pinned polling threads and the switch that spans them. Dropping it stops and joins them.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Arc<Worker<Switch>>>,
    shared: Shared,
    ports: Mutex<BTreeMap<PortId, Port>>,
}

impl Workers {
    /// One worker on each of `cpus`.
    pub fn start(cpus: &[usize]) -> Result<Self, BackendError> {
        Self::with_config(cpus, &Config::default())
    }

    /// The same, with another configuration.
    pub fn with_config(cpus: &[usize], config: &Config) -> Result<Self, BackendError> {
        if cpus.is_empty() {
            return Err(WorkerError::NoCpu.into());
        }
        if config.queue == 0 {
            return Err(BackendError::Config {
                what: "the queue between workers",
                found: 0,
                expected: "at least 1".into(),
            });
        }
        let twice = |(n, cpu): (usize, &usize)| cpus[..n].contains(cpu).then_some(*cpu);
        if let Some(cpu) = cpus.iter().enumerate().find_map(twice) {
            return Err(WorkerError::Twice(cpu).into());
        }
        let wakers = cpus.iter().map(|_| Waker::new());
        let wakers: Vec<_> = wakers
            .collect::<Result<_, _>>()
            .map_err(WorkerError::from)?;
        let inboxes = wakers
            .iter()
            .map(|w| Inbox::new(config.queue, Arc::clone(w)));
        let several = cpus.len() > 1;
        let pool = several.then(|| Mempool::new(config.mbufs, MAX_FRAME));
        let shared = Shared {
            fdb: Arc::new(Fdb::new(config.ageing)),
            inboxes: inboxes.collect(),
            pool: pool.transpose()?,
        };
        let mut threads = Vec::new();
        for (number, (&cpu, waker)) in cpus.iter().zip(wakers).enumerate() {
            let stats = Arc::<WorkerStats>::default();
            let switch = Switch::new(number, shared.clone(), Arc::clone(&stats));
            let switch = switch.ok_or(BackendError::NoWorker(number, cpus.len()))?;
            let worker = Worker::start(cpu, switch, waker, stats, config.polling)?;
            threads.push(Arc::new(worker));
        }
        Ok(Self {
            threads,
            shared,
            ports: Mutex::default(),
        })
    }

    /// Adds a port, to the worker of this number or to the one with the fewest. A vhost port
    /// comes with its device, for a session to drive.
    pub fn add_port(
        &self,
        name: &str,
        kind: PortKind,
        worker: Option<usize>,
    ) -> Result<(PortId, Option<NetDevice>), BackendError> {
        self.add_port_with(name, kind, worker, Rules::default())
    }

    /// The same with rules.
    pub fn add_port_with(
        &self,
        name: &str,
        kind: PortKind,
        worker: Option<usize>,
        rules: Rules,
    ) -> Result<(PortId, Option<NetDevice>), BackendError> {
        let rules = PortRules {
            rules,
            ..PortRules::default()
        };
        if matches!(kind, PortKind::Echo { .. }) && !rules.is_empty() {
            return Err(BackendError::Rules(
                "an echo port takes part in nothing that rules are about",
            ));
        }
        rules.rules.check().map_err(BackendError::Rules)?;
        let mut ports = self.ports();
        let number = self.choose_worker(&ports, worker)?;
        let thread = self.thread(number)?;
        let free = (0..MAX_PORTS as u16).map(PortId);
        let id = free.into_iter().find(|id| !ports.contains_key(id));
        let id = id.ok_or(BackendError::TooManyPorts)?;
        let name: Arc<str> = name.into();
        let (place, rings) = match &kind {
            PortKind::Vhost(config) => (PortPlace::Owned, check(config)?),
            PortKind::Echo { swap } => (PortPlace::Echo { swap: *swap }, 0),
            _ => (PortPlace::Owned, 0),
        };
        let stats = PortStats::new(rings, &RingError::REASONS);
        let mut recorder = None;
        let halves = halves(&kind, &name, &stats, thread.waker(), &mut recorder)?;
        if !rules.rules.claim(&self.shared.fdb, id.0) {
            self.shared.fdb.remove(id.0);
            return Err(BackendError::Rules(
                "an address of this port belongs to another port already",
            ));
        }
        // Before a frame can come.
        self.tell(id, &rules)?;
        if let Some((rx, tx)) = halves {
            let stats = Arc::clone(&stats);
            let control = control(&kind, &name, &stats);
            thread.call(move |switch| {
                switch.add(id.0, rx, tx, stats);
                if let Some(control) = control {
                    switch.add_control(id.0, control);
                }
            })?;
        }
        for (of, other) in self.threads.iter().enumerate() {
            let seen = place.seen_from(of, number);
            other.call(move |switch| switch.place(id.0, seen))?;
        }
        let port = Port {
            name: Arc::clone(&name),
            worker: number,
            place,
            stats,
            rules,
            _recorder: recorder,
            capture: None,
        };
        ports.insert(id, port);
        let device = match kind {
            PortKind::Vhost(config) => {
                let fdb = Arc::clone(&self.shared.fdb);
                Some(NetDevice::new(config, id.0, Arc::clone(thread), fdb))
            }
            _ => None,
        };
        Ok((id, device))
    }

    /// Removes a port. Its device, if any, refuses everything from then on.
    pub fn remove_port(&self, id: PortId) -> Result<(), BackendError> {
        let mut ports = self.ports();
        let port = ports.remove(&id).ok_or(BackendError::NoPort)?;
        if let PortPlace::Owned = port.place {
            let owner = self.thread(port.worker)?;
            // What it held is dropped here, not by the worker.
            let _ = owner.call(move |switch| switch.remove(id.0))?;
        }
        for thread in &self.threads {
            thread.call(move |switch| switch.place(id.0, Place::Absent))?;
        }
        self.tell(id, &PortRules::default())?;
        self.shared.fdb.remove(id.0);
        // Whoever it watched is not watched any more.
        for (other, port) in ports.iter_mut() {
            if port.rules.mirror == Some(id.0) {
                port.rules.mirror = None;
                self.tell(*other, &port.rules)?;
            }
        }
        Ok(())
    }

    /// Lets port `monitor` watch port `of`: it gets a copy of every frame from there and to
    /// there, and nothing else any more.
    pub fn mirror(&self, of: PortId, monitor: PortId) -> Result<(), BackendError> {
        let mut ports = self.ports();
        let watched = ports.get(&of).ok_or(BackendError::NoPort)?;
        let watching = ports.get(&monitor).ok_or(BackendError::NoPort)?;
        let owned = |port: &Port| matches!(port.place, PortPlace::Owned);
        if of == monitor || !owned(watched) || !owned(watching) {
            return Err(BackendError::Rules(
                "a port is watched by another one, and neither can be an echo",
            ));
        }
        if watched.rules.monitor || watching.rules.mirror.is_some() {
            return Err(BackendError::Rules("a port that watches cannot be watched"));
        }
        for (id, change) in [(monitor, None), (of, Some(monitor.0))] {
            if let Some(port) = ports.get_mut(&id) {
                match change {
                    None => port.rules.monitor = true,
                    Some(monitor) => port.rules.mirror = Some(monitor),
                }
                self.tell(id, &port.rules)?;
            }
        }
        // Nobody is found there any more.
        self.shared.fdb.remove(monitor.0);
        Ok(())
    }

    /// Tells all workers the rules of a port.
    fn tell(&self, id: PortId, rules: &PortRules) -> Result<(), BackendError> {
        for thread in &self.threads {
            let rules = rules.clone();
            thread.call(move |switch| switch.set_rules(id.0, rules))?;
        }
        Ok(())
    }

    /// Writes what passes a port from now on to the file at `path`, of each frame the first `snap`
    /// bytes. A capture of the port that there is ends.
    pub fn start_capture(&self, id: PortId, path: &Path, snap: u32) -> Result<(), BackendError> {
        self.stop_capture(id)?;
        let mut ports = self.ports();
        let port = ports.get_mut(&id).ok_or(BackendError::NoPort)?;
        if let PortPlace::Echo { .. } = port.place {
            return Err(CaptureError::NoFrames(port.name.to_string()).into());
        }
        let (recorder, pen) = Recorder::start(path, &port.name, snap)?;
        let owner = self.thread(port.worker)?;
        owner.call(move |switch| switch.capture(id.0, Some(&pen)))?;
        port.capture = Some(recorder);
        Ok(())
    }

    /// Ends the capture of a port, if there is one. Its file is complete then.
    pub fn stop_capture(&self, id: PortId) -> Result<(), BackendError> {
        let mut ports = self.ports();
        let port = ports.get_mut(&id).ok_or(BackendError::NoPort)?;
        if let Some(recorder) = port.capture.take() {
            let owner = self.thread(port.worker)?;
            owner.call(move |switch| switch.capture(id.0, None))?;
            drop(recorder);
        }
        Ok(())
    }

    /// All counters now. Disturbs no worker.
    pub fn stats(&self) -> Snapshot {
        let ports = self.ports();
        let of = |port: &Port| PortSnapshot::of(&port.name, port.worker, &port.stats);
        Snapshot {
            ports: ports.values().map(of).collect(),
            workers: self.threads.iter().map(|thread| thread.stats()).collect(),
        }
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, BTreeMap<PortId, Port>> {
        // The map is whole whenever the lock is free, whatever panicked.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thread(&self, number: usize) -> Result<&Arc<Worker<Switch>>, BackendError> {
        let none = BackendError::NoWorker(number, self.threads.len());
        self.threads.get(number).ok_or(none)
    }

    fn choose_worker(
        &self,
        ports: &BTreeMap<PortId, Port>,
        wanted: Option<usize>,
    ) -> Result<usize, BackendError> {
        if let Some(number) = wanted {
            return self.thread(number).map(|_| number);
        }
        let load = |&number: &usize| ports.values().filter(|p| p.worker == number).count();
        let least = (0..self.threads.len()).min_by_key(load);
        least.ok_or(BackendError::NoWorker(0, 0))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Devices may outlive this: they find nobody at work.
        for thread in &self.threads {
            thread.stop();
        }
    }
}

/// Number of queues of a card that can be.
fn check(config: &NetConfig) -> Result<usize, BackendError> {
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
fn control(kind: &PortKind, name: &Arc<str>, stats: &Stats) -> Option<ControlPort> {
    let PortKind::Vhost(config @ NetConfig { control: true, .. }) = kind else {
        return None;
    };
    let rings = Rings::new(Arc::clone(name), Arc::clone(stats));
    let queue = ControlQueue::new(rings);
    Some(ControlPort::new(queue, Control::new(config)))
}

/// The halves of a port that has some.
fn halves(
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
