//! Writes real inputs for each target to `target/found/TARGET/seed-NAME`: messages as front-ends send
//! them, configuration spaces of devices that exist, rings that work.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use etherparse::{PacketBuilder, VlanId};
use vvu::model::Shape;
use vvu::pci::{ConfigSpace as PciSpace, Structures};
use vvu::protocol::{
    ConfigSpace, DeviceState, Inflight, Iotlb, LogArea, MemRegion, Reply, Request, VringAddr,
    VringFd, VringState,
};
use vvu_fuzz::front_end::{self, fds};
use vvu_fuzz::{blk, config_space, model, nbd, ring, scsi, session, vfio_user};

/// Address of the front-end's memory in the front-end.
const USER: u64 = 0x7f00_0000_0000;
/// Protocol features that a session offers.
const PROTOCOL: u64 = 1 | 4 | 8 | 16 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16;
/// VERSION_1, protocol features.
const VERSION_1: u64 = 1 << 32 | 1 << 30;

fn main() {
    for (target, seeds) in [
        ("message", messages()),
        ("capabilities", spaces()),
        ("config_space", functions()),
        ("offload", offloads()),
        ("blk", disk_requests()),
        ("ring", rings()),
        ("scsi", commands()),
        ("session", sessions()),
        ("model", models()),
        ("nbd", servers()),
        ("vfio_user", clients()),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target/found")
            .join(target);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in seeds {
            fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
        }
    }
}

type Seeds = Vec<(String, Vec<u8>)>;

/// Each command as it is meant, by an initiator that has heard of the power on.
fn commands() -> Seeds {
    use scsi::step;
    let command = |who: u8, cdb: &[u8], out: &[u8], zeroes: u16, room: u16| {
        let mut bytes = vec![step::COMMAND, who, 0, cdb.len() as u8];
        bytes.extend(cdb);
        bytes.push(out.len() as u8);
        bytes.extend(out);
        bytes.extend(zeroes.to_le_bytes());
        bytes.extend(room.to_le_bytes());
        bytes
    };
    let ready = command(0, &[0; 6], &[], 0, 0);
    let mut seeds: Seeds = Vec::new();
    let mut add = |name: &str, parts: &[Vec<u8>]| {
        seeds.push((name.to_owned(), [&ready[..], &parts.concat()].concat()));
    };
    for code in [0x28, 0x2a, 0x2e, 0x2f, 0x35, 0x41] {
        let cdb = [code, 2, 0, 0, 0, 3, 0, 0, 2, 0];
        add(
            &format!("{code:x}"),
            &[command(0, &cdb, &[1; 100], 924, 1024)],
        );
    }
    for code in [0x88, 0x89, 0x8a, 0x8e, 0x8f, 0x91, 0x93] {
        let mut cdb = [code, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0];
        cdb[1] = if code == 0x93 { 8 } else { 0 };
        add(&format!("{code:x}"), &[command(0, &cdb, &[], 1024, 1024)]);
    }
    let unmap = [
        0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0,
    ];
    add(
        "unmap",
        &[command(
            0,
            &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
            &unmap,
            0,
            0,
        )],
    );
    for page in [0u8, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2] {
        add(
            &format!("vpd-{page:x}"),
            &[command(0, &[0x12, 1, page, 0, 255, 0], &[], 0, 255)],
        );
    }
    add(
        "modes",
        &[
            command(0, &[0x1a, 8, 0x3f, 0, 255, 0], &[], 0, 255),
            command(0, &[0x15, 0x10, 0, 0, 24, 0], &[0, 0, 0, 0, 8, 18], 18, 0),
        ],
    );
    let reserve = |who, action, kind, keys: (u8, u8)| {
        let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
        let list = [0, 0, 0, 0, 0, 0, 0, keys.0, 0, 0, 0, 0, 0, 0, 0, keys.1];
        command(who, &cdb, &list, 8, 0)
    };
    add(
        "reserve",
        &[
            command(1, &[0; 6], &[], 0, 0),
            reserve(0, 0, 0, (0, 1)),
            reserve(1, 6, 0, (0, 2)),
            reserve(0, 1, 5, (1, 0)),
            reserve(1, 5, 7, (2, 1)),
            command(1, &[0x5e, 3, 0, 0, 0, 0, 0, 1, 0, 0], &[], 0, 256),
            reserve(1, 2, 7, (2, 0)),
            reserve(1, 3, 0, (2, 0)),
        ],
    );
    add(
        "reports",
        &[
            command(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[], 0, 256),
            command(0, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[], 0, 256),
            command(
                0,
                &[0xa3, 0x0c, 0x82, 0x5e, 0, 1, 0, 0, 1, 0, 0, 0],
                &[],
                0,
                256,
            ),
            command(
                0,
                &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
                &[],
                0,
                32,
            ),
            command(0, &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 255, 0], &[], 0, 255),
        ],
    );
    add(
        "disk",
        &[
            vec![step::RESIZE, 0, 3],
            command(0, &[3, 0, 0, 0, 18, 0], &[], 0, 18),
            vec![step::FAIL, 0, 1, 0],
            command(0, &[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[7; 10], 502, 0),
            vec![step::RESET, 1, step::LEAVE, 2, 1],
            command(0, &[0x1b, 0, 0, 0, 0, 0], &[], 0, 0),
        ],
    );
    seeds
}

/// Servers of 1 MiB that answer what they are asked, in chunks and without.
fn servers() -> Seeds {
    let option = |number: u32, kind: u32, text: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        for word in [number, kind, text.len() as u32] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(text);
        bytes
    };
    let say = |bytes: &[u8]| -> Vec<u8> {
        let parts = bytes.chunks(255);
        parts
            .flat_map(|part| [&[nbd::SAY, part.len() as u8], part].concat())
            .collect()
    };
    let hello = |structured: bool| {
        let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        let error = (1 << 31) + 1;
        bytes.extend(option(8, if structured { 1 } else { error }, &[]));
        let mut export = vec![0, 0];
        export.extend((1u64 << 20).to_be_bytes());
        export.extend(0b1_0110_1101u16.to_be_bytes());
        bytes.extend(option(7, 3, &export));
        bytes.extend(option(7, 3, b"\0\x03\0\0\0\x01\0\0\x10\0\0\0\x10\0"));
        bytes.extend(option(7, 1, &[]));
        say(&bytes)
    };
    // Requests get the numbers 1, 2, ... and take the places 0, 1, ...
    let handle = |n: u64| (n + 1) << 32 | n;
    let simple = |n: u64, error: u32, data: &[u8]| {
        let mut bytes = 0x6744_6698u32.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(handle(n).to_be_bytes());
        bytes.extend(data);
        say(&bytes)
    };
    let chunk = |n: u64, last: u16, kind: u16, text: &[u8]| {
        let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
        bytes.extend(last.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(handle(n).to_be_bytes());
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text);
        say(&bytes)
    };
    let read = [nbd::READ, 0, 0, 1, 0];
    let write = [6, 1, 0, 1, 1];
    let flush = [7, 0, 0, 0, 0];
    let zeroes = [9, 2, 0, 7, 0];
    let end = [nbd::LISTEN, nbd::REAP, nbd::ARM, nbd::REAP];
    let data = |offset: u64| [&offset.to_be_bytes()[..], &[7; 100]].concat();
    let hole = [&100u64.to_be_bytes()[..], &412u32.to_be_bytes()].concat();
    let asked = [&read[..], &write, &flush, &zeroes, &[nbd::LISTEN]].concat();
    let answers = [simple(1, 0, &[]), simple(2, 28, &[]), simple(3, 0, &[])].concat();
    let scripts = [
        (
            "simple",
            [
                &hello(false)[..],
                &asked,
                &simple(0, 0, &[7; 512]),
                &answers,
                &end,
            ]
            .concat(),
        ),
        (
            "chunks",
            [
                &hello(true)[..],
                &asked,
                &chunk(0, 0, 1, &data(0)),
                &chunk(0, 1, 2, &hole),
                &answers,
                &end,
            ]
            .concat(),
        ),
        (
            "errors",
            [
                &hello(true)[..],
                &asked,
                &chunk(0, 0, 0x8001, b"\0\0\0\x05\0\x04what"),
                &chunk(0, 1, 0, &[]),
                &chunk(1, 1, 0x8001, b"\0\0\0\x1c\0\0"),
                &end,
            ]
            .concat(),
        ),
        (
            "leaves",
            [&hello(true)[..], &asked, &[nbd::LEAVE], &end].concat(),
        ),
    ];
    scripts
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

/// Frames to be cut or completed, with their headers.
fn offloads() -> Seeds {
    let v4 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let v6 = || {
        let tagged = PacketBuilder::ethernet2([2; 6], [4; 6]).single_vlan(VlanId::ZERO);
        tagged.ipv6([0xfd; 16], [0xfe; 16], 64)
    };
    let mut tcp4 = Vec::new();
    let mut tcp6 = Vec::new();
    let mut udp4 = Vec::new();
    let mut udp6 = Vec::new();
    v4().tcp(1, 2, 3, 4).write(&mut tcp4, &[7; 100]).unwrap();
    v6().tcp(1, 2, 3, 4).write(&mut tcp6, &[7; 101]).unwrap();
    v4().udp(1, 2).write(&mut udp4, &[7; 100]).unwrap();
    v6().udp(1, 2).write(&mut udp6, &[7; 101]).unwrap();
    // A destination option before TCP.
    let mut option = tcp6.clone();
    option[24] = 60;
    option.splice(58..58, [6, 0, 1, 4, 0, 0, 0, 0]);
    let seeds = [
        ("tcp4", 1, 34, 16, tcp4.clone()),
        ("tcp6", 0x84, 58, 16, tcp6),
        ("udp4", 5, 34, 6, udp4),
        ("udp6", 5, 58, 6, udp6),
        ("option", 4, 66, 16, option),
        ("checksum", 0, 34, 16, tcp4),
    ];
    let seed = |(name, kind, start, offset, frame): (&str, u8, u16, u16, Vec<u8>)| {
        let script = Script::default().u8(1).u8(kind).u16(0).u16(40);
        let script = script.u16(start).u16(offset).u16(0).bytes(&frame);
        (name.to_owned(), script.0)
    };
    seeds.into_iter().map(seed).collect()
}

/// Little-endian numbers and bytes, one after the other.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u8(self, number: u8) -> Self {
        self.bytes(&[number])
    }
    fn u16(self, number: u16) -> Self {
        self.bytes(&number.to_le_bytes())
    }
    fn u32(self, number: u32) -> Self {
        self.bytes(&number.to_le_bytes())
    }
    fn u64(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }
    fn part(self, bytes: &[u8]) -> Self {
        self.u8(bytes.len() as u8).bytes(bytes)
    }
    fn descriptor(self, addr: u64, len: u32, flags: u16, next: u16) -> Self {
        self.u64(addr).u32(len).u16(flags).u16(next)
    }
}

fn region(guest_addr: u64) -> MemRegion {
    MemRegion {
        guest_addr,
        size: front_end::MEMORY,
        user_addr: USER,
        mmap_offset: 0,
    }
}

fn addr(index: u32) -> VringAddr {
    let [desc, avail, used] = session::PARTS;
    let base = USER + session::RING * u64::from(index);
    VringAddr {
        index,
        flags: 0,
        desc: base + desc,
        avail: base + avail,
        used: base + used,
        log: 0,
    }
}

fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

fn fd(index: u8) -> VringFd {
    VringFd { index, nofd: false }
}

/// One of each request.
fn requests() -> Vec<Request> {
    let config = |data: &[u8]| ConfigSpace {
        offset: 0,
        flags: 0,
        data: data.to_vec(),
    };
    let inflight = Inflight {
        mmap_size: 0x2000,
        mmap_offset: 0,
        queues: 2,
        queue_size: 256,
    };
    let log = LogArea {
        size: 0x8000,
        offset: 0,
    };
    let iotlb = Iotlb {
        iova: 0x1000,
        size: 0x2000,
        user_addr: USER,
        permission: 3,
        kind: 2,
    };
    let device_state = DeviceState {
        direction: 1,
        phase: 0,
    };
    vec![
        Request::GetFeatures,
        Request::SetFeatures(VERSION_1),
        Request::SetOwner,
        Request::ResetOwner,
        Request::SetMemTable(vec![region(0), region(1 << 32)]),
        Request::SetLogBase(log),
        Request::SetLogFd,
        Request::SetVringNum(state(1, 256)),
        Request::SetVringAddr(addr(1)),
        Request::SetVringBase(state(1, 7)),
        Request::GetVringBase(state(1, 0)),
        Request::SetVringKick(fd(1)),
        Request::SetVringCall(fd(1)),
        Request::SetVringErr(VringFd {
            index: 1,
            nofd: true,
        }),
        Request::GetProtocolFeatures,
        Request::SetProtocolFeatures(PROTOCOL),
        Request::GetQueueNum,
        Request::SetVringEnable(state(1, 1)),
        Request::SendRarp(0x5634_1200_5452),
        Request::NetSetMtu(1500),
        Request::SetBackendReqFd,
        Request::IotlbMsg(iotlb),
        Request::SetVringEndian(state(1, 1)),
        Request::GetConfig(config(&[0; 12])),
        Request::SetConfig(config(&[1; 2])),
        Request::CreateCryptoSession(vec![1, 2, 3]),
        Request::CloseCryptoSession(9),
        Request::PostcopyAdvise,
        Request::PostcopyListen,
        Request::PostcopyEnd,
        Request::GetInflightFd(inflight),
        Request::SetInflightFd(inflight),
        Request::GpuSetSocket,
        Request::ResetDevice,
        Request::VringKick(state(1, 0)),
        Request::GetMaxMemSlots,
        Request::AddMemReg(region(0)),
        Request::RemMemReg(region(0)),
        Request::SetStatus(15),
        Request::GetStatus,
        Request::GetSharedObject(*b"0123456789abcdef"),
        Request::SetDeviceStateFd(device_state),
        Request::CheckDeviceState,
        Request::GetShmemConfig,
        Request::GetVringBaseSkipDrain(state(1, 0)),
        Request::Unknown {
            number: 99,
            payload: vec![1; 8],
        },
    ]
}

fn messages() -> Seeds {
    let seed = |request: Request| {
        let message = request.to_message(true);
        let script = Script::default().u32(message.request).u32(message.flags);
        (
            format!("request-{}", message.request),
            script.bytes(&message.payload).0,
        )
    };
    requests().into_iter().map(seed).collect()
}

/// Devices that exist or existed, with a window that fits the BARs of the target.
fn shapes() -> Vec<(&'static str, Shape)> {
    let small = |(name, shape)| {
        let window = 1 << 30;
        (name, Shape { window, ..shape })
    };
    let shapes = [
        ("ours", Shape::ours()),
        ("prototype-2019", Shape::prototype(0x1058)),
        ("prototype-2022", Shape::prototype(0x106b)),
        ("crosvm", Shape::crosvm()),
    ];
    shapes.map(small).into()
}

fn spaces() -> Seeds {
    let seed = |(name, shape): (&str, Shape)| (name.to_owned(), shape.config());
    shapes().into_iter().map(seed).collect()
}

fn functions() -> Seeds {
    use config_space::op;
    let seed = |(name, shape): (&str, Shape)| {
        let found = Structures::find(&PciSpace::new(shape.config())).unwrap();
        let (registers, memory) = (found.common.bar, found.memory.bar);
        let mut script = Script::default().bytes(&shape.config());
        for bar in 0..6 {
            script = script.u8(if bar == memory { 30 } else { 15 });
        }
        script = script.u8(10).u8(0).u8(8);
        // Both halves of the features alike; queues and their size; rings; common configuration is
        // at 0, device configuration at 0x2000.
        let contents = [(0x04, 3), (0x12, 2), (0x18, 64), (0x2004, 4)];
        script = script.u8(contents.len() as u8);
        for (at, value) in contents {
            script = script.u8(registers).u16(at).u32(value);
        }
        // No lies; armed; a front-end comes, says something, gets an answer, and goes.
        script = script.u8(0).u8(op::EVENT);
        script = script.u8(op::REGISTER).u8(registers).u16(0x2000).u32(3);
        script = script.u8(op::FIRE).u8(0).u8(op::EVENT);
        let message = Request::SetFeatures(VERSION_1).to_message(true).to_bytes();
        script = script.u8(op::USED).u8(0).u16(0).u32(message.len() as u32);
        script = script.part(&message).u8(op::EVENT);
        script = script.u8(op::SEND).part(&message);
        script = script.u8(op::USED).u8(1).u16(0).u32(0).part(&[]);
        script = script.u8(op::MAP).u64(0x1000).u64(0);
        script = script.u8(op::NOTIFY).u8(1).u8(op::EVENT);
        script = script.u8(op::REGISTER).u8(registers).u16(0x2000).u32(0);
        script = script.u8(op::EVENT).u8(op::EVENT).u8(op::DISCONNECT);
        (name.to_owned(), script.0)
    };
    shapes().into_iter().map(seed).collect()
}

/// Every kind of request, as drivers make them.
fn disk_requests() -> Seeds {
    use blk::op;
    let mut seeds = Seeds::new();
    for flags in 0..4u8 {
        let mut script = vec![flags];
        for kind in [1u8, 0, 4, 8, 11, 13, 14] {
            let writes = kind == 0 || kind == 8;
            script.push(op::HEADER);
            script.extend(0u16.to_le_bytes());
            script.push(kind);
            script.extend(8u64.to_le_bytes());
            // A range, or data.
            script.push(op::WRITE);
            script.extend(16u16.to_le_bytes());
            script.push(16);
            script.extend((8u128 | 8 << 64).to_le_bytes());
            let data: Option<(u16, u16)> = match kind {
                0 => Some((0x1000, 0x8000 | 4096)),
                1 => Some((0x1000, 4096)),
                8 => Some((0x1000, 0x8000 | 20)),
                11 | 13 => Some((16, 16)),
                _ => None,
            };
            script.extend([op::OFFER, 2 + u8::from(data.is_some())]);
            let mut buffers = vec![(0u16, 16u16)];
            buffers.extend(data);
            buffers.push((0x3000, 0x8001));
            for (place, len) in buffers {
                script.extend(place.to_le_bytes());
                script.extend(len.to_le_bytes());
            }
            if writes {
                script.extend([op::CACHE, 0]);
            }
            script.push(op::POLL);
        }
        script.extend([op::RESIZE, 100, op::POLL]);
        seeds.push((format!("kinds-{flags}"), script));
    }
    seeds
}

fn rings() -> Seeds {
    use ring::op;
    let mut seeds = Seeds::new();
    for features in 0..8 {
        for (name, flags, tail) in [("in", 0, 0), ("out", 2, 0), ("chain", 1, 2)] {
            let mut script = Script::default().u8(features).u8(6).u16(0).u8(0);
            // Descriptors 0 and 1, and in 2 an indirect table that is at 0x3000.
            script = script
                .u8(op::DESCRIPTOR)
                .u8(0)
                .descriptor(0x4800, 0x900, flags, 1);
            script = script
                .u8(op::DESCRIPTOR)
                .u8(1)
                .descriptor(0x10_0000, 0x100, tail, 0);
            script = script
                .u8(op::DESCRIPTOR)
                .u8(2)
                .descriptor(0x4000, 0x20, 4, 0);
            let table = Script::default().descriptor(0x5000, 0x10, 1, 1);
            let table = table.descriptor(0x5800, 0x10, 2, 0);
            script = script.u8(op::WRITE).u16(0x3000).part(&table.0);
            script = script.u8(op::OFFER).u16(0).u8(op::OFFER).u16(2);
            script = script.u8(op::TAKE).u8(64).u8(op::GIVE_BACK).u8(1).u32(60);
            script = script.u8(op::FINISH).u8(op::ENABLE).u8(op::TAKE).u8(64);
            script = script.u8(op::DISABLE).u8(op::GIVE_BACK).u8(9).u32(0);
            script = script
                .u8(op::GIVE_BACK_READ)
                .u8(op::PUBLISH)
                .u8(op::MOVE)
                .u8(0);
            seeds.push((format!("{name}-{features}"), script.0));
        }
    }
    seeds
}

/// A message with file descriptors.
fn tell(script: Script, request: &Request, with: u8) -> Script {
    let message = request.to_message(true);
    let script = script.u8(session::op::MESSAGE).u8(message.request as u8);
    script
        .u8(message.flags as u8)
        .u8(with)
        .part(&message.payload)
}

fn set_up(features: u64) -> Script {
    set_up_pairs(features, 1)
}

fn set_up_pairs(features: u64, pairs: u8) -> Script {
    let mut script = Script::default().u8(pairs - 1);
    script = tell(script, &Request::GetFeatures, 0);
    script = tell(script, &Request::SetProtocolFeatures(PROTOCOL), 0);
    script = tell(script, &Request::SetFeatures(features), 0);
    let table = Request::SetMemTable(vec![region(0x1000)]);
    script = tell(script, &table, fds::MEMORY | 1);
    for index in 0..2 * u32::from(pairs) {
        let size = u32::from(session::SIZE);
        script = tell(script, &Request::SetVringNum(state(index, size)), 0);
        script = tell(script, &Request::SetVringBase(state(index, 0)), 0);
        script = tell(script, &Request::SetVringAddr(addr(index)), 0);
        let event = fds::EVENT | 1;
        script = tell(script, &Request::SetVringCall(fd(index as u8)), event);
        script = tell(script, &Request::SetVringKick(fd(index as u8)), event);
        script = tell(script, &Request::SetVringEnable(state(index, 1)), 0);
    }
    script
}

/// A frame of `len` bytes after its header, sent and received.
fn traffic(mut script: Script, header: &[u8], len: u32) -> Script {
    use session::op;
    let frame = Script::default()
        .bytes(header)
        .bytes(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 0])
        .bytes(&[
            0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ])
        .bytes(&[0, 9, 0, 9, 0, 30, 0, 0]);
    script = script.u8(op::WRITE).u16(0x8000).part(&frame.0);
    let head = header.len() as u32;
    // To the guest on rings 0 and 2, if there is that, and from it on 1.
    for (ring, addr, len, flags) in [
        (0, 0xa000, 0x4000, 2),
        (2, 0xa000, 0x4000, 2),
        (1, 0x9000, head + len, 0),
    ] {
        script = script.u8(op::DESCRIPTOR).u8(ring).u8(0);
        script = script.descriptor(addr, len, flags, 0);
        script = script.u8(op::OFFER).u8(ring).u16(0);
    }
    script.u8(op::POLL).u8(40).u8(op::SLEEP)
}

fn sessions() -> Seeds {
    use session::op;
    let mut seeds = Seeds::new();
    // One of each request, after a set-up.
    for request in requests() {
        let with = match request {
            Request::SetMemTable(_) => fds::MEMORY | 2,
            Request::AddMemReg(_) => fds::MEMORY | 1,
            Request::SetVringKick(_) | Request::SetVringCall(_) => fds::EVENT | 1,
            _ => 0,
        };
        let script = tell(set_up(VERSION_1), &request, with);
        let number = request.to_message(false).request;
        seeds.push((format!("request-{number}"), script.0));
    }
    // Frames: plain, mergeable, with a checksum to complete, segmented.
    let csum = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    let segment = [1, 4, 54, 0, 100, 0, 34, 0, 6, 0, 0, 0];
    let mergeable = VERSION_1 | 1 << 15;
    let offload = mergeable | 1 | 2 | 1 << 7 | 1 << 11 | 1 << 28 | 1 << 29;
    for (name, features, header, len) in [
        ("legacy", 1 << 30, &[0; 10][..], 60),
        ("plain", VERSION_1, &[0; 12], 60),
        ("mergeable", mergeable, &[0; 12], 1500),
        ("csum", offload, &csum, 60),
        ("csum-own", mergeable | 1, &csum, 60),
        ("segment", offload, &segment, 4000),
        ("segment-own", mergeable | 1 | 1 << 11, &segment, 4000),
    ] {
        let mut script = traffic(set_up(features), header, len);
        script = tell(script, &Request::GetVringBase(state(0, 0)), 0);
        script = tell(script, &Request::GetVringBase(state(1, 0)), 0);
        seeds.push((format!("frames-{name}"), script.0));
    }
    let script = traffic(set_up_pairs(VERSION_1 | 1 << 22, 2), &[0; 12], 60);
    seeds.push(("frames-two-pairs".to_owned(), script.0));
    let mut script = traffic(set_up(VERSION_1), &[0; 12], 60)
        .u8(op::TRUNCATE)
        .u16(0x1000);
    script = script.u8(op::POLL).u8(1);
    script = tell(script, &Request::GetVringBase(state(0, 0)), 0);
    seeds.push(("truncate".to_owned(), script.0));
    let bytes = Request::SetOwner.to_message(false).to_bytes();
    let script = set_up(VERSION_1).u8(op::BYTES).part(&bytes[..7]);
    let script = script.u8(op::BYTES).part(&bytes[7..]).u8(op::RECONNECT);
    let script = tell(script, &Request::GetFeatures, 0);
    seeds.push(("reconnect".to_owned(), script.0));
    seeds
}

/// A tunnel that carries one of each request and an answer, in every dialect.
fn models() -> Seeds {
    use model::op;
    let mut seeds = Seeds::new();
    for (name, kind) in [
        ("ours", 0x0c),
        ("prototype-2019", 0x01),
        ("prototype-2022", 0x02),
        ("crosvm", 0x03),
        ("peer-memory", 0x1c),
    ] {
        let start = || {
            let script = Script::default().u8(kind).u8(7).u8(18).u8(6);
            let script = script.u8(op::VECTOR).u16(1).u8(1);
            // The first ring's kick raises vector 3.
            let script = script.u8(op::WRITE).u8(5).u16(0).part(&[0, 0, 3, 0]);
            script.u8(op::BRING_UP).u32(u32::from(kind & 4 != 0))
        };
        let mut script = tell(start(), &Request::SetProtocolFeatures(PROTOCOL), 0);
        let table = Request::SetMemTable(vec![region(0)]);
        script = tell(script, &table, fds::MEMORY | 1);
        for request in [
            Request::SetVringKick(fd(0)),
            Request::SetVringCall(fd(0)),
            Request::SetVringErr(fd(0)),
        ] {
            script = tell(script, &request, fds::EVENT | 1);
        }
        script = script.u8(op::VECTOR).u16(3).u8(1).u8(op::KICK);
        script = script.u8(op::WRITE).u8(4).u16(0).part(&[0, 0]);
        script = script.u8(op::WINDOW).u32(0x100).u8(op::OFFER).u8(0).u16(0);
        script = tell(script, &Request::GetFeatures, 0);
        let answer = Reply::U64(VERSION_1).to_message(1).to_bytes();
        script = script.u8(op::SEND).part(&answer).u8(op::HEAR);
        script = tell(script, &Request::GetVringBase(state(0, 0)), 0);
        script = script.u8(op::READ).u8(0).u16(0).u8(0x38);
        script = script.u8(op::READ).u8(3).u16(0).u8(0x20);
        script = script.u8(op::READ).u8(2).u16(0).u8(1);
        script = script.u8(op::HANG_UP).u8(op::RESET);
        seeds.push((format!("tunnel-{name}"), script.0));
        if kind == 0x0c {
            for request in requests() {
                let with = match request {
                    Request::SetMemTable(_) => fds::MEMORY | 2,
                    Request::AddMemReg(_) => fds::MEMORY | 1,
                    Request::SetVringKick(_) | Request::SetVringCall(_) => fds::EVENT | 1,
                    _ => 0,
                };
                let script = tell(start(), &request, with);
                let number = request.to_message(false).request;
                seeds.push((format!("request-{number}"), script.0));
            }
        }
    }
    // Requests of the driver's, one of which is answered; then the socket is another one.
    let script = Script::default().u8(0x0c).u8(7).u8(18).u8(6);
    let script = script.u8(op::BRING_UP).u32(3);
    let channel = |script| tell(script, &Request::SetBackendReqFd, fds::SOCKET | 1);
    let mut script = channel(script);
    for (flags, said) in [(1, &[][..]), (9, &[0; 8])] {
        let request = [2, flags, 0].map(u32::to_le_bytes).concat();
        script = script.u8(op::SEND).part(&request);
        script = script.u8(op::CHANNEL).part(&[]);
        let answer = [2, 5, 8].map(u32::to_le_bytes).concat();
        script = script.u8(op::CHANNEL).part(&[&answer[..], said].concat());
    }
    let script = channel(script.u8(op::HEAR)).u8(op::HANG_UP);
    seeds.push(("channel".to_owned(), script.0));
    // Registers of configuration space, and a BAR through its window.
    let window = [9, 0, 0x14, 5, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
    let script = Script::default().u8(0x0c).u8(7).u8(18).u8(6);
    let script = script.u8(op::CONFIG).u8(4).part(&[6, 0]);
    let script = script.u8(op::CONFIG).u8(0xc0).part(&window);
    let script = script.u8(op::BAR).u8(1).u64(0).part(&[0; 16]);
    let script = script.u8(op::MAP).u64(1 << 32).u16(0x1000);
    let script = script.u8(op::UNMAP).u64(0).u64(u64::MAX);
    seeds.push(("bus".to_owned(), script.0));
    seeds
}

/// Clients of a function's server.
fn clients() -> Seeds {
    use vfio_user::{fds, op};
    let command = |script: Script, number: u16, fds: u8, body: Script| {
        let script = script.u8(op::COMMAND).u16(number).u8(0).u8(fds);
        script.part(&body.0)
    };
    let greeted = || {
        let body = Script::default().u32(0).bytes(b"{\"capabilities\":{}}\0");
        command(Script::default(), 1, 0, body)
    };
    let access =
        |region: u32, offset: u64, count: u32| Script::default().u64(offset).u32(region).u32(count);
    let four = |a: u32, b: u32, c: u32, d: u32| Script::default().u32(a).u32(b).u32(c).u32(d);
    // As a VMM looks at a function.
    let mut look = command(greeted(), 4, 0, four(16, 0, 0, 0));
    for region in 0..9 {
        for argsz in [32, 64] {
            let ask = four(argsz, 0, region, 0).u64(0).u64(0);
            look = command(look, 5, 0, ask);
        }
    }
    for kind in 0..4 {
        look = command(look, 7, 0, four(16, 0, kind, 0));
    }
    look = command(look, 9, 0, access(7, 0, 256));
    // As a driver uses it.
    let map = Script::default().u32(32).u32(3).u64(0x1000);
    let mut use_it = command(
        greeted(),
        2,
        fds::MEMORY | 1,
        map.u64(0x10_0000).u64(0x1_0000),
    );
    let rom = Script::default().u32(32).u32(1).u64(0).u64(0xf_0000);
    use_it = command(use_it, 2, 0, rom.u64(0x1000));
    use_it = command(use_it, 8, fds::EVENT | 3, four(20, 0x24, 2, 0).u32(3));
    use_it = command(use_it, 8, 0, four(20, 0x24, 2, 1).u32(1));
    for (region, offset, bytes) in [
        (7, 4, &[6, 0][..]),
        (4, 0x14, &[0]),
        (4, 0x14, &[3]),
        (4, 0x14, &[15]),
        (4, 0x2000, &[1, 0, 0, 0]),
        (0, 4, &[1, 0]),
    ] {
        let body = access(region, offset, bytes.len() as u32).bytes(bytes);
        use_it = command(use_it, 10, 0, body);
    }
    use_it = use_it.u8(op::FRONT_END);
    use_it = command(use_it, 9, 0, access(4, 0x2000, 4));
    use_it = command(use_it, 9, 0, access(2, 0, 8));
    let unmap = Script::default().u32(24).u32(0).u64(0x10_0000);
    use_it = command(use_it, 3, 0, unmap.u64(0x1_0000));
    use_it = command(use_it, 13, 0, Script::default());
    use_it = command(use_it, 8, 0, four(20, 0x21, 2, 0).u32(0));
    use_it = use_it.u8(op::HANG_UP);
    // What is no message.
    let noise = greeted()
        .u8(op::BYTES)
        .u8(fds::SOCKET | 1)
        .part(&[0xff; 40]);
    vec![
        ("look".to_owned(), look.0),
        ("use".to_owned(), use_it.0),
        ("noise".to_owned(), noise.0),
    ]
}
