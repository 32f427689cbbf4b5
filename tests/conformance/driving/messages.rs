//! What a driver sends.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vvu::device::Device;
use vvu::model::Shape;
use vvu::protocol::{Answer, Fds, HEADER_LEN, Message, REQUESTS, Reply, Request, RequestInfo};
use vvu::transport::Transport;
use vvu::transport::vvu::VvuTransport;

use super::driven::{Driven, Modelled, options};
use super::served::{Guest, Served};
use crate::front_end::{NEED_REPLY, PLAIN, REPLY, eventfd, message, request};
use crate::step;

/// Protocol features that mean descriptors from the back-end: PAGEFAULT, BACKEND_SEND_FD,
/// HOST_NOTIFIER, XEN_MMAP, SHARED_OBJECT.
const NEVER: u64 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 17 | 1 << 18;

/// Protocol features that both transport and card serve: MQ, RARP, REPLY_ACK, MTU, CONFIG,
/// RESET_DEVICE, STATUS.
const SERVED: u64 = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 9 | 1 << 13 | 1 << 16;

/// Requests with an answer of their own that are served.
const ANSWERED: [u32; 6] = [1, 11, 15, 17, 24, 40];

pub(super) fn c06_sent_chains(shape: &Shape) {
    let mut driven = Driven::new(shape);
    let found = driven.modelled.found();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let mut next = 0;
    driven.watch.before_access(move |view, store| {
        let txq = view.queue(found.common, 1);
        if txq.size == 0 {
            return;
        }
        // The device's word on what it has written to buffers that it reads means nothing.
        txq.spoil_lengths();
        let notified = |place| store.is_some_and(|store| store.inside(place).is_some());
        if !notified(found.notify.location) || store.is_some_and(|store| store.value != 1) {
            return;
        }
        // One descriptor is one message, whole, and a reply.
        while next != txq.available() {
            let (address, len, flags) = txq.offered(next);
            assert_eq!(flags, 0);
            let bytes = txq.buffer(address, len);
            let header = bytes.first_chunk().expect("a header");
            let (_, flags, size) = Message::parse_header(header);
            assert_eq!(bytes.len(), HEADER_LEN + size as usize);
            assert_eq!(flags, REPLY);
            count.fetch_add(1, Ordering::SeqCst);
            next = next.wrapping_add(1);
        }
    });
    assert!(driven.next_within(Duration::ZERO).is_none());
    let mut front_end = driven.modelled.connect();
    front_end.plain(request::GET_FEATURES);
    driven.is_connected();
    driven.hears(&message(request::GET_FEATURES, PLAIN, &[]).to_bytes());
    // Many more than there are buffers, in parts and of all sizes.
    for number in 0..300u32 {
        let payload = number.to_le_bytes().repeat(number as usize % 500);
        let words = [request::GET_CONFIG, REPLY, payload.len() as u32];
        let header = words.map(u32::to_le_bytes);
        driven
            .device
            .send(&[header.as_flattened(), &payload])
            .unwrap();
        assert_eq!(front_end.receive().payload, payload, "message {number}");
    }
    assert_eq!(sent.load(Ordering::SeqCst), 300);
    let status = driven.modelled.model.status();
    assert_eq!(status.counters.violations, 0, "{:?}", status.last_refusal);
}

pub(super) fn c14_features_without_descriptors(shape: &Shape) {
    let modelled = Modelled::new(shape);
    let device = Device::open(modelled.model.function(), options()).unwrap();
    let offered = VvuTransport::new(device).protocol_features();
    assert_eq!(offered & NEVER, 0);
    drop(modelled);

    let served = Served::new(shape);
    let mut guest = Guest::connect(&served);
    let reply = guest.front_end.ask(&Request::GetProtocolFeatures, &[]);
    assert_eq!(reply, Reply::U64(SERVED));
    assert_eq!(SERVED & NEVER, 0);
}

/// A payload that makes a valid request: the shortest of zeroes, but for the one request that
/// would take the right to an outcome away.
fn sample(number: u32) -> Vec<u8> {
    if number == request::SET_PROTOCOL_FEATURES {
        return SERVED.to_le_bytes().to_vec();
    }
    let zeroes = |len| message(number, PLAIN, &vec![0; len]);
    let len = (0..64).find(|len| Request::parse(&zeroes(*len)).is_ok());
    vec![0; len.expect("a request of zeroes")]
}

/// Says one thing as a front-end that may; the answer, or the end of the connection.
fn say(served: &Served, row: &RequestInfo, flags: u32) -> Option<Message> {
    step(format!("{} ({}), flags {flags}", row.name, row.number));
    let mut guest = Guest::connect(served);
    let all = Request::SetProtocolFeatures(SERVED);
    guest.front_end.ok(&all, &[]);
    let event = eventfd();
    let fds: &[BorrowedFd<'_>] = match row.fds {
        Fds::One | Fds::UnlessNofd => &[event.as_fd()],
        Fds::None | Fds::PerRegion | Fds::Ignored => &[],
    };
    let payload = sample(row.number);
    guest.front_end.send(row.number, flags, &payload, fds);
    let reply = guest.front_end.receive_or_end()?;
    assert_eq!((reply.request, reply.flags), (row.number, REPLY));
    // Once, and the connection is still good.
    let features = guest.front_end.ask(&Request::GetFeatures, &[]);
    assert!(matches!(features, Reply::U64(_)), "{features:?}");
    Some(reply)
}

pub(super) fn c15_replies(shape: &Shape) {
    let served = Served::new(shape);
    for row in &REQUESTS {
        let reply = say(&served, row, NEED_REPLY);
        match row.answer {
            // Good or bad, the outcome is told.
            Answer::Ack => assert_eq!(reply.expect("an outcome").payload.len(), 8),
            // What was never offered has no answer: who asks all the same is not left waiting.
            Answer::Own | Answer::OwnOrEmpty => {
                assert_eq!(reply.is_some(), ANSWERED.contains(&row.number));
            }
        }
        if row.answer != Answer::Ack {
            let reply = say(&served, row, PLAIN);
            assert_eq!(reply.is_some(), ANSWERED.contains(&row.number));
        }
    }
}
