//! Options of every kind of disk: what stands between it and who uses it.

use std::sync::Arc;
use std::time::Duration;

use vvu_pmd::bdev::{Delay, Disk, Faulty, Plan, Rates, ReadOnly, Throttle, Volatile};

use crate::port::{Options, number};

/// What a throttle saves up if nothing else is wanted.
const DEFAULT_BURST: Duration = Duration::from_millis(100);

/// What stands before a disk, from the disk outwards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Before {
    /// Bytes of a cache that power loss empties.
    volatile: Option<u64>,
    fail: Option<Plan>,
    /// Least and most.
    delay: Option<(Duration, Duration)>,
    rates: Option<Rates>,
    read_only: bool,
}

impl Before {
    /// Takes what is for us out of `options`.
    pub(super) fn take(options: &mut Options<'_>) -> Result<Self, String> {
        let requests = options.take("iops", |v| number(v, 1..=1_000_000_000))?;
        let megabytes: Option<u64> = options.take("mbps", |v| number(v, 1..=1_000_000))?;
        let burst = options.take("burst", |v| number(v, 0..=60_000))?;
        let rates = (requests.is_some() || megabytes.is_some()).then(|| Rates {
            requests,
            bytes: megabytes.map(|n| n * 1_000_000),
            burst: burst.map_or(DEFAULT_BURST, Duration::from_millis),
        });
        if burst.is_some() && rates.is_none() {
            return Err("option burst is for iops=N or mbps=N, which are not there".into());
        }
        Ok(Self {
            volatile: options.take("volatile", super::bytes)?,
            fail: options.take("fail", str::parse)?,
            delay: options.take("delay", delay)?,
            rates,
            read_only: options.switch("readonly")?.unwrap_or(false),
        })
    }

    /// Whether the guest may not write.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// `disk`, behind all that; only to be read if `read_only` says so, too.
    pub(super) fn wrap(&self, mut disk: Arc<dyn Disk>, read_only: bool) -> Arc<dyn Disk> {
        if let Some(room) = self.volatile {
            disk = Volatile::new(disk, usize::try_from(room).unwrap_or(usize::MAX));
        }
        if let Some(plan) = self.fail {
            disk = Faulty::before(disk, plan);
        }
        if let Some((least, most)) = self.delay {
            disk = Delay::before(disk, least, most);
        }
        if let Some(rates) = self.rates {
            disk = Throttle::before(disk, rates);
        }
        if (self.read_only || read_only) && !disk.abilities().read_only {
            disk = ReadOnly::before(disk);
        }
        disk
    }
}

/// Microseconds, or a range of them.
fn delay(text: &str) -> Result<(Duration, Duration), String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let micros = |text| number(text, 0..=60_000_000u64).map(Duration::from_micros);
    let (least, most) = (micros(least)?, micros(most)?);
    match least <= most {
        true => Ok((least, most)),
        false => Err(format!("{text:?} has the longer time first")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<Before, String> {
        let mut options = Options::new(text.split(','))?;
        let before = Before::take(&mut options)?;
        options.finish("disk")?;
        Ok(before)
    }

    #[test]
    fn all_of_them() {
        let text =
            "readonly,iops=500,mbps=20,burst=0,delay=100-2000,fail=read:nth:3:EIO,volatile=1M";
        let wanted = Before {
            volatile: Some(1 << 20),
            fail: Some("read:nth:3:EIO".parse().unwrap()),
            delay: Some((Duration::from_micros(100), Duration::from_micros(2000))),
            rates: Some(Rates {
                requests: Some(500),
                bytes: Some(20_000_000),
                burst: Duration::ZERO,
            }),
            read_only: true,
        };
        assert_eq!(parse(text).unwrap(), wanted);
        let rates = parse("mbps=1").unwrap().rates.unwrap();
        assert_eq!((rates.requests, rates.burst), (None, DEFAULT_BURST));
    }

    #[test]
    fn what_makes_no_sense_is_explained() {
        for (text, words) in [
            ("iops=0", "from 1 to"),
            ("iops", "iops=..."),
            ("mbps=fast", "not a number"),
            ("burst=5", "iops=N or mbps=N"),
            ("delay=5-3", "longer time first"),
            ("delay=soon", "not a number"),
            ("fail=write", "write:every:100:EIO"),
            ("volatile=some", "not a size"),
            ("readonly=yes", "on or off"),
            ("speed=5", "no option"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
