//! A request ring, and places for what is said in it.

use std::time::Instant;

use vm_memory::Bytes;
use vvu::memory::Area;
use vvu::pci::DmaMemory;
use vvu::virtqueue::{Buffer, DESCRIPTOR_LEN, Ring};

use super::request::{Message, Request};
use crate::guest::error::{Fault, GuestError};
use crate::guest::memory::Memory;
use crate::guest::queues::{Format, Queue};

/// Most pieces that a request is cut into.
pub(super) const MAX_PIECES: usize = 16;
/// A place's bytes for the head, for what is read behind it, and for the answer; then comes its
/// table. All are more than either language needs.
const HEAD_ROOM: usize = 64;
const TAIL_AT: usize = HEAD_ROOM;
const TAIL_ROOM: usize = 128;
const TABLE_AT: usize = TAIL_AT + TAIL_ROOM;
const META: usize = TABLE_AT + MAX_PIECES * DESCRIPTOR_LEN;
const ALIGN: usize = 64;
/// What a device overwrites with its answer.
const POISON: u8 = 0xee;

/// Where the answer is in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Behind the data, as in virtio-blk.
    Last(usize),
    /// Before it, as in virtio-scsi.
    First(usize),
}

impl Tail {
    pub(super) fn len(self) -> usize {
        match self {
            Self::Last(len) | Self::First(len) => len,
        }
    }
}

/// How a request is put into the ring.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cut {
    /// Its parts, and its data, are cut at random into about so many pieces more than they need.
    pub(super) extra: usize,
    /// Through a table of its own, if that was negotiated.
    pub(super) indirect: bool,
}

/// A request that came back.
pub(super) struct Answer<'a> {
    pub(super) request: Request,
    /// What the caller gave along.
    pub(super) token: u64,
    pub(super) sent: Instant,
    /// The response or the status.
    pub(super) tail: &'a [u8],
    /// How many bytes the device says to have written in all.
    pub(super) written: u32,
    /// The data of a request that reads.
    pub(super) data: &'a Area,
}

/// One request's place.
#[derive(Debug)]
struct Place {
    meta: DmaMemory,
    data: DmaMemory,
    running: Option<Running>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    request: Request,
    token: u64,
    sent: Instant,
    /// Bytes that the device may write.
    room: u32,
}

/// A ring of requests.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) queue: Queue,
    tail: Tail,
    places: Box<[Place]>,
    idle: Vec<u16>,
    /// The place of the chain that begins at a head.
    place_of: Box<[u16]>,
    indirect: bool,
}

impl Requests {
    /// Bytes of memory for a ring of `size` and `depth` requests with up to `data` bytes each.
    pub(super) fn bytes(size: u16, depth: u16, data: usize) -> u64 {
        let place = META.next_multiple_of(ALIGN) + data.next_multiple_of(ALIGN);
        (Ring::bytes(size) + usize::from(depth) * place + 4096) as u64
    }

    pub(super) fn new(
        memory: &mut Memory,
        size: u16,
        depth: u16,
        data: usize,
        tail: Tail,
        format: Format,
    ) -> Result<Self, GuestError> {
        let queue = Queue::new("request", memory, 0, size, format)?;
        let mut place = |n: u16| {
            // Where there are several regions, a request is in two of them.
            Ok(Place {
                meta: memory.alloc(n.into(), META, ALIGN)?,
                data: memory.alloc(usize::from(n) + 1, data, ALIGN)?,
                running: None,
            })
        };
        let places: Result<_, GuestError> = (0..depth).map(&mut place).collect();
        Ok(Self {
            queue,
            tail,
            places: places?,
            idle: (0..depth).rev().collect(),
            place_of: vec![0; usize::from(size)].into(),
            indirect: format.indirect(),
        })
    }

    /// Requests that the device has.
    pub(super) fn in_flight(&self) -> usize {
        self.places.len() - self.idle.len()
    }

    /// Whether another request can be added, in as many pieces as may be.
    pub(super) fn has_room(&self) -> bool {
        !self.idle.is_empty() && self.queue.ring.free() >= MAX_PIECES
    }

    /// Adds a request, whose data `fill` provides; `false` if there is no room. It goes with the
    /// next [`Queue::flush`].
    pub(super) fn add(
        &mut self,
        request: Request,
        message: &Message,
        token: u64,
        cut: Cut,
        rng: &mut fastrand::Rng,
        fill: impl FnOnce(&Area),
    ) -> bool {
        if !self.has_room() {
            return false;
        }
        let Some(number) = self.idle.pop() else {
            return false;
        };
        let Some(place) = self.places.get_mut(usize::from(number)) else {
            return false;
        };
        let put = |at: &DmaMemory, offset: usize, bytes: &[u8]| {
            let done = at.bytes.slice().write_slice(bytes, offset);
            debug_assert!(done.is_ok(), "a place has room for any message");
        };
        put(&place.meta, 0, &message.head);
        put(&place.meta, TAIL_AT, &[POISON; TAIL_ROOM]);
        match message.payload.as_slice() {
            [] => fill(&place.data.bytes),
            payload => put(&place.data, 0, payload),
        }
        let piece = |address, len: usize, writable| Buffer {
            address,
            len: len as u32,
            writable,
        };
        let head = piece(place.meta.iova, message.head.len(), false);
        let out = piece(place.data.iova, message.out as usize, false);
        let data_in = piece(place.data.iova, message.data_in as usize, true);
        let tail = piece(place.meta.iova + TAIL_AT as u64, self.tail.len(), true);
        let parts = match self.tail {
            Tail::Last(_) => [head, out, data_in, tail],
            Tail::First(_) => [head, out, tail, data_in],
        };
        let mut chain = Chain::of(parts);
        for _ in 0..cut.extra {
            chain.cut(rng);
        }
        place.running = Some(Running {
            request,
            token,
            sent: Instant::now(),
            room: message.data_in + self.tail.len() as u32,
        });
        let pieces = chain.pieces();
        let ring = &mut self.queue.ring;
        let pushed = if cut.indirect && self.indirect {
            for (n, buffer) in (0..).zip(pieces) {
                let next = (usize::from(n) + 1 < pieces.len()).then_some(n + 1);
                let entry = ring.table_entry(buffer, next);
                put(
                    &place.meta,
                    TABLE_AT + usize::from(n) * DESCRIPTOR_LEN,
                    &entry,
                );
            }
            ring.push_indirect(place.meta.iova + TABLE_AT as u64, pieces.len() as u16)
        } else {
            ring.push(pieces)
        };
        let Ok(head) = pushed else {
            place.running = None;
            self.idle.push(number);
            return false;
        };
        if let Some(place) = self.place_of.get_mut(usize::from(head)) {
            *place = number;
        }
        true
    }

    /// Takes what the device is done with, at most as many as it can have, and shows `each`.
    pub(super) fn reap(&mut self, mut each: impl FnMut(Answer<'_>)) -> Result<usize, Fault> {
        let mut count = 0;
        while count < self.places.len()
            && let Some(used) = self.queue.take()?
        {
            let number = self.place_of.get(usize::from(used.head)).copied();
            let place = number.and_then(|number| self.places.get_mut(usize::from(number)));
            let running = place.and_then(|place| Some((place.running.take()?, &*place)));
            // A chain that the ring gives back once was pushed once.
            let (Some(number), Some((running, place))) = (number, running) else {
                continue;
            };
            self.queue.ring.release(used.head);
            self.idle.push(number);
            count += 1;
            if used.len > running.room {
                return Err(Fault::Answer {
                    found: used.len,
                    room: running.room,
                });
            }
            let mut tail = [0; TAIL_ROOM];
            let tail = tail.get_mut(..self.tail.len()).unwrap_or_default();
            let read = place.meta.bytes.slice().read_slice(tail, TAIL_AT);
            debug_assert!(read.is_ok(), "it was written there before");
            if tail.iter().all(|byte| *byte == POISON) {
                return Err(Fault::Unanswered(running.request.to_string()));
            }
            each(Answer {
                request: running.request,
                token: running.token,
                sent: running.sent,
                tail,
                written: used.len,
                data: &place.data.bytes,
            });
        }
        Ok(count)
    }
}

/// A request's pieces.
struct Chain {
    pieces: [Buffer; MAX_PIECES],
    count: usize,
}

impl Chain {
    fn of(parts: [Buffer; 4]) -> Self {
        let mut chain = Self {
            pieces: [parts[0]; MAX_PIECES],
            count: 0,
        };
        for (piece, part) in chain
            .pieces
            .iter_mut()
            .zip(parts.into_iter().filter(|part| part.len > 0))
        {
            *piece = part;
            chain.count += 1;
        }
        chain
    }

    fn pieces(&self) -> &[Buffer] {
        self.pieces.get(..self.count).unwrap_or_default()
    }

    /// Cuts a piece in two, anywhere.
    fn cut(&mut self, rng: &mut fastrand::Rng) {
        let at = rng.usize(..self.count.max(1));
        let Some(piece) = self.pieces.get_mut(at) else {
            return;
        };
        if self.count == MAX_PIECES || piece.len < 2 {
            return;
        }
        let whole = *piece;
        let first = rng.u32(1..whole.len);
        piece.len = first;
        let second = Buffer {
            address: whole.address + u64::from(first),
            len: whole.len - first,
            ..whole
        };
        self.pieces.copy_within(at + 1..self.count, at + 2);
        self.pieces[at + 1] = second;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_keeps_every_byte_and_its_order() {
        let part = |address, len, writable| Buffer {
            address,
            len,
            writable,
        };
        let parts = [
            part(0, 16, false),
            part(100, 0, false),
            part(200, 4096, true),
            part(9000, 1, true),
        ];
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut chain = Chain::of(parts);
            assert_eq!(chain.pieces().len(), 3);
            for _ in 0..400 {
                chain.cut(&mut rng);
            }
            assert_eq!(chain.pieces().len(), MAX_PIECES);
            let bytes = |pieces: &[Buffer]| -> Vec<(u64, bool)> {
                let each = |p: &Buffer| {
                    let writable = p.writable;
                    (p.address..p.address + u64::from(p.len)).map(move |at| (at, writable))
                };
                pieces.iter().flat_map(each).collect()
            };
            assert_eq!(bytes(chain.pieces()), bytes(&parts));
        }
    }
}
