//! Every command that is accepted, in one table: what REPORT SUPPORTED OPERATION CODES tells and
//! what a CDB is judged by are the same rows.

use super::cdb::{Cdb, Field, MAX};
use super::nexus::flags;

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSense,
    ModeSelect,
    StartStop,
    PreventAllow,
    ReadCapacity10,
    ReadCapacity16,
    GetLbaStatus,
    Read,
    Write,
    WriteAndVerify,
    Verify,
    SynchronizeCache,
    Unmap,
    WriteSame,
    CompareAndWrite,
    LogSense,
    ReserveIn,
    ReserveOut,
    ReportLuns,
    ReportPortGroups,
    ReportOpcodes,
    ReportTaskFunctions,
}

/// Where a command's block address and its number of blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) lba: Field,
    pub(super) count: Field,
}

/// Which data a command moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moves {
    Nothing,
    /// To the initiator, at most as many bytes as this field says.
    In(u8, u8),
    /// From the initiator, as many bytes as this field says.
    Out(u8, u8),
    /// Blocks; how many bytes is the command's affair.
    Blocks(Blocks),
}

/// What a reservation of another nexus means for a command (SPC-5, 5.14; SBC-4, 4.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing.
    Free,
    /// It reads: conflicts with exclusive access.
    Read,
    /// It writes or changes something: conflicts with both kinds.
    Write,
    /// START STOP UNIT, PREVENT ALLOW: one bit of byte 4 is free, the rest changes something.
    FreeIf(u8),
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) code: u8,
    /// Service action, in bits 4 to 0 of byte 1.
    pub(super) action: Option<u8>,
    pub(super) name: &'static str,
    pub(super) command: Command,
    pub(super) access: Access,
    pub(super) moves: Moves,
    /// Length in bytes.
    pub(super) len: u8,
    /// Bits that may be set; the operation code and service action as they are.
    usage: u128,
    /// Of those, the ones that only make sense if blocks can be unmapped.
    thin: u128,
    /// Bits that may not be set if blocks cannot be unmapped, and if they can.
    wrong: [u128; 2],
    /// It works only if blocks can be unmapped.
    needs_thin: bool,
    /// Flags of a nexus ([`flags`]) that it may not be done with.
    pub(super) stops: u32,
}

const fn pack(bytes: &[u8]) -> u128 {
    let mut all = 0;
    let mut at = 0;
    while at < bytes.len() {
        all |= (bytes[at] as u128) << (120 - 8 * at);
        at += 1;
    }
    all
}

impl Operation {
    const fn new(name: &'static str, command: Command, usage: &[u8]) -> Self {
        Self {
            code: usage[0],
            action: None,
            name,
            command,
            access: Access::Free,
            moves: Moves::Nothing,
            len: usage.len() as u8,
            usage: pack(usage),
            thin: 0,
            wrong: [0; 2],
            needs_thin: false,
            stops: flags::ATTENTIONS,
        }
        .judged()
    }

    /// Makes ready what a CDB is judged by.
    const fn judged(mut self) -> Self {
        let inside = !0 << (128 - 8 * self.len as u32);
        self.wrong = [inside & !self.usage(false), inside & !self.usage(true)];
        self
    }

    const fn action(mut self, action: u8) -> Self {
        self.action = Some(action);
        self.usage |= (action as u128) << 112;
        self.judged()
    }

    const fn access(mut self, access: Access) -> Self {
        self.access = access;
        self.stops |= match access {
            Access::Free => 0,
            Access::Read => flags::READ_CONFLICTS,
            Access::Write | Access::FreeIf(_) => flags::WRITE_CONFLICTS,
        };
        self
    }

    const fn data_in(mut self, at: u8, bytes: u8) -> Self {
        self.moves = Moves::In(at, bytes);
        self
    }

    const fn data_out(mut self, at: u8, bytes: u8) -> Self {
        self.moves = Moves::Out(at, bytes);
        self
    }

    /// Offset and length of both fields in bytes.
    const fn blocks(mut self, lba: (u8, u8), count: (u8, u8)) -> Self {
        self.moves = Moves::Blocks(Blocks {
            lba: Field::new(lba.0, lba.1),
            count: Field::new(count.0, count.1),
        });
        self.medium()
    }

    const fn medium(mut self) -> Self {
        self.stops |= flags::STOPPED;
        self
    }

    /// It changes what is on the medium.
    const fn changes(mut self) -> Self {
        self.stops |= flags::PROTECTED;
        self.access(Access::Write).medium()
    }

    /// It is done whatever there is to be told (SAM-6, 5.14).
    const fn calm(mut self) -> Self {
        self.stops &= !flags::ATTENTIONS;
        self
    }

    const fn thin(mut self, usage: &[u8]) -> Self {
        self.thin = pack(usage);
        self.judged()
    }

    const fn needs_thin(mut self) -> Self {
        self.needs_thin = true;
        self
    }

    /// Whether a unit that can unmap blocks, or cannot, has it.
    pub(super) fn is_offered(&self, thin: bool) -> bool {
        thin || !self.needs_thin
    }

    /// CDB USAGE DATA, all 16 bytes of them.
    const fn usage(&self, thin: bool) -> u128 {
        self.usage & if thin { !0 } else { !self.thin }
    }

    /// CDB USAGE DATA (SPC-5, 6.35.3).
    pub(super) fn usage_bytes(&self, thin: bool) -> Vec<u8> {
        let mut bytes = self.usage(thin).to_be_bytes().to_vec();
        bytes.truncate(usize::from(self.len));
        bytes
    }

    /// The first bit of `cdb` that may not be set: byte and bit.
    #[inline]
    pub(super) fn misused(&self, cdb: Cdb, thin: bool) -> Option<(u16, u8)> {
        let [fixed, thinned] = self.wrong;
        let wrong = cdb.0 & if thin { thinned } else { fixed };
        if wrong == 0 {
            return None;
        }
        let at = wrong.leading_zeros();
        Some(((at / 8) as u16, (7 - at % 8) as u8))
    }
}

/// The rows, those of one operation code together.
#[rustfmt::skip]
pub(super) const TABLE: &[Operation] = {
    use Access::{FreeIf, Read, Write};
    type Row = Operation;
    // Group numbers mean nothing here, and are accepted as such.
    const G: u8 = 0x3f;
    &[
        Row::new("TEST UNIT READY", Command::TestUnitReady, &[0x00, 0, 0, 0, 0, 0]).medium(),
        Row::new("REQUEST SENSE", Command::RequestSense, &[0x03, 1, 0, 0, 0xff, 0]).data_in(4, 1).calm(),
        Row::new("READ(6)", Command::Read, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]).access(Read).blocks((1, 3), (4, 1)),
        Row::new("WRITE(6)", Command::Write, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]).changes().blocks((1, 3), (4, 1)),
        Row::new("INQUIRY", Command::Inquiry, &[0x12, 1, 0xff, 0xff, 0xff, 0]).data_in(3, 2).calm(),
        Row::new("MODE SELECT(6)", Command::ModeSelect, &[0x15, 0x10, 0, 0, 0xff, 0]).access(Write).data_out(4, 1),
        Row::new("MODE SENSE(6)", Command::ModeSense, &[0x1a, 8, 0xff, 0xff, 0xff, 0]).data_in(4, 1),
        Row::new("START STOP UNIT", Command::StartStop, &[0x1b, 1, 0, 0, 5, 0]).access(FreeIf(1)),
        Row::new("PREVENT ALLOW MEDIUM REMOVAL", Command::PreventAllow, &[0x1e, 0, 0, 0, 1, 0]).access(FreeIf(0)),
        Row::new("READ CAPACITY(10)", Command::ReadCapacity10, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]).medium(),
        Row::new("READ(10)", Command::Read, &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, G, 0xff, 0xff, 0]).access(Read).blocks((2, 4), (7, 2)),
        Row::new("WRITE(10)", Command::Write, &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, G, 0xff, 0xff, 0]).changes().blocks((2, 4), (7, 2)),
        Row::new("WRITE AND VERIFY(10)", Command::WriteAndVerify, &[0x2e, 0x12, 0xff, 0xff, 0xff, 0xff, G, 0xff, 0xff, 0]).changes().blocks((2, 4), (7, 2)),
        Row::new("VERIFY(10)", Command::Verify, &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, G, 0xff, 0xff, 0]).access(Read).blocks((2, 4), (7, 2)),
        Row::new("SYNCHRONIZE CACHE(10)", Command::SynchronizeCache, &[0x35, 2, 0xff, 0xff, 0xff, 0xff, G, 0xff, 0xff, 0]).access(Write).blocks((2, 4), (7, 2)),
        Row::new("WRITE SAME(10)", Command::WriteSame, &[0x41, 8, 0xff, 0xff, 0xff, 0xff, G, 0xff, 0xff, 0]).changes().blocks((2, 4), (7, 2)).thin(&[0, 8]),
        Row::new("UNMAP", Command::Unmap, &[0x42, 0, 0, 0, 0, 0, G, 0xff, 0xff, 0]).changes().data_out(7, 2).medium().needs_thin(),
        Row::new("LOG SENSE", Command::LogSense, &[0x4d, 0, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]).data_in(7, 2),
        Row::new("MODE SELECT(10)", Command::ModeSelect, &[0x55, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0]).access(Write).data_out(7, 2),
        Row::new("MODE SENSE(10)", Command::ModeSense, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]).data_in(7, 2),
        Row::new("PERSISTENT RESERVE IN, READ KEYS", Command::ReserveIn, &[0x5e, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]).action(0).data_in(7, 2),
        Row::new("PERSISTENT RESERVE IN, READ RESERVATION", Command::ReserveIn, &[0x5e, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]).action(1).data_in(7, 2),
        Row::new("PERSISTENT RESERVE IN, REPORT CAPABILITIES", Command::ReserveIn, &[0x5e, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]).action(2).data_in(7, 2),
        Row::new("PERSISTENT RESERVE IN, READ FULL STATUS", Command::ReserveIn, &[0x5e, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]).action(3).data_in(7, 2),
        Row::new("PERSISTENT RESERVE OUT, REGISTER", Command::ReserveOut, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]).action(0).data_out(5, 4),
        Row::new("PERSISTENT RESERVE OUT, RESERVE", Command::ReserveOut, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]).action(1).data_out(5, 4),
        Row::new("PERSISTENT RESERVE OUT, RELEASE", Command::ReserveOut, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]).action(2).data_out(5, 4),
        Row::new("PERSISTENT RESERVE OUT, CLEAR", Command::ReserveOut, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]).action(3).data_out(5, 4),
        Row::new("PERSISTENT RESERVE OUT, PREEMPT", Command::ReserveOut, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]).action(4).data_out(5, 4),
        Row::new("PERSISTENT RESERVE OUT, PREEMPT AND ABORT", Command::ReserveOut, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]).action(5).data_out(5, 4),
        Row::new("PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", Command::ReserveOut, &[0x5f, 0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]).action(6).data_out(5, 4),
        Row::new("READ(16)", Command::Read, &[0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).access(Read).blocks((2, 8), (10, 4)),
        Row::new("COMPARE AND WRITE", Command::CompareAndWrite, &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, G, 0]).changes().blocks((2, 8), (13, 1)),
        Row::new("WRITE(16)", Command::Write, &[0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).changes().blocks((2, 8), (10, 4)),
        Row::new("WRITE AND VERIFY(16)", Command::WriteAndVerify, &[0x8e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).changes().blocks((2, 8), (10, 4)),
        Row::new("VERIFY(16)", Command::Verify, &[0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).access(Read).blocks((2, 8), (10, 4)),
        Row::new("SYNCHRONIZE CACHE(16)", Command::SynchronizeCache, &[0x91, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).access(Write).blocks((2, 8), (10, 4)),
        Row::new("WRITE SAME(16)", Command::WriteSame, &[0x93, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).changes().blocks((2, 8), (10, 4)).thin(&[0, 8]),
        Row::new("READ CAPACITY(16)", Command::ReadCapacity16, &[0x9e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]).action(0x10).data_in(10, 4).medium(),
        Row::new("GET LBA STATUS(16)", Command::GetLbaStatus, &[0x9e, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]).action(0x12).access(Read).data_in(10, 4).medium(),
        Row::new("REPORT LUNS", Command::ReportLuns, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]).data_in(6, 4).calm(),
        Row::new("REPORT TARGET PORT GROUPS", Command::ReportPortGroups, &[0xa3, 0x20, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]).action(0x0a).data_in(6, 4),
        Row::new("REPORT SUPPORTED OPERATION CODES", Command::ReportOpcodes, &[0xa3, 0, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]).action(0x0c).data_in(6, 4),
        Row::new("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", Command::ReportTaskFunctions, &[0xa3, 0, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]).action(0x0d).data_in(6, 4),
        Row::new("READ(12)", Command::Read, &[0xa8, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).access(Read).blocks((2, 4), (6, 4)),
        Row::new("WRITE(12)", Command::Write, &[0xaa, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).changes().blocks((2, 4), (6, 4)),
        Row::new("WRITE AND VERIFY(12)", Command::WriteAndVerify, &[0xae, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).changes().blocks((2, 4), (6, 4)),
        Row::new("VERIFY(12)", Command::Verify, &[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, G, 0]).access(Read).blocks((2, 4), (6, 4)),
    ]
};

/// No row.
const NONE: u8 = u8::MAX;

/// The first row of each operation code.
static FIRST: [u8; 256] = {
    let mut first = [NONE; 256];
    let mut row = TABLE.len();
    while row > 0 {
        row -= 1;
        first[TABLE[row].code as usize] = row as u8;
    }
    first
};

/// Why there is no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The operation code is not known.
    Code,
    /// It is, but its service action is not.
    Action,
}

/// The row of a command with this operation code and, in byte 1, this service action, for a unit
/// that can unmap blocks or cannot.
#[inline]
pub(super) fn find(code: u8, action: u8, thin: bool) -> Result<&'static Operation, Missing> {
    let first = FIRST.get(usize::from(code)).copied().unwrap_or(NONE);
    let found = TABLE.get(usize::from(first)).ok_or(Missing::Code)?;
    if found.action.is_none() {
        return if found.is_offered(thin) {
            Ok(found)
        } else {
            Err(Missing::Code)
        };
    }
    let rows = TABLE.get(usize::from(first)..).unwrap_or(&[]);
    rows.iter()
        .take_while(|row| row.code == code)
        .find(|row| row.action == Some(action))
        .ok_or(Missing::Action)
}

/// All rows of a unit that can unmap blocks or cannot.
pub(super) fn offered(thin: bool) -> impl Iterator<Item = &'static Operation> {
    TABLE.iter().filter(move |row| row.is_offered(thin))
}

const _: () = assert!(MAX == 16 && TABLE.len() < NONE as usize);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_row_is_found_and_no_other() {
        let mut found = 0;
        for code in 0..=255 {
            for action in 0..32 {
                if let Ok(row) = find(code, action, true) {
                    assert_eq!(row.code, code);
                    found += usize::from(row.action.map_or(action == 0, |own| own == action));
                }
            }
        }
        assert_eq!(found, TABLE.len(), "rows of one code are not together");
        assert_eq!(find(0x42, 0, false).unwrap_err(), Missing::Code);
        assert_eq!(find(0x7f, 0, true).unwrap_err(), Missing::Code);
        assert_eq!(find(0x5e, 4, true).unwrap_err(), Missing::Action);
    }

    #[test]
    fn lengths_are_those_of_the_groups() {
        for row in TABLE {
            let len = match row.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                _ => 12,
            };
            assert_eq!(row.len, len, "{}", row.name);
            let usage = row.usage_bytes(true);
            assert_eq!(usage[0], row.code);
            assert_eq!(usage[1] & row.action.unwrap_or(0), row.action.unwrap_or(0));
        }
    }

    #[test]
    fn the_first_bit_that_is_wrong_is_told() {
        let read = find(0x28, 0, true).unwrap();
        let mut cdb = [0x28, 0x18, 1, 2, 3, 4, 0x3f, 5, 6, 0];
        assert_eq!(read.misused(Cdb::new(&cdb), true), None);
        cdb[9] = 4;
        assert_eq!(read.misused(Cdb::new(&cdb), true), Some((9, 2)));
        cdb[1] = 0x20;
        assert_eq!(read.misused(Cdb::new(&cdb), true), Some((1, 5)));
        // What comes behind a command is not part of it.
        let ready = find(0, 0, true).unwrap();
        assert_eq!(ready.misused(Cdb::new(&[0, 0, 0, 0, 0, 0, 9]), true), None);
        let same = find(0x41, 0, false).unwrap();
        let cdb = Cdb::new(&[0x41, 8]);
        assert_eq!(same.misused(cdb, true), None);
        assert_eq!(same.misused(cdb, false), Some((1, 3)));
    }
}
