//! What a guest says of its interface.

use anyhow::{Context, Result};

use crate::guest::Guest;
use crate::job::COMMAND;
use crate::wire::Task;

/// Frames and bytes that a guest's driver has handed to its card and taken from it. A frame that
/// is segmented or merged further on counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Frames sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

impl Counters {
    /// What happened since `before`.
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            sent: self.sent - before.sent,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            received: self.received - before.received,
            received_bytes: self.received_bytes - before.received_bytes,
        }
    }

    /// Mean length of a frame sent, and of one received.
    pub fn mean(&self) -> (u64, u64) {
        (
            self.sent_bytes / self.sent.max(1),
            self.received_bytes / self.received.max(1),
        )
    }
}

impl Guest {
    /// Counters of its interface.
    pub fn counters(&self) -> Result<Counters> {
        let names = ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes"];
        let files = names.map(|name| format!("/sys/class/net/eth0/statistics/{name}"));
        let argv = ["cat", &files[0], &files[1], &files[2], &files[3]];
        let text = self.run(&argv)?.stdout;
        let mut numbers = text.split_whitespace().map(str::parse);
        let mut next = || -> Result<u64> { Ok(numbers.next().context("a counter is missing")??) };
        Ok(Counters {
            sent: next()?,
            sent_bytes: next()?,
            received: next()?,
            received_bytes: next()?,
        })
    }

    /// Feature bits that its network driver and device agreed upon.
    pub fn features(&self) -> Result<u64> {
        self.features_of("/sys/class/net/eth0/device")
    }

    /// The same of any virtio device, by its directory in sysfs.
    pub fn features_of(&self, device: &str) -> Result<u64> {
        let text = self.read(&format!("{device}/features"))?;
        let bits = text.trim().bytes().take(64).enumerate();
        Ok(bits.fold(0, |all, (bit, digit)| all | u64::from(digit == b'1') << bit))
    }

    /// Lets its interface segment UDP, which Linux leaves off until somebody asks.
    pub fn turn_on_udp_segmentation(&self) -> Result<()> {
        let task = Task::TurnOn {
            device: "eth0".into(),
            feature: "tx-udp-segmentation".into(),
        };
        self.task(task, COMMAND)
    }

    /// Packets that its kernel threw away since boot because their checksum was wrong.
    pub fn checksum_errors(&self) -> Result<u64> {
        checksum_errors(&self.read("/proc/net/snmp")?)
    }
}

/// The sum of all counters of this name: a line of names, then a line of numbers.
fn checksum_errors(snmp: &str) -> Result<u64> {
    const NAME: &str = "InCsumErrors";
    let lines: Vec<&str> = snmp.lines().collect();
    let (mut sum, mut found) = (0, false);
    for pair in lines.chunks_exact(2) {
        let (names, numbers) = (pair[0].split(' '), pair[1].split(' '));
        for (_, number) in names.zip(numbers).filter(|(name, _)| *name == NAME) {
            sum += number.parse::<u64>()?;
            found = true;
        }
    }
    found
        .then_some(sum)
        .with_context(|| format!("no {NAME} in {snmp}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_errors_of_all_protocols_are_summed() -> Result<()> {
        let snmp = "Tcp: InSegs InCsumErrors\nTcp: 7 2\nUdp: InCsumErrors InErrors\nUdp: 3 9\n";
        assert_eq!(checksum_errors(snmp)?, 5);
        assert!(checksum_errors("Ip: InReceives\nIp: 4\n").is_err());
        Ok(())
    }
}
