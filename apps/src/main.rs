//! The `vvu` program: parse arguments, wire rooms together, run.

mod args;
mod blk;
mod captures;
mod demo;
mod device;
mod disk;
mod guest;
mod neighbour;
mod net;
mod pci;
mod port;
mod rules;
mod scsi;
mod signals;
mod storage;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

/// What the program says once all that it serves can be used; scripts wait for it.
pub(crate) const READY: &str = "ready";

fn main() -> ExitCode {
    let args = Args::parse();
    // The demo talks to people; what every session does is for those who ask.
    let quiet = args.quiet || matches!(args.command, Command::Demo(_)) && args.verbose == 0;
    args::init_log(args.verbose, quiet);
    let result = match args.command {
        Command::List => pci::list(),
        Command::Info { address } => pci::info(&address),
        Command::Bind(change) => pci::bind(&change),
        Command::Unbind(change) => pci::unbind(&change),
        Command::Net(net) => net::run(&net),
        Command::Blk(blk) => blk::run(&blk),
        Command::Scsi(scsi) => scsi::run(&scsi),
        Command::Device(args) => device::run(&args),
        Command::Demo(demo) => return finish(demo::run(&demo)),
        Command::Guest(guest) => return finish(guest::run(&guest)),
    };
    finish(result.map(|()| ExitCode::SUCCESS))
}

fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            // One line, causes included: what was tried, then why it failed and what to do.
            eprintln!("vvu: {error:#}");
            ExitCode::FAILURE
        }
    }
}
