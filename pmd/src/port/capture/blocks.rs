//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng), as this program writes them:
//! little-endian, one section, one interface, nanoseconds. Pure.

/// Which way a frame went, seen from the program: bits 0 and 1 of a block's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::port) enum Direction {
    /// It came from the port.
    In = 1,
    /// It went to the port.
    Out = 2,
}

/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

/// The end of a list of options.
const END: [u8; 4] = [0; 4];

/// `len` rounded up to whole words.
pub(super) const fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A block of this type: its length comes before and after `body`, which is whole words.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes(), &len, body, &len].concat()
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let mut option = Vec::new();
    option.extend(code.to_le_bytes());
    option.extend((value.len() as u16).to_le_bytes());
    option.extend(value);
    option.resize(padded(option.len()), 0);
    option
}

/// What a file begins with: its section, and the interface called `name`.
pub(super) fn beginning(name: &str, snap: u32) -> Vec<u8> {
    let mut section = Vec::new();
    section.extend(0x1a2b_3c4du32.to_le_bytes());
    section.extend([1, 0, 0, 0]);
    // The section's length is not known.
    section.extend(u64::MAX.to_le_bytes());
    // shb_userappl.
    section.extend(option(
        4,
        concat!("vvu ", env!("CARGO_PKG_VERSION")).as_bytes(),
    ));
    section.extend(END);
    let mut interface = Vec::new();
    interface.extend(u32::from(ETHERNET).to_le_bytes());
    interface.extend(snap.to_le_bytes());
    // if_name, if_tsresol: ten to the minus ninth.
    let name = name.get(..name.len().min(1024)).unwrap_or("");
    interface.extend(option(2, name.as_bytes()));
    interface.extend(option(9, &[9]));
    interface.extend(END);
    [block(0x0a0d_0d0a, &section), block(1, &interface)].concat()
}

fn timestamp(nanoseconds: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&((nanoseconds >> 32) as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&(nanoseconds as u32).to_le_bytes());
    bytes
}

/// Bytes of a frame's block before the frame.
pub(super) const FRONT: usize = 28;
/// Bytes of a frame's block after the frame and what pads it: the flags, the end of options, the
/// length once more.
pub(super) const BACK: usize = 16;

/// What comes before the `captured` bytes of a frame of `len` bytes.
pub(super) fn front(nanoseconds: u64, captured: usize, len: usize) -> [u8; FRONT] {
    let mut front = [0; FRONT];
    front[0] = 6;
    let all = FRONT + padded(captured) + BACK;
    front[4..8].copy_from_slice(&(all as u32).to_le_bytes());
    front[12..20].copy_from_slice(&timestamp(nanoseconds));
    front[20..24].copy_from_slice(&(captured as u32).to_le_bytes());
    front[24..].copy_from_slice(&(len as u32).to_le_bytes());
    front
}

/// What comes after it, padding included: the bytes from the second value on.
pub(super) fn back(captured: usize, direction: Direction) -> ([u8; 3 + BACK], usize) {
    let mut back = [0; 3 + BACK];
    let all = FRONT + padded(captured) + BACK;
    // epb_flags.
    back[3] = 2;
    back[5] = 4;
    back[7] = direction as u8;
    back[15..].copy_from_slice(&(all as u32).to_le_bytes());
    (back, 3 - (padded(captured) - captured))
}

/// What a file ends with: how many frames passed, and how many of them are missing.
pub(super) fn end(nanoseconds: u64, passed: u64, missed: u64) -> Vec<u8> {
    let mut statistics = Vec::new();
    statistics.extend(0u32.to_le_bytes());
    statistics.extend(timestamp(nanoseconds));
    // isb_ifrecv, isb_ifdrop.
    statistics.extend(option(4, &passed.to_le_bytes()));
    statistics.extend(option(5, &missed.to_le_bytes()));
    statistics.extend(END);
    block(5, &statistics)
}
