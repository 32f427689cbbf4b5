//! The control queue (VIRTIO 1.2, 5.6.6.2): task management and asynchronous notification.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vvu::memory::Scatter;

use super::domain::{Address, Seat};
use super::face::{Face, Order};
use super::served::Served;
use super::target::{Attention, Barrier};
use super::wire::{self, Code};
use crate::vring::{Chain, Keep, Taken};

/// Index of the queue.
pub(super) const INDEX: u16 = 0;

/// Most requests that wait for the end of tasks.
const MAX_WAITING: usize = 64;

/// Types of requests.
const TASK_MANAGEMENT: u32 = 0;
const QUERY: u32 = 1;
const SUBSCRIBE: u32 = 2;

/// Length of a request for task management, and of one about notifications.
const MANAGEMENT_LEN: u32 = 24;
const NOTIFICATION_LEN: u32 = 16;

/// Functions of task management.
mod function {
    pub(super) const ABORT_TASK: u32 = 0;
    pub(super) const ABORT_TASK_SET: u32 = 1;
    pub(super) const CLEAR_TASK_SET: u32 = 3;
    pub(super) const NEXUS_RESET: u32 = 4;
    pub(super) const UNIT_RESET: u32 = 5;
    pub(super) const QUERY_TASK: u32 = 6;
    pub(super) const QUERY_TASK_SET: u32 = 7;
}

/// A request that waits until tasks have ended, or were looked for.
#[derive(Debug)]
struct Waiting {
    chain: Chain,
    response: Box<Scatter>,
    barrier: Barrier,
    /// Whether what was looked for is there.
    found: Option<Arc<AtomicBool>>,
}

/// The control queue's own part.
#[derive(Debug, Default)]
pub(super) struct ControlQueue {
    list: Vec<Waiting>,
}

/// What to do about a request.
enum Reply {
    /// Write these bytes.
    Now(Vec<u8>),
    Wait(Barrier, Option<Arc<AtomicBool>>),
    /// It cannot be answered.
    Malformed,
}

impl ControlQueue {
    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.list.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.list.len() < MAX_WAITING
    }

    /// One round. Returns how many requests were taken and answered.
    pub(super) fn poll(&mut self, served: &mut Served) -> usize {
        let mut count = 0;
        self.list.retain(|waiting| {
            if !waiting.barrier.is_clear() {
                return true;
            }
            let found = waiting.found.as_ref();
            let code = match found.is_some_and(|found| found.load(Ordering::Acquire)) {
                true => Code::Succeeded,
                false => Code::Ok,
            };
            wire::write(waiting.response.tail(), 0, &[code as u8]);
            served.ring.give_back_kept(&waiting.chain, 1);
            count += 1;
            false
        });
        let room = MAX_WAITING - self.list.len();
        if served.takes() && room > 0 {
            let taken = served.ring.take_burst(room);
            if taken > 0 {
                self.begin_all(served);
            }
            count += taken;
        }
        if count > 0 {
            served.ring.publish();
        }
        count
    }

    /// Begins, or answers, all that was taken.
    #[cold]
    fn begin_all(&mut self, served: &mut Served) {
        let face = Arc::clone(&served.face);
        let chains: Vec<Chain> = served.ring.chains().to_vec();
        let mut given = Vec::new();
        for chain in chains {
            let memory = served.ring.taken();
            match judge(&face, memory, &chain) {
                Reply::Now(bytes) => {
                    wire::write(memory.writable(&chain), 0, &bytes);
                    given.push((chain, bytes.len() as u32));
                }
                Reply::Malformed => given.push((chain, 0)),
                Reply::Wait(barrier, found) => {
                    let mut response = Box::new(Scatter::of_table(Arc::default()));
                    let keep = Keep {
                        tail: 0..1,
                        ..Keep::default()
                    };
                    memory.keep(&chain, keep, &mut response);
                    self.list.push(Waiting {
                        chain,
                        response,
                        barrier,
                        found,
                    });
                }
            }
        }
        served.ring.keep_all();
        for (chain, len) in given {
            served.ring.give_back_kept(&chain, len);
        }
    }
}

/// Looks at a request, and begins what it asks for.
fn judge(face: &Face, taken: &Taken, chain: &Chain) -> Reply {
    let mut bytes = [0; MANAGEMENT_LEN as usize];
    let len = wire::read(taken.readable(chain), 0, &mut bytes) as u32;
    let all = bytes.as_chunks::<4>().0;
    let le32 = |at: usize| all.get(at).map_or(0, |four| u32::from_le_bytes(*four));
    match le32(0) {
        TASK_MANAGEMENT if len >= MANAGEMENT_LEN && chain.write_len() >= 1 => {
            let (lun, tag) = (bytes[8..16].try_into(), bytes[16..24].try_into());
            match (lun, tag) {
                (Ok(lun), Ok(tag)) => manage(face, le32(1), lun, u64::from_le_bytes(tag)),
                _ => Reply::Malformed,
            }
        }
        // Nothing is ever told asynchronously, so there is nothing to be subscribed.
        QUERY | SUBSCRIBE if len >= NOTIFICATION_LEN && chain.write_len() >= 5 => {
            Reply::Now(vec![0, 0, 0, 0, Code::Ok as u8])
        }
        _ => Reply::Malformed,
    }
}

/// Begins a function of task management.
fn manage(face: &Face, function: u32, lun: [u8; 8], tag: u64) -> Reply {
    let now = |code: Code| Reply::Now(vec![code as u8]);
    let domain = face.domain();
    let Some(address) = Address::parse(lun) else {
        return now(Code::IncorrectLun);
    };
    let Some(target) = domain.target(address.target) else {
        return now(Code::BadTarget);
    };
    if function == function::NEXUS_RESET {
        let barrier = Barrier::default();
        for seat in target.seats() {
            seat.nexus.attend(Attention::NexusLoss);
            end_all(face, seat, Code::Reset, &barrier);
        }
        return Reply::Wait(barrier, None);
    }
    let Some(seat) = target.seat(address.lun) else {
        return now(Code::IncorrectLun);
    };
    let barrier = Barrier::default();
    let order = |tag, code, found| Order {
        address,
        tag,
        code,
        found,
        waiting: true,
        barrier: barrier.clone(),
    };
    match function {
        function::ABORT_TASK => face.board().order(&order(Some(tag), Code::Aborted, None)),
        // Each initiator has a task set of its own.
        function::ABORT_TASK_SET | function::CLEAR_TASK_SET => {
            end_all(face, seat, Code::Aborted, &barrier);
        }
        function::UNIT_RESET => {
            let barrier = seat.nexus.unit().reset(seat.nexus.id());
            return Reply::Wait(barrier, None);
        }
        function::QUERY_TASK | function::QUERY_TASK_SET => {
            let tag = (function == function::QUERY_TASK).then_some(tag);
            let found = Arc::new(AtomicBool::new(false));
            let looked_for = order(tag, Code::Succeeded, Some(Arc::clone(&found)));
            face.board().order(&looked_for);
            drop(looked_for);
            return Reply::Wait(barrier, Some(found));
        }
        _ => return now(Code::Rejected),
    }
    Reply::Wait(barrier, None)
}

/// All tasks of a nexus must end.
fn end_all(face: &Face, seat: &Seat, code: Code, barrier: &Barrier) {
    face.board().order(&Order {
        address: seat.address,
        tag: None,
        code,
        found: None,
        waiting: true,
        barrier: barrier.clone(),
    });
}
