//! What the guests talk through: two modelled functions, and everything that drives them.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vvu::model::{FrontEnd, Model, Shape};
use vvu::transport::vvu::VvuTransport;
use vvu_pmd::backend::PortKind;
use vvu_pmd::net::{NetConfig, Rules};
use vvu_pmd::stats::RingState;
use vvu_pmd::worker::Polling;

use crate::pci;
use crate::wiring::{Wiring, first_cpu};

/// What the guests are called.
pub(super) const NAMES: [&str; 2] = ["a", "b"];
/// MTU of the cards, unless the frames asked for are longer.
const MTU: u16 = 1500;
const ETHERNET: u16 = 14;
/// How long a connection may take to come or go.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder that only we may look into; removed with its contents at the end.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let name = format!("vvu-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// See the [module](self).
pub(super) struct Stage {
    wiring: Wiring,
    /// They end with these handles, after the sessions that drive them.
    _models: Vec<Model>,
    folder: Folder,
    cpu: usize,
}

impl Stage {
    pub(super) fn new(size: u16) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let cpu = first_cpu()?;
        let mut wiring = Wiring::new(&[cpu], 300, Polling::default())?;
        let mut models = Vec::new();
        for (number, name) in (0..).zip(NAMES) {
            let front_end = FrontEnd::Listen(socket(&folder.0, name));
            let model = Model::new(Shape::ours(), front_end)
                .with_context(|| format!("cannot make the device of guest {name}"))?;
            let device = pci::open(model.function(), None, 1)?;
            let card = NetConfig {
                mac: [0x02, 0, 0, 0, 0, 0x0a + number],
                mtu: MTU.max(size.saturating_sub(ETHERNET)),
                ..NetConfig::default()
            };
            let transport = Box::new(VvuTransport::new(device));
            wiring.add(
                name,
                PortKind::Vhost(card),
                Some(transport),
                Rules::default(),
            )?;
            models.push(model);
        }
        let stage = Self {
            wiring,
            _models: models,
            folder,
            cpu,
        };
        stage.leave_the_worker_alone();
        Ok(stage)
    }

    /// Where a guest finds its device.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        socket(&self.folder.0, name)
    }

    /// The CPU of the worker.
    pub(super) fn cpu(&self) -> usize {
        self.cpu
    }

    /// Keeps this thread, and the guests that it starts, off the worker's CPU, where they would
    /// wait for it to sleep. If there is no other, that cannot be helped.
    fn leave_the_worker_alone(&self) {
        let Ok(mut others) = sched_getaffinity(None) else {
            return;
        };
        others.unset(self.cpu);
        if (0..CpuSet::MAX_CPU).any(|cpu| others.is_set(cpu)) {
            let _ = sched_setaffinity(None, &others);
        }
    }

    /// Waits until a guest's rings run, or until all are stopped.
    pub(super) fn wait_for(&self, name: &str, running: bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.wiring.workers.stats();
            let port = stats.port(name).context("the port is gone")?;
            let wanted = |ring: &RingState| (*ring == RingState::Running) == running;
            if port.rings.iter().all(wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let what = if running { "connect" } else { "disconnect" };
                bail!("guest {name} did not {what} within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Frames that the switch dropped so far, for whatever reason; it counts every one.
    pub(super) fn dropped(&self) -> u64 {
        let stats = self.wiring.workers.stats();
        stats.ports.iter().map(|port| port.dropped_all()).sum()
    }

    /// Ends the sessions.
    pub(super) fn close(&mut self) {
        self.wiring.stop();
    }
}

fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sock"))
}
