//! Messages for people to read.

use super::{
    ConfigSpace, Features, Inflight, MemRegion, Message, ProtocolFeatures, Reply, Request,
    VringAddr, VringFd, VringState, info,
};

/// One line: name, decoded fields, and what the flags say.
pub fn describe(message: &Message) -> String {
    let name = info(message.request).map_or_else(
        || format!("UNKNOWN({})", message.request),
        |info| info.name.to_owned(),
    );
    let body = if message.is_reply() {
        let reply = Reply::parse(message).map(|reply| reply_fields(message.request, &reply));
        format!(" reply{}", reply.unwrap_or_else(|| bytes(&message.payload)))
    } else {
        match Request::parse(message) {
            Ok(request) => request_fields(&request),
            Err(error) => format!(" malformed: {error}{}", bytes(&message.payload)),
        }
    };
    let need_reply = if message.needs_reply() {
        " need-reply"
    } else {
        ""
    };
    format!("{name}{body}{need_reply}")
}

fn request_fields(request: &Request) -> String {
    match request {
        Request::SetFeatures(bits) => features(*bits),
        Request::SetProtocolFeatures(bits) => protocol_features(*bits),
        Request::SetMemTable(regions) => {
            let list: Vec<String> = regions.iter().map(region).collect();
            format!(" {} regions{}", regions.len(), list.concat())
        }
        Request::AddMemReg(one) | Request::RemMemReg(one) => region(one),
        Request::SetLogBase(log) => format!(" {:#x} bytes at {:#x}", log.size, log.offset),
        Request::SetVringNum(state)
        | Request::SetVringBase(state)
        | Request::SetVringEnable(state)
        | Request::SetVringEndian(state) => vring(state),
        Request::GetVringBase(state)
        | Request::GetVringBaseSkipDrain(state)
        | Request::VringKick(state) => format!(" ring {}", state.index),
        Request::SetVringAddr(addr) => vring_addr(addr),
        Request::SetVringKick(fd) | Request::SetVringCall(fd) | Request::SetVringErr(fd) => {
            vring_fd(fd)
        }
        Request::SendRarp(mac) => format!(" mac {}", mac_address(*mac)),
        Request::NetSetMtu(mtu) => format!(" {mtu}"),
        Request::SetStatus(bits) => status(*bits),
        Request::CloseCryptoSession(id) => format!(" {id}"),
        Request::IotlbMsg(iotlb) => format!(" {iotlb:?}"),
        Request::GetConfig(config) => {
            format!(" {} bytes at {}", config.data.len(), config.offset)
        }
        Request::SetConfig(config) => config_space(config),
        Request::GetInflightFd(wanted) => queues(wanted),
        Request::SetInflightFd(buffer) => inflight(buffer),
        Request::SetDeviceStateFd(state) => format!(" {state:?}"),
        Request::GetSharedObject(uuid) => bytes(uuid),
        Request::CreateCryptoSession(payload) | Request::Unknown { payload, .. } => bytes(payload),
        _ => String::new(),
    }
}

fn reply_fields(number: u32, reply: &Reply) -> String {
    match (number, reply) {
        (1, Reply::U64(bits)) => features(*bits),
        (15, Reply::U64(bits)) => protocol_features(*bits),
        (40, Reply::U64(bits)) => status(*bits),
        (17 | 36, Reply::U64(count)) => format!(" {count}"),
        (_, Reply::U64(0)) => " ok".to_owned(),
        (_, Reply::U64(code)) => format!(" failed ({code})"),
        (_, Reply::Vring(state)) => vring(state),
        (_, Reply::Config(config)) => config_space(config),
        (_, Reply::Inflight(buffer)) => inflight(buffer),
        (_, Reply::Empty) => " empty".to_owned(),
    }
}

fn features(bits: u64) -> String {
    format!(" {bits:#x} ({})", Features::from_bits_retain(bits))
}

fn protocol_features(bits: u64) -> String {
    format!(" {bits:#x} ({})", ProtocolFeatures::from_bits_retain(bits))
}

fn region(region: &MemRegion) -> String {
    format!(
        " [guest {:#x}+{:#x} user {:#x} offset {:#x}]",
        region.guest_addr, region.size, region.user_addr, region.mmap_offset
    )
}

fn vring(state: &VringState) -> String {
    format!(" ring {} num {}", state.index, state.num)
}

fn vring_addr(addr: &VringAddr) -> String {
    format!(
        " ring {} desc {:#x} avail {:#x} used {:#x} flags {:#x} log {:#x}",
        addr.index, addr.desc, addr.avail, addr.used, addr.flags, addr.log
    )
}

fn vring_fd(fd: &VringFd) -> String {
    format!(" ring {}{}", fd.index, if fd.nofd { " no-fd" } else { "" })
}

fn config_space(config: &ConfigSpace) -> String {
    format!(
        " at {} flags {:#x}{}",
        config.offset,
        config.flags,
        bytes(&config.data)
    )
}

fn queues(inflight: &Inflight) -> String {
    format!(" {} queues of {}", inflight.queues, inflight.queue_size)
}

fn inflight(buffer: &Inflight) -> String {
    let place = format!(" {:#x}+{:#x}", buffer.mmap_offset, buffer.mmap_size);
    place + &queues(buffer)
}

/// The address in the first six bytes of SEND_RARP's number.
fn mac_address(number: u64) -> String {
    let [a, b, c, d, e, f, ..] = number.to_le_bytes();
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Device status bits by name (VIRTIO 1.2, 2.1).
fn status(bits: u64) -> String {
    const NAMES: [(u64, &str); 6] = [
        (1, "ACKNOWLEDGE"),
        (2, "DRIVER"),
        (4, "DRIVER_OK"),
        (8, "FEATURES_OK"),
        (64, "NEEDS_RESET"),
        (128, "FAILED"),
    ];
    let names: Vec<&str> = NAMES
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    format!(" {bits:#x} ({})", names.join(" | "))
}

/// At most 32 bytes in hexadecimal.
fn bytes(all: &[u8]) -> String {
    const SHOWN: usize = 32;
    let hex: String = all
        .iter()
        .take(SHOWN)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let more = if all.len() > SHOWN { "..." } else { "" };
    format!(" {} bytes {hex}{more}", all.len())
}
