//! A switch and what serves its ports: workers, and a session for each virtio-net device.

use std::path::Path;

use anyhow::Context;
use vvu::session::Session;
use vvu::transport::Transport;
use vvu_pmd::backend::{Config, PortId, PortKind, Workers};

/// A running switch.
pub(crate) struct Wiring {
    pub(crate) workers: Workers,
    sessions: Vec<Session>,
    /// Ports, in the order they were added.
    ports: Vec<PortId>,
}

impl Wiring {
    /// A switch without ports, polled on these CPUs.
    pub(crate) fn new(cpus: &[usize], ageing: u32) -> anyhow::Result<Self> {
        let config = Config {
            ageing,
            ..Config::default()
        };
        let workers = Workers::with_config(cpus, &config).context("cannot start the workers")?;
        Ok(Self {
            workers,
            sessions: Vec::new(),
            ports: Vec::new(),
        })
    }

    /// Adds a port; a virtio-net device is served over `transport`.
    pub(crate) fn add(
        &mut self,
        name: &str,
        kind: PortKind,
        transport: Option<Box<dyn Transport>>,
    ) -> anyhow::Result<()> {
        let (port, device) = self.workers.add_port(name, kind, None)?;
        self.ports.push(port);
        if let (Some(transport), Some(device)) = (transport, device) {
            let session = Session::spawn(transport, Box::new(device));
            self.sessions
                .push(session.context("cannot start a thread")?);
        }
        Ok(())
    }

    /// Writes what passes the port that was added as number `port` to a file.
    pub(crate) fn capture(&self, port: usize, file: &Path, snap: u32) -> anyhow::Result<()> {
        let port = self.ports.get(port).context("there is no such port")?;
        Ok(self.workers.start_capture(*port, file, snap)?)
    }

    /// Ends the sessions: rings are stopped, functions left reset. The counters stay.
    pub(crate) fn stop(&mut self) {
        // All are told before any is waited for.
        for session in &self.sessions {
            session.stop_signal().raise();
        }
        self.sessions.drain(..).for_each(Session::stop);
    }
}

/// The first CPU that this process may use.
pub(crate) fn first_cpu() -> anyhow::Result<usize> {
    let set = rustix::thread::sched_getaffinity(None).context("cannot ask for the CPUs")?;
    (0..rustix::thread::CpuSet::MAX_CPU)
        .find(|&cpu| set.is_set(cpu))
        .context("this process may use no CPU; see taskset(1)")
}
