//! What three initiators ask of one unit: CDBs with data, one after the other, while the disk
//! changes its size, fails and is reset.

use vvu_pmd::bdev::IoError;
use vvu_pmd::scsi::target::bench::{Bench, first};
use vvu_pmd::scsi::target::{Key, Luns, MAX_SENSE, Reservations, Status};

use crate::Input;

/// Blocks of the disk, at most.
const BLOCKS: u64 = 64;

/// Steps of a script.
pub mod step {
    /// A command: initiator, LUN, length of the CDB and itself, data, room for data.
    pub const COMMAND: u8 = 0;
    /// The disk has so many blocks.
    pub const RESIZE: u8 = 1;
    /// The disk fails after so many requests, or works again.
    pub const FAIL: u8 = 2;
    /// An initiator resets the unit.
    pub const RESET: u8 = 3;
    /// An initiator leaves, and another one comes in its place.
    pub const LEAVE: u8 = 4;
    /// How many there are.
    pub const COUNT: u8 = 5;
}

/// Runs the script. Every command is answered, in bounded steps; the answer is consistent and no
/// longer than there is room; what is refused before it began changes nothing; reservations
/// survive being written down.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bench = Bench::new(BLOCKS);
    let mut all: Vec<Luns> = (1..=3).map(|number| bench.newcomer(number)).collect();
    while !input.is_empty() {
        let what = input.u8() % step::COUNT;
        let who = usize::from(input.u8()) % all.len();
        match what {
            step::RESIZE => {
                bench
                    .unit
                    .resize((u64::from(input.u8()) % (BLOCKS + 1)) << 9);
            }
            step::FAIL => {
                let errors = [IoError::Io(5), IoError::NoSpace, IoError::Gone];
                let after = input.u8();
                let error = errors.get(usize::from(input.u8())).copied();
                bench.fails = error.map(|error| (after.into(), error));
            }
            step::RESET => {
                bench.unit.reset(first(&all[who]).id());
                bench.bell.take_orders();
            }
            step::LEAVE => all[who] = bench.newcomer(u64::from(input.u8() % 4)),
            _ => command(&mut bench, &all[who], &mut input),
        }
        bench.bell.take_changes();
    }
    if let Some(saved) = bench.saved {
        let text = saved.to_text("boot");
        assert_eq!(Reservations::from_text(&text, "boot"), Ok(saved));
    }
}

fn command(bench: &mut Bench, luns: &Luns, input: &mut Input) {
    let lun = input.u8() % 2;
    let cdb = input.part();
    let mut out = input.part();
    // What follows is zero.
    out.resize(out.len() + usize::from(input.u16() % 4096), 0);
    let room = u64::from(input.u16());
    bench.steps.clear();
    let before = bench.disk.clone();
    let ended = bench.run(luns, lun.into(), &cdb, &out, room);
    let untouched = bench.disk == before;
    let Some(answer) = ended.answer else {
        assert!(bench.steps.is_empty() && untouched, "overrun, but begun");
        return;
    };
    let failed = answer.status == Status::CheckCondition;
    assert_eq!(answer.sense.is_some(), failed);
    assert!(ended.data.len() as u64 <= room && (!failed || answer.data.is_empty()));
    if let Some(sense) = answer.sense {
        for format in [false, true] {
            let bytes = sense.bytes(format);
            assert!((8..=MAX_SENSE).contains(&bytes.len()));
        }
        if matches!(sense.key, Key::UnitAttention | Key::DataProtect) && bench.fails.is_none() {
            assert!(untouched, "refused, but written");
        }
    }
    if answer.status == Status::ReservationConflict {
        assert!(untouched, "somebody else's, but written");
    }
}
