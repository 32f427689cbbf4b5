//! Options of a port that are rules of the switch, the same for ports of every kind.

use std::time::Duration;

use vvu_pmd::net::{Rules, VlanSet, Vlans};

use crate::port::{Mac, Options};

/// Rules, as far as one port's options say them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RuleSpec {
    rules: Rules,
    antispoof: bool,
    /// Name of the port that watches this one.
    pub(crate) mirror: Option<String>,
}

impl RuleSpec {
    /// Takes what is about rules from `options`.
    pub(crate) fn take(options: &mut Options<'_>) -> Result<Self, String> {
        let this = Self {
            rules: Rules {
                vlans: vlans(options)?,
                mac_limit: options.take("maclimit", |text| {
                    let limit = quantity(text)?;
                    u32::try_from(limit).map_err(|_| format!("{text} is more than a table holds"))
                })?,
                sources: None,
                statics: options.take("macs", macs)?.unwrap_or_default(),
                storm: options.take("storm", quantity)?,
                rate: options.take("rate", quantity)?,
                pps: options.take("pps", quantity)?,
                burst: options.take("burst", milliseconds)?,
                isolated: options.flag("isolated")?,
            },
            antispoof: options.flag("antispoof")?,
            mirror: options.take("mirror", |name| Ok(name.to_owned()))?,
        };
        let rules = &this.rules;
        if rules.burst.is_some() && rules.storm.or(rules.rate).or(rules.pps).is_none() {
            return Err(
                "option burst is about storm, rate or pps, and none of them is given".into(),
            );
        }
        rules.check()?;
        Ok(this)
    }

    /// The rules of a port whose device, if it has one, has this address.
    pub(crate) fn rules(&self, own: Option<[u8; 6]>) -> Result<Rules, String> {
        let mut rules = self.rules.clone();
        if self.antispoof {
            let sources: Vec<_> = own.into_iter().chain(rules.statics.clone()).collect();
            if sources.is_empty() {
                return Err(
                    "option antispoof: this port has no address of its own; name those that \
                     frames may come from, as in macs=52:54:00:12:34:56"
                        .into(),
                );
            }
            rules.sources = Some(sources);
        }
        Ok(rules)
    }
}

fn vlans(options: &mut Options<'_>) -> Result<Vlans, String> {
    let access = options.take("vlan", vid)?;
    let trunk = options.take("trunk", vids)?;
    let native = options.take("native", vid)?;
    match (access, trunk, native) {
        (None, None, None) => Ok(Vlans::None),
        (Some(vid), None, None) => Ok(Vlans::Access(vid)),
        (None, Some(vids), native) => Ok(Vlans::Trunk {
            tagged: VlanSet::new(vids.into_iter().filter(|vid| Some(*vid) != native)),
            native,
        }),
        (Some(_), Some(_), _) => {
            Err("a port has either vlan=ID, without tags, or trunk=IDS, with tags".into())
        }
        (_, None, Some(_)) => Err("option native is about trunk=IDS, which is not given".into()),
    }
}

fn vid(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(vid) if (1..=VlanSet::LAST).contains(&vid) => Ok(vid),
        _ => Err(format!(
            "{text:?} is not a VLAN; they have numbers from 1 to 4094"
        )),
    }
}

/// VLANs such as 10+20+30-39.
fn vids(text: &str) -> Result<Vec<u16>, String> {
    let mut all = Vec::new();
    for part in text.split('+') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = vid(first)?..=vid(last)?;
        if range.is_empty() {
            return Err(format!("{part:?} counts down; write the lower VLAN first"));
        }
        all.extend(range);
    }
    Ok(all)
}

/// Addresses such as 52:54:00:00:00:01+52:54:00:00:00:02.
fn macs(text: &str) -> Result<Vec<[u8; 6]>, String> {
    let all = text.split('+').map(|mac| Ok(mac.parse::<Mac>()?.0));
    all.collect()
}

/// A number such as 1500, 100k, 10M or 2G.
fn quantity(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K', 'M', 'G']) {
        None => (text, 1),
        Some(digits) => match text.as_bytes().last() {
            Some(b'M') => (digits, 1_000_000),
            Some(b'G') => (digits, 1_000_000_000),
            _ => (digits, 1000),
        },
    };
    let number = digits.parse::<u64>().ok();
    let number = number.and_then(|number| number.checked_mul(unit));
    number.filter(|number| *number > 0).ok_or_else(|| {
        format!("{text:?} is not a whole number above zero, such as 1500, 100k, 10M or 2G")
    })
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(number @ 1..=10_000) => Ok(Duration::from_millis(number)),
        _ => Err(format!(
            "{text:?} is not a number of milliseconds from 1 to 10000"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<RuleSpec, String> {
        let mut options = Options::new(text.split(','))?;
        let rules = RuleSpec::take(&mut options)?;
        options.finish("test")?;
        Ok(rules)
    }

    fn rules(text: &str) -> Rules {
        parse(text).unwrap().rules
    }

    #[test]
    fn every_rule() {
        assert_eq!(rules("vlan=10").vlans, Vlans::Access(10));
        assert_eq!(
            rules("trunk=10+20-22,native=5").vlans,
            Vlans::Trunk {
                tagged: VlanSet::new([10, 20, 21, 22]),
                native: Some(5),
            }
        );
        // The native VLAN may be listed with the others.
        assert_eq!(rules("trunk=5+6,native=5"), rules("trunk=6,native=5"));
        let limits = rules("maclimit=100,storm=2k,rate=10M,pps=1G,burst=20,isolated");
        assert_eq!(limits.mac_limit, Some(100));
        assert_eq!(limits.storm, Some(2000));
        assert_eq!(limits.rate, Some(10_000_000));
        assert_eq!(limits.pps, Some(1_000_000_000));
        assert_eq!(limits.burst, Some(Duration::from_millis(20)));
        assert!(limits.isolated);
        let mirror = parse("mirror=unix:/run/m.sock").unwrap().mirror;
        assert_eq!(mirror.as_deref(), Some("unix:/run/m.sock"));
        assert_eq!(rules("macs=2:0:0:0:0:1+2:0:0:0:0:2").statics.len(), 2);
    }

    #[test]
    fn who_frames_may_come_from() {
        let mac = [2, 0, 0, 0, 0, 9];
        let own = Some(mac);
        let sources = |text, own| parse(text).unwrap().rules(own).map(|rules| rules.sources);
        assert_eq!(sources("isolated", own), Ok(None));
        assert_eq!(sources("antispoof", own), Ok(Some(vec![mac])));
        let both = Some(vec![mac, [2, 0, 0, 0, 0, 1]]);
        assert_eq!(sources("antispoof,macs=2:0:0:0:0:1", own), Ok(both));
        let only = Some(vec![[2, 0, 0, 0, 0, 1]]);
        assert_eq!(sources("antispoof,macs=2:0:0:0:0:1", None), Ok(only));
        let error = sources("antispoof", None).unwrap_err();
        assert!(error.contains("macs="), "{error}");
    }

    #[test]
    fn bad_rules_are_refused_with_a_reason() {
        for (text, reason) in [
            ("vlan=0", "1 to 4094"),
            ("vlan=4095", "1 to 4094"),
            ("vlan=5,trunk=6", "either"),
            ("vlan=5,native=5", "trunk=IDS"),
            ("native=5", "trunk=IDS"),
            ("trunk=5-4", "counts down"),
            ("trunk=5+", "not a VLAN"),
            ("trunk=", "not a VLAN"),
            ("rate=0", "above zero"),
            ("rate=10m", "not a whole number"),
            ("rate=1.5M", "not a whole number"),
            ("pps=99999999999999G", "not a whole number"),
            ("maclimit=5G", "more than a table"),
            ("burst=5", "none of them"),
            ("rate=1M,burst=0", "1 to 10000"),
            ("macs=1:0:0:0:0:0", "group"),
            ("macs=", "not a MAC"),
            ("isolated=yes", "takes no value"),
            ("mirror", "needs a value"),
            ("trunk=1-2000,macs=2:0:0:0:0:1", "1024"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
