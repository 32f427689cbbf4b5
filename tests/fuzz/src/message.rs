//! Bytes as a message from a front-end: request number, flags, and the payload in the rest.

use vvu::protocol::{HEADER_LEN, Message, Reply, Request, describe};

use crate::Input;

/// Parses and describes the message as a request and as a reply. What was understood must come
/// out as it went in.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let message = Message {
        request: input.u32(),
        flags: input.u32(),
        payload: input.bytes(usize::MAX),
    };

    let bytes = message.to_bytes();
    let header = bytes.first_chunk::<HEADER_LEN>();
    let size = message.payload.len() as u32;
    assert_eq!(
        header.map(Message::parse_header),
        Some((message.request, message.flags, size))
    );
    // A line for people, whatever somebody sent.
    assert!(!describe(&message).contains('\n'));

    if let Ok(request) = Request::parse(&message) {
        let emitted = request.to_message(message.needs_reply());
        assert_eq!(emitted.request, message.request);
        assert_eq!(emitted.flags, message.flags);
        assert_eq!(Request::parse(&emitted).as_ref(), Ok(&request));
    }
    if let Some(reply) = Reply::parse(&message) {
        let emitted = reply.to_message(message.request);
        assert_eq!(Reply::parse(&emitted), Some(reply));
    }
}
