//! What all queues of a block device have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::config::{BlkConfig, ID, SPACE, WRITEBACK};
use super::stats::{QueueStats, Snapshot, Stats};
use crate::bdev::{Disk, ReadOnly, Resized};

/// A disk as its driver sees it. See the [module](super).
#[derive(Debug)]
pub struct Face {
    name: Arc<str>,
    disk: Arc<dyn Disk>,
    config: BlkConfig,
    id: [u8; ID],
    /// Whether writes may be done before they have reached the medium.
    write_back: AtomicBool,
    /// How often the disk has changed its size.
    resizes: AtomicU64,
    stats: Stats,
}

impl Face {
    /// `disk` as `config` says, called `name` in logs.
    pub fn new(name: &str, disk: Arc<dyn Disk>, config: BlkConfig) -> Arc<Self> {
        let queues = config.queues.clamp(1, BlkConfig::MAX_QUEUES);
        let config = BlkConfig { queues, ..config };
        let disk = match config.read_only {
            true => ReadOnly::before(disk),
            false => disk,
        };
        let face = Arc::new(Self {
            name: name.into(),
            write_back: AtomicBool::new(disk.abilities().write_back),
            resizes: AtomicU64::new(0),
            disk,
            id: config.id(),
            stats: (0..queues).map(|_| Default::default()).collect(),
            config,
        });
        let listener: Arc<dyn Resized> = Arc::clone(&face) as _;
        face.disk.size().listen(&listener);
        face
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk behind it.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Number of queues.
    pub fn queues(&self) -> u16 {
        self.config.queues
    }

    /// Feature bits to offer.
    pub fn features(&self) -> u64 {
        self.config.features(&*self.disk)
    }

    /// What GET_ID returns.
    pub(super) fn id(&self) -> &[u8; ID] {
        &self.id
    }

    /// All counters now. Disturbs no worker.
    pub fn snapshot(&self) -> Snapshot {
        let size = self.disk.size().get();
        Snapshot::of(&self.name, self.disk.name(), size, &self.stats)
    }

    pub(super) fn queue_stats(&self, index: u16) -> Option<&QueueStats> {
        self.stats.get(usize::from(index)).map(|stats| &**stats)
    }

    /// Whether writes may be done before they have reached the medium.
    #[inline]
    pub fn is_write_back(&self) -> bool {
        self.write_back.load(Ordering::Relaxed)
    }

    /// Back to what the disk is configured as.
    pub fn reset(&self) {
        let write_back = self.disk.abilities().write_back;
        self.write_back.store(write_back, Ordering::Relaxed);
    }

    /// How often the disk has changed its size.
    pub fn resizes(&self) -> u64 {
        self.resizes.load(Ordering::Relaxed)
    }

    /// The configuration space now.
    pub fn space(&self) -> [u8; SPACE] {
        self.config.space(&*self.disk, self.is_write_back())
    }

    /// The driver writes `data` at `offset`. False if there is nothing that it may write so.
    pub fn write(&self, offset: u32, data: &[u8]) -> bool {
        let writeback = offset as usize == WRITEBACK;
        match (data, self.disk.abilities().read_only) {
            (&[value @ (0 | 1)], false) if writeback => {
                // A disk that is write-through stays so; the driver reads back that it does.
                let write_back = value == 1 && self.disk.abilities().write_back;
                self.write_back.store(write_back, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }
}

impl Resized for Face {
    fn resized(&self, bytes: u64) {
        self.resizes.fetch_add(1, Ordering::Relaxed);
        tracing::info!(device = self.name(), bytes, "the disk has another size");
    }
}
