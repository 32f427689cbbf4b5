//! What a driver can write into packed rings. A back-end without them is left alone.

use std::time::{Duration, Instant};

use vvu::protocol::{Request, VringFd, VringState};

use super::raw::Raw;
use super::rig::{BUFFER, INDIRECT, NEXT, Rig, SIZE, WRITE, Which, encode, put};
use super::{Deed, Scene};
use crate::guest::error::GuestError;

const BOTH: [Which; 2] = [Which::Receive, Which::Transmit];

/// Flags by which a descriptor is the device's, or was returned, in odd rounds.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// How long memory changes while the back-end looks at it.
const STORM: Duration = Duration::from_millis(100);

/// A descriptor: address, length, id, flags.
type Desc = (u64, u32, u16, u16);

/// A descriptor as it should be in the first round.
fn good(rig: &Rig, which: Which, index: u16) -> Desc {
    let (at, len, flags, _) = rig.good(which, index);
    (at, len, index, flags | AVAIL)
}

/// For each ring, on a connection of its own: all descriptors as they should be, and available,
/// but for what `spoil` does to that one.
fn each(
    scene: &mut Scene<'_>,
    spoil: impl Fn(&Rig, Which, &mut fastrand::Rng),
) -> Result<(), GuestError> {
    for which in BOTH {
        one(scene, which, &spoil)?;
    }
    Ok(())
}

fn one(
    scene: &mut Scene<'_>,
    which: Which,
    spoil: impl Fn(&Rig, Which, &mut fastrand::Rng),
) -> Result<(), GuestError> {
    let Some(rig) = Rig::packed(scene)? else {
        return Ok(());
    };
    for ring in BOTH {
        if ring != which {
            for index in 0..SIZE {
                rig.desc(ring, index, good(&rig, ring, index));
            }
            rig.queue(ring).notify();
        }
    }
    spoil(&rig, which, &mut scene.rng);
    rig.queue(which).notify();
    rig.look();
    Ok(())
}

/// Replaces every descriptor by `change` of what it should be.
fn all(
    scene: &mut Scene<'_>,
    change: impl Fn(&Rig, Which, u16, Desc) -> Desc,
) -> Result<(), GuestError> {
    each(scene, |rig, which, _| {
        // The first one last: then all is there at once.
        for index in (0..SIZE).rev() {
            let desc = change(rig, which, index, good(rig, which, index));
            rig.desc(which, index, desc);
        }
    })
}

/// Makes the first descriptor lead to a table of `entries`, and says that it is `len` bytes long.
fn indirect(
    scene: &mut Scene<'_>,
    flags: u16,
    len: u32,
    entries: fn(&Rig, Which, u64) -> Vec<Desc>,
) -> Result<(), GuestError> {
    each(scene, move |rig, which, _| {
        let table = rig.buffer(which, SIZE - 1);
        let entries = entries(rig, which, table).into_iter();
        rig.write(table, &entries.flat_map(encode).collect::<Vec<_>>());
        rig.desc(which, 1, good(rig, which, 1));
        rig.desc(which, 0, (table, len, 0, INDIRECT | AVAIL | flags));
    })
}

/// Overwrites a part of both rings' memory with random bytes for a while.
fn storm(
    scene: &mut Scene<'_>,
    fill: fn(&mut fastrand::Rng, &mut [u8]),
    event: bool,
) -> Result<(), GuestError> {
    each(scene, move |rig, which, rng| {
        let ring = &rig.queue(which).ring;
        let (start, len) = match event {
            false => (0, 16 * usize::from(SIZE)),
            true => (Rig::event(ring), 4),
        };
        for index in (0..SIZE).rev() {
            rig.desc(which, index, good(rig, which, index));
        }
        let mut bytes = vec![0; len];
        let end = Instant::now() + STORM;
        while Instant::now() < end {
            fill(rng, &mut bytes);
            put(ring.memory(), start, &bytes);
            rig.queue(which).notify();
        }
    })
}

/// Random descriptors, often enough right to be looked at further.
fn plausible(rng: &mut fastrand::Rng, bytes: &mut [u8]) {
    rng.fill(bytes);
    for descriptor in bytes.chunks_exact_mut(16) {
        let address = u64::from(rng.u32(..1 << 21)).to_le_bytes();
        let len = rng.u32(..4096).to_le_bytes();
        let known = [NEXT, WRITE, INDIRECT, 0];
        let turns = [AVAIL, USED, AVAIL | USED, 0];
        let pick = |rng: &mut fastrand::Rng, all: [u16; 4]| rng.choice(all).unwrap_or(0);
        let flags = (pick(rng, known) | pick(rng, turns)).to_le_bytes();
        if rng.u8(..4) > 0 {
            let right = address.into_iter().chain(len);
            for (place, byte) in descriptor.iter_mut().zip(right) {
                *place = byte;
            }
        }
        for (place, byte) in descriptor.iter_mut().skip(14).zip(flags) {
            *place = byte;
        }
    }
}

/// Stops each ring and starts it where it cannot be.
fn wrong_bases(scene: &mut Scene<'_>) -> Result<(), GuestError> {
    let size = u32::from(SIZE);
    for num in [
        size,
        size << 16 | 0x8000,
        0x7fff,
        0x7fff_7fff,
        u32::MAX,
        0x8000_0001,
    ] {
        for index in [0, 1] {
            let Some(rig) = Rig::packed(scene)? else {
                return Ok(());
            };
            for ring in BOTH {
                for index in 0..SIZE {
                    rig.desc(ring, index, good(&rig, ring, index));
                }
            }
            let mut raw = Raw::over(rig.link.stream()?)?;
            let state = |num| VringState { index, num };
            raw.ask(&Request::GetVringBase(state(0)));
            raw.say(&Request::SetVringBase(state(num)), &[]);
            let kick = VringFd {
                index: index as u8,
                nofd: true,
            };
            raw.say(&Request::SetVringKick(kick), &[]);
            raw.settle();
            rig.look();
        }
    }
    Ok(())
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "packed-id-outside",
        what: "ids that are greater than the packed ring is long",
        act: |scene| {
            all(scene, |_, _, index, (at, len, _, flags)| {
                (at, len, !index, flags)
            })
        },
    },
    Deed {
        name: "packed-id-same",
        what: "one id for all chains",
        act: |scene| all(scene, |_, _, _, (at, len, _, flags)| (at, len, 7, flags)),
    },
    Deed {
        name: "packed-flags-unknown",
        what: "all flags of a descriptor but the one that says it was returned",
        act: |scene| all(scene, |_, _, _, (at, len, id, _)| (at, len, id, !USED)),
    },
    Deed {
        name: "packed-flags-returned",
        what: "descriptors that say of themselves that they were returned",
        act: |scene| {
            all(scene, |_, _, index, (at, len, id, flags)| {
                let turn = if index % 2 == 0 { AVAIL | USED } else { 0 };
                (at, len, id, flags & !AVAIL | turn)
            })
        },
    },
    Deed {
        name: "packed-wrap-wrong",
        what: "descriptors of the second round in the first",
        act: |scene| {
            all(scene, |_, _, _, (at, len, id, flags)| {
                (at, len, id, flags & !AVAIL | USED)
            })
        },
    },
    Deed {
        name: "packed-wrap-mixed",
        what: "a chain of which every other descriptor is of the second round",
        act: |scene| {
            all(scene, |_, _, index, (at, len, id, flags)| {
                let turn = if index % 2 == 0 { AVAIL } else { USED };
                let next = if index < 8 { NEXT } else { 0 };
                (at, len, id, flags & !AVAIL | turn | next)
            })
        },
    },
    Deed {
        name: "packed-loop",
        what: "a chain that goes round the whole ring and on",
        act: |scene| {
            all(scene, |_, _, _, (at, len, id, flags)| {
                (at, len, id, flags | NEXT)
            })
        },
    },
    Deed {
        name: "packed-chain-cut",
        what: "a chain that goes on where nothing is available",
        act: |scene| {
            each(scene, |rig, which, _| {
                let (at, len, id, flags) = good(rig, which, 0);
                rig.desc(which, 0, (at, len, id, flags | NEXT));
            })
        },
    },
    Deed {
        name: "packed-chain-of-everything",
        what: "all descriptors of the ring in one chain, each a whole buffer",
        act: |scene| {
            all(scene, |_, _, index, (at, _, _, flags)| {
                let next = if index + 1 < SIZE { NEXT } else { 0 };
                (at, BUFFER, 0, flags | next)
            })
        },
    },
    Deed {
        name: "packed-address-outside",
        what: "buffers where no memory is, and whose end does not fit 64 bits",
        act: |scene| {
            all(scene, |_, _, index, (_, len, id, flags)| {
                let at = if index % 2 == 0 {
                    0xdead_0000_0000
                } else {
                    u64::MAX - 8
                };
                (at, len, id, flags)
            })
        },
    },
    Deed {
        name: "packed-length-zero",
        what: "buffers of no bytes, alone and in chains",
        act: |scene| {
            all(scene, |_, _, index, (at, _, id, flags)| {
                let next = if index % 4 == 0 { 0 } else { NEXT };
                (at, 0, id, flags | next)
            })
        },
    },
    Deed {
        name: "packed-length-huge",
        what: "buffers of 4 GiB",
        act: |scene| {
            all(scene, |_, _, _, (at, _, id, flags)| {
                (at, u32::MAX, id, flags)
            })
        },
    },
    Deed {
        name: "packed-direction-wrong",
        what: "receive buffers that may only be read, frames that may only be written",
        act: |scene| {
            all(scene, |_, _, _, (at, len, id, flags)| {
                (at, len, id, flags ^ WRITE)
            })
        },
    },
    Deed {
        name: "packed-direction-mixed",
        what: "chains in which readable buffers follow writable ones",
        act: |scene| {
            all(scene, |_, _, index, (at, len, id, flags)| {
                let write = if index % 2 == 0 { WRITE } else { 0 };
                let next = if index % 4 == 3 { 0 } else { NEXT };
                (at, len, id, flags & !WRITE | write | next)
            })
        },
    },
    Deed {
        name: "packed-indirect-in-indirect",
        what: "a table that leads to itself as a table",
        act: |scene| {
            indirect(scene, 0, 16, |_, _, table| {
                vec![(table, 16, 0, INDIRECT | AVAIL)]
            })
        },
    },
    Deed {
        name: "packed-indirect-and-next",
        what: "a table, and a chain that goes on behind it",
        act: |scene| indirect(scene, NEXT, 16, |rig, which, _| vec![good(rig, which, 2)]),
    },
    Deed {
        name: "packed-indirect-odd",
        what: "a table of 17 bytes",
        act: |scene| indirect(scene, 0, 17, |rig, which, _| vec![good(rig, which, 2); 2]),
    },
    Deed {
        name: "packed-indirect-short",
        what: "a table of 15 bytes",
        act: |scene| indirect(scene, 0, 15, |rig, which, _| vec![good(rig, which, 2)]),
    },
    Deed {
        name: "packed-indirect-empty",
        what: "a table of no bytes",
        act: |scene| indirect(scene, 0, 0, |rig, which, _| vec![good(rig, which, 2)]),
    },
    Deed {
        name: "packed-indirect-huge",
        what: "a table of 4 GiB",
        act: |scene| indirect(scene, 0, !15, |rig, which, _| vec![good(rig, which, 2)]),
    },
    Deed {
        name: "packed-indirect-long",
        what: "a table of more entries than the ring has descriptors",
        act: |scene| {
            indirect(scene, 0, 16 * 250, |rig, which, _| {
                vec![good(rig, which, 2); 250]
            })
        },
    },
    Deed {
        name: "packed-indirect-flags",
        what: "a table whose entries have all flags, which mean nothing there",
        act: |scene| {
            indirect(scene, 0, 48, |rig, which, _| {
                let (at, len, _, flags) = good(rig, which, 2);
                let rest = !(WRITE | INDIRECT);
                vec![(at, len, u16::MAX, rest | flags & WRITE); 3]
            })
        },
    },
    Deed {
        name: "packed-indirect-outside",
        what: "a table where no memory is",
        act: |scene| {
            each(scene, |rig, which, _| {
                rig.desc(which, 0, (0xdead_0000_0000, 32, 0, INDIRECT | AVAIL));
            })
        },
    },
    Deed {
        name: "packed-base-wrong",
        what: "rings that are started where they cannot be",
        act: wrong_bases,
    },
    Deed {
        name: "packed-event-random",
        what: "random wishes to be told, while the back-end looks at them",
        act: |scene| storm(scene, |rng, bytes| rng.fill(bytes), true),
    },
    Deed {
        name: "packed-descriptors-random",
        what: "random descriptors, while the back-end looks at them and returns some",
        act: |scene| storm(scene, |rng, bytes| rng.fill(bytes), false),
    },
    Deed {
        name: "packed-descriptors-plausible",
        what: "the same with addresses, lengths and flags that could be",
        act: |scene| storm(scene, plausible, false),
    },
];
