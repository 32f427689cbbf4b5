//! PCI addresses: `0000:00:05.0`, or `00:05.0` for domain 0.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Where a PCI function is: domain, bus, device, function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Domain (segment). Linux shows 16 bits, and 32 behind some host bridges.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// Text that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a PCI address; write it as 0000:00:05.0 or 00:05.0, in hexadecimal")]
pub struct BadAddress(pub String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        parse(text).ok_or_else(|| BadAddress(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Address> {
    let (rest, function) = text.split_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = match rest.split_once(':') {
        Some((domain, bus)) => (hex(domain, 8)?, bus),
        None => (0, rest),
    };
    let device = hex(device, 2).filter(|device| *device < 32)?;
    let function = hex(function, 1).filter(|function| *function < 8)?;
    Some(Address {
        domain,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(device).ok()?,
        function: u8::try_from(function).ok()?,
    })
}

/// One to `most` hexadecimal digits; `from_str_radix` alone would take a sign, too.
fn hex(digits: &str, most: usize) -> Option<u32> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (plain && digits.len() <= most)
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_round_trip() {
        let long: Address = "0000:00:05.0".parse().unwrap();
        assert_eq!("00:05.0".parse(), Ok(long));
        assert_eq!("0:5.0".parse(), Ok(long));
        assert_eq!(long.to_string(), "0000:00:05.0");
        let far: Address = "10000:e1:1f.7".parse().unwrap();
        assert_eq!(
            (far.domain, far.bus, far.device, far.function),
            (0x10000, 0xe1, 0x1f, 7)
        );
        assert_eq!(far.to_string().parse(), Ok(far));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            ".",
            ":.",
            "05.0",
            "00:05",
            "00:20.0",
            "00:05.8",
            "00:05.00",
            "100:05.0",
            "+0:05.0",
            "0000:00:05.0 ",
            "0:0:0:5.0",
            "g0:05.0",
            "00::05.0",
            "100000000:00:05.0",
        ] {
            assert_eq!(text.parse::<Address>(), Err(BadAddress(text.to_owned())));
        }
    }
}
