//! PERSISTENT RESERVE OUT (SPC-5, 6.17): judged, applied, and saved if the unit's reservations
//! are kept.

use std::sync::Arc;

use crate::bdev::IoError;

use super::super::answer::Answer;
use super::super::attention::Attention;
use super::super::cdb::Cdb;
use super::super::jobs::{Action, Desk, Job, Next, Work};
use super::super::nexus::{Barrier, Nexus};
use super::super::sense::Sense;
use super::super::unit::Unit;
use super::super::{DataOut, Step};
use super::{Kind, News, Refused, Reservations};

/// Length of the parameter list, in bytes.
const LIST: u64 = 24;

/// What the parameter list says.
struct List {
    key: u64,
    action_key: u64,
    through_power_loss: bool,
}

fn be64(list: &[u8; LIST as usize], at: usize) -> u64 {
    let bytes = list.iter().skip(at).take(8);
    bytes.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Conflict => Self::CONFLICT,
            Refused::Release => Sense::RELEASE.into(),
            Refused::Key => Sense::list(8).into(),
            Refused::Full => Sense::REGISTRATIONS.into(),
        }
    }
}

/// Judges the parameter list, as far as it is the same for all service actions.
fn list(unit: &Unit, action: u8, len: u64, out: &dyn DataOut) -> Result<List, Sense> {
    let mut bytes = [0; LIST as usize];
    if len != LIST || !out.read_at(0, &mut bytes) {
        return Err(Sense::LIST_LENGTH);
    }
    let bits = bytes[20];
    let registers = matches!(action, 0 | 6);
    // SPEC_I_PT and ALL_TG_PT are not offered; APTPL is if there is a place to keep things.
    let allowed = if unit.is_kept() { 1 } else { 0 };
    if registers && bits & !allowed != 0 {
        return Err(Sense::list(20));
    }
    Ok(List {
        key: be64(&bytes, 0),
        action_key: be64(&bytes, 8),
        through_power_loss: bits & 1 != 0,
    })
}

/// Obeys or refuses.
pub(in super::super) fn reserve_out(nexus: &Arc<Nexus>, cdb: Cdb, out: &dyn DataOut) -> Step {
    match obey(nexus, cdb, out) {
        Ok(step) => step,
        Err(answer) => Step::Done(answer),
    }
}

fn obey(nexus: &Arc<Nexus>, cdb: Cdb, out: &dyn DataOut) -> Result<Step, Answer> {
    let (unit, id) = (nexus.unit(), nexus.id());
    let action = cdb.byte(1) & 0x1f;
    let list = list(unit, action, cdb.be32(5).into(), out)?;
    let kind = || {
        let byte = cdb.byte(2);
        // The scope is the unit: there is no other.
        if byte >> 4 != 0 {
            return Err(Sense::cdb_bit(2, 7));
        }
        Kind::new(byte).ok_or(Sense::cdb_bit(2, 3))
    };
    let mut state = unit.state();
    if state.saving {
        return Err(Answer::BUSY);
    }
    let mut all = state.reservations.clone();
    let List {
        key,
        action_key,
        through_power_loss,
    } = list;
    let news = match action {
        0 => all.register(id, Some(key), action_key, through_power_loss)?,
        1 => all.reserve(id, key, kind()?).map(|()| News::default())?,
        2 => all.release(id, key, kind()?)?,
        3 => all.clear(id, key)?,
        4 | 5 => all.preempt(id, key, action_key, kind()?)?,
        _ => all.register(id, None, action_key, through_power_loss)?,
    };
    if all == state.reservations {
        return Ok(Step::Done(Answer::GOOD));
    }
    let mut change = Change {
        nexus: Arc::clone(nexus),
        all,
        news,
        aborts: action == 5,
        stage: Stage::Begin,
    };
    if unit.is_kept() {
        state.saving = true;
        drop(state);
        return Ok(Step::Job(Job::new(change)));
    }
    drop(state);
    let barrier = change.apply();
    let aborts = barrier.is_some();
    change.stage = Stage::Applied(barrier);
    Ok(if aborts {
        Step::Job(Job::new(change))
    } else {
        Step::Done(Answer::GOOD)
    })
}

/// A change on its way.
#[derive(Debug)]
struct Change {
    nexus: Arc<Nexus>,
    /// The reservations as they will be.
    all: Reservations,
    news: News,
    /// Tasks of who was preempted must end.
    aborts: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Begin,
    Saving,
    Applied(Option<Barrier>),
}

impl Change {
    /// The change is in force, and everybody hears of it.
    fn apply(&self) -> Option<Barrier> {
        let unit = self.nexus.unit();
        let mut state = unit.state();
        state.saving = false;
        state.reservations = self.all.clone();
        let News {
            removed,
            released,
            cleared,
        } = &self.news;
        for (who, attention) in [
            (removed, Attention::RegistrationsPreempted),
            (released, Attention::ReservationsReleased),
            (cleared, Attention::ReservationsPreempted),
        ] {
            state.attend(attention, None, |id| who.contains(&id));
        }
        unit.refresh(&state);
        self.aborts.then(|| state.abort(|id| removed.contains(&id)))
    }
}

impl Work for Change {
    fn next(&mut self, last: Result<(), IoError>, _: &mut Desk<'_>) -> Next {
        match std::mem::replace(&mut self.stage, Stage::Applied(None)) {
            Stage::Begin => {
                self.stage = Stage::Saving;
                Next::Do(Action::Save(self.all.clone()))
            }
            Stage::Saving => match last {
                Ok(()) => match self.apply() {
                    Some(barrier) => Next::Do(Action::Await(barrier)),
                    None => Next::Done(Answer::GOOD),
                },
                // Nothing has changed.
                Err(_) => {
                    self.nexus.unit().state().saving = false;
                    self.stage = Stage::Applied(None);
                    Next::Done(Sense::INTERNAL.into())
                }
            },
            Stage::Applied(Some(barrier)) => Next::Do(Action::Await(barrier)),
            Stage::Applied(None) => Next::Done(Answer::GOOD),
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        match self.stage {
            Stage::Begin => self.nexus.unit().state().saving = false,
            // Nobody waits for it any more, but the file has it, or will.
            Stage::Saving => drop(self.apply()),
            Stage::Applied(_) => {}
        }
    }
}
