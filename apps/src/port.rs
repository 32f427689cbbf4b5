//! `--port`: one small language for everything that can be a port of the switch.

use std::path::PathBuf;
use std::str::FromStr;

use vvu_pmd::port::capture::FileConfig;
use vvu_pmd::port::uplink::{TapConfig, XdpConfig, XdpMode};

use crate::neighbour::Neighbour;
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
    /// A virtio-net device, and where its front-end is.
    Card { at: Neighbour, device: Device },
    /// Drops everything.
    Null,
    /// Makes frames of `size` bytes.
    Generator { size: u16 },
    /// Sends everything back.
    Echo { swap: bool },
    /// A TAP interface.
    Tap(TapConfig),
    /// An interface through a packet socket.
    Packet(String),
    /// A queue of an interface through an AF_XDP socket.
    Xdp(XdpConfig),
    /// Files of frames.
    Pcap(FileConfig),
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
                "{text:?} has no kind; write vvu:BDF, vfio-user:PATH, unix:PATH, tap:NAME, \
                 packet:NAME, xdp:NAME, pcap:, null:, gen: or echo:"
            )
        })?;
        let mut parts = rest.split(',');
        let target = parts.next().unwrap_or_default();
        let mut options = Options::new(parts)?;
        let (name, kind) = match scheme {
            "vvu" | "vfio-user" | "unix" => {
                let (name, at) = Neighbour::take(scheme, target, &mut options)?
                    .ok_or_else(|| format!("{scheme:?} is not a kind of port"))?;
                let device = options.device()?;
                (name, Kind::Card { at, device })
            }
            "tap" | "packet" | "xdp" => {
                if target.is_empty() {
                    return Err(format!(
                        "{scheme}: needs the name of an interface, as in {scheme}:eth1"
                    ));
                }
                (
                    format!("{scheme}:{target}"),
                    uplink(scheme, target, &mut options)?,
                )
            }
            "pcap" => {
                options = Options::new(rest.split(',').filter(|part| !part.is_empty()))?;
                let config = FileConfig {
                    input: options.take("in", path)?,
                    output: options.take("out", path)?,
                    repeat: options.flag("loop")?,
                };
                if config.input.is_none() && config.output.is_none() {
                    return Err("pcap: needs a file, as in pcap:in=FILE or pcap:out=FILE".into());
                }
                if config.input.is_none() && config.repeat {
                    return Err("option loop is for in=FILE, which is not there".into());
                }
                ("pcap".to_owned(), Kind::Pcap(config))
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
                    "{scheme:?} is not a kind of port; there are vvu, vfio-user, unix, tap, \
                     packet, xdp, pcap, null, gen and echo"
                ));
            }
        };
        let rules = RuleSpec::take(&mut options)?;
        options.finish(&format!("{scheme}: port"))?;
        Ok(Self { name, kind, rules })
    }
}

/// A port to the kernel.
fn uplink(scheme: &str, target: &str, options: &mut Options<'_>) -> Result<Kind, String> {
    let name = target.to_owned();
    Ok(match scheme {
        "tap" => Kind::Tap(TapConfig {
            name,
            queues: options
                .take("queues", |v| number(v, 1..=TapConfig::MAX_QUEUES))?
                .unwrap_or(1),
            mtu: options.take("mtu", |v| number(v, 68..=9216))?,
        }),
        "packet" => Kind::Packet(name),
        _ => Kind::Xdp(XdpConfig {
            name,
            queue: options.take("queue", |v| number(v, 0..=1023))?.unwrap_or(0),
            mode: options
                .take("mode", |value| match value {
                    "auto" => Ok(XdpMode::Auto),
                    "copy" => Ok(XdpMode::Copy),
                    "zerocopy" => Ok(XdpMode::ZeroCopy),
                    _ => Err(format!("{value:?} is none of auto, copy and zerocopy")),
                })?
                .unwrap_or(XdpMode::Auto),
        }),
    })
}

/// A file's path.
pub(crate) fn path(text: &str) -> Result<PathBuf, String> {
    match text.is_empty() {
        true => Err("a file's path cannot be empty".into()),
        false => Ok(text.into()),
    }
}

pub(crate) fn number<T>(text: &str, range: std::ops::RangeInclusive<T>) -> Result<T, String>
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

    /// The first that nobody has taken.
    pub(crate) fn first(&self) -> Option<&'a str> {
        self.0.first().map(|(key, _)| *key)
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

    /// `key`, `key=on` or `key=off`.
    pub(crate) fn switch(&mut self, key: &str) -> Result<Option<bool>, String> {
        match self.remove(key) {
            None => Ok(None),
            Some(None | Some("on")) => Ok(Some(true)),
            Some(Some("off")) => Ok(Some(false)),
            Some(Some(value)) => Err(format!("option {key} is on or off, and not {value:?}")),
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

    /// `what` has no other option.
    pub(crate) fn finish(self, what: &str) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("a {what} has no option {key:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::args::RuleName;

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
            Kind::Card {
                at: Neighbour::Unix {
                    path: "/run/a.sock".into(),
                    client: true,
                },
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
            Kind::Card {
                at: Neighbour::Vvu {
                    address: "0000:00:05.0".parse().unwrap(),
                    rule: Some(RuleName::Packed),
                },
                device
            }
        );
        assert_eq!(
            parse("vfio-user:/run/a.vfio,rule=told").kind,
            Kind::Card {
                at: Neighbour::VfioUser {
                    path: "/run/a.vfio".into(),
                    rule: Some(RuleName::Told),
                },
                device
            }
        );
        assert_eq!(parse("null:").kind, Kind::Null);
        assert_eq!(parse("gen:").kind, Kind::Generator { size: 64 });
        assert_eq!(parse("gen:size=1518").kind, Kind::Generator { size: 1518 });
        assert_eq!(parse("echo:swap").kind, Kind::Echo { swap: true });
        let tap = TapConfig {
            name: "vm0".into(),
            queues: 4,
            mtu: Some(1500),
        };
        assert_eq!(parse("tap:vm0,queues=4,mtu=1500").kind, Kind::Tap(tap));
        assert_eq!(parse("packet:eth1").kind, Kind::Packet("eth1".into()));
        assert_eq!(parse("packet:eth1").name, "packet:eth1");
        let xdp = XdpConfig {
            name: "eth1".into(),
            queue: 3,
            mode: XdpMode::ZeroCopy,
        };
        assert_eq!(parse("xdp:eth1,mode=zerocopy,queue=3").kind, Kind::Xdp(xdp));
        let files = FileConfig {
            input: Some("/tmp/a.pcap".into()),
            output: Some("b=c".into()),
            repeat: true,
        };
        assert_eq!(
            parse("pcap:in=/tmp/a.pcap,loop,out=b=c").kind,
            Kind::Pcap(files)
        );
    }

    #[test]
    fn bad_ports_are_refused_with_a_reason() {
        for (text, reason) in [
            ("eth0", "has no kind"),
            ("eth:0", "not a kind of port"),
            ("tap:", "name of an interface"),
            ("tap:a,queues=0", "1 to 256"),
            ("tap:a,pairs=2", "no option \"pairs\""),
            ("packet:eth1,queue=1", "no option \"queue\""),
            ("xdp:eth1,mode=fast", "auto, copy and zerocopy"),
            ("xdp:eth1,queue=x", "0 to 1023"),
            ("pcap:", "needs a file"),
            ("pcap:a.pcap", "needs a file"),
            ("pcap:in=", "cannot be empty"),
            ("pcap:out=a,loop", "in=FILE"),
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
