//! Channels to servers that do what they should not.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::super::wire::chunk;
use super::super::wire::transmission::{FUA, MULTI_CONN, READ_ONLY};
use super::super::{Config, Nbd};
use super::server::{Asked, FLUSH_COMMAND, Offer, READ, Stage, Talk, WRITE};
use super::{at, impatient};
use crate::bdev::fake::{PATIENCE, bare, content, one, read, wait, write};
use crate::bdev::{Disk, DiskError, IoError, Op, Request};

const SIZE: usize = 1 << 20;

fn open(config: Config) -> std::sync::Arc<dyn Disk> {
    Nbd::open("nbd:test", config).unwrap()
}

/// A part that serves everything, until the client leaves.
fn serving(offer: Offer) -> Box<dyn FnOnce(Talk) + Send> {
    Box::new(move |mut talk| {
        let mut bytes = vec![0; offer.size as usize];
        talk.shake(&offer);
        while let Some(asked) = talk.request() {
            talk.serve(&asked, &offer, &mut bytes);
        }
    })
}

/// A part that shakes hands and then does something else.
fn then(
    offer: Offer,
    more: impl FnOnce(&mut Talk) + Send + 'static,
) -> Box<dyn FnOnce(Talk) + Send> {
    Box::new(move |mut talk| {
        talk.shake(&offer);
        more(&mut talk);
    })
}

#[test]
fn long_requests_go_in_pieces_and_come_back_whole() {
    for structured in [true, false] {
        let offer = Offer {
            blocks: Some((1, 4096, 4096)),
            structured,
            ..Offer::all(SIZE as u64)
        };
        let stage = Stage::new(vec![serving(offer)]);
        let disk = open(at(&stage.path()));
        let mut channel = disk.channel().unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
        let bytes = &bytes[..292 * 1024];
        assert_eq!(one(&mut *channel, write(1, 4096, bytes)).result, Ok(()));
        let zeroes = Op::WriteZeroes { unmap: true };
        let done = one(&mut *channel, bare(2, zeroes, 8192, 4096));
        assert_eq!(done.result, Ok(()));
        let done = one(&mut *channel, read(3, 0, 400 * 1024));
        assert_eq!((done.token, done.result), (3, Ok(())));
        let mut wanted = vec![0; 400 * 1024];
        wanted[4096..4096 + bytes.len()].copy_from_slice(bytes);
        wanted[8192..12288].fill(0);
        assert!(content(&done.data) == wanted);
        drop(channel);
        stage.end();
    }
}

#[test]
fn many_are_asked_at_once_but_not_too_many() {
    let offer = Offer::all(SIZE as u64);
    let (tell, told) = mpsc::channel();
    let stage = Stage::new(vec![then(offer, move |talk| {
        // As many as come without an answer...
        talk.0
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let mut asked = Vec::new();
        while let Some(request) = talk.request() {
            asked.push(request);
        }
        tell.send(asked.len()).unwrap();
        // ...are answered from the last to the first, and then what follows.
        talk.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = vec![7; SIZE];
        for request in asked.iter().rev() {
            talk.serve(request, &offer, &mut bytes);
        }
        while let Some(request) = talk.request() {
            talk.serve(&request, &offer, &mut bytes);
        }
    })]);
    let disk = open(at(&stage.path()));
    let mut channel = disk.channel().unwrap();
    channel.submit(&mut (0..300).map(|n| read(n, n * 512, 512)).collect());
    for done in wait(&mut *channel, 300) {
        assert_eq!(done.result, Ok(()));
        assert_eq!(content(&done.data), [7; 512]);
    }
    assert_eq!(told.recv().unwrap(), 128);
    drop(channel);
    stage.end();
}

#[test]
fn what_was_not_answered_is_asked_again_in_its_order() {
    let offer = Offer::all(SIZE as u64);
    let (tell, told) = mpsc::channel();
    let stage = Stage::new(vec![
        then(offer, |talk| {
            // One is answered; one half; the server leaves in the middle.
            let first = talk.request().unwrap();
            let second = talk.request().unwrap();
            talk.reply(first.handle, 0, &[]);
            let text = [&second.offset.to_be_bytes()[..], &[1; 100]].concat();
            talk.chunk(0, chunk::DATA, second.handle, &text);
        }),
        // No server, only somebody who answers.
        Box::new(|mut talk| talk.say(b"220 mail.example.org ESMTP")),
        then(offer, move |talk| {
            let mut bytes = vec![9; SIZE];
            while let Some(asked) = talk.request() {
                tell.send(asked.clone()).unwrap();
                talk.serve(&asked, &offer, &mut bytes);
            }
        }),
    ]);
    let disk = open(at(&stage.path()));
    let mut channel = disk.channel().unwrap();
    channel.submit(&mut vec![
        write(0, 0, &[1; 512]),
        read(1, 1024, 512),
        write(2, 2048, &[2; 512]),
        bare(3, Op::Flush, 0, 0),
    ]);
    let done = wait(&mut *channel, 4);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert_eq!(content(&done[1].data), [9; 512]);
    drop(channel);
    let again: Vec<_> = told.iter().map(|asked: Asked| asked.command).collect();
    assert_eq!(again, [READ, WRITE, FLUSH_COMMAND]);
    stage.end();
}

#[test]
fn a_server_that_stalls_costs_its_requests_and_nobody_elses_time() {
    let offer = Offer::all(SIZE as u64);
    let (end, ended) = mpsc::channel::<()>();
    let stage = Stage::new(vec![
        then(offer, move |talk| {
            let (first, second) = (talk.request().unwrap(), talk.request().unwrap());
            let mut bytes = vec![3; SIZE];
            talk.serve(&second, &offer, &mut bytes);
            // Never answered; the connection stays.
            let _ = (first, ended.recv());
        }),
        serving(offer),
    ]);
    let disk = open(impatient(&stage.path()));
    let mut channel = disk.channel().unwrap();
    let start = Instant::now();
    channel.submit(&mut vec![read(0, 0, 512), read(1, 512, 512)]);
    let done = wait(&mut *channel, 2);
    assert_eq!(done[0].result, Err(IoError::Timeout));
    assert_eq!(done[1].result, Ok(()));
    assert!(start.elapsed() >= Duration::from_millis(990));
    drop(end);
    // It goes on with the next connection.
    assert_eq!(one(&mut *channel, read(2, 0, 512)).result, Ok(()));
    drop(channel);
    stage.end();
}

#[test]
fn a_server_that_is_gone_is_gone_until_it_is_back() {
    let offer = Offer::all(SIZE as u64);
    let stage = Stage::new(vec![then(offer, |talk| {
        talk.request();
    })]);
    let path = stage.path();
    let disk = open(impatient(&path));
    let mut channel = disk.channel().unwrap();
    let start = Instant::now();
    channel.submit(&mut vec![read(0, 0, 512), write(1, 0, &[1; 512])]);
    let done = wait(&mut *channel, 2);
    assert!(done.iter().all(|done| done.result == Err(IoError::Gone)));
    assert!(start.elapsed() >= Duration::from_millis(990));
    // It was lost a moment after the first request: at the latest who waits for it now is the last.
    assert_eq!(
        one(&mut *channel, read(2, 0, 512)).result,
        Err(IoError::Gone)
    );
    channel.submit(&mut vec![read(2, 0, 512)]);
    assert_eq!(channel.arm(), crate::wake::Quiet::Busy, "nobody waits");
    assert_eq!(wait(&mut *channel, 1)[0].result, Err(IoError::Gone));
    stage.end();
    // Another server at the same place, whose disk has grown.
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let back = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        serving(Offer::all(2 * SIZE as u64))(Talk(stream));
    });
    let start = Instant::now();
    while one(&mut *channel, read(3, 0, 512)).result.is_err() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    while disk.size().get() != 2 * SIZE as u64 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(one(&mut *channel, read(4, SIZE as u64, 512)).result, Ok(()));
    drop(channel);
    back.join().unwrap();
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn each_misdeed_ends_the_connection_and_nothing_else() {
    let offer = Offer::all(SIZE as u64);
    type Misdeed = fn(&mut Talk, &Asked);
    let misdeeds: [Misdeed; 7] = [
        |talk, _| talk.say(&[0; 64]),
        |talk, asked| talk.reply(asked.handle ^ 1 << 40, 0, &[]),
        |talk, asked| talk.reply(asked.handle, 108, &[]),
        |talk, asked| talk.chunk(chunk::DONE, chunk::NONE, asked.handle, &[]),
        |talk, asked| talk.chunk(chunk::DONE, 77, asked.handle, &[]),
        |talk, asked| {
            let text = [&0u64.to_be_bytes()[..], &[1; 600]].concat();
            talk.chunk(chunk::DONE, chunk::DATA, asked.handle, &text);
        },
        |_, _| {},
    ];
    let mut parts: Vec<_> = misdeeds
        .into_iter()
        .map(|misdeed| {
            then(offer, move |talk: &mut Talk| {
                let asked = talk.request().unwrap();
                misdeed(talk, &asked);
            })
        })
        .collect();
    parts.push(serving(offer));
    let stage = Stage::new(parts);
    let disk = open(at(&stage.path()));
    let mut channel = disk.channel().unwrap();
    let done = one(&mut *channel, read(0, 0, 512));
    assert_eq!(done.result, Ok(()));
    assert_eq!(content(&done.data), [0; 512]);
    drop(channel);
    stage.end();
}

#[test]
fn a_write_that_is_answered_before_it_is_there_ends_the_connection() {
    let offer = Offer {
        blocks: Some((1, 4096, 32 << 20)),
        ..Offer::all(64 << 20)
    };
    let stage = Stage::new(vec![
        then(offer, |talk| {
            // The header only: what follows is more than any socket's buffer takes.
            use std::io::Read;
            let mut head = [0; 28];
            talk.0.read_exact(&mut head).unwrap();
            let handle = u64::from_be_bytes(head[8..16].try_into().unwrap());
            talk.reply(handle, 0, &[]);
            // Until the client leaves.
            let mut rest = Vec::new();
            let _ = talk.0.read_to_end(&mut rest);
            assert!(rest.len() < 32 << 20);
        }),
        serving(offer),
    ]);
    let disk = open(at(&stage.path()));
    let mut channel = disk.channel().unwrap();
    let done = one(&mut *channel, write(0, 0, &vec![5; 32 << 20]));
    assert_eq!(done.result, Ok(()));
    let done = one(&mut *channel, read(0, (32 << 20) - 512, 512));
    assert_eq!(content(&done.data), [5; 512]);
    drop(channel);
    stage.end();
}

#[test]
fn what_a_server_cannot_do_is_done_otherwise_or_refused() {
    // Without FUA a write that must be safe is followed by a flush.
    let offer = Offer {
        flags: Offer::all(0).flags & !FUA,
        ..Offer::all(SIZE as u64)
    };
    let (tell, told) = mpsc::channel();
    let stage = Stage::new(vec![then(offer, move |talk| {
        let mut bytes = vec![0; SIZE];
        while let Some(asked) = talk.request() {
            tell.send((asked.command, asked.flags)).unwrap();
            talk.serve(&asked, &offer, &mut bytes);
        }
    })]);
    let disk = open(at(&stage.path()));
    let mut channel = disk.channel().unwrap();
    let safe = Request {
        fua: true,
        ..write(0, 0, &[1; 512])
    };
    assert_eq!(one(&mut *channel, safe).result, Ok(()));
    drop(channel);
    assert_eq!(
        told.iter().collect::<Vec<_>>(),
        [(WRITE, 0), (FLUSH_COMMAND, 0)]
    );
    stage.end();

    // One that can do nothing but be read.
    let offer = Offer {
        flags: 1 | READ_ONLY,
        ..Offer::all(SIZE as u64 + 100)
    };
    let stage = Stage::new(vec![serving(offer)]);
    let disk = open(at(&stage.path()));
    assert_eq!(disk.size().get(), SIZE as u64);
    let abilities = disk.abilities();
    assert!(abilities.read_only && !abilities.write_back);
    assert!(abilities.discard.is_none() && abilities.write_zeroes.is_none());
    let mut channel = disk.channel().unwrap();
    channel.submit(&mut vec![
        read(0, 0, 512),
        write(1, 0, &[0; 512]),
        bare(2, Op::Flush, 0, 0),
        bare(3, Op::Discard, 0, 512),
        read(4, SIZE as u64, 512),
        read(5, 100, 512),
    ]);
    let results: Vec<_> = wait(&mut *channel, 6)
        .into_iter()
        .map(|done| done.result)
        .collect();
    let (range, refused) = (Err(IoError::Range), Err(IoError::ReadOnly));
    assert_eq!(results, [Ok(()), refused, Ok(()), refused, range, range]);
    drop(channel);
    stage.end();
}

#[test]
fn one_connection_only_is_one_channel_only() {
    let offer = Offer {
        flags: Offer::all(0).flags & !MULTI_CONN,
        ..Offer::all(SIZE as u64)
    };
    let stage = Stage::new(vec![serving(offer), serving(offer)]);
    let disk = open(at(&stage.path()));
    let channel = disk.channel().unwrap();
    let Err(DiskError::Unfit { reason, .. }) = disk.channel() else {
        panic!("two channels");
    };
    assert!(reason.contains("queues=1"), "{reason}");
    drop(channel);
    let mut channel = disk.channel().unwrap();
    assert_eq!(one(&mut *channel, read(0, 0, 512)).result, Ok(()));
    drop(channel);
    stage.end();
}

#[test]
fn servers_that_are_not_there_or_say_nothing() {
    let stage = Stage::new(vec![]);
    let path = stage.path();
    stage.end();
    let said = |config| Nbd::open("nbd:x", config).unwrap_err().to_string();
    let missing = said(at(&path));
    assert!(missing.starts_with("nbd:x: cannot connect: "), "{missing}");
    let (end, ended) = mpsc::channel::<()>();
    let stage = Stage::new(vec![Box::new(move |talk| {
        let _ = (talk, ended.recv());
    })]);
    let silent = said(impatient(&stage.path()));
    assert!(silent.contains("did not answer in 1 seconds"), "{silent}");
    drop(end);
    stage.end();
    let long = said(Config::new(
        super::super::Server::Unix(path),
        &"n".repeat(5000),
    ));
    assert!(long.contains("5000 bytes"), "{long}");
}
