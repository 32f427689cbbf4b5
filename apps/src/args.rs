//! What the command line can say.

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use vvu::pci::Address;
use vvu_pmd::worker::Polling;

use crate::captures::CaptureSpec;
use crate::guest::args::Guest;
use crate::neighbour::Reach;
use crate::port::{Mac, PortSpec};
use crate::wiring::first_cpu;

/// Serve virtio devices from this machine, or this virtual machine, to its neighbours.
///
/// A neighbour VM's virtio-net device is served either through a virtio-vhost-user (VVU) PCI
/// function of this VM or through an AF_UNIX vhost-user socket of this host; all ports of one
/// process form one switch.
#[derive(Debug, Parser)]
#[command(name = "vvu", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Args {
    /// Log more: -v for what each front-end does, -vv for everything
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,

    /// Log warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List this machine's VVU functions and the drivers they are bound to
    List,

    /// Show what a VVU function offers: capabilities, windows, status, uuid
    Info {
        /// PCI address, such as 0000:00:05.0 or 00:05.0
        address: Address,
    },

    /// Hand VVU functions to vfio-pci, so that `vvu net` can drive them
    ///
    /// Uses driver_override, so no other function with the same id is affected. A function that
    /// another driver had (virtio-pci claims every virtio id) is taken from it first.
    Bind(Rebind),

    /// Give VVU functions back to the driver that the kernel would choose
    Unbind(Rebind),

    /// Switch Ethernet frames between ports
    ///
    /// Runs until SIGINT or SIGTERM. Ports may come and go: a front-end that disconnects, is
    /// killed or reboots is served again when it is back.
    #[command(after_long_help = EXAMPLES)]
    Net(Net),

    /// Serve disks
    ///
    /// Each port is a virtio-blk device for one front-end, with a disk behind it. Runs until SIGINT
    /// or SIGTERM; front-ends may come and go.
    #[command(after_long_help = crate::blk::EXAMPLES)]
    Blk(crate::blk::Blk),

    /// Serve many disks through one device each
    ///
    /// Each port is a virtio-scsi device for one front-end; all ports share the units, unless told
    /// otherwise. Runs until SIGINT or SIGTERM; front-ends and units may come and go.
    #[command(after_long_help = crate::scsi::EXAMPLES)]
    Scsi(crate::scsi::Scsi),

    /// Be a VVU function in software, for a VMM or a `vvu net` that connects to it
    ///
    /// One side is a vfio-user socket, over which a VMM attaches the function to its VM, or
    /// `vvu net --port vfio-user:PATH` drives it; the other a vhost-user socket for the
    /// neighbour's VMM. Runs until SIGINT or SIGTERM; either side may come and go.
    #[command(after_long_help = crate::device::EXAMPLES)]
    Device(crate::device::DeviceArgs),

    /// See it work: two guests, two VVU devices in software, and a switch between them
    ///
    /// Everything that an appliance VM does, in one process tree on this machine: no root, no
    /// hugepages, no KVM and no QEMU. Ends by itself; the exit code is 0 if every frame is
    /// accounted for.
    Demo(crate::demo::Demo),

    /// Be the other side: a virtual machine's network card or disk, without the virtual machine
    ///
    /// A vhost-user front-end with memory and a driver of its own, for trying and testing any
    /// back-end that serves AF_UNIX sockets. Accepts VERSION_1, MRG_RXBUF, EVENT_IDX and
    /// INDIRECT_DESC where they are offered, unless told otherwise.
    ///
    /// Exit codes: 0 all was well, 1 something was lost or wrong, 2 the command line makes no
    /// sense, 3 there is no back-end or it cannot be used.
    #[command(after_long_help = crate::guest::args::EXAMPLES)]
    Guest(Box<Guest>),
}

const EXAMPLES: &str = "\
Ports:
  vvu:BDF            a VVU function of this VM, bound to vfio-pci (see `vvu bind`)
  vfio-user:PATH     a VVU function that another process serves (see `vvu device`)
  unix:PATH          listen for a vhost-user front-end at PATH
  unix:PATH,client   connect to a front-end that listens at PATH
  tap:NAME           a TAP interface of this machine, made if it is not there
                     (queues=N, mtu=BYTES)
  packet:NAME        an Ethernet interface, through a packet socket
  xdp:NAME           a queue of an Ethernet interface, through an AF_XDP socket
                     (queue=N, mode=auto|copy|zerocopy)
  pcap:in=A,out=B    play the frames of A (loop: again and again), write frames to B; either
                     may be left out
  null:              take every frame and drop it
  gen:size=64        make frames of that many bytes as fast as the other ports take them
  echo:              send every frame back where it came from
  echo:swap          the same, with source and destination address exchanged

  vvu:, vfio-user: and unix: take further options, separated by commas:
    mac=ADDRESS      MAC address in the device's configuration space
    mtu=BYTES        largest IP packet that the link carries, 68 to 9216 (default 9000)
    pairs=N          queue pairs, 1 to 128 (default 8)
    speed=MBITS      speed of the link that the device reports, in Mbit/s (default 10000)
    control          serve the control queue, too: only for VMMs that pass it on, which QEMU's
                     vhost-user netdev and DPDK do not (see docs/net.md)
  vvu: and vfio-user: also take
    rule=RULE        how the function places memory, where its id does not tell:
                     whole, packed or told (see docs/device.md)
  Ports of every kind but echo: take rules, in force where they are given (docs/switch.md):
    vlan=ID          in this VLAN; the other side sees no tags
    trunk=IDS        in these VLANs, told apart by tags, as in 10+20-29...
    native=ID        ...and in this one without a tag
    macs=ADDRESSES   these addresses, as in A+B, are here for good
    antispoof        frames come only from the port's mac= and macs=
    maclimit=N       learn at most so many addresses here, and drop frames from others
    isolated         no frames to other isolated ports
    storm=N          at most N frames per second to everybody; numbers may end in k, M or G
    rate=N           at most N bits per second from the port
    pps=N            at most N frames per second from the port
    burst=MS         so much of these may come at once (default 10 milliseconds of it)
    mirror=PORT      copy everything from and to this port to the port of that name, which is
                     for watching only from then on

Examples:
  In an appliance VM with two VVU functions:
    vvu bind 00:04.0 00:05.0
    vvu net --port vvu:00:04.0 --port vvu:00:05.0 --stats 5

  On a host, for two VMs whose VMM is the vhost-user client:
    vvu net --port unix:/run/a.sock --port unix:/run/b.sock --cores 2,3";

#[derive(Debug, ClapArgs)]
pub(crate) struct Rebind {
    /// PCI addresses, such as 0000:00:05.0 or 00:05.0
    #[arg(required = true, value_name = "BDF")]
    pub(crate) addresses: Vec<Address>,

    /// Only say what would be done
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Net {
    /// A port of the switch; see the list below. Give one option per port
    #[arg(short, long = "port", required = true, value_name = "PORT")]
    pub(crate) ports: Vec<PortSpec>,

    /// Write what passes a port to a pcapng file, both directions. PORT is the port's name (what
    /// is before the first comma) or its number, from 0. FILE,snap=N: the first N bytes of frames;
    /// FILE,paused: not yet. SIGUSR1 ends captures, or begins them all if none runs
    #[arg(long = "pcap", value_name = "PORT=FILE")]
    pub(crate) captures: Vec<CaptureSpec>,

    /// MAC address of the first port's device; further ports count up from it
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mac: Option<Mac>,

    /// Forget an address that was not heard of for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ageing: u64,

    #[command(flatten)]
    pub(crate) serving: Serving,
}

/// How every kind of device is served.
#[derive(Debug, ClapArgs)]
pub(crate) struct Serving {
    /// CPUs to poll on, one worker each: 0,2 or 0-3. Default: the first CPU this process may use
    #[arg(short, long, value_name = "LIST", value_parser = parse_cpus)]
    pub(crate) cores: Option<Cpus>,

    /// When workers poll, and when they wait to be kicked
    #[arg(long, value_name = "MODE", default_value = "adaptive")]
    pub(crate) poll: Poll,

    /// Print a table of counters every so often
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) stats: Option<u64>,

    /// Print every vhost-user message, decoded
    #[arg(long)]
    pub(crate) trace: bool,

    /// Drive functions although the IOMMU cannot remap interrupts. A function that is handed to
    /// a program without interrupt remapping can forge interrupts of the whole machine
    #[arg(long)]
    pub(crate) allow_unsafe_interrupts: bool,
}

impl Serving {
    /// The CPUs to poll on.
    pub(crate) fn cpus(&self) -> anyhow::Result<Vec<usize>> {
        match &self.cores {
            Some(cpus) => Ok(cpus.0.clone()),
            None => Ok(vec![first_cpu()?]),
        }
    }

    /// How to reach front-ends.
    pub(crate) fn reach(&self) -> Reach {
        Reach {
            trace: self.trace,
            unsafe_interrupts: self.allow_unsafe_interrupts,
        }
    }
}

/// When workers poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Poll {
    /// Without end: lowest latency, a whole CPU for each worker, and no guest ever kicks
    Always,
    /// While there is traffic and a little longer; queues without any wait for their kick
    Adaptive,
    /// While there is traffic: least CPU time, and a kick for nearly every burst
    Interrupt,
}

impl From<Poll> for Polling {
    fn from(poll: Poll) -> Self {
        match poll {
            Poll::Always => Self::Always,
            Poll::Adaptive => Self::Adaptive,
            Poll::Interrupt => Self::Interrupt,
        }
    }
}

/// A list of CPU numbers.
#[derive(Debug, Clone)]
pub(crate) struct Cpus(pub(crate) Vec<usize>);

pub(crate) fn parse_cpus(text: &str) -> Result<Cpus, String> {
    const HIGHEST: usize = 4095;
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(cpu) if cpu <= HIGHEST => Ok(cpu),
        _ => Err(format!("{text:?} is not a CPU number; write 0,2 or 0-3")),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let range = match part.split_once('-') {
            Some((first, last)) => number(first)?..=number(last)?,
            None => number(part)?..=number(part)?,
        };
        if range.is_empty() {
            return Err(format!("{part:?} counts down; write the lower CPU first"));
        }
        cpus.extend(range);
    }
    let listed = cpus.len();
    cpus.sort_unstable();
    cpus.dedup();
    if cpus.len() < listed {
        return Err("a CPU is listed twice; each gets one worker".into());
    }
    Ok(Cpus(cpus))
}

/// Log to standard error. `RUST_LOG` overrides the options, as in `info,vvu::session=trace`.
pub(crate) fn init_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::WARN,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let wanted = std::env::var("RUST_LOG").ok();
    let wanted = wanted.and_then(|text| text.parse::<Targets>().ok());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    tracing_subscriber::registry()
        .with(wanted.unwrap_or_else(|| Targets::new().with_default(level)))
        .with(layer)
        .init();
}

/// How a VVU function places the front-end's memory in its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuleName {
    /// Regions one after the other, each with what lies before it in its file.
    Whole,
    /// Regions one after the other.
    Packed,
    /// The device says where.
    Told,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpus("3,0-1").unwrap().0, [0, 1, 3]);
        for bad in ["", "a", "1-", "-1", "2-1", "0,0", "0-1,1", "99999", "0,,1"] {
            assert!(parse_cpus(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
