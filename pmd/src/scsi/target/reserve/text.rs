//! Reservations as text: one line for each fact, to be read by people, too.

use std::fmt::Write;
use std::str::SplitWhitespace;

use thiserror::Error;

use super::super::nexus::NexusId;
use super::{Holding, Kind, MAX_REGISTRATIONS, Registration, Reservations};

/// First line of the text.
const TITLE: &str = "vvu persistent reservations, version 1";

/// Why a text says nothing about reservations.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TextError {
    /// It is something else.
    #[error("the first line is {found:?}, expected {TITLE:?}")]
    Title {
        /// The line found.
        found: String,
    },
    /// A line that makes no sense.
    #[error("line {line}: {text:?} is not what was written there: {expected}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// The line found.
        text: String,
        /// What would do.
        expected: &'static str,
    },
    /// It ends too soon.
    #[error("the last line is missing: the file was cut short")]
    End,
}

fn nexus(words: &mut SplitWhitespace<'_>) -> Option<NexusId> {
    Some(NexusId {
        initiator: u64::from_str_radix(words.next()?, 16).ok()?,
        target: words.next()?.parse().ok()?,
    })
}

impl Reservations {
    /// As text. `boot` names the time between two losses of power.
    pub fn to_text(&self, boot: &str) -> String {
        let mut text = format!("{TITLE}\n");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "boot {boot}");
        let _ = writeln!(text, "generation {}", self.generation);
        let _ = writeln!(text, "power-loss {}", u8::from(self.through_power_loss));
        for Registration { nexus, key } in &self.registrations {
            let NexusId { initiator, target } = nexus;
            let _ = writeln!(text, "registered {initiator:016x} {target} {key:016x}");
        }
        if let Some(Holding { kind, nexus }) = &self.holding {
            let _ = match nexus {
                Some(NexusId { initiator, target }) => {
                    writeln!(text, "held {} {initiator:016x} {target}", *kind as u8)
                }
                None => writeln!(text, "held {}", *kind as u8),
            };
        }
        text.push_str("end\n");
        text
    }

    /// From text that was written in the time called `boot`, or before a loss of power: then
    /// nothing is left unless it was to be kept through that.
    pub fn from_text(text: &str, boot: &str) -> Result<Self, TextError> {
        let mut lines = text.lines().enumerate();
        let title = lines.next().map_or("", |(_, line)| line);
        if title != TITLE {
            return Err(TextError::Title {
                found: title.chars().take(80).collect(),
            });
        }
        let mut all = Self::default();
        let mut same_boot = false;
        for (number, line) in lines {
            let mut words = line.split_whitespace();
            let word = words.next();
            let expected = match word {
                Some("end") => {
                    let kept = same_boot || all.through_power_loss;
                    return Ok(if kept { all } else { Self::default() });
                }
                Some("boot") => "boot NAME",
                Some("generation") => "generation NUMBER",
                Some("power-loss") => "power-loss 0 or 1",
                Some("registered") => "registered INITIATOR TARGET KEY, each once",
                Some("held") => "held TYPE, and INITIATOR TARGET of one who registered",
                _ => "boot, generation, power-loss, registered, held or end",
            };
            let fact = word.and_then(|word| all.fact(word, &mut words, boot, &mut same_boot));
            if fact.is_none() || words.next().is_some() {
                return Err(TextError::Line {
                    line: number + 1,
                    text: line.chars().take(80).collect(),
                    expected,
                });
            }
        }
        Err(TextError::End)
    }

    fn fact(
        &mut self,
        word: &str,
        words: &mut SplitWhitespace<'_>,
        boot: &str,
        same_boot: &mut bool,
    ) -> Option<()> {
        match word {
            "boot" => *same_boot = words.next()? == boot,
            "generation" => self.generation = words.next()?.parse().ok()?,
            "power-loss" => self.through_power_loss = words.next()?.parse::<u8>().ok()? == 1,
            "registered" => {
                let nexus = nexus(words)?;
                let key = u64::from_str_radix(words.next()?, 16).ok()?;
                let room = self.registrations.len() < MAX_REGISTRATIONS;
                if !room || key == 0 || self.key(nexus).is_some() {
                    return None;
                }
                self.registrations.push(Registration { nexus, key });
            }
            "held" => {
                let kind = Kind::new(words.next()?.parse().ok()?)?;
                let nexus = if kind.is_all() {
                    None
                } else {
                    let nexus = nexus(words)?;
                    self.key(nexus)?;
                    Some(nexus)
                };
                if self.registrations.is_empty() || self.holding.is_some() {
                    return None;
                }
                self.holding = Some(Holding { kind, nexus });
            }
            _ => return None,
        }
        Some(())
    }
}
