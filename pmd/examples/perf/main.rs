//! What the data plane costs, measured: programs for people and for CI, not tests.
//!
//! `./run perf` builds and runs this; docs/performance.md has what came of it.

mod callgrind;
mod front_end;
mod instructions;
mod plot;
mod polling;
mod requests;
mod rig;
mod scaling;
mod table;
mod transports;

use clap::{Parser, Subcommand};

/// Measure the data plane
#[derive(Debug, Parser)]
#[command(name = "perf", bin_name = "./run perf")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Instructions per packet, counted by callgrind: the same on a busy machine
    Instructions(instructions::Args),
    /// Instructions per request of a block device, counted in the same way
    Requests(requests::Args),
    /// Cost per packet from 1 to 64 ports, and from 1 to 65536 addresses
    Scaling(scaling::Args),
    /// Latency and CPU time of each way to poll
    Polling,
    /// VVU, with a device in this process, in turn with AF_UNIX
    Transports(transports::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Instructions(args) => instructions::run(&args),
        What::Requests(args) => requests::run(&args),
        What::Scaling(args) => scaling::run(&args),
        What::Polling => polling::run(),
        What::Transports(args) => transports::run(&args),
    }
}
