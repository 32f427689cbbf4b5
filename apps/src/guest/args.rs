//! What `vvu guest` can be told.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, Subcommand};

use super::storage::args::{Blk, DiskJob, Scsi};
use crate::port::Mac;

/// Largest frame that a job sends: an MTU of 9216 with its Ethernet header and a VLAN tag.
pub(crate) const MAX_FRAME: u16 = 9234;

/// Smallest frame: what Ethernet carries, without its checksum.
pub(crate) const MIN_FRAME: u16 = 60;

pub(crate) const EXAMPLES: &str = "\
Examples:
  A back-end that sends everything back, and how long that takes:
    vvu net --port unix:/tmp/a.sock --port echo:
    vvu guest --socket /tmp/a.sock ping
    vvu guest --socket /tmp/a.sock verify --seconds 10

  Two guests behind one switch, each in a terminal of its own:
    vvu net --port unix:/tmp/a.sock --port unix:/tmp/b.sock
    vvu guest --socket /tmp/a.sock sink
    vvu guest --socket /tmp/b.sock blast --size 64

  Through a virtio-vhost-user function, in software:
    truncate -s 16M /dev/shm/a
    vvu device --vfio-user /tmp/a.vfio --vhost-user /tmp/a.sock --peer-memory /dev/shm/a
    vvu net --port vfio-user:/tmp/a.vfio --port echo:
    vvu guest --socket /tmp/a.sock --memory-file /dev/shm/a ping

  A disk, written, and read again after whatever happened to the back-end meanwhile:
    vvu guest --socket /tmp/d.sock blk write --whole --seed 1
    vvu guest --socket /tmp/d.sock blk read --whole --seed 1
    vvu guest --socket /tmp/d.sock --packed blk --queues 4 verify --seconds 10

  Another back-end, DPDK's:
    dpdk-testpmd --no-huge -m 512 --no-pci --vdev net_vhost0,iface=/tmp/x.sock -l 0,1 -- \\
      --forward-mode=macswap --auto-start
    vvu guest --socket /tmp/x.sock verify";

#[derive(Debug, ClapArgs)]
#[command(subcommand_value_name = "JOB", subcommand_help_heading = "Jobs")]
pub(crate) struct Guest {
    #[command(flatten)]
    pub(crate) options: Options,

    #[command(subcommand)]
    pub(crate) job: Job,
}

/// Options of every job; they may stand before or behind it.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Options {
    /// Where the back-end listens; with ",server", where to wait for a back-end that calls
    #[arg(long, global = true, value_name = "PATH[,server]", help_heading = HEADING)]
    pub(crate) socket: Option<Socket>,

    /// Memory to share, such as 16M. Default: what rings and buffers need
    #[arg(long, global = true, value_name = "BYTES", value_parser = crate::device::parse_size, help_heading = HEADING)]
    pub(crate) memory: Option<u64>,

    /// Share this file, all of it, instead of memory of one's own: for a back-end that must know
    /// it beforehand (see `vvu device --peer-memory`). What is in it is lost
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "memory", help_heading = HEADING)]
    pub(crate) memory_file: Option<PathBuf>,

    /// Announce the memory in this many regions; rings and buffers are spread over them
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8), help_heading = HEADING)]
    pub(crate) regions: u8,

    /// Descriptors in each ring, a power of two unless it is packed
    #[arg(long, global = true, value_name = "N", default_value_t = 256, value_parser = parse_queue_size, help_heading = HEADING)]
    pub(crate) queue_size: u16,

    /// Pairs of a receive and a transmit ring; what is sent is spread over them
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=128), help_heading = HEADING)]
    pub(crate) pairs: u8,

    /// Packed rings, or none
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) packed: bool,

    /// Accept IN_ORDER, or nothing: chains come back in the order in which they went
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) in_order: bool,

    /// Leave checksums and segmentation to the other side, and take frames that are left to us:
    /// `verify` then sends TCP and UDP of up to 64 KiB, too
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) offloads: bool,

    /// Bytes of a receive buffer. Default: 2048, or a whole frame where buffers are not merged
    #[arg(long, global = true, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(128..=65535), help_heading = HEADING)]
    pub(crate) rx_buffer: Option<u32>,

    /// MAC address to send from. Default: the one that the back-end's device has, or a random one
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = HEADING)]
    pub(crate) mac: Option<Mac>,

    /// Do not accept VERSION_1: legacy headers and layouts
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) no_version_1: bool,

    /// Do not accept MRG_RXBUF: each frame must fit one receive buffer
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) no_mrg_rxbuf: bool,

    /// Do not accept EVENT_IDX: notifications are turned on and off by flags
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) no_event_idx: bool,

    /// Do not accept INDIRECT_DESC: chains are made of the ring's own descriptors
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) no_indirect: bool,

    /// Do not negotiate protocol features (and so no REPLY_ACK): as the oldest front-ends do
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) no_protocol_features: bool,

    /// When the back-end goes away, wait for it to come back and go on
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) reconnect: bool,

    /// How long the back-end, or the other side, may take for anything
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = HEADING)]
    pub(crate) timeout: u64,

    /// Say the result as one line of JSON
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) json: bool,

    /// Say every second how it goes (in JSON, too, with --json)
    #[arg(long, global = true, help_heading = HEADING)]
    pub(crate) progress: bool,
}

impl Options {
    /// An option that was given and that disks have no use for.
    pub(crate) fn only_for_cards(&self) -> Option<&'static str> {
        let given = [
            (self.pairs != 1, "--pairs"),
            (self.in_order, "--in-order"),
            (self.offloads, "--offloads"),
            (self.rx_buffer.is_some(), "--rx-buffer"),
            (self.mac.is_some(), "--mac"),
            (self.no_version_1, "--no-version-1"),
            (self.no_mrg_rxbuf, "--no-mrg-rxbuf"),
        ];
        let mut given = given.into_iter().filter(|(given, _)| *given);
        given.next().map(|(_, option)| option)
    }
}

const HEADING: &str = "Guest";

/// What the guest does.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Job {
    /// Measure round trips, one at a time, to a `sink` or a back-end that sends frames back
    Ping(Ping),
    /// Send as fast as the back-end takes it
    Blast(Blast),
    /// Receive and count; answer `ping`
    Sink(Sink),
    /// Send random frames both ways and account for each: nothing lost, doubled, reordered, changed
    ///
    /// The other side is another `verify`, or a back-end that sends frames back.
    Verify(Verify),
    /// Misbehave, by name, and check after each deed that the back-end still serves others
    Abuse(Abuse),
    /// Be a machine with a virtio-blk disk
    Blk(Blk),
    /// Be a machine with a virtio-scsi adapter, and use a disk of it
    Scsi(Scsi),
}

impl Job {
    /// The abuse that it is, of whatever device.
    pub(crate) fn abuse(&self) -> Option<&Abuse> {
        match self {
            Self::Abuse(abuse)
            | Self::Blk(Blk {
                job: DiskJob::Abuse(abuse),
                ..
            })
            | Self::Scsi(Scsi {
                job: DiskJob::Abuse(abuse),
                ..
            }) => Some(abuse),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Ping {
    /// Round trips
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,

    /// Stop after this time
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) seconds: Option<u64>,

    /// Milliseconds from one probe to the next
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) interval: u64,

    /// Length of a frame, without its checksum
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = frame_size())]
    pub(crate) size: u16,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Blast {
    /// Length of a frame, without its checksum
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = frame_size())]
    pub(crate) size: u16,

    /// Stop after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) seconds: u64,

    /// Stop after this many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Sink {
    /// Stop after this time. Default: at SIGINT
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) seconds: Option<u64>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Verify {
    /// Stop sending after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) seconds: u64,

    /// Stop sending after this many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// Longest frame. Default: what the device's MTU allows
    #[arg(long, value_name = "BYTES", value_parser = frame_size())]
    pub(crate) max_size: Option<u16>,

    /// Where the random numbers begin. Default: random, and said
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Clone, ClapArgs)]
#[group(required = true, multiple = false)]
pub(crate) struct Abuse {
    /// Say what there is
    #[arg(long)]
    pub(crate) list: bool,

    /// Do these only; give one option per name
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// Do everything in the list
    #[arg(long)]
    pub(crate) all: bool,
}

fn frame_size() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(i64::from(MIN_FRAME)..=i64::from(MAX_FRAME))
}

/// A socket, and whether it is ours to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) path: PathBuf,
    pub(crate) server: bool,
}

impl FromStr for Socket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, server) = match text.rsplit_once(',') {
            None => (text, false),
            Some((path, "server")) => (path, true),
            Some((_, other)) => return Err(format!("{other:?} is not an option; there is server")),
        };
        if path.is_empty() {
            return Err("the path of a socket is missing".into());
        }
        Ok(Self {
            path: path.into(),
            server,
        })
    }
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if (16..=32768).contains(&size) => Ok(size),
        _ => Err("a number from 16 to 32768 is needed".into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sockets() {
        let socket = |text: &str| text.parse::<Socket>();
        assert!(!socket("/run/a.sock").unwrap().server);
        let served = socket("/run/a,b.sock,server").unwrap();
        assert_eq!(
            (served.path.to_str(), served.server),
            (Some("/run/a,b.sock"), true)
        );
        for bad in ["", ",server", "/run/a.sock,client"] {
            assert!(socket(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn queue_sizes() {
        assert_eq!(parse_queue_size("256"), Ok(256));
        assert_eq!(parse_queue_size("100"), Ok(100));
        for bad in ["0", "8", "65536"] {
            assert!(parse_queue_size(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
