//! `vvu blk` behind the `blkio` crate's vhost-user driver, a front-end that others wrote.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use common::{Running, Scratch, until_listening, vvu};

const BLOCK: usize = 4096;
/// Requests at once.
const DEPTH: usize = 16;
/// Blocks that are used, far apart.
const BLOCKS: usize = 256;
const CAPACITY: u64 = 64 << 20;

/// Memory that requests are in. It is reached through its file, as a device's driver has no
/// business in it meanwhile.
struct Buffers {
    region: MemoryRegion,
    file: File,
}

impl Buffers {
    fn new(blkio: &mut Blkio) -> Self {
        let region = blkio.alloc_mem_region(2 << 20).unwrap();
        blkio.map_mem_region(&region).unwrap();
        let path = format!("/proc/self/fd/{}", region.fd);
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { region, file }
    }

    fn pointer(&self, slot: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + slot * BLOCK)
    }

    fn place(&self, slot: usize) -> u64 {
        self.region.fd_offset as u64 + (slot * BLOCK) as u64
    }

    fn put(&self, slot: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.place(slot)).unwrap();
    }

    fn get(&self, slot: usize) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        self.file
            .read_exact_at(&mut bytes, self.place(slot))
            .unwrap();
        bytes
    }
}

/// Where on the disk the block `number` is, and what is written there.
fn block(number: usize) -> (u64, Vec<u8>) {
    let offset = (number * 61 % BLOCKS) as u64 * (CAPACITY / BLOCKS as u64);
    let bytes = (0..BLOCK).map(|n| (n / 7 + number * 13) as u8);
    (offset, bytes.collect())
}

/// Waits until `count` requests are done.
fn finish(queue: &mut Blkioq, count: usize) {
    let mut done = 0;
    let mut completions = [const { MaybeUninit::<Completion>::uninit() }; DEPTH];
    while done < count {
        done += queue.do_io(&mut completions, 1, None, None).unwrap();
    }
}

/// Writes, flushes, reads, discards and zeroes on one queue after the other.
fn exercise(socket: &str, polled: bool) {
    let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
    blkio.set_str("path", socket).unwrap();
    blkio.connect().unwrap();
    let (queues, poll_queues) = if polled { (0, 2) } else { (2, 0) };
    blkio.set_i32("num-queues", queues).unwrap();
    blkio.set_i32("num-poll-queues", poll_queues).unwrap();
    assert_eq!(blkio.get_u64("capacity").unwrap(), CAPACITY);
    let started = blkio.start().unwrap();
    let buffers = Buffers::new(&mut blkio);
    let mut queues: Vec<_> = started
        .queues
        .into_iter()
        .chain(started.poll_queues)
        .collect();
    assert_eq!(queues.len(), 2);
    for (turn, queue) in queues.iter_mut().enumerate() {
        for batch in (0..BLOCKS).step_by(DEPTH) {
            for slot in 0..DEPTH {
                let (offset, bytes) = block(batch + slot + turn);
                buffers.put(slot, &bytes);
                queue.write(
                    offset,
                    buffers.pointer(slot),
                    BLOCK,
                    slot,
                    ReqFlags::empty(),
                );
            }
            finish(queue, DEPTH);
        }
        queue.flush(0, ReqFlags::empty());
        finish(queue, 1);
    }
    // What one queue wrote, the other one reads.
    for (turn, queue) in queues.iter_mut().rev().enumerate() {
        for batch in (0..BLOCKS).step_by(DEPTH) {
            for slot in 0..DEPTH {
                buffers.put(slot, &[0xa5; BLOCK]);
                let (offset, _) = block(batch + slot + 1);
                queue.read(
                    offset,
                    buffers.pointer(slot),
                    BLOCK,
                    slot,
                    ReqFlags::empty(),
                );
            }
            finish(queue, DEPTH);
            for slot in 0..DEPTH {
                let (offset, bytes) = block(batch + slot + 1);
                assert!(
                    buffers.get(slot) == bytes,
                    "turn {turn}: the block at {offset}"
                );
            }
        }
    }
    let queue = &mut queues[0];
    let (offset, _) = block(0);
    queue.write_zeroes(offset, BLOCK as u64, 0, ReqFlags::empty());
    finish(queue, 1);
    queue.discard(offset + (1 << 17), 1 << 16, 0, ReqFlags::empty());
    finish(queue, 1);
    buffers.put(0, &[0xa5; BLOCK]);
    queue.read(offset, buffers.pointer(0), BLOCK, 0, ReqFlags::empty());
    finish(queue, 1);
    assert_eq!(buffers.get(0), [0; BLOCK]);
}

#[test]
fn the_driver_of_libblkio_is_served() {
    let scratch = Scratch::new("blkio");
    let (socket, image) = (scratch.path("disk.sock"), scratch.path("image"));
    for disk in [
        format!("mem:{CAPACITY}"),
        format!("file:{image},size={CAPACITY}"),
    ] {
        let _ = std::fs::remove_file(&socket);
        let port = format!("unix:{socket},queues=2");
        let server = Running::new(&mut vvu(&["-q", "blk", "--port", &port, "--disk", &disk]));
        until_listening(&socket);
        exercise(&socket, false);
        exercise(&socket, true);
        drop(server);
    }
}
