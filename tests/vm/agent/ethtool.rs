//! Turns a feature of an interface on, as `ethtool -K` does (`ethtool-netlink` in the kernel's
//! documentation).

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Lengths of netlink's and of generic netlink's header.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// Messages about families, and the request for one by name.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// ETHTOOL_MSG_FEATURES_SET.
const SET_FEATURES: u8 = 12;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn name(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn nest(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, value)
}

fn message(family: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER + GENERIC + attributes.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend([family.to_ne_bytes(), flags.to_ne_bytes()].concat());
    // Sequence number and port; command and version.
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend_from_slice(attributes);
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Sends a request and returns the answer.
fn ask(socket: &OwnedFd, request: &[u8]) -> Result<Vec<u8>> {
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    answer(socket)
}

fn answer(socket: &OwnedFd) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 1 << 16];
    let length = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Turns `feature` of `device` on.
pub(crate) fn turn_on(device: &str, feature: &str) -> Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkGeneric,
    )
    .context("opening a netlink socket")?;
    let family = message(CONTROL, REQUEST, GET_FAMILY, &name(FAMILY_NAME, "ethtool"));
    let family =
        family_id(&ask(&socket, &family)?).context("this kernel has no ethtool netlink")?;
    // The device's name in the header; one bit of a bitset, by name.
    let header = nest(1, &name(2, device));
    let bit = nest(1, &[name(2, feature), attribute(3, &[])].concat());
    let wanted = nest(3, &nest(3, &bit));
    let request = message(
        family,
        REQUEST | ACKNOWLEDGE,
        SET_FEATURES,
        &[header, wanted].concat(),
    );
    let mut reply = ask(&socket, &request)?;
    // What changed comes before the outcome.
    while u16_at(&reply, 4) != Some(ERROR) {
        reply = answer(&socket)?;
    }
    let code = reply.get(HEADER..HEADER + 4).context("a short outcome")?;
    let code = i32::from_ne_bytes(code.try_into()?);
    ensure!(code == 0, "{feature} of {device}: error {}", -code);
    Ok(())
}

/// The number of the family that an answer is about.
fn family_id(reply: &[u8]) -> Option<u16> {
    let mut at = HEADER + GENERIC;
    loop {
        let length = usize::from(u16_at(reply, at)?);
        if u16_at(reply, at + 2)? == FAMILY_ID {
            return u16_at(reply, at + 4);
        }
        at += length.max(4).next_multiple_of(4);
    }
}
