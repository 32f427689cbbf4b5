//! The threads, the switch that spans them, and its ports.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::net::NetDevice;
use super::ports::{BackendError, PortKind, check, control, halves};
use crate::mempool::Mempool;
use crate::net::{Fdb, Inbox, MAX_PORTS, Place, PortRules, Rules, Shared, Switch};
use crate::port::capture::{CaptureError, Recorder};
use crate::port::{MAX_FRAME, Stats};
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

/// Number of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(pub(super) u16);

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
