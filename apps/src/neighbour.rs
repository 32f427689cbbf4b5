//! Where a front-end is: what the `--port` of every kind of device begins with.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use vvu::pci::Address;
use vvu::transport::Transport;
use vvu::transport::tracer::Tracer;
use vvu::transport::unix::UnixTransport;
use vvu::transport::vvu::VvuTransport;
use vvu::vfio_user::VfioUserFunction;

use crate::args::RuleName;
use crate::pci;
use crate::port::Options;

/// Where a front-end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// Behind a VVU function.
    Vvu {
        address: Address,
        rule: Option<RuleName>,
    },
    /// Behind a VVU function that another process has.
    VfioUser {
        path: PathBuf,
        rule: Option<RuleName>,
    },
    /// At the other end of a socket.
    Unix { path: PathBuf, client: bool },
}

/// How to reach front-ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    /// Print every message.
    pub(crate) trace: bool,
    /// Drive functions although interrupts cannot be remapped.
    pub(crate) unsafe_interrupts: bool,
}

impl Neighbour {
    /// From a port's scheme and target; what is its own among the options is taken. Also the
    /// port's name. `None` if the scheme is another one.
    pub(crate) fn take(
        scheme: &str,
        target: &str,
        options: &mut Options<'_>,
    ) -> Result<Option<(String, Self)>, String> {
        let path = |example: &str| match target.is_empty() {
            true => Err(format!(
                "{scheme}: needs the path of a socket, as in {scheme}:{example}"
            )),
            false => Ok(PathBuf::from(target)),
        };
        let rule = |value: &str| RuleName::from_str(value, true);
        Ok(Some(match scheme {
            "vvu" => {
                let address = Address::from_str(target).map_err(|error| format!("{error}"))?;
                let rule = options.take("rule", rule)?;
                (format!("vvu:{address}"), Self::Vvu { address, rule })
            }
            "vfio-user" => {
                let path = path("/run/a.vfio")?;
                let rule = options.take("rule", rule)?;
                (format!("vfio-user:{target}"), Self::VfioUser { path, rule })
            }
            "unix" => {
                let path = path("/run/a.sock")?;
                let client = options.flag("client")?;
                (format!("unix:{target}"), Self::Unix { path, client })
            }
            _ => return Ok(None),
        }))
    }

    /// A port of a device that is always a front-end's: its name, where it is, and the options that
    /// are left. Also the scheme, for messages.
    pub(crate) fn port(text: &str) -> Result<(&str, String, Self, Options<'_>), String> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            format!("{text:?} has no kind; write vvu:BDF, vfio-user:PATH or unix:PATH")
        })?;
        let mut parts = rest.split(',');
        let target = parts.next().unwrap_or_default();
        let mut options = Options::new(parts)?;
        match Self::take(scheme, target, &mut options)? {
            Some((name, at)) => Ok((scheme, name, at, options)),
            None => Err(format!(
                "{scheme:?} is not a kind of port; there are vvu, vfio-user and unix"
            )),
        }
    }

    /// A transport to front-ends there, for a device with so many queues.
    pub(crate) fn transport(
        &self,
        queues: u16,
        reach: Reach,
    ) -> anyhow::Result<Box<dyn Transport>> {
        let transport: Box<dyn Transport> = match self {
            Self::Unix {
                path,
                client: false,
            } => Box::new(UnixTransport::listen(path)?),
            Self::Unix { path, client: true } => Box::new(UnixTransport::connect(path)?),
            Self::Vvu { address, rule } => {
                let function = pci::take(*address, reach.unsafe_interrupts)?;
                Box::new(VvuTransport::new(pci::open(function, *rule, queues)?))
            }
            Self::VfioUser { path, rule } => {
                let function = Box::new(VfioUserFunction::connect(path)?);
                Box::new(VvuTransport::new(pci::open(function, *rule, queues)?))
            }
        };
        Ok(match reach.trace {
            true => Box::new(Tracer::new(transport, std::io::stderr())),
            false => transport,
        })
    }
}
