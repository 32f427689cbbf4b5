//! `vvu guest`: a reference vhost-user front-end for any back-end, of network cards and of disks.
//!
//! What a VMM and its guest's driver do together, in one program and without a VM: memory of its
//! own in a file, the handshake (with the messages of rust-vmm's `vhost` crate), virtio rings, and
//! jobs that use them. Nothing of the back-ends in this repository is known here, and no back-end
//! is trusted: what it writes into rings is checked, and what it does wrong is said.
//!
//! `memory` is what is shared, `link` one connection, `tether` the same over reconnects. `queues`
//! is the driver of a network card's two rings, `machine` all of that as jobs see it. `frames` is
//! what the jobs send each other, `wrap` the packets around them where offloads are tried.
//! `storage` has all that is about disks.

mod abuse;
pub(crate) mod args;
mod error;
mod frames;
mod histogram;
mod jobs;
mod link;
mod machine;
mod memory;
mod queues;
pub(crate) mod report;
mod storage;
mod tether;
mod wrap;

use std::process::ExitCode;

use abuse::Device;
use args::{Guest, Job, Options, Socket};
use error::GuestError;
use jobs::Outcome;
use machine::Machine;
use report::{Clock, Line, Report};
use storage::Language;
use storage::args::{Blk, Scsi};

use crate::signals::Shutdown;

/// Something was lost, changed, or not as the rules have it.
const FAILED: u8 = 1;
/// There is no back-end, or none that can be used.
const NO_BACK_END: u8 = 3;

/// Runs a job.
pub(crate) fn run(guest: &Guest) -> anyhow::Result<ExitCode> {
    let device = match &guest.job {
        Job::Blk(blk) => Device::Disk(Language::Blk, &blk.disk),
        Job::Scsi(scsi) => Device::Disk(Language::Scsi(scsi.unit()), &scsi.disk),
        _ => Device::Card,
    };
    let abuse = guest.job.abuse();
    if abuse.is_some_and(|abuse| abuse.list) {
        abuse::list(device);
        return Ok(ExitCode::SUCCESS);
    }
    let options = &guest.options;
    let Some(socket) = &options.socket else {
        missing_socket();
    };
    if !options.packed && !options.queue_size.is_power_of_two() {
        odd_size(options.queue_size);
    }
    if let (Device::Disk(..), Some(option)) = (device, options.only_for_cards()) {
        not_a_disks(option);
    }
    let shutdown = Shutdown::new()?;
    let mut report = Report {
        job: name(&guest.job).to_owned(),
        ..Report::default()
    };
    let result = match (&guest.job, device, abuse) {
        (_, _, Some(abuse)) => abuse::run(socket, device, options, abuse, &shutdown, &mut report),
        (
            Job::Blk(Blk { job, .. }) | Job::Scsi(Scsi { job, .. }),
            Device::Disk(language, disk),
            _,
        ) => {
            let given = (options, disk);
            storage::run(socket, given, language, job, &shutdown, &mut report)
        }
        (job, _, _) => work(job, socket, options, &shutdown, &mut report),
    };
    let code = match result {
        Ok(None) => 0,
        Ok(Some(reason)) => {
            report.reason = Some(reason);
            FAILED
        }
        Err(error) => {
            let code = if error.is_verdict() {
                FAILED
            } else {
                NO_BACK_END
            };
            report.reason = Some(error.to_string());
            code
        }
    };
    report.ok = code == 0;
    report.cpu_seconds = report::cpu_seconds();
    tell(report, options.json);
    Ok(ExitCode::from(code))
}

fn name(job: &Job) -> &'static str {
    match job {
        Job::Ping(_) => "ping",
        Job::Blast(_) => "blast",
        Job::Sink(_) => "sink",
        Job::Verify(_) => "verify",
        Job::Abuse(_) => "abuse",
        Job::Blk(_) => "blk",
        Job::Scsi(_) => "scsi",
    }
}

/// Options that may stand anywhere cannot be required; say it as if they could.
fn missing_socket() -> ! {
    use clap::CommandFactory;
    let kind = clap::error::ErrorKind::MissingRequiredArgument;
    let text = "--socket PATH is missing: where does the back-end listen?";
    crate::args::Args::command().error(kind, text).exit()
}

/// Options that may stand anywhere mean nothing to some jobs; say so.
fn not_a_disks(option: &str) -> ! {
    use clap::CommandFactory;
    let kind = clap::error::ErrorKind::ArgumentConflict;
    let text = format!("{option} is for network cards; a disk has none of that");
    crate::args::Args::command().error(kind, text).exit()
}

/// Only packed rings have any size.
fn odd_size(size: u16) -> ! {
    use clap::CommandFactory;
    let kind = clap::error::ErrorKind::InvalidValue;
    let text = format!("--queue-size {size}: without --packed a power of two is needed");
    crate::args::Args::command().error(kind, text).exit()
}

fn tell(report: Report, json: bool) {
    if !json {
        if report.connections > 0 {
            println!("{report}");
        }
        if let Some(reason) = &report.reason {
            eprintln!("vvu: {}: {reason}", report.job);
        }
        return;
    }
    Line::Report(report.into()).print();
}

/// Starts a machine, lets it do a job, and stops it. Returns what was wrong with the result.
fn work(
    job: &Job,
    socket: &Socket,
    options: &Options,
    shutdown: &Shutdown,
    report: &mut Report,
) -> Result<Option<String>, GuestError> {
    let mut endpoint = tether::endpoint(socket)?;
    let mut machine = Machine::start(socket, &mut endpoint, options, shutdown)?;
    let mut clock = Clock::new(options.progress, options.json);
    let outcome = match job {
        Job::Ping(ping) => jobs::ping(&mut machine, &mut clock, ping),
        Job::Blast(blast) => jobs::blast(&mut machine, &mut clock, blast),
        Job::Sink(sink) => jobs::sink(&mut machine, &mut clock, sink),
        Job::Verify(verify) => jobs::verify(&mut machine, &mut clock, verify),
        Job::Abuse(_) | Job::Blk(_) | Job::Scsi(_) => Ok(Outcome::default()),
    };
    report.connections = machine.connections();
    report.features = format!("{:#x}", machine.features());
    report.mac = mac(machine.mac());
    report.total = clock.total(machine.sent(), machine.received());
    let Outcome { details, failure } = outcome?;
    report.details = details;
    machine.stop()?;
    Ok(failure)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
