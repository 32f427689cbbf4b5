//! What cards have: packed rings, checksums and segmentation left to the other side, and nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use vvu_tests::traffic::{self, Transfer};
use vvu_tests::wire::Datagrams;
use vvu_tests::{Counters, Guest, Quartet};

use crate::appliance;
use crate::runner::Stage;

const MIB: u64 = 1 << 20;

/// Longest stream.
const STREAM: Duration = Duration::from_secs(90);

/// The longest frame of the neighbours' Ethernet, whose MTU is 1500.
const FRAME: u64 = 1514;

/// Feature bits (VIRTIO 1.2, 5.1.3 and 6).
pub(crate) mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(crate) const RING_PACKED: u64 = 1 << 34;
    /// HOST_USO and GUEST_USO4.
    pub(super) const USO: u64 = 1 << 56 | 1 << 54;
    /// What makes long frames pass as they are.
    pub(super) const LONG: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4;
}

/// Sends a checked stream and returns what both cards counted meanwhile.
fn counted(from: &Guest, to: &Guest, bytes: u64) -> Result<[Counters; 2]> {
    let before = [from.counters()?, to.counters()?];
    Transfer::start(from, to, bytes)?.finish(STREAM)?;
    let after = [from.counters()?, to.counters()?];
    Ok([after[0].since(&before[0]), after[1].since(&before[1])])
}

/// No kernel has thrown a packet away for its checksum.
fn checksums_hold(quartet: &Quartet) -> Result<()> {
    for guest in [&quartet.trio.a, &quartet.trio.b, &quartet.plain] {
        let errors = guest.checksum_errors()?;
        ensure!(
            errors == 0,
            "{} got {errors} packets with a wrong checksum",
            guest.name()
        );
    }
    Ok(())
}

/// Rings are packed, as the guest and the back-end see it, and carry everything.
pub(crate) fn packed_rings(stage: &mut Stage) -> Result<()> {
    let quartet = stage.quartet()?;
    let trio = &quartet.trio;
    for guest in [&trio.a, &trio.b] {
        let features = guest.features()?;
        ensure!(
            features & feature::RING_PACKED != 0,
            "{} has no packed rings: features {features:#x}",
            guest.name()
        );
    }
    let said = trio.vvu.printed();
    ensure!(
        said.matches("RING_PACKED").count() >= 2,
        "vvu does not say that rings are packed: {said}"
    );
    for size in [56, 1472, 4000] {
        for (from, to) in [(&trio.a, &trio.b), (&trio.b, &trio.a)] {
            let report = traffic::ping(from, to, size, 20)?;
            ensure!(
                report.lost() == 0,
                "{} of {} pings of {size} bytes were lost",
                report.lost(),
                report.sent
            );
        }
    }
    appliance::queue_pairs_in_use(trio)
}

/// Frames longer than any Ethernet's cross from guest to guest as they are, and every byte of
/// them is right.
pub(crate) fn long_frames_cross(stage: &mut Stage) -> Result<()> {
    let quartet = stage.quartet()?;
    let trio = &quartet.trio;
    for (from, to) in [(&trio.a, &trio.b), (&trio.b, &trio.a)] {
        let features = from.features()?;
        ensure!(
            features & feature::LONG == feature::LONG,
            "{} leaves less to the other side: features {features:#x}",
            from.name()
        );
        let [sender, receiver] = counted(from, to, 32 * MIB)?;
        let (sent, received) = (sender.mean().0, receiver.mean().1);
        ensure!(
            sent > 2 * FRAME && received > 2 * FRAME,
            "no long frames: {sent} bytes each were sent, {received} received"
        );
    }
    let there = Transfer::start(&trio.a, &trio.b, 16 * MIB)?;
    let back = Transfer::start(&trio.b, &trio.a, 16 * MIB)?;
    there.finish(STREAM)?;
    back.finish(STREAM)?;
    checksums_hold(quartet)
}

/// A card without any offload gets complete checksums and ordinary frames from those who leave
/// that to others, whatever they send.
pub(crate) fn plain_neighbour(stage: &mut Stage) -> Result<()> {
    let quartet = stage.quartet()?;
    let (a, plain) = (&quartet.trio.a, &quartet.plain);
    let has = plain.features()?;
    ensure!(
        has & (feature::LONG | feature::MRG_RXBUF) == 0,
        "it has offloads: features {has:#x}"
    );
    let [sender, receiver] = counted(a, plain, 16 * MIB)?;
    ensure!(
        sender.mean().0 > 2 * FRAME,
        "a sent no long frames, but {} bytes each",
        sender.mean().0
    );
    ensure!(
        receiver.received_bytes <= receiver.received * FRAME,
        "long frames arrived: {receiver:?}"
    );
    counted(plain, a, 16 * MIB)?;
    let shape = Datagrams {
        count: 1000,
        burst: 20,
        size: 1333,
        seed: 1,
    };
    traffic::udp(a, plain, shape, false)?;
    traffic::udp(plain, a, shape, true)?;
    // Longer than a frame: in fragments.
    let shape = Datagrams {
        count: 100,
        burst: 1,
        size: 9001,
        seed: 2,
    };
    traffic::udp(a, plain, shape, false)?;
    checksums_hold(quartet)
}

/// No VMM stands between: the driver has the back-end's control queue, and leaves the
/// segmentation of UDP to it, which no VMM's own card for vhost-user offers.
pub(crate) fn all_queues(stage: &mut Stage) -> Result<()> {
    const WANTED: u64 = feature::CTRL_VQ | feature::USO | feature::LONG | feature::RING_PACKED;
    let quartet = stage.quartet()?;
    quartet.without_shims()?;
    let trio = &quartet.trio;
    for guest in [&trio.a, &trio.b] {
        let features = guest.features()?;
        ensure!(
            features & WANTED == WANTED,
            "{} lacks features: {features:#x}",
            guest.name()
        );
    }
    appliance::queue_pairs_in_use(trio)?;
    // Each of these is a command that the driver waits for.
    for change in [
        &["promisc", "on"][..],
        &["promisc", "off"],
        &["address", "52:54:00:77:00:a1"],
    ] {
        let argv = [&["ip", "link", "set", "dev", "eth0"], change].concat();
        trio.a.run(&argv)?;
    }
    let complaints = trio.a.run(&["dmesg"])?.stdout;
    let complaint = complaints
        .lines()
        .find(|line| line.contains("Failed to set"));
    ensure!(complaint.is_none(), "the driver says {complaint:?}");
    // Nobody has told it.
    trio.b.run(&["ip", "neigh", "flush", "dev", "eth0"])?;
    let said = traffic::ping(&trio.b, &trio.a, 56, 20)?;
    ensure!(
        said.lost() == 0,
        "{} pings to a new address are lost",
        said.lost()
    );
    let [sender, receiver] = counted(&trio.a, &trio.b, 16 * MIB)?;
    let (sent, received) = (sender.mean().0, receiver.mean().1);
    ensure!(
        sent > 2 * FRAME && received > 2 * FRAME,
        "no long frames: {sent} bytes each were sent, {received} received"
    );
    Ok(())
}

/// Datagrams that a guest's kernel hands over as one frame arrive as one frame, or as many where
/// the receiver takes no other, and each of them is what was sent.
pub(crate) fn long_datagrams_cross(stage: &mut Stage) -> Result<()> {
    let shape = |seed| Datagrams {
        count: 2000,
        burst: 40,
        size: 1400,
        seed,
    };
    let quartet = stage.quartet()?;
    quartet.without_shims()?;
    let (a, b, plain) = (&quartet.trio.a, &quartet.trio.b, &quartet.plain);
    for guest in [a, b] {
        guest.turn_on_udp_segmentation()?;
    }
    for (from, to, merge) in [
        (a, b, true),
        (b, a, false),
        (b, plain, true),
        (plain, b, false),
    ] {
        let before = [from.counters()?, to.counters()?];
        let report = traffic::udp(from, to, shape(u64::from(merge)), merge)?;
        let sent = from.counters()?.since(&before[0]).mean().0;
        let received = to.counters()?.since(&before[1]);
        if from.name() != plain.name() {
            ensure!(
                sent > 4 * FRAME,
                "{}: {sent} bytes each were sent",
                from.name()
            );
        }
        if to.name() == plain.name() {
            ensure!(
                received.received_bytes <= received.received * FRAME,
                "long frames arrived: {received:?}"
            );
        } else if from.name() != plain.name() {
            let mean = received.mean().1;
            ensure!(mean > 4 * FRAME, "{}: {mean} bytes each arrived", to.name());
            ensure!(
                !merge || report.largest > 4 * FRAME,
                "the application got at most {} bytes at once",
                report.largest
            );
        }
    }
    checksums_hold(quartet)
}
