//! `vvu scsi`: disks as SCSI units, and a session for each virtio-scsi device.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use vvu::session::Session;
use vvu_pmd::bdev::file::PATIENCE;
use vvu_pmd::scsi::{Address, Face, Lun, ScsiConfig, Store};
use vvu_pmd::{ScsiDevice, ScsiWorkers};

use crate::READY;
use crate::args::Serving;
use crate::disk::{DiskSpec, refuse_twice};
use crate::neighbour::Neighbour;
use crate::port::{Options, number};
use crate::signals::Shutdown;
use crate::storage;

pub(crate) const EXAMPLES: &str = "\
Ports:
  vvu:BDF            a VVU function of this VM, bound to vfio-pci (see `vvu bind`)
  vfio-user:PATH     a VVU function that another process serves (see `vvu device`)
  unix:PATH          listen for a vhost-user front-end at PATH
  unix:PATH,client   connect to a front-end that listens at PATH

  All take further options, separated by commas:
    queues=N         request queues, 1 to 64 (default 4)
  vvu: and vfio-user: also take
    rule=RULE        how the function places memory, where its id does not tell:
                     whole, packed or told (see docs/device.md)

Units:
  TARGET:LUN=DISK    a disk at target 0 to 255, LUN 0 to 16383; what a disk can be, and its
                     options, is what `vvu blk --help` lists under Disks

  All take further options, separated by commas:
    serial=TEXT      serial number, up to 64 characters (default: made of place and disk)
    state=FILE       persistent reservations are kept there, and outlast this process
    ports=N+N        only behind these ports, from 0 in the order of --port; without it, behind
                     all of them, which share the unit and its reservations

Examples:
  On a host, for a VM whose VMM is the vhost-user client:
    vvu scsi --port unix:/run/scsi.sock --lun 0:0=file:/srv/a.img --lun 0:1=file:/srv/b.img

  In an appliance VM, one disk for a cluster of two:
    vvu bind 00:04.0 00:05.0
    vvu scsi --port vvu:00:04.0 --port vvu:00:05.0 \\
      --lun 0:0=file:/dev/vdb,direct,serial=quorum,state=/var/lib/vvu/quorum";

#[derive(Debug, Args)]
pub(crate) struct Scsi {
    /// A front-end; see the list below. Give one option per device
    #[arg(short, long = "port", required = true, value_name = "PORT")]
    pub(crate) ports: Vec<ScsiPort>,

    /// A disk in its place; see the list below. Give one option per unit
    #[arg(
        short,
        long = "lun",
        required_unless_present = "list",
        value_name = "UNIT"
    )]
    pub(crate) luns: Vec<LunSpec>,

    /// A file with further units, one on each line as --lun has it. It is looked at again every
    /// second: units come and go as lines do
    #[arg(long = "luns", value_name = "FILE")]
    pub(crate) list: Option<PathBuf>,

    /// No guest may write to any unit
    #[arg(long)]
    pub(crate) readonly: bool,

    #[command(flatten)]
    pub(crate) serving: Serving,
}

/// Request queues of a device whose port does not say.
const DEFAULT_QUEUES: u16 = 4;

/// How long a file of a list is waited for that others have locked, once guests are served: for a
/// unit that was just removed. What takes longer is tried again every second.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);

/// One `--port`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScsiPort {
    name: String,
    at: Neighbour,
    queues: u16,
}

impl FromStr for ScsiPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, name, at, mut options) = Neighbour::port(text)?;
        let queues = options.take("queues", |v| number(v, 1..=ScsiConfig::MAX_QUEUES))?;
        options.finish(&format!("{scheme}: port"))?;
        Ok(Self {
            name,
            at,
            queues: queues.unwrap_or(DEFAULT_QUEUES),
        })
    }
}

/// One `--lun`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LunSpec {
    place: Address,
    disk: DiskSpec,
    serial: Option<String>,
    state: Option<PathBuf>,
    /// Ports that it is behind; all if there are none.
    ports: BTreeSet<usize>,
}

fn serial(text: &str) -> Result<String, String> {
    match text.len() {
        1..=64 if text.bytes().all(|c| c.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is not 1 to 64 printable characters without spaces"
        )),
    }
}

impl FromStr for LunSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not TARGET:LUN=DISK, as in 0:1=file:/srv/disk.img");
        let (place, disk) = text.split_once('=').ok_or_else(bad)?;
        let (target, lun) = place.split_once(':').ok_or_else(bad)?;
        let place = Address {
            target: number(target, 0..=255).map_err(|error| format!("target {error}"))?,
            lun: number(lun, 0..=16383).map_err(|error| format!("LUN {error}"))?,
        };
        // What is not the unit's is the disk's.
        let own = |part: &&str| {
            let key = part.split('=').next();
            matches!(key, Some("serial" | "state" | "ports"))
        };
        let (ours, theirs): (Vec<&str>, Vec<&str>) = disk.split(',').partition(own);
        let mut options = Options::new(ours.into_iter())?;
        let state = |v: &str| match v {
            "" => Err("needs the path of a file".to_owned()),
            path => Ok(PathBuf::from(path)),
        };
        let ports = |v: &str| {
            let each = v.split('+').map(|v| number(v, 0..=usize::MAX));
            each.collect::<Result<BTreeSet<_>, _>>()
        };
        Ok(Self {
            place,
            disk: theirs.join(",").parse()?,
            serial: options.take("serial", serial)?,
            state: options.take("state", state)?,
            ports: options.take("ports", ports)?.unwrap_or_default(),
        })
    }
}

impl LunSpec {
    /// Opens the disk, and what is kept of it.
    fn open(&self, read_only: bool, patience: Duration) -> anyhow::Result<Lun> {
        let disk = self.disk.open(read_only, patience)?;
        let store = self.state.as_deref().map(Store::open).transpose()?;
        let made = || {
            let Address { target, lun } = self.place;
            format!("{target}:{lun}:{}", self.disk.name)
        };
        let serial = self.serial.clone().unwrap_or_else(made);
        Ok(Lun::new(&serial, disk, read_only, store))
    }

    /// The faces that it is behind.
    fn faces<'a>(&'a self, faces: &'a [Arc<Face>]) -> impl Iterator<Item = &'a Arc<Face>> {
        let all = self.ports.is_empty();
        let chosen = faces.iter().enumerate();
        chosen.filter_map(move |(n, face)| (all || self.ports.contains(&n)).then_some(face))
    }
}

/// That units do not get into each other's way, and are behind ports that there are.
fn check<'a>(
    luns: impl Iterator<Item = &'a LunSpec> + Clone,
    ports: usize,
    read_only: bool,
) -> anyhow::Result<()> {
    if !read_only {
        refuse_twice(luns.clone().map(|spec| &spec.disk)).map_err(anyhow::Error::msg)?;
    }
    let mut places = BTreeSet::new();
    let mut states = BTreeSet::new();
    for spec in luns {
        let Address { target, lun } = spec.place;
        if let Some(port) = spec.ports.iter().find(|port| **port >= ports) {
            bail!("unit {target}:{lun}: there is no port {port}, only {ports}, counted from 0");
        }
        let behind: Vec<usize> = match spec.ports.is_empty() {
            true => (0..ports).collect(),
            false => spec.ports.iter().copied().collect(),
        };
        for port in behind {
            if !places.insert((port, spec.place)) {
                bail!("unit {target}:{lun} is given twice for port {port}");
            }
        }
        if let Some(state) = &spec.state
            && !states.insert(state)
        {
            bail!(
                "{} is the state of two units; each needs a file of its own",
                state.display()
            );
        }
    }
    Ok(())
}

/// Units that are there, with the files that they come from.
struct Units {
    read_only: bool,
    /// How long a file is waited for that others have locked.
    patience: Duration,
    fixed: Vec<LunSpec>,
    list: Option<PathBuf>,
    /// What the list said last.
    text: String,
    /// Those of the list.
    listed: Vec<LunSpec>,
    open: BTreeMap<usize, Lun>,
    next: usize,
    keys: Vec<usize>,
}

impl Units {
    fn add(&mut self, spec: &LunSpec, faces: &[Arc<Face>]) -> anyhow::Result<usize> {
        let Address { target, lun } = spec.place;
        let open = spec.open(self.read_only, self.patience);
        let open = open.with_context(|| format!("unit {target}:{lun}"))?;
        for face in spec.faces(faces) {
            face.add(spec.place, open.clone());
        }
        self.open.insert(self.next, open);
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Reads the list, if there is one and it says something else than before.
    fn read(&mut self, faces: &[Arc<Face>]) -> anyhow::Result<()> {
        let Some(path) = self.list.clone() else {
            return Ok(());
        };
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("list of units {}", path.display()))?;
        if text == self.text {
            return Ok(());
        }
        let wanted = parse_list(&path, &text)?;
        let all = self.fixed.iter().chain(&wanted);
        check(all, faces.len(), self.read_only)?;
        let gone = |spec: &LunSpec| !wanted.contains(spec);
        for place in (0..self.listed.len()).rev() {
            if gone(&self.listed[place]) {
                let spec = self.listed.remove(place);
                let key = self.keys.remove(place);
                for face in spec.faces(faces) {
                    face.remove(spec.place);
                }
                self.open.remove(&key);
                let Address { target, lun } = spec.place;
                tracing::info!(target, lun, disk = spec.disk.name, "unit removed");
            }
        }
        for spec in wanted {
            if self.listed.contains(&spec) {
                continue;
            }
            let key = self.add(&spec, faces)?;
            let Address { target, lun } = spec.place;
            tracing::info!(target, lun, disk = spec.disk.name, "unit added");
            self.listed.push(spec);
            self.keys.push(key);
        }
        // One that makes no sense, or names what cannot be opened yet, is looked at again.
        self.text = text;
        Ok(())
    }
}

/// The units that the lines of a list name. Empty lines, and those that begin with #, say nothing.
fn parse_list(path: &Path, text: &str) -> anyhow::Result<Vec<LunSpec>> {
    let lines = text.lines().map(str::trim).zip(1..);
    let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(line, number)| {
            let spec = line.parse::<LunSpec>().map_err(anyhow::Error::msg);
            spec.with_context(|| format!("{}, line {number}", path.display()))
        })
        .collect()
}

/// Runs until a signal says to stop.
pub(crate) fn run(scsi: &Scsi) -> anyhow::Result<()> {
    let mut names = BTreeSet::new();
    if let Some(twice) = scsi.ports.iter().find(|port| !names.insert(&port.name)) {
        bail!(
            "port {} is given twice; each needs one of its own",
            twice.name
        );
    }
    check(scsi.luns.iter(), scsi.ports.len(), scsi.readonly)?;
    let (cpus, polling) = (scsi.serving.cpus()?, scsi.serving.poll.into());
    let workers = ScsiWorkers::new(&cpus, polling).context("cannot start the workers")?;
    let face = |port: &ScsiPort| {
        let config = ScsiConfig {
            queues: port.queues,
        };
        Face::new(&port.name, config)
    };
    let faces: Vec<_> = scsi.ports.iter().map(face).collect();
    let mut units = Units {
        read_only: scsi.readonly,
        patience: PATIENCE,
        fixed: scsi.luns.clone(),
        list: scsi.list.clone(),
        text: String::new(),
        listed: Vec::new(),
        open: BTreeMap::new(),
        next: 0,
        keys: Vec::new(),
    };
    for spec in &scsi.luns {
        units.add(spec, &faces)?;
    }
    units.read(&faces)?;
    units.patience = SHORT_PATIENCE;
    // Until here, where it may have waited for a disk, a signal ends the program at once.
    let shutdown = Shutdown::new()?;
    let mut sessions = Vec::new();
    for (port, face) in scsi.ports.iter().zip(&faces) {
        let device = ScsiDevice::new(Arc::clone(face), Arc::clone(&workers));
        let transport = port.at.transport(face.queues(), scsi.serving.reach());
        let transport = transport.with_context(|| format!("port {}", port.name))?;
        let session = Session::spawn(transport, Box::new(device));
        sessions.push(session.context("cannot start a thread")?);
    }
    tracing::info!(devices = faces.len(), units = units.open.len(), "{READY}");

    let mut complaint = String::new();
    let look = || {
        for lun in units.open.values() {
            // One that cannot be asked any more fails its commands, too, and says so there.
            let _ = lun.disk().refresh();
        }
        let said = units.read(&faces).err().map(|error| format!("{error:#}"));
        let said = said.unwrap_or_default();
        if said != complaint {
            complaint = said;
            if !complaint.is_empty() {
                tracing::error!("units stay as they are: {complaint}");
            }
        }
    };
    let print = || storage::print(faces.iter().map(|face| face.snapshot()), &workers.stats());
    storage::serve(&shutdown, scsi.serving.stats, sessions, look, print);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_unit_is_a_place_and_a_disk() {
        let spec: LunSpec = "3:300=mem:4M,serial=a-1,block=4096,state=/tmp/s,ports=0+2"
            .parse()
            .unwrap();
        let place = Address {
            target: 3,
            lun: 300,
        };
        assert_eq!((spec.place, spec.serial.as_deref()), (place, Some("a-1")));
        assert_eq!(spec.disk, "mem:4M,block=4096".parse().unwrap());
        assert_eq!(spec.state.as_deref(), Some(Path::new("/tmp/s")));
        assert_eq!(Vec::from_iter(spec.ports), [0, 2]);
    }

    #[test]
    fn nonsense_is_explained() {
        for (text, reason) in [
            ("mem:4M", "not TARGET:LUN=DISK"),
            ("0=mem:4M", "not TARGET:LUN=DISK"),
            ("256:0=mem:4M", "target"),
            ("0:16384=mem:4M", "LUN"),
            ("0:0=nfs:/a", "not a kind of disk"),
            ("0:0=mem:4M,serial=", "64 printable"),
            ("0:0=mem:4M,state=", "path of a file"),
            ("0:0=mem:4M,ports=a", "ports"),
            ("0:0=mem:4M,queues=4", "no option"),
        ] {
            let error = text.parse::<LunSpec>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn units_do_not_get_into_each_others_way() {
        let check = |all: &[&str]| {
            let all: Vec<LunSpec> = all.iter().map(|text| text.parse().unwrap()).collect();
            check(all.iter(), 2, false).map_err(|error| error.to_string())
        };
        check(&["0:0=mem:4M,ports=0", "0:0=mem:4M,ports=1", "0:1=mem:4M"]).unwrap();
        for (all, reason) in [
            (
                &["0:0=mem:4M", "0:0=mem:8M,ports=1"][..],
                "given twice for port 1",
            ),
            (&["0:0=mem:4M,ports=2"], "no port 2"),
            (&["0:0=mem:4M,state=/s", "0:1=mem:4M,state=/s"], "two units"),
            (&["0:0=file:/a", "0:1=file:/a,ports=1"], "same file"),
        ] {
            assert!(check(all).unwrap_err().contains(reason));
        }
    }

    #[test]
    fn a_list_has_a_unit_on_each_line() {
        let text = "# disks\n\n 0:0=mem:4M \n0:1=mem:8M\n";
        assert_eq!(parse_list(Path::new("list"), text).unwrap().len(), 2);
        let error = parse_list(Path::new("list"), "0:0=mem:4M\nx").unwrap_err();
        assert!(format!("{error:#}").contains("list, line 2"), "{error:#}");
    }
}
