//! The smallest program for the kernel that makes an AF_XDP socket work, and its loader.
//!
//! There are crates for this. Those that build on libxdp and libbpf want clang, libelf and
//! headers of the kernel on whoever builds vvu, and those that do not bring an object format, a
//! relocator and a compiler along. What is needed is five instructions, one map with one entry,
//! and four calls of bpf(2): hand them over, and look at none of what the kernel answers but a
//! descriptor. The program is detached when the descriptor that holds it is closed, whatever
//! became of us.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Commands of bpf(2).
const MAP_CREATE: c_int = 0;
const MAP_UPDATE: c_int = 2;
const PROGRAM_LOAD: c_int = 5;
const LINK_CREATE: c_int = 28;

/// BPF_MAP_TYPE_XSKMAP: sockets by queue.
const MAP_TYPE_XSK: u32 = 17;
/// BPF_PROG_TYPE_XDP.
const PROGRAM_TYPE_XDP: u32 = 6;
/// BPF_XDP, where such a program is attached.
const ATTACH_XDP: u32 = 37;
/// The helper bpf_redirect_map.
const REDIRECT_MAP: i32 = 51;
/// XDP_PASS: the frame goes to the kernel's stack. Given to the helper for queues without a
/// socket.
const PASS: i32 = 2;
/// Offset of the queue's number in what the program is given (struct xdp_md).
const QUEUE_OFFSET: i16 = 16;

/// An instruction: operation, registers (source above destination), offset, immediate.
const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (registers as u64) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// `return bpf_redirect_map(map, context->queue, PASS)`.
fn program(map: BorrowedFd<'_>) -> [u64; 6] {
    [
        // r2 = *(u32 *)(r1 + QUEUE_OFFSET)
        instruction(0x61, 0x12, QUEUE_OFFSET, 0),
        // r1 = the map (a load of 64 bits takes two; the source register says: a descriptor)
        instruction(0x18, 0x11, 0, map.as_raw_fd()),
        0,
        // r3 = PASS
        instruction(0xb7, 0x03, 0, PASS),
        instruction(0x85, 0, 0, REDIRECT_MAP),
        instruction(0x95, 0, 0, 0),
    ]
}

/// The part of `union bpf_attr` that any of the commands above reads; longer ones are taken as
/// followed by zeroes.
type Attributes = [u64; 9];

/// # Safety
/// Every address in `attributes` must be of as much living memory as the command reads there.
unsafe fn bpf(command: c_int, attributes: &Attributes) -> io::Result<c_int> {
    let size = size_of_val(attributes);
    // SAFETY: the kernel reads `size` bytes of `attributes`, and what they point to (by contract).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            ptr::from_ref(attributes),
            size as u32,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(number as c_int),
    }
}

/// # Safety
/// As for [`bpf`]; the command must be one that returns a new descriptor.
unsafe fn bpf_fd(command: c_int, attributes: &Attributes) -> io::Result<OwnedFd> {
    // SAFETY: by contract.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the command returned a new descriptor, which nobody else owns (by contract).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Two 32-bit fields, one after the other.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn address<T>(of: &T) -> u64 {
    ptr::from_ref(of).expose_provenance() as u64
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// A program at an interface that gives frames of some queues to sockets, for as long as this
/// value lives.
#[derive(Debug)]
pub(super) struct Redirect {
    map: OwnedFd,
    _link: OwnedFd,
}

impl Redirect {
    /// Attaches to interface `index`, for queues below `queues`. `flags` are XDP_FLAGS_...
    pub(super) fn attach(index: u32, queues: u32, flags: u32) -> io::Result<Self> {
        // Type and size of a key; size of a value and number of entries.
        let attributes = [pair(MAP_TYPE_XSK, 4), pair(4, queues), 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: no addresses; returns a descriptor.
        let map = unsafe { bpf_fd(MAP_CREATE, &attributes) }?;

        let code = program(map.as_fd());
        // Nothing here needs a licence that gives access to more helpers.
        let licence = *b"Apache-2.0\0";
        let attributes = [
            pair(PROGRAM_TYPE_XDP, code.len() as u32),
            address(&code),
            address(&licence),
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        // SAFETY: as many instructions as said and a string that ends in zero, both alive until
        // the call is over; returns a descriptor.
        let program = unsafe { bpf_fd(PROGRAM_LOAD, &attributes) }?;

        let attributes = [
            pair(number(program.as_fd()), index),
            pair(ATTACH_XDP, flags),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        // SAFETY: no addresses; returns a descriptor.
        let link = unsafe { bpf_fd(LINK_CREATE, &attributes) }?;
        Ok(Self { map, _link: link })
    }

    /// Frames of `queue` go to `socket` from now on.
    pub(super) fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = number(socket);
        let attributes = [
            pair(number(self.map.as_fd()), 0),
            address(&queue),
            address(&value),
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        // SAFETY: key and value are four bytes each, as the map was made, and alive until the call
        // is over.
        unsafe { bpf(MAP_UPDATE, &attributes) }.map(drop)
    }
}
