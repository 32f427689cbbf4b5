//! A network card's two rings, as its driver uses them.

use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vvu::memory::Area;
use vvu::pci::DmaMemory;
use vvu::protocol::Features;
use vvu::virtqueue::{self, Buffer, DESCRIPTOR_LEN, QueueError, Ring, Used};
use vvu_pmd::net::feature;

use super::GuestError;
use super::error::{Fault, io};
use super::memory::Memory;
use super::wrap::{self, Request};

/// Most pieces that a frame to send is cut into.
pub(super) const MAX_PIECES: usize = 8;
/// Buffers begin on a cache line.
const ALIGN: usize = 64;

/// What was negotiated, as far as rings and headers care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format(pub(super) u64);

impl Format {
    fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    fn ring(self) -> virtqueue::Format {
        virtqueue::Format {
            packed: self.has(Features::RING_PACKED.bits()),
            event_idx: self.has(Features::EVENT_IDX.bits()),
            in_order: self.in_order(),
        }
    }

    /// Whether a chain may be a table of its own.
    pub(super) fn indirect(self) -> bool {
        self.has(Features::INDIRECT_DESC.bits())
    }

    fn in_order(self) -> bool {
        self.has(Features::IN_ORDER.bits())
    }

    fn modern(self) -> bool {
        self.has(Features::VERSION_1.bits())
    }

    /// Whether a received frame may be spread over several buffers.
    pub(super) fn mergeable(self) -> bool {
        self.has(feature::MRG_RXBUF)
    }

    /// Length of the header of each frame (VIRTIO 1.2, 5.1.6.1).
    pub(super) fn header(self) -> usize {
        if self.modern() || self.mergeable() {
            12
        } else {
            10
        }
    }
}

/// A ring with its signals.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: &'static str,
    pub(super) ring: Ring,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    pub(super) err: EventFd,
}

impl Queue {
    /// A ring of `size` without buffers, in a region of `memory`.
    pub(super) fn new(
        name: &'static str,
        memory: &mut Memory,
        region: usize,
        size: u16,
        format: Format,
    ) -> Result<Self, GuestError> {
        let bytes = memory.alloc(region, Ring::bytes(size), ALIGN)?;
        let ring = Ring::new(&bytes, 0, size, format.ring());
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(io("make an eventfd"));
        Ok(Self {
            name,
            ring: ring.map_err(|_| GuestError::NoMemory)?,
            kick: event()?,
            call: event()?,
            err: event()?,
        })
    }

    /// The next chain that the back-end is done with.
    pub(super) fn take(&mut self) -> Result<Option<Used>, Fault> {
        self.ring.take().map_err(|error| self.fault(error))
    }

    pub(super) fn fault(&self, source: QueueError) -> Fault {
        Fault::Ring {
            ring: self.name,
            source,
        }
    }

    /// Checks where the back-end says to have stopped: between what it returned and what it was
    /// given.
    pub(super) fn check_base(&self, found: u32) -> Result<(), Fault> {
        let fault = |error| self.fault(error);
        if self.ring.can_stop_at(found).map_err(fault)? {
            return Ok(());
        }
        let (low, high) = self.ring.bounds().map_err(fault)?;
        Err(Fault::Base {
            ring: self.name,
            found,
            low,
            high,
        })
    }

    /// Publishes what was added and kicks if the back-end wants it.
    pub(super) fn flush(&mut self) {
        if self.ring.publish() {
            self.notify();
        }
    }

    /// Kicks.
    pub(super) fn notify(&self) {
        // Full or not, it has been signalled.
        let _ = self.kick.write(1);
    }
}

/// The receive ring and its buffers.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) queue: Queue,
    format: Format,
    /// By head.
    buffers: Box<[Area]>,
    buffer_len: u32,
    frame: Vec<u8>,
}

impl Receiver {
    /// Bytes of memory for a ring of `size`, in pieces of a region.
    pub(super) fn bytes(size: u16, buffer_len: u32) -> u64 {
        Ring::bytes(size) as u64
            + u64::from(size) * u64::from(buffer_len.next_multiple_of(64))
            + 4096
    }

    /// A ring of `size`, all of its buffers with the back-end.
    pub(super) fn new(
        memory: &mut Memory,
        size: u16,
        buffer_len: u32,
        format: Format,
    ) -> Result<Self, GuestError> {
        let mut queue = Queue::new("receive", memory, 0, size, format)?;
        let mut buffers = Vec::new();
        for n in 0..usize::from(size) {
            let place = memory.alloc(n, buffer_len as usize, ALIGN)?;
            let buffer = Buffer {
                address: place.iova,
                len: buffer_len,
                writable: true,
            };
            // Heads of a new ring come in order.
            let head = queue.ring.push(&[buffer]);
            debug_assert_eq!(head, Ok(n as u16));
            buffers.push(place.bytes);
        }
        queue.ring.publish();
        Ok(Self {
            queue,
            format,
            buffers: buffers.into(),
            buffer_len,
            frame: Vec::new(),
        })
    }

    /// How many buffers there are, and how long each is.
    pub(super) fn buffers(&self) -> (u16, u32) {
        (self.queue.ring.size(), self.buffer_len)
    }

    /// Takes up to `budget` frames and shows `each` one's length, what is left to do with it, and at
    /// least its first `snap` bytes, if it has that many. Their buffers go back to the back-end.
    pub(super) fn poll(
        &mut self,
        budget: usize,
        snap: usize,
        mut each: impl FnMut(&[u8], usize, &Request),
    ) -> Result<usize, Fault> {
        let mut count = 0;
        while count < budget
            && let Some(used) = self.queue.take()?
        {
            let header = self.format.header();
            self.frame.clear();
            let (merged, request) = self.header(used.head, used.len)?;
            let mut len = self.copy(used.head, header, used.len, snap)?;
            self.queue.ring.again(used.head);
            for there in 1..merged {
                // All buffers of a frame are published at once.
                let found = merged;
                let more = self.queue.take()?.ok_or(Fault::Merged { found, there })?;
                len += self.copy(more.head, 0, more.len, snap)?;
                self.queue.ring.again(more.head);
            }
            each(&self.frame, len, &request);
            count += 1;
        }
        if count > 0 {
            self.queue.flush();
        }
        Ok(count)
    }

    /// Checks the header of a frame whose first buffer has `len` bytes; how many buffers it has,
    /// and what is left to do.
    fn header(&self, head: u16, len: u32) -> Result<(u16, Request), Fault> {
        let mut bytes = [0; 12];
        let header = bytes.get_mut(..self.format.header()).unwrap_or_default();
        if header.len() >= len as usize {
            return Err(self.length(len));
        }
        if let Some(buffer) = self.buffers.get(usize::from(head)) {
            buffer.slice().copy_to(header);
        }
        let [request @ .., low, high] = bytes;
        if !wrap::may_arrive(self.format.0, &request) {
            let [flags, gso, ..] = request;
            return Err(Fault::Offload { flags, gso });
        }
        match u16::from_le_bytes([low, high]) {
            _ if !self.format.mergeable() => Ok((1, request)),
            0 => Err(Fault::Merged { found: 0, there: 1 }),
            merged => Ok((merged, request)),
        }
    }

    /// Appends what a buffer holds from `skip` on to the frame, until that has `snap` bytes;
    /// returns how much the buffer holds.
    fn copy(&mut self, head: u16, skip: usize, len: u32, snap: usize) -> Result<usize, Fault> {
        let filled = (len as usize).checked_sub(skip).ok_or(self.length(len))?;
        let buffer = self.buffers.get(usize::from(head));
        let bytes = buffer.and_then(|buffer| buffer.sub(skip, filled));
        let bytes = bytes.ok_or(self.length(len))?;
        let start = self.frame.len();
        let wanted = filled.min(snap.saturating_sub(start));
        self.frame.resize(start + wanted, 0);
        if let Some(rest) = self.frame.get_mut(start..) {
            bytes.slice().copy_to(rest);
        }
        Ok(filled)
    }

    fn length(&self, found: u32) -> Fault {
        Fault::Length {
            found,
            room: self.buffer_len,
            header: self.format.header(),
        }
    }
}

/// The transmit ring and places for frames.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) queue: Queue,
    format: Format,
    places: Box<[DmaMemory]>,
    /// Places of no chain.
    idle: Vec<u16>,
    /// The place of the chain that begins at a head.
    place_of: Box<[u16]>,
    /// Where in a place an indirect table is.
    table: usize,
}

impl Sender {
    fn place_len(max_frame: usize) -> usize {
        (12 + max_frame).next_multiple_of(16) + MAX_PIECES * DESCRIPTOR_LEN
    }

    /// Bytes of memory for a ring of `size` and frames of up to `max_frame` bytes.
    pub(super) fn bytes(size: u16, max_frame: usize) -> u64 {
        let place = Self::place_len(max_frame).next_multiple_of(ALIGN);
        (Ring::bytes(size) + usize::from(size) * place + 4096) as u64
    }

    /// A ring of `size` and places for as many frames of up to `max_frame` bytes.
    pub(super) fn new(
        memory: &mut Memory,
        size: u16,
        max_frame: usize,
        format: Format,
    ) -> Result<Self, GuestError> {
        let queue = Queue::new("transmit", memory, 1, size, format)?;
        let len = Self::place_len(max_frame);
        let places = (0..usize::from(size)).map(|n| memory.alloc(n, len, ALIGN));
        Ok(Self {
            queue,
            format,
            places: places.collect::<Result<_, _>>()?,
            idle: (0..size).rev().collect(),
            place_of: vec![0; usize::from(size)].into(),
            table: (12 + max_frame).next_multiple_of(16),
        })
    }

    /// Whether there is room for another frame, in as many pieces as may be.
    pub(super) fn has_room(&mut self) -> Result<bool, Fault> {
        if self.idle.is_empty() || self.queue.ring.free() < MAX_PIECES {
            self.reclaim()?;
        }
        Ok(!self.idle.is_empty() && self.queue.ring.free() >= MAX_PIECES)
    }

    /// Adds a frame with what is left to do, in a chain that is cut at `cuts` (ascending, counted
    /// from the header's beginning). `false` if there is no room.
    pub(super) fn add(
        &mut self,
        request: &Request,
        frame: &[u8],
        cuts: &[usize],
    ) -> Result<bool, Fault> {
        if self.idle.is_empty() || self.queue.ring.free() < MAX_PIECES {
            self.reclaim()?;
        }
        let Some(number) = self.idle.pop() else {
            return Ok(false);
        };
        match self.fill(number, request, frame, cuts) {
            Some(head) => {
                if let Some(place) = self.place_of.get_mut(usize::from(head)) {
                    *place = number;
                }
                Ok(true)
            }
            None => {
                self.idle.push(number);
                Ok(false)
            }
        }
    }

    fn fill(
        &mut self,
        number: u16,
        request: &Request,
        frame: &[u8],
        cuts: &[usize],
    ) -> Option<u16> {
        let place = self.places.get(usize::from(number))?;
        let header = self.format.header();
        let bytes = place.bytes.slice();
        bytes.write_slice(request, 0).ok()?;
        bytes.write_slice(&[0, 0], request.len()).ok()?;
        bytes.write_slice(frame, header).ok()?;
        let end = header + frame.len();
        let mut chain = [Buffer {
            address: place.iova,
            len: end as u32,
            writable: false,
        }; MAX_PIECES];
        let mut count = 0;
        let mut start = 0;
        // A legacy device may expect the header in a buffer of its own (VIRTIO 1.2, 5.1.6.6).
        let legacy = (!self.format.modern()).then_some(header);
        for cut in legacy.into_iter().chain(cuts.iter().copied()).chain([end]) {
            if cut <= start || cut > end {
                continue;
            }
            let piece = chain.get_mut(count)?;
            piece.address = place.iova + start as u64;
            piece.len = (cut - start) as u32;
            (start, count) = (cut, count + 1);
        }
        let chain = chain.get(..count)?;
        if count < 2 || !self.format.indirect() {
            return self.queue.ring.push(chain).ok();
        }
        for (n, buffer) in chain.iter().enumerate() {
            let next = (n + 1 < count).then_some(n as u16 + 1);
            let at = self.table + n * DESCRIPTOR_LEN;
            let entry = self.queue.ring.table_entry(buffer, next);
            bytes.write_slice(&entry, at).ok()?;
        }
        let table = place.iova + self.table as u64;
        self.queue.ring.push_indirect(table, count as u16).ok()
    }

    /// Takes back all places that the back-end is done with; returns how many.
    pub(super) fn reclaim(&mut self) -> Result<usize, Fault> {
        let mut count = 0;
        while count < self.places.len()
            && let Some(used) = self.queue.take()?
        {
            self.queue.ring.release(used.head);
            self.idle.extend(self.place_of.get(usize::from(used.head)));
            count += 1;
        }
        Ok(count)
    }

    /// Sends up to `limit` frames like `frame`, as many as there is room for; all frames in the
    /// ring must be like it. Returns how many.
    pub(super) fn blast(&mut self, frame: &[u8], limit: u64) -> Result<u64, Fault> {
        let mut count = 0;
        while count < limit {
            // Those that must go in order go in order with what is added.
            let as_it_was = !self.format.in_order();
            if as_it_was && let Some(used) = self.queue.take()? {
                // The chain and its bytes are as they were.
                self.queue.ring.again(used.head);
            } else if as_it_was && self.idle.is_empty() || !self.add(&wrap::NONE, frame, &[])? {
                break;
            }
            count += 1;
        }
        if count > 0 {
            self.queue.flush();
        }
        Ok(count)
    }

    /// Frames that the back-end has.
    pub(super) fn in_flight(&self) -> u16 {
        self.queue.ring.in_flight()
    }
}
