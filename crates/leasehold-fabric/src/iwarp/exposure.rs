//! What one connection exposes to its peer, by tag. Another connection's tags do not exist here.
//!
//! A tag is live, then revoked (a sink: what the peer writes is checked and dropped), then forgotten (unknown). The
//! memory's owner is kept until the fence is proven or the connection is over.

use super::fence::{Held, Slot, Validity, prove};
use super::tag::Generator;
use crate::sums::BlockSums;
use crate::{ExposeError, Region, RemoteAccess, Tag, Unproven};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Memory under a tag, as the threads that move bytes see it. The address may be used only while the tag is held.
pub(crate) struct Exposure {
    tag: Tag,
    base: NonNull<u8>,
    length: u64,
    access: RemoteAccess,
    sums: Option<Arc<BlockSums>>,
    validity: Validity,
    /// Operations of this end that use it and are not done.
    pub(crate) users: AtomicU32,
}

// SAFETY: the address is only used while the tag is held in a slot (fence.rs), and the table below keeps its owner
// alive until no thread can hold it any more.
unsafe impl Send for Exposure {}
// SAFETY: as above.
unsafe impl Sync for Exposure {}

impl Exposure {
    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    pub(crate) fn access(&self) -> RemoteAccess {
        self.access
    }

    pub(crate) fn is_live(&self) -> bool {
        self.validity.is_live()
    }

    /// Whether `length` bytes at `offset` are within it.
    pub(crate) fn contains(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.length)
    }
}

/// Exposed bytes that may be touched until this is dropped.
pub(crate) struct HeldExposure<'a> {
    exposure: &'a Exposure,
    _held: Held<'a>,
}

impl HeldExposure<'_> {
    pub(crate) fn is_of(&self, exposure: &Exposure) -> bool {
        std::ptr::eq(self.exposure, exposure)
    }

    /// The address of `length` bytes at `offset`.
    ///
    /// # Panics
    /// If they are not within the region: writing there would corrupt memory, whatever mistake led to it.
    pub(crate) fn address(&self, offset: u64, length: usize) -> *mut u8 {
        assert!(
            self.exposure.contains(offset, length as u64),
            "{offset}+{length} is outside the exposed region"
        );
        // SAFETY: just checked to be within the region, whose owner lives since the tag is held.
        unsafe { self.exposure.base.as_ptr().add(offset as usize) }
    }

    /// The address of `length` bytes at `offset`, which are about to change.
    ///
    /// # Panics
    /// As [`HeldExposure::address`].
    pub(crate) fn to_place(&self, offset: u64, length: usize) -> *mut u8 {
        let address = self.address(offset, length);
        if let Some(sums) = self.sums() {
            sums.forget_at(address.addr(), length);
        }
        address
    }

    pub(crate) fn tag(&self) -> Tag {
        self.exposure.tag
    }

    /// What its blocks sum up to, if somebody wants to know.
    pub(crate) fn sums(&self) -> Option<&BlockSums> {
        self.exposure.sums.as_deref()
    }
}

/// All that a connection exposes.
pub(crate) struct Exposures {
    table: Mutex<Table>,
    /// Named by the worker thread of the connection while it places.
    receiving: Slot,
    /// Named by the thread that sends, under the sender's lock.
    sending: Slot,
    tags_max: usize,
    discarding_max: usize,
    skip_fence: bool,
}

struct Table {
    entries: HashMap<u32, Entry>,
    generator: Generator,
    discarding: usize,
    /// Memory of forgotten tags whose fence was never proven.
    unproven: Vec<Region>,
    closed: bool,
}

struct Entry {
    exposure: Arc<Exposure>,
    /// `None` once the fence was proven.
    region: Option<Region>,
}

impl Exposures {
    pub(crate) fn new(tags_max: usize, discarding_max: usize) -> Exposures {
        Exposures {
            table: Mutex::new(Table {
                entries: HashMap::new(),
                generator: Generator::new(),
                discarding: 0,
                unproven: Vec::new(),
                closed: false,
            }),
            receiving: Slot::new(),
            sending: Slot::new(),
            tags_max,
            discarding_max,
            skip_fence: false,
        }
    }

    /// Takes the fence out if told to, for tests that show that they would notice.
    #[cfg(feature = "mutation")]
    pub(crate) fn skip_fence(mut self, skip: bool) -> Exposures {
        self.skip_fence = skip;
        self
    }

    pub(crate) fn expose(&self, region: Region, access: RemoteAccess) -> Result<Tag, ExposeError> {
        let mut table = self.lock();
        if table.closed {
            return Err(ExposeError::Closed);
        }
        if table.entries.len() >= self.tags_max {
            return Err(ExposeError::TooMany { max: self.tags_max });
        }
        if table.discarding >= self.discarding_max {
            return Err(ExposeError::TooMany { max: self.discarding_max });
        }
        let tag = Tag(table.generator.next().ok_or(ExposeError::TooMany { max: u32::MAX as usize })?);
        let exposure = Exposure {
            tag,
            base: region.base(),
            length: region.length() as u64,
            access,
            sums: region.sums.clone(),
            validity: Validity::live(),
            users: AtomicU32::new(0),
        };
        table.entries.insert(tag.0, Entry { exposure: Arc::new(exposure), region: Some(region) });
        Ok(tag)
    }

    /// Live or revoked. Forgotten and never exposed are alike: `None`.
    pub(crate) fn find(&self, tag: Tag) -> Option<Arc<Exposure>> {
        self.lock().entries.get(&tag.0).map(|entry| entry.exposure.clone())
    }

    /// From now on nobody begins to touch the region. `None`: no such tag.
    pub(crate) fn revoke(&self, tag: Tag) -> Option<Arc<Exposure>> {
        let mut table = self.lock();
        let exposure = table.entries.get(&tag.0)?.exposure.clone();
        if exposure.is_live() {
            exposure.validity.revoke();
            table.discarding += 1;
        }
        Some(exposure)
    }

    /// Revokes, and waits until nobody touches the region. `Some`: operations of this end still use the exposure and
    /// have to be dropped.
    pub(crate) fn fence(&self, tag: Tag, patience: Duration) -> Result<Option<Arc<Exposure>>, Unproven> {
        if self.skip_fence {
            return Ok(None);
        }
        let Some(exposure) = self.revoke(tag) else { return Ok(None) };
        if !prove(&[&self.receiving, &self.sending], tag.0, patience) {
            return Err(Unproven { tag, waited: patience });
        }
        let region = self.lock().entries.get_mut(&tag.0).and_then(|entry| entry.region.take());
        drop(region);
        Ok((exposure.users.load(Ordering::Acquire) > 0).then_some(exposure))
    }

    pub(crate) fn forget(&self, tag: Tag) {
        let mut table = self.lock();
        let Some(entry) = table.entries.remove(&tag.0) else { return };
        if !entry.exposure.is_live() {
            table.discarding -= 1;
        }
        entry.exposure.validity.revoke();
        entry.exposure.validity.forget();
        // Nobody proved that the region is not being touched at this moment: it stays mapped until the end.
        table.unproven.extend(entry.region);
    }

    /// Called by the connection's worker, once neither it nor any sender can touch a region any more.
    pub(crate) fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        for entry in table.entries.values() {
            entry.exposure.validity.revoke();
            entry.exposure.validity.forget();
        }
        let entries = std::mem::take(&mut table.entries);
        let unproven = std::mem::take(&mut table.unproven);
        drop(table);
        // Owners are dropped outside the lock: what their drop does is not ours to know.
        drop((entries, unproven));
    }

    /// For the worker thread, which alone may call this, one at a time.
    pub(crate) fn hold_to_place<'a>(&'a self, exposure: &'a Exposure) -> Option<HeldExposure<'a>> {
        let held = self.receiving.hold(exposure.tag.0, &exposure.validity)?;
        Some(HeldExposure { exposure, _held: held })
    }

    /// For whoever has the sender's lock, one at a time.
    pub(crate) fn hold_to_send<'a>(&'a self, exposure: &'a Exposure) -> Option<HeldExposure<'a>> {
        let held = self.sending.hold(exposure.tag.0, &exposure.validity)?;
        Some(HeldExposure { exposure, _held: held })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds the table of tags")
    }
}

/// The worker's memory of exposures that it met lately, so that a segment takes no lock.
#[derive(Default)]
pub(crate) struct Recent {
    met: [Option<Arc<Exposure>>; 16],
}

impl Recent {
    pub(crate) fn find(&mut self, tag: u32, exposures: &Exposures) -> Option<Arc<Exposure>> {
        let place = &mut self.met[tag as usize % 16];
        match place {
            Some(exposure) if exposure.tag.0 == tag && !exposure.validity.is_forgotten() => {}
            _ => *place = exposures.find(Tag(tag)),
        }
        place.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(length: usize) -> (Region, Arc<Vec<u8>>) {
        let owner = Arc::new(vec![0u8; length]);
        let base = NonNull::new(owner.as_ptr().cast_mut()).expect("a vector has an address");
        // SAFETY: nothing in these tests touches the bytes, and the owner keeps them.
        (unsafe { Region::new(base, length, owner.clone()) }, owner)
    }

    #[test]
    fn the_owner_of_the_memory_is_let_go_when_the_fence_is_proven() {
        let exposures = Exposures::new(4, 4);
        let (memory, owner) = region(8);
        let tag = exposures.expose(memory, RemoteAccess::Write).expect("exposed");
        assert_eq!(Arc::strong_count(&owner), 2);
        exposures.fence(tag, Duration::ZERO).expect("nobody places");
        assert_eq!(Arc::strong_count(&owner), 1);
        assert!(exposures.find(tag).is_some(), "revoked is not unknown");
        exposures.forget(tag);
        assert!(exposures.find(tag).is_none());
    }

    #[test]
    fn a_fence_that_cannot_be_proven_keeps_the_memory_until_the_connection_is_over() {
        let exposures = Exposures::new(4, 4);
        let (memory, owner) = region(8);
        let tag = exposures.expose(memory, RemoteAccess::Write).expect("exposed");
        let exposure = exposures.find(tag).expect("exposed");
        let held = exposures.hold_to_place(&exposure);
        assert!(held.is_some());
        let patience = Duration::from_millis(1);
        assert_eq!(exposures.fence(tag, patience).err(), Some(Unproven { tag, waited: patience }));
        exposures.forget(tag);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(held);
        exposures.close();
        assert_eq!(Arc::strong_count(&owner), 1);
        assert_eq!(exposures.expose(region(8).0, RemoteAccess::Read), Err(ExposeError::Closed));
    }

    #[test]
    fn live_and_discarding_tags_have_their_limits() {
        let exposures = Exposures::new(3, 2);
        let tags: Vec<Tag> =
            (0..3).map(|_| exposures.expose(region(8).0, RemoteAccess::Write).expect("exposed")).collect();
        let full = Err(ExposeError::TooMany { max: 3 });
        assert_eq!(exposures.expose(region(8).0, RemoteAccess::Write), full);
        exposures.forget(tags[2]);
        exposures.fence(tags[0], Duration::ZERO).expect("nobody places");
        exposures.fence(tags[1], Duration::ZERO).expect("nobody places");
        exposures.fence(tags[1], Duration::ZERO).expect("twice is as good as once");
        let discarding = Err(ExposeError::TooMany { max: 2 });
        assert_eq!(exposures.expose(region(8).0, RemoteAccess::Write), discarding);
        exposures.forget(tags[0]);
        assert!(exposures.expose(region(8).0, RemoteAccess::Write).is_ok());
    }
}
