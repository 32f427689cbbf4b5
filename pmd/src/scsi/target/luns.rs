//! The units of one target: finding one, and REPORT LUNS (SPC-5, 6.33).

use std::sync::Arc;

use super::answer::Answer;
use super::attention::Attention;
use super::cdb::Cdb;
use super::execute::{check, judge};
use super::inquiry::Peripheral;
use super::nexus::Nexus;
use super::opcodes::{Command, Moves};
use super::sense::Sense;
use super::well_known::WellKnown;
use super::{Call, Step};

/// Highest LUN: 14 bits (SAM-6, 4.7.7).
pub const MAX_LUN: u16 = 0x3fff;

/// No unit.
const NONE: u16 = u16::MAX;

/// The units of one target, each with the nexus of one initiator.
#[derive(Debug, Default, Clone)]
pub struct Luns {
    /// In order of their LUNs.
    list: Vec<(u16, Arc<Nexus>)>,
    /// Place in the list of each LUN up to the highest.
    places: Vec<u16>,
}

impl Luns {
    /// The unit at `lun`.
    #[inline]
    pub fn get(&self, lun: u16) -> Option<&Arc<Nexus>> {
        let (_, nexus) = self.list.get(self.place(lun)?)?;
        Some(nexus)
    }

    /// Which unit of all, in order, is the one at `lun`.
    #[inline]
    pub fn place(&self, lun: u16) -> Option<usize> {
        let place = *self.places.get(usize::from(lun))?;
        (place != NONE).then_some(usize::from(place))
    }

    /// All of them, with their LUNs.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Arc<Nexus>)> {
        self.list.iter().map(|(lun, nexus)| (*lun, nexus))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds or removes the unit at `lun` (at most [`MAX_LUN`]), and returns the one that was there.
    /// The initiator hears of it at the others.
    pub fn set(&mut self, lun: u16, nexus: Option<Arc<Nexus>>) -> Option<Arc<Nexus>> {
        let old = self.list.binary_search_by_key(&lun, |(lun, _)| *lun);
        let old = old.ok().map(|place| self.list.remove(place).1);
        for (_, other) in &self.list {
            other.attend(Attention::LunsChanged);
        }
        if let Some(nexus) = nexus.filter(|_| lun <= MAX_LUN) {
            let place = self.list.partition_point(|(other, _)| *other < lun);
            self.list.insert(place, (lun, nexus));
        }
        let highest = self.list.last().map_or(0, |(lun, _)| usize::from(*lun) + 1);
        self.places.clear();
        self.places.resize(highest, NONE);
        for (place, (lun, _)) in self.list.iter().enumerate() {
            if let Some(entry) = self.places.get_mut(usize::from(*lun)) {
                *entry = place as u16;
            }
        }
        old
    }
}

/// A LUN as REPORT LUNS lists it (SAM-6, 4.7): peripheral device addressing, flat space for what
/// does not fit that.
fn listed(lun: u16) -> [u8; 8] {
    let flat = if lun > 0xff { 0x4000 } else { 0 };
    let mut bytes = [0; 8];
    let [high, low] = (lun | flat).to_be_bytes();
    (bytes[0], bytes[1]) = (high, low);
    bytes
}

impl Luns {
    /// All LUNs as they are listed.
    pub(super) fn listed(&self) -> impl Iterator<Item = [u8; 8]> {
        self.iter().map(|(lun, _)| listed(lun))
    }
}

/// Answers REPORT LUNS, where there are these units and the well known one.
pub(super) fn report(units: impl Iterator<Item = [u8; 8]>, cdb: Cdb) -> Result<Vec<u8>, Sense> {
    let list: Vec<u8> = match cdb.byte(2) {
        0 => units.flatten().collect(),
        1 => WellKnown::LUN.to_vec(),
        2 => units.chain([WellKnown::LUN]).flatten().collect(),
        _ => return Err(Sense::cdb(2)),
    };
    let mut data = (list.len() as u32).to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(list);
    Ok(data)
}

/// What answers for a LUN of a target where there is no unit (SPC-5, 6.6.1 and SAM-6, 5.13).
#[derive(Debug, Clone, Copy)]
pub struct Missing;

impl Missing {
    /// INQUIRY, REPORT LUNS and REQUEST SENSE are answered, everything else is refused.
    pub fn execute(self, call: &Call<'_>) -> Step {
        match self.begin(call) {
            Ok(step) => step,
            Err(sense) => Step::Done(sense.into()),
        }
    }

    fn begin(self, call: &Call<'_>) -> Result<Step, Sense> {
        let cdb = Cdb::new(call.cdb);
        let row = judge(call.cdb, cdb, true).map_err(|_| Sense::NO_UNIT)?;
        let Moves::In(at, bytes) = row.moves else {
            return Err(Sense::NO_UNIT);
        };
        let checked = check(row, cdb, true);
        let data = match row.command {
            Command::Inquiry => {
                checked?;
                // Vital product data of nobody: there are none.
                if cdb.bit(1, 0) {
                    return Err(Sense::cdb_bit(1, 0));
                }
                super::inquiry::standard(Peripheral::Nobody)
            }
            Command::ReportLuns => {
                checked?;
                report(call.luns.listed(), cdb)?
            }
            Command::RequestSense => {
                checked?;
                Sense::NO_UNIT.bytes(cdb.bit(1, 0))
            }
            _ => return Err(Sense::NO_UNIT),
        };
        let most = cdb.field(at, bytes);
        if most > call.data_in {
            return Ok(Step::Overrun);
        }
        Ok(Step::Done(Answer::with_data(data, most)))
    }
}
