//! Persistent reservations of one unit (SPC-5, 5.14): who registered, who holds the unit, and what
//! that leaves to the others.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the reservations, and each change of them; pure |
//! | `text.rs` | as text, to be kept across restarts |
//! | `commands.rs` | PERSISTENT RESERVE OUT: judged, applied, saved |
//! | `report.rs` | PERSISTENT RESERVE IN |

mod commands;
mod report;
#[cfg(test)]
mod tests;
mod text;

pub(super) use commands::reserve_out;
pub(super) use report::reserve_in;
pub use text::TextError;

use super::nexus::NexusId;

/// Most registrations of one unit.
pub const MAX_REGISTRATIONS: usize = 1024;

/// Types of reservations (SPC-5, table 62).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Kind {
    pub(super) fn new(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrants,
            6 => Self::ExclusiveAccessRegistrants,
            7 => Self::WriteExclusiveAll,
            8 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// Others may read.
    fn is_write_exclusive(self) -> bool {
        matches!(
            self,
            Self::WriteExclusive | Self::WriteExclusiveRegistrants | Self::WriteExclusiveAll
        )
    }

    /// Who registered is not one of the others.
    fn is_for_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// All who registered hold it.
    fn is_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }
}

/// What a nexus may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    All,
    Read,
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) nexus: NexusId,
    pub(super) key: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holding {
    kind: Kind,
    /// Who; nobody in particular if all who registered do.
    nexus: Option<NexusId>,
}

/// Who has registered with one unit, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reservations {
    /// PRGENERATION.
    generation: u32,
    /// Kept through a loss of power (APTPL).
    through_power_loss: bool,
    registrations: Vec<Registration>,
    holding: Option<Holding>,
}

/// Why a change is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// RESERVATION CONFLICT.
    Conflict,
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    Release,
    /// The service action key makes no sense.
    Key,
    /// There are too many.
    Full,
}

/// Who must hear of a change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct News {
    /// Their registration is gone by somebody else's doing.
    pub(super) removed: Vec<NexusId>,
    /// The unit was released, and they are still registered.
    pub(super) released: Vec<NexusId>,
    /// All was cleared.
    pub(super) cleared: Vec<NexusId>,
}

impl Reservations {
    fn key(&self, nexus: NexusId) -> Option<u64> {
        let mine = |one: &&Registration| one.nexus == nexus;
        self.registrations.iter().find(mine).map(|one| one.key)
    }

    /// Whether `nexus` holds the unit.
    fn holds(&self, nexus: NexusId) -> bool {
        self.holding.is_some_and(|holding| match holding.nexus {
            Some(holder) => holder == nexus,
            None => self.key(nexus).is_some(),
        })
    }

    /// What `nexus` may do.
    pub(super) fn access(&self, nexus: NexusId) -> Access {
        let Some(holding) = self.holding else {
            return Access::All;
        };
        let kind = holding.kind;
        if self.holds(nexus) || (kind.is_for_registrants() && self.key(nexus).is_some()) {
            Access::All
        } else if kind.is_write_exclusive() {
            Access::Read
        } else {
            Access::Nothing
        }
    }

    fn others(&self, nexus: NexusId) -> Vec<NexusId> {
        let all = self.registrations.iter().map(|one| one.nexus);
        all.filter(|&other| other != nexus).collect()
    }

    /// That `nexus` has registered with `key`.
    fn prove(&self, nexus: NexusId, key: u64) -> Result<(), Refused> {
        if self.key(nexus) == Some(key) {
            Ok(())
        } else {
            Err(Refused::Conflict)
        }
    }

    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY if `key` is none.
    pub(super) fn register(
        &mut self,
        nexus: NexusId,
        key: Option<u64>,
        new: u64,
        through_power_loss: bool,
    ) -> Result<News, Refused> {
        let old = self.key(nexus);
        if key.is_some_and(|key| key != old.unwrap_or(0)) {
            return Err(Refused::Conflict);
        }
        let mut news = News::default();
        match (old, new) {
            (None, 0) => return Ok(news),
            (Some(_), 0) => news = self.unregister(nexus),
            (Some(_), key) => {
                let mine = |one: &&mut Registration| one.nexus == nexus;
                if let Some(own) = self.registrations.iter_mut().find(mine) {
                    own.key = key;
                }
            }
            (None, key) => {
                if self.registrations.len() >= MAX_REGISTRATIONS {
                    return Err(Refused::Full);
                }
                self.registrations.push(Registration { nexus, key });
            }
        }
        self.through_power_loss = through_power_loss;
        self.generation = self.generation.wrapping_add(1);
        Ok(news)
    }

    fn unregister(&mut self, nexus: NexusId) -> News {
        let held = self.holds(nexus);
        self.registrations.retain(|one| one.nexus != nexus);
        let mut news = News::default();
        let Some(holding) = self.holding.filter(|_| held) else {
            return news;
        };
        // All who registered hold it until the last is gone.
        if !holding.kind.is_all() || self.registrations.is_empty() {
            self.holding = None;
            if holding.kind.is_for_registrants() {
                news.released = self.others(nexus);
            }
        }
        news
    }

    /// RESERVE.
    pub(super) fn reserve(&mut self, nexus: NexusId, key: u64, kind: Kind) -> Result<(), Refused> {
        self.prove(nexus, key)?;
        match self.holding {
            None => {
                let holder = (!kind.is_all()).then_some(nexus);
                self.holding = Some(Holding {
                    kind,
                    nexus: holder,
                });
                Ok(())
            }
            Some(holding) if holding.kind == kind && self.holds(nexus) => Ok(()),
            Some(_) => Err(Refused::Conflict),
        }
    }

    /// RELEASE.
    pub(super) fn release(
        &mut self,
        nexus: NexusId,
        key: u64,
        kind: Kind,
    ) -> Result<News, Refused> {
        self.prove(nexus, key)?;
        let mut news = News::default();
        let Some(holding) = self.holding.filter(|_| self.holds(nexus)) else {
            return Ok(news);
        };
        if holding.kind != kind {
            return Err(Refused::Release);
        }
        self.holding = None;
        if kind.is_for_registrants() {
            news.released = self.others(nexus);
        }
        Ok(news)
    }

    /// CLEAR.
    pub(super) fn clear(&mut self, nexus: NexusId, key: u64) -> Result<News, Refused> {
        self.prove(nexus, key)?;
        let cleared = self.others(nexus);
        self.registrations.clear();
        self.holding = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(News {
            cleared,
            ..News::default()
        })
    }

    /// PREEMPT, of who registered with `theirs`.
    pub(super) fn preempt(
        &mut self,
        nexus: NexusId,
        key: u64,
        theirs: u64,
        kind: Kind,
    ) -> Result<News, Refused> {
        self.prove(nexus, key)?;
        let was = self.holding;
        let holder = was.and_then(|holding| holding.nexus);
        let all = was.is_some_and(|holding| holding.kind.is_all());
        // The reservation itself is meant by its holder's key, or by none if all hold it.
        let takes = match holder {
            Some(holder) => self.key(holder) == Some(theirs),
            None => all && theirs == 0,
        };
        if theirs == 0 && !takes {
            return Err(Refused::Key);
        }
        let is_meant =
            |one: &Registration| one.nexus != nexus && (one.key == theirs || (takes && all));
        let meant = self.registrations.iter().filter(|one| is_meant(one));
        let removed: Vec<_> = meant.map(|one| one.nexus).collect();
        let known = takes || self.registrations.iter().any(|one| one.key == theirs);
        if !known {
            return Err(Refused::Conflict);
        }
        self.registrations.retain(|one| !is_meant(one));
        let mut news = News {
            removed,
            ..News::default()
        };
        if takes {
            let holder = (!kind.is_all()).then_some(nexus);
            self.holding = Some(Holding {
                kind,
                nexus: holder,
            });
            if was.is_some_and(|was| was.kind != kind) {
                news.released = self.others(nexus);
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(news)
    }
}
