//! The REPORT LUNS well known unit (SPC-5, 9.2): there whatever units there are, to list them.

use super::answer::Answer;
use super::cdb::Cdb;
use super::execute::{check, judge};
use super::inquiry::{self, Peripheral};
use super::luns::{self, Luns};
use super::opcodes::{Command, Moves};
use super::sense::Sense;
use super::vpd;
use super::{Call, Step};

/// See the top of this file.
#[derive(Debug, Clone)]
pub struct WellKnown {
    /// What it lists.
    units: Vec<[u8; 8]>,
    /// Relative target port identifier of where it was reached.
    port: Option<u16>,
}

impl WellKnown {
    /// Its LUN (SAM-6, 4.7.7.5): extended addressing, well known unit 1.
    pub const LUN: [u8; 8] = [0xc1, 1, 0, 0, 0, 0, 0, 0];

    /// That of a target, which is reached through `port`.
    pub fn of_target(luns: &Luns, port: u16) -> Self {
        Self {
            units: luns.listed().collect(),
            port: Some(port),
        }
    }

    /// One for all targets, with units at these LUNs of two levels.
    pub fn of_all(units: impl Iterator<Item = [u8; 8]>) -> Self {
        Self {
            units: units.collect(),
            port: None,
        }
    }

    /// INQUIRY, REPORT LUNS, REQUEST SENSE and TEST UNIT READY are answered, everything else is
    /// refused.
    pub fn execute(&self, call: &Call<'_>) -> Step {
        match self.begin(call) {
            Ok(step) => step,
            Err(sense) => Step::Done(sense.into()),
        }
    }

    fn begin(&self, call: &Call<'_>) -> Result<Step, Sense> {
        let cdb = Cdb::new(call.cdb);
        let row = judge(call.cdb, cdb, true)?;
        let known = matches!(
            row.command,
            Command::Inquiry | Command::ReportLuns | Command::RequestSense | Command::TestUnitReady
        );
        if !known {
            return Err(Sense::OPCODE);
        }
        check(row, cdb, true)?;
        let data = match row.command {
            Command::Inquiry => self.inquiry(cdb)?,
            Command::ReportLuns => luns::report(self.units.iter().copied(), cdb)?,
            // It is always ready, and nothing ever happens to it.
            Command::RequestSense => Sense::NONE.bytes(cdb.bit(1, 0)),
            _ => Vec::new(),
        };
        let most = match row.moves {
            Moves::In(at, bytes) => cdb.field(at, bytes),
            _ => 0,
        };
        if most > call.data_in {
            return Ok(Step::Overrun);
        }
        Ok(Step::Done(Answer::with_data(data, most)))
    }

    fn inquiry(&self, cdb: Cdb) -> Result<Vec<u8>, Sense> {
        let page = cdb.byte(2);
        match cdb.bit(1, 0) {
            true => vpd::of_well_known(self.port, page).ok_or(Sense::cdb(2)),
            false if page == 0 => Ok(inquiry::standard(Peripheral::WellKnown)),
            false => Err(Sense::cdb(2)),
        }
    }
}
