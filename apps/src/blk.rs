//! `vvu blk`: disks, and a session for each virtio-blk device.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use vvu::session::Session;
use vvu_pmd::bdev::Disk;
use vvu_pmd::bdev::file::PATIENCE;
use vvu_pmd::blk::{BlkConfig, Face};
use vvu_pmd::{BlkDevice, BlkWorkers};

use crate::READY;
use crate::args::Serving;
use crate::disk::{DiskSpec, refuse_twice};
use crate::neighbour::Neighbour;
use crate::port::number;
use crate::signals::Shutdown;
use crate::storage;

pub(crate) const EXAMPLES: &str = "\
Ports:
  vvu:BDF            a VVU function of this VM, bound to vfio-pci (see `vvu bind`)
  vfio-user:PATH     a VVU function that another process serves (see `vvu device`)
  unix:PATH          listen for a vhost-user front-end at PATH
  unix:PATH,client   connect to a front-end that listens at PATH

  All take further options, separated by commas:
    disk=N           the disk of this port, from 0 in the order of --disk; without it, the first
                     port has the first disk, and so on. Several ports may have the same disk
    queues=N         request queues, 1 to 64 (default 4)
    serial=TEXT      what the guest reads as the disk's serial number, up to 20 characters
    readonly         the guest may not write
  vvu: and vfio-user: also take
    rule=RULE        how the function places memory, where its id does not tell:
                     whole, packed or told (see docs/device.md)

Disks:
  file:PATH          a raw image, or a block device; nobody else may write to it meanwhile
  nbd:HOST[:PORT]    an export of an NBD server; also nbd://HOST[:PORT]/EXPORT and, for the
                     server of a socket, nbd:PATH
  rbd:POOL/IMAGE     an image in a Ceph cluster, if built for that (docs/storage.md); also
                     POOL/NAMESPACE/IMAGE, and IMAGE@SNAPSHOT
  mem:SIZE           memory of this process, as in mem:64M
  null:SIZE          nothing: to see what everything else costs

  All take further options, separated by commas; those for tests are in docs/storage.md:
    readonly         it is not written
    iops=N           at most so many requests per second
    mbps=N           at most so many megabytes per second
    burst=MS         what so many milliseconds allow may come at once after a pause
                     (default 100)
  file:, mem: and null: take
    block=BYTES      logical block size: 512, 1024, 2048 or 4096
  nbd: and rbd: take
    timeout=SECONDS  how long a request may wait for its answer, over lost connections, too
                     (default 20)
    cache=through    every write reaches the medium before it is done
  rbd: also takes
    conf=PATH        the cluster's configuration, if not /etc/ceph/ceph.conf
    user=NAME        as whom, if not admin
  nbd: also takes
    export=NAME      the export, if not the server's default
    tls=DIRECTORY    encrypted, with ca-cert.pem and, if there, client-cert.pem and
                     client-key.pem
    tls-name=HOST    the name in the server's certificate, if it is not HOST
  file: also takes
    size=SIZE        made with this size, as a sparse file, if it is not there
    direct           past the page cache
    cache=through    every write reaches the medium before it is done (default: back, which
                     leaves that to the guest's flushes)
    discard=off      what the guest discards stays allocated
    sqpoll           a thread of the kernel looks for requests: no system calls, but a CPU

Examples:
  On a host, for a VM whose VMM is the vhost-user client:
    vvu blk --port unix:/run/disk.sock --disk file:/srv/disk.img,size=10G,direct

  In an appliance VM with two VVU functions:
    vvu bind 00:04.0 00:05.0
    vvu blk --port vvu:00:04.0 --disk file:/dev/vdb,direct \\
      --port vvu:00:05.0 --disk mem:4G --stats 5";

#[derive(Debug, Args)]
pub(crate) struct Blk {
    /// A front-end; see the list below. Give one option per device
    #[arg(short, long = "port", required = true, value_name = "PORT")]
    pub(crate) ports: Vec<BlkPort>,

    /// A disk; see the list below. Give one option per disk
    #[arg(short, long = "disk", required = true, value_name = "DISK")]
    pub(crate) disks: Vec<DiskSpec>,

    /// Serial number of disks whose port has none. Default: the disk's name
    #[arg(long, value_name = "TEXT", value_parser = serial)]
    pub(crate) serial: Option<String>,

    /// No guest may write to any disk
    #[arg(long)]
    pub(crate) readonly: bool,

    #[command(flatten)]
    pub(crate) serving: Serving,
}

/// Queues of a device whose port does not say.
const DEFAULT_QUEUES: u16 = 4;

/// One `--port`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlkPort {
    name: String,
    at: Neighbour,
    disk: Option<usize>,
    queues: u16,
    serial: Option<String>,
    read_only: bool,
}

fn serial(text: &str) -> Result<String, String> {
    let printable = text.bytes().all(|c| (b' '..=b'~').contains(&c));
    match text.len() {
        1..=20 if printable => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not 1 to 20 printable characters")),
    }
}

impl FromStr for BlkPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, name, at, mut options) = Neighbour::port(text)?;
        let port = Self {
            name,
            at,
            disk: options.take("disk", |v| number(v, 0..=usize::MAX))?,
            queues: options
                .take("queues", |v| number(v, 1..=BlkConfig::MAX_QUEUES))?
                .unwrap_or(DEFAULT_QUEUES),
            serial: options.take("serial", serial)?,
            read_only: options.flag("readonly")?,
        };
        options.finish(&format!("{scheme}: port"))?;
        Ok(port)
    }
}

/// Runs until a signal says to stop.
pub(crate) fn run(blk: &Blk) -> anyhow::Result<()> {
    let places = assign(&blk.ports, blk.disks.len())?;
    if !blk.readonly {
        refuse_twice(blk.disks.iter()).map_err(anyhow::Error::msg)?;
    }
    let (cpus, polling) = (blk.serving.cpus()?, blk.serving.poll.into());
    let workers = BlkWorkers::new(&cpus, polling).context("cannot start the workers")?;
    let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
    for disk in &blk.disks {
        disks.push(disk.open(blk.readonly, PATIENCE)?);
    }
    // Until here, where it may have waited for a disk, a signal ends the program at once.
    let shutdown = Shutdown::new()?;
    let mut faces = Vec::new();
    let mut sessions = Vec::new();
    for (port, place) in blk.ports.iter().zip(places) {
        let disk = Arc::clone(&disks[place]);
        let config = BlkConfig {
            serial: serial_of(blk, port, &*disk),
            read_only: blk.readonly || port.read_only,
            queues: port.queues,
        };
        let face = Face::new(&port.name, disk, config);
        let device = BlkDevice::new(Arc::clone(&face), Arc::clone(&workers));
        let transport = port.at.transport(port.queues, blk.serving.reach());
        let transport = transport.with_context(|| format!("port {}", port.name))?;
        let session = Session::spawn(transport, Box::new(device));
        sessions.push(session.context("cannot start a thread")?);
        faces.push(face);
    }
    tracing::info!(devices = faces.len(), disks = disks.len(), "{READY}");

    let look = || {
        for disk in &disks {
            // One that cannot be asked any more fails its requests, too, and says so there.
            let _ = disk.refresh();
        }
    };
    let print = || storage::print(faces.iter().map(|face| face.snapshot()), &workers.stats());
    storage::serve(&shutdown, blk.serving.stats, sessions, look, print);
    Ok(())
}

/// The disk of each port. Every disk must have one.
fn assign(ports: &[BlkPort], disks: usize) -> anyhow::Result<Vec<usize>> {
    let mut names = BTreeSet::new();
    let mut used = BTreeSet::new();
    let mut places = Vec::new();
    for (number, port) in ports.iter().enumerate() {
        if !names.insert(&port.name) {
            bail!(
                "port {} is given twice; each needs one of its own",
                port.name
            );
        }
        let place = port.disk.unwrap_or(number);
        if place >= disks {
            bail!(
                "port {} has no disk: there are {disks}, and it is to have number {place}, \
                 counted from 0; add a --disk, or say disk=N",
                port.name
            );
        }
        used.insert(place);
        places.push(place);
    }
    if let Some(unused) = (0..disks).find(|place| !used.contains(place)) {
        bail!("disk number {unused}, counted from 0, has no port; add one, or say disk={unused}");
    }
    Ok(places)
}

/// What a guest reads as the serial number: the end of a long name says more than its beginning.
fn serial_of(blk: &Blk, port: &BlkPort, disk: &dyn Disk) -> String {
    let given = port.serial.as_ref().or(blk.serial.as_ref());
    given.cloned().unwrap_or_else(|| {
        let name: Vec<char> = disk.name().chars().filter(char::is_ascii_graphic).collect();
        name.iter().skip(name.len().saturating_sub(20)).collect()
    })
}
