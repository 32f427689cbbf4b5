//! A switch and what serves its ports: workers, and a session for each virtio-net device.

use anyhow::Context;
use vvu::session::Session;
use vvu::transport::Transport;
use vvu_pmd::backend::{Config, PortId, PortKind, Workers};
use vvu_pmd::net::Rules;
use vvu_pmd::worker::Polling;

/// A running switch.
pub(crate) struct Wiring {
    pub(crate) workers: Workers,
    sessions: Vec<Session>,
}

impl Wiring {
    /// A switch without ports, polled on these CPUs.
    pub(crate) fn new(cpus: &[usize], ageing: u32, polling: Polling) -> anyhow::Result<Self> {
        let config = Config {
            ageing,
            polling,
            ..Config::default()
        };
        let workers = Workers::with_config(cpus, &config).context("cannot start the workers")?;
        Ok(Self {
            workers,
            sessions: Vec::new(),
        })
    }

    /// Adds a port with rules; a virtio-net device is served over `transport`.
    pub(crate) fn add(
        &mut self,
        name: &str,
        kind: PortKind,
        transport: Option<Box<dyn Transport>>,
        rules: Rules,
    ) -> anyhow::Result<PortId> {
        let (id, device) = self.workers.add_port_with(name, kind, None, rules)?;
        if let (Some(transport), Some(device)) = (transport, device) {
            let session = Session::spawn(transport, Box::new(device));
            self.sessions
                .push(session.context("cannot start a thread")?);
        }
        Ok(id)
    }

    /// Ends the sessions: rings are stopped, functions left reset. The counters stay.
    pub(crate) fn stop(&mut self) {
        stop(std::mem::take(&mut self.sessions));
    }
}

/// Ends sessions.
pub(crate) fn stop(sessions: Vec<Session>) {
    // All are told before any is waited for.
    for session in &sessions {
        session.stop_signal().raise();
    }
    sessions.into_iter().for_each(Session::stop);
}

/// The first CPU that this process may use.
pub(crate) fn first_cpu() -> anyhow::Result<usize> {
    let set = rustix::thread::sched_getaffinity(None).context("cannot ask for the CPUs")?;
    (0..rustix::thread::CpuSet::MAX_CPU)
        .find(|&cpu| set.is_set(cpu))
        .context("this process may use no CPU; see taskset(1)")
}
