//! Frames that no network card would send.

use super::rig::{BUFFER, NEXT, SIZE, Which};
use super::rings::one;
use super::{Deed, Scene};
use crate::guest::error::GuestError;

/// Sends frames whose virtio-net header is random.
fn random_headers(scene: &mut Scene<'_>) -> Result<(), GuestError> {
    one(scene, Which::Transmit, |rig, which, rng| {
        for index in 0..SIZE {
            let mut bytes = vec![0; rig.header + 1400];
            rng.fill(&mut bytes);
            // Kinds of requests that exist, with numbers that do not fit them.
            if let [flags, gso, ..] = bytes.as_mut_slice() {
                *flags = rng.u8(..4);
                *gso = rng.choice([0, 1, 3, 4, 5, 0x81, 0xff]).unwrap_or(0);
            }
            let (at, _, flags, next) = rig.good(which, index);
            rig.write(at, &bytes);
            let len = rng.u32(..=bytes.len() as u32);
            rig.desc(which, index, (at, len, flags, next));
        }
        SIZE
    })
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "frame-without-header",
        what: "frames of 1 byte, of less than a header, and of a header only",
        act: |scene| {
            one(scene, Which::Transmit, |rig, which, _| {
                for (index, len) in (0..).zip([1, 9, rig.header as u32, rig.header as u32 + 1]) {
                    let (at, _, flags, next) = rig.good(which, index);
                    rig.desc(which, index, (at, len, flags, next));
                }
                4
            })
        },
    },
    Deed {
        name: "frame-giant",
        what: "a frame of 128 KiB",
        act: |scene| {
            one(scene, Which::Transmit, |rig, which, _| {
                for index in 0..32 {
                    let next = if index < 31 { NEXT } else { 0 };
                    rig.desc(
                        which,
                        index,
                        (rig.buffer(which, index), BUFFER, next, index + 1),
                    );
                }
                1
            })
        },
    },
    Deed {
        name: "headers-random",
        what: "random requests for checksums and segmentation",
        act: random_headers,
    },
];
