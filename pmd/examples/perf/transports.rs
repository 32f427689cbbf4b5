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
    /// Pairs of measurements for each line
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of each blast
    #[arg(long, value_name = "MS", default_value_t = 300)]
    time: u64,
}

/// A guest on its way through a switch of its own, whose frames come back.
pub(crate) struct Way {
    pub(crate) front_end: FrontEnd,
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
    pub(crate) fn unix(folder: &Path, cpu: usize, line: &Line) -> anyhow::Result<Self> {
        let socket = folder.join("unix");
        let transport = Box::new(UnixTransport::listen(&socket)?);
        Self::new(cpu, line, &socket, transport, None)
    }

    fn vvu(folder: &Path, cpu: usize, line: &Line) -> anyhow::Result<Self> {
        let socket = folder.join("vvu");
        let listening = model::FrontEnd::Listen(socket.clone());
        let model = Model::new(Shape::ours(), listening)?;
        let options = Options {
            rings: 2,
            ..Options::default()
        };
        let device = Device::open(model.function(), options)?;
        let transport = Box::new(VvuTransport::new(device));
        Self::new(cpu, line, &socket, transport, Some(model))
    }

    fn new(
        cpu: usize,
        line: &Line,
        socket: &Path,
        transport: Box<dyn Transport>,
        model: Option<Model>,
    ) -> anyhow::Result<Self> {
        let config = Config {
            polling: line.polling,
            ..Config::default()
        };
        let workers = Workers::with_config(&[cpu], &config)?;
        let (_, device) = workers.add_port("guest", cards(), None)?;
        workers.add_port("echo", PortKind::Echo { swap: true }, None)?;
        let device = device.context("a card without a device")?;
        let session = Session::spawn(transport, Box::new(device))?;
        Ok(Self {
            front_end: FrontEnd::connect(socket, line.size, line.calls)?,
            session,
            _model: model,
            _workers: workers,
        })
    }

    pub(crate) fn end(self) {
        drop(self.front_end);
        self.session.stop();
    }
}

/// What a guest and its switch are like.
pub(crate) struct Line {
    /// Bytes of its frames.
    pub(crate) size: usize,
    /// Whether it wants to be told of frames.
    pub(crate) calls: bool,
    pub(crate) polling: Polling,
}

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
    println!("| frames | | AF_UNIX | VVU | ratio |\n|---|---|---|---|---|");
    for (size, calls) in LINES {
        let line = &Line {
            size,
            calls,
            polling: Polling::default(),
        };
        let folder: PathBuf = folder.join(format!("{}-{}", line.size, line.calls));
        std::fs::create_dir(&folder)?;
        let mut unix = Way::unix(&folder, cpu, line)?;
        let mut vvu = Way::vvu(&folder, cpu, line)?;
        let calls = if line.calls { ", called" } else { "" };
        let time = Duration::from_millis(args.time);
        let blast = |path: &mut Way| Ok(path.front_end.blast(time)? / 1e6);
        report(
            args,
            line.size,
            &format!("Mpps{calls}"),
            &mut unix,
            &mut vvu,
            blast,
        )?;
        let ping = |path: &mut Way| {
            let [median, ..] = spread(path.front_end.ping(20_000, Duration::ZERO)?.into_iter());
            Ok(median)
        };
        report(
            args,
            line.size,
            &format!("round trip, ns{calls}"),
            &mut unix,
            &mut vvu,
            ping,
        )?;
        unix.end();
        vvu.end();
    }
    Ok(())
}

/// Measures both in turn, and which comes first in turn, too.
fn report(
    args: &Args,
    size: usize,
    unit: &str,
    unix: &mut Way,
    vvu: &mut Way,
    measure: impl Fn(&mut Way) -> anyhow::Result<f64>,
) -> anyhow::Result<()> {
    let mut pairs = Vec::new();
    for round in 0..args.rounds {
        pairs.push(if round.is_multiple_of(2) {
            let first = measure(unix)?;
            (first, measure(vvu)?)
        } else {
            let first = measure(vvu)?;
            (measure(unix)?, first)
        });
    }
    let [unix, ..] = spread(pairs.iter().map(|(unix, _)| *unix));
    let [vvu, ..] = spread(pairs.iter().map(|(_, vvu)| *vvu));
    let [ratio, low, high] = spread(pairs.iter().map(|(unix, vvu)| vvu / unix));
    println!("| {size} | {unit} | {unix:.2} | {vvu:.2} | {ratio:.3} ({low:.3} to {high:.3}) |");
    Ok(())
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
