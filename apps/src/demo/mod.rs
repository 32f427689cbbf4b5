//! `vvu demo`: everything at work, for somebody who sees it for the first time.
//!
//! Two guests (`vvu guest`, each a process) talk through two VVU functions that are models in this
//! process. The driver, session, rings, switch and worker that serve them are those that an
//! appliance VM runs. `guests` starts and hears the processes, `stage` is what they talk through,
//! `summary` says what came of it.

mod guests;
mod stage;
mod summary;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use crate::guest::args::{MAX_FRAME, MIN_FRAME};
use crate::signals::Shutdown;
use guests::{Ending, Play};
use stage::Stage;
use summary::Summary;

/// The program of the three VMs, which is beside this one where it was built.
const VMLAB: &str = "vmlab";

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// How long it shall take, more or less
    #[arg(long, value_name = "SECONDS", default_value_t = 9, value_parser = clap::value_parser!(u64).range(4..=3600))]
    seconds: u64,

    /// Length of the frames that are sent at full speed
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u16).range(i64::from(MIN_FRAME)..=i64::from(MAX_FRAME)))]
    size: u16,

    /// Boot three virtual machines instead: an appliance and two neighbours
    #[arg(long, conflicts_with_all = ["seconds", "size"])]
    vms: bool,
}

/// What is shown, in this order, and for how long.
struct Acts {
    ping: u64,
    verify: u64,
    /// Each way.
    blast: u64,
}

impl Acts {
    fn within(seconds: u64) -> Self {
        let blast = (seconds / 5).max(1);
        Self {
            ping: 1,
            verify: seconds - 1 - 2 * blast,
            blast,
        }
    }
}

/// Shows what there is to see.
pub(crate) fn run(demo: &Demo) -> anyhow::Result<ExitCode> {
    if demo.vms {
        return Err(virtual_machines());
    }
    let start = Instant::now();
    let shutdown = Shutdown::new()?;
    let mut stage = Stage::new(demo.size)?;
    introduce(&stage);
    let result = show(demo, &mut stage, &shutdown);
    stage.close();
    let summary = match result? {
        Ending::Interrupted => {
            println!("stopped; everything is cleaned up");
            return Ok(ExitCode::from(130));
        }
        Ending::Done(summary) => summary,
    };
    println!("{}", summary.text(start.elapsed()));
    match summary.failure() {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => bail!("{reason}"),
    }
}

fn introduce(stage: &Stage) {
    println!(
        "Two guests, two virtio-vhost-user devices in software, and the switch that an appliance \
         VM runs.\nNo virtual machine, no root, no hugepages.\n\n  \
         guest a -- vhost-user -- VVU device --+\n                                        \
         +-- driver, sessions, rings, switch: polled on CPU {}\n  \
         guest b -- vhost-user -- VVU device --+\n",
        stage.cpu()
    );
}

fn show(demo: &Demo, stage: &mut Stage, shutdown: &Shutdown) -> anyhow::Result<Ending<Summary>> {
    let acts = Acts::within(demo.seconds);
    let mut summary = Summary::new(demo.size);
    let seconds = |seconds: u64| seconds.to_string();
    let size = demo.size.to_string();

    let ping = [
        "ping",
        "--count",
        "100000000",
        "--seconds",
        &seconds(acts.ping),
    ];
    let mut play = Play::new("ping", Duration::from_secs(acts.ping), shutdown);
    match play.with_sink(stage, 0, &ping)? {
        Ending::Interrupted => return Ok(Ending::Interrupted),
        Ending::Done(reports) => summary.ping(reports),
    }

    let verify = ["verify", "--seconds", &seconds(acts.verify)];
    let mut play = Play::new("verify", Duration::from_secs(acts.verify), shutdown);
    match play.together(stage, &verify)? {
        Ending::Interrupted => return Ok(Ending::Interrupted),
        Ending::Done(reports) => summary.verify(reports),
    }

    for sender in [0, 1] {
        let blast = ["blast", "--size", &size, "--seconds", &seconds(acts.blast)];
        let mut play = Play::new("blast", Duration::from_secs(acts.blast), shutdown);
        let before = stage.dropped();
        match play.with_sink(stage, sender, &blast)? {
            Ending::Interrupted => return Ok(Ending::Interrupted),
            Ending::Done(reports) => summary.blast(sender, reports, stage.dropped() - before),
        }
    }
    Ok(Ending::Done(summary))
}

/// Becomes the program of the three VMs; returns only if that is not possible.
fn virtual_machines() -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(this) => this.with_file_name(VMLAB),
        Err(error) => return anyhow::Error::new(error).context("where is this program?"),
    };
    if !Path::new(&program).exists() {
        return anyhow::anyhow!(
            "{} does not exist; in a clone of the repository, `./run demo --vms` builds it and \
             what it needs",
            program.display()
        );
    }
    let error = Command::new(&program).arg("demo").exec();
    Err::<(), _>(error)
        .with_context(|| format!("cannot run {}", program.display()))
        .expect_err("exec returns errors only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_take_the_time_that_was_asked_for() {
        for seconds in 4..100 {
            let acts = Acts::within(seconds);
            assert_eq!(acts.ping + acts.verify + 2 * acts.blast, seconds);
            assert!(acts.verify >= 1 && acts.blast >= 1, "{seconds}");
        }
    }
}
