//! `--port`: one small language for everything that can be a port of the switch.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use vvu::pci::Address;

use crate::args::RuleName;
use crate::rules::RuleSpec;

/// A MAC address, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Mac {
    /// The address `n` further on.
    pub(crate) fn plus(self, n: u64) -> Self {
        let [a, b, c, d, e, f] = self.0;
        let number = u64::from_be_bytes([0, 0, a, b, c, d, e, f]).wrapping_add(n);
        let [_, _, mac @ ..] = number.to_be_bytes();
        Self(mac)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a MAC address such as 52:54:00:12:34:56");
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or_else(bad)?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(format!(
                "{text} cannot be a device's address: it is a group or zero"
            ));
        }
        Ok(Self(mac))
    }
}

/// What is at the other side of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A virtio-net device served through a VVU function.
    Vvu {
        address: Address,
        rule: Option<RuleName>,
        device: Device,
    },
    /// A virtio-net device served through a VVU function that another process has.
    VfioUser {
        path: PathBuf,
        rule: Option<RuleName>,
        device: Device,
    },
    /// A virtio-net device served through a socket.
    Unix {
        path: PathBuf,
        client: bool,
        device: Device,
    },
    /// Drops everything.
    Null,
    /// Makes frames of `size` bytes.
    Generator { size: u16 },
    /// Sends everything back.
    Echo { swap: bool },
}

/// Options of a virtio-net device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u16,
    pub(crate) pairs: u16,
    pub(crate) speed: u32,
    pub(crate) control: bool,
}

impl Device {
    /// Number of virtqueues.
    pub(crate) fn queues(&self) -> u16 {
        2 * self.pairs + u16::from(self.control)
    }
}

const DEFAULT_MTU: u16 = 9000;
const DEFAULT_PAIRS: u16 = 8;
/// In Mbit/s.
const DEFAULT_SPEED: u32 = 10_000;

/// One `--port`, parsed, with its own text as its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortSpec {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) rules: RuleSpec,
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| {
            format!(
                "{text:?} has no kind; write vvu:BDF, vfio-user:PATH, unix:PATH, null:, gen: or \
                 echo:"
            )
        })?;
        let mut parts = rest.split(',');
        let target = parts.next().unwrap_or_default();
        let mut options = Options::new(parts)?;
        let (name, kind) = match scheme {
            "vvu" => {
                let address: Address = target.parse().map_err(|error| format!("{error}"))?;
                let rule = options.take("rule", |value| RuleName::from_str(value, true))?;
                let device = options.device()?;
                (
                    format!("vvu:{address}"),
                    Kind::Vvu {
                        address,
                        rule,
                        device,
                    },
                )
            }
            "vfio-user" => {
                if target.is_empty() {
                    return Err(
                        "vfio-user: needs the path of a socket, as in vfio-user:/run/a.vfio".into(),
                    );
                }
                let rule = options.take("rule", |value| RuleName::from_str(value, true))?;
                let device = options.device()?;
                let path = PathBuf::from(target);
                (
                    format!("vfio-user:{target}"),
                    Kind::VfioUser { path, rule, device },
                )
            }
            "unix" => {
                if target.is_empty() {
                    return Err("unix: needs the path of a socket, as in unix:/run/a.sock".into());
                }
                let client = options.flag("client")?;
                let device = options.device()?;
                let path = PathBuf::from(target);
                (
                    format!("unix:{target}"),
                    Kind::Unix {
                        path,
                        client,
                        device,
                    },
                )
            }
            "null" | "gen" | "echo" => {
                // These have no target: what follows the colon are options.
                options = Options::new(rest.split(',').filter(|part| !part.is_empty()))?;
                let kind = match scheme {
                    "null" => Kind::Null,
                    "gen" => Kind::Generator {
                        size: options
                            .take("size", |v| number(v, 60..=9018))?
                            .unwrap_or(64),
                    },
                    _ => Kind::Echo {
                        swap: options.flag("swap")?,
                    },
                };
                (scheme.to_owned(), kind)
            }
            _ => {
                return Err(format!(
                    "{scheme:?} is not a kind of port; there are vvu, vfio-user, unix, null, gen \
                     and echo"
                ));
            }
        };
        let rules = RuleSpec::take(&mut options)?;
        options.finish(scheme)?;
        Ok(Self { name, kind, rules })
    }
}

fn number<T>(text: &str, range: std::ops::RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(format!(
            "{text:?} is not a number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// What follows the target: `key=value` and `flag`, each at most once.
pub(crate) struct Options<'a>(Vec<(&'a str, Option<&'a str>)>);

impl<'a> Options<'a> {
    pub(crate) fn new(parts: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut options: Vec<(&str, Option<&str>)> = Vec::new();
        for part in parts {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            if options.iter().any(|(other, _)| *other == key) {
                return Err(format!("option {key:?} is given twice"));
            }
            options.push((key, value));
        }
        Ok(Self(options))
    }

    fn remove(&mut self, key: &str) -> Option<Option<&'a str>> {
        let at = self.0.iter().position(|(other, _)| *other == key)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<bool, String> {
        match self.remove(key) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(value)) => Err(format!("option {key} takes no value, but has {value:?}")),
        }
    }

    pub(crate) fn take<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        match self.remove(key) {
            None => Ok(None),
            Some(None) => Err(format!("option {key} needs a value, as in {key}=...")),
            Some(Some(value)) => parse(value)
                .map(Some)
                .map_err(|error| format!("option {key}: {error}")),
        }
    }

    fn device(&mut self) -> Result<Device, String> {
        let control = self.flag("control")?;
        // A kick names its queue in a byte.
        let most = if control { 127 } else { 128 };
        Ok(Device {
            mac: self.take("mac", str::parse)?,
            mtu: self
                .take("mtu", |v| number(v, 68..=9216))?
                .unwrap_or(DEFAULT_MTU),
            pairs: self
                .take("pairs", |v| number(v, 1..=most))?
                .unwrap_or(DEFAULT_PAIRS),
            speed: self
                .take("speed", |v| number(v, 1..=1_000_000))?
                .unwrap_or(DEFAULT_SPEED),
            control,
        })
    }

    pub(crate) fn finish(self, scheme: &str) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("a {scheme}: port has no option {key:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_of_port() {
        let device = Device {
            mac: None,
            mtu: DEFAULT_MTU,
            pairs: DEFAULT_PAIRS,
            speed: DEFAULT_SPEED,
            control: false,
        };
        assert_eq!(
            parse("unix:/run/a.sock,client,mtu=1500,pairs=2,speed=100000,control,mac=52:54:00:00:00:01").kind,
            Kind::Unix {
                path: "/run/a.sock".into(),
                client: true,
                device: Device {
                    mac: Some(Mac([0x52, 0x54, 0, 0, 0, 1])),
                    mtu: 1500,
                    pairs: 2,
                    speed: 100_000,
                    control: true,
                },
            }
        );
        let vvu = parse("vvu:00:05.0,rule=packed");
        assert_eq!(vvu.name, "vvu:0000:00:05.0");
        assert_eq!(
            vvu.kind,
            Kind::Vvu {
                address: "0000:00:05.0".parse().unwrap(),
                rule: Some(RuleName::Packed),
                device
            }
        );
        assert_eq!(
            parse("vfio-user:/run/a.vfio,rule=told").kind,
            Kind::VfioUser {
                path: "/run/a.vfio".into(),
                rule: Some(RuleName::Told),
                device
            }
        );
        assert_eq!(parse("null:").kind, Kind::Null);
        assert_eq!(parse("gen:").kind, Kind::Generator { size: 64 });
        assert_eq!(parse("gen:size=1518").kind, Kind::Generator { size: 1518 });
        assert_eq!(parse("echo:swap").kind, Kind::Echo { swap: true });
    }

    #[test]
    fn bad_ports_are_refused_with_a_reason() {
        for (text, reason) in [
            ("eth0", "has no kind"),
            ("tap:0", "not a kind of port"),
            ("unix:", "needs the path"),
            ("unix:/a,clinet", "no option \"clinet\""),
            ("unix:/a,client=yes", "takes no value"),
            ("unix:/a,mtu=1,mtu=2", "given twice"),
            ("unix:/a,mtu", "needs a value"),
            ("unix:/a,mtu=67", "68 to 9216"),
            ("unix:/a,pairs=0", "1 to 128"),
            ("unix:/a,control,pairs=128", "1 to 127"),
            ("unix:/a,speed=0", "1 to 1000000"),
            ("unix:/a,mac=1:2:3", "not a MAC address"),
            ("unix:/a,mac=01:00:00:00:00:00", "group"),
            ("unix:/a,rule=q", "no option \"rule\""),
            ("vfio-user:", "needs the path"),
            ("vfio-user:/a,client", "no option \"client\""),
            ("vvu:5", "5"),
            ("vvu:00:05.0,rule=x", "rule"),
            ("gen:size=20", "60 to 9018"),
            ("null:vlan=5,trunk=6", "either"),
            ("null:x", "no option \"x\""),
        ] {
            let error = text.parse::<PortSpec>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_count_up_over_bytes() {
        assert_eq!(Mac([2, 0, 0, 0, 0, 0xff]).plus(1), Mac([2, 0, 0, 0, 1, 0]));
    }
}
