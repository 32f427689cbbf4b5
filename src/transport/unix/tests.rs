//! Sockets, paths and framing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;
use crate::protocol::{Reply, Request};
use crate::socket::MAX_PAYLOAD;

/// A directory of this test's own.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vvu-unix-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("s")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits for the next event as a session does.
fn next(transport: &mut UnixTransport) -> Event {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(event) = transport.next() {
            return event;
        }
        assert!(Instant::now() < deadline, "no event");
        let timeout = Timespec::try_from(Duration::from_secs(1)).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(transport.poll_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap();
    }
}

fn connected(dir: &Dir) -> (UnixTransport, UnixStream) {
    let mut transport = UnixTransport::listen(&dir.socket()).unwrap();
    let stream = UnixStream::connect(dir.socket()).unwrap();
    assert!(matches!(next(&mut transport), Event::Connected));
    (transport, stream)
}

fn send_with_fds(stream: &UnixStream, bytes: &[u8], count: usize) {
    let fds = vec![stream.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )
    .unwrap();
}

fn violation(transport: &mut UnixTransport) -> String {
    match next(transport) {
        Event::Disconnected(Gone::Violation(what)) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_may_come_byte_by_byte_or_with_others() {
    let dir = Dir::new("bytes");
    let (mut transport, mut stream) = connected(&dir);
    let message = Request::SetFeatures(0x1234).to_message(true);
    let bytes = message.to_bytes();
    for byte in &bytes[..bytes.len() - 1] {
        stream.write_all(&[*byte]).unwrap();
        assert!(transport.next().is_none());
    }
    stream.write_all(&bytes[bytes.len() - 1..]).unwrap();
    let expect = |transport: &mut UnixTransport, fds: usize| match next(transport) {
        Event::Message(incoming) => {
            assert_eq!(incoming.message, message);
            assert_eq!(incoming.attached.len(), fds);
        }
        other => panic!("{other:?}"),
    };
    expect(&mut transport, 0);
    // Two at once, descriptors with the second.
    stream.write_all(&bytes).unwrap();
    send_with_fds(&stream, &bytes, 2);
    stream.write_all(&bytes).unwrap();
    expect(&mut transport, 0);
    expect(&mut transport, 2);
    expect(&mut transport, 0);
    // Descriptors with the first part of a header.
    send_with_fds(&stream, &bytes[..3], 1);
    assert!(transport.next().is_none());
    stream.write_all(&bytes[3..]).unwrap();
    expect(&mut transport, 1);
}

#[test]
fn descriptors_belong_to_the_beginning() {
    let dir = Dir::new("fds");
    let (mut transport, mut stream) = connected(&dir);
    let bytes = Request::SetFeatures(1).to_message(false).to_bytes();
    stream.write_all(&bytes[..12]).unwrap();
    send_with_fds(&stream, &bytes[12..], 1);
    assert!(violation(&mut transport).contains("within a message"));

    let stream = UnixStream::connect(dir.socket()).unwrap();
    assert!(matches!(next(&mut transport), Event::Connected));
    send_with_fds(&stream, &bytes, 9);
    assert!(violation(&mut transport).contains("more than 8"));

    let stream = UnixStream::connect(dir.socket()).unwrap();
    assert!(matches!(next(&mut transport), Event::Connected));
    send_with_fds(&stream, &bytes[..1], 1);
    send_with_fds(&stream, &bytes[1..2], 1);
    assert!(violation(&mut transport).contains("within a message"));
}

#[test]
fn payloads_are_bounded() {
    let dir = Dir::new("payload");
    let (mut transport, mut stream) = connected(&dir);
    let most = Message {
        request: 26,
        flags: 1,
        payload: vec![0x5a; MAX_PAYLOAD],
    };
    let writer = {
        let (mut stream, bytes) = (stream.try_clone().unwrap(), most.to_bytes());
        std::thread::spawn(move || stream.write_all(&bytes).unwrap())
    };
    match next(&mut transport) {
        Event::Message(incoming) => assert_eq!(incoming.message, most),
        other => panic!("{other:?}"),
    }
    writer.join().unwrap();
    let mut header = most.to_bytes();
    header.truncate(12);
    header[8] += 1;
    stream.write_all(&header).unwrap();
    assert!(violation(&mut transport).contains("65537 bytes"));
}

#[test]
fn a_connection_ends_and_the_next_one_begins() {
    let dir = Dir::new("next");
    let (mut transport, stream) = connected(&dir);
    let second = UnixStream::connect(dir.socket()).unwrap();
    // One at a time.
    assert!(transport.next().is_none());
    drop(stream);
    assert!(matches!(
        next(&mut transport),
        Event::Disconnected(Gone::Closed)
    ));
    assert!(matches!(next(&mut transport), Event::Connected));
    // Ended by us: nothing is said about it.
    transport.disconnect();
    transport.disconnect();
    let message = Reply::U64(0).to_message(2);
    assert!(matches!(
        transport.send(&message),
        Err(TransportError::NotConnected)
    ));
    assert!(transport.next().is_none());
    drop(second);
    let third = UnixStream::connect(dir.socket()).unwrap();
    assert!(matches!(next(&mut transport), Event::Connected));
    drop(third);
    assert!(matches!(
        next(&mut transport),
        Event::Disconnected(Gone::Closed)
    ));
}

#[test]
fn what_was_said_before_hanging_up_is_heard() {
    let dir = Dir::new("last-words");
    let (mut transport, mut stream) = connected(&dir);
    let bytes = Request::SetOwner.to_message(false).to_bytes();
    stream.write_all(&bytes).unwrap();
    stream.write_all(&bytes[..5]).unwrap();
    drop(stream);
    assert!(matches!(next(&mut transport), Event::Message(_)));
    assert!(matches!(
        next(&mut transport),
        Event::Disconnected(Gone::Closed)
    ));
}

#[test]
fn a_socket_file_is_replaced_only_if_nobody_listens() {
    let dir = Dir::new("stale");
    let path = dir.socket();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut transport = UnixTransport::listen(&path).unwrap();
    assert!(matches!(
        UnixTransport::listen(&path),
        Err(EndpointError::InUse(_))
    ));
    // The one who looked is a front-end that hung up.
    assert!(matches!(next(&mut transport), Event::Connected));
    transport.shutdown();
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(
        UnixTransport::listen(&path),
        Err(EndpointError::NotSocket(_))
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn only_our_own_socket_file_is_removed() {
    let dir = Dir::new("ours");
    let path = dir.socket();
    let mut transport = UnixTransport::listen(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "of somebody else").unwrap();
    transport.shutdown();
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();
    drop(UnixTransport::listen(&path).unwrap());
    assert!(!path.exists(), "also when it is only dropped");
}

#[test]
fn errors_say_what_to_do() {
    let dir = Dir::new("errors");
    let text = |path: &Path| UnixTransport::listen(path).unwrap_err().to_string();
    let missing = dir.0.join("no/such/s");
    assert!(text(&missing).contains("no/such does not exist: create it"));
    let long = dir.0.join("x".repeat(120));
    assert!(text(&long).contains("too long"));
    assert!(UnixTransport::connect(&long).is_err());
}

#[test]
fn a_client_calls_until_somebody_answers() {
    let dir = Dir::new("client");
    let path = dir.socket();
    let mut transport = UnixTransport::connect(&path).unwrap();
    assert_eq!(transport.name(), format!("unix:{}", path.display()));
    std::thread::sleep(Duration::from_millis(10));
    assert!(transport.next().is_none(), "nobody is there");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(matches!(next(&mut transport), Event::Connected));
    let (stream, _) = listener.accept().unwrap();
    drop(stream);
    let begin = Instant::now();
    assert!(matches!(next(&mut transport), Event::Disconnected(_)));
    assert!(matches!(next(&mut transport), Event::Connected));
    assert!(begin.elapsed() >= Duration::from_millis(90), "not at once");
    transport.shutdown();
    assert!(transport.next().is_none());
    assert!(path.exists(), "it is not ours");
}
