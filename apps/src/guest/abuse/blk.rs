//! Requests that no driver of a virtio-blk disk would send (VIRTIO 1.2, 5.2.6).

use super::chains::{ANSWER, Desk, Hostile, Piece, ring, say};
use super::{Deed, Scene};
use crate::guest::error::GuestError;
use crate::guest::storage::blk::{head, kind, range};

/// Sectors of which no disk has any, the last one of 2^64 bytes, and those that a multiplication
/// by 512 brings back to the beginning.
const FAR: [u64; 6] = [
    u64::MAX,
    u64::MAX - 7,
    u64::MAX / 512,
    1 << 55,
    (1 << 55) + 1,
    1 << 62,
];

/// More than any disk of a test has.
const PAST: [u64; 3] = [1 << 40, 1 << 48, (1 << 55) - 1];

fn done(answer: &[u8; ANSWER]) -> bool {
    answer[0] == 0
}

/// A request with a head, data of `len` bytes that is read or written, and a status.
fn request(desk: &Desk<'_>, head: &[u8], data: &[u8], len: u32, writable: bool) -> Hostile {
    let mut pieces = vec![(desk.head(head), head.len() as u32, false)];
    if len > 0 {
        pieces.push((desk.data(data), len, writable));
    }
    pieces.push((desk.answer(), 1, true));
    Hostile {
        pieces,
        answer: desk.answer(),
        impossible: None,
    }
}

fn impossible(hostile: Hostile, why: String) -> Hostile {
    Hostile {
        impossible: Some(why),
        ..hostile
    }
}

/// Says one request for each of `cases`.
fn each<T>(
    scene: &mut Scene<'_>,
    cases: &[T],
    build: impl Fn(&Desk<'_>, &T) -> Hostile,
) -> Result<(), GuestError> {
    let which = ring(scene);
    let of = |desk: &Desk<'_>, number: usize, _: &mut _| build(desk, &cases[number]);
    say(scene, which, cases.len(), of, done)
}

/// A chain as it is given, with a head that reads from the beginning of the disk.
fn layout(scene: &mut Scene<'_>, shapes: &[fn(&Desk<'_>) -> Vec<Piece>]) -> Result<(), GuestError> {
    each(scene, shapes, |desk, shape| Hostile {
        pieces: shape(desk),
        answer: desk.answer(),
        impossible: None,
    })
}

fn reading(desk: &Desk<'_>) -> u64 {
    desk.head(&head(kind::IN, 0))
}

/// Discards or zeroes what cannot be.
fn ranges(scene: &mut Scene<'_>, kind: u32) -> Result<(), GuestError> {
    const UNKNOWN: u32 = !1;
    let mut cases = Vec::new();
    for sector in FAR.into_iter().chain(PAST) {
        cases.push((range(sector, 8, 0), "sectors past the end"));
    }
    cases.push((range(0, u32::MAX, 0), "2^32 - 1 sectors"));
    cases.push((range(0, 8, UNKNOWN), "flags that nobody knows"));
    cases.push((range(0, 8, 0)[..15].to_vec(), "a range of 15 bytes"));
    cases.push((
        range(0, 8, 0).repeat(2)[..17].to_vec(),
        "a range of 17 bytes",
    ));
    cases.push((
        range(1 << 40, 8, 0).repeat(1000),
        "1000 ranges past the end",
    ));
    each(scene, &cases, |desk, (bytes, why)| {
        let hostile = request(desk, &head(kind, 0), bytes, bytes.len() as u32, false);
        impossible(hostile, format!("request {kind} of {why}"))
    })
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "blk-past-the-end",
        what: "reads and writes of sectors that no disk has",
        act: |scene| {
            let kinds = [(kind::IN, true), (kind::OUT, false)];
            let cases: Vec<_> = FAR
                .into_iter()
                .chain(PAST)
                .flat_map(|sector| kinds.map(|kind| (kind, sector)))
                .collect();
            each(scene, &cases, |desk, ((kind, writable), sector)| {
                let hostile = request(desk, &head(*kind, *sector), &[7; 4096], 4096, *writable);
                impossible(
                    hostile,
                    format!("request {kind} of 8 sectors from {sector} on"),
                )
            })
        },
    },
    Deed {
        name: "blk-odd-length",
        what: "reads and writes of parts of sectors",
        act: |scene| {
            let kinds = [(kind::IN, true), (kind::OUT, false)];
            let cases: Vec<_> = [1, 511, 513, 1023, 4095]
                .into_iter()
                .flat_map(|len| kinds.map(|kind| (kind, len)))
                .collect();
            each(scene, &cases, |desk, ((kind, writable), len)| {
                let hostile = request(desk, &head(*kind, 0), &[7; 4096], *len, *writable);
                impossible(hostile, format!("request {kind} of {len} bytes"))
            })
        },
    },
    Deed {
        name: "blk-kinds-unknown",
        what: "requests of kinds that there are not, or that were not negotiated",
        act: |scene| {
            let known = [
                kind::IN,
                kind::OUT,
                kind::FLUSH,
                kind::GET_ID,
                kind::DISCARD,
                kind::WRITE_ZEROES,
            ];
            let cases: Vec<_> = (0..64)
                .chain([0x4000_0000, 0x4000_0001, u32::MAX - 1, u32::MAX])
                .filter(|kind| !known.contains(kind))
                .collect();
            each(scene, &cases, |desk, kind| {
                let writable = kind % 2 == 0;
                let hostile = request(desk, &head(*kind, 0), &[7; 512], 512, writable);
                impossible(hostile, format!("request of kind {kind}"))
            })
        },
    },
    Deed {
        name: "blk-secure-erase",
        what: "an erasure that was not negotiated",
        act: |scene| {
            each(scene, &[0, 1 << 40], |desk, sector| {
                let bytes = range(*sector, 8, 0);
                let hostile = request(desk, &head(kind::SECURE_ERASE, 0), &bytes, 16, false);
                impossible(hostile, "a secure erasure".to_owned())
            })
        },
    },
    Deed {
        name: "blk-no-status",
        what: "chains that nothing can be answered in",
        act: |scene| {
            layout(
                scene,
                &[
                    |desk| vec![(reading(desk), 16, false)],
                    |desk| vec![(reading(desk), 16, false), (desk.data(&[]), 512, false)],
                    |desk| vec![(desk.head(&head(kind::OUT, 0)), 16, false)],
                    |desk| vec![(reading(desk), 16, false), (desk.answer(), 0, true)],
                ],
            )
        },
    },
    Deed {
        name: "blk-head-short",
        what: "heads of 0 to 15 bytes, and none",
        act: |scene| {
            let lens: Vec<u32> = (0..16).collect();
            each(scene, &lens, |desk, len| Hostile {
                pieces: vec![
                    (reading(desk), *len, false),
                    (desk.data(&[]), 512, true),
                    (desk.answer(), 1, true),
                ],
                answer: desk.answer(),
                impossible: Some(format!("a request with a head of {len} bytes")),
            })?;
            layout(
                scene,
                &[
                    |desk| vec![(desk.answer(), 1, true)],
                    |desk| vec![(desk.data(&[]), 512, true), (desk.answer(), 1, true)],
                    |desk| vec![(reading(desk), 16, true), (desk.answer(), 1, true)],
                ],
            )
        },
    },
    Deed {
        name: "blk-directions-wrong",
        what: "data, heads and statuses that may be read where they must be written, and back",
        act: |scene| {
            layout(
                scene,
                &[
                    |desk| {
                        let (head, data) = (reading(desk), desk.data(&[]));
                        vec![
                            (head, 16, false),
                            (data, 512, false),
                            (desk.answer(), 1, true),
                        ]
                    },
                    |desk| {
                        let head = desk.head(&head(kind::OUT, 0));
                        vec![
                            (head, 16, false),
                            (desk.data(&[]), 512, true),
                            (desk.answer(), 1, true),
                        ]
                    },
                    |desk| {
                        let (head, data) = (reading(desk), desk.data(&[]));
                        vec![
                            (head, 16, false),
                            (data, 512, true),
                            (desk.answer(), 1, false),
                        ]
                    },
                    |desk| {
                        let (head, data) = (reading(desk), desk.data(&[]));
                        vec![
                            (desk.answer(), 1, true),
                            (data, 512, true),
                            (head, 16, false),
                        ]
                    },
                    |desk| {
                        let (head, data) = (reading(desk), desk.data(&[]));
                        let (first, second) = ((data, 256, true), (data + 256, 256, false));
                        vec![(head, 16, false), first, second, (desk.answer(), 1, true)]
                    },
                ],
            )
        },
    },
    Deed {
        name: "blk-one-place",
        what: "head, data and status in the same bytes",
        act: |scene| {
            layout(
                scene,
                &[
                    |desk| {
                        let at = reading(desk);
                        vec![(at, 16, false), (at, 512, true), (at, 1, true)]
                    },
                    |desk| {
                        let (head, data) = (reading(desk), desk.data(&[]));
                        vec![(head, 16, false), (data, 512, true), (data + 100, 1, true)]
                    },
                    |desk| {
                        let (head, data) = (reading(desk), desk.data(&[]));
                        let twice = (data, 512, true);
                        vec![(head, 16, false), twice, twice, (desk.answer(), 1, true)]
                    },
                ],
            )
        },
    },
    Deed {
        name: "blk-count-wraps",
        what: "data of more than 2^32 bytes in all, so that a part of a sector is left of it",
        act: |scene| {
            each(
                scene,
                &[(kind::IN, true), (kind::OUT, false)],
                |desk, (kind, writable)| {
                    let table = desk.rig.memory.table();
                    let all = table.first().map_or(0, |region| region.memory_size);
                    let (start, each) = (table.first().map_or(0, |r| r.guest_phys_addr), 1 << 27);
                    let mut pieces = vec![(desk.head(&head(*kind, 0)), 16, false)];
                    // Nobody but a device that counts wrong uses them.
                    let fits = u64::from(each) <= all;
                    let piece = (start, if fits { each } else { 512 }, *writable);
                    pieces.extend([piece; 32]);
                    pieces.push((start, 512, *writable));
                    pieces.push((desk.answer(), 1, true));
                    Hostile {
                        pieces,
                        answer: desk.answer(),
                        impossible: fits.then(|| format!("request {kind} of 2^32 + 512 bytes")),
                    }
                },
            )
        },
    },
    Deed {
        name: "blk-discard-bounds",
        what: "ranges to discard past the end, of odd lengths, with unknown flags",
        act: |scene| ranges(scene, kind::DISCARD),
    },
    Deed {
        name: "blk-zeroes-bounds",
        what: "ranges to zero past the end, of odd lengths, with unknown flags",
        act: |scene| ranges(scene, kind::WRITE_ZEROES),
    },
    Deed {
        name: "blk-flush-and-id-odd",
        what: "flushes with data and a sector, ids that are too short and too long",
        act: |scene| {
            let cases: Vec<_> = [0, 1, 19, 20, 21, 4096]
                .into_iter()
                .flat_map(|len| [kind::FLUSH, kind::GET_ID].map(|kind| (kind, len)))
                .collect();
            each(scene, &cases, |desk, (kind, len)| {
                request(desk, &head(*kind, u64::MAX), &[], *len, true)
            })
        },
    },
    Deed {
        name: "blk-heads-random",
        what: "random heads, with data of random length both ways",
        act: |scene| {
            let which = ring(scene);
            let random = |desk: &Desk<'_>, _: usize, rng: &mut fastrand::Rng| {
                let kinds = [0, 0, 8, 11, 13, rng.u32(..)];
                // Writes would be done.
                let kind = rng.choice(kinds).unwrap_or(0);
                let sector = rng.u64(..) >> rng.u32(..64);
                let sector = if kind == 0 { sector } else { sector | 1 << 40 };
                let bytes = range(sector, rng.u32(..), rng.u32(..));
                let (len, writable) = (rng.u32(..8192), rng.bool());
                request(desk, &head(kind, sector), &bytes, len, writable)
            };
            say(scene, which, 200, random, done)
        },
    },
];
