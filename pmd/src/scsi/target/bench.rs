//! A unit on plain memory, for tests: commands go in, answers come out, one after the other.

use std::sync::{Arc, Mutex, PoisonError};

use crate::bdev::{Abilities, Geometry, IoError, Limits};

use super::{
    Action, Alone, Answer, Attention, Barrier, Bell, Call, Desk, Identity, Job, Luns, Missing,
    Next, Nexus, NexusId, Reservations, Step, Transfer, Unit,
};

/// Hears what a nexus is told, and has no tasks.
#[derive(Debug, Default)]
pub struct Counter {
    held: Mutex<Vec<Barrier>>,
    changes: Mutex<Vec<Attention>>,
}

impl Counter {
    /// Orders to end all tasks since the last time.
    pub fn take_orders(&self) -> Vec<Barrier> {
        std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes since the last time.
    pub fn take_changes(&self) -> Vec<Attention> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Bell for Counter {
    fn abort(&self, barrier: &Barrier) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(barrier.clone());
    }

    fn changed(&self, attention: Attention) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.push(attention);
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its answer; `None` if its buffers were too short.
    pub answer: Option<Answer>,
    /// What was read for it.
    pub data: Vec<u8>,
}

/// One unit and its disk, with as many initiators as one likes.
#[derive(Debug)]
pub struct Bench {
    /// The disk.
    pub disk: Vec<u8>,
    /// The unit.
    pub unit: Arc<Unit>,
    /// What orders ring.
    pub bell: Arc<Counter>,
    /// Steps left until the disk fails, if it shall.
    pub fails: Option<(u32, IoError)>,
    /// Steps that were done, in words.
    pub steps: Vec<String>,
    /// What was saved last.
    pub saved: Option<Reservations>,
    /// How many initiators' tasks had to end for a command.
    pub aborted: usize,
}

/// Steps after which a command counts as one that never ends.
const MOST_STEPS: usize = 100_000;

impl Bench {
    /// A disk of `blocks` blocks of 512 bytes that can do everything.
    pub fn new(blocks: u64) -> Self {
        let limits = Limits {
            max_bytes: 1 << 20,
            granularity: 4096,
        };
        let abilities = Abilities {
            read_only: false,
            write_back: true,
            discard: Some(limits),
            write_zeroes: Some(limits),
            needs_pinnable: false,
        };
        Self::with(blocks << 9, Geometry::default(), abilities, None)
    }

    /// A disk of `bytes` bytes like this.
    pub fn with(
        bytes: u64,
        geometry: Geometry,
        abilities: Abilities,
        kept: Option<Reservations>,
    ) -> Self {
        let identity = Identity::new("bench-1");
        Self {
            disk: vec![0; bytes as usize],
            unit: Unit::new(identity, geometry, abilities, bytes, kept),
            bell: Arc::default(),
            fails: None,
            steps: Vec::new(),
            saved: None,
            aborted: 0,
        }
    }

    /// An initiator of this number, which has heard of the power on.
    pub fn initiator(&self, number: u64) -> Luns {
        let luns = self.newcomer(number);
        if let Some(nexus) = luns.get(0) {
            while nexus.take_attention().is_some() {}
        }
        luns
    }

    /// An initiator of this number.
    pub fn newcomer(&self, number: u64) -> Luns {
        let id = NexusId {
            initiator: number,
            target: 0,
        };
        let bell: Arc<dyn Bell> = Arc::clone(&self.bell) as _;
        let nexus = self.unit.attach(id, number as u16, bell);
        let mut luns = Luns::default();
        luns.set(0, Some(nexus));
        luns
    }

    /// Does a command that sends `out` and takes `data_in` bytes, to its end.
    pub fn run(&mut self, luns: &Luns, lun: u16, cdb: &[u8], out: &[u8], data_in: u64) -> Ended {
        let call = Call {
            cdb,
            data_in,
            data_out: out.len() as u64,
            out: &out,
            luns,
        };
        let step = match luns.get(lun) {
            Some(nexus) => nexus.execute(&call),
            None => Missing.execute(&call),
        };
        let mut data = Vec::new();
        let answer = match step {
            Step::Overrun => None,
            Step::Done(answer) => {
                data = answer.data.clone();
                Some(answer)
            }
            Step::Move(transfer) => {
                let result = self.transfer(transfer, out, &mut data);
                Some(Answer::of(result, transfer.write))
            }
            Step::Job(job) => Some(self.job(job, out, &mut data)),
        };
        Ended { answer, data }
    }

    fn job(&mut self, mut job: Job, out: &[u8], data: &mut Vec<u8>) -> Answer {
        let mut buffer = Vec::new();
        let mut last = Ok(());
        let mut alone = Vec::new();
        for _ in 0..MOST_STEPS {
            let mut desk = Desk {
                out: &out,
                buffer: &mut buffer,
            };
            let action = match job.next(last, &mut desk) {
                Next::Done(answer) => return answer,
                Next::Do(action) => action,
            };
            self.steps.push(format!("{action:?}"));
            last = match action {
                Action::Move(transfer) => self.transfer(transfer, out, data),
                Action::Read { offset, len } => {
                    assert!(len <= super::CHUNK);
                    let mut read = |bench: &mut Self| {
                        buffer = bench.range(offset, len)?.to_vec();
                        Ok(())
                    };
                    self.fail().and_then(|()| read(self))
                }
                Action::Write { offset, .. } => {
                    assert!(buffer.len() as u64 <= super::CHUNK);
                    self.fail().and_then(|()| {
                        self.range(offset, buffer.len() as u64)?
                            .copy_from_slice(&buffer);
                        Ok(())
                    })
                }
                Action::Flush => self.fail(),
                Action::Discard { offset, len } | Action::Zero { offset, len, .. } => self
                    .fail()
                    .and_then(|()| self.range(offset, len).map(|range| range.fill(0))),
                Action::Alone => {
                    alone.extend(self.unit.gate().close());
                    assert!(alone.iter().all(Alone::is_alone) && alone.len() == 1);
                    Ok(())
                }
                Action::Save(all) => self.fail().map(|()| self.saved = Some(all)),
                Action::Await(barrier) => {
                    // There are no tasks but this one.
                    self.aborted += self.bell.take_orders().len();
                    assert!(barrier.is_clear());
                    Ok(())
                }
            };
        }
        panic!("a command that does not end");
    }

    fn fail(&mut self) -> Result<(), IoError> {
        match &mut self.fails {
            Some((0, error)) => Err(*error),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn range(&mut self, offset: u64, len: u64) -> Result<&mut [u8], IoError> {
        assert_eq!((offset | len) % u64::from(self.unit.block()), 0);
        let end = offset.checked_add(len).ok_or(IoError::Range)?;
        let range = offset as usize..end as usize;
        self.disk.get_mut(range).ok_or(IoError::Range)
    }

    fn transfer(
        &mut self,
        transfer: Transfer,
        out: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<(), IoError> {
        self.steps.push(format!("{transfer:?}"));
        self.fail()?;
        let Transfer { offset, len, .. } = transfer;
        let range = self.range(offset, len)?;
        if transfer.write {
            range.copy_from_slice(&out[..len as usize]);
        } else {
            *data = range.to_vec();
        }
        Ok(())
    }
}

/// The nexus at LUN 0.
pub fn first(luns: &Luns) -> &Arc<Nexus> {
    luns.get(0).expect("every initiator of a bench has LUN 0")
}
