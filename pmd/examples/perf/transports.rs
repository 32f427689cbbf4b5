//! VVU beside AF_UNIX: the same front-end, the same switch, in turn.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vvu::device::{Device, Options};
use vvu::model::{self, Model, Shape};
use vvu::session::Session;
use vvu::transport::Transport;
use vvu::transport::unix::UnixTransport;
use vvu::transport::vvu::VvuTransport;
use vvu_pmd::backend::Config;
use vvu_pmd::worker::Polling;
use vvu_pmd::{NetConfig, PortKind, Workers};

use crate::front_end::FrontEnd;
use crate::rig::mac;
use crate::scaling::spread;

/// What may be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pairs of measurements for each line, each in memory of its own
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of each blast
    #[arg(long, value_name = "MS", default_value_t = 300)]
    time: u64,
}

/// A switch that sends a guest's frames back to it, and the way to it.
pub(crate) struct Way {
    pub(crate) socket: PathBuf,
    session: Session,
    /// They end after the session that needs them.
    _model: Option<Model>,
    _workers: Workers,
}

fn cards() -> PortKind {
    PortKind::Vhost(NetConfig {
        mac: mac(0, 0),
        ..NetConfig::default()
    })
}

impl Way {
    /// Over AF_UNIX, with a socket in `folder`.
    pub(crate) fn unix(folder: &Path, cpu: usize, polling: Polling) -> anyhow::Result<Self> {
        let socket = folder.join("unix");
        let transport = Box::new(UnixTransport::listen(&socket)?);
        Self::new(cpu, polling, socket, transport, None)
    }

    fn vvu(folder: &Path, cpu: usize, polling: Polling) -> anyhow::Result<Self> {
        let socket = folder.join("vvu");
        let listening = model::FrontEnd::Listen(socket.clone());
        let model = Model::new(Shape::ours(), listening)?;
        let options = Options {
            rings: 2,
            ..Options::default()
        };
        let device = Device::open(model.function(), options)?;
        let transport = Box::new(VvuTransport::new(device));
        Self::new(cpu, polling, socket, transport, Some(model))
    }

    fn new(
        cpu: usize,
        polling: Polling,
        socket: PathBuf,
        transport: Box<dyn Transport>,
        model: Option<Model>,
    ) -> anyhow::Result<Self> {
        let config = Config {
            polling,
            ..Config::default()
        };
        let workers = Workers::with_config(&[cpu], &config)?;
        let (_, device) = workers.add_port("guest", cards(), None)?;
        workers.add_port("echo", PortKind::Echo { swap: true }, None)?;
        let device = device.context("a card without a device")?;
        let session = Session::spawn(transport, Box::new(device))?;
        Ok(Self {
            socket,
            session,
            _model: model,
            _workers: workers,
        })
    }

    pub(crate) fn end(self) {
        self.session.stop();
    }
}

/// Of each connection, before it is measured.
const WARM_UP: Duration = Duration::from_millis(20);

/// What is compared: sizes, and whether the guest wants calls.
const LINES: [(usize, bool); 4] = [(64, false), (64, true), (1518, false), (1518, true)];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("vvu-transports-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let done = compare(args, &folder);
    let _ = std::fs::remove_dir_all(&folder);
    done
}

fn compare(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let cpu = leave_a_cpu()?;
    let unix = Way::unix(folder, cpu, Polling::default())?;
    let vvu = Way::vvu(folder, cpu, Polling::default())?;
    let time = Duration::from_millis(args.time);
    println!("| frames | | AF_UNIX | VVU | ratio |\n|---|---|---|---|---|");
    for (size, calls) in LINES {
        let mut pairs = [Vec::new(), Vec::new()];
        for round in 0..args.rounds {
            let mut ways = [&unix, &vvu];
            ways.rotate_left(usize::from(round % 2));
            // Both ways lead to the same memory: how fast two cores pass its lines to each other
            // depends on where it is.
            let mut guest = FrontEnd::new(size, calls)?;
            let [one, other] = ways.map(|way| measure(&mut guest, way, time));
            let (mut one, mut other) = (one?, other?);
            if round % 2 == 1 {
                std::mem::swap(&mut one, &mut other);
            }
            for (pairs, pair) in pairs.iter_mut().zip(std::iter::zip(one, other)) {
                pairs.push(pair);
            }
        }
        for (pairs, unit) in pairs.iter().zip(["Mpps", "round trip, ns"]) {
            report(pairs, size, unit, calls);
        }
    }
    unix.end();
    vvu.end();
    Ok(())
}

/// Millions of frames per second, and nanoseconds for one to come back.
fn measure(guest: &mut FrontEnd, way: &Way, time: Duration) -> anyhow::Result<[f64; 2]> {
    guest.connect(&way.socket)?;
    // All of its memory is mapped then.
    guest.blast(WARM_UP)?;
    let rate = guest.blast(time)? / 1e6;
    let [trip, ..] = spread(guest.ping(20_000, Duration::ZERO)?.into_iter());
    Ok([rate, trip])
}

fn report(pairs: &[(f64, f64)], size: usize, unit: &str, calls: bool) {
    let row = [
        spread(pairs.iter().map(|(unix, _)| *unix)),
        spread(pairs.iter().map(|(_, vvu)| *vvu)),
        spread(pairs.iter().map(|(unix, vvu)| vvu / unix)),
    ];
    let row = row.map(|[median, low, high]| format!("{median:.2} ({low:.2} to {high:.2})"));
    let called = if calls { ", called" } else { "" };
    println!("| {size} | {unit}{called} | {} |", row.join(" | "));
}

/// Keeps this thread off the CPU that it returns, which is the workers'.
pub(crate) fn leave_a_cpu() -> anyhow::Result<usize> {
    let mut set = sched_getaffinity(None)?;
    let cpus = || 0..CpuSet::MAX_CPU;
    let first = cpus().find(|&cpu| set.is_set(cpu)).context("no CPU")?;
    set.unset(first);
    anyhow::ensure!(
        cpus().any(|cpu| set.is_set(cpu)),
        "two CPUs are needed: one for the worker, one for the front-end"
    );
    sched_setaffinity(None, &set)?;
    Ok(first)
}
