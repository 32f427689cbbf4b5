//! What came of it.

use std::fmt::Write;
use std::time::Duration;

use super::stage::NAMES;
use crate::guest::report::{Account, Blasted, Details, Latency, Nanos, Rate, Report, cpu_seconds};

/// A blast in one direction.
#[derive(Debug, Default)]
struct Direction {
    sent: Blasted,
    /// Frames that the switch dropped meanwhile.
    dropped: u64,
}

impl Direction {
    fn arrived(&self) -> u64 {
        self.sent.arrived.unwrap_or(0)
    }

    /// Frames that neither arrived nor were counted as dropped.
    fn vanished(&self) -> u64 {
        self.sent
            .taken
            .saturating_sub(self.arrived() + self.dropped)
    }

    fn per_second(&self, frames: u64) -> Rate {
        Rate(
            frames,
            Duration::from_secs_f64(self.sent.blast_seconds.max(0.001)),
        )
    }
}

/// What all acts have shown.
#[derive(Debug, Default)]
pub(super) struct Summary {
    size: u16,
    ping: Latency,
    accounts: [Account; 2],
    verify_seconds: f64,
    blasts: [Direction; 2],
    cpu: [f64; 2],
    reasons: Vec<String>,
}

impl Summary {
    pub(super) fn new(size: u16) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    /// Takes note of what concerns every act, and returns what only this one has to say.
    fn note(&mut self, reports: [Report; 2]) -> [Details; 2] {
        for ((report, name), cpu) in reports.iter().zip(NAMES).zip(&mut self.cpu) {
            *cpu += report.cpu_seconds;
            if !report.ok {
                let reason = report.reason.as_deref().unwrap_or("no reason given");
                self.reasons
                    .push(format!("guest {name}, {}: {reason}", report.job));
            }
        }
        reports.map(|report| report.details)
    }

    pub(super) fn ping(&mut self, reports: [Report; 2]) {
        if let [Details::Ping(times), _] = self.note(reports) {
            self.ping = times;
        }
    }

    pub(super) fn verify(&mut self, reports: [Report; 2]) {
        let seconds = reports.each_ref().map(|report| report.total.seconds);
        self.verify_seconds = seconds.into_iter().fold(0.0, f64::max);
        if let [Details::Verify(a), Details::Verify(b)] = self.note(reports) {
            self.accounts = [a, b];
        }
    }

    pub(super) fn blast(&mut self, sender: usize, reports: [Report; 2], dropped: u64) {
        let details = self.note(reports);
        if let Some(Details::Blast(sent)) = details.get(sender)
            && let Some(direction) = self.blasts.get_mut(sender)
        {
            *direction = Direction {
                sent: sent.clone(),
                dropped,
            };
            if direction.sent.arrived.is_none() {
                self.reasons
                    .push("nobody said how much of a blast arrived".to_owned());
            } else if direction.vanished() > 0 {
                let n = direction.vanished();
                self.reasons.push(format!(
                    "{n} frames of a blast are lost and not counted as dropped"
                ));
            }
        }
    }

    /// Why this is no success.
    pub(super) fn failure(&self) -> Option<String> {
        (!self.reasons.is_empty()).then(|| self.reasons.join("; "))
    }

    pub(super) fn text(&self, time: Duration) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text, time);
        text
    }

    fn write(&self, out: &mut String, time: Duration) -> std::fmt::Result {
        let ping = &self.ping;
        writeln!(
            out,
            "\nping    {} round trips, {} lost",
            ping.answered, ping.lost
        )?;
        writeln!(
            out,
            "        p50 {}, p90 {}, p99 {}, max {}",
            Nanos(ping.p50),
            Nanos(ping.p90),
            Nanos(ping.p99),
            Nanos(ping.max)
        )?;
        let sum = |what: fn(&Account) -> u64| self.accounts.iter().map(what).sum::<u64>();
        let (packets, bytes) = (sum(|a| a.received), sum(|a| a.data_bytes_received));
        let seconds = self.verify_seconds.max(0.001);
        writeln!(
            out,
            "verify  {packets} packets, {:.2} GB, both ways at once: {}, {:.2} Gbit/s",
            bytes as f64 / 1e9,
            Rate(packets, Duration::from_secs_f64(seconds)),
            bytes as f64 * 8.0 / seconds / 1e9
        )?;
        writeln!(
            out,
            "        lost {}, duplicated {}, reordered {}, corrupt {}: each byte was checked",
            sum(|a| a.lost),
            sum(|a| a.duplicated),
            sum(|a| a.reordered),
            sum(|a| a.corrupt)
        )?;
        for ((direction, name), other) in self.blasts.iter().zip(NAMES).zip(NAMES.iter().rev()) {
            writeln!(
                out,
                "blast   {name} to {other}: {}-byte frames, {} sent, {} arrived; the others ({:.1} %) \
                 found {other}'s ring full",
                self.size,
                direction.per_second(direction.sent.taken),
                direction.per_second(direction.arrived()),
                direction.dropped as f64 * 100.0 / direction.sent.taken.max(1) as f64
            )?;
        }
        let [a, b] = self.cpu;
        write!(
            out,
            "CPU     guests {a:.1} s and {b:.1} s, switch and devices {:.1} s, of {:.1} s",
            cpu_seconds(),
            time.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(details: Details) -> Report {
        Report {
            ok: true,
            details,
            ..Report::default()
        }
    }

    fn blast(arrived: Option<u64>, dropped: u64) -> Summary {
        let sent = Blasted {
            size: 64,
            taken: 100,
            blast_seconds: 1.0,
            arrived,
        };
        let mut summary = Summary::new(64);
        let reports = [report(Details::None), report(Details::Blast(sent))];
        summary.blast(1, reports, dropped);
        summary
    }

    #[test]
    fn every_frame_of_a_blast_arrived_or_was_counted() {
        assert_eq!(blast(Some(70), 30).failure(), None);
        // Other frames than those of the blast may be dropped, too.
        assert_eq!(blast(Some(70), 31).failure(), None);
        let lost = blast(Some(70), 29).failure().unwrap_or_default();
        assert!(lost.contains("1 frames"), "{lost}");
        assert!(blast(None, 100).failure().is_some());
    }

    #[test]
    fn a_guest_that_failed_says_why() {
        let mut summary = Summary::new(64);
        let bad = Report {
            job: "verify".into(),
            reason: Some("3 lost".into()),
            ..Report::default()
        };
        let account = || Details::Verify(Account::default());
        summary.verify([report(account()), bad]);
        assert_eq!(
            summary.failure().as_deref(),
            Some("guest b, verify: 3 lost")
        );
    }
}
