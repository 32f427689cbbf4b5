//! Requests that no driver of a virtio-scsi adapter would send (VIRTIO 1.2, 5.6.6).

use super::chains::{ANSWER, Desk, Hostile, ring, say};
use super::rig::Which;
use super::{Deed, Device, Scene};
use crate::guest::error::GuestError;
use crate::guest::storage::scsi::{HEAD, TAIL, command};
use crate::guest::storage::{Language, Unit};

const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;

fn done(answer: &[u8; ANSWER]) -> bool {
    let residual = answer.iter().skip(4).take(4).all(|byte| *byte == 0);
    residual && answer[10] == 0 && answer[11] == 0
}

fn unit(scene: &Scene<'_>) -> Unit {
    match scene.device {
        Device::Disk(Language::Scsi(unit), _) => unit,
        _ => Unit { target: 0, lun: 0 },
    }
}

/// A request: head, data, answer.
fn request(desk: &Desk<'_>, head: &[u8], out: u32, answer: u32, data_in: u32) -> Hostile {
    let mut pieces = vec![(desk.head(head), head.len() as u32, false)];
    if out > 0 {
        pieces.push((desk.data(&[]), out, false));
    }
    pieces.push((desk.answer(), answer, true));
    if data_in > 0 {
        pieces.push((desk.data(&[]), data_in, true));
    }
    Hostile {
        pieces,
        answer: desk.answer(),
        impossible: None,
    }
}

fn cdb(operation: u8, block: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![operation, 0];
    cdb.extend(block.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0; 2]);
    cdb
}

/// Says one request for each of `cases`.
fn each<T>(
    scene: &mut Scene<'_>,
    cases: &[T],
    build: impl Fn(&Desk<'_>, Unit, &T) -> Hostile,
) -> Result<(), GuestError> {
    let (which, unit) = (ring(scene), unit(scene));
    let of = |desk: &Desk<'_>, number: usize, _: &mut _| build(desk, unit, &cases[number]);
    say(scene, which, cases.len(), of, done)
}

/// Says random bytes in one of the first two rings.
fn elsewhere(scene: &mut Scene<'_>, which: Which, most: u32) -> Result<(), GuestError> {
    let random = |desk: &Desk<'_>, _: usize, rng: &mut fastrand::Rng| {
        let mut head = vec![0; rng.usize(1..64)];
        rng.fill(&mut head);
        if let [kind, zeroes @ .., _] = head.as_mut_slice()
            && rng.bool()
        {
            // Kinds of requests that there are, of tasks.
            *kind = rng.u8(..4);
            zeroes.iter_mut().take(3).for_each(|byte| *byte = 0);
        }
        let answer = rng.u32(..most);
        request(desk, &head, 0, answer, 0)
    };
    say(scene, which, 60, random, |_| false)
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "scsi-past-the-end",
        what: "reads and writes of blocks that no disk has",
        act: |scene| {
            let blocks = [1 << 40, 1 << 52, 1 << 55, u64::MAX - 7, u64::MAX];
            let cases: Vec<_> = blocks
                .into_iter()
                .flat_map(|block| [READ_16, WRITE_16].map(|operation| (operation, block)))
                .collect();
            each(scene, &cases, |desk, unit, (operation, block)| {
                let head = command(unit, 1, &cdb(*operation, *block, 1), 0, 0).head;
                let (out, data_in) = match *operation {
                    READ_16 => (0, 4096),
                    _ => (4096, 0),
                };
                Hostile {
                    impossible: Some(format!("command {operation:#x} of block {block}")),
                    ..request(desk, &head, out, TAIL as u32, data_in)
                }
            })
        },
    },
    Deed {
        name: "scsi-lengths-wrong",
        what: "commands for more than there is room for, and for 2^32 - 1 blocks",
        act: |scene| {
            let lens = [0, 1, 511, 513, 4096];
            let cases: Vec<_> = [READ_16, WRITE_16]
                .into_iter()
                .flat_map(|operation| lens.map(|len| (operation, len)))
                .flat_map(|(operation, len)| [64, u32::MAX].map(|blocks| (operation, len, blocks)))
                // What is there of a write may be written.
                .filter(|(operation, _, blocks)| *operation == READ_16 || *blocks == u32::MAX)
                .collect();
            each(scene, &cases, |desk, unit, (operation, len, blocks)| {
                let head = command(unit, 1, &cdb(*operation, 0, *blocks), 0, 0).head;
                let (out, data_in) = match *operation {
                    READ_16 => (0, *len),
                    _ => (*len, 0),
                };
                Hostile {
                    impossible: Some(format!(
                        "command {operation:#x} of {blocks} blocks, all of them in {len} bytes"
                    )),
                    ..request(desk, &head, out, TAIL as u32, data_in)
                }
            })
        },
    },
    Deed {
        name: "scsi-units-unknown",
        what: "logical units in addresses of every kind, of targets that there are not",
        act: |scene| {
            let cases: Vec<[u8; 8]> = [0, 1, 2, 3, 0x40, 0xc1, 0xff]
                .into_iter()
                .flat_map(|first| {
                    [0x00, 0x3f, 0x40, 0x7f, 0x80, 0xc1, 0xff]
                        .map(|level| [first, 250, level, 0xee, 9, 9, 9, 9])
                })
                .collect();
            each(scene, &cases, |desk, unit, address| {
                let mut head = command(unit, 1, &cdb(READ_16, 0, 1), 0, 0).head;
                head.splice(..8, *address);
                Hostile {
                    impossible: Some(format!("a read of the logical unit {address:x?}")),
                    ..request(desk, &head, 0, TAIL as u32, 4096)
                }
            })
        },
    },
    Deed {
        name: "scsi-commands-all",
        what: "each operation code, with zeroes and with ones behind it",
        act: |scene| {
            // START STOP UNIT, which would stop it.
            const STOP: u8 = 0x1b;
            let codes = (0..=255).filter(|code| *code != STOP);
            let cases: Vec<_> = codes.flat_map(|code| [(code, 0), (code, 0xff)]).collect();
            each(scene, &cases, |desk, unit, (code, rest)| {
                let mut cdb = vec![*rest; 16];
                cdb[0] = *code;
                let head = command(unit, 1, &cdb, 0, 0).head;
                request(desk, &head, 0, TAIL as u32, 4096)
            })
        },
    },
    Deed {
        name: "scsi-both-ways",
        what: "commands with data for the disk and room for its data",
        act: |scene| {
            each(scene, &[0x00, 0x12, READ_16, 0xa0], |desk, unit, code| {
                let head = command(unit, 1, &cdb(*code, 0, 1), 0, 0).head;
                request(desk, &head, 512, TAIL as u32, 512)
            })
        },
    },
    Deed {
        name: "scsi-answer-short",
        what: "no room for an answer, or for a part of it",
        act: |scene| {
            let lens: Vec<u32> = (0..TAIL as u32).step_by(7).collect();
            each(scene, &lens, |desk, unit, len| {
                let head = command(unit, 1, &[0; 6], 0, 0).head;
                request(desk, &head, 0, *len, 0)
            })
        },
    },
    Deed {
        name: "scsi-head-short",
        what: "a part of a head",
        act: |scene| {
            let lens: Vec<usize> = (1..HEAD).step_by(5).collect();
            each(scene, &lens, |desk, unit, len| {
                let mut head = command(unit, 1, &cdb(READ_16, 0, 1), 0, 0).head;
                head.truncate(*len);
                Hostile {
                    impossible: Some(format!("a read with a head of {len} bytes")),
                    ..request(desk, &head, 0, TAIL as u32, 512)
                }
            })
        },
    },
    Deed {
        name: "scsi-commands-random",
        what: "random commands that do not write, with random lengths",
        act: |scene| {
            let (which, unit) = (ring(scene), unit(scene));
            let random = move |desk: &Desk<'_>, _: usize, rng: &mut fastrand::Rng| {
                let mut cdb = [0; 16];
                rng.fill(&mut cdb);
                let code = [
                    0x12, 0x25, 0x28, 0x9e, 0xa0, 0xa3, 0x1a, 0x5a, 0x4d, 0x5e, READ_16,
                ];
                cdb[0] = rng.choice(code).unwrap_or(0);
                let head = command(unit, rng.u64(..), &cdb, 0, 0).head;
                request(desk, &head, 0, TAIL as u32, rng.u32(..8192))
            };
            say(scene, which, 300, random, |_| false)
        },
    },
    Deed {
        name: "scsi-control-random",
        what: "random bytes in the control queue, where some make sense",
        act: |scene| elsewhere(scene, Which::Receive, 16),
    },
    Deed {
        name: "scsi-event-random",
        what: "buffers for events that are not for writing, or too short",
        act: |scene| elsewhere(scene, Which::Transmit, 16),
    },
];
