//! A model at a fresh socket, and patience.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::model::{FrontEnd, Model, Shape};

pub(super) struct Bench {
    pub(super) model: Model,
    pub(super) path: PathBuf,
}

impl Bench {
    pub(super) fn new(shape: Shape) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vvu-model-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let shape = Shape {
            window: 64 << 20,
            ..shape
        };
        Self {
            model: Model::new(shape, FrontEnd::Listen(path.clone())).unwrap(),
            path,
        }
    }

    pub(super) fn u32(&self, bar: u8, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.model.read_bar(bar, offset, &mut data);
        u32::from_le_bytes(data)
    }
}

pub(super) fn until(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !good() {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
