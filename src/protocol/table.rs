//! The table of requests that a front-end can send.

use super::ProtocolFeatures as P;

/// What answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing, unless the outcome is asked for (NEED_REPLY).
    Ack,
    /// A reply of its own, always.
    Own,
    /// A reply of its own whose empty payload means failure.
    OwnOrEmpty,
}

/// Which file descriptors come with a request over AF_UNIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fds {
    /// None may.
    None,
    /// One must.
    One,
    /// One for each region.
    PerRegion,
    /// One, unless the NOFD bit is set.
    UnlessNofd,
    /// At most one, which means nothing and is closed.
    Ignored,
}

/// What must have been negotiated before a request is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Open,
    /// We offered this protocol feature.
    Offered(P),
    /// The front-end acknowledged this protocol feature.
    Acked(P),
    /// Something that is never offered: a device feature (the IOTLB), a kind of device (graphics).
    Closed,
}

/// What a refusal does to the connection if the front-end did not ask for the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheard {
    /// End it: the front-end would go on with a wrong idea of our state.
    Close,
    /// Keep it: nothing else depends on this request, and a guest may be able to cause it.
    GoOn,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestInfo {
    /// Its number.
    pub number: u32,
    /// Its name, without the prefix VHOST_USER_.
    pub name: &'static str,
    /// What answers it.
    pub answer: Answer,
    /// Which file descriptors come with it.
    pub fds: Fds,
    /// When it is valid.
    pub gate: Gate,
    /// What happens when it is refused and nobody asked.
    pub unheard: Unheard,
}

const fn row(
    number: u32,
    name: &'static str,
    answer: Answer,
    fds: Fds,
    gate: Gate,
    unheard: Unheard,
) -> RequestInfo {
    RequestInfo {
        number,
        name,
        answer,
        fds,
        gate,
        unheard,
    }
}

use Answer::{Ack, Own, OwnOrEmpty};
use Gate::{Acked, Closed, Offered, Open};
use Unheard::{Close, GoOn};

/// All requests of a front-end, by number from 1 on.
///
/// SET_VRING_ENABLE is open although the text asks for bit 30: DPDK's virtio-user sends it
/// without. GET_QUEUE_NUM, SEND_RARP and NET_SET_MTU need their bit offered, not acknowledged, as
/// the text has it.
#[rustfmt::skip]
pub const REQUESTS: [RequestInfo; 45] = [
    row(1,  "GET_FEATURES",          Own,        Fds::None,       Open,                             Close),
    row(2,  "SET_FEATURES",          Ack,        Fds::None,       Open,                             Close),
    row(3,  "SET_OWNER",             Ack,        Fds::None,       Open,                             Close),
    row(4,  "RESET_OWNER",           Ack,        Fds::None,       Open,                             Close),
    row(5,  "SET_MEM_TABLE",         Ack,        Fds::PerRegion,  Open,                             Close),
    row(6,  "SET_LOG_BASE",          Own,        Fds::One,        Acked(P::LOG_SHMFD),              Close),
    row(7,  "SET_LOG_FD",            Ack,        Fds::One,        Acked(P::LOG_SHMFD),              Close),
    row(8,  "SET_VRING_NUM",         Ack,        Fds::None,       Open,                             Close),
    row(9,  "SET_VRING_ADDR",        Ack,        Fds::None,       Open,                             Close),
    row(10, "SET_VRING_BASE",        Ack,        Fds::None,       Open,                             Close),
    row(11, "GET_VRING_BASE",        Own,        Fds::None,       Open,                             Close),
    row(12, "SET_VRING_KICK",        Ack,        Fds::UnlessNofd, Open,                             Close),
    row(13, "SET_VRING_CALL",        Ack,        Fds::UnlessNofd, Open,                             Close),
    row(14, "SET_VRING_ERR",         Ack,        Fds::UnlessNofd, Open,                             Close),
    row(15, "GET_PROTOCOL_FEATURES", Own,        Fds::None,       Open,                             Close),
    row(16, "SET_PROTOCOL_FEATURES", Ack,        Fds::None,       Open,                             Close),
    row(17, "GET_QUEUE_NUM",         Own,        Fds::None,       Offered(P::MQ),                   Close),
    row(18, "SET_VRING_ENABLE",      Ack,        Fds::None,       Open,                             Close),
    row(19, "SEND_RARP",             Ack,        Fds::None,       Offered(P::RARP),                 GoOn),
    row(20, "NET_SET_MTU",           Ack,        Fds::None,       Offered(P::MTU),                  GoOn),
    row(21, "SET_BACKEND_REQ_FD",    Ack,        Fds::One,        Acked(P::BACKEND_REQ),            Close),
    row(22, "IOTLB_MSG",             Own,        Fds::None,       Closed,                           Close),
    row(23, "SET_VRING_ENDIAN",      Ack,        Fds::None,       Acked(P::CROSS_ENDIAN),           Close),
    row(24, "GET_CONFIG",            OwnOrEmpty, Fds::None,       Acked(P::CONFIG),                 Close),
    row(25, "SET_CONFIG",            Ack,        Fds::None,       Acked(P::CONFIG),                 GoOn),
    row(26, "CREATE_CRYPTO_SESSION", Own,        Fds::None,       Acked(P::CRYPTO_SESSION),         Close),
    row(27, "CLOSE_CRYPTO_SESSION",  Ack,        Fds::None,       Acked(P::CRYPTO_SESSION),         Close),
    row(28, "POSTCOPY_ADVISE",       Own,        Fds::None,       Acked(P::PAGEFAULT),              Close),
    row(29, "POSTCOPY_LISTEN",       Ack,        Fds::None,       Acked(P::PAGEFAULT),              Close),
    row(30, "POSTCOPY_END",          Own,        Fds::None,       Acked(P::PAGEFAULT),              Close),
    row(31, "GET_INFLIGHT_FD",       Own,        Fds::None,       Acked(P::INFLIGHT_SHMFD),         Close),
    row(32, "SET_INFLIGHT_FD",       Ack,        Fds::One,        Acked(P::INFLIGHT_SHMFD),         Close),
    row(33, "GPU_SET_SOCKET",        Ack,        Fds::One,        Closed,                           Close),
    row(34, "RESET_DEVICE",          Ack,        Fds::None,       Acked(P::RESET_DEVICE),           Close),
    row(35, "VRING_KICK",            Ack,        Fds::None,       Acked(P::INBAND_NOTIFICATIONS),   Close),
    row(36, "GET_MAX_MEM_SLOTS",     Own,        Fds::None,       Acked(P::CONFIGURE_MEM_SLOTS),    Close),
    row(37, "ADD_MEM_REG",           Ack,        Fds::One,        Acked(P::CONFIGURE_MEM_SLOTS),    Close),
    row(38, "REM_MEM_REG",           Ack,        Fds::Ignored,    Acked(P::CONFIGURE_MEM_SLOTS),    Close),
    row(39, "SET_STATUS",            Ack,        Fds::None,       Acked(P::STATUS),                 Close),
    row(40, "GET_STATUS",            Own,        Fds::None,       Acked(P::STATUS),                 Close),
    row(41, "GET_SHARED_OBJECT",     Own,        Fds::None,       Acked(P::SHARED_OBJECT),          Close),
    row(42, "SET_DEVICE_STATE_FD",   Own,        Fds::One,        Acked(P::DEVICE_STATE),           Close),
    row(43, "CHECK_DEVICE_STATE",    Own,        Fds::None,       Acked(P::DEVICE_STATE),           Close),
    row(44, "GET_SHMEM_CONFIG",      Own,        Fds::None,       Acked(P::SHMEM),                  Close),
    row(45, "GET_VRING_BASE_SKIP_DRAIN", Own,    Fds::None,       Acked(P::GET_VRING_BASE_SKIP_DRAIN), Close),
];

/// What is known of request `number`.
pub fn info(number: u32) -> Option<&'static RequestInfo> {
    let index = usize::try_from(number.checked_sub(1)?).ok()?;
    REQUESTS.get(index)
}
