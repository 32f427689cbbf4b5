//! Requests of disks, one after the other, in chains that make no sense or say what cannot be
//! done.

use super::rig::{Desc, NEXT, Rig, SIZE, WRITE, Which, encode, put};
use super::{Device, Scene};
use crate::guest::error::GuestError;
use crate::guest::storage::Language;

/// Most bytes that a device answers with.
pub(super) const ANSWER: usize = 128;
/// What the answer's place holds before.
const POISON: u8 = 0xee;

/// A piece of a chain: address, length, and whether the device may write it.
pub(super) type Piece = (u64, u32, bool);

/// A request.
pub(super) struct Hostile {
    pub(super) pieces: Vec<Piece>,
    /// Where a device of this kind would answer.
    pub(super) answer: u64,
    /// That it cannot be done, and why; else a device may do what it can make of it.
    pub(super) impossible: Option<String>,
}

/// The ring of a disk's requests.
pub(super) fn ring(scene: &Scene<'_>) -> Which {
    match scene.device {
        Device::Disk(Language::Scsi(_), _) => Which::Request,
        _ => Which::Transmit,
    }
}

/// Places for the parts of a request, and what is there.
pub(super) struct Desk<'a> {
    pub(super) rig: &'a Rig,
    which: Which,
}

impl Desk<'_> {
    /// Puts the head, and says where it is.
    pub(super) fn head(&self, bytes: &[u8]) -> u64 {
        let at = self.rig.buffer(self.which, 0);
        self.rig.write(at, bytes);
        at
    }

    /// Puts what is read behind the head, and says where it is: room for some 200 KiB.
    pub(super) fn data(&self, bytes: &[u8]) -> u64 {
        let at = self.rig.buffer(self.which, 1);
        self.rig.write(at, bytes);
        at
    }

    /// Where an answer goes.
    pub(super) fn answer(&self) -> u64 {
        self.rig.buffer(self.which, SIZE - 1)
    }
}

/// Says `count` requests, each when the one before was answered or had the time to be: what
/// `build` makes of the number of each. `done` tells of an answer whether the device says to have
/// done it.
pub(super) fn say(
    scene: &mut Scene<'_>,
    which: Which,
    count: usize,
    build: impl Fn(&Desk<'_>, usize, &mut fastrand::Rng) -> Hostile,
    done: fn(&[u8; ANSWER]) -> bool,
) -> Result<(), GuestError> {
    let mut usable: Option<(Rig, u16)> = None;
    for number in 0..count {
        // A ring that stopped takes nothing more.
        let (rig, index) = match usable.take() {
            Some(usable) => usable,
            None => (Rig::new(scene)?, 0),
        };
        let desk = Desk { rig: &rig, which };
        let hostile = build(&desk, number, &mut scene.rng);
        let mut bytes = [POISON; ANSWER];
        rig.write(hostile.answer, &bytes);
        write(&rig, which, &hostile.pieces);
        let next = index.wrapping_add(1);
        rig.offer(which, [0; SIZE as usize]);
        rig.publish(which, next);
        rig.look_until(|| rig.used_index(which) == next);
        if rig.used_index(which) != next || rig.link.is_over() {
            continue;
        }
        rig.read(hostile.answer, &mut bytes);
        match hostile.impossible {
            Some(why) if done(&bytes) => return Err(GuestError::Accepted(why)),
            _ => usable = Some((rig, next)),
        }
    }
    Ok(())
}

/// Writes a chain, from descriptor 0 on.
fn write(rig: &Rig, which: Which, pieces: &[Piece]) {
    let last = pieces.len().saturating_sub(1);
    let descs = (0..).zip(pieces).map(|(n, (at, len, writable))| -> Desc {
        let write = if *writable { WRITE } else { 0 };
        let more = if usize::from(n) < last { NEXT } else { 0 };
        (*at, *len, write | more, n + 1)
    });
    let ring = &rig.queue(which).ring;
    for (n, desc) in descs.enumerate().take(SIZE.into()) {
        put(ring.memory(), 16 * n, &encode(desc));
    }
}
