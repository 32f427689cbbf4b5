//! What a driver can write into its rings.

use std::time::{Duration, Instant};

use super::rig::{BUFFER, Desc, INDIRECT, NEXT, Rig, SIZE, WRITE, Which, encode, put};
use super::{Deed, Scene};
use crate::guest::error::GuestError;

const BOTH: [Which; 2] = [Which::Receive, Which::Transmit];

/// For each ring, on a connection of its own: all descriptors as they should be, spoilt by
/// `spoil`, which returns the available index to publish.
fn each(
    scene: &mut Scene<'_>,
    spoil: impl Fn(&Rig, Which, &mut fastrand::Rng) -> u16,
) -> Result<(), GuestError> {
    for which in BOTH {
        one(scene, which, &spoil)?;
    }
    Ok(())
}

/// The same for one ring. The other one is as it should be, so that there is traffic.
pub(super) fn one(
    scene: &mut Scene<'_>,
    which: Which,
    spoil: impl Fn(&Rig, Which, &mut fastrand::Rng) -> u16,
) -> Result<(), GuestError> {
    let rig = Rig::new(scene)?;
    for ring in BOTH {
        for index in 0..SIZE {
            rig.desc(ring, index, rig.good(ring, index));
        }
        rig.offer(ring, 0..SIZE);
        if ring != which {
            rig.publish(ring, SIZE);
        }
    }
    let index = spoil(&rig, which, &mut scene.rng);
    rig.publish(which, index);
    rig.look();
    Ok(())
}

/// Replaces descriptor 0 by `change` of what it should be and offers it.
fn first(scene: &mut Scene<'_>, change: fn(&Rig, Which, Desc) -> Desc) -> Result<(), GuestError> {
    each(scene, |rig, which, _| {
        rig.desc(which, 0, change(rig, which, rig.good(which, 0)));
        1
    })
}

/// Makes descriptor 0 lead to a table of `entries`, and says that it is `len` bytes long.
fn indirect(
    scene: &mut Scene<'_>,
    flags: u16,
    len: u32,
    entries: fn(&Rig, Which, u64) -> Vec<Desc>,
) -> Result<(), GuestError> {
    each(scene, move |rig, which, _| {
        let table = rig.buffer(which, SIZE - 1);
        let bytes: Vec<_> = entries(rig, which, table)
            .into_iter()
            .flat_map(encode)
            .collect();
        rig.write(table, &bytes);
        rig.desc(which, 0, (table, len, INDIRECT | flags, 1));
        1
    })
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "available-ahead",
        what: "an available index further on than the ring is long",
        act: |scene| each(scene, |_, _, _| SIZE + 1),
    },
    Deed {
        name: "available-far-ahead",
        what: "an available index half the way round",
        act: |scene| each(scene, |_, _, _| 0x8000),
    },
    Deed {
        name: "available-back",
        what: "an available index that goes back",
        act: |scene| {
            each(scene, |rig, which, _| {
                rig.publish(which, 8);
                rig.look();
                4
            })
        },
    },
    Deed {
        name: "head-outside",
        what: "a head that is no descriptor",
        act: |scene| {
            each(scene, |rig, which, _| {
                rig.offer(which, [SIZE, u16::MAX]);
                2
            })
        },
    },
    Deed {
        name: "next-outside",
        what: "a chain that leads out of the table",
        act: |scene| {
            first(scene, |_, _, (at, len, flags, _)| {
                (at, len, flags | NEXT, SIZE)
            })
        },
    },
    Deed {
        name: "loop-of-one",
        what: "a descriptor that leads to itself",
        act: |scene| {
            first(scene, |_, _, (at, len, flags, _)| {
                (at, len, flags | NEXT, 0)
            })
        },
    },
    Deed {
        name: "loop-of-two",
        what: "two descriptors that lead to each other",
        act: |scene| {
            each(scene, |rig, which, _| {
                for (index, next) in [(0, 1), (1, 0)] {
                    let (at, len, flags, _) = rig.good(which, index);
                    rig.desc(which, index, (at, len, flags | NEXT, next));
                }
                1
            })
        },
    },
    Deed {
        name: "chain-of-everything",
        what: "all descriptors in one chain, each a whole buffer",
        act: |scene| {
            each(scene, |rig, which, _| {
                for index in 0..SIZE {
                    let (at, _, flags, _) = rig.good(which, index);
                    let next = if index + 1 < SIZE { NEXT } else { 0 };
                    rig.desc(which, index, (at, BUFFER, flags | next, index + 1));
                }
                1
            })
        },
    },
    Deed {
        name: "address-outside",
        what: "buffers where no memory is",
        act: |scene| {
            first(scene, |_, _, (_, len, flags, next)| {
                (0xdead_0000_0000, len, flags, next)
            })
        },
    },
    Deed {
        name: "address-wraps",
        what: "buffers whose end does not fit 64 bits",
        act: |scene| {
            first(scene, |_, _, (_, len, flags, next)| {
                (u64::MAX - 8, len, flags, next)
            })
        },
    },
    Deed {
        name: "address-at-the-edge",
        what: "buffers that begin in memory and end outside",
        act: |scene| {
            first(scene, |rig, _, (_, _, flags, next)| {
                let end = rig
                    .memory
                    .table()
                    .first()
                    .map_or(0, |r| r.guest_phys_addr + r.memory_size);
                (end - 60, BUFFER, flags, next)
            })
        },
    },
    Deed {
        name: "length-zero",
        what: "buffers of no bytes, alone and in chains",
        act: |scene| {
            each(scene, |rig, which, _| {
                for index in 0..8 {
                    let (at, _, flags, _) = rig.good(which, index);
                    let next = if index % 4 == 3 { 0 } else { NEXT };
                    rig.desc(which, index, (at, 0, flags | next, index + 1));
                }
                rig.offer(which, [0, 4, 7]);
                3
            })
        },
    },
    Deed {
        name: "length-huge",
        what: "buffers of 4 GiB",
        act: |scene| {
            first(scene, |_, _, (at, _, flags, next)| {
                (at, u32::MAX, flags, next)
            })
        },
    },
    Deed {
        name: "same-head-always",
        what: "one chain offered as often as the ring is long",
        act: |scene| {
            each(scene, |rig, which, _| {
                rig.offer(which, [0; SIZE as usize]);
                SIZE
            })
        },
    },
    Deed {
        name: "direction-wrong",
        what: "receive buffers that may only be read, frames that may only be written",
        act: |scene| {
            first(scene, |_, _, (at, len, flags, next)| {
                (at, len, flags ^ WRITE, next)
            })
        },
    },
    Deed {
        name: "direction-mixed",
        what: "chains in which readable buffers follow writable ones",
        act: |scene| {
            each(scene, |rig, which, _| {
                for index in 0..4 {
                    let (at, len, _, _) = rig.good(which, index);
                    let flags = if index % 2 == 0 { WRITE } else { 0 };
                    let next = if index == 3 { 0 } else { NEXT };
                    rig.desc(which, index, (at, len, flags | next, index + 1));
                }
                1
            })
        },
    },
    Deed {
        name: "flags-unknown",
        what: "all flags of a descriptor at once",
        act: |scene| first(scene, |_, _, (at, len, _, next)| (at, len, u16::MAX, next)),
    },
    Deed {
        name: "indirect-in-indirect",
        what: "a table that leads to itself as a table",
        act: |scene| indirect(scene, 0, 16, |_, _, table| vec![(table, 16, INDIRECT, 0)]),
    },
    Deed {
        name: "indirect-and-next",
        what: "a table, and a chain that goes on behind it",
        act: |scene| indirect(scene, NEXT, 16, |rig, which, _| vec![rig.good(which, 2)]),
    },
    Deed {
        name: "indirect-odd",
        what: "a table of 17 bytes",
        act: |scene| indirect(scene, 0, 17, |rig, which, _| vec![rig.good(which, 2); 2]),
    },
    Deed {
        name: "indirect-empty",
        what: "a table of no bytes",
        act: |scene| indirect(scene, 0, 0, |rig, which, _| vec![rig.good(which, 2)]),
    },
    Deed {
        name: "indirect-huge",
        what: "a table of 4 GiB",
        act: |scene| indirect(scene, 0, !15, |rig, which, _| vec![rig.good(which, 2)]),
    },
    Deed {
        name: "indirect-loop",
        what: "a table whose entries lead to each other",
        act: |scene| {
            indirect(scene, 0, 32, |rig, which, _| {
                let (at, len, flags, _) = rig.good(which, 2);
                vec![(at, len, flags | NEXT, 1), (at, len, flags | NEXT, 0)]
            })
        },
    },
    Deed {
        name: "indirect-next-outside",
        what: "a table whose entries lead out of it",
        act: |scene| {
            indirect(scene, 0, 16, |rig, which, _| {
                let (at, len, flags, _) = rig.good(which, 2);
                vec![(at, len, flags | NEXT, 200)]
            })
        },
    },
    Deed {
        name: "indirect-outside",
        what: "a table where no memory is",
        act: |scene| first(scene, |_, _, _| (0xdead_0000_0000, 32, INDIRECT, 0)),
    },
    Deed {
        name: "receive-buffers-tiny",
        what: "receive buffers of 1 byte",
        act: |scene| {
            one(scene, Which::Receive, |rig, which, _| {
                for index in 0..SIZE {
                    rig.desc(which, index, (rig.buffer(which, index), 1, WRITE, 0));
                }
                SIZE
            })
        },
    },
    Deed {
        name: "used-ring-overwritten",
        what: "random bytes in the used ring, which is the device's",
        act: |scene| {
            each(scene, |rig, which, rng| {
                let ring = &rig.queue(which).ring;
                let mut bytes = [0; 4 + 8 * SIZE as usize];
                rng.fill(&mut bytes);
                put(ring.memory(), Rig::used(ring), &bytes);
                SIZE
            })
        },
    },
    Deed {
        name: "descriptors-random",
        what: "random descriptors, while the back-end looks at them",
        act: |scene| storm(scene, 0),
    },
    Deed {
        name: "indices-random",
        what: "random heads and indices, while the back-end looks at them",
        act: |scene| storm(scene, 1),
    },
];

/// Overwrites a part of both rings with random bytes for a while: the table, or what follows it.
fn storm(scene: &mut Scene<'_>, part: usize) -> Result<(), GuestError> {
    each(scene, move |rig, which, rng| {
        let end = Instant::now() + Duration::from_millis(100);
        let ring = &rig.queue(which).ring;
        let avail = Rig::avail(ring);
        let (start, len) = if part == 0 {
            (0, avail)
        } else {
            (avail, 4 + 2 * usize::from(SIZE))
        };
        let mut bytes = vec![0; len];
        let mut index = 0u16;
        while Instant::now() < end {
            rng.fill(&mut bytes);
            // Often enough right to be looked at further.
            for word in bytes.chunks_exact_mut(2).step_by(1 + part) {
                if let [_, high] = word
                    && rng.bool()
                {
                    *high = 0;
                }
            }
            put(ring.memory(), start, &bytes);
            index = index.wrapping_add(rng.u16(..4));
            rig.publish(which, index);
        }
        rng.u16(..)
    })
}
