//! Requests about memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::SessionError;
use super::connection::{Connection, Handled, Outcome};
use crate::memory::{MemTable, Region};
use crate::protocol::{MemRegion, Reply};
use crate::transport::RegionRequest;

/// Memory slots offered: as many as QEMU ever asks of a kernel back-end.
const MAX_SLOTS: usize = 509;

impl Connection {
    pub(super) fn set_mem_table(
        &mut self,
        regions: &[MemRegion],
        attached: Vec<OwnedFd>,
    ) -> Handled {
        let regions: Vec<RegionRequest> = regions.iter().map(region_request).collect();
        let mapped = self.transport.map_memory(&regions, attached, true)?;
        self.replace_memory(mapped)
    }

    pub(super) fn get_max_mem_slots(&mut self) -> Handled {
        Ok(Outcome::Reply(Reply::U64(MAX_SLOTS as u64)))
    }

    pub(super) fn add_mem_reg(&mut self, region: MemRegion, attached: Vec<OwnedFd>) -> Handled {
        let old = self.state.memory.regions();
        if old.len() >= MAX_SLOTS {
            return Err(SessionError::Slots(MAX_SLOTS));
        }
        let mapped = self
            .transport
            .map_memory(&[region_request(&region)], attached, false)?;
        let all = self.state.memory.regions().iter().cloned().chain(mapped);
        let all = all.collect();
        self.replace_memory(all)
    }

    /// A region is named by both its addresses and its length; its offset means nothing here.
    pub(super) fn rem_mem_reg(&mut self, region: MemRegion) -> Handled {
        let is_it = |old: &Region| {
            old.guest_addr == region.guest_addr
                && old.user_addr == region.user_addr
                && old.bytes.len() as u64 == region.size
        };
        let old = self.state.memory.regions();
        let rest: Vec<Region> = old.iter().filter(|old| !is_it(old)).cloned().collect();
        if rest.len() == old.len() {
            return Err(SessionError::NoRegion {
                guest_addr: region.guest_addr,
                size: region.size,
            });
        }
        self.replace_memory(rest)
    }

    /// Makes `regions` the front-end's memory. Running rings go on in it; those that are not in it
    /// stop, and start again if a later memory has them. The old memory is let go last.
    fn replace_memory(&mut self, regions: Vec<Region>) -> Handled {
        let memory = Arc::new(MemTable::new(regions)?);
        let rings = self.relocate(&memory);
        for (index, reason) in rings.lost {
            tracing::warn!(ring = index, %reason, "ring stops: its memory is gone");
            self.status.error(reason.to_string());
            self.stop_ring(index)?;
        }
        self.device.set_memory(Arc::clone(&memory), rings.placed)?;
        tracing::info!(
            regions = memory.regions().len(),
            bytes = memory.len(),
            "memory set"
        );
        self.state.memory = memory;
        self.start_all_waiting();
        Ok(Outcome::Done)
    }
}

fn region_request(region: &MemRegion) -> RegionRequest {
    RegionRequest {
        guest_addr: region.guest_addr,
        size: region.size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
    }
}
