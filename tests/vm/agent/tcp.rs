//! A pseudo-random stream over one TCP connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vvu_tests::wire::{Checksum, Stream, TcpReport};

const BLOCK: usize = 64 * 1024;

/// How long a sender waits for its receiver to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Accepts one connection and reads it to its end.
pub(crate) fn receive(port: u16, verify: bool) -> Result<TcpReport> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening")?;
    let (mut connection, _) = listener.accept().context("accepting")?;
    // The port is free again for the next receiver, however long this connection lasts.
    drop(listener);
    let start = Instant::now();
    let mut checksum = Checksum::default();
    let mut bytes = 0;
    let mut block = vec![0; BLOCK];
    loop {
        let length = connection.read(&mut block).context("receiving")?;
        if length == 0 {
            break;
        }
        bytes += length as u64;
        if verify {
            checksum.update(&block[..length]);
        }
    }
    Ok(TcpReport {
        bytes,
        checksum: checksum.finish(),
        micros: start.elapsed().as_micros() as u64,
    })
}

/// Sends `bytes` bytes and waits until the receiver has closed.
pub(crate) fn send(to: SocketAddr, bytes: u64, seed: u64, verify: bool) -> Result<TcpReport> {
    let mut connection = connect(to)?;
    let start = Instant::now();
    let mut stream = Stream::new(seed);
    let mut checksum = Checksum::default();
    let mut block = vec![0; BLOCK];
    stream.clone().fill(&mut block);
    let mut left = bytes;
    while left > 0 {
        let length = left.min(BLOCK as u64) as usize;
        if verify {
            stream.fill(&mut block[..length]);
            checksum.update(&block[..length]);
        }
        connection.write_all(&block[..length]).context("sending")?;
        left -= length as u64;
    }
    connection.shutdown(Shutdown::Write)?;
    let rest = connection
        .read(&mut [0])
        .context("waiting for the receiver to close")?;
    anyhow::ensure!(rest == 0, "the receiver sent something back");
    Ok(TcpReport {
        bytes,
        checksum: checksum.finish(),
        micros: start.elapsed().as_micros() as u64,
    })
}

/// Accepts one connection and sends back what comes on it.
pub(crate) fn echo(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listening")?;
    let (mut connection, _) = listener.accept().context("accepting")?;
    drop(listener);
    connection.set_nodelay(true)?;
    let mut block = vec![0; BLOCK];
    loop {
        let length = connection.read(&mut block).context("receiving")?;
        if length == 0 {
            return Ok(());
        }
        connection
            .write_all(&block[..length])
            .context("answering")?;
    }
}

/// Asks whoever echoes, one request at a time; microseconds of each answer.
pub(crate) fn ask(to: SocketAddr, size: u16, count: u32) -> Result<Vec<u64>> {
    let mut connection = connect(to)?;
    connection.set_nodelay(true)?;
    let request = vec![0x5a; size.max(1).into()];
    let mut answer = request.clone();
    let mut micros = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let start = Instant::now();
        connection.write_all(&request).context("asking")?;
        connection
            .read_exact(&mut answer)
            .context("waiting for an answer")?;
        micros.push(start.elapsed().as_micros() as u64);
    }
    Ok(micros)
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused && start.elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome.with_context(|| format!("connecting to {to}")),
        }
    }
}
