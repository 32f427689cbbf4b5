//! `vvu device`: a VVU function in software, served to whoever connects.

use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use vvu::model::{FrontEnd, Model, ModelStatus, Server, ServerStatus, Shape};
use vvu::session::StopSignal;

use crate::READY;
use crate::signals::Shutdown;

/// Smallest memory window that a function can have.
const LEAST_WINDOW: u64 = 2 << 20;

pub(crate) const EXAMPLES: &str = "\
Examples:
  A neighbour with its memory in a file, and the function for a VM without patches:
    qemu-system-x86_64 -object memory-backend-file,id=m,mem-path=/dev/shm/n,size=1G,share=on \\
      -machine q35,memory-backend=m -chardev socket,id=c,path=/run/n.sock,reconnect-ms=1000 \\
      -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n ...
    vvu device --vfio-user /run/n.vfio --vhost-user /run/n.sock --peer-memory /dev/shm/n
    qemu-system-x86_64 -device \\
      '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/n.vfio\"}}' ...

  The same function driven on this host:
    vvu net --port vfio-user:/run/n.vfio --port ...

The VM that gets the function needs shared memory, too (share=on).";

#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Socket for the VMM, or `vvu net`, that gets the function: listen at PATH
    #[arg(long, value_name = "PATH")]
    vfio_user: PathBuf,

    /// Socket for the neighbour's VMM: listen at PATH, or connect to it
    #[arg(long, value_name = "PATH[,client]")]
    vhost_user: FrontEndArg,

    /// Where the neighbour's memory is: the file of its memory-backend-file. It has to be there
    /// at start, because a VMM cannot be given a file later
    #[arg(long, value_name = "FILE")]
    peer_memory: Option<PathBuf>,

    /// Uuid of the function, by which drivers can tell it from others
    #[arg(long)]
    uuid: Option<Uuid>,

    /// Most rings that a front-end can have, two for each queue pair. Default: as the dialect's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_queues: Option<u16>,

    /// Size of the memory window, such as 4G; a power of two. Default: that of the peer's memory,
    /// or as the dialect's
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    window: Option<u64>,

    /// Whose device to be like (see docs/device.md)
    #[arg(long, value_enum, default_value_t = DialectName::Ours)]
    dialect: DialectName,
}

/// Names of the dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DialectName {
    /// This project's device.
    Ours,
    /// The prototype of 2019.
    Prototype,
    /// Its port of 2022.
    Port2022,
    /// crosvm's device.
    Crosvm,
}

/// `PATH` or `PATH,client`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FrontEndArg(FrontEnd);

impl FromStr for FrontEndArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, option) = match text.split_once(',') {
            Some((path, option)) => (path, Some(option)),
            None => (text, None),
        };
        if path.is_empty() {
            return Err("there is no path".into());
        }
        match option {
            None => Ok(Self(FrontEnd::Listen(path.into()))),
            Some("client") => Ok(Self(FrontEnd::Connect(path.into()))),
            Some(other) => Err(format!(
                "there is no option {other:?}; ,client connects to the path instead of listening"
            )),
        }
    }
}

/// A uuid in RFC 4122's notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Uuid([u8; 16]);

impl FromStr for Uuid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not like 01234567-89ab-cdef-0123-456789abcdef");
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return Err(bad());
        }
        let digits = groups.concat();
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let number = u128::from_str_radix(&digits, 16).map_err(|_| bad())?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// A number of bytes, as people write it.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size such as 512M or 4G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..) {
        Some("" | "B") => 0,
        Some("K" | "k") => 10,
        Some("M" | "m") => 20,
        Some("G" | "g") => 30,
        Some("T" | "t") => 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number
        .checked_mul(1 << shift)
        .filter(|size| *size > 0)
        .ok_or_else(bad)
}

/// Runs until a signal says to stop.
pub(crate) fn run(args: &DeviceArgs) -> anyhow::Result<()> {
    let shutdown = Shutdown::new()?;
    let model = model(args)?;
    let server = Server::listen(&args.vfio_user, model.clone()).context("the vfio-user socket")?;
    if !server.is_mappable() {
        warn_of_window(args);
    }
    let stop = StopSignal::new().context("cannot make an event descriptor")?;
    let thread = {
        let stop = stop.clone();
        std::thread::Builder::new()
            .name("vvu-server".into())
            .spawn(move || server.run(std::os::fd::AsFd::as_fd(&stop)))
            .context("cannot start a thread")?
    };
    tracing::info!(
        vfio_user = %args.vfio_user.display(),
        bar = model.memory_bar(),
        window = format!("{:#x}", model.bar_size(model.memory_bar())),
        "{READY}"
    );
    shutdown.wait(None);
    tracing::info!("stopping");
    stop.raise();
    let Ok(served) = thread.join() else {
        bail!("the server ended by a panic");
    };
    println!("{}", summary(&served, &model.status()));
    Ok(())
}

fn model(args: &DeviceArgs) -> anyhow::Result<Model> {
    let mut shape = match args.dialect {
        DialectName::Ours => Shape::ours(),
        DialectName::Prototype => Shape::prototype(0x1058),
        DialectName::Port2022 => Shape::prototype(0x106b),
        DialectName::Crosvm => Shape::crosvm(),
    };
    if let Some(Uuid(uuid)) = args.uuid {
        shape.uuid = uuid;
    }
    if let Some(rings) = args.max_queues {
        shape.rings = rings.into();
        shape.vectors = 3 + rings;
    }
    let peer = match &args.peer_memory {
        None => None,
        Some(path) => {
            let file = File::options().read(true).write(true).open(path);
            let file = file.with_context(|| format!("--peer-memory {}", path.display()))?;
            let len = file.metadata().map_or(0, |metadata| metadata.len());
            shape.window = len.next_power_of_two().max(LEAST_WINDOW);
            Some(file)
        }
    };
    if let Some(window) = args.window {
        shape.window = window;
    }
    let FrontEndArg(front_end) = args.vhost_user.clone();
    Ok(match peer {
        Some(file) => Model::with_peer_memory(shape, front_end, file.into())?,
        None => Model::new(shape, front_end)?,
    })
}

/// A client cannot be handed a file later, so what it cannot map now it never can.
fn warn_of_window(args: &DeviceArgs) {
    if args.peer_memory.is_none() {
        tracing::warn!(
            "without --peer-memory nobody can map the memory window, which a driver needs: give \
             the file of the neighbour's memory (in QEMU memory-backend-file,share=on)"
        );
    } else {
        tracing::warn!(
            "this dialect has registers in front of its memory window, so that nobody can map it \
             over vfio-user; use another --dialect"
        );
    }
}

fn summary(served: &ServerStatus, model: &ModelStatus) -> String {
    let counters = &model.counters;
    let mut text = format!(
        "vfio-user: {} clients, {} turned away, {} commands, {} refused, {} dropped; \
         vhost-user: {} connections, {} messages to the driver, {} from it, {} refused, \
         {} dropped, {} channels lost, {} kicks, {} doorbells",
        served.clients,
        served.turned_away,
        served.commands,
        served.refused,
        served.violations,
        model.generation,
        counters.delivered,
        counters.sent,
        counters.refused,
        counters.violations,
        counters.channels_lost,
        counters.kicks,
        counters.doorbells,
    );
    for (who, refusal) in [
        ("vfio-user", &served.last_refusal),
        ("vhost-user", &model.last_refusal),
    ] {
        if let Some(refusal) = refusal {
            text += &format!("\nlast refusal, {who}: {refusal}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("4096", 4096),
            ("2M", 2 << 20),
            ("4G", 4 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), size);
        }
        for bad in ["", "G", "4GiB", "4.5G", "-1", "0", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn uuids() {
        let uuid: Uuid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(
            uuid.0.map(|byte| byte >> 4),
            std::array::from_fn(|i| i as u8)
        );
        for bad in [
            "",
            "0011223344556677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeefg",
            "+0112233-4455-6677-8899-aabbccddeeff",
        ] {
            assert!(bad.parse::<Uuid>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn front_ends() {
        let parse = |text: &str| text.parse::<FrontEndArg>().map(|arg| arg.0);
        assert_eq!(parse("/a").unwrap(), FrontEnd::Listen("/a".into()));
        assert_eq!(parse("/a,client").unwrap(), FrontEnd::Connect("/a".into()));
        for bad in ["", ",client", "/a,server", "/a,client,x"] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
