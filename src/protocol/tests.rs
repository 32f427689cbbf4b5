//! Each message byte for byte, there and back; and bytes that are no message.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

fn region(guest_addr: u64) -> MemRegion {
    MemRegion {
        guest_addr,
        size: 0x20_0000,
        user_addr: 0x7f00_1234_5000,
        mmap_offset: 0x1000,
    }
}

fn config(data: &[u8]) -> ConfigSpace {
    ConfigSpace {
        offset: 6,
        flags: 1,
        data: data.to_vec(),
    }
}

const REGION: &str = "0000200000000000 0050341200 7f0000 0010000000000000";

/// Every request with its payload on the wire.
pub(crate) fn vectors() -> Vec<(u32, Request, String)> {
    let ring = "02000000 00010000";
    let inflight = Inflight {
        mmap_size: 0x2000,
        mmap_offset: 0x40,
        queues: 2,
        queue_size: 256,
    };
    let inflight_hex = "0020000000000000 4000000000000000 0200 0001 00000000";
    let one = |guest: &str| format!("{guest} {REGION}");
    let both = format!(
        "02000000 00000000 {} {}",
        one("0000000000000000"),
        one("0000000001000000")
    );
    let log = LogArea {
        size: 0x8000,
        offset: 0x1000,
    };
    let addr = VringAddr {
        index: 3,
        flags: 1,
        desc: 0x7f00_0000_1000,
        used: 0x7f00_0000_3000,
        avail: 0x7f00_0000_2000,
        log: 0x9000,
    };
    let addr_hex = "03000000 01000000 00100000007f0000 00300000007f0000 00200000007f0000 \
                    0090000000000000";
    let iotlb = Iotlb {
        iova: 0x1000,
        size: 0x2000,
        user_addr: 0x7f00_0000_0000,
        permission: 3,
        kind: 2,
    };
    let iotlb_hex = "0010000000000000 0020000000000000 00000000007f0000 03 02 000000000000";
    let fd = |index, nofd| VringFd { index, nofd };
    let uuid = *b"0123456789abcdef";
    let table: Vec<(u32, Request, &str)> = vec![
        (1, Request::GetFeatures, ""),
        (2, Request::SetFeatures(0x1_4000_0021), "2100004001000000"),
        (3, Request::SetOwner, ""),
        (4, Request::ResetOwner, ""),
        (
            5,
            Request::SetMemTable(vec![region(0), region(0x1_0000_0000)]),
            &both,
        ),
        (
            6,
            Request::SetLogBase(log),
            "0080000000000000 0010000000000000",
        ),
        (7, Request::SetLogFd, ""),
        (8, Request::SetVringNum(state(2, 256)), ring),
        (9, Request::SetVringAddr(addr), addr_hex),
        (10, Request::SetVringBase(state(2, 256)), ring),
        (11, Request::GetVringBase(state(2, 256)), ring),
        (12, Request::SetVringKick(fd(5, false)), "0500000000000000"),
        (13, Request::SetVringCall(fd(255, true)), "ff01000000000000"),
        (14, Request::SetVringErr(fd(0, true)), "0001000000000000"),
        (15, Request::GetProtocolFeatures, ""),
        (
            16,
            Request::SetProtocolFeatures(0x1_a21d),
            "1da2010000000000",
        ),
        (17, Request::GetQueueNum, ""),
        (18, Request::SetVringEnable(state(2, 256)), ring),
        (19, Request::SendRarp(0x5634_1200_5452), "5254001234560000"),
        (20, Request::NetSetMtu(1500), "dc05000000000000"),
        (21, Request::SetBackendReqFd, ""),
        (22, Request::IotlbMsg(iotlb), iotlb_hex),
        (23, Request::SetVringEndian(state(2, 256)), ring),
        (
            24,
            Request::GetConfig(config(&[0, 0])),
            "06000000 02000000 01000000 0000",
        ),
        (
            25,
            Request::SetConfig(config(&[0xab])),
            "06000000 01000000 01000000 ab",
        ),
        (26, Request::CreateCryptoSession(vec![1, 2, 3]), "010203"),
        (27, Request::CloseCryptoSession(9), "0900000000000000"),
        (28, Request::PostcopyAdvise, ""),
        (29, Request::PostcopyListen, ""),
        (30, Request::PostcopyEnd, ""),
        (31, Request::GetInflightFd(inflight), inflight_hex),
        (32, Request::SetInflightFd(inflight), inflight_hex),
        (33, Request::GpuSetSocket, ""),
        (34, Request::ResetDevice, ""),
        (35, Request::VringKick(state(2, 256)), ring),
        (36, Request::GetMaxMemSlots, ""),
        (37, Request::AddMemReg(region(0)), ""),
        (38, Request::RemMemReg(region(0)), ""),
        (39, Request::SetStatus(0xf), "0f00000000000000"),
        (40, Request::GetStatus, ""),
        (
            41,
            Request::GetSharedObject(uuid),
            "30313233343536373839616263646566",
        ),
        (
            42,
            Request::SetDeviceStateFd(DeviceState {
                direction: 1,
                phase: 0,
            }),
            "01000000 00000000",
        ),
        (43, Request::CheckDeviceState, ""),
        (44, Request::GetShmemConfig, ""),
        (45, Request::GetVringBaseSkipDrain(state(2, 256)), ring),
    ];
    let single = format!("0000000000000000 {}", one("0000000000000000"));
    table
        .into_iter()
        .map(|(number, request, hex)| {
            let hex = match number {
                37 | 38 => single.clone(),
                _ => hex.to_owned(),
            };
            (number, request, hex)
        })
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn every_request_byte_for_byte() {
    let vectors = vectors();
    assert_eq!(vectors.len(), REQUESTS.len());
    for (number, request, hex) in vectors {
        for need_reply in [false, true] {
            let message = request.to_message(need_reply);
            assert_eq!(message.request, number, "{request:?}");
            assert_eq!(message.payload, unhex(&hex), "{request:?}");
            assert_eq!(message.flags, if need_reply { 9 } else { 1 });
            assert_eq!(Request::parse(&message), Ok(request.clone()));
        }
    }
}

#[test]
fn the_header_byte_for_byte() {
    let message = Request::SetVringNum(state(1, 256)).to_message(true);
    let bytes = message.to_bytes();
    assert_eq!(bytes, unhex("08000000 09000000 08000000 01000000 00010000"));
    let header = bytes[..HEADER_LEN].try_into().unwrap();
    assert_eq!(Message::parse_header(header), (8, 9, 8));
}

#[test]
fn the_table_is_in_order_and_has_all_names() {
    for (number, row) in (1..).zip(&REQUESTS) {
        assert_eq!(row.number, number);
        assert_eq!(info(number), Some(row));
    }
    assert_eq!(info(0), None);
    assert_eq!(info(46), None);
    assert_eq!(info(u32::MAX), None);
}

#[test]
fn replies_byte_for_byte() {
    let table = [
        (1, Reply::U64(0x1_0000_0000), "0000000001000000"),
        (2, Reply::U64(0), "0000000000000000"),
        (11, Reply::Vring(state(1, 7)), "01000000 07000000"),
        (
            24,
            Reply::Config(config(&[0xab])),
            "06000000 01000000 01000000 ab",
        ),
        (24, Reply::Empty, ""),
    ];
    for (number, reply, hex) in table {
        let message = reply.to_message(number);
        assert_eq!(message.flags, 5);
        assert_eq!(message.payload, unhex(hex));
        assert_eq!(Reply::parse(&message), Some(reply));
    }
}

#[test]
fn a_wrong_size_is_refused() {
    for (number, request, hex) in vectors() {
        // Any bytes are a crypto session's, and inflight buffers may lack C's padding.
        if number == 26 {
            continue;
        }
        let full = unhex(&hex);
        let mut sizes: Vec<usize> = (0..full.len() + 40).collect();
        sizes.retain(|size| *size != full.len());
        sizes.retain(|size| !(matches!(number, 31 | 32) && *size == 20));
        for size in sizes {
            let mut message = request.to_message(false);
            message.payload.resize(size, 0);
            let error = Request::parse(&message).unwrap_err();
            assert!(
                matches!(error, ProtocolError::Size { found, .. } if found == size),
                "{request:?} with {size} bytes: {error}"
            );
        }
    }
}

#[test]
fn bits_that_mean_nothing_are_refused() {
    let reserved = |message: &Message| {
        let error = Request::parse(message).unwrap_err();
        assert!(matches!(error, ProtocolError::Reserved { .. }), "{error}");
    };
    let good = Request::GetFeatures.to_message(false);
    for bit in 4..32 {
        reserved(&Message {
            flags: 1 | 1 << bit,
            ..good.clone()
        });
    }
    for number in [12, 13, 14] {
        for bit in 9..64 {
            let payload = (1u64 << bit).to_le_bytes().to_vec();
            reserved(&Message {
                request: number,
                flags: 1,
                payload,
            });
        }
    }
    for version in [0, 2, 3] {
        let message = Message {
            flags: version,
            ..good.clone()
        };
        assert!(matches!(
            Request::parse(&message),
            Err(ProtocolError::Version { version: found, .. }) if found == version
        ));
    }
    let reply = Message { flags: 5, ..good };
    assert_eq!(
        Request::parse(&reply),
        Err(ProtocolError::Reply("GET_FEATURES"))
    );
}

#[test]
fn a_table_of_too_many_regions_is_refused() {
    let table = |count: usize| Request::SetMemTable(vec![region(0); count]).to_message(false);
    for count in 0..=8 {
        assert!(Request::parse(&table(count)).is_ok());
    }
    assert_eq!(
        Request::parse(&table(9)),
        Err(ProtocolError::Regions {
            name: "SET_MEM_TABLE",
            found: 9
        })
    );
    let mut huge = table(1);
    huge.payload[..4].copy_from_slice(&[0xff; 4]);
    assert!(Request::parse(&huge).is_err());
}

#[test]
fn what_is_unknown_survives() {
    let request = Request::Unknown {
        number: 4711,
        payload: vec![1, 2, 3],
    };
    assert_eq!(Request::parse(&request.to_message(true)), Ok(request));
    for bits in [u64::MAX, 0x8000_0000_0000_0001] {
        assert_eq!(Features::from_bits_retain(bits).bits(), bits);
        assert_eq!(ProtocolFeatures::from_bits_retain(bits).bits(), bits);
    }
}

#[test]
fn features_have_names() {
    let features = Features::VERSION_1 | Features::EVENT_IDX | Features::from_bits_retain(1 << 5);
    assert_eq!(features.to_string(), "EVENT_IDX | VERSION_1 | 0x20");
    assert_eq!(ProtocolFeatures::empty().to_string(), "none");
    assert_eq!(
        ProtocolFeatures::from_bits_retain(9 | 1 << 40).to_string(),
        "MQ | REPLY_ACK | 0x10000000000"
    );
}

#[test]
fn messages_can_be_read() {
    let line = |request: Request, need_reply| describe(&request.to_message(need_reply));
    assert_eq!(
        line(
            Request::SetVringCall(VringFd {
                index: 1,
                nofd: true
            }),
            true
        ),
        "SET_VRING_CALL ring 1 no-fd need-reply"
    );
    assert_eq!(
        line(Request::SetMemTable(vec![region(0x1000)]), false),
        "SET_MEM_TABLE 1 regions [guest 0x1000+0x200000 user 0x7f0012345000 offset 0x1000]"
    );
    assert_eq!(
        line(Request::SendRarp(0x5634_1200_5452), false),
        "SEND_RARP mac 52:54:00:12:34:56"
    );
    assert_eq!(
        describe(&Reply::U64(1).to_message(2)),
        "SET_FEATURES reply failed (1)"
    );
    assert_eq!(
        describe(&Reply::U64(8).to_message(15)),
        "GET_PROTOCOL_FEATURES reply 0x8 (REPLY_ACK)"
    );
    let unknown = Message {
        request: 99,
        flags: 1,
        payload: vec![0xab; 40],
    };
    assert!(describe(&unknown).starts_with("UNKNOWN(99) 40 bytes abab"));
}

/// Marsaglia's xorshift: the same bytes in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn random_bytes_never_panic_and_what_parses_survives() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let sizes: Vec<usize> = vectors()
        .iter()
        .map(|(_, _, hex)| unhex(hex).len())
        .collect();
    let mut parsed = 0;
    for _ in 0..200_000 {
        let len = sizes[random.below(sizes.len() as u64) as usize];
        let mut payload = random.bytes(len);
        if random.below(2) == 0 {
            // Small numbers reach deeper.
            payload.iter_mut().skip(1).for_each(|byte| *byte = 0);
        }
        let message = Message {
            request: random.below(48) as u32,
            flags: [1, 9, 5, random.next() as u32][random.below(4) as usize],
            payload,
        };
        let _ = describe(&message);
        let _ = Reply::parse(&message);
        if let Ok(request) = Request::parse(&message) {
            parsed += 1;
            let again = request.to_message(message.needs_reply());
            assert_eq!(again.request, message.request);
            assert_eq!(Request::parse(&again), Ok(request));
        }
    }
    assert!(parsed > 1000, "only {parsed} messages were valid");
}
