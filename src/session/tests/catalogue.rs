//! What hostile front-ends say: one catalogue, for every way in which they are heard.

use std::os::fd::OwnedFd;

use super::bench::memory;
use super::hostile::handshake;
use super::script::{LEN, USER, eventfd};
use crate::protocol::REQUESTS;

/// Kinds of descriptors, most of them useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Event,
    Memory,
    /// A file that is shorter than it should be.
    Short,
    /// Ends of a pipe whose other end is closed.
    Reader,
    Writer,
    Socket,
    Directory,
    ReadOnly,
    Device,
}

const KINDS: [Kind; 9] = [
    Kind::Event,
    Kind::Memory,
    Kind::Short,
    Kind::Reader,
    Kind::Writer,
    Kind::Socket,
    Kind::Directory,
    Kind::ReadOnly,
    Kind::Device,
];

impl Kind {
    pub(super) fn open(self) -> OwnedFd {
        match self {
            Self::Event => eventfd(),
            Self::Memory => memory(LEN),
            Self::Short => memory(1),
            Self::Reader => std::io::pipe().unwrap().0.into(),
            Self::Writer => std::io::pipe().unwrap().1.into(),
            Self::Socket => std::os::unix::net::UnixStream::pair().unwrap().0.into(),
            Self::Directory => std::fs::File::open("/").unwrap().into(),
            Self::ReadOnly => std::fs::File::open("/proc/self/exe").unwrap().into(),
            Self::Device => std::fs::File::open("/dev/zero").unwrap().into(),
        }
    }
}

/// Something to say, of whatever it is said with: bytes and descriptors, piece by piece.
#[derive(Debug, Clone)]
pub(super) struct Attack {
    pub(super) name: String,
    /// How many messages of an honest handshake go before.
    pub(super) after: usize,
    pub(super) pieces: Vec<(Vec<u8>, Vec<Kind>)>,
    /// It ends in the middle of a message, so that nobody can tell it from a front-end that died.
    pub(super) cut: bool,
}

fn bytes(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let words = [request, flags, size].map(u32::to_le_bytes);
    [words.as_flattened(), payload].concat()
}

/// Numbers of requests: all that there are, some that there are not.
fn numbers() -> impl Iterator<Item = u32> {
    (0..=50).chain([51, 99, 256, 0x7fff_ffff, 0x8000_0001, u32::MAX])
}

/// The fields of a request's payload: width, and a value that is right.
fn fields(request: u32) -> Vec<(usize, u64)> {
    let region = [(8, 0), (8, LEN), (8, USER), (8, 0)];
    match request {
        2 => vec![(8, 1 << 32 | 1 << 30)],
        16 => vec![(8, super::script::ALL)],
        12..=14 | 19 | 20 | 27 | 39 => vec![(8, 0)],
        8 | 10 | 11 | 18 | 23 | 35 | 45 => vec![(4, 0), (4, 1)],
        9 => vec![
            (4, 0),
            (4, 0),
            (8, USER),
            (8, USER + 0x2000),
            (8, USER + 0x1000),
            (8, 0),
        ],
        5 => [&[(4, 1), (4, 0)][..], &region].concat(),
        37 | 38 => [&[(8, 0)][..], &region].concat(),
        6 => vec![(8, 0x1000), (8, 0)],
        22 => vec![
            (8, 0),
            (8, 0x1000),
            (8, USER),
            (1, 3),
            (1, 2),
            (2, 0),
            (4, 0),
        ],
        24 | 25 => vec![(4, 0), (4, 12), (4, 0), (8, 0), (4, 0)],
        31 | 32 => vec![(8, 0x1000), (8, 0), (2, 1), (2, 256), (4, 0)],
        41 => vec![(8, 1), (8, 2)],
        42 => vec![(4, 0), (4, 0)],
        _ => Vec::new(),
    }
}

/// What right descriptors come with a request.
fn right(request: u32) -> Vec<Kind> {
    match request {
        5 | 6 | 7 | 32 | 37 => vec![Kind::Memory],
        12..=14 => vec![Kind::Event],
        21 | 33 | 42 => vec![Kind::Socket],
        _ => Vec::new(),
    }
}

fn payload(request: u32) -> Vec<u8> {
    let fields = fields(request);
    let parts = fields
        .iter()
        .map(|(width, value)| value.to_le_bytes()[..*width].to_vec());
    parts.collect::<Vec<_>>().concat()
}

/// The catalogue.
pub(super) fn attacks() -> Vec<Attack> {
    let mut all = Vec::new();
    let mut add = |name: String, pieces: Vec<(Vec<u8>, Vec<Kind>)>, cut: bool| {
        // In turns: at once, negotiated, with memory, with a ring that runs.
        let after = [0, 3, 4, 10][all.len() % 4];
        all.push(Attack {
            name,
            after,
            pieces,
            cut,
        });
    };
    for request in numbers() {
        let good = payload(request);
        let size = good.len() as u32;
        let fds = right(request);
        for (nth, (width, _)) in fields(request).iter().enumerate() {
            let start = fields(request)[..nth].iter().map(|(width, _)| width).sum();
            let most = u64::MAX >> (64 - 8 * width);
            let values = [
                0,
                1,
                2,
                3,
                255,
                256,
                257,
                1 << 12,
                1 << 15,
                1 << 16,
                1 << 31,
            ];
            let edges = [LEN - 1, LEN + 1, most >> 1, (most >> 1) + 1, most - 1, most];
            for value in values.into_iter().chain(edges) {
                if value > most {
                    continue;
                }
                let mut payload = good.clone();
                payload[start..start + width].copy_from_slice(&value.to_le_bytes()[..*width]);
                for flags in [1, 9] {
                    let name = format!("{request}, flags {flags:#x}: field {nth} is {value:#x}");
                    let message = bytes(request, flags, size, &payload);
                    add(name, vec![(message, fds.clone())], false);
                }
            }
        }
        for flags in [0, 1, 2, 3, 5, 8, 9, 13, u32::MAX] {
            let message = bytes(request, flags, size, &good);
            add(
                format!("{request}: flags {flags:#x}"),
                vec![(message, fds.clone())],
                false,
            );
        }
        // The last one is longer than what a driver has room for.
        let long = (request == 16).then_some(0x1_0000);
        let wrong = [
            0,
            1,
            size.saturating_sub(1),
            size + 1,
            size + 8,
            0x1000,
            8180,
        ];
        for found in wrong.into_iter().chain(long) {
            let mut payload = good.clone();
            payload.resize(found as usize, 0xff);
            let message = bytes(request, 9, found, &payload);
            add(
                format!("{request}: {found} bytes"),
                vec![(message, fds.clone())],
                false,
            );
        }
        for claim in [0x1_0001, 0x7fff_ffff, u32::MAX] {
            let message = bytes(request, 9, claim, &good);
            add(
                format!("{request}: claims {claim} bytes"),
                vec![(message, fds.clone())],
                false,
            );
        }
        let message = bytes(request, 9, size + 100, &good);
        add(
            format!("{request}: cut short"),
            vec![(message, fds.clone())],
            true,
        );
        let message = bytes(request, 9, size, &good);
        for number in [0, 1, 2, 8, 9, 32] {
            let kind = fds.first().copied().unwrap_or(Kind::Event);
            let pieces = vec![(message.clone(), vec![kind; number])];
            add(format!("{request}: {number} descriptors"), pieces, false);
        }
        // Descriptors with the last byte.
        let (head, tail) = message.split_at(message.len() - 1);
        let pieces = vec![
            (head.to_vec(), Vec::new()),
            (tail.to_vec(), vec![Kind::Event]),
        ];
        add(format!("{request}: late descriptors"), pieces, false);
        if !fds.is_empty() {
            for kind in KINDS {
                let pieces = vec![(message.clone(), vec![kind])];
                add(format!("{request}: {kind:?}"), pieces, false);
            }
        }
    }
    let honest: Vec<_> = REQUESTS[..18]
        .iter()
        .chain(&REQUESTS[35..38])
        .map(|row| {
            let good = payload(row.number);
            let message = bytes(row.number, 9, good.len() as u32, &good);
            (message, right(row.number))
        })
        .collect();
    for first in 0..honest.len() {
        for second in 0..honest.len() {
            let pieces = vec![honest[first].clone(), honest[second].clone()];
            add(format!("order {first}, {second}"), pieces, false);
        }
        let mut turned = honest.clone();
        turned.rotate_left(first);
        add(format!("order from {first} on"), turned.clone(), false);
        turned.reverse();
        add(format!("order back from {first}"), turned, false);
    }
    all
}

/// An honest set-up as bytes: every message with its descriptors.
pub(super) fn set_up() -> Vec<(Vec<u8>, Option<OwnedFd>)> {
    let steps = handshake().into_iter();
    let bytes = steps.map(|(request, fd)| (request.to_message(true).to_bytes(), fd));
    bytes.collect()
}
