//! What `vvu guest blk` and `vvu guest scsi` can be told.

use clap::{Args as ClapArgs, Subcommand};

use super::Unit;
use crate::device::parse_size;
use crate::guest::args::Abuse;

/// Most bytes of a request, and most requests at once.
const MAX_SIZE: u64 = 16 << 20;
const MAX_DEPTH: i64 = 4096;

const HEADING: &str = "Disk";

#[derive(Debug, Clone, ClapArgs)]
#[command(subcommand_value_name = "JOB", subcommand_help_heading = "Jobs")]
pub(crate) struct Blk {
    #[command(flatten)]
    pub(crate) disk: DiskOptions,

    #[command(subcommand)]
    pub(crate) job: DiskJob,
}

#[derive(Debug, Clone, ClapArgs)]
#[command(subcommand_value_name = "JOB", subcommand_help_heading = "Jobs")]
pub(crate) struct Scsi {
    #[command(flatten)]
    pub(crate) disk: DiskOptions,

    /// The target that the disk is
    #[arg(long, global = true, value_name = "N", default_value_t = 0, help_heading = HEADING)]
    pub(crate) target: u8,

    /// The logical unit of the target that the disk is
    #[arg(long, global = true, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..16384), help_heading = HEADING)]
    pub(crate) lun: u16,

    #[command(subcommand)]
    pub(crate) job: DiskJob,
}

impl Scsi {
    /// Which disk.
    pub(crate) fn unit(&self) -> Unit {
        let (target, lun) = (self.target, self.lun);
        Unit { target, lun }
    }
}

/// Options of every job with a disk; they may stand before or behind it.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct DiskOptions {
    /// Request queues; requests are spread over them
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = HEADING)]
    pub(crate) queues: u16,

    /// Let the back-end keep what it has not answered where its successor finds it, or nothing
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) inflight: bool,

    /// Use the disk from this byte on, such as 1M; a multiple of its blocks. Default: its beginning
    #[arg(long, global = true, value_name = "BYTES", value_parser = parse_size, help_heading = HEADING)]
    pub(crate) offset: Option<u64>,

    /// Use so many bytes of it. Default: to its end, and for `verify` at most 64 MiB
    #[arg(long, global = true, value_name = "BYTES", value_parser = parse_size, help_heading = HEADING)]
    pub(crate) length: Option<u64>,
}

/// What is done with a disk.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DiskJob {
    /// Read, and measure how long each request takes
    Read(Transfer),
    /// Write, and measure how long each request takes. What was there is lost
    Write(Transfer),
    /// Flush, one at a time, and measure how long each takes
    Flush(Flush),
    /// Discard all of it. What was there is lost
    Discard(Discard),
    /// Read, write, flush, discard and zero at random, in pieces of every kind, and check every
    /// block that is read; at the end read all. What was there is lost
    Verify(VerifyDisk),
    /// Misbehave, by name, and check after each deed that the back-end still serves others
    ///
    /// What was there is lost.
    Abuse(Abuse),
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Transfer {
    /// Bytes of a request
    #[arg(long, value_name = "BYTES", default_value = "4K", value_parser = parse_request)]
    pub(crate) size: u64,

    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=MAX_DEPTH))]
    pub(crate) depth: u16,

    /// Stop after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) seconds: u64,

    /// All of it, once and in order, however long that takes, instead of places at random
    #[arg(long, conflicts_with = "seconds")]
    pub(crate) whole: bool,

    /// Write what follows from this number, or check that what is read is what `write` wrote with
    /// it
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Flush {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Discard {
    /// Zero it instead
    #[arg(long)]
    pub(crate) zeroes: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct VerifyDisk {
    /// Most bytes of a request
    #[arg(long, value_name = "BYTES", default_value = "128K", value_parser = parse_request)]
    pub(crate) max_size: u64,

    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=MAX_DEPTH))]
    pub(crate) depth: u16,

    /// Stop after this time, and read all
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) seconds: u64,

    /// Stop after so many requests, and read all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// Where the random numbers begin. Default: random, and said
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

fn parse_request(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size @ 512..=MAX_SIZE if size.is_multiple_of(512) => Ok(size),
        size => Err(format!(
            "{size} bytes: a request has 512 bytes to 16 MiB, whole sectors"
        )),
    }
}
