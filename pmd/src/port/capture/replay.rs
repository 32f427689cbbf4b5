//! A port that is files: frames of one come from it, frames to it go to another.

use std::fs::File;
use std::path::Path;

use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError};
use vvu::memory::VolatileSlice;

use super::CaptureError;
use super::blocks::Direction;
use super::recorder::{Pen, now};
use crate::port::Stats;
use crate::port::burst::{BURST, Burst, Pick, Place};
use crate::port::head::{ETHERNET, Heads, MAX_FRAME, PLAIN};
use crate::port::offload::Accepts;
use crate::port::scratch::Scratch;
use crate::stats::Drop;
use crate::wake::Quiet;

/// Most bytes of a file's frames.
const MOST: usize = 1 << 30;

/// Longest block of a file.
const BLOCK: usize = 1 << 20;

/// Plays the frames of a file, as fast as it is polled, once or for ever.
#[derive(Debug)]
pub struct Replay {
    bytes: Box<[u8]>,
    places: Vec<Place>,
    next: usize,
    repeat: bool,
    stats: Stats,
}

impl Replay {
    /// Reads the file at `path`.
    pub fn open(path: &Path, repeat: bool, stats: Stats) -> Result<Self, CaptureError> {
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        let mut odd = 0u64;
        let most = CaptureError::TooLarge {
            path: path.to_owned(),
            most: MOST,
        };
        read(path, |frame, whole| {
            if !whole || !(ETHERNET..=MAX_FRAME).contains(&frame.len()) {
                odd += 1;
                return true;
            }
            places.push(Place {
                offset: bytes.len(),
                len: frame.len(),
                header: PLAIN,
            });
            bytes.extend_from_slice(frame);
            bytes.len() <= MOST
        })?
        .then_some(())
        .ok_or(most)?;
        tracing::info!(path = %path.display(), frames = places.len(), bytes = bytes.len(), "read");
        if odd > 0 {
            tracing::warn!(
                path = %path.display(),
                frames = odd,
                "left out: cut short, or of a length that no port takes"
            );
        }
        Ok(Self {
            bytes: bytes.into(),
            places,
            next: 0,
            repeat,
            stats,
        })
    }

    pub(in crate::port) fn rx_burst(
        &mut self,
        heads: &mut Heads,
        mut each: impl FnMut(&Burst<'_>) -> bool,
    ) -> bool {
        let end = self.places.len().min(self.next + BURST);
        let places = self.places.get(self.next..end).unwrap_or(&[]);
        if places.is_empty() {
            return false;
        }
        let memory = VolatileSlice::from(&mut self.bytes[..]);
        heads.clear();
        for (item, place) in (0u16..).zip(places) {
            if let Ok(bytes) = memory.subslice(place.offset, place.len) {
                // Frames of other lengths were left out.
                heads.push_plain(item, bytes, 0);
            }
        }
        let burst = Burst::of_places(heads, memory, places);
        // With nobody to receive, the frames stay for later.
        let met = each(&burst);
        if met {
            self.stats.rx_packets.add(burst.len() as u64);
            self.stats.rx_bytes.add(burst.bytes());
            self.next = match self.repeat && end == self.places.len() {
                true => 0,
                false => end,
            };
        }
        met
    }

    pub(in crate::port) fn enable_kicks(&self) -> Quiet {
        match self.next < self.places.len() {
            true => Quiet::Polled,
            false => Quiet::Kicked,
        }
    }
}

/// Hands each frame of the file at `path` to `each`, with whether it is all of it, until that says
/// no. Returns whether it never did.
pub(super) fn read(
    path: &Path,
    mut each: impl FnMut(&[u8], bool) -> bool,
) -> Result<bool, CaptureError> {
    let file = File::open(path).map_err(|source| CaptureError::io("read", path, source))?;
    let mut at = 0u64;
    let bad = |at, what: String| CaptureError::Format {
        path: path.to_owned(),
        what,
        at,
    };
    let mut reader =
        pcap_parser::create_reader(2 * BLOCK, file).map_err(|error| bad(0, describe(&error)))?;
    let mut interfaces = Vec::new();
    loop {
        let before = reader.data().len();
        match reader.next() {
            Ok((len, block)) => {
                let go_on = match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        interfaces = vec![header.network];
                        true
                    }
                    PcapBlockOwned::Legacy(packet) => {
                        let whole = packet.caplen == packet.origlen;
                        hand(&interfaces, 0, packet.data, packet.caplen, whole, &mut each)
                            .ok_or_else(|| bad(at, "a frame that is not Ethernet".into()))?
                    }
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                        interfaces.clear();
                        true
                    }
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                        interfaces.push(interface.linktype);
                        true
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                        let whole = packet.caplen == packet.origlen;
                        let interface = packet.if_id as usize;
                        let (data, len) = (packet.data, packet.caplen);
                        hand(&interfaces, interface, data, len, whole, &mut each)
                            .ok_or_else(|| bad(at, "a frame that is not Ethernet".into()))?
                    }
                    PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                        let (data, len) = (packet.data, packet.origlen);
                        let whole = data.len() >= len as usize;
                        hand(&interfaces, 0, data, len, whole, &mut each)
                            .ok_or_else(|| bad(at, "a frame that is not Ethernet".into()))?
                    }
                    PcapBlockOwned::NG(_) => true,
                };
                if !go_on {
                    return Ok(false);
                }
                at += len as u64;
                reader.consume(len);
            }
            Err(PcapError::Eof) => return Ok(true),
            Err(PcapError::Incomplete(_)) => {
                reader.refill().map_err(|error| bad(at, describe(&error)))?;
                if reader.data().len() == before && !reader.reader_exhausted() {
                    return Err(bad(at, "a block that is too long".into()));
                }
            }
            Err(error) => return Err(bad(at, describe(&error))),
        }
    }
}

/// Hands over a frame of an Ethernet interface. `None` if the interface is another.
fn hand(
    interfaces: &[Linktype],
    interface: usize,
    data: &[u8],
    len: u32,
    whole: bool,
    each: &mut impl FnMut(&[u8], bool) -> bool,
) -> Option<bool> {
    let ethernet = interfaces.get(interface) == Some(&Linktype::ETHERNET);
    let (frame, whole) = match data.get(..len as usize) {
        Some(frame) => (frame, whole),
        None => (data, false),
    };
    ethernet.then(|| each(frame, whole))
}

/// What is wrong with a file, in words.
fn describe<I>(error: &PcapError<I>) -> String {
    match error {
        PcapError::Eof => "nothing",
        PcapError::BufferTooSmall => "a block that is too long",
        PcapError::UnexpectedEof | PcapError::Incomplete(_) => "a block that is cut short",
        PcapError::ReadError => "an error of the disk",
        PcapError::HeaderNotRecognized => "an unknown header",
        PcapError::NomError(..) | PcapError::OwnedNomError(..) => "a malformed block",
    }
    .to_owned()
}

/// Writes frames to a file, complete.
#[derive(Debug)]
pub struct FileTx {
    pen: Pen,
    stats: Stats,
}

impl FileTx {
    /// Writes with `pen`.
    pub fn new(pen: Pen, stats: Stats) -> Self {
        Self { pen, stats }
    }

    pub(in crate::port) fn tx_burst(
        &mut self,
        burst: &Burst<'_>,
        picks: &[Pick],
        scratch: &mut Scratch,
    ) -> bool {
        let Self { pen, stats } = self;
        let now = now();
        let (mut packets, mut bytes, mut behind, mut small) = (0, 0, 0, 0);
        let mut count = |noted: bool, len: usize| {
            packets += u64::from(noted);
            bytes += if noted { len as u64 } else { 0 };
            behind += u64::from(!noted);
        };
        for pick in picks {
            let Some(head) = burst.picked(pick) else {
                continue;
            };
            let fits = scratch.show(burst, &head, Accepts::default(), |frame| {
                let len = frame.len;
                let noted = pen.write(now, Direction::Out, len, frame.first, frame.body);
                count(noted, len);
            });
            small += u64::from(!fits);
        }
        stats.tx_packets.add(packets);
        stats.tx_bytes.add(bytes);
        stats.dropped(Drop::WriterFull, behind);
        stats.dropped(Drop::SmallBuffer, small);
        true
    }
}
