//! Our driver's end on our server's.

use vm_memory::Bytes;

use super::super::client::Times;
use super::super::*;
use super::bench::{Bench, SHARED, SocketPath, VECTORS, WINDOW, rounded, until};
use crate::mmio::{ReadWrite, WriteOnly};
use crate::pci::{PciError, PciFunction};

fn open(socket: &SocketPath) -> (Bench, VfioUserFunction) {
    let bench = Bench::at(socket.path());
    let function = VfioUserFunction::connect(socket.path()).unwrap();
    (bench, function)
}

#[test]
fn configuration_space_and_registers() {
    let socket = SocketPath::new();
    let (bench, mut function) = open(&socket);
    assert_eq!(
        [0, 1, 2, 6].map(|bar| function.bar_size(bar)),
        [0x1000, 0, WINDOW, 0]
    );
    let mut space = [0; 256];
    function.read_config(0, &mut space);
    let expected: [u8; 256] = std::array::from_fn(|at| at as u8 ^ 7);
    assert_eq!(space, expected);
    // Beyond its end there are ones.
    function.read_config(254, &mut space[..4]);
    assert_eq!(space[..4], [254 ^ 7, 255 ^ 7, 0xff, 0xff]);

    let window = function.registers(0, 0x10, 0x20).unwrap();
    let register = window.register::<u32, ReadWrite>(4).unwrap();
    register.write(0x0403_0201);
    assert_eq!(register.read(), 0x0403_0201);
    window.register::<u8, WriteOnly>(5).unwrap().write(0xaa);
    assert_eq!(register.read(), 0x0403_aa01);
    function.write_config(4, &[6, 0]);
    function.reset().unwrap();
    let seen = bench.function.seen();
    // In order, and before the reset that was asked for after them.
    assert_eq!(
        seen.writes,
        [
            (0, 0x14, vec![1, 2, 3, 4]),
            (0, 0x15, vec![0xaa]),
            (7, 4, vec![6, 0])
        ]
    );
    assert_eq!(seen.resets, 1);
    assert!(matches!(
        function.registers(0, 0xfff, 2),
        Err(PciError::NoSuchBar { size: 0x1000, .. })
    ));
    assert!(function.registers(1, 0, 1).is_err());
    assert!(function.registers(0, u64::MAX, 2).is_err());
}

#[test]
fn registers_are_written_as_fast_as_the_server_reads() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    // Room is waited for again and again, for longer than this in all.
    let times = Times {
        writes: Duration::from_secs(1),
        ..Times::default()
    };
    let function = VfioUserFunction::with_times(socket.path(), times).unwrap();
    let window = function.registers(0, 0, 0x20).unwrap();
    let register = window.register::<u32, ReadWrite>(8).unwrap();
    const WRITES: u32 = 1_000_000;
    for value in 0..=WRITES {
        register.write(value);
    }
    assert_eq!(register.read(), WRITES);
    assert_eq!(bench.function.seen().writes.len(), WRITES as usize + 1);
}

#[test]
fn memory_in_both_directions() {
    let socket = SocketPath::new();
    let (bench, mut function) = open(&socket);
    let dma = function.alloc_dma(0x3000).unwrap();
    let second = function.alloc_dma(1).unwrap();
    assert!(rounded(0x3000, dma.bytes.len()) && rounded(1, second.bytes.len()));
    assert!(second.iova >= dma.iova + dma.bytes.len() as u64);
    dma.bytes.slice().write_obj(0x1234_5678u32, 0x2ff0).unwrap();
    assert_eq!(bench.function.dma(dma.iova, 0x2ff0), 0x1234_5678);
    assert_eq!(bench.function.dma(second.iova, 0), 0);

    let area = function.map_bar(2, 0x1000, 0x2000).unwrap();
    rustix::io::pwrite(&*bench.function.memory, b"seen", 0x1008).unwrap();
    let mut bytes = [0; 4];
    area.slice().read_slice(&mut bytes, 8).unwrap();
    assert_eq!(&bytes, b"seen");
    // The part without a file, over the edge of it, another BAR.
    for (bar, offset, len) in [(2, SHARED, 1), (2, SHARED - 8, 16), (0, 0, 0x1000)] {
        assert!(matches!(
            function.map_bar(bar, offset, len),
            Err(PciError::NotMappable { .. })
        ));
    }
    drop(function);
    until("unmapped", || bench.function.is_clean());
    // What was shared lives on as long as somebody looks at it.
    area.slice().read_slice(&mut bytes, 8).unwrap();
    assert_eq!(&bytes, b"seen");
}

#[test]
fn memory_that_is_shared_cannot_be_taken_away() {
    let socket = SocketPath::new();
    let (bench, mut function) = open(&socket);
    let dma = function.alloc_dma(0x1000).unwrap();
    let seen = bench.function.seen();
    let map = seen.maps.iter().find(|map| map.iova == dma.iova).unwrap();
    // Files of huge pages have whole ones.
    for len in [0, map.len + (2 << 20)] {
        let error = rustix::fs::ftruncate(&map.file, len).unwrap_err();
        assert_eq!(error, Errno::PERM);
    }
}

#[test]
fn every_vector_by_itself() {
    let socket = SocketPath::new();
    let (bench, mut function) = open(&socket);
    assert_eq!(function.vectors(), VECTORS);
    assert!(matches!(
        function.enable_vectors(VECTORS + 1),
        Err(PciError::Vectors { .. })
    ));
    let fds = function.enable_vectors(VECTORS - 1).unwrap();
    assert_eq!(fds.len(), usize::from(VECTORS) - 1);
    {
        let seen = bench.function.seen();
        for (number, (ours, theirs)) in fds.iter().zip(&seen.vectors).enumerate() {
            let count = number as u64 + 1;
            rustix::io::write(theirs.as_ref().unwrap(), &count.to_ne_bytes()).unwrap();
            let mut found = [0; 8];
            rustix::io::read(ours, &mut found).unwrap();
            assert_eq!(u64::from_ne_bytes(found), count, "vector {number}");
        }
        assert!(seen.vectors.last().unwrap().is_none());
    }
    drop(function);
    until("dropped", || bench.function.is_clean());
    assert_eq!(bench.function.seen().counters.refused, 0);
}

#[test]
fn one_client_after_the_other() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    for round in 1..=3 {
        let mut function = VfioUserFunction::connect(socket.path()).unwrap();
        function.alloc_dma(0x1000).unwrap();
        function.enable_vectors(3).unwrap();
        match round {
            // Taking leave, or dying in the middle of everything.
            1 | 2 => drop(function),
            _ => {
                function.hang_up();
                std::mem::forget(function);
            }
        }
        until("ended", || bench.function.seen().ended.len() == round);
        assert!(bench.function.is_clean());
    }
    let closed = "the client closed the connection";
    assert_eq!(bench.function.seen().ended, [closed; 3]);
}

#[test]
fn a_server_that_dies_is_noticed_and_the_next_one_found() {
    let socket = SocketPath::new();
    let (bench, mut function) = open(&socket);
    let window = function.registers(0, 0, 0x20).unwrap();
    let register = window.register::<u32, ReadWrite>(0).unwrap();
    register.write(7);
    function.alloc_dma(0x1000).unwrap();
    assert!(!has_hung_up(&function));
    drop(bench);
    until("hung up", || has_hung_up(&function));
    assert_eq!(register.read(), u32::MAX);
    register.write(8);
    let mut space = [0; 4];
    function.read_config(0, &mut space);
    assert_eq!(space, [0xff; 4]);
    assert!(function.reset().is_err() && function.alloc_dma(1).is_err());
    assert!(function.enable_vectors(1).is_err());
    // Nobody there yet.
    std::fs::remove_file(socket.path()).unwrap();
    let error = function.reopen().unwrap_err().to_string();
    assert!(error.contains("cannot open"), "{error}");

    let bench = Bench::at(socket.path());
    assert!(function.reopen().unwrap());
    assert!(!has_hung_up(&function));
    assert!(bench.function.is_clean(), "nothing of before is there");
    // Old registers are those of a function that is gone for ever.
    assert_eq!(register.read(), u32::MAX);
    let window = function.registers(0, 0, 0x20).unwrap();
    assert_eq!(window.register::<u32, ReadWrite>(0).unwrap().read(), 0);
    function.alloc_dma(0x1000).unwrap();
    // One that is well can be opened anew, too; it is left as it was found.
    assert!(function.reopen().unwrap());
    assert!(bench.function.is_clean());
}

fn has_hung_up(function: &VfioUserFunction) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(
        function.hangup().unwrap(),
        PollFlags::RDHUP,
    )];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

#[test]
fn a_thousand_clients_leave_nothing_behind() {
    let name = "vfio_user::tests::both::a_thousand_clients";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by a_thousand_clients_leave_nothing_behind, in a process of its own"]
fn a_thousand_clients() {
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    let socket = SocketPath::new();
    let (bench, mut function) = open(&socket);
    let mut baseline = None;
    for round in 0..1001u32 {
        function.alloc_dma(0x1000).unwrap();
        function.enable_vectors(5).unwrap();
        function.map_bar(2, 0, 0x1000).unwrap();
        if round % 2 == 0 {
            function.hang_up();
        }
        assert!(function.reopen().unwrap());
        if round % 500 == 0 {
            until("clean", || bench.function.is_clean());
            let now = (count("fd"), count("map_files"));
            let (fds, maps) = *baseline.get_or_insert(now);
            // The allocator may have mapped memory of its own.
            assert!(now.0 == fds && now.1 <= maps + 4, "{baseline:?} {now:?}");
        }
    }
}
