//! Each end on the other end as the `vfio_user` crate has it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    vfio_region_info, vfio_region_sparse_mmap_area,
};
use vfio_user::{
    Client, DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea,
};
use vm_memory::Bytes;

use super::super::*;
use super::bench::{Bench, SHARED, SocketPath, VECTORS, WINDOW, until};
use crate::memory::Mapping;
use crate::mmio::ReadWrite;
use crate::pci::{PciError, PciFunction};

#[test]
fn a_client_of_others() {
    let socket = SocketPath::new();
    let bench = Bench::at(socket.path());
    let mut client = Client::new(socket.path()).unwrap();
    let mut bytes = [0; 256];
    client.region_read(7, 0, &mut bytes).unwrap();
    assert_eq!(bytes[..3], [7, 6, 5]);
    client.region_write(0, 8, &[1, 2, 3, 4]).unwrap();
    client.region_read(0, 8, &mut bytes[..4]).unwrap();
    assert_eq!(bytes[..4], [1, 2, 3, 4]);

    let region = client.region(2).unwrap();
    assert_eq!(region.size, WINDOW);
    let areas: Vec<_> = region
        .sparse_areas
        .iter()
        .map(|a| (a.offset, a.size))
        .collect();
    assert_eq!(areas, [(0, SHARED)]);
    let file = region.file_offset.as_ref().unwrap();
    assert_eq!(file.start(), 0);
    let mapping = Mapping::of_file(file.file().as_fd(), 0, SHARED).unwrap();
    rustix::io::pwrite(&*bench.function.memory, b"seen", 16).unwrap();
    mapping.slice().read_slice(&mut bytes[..4], 16).unwrap();
    assert_eq!(&bytes[..4], b"seen");

    let memory = memfd_create("client", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 0x3000).unwrap();
    rustix::io::pwrite(&memory, &7u32.to_ne_bytes(), 0x1010).unwrap();
    client
        .dma_map(0x1000, 0x8000, 0x2000, memory.as_raw_fd())
        .unwrap();
    assert_eq!(bench.function.dma(0x8000, 0x10), 7);
    client.dma_unmap(0x8000, 0x2000).unwrap();
    assert!(bench.function.is_clean());

    assert_eq!(client.get_irq_info(2).unwrap().count, u32::from(VECTORS));
    assert_eq!(client.get_irq_info(0).unwrap().count, 0);
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    client.set_irqs(2, flags, 69, 1, &[fd.as_raw_fd()]).unwrap();
    assert!(bench.function.seen().vectors[69].is_some());
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    client.set_irqs(2, flags, 0, 0, &[]).unwrap();
    assert!(bench.function.is_clean());
    client.reset().unwrap();
    assert_eq!(bench.function.seen().resets, 1);
    drop(client);
    until("ended", || !bench.function.seen().ended.is_empty());
    assert_eq!(bench.function.seen().counters.refused, 0);
}

/// What a server of others saw.
#[derive(Debug, Default)]
struct Seen {
    maps: Vec<(u64, Mapping)>,
    irqs: Vec<(u32, u32, usize)>,
    vectors: Vec<File>,
    resets: u32,
    stored: u32,
}

#[derive(Debug, Clone, Default)]
struct Backend(Arc<Mutex<Seen>>);

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            0 => data.copy_from_slice(&self.0.lock().unwrap().stored.to_le_bytes()),
            _ => data.fill(offset as u8),
        }
        Ok(())
    }

    fn region_write(&mut self, _: u32, _: u64, data: &[u8]) -> io::Result<()> {
        let word = data.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        self.0.lock().unwrap().stored = u32::from_le_bytes(word);
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        let mapping = Mapping::of_file(file.unwrap().as_fd(), offset, size).unwrap();
        self.0.lock().unwrap().maps.push((address, mapping));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, _: u64) -> io::Result<()> {
        self.0.lock().unwrap().maps.retain(|map| map.0 != address);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().resets += 1;
        Ok(())
    }

    fn set_irqs(
        &mut self,
        _: u32,
        _: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap();
        seen.irqs.push((start, count, fds.len()));
        match count {
            0 => seen.vectors.clear(),
            _ => seen.vectors.extend(fds),
        }
        Ok(())
    }
}

/// A function with a BAR of registers and one of memory, of which the middle can be mapped.
fn server_of_others(socket: &SocketPath, memory: &OwnedFd) -> Server {
    let regions = (0..9).map(|index| {
        let (size, flags) = match index {
            0 => (0x1000, 3),
            2 => (0x8000, 7),
            7 => (0x100, 3),
            _ => (0, 0),
        };
        let area = vfio_region_sparse_mmap_area {
            offset: 0x1000,
            size: 0x2000,
        };
        let memory = (index == 2).then_some(memory.as_raw_fd());
        ServerRegion {
            region_info: vfio_region_info {
                argsz: 32,
                flags,
                index,
                cap_offset: 0,
                size,
                offset: 0x10_0000,
            },
            sparse_areas: memory.iter().map(|_| SparseArea { area }).collect(),
            mmap_fd: memory,
        }
    });
    let irqs = (0..3).map(|index| IrqInfo {
        index,
        flags: 1,
        count: if index == 2 { 5 } else { 0 },
    });
    Server::new(socket.path(), true, irqs.collect(), regions.collect()).unwrap()
}

#[test]
fn a_server_of_others() {
    let socket = SocketPath::new();
    let memory = memfd_create("server", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 0x10_8000).unwrap();
    let server = server_of_others(&socket, &memory);
    let backend = Backend::default();
    let thread = {
        let mut backend = backend.clone();
        std::thread::spawn(move || server.run(&mut backend).unwrap())
    };
    let mut function = VfioUserFunction::connect(socket.path()).unwrap();
    let mut space = [0; 256];
    function.read_config(0x40, &mut space[..4]);
    assert_eq!(space[..4], [0x40; 4]);
    assert_eq!(
        [0, 1, 2].map(|bar| function.bar_size(bar)),
        [0x1000, 0, 0x8000]
    );
    let register = function
        .registers(0, 0, 4)
        .unwrap()
        .register::<u32, ReadWrite>(0)
        .unwrap();
    register.write(0x1234_5678);
    assert_eq!(register.read(), 0x1234_5678);
    // A write that it refuses does not disturb what comes after it, although it answers.
    for _ in 0..3 {
        function.write_config(5, &[1]);
    }
    assert_eq!(register.read(), 0x1234_5678);

    let area = function.map_bar(2, 0x1800, 0x1000).unwrap();
    rustix::io::pwrite(&memory, b"seen", 0x10_1810).unwrap();
    let mut bytes = [0; 4];
    area.slice().read_slice(&mut bytes, 0x10).unwrap();
    assert_eq!(&bytes, b"seen");
    assert!(matches!(
        function.map_bar(2, 0x2800, 0x1000),
        Err(PciError::NotMappable { .. })
    ));

    let dma = function.alloc_dma(0x1000).unwrap();
    dma.bytes.slice().write_obj(0x55aa_u32, 0xff0).unwrap();
    {
        let seen = backend.0.lock().unwrap();
        let (address, mapping) = &seen.maps[0];
        assert_eq!(*address, dma.iova);
        assert_eq!(mapping.slice().read_obj::<u32>(0xff0).unwrap(), 0x55aa);
    }
    // It takes one file descriptor with each message.
    let fds = function.enable_vectors(5).unwrap();
    {
        let seen = backend.0.lock().unwrap();
        assert_eq!(seen.irqs, [0, 1, 2, 3, 4].map(|start| (start, 1, 1)));
        rustix::io::write(&seen.vectors[3], &1u64.to_ne_bytes()).unwrap();
    }
    rustix::io::read(&fds[3], &mut [0; 8]).unwrap();
    assert!(rustix::io::read(&fds[2], &mut [0; 8]).is_err());
    function.reset().unwrap();
    drop(function);
    thread.join().unwrap();
    let seen = backend.0.lock().unwrap();
    assert!(seen.maps.is_empty() && seen.vectors.is_empty());
    assert_eq!(seen.resets, 2, "asked for, and on leave");
}
