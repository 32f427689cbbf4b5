//! From a CDB to what is to be done about it.

use std::sync::Arc;

use super::answer::Answer;
use super::attention::Attention;
use super::cdb::Cdb;
use super::jobs::{
    AfterFlush, Against, CHUNK, CompareAndWrite, Flush, Job, Unmap, Verify, WriteSame,
};
use super::nexus::{Nexus, flags};
use super::opcodes::{self, Access, Blocks, Command, Missing, Moves, Operation};
use super::sense::Sense;
use super::unit::Unit;
use super::{Call, Step, Transfer};
use super::{capacity, inquiry, log, luns, mode, ports, reserve, select, supported};

/// Most blocks of one COMPARE AND WRITE of a unit.
pub(super) fn max_compare(unit: &Unit) -> u8 {
    u8::try_from(CHUNK >> unit.shift()).unwrap_or(u8::MAX)
}

/// Most blocks of one WRITE SAME: so many that it ends some time.
pub(super) const MAX_SAME: u32 = 1 << 23;

/// The row for this CDB.
#[inline]
pub(super) fn judge(bytes: &[u8], cdb: Cdb, thin: bool) -> Result<&'static Operation, Sense> {
    let row = opcodes::find(cdb.byte(0), cdb.byte(1) & 0x1f, thin).map_err(|why| match why {
        Missing::Code => Sense::OPCODE,
        Missing::Action => Sense::cdb_bit(1, 4),
    })?;
    if bytes.len() < usize::from(row.len) {
        return Err(Sense::cdb(bytes.len() as u16));
    }
    Ok(row)
}

/// That only bits are set that the row allows.
#[inline]
pub(super) fn check(row: &Operation, cdb: Cdb, thin: bool) -> Result<(), Sense> {
    match row.misused(cdb, thin) {
        None => Ok(()),
        Some((byte, bit)) => Err(Sense::cdb_bit(byte, bit)),
    }
}

impl Nexus {
    /// Judges a command, and says what to do about it.
    #[inline]
    pub fn execute(self: &Arc<Self>, call: &Call<'_>) -> Step {
        let cdb = Cdb::new(call.cdb);
        let row = match self.admit(call.cdb, cdb) {
            Ok(row) => row,
            Err(answer) => return Step::Done(answer),
        };
        match (row.command, row.moves) {
            (Command::Read | Command::Write, Moves::Blocks(at)) => {
                self.transfer(call, row, cdb, at)
            }
            _ => self.others(call, row, cdb),
        }
    }

    /// The row of a command that is allowed, and that may be done now.
    #[inline]
    fn admit(&self, bytes: &[u8], cdb: Cdb) -> Result<&'static Operation, Answer> {
        let thin = self.unit().thin().is_some();
        let row = judge(bytes, cdb, thin)?;
        let hindered = self.flags() & row.stops;
        if hindered != 0 {
            self.hinder(row, cdb, hindered)?;
        }
        check(row, cdb, thin)?;
        Ok(row)
    }

    /// Everything but reads and writes.
    #[inline(never)]
    fn others(self: &Arc<Self>, call: &Call<'_>, row: &Operation, cdb: Cdb) -> Step {
        self.begin(call, row, cdb).unwrap_or_else(Step::Done)
    }

    fn begin(self: &Arc<Self>, call: &Call<'_>, row: &Operation, cdb: Cdb) -> Result<Step, Answer> {
        match row.moves {
            Moves::Blocks(at) => self.on_blocks(call, row, cdb, at),
            Moves::In(at, bytes) => {
                let most = cdb.field(at, bytes);
                if most > call.data_in {
                    return Ok(Step::Overrun);
                }
                self.data_in(call, row, cdb, most).map(Step::Done)
            }
            Moves::Out(at, bytes) => {
                let len = cdb.field(at, bytes);
                if len > call.data_out {
                    return Ok(Step::Overrun);
                }
                self.data_out(call, row, cdb, len)
            }
            Moves::Nothing => self.without_data(call, row, cdb),
        }
    }

    /// What keeps a command from being done, the first that there is of it.
    #[cold]
    fn hinder(&self, row: &Operation, cdb: Cdb, hindered: u32) -> Result<(), Answer> {
        if hindered & flags::ATTENTIONS != 0
            && let Some(attention) = self.take_attention()
        {
            return Err(attention.sense().into());
        }
        // The bit that is set to start, and clear to allow, changes nothing for others.
        let free = match row.access {
            Access::FreeIf(1) => cdb.bit(4, 0),
            Access::FreeIf(_) => !cdb.bit(4, 0),
            _ => false,
        };
        if hindered & (flags::READ_CONFLICTS | flags::WRITE_CONFLICTS) != 0 && !free {
            return Err(Answer::CONFLICT);
        }
        if hindered & flags::STOPPED != 0 {
            return Err(Sense::STOPPED.into());
        }
        if hindered & flags::PROTECTED != 0 {
            let hard = self.unit().abilities().read_only;
            let sense = if hard {
                Sense::READ_ONLY
            } else {
                Sense::SOFTWARE_READ_ONLY
            };
            return Err(sense.into());
        }
        Ok(())
    }

    /// The blocks that a command names, in bytes of the disk: where and how many.
    #[inline]
    fn range(&self, row: &Operation, cdb: Cdb, at: Blocks) -> Result<(u64, u64), Sense> {
        let unit = self.unit();
        let (lba, mut count) = (cdb.at(at.lba), cdb.at(at.count));
        if count == 0 && row.len == 6 {
            count = 256;
        }
        let blocks = unit.blocks();
        let inside = lba.checked_add(count).is_some_and(|end| end <= blocks);
        if !inside {
            return Err(Sense::RANGE.with_info(lba.max(blocks)));
        }
        Ok((lba << unit.shift(), count << unit.shift()))
    }

    /// Whether what a command writes must reach the medium: FUA, or no cache.
    #[inline]
    fn is_forced(&self, fua: bool) -> bool {
        fua || self.unit().writes_through()
    }

    #[inline]
    fn transfer(self: &Arc<Self>, call: &Call<'_>, row: &Operation, cdb: Cdb, at: Blocks) -> Step {
        let write = row.command == Command::Write;
        let (offset, len) = match self.range(row, cdb, at) {
            Ok(range) => range,
            Err(sense) => return Step::Done(sense.into()),
        };
        // Byte 1 of the short ones has address bits there.
        let fua = row.len > 6 && cdb.bit(1, 3);
        if len > if write { call.data_out } else { call.data_in } {
            return Step::Overrun;
        }
        if len == 0 {
            return Step::Done(Answer::GOOD);
        }
        let transfer = Transfer {
            write,
            offset,
            len,
            fua: write && self.is_forced(fua),
        };
        if fua && !write {
            return self.read_medium(transfer);
        }
        Step::Move(transfer)
    }

    /// A read of what is on the medium.
    #[cold]
    fn read_medium(self: &Arc<Self>, transfer: Transfer) -> Step {
        let after = AfterFlush::Read(transfer);
        Step::Job(Job::new(Flush::new(self, after)))
    }

    /// Commands on blocks that take several steps.
    fn on_blocks(
        self: &Arc<Self>,
        call: &Call<'_>,
        row: &Operation,
        cdb: Cdb,
        at: Blocks,
    ) -> Result<Step, Answer> {
        let (offset, len) = self.range(row, cdb, at)?;
        let block = u64::from(self.unit().block());
        let job = match row.command {
            Command::SynchronizeCache => Job::new(Flush::new(self, AfterFlush::Nothing)),
            Command::Verify => {
                let (against, needed) = match cdb.byte(1) >> 1 & 3 {
                    0 => (Against::Nothing, 0),
                    1 => (Against::Data, len),
                    3 => (Against::Block(block), block.min(len)),
                    _ => return Err(Sense::cdb_bit(1, 2).into()),
                };
                if needed > call.data_out {
                    return Ok(Step::Overrun);
                }
                Job::new(Verify::new(offset, len, against))
            }
            Command::WriteAndVerify => {
                if len > call.data_out {
                    return Ok(Step::Overrun);
                }
                let bytes = cdb.bit(1, 1);
                let against = if bytes {
                    Against::Data
                } else {
                    Against::Nothing
                };
                // What is verified is what is on the medium.
                let transfer = Transfer {
                    write: true,
                    offset,
                    len,
                    fua: true,
                };
                Job::new(Verify::after(transfer, against))
            }
            Command::WriteSame => return self.write_same(call, cdb, offset, len),
            _ => return self.compare_and_write(call, cdb, offset, len),
        };
        // Flushing all is what no blocks mean to SYNCHRONIZE CACHE.
        if len == 0 && row.command != Command::SynchronizeCache {
            return Ok(Step::Done(Answer::GOOD));
        }
        Ok(Step::Job(job))
    }

    fn write_same(&self, call: &Call<'_>, cdb: Cdb, offset: u64, len: u64) -> Result<Step, Answer> {
        let unit = self.unit();
        let long = cdb.byte(0) == 0x93;
        // None is no way to say all (WSNZ).
        if len == 0 || len >> unit.shift() > MAX_SAME.into() {
            return Err(Sense::cdb(if long { 10 } else { 7 }).into());
        }
        let block = u64::from(unit.block());
        let no_data = long && cdb.bit(1, 0);
        if !no_data && block > call.data_out {
            return Ok(Step::Overrun);
        }
        Ok(Step::Job(Job::new(WriteSame {
            at: offset,
            left: len,
            block,
            no_data,
            unmap: cdb.bit(1, 3),
            fua: self.is_forced(false),
            zeroes: unit.abilities().write_zeroes,
            pending: None,
        })))
    }

    fn compare_and_write(
        &self,
        call: &Call<'_>,
        cdb: Cdb,
        offset: u64,
        len: u64,
    ) -> Result<Step, Answer> {
        let unit = self.unit();
        if len >> unit.shift() > max_compare(unit).into() {
            return Err(Sense::cdb(13).into());
        }
        if len.saturating_mul(2) > call.data_out {
            return Ok(Step::Overrun);
        }
        if len == 0 {
            return Ok(Step::Done(Answer::GOOD));
        }
        let fua = self.is_forced(cdb.bit(1, 3));
        let work = CompareAndWrite::new(offset, len, fua);
        Ok(Step::Job(Job::new(work)))
    }

    /// Commands that only tell something, no more than `most` bytes of it.
    fn data_in(
        &self,
        call: &Call<'_>,
        row: &Operation,
        cdb: Cdb,
        most: u64,
    ) -> Result<Answer, Answer> {
        let unit = &**self.unit();
        let data = match row.command {
            Command::Inquiry => inquiry::inquiry(unit, self.port(), cdb)?,
            Command::ReportLuns => {
                self.forget(Attention::LunsChanged);
                luns::report(call.luns.listed(), cdb)?
            }
            Command::RequestSense => self.request_sense(cdb),
            Command::ModeSense => mode::sense(unit, cdb)?,
            Command::ReadCapacity16 => capacity::sixteen(unit),
            Command::GetLbaStatus => capacity::lba_status(unit, cdb)?,
            Command::LogSense => log::sense(cdb)?,
            Command::ReportPortGroups => ports::report(unit, cdb),
            Command::ReportOpcodes => supported::opcodes(unit, cdb)?,
            Command::ReportTaskFunctions => supported::task_functions(cdb),
            _ => return Ok(reserve::reserve_in(unit, cdb.byte(1) & 0x1f, most)),
        };
        Ok(Answer::with_data(data, most))
    }

    /// What there is to be told, as data (SPC-5, 6.39).
    fn request_sense(&self, cdb: Cdb) -> Vec<u8> {
        let attention = self.take_attention().map(Attention::sense);
        let stopped = self.flags() & flags::STOPPED != 0;
        let now = if stopped { Sense::STOPPED } else { Sense::NONE };
        attention.unwrap_or(now).bytes(cdb.bit(1, 0))
    }

    /// Commands with `len` bytes of parameters.
    fn data_out(
        self: &Arc<Self>,
        call: &Call<'_>,
        row: &Operation,
        cdb: Cdb,
        len: u64,
    ) -> Result<Step, Answer> {
        match row.command {
            Command::ModeSelect => select::select(self, cdb, len, call.out),
            Command::Unmap => {
                let work = Unmap::new(self.unit(), len, call.out)?;
                Ok(Step::Job(Job::new(work)))
            }
            _ => Ok(reserve::reserve_out(self, cdb, call.out)),
        }
    }

    fn without_data(
        self: &Arc<Self>,
        call: &Call<'_>,
        row: &Operation,
        cdb: Cdb,
    ) -> Result<Step, Answer> {
        let unit = self.unit();
        match row.command {
            Command::ReadCapacity10 => {
                let data = capacity::ten(unit);
                if data.len() as u64 > call.data_in {
                    return Ok(Step::Overrun);
                }
                return Ok(Step::Done(Answer::with_data(data, u64::MAX)));
            }
            Command::StartStop if cdb.bit(4, 0) => unit.set_stopped(false),
            // NO_FLUSH.
            Command::StartStop if cdb.bit(4, 2) => unit.set_stopped(true),
            Command::StartStop => {
                return Ok(Step::Job(Job::new(Flush::new(self, AfterFlush::Stop))));
            }
            // TEST UNIT READY: it is. PREVENT ALLOW MEDIUM REMOVAL: it cannot be removed anyway.
            _ => {}
        }
        Ok(Step::Done(Answer::GOOD))
    }
}
