//! `abuse`: a catalogue of what a hostile front-end does, by name.
//!
//! After each deed the back-end must serve an honest connection as it did before: accept it, take
//! its frames, send back what it sent back, and stop its rings. How it dealt with the deed itself,
//! by an answer, by hanging up or by stopping a ring, is its business.

mod blk;
mod chains;
mod frames;
mod lines;
mod messages;
mod packed;
mod raw;
mod rig;
mod rings;
mod scsi;
mod sharing;

use std::fs::File;
use std::time::{Duration, Instant};

use super::args::{Abuse, Options, Socket};
use super::error::{GuestError, io};
use super::jobs::Pinger;
use super::link::{Rings, Wanted};
use super::machine::{self, Machine};
use super::report::{Abused, Clock, Details, Report};
use super::storage::args::DiskOptions;
use super::storage::{self, Language};
use super::tether::{connected, endpoint};
use crate::signals::Shutdown;
use raw::Raw;
use vvu::socket::Endpoint;

/// How long a back-end may take to send a first frame back, if it is one that does.
const ECHO: Duration = Duration::from_millis(500);

/// Something bad to do.
struct Deed {
    name: &'static str,
    what: &'static str,
    act: fn(&mut Scene<'_>) -> Result<(), GuestError>,
}

/// What the back-end is there for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Device<'a> {
    Card,
    Disk(Language, &'a DiskOptions),
}

impl Device<'_> {
    /// All deeds, in the order of a connection's life.
    fn deeds(self) -> impl Iterator<Item = &'static Deed> {
        let own = match self {
            Self::Card => frames::DEEDS,
            Self::Disk(Language::Blk, _) => blk::DEEDS,
            Self::Disk(Language::Scsi(_), _) => scsi::DEEDS,
        };
        [
            lines::DEEDS,
            messages::DEEDS,
            rings::DEEDS,
            packed::DEEDS,
            sharing::DEEDS,
            own,
        ]
        .into_iter()
        .flatten()
    }

    /// The features and the rings to ask for.
    fn wanted(self, options: &Options) -> Wanted {
        match self {
            Self::Card => Wanted {
                rings: Rings::pairs(1),
                ..machine::wanted(options)
            },
            Self::Disk(language, disk) => {
                // Deeds take two rings at least.
                let least = 2u64.saturating_sub(language.others()) as u16;
                let disk = DiskOptions {
                    queues: disk.queues.max(least),
                    inflight: false,
                    ..disk.clone()
                };
                language.wanted(options, &disk)
            }
        }
    }

    /// Bytes of memory besides rings and buffers. For a disk, so many that a few pieces of them
    /// are more than 32 bits can count; nobody touches them.
    fn more_memory(self) -> usize {
        match self {
            Self::Card => 1 << 20,
            Self::Disk(..) => 1 << 28,
        }
    }
}

/// Says what there is.
pub(super) fn list(device: Device<'_>) {
    for deed in device.deeds() {
        println!("{:<28} {}", deed.name, deed.what);
    }
}

/// Where deeds are done.
struct Scene<'a> {
    socket: &'a Socket,
    device: Device<'a>,
    options: Options,
    shutdown: &'a Shutdown,
    endpoint: Endpoint,
    rng: fastrand::Rng,
    /// How long the memory's file was, if it has a name: some deeds change that.
    file_len: Option<u64>,
    /// Whether frames come back; unknown before the first honest connection.
    echoes: Option<bool>,
}

impl Scene<'_> {
    /// The endpoint, with a connection to be had at once.
    fn fresh(&mut self) -> Result<(), GuestError> {
        if !self.socket.server {
            self.endpoint = endpoint(self.socket)?;
        }
        if let (Some(path), Some(len)) = (&self.options.memory_file, self.file_len) {
            let file = File::options().write(true).open(path);
            let restored = file.and_then(|file| file.set_len(len));
            restored.map_err(io("restore the memory's file"))?;
        }
        Ok(())
    }

    /// A connection on which nothing was said.
    fn connect(&mut self) -> Result<Raw, GuestError> {
        let deadline = Instant::now() + Duration::from_secs(self.options.timeout);
        self.fresh()?;
        let (endpoint, options) = (&mut self.endpoint, &self.options);
        let socket = connected(endpoint, self.socket, options, self.shutdown, deadline)?;
        Raw::new(socket)
    }

    /// Is an honest front-end for a moment.
    fn be_honest(&mut self) -> Result<(), GuestError> {
        self.fresh()?;
        if let Device::Disk(language, disk) = self.device {
            let given = (&self.options, disk);
            let (endpoint, shutdown) = (&mut self.endpoint, self.shutdown);
            return storage::be_honest(self.socket, endpoint, given, language, shutdown);
        }
        let expected = self.echoes;
        let (endpoint, options) = (&mut self.endpoint, &self.options);
        let mut machine = Machine::start(self.socket, endpoint, options, self.shutdown)?;
        let mut clock = Clock::new(false, false);
        let mut pinger = Pinger::new(fastrand::u64(..), &machine);
        let patience = match expected {
            Some(true) => machine.timeout(),
            _ => ECHO,
        };
        let echoes = match expected {
            Some(false) => false,
            _ => pinger.call(&mut machine, &mut clock, patience)?,
        };
        // More than the ring holds, so that all of it was used.
        for _ in 0..2 * options.queue_size {
            if !pinger.cast(&mut machine)? {
                break;
            }
        }
        machine.drain()?;
        if expected == Some(true) && !echoes && !self.shutdown.raised() {
            return Err(GuestError::Mute);
        }
        self.echoes.get_or_insert(echoes);
        machine.stop()
    }
}

/// Does what was asked for. Returns what was wrong with the back-end, if anything.
pub(super) fn run(
    socket: &Socket,
    device: Device<'_>,
    options: &Options,
    abuse: &Abuse,
    shutdown: &Shutdown,
    report: &mut Report,
) -> Result<Option<String>, GuestError> {
    let mut chosen = Vec::new();
    for name in &abuse.names {
        match device.deeds().find(|deed| deed.name == name) {
            Some(deed) => chosen.push(deed),
            None => unknown(name),
        }
    }
    if abuse.all {
        chosen.extend(device.deeds());
    }
    let mut scene = Scene {
        socket,
        device,
        options: Options {
            queue_size: options.queue_size.min(64),
            reconnect: false,
            ..options.clone()
        },
        shutdown,
        endpoint: endpoint(socket)?,
        rng: fastrand::Rng::with_seed(1),
        file_len: None,
        echoes: None,
    };
    let clock = Clock::new(false, false);
    if let Some(path) = &options.memory_file {
        let found = std::fs::metadata(path).map_err(io("look at the memory's file"))?;
        scene.file_len = Some(found.len());
    }
    // A back-end that is no good before cannot be judged by how it is after.
    scene.be_honest()?;
    let mut abused = Abused {
        echoes: scene.echoes == Some(true),
        ..Abused::default()
    };
    for deed in chosen {
        if shutdown.raised() {
            break;
        }
        let outcome = perform(&mut scene, deed);
        if !options.json {
            let outcome = outcome.as_ref().err().map(ToString::to_string);
            println!("{:<28} {}", deed.name, outcome.as_deref().unwrap_or("ok"));
        }
        abused.done += 1;
        if let Err(why) = &outcome {
            let failed = (deed.name.to_owned(), why.to_string());
            abused.failed.push(failed);
        }
        if let Err(GuestError::NoBackEnd { .. }) = outcome {
            // Nothing can be learnt of a back-end that is no more.
            break;
        }
    }
    report.total = clock.total(Default::default(), Default::default());
    report.connections = abused.done;
    let names: Vec<_> = abused
        .failed
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let failure =
        (!names.is_empty()).then(|| format!("not served afterwards: {}", names.join(", ")));
    report.details = Details::Abuse(abused);
    Ok(failure)
}

/// Does one thing, then looks whether others are still served.
fn perform(scene: &mut Scene<'_>, deed: &Deed) -> Result<(), GuestError> {
    let done = (deed.act)(scene);
    scene.be_honest()?;
    done
}

/// A name that is not in the list is a mistake on the command line.
fn unknown(name: &str) -> ! {
    use clap::CommandFactory;
    let kind = clap::error::ErrorKind::InvalidValue;
    let text = format!("--name {name}: there is no such deed; see --list");
    crate::args::Args::command().error(kind, text).exit()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::guest::storage::Unit;

    #[test]
    fn every_deed_has_a_name_of_its_own() {
        let unit = Unit { target: 0, lun: 0 };
        let disk = DiskOptions::default();
        for device in [
            Device::Card,
            Device::Disk(Language::Blk, &disk),
            Device::Disk(Language::Scsi(unit), &disk),
        ] {
            let names: BTreeSet<_> = device.deeds().map(|deed| deed.name).collect();
            assert_eq!(names.len(), device.deeds().count());
            assert!(names.len() > 50, "{device:?}");
        }
    }
}
